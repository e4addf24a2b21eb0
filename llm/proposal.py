"""What samples a phase: the current policy, the prior, or the last policy that came closer to the target."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

import brain_core
from llm import processes
from llm.logprob import group_pairs, score
from llm.models import Policy
from llm.records import ScoredGroup
from llm.store import ShardFolder, write_whole
from llm.train import Objective, group_tensors

PRIOR = "prior"
GIVEN = "given"


@dataclass(frozen=True)
class Proposal:
    """The proposal q' of a phase.

    Attributes:
        policy: The policy, whose base and adapter's place it shares.
        digest: Names it in the rollouts; of a policy, its adapter's fingerprint.
        state: The adapter's tensors to put in place, where it is an older policy.
    """

    policy: Policy
    digest: str
    state: Mapping[str, torch.Tensor] | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the policy computes the proposal."""
        if self.digest == PRIOR:
            with self.policy.as_prior():
                yield
        elif self.state is None:
            yield
        else:
            current = self.policy.adapter_state()
            self.policy.load_adapter_state(dict(self.state))
            try:
                yield
            finally:
                self.policy.load_adapter_state(current)


def adapter_digest(policy: Policy) -> str:
    """Fingerprint the adapter's tensors."""
    return state_digest(policy.adapter_state())


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint an adapter's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def improved_proposal(
    policy: Policy, folder: Path, phase: int, last_groups: Sequence[ScoredGroup], objective: Objective, rows: int
) -> Proposal:
    """Return the last policy that was closer to the target than the proposal before it (GDC, algorithm 2, lines 11-13).

    It moves to the current policy where Σ α̂ (log q_θ − log q') over the last phase's groups, the self-normalised
    estimate of KL(π‖q') − KL(π‖q_θ), is above 0. Decision and adapter are kept in the run folder.

    Args:
        policy: The policy.
        folder: The run's `proposals` folder.
        phase: The phase to be sampled.
        last_groups: The phase's before, sampled from the proposal so far; none in phase 0, which moves.
        objective: Holds the goodness.
        rows: Completions in one scoring call.
    """

    def decide() -> list[dict[str, float | bool]]:
        gain = _gain(policy, last_groups, objective, rows) if last_groups else 0.0
        return [{"gain": gain, "moves": not last_groups or gain > 0}]

    name = f"phase-{phase:04d}"
    shards = ShardFolder(folder)
    if shards.once_together(name, decide)[0]["moves"]:
        path = folder / f"{name}.safetensors"
        if processes.is_first() and not path.exists():
            write_whole(path, safetensors.torch.save(policy.adapter_state()))
        return Proposal(policy, adapter_digest(policy))
    moved = [path for path in sorted(folder.glob("phase-*.safetensors")) if path.stem < name]
    state = safetensors.torch.load_file(moved[-1])
    return Proposal(policy, state_digest(state), state)


def _gain(policy: Policy, groups: Sequence[ScoredGroup], objective: Objective, rows: int) -> float:
    """The estimated KL(π‖q') − KL(π‖q_θ), nats, averaged over groups."""

    def work(block: Sequence[ScoredGroup]) -> list[float]:
        pairs = [pair for group in block for pair in group_pairs(group)]
        log_policy = torch.tensor(score(policy, pairs, rows), dtype=torch.float64).view(len(block), -1)
        tensors = group_tensors(block, log_policy, objective.log_goodness)
        weights = brain_core.self_normalized_weights(tensors.target, on_empty="skip")
        return (weights * tensors.ratio).sum(-1).tolist()

    size = max(1, rows // len(groups[0].completions))
    gains = processes.dealt(groups, size, work)
    return float(sum(gains) / len(gains))

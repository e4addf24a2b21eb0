"""What samples a phase: the current policy, the prior, or the last policy that came closer to the target."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import brain_core
from llm import processes
from llm.config import AlignConfig
from llm.logprob import group_pairs, score
from llm.models import Policy
from llm.records import Pair, Prompt, ScoredGroup
from llm.rewards import AnyReward, on_device, rewards_of
from llm.rollout import sample_groups
from llm.store import ShardFolder, write_whole
from llm.streams import stream
from llm.train import group_tensors, make_objective

PRIOR = "prior"
GIVEN = "given"
GATE_SHARE = 4
"""A phase's prompts for each prompt on which it is decided whether the proposal moves."""


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


def improved_proposal(policy: Policy, folder: Path, phase: int, gain: Callable[[Proposal], float]) -> Proposal:
    """Return the last policy that was closer to the target than the proposal before it: GDC's rule.

    Decision and adapter are kept in the run folder. Phase 0 moves to the policy as it begins.

    Args:
        policy: The policy.
        folder: The run's `proposals` folder.
        phase: The phase to be sampled.
        gain: Estimates KL(π‖q') − KL(π‖q_θ), nats, of the proposal q' so far; called once for a phase.
    """
    name, shards = f"phase-{phase:04d}", ShardFolder(folder)
    before = _kept(policy, folder, name) if phase else None

    def decide() -> list[dict[str, float | bool]]:
        value = gain(before) if before else 0.0
        return [{"gain": value, "moves": before is None or value > 0}]

    if not shards.once_together(name, decide)[0]["moves"] and before:
        return before
    path = folder / f"{name}.safetensors"
    if processes.is_first() and not path.exists():
        write_whole(path, safetensors.torch.save(policy.adapter_state()))
    return Proposal(policy, adapter_digest(policy))


def gain(
    policy: Policy, reward: AnyReward, config: AlignConfig, prompts: Sequence[Prompt], phase: int, before: Proposal
) -> float:
    """Estimate how much closer to the target the policy is than a proposal: KL(π‖q') − KL(π‖q_θ), nats.

    The self-normalised mean of log q_θ − log q' over groups that the proposal samples for this alone: on groups that
    the policy was trained on it would nearly always have come closer.

    Args:
        policy: The policy.
        reward: The reward.
        config: The run's settings.
        prompts: The training prompts; a quarter as many as in a phase are drawn.
        phase: The phase that is about to begin; names the draws.
        before: The proposal.
    """
    count, objective = math.ceil(config.m / GATE_SHARE), make_objective(config)
    chosen = stream(config.seed, "gate", phase).choice(len(prompts), count, replace=False)

    def work(block: Sequence[Prompt]) -> list[float]:
        groups = _sampled(policy, reward, config, block, before, phase)
        log_policy = torch.tensor(score(policy, _pairs(groups), config.sample_rows), dtype=torch.float64)
        tensors = group_tensors(groups, log_policy.view(len(groups), -1), objective.log_goodness)
        weights = brain_core.self_normalized_weights(tensors.target, on_empty="skip")
        return (weights * tensors.ratio).sum(-1).tolist()

    with on_device(reward):
        gains = processes.dealt([prompts[i] for i in chosen], max(1, config.sample_rows // config.n), work)
    return sum(gains) / len(gains)


def _sampled(
    policy: Policy, reward: AnyReward, config: AlignConfig, prompts: Sequence[Prompt], proposal: Proposal, phase: int
) -> list[ScoredGroup]:
    """Sample and score a group of each prompt, and keep nothing."""
    rows, temperature, draw = config.sample_rows, config.sampling_temperature, (config.seed, "gate", phase)
    unknown = np.zeros(config.n)
    with proposal.active():
        sampled = sample_groups(
            policy,
            prompts,
            config.n,
            draw=draw,
            max_new_tokens=config.max_new_tokens,
            temperature=temperature,
            stop=config.stop,
        )
        groups = [ScoredGroup(p, tuple(g), unknown, unknown, unknown) for p, g in zip(prompts, sampled, strict=True)]
        log_proposal = score(policy, _pairs(groups), rows, temperature=temperature)
    with policy.as_prior():
        log_prior = score(policy, _pairs(groups), rows)
    rewards = rewards_of(reward, [(p, c.text) for p, c in _pairs(groups)])
    columns = [np.reshape(values, (len(groups), -1)) for values in (log_prior, log_proposal, rewards)]
    return [
        replace(group, log_prior=prior, log_proposal=own, reward=r)
        for group, prior, own, r in zip(groups, *columns, strict=True)
    ]


def _pairs(groups: Sequence[ScoredGroup]) -> list[Pair]:
    return [pair for group in groups for pair in group_pairs(group)]


def _kept(policy: Policy, folder: Path, name: str) -> Proposal:
    """The proposal that a phase finds: the last one that was moved to before it."""
    moved = [path for path in sorted(folder.glob("phase-*.safetensors")) if path.stem < name]
    state = safetensors.torch.load_file(moved[-1])
    return Proposal(policy, state_digest(state), state)

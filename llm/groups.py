"""One phase of Algorithm 1 (lines 4 to 12): sample groups, score them, and keep both in the run folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm import processes
from llm.config import AlignConfig
from llm.errors import UserError
from llm.logprob import score
from llm.models import Policy
from llm.records import Completion, Pair, Prompt, ScoredGroup
from llm.rewards import AnyReward, on_device, rewards_of
from llm.rollout import sample_groups
from llm.store import ShardFolder
from llm.streams import stream

Progress = Callable[[int], object]

SAMPLER_TOLERANCE = 1e-3
"""Nats a completion by which the sampler's log q' may differ from the scorer's and still stand for it."""


@dataclass(frozen=True)
class Collector:
    """Collects the groups of a phase.

    Attributes:
        policy: The policy, which is the proposal while a phase is collected.
        reward: The reward.
        config: The run's settings.
        folder: The run folder.
        fingerprint: Of everything that gives the cached scores their meaning.
    """

    policy: Policy
    reward: AnyReward
    config: AlignConfig
    folder: Path
    fingerprint: str

    def phase_prompts(self, phase: int, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Draw the m prompts of a phase, ordered by length so that a batch holds similar ones."""
        chosen = stream(self.config.seed, "prompts", phase).choice(len(prompts), self.config.m, replace=False)
        return sorted((prompts[i] for i in chosen), key=lambda p: (len(p.token_ids), p.prompt_id))

    def collect(self, phase: int, prompts: Sequence[Prompt], progress: Progress) -> list[ScoredGroup]:
        """Return a phase's scored groups; blocks that are in the run folder already are read from it.

        Several processes take blocks in turn, and each returns the groups of all of them.

        Args:
            phase: 0 to e−1.
            prompts: The training prompts.
            progress: Called with the number of groups done, once for their sampling and once for their scoring.

        Raises:
            UserError: A shard is damaged, or was sampled from another proposal than the current policy.
        """
        proposal = adapter_digest(self.policy)
        processes.check_same("adapter", lambda: proposal)
        blocks = list(enumerate(self._blocks(self.phase_prompts(phase, prompts))))
        own = blocks[processes.rank() :: processes.count()]
        for block, members in own[:1]:
            self._rollout_rows(phase, block, members, proposal)  # all sample while the first process's are compared
        sampler_stands = processes.from_first(lambda: self._sampler_stands(phase, *blocks[0], proposal))
        for block, members in own:
            self._rollout_rows(phase, block, members, proposal)
            progress(len(members))
        with on_device(self.reward):  # and not before: sampling needs the room
            for block, members in own:
                rows = self._rollout_rows(phase, block, members, proposal)
                self._score_once(phase, block, members, rows, sampler_stands)
                progress(len(members))
        self._wait_for_blocks(phase, [block for block, _ in blocks])
        progress(2 * (sum(len(members) for _, members in blocks) - sum(len(members) for _, members in own)))
        return self.stored(phase, prompts)

    def stored(self, phase: int, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """Return the scored groups of a phase that was collected before.

        Raises:
            UserError: A shard is missing or damaged.
        """
        groups = []
        for block, members in enumerate(self._blocks(self.phase_prompts(phase, prompts))):
            rows = self._rollouts(phase).read(_block_name(block))
            scores = self._scores(phase).read(_block_name(block))
            groups += self._joined(phase, block, members, rows, scores)
        return groups

    def _blocks(self, prompts: list[Prompt]) -> list[list[Prompt]]:
        """Cut a phase's prompts into the blocks that are sampled and scored together."""
        size = max(1, self.config.sample_rows // self.config.n)
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def _rollouts(self, phase: int) -> ShardFolder:
        return ShardFolder(self.folder / "rollouts" / f"phase-{phase:04d}")

    def _scores(self, phase: int) -> ShardFolder:
        return ShardFolder(self.folder / "scores" / self.fingerprint[:16] / f"phase-{phase:04d}")

    def _rollout_rows(self, phase: int, block: int, members: list[Prompt], proposal: str) -> list[dict[str, Any]]:
        """Sample a block, or read it where it was sampled before."""
        shards = self._rollouts(phase)
        rows = shards.once(_block_name(block), lambda: self._sample(phase, members, proposal))
        if any(row["proposal"] != proposal for row in rows):
            raise UserError(
                f"{shards.folder}: these rollouts were sampled from another proposal than the run is at now (another "
                "machine or thread count?). Delete this folder and its namesake under scores/ to sample them again."
            )
        return rows

    def _sample(self, phase: int, members: list[Prompt], proposal: str) -> list[dict[str, Any]]:
        """Sample a block's groups."""
        groups = sample_groups(
            self.policy,
            members,
            self.config.n,
            draw=(self.config.seed, "rollout", phase),
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.sampling_temperature,
            stop=self.config.stop,
        )
        return [completion_row(c) | {"proposal": proposal} for group in groups for c in group]

    def _score_once(
        self, phase: int, block: int, members: list[Prompt], rows: list[dict[str, Any]], sampler_stands: bool
    ) -> None:
        """Score a block, unless it was scored before."""
        pairs = self._pairs(members, rows)
        self._scores(phase).once(_block_name(block), lambda: self._score(phase, block, pairs, sampler_stands))

    def _pairs(self, members: list[Prompt], rows: list[dict[str, Any]]) -> list[Pair]:
        """The completions of a block, each with its prompt."""
        prompts = [prompt for prompt in members for _ in range(self.config.n)]
        return list(zip(prompts, map(_completion, rows), strict=True))

    def _wait_for_blocks(self, phase: int, blocks: list[int]) -> None:
        """Wait until every process is done and the shards of all are seen here."""
        processes.exchange(None)
        names = {_block_name(block) for block in blocks}

        def seen() -> bool:
            return all(name in shards for shards in (self._rollouts(phase), self._scores(phase)) for name in names)

        if processes.count() > 1:
            processes.comes_true(seen)

    def _score(self, phase: int, block: int, pairs: list[Pair], sampler_stands: bool) -> list[dict[str, Any]]:
        """Compute log p, log q' and r of a block (line 8), each row tied to the rollouts that it is of."""
        size = self.config.sample_rows
        if sampler_stands:
            log_proposal = [completion.sampler_log_prob for _, completion in pairs]
        else:
            log_proposal = score(self.policy, pairs, size, temperature=self.config.sampling_temperature)
        with self.policy.as_prior():
            log_prior = score(self.policy, pairs, size)
        rewards = rewards_of(self.reward, [(prompt, completion.text) for prompt, completion in pairs])
        key = {"rollouts": self._rollouts(phase).checksum(_block_name(block))}
        return [
            {
                "prompt_id": p.prompt_id,
                "sample_id": c.sample_id,
                "log_prior": prior,
                "log_proposal": proposal,
                "reward": r,
            }
            | key
            for (p, c), prior, proposal, r in zip(pairs, log_prior, log_proposal, rewards.tolist(), strict=True)
        ]

    def _sampler_stands(self, phase: int, block: int, members: list[Prompt], proposal: str) -> bool:
        """Whether the sampler's own log q' stands for the scorer's in this phase, as its first group decided.

        Only in float32: in half precision a log-prob depends on how completions are batched.
        """
        if self.config.dtype != "float32":
            return False

        def compare() -> list[dict[str, Any]]:
            rows = self._rollout_rows(phase, block, members, proposal)[: self.config.n]
            group = self._pairs(members[:1], rows)
            scored = score(self.policy, group, self.config.sample_rows, temperature=self.config.sampling_temperature)
            gap = float(np.abs(np.array(scored) - [completion.sampler_log_prob for _, completion in group]).max())
            return [{"largest_difference": gap, "stands": gap <= SAMPLER_TOLERANCE}]

        return bool(self._scores(phase).once("sampler", compare)[0]["stands"])

    def _joined(
        self, phase: int, block: int, members: list[Prompt], rows: list[dict[str, Any]], scores: list[dict[str, Any]]
    ) -> list[ScoredGroup]:
        """Join prompts, rollout rows and score rows, which must belong together."""
        expected = [(prompt.prompt_id, i) for prompt in members for i in range(self.config.n)]
        keys = [[(row["prompt_id"], row["sample_id"]) for row in table] for table in (rows, scores)]
        checksum = self._rollouts(phase).checksum(_block_name(block))
        if keys != [expected, expected] or any(row["rollouts"] != checksum for row in scores):
            raise UserError(
                f"{self._scores(phase).folder / _block_name(block)}.parquet: these scores are not of the rollouts and "
                "prompts of this run. Delete the folder to score again."
            )
        return _as_groups(members, rows, scores)


def completion_row(completion: Completion) -> dict[str, Any]:
    """Return a completion as a row of a table."""
    return dataclasses.asdict(completion) | {"token_ids": list(completion.token_ids)}


def adapter_digest(policy: Policy) -> str:
    """Fingerprint the adapter's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.adapter_state().items()):
        digest.update(name.encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def _as_groups(members: list[Prompt], rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[ScoredGroup]:
    """Join prompts, rollout rows and score rows; the rows come group by group."""
    n = len(rows) // len(members)
    groups = []
    for index, prompt in enumerate(members):
        part = slice(index * n, (index + 1) * n)
        completions = tuple(_completion(row) for row in rows[part])
        columns = {key: np.array([s[key] for s in scores[part]]) for key in ("log_prior", "log_proposal", "reward")}
        groups.append(ScoredGroup(prompt, completions, **columns))
    return groups


def _completion(row: dict[str, Any]) -> Completion:
    """Read a completion from a row of a table."""
    values = {field.name: row[field.name] for field in dataclasses.fields(Completion)}
    return Completion(**values | {"token_ids": tuple(row["token_ids"])})


def _block_name(block: int) -> str:
    return f"block-{block:05d}"

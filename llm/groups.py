"""One phase of Algorithm 1 (lines 4 to 12): sample groups, score them, and keep both in the run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm import processes
from llm.config import AlignConfig
from llm.errors import UserError
from llm.given import GivenGroup, GivenGroups
from llm.logprob import score, score_tokens
from llm.methods import METHODS
from llm.models import Policy
from llm.prompts import draw_prompts
from llm.proposal import GIVEN, PRIOR, Proposal, adapter_digest, gain, improved_proposal
from llm.records import Completion, Pair, Prompt, ScoredGroup, TokenScores
from llm.rewards import AnyReward, on_device, rewards_of
from llm.rollout import sample_groups
from llm.store import ShardFolder, rollout_shards, score_shards

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
        given: Completions to take instead of sampling, if any.
    """

    policy: Policy
    reward: AnyReward
    config: AlignConfig
    folder: Path
    fingerprint: str
    given: GivenGroups | None = None

    def phase_prompts(self, phase: int, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Draw the m prompts of a phase, ordered by length so that a batch holds similar ones."""
        if self.given is not None:
            return [group.prompt for group in self.given.phase(phase)]
        return draw_prompts(prompts, self.config, phase)

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
        proposal = self._proposal(phase, prompts)
        processes.check_same("adapter", lambda: proposal.digest)
        with proposal.active():
            self._collect_blocks(phase, self._blocks(self.phase_prompts(phase, prompts)), proposal.digest, progress)
        return self.stored(phase, prompts)

    def _proposal(self, phase: int, prompts: Sequence[Prompt]) -> Proposal:
        """What samples a phase, as the method says."""
        rule = METHODS[self.config.method].proposal
        if self.given is not None:
            return Proposal(self.policy, GIVEN)
        if rule == "prior":
            return Proposal(self.policy, PRIOR)
        if rule == "policy":
            return Proposal(self.policy, adapter_digest(self.policy))
        gate = partial(gain, self.policy, self.reward, self.config, prompts, phase)
        return improved_proposal(self.policy, self.folder / "proposals", phase, gate)

    def _collect_blocks(self, phase: int, members: list[list[Prompt]], proposal: str, progress: Progress) -> None:
        """Sample and score the blocks that are not in the run folder yet; processes take them in turn."""
        blocks = list(enumerate(members))
        own = blocks[processes.rank() :: processes.count()]
        for block, prompts in own[:1]:
            self._rollout_rows(phase, block, prompts, proposal)  # all sample while the first process's are compared
        sampler_stands = processes.from_first(lambda: self._sampler_stands(phase, *blocks[0], proposal))
        for block, prompts in own:
            self._rollout_rows(phase, block, prompts, proposal)
            progress(len(prompts))
        with on_device(self.reward):  # and not before: sampling needs the room
            for block, prompts in own:
                rows = self._rollout_rows(phase, block, prompts, proposal)
                self._score_once(phase, block, prompts, rows, sampler_stands)
                progress(len(prompts))
        self._wait_for_blocks(phase, [block for block, _ in blocks])
        progress(2 * (sum(map(len, members)) - sum(len(prompts) for _, prompts in own)))

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
        size = self._block_size()
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def _block_size(self) -> int:
        """Prompts in a block."""
        return max(1, self.config.sample_rows // self.config.n)

    def _rollouts(self, phase: int) -> ShardFolder:
        return rollout_shards(self.folder, phase)

    def _scores(self, phase: int) -> ShardFolder:
        return score_shards(self.folder, self.fingerprint, phase)

    def _rollout_rows(self, phase: int, block: int, members: list[Prompt], proposal: str) -> list[dict[str, Any]]:
        """Sample a block, or read it where it was sampled before."""
        shards = self._rollouts(phase)
        rows = shards.once(_block_name(block), lambda: self._sample(phase, block, members, proposal))
        if any(row["proposal"] != proposal for row in rows):
            raise UserError(
                f"{shards.folder}: these rollouts were sampled from another proposal than the run is at now (another "
                "machine or thread count?). Delete this folder and its namesake under scores/ to sample them again."
            )
        return rows

    def _sample(self, phase: int, block: int, members: list[Prompt], proposal: str) -> list[dict[str, Any]]:
        """Sample a block's groups, or take those that are given."""
        groups = [g.completions for g in self._given_block(phase, block, members)] or sample_groups(
            self.policy,
            members,
            self.config.n,
            draw=(self.config.seed, "rollout", phase),
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.sampling_temperature,
            stop=self.config.stop,
        )
        return [completion_row(c) | {"proposal": proposal} for group in groups for c in group]

    def _given_block(self, phase: int, block: int, members: list[Prompt]) -> list[GivenGroup]:
        """The given groups of a block, none where completions are sampled."""
        if self.given is None:
            return []
        start = block * self._block_size()
        return self.given.phase(phase)[start : start + len(members)]

    def _score_once(
        self, phase: int, block: int, members: list[Prompt], rows: list[dict[str, Any]], sampler_stands: bool
    ) -> None:
        """Score a block, unless it was scored before."""

        def make() -> list[dict[str, Any]]:
            known = self._given_block(phase, block, members)
            return self._score(phase, block, self._pairs(members, rows), known, sampler_stands)

        self._scores(phase).once(_block_name(block), make)

    def _pairs(self, members: list[Prompt], rows: list[dict[str, Any]]) -> list[Pair]:
        """The completions of a block, each with its prompt."""
        prompts = [prompt for prompt in members for _ in range(self.config.n)]
        return list(zip(prompts, map(Completion.from_row, rows), strict=True))

    def _wait_for_blocks(self, phase: int, blocks: list[int]) -> None:
        """Wait until every process is done and the shards of all are seen here."""
        processes.exchange(None)
        names = {_block_name(block) for block in blocks}

        def seen() -> bool:
            return all(name in shards for shards in (self._rollouts(phase), self._scores(phase)) for name in names)

        if processes.count() > 1:
            processes.comes_true(seen)

    def _score(
        self, phase: int, block: int, pairs: list[Pair], known: list[GivenGroup], sampler_stands: bool
    ) -> list[dict[str, Any]]:
        """Compute log p, log q' and r of a block (line 8), each row tied to the rollouts that it is of."""
        rewards = _known(known, "reward")
        if rewards is None:
            rewards = rewards_of(self.reward, [(p, c.text) for p, c in pairs]).tolist()
        columns = {
            "prompt_id": [p.prompt_id for p, _ in pairs],
            "sample_id": [c.sample_id for _, c in pairs],
            **self._log_probs(pairs, known, sampler_stands),
            "reward": rewards,
            "rollouts": [self._rollouts(phase).checksum(_block_name(block))] * len(pairs),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _log_probs(self, pairs: list[Pair], known: list[GivenGroup], sampler_stands: bool) -> dict[str, list[Any]]:
        """Columns with log p and log q' of completions, token by token as well where the method asks for it."""
        method, size = METHODS[self.config.method].tokens, self.config.sample_rows
        if method and method.is_cached:
            return self._token_log_probs(pairs)
        log_prior = _known(known, "log_prior")
        if log_prior is None:
            with self.policy.as_prior():
                log_prior = score(self.policy, pairs, size)
        log_proposal = _known(known, "log_proposal")
        if log_proposal is None:
            log_proposal = self._log_proposal(pairs, log_prior, sampler_stands)
        return {"log_prior": log_prior, "log_proposal": log_proposal}

    def _token_log_probs(self, pairs: list[Pair]) -> dict[str, list[Any]]:
        """Columns with log p and log q' of completions and of their tokens, and their values; the scorer's own."""
        size, temperature = self.config.sample_rows, self.config.sampling_temperature
        with self.policy.as_prior():
            log_prior, _ = score_tokens(self.policy, pairs, size)
        log_proposal, values = score_tokens(self.policy, pairs, size, temperature=temperature)
        sums = {"log_prior": list(map(math.fsum, log_prior)), "log_proposal": list(map(math.fsum, log_proposal))}
        tokens = {"token_log_prior": log_prior, "token_log_proposal": log_proposal}
        return {**sums, **tokens, **({"values": values} if values else {})}

    def _log_proposal(self, pairs: list[Pair], log_prior: list[float], sampler_stands: bool) -> list[float]:
        """log q' of completions: the prior's where that is what sampled, or where nobody knows (T10)."""
        temperature = self.config.sampling_temperature
        if self.given is not None or (METHODS[self.config.method].proposal == "prior" and temperature == 1.0):
            return log_prior
        if sampler_stands:
            return [completion.sampler_log_prob for _, completion in pairs]
        return score(self.policy, pairs, self.config.sample_rows, temperature=temperature)

    def _sampler_stands(self, phase: int, block: int, members: list[Prompt], proposal: str) -> bool:
        """Whether the sampler's own log q' stands for the scorer's in this phase, as its first group decided.

        Only in float32: in half precision a log-prob depends on how completions are batched. It is a sum, which tokens
        cannot be had from.
        """
        method = METHODS[self.config.method].tokens
        if self.config.dtype != "float32" or self.given is not None or (method and method.is_cached):
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
        return _as_groups(phase, members, rows, scores)


def completion_row(completion: Completion) -> dict[str, Any]:
    """Return a completion as a row of a table."""
    return dataclasses.asdict(completion) | {"token_ids": list(completion.token_ids)}


def _known(groups: list[GivenGroup], name: str) -> list[float] | None:
    """What is given of a block's completions, None where it is to be computed."""
    values = [getattr(group, name) for group in groups]
    return None if not values or values[0] is None else [value for part in values for value in part]


def _as_groups(
    phase: int, members: list[Prompt], rows: list[dict[str, Any]], scores: list[dict[str, Any]]
) -> list[ScoredGroup]:
    """Join prompts, rollout rows and score rows; the rows come group by group."""
    n = len(rows) // len(members)
    groups = []
    for index, prompt in enumerate(members):
        part = slice(index * n, (index + 1) * n)
        completions = tuple(Completion.from_row(row) for row in rows[part])
        columns = {key: np.array([s[key] for s in scores[part]]) for key in ("log_prior", "log_proposal", "reward")}
        groups.append(ScoredGroup(prompt, completions, **columns, phase=phase, tokens=_token_scores(scores[part])))
    return groups


def _token_scores(scores: list[dict[str, Any]]) -> TokenScores | None:
    """What is stored of the tokens of a group, if anything."""
    if "token_log_prior" not in scores[0]:
        return None
    names = ("token_log_prior", "token_log_proposal", *(["values"] if "values" in scores[0] else []))
    return TokenScores(*(tuple(np.array(row[name], dtype=np.float64) for row in scores) for name in names))


def _block_name(block: int) -> str:
    return f"block-{block:05d}"

"""Collecting the groups of a phase: whose log q' is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from letter_world import letter_config, moved
from llm import groups
from llm.groups import SAMPLER_TOLERANCE, Collector
from llm.logprob import score as scored
from llm.models import Policy, load_policy
from llm.records import Prompt, ScoredGroup
from llm.rewards import load_reward
from llm.store import ShardFolder


@pytest.fixture
def counted_scoring(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions each call of the scorer got."""
    calls: list[int] = []
    score = groups.score
    monkeypatch.setattr(groups, "score", lambda *a, **k: (calls.append(len(a[1])), score(*a, **k))[1])
    return calls


def collected(folder: Path, policy: Policy, **changes: object) -> list[ScoredGroup]:
    config = letter_config(folder, **changes)
    prompts = [Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None) for text in "abcdefg"]
    reward = load_reward(config.reward, device="cpu", batch_size=8)
    return Collector(policy, reward, config, folder, "f" * 64).collect(0, prompts, lambda done: None)


def with_a_sampler_off_by(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = groups.sample_groups

    def wrong(*arguments: object, **options: object) -> list:
        return [
            [dataclasses.replace(c, sampler_log_prob=c.sampler_log_prob + error) for c in group]
            for group in sample(*arguments, **options)
        ]

    monkeypatch.setattr(groups, "sample_groups", wrong)


def test_the_samplers_log_prob_stands_where_the_first_group_agrees(
    in_letters: Path, tmp_path: Path, counted_scoring: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_sampler_off_by(0.9 * SAMPLER_TOLERANCE, monkeypatch)
    found = collected(tmp_path, moved(load_policy(letter_config())))
    for group in found:
        assert group.log_proposal.tolist() == [c.sampler_log_prob for c in group.completions]
    assert counted_scoring == [4, 12, 12]  # one group to decide, then log p of two blocks


def test_the_scorers_log_prob_is_kept_where_the_sampler_disagrees(
    in_letters: Path, tmp_path: Path, counted_scoring: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(load_policy(letter_config()))
    right = collected(tmp_path / "right", policy)
    with_a_sampler_off_by(1.1 * SAMPLER_TOLERANCE, monkeypatch)
    counted_scoring.clear()
    found = collected(tmp_path / "wrong", policy)
    for group, expected in zip(found, right, strict=True):
        assert group.log_proposal == pytest.approx(expected.log_proposal, abs=1e-5)
    assert counted_scoring == [4, 12, 12, 12, 12]


def test_in_half_precision_the_scorer_is_asked(in_letters: Path, tmp_path: Path, counted_scoring: list[int]) -> None:
    collected(tmp_path, load_policy(letter_config(dtype="bfloat16")), dtype="bfloat16")
    assert counted_scoring == [12, 12, 12, 12]


def test_a_resumed_phase_keeps_the_decision(
    in_letters: Path, tmp_path: Path, counted_scoring: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second block is collected by a process whose sampler would not pass any more."""
    policy = moved(load_policy(letter_config()))
    collected(tmp_path, policy)
    (scores,) = (tmp_path / "scores").iterdir()
    shards = ShardFolder(scores / "phase-0000")
    (decision,) = shards.read("sampler")
    assert decision["stands"]
    assert decision["largest_difference"] < SAMPLER_TOLERANCE
    for folder in (scores / "phase-0000", tmp_path / "rollouts" / "phase-0000"):
        shard = ShardFolder(folder)
        (folder / "block-00001.parquet").unlink()
        del shard._checksums["block-00001"]
        shard.write("nothing", [{"a": 1}])
    with_a_sampler_off_by(10.0, monkeypatch)
    counted_scoring.clear()
    collected(tmp_path, policy)
    assert counted_scoring == [12]


@pytest.mark.parametrize("sampler_error", [0.0, 1.0])
def test_the_proposal_is_sampled_and_scored_at_its_temperature_and_the_prior_at_1(
    sampler_error: float, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(load_policy(letter_config()))
    at_1 = collected(tmp_path / "one", policy)
    with_a_sampler_off_by(sampler_error, monkeypatch)
    found = collected(tmp_path / "half", policy, sampling_temperature=0.5)
    assert [group.completions for group in found] != [group.completions for group in at_1]
    for group in found:
        pairs = [(group.prompt, completion) for completion in group.completions]
        assert group.log_proposal == pytest.approx(scored(policy, pairs, 10, temperature=0.5), abs=1e-4)
        with policy.as_prior():
            assert group.log_prior == pytest.approx(scored(policy, pairs, 10), abs=1e-4)


def test_both_engines_collect_the_same(in_letters: Path, tmp_path: Path) -> None:
    found = [
        collected(tmp_path / engine, moved(load_policy(letter_config(engine=engine))), stop=("q", "ab"))
        for engine in ("shared-prefix", "plain")
    ]
    for one, other in zip(*found, strict=True):
        assert one.completions == other.completions
        assert one.reward.tolist() == other.reward.tolist()
        assert one.log_prior == pytest.approx(other.log_prior, abs=1e-5)
        assert one.log_proposal == pytest.approx(other.log_proposal, abs=1e-5)
        assert all("q" not in c.text and "ab" not in c.text for c in one.completions)

"""What an evaluation says: strict wins, ties apart, paired changes, head to head, and prompts as the sample."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import brain_core
from eval_records import record
from llm import statistics
from llm.errors import UserError
from llm.figures import change, figures, group_figures, head_to_head
from llm.records import EvalRecord

JUDGE_FIGURES = {"judge_win_rate", "judge_tie_rate", "judge_length_controlled_win_rate"}


def estimate(values: dict[str, Any], name: str) -> float:
    return values[name]["estimate"]


def test_a_win_is_strictly_greater_and_a_tie_is_equal() -> None:
    records = [record(r) for r in (-1.0, 0.0, 1e-300, 5.0)]
    values = figures(records)
    assert estimate(values, "reward_model_win_rate") == 2 / 4
    assert estimate(values, "reward_model_tie_rate") == 1 / 4


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=20))
def test_wins_ties_and_losses_make_one(pairs: list[tuple[int, int]]) -> None:
    values = figures([record(a, b) for a, b in pairs])
    losses = figures([record(b, a) for a, b in pairs])
    total = sum(estimate(v, k) for v, k in ((values, "reward_model_win_rate"), (values, "reward_model_tie_rate")))
    assert total + estimate(losses, "reward_model_win_rate") == pytest.approx(1)


def test_figures_are_those_of_the_records() -> None:
    records = [
        record(1.0, tokens=2, log_policy=-1.0, log_prior=-3.0),
        record(4.0, tokens=5, reason="length", log_policy=-2.0, log_prior=-2.5),
    ]
    values = figures(records)
    assert values["mean_reward"] == statistics.mean([1.0, 4.0])
    assert values["kl_to_prior"] == statistics.mean([2.0, 0.5])
    assert values["completion_length"] == statistics.mean([2, 5])
    assert values["ended"] == statistics.proportion([True, False])


def test_without_a_judge_its_figures_are_null_and_all_others_are_there() -> None:
    values = figures([record(1.0), record(-2.0), record(0.0, written="a"), record(1.0, written="a")])
    assert {name for name, value in values.items() if value is None} == JUDGE_FIGURES
    assert change([record(1.0)], [record(2.0)])["judge_win_rate"] is None


def test_the_judges_figures_come_from_its_grades_alone() -> None:
    values = figures([record(-9.0, grade=1.0, reference_grade=0.0), record(-9.0, grade=2.0, reference_grade=2.0)])
    assert estimate(values, "judge_win_rate") == estimate(values, "judge_tie_rate") == 0.5
    assert estimate(values, "reward_model_win_rate") == 0


def test_a_change_is_the_mean_of_paired_differences() -> None:
    before = [record(r, 1.0, grade=g, reference_grade=0.0) for r, g in ((0.0, 0.0), (2.0, 1.0), (1.0, -1.0))]
    after = [record(r, 1.0, grade=g, reference_grade=0.0) for r, g in ((2.0, 1.0), (2.5, 1.0), (0.0, -1.0))]
    values = change(before, after)
    assert values["mean_reward"] == statistics.mean([2.0, 0.5, -1.0])
    assert values["reward_model_win_rate"] == statistics.mean([1.0, 0.0, 0.0])
    assert values["judge_win_rate"] == statistics.mean([1.0, 0.0, 0.0])


def test_a_change_of_what_moved_by_the_same_everywhere_is_sharper_than_the_two_means() -> None:
    before, after = [record(float(r)) for r in range(10)], [record(r + 0.5) for r in range(10)]
    value = change(before, after)["mean_reward"]
    assert value["low"] == value["high"] == 0.5


def test_evaluations_of_different_lengths_are_never_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        change([record(1.0)], [record(1.0), record(2.0)])


def rows(
    rng: np.random.Generator, prompts: int, each: int, *, graded: bool = True, shift: float = 0.0
) -> list[EvalRecord]:
    """Completions of some prompts, rewarded and graded with ties."""
    return [
        record(
            float(rng.integers(0, 4)) + shift,
            1.0,
            grade=float(rng.integers(0, 3)) if graded else None,
            reference_grade=1.0 if graded else None,
            tokens=rng.integers(0, 9, rng.integers(1, 12)).tolist(),
            log_policy=float(rng.normal(-5, 1)),
            log_prior=float(rng.normal(-6, 1)),
            name=f"p{prompt}",
            sample_id=place,
            written="w" * int(rng.integers(0, 30)),
        )
        for prompt in range(prompts)
        for place in range(each)
    ]


def by_prompt(records: list[EvalRecord]) -> dict[str, list[EvalRecord]]:
    return {name: [r for r in records if r.prompt.prompt_id == name] for name in {r.prompt.prompt_id for r in records}}


def test_of_several_completions_a_prompt_the_prompts_are_the_sample() -> None:
    records = rows(np.random.default_rng(0), 30, 4)
    ids = [r.prompt.prompt_id for r in records]
    values = figures(records)
    assert values["mean_reward"] == statistics.mean([r.reward for r in records], ids)
    assert values["reward_model_win_rate"] == statistics.proportion([r.reward > 1 for r in records], ids)
    assert values["judge_tie_rate"] == statistics.proportion([r.grade == 1 for r in records], ids)
    blind = figures([replace(r, prompt=replace(r.prompt, prompt_id=str(i))) for i, r in enumerate(records)])
    assert estimate(blind, "mean_reward") == pytest.approx(estimate(values, "mean_reward"))
    assert blind["mean_reward"]["low"] != values["mean_reward"]["low"]


def test_repeating_each_prompts_completion_adds_no_certainty() -> None:
    once = rows(np.random.default_rng(1), 60, 1)
    values = [figures(records) for records in (once, [r for r in once for _ in range(8)])]
    for name in ("mean_reward", "kl_to_prior", "reward_model_win_rate", "kl_per_token"):
        width = [v[name]["high"] - v[name]["low"] for v in values]
        assert width[1] == pytest.approx(width[0], rel=0.1), name


def test_nats_a_token_are_all_nats_over_all_tokens() -> None:
    records = rows(np.random.default_rng(2), 20, 3)
    nats = math.fsum(r.log_policy - r.log_prior for r in records)
    assert estimate(figures(records), "kl_per_token") == pytest.approx(
        nats / sum(len(r.completion.token_ids) for r in records)
    )


def test_a_policy_that_wins_by_length_alone_does_not_win_at_equal_length() -> None:
    """Wins of chance σ(3 tanh(Δ / s)) on completions that are mostly longer: one half at Δ = 0."""
    rng = np.random.default_rng(3)
    extra = np.round(rng.normal(12, 10, 3000)).astype(int)
    won = rng.random(3000) < 1 / (1 + np.exp(-3 * np.tanh(extra / extra.std())))
    texts = [("x" * max(0, d), "x" * max(0, -d)) for d in extra]
    records = [record(float(w), 0.5, written=a, reference=b) for w, (a, b) in zip(won, texts, strict=True)]
    values = figures(records)
    assert estimate(values, "reward_model_win_rate") > 0.8
    controlled = values["reward_model_length_controlled_win_rate"]
    assert controlled["low"] < 0.5 < controlled["high"] < 0.65


def test_distinct_n_counts_each_n_gram_once() -> None:
    records = [record(tokens=[1, 2, 1, 2]), record(tokens=[1, 2, 3]), record(tokens=[4])]
    values = figures(records)
    assert estimate(values, "distinct_1") == 4 / 8
    assert estimate(values, "distinct_2") == 3 / 5  # 12 21 12 | 12 23
    assert estimate(values, "distinct_3") == 3 / 3
    assert values["distinct_1"]["n"] == 3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_distinct_n_without_each_prompt_gives_its_interval(size: int) -> None:
    records = rows(np.random.default_rng(4), 12, 2)

    def share(kept: list[EvalRecord]) -> float:
        grams = [tuple(r.completion.token_ids[i : i + size]) for r in kept for i in range(len(r.completion.token_ids))]
        whole = [gram for gram in grams if len(gram) == size]
        return len(set(whole)) / len(whole)

    without = [share([r for r in records if r.prompt.prompt_id != f"p{i}"]) for i in range(12)]
    assert figures(records)[f"distinct_{size}"] == pytest.approx(
        statistics.jackknifed_share(share(records), without, len(records))
    )


def test_distinct_n_of_completions_too_short_for_it_is_none_and_of_one_prompt_has_no_interval() -> None:
    values = figures([record(tokens=[1]), record(tokens=[2])])
    assert values["distinct_2"] is values["distinct_3"] is None
    values = figures([record(tokens=[1, 2]), record(tokens=[2])])
    assert values["distinct_2"] == {"estimate": 1.0, "low": None, "high": None, "n": 2}


def test_figures_can_be_written_as_json() -> None:
    records = rows(np.random.default_rng(5), 6, 2)
    values = [figures(records), head_to_head(records, records), change(records, records)]
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_head_to_head_compares_each_completion_with_each_of_the_other_of_another_place() -> None:
    rng = np.random.default_rng(6)
    first, second = rows(rng, 15, 3), rows(rng, 15, 3)
    values = head_to_head(first, second)
    groups = [by_prompt(first), by_prompt(second)]
    for name, field in (("reward_model", "reward"), ("judge", "grade")):
        for rate, sign in (("win", 1), ("tie", 0), ("loss", -1)):
            shares = [
                np.mean(
                    [
                        np.sign(getattr(a, field) - getattr(b, field)) == sign
                        for i, a in enumerate(group)
                        for j, b in enumerate(groups[1][key])
                        if i != j
                    ]
                )
                for key, group in groups[0].items()
            ]
            assert estimate(values, f"{name}_{rate}_rate") == pytest.approx(np.mean(shares))
            assert values[f"{name}_{rate}_rate"]["n"] == 15 * 6
    means = [np.mean([np.mean([r.reward for r in g]) for g in side.values()]) for side in groups]
    assert estimate(values, "mean_reward") == pytest.approx(means[0] - means[1])


def test_runs_that_share_their_draws_do_not_tie_with_themselves_unless_there_is_one_completion_each() -> None:
    """Two policies with the same draws: equal completions in equal places, nowhere else."""
    rewards = np.random.default_rng(12).permutation(20 * 4).reshape(20, 4)
    sides = [
        [record(float(r), name=f"p{i}", sample_id=j) for i, group in enumerate(rewards) for j, r in enumerate(group)]
        for _ in range(2)
    ]
    assert estimate(head_to_head(*sides), "reward_model_tie_rate") == 0
    alone = [[one for one in side if one.completion.sample_id == 0] for side in sides]
    assert estimate(head_to_head(*alone), "reward_model_tie_rate") == 1
    assert head_to_head(alone[0], sides[1])["reward_model_tie_rate"]["n"] == 20 * 3


def test_head_to_head_turns_around_with_its_sides() -> None:
    rng = np.random.default_rng(7)
    first, second = rows(rng, 10, 2), rows(rng, 10, 2, shift=0.5)
    one, other = head_to_head(first, second), head_to_head(second, first)
    assert one["reward_model_win_rate"] == other["reward_model_loss_rate"]
    assert one["reward_model_tie_rate"] == other["reward_model_tie_rate"]
    assert estimate(one, "kl_to_prior") == pytest.approx(-estimate(other, "kl_to_prior"))
    assert estimate(one, "reward_model_length_controlled_win_rate") == pytest.approx(
        estimate(head_to_head(first, second), "reward_model_length_controlled_win_rate")
    )


def test_head_to_head_is_paired_by_prompt_whatever_the_order() -> None:
    first, second = ([record(float(i) + s, name=f"p{i}") for i in range(30)] for s in (0.5, 0.0))
    for other in (second, second[::-1]):
        value = head_to_head(first, other)["mean_reward"]
        assert value["low"] == value["high"] == 0.5
        assert head_to_head(first, other)["reward_model_win_rate"] == statistics.proportion([True] * 30)


def test_head_to_head_of_other_prompts_is_refused() -> None:
    one = [record(name="a"), record(name="b")]
    for other in (
        [record(name="a")],
        [record(name="a"), record(name="c")],
        [record(name="a"), record(name="b", text="")],
    ):
        with pytest.raises(UserError, match="not of the same prompts"):
            head_to_head(one, other)


def test_where_one_side_was_not_graded_the_judges_figures_are_null() -> None:
    rng = np.random.default_rng(8)
    values = head_to_head(rows(rng, 5, 2), rows(rng, 5, 2, graded=False))
    assert {n for n, v in values.items() if n.startswith("judge_") and v is not None} == set()
    assert values["reward_model_win_rate"] is not None


def test_groups_are_as_far_from_the_target_as_their_weights_say() -> None:
    """On-policy, D(Y) = log(G / perplexity of the target's weights) (T4g)."""
    records = rows(np.random.default_rng(9), 7, 5)
    values = group_figures(records, lambda reward: reward / 0.7)
    log_ratio = np.array([r.log_prior + r.reward / 0.7 - r.log_policy for r in records]).reshape(7, 5)
    weights = np.exp(log_ratio) / np.exp(log_ratio).sum(1, keepdims=True)
    entropy = -(weights * np.log(weights)).sum(1)
    assert values["snkl"] == pytest.approx(statistics.mean(math.log(5) - entropy))
    assert values["ess_target"] == pytest.approx(statistics.mean(1 / (weights**2).sum(1)))
    assert values["empty_groups"]["estimate"] == 0


def test_a_policy_that_is_the_target_has_an_snkl_of_zero_and_a_full_sample() -> None:
    records = [
        record(r, log_prior=-5.0, log_policy=-5.0 + r, name=f"p{i}") for i in range(3) for r in (0.0, 1.0, -2.0, 0.5)
    ]
    values = group_figures(records, brain_core.bradley_terry_log_goodness)
    assert estimate(values, "snkl") == pytest.approx(0, abs=1e-12)
    assert estimate(values, "ess_target") == pytest.approx(4)


def test_the_interval_of_an_snkl_does_not_begin_below_zero() -> None:
    """One group of six is far from the target, the others are at it: Student's interval would begin below 0."""
    far = [0.0] * 5 + [4.0]
    records = [record(r, name=f"p{i}") for i, reward in enumerate(far) for r in (0.0, reward)]
    value = group_figures(records, lambda reward: reward)["snkl"]
    assert value["low"] == 0 < value["estimate"] < value["high"]


def test_groups_without_goodness_are_counted_and_rewards_that_give_no_weights_are_refused() -> None:
    records = rows(np.random.default_rng(10), 4, 2)
    nothing = group_figures(records, lambda reward: torch.full_like(reward, -math.inf))
    assert (estimate(nothing, "empty_groups"), estimate(nothing, "snkl"), estimate(nothing, "ess_target")) == (1, 0, 0)
    with pytest.raises(UserError, match="--goodness"):
        group_figures(records, lambda reward: reward * math.nan)

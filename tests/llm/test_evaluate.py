"""What an evaluation reports: strict wins, ties apart, paired changes, and a judge that is not trusted blindly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import statistics
from llm.errors import UserError
from llm.evaluate import change, evaluate, figures, judged, sample_one_each
from llm.models import Policy
from llm.records import Completion, EvalRecord, Prompt

JUDGE_FIGURES = {"judge_win_rate", "judge_tie_rate"}


def record(
    reward: float,
    reference_reward: float = 0.0,
    *,
    grade: float | None = None,
    reference_grade: float | None = None,
    tokens: int = 3,
    reason: str = "stop",
    log_policy: float = -1.0,
    log_prior: float = -1.0,
    name: str = "test-1",
    text: Any = "prompt",
) -> EvalRecord:
    completion = Completion(name, 0, tuple(range(tokens)), reason, f"completion of {name}")
    return EvalRecord(
        Prompt(name, text, (4, 5), None),
        completion,
        f"reference of {name}",
        reward,
        reference_reward,
        grade,
        reference_grade,
        log_policy,
        log_prior,
    )


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
    values = figures([record(1.0), record(2.0)])
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


def test_the_judge_sees_prompts_completions_and_references_in_order() -> None:
    calls: list[tuple[list[Any], list[str]]] = []

    def judge(prompts: list[Any], texts: list[str]) -> list[float]:
        calls.append((list(prompts), list(texts)))
        prompts.clear()  # a judge that spoils its lists does no harm
        return [float(len(calls) * 10 + i) for i in range(len(texts))]

    chat = [{"role": "user", "content": "hi"}]
    graded = judged([record(0.0, name="a"), record(0.0, name="b", text=chat)], judge, "j")
    assert calls == [
        (["prompt", chat], ["completion of a", "completion of b"]),
        (["prompt", chat], ["reference of a", "reference of b"]),
    ]
    assert [(r.grade, r.reference_grade) for r in graded] == [(10.0, 20.0), (11.0, 21.0)]


def raising(prompts: list[Any], texts: list[str]) -> list[float]:
    raise KeyError("no such post")


BAD_JUDGES: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (raising, r"raised KeyError: 'no such post'"),
    "too few": (lambda p, t: [1.0], r"one grade for each of 2 completions; it returned an array of shape \(1,\)"),
    "too many": (lambda p, t: [1.0] * 3, r"shape \(3,\)"),
    "a number": (lambda p, t: 1.0, r"shape \(\)"),
    "nothing": (lambda p, t: None, r"shape \(\)"),
    "a table": (lambda p, t: [[1.0], [2.0]], r"shape \(2, 1\)"),
    "not a number": (lambda p, t: [1.0, float("nan")], r"1 of 2 are not, the first for completion 1: nan"),
    "infinite": (lambda p, t: [float("-inf"), 1.0], r"1 of 2 are not, the first for completion 0: -inf"),
    "a missing grade": (lambda p, t: [None, 1.0], r"1 of 2 are not, the first for completion 0: nan"),
    "words": (lambda p, t: ["good", "bad"], r"raised ValueError"),
    "ragged": (lambda p, t: [[1.0], [1.0, 2.0]], r"raised ValueError"),
}


@pytest.mark.parametrize("fault", BAD_JUDGES)
def test_a_judge_that_misbehaves_is_named_with_what_to_do(fault: str) -> None:
    judge, expected = BAD_JUDGES[fault]
    with pytest.raises(UserError, match=rf"--judge my:judge: .*{expected}.*--resume"):
        judged([record(0.0), record(1.0)], judge, "my:judge")


def test_a_record_is_read_back_from_its_row() -> None:
    for one in (record(1.5, grade=2.0, reference_grade=1.0), record(-1.0, text=[{"role": "user", "content": "hi"}])):
        assert EvalRecord.from_row(one.as_row(), one.prompt) == one


def test_a_row_tells_chat_from_text() -> None:
    chat = record(0.0, text=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]).as_row()
    assert (chat["is_chat"], chat["prompt"]) == (True, "user: hi\nassistant: yo")
    assert (record(0.0).as_row()["is_chat"], record(0.0).as_row()["prompt_token_ids"]) == (False, [4, 5])


def letters(count: int) -> list[Prompt]:
    return [Prompt(f"test-{i}", "ab", (3 + i, 4), "a") for i in range(count)]


def test_draws_are_those_of_the_stage_whatever_is_sampled_together(policy: Policy) -> None:
    from letter_world import letter_config

    config = letter_config()
    together = sample_one_each(policy, letters(5), config, "test")
    assert sample_one_each(policy, letters(5), dataclasses.replace(config, sample_rows=2), "test") == together
    assert sample_one_each(policy, letters(5), config, "validation") != together
    assert [c.prompt_id for c in together] == [p.prompt_id for p in letters(5)]
    assert sample_one_each(policy, [], config, "test") == []


def test_an_evaluation_heeds_stop_strings(policy: Policy) -> None:
    from letter_world import letter_config

    free = sample_one_each(policy, letters(20), letter_config(), "test")
    stopped = sample_one_each(policy, letters(20), letter_config(stop=("e", "o")), "test")
    assert any({"e", "o"} & set(c.text) for c in free)
    for one, other in zip(free, stopped, strict=True):
        assert not {"e", "o"} & set(other.text)
        assert one.text.startswith(other.text)
        assert (other == one) == (not {"e", "o"} & set(one.text))


def test_an_evaluation_holds_what_was_sampled_rewarded_and_scored(policy: Policy) -> None:
    import numpy as np

    from letter_world import letter_config
    from llm.logprob import score

    config, prompts = letter_config(), letters(5)
    seen: list[tuple[list[Any], list[str]]] = []

    def reward(texts: list[Any], completions: list[str]) -> Any:
        seen.append((texts, completions))
        return np.arange(len(completions)) * 0.5

    records = evaluate(policy, prompts, reward, {p.prompt_id: 1.0 for p in prompts}, config, "test")
    completions = sample_one_each(policy, prompts, config, "test")
    assert [r.completion for r in records] == completions
    assert seen == [(["ab"] * 5, [c.text for c in completions])]
    assert [(r.reward, r.reference_reward, r.reference) for r in records] == [(i * 0.5, 1.0, "a") for i in range(5)]
    pairs = list(zip(prompts, completions, strict=True))
    assert [r.log_policy for r in records] == pytest.approx(score(policy, pairs, 1), abs=1e-5)
    with policy.as_prior():
        assert [r.log_prior for r in records] == pytest.approx(score(policy, pairs, 1), abs=1e-5)
    assert all(r.log_policy != r.log_prior for r in records)
    assert all(r.grade is None for r in records)

"""Evaluation on held-out prompts: one completion each at temperature 1, beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llm import processes, statistics
from llm.config import AlignConfig
from llm.errors import UserError
from llm.logprob import score
from llm.models import Policy
from llm.records import Completion, EvalRecord, Prompt
from llm.rewards import AnyReward, on_device, rewards_of
from llm.rollout import sample_groups

Figures = dict[str, Any]
Judge = Callable[[list[Any], list[str]], Sequence[float]]


def sample_one_each(policy: Policy, prompts: Sequence[Prompt], config: AlignConfig, stage: str) -> list[Completion]:
    """Sample one completion of every prompt, under draws that are the same at every step of the run.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        prompts: The prompts.
        config: The run's settings.
        stage: Names the draws.

    Returns:
        A completion for each prompt, in order.
    """
    return processes.dealt(prompts, config.sample_rows, partial(_sampled, policy, config, stage))


def _sampled(policy: Policy, config: AlignConfig, stage: str, prompts: Sequence[Prompt]) -> list[Completion]:
    """Sample one completion of every prompt of a block."""
    draw = (config.seed, stage, 0)
    groups = sample_groups(policy, prompts, 1, draw=draw, max_new_tokens=config.max_new_tokens, stop=config.stop)
    return [group[0] for group in groups]


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: AnyReward,
    reference_rewards: dict[str, float],
    config: AlignConfig,
    stage: str,
) -> list[EvalRecord]:
    """Sample, score and reward one completion of every prompt; grades come later, from `judged`.

    Args:
        policy: The policy.
        prompts: Held-out prompts with their references.
        reward: The reward.
        reference_rewards: The reference's reward for each prompt id.
        config: The run's settings.
        stage: Names the draws.

    Returns:
        A record for each prompt, in order.
    """

    def draw(block: Sequence[Prompt]) -> list[tuple[Completion, float, float]]:
        completions = _sampled(policy, config, stage, block)
        pairs = list(zip(block, completions, strict=True))
        log_policy = score(policy, pairs, config.sample_rows)
        with policy.as_prior():
            return list(zip(completions, log_policy, score(policy, pairs, config.sample_rows), strict=True))

    drawn = processes.dealt(prompts, config.sample_rows, draw)
    texts = [(prompt, completion.text) for prompt, (completion, _, _) in zip(prompts, drawn, strict=True)]
    with on_device(reward):  # and not before: sampling needs the room
        rewards = processes.dealt(texts, config.sample_rows, lambda block: rewards_of(reward, block).tolist())
    return [
        EvalRecord(p, c, p.reference or "", r, reference_rewards[p.prompt_id], None, None, lq, lp)
        for p, (c, lq, lp), r in zip(prompts, drawn, rewards, strict=True)
    ]


def judged(records: Sequence[EvalRecord], judge: Judge, name: str) -> list[EvalRecord]:
    """Grade completions and references with the independent judge.

    Args:
        records: The evaluation.
        judge: Called on the prompts with the completions, then with the references.
        name: The judge's name, for the message.

    Returns:
        The records with their grades.

    Raises:
        UserError: The judge raised, or did not return one finite grade for each.
    """
    prompts = [record.prompt.text for record in records]
    grades = _grades(judge, name, prompts, [record.completion.text for record in records])
    references = _grades(judge, name, prompts, [record.reference for record in records])
    return [
        replace(record, grade=grade, reference_grade=reference)
        for record, grade, reference in zip(records, grades, references, strict=True)
    ]


def figures(records: Sequence[EvalRecord]) -> Figures:
    """Summarise an evaluation.

    Args:
        records: At least one.

    Returns:
        Estimates with 95 % intervals by name; a win is strictly greater than the reference, ties stand apart, and the
        judge's figures are None where nothing was graded.
    """
    return {
        "judge_win_rate": _win_rate(records, "grade"),
        "judge_tie_rate": _tie_rate(records, "grade"),
        "reward_model_win_rate": _win_rate(records, "reward"),
        "reward_model_tie_rate": _tie_rate(records, "reward"),
        "mean_reward": statistics.mean([r.reward for r in records]),
        "kl_to_prior": statistics.mean([r.log_policy - r.log_prior for r in records]),
        "completion_length": statistics.mean([len(r.completion.token_ids) for r in records]),
        "ended": statistics.proportion([r.completion.finish_reason == "stop" for r in records]),
    }


def change(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> Figures:
    """Return paired differences, after − before, over the same prompts.

    Args:
        before: An evaluation.
        after: Another one of the same prompts in the same order.

    Returns:
        Mean differences with 95 % intervals by name; None for the judge's where nothing was graded.
    """
    pairs = list(zip(before, after, strict=True))
    result: Figures = {"mean_reward": statistics.mean([a.reward - b.reward for b, a in pairs])}
    for figure, field in (("reward_model_win_rate", "reward"), ("judge_win_rate", "grade")):
        known = all(getattr(record, field) is not None for pair in pairs for record in pair)
        wins = [float(_wins(a, field)) - float(_wins(b, field)) for b, a in pairs] if known else []
        result[figure] = statistics.mean(wins) if known else None
    return result


def _wins(record: EvalRecord, field: str) -> bool:
    """Whether the completion beats the reference strictly."""
    return bool(getattr(record, field) > getattr(record, f"reference_{field}"))


def _win_rate(records: Sequence[EvalRecord], field: str) -> statistics.Estimate | None:
    """Share of strict wins, None where nothing was graded."""
    if any(getattr(record, field) is None for record in records):
        return None
    return statistics.proportion([_wins(record, field) for record in records])


def _tie_rate(records: Sequence[EvalRecord], field: str) -> statistics.Estimate | None:
    """Share of ties, None where nothing was graded."""
    if any(getattr(record, field) is None for record in records):
        return None
    return statistics.proportion([getattr(r, field) == getattr(r, f"reference_{field}") for r in records])


def _grades(judge: Judge, name: str, prompts: list[Any], texts: list[str]) -> list[float]:
    """Call the judge and check what it returns."""
    advice = "The trained adapter is in the run folder; mend the judge and use --resume to evaluate."
    try:
        grades = np.asarray(judge(list(prompts), list(texts)), dtype=np.float64)
    except Exception as error:
        raise UserError(f"--judge {name}: raised {type(error).__name__}: {error}. {advice}") from error
    if grades.shape != (len(texts),):
        raise UserError(
            f"--judge {name}: must return one grade for each of {len(texts)} completions; it returned an array of "
            f"shape {grades.shape}. {advice}"
        )
    broken = np.flatnonzero(~np.isfinite(grades))
    if len(broken):
        raise UserError(
            f"--judge {name}: must return finite grades; {len(broken)} of {len(grades)} are not, the first for "
            f"completion {broken[0]}: {grades[broken[0]]}. {advice}"
        )
    return [float(grade) for grade in grades]

"""What an evaluation says: estimates with 95 % intervals, from one completion a prompt or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, product
from typing import Any

import numpy as np
import torch

import brain_core
from llm import statistics
from llm.errors import UserError
from llm.records import EvalRecord

Figures = dict[str, Any]
JUDGES = (("judge", "grade"), ("reward_model", "reward"))
"""Who decides a win, and the records' field."""


def figures(records: Sequence[EvalRecord]) -> Figures:
    """Summarise an evaluation.

    Args:
        records: At least one.

    Returns:
        Estimates with 95 % intervals by name; a win is strictly greater than the reference, ties stand apart. The
        judge's figures are None where nothing was graded, and others where the data do not identify them.
    """
    prompts = _prompt_ids(records)
    divergences = [record.log_policy - record.log_prior for record in records]
    lengths = [len(record.completion.token_ids) for record in records]
    extra = [len(record.completion.text) - len(record.reference) for record in records]
    ended = [record.completion.finish_reason == "stop" for record in records]
    return {
        **_wins("judge", *_against_reference(records, "grade"), extra, prompts),
        **_wins("reward_model", *_against_reference(records, "reward"), extra, prompts),
        "mean_reward": statistics.mean([record.reward for record in records], prompts),
        "kl_to_prior": statistics.mean(divergences, prompts),
        "kl_per_token": statistics.ratio(divergences, lengths, prompts),
        "completion_length": statistics.mean(lengths, prompts),
        "ended": statistics.proportion(ended, prompts),
        **{f"distinct_{size}": _distinct(records, size) for size in (1, 2, 3)},
    }


def change(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> Figures:
    """Return paired differences, after − before, over the same prompts.

    Args:
        before: An evaluation.
        after: Another one of the same prompts in the same order.

    Returns:
        Mean differences with 95 % intervals by name; None for the judge's where nothing was graded.
    """
    pairs, prompts = list(zip(before, after, strict=True)), _prompt_ids(before)
    result: Figures = {"mean_reward": statistics.mean([a.reward - b.reward for b, a in pairs], prompts)}
    for figure, field in (("reward_model_win_rate", "reward"), ("judge_win_rate", "grade")):
        earlier, later = (_against_reference(records, field)[0] for records in (before, after))
        if earlier is None or later is None:
            result[figure] = None
        else:
            result[figure] = statistics.mean(later.astype(float) - earlier, prompts)
    return result


def head_to_head(first: Sequence[EvalRecord], second: Sequence[EvalRecord]) -> Figures:
    """Compare two evaluations of the same prompts.

    Each completion of one is compared with each of the other of its prompt that has another place in its group: runs of
    one seed draw the completions of one place alike. A single completion of each is compared all the same. The
    intervals are by prompt.

    Args:
        first: An evaluation.
        second: Another one of the same prompts.

    Returns:
        Rates at which the first wins, ties and loses, and its rate of wins at equal length; mean differences, first −
        second, of reward, KL to the prior and length. Estimates with 95 % intervals by name, None where not known.

    Raises:
        UserError: The prompts differ.
    """
    pairs = _matched(first, second)
    prompts = [a.prompt.prompt_id for a, _ in pairs]
    extra = [len(a.completion.text) - len(b.completion.text) for a, b in pairs]
    rates: Figures = {}
    for judge, field in JUDGES:
        scores = [[getattr(record, field) for record in side] for side in zip(*pairs, strict=True)]
        rates |= _wins(judge, *_compared(*scores), extra, prompts)
        rates[f"{judge}_loss_rate"] = _rate(_compared(*reversed(scores))[0], prompts)
    differences: dict[str, list[float]] = {
        "mean_reward": [a.reward - b.reward for a, b in pairs],
        "kl_to_prior": [(a.log_policy - a.log_prior) - (b.log_policy - b.log_prior) for a, b in pairs],
        "completion_length": [float(len(a.completion.token_ids) - len(b.completion.token_ids)) for a, b in pairs],
    }
    return rates | {name: statistics.mean(values, prompts) for name, values in differences.items()}


def group_figures(
    records: Sequence[EvalRecord], log_goodness: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, statistics.Estimate]:
    """Return how far the groups of an evaluation are from the target; the policy is their proposal.

    Args:
        records: G ≥ 2 of every prompt, sampled from the policy, prompt by prompt.
        log_goodness: log p(G=1|y,x) as a function of the reward (B, G), up to a constant per group.

    Returns:
        By name, means over prompts: `snkl`, the self-normalised KL between target and policy, nats, known floor 0;
        `ess_target`, the target weights' effective sample size, 1 to G; `empty_groups`, the share of groups without
        goodness, which count as 0 in both. They depend on G: compare at the same G only.

    Raises:
        UserError: The rewards give no weights.

    Source: eq-6, eq-14; on-policy D(Y) = log(G / perplexity), T4g.
    """
    count = len(set(_prompt_ids(records)))
    columns = [[getattr(record, name) for record in records] for name in ("log_prior", "log_policy", "reward")]
    log_prior, log_policy, reward = (torch.tensor(column, dtype=torch.float64).view(count, -1) for column in columns)
    try:
        target = brain_core.target_log_ratio(log_prior, log_policy, log_goodness(reward))
    except ValueError as error:
        raise UserError(
            f"The weights of the groups cannot be computed ({error}). Check the rewards and the run's --goodness."
        ) from error
    empty = torch.isneginf(target).all(-1)
    return {
        "snkl": _not_negative(
            statistics.mean(brain_core.self_normalized_kl(target, torch.zeros_like(target), on_empty="skip").numpy())
        ),
        "ess_target": statistics.mean(brain_core.effective_sample_size(target, on_empty="skip").numpy()),
        "empty_groups": statistics.proportion(empty.numpy()),
    }


def _not_negative(estimate: statistics.Estimate) -> statistics.Estimate:
    """An estimate of what is 0 or more, whose interval does not begin below."""
    low = estimate["low"]
    return estimate if low is None else {**estimate, "low": max(0.0, low)}


def _prompt_ids(records: Sequence[EvalRecord]) -> list[str]:
    """The prompt of every record."""
    return [record.prompt.prompt_id for record in records]


def _against_reference(records: Sequence[EvalRecord], field: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Whether each completion beats the reference strictly, and whether it ties with it."""
    return _compared([getattr(r, field) for r in records], [getattr(r, f"reference_{field}") for r in records])


def _compared(
    scores: Sequence[float | None], others: Sequence[float | None]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where scores are above the others, and where equal; None where one is missing."""
    if None in scores or None in others:
        return None, None
    first, second = np.asarray(scores), np.asarray(others)
    return first > second, first == second


def _wins(
    judge: str, won: np.ndarray | None, tied: np.ndarray | None, extra: Sequence[int], prompts: Sequence[str]
) -> Figures:
    """One judge's rates of wins and ties, and of wins at equal length; `extra` is in characters."""
    return {
        f"{judge}_win_rate": _rate(won, prompts),
        f"{judge}_tie_rate": _rate(tied, prompts),
        f"{judge}_length_controlled_win_rate": (
            None if won is None else statistics.length_controlled(won, extra, prompts)
        ),
    }


def _rate(hits: np.ndarray | None, prompts: Sequence[str]) -> statistics.Estimate | None:
    """A proportion, None where nothing was graded."""
    return None if hits is None else statistics.proportion(hits, prompts)


def _matched(first: Sequence[EvalRecord], second: Sequence[EvalRecord]) -> list[tuple[EvalRecord, EvalRecord]]:
    """The records of the first, each with those of the second that it is compared with."""
    sides = []
    for records in (first, second):
        groups: dict[str, list[EvalRecord]] = {}
        for record in records:
            groups.setdefault(record.prompt.prompt_id, []).append(record)
        sides.append(groups)
    known = [{name: group[0].prompt.text for name, group in side.items()} for side in sides]
    if known[0] != known[1]:
        raise UserError(
            "The two evaluations are not of the same prompts, so they cannot be compared head to head. Evaluate both "
            "runs with the same --prompts."
        )
    return list(chain.from_iterable(_opponents(group, sides[1][name]) for name, group in sides[0].items()))


def _opponents(group: Sequence[EvalRecord], other: Sequence[EvalRecord]) -> list[tuple[EvalRecord, EvalRecord]]:
    """The pairs of two groups that do not share their draws; one and one, which may, are a pair."""
    pairs = list(product(group, other))
    apart = [(a, b) for a, b in pairs if a.completion.sample_id != b.completion.sample_id]
    return apart or pairs


def _distinct(records: Sequence[EvalRecord], size: int) -> statistics.Estimate | None:
    """Distinct n-grams of tokens over all of them, in all completions; None where these are too short."""
    grams = _grams_by_prompt(records, size)
    total = sum(count for _, count in grams)
    if not total:
        return None
    holders = Counter(chain.from_iterable(kinds for kinds, _ in grams))
    without = [
        (len(holders) - sum(holders[gram] == 1 for gram in kinds)) / (total - count)
        for kinds, count in grams
        if total > count
    ]
    return statistics.jackknifed_share(
        len(holders) / total, without if len(without) == len(grams) else [0.0], len(records)
    )


def _grams_by_prompt(records: Sequence[EvalRecord], size: int) -> list[tuple[set[tuple[int, ...]], int]]:
    """The distinct n-grams of each prompt's completions, and how many there are with repetitions."""
    grams: dict[str, list[tuple[int, ...]]] = {}
    for record in records:
        grams.setdefault(record.prompt.prompt_id, []).extend(_grams(record.completion.token_ids, size))
    return [(set(of_prompt), len(of_prompt)) for of_prompt in grams.values()]


def _grams(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The n-grams of a completion, in order."""
    return list(zip(*(tokens[start:] for start in range(size)), strict=False))

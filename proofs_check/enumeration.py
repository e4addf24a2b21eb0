"""Expectations over groups of a small problem, exactly, by three routes that share no code."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

from proofs_check.exact import Dual, LogNumber

Group = tuple[int, ...]
"""The outcomes of a group, by index, in the order drawn."""

Value = TypeVar("Value", Fraction, LogNumber, Dual)


def ordered_groups(size: int, group_size: int) -> Iterator[Group]:
    """All K^n ordered groups."""
    return itertools.product(range(size), repeat=group_size)


def probability(group: Group, proposal: Sequence[Fraction]) -> Fraction:
    """Probability of an ordered group under independent draws from the proposal."""
    return math.prod((proposal[k] for k in group), start=Fraction(1))


def mean_over_groups(
    proposal: Sequence[Fraction], group_size: int, value: Callable[[Group], Value]
) -> Value | Fraction:
    """E over ordered groups of independent draws: every group that can occur, one by one."""
    total: Value | Fraction = Fraction(0)
    for group in ordered_groups(len(proposal), group_size):
        if weight := probability(group, proposal):
            total = value(group) * weight + total
    return total


def mean_over_multisets(
    proposal: Sequence[Fraction], group_size: int, value: Callable[[Group], Value]
) -> Value | Fraction:
    """E over groups of a value that does not depend on their order: every multiset with its multinomial weight."""
    total: Value | Fraction = Fraction(0)
    for group in itertools.combinations_with_replacement(range(len(proposal)), group_size):
        arrangements = math.factorial(group_size)
        for count in Counter(group).values():
            arrangements //= math.factorial(count)
        if weight := arrangements * probability(group, proposal):
            total = value(group) * weight + total
    return total


def law_of_sum(ratio: Sequence[Fraction], proposal: Sequence[Fraction], draws: int) -> dict[Fraction, Fraction]:
    """The law of A = Σ a(y_i) over independent draws: probability by value, one convolution a draw."""
    law = {Fraction(0): Fraction(1)}
    for _ in range(draws):
        longer: dict[Fraction, Fraction] = {}
        for total, weight in law.items():
            for step, chance in zip(ratio, proposal, strict=True):
                if chance:
                    longer[total + step] = longer.get(total + step, Fraction(0)) + weight * chance
        law = longer
    return law


def mean_self_normalized(
    ratio: Sequence[Fraction], proposal: Sequence[Fraction], group_size: int
) -> tuple[Fraction, ...]:
    """E of the total self-normalised weight that each outcome gets in a group, from the law of the others' sum.

    It is n s_k a_k E[1 / (a_k + A_{n−1})]; a group whose every weight is 0 contributes 0.
    """
    others = law_of_sum(ratio, proposal, group_size - 1)
    return tuple(
        group_size
        * chance
        * sum((weight * own / (own + total) for total, weight in others.items() if own), start=Fraction(0))
        for own, chance in zip(ratio, proposal, strict=True)
    )

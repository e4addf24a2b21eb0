"""Random exact problems for hypothesis, the generic instance, and an oracle that knows nothing but the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import hypothesis.strategies as st

from toy import CategoricalProblem

Vector = tuple[Fraction, ...]


def normalized(weights: Sequence[int]) -> Vector:
    """Probabilities in proportion to whole numbers."""
    return tuple(Fraction(weight, sum(weights)) for weight in weights)


def generic() -> CategoricalProblem:
    """Four vectors that differ pairwise, without ties: with n = 3 the instance that no known mutant survives."""
    goodness = [Fraction(value, 5) for value in (2, 5, 1, 3)]
    return CategoricalProblem(normalized((3, 1, 2, 5)), goodness, normalized((2, 3, 1, 4)), normalized((1, 2, 4, 3)))


def as_floats(problem: CategoricalProblem) -> CategoricalProblem:
    """The same problem in float64."""
    vectors = (problem.prior, problem.goodness, problem.policy, problem.proposal)
    return CategoricalProblem(*([float(value) for value in vector] for vector in vectors))


@st.composite
def problems(draw: st.DrawFn, *, largest_size: int = 4, smallest_goodness: int = 1) -> CategoricalProblem:
    """Exact problems with small denominators; a smallest goodness of 0 lets the target exclude completions."""
    size = draw(st.integers(2, largest_size))
    weights = st.lists(st.integers(1, 9), min_size=size, max_size=size)
    good = st.lists(st.integers(smallest_goodness, 10), min_size=size, max_size=size).filter(any)
    goodness = [Fraction(value, 10) for value in draw(good)]
    prior, policy, proposal = (normalized(draw(weights)) for _ in range(3))
    return CategoricalProblem(prior, goodness, policy, proposal)


def mean_and_second_moment(
    problem: CategoricalProblem, group_size: int, coefficients: Callable[[list[int]], Sequence[Fraction]]
) -> tuple[list[Fraction], list[list[Fraction]]]:
    """E[g] and E[g gᵀ] of g = Σᵢ cᵢ (e_{yᵢ} − q), over all Kⁿ ordered groups."""
    size = problem.size
    mean = [Fraction(0)] * size
    second = [[Fraction(0)] * size for _ in range(size)]
    for group in itertools.product(range(size), repeat=group_size):
        weight = math.prod(problem.proposal[y] for y in group)
        gradient = [Fraction(0)] * size
        for y, coefficient in zip(group, coefficients(list(group)), strict=True):
            for k in range(size):
                gradient[k] += coefficient * ((k == y) - problem.policy[k])
        for k in range(size):
            mean[k] += weight * gradient[k]
            for j in range(size):
                second[k][j] += weight * gradient[k] * gradient[j]
    return mean, second

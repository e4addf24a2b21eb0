"""Exact moments of the gradient estimators and exact values of the objectives on a categorical problem.

A group's gradient in the policy's logits is Σᵢ cᵢ (e_{yᵢ} − q). Its law needs only how often each completion occurs in
the group, so the sum over Kⁿ groups is one over C(n+K−1, n) multisets with multinomial weights: in Fractions where the
problem and the estimator allow it, in float64 otherwise. Means and divergences also come from one-dimensional Laplace
integrals, which reach K = 1000 and n = 100,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, combinations_with_replacement, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from toy.checks import (
    FloatArray,
    ProblemError,
    float_vector,
    group_size_of,
    instance,
    positive_number,
    shown,
    whole_number,
)
from toy.estimators import ESTIMATORS, Estimator, estimator
from toy.problems import CategoricalProblem
from toy.quadrature import (
    Atoms,
    expected_divergence,
    expected_policy_share,
    expected_target_share,
    expected_weighted_divergence,
)

FLOAT_LIMIT = 50_000_000
"""The most completions, in all multisets together, that are enumerated in float64: some seconds."""

RATIONAL_LIMIT = 1_000_000
"""The same in Fractions."""

LARGEST_SPAN = 600.0
"""The widest range of log-ratios, in nats, over which the Laplace integrals can be taken in float64."""

ExactArray = NDArray[Any]
"""An array of Fractions (dtype object) or of float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of an estimator's gradient in the logits: Fractions where they are exact, else float64.

    Attributes:
        mean: Expected gradient, ascent direction (K,).
        covariance: Covariance of the gradient of one group (K, K).
        bias: mean − (target − policy) (K,), the bias to −∇KL(target ‖ policy).
    """

    mean: ExactArray
    covariance: ExactArray
    bias: ExactArray

    @property
    def variance(self) -> Any:
        """The covariance's trace."""
        return np.trace(self.covariance)

    @property
    def mse(self) -> Any:
        """Mean squared distance to −∇KL(target ‖ policy): variance + |bias|²."""
        return self.variance + self.bias @ self.bias


def exact_moments(problem: CategoricalProblem, chosen: str | Estimator, group_size: int) -> Moments:
    """Mean, covariance and bias of an estimator's gradient, by enumeration of all groups.

    A problem of Fractions gives Fractions wherever the estimator's coefficients are rational.

    Args:
        problem: Prior, goodness, policy and proposal over K completions.
        chosen: An estimator or its name.
        group_size: n, the completions in a group; even for estimators on pairs.

    Raises:
        ProblemError: no such estimator, a group size that makes no sense, or more multisets than can be enumerated.

    Numerics: rounding may break ties of α where the ratios come from floats, which estimators with an argmax notice.
        Fractions with long denominators take long: those of the result have thousands of digits.

    Source: E1 of the theory's engines; eq-12, T5, T8.
    """
    instance("problem", problem, CategoricalProblem)
    found = estimator(chosen)
    group_size = found.check_group_size(group_size)
    if found.is_paired and group_size > 2:
        pair = exact_moments(problem, found, 2)
        return Moments(pair.mean, pair.covariance / (group_size // 2), pair.bias)
    support = [index for index, value in enumerate(problem.proposal) if value > 0]
    is_rational = problem.is_exact and found.rational is not None
    _check_multisets(len(support), group_size, RATIONAL_LIMIT if is_rational else FLOAT_LIMIT)
    enumerate_totals = _rational_totals if is_rational else _float_totals
    return _in_logits(problem, *enumerate_totals(problem, found, group_size, support), is_rational)


def multiset_count(size: int, group_size: int) -> int:
    """C(n+K−1, n), the number of different groups of n out of K completions when order does not count.

    Args:
        size: K, at least 1.
        group_size: n, at least 0.

    Raises:
        ProblemError: one of them is no such number.
    """
    size, group_size = whole_number("size", size, 1), whole_number("group_size", group_size, 0)
    return math.comb(group_size + size - 1, group_size)


def self_normalized_kl(problem: CategoricalProblem, group_size: int, power: float = 1.0) -> float:
    """D_n, the mean of D(Y) = KL(α̂ ‖ β̂) over groups from the proposal, by one Laplace integral.

    Args:
        problem: Prior, goodness, policy and proposal over K completions.
        group_size: n.
        power: τ of the power family, α̂ ∝ α^τ and β̂ ∝ β^τ.

    Returns:
        D_n in nats, to about 1e-14; where the policy is close to the target throughout, to about 1e-15 / d of itself,
        d being their largest relative distance: the ratios' own rounding leaves no more.

    Raises:
        ProblemError: the group size or the power makes no sense, or the ratios span more than float64 can hold.

    Source: eq-14, T4, T11.
    """
    instance("problem", problem, CategoricalProblem)
    atoms = _atoms(problem, positive_number("power", power))
    return expected_divergence(atoms, group_size_of(group_size))


def weighted_self_normalized_kl(problem: CategoricalProblem, group_size: int) -> float:
    """D̃_n, the mean of Ā · D(Y): never decreasing in n, never above KL(target ‖ policy), and tending to it.

    Args:
        problem: Prior, goodness, policy and proposal over K completions.
        group_size: n.

    Returns:
        D̃_n in nats, to about 1e-15 absolute.

    Raises:
        ProblemError: the group size makes no sense, or the ratios span more than float64 can hold.

    Source: T4c.
    """
    instance("problem", problem, CategoricalProblem)
    return expected_weighted_divergence(_atoms(problem), group_size_of(group_size))


def snkl_constant(problem: CategoricalProblem) -> float:
    """c with n (D_n − KL) → c: KL · E[α²] − E_target[α log(α/β)] + ½ (χ²(target ‖ proposal) − χ²(policy ‖ proposal)).

    Args:
        problem: Prior, goodness, policy and proposal over K completions.

    Raises:
        ProblemError: the ratios span more than float64 can hold.

    Source: T4e.
    """
    instance("problem", problem, CategoricalProblem)
    atoms = _atoms(problem)
    second = atoms.weight @ atoms.target**2
    tilted = atoms.weight @ (atoms.target**2 * atoms.log_quotient())
    excess = second - atoms.weight @ atoms.policy**2
    return float(problem.kl * second - tilted + excess / 2)


def mean_gradient(problem: CategoricalProblem, group_size: int, chosen: str | Estimator = "brain") -> FloatArray:
    """Expected gradient of BRAIn or SNIS in the logits, for groups of any size, by Laplace integrals.

    Args:
        problem: Prior, goodness, policy and proposal over K completions.
        group_size: n.
        chosen: "brain" or "snis", or the entry of `ESTIMATORS`.

    Returns:
        Ascent direction (K,), to about 1e-15; for "brain" that is −∇D_n.

    Raises:
        ProblemError: another estimator, or the group size makes no sense, or the ratios span too much.

    Source: thm-4.2; E2 of the theory's engines: the mean needs only the laws of A and of B.
    """
    instance("problem", problem, CategoricalProblem)
    found, group_size = estimator(chosen), group_size_of(group_size)
    if found not in (ESTIMATORS["brain"], ESTIMATORS["snis"]):
        raise ProblemError(
            f"mean_gradient knows 'brain' and 'snis', not {found.name!r}; exact_moments knows the others"
        )
    atoms = _atoms(problem)
    share = expected_target_share(atoms, group_size)
    if found.name == "brain":
        share = share - expected_policy_share(atoms, group_size)
    total = np.zeros(problem.size)
    total[[value > 0 for value in problem.proposal]] = share
    gradient: FloatArray = total - float_vector("policy", problem.policy) * total.sum()
    return gradient


def _atoms(problem: CategoricalProblem, power: float = 1.0) -> Atoms:
    """The law of one completion, with both ratios to that power."""
    proposal = float_vector("proposal", problem.proposal)
    inside = proposal > 0
    target, policy = (ratio[inside] for ratio in _ratios(problem))
    weight = proposal[inside] / proposal.sum()
    if power != 1:
        target, policy = (_powered(ratio, power) for ratio in (target, policy))
    for ratio in (target, policy):
        _check_span(ratio[ratio > 0])
    return Atoms(weight, target, policy)


def _powered(ratio: FloatArray, power: float) -> FloatArray:
    """The ratio to a power, scaled so that the largest is 1."""
    scaled: FloatArray = (ratio / ratio.max()) ** power
    if np.any((scaled == 0) & (ratio > 0)):
        raise ProblemError(f"power is {power}: the ratios span too many nats for float64")
    return scaled


def _check_span(positive: FloatArray) -> None:
    """Raise ProblemError where the integration variable would leave the range of float64."""
    span = math.log(positive.max()) - math.log(positive.min())
    if span > LARGEST_SPAN:
        raise ProblemError(f"the importance ratios span {span:.0f} nats; the integrals reach {LARGEST_SPAN:.0f}")


def _check_multisets(size: int, group_size: int, limit: int) -> None:
    """Raise ProblemError where enumeration would take too long."""
    count = multiset_count(size, group_size)
    if count * group_size > limit:
        raise ProblemError(
            f"K = {size}, n = {group_size} has {shown(count)} different groups, with n completions each more than the "
            f"{limit} that are enumerated; sampled_moments estimates the same with a standard error"
        )


def _in_logits(problem: CategoricalProblem, mean: ExactArray, second: ExactArray, is_rational: bool) -> Moments:
    """Moments of the gradient from those of the coefficients summed over each completion's copies."""
    kind = object if is_rational else np.float64
    policy, target = (np.array(values, dtype=kind) for values in (problem.policy, problem.posterior))
    project = np.array([[int(i == j) for j in range(problem.size)] for i in range(problem.size)], dtype=kind)
    project = project - policy[:, None]
    covariance = project @ (second - np.outer(mean, mean)) @ project.T
    gradient = project @ mean
    return Moments(gradient, covariance, gradient - (target - policy))


def _rational_totals(
    problem: CategoricalProblem, chosen: Estimator, group_size: int, support: list[int]
) -> tuple[ExactArray, ExactArray]:
    """First (K,) and second (K, K) moments, in Fractions, of the coefficients summed over each completion's copies."""
    assert chosen.rational is not None
    target, policy = problem.target_ratio, problem.policy_ratio
    terms: dict[tuple[int, ...], list[Fraction]] = {}
    for group in combinations_with_replacement(support, group_size):
        coefficients = chosen.rational([target[y] for y in group], [policy[y] for y in group])  # type: ignore[misc]
        counts = {y: group.count(y) for y in support if y in group}
        total = dict.fromkeys(counts, Fraction(0))
        for y, value in zip(group, coefficients, strict=True):
            total[y] += value
        weight = _multinomial(problem, counts, group_size)
        for y, value in total.items():
            scaled = weight * value
            terms.setdefault((y,), []).append(scaled)
            for other, other_value in total.items():
                if other >= y:
                    terms.setdefault((y, other), []).append(scaled * other_value)
    return _collected(terms, problem.size)


def _multinomial(problem: CategoricalProblem, counts: dict[int, int], group_size: int) -> Fraction:
    """Probability of the counts, exactly."""
    weight = Fraction(math.factorial(group_size))
    for y, count in counts.items():
        weight *= Fraction(problem.proposal[y]) ** count / math.factorial(count)
    return weight


def _collected(terms: dict[tuple[int, ...], list[Fraction]], size: int) -> tuple[ExactArray, ExactArray]:
    """Sums of the terms, as a vector (K,) and a symmetric matrix (K, K)."""
    mean = np.full(size, Fraction(0), dtype=object)
    second = np.full((size, size), Fraction(0), dtype=object)
    for index, values in terms.items():
        total = _sum(values)
        if len(index) == 1:
            mean[index] = total
        else:
            second[index] = second[index[::-1]] = total
    return mean, second


def _sum(values: list[Fraction]) -> Fraction:
    """Their sum, halves first: most additions then have small denominators."""
    while len(values) > 1:
        values = [sum(values[start : start + 2], start=Fraction(0)) for start in range(0, len(values), 2)]
    return values[0]


def _float_totals(
    problem: CategoricalProblem, chosen: Estimator, group_size: int, support: list[int]
) -> tuple[ExactArray, ExactArray]:
    """First (K,) and second (K, K) moments, in float64, of the coefficients summed over each completion's copies."""
    size = problem.size
    log_target, log_policy = log_ratios(problem)
    log_proposal = np.log([value or 1.0 for value in float_vector("proposal", problem.proposal)])
    mean, second, mass = np.zeros(size), np.zeros((size, size)), 0.0
    for groups in _chunks(support, group_size):
        coefficients = chosen.coefficients(log_target[groups], log_policy[groups])
        counts = sum_by_completion(groups, np.ones(groups.shape), size)
        log_weight = log_proposal[groups].sum(axis=-1) + gammaln(group_size + 1) - gammaln(counts + 1).sum(axis=-1)
        weight = np.exp(log_weight)
        total = sum_by_completion(groups, coefficients, size)
        mass += weight.sum()
        mean += weight @ total
        second += (weight[:, None] * total).T @ total
    return mean / mass, second / mass


def log_ratios(problem: CategoricalProblem) -> tuple[FloatArray, FloatArray]:
    """log α and log β (K,) in nats, -inf where they are 0."""
    with np.errstate(divide="ignore"):
        target, policy = (np.log(ratio) for ratio in _ratios(problem))
    return target, policy


def _ratios(problem: CategoricalProblem) -> tuple[FloatArray, FloatArray]:
    """α and β (K,) in float64."""
    target = float_vector("(posterior / proposal)", problem.target_ratio)
    return target, float_vector("(policy / proposal)", problem.policy_ratio)


def sum_by_completion(groups: NDArray[np.intp], values: FloatArray, size: int) -> FloatArray:
    """Sums (M, K) of the values (M, n) of each group over the copies of each completion, whose indices are `groups`."""
    rows = len(groups)
    flat = groups + size * np.arange(rows)[:, None]
    summed: FloatArray = np.bincount(flat.ravel(), values.ravel(), rows * size).astype(np.float64)
    return summed.reshape(rows, size)


def _chunks(support: list[int], group_size: int) -> Iterator[NDArray[np.intp]]:
    """All multisets as arrays of indices (M, n), M bounded so that memory stays within some hundred MB."""
    rows = max(2_000_000 // group_size**2, 16)
    multisets: Iterable[tuple[int, ...]] = combinations_with_replacement(support, group_size)
    iterator = iter(multisets)
    while block := list(islice(iterator, rows)):
        flat = np.fromiter(chain.from_iterable(block), dtype=np.intp, count=len(block) * group_size)
        yield flat.reshape(len(block), group_size)

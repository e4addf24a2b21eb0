"""The Gaussian toy of the paper's variance figure: target N(0, 1), policy N(θ, 1), proposal N(μ, 1), score y − θ.

Every estimator's gradient of a group is a polynomial in sums over the group, such as A = Σα or Σ α (y − θ), divided by
powers of A and of B. The expectation of such a term follows from the law of one completion: 1/A and 1/B become Laplace
integrals, and a product of sums over independent completions becomes a sum over the ways in which its factors can fall
on the same completion. The integral over y is a trapezoidal sum, as exact here as Gauss–Hermite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from toy.checks import FloatArray, ProblemError, float_number, shown, whole_number
from toy.estimators import ESTIMATORS, Estimator
from toy.quadrature import STEP, Atoms, expected_divergence, laplace_nodes, power_near_one

LARGEST_DISTANCE = 4.0
"""How far apart, in standard deviations, proposal and target, or proposal and policy, may lie."""

LARGEST_GROUP = 10**9
"""Up to here rounding leaves at least six digits of a variance; with a larger group it would eat them up."""


@dataclass(frozen=True)
class GaussianMoments:
    """Moments of an estimator's gradient in the policy's mean.

    Attributes:
        mean: Expected gradient, ascent direction.
        variance: Variance of the gradient of one group.
        bias: mean − (−θ), the bias to −d/dθ KL(target ‖ policy) = −θ.
        mse: variance + bias².
    """

    mean: float
    variance: float
    bias: float
    mse: float


@dataclass(frozen=True)
class Term:
    """factor · Π sums / (A^target_power · B^policy_power), where each sum is over the group, of a function of y.

    Sums whose positions stand together in `apart` run over different completions.
    """

    factor: float
    sums: tuple[str, ...]
    target_power: int = 0
    policy_power: int = 0
    apart: tuple[tuple[int, int], ...] = ()

    def times(self, other: Term) -> Term:
        """The product of two terms."""
        return Term(
            self.factor * other.factor,
            self.sums + other.sums,
            self.target_power + other.target_power,
            self.policy_power + other.policy_power,
            self.apart + tuple((i + len(self.sums), j + len(self.sums)) for i, j in other.apart),
        )


@dataclass(frozen=True, eq=False)
class Law:
    """The law of one completion on a fine grid of y.

    Attributes:
        atoms: Probabilities and ratios α and β at the nodes (Y,).
        values: Functions of y by name, at the nodes (Y,).
    """

    atoms: Atoms
    values: dict[str, FloatArray]


def gaussian_moments(
    estimator_name: str | Estimator, proposal_mean: float, group_size: int, policy_mean: float = 1.0
) -> GaussianMoments:
    """Mean, variance, bias and mean squared error of an estimator's gradient in θ, each to 1e-8 or better.

    The variance, which falls as 1/n, is also good to 1e-6 of itself.

    Args:
        estimator_name: brain, brain_weighted, snis, snis_uniform, dpg, gdc, gdcpp, importance_weighted_rloo or rloo;
            or the entry of `ESTIMATORS`.
        proposal_mean: μ, within 4 of the target's mean 0 and of the policy's.
        group_size: n, from 2 to 1e9.
        policy_mean: θ.

    Raises:
        ProblemError: the estimator has no Gaussian form, a mean is not a number or too far off, or n makes no sense.

    Source: eq-12, T5, T8; the paper's variance figure.

    Example:
        >>> round(gaussian_moments("brain_weighted", 1.0, 8).mean, 10)
        -0.875
    """
    group_size = whole_number("group_size", group_size, 2, LARGEST_GROUP)
    gradient = _gradient(_name(estimator_name), group_size)
    law = _law(proposal_mean, policy_mean)
    mean = sum(_expectation(term, law, group_size) for term in gradient)
    square = sum(_expectation(term, law, group_size) for term in _square(gradient))
    variance, bias = max(square - mean**2, 0.0), mean + float(policy_mean)  # without noise, rounding may leave −1e-17
    return GaussianMoments(mean, variance, bias, variance + bias**2)


def gaussian_self_normalized_kl(proposal_mean: float, group_size: int, policy_mean: float = 1.0) -> float:
    """D_n of the Gaussian toy, nats.

    Args:
        proposal_mean: μ, within 4 of the target's mean 0 and of the policy's.
        group_size: n, from 2 to 1e9.
        policy_mean: θ; KL(target ‖ policy) = θ²/2.

    Raises:
        ProblemError: a mean is not a number or too far off, or n makes no sense.

    Source: eq-14.
    """
    group_size = whole_number("group_size", group_size, 2, LARGEST_GROUP)
    return expected_divergence(_law(proposal_mean, policy_mean).atoms, group_size)


def _name(chosen: str | Estimator) -> str:
    """The name of an estimator that has one of the names below; another estimator of that name has another form."""
    if isinstance(chosen, Estimator) and ESTIMATORS.get(chosen.name) == chosen:
        return chosen.name
    if not isinstance(chosen, str):
        raise ProblemError(f"the Gaussian toy has no estimator {shown(chosen)}; it takes the name of one")
    return chosen


def _gradient(name: str, group_size: int) -> list[Term]:
    """An estimator's gradient: "a" and "b" are α and β, "h" the score, "l" log(α/β), and "ah" the product α h."""
    share = 1 / group_size
    plain = [Term(share, ("ah",))]
    forms = {
        "brain": [Term(1.0, ("ah",), target_power=1), Term(-1.0, ("bh",), policy_power=1)],
        "brain_weighted": [*plain, Term(-share, ("a", "bh"), policy_power=1)],
        "snis": [Term(1.0, ("ah",), target_power=1)],
        "snis_uniform": [Term(1.0, ("ah",), target_power=1), Term(-share, ("h",))],
        "dpg": plain,
        "gdc": plain,
        "gdcpp": [*plain, Term(-share, ("bh",))],
        "importance_weighted_rloo": [
            *plain,
            Term(-share / (group_size - 1), ("a", "bh"), apart=((0, 1),)),
        ],
        "rloo": [Term(1 / (group_size - 1), ("lh",)), Term(-share / (group_size - 1), ("l", "h"))],
    }
    if name not in forms:
        raise ProblemError(f"the Gaussian toy has no estimator {name!r}; it has {', '.join(forms)}")
    return forms[name]


def _square(gradient: Sequence[Term]) -> list[Term]:
    """The terms of the gradient's square, each unordered pair once."""
    squares = [term.times(term) for term in gradient]
    doubled = Term(2.0, ())
    pairs = [doubled.times(a).times(b) for index, a in enumerate(gradient) for b in gradient[:index]]
    return squares + pairs


def _law(proposal_mean: float, policy_mean: float) -> Law:
    """The proposal on a grid so fine and wide that sums over it are integrals to about 1e-15."""
    proposal_mean, policy_mean = float_number("proposal_mean", proposal_mean), float_number("policy_mean", policy_mean)
    slopes = _checked_slopes(proposal_mean, policy_mean)
    reach = 9 + 2 * sum(slopes)
    step = 0.25 / max(1.0, *slopes)
    count = math.ceil(reach / step)
    offset = np.arange(-count, count + 1) * step
    y = proposal_mean + offset
    weight = np.exp(-(offset**2) / 2)
    log_target = (offset**2 - y**2) / 2
    log_policy = (offset**2 - (y - policy_mean) ** 2) / 2
    base = {"a": np.exp(log_target), "b": np.exp(log_policy), "h": y - policy_mean, "l": log_target - log_policy}
    products = {name: np.prod([base[letter] for letter in name], axis=0) for name in ("ah", "bh", "lh")}
    return Law(Atoms(weight / weight.sum(), base["a"], base["b"]), base | products)


def _checked_slopes(proposal_mean: float, policy_mean: float) -> tuple[float, float]:
    """How steeply log α and log β run in y, or ProblemError."""
    slopes = abs(proposal_mean), abs(policy_mean - proposal_mean)
    if max(slopes) > LARGEST_DISTANCE:
        raise ProblemError(
            f"proposal_mean is {proposal_mean}; it must lie within {LARGEST_DISTANCE:g} of 0, the target's mean, "
            f"and of {policy_mean}, the policy's"
        )
    return slopes


def _expectation(term: Term, law: Law, group_size: int) -> float:
    """E[term]: an integral over t for 1/A and one over u for 1/B, each only where it is needed."""
    atoms = law.atoms
    target_node, target_weight = _nodes(atoms.target, term.target_power, group_size)
    policy_node, policy_weight = _nodes(atoms.policy, term.policy_power, group_size)
    target_decay, policy_decay = -np.outer(target_node, atoms.target), -np.outer(policy_node, atoms.policy).T
    by_target, by_policy = np.exp(target_decay) * atoms.weight, np.exp(policy_decay)
    base = by_target @ by_policy
    # exp(x) − 1 of a sum x = a + b, so that no digit of a base near 1 is lost to a large power
    excess = (np.expm1(target_decay) * atoms.weight) @ by_policy + atoms.weight @ np.expm1(policy_decay)
    kernel = np.zeros_like(base)
    for blocks in _partitions(tuple(range(len(term.sums)))):
        others = group_size - len(blocks)
        if others < 0 or any(i in block and j in block for i, j in term.apart for block in blocks):
            continue
        product = float(math.perm(group_size, len(blocks))) * power_near_one(excess, base, others)
        for block in blocks:
            product *= (by_target * np.prod([law.values[term.sums[i]] for i in block], axis=0)) @ by_policy
        kernel += product
    return term.factor * float(target_weight @ kernel @ policy_weight)


def _nodes(ratio: FloatArray, power: int, group_size: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights of 1/x^power = ∫ t^power e^(−tx) / (power − 1)! dt/t; the node 0 alone if the power is 0."""
    if power == 0:
        return np.zeros(1), np.ones(1)
    node = laplace_nodes(ratio, group_size)
    return node, STEP * node**power / math.factorial(power - 1)


def _partitions(positions: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """All ways to divide the factors of a product of sums among different completions."""
    if not positions:
        yield []
        return
    first, rest = positions[:1], positions[1:]
    for partition in _partitions(rest):
        yield [first, *partition]
        for index, block in enumerate(partition):
            yield [*partition[:index], first + block, *partition[index + 1 :]]

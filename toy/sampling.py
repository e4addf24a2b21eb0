"""Monte-Carlo twins of the exact figures, each with its standard error, and the posterior's exact rejection sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toy.estimators import Estimator, FloatArray, estimator
from toy.exact import log_ratios, sum_by_completion
from toy.problems import CategoricalProblem, Number, ProblemError

BLOCK = 4_000_000
"""About how many numbers an intermediate array holds."""

LARGEST_COST = 1e9
"""The most proposals that the rejection sampler may expect to need."""


@dataclass(frozen=True, eq=False)
class SampledMoments:
    """Estimates of an estimator's moments from independent groups; each `…_error` is a standard error.

    Attributes:
        mean: Mean gradient in the logits, ascent direction (K,).
        mean_error: Standard error of each component of the mean (K,).
        variance: Trace of the covariance of the gradient of one group.
        variance_error: Standard error of the variance.
        bias: mean − (target − policy) (K,), the bias to −∇KL(target ‖ policy); its standard error is the mean's.
        mse: Mean squared distance to −∇KL(target ‖ policy).
        mse_error: Standard error of the mse.
    """

    mean: FloatArray
    mean_error: FloatArray
    variance: float
    variance_error: float
    bias: FloatArray
    mse: float
    mse_error: float


@dataclass(frozen=True, eq=False)
class RejectionSample:
    """Completions that the rejection sampler accepted.

    Attributes:
        accepted: Indices of the completions (draws,), independent draws from the posterior.
        proposals: How many completions of the prior it took.
    """

    accepted: NDArray[np.intp]
    proposals: int


def sampled_moments(
    problem: CategoricalProblem, chosen: str | Estimator, group_size: int, draws: int, seed: int
) -> SampledMoments:
    """Mean, variance and mse of an estimator's gradient from sampled groups; what exact_moments has exactly.

    Args:
        problem: Prior, goodness, policy and proposal over K completions.
        chosen: An estimator or its name.
        group_size: n, the completions in a group; even for estimators on pairs.
        draws: How many groups, at least 2; memory holds draws × K numbers.
        seed: Of numpy's default generator.

    Raises:
        ProblemError: no such estimator, or a group size, a number of draws or a seed that makes no sense.

    Numerics: the gradients of dpg, gdcpp and their like are unbounded: where α or β have heavy tails, the standard
        errors are themselves uncertain.
    """
    found = estimator(chosen)
    found.check_group_size(group_size)
    _check_whole("draws", draws, 2)
    gradient = _sampled_gradients(problem, found, group_size, draws, _generator(seed))
    mean = gradient.mean(axis=0)
    target = np.array(problem.posterior, float) - np.array(problem.policy, float)
    variance, variance_error = _mean_and_error(((gradient - mean) ** 2).sum(axis=1) * draws / (draws - 1))
    mse, mse_error = _mean_and_error(((gradient - target) ** 2).sum(axis=1))
    mean_error = gradient.std(axis=0, ddof=1) / math.sqrt(draws)
    return SampledMoments(mean, mean_error, variance, variance_error, mean - target, mse, mse_error)


def rejection_sample(problem: CategoricalProblem, draws: int, seed: int) -> RejectionSample:
    """Draw from the posterior itself: a completion of the prior is accepted with probability goodness / max goodness.

    Args:
        problem: Its prior and goodness are used.
        draws: How many accepted completions, at least 1.
        seed: Of numpy's default generator; a longer run with the same seed begins with the shorter one.

    Raises:
        ProblemError: a number of draws or a seed makes no sense, or more than a billion proposals are expected.

    Source: eq-1; the number of proposals is negative binomial of mean draws · rejection_cost(problem).
    """
    _check_whole("draws", draws, 1)
    expected = draws * float(rejection_cost(problem))
    if expected > LARGEST_COST:
        raise ProblemError(
            f"about {expected:.2g} proposals would be needed; rejection_cost gives the cost without them"
        )
    acceptance = np.array(problem.goodness, float) / float(_best_goodness(problem))
    generator = _generator(seed)
    accepted, used = np.empty(0, dtype=np.intp), 0
    while len(accepted) < draws:
        uniform = generator.random((min(BLOCK, math.ceil(expected) + 100), 2))
        completion = _completions(problem.prior, uniform[:, 0])
        position = np.flatnonzero(uniform[:, 1] < acceptance[completion])[: draws - len(accepted)]
        accepted = np.concatenate([accepted, completion[position]])
        used += int(position[-1]) + 1 if len(accepted) == draws else len(uniform)
    return RejectionSample(accepted, used)


def rejection_cost(problem: CategoricalProblem) -> Number:
    """Expected proposals per accepted completion: max goodness / mean goodness, an exact Fraction where they are.

    Args:
        problem: Its prior and goodness are used; completions that the prior excludes do not count.
    """
    return _best_goodness(problem) / problem.normalizer


def _best_goodness(problem: CategoricalProblem) -> Number:
    """The largest goodness among completions that the prior can give."""
    return max(g for p, g in zip(problem.prior, problem.goodness, strict=True) if p > 0)


def _sampled_gradients(
    problem: CategoricalProblem, chosen: Estimator, group_size: int, draws: int, generator: np.random.Generator
) -> FloatArray:
    """Gradients of independent groups in the logits (draws, K)."""
    log_target, log_policy = log_ratios(problem)
    policy = np.array(problem.policy, float)
    rows = max(BLOCK // group_size**2, 16)
    gradients = []
    for start in range(0, draws, rows):
        groups = _completions(problem.proposal, generator.random((min(rows, draws - start), group_size)))
        coefficients = chosen.coefficients(log_target[groups], log_policy[groups])
        total = sum_by_completion(groups, coefficients, problem.size)
        gradients.append(total - policy * total.sum(axis=1, keepdims=True))
    return np.concatenate(gradients)


def _completions(probabilities: Sequence[Number], uniform: FloatArray) -> NDArray[np.intp]:
    """Indices with these probabilities, from uniform numbers in [0, 1), by the inverse of the distribution function."""
    cumulative = np.cumsum(np.array(probabilities, float))
    return np.searchsorted(cumulative / cumulative[-1], uniform, side="right")


def _mean_and_error(values: FloatArray) -> tuple[float, float]:
    """Sample mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _generator(seed: int) -> np.random.Generator:
    """The generator of a seed."""
    _check_whole("seed", seed, 0)
    return np.random.default_rng(seed)


def _check_whole(name: str, value: int, smallest: int) -> None:
    """Raise ProblemError unless a number is whole and large enough."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ProblemError(f"{name} is {value!r}; it must be a whole number, at least {smallest}")

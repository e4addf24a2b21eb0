"""Monte-Carlo twins of the exact figures, each with its standard error, and the posterior's exact rejection sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toy.checks import (
    FloatArray,
    Number,
    ProblemError,
    float_number,
    float_vector,
    instance,
    seeded,
    shown,
    whole_number,
)
from toy.estimators import Estimator, estimator
from toy.exact import log_ratios, sum_by_completion
from toy.problems import CategoricalProblem

BLOCK = 4_000_000
"""About how many numbers an intermediate array holds."""

LARGEST_SAMPLE = 100_000_000
"""The most numbers that sampled gradients may hold, and the most completions that may be sampled for them."""

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
        draws: How many groups, at least 2; memory holds draws × K numbers, at most 1e8, like draws × n.
        seed: Of numpy's default generator.

    Raises:
        ProblemError: no such estimator, or a group size, a number of draws or a seed that makes no sense.

    Numerics: the gradients of dpg, gdcpp and their like are unbounded: where α or β have heavy tails, the standard
        errors are themselves uncertain.
    """
    instance("problem", problem, CategoricalProblem)
    found = estimator(chosen)
    group_size, draws = found.check_group_size(group_size), whole_number("draws", draws, 2)
    _check_size(draws, group_size, problem.size)
    gradient = _sampled_gradients(problem, found, group_size, draws, seeded(seed))
    mean = gradient.mean(axis=0)
    target = float_vector("posterior", problem.posterior) - float_vector("policy", problem.policy)
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
    draws = whole_number("draws", draws, 1, int(LARGEST_COST))
    expected = draws * float_number("rejection_cost", rejection_cost(problem))
    if expected > LARGEST_COST:
        raise ProblemError(
            f"about {expected:.2g} proposals would be needed; rejection_cost gives the cost without them"
        )
    prior, acceptance = float_vector("prior", problem.prior), float_vector("goodness", problem.goodness)
    acceptance = acceptance / float(_best_goodness(problem))
    generator = seeded(seed)
    accepted, used = np.empty(0, dtype=np.intp), 0
    while len(accepted) < draws:
        uniform = generator.random((min(BLOCK, math.ceil(expected) + 100), 2))
        completion = completions_at(prior, uniform[:, 0])
        position = np.flatnonzero(uniform[:, 1] < acceptance[completion])[: draws - len(accepted)]
        accepted = np.concatenate([accepted, completion[position]])
        used += int(position[-1]) + 1 if len(accepted) == draws else len(uniform)
    return RejectionSample(accepted, used)


def rejection_cost(problem: CategoricalProblem) -> Number:
    """Expected proposals per accepted completion: max goodness / mean goodness, an exact Fraction where they are.

    Args:
        problem: Its prior and goodness are used; completions that the prior excludes do not count.
    """
    instance("problem", problem, CategoricalProblem)
    return _best_goodness(problem) / problem.normalizer


def _best_goodness(problem: CategoricalProblem) -> Number:
    """The largest goodness among completions that the prior can give."""
    return max(g for p, g in zip(problem.prior, problem.goodness, strict=True) if p > 0)


def _sampled_gradients(
    problem: CategoricalProblem, chosen: Estimator, group_size: int, draws: int, generator: np.random.Generator
) -> FloatArray:
    """Gradients of independent groups in the logits (draws, K)."""
    log_target, log_policy = log_ratios(problem)
    proposal, policy = float_vector("proposal", problem.proposal), float_vector("policy", problem.policy)
    rows = max(BLOCK // group_size**2, 16)
    gradients = []
    for start in range(0, draws, rows):
        groups = completions_at(proposal, generator.random((min(rows, draws - start), group_size)))
        coefficients = chosen.coefficients(log_target[groups], log_policy[groups])
        total = sum_by_completion(groups, coefficients, problem.size)
        gradients.append(total - policy * total.sum(axis=1, keepdims=True))
    return np.concatenate(gradients)


def completions_at(probability: FloatArray, uniform: FloatArray) -> NDArray[np.intp]:
    """The inverse of a distribution function: uniform numbers become completions of these probabilities.

    Args:
        probability: (K,), which need not sum to 1.
        uniform: In [0, 1), of any shape.

    Returns:
        Indices into the K, of the same shape; never one of probability 0.
    """
    cumulative = np.cumsum(probability)
    completions: NDArray[np.intp] = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return completions


def _mean_and_error(values: FloatArray) -> tuple[float, float]:
    """Sample mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _check_size(draws: int, group_size: int, size: int) -> None:
    """Raise ProblemError where the sample would take too long or too much memory."""
    if draws * max(group_size, size) > LARGEST_SAMPLE:
        raise ProblemError(
            f"draws is {shown(draws)}; with n = {group_size} and K = {size} it may be at most "
            f"{LARGEST_SAMPLE // max(group_size, size)}"
        )

"""Training a tabular softmax policy by any estimator: Algorithm 1 with its samples, and its noise-free twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax, xlogy

from brain_core import policy_log_ratio, target_log_ratio
from toy.checks import (
    FloatArray,
    Number,
    ProblemError,
    RunawayError,
    flag,
    float_number,
    float_vector,
    group_size_of,
    instance,
    positive_number,
    seeded,
    shown,
    whole_number,
)
from toy.estimators import ESTIMATORS, Estimator, estimator
from toy.exact import exact_moments, mean_gradient, sum_by_completion
from toy.problems import CategoricalProblem
from toy.quadrature import exponential_excess
from toy.sampling import completions_at

LARGEST_LOGIT = 1e12
"""Where training is stopped: log-probabilities that large keep no more than three digits behind the point."""

LARGEST_COUNT = 10**9
"""The most steps, replicas, groups or the like."""

LARGEST_RUN = 100_000_000
"""The most completions sampled in all replicas together: some GB, as the buffer may keep them all."""

Integers = NDArray[np.int64]
Judge = Callable[[Integers, np.random.Generator], FloatArray]
"""From sampled completions, as indices into the K of a problem, to the log-goodness that the trainer is told."""


@dataclass(frozen=True)
class Schedule:
    """How long a policy is trained, on how much, and when new completions are sampled.

    A phase samples `groups_per_phase` new groups, the paper's m, and then takes `steps_per_phase` gradient steps, its
    k; it ends with the proposal becoming the policy.

    Attributes:
        steps: Gradient steps in all; the last phase may be cut short.
        learning_rate: Factor of the plain gradient step in logits.
        group_size: G, the paper's n.
        groups_per_phase: New groups sampled at the start of each phase.
        steps_per_phase: Gradient steps from one sampling to the next.
        groups_per_batch: Groups, drawn from the buffer without repeats, whose mean gradient makes one step.
        is_proposal_updated: Whether a phase samples from the policy as it then is, or always from the first proposal.
        keeps_old_groups: Whether the buffer holds the groups of all phases so far, or of the latest only.

    Raises:
        ProblemError: a count is not a positive whole number, a group is smaller than 2, a batch needs more groups than
            one phase samples, the learning rate is not a positive finite number, or a flag is neither True nor False.

    Source: alg-1, section 9.5 for a proposal that is never updated.
    """

    steps: int
    learning_rate: float
    group_size: int
    groups_per_phase: int = 16
    steps_per_phase: int = 10
    groups_per_batch: int = 8
    is_proposal_updated: bool = True
    keeps_old_groups: bool = True

    def __post_init__(self) -> None:
        """Check every entry and bring it to its own kind."""
        rules = {"int": _count, "float": positive_number, "bool": flag}
        for entry in fields(self):
            object.__setattr__(self, entry.name, rules[str(entry.type)](entry.name, getattr(self, entry.name)))
        group_size_of(self.group_size)
        if self.groups_per_batch > self.groups_per_phase:
            raise ProblemError(
                f"groups_per_batch is {self.groups_per_batch}, more than the {self.groups_per_phase} groups of the "
                "first phase; raise groups_per_phase or lower groups_per_batch"
            )

    @property
    def phases(self) -> int:
        """How many phases there are, the last perhaps cut short."""
        return math.ceil(self.steps / self.steps_per_phase)

    @property
    def completions(self) -> int:
        """How many completions one replica samples in all."""
        return self.phases * self.groups_per_phase * self.group_size


@dataclass(frozen=True)
class Trajectory:
    """Policies on their way, and how far each is from the target and the prior.

    Attributes:
        problem: What they are measured against; `measured_against` exchanges it.
        step: Gradient steps taken when each record was made (S,), the first 0.
        log_policy: log q_θ (S, R, K) of R replicas, nats; R is 1 for a flow.
    """

    problem: CategoricalProblem
    step: Integers
    log_policy: FloatArray

    def measured_against(self, problem: CategoricalProblem) -> Trajectory:
        """The same policies, measured by another problem: the true one where training saw a noisy one."""
        return replace(self, problem=problem)

    @property
    def kl_to_target(self) -> FloatArray:
        """KL(target ‖ policy) (S, R), nats: what forward methods minimise."""
        return _kl(_log("posterior", self.problem.posterior), self.log_policy)

    @property
    def reverse_kl_to_target(self) -> FloatArray:
        """KL(policy ‖ target) (S, R), nats; infinite where the target is 0 and the policy is not."""
        return _kl(self.log_policy, _log("posterior", self.problem.posterior))

    @property
    def kl_to_prior(self) -> FloatArray:
        """KL(policy ‖ prior) (S, R), nats: how far alignment has moved the policy."""
        return _kl(self.log_policy, _log("prior", self.problem.prior))

    @property
    def expected_reward(self) -> FloatArray:
        """The policy's mean log-goodness (S, R), nats: its mean reward at temperature 1, less that of the best."""
        reward: FloatArray = xlogy(np.exp(self.log_policy), float_vector("goodness", self.problem.goodness)).sum(-1)
        return reward

    @property
    def expected_goodness(self) -> FloatArray:
        """The policy's mean goodness p(G=1|x) (S, R)."""
        goodness: FloatArray = np.exp(self.log_policy) @ float_vector("goodness", self.problem.goodness)
        return goodness

    @property
    def total_variation_to_target(self) -> FloatArray:
        """Total variation between target and policy (S, R)."""
        target = float_vector("posterior", self.problem.posterior)
        distance: FloatArray = np.abs(np.exp(self.log_policy) - target).sum(-1) / 2
        return distance


def mean_and_error(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over replicas and its standard error.

    Args:
        values: (S, R), as from a `Trajectory`.

    Returns:
        Both (S,); the error of a single replica is NaN.
    """
    count = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(count) if count > 1 else np.full(values.shape[:-1], np.nan)
    return values.mean(-1), error


class _Groups(NamedTuple):
    """Groups with what was known when they were sampled; arrays are (R, groups, G)."""

    completions: Integers
    log_proposal: FloatArray
    target_log_ratio: FloatArray

    def joined(self, other: _Groups) -> _Groups:
        """The groups of both."""
        return _Groups(
            np.concatenate([self.completions, other.completions], axis=1),
            np.concatenate([self.log_proposal, other.log_proposal], axis=1),
            np.concatenate([self.target_log_ratio, other.target_log_ratio], axis=1),
        )

    def drawn(self, count: int, generator: np.random.Generator) -> _Groups:
        """A batch of `count` different groups for each replica."""
        order = np.argsort(generator.random(self.completions.shape[:2]), axis=1)
        index = order[:, :count, None]
        return _Groups(
            np.take_along_axis(self.completions, index, axis=1),
            np.take_along_axis(self.log_proposal, index, axis=1),
            np.take_along_axis(self.target_log_ratio, index, axis=1),
        )


def fit(
    problem: CategoricalProblem,
    chosen: str | Estimator,
    schedule: Schedule,
    *,
    seed: int,
    replicas: int = 1,
    record_every: int = 1,
    judge: Judge | None = None,
) -> Trajectory:
    """Train by Algorithm 1 with sampled groups, in several replicas at once.

    Each phase samples groups from its proposal and caches their own log-probabilities under it; each step draws groups
    from the buffer, takes the mean of their Σᵢ cᵢ ∇ log q_θ(yᵢ|x) and adds it, times the learning rate, to the logits.
    A group from an old proposal keeps that proposal in its ratios.

    Args:
        problem: Its policy is where training begins, its proposal what the first phase samples from.
        chosen: An estimator, or its name; it gives the coefficients c.
        schedule: Steps, sizes, and when the proposal is updated.
        seed: Of the one generator that all draws come from.
        replicas: R, independent runs.
        record_every: A record is made after every so many steps, at the start and at the end.
        judge: What the trainer is told of the log-goodness of sampled completions; by default the problem's own.

    Returns:
        The trajectory, measured against `problem`.

    Raises:
        ProblemError: no such estimator, a group size it cannot use, `replicas` or `record_every` below 1, no seed, or a
            judge whose answer does not fit; RunawayError, which is an OverflowError too, where the learning rate is so
            large that a logit passes 1e12.
        SupportError, OverflowError: as the estimator.

    Source: alg-1, T12.
    """
    found, record_every = _checked(problem, chosen, schedule, record_every)
    replicas, generator = _checked_replicas(replicas, schedule), seeded(seed)
    judge = _careful(_truthful(problem) if judge is None else judge)
    logits = np.tile(_log("policy", problem.policy), (replicas, 1))
    log_proposal = np.tile(_log("proposal", problem.proposal), (replicas, 1))
    recorder = _Recorder(problem, schedule.steps, record_every, logits)
    buffer = _sampled(problem, log_proposal, schedule, judge, generator)
    for step in range(schedule.steps):
        if step and step % schedule.steps_per_phase == 0:
            if schedule.is_proposal_updated:
                log_proposal = log_softmax(logits, axis=-1)
            fresh = _sampled(problem, log_proposal, schedule, judge, generator)
            buffer = buffer.joined(fresh) if schedule.keeps_old_groups else fresh
        batch = buffer.drawn(schedule.groups_per_batch, generator)
        logits = logits + schedule.learning_rate * _batch_gradient(problem, found, logits, batch)
        _check_logits(logits, schedule, step + 1)
        recorder.note(step + 1, logits)
    return recorder.trajectory


def exact_flow(
    problem: CategoricalProblem, chosen: str | Estimator, schedule: Schedule, *, record_every: int = 1
) -> Trajectory:
    """Train on the exact mean of the gradient: Algorithm 1 with infinitely many groups in each phase and batch.

    Args:
        problem: Its policy is where training begins, its proposal what the first phase uses.
        chosen: An estimator, or its name; it gives the coefficients c.
        schedule: As in `fit`; the numbers of groups do not matter. `is_proposal_updated=False` keeps the proposal,
            `steps_per_phase=1` with `keeps_old_groups=False` lets it follow the policy; with `keeps_old_groups` the
            gradient is the mean over all phases' proposals.
        record_every: A record is made after every so many steps, at the start and at the end.

    Returns:
        The trajectory (R = 1), measured against `problem`.

    Raises:
        ProblemError: as `fit`, or there are more different groups than can be enumerated; RunawayError also where the
            learning rate is so large that a completion's probability underflows.
        SupportError, OverflowError: as the estimator.

    Source: alg-1, T12.
    """
    found, record_every = _checked(problem, chosen, schedule, record_every)
    logits = _log("policy", problem.policy)
    recorder = _Recorder(problem, schedule.steps, record_every, logits[None])
    proposals = [problem.proposal]
    for step in range(schedule.steps):
        policy = _softmax(logits, schedule, step)
        if step and step % schedule.steps_per_phase == 0 and schedule.is_proposal_updated:
            proposals = [*proposals, policy] if schedule.keeps_old_groups else [policy]
        gradients = [
            _mean_gradient(problem.with_policy(policy).with_proposal(proposal), found, schedule.group_size)
            for proposal in proposals
        ]
        logits = logits + schedule.learning_rate * np.mean(gradients, axis=0)
        _check_logits(logits, schedule, step + 1)
        recorder.note(step + 1, logits[None])
    return recorder.trajectory


def _checked(
    problem: CategoricalProblem, chosen: str | Estimator, schedule: Schedule, record_every: int
) -> tuple[Estimator, int]:
    """The estimator and the interval, or ProblemError unless they, the problem and the schedule can be used."""
    instance("problem", problem, CategoricalProblem)
    instance("schedule", schedule, Schedule)
    found = estimator(chosen)
    found.check_group_size(schedule.group_size)
    return found, _count("record_every", record_every)


def _checked_replicas(replicas: int, schedule: Schedule) -> int:
    """Their number, or ProblemError where they would need too much memory."""
    replicas = _count("replicas", replicas)
    if replicas * schedule.completions > LARGEST_RUN:
        raise ProblemError(
            f"replicas is {replicas}; with {schedule.completions} completions each it may be at most "
            f"{LARGEST_RUN // schedule.completions}"
        )
    return replicas


def _count(name: str, value: int) -> int:
    """A positive whole number that a run can have of anything, or ProblemError."""
    return whole_number(name, value, 1, LARGEST_COUNT)


def _check_logits(logits: FloatArray, schedule: Schedule, step: int) -> None:
    """Raise RunawayError where training has left what float64 can tell apart.

    The largest tells: a step keeps the sum of the logits, so that none falls far without another rising.
    """
    largest = float(logits.max())
    if not abs(largest) <= LARGEST_LOGIT:
        raise RunawayError(
            f"learning_rate is {schedule.learning_rate:g}: after step {step} a logit is {largest:.3g}; lower the rate"
        )


def _softmax(logits: FloatArray, schedule: Schedule, step: int) -> list[float]:
    """The policy (K,) of a flow, or RunawayError where a completion's probability underflows."""
    policy = softmax(logits)
    lost = np.flatnonzero((policy == 0) & (logits > -np.inf))
    if lost.size:
        raise RunawayError(
            f"learning_rate is {schedule.learning_rate:g}: after step {step} policy[{lost[0]}] is too small for "
            "float64; lower the rate"
        )
    return list(policy.tolist())


class _Recorder:
    """Collects policies while training."""

    def __init__(self, problem: CategoricalProblem, steps: int, every: int, logits: FloatArray) -> None:
        """Record the start."""
        self._problem, self._last, self._every = problem, steps, every
        self._steps, self._log_policies = [0], [log_softmax(logits, axis=-1)]

    def note(self, step: int, logits: FloatArray) -> None:
        """Record the logits (R, K) after this many steps, if it is their turn."""
        if step % self._every == 0 or step == self._last:
            self._steps.append(step)
            self._log_policies.append(log_softmax(logits, axis=-1))

    @property
    def trajectory(self) -> Trajectory:
        """All records."""
        return Trajectory(self._problem, np.array(self._steps), np.stack(self._log_policies))


def _sampled(
    problem: CategoricalProblem,
    log_proposal: FloatArray,
    schedule: Schedule,
    judge: Judge,
    generator: np.random.Generator,
) -> _Groups:
    """New groups from each replica's proposal (R, K), by its inverse distribution function."""
    shape = (log_proposal.shape[0], schedule.groups_per_phase, schedule.group_size)
    uniform = generator.random(shape)
    completions = np.stack([completions_at(*pair) for pair in zip(np.exp(log_proposal), uniform, strict=True)])
    log_probability = _looked_up(log_proposal, completions)
    ratio = target_log_ratio(_log("prior", problem.prior)[completions], log_probability, judge(completions, generator))
    return _Groups(completions, log_probability, ratio)


def _batch_gradient(problem: CategoricalProblem, chosen: Estimator, logits: FloatArray, batch: _Groups) -> FloatArray:
    """The mean over a batch of Σᵢ cᵢ ∇ log q_θ(yᵢ|x), for each replica (R, K)."""
    log_policy = log_softmax(logits, axis=-1)
    policy_ratio = policy_log_ratio(_looked_up(log_policy, batch.completions), batch.log_proposal)
    log_normalizer = math.log(float_number("normalizer", problem.normalizer))
    coefficients = chosen.coefficients(batch.target_log_ratio, policy_ratio, log_normalizer)
    coefficients = coefficients / batch.completions.shape[1]
    replicas, size = logits.shape
    summed = sum_by_completion(batch.completions.reshape(replicas, -1), coefficients.reshape(replicas, -1), size)
    gradient: FloatArray = summed - summed.sum(axis=1, keepdims=True) * np.exp(log_policy)
    return gradient


def _mean_gradient(problem: CategoricalProblem, chosen: Estimator, group_size: int) -> FloatArray:
    """The exact mean gradient in the logits (K,): by integrals for the two that have them, else by enumeration."""
    if chosen in (ESTIMATORS["brain"], ESTIMATORS["snis"]):
        return mean_gradient(problem, group_size, chosen.name)
    return np.asarray(exact_moments(problem, chosen, group_size).mean, float)


def _looked_up(table: FloatArray, completions: Integers) -> FloatArray:
    """Each replica's own entries (R, …) of its table (R, K)."""
    return table[np.arange(len(table))[:, None, None], completions]


def _truthful(problem: CategoricalProblem) -> Judge:
    """The judge that tells the problem's own log-goodness."""
    log_goodness = _log("goodness", problem.goodness)
    return lambda completions, generator: log_goodness[completions]


def _careful(judge: Judge) -> Judge:
    """The same judge; ProblemError where what it tells does not fit the completions."""
    if not callable(judge):
        raise ProblemError(f"judge is {shown(judge)}; it must be a function of completions and a generator")

    def checked(completions: Integers, generator: np.random.Generator) -> FloatArray:
        """What the judge tells."""
        told = np.asarray(judge(completions, generator), float)
        if told.shape != completions.shape or np.isnan(told).any():
            raise ProblemError(
                f"judge told {shown(told)} of shape {told.shape}; it must tell one log-goodness, not NaN, for each of "
                f"the completions, of shape {completions.shape}"
            )
        return told

    return checked


def _log(name: str, values: Sequence[Number]) -> FloatArray:
    """Logarithms of probabilities in float64, -inf of 0."""
    with np.errstate(divide="ignore"):
        logarithms: FloatArray = np.log(float_vector(name, values))
    return logarithms


def _kl(log_of: FloatArray, log_to: FloatArray) -> FloatArray:
    """KL divergences along the last axis from log-probabilities, nats; finite even where exp(log_to) underflows.

    Summed as Σ p · (f + e^(−f) − 1) with f = log p − log q, whose terms are never negative, second-order where p ≈ q.
    """
    p, q = np.exp(log_of), np.exp(log_to)
    with np.errstate(invalid="ignore"):
        f = np.where(p > 0, log_of - log_to, 0.0)
        is_near = np.abs(f) < 0.5
        far = np.where(p > 0, p * f, 0.0) + (q - p)
    terms = np.where(is_near & (p > 0), p * exponential_excess(-np.where(is_near, f, 0.0)), far)
    divergence: FloatArray = terms.sum(-1)
    return divergence

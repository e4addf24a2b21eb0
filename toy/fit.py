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
from toy.estimators import ESTIMATORS, Estimator, estimator
from toy.exact import exact_moments, mean_gradient
from toy.problems import CategoricalProblem, Number, ProblemError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Judge = Callable[[Integers, np.random.Generator], Floats]
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
        ProblemError: a count is not a positive integer, a batch needs more groups than one phase samples, or the
            learning rate is not a positive finite number.

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
        """Check every number."""
        _check_counts(**{entry.name: getattr(self, entry.name) for entry in fields(self) if entry.type == "int"})
        if self.groups_per_batch > self.groups_per_phase:
            raise ProblemError(
                f"groups_per_batch is {self.groups_per_batch}, more than the {self.groups_per_phase} groups of the "
                "first phase; raise groups_per_phase or lower groups_per_batch"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ProblemError(f"learning_rate is {self.learning_rate!r}; it must be positive and finite")

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
    log_policy: Floats

    def measured_against(self, problem: CategoricalProblem) -> Trajectory:
        """The same policies, measured by another problem: the true one where training saw a noisy one."""
        return replace(self, problem=problem)

    @property
    def kl_to_target(self) -> Floats:
        """KL(target ‖ policy) (S, R), nats: what forward methods minimise."""
        return _kl(_log(self.problem.posterior), self.log_policy)

    @property
    def reverse_kl_to_target(self) -> Floats:
        """KL(policy ‖ target) (S, R), nats; infinite where the target is 0 and the policy is not."""
        return _kl(self.log_policy, _log(self.problem.posterior))

    @property
    def kl_to_prior(self) -> Floats:
        """KL(policy ‖ prior) (S, R), nats: how far alignment has moved the policy."""
        return _kl(self.log_policy, _log(self.problem.prior))

    @property
    def expected_reward(self) -> Floats:
        """The policy's mean log-goodness (S, R), nats: its mean reward at temperature 1, less that of the best."""
        reward: Floats = xlogy(np.exp(self.log_policy), np.array(self.problem.goodness, float)).sum(-1)
        return reward

    @property
    def expected_goodness(self) -> Floats:
        """The policy's mean goodness p(G=1|x) (S, R)."""
        goodness: Floats = np.exp(self.log_policy) @ np.array(self.problem.goodness, float)
        return goodness

    @property
    def total_variation_to_target(self) -> Floats:
        """Total variation between target and policy (S, R)."""
        distance: Floats = np.abs(np.exp(self.log_policy) - np.array(self.problem.posterior, float)).sum(-1) / 2
        return distance


def mean_and_error(values: Floats) -> tuple[Floats, Floats]:
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
    log_proposal: Floats
    target_log_ratio: Floats

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
        ProblemError: no such estimator, a group size it cannot use, or `replicas` or `record_every` below 1.
        SupportError, OverflowError: as the estimator.

    Source: alg-1, T12.
    """
    _check_counts(replicas=replicas, record_every=record_every)
    found = estimator(chosen)
    found.check_group_size(schedule.group_size)
    generator = np.random.default_rng(seed)
    judge = judge or _truthful(problem)
    logits = np.tile(_log(problem.policy), (replicas, 1))
    log_proposal = np.tile(_log(problem.proposal), (replicas, 1))
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
        ProblemError: as `fit`, or there are more different groups than can be enumerated.
        SupportError, OverflowError: as the estimator.

    Source: alg-1, T12.
    """
    _check_counts(record_every=record_every)
    found = estimator(chosen)
    logits = _log(problem.policy)
    recorder = _Recorder(problem, schedule.steps, record_every, logits[None])
    proposals = [problem.proposal]
    for step in range(schedule.steps):
        policy = softmax(logits).tolist()
        if step and step % schedule.steps_per_phase == 0 and schedule.is_proposal_updated:
            proposals = [*proposals, policy] if schedule.keeps_old_groups else [policy]
        gradients = [
            _mean_gradient(problem.with_policy(policy).with_proposal(proposal), found, schedule.group_size)
            for proposal in proposals
        ]
        logits = logits + schedule.learning_rate * np.mean(gradients, axis=0)
        recorder.note(step + 1, logits[None])
    return recorder.trajectory


class _Recorder:
    """Collects policies while training."""

    def __init__(self, problem: CategoricalProblem, steps: int, every: int, logits: Floats) -> None:
        """Record the start."""
        self._problem, self._last, self._every = problem, steps, every
        self._steps, self._log_policies = [0], [log_softmax(logits, axis=-1)]

    def note(self, step: int, logits: Floats) -> None:
        """Record the logits (R, K) after this many steps, if it is their turn."""
        if step % self._every == 0 or step == self._last:
            self._steps.append(step)
            self._log_policies.append(log_softmax(logits, axis=-1))

    @property
    def trajectory(self) -> Trajectory:
        """All records."""
        return Trajectory(self._problem, np.array(self._steps), np.stack(self._log_policies))


def _sampled(
    problem: CategoricalProblem, log_proposal: Floats, schedule: Schedule, judge: Judge, generator: np.random.Generator
) -> _Groups:
    """New groups from each replica's proposal (R, K), by its inverse distribution function."""
    shape = (log_proposal.shape[0], schedule.groups_per_phase, schedule.group_size)
    cumulative = np.cumsum(np.exp(log_proposal), axis=-1)
    uniform = generator.random(shape) * cumulative[:, -1, None, None]
    completions = np.stack(
        [np.searchsorted(edges, u, side="right") for edges, u in zip(cumulative, uniform, strict=True)]
    )
    log_probability = _looked_up(log_proposal, completions)
    ratio = target_log_ratio(_log(problem.prior)[completions], log_probability, judge(completions, generator))
    return _Groups(completions, log_probability, ratio)


def _batch_gradient(problem: CategoricalProblem, chosen: Estimator, logits: Floats, batch: _Groups) -> Floats:
    """The mean over a batch of Σᵢ cᵢ ∇ log q_θ(yᵢ|x), for each replica (R, K)."""
    log_policy = log_softmax(logits, axis=-1)
    policy_ratio = policy_log_ratio(_looked_up(log_policy, batch.completions), batch.log_proposal)
    log_normalizer = math.log(problem.normalizer)
    coefficients = chosen.coefficients(batch.target_log_ratio, policy_ratio, log_normalizer)
    coefficients = coefficients / batch.completions.shape[1]
    summed = _summed_by_completion(coefficients, batch.completions, logits.shape[1])
    gradient: Floats = summed - summed.sum(axis=1, keepdims=True) * np.exp(log_policy)
    return gradient


def _mean_gradient(problem: CategoricalProblem, chosen: Estimator, group_size: int) -> Floats:
    """The exact mean gradient in the logits (K,): by integrals for the two that have them, else by enumeration."""
    if chosen in (ESTIMATORS["brain"], ESTIMATORS["snis"]):
        return mean_gradient(problem, group_size, chosen.name)
    return np.asarray(exact_moments(problem, chosen, group_size).mean, float)


def _summed_by_completion(values: Floats, completions: Integers, size: int) -> Floats:
    """Sums of values (R, …) over equal completions, for each replica (R, K)."""
    replicas = completions.shape[0]
    cell = completions + size * np.arange(replicas)[:, None, None]
    summed = np.bincount(cell.ravel(), weights=values.ravel(), minlength=replicas * size)
    return summed.astype(np.float64).reshape(replicas, size)


def _looked_up(table: Floats, completions: Integers) -> Floats:
    """Each replica's own entries (R, …) of its table (R, K)."""
    return table[np.arange(len(table))[:, None, None], completions]


def _truthful(problem: CategoricalProblem) -> Judge:
    """The judge that tells the problem's own log-goodness."""
    log_goodness = _log(problem.goodness)
    return lambda completions, generator: log_goodness[completions]


def _log(values: Sequence[Number]) -> Floats:
    """Logarithms of probabilities in float64, -inf of 0."""
    with np.errstate(divide="ignore"):
        logarithms: Floats = np.log(np.array(values, float))
    return logarithms


def _kl(log_of: Floats, log_to: Floats) -> Floats:
    """KL divergences along the last axis from log-probabilities, nats; finite even where exp(log_to) underflows."""
    probability = np.exp(log_of)
    with np.errstate(invalid="ignore"):
        terms = np.where(probability > 0, probability * (log_of - log_to), 0.0)
    divergence: Floats = terms.sum(-1)
    return divergence


def _check_counts(**counts: int) -> None:
    """Raise ProblemError unless every number is a positive integer."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ProblemError(f"{name} is {value!r}; it must be an integer of at least 1")

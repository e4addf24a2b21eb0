"""Training in the toy: theorem T7, hand-unrolled Algorithm 1, mean steps, fixed points, noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from brain_core import brain_coefficients, policy_log_ratio, self_normalized_kl, target_log_ratio
from toy import ESTIMATORS, CategoricalProblem, Estimator, ProblemError, exact_moments
from toy.fit import Schedule, Trajectory, exact_flow, fit, mean_and_error
from toy.studies.training import sampled_problem
from toy_problems import as_floats, generic, problems

ONE_STEP = Schedule(1, 0.7, 3, groups_per_phase=400, steps_per_phase=1, groups_per_batch=400, is_proposal_updated=False)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - math.log(sum(math.exp(z) for z in logits))


# T7: every batch, whoever sampled it, brings the logits closer to those of the target


@given(
    problem=problems(largest_size=6),
    rate=st.floats(0.05, 1.99),
    seed=st.integers(0, 10_000),
    group_size=st.integers(2, 9),
)
def test_no_batch_whatever_its_proposal_moves_the_logits_away_from_the_target(
    problem: CategoricalProblem, rate: float, seed: int, group_size: int
) -> None:
    problem = as_floats(problem)
    generator = np.random.default_rng(seed)
    group = generator.integers(0, problem.size, group_size)  # no proposal of ours drew it
    log_claimed = np.log(generator.dirichlet(np.full(problem.size, 0.5)) + 1e-9)[group]  # a stale or a wrong one
    target, prior, goodness = (np.log(np.array(v)) for v in (problem.posterior, problem.prior, problem.goodness))
    before = log_softmax(np.log(np.array(problem.policy)) + 3 * generator.standard_normal(problem.size))
    alpha = target_log_ratio(prior[group], log_claimed, goodness[group])
    beta = policy_log_ratio(before[group], log_claimed)
    after = before.copy()
    for y, c in zip(group, brain_coefficients(alpha, beta), strict=True):
        after += rate * c * (np.eye(problem.size)[y] - np.exp(before))
    drop = sum((before - target) ** 2) - sum((after - target) ** 2)
    scale = 1 + sum((before - target) ** 2)
    assert drop >= rate * (2 - rate) * self_normalized_kl(alpha, beta) - 1e-12 * scale


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.9])
def test_training_on_stale_groups_never_moves_a_replica_away_from_the_target(rate: float) -> None:
    problem = sampled_problem(12, 2.0, 4)
    schedule = Schedule(120, rate, 4, groups_per_phase=3, steps_per_phase=10, groups_per_batch=1)
    path = fit(problem, "brain", schedule, seed=3, replicas=5)
    logits = path.log_policy - path.log_policy.mean(-1, keepdims=True)
    target = np.log(np.array(problem.posterior))
    distance = ((logits - (target - target.mean())) ** 2).sum(-1)
    assert (np.diff(distance, axis=0) <= 1e-12).all()
    assert (distance[-1] < 0.9 * distance[0]).all()


def test_a_batch_can_move_the_logits_away_without_the_baseline() -> None:
    problem = sampled_problem(12, 2.0, 4)
    schedule = Schedule(120, 1.0, 4, groups_per_phase=3, steps_per_phase=10, groups_per_batch=1)
    path = fit(problem, "snis", schedule, seed=3, replicas=5)
    logits = path.log_policy - path.log_policy.mean(-1, keepdims=True)
    target = np.log(np.array(problem.posterior))
    assert (np.diff(((logits - (target - target.mean())) ** 2).sum(-1), axis=0) > 0).any()


# Algorithm 1 by hand


def unrolled(problem: CategoricalProblem, schedule: Schedule, seed: int, *, forgets_old_proposal: bool) -> np.ndarray:
    """Two phases of Algorithm 1 in loops over scalars; with `forgets_old_proposal`, q' of old groups is the newest."""
    generator = np.random.default_rng(seed)
    logits = [math.log(value) for value in problem.policy]
    proposal = [float(value) for value in problem.proposal]
    buffer: list[tuple[list[int], list[float]]] = []  # completions and the proposal that sampled them
    for phase in range(2):
        if phase:
            proposal = [math.exp(value) for value in log_softmax(np.array(logits))]
        for group in generator.random((1, schedule.groups_per_phase, schedule.group_size))[0]:
            completions = []
            for uniform in group:
                y, below = 0, proposal[0]
                while uniform * sum(proposal) >= below:
                    y += 1
                    below += proposal[y]
                completions.append(y)
            buffer.append((completions, proposal))
        for _ in range(schedule.steps_per_phase):
            keys = generator.random((1, len(buffer)))[0]
            batch = sorted(range(len(buffer)), key=lambda g: keys[g])[: schedule.groups_per_batch]
            policy = [math.exp(value) for value in log_softmax(np.array(logits))]
            step = [0.0] * problem.size
            for completions, cached in (buffer[g] for g in batch):
                used = proposal if forgets_old_proposal else cached
                alpha = [problem.prior[y] * problem.goodness[y] / used[y] for y in completions]
                beta = [policy[y] / used[y] for y in completions]
                for y, a, b in zip(completions, alpha, beta, strict=True):
                    weight = a / sum(alpha) - b / sum(beta)
                    for k in range(problem.size):
                        step[k] += weight * ((k == y) - policy[k]) / len(batch)
            logits = [z + schedule.learning_rate * s for z, s in zip(logits, step, strict=True)]
    return log_softmax(np.array(logits))


def test_two_phases_equal_algorithm_1_unrolled_by_hand_with_each_groups_own_proposal() -> None:
    problem = as_floats(generic())
    schedule = Schedule(8, 1.5, 3, groups_per_phase=5, steps_per_phase=4, groups_per_batch=3)
    trained = fit(problem, "brain", schedule, seed=11).log_policy[-1, 0]
    assert trained == pytest.approx(unrolled(problem, schedule, 11, forgets_old_proposal=False), abs=1e-13)
    assert abs(trained - unrolled(problem, schedule, 11, forgets_old_proposal=True)).max() > 1e-3


def test_the_latest_phase_alone_is_used_when_old_groups_are_not_kept() -> None:
    problem = as_floats(generic())
    schedule = Schedule(8, 1.5, 3, groups_per_phase=5, steps_per_phase=4, groups_per_batch=3, keeps_old_groups=False)
    seen = []

    def coefficients(target: np.ndarray, policy: np.ndarray, log_normalizer: float | np.ndarray = 0.0) -> np.ndarray:
        seen.append(target)
        return ESTIMATORS["brain"].coefficients(target, policy, log_normalizer)

    fit(problem, Estimator("spy", coefficients, None), schedule, seed=1)
    early, late = (np.concatenate(part).reshape(-1, 3) for part in (seen[:4], seen[4:]))
    assert not (late[:, None] == early).all(-1).any()


@pytest.mark.parametrize("is_updated", [False, True])
def test_later_phases_sample_from_the_policy_or_else_from_the_first_proposal(is_updated: bool) -> None:
    problem = CategoricalProblem([0.5, 0.5], [0.01, 0.99], [0.5, 0.5], [0.8, 0.2])
    shares = []

    def judge(completions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        shares.append(completions.mean())
        return np.log(np.array(problem.goodness))[completions]

    schedule = Schedule(200, 1.0, 4, groups_per_phase=500, steps_per_phase=100, is_proposal_updated=is_updated)
    path = fit(problem, "brain", schedule, seed=1, judge=judge, record_every=100)
    error = 5 * 0.4 / math.sqrt(2000)
    assert shares[0] == pytest.approx(0.2, abs=error)
    assert shares[1] == pytest.approx(math.exp(path.log_policy[1, 0, 1]) if is_updated else 0.2, abs=error)
    assert math.exp(path.log_policy[1, 0, 1]) > 0.9


# fit and the exact flow take the same step in the mean


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "dpo_sft" and name != "dpo_sft_iw"])
def test_mean_step_of_fit_is_the_step_of_the_exact_flow(name: str) -> None:
    problem = as_floats(generic())
    replicas = 200
    start = log_softmax(np.log(np.array(problem.policy)))
    # 80,000 groups in all; logits up to a constant per replica, which the sum of the step fixes at 0
    sampled = fit(problem, name, ONE_STEP, seed=7, replicas=replicas).log_policy[-1]
    sampled = sampled - sampled.mean(-1, keepdims=True) - (start - start.mean())
    flow = exact_flow(problem, name, ONE_STEP).log_policy[-1, 0]
    flow = flow - flow.mean() - (start - start.mean())
    error = sampled.std(0, ddof=1) / math.sqrt(replicas)
    assert (abs(sampled.mean(0) - flow) < 5 * error).all()
    assert abs(flow).max() > 30 * error.max()  # so that a step of 0 or of the wrong sign would be seen


@pytest.mark.parametrize("name", ["dpo_sft", "dpo_sft_iw"])
def test_mean_step_of_the_paired_estimators_is_that_of_the_exact_flow(name: str) -> None:
    problem = as_floats(generic())
    schedule = dataclasses.replace(ONE_STEP, group_size=4)
    sampled = fit(problem, name, schedule, seed=7, replicas=100).log_policy[-1]
    flow = exact_flow(problem, name, schedule).log_policy[-1, 0]
    sampled, flow = sampled - sampled.mean(-1, keepdims=True), flow - flow.mean()
    assert (abs(sampled.mean(0) - flow) < 5 * sampled.std(0, ddof=1) / 10).all()


def test_a_step_of_the_flow_is_the_learning_rate_times_the_exact_mean() -> None:
    problem = as_floats(generic())
    for name in ("brain", "gdcpp", "dpo_sft"):
        schedule = Schedule(1, 0.3, 4, is_proposal_updated=False)
        step = np.log(np.array(problem.policy)) + 0.3 * exact_moments(problem, name, 4).mean
        flow = exact_flow(problem, name, schedule).log_policy[-1, 0]
        assert flow == pytest.approx(log_softmax(np.asarray(step, float)), abs=1e-12)


def test_flow_that_keeps_old_groups_takes_the_mean_over_the_proposals_of_all_phases() -> None:
    problem = as_floats(generic())
    schedule = Schedule(2, 0.8, 3, steps_per_phase=1)
    first = exact_flow(problem, "brain", dataclasses.replace(schedule, steps=1)).log_policy[-1, 0]
    now = problem.with_policy(np.exp(first).tolist())
    old = exact_moments(now, "brain", 3).mean
    new = exact_moments(now.with_proposal(np.exp(first).tolist()), "brain", 3).mean
    kept = exact_flow(problem, "brain", schedule).log_policy[-1, 0]
    latest = exact_flow(problem, "brain", dataclasses.replace(schedule, keeps_old_groups=False)).log_policy[-1, 0]
    never = exact_flow(problem, "brain", dataclasses.replace(schedule, is_proposal_updated=False)).log_policy[-1, 0]
    assert kept == pytest.approx(log_softmax(first + 0.8 * (old + new) / 2), abs=1e-12)
    assert latest == pytest.approx(log_softmax(first + 0.8 * new), abs=1e-12)
    assert never == pytest.approx(log_softmax(first + 0.8 * old), abs=1e-12)


# where training ends

LONG = Schedule(3000, 1.5, 3, is_proposal_updated=False)


@pytest.mark.parametrize("updated", [False, True])
def test_flow_of_brain_ends_at_the_posterior_from_any_proposal(updated: bool) -> None:
    problem = as_floats(generic())
    schedule = dataclasses.replace(
        LONG, steps=1500, is_proposal_updated=updated, keeps_old_groups=False, steps_per_phase=20
    )
    path = exact_flow(problem, "brain", schedule, record_every=1500)
    assert np.exp(path.log_policy[-1, 0]) == pytest.approx(problem.posterior, abs=1e-9)
    assert path.kl_to_target[-1].item() == pytest.approx(0, abs=1e-15)


def sampling_importance_resampling(problem: CategoricalProblem, group_size: int) -> np.ndarray:
    """T9: the law of one completion picked from a group by α̂, over all Kⁿ groups."""
    law = np.zeros(problem.size)
    alpha = [t / s for t, s in zip(problem.posterior, problem.proposal, strict=True)]
    for group in itertools.product(range(problem.size), repeat=group_size):
        probability = math.prod(problem.proposal[y] for y in group)
        for y in group:
            law[y] += probability * alpha[y] / sum(alpha[other] for other in group)
    return law


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_flow_without_baseline_ends_at_the_resampling_law_and_not_at_the_posterior(group_size: int) -> None:
    problem = as_floats(generic())
    schedule = dataclasses.replace(LONG, group_size=group_size)
    end = np.exp(exact_flow(problem, "snis", schedule, record_every=3000).log_policy[-1, 0])
    law = sampling_importance_resampling(problem, group_size)
    assert end == pytest.approx(law, abs=1e-9)
    assert abs(end - problem.posterior).max() > 0.01
    assert sum(law * np.log(law / np.array(problem.proposal))) <= math.log(group_size)


def test_dpo_sft_has_no_end_but_leaves_the_prior_ever_further_behind() -> None:
    problem = sampled_problem(5, 1.0, 2)
    path = exact_flow(problem, "dpo_sft", dataclasses.replace(LONG, group_size=2), record_every=500)
    assert (np.diff(path.kl_to_prior[:, 0]) > 0).all()
    assert path.kl_to_target[-1, 0] > 2 * path.kl_to_target[:, 0].min()
    assert path.expected_reward[-1, 0] > float(at_posterior(problem).expected_reward[0, 0]) + 0.5


def at_posterior(problem: CategoricalProblem) -> Trajectory:
    return Trajectory(problem, np.array([0]), np.log(np.array(problem.posterior, float))[None, None])


# noise in the reward


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.0])
def test_lasting_noise_moves_the_end_to_the_noisy_posterior_within_tanh_of_half_its_size(epsilon: float) -> None:
    problem = as_floats(generic())
    error = epsilon * np.array([1.0, -1.0, -1.0, 1.0])
    told = np.log(np.array(problem.goodness)) + error
    schedule = Schedule(4000, 3.0, 4, 64, steps_per_phase=500, groups_per_batch=16, is_proposal_updated=False)
    path = fit(problem, "brain", schedule, seed=5, judge=lambda y, generator: told[y], record_every=4000)
    weight = np.array(problem.prior) * np.exp(told)
    assert np.exp(path.log_policy[-1, 0]) == pytest.approx(weight / weight.sum(), abs=1e-6)
    distance = path.total_variation_to_target[-1, 0]
    assert 0.3 * math.tanh(epsilon / 2) < distance <= math.tanh(epsilon / 2) + 1e-6


def test_the_bound_on_the_noise_is_sharp() -> None:
    epsilon, tilt = 1.0, math.exp(-1.0) / (math.exp(-1.0) + 1)
    problem = CategoricalProblem([0.5, 0.5], [tilt, 1 - tilt], [0.5, 0.5], [0.5, 0.5])
    told = np.log(np.array(problem.goodness)) + epsilon * np.array([1.0, -1.0])
    path = fit(problem, "brain", Schedule(400, 1.0, 4), seed=1, judge=lambda y, generator: told[y], record_every=400)
    assert path.total_variation_to_target[-1, 0] == pytest.approx(math.tanh(epsilon / 2), abs=1e-9)


# seeds, records, measures, mistakes


def test_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    problem = sampled_problem(8, 1.0, 0)
    runs = [fit(problem, "brain", Schedule(12, 1.0, 4), seed=seed, replicas=3).log_policy for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])
    assert not np.allclose(runs[0][-1, 0], runs[0][-1, 1])


def test_records_are_made_at_the_start_at_every_multiple_and_at_the_end() -> None:
    path = fit(sampled_problem(8, 1.0, 0), "brain", Schedule(13, 1.0, 4), seed=1, record_every=5)
    assert path.step.tolist() == [0, 5, 10, 13]
    assert path.log_policy.shape == (4, 1, 8)


def test_recording_seldom_changes_nothing_else() -> None:
    problem = sampled_problem(8, 1.0, 0)
    often, seldom = (fit(problem, "brain", Schedule(13, 1.0, 4), seed=1, record_every=n) for n in (1, 13))
    assert np.array_equal(often.log_policy[-1], seldom.log_policy[-1])


def test_the_completions_that_the_estimator_sees_are_as_many_as_the_schedule_says() -> None:
    schedule = Schedule(23, 1.0, 4, groups_per_phase=6, steps_per_phase=5, groups_per_batch=2)
    told = []
    problem = sampled_problem(8, 1.0, 0)

    def judge(completions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        told.append(completions.size)
        return np.zeros(completions.shape)

    fit(problem, "brain", schedule, seed=1, judge=judge)
    assert sum(told) == schedule.completions == 5 * 6 * 4


def test_measures_equal_their_definitions() -> None:
    problem = as_floats(generic())
    path = fit(problem, "brain", Schedule(3, 1.0, 4), seed=1, replicas=2)
    policy, target = np.exp(path.log_policy[-1, 1]), np.array(problem.posterior)
    assert path.kl_to_target[-1, 1] == pytest.approx(sum(target * np.log(target / policy)), abs=1e-14)
    assert path.reverse_kl_to_target[-1, 1] == pytest.approx(sum(policy * np.log(policy / target)), abs=1e-14)
    assert path.kl_to_prior[-1, 1] == pytest.approx(sum(policy * np.log(policy / np.array(problem.prior))), abs=1e-14)
    assert path.expected_goodness[-1, 1] == pytest.approx(policy @ np.array(problem.goodness), abs=1e-14)
    assert path.expected_reward[-1, 1] == pytest.approx(policy @ np.log(np.array(problem.goodness)), abs=1e-14)
    assert path.total_variation_to_target[-1, 1] == pytest.approx(abs(policy - target).sum() / 2, abs=1e-14)
    other = path.measured_against(problem.with_policy(problem.prior))
    assert np.array_equal(other.log_policy, path.log_policy)


def test_divergence_stays_finite_where_a_probability_underflows() -> None:
    problem = CategoricalProblem([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    path = Trajectory(problem, np.array([0]), np.array([[[0.0, -2000.0]]]))
    assert path.kl_to_target.item() == pytest.approx(1000 + math.log(0.5))


@settings(max_examples=30)
@given(problem=problems(smallest_goodness=0), distance=st.sampled_from([1.0, 1e-4, 1e-8, 1e-12]))
def test_divergences_are_never_negative_and_keep_their_digits_near_the_target(
    problem: CategoricalProblem, distance: float
) -> None:
    problem = as_floats(problem)
    with np.errstate(divide="ignore"):
        log_target = np.log(np.array(problem.posterior))
    log_policy = log_target + distance * np.cos(np.arange(problem.size))
    path = Trajectory(problem, np.array([0]), log_policy[None, None])
    with mpmath.workdps(40):
        gaps = [(mpmath.exp(y), mpmath.mpf(x) - mpmath.mpf(y)) for x, y in zip(log_policy, log_target, strict=True)]
        expected = float(sum(p * (mpmath.exp(gap) - 1 - gap) for p, gap in gaps if p))
    assert path.kl_to_target.item() == pytest.approx(expected, rel=1e-12, abs=0)
    for values in (path.kl_to_target, path.reverse_kl_to_target, path.kl_to_prior):
        assert values.item() >= 0


def test_completions_that_the_prior_excludes_are_left_alone() -> None:
    problem = CategoricalProblem([0.5, 0.5, 0.0], [0.2, 0.8, 1.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0])
    path = fit(problem, "brain", Schedule(200, 1.0, 4), seed=1, record_every=200)
    assert np.exp(path.log_policy[-1, 0]) == pytest.approx([0.2, 0.8, 0.0], abs=1e-6)
    assert np.isfinite(path.kl_to_target).all()
    assert np.isfinite(path.kl_to_prior).all()
    assert np.isfinite(path.expected_reward).all()


def test_mean_and_error_are_over_replicas_and_one_replica_has_no_error() -> None:
    mean, error = mean_and_error(np.array([[1.0, 3.0, 5.0]]))
    assert mean.item() == 3
    assert error.item() == pytest.approx(2 / math.sqrt(3))
    assert math.isnan(mean_and_error(np.array([[1.0]]))[1].item())


@pytest.mark.parametrize(
    "change, word",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"steps_per_phase": 0}, "steps_per_phase"),
        ({"groups_per_batch": True}, "groups_per_batch"),
        ({"groups_per_batch": 17}, "groups_per_batch is 17, more than the 16"),
        ({"groups_per_phase": -1}, "groups_per_phase"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_name(change: dict[str, float], word: str) -> None:
    with pytest.raises(ProblemError, match=word):
        dataclasses.replace(Schedule(10, 1.0, 4), **change)


def test_a_schedule_holds_plain_numbers_whatever_kind_was_given() -> None:
    schedule = Schedule(np.int64(3), Fraction(1, 2), np.int32(4), is_proposal_updated=np.False_)
    assert schedule == Schedule(3, 0.5, 4, is_proposal_updated=False)
    assert [type(value) for value in dataclasses.astuple(schedule)] == [int, float, *[int] * 4, *[bool] * 2]


@pytest.mark.parametrize("told", [lambda y: np.zeros(3), lambda y: np.full(y.shape, np.nan), lambda y: 0.0])
def test_a_judge_that_does_not_answer_for_each_completion_is_refused(told: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ProblemError, match=r"judge told .*one log-goodness, not NaN, for each.*\(1, 16, 4\)"):
        fit(as_floats(generic()), "brain", Schedule(1, 1.0, 4), seed=0, judge=lambda y, generator: told(y))


@pytest.mark.parametrize("train", [lambda *a: fit(*a, seed=0), exact_flow], ids=["fit", "exact_flow"])
def test_a_rate_that_leaves_float64_is_named_and_counts_as_overflow(train: Callable[..., Trajectory]) -> None:
    for error in (ProblemError, OverflowError):
        with pytest.raises(error, match=r"learning_rate is 1e\+300: after step 1 a logit is .*; lower the rate"):
            train(as_floats(generic()), "brain", Schedule(5, 1e300, 4))


def test_a_flow_whose_policy_loses_a_completion_names_the_rate() -> None:
    with pytest.raises(ProblemError, match=r"learning_rate is 10000: after step \d+ policy\[\d\] is too small"):
        exact_flow(as_floats(generic()), "brain", Schedule(200, 1e4, 4))


def test_training_refuses_fractions_that_float64_takes_for_zero() -> None:
    half, tiny = [Fraction(1, 2)] * 2, Fraction(1, 10**400)
    for train in (lambda *a: fit(*a, seed=0), exact_flow):
        with pytest.raises(ProblemError, match=r"\[0\] is 1/.*float64"):
            train(CategoricalProblem(half, [tiny, 1], half, half), "brain", Schedule(1, 1.0, 4))
        with pytest.raises(ProblemError, match=r"policy\[0\] is 1/.*float64"):
            train(CategoricalProblem(half, [1, 1], [tiny, 1 - tiny], half), "brain", Schedule(1, 1.0, 4))


def test_training_refuses_what_it_cannot_use_by_name() -> None:
    problem = as_floats(generic())
    schedule = Schedule(1, 1.0, 4)
    for train in (lambda *a, **k: fit(*a, seed=0, **k), exact_flow):
        with pytest.raises(ProblemError, match="no estimator 'brian'"):
            train(problem, "brian", schedule)
        with pytest.raises(ProblemError, match="group_size is 1"):
            train(problem, "brain", dataclasses.replace(schedule, group_size=1))
        with pytest.raises(ProblemError, match="pairs"):
            train(problem, "dpo_sft", dataclasses.replace(schedule, group_size=3))
        with pytest.raises(ProblemError, match="record_every"):
            train(problem, "brain", schedule, record_every=0)
    with pytest.raises(ProblemError, match="replicas"):
        fit(problem, "brain", schedule, seed=0, replicas=0)

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from toy import (
    ESTIMATORS,
    CategoricalProblem,
    ProblemError,
    brain_power,
    exact_moments,
    rejection_cost,
    rejection_sample,
    sampled_moments,
)
from toy.sampling import completions_at
from toy_problems import as_floats, generic, normalized


@pytest.mark.parametrize("name", [*ESTIMATORS, "power"])
def test_sampled_moments_agree_with_the_exact_ones_within_their_error(name: str) -> None:
    chosen = brain_power(0.5) if name == "power" else name
    exact = exact_moments(as_floats(generic()), chosen, 4)
    found = sampled_moments(generic(), chosen, 4, draws=100_000, seed=20)
    assert (np.abs(found.mean - exact.mean) < 4.5 * found.mean_error).all()
    assert abs(found.variance - exact.variance) < 4.5 * found.variance_error
    assert abs(found.mse - exact.mse) < 4.5 * found.mse_error
    np.testing.assert_allclose(found.bias - exact.bias, found.mean - exact.mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["brain", "dpg", "dpo_sft"])
def test_standard_errors_are_the_spread_of_repeated_runs(name: str) -> None:
    exact = exact_moments(as_floats(generic()), name, 4)
    runs = [sampled_moments(generic(), name, 4, draws=500, seed=seed) for seed in range(400)]
    scores = {
        "mean": [(run.mean[0] - exact.mean[0]) / run.mean_error[0] for run in runs],
        "variance": [(run.variance - exact.variance) / run.variance_error for run in runs],
        "mse": [(run.mse - exact.mse) / run.mse_error for run in runs],
    }
    for values in scores.values():
        assert 0.85 < float(np.std(values)) < 1.15  # its own standard error is 0.035
        assert abs(np.mean(values)) < 0.25


def test_sampled_variance_has_no_bias_at_few_draws() -> None:
    exact = exact_moments(generic(), "dpg", 2)
    found = [sampled_moments(generic(), "dpg", 2, draws=3, seed=seed).variance for seed in range(3000)]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - float(exact.variance)) < 4.5 * error
    assert float(exact.variance) / 3 > 9 * error  # dividing by the number of draws would be seen


def test_the_seed_alone_decides_what_is_sampled() -> None:
    first, second, other = (sampled_moments(generic(), "brain", 4, 100, seed) for seed in (7, 7, 8))
    assert (first.mean == second.mean).all()
    assert first.variance == second.variance
    assert (first.mean != other.mean).any()


def test_completions_that_the_proposal_excludes_are_never_sampled() -> None:
    half = Fraction(1, 2)
    problem = CategoricalProblem((0, half, 0, half, 0), (1,) * 5, (0, half, 0, half, 0), (0, half, 0, half, 0))
    found = sampled_moments(problem, "dpg", 2, 1000, 0)
    assert found.mean_error[[0, 2, 4]].tolist() == [0, 0, 0]
    assert set(rejection_sample(problem, 1000, 0).accepted) == {1, 3}


def test_extreme_uniform_numbers_give_completions_that_are_possible() -> None:
    uniform = np.array([0.0, 0.6, 1 - 2**-53])
    assert completions_at(np.array([0.0, 0.5, 0.0, 0.5 - 1e-10, 0.0]), uniform).tolist() == [1, 3, 3]


def test_rejection_sample_follows_the_posterior_and_not_the_prior() -> None:
    draws, problem = 100_000, generic()
    frequency = np.bincount(rejection_sample(problem, draws, 3).accepted, minlength=4) / draws
    posterior = np.array(problem.posterior, float)
    error = np.sqrt(posterior * (1 - posterior) / draws)
    assert (np.abs(frequency - posterior) < 4.5 * error).all()
    assert (np.abs(frequency - np.array(problem.prior, float)) > 20 * error).any()


def test_cost_of_rejection_is_exact_and_is_what_the_sampler_pays() -> None:
    cost = rejection_cost(generic())
    assert cost == 1 / Fraction(28, 55)
    draws = 100_000
    paid = rejection_sample(generic(), draws, 4).proposals
    error = math.sqrt(draws * float(cost) * (float(cost) - 1))  # negative binomial
    assert abs(paid - draws * cost) < 4.5 * error


def test_cost_counts_the_best_completion_that_the_prior_can_give_only() -> None:
    problem = CategoricalProblem(
        normalized((1, 1, 0)), (Fraction(1, 8), Fraction(1, 4), 1), *[normalized((1, 1, 1))] * 2
    )
    assert rejection_cost(problem) == Fraction(4, 3)


def test_scaling_the_goodness_changes_neither_the_sample_nor_its_cost() -> None:
    problem = generic()
    halved = CategoricalProblem(problem.prior, [g / 2 for g in problem.goodness], problem.policy, problem.proposal)
    first, second = rejection_sample(problem, 50, 1), rejection_sample(halved, 50, 1)
    assert first.proposals == second.proposals
    assert (first.accepted == second.accepted).all()


def test_a_longer_sample_begins_with_the_shorter_one() -> None:
    short, long = (rejection_sample(generic(), draws, 5) for draws in (10, 3000))
    assert (long.accepted[:10] == short.accepted).all()
    assert short.proposals < long.proposals


def test_a_prior_without_bad_completions_costs_one_proposal_each() -> None:
    problem = CategoricalProblem(normalized((1, 2)), (Fraction(1, 2),) * 2, *[normalized((1, 2))] * 2)
    assert rejection_sample(problem, 17, 0).proposals == 17


@pytest.mark.parametrize("draws", [1, 0, 2.0, True])
def test_a_number_of_draws_that_makes_no_sense_is_refused(draws: object) -> None:
    with pytest.raises(ProblemError, match=r"draws is .*; it must be a whole number, at least 2"):
        sampled_moments(generic(), "brain", 2, draws, 0)


@pytest.mark.parametrize("seed", [-1, None, 1.5])
def test_a_seed_must_be_given_and_whole(seed: object) -> None:
    with pytest.raises(ProblemError, match=r"seed is .*; it must be a whole number, at least 0"):
        sampled_moments(generic(), "brain", 2, 10, seed)
    with pytest.raises(ProblemError, match="seed is"):
        rejection_sample(generic(), 1, seed)


@pytest.mark.parametrize("size, group_size, largest", [(4, 2, 25_000_000), (1000, 2, 100_000), (4, 1000, 100_000)])
def test_more_draws_than_memory_and_time_allow_are_refused_with_the_most_allowed(
    size: int, group_size: int, largest: int
) -> None:
    even = CategoricalProblem(*[np.full(size, 1 / size)] * 4)
    with pytest.raises(ProblemError, match=f"draws is {largest + 1};.* at most {largest}"):
        sampled_moments(even, "brain", group_size, largest + 1, 0)


def test_groups_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ProblemError, match="at least 2"):
        sampled_moments(generic(), "brain", 1, 10, 0)
    with pytest.raises(ProblemError, match="needs an even number"):
        sampled_moments(generic(), "dpo_sft", 3, 10, 0)


def test_a_hopeless_rejection_run_is_refused_with_its_cost() -> None:
    problem = CategoricalProblem((1e-12, 1 - 1e-12), (1, 0), (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(ProblemError, match=r"about 1e\+13 proposals would be needed; rejection_cost gives the cost"):
        rejection_sample(problem, 10, 0)

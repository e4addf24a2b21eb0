from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brain_core
from toy import (
    ESTIMATORS,
    CategoricalProblem,
    Estimator,
    ProblemError,
    brain_power,
    estimator,
    exact_moments,
    mean_gradient,
    multiset_count,
    self_normalized_kl,
    snkl_constant,
    weighted_self_normalized_kl,
)
from toy.exact import log_ratios
from toy_problems import as_floats, generic, mean_and_second_moment, normalized, problems

RATIONAL = [name for name, found in ESTIMATORS.items() if found.rational is not None]
UNBIASED = ["dpg", "gdc", "gdcpp", "importance_weighted_rloo"]
NOISELESS = ["brain", "brain_weighted", "gdcpp", "dpo_sft_iw"]
"""Those whose every coefficient is 0 where the policy is the target."""
SCALE_FREE = ["brain", "brain_argmax", "snis", "snis_uniform", "dpo_sft", "dpo_sft_iw"]
"""Those that need α and β only up to a factor."""

sizes = st.integers(2, 4)
ratios = st.lists(st.fractions(Fraction(1, 9), 9, max_denominator=9), min_size=4, max_size=4)


def as_array(values: object) -> np.ndarray:
    return np.array(values, dtype=float)


def by_brain_core(found: Estimator) -> Estimator:
    """Without the rational route: the same exact ratios go through brain_core, so that ties stay ties."""
    return replace(found, rational=None)


def in_logits(problem: CategoricalProblem, change: np.ndarray) -> CategoricalProblem:
    tilted = as_array(problem.policy) * np.exp(change)
    return problem.with_policy(tilted / tilted.sum())


def slope(value: Callable[[CategoricalProblem], float], problem: CategoricalProblem, step: float = 1e-4) -> np.ndarray:
    """Gradient in the policy's logits by differences of fourth order."""
    found = []
    for direction in np.eye(problem.size):
        one, two = (
            value(in_logits(problem, k * step * direction)) - value(in_logits(problem, -k * step * direction))
            for k in (1, 2)
        )
        found.append((8 * one - two) / (12 * step))
    return np.array(found)


def precise(values: Iterable[float | Fraction]) -> list[mpmath.mpf]:
    return [mpmath.mpf(Fraction(v).numerator) / Fraction(v).denominator for v in values]


def mean_by_definition(problem: CategoricalProblem, group_size: int, power: float, *, is_weighted: bool) -> float:
    """E[D(Y)] or E[Ā D(Y)] with 40 digits, over all ordered groups."""
    target, policy = (precise(ratio) for ratio in (problem.target_ratio, problem.policy_ratio))
    total = mpmath.mpf(0)
    for group in itertools.product(range(problem.size), repeat=group_size):
        mass = sum(target[y] for y in group) / group_size
        if mass == 0:
            continue
        a, b = ([ratio[y] ** mpmath.mpf(power) for y in group] for ratio in (target, policy))
        terms = (x / sum(a) * mpmath.log(x / sum(a) / (y / sum(b))) for x, y in zip(a, b, strict=True) if x)
        weight = mpmath.fprod(precise(problem.proposal[y] for y in group)) * (mass if is_weighted else 1)
        total += weight * sum(terms)
    return total


# moments


@pytest.mark.parametrize("group_size", [2, 4])
@pytest.mark.parametrize("name", [*RATIONAL, "power"])
def test_moments_are_those_of_the_sum_over_all_ordered_groups(name: str, group_size: int) -> None:
    problem, found = generic(), brain_power(3) if name == "power" else ESTIMATORS[name]
    target, policy = problem.target_ratio, problem.policy_ratio
    mean, second = mean_and_second_moment(
        problem, group_size, lambda group: found.rational([target[y] for y in group], [policy[y] for y in group])
    )
    moments = exact_moments(problem, found, group_size)
    assert moments.mean.tolist() == mean
    covariance = [[second[k][j] - mean[k] * mean[j] for j in range(4)] for k in range(4)]
    assert moments.covariance.tolist() == covariance
    assert moments.variance == sum(covariance[k][k] for k in range(4))
    bias = [mean[k] - problem.posterior[k] + problem.policy[k] for k in range(4)]
    assert moments.bias.tolist() == bias
    assert moments.mse == moments.variance + sum(value**2 for value in bias)


@given(problem=problems(), group_size=sizes, data=st.data())
def test_rational_route_equals_the_route_through_brain_core(
    problem: CategoricalProblem, group_size: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*RATIONAL, "power"]))
    found = brain_power(2) if name == "power" else ESTIMATORS[name]
    group_size += found.is_paired * (group_size % 2)
    exact, floating = (exact_moments(problem, route, group_size) for route in (found, by_brain_core(found)))
    scale = max(1.0, float(exact.mse))
    assert all(isinstance(value, Fraction) for value in (*exact.mean, *exact.covariance.flat, exact.mse))
    np.testing.assert_allclose(floating.mean, as_array(exact.mean), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(floating.covariance, as_array(exact.covariance), rtol=0, atol=1e-13 * scale)
    assert floating.mse == pytest.approx(float(exact.mse), abs=1e-13 * scale)


@pytest.mark.parametrize("name", RATIONAL)
@settings(max_examples=10)
@given(problem=problems(largest_size=3))
def test_both_routes_agree_where_the_target_excludes_completions(name: str, problem: CategoricalProblem) -> None:
    problem = replace(problem, goodness=[1, *[0] * (problem.size - 1)])
    routes = (ESTIMATORS[name], by_brain_core(ESTIMATORS[name]))
    exact, floating = (exact_moments(problem, route, 4) for route in routes)
    np.testing.assert_allclose(floating.mean, as_array(exact.mean), rtol=0, atol=1e-13 * max(1.0, float(exact.mse)))


def test_a_problem_of_floats_goes_through_brain_core() -> None:
    exact, floating = (exact_moments(p, "brain", 3) for p in (generic(), as_floats(generic())))
    assert floating.covariance.dtype == np.float64
    np.testing.assert_allclose(floating.covariance, as_array(exact.covariance), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", RATIONAL)
def test_both_routes_agree_on_every_group_of_the_generic_instance(name: str) -> None:
    problem, found = generic(), ESTIMATORS[name]
    log_target, log_policy = log_ratios(problem)
    for group in itertools.combinations_with_replacement(range(4), 4):
        index = list(group)
        ratios_of_group = ([ratio[y] for y in index] for ratio in (problem.target_ratio, problem.policy_ratio))
        exact = as_array(found.rational(*ratios_of_group))
        np.testing.assert_allclose(found.coefficients(log_target[index], log_policy[index]), exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", [*SCALE_FREE, "brain_weighted", "dpg", "gdcpp", "importance_weighted_rloo"])
def test_normalizer_and_leading_axes_pass_through_the_coefficients(name: str) -> None:
    found = ESTIMATORS[name]
    target, policy = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    batch = found.coefficients(target + 2.0, policy, np.full((3, 5), 2.0))
    rows = [[found.coefficients(target[i, j], policy[i, j]) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(batch, rows, rtol=1e-13, atol=1e-14)


@given(problem=problems(), group_size=sizes)
def test_plain_rloo_on_policy_is_unbiased_for_the_reverse_divergence(
    problem: CategoricalProblem, group_size: int
) -> None:
    on_policy = as_floats(problem.with_proposal(problem.policy))
    policy, target = as_array(on_policy.policy), as_array(on_policy.posterior)
    reward = np.log(target / policy)
    expected = policy * (reward - policy @ reward)  # −∇KL(policy ‖ target) in logits
    np.testing.assert_allclose(exact_moments(on_policy, "rloo", group_size).mean, expected, rtol=0, atol=1e-13)


@given(problem=problems(), group_size=sizes)
def test_mean_of_plain_rloo_is_the_covariance_of_score_and_log_ratio(
    problem: CategoricalProblem, group_size: int
) -> None:
    proposal, policy, target = (as_array(v) for v in (problem.proposal, problem.policy, problem.posterior))
    advantage = np.log(target / policy) - proposal @ np.log(target / policy)
    expected = proposal * advantage  # the score is e_y − q, and the advantage has mean 0
    np.testing.assert_allclose(exact_moments(problem, "rloo", group_size).mean, expected, rtol=0, atol=1e-13)


def test_moments_of_pairs_in_a_group_average_independent_pairs() -> None:
    two, eight = (exact_moments(generic(), "dpo_sft", size) for size in (2, 8))
    assert (eight.mean == two.mean).all()
    assert (eight.covariance * 4 == two.covariance).all()


# invariances


@given(problem=problems(smallest_goodness=0, largest_size=3), name=st.sampled_from(RATIONAL))
def test_mean_gradient_sums_to_zero_and_the_covariance_has_the_constants_as_kernel(
    problem: CategoricalProblem, name: str
) -> None:
    moments = exact_moments(problem, name, 2)
    assert sum(moments.mean) == 0
    assert not moments.covariance.sum(axis=0).any()


@given(problem=problems(largest_size=3), name=st.sampled_from(RATIONAL), factor=st.sampled_from([2, 3, 7]))
def test_scaling_the_goodness_changes_nothing(problem: CategoricalProblem, name: str, factor: int) -> None:
    scaled = [g / factor for g in problem.goodness]
    other = CategoricalProblem(problem.prior, scaled, problem.policy, problem.proposal)
    first, second = exact_moments(problem, name, 2), exact_moments(other, name, 2)
    assert (first.mean == second.mean).all()
    assert (first.covariance == second.covariance).all()


@given(problem=problems(smallest_goodness=0), name=st.sampled_from(RATIONAL), data=st.data())
def test_permuting_the_completions_permutes_the_moments(
    problem: CategoricalProblem, name: str, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(problem.size)))
    vectors = (problem.prior, problem.goodness, problem.policy, problem.proposal)
    permuted = CategoricalProblem(*([vector[k] for k in order] for vector in vectors))
    first, second = exact_moments(problem, name, 2), exact_moments(permuted, name, 2)
    assert (first.mean[order] == second.mean).all()
    assert (first.covariance[np.ix_(order, order)] == second.covariance).all()
    assert self_normalized_kl(problem, 3) == pytest.approx(self_normalized_kl(permuted, 3), rel=1e-12, abs=1e-16)


@given(target=ratios, policy=ratios, factor=st.fractions(Fraction(1, 9), 9), name=st.sampled_from(SCALE_FREE))
def test_scale_free_estimators_ignore_a_factor_on_either_ratio(
    target: list[Fraction], policy: list[Fraction], factor: Fraction, name: str
) -> None:
    rational = ESTIMATORS[name].rational
    assert rational([factor * a for a in target], policy) == rational(target, policy)
    assert rational(target, [factor * b for b in policy]) == rational(target, policy)


@given(target=ratios, policy=ratios, data=st.data())
def test_permuting_a_group_permutes_its_coefficients(
    target: list[Fraction], policy: list[Fraction], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([name for name in RATIONAL if not ESTIMATORS[name].is_paired]))
    order = data.draw(st.permutations(range(4)))
    rational = ESTIMATORS[name].rational
    permuted = rational([target[i] for i in order], [policy[i] for i in order])
    assert permuted == [rational(target, policy)[i] for i in order]


@given(problem=problems(largest_size=3), reference=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_misreporting_the_proposal_in_both_ratios_keeps_the_zero_at_the_target(
    problem: CategoricalProblem, reference: list[int]
) -> None:
    at_target = problem.with_policy(problem.posterior)
    for name in ("brain", "gdcpp", "brain_weighted"):
        for group in itertools.combinations_with_replacement(range(problem.size), 3):
            target = [at_target.posterior[y] / reference[y] for y in group]
            policy = [at_target.policy[y] / reference[y] for y in group]
            assert not any(ESTIMATORS[name].rational(target, policy))


@given(problem=problems(smallest_goodness=0), name=st.sampled_from(NOISELESS))
def test_a_policy_at_the_target_gets_no_gradient_and_no_noise(problem: CategoricalProblem, name: str) -> None:
    at_target = problem.with_policy(problem.posterior)
    floating = as_floats(problem)
    for moments in (exact_moments(p, name, 2) for p in (at_target, floating.with_policy(floating.posterior))):
        assert not moments.mean.any()
        assert not moments.covariance.any()


@pytest.mark.parametrize("name", ["dpg", "snis", "brain_argmax", "dpo_sft", "snis_uniform", "importance_weighted_rloo"])
def test_the_others_are_noisy_at_the_target(name: str) -> None:
    assert exact_moments(generic().with_policy(generic().posterior), name, 4).variance > 0


@given(problem=problems(smallest_goodness=0), name=st.sampled_from(UNBIASED), group_size=st.integers(2, 3))
def test_estimators_that_know_the_normalizer_are_exactly_unbiased(
    problem: CategoricalProblem, name: str, group_size: int
) -> None:
    assert exact_moments(problem, name, group_size).bias.tolist() == [Fraction(0)] * problem.size


@pytest.mark.parametrize("name", ["brain", "brain_weighted", "snis", "snis_uniform", "brain_argmax", "dpo_sft"])
def test_the_others_are_biased_on_the_generic_instance(name: str) -> None:
    assert exact_moments(generic(), name, 4).bias.any()


@given(problem=problems(largest_size=3), power=st.sampled_from([2, 3]))
def test_power_family_is_brain_on_powered_ratios_times_the_power(problem: CategoricalProblem, power: int) -> None:
    target, policy = (list(ratio) for ratio in (problem.target_ratio, problem.policy_ratio))
    powered = ESTIMATORS["brain"].rational([a**power for a in target], [b**power for b in policy])
    assert brain_power(power).rational(target, policy) == [power * value for value in powered]
    assert brain_power(1).rational(target, policy) == ESTIMATORS["brain"].rational(target, policy)


def test_a_power_that_is_not_whole_has_no_rational_route() -> None:
    assert brain_power(0.5).rational is None
    assert exact_moments(generic(), brain_power(0.5), 2).mean.dtype == np.float64


def test_a_custom_estimator_is_taken_as_it_is() -> None:
    half = Estimator("half", ESTIMATORS["brain"].coefficients, lambda a, b: [Fraction(1, 2)] * len(a))
    assert estimator(half) is half
    group = [Fraction(s) - q for s, q in zip(generic().proposal, generic().policy, strict=True)]
    assert exact_moments(generic(), half, 2).mean.tolist() == group


# objectives


@settings(max_examples=20)
@given(
    problem=problems(largest_size=3, smallest_goodness=0),
    group_size=st.integers(2, 4),
    power=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_divergences_equal_their_definition_over_all_groups(
    problem: CategoricalProblem, group_size: int, power: float
) -> None:
    with mpmath.workdps(40):
        plain = float(mean_by_definition(problem, group_size, power, is_weighted=False))
        weighted = float(mean_by_definition(problem, group_size, 1, is_weighted=True))
    assert self_normalized_kl(problem, group_size, power) == pytest.approx(plain, rel=1e-12, abs=2e-14)
    assert weighted_self_normalized_kl(problem, group_size) == pytest.approx(weighted, rel=0, abs=1e-14)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("power", [1.0, 2.5])
def test_divergence_keeps_its_digits_as_the_policy_nears_the_target(distance: float, power: float) -> None:
    problem = as_floats(generic())
    near = (1 - distance) * as_array(problem.posterior) + distance * as_array(problem.policy)
    problem = problem.with_policy(near / near.sum())
    with mpmath.workdps(40):
        exact = CategoricalProblem(*([Fraction(v) for v in normalized_floats(v)] for v in vectors_of(problem)))
        expected = float(mean_by_definition(exact, 3, power, is_weighted=False))
    assert self_normalized_kl(problem, 3, power) == pytest.approx(expected, rel=1e-15 / distance, abs=0)


def vectors_of(problem: CategoricalProblem) -> list[tuple[float, ...]]:
    return [problem.prior, problem.goodness, problem.policy, problem.proposal]


def normalized_floats(vector: tuple[float, ...]) -> list[Fraction]:
    exact = [Fraction(value) for value in vector]
    return exact if sum(exact) > Fraction(11, 10) else [value / sum(exact) for value in exact]


@pytest.mark.parametrize("group_size", [2, 5, 100_000])
def test_divergence_agrees_with_tanh_sinh_quadrature_of_its_plain_form(group_size: int) -> None:
    """The same integral by mpmath's tanh-sinh rule with 30 digits, in the plain form E[log B − log A + …]."""
    problem = generic()
    with mpmath.workdps(30):
        a, b, s = (precise(vector) for vector in (problem.target_ratio, problem.policy_ratio, problem.proposal))

    def mean(value: list[mpmath.mpf], ratio: list[mpmath.mpf], t: mpmath.mpf) -> mpmath.mpf:
        return sum(w * v * mpmath.exp(-t * r) for w, v, r in zip(s, value, ratio, strict=True))

    def integrand(t: mpmath.mpf) -> mpmath.mpf:
        one, f = [mpmath.mpf(1)] * 4, [x * mpmath.log(x / y) for x, y in zip(a, b, strict=True)]
        first = group_size * mean(f, a, t) * mean(one, a, t) ** (group_size - 1)
        return first + (mean(one, a, t) ** group_size - mean(one, b, t) ** group_size) / t

    with mpmath.workdps(30):
        breaks = [mpmath.mpf(x) / group_size for x in (0, 0.1, 1, 10, 100, 1000)]
        expected = mpmath.quad(integrand, [*breaks, mpmath.inf])
    assert self_normalized_kl(problem, group_size) == pytest.approx(float(expected), rel=5e-13, abs=0)


def test_divergence_of_a_thousand_completions_and_a_hundred_thousand_samples_approaches_its_expansion() -> None:
    rng = np.random.default_rng(0)
    policy, proposal, prior = rng.dirichlet(np.full(1000, 3.0), size=3)
    problem = CategoricalProblem.from_reward(prior, rng.normal(size=1000), policy, proposal)
    constant = snkl_constant(problem)
    gaps = [abs(n * (self_normalized_kl(problem, n) - problem.kl) - constant) for n in (1000, 10_000, 100_000)]
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)
    assert gaps[2] == pytest.approx(gaps[1] / 10, rel=0.2)


def test_constant_at_the_target_as_proposal_is_minus_half_chi_square() -> None:
    problem = generic().with_proposal(generic().posterior)
    chi_square = sum((q - p) ** 2 / p for q, p in zip(problem.policy, problem.posterior, strict=True))
    assert snkl_constant(problem) == pytest.approx(-float(chi_square) / 2, rel=1e-13)


@settings(max_examples=15)
@given(problem=problems(largest_size=4), group_size=st.integers(2, 3))
def test_mean_of_brain_is_minus_the_gradient_of_the_divergence(problem: CategoricalProblem, group_size: int) -> None:
    gradient = slope(lambda p: self_normalized_kl(p, group_size), as_floats(problem), 1e-3)
    np.testing.assert_allclose(as_array(exact_moments(problem, "brain", group_size).mean), -gradient, atol=1e-10)


@settings(max_examples=15)
@given(problem=problems(largest_size=4), group_size=st.integers(2, 3))
def test_mean_of_weighted_brain_is_minus_the_gradient_of_the_weighted_divergence(
    problem: CategoricalProblem, group_size: int
) -> None:
    gradient = slope(lambda p: weighted_self_normalized_kl(p, group_size), as_floats(problem), 1e-3)
    np.testing.assert_allclose(
        as_array(exact_moments(problem, "brain_weighted", group_size).mean), -gradient, atol=1e-10
    )


@pytest.mark.parametrize("power", [0.5, 2.0, 4.0])
def test_mean_of_the_power_family_is_minus_the_gradient_of_its_divergence(power: float) -> None:
    gradient = slope(lambda p: self_normalized_kl(p, 3, power), as_floats(generic()), 1e-3)
    np.testing.assert_allclose(as_array(exact_moments(generic(), brain_power(power), 3).mean), -gradient, atol=1e-10)


@given(problem=problems(smallest_goodness=0), group_size=sizes, name=st.sampled_from(["brain", "snis"]))
def test_mean_gradient_by_integrals_equals_enumeration(problem: CategoricalProblem, group_size: int, name: str) -> None:
    expected = as_array(exact_moments(problem, name, group_size).mean)
    np.testing.assert_allclose(mean_gradient(problem, group_size, name), expected, rtol=0, atol=2e-15)


def test_mean_gradient_of_large_groups_tends_to_minus_the_gradient_of_kl_with_the_stated_constant() -> None:
    problem = as_floats(generic())
    target, policy, proposal = (as_array(v) for v in (problem.posterior, problem.policy, problem.proposal))
    unbiased, size = target - policy, 100_000
    target_square, policy_square = target**2 / proposal, policy**2 / proposal
    limit = -(target_square - target * target_square.sum()) + (policy_square - policy * policy_square.sum())
    np.testing.assert_allclose(size * (mean_gradient(problem, size) - unbiased), limit, atol=1e-4)


@given(problem=problems(), group_size=st.integers(2, 12))
def test_weighted_divergence_never_decreases_with_the_group_and_stays_below_kl(
    problem: CategoricalProblem, group_size: int
) -> None:
    smaller, larger = (weighted_self_normalized_kl(problem, size) for size in (group_size, group_size + 1))
    assert smaller <= larger + 1e-14
    assert larger <= problem.kl + 1e-14


@given(problem=problems(), group_size=st.integers(2, 12))
def test_divergence_with_the_target_as_proposal_never_decreases_with_the_group_and_stays_below_kl(
    problem: CategoricalProblem, group_size: int
) -> None:
    problem = problem.with_proposal(problem.posterior)
    smaller, larger = (self_normalized_kl(problem, size) for size in (group_size, group_size + 1))
    assert smaller <= larger + 1e-14
    assert larger <= problem.kl + 1e-14


def test_plain_divergence_may_exceed_kl_and_fall_with_the_group() -> None:
    problem = CategoricalProblem((0.9, 0.09, 0.01), (1, 1, 1), (0.9, 0.01, 0.09), (0.1, 0.45, 0.45))
    found = [round(self_normalized_kl(problem, size), 4) for size in range(2, 9)]
    assert problem.kl == pytest.approx(0.175778, abs=1e-6)
    assert found == [0.7157, 0.9301, 0.9665, 0.9381, 0.8872, 0.8302, 0.7738]


def test_on_policy_divergence_may_exceed_kl_too() -> None:
    quarter = (0.25,) * 4
    problem = CategoricalProblem((0.49, 0.49, 0.01, 0.01), (1,) * 4, quarter, quarter)
    found = [self_normalized_kl(problem, size) for size in range(2, 9)]
    expected = [0.297554, 0.473245, 0.562403, 0.604182, 0.622062, 0.628451, 0.629565]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert problem.kl == pytest.approx(0.595108, abs=1e-6)


def test_divergence_misses_what_the_proposal_cannot_sample_only_if_the_problem_allows_it() -> None:
    with pytest.raises(ProblemError, match=r"proposal\[2\] is 0 where the policy has mass"):
        CategoricalProblem((0.5, 0.5, 0), (1, 1, 1), (0.25, 0.25, 0.5), (0.5, 0.5, 0))


def test_the_baseline_can_raise_the_variance() -> None:
    third = normalized((1, 1, 1))
    problem = CategoricalProblem(normalized((98, 1, 1)), (1, 1, 1), third, third)
    variance = {name: float(exact_moments(problem, name, 8).variance) for name in ("brain", "snis", "gdcpp")}
    assert {name: round(value, 4) for name, value in variance.items()} == {
        "brain": 0.0860,
        "snis": 0.0564,
        "gdcpp": 0.0784,
    }


def test_argmax_dpo_on_pairs_follows_the_reward_where_the_proposal_is_the_prior() -> None:
    problem = CategoricalProblem(generic().prior, generic().goodness, generic().policy, generic().prior)
    log_ratio = np.log(as_array(problem.policy) / as_array(problem.prior))
    mean = np.zeros(4)
    for winner, loser in itertools.product(range(4), repeat=2):
        if problem.goodness[winner] > problem.goodness[loser]:
            weight = 2 * float(problem.prior[winner] * problem.prior[loser])
            coefficients = brain_core.dpo_coefficients(log_ratio[[winner, loser]])
            mean += weight * (coefficients[0] * np.eye(4)[winner] + coefficients[1] * np.eye(4)[loser])
    np.testing.assert_allclose(as_array(exact_moments(problem, "dpo_sft", 2).mean), mean, atol=1e-15)


# what is refused


@pytest.mark.parametrize("group_size", [1, 0, -3, 2.0, True, None])
@pytest.mark.parametrize("question", [self_normalized_kl, weighted_self_normalized_kl, mean_gradient])
def test_a_group_size_below_two_is_refused(question: Callable[..., object], group_size: object) -> None:
    with pytest.raises(ProblemError, match=r"group_size is .*; it must be a whole number, at least 2"):
        question(generic(), group_size)
    with pytest.raises(ProblemError, match="at least 2"):
        exact_moments(generic(), "brain", group_size)


@pytest.mark.parametrize("name", ["dpo_sft", "dpo_sft_iw"])
def test_an_odd_group_is_refused_by_estimators_on_pairs(name: str) -> None:
    with pytest.raises(ProblemError, match=f"group_size is 3; {name} works on pairs and needs an even number"):
        exact_moments(generic(), name, 3)
    with pytest.raises(ProblemError, match="the group has 3 completions; pairs need an even number"):
        ESTIMATORS[name].coefficients(np.zeros(3), np.zeros(3))


def test_an_unknown_estimator_is_refused_with_the_list() -> None:
    with pytest.raises(
        ProblemError, match=r"there is no estimator 'ppo'; there are brain, brain_weighted, .*, dpo_sft_iw"
    ):
        exact_moments(generic(), "ppo", 2)
    with pytest.raises(ProblemError, match="mean_gradient knows 'brain' and 'snis', not 'dpg'"):
        mean_gradient(generic(), 2, "dpg")


def test_too_many_groups_are_refused_and_sampling_is_named() -> None:
    big = CategoricalProblem(*[[0.05] * 20] * 4)
    with pytest.raises(ProblemError, match=f"has {math.comb(39, 20)} different groups.*sampled_moments"):
        exact_moments(big, "brain", 20)
    assert multiset_count(20, 20) == math.comb(39, 20)


@pytest.mark.parametrize("size, group_size", [(2, 10**6), (3, 1000), (4, 10**15), (1000, 10**15)])
def test_groups_whose_size_makes_enumeration_hopeless_are_refused_at_once(size: int, group_size: int) -> None:
    even = CategoricalProblem(*[np.full(size, 1 / size)] * 4)
    with pytest.raises(ProblemError, match=f"K = {size}, n = {group_size} has .* different groups.*sampled_moments"):
        exact_moments(even, "brain", group_size)


def test_enumeration_in_fractions_has_a_limit_of_its_own() -> None:
    with pytest.raises(ProblemError, match="K = 4, n = 60 has 39711 different groups"):
        exact_moments(generic(), "brain", 60)
    assert exact_moments(as_floats(generic()), "snis", 60).mean == pytest.approx(mean_gradient(generic(), 60, "snis"))


@pytest.mark.parametrize("ask", [snkl_constant, lambda p: self_normalized_kl(p, 2), lambda p: mean_gradient(p, 2)])
@pytest.mark.parametrize("excess", [0, 1])
def test_ratios_that_float64_cannot_hold_are_refused_and_not_taken_for_zero(
    ask: Callable[[CategoricalProblem], object], excess: int
) -> None:
    half, tiny = normalized((1, 1)), Fraction(1, 10**400)
    vectors = [half, (1, 1), half, (tiny, 1 - tiny)] if excess else [half, (tiny, 1), (tiny, 1 - tiny), half]
    with pytest.raises(ProblemError, match=r"(proposal|\(posterior / proposal\))\[0\] is .*float64"):
        ask(CategoricalProblem(*vectors))


@pytest.mark.parametrize("power", [0, -1, math.inf, math.nan])
def test_a_power_must_be_positive_and_finite(power: float) -> None:
    with pytest.raises(ProblemError, match="it must be positive and finite"):
        brain_power(power)
    with pytest.raises(ProblemError, match="it must be positive and finite"):
        self_normalized_kl(generic(), 2, power)


def test_rloo_is_refused_where_the_target_excludes_what_the_proposal_samples() -> None:
    problem = CategoricalProblem((0.5, 0.5), (1, 0), (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(ProblemError, match="rloo needs target and policy positive wherever the proposal is"):
        exact_moments(problem, "rloo", 2)


@pytest.mark.parametrize(
    "power, message", [(1.0, "span 700 nats"), (2.0, "power is 2.0: the ratios span too many nats")]
)
def test_ratios_too_far_apart_for_the_integrals_are_refused(power: float, message: str) -> None:
    problem = CategoricalProblem.from_reward((0.5, 0.5), (0.0, -700.0), (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(ProblemError, match=message):
        self_normalized_kl(problem, 2, power)

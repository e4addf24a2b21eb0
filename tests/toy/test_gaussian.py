from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import roots_hermitenorm

import brain_core
from toy import ESTIMATORS, ProblemError, gaussian_moments, gaussian_self_normalized_kl

NAMES = [
    "brain",
    "brain_weighted",
    "snis",
    "snis_uniform",
    "dpg",
    "gdc",
    "gdcpp",
    "importance_weighted_rloo",
    "rloo",
]
UNBIASED = ["dpg", "gdc", "gdcpp", "importance_weighted_rloo"]

means = st.floats(-1.0, 2.0)


def log_ratios(y: np.ndarray, proposal_mean: float, policy_mean: float) -> tuple[np.ndarray, np.ndarray]:
    log_proposal = -((y - proposal_mean) ** 2) / 2
    return -(y**2) / 2 - log_proposal, -((y - policy_mean) ** 2) / 2 - log_proposal


@cache
def tensor_rule(group_size: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Hermite nodes (M, n) of independent standard normals, and weights (M,)."""
    node, weight = roots_hermitenorm(nodes)
    grid = np.stack(np.meshgrid(*[node] * group_size, indexing="ij"), axis=-1).reshape(-1, group_size)
    product = math.prod(np.meshgrid(*[weight / weight.sum()] * group_size, indexing="ij"))
    return grid, product.ravel()


def moments_by_tensor_rule(
    name: str, proposal_mean: float, policy_mean: float, group_size: int, nodes: int
) -> tuple[float, float]:
    """Mean and variance of the gradient with brain_core's coefficients, by an n-fold Gauss–Hermite rule."""
    grid, weight = tensor_rule(group_size, nodes)
    y = proposal_mean + grid
    coefficients = ESTIMATORS[name].coefficients(*log_ratios(y, proposal_mean, policy_mean))
    gradient = (coefficients * (y - policy_mean)).sum(axis=-1)
    mean = weight @ gradient
    return float(mean), float(weight @ (gradient - mean) ** 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("proposal_mean, policy_mean", [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.5, -0.4)])
@pytest.mark.parametrize("group_size, nodes", [(2, 200), (3, 64)])
def test_moments_agree_with_a_tensor_quadrature_of_brain_core(
    name: str, proposal_mean: float, policy_mean: float, group_size: int, nodes: int
) -> None:
    mean, variance = moments_by_tensor_rule(name, proposal_mean, policy_mean, group_size, nodes)
    found = gaussian_moments(name, proposal_mean, group_size, policy_mean)
    assert found.mean == pytest.approx(mean, abs=1e-8)
    assert found.variance == pytest.approx(variance, abs=1e-8)
    assert found.bias == found.mean + policy_mean
    assert found.mse == found.variance + found.bias**2


@pytest.mark.parametrize("proposal_mean, policy_mean", [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.5, -0.4)])
@pytest.mark.parametrize("group_size, nodes", [(2, 200), (3, 64)])
def test_divergence_agrees_with_a_tensor_quadrature_of_brain_core(
    proposal_mean: float, policy_mean: float, group_size: int, nodes: int
) -> None:
    grid, weight = tensor_rule(group_size, nodes)
    expected = weight @ brain_core.self_normalized_kl(*log_ratios(proposal_mean + grid, proposal_mean, policy_mean))
    assert gaussian_self_normalized_kl(proposal_mean, group_size, policy_mean) == pytest.approx(expected, abs=1e-8)


@given(proposal_mean=means, policy_mean=means, group_size=st.integers(2, 500))
def test_variances_of_dpg_gdcpp_and_rloo_are_products_of_gaussians(
    proposal_mean: float, policy_mean: float, group_size: int
) -> None:
    mu, theta = proposal_mean, policy_mean
    target_square = math.exp(mu**2) * (1 + (mu + theta) ** 2)
    policy_square = math.exp((theta - mu) ** 2) * (1 + (theta - mu) ** 2)
    product = math.exp(mu * (mu - theta)) * (1 + mu**2)
    expected = {
        "dpg": (target_square - theta**2) / group_size,
        "gdc": (target_square - theta**2) / group_size,
        "gdcpp": (target_square - 2 * product + policy_square - theta**2) / group_size,
        "rloo": 2 * theta**2 / (group_size - 1),
    }
    for name, variance in expected.items():
        found = gaussian_moments(name, mu, group_size, theta)
        assert found.variance == pytest.approx(variance, rel=1e-10, abs=1e-12)
    assert gaussian_moments("rloo", mu, group_size, theta).mean == pytest.approx(-theta, abs=1e-12)


@given(proposal_mean=means, policy_mean=means, name=st.sampled_from(UNBIASED), group_size=st.integers(2, 64))
def test_estimators_that_know_the_normalizer_are_unbiased(
    proposal_mean: float, policy_mean: float, name: str, group_size: int
) -> None:
    assert gaussian_moments(name, proposal_mean, group_size, policy_mean).bias == pytest.approx(0, abs=1e-12)


@settings(max_examples=20)
@given(proposal_mean=st.floats(-0.5, 1.5), group_size=st.integers(2, 64))
def test_brain_is_symmetric_between_target_and_policy(proposal_mean: float, group_size: int) -> None:
    here, there = (gaussian_moments("brain", mean, group_size) for mean in (proposal_mean, 1 - proposal_mean))
    assert here.mean == pytest.approx(there.mean, abs=1e-12)
    assert here.variance == pytest.approx(there.variance, abs=1e-12)


@settings(max_examples=20)
@given(proposal_mean=means, policy_mean=means, group_size=st.integers(2, 64))
def test_reflecting_the_line_reflects_the_mean(proposal_mean: float, policy_mean: float, group_size: int) -> None:
    for name in ("brain", "brain_weighted", "snis", "importance_weighted_rloo"):
        here = gaussian_moments(name, proposal_mean, group_size, policy_mean)
        there = gaussian_moments(name, -proposal_mean, group_size, -policy_mean)
        assert here.mean == pytest.approx(-there.mean, abs=1e-12)
        assert here.variance == pytest.approx(there.variance, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", ["brain", "brain_weighted", "gdcpp", "rloo"])
@pytest.mark.parametrize("proposal_mean", [-0.5, 0.0, 1.0])
def test_a_policy_at_the_target_gets_no_gradient_and_no_noise(name: str, proposal_mean: float) -> None:
    found = gaussian_moments(name, proposal_mean, 8, policy_mean=0.0)
    assert found.mean == pytest.approx(0, abs=1e-13)
    assert found.variance == pytest.approx(0, abs=1e-12)
    assert gaussian_self_normalized_kl(proposal_mean, 8, policy_mean=0.0) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("proposal_mean", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_mean_of_brain_is_minus_the_derivative_of_the_divergence(proposal_mean: float) -> None:
    def at(policy_mean: float) -> float:
        return gaussian_self_normalized_kl(proposal_mean, 8, policy_mean)

    one, two = (at(1 + step) - at(1 - step) for step in (1e-3, 2e-3))
    derivative = (8 * one - two) / 12e-3
    assert gaussian_moments("brain", proposal_mean, 8).mean == pytest.approx(-derivative, abs=1e-10)


def test_bias_of_brain_falls_as_one_over_n_with_the_stated_constant() -> None:
    figures = {1.0: 2.6456, 0.75: 1.5728, 0.5: 1.2818}
    for mu, figure in figures.items():
        limit = mu * math.exp(mu**2) + (1 - mu) * math.exp((1 - mu) ** 2)
        assert 256 * gaussian_moments("brain", mu, 256).bias == pytest.approx(figure, abs=5e-5)
        gaps = [limit - size * gaussian_moments("brain", mu, size).bias for size in (10_000, 100_000)]
        assert 0 < gaps[1] < gaps[0] / 8


def test_on_policy_weighted_brain_is_rloo_shrunk() -> None:
    for size in (2, 8, 32):
        weighted, leave_one_out = (
            gaussian_moments(name, 1.0, size) for name in ("brain_weighted", "importance_weighted_rloo")
        )
        factor = (size - 1) / size
        assert weighted.mean == pytest.approx(-factor, abs=1e-12)
        assert weighted.variance == pytest.approx(factor**2 * leave_one_out.variance, rel=1e-12)


@pytest.mark.parametrize(
    "one, other, proposal_mean",
    [("snis", "dpg", 0.0), ("brain", "brain_weighted", 0.0), ("brain", "snis_uniform", 1.0)],
)
def test_estimators_coincide_where_the_proposal_makes_a_ratio_constant(
    one: str, other: str, proposal_mean: float
) -> None:
    for size in (2, 8, 64):
        first, second = gaussian_moments(one, proposal_mean, size), gaussian_moments(other, proposal_mean, size)
        assert first.mean == pytest.approx(second.mean, abs=1e-12)
        assert first.variance == pytest.approx(second.variance, abs=1e-12)


def test_brain_is_not_the_lowest_everywhere() -> None:
    """At the target as proposal plain DPG has the smaller variance, and the smaller error."""
    brain, dpg = gaussian_moments("brain", 0.0, 8), gaussian_moments("dpg", 0.0, 8)
    assert dpg.variance == pytest.approx(1 / 8, abs=1e-12)
    assert dpg.variance < brain.variance
    assert dpg.mse < brain.mse


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("proposal_mean", [0.2, 0.6])
def test_moments_of_eight_agree_with_sampled_groups_within_their_error(name: str, proposal_mean: float) -> None:
    draws = 50_000
    y = np.random.default_rng(8).normal(proposal_mean, 1.0, size=(draws, 8))
    gradient = (ESTIMATORS[name].coefficients(*log_ratios(y, proposal_mean, 1.0)) * (y - 1.0)).sum(axis=-1)
    found = gaussian_moments(name, proposal_mean, 8)
    assert abs(gradient.mean() - found.mean) < 5 * gradient.std() / math.sqrt(draws)
    squares = (gradient - gradient.mean()) ** 2
    assert abs(squares.mean() - found.variance) < 5 * squares.std() / math.sqrt(draws)


@pytest.mark.parametrize("group_size", [10**5, 10**7, 10**9])
@pytest.mark.parametrize("proposal_mean", [0.0, 0.5, 1.0])
def test_large_groups_keep_the_variances_that_are_known(group_size: int, proposal_mean: float) -> None:
    mu = proposal_mean
    target_square = math.exp(mu**2) * (1 + (mu + 1) ** 2)
    dpg, rloo = (gaussian_moments(name, mu, group_size) for name in ("dpg", "rloo"))
    assert dpg.variance == pytest.approx((target_square - 1) / group_size, rel=1e-6)
    assert rloo.variance == pytest.approx(2 / (group_size - 1), rel=1e-6)
    assert dpg.bias == pytest.approx(0, abs=1e-14)


def test_moments_of_large_groups_follow_their_expansions() -> None:
    """n · bias and n · variance differ from their limits by O(1/n), to where 1/n itself is rounding."""
    limit = math.exp(0.25)
    gaps = [size * gaussian_moments("brain", 0.5, size).bias - limit for size in (10**5, 10**6, 10**9)]
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=1e-3)
    assert gaps[2] == pytest.approx(0, abs=1e-6)
    for name in ("brain", "snis", "brain_weighted", "importance_weighted_rloo"):
        small, large = (size * gaussian_moments(name, 0.5, size).variance for size in (10**6, 10**9))
        assert large == pytest.approx(small, rel=1e-5)


def test_a_group_too_large_for_the_variance_is_refused() -> None:
    for question in (lambda *a: gaussian_moments("brain", *a), gaussian_self_normalized_kl):
        with pytest.raises(ProblemError, match=r"group_size is 1000000001; it may be at most 1e\+09"):
            question(0.5, 10**9 + 1)


@pytest.mark.parametrize("name", ["brain_argmax", "dpo_sft", "dpo_sft_iw", "ppo"])
def test_estimators_without_a_gaussian_form_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(ProblemError, match=f"the Gaussian toy has no estimator '{name}'; it has {', '.join(NAMES)}"):
        gaussian_moments(name, 0.5, 8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_means_that_are_not_numbers_are_refused(value: float) -> None:
    for question in (lambda *a: gaussian_moments("dpg", *a), gaussian_self_normalized_kl):
        with pytest.raises(ProblemError, match=r"proposal_mean is .*; it must be a finite number"):
            question(value, 8)
        with pytest.raises(ProblemError, match=r"policy_mean is .*; it must be a finite number"):
            question(0.0, 8, value)


@pytest.mark.parametrize("group_size", [1, 0, 2.5, True])
def test_a_group_size_below_two_is_refused(group_size: object) -> None:
    for question in (lambda *a: gaussian_moments("dpg", *a), gaussian_self_normalized_kl):
        with pytest.raises(ProblemError, match="at least 2"):
            question(0.0, group_size)


def test_a_proposal_too_far_off_is_refused() -> None:
    with pytest.raises(ProblemError, match=r"proposal_mean is 5.0; it must lie within 4 of 0.*and of 1.0"):
        gaussian_moments("brain", 5.0, 8)

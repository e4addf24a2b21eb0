"""Digits: against an 80-digit oracle, and the signs and sums that must hold at any magnitude."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import brain_core as bc
from brain_core.logspace import excess_over_linear

DIGITS = 80
LOG = st.floats(-1e4, 1e4)


def exact(values):
    return [mpmath.mpf(float(value)) for value in values]


def normalized(log_weights):
    largest = max(log_weights)
    weights = [mpmath.exp(x - largest) for x in log_weights]
    return [w / sum(weights) for w in weights]


def oracle(target, policy, power=1.0):
    """Coefficients and divergence of one group in 80 digits, from the given floats."""
    with mpmath.workdps(DIGITS):
        a, b = (normalized([mpmath.mpf(power) * x for x in exact(z)]) for z in (target, policy))
        coefficients = [mpmath.mpf(power) * (x - y) for x, y in zip(a, b, strict=True)]
        return coefficients, sum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True))


def error(found, expected):
    """Largest deviation relative to the largest coefficient, where the oracle's digits can tell."""
    with mpmath.workdps(DIGITS):
        largest = max(max(abs(x) for x in expected), mpmath.mpf("1e-60"))
        return float(max(abs(mpmath.mpf(float(x)) - y) for x, y in zip(found, expected, strict=True)) / largest)


def group_of(kind, seed):
    """Log-ratios of one group: far apart, nearly equal, nearly equal up to a constant, or of one tiny gap."""
    rng = np.random.default_rng(seed)
    size, scale = int(rng.choice([2, 5, 32])), 10 ** rng.uniform(0, 4)
    policy = rng.normal(size=size) * scale
    match kind:
        case "far apart":
            return rng.normal(size=size) * scale, policy
        case "near, spread":
            return policy + rng.normal(size=size) * 10 ** rng.uniform(-6, -3), policy
        case "near, large":
            policy = 10 ** rng.uniform(3, 4) * rng.choice([-1, 1]) + rng.normal(size=size)
            return policy + rng.normal(size=size) * 10 ** rng.uniform(-6, -3), policy
        case "near, up to a constant":
            policy = 1e3 + rng.normal(size=size)
            return policy + rng.normal(size=size) * 10 ** rng.uniform(-6, -3) + rng.uniform(-1e4, 1e4), policy
        case _:
            policy = rng.normal(size=size) * 10
            return policy + rng.normal(size=size) * 10 ** rng.uniform(-2, 2), policy


KINDS = ["far apart", "near, spread", "near, large", "near, up to a constant", "moderate"]


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_agree_with_80_digits(backend, kind):
    for seed in range(25):
        target, policy = group_of(kind, seed)
        found = backend.numpy(bc.brain_coefficients(backend.array(target), backend.array(policy)))
        assert error(found, oracle(target, policy)[0]) < 1e-11, seed


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_agrees_with_80_digits_relative_to_itself(backend, kind):
    for seed in range(25):
        target, policy = group_of(kind, seed)
        found = float(bc.self_normalized_kl(backend.array(target), backend.array(policy)))
        expected = oracle(target, policy)[1]
        assert expected < 1e-60 or abs(found / expected - 1) < 1e-11, seed


@pytest.mark.parametrize("power", [0.05, 7.0])
@pytest.mark.parametrize("kind", KINDS)
def test_powers_keep_the_digits(kind, power):
    for seed in range(25):
        target, policy = group_of(kind, seed)
        coefficients, divergence = oracle(target, policy, power)
        assert error(bc.brain_coefficients(target, policy, power=power), coefficients) < 1e-11
        found = float(bc.self_normalized_kl(target, policy, power=power))
        assert divergence < 1e-60 or abs(found / divergence - 1) < 1e-11


def test_naive_difference_of_softmaxes_fails_where_ours_does_not():
    """The premise of the test above: near the optimum at this magnitude the textbook formula has no digits left."""
    target, policy = group_of("near, up to a constant", 3)
    naive = [np.exp(x - np.logaddexp.reduce(x)) for x in (target, policy)]
    expected = oracle(target, policy)[0]
    assert error(naive[0] - naive[1], expected) > 1e-10
    assert error(bc.brain_coefficients(target, policy), expected) < 1e-14


def test_gdcpp_keeps_its_digits_where_target_and_policy_nearly_agree():
    rng = np.random.default_rng(0)
    for _ in range(50):
        log_normalizer = float(rng.uniform(-1, 1) * 10 ** rng.uniform(-1, 4))
        policy = rng.normal(size=6) * 30
        target = policy + log_normalizer + rng.normal(size=6) * 1e-6
        found = bc.gdcpp_coefficients(target, policy, log_normalizer=log_normalizer)
        with mpmath.workdps(DIGITS):
            differences = [
                (mpmath.exp(x - mpmath.mpf(log_normalizer)) - mpmath.exp(y)) / 6
                for x, y in zip(exact(target), exact(policy), strict=True)
            ]
        assert error(found, differences) < 1e-11


def test_excess_over_linear_has_full_relative_precision():
    """The terms of the divergence are target · (x + exp(−x) − 1); a series takes over where that cancels."""
    magnitudes = np.concatenate([np.logspace(-12, 0, 200), np.linspace(0.04, 0.06, 50)])
    values = np.concatenate([magnitudes, -magnitudes, [2.0, 50.0, 1e4]])
    with mpmath.workdps(DIGITS):
        expected = [float(x + mpmath.expm1(-x)) for x in exact(values)]
    np.testing.assert_allclose(excess_over_linear(np, values), expected, rtol=1e-14)


def test_importance_weighted_rloo_keeps_its_digits_where_one_completion_dominates():
    target, policy = np.array([0.0, -40.0, -41.0]), np.array([30.0, 0.0, 0.0])
    found = bc.importance_weighted_rloo_coefficients(target, policy, log_normalizer=0.0)
    with mpmath.workdps(DIGITS):
        alpha, beta = ([mpmath.exp(x) for x in exact(z)] for z in (target, policy))
        expected = [(a - b * (sum(alpha) - a) / 2) / 3 for a, b in zip(alpha, beta, strict=True)]
    assert error(found, expected) < 1e-14


def test_dpo_keeps_its_digits_when_the_pair_is_already_far_apart(backend):
    found = backend.numpy(bc.dpo_coefficients(backend.array([[600.0, 0.0], [0.0, 1e4]])))
    np.testing.assert_allclose(found, [[np.exp(-600), -np.exp(-600)], [1, -1]], rtol=1e-12)


@pytest.mark.parametrize("function", [bc.brain_coefficients, bc.argmax_brain_coefficients])
@given(data=st.data())
def test_coefficients_of_a_group_sum_to_zero_at_any_magnitude(function, data):
    size = data.draw(st.integers(2, 12))
    target, policy = (data.draw(arrays(np.float64, (3, size), elements=LOG)) for _ in range(2))
    found = function(target, policy)
    assert np.isfinite(found).all()
    assert np.abs(found.sum(axis=-1)).max() <= 1e-12
    assert (bc.self_normalized_kl(target, policy) >= 0).all()


@given(data=st.data())
def test_coefficients_of_a_group_sum_to_zero_with_excluded_completions(data):
    size = data.draw(st.integers(2, 8))
    policy = data.draw(arrays(np.float64, size, elements=LOG))
    target = data.draw(arrays(np.float64, size, elements=st.one_of(LOG, st.just(-np.inf))))
    target[data.draw(st.integers(0, size - 1))] = data.draw(LOG)
    found = bc.brain_coefficients(target, policy)
    assert abs(found.sum()) <= 1e-12
    assert (found[np.isneginf(target)] <= 0).all()
    assert bc.self_normalized_kl(target, policy) >= 0


@given(
    arrays(np.float64, 6, elements=LOG),
    arrays(np.float64, 6, elements=st.floats(-1, 1)),
    st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3]),
    LOG,
)
def test_divergence_is_never_negative_near_the_optimum(policy, direction, size, constant):
    target = policy + size * direction + constant
    assert bc.self_normalized_kl(target, policy) >= 0
    assert abs(bc.brain_coefficients(target, policy).sum()) <= 1e-12


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
def test_sums_and_signs_hold_on_every_backend(backend, dtype, tolerance):
    rng = np.random.default_rng(1)
    for scale in (1.0, 1e2, 1e4):
        target, policy = (backend.array(x, dtype) for x in rng.normal(size=(2, 20, 8)) * scale)
        found = backend.numpy(bc.brain_coefficients(target, policy))
        assert np.abs(found.sum(axis=-1)).max() <= tolerance
        assert (backend.numpy(bc.self_normalized_kl(target, policy)) >= 0).all()


def test_gap_of_ten_thousand_nats_gives_one_hot_weights(backend):
    target, policy = backend.array([1e4, 0.0, -5.0]), backend.array([0.0, 1e4, -5.0])
    assert backend.numpy(bc.brain_coefficients(target, policy)).tolist() == [1, -1, 0]
    assert float(bc.self_normalized_kl(target, policy)) == pytest.approx(1e4, rel=1e-15)

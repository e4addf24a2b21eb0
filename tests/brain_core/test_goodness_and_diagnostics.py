"""Goodness models, log-ratios, effective sample sizes, entropies and drift."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import brain_core as bc

GROUP = st.integers(1, 8).flatmap(lambda size: arrays(np.float64, size, elements=st.floats(-1e4, 1e4)))


def test_bradley_terry_goodness_is_reward_over_temperature(backend):
    found = bc.bradley_terry_log_goodness(backend.array([1.0, -3.0, -np.inf]), temperature=4.0)
    assert backend.numpy(found).tolist() == [0.25, -0.75, -np.inf]


def test_bradley_terry_goodness_gives_the_preference_of_the_reward_model():
    """Equations 16 to 19: g_i / (g_i + g_j) = σ(r_i − r_j)."""
    reward = np.array([0.3, -1.2])
    goodness = np.exp(bc.bradley_terry_log_goodness(reward))
    assert goodness[0] / goodness.sum() == pytest.approx(1 / (1 + np.exp(-1.5)), rel=1e-15)


def test_logistic_goodness_keeps_full_relative_precision(backend):
    reward = np.array([-1e4, -700.0, -30.0, -1.0, 0.0, 1e-9, 2.0, 40.0, 700.0])
    found = backend.numpy(bc.logistic_log_goodness(backend.array(reward)))
    with mpmath.workdps(400):
        expected = [float(-mpmath.log1p(mpmath.exp(-mpmath.mpf(r)))) for r in reward]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert backend.numpy(bc.logistic_log_goodness(backend.array([-np.inf]))).tolist() == [-np.inf]


def test_logistic_and_bradley_terry_targets_differ():
    reward = np.array([-2.0, 0.0, 2.0, 4.0])
    logistic, bradley_terry = (
        bc.self_normalized_weights(model(reward)) for model in (bc.logistic_log_goodness, bc.bradley_terry_log_goodness)
    )
    np.testing.assert_allclose(bradley_terry, [0.0021, 0.0158, 0.1171, 0.8650], atol=1e-4)
    np.testing.assert_allclose(logistic, [0.048, 0.201, 0.355, 0.396], atol=1e-3)


def test_gradient_of_the_logistic_goodness_is_the_probability_of_the_opposite():
    import torch

    reward = torch.tensor([-800.0, -1.0, 0.0, 3.0, 800.0], dtype=torch.float64, requires_grad=True)
    bc.logistic_log_goodness(reward).sum().backward()
    np.testing.assert_allclose(reward.grad.numpy(), torch.sigmoid(-reward).detach().numpy(), rtol=1e-13)


def test_target_ratio_with_the_prior_as_proposal_is_the_goodness(backend):
    log_prior, log_goodness = backend.array([-300.0, -1234.5]), backend.array([0.1, -0.7])
    assert backend.numpy(bc.target_log_ratio(log_prior, log_prior, log_goodness)).tolist() == [0.1, -0.7]


def test_log_ratios_are_differences(backend):
    a, b, c = (backend.array(x) for x in ([-1.0, -2.0], [-4.0, -8.0], [0.5, 0.25]))
    assert backend.numpy(bc.policy_log_ratio(a, b)).tolist() == [3.0, 6.0]
    assert backend.numpy(bc.target_log_ratio(a, b, c)).tolist() == [3.5, 6.25]


@given(GROUP)
def test_weights_are_a_distribution(log_ratio):
    weights = bc.self_normalized_weights(log_ratio)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-14)


@given(GROUP)
def test_effective_sample_sizes_lie_between_one_and_the_group_size(log_ratio):
    kish, perplexity = (bc.effective_sample_size(log_ratio, kind=kind) for kind in ("kish", "perplexity"))
    assert 1 - 1e-12 <= kish <= perplexity * (1 + 1e-12)
    assert perplexity <= len(log_ratio) * (1 + 1e-12)


def test_effective_sample_sizes_of_known_weights(backend):
    log_ratio = backend.array(np.log([[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(backend.numpy(bc.effective_sample_size(log_ratio)), [8 / 3, 3], rtol=1e-15)
    found = backend.numpy(bc.effective_sample_size(log_ratio, kind="perplexity"))
    np.testing.assert_allclose(found, [2 * np.sqrt(2), 3], rtol=1e-15)
    np.testing.assert_allclose(backend.numpy(bc.weight_entropy(log_ratio)), np.log([2 * np.sqrt(2), 3]), rtol=1e-15)


def test_one_hot_weights_are_worth_one_completion(backend):
    log_ratio = backend.array([1e4, 0.0, -np.inf])
    for kind in ("kish", "perplexity"):
        assert float(bc.effective_sample_size(log_ratio, kind=kind)) == 1
    assert float(bc.weight_entropy(log_ratio)) == 0


@pytest.mark.parametrize("scale, expected", [(0.1, 7.93), (1.0, 4.68), (3.0, 2.08), (10.0, 1.26)])
def test_long_sequences_degenerate_to_one_hot_weights(scale, expected):
    log_ratio = np.random.default_rng(0).normal(size=(20_000, 8)) * scale
    sizes = bc.effective_sample_size(log_ratio)
    assert abs(sizes.mean() - expected) < 0.005 + 4 * sizes.std() / np.sqrt(len(sizes))


def test_total_variation_of_known_weights(backend):
    target, policy = backend.array(np.log([3.0, 1.0])), backend.array([0.0, 0.0])
    assert float(bc.total_variation(target, policy)) == pytest.approx(0.25, rel=1e-15)
    assert float(bc.total_variation(target, policy, power=2.0)) == pytest.approx(0.4, rel=1e-15)


def test_drift_sees_what_the_divergence_does_not(backend):
    log_policy = backend.array([-3.0, -5.0, -4.5])
    faded = log_policy + float(np.log(0.01))
    target = bc.policy_log_ratio(log_policy, log_policy)
    assert float(bc.self_normalized_kl(target, bc.policy_log_ratio(faded, log_policy))) < 1e-30
    assert float(bc.likelihood_drift(faded, log_policy)) == pytest.approx(np.log(0.01), rel=1e-14)

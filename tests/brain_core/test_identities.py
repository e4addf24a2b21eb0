"""Algebraic relations between the estimators: what the theory says is equal is equal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import brain_core as bc

GROUP = st.integers(2, 6).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, size, elements=st.floats(-20, 20)) for _ in range(2)])
)
CLOSE = {"rtol": 0, "atol": 1e-12}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@given(GROUP, st.sampled_from([0.1, 1.0, 2.5]))
def test_brain_is_power_times_the_difference_of_the_softmaxes(pair, power):
    target, policy = pair
    expected = power * (softmax(power * target) - softmax(power * policy))
    np.testing.assert_allclose(bc.brain_coefficients(target, policy, power=power), expected, **CLOSE)


@given(GROUP, st.floats(-5, 5), st.floats(-5, 5))
def test_a_constant_added_to_a_log_ratio_changes_nothing(pair, for_target, for_policy):
    target, policy = pair
    for function in (bc.brain_coefficients, bc.self_normalized_kl, bc.total_variation):
        np.testing.assert_allclose(
            function(target + for_target, policy + for_policy), function(target, policy), **CLOSE
        )


@given(GROUP, st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_coefficients(pair, random):
    target, policy = pair
    order = list(range(len(target)))
    random.shuffle(order)
    found = bc.brain_coefficients(target[order], policy[order])
    np.testing.assert_allclose(found, bc.brain_coefficients(target, policy)[order], **CLOSE)


@given(GROUP)
def test_policy_equal_to_the_target_has_zero_coefficients_exactly(pair):
    target, _ = pair
    assert not bc.brain_coefficients(target, target).any()
    assert bc.self_normalized_kl(target, target) == 0


@given(arrays(np.float64, 5, elements=st.integers(-1000, 1000).map(float)))
def test_reward_equal_to_the_log_ratio_of_policy_and_prior_has_zero_coefficients_exactly(reward):
    log_prior, log_proposal = np.arange(-5.0, 0), np.full(5, -3.0)
    target = bc.target_log_ratio(log_prior, log_proposal, bc.bradley_terry_log_goodness(reward))
    assert not bc.brain_coefficients(target, bc.policy_log_ratio(log_prior + reward, log_proposal)).any()


@given(GROUP)
def test_proposal_enters_only_through_both_weights_alike(pair):
    """T10: a misreported proposal moves the coefficients but not their zero."""
    target, reported = pair
    assert not bc.brain_coefficients(target + reported, target + reported).any()


@given(GROUP)
def test_power_on_a_group_is_the_same_as_scaling_both_log_ratios(pair):
    target, policy = pair
    np.testing.assert_allclose(
        bc.brain_coefficients(target, policy, power=3.0), 3 * bc.brain_coefficients(3 * target, 3 * policy), **CLOSE
    )
    np.testing.assert_allclose(
        bc.self_normalized_kl(target, policy, power=3.0), bc.self_normalized_kl(3 * target, 3 * policy), rtol=1e-9
    )


@given(GROUP)
def test_brain_with_the_prior_as_proposal_is_infonca(pair):
    """Cross-entropy from softmax(r / temperature) to softmax(power · log(q/p)), differentiated by hand."""
    reward, log_ratio_to_prior = pair
    power, temperature = 0.5, 2.0
    target = bc.bradley_terry_log_goodness(reward, temperature=power * temperature)
    expected = power * (softmax(reward / temperature) - softmax(power * log_ratio_to_prior))
    np.testing.assert_allclose(bc.brain_coefficients(target, log_ratio_to_prior, power=power), expected, **CLOSE)


@given(arrays(np.float64, 2, elements=st.floats(-20, 20)), st.sampled_from([0.1, 1.0]))
def test_argmax_brain_of_a_pair_is_dpo(policy, power):
    found = bc.argmax_brain_coefficients(np.array([1.0, 0.0]), policy, power=power)
    expected = bc.dpo_coefficients(policy, power=power)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    as_argmax = bc.argmax_brain_objective(np.array([1.0, 0.0]), policy, power=power)
    np.testing.assert_allclose(as_argmax, bc.dpo_objective(policy, power=power), rtol=1e-14, atol=1e-15)


@given(arrays(np.float64, 2, elements=st.floats(-20, 20)), st.floats(-10, 10))
def test_dpo_with_bradley_terry_probabilities_as_labels_is_brain_on_the_pair(policy, margin):
    power = 0.3
    reward = np.array([margin, 0.0])
    found = bc.soft_label_dpo_coefficients(policy, float(sigmoid(margin)), power=power)
    target = bc.bradley_terry_log_goodness(reward, temperature=power)
    np.testing.assert_allclose(found, bc.brain_coefficients(target, policy, power=power), **CLOSE)


def test_conservative_dpo_is_dpo_with_a_share_of_the_labels_flipped():
    policy = np.array([[0.3, -0.2], [1.0, 2.0]])
    flipped = bc.dpo_coefficients(policy[:, ::-1])[:, ::-1]
    expected = 0.9 * bc.dpo_coefficients(policy) + 0.1 * flipped
    np.testing.assert_allclose(bc.soft_label_dpo_coefficients(policy, 0.9), expected, **CLOSE)
    np.testing.assert_allclose(bc.soft_label_dpo_coefficients(policy, np.array([0.9, 0.9])), expected, **CLOSE)


def test_large_power_turns_the_target_into_argmax():
    target, policy = np.array([0.0, 1.0, 0.5]), np.array([0.2, -0.1, 0.4])
    found = bc.brain_coefficients(target * 1e5, policy)
    np.testing.assert_allclose(found, bc.argmax_brain_coefficients(target, policy), **CLOSE)


def test_argmax_splits_equally_over_ties():
    found = bc.argmax_brain_coefficients(np.array([2.0, 2.0, 1.0, 2.0]), np.zeros(4))
    np.testing.assert_allclose(found, [1 / 12, 1 / 12, -1 / 4, 1 / 12], **CLOSE)


@given(GROUP)
def test_small_power_gives_half_the_variance_of_the_log_ratio(pair):
    """The limit of the power family: D / power² tends to ½ Var(log α − log β)."""
    target, policy = pair
    power = 1e-6
    found = bc.self_normalized_kl(target, policy, power=power) / power**2
    np.testing.assert_allclose(found, np.var(target - policy) / 2, rtol=1e-3, atol=1e-20)


@given(GROUP)
def test_generalised_kl_is_brain_plus_the_term_of_the_total_masses(pair):
    """T8: gKL(α‖β) = A · D(Y) + gKL(A‖B)."""
    target, policy = pair
    total_target, total_policy = np.exp(target).sum(), np.exp(policy).sum()
    masses = total_target * np.log(total_target / total_policy) - total_target + total_policy
    found = len(target) * bc.gdcpp_objective(target, policy, log_normalizer=0.0)
    expected = total_target * bc.self_normalized_kl(target, policy) + masses
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14 * (total_target + total_policy))


@given(GROUP)
def test_weighted_brain_on_policy_is_importance_weighted_rloo_up_to_a_factor(pair):
    target, _ = pair
    zero, n = np.zeros_like(target), len(target)
    found = bc.weighted_brain_coefficients(target, zero, log_normalizer=0.5)
    rloo = bc.importance_weighted_rloo_coefficients(target, zero, log_normalizer=0.5)
    np.testing.assert_allclose(found, (n - 1) / n * rloo, rtol=1e-9, atol=1e-12 * np.exp(target).max())


def test_brain_on_policy_with_small_rewards_is_rloo_up_to_a_factor():
    reward = 1e-6 * np.array([1.0, -2.0, 4.0, 0.5])
    found = bc.brain_coefficients(reward, np.zeros(4))
    np.testing.assert_allclose(found, 0.75 * bc.rloo_coefficients(reward), rtol=1e-4)


def test_a_single_target_normaliser_or_one_per_group_is_the_same(backend, random_pair):
    target, policy = (backend.array(x) for x in random_pair())
    per_group = backend.array(np.full(5, 0.3))
    for function in (
        bc.weighted_brain_coefficients,
        bc.gdcpp_coefficients,
        bc.importance_weighted_rloo_coefficients,
        bc.dpg_objective,
        bc.gdcpp_objective,
    ):
        shared = function(target, policy, log_normalizer=0.3)
        found = function(target, policy, log_normalizer=per_group)
        np.testing.assert_allclose(backend.numpy(found), backend.numpy(shared), rtol=1e-14)


def plackett_luce_probability(weight, order):
    remaining = [weight[i] for i in order]
    return np.prod([remaining[k] / sum(remaining[k:]) for k in range(len(order))])


def test_plackett_luce_probabilities_of_all_rankings_sum_to_one():
    policy = np.array([0.3, -0.5, 1.0, 0.1])
    orders = [list(order) for order in itertools.permutations(range(4))]
    objective = bc.plackett_luce_objective(policy[np.array(orders)])
    np.testing.assert_allclose(np.exp(-objective).sum(), 1, rtol=1e-14)
    expected = [plackett_luce_probability(np.exp(policy), order) for order in orders]
    np.testing.assert_allclose(np.exp(-objective), expected, rtol=1e-13)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_kl_of_plackett_luce_rankings_bounds_the_self_normalized_kl(size):
    rng = np.random.default_rng(size)
    target, policy = rng.normal(size=(2, size))
    orders = np.array(list(itertools.permutations(range(size))))
    of_target, of_policy = (-bc.plackett_luce_objective(x[orders]) for x in (target, policy))
    kl = float(np.exp(of_target) @ (of_target - of_policy))
    divergence = float(bc.self_normalized_kl(target, policy))
    assert kl == pytest.approx(divergence, rel=1e-12) if size == 2 else kl > divergence


def test_plackett_luce_of_a_pair_is_dpo():
    policy = np.array([[0.3, -0.2], [1.0, 2.0]])
    np.testing.assert_allclose(
        bc.plackett_luce_coefficients(policy, power=0.5), bc.dpo_coefficients(policy, power=0.5), rtol=1e-14
    )


@given(GROUP)
def test_total_variation_is_bounded_by_the_spread_and_by_the_divergence(pair):
    """T6: TV ≤ tanh(Δ/4), and Pinsker's inequality."""
    target, policy = pair
    distance = bc.total_variation(target, policy)
    spread = np.ptp(target - policy)
    assert distance <= np.tanh(spread / 4) + 1e-15
    assert 2 * distance**2 <= bc.self_normalized_kl(target, policy) * (1 + 1e-12)


@given(GROUP)
def test_squared_coefficients_are_bounded_by_the_divergence(pair):
    """T6: Σ c² ≤ D(Y), so the noise vanishes with the objective."""
    target, policy = pair
    coefficients = bc.brain_coefficients(target, policy)
    assert (coefficients**2).sum() <= bc.self_normalized_kl(target, policy) * (1 + 1e-12)
    assert np.abs(coefficients).sum() <= 2


@given(GROUP)
def test_divergence_on_policy_is_the_deficit_of_the_perplexity_sample_size(pair):
    """T4g: with β = 1, D(Y) = log(G / effective sample size)."""
    target, _ = pair
    size = bc.effective_sample_size(target, kind="perplexity")
    found = bc.self_normalized_kl(target, np.zeros_like(target))
    np.testing.assert_allclose(found, np.log(len(target) / size), **CLOSE)


def test_groups_are_independent_of_their_batch(random_pair):
    target, policy = random_pair(shape=(2, 3, 4))
    rows = [[bc.brain_coefficients(target[i, j], policy[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(bc.brain_coefficients(target, policy), np.array(rows), rtol=1e-14, atol=1e-17)

"""The methods of other papers: what they are where they meet the paper's family, their kinks, limits and refusals."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import brain_core as bc

INF = np.inf
CLOSE = {"rtol": 0, "atol": 1e-12}
PAIR = arrays(np.float64, 2, elements=st.floats(-20, 20))
GROUP = st.integers(2, 6).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, size, elements=st.floats(-20, 20)) for _ in range(2)])
)
RANKED = st.integers(2, 6).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, size, elements=st.integers(-3, 3).map(float)) for _ in range(2)])
)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gradient(objective, *arguments, **options):
    """torch's gradient of an objective in its last argument."""
    import torch

    *data, variable = (torch.tensor(argument, dtype=torch.float64) for argument in arguments)
    variable.requires_grad_()
    objective(*data, variable, **options).sum().backward()
    return variable.grad.numpy()


PEERS = {
    "ipo": lambda t, v: bc.ipo_coefficients(v, power=0.5),
    "hinge": lambda t, v: bc.hinge_coefficients(v),
    "nca": bc.nca_coefficients,
    "exo": bc.exo_coefficients,
    "rank_hinge": bc.rank_hinge_coefficients,
    "advantage": lambda t, v: bc.group_relative_advantage(t),
    "clipped_surrogate": lambda t, v: bc.clipped_surrogate_coefficients(t, v, clip=0.3),
    "best_of_n": lambda t, v: bc.best_of_n_coefficients(t),
}


@pytest.mark.parametrize("name", PEERS)
def test_groups_are_independent_of_their_batch(random_pair, name):
    target, policy = random_pair(shape=(2, 3, 2))
    rows = [[PEERS[name](target[i, j], policy[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(PEERS[name](target, policy), np.array(rows), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", [name for name in PEERS if name not in ("ipo", "hinge")])
def test_permuting_a_group_permutes_its_coefficients(random_pair, name):
    target, policy = random_pair(shape=(6,))
    order = [3, 0, 5, 1, 4, 2]
    found = PEERS[name](target[order], policy[order])
    np.testing.assert_allclose(found, PEERS[name](target, policy)[order], rtol=0, atol=1e-14)


# IPO and hinge: pairs


def test_ipo_vanishes_exactly_where_the_lead_is_half_the_inverse_power(backend):
    pair = backend.array([[2.0, 0.0], [-7.0, -9.0], [3.0, 0.0]])
    found = backend.numpy(bc.ipo_coefficients(pair, power=0.25))
    np.testing.assert_array_equal(found, [[0, 0], [0, 0], [-2, 2]])
    np.testing.assert_array_equal(backend.numpy(bc.ipo_objective(pair, power=0.25)), [0, 0, 1])


@given(PAIR, st.sampled_from([0.1, 0.5, 2.0]))
def test_ipo_is_eight_times_the_limit_of_brain_for_small_power_with_a_lead_of_half_the_inverse_power(policy, power):
    """T11: D / s² → (lead of the target − lead of the policy)² / 8 as the exponent s → 0."""
    target, exponent = np.array([1 / (2 * power), 0.0]), 1e-6
    scale = 8 / exponent**2
    found = scale * bc.brain_coefficients(target, policy, power=exponent)
    np.testing.assert_allclose(found, bc.ipo_coefficients(policy, power=power), rtol=1e-4, atol=1e-9)
    value = scale * bc.self_normalized_kl(target, policy, power=exponent)
    np.testing.assert_allclose(value, bc.ipo_objective(policy, power=power), rtol=1e-4, atol=1e-9)


@given(PAIR, st.integers(-5, 5))
def test_a_constant_added_to_a_pair_changes_nothing(policy, constant):
    moved = policy + constant
    for function in (lambda v: bc.ipo_coefficients(v, power=0.3), lambda v: bc.ipo_objective(v, power=0.3)):
        np.testing.assert_allclose(function(moved), function(policy), rtol=0, atol=1e-10)
    np.testing.assert_allclose(bc.hinge_objective(moved), bc.hinge_objective(policy), **CLOSE)


def test_hinge_is_shut_at_the_margin_itself(backend):
    """power · Δ = 2, just below it and just above it, at a margin of 2."""
    pair = backend.array([[5.0, 1.0], [np.nextafter(5.0, 0), 1.0], [5.5, 1.0], [-900.0, 900.0]])
    found = backend.numpy(bc.hinge_coefficients(pair, margin=2.0, power=0.5))
    np.testing.assert_array_equal(found, [[0, 0], [0.5, -0.5], [0, 0], [0.5, -0.5]])
    values = backend.numpy(bc.hinge_objective(pair, margin=2.0, power=0.5))
    np.testing.assert_allclose(values, [0, 0, 0, 902], rtol=0, atol=1e-15)


def test_slope_of_the_hinge_at_the_margin_is_that_of_the_shut_side():
    assert not gradient(bc.hinge_objective, [[5.0, 1.0]], margin=2.0, power=0.5).any()


@given(PAIR)
def test_power_of_the_hinge_scales_the_lead(policy):
    scaled = bc.hinge_coefficients(4 * policy, margin=0.7)
    np.testing.assert_array_equal(bc.hinge_coefficients(policy, margin=0.7, power=4.0), 4 * scaled)


@given(PAIR)
def test_hinge_bounds_the_loss_of_dpo_up_to_log_2(policy):
    """max(0, 1 − x) ≤ 1 + log(1 + e^−x) and log(1 + e^−x) ≤ log 2 + max(0, −x) for every x."""
    dpo, hinge = bc.dpo_objective(policy), bc.hinge_objective(policy)
    assert hinge <= 1 + dpo + 1e-12
    assert dpo <= math.log(2) + hinge + 1e-12


# InfoNCA, NCA


@given(GROUP)
def test_infonca_is_brain_with_the_prior_as_proposal_as_an_objective_too(pair):
    """−Σ softmax(r / α) log softmax(β log(q/p)); the coefficients are held in test_identities."""
    reward, log_ratio_to_prior = pair
    power, temperature = 0.5, 2.0
    target = bc.bradley_terry_log_goodness(reward, temperature=power * temperature)
    expected = -np.sum(softmax(reward / temperature) * np.log(softmax(power * log_ratio_to_prior)))
    found = bc.brain_objective(target, log_ratio_to_prior, power=power)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)  # log of a plain softmax: 1e-16 off near 1


@given(GROUP, st.sampled_from([0.1, 1.0, 3.0]))
def test_nca_is_power_times_what_its_formula_says(pair, power):
    target, policy = pair
    expected = power * (softmax(target) * sigmoid(-power * policy) - sigmoid(power * policy) / len(target))
    np.testing.assert_allclose(bc.nca_coefficients(target, policy, power=power), expected, **CLOSE)


@given(GROUP, st.sampled_from([0.1, 1.0, 3.0]))
def test_nca_is_stationary_where_the_log_ratio_is_log_of_the_group_size_times_the_weight(pair, power):
    target, _ = pair
    policy = (np.log(len(target)) + target - np.logaddexp.reduce(target)) / power
    np.testing.assert_allclose(bc.nca_coefficients(target, policy, power=power), 0, rtol=0, atol=1e-14 * max(power, 1))


def test_fixed_point_of_nca_is_the_law_of_sampling_importance_resampling(problem):
    """T9: q(y) = n s(y) E[α̂₁ | y₁ = y], and not the target, makes the mean coefficient of every completion 0."""
    groups, size = np.array(problem.groups), problem.size
    weight = np.array([float(problem.probability(group)) for group in problem.groups])
    share = softmax(problem.log_alpha())
    resampled = np.array([np.sum(weight[:, None] * share * (groups == y)) for y in range(4)])
    assert resampled.sum() == pytest.approx(1, abs=1e-14)
    proposal = np.array([float(s) for s in problem.proposal])

    def mean_coefficients(policy):
        found = bc.nca_coefficients(problem.log_alpha(), np.log(policy / proposal)[groups])
        return [np.sum(weight[:, None] * found * (groups == y)) / size for y in range(4)]

    np.testing.assert_allclose(mean_coefficients(resampled), 0, rtol=0, atol=1e-16)
    assert np.abs(mean_coefficients(np.array([float(p) for p in problem.posterior]))).max() > 1e-3


def test_nca_far_below_the_prior_is_snis_and_far_above_it_pushes_all_down_alike(backend):
    target = backend.array([0.3, -1.0, 2.0])
    low, high = (backend.numpy(bc.nca_coefficients(target, backend.array([x] * 3), power=2.0)) for x in (-800.0, 800.0))
    np.testing.assert_allclose(low, 2 * backend.numpy(bc.snis_coefficients(target)), rtol=1e-15)
    np.testing.assert_allclose(high, -2 / 3, rtol=1e-15)
    value = float(bc.nca_objective(target, backend.array([800.0] * 3), power=2.0))
    assert value == pytest.approx(1600, rel=1e-15)


def test_nca_sees_the_absolute_likelihood_that_brain_does_not():
    target, policy = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    assert not bc.brain_coefficients(target, policy - 3).any()
    assert (bc.nca_coefficients(target, policy - 3) > 0.1).all()


# EXO


@given(GROUP, st.sampled_from([0.1, 1.0, 2.5]))
def test_exo_objective_is_the_divergence_with_its_arguments_exchanged(pair, power):
    target, policy = pair
    expected = bc.self_normalized_kl(power * policy, target)
    np.testing.assert_allclose(bc.exo_objective(target, policy, power=power), expected, rtol=1e-10, atol=1e-13)


@given(GROUP, st.floats(-5, 5), st.floats(-5, 5))
def test_exo_sums_to_zero_and_a_constant_changes_nothing(pair, for_target, for_policy):
    target, policy = pair
    found = bc.exo_coefficients(target, policy)
    assert abs(found.sum()) <= 1e-12
    np.testing.assert_allclose(bc.exo_coefficients(target + for_target, policy + for_policy), found, **CLOSE)


@given(GROUP)
def test_power_of_exo_is_on_the_policy_alone(pair):
    target, policy = pair
    found = bc.exo_coefficients(target, policy, power=4.0)
    np.testing.assert_array_equal(found, 4 * bc.exo_coefficients(target, 4 * policy))


@given(PAIR, PAIR)
def test_exo_of_a_pair_is_the_variance_of_its_label_times_the_missing_lead(target, policy):
    """σ(Δ) σ(−Δ) (Δ of the target − Δ): flat where the policy is sure, where DPO is not."""
    lead = policy[0] - policy[1]
    expected = sigmoid(lead) * sigmoid(-lead) * ((target[0] - target[1]) - lead)
    np.testing.assert_allclose(bc.exo_coefficients(target, policy), [expected, -expected], **CLOSE)


@given(GROUP)
def test_exo_with_the_policy_as_proposal_is_rloo_up_to_a_factor(pair):
    """T11: the reverse KL divergence has the policy gradient of its reward; exactly, whatever its size."""
    reward, _ = pair
    size = len(reward)
    found = bc.exo_coefficients(reward, np.zeros(size))
    np.testing.assert_allclose(found, (size - 1) / size * bc.rloo_coefficients(reward), rtol=0, atol=1e-13)


def test_exo_agrees_with_brain_to_first_order_near_the_optimum():
    rng = np.random.default_rng(0)
    policy, direction = rng.normal(size=(2, 5))
    gaps = []
    for step in (1e-2, 1e-3):
        exo, brain = (f(policy + step * direction, policy) for f in (bc.exo_coefficients, bc.brain_coefficients))
        gaps.append(np.abs(exo - brain).max())
        assert np.abs(exo).max() > step / 10
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)


def test_policy_equal_to_the_target_has_zero_exo_coefficients_exactly(backend):
    target = backend.array([0.1, -1234.5, 3.7])
    assert not backend.numpy(bc.exo_coefficients(target, target)).any()
    assert float(bc.exo_objective(target, target)) == 0


def exo_in_80_digits(target, policy):
    """β̂ (x − Σ β̂ x) with x = log α − log β, from the given floats."""
    with mpmath.workdps(80):
        weight = [mpmath.exp(mpmath.mpf(float(v)) - float(max(policy))) for v in policy]
        gap = [mpmath.mpf(float(t)) - float(v) for t, v in zip(target, policy, strict=True)]
        mean = sum(w * x for w, x in zip(weight, gap, strict=True)) / sum(weight)
        return np.array([float(w / sum(weight) * (x - mean)) for w, x in zip(weight, gap, strict=True)])


def exo_error(coefficients, offset, spread, gap, size, seed):
    """Largest deviation of a function from 80 digits relative to the group's largest coefficient."""
    rng = np.random.default_rng(seed)
    policy = spread * rng.normal(size=size)
    target = policy + gap * rng.normal(size=size) + offset
    expected = exo_in_80_digits(target, policy)
    return np.abs(coefficients(target, policy) - expected).max() / max(np.abs(expected).max(), 1e-60)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e9 / 7])
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("gap", [1e-6, 1.0, 1e4])
def test_exo_agrees_with_80_digits_relative_to_its_largest_coefficient(offset, spread, gap):
    for seed, size in enumerate((2, 5, 32) * 4):
        assert exo_error(bc.exo_coefficients, offset, spread, gap, size, seed) < 1e-11, seed


def test_exo_keeps_its_digits_near_the_optimum_in_every_library(backend):
    def coefficients(target, policy):
        return backend.numpy(bc.exo_coefficients(backend.array(target), backend.array(policy)))

    assert max(exo_error(coefficients, 1e3, 1.0, 1e-6, 5, seed) for seed in range(10)) < 1e-11


def test_plain_formula_of_exo_has_no_digits_near_the_optimum():
    """The premise of the test above."""

    def plain(target, policy):
        weight, gap = softmax(policy), np.log(softmax(target)) - np.log(softmax(policy))
        return weight * (gap - weight @ gap)

    assert min(exo_error(plain, 1e3, 1.0, 1e-6, 5, seed) for seed in range(10)) > 1e-11


def test_exo_asks_for_target_mass_where_the_policy_has_some(backend):
    policy = backend.array([[0.3, 0.1, 0.2], [0.3, 0.1, 0.2]])
    target = backend.array([[0.0, 0.5, 1.0], [0.0, -INF, 1.0]])
    for function in (bc.exo_coefficients, bc.exo_objective):
        with pytest.raises(bc.SupportError, match=r"target_log_ratio is -inf where policy_log_ratio is not.*\(1, 1\)"):
            function(target, policy)


def test_exo_never_seeks_what_the_policy_excludes(backend):
    """The policy's -inf is the limit of ever smaller policies, whether or not the target excludes it too."""
    policy, near = backend.array([0.3, -INF, 0.2]), backend.array([0.3, -800.0, 0.2])
    for left_out in (5.0, -INF):
        found = backend.numpy(bc.exo_coefficients(backend.array([0.0, left_out, 1.0]), policy))
        limit = backend.numpy(bc.exo_coefficients(backend.array([0.0, 5.0, 1.0]), near))
        assert found[1] == 0
        np.testing.assert_allclose(found, limit, rtol=0, atol=1e-14)


def test_exo_refuses_a_group_without_policy_mass_and_skips_one_without_target_mass(backend):
    nothing, some = backend.array([[0.0, 1.0], [-INF, -INF]]), backend.array([[0.5, 0.2], [0.1, 0.4]])
    for function in (bc.exo_coefficients, bc.exo_objective):
        with pytest.raises(bc.SupportError, match="policy_log_ratio is -inf throughout a group"):
            function(some, nothing)
        with pytest.raises(bc.SupportError, match="target_log_ratio is -inf throughout a group"):
            function(nothing, some)
        found = backend.numpy(function(nothing, some, on_empty="skip"))
        assert not found[1].any()
        np.testing.assert_allclose(found[0], function(np.array([0.0, 1.0]), np.array([0.5, 0.2])), rtol=1e-14)
        with pytest.raises(ValueError, match="on_empty is 'ignore'"):
            function(some, some, on_empty="ignore")


# RRHF


def counted(reward, log_policy):
    """The ranking loss and its coefficients, pair by pair."""
    loss, coefficients = 0.0, [0.0] * len(reward)
    for i, j in itertools.permutations(range(len(reward)), 2):
        if reward[i] < reward[j] and log_policy[i] > log_policy[j]:
            loss += log_policy[i] - log_policy[j]
            coefficients[i] -= 1
            coefficients[j] += 1
    return loss, coefficients


@given(RANKED)
def test_ranking_loss_counts_the_pairs_in_the_wrong_order(pair):
    loss, coefficients = counted(*pair)
    np.testing.assert_array_equal(bc.rank_hinge_coefficients(*pair), coefficients)
    assert bc.rank_hinge_objective(*pair) == loss


@given(RANKED)
def test_ranking_loss_knows_only_the_order_of_the_rewards_and_differences_of_the_policy(pair):
    reward, log_policy = pair
    expected = bc.rank_hinge_coefficients(reward, log_policy)
    assert expected.sum() == 0
    np.testing.assert_array_equal(bc.rank_hinge_coefficients(np.exp(reward) - 7, log_policy + 64), expected)


def test_ranking_in_the_right_order_with_ties_costs_nothing(backend):
    reward, log_policy = backend.array([2.0, 1.0, 1.0, 0.0]), backend.array([-1.0, -2.0, -3.0, -3.0])
    assert not backend.numpy(bc.rank_hinge_coefficients(reward, log_policy)).any()
    assert float(bc.rank_hinge_objective(reward, log_policy)) == 0


@given(PAIR)
def test_ranking_loss_of_a_pair_is_the_hinge_less_a_small_margin(log_policy):
    margin = 1e-6
    found = bc.rank_hinge_objective(np.array([1.0, 0.0]), log_policy)
    assert found <= bc.hinge_objective(log_policy, margin=margin) <= found + 1.001 * margin


def test_slope_of_the_ranking_loss_is_zero_where_the_policy_ties():
    assert not gradient(bc.rank_hinge_objective, [2.0, 1.0, 0.0], [-1.0, -1.0, -1.0]).any()


@pytest.mark.parametrize("value", [np.nan, INF, -INF])
def test_ranking_loss_needs_finite_input(backend, value):
    bad, good = backend.array([0.0, value]), backend.array([0.0, 1.0])
    for function in (bc.rank_hinge_coefficients, bc.rank_hinge_objective):
        with pytest.raises(ValueError, match=r"reward is .*first at index \(1,\)"):
            function(bad, good)
        with pytest.raises(ValueError, match=r"log_policy is .*first at index \(1,\)"):
            function(good, bad)


# PPO and GRPO


def test_surrogate_is_clipped_on_the_side_that_the_advantage_favours(backend):
    ratio = np.array([0.5, 0.7, 1.0, 1.3, 1.5])
    for advantage, kept in ((2.0, [1, 1, 1, 1, 0]), (-2.0, [0, 1, 1, 1, 1]), (0.0, [0] * 5)):
        arguments = backend.array([advantage] * 5), backend.array(np.log(ratio))
        found = backend.numpy(bc.clipped_surrogate_coefficients(*arguments, clip=0.4))
        np.testing.assert_allclose(found, advantage * ratio * kept, rtol=1e-15, atol=1e-300)
        value = float(bc.clipped_surrogate_objective(*arguments, clip=0.4))
        bounded = np.minimum(advantage * ratio, advantage * np.clip(ratio, 0.6, 1.4))
        assert value == pytest.approx(-bounded.sum(), rel=1e-14)


def test_clip_is_not_active_on_the_boundary_itself(backend):
    import array_api_compat

    policy, advantage = backend.array([0.25]), backend.array([3.0])
    ratio = array_api_compat.array_namespace(policy).exp(policy)
    boundary = float(ratio[0]) - 1
    found = bc.clipped_surrogate_coefficients(advantage, policy, clip=boundary)
    assert float(found[0]) == 3 * float(ratio[0])
    inside = bc.clipped_surrogate_coefficients(advantage, policy, clip=boundary * (1 - 1e-14))
    assert float(inside[0]) == 0
    if backend.name == "torch":
        slope = gradient(bc.clipped_surrogate_objective, [3.0], [0.25], clip=boundary)
        assert slope == pytest.approx(-float(found[0]), rel=1e-15)


@given(GROUP)
def test_surrogate_of_the_sampling_policy_is_the_advantage_and_so_grpo_is_rloo_up_to_a_factor(pair):
    reward, _ = pair
    advantage = bc.group_relative_advantage(reward, is_scaled=False)
    found = bc.clipped_surrogate_coefficients(advantage, np.zeros_like(reward), clip=0.2)
    np.testing.assert_array_equal(found, advantage)
    np.testing.assert_allclose(found, (len(reward) - 1) * bc.rloo_coefficients(reward), **CLOSE)


def test_surrogate_treats_tokens_one_by_one_and_sums_them(random_pair):
    advantage, log_ratio = random_pair(shape=(2, 3, 5), scale=0.4)
    advantage[..., 3:], log_ratio[..., 3:] = 0, 0
    found = bc.clipped_surrogate_coefficients(advantage, log_ratio, clip=0.2)
    one_by_one = [
        bc.clipped_surrogate_coefficients(a[None], v[None], clip=0.2)
        for a, v in zip(advantage.ravel(), log_ratio.ravel(), strict=True)
    ]
    np.testing.assert_allclose(found.ravel(), np.concatenate(one_by_one), rtol=1e-15)
    assert not found[..., 3:].any()
    whole = bc.clipped_surrogate_objective(advantage, log_ratio, clip=0.2)
    without_padding = bc.clipped_surrogate_objective(advantage[..., :3], log_ratio[..., :3], clip=0.2)
    np.testing.assert_allclose(whole, without_padding, rtol=1e-14)


def test_a_policy_that_excludes_what_was_sampled_has_the_limit(backend):
    advantage, policy = backend.array([1.0, -1.0]), backend.array([-INF, -INF])
    assert not backend.numpy(bc.clipped_surrogate_coefficients(advantage, policy, clip=0.2)).any()
    assert float(bc.clipped_surrogate_objective(advantage, policy, clip=0.2)) == pytest.approx(0.8, rel=1e-15)


@pytest.mark.parametrize("dtype, log_value, large", [("float64", 710.0, 1e300), ("float32", 89.0, 1e30)])
def test_ratios_and_products_that_overflow_are_named(backend, dtype, log_value, large):
    for function in (bc.clipped_surrogate_coefficients, bc.clipped_surrogate_objective):
        with pytest.raises(OverflowError, match=r"exp\(policy_log_ratio\) overflows .*first at index \(1,\)"):
            function(backend.array([0.0, 1.0], dtype), backend.array([0.0, log_value], dtype), clip=0.2)
        with pytest.raises(OverflowError, match=r"advantage times exp\(policy_log_ratio\) .*first at index \(1,\)"):
            function(backend.array([0.0, -large], dtype), backend.array([0.0, log_value / 2], dtype), clip=0.2)


def test_products_that_do_not_overflow_are_right_however_large_one_of_the_two_is(backend):
    advantage, log_ratio = backend.array([1e200, -1e200, -2.0]), backend.array([0.1, -0.1, 400.0])
    found = backend.numpy(bc.clipped_surrogate_coefficients(advantage, log_ratio, clip=0.2))
    np.testing.assert_allclose(found, [1e200 * np.exp(0.1), -1e200 * np.exp(-0.1), -2 * np.exp(400)], rtol=1e-13)


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (INF, r"\+inf"), (-INF, "-inf")])
def test_surrogate_names_what_is_not_finite(backend, value, word):
    bad, good = backend.array([0.0, value]), backend.array([0.0, 1.0])
    for function in (bc.clipped_surrogate_coefficients, bc.clipped_surrogate_objective):
        with pytest.raises(ValueError, match=rf"advantage is {word}; first at index \(1,\)"):
            function(bad, good, clip=0.2)
        if word != "-inf":
            with pytest.raises(ValueError, match=rf"policy_log_ratio is {word}; first at index \(1,\)"):
                function(good, bad, clip=0.2)
        with pytest.raises(ValueError, match=r"policy_log_ratio has shape \(1, 2\) and advantage \(2,\)"):
            function(good, good[None, ...], clip=0.2)


@pytest.mark.parametrize("value", [0.0, -0.1, np.nan, INF])
def test_clip_margin_and_power_must_be_positive_and_finite(value):
    pair = np.zeros(2)
    for function in (bc.clipped_surrogate_coefficients, bc.clipped_surrogate_objective):
        with pytest.raises(ValueError, match=r"clip is .* must be positive"):
            function(pair, pair, clip=value)
    for function in (bc.hinge_coefficients, bc.hinge_objective):
        with pytest.raises(ValueError, match=r"margin is .* must be positive"):
            function(pair, margin=value)
    for function in (bc.ipo_coefficients, bc.ipo_objective, bc.hinge_coefficients, bc.hinge_objective):
        with pytest.raises(ValueError, match=r"power is .* must be positive"):
            function(pair, power=value)
    for function in (bc.nca_coefficients, bc.nca_objective, bc.exo_coefficients, bc.exo_objective):
        with pytest.raises(ValueError, match=r"power is .* must be positive"):
            function(pair, pair, power=value)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 2e-6)])
def test_advantage_has_mean_0_and_sample_deviation_1(backend, dtype, tolerance):
    reward = np.random.default_rng(0).normal(size=(20, 5)) * 3 + 1
    found = backend.numpy(bc.group_relative_advantage(backend.array(reward, dtype)))
    np.testing.assert_allclose(found.mean(axis=-1), 0, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.std(axis=-1, ddof=1), 1, rtol=tolerance)
    expected = (reward - reward.mean(-1, keepdims=True)) / reward.std(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5 * tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equal_rewards_have_no_advantage_though_their_mean_rounds(backend, dtype):
    reward = backend.array([[0.1] * 3, [1e30] * 3, [0.7, 0.7, 0.7]], dtype)
    assert not backend.numpy(bc.group_relative_advantage(reward)).any()
    assert not backend.numpy(bc.group_relative_advantage(reward, is_scaled=False)).any()


def test_shift_and_scale_of_the_rewards_cancel_in_the_advantage(backend):
    reward = np.array([1.0, -2.0, 4.0, 0.5])
    expected = backend.numpy(bc.group_relative_advantage(backend.array(reward)))
    for scale in (2.0**-600, 2.0**-20, 2.0**600):
        np.testing.assert_array_equal(
            backend.numpy(bc.group_relative_advantage(backend.array(scale * reward))), expected
        )
    shifted = backend.numpy(bc.group_relative_advantage(backend.array(2.0**40 + reward)))
    np.testing.assert_array_equal(shifted, expected)
    flipped = backend.numpy(bc.group_relative_advantage(backend.array(-reward)))
    np.testing.assert_array_equal(flipped, -expected)


def test_advantage_of_a_pair_is_the_square_root_of_a_half_whatever_the_gap(backend):
    reward = backend.array([[3.0, 1.0], [0.0, 1e-9], [-1e5, 1e5]])
    found = backend.numpy(bc.group_relative_advantage(reward))
    np.testing.assert_allclose(found, np.sqrt(0.5) * np.array([[1, -1], [-1, 1], [-1, 1]]), rtol=1e-15)


def test_advantage_refuses_infinite_rewards_and_single_completions(backend):
    with pytest.raises(ValueError, match=r"reward is -inf; first at index \(1,\)"):
        bc.group_relative_advantage(backend.array([0.0, -INF]))
    with pytest.raises(ValueError, match="at least 2 completions"):
        bc.group_relative_advantage(backend.array([0.0]))


# Best of n


def test_best_of_n_shares_its_weight_among_those_that_tie(backend):
    reward = backend.array([[1.0, 4.0, 4.0, -INF], [-5.0, -7.0, -6.0, -9.0]])
    found = backend.numpy(bc.best_of_n_coefficients(reward))
    np.testing.assert_array_equal(found, [[0, 0.5, 0.5, 0], [1, 0, 0, 0]])
    log_policy = backend.array([[-1.0, -2.0, -4.0, -INF], [-8.0, -INF, -1.0, -1.0]])
    np.testing.assert_array_equal(backend.numpy(bc.best_of_n_objective(reward, log_policy)), [3, 8])


@given(GROUP)
def test_best_of_n_is_argmax_brain_without_the_baseline(pair):
    reward, policy = pair
    with_baseline = bc.argmax_brain_coefficients(reward, policy)
    np.testing.assert_allclose(
        bc.best_of_n_coefficients(reward), with_baseline + bc.self_normalized_weights(policy), **CLOSE
    )


def test_best_of_n_is_the_limit_of_snis_for_large_rewards():
    reward = np.array([0.3, 1.0, -0.5, 1.0])
    np.testing.assert_allclose(bc.snis_coefficients(1e5 * reward), bc.best_of_n_coefficients(reward), **CLOSE)


def test_best_of_one_is_that_one(backend):
    assert backend.numpy(bc.best_of_n_coefficients(backend.array([[-3.0], [2.0]]))).tolist() == [[1.0], [1.0]]


def test_best_of_n_refuses_what_has_no_best(backend):
    with pytest.raises(bc.SupportError, match="reward is -inf throughout a group"):
        bc.best_of_n_coefficients(backend.array([[0.0, 1.0], [-INF, -INF]]))
    for value, word in ((np.nan, "NaN"), (INF, r"\+inf")):
        with pytest.raises(ValueError, match=rf"reward is {word}; first at index \(1,\)"):
            bc.best_of_n_coefficients(backend.array([0.0, value]))
    with pytest.raises(bc.SupportError, match=r"policy_log_ratio is -inf at a best completion; first at index \(1,\)"):
        bc.best_of_n_objective(backend.array([0.0, 1.0]), backend.array([0.0, -INF]))

"""Which input raises, what the message says, and which input takes a limit."""

from __future__ import annotations

import numpy as np
import pytest

import brain_core as bc

INF, NAN = np.inf, np.nan
GROUP = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]

OF_PAIR = {
    "brain_coefficients": bc.brain_coefficients,
    "brain_objective": bc.brain_objective,
    "self_normalized_kl": bc.self_normalized_kl,
    "total_variation": bc.total_variation,
    "argmax_brain_coefficients": bc.argmax_brain_coefficients,
    "argmax_brain_objective": bc.argmax_brain_objective,
    "weighted_brain_coefficients": lambda t, v, **k: bc.weighted_brain_coefficients(t, v, log_normalizer=0.0, **k),
    "weighted_brain_objective": lambda t, v, **k: bc.weighted_brain_objective(t, v, log_normalizer=0.0, **k),
    "gdcpp_coefficients": lambda t, v: bc.gdcpp_coefficients(t, v, log_normalizer=0.0),
    "gdcpp_objective": lambda t, v: bc.gdcpp_objective(t, v, log_normalizer=0.0),
    "importance_weighted_rloo_coefficients": lambda t, v: bc.importance_weighted_rloo_coefficients(
        t, v, log_normalizer=0.0
    ),
    "importance_weighted_rloo_objective": lambda t, v: bc.importance_weighted_rloo_objective(t, v, log_normalizer=0.0),
    "snis_objective": bc.snis_objective,
    "dpg_objective": lambda t, v: bc.dpg_objective(t, v, log_normalizer=0.0),
    "gdc_objective": lambda t, v: bc.gdc_objective(t, v, log_normalizer=0.0),
    "nca_coefficients": bc.nca_coefficients,
    "nca_objective": bc.nca_objective,
}
OF_TARGET = {
    "snis_coefficients": bc.snis_coefficients,
    "dpg_coefficients": lambda t: bc.dpg_coefficients(t, log_normalizer=0.0),
    "gdc_coefficients": lambda t: bc.gdc_coefficients(t, log_normalizer=0.0),
}
OF_LOG_RATIO = {
    "self_normalized_weights": bc.self_normalized_weights,
    "effective_sample_size": bc.effective_sample_size,
    "weight_entropy": bc.weight_entropy,
}
OF_POLICY = {
    "plackett_luce_coefficients": bc.plackett_luce_coefficients,
    "plackett_luce_objective": bc.plackett_luce_objective,
}
OF_PREFERENCE = {
    "dpo_coefficients": bc.dpo_coefficients,
    "dpo_objective": bc.dpo_objective,
    "soft_label_dpo_coefficients": lambda v: bc.soft_label_dpo_coefficients(v, 0.7),
    "soft_label_dpo_objective": lambda v: bc.soft_label_dpo_objective(v, 0.7),
    "ipo_coefficients": lambda v: bc.ipo_coefficients(v, power=0.5),
    "ipo_objective": lambda v: bc.ipo_objective(v, power=0.5),
    "hinge_coefficients": bc.hinge_coefficients,
    "hinge_objective": bc.hinge_objective,
}
COMPARING = [name for name in OF_PAIR if not name.startswith(("gdc", "snis", "dpg"))]
SKIPPING = [
    "brain_coefficients",
    "brain_objective",
    "self_normalized_kl",
    "total_variation",
    "argmax_brain_coefficients",
    "argmax_brain_objective",
    "weighted_brain_coefficients",
    "weighted_brain_objective",
    "snis_objective",
    "nca_coefficients",
    "nca_objective",
]


def with_value(value):
    changed = np.array(GROUP)
    changed[1, 2] = value
    return changed


def named(functions):
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


@pytest.mark.parametrize("value", [NAN, INF])
@named(OF_PAIR)
def test_nan_and_plus_infinity_name_the_tensor_and_the_index(backend, function, value):
    bad, good = backend.array(with_value(value)), backend.array(GROUP)
    word = "NaN" if np.isnan(value) else r"\+inf"
    with pytest.raises(ValueError, match=rf"target_log_ratio is {word}; first at index \(1, 2\)"):
        function(bad, good)
    with pytest.raises(ValueError, match=rf"policy_log_ratio is {word}; first at index \(1, 2\)"):
        function(good, bad)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "functions, name",
    [(OF_TARGET, "target_log_ratio"), (OF_LOG_RATIO, "log_ratio"), (OF_POLICY, "policy_log_ratio")],
    ids=["target", "log_ratio", "policy"],
)
def test_nan_and_plus_infinity_in_a_single_input_are_named(backend, functions, name, value):
    word = "NaN" if np.isnan(value) else r"\+inf"
    for function in functions.values():
        with pytest.raises(ValueError, match=rf"^{name} is {word}; first at index \(1, 2\)"):
            function(backend.array(with_value(value)))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_rewards_and_pairs_must_be_finite(backend, value):
    bad, good = backend.array(with_value(value)), backend.array(GROUP)
    with pytest.raises(ValueError, match=r"reward is .*first at index \(1, 2\)"):
        bc.rloo_coefficients(bad)
    with pytest.raises(ValueError, match=r"reward is .*first at index \(1, 2\)"):
        bc.rloo_objective(bad, good)
    with pytest.raises(ValueError, match=r"policy_log_ratio is .*first at index \(1, 2\)"):
        bc.rloo_objective(good, bad)
    for function in OF_PREFERENCE.values():
        with pytest.raises(ValueError, match=r"policy_log_ratio is .*first at index \(1, 0\)"):
            function(backend.array([[0.0, 0.0], [value, 0.0]]))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("function", [bc.bradley_terry_log_goodness, bc.logistic_log_goodness])
def test_goodness_refuses_nan_and_plus_infinity(backend, function, value):
    with pytest.raises(ValueError, match=r"reward is .*first at index \(1, 2\)"):
        function(backend.array(with_value(value)))


def test_impossible_sample_raises_support_error(backend):
    bad, good = backend.array(with_value(-INF)), backend.array(GROUP)
    with pytest.raises(bc.SupportError, match=r"log_proposal is -inf.*first at index \(1, 2\)"):
        bc.target_log_ratio(good, bad, good)
    with pytest.raises(bc.SupportError, match=r"log_proposal is -inf.*first at index \(1, 2\)"):
        bc.policy_log_ratio(good, bad)
    with pytest.raises(bc.SupportError, match=r"log_start is -inf.*first at index \(1, 2\)"):
        bc.likelihood_drift(good, bad)


def test_prior_goodness_and_policy_may_exclude_a_completion(backend):
    bad, good = backend.array(with_value(-INF)), backend.array(GROUP)
    for ratio in (
        bc.target_log_ratio(bad, good, good),
        bc.target_log_ratio(good, good, bad),
        bc.target_log_ratio(bad, good, bc.bradley_terry_log_goodness(bad)),
        bc.policy_log_ratio(bad, good),
    ):
        assert np.isneginf(backend.numpy(ratio)).sum() == 1
    assert backend.numpy(bc.likelihood_drift(bad, good)).tolist() == [0.0, -INF]


def test_excluded_completion_gets_minus_the_policy_weight(backend):
    target, policy = backend.array([0.0, -INF, 1.0]), backend.array([0.3, 0.1, 0.2])
    found = backend.numpy(bc.brain_coefficients(target, policy))
    weight = backend.numpy(bc.self_normalized_weights(policy))
    assert found[1] == -weight[1]
    assert backend.numpy(bc.self_normalized_weights(target))[1] == 0
    assert np.isfinite(backend.numpy(bc.self_normalized_kl(target, policy)))


def test_excluded_completion_has_the_limit_of_ever_smaller_targets(backend):
    policy = backend.array([0.3, 0.1, 0.2])
    limit, near = backend.array([0.0, -INF, 1.0]), backend.array([0.0, -800.0, 1.0])
    for name in COMPARING:
        function = OF_PAIR[name]
        np.testing.assert_allclose(
            backend.numpy(function(limit, policy)), backend.numpy(function(near, policy)), rtol=0, atol=1e-14
        )


def test_excluded_completion_of_zero_policy_gets_zero(backend):
    target, policy = backend.array([0.0, -INF, 1.0]), backend.array([0.3, -INF, 0.2])
    for name, function in OF_PAIR.items():
        found = backend.numpy(function(target, policy))
        assert np.isfinite(found).all(), name
        if name.endswith("coefficients"):
            assert found[1] == 0, name
    without = bc.brain_coefficients(backend.array([0.0, 1.0]), backend.array([0.3, 0.2]))
    np.testing.assert_allclose(
        backend.numpy(bc.brain_coefficients(target, policy))[[0, 2]], backend.numpy(without), rtol=1e-14
    )


@named(OF_PAIR)
def test_policy_without_mass_where_the_target_has_some_raises_support_error(backend, function):
    target = backend.array(GROUP)
    with pytest.raises(bc.SupportError, match=r"policy_log_ratio is -inf where .*first at index \(1, 2\)"):
        function(target, backend.array(with_value(-INF)))


def test_argmax_asks_for_policy_mass_at_the_winner_only(backend):
    policy = backend.array([0.0, -INF, 0.0])
    found = bc.argmax_brain_coefficients(backend.array([2.0, 1.0, 0.0]), policy)
    assert backend.numpy(found).tolist() == [0.5, 0.0, -0.5]


def test_ranking_asks_for_policy_mass_everywhere_but_last(backend):
    for function in OF_POLICY.values():
        with pytest.raises(bc.SupportError, match=r"policy_log_ratio is -inf .*first at index \(1,\)"):
            function(backend.array([0.0, -INF, 0.0]))
        last = function(backend.array([0.0, 0.0, -INF]))
        assert np.isfinite(backend.numpy(last)).all()


@pytest.mark.parametrize("name", SKIPPING)
def test_group_without_target_mass_raises_or_contributes_nothing(backend, name):
    target = backend.array([[0.5, 0.2, 0.1], [-INF, -INF, -INF]])
    policy = backend.array([[0.1, 0.2, 0.3], [0.1, -INF, 0.3]])
    function = OF_PAIR[name]
    with pytest.raises(bc.SupportError, match=r"target_log_ratio is -inf throughout a group; first at index \(1, 0\)"):
        function(target, policy)
    found = backend.numpy(function(target, policy, on_empty="skip"))
    assert not found[1].any()
    np.testing.assert_allclose(found[0], backend.numpy(function(target[:1, ...], policy[:1, ...]))[0], rtol=1e-15)


def test_weights_of_a_group_without_mass_raise_or_are_zero(backend):
    empty = backend.array([[-INF, -INF], [0.0, 0.0]])
    for function in OF_LOG_RATIO.values():
        with pytest.raises(bc.SupportError, match="log_ratio is -inf throughout a group"):
            function(empty)
    with pytest.raises(bc.SupportError, match="target_log_ratio is -inf throughout a group"):
        bc.snis_coefficients(empty)
    half = [[0.0, 0.0], [0.5, 0.5]]
    assert backend.numpy(bc.self_normalized_weights(empty, on_empty="skip")).tolist() == half
    assert backend.numpy(bc.snis_coefficients(empty, on_empty="skip")).tolist() == half
    for kind in ("kish", "perplexity"):
        sizes = backend.numpy(bc.effective_sample_size(empty, kind=kind, on_empty="skip"))
        np.testing.assert_allclose(sizes, [0, 2], rtol=1e-15)


def test_group_without_target_mass_needs_no_option_where_nothing_is_normalised(backend):
    empty, policy = backend.array([-INF, -INF]), backend.array([0.0, 0.0])
    assert not backend.numpy(bc.dpg_coefficients(empty, log_normalizer=0.0)).any()
    assert backend.numpy(bc.gdcpp_coefficients(empty, policy, log_normalizer=0.0)).tolist() == [-0.5, -0.5]
    assert not backend.numpy(bc.importance_weighted_rloo_coefficients(empty, policy, log_normalizer=0.0)).any()


def test_duplicates_keep_their_multiplicity(backend):
    target, policy = backend.array([0.0, 0.0, 1.0]), backend.array([0.2, 0.2, 0.1])
    merged = bc.brain_coefficients(backend.array([np.log(2.0), 1.0]), backend.array([0.2 + np.log(2.0), 0.1]))
    found = backend.numpy(bc.brain_coefficients(target, policy))
    assert found[0] == found[1]
    np.testing.assert_allclose([found[0] + found[1], found[2]], backend.numpy(merged), rtol=1e-14)


@pytest.mark.parametrize("name", COMPARING)
def test_comparison_of_a_single_completion_raises(backend, name):
    one = backend.array([[0.0], [0.0]])
    with pytest.raises(ValueError, match=r"target_log_ratio has shape \(2, 1\): .* at least 2 completions"):
        OF_PAIR[name](one, one)


def test_ranking_or_leaving_one_out_of_a_single_completion_raises(backend):
    one = backend.array([0.0])
    for function in (bc.rloo_coefficients, *OF_POLICY.values(), *OF_PREFERENCE.values()):
        with pytest.raises(ValueError, match="at least 2 completions"):
            function(one)


def test_group_of_one_is_fine_where_nothing_is_compared(backend):
    one = backend.array([0.7])
    assert backend.numpy(bc.snis_coefficients(one)).tolist() == [1.0]
    np.testing.assert_allclose(backend.numpy(bc.dpg_coefficients(one, log_normalizer=0.7)), [1.0])
    np.testing.assert_allclose(backend.numpy(bc.gdcpp_coefficients(one, one, log_normalizer=0.7)), [1 - np.exp(0.7)])


def test_group_of_nothing_raises(backend):
    for nothing in (backend.array(np.zeros((2, 0))), backend.array(0.5)):
        for function in (*OF_TARGET.values(), *OF_LOG_RATIO.values()):
            with pytest.raises(ValueError, match="at least 1 completions"):
                function(nothing)


@named(OF_PAIR)
def test_shapes_must_agree(backend, function):
    with pytest.raises(ValueError, match=r"policy_log_ratio has shape \(3,\) and target_log_ratio \(2, 3\)"):
        function(backend.array(GROUP), backend.array(GROUP[0]))


def test_pairs_are_pairs(backend):
    for function in OF_PREFERENCE.values():
        with pytest.raises(ValueError, match="must be a pair"):
            function(backend.array(GROUP))


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_power_and_temperature_must_be_positive_and_finite(value):
    group, pair = np.array(GROUP), np.zeros(2)
    with pytest.raises(ValueError, match=r"temperature is .* must be positive"):
        bc.bradley_terry_log_goodness(group, temperature=value)
    for function in (bc.brain_coefficients, bc.brain_objective, bc.self_normalized_kl, bc.total_variation):
        with pytest.raises(ValueError, match=r"power is .* must be positive"):
            function(group, group, power=value)
    for function in (bc.dpo_coefficients, bc.plackett_luce_coefficients, bc.plackett_luce_objective):
        with pytest.raises(ValueError, match=r"power is .* must be positive"):
            function(pair, power=value)


def test_unknown_options_raise():
    group = np.array(GROUP)
    for call in (
        lambda: bc.brain_coefficients(group, group, on_empty="ignore"),
        lambda: bc.self_normalized_weights(group, on_empty="ignore"),
        lambda: bc.effective_sample_size(group, on_empty="ignore"),
    ):
        with pytest.raises(ValueError, match="on_empty is 'ignore'"):
            call()
    with pytest.raises(ValueError, match="kind is 'other'"):
        bc.effective_sample_size(group, kind="other")


def test_the_preference_of_a_single_pair_may_be_an_array_without_axes(backend):
    pair, preference = backend.array([0.0, 1.0]), backend.array(0.9)
    for function in (bc.soft_label_dpo_coefficients, bc.soft_label_dpo_objective):
        found, expected = function(pair, preference), function(pair, 0.9)
        np.testing.assert_allclose(backend.numpy(found), backend.numpy(expected), rtol=0, atol=1e-15)
        with pytest.raises(ValueError, match="preference is not a probability"):
            function(pair, backend.array(1.5))


def test_preference_must_be_a_probability(backend):
    pair = backend.array([[0.0, 0.0], [0.0, 0.0]])
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must be a probability"):
            bc.soft_label_dpo_coefficients(pair, value)
        with pytest.raises(ValueError, match=r"preference is not a probability; first at index \(1,\)"):
            bc.soft_label_dpo_coefficients(pair, backend.array([0.5, value]))


def test_normaliser_must_be_finite_and_one_per_group(backend):
    group = backend.array(GROUP)
    for value in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=r"log_normalizer is .* must be finite"):
            bc.dpg_coefficients(group, log_normalizer=value)
        with pytest.raises(ValueError, match=r"log_normalizer is .*first at index \(1,\)"):
            bc.dpg_coefficients(group, log_normalizer=backend.array([0.0, value]))
    with pytest.raises(ValueError, match=r"log_normalizer has shape \(3,\); one number per group has shape \(2,\)"):
        bc.dpg_coefficients(group, log_normalizer=backend.array([0.0, 0.0, 0.0]))


@pytest.mark.parametrize("dtype, log_value", [("float64", 710.0), ("float32", 89.0)])
def test_exponentials_that_overflow_name_the_tensor(backend, dtype, log_value):
    large, small = backend.array([0.0, log_value], dtype), backend.array([0.0, 0.0], dtype)
    with pytest.raises(OverflowError, match=r"exp\(target_log_ratio - log_normalizer\) .*first at index \(1,\)"):
        bc.dpg_coefficients(large, log_normalizer=0.0)
    assert np.isfinite(backend.numpy(bc.dpg_coefficients(large, log_normalizer=10.0))).all()
    for name in ("gdcpp_coefficients", "importance_weighted_rloo_coefficients"):
        with pytest.raises(OverflowError, match=r"exp\(policy_log_ratio\) .*first at index \(1,\)"):
            OF_PAIR[name](small, large)
    half = backend.array([0.0, 0.8 * log_value], dtype)
    with pytest.raises(OverflowError, match=r"target_log_ratio times policy_log_ratio overflows"):
        OF_PAIR["importance_weighted_rloo_coefficients"](half, half)
    batch = backend.array([[0.0, 0.0], [0.0, 0.8 * log_value], [0.0, 0.0]], dtype)
    with pytest.raises(OverflowError, match=r"target_log_ratio times .* overflows .*first at index \(1, 0\)"):
        OF_PAIR["importance_weighted_rloo_coefficients"](batch, batch)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16", "complex128"])
def test_other_dtypes_are_refused(backend, dtype):
    if backend.name == "array_api_strict" and dtype == "float16":
        pytest.skip("array_api_strict has no float16: nothing to refuse")
    wrong, right = backend.array([[0, 1]], dtype), backend.array([[0.0, 1.0]])
    with pytest.raises(TypeError, match=r"policy_log_ratio has dtype .*; pass float32 or float64"):
        bc.brain_coefficients(right, wrong)
    with pytest.raises(TypeError, match=r"log_policy has dtype"):
        bc.policy_log_ratio(wrong, right)
    with pytest.raises(TypeError, match=r"log_normalizer has dtype"):
        bc.dpg_coefficients(right, log_normalizer=wrong)


def test_bfloat16_is_refused():
    import torch

    half = torch.tensor([-1000.0, -1004.0], dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"log_policy has dtype torch.bfloat16; .*half precision cannot hold"):
        bc.policy_log_ratio(half, half)


def test_a_number_for_all_groups_may_come_as_an_array_without_axes(backend) -> None:
    ratio = backend.array(GROUP)
    expected = backend.numpy(bc.dpg_coefficients(ratio, log_normalizer=0.5))
    for one in (backend.array(0.5), np.float64(0.5)):
        np.testing.assert_array_equal(backend.numpy(bc.dpg_coefficients(ratio, log_normalizer=one)), expected)


def test_a_numpy_number_for_all_groups_keeps_the_dtype(backend) -> None:
    ratio = backend.array(GROUP, "float32")
    assert bc.dpg_coefficients(ratio, log_normalizer=np.float64(0.5)).dtype == ratio.dtype

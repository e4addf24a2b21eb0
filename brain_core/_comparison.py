"""The self-normalised target and policy weights of a group, and log of their ratio, to nearly full precision.

The difference of two softmaxes loses all digits once policy and target nearly agree, which is where training ends.
So log(α̂/β̂) is taken from d = log α − log β itself, relative to the completion of largest policy weight:
with x = d − d_anchor and S = Σ β̂ (eˣ − 1), log(α̂/β̂) = x − log(1 + S).
"""

from __future__ import annotations

from typing import NamedTuple

from brain_core._checks import INF
from brain_core._typing import Array, Namespace
from brain_core.logspace import exact_difference, excess_over_linear, log_softmax


class Comparison(NamedTuple):
    """Two sets of weights over a group, all arrays (…, G)."""

    target_weight: Array
    policy_weight: Array
    log_ratio: Array
    """log of target weight over policy weight, -inf where the target weight is exactly 0."""


def compare_weights(xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, power: float) -> Comparison:
    """The comparison of α̂ and β̂; no group may be empty, and the policy is positive where the target is."""
    is_in_target = target_log_ratio > -INF
    log_target = log_softmax(xp, target_log_ratio, power)
    log_policy = log_softmax(xp, policy_log_ratio, power)
    target, policy = xp.exp(log_target), xp.exp(log_policy)
    far = log_target - xp.where(is_in_target, log_policy, 0.0)
    anchor = xp.argmax(log_policy, axis=-1, keepdims=True)
    far_at_anchor = xp.take_along_axis(far, anchor, axis=-1)
    is_near = xp.abs(far_at_anchor) < 0.5
    offset = power * _offset_from_anchor(xp, target_log_ratio, policy_log_ratio, is_in_target, anchor)
    scaled_target = target * xp.exp(xp.where(is_near, -far_at_anchor, 0.0))
    excess = xp.sum(difference(xp, scaled_target, policy, offset), axis=-1, keepdims=True)
    near = offset - xp.log1p(xp.where(is_near, excess, 0.0))
    return Comparison(target, policy, xp.where(is_near, near, far))


def _offset_from_anchor(
    xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, is_in_target: Array, anchor: Array
) -> Array:
    """x = d − d_anchor, where the roundings of d = log α − log β are carried along; -inf where α is 0."""
    rounded, error = exact_difference(
        xp.where(is_in_target, target_log_ratio, 0.0), xp.where(is_in_target, policy_log_ratio, 0.0)
    )
    rounded_offset = rounded - xp.take_along_axis(rounded, anchor, axis=-1)
    error_offset = error - xp.take_along_axis(error, anchor, axis=-1)
    return xp.where(is_in_target, rounded_offset + error_offset, -INF)


def difference(xp: Namespace, target: Array, policy: Array, log_ratio: Array) -> Array:
    """target − policy from log(target / policy), without cancellation where that is small."""
    is_small = xp.abs(log_ratio) < 1
    return xp.where(is_small, policy * xp.expm1(xp.where(is_small, log_ratio, 0.0)), target - policy)


def kl_terms(xp: Namespace, target: Array, policy: Array, log_ratio: Array) -> Array:
    """target · log(target / policy) − target + policy, each term ≥ 0."""
    is_far_below = log_ratio < -1
    above = target * excess_over_linear(xp, xp.where(is_far_below, 0.0, log_ratio))
    finite = xp.where(log_ratio > -INF, log_ratio, 0.0)
    return xp.where(is_far_below, target * (finite - 1) + policy, above)


def weighted_deviation(xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array) -> Array:
    """β̂ (x − Σ β̂ x), x = log α − log β up to a constant; the target is positive where the policy is."""
    is_in_policy = policy_log_ratio > -INF
    weight = xp.exp(log_softmax(xp, policy_log_ratio))
    anchor = xp.argmax(weight, axis=-1, keepdims=True)
    offset = _offset_from_anchor(xp, target_log_ratio, policy_log_ratio, is_in_policy, anchor)
    offset = xp.where(is_in_policy, offset, 0.0)
    return weight * (offset - xp.sum(weight * offset, axis=-1, keepdims=True))

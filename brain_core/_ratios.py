"""What several estimators and their objectives are made of: importance ratios, leave-one-out means, labels, ranks."""

from __future__ import annotations

import math

from array_api_compat import device

from brain_core._checks import (
    INF,
    SupportError,
    check_log_values,
    check_on_empty,
    check_positive,
    checked_group_namespace,
    checked_pair,
    filled_where_empty,
    per_group,
    refuse,
    refuse_infinite,
    refuse_missing_policy,
    refuse_overflow,
)
from brain_core._typing import Array, Namespace, OnEmpty
from brain_core.logspace import exact_difference, log_softmax


def importance_ratio(xp: Namespace, target_log_ratio: Array, log_normalizer: Array | float) -> Array:
    """α of mean 1 under the proposal, or OverflowError."""
    log_ratio = target_log_ratio - per_group(xp, "log_normalizer", log_normalizer, target_log_ratio)
    refuse_overflow(xp, "target_log_ratio - log_normalizer", log_ratio)
    return xp.exp(log_ratio)


def policy_importance_ratio(xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array) -> Array:
    """β as it is, or OverflowError; SupportError where it is 0 and the target is not."""
    if check_log_values(xp, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio):
        refuse_missing_policy(xp, target_log_ratio, policy_log_ratio)
    refuse_overflow(xp, "policy_log_ratio", policy_log_ratio)
    return xp.exp(policy_log_ratio)


def normalized_log_ratio(
    xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, log_normalizer: Array | float
) -> Array:
    """log(α / β) of the normalised α, -inf where it is 0."""
    is_in_target = target_log_ratio > -INF
    rounded, error = exact_difference(
        xp.where(is_in_target, target_log_ratio, 0.0), per_group(xp, "log_normalizer", log_normalizer, target_log_ratio)
    )
    return xp.where(is_in_target, (rounded - policy_log_ratio) + error, -INF)


def mean_of_others(xp: Namespace, target: Array, policy: Array) -> Array:
    """Leave-one-out mean of α ≥ 0 within a group; OverflowError where its product with β might not be finite."""
    root = _root_of_largest(xp, target)
    headroom = (xp.max(policy, axis=-1, keepdims=True) / root) * (xp.max(target, axis=-1, keepdims=True) / root)
    refuse(xp, headroom >= 1, OverflowError, f"target_log_ratio times policy_log_ratio overflows {target.dtype}")
    size = target.shape[-1]
    position = xp.arange(size, device=device(target))
    others = xp.where(position != position[:, None], target[..., None, :], 0.0)
    return xp.sum(others, axis=-1) / (size - 1)


def _root_of_largest(xp: Namespace, array: Array) -> float:
    """The square root of the largest number of a dtype; its inverse, unlike that one's, is no subnormal number."""
    return math.sqrt(float(xp.finfo(array.dtype).max))


def argmax_log_ratio(xp: Namespace, name: str, values: Array) -> Array:
    """Log-ratios of a target with equal mass on the largest finite values of a group and none elsewhere."""
    check_log_values(xp, **{name: values})
    is_largest = values == xp.max(values, axis=-1, keepdims=True)
    return xp.where(is_largest & (values > -INF), xp.zeros_like(values), -INF)


def checked_lead(policy_log_ratio: Array, power: float) -> tuple[Namespace, Array]:
    """The array library, and Δ of each pair (…): the log-ratio of the first less that of the second."""
    xp = checked_group_namespace(2, policy_log_ratio=policy_log_ratio)
    if policy_log_ratio.shape[-1] != 2:
        raise ValueError(f"policy_log_ratio has shape {tuple(policy_log_ratio.shape)}; the last axis must be a pair")
    check_positive("power", power)
    refuse_infinite(xp, policy_log_ratio=policy_log_ratio)
    return xp, policy_log_ratio[..., 0] - policy_log_ratio[..., 1]


def checked_preference(
    policy_log_ratio: Array, preference: Array | float, power: float
) -> tuple[Namespace, Array, Array | float]:
    """The array library, power · Δ of each pair (…) and the probability that its first is preferred (…)."""
    xp, lead = checked_lead(policy_log_ratio, power)
    probability = per_group(xp, "preference", preference, policy_log_ratio)
    if isinstance(probability, (int, float)):
        if not 0 <= probability <= 1:
            raise ValueError(f"preference is {probability!r}; it must be a probability")
    else:
        probability = probability[..., 0] if probability.shape else probability
        refuse(xp, (probability < 0) | (probability > 1), ValueError, "preference is not a probability")
    return xp, power * lead, probability


def check_ranked(xp: Namespace, policy_log_ratio: Array) -> None:
    """Raise SupportError where the policy gives no mass to a completion that a ranking chooses."""
    if check_log_values(xp, policy_log_ratio=policy_log_ratio):
        refuse(xp, policy_log_ratio[..., :-1] == -INF, SupportError, "policy_log_ratio is -inf at a ranked completion")


def checked_reverse_pair(
    xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, on_empty: OnEmpty
) -> tuple[Array, Array]:
    """Both log-ratios after the checks of a divergence from policy to target, 0 in the groups that are skipped."""
    check_on_empty(on_empty)
    if not check_log_values(xp, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio):
        return target_log_ratio, policy_log_ratio
    target, policy, _ = filled_where_empty(xp, "target_log_ratio", target_log_ratio, on_empty, policy_log_ratio)
    missing = (target == -INF) & (policy > -INF)
    refuse(xp, missing, SupportError, "target_log_ratio is -inf where policy_log_ratio is not")
    filled_where_empty(xp, "policy_log_ratio", policy, "raise")
    return target, policy


def checked_contrast(
    target_log_ratio: Array, policy_log_ratio: Array, power: float, on_empty: OnEmpty
) -> tuple[Namespace, Array, Array, Array]:
    """The array library, α̂, power · log β (0 where that is -inf) and which completions have a term (all (…, G))."""
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    is_in_policy = policy > -INF
    logit = power * xp.where(is_in_policy, policy, 0.0)
    is_counted = xp.any(target_log_ratio > -INF, axis=-1, keepdims=True) & is_in_policy
    return xp, xp.exp(log_softmax(xp, target)), logit, is_counted


def misranked_by(xp: Namespace, reward: Array, log_policy: Array) -> Array:
    """How far (…, G, G) the policy prefers i over a j of higher reward, 0 for every other pair."""
    refuse_infinite(xp, reward=reward, log_policy=log_policy)
    is_worse = reward[..., :, None] < reward[..., None, :]
    excess = log_policy[..., :, None] - log_policy[..., None, :]
    return xp.where(is_worse & (excess > 0), excess, 0.0)


def checked_surrogate(advantage: Array, policy_log_ratio: Array, clip: float) -> tuple[Namespace, Array]:
    """The array library and ρ, whose product with the advantage is finite."""
    xp = checked_group_namespace(1, advantage=advantage, policy_log_ratio=policy_log_ratio)
    check_positive("clip", clip)
    refuse_infinite(xp, advantage=advantage)
    check_log_values(xp, policy_log_ratio=policy_log_ratio)
    refuse_overflow(xp, "policy_log_ratio", policy_log_ratio)
    ratio = xp.exp(policy_log_ratio)
    root = _root_of_largest(xp, ratio)
    headroom = (ratio / root) * (xp.abs(advantage) / root)
    refuse(xp, headroom >= 1, OverflowError, f"advantage times exp(policy_log_ratio) overflows {ratio.dtype}")
    return xp, ratio

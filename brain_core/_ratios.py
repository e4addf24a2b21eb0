"""What several estimators and their objectives are made of: importance ratios, leave-one-out means, labels."""

from __future__ import annotations

from array_api_compat import device

from brain_core._checks import (
    INF,
    SupportError,
    check_log_values,
    check_positive,
    checked_group_namespace,
    per_group,
    refuse,
    refuse_infinite,
    refuse_missing_policy,
    refuse_overflow,
)
from brain_core._typing import Array, Namespace
from brain_core.logspace import exact_difference


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
    largest = float(xp.finfo(target.dtype).max)
    headroom = xp.max(policy, axis=-1, keepdims=True) / largest * xp.max(target, axis=-1, keepdims=True)
    refuse(xp, headroom >= 1, OverflowError, f"target_log_ratio times policy_log_ratio overflows {target.dtype}")
    size = target.shape[-1]
    position = xp.arange(size, device=device(target))
    others = xp.where(position != position[:, None], target[..., None, :], 0.0)
    return xp.sum(others, axis=-1) / (size - 1)


def argmax_log_ratio(xp: Namespace, target_log_ratio: Array) -> Array:
    """Log-ratios of a target with equal mass on the largest finite values of a group and none elsewhere."""
    check_log_values(xp, target_log_ratio=target_log_ratio)
    is_largest = target_log_ratio == xp.max(target_log_ratio, axis=-1, keepdims=True)
    return xp.where(is_largest & (target_log_ratio > -INF), xp.zeros_like(target_log_ratio), -INF)


def checked_preference(
    policy_log_ratio: Array, preference: Array | float, power: float
) -> tuple[Namespace, Array, Array | float]:
    """The array library, power · Δ of each pair (…) and the probability that its first is preferred (…)."""
    xp = checked_group_namespace(2, policy_log_ratio=policy_log_ratio)
    if policy_log_ratio.shape[-1] != 2:
        raise ValueError(f"policy_log_ratio has shape {tuple(policy_log_ratio.shape)}; the last axis must be a pair")
    check_positive("power", power)
    refuse_infinite(xp, policy_log_ratio=policy_log_ratio)
    probability = per_group(xp, "preference", preference, policy_log_ratio)
    if isinstance(probability, (int, float)):
        if not 0 <= probability <= 1:
            raise ValueError(f"preference is {probability!r}; it must be a probability")
    else:
        probability = probability[..., 0] if probability.shape else probability
        refuse(xp, (probability < 0) | (probability > 1), ValueError, "preference is not a probability")
    return xp, power * (policy_log_ratio[..., 0] - policy_log_ratio[..., 1]), probability


def check_ranked(xp: Namespace, policy_log_ratio: Array) -> None:
    """Raise SupportError where the policy gives no mass to a completion that a ranking chooses."""
    if check_log_values(xp, policy_log_ratio=policy_log_ratio):
        refuse(xp, policy_log_ratio[..., :-1] == -INF, SupportError, "policy_log_ratio is -inf at a ranked completion")

"""Distances between the self-normalised weights of target and policy: zero when they agree on the group."""

from __future__ import annotations

from brain_core._checks import check_positive, checked_group_namespace, checked_pair
from brain_core._comparison import compare_weights, difference, kl_terms
from brain_core._typing import Array, OnEmpty


def self_normalized_kl(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """KL divergence from target to policy within a group, D(Y) = Σ α̂ log(α̂ / β̂), with α̂ ∝ α^power and β̂ ∝ β^power.

    Its mean over groups from the proposal is the objective that BRAIn minimises. It is 0 exactly where the policy is
    proportional to the target on the group, so its floor is known; the absolute likelihoods may drift at D = 0.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of both ratios; towards 0, D / power² tends to half the group variance of log(α/β).
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        D(Y) per group (…), nats, never negative.

    Raises:
        SupportError: the policy is -inf where the target is not, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: with respect to the policy it is −`brain_coefficients`; the target is data.

    Numerics: each term is non-negative, and small values keep their relative precision however large the log-ratios.

    Source: eq-14, T0, T11.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> float(self_normalized_kl(target, policy).round(4))
        0.1308
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    return xp.sum(kl_terms(xp, *compare_weights(xp, target, policy, power)), axis=-1)


def total_variation(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """Total variation distance between the weights of a group, ½ Σ |α̂ − β̂|, with α̂ ∝ α^power and β̂ ∝ β^power.

    Half the L1 norm of the BRAIn coefficients at power 1; it bounds the length of the group's gradient.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of both ratios.
        on_empty: what to do with a group that the target gives no mass: raise, or give it distance 0.

    Returns:
        Distance per group (…), between 0 and 1.

    Raises:
        SupportError: the policy is -inf where the target is not, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: almost everywhere; meant as a diagnostic.

    Numerics: as `brain_coefficients`.

    Source: T6.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> float(total_variation(target, policy).round(4))
        0.25
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    gap = difference(xp, *compare_weights(xp, target, policy, power))
    return xp.sum(xp.abs(gap), axis=-1) / 2

"""Log importance ratios of target and policy to the proposal, and the weights that they give within a group."""

from __future__ import annotations

from brain_core._checks import (
    check_log_values,
    check_on_empty,
    checked_group_namespace,
    checked_namespace,
    filled_where_empty,
    refuse_impossible_sample,
)
from brain_core._typing import Array, OnEmpty
from brain_core.logspace import log_softmax


def target_log_ratio(log_prior: Array, log_proposal: Array, log_goodness: Array) -> Array:
    """Log of the target's importance ratio, log α = log p(y|x) − log q'(y|x) + log p(G=1|y,x), up to a constant.

    The constant is log p(G=1|x), plus that of the log-goodness; it is one per prompt and cancels in a group.

    Args:
        log_prior: log p(y|x) of the frozen prior, summed over tokens (any shape), nats.
        log_proposal: log q'(y|x) of what sampled the completion (same shape), nats.
        log_goodness: log p(G=1|y,x) up to a constant per prompt (same shape), nats.

    Returns:
        log α up to a constant per prompt (same shape), nats.

    Raises:
        SupportError: the proposal gives probability zero to a completion that it sampled.
        ValueError: a value is NaN or +inf, or the shapes differ.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: data of the method: pass arrays that need none. The proposal is never differentiated.

    Numerics: -inf in the prior or the goodness excludes the completion from the target.

    Source: eq-6.

    Example:
        >>> import numpy as np
        >>> target_log_ratio(np.array([-3.0, -4.0]), np.array([-3.0, -5.0]), np.array([0.5, 0.0])).tolist()
        [0.5, 1.0]
    """
    xp = checked_namespace(log_prior=log_prior, log_proposal=log_proposal, log_goodness=log_goodness)
    if check_log_values(xp, log_prior=log_prior, log_proposal=log_proposal, log_goodness=log_goodness):
        refuse_impossible_sample(xp, "log_proposal", log_proposal)
    return (log_prior - log_proposal) + log_goodness


def policy_log_ratio(log_policy: Array, log_proposal: Array) -> Array:
    """Log of the policy's importance ratio, log β = log q_θ(y|x) − log q'(y|x).

    Args:
        log_policy: log q_θ(y|x) of the policy being trained, summed over tokens (any shape), nats.
        log_proposal: log q'(y|x) of what sampled the completion (same shape), nats.

    Returns:
        log β (same shape), nats.

    Raises:
        SupportError: the proposal gives probability zero to a completion that it sampled.
        ValueError: a value is NaN or +inf, or the shapes differ.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: with respect to the policy; the proposal is data.

    Numerics: -inf in the policy is allowed here; where the target has mass, what uses both raises.

    Source: eq-11.

    Example:
        >>> import numpy as np
        >>> policy_log_ratio(np.array([-3.0, -4.5]), np.array([-3.0, -5.0])).tolist()
        [0.0, 0.5]
    """
    xp = checked_namespace(log_policy=log_policy, log_proposal=log_proposal)
    if check_log_values(xp, log_policy=log_policy, log_proposal=log_proposal):
        refuse_impossible_sample(xp, "log_proposal", log_proposal)
    return log_policy - log_proposal


def self_normalized_weights(log_ratio: Array, *, on_empty: OnEmpty = "raise") -> Array:
    """Self-normalised importance weights of a group: α̂ from log α, or β̂ from log β.

    Args:
        log_ratio: log importance ratios up to a constant per group (…, G), nats.
        on_empty: what to do with a group whose every weight is zero: raise, or give it zero weights.

    Returns:
        Weights that are ≥ 0 and sum to 1 over each group (…, G).

    Raises:
        SupportError: a group is -inf throughout and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, or the group is empty of completions.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: with respect to the log-ratio; a training loss detaches the target's weights.

    Numerics: no overflow at any magnitude; -inf gives a weight of exactly 0; ties share equally.

    Source: eq-6, eq-11, eq-20.

    Example:
        >>> import numpy as np
        >>> self_normalized_weights(np.log(np.array([1.0, 2.0, 5.0]))).round(3).tolist()
        [0.125, 0.25, 0.625]
    """
    return normalized("log_ratio", log_ratio, on_empty)


def normalized(name: str, log_ratio: Array, on_empty: OnEmpty) -> Array:
    """`self_normalized_weights` of a tensor that errors call by that name."""
    xp = checked_group_namespace(1, **{name: log_ratio})
    check_on_empty(on_empty)
    check_log_values(xp, **{name: log_ratio})
    filled, is_occupied = filled_where_empty(xp, name, log_ratio, on_empty)
    return xp.where(is_occupied, xp.exp(log_softmax(xp, filled)), 0.0)

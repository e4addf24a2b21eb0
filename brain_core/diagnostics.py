"""What to log of a group: how many completions its weights rest on, and where the policy's likelihoods go."""

from __future__ import annotations

from typing import Literal

from brain_core._checks import (
    check_log_values,
    check_on_empty,
    checked_group_namespace,
    filled_where_empty,
    refuse_impossible_sample,
)
from brain_core._typing import Array, Namespace, OnEmpty
from brain_core.logspace import log_softmax


def effective_sample_size(
    log_ratio: Array, *, kind: Literal["kish", "perplexity"] = "kish", on_empty: OnEmpty = "raise"
) -> Array:
    """Number of equally weighted completions that a group's self-normalised weights ŵ are worth.

    "kish" is 1 / Σ ŵ², "perplexity" is exp of the entropy of ŵ. Both are G for equal weights and 1 where a single
    completion has all the weight, as in groups of long sequences, where BRAIn acts on a winner only, like DPO.

    Args:
        log_ratio: log importance ratios up to a constant per group (…, G), nats.
        kind: which of the two sizes.
        on_empty: what to do with a group whose every weight is zero: raise, or give it size 0.

    Returns:
        Effective sample size per group (…), between 1 and G.

    Raises:
        SupportError: a group is -inf throughout and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, the group is empty of completions, or the kind is unknown.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: with respect to the log-ratio.

    Numerics: no overflow at any magnitude; -inf counts as a weight of 0.

    Source: T4g (perplexity), eq-6.

    Example:
        >>> import numpy as np
        >>> float(effective_sample_size(np.log(np.array([1.0, 1.0, 2.0]))).round(4))
        2.6667
        >>> float(effective_sample_size(np.zeros(3), kind="perplexity").round(4))
        3.0
    """
    xp = checked_group_namespace(1, log_ratio=log_ratio)
    check_on_empty(on_empty)
    if kind not in ("kish", "perplexity"):
        raise ValueError(f"kind is {kind!r}; it is 'kish' or 'perplexity'")
    check_log_values(xp, log_ratio=log_ratio)
    filled, is_occupied = filled_where_empty(xp, "log_ratio", log_ratio, on_empty)
    log_weight = log_softmax(xp, filled)
    size = 1 / xp.sum(xp.exp(2 * log_weight), axis=-1) if kind == "kish" else xp.exp(_entropy(xp, log_weight))
    return xp.where(is_occupied[..., 0], size, 0.0)


def weight_entropy(log_ratio: Array) -> Array:
    """Entropy of a group's self-normalised weights, −Σ ŵ log ŵ.

    Args:
        log_ratio: log importance ratios up to a constant per group (…, G), nats.

    Returns:
        Entropy per group (…), nats, between 0 and log G.

    Raises:
        SupportError: a group is -inf throughout.
        ValueError: a value is NaN or +inf, or the group is empty of completions.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: with respect to the log-ratio.

    Numerics: no overflow at any magnitude; a weight of 0 contributes 0.

    Source: T4g.

    Example:
        >>> import numpy as np
        >>> float(weight_entropy(np.array([0.0, 0.0])).round(4))
        0.6931
    """
    xp = checked_group_namespace(1, log_ratio=log_ratio)
    check_log_values(xp, log_ratio=log_ratio)
    filled, _ = filled_where_empty(xp, "log_ratio", log_ratio, "raise")
    return _entropy(xp, log_softmax(xp, filled))


def _entropy(xp: Namespace, log_weight: Array) -> Array:
    """−Σ w log w along the last axis, where 0 log 0 = 0."""
    positive = log_weight > -float("inf")
    return -xp.sum(xp.exp(log_weight) * xp.where(positive, log_weight, 0.0), axis=-1)


def likelihood_drift(log_policy: Array, log_start: Array) -> Array:
    """Mean change over a group of the policy's log-likelihood, mean of log q_θ(y) − log q_start(y).

    Self-normalised objectives see only ratios within a group: all likelihoods of a group may fall by the factor λ at
    an objective of exactly 0. This number shows it: it is then log λ.

    Args:
        log_policy: log q_θ(y|x) of the policy now (…, G), nats.
        log_start: log-probability of the same completions under what it is compared to (…, G), nats: the proposal
            that sampled them, or the prior.

    Returns:
        Mean drift per group (…), nats.

    Raises:
        SupportError: `log_start` is -inf somewhere.
        ValueError: a value is NaN or +inf, shapes differ, or the group is empty of completions.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: with respect to both.

    Numerics: a policy of -inf gives -inf.

    Source: T1.

    Example:
        >>> import numpy as np
        >>> float(likelihood_drift(np.array([-5.0, -7.0]), np.array([-3.0, -4.0])))
        -2.5
    """
    xp = checked_group_namespace(1, log_policy=log_policy, log_start=log_start)
    if check_log_values(xp, log_policy=log_policy, log_start=log_start):
        refuse_impossible_sample(xp, "log_start", log_start)
    return xp.mean(log_policy - log_start, axis=-1)

"""From a reward to log p(G=1|y,x), the log-probability that a completion is good: one function per reward model."""

from __future__ import annotations

from brain_core._checks import check_log_values, check_positive, checked_namespace
from brain_core._typing import Array
from brain_core.logspace import log_sigmoid


def bradley_terry_log_goodness(reward: Array, *, temperature: float = 1.0) -> Array:
    """Log-goodness under a Bradley–Terry reward model: reward / temperature.

    A reward trained on preferences fixes only ratios, p(G=1|y_i,x) / p(G=1|y_j,x) = exp((r_i − r_j) / temperature),
    so the result is log p(G=1|y,x) up to one constant per prompt. Every self-normalised weight is free of it.

    Args:
        reward: r(x, y) (any shape), in nats at temperature 1.
        temperature: positive; small values concentrate the target on the best completions.

    Returns:
        Log-goodness up to a constant per prompt (same shape), nats.

    Raises:
        ValueError: a reward is NaN or +inf, or the temperature is not positive and finite. The limit of reward → +inf
            is a target proportional to prior / proposal on the completions where it is infinite; build that one by
            giving the others a reward of -inf.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: with respect to the reward.

    Numerics: a reward of -inf is allowed, it excludes the completion from the target.

    Source: eq-19.

    Example:
        >>> import numpy as np
        >>> bradley_terry_log_goodness(np.array([1.0, 3.0]), temperature=2.0).tolist()
        [0.5, 1.5]
    """
    xp = checked_namespace(reward=reward)
    check_positive("temperature", temperature)
    check_log_values(xp, reward=reward)
    return reward / temperature


def logistic_log_goodness(reward: Array) -> Array:
    """Log-goodness under a binary classifier of good completions: log σ(reward).

    This is another posterior than the Bradley–Terry one: the goodness saturates at 1 for large rewards.

    Args:
        reward: r(x, y), the log-odds of being good (any shape), nats.

    Returns:
        log p(G=1|y,x) (same shape), nats, never positive.

    Raises:
        ValueError: a reward is NaN or +inf.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: with respect to the reward; it is σ(−reward).

    Numerics: no overflow and full relative precision at any magnitude; a reward of -inf gives -inf.

    Source: eq-15.

    Example:
        >>> import numpy as np
        >>> logistic_log_goodness(np.array([0.0, -1000.0])).round(4).tolist()
        [-0.6931, -1000.0]
    """
    xp = checked_namespace(reward=reward)
    check_log_values(xp, reward=reward)
    return log_sigmoid(xp, reward)

"""What every public function asks of its input, and the errors it raises.

The usual input is finite, so each check is one reduction; names and indices are worked out only once it has failed.
While jax traces a function the values are unknown: the value checks are then skipped, those of type and shape are not.
"""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from brain_core._typing import Array, Namespace, OnEmpty

INF = math.inf


class SupportError(ValueError):
    """A distribution gives probability zero to a completion where the method needs it positive.

    The message names the tensor and the first offending index.

    Example:
        >>> import numpy as np
        >>> from brain_core import policy_log_ratio
        >>> policy_log_ratio(np.array([-3.0, -4.0]), np.array([-3.0, -np.inf]))
        Traceback (most recent call last):
            ...
        brain_core._checks.SupportError: log_proposal is -inf: the proposal cannot have sampled it; first at index (1,)
    """


def checked_namespace(**arrays: Array) -> Namespace:
    """The array library of the inputs, which are float32 or float64 and of one shape."""
    xp = array_namespace(*arrays.values())
    (first_name, first), *others = arrays.items()
    for name, array in arrays.items():
        if array.dtype not in (xp.float32, xp.float64):
            raise TypeError(
                f"{name} has dtype {array.dtype}; pass float32 or float64 (half precision cannot hold the "
                "log-probability of a sequence: near 1000 nats bfloat16 moves in steps of 4)"
            )
    for name, array in others:
        if array.shape != first.shape:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)} and {first_name} {tuple(first.shape)}; they must agree"
            )
    return xp


def checked_group_namespace(minimum: int, **arrays: Array) -> Namespace:
    """`checked_namespace` of arrays whose last axis is a group of at least `minimum` completions."""
    xp = checked_namespace(**arrays)
    name, array = next(iter(arrays.items()))
    size = array.shape[-1] if array.ndim else 0
    if size < minimum:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: the last axis, the group, needs at least {minimum} completions"
        )
    return xp


def is_true(condition: Array) -> bool:
    """Whether a condition holds; False while jax traces, where its value is unknown."""
    try:
        return bool(condition)
    except TypeError:
        return False


def refuse(xp: Namespace, offending: Array, error: type[Exception], message: str) -> None:
    """Raise `error` with the message and the first offending index, if there is one."""
    if is_true(xp.any(offending)):
        flat_index = int(xp.argmax(xp.astype(xp.reshape(offending, (-1,)), xp.int8)))
        raise error(f"{message}; first at index {_unravel(flat_index, tuple(offending.shape))}")


def _unravel(flat_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index in an array of that shape of an element counted in row-major order."""
    index: list[int] = []
    for length in reversed(shape):
        flat_index, position = divmod(flat_index, length)
        index.insert(0, position)
    return tuple(index)


def check_log_values(xp: Namespace, **arrays: Array) -> bool:
    """Raise ValueError where a value is NaN or +inf; otherwise, whether one may be -inf."""
    finite = [xp.all(xp.isfinite(array)) for array in arrays.values()]
    if all(is_true(condition) for condition in finite):
        return False
    for name, array in arrays.items():
        refuse(xp, xp.isnan(array), ValueError, f"{name} is NaN")
        refuse(xp, array == INF, ValueError, f"{name} is +inf")
    return True


def refuse_infinite(xp: Namespace, **arrays: Array) -> None:
    """Raise ValueError where a value is NaN or infinite."""
    if check_log_values(xp, **arrays):
        for name, array in arrays.items():
            refuse(xp, array == -INF, ValueError, f"{name} is -inf")


def refuse_impossible_sample(xp: Namespace, name: str, log_prob: Array) -> None:
    """Raise SupportError where the distribution that sampled a completion gives it probability zero."""
    refuse(xp, log_prob == -INF, SupportError, f"{name} is -inf: the proposal cannot have sampled it")


def refuse_missing_policy(xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array) -> None:
    """Raise SupportError where the target has mass and the policy has none."""
    missing = (policy_log_ratio == -INF) & (target_log_ratio > -INF)
    refuse(xp, missing, SupportError, "policy_log_ratio is -inf where target_log_ratio is not")


def filled_where_empty(
    xp: Namespace, name: str, log_ratio: Array, on_empty: OnEmpty, *others: Array
) -> tuple[Array, ...]:
    """The arrays with 0 throughout the groups whose every `log_ratio` is -inf, and which groups are not so."""
    occupied = xp.any(log_ratio > -INF, axis=-1, keepdims=True)
    if on_empty == "raise":
        refuse(xp, ~occupied, SupportError, f"{name} is -inf throughout a group")
    return *(xp.where(occupied, array, 0.0) for array in (log_ratio, *others)), occupied


def checked_pair(
    xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, on_empty: OnEmpty
) -> tuple[Array, Array]:
    """Both log-ratios after the value checks, with 0 throughout the groups that are empty and skipped."""
    check_on_empty(on_empty)
    if not check_log_values(xp, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio):
        return target_log_ratio, policy_log_ratio
    target, policy, _ = filled_where_empty(xp, "target_log_ratio", target_log_ratio, on_empty, policy_log_ratio)
    refuse_missing_policy(xp, target, policy)
    return target, policy


def check_on_empty(on_empty: str) -> None:
    """Raise ValueError unless the option is one of its two values."""
    if on_empty not in ("raise", "skip"):
        raise ValueError(f"on_empty is {on_empty!r}; it is 'raise' or 'skip'")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a number is positive and finite."""
    if not 0 < value < INF:
        raise ValueError(f"{name} is {value!r}; it must be positive and finite")


def per_group(xp: Namespace, name: str, value: Array | float, group: Array) -> Array | float:
    """A finite number, or one per group with a last axis of length 1 to broadcast along the group."""
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; it must be finite")
        return float(value)
    checked_namespace(**{name: value})
    if value.shape not in ((), group.shape[:-1]):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; one number per group has shape {tuple(group.shape[:-1])}"
        )
    refuse_infinite(xp, **{name: value})
    return value[..., None] if value.shape else value


def refuse_overflow(xp: Namespace, name: str, log_value: Array) -> None:
    """Raise OverflowError where exp(log_value) reaches the largest finite number of its dtype."""
    limit = math.log(float(xp.finfo(log_value.dtype).max))
    refuse(xp, log_value >= limit, OverflowError, f"exp({name}) overflows {log_value.dtype}")

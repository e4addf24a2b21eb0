"""Arithmetic on logarithms that keeps the digits which exponentials and differences lose."""

from __future__ import annotations

from array_api_compat import device

from brain_core._typing import Array, Namespace


def log_softmax(xp: Namespace, log_value: Array, power: float = 1.0) -> Array:
    """log of exp(power * log_value) normalised along the last axis; -inf entries stay, not all of a row may be."""
    shifted = power * (log_value - xp.max(log_value, axis=-1, keepdims=True))
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def exact_difference(minuend: Array, subtrahend: Array) -> tuple[Array, Array]:
    """The rounded difference of two finite arrays and its rounding error: their sum is the exact difference."""
    rounded = minuend - subtrahend
    virtual_subtrahend = minuend - rounded
    virtual_minuend = rounded + virtual_subtrahend
    return rounded, (minuend - virtual_minuend) + (virtual_subtrahend - subtrahend)


def log_sigmoid(xp: Namespace, value: Array) -> Array:
    """log(1 / (1 + exp(-value))) without overflow or cancellation, -inf included."""
    magnitude = xp.abs(value)
    return (value - magnitude) / 2 - xp.log1p(xp.exp(-magnitude))


def excess_over_linear(xp: Namespace, value: Array) -> Array:
    """value + exp(-value) - 1, which is never negative, for value >= -1."""
    is_small = xp.abs(value) < 0.05
    small = xp.where(is_small, value, 0.0)
    series = small / 3628800
    for factorial in (-362880, 40320, -5040, 720, -120, 24, -6):
        series = small * (1 / factorial + series)
    return xp.where(is_small, small * small * (0.5 + series), value + xp.expm1(-value))


def remaining_by_stage(xp: Namespace, ranked: Array) -> tuple[Array, Array]:
    """Per stage of a ranking (…, G-1, G): the values not yet chosen, -inf for the others, and a mask of the choice."""
    size = ranked.shape[-1]
    position = xp.arange(size, device=device(ranked))
    stage = position[:-1, None]
    return xp.where(position >= stage, ranked[..., None, :], -float("inf")), position == stage

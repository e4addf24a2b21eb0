"""Which numbers the toys take, and the rules for arguments: each raises ProblemError, which names the argument.

Whole numbers are ints and numpy integers; numbers are these, Fractions, floats and numpy floats. Whatever else looks
like a number (text, a bool, a Decimal, an array of one) is refused rather than guessed at.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Number = Fraction | float
FloatArray = NDArray[np.float64]

FINITE = "a finite number"
SMALLEST_FLOAT, LARGEST_FLOAT = sys.float_info.min, sys.float_info.max

LARGEST_GROUP = 10**15
"""The most completions in a group: beyond it float64 cannot count them."""


class ProblemError(ValueError):
    """A problem, or a question about one, that makes no sense; the message names the argument and what to do."""


class RunawayError(ProblemError, OverflowError):
    """Training that left the range of float64."""


def shown(value: object) -> str:
    """The value as a message shows it, in one short line.

    Args:
        value: Anything.
    """
    try:
        text = str(value) if isinstance(value, Fraction) else reprlib.repr(value)
    except ValueError:  # Python refuses to write it out
        return "a number of thousands of digits"
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:28]}...{line[-28:]}"


def number(name: str, value: Any, rule: str = FINITE) -> Number:
    """A finite number: a Fraction where it is rational, else a float.

    Args:
        name: What the message calls it.
        value: To be checked.
        rule: What the message says is allowed.

    Raises:
        ProblemError: it is anything else.
    """
    if isinstance(value, (bool, np.bool_)):
        raise ProblemError(f"{name} is {shown(value)}; it must be {rule}; write 1 or 0")
    if isinstance(value, Decimal):
        raise ProblemError(f"{name} is {shown(value)}; it must be {rule}; make it a Fraction or a float")
    if isinstance(value, Integral):
        return Fraction(int(value))
    if isinstance(value, Rational):
        return Fraction(value)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ProblemError(f"{name} is {shown(value)}; it must be {rule}")
    return float(value)


def float_number(name: str, value: Any, rule: str = FINITE) -> float:
    """A finite number in float64.

    Args:
        name: What the message calls it.
        value: To be checked.
        rule: What the message says is allowed.

    Raises:
        ProblemError: it is no finite number, or a Fraction that float64 would take for 0 or cannot hold.
    """
    found = number(name, value, rule)
    if isinstance(found, Fraction) and found != 0 and not SMALLEST_FLOAT <= abs(found) <= LARGEST_FLOAT:
        raise ProblemError(
            f"{name} is {shown(found)}; float64, in which this is computed, reaches from {SMALLEST_FLOAT:.1e} to "
            f"{LARGEST_FLOAT:.1e}"
        )
    return float(found)


def positive_number(name: str, value: Any) -> float:
    """A positive, finite number in float64.

    Args:
        name: What the message calls it.
        value: To be checked.

    Raises:
        ProblemError: it is anything else.
    """
    rule = "positive and finite"
    found = float_number(name, value, rule)
    if not found > 0:
        raise ProblemError(f"{name} is {shown(value)}; it must be {rule}")
    return found


def whole_number(name: str, value: Any, smallest: int, largest: int | None = None) -> int:
    """A whole number within limits.

    Args:
        name: What the message calls it.
        value: To be checked.
        smallest: The least allowed.
        largest: The most allowed, if there is a limit.

    Raises:
        ProblemError: it is anything else; 2.0 too, which is not of a whole kind.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < smallest:
        raise ProblemError(f"{name} is {shown(value)}; it must be a whole number, at least {smallest}")
    if largest is not None and value > largest:
        raise ProblemError(f"{name} is {shown(value)}; it may be at most {largest:.0e}")
    return int(value)


def group_size_of(value: Any) -> int:
    """The n of a group: a whole number, at least 2.

    Args:
        value: To be checked.

    Raises:
        ProblemError: it is anything else.
    """
    return whole_number("group_size", value, 2, LARGEST_GROUP)


def seeded(seed: Any) -> np.random.Generator:
    """Numpy's default generator of a seed, so that every run can be repeated.

    Args:
        seed: To be checked.

    Raises:
        ProblemError: it is not a whole number, at least 0.
    """
    return np.random.default_rng(whole_number("seed", seed, 0))


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one of them.

    Args:
        name: What the message calls it.
        value: To be checked.

    Raises:
        ProblemError: it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ProblemError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def instance(name: str, value: Any, kind: type) -> None:
    """Pass a value of one class.

    Args:
        name: What the message calls it.
        value: To be checked.
        kind: The class.

    Raises:
        ProblemError: it is of another class.
    """
    if not isinstance(value, kind):
        raise ProblemError(f"{name} is {shown(value)}; it must be a {kind.__name__}")


def vector(name: str, values: Any) -> list[Number]:
    """Finite numbers in an order: a list, a tuple or an array of one dimension.

    Args:
        name: What the message calls it.
        values: To be checked.

    Raises:
        ProblemError: it is anything else (a set has no order, a dict has keys), or a value is no finite number.
    """
    is_flat = isinstance(values, np.ndarray) and values.ndim == 1
    if not is_flat and (not isinstance(values, Sequence) or isinstance(values, (str, bytes))):
        raise ProblemError(
            f"{name} is {shown(values)}; it must be a list, a tuple or a one-dimensional array of numbers"
        )
    return [number(f"{name}[{index}]", value) for index, value in enumerate(values)]


def float_vector(name: str, values: Sequence[Number]) -> FloatArray:
    """Numbers in float64.

    Args:
        name: What the message calls them.
        values: Fractions or floats (K,), already checked.

    Raises:
        ProblemError: one of them is beyond the range of float64.
    """
    if all(isinstance(value, float) for value in values):
        found = np.array(values, float)
        if np.isfinite(found).all():
            return found
    return np.array([float_number(f"{name}[{index}]", value) for index, value in enumerate(values)])

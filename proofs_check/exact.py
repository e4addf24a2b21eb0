"""Exact arithmetic: rationals with logarithms of rationals, and forward derivatives of both.

A number here is r + Σ c_p log p, with rational r and c_p and p running over primes. Logarithms of primes are
independent over the rationals (unique factorisation), and together with 1 too (Lindemann), so two such numbers are
equal exactly where their coefficients are; the sign is certified by interval arithmetic of rising precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import mpmath
from sympy import factorint

Rational = Fraction | int


@dataclass(frozen=True)
class LogNumber:
    """rational + Σ coefficient · log(prime), exactly; coefficients of 0 are never stored."""

    rational: Fraction
    logs: tuple[tuple[int, Fraction], ...] = ()

    @classmethod
    def of(cls, value: LogNumber | Rational) -> LogNumber:
        """The value as a LogNumber."""
        return value if isinstance(value, LogNumber) else cls(Fraction(value))

    def __add__(self, other: LogNumber | Rational) -> LogNumber:
        other = LogNumber.of(other)
        merged = dict(self.logs)
        for prime, coefficient in other.logs:
            merged[prime] = merged.get(prime, Fraction(0)) + coefficient
        return LogNumber(self.rational + other.rational, _stored(merged))

    def __mul__(self, factor: Rational) -> LogNumber:
        if isinstance(factor, LogNumber):
            raise TypeError("the product of two logarithms is not a number of this kind")
        return LogNumber(self.rational * factor, _stored({p: c * factor for p, c in self.logs}))

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> LogNumber:
        return self * -1

    def __sub__(self, other: LogNumber | Rational) -> LogNumber:
        return self + -LogNumber.of(other)

    def __rsub__(self, other: LogNumber | Rational) -> LogNumber:
        return LogNumber.of(other) - self

    def __truediv__(self, divisor: Rational) -> LogNumber:
        return self * (1 / Fraction(divisor))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (LogNumber, Fraction, int)):
            return NotImplemented
        other = LogNumber.of(other)
        return self.rational == other.rational and self.logs == other.logs

    def __hash__(self) -> int:
        return hash((self.rational, self.logs))

    def __lt__(self, other: LogNumber | Rational) -> bool:
        return (self - other).sign() < 0

    def __gt__(self, other: LogNumber | Rational) -> bool:
        return (self - other).sign() > 0

    def __le__(self, other: LogNumber | Rational) -> bool:
        return (self - other).sign() <= 0

    def __ge__(self, other: LogNumber | Rational) -> bool:
        return (self - other).sign() >= 0

    def __float__(self) -> float:
        with mpmath.workdps(60):
            total = mpmath.mpf(self.rational.numerator) / self.rational.denominator
            for prime, coefficient in self.logs:
                total += mpmath.mpf(coefficient.numerator) / coefficient.denominator * mpmath.log(prime)
            return float(total)

    def sign(self) -> int:
        """-1, 0 or 1, certified: 0 by the coefficients, the others by an interval that excludes 0."""
        if self == 0:
            return 0
        precision = 64
        while True:
            interval = self._interval(precision)
            if interval.a > 0 or interval.b < 0:
                return 1 if interval.a > 0 else -1
            precision *= 2

    def _interval(self, precision: int) -> mpmath.ctx_iv.ivmpf:
        """An interval that holds the number, at a working precision in bits."""
        context = mpmath.ctx_iv.MPIntervalContext()
        context.prec = precision
        total = context.mpf(self.rational.numerator) / self.rational.denominator
        for prime, coefficient in self.logs:
            total += context.mpf(coefficient.numerator) / coefficient.denominator * context.log(prime)
        return total


def _stored(coefficients: dict[int, Fraction]) -> tuple[tuple[int, Fraction], ...]:
    """The coefficients that are not 0, in the order of the primes."""
    return tuple(sorted((prime, c) for prime, c in coefficients.items() if c))


@cache
def log(value: Rational) -> LogNumber:
    """log of a positive rational, exactly.

    Raises:
        ValueError: The value is not positive.
    """
    value = Fraction(value)
    if value <= 0:
        raise ValueError(f"log of {value}, which is not positive")
    exponents = {prime: Fraction(power) for prime, power in factorint(value.numerator).items()}
    for prime, power in factorint(value.denominator).items():
        exponents[prime] = exponents.get(prime, Fraction(0)) - power
    return LogNumber(Fraction(0), _stored({p: c for p, c in exponents.items() if p > 1}))


@dataclass(frozen=True)
class Dual:
    """A rational value, or one with logarithms, and its rational derivatives in several directions."""

    value: Fraction | LogNumber
    slopes: tuple[Fraction, ...]

    def __add__(self, other: Dual | Rational) -> Dual:
        other = self._lifted(other)
        return Dual(self.value + other.value, _sums(self.slopes, other.slopes))

    def __mul__(self, other: Dual | Rational) -> Dual:
        """The product; a factor with logarithms needs a constant as the other factor, so that slopes stay rational."""
        if not isinstance(other, Dual):
            return Dual(self.value * other, tuple(slope * other for slope in self.slopes))
        if isinstance(self.value, LogNumber) or isinstance(other.value, LogNumber):
            raise TypeError("the derivative of this product would hold a logarithm")
        return Dual(
            self.value * other.value,
            tuple(a * other.value + self.value * b for a, b in zip(self.slopes, other.slopes, strict=True)),
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Dual:
        return self * -1

    def __sub__(self, other: Dual | Rational) -> Dual:
        return self + -self._lifted(other)

    def __rsub__(self, other: Dual | Rational) -> Dual:
        return self._lifted(other) - self

    def __truediv__(self, other: Dual | Rational) -> Dual:
        return self * (self._lifted(other).reciprocal() if isinstance(other, Dual) else 1 / Fraction(other))

    def reciprocal(self) -> Dual:
        """1 / self, for a rational value."""
        if isinstance(self.value, LogNumber):
            raise TypeError("the reciprocal of a logarithm is not a number of this kind")
        return Dual(1 / self.value, tuple(-slope / self.value**2 for slope in self.slopes))

    def log(self) -> Dual:
        """log self: d log x = dx / x, which is rational."""
        if isinstance(self.value, LogNumber):
            raise TypeError("the logarithm of a logarithm is not a number of this kind")
        return Dual(log(self.value), tuple(slope / self.value for slope in self.slopes))

    def _lifted(self, other: Dual | Rational) -> Dual:
        """A constant as a Dual with slopes 0."""
        return other if isinstance(other, Dual) else Dual(Fraction(other), (Fraction(0),) * len(self.slopes))


def _sums(left: tuple[Fraction, ...], right: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Elementwise sums."""
    return tuple(a + b for a, b in zip(left, right, strict=True))


def in_logits(probabilities: Sequence[Fraction]) -> list[Dual]:
    """A softmax policy with its derivatives in all K logits: ∂q_k/∂z_j = q_k (δ_jk − q_j)."""
    return [
        Dual(q, tuple(q * ((j == k) - other) for j, other in enumerate(probabilities)))
        for k, q in enumerate(probabilities)
    ]


def along(probabilities: Sequence[Fraction], directions: Sequence[Sequence[Rational]]) -> list[Dual]:
    """Probabilities with their derivatives along directions in probability space, tangent to the simplex or not."""
    return [Dual(q, tuple(Fraction(direction[k]) for direction in directions)) for k, q in enumerate(probabilities)]

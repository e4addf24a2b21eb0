"""The tiny expression language of the code world: a parser, a printer and an interpreter.

    expression = sum { ("max" | "min") sum }
    sum        = product { ("+" | "-") product }
    product    = operand { "*" operand }
    operand    = number | variable | "_" | "(" expression ")"

Operators of one line have one precedence and group to the left; white space separates tokens where it is needed. A
number has up to three digits, a variable is one of u v w x y z, and the hole "_" stands for what its writer did not
know. Text that a model wrote is only ever read by this parser: nothing of it is executed, and no text, however long or
deep, takes more than the limits below allow.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CHARACTERS = 500
MAX_TOKENS = 100
MAX_DEPTH = 20
"""Parentheses within each other."""
MAX_VALUE = 10**6
"""What a value, and every value on the way to it, may reach, either side of 0."""

VARIABLES = ("u", "v", "w", "x", "y", "z")
HOLE = "_"
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "max": max, "min": min, "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip
LEVELS = (("max", "min"), ("+", "-"), ("*",))
"""The operators by precedence, the loosest first."""


@dataclass(frozen=True)
class Number:
    """A whole number from 0 to 999."""

    value: int


@dataclass(frozen=True)
class Variable:
    """One of VARIABLES."""

    name: str


@dataclass(frozen=True)
class Hole:
    """What the writer left open."""


@dataclass(frozen=True)
class Binary:
    """An operator, one of OPERATORS, and what stands on either side of it."""

    operator: str
    left: Expression
    right: Expression


Expression = Number | Variable | Hole | Binary


def parse(text: str) -> Expression | None:
    """Parse an expression.

    Args:
        text: any text at all.

    Returns:
        the expression; None where the text does not parse or is over a limit.
    """
    if len(text) > MAX_CHARACTERS or not _TEXT.fullmatch(text):
        return None
    tokens = _TOKEN.findall(text)
    if len(tokens) > MAX_TOKENS:
        return None
    reader = _Reader(tokens)
    try:
        found = reader.level(0)
        reader.take(_END)
    except _DoesNotParseError:
        return None
    return found


def write(expression: Expression) -> str:
    """Write an expression with no more parentheses than it needs and a space between tokens.

    Parsing it back gives an equal expression, unless it is over a limit.
    """
    return _write(expression, 0)


def evaluate(expression: Expression, values: Mapping[str, int]) -> int | None:
    """Evaluate an expression.

    Args:
        expression: the expression, nested no deeper than `parse` returns.
        values: the value of every variable, at most MAX_VALUE either side of 0.

    Returns:
        the value; None where it has a hole or a value on the way is over the limit.
    """
    match expression:
        case Number(value):
            return value
        case Variable(name):
            return values[name]
        case Hole():
            return None
        case Binary(symbol, left, right):
            return _combine(symbol, evaluate(left, values), evaluate(right, values))


def has_hole(expression: Expression) -> bool:
    """Whether the writer left anything open."""
    if isinstance(expression, Binary):
        return has_hole(expression.left) or has_hole(expression.right)
    return isinstance(expression, Hole)


def count_tokens(text: str) -> int:
    """Count the tokens of a text that parses."""
    return len(_TOKEN.findall(text))


def _combine(symbol: str, left: int | None, right: int | None) -> int | None:
    """Apply an operator to two values, none of which may be missing or too large; nor may the result."""
    if left is None or right is None:
        return None
    value = OPERATORS[symbol](left, right)
    return value if abs(value) <= MAX_VALUE else None


def _write(expression: Expression, level: int) -> str:
    """Write an expression where operators of this level and tighter ones need no parentheses."""
    match expression:
        case Number(value):
            return str(value)
        case Variable(name):
            return name
        case Hole():
            return HOLE
        case Binary(symbol, left, right):
            own = next(index for index, symbols in enumerate(LEVELS) if symbol in symbols)
            text = f"{_write(left, own)} {symbol} {_write(right, own + 1)}"
            return f"( {text} )" if own < level else text


_END = ""
_TEXT = re.compile(r"[0-9a-z_+*() -]*")
_TOKEN = re.compile(r"[0-9]+|[a-z]+|[_+*()-]")


class _DoesNotParseError(Exception):
    """The text is no expression."""


class _Reader:
    """A recursive-descent parser over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, _END]
        self._place = 0
        self._depth = 0

    def take(self, *allowed: str) -> str:
        """Go past the next token, which must be one of those allowed."""
        token = self._tokens[self._place]
        if token not in allowed:
            raise _DoesNotParseError
        self._place += 1
        return token

    def level(self, level: int) -> Expression:
        """Read operators of one precedence and what they join."""
        if level == len(LEVELS):
            return self._operand()
        found = self.level(level + 1)
        while self._tokens[self._place] in LEVELS[level]:
            symbol = self.take(*LEVELS[level])
            found = Binary(symbol, found, self.level(level + 1))
        return found

    def _operand(self) -> Expression:
        """Read a number, a variable, a hole or an expression in parentheses."""
        token = self._tokens[self._place]
        if token.isdigit() and len(token) <= 3:
            self._place += 1
            return Number(int(token))
        token = self.take("(", HOLE, *VARIABLES)
        if token == "(":
            return self._enclosed()
        return Hole() if token == HOLE else Variable(token)

    def _enclosed(self) -> Expression:
        """Read on behind an opening parenthesis."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _DoesNotParseError
        found = self.level(0)
        self.take(")")
        self._depth -= 1
        return found

"""The expression language of the code world: its parser, its printer and its interpreter."""

from __future__ import annotations

import ast
import inspect
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm.tiny import code, expressions
from llm.tiny.expressions import (
    HOLE,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_TOKENS,
    MAX_VALUE,
    VARIABLES,
    Binary,
    Expression,
    Hole,
    Number,
    Variable,
    count_tokens,
    evaluate,
    has_hole,
    parse,
    write,
)

VALUES = {"u": 7, "v": -3, "w": 12, "x": 5, "y": -8, "z": 0}
LEAVES = st.one_of(
    st.integers(0, 999).map(Number), st.sampled_from(VARIABLES).map(Variable), st.sampled_from([Hole(), Number(2)])
)
TREES = st.recursive(
    LEAVES, lambda below: st.builds(Binary, st.sampled_from(["+", "-", "*", "max", "min"]), below, below), max_leaves=12
)

ALMOST_EXPRESSIONS = st.lists(st.sampled_from(["x", "7", "+", "*", "max", "(", ")", "_"])).map(" ".join)


def value_by_a_stack(tree: Expression) -> Fraction | None:
    """The value by a stack machine on fractions, which shares nothing with the interpreter."""
    todo: list[Expression | str] = [tree]
    postfix: list[Expression | str] = []
    while todo:
        one = todo.pop()
        postfix.append(one.operator if isinstance(one, Binary) else one)
        if isinstance(one, Binary):
            todo += [one.left, one.right]
    stack: list[Fraction] = []
    for one in reversed(postfix):
        if isinstance(one, Hole):
            return None
        if isinstance(one, Number):
            stack.append(Fraction(one.value))
        elif isinstance(one, Variable):
            stack.append(Fraction(VALUES[one.name]))
        else:
            right, left = stack.pop(), stack.pop()
            bigger, smaller = (left, right) if left >= right else (right, left)
            stack.append(
                {"+": left + right, "-": left - right, "*": left * right, "max": bigger, "min": smaller}[str(one)]
            )
            if not -MAX_VALUE <= stack[-1] <= MAX_VALUE:
                return None
    return stack.pop()


@given(TREES)
def test_parsing_what_was_written_gives_the_same_expression(tree: Expression) -> None:
    assert parse(write(tree)) == tree
    assert parse(f"({write(tree)})".replace(" )", ")")) == tree


@given(TREES)
def test_the_interpreter_agrees_with_a_stack_machine_on_fractions(tree: Expression) -> None:
    assert evaluate(tree, VALUES) == value_by_a_stack(tree)
    assert has_hole(tree) == (HOLE in write(tree))


@given(TREES)
def test_no_pair_of_parentheses_that_was_written_could_be_left_out(tree: Expression) -> None:
    tokens = write(tree).split()
    for start in [place for place, token in enumerate(tokens) if token == "("]:
        depth, end = 1, start
        while depth:
            end += 1
            depth += {"(": 1, ")": -1}.get(tokens[end], 0)
        assert parse(" ".join(tokens[:start] + tokens[start + 1 : end] + tokens[end + 1 :])) != tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x", 5),
        ("007", 7),
        ("x+2*y", -11),
        ("( x + 2 ) * y", -56),
        ("u - v - w", -2),
        ("u - ( v - w )", 22),
        ("x max u + 1", 8),
        ("( x max u ) + 1", 8),
        ("1 + x max u", 7),
        ("u max v min y", -8),
        ("u max ( v min y )", 7),
        ("2 * x min 3 * v", -9),
        ("((((z))))", 0),
        ("999 * 999", 998001),
        ("999 * 999 * 2", None),
        ("999 * 999 * 2 * 0", None),
        ("x + _", None),
        ("_", None),
    ],
)
def test_precedence_grouping_and_limits_are_as_documented(text: str, value: int | None) -> None:
    found = parse(text)
    assert found is not None
    assert evaluate(found, VALUES) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "+", "x +", "+ x", "- 1", "x y", "2 x", "2x", "xy", "x maxy", "max x y", "max(x, y)", "( )", "( x",
        "x )", ") x (", "x ** 2", "x / 2", "x % 2", "1000", "1.5", "1_0", "0x1", "1e3", "a", "X", "x\n", "x\t+ y",
        "x; y", "x = 1", "x,", "__import__", "_ _", "lambda", "print ( x )", "x if x", "max", "٣", "²", "x\u00a0+ y",
        "x\u200b", "\ud800", "😀", "None",
    ],
)  # fmt: skip
def test_what_is_not_of_the_grammar_does_not_parse(text: str) -> None:
    assert parse(text) is None


@given(st.one_of(st.text(), st.text(alphabet="xyz0129_+-*() maxmin"), ALMOST_EXPRESSIONS))
@example("x" * 10**5)
def test_any_text_at_all_has_a_value_or_does_not_parse(text: str) -> None:
    found = parse(text)
    if found is not None:
        value = evaluate(found, VALUES)
        assert value is None or abs(value) <= MAX_VALUE
        assert parse(write(found)) == found or count_tokens(write(found)) > MAX_TOKENS


@pytest.mark.parametrize(
    "unit", ["(", ")", "x + ", "9", "9*", "x max ", "( x + ", "_", " ", "-", "q", "\0", "é", "((x)"]
)
def test_hundreds_of_thousands_of_characters_are_refused_at_once(unit: str) -> None:
    text = unit * (3 * 10**5)
    start = time.process_time()
    assert parse(text) is None
    assert parse(text[:MAX_CHARACTERS]) is None
    assert time.process_time() - start < 0.1


def test_the_limits_are_where_they_are_documented() -> None:
    assert parse("(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH) == Variable("x")
    assert parse("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1)) is None
    assert parse("+".join("x" * (MAX_TOKENS // 2))) is not None
    assert parse("+".join("x" * (MAX_TOKENS // 2 + 1))) is None
    assert parse("(x)+" * 24 + "x") is not None  # the depth counts what is open, not what was
    assert parse(" " * (MAX_CHARACTERS - 1) + "x") == Variable("x")
    assert parse(" " * MAX_CHARACTERS + "x") is None


def test_the_longest_expressions_that_parse_are_evaluated_within_the_limits() -> None:
    for text in ("*".join(["9"] * 50), "-".join(["999"] * 50), "(" * 20 + "x" + "*x)" * 20):
        found = parse(text)
        assert found is not None
        value = evaluate(found, VALUES)
        assert value is None or abs(value) <= MAX_VALUE


@pytest.mark.parametrize("module", [expressions, code])
def test_nothing_that_could_execute_text_is_named_in_the_code(module: object) -> None:
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - {"compile"}  # re.compile
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & {"eval", "exec", "__import__", "getattr", "globals", "open", "system", "builtins"}
    assert modules <= {
        "__future__",
        "collections",
        "dataclasses",
        "itertools",
        "llm",
        "operator",
        "random",
        "re",
        "typing",
    }

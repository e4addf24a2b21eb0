"""`python -m proofs_check --mutate`: break each formula of `brain_core` in turn, and see that a bridge notices.

Operators rewrite one node of a function's syntax tree at a time, everywhere they apply. The broken function takes the
place of the original in every module of `brain_core` that refers to it; then the bridges of the public functions that
reach it are run until one refutes it.

"Missing detach" is another matter. `brain_core` has no detach to drop: its coefficients and its objectives are apart,
and to train one detaches the coefficients outside it. So the operator breaks no line; it puts the loss that would train
without a detach, −Σ c · log β, in the place of each objective, and shows that the bridge of the objective tells it by
its gradient. That shipped training detaches is held by the tests of `llm`, which `DETACH_TESTS` names.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import functools
import importlib
import inspect
import itertools
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

import brain_core
from proofs_check.bridges import BRIDGES
from proofs_check.bridging import Bridge, Function, check_gradient, check_values, shipped

MODULES = (
    "goodness",
    "weights",
    "logspace",
    "_comparison",
    "_ratios",
    "estimators",
    "objectives",
    "divergences",
    "diagnostics",
    "_checks",
)
"""The modules of `brain_core` that hold code."""

MISSING_DETACH = "missing detach"
PIECEWISE_CONSTANT = ("hinge_coefficients",)
"""Coefficients that depend on the policy with slope 0, so that a missing detach changes nothing."""
DETACH_TESTS = ("tests/llm/test_exact_gradient.py", "tests/llm/test_train.py")
"""What holds the detach of shipped training."""


@dataclass(frozen=True)
class Mutant:
    """One broken function.

    Attributes:
        operator: The kind of the mistake.
        module: The module of `brain_core`, without the package.
        function: The function's name.
        line: Where the change is, 0 where the whole function is another one.
        change: The code before and after.
        build: Makes the broken function.
    """

    operator: str
    module: str
    function: str
    line: int
    change: str
    build: Callable[[], Function]

    @property
    def original(self) -> Function:
        """The function that is broken."""
        found: Function = getattr(_module(self.module), self.function)
        return found


# Operators: from a node to what might stand in its place


def dropped_normalizer(node: ast.AST) -> Iterator[ast.AST]:
    """a − log Σ → a, a / b → a, log_normalizer → 0, mean → sum."""
    match node:
        case ast.BinOp(left=kept, op=ast.Sub(), right=ast.Call(func=ast.Attribute(attr="log" | "log1p"))):
            yield kept
        case ast.BinOp(left=kept, op=ast.Div()):
            yield kept
        case ast.Name(id="log_normalizer"):
            yield ast.Constant(0.0)
        case ast.Attribute(value=namespace, attr="mean"):
            yield ast.Attribute(namespace, "sum", ast.Load())


def off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    """shape[-1] → shape[-1] ± 1, size − 1 → size."""
    match node:
        case ast.Subscript(value=ast.Attribute(attr="shape")):
            yield ast.BinOp(node, ast.Add(), ast.Constant(1))
            yield ast.BinOp(node, ast.Sub(), ast.Constant(1))
        case ast.BinOp(left=kept, op=ast.Sub(), right=ast.Constant(value=1)):
            yield kept


def wrong_axis(node: ast.AST) -> Iterator[ast.AST]:
    """axis=-1 → axis=0, None or -2, shape[-1] → shape[0], keepdims dropped, [..., i] → [i, ...]."""
    match node:
        case ast.keyword(arg="axis"):
            for axis in (0, None, -2):
                yield ast.keyword("axis", ast.Constant(axis))
        case ast.Subscript(value=ast.Attribute(attr="shape") as shape, slice=ast.UnaryOp()):
            yield ast.Subscript(shape, ast.Constant(0), ast.Load())
        case ast.keyword(arg="keepdims"):
            yield ast.keyword("keepdims", ast.Constant(False))
        case ast.Subscript(value=array, slice=ast.Tuple(elts=indices)):
            yield ast.Subscript(array, ast.Tuple(indices[::-1], ast.Load()), ast.Load())


def swapped_ratio(node: ast.AST) -> Iterator[ast.AST]:
    """a / b → b / a, and neighbouring arguments of a call to a function of ours exchanged."""
    match node:
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            yield ast.BinOp(right, ast.Div(), left)
        case ast.Call(func=ast.Name(), args=arguments):
            for i in range(len(arguments) - 1):
                if _is_array(arguments[i]) and _is_array(arguments[i + 1]):
                    exchanged = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
                    yield ast.Call(node.func, exchanged, node.keywords)


def _is_array(argument: ast.expr) -> bool:
    """Whether an argument may be an array or a comparison, not a namespace, a text, an option or an error."""
    if isinstance(argument, (ast.Constant, ast.Starred)):
        return False
    return not (isinstance(argument, ast.Name) and argument.id in ("xp", "power", "on_empty", "name", "SupportError"))


def sign(node: ast.AST) -> Iterator[ast.AST]:
    """a + b ↔ a − b, and a unary minus dropped."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            yield ast.BinOp(left, ast.Add(), right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield operand


def missing_term(node: ast.AST) -> Iterator[ast.AST]:
    """One side of a sum, a difference, a product or a conjunction alone."""
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Mult() | ast.BitAnd() | ast.BitOr(), right=right):
            yield left
            yield right
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            yield left
            yield ast.UnaryOp(ast.USub(), right)


def guard_dropped(node: ast.AST) -> Iterator[ast.AST]:
    """where(c, x, y) → x and → y: the guarded values without the guard, and the guard alone."""
    match node:
        case ast.Call(func=ast.Attribute(attr="where"), args=[_, guarded, guard]):
            yield guarded
            yield guard


def check_dropped(node: ast.AST) -> Iterator[ast.AST]:
    """A call of a function that checks or refuses → None, and an error that is not raised."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name.startswith(("check_", "refuse")):
            yield ast.Constant(None)
        case ast.If(body=[ast.Raise()], orelse=rest):
            yield ast.If(ast.Constant(False), [ast.Pass()], rest)


OPERATORS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "dropped normaliser": dropped_normalizer,
    "off-by-one n": off_by_one,
    "wrong axis": wrong_axis,
    "swapped ratio": swapped_ratio,
    "sign": sign,
    "missing term": missing_term,
    "guard dropped": guard_dropped,
    "check dropped": check_dropped,
}
"""By name, the narrower first: code that two operators make counts once, for the first."""


def mutants() -> list[Mutant]:
    """Every operator at every place of every function of the formula modules, and the missing detaches."""
    found = [mutant for module in MODULES for function in functions_of(_module(module)) for mutant in broken(function)]
    return [*found, *undetached()]


def functions_of(module: ModuleType) -> list[FunctionType]:
    """The functions that a module defines."""
    return [
        value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]


def broken(function: FunctionType) -> Iterator[Mutant]:
    """Every mutant of one function; the same code twice counts once."""
    source, start = inspect.getsourcelines(function)
    tree = ast.parse("".join(source)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    seen = {ast.unparse(tree)}
    sites = [node for statement in tree.body for node in ast.walk(statement)]
    for (operator, rewrite), node in itertools.product(OPERATORS.items(), sites):
        for replacement in rewrite(node):
            changed = copy.deepcopy(tree, {id(node): replacement})
            text = ast.unparse(changed)
            if text not in seen:
                seen.add(text)
                line = start + getattr(node, "lineno", 1) - 1
                change = " ".join(f"{ast.unparse(node)} → {ast.unparse(replacement)}".split())
                build = functools.partial(_compiled, changed, function)
                yield Mutant(operator, function.__module__.split(".")[-1], function.__name__, line, change, build)


def _compiled(tree: ast.FunctionDef, original: FunctionType) -> Function:
    """The function of a syntax tree, in the module of the original."""
    module = ast.fix_missing_locations(ast.Module([tree], []))
    code: CodeType = compile(
        module, f"<mutant of {original.__name__}>", "exec", flags=__future__.annotations.compiler_flag
    )
    made: dict[str, Any] = {}
    exec(code, original.__globals__, made)
    function: Function = made[original.__name__]
    return function


def undetached() -> Iterator[Mutant]:
    """Per estimator whose coefficients depend on the policy, −Σ c · log β with the gradient flowing through c too.

    It stands in the place of the objective, which is another function and holds no coefficients: see the module.
    """
    for name in BRIDGES:
        estimator = name.removesuffix("_coefficients")
        if estimator != name and name not in PIECEWISE_CONSTANT and _depends_on_policy(BRIDGES[name]):
            yield Mutant(
                MISSING_DETACH,
                "objectives",
                f"{estimator}_objective",
                0,
                "the objective → −Σ c · log β with c not detached",
                functools.partial(surrogate, name, is_detached=False),
            )


def _depends_on_policy(bridge: Bridge) -> bool:
    """Whether an estimator's coefficients are a function of the policy."""
    return "policy_log_ratio" in inspect.signature(getattr(brain_core, bridge.name)).parameters


def surrogate(coefficients: str, *, is_detached: bool) -> Function:
    """The training loss −Σ c · log β of an estimator, whose gradient is −c only where c is detached."""

    def objective(*arguments: Any, **options: Any) -> Any:
        """−Σ c · log β of torch tensors."""
        constants = [argument.detach() if is_detached else argument for argument in arguments]
        log_policy = arguments[-1]
        finite = log_policy.where(log_policy > -np.inf, log_policy.new_zeros(()))
        return -(getattr(brain_core, coefficients)(*constants, **options) * finite).sum(-1)

    return objective


# Killing


def _module(name: str) -> ModuleType:
    """A module of `brain_core`."""
    return importlib.import_module(f"brain_core.{name}")


@contextlib.contextmanager
def swapped_in(original: Function, replacement: Function) -> Iterator[None]:
    """Put a function in the place of another wherever a module of `brain_core` refers to it; put it back at the end."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "brain_core"]
    places = [(vars(module), name) for module in modules for name, value in vars(module).items() if value is original]
    try:
        for namespace, name in places:
            namespace[name] = replacement
        yield
    finally:
        for namespace, name in places:
            namespace[name] = original


@functools.cache
def reached(function: FunctionType) -> frozenset[FunctionType]:
    """The functions of `brain_core` that one calls, directly or not, and itself."""
    found, waiting = {function}, [function]
    while waiting:
        caller = waiting.pop()
        for name in _names(caller.__code__):
            called = caller.__globals__.get(name)
            if inspect.isfunction(called) and called.__module__.startswith("brain_core") and called not in found:
                found.add(called)
                waiting.append(called)
    return frozenset(found)


def _names(code: CodeType) -> set[str]:
    """The global names that code uses, the code within it included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def killers(mutant: Mutant, bridges: Sequence[Bridge]) -> list[Bridge]:
    """The bridges whose function reaches the broken one, the nearest first."""
    functions = {bridge: reached(getattr(brain_core, bridge.name)) for bridge in bridges}
    touched = [bridge for bridge in bridges if mutant.original in functions[bridge]]
    return sorted(touched, key=lambda bridge: len(functions[bridge]))


def kill(mutant: Mutant, bridges: Sequence[Bridge] | None = None) -> str:
    """The name of the first bridge that notices a mutant, "" if it survives.

    Args:
        mutant: The broken function.
        bridges: What may notice it; all bridges by default.
    """
    candidates = killers(mutant, list(BRIDGES.values()) if bridges is None else bridges)
    replacement = mutant.build()
    with swapped_in(mutant.original, replacement), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(
            (bridge.name for attempt in _attempts(mutant.operator) for bridge in candidates if attempt(bridge)), ""
        )


def _attempts(operator: str) -> list[Callable[[Bridge], bool]]:
    """Whether a bridge notices: its values on numpy, then its gradient on torch, which is all that a detach changes."""
    values = functools.partial(_notices, lambda bridge: check_values(bridge, shipped(bridge.name), "numpy"))
    gradient = functools.partial(_notices, lambda bridge: check_gradient(bridge, shipped(bridge.name)))
    return [gradient] if operator == MISSING_DETACH else [values, gradient]


def _notices(check: Callable[[Bridge], None], bridge: Bridge) -> bool:
    """Whether a check of a bridge fails, in whatever way."""
    try:
        check(bridge)
    except Exception:
        return True
    return False


def unsound(bridges: Sequence[Bridge]) -> list[str]:
    """The bridges that refute the code as it is, so that what they kill means nothing."""
    checks = _attempts(operator="")
    return [bridge.name for bridge in bridges if any(check(bridge) for check in checks)]


def report(print_line: Callable[[str], object], tried: Sequence[Mutant] | None = None) -> bool:
    """Try mutants and print a line per operator and module, the survivors and the total; whether all are killed.

    Args:
        print_line: Prints a line.
        tried: The mutants; all by default.
    """
    started = time.perf_counter()
    if wrong := unsound(list(BRIDGES.values())):
        print_line(f"nothing to learn: brain_core as it is fails {', '.join(wrong)}")
        return False
    tally: Counter[tuple[str, str, str]] = Counter()
    survivors = []
    for mutant in mutants() if tried is None else tried:
        is_killed = bool(kill(mutant))
        tally[mutant.operator, mutant.module, "killed" if is_killed else "survived"] += 1
        if not is_killed:
            survivors.append(mutant)
    for line in _table(tally):
        print_line(line)
    for mutant in survivors:
        print_line(f"survived: {describe(mutant)}")
    print_line(_total(tally, time.perf_counter() - started))
    return not survivors


def _table(tally: Counter[tuple[str, str, str]]) -> Iterator[str]:
    """A line per operator and module: how many mutants, and what became of them."""
    for operator, module in itertools.product((*OPERATORS, MISSING_DETACH), MODULES):
        fates = {fate: tally[operator, module, fate] for fate in ("killed", "survived")}
        counts = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
        if counts:
            yield f"{operator:20} {module:14} {sum(fates.values()):4} mutants: {counts}"
            if operator == MISSING_DETACH:
                yield (
                    f"{'':20} (brain_core has no detach to drop: each objective gives way to −Σ c · log β with c not "
                    f"detached; that training detaches is held by {' and '.join(DETACH_TESTS)})"
                )


def describe(mutant: Mutant) -> str:
    """A mutant in a line."""
    return f"{mutant.operator}, brain_core/{mutant.module}.py:{mutant.line}, {mutant.function}: {mutant.change}"


def _total(tally: Counter[tuple[str, str, str]], seconds: float) -> str:
    """The last line."""
    tried = tally.total()
    killed = sum(count for (_, _, fate), count in tally.items() if fate == "killed")
    share = 100 * killed / tried if tried else 0
    return f"\n{tried} mutants: {killed} killed ({share:.1f} %), {tried - killed} survived; {seconds:.0f} s"

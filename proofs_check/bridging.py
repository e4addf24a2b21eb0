"""How a bridge is checked: a public function of `brain_core` against its exact formula, on a batch of groups a call."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
import numpy as np

import brain_core
from proofs_check.claims import Refuted, require
from proofs_check.instances import GENERIC, Toy, toy
from proofs_check.oracles import DIGITS, Number, Oracle, Sample, deviations, log_of, logs

TOLERANCE = 1e-13
EXACT_OPTIONS = ("power", "kind", "preference", "margin", "clip", "is_scaled")
"""The options that an oracle takes."""

Function = Callable[..., Any]
Options = Mapping[str, Any]
NO_OPTIONS: Options = {}


class Batch(NamedTuple):
    """Groups that are passed in one call, and how their values are compared."""

    samples: Sequence[Sample]
    shape: tuple[int, ...]
    options: Options = NO_OPTIONS
    floor: float = 1.0
    """Deviations are relative to the largest value of the group, or to this if it is larger."""
    tolerance: float = TOLERANCE


class Refusal(NamedTuple):
    """Input that has no value, and the error that says so."""

    error: type[Exception]
    arguments: tuple[Any, ...]
    options: Options = NO_OPTIONS
    dtype: str = "float64"
    says: str = ""
    """A part of the message."""


def sample_of(problem: Toy, group: Sequence[int], factor: Fraction = Fraction(1)) -> Sample:
    """A group of a problem's outcomes; the target's ratio is `factor` times p g / q'."""
    prior, goodness, likelihood, proposal = ([column[k] for k in group] for column in problem)
    target = [factor * p * g / s for p, g, s in zip(prior, goodness, proposal, strict=True)]
    policy = [q / s for q, s in zip(likelihood, proposal, strict=True)]
    return Sample(target, policy, factor * problem.normalizer, prior, goodness, likelihood, proposal)


def every_multiset(problem: Toy, group_size: int) -> list[tuple[int, ...]]:
    """Every group of a problem, without regard to order."""
    return list(itertools.combinations_with_replacement(range(problem.size), group_size))


def written(target: Iterable[float], policy: Iterable[float], log_normalizer: float = 0.0) -> Sample:
    """A group whose log-ratios are these floats, to the last digit."""
    with mpmath.workdps(DIGITS):
        alpha, beta = ([mpmath.exp(mpmath.mpf(float(value))) for value in values] for values in (target, policy))
        return Sample(alpha, beta, mpmath.exp(mpmath.mpf(log_normalizer)))


@dataclass(frozen=True, eq=False)
class Bridge:
    """One public function: what is passed to it, what it must return, and wrong forms that must be noticed.

    Attributes:
        name: The function, in `brain_core`.
        formula: What it computes, for the statement.
        source: Where that stands.
        oracle: The exact value.
        arguments: From a sample, the exact numbers that are passed, by position.
        batches: The groups.
        variants: Options; a function of the sample gives one number per group. The oracle gets `EXACT_OPTIONS`.
        slope: Minus the exact gradient in the last argument, where the function is an objective.
        refusals: Input that must raise.
        mutants: Wrong forms, from the shipped function.
    """

    name: str
    formula: str
    source: str
    oracle: Oracle
    arguments: Sequence[Callable[[Sample], Any]]
    batches: Sequence[Batch]
    mutants: Mapping[str, Callable[[Function], Function]]
    variants: Sequence[Options] = ({},)
    slope: Oracle | None = None
    refusals: Sequence[Refusal] = ()


class Call(NamedTuple):
    """A call in floats, and what it must return; `slope` is minus the gradient in the last argument."""

    arguments: list[np.ndarray]
    options: dict[str, Any]
    expected: np.ndarray
    slope: np.ndarray | None
    batch: Batch


@functools.cache
def calls(bridge: Bridge) -> tuple[Call, ...]:
    """All calls of a bridge with their exact values, worked out once."""
    with mpmath.workdps(DIGITS):
        return tuple(_call(bridge, batch, options) for batch in bridge.batches for options in bridge.variants)


def _call(bridge: Bridge, batch: Batch, options: Options) -> Call:
    """One batch passed under one set of options."""
    options = {**options, **batch.options}
    return Call(
        [_floats(batch, argument) for argument in bridge.arguments],
        {key: _option(batch, value) for key, value in options.items()},
        _exact(batch, bridge.oracle, options),
        _exact(batch, bridge.slope, options) if bridge.slope else None,
        batch,
    )


def _exact(batch: Batch, oracle: Oracle, options: Options) -> np.ndarray:
    """What an oracle gives for each sample, under the options that it takes."""
    known = {key: value for key, value in options.items() if key in EXACT_OPTIONS}
    return _floats(batch, lambda sample: oracle(sample, **_of_sample(known, sample)))


def _of_sample(options: Options, sample: Sample) -> dict[str, Any]:
    """Options with the values that they have for a sample."""
    return {key: value(sample) if callable(value) else value for key, value in options.items()}


def _floats(batch: Batch, of_sample: Callable[[Sample], Any]) -> np.ndarray:
    """A float64 array of exact values: one, or one per completion, for each sample."""
    values = [of_sample(sample) for sample in batch.samples]
    floats = np.array([[float(x) for x in value] if isinstance(value, list) else float(value) for value in values])
    return floats.reshape((*batch.shape, *floats.shape[1:]))


def _option(batch: Batch, value: Any) -> Any:
    """An option as passed: a number where all samples of several agree, an array otherwise, 0-d for a single one."""
    if not callable(value):
        return float(value) if isinstance(value, Fraction) else value
    floats = _floats(batch, value)
    return float(floats.flat[0]) if floats.ndim and (floats == floats.flat[0]).all() else floats


def shipped(name: str) -> Function:
    """The public function of that name, looked up when it is called."""
    return lambda *arguments, **options: getattr(brain_core, name)(*arguments, **options)


def check(bridge: Bridge, subject: Function) -> None:
    """Raise Refuted unless a function has the values, refusals and gradients of a bridge."""
    check_values(bridge, subject, "numpy")
    check_values(bridge, subject, "torch")
    check_gradient(bridge, subject)


def check_values(bridge: Bridge, subject: Function, library: str) -> None:
    """Raise Refuted unless a function has the values and refusals of a bridge, in an array library."""
    convert = _converter(library)
    for call in calls(bridge):
        found = _outcome(subject, [convert(a) for a in call.arguments], _converted(call.options, convert))
        what = f"brain_core.{bridge.name} on {library}"
        require(isinstance(found, (type(convert(call.expected)), np.float64)), f"{what} is of another library")
        _require_alike(np.asarray(found), call.expected, call.batch, what)
    for refusal in bridge.refusals:
        _require_refused(subject, refusal, convert)


def check_gradient(bridge: Bridge, subject: Function) -> None:
    """Raise Refuted unless torch's gradient of an objective is minus the exact coefficients."""
    if bridge.slope is None:
        return
    convert = _converter("torch")
    for call in calls(bridge):
        if call.slope is None or call.batch.floor == 0:
            continue
        *data, variable = (convert(a) for a in call.arguments)
        options = _converted(call.options, convert)
        gradient = _outcome(_gradient_in_last, [subject, *data, variable], options)
        _require_alike(-gradient, call.slope, call.batch, f"minus the gradient of brain_core.{bridge.name}")


def _gradient_in_last(objective: Function, *arguments: Any, **options: Any) -> np.ndarray:
    """torch's gradient of an objective, summed over groups, in its last argument."""
    *data, variable = arguments
    variable.requires_grad_(True)
    objective(*data, variable, **options).sum().backward()
    gradient: np.ndarray = variable.grad.numpy()
    return gradient


def _converter(library: str) -> Callable[[np.ndarray], Any]:
    """From a numpy array to one of the library."""
    if library == "numpy":
        return np.copy
    import torch

    return torch.tensor


def _converted(options: Mapping[str, Any], convert: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Options with their arrays in another library."""
    return {key: convert(value) if isinstance(value, np.ndarray) else value for key, value in options.items()}


def _outcome(subject: Function, arguments: Sequence[Any], options: Options) -> Any:
    """What a function returns; an error where it should return, and a NaN that numpy makes on the way, is refuted."""
    try:
        with np.errstate(all="ignore", invalid="raise"):
            return subject(*arguments, **options)
    except Exception as error:
        raise Refuted(f"{type(error).__name__}: {error}") from error


def _require_refused(subject: Function, refusal: Refusal, convert: Callable[[np.ndarray], Any]) -> None:
    """Raise Refuted unless the function raises just that error."""
    arguments = [convert(np.array(argument, dtype=refusal.dtype)) for argument in refusal.arguments]
    options = {key: np.array(v) if isinstance(v, list) else v for key, v in refusal.options.items()}
    try:
        with np.errstate(all="ignore"):
            subject(*arguments, **_converted(options, convert))
    except Exception as error:
        is_right = type(error) is refusal.error and refusal.says in str(error)
        require(is_right, f"{refusal} gives {type(error).__name__}: {error}")
        return
    raise Refuted(f"{refusal} is not refused")


# Input that no function takes

RIGHT_OPTIONS: Options = {"log_normalizer": 0.0, "preference": 0.5, "power": 1.0, "clip": 0.2}
"""A value of each option that has no default, for some functions at least."""

PER_GROUP = ("log_normalizer", "preference")
"""The options that may be one number per group."""

FLAGS = ("is_scaled",)
"""The options that are true or false: no value of theirs is wrong."""

ELEMENTWISE = ("target_log_ratio", "policy_log_ratio", "bradley_terry_log_goodness", "logistic_log_goodness")
"""The functions that know no groups."""

NOT_POSITIVE = (0.0, -1.0, math.inf, math.nan)
NOT_FINITE = (math.inf, -math.inf, math.nan, [[math.nan, 0.0]], [[0.0, math.inf]], [[0.0, -math.inf]])
ANOTHER_SHAPE = [0.0, 0.0, 0.0]
WRONG_OPTIONS: Mapping[str, Sequence[Any]] = {
    "power": NOT_POSITIVE,
    "temperature": NOT_POSITIVE,
    "margin": NOT_POSITIVE,
    "clip": NOT_POSITIVE,
    "log_normalizer": NOT_FINITE,
    "preference": (*NOT_FINITE, -0.1, 1.1, [[0.5, -0.1]], [[1.1, 0.5]]),
    "kind": ("entropy",),
    "on_empty": ("ignore",),
}
"""By option, values that raise ValueError for groups (1, 2)."""


def wrong_input(bridge: Bridge) -> Iterator[Refusal]:
    """Each input and each option in turn with values that no function takes, the others being right."""
    parameters = inspect.signature(getattr(brain_core, bridge.name)).parameters
    names = list(parameters)[: len(bridge.arguments)]
    options = {name: value for name, value in RIGHT_OPTIONS.items() if name in parameters}
    right = [[[[0.0, 1.0], [1.0, 0.0]]] for _ in names]
    for place, name in enumerate(names):
        for wrong, word in ((math.nan, "NaN"), (math.inf, "+inf")):
            arguments = (*right[:place], [[[0.0, 1.0], [1.0, wrong]]], *right[place + 1 :])
            yield Refusal(ValueError, arguments, options, says=f"{name} is {word}; first at index (0, 1, 1)")
    yield Refusal(TypeError, tuple(right), options, dtype="float16", says=f"{names[0]} has dtype")
    yield from _wrong_shapes(names, options, has_groups=bridge.name not in ELEMENTWISE)
    yield from _wrong_options(right, options, [name for name in parameters if name in WRONG_OPTIONS])


def _wrong_shapes(names: Sequence[str], options: Options, *, has_groups: bool) -> Iterator[Refusal]:
    """Inputs of two shapes, and groups of nothing."""
    for name in names[1:]:
        arguments: tuple[Any, ...] = tuple([[0.0, 1.0]] if other == name else [0.0, 1.0] for other in names)
        yield Refusal(ValueError, arguments, options, says=f"{name} has shape (1, 2) and {names[0]} (2,)")
    if has_groups:
        says = "the last axis, the group, needs at least"
        yield Refusal(ValueError, (0.0,) * len(names), options, says=says)
        yield Refusal(ValueError, ([[], []],) * len(names), options, says=says)


def _wrong_options(right: Sequence[Any], options: Options, names: Sequence[str]) -> Iterator[Refusal]:
    """Each of those options in turn with values that it must not have."""
    for name in names:
        for wrong in WRONG_OPTIONS[name]:
            yield Refusal(ValueError, tuple(right), {**options, name: wrong}, says=name)
        if name in PER_GROUP:
            shapes = "has shape (3,); one number per group has shape (1, 2)"
            yield Refusal(ValueError, tuple(right), {**options, name: ANOTHER_SHAPE}, says=f"{name} {shapes}")


def _require_alike(found: np.ndarray, expected: np.ndarray, batch: Batch, what: str) -> None:
    """Raise Refuted unless both agree to the tolerance, relative to the largest value of each group."""
    require(found.dtype == np.float64, f"{what} has dtype {found.dtype}")
    require(found.shape == expected.shape, f"{what} has shape {found.shape}, not {expected.shape}")
    infinite = np.isinf(expected)
    require(np.array_equal(found[infinite], expected[infinite]), f"{what} is not infinite where it should be")
    finite = np.where(infinite, 0.0, expected)
    is_per_group = expected.shape == batch.shape
    largest = np.abs(finite) if is_per_group else np.abs(finite).max(axis=-1, keepdims=True)
    deviation = np.abs(np.where(infinite, 0.0, found) - finite)
    is_right = deviation <= batch.tolerance * np.maximum(largest, batch.floor)
    require(bool(is_right.all()), f"{what} is off by {deviation.max():g}")


# The groups

TIES = toy((2, 1, 2, 0, 3), (1, 2, 1, 4, 0), (2, 2, 3, 0, 1), (1, 1, 2, 1, 3))
"""Two outcomes alike, two that the target excludes, one of which the policy excludes too."""

TIED = [sample_of(TIES, group, Fraction(i + 1, 3)) for i, group in enumerate(every_multiset(TIES, 4))]
EVERY = Batch([sample_of(GENERIC, group) for group in every_multiset(GENERIC, 3)], (5, 4))
ALONE = Batch([sample_of(GENERIC, (3, 0, 1))], ())
WITH_TIES = Batch(TIED, (2, 5, 7))
SKIPPED = WITH_TIES._replace(options={"on_empty": "skip"})
OCCUPIED = Batch([sample for sample in TIED if any(sample.target)], (13, 5))
SINGLETONS = Batch([sample_of(GENERIC, [k]) for k in range(4)], (2, 2))
PAIRS = Batch([sample_of(GENERIC, pair) for pair in itertools.product(range(4), repeat=2)], (4, 4))
ONE_PAIR = Batch([sample_of(GENERIC, (3, 1))], ())
RANKINGS = Batch([sample_of(GENERIC, ranking) for ranking in itertools.product(range(4), repeat=3)], (4, 16))
WORST_EXCLUDED = Batch([sample_of(TIES, (*two, 3)) for two in itertools.product((0, 1, 2, 4), repeat=2)], (2, 8))

SPREAD = np.array([-1.234567890123, 0.543210987654, 2.1, -3.3, 0.123456789])
TINY = 1e-6 * np.array([0.3, -1.1, 0.7, 2.3, -0.9])
UNLIKELY = np.array([0.0, 0.0, 0.0, 0.0, -40.0])
PUSH = np.array([0.4, 1.2, -0.1, 2.9, -4.0])

NEAR = Batch(
    [
        written(1e3 + SPREAD + TINY, 1e3 + SPREAD),
        written(-1e3 + SPREAD + TINY, -1e3 + SPREAD),
        written(4321.1 + SPREAD + TINY, SPREAD - 1e3),
        written(SPREAD + TINY, SPREAD + 1e9 / 7),
        written(SPREAD + 1e9 / 7, SPREAD - 3 * TINY),
        written(SPREAD + PUSH + 1e9 / 7, SPREAD),
        written(SPREAD + PUSH, SPREAD + 1e9 / 7),
        written(1e3 * SPREAD, 1e3 * np.roll(SPREAD, 1)),
        written(SPREAD + 0.04 * PUSH, SPREAD),
        written(SPREAD + TINY + UNLIKELY + UNLIKELY / 40, SPREAD + UNLIKELY),
    ],
    (2, 5),
    floor=0.0,
)
"""Target and policy nearly proportional, at magnitudes where their plain difference has few digits or none."""

LARGE = Batch([*NEAR.samples[:3], *NEAR.samples[7:8]], (2, 2))
"""Magnitudes at which plain exponentials overflow."""

NEAR_NORMALIZED = Batch(
    [
        written(SPREAD + TINY + 1e9 / 7, SPREAD, 1e9 / 7),
        written(SPREAD + TINY, 600 + SPREAD, -600 - 1e-7),
        written(SPREAD - 600 + TINY, SPREAD, -600.0),
    ],
    (3,),
    floor=0.0,
)
"""Target, less its normaliser, and policy nearly equal."""

SERIES = Batch(
    [written([0.0], [-gap]) for gap in (0.0499, -0.0499, 0.03, 1e-5)],
    (4,),
    {"log_normalizer": 0.0},
    floor=0.0,
    tolerance=2e-15,
)
"""Where a divergence is summed as a series, on whose last terms only the last digits depend."""

BRANCHES = SERIES._replace(
    samples=[written([0.0], [-gap]) for gap in (0.0501, -0.0501, -0.9, -1.1)], tolerance=TOLERANCE
)
"""On either side of where other formulas take over."""

HUGE = Batch([written([400.0, 1.0, 0.5], [2.0, 0.0, 0.25]), written([0.0, 1.0, 0.5], [2.0, 400.0, 0.25])], (2,))
"""Ratios near the largest float, in groups apart, so that no product of two overflows."""

OFFSET = Batch(
    [
        written(SPREAD, offset + PUSH)._replace(goodness=[mpmath.mpf(float(value)) for value in rewards])
        for offset, rewards in ((1e6 / 7, 1e6 / 3 + SPREAD), (-1e6 / 7, 5.0 * SPREAD))
    ],
    (2,),
    floor=0.0,
)
"""Rewards and log-ratios that are large but for their differences."""

REACHABLE = [
    *(s for s in TIED if any(s.policy) and all(a or not b for a, b in zip(s.target, s.policy, strict=True))),
    written([1.0, 2.0, 0.5, 3.0], [1.3, 1.0, 0.5, -math.inf]),
    written([0.0, 1000.0, 3.0, -math.inf], [1000.0, 0.0, 1.0, -math.inf]),
]
REACHED = Batch(REACHABLE, (len(REACHABLE),))
"""Policy within the target's reach: where the one excludes, so does the other, or only the policy does."""

SKIPPED_REVERSE = Batch(
    [written([-math.inf] * 3, [0.5, -math.inf, 1.0]), written([0.0, 1.0, 0.5], [0.3, 0.7, 0.1])],
    (2,),
    {"on_empty": "skip"},
)
"""A group without target mass, which is skipped, and one with."""

ROOMY = Batch(
    [
        written([0.0] * 3, [400.0, 1.0, 0.5])._replace(goodness=[Fraction(r) for r in (1, 2, 4)]),
        written([0.0] * 3, [0.1, -0.2, 0.3])._replace(goodness=[10**200 * Fraction(r) for r in (1, -2, 4)]),
    ],
    (2,),
)
"""Ratios or rewards whose squares overflow, while no product of the two does."""

REWARDS = Batch(
    [
        written([0.0] * 3, [0.0] * 3)._replace(goodness=[mpmath.mpf(float(r)) for r in rewards])
        for rewards in ([0.1] * 3, [1e-200, 4e-200, -2e-200], [1e200, -3e200, 5e199], [1e9 / 7, 1e9 / 7 + 0.1, 1e9 / 7])
    ],
    (4,),
    floor=0.0,
)
"""Rewards that are equal, or whose squares underflow or overflow, or large but for their differences."""

SATURATED = Batch(
    [
        written([0.0, 1.0, -800.0, -math.inf], [800.0, -800.0, 0.0, -math.inf]),
        written([3.0, 1.0, 0.5, -math.inf], [-2.0, 0.3, 40.0, 1.0]),
    ],
    (2,),
)
"""Log-ratios so far from 0 that a logistic function of them is 0 or 1."""

BEYOND = Batch(
    [
        written([0.0, 0.0, 0.0], [0.5, -math.inf, -700.0])._replace(goodness=[Fraction(r) for r in (5, 1, 2)]),
        written([0.0, 0.0, 0.0], [-700.0, 0.2, -0.2])._replace(goodness=[Fraction(r) for r in (3, 1, 1)]),
    ],
    (2,),
)
"""Rewards, and a policy that all but excludes some completion, which is not the best."""

OUT_OF_REACH = Batch(
    [
        written([1.0, 2.0, 0.5, -math.inf], [1.3, 1.0, 0.5, -math.inf]),
        written([0.0, 1000.0, 3.0, -math.inf], [1000.0, 0.0, 1.0, 2.0]),
        written([0.0, 0.0, 1.0, 2.0], [0.0, -1e40, 0.5, 0.25]),
        written([-math.inf, -100.5, -100.75, -math.inf], [0.0, -100.0, -100.25, -math.inf]),
    ],
    (2, 2),
)
"""Where the formula that is not chosen has no value or no slope: target and policy far apart, one or both excluding."""

WEIGHTED = (EVERY, ALONE, SKIPPED)
SELF_NORMALIZED = (*WEIGHTED, OUT_OF_REACH)
RAW = (EVERY, ALONE, WITH_TIES)
FINITE = (EVERY, ALONE)


# What is passed to a function, by group


def target(sample: Sample) -> list[Number]:
    """log α up to the factor of the sample."""
    return logs(sample.target)


def policy(sample: Sample) -> list[Number]:
    """log β."""
    return logs(sample.policy)


def prior(sample: Sample) -> list[Number]:
    """log p."""
    return logs(sample.prior)


def goodness(sample: Sample) -> list[Number]:
    """log g."""
    return logs(sample.goodness)


def likelihood(sample: Sample) -> list[Number]:
    """log q."""
    return logs(sample.likelihood)


def proposal(sample: Sample) -> list[Number]:
    """log q'."""
    return logs(sample.proposal)


def reward(sample: Sample) -> list[Number]:
    """The goodness, taken for a reward."""
    return list(sample.goodness)


def advantage(sample: Sample) -> list[Number]:
    """The goodness, taken for a reward, less its mean over the group."""
    return deviations(sample)


def log_normalizer(sample: Sample) -> Number:
    """log of the factor by which the target's ratio exceeds the normalised one."""
    return log_of(sample.normalizer)

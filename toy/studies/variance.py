"""Variance, squared bias and mean squared error of every estimator: against the proposal and against the group size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import brentq

from toy import exact_moments, gaussian_moments
from toy.plots import STYLE, count_axis, describe, draw, figure, legend_below, log_ordinate
from toy.studies.bias import SWEPT
from toy.studies.study import Floats, Progress, Study

GROUP_SIZE = 8
GRID = np.linspace(0.0, 1.0, 41)
"""Where the proposal is, from the target (0) to the policy (1)."""
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
MIDDLE = 0.5
"""Proposal of the comparison of group sizes."""
CONSISTENT = ("brain", "brain_weighted", "snis", "dpg", "gdcpp", "importance_weighted_rloo")
"""What tends to −∇KL(target ‖ policy) from any proposal, as the group grows."""
ANYWHERE = (*CONSISTENT, "snis_uniform")
ON_POLICY = ("gdc", "rloo")
"""What samples from the policy alone; plain RLOO descends KL(policy ‖ target)."""
QUANTITIES = ("variance", "bias_squared", "mse")
NEGLIGIBLE = 1e-10
"""Differences and squared biases below this are rounding, and count as 0."""


class Errors(NamedTuple):
    """How far one estimate is from −∇KL(target ‖ policy), in the mean over groups: mse = variance + bias_squared."""

    variance: float
    bias_squared: float
    mse: float


ErrorsOf = Callable[[str, float], Errors]
"""From the name of an estimator and the abscissa."""


def gaussian_errors(name: str, proposal_mean: float, group_size: int = GROUP_SIZE) -> Errors:
    """Target N(0, 1), policy N(1, 1), proposal N(μ, 1); the gradient is that in the policy's mean, −1."""
    found = gaussian_moments(name, proposal_mean, group_size)
    return Errors(found.variance, found.bias**2, found.mse)


def categorical_errors(name: str, part: float) -> Errors:
    """Proposal ∝ target^(1 − part) · policy^part on K = 5 completions, the policy being the prior."""
    target, policy = np.array(SWEPT.posterior, float), np.array(SWEPT.policy, float)
    proposal = target ** (1 - part) * policy**part
    found = exact_moments(SWEPT.with_proposal(list(proposal / proposal.sum())), name, GROUP_SIZE)
    return Errors(float(found.variance), float(found.bias @ found.bias), float(found.mse))


def size_errors(name: str, group_size: float) -> Errors:
    """The Gaussian toy at the middle proposal, or on-policy where the estimator asks for it."""
    return gaussian_errors(name, 1.0 if name in ON_POLICY else MIDDLE, int(group_size))


SWEEPS: dict[str, ErrorsOf] = {"gaussian": gaussian_errors, "categorical": categorical_errors}
"""Those along the proposal."""
ERRORS: dict[str, ErrorsOf] = {**SWEEPS, "group_size": size_errors}
ENDS = {"gaussian": (0.0, 1.0), "categorical": (0.0, 1.0), "group_size": (float(SIZES[0]), float(SIZES[-1]))}
Curves = dict[str, dict[str, Floats]]
"""From the name of an estimator and of a quantity to its values."""


Lowest = dict[tuple[str, str], list[tuple[float, float]]]
"""From a sweep and a quantity to the intervals where BRAIn is the lowest."""


class Crossing(NamedTuple):
    """Where BRAIn and another estimator are equally good."""

    sweep: str
    quantity: str
    other: str
    at: float
    value: float


def crossings(sweep: str, quantity: str, curves: Curves) -> list[Crossing]:
    """Every crossing of BRAIn with a consistent estimator, by root finding from the grid's changes of sign.

    Args:
        sweep: One of `SWEEPS`.
        quantity: "variance" or "mse".
        curves: The sweep's values on `GRID`.
    """
    found = []
    for other in CONSISTENT[1:]:

        def difference(at: float, other: str = other) -> float:
            """How much more BRAIn has of the quantity."""
            return _value(sweep, "brain", quantity, at) - _value(sweep, other, quantity, at)

        excess = curves["brain"][quantity] - curves[other][quantity]
        clear = np.flatnonzero(np.abs(excess) > NEGLIGIBLE)
        for left, right in pairwise(clear):
            if excess[left] * excess[right] < 0:
                at = float(brentq(difference, GRID[left], GRID[right], xtol=1e-10))
                found.append(Crossing(sweep, quantity, other, at, _value(sweep, "brain", quantity, at)))
    return sorted(found, key=lambda crossing: crossing.at)


def size_crossings(quantity: str, curves: Curves) -> list[Crossing]:
    """Every crossing of BRAIn with a consistent estimator along the group size, between two whole numbers.

    Args:
        quantity: "variance" or "mse".
        curves: The values at `SIZES`.
    """
    found = []
    for other in CONSISTENT[1:]:
        is_above = curves["brain"][quantity] > curves[other][quantity]
        found += [
            _size_crossing(quantity, other, SIZES[index], SIZES[index + 1])
            for index in np.flatnonzero(is_above[:-1] != is_above[1:])
        ]
    return sorted(found, key=lambda crossing: crossing.at)


def _size_crossing(quantity: str, other: str, left: int, right: int) -> Crossing:
    """Where the straight lines between neighbouring group sizes cross."""
    sizes = np.arange(left, right + 1, dtype=float)
    brain, rival = (
        np.array([_value("group_size", name, quantity, size) for size in sizes]) for name in ("brain", other)
    )
    excess = brain - rival
    last = int(np.flatnonzero(excess[:-1] * excess[1:] <= 0)[0])
    part = excess[last] / (excess[last] - excess[last + 1])
    value = (1 - part) * brain[last] + part * brain[last + 1]
    return Crossing("group_size", quantity, other, float(sizes[last] + part), float(value))


def _value(sweep: str, name: str, quantity: str, at: float) -> float:
    """One quantity of one estimator."""
    return float(getattr(ERRORS[sweep](name, at), quantity))


def brain_is_lowest(sweep: str, quantity: str, found: Sequence[Crossing]) -> list[tuple[float, float]]:
    """Intervals of the abscissa on which BRAIn has the lowest value among consistent estimators."""
    start, end = ENDS[sweep]
    edges = [start, *(crossing.at for crossing in found), end]
    intervals: list[tuple[float, float]] = []
    for left, right in pairwise(edges):
        middle = (left + right) / 2
        if min(CONSISTENT, key=lambda name: _value(sweep, name, quantity, middle)) == "brain":
            starts_before = intervals and intervals[-1][1] == left
            intervals[-1:] = [(intervals[-1][0], right)] if starts_before else [*intervals[-1:], (left, right)]
    return intervals


def study(progress: Progress) -> Study:
    """The paper's variance figure, its categorical twin, and the dependence on n.

    Source: theory section 4; eq-12; T5, T6, T8.
    """
    curves = {sweep: _curves(errors, GRID, progress, sweep) for sweep, errors in SWEEPS.items()}
    for sweep, errors in SWEEPS.items():
        curves[sweep] |= {name: _table([errors(name, 1.0)]) for name in ON_POLICY}
    sizes = _curves(size_errors, np.array(SIZES, float), progress, "group sizes", (*ANYWHERE, *ON_POLICY))
    found = {(s, q): crossings(s, q, curves[s]) for s in SWEEPS for q in ("variance", "mse")}
    found |= {("group_size", q): size_crossings(q, sizes) for q in ("variance", "mse")}
    lowest = {key: brain_is_lowest(*key, crossed) for key, crossed in found.items()}
    made, panels = figure(3, 3)
    for row, sweep in zip(panels, SWEEPS, strict=False):
        for panel, quantity in zip(row, QUANTITIES, strict=True):
            key = (sweep, quantity)
            _draw_sweep(panel, sweep, quantity, curves[sweep])
            _mark(panel, found.get(key, []), lowest.get(key, []))
    for panel, quantity in zip(panels[2], QUANTITIES, strict=True):
        _draw_sizes(panel, quantity, sizes)
        _mark(panel, found.get(("group_size", quantity), []), lowest.get(("group_size", quantity), []))
    legend_below(made, panels[::-1])
    rows = [row for name, values in {**curves, "group_size": sizes}.items() for row in _rows(name, values)]
    return Study("variance", made, COLUMNS, rows, _summary(found, lowest, curves), _caption(lowest))


def _curves(errors: ErrorsOf, grid: Floats, progress: Progress, label: str, names: Sequence[str] = ANYWHERE) -> Curves:
    """All quantities of these estimators on a grid."""
    return {name: _table([errors(name, float(at)) for at in grid]) for name in progress(names, label)}


def _table(errors: Sequence[Errors]) -> dict[str, Floats]:
    """One array per quantity."""
    return {quantity: np.array([getattr(error, quantity) for error in errors]) for quantity in QUANTITIES}


TITLES = {"variance": "variance", "bias_squared": "|bias|²", "mse": "mean squared error"}
LOWEST_SHOWN = {"variance": 0.04, "bias_squared": 1e-4, "mse": 0.06}
PLACES = {
    "gaussian": ("Gaussian, n = 8", "proposal mean μ (target 0, policy 1)"),
    "categorical": ("K = 5, n = 8", "proposal, from target (0) to policy (1)"),
}


def _draw_sweep(panel: Axes, sweep: str, quantity: str, curves: Curves) -> None:
    """One quantity of every estimator against the proposal."""
    title, place = PLACES[sweep]
    for name, values in curves.items():
        on_policy = name in ON_POLICY
        options = {"zorder": 5, "markersize": 8, "linestyle": "none"} if on_policy else {}
        draw(panel, [1.0] if on_policy else GRID, _shown(values[quantity]), STYLE[name], **options)
    log_ordinate(panel, LOWEST_SHOWN[quantity])
    describe(panel, title=f"{title}: {TITLES[quantity]}", x=place, y=f"{TITLES[quantity]} (nats²)")


def _draw_sizes(panel: Axes, quantity: str, curves: Curves) -> None:
    """One quantity of every estimator against n."""
    for name, values in curves.items():
        draw(panel, SIZES, _shown(values[quantity]), STYLE[name])
    count_axis(panel)
    log_ordinate(panel, 1e-5 if quantity == "bias_squared" else None)
    describe(panel, title=f"Gaussian, μ = ½: {TITLES[quantity]}", x="group size n", y=f"{TITLES[quantity]} (nats²)")


def _shown(values: Floats) -> Floats:
    """The values, with gaps where they are 0 but for rounding: a logarithmic axis has no place for those."""
    return np.where(values > NEGLIGIBLE, values, np.nan)


def _mark(panel: Axes, found: Sequence[Crossing], lowest: Sequence[tuple[float, float]]) -> None:
    """Rings at the crossings, a shade where BRAIn is lowest."""
    for left, right in lowest:
        panel.axvspan(left, right, color="0.92", zorder=0, label="BRAIn lowest (consistent ones)")
    for crossing in found:
        looks: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "0.2"}
        panel.plot(crossing.at, crossing.value, linestyle="none", label="BRAIn crosses another", zorder=6, **looks)


COLUMNS = ("sweep", "estimator", "abscissa", *QUANTITIES)


def _rows(sweep: str, curves: Curves) -> list[tuple[object, ...]]:
    """The numbers behind the panels of one row."""
    rows: list[tuple[object, ...]] = []
    for name, values in curves.items():
        grid = SIZES if sweep == "group_size" else (1.0,) if name in ON_POLICY else GRID
        rows += [(sweep, name, float(at), *point) for at, *point in zip(grid, *values.values(), strict=True)]
    return rows


def _summary(
    found: dict[tuple[str, str], list[Crossing]],
    lowest: Lowest,
    curves: dict[str, Curves],
) -> dict[str, object]:
    """Settings, crossings, and where BRAIn is lowest."""
    return {
        "group_size": GROUP_SIZE,
        "consistent_estimators": CONSISTENT,
        "crossings": [crossing._asdict() for crossed in found.values() for crossing in crossed],
        "brain_is_lowest": [
            {"sweep": sweep, "quantity": quantity, "intervals": intervals}
            for (sweep, quantity), intervals in lowest.items()
        ],
        "largest_over_smallest_variance_along_the_sweep": {
            sweep: {
                name: float(np.max(c["variance"]) / np.min(c["variance"]))
                for name, c in by_name.items()
                if name in CONSISTENT
            }
            for sweep, by_name in curves.items()
        },
    }


def _caption(lowest: Lowest) -> str:
    """What the figure shows, with the intervals in numbers."""
    shown = [
        f"{sweep} {TITLES[quantity]}: "
        + (", ".join(f"{left:.3f} to {right:.3f}" for left, right in intervals) or "none")
        for (sweep, quantity), intervals in lowest.items()
        if sweep in SWEEPS
    ]
    largest = {quantity: int(lowest["group_size", quantity][0][1]) for quantity in ("variance", "mse")}
    text = CAPTION.replace("INTERVALS", "; ".join(shown))
    return text.replace("VARIANCE_SIZE", str(largest["variance"])).replace("ERROR_SIZE", str(largest["mse"]))


CAPTION = (
    "Exact variance, squared bias and mean squared error, to -grad KL(target | policy), of the gradient of one group. "
    "Above: target N(0, 1), policy N(1, 1), proposal N(mu, 1). Middle: K = 5, policy = prior, proposal on the "
    "geometric path from target to policy. Below: the Gaussian toy at mu = 1/2 against n (GDC and RLOO at mu = 1). "
    "BRAIn's variance hardly depends on the Gaussian proposal (by a factor of 1.11), and is symmetric in it. It is "
    "NOT the lowest everywhere: where the proposal is near the target, SNIS without a baseline and plain DPG have "
    "lower variance and lower error. Of the estimators that tend to the right gradient from any proposal, BRAIn is "
    "the lowest where it is shaded (INTERVALS), the policy's side. Half-way, at mu = 1/2, it has the lowest variance "
    "only up to n = VARIANCE_SIZE and the lowest error only up to n = ERROR_SIZE; in larger groups SNIS is lower. The "
    "price is a bias that falls as 1/n; DPG, GDC, GDC++, importance-weighted RLOO and, in the Gaussian toy, RLOO have "
    "none and are missing from the middle column. SNIS with baseline 1/n is left out of the comparison: at the target "
    "it is identically zero, variance included, and off-policy its bias does not go away with n; nearer the policy "
    "that can still be the smaller error at n = 8, as with K = 5; on-policy it is BRAIn. GDC and RLOO need samples of "
    "the policy itself; RLOO descends the reverse divergence, whose gradient differs (in the Gaussian toy it is the "
    "same)."
)

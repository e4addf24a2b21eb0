"""The house style of the figures: legible in print and without colour, and the same bytes for the same numbers.

No pyplot and no global state: a figure is made by `figure`, its panels are named by `describe`, lines are drawn by
`draw` in a `Style`, the legend goes outside the panels by `legend_below` or `legend_under`, and `image` renders it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Dashes = str | tuple[float, tuple[float, ...]]

TEXT = 9.0
"""Points of labels, ticks and legends, at a figure width of `PANEL_WIDTH` inches per column."""
TITLE = 10.0
PANEL_WIDTH, PANEL_HEIGHT = 3.3, 2.6
DPI = 150
MOST_MARKERS = 12
"""A line of so few points has a marker at each."""
MARKER_SPACING = 0.12
"""Of the panel's diagonal, along the line."""
GOLDEN = 0.618
NARROW_SPAN = 10.0
"""Ratio of the ends of a logarithmic axis below which 1, 2 and 5 would be too few ticks."""
WIDE_SPAN = 300.0
"""Ratio of the ends of a logarithmic axis from which on it has ticks at powers of ten only."""
REFERENCE_GREY = "0.45"
RENDERING: dict[Any, str] = {"svg.hashsalt": "toy", "svg.fonttype": "path", "font.family": "DejaVu Sans"}


@dataclass(frozen=True)
class Style:
    """How a line looks. No two styles share both dashes and marker, so that colour is never needed.

    Attributes:
        label: What the legend calls it.
        color: Any matplotlib colour.
        dashes: A matplotlib line style.
        marker: A matplotlib marker.
        width: Points.
    """

    label: str
    color: str
    dashes: Dashes
    marker: str
    width: float = 1.5


STYLE = {
    "brain": Style("BRAIn", "#000000", "-", "o", 2.2),
    "brain_weighted": Style("weighted BRAIn", "#0072B2", "-", "^"),
    "brain_argmax": Style("BRAIn with argmax", "#A50F15", (0.0, (2.0, 1.0)), ">"),
    "snis": Style("SNIS (no baseline)", "#D55E00", "--", "s"),
    "snis_uniform": Style("SNIS, baseline 1/n", "#888888", (0.0, (8.0, 2.0)), "<"),
    "dpg": Style("DPG", "#E69F00", "-.", "D"),
    "gdc": Style("GDC (on-policy)", "#7F4F24", (0.0, (1.0, 2.0)), "P"),
    "gdcpp": Style("GDC++", "#009E73", (0.0, (5.0, 1.0, 1.0, 1.0)), "v"),
    "importance_weighted_rloo": Style(
        "RLOO, importance-weighted", "#CC79A7", (0.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "X"
    ),
    "rloo": Style("RLOO", "#56B4E9", (0.0, (1.0, 1.0)), "*"),
    "dpo_sft": Style("DPO-sft", "#A50F15", (0.0, (6.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "d"),
    "dpo_sft_iw": Style("DPO-sft + importance weights", "#6A3D9A", (0.0, (4.0, 2.0)), "h"),
}
"""One style per estimator, by its name in `toy.estimators`, in every figure."""

PLAIN = (
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "^"),
    ("#009E73", (0.0, (1.0, 1.0)), "D"),
    ("#CC79A7", (0.0, (5.0, 1.0, 1.0, 1.0)), "v"),
    ("#E69F00", (0.0, (8.0, 2.0)), "X"),
)
"""Colour, dashes and marker of lines that are not estimators."""


def plain_style(index: int, label: str) -> Style:
    """The style of the index-th line that is not an estimator; there are `len(PLAIN)` of them."""
    return Style(label, *PLAIN[index])


def figure(rows: int = 1, columns: int = 1, *, height: float = PANEL_HEIGHT) -> tuple[Figure, NDArray[np.object_]]:
    """A new figure of panels.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Inches per row.

    Returns:
        The figure and its axes (rows, columns).
    """
    made = Figure(figsize=(PANEL_WIDTH * columns + 0.2, height * rows + 0.9), layout="constrained")
    FigureCanvasAgg(made)
    panels = made.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        _plain_panel(panel)
    return made, panels


def _plain_panel(panel: Axes) -> None:
    """No frame on the free sides, a faint grid, ticks in the text's size."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(True, which="major", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=TEXT)


def describe(panel: Axes, *, title: str, x: str, y: str) -> None:
    """Give a panel its title and the labels of its axes, with units."""
    panel.set_title(title, fontsize=TITLE, loc="left")
    panel.set_xlabel(x, fontsize=TEXT)
    panel.set_ylabel(y, fontsize=TEXT)


def count_axis(panel: Axes) -> None:
    """Make the abscissa a count on a scale of doublings, its ticks plain numbers."""
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_locator(NullLocator())


def log_ordinate(panel: Axes, low: float | None = None, high: float | None = None) -> None:
    """Make the ordinate logarithmic, plain numbers where it spans few decades; call it after drawing."""
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    bottom, top = panel.get_ylim()
    span = top / bottom
    steps = (1.0,) if span >= WIDE_SPAN else (1.0, 2.0, 5.0) if span >= NARROW_SPAN else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    panel.yaxis.set_major_locator(LogLocator(subs=steps))
    if span < WIDE_SPAN:
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def draw(panel: Axes, x: ArrayLike, y: ArrayLike, style: Style, **options: Any) -> Line2D:
    """Draw a line with a few markers, staggered from line to line so that lines that coincide all show.

    Args:
        panel: Where.
        x: Abscissae (N,).
        y: Ordinates (N,); NaN leaves a gap.
        style: Such as `STYLE["brain"]`.
        options: Further options of `Axes.plot`, such as `zorder`.
    """
    start = len(panel.lines) * GOLDEN % 1 * MARKER_SPACING
    every = 1 if np.isfinite(np.asarray(y, float)).sum() <= MOST_MARKERS else (start, MARKER_SPACING)
    looks = {"color": style.color, "linestyle": style.dashes, "marker": style.marker, "linewidth": style.width}
    given = {"label": style.label, "markersize": 4.5, "markevery": every, **looks, **options}
    return panel.plot(x, y, **given)[0]


def reference(panel: Axes, *, x: float | None = None, y: float | None = None, text: str = "") -> None:
    """A thin grey line across the panel at an abscissa or an ordinate, with its name beside it."""
    looks: dict[str, Any] = {"color": REFERENCE_GREY, "linewidth": 0.9, "linestyle": (0.0, (2.0, 2.0)), "zorder": 1.0}
    if y is not None:
        panel.axhline(y, **looks)
        note(panel, text, (1.0, y), offset=(-2, 2), align="right", transform=panel.get_yaxis_transform())
    if x is not None:
        panel.axvline(x, **looks)
        note(panel, text, (x, 1.0), offset=(3, -2), valign="top", transform=panel.get_xaxis_transform())


def note(
    panel: Axes,
    text: str,
    at: tuple[float, float],
    *,
    offset: tuple[float, float] = (3, 3),
    align: str = "left",
    valign: str = "bottom",
    transform: Any = None,
) -> None:
    """Write a short text beside a point, offset in points; on a pale ground, so that the grid does not cross it."""
    panel.annotate(
        text,
        at,
        xycoords="data" if transform is None else transform,
        xytext=offset,
        textcoords="offset points",
        ha=align,
        va=valign,
        fontsize=TEXT - 1.5,
        color="0.2",
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )


def legend_below(made: Figure, panels: Sequence[Axes] | NDArray[np.object_], *, columns: int = 4) -> Legend:
    """One legend under the whole figure, of every label in these panels once."""
    handles = _labelled(np.ravel(np.asarray(panels, dtype=object)))
    return made.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT,
        frameon=False,
        handlelength=4.0,
    )


def legend_under(panel: Axes, *, columns: int = 2) -> Legend:
    """The legend of one panel, under its x label."""
    looks: dict[str, Any] = {"fontsize": TEXT, "frameon": False, "handlelength": 4.0, "borderaxespad": 0.0}
    handles = _labelled([panel])
    return panel.legend(
        list(handles.values()), list(handles), loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=columns, **looks
    )


def _labelled(panels: Sequence[Axes] | NDArray[np.object_]) -> dict[str, Any]:
    """The first line of each label, in order of appearance."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def image(made: Figure, kind: str) -> bytes:
    """The figure as PNG or SVG.

    Args:
        made: The figure.
        kind: "png" or "svg".

    Returns:
        The file's bytes; the same for the same figure: no date, fixed names, text as outlines.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(RENDERING):
        made.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue() if kind == "svg" else _with_palette(buffer)


def _with_palette(picture: io.BytesIO) -> bytes:
    """The PNG with 256 colours, a third of its size."""
    reduced = io.BytesIO()
    Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(reduced, "png", optimize=True)
    return reduced.getvalue()

"""A run's curves against the gradient step, and those of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm.frontier import STYLES, Style

Event = dict[str, Any]


class Panel(NamedTuple):
    """One of the pictures.

    Attributes:
        title: Above it.
        event: The kind of event.
        keys: What of it is drawn; of several runs the first alone.
        needs: What runs must have in common for this to mean the same (`llm.comparison`).
        is_from_zero: Whether 0 is its natural floor.
        first: The title where the first key is drawn alone, if it is another one.
    """

    title: str
    event: str
    keys: tuple[str, ...]
    needs: tuple[str, ...] = ()
    is_from_zero: bool = False
    first: str = ""


PANELS = (
    Panel("validation win rate", "validation", ("reward_model_win_rate",), ("prompts", "model", "reward"), True),
    Panel("validation mean reward", "validation", ("mean_reward",), ("prompts", "reward")),
    Panel("validation KL to the prior (nats)", "validation", ("kl_to_prior",), ("prompts", "model", "sampling")),
    Panel(
        "validation completion length (tokens)",
        "validation",
        ("completion_length",),
        ("prompts", "model", "sampling"),
        True,
    ),
    Panel("SNKL (nats; dotted: its known floor 0)", "step", ("snkl",), ("group",), True),
    Panel(
        "ESS (solid: target, dashed: policy)",
        "step",
        ("ess_target", "ess_policy"),
        ("group",),
        True,
        "ESS of the target's weights",
    ),
    Panel("gradient norm before clipping", "step", ("grad_norm",), (), True),
    Panel("gradient signal (1: one direction)", "step", ("gradient_signal",), (), True),
    Panel("share of a group that differs", "phase", ("distinct_completions",), ("group",), True),
)
GREY: tuple[Style, ...] = (("black", "-", "o"), ("0.45", "--", "o"))
COLUMNS = 3
MARKED = 40
"""Points up to which each has a marker; of more, every so many."""
TEXT = 9


def draw_curves(events: Sequence[Event]) -> Figure:
    """Draw a run's curves, in grey.

    Args:
        events: Those of `metrics.jsonl`.

    Returns:
        Nine panels; one without data stays empty and says so.
    """
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    for axes, panel in zip(_axes(figure, len(PANELS)), PANELS, strict=True):
        axes.set_title(panel.title, fontsize=TEXT)
        _draw(axes, panel, [(key, events, style) for key, style in zip(panel.keys, GREY, strict=False)])
    return figure


def overlay(runs: Mapping[str, Sequence[Event]], differing: set[str]) -> Figure:
    """Draw several runs' curves over each other, each with dashes and a marker of its own.

    Args:
        runs: Their events by a short name, at most as many as there are styles.
        differing: In what the runs differ.

    Returns:
        The panels that mean the same in all of them, and a legend.
    """
    panels, styles = comparable_panels(differing), STYLES[: len(runs)]
    figure = Figure(figsize=(9, 0.4 + 2.4 * math.ceil(len(panels) / COLUMNS)), layout="constrained")
    for axes, panel in zip(_axes(figure, len(panels)), panels, strict=True):
        axes.set_title(panel.first or panel.title, fontsize=TEXT)
        _draw(
            axes, panel, [(panel.keys[0], events, style) for events, style in zip(runs.values(), styles, strict=True)]
        )
    handles = [
        Line2D([], [], color=color, linestyle=dashes, marker=marker, label=name)
        for name, (color, dashes, marker) in zip(runs, styles, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(runs), fontsize=TEXT, frameon=False)
    return figure


def comparable_panels(differing: set[str]) -> list[Panel]:
    """Return the panels that mean the same in runs that differ in some parts (`llm.comparison`)."""
    return [panel for panel in PANELS if not differing & set(panel.needs)]


def _axes(figure: Figure, count: int) -> list[Axes]:
    """Some axes in rows of three; the rest of the last row is blank."""
    axes: list[Axes] = list(figure.subplots(math.ceil(count / COLUMNS), COLUMNS, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return axes[:count]


def _draw(axes: Axes, panel: Panel, lines: Sequence[tuple[str, Sequence[Event], Style]]) -> None:
    """Draw values of events against the step, from 0 where that is their natural floor."""
    found = [(key, _of(events, panel.event, key), style) for key, events, style in lines]
    if not any(events for _, events, _ in found):
        axes.set(xticks=(), yticks=())
        axes.text(0.5, 0.5, "nothing recorded", ha="center", va="center", fontsize=TEXT, transform=axes.transAxes)
        return
    for key, events, (color, dashes, marker) in found:
        steps, every = [e["step"] for e in events], max(1, len(events) // MARKED * 5)
        style = {"color": color, "linestyle": dashes, "marker": marker, "markevery": every}
        axes.plot(steps, [e[key] for e in events], linewidth=1.2, markersize=3, **style)
    axes.set_xlabel("gradient step", fontsize=TEXT)
    axes.tick_params(labelsize=TEXT)
    axes.grid(color="0.88")
    if panel.is_from_zero:
        axes.set_ylim(bottom=0)
    if panel.keys[0] == "snkl":
        axes.axhline(0, color="black", linestyle=":", linewidth=2, clip_on=False)


def _of(events: Sequence[Event], kind: str, key: str) -> list[Event]:
    """The events of a kind that hold a value; runs of older versions lack some."""
    return [event for event in events if event["event"] == kind and event.get(key) is not None]

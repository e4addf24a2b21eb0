"""Figures of the experiments: bars of all arms, matches, curves over the number of completions, reward over KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from llm.experiments.cells import Row
from llm.experiments.head_to_head import OUTCOMES
from llm.experiments.results import Found, mean_reward
from llm.experiments.studies import Study
from llm.experiments.verdicts import Interval, wins
from llm.frontier import STYLES

Values = Mapping[str, Any]
JUDGES = {"judge": "independent judge", "reward_model": "train reward model"}
FILLS = {"wins": "0.35", "ties": "0.75", "losses": "1.0"}


def draw(
    path: Path, study: Study, found: Sequence[Found], rows: Sequence[Values], matches: Sequence[Values], stamp: Values
) -> None:
    """Write an experiment's figure.

    Args:
        path: The PNG file, which carries the stamp.
        study: What was asked.
        found: What was found, arm by arm.
        rows: The arms' figures.
        matches: Of arms head to head.
        stamp: World, settings and version.
    """
    if study.picture == "samples":
        figure = _samples(found, rows)
    elif study.picture == "frontier":
        figure = _frontier(found)
    else:
        figure = _matches(matches) if matches else _bars(rows)
    figure.suptitle(study.title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Comment": " ".join(f"{k}={v}" for k, v in stamp.items())})


def _judges(rows: Sequence[Values]) -> dict[str, str]:
    """The judges that there are, with their names."""
    return {key: name for key, name in JUDGES.items() if all(row[f"{key}_estimate"] is not None for row in rows)}


def _interval(rows: Sequence[Values], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (A,) in per cent, and how far their intervals reach below and above (2, A)."""
    middle, low, high = (100 * np.array([row[prefix + key] for row in rows]) for key in Interval._fields)
    return middle, np.stack([middle - low, high - middle])


def _bars(rows: Sequence[Values]) -> Figure:
    """Win rates of all arms with their intervals, judge and reward model side by side."""
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(rows))[::-1]
    for key, name in _judges(rows).items():
        marker, fill, shift = ("o", "black", 0.12) if key == "judge" else ("s", "white", -0.12)
        middle, reach = _interval(rows, f"{key}_")
        drawn = axes.errorbar(middle, places + shift, xerr=reach, fmt=marker, color="black", capsize=2, label=name)
        drawn[0].set(markersize=4, markerfacecolor=fill)
    axes.set_yticks(places, [row["arm"] for row in rows])
    axes.set_xlabel("win rate against the references, per cent, with 95 % intervals")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _matches(matches: Sequence[Values]) -> Figure:
    """Wins, ties and losses of each match, with the intervals of the wins and of the losses."""
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(matches)), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(matches))[::-1]
    left = np.zeros(len(matches))
    for outcome in OUTCOMES:
        share, reach = _interval([match[outcome] for match in matches], "")
        axes.barh(places, share, 0.6, left, color=FILLS[outcome], edgecolor="black", label=outcome)
        if outcome != "ties":
            end, reach = (left + share, reach) if outcome == "wins" else (left, reach[::-1])
            axes.errorbar(end, places, xerr=reach, fmt="none", color="black", capsize=3)
        left = left + share
    axes.set_yticks(places, [f"{match['first']} against {match['second']}" for match in matches])
    axes.set_xlabel("per cent of the prompts, with 95 % intervals of wins and of losses")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _samples(found: Sequence[Found], rows: Sequence[Values]) -> Figure:
    """Win rates against the number of completions, tokens in backward passes and processor seconds."""
    judges = _judges(rows)
    scales: dict[str, Callable[[Found, Values], float]] = {
        "completions of a prompt": lambda each, row: each.config.n,
        "completion tokens in backward passes": lambda each, row: (
            row["backward_completions"] * row["completion_length"]
        ),
        "processor seconds": lambda each, row: row["seconds"],
    }
    figure = Figure(figsize=(9, 0.8 + 2.6 * len(judges)), layout="constrained")
    panels = figure.subplots(len(judges), len(scales), sharey="row", squeeze=False)
    for line, (judge, name) in zip(panels, judges.items(), strict=True):
        line[0].set_ylabel(f"win rate, {name}, %")
        for axes, (label, scale) in zip(line, scales.items(), strict=True):
            _curves(axes, found, rows, f"{judge}_", [scale(*pair) for pair in zip(found, rows, strict=True)])
            _scale(axes, label, base=2 if label == "completions of a prompt" else 10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _scale(axes: Axes, label: str, *, base: int) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def _curves(axes: Axes, found: Sequence[Found], rows: Sequence[Values], prefix: str, across: Sequence[float]) -> None:
    """A curve for each method, over the arms' places across, with intervals."""
    methods = list(dict.fromkeys(each.config.method for each in found))
    for method, (colour, dashes, marker) in zip(methods, cycle(STYLES), strict=False):
        mine = [place for place, each in enumerate(found) if each.config.method == method]
        middle, reach = _interval([rows[place] for place in mine], prefix)
        drawn = axes.errorbar([across[place] for place in mine], middle, reach, color=colour, capsize=2, label=method)
        drawn[0].set(linestyle=dashes, marker=marker, markersize=4)


def _frontier(found: Sequence[Found]) -> Figure:
    """Mean reward and win rate over KL: faint what was tried, marked what was chosen, with the reach of its seeds."""
    has_judge = all(row.judge for each in found for row in each.rows)
    field, name = ("judge", "independent judge") if has_judge else ("reward_model", "train reward model")
    heights: dict[str, Callable[[Row], float]] = {
        "mean reward": mean_reward,
        f"win rate, {name}, %": lambda row: 100 * float(wins([getattr(row, field)]).mean()),
    }
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (label, height) in zip(panels, heights.items(), strict=True):
        for each, style in zip(found, cycle(STYLES), strict=False):
            _points(axes, each, height, style)
        axes.set_xlabel("KL to the prior, nats a completion")
        axes.set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    title = "faint: every setting that was tried, one seed; marked: the chosen one, from its lowest to its highest seed"
    legend = {"ncols": 4, "frameon": False, "fontsize": 8, "title": title, "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside lower center", **legend)
    return figure


def _points(axes: Axes, found: Found, height: Callable[[Row], float], style: tuple[str, Any, str]) -> None:
    """An arm's grid, faint, and its mean over seeds with their range in both directions."""
    colour, _, marker = style
    tried, chosen = (
        np.array([(row.kl_to_prior, height(row)) for row in rows])
        for rows in ([row for _, row in found.grid], found.rows)
    )
    axes.scatter(tried[:, 0], tried[:, 1], s=16, c=colour, marker=marker, alpha=0.3)
    kl, value = chosen.mean(0)
    across, along = np.stack([chosen.mean(0) - chosen.min(0), chosen.max(0) - chosen.mean(0)], axis=1)[:, :, None]
    drawn = axes.errorbar(kl, value, along, across, fmt=marker, color=colour, capsize=2, label=found.arm.label)
    drawn[0].set(markersize=7, markeredgecolor="black")

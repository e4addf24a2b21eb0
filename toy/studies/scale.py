"""Steps to a given KL divergence against the number K of possible completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toy import plots
from toy.fit import Schedule, fit
from toy.problems import CategoricalProblem
from toy.studies.study import Progress, Study
from toy.studies.training import BRAIN_FIXED, LEARNING_RATES, TUNING_SEED, is_at_grid_edge, sampled_problem

SIZES = (4, 16, 64, 256, 1024)
REWARD_SCALE, PROBLEM_SEED = 1.5, 0
GOAL = 0.15
"""KL(target ‖ policy) to reach, by the mean over replicas, as a fraction of the KL that training starts from."""
FIXED_RATE = 4.0
SEED, REPLICAS, TUNING_REPLICAS, RECORD_EVERY = 2, 8, 3, 4
SCHEDULE = Schedule(steps=480, learning_rate=1.0, group_size=8, groups_per_phase=32, steps_per_phase=16)
METHODS = {
    "BRAIn": ("brain", True, plots.STYLE["brain"]),
    "BRAIn, proposal fixed": ("brain", False, BRAIN_FIXED),
    "SNIS": ("snis", True, plots.STYLE["snis"]),
    "DPG": ("dpg", True, plots.STYLE["dpg"]),
    "GDC++": ("gdcpp", True, plots.STYLE["gdcpp"]),
    "DPO-sft": ("dpo_sft", False, plots.STYLE["dpo_sft"]),
}
"""The estimator, whether the proposal is updated, and the line."""


class Row(NamedTuple):
    """How long one method takes with one K; steps and completions are infinite where it does not get there."""

    size: int
    initial_kl: float
    method: str
    rate_is_tuned: bool
    learning_rate: float
    rate_is_at_grid_edge: bool
    steps: float
    completions: float
    lowest_kl: float


def study(progress: Progress) -> Study:
    """Train every method with every K, once at its best learning rate and once at the common one."""
    settings = [(size, name) for size in SIZES for name in METHODS]
    rows = [row for size, name in progress(settings, "scale") for row in _rows(size, name)]
    return Study(
        name="scale",
        figure=_figure(rows),
        columns=Row._fields,
        rows=rows,
        summary=_summary(rows),
        caption=CAPTION,
    )


def _rows(size: int, name: str) -> list[Row]:
    """One method on one problem, at both learning rates."""
    problem = sampled_problem(size, REWARD_SCALE, PROBLEM_SEED)
    chosen, is_updated, _ = METHODS[name]
    schedule = replace(SCHEDULE, is_proposal_updated=is_updated)
    candidates = [replace(schedule, learning_rate=rate) for rate in LEARNING_RATES]
    best = min(candidates, key=lambda candidate: _course(problem, chosen, candidate, TUNING_SEED, TUNING_REPLICAS)[:2])
    found = []
    for is_tuned, used in ((True, best), (False, replace(schedule, learning_rate=FIXED_RATE))):
        steps, lowest = _course(problem, chosen, used, SEED, REPLICAS)
        completions = replace(used, steps=int(steps)).completions if steps < math.inf else math.inf
        is_at_edge = is_tuned and is_at_grid_edge(used.learning_rate)
        outcome = (steps, completions, lowest)
        found.append(Row(size, problem.kl, name, is_tuned, used.learning_rate, is_at_edge, *outcome))
    return found


def _course(
    problem: CategoricalProblem, chosen: str, schedule: Schedule, seed: int, replicas: int
) -> tuple[float, float]:
    """Steps until the mean KL is at the goal, infinite if never, and the lowest mean KL."""
    try:
        path = fit(problem, chosen, schedule, seed=seed, replicas=replicas, record_every=RECORD_EVERY)
    except OverflowError:
        return math.inf, math.inf
    kl = path.kl_to_target.mean(1)
    there = np.flatnonzero(kl <= GOAL * problem.kl)
    return float(path.step[there[0]]) if len(there) else math.inf, float(kl.min())


def _summary(rows: Sequence[Row]) -> dict[str, object]:
    """Steps by method and K, null where the goal is not reached."""
    found: dict[str, dict[str, dict[int, float | None]]] = {}
    for row in rows:
        rate = "tuned learning rate" if row.rate_is_tuned else f"learning rate {FIXED_RATE:g}"
        steps = row.steps if row.steps < math.inf else None
        found.setdefault(rate, {}).setdefault(row.method, {})[row.size] = steps
    setting = {
        "goal_as_fraction_of_initial_kl": GOAL,
        "reward_scale": REWARD_SCALE,
        "longest": SCHEDULE.steps,
        "replicas": REPLICAS,
    }
    per_phase = {"completions_per_phase": SCHEDULE.groups_per_phase * SCHEDULE.group_size}
    return {
        "setting": {**setting, **per_phase, "learning_rates_tried": LEARNING_RATES},
        "initial_kl": {row.size: row.initial_kl for row in rows},
        "steps_to_goal": found,
        "rate_at_grid_edge": [f"{row.method}, K = {row.size}" for row in rows if row.rate_is_at_grid_edge],
    }


def _figure(rows: Sequence[Row]) -> Figure:
    """Steps against K: at the best learning rate and at a common one."""
    figure, panels = plots.figure(1, 2, height=3.0)
    titles = {True: "Best learning rate for each", False: f"Learning rate {FIXED_RATE:g} for all"}
    for panel, (is_tuned, title) in zip(panels[0], titles.items(), strict=True):
        for index, name in enumerate(METHODS):
            _draw(panel, [row for row in rows if (row.method, row.rate_is_tuned) == (name, is_tuned)], index)
        panel.set_xscale("log", base=2)
        panel.set_xticks(SIZES, [str(size) for size in SIZES])
        panel.set_yscale("log")
        panel.set_yticks([1, 10, 100, SCHEDULE.steps], ["1", "10", "100", str(SCHEDULE.steps)])
        panel.minorticks_off()
        panel.set_ylim(1.5, 5.5 * SCHEDULE.steps)
        plots.reference(panel, y=SCHEDULE.steps)
        plots.note(panel, "hollow: not reached", (SIZES[0], SCHEDULE.steps))
        plots.describe(panel, title=title, x="possible completions K", y=f"steps to {GOAL:.0%} of initial KL")
    plots.legend_below(figure, panels, columns=3)
    return figure


def _draw(panel: Axes, chosen: Sequence[Row], index: int) -> None:
    """One method's line, and hollow markers above the panel's line where it never gets there."""
    style = METHODS[chosen[0].method][2]
    steps = [row.steps if row.steps < math.inf else math.nan for row in chosen]
    plots.draw(panel, [row.size for row in chosen], steps, style, markevery=1)
    missed = [row.size for row in chosen if row.steps == math.inf]
    height = SCHEDULE.steps * 1.27 ** (index + 1)
    panel.plot(
        missed,
        [height] * len(missed),
        color=style.color,
        marker=style.marker,
        markerfacecolor="none",
        linestyle="none",
    )


CAPTION = (
    "Steps until the mean KL(target ‖ policy) over 8 replicas has fallen to 15 % of where it started, against the "
    "number of possible completions; every 16 steps sample 256 new completions, whatever K. The start is not the "
    "same: 0.16, 0.57, 0.88, 1.16 and 0.96 nats. Left: each method at the rate of the same grid (0.5 to 128) that "
    "gets there first (chosen on other draws); right: one rate for all. Records are made every 4 steps, so that 4 "
    "means at most 4; there are no error bars, and one problem per K. From K = 16 on, more completions never take "
    "fewer steps, since a tabular policy must see each completion that matters; at K = 4, with a smaller distance to "
    "go, SNIS takes more (36) than at 16 (24). At the best rates BRAIn, with the proposal fixed or updated, and GDC++ "
    "take the same number up to K = 64. At K = 256 it is 88 for BRAIn with the prior as proposal, 128 for GDC++, "
    "which is given the normaliser, and 164 for BRAIn with updates, at 1024 it is 248, 344 and 392. At the common "
    "rate GDC++ is the fastest from K = 16 on, and at 1024 BRAIn with updates does not get there. SNIS and DPG get "
    "there at neither rate at K = 1024; DPO-sft, whose objective has no minimum at the target, only at K = 4 at its "
    "tuned rate (at 16 and 64 that is the grid's lowest)."
)

"""Outcome against the number of completions per group: BRAIn on n of them, DPO-sft on n/2 pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from toy import plots
from toy.fit import Schedule, fit
from toy.problems import CategoricalProblem
from toy.studies.study import Progress, Study
from toy.studies.training import (
    LEARNING_RATES,
    at_target,
    at_the_end,
    draw_with_error,
    is_at_grid_edge,
    sampled_problem,
    tuned,
)

SIZE, REWARD_SCALE, PROBLEM_SEED = 100, 2.0, 0
SEED, REPLICAS = 2, 32
GROUP_SIZES = (2, 4, 8, 16, 32, 64)
STEPS, STEPS_PER_PHASE = 320, 32
COMPLETIONS_PER_PHASE, COMPLETIONS_PER_BATCH = 512, 64
"""Where every group size gets the same number of completions."""
GROUPS_PER_PHASE, GROUPS_PER_BATCH = 32, 4
"""Where every group size gets the same number of groups: the paper's section 9.4."""
METHODS = {"brain": True, "dpo_sft": False}
"""Whether each updates its proposal."""
NEAR = 0.03
"""A group size is called near the best when its expected reward is within so many nats of the best."""


class Point(NamedTuple):
    """How one method ends with one group size."""

    budget: str
    estimator: str
    group_size: int
    learning_rate: float
    rate_is_at_grid_edge: bool
    completions: int
    kl_to_target: float
    kl_to_target_error: float
    expected_reward: float
    expected_reward_error: float


def study(progress: Progress) -> Study:
    """Train with every group size under both budgets."""
    problem = sampled_problem(SIZE, REWARD_SCALE, PROBLEM_SEED)
    settings = [
        (budget, name, size) for budget in ("completions", "groups") for name in METHODS for size in GROUP_SIZES
    ]
    points = [_point(problem, *setting) for setting in progress(settings, "samples")]
    return Study(
        name="samples",
        figure=_figure(problem, points),
        columns=Point._fields,
        rows=points,
        summary=_summary(points),
        caption=CAPTION,
    )


def _schedule(budget: str, name: str, group_size: int) -> Schedule:
    """The schedule under a budget: equal completions, or equal groups and so more completions with larger groups."""
    if budget == "completions":
        per_phase, per_batch = COMPLETIONS_PER_PHASE // group_size, COMPLETIONS_PER_BATCH // group_size
    else:
        per_phase, per_batch = GROUPS_PER_PHASE, GROUPS_PER_BATCH
    return Schedule(STEPS, 1.0, group_size, per_phase, STEPS_PER_PHASE, per_batch, is_proposal_updated=METHODS[name])


def _point(problem: CategoricalProblem, budget: str, name: str, group_size: int) -> Point:
    """Tune, train and measure."""
    schedule = tuned(problem, name, _schedule(budget, name, group_size))
    path = fit(problem, name, schedule, seed=SEED, replicas=REPLICAS, record_every=STEPS)
    rate, completions = schedule.learning_rate, schedule.completions
    ends = (*at_the_end(path.kl_to_target), *at_the_end(path.expected_reward))
    return Point(budget, name, group_size, rate, is_at_grid_edge(rate), completions, *ends)


def _summary(points: Sequence[Point]) -> dict[str, object]:
    """The smallest group size that is nearly as good as the best, for each method and budget."""
    enough = {}
    for budget in ("completions", "groups"):
        for name in METHODS:
            chosen = _series(points, budget, name)
            best = max(point.expected_reward for point in chosen)
            within = [point.group_size for point in chosen if point.expected_reward >= best - NEAR]
            enough[f"{name}, equal {budget}"] = {
                "smallest_group_size_near_best_reward": min(within),
                "kl_to_target": {point.group_size: point.kl_to_target for point in chosen},
                "expected_reward": {point.group_size: point.expected_reward for point in chosen},
                "group_sizes_with_rate_at_grid_edge": [p.group_size for p in chosen if p.rate_is_at_grid_edge],
            }
    setting = {"size": SIZE, "reward_scale": REWARD_SCALE, "near_nats": NEAR, "steps": STEPS, "replicas": REPLICAS}
    return {"setting": {**setting, "learning_rates_tried": LEARNING_RATES}, "findings": enough}


def _series(points: Sequence[Point], budget: str, name: str) -> list[Point]:
    """One method's points under one budget."""
    return [point for point in points if point.budget == budget and point.estimator == name]


def _figure(problem: CategoricalProblem, points: Sequence[Point]) -> Figure:
    """KL above, reward below; equal completions left, equal groups right."""
    figure, panels = plots.figure(2, 2)
    titles = {"completions": "Equal completions in all", "groups": "Equal steps and groups"}
    for column, (budget, title) in enumerate(titles.items()):
        kl_panel, reward_panel = panels[:, column]
        for name in METHODS:
            chosen, style = _series(points, budget, name), plots.STYLE[name]
            x = [point.group_size for point in chosen]
            draw_with_error(
                kl_panel, x, [p.kl_to_target for p in chosen], [p.kl_to_target_error for p in chosen], style
            )
            draw_with_error(
                reward_panel, x, [p.expected_reward for p in chosen], [p.expected_reward_error for p in chosen], style
            )
        kl_panel.set_yscale("log")
        plots.describe(kl_panel, title=title, x="group size n", y="KL(target ‖ policy), nats")
        plots.describe(reward_panel, title=title, x="group size n", y="expected reward − max, nats")
        plots.reference(reward_panel, y=at_target(problem).expected_reward.item(), text="target")
        for panel in (kl_panel, reward_panel):
            panel.set_xscale("log", base=2)
            panel.set_xticks(GROUP_SIZES, [str(size) for size in GROUP_SIZES])
    for left, right in panels:
        left.sharey(right)
        left.autoscale(axis="y")
    plots.legend_below(figure, panels)
    return figure


CAPTION = (
    "The toy of `frontier`: each method and each group size n has its best learning rate of the same grid (never the "
    "grid's first or last); bars are 2 standard errors over 32 replicas, and one that leaves the panel reaches 0. "
    "Right, the paper's comparison (section 9.4): larger groups are also more completions. Both rewards saturate: "
    "BRAIn's rises from -1.87 to -1.67 at n = 8 and hardly after, as the paper found, DPO-sft's on n/2 pairs from "
    "-2.49 to -1.70 at n = 16 and hardly after. BRAIn's KL still falls until n = 16, to 0.0052; that of DPO-sft falls "
    "throughout, from 0.63 to 0.21, and stays further from the target. Left, the same completions in all: then the "
    "group size hardly matters to the reward (within 0.035 nats for either method) nor to the KL of DPO-sft (0.26 to "
    "0.29); that of BRAIn is between 0.0011 and 0.010 in no order of n, with rare bad replicas. So what the right "
    "side shows is mostly the number of completions."
)

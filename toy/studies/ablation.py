"""From DPO-sft to BRAIn part by part; the baseline; noise in the reward; how often the proposal is updated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toy import plots
from toy.estimators import ESTIMATORS, Estimator
from toy.exact import mean_gradient
from toy.fit import Integers, Judge, Schedule, Trajectory, exact_flow, fit
from toy.problems import CategoricalProblem
from toy.studies.study import Floats, Progress, Study
from toy.studies.training import (
    LEARNING_RATES,
    at_target,
    at_the_end,
    draw_with_error,
    is_at_grid_edge,
    sampled_problem,
    tuned,
)

PROBLEMS = {"moderate": (100, 2.0), "sparse": (1000, 4.0)}
"""K and the standard deviation of the rewards; in the sparse one few of the prior's samples are good."""
PROBLEM_SEED, NOISE_SEED, SEED, REPLICAS = 0, 5, 2, 24
SCHEDULE = Schedule(steps=320, learning_rate=4.0, group_size=8, groups_per_phase=32, steps_per_phase=16)
FIXED = replace(SCHEDULE, is_proposal_updated=False)
PAPER_GROUPS = replace(SCHEDULE, group_size=32, groups_per_phase=8, groups_per_batch=4)
"""n = 32, which is 16 pairs, as in the paper's Table 3."""
LADDER = {
    "DPO-sft": ("dpo_sft", replace(PAPER_GROUPS, is_proposal_updated=False)),
    "+ weights": ("dpo_sft_iw", replace(PAPER_GROUPS, is_proposal_updated=False)),
    "+ n": ("brain", replace(PAPER_GROUPS, is_proposal_updated=False)),
    "+ updates": ("brain", PAPER_GROUPS),
}
NOISES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Largest error of the reward, nats."""
REWARD_RESOLUTION = 0.01
"""Nats from the target's reward within which the reward's axis is linear, beyond which it is logarithmic."""
UPDATE_PERIODS = (320, 160, 80, 40, 20, 10)
"""Steps between proposal updates; the first is as long as training, so that the proposal is never updated."""


class Row(NamedTuple):
    """One trained setting."""

    part: str
    setting: str
    problem: str
    learning_rate: float
    rate_is_at_grid_edge: bool
    kl_to_target: float
    kl_to_target_error: float
    expected_reward: float
    expected_reward_error: float
    total_variation: float
    total_variation_error: float


def study(progress: Progress) -> Study:
    """Train every variant."""
    problems = {name: sampled_problem(*setting, PROBLEM_SEED) for name, setting in PROBLEMS.items()}
    parts = [_ladder(problems), _baselines(problems["moderate"]), _noise(problems["moderate"]), _updates(problems)]
    rows = [row for part in progress(parts, "ablation") for row in part]
    fixed_point = snis_fixed_point(problems["moderate"], SCHEDULE.group_size)
    check = _fixed_point_check(problems["moderate"], fixed_point)
    return Study(
        name="ablation",
        figure=_figure(problems, rows, check),
        columns=Row._fields,
        rows=rows,
        summary=_summary(problems, rows, check),
        caption=CAPTION,
    )


def _row(part: str, setting: str, problem_name: str, learning_rate: float, path: Trajectory) -> Row:
    """What the end of a path says."""
    measures = (path.kl_to_target, path.expected_reward, path.total_variation_to_target)
    numbers = [number for values in measures for number in at_the_end(values)]
    return Row(part, setting, problem_name, learning_rate, is_at_grid_edge(learning_rate), *numbers)


def _trained(problem: CategoricalProblem, chosen: str | Estimator, schedule: Schedule) -> Trajectory:
    """The path's ends."""
    return fit(problem, chosen, schedule, seed=SEED, replicas=REPLICAS, record_every=schedule.steps)


def _ladder(problems: dict[str, CategoricalProblem]) -> Iterator[Row]:
    """The paper's Table 3, each rung at its best learning rate."""
    for problem_name, problem in problems.items():
        for rung, (chosen, schedule) in LADDER.items():
            best = tuned(problem, chosen, schedule)
            yield _row("ladder", rung, problem_name, best.learning_rate, _trained(problem, chosen, best))


def _policy_ratio_baseline(
    target_log_ratio: Floats, policy_log_ratio: Floats, log_normalizer: float | Floats = 0.0
) -> Floats:
    """α̂ − β/n: the baseline without self-normalisation, whose mean gradient is exactly 0."""
    weights = ESTIMATORS["snis"].coefficients(target_log_ratio, policy_log_ratio, log_normalizer)
    coefficients: Floats = weights - np.exp(policy_log_ratio) / policy_log_ratio.shape[-1]
    return coefficients


BASELINES = {
    "none": ESTIMATORS["snis"],
    "1/n": ESTIMATORS["snis_uniform"],
    "β/n": Estimator("snis_policy_ratio", _policy_ratio_baseline, None),
    "β̂": ESTIMATORS["brain"],
}
"""What is subtracted from α̂. The mean of the others' α̂ is not listed: α̂ less it is (α̂ − 1/n) · n/(n − 1)."""


def _baselines(problem: CategoricalProblem) -> Iterator[Row]:
    """Every baseline with the proposal fixed and updated."""
    for setting, schedule in (("fixed", FIXED), ("updated", SCHEDULE)):
        for label, chosen in BASELINES.items():
            best = tuned(problem, chosen, schedule)
            yield _row(
                f"baseline, proposal {setting}", label, "moderate", best.learning_rate, _trained(problem, chosen, best)
            )


def snis_fixed_point(problem: CategoricalProblem, group_size: int) -> Floats:
    """q_SIR(y) = n s(y) E[α̂₁ | y₁ = y] (K,): where training without a baseline ends, T9."""
    share: Floats = mean_gradient(problem, group_size, "snis") + np.array(problem.policy, float)
    return share


def _fixed_point_check(problem: CategoricalProblem, fixed_point: Floats) -> dict[str, float]:
    """How far the exact flow without a baseline ends from q_SIR and from the target, KL in nats."""
    flow = exact_flow(problem, "snis", replace(FIXED, steps=1500, learning_rate=16.0), record_every=1500)
    posterior = np.array(problem.posterior, float)
    return {
        "kl_sir_to_flow": float(fixed_point @ (np.log(fixed_point) - flow.log_policy[-1, 0])),
        "kl_target_to_flow": flow.kl_to_target[-1].item(),
        "kl_target_to_sir": float(posterior @ np.log(posterior / fixed_point)),
        "kl_sir_to_prior": float(fixed_point @ np.log(fixed_point / np.array(problem.prior, float))),
        "log_n": math.log(SCHEDULE.group_size),
    }


def _noise(problem: CategoricalProblem) -> Iterator[Row]:
    """BRAIn under errors of the reward: the same for every look at a completion, or new for every sample."""
    log_goodness = np.log(np.array(problem.goodness, float))
    unit = np.random.default_rng(NOISE_SEED).choice([-1.0, 1.0], problem.size)
    schedule = replace(FIXED, learning_rate=tuned(problem, "brain", FIXED).learning_rate)
    for size in NOISES:
        noisy = (log_goodness + size * unit).tolist()
        prior = problem.prior
        wrong = CategoricalProblem.from_reward(prior, noisy, prior, prior)
        path = _trained(wrong, "brain", schedule).measured_against(problem)
        yield _row("noise, lasting", f"{size:g}", "moderate", schedule.learning_rate, path)
        target = at_target(wrong).measured_against(problem)
        yield _row("noise, exact target", f"{size:g}", "moderate", math.nan, target)
        path = fit(
            problem,
            "brain",
            schedule,
            seed=SEED,
            replicas=REPLICAS,
            record_every=schedule.steps,
            judge=_unsteady_judge(log_goodness, size),
        )
        yield _row("noise, new each time", f"{size:g}", "moderate", schedule.learning_rate, path)


def _unsteady_judge(log_goodness: Floats, size: float) -> Judge:
    """A judge that errs by ± size at random, anew for every sample."""

    def judge(completions: Integers, generator: np.random.Generator) -> Floats:
        """The log-goodness with a fresh error."""
        told: Floats = log_goodness[completions] + size * generator.choice([-1.0, 1.0], completions.shape)
        return told

    return judge


def _updates(problems: dict[str, CategoricalProblem]) -> Iterator[Row]:
    """BRAIn with more and more proposal updates, completions, steps and learning rate the same."""
    for problem_name, problem in problems.items():
        for period in UPDATE_PERIODS:
            schedule = _schedule_with_period(period)
            updates = str(schedule.phases - 1)
            yield _row("updates", updates, problem_name, schedule.learning_rate, _trained(problem, "brain", schedule))


def _schedule_with_period(period: int) -> Schedule:
    """The common schedule with a proposal update every so many steps, and as many completions in all."""
    groups = SCHEDULE.groups_per_phase * period // SCHEDULE.steps_per_phase
    return replace(SCHEDULE, steps_per_phase=period, groups_per_phase=groups)


def _figure(problems: dict[str, CategoricalProblem], rows: Sequence[Row], check: dict[str, float]) -> Figure:
    """KL above and reward below for the ladder and the updates; baselines and noise between them."""
    figure, panels = plots.figure(2, 3, height=2.9)
    for index, (name, problem) in enumerate(problems.items()):
        style = plots.plain_style(index, f"{name} problem, K = {problem.size}")
        for column, part in ((0, "ladder"), (2, "updates")):
            chosen = [row for row in rows if (row.part, row.problem) == (part, name)]
            _draw_outcomes(panels[:, column], chosen, at_target(problem).expected_reward.item(), style)
    _draw_baselines(panels[0, 1], rows, check)
    _draw_noise(panels[1, 1], rows)
    kl, reward = "KL(target ‖ policy), nats", "expected reward − target's, nats"
    plots.describe(panels[0, 0], title="a  From DPO-sft to BRAIn", x="part added", y=kl)
    plots.describe(panels[1, 0], title="a  The same: reward", x="part added", y=reward)
    plots.describe(panels[0, 1], title="b  What is subtracted from α̂", x="baseline", y=kl)
    plots.describe(panels[1, 1], title="c  Noise in the reward", x="largest error ε, nats", y="TV(target, policy)")
    plots.describe(panels[0, 2], title="d  Proposal updates", x="number of updates", y=kl)
    plots.describe(panels[1, 2], title="d  The same: reward", x="number of updates", y=reward)
    for panel in (panels[0, 0], panels[1, 0]):
        panel.tick_params(axis="x", labelrotation=20)
    plots.legend_below(figure, panels, columns=4)
    return figure


def _draw_outcomes(
    panels: NDArray[np.object_], chosen: Sequence[Row], target_reward: float, style: plots.Style
) -> None:
    """KL in the upper and reward in the lower of two panels, by setting."""
    place = list(range(len(chosen)))
    upper, lower = panels
    draw_with_error(
        upper, place, [row.kl_to_target for row in chosen], [row.kl_to_target_error for row in chosen], style
    )
    rewards = [row.expected_reward - target_reward for row in chosen]
    draw_with_error(lower, place, rewards, [row.expected_reward_error for row in chosen], style)
    upper.set_yscale("log")
    lower.set_yscale("symlog", linthresh=REWARD_RESOLUTION)
    for panel in panels:
        panel.set_xticks(place, [row.setting for row in chosen])
        panel.margins(x=0.1)


def _draw_baselines(panel: Axes, rows: Sequence[Row], check: dict[str, float]) -> None:
    """KL by baseline, without lines: the order means nothing."""
    for index, setting in enumerate(("fixed", "updated")):
        style = plots.plain_style(2 + index, f"proposal {setting}")
        chosen = [row for row in rows if row.part == f"baseline, proposal {setting}"]
        place = [position + 0.16 * (index - 0.5) for position in range(len(chosen))]
        kls, errors = [row.kl_to_target for row in chosen], [2 * row.kl_to_target_error for row in chosen]
        panel.errorbar(place, kls, errors, fmt=style.marker, color=style.color, capsize=2.0, label=style.label)
    panel.set_yscale("log")
    panel.set_xticks(range(len(BASELINES)), list(BASELINES))
    panel.margins(x=0.1)
    plots.reference(panel, y=check["kl_target_to_sir"], text="target to q_SIR")


def _draw_noise(panel: Axes, rows: Sequence[Row]) -> None:
    """Total variation against the largest error, with the bound."""
    wide = np.geomspace(NOISES[0], NOISES[-1], 60)
    panel.fill_between(wide, np.tanh(wide / 2), 1.02, color="0.85", linewidth=0, label="beyond the bound tanh(ε/2)")
    for index, part in ((4, "noise, lasting"), (5, "noise, new each time")):
        chosen = [row for row in rows if row.part == part]
        style = plots.plain_style(index, part)
        values, errors = [row.total_variation for row in chosen], [row.total_variation_error for row in chosen]
        draw_with_error(panel, NOISES, values, errors, style)
    exact = [row.total_variation for row in rows if row.part == "noise, exact target"]
    panel.plot(NOISES, exact, "k_", markersize=11, linestyle="none", label="noisy target, exact")
    panel.set_xscale("log", base=2)
    panel.set_xticks(NOISES, [f"{size:g}" for size in NOISES])
    panel.set_ylim(0, 1.02)


def _summary(
    problems: dict[str, CategoricalProblem], rows: Sequence[Row], check: dict[str, float]
) -> dict[str, object]:
    """Every outcome by part and setting, and the fixed point without a baseline."""
    target_rewards = {name: at_target(problem).expected_reward.item() for name, problem in problems.items()}
    outcomes: dict[str, dict[str, object]] = {}
    for row in rows:
        outcomes.setdefault(f"{row.part} ({row.problem})", {})[row.setting] = {
            "learning_rate": row.learning_rate if math.isfinite(row.learning_rate) else None,
            "rate_is_at_grid_edge": row.rate_is_at_grid_edge,
            "kl_to_target": row.kl_to_target,
            "kl_to_target_error": row.kl_to_target_error if math.isfinite(row.kl_to_target_error) else None,
            "expected_reward": row.expected_reward,
            "reward_below_target": target_rewards[row.problem] - row.expected_reward,
            "total_variation": row.total_variation,
        }
    setting = {"problems": PROBLEMS, "steps": SCHEDULE.steps, "completions": SCHEDULE.completions, "replicas": REPLICAS}
    bounds = {f"{size:g}": math.tanh(size / 2) for size in NOISES}
    return {
        "setting": {**setting, "learning_rates_tried": LEARNING_RATES},
        "outcomes": outcomes,
        "total_variation_bounds": bounds,
        "fixed_point_without_baseline": check,
    }


CAPTION = (
    "Tabular softmax policies on one prompt, one problem of each kind, each variant at its best learning rate of the "
    "same grid, 0.5 to 128 (d: one rate for all, 4); bars are 2 standard errors over 24 replicas, and one that leaves "
    "a panel of KL reaches 0; rewards are on a scale that is linear within 0.01 of 0. a, the paper's Table 3: in the "
    "sparse problem softmax labels on pairs bring KL(target ‖ policy) from 3.9 to 2.6 nats (at the grid's largest "
    "rate, so that a larger one may do better), the whole group in place of pairs to 0.44, and updating the proposal "
    "back to 1.4; the reward goes the same way. In the moderate problem softmax labels bring it from 0.28 to 0.0020 ± "
    "0.0016; the whole group has 0.00075, which is less by 0.8 standard errors only, and with updates it is 0.0024 ± "
    "0.0005. A tabular policy learns nothing about completions it no longer samples, and at high rates the fixed "
    "prior, which covers everything, ends closest. d, one rate, equal completions: in the sparse problem three "
    "updates raise the reward by 3.5 nats (the paper's section 9.5 measures reward), and 31 by 2.9; KL is lowest with "
    "one update, 1.2, and with 31, 2.8, above that without any, 1.8. In the moderate problem the reward changes by "
    "0.013 at most and KL rises from 0.0035 to 0.0075. b: with a fixed proposal SNIS without a baseline goes to q_SIR "
    "and not to the target (T9); a baseline of mean zero, β/n, has the same end with less noise; 1/n has no fixed "
    "point at all (it is at the lowest rate of the grid, so only early stopping limits it); β̂ alone reaches the "
    "target. Updates bring all others closer, and β̂ further away. c: an error that is always the same moves BRAIn to "
    "the noisy target, within tanh(ε/2) (T13); one that is new in every sample moves it less, but does leave a bias, "
    "since self-normalisation is not linear. Whether language models, which generalise between completions, behave so "
    "is not shown here."
)

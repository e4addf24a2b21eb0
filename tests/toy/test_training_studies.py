"""The studies that train: what they compute, how they look, and that the committed numbers bear out their captions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from figure_faults import faults
from toy import ESTIMATORS, CategoricalProblem, exact_moments
from toy.fit import Schedule, Trajectory, fit
from toy.studies import ablation, frontier, rejection, samples, scale, training
from toy.studies.study import Study, silent, write
from toy_problems import as_floats, generic

MODULES: dict[str, ModuleType] = {
    name: import_module(f"toy.studies.{name}") for name in ("frontier", "samples", "ablation", "rejection", "scale")
}
FIGURES = Path(__file__).parents[2] / "docs" / "figures"
SHORT = {"steps": 32, "groups_per_phase": 8, "steps_per_phase": 8, "groups_per_batch": 4}


def untuned(problem: CategoricalProblem, chosen: object, schedule: Schedule) -> Schedule:
    return replace(schedule, learning_rate=2.0)


@pytest.fixture(scope="module")
def shortened() -> Iterator[None]:
    """The same studies on fewer, shorter runs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES.values():
            patch.setattr(module, "REPLICAS", 2)
            if hasattr(module, "tuned"):
                patch.setattr(module, "tuned", untuned)
        patch.setattr(frontier, "SCHEDULE", replace(frontier.SCHEDULE, steps=32))
        shorter = {name: replace(old, steps=32) for name, old in frontier.SCHEDULES.items()}
        patch.setattr(frontier, "SCHEDULES", shorter)
        patch.setattr(frontier, "OTHERS", {"another": (20, 2.0, 1)})
        patch.setattr(samples, "STEPS", 32)
        patch.setattr(rejection, "SCHEDULES", {name: replace(s, **SHORT) for name, s in rejection.SCHEDULES.items()})
        patch.setattr(scale, "SCHEDULE", replace(scale.SCHEDULE, steps=48))
        patch.setattr(scale, "SIZES", (4, 16))
        patch.setattr(scale, "LEARNING_RATES", (1.0, 4.0))
        patch.setattr(ablation, "PROBLEMS", {"moderate": (20, 2.0), "sparse": (30, 3.0)})
        patch.setattr(ablation, "SCHEDULE", replace(ablation.SCHEDULE, steps=64))
        patch.setattr(ablation, "FIXED", replace(ablation.FIXED, steps=64))
        rungs = {rung: (name, replace(schedule, steps=32)) for rung, (name, schedule) in ablation.LADDER.items()}
        patch.setattr(ablation, "LADDER", rungs)
        yield


@pytest.fixture(scope="module")
def studies(shortened: None) -> dict[str, Study]:
    return {name: module.study(silent) for name, module in MODULES.items()}


def committed(name: str) -> tuple[dict, list[dict[str, str]]]:
    """The summary and the table in the documentation."""
    summary = json.loads((FIGURES / f"{name}.json").read_text())
    with (FIGURES / f"{name}.csv").open() as file:
        return summary, list(csv.DictReader(file))


# every study


@pytest.mark.parametrize("name", MODULES)
def test_figures_are_readable_without_colour_and_no_legend_covers_data(studies: dict[str, Study], name: str) -> None:
    assert faults(studies[name].figure) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_study_is_written_whole_and_small(studies: dict[str, Study], name: str, tmp_path: Path) -> None:
    picture, drawing, table, summary = write(studies[name], tmp_path)
    assert picture.stat().st_size < 300_000
    assert drawing.stat().st_size < 400_000
    assert len(table.read_text().splitlines()) == 1 + len(studies[name].rows)
    assert all(len(row) == len(studies[name].columns) for row in studies[name].rows)
    assert len(json.loads(summary.read_text())["caption"]) > 200


@pytest.mark.parametrize("name", MODULES)
def test_the_committed_files_are_of_this_study(studies: dict[str, Study], name: str) -> None:
    summary, rows = committed(name)
    assert summary["caption"] == studies[name].caption
    assert list(rows[0]) == list(studies[name].columns)
    assert (FIGURES / f"{name}.png").stat().st_size < 300_000
    assert (FIGURES / f"{name}.svg").stat().st_size < 400_000


def test_a_study_has_the_same_rows_every_time(studies: dict[str, Study], shortened: None) -> None:
    assert list(map(str, scale.study(silent).rows)) == list(map(str, studies["scale"].rows))


# learning rates and problems


def test_tuning_takes_the_rate_that_ends_closest_to_the_target_on_draws_of_its_own() -> None:
    problem = training.sampled_problem(20, 1.0, 0)
    schedule = Schedule(40, 1.0, 4)
    rates = (0.01, 1.0, 100.0)
    ends = [
        fit(problem, "brain", replace(schedule, learning_rate=rate), seed=training.TUNING_SEED, replicas=12)
        .kl_to_target[-1]
        .mean()
        for rate in rates
    ]
    assert training.tuned(problem, "brain", schedule, rates).learning_rate == rates[int(np.argmin(ends))] == 1.0
    assert all(module.SEED != training.TUNING_SEED for module in MODULES.values())


def test_a_rate_at_which_training_overflows_is_never_chosen() -> None:
    problem = training.sampled_problem(20, 3.0, 0)

    def overflowing(*_: object) -> np.ndarray:
        raise OverflowError

    broken = replace(ESTIMATORS["dpg"], coefficients=overflowing)
    assert training.final_kl(problem, broken, Schedule(4, 1.0, 4), seed=0, replicas=2) == math.inf


def test_the_problem_starts_at_the_prior_and_only_its_rewards_scale() -> None:
    small, large = (training.sampled_problem(30, scale, 3) for scale in (1.0, 2.0))
    assert small.prior == small.policy == small.proposal == large.prior
    rewards = [np.log(np.array(problem.goodness)) for problem in (small, large)]
    assert rewards[1] == pytest.approx(2 * rewards[0], abs=1e-12)


# frontier


def test_no_policy_is_above_the_optimal_frontier_and_the_target_is_on_it() -> None:
    problem = training.sampled_problem(12, 1.5, 1)
    curve = frontier.optimal_frontier(problem)
    generator = np.random.default_rng(0)
    logits = np.log(np.array(problem.prior)) + generator.normal(0, 1.5, (1, 4000, 12))
    logits[0, :2000] += generator.uniform(0, 3, (2000, 1)) * np.log(np.array(problem.goodness))
    path = Trajectory(problem, np.array([0]), logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    inside = path.kl_to_prior < curve[:, 0].max()
    shortfall = frontier._shortfall(path, curve)[inside]
    assert inside.sum() > 2000
    assert shortfall.min() > -1e-3  # the curve is drawn through 120 points
    assert shortfall.min() < 0.05
    assert abs(frontier._shortfall(training.at_target(problem), curve).item()) < 1e-3


def test_every_frontier_schedule_has_the_same_budget() -> None:
    assert {schedule.completions for schedule in frontier.SCHEDULES.values()} == {frontier.SCHEDULE.completions}
    assert {schedule.steps for schedule in frontier.SCHEDULES.values()} == {frontier.SCHEDULE.steps}


def test_committed_frontier_dpo_sft_alone_overshoots_and_brain_is_not_the_best_everywhere() -> None:
    summary, _ = committed("frontier")
    ends, target = summary["ends"], summary["target"]
    assert [name for name, end in ends.items() if end["overshoots_the_target"]] == ["dpo_sft"]
    assert ends["dpo_sft"]["kl_to_prior_after_overtime"] > 1.5 * target["kl_to_prior"]
    assert ends["dpo_sft"]["kl_to_target_after_overtime"] > 1.2 * ends["dpo_sft"]["kl_to_target"]
    for close in ("brain", "gdcpp", "rloo"):
        assert ends[close]["kl_to_target"] < 0.01
        for far in ("snis", "dpg", "dpo_sft"):
            assert ends[far]["kl_to_target"] > 3 * ends[close]["kl_to_target"]
            assert ends[far]["reward_below_frontier"] > 3 * ends[close]["reward_below_frontier"]
    both = [ends["brain"], ends["rloo"]]
    spread = math.hypot(*(end["kl_to_target_error"] for end in both))
    assert ends["brain"]["kl_to_target"] > ends["rloo"]["kl_to_target"] - 2 * spread
    others = summary["kl_to_target_on_other_problems"]
    assert all(min(ends, key=ends.get) == "brain, proposal fixed" for ends in others.values())
    assert len({min(("brain", "gdcpp", "rloo"), key=ends.get) for ends in others.values()}) > 1
    harder = [ends for label, ends in others.items() if "harder" in label]
    assert all(ends["brain"] > 3 * ends["brain, proposal fixed"] for ends in harder)
    assert all(ends["brain"] > min(ends["gdcpp"], ends["dpg"], ends["snis"]) for ends in harder)


# samples


def test_budgets_are_equal_in_what_they_are_named_for() -> None:
    for name in samples.METHODS:
        equal = [samples._schedule("completions", name, size) for size in samples.GROUP_SIZES]
        assert len({(s.completions, s.steps, s.groups_per_batch * s.group_size) for s in equal}) == 1
        equal = [samples._schedule("groups", name, size) for size in samples.GROUP_SIZES]
        assert len({(s.steps, s.groups_per_phase, s.groups_per_batch) for s in equal}) == 1
        assert equal[-1].completions == 32 * equal[0].completions


def test_committed_samples_brain_saturates_near_eight_only_when_more_per_group_is_more_in_all() -> None:
    summary, rows = committed("samples")
    findings = summary["findings"]
    assert findings["brain, equal groups"]["smallest_group_size_near_best_reward"] == 8
    assert findings["brain, equal completions"]["smallest_group_size_near_best_reward"] == 2
    by_size = findings["brain, equal groups"]["kl_to_target"]
    assert by_size["2"] > by_size["4"] > by_size["8"] > by_size["16"]
    dpo = list(findings["dpo_sft, equal groups"]["kl_to_target"].values())
    assert dpo == sorted(dpo, reverse=True)
    even = findings["dpo_sft, equal completions"]["kl_to_target"].values()
    assert max(even) < 1.25 * min(even)
    for budget in ("completions", "groups"):
        brain, pairs = (
            [float(r["kl_to_target"]) for r in rows if (r["budget"], r["estimator"]) == (budget, name)]
            for name in samples.METHODS
        )
        assert all(b < p for b, p in zip(brain, pairs, strict=True))


# ablation


def test_the_fixed_point_without_baseline_is_the_mean_weight_of_each_completion() -> None:
    problem = as_floats(generic())
    for size in (2, 4):
        law = ablation.snis_fixed_point(problem, size)
        there = problem.with_policy(law.tolist())
        assert abs(exact_moments(there, "snis", size).mean).max() < 1e-12
        assert law.sum() == pytest.approx(1, abs=1e-12)


def test_the_policy_ratio_baseline_has_mean_zero_and_the_others_do_not() -> None:
    problem = as_floats(generic())
    means = {label: exact_moments(problem, chosen, 3).mean for label, chosen in ablation.BASELINES.items()}
    assert means["β/n"] == pytest.approx(means["none"], abs=1e-14)
    assert abs(means["β̂"] - means["none"]).max() > 0.01
    assert abs(means["1/n"] - means["none"]).max() > 0.01


def test_with_the_baseline_one_over_n_nothing_stops_training_on_a_fixed_proposal() -> None:
    problem = as_floats(generic())
    other = problem.with_policy(problem.posterior)
    assert exact_moments(problem, "snis_uniform", 3).mean == pytest.approx(
        exact_moments(other, "snis_uniform", 3).mean, abs=1e-14
    )  # the same pull whatever the policy, and not 0
    assert abs(exact_moments(problem, "snis_uniform", 3).mean).max() > 0.01


def test_the_mean_of_the_others_weights_is_the_baseline_one_over_n_up_to_a_factor() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(5), 7)
    others = (1 - weights) / 4
    assert weights - others == pytest.approx((weights - 1 / 5) * 5 / 4, abs=1e-15)


def test_update_periods_differ_in_nothing_but_the_updates(studies: dict[str, Study]) -> None:
    for period in ablation.UPDATE_PERIODS:
        groups = ablation.SCHEDULE.groups_per_phase * period // ablation.SCHEDULE.steps_per_phase
        assert groups * 16 == ablation.SCHEDULE.groups_per_phase * period


def test_an_unsteady_judge_errs_by_its_size_and_differently_each_time() -> None:
    truth = np.array([0.0, -1.0])
    completions = np.tile([0, 1], 2000).reshape(1, 1000, 4)
    told = ablation._unsteady_judge(truth, 0.5)(completions, np.random.default_rng(0))
    error = told - truth[completions]
    assert np.unique(error.round(12)).tolist() == [-0.5, 0.5]
    assert abs(error.mean()) < 5 * 0.5 / math.sqrt(error.size)


def test_committed_ablation_bears_out_its_caption() -> None:
    summary, _ = committed("ablation")
    outcomes = summary["outcomes"]
    for problem in ("moderate", "sparse"):
        ladder = {rung: end["kl_to_target"] for rung, end in outcomes[f"ladder ({problem})"].items()}
        assert ladder["DPO-sft"] > ladder["+ weights"] > ladder["+ n"]
        assert ladder["+ updates"] > ladder["+ n"]
        gains = [ladder["DPO-sft"] / ladder["+ weights"], ladder["+ weights"] / ladder["+ n"]]
        assert (gains[0] > gains[1]) == (problem == "moderate")
    pairs = outcomes["ladder (sparse)"]
    assert pairs["+ weights"]["expected_reward"] <= pairs["DPO-sft"]["expected_reward"]
    check = summary["fixed_point_without_baseline"]
    assert check["kl_sir_to_flow"] < 1e-3 * check["kl_target_to_sir"]  # rare completions take longer than the flow runs
    assert check["kl_target_to_flow"] == pytest.approx(check["kl_target_to_sir"], abs=1e-3)
    assert check["kl_target_to_sir"] > 0.1
    assert check["kl_sir_to_prior"] < check["log_n"]
    fixed, updated = (
        {label: end["kl_to_target"] for label, end in outcomes[f"baseline, proposal {kind} (moderate)"].items()}
        for kind in ("fixed", "updated")
    )
    assert fixed["1/n"] > 1
    assert fixed["none"] > check["kl_target_to_sir"] > 100 * fixed["β̂"]
    assert fixed["β/n"] > check["kl_target_to_sir"]
    assert all(updated[label] < fixed[label] for label in ("none", "1/n", "β/n"))
    assert min(updated, key=lambda label: updated[label]) == "β̂"
    sparse = outcomes["updates (sparse)"]
    assert sparse["3"]["expected_reward"] > sparse["0"]["expected_reward"] + 3
    assert sparse["31"]["kl_to_target"] > 1.4 * sparse["0"]["kl_to_target"]


def test_committed_noise_moves_brain_to_the_noisy_target_within_the_bound() -> None:
    summary, _ = committed("ablation")
    lasting, exact, fresh = (
        {size: end["total_variation"] for size, end in summary["outcomes"][f"noise, {part} (moderate)"].items()}
        for part in ("lasting", "exact target", "new each time")
    )
    for size, bound in summary["total_variation_bounds"].items():
        assert exact[size] <= bound + 1e-12
        assert lasting[size] == pytest.approx(exact[size], abs=0.01)
        assert 0.02 < fresh[size] < lasting[size]


# rejection


def test_break_even_is_where_both_ways_draw_equally_often(shortened: None) -> None:
    for row in rejection._rows(1.0):
        training_draws = rejection.SCHEDULES[row.proposal].completions
        by_policy = training_draws + row.break_even_samples
        assert by_policy == pytest.approx(row.draws_per_sample * row.break_even_samples)


def test_committed_rejection_bears_out_its_caption() -> None:
    _, rows = committed("rejection")
    fixed = [row for row in rows if row["proposal"] == "fixed"]
    costs = [float(r["draws_per_sample"]) for r in fixed]
    assert costs == sorted(costs)
    for row in rows:
        cost, measured = float(row["draws_per_sample"]), float(row["measured_draws_per_sample"])
        error = math.sqrt(cost * (cost - 1) / rejection.ACCEPTED)  # of a mean of geometric counts
        assert abs(measured - cost) < 5 * error
        assert float(row["break_even_samples"]) * (cost - 1) == pytest.approx(rejection.FIXED.completions)
        assert float(row["total_variation"]) < 0.2 * float(row["prior_total_variation"])
    assert float(fixed[0]["total_variation"]) < 1e-3
    assert 0.03 < float(fixed[-1]["total_variation"]) < 0.3


# scale


def test_a_goal_that_is_not_reached_is_infinite_and_null_in_the_summary(studies: dict[str, Study]) -> None:
    rows = [row for row in studies["scale"].rows if row.method == "DPO-sft" and row.size == 16]  # type: ignore[attr-defined]
    assert all(row.steps == math.inf for row in rows)  # type: ignore[attr-defined]
    assert studies["scale"].summary["steps_to_goal"]["tuned learning rate"]["DPO-sft"][16] is None  # type: ignore[index]


def test_committed_scale_bears_out_its_caption() -> None:
    summary, _ = committed("scale")
    tuned, common = summary["steps_to_goal"]["tuned learning rate"], summary["steps_to_goal"]["learning rate 4"]
    for steps in (tuned, common):
        assert steps["SNIS"]["1024"] is steps["DPG"]["1024"] is None
        assert all(steps["DPO-sft"][size] is None for size in ("16", "64", "256", "1024"))
        for size in ("16", "64", "256"):
            assert steps["SNIS"][size] > steps["BRAIn"][size]
            assert steps["BRAIn"][size] >= steps["GDC++"][size]
    assert tuned["BRAIn, proposal fixed"]["1024"] < tuned["GDC++"]["1024"] < tuned["BRAIn"]["1024"]

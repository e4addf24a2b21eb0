"""The studies that train: what they compute, how they look, and that the committed numbers bear out their captions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from committed_figures import FIGURES, committed, unsaid
from figure_faults import faults
from toy import ESTIMATORS, CategoricalProblem, exact_moments
from toy.fit import Schedule, Trajectory, fit
from toy.studies import ablation, frontier, rejection, samples, scale, training
from toy.studies.study import Study, silent, write
from toy_problems import as_floats, generic

MODULES: dict[str, ModuleType] = {
    name: import_module(f"toy.studies.{name}") for name in ("frontier", "samples", "ablation", "rejection", "scale")
}
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


def difference_in_errors(worse: Mapping[str, float], better: Mapping[str, float], measure: str) -> float:
    """How many standard errors of their difference the first is above the second."""
    error = math.hypot(worse[f"{measure}_error"], better[f"{measure}_error"])
    return (worse[measure] - better[measure]) / error


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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_the_committed_numbers_are_those_of_the_code(name: str) -> None:
    """In a fresh interpreter, where nothing is shortened; sampling amplifies rounding a little."""
    code = (
        f"from toy.studies.{name} import study; from toy.studies.study import silent; from committed_figures import *"
    )
    code += "; found = differences(study(silent), 1e-6); print(found[:5]); assert not found"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests' / 'support'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_a_rate_is_at_the_edge_where_the_grid_ends() -> None:
    at_edge = [rate for rate in training.LEARNING_RATES if training.is_at_grid_edge(rate)]
    assert at_edge == [min(training.LEARNING_RATES), max(training.LEARNING_RATES)] == [0.5, 128]


@pytest.mark.parametrize("name", MODULES)
def test_captions_give_the_settings_as_they_are(name: str) -> None:
    summary, _ = committed(name)
    setting, caption = summary["setting"], summary["caption"]
    assert f"{setting['replicas']} replicas" in caption
    assert setting["learning_rates_tried"] == list(training.LEARNING_RATES)
    ends = f"{min(training.LEARNING_RATES):g} to {max(training.LEARNING_RATES):g}"
    assert ends in caption or "never the grid's first or last" in caption
    assert name != "rejection" or f"{summary['training_completions']} completions" in caption


def test_every_committed_rate_at_the_edge_of_the_grid_is_marked() -> None:
    for name in ("samples", "ablation", "rejection", "scale"):
        for row in committed(name)[1]:
            is_tuned = row.get("rate_is_tuned", "True") == "True"
            at_edge = is_tuned and float(row["learning_rate"]) in (0.5, 128)
            assert row["rate_is_at_grid_edge"] == str(at_edge), row


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


def test_the_fixed_proposal_is_drawn_as_a_method_of_its_own(studies: dict[str, Study]) -> None:
    assert not frontier.SCHEDULES["brain_fixed"].is_proposal_updated
    assert replace(frontier.SCHEDULES["brain_fixed"], is_proposal_updated=True) == frontier.SCHEDULES["brain"]
    labels = [line.get_label() for line in studies["frontier"].figure.axes[0].lines]
    assert {"BRAIn", "BRAIn, proposal fixed"} < set(labels)
    assert {row[0] for row in studies["frontier"].rows} == set(frontier.SCHEDULES)


def test_committed_frontier_dpo_sft_alone_overshoots_and_leaves_the_frontier() -> None:
    summary, _ = committed("frontier")
    ends, target = summary["ends"], summary["target"]
    assert [name for name, end in ends.items() if end["overshoots_the_target"]] == ["dpo_sft"]
    assert ends["dpo_sft"]["kl_to_prior_after_overtime"] > 1.5 * target["kl_to_prior"]
    assert ends["dpo_sft"]["kl_to_target_after_overtime"] > 1.2 * ends["dpo_sft"]["kl_to_target"]
    for close in ("brain", "brain_fixed", "gdcpp", "rloo"):
        assert ends[close]["kl_to_target"] < frontier.CLOSE
        for far in ("snis", "dpg", "dpo_sft"):
            assert ends[far]["kl_to_target"] > 3 * ends[close]["kl_to_target"]
            assert ends[far]["reward_below_frontier"] > 3 * ends[close]["reward_below_frontier"]
            assert ends[far]["learning_rate"] < ends[close]["learning_rate"]


def test_committed_frontier_every_method_is_below_the_optimal_frontier_on_its_way() -> None:
    problem = training.sampled_problem(frontier.SIZE, frontier.REWARD_SCALE, frontier.PROBLEM_SEED)
    divergence, reward = frontier.optimal_frontier(problem)[::-1].T
    assert np.all(np.diff(divergence) > 0)
    _, rows = committed("frontier")
    for name in frontier.SCHEDULES:
        way = [row for row in rows if row["method"] == name and 0.2 < float(row["kl_to_prior"]) < 0.9]
        shortfalls = [
            np.interp(float(row["kl_to_prior"]), divergence, reward) - float(row["expected_reward"]) for row in way
        ]
        assert max(shortfalls) > 0.1, name


def test_committed_frontier_has_the_order_that_its_caption_says() -> None:
    summary, _ = committed("frontier")
    ends, caption = summary["ends"], summary["caption"]
    order = ["brain_fixed", "rloo", "brain", "gdcpp", "dpg", "snis", "dpo_sft"]
    assert sorted(ends, key=lambda name: ends[name]["kl_to_target"]) == order
    assert unsaid(caption, *(ends[name]["kl_to_target"] for name in order[:-1])) == []
    assert unsaid(caption, *(ends[name]["kl_to_target_error"] for name in ("rloo", "brain", "gdcpp"))) == []
    ahead, behind = (
        difference_in_errors(ends[worse], ends[better], "kl_to_target")
        for worse, better in (("brain", "rloo"), ("rloo", "brain_fixed"))
    )
    assert unsaid(caption, ahead, behind) == []
    assert not any(end["rate_is_at_grid_edge"] for end in ends.values())


def test_committed_frontier_updates_cost_on_other_problems_what_its_caption_says() -> None:
    summary, _ = committed("frontier")
    others, caption = summary["kl_to_target_on_other_problems"], summary["caption"]
    for label, ends in others.items():
        assert min(ends, key=lambda name: ends[name]["kl_to_target"]) == "brain_fixed"
        kl, fixed = ends["brain"]["kl_to_target"], ends["brain_fixed"]["kl_to_target"]
        assert unsaid(caption, kl / fixed, kl - fixed) == [], label
        assert difference_in_errors(ends["brain"], ends["brain_fixed"], "kl_to_target") > 2.5
        behind = difference_in_errors(ends["gdcpp"], ends["brain_fixed"], "kl_to_target")
        if "harder" in label:
            assert unsaid(caption, behind) == []
            assert behind < 2
            assert max(ends, key=lambda name: ends[name]["kl_to_target"]) == "rloo"
        else:
            assert behind > 2
    at_edge = [
        (label, name) for label, ends in others.items() for name, end in ends.items() if end["rate_is_at_grid_edge"]
    ]
    harder = [label for label in others if "harder" in label]
    assert at_edge == [
        (harder[0], "dpg"),
        (harder[0], "gdcpp"),
        (harder[0], "rloo"),
        *((harder[1], n) for n in ("dpg", "gdcpp")),
    ]


# samples


def test_budgets_are_equal_in_what_they_are_named_for() -> None:
    for name in samples.METHODS:
        equal = [samples._schedule("completions", name, size) for size in samples.GROUP_SIZES]
        assert len({(s.completions, s.steps, s.groups_per_batch * s.group_size) for s in equal}) == 1
        equal = [samples._schedule("groups", name, size) for size in samples.GROUP_SIZES]
        assert len({(s.steps, s.groups_per_phase, s.groups_per_batch) for s in equal}) == 1
        assert equal[-1].completions == 32 * equal[0].completions


def test_committed_samples_both_rewards_saturate_and_at_equal_completions_the_group_size_hardly_matters() -> None:
    summary, rows = committed("samples")
    findings, caption = summary["findings"], summary["caption"]
    assert not any(found["group_sizes_with_rate_at_grid_edge"] for found in findings.values())
    for name, size in (("brain", 8), ("dpo_sft", 16)):
        grown, even = (findings[f"{name}, equal {budget}"] for budget in ("groups", "completions"))
        assert grown["smallest_group_size_near_best_reward"] == size
        assert f"at n = {size} and hardly after" in caption
        reward = grown["expected_reward"]
        assert unsaid(caption, reward["2"], reward[str(size)], digits=3) == []
        assert max(reward.values()) - reward[str(size)] < 0.01
        rewards = even["expected_reward"].values()
        assert max(rewards) - min(rewards) < 0.035
        last = {"brain": grown["kl_to_target"]["16"], "dpo_sft": grown["kl_to_target"]["64"]}[name]
        assert unsaid(caption, last, min(even["kl_to_target"].values()), max(even["kl_to_target"].values())) == []
    brain = findings["brain, equal groups"]["kl_to_target"]
    assert brain["2"] > brain["4"] > brain["8"] > brain["16"] > 0.8 * brain["32"]
    dpo = list(findings["dpo_sft, equal groups"]["kl_to_target"].values())
    assert dpo == sorted(dpo, reverse=True)
    assert unsaid(caption, dpo[0]) == []
    for budget in ("completions", "groups"):
        brain_kl, pairs = (
            [float(r["kl_to_target"]) for r in rows if (r["budget"], r["estimator"]) == (budget, name)]
            for name in samples.METHODS
        )
        assert all(b < p for b, p in zip(brain_kl, pairs, strict=True))


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


def test_subtracting_the_mean_of_the_others_weights_is_the_baseline_one_over_n_up_to_a_factor() -> None:
    target, policy = np.random.default_rng(0).normal(size=(2, 7, 5))
    weights = ablation.BASELINES["none"].coefficients(target, policy)
    others = np.stack([np.delete(weights, index, axis=1).mean(1) for index in range(5)], axis=1)
    assert ablation.BASELINES["1/n"].coefficients(target, policy) * 5 / 4 == pytest.approx(weights - others, abs=1e-15)


def test_update_periods_differ_in_nothing_but_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(ablation.SCHEDULE, steps=max(ablation.UPDATE_PERIODS))  # the other tests shorten it
    monkeypatch.setattr(ablation, "SCHEDULE", whole)
    schedules = [ablation._schedule_with_period(period) for period in ablation.UPDATE_PERIODS]
    assert len({(s.completions, s.steps, s.learning_rate, s.group_size, s.groups_per_batch) for s in schedules}) == 1
    assert [s.phases - 1 for s in schedules] == [0, 1, 3, 7, 15, 31]
    assert all(s.is_proposal_updated and s.keeps_old_groups for s in schedules)


def test_an_unsteady_judge_errs_by_its_size_and_differently_each_time() -> None:
    truth = np.array([0.0, -1.0])
    completions = np.tile([0, 1], 2000).reshape(1, 1000, 4)
    told = ablation._unsteady_judge(truth, 0.5)(completions, np.random.default_rng(0))
    error = told - truth[completions]
    assert np.unique(error.round(12)).tolist() == [-0.5, 0.5]
    assert abs(error.mean()) < 5 * 0.5 / math.sqrt(error.size)


def test_committed_ladder_bears_out_its_caption() -> None:
    summary, rows = committed("ablation")
    caption, outcomes = summary["caption"], summary["outcomes"]
    moderate, sparse = (outcomes[f"ladder ({name})"] for name in ("moderate", "sparse"))
    for ladder in (moderate, sparse):
        assert unsaid(caption, *(end["kl_to_target"] for end in ladder.values())) == []
        assert difference_in_errors(ladder["+ updates"], ladder["+ n"], "kl_to_target") > 3
    assert unsaid(caption, moderate["+ weights"]["kl_to_target_error"]) == []
    assert unsaid(caption, moderate["+ updates"]["kl_to_target_error"], digits=1) == []
    assert unsaid(caption, difference_in_errors(moderate["+ weights"], moderate["+ n"], "kl_to_target"), digits=1) == []
    rewards = {row["setting"]: float(row["expected_reward"]) for row in rows if row["problem"] == "sparse"}
    assert rewards["DPO-sft"] < rewards["+ weights"] < rewards["+ updates"] < rewards["+ n"]
    for first, second in (("DPO-sft", "+ weights"), ("+ weights", "+ n")):
        assert difference_in_errors(sparse[first], sparse[second], "kl_to_target") > 5
    assert difference_in_errors(moderate["DPO-sft"], moderate["+ weights"], "kl_to_target") > 5
    edges = [
        (name, rung)
        for name in ("moderate", "sparse")
        for rung, end in outcomes[f"ladder ({name})"].items()
        if end["rate_is_at_grid_edge"]
    ]
    assert edges == [("sparse", "+ weights")]
    assert sparse["+ weights"]["learning_rate"] == max(training.LEARNING_RATES)


def test_committed_updates_bear_out_their_caption() -> None:
    summary, _ = committed("ablation")
    caption, outcomes = summary["caption"], summary["outcomes"]
    sparse, moderate = (outcomes[f"updates ({name})"] for name in ("sparse", "moderate"))
    gained = {number: end["expected_reward"] - sparse["0"]["expected_reward"] for number, end in sparse.items()}
    assert max(gained, key=lambda number: gained[number]) == "3"
    assert unsaid(caption, gained["3"], gained["31"]) == []
    kls = {number: end["kl_to_target"] for number, end in sparse.items()}
    assert min(kls, key=lambda number: kls[number]) == "1"
    assert unsaid(caption, kls["0"], kls["1"], kls["31"]) == []
    assert difference_in_errors(sparse["31"], sparse["0"], "kl_to_target") > 5
    rewards = [end["expected_reward"] for end in moderate.values()]
    assert unsaid(caption, max(rewards) - min(rewards)) == []
    assert unsaid(caption, moderate["0"]["kl_to_target"], moderate["31"]["kl_to_target"]) == []


def test_committed_baselines_bear_out_their_caption() -> None:
    summary, _ = committed("ablation")
    outcomes, check = summary["outcomes"], summary["fixed_point_without_baseline"]
    assert check["kl_sir_to_flow"] < 1e-3 * check["kl_target_to_sir"]  # rare completions take longer than the flow runs
    assert check["kl_target_to_flow"] == pytest.approx(check["kl_target_to_sir"], abs=1e-3)
    assert check["kl_target_to_sir"] > 0.1
    assert check["kl_sir_to_prior"] < check["log_n"]
    fixed, updated = (outcomes[f"baseline, proposal {kind} (moderate)"] for kind in ("fixed", "updated"))
    kl = {label: end["kl_to_target"] for label, end in fixed.items()}
    assert kl["1/n"] > 1
    assert kl["none"] > kl["β/n"] > check["kl_target_to_sir"] > 100 * kl["β̂"]
    assert fixed["β/n"]["kl_to_target_error"] < fixed["none"]["kl_to_target_error"]
    for label in fixed:
        assert (updated[label]["kl_to_target"] < kl[label]) == (label != "β̂")
        assert fixed[label]["rate_is_at_grid_edge"] == updated[label]["rate_is_at_grid_edge"] == (label == "1/n")
    assert fixed["1/n"]["learning_rate"] == min(training.LEARNING_RATES)
    assert min(updated, key=lambda label: updated[label]["kl_to_target"]) == "β̂"


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
    summary, _ = committed("rejection")
    assert not any(row["rate_is_at_grid_edge"] == "True" for row in rows)
    by_scale = {(row["reward_scale"], row["proposal"]): {k: float(row[k]) for k in MEASURED} for row in rows}
    scales = sorted({scale for scale, _ in by_scale}, key=float)
    ends = [by_scale[scale, "fixed"] for scale in ("0.5", "2.0", "8.0")]
    caption = summary["caption"]
    assert (
        unsaid(caption, by_scale["8.0", "updated"]["total_variation"], *(e["total_variation"] for e in ends[1:])) == []
    )
    assert unsaid(caption, *(end["draws_per_sample"] for end in ends)) == []
    assert unsaid(caption, ends[0]["break_even_samples"], ends[2]["break_even_samples"]) == []
    assert all(by_scale[s, "fixed"]["total_variation"] <= ends[1]["total_variation"] for s in ("0.5", "1.0", "2.0"))
    gaps = {
        scale: difference_in_errors(by_scale[scale, "updated"], by_scale[scale, "fixed"], "total_variation")
        for scale in scales
    }
    assert [scale for scale in scales if gaps[scale] > 2.3] == ["2.0", "3.0", "4.0"]
    assert all(gaps[scale] < 2.1 for scale in scales if scale not in ("2.0", "3.0", "4.0"))


MEASURED = ("draws_per_sample", "break_even_samples", "total_variation", "total_variation_error")


# scale


def test_a_goal_that_is_not_reached_is_infinite_and_null_in_the_summary(studies: dict[str, Study]) -> None:
    rows = [row for row in studies["scale"].rows if row.method == "DPO-sft" and row.size == 16]  # type: ignore[attr-defined]
    assert all(row.steps == math.inf for row in rows)  # type: ignore[attr-defined]
    assert studies["scale"].summary["steps_to_goal"]["tuned learning rate"]["DPO-sft"][16] is None  # type: ignore[index]


def test_committed_scale_bears_out_its_caption() -> None:
    summary, _ = committed("scale")
    caption, start = summary["caption"], summary["initial_kl"]
    tuned, common = summary["steps_to_goal"]["tuned learning rate"], summary["steps_to_goal"]["learning rate 4"]
    assert unsaid(caption, *list(start.values())[:3], start["1024"]) == unsaid(caption, start["256"], digits=3) == []
    for steps in (tuned, common):
        assert steps["SNIS"]["1024"] is steps["DPG"]["1024"] is None
        assert all(steps["DPO-sft"][size] is None for size in ("16", "64", "256", "1024"))
        for method, by_size in steps.items():
            reached = [math.inf if by_size[size] is None else by_size[size] for size in list(by_size)[1:]]
            assert reached == sorted(reached), method
        assert (steps["SNIS"]["4"], steps["SNIS"]["16"]) == (36, 24)
    assert "SNIS takes more (36) than at 16 (24)" in caption
    assert (tuned["DPO-sft"]["4"], common["DPO-sft"]["4"]) == (4, None)
    assert all(tuned["BRAIn"][s] == tuned["BRAIn, proposal fixed"][s] == tuned["GDC++"][s] for s in ("4", "16", "64"))
    for size in ("256", "1024"):
        assert unsaid(caption, *(tuned[name][size] for name in ("BRAIn", "BRAIn, proposal fixed", "GDC++"))) == []
    assert tuned["BRAIn, proposal fixed"]["256"] < tuned["GDC++"]["256"] < tuned["BRAIn"]["256"]
    for size in ("16", "64", "256", "1024"):
        others = [steps[size] or math.inf for name, steps in common.items() if name != "GDC++"]
        assert common["GDC++"][size] < min(others)
    assert common["BRAIn"]["1024"] is None
    assert summary["rate_at_grid_edge"] == ["DPO-sft, K = 16", "DPO-sft, K = 64"]
    assert tuned["BRAIn, proposal fixed"]["1024"] < tuned["GDC++"]["1024"] < tuned["BRAIn"]["1024"]

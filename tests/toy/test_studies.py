"""The studies that need no training: variance, bias, gap, family; and how every figure must look."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from committed_figures import committed, differences, rounded, unsaid
from figure_faults import faults
from toy import ESTIMATORS, brain_power, exact_moments, gaussian_moments, snkl_constant
from toy.plots import PLAIN, STYLE, describe, draw, figure, legend_below, legend_under, plain_style
from toy.studies import bias, family, gap, variance
from toy.studies.study import Study, silent, write

MINE = ("variance", "bias", "gap", "family")


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {name: import_module(f"toy.studies.{name}").study(silent) for name in MINE}


@pytest.fixture(scope="module")
def variance_rows(studies: dict[str, Study]) -> dict[tuple[str, str, float], tuple[float, float, float]]:
    """(sweep, estimator, abscissa) to (variance, squared bias, mean squared error)."""
    return {(str(s), str(e), round(float(x), 6)): tuple(rest) for s, e, x, *rest in studies["variance"].rows}  # type: ignore[misc, arg-type]


def column(study: Study, name: str, **where: object) -> np.ndarray:
    """A column of the rows in which these columns have these values."""
    columns = list(study.columns)
    rows = [row for row in study.rows if all(row[columns.index(key)] == value for key, value in where.items())]
    return np.array([row[columns.index(name)] for row in rows], float)


# variance


def test_dpg_and_gdcpp_have_their_closed_form_variance_at_every_proposal(variance_rows) -> None:
    for mu in variance.GRID:
        alpha_square = np.exp(mu**2) * (1 + (1 + mu) ** 2)
        beta_square = np.exp((1 - mu) ** 2) * (1 + (1 - mu) ** 2)
        both = np.exp(mu**2 - mu) * (1 + mu**2)
        dpg, gdcpp = (variance_rows["gaussian", name, round(mu, 6)] for name in ("dpg", "gdcpp"))
        assert dpg[0] == pytest.approx((alpha_square - 1) / 8, rel=1e-10)
        assert gdcpp[0] == pytest.approx((alpha_square + beta_square - 2 * both - 1) / 8, rel=1e-10)
        assert dpg[1] < 1e-20
        assert gdcpp[1] < 1e-20


def test_gdc_is_dpg_on_policy_and_one_over_n_baseline_is_brain_there(variance_rows) -> None:
    for sweep in ("gaussian", "categorical"):
        assert variance_rows[sweep, "gdc", 1.0] == pytest.approx(variance_rows[sweep, "dpg", 1.0], rel=1e-10)
        assert variance_rows[sweep, "snis_uniform", 1.0] == pytest.approx(variance_rows[sweep, "brain", 1.0], rel=1e-8)


def test_brain_is_symmetric_between_target_and_policy_in_the_gaussian_toy(variance_rows) -> None:
    for mu in variance.GRID:
        here, there = (variance_rows["gaussian", "brain", round(at, 6)] for at in (mu, 1 - mu))
        assert here == pytest.approx(there, rel=1e-9)
    assert variance_rows["gaussian", "dpg", 0.0] != pytest.approx(variance_rows["gaussian", "dpg", 1.0], rel=0.5)


def test_at_the_target_snis_is_the_plain_mean_and_weighted_brain_is_brain(variance_rows) -> None:
    assert variance_rows["gaussian", "snis", 0.0] == pytest.approx((1 / 8, 0.0, 1 / 8), abs=1e-10)
    assert variance_rows["gaussian", "brain_weighted", 0.0] == pytest.approx(
        variance_rows["gaussian", "brain", 0.0], rel=1e-9
    )


def test_on_policy_weighted_brain_is_biased_by_one_nth(variance_rows) -> None:
    assert variance_rows["gaussian", "brain_weighted", 1.0][1] == pytest.approx(1 / 64, rel=1e-10)


def test_error_is_variance_plus_squared_bias(variance_rows) -> None:
    for found in variance_rows.values():
        assert found[2] == pytest.approx(found[0] + found[1], rel=1e-9, abs=1e-12)


def test_n_times_the_bias_of_brain_tends_to_the_constant_of_the_theory(variance_rows) -> None:
    """At μ = ½ the limit is ½ e^¼ + ½ e^¼; the value at n = 256 is known from an independent quadrature."""
    scaled = [n * np.sqrt(variance_rows["group_size", "brain", float(n)][1]) for n in variance.SIZES]
    assert scaled[-1] == pytest.approx(1.2818, abs=1e-4)
    assert np.all(np.diff(np.abs(np.array(scaled) - np.exp(0.25))) < 0)


def all_errors(sweep: str, name: str, at: float) -> tuple[float, float]:
    """Variance and mean squared error, straight from the moments."""
    if sweep == "gaussian":
        found = gaussian_moments(name, at, 8)
        return found.variance, found.mse
    path = np.array(bias.SWEPT.posterior, float) ** (1 - at) * np.array(bias.SWEPT.policy, float) ** at
    exact = exact_moments(bias.SWEPT.with_proposal(list(path / path.sum())), name, 8)
    return float(exact.variance), float(exact.mse)


def test_every_crossing_is_one(studies: dict[str, Study]) -> None:
    found = [c for c in studies["variance"].summary["crossings"] if c["sweep"] != "group_size"]
    assert {(c["sweep"], c["quantity"]) for c in found} == set(itertools.product(variance.SWEEPS, ("variance", "mse")))
    for crossing in found:
        index = ("variance", "mse").index(crossing["quantity"])
        excess = [
            all_errors(crossing["sweep"], "brain", at)[index]
            - all_errors(crossing["sweep"], crossing["other"], at)[index]
            for at in (crossing["at"] - 1e-3, crossing["at"], crossing["at"] + 1e-3)
        ]
        assert excess[0] * excess[2] < 0
        assert abs(excess[1]) < 1e-9


def test_brain_is_the_lowest_exactly_where_the_figure_is_shaded(studies: dict[str, Study], variance_rows) -> None:
    claims = {(c["sweep"], c["quantity"]): c["intervals"] for c in studies["variance"].summary["brain_is_lowest"]}
    assert len(claims) == 6
    for (sweep, quantity), intervals in claims.items():
        index = variance.QUANTITIES.index(quantity)
        for at in variance.SIZES if sweep == "group_size" else variance.GRID:
            values = {name: variance_rows[sweep, name, round(at, 6)][index] for name in variance.CONSISTENT}
            is_lowest = min(values, key=values.get) == "brain"  # type: ignore[arg-type]
            assert is_lowest == any(left <= at <= right for left, right in intervals), (sweep, quantity, at)


def test_brain_is_not_the_lowest_near_the_target_and_the_caption_says_so(studies, variance_rows) -> None:
    for sweep in variance.SWEEPS:
        brain = variance_rows[sweep, "brain", 0.0]
        for name in ("snis", "dpg"):
            assert variance_rows[sweep, name, 0.0][0] < brain[0]
            assert variance_rows[sweep, name, 0.0][2] < brain[2]
    assert "NOT the lowest" in studies["variance"].caption
    for claim in studies["variance"].summary["brain_is_lowest"]:
        ((left, right),) = claim["intervals"]
        assert claim["sweep"] == "group_size" or f"{left:.3f} to {right:.3f}" in studies["variance"].caption


def test_half_way_snis_is_lower_than_brain_from_the_group_size_that_the_caption_says(studies) -> None:
    """By quadrature at every size up to 16, and at the doublings after."""
    found = {c["quantity"]: c for c in studies["variance"].summary["crossings"] if c["sweep"] == "group_size"}
    for quantity, last in (("variance", 5), ("mse", 2)):
        for size in (*range(2, 17), *variance.SIZES[4:]):
            values = {name: getattr(variance.size_errors(name, size), quantity) for name in variance.CONSISTENT}
            assert min(values, key=values.get) == ("brain" if size <= last else "snis"), (quantity, size)  # type: ignore[arg-type]
        assert found[quantity]["other"] == "snis"
        assert last < found[quantity]["at"] < last + 1
    assert "lowest variance only up to n = 5 and the lowest error only up to n = 2" in studies["variance"].caption


def test_the_variance_of_brain_changes_along_the_gaussian_proposal_by_the_factor_in_the_caption(studies) -> None:
    summary = studies["variance"].summary["largest_over_smallest_variance_along_the_sweep"]["gaussian"]
    assert unsaid(studies["variance"].caption, summary["brain"], digits=3) == []
    assert min(summary, key=summary.get) == "brain"


def test_only_those_named_in_the_caption_have_no_bias(variance_rows) -> None:
    unbiased = {"dpg", "gdc", "gdcpp", "importance_weighted_rloo"}
    for (sweep, name, at), found in variance_rows.items():
        is_exact = name in unbiased or (name == "rloo" and sweep != "categorical")
        is_same_as_brain_at_target = name in ("snis", "snis_uniform") and sweep != "group_size" and at == 0
        if not is_same_as_brain_at_target:
            assert (found[1] < variance.NEGLIGIBLE) == is_exact, (sweep, name, at)


def test_the_baseline_one_over_n_is_zero_at_the_target_and_does_not_lose_its_bias(variance_rows) -> None:
    for sweep in variance.SWEEPS:
        assert variance_rows[sweep, "snis_uniform", 0.0][0] < variance.NEGLIGIBLE
    biases = [variance_rows["group_size", "snis_uniform", float(n)][1] for n in variance.SIZES]
    assert biases[-1] > 0.98 * biases[-2] > 0.2
    below = [
        at
        for at in variance.GRID
        if variance_rows["categorical", "snis_uniform", round(at, 6)][2]
        < min(variance_rows["categorical", name, round(at, 6)][2] for name in variance.CONSISTENT)
    ]
    assert below
    assert min(below) > 0.5


# bias


@pytest.mark.parametrize(
    ("name", "divergence", "values"),
    [
        ("off-policy counterexample", 0.175778, (0.7157, 0.9301, 0.9665, 0.9381, 0.8872, 0.8302, 0.7738)),
        ("on-policy counterexample", 0.595108, (0.297554, 0.473245, 0.562403, 0.604182, 0.622062, 0.628451, 0.629565)),
    ],
)
def test_the_counterexamples_have_the_values_of_exact_arithmetic(studies, name, divergence, values) -> None:
    """D_2 … D_8, to the digits that were certified."""
    digits = 5e-5 if len(str(values[0])) == 6 else 5e-7
    assert column(studies["bias"], "kl", problem=name)[0] == pytest.approx(divergence, abs=5e-7)
    assert column(studies["bias"], "d_n", problem=name)[:7] == pytest.approx(values, abs=digits * 1.01)


def test_the_counterexamples_exceed_kl_and_are_not_monotone_while_the_weighted_form_is(studies) -> None:
    for name in bias.PROBLEMS:
        divergence = column(studies["bias"], "kl", problem=name)
        value, weighted = (column(studies["bias"], key, problem=name) for key in ("d_n", "weighted_d_n"))
        assert np.all(weighted < divergence)
        assert np.all(np.diff(weighted) > 0)
        assert (name == "generic") == bool(np.all(value < divergence)) == bool(np.all(np.diff(value) > 0))


def test_the_caption_of_bias_bears_out_its_numbers(studies) -> None:
    off = {name: column(studies["bias"], name, problem="off-policy counterexample") for name in ("kl", "d_n")}
    assert 5 < max(off["d_n"] / off["kl"]) < 6
    ratios = []
    for name in bias.PROBLEMS:
        for value, limit in (("n_times_bias", "constant"), ("n_times_gradient_bias", "gradient_bias_limit")):
            pair = [column(studies["bias"], key, problem=name)[0] for key in (value, limit)]
            ratios.append(pair[0] / pair[1])
    assert max(abs(ratio - 1) for ratio in ratios) > 0.5
    last = {"problem": "sweep", "part_of_the_way": bias.SWEEP[-1]}
    above = column(studies["bias"], "d_n", **last) > column(studies["bias"], "kl", **last)
    assert above.tolist() == [size in (4, 16, 64) for size in bias.SWEEP_SIZES]
    first = {"problem": "sweep", "part_of_the_way": 0.0, "group_size": 2}
    assert column(studies["bias"], "d_n", **first)[0] < 0.5 * column(studies["bias"], "kl", **first)[0]


def test_n_times_the_bias_is_what_its_name_says(studies) -> None:
    value, divergence, size, scaled = (
        column(studies["bias"], key) for key in ("d_n", "kl", "group_size", "n_times_bias")
    )
    assert scaled == pytest.approx(size * (value - divergence), rel=1e-12)


def test_n_times_both_biases_tends_to_its_constant_like_one_over_n(studies) -> None:
    for name, (value, limit) in itertools.product(
        bias.PROBLEMS, (("n_times_bias", "constant"), ("n_times_gradient_bias", "gradient_bias_limit"))
    ):
        ratio = column(studies["bias"], value, problem=name) / column(studies["bias"], limit, problem=name)
        assert abs(ratio[-1] - 1) < 5e-3
        assert (ratio[-2] - 1) / (ratio[-1] - 1) == pytest.approx(2, rel=0.05)  # n doubles between the last two


def test_the_limit_of_the_gradient_bias_is_minus_the_gradient_of_the_constant() -> None:
    """By central differences of the constant in the policy's logits."""
    for problem in bias.PROBLEMS.values():
        logits, step = np.log(np.array(problem.policy, float)), 1e-5

        def constant(index: int, change: float, problem=problem, logits=logits) -> float:
            moved = np.exp(logits + change * (np.arange(len(logits)) == index))
            return snkl_constant(problem.with_policy(list(moved / moved.sum())))

        slopes = [(constant(i, step) - constant(i, -step)) / (2 * step) for i in range(problem.size)]
        assert bias.gradient_bias_limit(problem) == pytest.approx(-np.array(slopes), abs=1e-8)


def test_the_swept_policy_ends_at_the_target() -> None:
    assert bias.towards_target(0.0).kl == pytest.approx(bias.SWEPT.kl)
    assert bias.towards_target(1.0).kl == pytest.approx(0, abs=1e-15)


# gap


def test_argmax_pulls_every_pair_alike_and_softmax_by_its_gap(studies) -> None:
    start = {"quantity": "pull", "state": "before training"}
    assert column(studies["gap"], "value", rule="argmax", **start) == pytest.approx(np.full(30, 0.5), abs=1e-15)
    expected = 1 / (1 + np.exp(-gap.GAPS)) - 0.5
    assert column(studies["gap"], "value", rule="softmax", **start) == pytest.approx(expected, abs=1e-14)
    assert expected[0] < 0.05
    assert (gap.GAPS[0], gap.GAPS[-1]) == (0.2, 6.0)


def test_at_the_posterior_softmax_has_stopped_and_argmax_has_not(studies) -> None:
    there = {"quantity": "pull", "state": "at the posterior"}
    assert np.max(np.abs(column(studies["gap"], "value", rule="softmax", **there))) < 1e-15
    assert column(studies["gap"], "value", rule="argmax", **there) == pytest.approx(
        1 / (1 + np.exp(gap.GAPS)), rel=1e-12
    )
    assert np.all(column(studies["gap"], "value", rule="logistic_high", **there) < 0)


def test_dpo_with_soft_labels_is_softmax_everywhere(studies) -> None:
    for quantity in ("weight", "pull", "log_odds"):
        soft, softmax = (
            column(studies["gap"], "value", quantity=quantity, rule=rule) for rule in ("soft_label", "softmax")
        )
        assert soft.size > 0
        assert soft == pytest.approx(softmax, abs=1e-12)


def test_training_ends_where_each_rule_stops(studies) -> None:
    for wanted in gap.STEP_GAPS:
        last = {
            rule: column(studies["gap"], "value", quantity="log_odds", rule=rule, gap=wanted)[-1] for rule in gap.RULES
        }
        assert last["softmax"] == pytest.approx(wanted, abs=1e-2)
        assert last["smoothed"] == pytest.approx(np.log(9), abs=1e-6)
        assert last["logistic_high"] < 0.1 * wanted
    assert last["logistic_low"] < last["softmax"]
    path = gap.learned("argmax", gap.STEP_GAPS[0])
    assert np.all(np.diff(path) > 0)
    assert path[400] - path[200] == pytest.approx(np.log(2), abs=0.02)  # like the logarithm of the steps


def test_the_caption_of_gap_says_where_training_ends(studies) -> None:
    ends = {(e["rule"], e["gap"]): e["log_odds"] for e in studies["gap"].summary["log_odds_after_training"]}
    said = [ends[rule, wanted] for rule in ("logistic_low", "logistic_high") for wanted in gap.STEP_GAPS]
    assert unsaid(studies["gap"].caption, *said, ends["smoothed", 4.0]) == []
    assert (gap.LOW, gap.HIGH, gap.SMOOTHING) == (-2, 3, 0.1)


def test_the_paths_are_written_at_the_steps_that_are_drawn(studies) -> None:
    where = {"quantity": "log_odds", "rule": "softmax", "gap": gap.STEP_GAPS[1]}
    steps = column(studies["gap"], "step", **where).astype(int)
    assert (steps[0], steps[-1]) == (1, gap.STEPS)
    assert column(studies["gap"], "value", **where) == pytest.approx(gap.learned("softmax", gap.STEP_GAPS[1])[steps])
    drawn = {line.get_label(): line for line in studies["gap"].figure.axes[5].lines}["softmax (BRAIn)"]
    assert np.asarray(drawn.get_xdata()).tolist() == steps.tolist()
    assert np.asarray(drawn.get_ydata()).tolist() == column(studies["gap"], "value", **where).tolist()


def test_the_logistic_weight_is_the_ratio_of_sigmoids() -> None:
    reward = np.array([gap.HIGH + 1.0, gap.HIGH - 1.0])
    goodness = 1 / (1 + np.exp(-reward))
    assert gap.weight("logistic_high", np.array([2.0]))[0] == pytest.approx(goodness[0] / goodness.sum(), rel=1e-12)


# family


@pytest.mark.parametrize("size", family.SIZES)
def test_towards_power_zero_the_direction_is_that_of_reverse_kl(size: int) -> None:
    deviations = [1 - family.point(power, size).cosine_to_reverse_kl for power in (0.1, 0.01)]
    assert deviations[1] < 1e-4
    assert deviations[1] < deviations[0] / 50  # quadratic in the power


def test_the_reverse_direction_is_the_gradient_of_reverse_kl() -> None:
    target, logits, step = np.array(family.PROBLEM.posterior), np.log(np.array(family.PROBLEM.policy)), 1e-6

    def divergence(index: int, change: float) -> float:
        moved = np.exp(logits + change * (np.arange(4) == index))
        policy = moved / moved.sum()
        return float(policy @ np.log(policy / target))

    slopes = [(divergence(i, step) - divergence(i, -step)) / (2 * step) for i in range(4)]
    assert family.directions(2)["reverse_kl"].gradient == pytest.approx(-np.array(slopes), abs=1e-8)


def test_towards_infinite_power_the_direction_is_that_of_argmax(studies) -> None:
    for size in family.SIZES:
        cosine = column(studies["family"], "cosine_to_argmax", group_size=size)
        assert cosine[-1] == pytest.approx(1, abs=1e-6)
        assert cosine[0] < 0.995


def test_at_power_one_a_larger_group_points_towards_forward_kl() -> None:
    missing = [1 - family.point(1.0, size).cosine_to_forward_kl for size in (2, 8, 32, 64)]
    assert np.all(np.diff(missing) < 0)
    assert missing[-1] < 5e-4


def test_the_objective_over_the_squared_power_tends_to_half_the_group_variance() -> None:
    """The limit from all ordered groups of three."""
    log_quotient = np.log(np.array(family.PROBLEM.posterior) / np.array(family.PROBLEM.policy))
    proposal = np.array(family.PROBLEM.proposal)
    half_variance = sum(
        np.prod(proposal[list(group)]) * np.var(log_quotient[list(group)]) / 2
        for group in itertools.product(range(4), repeat=3)
    )
    assert family.half_batch_variance(3) == pytest.approx(half_variance, rel=1e-12)
    assert family.point(1e-3, 3).divergence_over_power_squared == pytest.approx(half_variance, rel=1e-3)


def test_the_scaled_error_is_the_least_over_factors() -> None:
    found, moments = family.point(2.0, 3), exact_moments(family.PROBLEM, brain_power(2.0), 3)
    descent = np.array(family.PROBLEM.posterior) - np.array(family.PROBLEM.policy)
    factors = np.linspace(0, 3, 30_001)[:, None]
    errors = factors[:, 0] ** 2 * moments.variance + ((factors * moments.mean - descent) ** 2).sum(1)
    assert errors.min() / (descent @ descent) == pytest.approx(found.scaled_error, rel=1e-7)
    assert found.scaled_error < found.mse / (descent @ descent)


def test_the_caption_of_family_bears_out_its_numbers(studies) -> None:
    study = studies["family"]
    assert column(study, "cosine_to_reverse_kl", group_size=2).min() > 0.989
    errors = {size: column(study, "scaled_error", group_size=size) for size in family.SIZES}
    assert (np.argmin(errors[2]), np.argmax(errors[2])) == (0, len(family.POWERS) - 1)
    assert unsaid(study.caption, errors[2].min(), errors[2].max(), errors[32].min()) == []
    powers = [study.summary["power_of_lowest_scaled_error"][size] for size in ("8", "32")]
    assert unsaid(study.caption, *powers, errors[8].min(), digits=3) == []
    at_one = {point["group_size"]: point["scaled_error"] for point in study.summary["brain"]}
    assert unsaid(study.caption, at_one[8], at_one[32], digits=3) == []
    assert unsaid(study.caption, *study.summary["largest_over_smallest_noise"].values(), digits=3) == []


def test_the_family_at_power_one_is_brain() -> None:
    brain = exact_moments(family.PROBLEM, "brain", 8)
    assert family.point(1.0, 8).mse == pytest.approx(brain.mse, rel=1e-12)
    assert family.point(1.0, 8).length == pytest.approx(np.linalg.norm(brain.mean), rel=1e-12)


# committed numbers


@pytest.mark.parametrize("name", MINE)
def test_the_committed_numbers_are_those_of_the_code(studies, name: str) -> None:
    assert differences(studies[name], relative=1e-9) == []
    summary, _ = committed(name)
    assert summary["caption"] == studies[name].caption


def test_a_committed_number_that_changed_is_found(studies) -> None:
    study = studies["gap"]
    rows = [tuple(row) for row in study.rows]
    other = replace(study, rows=[(*rows[0][:-1], rows[0][-1] * (1 + 1e-8)), *rows[1:]])
    assert [place[:2] for place in differences(other, relative=1e-9)] == [(0, "value")]
    assert differences(replace(study, rows=rows[1:]), relative=1e-9)
    assert rounded(0.0019995, 2) == "0.0020"
    assert unsaid("it is 0.44 and −1.9.", 0.4399, -1.874, 0.5) == ["0.50"]


# figures


@pytest.mark.parametrize("name", MINE)
def test_figures_are_readable_without_colour_and_no_legend_covers_data(studies, name: str) -> None:
    assert faults(studies[name].figure) == []


def test_the_check_of_figures_finds_each_fault() -> None:
    made, panels = figure(1, 2)
    draw(panels[0, 0], [0, 1], [0, 1], plain_style(0, "a"))
    draw(panels[0, 0], [0, 1], [1, 2], plain_style(0, "b"), color="red")
    panels[0, 0].legend()
    describe(panels[0, 0], title="a title that is much too long for its panel and runs into the next", x="x", y="y")
    describe(panels[0, 1], title="another", x="x", y="")
    panels[0, 1].text(0.5, 0.5, "small", fontsize=5)
    panels[0, 1].set_xticks([0, 0.02, 1], ["first tick", "second tick", "third"])
    assert set(faults(made)) == {
        "a legend covers data",
        "labels overlap",
        "two lines differ in colour only",
        "an axis has no name",
        "text is too small",
        "ticks overlap",
    }


def test_every_estimator_has_a_style_of_its_own() -> None:
    assert set(STYLE) == set(ESTIMATORS)
    styles = list(STYLE.values())
    assert len({style.marker for style in styles}) == len({style.label for style in styles}) == len(styles)
    assert len({str(style.dashes) for style in styles}) >= len(styles) - 1
    assert len({marker for _, _, marker in PLAIN}) == len({str(dashes) for _, dashes, _ in PLAIN}) == len(PLAIN)


def test_legends_list_each_label_once() -> None:
    made, panels = figure(1, 2)
    for panel in panels.flat:
        draw(panel, [0, 1], [0, 1], STYLE["brain"])
    assert [text.get_text() for text in legend_below(made, panels).get_texts()] == ["BRAIn"]
    assert [text.get_text() for text in legend_under(panels[0, 0]).get_texts()] == ["BRAIn"]


@pytest.fixture(scope="module")
def written(studies: dict[str, Study], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return {name: write(studies[name], tmp_path_factory.mktemp(name) / "new" / "folder") for name in MINE}


def test_a_study_has_the_same_bytes_every_time(written, tmp_path: Path) -> None:
    for path in write(gap.study(silent), tmp_path):
        assert path.read_bytes() == (written["gap"][0].parent / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", MINE)
def test_a_study_is_written_as_picture_table_and_summary(studies, written, name: str) -> None:
    paths = written[name]
    assert [path.name for path in paths] == [f"{name}.{kind}" for kind in ("png", "svg", "csv", "json")]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    assert paths[0].stat().st_size < 300_000
    assert paths[1].stat().st_size < 400_000
    table = list(csv.reader(io.StringIO(paths[2].read_text())))
    assert table[0] == list(studies[name].columns)
    assert table[1:] == [[str(value) for value in row] for row in studies[name].rows]
    summary = json.loads(paths[3].read_text())
    assert summary["caption"] == studies[name].caption
    assert len(summary["caption"]) > 200


def test_a_study_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    made, _ = figure()
    broken = Study("broken", made, ("a",), [(1,)], {"not a number": float("nan")}, "caption")
    with pytest.raises(ValueError):
        write(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []

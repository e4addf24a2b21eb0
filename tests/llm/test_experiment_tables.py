"""The pages of experiments, from rows made by hand: tables, matches, figures, and repeated cells."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cell_rows import ROW
from letter_world import letter_config
from llm.errors import UserError
from llm.experiments import head_to_head, pictures, repeat, tables
from llm.experiments.cells import Cell, CellStore, Row
from llm.experiments.results import Found, figures, paired
from llm.experiments.studies import Claim, Match, Study, arm

RATES = (1e-3, 3e-3, 1e-2)
STAMP = {"world": "world-mark", "settings": "settings-mark", "version": "1.2"}
BASE = letter_config(validation_count=7, seed=0)


def found(label: str = "brain", *, best: float = 3e-3, seeds: int = 2, **changes: object) -> Found:
    """An arm with a grid of three learning rates, of which `best` was chosen, and rows that differ by seed."""
    of_arm = arm("brain", label)
    grid = [
        (letter_config(learning_rate=rate), _row(f"{label}{rate}", 0, rate, kl_to_prior=rate * 1000)) for rate in RATES
    ]
    rows = [row for _, row in grid if row.learning_rate == best]
    rows += [_row(f"{label}-{seed}", seed, best, kl_to_prior=2.0 + seed) for seed in range(1, seeds)]
    return Found(of_arm, tuple(grid), tuple(dataclasses.replace(row, **changes) for row in rows))


def _row(cell: str, seed: int, rate: float, **changes: object) -> Row:
    return dataclasses.replace(ROW, cell=cell, seed=seed, learning_rate=rate, **changes)


def written(folder: Path, study: Study, results: Sequence[Found]) -> str:
    """The page of an experiment, with its other files beside it."""
    tables.write(folder, "name", study, results, BASE, STAMP, "python -m this")
    return (folder / "name.md").read_text()


def test_every_file_says_which_world_settings_and_version_it_is_of(tmp_path: Path) -> None:
    page = written(tmp_path, Study("Which?", (), picture="bars"), [found()])
    stored = (tmp_path / "name.csv").read_text(), (tmp_path / "name.json").read_text()
    picture = (tmp_path / "name.png").read_bytes().decode("latin-1")
    assert all(value in text for text in (page, *stored, picture) for value in STAMP.values())
    assert "`python -m this`" in page


def test_the_page_tells_how_rates_were_chosen_and_stars_those_at_an_end_of_the_grid(tmp_path: Path) -> None:
    page = written(tmp_path, Study("Which?", ()), [found("middle"), found("high", best=1e-2)])
    assert "Learning rates tried: 0.001, 0.003, 0.01;" in page
    assert "the reward model's win rate on 7 validation prompts, seed 0;" in page
    assert "| 0.003 |" in page
    assert "| 0.01* |" in page
    assert "* An end of the grid" in page
    assert "*" not in written(tmp_path, Study("Which?", ()), [found("middle")])
    alone = found()
    alone = dataclasses.replace(alone, grid=tuple(pair for pair in alone.grid if pair[1] == alone.rows[0]))
    assert not alone.is_at_edge


def test_all_that_was_tried_is_in_the_json_file(tmp_path: Path) -> None:
    written(tmp_path, Study("Which?", ()), [found("a"), found("b", best=1e-2)])
    grid = json.loads((tmp_path / "name.json").read_text())["grid"]
    assert [(one["arm"], one["learning_rate"]) for one in grid] == [(label, rate) for label in "ab" for rate in RATES]
    assert [one["chosen"] for one in grid] == [False, True, False, False, False, True]
    assert {one["validation_win_rate"] for one in grid} == {0.5}


def test_what_was_chosen_beside_the_rate_is_shown(tmp_path: Path) -> None:
    one = found()
    variants = tuple((("dpo_beta", beta),) for beta in (1.0, 0.1))
    grid = tuple((dataclasses.replace(config, dpo_beta=0.1), row) for config, row in one.grid)
    page = written(
        tmp_path,
        Study("Which?", ()),
        [dataclasses.replace(one, arm=dataclasses.replace(one.arm, variants=variants), grid=grid)],
    )
    assert "| 0.003, dpo_beta 0.1 |" in page
    assert json.loads((tmp_path / "name.json").read_text())["grid"][0]["dpo_beta"] == 0.1


def test_notes_of_arms_are_columns_and_missing_ones_are_dashes(tmp_path: Path) -> None:
    noted = dataclasses.replace(
        found("noted"),
        arm=dataclasses.replace(arm("brain", "noted"), notes=(("parameters", 147456), ("accuracy", 1 / 3))),
    )
    page = written(tmp_path, Study("Which?", ()), [found("plain"), noted])
    assert "| seconds | parameters | accuracy |" in page
    assert "| 147,456 | 0.3333 |" in page
    assert "| 2 | – | – |" in page
    rows = list(csv.DictReader((tmp_path / "name.csv").read_text().splitlines()))
    assert [row["parameters"] for row in rows] == ["", "147456"]


def test_a_claim_is_decided_over_the_seeds_that_both_arms_have() -> None:
    study = Study("?", (), (Claim("a wins", "–", "a", "b"), Claim("c wins", "–", "c", "b")))
    runs = {
        "a": [_row(str(s), s, 1e-3, reward_model="WW") for s in (0, 1)],
        "b": [_row("x", 1, 1e-3, reward_model="LL")],
    }
    (decision,) = tables.decided(study, runs, 1.0)
    assert (decision["estimate"], decision["verdict"]) == (1.0, "holds")
    assert [(one.seed, other.seed) for one, other in paired(runs["a"], runs["b"])] == [(1, 1)]


def test_wins_ties_and_losses_are_counted_by_grade_prompt_by_prompt_and_seed_by_seed() -> None:
    first = [_row("a", 0, 1e-3, grades="3 2 1 1"), _row("b", 1, 1e-3, grades="5 5 5 5")]
    other = [_row("c", 1, 1e-3, grades="5 5 5 5"), _row("d", 0, 1e-3, grades="1 2 3 0.5")]
    (match,) = head_to_head.results([Match("x", "y", "p")], {"x": first, "y": other})
    assert [match[name]["estimate"] for name in ("wins", "ties", "losses", "margin")] == [0.25, 0.625, 0.125, 0.125]
    assert match["wins"]["low"] <= 0.25 <= match["wins"]["high"]
    assert match["verdict"] == "undecided"


def test_brain_wins_more_often_where_nearly_all_prompts_say_so() -> None:
    better = [_row(str(s), s, 1e-3, grades=" ".join(["2"] * 38 + ["0"] * 2)) for s in range(3)]
    worse = [_row(str(s), s, 1e-3, grades=" ".join(["1"] * 40)) for s in range(3)]
    for first, second, verdict in (("x", "y", "holds"), ("y", "x", "does not hold")):
        (match,) = head_to_head.results([Match(first, second, "p")], {"x": better, "y": worse})
        assert match["verdict"] == verdict


def test_a_match_without_grades_or_without_an_arm_is_left_out_and_a_model_can_judge(tmp_path: Path) -> None:
    study = Study("Who?", (), matches=(Match("a", "b", "p"), Match("a", "gone", "p")), picture="matches")
    page = written(tmp_path, study, [found("a", grades="", judge=""), found("b", grades="", judge="")])
    assert "There are no grades: no --judge was given." in page
    runs = tmp_path / "runs"
    line = f"    python -m llm.judge {runs / 'a0.003'} --against {runs / 'b0.003'} --base-url URL --judge-model NAME"
    assert line in page.splitlines()
    assert "gone" not in page
    assert "| a | – |" in page


def test_matches_are_on_the_page_and_in_every_file(tmp_path: Path) -> None:
    study = Study("Who?", (), matches=(Match("a", "b", "44.0 / 31.6 / 21.4"),), picture="matches")
    page = written(tmp_path, study, [found("a"), found("b", grades="1 1 4 4")])
    assert "| a against b | 25.0 [" in page
    assert "| – |" in page
    assert "44.0 / 31.6 / 21.4" in page
    (row,) = csv.DictReader((tmp_path / "name.csv").read_text().splitlines())
    assert (row["first"], row["wins_estimate"], row["ties_estimate"], row["world"]) == (
        "a",
        "0.25",
        "0.5",
        "world-mark",
    )
    stored = json.loads((tmp_path / "name.json").read_text())["matches"]
    assert stored[0]["losses"]["estimate"] == 0.25


def test_curves_run_over_completions_tokens_backward_and_seconds() -> None:
    sizes = (2, 4, 8)
    results = []
    for n in sizes:
        one = found(f"brain, n = {n}", backward_completions=100 * n, completion_length=n + 1.0, seconds=10.0 * n)
        grid = tuple((dataclasses.replace(config, n=n), row) for config, row in one.grid)
        results.append(dataclasses.replace(one, grid=grid))
    figure = pictures._samples(results, [figures(each) for each in results])
    panels = figure.axes
    assert len(panels) == 6
    curves = [panel.containers[0][0].get_xdata().tolist() for panel in panels[:3]]
    assert curves == [[2, 4, 8], [100 * n * (n + 1) for n in sizes], [20, 40, 80]]
    assert panels[0].containers[0][0].get_ydata() == pytest.approx([50.0] * 3)
    assert panels[0].containers[0].has_yerr


def test_the_frontier_shows_all_that_was_tried_and_the_reach_of_the_chosen_seeds() -> None:
    figure = pictures._frontier([found(str(i), seeds=3) for i in range(9)])
    for panel, height in zip(figure.axes, (2.5, 50.0), strict=True):
        assert len(panel.containers) == 9
        tried = panel.collections[0].get_offsets()
        assert np.allclose(tried, [[1, height], [3, height], [10, height]])
        bar = panel.containers[0]
        assert (bar[0].get_xdata()[0], bar[0].get_ydata()[0]) == pytest.approx((10 / 3, height))
        assert bar[2][0].get_segments()[0][:, 0] == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize("has_judge", [True, False])
@pytest.mark.parametrize("picture", ["bars", "matches", "samples", "frontier"])
def test_every_kind_of_figure_is_drawn_with_and_without_a_judge(picture: str, has_judge: bool, tmp_path: Path) -> None:
    changes = {} if has_judge else {"judge": "", "grades": ""}
    study = Study("Which?", (), matches=(Match("a", "b", "p"),), picture=picture)  # type: ignore[arg-type]
    written(tmp_path, study, [found("a", **changes), found("b", **changes)])
    assert (tmp_path / "name.png").stat().st_size > 4000


def test_a_repeated_cell_is_compared_in_all_but_its_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cell, store = Cell(letter_config(), "w"), CellStore(tmp_path / "cells.csv")
    store.add(before := dataclasses.replace(ROW, cell=cell.key))
    for changes, expected in (
        ({"seconds": 9.0}, ("brain, seed 0: the same figures.", True)),
        ({"kl_to_prior": 0.1 + 1e-12, "judge": "LLLL"}, ("brain, seed 0: not the same in judge, kl_to_prior.", False)),
    ):
        monkeypatch.setattr(repeat, "rerun", lambda *_, changes=changes: dataclasses.replace(before, **changes))
        assert repeat.repeated(cell, found(), store, letter_config()) == expected


@pytest.mark.parametrize(("won", "place"), [(62, "inside"), (90, "outside")])
def test_another_seed_is_held_against_the_reach_of_the_seeds(
    won: int, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [_row(str(s), s, 1e-3, judge="W" * wins + "L" * (100 - wins)) for s, wins in enumerate((58, 60, 62))]
    again = dataclasses.replace(ROW, judge="W" * won + "L" * (100 - won), reward_model="")
    monkeypatch.setattr(repeat, "rerun", lambda *_: again)
    arm_found = dataclasses.replace(found(), rows=tuple(rows))
    text, is_well = repeat.repeated(
        Cell(letter_config(seed=5), "w"), arm_found, CellStore(tmp_path / "none.csv"), letter_config()
    )
    half = 4.303 * 2 * np.sqrt(4 / 3)
    assert f"judge {won}.0 %, {place} the {60 - half:.1f} to {60 + half:.1f} %" in text
    assert is_well


def test_a_claim_with_a_margin_allows_for_it() -> None:
    runs = {"a": [_row("a", 0, 1e-3, reward_model="WWLL")], "b": [_row("b", 0, 1e-3, reward_model="WWWL")]}
    claims = tuple(Claim("a is within", "–", "a", "b", margin=margin) for margin in (0.0, 0.2, 0.3))
    estimates = [each["estimate"] for each in tables.decided(Study("?", (), claims), runs, 1.0)]
    assert estimates == pytest.approx([-0.25, -0.05, 0.05])


def test_no_interval_goes_beyond_what_a_share_or_a_difference_of_shares_can_be() -> None:
    apart = {"judge": "WWWW", "grades": "9 9 9 9"}, {"judge": "LLLL", "grades": "0 0 0 0"}
    one = [_row(str(s), s, 1e-3, **apart[s]) for s in range(2)]
    other = [_row(str(s), s, 1e-3, **apart[1 - s]) for s in range(2)]
    row = figures(Found(arm("brain"), ((letter_config(), one[0]),), tuple(one)))
    assert (row["judge_low"], row["judge_high"]) == (0.0, 1.0)
    claim = Claim("one is hardly worse", "–", "x", "y", "judge", margin=0.5)
    (decision,) = tables.decided(Study("?", (), (claim,)), {"x": one, "y": other}, 1.0)
    (match,) = head_to_head.results([Match("x", "y", "p")], {"x": one, "y": other})
    assert (decision["low"], decision["high"]) == (-0.5, 1.5)
    assert (match["margin"]["low"], match["margin"]["high"], match["wins"]["low"]) == (-1.0, 1.0, 0.0)


def test_the_objective_is_the_reward_less_the_temperature_times_the_log_ratio_of_each_prompt() -> None:
    one = [_row("a", 0, 1e-3, rewards="1 2 3 4", log_ratios="0.5 0 0 1")]
    other = [_row("b", 0, 1e-3, rewards="1 1 1 1", log_ratios="0 0 0 0")]
    study = Study("?", (), (Claim("a is better", "–", "a", "b", "objective"),))
    (decision,) = tables.decided(study, {"a": one, "b": other}, 2.0)
    assert decision["estimate"] == pytest.approx(np.mean([0 - 1, 1, 2, 3 - 2]))
    assert decision["low"] < decision["estimate"] < decision["high"]


def test_runs_tested_on_different_prompts_are_not_compared() -> None:
    with pytest.raises(UserError, match="The runs a and b were tested on different prompts"):
        paired([_row("a", 0, 1e-3)], [_row("b", 0, 1e-3, prompts="others")])

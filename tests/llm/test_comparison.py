"""Several runs on one page: only what means the same in all of them stands side by side, and everything is text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finished_runs import (
    NASTY,
    STEP,
    VALIDATION,
    Page,
    add_alarm,
    add_evaluation,
    add_verdicts,
    events,
    make_run,
    normal,
    records,
)
from llm import comparison, report
from llm.console import entry_point
from llm.curves import PANELS, comparable_panels, overlay
from llm.errors import UserError
from llm.figures import head_to_head
from llm.finished_run import read_run
from llm.frontier import STYLES
from llm.pages import LABELS, interval
from llm.store import ShardFolder

TEXTS = ["one", "two", "three"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the picture out of tests that are about something else."""
    monkeypatch.setattr(comparison, "image", lambda figure, suffix: b"<svg></svg>")
    monkeypatch.setattr(comparison, "overlay", lambda runs, differing: None)


def runs(folder: Path, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[Path]:
    """Two runs, whose rewards rose by 1.5 and by 0.5."""
    made = [{"texts": TEXTS, "reward": 1.5, **(first or {})}, {"texts": TEXTS, "reward": 0.5, **(second or {})}]
    return [make_run(folder / name, **values) for name, values in zip(("first", "second"), made, strict=True)]


def shown(page: str) -> str:
    """A page's text, without its markup, on one line."""
    return " ".join(" ".join(Page(page).cells).split())


def test_runs_of_one_world_are_compared_in_all_figures_and_head_to_head(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    page = comparison.page(folders)
    assert "All of it: the runs share" in page
    assert "<svg" in page
    assert "Left out here" not in page
    rows = comparison.side_by_side([read_run(folder) for folder in folders], set())
    figures = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    cells = dict(rows)["mean reward"]
    rewards = [[one[when]["mean_reward"] for when in ("before", "after")] for one in figures]
    assert cells == [tuple(interval(value, "{:z.2f}") for value in pair) for pair in rewards]
    assert all(text in page for pair in cells for text in pair)
    expected = head_to_head(records(TEXTS, reward=1.5), records(TEXTS, reward=0.5))
    assert interval(expected["reward_model_win_rate"], "{:.1%}") == "100.0% [43.9%, 100.0%]"
    assert "wins, reward 100.0% [43.9%, 100.0%]" in shown(page)
    assert "mean reward, difference +1.00 [+1.00, +1.00]" in shown(page)


def test_every_two_runs_meet_head_to_head(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, TEXTS, reward=rise) for name, rise in (("x", 0.0), ("y", 1.0), ("z", 3.0))]
    pairs = comparison._pairs(dict(zip("ABC", map(read_run, folders), strict=True)))
    differences = {name: figures["mean_reward"]["estimate"] for name, figures in pairs.items()}
    assert differences == {"A against B": -1.0, "A against C": -3.0, "B against C": -2.0}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changes", "differing", "left"),
    [
        ({"model": "other"}, {"model"}, {"judge", "reward_model", "mean_reward", "ended"}),
        ({"prompts": "other"}, {"prompts"}, {"judge", "reward_model", "mean_reward", "ended", "kl", "completion"}),
        ({"reward_": "other"}, {"reward"}, {"judge", "ended", "kl", "completion"}),
        ({"config": "max_new_tokens: 7"}, {"sampling"}, {"judge", "reward_model", "mean_reward"}),
        ({"config": "n: 6"}, {"group"}, {"judge", "reward_model", "mean_reward", "ended", "kl", "completion"}),
        ({"texts": ["one", "two", "four"]}, {"held-out", "references"}, set()),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_does_not_mean_the_same_in_all_runs_is_left_out_and_named(
    changes: dict[str, Any], differing: set[str], left: set[str], tmp_path: Path
) -> None:
    plain = "method: brain\n"
    changes = {"config": plain, **changes}
    if "reward_" in changes:
        folders = runs(tmp_path, {"config": plain}, {"config": plain})
        identity = folders[1] / "identity.json"
        identity.write_text(identity.read_text().replace('"r"', '"other"'))
    else:
        folders = runs(tmp_path, {"config": plain}, changes)
    read = [read_run(folder) for folder in folders]
    assert comparison.differences(read) == differing
    kept = {label for label, _ in comparison.side_by_side(read, differing)}
    names = {name for name, (label, _) in LABELS.items() if label in kept}
    beginnings = ("judge", "reward_model", "mean_reward", "ended", "kl", "completion")
    assert {b for b in beginnings if any(name.startswith(b) for name in names)} == left
    page = comparison.page(folders)
    for part in differing:
        assert f"<li>{comparison.PARTS[part]}</li>" in page
    left_out = comparison._left_out(dict(zip("AB", read, strict=True)), differing)
    assert left_out
    assert not kept & set(left_out)
    assert "; ".join(left_out).replace("'", "&#39;") in page


@pytest.mark.usefixtures("undrawn")
def test_runs_with_other_held_out_prompts_show_no_samples_judges_or_duels(tmp_path: Path) -> None:
    folders = runs(tmp_path, second={"texts": ["one", "two", "four"]})
    add_verdicts(folders[0], "some-judge")
    page = comparison.page(folders)
    assert "No two of the runs have the same held-out prompts." in page
    assert "some-judge" not in page
    assert "<h2>Samples</h2>" not in page
    assert "<h2>Held-out prompts</h2>" not in page


def test_of_three_runs_those_with_the_same_prompts_still_meet_head_to_head(tmp_path: Path) -> None:
    folders = [*runs(tmp_path), make_run(tmp_path / "third", ["one", "two", "four"])]
    assert list(comparison._pairs(dict(zip("ABC", map(read_run, folders), strict=True)))) == ["A against B"]


def test_runs_with_other_references_still_meet_head_to_head_by_reward(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    rows = ShardFolder(folders[1] / "eval").read("after")
    ShardFolder(folders[1] / "eval").write("after", [row | {"reference": "another"} for row in rows])
    read = dict(zip("AB", map(read_run, folders), strict=True))
    assert comparison.differences(list(read.values())) == {"references"}
    assert "reward_model_win_rate" in comparison._pairs(read)["A against B"]
    assert not any("wins" in label for label, _ in comparison.side_by_side(list(read.values()), {"references"}))


@pytest.mark.usefixtures("undrawn")
def test_verdicts_against_references_that_differ_are_left_out_and_those_against_a_run_stay(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    add_verdicts(folders[0], "first-judge")
    add_verdicts(folders[1], "second-judge", "first")
    assert {"first-judge", "second-judge"} <= set(Page(comparison.page(folders)).cells)
    rows = ShardFolder(folders[1] / "eval").read("after")
    ShardFolder(folders[1] / "eval").write("after", [row | {"reference": "another"} for row in rows])
    page = comparison.page(folders)
    assert "first-judge" not in page
    assert "second-judge" in page
    assert "verdicts of language models" in page


def test_grades_of_different_judges_are_not_compared(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    for folder, name in zip(folders, ("judged-0", "judged-1"), strict=True):
        rows = ShardFolder(folder / "eval").read("before") + ShardFolder(folder / "eval").read("after")
        ShardFolder(folder / "eval").write(name, rows)
    read = dict(zip("AB", map(read_run, folders), strict=True))
    assert comparison.differences(list(read.values())) == {"judge"}
    assert not any(name.startswith("judge") for name in comparison._pairs(read)["A against B"])


@pytest.mark.usefixtures("undrawn")
def test_settings_that_differ_are_listed_and_others_are_not(tmp_path: Path) -> None:
    first = {"config": "n: 8\nout: x\nstop: [a]\nlearning_rate: 1e-3\n"}
    second = {"config": "n: 8\nout: y\nstop: [b]\nlearning_rate: 2e-3\n"}
    read = {name: read_run(folder) for name, folder in zip("AB", runs(tmp_path, first, second), strict=True)}
    assert comparison.differing_settings(read) == [
        ("stop", ["('a',)", "('b',)"]),
        ("learning_rate", ["0.001", "0.002"]),
    ]


@pytest.mark.usefixtures("undrawn")
def test_alarms_judges_and_samples_stand_under_their_runs_letter(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    add_alarm(folders[1], "gradients wander")
    add_verdicts(folders[1], "some-judge")
    page = comparison.page(folders)
    assert "B, step 5: gradients wander" in page
    assert "<th></th><th>B</th></tr>\n<tr><td>judge</td><td>some-judge</td>" in page
    assert page.count("reward 3.5</span>") == 1  # A's last completion
    assert page.count("reward 0.5</span>") == 1  # B's first
    assert "None was given." not in page


@pytest.mark.usefixtures("undrawn")
def test_evaluations_of_one_name_on_the_held_out_prompts_stand_side_by_side(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    for folder, texts in zip(folders, (["aa", "b"], ["cc", "d"]), strict=True):
        add_evaluation(folder, "best-x4", texts)
        add_evaluation(folder, "other", texts, prompts="other.jsonl")
        add_evaluation(folder, "sizes", [*texts, *texts][: 2 + len(folder.name) % 2])
    add_evaluation(folders[0], "alone", TEXTS)
    read = dict(zip("AB", map(read_run, folders), strict=True))
    assert list(comparison.further(read, set())) == ["best-x4"]
    assert dict(comparison.further(read, set())["best-x4"])["mean reward"] == ["0.50 [-5.85, 6.85]"] * 2
    kept = dict(comparison.further(read, {"reward"})["best-x4"])
    assert kept.keys() & {"mean reward", "ties, judge"} == {"ties, judge"}
    assert "mean reward 0.50 [-5.85, 6.85] 0.50 [-5.85, 6.85]" in shown(comparison.page(folders))


@pytest.mark.usefixtures("undrawn")
def test_rewards_of_different_kinds_do_not_stand_beside_each_other_in_samples(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    identity = folders[1] / "identity.json"
    identity.write_text(identity.read_text().replace('"r"', '"other"'))
    page = comparison.page(folders)
    assert "<h2>Samples</h2>" in page
    assert "reward 1.5</span>" not in page


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", NASTY)
def test_what_was_written_by_others_is_text_in_the_page(kind: str, tmp_path: Path) -> None:
    def page(name: str, text: str) -> Page:
        folders = runs(tmp_path / name, {"texts": [text, "b"]}, {"texts": [text, "b"], "config": "judge: '<b>|<i>'"})
        add_alarm(folders[0], text)
        add_verdicts(folders[0], text, text)
        return Page(comparison.page(folders))

    plain, nasty = page("plain", "harmless"), page("nasty", NASTY[kind])
    assert nasty.elements == plain.elements
    assert nasty.attributes == plain.attributes
    assert nasty.open == []
    assert [normal(cell) for cell in nasty.cells].count(normal(NASTY[kind])) >= 6
    assert "<b>|<i>" in nasty.cells


def test_curves_of_several_runs_differ_in_dashes_and_markers(tmp_path: Path) -> None:
    many = {name: events(60) for name in "ABCDEFGH"}
    figure = overlay(many, set())
    for axes, panel in zip(figure.axes, PANELS, strict=True):
        lines = axes.lines[:8]
        assert len({(str(line.get_linestyle()), line.get_marker()) for line in lines}) == 8 == len(STYLES)
        expected = (STEP | VALIDATION | {"distinct_completions": 0.9})[panel.keys[0]]
        assert all(set(line.get_ydata()) == {expected} for line in lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list("ABCDEFGH")


def test_panels_that_do_not_mean_the_same_are_not_drawn() -> None:
    drawn = [axes for axes in overlay({"A": events(), "B": events()}, {"prompts", "group"}).axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == [
        "gradient norm before clipping",
        "gradient signal (1: one direction)",
    ]
    assert len(comparable_panels({"reward"})) == len(PANELS) - 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["first", "first"], "a run is named twice"),
        (["first", "./first"], "a run is named twice"),
        (["first", "nowhere"], "nowhere: not the folder of a finished run"),
        ([f"run{i}" for i in range(9)], "9 runs: at most 8"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_and_nothing_is_written(
    names: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "first", TEXTS)
    assert entry_point(report.main, names) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_without_its_identity_is_refused(tmp_path: Path) -> None:
    folders = runs(tmp_path)
    (folders[1] / "identity.json").unlink()
    with pytest.raises(UserError, match=r"identity\.json: no such file"):
        comparison.page(folders)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("out", ["", "pages/both.html"])
def test_the_command_writes_one_page_and_nothing_else(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs(tmp_path)
    files = set(tmp_path.rglob("*"))
    assert entry_point(report.main, ["first", "second", *(["--out", out] if out else [])]) == 0
    page = tmp_path / (out or "first/comparison.html")
    assert capsys.readouterr().out == f"{page.relative_to(tmp_path)}\n"
    assert set(tmp_path.rglob("*")) - files - {tmp_path / "pages"} == {page}
    text = page.read_text(encoding="utf-8")
    assert text == comparison.page([Path("first"), Path("second")])

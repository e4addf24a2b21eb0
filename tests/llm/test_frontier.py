"""The frontier of reward against KL: every policy that runs know of, in a table, a file and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.colors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from letter_world import letter_config
from llm import frontier as command
from llm.config import dump_config
from llm.console import entry_point
from llm.errors import UserError
from llm.frontier import Point, as_csv, as_table, draw, frontier, gather
from llm.store import write_json, write_text

IDENTITY = {"model": "m", "prompts": "p", "reward": "r", "sampling": "s", "settings": "x", "code": "1"}
NASTY = "run $x^{$ \x1b[31m_&<b>"


def estimate(value: float, spread: float = 0.1) -> dict[str, float | int]:
    return {"estimate": value, "low": value - spread, "high": value + 2 * spread, "n": 100}


def measured(kl: float, reward: float, wins: float, *, judge: bool = False) -> dict[str, Any]:
    values = {"kl_to_prior": estimate(kl), "mean_reward": estimate(reward), "reward_model_win_rate": estimate(wins)}
    return values | {"judge_win_rate": estimate(wins) if judge else None}


def make_run(
    folder: Path,
    curve: Sequence[tuple[int, float, float, float]] = ((0, 0.0, 0.0, 0.1), (4, 1.0, 0.5, 0.3), (8, 2.0, 0.4, 0.2)),
    *,
    finished: bool = True,
    identity: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """A run's folder as far as the command reads it; the curve's points are (step, KL, reward, wins)."""
    write_text(folder / "config.yaml", dump_config(letter_config(folder, **settings)))
    write_json(folder / "identity.json", IDENTITY | (identity or {}))
    events: list[dict[str, Any]] = [{"event": "evaluation", "step": 0, "when": "before", "mean_reward": 9.0}]
    for step, kl, reward, wins in curve:
        figures = {"kl_to_prior": kl, "mean_reward": reward, "reward_model_win_rate": wins, "completion_length": 5.0}
        events.append({"event": "validation", "step": step, **figures})
        events.append({"event": "step", "step": step + 1, "snkl": 0.2})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    if finished:
        parts = {"before": measured(0.0, 0.1, 0.2, judge=True), "after": measured(1.1, 0.6, 0.35, judge=True)}
        write_json(folder / "summary.json", {**parts, "best": {"step": 4}})
    return folder


def evaluated(
    folder: Path, name: str, *, step: int | None = 8, prompts: str | None = None, judge: str | None = None
) -> None:
    figures = measured(2.1, 0.45, 0.25, judge=judge is not None)
    result = {"checkpoint": "step-8", "step": step, "prompts": prompts, "figures": figures, "judge": judge}
    write_json(folder / "eval" / f"{name}.json", result)


def test_every_validation_and_every_held_out_evaluation_is_a_point(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluated(run, "step-000008-x4")
    evaluated(run, "elsewhere", prompts="other.jsonl")
    write_json(run / "eval" / "manifest.json", {"before": "0" * 64, "checkpoint": "0" * 64})
    write_json(run / "eval" / "manifest-1.json", {"checkpoint": "0" * 64})
    write_json(run / "eval" / "best-x4-against-other.json", {"run": "a", "against": "b", "figures": {}})
    points = gather([str(run)])
    assert [(p.kind, p.name, p.step) for p in points] == [
        ("validation", "", 0),
        ("validation", "", 4),
        ("validation", "", 8),
        ("held-out", "before", 0),
        ("held-out", "after", 4),
        ("held-out", "step-000008-x4", 8),
    ]
    assert [p.value("kl_to_prior") for p in points] == [0.0, 1.0, 2.0, 0.0, 1.1, 2.1]
    assert math.isnan(points[0].value("judge_win_rate"))
    assert points[4].value("judge_win_rate") == 0.35


def test_a_run_that_is_not_finished_shows_its_validations(tmp_path: Path) -> None:
    points = gather([str(make_run(tmp_path / "run", finished=False))])
    assert {p.kind for p in points} == {"validation"}


def point(kl: float, reward: float, kind: str = "validation") -> Point:
    figures = {"kl_to_prior": estimate(kl), "mean_reward": estimate(reward)}
    return Point("run", kind, "", 0, figures | {"reward_model_win_rate": estimate(0.5), "judge_win_rate": None})


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_frontier_holds_the_points_that_nothing_beats_and_rises(pairs: list[tuple[int, int]]) -> None:
    points = [point(float(kl), float(reward)) for kl, reward in pairs]
    kept = {(p.value("kl_to_prior"), p.value("mean_reward")) for p in frontier(points)}
    best = {kl: max(r for k, r in pairs if k == kl) for kl, _ in pairs}
    rising = {(float(kl), float(r)) for kl, r in best.items() if all(r > best[other] for other in best if other < kl)}
    assert kept == rising
    assert [p.value("kl_to_prior") for p in frontier(points)] == sorted(
        p.value("kl_to_prior") for p in frontier(points)
    )


def test_validations_and_held_out_evaluations_have_each_their_own_frontier() -> None:
    points = [point(1.0, 1.0), point(0.5, 2.0, "held-out")]
    assert frontier(points) == [points[1], points[0]]


def test_the_csv_holds_every_number_and_can_be_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / 'a, "run"')
    rows = list(csv.DictReader(io.StringIO(as_csv(gather([str(run)])))))
    assert [row["run"] for row in rows] == [str(run)] * 5
    assert [row["on_frontier"] for row in rows] == ["1", "1", "0", "1", "1"]
    assert (rows[1]["step"], rows[1]["mean_reward"], rows[1]["mean_reward_low"]) == ("4", "0.5", "")
    after = rows[4]
    assert [float(after[f"mean_reward{end}"]) for end in ("", "_low", "_high")] == pytest.approx([0.6, 0.5, 0.8])
    assert after["judge_win_rate"] == "0.35"


def test_the_table_marks_the_frontier_and_shows_intervals(tmp_path: Path) -> None:
    lines = as_table(gather([str(make_run(tmp_path / "run"))])).splitlines()
    assert "validation step 4 *" in lines[2]
    assert "validation step 8  " in lines[3]
    assert "held-out after step 4 *" in lines[5]
    assert "0.600 [0.500, 0.800]" in lines[5]
    assert lines[2].split()[-1] == "–"


def test_wins_by_different_judges_do_not_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / name) for name in "abc"]
    for run, mark in zip(runs, ("1" * 16, "1" * 16, "2" * 16), strict=True):
        write_text(run / "eval" / f"judged-{mark}.parquet", "")
    evaluated(runs[1], "best-x4", judge="1" * 64)
    one, two = gather([str(run) for run in runs[:2]]), gather([str(run) for run in runs])
    assert "wins (judge)" in as_table(one)
    assert "35.0% [25.0%, 55.0%]" in as_table(one).splitlines()[5]
    assert "wins (judge)" not in as_table(two)
    rows = list(csv.DictReader(io.StringIO(as_csv(two))))
    marks = "".join(row["judge"][:1] or "-" for row in rows)
    assert marks == "---11" + "---111" + "---22"  # a validation has no grades
    monkeypatch.setattr(command, "_image", lambda figure, suffix: b"")
    for count in (2, 3):
        assert entry_point(command.main, [*map(str, runs[:count]), "--out", str(tmp_path / "out")]) == 0
        assert ("have different judges" in capsys.readouterr().out) == (count == 3)


def test_the_command_writes_a_csv_and_two_pictures_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", [(0, 0.0, 0.0, 0.1), (8, 0.5, 0.7, 0.6)])]
    assert entry_point(command.main, [*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files.keys() == {"frontier.csv", "frontier.svg", "frontier.png"}
    assert capsys.readouterr().out.startswith(as_table(gather([str(run) for run in runs])))
    assert files["frontier.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["frontier.svg"]
    monkeypatch.setattr(command, "_image", lambda figure, suffix: b"")
    assert entry_point(command.main, [*map(str, runs)]) == 0
    assert {path.name for path in (runs[0] / "figures").iterdir()} == files.keys()


def test_the_same_runs_give_the_same_picture(tmp_path: Path) -> None:
    points = gather([str(make_run(tmp_path / "run"))])
    assert command._image(draw(points), "svg") == command._image(draw(points), "svg")


def test_names_of_runs_are_text_in_the_picture_and_harmless_in_a_terminal(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name)) for name in (NASTY, "_hidden")]
    figure = draw(gather(runs))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0].endswith("run $x^{$ \\x1b[31m_&<b>")
    assert names[1].endswith("_hidden")
    assert command._image(figure, "png")
    assert "\x1b" not in as_table(gather(runs))


def test_the_picture_shows_each_run_in_its_own_dashes_and_marker_with_bars_where_there_are_intervals(
    tmp_path: Path,
) -> None:
    runs = [str(make_run(tmp_path / f"run-{i}")) for i in range(len(command.STYLES))]
    figure = draw(gather(runs))
    assert len({(str(dashes), marker) for _, dashes, marker in command.STYLES}) == len(command.STYLES)
    for axes, figure_name in zip(figure.axes, ("mean reward", "wins over the reference, reward"), strict=True):
        assert axes.get_ylabel() == figure_name
        assert len(axes.containers) == 2 * len(runs)  # an error bar for before and one for after
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
        assert len(lines) == len(runs)
        assert [tuple(line.get_xdata()) for line in lines] == [(0.0, 1.0, 2.0)] * len(runs)


def test_the_bars_are_the_intervals(tmp_path: Path) -> None:
    figure = draw(gather([str(make_run(tmp_path / "run"))]))
    _, after = figure.axes[0].containers
    across, up = (segments.get_segments()[0] for segments in after.lines[2])
    assert (across[:, 0].tolist(), up[:, 1].tolist()) == (pytest.approx([1.0, 1.3]), pytest.approx([0.5, 0.8]))


def test_no_colour_of_the_picture_vanishes_in_grey() -> None:
    for color, _, _ in command.STYLES:
        red, green, blue = matplotlib.colors.to_rgb(color)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75


@pytest.mark.parametrize(
    ("identity", "settings", "expected"),
    [
        ({"model": "another"}, {}, "differ in the model."),
        ({"prompts": "another"}, {}, "differ in the prompts or their split (--seed)."),
        ({"reward": "another"}, {}, "differ in the reward."),
        ({}, {"max_new_tokens": 7}, "differ in --max-new-tokens."),
        ({}, {"stop": ("e",)}, "differ in --stop."),
        ({"model": "another", "reward": "another"}, {}, "differ in the model, the reward."),
    ],
)
def test_runs_of_different_worlds_are_refused_in_one_picture(
    identity: dict[str, str], settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", identity=identity, **settings)]
    with pytest.raises(UserError) as error:
        gather([str(run) for run in runs])
    assert expected in str(error.value)


def test_runs_of_one_world_may_differ_in_how_they_were_trained(tmp_path: Path) -> None:
    other = {"settings": "another", "sampling": "another"}
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", identity=other, method="dpo-sft", temperature=0.5)]
    assert {p.run for p in gather([str(run) for run in runs])} == {str(run) for run in runs}


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    empty = make_run(tmp_path / "empty", [])
    damaged = make_run(tmp_path / "damaged")
    write_text(damaged / "metrics.jsonl", "{\n")
    cases = {
        "No run was given": [],
        "no run there": [str(run), str(tmp_path / "nothing")],
        "has no validation yet": [str(empty)],
        "metrics.jsonl: damaged": [str(damaged)],
        "9 runs: at most 8": [str(run)] * 9,
        "named twice": [str(run), str(run)],
    }
    for expected, arguments in cases.items():
        assert entry_point(command.main, [*arguments, "--out", str(tmp_path / "out")]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The experiments: each run once, tables with intervals, verdicts."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cell_rows import ROW
from letter_world import LETTERS, letter_config
from llm.config import AlignConfig, validate
from llm.errors import UserError
from llm.experiments import __main__ as command_module
from llm.experiments import cells as cells_module
from llm.experiments import repeat, verdicts
from llm.experiments.__main__ import _best, main, world_fingerprint
from llm.experiments.cells import Cell, CellStore
from llm.experiments.studies import STUDIES, Arm, study
from llm.experiments.verdicts import Interval, mean_interval, wins

ALIGN = ["--model", "model", "--prompts", "prompts.jsonl", "--reward", "letter_rewards:count_a", "--judge"]
ALIGN += ["letter_rewards:grade", "--max-new-tokens", "6", "--temperature", "0.2", "--learning-rate", "0.01"]


def experiment(*arguments: str) -> None:
    """Run the command in the world of letters, with `--quick`, one run at a time."""
    main([*arguments, "--quick", "--processes", "1", "--out", "found", *ALIGN])


@pytest.fixture
def own_letters(letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world of letters, whose files a test may change, as the current directory."""
    monkeypatch.syspath_prepend(letters)
    monkeypatch.chdir(shutil.copytree(letters, tmp_path / "letters"))
    return tmp_path / "letters"


def test_a_cell_is_named_by_its_settings_and_world_and_not_by_its_place() -> None:
    cell = Cell(letter_config("here"), "world")
    assert cell.key == Cell(letter_config("there", threads=2, model="copy/of/model"), "world").key
    others = [
        Cell(letter_config(seed=1), "world"),
        Cell(letter_config(), "other"),
        Cell(letter_config(), "world", cell),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 4


def test_rows_are_read_back_as_they_were_kept(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.csv")
    rows = [dataclasses.replace(ROW, cell=key, settings='{"n": 2, "a": "x,y"}', learning_rate=1 / 3) for key in "ba"]
    for row in rows:
        store.add(row)
    assert CellStore(tmp_path / "cells.csv").rows == {row.cell: row for row in rows}


@pytest.mark.parametrize("damage", ["nonsense\n1\n", "cell,world\nk,w\n"])
def test_a_damaged_file_of_cells_is_named(damage: str, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(damage)
    with pytest.raises(UserError, match=r"cells\.csv, row 1: is not a finished cell"):
        CellStore(tmp_path / "cells.csv")


def test_the_best_learning_rate_is_the_lowest_of_the_best_by_validation(tmp_path: Path) -> None:
    store, grid = CellStore(tmp_path / "cells.csv"), []
    for rate, won in ((3e-3, 0.8), (1e-3, 0.8), (3e-4, 0.7)):
        cell = Cell(letter_config(learning_rate=rate), "w")
        grid.append(cell)
        store.add(dataclasses.replace(ROW, cell=cell.key, learning_rate=rate, validation_win_rate=won))
    assert _best(grid, store, "validation_win_rate").config.learning_rate == 1e-3


def test_letters_are_counted_as_strict_wins() -> None:
    assert wins(["WLT", "TTW"]).tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.1, 0.02, 0.2), "holds"), ((-0.1, -0.2, -0.02), "does not hold"), ((0.1, -0.02, 0.2), "undecided")],
)
def test_a_verdict_is_the_sign_of_the_interval(interval: tuple[float, float, float], verdict: str) -> None:
    assert Interval(*interval).verdict() == verdict


def test_pairing_by_prompt_and_seed_narrows_a_difference() -> None:
    draws = np.random.default_rng(0)
    easy = draws.random((1, 600)) < draws.random(600)
    better = easy | (draws.random((1, 600)) < 0.1)
    paired = mean_interval(better.astype(float) - easy)
    shuffled = mean_interval(better.astype(float) - draws.permutation(easy.astype(float), axis=1))
    assert paired.low > 0
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.06])
def test_a_verdict_on_five_seeds_and_500_shared_prompts_is_wrong_at_most_one_time_in_twenty(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 % of 400 intervals hold the true difference, 0, but for three standard errors (3.3 points).

    Each prompt has a difficulty that both arms share, a liking for one of the arms, and draws of its own; the means of
    seeds differ by `spread` beside what prompts and draws do, of which 0.02 is about as much.
    """
    monkeypatch.setattr(verdicts, "REPEATS", 1000)
    draws, hits = np.random.default_rng(2), 0
    for _ in range(400):
        difficulty, liking = draws.uniform(0.2, 0.8, (1, 500)), draws.normal(0, 0.15, (1, 500))
        chances = [difficulty + side * liking + draws.normal(0, spread / 2**0.5, (5, 1)) for side in (0.5, -0.5)]
        one, other = (draws.random((5, 500)) < chance for chance in chances)
        found = mean_interval(one.astype(float) - other, same_prompts=True)
        hits += found.low <= 0 <= found.high
    assert hits / 400 >= 0.95 - 0.033


@pytest.mark.slow
def test_the_interval_covers_the_mean_over_prompts() -> None:
    """One seed, 200 prompts: 95 % of 400 intervals hold the mean, within four standard errors (4.4 points)."""
    draws, hits = np.random.default_rng(1), 0
    for _ in range(400):
        found = mean_interval((draws.random((1, 200)) < 0.3).astype(float))
        hits += found.low <= 0.3 <= found.high
    assert 0.906 <= hits / 400 <= 0.994


def test_every_study_has_arms_of_its_claims_and_settings_that_exist() -> None:
    base = letter_config(e=4, m=48, k=40, n=8, batch=8)
    for name in (name for name in STUDIES if not name.startswith("reward-")):  # which train models of their own
        asked = study(name, base, "pairs.jsonl")
        known = [arm.label for arm in asked.arms]
        assert len(set(known)) == len(known), name
        assert {label for claim in asked.claims for label in (claim.first, claim.second)} <= set(known), name
        for arm in asked.arms:
            assert isinstance(arm, Arm)
            validate(arm.config(dataclasses.replace(base, dpo_beta=0.3)))


def test_dpo_gets_pairs_of_its_own_and_as_many_completions_a_step(own_letters: Path) -> None:
    base = letter_config(e=4, m=48, k=40, n=8, batch=8)
    assert "dpo" not in [arm.label for arm in study("table1", base).arms]
    arm = next(arm for arm in study("table1", base, "pairs.jsonl").arms if arm.label == "dpo")
    config = arm.config(base)
    assert (config.n * config.batch, config.n * config.m) == (base.n * base.batch, base.n * base.m)


def test_a_cell_changes_with_the_functions_and_files_that_it_names(own_letters: Path) -> None:
    Path("my_methods.py").write_text("def half(g, config):\n    return 0 * g.reward\n")
    Path("groups.jsonl").write_text("{}\n")
    cells = [Cell(letter_config(method="my_methods:half"), "w"), Cell(letter_config(rollouts="groups.jsonl"), "w")]
    before = [cell.key for cell in cells]
    for file in ("my_methods.py", "groups.jsonl"):
        Path(file).write_text(Path(file).read_text() + "\n")
    assert all(cell.key != key for cell, key in zip(cells, before, strict=True))


def test_prompts_that_all_seeds_share_are_resampled_together() -> None:
    values = np.tile(np.random.default_rng(0).random(100) < 0.5, (3, 1)).astype(float)
    together, apart = mean_interval(values, same_prompts=True), mean_interval(values)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_seeds_that_differ_widen_an_interval_beyond_what_a_bootstrap_of_three_sees() -> None:
    values = np.repeat(np.array([[0.4], [0.5], [0.6]]), 1000, axis=1)
    found = mean_interval(values)
    half = 4.303 * 0.1 / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


def test_the_world_changes_with_the_files_in_it(own_letters: Path) -> None:
    config = letter_config(judge="letter_rewards:grade")
    before = world_fingerprint(config)
    assert before == world_fingerprint(dataclasses.replace(config, seed=3, out="x"))
    Path("a_log.txt").write_text("beside the world")
    assert before == world_fingerprint(config)
    with open("prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "one more"}) + "\n")
    assert world_fingerprint(config) != before


@pytest.mark.slow
def test_an_experiment_is_run_once_and_written_with_its_world_and_gives_the_same_figures_again(
    own_letters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(cells_module.__file__).parents[2]}:{own_letters}")
    with open("prompts.jsonl", "w") as file:
        file.writelines(json.dumps({"prompt": f"{a}{b}", "reference": "ab"}) + "\n" for a in LETTERS for b in "abcde")
    experiment("table3")
    rows = list(csv.DictReader(Path("found/cells.csv").read_text().splitlines()))
    assert sorted(row["method"] for row in rows) == ["brain", "dpo-sft", "dpo-sft-iw", "dpo-sft-iw-n"]
    assert all(re.fullmatch("[WTL]{32}", row["judge"]) for row in rows)
    page = Path("found/table3-quick.md").read_text()
    assert page.count("undecided") + page.count("holds") + page.count("does not hold") >= 6
    stamp = json.loads(Path("found/table3-quick.json").read_text())["stamp"]
    assert all(
        str(value) in Path(f"found/table3-quick.{kind}").read_text()
        for kind in ("md", "csv")
        for value in stamp.values()
    )
    assert Path("found/table3-quick.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="0"):
        experiment("table3", "--arms", "DPO-sft+IW", "--check", "0")
    assert capsys.readouterr().out == "table3: DPO-sft+IW, seed 0: the same figures.\n"
    monkeypatch.setattr(cells_module, "_finished", _must_not_run)
    experiment("table3")


def _must_not_run(*arguments: object, **options: object) -> None:
    raise AssertionError("a finished run was run again")


def test_an_unknown_experiment_or_row_is_refused(own_letters: Path) -> None:
    with pytest.raises(UserError, match=r"table9: no such experiment\. There are: table1"):
        experiment("table9")
    with pytest.raises(UserError, match="--arms nothing: no such row"):
        experiment("table3", "--arms", "nothing")


@pytest.fixture
def no_runs(own_letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells give rows made by hand instead of runs."""

    def give_rows(cells: Sequence[Cell], store: CellStore, runs: Path, base: AlignConfig, *, processes: int) -> None:
        for cell in cells:
            config = cell.config
            store.add(dataclasses.replace(ROW, cell=cell.key, seed=config.seed, learning_rate=config.learning_rate))

    monkeypatch.setattr(command_module, "run_cells", give_rows)
    monkeypatch.setattr(repeat, "run_cells", give_rows)


def full_experiment(*arguments: str) -> None:
    """Run the command in the world of letters as for a table."""
    sizes = ["--n", "4", "--m", "6", "--k", "4", "--e", "2", "--batch", "3", "--test-count", "10"]
    main([*arguments, "--out", "found", "--validation-count", "8", *sizes, *ALIGN])


def arms_of(name: str) -> list[str]:
    """The rows of a table that was written."""
    return [row["arm"] for row in json.loads(Path(f"found/{name}.json").read_text())["rows"]]


def test_some_rows_of_a_table_never_take_the_place_of_all(no_runs: None) -> None:
    full_experiment("table3", "--arms", "BRAIn")
    assert arms_of("table3") == ["BRAIn"]
    full_experiment("table3")
    assert arms_of("table3") == (everything := ["DPO-sft", "DPO-sft+IW", "DPO-sft+IW+n", "BRAIn"])
    full_experiment("table3", "--arms", "BRAIn")
    assert arms_of("table3") == everything


def test_a_quick_table_lies_beside_the_full_one(no_runs: None) -> None:
    full_experiment("table3", "--seeds", "2")
    before = Path("found/table3.json").read_bytes()
    experiment("table3")
    assert Path("found/table3.json").read_bytes() == before
    assert arms_of("table3-quick") == arms_of("table3")


def test_table_2_needs_no_runs_beside_those_of_table_1(no_runs: None) -> None:
    Path("preferences.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    full_experiment("table1", "--seeds", "2", "--arms", "brain", "dpo", "dpo-sft", "rso")
    before = Path("found/cells.csv").read_bytes()
    full_experiment("table2", "--seeds", "2")
    assert Path("found/cells.csv").read_bytes() == before
    assert arms_of("table2") == ["brain", "dpo", "dpo-sft", "rso"]
    matches = json.loads(Path("found/table2.json").read_text())["matches"]
    assert [match["second"] for match in matches] == ["dpo", "dpo-sft", "rso"]


def test_a_check_ends_with_status_1_where_a_figure_differs(no_runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--check: DPO-sft is not finished in found"):
        full_experiment("table3", "--check", "0")
    full_experiment("table3")
    with pytest.raises(SystemExit, match="0"):
        full_experiment("table3", "--check", "1")
    assert capsys.readouterr().out.endswith("table3: DPO-sft, seed 1: the same figures.\n")
    cells = Path("found/cells.csv")
    cells.write_text(cells.read_text().replace("0.1,5.0", "0.1,5.5"))
    with pytest.raises(SystemExit, match="1"):
        full_experiment("table3", "--check", "0")
    assert "DPO-sft, seed 0: not the same in completion_length." in capsys.readouterr().out


def test_a_run_killed_before_its_time_was_kept_is_ended_with_the_same_figures(own_letters: Path) -> None:
    sizes = {"e": 1, "m": 3, "k": 2, "validation_count": 3, "test_count": 4}
    base = letter_config(judge="letter_rewards:grade", **sizes)
    cell, runs = Cell(base, "w"), own_letters / "runs"
    runs.mkdir()
    before = cells_module._finished(cell, runs, base)
    (runs / cell.key / cells_module.PROCESSOR_TIME).unlink()
    after = cells_module._finished(cell, runs, base)
    assert dataclasses.replace(after, seconds=before.seconds) == before
    assert after.seconds > 0


@pytest.mark.parametrize("option", ["--seeds", "--processes"])
def test_no_seeds_or_no_processes_are_refused(option: str, own_letters: Path) -> None:
    with pytest.raises(UserError, match="must be 1 or more"):
        full_experiment("table3", option, "0")

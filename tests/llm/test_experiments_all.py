"""All experiments together: their worlds, their time, one process at a time, and going on after a SIGKILL."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from doc_tables import documented
from letter_world import LETTERS, letter_config
from llm.config import AlignConfig
from llm.errors import UserError
from llm.experiments import __main__ as command_module
from llm.experiments import worlds
from llm.experiments.__main__ import TASKS, Experiment, ExperimentsCommand, main
from llm.experiments.cells import Cell, CellStore, Row
from llm.experiments.studies import STUDIES, study
from llm.experiments.worlds import World
from llm.run_folder import lock_run
from llm.tiny import code
from llm.tiny.prepare import MINIATURE, WorldSettings

PLAIN = {field.name: {"str": "1 2 3 4", "int": 1, "float": 0.5}[str(field.type)] for field in dataclasses.fields(Row)}
ROW = Row(**(PLAIN | {"judge": "WLTW", "reward_model": "WWLL"}))
OWN = ["--model", "model", "--prompts", "prompts.jsonl", "--reward", "letter_rewards:count_a"]
OWN += ["--judge", "letter_rewards:grade", "--max-new-tokens", "6", "--temperature", "0.2", "--learning-rate", "0.01"]


@pytest.fixture
def own_letters(letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world of letters with more prompts, and preferences beside them, as the current directory."""
    monkeypatch.syspath_prepend(letters)
    monkeypatch.chdir(shutil.copytree(letters, tmp_path / "letters"))
    rows = [{"prompt": f"{a}{b}", "reference": "ab"} for a in LETTERS for b in "abcde"]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("preferences.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    return tmp_path / "letters"


@pytest.fixture
def made(own_letters: Path, monkeypatch: pytest.MonkeyPatch) -> list[WorldSettings]:
    """Small worlds are copies of the world of letters, each with prompts of its own; the settings asked for."""
    asked = []

    def prepare(settings: WorldSettings) -> dict[str, str]:
        asked.append(settings)
        folder = own_letters / settings.task
        if not folder.exists():
            folder.mkdir()
            shutil.copy("preferences.jsonl", folder)
            lines = Path("prompts.jsonl").read_text().splitlines(keepends=True)
            (folder / "prompts.jsonl").write_text("".join(lines[len(settings.task) :]))
        return {"model": "model", "prompts": str(folder / "prompts.jsonl"), "reward": "letter_rewards:count_a"}

    monkeypatch.setattr(worlds, "prepare", prepare)
    return asked


@pytest.fixture
def no_runs(own_letters: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells give rows made by hand instead of runs, and are listed."""
    ran = []

    def give_rows(cells: Sequence[Cell], store: CellStore, runs: Path, base: AlignConfig, *, processes: int) -> None:
        for cell in (cell for cell in cells if cell.key not in store.rows):
            ran.append(cell)
            config = cell.config
            changed = {"cell": cell.key, "world": cell.world, "seed": config.seed, "method": config.method}
            store.add(dataclasses.replace(ROW, **changed, learning_rate=config.learning_rate))

    monkeypatch.setattr(command_module, "run_cells", give_rows)
    return ran


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], False),
        (["table1", "--seeds", "2", "--test-count", "9", "--out", "model"], False),
        (["--model", "m"], True),
        (["--preset=stories"], True),
        (["--test-prompts", "t"], True),
        (["--test_prompts=t"], True),
        (["--pairs", "p"], True),
        (["--judge", "m:f"], True),
    ],
)
def test_a_world_is_the_users_own_if_any_part_of_it_is_named(options: list[str], expected: bool) -> None:
    assert worlds.is_own(options) is expected


def test_tasks_are_nine_experiments_each_in_its_own_world(
    made: list[WorldSettings], no_runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["tasks", "--quick", "--out", "found"])
    pages = {name: json.loads(Path(f"found/{name}-quick.json").read_text()) for name in TASKS}
    assert len(pages) == 9
    for task in ("dialogue", "translation", "code"):
        assert [row["arm"] for row in pages[f"{task}-table1"]["rows"]] == ["brain", "dpo", "dpo-sft", "rso"]
        assert len({pages[f"{task}-{name}"]["stamp"]["world"] for name in ("table1", "baseline", "proposal")}) == 1
        assert f"The world of {task}." in Path(f"found/{task}-table1-quick.md").read_text()
    assert len({page["stamp"]["world"] for page in pages.values()}) == 3
    judged = {(cell.config.judge, cell.world) for cell in no_runs}
    assert {judge for judge, _ in judged} == {f"llm.tiny.{task}:grade" for task in worlds.SMALL}
    assert len(judged) == 3
    assert {settings.task for settings in made} == {"summaries", *worlds.SMALL}
    assert all(dataclasses.asdict(settings).items() >= MINIATURE.items() for settings in made)


def test_one_of_the_tasks_makes_no_other_world(made: list[WorldSettings], no_runs: list[Cell]) -> None:
    main(["code-table1", "--quick", "--out", "found", "--arms", "brain"])
    assert [settings.task for settings in made] == ["summaries", "code"]
    assert [cell.config.method for cell in no_runs] == ["brain"]


@pytest.mark.parametrize("name", ["tasks", "code-baseline"])
def test_tasks_are_refused_in_another_world(name: str, own_letters: Path) -> None:
    with pytest.raises(UserError, match=f"{name}: brings a world of its own"):
        main([name, "--out", "found", *OWN])
    assert not Path("found").exists()


def test_every_experiment_is_in_the_document() -> None:
    names = {name.strip("`, …") for row in documented("experiments.md", "what is compared") for name in row[0].split()}
    assert names - {""} == {*STUDIES, "variance", "dialogue-table1", "code-proposal"}
    assert set(TASKS) >= {"dialogue-table1", "code-proposal"}


def asked_of(name: str, base: AlignConfig) -> list[Experiment]:
    """The experiments of a name in a world, without reward models."""
    command = ExperimentsCommand(name)
    names = command_module._names(command, is_own=True)
    return [
        *command_module._experiments(names, lambda _: World(base, ""), lambda *_: (base.reward, ()), command),
    ]


def test_all_leaves_out_what_another_world_does_not_allow_and_says_so(
    own_letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {each.name for each in asked_of("all", letter_config())}
    assert found == {name for name in STUDIES if not name.startswith("reward-")}
    said = capsys.readouterr().err
    assert "tasks is left out, for it brings worlds of its own." in said
    assert "reward-size is left out. --reward letter_rewards:count_a: is no folder" in said
    with pytest.raises(UserError, match=r"is no folder that python -m llm\.reward_model wrote"):
        asked_of("reward-size", letter_config())


def test_the_time_is_told_before_any_small_world_is_made(
    made: list[WorldSettings], no_runs: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(command_module, "say", said.append)
    real: Callable[..., World] = worlds.small_world

    def small_world(*arguments: Any, **options: Any) -> World:
        assert any("At most" in text for text in said)
        return real(*arguments, **options)

    monkeypatch.setattr(worlds, "small_world", small_world)
    main(["code-proposal", "--quick", "--out", "found"])
    assert said[0].startswith("Experiments: 1. At most ")


def test_the_time_is_reckoned_from_finished_runs_of_the_same_size(own_letters: Path) -> None:
    base, command = letter_config(), ExperimentsCommand("table3", out=".")
    planned = [Experiment("table3", base, study("table3", base))]

    def told() -> str:
        return command_module._estimate(planned, base, command, has_variance=False)

    unknown, store = told(), CellStore(Path("cells.csv"))
    size = base.e * base.k * base.batch * base.n
    store.add(dataclasses.replace(ROW, cell="other", backward_completions=size + 1, seconds=1e6))
    assert told() == unknown
    store.add(dataclasses.replace(ROW, cell="same", backward_completions=size, seconds=500.0))
    runs = 4 * 3 + 4 * 2  # three learning rates each, then two further seeds
    assert f"At most {runs} runs of about 500 s, 2 at a time: {runs * 500 / 2 / 60:.0f} minutes" in told()


def test_the_lock_is_taken_before_any_world_or_reward_model_is_made(
    own_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*arguments: object, **options: object) -> None:
        raise AssertionError("something was made before the lock was taken")

    monkeypatch.setattr(command_module, "study", too_early)
    monkeypatch.setattr(worlds, "held_out", too_early)
    Path("found").mkdir()
    with lock_run(Path("found")), pytest.raises(UserError, match="found: another process is working on this run"):
        main(["reward-size", "--out", "found", *OWN])


def test_contents_of_a_world_are_read_once_in_a_command(own_letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], worlds.files_fingerprint

    def counted(paths: Sequence[Path]) -> str:
        read.append(paths)
        return real(paths)

    monkeypatch.setattr(worlds, "files_fingerprint", counted)
    config = letter_config()
    worlds.forget()
    found = {worlds.known_fingerprint(dataclasses.replace(config, seed=seed)) for seed in range(3)}
    assert found == {worlds.world_fingerprint(config)}
    assert len(read) == 2  # once known, once anew
    with open("prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "z"}) + "\n")
    worlds.forget()
    assert worlds.known_fingerprint(config) not in found


def test_a_test_set_is_the_first_rows_and_no_training_prompt(own_letters: Path) -> None:
    found = worlds.held_out(letter_config(test_count=7), "", own_letters)
    rows = Path("prompts.jsonl").read_text().splitlines()
    assert Path(found.base.test_prompts).read_text().splitlines() == rows[:7]
    assert Path(found.base.prompts).read_text().splitlines() == rows[7:]
    groups = [json.loads(line) for line in Path(found.pairs).read_text().splitlines()]
    assert groups == [{"prompt": "a", "completions": ["b", "c"], "scores": [1.0, 0.0]}]


def started(folder: str, letters: Path) -> subprocess.Popen[bytes]:
    """An experiment in the world of letters in a process of its own."""
    paths = [str(Path(command_module.__file__).parents[2]), str(letters)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    arms = [f"{method}, n = {n}" for method in ("brain", "dpo-sft") for n in (2, 4)]
    arguments = ["samples", "--quick", "--arms", *arms, "--out", folder, *OWN]
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llm.experiments", *arguments], env=environment, stdout=log, stderr=log
        )


def cells(folder: str) -> dict[str, dict[str, str]]:
    """The finished cells without their time."""
    path = Path(folder, "cells.csv")
    rows = [*csv.DictReader(path.read_text().splitlines())] if path.exists() else []
    return {row["cell"]: {name: value for name, value in row.items() if name != "seconds"} for row in rows}


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still works; one that nobody has asked for its status does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.slow
def test_experiments_go_on_after_a_kill_without_repeating_finished_runs(own_letters: Path) -> None:
    first = started("found", own_letters)
    wait_until(lambda: len(cells("found")) >= 2 or first.poll() is not None, 300, "no run ended")
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert workers
    wait_until(lambda: not any(map(is_alive, workers)), 30, "a worker outlived its parent")
    before = cells("found")
    assert 2 <= len(before) < 6
    runs = {name: {path: path.read_bytes() for path in files_of(name)} for name in before}
    assert started("found", own_letters).wait() == 0
    for name, files in runs.items():
        assert {path: path.read_bytes() for path in files} == files, f"{name} was repeated"
    assert started("whole", own_letters).wait() == 0
    assert cells("found") == cells("whole")
    assert len(cells("whole")) == 6  # two of them give the others their completions
    pages = [Path(folder, "samples-quick.json").read_text() for folder in ("found", "whole")]
    rows = [[without_time(row) for row in json.loads(page)["rows"]] for page in pages]
    assert rows[0] == rows[1]


def files_of(cell: str) -> list[Path]:
    """What a run says of itself: its log, and its events with their times."""
    return [Path(f"found/runs/{cell}.log"), Path(f"found/runs/{cell}/metrics.jsonl")]


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table without what depends on the machine."""
    return {name: value for name, value in row.items() if name != "seconds"}


def test_each_seed_trains_on_its_own_part_of_given_completions(tmp_path: Path) -> None:
    groups = tmp_path / "pairs-0.jsonl"
    groups.write_text("".join(f"{row}\n" for row in range(10)))
    parts = [worlds.own_part(groups, 4 * seed).read_text().split() for seed in range(3)]
    assert [part[:4] for part in parts] == [list("0123"), list("4567"), list("8901")]
    assert all(sorted(part) == sorted(parts[0]) for part in parts)


def test_a_world_is_told_by_what_models_hold_and_judges_use(own_letters: Path) -> None:
    config = letter_config(judge="llm.tiny.code:grade")
    before = worlds.world_fingerprint(config)
    settings = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**settings, "transformers_version": "9"}))
    assert worlds.world_fingerprint(config) == before
    Path("model/config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.1}))
    assert worlds.world_fingerprint(config) != before
    names = {path.name for path in worlds._beside(code.grade)}
    assert "expressions.py" in names
    assert "code.py" not in names  # which is told by the function itself


def test_settings_chosen_by_the_objective_are_another_page(own_letters: Path) -> None:
    command = ExperimentsCommand("table3", by_objective=True, quick=True)
    (asked,) = command_module._experiments(
        ["table3"], lambda _: World(letter_config(), ""), lambda *_: ("", ()), command
    )
    assert asked.study.chosen_by == "validation_objective"
    assert command_module._file_name("table3", command) == "table3-by-objective-quick"
    assert command_module._file_name("table3", ExperimentsCommand("table3")) == "table3"

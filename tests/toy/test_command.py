"""`python -m toy`: what it writes, and how it says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from toy.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def command(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "toy", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_writes_its_four_files_and_names_them(tmp_path: Path) -> None:
    done = command("gap", "--out", str(tmp_path / "made" / "here"))
    assert done.returncode == 0, done.stderr
    names = [f"gap.{kind}" for kind in ("png", "svg", "csv", "json")]
    lines = done.stdout.splitlines()
    assert lines[:4] == [str(tmp_path / "made" / "here" / name) for name in names]
    assert lines[4].startswith("gap: ")
    assert lines[4].endswith(" s")
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == sorted(names)
    assert done.stderr == ""


def test_figures_go_to_a_folder_of_their_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr("toy.__main__._run", lambda name, folder: folders.append(folder))
    monkeypatch.chdir(tmp_path)
    assert main(["gap"]) == 0
    assert folders == [Path("figures")]
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_an_unknown_command_is_refused_with_the_list() -> None:
    done = command("varience")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(name in done.stderr for name in (*COMMANDS, "all", "varience"))


def test_no_command_is_refused() -> None:
    done = command()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_computed(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    done = command("scale", "--out", str(file / below))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --out {file / below}: cannot write there")
    assert len(done.stderr.splitlines()) == 1
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_of_the_folder_is_refused_rather_than_taken_for_this_one(tmp_path: Path, name: str) -> None:
    done = command("gap", "--out", name, folder=tmp_path)
    assert done.returncode == 2
    assert "argument --out: the name is empty" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_device_in_place_of_the_folder_is_called_what_it_is() -> None:
    done = command("gap", "--out", os.devnull)
    assert done.returncode == 2
    expected = f"error: --out {os.devnull}: cannot write there (it is not a folder); name a folder that can be written"
    assert done.stderr.splitlines() == [expected]


def test_a_problem_that_makes_no_sense_ends_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("toy.studies.gap.study", lambda progress: __import__("toy").estimator("nothing"))
    assert main(["gap", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: there is no estimator 'nothing'")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_with_status_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toy.studies.gap.study", interrupt)
    assert main(["gap", "--out", str(tmp_path)]) == 130


def test_help_tells_what_every_command_shows() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(f"{name:10} {text}" in done.stdout for name, text in COMMANDS.items())
    assert "figures" in done.stdout


def test_every_command_has_its_study() -> None:
    assert [name for name in COMMANDS if find_spec(f"toy.studies.{name}") is None] == []


def test_all_runs_every_study_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    monkeypatch.setattr("toy.__main__._run", lambda name, folder: run.append(name))
    assert main(["all", "--out", str(tmp_path)]) == 0
    assert run == list(COMMANDS)


def test_importing_toy_loads_no_plotting_library() -> None:
    code = "import sys, toy; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

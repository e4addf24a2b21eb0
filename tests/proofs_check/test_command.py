"""`python -m proofs_check` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from proofs_check import __main__ as command
from proofs_check.claims import Claim, require
from proofs_check.registry import claims

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, "-m", "proofs_check", *options]
    return subprocess.run(done, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_claim_is_run_and_written_as_json(tmp_path: Path) -> None:
    done = run("--only", "eq-12", "--only", "eq-1", "--json", str(tmp_path / "verdicts.json"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 claims: 2 hold, 0 fail, 0 notes" in done.stdout
    records = json.loads((tmp_path / "verdicts.json").read_text())
    assert [(record["id"], record["verdict"]) for record in records] == [("eq-1", "holds"), ("eq-12", "holds")]
    assert records[1]["mutants"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("eq-1", {"eq-1"}),
        ("T4", {f"T4{letter}" for letter in "abcdefghi"}),
        ("T4c", {"T4c"}),
        ("T1", {"T1", "T1a"}),
        ("thm-4.3", {"thm-4.3", "thm-4.3-reals"}),
        ("eq-4[01]", {"eq-40", "eq-41"}),
    ],
)
def test_an_id_names_a_claim_and_its_parts(pattern: str, expected: set[str]) -> None:
    assert {claim.id for claim in command.selected(claims(), [pattern])} == expected


def test_the_list_names_every_claim_and_runs_none() -> None:
    done = run("--list")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[0] == "eq-1"
    assert {"thm-4.2", "alg-17", "T4c", "err-13", "bridge-brain"} <= set(names)
    assert "seconds" not in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "eq-99"], "--only eq-99: no claim has that id; did you mean eq-9"),
        (["--only", "lemma"], "--only lemma: no claim has that id"),
        (["--jobs", "0", "--only", "eq-1"], "--jobs is 0; it must be at least 1"),
        (["--only", "eq-1", "--json", "missing/folder/x.json"], "missing/folder"),
        (["--mutate", "--only", "eq-1"], "--only chooses claims"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_status_2(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def is_two(value: object) -> None:
    require(value == 2, f"{value} is not 2")


def test_a_failing_claim_is_shown_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Claim("eq-1", "one is two", "s", "m", "c", is_two, 1, {"three": 3})
    monkeypatch.setattr(command, "claims", lambda: [broken])
    assert command.main(["--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert "FAILS" in shown
    assert "1 is not 2" in shown
    assert "0 hold, 1 fail" in shown

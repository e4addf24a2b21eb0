"""How every command line ends: one clear paragraph and a status, never a traceback for what a user can mend."""

from __future__ import annotations

import errno
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llm.console import entry_point, memory_errors, printable, say
from llm.errors import UserError

ROOT = Path(__file__).parents[2]


def ending(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status and what standard error says of a command that ends in an error."""

    def main(arguments: Sequence[str]) -> None:
        if error is not None:
            raise error

    status = entry_point(main, [])
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return status, said.err


def test_a_command_that_works_says_nothing_and_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None, capsys) == (0, "")


def test_what_a_user_can_mend_is_one_paragraph_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(UserError("--n 1: use 2."), capsys) == (2, "error: --n 1: use 2.\n")


def test_an_interruption_ends_with_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = ending(KeyboardInterrupt(), capsys)
    assert status == 130
    assert "--resume" in said


def test_a_command_tells_its_own_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    for error, status in ((KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "full", "/file"), 2)):

        def main(arguments: Sequence[str], error: BaseException = error) -> None:
            raise error

        assert entry_point(main, [], go_on="The same command goes on.") == status
        said = capsys.readouterr().err
        assert "The same command goes on." in said
        assert "--resume" not in said


def test_a_full_disk_ends_with_status_2_and_the_files_name(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = ending(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"), capsys)
    assert status == 2
    assert said.startswith("error: the disk is full (/full/file).")
    assert ending(OSError(errno.ENOSPC, "No space left on device"), capsys)[0] == 2


def test_memory_that_runs_out_ends_with_status_2_and_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = ending(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0 has"), capsys)
    assert status == 2
    assert said.startswith(
        "error: Out of memory while loading, sampling or scoring "
        "(CUDA out of memory. Tried to allocate 2.5 GiB). Lower --sample-rows"
    )
    assert "(MemoryError). Lower" in ending(MemoryError(), capsys)[1]


def test_memory_that_really_runs_out_is_told_with_what_was_done() -> None:
    with (
        pytest.raises(
            UserError, match=r"^Out of memory while working \(.* 1152921504606846976 bytes.*\)\. Use less\.$"
        ),
        memory_errors("working", "Use less."),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_memory_that_is_told_of_once_is_not_told_of_again(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: Sequence[str]) -> None:
        with memory_errors("training", "Lower --train-rows 8."):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert entry_point(main, []) == 2
    assert (
        capsys.readouterr().err == "error: Out of memory while training (CUDA out of memory). Lower --train-rows 8.\n"
    )


@pytest.mark.parametrize("error", [RuntimeError("a shape"), UserError("ours"), KeyError()])
def test_other_errors_pass_a_watch_on_memory_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_errors("working", "Use less."):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "i/o"), ValueError("ours"), AssertionError()])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception) -> None:
    def main(arguments: Sequence[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        entry_point(main, [])


def test_the_command_gets_the_arguments_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Sequence[str]] = []
    monkeypatch.setattr(sys, "argv", ["program", "a", "b"])
    assert entry_point(given.append) == 0
    assert entry_point(given.append, []) == 0
    assert given == [["a", "b"], []]


def test_an_end_that_a_library_asks_for_is_kept() -> None:
    def main(arguments: Sequence[str]) -> None:
        raise SystemExit(2)

    with pytest.raises(SystemExit) as caught:
        entry_point(main, [])
    assert caught.value.code == 2


def test_what_is_said_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_text_that_the_terminal_cannot_show_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with io.TextIOWrapper(buffer, encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert entry_point(lambda arguments: print("naïve 😀"), []) == 0
        narrow.flush()
        assert buffer.getvalue() == b"na\\xefve \\U0001f600\n"
        monkeypatch.undo()


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\x00b") == "a\\x1b[31mred\\x07\\r\\x00b"
    assert printable("naïve 😀\n\tx \ud83d") == "naïve 😀\n\tx \\ud83d"


@pytest.mark.parametrize("module", ["llm.align", "llm.report", "llm.sample"])
def test_every_command_shows_its_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(module).main(["--help"])
    assert caught.value.code == 0
    assert f"python -m {module}" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["llm.report", "llm.sample"])
def test_a_folder_that_is_no_run_is_refused(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry_point(importlib.import_module(module).main, [str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: ")


def test_a_real_process_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm.report", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""

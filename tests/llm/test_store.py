"""Files appear whole or not at all; what is damaged is told, never used."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import UserError
from llm.store import MetricsLog, ShardFolder, read_events, read_json, write_json, write_text, write_whole

ROWS = [{"prompt_id": "a", "token_ids": [1, 2], "reward": 0.1, "grade": None, "text": "naïve 😀"}]
NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(*_: Any, **__: Any) -> None:
    raise NO_ROOM


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITERS: dict[str, Callable[[Path], None]] = {
    "write_whole": lambda folder: write_whole(folder / "file", b"new"),
    "write_text": lambda folder: write_text(folder / "file", "new"),
    "write_json": lambda folder: write_json(folder / "file", {"new": 1}),
    "a new shard": lambda folder: ShardFolder(folder / "shards").write("second", ROWS),
    "a shard again": lambda folder: ShardFolder(folder / "shards").write("first", ROWS * 2),
}


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "builtins.open", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_fails_leaves_everything_as_it_was(
    writer: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "file", "old")
    ShardFolder(tmp_path / "shards").write("first", ROWS)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(call, failing)
        with pytest.raises(UserError, match=r"could not be written \(No space left on device\)") as caught:
            WRITERS[writer](tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert files(tmp_path) == before
    assert ShardFolder(tmp_path / "shards").read("first") == ROWS


def test_a_shard_whose_manifest_cannot_be_written_counts_as_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.replace, []

    def full_at_second(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise NO_ROOM
        original(*arguments)

    shards = ShardFolder(tmp_path / "shards")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full_at_second)
        with pytest.raises(UserError, match=r"manifest\.json"):
            shards.write("first", ROWS)
    again = ShardFolder(tmp_path / "shards")
    assert "first" not in again
    assert again.once("first", lambda: ROWS * 2) == ROWS * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            with open("/dev/full", "wb", buffering=0) as device:
                return device.write(content)

    monkeypatch.setattr("llm.store.open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(UserError, match="file: could not be written"):
        write_text(tmp_path / "file", "new")
    assert files(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("content", [b"", b"x" * 10_000_000])
def test_a_write_makes_its_folder_and_leaves_no_other_file(content: bytes, tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", content)
    assert files(tmp_path) == {"a/b/file": content}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "taken" / "file", "x")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / ("n" * 300) / "file", "x")


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    code = (
        "import os, pathlib, llm.store as s\n"
        "s.os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
        f"s.write_text(pathlib.Path({str(tmp_path / 'file')!r}), 'new')\n"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == -9
    assert (tmp_path / "file").read_text() == "old"
    write_text(tmp_path / "file", "newer")
    assert files(tmp_path) == {"file": b"newer"}


def test_json_is_read_back_and_is_readable(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "naïve 😀"], "b": {"c": True}}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    assert "naïve 😀" in (tmp_path / "file").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_hold_are_refused_before_anything_is_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"x": value})
    with closing(MetricsLog(tmp_path / "log")) as log, pytest.raises(ValueError, match="JSON"):
        log.write({"x": value})
    assert files(tmp_path) == {"log": b""}


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "a\ud83db")
    assert (tmp_path / "file").read_bytes() == b"a\\ud83db"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_json_file_is_told_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"file: damaged"):
        read_json(tmp_path / "file")


def test_a_missing_json_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file: no such file"):
        read_json(tmp_path / "file")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False)
VALUES = st.tuples(TEXT, st.lists(st.integers(0, 2**31), min_size=1), FLOATS, st.none() | FLOATS)


@settings(max_examples=15)
@given(values=st.lists(VALUES))
def test_a_shard_is_read_back_bit_for_bit(values: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [dict(zip(("prompt_id", "token_ids", "reward", "grade"), row, strict=True)) for row in values]
    folder = tmp_path_factory.mktemp("shards")
    ShardFolder(folder).write("name", rows)
    assert repr(ShardFolder(folder).read("name")) == repr(rows)


def test_the_manifest_holds_the_sha256_of_every_shard(tmp_path: Path) -> None:
    shards = ShardFolder(tmp_path)
    shards.write("a", ROWS)
    shards.write("b", ROWS * 2)
    sums = subprocess.run(["sha256sum", "a.parquet", "b.parquet"], cwd=tmp_path, capture_output=True, text=True)
    expected = {line.split()[1].removesuffix(".parquet"): line.split()[0] for line in sums.stdout.splitlines()}
    assert json.loads((tmp_path / "manifest.json").read_text()) == expected
    assert len(expected) == 2


def test_rows_are_made_once(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        assert ShardFolder(tmp_path).once("a", lambda: made.append(1) or ROWS) == ROWS
    assert made == [1]


def test_a_file_that_the_manifest_does_not_list_counts_as_not_written(tmp_path: Path) -> None:
    ShardFolder(tmp_path).write("a", ROWS)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    shards = ShardFolder(tmp_path)
    assert "a" in shards
    assert "b" not in shards
    with pytest.raises(UserError, match=r"b\.parquet: not written yet"):
        shards.read("b")
    assert shards.once("b", lambda: ROWS * 3) == ROWS * 3


def test_a_single_changed_byte_of_a_shard_is_told_by_name(tmp_path: Path) -> None:
    ShardFolder(tmp_path).write("a", ROWS)
    path = tmp_path / "a.parquet"
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"a\.parquet: damaged"):
            ShardFolder(tmp_path).read("a")
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"a\.parquet: damaged"):
        ShardFolder(tmp_path).once("a", lambda: ROWS)


def test_a_missing_shard_is_told_and_never_made_again(tmp_path: Path) -> None:
    ShardFolder(tmp_path).write("a", ROWS)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a\.parquet: missing"):
        ShardFolder(tmp_path).once("a", lambda: ROWS)


@pytest.mark.parametrize("content", ["", "[]", '"a"', "{"])
def test_a_damaged_manifest_is_told_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        ShardFolder(tmp_path)


def logged(path: Path, *events: dict[str, Any]) -> MetricsLog:
    log = MetricsLog(path)
    for event in events:
        log.write(event)
    return log


def test_events_are_read_back_in_order_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logged(path, {"step": 1}, {"text": "a\u2028b\n"}).close()
    logged(path, {"step": 3}).close()
    assert read_events(path) == [{"step": 1}, {"text": "a\u2028b\n"}, {"step": 3}]


def test_cutting_drops_exactly_what_came_after_the_size(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = logged(path, {"step": 1})
    size = log.size
    assert size == path.stat().st_size
    log.write({"step": 2})
    log.cut(size)
    log.write({"step": 22})
    log.flush_to_disk()
    log.close()
    assert read_events(path) == [{"step": 1}, {"step": 22}]


def test_a_log_shorter_than_its_checkpoint_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = logged(path, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl: shorter"):
        log.cut(log.size + 1)
    log.close()
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_an_event_that_does_not_fit_on_the_disk_leaves_no_part_of_its_line(tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys\n"
        "from llm.errors import UserError\n"
        "from llm.store import MetricsLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "log.write({'step': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (log.size + 5, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    log.write({'step': 2, 'text': 'x' * 100})\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "log.write({'step': 3})\n"
        "log.close()\n"
    )
    path = tmp_path / "metrics.jsonl"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True)
    assert f"{path}: could not be written" in done.stdout, done.stderr
    assert read_events(path) == [{"step": 1}, {"step": 3}]


def test_a_log_in_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: could not be written"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl")


@pytest.mark.parametrize("content", [b'{"step": 1}\n{"st', b"\xff\n"])
def test_a_damaged_log_is_told_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        read_events(tmp_path / "metrics.jsonl")

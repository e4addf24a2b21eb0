"""Files that appear whole or not at all, and folders of checksummed Parquet shards."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llm import processes
from llm.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk and rename it into place.

    Args:
        path: The file; its folder is made.
        content: Its bytes.

    Raises:
        UserError: The disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; half a surrogate pair, which UTF-8 cannot hold, as its escape."""
    write_whole(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    with damage_errors(path):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a clear error that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}). Make room or choose another place; "
            "what was written before is intact, and a run goes on from there with --resume."
        ) from error


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turn a missing, unreadable or damaged file of a run into a clear error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the folder is not a run's, or incomplete. Check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged or not readable ({error}). Restore it from a copy, or start a new run."
        ) from error


class ShardFolder:
    """A folder of Parquet shards; a shard counts as written once a manifest has its checksum.

    Each of several processes writes a manifest of its own, so that none waits for another; all are read.

    Args:
        folder: The folder; made on the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checksums: dict[str, str] = {}
        for manifest in sorted(folder.glob("manifest*.json")):
            self._checksums |= _manifest(manifest)

    def __contains__(self, name: str) -> bool:
        """Whether a shard was written."""
        return name in self._checksums

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as one shard; an older one of that name is replaced.

        Args:
            name: The shard, without the file's ending.
            rows: Its rows, all with the same keys.

        Raises:
            UserError: The disk is full or the folder cannot be written.
        """
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
        write_whole(self.folder / f"{name}.parquet", content)
        self._checksums[name] = hashlib.sha256(content).hexdigest()
        write_json(self.folder / _manifest_name(), self._checksums)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a shard.

        Raises:
            UserError: The shard is missing or its bytes are not those that were written.
        """
        path = self.folder / f"{name}.parquet"
        if name not in self:
            raise UserError(f"{path}: not written yet; the run did not come that far. Go on with it by --resume.")
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self._checksums.get(name):
            raise UserError(
                f"{path}: {'damaged: its checksum differs from the manifest' if content else 'missing'}. "
                "Restore it from a copy, or start a new run with another --out."
            )
        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()

    def checksum(self, name: str) -> str:
        """Return the sha256 of a shard that was written."""
        return self._checksums[name]

    def once(self, name: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return a shard's rows, making and writing them first where they do not exist.

        Args:
            name: The shard.
            make: Called without arguments for the rows, at most once.
        """
        if name not in self:
            self.write(name, make())
        return self.read(name)

    def once_together(self, name: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Do the same in all processes at once: each of them makes the rows, the first one writes and reads them.

        Args:
            name: The shard.
            make: Returns the same rows in every process.
        """
        rows = make() if processes.from_first(lambda: name not in self) else []
        return processes.from_first(lambda: self.once(name, lambda: rows))


def rollout_shards(run: Path, phase: int) -> ShardFolder:
    """Return where a run keeps the completions of a phase."""
    return ShardFolder(run / "rollouts" / f"phase-{phase:04d}")


def score_shards(run: Path, fingerprint: str, phase: int) -> ShardFolder:
    """Return where a run keeps the log-probs and rewards of a phase.

    Args:
        run: The run folder.
        fingerprint: Of everything that gives them their meaning.
        phase: 0 to e−1.
    """
    return ShardFolder(run / "scores" / fingerprint[:16] / f"phase-{phase:04d}")


class MetricsLog:
    """`metrics.jsonl`: one event a line.

    Args:
        path: The file; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def cut(self, size: int) -> None:
        """Drop what a killed run wrote after its last checkpoint.

        Args:
            size: Bytes to keep.

        Raises:
            UserError: The file is shorter than that.
        """
        if self.size < size:
            raise UserError(f"{self._path}: shorter than the last checkpoint says. Restore it from a copy.")
        with disk_errors(self._path):
            self._file.truncate(size)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, event: dict[str, Any]) -> None:
        """Append one event: its whole line, or on a full disk nothing of it.

        Raises:
            UserError: The line could not be written.
        """
        line, start = (json.dumps(event, allow_nan=False) + "\n").encode(), self.size
        with disk_errors(self._path):
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(start)
                raise

    def flush_to_disk(self) -> None:
        """Make sure that everything written survives a power cut."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a `metrics.jsonl`.

    Raises:
        UserError: The file is missing or damaged.
    """
    with damage_errors(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _manifest_name() -> str:
    """The manifest that this process writes."""
    return "manifest.json" if processes.is_first() else f"manifest-{processes.rank()}.json"


def _manifest(path: Path) -> dict[str, str]:
    """Read the checksums of one manifest."""
    checksums = read_json(path)
    if not isinstance(checksums, dict):
        raise UserError(f"{path}: damaged, not a JSON object. Restore it from a copy, or start a new run.")
    return checksums


def _flush_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

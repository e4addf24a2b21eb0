"""Rows of a table, from a file or from a data set of the hub, each with its number."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm.errors import UserError

Row = dict[str, Any]
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_rows(source: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table in order, numbered from 1.

    Args:
        source: A `.jsonl`, `.jsonl.gz`, `.parquet` or `.csv` file, or `NAME[:SPLIT]` of a data set that the
            `datasets` library knows (split `train` unless named).

    Yields:
        The row's number (in a JSONL or CSV file: its line) and its columns.

    Raises:
        UserError: The file is missing, empty or of another kind, or a row is malformed (the message has its number).
    """
    path = Path(source)
    reader = _reader(path.name)
    if reader is None and path.is_file():
        raise UserError(f"{path}: not a .jsonl, .jsonl.gz, .parquet or .csv file. Convert it to one of these.")
    if reader is not None and not path.is_file():
        raise UserError(f"{path}: no such file. Check the path.")
    count = 0
    for number, row in _hub_rows(str(source)) if reader is None else _file_rows(path, reader):
        count += 1
        yield number, row
    if count == 0:
        raise UserError(f"{source}: holds no rows. Give a file with at least one row.")


def require_split(source: str) -> None:
    """Refuse held-out prompts of a data set whose split is not named: they would be the training split's.

    Args:
        source: As for `read_rows`.

    Raises:
        UserError: It is no file, and names no split.
    """
    if _reader(Path(source).name) is None and not Path(source).is_file() and not source.partition(":")[2]:
        raise UserError(
            f"--test-prompts {source}: names a data set and no split of it, and the rows of its train split are not "
            f"held out. Name the split, such as {source}:test."
        )


def column(row: Row, name: str, *, source: str | Path, number: int) -> Any:
    """Return one column of a row.

    Args:
        row: The row.
        name: The column.
        source: Where the row is from, for the message.
        number: The row's number, for the message.

    Raises:
        UserError: The row has no such column; the message lists those that it has.
    """
    if row.get(name) is None:
        raise UserError(
            f"{source}, row {number}: column {name!r} is missing or empty; "
            f"the row has {', '.join(sorted(map(str, row))) or 'no columns'}. Name the right column or mend the row."
        )
    return row[name]


def _reader(name: str) -> Callable[[Path], Iterator[tuple[int, Row]]] | None:
    """Return the reader for a file name, or None where the name is no table's."""
    readers = {".jsonl": _jsonl_rows, ".jsonl.gz": _jsonl_rows, ".parquet": _parquet_rows, ".csv": _csv_rows}
    for suffix, reader in readers.items():
        if name.endswith(suffix):
            return reader
    return None


def _file_rows(path: Path, reader: Callable[[Path], Iterator[tuple[int, Row]]]) -> Iterator[tuple[int, Row]]:
    """Rows of a file, with what makes it unreadable told in one paragraph."""
    number = 0
    try:
        for number, row in reader(path):
            yield number, row
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        kind = {".parquet": "Parquet", ".gz": "gzip"}.get(path.suffix, "text")
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}{f', after row {number}' if number else ''}: not readable as {kind} ({reason}). "
            "Restore or mend the file."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, with or without a byte-order mark, through gzip where its name says so."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, row {number}: not UTF-8 ({error}). Save the file as UTF-8.") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON-lines file; blank lines are passed over."""
    for number, line in _lines(path):
        if line.strip():
            yield number, _json_row(path, number, line)


def _json_row(path: Path, number: int, line: str) -> Row:
    """Parse one line as a JSON object."""
    try:
        row = json.loads(line)
        if SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except (json.JSONDecodeError, RecursionError, UnicodeEncodeError) as error:
        raise UserError(f"{path}, row {number}: not valid JSON ({error}). Mend or remove this row.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}.")
    return row


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    names = list(reader.fieldnames or [])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: the header names {', '.join(map(repr, twice))} twice. Rename one of them.")
    for row in reader:
        if None in row or None in row.values():
            raise UserError(
                f"{path}, row {reader.line_num}: has {'more' if None in row else 'fewer'} fields than the header's "
                f"{len(names)} columns. Mend the row; a field that holds a comma or a line break needs quotes."
            )
        yield reader.line_num, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _hub_rows(name: str) -> Iterator[tuple[int, Row]]:
    """Rows of a data set by its name."""
    import datasets

    dataset, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, split=split or "train")
    except Exception as error:  # the library raises a dozen types for "cannot be had"
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{name}: neither a .jsonl, .jsonl.gz, .parquet or .csv file nor a data set that could be loaded "
            f"({type(error).__name__}: {reason}). Check the name and the connection, or give a file."
        ) from error
    yield from enumerate((dict(row) for row in rows), start=1)

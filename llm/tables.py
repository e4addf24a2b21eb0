"""Rows of a table, from a file or from a data set of the hub, each with its number."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llm.errors import UserError

Row = dict[str, Any]


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
    if reader is None:
        return (yield from _hub_rows(str(source)))
    if not path.is_file():
        raise UserError(f"{path}: no such file. Check the path.")
    count = 0
    for number, row in reader(path):
        count += 1
        yield number, row
    if count == 0:
        raise UserError(f"{path}: holds no rows. Give a file with at least one row.")


def column(row: Row, name: str, *, source: str | Path, number: int) -> Any:
    """Return one column of a row.

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


def _open_text(path: Path) -> IO[str]:
    """Open a file as UTF-8 text, through gzip where its name says so."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8", newline="")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON-lines file; blank lines are passed over."""
    number = 0
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _json_row(path, number, line)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after row {number}: not readable as UTF-8 JSON lines ({error}).") from error


def _json_row(path: Path, number: int, line: str) -> Row:
    """Parse one line as a JSON object."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, row {number}: not valid JSON ({error}). Mend or remove this row.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}.")
    return row


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    try:
        with _open_text(path) as lines:
            reader = csv.DictReader(lines, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path}, row {reader.line_num}: not as many fields as the header has columns.")
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 CSV ({error}).") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not readable as Parquet ({error}).") from error


def _hub_rows(name: str) -> Iterator[tuple[int, Row]]:
    """Rows of a data set by its name."""
    import datasets

    dataset, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, split=split or "train")
    except Exception as error:  # the library raises a dozen types for "cannot be had"
        raise UserError(
            f"{name}: neither a .jsonl, .jsonl.gz, .parquet or .csv file nor a data set that could be loaded "
            f"({type(error).__name__}: {error})."
        ) from error
    yield from enumerate((dict(row) for row in rows), start=1)

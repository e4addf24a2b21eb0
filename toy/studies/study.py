"""What every study returns: one figure, one table, one summary; and how they become files."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from matplotlib.figure import Figure

from toy.checks import FloatArray
from toy.plots import image

Item = TypeVar("Item")
Floats = FloatArray


class Progress(Protocol):
    """Hands on the items of an iterable and shows how far it is."""

    def __call__(self, items: Iterable[Item], label: str) -> Iterable[Item]:
        """The same items; the label says what they are."""


def silent(items: Iterable[Item], label: str) -> Iterable[Item]:
    """The items, and no sign of progress."""
    return items


@dataclass(frozen=True)
class Study:
    """The result of `python -m toy NAME`.

    Attributes:
        name: The command, which names the files.
        figure: The picture, written as PNG and SVG.
        columns: Names of the table's columns.
        rows: The numbers behind the figure, one tuple per row.
        summary: What the figure says in numbers, for JSON: settings, findings, crossings.
        caption: What the picture shows and, honestly, what it does not; goes into the JSON.
    """

    name: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    summary: Mapping[str, object]
    caption: str


def write(study: Study, folder: Path) -> list[Path]:
    """Write NAME.png, NAME.svg, NAME.csv and NAME.json into a folder, each whole or not at all; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "png": image(study.figure, "png"),
        "svg": image(study.figure, "svg"),
        "csv": _csv(study).encode(),
        "json": (json.dumps({"caption": study.caption, **study.summary}, indent=1, allow_nan=False) + "\n").encode(),
    }
    return [_write_whole(folder / f"{study.name}.{kind}", content) for kind, content in contents.items()]


def _csv(study: Study) -> str:
    """The table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(study.columns)
    writer.writerows(study.rows)
    return text.getvalue()


def _write_whole(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path

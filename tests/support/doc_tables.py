"""Tables of the documents, for tests that hold them against what the code says."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def documented(name: str, column: str) -> list[list[str]]:
    """The rows of a document's table that has such a column, without code marks."""
    for table in re.findall(r"(?:^\|.*\n)+", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines())
        if column in head:
            return rows
    raise LookupError(f"{name} has no table with a column {column!r}")

"""The figures' numbers as committed in the documentation, and how they differ from a study's."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from toy.studies.study import Study

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def committed(name: str) -> tuple[dict, list[dict[str, str]]]:
    """The summary and the table of a study."""
    summary = json.loads((FIGURES / f"{name}.json").read_text())
    with (FIGURES / f"{name}.csv").open() as file:
        return summary, list(csv.DictReader(file))


def differences(study: Study, relative: float) -> list[tuple[int, str, str, str]]:
    """Row, column, committed and new value of every cell that is not the same: numbers up to rounding, text exactly."""
    _, rows = committed(study.name)
    if [list(row) for row in rows[:1]] != [list(study.columns)] or len(rows) != len(study.rows):
        return [(0, "shape", f"{len(rows)} rows of {list(rows[0])}", f"{len(study.rows)} rows of {study.columns}")]
    return [
        (index, column, row[column], str(value))
        for index, (row, values) in enumerate(zip(rows, study.rows, strict=True))
        for column, value in zip(study.columns, values, strict=True)
        if not is_same(row[column], str(value), relative)
    ]


def is_same(one: str, two: str, relative: float) -> bool:
    """Whether two cells hold the same text or, to a relative tolerance and 1e-12, the same number."""
    try:
        numbers = float(one), float(two)
    except ValueError:
        return one == two
    return one == two or math.isclose(*numbers, rel_tol=relative, abs_tol=1e-12)


def unsaid(caption: str, *values: float, digits: int = 2) -> list[str]:
    """Those of the values, rounded to so many digits, that the caption does not mention."""
    words = [word.strip("(),.;:") for word in caption.replace("±", " ").replace("−", "-").split()]
    return [shown for shown in (rounded(value, digits) for value in values) if shown not in words]


def rounded(value: float, digits: int) -> str:
    """A number with so many significant digits and no exponent, as captions have it."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"

"""Whether a finished cell, run once more, gives the same figures, and what another seed gives."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from llm.config import AlignConfig
from llm.experiments.cells import Cell, CellStore, Row, run_cells
from llm.experiments.results import Found
from llm.experiments.verdicts import wins

MAY_DIFFER = ("seconds", "version")
"""Fields of a row that are not what a run found."""


def repeated(cell: Cell, found: Found, store: CellStore, base: AlignConfig) -> tuple[str, bool]:
    """Run a cell from nothing in a temporary folder and compare it with its row, or with the arm's seeds without one.

    Args:
        cell: A cell with an arm's chosen settings.
        found: The arm.
        store: The finished rows, to which nothing is added.
        base: The experiment's settings.

    Returns:
        What came of it, and whether it is well: a finished cell gave the same figures, to the last digit.
    """
    row, before = rerun(cell, base), store.rows.get(cell.key)
    name = f"{found.arm.label}, seed {cell.config.seed}"
    if before is None:
        return f"{name}, which the table does not have: {_against_seeds(row, found.rows)}", True
    differing = [key for key, value in vars(row).items() if value != getattr(before, key) and key not in MAY_DIFFER]
    return f"{name}: " + (
        f"not the same in {', '.join(differing)}." if differing else "the same figures."
    ), not differing


def rerun(cell: Cell, base: AlignConfig) -> Row:
    """Run a cell, and the one whose rollouts it takes, from nothing in a temporary folder; return what it finds.

    Args:
        cell: The cell.
        base: The experiment's settings, to say what differs.
    """
    with tempfile.TemporaryDirectory() as name:
        store = CellStore(Path(name) / "cells.csv")
        run_cells([cell], store, Path(name), base, processes=1)
        return store.rows[cell.key]


def _against_seeds(row: Row, rows: Sequence[Row]) -> str:
    """Where a run's win rates lie in what the runs of other seeds let expect."""
    if len(rows) < 2:
        return "there are too few seeds to tell what to expect."
    fields = {"judge": "judge", "reward_model": "reward model"}
    return "; ".join(_place(row, rows, *names) for names in fields.items() if getattr(row, names[0])) + "."


def _place(row: Row, rows: Sequence[Row], field: str, name: str) -> str:
    """Where one of a run's win rates lies in the 95 % prediction interval of further seeds (Student's t)."""
    rates = 100 * wins([getattr(each, field) for each in (row, *rows)]).mean(1)
    mine, others = rates[0], rates[1:]
    half = scipy.stats.t.ppf(0.975, len(others) - 1) * others.std(ddof=1) * np.sqrt(1 + 1 / len(others))
    low, high = others.mean() - half, others.mean() + half
    place = "inside" if low <= mine <= high else "outside"
    return f"{name} {mine:.1f} %, {place} the {low:.1f} to {high:.1f} % that 95 of 100 further seeds reach"

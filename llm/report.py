"""Reports made from run folders alone: `python -m llm.report RUN` of one run, `RUN RUN2 …` compares several.

Of one run also `report.md` and the closing table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm import comparison
from llm.console import entry_point
from llm.curves import draw_curves
from llm.errors import UserError
from llm.finished_run import FinishedRun, read_run
from llm.pages import LABELS, PAIRED, figure_rows, image, inline_picture, interval, template, verdict_rows
from llm.store import write_text, write_whole

CLOSING = (
    "judge_win_rate",
    "judge_tie_rate",
    "reward_model_win_rate",
    "reward_model_tie_rate",
    "mean_reward",
    "kl_to_prior",
    "completion_length",
    "ended",
)
"""Figures of the closing table."""
SAMPLES_SHOWN = 12
SAMPLES_PRINTED = 3


def write(folder: Path) -> None:
    """Write `report.html`, `report.md` and `figures/curves.{svg,png}` into a finished run's folder.

    Args:
        folder: The run folder.

    Raises:
        UserError: The folder holds no finished run, or cannot be written.
    """
    run = read_run(folder)
    content, figure = _content(run), draw_curves(run.events)
    curves = {suffix: image(figure, suffix) for suffix in ("svg", "png")}
    for suffix, picture in curves.items():
        write_whole(folder / "figures" / f"curves.{suffix}", picture)
    write_text(folder / "report.html", _page(content, curves["svg"]))
    write_text(folder / "report.md", template("report.md").render(content))


def closing_table(folder: Path) -> str:
    """Return what a run prints at its end: figures before and after, samples, and where everything lies.

    Args:
        folder: The run folder.

    Raises:
        UserError: The folder holds no finished run.
    """
    run = read_run(folder)
    samples = list(zip(run.before, run.after, strict=True))[:SAMPLES_PRINTED]
    return template("closing.txt").render(run=run, table=table_rows(run.summary, CLOSING), samples=samples)


def table_rows(summary: dict[str, Any], names: Sequence[str] = tuple(LABELS)) -> list[tuple[str, str, str, str]]:
    """Return the figures that were measured.

    Args:
        summary: What `summary.json` holds.
        names: Those to return.

    Returns:
        (name, before, after, paired change) as text; the change is empty for figures that have none.
    """
    rows = []
    for name in names:
        label, form = LABELS[name]
        before, after, change = (summary[part].get(name) for part in ("before", "after", "change"))
        if before or after:
            difference = interval(change, form.replace(":", ":+")) if change else ""
            rows.append((label, interval(before, form), interval(after, form), difference))
    return rows


@dataclass(frozen=True)
class ReportCommand:
    """Make the report of a finished run again, or compare several on one page, from their folders alone."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The run folders."""
    out: str = ""
    """The page's file; unless given, report.html in the run's folder (beside report.md and figures/), or of several
    runs comparison.html in the first one's."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(ReportCommand, args=list(arguments), prog="python -m llm.report", config=())
    folders = [Path(run) for run in command.runs]
    if not folders:
        raise UserError("No run was given. Name one or more run folders.")
    page = Path(command.out) if command.out else folders[0] / ("comparison.html" if folders[1:] else "report.html")
    if folders[1:]:
        write_text(page, comparison.page(folders))
    elif command.out:
        run = read_run(folders[0])
        write_text(page, _page(_content(run), image(draw_curves(run.events), "svg")))
    else:
        write(folders[0])
    print(page)


def _page(content: dict[str, Any], curves: bytes) -> str:
    """The page of one run."""
    return template("report.html").render(content, curves=inline_picture(curves))


def _content(run: FinishedRun) -> dict[str, Any]:
    """Everything that the templates show."""
    evaluations, verdicts = run.evaluations(), run.verdicts()
    alone = {name: found for name, found in evaluations.items() if "against" not in found}
    opponents = {name: found for name, found in evaluations.items() if "against" in found}
    return {
        "run": run,
        "summary": run.summary,
        "table": table_rows(run.summary),
        "evaluations": alone,
        "evaluated": _figures_of(alone, LABELS),
        "opponents": opponents,
        "opposed": _figures_of(opponents, PAIRED),
        "judged": len(verdicts),
        "verdicts": verdict_rows(verdicts),
        "samples": list(zip(run.before, run.after, strict=True))[:SAMPLES_SHOWN],
        "config": (run.folder / "config.yaml").read_text(encoding="utf-8"),
    }


def _figures_of(found: dict[str, dict[str, Any]], labels: dict[str, tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The figures of some evaluations side by side."""
    return figure_rows([one["figures"] for one in found.values()], labels, lambda name: True)


if __name__ == "__main__":
    sys.exit(entry_point(main))

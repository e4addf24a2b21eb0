"""How much reward each nat of KL to the prior buys, over checkpoints and runs: `python -m llm.frontier RUN …`."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm.config import AlignConfig
from llm.console import entry_point, printable
from llm.errors import UserError
from llm.run_folder import IDENTITY_FILE, stored_config
from llm.statistics import Estimate
from llm.store import read_events, read_json, write_text, write_whole

KL, REWARD, WINS, JUDGE = "kl_to_prior", "mean_reward", "reward_model_win_rate", "judge_win_rate"
FIGURES = (KL, REWARD, WINS, JUDGE)
FORMS = {KL: "{:z.2f}", REWARD: "{:z.3f}", WINS: "{:z.1%}", JUDGE: "{:z.1%}"}
LABELS = {KL: "KL to the prior (nats a sequence)", REWARD: "mean reward", WINS: "wins over the reference, reward"}
SAME_WORLD = {"model": "the model", "prompts": "the prompts or their split (--seed)", "reward": "the reward"}
"""Parts of a run's identity that must agree within one picture."""
JUDGE_MARK = 16
"""Characters of a judge's fingerprint in the name of a run's table of grades."""
SAME_SAMPLING = ("max_new_tokens", "stop")
Style = tuple[str, Any, str]
STYLES: tuple[Style, ...] = (
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", (0.0, (5.0, 1.0, 1.0, 1.0)), "v"),
    ("#7F4F24", (0.0, (8.0, 2.0)), "X"),
    ("#56B4E9", (0.0, (1.0, 3.0)), "P"),
    ("#7A7A7A", (0.0, (8.0, 2.0, 1.0, 2.0, 1.0, 2.0)), "*"),
)
"""Colour, dashes and marker of each run; dashes and markers tell them apart in grey."""
TEXT = 9.0
RENDERING: dict[Any, str] = {"svg.hashsalt": "brain", "font.family": "DejaVu Sans"}


@dataclass(frozen=True)
class Point:
    """A policy on the frontier's plane.

    Attributes:
        run: The run's folder, as given.
        kind: `validation`, or `held-out`, which has intervals.
        name: `before`, `after` or an evaluation's name; empty in validation.
        step: Gradient steps behind it, None where unknown.
        figures: Estimates by name, None where not known.
        judge: The beginning of the fingerprint of the run's judge, which tells one from another; empty without.
    """

    run: str
    kind: str
    name: str
    step: int | None
    figures: dict[str, Estimate | None]
    judge: str = ""

    def value(self, name: str) -> float:
        """Return a figure's estimate, NaN where it is not known."""
        estimate = self.figures[name]
        return float("nan") if estimate is None or estimate["estimate"] is None else float(estimate["estimate"])


@dataclass(frozen=True)
class FrontierCommand:
    """Draw reward against KL to the prior, over the checkpoints and evaluations of one or more runs of one world."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The run folders."""
    out: str = ""
    """Where frontier.csv, .svg and .png go; the first run's figures/ unless given."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(FrontierCommand, args=list(arguments), prog="python -m llm.frontier", config=())
    if not command.runs:
        raise UserError("No run was given. Name one or more run folders.")
    out = Path(command.out) if command.out else Path(command.runs[0]) / "figures"
    points = gather(command.runs)
    write_text(out / "frontier.csv", as_csv(points))
    figure = draw(points)
    for suffix in ("svg", "png"):
        write_whole(out / f"frontier.{suffix}", _image(figure, suffix))
    print(as_table(points))
    if not has_one_judge(points):
        print("\nThe runs have different judges, so their wins by the judge are not shown side by side.")
    print(printable(f"\n{out / 'frontier.csv'}, frontier.svg, frontier.png"))


def gather(runs: Sequence[str]) -> list[Point]:
    """Read what runs know of their policies: validations, and evaluations on their held-out prompts.

    Args:
        runs: Their folders.

    Returns:
        The points, run by run, each kind in order of steps.

    Raises:
        UserError: A folder holds no run or none with a validation, there are too many, or two are not of one world.
    """
    if len(runs) > len(STYLES):
        raise UserError(f"{len(runs)} runs: at most {len(STYLES)} can be told apart in one picture. Name fewer.")
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError(f"{' '.join(runs)}: a run is named twice. Name each once.")
    configs = [stored_config(Path(run)) for run in runs]
    for run, config in zip(runs[1:], configs[1:], strict=True):
        _check_same_world(runs[0], configs[0], run, config)
    return [point for run in runs for point in [*_validations(run), *_evaluations(run)]]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point of their kind beats: none has as much reward for as little KL.

    Args:
        points: Points of one world.

    Returns:
        Those on the frontier, in order of KL.
    """

    def beats(other: Point, point: Point) -> bool:
        one, two = ((p.value(KL), -p.value(REWARD)) for p in (other, point))
        return other.kind == point.kind and one != two and one[0] <= two[0] and one[1] <= two[1]

    kept = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(kept, key=lambda point: (point.value(KL), point.value(REWARD)))


def has_one_judge(points: Sequence[Point]) -> bool:
    """Return whether all grades come from one judge, so that the judge's figures mean the same."""
    return len({point.judge for point in points if point.figures[JUDGE] is not None}) <= 1


def as_csv(points: Sequence[Point]) -> str:
    """Return the points as CSV, one a row, with the ends of their 95 % intervals where they have any, and the judge."""
    text, best = io.StringIO(), frontier(points)
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    writer.writerow(["run", "kind", "name", "step", *columns, "on_frontier", "judge"])
    for point in points:
        estimates = [point.figures[name] or {} for name in FIGURES]
        numbers = [estimate.get(key) for estimate in estimates for key in ("estimate", "low", "high")]
        judge = point.judge if point.figures[JUDGE] else ""
        writer.writerow([point.run, point.kind, point.name, point.step, *numbers, int(point in best), judge])
    return text.getvalue()


def as_table(points: Sequence[Point]) -> str:
    """Return the points as a table for people; a star marks the frontier of each kind.

    Wins by the judge are left out where not all are of one judge.

    Args:
        points: Points of one world.
    """
    best, shown = frontier(points), FIGURES if has_one_judge(points) else FIGURES[:-1]
    titles = ("run", "policy", "KL to the prior", "mean reward", "wins (reward)", "wins (judge)")
    rows = [titles[: len(shown) + 2], *(_row(point, shown, point in best) for point in points)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def draw(points: Sequence[Point]) -> Figure:
    """Draw mean reward and win rate against KL to the prior, readable in grey.

    Args:
        points: Points of one world.

    Returns:
        Two panels. Small marks joined by a line are a run's validations in order of steps, large ones with bars its
        held-out evaluations with 95 % intervals; a grey band joins the frontier of the validations.
    """
    runs = list(dict.fromkeys(point.run for point in points))
    made = Figure(figsize=(8.2, 3.6 + 0.18 * len(runs)), layout="constrained")
    for axes, name in zip(made.subplots(1, 2), (REWARD, WINS), strict=True):
        best = [p for p in frontier(points) if p.kind == "validation"]
        if name == REWARD:
            axes.plot([p.value(KL) for p in best], [p.value(name) for p in best], color="0.85", linewidth=6, zorder=1)
        for run, style in zip(runs, STYLES, strict=False):
            _draw_run(axes, [point for point in points if point.run == run], name, style)
        axes.set_xlabel(LABELS[KL], fontsize=TEXT)
        axes.set_ylabel(LABELS[name], fontsize=TEXT)
        axes.tick_params(labelsize=TEXT)
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    _add_legend(made, runs)
    return made


def _check_same_world(first: str, first_config: AlignConfig, other: str, config: AlignConfig) -> None:
    """Refuse runs whose numbers do not mean the same."""
    one, two = (read_json(Path(run) / IDENTITY_FILE) for run in (first, other))
    differing = [what for part, what in SAME_WORLD.items() if one.get(part) != two.get(part)]
    changed = (name for name in SAME_SAMPLING if getattr(first_config, name) != getattr(config, name))
    differing += [f"--{name.replace('_', '-')}" for name in changed]
    if differing:
        raise UserError(
            f"{first} and {other} do not belong in one picture, for their rewards and KL do not mean the same: they "
            f"differ in {', '.join(differing)}. Draw them apart."
        )


def _validations(run: str) -> list[Point]:
    """A run's validations; its log has no intervals of them."""
    events = [event for event in read_events(Path(run) / "metrics.jsonl") if event["event"] == "validation"]
    if not events:
        raise UserError(f"{run}: has no validation yet. Go on with python -m llm.align --resume {run}.")
    return [
        Point(run, "validation", "", event["step"], {name: _bare(event.get(name)) for name in FIGURES})
        for event in events
    ]


def _bare(value: float | None) -> Estimate | None:
    """An estimate of which only the value is known."""
    return None if value is None else {"estimate": value, "low": None, "high": None, "n": None}


def _evaluations(run: str) -> list[Point]:
    """A run's evaluations on its held-out prompts: its own, and those of `llm.evaluate`."""
    folder, found = Path(run), []
    if (folder / "summary.json").is_file():
        summary, judge = read_json(folder / "summary.json"), _own_judge(folder)
        found.append(_held_out(run, "before", 0, summary["before"], judge))
        found.append(_held_out(run, "after", summary["best"]["step"], summary["after"], judge))
    for path in sorted((folder / "eval").glob("*.json")):
        stored = {} if path.stem.startswith("manifest") else read_json(path)
        if "checkpoint" in stored and stored["prompts"] is None:
            found.append(_held_out(run, path.stem, stored["step"], stored["figures"], stored.get("judge")))
    return sorted(found, key=lambda point: (point.step is None, point.step or 0))


def _held_out(run: str, name: str, step: int | None, figures: dict[str, Any], judge: str | None) -> Point:
    """One held-out evaluation."""
    known = {key: figures.get(key) for key in FIGURES}
    return Point(run, "held-out", name, step, known, (judge or "")[:JUDGE_MARK])


def _own_judge(folder: Path) -> str:
    """The judge that graded a run's own evaluations; where it was changed since, the newest."""
    tables = (folder / "eval").glob("judged-*.parquet")
    newest = max(tables, key=lambda path: path.stat().st_mtime_ns, default=None)
    return "" if newest is None else newest.stem.removeprefix("judged-")


def _row(point: Point, shown: Sequence[str], is_best: bool) -> tuple[str, ...]:
    """A point as cells of text."""
    step = "" if point.step is None else f"step {point.step}"
    policy = " ".join(part for part in (point.kind, point.name, step, "*" if is_best else "") if part)
    return (printable(point.run), policy, *(_cell(point.figures[name], FORMS[name]) for name in shown))


def _cell(estimate: Estimate | None, form: str) -> str:
    """An estimate with its interval, where it has one."""
    if estimate is None:
        return "–"
    ends = [form.format(estimate[end]) for end in ("low", "high") if estimate[end] is not None]
    return form.format(estimate["estimate"]) + (f" [{', '.join(ends)}]" if ends else "")


def _draw_run(axes: Axes, points: Sequence[Point], name: str, style: Style) -> None:
    """Draw one run's points."""
    color, dashes, marker = style
    steps = [point for point in points if point.kind == "validation"]
    axes.plot(
        [p.value(KL) for p in steps],
        [p.value(name) for p in steps],
        color=color,
        linestyle=dashes,
        marker=marker,
        markersize=4,
        linewidth=1.1,
    )
    for point in points:
        if point.kind == "held-out":
            axes.errorbar(
                point.value(KL),
                point.value(name),
                xerr=_bar(point, KL),
                yerr=_bar(point, name),
                fmt=marker,
                color=color,
                markersize=8,
                markerfacecolor="white",
                elinewidth=1.0,
                capsize=2.0,
                zorder=4,
            )


def _bar(point: Point, name: str) -> list[list[float]] | None:
    """How far an interval's ends are from the estimate, as matplotlib wants it."""
    estimate = point.figures[name]
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return None
    return [[max(0.0, point.value(name) - estimate["low"])], [max(0.0, estimate["high"] - point.value(name))]]


def _add_legend(figure: Figure, runs: Sequence[str]) -> None:
    """Name the runs and the marks below the panels; the names are text, whatever is in them."""
    handles = [Line2D([], [], color=c, linestyle=d, marker=m) for c, d, m in STYLES[: len(runs)]]
    handles.append(Line2D([], [], color="0.4", marker="o", markersize=8, markerfacecolor="white", linestyle=""))
    handles.append(Line2D([], [], color="0.85", linewidth=6))
    names = [*map(printable, runs), "held-out, 95 % intervals (small marks: validation)", "frontier of the validations"]
    legend = figure.legend(
        handles, ["."] * len(names), loc="outside lower center", fontsize=TEXT, frameon=False, ncols=2
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _image(figure: Figure, suffix: str) -> bytes:
    """A figure as an image file's bytes, the same for the same data."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(RENDERING):
        figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else {})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(entry_point(main))

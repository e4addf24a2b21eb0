"""`report.html`, `report.md` and the closing table, all made from the run folder alone: `python -m llm.report RUN`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import markupsafe
import matplotlib
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm.console import entry_point, printable
from llm.errors import UserError
from llm.store import ShardFolder, read_events, read_json, write_text, write_whole

FIGURES = (
    ("judge_win_rate", "wins over the reference, judge", "{:.1%}"),
    ("judge_tie_rate", "ties, judge", "{:.1%}"),
    ("reward_model_win_rate", "wins over the reference, reward", "{:.1%}"),
    ("reward_model_tie_rate", "ties, reward", "{:.1%}"),
    ("mean_reward", "mean reward", "{:.2f}"),
    ("kl_to_prior", "KL to the prior (nats a sequence)", "{:.2f}"),
    ("completion_length", "completion length (tokens)", "{:.1f}"),
    ("ended", "completions that ended by themselves", "{:.1%}"),
)
PANELS = (
    ("validation win rate", "validation", ("reward_model_win_rate",)),
    ("validation mean reward", "validation", ("mean_reward",)),
    ("SNKL (nats; dotted: its known floor 0)", "step", ("snkl",)),
    ("ESS (solid: target, dashed: policy)", "step", ("ess_target", "ess_policy")),
    ("validation KL to the prior (nats)", "validation", ("kl_to_prior",)),
    ("validation completion length (tokens)", "validation", ("completion_length",)),
)
FROM_ZERO = ("reward_model_win_rate", "snkl", "ess_target", "completion_length")
PARTS = ("summary.json", "config.yaml", "metrics.jsonl")
SAMPLES_SHOWN = 12
SAMPLES_PRINTED = 3
LINE_PRINTED = 300


def write(folder: Path) -> None:
    """Write `report.html`, `report.md` and `figures/curves.{svg,png}` into a finished run's folder.

    Raises:
        UserError: The folder holds no finished run, or cannot be written.
    """
    content = _content(folder)
    figure = draw_curves(read_events(folder / "metrics.jsonl"))
    curves = {suffix: _drawn(figure, suffix) for suffix in ("svg", "png")}
    for suffix, image in curves.items():
        write_whole(folder / "figures" / f"curves.{suffix}", image)
    svg = curves["svg"].decode()
    picture = markupsafe.Markup(svg[svg.index("<svg") :])  # drawn from numbers and our own labels alone
    write_text(folder / "report.html", _template("report.html").render(content, curves=picture))
    write_text(folder / "report.md", _template("report.md").render(content))


def closing_table(folder: Path) -> str:
    """Return what a run prints at its end: figures before and after, samples, and where everything lies.

    Raises:
        UserError: The folder holds no finished run.
    """
    return _template("closing.txt").render(_content(folder))


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the figures that were measured.

    Args:
        summary: What `summary.json` holds.

    Returns:
        (name, before, after, paired change) as text; the change is empty for figures that have none.
    """
    rows = []
    for key, label, form in FIGURES:
        before, after, change = (summary[part].get(key) for part in ("before", "after", "change"))
        if before is not None and after is not None:
            difference = _interval(change, form.replace(":", ":+")) if change else ""
            rows.append((label, _interval(before, form), _interval(after, form), difference))
    return rows


def draw_curves(events: list[dict[str, Any]]) -> Figure:
    """Draw the run's curves against the gradient step, readable in grey.

    Args:
        events: Those of `metrics.jsonl`.

    Returns:
        Six panels; one without data stays empty and says so.
    """
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    for axes, (title, event, keys) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.set_title(title, fontsize=9)
        _draw_panel(axes, [e for e in events if e["event"] == event], keys)
    return figure


@dataclass(frozen=True)
class ReportCommand:
    """Make the report of a finished run again, from its folder alone."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(ReportCommand, args=list(arguments), prog="python -m llm.report", config=())
    folder = Path(command.run)
    write(folder)
    print(folder / "report.html")


def _content(folder: Path) -> dict[str, Any]:
    """Read everything that the templates show."""
    _check_finished(folder)
    summary = read_json(folder / "summary.json")
    shards = ShardFolder(folder / "eval")
    before, after = shards.read("before"), shards.read("after")
    return {
        "folder": folder,
        "summary": summary,
        "table": table_rows(summary),
        "samples": list(zip(before, after, strict=True))[:SAMPLES_SHOWN],
        "held_out": len(before),
        "printed": SAMPLES_PRINTED,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def _check_finished(folder: Path) -> None:
    """Check that a folder holds a finished run."""
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if missing == ["summary.json"]:
        raise UserError(f"{folder}: this run is not finished. Go on: python -m llm.align --resume {folder}.")
    if missing:
        raise UserError(f"{folder}: not the folder of a finished run; it has no {', '.join(missing)}. Check the path.")


def _draw_panel(axes: Axes, events: list[dict[str, Any]], keys: Sequence[str]) -> None:
    """Draw some values of events against the step, from 0 where that is their natural floor."""
    if not events:
        axes.set(xticks=(), yticks=())
        axes.text(0.5, 0.5, "nothing recorded", ha="center", va="center", fontsize=9, transform=axes.transAxes)
        return
    steps, marker = [e["step"] for e in events], "o" if len(events) < 40 else ""
    for key, style, shade in zip(keys, ("-", "--"), ("black", "0.45"), strict=False):
        axes.plot(steps, [e[key] for e in events], style, color=shade, linewidth=1.2, marker=marker, markersize=3)
    axes.set_xlabel("gradient step", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.88")
    if keys[0] in FROM_ZERO:
        axes.set_ylim(bottom=0)
    if keys[0] == "snkl":
        axes.axhline(0, color="black", linestyle=":", linewidth=2, clip_on=False)


def _drawn(figure: Figure, suffix: str) -> bytes:
    """Return a figure as an image file's bytes, the same for the same data."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "brain"}):
        figure.savefig(buffer, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else {})
    return buffer.getvalue()


def _template(name: str) -> jinja2.Template:
    """Load a template; what models and data sets wrote is escaped in HTML."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["fenced"] = _fenced
    environment.filters["one_line"] = _one_line
    return environment.get_template(name)


def _one_line(text: str) -> str:
    """Text on one line of a terminal; of a long one the end, which is nearest to the completion."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= LINE_PRINTED else "… " + line[-LINE_PRINTED:]


def _fenced(text: str) -> str:
    """Text as a Markdown code block that nothing in it can close."""
    return "\n".join("    " + line for line in str(text).splitlines() or [""])


def _interval(value: dict[str, Any], form: str) -> str:
    """An estimate with its 95 % interval, where it has one."""
    estimate, *ends = (value[key] for key in ("estimate", "low", "high"))
    interval = ", ".join(form.format(end) for end in ends) if None not in ends else "one value, no interval"
    return f"{form.format(estimate)} [{interval}]"


if __name__ == "__main__":
    sys.exit(entry_point(main))

"""`report.html`, `report.md` and the closing table, all made from the run folder alone: `python -m llm.report RUN`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib
from matplotlib.figure import Figure

from llm.console import entry_point
from llm.errors import UserError
from llm.store import ShardFolder, read_events, read_json, write_text, write_whole

FIGURES = (
    ("judge_win_rate", "win rate over the reference, judge", "{:.1%}"),
    ("judge_tie_rate", "ties, judge", "{:.1%}"),
    ("reward_model_win_rate", "win rate over the reference, reward", "{:.1%}"),
    ("reward_model_tie_rate", "ties, reward", "{:.1%}"),
    ("mean_reward", "mean reward", "{:.2f}"),
    ("kl_to_prior", "KL to the prior (nats a sequence)", "{:.2f}"),
    ("completion_length", "completion length (tokens)", "{:.1f}"),
    ("ended", "completions that ended by themselves", "{:.1%}"),
)
CURVES = (
    ("validation", "reward_model_win_rate", "validation win rate (reward)"),
    ("validation", "mean_reward", "validation mean reward"),
    ("step", "snkl", "SNKL (nats; floor 0)"),
    ("step", "ess_target", "effective sample size, target"),
    ("validation", "kl_to_prior", "KL to the prior (nats)"),
    ("validation", "completion_length", "completion length (tokens)"),
)
SAMPLES_SHOWN = 12
SAMPLES_PRINTED = 3


def write(folder: Path) -> None:
    """Write `report.html`, `report.md` and `figures/curves.{svg,png}` into a finished run's folder.

    Raises:
        UserError: The folder holds no finished run.
    """
    content = _content(folder)
    curves = {suffix: _drawn(content["figure"], suffix) for suffix in ("svg", "png")}
    for suffix, image in curves.items():
        write_whole(folder / "figures" / f"curves.{suffix}", image)
    svg = curves["svg"].decode()
    picture = markupsafe.Markup(svg[svg.index("<svg") :])  # drawn from numbers and our own labels alone
    write_text(folder / "report.html", _template("report.html").render(content, curves=picture))
    write_text(folder / "report.md", _template("report.md").render(content))


def closing_table(folder: Path) -> str:
    """Return what a run prints at its end: figures before and after, samples, and where everything lies."""
    return _template("closing.txt").render(_content(folder))


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures as (name, before, after), leaving out what was not measured."""
    rows = []
    for key, label, form in FIGURES:
        before, after = summary["before"][key], summary["after"][key]
        if before is not None and after is not None:
            rows.append((label, _interval(before, form), _interval(after, form)))
    return rows


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python -m llm.report RUN, where RUN is the folder of a finished run.")
    folder = Path(arguments[0])
    write(folder)
    print(folder / "report.html")


def _content(folder: Path) -> dict[str, Any]:
    """Read everything that the templates show."""
    summary = read_json(folder / "summary.json")
    shards = ShardFolder(folder / "eval")
    before, after = shards.read("before"), shards.read("after")
    events = read_events(folder / "metrics.jsonl")
    return {
        "folder": folder,
        "summary": summary,
        "table": table_rows(summary),
        "samples": list(zip(before, after, strict=True))[:SAMPLES_SHOWN],
        "printed": SAMPLES_PRINTED,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "figure": draw_curves(events),
    }


def draw_curves(events: list[dict[str, Any]]) -> Figure:
    """Draw the run's curves against the gradient step, readable in grey."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, (event, key, label) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        points = [(e["step"], e[key]) for e in events if e["event"] == event]
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, color="black", linewidth=1, marker="o" if len(points) < 40 else "", markersize=3)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("gradient step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if key in ("snkl", "reward_model_win_rate"):
            axes.set_ylim(bottom=0)
    return figure


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
    environment.filters["one_line"] = lambda text: " ".join(str(text).split())
    return environment.get_template(name)


def _fenced(text: str) -> str:
    """Text as a Markdown code block that nothing in it can close."""
    return "\n".join("    " + line for line in str(text).splitlines() or [""])


def _interval(value: dict[str, Any], form: str) -> str:
    """An estimate with its 95 % interval."""
    return f"{form.format(value['estimate'])} [{form.format(value['low'])}, {form.format(value['high'])}]"


if __name__ == "__main__":
    sys.exit(entry_point(main))

"""What an experiment found, as Markdown, CSV, JSON and a figure with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm.experiments.cells import Row
from llm.experiments.studies import Claim, Study
from llm.experiments.verdicts import Interval, difference, mean_interval, wins
from llm.store import write_json, write_text

Runs = Mapping[str, Sequence[Row]]
"""The finished rows of each arm, one for each seed, by the arm's label."""


def rows_of(runs: Runs) -> list[dict[str, Any]]:
    """Return a table row for each arm: win rates, reward, KL and length with their intervals over seeds and prompts."""
    return [{"arm": label, **_figures(rows)} for label, rows in runs.items()]


def decided(study: Study, runs: Runs) -> list[dict[str, Any]]:
    """Return each claim with its difference, interval and verdict."""
    found = []
    for claim in study.claims:
        if claim.first in runs and claim.second in runs and (interval := _claimed(claim, runs)):
            values = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
            found.append({"claim": claim.text, "paper": claim.paper, **values, "verdict": interval.verdict()})
    return found


def write(folder: Path, name: str, study: Study, runs: Runs, stamp: Mapping[str, Any], command: str) -> None:
    """Write NAME.md, NAME.csv, NAME.json and NAME.png.

    Args:
        folder: Where they go.
        name: The experiment's name.
        study: What was asked.
        runs: What was found.
        stamp: World, settings and version, which each file carries.
        command: The command that makes it again.
    """
    rows, claims = rows_of(runs), decided(study, runs)
    write_json(folder / f"{name}.json", {"stamp": stamp, "command": command, "rows": rows, "claims": claims})
    write_text(folder / f"{name}.csv", _as_csv(rows, stamp))
    write_text(folder / f"{name}.md", _as_markdown(study, rows, claims, stamp, command))
    _draw(folder / f"{name}.png", study, rows, stamp)


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one arm."""
    values: dict[str, Any] = {"learning_rate": rows[0].learning_rate, "seeds": len(rows)}
    for figure in ("judge", "reward_model"):
        outcomes = [getattr(row, figure) for row in rows]
        same = len({row.prompts for row in rows}) == 1
        interval = mean_interval(wins(outcomes), same_prompts=same) if all(outcomes) else None
        values |= {f"{figure}_{key}": getattr(interval, key, None) for key in Interval._fields}
    values["mean_reward"] = float(np.mean([np.mean(_numbers(row.rewards)) for row in rows]))
    for figure in ("kl_to_prior", "completion_length", "seconds"):
        values[figure] = float(np.mean([getattr(row, figure) for row in rows]))
    return values | {"completions": rows[0].completions, "backward_completions": rows[0].backward_completions}


def _numbers(text: str) -> np.ndarray:
    return np.array([float(value) for value in text.split()])


def _claimed(claim: Claim, runs: Runs) -> Interval | None:
    """The difference that a claim is about, over the seeds that both arms have; None without a judge."""
    field = "judge" if claim.judge else "reward_model"
    one, other = ({row.seed: row for row in runs[label]} for label in (claim.first, claim.second))
    seeds = sorted(one.keys() & other.keys())
    letters = [[getattr(rows[seed], field) for seed in seeds] for rows in (one, other)]
    if not all(letters[0]) or not all(letters[1]):
        return None
    same = len({one[seed].prompts for seed in seeds}) == 1
    return difference(wins(letters[0]), wins(letters[1]), same_prompts=same)


def _as_csv(rows: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> str:
    """The table with the stamp in columns of their own."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*rows[0], *stamp], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **stamp} for row in rows)
    return buffer.getvalue()


def _as_markdown(
    study: Study,
    rows: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
    stamp: Mapping[str, Any],
    command: str,
) -> str:
    """The page of one experiment."""
    header = "| arm | win rate, judge | win rate, reward model | mean reward | KL, nats | tokens | rate | seconds |"
    lines = [f"# {study.title}", "", f"`{command}`", "", header, "|---|---|---|---|---|---|---|---|"]
    lines += [_line(row) for row in rows]
    if claims:
        lines += ["", "| claim | the paper | difference | verdict |", "|---|---|---|---|"]
        lines += [f"| {c['claim']} | {c['paper']} | {_percent(c, '', signed=True)} | {c['verdict']} |" for c in claims]
    lines += [
        "",
        "Intervals are 95 %: the wider of a bootstrap over seeds and prompts and Student's t on the seeds' means.",
    ]
    lines += ["Differences are paired by seed and prompt; nothing is corrected for the number of claims."]
    return "\n".join([*lines, ", ".join(f"{key} `{value}`" for key, value in stamp.items()) + ".", ""])


def _line(row: Mapping[str, Any]) -> str:
    """An arm's line of the table."""
    judged = _percent(row, "judge_") if row["judge_estimate"] is not None else "–"
    return (
        f"| {row['arm']} | {judged} | {_percent(row, 'reward_model_')} | {row['mean_reward']:.2f} | "
        f"{row['kl_to_prior']:.2f} | {row['completion_length']:.1f} | {row['learning_rate']:g} | {row['seconds']:.0f} |"
    )


def _percent(values: Mapping[str, Any], prefix: str, *, signed: bool = False) -> str:
    """An estimate with its interval in per cent."""
    sign = "+" if signed else ""
    estimate, low, high = (format(100 * values[prefix + key], f"{sign}.1f") for key in Interval._fields)
    return f"{estimate} [{low}, {high}]"


def _draw(path: Path, study: Study, rows: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> None:
    """Win rates of all arms with their intervals, judge and reward model side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    for prefix, label, marker, shift in (
        ("judge_", "independent judge", "o", 0.12),
        ("reward_model_", "train reward model", "s", -0.12),
    ):
        if rows[0][f"{prefix}estimate"] is None:
            continue
        middle, low, high = (100 * np.array([row[prefix + key] for row in rows]) for key in Interval._fields)
        spread, fill = [middle - low, high - middle], "black" if marker == "o" else "white"
        axes.errorbar(
            middle, places + shift, xerr=spread, fmt=marker, color="black", mfc=fill, capsize=2, ms=4, label=label
        )
    axes.set_yticks(places, [row["arm"] for row in rows])
    axes.set_xlabel("win rate against the references, per cent, with 95 % intervals")
    axes.set_title(study.title, loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Comment": " ".join(f"{k}={v}" for k, v in stamp.items())})

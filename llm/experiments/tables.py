"""What an experiment found, as Markdown, CSV, JSON and a figure with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm.config import AlignConfig
from llm.experiments import head_to_head, pictures
from llm.experiments.cells import Row
from llm.experiments.results import Found, figures, numbers, paired, share_prompts, tried
from llm.experiments.studies import Claim, Study
from llm.experiments.verdicts import Interval, mean_interval, wins
from llm.store import write_json, write_text

Values = Mapping[str, Any]
Runs = Mapping[str, Sequence[Row]]
"""The finished rows of each arm, one for each seed, by the arm's label."""
PREFIXES = ("judge_", "reward_model_")
"""Of the judges' figures in a row."""
CHOSEN_BY = {
    "validation_win_rate": "the reward model's win rate",
    "validation_objective": "E r − T KL",
}
ABOUT_INTERVALS = (
    "Intervals are 95 %: the wider of a bootstrap over seeds and prompts and Student's t on the seeds' means. "
    "Differences are paired by seed and prompt. Each claim is decided by itself: of twenty decisions on differences "
    "that are none, one is expected to be wrong."
)


def write(
    folder: Path, name: str, study: Study, found: Sequence[Found], base: AlignConfig, stamp: Values, command: str
) -> None:
    """Write NAME.md, NAME.csv, NAME.json and NAME.png.

    Args:
        folder: Where they go; the runs are in its folder runs.
        name: What the files are named.
        study: What was asked.
        found: What was found, arm by arm.
        base: The settings that the arms change.
        stamp: World, settings and version, which each file carries.
        command: The command that makes it again.
    """
    runs = {each.arm.label: each.rows for each in found}
    rows, claims = [figures(each) for each in found], decided(study, runs, base.temperature)
    matches = head_to_head.results(study.matches, runs)
    parts = {"rows": rows, "claims": claims, "matches": matches, "grid": [one for each in found for one in tried(each)]}
    write_json(folder / f"{name}.json", {"stamp": stamp, "command": command, **parts})
    write_text(folder / f"{name}.csv", as_csv([_flat(match) for match in matches] or rows, stamp))
    lines = [f"# {study.title}", "", f"`{command}`", "", *_head_to_head(study, matches, runs, folder / "runs")]
    lines += [
        *_table(found, rows),
        "",
        *claims_lines(claims),
        "",
        _about_rates(study, found, base),
        "",
        ABOUT_INTERVALS,
    ]
    closing = ", ".join(f"{key} `{value}`" for key, value in stamp.items()) + "."
    write_text(folder / f"{name}.md", "\n".join([*lines, "", closing, ""]))
    pictures.draw(folder / f"{name}.png", study, found, rows, matches, stamp)


def decided(study: Study, runs: Runs, temperature: float) -> list[dict[str, Any]]:
    """Return each claim whose arms there are, with its difference, interval and verdict."""
    results = []
    for claim in study.claims:
        if interval := _claimed(claim, runs, temperature):
            values = {"claim": claim.text, "paper": claim.paper, "by": claim.by, **interval._asdict()}
            results.append({**values, "shown": _difference(values), "verdict": interval.verdict()})
    return results


def _claimed(claim: Claim, runs: Runs, temperature: float) -> Interval | None:
    """What a claim says is above 0, over the seeds that its arms have; None without these or without a judge."""
    groups = paired(runs.get(claim.first, ()), runs.get(claim.second, ()))
    values = [np.array([_compared(row, claim.by, temperature) for row in rows]) for rows in zip(*groups, strict=True)]
    if not groups or not all(each.size for each in values):
        return None
    same_prompts = share_prompts([one for one, _ in groups])
    interval = mean_interval(values[0] - values[1] + claim.margin, same_prompts=same_prompts)
    return interval if claim.by == "objective" else interval.within(claim.margin - 1, claim.margin + 1)


def _compared(row: Row, by: str, temperature: float) -> np.ndarray:
    """What is compared of a run, for each test prompt (P,): 1 for a win and 0 else, or the objective's estimate."""
    if by == "objective":
        return numbers(row.rewards) - temperature * numbers(row.log_ratios)
    return wins([getattr(row, by)])[0]


def _flat(match: Values) -> dict[str, Any]:
    """A match's figures in one level, for CSV."""
    flat: dict[str, Any] = {}
    for name, value in match.items():
        flat |= {f"{name}_{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def as_csv(rows: Sequence[Values], stamp: Values) -> str:
    """Return a table as CSV, with the stamp in columns of their own."""
    buffer = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(buffer, [*names, *stamp], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **stamp} for row in rows)
    return buffer.getvalue()


def _table(found: Sequence[Found], rows: Sequence[Values]) -> list[str]:
    """The lines of the arms' table; the arms' notes are its last columns."""
    notes = list(dict.fromkeys(name for each in found for name, _ in each.arm.notes))
    names = ["arm", "win rate, judge", "win rate, reward model", "mean reward", "KL, nats", "tokens", "step", "rate"]
    return _lines([*names, "seeds", "seconds", *notes], [_cells(row, notes) for row in rows])


def _cells(row: Values, notes: Sequence[str]) -> list[str]:
    """An arm's cells of the table."""
    rate = f"{row['learning_rate']:g}{'*' if row['at_edge'] else ''}" + (
        f", {row['variant']}" if row["variant"] else ""
    )
    judged = [_percent(row, prefix) if row[f"{prefix}estimate"] is not None else "–" for prefix in PREFIXES]
    values = [
        f"{row['mean_reward']:.2f}",
        f"{row['kl_to_prior']:.2f}",
        f"{row['completion_length']:.1f}",
        f"{row['step']:.0f}",
        rate,
    ]
    return [row["arm"], *judged, *values, str(row["seeds"]), f"{row['seconds']:.0f}", *(_note(row, n) for n in notes)]


def _note(row: Values, name: str) -> str:
    """A note of an arm, numbers with four digits."""
    value = row.get(name, "–")
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def claims_lines(claims: Sequence[Values]) -> list[str]:
    """Return the lines of a table of claims.

    Args:
        claims: As an experiment's JSON file has them.
    """
    cells = [[c["claim"], c["paper"], c["shown"], c["verdict"]] for c in claims]
    return _lines(["claim", "the paper", "here: difference", "verdict"], cells) if cells else []


def _head_to_head(study: Study, matches: Sequence[Values], runs: Runs, folder: Path) -> list[str]:
    """The lines about matches, where the experiment has any."""
    if not study.matches:
        return []
    header = [
        "",
        "wins",
        "ties",
        "losses",
        "unparsed",
        "wins less losses",
        "the paper: wins / ties / losses",
        "verdict",
    ]
    cells = [
        [
            f"{match['first']} against {match['second']}",
            *(_percent(match[outcome], "") for outcome in head_to_head.OUTCOMES),
            "–",
            _percent(match["margin"], "", signed=True),
            match["paper"],
            match["verdict"],
        ]
        for match in matches
    ]
    lines = (
        [*_lines(header, cells), "", head_to_head.NOTES] if cells else ["There are no grades: no --judge was given."]
    )
    commands = [f"    {line}" for line in head_to_head.judge_commands(study.matches, runs, folder)]
    return [*lines, "", "A language model judges the first seed's runs by", "", *commands, ""]


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table's lines."""
    return [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]


def _about_rates(study: Study, found: Sequence[Found], base: AlignConfig) -> str:
    """How the learning rates were chosen."""
    rates = sorted({config.learning_rate for each in found for config, _ in each.grid})
    text = (
        f"Learning rates tried: {', '.join(f'{rate:g}' for rate in rates)}; chosen, with what stands beside them, by "
        f"{CHOSEN_BY[study.chosen_by]} on {base.validation_count} validation prompts, seed {base.seed}; the step by "
        "the win rate there."
    )
    if any(each.is_at_edge for each in found):
        text += " * An end of the grid, beyond which another rate may do better."
    return text


def _difference(claim: Values) -> str:
    """A claim's difference with its interval: of win rates in per cent, of the objective in units of reward."""
    if claim["by"] != "objective":
        return _percent(claim, "", signed=True)
    estimate, low, high = (format(claim[key], "+.2f") for key in Interval._fields)
    return f"{estimate} [{low}, {high}]"


def _percent(values: Values, prefix: str, *, signed: bool = False) -> str:
    """An estimate with its interval in per cent."""
    sign = "+" if signed else ""
    estimate, low, high = (format(100 * values[prefix + key], f"{sign}.1f") for key in Interval._fields)
    return f"{estimate} [{low}, {high}]"

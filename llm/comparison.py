"""Several finished runs on one page: only what means the same in all of them stands side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from llm.config import AlignConfig
from llm.curves import PANELS, comparable_panels, overlay
from llm.errors import UserError
from llm.figures import head_to_head
from llm.finished_run import FinishedRun, Row, read_run
from llm.frontier import STYLES
from llm.pages import LABELS, PAIRED, figure_rows, image, inline_picture, template, verdict_rows
from llm.records import EvalRecord, Prompt
from llm.run_folder import IDENTITY_FILE
from llm.store import read_json

PARTS = {
    "model": "the model, which is the prior",
    "prompts": "the prompts or their split (--seed)",
    "held-out": "the held-out prompts",
    "references": "the references of the held-out prompts",
    "reward": "the reward",
    "judge": "the judge",
    "sampling": "--max-new-tokens or --stop",
    "group": "--n",
}
"""What runs may have in common, in words."""
NEEDS = (
    ("judge_", ("held-out", "references", "judge")),
    ("reward_model_", ("held-out", "references", "reward")),
    ("mean_reward", ("held-out", "reward")),
    ("kl_", ("held-out", "model", "sampling")),
    ("completion_length", ("held-out", "model", "sampling")),
    ("ended", ("held-out", "sampling")),
    ("distinct_", ("held-out", "model")),
)
"""What runs must have in common for a figure, by the beginning of its name, to mean the same."""
SAMPLES_SHOWN = 12


def page(folders: Sequence[Path]) -> str:
    """Return the page that compares runs.

    Args:
        folders: Two run folders or more.

    Raises:
        UserError: One is no finished run, one is named twice, or there are more than can be told apart.
    """
    _check(folders)
    runs = dict(zip(ascii_uppercase, map(read_run, folders), strict=False))
    differing = differences(list(runs.values()))
    curves = image(overlay({name: run.events for name, run in runs.items()}, differing), "svg")
    verdicts = _verdicts(runs, differing)
    content = {
        "runs": runs,
        "differing": [PARTS[part] for part in PARTS if part in differing],
        "left_out": _left_out(runs, differing),
        "settings": differing_settings(runs),
        "figures": side_by_side(list(runs.values()), differing),
        "further": {} if "held-out" in differing else further(runs, differing),
        "pairs": (pairs := _pairs(runs)),
        "paired": figure_rows(list(pairs.values()), PAIRED, lambda name: True),
        "judges": [name for name, _ in verdicts],
        "verdicts": verdict_rows([result for _, result in verdicts]),
        "samples": [] if "held-out" in differing else _samples(runs, differing),
        "curves": inline_picture(curves),
    }
    return template("comparison.html").render(content)


def differences(runs: Sequence[FinishedRun]) -> set[str]:
    """Return the parts, of `PARTS`, that not all runs have in common.

    Args:
        runs: At least one.
    """
    worlds = [_world(run) for run in runs]
    return {part for part in PARTS if any(world[part] != worlds[0][part] for world in worlds)}


def differing_settings(runs: Mapping[str, FinishedRun]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ, with each run's value as text; where a run lies is none of them."""
    values = [dataclasses.asdict(run.config) for run in runs.values()]
    names = [field.name for field in dataclasses.fields(AlignConfig) if field.name != "out"]
    return [
        (name, [str(value[name]) for value in values])
        for name in names
        if any(value[name] != values[0][name] for value in values)
    ]


def side_by_side(runs: Sequence[FinishedRun], differing: set[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the figures that mean the same in all runs.

    Args:
        runs: The runs.
        differing: In what they differ.

    Returns:
        (name for people, (text before, text after) of each run).
    """
    columns = [run.summary[when] for run in runs for when in ("before", "after")]
    rows = figure_rows(columns, LABELS, lambda name: not differing & needed(name))
    return [(label, list(zip(cells[::2], cells[1::2], strict=True))) for label, cells in rows]


def further(runs: Mapping[str, FinishedRun], differing: set[str]) -> dict[str, list[tuple[str, list[str]]]]:
    """Return the figures, comparable ones only, of the evaluations that all runs have by one name and of one size.

    Args:
        runs: The runs.
        differing: In what they differ.

    Returns:
        By the evaluation's name, (name for people, text of each run); none on other prompts than the held-out ones.
    """
    found = [run.evaluations() for run in runs.values()]
    names = [name for name in found[0] if all(_are_alike(one.get(name), found[0][name]) for one in found)]
    return {
        name: figure_rows(
            [one[name]["figures"] for one in found], LABELS, lambda figure: not differing & needed(figure)
        )
        for name in names
    }


def _are_alike(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    """Whether two evaluations, each of one run alone, are of the held-out prompts and of one size."""
    if one is None or "against" in one or "against" in other:
        return False
    return one["prompts"] is None is other["prompts"] and one["counts"] == other["counts"]


def needed(name: str) -> set[str]:
    """Return what runs must have in common for a figure to mean the same in all of them."""
    return next((set(parts) for beginning, parts in NEEDS if name.startswith(beginning)), set(PARTS))


def _check(folders: Sequence[Path]) -> None:
    """Check that the runs can be told apart."""
    if len(folders) > len(STYLES):
        raise UserError(f"{len(folders)} runs: at most {len(STYLES)} can be told apart on one page. Name fewer.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(map(str, folders))}: a run is named twice. Name each once.")


def _world(run: FinishedRun) -> dict[str, Any]:
    """What the meaning of a run's figures depends on."""
    identity = read_json(run.folder / IDENTITY_FILE)
    prompts = [(row["prompt_id"], row["prompt"]) for row in run.after]
    return {
        "model": identity.get("model"),
        "prompts": identity.get("prompts"),
        "held-out": prompts,
        "references": [(*prompt, row["reference"]) for prompt, row in zip(prompts, run.after, strict=True)],
        "reward": identity.get("reward"),
        "judge": run.judged,
        "sampling": (run.config.max_new_tokens, run.config.stop),
        "group": run.config.n,
    }


def _left_out(runs: Mapping[str, FinishedRun], differing: set[str]) -> list[str]:
    """The names of what some run measured and the page does not show, for it does not mean the same in all."""
    columns = [run.summary[when] for run in runs.values() for when in ("before", "after")]
    figures = [label for label, _ in figure_rows(columns, LABELS, lambda name: bool(differing & needed(name)))]
    kept = comparable_panels(differing)
    curves = [f"curve: {panel.first or panel.title}" for panel in PANELS if panel not in kept]
    is_judged = len(_verdicts(runs, set())) > len(_verdicts(runs, differing))
    return figures + curves + (["verdicts of language models"] if is_judged else [])


def _pairs(runs: Mapping[str, FinishedRun]) -> dict[str, dict[str, Any]]:
    """The comparable figures head to head of every two runs with the same held-out prompts."""
    found = {}
    for (first, one), (second, two) in combinations(runs.items(), 2):
        differing = differences([one, two])
        if "held-out" not in differing:
            values = head_to_head(*(_records(run.after) for run in (one, two)))
            # Nobody's reference takes part here.
            found[f"{first} against {second}"] = {
                name: value for name, value in values.items() if not differing & (needed(name) - {"references"})
            }
    return found


def _records(rows: Sequence[Row]) -> list[EvalRecord]:
    """Evaluation records from their table."""
    prompts = (Prompt(row["prompt_id"], row["prompt"], tuple(row["prompt_token_ids"]), None) for row in rows)
    return [EvalRecord.from_row(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]


def _verdicts(runs: Mapping[str, FinishedRun], differing: set[str]) -> list[tuple[str, dict[str, Any]]]:
    """The results of judges that are language models, each with its run; none against references that differ."""
    found = [(name, one) for name, run in runs.items() for one in run.verdicts()]
    return [
        (name, one)
        for name, one in found
        if not differing & {"held-out", *(["references"] if one["against"] == "references" else [])}
    ]


def _samples(runs: Mapping[str, FinishedRun], differing: set[str]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The first prompts, each with the runs' completions and their rewards where one reward gave them all."""
    note = partial(_note, is_comparable="reward" not in differing)
    samples = []
    for rows in list(zip(*(run.after for run in runs.values()), strict=True))[:SAMPLES_SHOWN]:
        columns = [(name, row["completion"], note(row["reward"])) for name, row in zip(runs, rows, strict=True)]
        if "references" not in differing:
            columns.insert(0, ("reference", rows[0]["reference"], note(rows[0]["reference_reward"])))
        samples.append((rows[0]["prompt"], columns))
    return samples


def _note(reward: float, *, is_comparable: bool) -> str:
    """A completion's reward as text, nothing where the runs' rewards are different ones."""
    return f"reward {reward:.3g}" if is_comparable else ""

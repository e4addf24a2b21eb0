"""Two arms head to head: wins, ties and losses prompt by prompt, by the judge's grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm.experiments.cells import Row
from llm.experiments.results import numbers, paired, share_prompts
from llm.experiments.studies import Match
from llm.experiments.verdicts import mean_interval

OUTCOMES = {"wins": 1, "ties": 0, "losses": -1}
NOTES = (
    "By the judge's grades of one completion a prompt, each run against the other's of its seed; the higher grade "
    "wins, equal ones tie. Grades of a function need no parsing, so nothing is unparsed. Runs of one seed share their "
    "random draws, so equal completions, which tie, are more frequent than among independent ones. What is decided is "
    "whether wins less losses are above 0."
)


def results(matches: Sequence[Match], runs: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return wins, ties and losses of each match as shares with their intervals over seeds and prompts.

    Args:
        matches: What to compare; a match of which an arm is missing or was not graded is left out.
        runs: The rows of each arm by its label.
    """
    found = []
    for match in matches:
        pairs = paired(runs.get(match.first, ()), runs.get(match.second, ()))
        if pairs and all(one.grades and other.grades for one, other in pairs):
            signs = np.array([np.sign(numbers(one.grades) - numbers(other.grades)) for one, other in pairs])
            found.append({**vars(match), **_shares(signs, is_shared=share_prompts([one for one, _ in pairs]))})
    return found


def _shares(signs: np.ndarray, *, is_shared: bool) -> dict[str, Any]:
    """Shares of 1, 0 and −1 in signs (S, P), their margin, and the verdict on it."""
    shares = {
        name: mean_interval((signs == sign).astype(float), same_prompts=is_shared).within(0.0, 1.0)._asdict()
        for name, sign in OUTCOMES.items()
    }
    margin = mean_interval(signs, same_prompts=is_shared).within(-1.0, 1.0)
    return {**shares, "unparsed": None, "margin": margin._asdict(), "verdict": margin.verdict()}


def judge_commands(matches: Sequence[Match], runs: Mapping[str, Sequence[Row]], folder: Path) -> list[str]:
    """Return the commands that have a language model judge the first seed of each match.

    Args:
        matches: What to compare.
        runs: The rows of each arm by its label.
        folder: The folder of the runs.
    """
    pairs = [pair for match in matches for pair in paired(runs.get(match.first, ()), runs.get(match.second, ()))[:1]]
    return [
        f"python -m llm.judge {folder / one.cell} --against {folder / other.cell} --base-url URL --judge-model NAME"
        for one, other in pairs
    ]

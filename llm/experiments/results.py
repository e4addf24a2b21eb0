"""What was found for one arm of an experiment, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm.config import AlignConfig
from llm.errors import UserError
from llm.experiments.cells import Row
from llm.experiments.studies import Arm
from llm.experiments.verdicts import Interval, mean_interval, wins


@dataclass(frozen=True)
class Found:
    """An arm with its runs.

    Attributes:
        arm: The arm.
        grid: The settings and row of each run of the first seed, among which the settings were chosen.
        rows: One row for each seed at the chosen settings, the first seed's, which is in the grid, first.
    """

    arm: Arm
    grid: tuple[tuple[AlignConfig, Row], ...]
    rows: tuple[Row, ...]

    @property
    def config(self) -> AlignConfig:
        """The chosen settings."""
        return next(config for config, row in self.grid if row.cell == self.rows[0].cell)

    @property
    def is_at_edge(self) -> bool:
        """Whether the learning rate, or what else was chosen, is the lowest or highest of several that were tried."""
        return any(self._is_at_edge(name) for name in ("learning_rate", *self.variant(self.config)))

    def _is_at_edge(self, name: str) -> bool:
        """Whether a setting is."""
        values = {getattr(config, name) for config, _ in self.grid}
        return len(values) > 1 and getattr(self.config, name) in (min(values), max(values))

    def variant(self, config: AlignConfig) -> dict[str, Any]:
        """Return what is open in this arm beside the learning rate, as some settings have it."""
        return {name: getattr(config, name) for name, _ in self.arm.variants[0]}


def figures(found: Found) -> dict[str, Any]:
    """Return an arm's table row: win rates with intervals, reward, KL, length, cost and the arm's own notes.

    Args:
        found: The arm.
    """
    rows, variant = found.rows, found.variant(found.config)
    values: dict[str, Any] = {
        "arm": found.arm.label,
        "learning_rate": rows[0].learning_rate,
        "at_edge": found.is_at_edge,
        "variant": ", ".join(f"{name} {value:g}" for name, value in variant.items()),
        "seeds": len(rows),
        "step": float(np.mean([row.best_step for row in rows])),
    }
    for judge in ("judge", "reward_model"):
        interval = win_rate(rows, judge)
        values |= {f"{judge}_{key}": getattr(interval, key, None) for key in Interval._fields}
    values["mean_reward"] = float(np.mean([mean_reward(row) for row in rows]))
    for name in ("kl_to_prior", "completion_length", "seconds"):
        values[name] = float(np.mean([getattr(row, name) for row in rows]))
    counts = {"completions": rows[0].completions, "backward_completions": rows[0].backward_completions}
    return values | counts | dict(found.arm.notes)


def tried(found: Found) -> list[dict[str, Any]]:
    """Return the grid of an arm: what was tried at the first seed, and how well it did on the validation prompts."""
    return [
        {
            "arm": found.arm.label,
            "learning_rate": config.learning_rate,
            **found.variant(config),
            "seed": row.seed,
            "validation_win_rate": row.validation_win_rate,
            "chosen": row.cell == found.rows[0].cell,
            "cell": row.cell,
        }
        for config, row in found.grid
    ]


def win_rate(rows: Sequence[Row], judge: str) -> Interval | None:
    """Return the win rate over seeds and prompts, None without that judge.

    Args:
        rows: One for each seed.
        judge: `judge` or `reward_model`.
    """
    outcomes = [getattr(row, judge) for row in rows]
    if not all(outcomes):
        return None
    return mean_interval(wins(outcomes), same_prompts=share_prompts(rows)).within(0.0, 1.0)


def share_prompts(rows: Sequence[Row]) -> bool:
    """Return whether all rows have the same test prompts in the same order."""
    return len({row.prompts for row in rows}) == 1


def mean_reward(row: Row) -> float:
    """Return the mean reward of the test prompts' completions."""
    return float(numbers(row.rewards).mean())


def numbers(text: str) -> np.ndarray:
    """Return the numbers (P,) of a row's grades or rewards."""
    return np.array(text.split(), dtype=np.float64)


def paired(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of the seeds that two arms share, seed by seed.

    Raises:
        UserError: The two were not tested on the same prompts.
    """
    opponents = {row.seed: row for row in other}
    pairs = [(row, opponents[row.seed]) for row in one if row.seed in opponents]
    for row, opponent in pairs:
        if row.prompts != opponent.prompts:
            raise UserError(
                f"The runs {row.cell} and {opponent.cell} were tested on different prompts and cannot be compared: "
                "some prompts are too long for one of them. Use shorter --test-prompts or --prompt-overflow truncate."
            )
    return pairs

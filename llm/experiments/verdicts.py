"""Verdicts: whether one set of runs beats another, by a paired bootstrap over seeds and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

REPEATS = 4000
Verdict = Literal["holds", "does not hold", "undecided"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float

    def verdict(self) -> Verdict:
        """What the sign of the interval says of the claim that the difference is above 0."""
        if self.low > 0:
            return "holds"
        return "does not hold" if self.high < 0 else "undecided"


def wins(outcomes: Sequence[str]) -> np.ndarray:
    """Return (S, P) 1 for a win and 0 for a tie or loss, of S runs' letters for P prompts."""
    return np.array([[letter == "W" for letter in letters] for letters in outcomes], dtype=np.float64)


def mean_interval(values: np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean of values (S, P) over seeds and prompts, bootstrapped over seeds, then prompts of each.

    Args:
        values: (S, P), a row for each seed, which has prompts of its own.
        seed: Of the bootstrap's draws.
    """
    draws = np.random.default_rng(seed)
    runs, prompts = values.shape
    resampled = values[draws.integers(runs, size=(REPEATS, runs))]  # (R, S, P)
    counts = draws.multinomial(prompts, np.full(prompts, 1 / prompts), size=(REPEATS, runs))
    means = (resampled * counts).sum((1, 2)) / (runs * prompts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the interval of the mean of one − other, (S, P) each, paired by seed and prompt."""
    return mean_interval(one - other)

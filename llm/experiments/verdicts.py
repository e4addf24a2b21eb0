"""Verdicts: whether one set of runs beats another, by a paired bootstrap over seeds and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats

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

    def within(self, lowest: float, highest: float) -> Interval:
        """Return the part of the interval that is possible: Student's t on few seeds goes beyond 0 and 100 %."""
        return Interval(self.estimate, max(self.low, lowest), min(self.high, highest))


def wins(outcomes: Sequence[str]) -> np.ndarray:
    """Return (S, P) 1 for a win and 0 for a tie or loss, of S runs' letters for P prompts."""
    return np.array([[letter == "W" for letter in letters] for letters in outcomes], dtype=np.float64)


def mean_interval(values: np.ndarray, *, same_prompts: bool = False, seed: int = 0) -> Interval:
    """Return the mean of values (S, P) over seeds and prompts with the wider of two 95 % intervals.

    One is a bootstrap over seeds and prompts; with few seeds it sees too little of what differs between these. The
    other is Student's t on the means of the seeds, where there are several.

    Args:
        values: (S, P), a row for each seed.
        same_prompts: Whether all seeds have the same prompts, in order, which are then resampled together.
        seed: Of the bootstrap's draws.
    """
    draws = np.random.default_rng(seed)
    runs, prompts = values.shape
    shape = (REPEATS, 1) if same_prompts else (REPEATS, runs)
    counts = draws.multinomial(prompts, np.full(prompts, 1 / prompts), size=shape)
    sums = np.broadcast_to(counts.astype(np.float64) @ values.T, (REPEATS, runs, runs))  # of each place and seed
    drawn = draws.integers(runs, size=(REPEATS, runs, 1))
    means = np.take_along_axis(sums, drawn, axis=2).sum((1, 2)) / (runs * prompts)
    low, high = np.quantile(means, [0.025, 0.975])
    by_seed = values.mean(1)
    half = scipy.stats.t.ppf(0.975, runs - 1) * by_seed.std(ddof=1) / np.sqrt(runs) if runs > 1 else 0.0
    centre = float(values.mean())
    return Interval(centre, float(min(low, centre - half)), float(max(high, centre + half)))

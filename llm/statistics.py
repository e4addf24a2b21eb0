"""Estimates with 95 % intervals; JSON's null stands for an end of an interval that the data do not bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats

Estimate = dict[str, float | int | None]
"""`estimate`, `low`, `high`, and `n`, the number of values."""


def proportion(hits: Sequence[bool] | np.ndarray) -> Estimate:
    """Return a proportion with its Wilson interval.

    Args:
        hits: (N,) at least one.

    Returns:
        Estimate and interval as shares of 1.
    """
    count, total = int(np.sum(hits)), len(hits)
    interval = scipy.stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return {"estimate": count / total, "low": float(interval.low), "high": float(interval.high), "n": total}


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return a mean with its Student t interval; a single value has none.

    Args:
        values: (N,) at least one.

    Returns:
        Estimate and interval in the values' unit.
    """
    array = np.asarray(values, dtype=np.float64)
    centre, total = float(array.mean()), len(array)
    if total == 1:
        return {"estimate": centre, "low": None, "high": None, "n": 1}
    half = float(scipy.stats.t.ppf(0.975, total - 1) * array.std(ddof=1) / np.sqrt(total))
    return {"estimate": centre, "low": centre - half, "high": centre + half, "n": total}

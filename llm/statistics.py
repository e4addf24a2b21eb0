"""Estimates with 95 % intervals; JSON's null stands for an end of an interval that the data do not bound.

The prompts are the sample: several completions of one prompt are not as many independent values. Where every value has
a prompt of its own, a proportion has Wilson's interval and a mean Student's t. Else each prompt counts as the mean of
its values, and the interval is a bootstrap by prompt: bias-corrected and accelerated (BCa), for of the two bootstraps
that were tried it alone keeps its promise for rare wins. Of fewer than 20 prompts every bootstrap is too narrow; there
it is Student's t on the prompts' means (docs/evaluation.md). A single prompt has no interval.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from llm.streams import stream

Estimate = dict[str, float | int | None]
"""`estimate`, `low`, `high`, and `n`, the number of values."""
Numbers = Sequence[float] | np.ndarray
Prompts = Sequence[str] | np.ndarray | None
"""The prompt that each value is of; None where each is of another."""

FEW = 20
"""Prompts below which no bootstrap is drawn."""
RESAMPLES = 5_000
CHUNK = 2**22
"""Numbers in one array of resamples (memory)."""
LEVELS = (0.025, 0.975)
ROUNDING = 1e-5
"""Standard errors within which a resample equals the estimate."""


def proportion(hits: Sequence[bool] | np.ndarray, prompts: Prompts = None) -> Estimate:
    """Return a proportion with its interval: Wilson's, or by prompt where one has several values.

    Where all prompts agree, one by prompt would have no width; Wilson's interval of one value a prompt stands instead,
    which is too wide rather than too narrow.

    Args:
        hits: (N,) at least one.
        prompts: (N,) the prompt of each.

    Returns:
        Estimate and interval as shares of 1; a prompt counts as the share of its values, and a single prompt has no
        interval.
    """
    array, places = np.asarray(hits, dtype=np.float64), _places(prompts, len(hits))
    members = np.bincount(places)
    shares = np.bincount(places, array) / members
    share, count = float(shares.mean()), len(members)
    if members.max() > 1 and shares.min() < shares.max():
        return _within_one(_by_prompt(share, shares - share, len(array)))
    return _estimate(share, *_wilson(share, count), len(array))


def mean(values: Numbers, prompts: Prompts = None) -> Estimate:
    """Return a mean with its interval: Student's t, or by prompt where one has several values.

    Args:
        values: (N,) at least one.
        prompts: (N,) the prompt of each.

    Returns:
        Estimate and interval in the values' unit; a prompt counts as the mean of its values, and a single prompt has
        no interval.
    """
    array, places = np.asarray(values, dtype=np.float64), _places(prompts, len(values))
    members = np.bincount(places)
    if members.max() > 1:
        means = np.bincount(places, array) / members
        return _by_prompt(float(means.mean()), means - means.mean(), len(array))
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else 0.0
    return _student(float(array.mean()), error, len(array), len(array))


def ratio(numerators: Numbers, denominators: Numbers, prompts: Prompts = None) -> Estimate:
    """Return a ratio of sums, such as nats a token, with its interval by prompt, of the linearised ratio.

    Args:
        numerators: (N,) at least one.
        denominators: (N,) above 0.
        prompts: (N,) the prompt of each.

    Returns:
        Estimate and interval; a single prompt has none.
    """
    places = _places(prompts, len(numerators))
    above, below = (np.bincount(places, np.asarray(part, dtype=np.float64)) for part in (numerators, denominators))
    estimate = float(above.sum() / below.sum())
    return _by_prompt(estimate, (above - estimate * below) / below.mean(), len(numerators))


def jackknifed_share(share: float, without: Numbers, total: int) -> Estimate:
    """Return a share with its jackknife interval by prompt.

    It suits a share of distinct things, which resampling with replacement would distort. In expectation its variance
    is too large rather than too small (Efron and Stein, 1981).

    Args:
        share: Of all prompts.
        without: (B,) the same without each prompt.
        total: The number of values.

    Returns:
        Estimate and interval as shares of 1; a single prompt has no interval.
    """
    array = np.asarray(without, dtype=np.float64)
    return _within_one(_student(share, float(np.sqrt((len(array) - 1) * array.var())), len(array), total))


def length_controlled(wins: Sequence[bool] | np.ndarray, extra: Numbers, prompts: Prompts = None) -> Estimate | None:
    """Return the win rate at equal length, by a logistic regression.

    P(win) = σ(θ + φ tanh(Δ / s)), where Δ is by how much a completion is longer than what it is compared with and s is
    the standard deviation of Δ. The rate is σ(θ), its interval σ(θ ± 1.96 e) with the standard error e clustered by
    prompt (the sandwich).

    Args:
        wins: (N,) whether each completion wins, at least one.
        extra: (N,) Δ, in any unit of length.
        prompts: (N,) the prompt of each.

    Returns:
        Estimate and interval as shares of 1; a single prompt has no interval. None where the data do not identify the
        rate: all lengths are equal, 0 lies outside the range of Δ, or length alone, or nearly alone, tells wins from
        losses.

    Source: The length-controlled win rate of AlpacaEval 2 (arXiv 2404.04475), without its terms for the difficulty of
        an instruction, which need many models.
    """
    won, longer = np.asarray(wins, dtype=bool), np.asarray(extra, dtype=np.float64)
    if not longer.min() <= 0 <= longer.max() or _are_separable(longer[won], longer[~won]):
        return None
    features = np.stack([np.ones(len(longer)), np.tanh(longer / longer.std())], axis=1)
    parameters = _logistic_fit(features, won)
    places = _places(prompts, len(won))
    error = _clustered_error(features, won, parameters, places) if places.max() else np.nan
    if error is None:
        return None
    ends = parameters[0] + error * scipy.special.ndtri(LEVELS)
    rate, low, high = (float(scipy.special.expit(logit)) for logit in (parameters[0], *ends))
    return _estimate(rate, low, high, len(won))


def _estimate(estimate: float, low: float, high: float, total: int) -> Estimate:
    """An estimate as JSON holds it; an end that is NaN is unknown."""
    ends = [None if np.isnan(end) else end for end in (low, high)]
    return {"estimate": estimate, "low": ends[0], "high": ends[1], "n": total}


def _within_one(share: Estimate) -> Estimate:
    """A share whose interval ends at 0 and 1 at the latest."""
    ends = {key: min(1.0, max(0.0, end)) for key in ("low", "high") if (end := share[key]) is not None}
    return {**share, **ends}


def _student(centre: float, error: float, prompts: int, total: int) -> Estimate:
    """An estimate with Student's interval; of a single prompt, which tells nothing of the spread, without one."""
    half = float(scipy.stats.t.ppf(LEVELS[1], prompts - 1) * error) if prompts > 1 else np.nan
    return _estimate(centre, centre - half, centre + half, total)


def _places(prompts: Prompts, count: int) -> np.ndarray:
    """The number, from 0, of each value's prompt."""
    return np.arange(count) if prompts is None else np.unique(np.asarray(prompts), return_inverse=True)[1]


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The ends of Wilson's interval (1927); the share need not be one of whole hits. Of a single prompt NaN."""
    if count == 1:
        return np.nan, np.nan
    squared = float(scipy.special.ndtri(LEVELS[1])) ** 2
    centre = share + squared / (2 * count)
    half = float(np.sqrt(squared * (share * (1 - share) + squared / (4 * count)) / count))
    low, high = ((centre + side) / (1 + squared / count) for side in (-half, half))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def _by_prompt(estimate: float, influence: np.ndarray, total: int) -> Estimate:
    """An estimate with its interval, where each of B prompts adds its influence / B to it: BCa, Student's if few."""
    count = len(influence)
    if count >= FEW:
        return _bootstrapped(estimate, influence, total)
    error = float(influence.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return _student(estimate, error, count, total)


def _bootstrapped(estimate: float, influence: np.ndarray, total: int) -> Estimate:
    """An estimate with its BCa interval (Efron, 1987), where each of B prompts adds its influence / B to it."""
    count, spread = len(influence), float(np.sqrt((influence**2).sum()))
    if spread <= 1e-12 * abs(estimate):
        return _estimate(estimate, estimate, estimate, total)
    shifts = _resampled_sums(influence / spread)
    below = ((shifts < -ROUNDING).mean() + (shifts <= ROUNDING).mean()) / 2
    bias = scipy.special.ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    normal, acceleration = bias + scipy.special.ndtri(LEVELS), ((influence / spread) ** 3).sum() / 6
    ends = np.quantile(shifts, scipy.special.ndtr(bias + normal / (1 - acceleration * normal)))
    low, high = estimate + ends * spread / count
    return _estimate(estimate, float(low), float(high), total)


def _resampled_sums(values: np.ndarray) -> np.ndarray:
    """The sum of values (B,) in every resample with replacement, (R,); the resamples depend on B alone."""
    rows = max(1, min(RESAMPLES, CHUNK // len(values)))
    narrow = values.astype(np.float32)
    return np.concatenate([_resamples(len(values), rows, start) @ narrow for start in range(0, RESAMPLES, rows)])


@functools.lru_cache(maxsize=4)
def _resamples(count: int, rows: int, start: int) -> np.ndarray:
    """How often each of B prompts is drawn in each of some resamples, (rows, B)."""
    drawn = stream(0, "bootstrap", count, start).integers(0, count, (rows, count))
    cells = (drawn + count * np.arange(rows)[:, None]).ravel()
    return np.bincount(cells, minlength=rows * count).reshape(rows, count).astype(np.float32)


def _are_separable(won: np.ndarray, lost: np.ndarray) -> bool:
    """Whether a threshold of length parts wins from losses, so that the regression has no maximum."""
    return not (len(won) and len(lost)) or won.max() <= lost.min() or lost.max() <= won.min()


def _logistic_fit(features: np.ndarray, won: np.ndarray) -> np.ndarray:
    """The parameters (2,) of greatest likelihood."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = features @ parameters
        residual = scipy.special.expit(logits) - won
        return float((np.logaddexp(0, logits) - won * logits).mean()), features.T @ residual / len(won)

    return scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x


def _clustered_error(features: np.ndarray, won: np.ndarray, parameters: np.ndarray, places: np.ndarray) -> float | None:
    """The standard error of θ, clustered by prompt; None where the data are so near to no maximum that none is left."""
    count, chance = places.max() + 1, scipy.special.expit(features @ parameters)
    scores = np.stack([np.bincount(places, column * (won - chance)) for column in features.T], axis=1)
    information = (features.T * (chance * (1 - chance))) @ features
    try:
        bread = np.linalg.inv(information)
    except np.linalg.LinAlgError:
        return None
    variance = (bread @ (scores.T @ scores) @ bread)[0, 0] * count / (count - 1)
    return float(np.sqrt(variance)) if variance >= 0 else None

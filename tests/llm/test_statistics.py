"""Estimates and intervals against formulas written out, and against their promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.statistics import mean, proportion

Z = 1.959963984540054
T_975 = {1: 12.706204736432095, 2: 4.302652729911275, 9: 2.262157162740992}  # tabulated quantiles of Student's t


def covered(estimate: dict[str, float | int | None], truth: float) -> bool:
    return estimate["low"] <= truth <= estimate["high"]


@given(total=st.integers(1, 500), data=st.data())
def test_a_proportion_has_the_wilson_interval(total: int, data: st.DataObject) -> None:
    """Its ends are the roots of (p̂ − p)² = z² p (1 − p) / n."""
    count = data.draw(st.integers(0, total))
    result = proportion([True] * count + [False] * (total - count))
    share = count / total
    a, b, c = 1 + Z**2 / total, -(2 * share + Z**2 / total), share**2
    root = math.sqrt(b * b - 4 * a * c)
    assert result["estimate"] == share
    assert result["n"] == total
    assert result["low"] == pytest.approx((-b - root) / (2 * a), abs=1e-9)
    assert result["high"] == pytest.approx((-b + root) / (2 * a), abs=1e-9)


def test_a_share_of_none_or_all_still_has_an_interval_of_some_width() -> None:
    none, every = proportion([False] * 10), proportion([True] * 10)
    assert (none["low"], every["high"]) == (0.0, 1.0)
    assert none["high"] == pytest.approx(Z**2 / (10 + Z**2))
    assert every["low"] == pytest.approx(10 / (10 + Z**2))


@pytest.mark.parametrize("values", [[1.0, 3.0], [0.0, 1.0, 5.0], list(range(10))])
def test_a_mean_has_the_t_interval(values: list[float]) -> None:
    n = len(values)
    centre = math.fsum(values) / n
    half = T_975[n - 1] * math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1) / n)
    result = mean(values)
    assert result["estimate"] == pytest.approx(centre)
    assert result["low"] == pytest.approx(centre - half)
    assert result["high"] == pytest.approx(centre + half)
    assert result["n"] == n


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean([2.5] * 7) == {"estimate": 2.5, "low": 2.5, "high": 2.5, "n": 7}


def test_a_single_value_claims_no_interval() -> None:
    assert mean([2.5]) == {"estimate": 2.5, "low": None, "high": None, "n": 1}


def test_estimates_can_be_written_as_json() -> None:
    for estimate in (mean(np.arange(3, dtype=np.float32)), mean([1]), proportion(np.array([True, False]))):
        assert json.loads(json.dumps(estimate, allow_nan=False)) == estimate


def test_the_t_interval_covers_the_mean_of_normal_data_95_times_in_100() -> None:
    """4,000 repetitions, seed fixed; 4 standard errors of a share of 0.95 are 0.0138."""
    rng = np.random.default_rng(0)
    hits = [covered(mean(rng.normal(1.0, 2.0, 5)), 1.0) for _ in range(4000)]
    assert abs(np.mean(hits) - 0.95) < 0.0138


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_the_wilson_interval_covers_its_share_about_95_times_in_100(share: float) -> None:
    """Exactly, by summing the binomial law at n = 60: Wilson's coverage stays near its level, not above it."""
    n = 60
    law = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    coverage = sum(p for k, p in enumerate(law) if covered(proportion([True] * k + [False] * (n - k)), share))
    assert 0.93 < coverage < 0.98

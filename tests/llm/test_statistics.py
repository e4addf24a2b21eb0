"""Estimates and intervals against formulas written out, and against their promise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llm import statistics
from llm.statistics import jackknifed_share, length_controlled, mean, proportion, ratio

Z = 1.959963984540054
T_975 = {1: 12.706204736432095, 2: 4.302652729911275, 9: 2.262157162740992}  # tabulated quantiles of Student's t


def covered(estimate: dict[str, float | int | None], truth: float) -> bool:
    return estimate["low"] <= truth <= estimate["high"]


@given(total=st.integers(2, 500), data=st.data())
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
    assert proportion([True]) == {"estimate": 1.0, "low": None, "high": None, "n": 1}


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


PROMPTS, EACH, SETS = 200, 4, 2000
IDS = np.repeat(np.arange(PROMPTS), EACH)
Sets = tuple[np.ndarray, float]
"""Values (SETS, PROMPTS·EACH) of simulated sets, and the truth."""


def scores(rng: np.random.Generator, *, spread: float = 1.0) -> np.ndarray:
    """What completions of a prompt have in common, N(0, spread²), and what each has of its own, N(0, 1)."""
    shared, own = rng.normal(size=(SETS, PROMPTS, 1)), rng.normal(size=(SETS, PROMPTS, EACH))
    return (spread * shared + own).reshape(SETS, -1)


def above(threshold: float, variance: float = 2.0) -> float:
    """P(N(0, variance) > threshold)."""
    return float(scipy.stats.norm.sf(threshold / math.sqrt(variance)))


def wins(rng: np.random.Generator) -> Sets:
    return scores(rng) > 0.4, above(0.4)


def rare_wins(rng: np.random.Generator) -> Sets:
    """Wins on few prompts, there often: the correlation of two completions of a prompt is 0.8."""
    chances = rng.beta(0.02 / 4, 0.98 / 4, size=(SETS, PROMPTS, 1))
    return (rng.random((SETS, PROMPTS, EACH)) < chances).reshape(SETS, -1), 0.02


def ties(rng: np.random.Generator) -> Sets:
    return np.abs(scores(rng, spread=2.0)) <= 0.8, above(-0.8, 5.0) - above(0.8, 5.0)


def skewed_rewards(rng: np.random.Generator) -> Sets:
    return np.exp(0.5 * scores(rng)), math.exp(0.25)


def paired_differences(rng: np.random.Generator) -> Sets:
    """Wins of one policy less those of another, which have most of a prompt's difficulty in common."""
    shared = rng.normal(size=(SETS, PROMPTS, 1))
    one, two = (rng.normal(size=(SETS, PROMPTS, EACH)) + rng.normal(size=(SETS, PROMPTS, 1)) for _ in range(2))
    won = (shared + one > 0.2).astype(float) - (shared + two > 0.6)
    return won.reshape(SETS, -1), above(0.2, 3.0) - above(0.6, 3.0)


KINDS: dict[str, tuple[Callable[..., Sets], Callable[..., statistics.Estimate]]] = {
    "wins": (wins, proportion),
    "rare wins": (rare_wins, proportion),
    "ties": (ties, proportion),
    "skewed rewards": (skewed_rewards, mean),
    "paired differences": (paired_differences, mean),
}


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_the_truth_95_times_in_100_where_judgements_are_clustered_by_prompt(kind: str) -> None:
    """2,000 sets of judgements on 200 prompts with 4 completions each; an interval blind to the prompts fails."""
    simulate, interval = KINDS[kind]
    sets, truth = simulate(np.random.default_rng(20260101))
    coverage = np.mean([covered(interval(values, IDS), truth) for values in sets])
    blind = np.mean([covered(interval(values), truth) for values in sets[:300]])
    assert 0.93 <= coverage <= 0.97
    assert blind < 0.91


FEW = 10
FEW_IDS = np.repeat(np.arange(FEW), EACH)


@pytest.mark.parametrize("kind", ["wins", "skewed rewards", "paired differences"])
def test_intervals_of_few_prompts_keep_what_a_bootstrap_would_lose(kind: str) -> None:
    """2,000 sets on 10 prompts with 4 completions each; with so few, skewed rewards are covered too rarely by any."""
    simulate, interval = KINDS[kind]
    sets, truth = simulate(np.random.default_rng(20260105))
    few = sets[:, : FEW * EACH].astype(float)
    means = few.reshape(SETS, FEW, EACH).mean(-1)
    bootstrapped = [statistics._bootstrapped(m.mean(), m - m.mean(), 1) for m in means]
    coverage = np.mean([covered(interval(values, FEW_IDS), truth) for values in few])
    assert coverage > np.mean([covered(one, truth) for one in bootstrapped])
    assert (0.89 if kind == "skewed rewards" else 0.93) <= coverage <= 0.97


PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wins", "ties", "skewed rewards", "paired differences"])
def test_the_page_says_how_often_intervals_of_few_prompts_cover_the_truth(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate, interval = KINDS[kind]
    sets, truth = simulate(np.random.default_rng(20260105))
    cells = []
    for count in (5, 10, 19):
        ids = np.repeat(np.arange(count), EACH)
        for few in (20, 0):  # the interval used, and BCa in its place
            monkeypatch.setattr(statistics, "FEW", few)
            hits = [covered(interval(values, ids), truth) for values in sets[:, : count * EACH].astype(float)]
            cells.append(percent(np.mean(hits)))
    (row,) = (line for line in PAGE.split("**Few prompts.**")[1].splitlines() if line.startswith(f"| {kind}"))
    assert row.split(" | ", 1)[1].removesuffix(" |").split(" | ") == cells


@pytest.mark.slow
def test_the_page_says_how_seldom_the_interval_of_a_sparse_difference_holds_the_truth() -> None:
    """A share of 200 prompts changes by 1, no other at all."""
    rng, found = np.random.default_rng(3), []
    for share in (0.005, 0.01, 0.02):
        changed = (rng.random((SETS, PROMPTS)) < share).astype(float)
        one = np.mean([covered(mean(values), share) for values in changed])
        found.append((np.mean([covered(mean(np.repeat(v, EACH), IDS), share) for v in changed]), one))
    four, one = ([f"{value:.0%}".rstrip("%") for value in column] for column in zip(*found, strict=True))
    text = " ".join(PAGE.split())
    assert f"in {four[0]} % of 2,000 sets at 0.5 % of changed prompts, {four[1]} % at 1 %, {four[2]} % at 2 %" in text
    assert f"with one, Student's t, {one[0]}, {one[1]} and {one[2]} %)" in text


def test_the_mean_of_few_prompts_is_that_of_their_means_with_students_interval() -> None:
    rng = np.random.default_rng(11)
    values, ids = rng.normal(size=19 * 3), np.repeat(np.arange(19), 3)
    assert mean(values, ids) == pytest.approx(mean(values.reshape(19, 3).mean(1)) | {"n": 57})
    more = rng.normal(size=20 * 3)
    assert mean(more, np.repeat(np.arange(20), 3))["low"] != pytest.approx(mean(more.reshape(20, 3).mean(1))["low"])


@pytest.mark.slow
def test_the_percentiles_of_the_bootstrap_would_not_do_for_rare_wins() -> None:
    """Why BCa: same sets, same resamples, the plain percentiles."""
    sets, truth = rare_wins(np.random.default_rng(20260101))
    hits = []
    for values in sets:
        shares = values.reshape(PROMPTS, EACH).mean(-1)
        low, high = np.quantile(statistics._resampled_sums(shares) / PROMPTS, statistics.LEVELS)
        hits.append(low <= truth <= high)
    assert np.mean(hits) < 0.93


@pytest.mark.slow
def test_head_to_head_intervals_cover_the_truth_though_every_completion_is_compared_with_every_other() -> None:
    rng = np.random.default_rng(20260102)
    sides = [rng.normal(size=(SETS, PROMPTS, EACH)) + rng.normal(size=(SETS, PROMPTS, 1)) for _ in range(2)]
    won = (sides[0][:, :, :, None] + 0.5 > sides[1][:, :, None, :]).reshape(SETS, -1)
    ids = np.repeat(np.arange(PROMPTS), EACH**2)
    coverage = np.mean([covered(proportion(values, ids), above(-0.5, 4.0)) for values in won])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.slow
def test_intervals_of_a_ratio_cover_the_truth() -> None:
    """Nats over tokens; both have something of their prompt."""
    rng = np.random.default_rng(20260103)
    tokens = 1 + rng.poisson(rng.gamma(4.0, 5.0, size=(SETS, PROMPTS, 1)), size=(SETS, PROMPTS, EACH))
    rate = rng.gamma(2.0, 0.05, size=(SETS, PROMPTS, 1))
    nats = rate * tokens + rng.normal(size=tokens.shape)
    pairs = zip(nats.reshape(SETS, -1), tokens.reshape(SETS, -1), strict=True)
    coverage = np.mean([covered(ratio(above, below, IDS), 0.1) for above, below in pairs])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.slow
def test_intervals_of_the_rate_at_equal_length_cover_the_truth() -> None:
    """Wins of logit 0.3 + 1.2 tanh(Δ / s), correlated within a prompt; completions are long."""
    rng = np.random.default_rng(20260104)
    extra = np.round(20 + 40 * rng.normal(size=(SETS, PROMPTS * EACH)))
    chance = scipy.special.expit(0.3 + 1.2 * np.tanh(extra / extra.std(1, keepdims=True)))
    won = scipy.special.ndtr(scores(rng) / math.sqrt(2)) < chance
    truth, plain = float(scipy.special.expit(0.3)), float(chance.mean())
    results = [length_controlled(*one, IDS) for one in zip(won, extra, strict=True)]
    assert 0.93 <= np.mean([covered(result, truth) for result in results]) <= 0.97
    assert np.mean([covered(result, plain) for result in results]) < 0.5


def test_the_bootstrap_is_that_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """BCa both, up to the resamples drawn; a ratio's is linearised, which costs 1 % of its width more."""
    monkeypatch.setattr(statistics, "RESAMPLES", 40_000)
    rng = np.random.default_rng(0)
    means, tokens = rng.gamma(0.5, 2.0, 150), rng.integers(1, 60, 150).astype(float)
    values, ids = np.repeat(means, 2), np.repeat([f"p-{i:03d}" for i in range(150)], 2)

    def ratio_of_sums(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
        return above.sum(axis) / below.sum(axis)

    settings = {"n_resamples": 40_000, "batch": 4000, "rng": 1}
    assert_near(mean(values, ids), scipy.stats.bootstrap((means,), np.mean, **settings), 0.02)
    both = scipy.stats.bootstrap((means, tokens), ratio_of_sums, paired=True, **settings)
    assert_near(ratio(means, tokens), both, 0.03)


def assert_near(result: statistics.Estimate, expected: scipy.stats._resampling.BootstrapResult, part: float) -> None:
    low, high = expected.confidence_interval
    assert (result["low"], result["high"]) == pytest.approx((low, high), abs=part * (high - low))


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_prompt_counts_the_same_however_many_values_it_has(prompts: list[list[bool]]) -> None:
    values, ids = [v for vs in prompts for v in vs], [str(i) for i, vs in enumerate(prompts) for _ in vs]
    expected = math.fsum(sum(vs) / len(vs) for vs in prompts) / len(prompts)
    for result in (proportion(values, ids), mean(values, ids)):
        assert result["estimate"] == pytest.approx(expected)
        assert result["n"] == len(values)
        if result["low"] is not None:
            assert result["low"] - 1e-9 <= expected <= result["high"] + 1e-9


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_values_that_each_have_a_prompt_of_their_own_are_treated_as_without_prompts(values: list[float]) -> None:
    ids = [str(i) for i in range(len(values))]
    assert mean(values, ids) == mean(values)
    assert proportion([v > 0 for v in values], ids) == proportion([v > 0 for v in values])


def test_the_order_of_the_values_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    values, order = rng.random(PROMPTS * EACH) < 0.3, rng.permutation(PROMPTS * EACH)
    assert proportion(values[order], IDS[order]) == pytest.approx(proportion(values, IDS), rel=1e-5)


@pytest.mark.parametrize("hits", [[False] * 20, [True] * 20, [True, False] * 10])
def test_prompts_that_all_agree_have_the_interval_of_one_value_each(hits: list[bool]) -> None:
    ids = [str(i // 2) for i in range(20)]
    shares = [any(hits[i : i + 2]) and (all(hits[i : i + 2]) or i < 10) for i in range(0, 20, 2)]
    assert proportion(hits, ids) == proportion(shares) | {"n": 20}


def test_prompts_that_all_agree_on_a_half_have_wilsons_interval_of_a_half() -> None:
    """Three halves are 1.5 hits of 3, neither 1 nor 2."""
    result = proportion([True, False] * 3, ["a", "a", "b", "b", "c", "c"])
    half = Z * math.sqrt(0.25 / 3 + Z**2 / 36) / (1 + Z**2 / 3)
    assert result == pytest.approx({"estimate": 0.5, "low": 0.5 - half, "high": 0.5 + half, "n": 6})


def test_a_single_prompt_claims_no_interval() -> None:
    half = proportion([True, False], ["a", "a"])
    assert half == {"estimate": 0.5, "low": None, "high": None, "n": 2}
    for result in (mean([1.0, 2.0], ["a", "a"]), ratio([1.0, 2.0], [2.0, 4.0], ["a", "a"]), ratio([3.0], [6.0])):
        assert (result["low"], result["high"]) == (None, None)
    assert ratio([1.0, 2.0], [2.0, 4.0], ["a", "a"])["estimate"] == 0.5
    assert jackknifed_share(0.5, [0.4], 7) == {"estimate": 0.5, "low": None, "high": None, "n": 7}


def test_resamples_are_cut_into_parts_that_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7 * 900)
    statistics._resamples.cache_clear()
    drawn = statistics._resampled_sums(np.arange(7.0))
    assert len(statistics._resampled_sums(np.ones(7))) == len(drawn) >= statistics.RESAMPLES
    assert np.all(statistics._resampled_sums(np.ones(7)) == 7)
    assert abs(drawn.mean() - 21) < 4 * drawn.std() / math.sqrt(len(drawn))
    assert drawn.std() == pytest.approx(math.sqrt(7 * 4), rel=0.05)  # the numbers 0 to 6 have variance 4
    assert statistics._resamples.cache_info().currsize > 1
    statistics._resamples.cache_clear()


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_the_jackknife_of_a_mean_is_students_interval(hits: list[bool]) -> None:
    total, count = sum(hits), len(hits)
    result = jackknifed_share(total / count, [(total - hit) / (count - 1) for hit in hits], count)
    expected = mean(hits)
    assert result["low"] == pytest.approx(max(0.0, expected["low"]), abs=1e-9)
    assert result["high"] == pytest.approx(min(1.0, expected["high"]), abs=1e-9)


def test_the_rate_at_equal_length_is_halfway_between_those_of_the_longer_and_the_shorter() -> None:
    """Where completions are longer or shorter by one length, the regression has a closed form on the logit scale."""
    longer, shorter = [True] * 30 + [False] * 10, [True] * 8 + [False] * 12
    result = length_controlled(longer + shorter, [5] * 40 + [-5] * 20)
    theta = (math.log(30 / 10) + math.log(8 / 12)) / 2
    error = math.sqrt((1 / 30 + 1 / 10 + 1 / 8 + 1 / 12) / 4 * 60 / 59)
    ends = [1 / (1 + math.exp(-(theta + sign * Z * error))) for sign in (-1, 0, 1)]
    assert [result["low"], result["estimate"], result["high"]] == pytest.approx(ends, abs=1e-6)
    assert result["n"] == 60


def test_repeating_every_value_within_its_prompt_leaves_the_rate_at_equal_length_as_it_is() -> None:
    rng = np.random.default_rng(5)
    won, extra = rng.random(50) < 0.4, rng.normal(size=50)
    once = length_controlled(won, extra)
    thrice = length_controlled(np.repeat(won, 3), np.repeat(extra, 3), np.repeat(np.arange(50), 3))
    assert thrice == pytest.approx(once | {"n": 150}, rel=1e-5)
    assert length_controlled(won, extra, ["a"] * 50)["low"] is None


@pytest.mark.parametrize(
    ("wins", "extra"),
    [
        ([True, False, True, False], [0, 0, 0, 0]),
        ([True, False, True, False], [1, 2, 3, 4]),
        ([True, False, True, False], [-1, -2, -3, -4]),
        ([True, True, True, True], [-1, 0, 1, 2]),
        ([False, False, False, False], [-1, 0, 1, 2]),
        ([True, True, False, False], [-2, -1, 0, 1]),
        ([False, False, True, True], [-2, 0, 0, 1]),
        ([True, True, False, False], [-2, 0, 0, 1]),
        ([True], [0]),
    ],
)
def test_a_rate_at_equal_length_that_the_data_do_not_identify_is_none(wins: list[bool], extra: list[float]) -> None:
    assert length_controlled(wins, extra) is None


def test_a_rate_at_equal_length_whose_error_rounding_decides_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    won, extra = [True, False, False, True], [0, 1, -1, 2]
    assert length_controlled(won, extra) is not None
    for parameters in ([1000.0, 0.0], [math.nan, math.nan]):  # saturated; not converged
        monkeypatch.setattr(statistics, "_logistic_fit", lambda features, wins, ends=parameters: np.array(ends))
        assert length_controlled(won, extra) is None

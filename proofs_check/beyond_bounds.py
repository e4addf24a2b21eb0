"""Beyond the paper: (12) is bounded by the spread and by the divergence itself, and its steps converge (T6, T7)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy as np

import brain_core
from proofs_check.beyond_divergence import (
    COEFFICIENT_MUTANTS,
    Coefficients,
    brain_coefficients,
    by_completion,
    dpg_coefficients,
    gdcpp_coefficients,
    show_infimum_without_minimum,
)
from proofs_check.beyond_kl import mean_over_draws
from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, ordered_groups
from proofs_check.exact import LogNumber, log
from proofs_check.groups import ZERO, at, combined, divergence, logit_score, mean_vector, require_proved
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

TESTS = "tests/proofs_check/test_beyond.py"
IDENTITIES = "tests/brain_core/test_identities.py"

TINY = Fraction(1, 10**30)
WIDTH = 1e-50
"""How wide the interval of an equality may be."""

BITS = 200
"""Precision of the intervals that certify inequalities between products of logarithms."""


class Pair(NamedTuple):
    """The ratios of a group."""

    alpha: Vector
    beta: Vector

    @property
    def odds(self) -> Fraction:
        """e^Δ: the largest α/β by the smallest."""
        quotients = [a / b for a, b in zip(self.alpha, self.beta, strict=True)]
        return max(quotients) / min(quotients)

    @property
    def l1(self) -> Fraction:
        """Σ|α̂ − β̂|."""
        return sum((abs(c) for c in brain_coefficients(*self)), start=Fraction(0))

    @property
    def divergence(self) -> LogNumber:
        """D(Y)."""
        return divergence(*self)

    @property
    def reversed_divergence(self) -> LogNumber:
        """KL(β̂ ‖ α̂)."""
        return divergence(self.beta, self.alpha)


EXTREME = (
    Pair((Fraction(19, 20), Fraction(1, 20)), (TINY, 1 - TINY)),
    Pair((1 - TINY, TINY), (TINY, 1 - TINY)),
    Pair((Fraction(1), Fraction(1), Fraction(1)), (TINY, Fraction(1), 1 / TINY)),
)

FARTHEST = Pair((Fraction(99, 100), Fraction(1, 100)), (TINY**2, 1 - TINY**2))
"""Where D(Y) alone is 0.9577 of Δ tanh(Δ/4); it tends to 1 as Δ → ∞."""


def problems(count: int, seed: int) -> Iterator[Toy]:
    """The generic instance, then random ones."""
    yield GENERIC
    yield from random_toys(count, seed=seed)


def size_for(problem: Toy) -> int:
    """The group size that a problem is enumerated with."""
    return 3 if problem is GENERIC else 2


@cache
def pairs() -> tuple[Pair, ...]:
    """The ratios of all groups of the problems, and extreme ones."""
    found = [
        ratios_of(problem, group)
        for problem in problems(20, seed=6)
        for group in itertools.combinations_with_replacement(range(problem.size), size_for(problem))
    ]
    return (*found, *EXTREME, FARTHEST)


def ratios_of(problem: Toy, group: Group) -> Pair:
    """The ratios of a problem's group."""
    return Pair(tuple(at(problem.target_ratio, group)), tuple(at(problem.policy_ratio, group)))


def mirrored(root: Fraction) -> Pair:
    """α̂ = (r, 1)/(1 + r) and β̂ = (1, r)/(1 + r): Δ = 2 log r, Σ|α̂ − β̂| = 2(r − 1)/(r + 1) = 2 tanh(Δ/4)."""
    return Pair((root, Fraction(1)), (Fraction(1), root))


def square(vector: Sequence[Fraction]) -> Fraction:
    """Squared length."""
    return sum((x * x for x in vector), start=Fraction(0))


def estimate(problem: Toy, group: Group, coefficients: Coefficients = brain_coefficients) -> Vector:
    """ĝ of a group in the logits."""
    weights = coefficients(at(problem.target_ratio, group), at(problem.policy_ratio, group))
    return combined(weights, [logit_score(problem.policy, y) for y in group])


def largest_score(problem: Toy) -> Fraction:
    """max‖h‖² over completions."""
    return max(square(logit_score(problem.policy, y)) for y in range(problem.size))


def least_odds(l1: Fraction) -> Fraction:
    """e^Δ where 2 tanh(Δ/4) = Σ|α̂ − β̂|: ((2 + l)/(2 − l))²."""
    return ((2 + l1) / (2 - l1)) ** 2


def show_unbounded_weights() -> None:
    """α and α − β, the weights of DPG and GDC++, exceed any bound where the proposal is small; Σ|α̂ − β̂| < 2."""
    problem = GENERIC._replace(proposal=(TINY, *((1 - TINY) / 3,) * 3))
    alpha, beta = problem.target_ratio[0], problem.policy_ratio[0]
    require(alpha > 10**29 and abs(alpha - beta) > 10**28, "raw weights are unbounded")
    group, original = ratios_of(problem, (0, 1)), ratios_of(GENERIC, (0, 1))
    require_equal(group.odds, original.odds, "e^Δ, which the proposal does not move")
    require(group.l1 <= 2, "Σ|α̂ − β̂|")


@claim(
    "T6",
    "‖ĝ‖ ≤ Σ|α̂ − β̂| max‖h‖ ≤ 2 tanh(Δ/4) max‖h‖, sharp; Δ ≤ osc log(π/q), whatever the proposal",
    source="docs/theory.md T6",
    method="exact: e^Δ and Σ|α̂ − β̂| are rational",
    case="K=4, n=3; 20 random problems, n=2; mass ratios to 1e60",
    subject=(Fraction(1), least_odds),
    mutants={
        "tanh(Δ/8)": (Fraction(1), lambda l1: least_odds(l1) ** 2),
        "tanh(Δ/2)": (Fraction(1), lambda l1: (2 + l1) / (2 - l1)),
        "half the bound": (Fraction(1), lambda l1: ((1 + l1) / (1 - l1)) ** 2 if l1 < 1 else 1 / TINY**9),
        "twice the bound": (Fraction(1), lambda l1: ((4 + l1) / (4 - l1)) ** 2),
        "99 % of Σ|α̂ − β̂|": (Fraction(99, 100), least_odds),
        "twice Σ|α̂ − β̂|": (Fraction(2), least_odds),
    },
    counterexamples={"self-normalised weights": show_unbounded_weights},
    assumptions=("self-normalised weights",),
    code=("brain_core.brain_coefficients", "brain_core.total_variation"),
    tests=(
        f"{IDENTITIES}::test_total_variation_is_bounded_by_the_spread_and_by_the_divergence",
        f"{TESTS}::test_estimate_is_bounded_by_the_spread_of_the_log_ratios",
    ),
)
def t6(bounds: tuple[Fraction, Callable[[Fraction], Fraction]]) -> None:
    """Where π or q is 0 on the group, Δ = ∞ and the bound is 2 max‖h‖; fair policies of two attain both bounds."""
    factor, odds_of = bounds
    for pair in pairs():
        require(pair.odds >= odds_of(pair.l1), f"bound on {pair}")
    for root in (Fraction(1), Fraction(5, 4), Fraction(3), Fraction(1000)):
        pair = mirrored(root)
        require_equal(pair.odds, odds_of(pair.l1), f"sharpness at e^(Δ/2) = {root}")
    fair = Toy(proportional(3, 1), (Fraction(1), Fraction(1)), proportional(1, 1), proportional(1, 1))
    for problem in (fair, *problems(20, seed=6)):
        whole = Pair(problem.posterior, problem.policy)
        for group in ordered_groups(problem.size, size_for(problem)):
            pair = ratios_of(problem, group)
            length, bound = square(estimate(problem, group)), (factor * pair.l1) ** 2 * largest_score(problem)
            require(length <= bound, f"‖ĝ‖ on {group}")
            require(problem is not fair or length == bound, "the fair policy attains the first bound")
            require(pair.odds <= whole.odds, "Δ exceeds osc log(π/q)")


@claim(
    "T6a",
    "TV(α̂, β̂) ≤ tanh(Δ/4) for every n: with S = {α̂ > β̂}, the odds of S differ by at most e^Δ",
    source="docs/theory.md T6",
    method="z3: all real a = α̂(S), b = β̂(S), r = e^(Δ/2)",
    case="every n",
    subject=lambda a, b, r: (a - b) * (r + 1) <= r - 1,
    mutants={
        "half of it": lambda a, b, r: 2 * (a - b) * (r + 1) <= r - 1,
        "r + 2 for r + 1": lambda a, b, r: (a - b) * (r + 2) <= r - 1,
    },
    code=("brain_core.total_variation",),
)
def t6a(holds: Callable[[Any, Any, Any], Any]) -> None:
    """Sums of quotients lie between their extremes, so odds(a)/odds(b) ≤ r², which gives the inequality."""
    import z3

    a, b, c, d, low, high, r = z3.Reals("a b c d low high r")
    inside = [a > 0, a < 1, b > 0, b < 1, r >= 1]
    sums = [a > 0, b > 0, c > 0, d > 0, low > 0, low * b <= a, a <= high * b, low * d <= c, c <= high * d]
    require_proved("sums keep the range of quotients", *sums, z3.Or(a + c > high * (b + d), a + c < low * (b + d)))
    ranges = [low > 0, a <= high * b, 1 - a >= low * (1 - b), high <= r * r * low]
    require_proved("odds", *inside, *ranges, a * (1 - b) > r * r * b * (1 - a))
    require_proved("bound", *inside, a * (1 - b) <= r * r * b * (1 - a), z3.Not(holds(a, b, r)))


SMALL_PAIR = Pair((Fraction(501, 1000), Fraction(499, 1000)), (Fraction(1, 2), Fraction(1, 2)))
"""Δ is about 0.004 and D(Y) about 2e-6: where the quadratic bounds are sharp."""


def show_dpg_noise_at_the_target() -> None:
    """DPG at q = π on the generic instance, n = 2: E‖g‖² = 0.447 while D_2 = 0."""
    problem = GENERIC._replace(policy=GENERIC.posterior)
    noise = mean_over_groups(problem.proposal, 2, lambda g: square(estimate(problem, g, dpg_coefficients)))
    require(Fraction(447, 1000) < noise < Fraction(448, 1000), "DPG's second moment is 0.447")


CLOSE = Fraction(9999, 10000)
"""The part of a sharp bound that must be reached near the optimum."""


def require_tight(found: Any, bound: Any, what: str) -> None:
    """Raise Refuted unless `found` lies below its bound by at most one part in 10,000 of it."""
    require(bound * CLOSE <= found <= bound, f"{what}: {found} does not nearly attain {bound}")


@claim(
    "T6b",
    "Σ(α̂ − β̂)² ≤ D(Y) and (Σ|α̂ − β̂|)² ≤ 2 D(Y), sharp; so E‖ĝ‖² ≤ 2 D_n max‖h‖², for any proposal",
    source="docs/theory.md T6",
    method="exact: signs certified, sums over ordered groups",
    case="K=4, n=3; 20 random problems, n=2; mass ratios to 1e60",
    subject=(Fraction(1), Fraction(2)),
    mutants={
        "squares ≤ 0.99 D": (Fraction(99, 100), Fraction(2)),
        "l1 squared ≤ 1.99 D": (Fraction(1), Fraction(199, 100)),
        "squares ≤ ½ D": (Fraction(1, 2), Fraction(2)),
        "l1 squared ≤ D": (Fraction(1), Fraction(1)),
        "squares ≤ 2 D": (Fraction(2), Fraction(2)),
        "l1 squared ≤ 4 D": (Fraction(1), Fraction(4)),
    },
    counterexamples={"with the baseline β̂, for noise that dies": show_dpg_noise_at_the_target},
    assumptions=("with the baseline β̂, for noise that dies",),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl"),
    tests=(
        f"{IDENTITIES}::test_squared_coefficients_are_bounded_by_the_divergence",
        f"{TESTS}::test_estimate_is_bounded_by_the_divergence",
    ),
)
def t6b(factors: tuple[Fraction, Fraction]) -> None:
    """Copies of a completion are added up first; the pair near the optimum shows both constants to be the best."""
    of_squares, of_l1 = factors
    for pair in (SMALL_PAIR, *pairs()):
        require(pair.divergence * of_l1 >= pair.l1**2, f"Pinsker on {pair}")
    require_tight(square(brain_coefficients(*SMALL_PAIR)), SMALL_PAIR.divergence * of_squares, "squares, small pair")
    require_tight(SMALL_PAIR.l1**2, SMALL_PAIR.divergence * of_l1, "Pinsker on the small pair")
    for problem in problems(20, seed=6):
        group_size = size_for(problem)
        for group in itertools.combinations_with_replacement(range(problem.size), group_size):
            pair = ratios_of(problem, group)
            weights = by_completion(brain_coefficients(*pair), group, problem.size)
            require(square(weights) <= pair.divergence * of_squares, f"squares of {group}")
        noise = mean_over_groups(problem.proposal, group_size, lambda g, p=problem: square(estimate(p, g)))  # type: ignore[misc]
        bound = mean_over_draws(problem, group_size, divergence) * (of_l1 * largest_score(problem))
        require(bound >= noise, "E‖ĝ‖²")


def interval(number: LogNumber) -> Any:
    """An interval that holds the number, `BITS` bits wide or so."""
    total = mpmath.iv.mpf(number.rational.numerator) / number.rational.denominator
    for prime, coefficient in number.logs:
        total += mpmath.iv.mpf(coefficient.numerator) / coefficient.denominator * mpmath.iv.log(prime)
    return total


def require_certified(smaller: Any, larger: Any, what: str) -> None:
    """Raise Refuted unless the first interval lies below the second."""
    require(smaller.b <= larger.a, f"{what}: {smaller} is not certainly below {larger}")


def show_bounds_cross() -> None:
    """For e^Δ = 9 Hoeffding's bound is the smaller one, for e^Δ = 10⁶ the other."""
    for odds, is_hoeffding in ((9, True), (10**6, False)):
        spread = interval(log(odds))
        smaller = hoeffding(spread).b < jeffreys(spread).a
        require(smaller is is_hoeffding, f"which bound is smaller at e^Δ = {odds}")


def hoeffding(spread: Any) -> Any:
    """Δ²/8 of an interval."""
    return spread**2 / 8


def jeffreys(spread: Any) -> Any:
    """Δ tanh(Δ/4) of an interval."""
    root = mpmath.iv.exp(spread / 2)
    return spread * (root - 1) / (root + 1)


@claim(
    "T6c",
    "D(Y) ≤ Δ²/8, sharp as Δ → 0, and D(Y) ≤ D(Y) + KL(β̂‖α̂) ≤ Δ tanh(Δ/4), sharp for each Δ, for D as Δ → ∞",
    source="docs/theory.md T6",
    method="certified: interval arithmetic of 200 bits",
    case="K=4, n=3; 20 random problems, n=2; mass ratios to 1e60",
    tolerance=WIDTH,
    subject=(hoeffding, jeffreys),
    mutants={
        "Δ²/8.01": (lambda spread: spread**2 / 801 * 100, jeffreys),
        "Δ²/7.99": (lambda spread: spread**2 / 799 * 100, jeffreys),
        "Δ²/16": (lambda spread: spread**2 / 16, jeffreys),
        "Δ²/4": (lambda spread: spread**2 / 4, jeffreys),
        "0.95 Δ tanh(Δ/4)": (hoeffding, lambda spread: jeffreys(spread) * 95 / 100),
        "½ Δ tanh(Δ/4)": (hoeffding, lambda spread: jeffreys(spread) / 2),
        "2 Δ tanh(Δ/4)": (hoeffding, lambda spread: jeffreys(spread) * 2),
        "Δ": (hoeffding, lambda spread: spread),
    },
    counterexamples={"both bounds are needed": show_bounds_cross},
    code=("brain_core.self_normalized_kl",),
    tests=(f"{TESTS}::test_divergence_is_bounded_by_the_spread_of_the_log_ratios",),
)
def t6c(bounds: tuple[Callable[[Any], Any], Callable[[Any], Any]]) -> None:
    """Hoeffding's lemma; and D + KL(β̂‖α̂) ≤ Δ TV, an equality on mirrored pairs. Δ = ∞ where π or q is 0."""
    before, mpmath.iv.prec = mpmath.iv.prec, BITS
    try:
        require_bounds(*bounds)
        require_sharp(*bounds)
    finally:
        mpmath.iv.prec = before


def require_bounds(of_divergence: Callable[[Any], Any], of_sum: Callable[[Any], Any]) -> None:
    """Both bounds on every pair."""
    for pair in (SMALL_PAIR, *pairs()):
        if pair.odds == 1:
            require_equal(pair.divergence, 0, "D of a group with Δ = 0")
            continue
        spread, found, reverse = map(interval, (log(pair.odds), pair.divergence, pair.reversed_divergence))
        require_certified(found, of_divergence(spread), f"Hoeffding's bound on {pair}")
        require_certified(found + reverse, of_sum(spread) + WIDTH, f"the other bound on {pair}")


def require_sharp(of_divergence: Callable[[Any], Any], of_sum: Callable[[Any], Any]) -> None:
    """Both bounds are nearly attained: by the small pair; by mirrored pairs, and by D(Y) alone on the farthest one."""
    spread = interval(log(SMALL_PAIR.odds))
    require_certified(of_divergence(spread) * 9999 / 10000, interval(SMALL_PAIR.divergence), "sharpness of Δ²/8")
    for root in (Fraction(5, 4), Fraction(3), Fraction(1000)):
        pair = mirrored(root)
        gap = of_sum(interval(log(pair.odds))) - interval(pair.divergence + pair.reversed_divergence)
        require(gap.a > -WIDTH and gap.b < WIDTH, f"Δ tanh(Δ/4) on the mirrored pair {root}")
    bound = of_sum(interval(log(FARTHEST.odds)))
    require_certified(bound * 95 / 100, interval(FARTHEST.divergence), "sharpness for D(Y) alone")


def noise_of_dpg(problem: Toy, group_size: int) -> Fraction:
    """(E_s[α²‖h‖²] − ‖E_π h‖²)/n."""
    scores = [logit_score(problem.policy, y) for y in range(problem.size)]
    second = sum(
        (t * t / s * square(h) for t, s, h in zip(problem.posterior, problem.proposal, scores, strict=True)),
        start=Fraction(0),
    )
    return (second - square(combined(problem.posterior, scores))) / group_size


def noise(problem: Toy, group_size: int, coefficients: Coefficients) -> Fraction:
    """Trace of the covariance of an estimator in the logits, over all ordered groups."""
    mean = mean_vector(problem.proposal, group_size, lambda g: estimate(problem, g, coefficients))
    second = mean_over_groups(problem.proposal, group_size, lambda g: square(estimate(problem, g, coefficients)))
    assert isinstance(second, Fraction)
    return second - square(mean)


def show_noise_of_a_truncated_proposal() -> None:
    """π = q = (1, 1, 3)/5, q' = (½, ½, 0): DPG's variance at n = 1 is 2/25; Σ π²/q' ‖h‖² on the rest is 104/625."""
    flat, even = (Fraction(1),) * 3, proportional(1, 1, 0)
    problem = Toy(proportional(1, 1, 3), flat, proportional(1, 1, 3), even)
    require_equal(noise(problem, 1, dpg_coefficients), Fraction(2, 25), "DPG's variance")
    squares = [2 * t * t * square(logit_score(problem.policy, y)) for y, t in enumerate(problem.posterior[:2])]
    require_equal(sum(squares), Fraction(104, 625), "the formula where the proposal is positive")


def largest_estimate(problem: Toy, coefficients: Coefficients) -> Fraction:
    """max ‖ĝ‖² over ordered pairs."""
    return max(square(estimate(problem, g, coefficients)) for g in ordered_groups(problem.size, 2))


@claim(
    "T6d",
    "At q = π DPG keeps the variance Var_s(αh)/n > 0; BRAIn and GDC++ have none, and of these only BRAIn is bounded",
    source="docs/theory.md T6",
    method="exact: all ordered groups",
    case="K=4, n=1…3; 10 random problems, n=2",
    subject=noise_of_dpg,
    mutants={
        "divided by n²": lambda problem, n: noise_of_dpg(problem, n) / n,
        "without 1/n": lambda problem, n: noise_of_dpg(problem, n) * n,
        "second moment": lambda problem, n: (
            noise_of_dpg(problem, n)
            + square(combined(problem.posterior, [logit_score(problem.policy, y) for y in range(problem.size)])) / n
        ),
        "none": lambda problem, n: Fraction(0),
    },
    counterexamples={"supp π ⊆ supp q'": show_noise_of_a_truncated_proposal},
    assumptions=("supp π ⊆ supp q'",),
    code=("brain_core.dpg_coefficients", "brain_core.gdcpp_coefficients", "brain_core.brain_coefficients"),
)
def t6d(variance: Callable[[Toy, int], Fraction]) -> None:
    """The formula on and off the target, all three estimators at the target, and their largest steps off it."""
    for problem, n in ((GENERIC, 1), (GENERIC, 2), (GENERIC, 3), *((toy, 2) for toy in random_toys(10, seed=61))):
        on_target = problem._replace(policy=problem.posterior)
        for case in (problem, on_target):
            require_equal(variance(case, n), noise(case, n, dpg_coefficients), f"DPG's variance at n={n}")
        require(noise(on_target, n, dpg_coefficients) > 0, "DPG is noiseless at the target")
        for coefficients in (gdcpp_coefficients, brain_coefficients):
            require_equal(noise(on_target, n, coefficients), 0, "variance at the target")
    rare = GENERIC._replace(proposal=(TINY, *((1 - TINY) / 3,) * 3))
    for coefficients in (dpg_coefficients, gdcpp_coefficients):
        require(largest_estimate(rare, coefficients) > 10**50, "a rare draw is a huge step")
    require(largest_estimate(rare, brain_coefficients) <= 4 * largest_score(rare), "BRAIn is bounded")


Gain = Callable[[Fraction, LogNumber, LogNumber], LogNumber]
"""From γ, D(Y) and KL(β̂ ‖ α̂) to what the squared distance must lose."""


class Step(NamedTuple):
    """The estimator that steps, and by how much the squared distance must shrink."""

    coefficients: Coefficients
    gain: Gain


def exact_gain(gamma: Fraction, forward: LogNumber, reverse: LogNumber) -> LogNumber:
    """2γ D(Y) + γ(2 − γ) KL(β̂ ‖ α̂)."""
    return 2 * gamma * forward + gamma * (2 - gamma) * reverse


FAR = tuple(map(Fraction, (10**12, 1, 1, 30)))
GAMMAS = (Fraction(1, 100), Fraction(1), Fraction(2), Fraction(3))


class Update(NamedTuple):
    """A group with its ratios and the policy it updates; the ratios' reference is anything."""

    problem: Toy
    group: Group
    alpha: Vector
    beta: Vector


@cache
def updates() -> tuple[Update, ...]:
    """Groups of 2 to 4 with duplicates, from policies near and far, under true and misreported proposals."""
    found = []
    policies = (GENERIC.policy, proportional(*FAR))
    sources = [GENERIC._replace(policy=policy) for policy in policies] + list(random_toys(6, seed=7))
    for problem in sources:
        for reference in (problem.proposal, tuple(map(Fraction, (2, 7, 1, 8)))[: problem.size]):
            alpha, beta = ratio(problem.posterior, reference), ratio(problem.policy, reference)
            found += [
                Update(problem, group, tuple(at(alpha, group)), tuple(at(beta, group)))
                for group in itertools.islice(_groups(problem.size), 30)
            ]
    return tuple(found)


def _groups(size: int) -> Iterator[Group]:
    """Multisets of 2, of 3 and of 4."""
    for n in (2, 3, 4):
        yield from itertools.combinations_with_replacement(range(size), n)


def squared_change(update: Update, step: Vector, gamma: Fraction) -> LogNumber:
    """‖z + γĝ − z*‖² − ‖z − z*‖² = 2γ⟨ĝ, log(q/π)⟩ + γ²‖ĝ‖²: only one logarithm deep, hence exact; Σ ĝ = 0."""
    problem = update.problem
    offset = (log(q / t) for q, t in zip(problem.policy, problem.posterior, strict=True))
    inner = sum((g * distance for g, distance in zip(step, offset, strict=True)), start=ZERO)
    return 2 * gamma * inner + gamma**2 * square(step)


def show_other_target_per_group() -> None:
    """A proposal misreported in α alone moves a policy that is π: ‖z + ĝ − z*‖² = 2(2/3 − 1/2)² > 0 for α ∝ (2, 1)."""
    even = proportional(1, 1)
    problem = Toy(even, (Fraction(1), Fraction(1)), even, even)
    update = Update(problem, (0, 1), (Fraction(2), Fraction(1)), (Fraction(1), Fraction(1)))
    step = combined(brain_coefficients(update.alpha, update.beta), [logit_score(even, y) for y in (0, 1)])
    require_equal(squared_change(update, step, Fraction(1)), Fraction(1, 18), "change of the squared distance")


def show_target_out_of_reach() -> None:
    """q ∝ (θ, 1, 1/θ): one parameter, t = (1, 0, −1); π = (2, 1, 2)/5 has θ* = 1 by symmetry, yet at θ = 1 the pair
    (1, 2) alone has ĝ = 1/6 ≠ 0: the groups share no zero, and no step that is constant can settle."""
    coefficients = brain_coefficients((Fraction(2), Fraction(1)), (Fraction(1), Fraction(1)))
    require_equal(combined(coefficients, [(Fraction(1),), (Fraction(0),)]), (Fraction(1, 6),), "ĝ at θ*")


def show_steep_logits() -> None:
    """q ∝ (e^{10θ}, 1) at (2, 1)/3, π = (½, ½), γ = 1: θ − θ* = log 2/10, ĝ = −10/6; the square grows by 25/9 − …."""
    policy, even = proportional(2, 1), proportional(1, 1)
    slope = 10 * combined(brain_coefficients(even, policy), [logit_score(policy, y) for y in (0, 1)])[0]
    require_equal(slope, Fraction(-10, 6), "ĝ in θ")
    change = 2 * slope * log(2) / 10 + slope**2
    require_equal(change, Fraction(25, 9) - log(2) / 3, "change of the squared distance in θ")
    require(change > 0, "the step leads nearer")


@claim(
    "T7",
    "Tabular softmax, any group: ‖z + γĝ − z*‖² ≤ ‖z − z*‖² − 2γ D(Y) for 0 < γ ≤ 2; z* = log π",
    source="docs/theory.md T7",
    method="exact: the squares cancel, signs certified",
    case="K ≤ 4, groups of 2 to 4, 2 references each, γ = 0.01, 1, 2, 3",
    subject=Step(brain_coefficients, exact_gain),
    mutants={
        "2.01 γ D": Step(
            brain_coefficients,
            lambda gamma, forward, reverse: exact_gain(gamma, forward, reverse) + gamma * forward / 100,
        ),
        "γ(2.01 − γ) KL(β̂ ‖ α̂)": Step(
            brain_coefficients,
            lambda gamma, forward, reverse: exact_gain(gamma, forward, reverse) + gamma * reverse / 100,
        ),
        "KL(β̂ ‖ α̂) not lost beyond γ = 2": Step(
            brain_coefficients,
            lambda gamma, forward, reverse: 2 * gamma * forward + max(gamma * (2 - gamma), Fraction(0)) * reverse,
        ),
        "2γ D alone": Step(brain_coefficients, lambda gamma, forward, reverse: 2 * gamma * forward),
        "γ(2 − γ) D alone": Step(brain_coefficients, lambda gamma, forward, reverse: gamma * (2 - gamma) * forward),
        "nothing": Step(brain_coefficients, lambda gamma, forward, reverse: ZERO),
        **{name: Step(mutant, exact_gain) for name, mutant in COEFFICIENT_MUTANTS.items()},
    },
    counterexamples={
        "tabular softmax policy": show_steep_logits,
        "π within the policy's reach": show_target_out_of_reach,
        "π > 0": show_infimum_without_minimum,
        "α and β under the same reference, any": show_other_target_per_group,
    },
    assumptions=(
        "tabular softmax policy",
        "π within the policy's reach",
        "π > 0",
        "α and β under the same reference, any",
    ),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl"),
    tests=(f"{TESTS}::test_a_step_of_two_or_less_never_leads_away_from_the_target",),
)
def t7(rule: Step) -> None:
    """The stronger form for every γ > 0: the squared distance loses 2γ D(Y) + γ(2 − γ) KL(β̂ ‖ α̂).

    In logits ĝ is α̂ − β̂ by completion, so ⟨ĝ, z − z*⟩ = Σ(α̂ − β̂) log(β̂/α̂) = −D(Y) − KL(β̂ ‖ α̂) exactly, and
    ‖ĝ‖² ≤ KL(β̂ ‖ α̂), T6b with the roles exchanged: the change 2γ⟨ĝ, z − z*⟩ + γ²‖ĝ‖² is at most
    −2γ D(Y) − γ(2 − γ) KL(β̂ ‖ α̂). For γ ≤ 2 that is at most −2γ D(Y), hence also −γ(2 − γ) D(Y). The pair near the
    target attains it to 1e-4, so no smaller loss is claimed.
    """
    near = near_pair()
    for update in (near, *updates()):
        step = step_of(update, rule.coefficients)
        forward, reverse = divergence(update.alpha, update.beta), divergence(update.beta, update.alpha)
        require(reverse >= 0, f"for γ ≤ 2 the loss is at least 2γ D(Y) on {update.group}")
        for gamma in GAMMAS:
            change, gain = squared_change(update, step, gamma), rule.gain(gamma, forward, reverse)
            require(change <= -gain, f"step γ = {gamma} on {update.group} of {update.problem}")
            if update is near:
                require_tight(gain, -change, f"loss on the near pair at γ = {gamma}")


def step_of(update: Update, coefficients: Coefficients = brain_coefficients) -> Vector:
    """ĝ of an update in the logits."""
    scores = [logit_score(update.problem.policy, y) for y in update.group]
    return combined(coefficients(update.alpha, update.beta), scores)


def near_pair() -> Update:
    """π = (½, ½), q = (501, 499)/1000, the group {1, 2}: where the steps are the least stable."""
    even = proportional(1, 1)
    problem = Toy(even, (Fraction(1), Fraction(1)), proportional(501, 499), even)
    return Update(problem, (0, 1), at_even(problem.posterior), at_even(problem.policy))


def at_even(vector: Vector) -> Vector:
    """Ratios to the uniform proposal on two completions."""
    return tuple(2 * x for x in vector)


def show_expansion() -> None:
    """With γ = 4.01 the step on the near pair leads away from π."""
    update = near_pair()
    require(squared_change(update, step_of(update), Fraction(401, 100)) > 0, "the distance shrinks at γ = 4.01")


@claim(
    "T7a",
    "Steps up to γ = 4 never lead away from π: the squared distance shrinks by γ(4 − γ)‖ĝ‖² at least; 4 is sharp",
    source="docs/theory.md T7",
    method="exact: signs certified",
    case="K ≤ 4, groups of 2 to 4, 2 references each, γ = 0.01, 1, 2, 3",
    subject=Fraction(4),
    mutants={"5": Fraction(5), "4.01": Fraction(401, 100), "3.9": Fraction(39, 10), "2": Fraction(2), "0": Fraction(0)},
    counterexamples={
        "γ ≤ 4": show_expansion,
        "tabular softmax policy": show_steep_logits,
        "π > 0": show_infimum_without_minimum,
    },
    assumptions=("γ ≤ 4", "tabular softmax policy", "π > 0"),
    code=("brain_core.brain_coefficients",),
)
def t7a(largest: Fraction) -> None:
    """The gradient of a convex ½-smooth function is 2-cocoercive; a step longer by 0.01 leads away on the near pair."""
    near = near_pair()
    longer = squared_change(near, step_of(near), largest + Fraction(1, 100))
    require(longer > 0, f"the distance shrinks at γ = {largest} + 0.01")
    for update in (near, *updates()):
        step = step_of(update)
        for gamma in GAMMAS:
            gain = gamma * (largest - gamma) * square(step)
            require(squared_change(update, step, gamma) <= -gain, f"step γ = {gamma} on {update.group}")


RUNS, SIZE, GROUP_SIZE, STEPS = 20, 6, 8, 600


def hostile_groups(draw: np.random.Generator) -> np.ndarray:
    """Groups (RUNS, GROUP_SIZE) from proposals that change at random each step and miss completions at will."""
    proposal = draw.dirichlet(np.full(SIZE, 0.5))
    return draw.choice(SIZE, size=(RUNS, GROUP_SIZE), p=proposal)


def uniform_groups(draw: np.random.Generator) -> np.ndarray:
    """Groups (RUNS, GROUP_SIZE) from the uniform proposal."""
    return draw.integers(SIZE, size=(RUNS, GROUP_SIZE))


@claim(
    "T7b",
    "With a constant step γ ≤ 2 and any groups, Σ_t D(Y_t) ≤ ‖z_0 − z*‖²/(2γ); with a uniform proposal q → π",
    source="docs/theory.md T7",
    method="float64 runs, fixed seeds; the bound is T7 summed",
    case="K=6, n=8, 20 runs of 600 steps, γ = ½, 1, 2; a new reference at each step",
    tolerance=1e-9,
    subject=brain_core.brain_coefficients,
    mutants={
        "SNIS, no baseline": lambda target, policy: brain_core.snis_coefficients(target),
        "DPG": lambda target, policy: brain_core.dpg_coefficients(target, log_normalizer=0.0),
        "weighted": lambda target, policy: brain_core.weighted_brain_coefficients(target, policy, log_normalizer=0.0),
        "half": lambda target, policy: brain_core.brain_coefficients(target, policy) / 2,
        "α̂ − 1/n": lambda target, policy: brain_core.snis_coefficients(target) - 1 / GROUP_SIZE,
        "descent": lambda target, policy: -brain_core.brain_coefficients(target, policy),
    },
    counterexamples={"tabular softmax policy": show_steep_logits, "π > 0": show_infimum_without_minimum},
    assumptions=("tabular softmax policy", "π > 0"),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl", "toy.CategoricalProblem"),
)
def t7b(coefficients: Callable[[Any, Any], Any]) -> None:
    """The distance never grows, its loss pays for every divergence; the uniform proposal ends at π to 1e-9 nats."""
    for groups in (uniform_groups, hostile_groups):
        for gamma in (0.5, 1.0, 2.0):
            total, start, log_policy, log_target = run(coefficients, groups, gamma)
            bound = start / (2 * gamma)
            require(bool(np.all(total <= bound + 1e-9)), f"Σ D(Y_t) exceeds its bound at γ = {gamma}")
            if groups is uniform_groups and gamma >= 1:
                left = (np.exp(log_target) * (log_target - log_policy)).sum(axis=-1)
                require(float(left.max()) < 1e-9, f"KL after {STEPS} steps is {left.max():.1e} at γ = {gamma}")


def run(
    coefficients: Callable[[Any, Any], Any], groups: Callable[[np.random.Generator], np.ndarray], gamma: float
) -> tuple[Any, Any, Any, Any]:
    """Σ D(Y_t), ‖z_0 − z*‖² (both (RUNS,)), and the last log q and log π (RUNS, K); Refuted if the distance grows."""
    draw = np.random.default_rng(7)
    stale = np.random.default_rng(8)
    target, logits = (_log_softmax(draw.normal(size=(RUNS, SIZE))) for _ in range(2))
    total, distance = np.zeros(RUNS), ((logits - target) ** 2).sum(axis=-1)
    start = distance
    for _ in range(STEPS):
        chosen, log_policy = groups(draw), _log_softmax(logits)
        reference = _log_softmax(3 * stale.normal(size=(RUNS, SIZE)))
        alpha, beta = (np.take_along_axis(v - reference, chosen, axis=-1) for v in (target, log_policy))
        weights = coefficients(alpha, beta)
        total = total + brain_core.self_normalized_kl(alpha, beta)
        step = np.stack([np.where(chosen == k, weights, 0).sum(axis=-1) for k in range(SIZE)], axis=-1)
        logits = logits + gamma * (step - np.exp(log_policy) * weights.sum(axis=-1, keepdims=True))
        before, distance = distance, ((logits - target) ** 2).sum(axis=-1)
        require(bool(np.all(distance <= before + 1e-9)), "a step leads away from the target")
    return total, start, _log_softmax(logits), target


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """log softmax along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized

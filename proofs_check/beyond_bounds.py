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
from proofs_check.beyond_divergence import COEFFICIENT_MUTANTS, Coefficients, brain_coefficients, by_completion
from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, ordered_groups
from proofs_check.exact import LogNumber, log
from proofs_check.groups import ZERO, at, combined, divergence, logit_score, mean_vector, require_proved
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

TESTS = "tests/proofs_check/test_beyond.py"
IDENTITIES = "tests/brain_core/test_identities.py"

TINY = Fraction(1, 10**30)
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


EXTREME = (
    Pair((Fraction(19, 20), Fraction(1, 20)), (TINY, 1 - TINY)),
    Pair((1 - TINY, TINY), (TINY, 1 - TINY)),
    Pair((Fraction(1), Fraction(1), Fraction(1)), (TINY, Fraction(1), 1 / TINY)),
)


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
        Pair(tuple(at(problem.target_ratio, group)), tuple(at(problem.policy_ratio, group)))
        for problem in problems(20, seed=6)
        for group in itertools.combinations_with_replacement(range(problem.size), size_for(problem))
    ]
    return (*found, *EXTREME)


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
    group = Pair(tuple(at(problem.target_ratio, (0, 1))), tuple(at(problem.policy_ratio, (0, 1))))
    original = Pair(tuple(at(GENERIC.target_ratio, (0, 1))), tuple(at(GENERIC.policy_ratio, (0, 1))))
    require_equal(group.odds, original.odds, "e^Δ, which the proposal does not move")
    require(group.l1 <= 2, "Σ|α̂ − β̂|")


@claim(
    "T6",
    "‖ĝ‖ ≤ Σ|α̂ − β̂| max‖h‖ ≤ 2 tanh(Δ/4) max‖h‖, sharp; Δ ≤ osc log(π/q), whatever the proposal",
    source="docs/theory.md T6",
    method="exact: e^Δ and Σ|α̂ − β̂| are rational",
    case="K=4, n=3; 20 random problems, n=2; mass ratios to 1e60",
    subject=least_odds,
    mutants={
        "tanh(Δ/8)": lambda l1: least_odds(l1) ** 2,
        "tanh(Δ/2)": lambda l1: (2 + l1) / (2 - l1),
        "half the bound": lambda l1: ((1 + l1) / (1 - l1)) ** 2 if l1 < 1 else 1 / TINY**9,
        "twice the bound": lambda l1: ((4 + l1) / (4 - l1)) ** 2,
    },
    counterexamples={"self-normalised weights": show_unbounded_weights},
    assumptions=("self-normalised weights", "π, q > 0 on the group, else Δ = ∞ and the bound is 2 max‖h‖"),
    code=("brain_core.brain_coefficients", "brain_core.total_variation"),
    tests=(f"{IDENTITIES}::test_total_variation_is_bounded_by_the_spread_and_by_the_divergence",
           f"{TESTS}::test_estimate_is_bounded_by_the_spread_of_the_log_ratios"),
)  # fmt: skip
def t6(odds_of: Callable[[Fraction], Fraction]) -> None:
    """e^Δ is at least what Σ|α̂ − β̂| needs, exactly that for mirrored pairs; ĝ itself in the logits."""
    for pair in pairs():
        require(pair.odds >= odds_of(pair.l1), f"bound on {pair}")
    for root in (Fraction(1), Fraction(5, 4), Fraction(3), Fraction(1000)):
        pair = mirrored(root)
        require_equal(pair.odds, odds_of(pair.l1), f"sharpness at e^(Δ/2) = {root}")
    for problem in problems(20, seed=6):
        whole = Pair(problem.posterior, problem.policy)
        for group in ordered_groups(problem.size, size_for(problem)):
            pair = Pair(tuple(at(problem.target_ratio, group)), tuple(at(problem.policy_ratio, group)))
            require(square(estimate(problem, group)) <= pair.l1**2 * largest_score(problem), f"‖ĝ‖ on {group}")
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
    assumptions=("α̂, β̂ > 0 on the group",),
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
    noise = mean_over_groups(
        problem.proposal,
        2,
        lambda g: square(estimate(problem, g, lambda alpha, beta: [a / len(alpha) for a in alpha])),
    )
    require(Fraction(447, 1000) < noise < Fraction(448, 1000), "DPG's second moment is 0.447")


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
    },
    counterexamples={"with the baseline β̂, for noise that dies": show_dpg_noise_at_the_target},
    assumptions=("q > 0 wherever π > 0",),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl"),
    tests=(f"{IDENTITIES}::test_squared_coefficients_are_bounded_by_the_divergence",
           f"{TESTS}::test_estimate_is_bounded_by_the_divergence"),
)  # fmt: skip
def t6b(factors: tuple[Fraction, Fraction]) -> None:
    """Copies of a completion are added up first; the pair near the optimum shows both constants to be the best."""
    of_squares, of_l1 = factors
    for pair in (SMALL_PAIR, *pairs()):
        require(pair.divergence * of_l1 >= pair.l1**2, f"Pinsker on {pair}")
    require(square(brain_coefficients(*SMALL_PAIR)) <= SMALL_PAIR.divergence * of_squares, "squares of the small pair")
    for problem in problems(20, seed=6):
        group_size = size_for(problem)
        for group in itertools.combinations_with_replacement(range(problem.size), group_size):
            weights = brain_coefficients(at(problem.target_ratio, group), at(problem.policy_ratio, group))
            found = divergence(at(problem.target_ratio, group), at(problem.policy_ratio, group))
            require(square(by_completion(weights, group, problem.size)) <= found * of_squares, f"squares of {group}")
        noise = mean_over_groups(problem.proposal, group_size, lambda g, p=problem: square(estimate(p, g)))  # type: ignore[misc]
        bound = mean_divergence(problem, group_size) * (of_l1 * largest_score(problem))
        require(bound >= noise, "E‖ĝ‖²")


def mean_divergence(problem: Toy, group_size: int) -> LogNumber:
    """D_n over ordered groups."""
    columns = problem.target_ratio, problem.policy_ratio
    return LogNumber.of(
        mean_over_groups(problem.proposal, group_size, lambda g: divergence(at(columns[0], g), at(columns[1], g)))
    )


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
        hoeffding, other = spread**2 / 8, spread * quarter_tanh(spread)
        require((hoeffding.b < other.a) is is_hoeffding, f"which bound is smaller at e^Δ = {odds}")


def quarter_tanh(spread: Any) -> Any:
    """tanh(Δ/4) of an interval."""
    root = mpmath.iv.exp(spread / 2)
    return (root - 1) / (root + 1)


@claim(
    "T6c",
    "D(Y) ≤ Δ²/8 and D(Y) ≤ Δ tanh(Δ/4); the constants are sharp, for Δ → 0 and for Δ → ∞",
    source="docs/theory.md T6",
    method="certified: interval arithmetic of 200 bits",
    case="K=4, n=3; 20 random problems, n=2; mass ratios to 1e60",
    subject=(lambda spread: spread**2 / 8, lambda spread: spread * quarter_tanh(spread)),
    mutants={
        "Δ²/8.01": (lambda spread: spread**2 / 801 * 100, lambda spread: spread * quarter_tanh(spread)),
        "0.9 Δ tanh(Δ/4)": (lambda spread: spread**2 / 8, lambda spread: spread * quarter_tanh(spread) * 9 / 10),
        "Δ²/16": (lambda spread: spread**2 / 16, lambda spread: spread * quarter_tanh(spread)),
        "½ Δ tanh(Δ/4), Jeffreys' share": (
            lambda spread: spread**2 / 8,
            lambda spread: spread * quarter_tanh(spread) / 2,
        ),
    },
    counterexamples={"both bounds are needed": show_bounds_cross},
    assumptions=("π, q > 0 on the group",),
    code=("brain_core.self_normalized_kl",),
    tests=(f"{TESTS}::test_divergence_is_bounded_by_the_spread_of_the_log_ratios",),
)
def t6c(bounds: tuple[Callable[[Any], Any], Callable[[Any], Any]]) -> None:
    """Hoeffding's lemma; and D ≤ D + KL(β̂‖α̂) ≤ Δ TV."""
    before, mpmath.iv.prec = mpmath.iv.prec, BITS
    try:
        for pair in (SMALL_PAIR, *pairs()):
            if pair.odds == 1:
                require_equal(pair.divergence, 0, "D of a group with Δ = 0")
                continue
            spread, found = interval(log(pair.odds)), interval(pair.divergence)
            for bound in bounds:
                require_certified(found, bound(spread), f"bound on {pair}")
    finally:
        mpmath.iv.prec = before


def dpg_coefficients(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> list[Fraction]:
    """α/n."""
    return [a / len(alpha) for a in alpha]


def gdcpp_coefficients(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> list[Fraction]:
    """(α − β)/n."""
    return [(a - b) / len(alpha) for a, b in zip(alpha, beta, strict=True)]


def noise_of_dpg(problem: Toy, group_size: int) -> Fraction:
    """(E_s[α²‖h‖²] − ‖E_π h‖²)/n."""
    scores = [logit_score(problem.policy, y) for y in range(problem.size)]
    second = sum((t * t / s * square(h) for t, s, h in zip(problem.posterior, problem.proposal, scores, strict=True)),
                 start=Fraction(0))  # fmt: skip
    return (second - square(combined(problem.posterior, scores))) / group_size


def noise(problem: Toy, group_size: int, coefficients: Coefficients) -> Fraction:
    """Trace of the covariance of an estimator in the logits, over all ordered groups."""
    mean = mean_vector(problem.proposal, group_size, lambda g: estimate(problem, g, coefficients))
    second = mean_over_groups(problem.proposal, group_size, lambda g: square(estimate(problem, g, coefficients)))
    assert isinstance(second, Fraction)
    return second - square(mean)


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
    counterexamples={"self-normalised weights, for a bound": show_unbounded_weights},
    assumptions=("supp π ⊆ supp q'",),
    code=("brain_core.dpg_coefficients", "brain_core.gdcpp_coefficients", "brain_core.brain_coefficients"),
)
def t6d(variance: Callable[[Toy, int], Fraction]) -> None:
    """The formula on and off the target; then all three estimators at the target."""
    for problem, n in ((GENERIC, 1), (GENERIC, 2), (GENERIC, 3), *((toy, 2) for toy in random_toys(10, seed=61))):
        on_target = problem._replace(policy=problem.posterior)
        for case in (problem, on_target):
            require_equal(variance(case, n), noise(case, n, dpg_coefficients), f"DPG's variance at n={n}")
        require(noise(on_target, n, dpg_coefficients) > 0, "DPG is noiseless at the target")
        for coefficients in (gdcpp_coefficients, brain_coefficients):
            require_equal(noise(on_target, n, coefficients), 0, "variance at the target")


class Step(NamedTuple):
    """The estimator that steps, and the factor f(γ) of D(Y) by which the squared distance must shrink."""

    coefficients: Coefficients
    gain: Callable[[Fraction], Fraction]


FAR = tuple(map(Fraction, (10**30, 1, 1, 30)))
GAMMAS = (Fraction(1, 100), Fraction(1), Fraction(2), Fraction(3))
"""The first shows 2 to be the best constant in γ(2 − γ): it is so as γ → 0, far from the target."""


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


def show_shared_logits() -> None:
    """q ∝ (θ, 1, 1/θ): one parameter, t = (1, 0, −1); π = (2, 1, 2)/5 has θ* = 1 by symmetry, yet at θ = 1 the pair
    (1, 2) alone has ĝ = 1/6 ≠ 0: the groups share no zero, and no step that is constant can settle."""
    coefficients = brain_coefficients((Fraction(2), Fraction(1)), (Fraction(1), Fraction(1)))
    require_equal(combined(coefficients, [(Fraction(1),), (Fraction(0),)]), (Fraction(1, 6),), "ĝ at θ*")


@claim(
    "T7",
    "Tabular softmax: for every group, stale or not, ‖z + γĝ − z*‖² ≤ ‖z − z*‖² − γ(2 − γ) D(Y), z* = log π",
    source="docs/theory.md T7",
    method="exact: the squares cancel, signs certified",
    case="K ≤ 4, groups of 2 to 4, 2 references each, γ = 0.01, 1, 2, 3",
    subject=Step(brain_coefficients, lambda gamma: gamma * (2 - gamma)),
    mutants={
        "γ(3 − γ)": Step(brain_coefficients, lambda gamma: gamma * (3 - gamma)),
        "γ(2.1 − γ)": Step(brain_coefficients, lambda gamma: gamma * (Fraction(21, 10) - gamma)),
        "2γ": Step(brain_coefficients, lambda gamma: 2 * gamma),
        **{name: Step(mutant, lambda gamma: gamma * (2 - gamma)) for name, mutant in COEFFICIENT_MUTANTS.items()},
    },
    counterexamples={"the ratios of every group share the target π": show_other_target_per_group,
                     "a full softmax": show_shared_logits},
    assumptions=("tabular softmax policy", "π > 0", "α and β under the same reference, any"),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl"),
    tests=(f"{TESTS}::test_a_step_of_two_or_less_never_leads_away_from_the_target",),
)  # fmt: skip
def t7(rule: Step) -> None:
    """The gain 2γD comes from convexity and the loss γ²D from ½-smoothness, so larger steps satisfy it too."""
    for update in updates():
        scores = [logit_score(update.problem.policy, y) for y in update.group]
        step = combined(rule.coefficients(update.alpha, update.beta), scores)
        found = divergence(update.alpha, update.beta)
        for gamma in GAMMAS:
            change = squared_change(update, step, gamma)
            require(change <= -found * rule.gain(gamma), f"step γ = {gamma} on {update.group} of {update.problem}")


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
    scores = [logit_score(update.problem.policy, y) for y in (0, 1)]
    step = combined(brain_coefficients(update.alpha, update.beta), scores)
    require(squared_change(update, step, Fraction(401, 100)) > 0, "the distance shrinks at γ = 4.01")


@claim(
    "T7a",
    "Steps up to γ = 4 never lead away from π: the squared distance shrinks by γ(4 − γ)‖ĝ‖² at least; 4 is sharp",
    source="docs/theory.md T7",
    method="exact: signs certified",
    case="K ≤ 4, groups of 2 to 4, 2 references each, γ = 0.01, 1, 2, 3",
    subject=Fraction(4),
    mutants={"5": Fraction(5), "4.01": Fraction(401, 100)},
    counterexamples={"γ ≤ 4": show_expansion},
    assumptions=("tabular softmax policy", "π > 0"),
    code=("brain_core.brain_coefficients",),
)
def t7a(largest: Fraction) -> None:
    """The gradient of a convex ½-smooth function is 2-cocoercive."""
    for update in (near_pair(), *updates()):
        scores = [logit_score(update.problem.policy, y) for y in update.group]
        step = combined(brain_coefficients(update.alpha, update.beta), scores)
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
    "With a constant step γ < 2 and any groups, Σ_t D(Y_t) ≤ ‖z_0 − z*‖²/(γ(2 − γ)); with a uniform proposal q → π",
    source="docs/theory.md T7",
    method="float64 runs, fixed seeds; the bound is T7 summed",
    case="K=6, n=8, 20 runs of 600 steps, γ = ½, 1, 3/2",
    tolerance=1e-9,
    subject=brain_core.brain_coefficients,
    mutants={
        "SNIS, no baseline": lambda target, policy: brain_core.snis_coefficients(target),
        "DPG": lambda target, policy: brain_core.dpg_coefficients(target, log_normalizer=0.0),
        "α̂ − 1/n": lambda target, policy: brain_core.snis_coefficients(target) - 1 / GROUP_SIZE,
        "descent": lambda target, policy: -brain_core.brain_coefficients(target, policy),
    },
    assumptions=("tabular softmax policy", "π > 0"),
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl", "toy.CategoricalProblem"),
)
def t7b(coefficients: Callable[[Any, Any], Any]) -> None:
    """The distance never grows, its loss pays for every divergence; the uniform proposal ends at π to 1e-9 nats."""
    for groups in (uniform_groups, hostile_groups):
        for gamma in (0.5, 1.0, 1.5):
            total, start, log_policy, log_target = run(coefficients, groups, gamma)
            bound = start / (gamma * (2 - gamma))
            require(bool(np.all(total <= bound + 1e-9)), f"Σ D(Y_t) exceeds its bound at γ = {gamma}")
            if groups is uniform_groups and gamma >= 1:
                left = (np.exp(log_target) * (log_target - log_policy)).sum(axis=-1)
                require(float(left.max()) < 1e-9, f"KL after {STEPS} steps is {left.max():.1e} at γ = {gamma}")


def run(
    coefficients: Callable[[Any, Any], Any], groups: Callable[[np.random.Generator], np.ndarray], gamma: float
) -> tuple[Any, Any, Any, Any]:
    """Σ D(Y_t), ‖z_0 − z*‖² (both (RUNS,)), and the last log q and log π (RUNS, K); Refuted if the distance grows."""
    draw = np.random.default_rng(7)
    target, logits = (_log_softmax(draw.normal(size=(RUNS, SIZE))) for _ in range(2))
    total, distance = np.zeros(RUNS), ((logits - target) ** 2).sum(axis=-1)
    start = distance
    for _ in range(STEPS):
        chosen, log_policy = groups(draw), _log_softmax(logits)
        alpha, beta = (np.take_along_axis(v, chosen, axis=-1) + np.log(SIZE) for v in (target, log_policy))
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

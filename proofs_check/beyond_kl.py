"""Beyond the paper: how the self-normalised divergence D_n compares with KL, (T4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from proofs_check.beyond_divergence import MISSED_TARGET
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import law_of_sum, mean_over_multisets, ordered_groups
from proofs_check.exact import Dual, LogNumber, log
from proofs_check.groups import ZERO, at, divergence, divergence_by_laws, kl, shares
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

Divergence = Callable[[Sequence[Fraction], Sequence[Fraction]], LogNumber]

TESTS = "tests/proofs_check/test_beyond.py"


def problem_of(target: Sequence[int], policy: Sequence[int], proposal: Sequence[int]) -> Toy:
    """A problem whose posterior is given: prior = posterior, goodness 1."""
    flat = (Fraction(1),) * len(target)
    return Toy(proportional(*target), flat, proportional(*policy), proportional(*proposal))


FAR_PROPOSAL = problem_of((90, 9, 1), (90, 1, 9), (2, 9, 9))
"""D_n > KL for n = 2 … 8, and not monotone."""

NEAR_KL = problem_of((49, 49, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))
"""q' = q: D_n passes KL at n = 5."""


def problems(count: int, seed: int) -> Iterator[Toy]:
    """The generic instance, the one with the far proposal, then random ones of up to 4 completions."""
    yield GENERIC
    yield FAR_PROPOSAL
    yield from random_toys(count, seed=seed)


@cache
def kl_of(problem: Toy) -> LogNumber:
    """KL(posterior ‖ policy)."""
    return kl(problem.posterior, problem.policy)


@cache
def mean_over_draws(problem: Toy, group_size: int, value: Divergence) -> LogNumber:
    """E over groups from the proposal of a value of the two lists of ratios."""
    alpha, beta = problem.target_ratio, problem.policy_ratio
    return LogNumber.of(mean_over_multisets(problem.proposal, group_size, lambda g: value(at(alpha, g), at(beta, g))))


def mean_ratio(values: Sequence[Fraction]) -> Fraction:
    """Ā or B̄ of a group."""
    return sum(values, start=Fraction(0)) / len(values)


def weighted_divergence(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> LogNumber:
    """Ā D(Y)."""
    return divergence(alpha, beta) * mean_ratio(alpha)


def reversed_divergence(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> LogNumber:
    """KL(β̂ ‖ α̂)."""
    return divergence(beta, alpha)


DIVERGENCE_MUTANTS: dict[str, Divergence] = {
    "weighted with Ā": weighted_divergence,
    "reversed": reversed_divergence,
    "divided by n": lambda alpha, beta: divergence(alpha, beta) / len(alpha),
    "β̂ uniform": lambda alpha, beta: divergence(alpha, (Fraction(1),) * len(beta)),
}


class Printed(NamedTuple):
    """A problem with its KL and D_2, D_3, … in decimals."""

    problem: Toy
    kl: str
    divergences: str


def require_decimals(number: LogNumber | Fraction, printed: str, what: str) -> None:
    """Raise Refuted unless the number, exactly, rounds to the printed decimals."""
    half_unit = Fraction(1, 2 * 10 ** len(printed.partition(".")[2]))
    gap = number - Fraction(printed)
    require(-half_unit <= gap <= half_unit, f"{what} is {float(number)}, not {printed}")


TABLE = (
    Printed(FAR_PROPOSAL, "0.1758", "0.7157 0.9301 0.9665 0.9381 0.8872 0.8302 0.7738"),
    Printed(NEAR_KL, "0.595108", "0.297554 0.473245 0.562403 0.604182 0.622062 0.628451 0.629565"),
)


@claim(
    "T4a",
    "D_n ≤ KL is false, off-policy and on-policy, and D_n is not monotone in n",
    source="docs/theory.md T4a",
    method="exact: multisets, signs certified",
    case="K=3 and K=4, n=2…8; n=9 on-policy from the laws of A and B",
    subject=divergence,
    mutants=DIVERGENCE_MUTANTS,
    code=("brain_core.self_normalized_kl", "toy.self_normalized_kl"),
)
def t4a(value: Divergence) -> None:
    """Certified signs of D_n − KL and of the steps, then the printed decimals."""
    for problem, printed_kl, printed in TABLE:
        found = [mean_over_draws(problem, n, value) for n in range(2, 9)]
        bound = kl_of(problem)
        for number, expected in zip((bound, *found), (printed_kl, *printed.split()), strict=True):
            require_decimals(number, expected, "KL, D_2, D_3, …")
        exceeds = [d > bound for d in found]
        rises = [later > earlier for earlier, later in pairwise(found)]
        if problem is FAR_PROPOSAL:
            require_equal(exceeds, [True] * 7, "where D_n exceeds KL")
            require_equal(rises, [True] * 2 + [False] * 4, "where D_n rises")
        else:
            require_equal(exceeds, [False] * 3 + [True] * 4, "where D_n exceeds KL")
            require(all(rises) and divergence_by_laws(problem, 9) < found[-1], "on-policy D_n rises up to n = 8")


def by_jensen(problem: Toy, group_size: int) -> LogNumber:
    """KL + E log B̄, from the law of B."""
    law = law_of_sum(problem.policy_ratio, problem.proposal, group_size)
    return sum((mass * log(total / group_size) for total, mass in law.items()), start=kl_of(problem))


def on_target(count: int, seed: int) -> Iterator[Toy]:
    """Problems whose proposal is the posterior."""
    for problem in problems(count, seed):
        yield problem._replace(proposal=problem.posterior)


def show_excess_over_kl() -> None:
    """The far proposal: D_2 = 0.7157 > KL = 0.1758, and D_5 < D_4."""
    found = [mean_over_draws(FAR_PROPOSAL, n, divergence) for n in (2, 4, 5)]
    require(found[0] > kl_of(FAR_PROPOSAL), "D_2 > KL")
    require(found[2] < found[1], "D_5 < D_4")


@claim(
    "T4b",
    "With q' = π, D_n = KL + E log B̄ ≤ KL, never decreasing in n",
    source="docs/theory.md T4b",
    method="exact: multisets, law of B, signs certified",
    case="K ≤ 4, n=1…4, 22 problems",
    subject=by_jensen,
    mutants={
        "sign": lambda problem, n: 2 * kl_of(problem) - by_jensen(problem, n),
        "B for B̄": lambda problem, n: by_jensen(problem, n) + log(n),
        "KL alone": lambda problem, n: kl_of(problem),
        "(1 − 1/n) KL": lambda problem, n: kl_of(problem) * (1 - Fraction(1, n)),
    },
    counterexamples={"q' = π": show_excess_over_kl},
    assumptions=("q' = π",),
    code=("toy.self_normalized_kl",),
    tests=(f"{TESTS}::test_with_the_target_as_proposal_the_divergence_rises_towards_kl",),
)
def t4b(value: Callable[[Toy, int], LogNumber]) -> None:
    """Identity, bound and monotony."""
    for problem in on_target(20, seed=42):
        found = [mean_over_draws(problem, n, divergence) for n in range(1, 5)]
        for n, number in enumerate(found, start=1):
            require_equal(value(problem, n), number, f"D_{n}")
        require(all(a <= b for a, b in pairwise(found)), "D_n decreases")
        require(found[-1] <= kl_of(problem), "D_4 exceeds KL")


Pull = Callable[[Fraction, Fraction], Any]
"""A function of Ā and B̄."""


def show_missed_target_mass() -> None:
    """π = (.2, .2, .6), q' = (.5, .5, 0): D̃_n + remainder falls short of KL by exactly ⅗ log 3."""
    for n in (2, 3):
        sums = mean_over_draws(MISSED_TARGET, n, decomposition(lambda a, b: a, log_quotient))
        require_equal(kl_of(MISSED_TARGET) - sums, Fraction(3, 5) * log(3), f"shortfall at n={n}")


def log_quotient(mean_alpha: Fraction, mean_beta: Fraction) -> LogNumber:
    """Ā log(Ā/B̄), 0 where Ā is."""
    return mean_alpha * log(mean_alpha / mean_beta) if mean_alpha else ZERO


def decomposition(weight: Pull, remainder: Pull) -> Divergence:
    """weight · D(Y) + remainder, as a value of a group."""

    def value(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> LogNumber:
        means = mean_ratio(alpha), mean_ratio(beta)
        return LogNumber.of(divergence(alpha, beta) * weight(*means) + remainder(*means))

    return value


@claim(
    "T4c",
    "KL = D̃_n + E[Ā log(Ā/B̄)], D̃_n = E[Ā D(Y)]; D̃_1 = 0, D̃_n never decreases in n and never exceeds KL",
    source="docs/theory.md T4c",
    method="exact: multisets, signs certified",
    case="K ≤ 4, n=1…4, 62 problems; the far proposal to n=8",
    subject=(lambda mean_alpha, mean_beta: mean_alpha, log_quotient),
    mutants={
        "not weighted": (lambda a, b: 1, log_quotient),
        "weighted with B̄": (lambda a, b: b, log_quotient),
        "weighted with 2Ā": (lambda a, b: 2 * a, log_quotient),
        "remainder weighted with B̄": (lambda a, b: a, lambda a, b: b * log(a / b)),
        "remainder inverted": (lambda a, b: a, lambda a, b: -log_quotient(a, b)),
        "remainder not weighted": (lambda a, b: a, lambda a, b: log(a / b)),
    },
    counterexamples={"supp π ⊆ supp q'": show_missed_target_mass, "the weight Ā, for ≤ KL": show_excess_over_kl},
    assumptions=("supp π ⊆ supp q'", "the weight Ā, for ≤ KL"),
    code=("toy.weighted_self_normalized_kl", "brain_core.weighted_brain_objective"),
    tests=(
        "tests/brain_core/test_exact_enumeration.py::test_weighted_divergence_never_exceeds_the_kl_divergence",
        f"{TESTS}::test_weighted_divergence_rises_towards_kl_for_every_proposal",
    ),
)
def t4c(parts: tuple[Pull, Pull]) -> None:
    """The identity in logarithms of primes; then monotony and the bound, certified."""
    value = decomposition(*parts)
    for problem in problems(60, seed=43):
        for n in (2, 3):
            require_equal(mean_over_draws(problem, n, value), kl_of(problem), f"both terms at n={n}")
    for problem in problems(60, seed=43):
        largest = 8 if problem is FAR_PROPOSAL else 4
        found = [mean_over_draws(problem, n, weighted_divergence) for n in range(1, largest + 1)]
        require_equal(found[0], 0, "D̃_1")
        require(all(a <= b for a, b in pairwise(found)), "D̃_n decreases")
        require(found[-1] <= kl_of(problem), "D̃_n exceeds KL")


Bound = Callable[[Toy, LogNumber], LogNumber]


def show_completions_without_target_mass() -> None:
    """π = (½, ½, 0), q' = (2, 2, 1)/5, q = (9, 9, 2)/20: D_2 = 8/25 log(13/9) > 4/5 log(10/9), over supp π alone."""
    problem = problem_of((1, 1, 0), (9, 9, 2), (2, 2, 1))
    found = mean_over_draws(problem, 2, divergence)
    require_equal(kl_of(problem), log(Fraction(10, 9)), "KL")
    require_equal(found, Fraction(8, 25) * log(Fraction(13, 9)), "D_2")
    largest = 1 / min(a for a in problem.target_ratio if a)
    require(found > kl_of(problem) * largest, "the maximum over supp π alone is too small")


def weighted_over_largest(problem: Toy, weighted: LogNumber) -> LogNumber:
    """D̃_n / max(π/q')."""
    return weighted / max(problem.target_ratio)


def kl_over_smallest(problem: Toy, bound: LogNumber) -> LogNumber:
    """KL · max(q'/π)."""
    return bound / min(problem.target_ratio)


SKEWED = proportional(100, 20, 100)
TELLING = (
    problem_of((1, 3, 100), (3, 1, 100), (1, 1, 1)),
    Toy(SKEWED, (Fraction(1), Fraction(1, 10), Fraction(1)), SKEWED, SKEWED),
)
"""D_2 exceeds KL · max(π/q') on the first, KL · max(q'/q) and KL · max(q'/p) on the second."""


@claim(
    "T4d",
    "D̃_n / max(π/q') ≤ D_n ≤ KL · max(q'/π)",
    source="docs/theory.md T4d",
    method="exact: multisets, signs certified",
    case="K ≤ 4, n=2, 3, 66 problems",
    subject=(weighted_over_largest, kl_over_smallest),
    mutants={
        "D̃_n ≤ D_n": (lambda problem, weighted: weighted, kl_over_smallest),
        "D̃_n / max(q/q') ≤ D_n": (lambda problem, weighted: weighted / max(problem.policy_ratio), kl_over_smallest),
        "D̃_n / min(π/q') ≤ D_n": (lambda problem, weighted: weighted / min(problem.target_ratio), kl_over_smallest),
        "D_n ≤ KL": (weighted_over_largest, lambda problem, bound: bound),
        "D_n ≤ KL · max(π/q')": (weighted_over_largest, lambda problem, bound: bound * max(problem.target_ratio)),
        "D_n ≤ KL · max(q'/q)": (weighted_over_largest, lambda problem, bound: bound / min(problem.policy_ratio)),
        "D_n ≤ KL · max(q'/p)": (
            weighted_over_largest,
            lambda problem, bound: bound / min(ratio(problem.prior, problem.proposal)),
        ),
        "D_n ≤ KL / max(π/q')": (weighted_over_largest, lambda problem, bound: bound / max(problem.target_ratio)),
        "half of the upper bound": (weighted_over_largest, lambda problem, bound: kl_over_smallest(problem, bound) / 2),
    },
    assumptions=("π > 0 on supp q'",),
    counterexamples={"π > 0 on supp q'": show_completions_without_target_mass},
    code=("toy.self_normalized_kl", "toy.weighted_self_normalized_kl"),
    tests=(f"{TESTS}::test_divergence_lies_between_its_bounds",),
)
def t4d(bounds: tuple[Bound, Bound]) -> None:
    """Ā lies between the smallest and the largest π/q'."""
    lower, upper = bounds
    for problem in (*TELLING, *problems(60, seed=44)):
        for n in (2, 3):
            found = mean_over_draws(problem, n, divergence)
            weighted = mean_over_draws(problem, n, weighted_divergence)
            require(lower(problem, weighted) <= found, f"D_{n} is below its lower bound")
            require(found <= upper(problem, kl_of(problem)), f"D_{n} is above its upper bound")


def constant(target: Sequence[Any], proposal: Sequence[Any], policy: Sequence[Any], half: Any = Fraction(1, 2)) -> Any:
    """c = KL · E_s α² − E_π[α log(α/β)] + ½(χ²(π‖q') − χ²(q‖q')), for rational policies or dual ones."""
    rows = list(zip(target, proposal, policy, strict=True))
    second = sum((t * t / s for t, s, _ in rows), start=Fraction(0))
    tilted = [(t * second - t * t / s, t, q) for t, s, q in rows]
    logs = [-_log(q / t) * weight for weight, t, q in tilted if t]
    chi = [(t * t - q * q) / s * half for t, s, q in rows]
    return sum(logs[1:], start=logs[0]) + sum(chi[1:], start=chi[0])


def _log(value: Fraction | Dual) -> LogNumber | Dual:
    """log of a rational or of a dual number."""
    return value.log() if isinstance(value, Dual) else log(value)


def without_tilt(target: Vector, proposal: Vector, policy: Vector) -> LogNumber:
    """The constant without KL · E_s α² − E_π[α log(α/β)]."""
    chi = (t * t - q * q for t, q in zip(target, policy, strict=True))
    return LogNumber.of(sum((c / s for c, s in zip(chi, proposal, strict=True)), start=Fraction(0)) / 2)


def richardson(value: Callable[[int], Any], n: int) -> Any:
    """The limit of a value with an error of order 1/n, to order 1/n²."""
    return 2 * value(2 * n) - value(n)


def scaled_gap(problem: Any, n: int) -> float:
    """n (D_n − KL) by Laplace quadrature."""
    import toy

    return float(n * (toy.self_normalized_kl(problem, n) - float(problem.kl)))


def in_toy(problem: Toy) -> Any:
    """The same problem for the toolkit, goodness scaled to probabilities."""
    import toy

    goodness = [g / max(problem.goodness) for g in problem.goodness]
    return toy.CategoricalProblem(problem.prior, goodness, problem.policy, problem.proposal)


@cache
def limit_by_quadrature(problem: Toy) -> float:
    """lim n (D_n − KL) from n = 4000 and 8000; its quadrature first agrees with enumeration at n = 2."""
    import toy

    exact = float(mean_over_draws(problem, 2, divergence))
    require_close(toy.self_normalized_kl(in_toy(problem), 2), exact, 1e-13, "quadrature of D_2")
    return float(richardson(lambda n: scaled_gap(in_toy(problem), n), 4000))


@claim(
    "T4e",
    "n(D_n − KL) → KL·E_s α² − E_π[α log(α/β)] + ½(χ²(π‖q') − χ²(q‖q')); with q' = π that is −½χ²(q‖π)",
    source="docs/theory.md T4e",
    method="Laplace quadrature, extrapolated in 1/n; exact where q' = π",
    case="K=4, n=8000, 6 problems; K=1000, n=20,000",
    tolerance=1e-6,
    subject=constant,
    mutants={
        "sign": lambda t, s, q: -constant(t, s, q),
        "χ² not halved": lambda t, s, q: constant(t, s, q, half=Fraction(1)),
        "χ² with the other sign": lambda t, s, q: constant(t, s, q, half=Fraction(-1, 2)),
        "without the logarithms": without_tilt,
        "posterior and policy swapped": lambda t, s, q: constant(q, s, t),
    },
    code=("toy.snkl_constant", "toy.self_normalized_kl"),
)
def t4e(limit: Callable[[Vector, Vector, Vector], LogNumber]) -> None:
    """The formula against extrapolated quadrature; the toolkit's constant is the same, also at K = 1000."""
    import toy

    for problem in (GENERIC, *random_toys(5, seed=45, sizes=(3, 4), largest=4)):
        found = limit(problem.posterior, problem.proposal, problem.policy)
        require_close(float(found), limit_by_quadrature(problem), 1e-6, "limit of n(D_n − KL)")
        require_close(toy.snkl_constant(in_toy(problem)), float(found), 1e-12, "toy.snkl_constant")
        at_target = limit(problem.posterior, problem.posterior, problem.policy)
        squares = sum((q * q / t for t, q in zip(problem.posterior, problem.policy, strict=True)), start=Fraction(0))
        require_equal(at_target, (1 - squares) / 2, "with q' = π: −½χ²(q‖π)")
    large = large_problem()
    found = richardson(lambda n: scaled_gap(large, n), 10_000)
    require_close(found, toy.snkl_constant(large), 1e-6, "limit of n(D_n − KL) at K = 1000")


@cache
def large_problem() -> Any:
    """A problem of 1000 completions in floats, from a fixed seed."""
    import toy

    draw = random.Random(1000)
    vectors = [[draw.uniform(1, 4) for _ in range(1000)] for _ in range(3)]
    prior, policy, proposal = ([x / sum(v) for x in v] for v in vectors)
    return toy.CategoricalProblem(prior, [draw.uniform(0.2, 1) for _ in range(1000)], policy, proposal)


def binary_kl(first: tuple[Fraction, Fraction], second: tuple[Fraction, Fraction]) -> LogNumber:
    """kl(σ(a_j − a_k) ‖ σ(b_j − b_k)) from the pairs of ratios, whose logarithms are a and b."""
    chance, model = first[0] / sum(first), second[0] / sum(second)
    return chance * log(chance / model) + (1 - chance) * log((1 - chance) / (1 - model))


def show_pairs_are_not_enough() -> None:
    """At n = 3 the mean of the pairs' divergences is D_2, and with the far proposal D_3 − D_2 is 0.2145."""
    first, second = (mean_over_draws(FAR_PROPOSAL, n, divergence) for n in (2, 3))
    require(Fraction(2144, 10000) < second - first < Fraction(2145, 10000), "D_3 − D_2")


@claim(
    "T4f",
    "D_2 = Σ_{j<k} 2 q'_j q'_k kl(σ(a_j − a_k) ‖ σ(b_j − b_k)) with a = log π/q', b = log q/q', kl binary",
    source="docs/theory.md T4f",
    method="exact: all ordered pairs",
    case="K ≤ 4, 32 problems",
    subject=lambda s, first, second: 2 * s[0] * s[1] * binary_kl(first, second),
    mutants={
        "each pair once": lambda s, first, second: s[0] * s[1] * binary_kl(first, second),
        "reversed": lambda s, first, second: 2 * s[0] * s[1] * binary_kl(second, first),
        "one term of the binary divergence": lambda s, first, second: (
            2 * s[0] * s[1] * first[0] / sum(first) * log(first[0] / sum(first) / (second[0] / sum(second)))
        ),
        "one policy inverted": lambda s, first, second: 2 * s[0] * s[1] * binary_kl(first, second[::-1]),
    },
    counterexamples={"n = 2": show_pairs_are_not_enough},
    assumptions=("n = 2",),
    code=("brain_core.self_normalized_kl", "brain_core.soft_label_dpo_objective"),
    tests=(f"{TESTS}::test_divergence_of_pairs_is_a_mean_of_binary_divergences",),
)
def t4f(term: Callable[..., LogNumber]) -> None:
    """The sum over unordered pairs against the mean over ordered ones, equal draws included."""
    for problem in problems(30, seed=46):
        columns = problem.proposal, problem.target_ratio, problem.policy_ratio
        pairs = [(j, k) for j, k in ordered_groups(problem.size, 2) if j < k]
        found = sum((term(*(tuple(at(column, pair)) for column in columns)) for pair in pairs), start=ZERO)
        rows = ((problem.proposal[j] * problem.proposal[k], (j, k)) for j, k in ordered_groups(problem.size, 2))
        expected = sum((w * divergence(at(columns[1], g), at(columns[2], g)) for w, g in rows), start=ZERO)
        require_equal(found, expected, "D_2")


def entropy(weights: Sequence[Fraction]) -> LogNumber:
    """H of a group's weights."""
    return -sum((w * log(w) for w in weights if w), start=ZERO)


def show_divergence_over_log_n() -> None:
    """Off-policy D_2 = 0.7157 > log 2 = 0.6931, with the far proposal."""
    require(mean_over_draws(FAR_PROPOSAL, 2, divergence) > log(2), "D_2 > log 2")


@claim(
    "T4g",
    "On-policy D(Y) = log(n / ESS) with the perplexity ESS = e^{H(α̂)} of the target's weights, so D_n ≤ log n",
    source="docs/theory.md T4g",
    method="exact: all ordered groups, signs certified",
    case="K=4, n=3; 20 random problems, n=2",
    subject=lambda alpha, beta: log(len(alpha)) - entropy(shares(alpha)),
    mutants={
        "entropy of the policy's weights": lambda alpha, beta: log(len(alpha)) - entropy(shares(beta)),
        "without log n": lambda alpha, beta: -entropy(shares(alpha)),
        "Kish's ESS": lambda alpha, beta: log(len(alpha) * sum(a * a for a in shares(alpha))),
        "sign": lambda alpha, beta: entropy(shares(alpha)) - log(len(alpha)),
    },
    counterexamples={"q' = q": show_divergence_over_log_n},
    assumptions=("q' = q",),
    code=("brain_core.effective_sample_size", "brain_core.weight_entropy"),
    tests=(
        "tests/brain_core/test_identities.py::test_divergence_on_policy_is_the_deficit_of_the_perplexity_sample_size",
    ),
)
def t4g(deficit: Divergence) -> None:
    """Group by group, and the bound."""
    for problem in problems(20, seed=47):
        n = 3 if problem is GENERIC else 2
        alpha = ratio(problem.posterior, problem.policy)
        beta = ratio(problem.policy, problem.policy)
        for group in ordered_groups(problem.size, n):
            found = divergence(at(alpha, group), at(beta, group))
            require_equal(deficit(at(alpha, group), at(beta, group)), found, f"D of {group}")
            require(found <= log(n), f"D of {group} exceeds log n")


def merged(problem: Toy) -> Toy:
    """The problem that does not tell its last two completions apart."""
    last = problem.normalizer * sum(problem.posterior[-2:]) / sum(problem.prior[-2:])
    vectors = ((*v[:-2], v[-2] + v[-1]) for v in (problem.prior, problem.policy, problem.proposal))
    prior, policy, proposal = vectors
    return Toy(prior, (*problem.goodness[:-2], last), policy, proposal)


MERGING = problem_of((9, 1, 1), (1, 9, 1), (9, 1, 9))


@claim(
    "T4h",
    "D_n obeys no data processing: merging two completions can raise D_2, and D̃_2, where KL can only fall",
    source="docs/theory.md T4h",
    method="exact: signs certified",
    case="K=3 → 2, one instance; KL on 60 random ones",
    subject=lambda problem: mean_over_draws(problem, 2, divergence),
    mutants={
        "KL": kl_of,
        "q' = π": lambda problem: mean_over_draws(problem._replace(proposal=problem.posterior), 2, divergence),
        "on-policy": lambda problem: mean_over_draws(problem._replace(proposal=problem.policy), 2, divergence),
    },
    code=("brain_core.self_normalized_kl",),
)
def t4h(value: Callable[[Toy], LogNumber]) -> None:
    """π = (9, 1, 1)/11, q = (1, 9, 1)/11, q' = (9, 1, 9)/19: merging the last two raises D_2 by 0.4938."""
    rise = value(merged(MERGING)) - value(MERGING)
    require(rise > 0, "merging lowers it")
    require_decimals(rise, "0.493760", "the rise of D_2")
    weighted = [mean_over_draws(problem, 2, weighted_divergence) for problem in (MERGING, merged(MERGING))]
    require(weighted[0] < weighted[1], "D̃_2 rises too")
    for problem in (MERGING, *random_toys(60, seed=48, sizes=(3, 4))):
        require(kl_of(merged(problem)) <= kl_of(problem), "merging raises KL")


def half_chi(target: Vector, proposal: Vector, policy: Vector) -> Fraction:
    """½ Σ (π − q)²/q' = ½ E_s (α − β)²."""
    rows = zip(target, proposal, policy, strict=True)
    return sum(((t - q) ** 2 / s for t, s, q in rows), start=Fraction(0)) / 2


@cache
def weighted_limit(problem: Toy) -> float:
    """lim n (KL − D̃_n) from n = 4000 and 8000; its quadrature first agrees with enumeration at n = 2."""
    import toy

    exact = float(mean_over_draws(problem, 2, weighted_divergence))
    require_close(toy.weighted_self_normalized_kl(in_toy(problem), 2), exact, 1e-13, "quadrature of D̃_2")

    def gap(n: int) -> float:
        """n (KL − D̃_n)."""
        return float(n * (float(in_toy(problem).kl) - toy.weighted_self_normalized_kl(in_toy(problem), n)))

    return float(richardson(gap, 4000))


@claim(
    "T4i",
    "D̃_n → KL for every proposal: n(KL − D̃_n) → ½ E_s(α − β)²",
    source="docs/theory.md T4c",
    method="Laplace quadrature, extrapolated in 1/n; at n = 2 against enumeration",
    case="K ≤ 4, n=8000, 8 problems",
    tolerance=1e-6,
    subject=half_chi,
    mutants={
        "not halved": lambda t, s, q: 2 * half_chi(t, s, q),
        "relative to π": lambda t, s, q: half_chi(t, t, q),
        "relative to q": lambda t, s, q: half_chi(t, q, q),
        "the constant of T4e": lambda t, s, q: -constant(t, s, q),
        "a limit below KL": lambda t, s, q: half_chi(t, s, q) + 1,
    },
    counterexamples={"supp π ⊆ supp q'": show_missed_target_mass},
    assumptions=("supp π ⊆ supp q'",),
    code=("toy.weighted_self_normalized_kl",),
)
def t4i(limit: Callable[[Vector, Vector, Vector], Fraction]) -> None:
    """By T4c the gap is E[Ā log(Ā/B̄)], of which ½(Ā − B̄)² is the leading term; so a finite limit means D̃_n → KL."""
    for problem in (GENERIC, FAR_PROPOSAL, *random_toys(6, seed=49, sizes=(3, 4), largest=4)):
        found = limit(problem.posterior, problem.proposal, problem.policy)
        require_close(weighted_limit(problem), float(found), 1e-6, "limit of n(KL − D̃_n)")

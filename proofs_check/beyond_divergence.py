"""Beyond the paper: the identity on one group, where the divergence is 0, and its shape in logits (T0 to T3)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, ordered_groups, probability
from proofs_check.exact import Dual, LogNumber, Rational, along, in_logits, log
from proofs_check.groups import (
    ZERO,
    along_score,
    at,
    combined,
    divergence,
    kl,
    logit_score,
    mean_vector,
    moving_divergence,
    shares,
)
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

Coefficients = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
Matrix = tuple[Vector, ...]

PAIR = proportional(1, 1)
EVEN = (Fraction(1), Fraction(1))
MISREPORTED = tuple(map(Fraction, (2, 7, 1, 8)))
TANGENT_AND_OFF_SIMPLEX = ((1, -1, 0, 0), (2, 0, 1, -3), (0, 1, 0, 0), (1, 2, 3, 4))
IDENTITY_TESTS = "tests/proofs_check/test_beyond.py"


def brain_coefficients(alpha: Sequence[Any], beta: Sequence[Any]) -> list[Any]:
    """α̂ − β̂."""
    return [a - b for a, b in zip(shares(alpha), shares(beta), strict=True)]


def dpg_coefficients(alpha: Sequence[Any], beta: Sequence[Any]) -> list[Any]:
    """α/n."""
    return [a / len(alpha) for a in alpha]


def gdcpp_coefficients(alpha: Sequence[Any], beta: Sequence[Any]) -> list[Any]:
    """(α − β)/n."""
    return [(a - b) / len(alpha) for a, b in zip(alpha, beta, strict=True)]


COEFFICIENT_MUTANTS: Mapping[str, Coefficients] = {
    "no baseline": lambda alpha, beta: shares(alpha),
    "β̂ uniform": lambda alpha, beta: [a - Fraction(1, len(alpha)) for a in shares(alpha)],
    "swapped": lambda alpha, beta: brain_coefficients(beta, alpha),
    "divided by n": lambda alpha, beta: [c / len(alpha) for c in brain_coefficients(alpha, beta)],
    "not self-normalised": lambda alpha, beta: [a - b for a, b in zip(alpha, beta, strict=True)],
    "β̂ on the scale of A": lambda alpha, beta: [(a - b) / sum(alpha) for a, b in zip(alpha, beta, strict=True)],
}


class Draw(NamedTuple):
    """A batch, its probability, and the reference m of its ratios."""

    chance: Fraction
    batch: Group
    reference: Sequence[Fraction]


def laws(problem: Toy) -> dict[str, list[Draw]]:
    """Laws of batches that are not independent draws of one proposal."""
    size, proposal = problem.size, problem.proposal
    independent = [Draw(probability(g, proposal), g, proposal) for g in ordered_groups(size, 3)]
    old = [
        Draw(probability(g, s) / 2, g, s) for s in (problem.prior, problem.proposal) for g in ordered_groups(size, 2)
    ]
    pairs = list(itertools.combinations(range(size), 2))
    return {
        "without replacement": [
            Draw(_in_turn(g, proposal), g, proposal) for g in itertools.permutations(range(size), min(3, size))
        ],
        "deduplicated": [draw._replace(batch=tuple(sorted(set(draw.batch)))) for draw in independent],
        "preference pairs": [
            Draw(chance, pair, (Fraction(1),) * size)
            for pair, chance in zip(pairs, proportional(*range(1, len(pairs) + 1)), strict=True)
        ],
        "replay of old proposals": old,
        "misreported proposal": [draw._replace(reference=MISREPORTED[:size]) for draw in independent],
        "all completions": [Draw(Fraction(1), tuple(range(size)), MISREPORTED[:size])],
    }


def _in_turn(group: Group, proposal: Sequence[Fraction]) -> Fraction:
    """Probability of an ordered group drawn without replacement."""
    left, chance = Fraction(1), Fraction(1)
    for y in group:
        chance *= proposal[y] / left
        left -= proposal[y]
    return chance


def show_law_that_moves() -> None:
    """Pairs from q_θ itself, ratios fixed: ∇E[D] has 3/32 log(4/3) beside −E[ĝ], from the moving law."""
    policy = in_logits(proportional(1, 3))
    moving = sum(
        (
            (policy[j] * policy[k]).slopes[0] * divergence(EVEN, at(proportional(1, 3), (j, k)))
            for j, k in ordered_groups(2, 2)
        ),
        start=ZERO,
    )
    require_equal(moving, Fraction(3, 32) * log(Fraction(4, 3)), "the term of the moving law")


def show_reference_that_moves() -> None:
    """With m = q_θ live and q = (¼, ¾), π = (½, ½): D's slope in a logit is −3/16 log 3, and (12) says −1/4."""
    policy = in_logits(proportional(1, 3))
    ratios = [q.reciprocal() for q in policy]
    weights = [a / (ratios[0] + ratios[1]) for a in ratios]
    slope = sum((w.slopes[0] * log(2 * w.value) for w in weights), start=ZERO)
    require_equal(slope, Fraction(-3, 16) * log(3), "slope of D")
    coefficients = brain_coefficients([w.value for w in weights], EVEN)
    scores = [logit_score(proportional(1, 3), y) for y in (0, 1)]
    require_equal(-combined(coefficients, scores)[0], Fraction(-1, 4), "what the formula gives")


@claim(
    "T0",
    "On any batch, for any a ≥ 0, m > 0: ∇D(Y) = −Σ(α̂ − β̂)h; so E ĝ = −∇D_μ for every law μ free of θ",
    source="docs/theory.md T0, contains Theorem 4.2",
    method="exact: dual numbers, group by group",
    case="K=4: 6 laws of batches of 1 to 4, 4 logits, 4 directions, unnormalised q too",
    subject=brain_coefficients,
    mutants=COEFFICIENT_MUTANTS,
    counterexamples={
        "the law does not depend on θ": show_law_that_moves,
        "m, hence α̂, does not depend on θ": show_reference_that_moves,
    },
    assumptions=("the law does not depend on θ", "m, hence α̂, does not depend on θ"),
    code=("brain_core.brain_coefficients", "brain_core.brain_objective", "brain_core.self_normalized_kl"),
    tests=(f"{IDENTITY_TESTS}::test_gradient_of_the_divergence_of_any_batch_is_minus_brains_estimate",),
)
def t0(coefficients: Coefficients) -> None:
    """Each batch by itself, then the mean under each law. On infinite sets |ĝ| ≤ 2 max|h| lets ∇ pass under E."""
    unnormalized = tuple(map(Fraction, (5, 1, 4, 3)))
    moves = (
        (in_logits(GENERIC.policy), lambda y: logit_score(GENERIC.policy, y)),
        (
            along(unnormalized, TANGENT_AND_OFF_SIMPLEX),
            lambda y: along_score(unnormalized, TANGENT_AND_OFF_SIMPLEX)((), y),
        ),
    )
    for name, draws in laws(GENERIC).items():
        require_equal(sum(draw.chance for draw in draws), 1, f"total probability, {name}")
        for policy, score in moves:
            slopes, steps = zip(*(_slope_and_step(draw, policy, score, coefficients) for draw in draws), strict=True)
            for draw, slope, step in zip(draws, slopes, steps, strict=True):
                require_equal(slope, step, f"gradient on {draw.batch}, {name}")
            chances = [draw.chance for draw in draws]
            require_equal(combined(chances, slopes), combined(chances, steps), f"mean gradient, {name}")


def _slope_and_step(
    draw: Draw, policy: Sequence[Dual], score: Callable[[int], Vector], coefficients: Coefficients
) -> tuple[Vector, Vector]:
    """∇D of a batch by dual numbers, and −ĝ."""
    alpha = [GENERIC.posterior[y] / draw.reference[y] for y in draw.batch]
    beta = [policy[y] / draw.reference[y] for y in draw.batch]
    step = combined([-c for c in coefficients(alpha, [b.value for b in beta])], [score(y) for y in draw.batch])
    return moving_divergence(alpha, beta).slopes, step


Partition = Callable[[int, Sequence[Group], Sequence[Fraction]], list[set[int]]]
Vanishing = Callable[[Sequence[Group], Sequence[Fraction]], set[int]]


def joined(size: int, sets: Sequence[Sequence[int]]) -> list[set[int]]:
    """Connected components of completions, joined where they share a set."""
    parts = [{y} for y in range(size)]
    for members in map(set, sets):
        met = [part for part in parts if part & members]
        parts = [part for part in parts if part not in met] + [set().union(*met)]
    return parts


def support(batch: Group, target: Sequence[Fraction]) -> list[int]:
    """The batch's completions with target mass."""
    return [y for y in batch if target[y]]


def components(size: int, batches: Sequence[Group], target: Sequence[Fraction]) -> list[set[int]]:
    """The components of the completions with target mass."""
    return joined(size, [inside for batch in batches if (inside := support(batch, target))])


def joined_by_anything(size: int, batches: Sequence[Group], target: Sequence[Fraction]) -> list[set[int]]:
    """Components joined through completions without target mass too, where q/π is 0/0 and carries nothing over."""
    parts = joined(size, [batch for batch in batches if support(batch, target)])
    return [{y for y in part if target[y]} for part in parts]


def met_without_target_mass(batches: Sequence[Group], target: Sequence[Fraction]) -> set[int]:
    """Completions without target mass that share a batch with one that has some: there q must be 0."""
    return {y for batch in batches if support(batch, target) for y in batch if not target[y]}


class Case(NamedTuple):
    """A target, a policy, and the batches that occur."""

    target: Vector
    policy: Vector
    batches: list[Group]


def cases(count: int, seed: int) -> Iterator[Case]:
    """Random laws of batches over 5 completions; policies often, but not always, proportional on components."""
    draw = random.Random(seed)
    for _ in range(count):
        target = [draw.choice((0, 1, 2, 3)) for _ in range(4)] + [1]
        batches = [tuple(draw.choices(range(5), k=draw.choice((1, 2, 2, 3)))) for _ in range(draw.randint(1, 4))]
        policy = [Fraction(t or draw.choice((0, 1))) for t in target]
        for part in joined(5, batches) if draw.random() < 0.5 else components(5, batches, proportional(*target)):
            factor = draw.choice((Fraction(1, 2), Fraction(1), Fraction(3)))
            for y in part:
                policy[y] *= factor
        if draw.random() < 0.3:
            policy[draw.randrange(5)] += 1
        yield Case(proportional(*target), proportional(*policy), batches)


def is_proportional(policy: Sequence[Fraction], target: Sequence[Fraction], part: set[int]) -> bool:
    """Whether policy = λ · target on a part of the target's support, for one λ."""
    return len({policy[y] / target[y] for y in part if target[y]}) <= 1


def divergence_of_batches(target: Vector, policy: Vector, batches: Sequence[Group]) -> LogNumber:
    """D_μ where all batches are equally likely and the reference is uniform; each batch without target mass is 0."""
    return sum((divergence(at(target, b), at(policy, b)) for b in batches), start=ZERO) / len(batches)


def snkl(target: Vector, policy: Vector, proposal: Vector, group_size: int) -> LogNumber:
    """D_n from its definition, where the proposal may be without mass somewhere."""
    alpha, beta = ratio(target, proposal), ratio(policy, proposal)
    return LogNumber.of(mean_over_groups(proposal, group_size, lambda g: divergence(at(alpha, g), at(beta, g))))


def show_single_draws() -> None:
    """With n = 1, D_1 = 0 for every policy, and ĝ is 0."""
    require(GENERIC.posterior != GENERIC.policy, "the policy is not the posterior")
    require_equal(snkl(GENERIC.posterior, GENERIC.policy, GENERIC.proposal, 1), 0, "D_1")
    require_equal(brain_coefficients([Fraction(7)], [Fraction(3)]), [0], "coefficient of a single completion")


def show_policy_outside_the_proposal() -> None:
    """As top-p sampling does: π = q' = (½, ½, 0), q = (¼, ¼, ½): D_n = 0 for n = 2, 3, 4 while KL is log 2."""
    target, policy = proportional(1, 1, 0), proportional(1, 1, 2)
    require_equal(kl(target, policy), log(2), "KL")
    for n in (2, 3, 4):
        require_equal(snkl(target, policy, target, n), 0, f"D_{n}")


MISSED_TARGET = Toy(proportional(1, 1, 3), (Fraction(1),) * 3, proportional(2, 2, 1), proportional(1, 1, 0))
"""The proposal never draws the third completion, which has 3/5 of the target."""


def show_target_outside_the_proposal() -> None:
    """π = (.2, .2, .6), q = (.4, .4, .2), q' = (.5, .5, 0): D_n = 0 for n = 2, 3, 4 while q ≠ π."""
    for n in (2, 3, 4):
        value = snkl(MISSED_TARGET.posterior, MISSED_TARGET.policy, MISSED_TARGET.proposal, n)
        require_equal(value, 0, f"D_{n}")


def show_two_islands() -> None:
    """Pairs from {1, 2} or from {3, 4} only: π uniform, q = (.1, .1, .4, .4) has D = 0, KL = log(5/4)."""
    target, policy = proportional(1, 1, 1, 1), proportional(1, 1, 4, 4)
    require_equal(divergence_of_batches(target, policy, [(0, 1), (2, 3)]), 0, "D of the mixture")
    require_equal(kl(target, policy), log(Fraction(5, 4)), "KL")
    require(divergence_of_batches(target, policy, [(0, 1), (2, 3), (1, 2)]) > 0, "one pair across sees it")


def show_bridge_without_target_mass() -> None:
    """{1, 2} and {2, 3} meet in 2, but π(2) = 0: q = (1, 0, 3)/4 against π = (1, 0, 1)/2 has D = 0."""
    target, policy = proportional(1, 0, 1), proportional(1, 0, 3)
    require_equal(divergence_of_batches(target, policy, [(0, 1), (1, 2)]), 0, "D")
    require_equal(kl(target, policy), log(2) - log(3) / 2, "KL")


def show_drift_on_finite_data() -> None:
    """One group as the data: all its likelihoods can fall by a factor of 100, −4.6 nats each, at D = 0."""
    policy = tuple(t / 100 for t in GENERIC.posterior[:3])
    drifted = (*policy, 1 - sum(policy))
    require_equal(divergence(at(GENERIC.posterior, (0, 1, 2)), at(drifted, (0, 1, 2))), 0, "D on the data")
    drift = [log(q / t) for q, t in zip(policy, GENERIC.posterior, strict=False)]
    require_equal(drift, [-log(100)] * 3, "drift of each log-likelihood")


@claim(
    "T1",
    "D_μ = 0 exactly where batches that meet supp π have q = 0 off it and q/π constant on what they connect in it",
    source="docs/theory.md T1, sharpens Theorem 4.3",
    method="exact: zero of a sum of logarithms, decided",
    case="500 random laws of batches, K=5",
    subject=(components, met_without_target_mass),
    mutants={
        "connected through completions without target mass": (joined_by_anything, met_without_target_mass),
        "everything is connected": (lambda size, batches, target: [set(range(size))], met_without_target_mass),
        "nothing is connected": (lambda size, batches, target: [], met_without_target_mass),
        "the first batch only": (lambda size, b, target: components(size, b[:1], target), met_without_target_mass),
        "pairs only": (
            lambda size, batches, target: components(size, [b for b in batches if len(b) == 2], target),
            met_without_target_mass,
        ),
        "q may stay off the support": (components, lambda batches, target: set()),
        "q = 0 off the support, seen or not": (
            components,
            lambda batches, target: {y for y, t in enumerate(target) if not t},
        ),
    },
    counterexamples={
        "n ≥ 2": show_single_draws,
        "supp q ⊆ supp q'": show_policy_outside_the_proposal,
        "supp π ⊆ supp q'": show_target_outside_the_proposal,
        "connected, for q = π": show_two_islands,
        "connected within supp π, for q = π": show_bridge_without_target_mass,
        "every completion can be sampled, not only those in the data": show_drift_on_finite_data,
    },
    assumptions=(
        "n ≥ 2",
        "supp q ⊆ supp q'",
        "supp π ⊆ supp q'",
        "connected, for q = π",
        "connected within supp π, for q = π",
    ),
    code=("brain_core.self_normalized_kl", "brain_core.likelihood_drift"),
    tests=(
        "tests/brain_core/test_goodness_and_diagnostics.py::test_drift_sees_what_the_divergence_does_not",
        f"{IDENTITY_TESTS}::test_divergence_is_zero_exactly_where_the_policy_is_proportional_on_connected_sets",
    ),
)
def t1(parts: tuple[Partition, Vanishing]) -> None:
    """The zero of D_μ by exact arithmetic against the predicted one; both verdicts must occur often."""
    partition, vanishing = parts
    verdicts = []
    for target, policy, batches in cases(500, seed=1):
        is_zero = divergence_of_batches(target, policy, batches) == 0
        expected = not any(policy[y] for y in vanishing(batches, target)) and all(
            is_proportional(policy, target, part) for part in partition(5, batches, target)
        )
        require_equal(is_zero, expected, f"zero of D for {target}, {policy}, {batches}")
        verdicts.append(is_zero)
    require(100 < sum(verdicts) < 400, f"the cases do not cover both verdicts: {sum(verdicts)} zeros")


def supports_connect(supports: Sequence[set[int]], group_size: int, size: int) -> bool:
    """Whether groups of ≥ 2 from proposals with these supports connect all completions."""
    return group_size > 1 and len(joined(size, [sorted(s) for s in supports])) == 1


@claim(
    "T1a",
    "A mixture of proposals identifies π, with n ≥ 2, exactly where their supports connect; none need be full",
    source="docs/theory.md T1",
    method="exact: every way to scale π up on a subset",
    case="all 1023 mixtures of up to 3 supports, K=4, n=1, 2",
    subject=supports_connect,
    mutants={
        "some proposal is full": lambda supports, n, size: n > 1 and any(len(s) == size for s in supports),
        "every proposal is full": lambda supports, n, size: n > 1 and all(len(s) == size for s in supports),
        "the supports cover": lambda supports, n, size: n > 1 and len(set().union(*supports)) == size,
        "n = 1 suffices": lambda supports, n, size: supports_connect(supports, 2, size),
    },
    counterexamples={"π > 0": show_bridge_without_target_mass},
    assumptions=("π > 0",),
    code=("brain_core.self_normalized_kl",),
)
def t1a(identifies: Callable[[Sequence[set[int]], int, int], bool]) -> None:
    """Any policy with D = 0 is π times factors; two levels of them are enough to find one that differs from π."""
    subsets = [set(s) for n in range(1, 5) for s in itertools.combinations(range(4), n)]
    target = GENERIC.posterior
    for count in (1, 2, 3):
        for supports in itertools.combinations(subsets, count):
            for n in (1, 2):
                groups = {g for support in supports for g in itertools.combinations(sorted(support), n)}
                others = (_scaled_up(target, subset) for subset in subsets[:-1])
                is_unique = not any(_is_blind(target, other, groups) for other in others)
                require_equal(identifies(supports, n, 4), is_unique, f"unique zero for {supports}, n={n}")


def _scaled_up(target: Vector, subset: set[int]) -> Vector:
    """The target doubled on a subset, and normalised."""
    return proportional(*(t * (2 if y in subset else 1) for y, t in enumerate(target)))


@cache
def _group_divergence(target: Vector, policy: Vector) -> LogNumber:
    """D of a group."""
    return divergence(target, policy)


def _is_blind(target: Vector, policy: Vector, groups: set[Group]) -> bool:
    """Whether D is 0 on every group; whatever the reference, which cancels where ratios of ratios agree."""
    return all(_group_divergence(tuple(at(target, g)), tuple(at(policy, g))) == 0 for g in groups)


def by_completion(values: Sequence[Any], group: Group, size: int) -> list[Any]:
    """Sums of a group's values over the copies of each completion."""
    return [sum((v for v, y in zip(values, group, strict=True) if y == k), start=Fraction(0)) for k in range(size)]


@cache
def hessian(problem: Toy, group: Group) -> Matrix:
    """∇²D(Y) in the logits (K, K): the derivative, by dual numbers, of Σ(β̂ − α̂)h with h = e_y − q."""
    policy = in_logits(problem.policy)
    alpha = shares(at(problem.target_ratio, group))
    ratios = [policy[y] / problem.proposal[y] for y in group]
    inverse = sum(ratios[1:], start=ratios[0]).reciprocal()
    weights = [b * inverse - a for a, b in zip(alpha, ratios, strict=True)]
    return tuple(
        sum((w * ((y == k) - policy[k]) for w, y in zip(weights, group, strict=True)), start=policy[0] * 0).slopes
        for k in range(problem.size)
    )


def covariance(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> Matrix:
    """diag(b) − bbᵀ of the policy's weights."""
    return tuple(tuple(b * ((j == k) - c) for k, c in enumerate(beta)) for j, b in enumerate(beta))


def pivots(matrix: Sequence[Sequence[Fraction]]) -> list[Fraction]:
    """The diagonal of a rational LDLᵀ factorisation, 0 where a whole row vanishes; Refuted where there is none."""
    rows, found = [list(row) for row in matrix], []
    while rows:
        head = rows[0]
        require(head[0] != 0 or not any(head), "no LDLᵀ factorisation: the matrix is indefinite")
        found.append(head[0])
        rows = [
            [x - (row[0] * y / head[0] if head[0] else 0) for x, y in zip(row[1:], head[1:], strict=True)]
            for row in rows[1:]
        ]
    return found


def require_convex_and_smooth(matrix: Matrix, rank: int, what: str) -> None:
    """0 ⪯ matrix ⪯ ½, of the stated rank, with the constants in its kernel."""
    found = pivots(matrix)
    require(min(found) >= 0, f"{what} is not positive semidefinite")
    require_equal(sum(pivot > 0 for pivot in found), rank, f"rank of {what}")
    require(not any(sum(row) for row in matrix), f"constants are not in the kernel of {what}")
    slack = [[Fraction(j == k, 2) - x for k, x in enumerate(row)] for j, row in enumerate(matrix)]
    require(min(pivots(slack)) >= 0, f"{what} exceeds ½")


LINEAR_POLICY = proportional(1, 2, 4)
LINEAR_TARGET = proportional(5, 6, 17)
LINEAR_SLOPES = {
    proportional(1, 2, 4): Fraction(495, 105154),
    proportional(1, 1, 1): Fraction(-784, 34155),
    proportional(5, 6, 17): Fraction(-7935, 1682464),
}


def show_restricted_family() -> None:
    """q ∝ e^{φt}, t = (0, 1, 2), at the KL projection (1, 2, 4)/7 of (5, 6, 17)/28: −dD_2/dφ is 495/105154, … ≠ 0."""
    mean = sum(t * q for t, q in enumerate(LINEAR_POLICY))
    require_equal(mean, sum(t * p for t, p in enumerate(LINEAR_TARGET)), "KL projection: equal means of t")
    policy = along(LINEAR_POLICY, [[q * (t - mean) for t, q in enumerate(LINEAR_POLICY)]])
    for proposal, expected in LINEAR_SLOPES.items():
        alpha, beta = ratio(LINEAR_TARGET, proposal), [q / s for q, s in zip(policy, proposal, strict=True)]
        slope = mean_over_groups(proposal, 2, lambda g, a=alpha, b=beta: moving_divergence(at(a, g), at(b, g)))  # type: ignore[misc]
        require_equal(-slope.slopes[0], expected, f"−dD_2/dφ with the proposal {proposal}")  # type: ignore[union-attr]


def curved(x: Rational) -> Dual:
    """D_2 of q ∝ (1, x, ¼ + ½(x − 2)²) with its slope in x; π = q' uniform, K = 3."""
    x = Fraction(x)
    weights = (Fraction(1), x, Fraction(1, 4) + (x - 2) ** 2 / 2)
    policy = along(weights, [(0, 1, x - 2)])
    found = mean_over_groups(proportional(1, 1, 1), 2, lambda g: moving_divergence(EVEN, at(policy, g)))
    assert isinstance(found, Dual)
    return found


def show_two_minima() -> None:
    """A curved family: D_2 turns upwards in (7/8, 113/128), below 0.001, and in (3.5, 3.625), above 0.04."""
    for low, high in ((Fraction(7, 8), Fraction(113, 128)), (Fraction(7, 2), Fraction(29, 8))):
        require(curved(low).slopes[0] < 0 < curved(high).slopes[0], f"no minimum in ({low}, {high})")
    require(LogNumber.of(curved(Fraction(7, 8)).value) < Fraction(1, 1000), "the first minimum is small")
    pair = Fraction(4, 9) * divergence(EVEN, (Fraction(1), Fraction(7, 2)))
    require(pair > Fraction(1, 25), "beyond 3.5 the pair (1, 2) alone, which rises in x > 1, keeps D_2 above 0.04")


def show_infimum_without_minimum() -> None:
    """π = (1, 0), q' = (½, ½): D_2 = ½ log(1 + q_2/q_1) > 0 for every policy, with infimum 0."""
    for tiny in (Fraction(1, 10), Fraction(1, 10**9)):
        value = snkl(proportional(1, 0), (1 - tiny, tiny), PAIR, 2)
        require_equal(value, -log(1 - tiny) / 2, "D_2")
        require(ZERO < value < tiny, "it is positive, and goes to 0 with q_2")


@claim(
    "T2",
    "In logits D(Y) is convex and ½-smooth, Hessian diag(b) − bbᵀ; D_n too, with constants alone in the kernel",
    source="docs/theory.md T2",
    method="exact: dual numbers, rational LDLᵀ",
    case="K=4, n=3 and 12 random problems, n=2: every group and the mean",
    subject=covariance,
    mutants={
        "diag(b)": lambda alpha, beta: tuple(
            tuple(b if j == k else Fraction(0) for k in range(len(beta))) for j, b in enumerate(beta)
        ),
        "of the target's weights": lambda alpha, beta: covariance(beta, alpha),
        "of both": lambda alpha, beta: tuple(
            tuple((x + y) / 2 for x, y in zip(*rows, strict=True))
            for rows in zip(covariance(alpha, beta), covariance(beta, alpha), strict=True)
        ),
        "sign": lambda alpha, beta: tuple(tuple(-x for x in row) for row in covariance(alpha, beta)),
        "twice": lambda alpha, beta: tuple(tuple(2 * x for x in row) for row in covariance(alpha, beta)),
    },
    counterexamples={
        "a full softmax, for the minimum to be the KL projection": show_restricted_family,
        "logits linear in θ": show_two_minima,
        "π > 0 on supp q', for the infimum to be attained": show_infimum_without_minimum,
    },
    assumptions=(
        "a full softmax, for the minimum to be the KL projection",
        "logits linear in θ",
        "π > 0 on supp q', for the infimum to be attained",
    ),
    code=("brain_core.self_normalized_kl", "brain_core.brain_coefficients"),
    tests=(f"{IDENTITY_TESTS}::test_divergence_of_a_batch_is_convex_between_two_policies_in_logits",),
)
def t2(curvature: Callable[[Sequence[Fraction], Sequence[Fraction]], Matrix]) -> None:
    """Each group's Hessian against the formula; it and the mean are positive semidefinite, at most ½."""
    for problem, n in ((GENERIC, 3), *((toy, 2) for toy in random_toys(12, seed=2))):
        size = problem.size
        for group in itertools.combinations_with_replacement(range(size), n):
            weights = (
                by_completion(shares(at(r, group)), group, size) for r in (problem.target_ratio, problem.policy_ratio)
            )
            found = hessian(problem, group)
            require_equal(tuple(map(tuple, curvature(*weights))), found, f"Hessian on {group}")
            require_convex_and_smooth(found, len(set(group)) - 1, f"the Hessian on {group}")
        require_convex_and_smooth(mean_hessian(problem, n), size - 1, "the mean Hessian")


def mean_hessian(problem: Toy, group_size: int) -> Matrix:
    """∇²D_n in the logits (K, K), over all ordered groups."""
    size = problem.size
    flat = mean_vector(
        problem.proposal, group_size, lambda g: tuple(itertools.chain(*hessian(problem, tuple(sorted(g)))))
    )
    return tuple(flat[row * size : (row + 1) * size] for row in range(size))


@claim(
    "T2a",
    "½ is the best constant: a group whose β̂ lies half on each of two completions has curvature ½",
    source="docs/theory.md T2",
    method="exact: eigenvector",
    case="K=2, n=2 and n=4",
    subject=Fraction(1, 2),
    mutants={"¼": Fraction(1, 4), "1": Fraction(1)},
    code=("brain_core.self_normalized_kl",),
)
def t2a(constant: Fraction) -> None:
    """(1, −1) is an eigenvector of the Hessian."""
    even = Toy(PAIR, EVEN, PAIR, PAIR)
    for group in ((0, 1), (0, 1, 1, 0)):
        image = [row[0] - row[1] for row in hessian(even, group)]
        require_equal(image, [constant, -constant], f"image of (1, −1) on {group}")


def show_curvature_off_the_target() -> None:
    """With π = q = (1, 3)/4 and q' uniform, D_3 has curvature 333/2450, not two thirds of 3/16, which is 1/8."""
    target = proportional(1, 3)
    require_equal(mean_hessian(Toy(target, EVEN, target, PAIR), 3)[0][0], Fraction(333, 2450), "curvature")


@claim(
    "T3",
    "At q = π with q' = π the curvature of D_n is exactly (1 − 1/n) times the Fisher information diag π − ππᵀ",
    source="docs/theory.md T3",
    method="exact: dual numbers over all groups",
    case="K=4, n=1…3; K=3, n=1…5; 5 random targets, n=2",
    subject=lambda n: 1 - Fraction(1, n),
    mutants={
        "all of it": lambda n: Fraction(1),
        "1 − 1/n²": lambda n: 1 - Fraction(1, n * n),
        "n/(n+1)": lambda n: Fraction(n, n + 1),
        "1/n": lambda n: Fraction(1, n),
    },
    counterexamples={"q' = π": show_curvature_off_the_target},
    assumptions=("q' = π",),
    code=("brain_core.self_normalized_kl",),
)
def t3(share: Callable[[int], Fraction]) -> None:
    """KL's Hessian in the logits is the Fisher information, here from its definition Σ π h hᵀ."""
    targets = [(GENERIC.posterior, 3), (proportional(1, 2, 4), 5), *((t.posterior, 2) for t in random_toys(5, seed=3))]
    for target, largest in targets:
        problem = Toy(target, (Fraction(1),) * len(target), target, target)
        scores = [logit_score(target, y) for y in range(len(target))]
        for n in range(1, largest + 1):
            fisher = (
                sum(t * h[j] * h[k] for t, h in zip(target, scores, strict=True))
                for j, k in itertools.product(range(len(target)), repeat=2)
            )
            expected = [share(n) * x for x in fisher]
            require_equal(list(itertools.chain(*mean_hessian(problem, n))), expected, f"curvature at n={n}")

"""T12 and T13: groups of several old proposals, groups used again, and rewards or log-probabilities with errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

import brain_core
from proofs_check.beyond_divergence import brain_coefficients, show_law_that_moves
from proofs_check.beyond_estimators import ascent, mean_divergence, mean_gradient
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import Group, ordered_groups, probability
from proofs_check.exact import LogNumber
from proofs_check.groups import moving_divergence, require_proved
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

SHARES = (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6))
STALE = (proportional(1, 2, 4), proportional(3, 1, 1), proportional(2, 5, 3))
THREE = Toy(proportional(3, 1, 2), (Fraction(2), Fraction(5), Fraction(1)), proportional(2, 3, 1), STALE[0])
"""Three proposals of different age, in shares of the buffer, for one problem."""

Cache = Callable[[Vector], Vector]
"""From the proposal that drew a group to the one that its weights are computed with."""


@claim(
    "T12",
    "with groups of several old proposals, each with its own cached, the mean is −∇ of the mixture of their D_n",
    source="docs/theory.md T12",
    method="exact: all groups of all proposals; dual numbers",
    case="K=3, n=3",
    subject=lambda own: own,
    mutants={
        "the newest for all": lambda own: STALE[-1],
        "their average for all": lambda own: tuple(
            sum(w * s[k] for w, s in zip(SHARES, STALE, strict=True)) for k in range(3)
        ),
        "the policy for all": lambda own: THREE.policy,
        "the prior for all": lambda own: THREE.prior,
    },
    counterexamples={"which groups the buffer holds does not depend on θ": show_law_that_moves},
    assumptions=("which groups the buffer holds does not depend on θ",),
    code=("llm.align.phase_groups", "toy.fit.fit"),
)
def t12(cache: Cache) -> None:
    """E over proposal and group of Σ (α̂ − β̂) h against the derivative of Σ w D_n."""
    mean, slopes = [Fraction(0)] * 3, [Fraction(0)] * 3
    for share, own in zip(SHARES, STALE, strict=True):
        problem = THREE._replace(proposal=own)
        used = cache(own)
        found = mean_gradient(problem, 3, brain_coefficients, (ratio(THREE.posterior, used), ratio(THREE.policy, used)))
        mean = [m + share * f for m, f in zip(mean, found, strict=True)]
        slopes = [m + share * f for m, f in zip(slopes, ascent(problem, 3, moving_divergence), strict=True)]
    require_equal(mean, slopes, "mean gradient of a mixed buffer")


Rule = Callable[[Sequence[Sequence[int]], Vector], bool]

BUFFERS = (
    ((0, 1), (2, 3)),
    ((0, 1), (1, 2, 3)),
    ((0, 1, 2), (2, 3)),
    ((0, 1), (1, 2)),
    ((0, 1), (1, 2), (2, 3)),
)
"""Supports of the proposals of a buffer: two islands, two that link all, one that misses a completion, a chain."""


def constant_on_components(supports: Sequence[Sequence[int]], ratios: Vector) -> bool:
    """Whether q/π is constant on each component of completions linked by sharing a proposal's support."""
    component = list(range(len(ratios)))
    for support in supports:
        joined = {component[y] for y in support}
        component = [min(joined) if c in joined else c for c in component]
    return all(
        len({r for r, c in zip(ratios, component, strict=True) if c == chosen}) == 1 for chosen in set(component)
    )


@claim(
    "T12a",
    "a mixed buffer is fitted exactly where q/π is constant on each component that the supports link together",
    source="docs/theory.md T12, T1",
    method="exact: all groups",
    case="K=4, n=2, five lists of supports, 6 policies",
    subject=constant_on_components,
    mutants={
        "only where q = π": lambda supports, ratios: set(ratios) == {1},
        "constant on the first and on the last support": lambda supports, ratios: all(
            len({ratios[y] for y in support}) == 1 for support in (supports[0], supports[-1])
        ),
        "the supports must cover everything": lambda supports, ratios: (
            len(set().union(*supports)) == len(ratios) and constant_on_components(supports, ratios)
        ),
        "constant on the first support": lambda supports, ratios: len({ratios[y] for y in supports[0]}) == 1,
        "each proposal needs full support": lambda supports, ratios: (
            all(len(s) == len(ratios) for s in supports) and len(set(ratios)) == 1
        ),
    },
)
def t12a(rule: Rule) -> None:
    """Objective 0 exactly where the rule says so: unique only where the supports link all; two lists do not."""
    target = proportional(1, 2, 3, 4)
    policies = [
        proportional(*w) for w in ((1, 2, 3, 4), (2, 4, 3, 4), (1, 2, 6, 8), (2, 1, 3, 4), (1, 2, 3, 9), (3, 6, 9, 1))
    ]
    for supports in BUFFERS:
        for policy in policies:
            objective = LogNumber.of(0)
            for support in supports:
                proposal = proportional(*(int(y in support) for y in range(4)))
                problem = Toy(target, (Fraction(1),) * 4, policy, proposal)
                objective += mean_divergence(problem, problem.target_ratio, problem.policy_ratio, 2)
            require_equal(objective == 0, rule(supports, ratio(policy, target)), f"{supports}, {policy}")


Floats = np.ndarray[Any, np.dtype[np.float64]]

REUSED = Toy(
    proportional(1, 1, 1), (Fraction(2), Fraction(3), Fraction(5)), proportional(3, 1, 1), proportional(5, 3, 2)
)
"""Target (2, 3, 5)/10, first policy (6, 2, 2)/10, proposal (5, 3, 2)/10."""

FloatCoefficients = Callable[[Floats, Floats], Floats]


def batch_ascent(logits: Floats, group: Group, coefficients: FloatCoefficients) -> Floats:
    """Σ c_i ∇ log q(y_i) in logits for a group of REUSED, in float64."""
    chosen = list(group)
    targets = np.log(np.array(REUSED.target_ratio, float))[chosen]
    ratios = logits[chosen] - np.log(np.array(REUSED.proposal, float))[chosen]
    found = coefficients(targets, ratios)
    shifted = np.exp(logits - logits.max())
    gradient: Floats = np.bincount(chosen, found, len(logits)) - found.sum() * shifted / shifted.sum()
    return gradient


def fresh(group: Group) -> dict[Group, Fraction]:
    """The law of the second group: new draws, whatever the first one was."""
    return {other: probability(other, REUSED.proposal) for other in ordered_groups(3, 2)}


def second_step(second: Callable[[Group], dict[Group, Fraction]]) -> tuple[Floats, Floats]:
    """After a step of 1 on one group: the mean of ĝ on the second group, and the mean of −∇D_2, at the new policy."""
    start = np.log(np.array(REUSED.policy, float))
    mean, slopes = np.zeros(3), np.zeros(3)
    for group in ordered_groups(3, 2):
        chance = float(probability(group, REUSED.proposal))
        logits = start + batch_ascent(start, group, brain_core.brain_coefficients)
        moved = proportional(*(Fraction(float(weight)) for weight in np.exp(logits)))
        slopes += chance * np.array(ascent(REUSED._replace(policy=moved), 2, moving_divergence), float)
        for other, weight in second(group).items():
            mean += chance * float(weight) * batch_ascent(logits, other, brain_core.brain_coefficients)
    return mean, slopes


def show_bias_of_reuse() -> None:
    """On the group that the policy has just been trained on, the estimate is too small."""
    mean, slopes = second_step(lambda group: {group: Fraction(1)})
    printed = (-0.09660327076183, 0.047505131592089), (-0.154033380653687, 0.072612387282062)
    for vector, values in zip((mean, slopes), printed, strict=True):
        for found, value in zip(vector, (*values, -sum(values)), strict=True):
            require_close(float(found), value, 1e-12, "mean of ĝ on the same group, and of −∇D")


@claim(
    "T12b",
    "after a step the estimate is unbiased on a fresh group; on the group of that step itself it is not",
    source="docs/theory.md T12",
    method="all groups; dual numbers on the floats reached",
    case="K=3, n=2, step 1",
    tolerance=1e-12,
    subject=fresh,
    mutants={
        "the same group": lambda group: {group: Fraction(1)},
        "one completion kept": lambda group: {(group[0], y): s for y, s in enumerate(REUSED.proposal)},
    },
    counterexamples={"the group is not reused": show_bias_of_reuse},
    code=("brain_core.brain_coefficients",),
)
def t12b(second: Callable[[Group], dict[Group, Fraction]]) -> None:
    """Mean of ĝ(z_1, Y') over both groups against the mean of −∇D_2(z_1)."""
    mean, slopes = second_step(second)
    require(bool(np.abs(mean - slopes).max() < 1e-12), f"{mean} is not {slopes}")


@claim(
    "T12c",
    "reuse is safe all the same: no step on a fixed set of groups takes the logits away from the target's",
    source="docs/theory.md T12, T7",
    method="float64, 300 steps on 4 groups",
    case="K=3, steps 1/2, 1 and 3/2",
    tolerance=1e-12,
    subject=brain_core.brain_coefficients,
    mutants={
        "no baseline": lambda target, policy: brain_core.snis_coefficients(target),
        "swapped": lambda target, policy: -brain_core.brain_coefficients(target, policy),
        "half": lambda target, policy: brain_core.brain_coefficients(target, policy) / 2,
        "uniform baseline": lambda target, policy: brain_core.snis_coefficients(target) - 1 / len(target),
    },
    code=("brain_core.brain_coefficients", "brain_core.self_normalized_kl"),
)
def t12c(coefficients: FloatCoefficients) -> None:
    """‖z + γĝ − z*‖² ≤ ‖z − z*‖² − 2γ D(Y) at every step (T7)."""
    optimum = np.log(np.array(REUSED.posterior, float))
    for step in (0.5, 1.0, 1.5):
        logits = np.log(np.array(REUSED.policy, float))
        for group in itertools.islice(itertools.cycle([(0, 1), (1, 2), (0, 0), (2, 0)]), 300):
            chosen = list(group)
            proposal = np.log(np.array(REUSED.proposal, float))[chosen]
            value = float(brain_core.self_normalized_kl(optimum[chosen] - proposal, logits[chosen] - proposal))
            moved = logits + step * batch_ascent(logits, group, coefficients)
            bound = ((logits - optimum) ** 2).sum() - 2 * step * value
            require(bool(((moved - optimum) ** 2).sum() <= bound + 1e-12), f"distance after a step of {step}")
            logits = moved


Bound = Callable[[Fraction], Fraction]
"""From ρ = e^ε to a bound."""


def tanh_of_half(factor: Fraction) -> Fraction:
    """tanh(ε/2) = (ρ − 1)/(ρ + 1) at ρ = e^ε."""
    return (factor - 1) / (factor + 1)


WRONG_BOUNDS: dict[str, Bound] = {
    "1 % smaller": lambda factor: tanh_of_half(factor) * Fraction(99, 100),
    "tanh(ε/4)": lambda factor: tanh_of_half(Fraction(math.isqrt(factor.numerator), math.isqrt(factor.denominator))),
    "ε/4": lambda factor: Fraction(math.log(factor)) / 4,
    "ε/2": lambda factor: Fraction(math.log(factor)) / 2,
    "tanh(ε)": lambda factor: tanh_of_half(factor**2),
    "2 tanh(ε/2)": lambda factor: 2 * tanh_of_half(factor),
    "1": lambda factor: Fraction(1),
}


def variation(left: Sequence[Fraction], right: Sequence[Fraction]) -> Fraction:
    """Total variation."""
    return sum((abs(a - b) for a, b in zip(left, right, strict=True)), start=Fraction(0)) / 2


def noises(size: int, factor: Fraction) -> list[tuple[Fraction, ...]]:
    """Factors of e^r within [1/ρ, ρ]: the extreme ones and 1, in all combinations."""
    return list(itertools.product((1 / factor, Fraction(1), factor), repeat=size))


def require_bound_for_symbols(bound: Callable[[Any], Any]) -> None:
    """On two completions no noise within [1/ρ, ρ] exceeds the bound, whatever the target: z3."""
    import z3

    a, first, second, factor = z3.Reals("a first second factor")
    moved = a * first / (a * first + (1 - a) * second)
    ranges = [side * factor >= 1 for side in (first, second)] + [first <= factor, second <= factor]
    require_proved("bound for every target", a > 0, a < 1, factor > 1, *ranges, moved - a > bound(factor))


def show_one_wild_reward() -> None:
    """One reward off by log 10⁶ moves the target by 0.998, beyond the 3/5 that e^ε = 4 allows."""
    moved = variation(proportional(1, 999), proportional(10**6, 999))
    require_equal(moved, Fraction(998999001, 1000999000), "TV with one reward 13.8 nats off")
    require(moved > tanh_of_half(Fraction(4)), "the bound of the others' noise is exceeded")


@claim(
    "T13",
    "rewards wrong by at most ε move the target by at most tanh(ε/2) in total variation, which is attained",
    source="docs/theory.md T13",
    method="exact: all extreme noises; z3 for two completions",
    case="e^ε = 4 and 9/4; K ≤ 4, 12 random toys and the sharp one",
    subject=tanh_of_half,
    mutants=WRONG_BOUNDS,
    counterexamples={"every reward is wrong by at most ε": show_one_wild_reward},
)
def t13(bound: Bound) -> None:
    """Random toys, and the target (1, ρ)/(1 + ρ) on which the bound is an equality."""
    for factor in (Fraction(4), Fraction(9, 4)):
        sharp = proportional(1, factor)
        require_equal(variation(sharp, proportional(factor, 1)), bound(factor), "the sharp case")
        for target in (sharp, GENERIC.posterior, *(toy.posterior for toy in random_toys(12, seed=16))):
            for noise in noises(len(target), factor):
                moved = proportional(*(p * u for p, u in zip(target, noise, strict=True)))
                require(variation(target, moved) <= bound(factor), f"TV at e^ε = {factor}")
    require_bound_for_symbols(bound)


@claim(
    "T13a",
    "such noise moves the coefficients of any group by at most 2 tanh(ε/2) in l1 norm, which is attained",
    source="docs/theory.md T13",
    method="exact: all groups, all extreme noises",
    case="K=4, n=3, e^ε = 4 and 9/4",
    subject=tanh_of_half,
    mutants=WRONG_BOUNDS,
    code=("brain_core.brain_coefficients",),
    note="So a gradient moves by at most 2 tanh(ε/2) max ‖h‖, since it is Σ c_i h(y_i).",
)
def t13a(bound: Bound) -> None:
    """Groups of the generic instance, with the noise on each completion's reward; and the sharp group."""
    sharp = Toy(proportional(1, 1), (Fraction(1), Fraction(1)), proportional(1, 1), proportional(1, 1))
    for factor in (Fraction(4), Fraction(9, 4)):
        steep = sharp._replace(goodness=(Fraction(1), factor))
        for problem, size in ((GENERIC, 3), (steep, 2)):
            for group in itertools.combinations_with_replacement(range(problem.size), size):
                largest = largest_change(problem, group, factor)
                require(largest <= 2 * bound(factor), f"change of the coefficients of {group}")
        require_equal(largest_change(steep, (0, 1), factor), 2 * bound(factor), "the sharp group")


def largest_change(problem: Toy, group: Group, factor: Fraction) -> Fraction:
    """The largest l1 norm of the change of α̂ − β̂ under the extreme noises."""
    betas = [problem.policy_ratio[y] for y in group]
    right = brain_coefficients([problem.target_ratio[y] for y in group], betas)
    changes = []
    distinct = sorted(set(group))
    for factors in noises(len(distinct), factor):
        noise = dict(zip(distinct, factors, strict=True))
        wrong = brain_coefficients([problem.target_ratio[y] * noise[y] for y in group], betas)
        changes.append(2 * variation(right, wrong))
    return max(changes)


@claim(
    "T13b",
    "log-probabilities with errors spread over Δ move self-normalised weights by at most tanh(Δ/4) in TV, attained",
    source="docs/theory.md T13",
    method="exact: extreme errors",
    case="e^{Δ/2} = 4 and 9/4; 40 random weights",
    subject=tanh_of_half,
    mutants=WRONG_BOUNDS | {"of an error of ±Δ/4": lambda factor: tanh_of_half(factor) / 2},
    note="bf16 rounds log-probabilities near −1000 by up to 2 nats, log q and log q' each: Δ = 8, a bound of 0.96.",
)
def t13b(bound: Bound) -> None:
    """A common shift of all errors changes nothing: only their spread counts, [1, ρ²] in the factors."""
    for factor in (Fraction(4), Fraction(9, 4)):
        sharp, moved = proportional(1, factor), proportional(factor**2, factor)
        require_equal(variation(sharp, moved), bound(factor), "the sharp case")
        for weights in (sharp, *(toy.policy for toy in random_toys(40, seed=17))):
            for errors in itertools.product((Fraction(7), 7 * factor, 7 * factor**2), repeat=len(weights)):
                moved = proportional(*(w * e for w, e in zip(weights, errors, strict=True)))
                require(variation(weights, moved) <= bound(factor), f"TV at spread {factor}²")

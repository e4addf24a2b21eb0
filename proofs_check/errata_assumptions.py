"""Errata E1 to E20 of the paper, second part: assumptions that are missing, and claims that go too far.

The subject of each claim meets the assumption, its mutant is the statement as printed; what breaks is shown exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import Group, mean_over_multisets, mean_self_normalized, ordered_groups, probability
from proofs_check.errata import brain_weights, mean_gradient, moving_mean, scores, still_mean
from proofs_check.exact import Dual, LogNumber, along, in_logits, log
from proofs_check.groups import ZERO, at, combined, kl, shares
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, toy
from proofs_check.sections_5_to_7 import argmax_divergence, as_fraction, as_log, logistic, mean_divergence
from toy import gaussian_moments


def show_nothing_to_compare() -> None:
    """n = 1 on the generic instance: every coefficient and D_1 are 0, KL(π‖q) is 0.0546."""
    for y in range(GENERIC.size):
        require_equal(brain_weights(GENERIC, (y,)), [0], "coefficient of a group of one")
    require_equal(still_mean(GENERIC, 1), 0, "D_1")
    require_close(float(kl(GENERIC.posterior, GENERIC.policy)), 0.0546104, 1e-7, "KL")


@claim(
    "err-2",
    "Theorem 4.3 needs n ≥ 2: D_1 is 0 for every policy",
    source="Theorem 4.3 (4.2 in the later version)",
    method="exact logarithms: D_n over multisets",
    case="K ≤ 4, n = 2, 3; 20 random problems and their optima",
    mend="add n ≥ 2 to Theorem 4.3",
    subject=(2, 3),
    mutants={"as printed: any n": (1, 2, 3), "n = 1": (1,)},
    assumptions=("n ≥ 2",),
    counterexamples={"n ≥ 2": show_nothing_to_compare},
    code=("brain_core.self_normalized_kl", "brain_core.brain_coefficients"),
    tests=("tests/brain_core/test_semantics.py::test_comparison_of_a_single_completion_raises",),
)
def err_2(group_sizes: Sequence[int]) -> None:
    """D_n = 0 exactly where q = π, on problems and on their optima."""
    problems = (GENERIC, *random_toys(20, seed=2))
    optima = tuple(problem._replace(policy=problem.posterior) for problem in problems)
    for problem, size in itertools.product((*problems, *optima), group_sizes):
        is_solved = problem.policy == problem.posterior
        require_equal(still_mean(problem, size) == 0, is_solved, f"D_{size} = 0 and q = π")


Convention = Callable[[int], Sequence[Fraction]]
"""What the weights α̂ of a group of n are where every α is 0."""


def nothing(group_size: int) -> list[Fraction]:
    """No weight at all: the group contributes 0."""
    return [Fraction(0)] * group_size


def undefined(group_size: int) -> list[Fraction]:
    """0/0."""
    require(False, "α̂ is 0/0 on a group that the target gives no mass")
    return []


def spread(group_size: int) -> list[Fraction]:
    """1/n each."""
    return [Fraction(1, group_size)] * group_size


NARROW = toy((1, 2, 3, 4), (3, 1, 0, 0), (1, 2, 3, 1), (1, 2, 3, 4))
"""The posterior (3/5, 2/5, 0, 0) has a smaller support than the proposal (1, 2, 3, 4)/10."""


def narrow_weights(problem: Toy, convention: Convention, group: Group) -> Sequence[Fraction]:
    """α̂ of a group, by the convention where it is empty."""
    ratios = at(problem.target_ratio, group)
    return shares(ratios) if any(ratios) else convention(len(group))


def show_truncated_sampling() -> None:
    """q has mass where q' has none (top-p, top-k): π = q' = (½, ½, 0), q = (¼, ¼, ½), D_n = 0 and KL = log 2."""
    problem = toy((1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 0))
    for size in (2, 3, 4):
        require_equal(still_mean(problem, size), 0, f"D_{size}")
    require_equal(kl(problem.posterior, problem.policy), log(2), "KL")


def show_unsampled_target() -> None:
    """π = (1, 1, 3)/5, q = (2, 2, 1)/5, q' = (½, ½, 0): D_n = 0, KL = (3 log 3 − 2 log 2)/5."""
    problem = toy((1, 1, 3), (1, 1, 1), (2, 2, 1), (1, 1, 0))
    for size in (2, 3, 4):
        require_equal(still_mean(problem, size), 0, f"D_{size}")
    require_equal(kl(problem.posterior, problem.policy), (3 * log(3) - 2 * log(2)) / 5, "KL")


@claim(
    "err-3",
    "Supports: supp π may be smaller than supp q', then α̂ can be 0/0 and must count 0; supp q ⊆ supp q' cannot go",
    source="Definition 4.1, which writes support(p) for the posterior's",
    method="exact: duals over ordered groups; D_2 near the optimum",
    case="K=4, n=2",
    mend="supp π ⊆ supp q ⊆ supp q', and a group with A = 0 contributes 0",
    subject=nothing,
    mutants={"as printed: 0/0": undefined, "silently uniform": spread},
    assumptions=("supp π ⊆ supp q'", "supp q ⊆ supp q'"),
    counterexamples={"supp q ⊆ supp q'": show_truncated_sampling, "supp π ⊆ supp q'": show_unsampled_target},
    code=("brain_core.SupportError", "brain_core.brain_coefficients"),
    tests=("tests/brain_core/test_semantics.py::test_group_without_target_mass_raises_or_contributes_nothing",),
)
def err_3(convention: Convention) -> None:
    """Theorem 4.2 stays, and D_2 goes to 0 with KL: at 1/1000 from the optimum it is below 1/100."""
    found = mean_divergence(NARROW, in_logits(NARROW.policy), 2, lambda g: narrow_weights(NARROW, convention, g))
    require(found.value > 0, "D_2 > 0 away from the optimum")
    mean = mean_gradient(NARROW, 2, lambda g: narrow_coefficients(NARROW, convention, g))
    require_equal(mean, tuple(-slope for slope in found.slopes), "E ĝ and −∇D_2")
    near = proportional(
        *(999 * target + extra for target, extra in zip(NARROW.posterior, proportional(0, 0, 3, 1), strict=True))
    )
    nearly = mean_divergence(NARROW, in_logits(near), 2, lambda g: narrow_weights(NARROW, convention, g))
    require(0 < nearly.value < Fraction(1, 100), "D_2 is small near the optimum")


def narrow_coefficients(problem: Toy, convention: Convention, group: Group) -> list[Fraction]:
    """α̂ − β̂, or nothing where α̂ is nothing."""
    target, policy = narrow_weights(problem, convention, group), shares(at(problem.policy_ratio, group))
    return [a - b for a, b in zip(target, policy, strict=True)] if any(target) else nothing(len(group))


class Sources(NamedTuple):
    """What draws the groups, and what α and β are divided by; each with its slopes in the policy's logits."""

    law: Sequence[Dual]
    under_target: Sequence[Dual]
    under_policy: Sequence[Dual]


def constants(policy: Sequence[Dual]) -> list[Dual]:
    """The policy's values, detached."""
    return [Dual(q.value, (Fraction(0),) * len(q.slopes)) for q in policy]


def slope_of_kl(target: Sequence[Dual], policy: Sequence[Dual], direction: int) -> LogNumber:
    """d KL(α̂‖β̂) = Σ dα̂ log(α̂/β̂) − Σ α̂ dβ̂/β̂, because Σ dα̂ = 0."""
    total = ZERO
    for a, b in zip(target, policy, strict=True):
        total += a.slopes[direction] * log(as_fraction(a) / as_fraction(b))
        total -= as_fraction(a) * b.slopes[direction] / as_fraction(b)
    return total


def slope_of_divergence(target: Vector, policy: Sequence[Dual], sources: Sources, direction: int) -> LogNumber:
    """d D_2 = Σ over pairs of P dD + D dP."""
    total = ZERO
    for group in ordered_groups(len(policy), 2):
        chance = sources.law[group[0]] * sources.law[group[1]]
        references = at(sources.under_target, group)
        a = shares([s.reciprocal() * target[y] for y, s in zip(group, references, strict=True)])
        b = shares([policy[y] / sources.under_policy[y] for y in group])
        value = kl([as_fraction(x) for x in a], [as_fraction(x) for x in b])
        total += as_fraction(chance) * slope_of_kl(a, b, direction) + chance.slopes[direction] * value
    return total


ON_POLICY = GENERIC._replace(proposal=GENERIC.policy)


def show_moving_law() -> None:
    """q = q' = (1, 2)/3, π = (2, 1)/3, n = 2: a law that moves adds (4/27) KL((4/5, 1/5) ‖ (1/2, 1/2)) to −2/15."""
    problem = toy((1, 2), (4, 1), (1, 2), (1, 2))
    policy, fixed = in_logits(problem.policy), constants(in_logits(problem.policy))
    still = slope_of_divergence(problem.posterior, policy, Sources(fixed, fixed, fixed), 0)
    moving = slope_of_divergence(problem.posterior, policy, Sources(policy, fixed, fixed), 0)
    require_equal(still, -Fraction(2, 15), "slope with a fixed law")
    require_equal(moving - still, Fraction(4, 27) * kl(proportional(4, 1), proportional(1, 1)), "what the law adds")


@claim(
    "err-4",
    "Theorem 4.2 needs a q' that does not depend on θ: neither what draws the groups, nor α̂, nor the q' in β̂",
    source="Theorem 4.2 (4.1 in the later version)",
    method="exact logarithms: product rule over all pairs, in the logits",
    case="K=4, n=2, on-policy",
    mend="q' is a constant (a stop-gradient when it is q_θ), and E sup |∇ log q| < ∞ near θ, to swap ∇ and E",
    subject=lambda policy: Sources(constants(policy), constants(policy), constants(policy)),
    mutants={
        "as printed: q' = q_θ, nothing detached": lambda policy: Sources(policy, policy, policy),
        "what draws the groups follows θ": lambda policy: Sources(policy, constants(policy), constants(policy)),
        "α̂ follows θ": lambda policy: Sources(constants(policy), policy, constants(policy)),
        "q' in β̂ follows θ": lambda policy: Sources(constants(policy), constants(policy), policy),
    },
    assumptions=("q' does not depend on θ", "domination, automatic on finite sets"),
    counterexamples={"q' does not depend on θ": show_moving_law},
    note="the domination that infinite sets need is assumed, not checked",
)
def err_4(sources_of: Callable[[Sequence[Dual]], Sources]) -> None:
    """The derivative of D_2 with these sources against −E ĝ."""
    policy = in_logits(ON_POLICY.policy)
    mean = mean_gradient(ON_POLICY, 2, lambda group: brain_weights(ON_POLICY, group))
    for direction, ascent in enumerate(mean):
        slope = slope_of_divergence(ON_POLICY.posterior, policy, sources_of(policy), direction)
        require_equal(slope, -ascent, f"∂D_2/∂z_{direction}")


Family = Callable[[Fraction], list[Dual]]

EVEN = toy((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
"""Three outcomes, everything uniform."""


def line_of_logits(x: Fraction) -> list[Dual]:
    """Policy weights (2, x, 3x²): a straight line of logits in log x, with slopes in log x."""
    return along((Fraction(2), x, 3 * x**2), ((0, x, 6 * x**2),))


def curve(x: Fraction) -> list[Dual]:
    """Policy weights (1, x, 1/4 + (x − 2)²/2), with slopes in x."""
    return along((Fraction(1), x, Fraction(1, 4) + (x - 2) ** 2 / 2), ((0, 1, x - 2),))


def show_second_minimum() -> None:
    """Along the curve D_2 has minima in (7/8, 1), about 9.3e-4, and in (7/2, 29/8), about 0.067."""
    for low, high, depth, tolerance in ((7, 8, 9.3e-4, 5e-6), (28, 29, 0.067, 5e-4)):
        left, right = Fraction(low, 8), Fraction(high, 8)
        ends = [slope_along_curve(x) for x in (left, right)]
        require(ends[0] < 0 < ends[1], f"D_2 has a minimum between {left} and {right}")
        for _ in range(8):
            middle = (left + right) / 2
            left, right = (middle, right) if slope_along_curve(middle) < 0 else (left, middle)
        found = moving_mean(EVEN, curve(left), 2)
        require_close(float(as_log(found)), depth, tolerance, "D_2 at the minimum")


def slope_along_curve(x: Fraction) -> Fraction:
    """dD_2/dx on the curve."""
    return moving_mean(EVEN, curve(x), 2).slopes[0]


def show_not_the_projection() -> None:
    """Logits φ·(0, 1, 2): at KL's projection (1, 2, 4)/7 of (5, 6, 17)/28 the slopes of −D_2 are not 0."""
    target, policy, feature = proportional(5, 6, 17), proportional(1, 2, 4), (0, 1, 2)
    mean = sum(q * t for q, t in zip(policy, feature, strict=True))
    require_equal(sum(a * t for a, t in zip(target, feature, strict=True)), mean, "moments at KL's projection")
    tilted = along(policy, ([q * (t - mean) for q, t in zip(policy, feature, strict=True)],))
    expected = (
        (policy, Fraction(495, 105154)),
        (EVEN.prior, -Fraction(784, 34155)),
        (target, -Fraction(7935, 1682464)),
    )
    for proposal, slope in expected:
        problem = Toy(EVEN.prior, target, policy, proposal)
        require_equal(-moving_mean(problem, tilted, 2).slopes[0], slope, "slope of −D_2")


@claim(
    "err-9",
    "“The only minima” is true over distributions, false over θ: D_n has other local minima and another projection",
    source="Theorem 4.3 (4.2 in the later version)",
    method="exact: slopes of D_2 along lines and curves",
    case="K=3, n=2, 40 points",
    mend="q_θ = π is the only minimum over distributions; a family that cannot reach π has minima of its own",
    subject=line_of_logits,
    mutants={"as printed: any family": curve},
    assumptions=("q ranges over all distributions",),
    counterexamples={"every θ": show_second_minimum, "π within reach of the family": show_not_the_projection},
)
def err_9(family: Family) -> None:
    """The slope of D_2 rises along the family and changes sign once."""
    slopes = [moving_mean(EVEN, family(Fraction(eighths, 8)), 2).slopes[0] for eighths in range(1, 41)]
    require_equal(sum(a < 0 < b for a, b in itertools.pairwise(slopes)), 1, "number of minima")
    require(all(a < b for a, b in itertools.pairwise(slopes)), "D_2 is convex along the family")


SKEW = toy((1, 1, 1), (1, 1, 1), (1, 2, 3), (3, 2, 1))
"""q = (1, 2, 3)/6 and q' = (3, 2, 1)/6."""

Bias = Callable[[Toy, int], Sequence[Fraction]]


def leading_bias(problem: Toy, group_size: int) -> list[Fraction]:
    """−E_q'[β² h] / n in the logits."""
    terms = [s * b**2 for s, b in zip(problem.proposal, problem.policy_ratio, strict=True)]
    return [
        -sum((term * h[j] for term, h in zip(terms, scores(problem), strict=True)), start=Fraction(0)) / group_size
        for j in range(problem.size)
    ]


def mean_baseline(problem: Toy, group_size: int) -> list[Fraction]:
    """E Σ β̂ h in the logits, from the law of the sum of β."""
    weight = mean_self_normalized(problem.policy_ratio, problem.proposal, group_size)
    return [w - q for w, q in zip(weight, problem.policy, strict=True)]


def show_bias_against_kl() -> None:
    """Generic instance, n = 3: E ĝ is not π − q = −∇KL; in the first logit 0.0084 against 1/70 = 0.0143."""
    mean = mean_gradient(GENERIC, 3, lambda group: brain_weights(GENERIC, group))
    require_equal(GENERIC.posterior[0] - GENERIC.policy[0], Fraction(1, 70), "first logit of −∇KL")
    require_equal(mean[0], Fraction(62736621751, 7508685800000), "first logit of E ĝ")


@claim(
    "err-10",
    "“Without any bias” is true of (9), not of its estimate (10): that has mean −E[β² h]/n + O(1/n²), 0 on-policy",
    source="section 4, around eqs. (9) and (10)",
    method="exact: law of the sum of β; published figures to their digits",
    case="K=3, n up to 32",
    tolerance=5e-5,
    mend="the estimate (10) is biased by −E_q'[β² h]/n; (12) is unbiased for −∇D_n, not for −∇KL",
    subject=leading_bias,
    mutants={
        "as printed: no bias": lambda problem, n: [Fraction(0)] * problem.size,
        "wrong sign": lambda problem, n: [-bias for bias in leading_bias(problem, n)],
        "of order 1/n²": lambda problem, n: [bias / n for bias in leading_bias(problem, n)],
    },
    counterexamples={"against D_n, not KL": show_bias_against_kl},
    code=("brain_core.brain_coefficients",),
)
def err_10(bias: Bias) -> None:
    """n² times the rest stays below 1; on-policy there is nothing left; the published figures."""
    for size in (4, 8, 16, 32):
        rest = [m - b for m, b in zip(mean_baseline(SKEW, size), bias(SKEW, size), strict=True)]
        require(all(abs(value) * size**2 <= 1 for value in rest), f"n² times the rest at n = {size}")
    require_equal(mean_baseline(ON_POLICY, 3), list(bias(ON_POLICY, 3)), "mean of (10) on-policy")
    require_equal(mean_baseline(SKEW, 1), [Fraction(1, 3), 0, -Fraction(1, 3)], "mean of (10) at n = 1")
    for value, expected in zip(mean_baseline(SKEW, 16), (0.2865, 0.2969, -0.5834), strict=True):
        require_close(16 * float(value), expected, 5e-5, "n times the mean of (10) at n = 16")


Estimator = Callable[[Toy, Group], Sequence[Fraction]]


def snis_weights(problem: Toy, group: Group) -> list[Fraction]:
    """α̂, eq. (7)."""
    return shares(at(problem.target_ratio, group))


def dpg_weights(problem: Toy, group: Group) -> list[Fraction]:
    """α/n."""
    return [a / len(group) for a in at(problem.target_ratio, group)]


def gdcpp_weights(problem: Toy, group: Group) -> list[Fraction]:
    """(α − β)/n."""
    pairs = zip(at(problem.target_ratio, group), at(problem.policy_ratio, group), strict=True)
    return [(a - b) / len(group) for a, b in pairs]


def total_variance(problem: Toy, group_size: int, estimator: Estimator) -> Fraction:
    """Trace of the covariance of Σ c_i ∇ log q(y_i) in the logits, over multisets."""

    outcome_scores = scores(problem)

    @cache
    def moments(group: Group) -> Vector:
        """The gradient of a group in the logits, and its squared length."""
        gradient = combined(estimator(problem, group), at(outcome_scores, group))
        return (*gradient, sum((g**2 for g in gradient), start=Fraction(0)))

    def mean(entry: int) -> Fraction:
        """E of one of the moments."""
        return Fraction(mean_over_multisets(problem.proposal, group_size, lambda group: moments(group)[entry]))

    return mean(problem.size) - sum(mean(j) ** 2 for j in range(problem.size))


PEAKED = toy((1, 1, 1), (98, 1, 1), (1, 1, 1), (1, 1, 1))
"""On-policy, q = q' uniform, π = (0.98, 0.01, 0.01)."""

SAMPLED_FROM_TARGET = toy((1, 1), (1, 4), (4, 1), (1, 4))
"""q' = π = (1, 4)/5, q = (4, 1)/5."""


def show_higher_variance_on_policy() -> None:
    """The peaked problem, n = 8: BRAIn 0.0860, GDC++ 0.0784, SNIS 0.0564."""
    figures = ((brain_weights, 0.0860), (gdcpp_weights, 0.0784), (snis_weights, 0.0564))
    for estimator, expected in figures:
        found = float(total_variance(PEAKED, 8, estimator))
        require_close(found, expected, 5e-5, f"variance of {estimator.__name__}")


def show_higher_variance_from_target() -> None:
    """q' = π, n = 3: (12) has 448/3267, (7) and DPG, which is the same there, 8/75."""
    expected = ((brain_weights, Fraction(448, 3267)), (snis_weights, Fraction(8, 75)), (dpg_weights, Fraction(8, 75)))
    for estimator, variance in expected:
        require_equal(total_variance(SAMPLED_FROM_TARGET, 3, estimator), variance, f"variance of {estimator.__name__}")


def show_higher_variance_on_gaussians() -> None:
    """The paper's Gaussian toy at q' = π, n = 8: (7) and DPG have 1/8, (12) has 0.1732."""
    for name, variance, tolerance in (("snis", 1 / 8, 1e-8), ("dpg", 1 / 8, 1e-8), ("brain", 0.1732, 5e-5)):
        require_close(gaussian_moments(name, 0.0, 8).variance, variance, tolerance, f"variance of {name}")


@claim(
    "err-12",
    "“The baseline reduces the variance” is false in general; at q = π it removes all of it",
    source="section 4, before eq. (8)",
    method="exact: total variance over multisets; quadrature for the Gaussian toy",
    case="K=4, n=3; K=3, n=8",
    mend="subtracting (10) leaves no variance at q = π; elsewhere it can raise the variance",
    subject=lambda problem: problem.policy == problem.posterior,
    mutants={
        "as printed: everywhere": lambda problem: True,
        "on-policy": lambda problem: problem.policy == problem.proposal,
        "where q' = π": lambda problem: problem.proposal == problem.posterior,
    },
    counterexamples={
        "q = π, on-policy": show_higher_variance_on_policy,
        "q = π, sampling the target": show_higher_variance_from_target,
        "q = π, Gaussian": show_higher_variance_on_gaussians,
    },
    code=("brain_core.brain_coefficients", "brain_core.snis_coefficients", "toy.exact_moments", "toy.gaussian_moments"),
)
def err_12(is_promised: Callable[[Toy], bool]) -> None:
    """Wherever less variance is promised (12) has less than (7), and none at all at the optimum."""
    optima = [(problem._replace(policy=problem.posterior), size) for problem, size in ((GENERIC, 3), (PEAKED, 8))]
    cases = [(GENERIC, 3), (PEAKED, 8), (SAMPLED_FROM_TARGET, 3), *optima]
    promised = [case for case in cases if is_promised(case[0])]
    require(bool(promised), "something is promised")
    for problem, size in promised:
        with_baseline, without = (total_variance(problem, size, e) for e in (brain_weights, snis_weights))
        require(with_baseline < without, "variance of (12) below that of (7)")
        require(with_baseline == 0 or (problem, size) not in optima, "no variance at the optimum")


Goodness = Callable[[Vector], Sequence[Fraction]]


def show_unbounded_reward() -> None:
    """Rewards k log 2: with c = 2^−m, c e^r is 2 at k = m + 1, so no c works; m up to 60."""
    for m in range(61):
        require_equal(Fraction(1, 2**m) * 2 ** (m + 1), 2, "c e^r")


def show_diverging_normalizer() -> None:
    """p_k = 2^−(k+1), r = k log 2: the first N terms of Σ p e^r sum to N/2."""
    for terms in (10, 100, 1000):
        partial = sum(Fraction(1, 2 ** (k + 1)) * 2**k for k in range(terms))
        require_equal(partial, Fraction(terms, 2), "partial sum of p e^r")


def show_ratio_is_not_odds() -> None:
    """Goodness (1/2, 1/4): the ratio is 2 = e^{Δr}, the ratio of the odds of G is 3."""
    first, second = Fraction(1, 2), Fraction(1, 4)
    require_equal(first / second, 2, "ratio of goodness")
    require_equal(first / (1 - first) / (second / (1 - second)), 3, "ratio of the odds")


@claim(
    "err-15",
    "(19) needs p(G=1|y,x) = c(x) e^r with c ≤ e^{−max r}: a bounded reward and Σ p e^r < ∞; it contradicts (15)",
    source="eqs. (15) and (19)",
    method="exact: reward tables with rational e^r",
    case="3 tables",
    mend="assume sup r < ∞ and Σ p e^r < ∞; (19) is a ratio of probabilities, not log-odds of G; (15) is another model",
    subject=lambda exp_reward: [e / max(exp_reward) for e in exp_reward],
    mutants={"as printed, with e^r for g": list, "as printed, with (15) for g": lambda e: [logistic(x) for x in e]},
    assumptions=("sup r < ∞", "Σ p e^r < ∞"),
    counterexamples={
        "sup r < ∞": show_unbounded_reward,
        "Σ p e^r < ∞": show_diverging_normalizer,
        "a ratio of probabilities": show_ratio_is_not_odds,
    },
    code=("brain_core.bradley_terry_log_goodness", "brain_core.logistic_log_goodness"),
    tests=("tests/brain_core/test_goodness_and_diagnostics.py::test_logistic_and_bradley_terry_targets_differ",),
)
def err_15(goodness_of: Goodness) -> None:
    """Probabilities whose ratios are e^{r_i − r_j}."""
    for exp_reward in (GENERIC.goodness, proportional(1, 2, 3), (Fraction(1, 5), Fraction(7))):
        goodness = goodness_of(exp_reward)
        require(all(0 < g <= 1 for g in goodness), "goodness is a probability")
        for (g_i, e_i), (g_j, e_j) in itertools.permutations(zip(goodness, exp_reward, strict=True), 2):
            require_equal(g_i / g_j, e_i / e_j, "ratio of goodness")


RANKED = toy((4, 1, 2, 3), (2, 5, 1, 3), (4, 1, 2, 3), (4, 1, 2, 3))
"""p = q' = (4, 1, 2, 3)/10, e^r = (2, 5, 1, 3)."""


def tilted(power: int) -> list[Dual]:
    """q ∝ p e^{λr} on the ranked problem, as constants."""
    weights = (p * e**power for p, e in zip(RANKED.prior, RANKED.goodness, strict=True))
    return [Dual(q, (Fraction(0),)) for q in proportional(*weights)]


def tilted_divergence(power: int) -> LogNumber:
    """The divergence with argmax weights, n = 2, at q ∝ p e^{λr}."""
    return as_log(argmax_divergence(RANKED, tilted(power)))


def show_infimum() -> None:
    """0.485, 0.284, 0.168, 0.040, 7.5e-5 at λ = 0, 1, 2, 5, 20; at 80 below 2e-15: −log β̂ ≤ e^{−λ(r_w − r_l)}."""
    for power, expected in ((0, 0.485), (1, 0.284), (2, 0.168), (5, 0.040)):
        require_close(float(tilted_divergence(power)), expected, 5e-4, f"divergence at λ = {power}")
    require_close(float(tilted_divergence(20)), 7.5e-5, 1e-6, "divergence at λ = 20")
    pairs = itertools.combinations(zip(RANKED.prior, RANKED.goodness, strict=True), 2)
    bound = sum(2 * p * s * (min(e, f) / max(e, f)) ** 80 for (p, e), (s, f) in pairs)
    require(0 < bound < Fraction(2, 10**15), "bound at λ = 80")


def show_softmax_has_a_minimum() -> None:
    """With the softmax of (21) the divergence is 0 at λ = 1 and positive at 0 and 2."""
    weights = [mean_divergence(RANKED, tilted(power), 2, lambda g: shares(at(RANKED.goodness, g))).value
               for power in (0, 1, 2)]  # fmt: skip
    require(weights[1] == 0 and weights[0] > 0 and weights[2] > 0, "the minimum with softmax is the posterior")


@claim(
    "err-17",
    "The argmax objective has no minimiser: it falls to 0 along q ∝ p e^{λr}; Theorem 4.3 does not reach DPO-sft",
    source="Theorem 6.1 with Theorem 4.3",
    method="exact logarithms; a rational bound at λ = 80",
    case="K=4, λ = 0 to 8",
    mend="with argmax the infimum 0 is not attained, and the posterior (λ = 1) is no stationary point",
    subject=lambda power: power + 1,
    mutants={
        "as printed: the posterior is best": lambda power: 1,
        "back to the prior": lambda power: max(power - 1, 0),
    },
    counterexamples={"argmax": show_softmax_has_a_minimum, "an attained infimum": show_infimum},
    code=("brain_core.argmax_brain_objective", "brain_core.dpo_objective"),
)
def err_17(better: Callable[[int], int]) -> None:
    """From every λ the subject leads to another one, no higher and never 0."""
    for power in range(8):
        found = tilted_divergence(better(power))
        require(0 < found <= tilted_divergence(power), f"λ = {better(power)} is not above λ = {power}")
    require(all(better(power) != power for power in range(8)), "no λ is left as the best")


Exponent = Callable[[int], int]


def show_missing_policy_mass() -> None:
    """q(y) = 0 < π(y) on the generic instance's third outcome: D_2 is infinite on pairs of total probability 12/25."""
    problem = GENERIC._replace(policy=proportional(2, 3, 0, 4))
    infinite = [g for g in ordered_groups(4, 2) if 2 in g and any(problem.policy[y] for y in g)]
    for group in infinite:
        target, policy = shares(at(problem.target_ratio, group)), shares(at(problem.policy_ratio, group))
        require(any(a > 0 == b for a, b in zip(target, policy, strict=True)), "log β̂ = −∞ where α̂ > 0")
    require_equal(sum(probability(group, problem.proposal) for group in infinite), Fraction(12, 25), "probability")


def show_infinite_divergence() -> None:
    """π = q' = 2^−k, q ∝ 2^{−4^k}: the first N outcomes alone give D_2 ≥ 2^{N−3} log 2, N = 3 to 12."""
    for outcomes in range(3, 13):
        require(halves_between(lambda k: 4**k, outcomes) - 1 >= 2 ** (outcomes - 3), "lower bound of D_2 / log 2")


def halves_between(exponent: Exponent, outcomes: int) -> Fraction:
    """½ E |log₂ β_j − log₂ β_k| over pairs among the first outcomes, π = q' = 2^−k, q ∝ 2^−exponent(k)."""
    total = Fraction(0)
    for j, k in itertools.combinations(range(1, outcomes + 1), 2):
        total += 2 * Fraction(1, 2 ** (j + k)) * abs(exponent(j) - j - exponent(k) + k) / 2
    return total


@claim(
    "err-18",
    "D_n need not be finite: it needs q > 0 wherever π > 0 and, on infinite sets, E|log β| < ∞",
    source="Definition 4.1",
    method="exact: bounds on D_2 by its first outcomes, ½E|Δ log β| − log 2 ≤ D_2 ≤ ½E|Δ log β| where α = 1",
    case="π = q' = 2^−k, the first 12 outcomes",
    mend="add to Definition 4.1: q > 0 wherever π > 0, and E|log β| < ∞",
    subject=lambda k: 2 * k,
    mutants={"as printed: any q > 0": lambda k: 4**k},
    assumptions=("q > 0 wherever π > 0", "E|log β| < ∞"),
    counterexamples={"q > 0 wherever π > 0": show_missing_policy_mass, "E|log β| < ∞": show_infinite_divergence},
    code=("brain_core.SupportError",),
    tests=(
        "tests/brain_core/test_semantics.py::test_policy_without_mass_where_the_target_has_some_raises_support_error",
    ),
    note="partial sums are checked up to 12 outcomes, not their limit",
)
def err_18(exponent: Exponent) -> None:
    """The upper bound of D_2 / log 2 by the first N outcomes stays below 1, and the bounds hold pair by pair."""
    for outcomes in range(2, 13):
        require(halves_between(exponent, outcomes) <= 1, f"D_2 of the first {outcomes} outcomes")
    for gap in range(12):
        value = kl(proportional(1, 1), proportional(1, 2**gap))
        half = Fraction(gap, 2) * log(2)
        require(half - log(2) <= value <= half, "bounds of a pair's divergence")

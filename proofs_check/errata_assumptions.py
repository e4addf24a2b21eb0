"""Errata E1 to E20 of the paper, second part: assumptions that are missing, and claims that go too far.

The subject of each claim meets the assumption, its mutant is the statement as printed; what breaks is shown exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from proofs_check.beyond_divergence import (
    dpg_coefficients,
    gdcpp_coefficients,
    show_restricted_family,
    show_two_minima,
)
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import Group, mean_over_multisets, ordered_groups, probability
from proofs_check.errata import scores
from proofs_check.exact import Dual, LogNumber, along, in_logits, log
from proofs_check.groups import ZERO, Estimator, at, brain, combined, kl, mean_divergence, mean_estimate, shares
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, toy
from proofs_check.section_4 import OFF_POLICY, ON_POLICY, literal_policy_weights, mean_baseline
from proofs_check.section_4_theorems import (
    reading,
    show_gradient_of_kl,
    show_policy_beyond_the_proposal,
    show_single_completion,
    show_target_beyond_the_proposal,
)
from proofs_check.sections_5_to_7 import argmax_divergence, as_fraction, as_log, logistic, weighted_divergence
from toy import gaussian_moments


def show_nothing_to_compare() -> None:
    """n = 1 on the generic instance: every coefficient and D_1 are 0, KL(π‖q) is positive."""
    for y in range(GENERIC.size):
        require_equal(brain(GENERIC, (y,)), [0], "coefficient of a group of one")
    show_single_completion()


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
        require_equal(mean_divergence(problem, size) == 0, is_solved, f"D_{size} = 0 and q = π")


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
    counterexamples={
        "supp q ⊆ supp q'": show_policy_beyond_the_proposal,
        "supp π ⊆ supp q'": show_target_beyond_the_proposal,
    },
    code=("brain_core.SupportError", "brain_core.brain_coefficients"),
    tests=("tests/brain_core/test_semantics.py::test_group_without_target_mass_raises_or_contributes_nothing",),
)
def err_3(convention: Convention) -> None:
    """Theorem 4.2 stays, and D_2 goes to 0 with KL: at 1/1000 from the optimum it is below 1/100."""
    found = weighted_divergence(NARROW, in_logits(NARROW.policy), 2, lambda g: narrow_weights(NARROW, convention, g))
    require(found.value > 0, "D_2 > 0 away from the optimum")
    mean = mean_estimate(NARROW, 2, lambda problem, g: narrow_coefficients(problem, convention, g))
    require_equal(mean, tuple(-slope for slope in found.slopes), "E ĝ and −∇D_2")
    near = proportional(
        *(999 * target + extra for target, extra in zip(NARROW.posterior, proportional(0, 0, 3, 1), strict=True))
    )
    nearly = weighted_divergence(NARROW, in_logits(near), 2, lambda g: narrow_weights(NARROW, convention, g))
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
    assumptions=("q' does not depend on θ",),
    counterexamples={"q' does not depend on θ": show_moving_law},
    note="the domination that infinite sets need is assumed, not checked",
)
def err_4(sources_of: Callable[[Sequence[Dual]], Sources]) -> None:
    """The derivative of D_2 with these sources against −E ĝ."""
    policy = in_logits(ON_POLICY.policy)
    mean = mean_estimate(ON_POLICY, 2, brain)
    for direction, ascent in enumerate(mean):
        slope = slope_of_divergence(ON_POLICY.posterior, policy, sources_of(policy), direction)
        require_equal(slope, -ascent, f"∂D_2/∂z_{direction}")


def moving_mean(problem: Toy, policy: Sequence[Dual], group_size: int) -> Dual:
    """D_n (13) and its slopes."""
    return weighted_divergence(problem, policy, group_size, lambda group: at(problem.target_ratio, group))


Family = Callable[[Fraction], list[Dual]]

EVEN = toy((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
"""Three outcomes, everything uniform."""


def line_of_logits(x: Fraction) -> list[Dual]:
    """Policy weights (2, x, 3x²): a straight line of logits in log x, with slopes in log x."""
    return along((Fraction(2), x, 3 * x**2), ((0, x, 6 * x**2),))


def curve(x: Fraction) -> list[Dual]:
    """Policy weights (1, x, 1/4 + (x − 2)²/2), with slopes in x."""
    return along((Fraction(1), x, Fraction(1, 4) + (x - 2) ** 2 / 2), ((0, 1, x - 2),))


@claim(
    "err-9",
    "“The only minima” is true over distributions, false over θ: D_n has other local minima and another projection",
    source="Theorem 4.3 (4.2 in the later version)",
    method="exact: slopes of D_2 along lines and curves",
    case="K=3, n=2, 40 points",
    mend="q_θ = π is the only minimum over distributions; a family that cannot reach π has minima of its own",
    subject=line_of_logits,
    mutants={"as printed: any family": curve},
    assumptions=("q ranges over all distributions", "π within reach of the family"),
    counterexamples={
        "q ranges over all distributions": show_two_minima,
        "π within reach of the family": show_restricted_family,
    },
)
def err_9(family: Family) -> None:
    """The slope of D_2 rises along the family and changes sign once."""
    slopes = [moving_mean(EVEN, family(Fraction(eighths, 8)), 2).slopes[0] for eighths in range(1, 41)]
    require_equal(sum(a < 0 < b for a, b in itertools.pairwise(slopes)), 1, "number of minima")
    require(all(a < b for a, b in itertools.pairwise(slopes)), "D_2 is convex along the family")


Bias = Callable[[Toy, int], Sequence[Fraction]]


def leading_bias(problem: Toy, group_size: int) -> list[Fraction]:
    """−E_q'[β² h] / n in the logits."""
    terms = [s * b**2 for s, b in zip(problem.proposal, problem.policy_ratio, strict=True)]
    return [
        -sum((term * h[j] for term, h in zip(terms, scores(problem), strict=True)), start=Fraction(0)) / group_size
        for j in range(problem.size)
    ]


@claim(
    "err-10",
    "“Without any bias” is true of (9), not of its estimate (10): that has mean −E[β² h]/n + O(1/n²), 0 on-policy",
    source="section 4, around eqs. (9) and (10)",
    method="exact: multisets",
    case="K=3, n up to 32",
    mend="the estimate (10) is biased by −E_q'[β² h]/n; (12) is unbiased for −∇D_n, not for −∇KL",
    subject=leading_bias,
    mutants={
        "as printed: no bias": lambda problem, n: [Fraction(0)] * problem.size,
        "wrong sign": lambda problem, n: [-bias for bias in leading_bias(problem, n)],
        "of order 1/n²": lambda problem, n: [bias / n for bias in leading_bias(problem, n)],
    },
    counterexamples={"against D_n, not KL": show_gradient_of_kl},
    code=("brain_core.brain_coefficients",),
)
def err_10(bias: Bias) -> None:
    """n² times the rest stays below 1; on-policy there is nothing left."""
    for size in (4, 8, 16, 32):
        mean = mean_baseline(OFF_POLICY, size, literal_policy_weights)
        rest = [m - b for m, b in zip(mean, bias(OFF_POLICY, size), strict=True)]
        require(all(abs(value) * size**2 <= 1 for value in rest), f"n² times the rest at n = {size}")
    on_policy = mean_baseline(ON_POLICY, 3, literal_policy_weights)
    require_equal(on_policy, tuple(bias(ON_POLICY, 3)), "mean of (10) on-policy")


snis = reading(lambda alpha, beta: shares(alpha))
dpg = reading(dpg_coefficients)
gdcpp = reading(gdcpp_coefficients)


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
    for name, estimator, expected in (("(12)", brain, 0.0860), ("GDC++", gdcpp, 0.0784), ("(7)", snis, 0.0564)):
        require_close(float(total_variance(PEAKED, 8, estimator)), expected, 5e-5, f"variance of {name}")


def show_higher_variance_from_target() -> None:
    """q' = π, n = 3: (12) has 448/3267, (7) and DPG, which is the same there, 8/75."""
    variances = [total_variance(SAMPLED_FROM_TARGET, 3, estimator) for estimator in (brain, snis, dpg)]
    require_equal(variances, [Fraction(448, 3267), Fraction(8, 75), Fraction(8, 75)], "variances of (12), (7), DPG")


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
    tolerance=5e-5,
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
        with_baseline, without = (total_variance(problem, size, e) for e in (brain, snis))
        require(with_baseline < without, "variance of (12) below that of (7)")
        require(with_baseline == 0 or (problem, size) not in optima, "no variance at the optimum")


Goodness = Callable[[Vector], Sequence[Fraction]]


def relative_to_best(exp_reward: Sequence[Fraction]) -> list[Fraction]:
    """e^{r − max r}: the largest goodness that (19) allows."""
    return [e / max(exp_reward) for e in exp_reward]


def show_unbounded_reward() -> None:
    """p_k = 2·3^−(k+1), r = k log 2, so that Σ p e^r < 2: the largest p(G=1|x) for N outcomes is below 4·2^−N."""
    for outcomes in (10, 20, 60):
        goodness = relative_to_best([Fraction(2**k) for k in range(outcomes)])
        evidence = sum(Fraction(2, 3 ** (k + 1)) * g for k, g in enumerate(goodness))
        expected = Fraction(4, 2**outcomes) * (1 - Fraction(2, 3) ** outcomes)
        require_equal(evidence, expected, "p(G=1|x)")


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
    subject=relative_to_best,
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


def logits_of(power: int) -> list[Dual]:
    """q ∝ p e^{λr} on the ranked problem, with its slopes in the logits."""
    return in_logits(proportional(*(p * e**power for p, e in zip(RANKED.prior, RANKED.goodness, strict=True))))


def tilted_divergence(power: int) -> LogNumber:
    """The divergence with argmax weights, n = 2, at q ∝ p e^{λr}."""
    return as_log(argmax_divergence(RANKED, logits_of(power)))


def show_infimum() -> None:
    """0.485, 0.284, 0.168, 0.040, 7.5e-5 at λ = 0, 1, 2, 5, 20; at 80 below 2e-15: −log β̂ ≤ e^{−λ(r_w − r_l)}."""
    for power, expected in ((0, 0.4852030), (1, 0.2844053), (2, 0.1684917), (5, 0.0404275), (20, 0.0000745)):
        require_close(float(tilted_divergence(power)), expected, 5e-8, f"divergence at λ = {power}")
    pairs = itertools.combinations(zip(RANKED.prior, RANKED.goodness, strict=True), 2)
    bound = sum(2 * p * s * (min(e, f) / max(e, f)) ** 80 for (p, e), (s, f) in pairs)
    require(0 < bound < Fraction(2, 10**15), "bound at λ = 80")


def show_softmax_has_a_minimum() -> None:
    """With the softmax of (21) the divergence is 0 at λ = 1 and positive at 0 and 2."""

    def with_softmax(power: int) -> Dual:
        """The divergence at q ∝ p e^{λr}, with its slopes in the logits."""
        return weighted_divergence(RANKED, logits_of(power), 2, lambda group: shares(at(RANKED.goodness, group)))

    below, there, above = (with_softmax(power) for power in (0, 1, 2))
    require(as_log(below) > 0 and as_log(above) > 0, "away from the posterior the divergence is positive")
    require_equal((there.value, there.slopes), (0, (0,) * RANKED.size), "value and slopes at the posterior")


def show_posterior_is_not_stationary() -> None:
    """With argmax the divergence has slopes at the posterior: 172/2625 in the first logit, and others."""
    require_equal(tuple(q.value for q in logits_of(1)), RANKED.posterior, "λ = 1 is the posterior")
    expected = (Fraction(172, 2625), -Fraction(437, 8400), Fraction(9, 100), -Fraction(207, 2000))
    require_equal(argmax_divergence(RANKED, logits_of(1)).slopes, expected, "slopes at the posterior")


def slope_along_reward(power: int) -> LogNumber:
    """The derivative in λ of the divergence with argmax weights: the logits of q ∝ p e^{λr} move along r."""
    slopes = argmax_divergence(RANKED, logits_of(power)).slopes
    return sum((slope * log(e) for slope, e in zip(slopes, RANKED.goodness, strict=True)), start=ZERO)


@claim(
    "err-17",
    "The argmax objective has no minimiser: it falls to 0 along q ∝ p e^{λr}; Theorem 4.3 does not reach DPO-sft",
    source="Theorem 6.1 with Theorem 4.3",
    method="exact logarithms; a rational bound at λ = 80",
    case="K=4, λ = 0 to 8",
    mend="with argmax the infimum 0 is not attained, and the posterior (λ = 1) is no stationary point",
    subject=lambda power: power + 1,
    tolerance=5e-8,
    mutants={
        "as printed: the posterior is best": lambda power: 1,
        "back to the prior": lambda power: max(power - 1, 0),
    },
    counterexamples={
        "argmax": show_softmax_has_a_minimum,
        "an attained infimum": show_infimum,
        "a stationary posterior": show_posterior_is_not_stationary,
    },
    code=("brain_core.argmax_brain_objective", "brain_core.dpo_objective"),
)
def err_17(better: Callable[[int], int]) -> None:
    """From every λ, where the divergence falls, the subject leads to another one, lower and not 0."""
    for power in range(8):
        require(slope_along_reward(power) < 0, f"the divergence falls at λ = {power}")
        found = tilted_divergence(better(power))
        require(0 < found < tilted_divergence(power), f"λ = {better(power)} is below λ = {power}")


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
    method="exact: ½E|Δ log β| − log 2 ≤ D_2 ≤ ½E|Δ log β| where α = 1; that mean grows by less and less",
    case="π = q' = 2^−k, the first 32, 64 and 128 outcomes",
    mend="add to Definition 4.1: q > 0 wherever π > 0, and E|log β| < ∞",
    subject=(lambda k: 2 * k, lambda k: 3 * k, lambda k: 4 * k, lambda k: k * k),
    mutants={
        "as printed: any q > 0": (lambda k: 4**k,),
        "E|log β| = ∞, slowly: 2^k/k": (lambda k: 2**k // k,),
        "E|log β| = ∞: 2^k": (lambda k: 2**k,),
    },
    assumptions=("q > 0 wherever π > 0", "E|log β| < ∞"),
    counterexamples={"q > 0 wherever π > 0": show_missing_policy_mass, "E|log β| < ∞": show_infinite_divergence},
    code=("brain_core.SupportError",),
    tests=(
        "tests/brain_core/test_semantics.py::test_policy_without_mass_where_the_target_has_some_raises_support_error",
    ),
    note="partial sums are checked up to 128 outcomes, not their limit",
)
def err_18(exponents: Sequence[Exponent]) -> None:
    """Outcomes 64 to 127 add at most 3/4 of what 32 to 63 add, and the bounds hold pair by pair."""
    for exponent in exponents:
        first, second, third = (halves_between(exponent, 2**doublings - 1) for doublings in (5, 6, 7))
        require(third - second <= Fraction(3, 4) * (second - first), "the mean of |Δ log β| does not converge")
    for gap in range(12):
        value = kl(proportional(1, 1), proportional(1, 2**gap))
        half = Fraction(gap, 2) * log(2)
        require(half - log(2) <= value <= half, "bounds of a pair's divergence")

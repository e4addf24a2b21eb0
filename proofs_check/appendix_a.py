"""Appendix A, the proofs of Theorems 4.2 and 4.3 line by line: equations (24) to (36).

Every line of the first proof is held against −∇D_n itself, taken from the definition by dual numbers. Scores are
explicit: e_y − q in the logits, v_y/q_y along directions. The proof of Proposition 5.1 is in `appendix_a_weights`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, ordered_groups
from proofs_check.exact import Dual, LogNumber, along, in_logits, log
from proofs_check.groups import (
    ZERO,
    along_score,
    ascent_along,
    at,
    brain_coefficients,
    combined,
    divergence,
    divergence_by_laws,
    hidden_index,
    logit_score,
    mean_vector,
    require_proved,
    shares,
)
from proofs_check.instances import GENERIC, GENERIC_GROUP_SIZE, Toy, Vector, random_toys, ratio, toy
from proofs_check.section_4 import (
    EXACT_TESTS,
    OFF_SIMPLEX,
    TANGENTS,
    Values,
    entropy,
)
from proofs_check.section_4_theorems import (
    show_policy_beyond_the_proposal,
    show_single_completion,
    show_target_beyond_the_policy,
    show_target_that_moves,
)


class Batch(NamedTuple):
    """A group's ratios, the policy's with their derivatives, and its scores."""

    alpha: Values
    beta: Values
    score: Sequence[Vector]

    @property
    def target_weights(self) -> Values:
        """α̂."""
        return shares(self.alpha)

    @property
    def still_beta(self) -> Values:
        """β without its derivatives."""
        return [b.value for b in self.beta]


Line = Callable[[Batch], Sequence[Fraction]]
"""What stands under the expectation on one line of the proof."""


class Case(NamedTuple):
    """A problem with its directions: the policy's ratios as dual numbers and the scores of all completions."""

    problem: Toy
    group_size: int
    beta: Sequence[Dual]
    score: Sequence[Vector]

    def batch(self, group: Group) -> Batch:
        """What a line sees of a group."""
        return Batch(at(self.problem.target_ratio, group), at(self.beta, group), at(self.score, group))


def in_logits_of(problem: Toy, group_size: int) -> Case:
    """A problem with its logits as directions."""
    beta = [q / s for q, s in zip(in_logits(problem.policy), problem.proposal, strict=True)]
    return Case(problem, group_size, beta, [logit_score(problem.policy, y) for y in range(problem.size)])


@functools.cache
def cases() -> tuple[tuple[Case, Vector], ...]:
    """The generic instance along 5 tangents and 1 direction off the simplex, and in logits; random ones; with −∇D_n."""
    directions = (*TANGENTS, OFF_SIMPLEX)
    beta = [q / s for q, s in zip(along(GENERIC.policy, directions), GENERIC.proposal, strict=True)]
    score = [along_score(GENERIC.policy, directions)(GENERIC.policy, y) for y in range(GENERIC.size)]
    found = [Case(GENERIC, GENERIC_GROUP_SIZE, beta, score), in_logits_of(GENERIC, GENERIC_GROUP_SIZE)]
    found += [in_logits_of(problem, 2) for problem in random_toys(8, seed=24)]
    return tuple((case, ascent_along(case.problem, case.beta, case.group_size, mean_over_groups)) for case in found)


def require_line(line: Line, name: str) -> None:
    """Raise Refuted unless the mean of a line is −∇D_n in every case."""
    for case, expected in cases():
        found = mean_vector(case.problem.proposal, case.group_size, lambda g, case=case: line(case.batch(g)))  # type: ignore[misc]
        require_equal(found, expected, f"mean of {name}")


def total(terms: Sequence[Dual]) -> Dual:
    """Sum of dual numbers."""
    return sum(terms[1:], start=terms[0])


def inverse_total(values: Values) -> Fraction:
    """1 / Σ values."""
    return 1 / sum(values, start=Fraction(0))


def difference(left: Sequence[Fraction], right: Sequence[Fraction]) -> Vector:
    """left − right."""
    return tuple(a - b for a, b in zip(left, right, strict=True))


def scaled(vector: Sequence[Fraction], factor: Fraction) -> Vector:
    """factor · vector."""
    return tuple(factor * entry for entry in vector)


def coefficients(batch: Batch) -> list[Fraction]:
    """α̂ − β̂."""
    return brain_coefficients(batch.alpha, batch.still_beta)


def line_24(batch: Batch) -> Vector:
    """Σ (α̂ − β̂) ∇ log q."""
    return combined(coefficients(batch), batch.score)


@claim(
    "eq-24",
    "What is to be proved: E Σ (α̂ − β̂) ∇ log q = −∇D_n",
    source="eq. (24)",
    method="exact: ordered groups against dual numbers",
    case="K=4, n=3: 5 tangents, 1 direction off the simplex, 4 logits; 8 random problems, n=2",
    subject=line_24,
    mutants={
        "sign": lambda batch: scaled(line_24(batch), Fraction(-1)),
        "mean, not sum": lambda batch: scaled(line_24(batch), Fraction(1, len(batch.alpha))),
        "no baseline": lambda batch: combined(batch.target_weights, batch.score),
        "not self-normalised": lambda batch: combined(
            [a - b for a, b in zip(batch.alpha, batch.still_beta, strict=True)], batch.score
        ),
    },
    code=("brain_core.brain_coefficients",),
    tests=(f"{EXACT_TESTS}::test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl",),
)
def eq_24(line: Line) -> None:
    """All cases."""
    require_line(line, "(24)")


def cross_entropy_term(alpha: Values, beta: Values) -> LogNumber:
    """Σ α̂ log β̂."""
    return sum((a * log(b) for a, b in zip(shares(alpha), shares(beta), strict=True)), start=ZERO)


def line_25(alpha: Values, beta: Values) -> LogNumber:
    """H(α̂) + Σ α̂ log β̂."""
    return entropy(shares(alpha)) + cross_entropy_term(alpha, beta)


@claim(
    "eq-25",
    "−D_n = E[H(α̂) + Σ α̂ log β̂]",
    source="eq. (25)",
    method="exact: ordered groups against the laws of A and of B",
    case="K=4, n=3; 8 random problems, n=2",
    subject=line_25,
    mutants={
        "sign of the entropy": lambda alpha, beta: cross_entropy_term(alpha, beta) - entropy(shares(alpha)),
        "without the entropy": cross_entropy_term,
        "entropy of β̂": lambda alpha, beta: entropy(shares(beta)) + cross_entropy_term(alpha, beta),
        "β not normalised": lambda alpha, beta: line_25(alpha, beta) + log(sum(beta)),
        "arguments swapped": lambda alpha, beta: line_25(beta, alpha),
    },
    code=("brain_core.self_normalized_kl", "brain_core.weight_entropy"),
)
def eq_25(value: Callable[[Values, Values], LogNumber]) -> None:
    """The value itself, not its gradient."""
    for problem, n in ((GENERIC, GENERIC_GROUP_SIZE), *((problem, 2) for problem in random_toys(8, seed=25))):
        alpha, beta = problem.target_ratio, problem.policy_ratio
        found = mean_over_groups(problem.proposal, n, lambda g, a=alpha, b=beta: value(at(a, g), at(b, g)))  # type: ignore[misc]
        require_equal(found, -divergence_by_laws(problem, n), "E[H + cross-entropy term]")


def line_26(batch: Batch) -> Vector:
    """Σ α̂ ∇ log β̂."""
    weights = shares(batch.beta)
    return total([b.log() * a for a, b in zip(batch.target_weights, weights, strict=True)]).slopes


@claim(
    "eq-26",
    "Since α̂ does not depend on θ: −∇D_n = E Σ α̂ ∇ log β̂",
    source="eq. (26)",
    method="exact: dual numbers",
    case="as eq-24",
    subject=line_26,
    mutants={
        "weights of the policy": lambda batch: (
            total(
                [b.log() * Fraction(b.value) for b in shares(batch.beta)],
            ).slopes
        ),
        "without the logarithm": lambda batch: (
            total([b * a for a, b in zip(batch.target_weights, shares(batch.beta), strict=True)]).slopes
        ),
        "β for β̂": lambda batch: (
            total([b.log() * a for a, b in zip(batch.target_weights, batch.beta, strict=True)]).slopes
        ),
        "equal weights": lambda batch: total([b.log() / len(batch.beta) for b in shares(batch.beta)]).slopes,
    },
    counterexamples={"α̂ does not depend on θ": show_target_that_moves},
    assumptions=("α̂ does not depend on θ",),
    code=("brain_core.brain_objective",),
)
def eq_26(line: Line) -> None:
    """All cases."""
    require_line(line, "(26)")


def line_27(batch: Batch) -> Vector:
    """Σ α̂ [∇ log β − ∇ log Σ β]."""
    whole = total(list(batch.beta)).log().slopes
    return combined(batch.target_weights, [difference(b.log().slopes, whole) for b in batch.beta])


@claim(
    "eq-27",
    "−∇D_n = E Σ α̂ [∇ log β − ∇ log Σ β]",
    source="eq. (27)",
    method="exact: dual numbers",
    case="as eq-24",
    subject=line_27,
    mutants={
        "without the normaliser": lambda batch: combined(batch.target_weights, [b.log().slopes for b in batch.beta]),
        "sign of the normaliser": lambda batch: combined(
            batch.target_weights,
            [
                difference(b.log().slopes, scaled(total(list(batch.beta)).log().slopes, Fraction(-1)))
                for b in batch.beta
            ],
        ),
        "sum of the logarithms": lambda batch: combined(
            batch.target_weights,
            [difference(b.log().slopes, total([c.log() for c in batch.beta]).slopes) for b in batch.beta],
        ),
        "normaliser counted n times": lambda batch: difference(
            line_27(batch), scaled(total(list(batch.beta)).log().slopes, Fraction(len(batch.beta) - 1))
        ),
    },
    code=("brain_core.brain_objective",),
)
def eq_27(line: Line) -> None:
    """All cases."""
    require_line(line, "(27)")


def line_28(batch: Batch) -> Vector:
    """Σ α̂ [∇ log β − Σ ∇β / Σ β]."""
    whole = total(list(batch.beta))
    normalizer = scaled(whole.slopes, inverse_total(batch.still_beta))
    return combined(batch.target_weights, [difference(b.log().slopes, normalizer) for b in batch.beta])


def line_28_with(normalizer: Callable[[Batch, Dual], Sequence[Fraction]]) -> Line:
    """Line (28) with another second term."""
    return lambda batch: combined(
        batch.target_weights, [difference(b.log().slopes, normalizer(batch, b)) for b in batch.beta]
    )


@claim(
    "eq-28",
    "−∇D_n = E Σ α̂ [∇ log β − Σ ∇β / Σ β]",
    source="eq. (28)",
    method="exact: dual numbers",
    case="as eq-24",
    subject=line_28,
    mutants={
        "not divided": line_28_with(lambda batch, b: total(list(batch.beta)).slopes),
        "divided by n": line_28_with(lambda batch, b: (total(list(batch.beta)) / len(batch.beta)).slopes),
        "own member only": line_28_with(lambda batch, b: scaled(b.slopes, inverse_total(batch.still_beta))),
        "∇ log β in the sum": line_28_with(
            lambda batch, b: scaled(total([c.log() for c in batch.beta]).slopes, inverse_total(batch.still_beta))
        ),
    },
    code=("brain_core.brain_objective",),
)
def eq_28(line: Line) -> None:
    """All cases."""
    require_line(line, "(28)")


class Rules(NamedTuple):
    """How ∇ log β comes from β and ∇ log q, and ∇β from β and ∇ log β."""

    of_logarithm: Callable[[Fraction, Vector], Sequence[Fraction]]
    of_ratio: Callable[[Fraction, Vector], Sequence[Fraction]]


def times(ratio_value: Fraction, vector: Vector) -> Vector:
    """β · vector."""
    return scaled(vector, ratio_value)


def show_live_proposal() -> None:
    """With q' = q_θ live, β = 1 for every θ, and ∇ log β = 0 although ∇ log q is not."""
    policy = in_logits(GENERIC.policy)
    require_equal([(q / q).log().slopes for q in policy], [(0,) * GENERIC.size] * GENERIC.size, "∇ log β")
    require(all(any(logit_score(GENERIC.policy, y)) for y in range(GENERIC.size)), "∇ log q is not 0")


@claim(
    "eq-29",
    "∇ log β = ∇ log q (printed with a factor β, which belongs to ∇β = β ∇ log β)",
    source="eq. (29), corrected",
    method="exact: dual numbers against explicit scores",
    case="as eq-24, every completion",
    subject=Rules(lambda beta, score: score, times),
    mutants={
        "as printed": Rules(times, times),
        "∇β without β": Rules(lambda beta, score: score, lambda beta, slope: slope),
        "divided by β": Rules(lambda beta, score: scaled(score, 1 / beta), times),
        "both without β but swapped": Rules(times, lambda beta, slope: slope),
    },
    counterexamples={"q' does not depend on θ": show_live_proposal},
    assumptions=("q' does not depend on θ",),
    code=("brain_core.policy_log_ratio",),
)
def eq_29(rules: Rules) -> None:
    """The rule for the logarithm against explicit scores, the rule for the ratio against the slopes of β."""
    for case, _ in cases():
        for ratio_value, beta, score in zip(case.problem.policy_ratio, case.beta, case.score, strict=True):
            slope = beta.log().slopes
            require_equal(tuple(rules.of_logarithm(ratio_value, score)), slope, "∇ log β")
            require_equal(tuple(rules.of_ratio(ratio_value, slope)), beta.slopes, "∇β")


def line_30(batch: Batch) -> Vector:
    """Σ α̂ [∇ log q − Σ β ∇ log q / Σ β]."""
    baseline = scaled(combined(batch.still_beta, batch.score), inverse_total(batch.still_beta))
    return combined(batch.target_weights, [difference(h, baseline) for h in batch.score])


def printed_29_in_30(batch: Batch) -> Vector:
    """Line (30) where ∇ log β is taken for β ∇ log q, as (29) is printed."""
    return line_30(batch._replace(score=[scaled(h, b) for h, b in zip(batch.score, batch.still_beta, strict=True)]))


@claim(
    "eq-30",
    "−∇D_n = E Σ α̂ [∇ log q − Σ β ∇ log q / Σ β]; it does not follow from (29) as printed",
    source="eq. (30)",
    method="exact: explicit scores",
    case="as eq-24",
    subject=line_30,
    mutants={
        "(29) as printed": printed_29_in_30,
        "baseline not normalised": lambda batch: difference(
            combined(batch.target_weights, batch.score), combined(batch.still_beta, batch.score)
        ),
        "baseline without β": lambda batch: difference(
            combined(batch.target_weights, batch.score),
            combined([Fraction(1, len(batch.score))] * len(batch.score), batch.score),
        ),
        "baseline weighed by α": lambda batch: scaled(line_30(batch), Fraction(0)),
        "baseline added": lambda batch: difference(
            scaled(combined(batch.target_weights, batch.score), Fraction(2)), line_30(batch)
        ),
    },
    code=("brain_core.brain_coefficients",),
)
def eq_30(line: Line) -> None:
    """All cases."""
    require_line(line, "(30)")


def quotient(weights: Values, vectors: Sequence[Vector], normalizing: Values) -> Vector:
    """Σ weight · vector / Σ normalizing."""
    return scaled(combined(weights, vectors), inverse_total(normalizing))


def line_31(batch: Batch) -> Vector:
    """Σ α ∇ log q / Σ α − Σ β ∇ log q / Σ β."""
    alpha, beta = batch.alpha, batch.still_beta
    return difference(quotient(alpha, batch.score, alpha), quotient(beta, batch.score, beta))


def line_31_normalized_by(alpha_by: Callable[[Batch], Values], beta_by: Callable[[Batch], Values]) -> Line:
    """Line (31) with other denominators."""
    return lambda batch: difference(
        quotient(batch.alpha, batch.score, alpha_by(batch)), quotient(batch.still_beta, batch.score, beta_by(batch))
    )


@claim(
    "eq-31",
    "−∇D_n = E[Σ α ∇ log q / Σ α − Σ β ∇ log q / Σ β]",
    source="eq. (31)",
    method="exact: explicit scores",
    case="as eq-24",
    subject=line_31,
    mutants={
        "one denominator": line_31_normalized_by(lambda batch: batch.alpha, lambda batch: batch.alpha),
        "denominators swapped": line_31_normalized_by(lambda batch: batch.still_beta, lambda batch: batch.alpha),
        "denominators n": line_31_normalized_by(lambda b: [1] * len(b.alpha), lambda b: [1] * len(b.alpha)),
        "terms swapped": lambda batch: scaled(line_31(batch), Fraction(-1)),
    },
    code=("brain_core.brain_coefficients",),
)
def eq_31(line: Line) -> None:
    """All cases."""
    require_line(line, "(31)")


@claim(
    "eq-32",
    "−∇D_n = E Σ [α̂ − β̂] ∇ log q: the estimate of (12)",
    source="eq. (32)",
    method="exact: explicit scores",
    case="as eq-24",
    subject=line_24,
    mutants={
        "squares": lambda batch: combined([c * abs(c) for c in coefficients(batch)], batch.score),
        "only positive coefficients": lambda batch: combined(
            [max(c, Fraction(0)) for c in coefficients(batch)], batch.score
        ),
        "times β": lambda batch: combined(
            [c * b for c, b in zip(coefficients(batch), batch.still_beta, strict=True)], batch.score
        ),
        "the first member left out": lambda batch: combined([Fraction(0), *coefficients(batch)[1:]], batch.score),
    },
    code=("brain_core.brain_coefficients",),
    tests=(f"{EXACT_TESTS}::test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl",),
)
def eq_32(line: Line) -> None:
    """(31) group by group, and all cases in the mean."""
    for group in ordered_groups(GENERIC.size, GENERIC_GROUP_SIZE):
        for case, _ in cases()[:2]:
            batch = case.batch(group)
            require_equal(tuple(line(batch)), line_31(batch), f"(31) and (32) of {group}")
    require_line(line, "(32)")


def alpha_of_6(problem: Toy) -> Vector:
    """α as (6) defines it, without p(G=1|x)."""
    return ratio([p * g for p, g in zip(problem.prior, problem.goodness, strict=True)], problem.proposal)


def show_alpha_without_evidence() -> None:
    """At q = π, α of (6) is p(G=1|x) β: 14/55 of it on the generic instance with goodness e^r/10."""
    problem = GENERIC._replace(goodness=tuple(g / 10 for g in GENERIC.goodness), policy=GENERIC.posterior)
    factor = [a / b for a, b in zip(alpha_of_6(problem), problem.policy_ratio, strict=True)]
    require_equal(factor, [problem.normalizer] * 4, "α/β")
    require_equal(problem.normalizer, Fraction(14, 55), "p(G=1|x)")


@claim(
    "eq-33",
    "At q = π: β = α, for α = π/q'; the α of (6) differs by the factor p(G=1|x)",
    source="eq. (33), with π/q' for α",
    method="exact",
    case="K=4 and 20 random problems",
    subject=lambda problem: problem.target_ratio,
    mutants={
        "as printed, α of (6)": alpha_of_6,
        "without q'": lambda problem: problem.posterior,
        "e^r": lambda problem: problem.goodness,
        "relative to the prior": lambda problem: ratio(problem.posterior, problem.prior),
    },
    counterexamples={"α is π/q', normalised": show_alpha_without_evidence},
    assumptions=("α is π/q', normalised",),
    code=("brain_core.target_log_ratio", "brain_core.policy_log_ratio"),
    tests=("tests/brain_core/test_identities.py::test_policy_equal_to_the_target_has_zero_coefficients_exactly",),
)
def eq_33(alpha: Callable[[Toy], Vector]) -> None:
    """The policy is set to the posterior."""
    for problem in (GENERIC, *random_toys(20, seed=33)):
        on_target = problem._replace(policy=problem.posterior)
        require_equal(tuple(alpha(on_target)), on_target.policy_ratio, "α")


@claim(
    "eq-34",
    "At q = π every D(Y) is 0, so that D_n is, whatever the scale of α",
    source="eq. (34)",
    method="exact: logarithms of primes",
    case="K=4, n=2, 3; 20 random problems, n=2",
    subject=alpha_of_6,
    mutants={
        "without q'": lambda problem: problem.posterior,
        "e^r": lambda problem: problem.goodness,
        "squared": lambda problem: tuple(a**2 for a in problem.target_ratio),
        "clipped": lambda problem: tuple(min(a, Fraction(1)) for a in problem.target_ratio),
    },
    code=("brain_core.self_normalized_kl",),
    tests=("tests/brain_core/test_identities.py::test_policy_equal_to_the_target_has_zero_coefficients_exactly",),
)
def eq_34(alpha: Callable[[Toy], Vector]) -> None:
    """Group by group, and in the mean."""
    for problem in (GENERIC, *random_toys(20, seed=34)):
        on_target = problem._replace(policy=problem.posterior)
        weights, beta = alpha(on_target), on_target.policy_ratio
        for n in (2, 3) if problem is GENERIC else (2,):
            for group in ordered_groups(problem.size, n):
                require_equal(divergence(at(weights, group), at(beta, group)), 0, f"D of {group}")


def disagreements(problem: Toy) -> Iterator[tuple[int, int]]:
    """All (y_+, y_−): π exceeds q at the first, q exceeds π at the second."""
    gaps = [t - q for t, q in zip(problem.posterior, problem.policy, strict=True)]
    for plus, minus in itertools.product(range(problem.size), repeat=2):
        if gaps[plus] > 0 > gaps[minus]:
            yield plus, minus


def show_no_other_member() -> None:
    """In a group of one α̂ = β̂ = 1, though (3, 1) is a (y_+, y_−) of the generic instance."""
    require((3, 1) in disagreements(GENERIC), "(y_+, y_−)")
    require_equal(first_shares((3,)), (1, 1), "α̂ and β̂ of a group of one")


def first_shares(group: Group) -> tuple[Fraction, Fraction]:
    """The first α̂ and the first β̂ of a group of the generic instance, by Bayes' rule."""
    target, policy = (hidden_index(law, GENERIC.proposal, group) for law in (GENERIC.posterior, GENERIC.policy))
    return target[0], policy[0]


def excess(completion: int) -> Fraction:
    """π − q on the generic instance."""
    return GENERIC.posterior[completion] - GENERIC.policy[completion]


def show_target_above_at_both() -> None:
    """π exceeds q at both of (0, 3), and the first α̂, 6/11, is below the first β̂, 3/5."""
    require(excess(0) > 0 and excess(3) > 0, "π exceeds q")
    require_equal(first_shares((0, 3)), (Fraction(6, 11), Fraction(3, 5)), "first shares")


def show_policy_above_at_both() -> None:
    """q exceeds π at both of (1, 2), and the first α̂, 5/6, is below the first β̂, 6/7."""
    require(excess(1) < 0 and excess(2) < 0, "q exceeds π")
    require_equal(first_shares((1, 2)), (Fraction(5, 6), Fraction(6, 7)), "first shares")


@claim(
    "eq-35",
    "In (y_+, y_−, …, y_−) the first share 1/(1 + (n−1) α_−/α_+) exceeds that of β, for every n ≥ 2",
    source="eq. (35)",
    method="z3: all positive reals, all real n−1 ≥ 1; exact: the chain of equalities",
    case="every n; K=4, n=2 to 5, and 20 random problems, n=3",
    subject=lambda plus, minus, others: 1 / (1 + others * minus / plus),
    mutants={
        "ratio inverted": lambda plus, minus, others: 1 / (1 + others * plus / minus),
        "n for n−1": lambda plus, minus, others: 1 / (1 + (others + 1) * minus / plus),
        "a single y_−": lambda plus, minus, others: 1 / (1 + minus / plus),
        "odds": lambda plus, minus, others: plus / (others * minus),
        "1/n": lambda plus, minus, others: 1 / (1 + others),
    },
    counterexamples={
        "n ≥ 2": show_no_other_member,
        "π(y_+) > q(y_+)": show_policy_above_at_both,
        "π(y_−) < q(y_−)": show_target_above_at_both,
    },
    assumptions=("n ≥ 2", "π(y_+) > q(y_+)", "π(y_−) < q(y_−)"),
    code=("brain_core.self_normalized_weights",),
)
def eq_35(share: Callable[[Any, Any, Any], Any]) -> None:
    """The equalities on groups, by Bayes' rule; the inequality for symbols."""
    for problem, sizes in ((GENERIC, (2, 3, 4, 5)), *((problem, (3,)) for problem in random_toys(20, seed=35))):
        for (plus, minus), n in itertools.product(disagreements(problem), sizes):
            group = (plus, *(minus,) * (n - 1))
            for law, ratios in ((problem.posterior, alpha_of_6(problem)), (problem.policy, problem.policy_ratio)):
                expected = hidden_index(law, problem.proposal, group)[0]
                require_equal(share(ratios[plus], ratios[minus], n - 1), expected, f"share of y_+, n = {n}")
    import z3

    a_plus, a_minus, b_plus, b_minus, others = z3.Reals("a_plus a_minus b_plus b_minus others")
    premise = (a_minus > 0, b_plus > 0, a_plus > b_plus, a_minus < b_minus, others >= 1)
    fails = share(a_plus, a_minus, others) <= share(b_plus, b_minus, others)
    require_proved("the share of α exceeds that of β", *premise, fails)


class Disagreement(NamedTuple):
    """What the bound of (36) is made of."""

    group_size: int
    chance_plus: Fraction
    chance_minus: Fraction
    gap: Fraction
    """α̂_1 − β̂_1 in (y_+, y_−, …, y_−)."""


def literal_bound(found: Disagreement) -> Fraction:
    """n q'(y_+) q'(y_−)^{n−1} · 2 (α̂_1 − β̂_1)²."""
    chance = found.chance_plus * found.chance_minus ** (found.group_size - 1)
    return found.group_size * chance * 2 * found.gap**2


NEARLY_EQUAL = toy((501, 499), (1, 1), (1, 1), (1, 1))
"""Where the bound of (36) is sharp to a part in 10⁶."""


@claim(
    "eq-36",
    "D_n > 0 where q ≠ π: at least n q'(y_+) q'(y_−)^{n−1} · 2 (α̂_1 − β̂_1)² > 0",
    source="eq. (36), with a bound from Pinsker's inequality",
    method="exact: certified signs",
    case="K=4, n=2 to 4; 20 random problems, n=2, 3; K=2 where the bound is sharp",
    subject=literal_bound,
    mutants={
        "2.00001 for 2": lambda found: literal_bound(found) * Fraction(200001, 200000),
        "no probability of the group": lambda found: 2 * found.gap**2,
        "difference not squared": lambda found: literal_bound(found) / found.gap,
        "one y_− too few": lambda found: literal_bound(found) / found.chance_minus,
        "n + 1 orders": lambda found: literal_bound(found) * (found.group_size + 1) / found.group_size,
        "0": lambda found: Fraction(0),
    },
    counterexamples={
        "n ≥ 2": show_single_completion,
        "supp π ⊆ supp q": show_target_beyond_the_policy,
        "supp q ⊆ supp q'": show_policy_beyond_the_proposal,
    },
    assumptions=("n ≥ 2", "supp π ⊆ supp q", "supp q ⊆ supp q'"),
    code=("brain_core.self_normalized_kl", "toy.self_normalized_kl"),
)
def eq_36(bound: Callable[[Disagreement], Fraction]) -> None:
    """Every pair (y_+, y_−) of every problem."""
    some = [(problem, (2, 3)) for problem in random_toys(20, seed=36)]
    for problem, sizes in ((GENERIC, (2, 3, 4)), (NEARLY_EQUAL, (2,)), *some):
        for n in sizes:
            value = divergence_by_laws(problem, n)
            for plus, minus in disagreements(problem):
                group = (plus, *(minus,) * (n - 1))
                chances = [hidden_index(law, problem.proposal, group) for law in (problem.posterior, problem.policy)]
                gap = chances[0][0] - chances[1][0]
                least = bound(Disagreement(n, problem.proposal[plus], problem.proposal[minus], gap))
                require(0 < least <= value, f"bound on D_{n}: {float(least)} and {float(value)}")

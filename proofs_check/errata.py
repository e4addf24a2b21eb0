"""Errata E1 to E20 of the paper, first part: what is printed wrongly, with the form as printed as a mutant.

The second part, `proofs_check.errata_assumptions`, has the assumptions that are missing and the claims that go too far.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from proofs_check.appendix_a import Batch, alpha_of_6, cases, line_30, require_line, times
from proofs_check.claims import claim, note, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, ordered_groups
from proofs_check.exact import Dual, LogNumber, in_logits, log
from proofs_check.groups import (
    ZERO,
    at,
    brain,
    brain_coefficients,
    combined,
    expected_ascent,
    kl,
    logit_score,
    mean_divergence,
    mean_estimate,
    shares,
)
from proofs_check.instances import GENERIC, Toy, Vector, random_toys, toy
from proofs_check.section_4 import require_sign_rule
from proofs_check.sections_5_to_7 import (
    COIN,
    NEEDED_FOR_DPO,
    ON_PRIOR,
    argmax_divergence,
    as_fraction,
    as_log,
    dpo_loss,
    without_ties,
)

Coefficients = Callable[[Group], Sequence[Fraction]]


def scores(problem: Toy) -> list[Vector]:
    """∇ log q(y) of each outcome in the logits."""
    return [logit_score(problem.policy, y) for y in range(problem.size)]


Slope = Callable[[Fraction, Vector], Vector]
"""∇ log β from β and ∇ log q."""


def right_slope(ratio: Fraction, score: Vector) -> Vector:
    """∇ log β = ∇ log q."""
    return score


@claim(
    "err-1",
    "(29) has a β too many: ∇ log β = ∇ log q; the β belongs to ∇β = β ∇ log q, and (30) uses the right form",
    source="eq. (29)",
    method="exact: duals in logits",
    case="as eq-24",
    mend="∇ log β_i = ∇ log q_θ(y_i|x)",
    subject=(right_slope, right_slope),
    mutants={"as printed": (times, right_slope), "as printed, put into (30)": (right_slope, times)},
)
def err_1(forms: tuple[Slope, Slope]) -> None:
    """The first form against the derivative of log β, the second inside (30) against −∇D_n."""
    pointwise, inside = forms
    for case, _ in cases():
        for ratio, score in zip(case.beta, case.score, strict=True):
            require_equal(tuple(pointwise(as_fraction(ratio), score)), ratio.log().slopes, "∇ log β")

    def line(batch: Batch) -> Vector:
        """(30) with the second form of ∇ log β in the place of ∇ log q."""
        slopes = [inside(b, h) for b, h in zip(batch.still_beta, batch.score, strict=True)]
        return line_30(batch._replace(score=slopes))

    require_line(line, "(30)")


HALVES = toy((1, 1), (1, 1), (1, 1), (1, 1))._replace(goodness=(Fraction(1, 2), Fraction(1, 4)))
"""p = q = q' = (1/2, 1/2), p(G=1|y) = (1/2, 1/4): the posterior is (2/3, 1/3)."""


def show_scale_free_conclusion() -> None:
    """On the halves α of (6) is (1/2, 1/4), below β = (1, 1), though π_1 = 2/3 > q_1; still α̂ > β̂, as in (35)."""
    require_equal(alpha_of_6(HALVES), (Fraction(1, 2), Fraction(1, 4)), "α of (6)")
    require_equal((HALVES.posterior[0], HALVES.policy_ratio[0]), (Fraction(2, 3), Fraction(1)), "π_+ and β_+")
    require_equal(shares(alpha_of_6(HALVES))[0], Fraction(2, 3), "α̂_+, above β̂_+ = 1/2")


@claim(
    "err-5",
    "(33) and α_+ > β_+ fail with α of (6), which lacks 1/p(G=1|x); with α = π/q' both hold, and (35) holds anyway",
    source="eq. (33) and the proof of Theorem 4.3 (4.2 in the later version)",
    method="exact",
    case="K=4; 30 random problems",
    mend="α_i = p(y_i|x,G=1) / q'(y_i|x) in (33) and in the proof of Theorem 4.3",
    subject=lambda problem: problem.target_ratio,
    mutants={"as printed": alpha_of_6},
    counterexamples={"the factor 1/p(G=1|x) in α": show_scale_free_conclusion},
)
def err_5(target_ratio: Callable[[Toy], Vector]) -> None:
    """α against β where q is the posterior, and the premise α > β ⇔ π > q where it is not."""
    for problem in (GENERIC, HALVES, *random_toys(30, seed=5)):
        solved = problem._replace(policy=problem.posterior)
        require_equal(target_ratio(solved), solved.policy_ratio, "α and β at q = π")
        for y, (a, b) in enumerate(zip(target_ratio(problem), problem.policy_ratio, strict=True)):
            require_equal(a > b, problem.posterior[y] > problem.policy[y], f"α > β at {y}")


note(
    "err-6",
    "Slips of notation in (4), (13), (24), sections 1 and 9.4; no mathematics depends on them",
    source="eqs. (3), (4), (13), (24), sections 1 and 9.4",
    reason="(4) mixes y and y_i; the text calls (3) “the expectation in eq. (4)”; (13) has D^q in the main text and "
    "D^{q'} in the appendix; the superscripts of α and β named after (24) do not exist; 9.4 refers to itself for "
    "Figure 2; section 1 says unbiased for a divergence, but it is for its gradient",
    mend="y throughout in (4); D^{q'} in (13); unbiased for the gradient of the divergence",
)

note(
    "err-7",
    "(12) reuses the symbol ∇L̂ of (7), though the two differ by the baseline",
    source="eqs. (7) and (12)",
    reason="a clash of symbols: (7) is the gradient of (5), (12) is not",
    mend="another symbol, such as ĝ, for the left side of (12)",
)

Implication = Callable[[bool, bool], bool]


def printed_implication(kl_is_zero: bool, divergence_is_zero: bool) -> bool:
    """D_KL = 0 ⟹ D_n = 0."""
    return divergence_is_zero or not kl_is_zero


def show_printed_line_proves_too_little() -> None:
    """n = 1 on the generic instance: D_1 = 0 and KL > 0, so the printed line holds and the theorem does not."""
    kl_is_zero, divergence_is_zero = facts_of(GENERIC, 1)
    require_equal((kl_is_zero, divergence_is_zero), (False, True), "KL = 0 and D_1 = 0")
    require(printed_implication(kl_is_zero, divergence_is_zero), "the printed line holds there")


def facts_of(problem: Toy, group_size: int) -> tuple[bool, bool]:
    """Whether KL = 0 and whether D_n = 0."""
    return kl(problem.posterior, problem.policy) == 0, mean_divergence(problem, group_size) == 0


@claim(
    "err-8",
    "The last line of the proof of Theorem 4.3 repeats (34); what the proof has shown is D_KL ≠ 0 ⟹ D_n ≠ 0",
    source="the closing line of the proof of Theorem 4.3 (4.2 in the later version)",
    method="exact: truth table with (34); D_2 of random problems",
    case="40 problems",
    mend="Together with (34) this proves D_KL = 0 ⟺ D_n = 0",
    subject=lambda kl_is_zero, divergence_is_zero: kl_is_zero or not divergence_is_zero,
    mutants={"as printed": printed_implication},
    counterexamples={"the other direction": show_printed_line_proves_too_little},
)
def err_8(line: Implication) -> None:
    """With (34) the line must leave only "both 0" and "neither", and it must be true."""
    for kl_is_zero, divergence_is_zero in itertools.product((True, False), repeat=2):
        both = printed_implication(kl_is_zero, divergence_is_zero) and line(kl_is_zero, divergence_is_zero)
        require_equal(both, kl_is_zero == divergence_is_zero, "(34) and the line together")
    for problem in random_toys(20, seed=8):
        for tried in (problem, problem._replace(policy=problem.posterior)):
            require(line(*facts_of(tried, 2)), "the line is true of D_2")


RELATIVE = toy((1, 1, 1, 1), (2, 4, 5, 5), (4, 10, 1, 1), (1, 1, 1, 1))
"""π = (2, 4, 5, 5)/16, q = (4, 10, 1, 1)/16, q' uniform."""

Margin = Callable[[Any, Any, Any, Any], Any]


def show_positive_weight() -> None:
    """In the group (0, 1) the policy exceeds the posterior on both, yet the first weight is +1/21."""
    require(all(RELATIVE.policy[y] > RELATIVE.posterior[y] for y in (0, 1)), "q exceeds π on both")
    require_equal(brain(RELATIVE, (0, 1)), [Fraction(1, 21), -Fraction(1, 21)], "weights")


@claim(
    "err-11",
    "“Negative weight as soon as q(y) > π(y)” is false: the sign is that of α/β − A/B, relative to the group",
    source="section 4, after eq. (12)",
    method="z3 for all real weights, n = 2, 3; exact: all ordered groups",
    case="K=4, n=3",
    mend="the weight is negative where π(y)/q(y) is below the ratio A/B of the group",
    subject=lambda a, b, total_a, total_b: a * total_b - b * total_a,
    mutants={
        "as printed": lambda a, b, total_a, total_b: a - b,
        "swapped": lambda a, b, total_a, total_b: b * total_a - a * total_b,
    },
    counterexamples={"relative to the group": show_positive_weight},
    code=("brain_core.brain_coefficients",),
)
def err_11(margin: Margin) -> None:
    """The margin has the sign of α̂ − β̂."""
    for problem in (GENERIC, RELATIVE):
        for group in ordered_groups(problem.size, 3):
            a, b = at(problem.target_ratio, group), at(problem.policy_ratio, group)
            for i, weight in enumerate(brain(problem, group)):
                found = margin(a[i], b[i], sum(a), sum(b))
                require_equal((found > 0, found < 0), (weight > 0, weight < 0), f"sign of weight {i} of {group}")
    for size in (2, 3):
        require_sign_rule(brain_coefficients, margin, size)


Treatment = Callable[[Dual], Dual | Fraction]


def detached(weight: Dual) -> Fraction:
    """The weight as a constant."""
    return as_fraction(weight)


def attached(weight: Dual) -> Dual:
    """The weight with its dependence on the policy."""
    return weight


def slopes_of_line_17(problem: Toy, group: Group, treat: Treatment) -> list[LogNumber]:
    """The derivatives of Σ (α̂ − β̂) log q in the logits, by the product rule."""
    policy = in_logits(problem.policy)
    target = shares(at(problem.target_ratio, group))
    treated = [treat(weight) for weight in shares([policy[y] / problem.proposal[y] for y in group])]
    weights = [a - b for a, b in zip(target, treated, strict=True)]
    return [
        sum(
            (slope_of_product(c, policy[y], j) for c, y in zip(weights, group, strict=True)),
            start=ZERO,
        )
        for j in range(problem.size)
    ]


def slope_of_product(weight: Dual | Fraction, policy: Dual, direction: int) -> LogNumber:
    """(c log q)' = c' log q + c q'/q in one direction."""
    value, slope = (
        (as_fraction(weight), weight.slopes[direction]) if isinstance(weight, Dual) else (weight, Fraction(0))
    )
    return slope * log(as_fraction(policy)) + value * policy.slopes[direction] / as_fraction(policy)


def gradient_of_group(problem: Toy, group: Group) -> list[Fraction]:
    """Σ (α̂_i − β̂_i) ∇ log q(y_i) in the logits."""
    return list(combined(brain(problem, group), at(scores(problem), group)))


def show_covariance() -> None:
    """What attached weights add is −Cov_β̂(log q, ∇ log q), on every pair of the generic instance."""
    for group in ordered_groups(GENERIC.size, 2):
        literal = slopes_of_line_17(GENERIC, group, attached)
        weights, logs = shares(at(GENERIC.policy_ratio, group)), [log(GENERIC.policy[y]) for y in group]
        mean = sum((b * value for b, value in zip(weights, logs, strict=True)), start=ZERO)
        for j, right in enumerate(gradient_of_group(GENERIC, group)):
            own = [score[j] for score in at(scores(GENERIC), group)]
            terms = (b * h * (value - mean) for b, h, value in zip(weights, own, logs, strict=True))
            require_equal(literal[j] - right, -sum(terms, start=ZERO), f"difference on {group}")


@claim(
    "err-13",
    "Line 17 as a loss: β̂ depends on θ, and differentiating it adds −Cov_β̂(log q, ∇ log q) to (12)",
    source="Algorithm 1, lines 17 and 19",
    method="exact: duals with logarithms, all ordered groups",
    case="K=4, n=3",
    mend="detach α̂ − β̂ in line 17, or take Σ α̂ log β̂ as the loss",
    subject=detached,
    mutants={"as printed": attached},
    counterexamples={"detached weights": show_covariance},
    code=("brain_core.brain_coefficients", "brain_core.brain_objective"),
    tests=(
        "tests/brain_core/test_objectives.py::test_torch_gradient_of_an_objective_is_minus_the_coefficients",
        "tests/brain_core/test_package.py::test_coefficients_of_a_tensor_that_requires_grad_raise_no_warning",
    ),
)
def err_13(treat: Treatment) -> None:
    """The derivative of line 17, and that of the other loss, against (12)."""
    for group in ordered_groups(GENERIC.size, 3):
        right = gradient_of_group(GENERIC, group)
        require_equal(slopes_of_line_17(GENERIC, group, treat), right, f"derivative of line 17 on {group}")
        require_equal(slopes_of_cross_entropy(GENERIC, group), right, f"derivative of Σ α̂ log β̂ on {group}")


def slopes_of_cross_entropy(problem: Toy, group: Group) -> list[Fraction]:
    """The derivatives of Σ α̂ log β̂ in the logits."""
    policy = in_logits(problem.policy)
    logs = [weight.log() for weight in shares([policy[y] / problem.proposal[y] for y in group])]
    target = shares(at(problem.target_ratio, group))
    return [sum(a * b.slopes[j] for a, b in zip(target, logs, strict=True)) for j in range(problem.size)]


class Buffer(NamedTuple):
    """How Algorithm 1 is read: when α̂ is normalised, and whose q' a group is divided by."""

    normalize: Callable[[Sequence[Fraction]], Sequence[Fraction]]
    proposal_of: Callable[[Vector, Vector], Vector]


def own(sampled_from: Vector, newest: Vector) -> Vector:
    """The proposal that sampled the group."""
    return sampled_from


def inside_loop(ratios: Sequence[Fraction]) -> list[Fraction]:
    """Line 9 where it stands: each α over the sum of those seen so far."""
    return [ratio / sum(ratios[: i + 1]) for i, ratio in enumerate(ratios)]


@claim(
    "err-14",
    "Line 9 normalises before Y_x is complete, and D_t ∪ S_t must not merge groups of one prompt with different q'",
    source="Algorithm 1, lines 7 to 12",
    method="exact: mean gradient of two iterations' groups against −∇D_n of each",
    case="K=4, n=2",
    mend="normalise after the loop over Y_x, and store each group with its own q'",
    subject=Buffer(shares, own),
    mutants={
        "as printed: line 9 inside the loop": Buffer(inside_loop, own),
        "as printed: a prompt has one q', the newest": Buffer(shares, lambda sampled_from, newest: newest),
    },
    code=("llm.groups.Collector",),
    tests=("tests/llm/test_align.py::test_each_group_keeps_the_log_probs_of_its_own_proposal",),
)
def err_14(reading: Buffer) -> None:
    """α̂ is cached when the group is sampled, β̂ is computed later with the q' that the buffer has."""
    proposals = (GENERIC.prior, GENERIC.proposal)
    for sampled_from in proposals:
        problem = GENERIC._replace(proposal=sampled_from)
        cached = reading.proposal_of(sampled_from, proposals[-1])

        def coefficients(problem: Toy, group: Group, cached: Vector = cached) -> list[Fraction]:
            """Cached α̂ minus β̂ with the buffer's q'."""
            target = reading.normalize(at(problem.target_ratio, group))
            policy = shares([problem.policy[y] / cached[y] for y in group])
            return [a - b for a, b in zip(target, policy, strict=True)]

        mean = mean_estimate(problem, 2, coefficients, mean_over_groups)
        require_equal(mean, expected_ascent(problem, 2), "mean gradient of the buffer")


class Relation(NamedTuple):
    """How DPO's loss is said to follow from the BRAIn objective −D_n: loss = sign · objective + constant(p)."""

    sign: int
    constant: Callable[[Vector], LogNumber]


def chance_of_same(prior: Vector) -> LogNumber:
    """log 2 · P(y1 = y2)."""
    return sum((p * p for p in prior), start=Fraction(0)) * log(2)


@claim(
    "err-16",
    "Theorem 6.1: the two differ by log 2 · P(y1 = y2), have opposite signs, and need β = 1 and no ties",
    source="Theorem 6.1 (5.1 or 5.2 in the later version)",
    method="exact logarithms and duals",
    case="K=4; 20 random problems",
    mend="DPO-sft at β = 1 is minus the BRAIn objective, up to the constant log 2 · P(y1 = y2), where r has no ties",
    subject=Relation(-1, chance_of_same),
    mutants={
        "as printed: no constant": Relation(-1, lambda prior: ZERO),
        "as printed: the objective itself": Relation(1, chance_of_same),
        "log 2 for every pair": Relation(-1, lambda prior: log(2)),
    },
    counterexamples=NEEDED_FOR_DPO,
    assumptions=tuple(NEEDED_FOR_DPO),
    code=("brain_core.argmax_brain_objective", "brain_core.dpo_objective"),
    tests=("tests/brain_core/test_identities.py::test_argmax_brain_of_a_pair_is_dpo",),
)
def err_16(relation: Relation) -> None:
    """DPO's loss, from labelled pairs, against the BRAIn objective, minus the divergence with argmax weights."""
    for problem in (ON_PRIOR, COIN, *without_ties(20)):
        policy = in_logits(problem.policy)
        loss, objective = dpo_loss(problem, policy), -argmax_divergence(problem, policy)
        right = as_log(objective) * relation.sign + relation.constant(problem.prior)
        require_equal(as_log(loss), right, "DPO's loss")
        require_equal(loss.slopes, (objective * relation.sign).slopes, "gradients")


note(
    "err-19",
    "Tables 2 and 3 disagree with themselves or with Table 1 in three entries",
    source="Tables 1, 2 and 3",
    reason="Table 2, vs DPO on HH: 44.0 + 31.6 + 21.4 = 97.0. Table 3 against Table 1, LLM eval: DPO-sft 66.78 and "
    "66.68; BRAIn 74.36 ± 1.17 and ± 1.20. Wald intervals of the other HH entries fit one N in 5099 to 5104; "
    "± 1.17 would need N ≥ 5305, so ± 1.20 is the consistent one; 66.68 and 66.78 both fit. Entries such as 42.1 % of "
    "500 are half-integer counts, which suggests two judgements per item",
    mend="± 1.20 in Table 3; the other two cannot be resolved from the paper",
)

note(
    "err-20",
    "Win rates and a method's name in summaries of the paper differ from the paper's own",
    source="not in the paper",
    reason="not a statement of the paper; nothing here relies on such summaries",
)

"""What the claims about groups share: weights, divergences and gradients from their definitions, and a call of z3."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from proofs_check.claims import require
from proofs_check.enumeration import (
    Group,
    law_of_sum,
    mean_over_groups,
    mean_over_multisets,
    mean_self_normalized,
)
from proofs_check.exact import Dual, LogNumber, Rational, in_logits, log
from proofs_check.instances import Toy, Vector

ZERO = LogNumber(Fraction(0))

SOLVER_MILLISECONDS = 20_000

Values = Sequence[Any]

Estimator = Callable[[Toy, Group], Sequence[Fraction]]
"""From a problem and a group to one coefficient per member."""


def at(vector: Sequence[Any], group: Group) -> list[Any]:
    """The entries of a group."""
    return [vector[y] for y in group]


def shares(values: Sequence[Any]) -> list[Any]:
    """The values divided by their sum."""
    total = sum(values)
    return [value / total for value in values]


def hidden_index(law: Sequence[Fraction], proposal: Sequence[Fraction], group: Group) -> list[Fraction]:
    """P(I = i | Y), where a fair die I says which member of Y came from `law` and the others came from the proposal.

    By Bayes' rule on probabilities of whole groups; importance ratios do not occur.
    """
    joint = [
        law[y] * math.prod((proposal[z] for j, z in enumerate(group) if j != i), start=Fraction(1))
        for i, y in enumerate(group)
    ]
    return [mass / sum(joint, start=Fraction(0)) for mass in joint]


def kl(target: Sequence[Fraction], policy: Sequence[Fraction]) -> LogNumber:
    """KL(target ‖ policy), exactly; the policy is positive where the target is."""
    return sum((a * log(a / b) for a, b in zip(target, policy, strict=True) if a), start=ZERO)


def divergence(alpha: Sequence[Fraction], beta: Sequence[Fraction]) -> LogNumber:
    """D(Y) = KL(α̂ ‖ β̂) of a group's ratios, exactly; 0 where every α is 0."""
    return kl(shares(alpha), shares(beta)) if any(alpha) else ZERO


def brain_coefficients(alpha: Sequence[Any], beta: Sequence[Any]) -> list[Any]:
    """The coefficients of eq. (12): α̂ − β̂."""
    return [a - b for a, b in zip(shares(alpha), shares(beta), strict=True)]


def moving_divergence(alpha: Sequence[Fraction], beta: Sequence[Dual]) -> Dual:
    """D(Y) with its derivatives, where the policy's ratios move and the target's do not; 0 where every α is 0."""
    still: Dual = beta[0] * 0
    if not any(alpha):
        return still
    total = sum(beta, start=still)
    return sum((-((b / total / a).log() * a) for a, b in zip(shares(alpha), beta, strict=True) if a), start=still)


def divergence_by_laws(problem: Toy, group_size: int) -> LogNumber:
    """D_n = E Σ α̂ log(α/β) − E log A + E log B over the groups with A > 0, from the laws of A and of B."""
    alpha, beta, proposal = problem.target_ratio, problem.policy_ratio, problem.proposal
    share = mean_self_normalized(alpha, proposal, group_size)
    terms = [mass * log(a / b) for mass, a, b in zip(share, alpha, beta, strict=True) if mass]
    terms += [-mass * log(total) for total, mass in law_of_sum(alpha, proposal, group_size).items() if total]
    outside = [Fraction(0) if a else s for a, s in zip(alpha, proposal, strict=True)]
    empty = law_of_sum(beta, outside, group_size)
    for total, mass in law_of_sum(beta, proposal, group_size).items():
        if counted := mass - empty.get(total, Fraction(0)):
            terms.append(counted * log(total))
    return sum(terms, start=ZERO)


def logit_score(policy: Sequence[Fraction], completion: int) -> Vector:
    """∇ log q(y) of a softmax policy in its logits: e_y − q."""
    return tuple((k == completion) - q for k, q in enumerate(policy))


def along_score(
    policy: Sequence[Fraction], directions: Sequence[Sequence[Rational]]
) -> Callable[[Sequence[Fraction], int], Vector]:
    """∇ log q(y) along directions v of probability space: v_y / q_y."""
    return lambda _, y: tuple(Fraction(direction[y]) / policy[y] for direction in directions)


def combined(coefficients: Sequence[Fraction], vectors: Sequence[Sequence[Fraction]]) -> Vector:
    """Σ coefficient · vector."""
    return tuple(
        sum((c * entry for c, entry in zip(coefficients, column, strict=True)), start=Fraction(0))
        for column in zip(*vectors, strict=True)
    )


def mean_vector(
    proposal: Sequence[Fraction],
    group_size: int,
    value: Callable[[Group], Sequence[Fraction]],
    over: Callable[..., Any] = mean_over_groups,
) -> Vector:
    """E over groups of a vector, which travels as the slopes of a dual number; over ordered groups or multisets."""
    mean: Dual = over(proposal, group_size, lambda group: Dual(Fraction(0), tuple(value(group))))
    return mean.slopes


def ratios(problem: Toy, group: Group) -> tuple[Values, Values]:
    """α and β of a group."""
    return at(problem.target_ratio, group), at(problem.policy_ratio, group)


def brain(problem: Toy, group: Group) -> list[Fraction]:
    """The estimate of eq. (12): α̂ − β̂ of a group."""
    return brain_coefficients(*ratios(problem, group))


def mean_divergence(problem: Toy, group_size: int) -> LogNumber:
    """D_n over multisets."""
    return LogNumber.of(mean_over_multisets(problem.proposal, group_size, lambda g: divergence(*ratios(problem, g))))


def expected_ascent(problem: Toy, group_size: int, over: Callable[..., Any] = mean_over_multisets) -> Vector:
    """−∇D_n in the logits, from the definition: dual numbers through every group's divergence."""
    beta = [q / s for q, s in zip(in_logits(problem.policy), problem.proposal, strict=True)]
    return ascent_along(problem, beta, group_size, over)


def ascent_along(problem: Toy, beta: Sequence[Dual], group_size: int, over: Callable[..., Any]) -> Vector:
    """−∇D_n in the directions of the policy's ratios."""
    alpha = problem.target_ratio
    mean: Dual = over(problem.proposal, group_size, lambda group: moving_divergence(at(alpha, group), at(beta, group)))
    return tuple(-slope for slope in mean.slopes)


def mean_estimate(
    problem: Toy, group_size: int, estimator: Estimator, over: Callable[..., Any] = mean_over_multisets
) -> Vector:
    """E ĝ in the logits."""

    def estimate(group: Group) -> Vector:
        return combined(estimator(problem, group), [logit_score(problem.policy, y) for y in group])

    return mean_vector(problem.proposal, group_size, estimate, over)


def require_proved(what: str, *counterexample: Any) -> None:
    """Raise Refuted where z3 finds reals that meet the constraints; an undecided case is an error, not a verdict."""
    import z3

    solver = z3.Solver()
    solver.set("timeout", SOLVER_MILLISECONDS)
    solver.add(*counterexample)
    answer = solver.check()
    if answer == z3.unknown:
        raise RuntimeError(f"z3 could not decide: {what}")
    require(answer == z3.unsat, f"{what}: fails at {solver.model() if answer == z3.sat else None}")

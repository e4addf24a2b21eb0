"""Appendix A, the proof of Proposition 5.1 line by line: equations (37) to (42), six forms of α̂.

Every form is held against Bayes' rule on whole groups, in which no importance ratio occurs: exactly on groups, where
log and exp are those of rationals, and for symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, ordered_groups
from proofs_check.exact import LogNumber, log
from proofs_check.groups import at, hidden_index, shares
from proofs_check.instances import GENERIC, GENERIC_GROUP_SIZE, Toy, proportional, random_toys
from proofs_check.section_4 import Values, show_goodness_without_mass, show_group_without_target_mass


class Members(NamedTuple):
    """What the six forms are made of, for the members of one group; numbers or symbols."""

    prior: Values
    goodness: Values
    proposal: Values
    posterior: Values
    evidence: Any
    """p(G=1|x)"""
    reward: Values
    log: Callable[[Any], Any]
    exp: Callable[[Any], Any]

    @property
    def lift(self) -> list[Any]:
        """p/q'."""
        return [p / s for p, s in zip(self.prior, self.proposal, strict=True)]


Form = Callable[[Members, int], Any]
"""α̂ of one member."""


def exp_of(value: LogNumber) -> Fraction:
    """exp of an integer combination of logarithms of primes."""
    require(not value.rational and all(c.denominator == 1 for _, c in value.logs), f"{value} is no log of a rational")
    found = Fraction(1)
    for prime, power in value.logs:
        found *= Fraction(prime) ** power.numerator
    return found


def member_shares(values: Callable[[Members], Values]) -> Form:
    """The form value_i / Σ value_j."""
    return lambda group, i: shares(values(group))[i]


def relative(factor: Callable[[Members, int, int], Any]) -> Form:
    """The form (p/q')_i / Σ_j (p/q')_j · factor(i, j)."""
    return lambda group, i: group.lift[i] / sum(lift * factor(group, i, j) for j, lift in enumerate(group.lift))


def exact_group(problem: Toy, group: Group) -> Members:
    """A group of a problem whose goodness is e^r over ten times the largest e^r."""
    scale = 10 * max(problem.goodness)
    return Members(
        prior=at(problem.prior, group),
        goodness=[problem.goodness[y] / scale for y in group],
        proposal=at(problem.proposal, group),
        posterior=at(problem.posterior, group),
        evidence=problem.normalizer / scale,
        reward=[log(problem.goodness[y]) for y in group],
        log=log,
        exp=exp_of,
    )


def symbolic_group(size: int) -> tuple[Members, list[Any]]:
    """Distinct members with symbols for everything, and P(I = i | Y) by Bayes' rule."""
    import sympy

    prior, proposal = (list(sympy.symbols(f"{name}:{size}", positive=True)) for name in ("p", "s"))
    reward = list(sympy.symbols(f"r:{size}", real=True))
    scale, evidence = sympy.symbols("c z", positive=True)
    goodness = [scale * sympy.exp(r) for r in reward]
    posterior = [p * g / evidence for p, g in zip(prior, goodness, strict=True)]
    joint = [law * sympy.prod([s for j, s in enumerate(proposal) if j != i]) for i, law in enumerate(posterior)]
    group = Members(prior, goodness, proposal, posterior, evidence, reward, sympy.log, sympy.exp)
    return group, [mass / sum(joint) for mass in joint]


def require_form(form: Form, name: str) -> None:
    """Raise Refuted unless a form is α̂: on all groups of the generic instance, on random ones, and for symbols."""
    for problem, n in ((GENERIC, GENERIC_GROUP_SIZE), *((problem, 2) for problem in random_toys(10, seed=37))):
        for group in ordered_groups(problem.size, n):
            members, expected = exact_group(problem, group), hidden_index(problem.posterior, problem.proposal, group)
            found = [form(members, i) for i in range(n)]
            require_equal(found, expected, f"{name} on {group}")
    import sympy

    members, expected = symbolic_group(3)
    for i, chance in enumerate(expected):
        require_equal(sympy.cancel(sympy.together(form(members, i) - chance)), 0, f"{name} for symbols")


FORMS = {
    "method": "exact: Bayes' rule on whole groups; sympy",
    "case": "K=4, n=3, all ordered groups; 10 random problems, n=2; symbols, n=3",
    "tests": ("tests/brain_core/test_goodness_and_diagnostics.py::test_weights_are_a_distribution",),
    "code": ("brain_core.self_normalized_weights", "brain_core.target_log_ratio"),
}


@claim(
    "eq-37",
    "α̂ is the share of π/q'",
    source="eq. (37)",
    subject=member_shares(lambda group: [t / s for t, s in zip(group.posterior, group.proposal, strict=True)]),
    mutants={
        "without q'": member_shares(lambda group: group.posterior),
        "ratio inverted": member_shares(lambda g: [s / t for t, s in zip(g.posterior, g.proposal, strict=True)]),
        "relative to the prior": member_shares(lambda g: [t / p for t, p in zip(g.posterior, g.prior, strict=True)]),
    },
    counterexamples={"p(G=1|x) > 0": show_goodness_without_mass},
    assumptions=("p(G=1|x) > 0",),
    **FORMS,
)
def eq_37(form: Form) -> None:
    """All groups."""
    require_form(form, "(37)")


def form_38(numerator_evidence: bool, denominator_evidence: bool) -> Form:
    """Eq. (38), with p(G=1|x) in the numerator and in the denominator."""

    def form(group: Members, i: int) -> Any:
        values = [lift * g for lift, g in zip(group.lift, group.goodness, strict=True)]
        above = values[i] / group.evidence if numerator_evidence else values[i]
        below = [value / group.evidence if denominator_evidence else value for value in values]
        return above / sum(below)

    return form


@claim(
    "eq-38",
    "α̂ is the share of (p/q') p(G=1|y,x)/p(G=1|x), by Bayes' rule (1)",
    source="eq. (38)",
    subject=form_38(True, True),
    mutants={
        "p(G=1|x) in the numerator only": form_38(True, False),
        "p(G=1|x) in the denominator only": form_38(False, True),
        "without the goodness": member_shares(lambda group: group.lift),
        "goodness inverted": member_shares(lambda g: [a / b for a, b in zip(g.lift, g.goodness, strict=True)]),
    },
    counterexamples={"p(G=1|x) > 0": show_goodness_without_mass},
    assumptions=("p(G=1|x) > 0",),
    **FORMS,
)
def eq_38(form: Form) -> None:
    """All groups."""
    require_form(form, "(38)")


@claim(
    "eq-39",
    "α̂ is the share of (p/q') p(G=1|y,x): p(G=1|x) cancels",
    source="eq. (39)",
    subject=member_shares(lambda group: [lift * g for lift, g in zip(group.lift, group.goodness, strict=True)]),
    mutants={
        "without the prior": member_shares(lambda g: [b / s for b, s in zip(g.goodness, g.proposal, strict=True)]),
        "without q'": member_shares(lambda g: [p * b for p, b in zip(g.prior, g.goodness, strict=True)]),
        "without both": member_shares(lambda group: group.goodness),
        "q'/p": member_shares(lambda g: [b / lift for lift, b in zip(g.lift, g.goodness, strict=True)]),
        "given G=0": member_shares(lambda g: [lift * (1 - b) for lift, b in zip(g.lift, g.goodness, strict=True)]),
    },
    counterexamples={"A > 0": show_group_without_target_mass},
    assumptions=("A > 0",),
    **FORMS,
)
def eq_39(form: Form) -> None:
    """All groups."""
    require_form(form, "(39)")


form_40 = relative(lambda group, i, j: group.goodness[j] / group.goodness[i])


def show_member_without_goodness() -> None:
    """Goodness (0, 1): the share of (39) is 0, and (40) divides by 0."""
    values = [p * g for p, g in zip(proportional(1, 1), (0, 1), strict=True)]
    require_equal(shares(values), [0, 1], "shares of (39)")
    try:
        relative(lambda group, i, j: group.goodness[j] / group.goodness[i])(goodness_zero_and_one(), 0)
    except ZeroDivisionError:
        return
    require(False, "(40) has a value")


def goodness_zero_and_one() -> Members:
    """A group of two with goodness 0 and 1, on the prior."""
    half, goodness = list(proportional(1, 1)), [Fraction(0), Fraction(1)]
    return Members(half, goodness, half, goodness, Fraction(1, 2), [], log, exp_of)


@claim(
    "eq-40",
    "α̂ = (p/q')_i / Σ_j (p/q')_j p(G=1|y_j,x)/p(G=1|y_i,x)",
    source="eq. (40)",
    subject=form_40,
    mutants={
        "ratio inverted": relative(lambda group, i, j: group.goodness[i] / group.goodness[j]),
        "without the own goodness": relative(lambda group, i, j: group.goodness[j]),
        "without the ratio": relative(lambda group, i, j: 1),
        "1 + difference": relative(lambda group, i, j: 1 + group.goodness[j] - group.goodness[i]),
    },
    counterexamples={"p(G=1|y_i,x) > 0": show_member_without_goodness},
    assumptions=("p(G=1|y_i,x) > 0",),
    **FORMS,
)
def eq_40(form: Form) -> None:
    """All groups."""
    require_form(form, "(40)")


form_41 = relative(lambda group, i, j: group.exp(group.reward[j] - group.reward[i]))


def show_logistic_goodness() -> None:
    """With goodness σ(r) on the prior, e^r = (2, 5), p uniform: α̂ = (4/9, 5/9), but (41) gives (2/7, 5/7)."""
    exp_reward, half = [Fraction(2), Fraction(5)], list(proportional(1, 1))
    goodness = [e / (1 + e) for e in exp_reward]
    group = Members(
        half, goodness, half, shares(goodness), sum(goodness) / 2, [log(e) for e in exp_reward], log, exp_of
    )
    require_equal([form_40(group, i) for i in (0, 1)], [Fraction(4, 9), Fraction(5, 9)], "(40)")
    require_equal([form_41(group, i) for i in (0, 1)], [Fraction(2, 7), Fraction(5, 7)], "(41)")
    require_equal([form_42(group, i) for i in (0, 1)], [Fraction(2, 7), Fraction(5, 7)], "(42)")


@claim(
    "eq-41",
    "Bradley–Terry goodness: α̂ = (p/q')_i / Σ_j (p/q')_j exp(r_j − r_i)",
    source="eq. (41)",
    subject=form_41,
    mutants={
        "sign of the difference": relative(lambda group, i, j: group.exp(group.reward[i] - group.reward[j])),
        "sum for difference": relative(lambda group, i, j: group.exp(group.reward[j] + group.reward[i])),
        "twice the difference": relative(lambda group, i, j: group.exp(2 * (group.reward[j] - group.reward[i]))),
        "without the exponential": relative(lambda g, i, j: 1 + g.exp(g.reward[j]) - g.exp(g.reward[i])),
    },
    counterexamples={"p(G=1|y,x) ∝ e^r": show_logistic_goodness},
    assumptions=("p(G=1|y,x) ∝ e^r",),
    **{**FORMS, "code": ("brain_core.bradley_terry_log_goodness", "brain_core.self_normalized_weights")},
)
def eq_41(form: Form) -> None:
    """All groups."""
    require_form(form, "(41)")


def softmax_of(exponent: Callable[[Members, int], Any]) -> Form:
    """The form exp(exponent_i) / Σ exp(exponent_j)."""
    return member_shares(lambda group: [group.exp(exponent(group, j)) for j in range(len(group.prior))])


form_42 = softmax_of(lambda group, j: group.reward[j] + group.log(group.prior[j]) - group.log(group.proposal[j]))


@claim(
    "eq-42",
    "Bradley–Terry goodness: α̂ = softmax(r + log p − log q')",
    source="eq. (42)",
    subject=form_42,
    mutants={
        "sign of log q'": softmax_of(lambda g, j: g.reward[j] + g.log(g.prior[j]) + g.log(g.proposal[j])),
        "without log p": softmax_of(lambda group, j: group.reward[j] - group.log(group.proposal[j])),
        "without log q'": softmax_of(lambda group, j: group.reward[j] + group.log(group.prior[j])),
        "without r": softmax_of(lambda group, j: group.log(group.prior[j]) - group.log(group.proposal[j])),
        "r alone, eq. (21) off the prior": softmax_of(lambda group, j: group.reward[j]),
        "sign of r": softmax_of(lambda g, j: g.log(g.prior[j]) - g.log(g.proposal[j]) - g.reward[j]),
    },
    counterexamples={"p(G=1|y,x) ∝ e^r": show_logistic_goodness},
    assumptions=("p(G=1|y,x) ∝ e^r",),
    **{**FORMS, "code": ("brain_core.bradley_terry_log_goodness", "brain_core.target_log_ratio")},
)
def eq_42(form: Form) -> None:
    """All groups."""
    require_form(form, "(42)")

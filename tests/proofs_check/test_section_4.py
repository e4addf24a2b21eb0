"""Theorems 4.2 and 4.3 on problems that hypothesis draws, and claims that it refutes."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from proofs_check.claims import Refuted
from proofs_check.enumeration import ordered_groups
from proofs_check.groups import brain, divergence_by_laws, expected_ascent, kl, mean_divergence, mean_estimate, ratios
from proofs_check.instances import Toy, toy
from proofs_check.section_4_theorems import WRONG_FORMS, require_unbiased

SEARCH = settings(
    max_examples=1000,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # any example will do, not only the smallest
    suppress_health_check=list(HealthCheck),
)


@st.composite
def toys(draw: st.DrawFn, largest: int = 9, sizes: tuple[int, int] = (2, 4)) -> Toy:
    """Positive problems; every fourth or so has the policy at its target."""
    size = draw(st.integers(*sizes))
    weights = st.lists(st.integers(1, largest), min_size=size, max_size=size)
    problem = toy(draw(weights), draw(weights), draw(weights), draw(weights))
    on_target = draw(st.integers(0, 3)) == 0
    return problem._replace(policy=problem.posterior) if on_target else problem


def found(problems: st.SearchStrategy[Toy], holds: Callable[[Toy], bool]) -> Toy:
    return find(problems, holds, settings=SEARCH, random=random.Random(0))


@given(problem=toys(), group_size=st.integers(2, 3))
def test_estimate_is_unbiased_for_the_gradient_of_the_self_normalized_kl(problem: Toy, group_size: int) -> None:
    require_unbiased(problem, group_size, brain)


@pytest.mark.parametrize("wrong", WRONG_FORMS)
def test_hypothesis_refutes_every_wrong_estimate(wrong: str) -> None:
    estimator = WRONG_FORMS[wrong]
    problem = found(toys(sizes=(2, 3)), lambda p: mean_estimate(p, 3, estimator) != expected_ascent(p, 3))
    with pytest.raises(Refuted):
        require_unbiased(problem, 3, estimator)


@given(problem=toys(), group_size=st.integers(2, 3))
def test_divergence_is_zero_exactly_where_the_policy_is_the_target(problem: Toy, group_size: int) -> None:
    assert mean_divergence(problem, group_size) >= 0
    assert (mean_divergence(problem, group_size) == 0) == (problem.policy == problem.posterior)


def test_hypothesis_refutes_that_groups_of_one_see_the_target() -> None:
    problem = found(toys(), lambda p: divergence_by_laws(p, 1) == 0 and p.policy != p.posterior)
    assert kl(problem.posterior, problem.policy) > 0


def test_hypothesis_refutes_that_the_divergence_is_at_most_kl() -> None:
    problem = found(toys(largest=99, sizes=(3, 3)), lambda p: divergence_by_laws(p, 2) > kl(p.posterior, p.policy))
    assert float(divergence_by_laws(problem, 2)) > float(kl(problem.posterior, problem.policy))


def test_hypothesis_refutes_that_the_estimate_is_unbiased_for_the_gradient_of_kl() -> None:
    def bias(problem: Toy) -> list[Fraction]:
        pairs = zip(mean_estimate(problem, 2, brain), problem.posterior, problem.policy, strict=True)
        return [mean - (target - policy) for mean, target, policy in pairs]

    assert any(bias(found(toys(), lambda p: any(bias(p)))))


def contrary_signs(problem: Toy) -> list[tuple[int, ...]]:
    """Pairs whose first member has π < q and yet a positive coefficient."""
    below = [t < q for t, q in zip(problem.posterior, problem.policy, strict=True)]
    pairs = ordered_groups(problem.size, 2)
    return [pair for pair in pairs if below[pair[0]] and brain(problem, pair)[0] > 0]


def test_hypothesis_refutes_that_the_sign_of_a_coefficient_compares_target_and_policy() -> None:
    problem = found(toys(), lambda p: bool(contrary_signs(p)))
    for pair in contrary_signs(problem):
        alpha, beta = ratios(problem, pair)
        assert alpha[0] / beta[0] > sum(alpha) / sum(beta)


def test_contrary_sign_of_the_documented_example() -> None:
    problem = Toy(
        prior=tuple(Fraction(w, 16) for w in (2, 4, 5, 5)),
        goodness=(Fraction(1),) * 4,
        policy=tuple(Fraction(w, 16) for w in (4, 10, 1, 1)),
        proposal=(Fraction(1, 4),) * 4,
    )
    assert problem.posterior[0] < problem.policy[0]
    assert brain(problem, (0, 1))[0] == Fraction(1, 21)


def test_a_true_statement_is_not_refuted() -> None:
    with pytest.raises(NoSuchExample):
        found(toys(), lambda p: divergence_by_laws(p, 2) < 0)

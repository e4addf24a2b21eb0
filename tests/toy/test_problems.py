from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given

from toy import CategoricalProblem, ProblemError
from toy_problems import as_floats, generic, problems

HALF = (Fraction(1, 2), Fraction(1, 2))
SURE = (1, 1)

BAD = {
    "sum": ({"prior": (0.5, 0.4)}, r"prior sums to 0.9; probabilities must sum to 1"),
    "exact sum": ({"policy": (Fraction(1, 2), Fraction(1, 3))}, r"policy sums to 5/6"),
    "above 1": ({"proposal": (1.5, -0.5)}, r"proposal\[0\] is 1.5; it must be a probability"),
    "negative": ({"policy": (1, -0.25)}, r"policy\[1\] is -0.25; it must be a probability"),
    "goodness above 1": ({"goodness": (1, 2)}, r"goodness\[1\] is 2; it must be a probability"),
    "nan": ({"goodness": (math.nan, 1)}, r"goodness\[0\] is nan; it must be a finite number"),
    "infinite": ({"prior": (math.inf, 0)}, r"prior\[0\] is inf; it must be a finite number"),
    "text": ({"prior": ("1", 0)}, r"prior\[0\] is '1'; it must be a finite number"),
    "lengths": ({"policy": (1,)}, r"one length K, but prior has 2, goodness has 2, policy has 1, proposal has 2"),
    "no completions": ({"prior": (), "goodness": (), "policy": (), "proposal": ()}, r"K is 0"),
    "K = 1": (
        {"prior": (1,), "goodness": (1,), "policy": (1,), "proposal": (1,)},
        r"K is 1; .* at least 2 possible completions",
    ),
    "nothing good": ({"goodness": (0, 0)}, r"no completion is good"),
    "nothing good in the prior": ({"prior": (1, 0), "goodness": (0, 1)}, r"no completion is good"),
    "proposal without the target": ({"proposal": (1, 0)}, r"proposal\[1\] is 0 where the target has mass"),
    "proposal without the policy": (
        {"goodness": (1, 0), "proposal": (1, 0)},
        r"proposal\[1\] is 0 where the policy has mass",
    ),
    "policy without the target": ({"policy": (0, 1)}, r"policy\[0\] is 0 where the target has mass: KL.* is infinite"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_bad_vectors_are_refused_with_the_reason(change: dict[str, object], message: str) -> None:
    vectors = {"prior": HALF, "goodness": SURE, "policy": HALF, "proposal": HALF} | change
    with pytest.raises(ProblemError, match=message):
        CategoricalProblem(**vectors)


@pytest.mark.parametrize("reward, index", [((1.0, math.nan), 1), ((math.inf, 0.0), 0)])
def test_rewards_that_are_not_finite_are_refused(reward: tuple[float, ...], index: int) -> None:
    with pytest.raises(ProblemError, match=rf"reward\[{index}\] is .*; it must be a finite number"):
        CategoricalProblem.from_reward(HALF, reward, HALF, HALF)


@pytest.mark.parametrize("reward", [(), (1.0, 2.0, 3.0)])
def test_as_many_rewards_as_completions_are_needed(reward: tuple[float, ...]) -> None:
    with pytest.raises(ProblemError, match=f"one length K, but reward has {len(reward)}, prior has 2"):
        CategoricalProblem.from_reward(HALF, reward, HALF, HALF)


def test_a_reward_that_float64_cannot_tell_from_the_worst_is_refused_and_not_dropped() -> None:
    spread = CategoricalProblem.from_reward(HALF, (0.0, 708.0), HALF, HALF)
    assert spread.posterior[0] == pytest.approx(math.exp(-708), rel=1e-13)
    with pytest.raises(ProblemError, match=r"reward\[0\] is 0.0, at temperature 0.5 712 nats below the best"):
        CategoricalProblem.from_reward(HALF, (0.0, 356.0), HALF, HALF, temperature=0.5)


@pytest.mark.parametrize("reward", [-1e6, -1.0, 3.0, 1e6])
def test_the_reward_of_a_completion_that_the_prior_excludes_does_not_matter(reward: float) -> None:
    prior = (0.5, 0.5, 0)
    problem = CategoricalProblem.from_reward(prior, (0.0, 1.0, reward), prior, prior)
    assert problem.posterior == CategoricalProblem.from_reward(prior, (0.0, 1.0, 0.0), prior, prior).posterior
    assert max(problem.goodness) == 1


def test_goodness_that_underflows_with_the_prior_is_refused_and_not_dropped() -> None:
    with pytest.raises(ProblemError, match=r"prior\[0\] · goodness\[0\] is 1e-200 · 1e-200"):
        CategoricalProblem((1e-200, 1 - 1e-200), (1e-200, 1), HALF, HALF)


@pytest.mark.parametrize("name", ["policy", "prior"])
def test_fractions_beyond_float64_stay_exact_but_are_refused_where_floats_are_needed(name: str) -> None:
    tiny = Fraction(1, 10**400)
    problem = CategoricalProblem(
        **({"prior": HALF, "goodness": SURE, "policy": HALF, "proposal": HALF} | {name: (tiny, 1 - tiny)})
    )
    assert getattr(problem, name)[0] == tiny
    with pytest.raises(ProblemError, match=r"(policy|posterior)\[0\] is 1/10000.*float64"):
        problem.kl  # noqa: B018
    with pytest.raises(ProblemError, match=rf"{name}\[0\] is 1/10000.*float64"):
        replace(problem, goodness=(1.0, 0.5))


def test_numpy_integers_and_other_vectors_of_whole_numbers_stay_exact() -> None:
    for one_zero in (np.array([1, 0]), (np.int64(1), Fraction(0)), [1, 0]):
        problem = CategoricalProblem(*[one_zero] * 4)
        assert problem.is_exact
        assert all(type(value.numerator) is int for value in problem.prior)


def test_float32_vectors_that_miss_the_sum_are_refused_with_what_to_do() -> None:
    with pytest.raises(ProblemError, match=r"prior sums to 0.99999997.*; divide them by their sum, in float64"):
        CategoricalProblem(np.array([0.1, 0.9], np.float32), SURE, HALF, HALF)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive_and_finite(temperature: float) -> None:
    with pytest.raises(ProblemError, match="it must be positive and finite"):
        CategoricalProblem.from_reward(HALF, (1.0, 2.0), HALF, HALF, temperature=temperature)


def test_posterior_is_the_conditional_of_the_joint_table_of_completion_and_goodness() -> None:
    problem = generic()
    joint = [p * g for p, g in zip(problem.prior, problem.goodness, strict=True)]
    assert problem.posterior == tuple(value / sum(joint) for value in joint)
    assert problem.normalizer == Fraction(28, 55)


@given(problem=problems(smallest_goodness=0))
def test_both_ratios_have_mean_one_under_the_proposal(problem: CategoricalProblem) -> None:
    for ratio in (problem.target_ratio, problem.policy_ratio):
        assert sum(s * value for s, value in zip(problem.proposal, ratio, strict=True)) == 1


@given(problem=problems())
def test_kl_is_never_negative_and_zero_where_policy_is_the_target(problem: CategoricalProblem) -> None:
    assert problem.kl >= 0
    assert problem.with_policy(problem.posterior).kl == 0


def kl_by_definition(problem: CategoricalProblem) -> float:
    """With 60 digits, of the numbers exactly as they are, divided by their sums."""
    with mpmath.workdps(60):
        target, policy = (
            [mpmath.mpf(Fraction(v).numerator) / Fraction(v).denominator for v in values]
            for values in (problem.posterior, problem.policy)
        )
        terms = (p * mpmath.log(p / q) - p + q for p, q in zip(target, policy, strict=True) if p)
        return float(sum(terms) + sum(q for p, q in zip(target, policy, strict=True) if not p))


@pytest.mark.parametrize("distance", [0.5, 1e-3, 1e-6, 1e-8, 1e-12])
def test_kl_keeps_its_digits_as_the_policy_nears_the_target(distance: float) -> None:
    problem, step = generic(), Fraction(distance)
    near = [(1 - step) * p + step * q for p, q in zip(problem.posterior, problem.policy, strict=True)]
    exact = problem.with_policy(near)
    assert exact.kl == pytest.approx(kl_by_definition(exact), rel=1e-13, abs=0)
    floating = as_floats(exact)
    assert floating.kl == pytest.approx(kl_by_definition(floating), rel=1e-13, abs=0)


@given(problem=problems(smallest_goodness=0))
def test_kl_equals_its_definition(problem: CategoricalProblem) -> None:
    assert problem.kl == pytest.approx(kl_by_definition(problem), rel=1e-13, abs=1e-300)


def test_fractions_stay_exact_and_one_float_makes_all_float() -> None:
    assert generic().is_exact
    assert not as_floats(generic()).is_exact
    mixed = generic().with_proposal([0.25] * 4)
    assert all(type(value) is float for value in (*mixed.prior, *mixed.goodness, *mixed.policy, *mixed.proposal))


def test_a_completion_that_nobody_can_give_has_ratios_of_zero() -> None:
    problem = CategoricalProblem((1, 0), (1, 1), (1, 0), (1, 0))
    assert problem.target_ratio == (1, 0)
    assert problem.policy_ratio == (1, 0)


def test_replacing_policy_or_proposal_leaves_the_rest() -> None:
    problem = generic()
    changed = problem.with_policy(problem.prior).with_proposal(problem.policy)
    assert (changed.policy, changed.proposal) == (problem.prior, problem.policy)
    assert (changed.prior, changed.goodness) == (problem.prior, problem.goodness)


def test_goodness_of_a_reward_is_a_softmax_tilt_of_the_prior_at_any_temperature() -> None:
    prior, reward = np.array([0.2, 0.3, 0.5]), np.array([1.0, -2.0, 0.5])
    problem = CategoricalProblem.from_reward(prior, reward, prior, prior, temperature=0.5)
    tilted = prior * np.exp(reward / 0.5)
    np.testing.assert_allclose(problem.posterior, tilted / tilted.sum(), rtol=1e-14)


def test_adding_a_constant_to_the_reward_changes_nothing() -> None:
    first = CategoricalProblem.from_reward(HALF, (1.0, 3.0), HALF, HALF)
    assert CategoricalProblem.from_reward(HALF, (1001.0, 1003.0), HALF, HALF) == first


def test_importing_toy_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, toy; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

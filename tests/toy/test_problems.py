from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

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


@pytest.mark.parametrize("reward", [(), (1.0, math.nan), (math.inf, 0.0)])
def test_rewards_that_are_not_finite_are_refused(reward: tuple[float, ...]) -> None:
    with pytest.raises(ProblemError, match="reward: every value must be a finite number"):
        CategoricalProblem.from_reward(HALF, reward, HALF, HALF)


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
    assert problem.kl >= -1e-15
    assert problem.with_policy(problem.posterior).kl == 0


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

"""What the toys refuse: every bad argument raises one ProblemError, in one line, that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from toy import (
    ESTIMATORS,
    CategoricalProblem,
    ProblemError,
    Schedule,
    brain_power,
    estimator,
    exact_flow,
    exact_moments,
    fit,
    gaussian_moments,
    gaussian_self_normalized_kl,
    mean_gradient,
    multiset_count,
    rejection_cost,
    rejection_sample,
    sampled_moments,
    self_normalized_kl,
    snkl_constant,
    weighted_self_normalized_kl,
)
from toy_problems import generic

HALF = (0.5, 0.5)
PROBLEM = generic()
SCHEDULE = Schedule(2, 1.0, 4)
HUGE = 10**5000
"""More digits than Python writes out."""

NO_VECTOR = [None, 0.5, "ab", b"ab", {0: 0.5, 1: 0.5}, {0.3, 0.7}, iter(HALF), np.eye(2), np.array(0.5)]
NO_NUMBER = ["1", None, [1], np.array([1.0, 2.0]), 1j, Decimal("0.5"), True, np.True_, math.nan, math.inf, HUGE]
NOT_POSITIVE = [*NO_NUMBER, 0, -1.0]
NOT_WHOLE = [2.0, 2.5, "2", None, True, np.float64(4), np.array(4), Fraction(4), [4], -3, -HUGE, math.nan]
NO_GROUP_SIZE = [*NOT_WHOLE, 0, 1, HUGE]
NO_SEED = [-1, 1.5, "a", None, True, [1, 2]]
NO_PROBLEM = [None, "x", (HALF,) * 4]
NO_ESTIMATOR = ["ppo", "BRAIn", None, 3, ["brain"], b"brain", np.array(["brain", "snis"])]

VECTORS = {"prior": HALF, "goodness": HALF, "policy": HALF, "proposal": HALF}


def with_vector(name: str) -> Callable[[object], object]:
    return lambda value: CategoricalProblem(**(VECTORS | {name: value}))


def with_second(name: str) -> Callable[[object], object]:
    return lambda value: with_vector(name)([1, value])


def with_entry(name: str) -> Callable[[object], object]:
    return lambda value: Schedule(**({"steps": 2, "learning_rate": 1.0, "group_size": 4} | {name: value}))


def with_reward(**change: object) -> object:
    arguments = {"prior": HALF, "reward": (0, 1), "policy": HALF, "proposal": HALF} | change
    return CategoricalProblem.from_reward(**arguments)


TABLE: list[tuple[str, str, Callable[[object], object], list[object]]] = [
    *((name, f"vector {name}", with_vector(name), NO_VECTOR) for name in VECTORS),
    *((rf"{name}\[1\]", f"number in {name}", with_second(name), NO_NUMBER) for name in VECTORS),
    ("reward", "from_reward", lambda v: with_reward(reward=v), NO_VECTOR),
    (r"reward\[1\]", "number in reward", lambda v: with_reward(reward=[0, v]), NO_NUMBER),
    ("prior", "from_reward's prior", lambda v: with_reward(prior=v), NO_VECTOR),
    ("temperature", "from_reward", lambda v: with_reward(temperature=v), NOT_POSITIVE),
    ("power", "brain_power", brain_power, NOT_POSITIVE),
    ("power", "self_normalized_kl", lambda v: self_normalized_kl(PROBLEM, 2, v), NOT_POSITIVE),
    ("proposal_mean", "gaussian_moments", lambda v: gaussian_moments("brain", v, 4), NO_NUMBER),
    ("policy_mean", "gaussian_moments", lambda v: gaussian_moments("brain", 0.5, 4, v), NO_NUMBER),
    ("proposal_mean", "gaussian_self_normalized_kl", lambda v: gaussian_self_normalized_kl(v, 4), NO_NUMBER),
    ("policy_mean", "gaussian_self_normalized_kl", lambda v: gaussian_self_normalized_kl(0.5, 4, v), NO_NUMBER),
    ("group_size", "exact_moments", lambda v: exact_moments(PROBLEM, "brain", v), NO_GROUP_SIZE),
    ("group_size", "exact_moments of pairs", lambda v: exact_moments(PROBLEM, "dpo_sft", v), [*NO_GROUP_SIZE, 3]),
    ("group_size", "self_normalized_kl", lambda v: self_normalized_kl(PROBLEM, v), NO_GROUP_SIZE),
    ("group_size", "weighted_self_normalized_kl", lambda v: weighted_self_normalized_kl(PROBLEM, v), NO_GROUP_SIZE),
    ("group_size", "mean_gradient", lambda v: mean_gradient(PROBLEM, v), NO_GROUP_SIZE),
    ("group_size", "gaussian_moments", lambda v: gaussian_moments("brain", 0.5, v), [*NO_GROUP_SIZE, 10**10]),
    ("group_size", "gaussian_self_normalized_kl", lambda v: gaussian_self_normalized_kl(0.5, v), NO_GROUP_SIZE),
    ("group_size", "sampled_moments", lambda v: sampled_moments(PROBLEM, "brain", v, 10, 0), NO_GROUP_SIZE),
    ("group_size", "multiset_count", lambda v: multiset_count(4, v), NOT_WHOLE),
    ("size", "multiset_count", lambda v: multiset_count(v, 2), [*NOT_WHOLE, 0, -1]),
    ("draws", "sampled_moments", lambda v: sampled_moments(PROBLEM, "brain", 2, v, 0), [*NOT_WHOLE, 1, 10**13, HUGE]),
    ("draws", "rejection_sample", lambda v: rejection_sample(PROBLEM, v, 0), [*NOT_WHOLE, 0, 10**13, HUGE]),
    ("seed", "sampled_moments", lambda v: sampled_moments(PROBLEM, "brain", 2, 10, v), NO_SEED),
    ("seed", "rejection_sample", lambda v: rejection_sample(PROBLEM, 2, v), NO_SEED),
    ("seed", "fit", lambda v: fit(PROBLEM, "brain", SCHEDULE, seed=v), NO_SEED),
    ("replicas", "fit", lambda v: fit(PROBLEM, "brain", SCHEDULE, seed=0, replicas=v), [*NOT_WHOLE, 0, 10**8, HUGE]),
    ("record_every", "fit", lambda v: fit(PROBLEM, "brain", SCHEDULE, seed=0, record_every=v), [*NOT_WHOLE, 0]),
    ("record_every", "exact_flow", lambda v: exact_flow(PROBLEM, "brain", SCHEDULE, record_every=v), [*NOT_WHOLE, 0]),
    ("schedule", "fit", lambda v: fit(PROBLEM, "brain", v, seed=0), [None, {}, (2, 1.0, 4)]),
    ("schedule", "exact_flow", lambda v: exact_flow(PROBLEM, "brain", v), [None, {}, (2, 1.0, 4)]),
    ("judge", "fit", lambda v: fit(PROBLEM, "brain", SCHEDULE, seed=0, judge=v), [3, "no", [0.0]]),
    *(
        (name, "Schedule", with_entry(name), [*NOT_WHOLE, 0, HUGE])
        for name in ("steps", "group_size", "groups_per_phase", "steps_per_phase", "groups_per_batch")
    ),
    ("group_size", "Schedule with groups of one", with_entry("group_size"), [1]),
    ("learning_rate", "Schedule", with_entry("learning_rate"), NOT_POSITIVE),
    ("is_proposal_updated", "Schedule", with_entry("is_proposal_updated"), ["no", None, 1, 0.0]),
    ("keeps_old_groups", "Schedule", with_entry("keeps_old_groups"), ["no", None, 1, 0.0]),
    ("problem", "exact_moments", lambda v: exact_moments(v, "brain", 2), NO_PROBLEM),
    ("problem", "self_normalized_kl", lambda v: self_normalized_kl(v, 2), NO_PROBLEM),
    ("problem", "weighted_self_normalized_kl", lambda v: weighted_self_normalized_kl(v, 2), NO_PROBLEM),
    ("problem", "mean_gradient", lambda v: mean_gradient(v, 2), NO_PROBLEM),
    ("problem", "snkl_constant", snkl_constant, NO_PROBLEM),
    ("problem", "sampled_moments", lambda v: sampled_moments(v, "brain", 2, 10, 0), NO_PROBLEM),
    ("problem", "rejection_sample", lambda v: rejection_sample(v, 2, 0), NO_PROBLEM),
    ("problem", "rejection_cost", rejection_cost, NO_PROBLEM),
    ("problem", "fit", lambda v: fit(v, "brain", SCHEDULE, seed=0), NO_PROBLEM),
    ("problem", "exact_flow", lambda v: exact_flow(v, "brain", SCHEDULE), NO_PROBLEM),
]
BAD = [(argument, ask, value) for argument, _, ask, values in TABLE for value in values]
NAMES = [f"{label}-{argument}-{index}" for argument, label, _, values in TABLE for index in range(len(values))]


@pytest.mark.parametrize("argument, ask, value", BAD, ids=NAMES)
def test_a_bad_argument_is_refused_by_name_in_one_short_line(
    argument: str, ask: Callable[[object], object], value: object
) -> None:
    with pytest.raises(ProblemError, match=rf"^{argument} is\b") as caught:
        ask(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


ASKS = [
    estimator,
    lambda v: exact_moments(PROBLEM, v, 2),
    lambda v: sampled_moments(PROBLEM, v, 2, 10, 0),
    lambda v: mean_gradient(PROBLEM, 2, v),
    lambda v: gaussian_moments(v, 0.5, 2),
    lambda v: fit(PROBLEM, v, SCHEDULE, seed=0),
    lambda v: exact_flow(PROBLEM, v, SCHEDULE),
]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("chosen", NO_ESTIMATOR, ids=str)
def test_what_is_no_estimator_is_refused(ask: Callable[[object], object], chosen: object) -> None:
    with pytest.raises(ProblemError, match=r"no estimator"):
        ask(chosen)


def test_every_kind_of_number_that_makes_sense_gives_the_same() -> None:
    halves = (0.5, Fraction(1, 2), np.float64(0.5), np.float32(0.5))
    for half, two, four in zip(
        halves, (2, 2.0, Fraction(2), np.int64(2)), (4, 4, np.int32(4), np.uint8(4)), strict=True
    ):
        assert gaussian_moments("brain", half, four, two) == gaussian_moments("brain", 0.5, 4, 2.0)
        assert self_normalized_kl(PROBLEM, four, half) == self_normalized_kl(PROBLEM, 4, 0.5)
        assert exact_moments(PROBLEM, brain_power(two), four).mse == exact_moments(PROBLEM, brain_power(2), 4).mse
        assert with_reward(reward=[half, two], temperature=half) == with_reward(reward=[0.5, 2.0], temperature=0.5)
        assert Schedule(four, two, four) == Schedule(4, 2.0, 4)


@pytest.mark.parametrize("name", ["brain", "snis"])
def test_an_entry_of_the_table_of_estimators_does_as_well_as_its_name(name: str) -> None:
    assert gaussian_moments(ESTIMATORS[name], 0.5, 8) == gaussian_moments(name, 0.5, 8)
    assert (mean_gradient(PROBLEM, 8, ESTIMATORS[name]) == mean_gradient(PROBLEM, 8, name)).all()


def test_another_estimator_of_a_known_name_is_not_taken_for_it() -> None:
    impostor = brain_power(2)
    object.__setattr__(impostor, "name", "brain")
    with pytest.raises(ProblemError, match="the Gaussian toy has no estimator"):
        gaussian_moments(impostor, 0.5, 8)
    with pytest.raises(ProblemError, match="mean_gradient knows"):
        mean_gradient(PROBLEM, 8, impostor)

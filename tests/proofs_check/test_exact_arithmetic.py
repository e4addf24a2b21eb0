"""The arithmetic and the enumerations that every claim rests on, against independent ones."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs_check.enumeration import (
    law_of_sum,
    mean_over_groups,
    mean_over_multisets,
    mean_self_normalized,
    ordered_groups,
    probability,
)
from proofs_check.exact import Dual, LogNumber, along, in_logits, log
from proofs_check.instances import BLIND_SPOTS, GENERIC, proportional, random_toys

positive = st.fractions(min_value=Fraction(1, 60), max_value=60, max_denominator=60)
rational = st.fractions(min_value=-5, max_value=5, max_denominator=30)


@given(positive, positive)
def test_the_log_of_a_product_is_the_sum_of_the_logs_exactly(x: Fraction, y: Fraction) -> None:
    assert log(x * y) == log(x) + log(y)
    assert log(x / y) == log(x) - log(y)
    assert log(x) * 3 == log(x**3)


@given(positive, positive, rational, rational)
def test_sign_and_value_agree_with_arithmetic_of_eighty_digits(x, y, first, second) -> None:
    number = log(x) * first + log(y) * second + first
    with mpmath.workdps(80):
        oracle = (
            mpmath.log(mpmath.mpf(x.numerator) / x.denominator) * first.numerator / first.denominator
            + mpmath.log(mpmath.mpf(y.numerator) / y.denominator) * second.numerator / second.denominator
            + mpmath.mpf(first.numerator) / first.denominator
        )
        tiny = mpmath.mpf(10) ** -60
        assert number.sign() == (0 if abs(oracle) < tiny else int(mpmath.sign(oracle)))
        assert math.isclose(float(number), float(oracle), rel_tol=1e-15, abs_tol=1e-50)


def test_the_sign_of_a_difference_beyond_double_precision_is_found() -> None:
    """log(1 + 10^-40) is positive, though every float says 0."""
    tiny = log(1 + Fraction(1, 10**40))
    assert tiny.sign() == 1
    assert (-tiny).sign() == -1
    assert float(log(10**40 + 1)) - float(log(10**40)) == 0
    assert tiny > 0 > -tiny
    assert tiny >= 0
    assert -tiny <= 0


def test_equal_numbers_written_differently_are_equal_and_unequal_ones_are_not() -> None:
    assert log(12) - log(3) * Fraction(1, 1) == log(2) * 2
    assert (log(12) - log(3) - log(4)).sign() == 0
    assert log(2) != log(3)
    assert log(2) != Fraction(693147, 10**6)
    assert hash(log(4)) == hash(log(2) * 2)


@pytest.mark.parametrize("value", [0, -1, Fraction(-1, 3)])
def test_the_log_of_what_is_not_positive_is_refused(value) -> None:
    with pytest.raises(ValueError, match="not positive"):
        log(value)


def test_what_would_leave_the_numbers_of_this_kind_is_refused() -> None:
    two = Dual(Fraction(2), (Fraction(1),))
    for leave in (
        lambda: log(2) * log(3),
        lambda: two.log() * two,
        lambda: two.log().log(),
        lambda: two.log().reciprocal(),
    ):
        with pytest.raises(TypeError):
            leave()


@given(positive, positive, rational, rational)
def test_slopes_equal_the_derivatives_by_hand(x, y, slope_x, slope_y) -> None:
    first, second = Dual(x, (slope_x,)), Dual(y, (slope_y,))
    assert (first * second).slopes == (slope_x * y + x * slope_y,)
    assert (first / second).slopes == ((slope_x * y - x * slope_y) / y**2,)
    assert (3 - first * 2).slopes == (-2 * slope_x,)
    assert (first / second).log().slopes == (slope_x / x - slope_y / y,)


def test_slopes_of_a_softmax_equal_central_differences() -> None:
    logits, step = [math.log(w) for w in (2, 3, 1, 4)], 1e-6

    def softmax(values: list[float]) -> list[float]:
        return [math.exp(v) / sum(map(math.exp, values)) for v in values]

    for j in range(4):
        above, below = ([v + sign * step * (i == j) for i, v in enumerate(logits)] for sign in (1, -1))
        for k, dual in enumerate(in_logits(GENERIC.policy)):
            difference = (softmax(above)[k] - softmax(below)[k]) / (2 * step)
            assert float(dual.slopes[j]) == pytest.approx(difference, abs=1e-9)


def test_slopes_along_directions_are_those_directions() -> None:
    moved = along(GENERIC.policy, [(1, -1, 0, 0), (1, 0, 0, 0)])
    assert [dual.slopes for dual in moved] == [(1, 1), (-1, 0), (0, 0), (0, 0)]
    assert sum(moved[1:], start=moved[0]).slopes == (0, 1)


def test_the_probabilities_of_all_groups_sum_to_one() -> None:
    assert sum(probability(group, GENERIC.proposal) for group in ordered_groups(4, 3)) == 1
    assert sum(law_of_sum(GENERIC.target_ratio, GENERIC.proposal, 5).values()) == 1


@pytest.mark.parametrize("group_size", [1, 2, 3, 4])
def test_the_three_routes_to_an_expectation_agree(group_size: int) -> None:
    for instance in [GENERIC, *random_toys(10, seed=1)]:
        ratio = instance.target_ratio

        def weight_of_first(group, ratio=ratio) -> Fraction:
            return sum((ratio[k] for k in group if k == 0), start=Fraction(0)) / sum(ratio[k] for k in group)

        by_order = mean_over_groups(instance.proposal, group_size, weight_of_first)
        assert by_order == mean_over_multisets(instance.proposal, group_size, weight_of_first)
        assert by_order == mean_self_normalized(ratio, instance.proposal, group_size)[0]


def test_the_law_of_a_sum_has_its_mean_and_variance() -> None:
    ratio, proposal = GENERIC.target_ratio, GENERIC.proposal
    law = law_of_sum(ratio, proposal, 6)
    mean = sum(total * weight for total, weight in law.items())
    second = sum(r * r * s for r, s in zip(ratio, proposal, strict=True))
    assert mean == 6
    assert sum((total - mean) ** 2 * weight for total, weight in law.items()) == 6 * (second - 1)


def test_the_generic_instance_is_generic() -> None:
    vectors = [GENERIC.prior, GENERIC.policy, GENERIC.posterior, GENERIC.proposal]
    assert len(set(vectors)) == 4
    for values in (GENERIC.target_ratio, GENERIC.policy_ratio, GENERIC.goodness):
        assert len(set(values)) == 4
    assert all(sum(vector) == 1 for vector in vectors)
    assert sum(a * s for a, s in zip(GENERIC.target_ratio, GENERIC.proposal, strict=True)) == 1
    assert all(sum(spot.posterior) == 1 for spot in BLIND_SPOTS.values())


def test_weights_are_normalised_and_random_problems_repeat() -> None:
    assert proportional(1, 2, Fraction(1, 2)) == (Fraction(2, 7), Fraction(4, 7), Fraction(1, 7))
    assert list(random_toys(5, seed=3)) == list(random_toys(5, seed=3)) != list(random_toys(5, seed=4))


def test_a_log_number_prints_as_its_value() -> None:
    assert float(LogNumber(Fraction(1, 3)) + log(Fraction(5, 7))) == pytest.approx(1 / 3 + math.log(5 / 7), abs=1e-15)

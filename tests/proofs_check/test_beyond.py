"""The statements T0 to T7 on random problems: what `brain_core` and `toy` compute obeys them."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

import brain_core
import toy
from proofs_check.beyond_divergence import components, joined
from proofs_check.exact import along, in_logits
from proofs_check.groups import at, kl, moving_divergence
from proofs_check.instances import proportional

SIZE = 4
ROUNDING = 1e-12

weight = st.integers(1, 9)
weights = st.lists(weight, min_size=SIZE, max_size=SIZE).map(lambda found: proportional(*found))
far_weights = st.lists(st.sampled_from((1, 3, 100, 10**6)), min_size=SIZE, max_size=SIZE).map(
    lambda found: proportional(*found)
)
batches = st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=6)
group_sizes = st.integers(2, 60)


def floats(vector: Any) -> np.ndarray:
    """Fractions as float64."""
    return np.array([float(value) for value in vector])


def logs(vector: Any) -> np.ndarray:
    """Logarithms of Fractions in float64."""
    return np.log(floats(vector))


def scores(policy: Any, batch: list[int]) -> np.ndarray:
    """∇ log q of a softmax policy in its logits (G, K)."""
    return np.eye(SIZE)[batch] - floats(policy)


@st.composite
def problems(draw: st.DrawFn, proposal: Any = weights) -> toy.CategoricalProblem:
    """A problem with goodness 1, so that the posterior is the prior."""
    prior, policy = draw(weights), draw(weights)
    return toy.CategoricalProblem(prior, [1] * SIZE, policy, draw(proposal))


@given(target=weights, policy=weights, reference=far_weights, batch=batches)
def test_gradient_of_the_divergence_of_any_batch_is_minus_brains_estimate(target, policy, reference, batch):
    alpha = [target[y] / reference[y] for y in batch]
    for moving, score in (
        (in_logits(policy), scores(policy, batch)),
        (along(policy, [(1, 0, 2, 0)]), np.array([[1, 0, 2, 0][y] / float(policy[y]) for y in batch])[:, None]),
    ):
        slopes = moving_divergence(alpha, [moving[y] / reference[y] for y in batch]).slopes
        found = brain_core.brain_coefficients(logs(alpha), logs(at(policy, batch)) - logs(at(reference, batch)))
        np.testing.assert_allclose(-found @ score, floats(slopes), rtol=ROUNDING, atol=ROUNDING)


@st.composite
def targets_with_zeros(draw: st.DrawFn) -> tuple[Fraction, ...]:
    """A target without mass on up to two completions."""
    found = draw(st.lists(st.sampled_from((0, 1, 2, 5)), min_size=SIZE - 2, max_size=SIZE - 2))
    return proportional(*found, draw(weight), draw(weight))


@given(
    target=targets_with_zeros(),
    data=st.lists(batches, min_size=1, max_size=4),
    factors=st.lists(st.sampled_from((1, 3)), min_size=SIZE, max_size=SIZE),
)
def test_divergence_is_zero_exactly_where_the_policy_is_proportional_on_connected_sets(target, data, factors):
    policy = proportional(*(t * factor for t, factor in zip(target, factors, strict=True)))
    met = [batch for batch in data if any(target[y] for y in batch)]
    with np.errstate(divide="ignore"):
        log_target, log_policy = logs(target), logs(policy)
    total = sum(float(brain_core.self_normalized_kl(log_target[batch], log_policy[batch])) for batch in met)
    parts = components(SIZE, data, target)
    is_constant = all(len({factors[y] for y in part if target[y]}) <= 1 for part in parts)
    assert (total < ROUNDING) == is_constant
    assert is_constant or total > 1e-4


@given(batches, batches)
def test_completions_are_joined_whichever_batch_comes_first(first, second):
    parts = joined(SIZE, [first, second])
    assert sorted(map(sorted, parts)) == sorted(map(sorted, joined(SIZE, [second, first])))
    assert sorted(itertools.chain(*parts)) == list(range(SIZE))
    assert any(set(first) <= part for part in parts)


@given(target=weights, ends=st.tuples(far_weights, weights), batch=batches, share=st.floats(0, 1))
def test_divergence_of_a_batch_is_convex_between_two_policies_in_logits(target, ends, batch, share):
    def value(logits: np.ndarray) -> float:
        return float(brain_core.self_normalized_kl(logs(target)[batch], logits[batch]))

    left, right = map(logs, ends)
    between = value(share * left + (1 - share) * right)
    assert between <= share * value(left) + (1 - share) * value(right) + ROUNDING


@given(problem=problems(), n=group_sizes)
def test_with_the_target_as_proposal_the_divergence_rises_towards_kl(problem, n):
    problem = toy.CategoricalProblem(problem.prior, problem.goodness, problem.policy, problem.posterior)
    lower, upper = toy.self_normalized_kl(problem, n), toy.self_normalized_kl(problem, n + 1)
    bound = float(problem.kl)
    assert -ROUNDING <= lower <= upper + ROUNDING
    assert upper <= bound + ROUNDING


@given(problem=problems(far_weights), n=group_sizes)
def test_weighted_divergence_rises_towards_kl_for_every_proposal(problem, n):
    lower, upper = toy.weighted_self_normalized_kl(problem, n), toy.weighted_self_normalized_kl(problem, n + 1)
    bound = float(problem.kl)
    assert -ROUNDING <= lower <= upper + ROUNDING
    assert upper <= bound + ROUNDING
    assert abs(float(kl(problem.posterior, problem.policy)) - bound) < ROUNDING


@given(problem=problems(far_weights), n=group_sizes)
def test_divergence_lies_between_its_bounds(problem, n):
    ratio = floats(problem.target_ratio)
    found = toy.self_normalized_kl(problem, n)
    assert toy.weighted_self_normalized_kl(problem, n) / ratio.max() <= found * (1 + ROUNDING) + ROUNDING
    assert found <= float(problem.kl) / ratio.min() * (1 + ROUNDING) + ROUNDING


@given(problem=problems(far_weights))
def test_divergence_of_pairs_is_a_mean_of_binary_divergences(problem):
    total = 0.0
    for j, k in itertools.combinations(range(SIZE), 2):
        chance, model = (
            floats(at(r, (j, k))) / float(r[j] + r[k]) for r in (problem.target_ratio, problem.policy_ratio)
        )
        total += 2 * float(problem.proposal[j] * problem.proposal[k]) * float(chance @ np.log(chance / model))
    assert abs(toy.self_normalized_kl(problem, 2) - total) < ROUNDING


@given(target=far_weights, policy=weights, reference=far_weights, batch=batches)
def test_estimate_is_bounded_by_the_spread_of_the_log_ratios(target, policy, reference, batch):
    alpha, beta = (logs(v)[batch] - logs(reference)[batch] for v in (target, policy))
    spread, whole = np.ptp(alpha - beta), np.ptp(logs(target) - logs(policy))
    estimate = brain_core.brain_coefficients(alpha, beta) @ scores(policy, batch)
    largest = np.linalg.norm(scores(policy, list(range(SIZE))), axis=-1).max()
    assert np.linalg.norm(estimate) <= 2 * np.tanh(spread / 4) * largest + ROUNDING
    assert spread <= whole + ROUNDING


@given(target=far_weights, policy=weights, reference=far_weights, batch=batches)
def test_estimate_is_bounded_by_the_divergence(target, policy, reference, batch):
    alpha, beta = (logs(v)[batch] - logs(reference)[batch] for v in (target, policy))
    coefficients = brain_core.brain_coefficients(alpha, beta)
    divergence = float(brain_core.self_normalized_kl(alpha, beta))
    estimate = coefficients @ scores(policy, batch)
    assert estimate @ estimate <= divergence + ROUNDING
    assert np.abs(coefficients).sum() ** 2 <= 2 * divergence + ROUNDING


@given(target=far_weights, policy=far_weights, batch=batches)
def test_divergence_is_bounded_by_the_spread_of_the_log_ratios(target, policy, batch):
    alpha, beta = logs(target)[batch], logs(policy)[batch]
    spread, divergence = np.ptp(alpha - beta), float(brain_core.self_normalized_kl(alpha, beta))
    reverse = float(brain_core.self_normalized_kl(beta, alpha))
    assert divergence <= spread**2 / 8 + ROUNDING
    assert divergence + reverse <= spread * np.tanh(spread / 4) + ROUNDING


@given(target=weights, policy=far_weights, reference=far_weights, batch=batches, size=st.floats(0.01, 2))
def test_a_step_of_two_or_less_never_leads_away_from_the_target(target, policy, reference, batch, size):
    alpha, beta = (logs(v)[batch] - logs(reference)[batch] for v in (target, policy))
    step = brain_core.brain_coefficients(alpha, beta) @ scores(policy, batch)
    divergence = float(brain_core.self_normalized_kl(alpha, beta))
    before = logs(policy) - logs(target)
    after = before + size * step
    reverse = float(brain_core.self_normalized_kl(beta, alpha))
    assert after @ after <= before @ before - 2 * size * divergence - size * (2 - size) * reverse + 1e-10

"""Coefficients against rational arithmetic: every group of three of the generic four-completion problem."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import brain_core as bc


def brain(alpha, beta):
    return [a / sum(alpha) - b / sum(beta) for a, b in zip(alpha, beta, strict=True)]


def snis(alpha, beta):
    return [a / sum(alpha) for a in alpha]


def weighted_brain(alpha, beta):
    return [sum(alpha) / len(alpha) * c for c in brain(alpha, beta)]


def dpg(alpha, beta):
    return [a / len(alpha) for a in alpha]


def gdcpp(alpha, beta):
    return [(a - b) / len(alpha) for a, b in zip(alpha, beta, strict=True)]


def importance_weighted_rloo(alpha, beta):
    n = len(alpha)
    return [(a - b * (sum(alpha) - a) / (n - 1)) / n for a, b in zip(alpha, beta, strict=True)]


def argmax_brain(alpha, beta):
    winners = alpha.count(max(alpha))
    return [(Fraction(1, winners) if a == max(alpha) else 0) - b / sum(beta) for a, b in zip(alpha, beta, strict=True)]


def plackett_luce(alpha, beta):
    coefficients = [Fraction(0)] * len(beta)
    for stage in range(len(beta) - 1):
        coefficients[stage] += 1
        for later in range(stage, len(beta)):
            coefficients[later] -= beta[later] / sum(beta[stage:])
    return coefficients


def nca(alpha, beta):
    size = len(alpha)
    return [a / sum(alpha) / (1 + b) - b / (1 + b) / size for a, b in zip(alpha, beta, strict=True)]


def exo(alpha, beta):
    """β̂ (log(α/β) less its mean under β̂), the only formula here that takes logarithms."""
    log_ratio = [math.log(a / b) for a, b in zip(alpha, beta, strict=True)]
    weight = [float(b / sum(beta)) for b in beta]
    mean = sum(w * x for w, x in zip(weight, log_ratio, strict=True))
    return [w * (x - mean) for w, x in zip(weight, log_ratio, strict=True)]


def best_of_n(alpha, beta):
    return [Fraction(int(a == max(alpha)), alpha.count(max(alpha))) for a in alpha]


FORMULAS = {
    brain: lambda t, v, z: bc.brain_coefficients(t, v),
    snis: lambda t, v, z: bc.snis_coefficients(t),
    weighted_brain: lambda t, v, z: bc.weighted_brain_coefficients(t, v, log_normalizer=z),
    dpg: lambda t, v, z: bc.dpg_coefficients(t, log_normalizer=z),
    gdcpp: lambda t, v, z: bc.gdcpp_coefficients(t, v, log_normalizer=z),
    importance_weighted_rloo: lambda t, v, z: bc.importance_weighted_rloo_coefficients(t, v, log_normalizer=z),
    argmax_brain: lambda t, v, z: bc.argmax_brain_coefficients(t, v),
    plackett_luce: lambda t, v, z: bc.plackett_luce_coefficients(v),
    nca: lambda t, v, z: bc.nca_coefficients(t, v),
    exo: lambda t, v, z: bc.exo_coefficients(t, v),
    best_of_n: lambda t, v, z: bc.best_of_n_coefficients(t),
}


def log_normalizer(problem) -> float:
    return float(np.log(float(problem.normalizer)))


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_coefficients_of_every_group_equal_the_exact_ones(backend, problem, formula):
    target, policy = backend.array(problem.log_alpha()), backend.array(problem.log_beta())
    found = backend.numpy(FORMULAS[formula](target, policy, log_normalizer(problem)))
    np.testing.assert_allclose(found, problem.expected(formula), rtol=0, atol=2e-15)


def test_gdc_has_the_coefficients_of_dpg_on_policy(backend, on_policy_problem):
    target = backend.array(on_policy_problem.log_alpha())
    found = bc.gdc_coefficients(target, log_normalizer=log_normalizer(on_policy_problem))
    np.testing.assert_allclose(backend.numpy(found), on_policy_problem.expected(dpg), rtol=0, atol=2e-15)


@pytest.mark.parametrize("formula", [dpg, gdcpp, importance_weighted_rloo], ids=lambda f: f.__name__)
def test_estimators_with_a_known_normaliser_are_unbiased_for_the_kl_gradient(problem, formula):
    found = FORMULAS[formula](problem.log_alpha(), problem.log_beta(), log_normalizer(problem))
    exact = [float(target - policy) for target, policy in zip(problem.posterior, problem.policy, strict=True)]
    np.testing.assert_allclose(problem.mean_gradient(found), exact, rtol=0, atol=1e-15)


def test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl(problem):
    """Theorem 4.2, with the derivative in the policy's logits taken by central differences."""
    weight = np.array([float(problem.probability(group)) for group in problem.groups])
    groups = np.array(problem.groups)

    def mean_divergence(logits):
        log_beta = logits - np.log([float(s) for s in problem.proposal])
        return float(weight @ bc.self_normalized_kl(problem.log_alpha(), log_beta[groups]))

    logits = np.log([float(q) for q in problem.policy])
    step = 1e-5 * np.eye(4)
    derivative = [(mean_divergence(logits + e) - mean_divergence(logits - e)) / 2e-5 for e in step]
    found = problem.mean_gradient(bc.brain_coefficients(problem.log_alpha(), problem.log_beta()))
    np.testing.assert_allclose(found, -np.array(derivative), rtol=0, atol=1e-10)


def test_weighted_divergence_never_exceeds_the_kl_divergence(problem):
    weight = np.array([float(problem.probability(group)) for group in problem.groups])
    objective = bc.weighted_brain_objective(
        problem.log_alpha(), problem.log_beta(), log_normalizer=log_normalizer(problem)
    )
    posterior = np.array([float(x) for x in problem.posterior])
    kl = float(posterior @ np.log(posterior / [float(q) for q in problem.policy]))
    assert 0 < float(weight @ objective) < kl


def test_mean_of_rloo_on_policy_is_the_gradient_of_the_expected_reward(on_policy_problem):
    reward = np.array([2.0, 5.0, 1.0, 3.0])
    policy = np.array([float(q) for q in on_policy_problem.policy])
    found = on_policy_problem.mean_gradient(bc.rloo_coefficients(reward[np.array(on_policy_problem.groups)]))
    np.testing.assert_allclose(found, policy * (reward - policy @ reward), rtol=0, atol=1e-15)


def test_rloo_subtracts_the_mean_of_the_others(backend):
    reward = [[1, 4, 9], [2, 2, 5]]
    exact = [[Fraction(2 * r - (sum(row) - r), 6) for r in row] for row in reward]
    found = backend.numpy(bc.rloo_coefficients(backend.array(reward)))
    np.testing.assert_allclose(found, np.array(exact, dtype=float), rtol=0, atol=1e-15)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def each_value_once(weight, x):
    """Weights in which duplicates of a completion count once."""
    counts = (np.abs(x[..., :, None] - x[..., None, :]) < 1e-12).sum(axis=-1)
    return softmax(x - np.log(counts)) + 0 * weight


def leave_one_out(x):
    """Baseline weights that leave the completion itself out of the sum."""
    e = np.exp(x)
    return e / (e.sum(axis=-1, keepdims=True) - e)


MUTANTS = {
    "sign swapped": lambda t, v, p: softmax(v) - softmax(t),
    "divided by the group size": lambda t, v, p: (softmax(t) - softmax(v)) / 3,
    "no baseline": lambda t, v, p: softmax(t),
    "uniform baseline": lambda t, v, p: softmax(t) - 1 / 3,
    "baseline without the proposal": lambda t, v, p: softmax(t) - softmax(v + p["proposal"]),
    "baseline relative to the prior": lambda t, v, p: softmax(t) - softmax(v + p["proposal"] - p["prior"]),
    "target from the reward alone": lambda t, v, p: softmax(p["goodness"]) - softmax(v),
    "target without the prior": lambda t, v, p: softmax(t - p["prior"]) - softmax(v),
    "target without the proposal": lambda t, v, p: softmax(t + p["proposal"]) - softmax(v),
    "proposal inverted": lambda t, v, p: softmax(t + 2 * p["proposal"]) - softmax(v + 2 * p["proposal"]),
    "duplicates counted once": lambda t, v, p: each_value_once(t, t) - each_value_once(v, v),
    "baseline leaves itself out": lambda t, v, p: softmax(t) - leave_one_out(v),
    "weights of target and policy multiplied": lambda t, v, p: softmax(t) - softmax(t + v),
    "epsilon in the denominator": lambda t, v, p: softmax(t) - np.exp(v) / (np.exp(v).sum(-1, keepdims=True) + 1e-6),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_generic_problem_tells_a_wrong_formula_from_the_right_one(problem, mutant):
    logs = {name: problem.logs(getattr(problem, name)) for name in ("prior", "goodness", "proposal")}
    wrong = mutant(problem.log_alpha(), problem.log_beta(), logs)
    assert np.max(np.abs(wrong - problem.expected(brain))) > 1e-9

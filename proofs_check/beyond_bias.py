"""Beyond the paper: the bias of (12) as an estimate of −∇KL, its limit n · bias, and what the baseline adds (T5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from proofs_check.beyond_kl import constant, in_toy, problem_of, richardson
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import mean_self_normalized
from proofs_check.exact import in_logits
from proofs_check.groups import combined, logit_score
from proofs_check.instances import GENERIC, Toy, Vector, random_toys


def limit_of_target_part(target: Vector, proposal: Vector, policy: Vector) -> Vector:
    """−E_s[α²(h − E_π h)] in the logits; h − E_π h = e_y − π."""
    weights = [-t * t / s for t, s in zip(target, proposal, strict=True)]
    return combined(weights, [logit_score(target, y) for y in range(len(policy))])


def limit_of_baseline(target: Vector, proposal: Vector, policy: Vector) -> Vector:
    """−E_s[β² h] in the logits, h = e_y − q."""
    weights = [-q * q / s for q, s in zip(policy, proposal, strict=True)]
    return combined(weights, [logit_score(policy, y) for y in range(len(policy))])


def limit_of_bias(target: Vector, proposal: Vector, policy: Vector) -> Vector:
    """The target's part minus the baseline's."""
    parts = limit_of_target_part(target, proposal, policy), limit_of_baseline(target, proposal, policy)
    return tuple(a - b for a, b in zip(*parts, strict=True))


def not_centred(target: Vector, proposal: Vector, policy: Vector) -> Vector:
    """The limit with h for h − E_π h, wrongly."""
    weights = [(q * q - t * t) / s for t, s, q in zip(target, proposal, policy, strict=True)]
    return combined(weights, [logit_score(policy, y) for y in range(len(policy))])


def scaled_bias(problem: Toy, n: int) -> Vector:
    """n (E ĝ + ∇KL) in the logits, from the laws of A and B: in logits E ĝ is E α̂ − E β̂ per completion."""
    shares_of = (mean_self_normalized(r, problem.proposal, n) for r in (problem.target_ratio, problem.policy_ratio))
    rows = zip(*shares_of, problem.posterior, problem.policy, strict=True)
    return tuple(n * ((a - b) - (t - q)) for a, b, t, q in rows)


@cache
def bias_by_quadrature(problem: Toy) -> tuple[float, ...]:
    """The limit of n · bias, extrapolated from n = 1000 and 2000; at n = 2 the quadrature is exact."""
    for found, exact in zip(scaled_bias_in_floats(problem, 2), scaled_bias(problem, 2), strict=True):
        require_close(found, float(exact), 1e-12, "quadrature of the bias at n = 2")
    return tuple(richardson(lambda n: scaled_bias_in_floats(problem, n), 1000))


def scaled_bias_in_floats(problem: Toy, n: int) -> Any:
    """n (E ĝ + ∇KL) in the logits (K,), by Laplace quadrature."""
    import toy

    target, policy = (np.array([float(x) for x in v]) for v in (problem.posterior, problem.policy))
    return n * (toy.mean_gradient(in_toy(problem), n) - (target - policy))


@claim(
    "T5",
    "n(E ĝ + ∇KL) → −E_s[α²(h − E_π h)] + E_s[β² h], the gradient of −c of T4e; the bias is 0 at q = π",
    source="docs/theory.md T5",
    method="exact: −∇c by dual numbers, laws of A and B; quadrature extrapolated in 1/n",
    case="K=4, n=2000 and 4 random problems; exact n=16",
    tolerance=1e-5,
    subject=limit_of_bias,
    mutants={
        "sign": lambda t, s, q: tuple(-x for x in limit_of_bias(t, s, q)),
        "the target's part only": limit_of_target_part,
        "the baseline's part only": lambda t, s, q: tuple(-x for x in limit_of_baseline(t, s, q)),
        "the baseline's part with the other sign": lambda t, s, q: tuple(
            a + b for a, b in zip(limit_of_target_part(t, s, q), limit_of_baseline(t, s, q), strict=True)
        ),
        "not centred": not_centred,
    },
    assumptions=("finite completions, bounded weights (delta method)",),
    code=("brain_core.brain_coefficients", "toy.mean_gradient"),
)
def t5(limit: Callable[[Vector, Vector, Vector], Vector]) -> None:
    """Three routes: the derivative of the constant, large n by quadrature, and the exact bias at n = 8 and 16."""
    for problem in (GENERIC, *random_toys(4, seed=5, sizes=(3, 4), largest=4)):
        parts = problem.posterior, problem.proposal
        found = limit(*parts, problem.policy)
        slopes = constant(*parts, in_logits(problem.policy)).slopes
        require_equal(found, tuple(-x for x in slopes), "limit against −∇c")
        for k, (x, y) in enumerate(zip(found, bias_by_quadrature(problem), strict=True)):
            require_close(float(x), y, 1e-5, f"limit of n · bias in logit {k}")
        require(not any(limit(*parts, problem.posterior)), "the limit is 0 at q = π")
        require(not any(scaled_bias(problem._replace(policy=problem.posterior), 4)), "the bias is 0 at q = π")
    bound = limit(GENERIC.posterior, GENERIC.proposal, GENERIC.policy)
    gaps = [max(abs(a - b) for a, b in zip(scaled_bias(GENERIC, n), bound, strict=True)) for n in (8, 16)]
    require(gaps[1] < Fraction(6, 10) * gaps[0], "the exact bias approaches its limit as 1/n")


BASELINE = problem_of((1, 1, 1), (1, 2, 3), (3, 2, 1))


@cache
def baseline_mean(problem: Toy, n: int) -> Vector:
    """n E[Σ β̂ h] in the logits."""
    weights = mean_self_normalized(problem.policy_ratio, problem.proposal, n)
    return tuple(n * x for x in combined(weights, [logit_score(problem.policy, y) for y in range(problem.size)]))


@claim(
    "T5a",
    "The baseline alone has a mean: n E[Σ β̂ h] → −E_s[β² h], which is 0 for q' = q",
    source="docs/theory.md T5, err-10",
    method="exact: law of B",
    case="K=3, n=1, 16, 64, 128; 20 random problems on-policy, n=3",
    tolerance=1e-3,
    subject=limit_of_baseline,
    mutants={
        "sign": lambda t, s, q: tuple(-x for x in limit_of_baseline(t, s, q)),
        "zero": lambda t, s, q: (Fraction(0),) * len(q),
        "β, not β²": lambda t, s, q: combined([-x for x in q], [logit_score(q, y) for y in range(len(q))]),
        "of the target": limit_of_target_part,
    },
    counterexamples={"q' = q, for mean 0": lambda: require_equal(
        baseline_mean(BASELINE, 1), (Fraction(1, 3), 0, Fraction(-1, 3)), "mean of the baseline at n = 1")},
    code=("brain_core.brain_coefficients",),
)  # fmt: skip
def t5a(limit: Callable[[Vector, Vector, Vector], Vector]) -> None:
    """The limit as a fraction, the printed mean at n = 16, and the extrapolation from 64 and 128."""
    found = limit(BASELINE.posterior, BASELINE.proposal, BASELINE.policy)
    require_equal(found, (Fraction(7, 27), Fraction(8, 27), Fraction(-15, 27)), "limit")
    means = {n: baseline_mean(BASELINE, n) for n in (16, 64, 128)}
    require_equal([round(float(x), 4) for x in means[16]], [0.2865, 0.2969, -0.5834], "n E at n = 16")
    for x, short, long in zip(found, means[64], means[128], strict=True):
        require_close(float(2 * long - short), float(x), 1e-3, "extrapolated limit")
    for problem in random_toys(20, seed=51):
        on_policy = problem._replace(proposal=problem.policy)
        require(not any(baseline_mean(on_policy, 3)), "on-policy the baseline's mean is 0")
        require(not any(limit(problem.posterior, problem.policy, problem.policy)), "on-policy the limit is 0")


@claim(
    "T5b",
    "Gaussian toy, q' = N(μ,1), π = N(0,1), q = N(1,1): n · bias → μ e^{μ²} + (1−μ) e^{(1−μ)²}",
    source="docs/theory.md T5",
    method="quadrature, extrapolated in 1/n",
    case="μ = 1, ¾, ½; n=256 and 4096",
    tolerance=1e-3,
    subject=lambda mean, exp: mean * exp(mean**2) + (1 - mean) * exp((1 - mean) ** 2),
    mutants={
        "sign": lambda mean, exp: -mean * exp(mean**2) - (1 - mean) * exp((1 - mean) ** 2),
        "half the exponents": lambda mean, exp: mean * exp(mean**2 / 2) + (1 - mean) * exp((1 - mean) ** 2 / 2),
        "the target's part only": lambda mean, exp: mean * exp(mean**2),
        "one part with the other sign": lambda mean, exp: mean * exp(mean**2) - (1 - mean) * exp((1 - mean) ** 2),
    },
    code=("toy.gaussian_moments",),
)
def t5b(limit: Callable[[float, Callable[[float], float]], float]) -> None:
    """Bias to the gradient −θ = −1; the figures at n = 256 are an independent quadrature's."""
    for mean, printed, printed_limit in ((1.0, 2.6456, 2.7183), (0.75, 1.5728, 1.5824), (0.5, 1.2818, 1.2840)):
        require_equal(round(limit(mean, math.exp), 4), printed_limit, f"limit at μ = {mean}")
        require_equal(round(scaled_gaussian_bias(mean, 256), 4), printed, f"n · bias at n = 256, μ = {mean}")
        found = richardson(lambda n, mu=mean: scaled_gaussian_bias(mu, n), 2048)  # type: ignore[misc]
        require_close(found, limit(mean, math.exp), 1e-3, f"limit at μ = {mean}")


@cache
def scaled_gaussian_bias(mean: float, n: int) -> float:
    """n · bias of BRAIn in the Gaussian toy."""
    import toy

    return n * toy.gaussian_moments("brain", mean, n).bias

"""Beyond the paper: the mean of (12), its bias to −∇KL and what the baseline adds (T5); on the real line; sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import brain_core
from proofs_check.beyond_kl import constant, in_toy, problem_of, require_decimals, richardson
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
    counterexamples={
        "q' = q, for mean 0": lambda: require_equal(
            baseline_mean(BASELINE, 1), (Fraction(1, 3), 0, Fraction(-1, 3)), "mean of the baseline at n = 1"
        )
    },
    code=("brain_core.brain_coefficients",),
)
def t5a(limit: Callable[[Vector, Vector, Vector], Vector]) -> None:
    """The limit as a fraction, the printed mean at n = 16, and the extrapolation from 64 and 128."""
    found = limit(BASELINE.posterior, BASELINE.proposal, BASELINE.policy)
    require_equal(found, (Fraction(7, 27), Fraction(8, 27), Fraction(-15, 27)), "limit")
    means = {n: baseline_mean(BASELINE, n) for n in (16, 64, 128)}
    for x, printed in zip(means[16], ("0.2865", "0.2969", "-0.5834"), strict=True):
        require_decimals(x, printed, "n E at n = 16")
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


PROPOSALS = (-0.5, 0.0, 0.5, 1.0, 1.75)
"""Means of the proposals of the continuous check."""


@cache
def gaussian_descent(proposal_mean: float, step: float = 1e-3) -> float:
    """−dD_8/dθ at θ = 1 by five central differences, whose error is of order step⁴."""
    import toy

    values = {k: toy.gaussian_self_normalized_kl(proposal_mean, 8, 1 + k * step) for k in (-2, -1, 1, 2)}
    return (8 * (values[-1] - values[1]) - (values[-2] - values[2])) / (12 * step)


def gaussian_mean(name: str, group_size: int = 8) -> Callable[[float], float]:
    """The mean of an estimator in the Gaussian toy, by the proposal's mean."""
    import toy

    return lambda proposal_mean: toy.gaussian_moments(name, proposal_mean, group_size).mean


@claim(
    "thm-4.2-gaussian",
    "On the real line too: E ĝ = −dD_8/dθ for the target N(0,1), q = N(θ,1) and q' = N(μ,1)",
    source="Theorem 4.2 (4.1 in the later version)",
    method="quadrature of E ĝ; differences of the quadrature of D_8, a function of its own",
    case="θ = 1, n=8, μ = −½, 0, ½, 1, 7/4",
    tolerance=1e-11,
    subject=lambda proposal_mean: gaussian_mean("brain")(proposal_mean),
    mutants={
        "no baseline": lambda proposal_mean: gaussian_mean("snis")(proposal_mean),
        "β̂ uniform": lambda proposal_mean: gaussian_mean("snis_uniform")(proposal_mean),
        "weighted": lambda proposal_mean: gaussian_mean("brain_weighted")(proposal_mean),
        "GDC++": lambda proposal_mean: gaussian_mean("gdcpp")(proposal_mean),
        "n = 9": lambda proposal_mean: gaussian_mean("brain", 9)(proposal_mean),
        "descent": lambda proposal_mean: -gaussian_mean("brain")(proposal_mean),
        "of the reflected proposal": lambda proposal_mean: gaussian_mean("brain")(1.25 - proposal_mean),
    },
    code=("toy.gaussian_moments", "toy.gaussian_self_normalized_kl"),
    tests=("tests/toy/test_gaussian.py::test_mean_of_brain_is_minus_the_derivative_of_the_divergence",),
)
def thm_4_2_gaussian(mean: Callable[[float], float]) -> None:
    """At every proposal."""
    for proposal_mean in PROPOSALS:
        require_close(mean(proposal_mean), gaussian_descent(proposal_mean), 1e-11, f"mean at μ = {proposal_mean}")


COMPLETIONS, DRAWS, MEMBERS, RISK = 256, 200_000, 3, 1e-9
BAND = math.sqrt(2 * math.log(2 * COMPLETIONS / RISK) / DRAWS)
"""Hoeffding for values in [−1, 1], summed over the completions: all means lie within it, but for a risk of 1e-9."""

Floats = Any
LogCoefficients = Callable[[Floats, Floats, Floats], Floats]
"""From log π, log q and log q' of groups (M, n) to coefficients (M, n)."""


class Large(NamedTuple):
    """Logarithms of target, policy and proposal over 256 completions (K,)."""

    target: Floats
    policy: Floats
    proposal: Floats


@cache
def large_vocabulary() -> Large:
    """Probabilities that fall as 1/k, 1/√k and 1/k^1.5 in three orders, so that a few completions carry much mass."""
    ranks = np.arange(1.0, COMPLETIONS + 1)
    weights = np.roll(ranks, 1) ** -1, np.roll(ranks, 3) ** -0.5, ranks**-1.5
    return Large(*(np.log(w / w.sum()) for w in weights))


@cache
def sampled_groups() -> Floats:
    """Groups of the proposal (M, n), fixed seed."""
    proposal = np.exp(large_vocabulary().proposal)
    return np.random.default_rng(19).choice(COMPLETIONS, size=(DRAWS, MEMBERS), p=proposal)


def mean_share(log_law: Floats, log_proposal: Floats) -> Floats:
    """3 s_k a_k E[1/(a_k + a_i + a_j)] (K,), the sum over all pairs of others."""
    ratio, proposal = np.exp(log_law - log_proposal), np.exp(log_proposal)
    others = (ratio[:, None] + ratio[None, :]).ravel()
    chance = np.outer(proposal, proposal).ravel()
    expected = np.array([(chance / (own + others)).sum() for own in ratio])
    return MEMBERS * proposal * ratio * expected


@cache
def exact_mean_weights() -> Floats:
    """E of BRAIn's total weight of each completion in a group (K,); the toolkit's quadrature agrees."""
    import toy

    target, policy, proposal = large_vocabulary()
    exact = mean_share(target, proposal) - mean_share(policy, proposal)
    problem = toy.CategoricalProblem(np.exp(target), [1] * COMPLETIONS, np.exp(policy), np.exp(proposal))
    require_close(float(np.abs(toy.mean_gradient(problem, MEMBERS) - exact).max()), 0, 1e-12, "quadrature")
    return exact


def show_rare_draw_of_dpg() -> None:
    """DPG with π = ½ where q' = 1e-12: with a chance of 0.9999994 no draw meets it, and the mean ½ is estimated 0."""
    chance = 1 - Fraction(DRAWS * MEMBERS, 10**12)
    require(chance > Fraction(999_999, 1_000_000), "the chance that no draw meets the completion, by Bernoulli")
    require(Fraction(1, 2) > 20 * Fraction(BAND), "the mean ½ lies outside the band around 0")


@claim(
    "T6e",
    "BRAIn's weights lie in [−1, 1], so Hoeffding's band holds with 2e5 groups: 256 means within 0.0165, risk 1e-9",
    source="docs/theory.md T6",
    method="Monte Carlo with a rigorous band (Hoeffding, union bound); exact means by summing over all others",
    case="K=256, n=3, 200,000 groups, fixed seed",
    tolerance=BAND,
    subject=lambda target, policy, proposal: brain_core.brain_coefficients(target - proposal, policy - proposal),
    mutants={
        "wrong proposal in α": lambda target, policy, proposal: brain_core.brain_coefficients(
            target, policy - proposal
        ),
        "wrong proposal in β": lambda target, policy, proposal: brain_core.brain_coefficients(
            target - proposal, policy
        ),
        "wrong proposal in both": lambda target, policy, proposal: brain_core.brain_coefficients(target, policy),
        "no baseline": lambda target, policy, proposal: brain_core.snis_coefficients(target - proposal),
        "β̂ uniform": lambda target, policy, proposal: brain_core.snis_coefficients(target - proposal) - 1 / MEMBERS,
        "swapped": lambda target, policy, proposal: brain_core.brain_coefficients(policy - proposal, target - proposal),
        "DPG, unbounded": lambda target, policy, proposal: brain_core.dpg_coefficients(
            target - proposal, log_normalizer=0.0
        ),
    },
    counterexamples={"bounded weights": show_rare_draw_of_dpg},
    assumptions=("bounded weights",),
    code=("brain_core.brain_coefficients", "toy.mean_gradient"),
)
def t6e(coefficients: LogCoefficients) -> None:
    """The weight of a completion in a group is the sum over its copies, which must lie in [−1, 1] to be eligible."""
    groups = sampled_groups()
    weights = coefficients(*(law[groups] for law in large_vocabulary()))
    require(bool((np.abs(weights).sum(axis=-1) <= 2 + 1e-12).all()), "weights are not bounded: no band")
    means = np.bincount(groups.ravel(), weights.ravel(), COMPLETIONS) / DRAWS
    gap = float(np.abs(means - exact_mean_weights()).max())
    require(gap <= BAND, f"a mean weight is {gap:.4f} off, more than {BAND:.4f}")

"""Laplace quadrature: expectations of 1/A, log A and their like, for a sum A of independent terms, as plain sums.

1/A = ∫ e^(−tA) dt and log A − log B = ∫ (e^(−tB) − e^(−tA)) dt/t turn the expectation of a quotient or a logarithm into
an integral of E[e^(−tA)] = E[e^(−tα)]ⁿ. With t = eˣ the integrand is analytic in the strip |Im x| < π/2 and decays at
both ends, so the trapezoidal rule converges exponentially: its error is about e^(−π²/step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toy.checks import FloatArray

STEP = 0.2
"""Distance of the nodes in x = log t; the rule's own error is then about e^(−49)."""

TAIL = 40.0
"""How far the nodes go on either side: e^(−TAIL) is negligible."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """A finite law of one completion with its importance ratios, each known up to a factor.

    Attributes:
        weight: Probabilities under the proposal (K,), which sum to 1.
        target: α = target / proposal (K,), ≥ 0.
        policy: β = policy / proposal (K,), positive where α is.
    """

    weight: FloatArray
    target: FloatArray
    policy: FloatArray

    def log_quotient(self) -> FloatArray:
        """log(α / β) (K,), 0 where α is."""
        found = np.zeros_like(self.target)
        inside = self.target > 0
        found[inside] = np.log(self.target[inside]) - np.log(self.policy[inside])
        return found


def laplace_nodes(ratio: FloatArray, group_size: int) -> FloatArray:
    """Nodes t (T,) with ∫ F(t) dt/t ≈ STEP · Σ F(t), for an F made of e^(−t · ratio).

    Args:
        ratio: All values of α or β that occur (K,), ≥ 0 and not all 0.
        group_size: n.

    Returns:
        Nodes (T,), from where n · t · ratio is negligible to where e^(−t · ratio) is.
    """
    positive = ratio[ratio > 0]
    low = -TAIL - math.log(group_size * float(positive.max()))
    high = math.log(TAIL / float(positive.min()))
    nodes: FloatArray = np.exp(np.arange(math.floor(low / STEP), math.ceil(high / STEP) + 1) * STEP)
    return nodes


def transform_power(weight: FloatArray, ratio: FloatArray, node: FloatArray, exponent: int) -> FloatArray:
    """E[e^(−t · ratio)]^exponent at every node (T,), accurate where t is small and the exponent large.

    Args:
        weight: Probabilities (K,) that sum to 1.
        ratio: Values (K,).
        node: t (T,).
        exponent: ≥ 0.
    """
    decay = -np.outer(node, ratio)
    return power_near_one(np.expm1(decay) @ weight, np.exp(decay) @ weight, exponent)


def power_near_one(excess: FloatArray, base: FloatArray, exponent: int) -> FloatArray:
    """base^exponent, accurate where the base is near 1 and the exponent large.

    Args:
        excess: base − 1, with its own digits.
        base: ≥ 0, of the same shape.
        exponent: ≥ 0.
    """
    is_near = excess > -0.5
    power: FloatArray = np.where(is_near, np.exp(exponent * np.log1p(np.where(is_near, excess, 0.0))), base**exponent)
    return power


def tilted_mean(value: FloatArray, ratio: FloatArray, node: FloatArray) -> FloatArray:
    """Σ value · e^(−t · ratio) at every node (T,)."""
    mean: FloatArray = np.exp(-np.outer(node, ratio)) @ value
    return mean


def exponential_excess(x: FloatArray) -> FloatArray:
    """eˣ − 1 − x ≥ 0, to nearly full relative precision."""
    is_small = np.abs(x) < 0.5
    small = np.where(is_small, x, 0.0)
    series = np.ones_like(small)
    for divisor in range(18, 2, -1):
        series = 1.0 + small / divisor * series
    excess: FloatArray = np.where(is_small, small**2 / 2 * series, np.expm1(x) - x)
    return excess


def binomial_excess(x: FloatArray, exponent: int) -> FloatArray:
    """(1 + x)^exponent − 1 − exponent · x, to nearly full relative precision where |exponent · x| < ½."""
    term = exponent * (exponent - 1) / 2 * x**2
    excess: FloatArray = np.zeros_like(x)
    for order in range(2, 18):
        excess = excess + term
        term = term * x * (exponent - order) / (order + 1)
    return excess


def expected_divergence(atoms: Atoms, group_size: int) -> float:
    """D_n, the mean of D(Y) = Σ α̂ log(α̂/β̂) over groups, where those with A = 0 count 0.

    With f = log(α/β), ψ(f) = f + e^(−f) − 1, and sums over completions that are close (|f| < 1) or far,

        D(Y) = Σ_close α̂ ψ(f) + Σ_far α̂ f − [Σ_close (β − α)/A − log(B/A)],

    where everything that is close is second-order small: no digits are lost as the policy nears the target.

    Args:
        atoms: The law of one completion; digits are kept where α and β themselves nearly agree.
        group_size: n.

    Returns:
        D_n in nats.

    Source: T0, T8; E5 of the theory's engines.
    """
    weight, target = atoms.weight, atoms.target
    log_quotient = atoms.log_quotient()
    is_close = (target > 0) & (np.abs(log_quotient) < 1)
    node = laplace_nodes(np.concatenate([target, atoms.policy]), group_size)
    value = np.where(is_close, exponential_excess(-np.where(is_close, log_quotient, 0.0)), log_quotient)
    within = tilted_mean(weight * target * value, target, node)
    within *= group_size * node * transform_power(weight, target, node, group_size - 1)
    return float(STEP * (within - _scale_excess(atoms, is_close, group_size, node)).sum())


def _scale_excess(atoms: Atoms, is_close: NDArray[np.bool_], group_size: int, node: FloatArray) -> FloatArray:
    """Integrand (T,) of E[Σ_close (β − α)/A − log(B/A); A > 0].

    With p = E[e^(−tα)] and p + step = E[e^(−tβ)] it is (p + step)ⁿ − pⁿ + n pⁿ⁻¹ t E_close[(β − α) e^(−tα)], which is
    (p + step)ⁿ − pⁿ − n pⁿ⁻¹ (step − rest), less the groups with A = 0.
    """
    weight, target, policy = atoms.weight, atoms.target, atoms.policy
    step, rest = _transform_steps(atoms, is_close, node)
    whole = transform_power(weight, target, node, group_size)
    slope = group_size * transform_power(weight, target, node, group_size - 1)
    far = transform_power(weight, policy, node, group_size) - whole - slope * step
    is_near = np.abs(slope * step) < whole / 2
    relative = np.where(is_near, slope * step / group_size, 0.0) / np.where(is_near, whole, 1.0)
    outside = weight * (target == 0)
    empty = tilted_mean(outside, policy, node) ** group_size - outside.sum() ** group_size
    curved = np.where(is_near, whole * binomial_excess(relative, group_size), far)
    integrand: FloatArray = curved + slope * rest - empty
    return integrand


def _transform_steps(atoms: Atoms, is_close: NDArray[np.bool_], node: FloatArray) -> tuple[FloatArray, FloatArray]:
    """E[e^(−tβ) − e^(−tα)], and the same plus E_close[t (β − α) e^(−tα)] (T,), accurate where α and β nearly agree."""
    exponent = -np.outer(node, atoms.policy - atoms.target)
    decay = np.exp(-np.outer(node, atoms.target))
    is_near = np.abs(exponent) < 0.5
    near = np.where(is_near, exponent, 0.0)
    far = np.exp(-np.outer(node, atoms.policy)) - decay
    step = np.where(is_near, decay * np.expm1(near), far)
    rest = np.where(is_near, decay * exponential_excess(near), far - decay * exponent)
    return step @ atoms.weight, np.where(is_close, rest, step) @ atoms.weight


def expected_weighted_divergence(atoms: Atoms, group_size: int) -> float:
    """D̃_n = E[Ā D(Y)] = E[α log(α/β)] − E[Ā log(A/B)].

    Args:
        atoms: The law of one completion, with α and β of mean 1.
        group_size: n.

    Returns:
        D̃_n in nats; the integrals leave about 1e-15 of rounding, whatever D̃_n is.

    Source: T4c.
    """
    weight, target, policy = atoms.weight, atoms.target, atoms.policy
    node = laplace_nodes(np.concatenate([target, policy]), group_size)
    moment = weight * target
    with_policy = tilted_mean(moment, policy, node) * transform_power(weight, policy, node, group_size - 1)
    with_target = tilted_mean(moment, target, node) * transform_power(weight, target, node, group_size - 1)
    return float(moment @ atoms.log_quotient() - STEP * (with_policy - with_target).sum())


def expected_target_share(atoms: Atoms, group_size: int) -> FloatArray:
    """E of the self-normalised target weight α̂ that falls on each atom (K,); sums to P(A > 0).

    Source: eq-7: this is E[Σ α̂ᵢ 1(yᵢ = y)].
    """
    return _expected_share(atoms.weight, atoms.target, group_size, np.zeros_like(atoms.weight))


def expected_policy_share(atoms: Atoms, group_size: int) -> FloatArray:
    """E of the self-normalised policy weight β̂ that falls on each atom (K,), in groups with A > 0.

    Source: eq-10.
    """
    outside = atoms.weight * (atoms.target == 0)
    return _expected_share(atoms.weight, atoms.policy, group_size, outside)


def _expected_share(weight: FloatArray, ratio: FloatArray, group_size: int, outside: FloatArray) -> FloatArray:
    """n E[ratio₁ / Σ ratio; y₁ = y] for each atom y, less the groups that lie in `outside` throughout."""
    node = laplace_nodes(ratio, group_size)
    others = transform_power(weight, ratio, node, group_size - 1)
    excluded = tilted_mean(outside, ratio, node) ** (group_size - 1)
    kernel = ratio * node[:, None] * np.exp(-np.outer(node, ratio))
    share: FloatArray = others @ kernel - (outside > 0) * (excluded @ kernel)
    return group_size * weight * STEP * share

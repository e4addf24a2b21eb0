"""The gradient estimators of the toys: each one's coefficients by brain_core, and again as a plain rational formula.

Over a group, an estimator's gradient is Σᵢ cᵢ · ∇ log q_θ(yᵢ). Here α = target / proposal and β = policy / proposal are
those of the group's completions, A and B their sums. A group with no target mass (A = 0) gives zero coefficients
wherever the estimator divides by A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

import brain_core
from toy.checks import FloatArray, ProblemError, group_size_of, positive_number, shown

__all__ = ["ESTIMATORS", "CoefficientRoute", "Estimator", "FloatArray", "RationalRoute", "brain_power", "estimator"]

LARGEST_RATIONAL_POWER = 1000
"""The highest power τ taken in Fractions; beyond it their digits take too long."""

RationalRoute = Callable[[Sequence[Fraction], Sequence[Fraction]], list[Fraction]]


class CoefficientRoute(Protocol):
    """Coefficients (…, G) in float64 from log α and log β (…, G); `log_normalizer` is log E[α], 0 if α has mean 1."""

    def __call__(
        self, target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0, /
    ) -> FloatArray:
        """Coefficients of every group."""


@dataclass(frozen=True)
class Estimator:
    """One gradient estimator, by two routes that share no code.

    Attributes:
        name: The method's name, with underscores.
        coefficients: brain_core's coefficients (…, G) of log α and log β (…, G), nats; log E[α] comes third, default 0.
        rational: The formula over one group of exact α and β (of mean 1), or None where it is not rational in them.
        is_paired: Whether a group is used as G/2 independent pairs (y₁, y₂), (y₃, y₄), …; G must then be even.
    """

    name: str
    coefficients: CoefficientRoute
    rational: RationalRoute | None
    is_paired: bool = False

    def check_group_size(self, group_size: int) -> int:
        """The group size as an int; ProblemError unless a group can have this many completions."""
        size = group_size_of(group_size)
        if self.is_paired and size % 2:
            raise ProblemError(f"group_size is {size}; {self.name} works on pairs and needs an even number")
        return size


def estimator(chosen: str | Estimator) -> Estimator:
    """The estimator of that name, or the one given.

    Args:
        chosen: A key of `ESTIMATORS`, or any Estimator, for instance `brain_power(2)`.

    Raises:
        ProblemError: there is no estimator of that name; the message lists those there are.
    """
    if isinstance(chosen, Estimator):
        return chosen
    if not isinstance(chosen, str) or chosen not in ESTIMATORS:
        raise ProblemError(f"there is no estimator {shown(chosen)}; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[chosen]


def brain_power(power: float) -> Estimator:
    """BRAIn of the power family: c = τ (α̂ − β̂) with α̂ ∝ α^τ and β̂ ∝ β^τ, which ascends −D_{n,τ}.

    Args:
        power: τ, positive and finite; the coefficients are rational where it is a whole number up to 1000.

    Raises:
        ProblemError: the power is not positive and finite.

    Source: T11.
    """
    power = positive_number("power", power)
    is_rational = power.is_integer() and power <= LARGEST_RATIONAL_POWER

    def coefficients(
        target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
    ) -> FloatArray:
        """Coefficients of the power family by brain_core."""
        found: FloatArray = brain_core.brain_coefficients(
            target_log_ratio, policy_log_ratio, power=power, on_empty="skip"
        )
        return found

    def rational(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
        """τ (α̂ − β̂)."""
        exponent = int(power)
        tilted = _rational_brain([a**exponent for a in target], [b**exponent for b in policy])
        return [exponent * value for value in tilted]

    return Estimator(f"brain_power_{power:g}", coefficients, rational if is_rational else None)


def _brain(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """BRAIn by brain_core."""
    found: FloatArray = brain_core.brain_coefficients(target_log_ratio, policy_log_ratio, on_empty="skip")
    return found


def _rational_brain(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """α/A − β/B."""
    if not any(target):
        return [Fraction(0)] * len(target)
    target_sum, policy_sum = sum(target), sum(policy)
    return [a / target_sum - b / policy_sum for a, b in zip(target, policy, strict=True)]


def _brain_weighted(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Weighted BRAIn by brain_core."""
    found: FloatArray = brain_core.weighted_brain_coefficients(
        target_log_ratio, policy_log_ratio, log_normalizer=log_normalizer, on_empty="skip"
    )
    return found


def _rational_brain_weighted(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """(α − β A/B) / n."""
    if not any(target):
        return [Fraction(0)] * len(target)
    scale = Fraction(sum(target)) / sum(policy)
    return [(a - b * scale) / len(target) for a, b in zip(target, policy, strict=True)]


def _brain_argmax(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Argmax BRAIn by brain_core: the winner is the completion of largest α, which is that of largest reward only
    where the proposal is the prior."""
    found: FloatArray = brain_core.argmax_brain_coefficients(target_log_ratio, policy_log_ratio, on_empty="skip")
    return found


def _rational_brain_argmax(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """(1 for the largest α, shared equally if several tie) − β/B."""
    best = max(target)
    return _rational_brain([Fraction(best > 0 and a == best) for a in target], policy)


def _snis(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Self-normalised importance sampling by brain_core."""
    found: FloatArray = brain_core.snis_coefficients(target_log_ratio, on_empty="skip")
    return found


def _rational_snis(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """α/A."""
    total = sum(target)
    return [a / total if total else Fraction(0) for a in target]


def _snis_uniform(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """SNIS with the baseline 1/n: BRAIn as if every β were equal."""
    return _brain(target_log_ratio, np.zeros_like(policy_log_ratio))


def _rational_snis_uniform(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """α/A − 1/n."""
    total = sum(target)
    return [a / total - Fraction(1, len(target)) if total else Fraction(0) for a in target]


def _dpg(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Distributional policy gradient by brain_core."""
    found: FloatArray = brain_core.dpg_coefficients(target_log_ratio, log_normalizer=log_normalizer)
    return found


def _gdc(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """GDC by brain_core: DPG, whose rule for the proposal is the problem's business."""
    found: FloatArray = brain_core.gdc_coefficients(target_log_ratio, log_normalizer=log_normalizer)
    return found


def _rational_dpg(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """α / n."""
    return [a / len(target) for a in target]


def _gdcpp(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """GDC++ by brain_core."""
    found: FloatArray = brain_core.gdcpp_coefficients(target_log_ratio, policy_log_ratio, log_normalizer=log_normalizer)
    return found


def _rational_gdcpp(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """(α − β) / n."""
    return [(a - b) / len(target) for a, b in zip(target, policy, strict=True)]


def _importance_weighted_rloo(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Importance-weighted RLOO by brain_core."""
    found: FloatArray = brain_core.importance_weighted_rloo_coefficients(
        target_log_ratio, policy_log_ratio, log_normalizer=log_normalizer
    )
    return found


def _rational_importance_weighted_rloo(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
    """(α − β · mean of the others' α) / n."""
    size, total = len(target), sum(target)
    return [(a - b * (total - a) / (size - 1)) / size for a, b in zip(target, policy, strict=True)]


def _rloo(
    target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
) -> FloatArray:
    """Plain RLOO by brain_core on the reward minus its KL penalty, which is log(α/β) up to a constant."""
    if not (np.isfinite(target_log_ratio).all() and np.isfinite(policy_log_ratio).all()):
        raise ProblemError("rloo needs target and policy positive wherever the proposal is: its reward is log(α/β)")
    found: FloatArray = brain_core.rloo_coefficients(target_log_ratio - policy_log_ratio)
    return found


def _in_pairs(route: CoefficientRoute) -> CoefficientRoute:
    """The mean over a group's consecutive pairs of an estimator for groups of two."""

    def coefficients(
        target_log_ratio: FloatArray, policy_log_ratio: FloatArray, log_normalizer: float | FloatArray = 0.0
    ) -> FloatArray:
        """Coefficients (…, G) of the mean over pairs."""
        shape = target_log_ratio.shape
        if shape[-1] % 2:
            raise ProblemError(f"the group has {shape[-1]} completions; pairs need an even number")
        pairs = (*shape[:-1], shape[-1] // 2, 2)
        found = route(target_log_ratio.reshape(pairs), policy_log_ratio.reshape(pairs))
        mean: FloatArray = found.reshape(shape) / pairs[-2]
        return mean

    return coefficients


def _rational_in_pairs(route: RationalRoute) -> RationalRoute:
    """The mean over a group's consecutive pairs of a rational formula."""

    def rational(target: Sequence[Fraction], policy: Sequence[Fraction]) -> list[Fraction]:
        """Coefficients of the mean over pairs."""
        starts = range(0, len(target), 2)
        pairs = [route(target[start : start + 2], policy[start : start + 2]) for start in starts]
        return [value / len(pairs) for pair in pairs for value in pair]

    return rational


ESTIMATORS: dict[str, Estimator] = {
    found.name: found
    for found in (
        Estimator("brain", _brain, _rational_brain),
        Estimator("brain_weighted", _brain_weighted, _rational_brain_weighted),
        Estimator("brain_argmax", _brain_argmax, _rational_brain_argmax),
        Estimator("snis", _snis, _rational_snis),
        Estimator("snis_uniform", _snis_uniform, _rational_snis_uniform),
        Estimator("dpg", _dpg, _rational_dpg),
        Estimator("gdc", _gdc, _rational_dpg),
        Estimator("gdcpp", _gdcpp, _rational_gdcpp),
        Estimator("importance_weighted_rloo", _importance_weighted_rloo, _rational_importance_weighted_rloo),
        Estimator("rloo", _rloo, None),
        Estimator("dpo_sft", _in_pairs(_brain_argmax), _rational_in_pairs(_rational_brain_argmax), is_paired=True),
        Estimator("dpo_sft_iw", _in_pairs(_brain), _rational_in_pairs(_rational_brain), is_paired=True),
    )
}
"""Every estimator by name.

`dpo_sft` prefers the completion of larger α within each pair. With the prior as proposal, as DPO-sft has it, that is
the one of larger reward; with another proposal it is argmax BRAIn on pairs. Importance weights make it `dpo_sft_iw`,
and the whole group instead of pairs makes that `brain`.
"""

"""What every public function of `brain_core` ought to return for a group: one short formula each, from its definition.

The formulas work on exact numbers: rationals, whose logarithms are exact too, or numbers of many digits where the
input is given as floats. They share no code with `brain_core`, which works on logarithms in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath

from proofs_check.exact import LogNumber, log

DIGITS = 80

Number = Any
"""A Fraction, a LogNumber, or an mpmath number of `DIGITS` digits."""

Numbers = Sequence[Number]


class Sample(NamedTuple):
    """A group: one number per completion, and the factor by which `target` exceeds the normalised α."""

    target: Numbers
    policy: Numbers
    normalizer: Number = Fraction(1)
    prior: Numbers = ()
    goodness: Numbers = ()
    likelihood: Numbers = ()
    proposal: Numbers = ()

    @property
    def alpha(self) -> list[Number]:
        """α of mean 1 under the proposal."""
        return [value / self.normalizer for value in self.target]

    @property
    def preference(self) -> Number:
        """The probability that the first of a pair is the better one, p₁/(p₁ + p₂)."""
        return self.target[0] / (self.target[0] + self.target[1])


Oracle = Callable[..., Number | list[Number]]
"""From a sample and options to a number, or to one per completion."""


def log_of(value: Number) -> Number:
    """log of a positive number, exact or in many digits."""
    return mpmath.log(value) if isinstance(value, mpmath.mpf) else log(value)


def logs(values: Numbers) -> list[Number]:
    """log of numbers ≥ 0, minus infinity for 0."""
    return [log_of(value) if value else -mpmath.inf for value in values]


def shares(values: Numbers, power: int = 1) -> list[Number]:
    """values^power divided by their sum; all 0 where that is 0."""
    total = sum(value**power for value in values)
    return [value**power / total if total else total for value in values]


def mean(values: Numbers) -> Number:
    """Arithmetic mean."""
    return sum(values) / len(values)


def total_log(weights: Numbers, values: Numbers) -> Number:
    """Σ weight · log value, where 0 log 0 = 0."""
    return sum(weight * log_of(value) for weight, value in zip(weights, values, strict=True) if weight)


def winners(group: Sample) -> Sample:
    """The same group with all target mass, equally, on its largest α; none where all are 0."""
    best = max(group.target)
    return group._replace(target=[best * (value == best) for value in group.target])


# Coefficients


def brain(group: Sample, power: int = 1) -> list[Number]:
    """power · (α̂ − β̂); 0 for a group without target mass."""
    if not any(group.target):
        return [Fraction(0)] * len(group.target)
    return [power * (a - b) for a, b in zip(shares(group.target, power), shares(group.policy, power), strict=True)]


def snis(group: Sample) -> list[Number]:
    """α̂."""
    return shares(group.target)


def weighted_brain(group: Sample) -> list[Number]:
    """Ā (α̂ − β̂)."""
    return [mean(group.alpha) * coefficient for coefficient in brain(group)]


def dpg(group: Sample) -> list[Number]:
    """α / n."""
    return [a / len(group.target) for a in group.alpha]


def gdcpp(group: Sample) -> list[Number]:
    """(α − β) / n."""
    return [(a - b) / len(group.target) for a, b in zip(group.alpha, group.policy, strict=True)]


def mean_of_others(group: Sample) -> list[Number]:
    """Per completion, the mean α of the others."""
    alpha = group.alpha
    return [mean([*alpha[:i], *alpha[i + 1 :]]) for i in range(len(alpha))]


def importance_weighted_rloo(group: Sample) -> list[Number]:
    """(α_i − β_i · mean of the others' α) / n."""
    terms = zip(group.alpha, group.policy, mean_of_others(group), strict=True)
    return [(a - b * others) / len(group.target) for a, b, others in terms]


def rloo(group: Sample) -> list[Number]:
    """(r_i − mean of the others' r) / n, the goodness serving as reward."""
    reward = list(group.goodness)
    return [(r - mean([*reward[:i], *reward[i + 1 :]])) / len(reward) for i, r in enumerate(reward)]


def argmax_brain(group: Sample, power: int = 1) -> list[Number]:
    """power · (uniform on the largest α − β̂)."""
    ahead = shares(winners(group).target)
    if not any(ahead):
        return ahead
    return [power * (a - b) for a, b in zip(ahead, shares(group.policy, power), strict=True)]


def dpo(group: Sample, power: int = 1) -> list[Number]:
    """power · (1 − β̂₁) · (1, −1) for a pair listed winner first."""
    return soft_label_dpo(group, Fraction(1), power)


def soft_label_dpo(group: Sample, preference: Number, power: int = 1) -> list[Number]:
    """power · (preference − β̂₁) · (1, −1)."""
    first = power * (preference - shares(group.policy, power)[0])
    return [first, -first]


def plackett_luce(group: Sample, power: int = 1) -> list[Number]:
    """power · Σ over stages of (one-hot at the choice − β̂ among those that remain)."""
    size = len(group.policy)
    total = [Fraction(0)] * size
    for stage in range(size - 1):
        for place, share in enumerate(shares(group.policy[stage:], power), start=stage):
            total[place] += power * ((place == stage) - share)
    return total


def ipo(group: Sample, power: int) -> list[Number]:
    """(1/power − 2 Δ) · (1, −1), Δ the log of the ratio of the two β."""
    first = Fraction(1, power) - 2 * log_of(group.policy[0] / group.policy[1])
    return [first, -first]


def hinge(group: Sample, margin: Fraction = Fraction(1), power: int = 1) -> list[Number]:
    """power · (1, −1) while the hinge is open."""
    first = Fraction(power * (hinge_objective(group, margin, power) > 0))
    return [first, -first]


def nca(group: Sample, power: int = 1) -> list[Number]:
    """power · (α̂ / (1 + β^power) − β^power / (1 + β^power) / n); 0 for a group without target mass."""
    if not any(group.target):
        return [Fraction(0)] * len(group.target)
    ratios = [b**power for b in group.policy]
    terms = zip(shares(group.target), ratios, strict=True)
    return [power * (a - b / len(ratios)) / (1 + b) for a, b in terms]


def exo(group: Sample, power: int = 1) -> list[Number]:
    """power · β̂ (log(α̂ / β̂) + Σ β̂ log(β̂ / α̂)); 0 for a group without target mass."""
    if not any(group.target):
        return [Fraction(0)] * len(group.target)
    divergence = exo_objective(group, power)
    terms = zip(shares(group.target), shares(group.policy, power), strict=True)
    return [power * b * (divergence + log_of(a / b)) if b else b for a, b in terms]


def rank_hinge(group: Sample) -> list[Number]:
    """Per completion, worse ones of higher β less better ones of lower β, the goodness serving as reward."""
    pairs = list(zip(group.goodness, group.policy, strict=True))
    return [Fraction(sum(s < r and c > b for s, c in pairs) - sum(s > r and c < b for s, c in pairs)) for r, b in pairs]


def deviations(group: Sample) -> list[Number]:
    """r − r̄, the goodness serving as reward."""
    return [r - mean(group.goodness) for r in group.goodness]


def group_relative_advantage(group: Sample, is_scaled: bool = True) -> list[Number]:
    """(r − r̄) / s with s² = Σ (r − r̄)² / (n − 1); 0 where all are equal."""
    centred = deviations(group)
    if not is_scaled or not any(centred):
        return centred
    spread = mpmath.sqrt(as_digits(sum(r * r for r in centred) / (len(centred) - 1)))
    return [as_digits(r) / spread for r in centred]


def clipped_surrogate(group: Sample, clip: Fraction) -> list[Number]:
    """ρ A, but 0 where A > 0 and ρ > 1 + clip, or A < 0 and ρ < 1 − clip; A is r − r̄ and ρ is β."""
    low, high = as_digits(1 - clip), as_digits(1 + clip)
    terms = zip(map(as_digits, deviations(group)), map(as_digits, group.policy), strict=True)
    return [0 * a if (a > 0 and b > high) or (a < 0 and b < low) else a * b for a, b in terms]


def best_of_n(group: Sample) -> list[Number]:
    """Uniform on the largest goodness."""
    return shares([Fraction(r == max(group.goodness)) for r in group.goodness])


# Objectives


def brain_objective(group: Sample, power: int = 1) -> Number:
    """−Σ α̂ log β̂."""
    return -total_log(shares(group.target, power), shares(group.policy, power))


def snis_objective(group: Sample) -> Number:
    """−Σ α̂ log β."""
    return -total_log(shares(group.target), group.policy)


def self_normalized_kl(group: Sample, power: int = 1) -> Number:
    """Σ α̂ log(α̂ / β̂)."""
    target, policy = shares(group.target, power), shares(group.policy, power)
    return sum(a * log_of(a / b) for a, b in zip(target, policy, strict=True) if a)


def weighted_brain_objective(group: Sample) -> Number:
    """Ā · Σ α̂ log(α̂ / β̂)."""
    return mean(group.alpha) * self_normalized_kl(group)


def dpg_objective(group: Sample) -> Number:
    """−Σ α log β / n."""
    return -total_log(group.alpha, group.policy) / len(group.policy)


def gdcpp_objective(group: Sample) -> Number:
    """Σ [α log(α / β) − α + β] / n."""
    terms = [(a * log_of(a / b) if a else 0) - a + b for a, b in zip(group.alpha, group.policy, strict=True)]
    return mean(terms)


def importance_weighted_rloo_objective(group: Sample) -> Number:
    """Σ [β · mean of the others' α − α log β] / n."""
    return mean([b * others for b, others in zip(group.policy, mean_of_others(group), strict=True)]) + dpg_objective(
        group
    )


def rloo_objective(group: Sample) -> Number:
    """−Σ (r − r̄) log β / (n − 1)."""
    centred = [r - mean(group.goodness) for r in group.goodness]
    return -total_log(centred, group.policy) / (len(centred) - 1)


def argmax_brain_objective(group: Sample, power: int = 1) -> Number:
    """−log β̂ of the largest α, the mean over those that tie."""
    return -total_log(shares(winners(group).target), shares(group.policy, power))


def dpo_objective(group: Sample, power: int = 1) -> Number:
    """−log β̂₁ of a pair listed winner first."""
    return soft_label_dpo_objective(group, Fraction(1), power)


def soft_label_dpo_objective(group: Sample, preference: Number, power: int = 1) -> Number:
    """−preference · log β̂₁ − (1 − preference) · log β̂₂."""
    return -total_log([preference, 1 - preference], shares(group.policy, power))


def plackett_luce_objective(group: Sample, power: int = 1) -> Number:
    """−Σ over stages of log β̂ of the choice among those that remain."""
    return -sum(log_of(shares(group.policy[stage:], power)[0]) for stage in range(len(group.policy) - 1))


def ipo_objective(group: Sample, power: int) -> Number:
    """(Δ − 1/(2 · power))²."""
    return as_digits(log_of(group.policy[0] / group.policy[1]) - Fraction(1, 2 * power)) ** 2


def hinge_objective(group: Sample, margin: Fraction = Fraction(1), power: int = 1) -> Number:
    """max(0, margin − power · Δ)."""
    return max(Fraction(0), margin - power * log_of(group.policy[0] / group.policy[1]))


def nca_objective(group: Sample, power: int = 1) -> Number:
    """−Σ [α̂ log(β^power / (1 + β^power)) + log(1 / (1 + β^power)) / n]; 0 for a group without target mass."""
    if not any(group.target):
        return Fraction(0)
    ratios = [b**power for b in group.policy]
    of_noise = total_log([Fraction(1, len(ratios))] * len(ratios), [1 / (1 + b) for b in ratios])
    return -total_log(shares(group.target), [b / (1 + b) for b in ratios]) - of_noise


def exo_objective(group: Sample, power: int = 1) -> Number:
    """Σ β̂ log(β̂ / α̂)."""
    terms = zip(shares(group.target), shares(group.policy, power), strict=True)
    return sum(b * log_of(b / a) for a, b in terms if b) if any(group.target) else Fraction(0)


def rank_hinge_objective(group: Sample) -> Number:
    """Σ max(0, log β_i − log β_j) over pairs with r_i < r_j, the goodness serving as reward."""
    pairs = list(zip(group.goodness, group.policy, strict=True))
    gaps = [log_of(b / c) for r, b in pairs for s, c in pairs if r < s and b > c]
    return sum(gaps, Fraction(0))


def clipped_surrogate_objective(group: Sample, clip: Fraction) -> Number:
    """−Σ min(ρ A, ρ clipped to [1 − clip, 1 + clip] · A); A is r − r̄ and ρ is β."""
    low, high = as_digits(1 - clip), as_digits(1 + clip)
    terms = zip(map(as_digits, deviations(group)), map(as_digits, group.policy), strict=True)
    return -sum(min(b * a, min(max(b, low), high) * a) for a, b in terms)


def best_of_n_objective(group: Sample) -> Number:
    """−log β of the largest goodness, the mean over those that tie."""
    return -total_log(best_of_n(group), group.policy)


# Ratios, goodness, distances, diagnostics


def target_log_ratio(group: Sample) -> list[Number]:
    """log (p g / q')."""
    columns = zip(group.prior, group.goodness, group.proposal, strict=True)
    return logs([p * g / s for p, g, s in columns])


def policy_log_ratio(group: Sample) -> list[Number]:
    """log (q / q')."""
    return logs([q / s for q, s in zip(group.likelihood, group.proposal, strict=True)])


def log_goodness(group: Sample) -> list[Number]:
    """log g, from the reward that has it."""
    return logs(group.goodness)


def log_chance(group: Sample) -> list[Number]:
    """log of g / (1 + g), the goodness whose odds are g."""
    return logs([g / (1 + g) for g in group.goodness])


def total_variation(group: Sample, power: int = 1) -> Number:
    """½ Σ |α̂ − β̂|."""
    return sum(abs(coefficient) for coefficient in brain(group, power)) / (2 * power)


def weight_entropy(group: Sample) -> Number:
    """−Σ α̂ log α̂."""
    return -total_log(shares(group.target), shares(group.target))


def effective_sample_size(group: Sample, kind: str = "kish") -> Number:
    """1 / Σ α̂², or exp of the entropy; 0 for a group without target mass."""
    if not any(group.target):
        return Fraction(0)
    if kind == "kish":
        return 1 / sum(weight**2 for weight in shares(group.target))
    return mpmath.exp(as_digits(weight_entropy(group)))


def likelihood_drift(group: Sample) -> Number:
    """Mean of log q − log q'; minus infinity where a q is 0."""
    if not all(group.likelihood):
        return -mpmath.inf
    return mean(policy_log_ratio(group))


def as_digits(value: Number) -> Number:
    """A number in `DIGITS` digits."""
    if isinstance(value, mpmath.mpf):
        return value
    exact = LogNumber.of(value)
    total = mpmath.mpf(exact.rational.numerator) / exact.rational.denominator
    for prime, coefficient in exact.logs:
        total += mpmath.mpf(coefficient.numerator) / coefficient.denominator * mpmath.log(prime)
    return total

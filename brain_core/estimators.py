"""Score coefficients: one function per method, all of them answers to the same question.

Over a group of G completions sampled from the proposal q', every method of this family ascends

    gradient = Σᵢ cᵢ · ∇ log q_θ(yᵢ|x),

and differs from the others in the coefficients c alone. With α and β the importance ratios of target and policy to the
proposal, α̂ and β̂ normalised to sum 1 over the group, and Ā the mean of α:

    SNIS                      α̂
    BRAIn                     α̂ − β̂
    weighted BRAIn            Ā (α̂ − β̂)
    DPG, GDC                  α / G
    GDC++                     (α − β) / G
    importance-weighted RLOO  (α − β · mean of the others' α) / G
    RLOO                      (r − mean of the others' r) / G
    argmax BRAIn              (one-hot at the largest α) − β̂
    DPO                       argmax BRAIn of a pair that lists the winner first

SNIS, BRAIn, argmax BRAIn and DPO need α only up to a factor per group; those that use α itself take `log_normalizer`.
The methods of other papers, with Δ the log-ratio of a pair's winner less the loser's, δ = log(α̂/β̂) and, where the
proposal is the prior, R = power · log β:

    IPO                       (1/power − 2 Δ) · (1, −1)
    SLiC, RSO with a hinge    power · (1, −1) while power · Δ < margin
    NCA                       power · (α̂ σ(−R) − σ(R) / G)
    EXO                       power · β̂ (δ − Σ β̂ δ)
    RRHF                      how many worse ones the policy prefers to it, less how many better it is preferred to
    PPO, GRPO                 ρ A, 0 where the clip is active
    best of n                 uniform on the largest reward

Coefficients are constants of the loss −Σ c log q_θ: detach them.
"""

from __future__ import annotations

from brain_core._checks import (
    INF,
    check_log_values,
    check_positive,
    checked_group_namespace,
    checked_pair,
    refuse_infinite,
)
from brain_core._comparison import compare_weights, difference, weighted_deviation
from brain_core._ratios import (
    argmax_log_ratio,
    check_ranked,
    checked_contrast,
    checked_lead,
    checked_preference,
    checked_reverse_pair,
    checked_surrogate,
    importance_ratio,
    mean_of_others,
    misranked_by,
    normalized_log_ratio,
    policy_importance_ratio,
)
from brain_core._typing import Array, Namespace, OnEmpty
from brain_core.logspace import log_sigmoid, remaining_by_stage
from brain_core.weights import normalized


def brain_coefficients(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """BRAIn coefficients: power · (α̂ − β̂), with α̂ ∝ α^power and β̂ ∝ β^power within the group.

    They ascend −D(Y), the negative of `self_normalized_kl` at the same power. At power 1 that is the BRAIn gradient
    estimate. With the prior as proposal the power plays the part of the β of InfoNCA, and of DPO where G = 2.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of both ratios.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients (…, G); each group's sum to 0 and their absolute values to at most 2 · power.

    Raises:
        SupportError: the policy is -inf where the target is not, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2 (there is nothing to compare), or the power is not
            positive and finite. For the limit of infinite power on the target see `argmax_brain_coefficients`.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: exactly 0 where the log-ratios are equal, and accurate relative to the group's largest coefficient
        however close the two are. A target of -inf gives −power · β̂; ties and duplicates keep their multiplicity.

    Source: eq-12, T0, T11.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> brain_coefficients(target, policy).round(4).tolist()
        [0.25, -0.25]
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    return _brain(xp, target, policy, power)


def _brain(xp: Namespace, target_log_ratio: Array, policy_log_ratio: Array, power: float) -> Array:
    """`brain_coefficients` without the checks."""
    return power * difference(xp, *compare_weights(xp, target_log_ratio, policy_log_ratio, power))


def snis_coefficients(target_log_ratio: Array, *, on_empty: OnEmpty = "raise") -> Array:
    """Self-normalised importance sampling without a baseline: α̂.

    For a fixed proposal its fixed point is not the target, and it is noisy there; BRAIn subtracts β̂ for that reason.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients ≥ 0 that sum to 1 over each group (…, G).

    Raises:
        SupportError: a group is -inf throughout and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, or the group is empty of completions. G = 1 is allowed.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: the target is data.

    Numerics: as `self_normalized_weights`.

    Source: eq-7, T9.

    Example:
        >>> import numpy as np
        >>> snis_coefficients(np.log(np.array([3.0, 1.0]))).round(4).tolist()
        [0.75, 0.25]
    """
    return normalized("target_log_ratio", target_log_ratio, on_empty)


def weighted_brain_coefficients(
    target_log_ratio: Array,
    policy_log_ratio: Array,
    *,
    log_normalizer: Array | float,
    on_empty: OnEmpty = "raise",
) -> Array:
    """Weighted BRAIn: Ā (α̂ − β̂), BRAIn with each group weighted by its mean importance ratio Ā.

    Its objective, the mean of Ā · D(Y), never decreases with G, never exceeds KL(target ‖ policy) and tends to it.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…),
            nats; subtracting it makes α of mean 1.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients (…, G); each group's sum to 0.

    Raises:
        SupportError: the policy is -inf where the target is not, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, or G < 2.
        OverflowError: an importance ratio of the target exceeds the largest number of its dtype.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: as `brain_coefficients`, times Ā.

    Source: T8, T4c.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> weighted_brain_coefficients(target, policy, log_normalizer=0.0).round(4).tolist()
        [0.5, -0.5]
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    coefficients = brain_coefficients(target_log_ratio, policy_log_ratio, on_empty=on_empty)
    ratio = importance_ratio(xp, target_log_ratio, log_normalizer)
    return xp.mean(ratio, axis=-1, keepdims=True) * coefficients


def dpg_coefficients(target_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """Distributional policy gradient: α / G, the unbiased importance-sampling estimate of −∇KL(target ‖ policy).

    Unbounded, and noisy even at the optimum. It needs the target's normaliser.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…),
            nats; subtracting it makes α of mean 1.

    Returns:
        Coefficients ≥ 0 (…, G).

    Raises:
        OverflowError: an importance ratio of the target exceeds the largest number of its dtype.
        ValueError: a value is NaN or +inf, shapes do not fit, or the group is empty of completions. G = 1 is allowed.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: the target is data.

    Numerics: a target of -inf gives 0, in a whole group too, since nothing is normalised by the group.

    Source: T6, T8, eq-4.

    Example:
        >>> import numpy as np
        >>> dpg_coefficients(np.log(np.array([3.0, 1.0])), log_normalizer=np.log(2.0)).round(4).tolist()
        [0.75, 0.25]
    """
    xp = checked_group_namespace(1, target_log_ratio=target_log_ratio)
    check_log_values(xp, target_log_ratio=target_log_ratio)
    return importance_ratio(xp, target_log_ratio, log_normalizer) / target_log_ratio.shape[-1]


def gdc_coefficients(target_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """Generation with distributional control: the coefficients of DPG under a rule for the proposal.

    GDC is DPG whose proposal follows the policy: the two are equal at the start, and the proposal is replaced by the
    current policy whenever that one is estimated to be closer to the target. The rule concerns the data alone; on the
    data it gives, the coefficients are α / G with α relative to the proposal that sampled them.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…),
            nats; subtracting it makes α of mean 1.

    Returns:
        Coefficients ≥ 0 (…, G).

    Raises:
        OverflowError: an importance ratio of the target exceeds the largest number of its dtype.
        ValueError: a value is NaN or +inf, shapes do not fit, or the group is empty of completions. G = 1 is allowed.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: the target is data.

    Numerics: as `dpg_coefficients`.

    Source: T8; Khalifa et al., A Distributional Approach to Controlled Text Generation, 2021.

    Example:
        >>> import numpy as np
        >>> gdc_coefficients(np.log(np.array([3.0, 1.0])), log_normalizer=np.log(2.0)).round(4).tolist()
        [0.75, 0.25]
    """
    return dpg_coefficients(target_log_ratio, log_normalizer=log_normalizer)


def gdcpp_coefficients(target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """GDC++: (α − β) / G, DPG with the baseline β, which is zero noise at the optimum and unbounded elsewhere.

    It ascends the negative generalised KL divergence Σ [α log(α/β) − α + β] / G, which is BRAIn's D(Y) times Ā plus
    a term that also fits the total mass of the group.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β itself, not up to a constant (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…),
            nats; subtracting it makes α of mean 1.

    Returns:
        Coefficients (…, G).

    Raises:
        SupportError: the policy is -inf where the target is not.
        OverflowError: an importance ratio exceeds the largest number of its dtype.
        ValueError: a value is NaN or +inf, shapes do not fit, or the group is empty of completions. G = 1 is allowed.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: accurate relative to the group's largest coefficient also where α and β nearly agree.

    Source: T8.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> gdcpp_coefficients(target, policy, log_normalizer=np.log(2.0)).round(4).tolist()
        [0.25, -0.25]
    """
    xp = checked_group_namespace(1, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    policy = policy_importance_ratio(xp, target_log_ratio, policy_log_ratio)
    target = importance_ratio(xp, target_log_ratio, log_normalizer)
    log_ratio = normalized_log_ratio(xp, target_log_ratio, policy_log_ratio, log_normalizer)
    return difference(xp, target, policy, log_ratio) / target_log_ratio.shape[-1]


def importance_weighted_rloo_coefficients(
    target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float
) -> Array:
    """RLOO for −∇KL(target ‖ policy) off-policy: (αᵢ − βᵢ · mean of the others' α) / G.

    The mean of the other completions' α estimates the baseline of the i-th without bias, where GDC++ uses its true
    value 1. On-policy (β = 1) it is G / (G − 1) times weighted BRAIn.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β itself, not up to a constant (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…),
            nats; subtracting it makes α of mean 1.

    Returns:
        Coefficients (…, G).

    Raises:
        SupportError: the policy is -inf where the target is not.
        OverflowError: an importance ratio, or the product of two, may exceed the largest number of its dtype.
        ValueError: a value is NaN or +inf, shapes differ, or G < 2.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: the mean of the others is summed without the i-th, not by subtracting it.

    Source: T8.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> importance_weighted_rloo_coefficients(target, policy, log_normalizer=np.log(2.0)).round(4).tolist()
        [0.5, -0.5]
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    policy = policy_importance_ratio(xp, target_log_ratio, policy_log_ratio)
    target = importance_ratio(xp, target_log_ratio, log_normalizer)
    return (target - policy * mean_of_others(xp, target, policy)) / target.shape[-1]


def rloo_coefficients(reward: Array) -> Array:
    """REINFORCE leave-one-out on rewards, on-policy: (rᵢ − mean of the others' r) / G.

    The unbiased estimate of the gradient of the expected reward from completions of the current policy; subtract
    the KL penalty from the reward beforehand. Since the advantage is divided by G, it equals (rᵢ − r̄) / (G − 1).

    Args:
        reward: r(x, y) of completions that the current policy sampled (…, G).

    Returns:
        Coefficients (…, G), in units of the reward; each group's sum to 0.

    Raises:
        ValueError: a reward is NaN or infinite, or G < 2.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: the reward is data.

    Numerics: equal rewards give exactly 0 where their mean is exact.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> rloo_coefficients(np.array([1.0, 2.0, 6.0])).tolist()
        [-1.0, -0.5, 1.5]
    """
    xp = checked_group_namespace(2, reward=reward)
    refuse_infinite(xp, reward=reward)
    return (reward - xp.mean(reward, axis=-1, keepdims=True)) / (reward.shape[-1] - 1)


def argmax_brain_coefficients(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """BRAIn with argmax in place of softmax in the target: power · (uniform on the largest α − β̂), β̂ ∝ β^power.

    All the target's weight goes to the best completion of the group, as in DPO; with G = 2 and the prior as proposal
    these are the coefficients of DPO. With that proposal, pass the reward as target log-ratio.

    Args:
        target_log_ratio: log α, or anything that orders the group as it does (…, G).
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of the policy's ratio, the β of DPO.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients (…, G); each group's sum to 0.

    Raises:
        SupportError: the policy is -inf at a winner, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: completions that tie for the largest share its weight equally. The objective has no minimiser.

    Source: thm-6.1, T11.

    Example:
        >>> import numpy as np
        >>> argmax_brain_coefficients(np.array([2.0, 1.0]), np.array([0.0, 0.0])).tolist()
        [0.5, -0.5]
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    winner = argmax_log_ratio(xp, "target_log_ratio", target_log_ratio)
    return brain_coefficients(winner, policy_log_ratio, power=power, on_empty=on_empty)


def dpo_coefficients(policy_log_ratio: Array, *, power: float = 1.0) -> Array:
    """Direct preference optimisation of a pair listed winner first: power · σ(−power · Δ) · (1, −1).

    Δ is the winner's log-ratio minus the loser's, relative to the reference, which is the prior here.

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the winner and the loser (…, 2), nats.
        power: positive; the β of DPO.

    Returns:
        Coefficients (…, 2) that sum to 0.

    Raises:
        ValueError: a value is NaN or infinite, the last axis is not a pair, or the power is not positive and finite.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: compute from a detached log-ratio, or detach the result.

    Numerics: full relative precision however large the difference.

    Source: thm-6.1; Rafailov et al., Direct Preference Optimization, 2023, equation 7.

    Example:
        >>> import numpy as np
        >>> dpo_coefficients(np.array([0.0, 0.0]), power=0.1).tolist()
        [0.05, -0.05]
    """
    return soft_label_dpo_coefficients(policy_log_ratio, 1.0, power=power)


def soft_label_dpo_coefficients(policy_log_ratio: Array, preference: Array | float, *, power: float = 1.0) -> Array:
    """DPO with a probability in place of the label: power · (preference − σ(power · Δ)) · (1, −1).

    Δ is the first completion's log-ratio minus the second's. A constant 1 − ε is conservative DPO; the Bradley–Terry
    probability σ(r₁ − r₂) makes it BRAIn on the pair, with power · log α = r; 1 is DPO.

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the two completions (…, 2), nats.
        preference: probability that the first is the better one, a number or one per pair (…).
        power: positive; the β of DPO.

    Returns:
        Coefficients (…, 2) that sum to 0.

    Raises:
        ValueError: a value is NaN or infinite, a preference lies outside [0, 1], the last axis is not a pair, shapes
            do not fit, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from a detached log-ratio, or detach the result.

    Numerics: as `dpo_coefficients` for a preference of 0 or 1.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> soft_label_dpo_coefficients(np.array([0.0, 0.0]), 0.9).round(4).tolist()
        [0.4, -0.4]
    """
    xp, margin, probability = checked_preference(policy_log_ratio, preference, power)
    first, second = xp.exp(log_sigmoid(xp, margin)), xp.exp(log_sigmoid(xp, -margin))
    return _for_and_against(xp, power * (probability * second - (1 - probability) * first))


def _for_and_against(xp: Namespace, coefficient: Array) -> Array:
    """One coefficient per pair (…) as those of its two completions (…, 2): with its sign and the opposite one."""
    return xp.stack([coefficient, -coefficient], axis=-1)


def plackett_luce_coefficients(policy_log_ratio: Array, *, power: float = 1.0) -> Array:
    """Plackett–Luce likelihood of a ranking listed best first: the extension of DPO to more than two completions.

    The ranking is a sequence of choices; each one is argmax BRAIn among the completions that remain.

    Args:
        policy_log_ratio: log q_θ − log of the reference, from the best to the worst (…, G), nats.
        power: positive; the β of DPO.

    Returns:
        Coefficients (…, G); each group's sum to 0.

    Raises:
        SupportError: the policy is -inf anywhere but at the worst completion.
        ValueError: a value is NaN or +inf, G < 2, or the power is not positive and finite.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: compute from a detached log-ratio, or detach the result.

    Numerics: as `argmax_brain_coefficients`, stage by stage; memory grows with G².

    Source: T11.

    Example:
        >>> import numpy as np
        >>> plackett_luce_coefficients(np.array([0.0, 0.0, 0.0])).round(4).tolist()
        [0.6667, 0.1667, -0.8333]
    """
    xp = checked_group_namespace(2, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    check_ranked(xp, policy_log_ratio)
    remaining, is_chosen = remaining_by_stage(xp, policy_log_ratio)
    chosen = xp.where(is_chosen, xp.zeros_like(remaining), -INF)
    return xp.sum(_brain(xp, chosen, remaining, power), axis=-2)


def ipo_coefficients(policy_log_ratio: Array, *, power: float) -> Array:
    """Identity preference optimisation of a pair listed winner first: (1/power − 2 Δ) · (1, −1).

    Δ is the winner's log-ratio minus the loser's. The loss is a square, so that Δ is drawn to 1/(2 · power) from either
    side, where DPO's grows without end.

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the winner and the loser (…, 2), nats.
        power: positive; the τ of IPO.

    Returns:
        Coefficients (…, 2) that sum to 0, nats.

    Raises:
        ValueError: a value is NaN or infinite, the last axis is not a pair, or the power is not positive and finite.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: compute from a detached log-ratio, or detach the result.

    Numerics: as accurate as Δ. The coefficients are not bounded.

    Source: T11; Azar et al., arXiv 2310.12036, equation 17.

    Example:
        >>> import numpy as np
        >>> ipo_coefficients(np.array([1.0, 0.0]), power=0.1).tolist()
        [8.0, -8.0]
    """
    xp, lead = checked_lead(policy_log_ratio, power)
    return _for_and_against(xp, 1 / power - 2 * lead)


def hinge_coefficients(policy_log_ratio: Array, *, margin: float = 1.0, power: float = 1.0) -> Array:
    """Hinge loss of a pair listed winner first: power · (1, −1) while power · Δ is below the margin, then 0.

    Δ is the winner's value minus the loser's. SLiC-HF passes log q_θ itself, with its δ as margin, and adds a
    cross-entropy on the supervised data apart from this; RSO passes the log-ratio to the prior, with its γ as power.

    Args:
        policy_log_ratio: log q_θ − log of the reference, or log q_θ, of the winner and the loser (…, 2), nats.
        margin: positive; the lead that is enough.
        power: positive; the γ of RSO.

    Returns:
        Coefficients (…, 2) that sum to 0.

    Raises:
        ValueError: a value is NaN or infinite, the last axis is not a pair, or margin or power is not positive and
            finite.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: constant but for a jump at the margin.

    Numerics: at the kink, power · Δ = margin, the coefficients are 0.

    Source: Zhao et al., SLiC-HF, arXiv 2305.10425; Liu et al., RSO, arXiv 2309.06657, the hinge loss.

    Example:
        >>> import numpy as np
        >>> hinge_coefficients(np.array([[0.5, 0.0], [1.5, 0.0]]))[..., 0].tolist()
        [1.0, 0.0]
    """
    check_positive("margin", margin)
    xp, lead = checked_lead(policy_log_ratio, power)
    return _for_and_against(xp, power * xp.astype(power * lead < margin, lead.dtype))


def nca_coefficients(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """Noise-contrastive alignment: power · (α̂ σ(−R) − σ(R) / G), R = power · log(q_θ / prior).

    Each completion is told from noise by itself, so that absolute likelihoods count: the coefficients of a group need
    not sum to 0. They are 0 at R = log(G α̂). For a fixed proposal the fixed point is that of SNIS, not the target.

    Args:
        target_log_ratio: reward / temperature, or anything whose softmax over the group is α̂ (…, G), nats.
        policy_log_ratio: log q_θ − log of the prior itself, not up to a constant (…, G), nats.
        power: positive; the β of NCA.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients (…, G), each between −power / G and power.

    Raises:
        SupportError: the policy is -inf where the target is not, or a group is empty and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: no overflow at any magnitude; near its zero a coefficient is accurate relative to its two terms. A target
        of -inf gives −power · σ(R) / G.

    Source: T9; Chen et al., arXiv 2402.05369, the NCA loss.

    Example:
        >>> import numpy as np
        >>> nca_coefficients(np.log(np.array([3.0, 1.0])), np.array([0.0, 0.0])).round(4).tolist()
        [0.125, -0.125]
    """
    xp, weight, logit, is_counted = checked_contrast(target_log_ratio, policy_log_ratio, power, on_empty)
    for_it, against = xp.exp(log_sigmoid(xp, -logit)), xp.exp(log_sigmoid(xp, logit))
    return xp.where(is_counted, power * (weight * for_it - against / weight.shape[-1]), 0.0)


def exo_coefficients(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """Efficient exact optimisation: power · β̂ (δ − Σ β̂ δ), with β̂ ∝ β^power and δ = log(α̂ / β̂).

    They ascend −KL(β̂ ‖ α̂), the reverse of BRAIn's divergence: near the optimum both have the same coefficients to
    first order, far from it a completion to which the policy gives no weight is never sought.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats; reward / β_r if the proposal is the prior.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of the policy's ratio alone, the β_π of EXO.
        on_empty: what to do with a group that the target gives no mass: raise, or give it zero coefficients.

    Returns:
        Coefficients (…, G), nats; each group's sum to 0.

    Raises:
        SupportError: the target is -inf where the policy is not (the divergence is infinite), a group of the policy is
            -inf throughout, or a group of the target is and `on_empty` is "raise".
        ValueError: a value is NaN or +inf, shapes differ, G < 2, or the power is not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from detached log-ratios, or detach the result.

    Numerics: at power 1 exactly 0 where the log-ratios are equal, and accurate relative to the group's largest
        coefficient however close the two are; at another power, but for the rounding of power · log β. A policy of
        -inf gives 0.

    Source: Ji et al., arXiv 2402.00856, the EXO objective.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> exo_coefficients(target, policy).round(4).tolist()
        [0.2747, -0.2747]
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_reverse_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    return power * weighted_deviation(xp, target, power * policy)


def rank_hinge_coefficients(reward: Array, log_policy: Array) -> Array:
    """RRHF's ranking loss: how many worse ones the policy prefers to it, less how many better it is preferred to.

    A pair counts where the order of the policy's values is strictly the reverse of the rewards'. The cross-entropy on
    the best completion, which RRHF adds, is `best_of_n_coefficients`.

    Args:
        reward: r(x, y), of which only the order counts (…, G).
        log_policy: log q_θ divided by the number of tokens, for RRHF, or anything that is to be ranked (…, G), nats.

    Returns:
        Coefficients (…, G) of `log_policy` as it is passed: whole numbers between −(G − 1) and G − 1; each group's sum
        to 0. Divide by the number of tokens for those of log q_θ.

    Raises:
        ValueError: a value is NaN or infinite, shapes differ, or G < 2.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: constant but for jumps where two values are equal.

    Numerics: exact. Completions whose rewards tie are not compared; at the kink, equal values, a pair counts 0. Memory
        grows with G².

    Source: Yuan et al., RRHF, arXiv 2304.05302, the ranking loss.

    Example:
        >>> import numpy as np
        >>> rank_hinge_coefficients(np.array([3.0, 2.0, 1.0]), np.array([-0.9, -0.5, -0.7])).tolist()
        [2.0, -1.0, -1.0]
    """
    xp = checked_group_namespace(2, reward=reward, log_policy=log_policy)
    is_misranked = xp.astype(misranked_by(xp, reward, log_policy) > 0, reward.dtype)
    return xp.sum(is_misranked, axis=-2) - xp.sum(is_misranked, axis=-1)


def group_relative_advantage(reward: Array, *, is_scaled: bool = True) -> Array:
    """GRPO's advantage of a completion over its group: (r − r̄) / s, with s the sample standard deviation.

    Args:
        reward: r(x, y) (…, G).
        is_scaled: whether to divide by s, whose square is Σ (r − r̄)² / (G − 1).

    Returns:
        Advantages (…, G) that sum to 0 over each group: scaled, their squares sum to G − 1; else in units of the
        reward.

    Raises:
        ValueError: a reward is NaN or infinite, or G < 2.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: the reward is data.

    Numerics: a group of equal rewards has exactly 0, without a small number in the denominator; a shift or a positive
        scale of the rewards cancels at any magnitude whose differences are finite.

    Source: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1, which leaves open which deviation is meant; common
        trainers take the sample's, as here.

    Example:
        >>> import numpy as np
        >>> group_relative_advantage(np.array([1.0, 2.0, 3.0])).tolist()
        [-1.0, 0.0, 1.0]
    """
    xp = checked_group_namespace(2, reward=reward)
    refuse_infinite(xp, reward=reward)
    offset = reward - reward[..., :1]
    centred = offset - xp.mean(offset, axis=-1, keepdims=True)
    if not is_scaled:
        return centred
    largest = xp.max(xp.abs(centred), axis=-1, keepdims=True)
    unit = centred / xp.where(largest > 0, largest, 1.0)
    variance = xp.sum(unit * unit, axis=-1, keepdims=True) / (reward.shape[-1] - 1)
    return unit / xp.where(largest > 0, xp.sqrt(variance), 1.0)


def clipped_surrogate_coefficients(advantage: Array, policy_log_ratio: Array, *, clip: float) -> Array:
    """PPO's clipped surrogate: ρ A, and 0 where ρ has left [1 − clip, 1 + clip] on the side that A favours.

    ρ = exp(policy_log_ratio) is the policy's probability over that of the policy which sampled. Element by element, so
    for completions (…, G) and for tokens (…, T) alike. Nothing is averaged: divide by what your method divides by.

    Args:
        advantage: A, of completions or tokens (…, G); 0 for padding.
        policy_log_ratio: log ρ = log q_θ − log q_old, each of the same completion or token (…, G), nats.
        clip: positive; the ε of PPO.

    Returns:
        Coefficients (…, G), in units of the advantage.

    Raises:
        OverflowError: ρ, or its product with the advantage, exceeds the largest number of its dtype.
        ValueError: a value is NaN or +inf, an advantage is -inf, shapes differ, the last axis is empty, or the clip is
            not positive and finite.
        TypeError: a dtype is neither float32 nor float64.

    Gradient: none needed: compute from a detached log-ratio, or detach the result.

    Numerics: on the boundary itself the clip is not active. A policy of -inf gives 0.

    Source: Schulman et al., PPO, arXiv 1707.06347, equation 7; Shao et al., DeepSeekMath, arXiv 2402.03300, equation 3.

    Example:
        >>> import numpy as np
        >>> log_ratio = np.log(np.array([1.5, 1.5, 1.1]))
        >>> clipped_surrogate_coefficients(np.array([1.0, -1.0, 2.0]), log_ratio, clip=0.2).round(4).tolist()
        [0.0, -1.5, 2.2]
    """
    xp, ratio = checked_surrogate(advantage, policy_log_ratio, clip)
    is_clipped = xp.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    return xp.where(~is_clipped, ratio * advantage, 0.0)


def best_of_n_coefficients(reward: Array) -> Array:
    """Supervised learning on the best completion of each group: 1 on the largest reward, shared equally if several tie.

    Args:
        reward: r(x, y), or anything that orders the group as it does (…, G).

    Returns:
        Coefficients ≥ 0 that sum to 1 over each group (…, G).

    Raises:
        SupportError: the rewards of a group are -inf throughout.
        ValueError: a reward is NaN or +inf, or the group is empty of completions. G = 1 is allowed.
        TypeError: the dtype is neither float32 nor float64.

    Gradient: none needed: the reward is data.

    Numerics: a reward of -inf excludes the completion.

    Source: T11, the limit of `snis_coefficients` for rewards of ever larger scale.

    Example:
        >>> import numpy as np
        >>> best_of_n_coefficients(np.array([1.0, 4.0, 4.0])).tolist()
        [0.0, 0.5, 0.5]
    """
    xp = checked_group_namespace(1, reward=reward)
    return normalized("reward", argmax_log_ratio(xp, "reward", reward), "raise")

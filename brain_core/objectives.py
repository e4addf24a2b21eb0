"""Scalar objectives to minimise, one per estimator: their gradient in log q_θ is minus the estimator's coefficients.

They are written apart from the coefficients, as plain expressions that automatic differentiation can follow, and so
check them. To train, multiply detached coefficients with log-probabilities; that is cheaper and more accurate.
The target, the reward and the normaliser are data: they are not to be differentiated. Shapes, options and errors are
those of the estimator of the same name.
"""

from __future__ import annotations

from brain_core._checks import (
    INF,
    SupportError,
    check_log_values,
    check_positive,
    checked_group_namespace,
    checked_pair,
    refuse,
    refuse_infinite,
    refuse_missing_policy,
)
from brain_core._comparison import kl_terms
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
from brain_core.divergences import self_normalized_kl
from brain_core.logspace import log_sigmoid, log_softmax, remaining_by_stage
from brain_core.weights import normalized


def brain_objective(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """Cross-entropy −Σ α̂ log β̂ of a group, which is `self_normalized_kl` plus the entropy of α̂.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of both ratios.
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `brain_coefficients`.

    Gradient: with respect to the policy it is −`brain_coefficients`.

    Numerics: near the optimum its gradient loses the digits that the coefficients keep.

    Source: eq-25, T0.

    Example:
        >>> import numpy as np
        >>> float(brain_objective(np.array([1.0, 1.0]), np.array([0.0, 0.0])).round(4))
        0.6931
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    is_in_target = target > -INF
    log_policy = xp.where(is_in_target, log_softmax(xp, policy, power), 0.0)
    cross_entropy = -xp.sum(xp.exp(log_softmax(xp, target, power)) * log_policy, axis=-1)
    return xp.where(xp.any(target_log_ratio > -INF, axis=-1), cross_entropy, 0.0)


def snis_objective(target_log_ratio: Array, policy_log_ratio: Array, *, on_empty: OnEmpty = "raise") -> Array:
    """Self-normalised weighted likelihood without a baseline, −Σ α̂ log β.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β, or log q_θ (…, G), nats.
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `snis_coefficients`; SupportError also where the policy is -inf and the
            target is not.

    Gradient: with respect to the policy it is −`snis_coefficients`.

    Source: eq-5.

    Example:
        >>> import numpy as np
        >>> float(snis_objective(np.array([1.0, 1.0]), np.array([-2.0, -4.0])))
        3.0
    """
    xp = checked_group_namespace(1, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    weight = normalized("target_log_ratio", target_log_ratio, on_empty)
    return _weighted_likelihood(xp, weight, target_log_ratio, policy_log_ratio)


def _weighted_likelihood(xp: Namespace, weight: Array, target_log_ratio: Array, policy_log_ratio: Array) -> Array:
    """−Σ weight · log β over the completions that the target does not exclude."""
    if check_log_values(xp, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio):
        refuse_missing_policy(xp, target_log_ratio, policy_log_ratio)
    return -xp.sum(weight * xp.where(target_log_ratio > -INF, policy_log_ratio, 0.0), axis=-1)


def weighted_brain_objective(
    target_log_ratio: Array,
    policy_log_ratio: Array,
    *,
    log_normalizer: Array | float,
    on_empty: OnEmpty = "raise",
) -> Array:
    """Ā · D(Y), the self-normalised KL divergence of a group weighted by its mean importance ratio.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…).
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats, never negative.

    Raises:
        SupportError, ValueError, OverflowError, TypeError: as `weighted_brain_coefficients`.

    Gradient: with respect to the policy it is −`weighted_brain_coefficients`.

    Source: T4c, T8.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.array([0.0, 0.0])
        >>> float(weighted_brain_objective(target, policy, log_normalizer=0.0).round(4))
        0.2616
    """
    divergence = self_normalized_kl(target_log_ratio, policy_log_ratio, on_empty=on_empty)
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio)
    return xp.mean(importance_ratio(xp, target_log_ratio, log_normalizer), axis=-1) * divergence


def dpg_objective(target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """Importance-weighted likelihood −Σ α log β / G, whose mean is KL(target ‖ policy) up to a constant.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β, or log q_θ (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…).

    Returns:
        Objective per group (…), nats.

    Raises:
        ValueError, OverflowError, TypeError: as `dpg_coefficients`; SupportError where the policy is -inf and the
            target is not.

    Gradient: with respect to the policy it is −`dpg_coefficients`.

    Source: eq-4.

    Example:
        >>> import numpy as np
        >>> float(dpg_objective(np.array([0.0, 0.0]), np.array([-2.0, -4.0]), log_normalizer=0.0))
        3.0
    """
    xp = checked_group_namespace(1, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_log_values(xp, target_log_ratio=target_log_ratio)
    weight = importance_ratio(xp, target_log_ratio, log_normalizer) / target_log_ratio.shape[-1]
    return _weighted_likelihood(xp, weight, target_log_ratio, policy_log_ratio)


def gdc_objective(target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """The objective of DPG, on the data that `gdc_coefficients` describes.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β, or log q_θ (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…).

    Returns:
        Objective per group (…), nats.

    Raises:
        ValueError, OverflowError, TypeError, SupportError: as `dpg_objective`.

    Gradient: with respect to the policy it is −`gdc_coefficients`.

    Source: eq-4.

    Example:
        >>> import numpy as np
        >>> float(gdc_objective(np.array([0.0, 0.0]), np.array([-2.0, -4.0]), log_normalizer=0.0))
        3.0
    """
    return dpg_objective(target_log_ratio, policy_log_ratio, log_normalizer=log_normalizer)


def gdcpp_objective(target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float) -> Array:
    """Generalised KL divergence Σ [α log(α/β) − α + β] / G, whose mean is KL(target ‖ policy).

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β itself (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…).

    Returns:
        Objective per group (…), nats, never negative.

    Raises:
        SupportError, ValueError, OverflowError, TypeError: as `gdcpp_coefficients`.

    Gradient: with respect to the policy it is −`gdcpp_coefficients`.

    Numerics: each term is non-negative.

    Source: T8.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.array([0.0, 0.0])
        >>> float(gdcpp_objective(target, policy, log_normalizer=np.log(2.0)).round(4))
        0.1308
    """
    xp = checked_group_namespace(1, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    policy = policy_importance_ratio(xp, target_log_ratio, policy_log_ratio)
    target = importance_ratio(xp, target_log_ratio, log_normalizer)
    log_ratio = normalized_log_ratio(xp, target_log_ratio, policy_log_ratio, log_normalizer)
    return xp.mean(kl_terms(xp, target, policy, log_ratio), axis=-1)


def importance_weighted_rloo_objective(
    target_log_ratio: Array, policy_log_ratio: Array, *, log_normalizer: Array | float
) -> Array:
    """Σ [β · mean of the others' α − α log β] / G, whose mean is KL(target ‖ policy) up to a constant.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β itself (…, G), nats.
        log_normalizer: log of the mean of exp(target_log_ratio) under the proposal, a number or one per group (…).

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, OverflowError, TypeError: as `importance_weighted_rloo_coefficients`.

    Gradient: with respect to the policy it is −`importance_weighted_rloo_coefficients`.

    Source: T8.

    Example:
        >>> import numpy as np
        >>> float(importance_weighted_rloo_objective(np.zeros(2), np.zeros(2), log_normalizer=0.0))
        1.0
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    policy = policy_importance_ratio(xp, target_log_ratio, policy_log_ratio)
    target = importance_ratio(xp, target_log_ratio, log_normalizer)
    baseline = xp.mean(policy * mean_of_others(xp, target, policy), axis=-1)
    return baseline + _weighted_likelihood(xp, target / target.shape[-1], target_log_ratio, policy_log_ratio)


def rloo_objective(reward: Array, policy_log_ratio: Array) -> Array:
    """Minus the sample covariance of reward and log-likelihood over a group.

    Args:
        reward: r(x, y) of completions that the current policy sampled (…, G).
        policy_log_ratio: log β, or log q_θ (…, G), nats.

    Returns:
        Objective per group (…), in units of the reward times nats.

    Raises:
        ValueError, TypeError: as `rloo_coefficients`; ValueError also where the policy is not finite.

    Gradient: with respect to the policy it is −`rloo_coefficients`.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> float(rloo_objective(np.array([1.0, 2.0, 6.0]), np.array([0.0, 0.0, 1.0])))
        -1.5
    """
    xp = checked_group_namespace(2, reward=reward, policy_log_ratio=policy_log_ratio)
    refuse_infinite(xp, reward=reward, policy_log_ratio=policy_log_ratio)
    centred_reward = reward - xp.mean(reward, axis=-1, keepdims=True)
    centred_policy = policy_log_ratio - xp.mean(policy_log_ratio, axis=-1, keepdims=True)
    return -xp.sum(centred_reward * centred_policy, axis=-1) / (reward.shape[-1] - 1)


def argmax_brain_objective(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """−log β̂ of the group's best completion, β̂ ∝ β^power; the mean over the best if they tie.

    Args:
        target_log_ratio: log α, or anything that orders the group as it does (…, G).
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of the policy's ratio, the β of DPO.
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `argmax_brain_coefficients`.

    Gradient: with respect to the policy it is −`argmax_brain_coefficients`.

    Source: thm-6.1.

    Example:
        >>> import numpy as np
        >>> float(argmax_brain_objective(np.array([2.0, 1.0]), np.array([0.0, 0.0])).round(4))
        0.6931
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    return brain_objective(
        argmax_log_ratio(xp, "target_log_ratio", target_log_ratio), policy_log_ratio, power=power, on_empty=on_empty
    )


def dpo_objective(policy_log_ratio: Array, *, power: float = 1.0) -> Array:
    """The DPO loss −log σ(power · Δ) of a pair listed winner first.

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the winner and the loser (…, 2), nats.
        power: positive; the β of DPO.

    Returns:
        Objective per pair (…), nats.

    Raises:
        ValueError, TypeError: as `dpo_coefficients`.

    Gradient: with respect to the policy it is −`dpo_coefficients`.

    Source: thm-6.1.

    Example:
        >>> import numpy as np
        >>> float(dpo_objective(np.array([0.0, 0.0])).round(4))
        0.6931
    """
    return soft_label_dpo_objective(policy_log_ratio, 1.0, power=power)


def soft_label_dpo_objective(policy_log_ratio: Array, preference: Array | float, *, power: float = 1.0) -> Array:
    """−preference · log σ(power · Δ) − (1 − preference) · log σ(−power · Δ).

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the two completions (…, 2), nats.
        preference: probability that the first is the better one, a number or one per pair (…).
        power: positive; the β of DPO.

    Returns:
        Objective per pair (…), nats.

    Raises:
        ValueError, TypeError: as `soft_label_dpo_coefficients`.

    Gradient: with respect to the policy it is −`soft_label_dpo_coefficients`.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> float(soft_label_dpo_objective(np.array([0.0, 0.0]), 0.9).round(4))
        0.6931
    """
    xp, margin, probability = checked_preference(policy_log_ratio, preference, power)
    return -probability * log_sigmoid(xp, margin) - (1 - probability) * log_sigmoid(xp, -margin)


def plackett_luce_objective(policy_log_ratio: Array, *, power: float = 1.0) -> Array:
    """Negative Plackett–Luce log-likelihood of a ranking listed best first.

    Args:
        policy_log_ratio: log q_θ − log of the reference, from the best to the worst (…, G), nats.
        power: positive; the β of DPO.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `plackett_luce_coefficients`.

    Gradient: with respect to the policy it is −`plackett_luce_coefficients`.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> float(np.exp(-plackett_luce_objective(np.array([0.0, 0.0, 0.0]))).round(4))
        0.1667
    """
    xp = checked_group_namespace(2, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    check_ranked(xp, policy_log_ratio)
    remaining, is_chosen = remaining_by_stage(xp, policy_log_ratio)
    return -xp.sum(xp.where(is_chosen, log_softmax(xp, remaining, power), 0.0), axis=(-2, -1))


def ipo_objective(policy_log_ratio: Array, *, power: float) -> Array:
    """The IPO loss (Δ − 1/(2 · power))² of a pair listed winner first.

    Args:
        policy_log_ratio: log q_θ − log of the reference, of the winner and the loser (…, 2), nats.
        power: positive; the τ of IPO.

    Returns:
        Objective per pair (…), square nats, never negative.

    Raises:
        ValueError, TypeError: as `ipo_coefficients`.

    Gradient: with respect to the policy it is −`ipo_coefficients`.

    Source: T11; Azar et al., arXiv 2310.12036, equation 17.

    Example:
        >>> import numpy as np
        >>> float(ipo_objective(np.array([1.0, 0.0]), power=0.1))
        16.0
    """
    _, lead = checked_lead(policy_log_ratio, power)
    return (lead - 1 / (2 * power)) ** 2


def hinge_objective(policy_log_ratio: Array, *, margin: float = 1.0, power: float = 1.0) -> Array:
    """The hinge loss max(0, margin − power · Δ) of a pair listed winner first.

    Args:
        policy_log_ratio: log q_θ − log of the reference, or log q_θ, of the winner and the loser (…, 2), nats.
        margin: positive; the lead that is enough.
        power: positive; the γ of RSO.

    Returns:
        Objective per pair (…), nats, never negative.

    Raises:
        ValueError, TypeError: as `hinge_coefficients`.

    Gradient: with respect to the policy it is −`hinge_coefficients`, at the kink too.

    Source: Zhao et al., SLiC-HF, arXiv 2305.10425; Liu et al., RSO, arXiv 2309.06657, the hinge loss.

    Example:
        >>> import numpy as np
        >>> hinge_objective(np.array([[0.5, 0.0], [1.5, 0.0]])).tolist()
        [0.5, 0.0]
    """
    check_positive("margin", margin)
    xp, lead = checked_lead(policy_log_ratio, power)
    shortfall = margin - power * lead
    return xp.where(shortfall > 0, shortfall, 0.0)


def nca_objective(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """The NCA loss −Σ [α̂ log σ(R) + log σ(−R) / G], R = power · log(q_θ / prior).

    Args:
        target_log_ratio: reward / temperature, or anything whose softmax over the group is α̂ (…, G), nats.
        policy_log_ratio: log q_θ − log of the prior itself, not up to a constant (…, G), nats.
        power: positive; the β of NCA.
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `nca_coefficients`.

    Gradient: with respect to the policy it is −`nca_coefficients`.

    Source: T9; Chen et al., arXiv 2402.05369, the NCA loss.

    Example:
        >>> import numpy as np
        >>> float(nca_objective(np.array([1.0, 1.0]), np.array([0.0, 0.0])).round(4))
        1.3863
    """
    xp, weight, logit, is_counted = checked_contrast(target_log_ratio, policy_log_ratio, power, on_empty)
    terms = weight * log_sigmoid(xp, logit) + log_sigmoid(xp, -logit) / weight.shape[-1]
    return -xp.sum(xp.where(is_counted, terms, 0.0), axis=-1)


def exo_objective(
    target_log_ratio: Array, policy_log_ratio: Array, *, power: float = 1.0, on_empty: OnEmpty = "raise"
) -> Array:
    """Reverse KL divergence of a group, Σ β̂ log(β̂ / α̂), with β̂ ∝ β^power.

    Args:
        target_log_ratio: log α up to a constant per group (…, G), nats.
        policy_log_ratio: log β up to a constant per group (…, G), nats.
        power: positive exponent of the policy's ratio alone, the β_π of EXO.
        on_empty: what to do with a group that the target gives no mass: raise, or let it contribute 0.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `exo_coefficients`.

    Gradient: with respect to the policy it is −`exo_coefficients`.

    Numerics: near the optimum it loses the digits that the coefficients keep, and may be below 0 by a rounding error.

    Source: Ji et al., arXiv 2402.00856, the EXO objective.

    Example:
        >>> import numpy as np
        >>> target, policy = np.log(np.array([3.0, 1.0])), np.log(np.array([1.0, 1.0]))
        >>> float(exo_objective(target, policy).round(4))
        0.1438
    """
    xp = checked_group_namespace(2, target_log_ratio=target_log_ratio, policy_log_ratio=policy_log_ratio)
    check_positive("power", power)
    target, policy = checked_reverse_pair(xp, target_log_ratio, policy_log_ratio, on_empty)
    log_policy, is_in_policy = log_softmax(xp, policy, power), policy > -INF
    log_target = xp.where(is_in_policy, log_softmax(xp, target), 0.0)
    return xp.sum(xp.exp(log_policy) * (xp.where(is_in_policy, log_policy, 0.0) - log_target), axis=-1)


def rank_hinge_objective(reward: Array, log_policy: Array) -> Array:
    """RRHF's ranking loss: Σ max(0, pᵢ − pⱼ) over the pairs with rᵢ < rⱼ, p the `log_policy`.

    Args:
        reward: r(x, y), of which only the order counts (…, G).
        log_policy: log q_θ divided by the number of tokens, for RRHF, or anything that is to be ranked (…, G), nats.

    Returns:
        Objective per group (…), nats, never negative.

    Raises:
        ValueError, TypeError: as `rank_hinge_coefficients`.

    Gradient: with respect to `log_policy` it is −`rank_hinge_coefficients`, at the kinks too.

    Source: Yuan et al., RRHF, arXiv 2304.05302, the ranking loss.

    Example:
        >>> import numpy as np
        >>> float(rank_hinge_objective(np.array([3.0, 2.0, 1.0]), np.array([-0.9, -0.5, -0.7])).round(4))
        0.6
    """
    xp = checked_group_namespace(2, reward=reward, log_policy=log_policy)
    return xp.sum(misranked_by(xp, reward, log_policy), axis=(-2, -1))


def clipped_surrogate_objective(advantage: Array, policy_log_ratio: Array, *, clip: float) -> Array:
    """PPO's clipped surrogate as a loss, −Σ min(ρ A, ρ clipped to [1 − clip, 1 + clip] · A), a sum over the last axis.

    Args:
        advantage: A, of completions or tokens (…, G); 0 for padding.
        policy_log_ratio: log ρ = log q_θ − log q_old, each of the same completion or token (…, G), nats.
        clip: positive; the ε of PPO.

    Returns:
        Objective (…), in units of the advantage; a sum, not a mean.

    Raises:
        OverflowError, ValueError, TypeError: as `clipped_surrogate_coefficients`.

    Gradient: with respect to the policy it is −`clipped_surrogate_coefficients`.

    Source: Schulman et al., PPO, arXiv 1707.06347, equation 7; Shao et al., DeepSeekMath, arXiv 2402.03300, equation 3.

    Example:
        >>> import numpy as np
        >>> log_ratio = np.log(np.array([1.5, 1.5, 1.1]))
        >>> float(clipped_surrogate_objective(np.array([1.0, -1.0, 2.0]), log_ratio, clip=0.2).round(4))
        -1.9
    """
    xp, ratio = checked_surrogate(advantage, policy_log_ratio, clip)
    clipped = xp.clip(ratio, 1 - clip, 1 + clip)
    return -xp.sum(xp.minimum(ratio * advantage, clipped * advantage), axis=-1)


def best_of_n_objective(reward: Array, policy_log_ratio: Array) -> Array:
    """−log q_θ of the completion of largest reward, the mean over the best if they tie.

    Args:
        reward: r(x, y), or anything that orders the group as it does (…, G).
        policy_log_ratio: log q_θ, or log β (…, G), nats.

    Returns:
        Objective per group (…), nats.

    Raises:
        SupportError, ValueError, TypeError: as `best_of_n_coefficients`; SupportError also where the policy is -inf at
            a best completion.

    Gradient: with respect to the policy it is −`best_of_n_coefficients`.

    Source: T11.

    Example:
        >>> import numpy as np
        >>> float(best_of_n_objective(np.array([1.0, 4.0, 4.0]), np.array([-1.0, -2.0, -4.0])))
        3.0
    """
    xp = checked_group_namespace(1, reward=reward, policy_log_ratio=policy_log_ratio)
    weight = normalized("reward", argmax_log_ratio(xp, "reward", reward), "raise")
    if check_log_values(xp, policy_log_ratio=policy_log_ratio):
        is_missing = (weight > 0) & (policy_log_ratio == -INF)
        refuse(xp, is_missing, SupportError, "policy_log_ratio is -inf at a best completion")
    return -xp.sum(weight * xp.where(weight > 0, policy_log_ratio, 0.0), axis=-1)

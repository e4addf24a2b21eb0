"""The update (Algorithm 1, lines 13 to 20): coefficients from `brain_core`, the gradient from autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import brain_core
from llm import processes
from llm.config import AlignConfig
from llm.console import memory_errors
from llm.errors import UserError
from llm.logprob import group_pairs, score, sequence_log_probs
from llm.methods import METHODS, GroupTensors, LogGoodness
from llm.models import Policy
from llm.plugins import load_callable
from llm.records import ScoredGroup, StepStats
from llm.streams import stream
from llm.token_methods import TokenMethod


@dataclass(frozen=True)
class Objective:
    """What a gradient step ascends.

    Attributes:
        config: The run's settings, with the method among them.
        log_goodness: log p(G=1|y,x) as a function of the reward (B, G), up to a constant per group.
    """

    config: AlignConfig
    log_goodness: LogGoodness


def make_optimizer(policy: Policy, config: AlignConfig) -> torch.optim.AdamW:
    """Return AdamW over the adapter."""
    return torch.optim.AdamW(
        policy.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )


def make_log_goodness(config: AlignConfig) -> LogGoodness:
    """Return log p(G=1|y,x) as a function of the reward (B, G), up to a constant per group."""
    if config.goodness == "bradley_terry":
        return lambda reward: brain_core.bradley_terry_log_goodness(reward, temperature=config.temperature)
    if config.goodness == "logistic":
        return brain_core.logistic_log_goodness
    function = load_callable(config.goodness, option="--goodness")
    return lambda reward: _user_log_goodness(function, reward, config.goodness)


def make_objective(config: AlignConfig) -> Objective:
    """Return what the settings say that a gradient step ascends."""
    return Objective(config, make_log_goodness(config))


def draw_batch(buffer: Sequence[ScoredGroup], config: AlignConfig, step: int) -> list[ScoredGroup]:
    """Draw the groups of a gradient step from all collected so far (line 14), without replacement."""
    chosen = stream(config.seed, "batch", step).choice(len(buffer), config.batch, replace=False)
    batch, method = [buffer[i] for i in chosen], METHODS[config.method].tokens
    return method.marked(batch, buffer, config) if method and method.marked else batch


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[ScoredGroup],
    objective: Objective,
    step: int,
) -> StepStats:
    """Make one gradient step; the loss is a mean over the groups, however they are cut into forward passes.

    Several processes take passes in turn, and their gradients are summed before the clipping: so every process makes
    the same step, with the gradient and the diagnostics of the whole batch.

    Raises:
        UserError: The gradient is not finite, or is exactly 0 although the weights ask for a change; or memory ran out.
    """
    config = objective.config
    optimizer.zero_grad()
    rows, weight = config.train_rows, 1 / len(batch)
    chunk = min(max(1, rows // config.n), math.ceil(len(batch) / processes.count()))

    def work(groups: Sequence[ScoredGroup]) -> list[list[float]]:
        with memory_errors("training", f"Lower --train-rows {rows}, or use --activation-checkpointing."):
            return accumulate_gradient(policy, groups, objective, weight, rows=rows).tolist()

    diagnostics = torch.tensor(processes.dealt(batch, chunk, work), dtype=torch.float64).mean(0).tolist()
    processes.sum_gradients(policy.parameters())
    norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm))
    _check_gradient(norm, coefficient_size=diagnostics[-1])
    for settings in optimizer.param_groups:
        settings["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    optimizer.step()
    policy.take_best_control()
    return StepStats(*[*diagnostics, norm, gradient_signal(optimizer), optimizer.param_groups[0]["lr"]])


def gradient_signal(optimizer: torch.optim.Optimizer) -> float:
    """Return the squared norm of Adam's mean gradient over the sum of its mean squares, both corrected for their start.

    It is 1 where successive gradients agree and (1 − β₁)/(1 + β₁) where they are independent noise.
    """
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    mean = square = 0.0
    for state in optimizer.state.values():
        step = float(state["step"])
        mean += float(state["exp_avg"].square().sum()) / (1 - beta1**step) ** 2
        square += float(state["exp_avg_sq"].sum()) / (1 - beta2**step)
    return mean / square if square else 0.0


def accumulate_gradient(
    policy: Policy, groups: Sequence[ScoredGroup], objective: Objective, weight: float, *, rows: int | None = None
) -> torch.Tensor:
    """Add weight · ∇ Σ_groups −Σᵢ cᵢ log q_θ(yᵢ|x) to the gradient, c detached (eq. 12, erratum E13).

    c needs log q_θ of a whole group. Where the groups fit into one pass, it comes from that very pass. Where they do
    not, a first pass without gradient gives it, and the second goes through the completions in parts.

    Args:
        policy: The policy q_θ.
        groups: B groups of G completions.
        objective: What to ascend.
        weight: One over the number of groups in the whole batch.
        rows: Completions in one forward and backward pass; all of them unless given.

    Returns:
        (B, 8) diagnostics per group, in the order of `StepStats`.
    """
    pairs = [pair for group in groups for pair in group_pairs(group)]
    rows = rows or len(pairs)
    if method := METHODS[objective.config.method].tokens:
        return _accumulate_tokens(policy, method, groups, objective, weight, rows)
    if len(pairs) <= rows:
        log_policy = sequence_log_probs(policy, pairs)
        coefficients, diagnostics = group_coefficients(groups, log_policy.detach().cpu(), objective)
        _backward(log_policy, coefficients, weight)
        return diagnostics
    log_policy = torch.tensor(score(policy, pairs, rows), dtype=torch.float64)
    coefficients, diagnostics = group_coefficients(groups, log_policy, objective)
    for start in range(0, len(pairs), rows):
        part = slice(start, start + rows)
        _backward(sequence_log_probs(policy, pairs[part]), coefficients[part], weight)
    return diagnostics


def _accumulate_tokens(
    policy: Policy,
    method: TokenMethod,
    groups: Sequence[ScoredGroup],
    objective: Objective,
    weight: float,
    rows: int,
) -> torch.Tensor:
    """The same for a method of tokens, whose loss is a sum over completions: no pass needs to know of another."""
    config, parts = objective.config, []
    try:
        maximised = _stacked(groups, "reward")
        if METHODS[config.method].uses_goodness:
            maximised = config.temperature * objective.log_goodness(maximised)
        completions = method.rows(groups, maximised, config)
        for start in range(0, len(completions), rows):
            part = method.loss(policy, completions[start : start + rows], config)
            (part.loss * weight).backward()
            parts.append(part._replace(loss=part.loss.detach()))
    except (ValueError, OverflowError) as error:
        raise UserError(_incomputable(error)) from error
    log_policy, size = (torch.cat([getattr(part, name) for part in parts]) for name in ("log_policy", "size"))
    tensors = group_tensors(groups, log_policy.view(len(groups), -1), objective.log_goodness)
    return _diagnostics(tensors, size.view(len(groups), -1).sum(-1))


def group_coefficients(
    groups: Sequence[ScoredGroup], log_policy: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the method's coefficient of every completion; BRAIn's is α̂ − β̂.

    Args:
        groups: B groups of G completions.
        log_policy: (B·G,) float64 log q_θ(y|x), nats, detached.
        objective: What to ascend.

    Returns:
        (B·G,) coefficients, and (B, 8) diagnostics per group, in the order of `StepStats`.
    """
    tensors = group_tensors(groups, log_policy.view(len(groups), -1), objective.log_goodness)
    formula = METHODS[objective.config.method].coefficients
    assert formula is not None
    try:
        coefficients = formula(tensors, objective.config)
    except (ValueError, OverflowError) as error:
        raise UserError(_incomputable(error)) from error
    return coefficients.flatten(), _diagnostics(tensors, coefficients.abs().sum(-1))


def _diagnostics(tensors: GroupTensors, size: torch.Tensor) -> torch.Tensor:
    """(B, 8) what is told of groups, in the order of `StepStats`; `size` is Σ|c| of each."""
    drift = brain_core.likelihood_drift(tensors.log_policy, tensors.log_proposal)
    return torch.stack([*weight_diagnostics(tensors.target, tensors.ratio), drift, size], -1)


def _backward(log_policy: torch.Tensor, coefficients: torch.Tensor, weight: float) -> None:
    """Add the gradient of −weight · Σᵢ cᵢ log q_θ(yᵢ|x), (N,) each."""
    (-(coefficients.to(log_policy.device) * log_policy).sum() * weight).backward()


def group_tensors(groups: Sequence[ScoredGroup], log_policy: torch.Tensor, log_goodness: LogGoodness) -> GroupTensors:
    """Return what coefficients are computed from.

    Args:
        groups: B groups of G completions.
        log_policy: (B, G) float64 log q_θ(y|x), nats, detached.
        log_goodness: Maps rewards to log-goodness.

    Raises:
        UserError: The log-goodness, or what it gives with the log-probs, is NaN or +inf.
    """
    log_prior, log_proposal, reward = (_stacked(groups, name) for name in ("log_prior", "log_proposal", "reward"))
    try:
        goodness = log_goodness(reward)
        target = brain_core.target_log_ratio(log_prior, log_proposal, goodness)
        ratio = brain_core.policy_log_ratio(log_policy, log_proposal)
    except ValueError as error:
        raise UserError(_incomputable(error)) from error
    return GroupTensors(groups, log_policy, log_prior, log_proposal, reward, goodness, target, ratio)


def _incomputable(error: Exception) -> str:
    """What to tell where the weights have no value."""
    return (
        f"The importance weights cannot be computed ({error}). Check the size of the rewards, --temperature and "
        "--goodness."
    )


def weight_diagnostics(target: torch.Tensor, ratio: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what the weights of B groups look like, each (B,): SNKL, ESS of target and policy, largest weight, TV.

    A group without goodness (log-goodness −inf throughout) counts as 0 and leaves the policy alone.
    """
    return (
        brain_core.self_normalized_kl(target, ratio, on_empty="skip"),
        brain_core.effective_sample_size(target, on_empty="skip"),
        brain_core.effective_sample_size(ratio),
        brain_core.self_normalized_weights(target, on_empty="skip").max(-1).values,
        brain_core.total_variation(target, ratio, on_empty="skip"),
        torch.isneginf(target).all(-1).double(),
    )


def _stacked(groups: Sequence[ScoredGroup], name: str) -> torch.Tensor:
    """Stack one array of every group to (B, G)."""
    return torch.from_numpy(np.stack([getattr(group, name) for group in groups]))


def _check_gradient(norm: float, *, coefficient_size: float) -> None:
    """Refuse a gradient that cannot be right."""
    if not np.isfinite(norm):
        raise UserError("The gradient is not finite. Lower --learning-rate, or use a wider --dtype.")
    if norm == 0.0 and coefficient_size > 1e-6:
        raise UserError(
            "The gradient is exactly 0 although completions are to become more or less likely: the adapter is cut off "
            "from the loss. Choose other --lora-targets, or another --quantization."
        )


def _user_log_goodness(function: Callable[..., object], reward: torch.Tensor, name: str) -> torch.Tensor:
    """Call the user's goodness on a NumPy array and check what it returns."""
    try:
        values = np.asarray(function(reward.numpy().copy()), dtype=np.float64)
    except Exception as error:  # whatever the user's function does
        raise UserError(f"--goodness {name}: failed with {type(error).__name__}: {error}.") from error
    if values.shape != tuple(reward.shape) or np.isnan(values).any() or np.isposinf(values).any():
        raise UserError(
            f"--goodness {name}: must return the log-goodness of every reward, an array of shape {tuple(reward.shape)} "
            f"without NaN or +inf; it returned shape {values.shape}."
        )
    return torch.from_numpy(values)

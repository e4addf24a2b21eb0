"""Methods whose loss is one of tokens: GRPO, PPO and Quark.

Once its constants are known (advantages, values before the phase, quantiles), the loss of a batch is a sum over
completions, so that it can be cut into passes anywhere. Most of its gradient is again Σ c ∇ log q_θ, here over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

import brain_core
from llm.config import AlignConfig
from llm.errors import UserError
from llm.logprob import group_pairs, token_outputs, token_values
from llm.models import Policy
from llm.records import Pair, ScoredGroup, TokenOutputs, TokenScores
from llm.shared_prefix import LOGITS_AT_ONCE

HEAD_TOLERANCE = 0.1
"""Mean nats a token by which the head alone may differ from the whole model, as it does in half precision."""


class TokenLoss(NamedTuple):
    """The loss of N completions, with what is told of it.

    Attributes:
        loss: () Σ over the completions; its gradient flows to the policy.
        log_policy: (N,) float64 log q_θ(y|x), nats, detached.
        size: (N,) Σ|c| over the tokens of each.
    """

    loss: torch.Tensor
    log_policy: torch.Tensor
    size: torch.Tensor


@dataclass(frozen=True)
class TokenMethod:
    """A method of tokens.

    Attributes:
        rows: Gives every completion of some groups with the constants of its loss, from the groups and what is
            maximised (B, G): temperature · log-goodness, which for a Bradley-Terry goodness is the reward.
        loss: Gives the loss of some of these rows.
        is_cached: Whether log p and log q' of every token, and the value head's values, are stored with the scores.
        marked: Gives a batch with what depends on the whole buffer that it was drawn from.
    """

    rows: Callable[[Sequence[ScoredGroup], torch.Tensor, AlignConfig], list[Any]]
    loss: Callable[[Policy, list[Any], AlignConfig], TokenLoss]
    is_cached: bool = True
    marked: Callable[[list[ScoredGroup], Sequence[ScoredGroup], AlignConfig], list[ScoredGroup]] | None = None


class GrpoRow(NamedTuple):
    """A completion of T tokens in GRPO.

    Attributes:
        pair: The completion with its prompt.
        share: Weight of each token in the loss of the group.
        advantage: (T,) the completion's, at every token.
        log_prior: (T,) log p, nats.
        log_proposal: (T,) log q', nats.
    """

    pair: Pair
    share: float
    advantage: torch.Tensor
    log_prior: torch.Tensor
    log_proposal: torch.Tensor


class PpoRow(NamedTuple):
    """A completion of T tokens in PPO.

    Attributes:
        pair: The completion with its prompt.
        share: Weight of each token in the loss of the group.
        advantage: (T,) in units of the reward.
        log_proposal: (T,) log q', nats.
        values: (T,) the value head's when the completion was scored.
        returns: (T,) what the value head is to give.
    """

    pair: Pair
    share: float
    advantage: torch.Tensor
    log_proposal: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor


class QuarkRow(NamedTuple):
    """A completion in Quark.

    Attributes:
        pair: The completion with its prompt.
        share: Its weight in the loss of the group.
        quantile: Of its reward, 1 the worst.
    """

    pair: Pair
    share: float
    quantile: int


def grpo_rows(groups: Sequence[ScoredGroup], reward: torch.Tensor, config: AlignConfig) -> list[GrpoRow]:
    """Return completions with their group-relative advantage; each counts alike in its group, whatever its length."""
    found = []
    for group, advantages in zip(groups, brain_core.group_relative_advantage(reward), strict=True):
        tokens = zip(group_pairs(group), _cached(group).log_prior, _cached(group).log_proposal, strict=True)
        for (pair, log_prior, log_proposal), advantage in zip(tokens, advantages, strict=True):
            share = 1 / (len(advantages) * max(1, len(log_prior)))
            columns = (torch.from_numpy(log_prior), torch.from_numpy(log_proposal))
            found.append(GrpoRow(pair, share, advantage.expand(len(log_prior)), *columns))
    return found


def grpo_loss(policy: Policy, rows: list[GrpoRow], config: AlignConfig) -> TokenLoss:
    """PPO's clip of each token's ratio, less `kl_weight` times the k3 estimate p/q − log(p/q) − 1 of KL(q_θ‖p).

    Source: arXiv 2402.03300, eqs. 3 and 4.
    """
    outputs = token_outputs(policy, [row.pair for row in rows])
    log_policy = _constant(outputs)
    log_prior, log_proposal, advantage = (_padded(getattr(r, name) for r in rows) for name in GRPO_COLUMNS)
    surrogate = brain_core.clipped_surrogate_coefficients(advantage, log_policy - log_proposal, clip=config.clip)
    to_prior = config.kl_weight * torch.expm1(log_prior - log_policy)
    return _ascended(outputs, surrogate + to_prior, rows)


GRPO_COLUMNS = ("log_prior", "log_proposal", "advantage")


def ppo_rows(groups: Sequence[ScoredGroup], reward: torch.Tensor, config: AlignConfig) -> list[PpoRow]:
    """Return completions with the advantages and returns of their tokens; the tokens of a group count alike.

    A token's reward is −temperature (log q' − log p); the last one has the completion's beside it, less the mean of
    its group: rewards mean something up to a constant for each prompt only, which a value head would first have to
    learn.
    """
    found = []
    for group, of_group in zip(groups, (reward - reward.mean(-1, keepdim=True)).numpy(), strict=True):
        tokens, lengths = _cached(group), [len(completion.token_ids) for completion in group.completions]
        for index, pair in enumerate(group_pairs(group)):
            log_prior, log_proposal, values = (column[index] for column in tokens)
            rewards = config.temperature * (log_prior - log_proposal)
            rewards[-1] += of_group[index]
            advantage = generalized_advantage(rewards, values, config.gae_lambda)
            columns = map(torch.from_numpy, (advantage, log_proposal, values, advantage + values))
            found.append(PpoRow(pair, 1 / sum(lengths), *columns))
    return found


def generalized_advantage(rewards: np.ndarray, values: np.ndarray, decay: float) -> np.ndarray:
    """Return Σₖ decayᵏ δ(t + k) with δ(t) = r(t) + V(t + 1) − V(t), for every token of a completion.

    Args:
        rewards: (T,) of the tokens; none is discounted.
        values: (T,) of what stands before each token; after the last one the value is 0.
        decay: λ.

    Source: arXiv 1506.02438, eq. 16, with γ = 1.
    """
    surprise = rewards + np.append(values[1:], 0.0) - values
    advantage = np.zeros_like(surprise)
    following = 0.0
    for place in reversed(range(len(surprise))):
        following = advantage[place] = surprise[place] + decay * following
    return advantage


def ppo_loss(policy: Policy, rows: list[PpoRow], config: AlignConfig) -> TokenLoss:
    """PPO's clip of each token's ratio, and `value_weight` times half the square by which the value head is wrong.

    The square is the larger one of the value and the value clipped to within `value_clip` of the old one.

    Source: arXiv 1707.06347, eq. 7; the clip of the value is that of common trainers.
    """
    outputs = token_outputs(policy, [row.pair for row in rows])
    advantage, log_proposal = (_padded(getattr(row, name) for row in rows) for name in ("advantage", "log_proposal"))
    ratio = _constant(outputs) - log_proposal
    surrogate = brain_core.clipped_surrogate_coefficients(advantage, ratio, clip=config.clip)
    found = _ascended(outputs, surrogate, rows)
    value_loss = _value_loss(token_values(policy, outputs), rows, config.value_clip)
    return found._replace(loss=found.loss + config.value_weight * value_loss)


def _value_loss(values: torch.Tensor, rows: list[PpoRow], clip: float) -> torch.Tensor:
    """Half the larger square of the value's (N, C) and the clipped value's error, as a mean over a group's tokens."""
    old, returns = (_padded(getattr(r, name) for r in rows).to(values.device) for name in ("values", "returns"))
    clipped = old + (values - old).clamp(-clip, clip)
    square = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return (_shares(rows).to(values.device) * square).sum() / 2


def quark_rows(groups: Sequence[ScoredGroup], reward: torch.Tensor, config: AlignConfig) -> list[QuarkRow]:
    """Return completions with the quantiles that their batch is marked with."""
    return [
        QuarkRow(pair, 1 / len(group.completions), int(quantile))
        for group in groups
        for pair, quantile in zip(group_pairs(group), _marked(group), strict=True)
    ]


def quark_loss(policy: Policy, rows: list[QuarkRow], config: AlignConfig) -> TokenLoss:
    """−log q_θ under the control of its quantile, and `kl_weight` times KL(p‖q_θ) of each token's distribution.

    The prior sees no control.

    Source: arXiv 2205.13636, eq. 2.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].pair[0].prompt_id, rows[i].quantile))  # share prompts
    found = _quark_loss(policy, [rows[i] for i in order], config)
    back = torch.tensor(order).argsort()
    return TokenLoss(found.loss, found.log_policy[back], found.size[back])


def _quark_loss(policy: Policy, rows: list[QuarkRow], config: AlignConfig) -> TokenLoss:
    """The same of rows in any order; neighbours share the forward pass of prompt and control."""
    pairs = [row.pair for row in rows]
    with torch.no_grad(), policy.as_prior():
        prior = token_outputs(policy, pairs)
    prompts = [policy.with_control(row.pair[0], policy.controls[row.quantile - 1]) for row in rows]
    outputs = token_outputs(policy, [(prompt, row.pair[1]) for prompt, row in zip(prompts, rows, strict=True)])
    divergence = outputs.placed(_divergence(policy, outputs, prior, pairs))
    found = _ascended(outputs, outputs.mask.cpu().double(), rows)
    weighted = (_shares(rows).to(divergence.device) * divergence).sum()
    return found._replace(loss=found.loss + config.kl_weight * weighted)


def mark_quantiles(batch: list[ScoredGroup], pool: Sequence[ScoredGroup], config: AlignConfig) -> list[ScoredGroup]:
    """Return a batch with the quantile of each reward in the pool, by the share that is worse of those that differ.

    So equal rewards are in one quantile, the largest ones in the best and the smallest ones in the worst, however many
    they are; if all are equal, all are the best.
    """
    count, ordered = len(config.quantiles), np.sort(np.concatenate([group.reward for group in pool]))

    def quantile(reward: np.ndarray) -> np.ndarray:
        worse = np.searchsorted(ordered, reward, side="left")
        better = len(ordered) - np.searchsorted(ordered, reward, side="right")
        below = np.where(worse + better > 0, count * worse // np.maximum(1, worse + better), np.inf)
        return np.minimum(1 + below, count).astype(int)

    return [replace(group, quantile=quantile(group.reward)) for group in batch]


def _divergence(policy: Policy, outputs: TokenOutputs, prior: TokenOutputs, pairs: list[Pair]) -> torch.Tensor:
    """(M,) KL(p‖q_θ) of the distribution of each token, in chunks whose logits are computed again for the gradient."""
    tokens = torch.tensor([token for _, completion in pairs for token in completion.token_ids], device=policy.device)
    size = max(1, LOGITS_AT_ONCE // policy.base.get_output_embeddings().out_features)
    chunks = zip(*(part.split(size) for part in (outputs.states, prior.states, tokens)), strict=True)
    found = [checkpoint(_chunk_divergence, policy, *chunk, use_reentrant=False) for chunk in chunks]
    divergence, log_probs = torch.cat(found).unbind(-1)
    if (log_probs - outputs.log_probs[outputs.mask]).abs().mean() > HEAD_TOLERANCE:
        raise UserError(
            f"--method quark: {policy.base.config.model_type} changes what its output layer gives (by a cap or a "
            "scale), which this method does not know of. Use another --method or --model."
        )
    return divergence


def _chunk_divergence(
    policy: Policy, states: torch.Tensor, prior_states: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """(M, 2) KL(p‖q_θ) of the distributions that hidden states (M, d) give, and log q_θ of the tokens (M,)."""
    with torch.no_grad(), policy.as_prior():
        log_prior = _log_distribution(policy, prior_states)
    log_policy = _log_distribution(policy, states)
    divergence = (log_prior.exp() * (log_prior - log_policy)).sum(-1)
    return torch.stack([divergence, log_policy.detach().gather(-1, tokens[:, None])[:, 0]], -1)


def _log_distribution(policy: Policy, states: torch.Tensor) -> torch.Tensor:
    """(M, V) log-probs that hidden states (M, d) give, in float32, or float64 where the states are."""
    logits = policy.base.get_output_embeddings()(states)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def _ascended(outputs: TokenOutputs, coefficients: torch.Tensor, rows: Sequence[Any]) -> TokenLoss:
    """The loss whose gradient is −Σ share · c ∇ log q_θ, of coefficients (N, C) of tokens."""
    shared = _shares(rows) * coefficients
    loss = -(shared.to(outputs.log_probs.device) * outputs.log_probs).sum()
    return TokenLoss(loss, _constant(outputs).sum(-1), shared.abs().sum(-1))


def _constant(outputs: TokenOutputs) -> torch.Tensor:
    """(N, C) log q_θ of tokens, detached, float64, where coefficients are computed."""
    return outputs.log_probs.detach().double().cpu()


def _shares(rows: Sequence[Any]) -> torch.Tensor:
    """(N, 1) the rows' shares."""
    return torch.tensor([row.share for row in rows], dtype=torch.float64)[:, None]


def _padded(columns: Iterable[torch.Tensor]) -> torch.Tensor:
    """(N, C) of N columns of tokens, 0 at padding."""
    return pad_sequence(list(columns), batch_first=True)


def _cached(group: ScoredGroup) -> TokenScores:
    """What is stored of a group's tokens."""
    if group.tokens is None:
        raise ValueError("the scores of these groups are not token by token")
    return group.tokens


def _marked(group: ScoredGroup) -> np.ndarray:
    """The quantiles of a group."""
    if group.quantile is None:
        raise ValueError("the groups of this batch have no quantiles")
    return group.quantile


GRPO = TokenMethod(grpo_rows, grpo_loss)
PPO = TokenMethod(ppo_rows, ppo_loss)
QUARK = TokenMethod(quark_rows, quark_loss, is_cached=False, marked=mark_quantiles)

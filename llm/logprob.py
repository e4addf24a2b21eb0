"""The one scorer: log p, log q' and log q_θ all come from here, in float32 per token and float64 per sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from llm import shared_prefix
from llm.errors import UserError
from llm.models import Policy
from llm.records import Pair, Prompt, ScoredGroup, TokenBatch


def token_batch(pairs: Sequence[Pair], device: torch.device) -> TokenBatch:
    """Lay out prompts and completions as rows, prompts ending and completions beginning at the same column.

    Args:
        pairs: N prompts with a completion each.
        device: Where the batch goes.
    """
    width = max(len(prompt.token_ids) for prompt, _ in pairs)
    length = max(len(completion.token_ids) for _, completion in pairs)
    rows, masks = [], []
    for prompt, completion in pairs:
        left, right = width - len(prompt.token_ids), length - len(completion.token_ids)
        rows.append([0] * left + [*prompt.token_ids, *completion.token_ids] + [0] * right)
        masks.append([0] * left + [1] * (width + length - left - right) + [0] * right)
    input_ids, mask = torch.tensor(rows), torch.tensor(masks)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = TokenBatch(input_ids, mask, positions, input_ids[:, width:], mask[:, width:])
    return TokenBatch(*(tensor.to(device) for tensor in batch))


def token_log_probs(policy: Policy, batch: TokenBatch, *, temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probability of every completion token, in nats.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        batch: N rows with completions of up to C tokens.
        temperature: Divides the logits, as it did in sampling.

    Returns:
        (N, C) float32 (float64 in a float64 model), 0 at padding.

    Gradient: Flows to the adapter.
    """
    length = batch.completion_ids.shape[1]
    logits = policy.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, -(length + 1) : -1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = torch.log_softmax(wide / temperature, dim=-1)
    chosen = log_probs.gather(-1, batch.completion_ids[..., None])[..., 0]
    return chosen * batch.completion_mask


def sequence_log_probs(policy: Policy, pairs: Sequence[Pair], *, temperature: float = 1.0) -> torch.Tensor:
    """Return log q(y|x) of every pair: the sum over its completion's tokens, in nats.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        pairs: N prompts with a completion each. Neighbours with one prompt share its forward pass, if the policy can.
        temperature: Divides the logits, as it did in sampling.

    Returns:
        (N,) float64.

    Raises:
        UserError: The model returned NaN or an infinity, or cannot hold a pair.

    Gradient: Flows to the adapter.
    """
    check_lengths(policy, ((prompt, len(completion.token_ids)) for prompt, completion in pairs))
    if policy.shares_prompts and shared_prefix.pays(policy.base, pairs):
        tokens = shared_prefix.token_log_probs(policy.base, pairs, temperature)
    else:
        tokens = token_log_probs(policy, token_batch(pairs, policy.device), temperature=temperature)
    sums = tokens.double().sum(-1)
    check_finite(sums)
    return sums


def check_finite(log_probs: torch.Tensor) -> None:
    """Refuse log-probs (N,) that no model should give.

    Raises:
        UserError: One is NaN or infinite.
    """
    if not torch.isfinite(log_probs).all():
        raise UserError(
            "The model gave a log-probability that is not finite. Its weights are damaged, "
            "or --learning-rate is too high or --dtype too narrow for it."
        )


def check_lengths(policy: Policy, lengths: Iterable[tuple[Prompt, int]]) -> None:
    """Refuse what the model cannot hold, which it would compute all the same, wrongly.

    Args:
        policy: The policy.
        lengths: Prompts, each with the tokens of its completion.

    Raises:
        UserError: A prompt has no tokens, or has too many beside its completion's.
    """
    for prompt, length in lengths:
        if not prompt.token_ids:
            raise UserError(f"Prompt {prompt.prompt_id}: is empty: it has no tokens. Remove it.")
        if len(prompt.token_ids) + length > policy.context_length:
            raise UserError(
                f"Prompt {prompt.prompt_id}: its {len(prompt.token_ids)} tokens and {length} of a completion do not "
                f"fit the model's context of {policy.context_length}. Shorten the prompt, or lower --max-new-tokens."
            )


@torch.no_grad()
def score(policy: Policy, pairs: Sequence[Pair], rows: int, *, temperature: float = 1.0) -> list[float]:
    """Score completions without gradient, `rows` of them in one call.

    Returns:
        log q(y|x) of each pair, nats.
    """
    scores: list[float] = []
    for start in range(0, len(pairs), rows):
        scores += sequence_log_probs(policy, pairs[start : start + rows], temperature=temperature).tolist()
    return scores


def group_pairs(group: ScoredGroup) -> list[Pair]:
    """Return a group as pairs of its prompt and each completion."""
    return [(group.prompt, completion) for completion in group.completions]

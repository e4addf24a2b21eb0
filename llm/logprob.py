"""The one scorer: log p, log q' and log q_θ all come from here, in float32 per token and float64 per sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from llm import shared_prefix
from llm.errors import UserError
from llm.models import Policy
from llm.records import Pair, Prompt, ScoredGroup, TokenBatch, TokenOutputs


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
            The policy's control, if it has one, comes before the prompts.
        temperature: Divides the logits, as it did in sampling.

    Returns:
        (N,) float64.

    Raises:
        UserError: The model returned NaN or an infinity, or cannot hold a pair.

    Gradient: Flows to the adapter.
    """
    pairs = [(policy.controlled(prompt), completion) for prompt, completion in pairs]
    return token_outputs(policy, pairs, temperature=temperature).log_probs.double().sum(-1)


def token_outputs(policy: Policy, pairs: Sequence[Pair], *, temperature: float = 1.0) -> TokenOutputs:
    """Return what one forward pass tells of every completion token.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        pairs: N prompts, as the model is to see them, with a completion each.
        temperature: Divides the logits, as it did in sampling.

    Raises:
        UserError: The model returned NaN or an infinity, or cannot hold a pair.

    Gradient: Flows to the adapter.
    """
    check_lengths(policy, ((prompt, len(completion.token_ids)) for prompt, completion in pairs))
    if policy.shares_prompts and shared_prefix.pays(policy.base, pairs):
        outputs = shared_prefix.token_outputs(policy.base, pairs, temperature)
    else:
        outputs = _plain_outputs(policy, token_batch(pairs, policy.device), temperature)
    check_finite(outputs.log_probs)
    return outputs


def _plain_outputs(policy: Policy, batch: TokenBatch, temperature: float) -> TokenOutputs:
    """What one forward pass of a row for every completion tells."""
    with _head_inputs(policy.base) as inputs:
        log_probs = token_log_probs(policy, batch, temperature=temperature)
    mask = batch.completion_mask.bool()
    hidden = inputs[0][:, -(mask.shape[1] + 1) : -1].flatten(0, 1)
    return TokenOutputs(log_probs, mask, hidden, mask.flatten().nonzero()[:, 0])


@contextlib.contextmanager
def _head_inputs(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects the hidden states that come to the model's head within this context."""
    seen: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def check_finite(log_probs: torch.Tensor) -> None:
    """Refuse log-probs that no model should give.

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


@torch.no_grad()
def score_tokens(
    policy: Policy, pairs: Sequence[Pair], rows: int, *, temperature: float = 1.0
) -> tuple[list[list[float]], list[list[float]]]:
    """Score completions token by token without gradient, `rows` of them in one call.

    Returns:
        log q of every token of each pair, nats, and the value head's values; these are empty without a value head.
    """
    scores: list[list[float]] = []
    values: list[list[float]] = []
    for start in range(0, len(pairs), rows):
        outputs = token_outputs(policy, pairs[start : start + rows], temperature=temperature)
        scores += _unpadded(outputs.log_probs, outputs.mask)
        if policy.value_head:
            values += _unpadded(token_values(policy, outputs), outputs.mask)
    return scores, values


def token_values(policy: Policy, outputs: TokenOutputs) -> torch.Tensor:
    """Return the value head's values of what stands before every token, (N, C), 0 at padding.

    Gradient: Flows to the value head and the adapter.
    """
    assert policy.value_head is not None
    states = outputs.states.to(policy.value_head.weight.dtype)
    return outputs.placed(policy.value_head(states)[:, 0])


def _unpadded(values: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
    """The values (N, C) of every completion's tokens, without those at padding (mask False)."""
    return [row[:length] for row, length in zip(values.tolist(), mask.sum(-1).tolist(), strict=True)]


def group_pairs(group: ScoredGroup) -> list[Pair]:
    """Return a group as pairs of its prompt and each completion."""
    return [(group.prompt, completion) for completion in group.completions]

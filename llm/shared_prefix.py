"""One forward pass for completions that share their prompts: the tokens of a prompt go through the model once.

All tokens of a call, prompts and completions, lie in one flat row, which every layer but attention sees as it is;
attention takes the row apart (`llm.prefix_attention`). Gradients flow through prompts. The head sees only the places
that predict a completion's token, a few at a time; its logits are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from llm.prefix_attention import Attend, Layout, Span, flat_attention, mask_for, window_holds
from llm.records import Pair, TokenOutputs

LOGITS_AT_ONCE = 2**23
"""Logits that exist at one time: what a call needs does not grow with tokens times vocabulary."""


class FlatRow(NamedTuple):
    """A flat row and what is asked of it.

    Attributes:
        input_ids: (1, T) tokens.
        position_ids: (1, T) positions within prompt and completion.
        layout: Where prompts and completions lie.
        sources: (N, C) places whose hidden states predict the completions' tokens, padded with place 0.
        targets: (N, C) those tokens, padded with 0.
        mask: (N, C) True for tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: Layout
    sources: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor


def pays(model: PreTrainedModel, pairs: Sequence[Pair]) -> bool:
    """Whether some pairs share a prompt, and a sliding window, if the model has one, holds each pair as a whole."""
    if not any(completion.token_ids for _, completion in pairs):
        return False
    if not window_holds(model, max(len(p.token_ids) + len(c.token_ids) for p, c in pairs)):
        return False
    return any(one.token_ids == other.token_ids for (one, _), (other, _) in pairwise(pairs))


def token_log_probs(model: PreTrainedModel, pairs: Sequence[Pair], temperature: float) -> torch.Tensor:
    """Return the log-probability of every completion token, (N, C), in nats: those of `token_outputs`."""
    return token_outputs(model, pairs, temperature).log_probs


def token_outputs(model: PreTrainedModel, pairs: Sequence[Pair], temperature: float) -> TokenOutputs:
    """Return the log-probability of every completion token, with the hidden states that it comes from.

    Args:
        model: The base model, with or without adapter layers, after `attach`.
        pairs: N prompts with a completion each; those of one prompt must be neighbours to share it.
        temperature: Divides the logits.

    Returns:
        Log-probs in float32 (float64 in a float64 model).

    Gradient: Flows to whatever is trainable in the model, through prompts too.
    """
    row = flat_row(pairs, model.device)
    attend = partial(flat_attention, layout=row.layout)
    hidden = hidden_states(model, row.input_ids, row.position_ids, attend)
    sources = row.sources[row.mask]
    found = head_log_probs(model.get_output_embeddings(), hidden, sources, row.targets[row.mask], temperature)
    outputs = TokenOutputs(found, row.mask, hidden, sources)
    return outputs._replace(log_probs=outputs.placed(found))


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor, attend: Attend
) -> torch.Tensor:
    """The last hidden states (T, d) of a flat row of tokens (1, T) whose attention goes as told."""
    mask = mask_for(attend, model.device)
    return model.base_model(
        input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state[0]


def head_log_probs(
    head: torch.nn.Module, hidden: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Log-probs (M,) of tokens from the hidden states (T, d) at their sources, in chunks of bounded memory."""
    states = hidden.index_select(0, sources)
    rows = max(1, LOGITS_AT_ONCE // len(head.weight))  # type: ignore[arg-type]
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        return _FrozenHead.apply(states, head.weight, head.bias, targets, temperature, rows)
    parts = []
    for chunk, tokens in zip(states.split(rows), targets.split(rows), strict=True):
        parts.append(checkpoint(_log_probs, head, chunk, tokens, temperature, use_reentrant=False))
    return torch.cat(parts)


def _log_probs(head: torch.nn.Module, states: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs (M,) of tokens from hidden states (M, d)."""
    log_probs = torch.log_softmax(_wide(head(states), temperature), -1)
    return log_probs.gather(-1, tokens[:, None])[:, 0]


def _wide(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits over the temperature in float32, or float64 where they are."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1.0 else wide / temperature


class _FrozenHead(torch.autograd.Function):
    """Log-probs of tokens under a linear head that is not trained.

    The derivative of a log-prob by its hidden state, Σ (1[token] − p) w / temperature, is formed while the logits are
    there; the backward pass is a product with it. Logits are neither kept nor computed again. The difference is taken
    in float32: in half precision it would be lost where p is near 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        temperature: float,
        rows: int,
    ) -> torch.Tensor:
        log_probs, slopes = [], []
        for chunk, chosen in zip(states.split(rows), tokens.split(rows), strict=True):
            all_tokens = torch.log_softmax(_wide(torch.nn.functional.linear(chunk, weight, bias), temperature), -1)
            log_probs.append(all_tokens.gather(-1, chosen[:, None]))
            if ctx.needs_input_grad[0]:
                by_logits = all_tokens.exp_().neg_().scatter_add_(-1, chosen[:, None], torch.ones_like(log_probs[-1]))
                slopes.append(by_logits.to(weight.dtype) @ weight / temperature)
        ctx.save_for_backward(*slopes)
        return torch.cat(log_probs)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slopes = torch.cat(ctx.saved_tensors)
        return (grads[0][:, None].to(slopes.dtype) * slopes, None, None, None, None, None)


def flat_row(pairs: Sequence[Pair], device: torch.device) -> FlatRow:
    """Lay prompts and completions out in one row; completions of a prompt follow it."""
    ids: list[int] = []
    positions: list[int] = []
    prompts: list[range] = []
    completions: list[range] = []
    spans: list[Span] = []
    for prompt_ids, members in groupby(pairs, key=lambda pair: pair[0].token_ids):
        first, length = len(completions), len(prompt_ids)
        prompts.append(range(len(ids), len(ids) + length))
        ids += prompt_ids
        positions += range(length)
        for _, completion in members:
            completions.append(range(len(ids), len(ids) + len(completion.token_ids)))
            ids += completion.token_ids
            positions += range(length, length + len(completion.token_ids))
        spans.append(Span(len(prompts) - 1, length, first, len(completions)))
    sources = [
        [prompts[span.prompt][-1], *completions[i]][: len(completions[i])]
        for span in spans
        for i in range(span.first, span.last)
    ]
    padded_sources, mask = _padded(sources)
    tokens, (places, _) = torch.tensor(ids), _padded(completions)
    layout = Layout(
        _padded(prompts)[0].to(device), places.to(device), _home([prompts, completions]).to(device), tuple(spans)
    )
    return FlatRow(
        tokens[None].to(device),
        torch.tensor([positions]).to(device),
        layout,
        padded_sources.to(device),
        torch.where(mask, tokens[places], 0).to(device),
        mask.to(device),
    )


class PromptRow(NamedTuple):
    """B prompts in one flat row of T tokens.

    Attributes:
        input_ids: (1, T) tokens.
        position_ids: (1, T) positions within each prompt.
        places: (B, P) places of each prompt's tokens, padded on the right with place 0.
        lengths: (B,) tokens of each.
        home: (T,) where each place lies among the padded prompts, laid end to end.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places: torch.Tensor
    lengths: torch.Tensor
    home: torch.Tensor


def prompt_row(prompts: Sequence[Sequence[int]], device: torch.device) -> PromptRow:
    """Lay prompts out in one row."""
    ends = list(accumulate(map(len, prompts)))
    ranges = [range(end - len(prompt), end) for prompt, end in zip(prompts, ends, strict=True)]
    row = PromptRow(
        torch.tensor([[token for prompt in prompts for token in prompt]]),
        torch.tensor([[place for prompt in prompts for place in range(len(prompt))]]),
        _padded(ranges)[0],
        torch.tensor([len(prompt) for prompt in prompts]),
        _home([ranges]),
    )
    return PromptRow(*(tensor.to(device) for tensor in row))


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of places as a rectangle, padded on the right with place 0, and which entries are not padding."""
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]), mask


def _home(blocks: Sequence[Sequence[range]]) -> torch.Tensor:
    """(T,) where each place of the row lies among some blocks of padded rows, laid end to end."""
    home = torch.empty(sum(len(row) for rows in blocks for row in rows), dtype=torch.long)
    start = 0
    for rows in blocks:
        width = max(map(len, rows))
        for row in rows:
            home[row.start : row.stop] = torch.arange(start, start + len(row))
            start += width
    return home

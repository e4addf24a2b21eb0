"""One forward pass for completions that share their prompts: the tokens of a prompt go through the model once.

All tokens of a call, prompts and completions, lie in one flat row, which every layer but attention sees as it is.
Attention takes the row apart: a prompt attends to itself, causally; the tokens of a completion attend to the keys and
values of their one prompt and, causally, to their own. The two results are merged by their log-sum-exps, which is
exact. Nothing of a prompt is copied, and gradients flow through it. The head sees only the places that predict a
completion's token, a few at a time; its logits are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm.records import Pair

ARCHITECTURES = {"gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3"}
"""Model types for which the tests show equality with the plain path."""

NAME = "shared_prefix"
LOGITS_AT_ONCE = 2**22
"""Logits that exist at one time: what a call needs does not grow with tokens times vocabulary."""


class Span(NamedTuple):
    """One prompt of the row and its completions, which are numbers first to last − 1 of the row's."""

    prompt: int
    length: int
    first: int
    last: int


class Layout(NamedTuple):
    """Where the tokens of B prompts and N completions lie in a flat row of T tokens.

    Attributes:
        prompts: (B, P) places of the prompts' tokens, padded on the right with place 0.
        completions: (N, C) places of the completions' tokens, padded in the same way.
        home: (T,) where each place lies among prompts (B·P) and completions (N·C) laid end to end.
        spans: Which completions belong to which prompt.
    """

    prompts: torch.Tensor
    completions: torch.Tensor
    home: torch.Tensor
    spans: tuple[Span, ...]


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


def attach(model: PreTrainedModel) -> str:
    """Teach a model to read flat rows; other calls go on as before.

    Returns:
        Why it cannot, "" if it can.
    """
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        return f"{kind} is not among the architectures it is proved for ({', '.join(sorted(ARCHITECTURES))})"
    if model.device.type != "cpu":
        return "it runs on the CPU only so far"
    if not hasattr(torch.ops.aten, f"{FLASH}_backward"):
        return f"torch {torch.__version__} has no {FLASH}"
    if kind == "gptj":
        _hook_gptj(model)
    else:
        model.set_attn_implementation(NAME)
    return ""


def pays(model: PreTrainedModel, pairs: Sequence[Pair]) -> bool:
    """Whether some pairs share a prompt, and a sliding window, if the model has one, holds each pair as a whole."""
    if not any(completion.token_ids for _, completion in pairs):
        return False
    window = getattr(model.config, "sliding_window", None)
    if window is not None and any(len(p.token_ids) + len(c.token_ids) > window for p, c in pairs):
        return False
    return any(one.token_ids == other.token_ids for (one, _), (other, _) in pairwise(pairs))


def token_log_probs(model: PreTrainedModel, pairs: Sequence[Pair], temperature: float) -> torch.Tensor:
    """Return the log-probability of every completion token, in nats.

    Args:
        model: The base model, with or without adapter layers, after `attach`.
        pairs: N prompts with a completion each; those of one prompt must be neighbours to share it.
        temperature: Divides the logits.

    Returns:
        (N, C) float32 (float64 in a float64 model), 0 at padding.

    Gradient: Flows to whatever is trainable in the model, through prompts too.
    """
    row = flat_row(pairs, model.device)
    # A mask of four axes reaches attention as it is; were its layout lost on the way, all results would be NaN.
    mask = torch.full((1, 1, 1, 1), torch.nan, device=model.device)
    mask.flat_layout = row.layout  # type: ignore[attr-defined]
    hidden = model.base_model(
        input_ids=row.input_ids, position_ids=row.position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state[0]
    found = _of_head(model.get_output_embeddings(), hidden, row.sources[row.mask], row.targets[row.mask], temperature)
    return torch.zeros(row.mask.shape, dtype=found.dtype, device=found.device).masked_scatter(row.mask, found)


def _of_head(
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
    log_probs = torch.log_softmax(_wide(head(states)) / temperature, -1)
    return log_probs.gather(-1, tokens[:, None])[:, 0]


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, or as they are in float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


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
            all_tokens = torch.log_softmax(_wide(torch.nn.functional.linear(chunk, weight, bias)) / temperature, -1)
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
        _padded(prompts)[0].to(device), places.to(device), _home(prompts, completions).to(device), tuple(spans)
    )
    return FlatRow(
        tokens[None].to(device),
        torch.tensor([positions]).to(device),
        layout,
        padded_sources.to(device),
        torch.where(mask, tokens[places], 0).to(device),
        mask.to(device),
    )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of places as a rectangle, padded on the right with place 0, and which entries are not padding."""
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]), mask


def _home(prompts: Sequence[range], completions: Sequence[range]) -> torch.Tensor:
    """(T,) where each place of the row lies among the padded prompts and then completions, laid end to end."""
    home = torch.empty(sum(map(len, [*prompts, *completions])), dtype=torch.long)
    start = 0
    for rows in (prompts, completions):
        width = max(map(len, rows))
        for row in rows:
            home[row.start : row.stop] = torch.arange(start, start + len(row))
            start += width
    return home


def flat_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, layout: Layout
) -> torch.Tensor:
    """Attention within a flat row.

    Args:
        query: (1, H, T, D).
        key: (1, H_kv, T, D); H is a multiple of H_kv.
        value: (1, H_kv, T, D).
        scale: Factor of the scores.
        layout: Where prompts and completions lie.

    Returns:
        (1, T, H, D).
    """
    repeats = query.shape[1] // key.shape[1]
    prompt_key, prompt_value = _taken(key, layout.prompts), _taken(value, layout.prompts)
    of_prompts = scaled_dot_product_attention(
        _taken(query, layout.prompts), prompt_key, prompt_value, is_causal=True, scale=scale, enable_gqa=repeats > 1
    )
    own_key, own_value = (_taken(s, layout.completions).repeat_interleave(repeats, 1) for s in (key, value))
    of_completions = _CompletionAttention.apply(
        _taken(query, layout.completions), own_key, own_value, prompt_key, prompt_value, scale, layout.spans
    )
    parts = (part.transpose(1, 2).flatten(0, 1) for part in (of_prompts, of_completions))
    return torch.cat(list(parts)).index_select(0, layout.home)[None]


def _taken(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The states (1, H, T, D) at places (B, P), as (B, H, P, D)."""
    heads, size = states.shape[1], states.shape[3]
    return states[0].index_select(1, places.flatten()).view(heads, *places.shape, size).transpose(0, 1)


class _CompletionAttention(torch.autograd.Function):
    """Attention of completions (N, H, C, D) to themselves, causally, and to their prompt's keys (B, H_kv, P, D).

    The backward pass of each part, given the merged output and the merged log-sum-exp, is its share of the whole one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prompt_key: torch.Tensor,
        prompt_value: torch.Tensor,
        scale: float,
        spans: tuple[Span, ...],
    ) -> torch.Tensor:
        own, own_size = _flash(query, key, value, 0.0, True, scale=scale)
        folds = [_Fold(span, query, prompt_key) for span in spans]
        parts = [
            _flash(fold(query), *fold.of_prompt(prompt_key, prompt_value), 0.0, False, scale=scale) for fold in folds
        ]
        prompt = torch.cat([fold.undo(out) for fold, (out, _) in zip(folds, parts, strict=True)])
        prompt_size = torch.cat([fold.undo(size[..., None]) for fold, (_, size) in zip(folds, parts, strict=True)])[
            ..., 0
        ]
        size = torch.logaddexp(own_size, prompt_size)
        shares = [(part - size).exp()[..., None].to(own.dtype) for part in (own_size, prompt_size)]
        out = own * shares[0] + prompt * shares[1]
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, out, size)
        ctx.scale, ctx.folds = scale, folds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, prompt_key, prompt_value, out, size = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_query, to_key, to_value = _flash_backward(grad, query, key, value, out, size, 0.0, True, scale=ctx.scale)
        to_prompt_key, to_prompt_value = torch.zeros_like(prompt_key), torch.zeros_like(prompt_value)
        through_prompt = []
        for fold in ctx.folds:
            folded = [fold(states) for states in (grad, query, out, size[..., None])]
            to_folded, *to_prompt = _flash_backward(
                *folded[:2], *fold.of_prompt(prompt_key, prompt_value), folded[2], folded[3][..., 0], 0.0, False,
                scale=ctx.scale,
            )  # fmt: skip
            through_prompt.append(fold.undo(to_folded))
            for whole, part in zip((to_prompt_key, to_prompt_value), to_prompt, strict=True):
                whole[fold.span.prompt, :, : fold.span.length] = part[0]
        return to_query + torch.cat(through_prompt), to_key, to_value, to_prompt_key, to_prompt_value, None, None


class _Fold:
    """The completions of a prompt as one long query of its attention: (n, H, C, D) to (1, H_kv, H/H_kv · n · C, D)."""

    def __init__(self, span: Span, query: torch.Tensor, prompt_key: torch.Tensor) -> None:
        self.span, self.heads, self.length, self.groups = span, query.shape[1], query.shape[2], prompt_key.shape[1]

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        part = states[self.span.first : self.span.last]
        shape = (len(part), self.groups, self.heads // self.groups, self.length, states.shape[3])
        return part.reshape(shape).permute(1, 2, 0, 3, 4).reshape(1, self.groups, -1, states.shape[3])

    def undo(self, states: torch.Tensor) -> torch.Tensor:
        """Back to (n, H, C, D)."""
        n, size = self.span.last - self.span.first, states.shape[3]
        apart = states.reshape(self.groups, self.heads // self.groups, n, self.length, size)
        return apart.permute(2, 0, 1, 3, 4).reshape(n, self.heads, self.length, size)

    def of_prompt(self, *states: torch.Tensor) -> list[torch.Tensor]:
        """What belongs to the prompt of (B, H_kv, P, D), without padding."""
        return [s[self.span.prompt : self.span.prompt + 1, :, : self.span.length] for s in states]


FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def _flash(*inputs: Any, **options: Any) -> Any:
    """Attention and its log-sum-exp."""
    return getattr(torch.ops.aten, FLASH)(*inputs, **options)


def _flash_backward(*inputs: Any, **options: Any) -> Any:
    """The gradients by query, key and value."""
    return getattr(torch.ops.aten, f"{FLASH}_backward")(*inputs, **options)


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What a model calls: flat attention where the mask carries a layout, the library's own elsewhere."""
    layout = getattr(attention_mask, "flat_layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get("dropout"):
        raise ValueError("attention dropout is on: the weights must be a function of the policy, not of a random part")
    return flat_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling, layout), None


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _hook_gptj(model: PreTrainedModel) -> None:
    """Give each attention module of GPT-J, which has no attention interface, an `_attn` that knows flat rows."""
    for module in model.modules():
        if type(module).__name__ == "GPTJAttention":
            module._attn = partial(_gptj_attention, module._attn, float(module.scale_attn))


def _gptj_attention(
    plain: Any,
    divisor: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Any]:
    """`GPTJAttention._attn`, which divides scores and computes them in float32 at least."""
    layout = getattr(attention_mask, "flat_layout", None)
    if layout is None:
        return plain(query, key, value, attention_mask)
    dtype = torch.promote_types(value.dtype, torch.float32)
    out = flat_attention(query.to(dtype), key.to(dtype), value.to(dtype), 1 / divisor, layout)
    return out.transpose(1, 2).to(value.dtype), None

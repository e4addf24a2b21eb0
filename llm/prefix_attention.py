"""Attention where completions share their prompts: exact, and nothing of a prompt is copied.

A prompt attends to itself, causally. The tokens of a completion attend to the keys and values of their one prompt and,
causally, to their own; the two results are merged by their log-sum-exps, which is exact. A model is taught this through
the library's attention interface (GPT-J, which has none, through its `_attn`). What belongs together travels with
the attention mask, so that calls without it go on as before, and recomputation in the backward pass finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ARCHITECTURES = {"gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3"}
"""Model types for which the tests show equality with the plain path."""

NAME = "shared_prefix"
FLASH = "_scaled_dot_product_flash_attention_for_cpu"

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(layer, query (1, H, T, D), key (1, H_kv, T, D), value, scale) to (1, T, H, D), for a row of T tokens."""


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


def attach(model: PreTrainedModel) -> str:
    """Teach a model to attend as `mask_for` says; other calls go on as before.

    Returns:
        Why it cannot, "" if it can.
    """
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        return f"{kind} is not among the architectures it is proved for ({', '.join(sorted(ARCHITECTURES))})"
    if kind == "gptj":
        _hook_gptj(model)
    else:
        model.set_attn_implementation(NAME)
    return ""


def window_holds(model: PreTrainedModel, length: int) -> bool:
    """Whether a sliding window, if the model has one, holds so many tokens as a whole."""
    window = getattr(model.config, "sliding_window", None)
    return window is None or length <= window


def mask_for(attend: Attend, device: torch.device) -> torch.Tensor:
    """Return an attention mask that makes an attached model attend in this way.

    A mask of four axes reaches attention as it is; were its attribute lost on the way, all results would be NaN.
    """
    mask = torch.full((1, 1, 1, 1), torch.nan, device=device)
    mask.attend = attend  # type: ignore[attr-defined]
    return mask


def flat_attention(
    layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, layout: Layout
) -> torch.Tensor:
    """Attention within a flat row of prompts and their completions, with gradient.

    Args:
        layer: Ignored; every layer attends alike.
        query: (1, H, T, D).
        key: (1, H_kv, T, D); H is a multiple of H_kv.
        value: (1, H_kv, T, D).
        scale: Factor of the scores.
        layout: Where prompts and completions lie.

    Returns:
        (1, T, H, D).
    """
    prompt_key, prompt_value = _taken(key, layout.prompts), _taken(value, layout.prompts)
    of_prompts = _causal(_taken(query, layout.prompts), prompt_key, prompt_value, scale)
    repeats = query.shape[1] // key.shape[1]
    own_key, own_value = (_taken(s, layout.completions).repeat_interleave(repeats, 1) for s in (key, value))
    of_completions = _CompletionAttention.apply(
        _taken(query, layout.completions), own_key, own_value, prompt_key, prompt_value, scale, layout.spans
    )
    parts = (part.transpose(1, 2).flatten(0, 1) for part in (of_prompts, of_completions))
    return torch.cat(list(parts)).index_select(0, layout.home)[None]


class GroupCache:
    """Keys and values for completions that grow together: of B prompts, once each, and of the tokens of R completions.

    Its two methods are ways to attend (`mask_for`): `prefill`, once, for a row of all the prompts' tokens, then `step`
    for a row of one new token of every completion.

    Args:
        prompts: (B, P) places of the prompts' tokens in the row, padded on the right.
        lengths: (B,) tokens of each prompt.
        home: (T,) where each place lies among the padded prompts, laid end to end.
        n: Completions of each prompt.
        capacity: Tokens that a completion may have.
    """

    def __init__(self, prompts: torch.Tensor, lengths: torch.Tensor, home: torch.Tensor, n: int, capacity: int) -> None:
        self._places, self._home, self._capacity = prompts, home, capacity
        self._prompt_states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own_states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._length = 0
        padding = torch.arange(prompts.shape[1], device=prompts.device) >= lengths[:, None]
        self._bias = torch.zeros(padding.shape, device=prompts.device).masked_fill_(padding, -torch.inf)
        self._is_padded = bool(padding.any())
        self._arrange(torch.arange(len(prompts), device=prompts.device).repeat_interleave(n))

    def prefill(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Let the prompts attend to themselves, and keep their keys and values."""
        states = _taken(key, self._places).contiguous(), _taken(value, self._places).contiguous()
        self._prompt_states.append(states)
        shape = (len(self._of), key.shape[1], self._capacity, key.shape[3])
        self._own_states.append((key.new_empty(shape), value.new_empty(shape)))
        out = _causal(_taken(query, self._places), *states, scale)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self._home)[None]

    def advance(self) -> None:
        """Make room for one more token of every completion."""
        self._length += 1

    def step(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Let the newest token of every completion attend to its prompt and to the completion's tokens so far."""
        own_key, own_value = (states[:, :, : self._length] for states in self._own_states[layer])
        own_key[:, :, -1], own_value[:, :, -1] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        rows, heads, groups, size = query.shape[2], query.shape[1], key.shape[1], query.shape[3]
        folded = query[0].transpose(0, 1).reshape(rows, groups, heads // groups, size)
        own, own_size = _products(folded, own_key, own_value, False, scale)  # faster than the kernel for single tokens
        prompt, prompt_size = self._of_prompts(folded, *self._prompt_states[layer], scale)
        share = torch.sigmoid(prompt_size - own_size)[..., None].to(own.dtype)
        return torch.lerp(own, prompt, share).view(1, rows, heads, size)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these completions only."""
        for layer, states in enumerate(self._own_states):
            self._own_states[layer] = tuple(_kept(s, rows, self._length) for s in states)  # type: ignore[assignment]
        of = self._of[rows]
        groups, of = of.unique(return_inverse=True)
        if len(groups) < len(self._bias):
            self._bias = self._bias[groups]
            for layer, (key, value) in enumerate(self._prompt_states):  # one by one: all at once would be there twice
                self._prompt_states[layer] = (key[groups], value[groups])
        self._arrange(of)

    def _arrange(self, of: torch.Tensor) -> None:
        """Lay the completions, which are of the prompts `of` (R,), into a rectangle of one row a prompt."""
        counts = of.bincount(minlength=len(self._bias))
        column = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts)[of]
        self._of, self._width = of, int(counts.max())
        self._cell = of * self._width + column
        self._rows = torch.zeros(len(self._bias) * self._width, dtype=torch.long, device=of.device)
        self._rows[self._cell] = torch.arange(len(of), device=of.device)

    def _of_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of (R, H_kv, H/H_kv, D) to the prompts' (B, H_kv, P, D), and its log-sum-exp."""
        prompts, groups, repeats, size = len(key), query.shape[1], query.shape[2], query.shape[3]
        apart = query.index_select(0, self._rows).view(prompts, self._width, groups, repeats, size)
        folded = apart.transpose(1, 2).reshape(prompts, groups, self._width * repeats, size)
        bias = self._bias[:, None, None].to(query.dtype) if self._is_padded else None
        out, log_sum = _kernel(query)[0](folded, key, value, False, scale, bias)
        out = out.view(prompts, groups, self._width, repeats, size).transpose(1, 2).flatten(0, 1)
        log_sum = log_sum.reshape(prompts, groups, self._width, repeats).transpose(1, 2).flatten(0, 1)
        return out.index_select(0, self._cell), log_sum.index_select(0, self._cell)


def _kept(states: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
    """Some rows of a buffer (R, H, C, D), of which only so many tokens are filled."""
    kept = states.new_empty((len(rows), *states.shape[1:]))
    kept[:, :, :length] = states[:, :, :length].index_select(0, rows)
    return kept


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention (B, H, P, D) of padded rows."""
    shares_heads = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shares_heads)


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
        attention, _ = _kernel(query)
        own, own_size = attention(query, key, value, True, scale)
        folds = [_Fold(span, query, prompt_key) for span in spans]
        parts = [attention(fold(query), *fold.of_prompt(prompt_key, prompt_value), False, scale) for fold in folds]
        prompt = torch.cat([fold.undo(out) for fold, (out, _) in zip(folds, parts, strict=True)])
        sizes = [fold.undo(size[..., None])[..., 0] for fold, (_, size) in zip(folds, parts, strict=True)]
        prompt_size = torch.cat(sizes)
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
        _, slopes = _kernel(query)
        to_query, to_key, to_value = slopes(grad, query, key, value, out, size, is_causal=True, scale=ctx.scale)
        to_prompt_key, to_prompt_value = torch.zeros_like(prompt_key), torch.zeros_like(prompt_value)
        through_prompt = []
        for fold in ctx.folds:
            folded_grad, folded_query, *result = (fold(states) for states in (grad, query, out, size[..., None]))
            of_prompt = fold.of_prompt(prompt_key, prompt_value)
            to_folded, *to_prompt = slopes(
                folded_grad, folded_query, *of_prompt, result[0], result[1][..., 0], is_causal=False, scale=ctx.scale
            )
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


def _kernel(states: torch.Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Attention with its log-sum-exp, and its gradient: a fused kernel on the CPU, matrix products elsewhere."""
    if states.device.type == "cpu" and hasattr(torch.ops.aten, f"{FLASH}_backward"):
        return _flash, _flash_backward
    return _products, _products_backward


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float, bias: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (N, H, T, D) and its log-sum-exp (N, H, T); `bias` is added to the scores."""
    return getattr(torch.ops.aten, FLASH)(query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale)


def _flash_backward(*inputs: Any, is_causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients by query, key and value, from (grad, query, key, value, out, size)."""
    return getattr(torch.ops.aten, f"{FLASH}_backward")(*inputs, 0.0, is_causal, scale=scale)


def _wide(states: torch.Tensor) -> torch.Tensor:
    """In float32, or as they are in float64."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _scores(query: torch.Tensor, key: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    """Scores, formed in float32 at least, −inf where a token would see a later one."""
    scores = (_wide(query) * scale) @ _wide(key).transpose(-1, -2)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    return scores


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float, bias: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_flash` computes, on any device."""
    scores = _scores(query, key, is_causal, scale)
    if bias is not None:
        scores += bias
    size = scores.logsumexp(-1)
    return (scores - size[..., None]).exp().to(value.dtype) @ value, size


def _products_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    size: torch.Tensor,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `_flash_backward` computes, on any device."""
    weights = (_scores(query, key, is_causal, scale) - size[..., None]).exp()
    by_value = weights.to(grad.dtype).transpose(-1, -2) @ grad
    mean = (_wide(grad) * out).sum(-1, keepdim=True)
    by_scores = (weights * (_wide(grad) @ _wide(value).transpose(-1, -2) - mean) * scale).to(query.dtype)
    return by_scores @ key, by_scores.transpose(-1, -2) @ query, by_value


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What a model calls: as the mask says, where it says so, and the library's own attention elsewhere."""
    attend = getattr(attention_mask, "attend", None)
    if attend is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get("dropout"):
        raise ValueError("attention dropout is on: the weights must be a function of the policy, not of a random part")
    return attend(module.layer_idx, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _hook_gptj(model: PreTrainedModel) -> None:
    """Give each attention module of GPT-J, which has no attention interface, an `_attn` that heeds the mask."""
    for module in model.modules():
        if type(module).__name__ == "GPTJAttention":
            module._attn = partial(_gptj_attention, module._attn, module.layer_idx, float(module.scale_attn))


def _gptj_attention(
    plain: Any,
    layer: int,
    divisor: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Any]:
    """`GPTJAttention._attn`, which divides scores and computes them in float32 at least."""
    attend = getattr(attention_mask, "attend", None)
    if attend is None:
        return plain(query, key, value, attention_mask)
    dtype = torch.promote_types(value.dtype, torch.float32)
    out = attend(layer, query.to(dtype), key.to(dtype), value.to(dtype), 1 / divisor)
    return out.transpose(1, 2).to(value.dtype), None

"""Decoding: the next token's logits for completions that grow together, by a shared prefix or by plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from llm.models import Policy
from llm.prefix_attention import GroupCache, window_holds
from llm.records import Prompt
from llm.shared_prefix import hidden_states, prompt_row


class Decoder(Protocol):
    """R completions that grow by one token at a time."""

    logits: torch.Tensor
    """(R, V) logits of the next token."""

    def step(self, tokens: torch.Tensor) -> None:
        """Append a token (R,) to every completion."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these completions only; `logits` are those of the next step."""
        ...


def make_decoder(policy: Policy, prompts: Sequence[Prompt], n: int, capacity: int) -> Decoder:
    """Forward the prompts, once each, and make ready to decode n completions of each, neighbours of one another.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        prompts: B prompts.
        n: Completions of each; R is B · n.
        capacity: Tokens that a completion may have.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts) + capacity
    if policy.shares_prompts and window_holds(policy.base, longest):
        return SharedPrefixDecoder(policy.base, prompts, n, capacity)
    return PlainDecoder(policy, prompts, n)


class SharedPrefixDecoder:
    """Keeps one copy of a prompt's keys and values for all its completions, and all completions in one flat row."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], n: int, capacity: int) -> None:
        row = prompt_row([prompt.token_ids for prompt in prompts], model.device)
        self._model, self._cache = model, GroupCache(row.places, row.lengths, row.home, n, capacity)
        hidden = hidden_states(model, row.input_ids, row.position_ids, self._cache.prefill)
        last = row.places.gather(1, row.lengths[:, None] - 1)[:, 0]
        self.logits = self._head(hidden[last]).repeat_interleave(n, 0)
        self._positions = row.lengths.repeat_interleave(n)

    def step(self, tokens: torch.Tensor) -> None:
        """Append a token (R,) to every completion."""
        self._cache.advance()
        self.logits = self._head(hidden_states(self._model, tokens[None], self._positions[None], self._cache.step))
        self._positions = self._positions + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these completions only."""
        self._cache.keep(rows)
        self._positions = self._positions[rows]

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        return self._model.get_output_embeddings()(states)


class PlainDecoder:
    """One row a completion, with its own copy of the prompt's keys and values, for any model of the library."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], n: int) -> None:
        self._model, self._cache = policy.model, DynamicCache(config=policy.model.config)
        input_ids, mask = (tensor.to(policy.device) for tensor in _left_padded(prompts))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(input_ids, mask, positions)
        self._cache.batch_repeat_interleave(n)
        self.logits = logits.repeat_interleave(n, 0)
        self._mask, self._positions = mask.repeat_interleave(n, 0), positions[:, -1:].repeat_interleave(n, 0)

    def step(self, tokens: torch.Tensor) -> None:
        """Append a token (R,) to every completion."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._positions = self._positions + 1
        self.logits = self._forward(tokens[:, None], self._mask, self._positions)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these completions only."""
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _forward(self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The logits after the last column."""
        return self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            logits_to_keep=1,
        ).logits[:, -1]


def _left_padded(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prompts' tokens and mask (B, P), padded on the left."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    rows = [[0] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts]
    masks = [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    return torch.tensor(rows), torch.tensor(masks)

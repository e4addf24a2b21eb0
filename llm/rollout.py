"""Sampling: completions of prompts from the policy, each token by inverse CDF of its own named uniform draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from llm.decoding import Decoder, make_decoder
from llm.logprob import check_finite, check_lengths
from llm.models import Policy
from llm.records import Completion, Prompt
from llm.stopping import text_before_stop, tokens_until_stop
from llm.streams import stream

COMPACT_EVERY = 8
"""Steps after which completions that ended leave the batch; nothing waits for them in between."""
ANCHOR = 16
"""Tokens of the prompt before which a completion is decoded."""
BLOCK = 256
"""Tokens in a block of the inverse CDF's first level."""


@torch.no_grad()
def sample_groups(
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int,
    *,
    draw: tuple[int, str, int],
    max_new_tokens: int,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
) -> list[list[Completion]]:
    """Sample n completions of every prompt, all in one batch.

    Neither top-k nor top-p is applied, whatever the model's generation settings say: a truncated proposal would break
    the support condition of Theorem 4.3.

    Args:
        policy: The proposal; within `policy.as_prior()`, the prior.
        prompts: B prompts, prefilled once each, after the policy's control, if it has one.
        n: Completions of each.
        draw: (seed, stage, iteration), the beginning of every draw's name.
        max_new_tokens: A completion that did not end by then is cut.
        temperature: Divides the logits.
        stop: Strings that end a completion; the tokens up to the end of the first one belong to it, its text is cut
            before it.

    Returns:
        B groups of n completions.

    Raises:
        UserError: A prompt is empty or does not fit the context beside its completion, or the model gives NaN.
    """
    prompts = [policy.controlled(prompt) for prompt in prompts]
    check_lengths(policy, [(prompt, max_new_tokens) for prompt in prompts])
    uniforms = _uniforms(draw, prompts, n, max_new_tokens).to(policy.device)
    tokens, log_probs = _sample_tokens(policy, prompts, n, uniforms, temperature, stop)
    completions = [
        _completion(policy, prompts[row // n], row % n, ids, of_tokens, stop)
        for row, (ids, of_tokens) in enumerate(zip(tokens, log_probs, strict=True))
    ]
    check_finite(torch.tensor([completion.sampler_log_prob for completion in completions]))
    return [completions[start : start + n] for start in range(0, len(completions), n)]


@dataclass
class _Sampler:
    """Completions of a block in the making.

    Attributes:
        decoder: Gives the logits of those that have not ended.
        alive: (R,) the numbers of those.
        tokens: (B·n, C) tokens drawn so far.
        log_probs: (B·n, C) their log-probs, nats, float64.
        lengths: (B·n,) how many tokens were drawn of each; those after an end are meaningless.
        done: (R,) which of those alive have ended since the last compaction.
    """

    decoder: Decoder
    alive: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor
    lengths: torch.Tensor
    done: torch.Tensor

    @classmethod
    def of(cls, decoder: Decoder, rows: int, capacity: int) -> _Sampler:
        """Begin."""
        device = decoder.logits.device
        alive, tokens = torch.arange(rows, device=device), torch.zeros(rows, capacity, dtype=torch.long, device=device)
        return cls(decoder, alive, tokens, tokens.double(), torch.zeros_like(alive), torch.zeros_like(alive).bool())

    def draw(self, step: int, uniform: torch.Tensor, temperature: float, end_ids: torch.Tensor) -> torch.Tensor:
        """Draw the next token (R,) of every completion alive."""
        token, log_prob = inverse_cdf(self.decoder.logits, uniform, temperature)
        self.tokens[self.alive, step], self.log_probs[self.alive, step] = token, log_prob
        self.lengths[self.alive] = step + 1
        self.done |= torch.isin(token, end_ids)
        return token

    def end_at_stops(self, policy: Policy, prompts: Sequence[Prompt], length: int, stop: Sequence[str]) -> None:
        """Mark the completions whose text holds a stop string."""
        n = len(self.tokens) // len(prompts)
        rows = zip(self.alive.tolist(), self.tokens[self.alive, :length].tolist(), strict=True)
        found = [tokens_until_stop(ids, _decoder(policy, prompts[row // n]), stop) is not None for row, ids in rows]
        self.done |= torch.tensor(found, device=self.done.device)

    def compact(self, token: torch.Tensor) -> torch.Tensor:
        """Let those that have ended leave, and return the newest tokens of the others."""
        kept = (~self.done).nonzero()[:, 0]
        if 0 < len(kept) < len(self.done):
            self.decoder.keep(kept)
        self.alive, self.done = self.alive[kept], self.done[kept]
        return token[kept]


def _sample_tokens(
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int,
    uniforms: torch.Tensor,
    temperature: float,
    stop: Sequence[str],
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the tokens drawn for each of B·n completions, and their log-probs; those after an end are meaningless."""
    rows, capacity = uniforms.shape
    end_ids = torch.tensor(policy.end_ids, device=policy.device)
    sampler = _Sampler.of(make_decoder(policy, prompts, n, capacity), rows, capacity)
    for step in range(capacity):
        token = sampler.draw(step, uniforms[sampler.alive, step], temperature, end_ids)
        if (step + 1) % COMPACT_EVERY == 0:
            if stop:
                sampler.end_at_stops(policy, prompts, step + 1, stop)
            token = sampler.compact(token)
        if step + 1 == capacity or not len(token):
            break
        sampler.decoder.step(token)
    lengths = sampler.lengths.tolist()
    rows_of = (sampler.tokens.tolist(), sampler.log_probs.tolist())
    tokens, log_probs = ([row[:k] for row, k in zip(rows, lengths, strict=True)] for rows in rows_of)
    return tokens, log_probs


def inverse_cdf(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row: the first whose cumulative probability exceeds the uniform.

    In two levels, a block of tokens and a token of the block, so that no cumulative sum runs over the vocabulary.

    Args:
        logits: (N, V).
        uniform: (N,) float64 in [0, 1).
        temperature: Divides the logits.

    Returns:
        (N,) tokens, of which one of probability 0 is never drawn, and (N,) their log-probs, nats, float64 (NaN where
        the logits are).
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = torch.softmax(scores if temperature == 1.0 else scores / temperature, -1)
    if surplus := weights.shape[1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, BLOCK - surplus))
    weights = weights.view(len(logits), -1, BLOCK)
    block, before, total = _first_above(weights.sum(-1), uniform)
    within = weights[torch.arange(len(logits), device=logits.device), block]
    place, _, _ = _first_above(within, (uniform * total - before) / within.double().sum(-1))
    chosen = within.gather(-1, place[:, None])[:, 0].double()
    return block * BLOCK + place, chosen.log() - total.log()


def _first_above(weights: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the first column whose cumulative weight (N, K) exceeds a share of the total, the sum before, the total.

    A column without weight is never returned, unless there is no weight at all.
    """
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1]
    column = torch.searchsorted(cumulative, (share * total)[:, None], right=True)[:, 0]
    last_possible = (cumulative < total[:, None]).sum(-1)
    column = torch.minimum(column, last_possible).clamp(max=weights.shape[1] - 1)
    before = torch.where(column > 0, cumulative.gather(-1, (column[:, None] - 1).clamp(min=0))[:, 0], 0.0)
    return column, before, total


def _uniforms(draw: tuple[int, str, int], prompts: Sequence[Prompt], n: int, count: int) -> torch.Tensor:
    """Return the named uniform draws (B·n, C) of every completion's tokens."""
    seed, stage, iteration = draw
    rows = [stream(seed, stage, iteration, p.prompt_id, i).random(count) for p in prompts for i in range(n)]
    return torch.from_numpy(np.stack(rows))


def _completion(
    policy: Policy, prompt: Prompt, sample_id: int, ids: list[int], log_probs: list[float], stop: Sequence[str]
) -> Completion:
    """Cut a row at its end, an end token or a stop string, which belongs to it, and decode it."""
    ends = [place + 1 for place, token in enumerate(ids) if token in policy.end_ids]
    kept = ids[: ends[0]] if ends else ids
    written = kept[:-1] if ends else kept
    decode = _decoder(policy, prompt)
    stopped = tokens_until_stop(written, decode, stop) if stop else None
    if stopped is not None:
        kept = written = written[:stopped]
    text = decode(written) if stopped is None else text_before_stop(decode(written), stop)
    reason = "length" if stopped is None and not ends else "stop"
    return Completion(prompt.prompt_id, sample_id, tuple(kept), reason, text, math.fsum(log_probs[: len(kept)]))


def _decoder(policy: Policy, prompt: Prompt) -> Callable[[Sequence[int]], str]:
    """What decodes a prompt's completions."""
    return partial(completion_text, policy, prompt.token_ids)


def completion_text(policy: Policy, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """Decode a completion in its place after the prompt's last tokens, so that a leading space survives."""
    decode = partial(policy.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    anchor = list(prompt_ids[-ANCHOR:])
    return decode([*anchor, *completion_ids])[len(decode(anchor)) :]

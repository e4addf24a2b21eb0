"""Sampling: completions of prompts from the policy, each token by inverse CDF of its own named uniform draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from llm.models import Policy
from llm.records import Completion, Prompt
from llm.streams import stream


@torch.no_grad()
def sample_groups(
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int,
    *,
    draw: tuple[int, str, int],
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[list[Completion]]:
    """Sample n completions of every prompt, all prompts in one batch.

    Neither top-k nor top-p is applied, whatever the model's generation settings say: a truncated proposal would break
    the support condition of Theorem 4.3.

    Args:
        policy: The proposal; within `policy.as_prior()`, the prior.
        prompts: B prompts, prefilled once each.
        n: Completions of each.
        draw: (seed, stage, iteration), the beginning of every draw's name.
        max_new_tokens: A completion that did not end by then is cut.
        temperature: Divides the logits.

    Returns:
        B groups of n completions.
    """
    uniforms = _uniforms(draw, prompts, n, max_new_tokens).to(policy.device)
    tokens = _sample_tokens(policy, prompts, n, uniforms, temperature).tolist()
    completions = [_completion(policy, prompts[row // n], row % n, ids) for row, ids in enumerate(tokens)]
    return [completions[start : start + n] for start in range(0, len(completions), n)]


def _sample_tokens(
    policy: Policy, prompts: Sequence[Prompt], n: int, uniforms: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return sampled tokens (B·n, C); what follows an end token is meaningless."""
    end_ids = torch.tensor(policy.end_ids, device=policy.device)
    input_ids, mask = (tensor.to(policy.device) for tensor in _left_padded(prompts))
    cache = DynamicCache(config=policy.model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = policy.model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
    )
    cache.batch_repeat_interleave(n)
    logits = output.logits[:, -1].repeat_interleave(n, 0)
    mask, positions = mask.repeat_interleave(n, 0), positions[:, -1:].repeat_interleave(n, 0)
    done = torch.zeros(len(logits), dtype=torch.bool, device=policy.device)
    columns = []
    for step in range(uniforms.shape[1]):
        token = inverse_cdf(logits.float() / temperature, uniforms[:, step])
        columns.append(token)
        done |= torch.isin(token, end_ids)
        if done.all() or step + 1 == uniforms.shape[1]:
            break
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), positions + 1
        logits = policy.model(
            input_ids=token[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits[:, -1]
    return torch.stack(columns, 1)


def inverse_cdf(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token a row: the first whose cumulative probability exceeds the uniform.

    Args:
        logits: (N, V).
        uniform: (N,) float64 in [0, 1).

    Returns:
        (N,) tokens; one of probability 0 is never drawn.
    """
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    last_possible = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum(token, last_possible)


def _uniforms(draw: tuple[int, str, int], prompts: Sequence[Prompt], n: int, count: int) -> torch.Tensor:
    """Return the named uniform draws (B·n, C) of every completion's tokens."""
    seed, stage, iteration = draw
    rows = [stream(seed, stage, iteration, p.prompt_id, i).random(count) for p in prompts for i in range(n)]
    return torch.from_numpy(np.stack(rows))


def _left_padded(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prompts' tokens and mask (B, P), padded on the left."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    rows = [[0] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts]
    masks = [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    return torch.tensor(rows), torch.tensor(masks)


def _completion(policy: Policy, prompt: Prompt, sample_id: int, ids: list[int]) -> Completion:
    """Cut a row at its first end token, which belongs to it, and decode it."""
    ends = [place for place, token in enumerate(ids) if token in policy.end_ids]
    kept = ids[: ends[0] + 1] if ends else ids
    text = completion_text(policy, prompt.token_ids, kept[:-1] if ends else kept)
    return Completion(prompt.prompt_id, sample_id, tuple(kept), "stop" if ends else "length", text)


def completion_text(policy: Policy, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """Decode a completion in its place after the prompt, so that a leading space survives."""
    decode = policy.tokenizer.decode
    head = decode(list(prompt_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    both = decode([*prompt_ids, *completion_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return both[len(head) :]

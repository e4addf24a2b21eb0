"""Control tokens: what a policy of Quark reads before its prompt, one sequence for each quantile of the reward.

They are ordinary text in the tokens that the model has: a new row of the vocabulary would take probability from the
others, and so change the prior.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from llm.config import AlignConfig
from llm.errors import UserError


def control_texts(config: AlignConfig) -> list[str]:
    """Return the text of each quantile's control, the worst first."""
    return [config.quark_prefix.replace("{}", name) for name in config.quantiles]


def control_tokens(tokenizer: PreTrainedTokenizerBase, config: AlignConfig) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each quantile's control, the worst first.

    Raises:
        UserError: The tokenizer cannot write them, or writes two of them alike.
    """
    found = tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in control_texts(config))
    if len(set(found)) < len(found) or any(tokenizer.unk_token_id in ids for ids in found):
        raise UserError(
            f"--quark-prefix {config.quark_prefix!r}: this model's tokenizer has no token for some part of it, or the "
            "same tokens for two --quantiles. Choose texts of characters that it has."
        )
    return found


def likeness(controls: Sequence[tuple[int, ...]], embeddings: torch.Tensor) -> float:
    """Return how alike the quantiles' controls are to the model: the mean cosine between the embeddings of two.

    A control's embedding is the mean over the tokens between what all controls begin and end with. Tokens that a model
    never saw have nearly one embedding, so that it cannot tell controls of them apart.

    Args:
        controls: Tokens of two or more controls, all different.
        embeddings: (V, d) the model's input embeddings.
    """
    start = _common(controls)
    end = _common([control[start:][::-1] for control in controls])
    own = [control[start : len(control) - end] or control for control in controls]
    means = torch.stack([embeddings[list(tokens)].detach().float().mean(0) for tokens in own])
    cosines = torch.nn.functional.cosine_similarity(means[:, None], means, dim=-1)
    count = len(controls)
    return float((cosines.sum() - count) / (count * (count - 1)))


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with."""
    return len(list(itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))))


def with_control(token_ids: tuple[int, ...], control: tuple[int, ...], beginning: int | None) -> tuple[int, ...]:
    """Return a prompt's tokens after a control, which comes after the beginning-of-sequence token if there is one.

    Args:
        token_ids: (P,) the prompt.
        control: The control.
        beginning: The beginning-of-sequence token.
    """
    first = int(bool(token_ids) and token_ids[0] == beginning)
    return (*token_ids[:first], *control, *token_ids[first:])

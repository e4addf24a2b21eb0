"""Control tokens: what a policy of Quark reads before its prompt, one sequence for each quantile of the reward.

They are ordinary text in the tokens that the model has: a new row of the vocabulary would take probability from the
others, and so change the prior.
"""

from __future__ import annotations

from string import ascii_lowercase

from transformers import PreTrainedTokenizerBase

from llm.config import AlignConfig
from llm.errors import UserError


def control_texts(config: AlignConfig) -> list[str]:
    """Return the text of each quantile's control, the worst first; the best has the grade a."""
    grades = reversed(ascii_lowercase[: config.quantiles])
    return [config.quark_prefix.replace("{}", grade) for grade in grades]


def control_tokens(tokenizer: PreTrainedTokenizerBase, config: AlignConfig) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each quantile's control, the worst first.

    Raises:
        UserError: The tokenizer cannot write them, or writes two of them alike.
    """
    found = tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in control_texts(config))
    if len(set(found)) < len(found) or any(tokenizer.unk_token_id in ids for ids in found):
        raise UserError(
            f"--quark-prefix {config.quark_prefix!r}: this model's tokenizer has no token for some part of it, or the "
            "same tokens for two grades. Choose a text of characters that the model knows."
        )
    return found


def with_control(token_ids: tuple[int, ...], control: tuple[int, ...], beginning: int | None) -> tuple[int, ...]:
    """Return a prompt's tokens after a control, which comes after the beginning-of-sequence token if there is one.

    Args:
        token_ids: (P,) the prompt.
        control: The control.
        beginning: The beginning-of-sequence token.
    """
    first = int(bool(token_ids) and token_ids[0] == beginning)
    return (*token_ids[:first], *control, *token_ids[first:])

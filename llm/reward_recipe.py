"""Reward models that want their text in a form of their own and are read at a token of their own.

Sequence-classification models of this kind carry their recipe in config.json, under `brain_reward`;
`python -m llm.convert_reward` writes it there for the two reward models of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from llm.console import say
from llm.errors import UserError
from llm.rewards import CONFIG_KEY, HeldReward, Prompt, context_length, read_model

READS = ("before-first-eos", "first-eos")


@dataclass(frozen=True)
class Recipe:
    """How a reward model wants its text, and where in it the score is read.

    Attributes:
        opening: What stands before the prompt.
        closing: What a prompt ends in, and gets where it does not, spaces aside. The completion follows as it is, with
            whatever spaces the prompt or it has there.
        read: `before-first-eos`: at the last token before the first end token; a text that is too long loses its end,
            and is read at its last token where no end token survives. `first-eos`: at the first end token; a text that
            is too long loses its beginning, so that the end token stays.
        max_length: Longest text, in tokens, end token included.
    """

    opening: str
    closing: str
    read: str
    max_length: int

    def text(self, prompt: str, completion: str, end: str) -> str:
        """Return the text that the model scores, with the end token's text after it."""
        bare = prompt.rstrip(" ")
        if self.closing and bare.endswith(self.closing.rstrip(" ")):
            completion = prompt[len(bare) :] + completion
            prompt = bare.removesuffix(self.closing.rstrip(" "))
        return self.opening + prompt + self.closing + completion + end

    def read_ids(self, ids: list[int], end: int) -> tuple[list[int], bool]:
        """Cut a text where its score is read; what comes later cannot change a causal model's score.

        Args:
            ids: (T,) tokens of the text, which ends in the end token.
            end: The end token.

        Returns:
            the tokens up to and including the one at which the score is read, and whether the text was too long.
        """
        if self.read == "first-eos":
            kept = ids[-self.max_length :]
            return kept[: kept.index(end) + 1], len(ids) > self.max_length
        kept = ids[: self.max_length]
        return (kept[: kept.index(end)], False) if end in kept else (kept, True)


def find_recipe(source: str) -> Recipe | None:
    """Return the recipe that a model's config.json carries, if it has one.

    Args:
        source: A directory or hub name.

    Raises:
        UserError: It carries one that makes no sense.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError):
        return None  # whoever loads the model says what is wrong
    return None if CONFIG_KEY not in config else _checked_recipe(config[CONFIG_KEY], source)


def _checked_recipe(values: Any, source: str) -> Recipe:
    """The recipe of a config.json."""
    kinds = {"opening": str, "closing": str, "read": str, "max_length": int}
    as_expected = isinstance(values, dict) and {name: type(value) for name, value in values.items()} == kinds
    if not as_expected or values["read"] not in READS:
        raise UserError(
            f"{source}: {CONFIG_KEY} in its config.json is {values!r}; expected the texts opening and closing, read "
            f"(one of {', '.join(READS)}) and the whole number max_length. Mend it, or convert the checkpoint again."
        )
    if values["max_length"] < 2:
        raise UserError(f"{source}: max_length {values['max_length']} in its config.json must be 2 or more.")
    return Recipe(**values)


class RecipeReward(HeldReward):
    """A sequence-classification model read by its recipe.

    The score itself, a product with the output layer's weights, is float32 whatever the model's precision. Where the
    score is read is decided here on unpadded tokens, not by the library's pooling. Published models of this kind were
    trained on cut texts, so a text that is too long is cut as in their training instead of refused; the first time
    that happens is told, and all are counted.

    Attributes:
        counts: `cut_texts`, too long, and `ended_prompts`, which hold the end token, at which reading ends.
    """

    def __init__(self, path: str, recipe: Recipe, *, device: str, batch_size: int, dtype: str = "auto") -> None:
        model, tokenizer = _load(path, recipe, device=device, dtype=dtype)
        super().__init__(path, model, tokenizer, device=device, batch_size=batch_size)
        self.counts.update(cut_texts=0, ended_prompts=0)
        self._recipe = recipe

    def rows(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each prompt with its completion, up to the token at which the score is read.

        Raises:
            UserError: A prompt is a chat, or a text has nothing before its end token.
        """
        pairs = enumerate(zip(prompts, completions, strict=True))
        texts = [self._text(prompt, completion, index) for index, (prompt, completion) in pairs]
        end = self._tokenizer.eos_token_id
        tokens = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        read = [self._recipe.read_ids(ids, end) for ids in tokens]
        for index, (ids, _) in enumerate(read):
            if not ids:
                raise UserError(f"reward {self.name}, row {index}: nothing stands before the end token.")
        self._count("cut_texts", sum(was_cut for _, was_cut in read), self._cut_message())
        return [ids for ids, _ in read]

    def _text(self, prompt: Prompt, completion: str, index: int) -> str:
        """The text of one row."""
        if not isinstance(prompt, str):
            raise UserError(
                f"reward {self.name}, row {index}: the prompt is a chat, but this reward model was trained on plain "
                "text of one layout. Give the prompts as text."
            )
        end = self._tokenizer.eos_token
        self._count("ended_prompts", int(end in prompt), f"a prompt holds {end}, where the score is read already")
        return self._recipe.text(prompt, completion, end)

    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """The scores of some rows, (B,)."""
        device = self.model.device
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([[len(row)] for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths).long()
        return last_token_scores(self.model, ids.to(device), mask.to(device))

    def _cut_message(self) -> str:
        """What happens to a text that is too long."""
        lost = "beginning" if self._recipe.read == "first-eos" else "end"
        return f"a text is longer than {self._recipe.max_length} tokens and is scored without its {lost}"

    def _count(self, kind: str, number: int, message: str) -> None:
        """Count texts that are not read in full, and tell of the first."""
        if number and not self.counts[kind]:
            say(f"reward {self.name}: {message} (told once).")
        self.counts[kind] += number


def last_token_scores(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The scores of rows at their last tokens.

    Args:
        model: A causal sequence-classification model with one output, `score`, without a bias.
        input_ids: (B, T) token ids, padded on either side with anything.
        attention_mask: (B, T) 1 for tokens, 0 for padding.

    Returns:
        (B,) float32 scores, the last product in float32 whatever the model's precision.
    """
    trunk = model.base_model
    hidden = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (places * attention_mask).argmax(dim=1)
    read = hidden[torch.arange(len(hidden), device=hidden.device), last]
    return read.float() @ model.score.weight[0].float()


def _load(path: str, recipe: Recipe, *, device: str, dtype: str) -> tuple[Any, Any]:
    """The model and its tokenizer, which must fit each other and the recipe."""
    model, tokenizer, report = read_model(path, device=device, dtype=dtype)
    if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise UserError(f"{path}: its weights do not fit its config.json ({', '.join(wrong[:5])}). Convert it again.")
    check_tokenizer(tokenizer, model.config, path)
    if recipe.max_length > context_length(model, tokenizer):
        raise UserError(
            f"{path}: max_length {recipe.max_length} in its config.json is more than the model's context of "
            f"{context_length(model, tokenizer)} tokens. Lower it."
        )
    return model, tokenizer


def check_tokenizer(tokenizer: Any, config: Any, source: str) -> None:
    """Check that a tokenizer is there (an empty one stands in for missing files) and ends texts as the model expects.

    Raises:
        UserError: It is missing, or another model's.
    """
    end = config.get_text_config().eos_token_id
    if tokenizer.eos_token_id != end or not end < len(tokenizer) <= config.vocab_size:
        raise UserError(
            f"{source}: its tokenizer is missing or another model's: it has {len(tokenizer)} tokens and end token "
            f"{tokenizer.eos_token_id}, where config.json has {config.vocab_size} and {end}. Put the right tokenizer "
            "files there."
        )

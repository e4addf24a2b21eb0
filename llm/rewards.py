"""Rewards: a user's function, or a sequence-classification model, behind one call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from llm.errors import UserError
from llm.models import first_line, folder_fingerprint
from llm.plugins import load_callable

CONFIG_KEY = "brain_reward"
"""Where a model's config.json keeps its recipe, if it has one (`llm.reward_recipe`)."""
Prompt = str | list[dict[str, str]]
"""A text, or chat messages such as {"role": "user", "content": "…"}."""


class Reward(Protocol):
    """What aligns: a number for each completion of a prompt; higher is better."""

    name: str

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Return the rewards, (N,) float64 and finite, of N completions and their prompts."""
        ...

    def fingerprint(self) -> str:
        """Return a sha256 that changes when the reward does."""
        ...


def load_reward(spec: str, *, device: str, batch_size: int) -> Reward:
    """Load a reward.

    Args:
        spec: `package.module:function`, called on the lists (prompts, completions); or the directory or hub name of
            a sequence-classification model with one output, read by its recipe where it carries one; or the hub name,
            with @REVISION where it matters, of one of the published checkpoints in `llm.convert_reward`, which is
            converted once.
        device: where a model runs, such as `cpu` or `cuda:0`.
        batch_size: completions in one forward pass of a model.

    Returns:
        the reward.

    Raises:
        UserError: The spec names nothing that can be loaded, or a model with more or fewer than one output.
    """
    if ":" in spec and not Path(spec).exists():
        return FunctionReward(spec)
    from llm.convert_reward import normal_form
    from llm.reward_recipe import RecipeReward, find_recipe

    path = normal_form(spec)
    recipe = find_recipe(path)
    if recipe is not None:
        return RecipeReward(path, recipe, device=device, batch_size=batch_size)
    return ModelReward(path, device=device, batch_size=batch_size)


class FunctionReward:
    """A reward that is a user's function."""

    def __init__(self, spec: str, *, option: str = "--reward") -> None:
        self.name = spec
        self._function = load_callable(spec, option=option)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Return the rewards, (N,) float64.

        Raises:
            UserError: The function raised, or returned anything but N finite numbers.
        """
        try:
            values = self._function(list(prompts), list(completions))
        except UserError:
            raise
        except Exception as error:  # whatever the user's function does
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"reward {self.name} failed with {type(error).__name__}: {error} ({last.filename}, line {last.lineno})."
            ) from error
        return checked_rewards(values, len(completions), self.name)

    def fingerprint(self) -> str:
        """Return the sha256 of the name and of the source file that defines the function."""
        return function_fingerprint(self.name, self._function)


class ModelReward:
    """A reward that is a sequence-classification model, in float32."""

    def __init__(self, path: str, *, device: str, batch_size: int) -> None:
        self.name = path
        self._batch_size = batch_size
        self._model, self._tokenizer = load_classifier(path)
        self._model.to(device).eval()
        self._limit = context_length(self._model, self._tokenizer)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Return the rewards, (N,) float64.

        Raises:
            UserError: A prompt with its completion is longer than the model's context, or the model's output is not
                finite.
        """
        pairs = zip(prompts, completions, strict=True)
        rows = [self._input(prompt, completion, index) for index, (prompt, completion) in enumerate(pairs)]
        scores = scores_by_length(rows, self._batch_size, functools.partial(score, self._model))
        return checked_rewards(scores, len(rows), self.name)

    def _input(self, prompt: Prompt, completion: str, index: int) -> list[int]:
        """The token ids of one completion with its prompt."""
        where = f"reward {self.name}, row {index}"
        ids = reward_input(self._tokenizer, prompt, completion, where=where)
        check_length(ids, self._limit, where=where)
        return ids

    def fingerprint(self) -> str:
        """Return the sha256 of the model's files; of its weights and configuration if it came from the hub."""
        return source_fingerprint(self.name, self._model)


class ReferenceSubtracted:
    """A reward minus the reward of the prompt's reference: 0 is as good as the reference.

    The difference is the same for all completions of a prompt, so the self-normalised weights of Bradley-Terry
    goodness stay as they are; those of logistic goodness do not.
    """

    def __init__(self, reward: Reward) -> None:
        self.name = f"{reward.name} minus the reference's"
        self._reward = reward

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return the differences, (N,) float64.

        Args:
            prompts: N prompts; each prompt's reference is rewarded once, however many completions it has.
            completions: N completions.
            references: The prompts' references, N texts.

        Raises:
            UserError: The reward raised it.
        """
        pairs = list(zip(prompts, references, strict=True))
        keys = [json.dumps(pair) for pair in pairs]  # chat messages cannot be keys themselves
        distinct = dict(zip(keys, pairs, strict=True))
        baselines = self._reward([p for p, _ in distinct.values()], [r for _, r in distinct.values()])
        baseline_of = dict(zip(distinct, baselines, strict=True))
        return self._reward(prompts, completions) - np.array([baseline_of[key] for key in keys])

    def fingerprint(self) -> str:
        """Return a sha256 that changes with the reward and is not the reward's own."""
        return hashlib.sha256(f"minus reference {self._reward.fingerprint()}".encode()).hexdigest()


def scores_by_length(
    rows: Sequence[list[int]], batch_size: int, score_rows: Callable[[list[list[int]]], torch.Tensor]
) -> np.ndarray:
    """Score rows in batches of similar length, so that little is padding.

    Args:
        rows: Token ids, N rows.
        batch_size: Rows in one call.
        score_rows: Gives a batch's scores, (B,).

    Returns:
        (N,) float64 scores, in the order of the rows.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = np.empty(len(rows))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        scores[chosen] = score_rows([rows[index] for index in chosen]).double().cpu().numpy()
    return scores


def checked_rewards(values: Any, count: int, name: str) -> np.ndarray:
    """Return what a reward gave as (N,) float64.

    Args:
        values: what it returned.
        count: N.
        name: the reward's name, for messages.

    Raises:
        UserError: Not N numbers, or a number that is NaN or infinite.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    try:
        rewards = list(values)
    except TypeError:
        raise UserError(f"reward {name} returned {type(values).__name__}; it must return a list of numbers.") from None
    if len(rewards) != count:
        raise UserError(
            f"reward {name} returned {len(rewards)} values for {count} completions; it must return one each."
        )
    checked = [_checked_reward(value, row, name) for row, value in enumerate(rewards)]
    return np.asarray(checked, dtype=np.float64)


def _checked_reward(value: Any, row: int, name: str) -> float:
    """One reward as a finite float."""
    array = np.asarray(value.float() if isinstance(value, torch.Tensor) else value)
    if array.ndim or array.dtype.kind not in "biuf":
        raise UserError(f"reward {name}, row {row}: returned {value!r}, which is not a number.")
    if not np.isfinite(array):
        raise UserError(f"reward {name}, row {row}: returned {float(array)}; every reward must be finite.")
    return float(array)


def load_classifier(path: str, *, fresh_output: bool = False) -> tuple[Any, Any]:
    """Load a model with one output per sequence, in float32, and its tokenizer.

    Args:
        path: directory or hub name.
        fresh_output: whether a model without such an output, as a causal language model is, may get a new one,
            drawn from torch's global generator.

    Returns:
        the model and the tokenizer, which agree on the padding token: the end token where there is no other.

    Raises:
        UserError: It cannot be loaded, lacks a trained output, has several or a recipe, or no token can serve as
            padding.
    """
    options = {"num_labels": 1} if fresh_output else {}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be loaded as a sequence-classification model with one output ({first_line(error)})."
        ) from error
    if report["missing_keys"] and not fresh_output:
        raise UserError(
            f"{path}: is no trained reward model, for its weights lack {', '.join(sorted(report['missing_keys']))}. "
            "Train one with python -m llm.reward_model."
        )
    if model.config.num_labels != 1:
        raise UserError(f"{path}: has {model.config.num_labels} outputs; a reward model has one (num_labels 1).")
    if hasattr(model.config, CONFIG_KEY):
        raise UserError(
            f"{path}: carries a recipe of its own ({CONFIG_KEY} in its config.json), by which it can serve as --reward "
            "but not be trained on. Start from another model."
        )
    _agree_on_padding(path, model, tokenizer)
    return model, tokenizer


def _agree_on_padding(path: str, model: Any, tokenizer: Any) -> None:
    """Give tokenizer and model the same padding token; the model reads its score before the padding."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{path}: its tokenizer has neither a padding nor an end token. Set pad_token and save it.")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def reward_input(tokenizer: Any, prompt: Prompt, completion: str, *, where: str) -> list[int]:
    """Tokenise a prompt with its completion as one string.

    Args:
        tokenizer: the reward model's.
        prompt: a text, after which the completion and the end token follow; or chat messages, which go through the
            chat template with the completion as the assistant's answer.
        completion: the text to be rewarded.
        where: what to name in a message.

    Returns:
        token ids (T,).

    Raises:
        UserError: The prompt is a chat and the tokenizer has no chat template.
    """
    if not isinstance(prompt, str):
        text = _chat_text(tokenizer, prompt, completion, where)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + completion)["input_ids"]
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _chat_text(tokenizer: Any, messages: list[dict[str, str]], completion: str, where: str) -> str:
    """The chat with the completion as the assistant's answer, as text."""
    if tokenizer.chat_template is None:
        raise UserError(f"{where}: the prompt is a chat, but the reward model's tokenizer has no chat template.")
    try:
        return tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": completion}], tokenize=False)
    except jinja2.TemplateError as error:
        raise UserError(f"{where}: the reward model's chat template refuses this prompt ({error}).") from error


def is_chat(prompt: Any) -> bool:
    """Whether a value is a list of chat messages, each with a role and a text."""
    return isinstance(prompt, list) and bool(prompt) and all(_is_message(message) for message in prompt)


def _is_message(message: Any) -> bool:
    """Whether a value is a chat message."""
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def context_length(model: Any, tokenizer: Any) -> int:
    """The longest input in tokens that both the model and its tokenizer allow."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, limit or tokenizer.model_max_length)


def check_length(ids: list[int], limit: int, *, where: str) -> None:
    """Refuse an input that is longer than the context; it is never cut silently.

    Raises:
        UserError: It is longer.
    """
    if len(ids) > limit:
        raise UserError(
            f"{where}: prompt and completion are {len(ids)} tokens long, more than the reward model's context of "
            f"{limit}. Use shorter prompts or completions, or a reward model with a longer context."
        )


def score(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """The model's output for each row of token ids, padded on the right.

    Args:
        model: a sequence-classification model with one output.
        rows: token ids, B rows.

    Returns:
        (B,) scores on the model's device; gradients flow to the model.
    """
    longest = max(map(len, rows))
    padding = model.config.get_text_config().pad_token_id
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting a fresh output layer, which is wanted or refused here, and from its bars."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def function_fingerprint(spec: str, function: Callable[..., Any]) -> str:
    """Return the sha256 of a function's name and of the source file that defines it; what it imports is not seen.

    Args:
        spec: `package.module:function`.
        function: the function.
    """
    digest = hashlib.sha256(spec.encode())
    source = _source_file(function)
    if source is not None:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _source_file(function: Callable[..., Any]) -> Path | None:
    """The file that defines a function, if it is one."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        name = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        name = inspect.getsourcefile(type(function))
    return Path(name) if name and Path(name).is_file() else None


def source_fingerprint(source: str, model: Any) -> str:
    """Return the sha256 of a model folder's files; of the model's configuration and weights if it came from the hub."""
    folder = Path(source)
    if folder.is_dir():
        return folder_fingerprint(folder)
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + b"\0")
        digest.update(weight.cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

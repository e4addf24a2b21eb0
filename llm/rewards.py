"""Rewards: a user's function, or a sequence-classification model, behind one call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import tempfile
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from llm import processes, records
from llm.config import AlignConfig
from llm.console import memory_errors
from llm.errors import UserError
from llm.models import DTYPES, first_line, folder_fingerprint, refuse_other_shapes, resolve_device
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


def load_reward(spec: str, *, device: str, batch_size: int, dtype: str = "auto") -> Reward:
    """Load a reward.

    Args:
        spec: `package.module:function`, called on the lists (prompts, completions); or the directory or hub name of
            a sequence-classification model with one output, read by its recipe where it carries one; or the hub name,
            with @REVISION where it matters, of one of the published checkpoints in `llm.convert_reward`, which is
            converted once.
        device: where a model computes, such as `cpu` or `cuda:0`; it lies there only within `on_device`.
        batch_size: completions in one forward pass of a model.
        dtype: what a model computes in: see `precision`.

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
        return RecipeReward(path, recipe, device=device, batch_size=batch_size, dtype=dtype)
    return ModelReward(path, device=device, batch_size=batch_size, dtype=dtype)


def configured_reward(config: AlignConfig) -> AnyReward:
    """Return the reward that the settings name, minus that of a prompt's reference where they say so.

    Raises:
        UserError: It cannot be loaded.
    """
    device = resolve_device(config.device)
    reward = load_reward(config.reward, device=device, batch_size=config.reward_rows, dtype=config.reward_dtype)
    return ReferenceSubtracted(reward) if config.reward_baseline == "reference" else reward


def precision(settings: PreTrainedConfig, asked: str, device: str) -> torch.dtype:
    """Return what a reward model computes in.

    Args:
        settings: Its configuration, which says in what its weights are stored; float32 where it says nothing.
        asked: `float32`, `bfloat16` or `float16`; or `auto`, which is as stored, on the CPU float32 at least.
        device: Where it computes.
    """
    if asked != "auto":
        return DTYPES[asked]
    stored: torch.dtype = settings.dtype or torch.float32
    return torch.promote_types(stored, torch.float32) if torch.device(device).type == "cpu" else stored


def rewards_of(reward: AnyReward, pairs: Sequence[tuple[records.Prompt, str]]) -> np.ndarray:
    """Return the rewards, (N,) float64, of N completions with their prompts.

    Args:
        reward: The reward; one that subtracts the reference's needs prompts with references.
        pairs: Each prompt with a completion's text.

    Raises:
        UserError: The reward raised it.
    """
    if isinstance(reward, ReferenceSubtracted):
        return reward.of(pairs)
    return reward([prompt.text for prompt, _ in pairs], [text for _, text in pairs])


def on_device(reward: AnyReward) -> AbstractContextManager[None]:
    """Return a context within which the model of a reward, if it has one, lies on its device."""
    held = _held(reward)
    return held.on_device() if held else nullcontext()


def models_of(reward: AnyReward) -> list[PreTrainedModel]:
    """Return the model of a reward, if it has one."""
    held = _held(reward)
    return [held.model] if held else []


def reward_counts(reward: AnyReward) -> dict[str, int]:
    """Return what a reward counted in all processes since they began, for `summary.json`."""
    held = _held(reward)
    total: Counter[str] = Counter()
    for counts in processes.exchange(held.counts if held else Counter()):
        total.update(counts)
    return {f"reward_{name}": number for name, number in total.items()}


def _held(reward: AnyReward) -> HeldReward | None:
    """The reward that is a model, None where it is a function."""
    inner = reward.reward if isinstance(reward, ReferenceSubtracted) else reward
    return inner if isinstance(inner, HeldReward) else None


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


class HeldReward(ABC):
    """What rewards that are models have in common.

    The model lies in this computer's memory, and a copy of it on the device only within `on_device`: a training pass
    has the device to itself.

    Attributes:
        name: Directory or hub name.
        model: A sequence-classification model with one output.
        counts: How often something happened that a reader of the summary may ask for.
    """

    def __init__(self, path: str, model: Any, tokenizer: Any, *, device: str, batch_size: int) -> None:
        self.name = path
        self.model = model.eval().requires_grad_(False)
        self.counts: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Return the rewards, (N,) float64.

        Raises:
            UserError: A text cannot be read (see `rows`), a score is not finite, or memory ran out.
        """
        rows = self.rows(prompts, completions)
        with self.on_device(), self._memory_errors(), torch.inference_mode():
            scores = scores_by_length(rows, self._batch_size, self._scores)
        return checked_rewards(scores, len(rows), self.name)

    @abstractmethod
    def rows(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each prompt with its completion, as the model is given them."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within this context the model lies on its device; it may be entered again inside.

        Raises:
            UserError: The device has no room for it.
        """
        if self.model.device.type == torch.device(self._device).type:  # there already, or on the CPU for good
            yield
            return
        with ExitStack() as stack:
            with self._memory_errors():
                stack.enter_context(_lent(self.model, self._device))
            yield

    def fingerprint(self) -> str:
        """Return the sha256 of the model's files (of weights and settings from the hub) and of its precision."""
        return hashlib.sha256(f"{source_fingerprint(self.name, self.model)} {self.model.dtype}".encode()).hexdigest()

    @abstractmethod
    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """The scores of some rows, (B,)."""

    def _memory_errors(self) -> AbstractContextManager[None]:
        """What to do where memory runs out."""
        remedy = f"Lower --reward-rows {self._batch_size}, or choose a narrower --reward-dtype."
        return memory_errors(f"rewarding with {self.name}", remedy)


class ModelReward(HeldReward):
    """A reward that is a sequence-classification model, read as the library reads it.

    A decoder's output layer computes in float32 whatever the model's precision.
    """

    def __init__(self, path: str, *, device: str, batch_size: int, dtype: str = "auto") -> None:
        model, tokenizer = load_classifier(path, device=device, dtype=dtype)
        super().__init__(path, model, tokenizer, device=device, batch_size=batch_size)
        self._limit = context_length(model, tokenizer)
        _score_in_float32(model)

    def rows(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each prompt with its completion.

        Raises:
            UserError: They are longer than the model's context, or the tokenizer cannot read a chat.
        """
        pairs = zip(prompts, completions, strict=True)
        return [self._row(prompt, completion, index) for index, (prompt, completion) in enumerate(pairs)]

    def _row(self, prompt: Prompt, completion: str, index: int) -> list[int]:
        """The token ids of one completion with its prompt."""
        where = f"reward {self.name}, row {index}"
        ids = reward_input(self._tokenizer, prompt, completion, where=where)
        check_length(ids, self._limit, where=where)
        return ids

    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """The scores of some rows, (B,)."""
        return score(self.model, rows)


class ReferenceSubtracted:
    """A reward minus the reward of the prompt's reference: 0 is as good as the reference.

    The difference is the same for all completions of a prompt, so the self-normalised weights of Bradley-Terry
    goodness stay as they are; those of logistic goodness do not.

    Attributes:
        name: Says so.
        reward: The reward itself.
    """

    def __init__(self, reward: Reward) -> None:
        self.name = f"{reward.name} minus the reference's"
        self.reward = reward

    def of(self, pairs: Sequence[tuple[records.Prompt, str]]) -> np.ndarray:
        """Return the differences, (N,) float64; exactly 0 for the very text of a reference.

        Args:
            pairs: N prompts with references, each with a completion's text. Each text of a prompt is rewarded once,
                however often it occurs; its reference is one of them.

        Raises:
            UserError: The reward raised it, or a prompt has no reference.
        """
        keys = [(prompt.prompt_id, text) for prompt, text in pairs]
        baselines = [(prompt.prompt_id, _reference_of(prompt)) for prompt, _ in pairs]
        prompts = {prompt.prompt_id: prompt.text for prompt, _ in pairs}
        distinct = list(dict.fromkeys([*baselines, *keys]))
        values = self.reward([prompts[prompt_id] for prompt_id, _ in distinct], [text for _, text in distinct])
        value_of = dict(zip(distinct, values, strict=True))
        return np.array([value_of[key] - value_of[baseline] for key, baseline in zip(keys, baselines, strict=True)])

    def fingerprint(self) -> str:
        """Return a sha256 that changes with the reward and is not the reward's own."""
        return hashlib.sha256(f"minus reference {self.reward.fingerprint()}".encode()).hexdigest()


def check_references(reward: AnyReward, prompts: Sequence[records.Prompt]) -> None:
    """Check that prompts have the references whose reward is to be subtracted, if that is so.

    Args:
        reward: The reward.
        prompts: The prompts.

    Raises:
        UserError: One has none.
    """
    if isinstance(reward, ReferenceSubtracted):
        for prompt in prompts:
            _reference_of(prompt)


def _reference_of(prompt: records.Prompt) -> str:
    """A prompt's reference, which it must have."""
    if prompt.reference is None:
        split, _, row = prompt.prompt_id.rpartition("-")
        raise UserError(
            f"{split} prompts, row {row}: has no reference, whose reward --reward-baseline reference subtracts. Give "
            "every row one (--reference-column), or use --reward-baseline none."
        )
    return prompt.reference


AnyReward = Reward | ReferenceSubtracted
"""What a run may have as its reward."""


@contextmanager
def _lent(model: torch.nn.Module, device: str) -> Iterator[None]:
    """Within this context a model computes with copies of its tensors on a device; the tensors stay where they are."""
    homes: list[Any] = [home for module in model.modules() for home in (module._parameters, module._buffers)]
    own = [dict(home) for home in homes]
    copies: dict[int, torch.Tensor] = {}  # what is tied stays tied
    try:
        for home in homes:
            home.update({name: _copied(tensor, device, copies) for name, tensor in home.items()})
        yield
    finally:
        copies.clear()
        for home, tensors in zip(homes, own, strict=True):
            home.update(tensors)
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


def _copied(tensor: Any, device: str, copies: dict[int, torch.Tensor]) -> Any:
    """A tensor's one copy on a device, for the place of a parameter where it is one."""
    if tensor is not None and id(tensor) not in copies:
        moved = tensor.detach().to(device)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        copies[id(tensor)] = torch.nn.Parameter(moved, requires_grad=False) if is_parameter else moved
    return None if tensor is None else copies[id(tensor)]


def _score_in_float32(model: Any) -> None:
    """Let a decoder's output layer, which has one output and is cheap, compute in float32."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear):
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


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


def load_classifier(
    path: str, *, fresh_output: bool = False, device: str = "cpu", dtype: str = "float32"
) -> tuple[Any, Any]:
    """Load a model with one output per sequence and its tokenizer.

    Args:
        path: directory or hub name.
        fresh_output: whether a model without such an output, as a causal language model is, may get a new one,
            drawn from torch's global generator.
        device: where it will compute.
        dtype: what it computes in: see `precision`.

    Returns:
        the model, on the CPU, and the tokenizer, which agree on the padding token: the end token where there is no
        other.

    Raises:
        UserError: It cannot be loaded, lacks a trained output, has several or a recipe, or no token can serve as
            padding.
    """
    options = {"num_labels": 1} if fresh_output else {}
    model, tokenizer, report = read_model(path, device=device, dtype=dtype, **options)
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


def read_model(path: str, *, device: str, dtype: str, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Read a sequence-classification model in the precision that it will compute in, and its tokenizer.

    Args:
        path: Directory or hub name.
        device: Where it will compute.
        dtype: What it computes in: see `precision`.
        options: Changes of its configuration.

    Returns:
        the model, on the CPU, the tokenizer, and what the library says of the weights: `missing_keys` and more.

    Raises:
        UserError: It cannot be loaded.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            kind = precision(AutoConfig.from_pretrained(path), dtype, device)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be loaded as a sequence-classification model with one output ({first_line(error)})."
        ) from error
    refuse_other_shapes(path, report["mismatched_keys"])
    return model, tokenizer, report


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder for a model under a temporary name, beside its own, which it gets at this context's end.

    Args:
        out: Its name; nothing is there yet, or an empty folder.

    Raises:
        UserError: The disk is full or cannot be written; nothing is left of it.
    """
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".writing-", ignore_cleanup_errors=True) as temporary:
            built = Path(temporary) / "model"
            built.mkdir()
            yield built
            _flush(built)
            built.rename(out)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a clear error that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: could not be written ({first_line(error)}). Make room or choose another place; nothing is left "
            "half-written."
        ) from error


def _flush(folder: Path) -> None:
    """Have a folder's files on disk before it gets its name."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


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

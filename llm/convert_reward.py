"""Make the paper's reward models normal sequence-classification models: `python -m llm.convert_reward`.

Both are published as the bare weights of a class of their authors': no configuration, no tokenizer, buffers of an old
library among the weights. The conversion adds GPT-J's configuration and tokenizer, keeps the weights as they are, in
their precision unless told otherwise, and refuses a checkpoint that is not exactly what was published. The result is a
folder of safetensors whose config.json says how texts are laid out and where the score is read (`llm.reward_recipe`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import huggingface_hub
import platformdirs
import torch
import tyro
from huggingface_hub import errors as hub_errors
from transformers import AutoConfig, AutoTokenizer, GPTJConfig, GPTJForSequenceClassification

from llm.console import entry_point, say
from llm.errors import UserError
from llm.models import DTYPES, first_line
from llm.reward_recipe import Recipe, check_tokenizer
from llm.rewards import CONFIG_KEY, new_folder, quiet_transformers, write_errors

BASE = "EleutherAI/gpt-j-6B"
FORMAT = 1
"""Raised whenever the same checkpoint would be converted to something else."""
DROPPED = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)|model\..*")
"""Causal masks, which an old library kept among the weights, and a copy of the model that its authors saved along."""


@dataclass(frozen=True)
class Published:
    """A reward model as it is published.

    Attributes:
        repository: Its hub name.
        file: The one file with its weights.
        recipe: How its authors laid out texts and read scores.
    """

    repository: str
    file: str
    recipe: Recipe


PUBLISHED = {
    # 558 tokens: a prompt of 500, 50 new tokens, the opening's 7 and the end token. The authors cut at 550, which
    # silently takes up to 8 tokens from the summaries of the longest posts.
    "tldr": Published(
        "CarperAI/openai_summarize_tldr_rm_checkpoint",
        "pytorch_model.bin",
        Recipe(opening="<|startoftext|>", closing="\nTL;DR:", read="before-first-eos", max_length=558),
    ),
    "dialogue": Published(
        "Dahoas/gptj-rm-static",
        "hf_ckpt.pt",
        Recipe(opening="", closing="", read="first-eos", max_length=1024),
    ),
}


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a published GPT-J reward model to a normal sequence-classification model that --reward can use."""

    checkpoint: tyro.conf.Positional[str]
    """The directory or hub name, with @REVISION where it matters, that holds pytorch_model.bin (tldr) or hf_ckpt.pt
    (dialogue)."""
    recipe: Literal["tldr", "dialogue"]
    """How texts are laid out and where the score is read: as CarperAI/openai_summarize_tldr_rm_checkpoint (tldr) or as
    Dahoas/gptj-rm-static (dialogue) was trained."""
    out: str
    """Folder for the model and its tokenizer; it must be new or empty."""
    base: str = BASE
    """Directory or hub name with the config.json and the tokenizer of the GPT-J that was trained."""
    max_length: int | None = None
    """Longest text in tokens, 558 (tldr) or 1024 (dialogue) unless given; more is cut, tldr at the end."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to store the weights in; auto keeps the checkpoint's: float16 (tldr), float32 (dialogue)."""
    double_space: bool = False
    """For tldr: two spaces behind "TL;DR:", as in most of its training rows, instead of one, as when it was used."""


def convert(config: ConvertConfig) -> None:
    """Convert a checkpoint; the folder appears whole or not at all.

    Args:
        config: the settings.

    Raises:
        UserError: The checkpoint, the base or the output folder is not usable; the message says what to do.
    """
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already and is not an empty folder. Name a new one.")
    file = checkpoint_file(config.checkpoint, config.recipe)
    _write_model(file, config.base, _asked_recipe(config), out, dtype=config.dtype)


def normal_form(spec: str) -> str:
    """Return where the model that `--reward` names is a normal one.

    Args:
        spec: A directory or hub name. For the hub name of a published reward model, with @REVISION or without, it is
            converted once into the user's cache folder, or the folder that the environment variable BRAIN_CACHE names.

    Raises:
        UserError: It cannot be converted; or it is the directory of a checkpoint that has to be, by the command.
    """
    if Path(spec).exists():
        _refuse_raw(Path(spec))
        return spec
    for name, published in PUBLISHED.items():
        if spec.partition("@")[0] == published.repository:
            return str(_cached(spec, name))
    return spec


def checkpoint_file(source: str, recipe: str) -> Path:
    """Find a published checkpoint's file, on the hub if it is no directory.

    Args:
        source: A directory, or a hub name with @REVISION or without.
        recipe: `tldr` or `dialogue`.

    Raises:
        UserError: It is not there.
    """
    file = PUBLISHED[recipe].file
    if Path(source).exists():
        if not (Path(source) / file).is_file():
            raise UserError(f"{source}: has no {file}, which holds the weights of the {recipe} reward model.")
        return Path(source) / file
    repository, _, revision = source.partition("@")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: is no directory here; as a hub name, {_hub_problem(error, file)}") from error


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, mapped into memory rather than loaded; nothing in the file is executed.

    Raises:
        UserError: It is damaged, or holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors and would run code when loaded, so it is refused. Download it again "
            "from where it was published."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of torch ({first_line(error)}). Get it again.") from error
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: is not a state dict, tensors by name. Get the checkpoint as it was published.")
    return state


def classifier_weights(state: dict[str, torch.Tensor], config: GPTJConfig, where: str) -> dict[str, torch.Tensor]:
    """Turn a checkpoint's weights into those of `GPTJForSequenceClassification`.

    Args:
        state: The checkpoint.
        config: GPT-J's sizes, with one output.
        where: What to name in a message.

    Returns:
        the weights by their names in that class, all in the precision of the transformer's.

    Raises:
        UserError: A weight is missing, unexpected, or of another shape or kind than the sizes ask for.
    """
    kept = {name: tensor for name, tensor in state.items() if not DROPPED.fullmatch(name)}
    shapes = {_published_name(name): shape for name, shape in _class_shapes(config, where).items()}
    _refuse(where, "lacks the weights", shapes.keys() - kept.keys())
    _refuse(where, "holds unexpected weights", kept.keys() - shapes.keys())
    wrong = [
        f"{name} {tuple(kept[name].shape)} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if kept[name].shape != shape
    ]
    _refuse(where, "has other sizes than config.json of --base asks for, in", wrong)
    dtype = _trunk_dtype(kept, where)
    return {name: kept[_published_name(name)].to(dtype) for name in map(_class_name, kept)}


def _hub_problem(error: Exception, file: str) -> str:
    """Why a file could not be had from the hub, and what to do."""
    problems = {
        hub_errors.LocalEntryNotFoundError: f"the hub cannot be reached ({error.__cause__ or error}), and "
        f"{file} is not among the local copies. Check the connection, or download the file and name its directory.",
        hub_errors.GatedRepoError: "its owners give access on request only. Ask for it on its page and log in.",
        hub_errors.RepositoryNotFoundError: "the hub has no such repository, or hides it from you. Check the name; log "
        "in where it is private.",
        hub_errors.RevisionNotFoundError: "the repository has no such revision. Check what follows the @.",
        hub_errors.EntryNotFoundError: f"the repository has no {file}. Name the one with the published checkpoint.",
        hub_errors.HFValidationError: "it cannot be one either. Check the path.",
    }
    known = next((problem for kind, problem in problems.items() if isinstance(error, kind)), None)
    return known or f"{file} could not be had ({first_line(error)}). Try again, or download it and name its directory."


def _asked_recipe(config: ConvertConfig) -> Recipe:
    """The published recipe with the changes asked for."""
    recipe = PUBLISHED[config.recipe].recipe
    if config.double_space:
        if config.recipe != "tldr":
            raise UserError("--double-space: only the tldr recipe has a TL;DR: to put spaces behind. Leave it out.")
        recipe = dataclasses.replace(recipe, closing=recipe.closing + " ")
    if config.max_length is not None:
        recipe = dataclasses.replace(recipe, max_length=config.max_length)
    return recipe


def _refuse_raw(folder: Path) -> None:
    """A published checkpoint's directory has no config.json, which would say how to read it."""
    for name, published in PUBLISHED.items():
        if (folder / published.file).is_file() and not (folder / "config.json").exists():
            raise UserError(
                f"--reward {folder}: holds a bare {published.file}. Convert it first: python -m llm.convert_reward "
                f"{folder} --recipe {name} --out DIR, then --reward DIR."
            )


def _cached(spec: str, name: str) -> Path:
    """Convert a published checkpoint from the hub, unless that was done before."""
    file = checkpoint_file(spec, name)
    recipe = PUBLISHED[name].recipe
    commit = file.parent.name  # the hub's local copies lie in snapshots/COMMIT/
    key = json.dumps([FORMAT, PUBLISHED[name].repository, commit, BASE, dataclasses.asdict(recipe)])
    home = Path(os.environ.get("BRAIN_CACHE") or platformdirs.user_cache_dir("brain-align"))
    folder = home / f"reward-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with write_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # the processes of one run all come here
            if not folder.exists():
                say(f"{spec}: converting to a sequence-classification model, once, into {folder}.")
                _write_model(file, BASE, recipe, folder)
    return folder


def _write_model(file: Path, base: str, recipe: Recipe, out: Path, *, dtype: str = "auto") -> None:
    """Convert a checkpoint; the folder appears whole or not at all."""
    config, tokenizer = _load_base(base)
    _check_max_length(recipe, config)
    _prepare(config, tokenizer, recipe)
    check_tokenizer(tokenizer, config, base)
    weights = _in_precision(classifier_weights(read_checkpoint(file), config, str(file)), dtype, str(file))
    config.dtype = weights["score.weight"].dtype
    with new_folder(out) as built:
        config.save_pretrained(built)
        tokenizer.save_pretrained(built)
        huggingface_hub.save_torch_state_dict(weights, built, max_shard_size="5GB")


def _load_base(base: str) -> tuple[Any, Any]:
    """The configuration and the tokenizer of the GPT-J that a checkpoint is of."""
    try:
        with quiet_transformers():
            config, tokenizer = AutoConfig.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{base}: its config.json or tokenizer cannot be had ({first_line(error)}). The checkpoint has neither: "
            "check the connection, or convert it by python -m llm.convert_reward with --base DIR, which has both."
        ) from error
    if not isinstance(config, GPTJConfig):
        raise UserError(f"--base {base}: is a {config.model_type} model; these reward models are GPT-J.")
    check_tokenizer(tokenizer, config, base)
    return config, tokenizer


def _prepare(config: GPTJConfig, tokenizer: Any, recipe: Recipe) -> None:
    """Make a base's configuration and tokenizer those of the reward model.

    The library reads the score at the last token that is not padding. With the end token as padding that is the one
    before the end, with another token the end itself: so it reads plain texts as the recipe does.
    """
    end = config.eos_token_id
    config.num_labels = 1
    config.architectures = ["GPTJForSequenceClassification"]
    config.pad_token_id = end if recipe.read == "before-first-eos" else end + 1
    setattr(config, CONFIG_KEY, dataclasses.asdict(recipe))
    padding = tokenizer.convert_ids_to_tokens(config.pad_token_id) or "<|padding|>"
    tokenizer.add_special_tokens({"pad_token": padding})


def _check_max_length(recipe: Recipe, config: GPTJConfig) -> None:
    """The longest text must fit into the model's context."""
    if not 2 <= recipe.max_length <= config.n_positions:
        raise UserError(
            f"--max-length {recipe.max_length}: must be from 2 to the model's context, {config.n_positions}."
        )


def _class_shapes(config: GPTJConfig, where: str) -> dict[str, torch.Size]:
    """The shapes of the class's weights, by name."""
    try:
        with torch.device("meta"):
            model = GPTJForSequenceClassification(config)
    except ValueError as error:
        raise UserError(f"{where}: config.json of --base is no possible GPT-J ({first_line(error)}).") from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _published_name(name: str) -> str:
    """A weight's name in the published checkpoints, from its name in the class."""
    return name.replace("score.", "v_head.")


def _class_name(name: str) -> str:
    """A weight's name in the class, from its published one."""
    return name.replace("v_head.", "score.")


def _refuse(where: str, what: str, names: Collection[str]) -> None:
    """Refuse a checkpoint for some of its weights, where there are any to refuse it for."""
    if names:
        some = sorted(names)[:4]
        more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
        raise UserError(
            f"{where}: {what} {', '.join(some)}{more}. It must be the published checkpoint, and --base the model that "
            "it was trained from."
        )


def _trunk_dtype(weights: dict[str, torch.Tensor], where: str) -> torch.dtype:
    """The one precision of a transformer's weights, to which those of the output can go without loss."""
    trunk = {tensor.dtype for name, tensor in weights.items() if name != "v_head.weight"}
    dtype = trunk.pop()
    head = weights["v_head.weight"].dtype
    if trunk or not dtype.is_floating_point or torch.promote_types(dtype, head) != dtype:
        kinds = sorted({str(tensor.dtype) for tensor in weights.values()})
        raise UserError(
            f"{where}: its weights are of the kinds {', '.join(kinds)}; expected one floating-point kind, and at most "
            "the same for v_head.weight. It must be the published checkpoint."
        )
    return dtype


def _in_precision(weights: dict[str, torch.Tensor], dtype: str, where: str) -> dict[str, torch.Tensor]:
    """The weights in another precision, unless that is auto; none may leave its range."""
    if dtype == "auto":
        return weights
    cast = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights.items()}
    if broken := sorted(name for name, tensor in cast.items() if not tensor.isfinite().all()):
        raise UserError(f"{where}: {broken[0]} is not finite in {dtype}. Use another --dtype.")
    return cast


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    config = tyro.cli(ConvertConfig, args=list(arguments), prog="python -m llm.convert_reward")
    convert(config)
    say(f"Written to {config.out}; use it as --reward {config.out}.")


if __name__ == "__main__":
    sys.exit(entry_point(main))

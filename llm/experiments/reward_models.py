"""Reward models other than the run's own, trained as that one was: of other sizes, or on noisy labels.

Each is made once, in the user's cache, under a fingerprint of what it is made from.

Sizes differ by their layers only. All begin as the model that the run's own reward model began as, for only that one
knows the texts: a smaller one keeps its lower layers; a larger one gets further layers on top, which at first pass
everything on unchanged, so that it begins where the model itself does. A model of another width would have to begin
from nothing, and would differ by what it knows as well as by its size.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm import reward_model, rewards
from llm.config import AlignConfig
from llm.console import say
from llm.errors import UserError
from llm.experiments import noisy_reward
from llm.experiments.noisy_reward import MODEL, NOISE, NoisyReward, cached, load_model
from llm.models import files_fingerprint, folder_fingerprint
from llm.reward_model import REPORT, RewardModelConfig, train_reward_model
from llm.rewards import Prompt, quiet_transformers
from llm.statistics import proportion
from llm.store import read_json, write_json
from llm.streams import stream, text_fingerprint
from llm.tables import column, read_rows

MEASURED = "measured.json"
ROWS = 2000
"""Pairs on which a reward model is measured, at most."""
Pair = dict[str, Any]
"""A prompt with its chosen and its rejected completion."""
Notes = tuple[tuple[str, str | float], ...]
Scorer = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Change:
    """How a reward model differs from the run's own.

    Attributes:
        layers: How many it has; as many as the run's own where None.
        flipped: The share of the training pairs that have chosen and rejected exchanged.
        noise: Standard deviation of what is added to its score, in units of the score's own among completions
            of one prompt.
    """

    layers: int | None = None
    flipped: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Origin:
    """What the run's own reward model was made from.

    Attributes:
        reward: Its folder.
        config: How it was trained, and on which model.
        pairs: What it was trained and tested on, in order.
        layers: Its number of layers.
    """

    reward: Path
    config: RewardModelConfig
    pairs: list[Pair]
    layers: int

    def held_out(self) -> list[int]:
        """Return the rows that it was not trained on, as `train_reward_model` chooses them."""
        order = random.Random(self.config.seed).sample(range(len(self.pairs)), len(self.pairs))
        return order[: min(max(round(self.config.held_out * len(order)), 1), len(order) - 1)]

    def unseen(self) -> list[Pair]:
        """Return the pairs on which reward models are measured."""
        return [self.pairs[row] for row in self.held_out()[:ROWS]]


def origin(base: AlignConfig) -> Origin:
    """Return what the reward model of a run was made from, by the report in its folder.

    Args:
        base: The run's settings.

    Raises:
        UserError: It was not trained by `llm.reward_model` on pairs, or these are not there any more.
    """
    folder = Path(base.reward)
    if not (base.reward and (folder / REPORT).is_file()):
        raise UserError(
            f"--reward {base.reward}: is no folder that python -m llm.reward_model wrote, so that others cannot be "
            "trained as it was. Train one on preference pairs and name its folder."
        )
    config = _recorded_config(folder)
    pairs = [_pair(row, config.data, number) for number, row in read_rows(config.data)]
    if len(pairs) != _row_count(folder):
        raise UserError(f"{config.data}: has changed since {folder} was trained on it. Train the reward model anew.")
    return Origin(folder, config, pairs, int(AutoConfig.from_pretrained(folder).num_hidden_layers))


def _recorded_config(folder: Path) -> RewardModelConfig:
    """The settings in a reward model's report, with the paths that are as seen from the folder."""
    try:
        config = RewardModelConfig(**read_json(folder / REPORT)["settings"], out="")
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / REPORT}: is of another version ({error}). Train the reward model anew.") from error
    if config.loss != "bradley-terry":
        raise UserError(f"--reward {folder}: was trained on labels, not on pairs. Train one with --loss bradley-terry.")
    config = dataclasses.replace(config, model=_beside(folder, config.model), data=_beside(folder, config.data))
    if not Path(config.data).is_file():
        raise UserError(
            f"--reward {folder}: the pairs that it was trained on are not in {folder / config.data} any more. "
            "Put them back, or train a reward model on others."
        )
    return config


def _row_count(folder: Path) -> int:
    """How many pairs a reward model was trained and tested on."""
    report = read_json(folder / REPORT)
    return int(report["training_rows"] + report["accuracy"]["n"])


def _pair(row: dict[str, Any], data: str, number: int) -> Pair:
    """A row without what else may be in it."""
    return {name: column(row, name, source=data, number=number) for name in ("prompt", "chosen", "rejected")}


def _beside(folder: Path, name: str) -> str:
    """A path as seen from a folder, if it leads anywhere from there; else the name as it is."""
    path = os.path.normpath(folder.absolute() / name)
    return path if os.path.exists(path) else name


def sizes(made_from: Origin) -> list[int]:
    """Return the numbers of layers to compare: one, two, three and four thirds of the reward model's own."""
    return sorted({math.ceil(made_from.layers * thirds / 3) for thirds in (1, 2, 3, 4)})


def with_reward(made_from: Origin, change: Change, base: AlignConfig) -> tuple[str, Notes]:
    """Return a reward model, made now or before, and what is to be known of it.

    Args:
        made_from: What the run's own reward model was made from.
        change: How this one differs.
        base: The run's settings.

    Returns:
        what `--reward` calls it; its accuracy on pairs that none of them was trained on, with their labels as they
        are, its parameters, and the processor seconds in which it scores a group.

    Raises:
        UserError: It cannot be made.
    """
    folder = _without_noise(made_from, change)
    spec = str(folder / MODEL)
    if change.noise:
        folder = _with_noise(folder, change.noise, made_from.unseen())
        spec = f"{noisy_reward.__name__}:{folder.name}"
    return spec, _notes(read_json(folder / MEASURED), base)


def _notes(found: dict[str, Any], base: AlignConfig) -> Notes:
    """What is to be known of a reward model, as columns of a table."""
    accuracy = found["accuracy"]
    ends = [accuracy[end] for end in ("low", "high")]
    return (
        ("accuracy of the reward", accuracy["estimate"]),
        ("its interval", "–" if None in ends else " to ".join(f"{end:.3f}" for end in ends)),
        ("its parameters", found["parameters"]),
        ("its seconds a group", found["seconds_per_completion"] * base.n),
    )


def _without_noise(made_from: Origin, change: Change) -> Path:
    """The folder of a reward model with the layers and labels of a change."""
    layers = change.layers or made_from.layers
    folder = cached(f"reward_{_fingerprint(made_from, layers, change.flipped)}")
    if not folder.exists():
        say(f"reward model of {layers} layers, {change.flipped:.0%} of its labels flipped: making it in {folder}, once")
        with _whole(folder) as built, _one_thread():
            _make(built, made_from, layers, change.flipped)
    return folder


def _fingerprint(made_from: Origin, layers: int, flipped: float) -> str:
    """What changes with the models, the pairs, the change or the code; the settings are in the reward's folder."""
    model = Path(made_from.config.model)
    start = folder_fingerprint(model) if model.is_dir() else str(model)
    modules = (reward_model, rewards, sys.modules[__name__])
    code = files_fingerprint(Path(str(module.__file__)) for module in modules)
    return text_fingerprint([code, folder_fingerprint(made_from.reward), start, made_from.pairs, layers, flipped])[:16]


def _make(folder: Path, made_from: Origin, layers: int, flipped: float) -> None:
    """Train a reward model, or copy the run's own where that is what training would give, and measure it."""
    if flipped or layers != made_from.layers:
        _train(folder, made_from, layers, flipped)
    else:
        shutil.copytree(made_from.reward, folder / MODEL)
    reward = load_model(folder)
    parameters = sum(tensor.numel() for tensor in rewards.models_of(reward)[0].parameters())
    write_json(folder / MEASURED, measured(reward, made_from.unseen()) | {"parameters": parameters})


def _with_noise(clean: Path, noise: float, pairs: Sequence[Pair]) -> Path:
    """The folder of a reward model with noise added to its score; it is named by its contents, so that a run is too."""
    known = read_json(clean / MEASURED)
    deviation = float(f"{noise * known['spread']:.4g}")
    folder = cached(f"noisy_{text_fingerprint([folder_fingerprint(clean / MODEL), deviation])[:16]}")
    if not folder.exists():
        with _whole(folder) as built, _one_thread():
            shutil.copytree(clean / MODEL, built / MODEL)
            write_json(built / NOISE, {"standard_deviation": deviation})
            write_json(built / MEASURED, known | measured(NoisyReward(built), pairs))
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder under a temporary name that it loses at the end; whoever comes second keeps the first one's."""
    with rewards.write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-", ignore_cleanup_errors=True) as place:
            built = Path(place) / folder.name
            built.mkdir()
            yield built
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the same result on every core count, and no slower where another program runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(folder: Path, made_from: Origin, layers: int, flipped: float) -> None:
    """Train a reward model as the run's own was, but for the change; what it is trained from stays beside it."""
    start, data = folder / "start", folder / "pairs.jsonl"
    write_resized(made_from.config.model, start, layers)
    with open(data, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in flipped_pairs(made_from, flipped))
    config = dataclasses.replace(made_from.config, model=str(start), data=str(data), out=str(folder / MODEL))
    train_reward_model(config)


def flipped_pairs(made_from: Origin, share: float) -> list[Pair]:
    """Return the pairs with chosen and rejected exchanged in a share of those that are trained on.

    The others keep their labels, so that what is measured on them is about the true ones. The pairs that a smaller
    share exchanges are among those that a larger one exchanges.

    Args:
        made_from: The pairs, and which of them are trained on.
        share: The probability of each.
    """
    draws = stream(made_from.config.seed, "flipped labels").random(len(made_from.pairs))
    draws[made_from.held_out()] = 1.0
    return [_exchanged(pair) if draw < share else pair for pair, draw in zip(made_from.pairs, draws, strict=True)]


def _exchanged(pair: Pair) -> Pair:
    """A pair with the other label."""
    return pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}


def write_resized(source: str, out: Path, layers: int) -> None:
    """Write a language model with another number of layers: the lower ones, or all with further ones on top.

    A layer on top is a copy of one of the upper layers that adds nothing yet to what passes through it.

    Args:
        source: The model's folder or hub name.
        out: The new folder.
        layers: How many, at most twice as many as there are.

    Raises:
        UserError: The model's layers are not built as Llama's are.
    """
    with quiet_transformers():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    own = _llama_layers(model, source)
    on_top = [copy.deepcopy(own[index]) for index in range(2 * len(own) - layers, len(own))]
    for layer in on_top:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.base_model.layers = torch.nn.ModuleList([*own[:layers], *on_top])
    model.config.num_hidden_layers = layers
    with quiet_transformers():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _llama_layers(model: Any, source: str) -> Any:
    """The layers of a model, which must be built as Llama's."""
    names = [name for name, _ in model.base_model.named_modules()]
    if not {"layers.0.self_attn.o_proj", "layers.0.mlp.down_proj"} <= set(names):
        raise UserError(f"{source}: its layers are not built as Llama's are; it cannot be cut or extended.")
    return model.base_model.layers


def measured(reward: Scorer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return how often a reward ranks a pair as its label does, how far apart its scores are, and how long it takes.

    Args:
        reward: The reward.
        pairs: Pairs that it was not trained on.

    Returns:
        accuracy with its 95 % interval, a tie counting as wrong; spread, the standard deviation among completions of
        one prompt, its root mean square over prompts; seconds_per_completion, of processor time.
    """
    _scores(reward, pairs[:1])  # what is done once, such as loading, is not counted
    started = time.process_time()
    chosen, rejected = _scores(reward, pairs)
    return {
        "accuracy": proportion(chosen > rejected),
        "spread": float(np.sqrt(np.mean((chosen - rejected) ** 2) / 2)),
        "seconds_per_completion": (time.process_time() - started) / (2 * len(pairs)),
    }


def _scores(reward: Scorer, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """The rewards of the chosen and of the rejected completions, (N,) each."""
    both = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    chosen, rejected = np.split(reward([pair["prompt"] for pair in pairs] * 2, both), 2)
    return chosen, rejected

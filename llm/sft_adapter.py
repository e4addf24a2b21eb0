"""A published LoRA adapter that makes a base model the SFT model: read, checked, and put on the base."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedModel

from llm.config import AlignConfig
from llm.errors import UserError

POLICY = "default"
"""The trainable adapter's name in the model; peft saves the one of this name at the top of a folder."""
SFT = "sft"
"""The frozen adapter's name."""
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
KEPT = {"r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
KEPT |= {"rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"}
"""Settings of the stored adapter that say what its matrices mean."""
WITHOUT_EFFECT = {"base_model_name_or_path", "revision", "peft_type", "task_type", "auto_mapping", "peft_version"}
WITHOUT_EFFECT |= {"inference_mode", "lora_dropout", "init_lora_weights"}
"""Settings of the stored adapter that do not change what it computes; the base is the one that `--model` names."""


@dataclass(frozen=True)
class SftAdapter:
    """A LoRA adapter as it was published.

    Attributes:
        source: Its directory or hub name.
        settings: What its matrices mean, as `peft.LoraConfig` takes it.
        weights: Its matrices, on the CPU.
        files: The two files it was read from.
    """

    source: str
    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    files: tuple[Path, Path]

    def lora_config(self) -> peft.LoraConfig:
        """Return its settings, without dropout."""
        return peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **self.settings)


def requested_adapter(config: AlignConfig) -> SftAdapter | None:
    """Read the SFT adapter that the settings ask for, if any, before the base is loaded.

    Raises:
        UserError: The settings contradict each other or the adapter, or it cannot be read.
    """
    if config.sft_mode != AlignConfig.sft_mode and not config.sft_adapter:
        raise UserError(f"--sft-mode {config.sft_mode}: there is no --sft-adapter. Give one, or leave the mode out.")
    if config.sft_mode == "merge" and config.quantization == "nf4":
        raise UserError(
            "--sft-mode merge: with --quantization nf4 the merged weights would be rounded to 4 bits again, an error "
            "about as large as the adapter itself, so the prior would not be the SFT model. Use --sft-mode copy or "
            "stack, or --quantization none."
        )
    if not config.sft_adapter:
        return None
    adapter = read_sft_adapter(config.sft_adapter)
    if config.sft_mode == "copy":
        _check_lora_options(config, adapter)
    return adapter


def read_sft_adapter(source: str) -> SftAdapter:
    """Read an adapter.

    Args:
        source: A directory with adapter_config.json and adapter_model.safetensors or .bin, or a hub name. The base
            that it names is ignored.

    Raises:
        UserError: It cannot be had or read, or is more than a plain LoRA adapter.
    """
    folder = _folder_of(source)
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not (folder / CONFIG_FILE).is_file() or not files:
        raise UserError(
            f"--sft-adapter {source}: is no LoRA adapter, which has {CONFIG_FILE} and {' or '.join(WEIGHT_FILES)}. "
            "Check the path; a whole SFT model goes to --model."
        )
    return SftAdapter(
        source, _read_settings(folder, source), _read_weights(files[0], source), (folder / CONFIG_FILE, files[0])
    )


def put_on(base: PreTrainedModel, settings: peft.LoraConfig) -> peft.PeftModel:
    """Put a new adapter on a base as the policy's own.

    Raises:
        ValueError: It finds nothing to adapt.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks for it
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # peft sets it right for GPT-2
        return peft.get_peft_model(base, settings)


def policy_from(adapter: SftAdapter, base: PreTrainedModel) -> peft.PeftModel:
    """Put the adapter on a base as the policy's own, trainable.

    Raises:
        UserError: It does not fit the base.
    """
    try:
        model = put_on(base, adapter.lora_config())
        fill(model, POLICY, adapter.weights)
    except ValueError as error:
        raise _misfit(adapter, base, error) from error
    return model


def merged(adapter: SftAdapter, base: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter to the weights of a base.

    Raises:
        UserError: It does not fit the base.
    """
    return policy_from(adapter, base).merge_and_unload()


def add_frozen(adapter: SftAdapter, model: peft.PeftModel, *, under_policy: bool) -> None:
    """Put the adapter beside the policy's own, frozen, for the prior.

    Args:
        adapter: What to add.
        model: The base with the policy's adapter.
        under_policy: Whether the policy computes with it too.

    Raises:
        UserError: It does not fit the base.
    """
    try:
        model.add_adapter(SFT, adapter.lora_config())
        fill(model, SFT, adapter.weights)
    except ValueError as error:
        raise _misfit(adapter, model.get_base_model(), error) from error
    model.base_model.set_adapter([SFT, POLICY] if under_policy else [POLICY])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{POLICY}." in name)


def fill(model: peft.PeftModel, name: str, weights: dict[str, torch.Tensor]) -> None:
    """Copy an adapter's matrices into a model.

    Args:
        model: Has an adapter of that name already.
        name: The adapter's name in the model.
        weights: Its matrices, under the names of a saved adapter.

    Raises:
        ValueError: A matrix is missing, left over or of another shape; nothing was copied.
    """
    shapes = {key: value.shape for key, value in adapter_weights(model, name).items()}
    if missing := shapes.keys() - weights.keys():
        raise ValueError(f"missing: {first_of(missing)}")
    if extra := weights.keys() - shapes.keys():
        raise ValueError(f"no place in the model for {first_of(extra)}")
    if wrong := sorted(key for key, shape in shapes.items() if weights[key].shape != shape):
        found, needed = tuple(weights[wrong[0]].shape), tuple(shapes[wrong[0]])
        raise ValueError(f"of shape {found} where the model needs {needed}: {first_of(wrong)}")
    peft.set_peft_model_state_dict(model, weights, adapter_name=name)


def adapter_weights(model: peft.PeftModel, name: str) -> dict[str, torch.Tensor]:
    """Return an adapter's matrices, under the names of a saved adapter."""
    return peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def first_of(names: Collection[str]) -> str:
    """Return the first of some names, in order of the alphabet, and how many more there are."""
    return min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_lora_options(config: AlignConfig, adapter: SftAdapter) -> None:
    """Refuse LoRA settings that were given and that a policy which begins as a copy of the adapter cannot heed."""
    targets = adapter.settings["target_modules"]
    asked = {name.strip() for name in config.lora_targets.split(",")}
    kept = {
        "lora_r": config.lora_r == adapter.settings["r"],
        "lora_alpha": config.lora_alpha == adapter.settings["lora_alpha"],
        "lora_targets": config.lora_targets == targets or asked == targets,
    }
    for name, is_same in kept.items():
        if not is_same and getattr(config, name) != getattr(AlignConfig, name):
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: with --sft-mode copy the policy begins as a copy "
                f"of {adapter.source}, which has r {adapter.settings['r']}, alpha {adapter.settings['lora_alpha']} and "
                f"targets {targets if isinstance(targets, str) else ','.join(sorted(targets))}. Leave the option out, "
                "or use --sft-mode stack."
            )


def _misfit(adapter: SftAdapter, base: PreTrainedModel, error: ValueError) -> UserError:
    """What to say of an adapter that cannot be put on a base."""
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(
        f"--sft-adapter {adapter.source}: does not fit --model {base.name_or_path} ({reason}). It is damaged, or was "
        "trained on another base; give the base that it was trained on."
    )


def _folder_of(source: str) -> Path:
    """The directory itself, or where the hub's files were downloaded to."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG_FILE, *WEIGHT_FILES]))
    except Exception as error:  # whatever the client of the hub raises
        raise UserError(
            f"--sft-adapter {source}: no such directory; as a hub name it could not be had "
            f"({' '.join(str(error).split())}). Check the name and the connection, or give a directory."
        ) from error


def _read_settings(folder: Path, source: str) -> dict[str, Any]:
    """What the matrices mean, from adapter_config.json."""
    try:
        stored = peft.PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder / CONFIG_FILE}: not an adapter's settings ({reason}). Get the file again.") from error
    if type(stored) is not peft.LoraConfig:
        kind = getattr(stored.peft_type, "value", "not stated")
        raise UserError(f"{folder / CONFIG_FILE}: peft_type is {kind}; only LORA is supported.")
    if unusual := _unusual(stored):
        raise UserError(
            f"--sft-adapter {source}: is more than plain LoRA matrices ({unusual}), which is not supported. "
            "Merge it into its base and give the merged model as --model."
        )
    return {name: getattr(stored, name) for name in KEPT}


def _unusual(stored: peft.LoraConfig) -> str:
    """The settings by which an adapter does more than add a product of two matrices to linear layers."""
    plain = peft.LoraConfig()
    names = [field.name for field in dataclasses.fields(stored) if field.name not in KEPT | WITHOUT_EFFECT]
    found = {name: getattr(stored, name) for name in names if getattr(stored, name) != getattr(plain, name)}
    if stored.init_lora_weights not in (True, False, "gaussian"):  # the others change the base as well
        found["init_lora_weights"] = stored.init_lora_weights
    return ", ".join(f"{name}: {value}" for name, value in found.items())


def _read_weights(file: Path, source: str) -> dict[str, torch.Tensor]:
    """The matrices, without running anything that a pickle asks for."""
    try:
        weights = peft.load_peft_weights(str(file.parent), device="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{file}: damaged, or not a file of tensors ({reason}). Get --sft-adapter {source} again."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{file}: does not hold tensors by name. Get --sft-adapter {source} again.")
    return weights

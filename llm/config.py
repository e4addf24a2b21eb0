"""The settings of a run: preset ← a user's file ← the command line, resolved into one frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from llm.errors import UserError
from llm.plugins import load_callable

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "tiny"
MAY_BE_ZERO = ("seed", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")


@dataclass(frozen=True)
class AlignConfig:
    """Every setting of an alignment run; `config.yaml` in the run folder is this, resolved."""

    model: str = ""
    """The SFT model to align: a directory or a hub name of a causal language model. It is the prior p(y|x)."""
    prompts: str = ""
    """Prompts: a .jsonl, .jsonl.gz, .parquet or .csv file, or a `datasets` NAME[:SPLIT]."""
    reward: str = ""
    """A sequence-classification model (directory or hub name), or package.module:function on (prompts, completions)."""
    judge: str = ""
    """package.module:function on (prompts, completions) that grades at the very end; training never calls it."""
    goodness: str = "bradley_terry"
    """Goodness p(G=1|y,x) from the reward: bradley_terry, logistic, or package.module:function on an array (B, G)."""
    temperature: float = 1.0
    """Temperature of the target: bradley_terry divides the reward by it; lower means a sharper target."""

    format: Literal["plain", "anthropic-hh"] = "plain"
    """Layout of the rows: a prompt column (text or chat messages), or AnthropicHH's chosen and rejected dialogues."""
    prompt_column: str = "prompt"
    """Column with the prompt, in the plain format."""
    reference_column: str = "reference"
    """Column with the reference completion, in the plain format; without it the prior's own completion is used."""
    test_prompts: str = ""
    """Held-out prompts in the same format; without it they are split off --prompts."""
    validation_count: int = 64
    """Prompts split off for choosing the best checkpoint."""
    test_count: int = 256
    """Held-out prompts of the evaluation before and after."""
    prompt_overflow: Literal["error", "skip", "truncate"] = "error"
    """What to do with a prompt that leaves no room for --max-new-tokens; truncate drops its beginning."""
    max_new_tokens: int = 48
    """Longest completion, in tokens."""

    e: int = 4
    """Proposal updates (Algorithm 1)."""
    m: int = 64
    """Prompts for each proposal update."""
    n: int = 8
    """Completions for each prompt; at least 2."""
    k: int = 32
    """Gradient steps for each proposal update."""
    batch: int = 8
    """Prompt groups in one gradient step."""
    sampling_temperature: float = 1.0
    """Temperature of the proposal's sampling; its log-probs are scored at the same temperature."""

    learning_rate: float = 1e-3
    """AdamW's learning rate; the default suits models of a few million parameters, 1e-5 is the paper's for 7B."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises linearly; constant afterwards."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    adam_beta1: float = 0.9
    """AdamW's first moment decay."""
    adam_beta2: float = 0.95
    """AdamW's second moment decay."""
    max_grad_norm: float = 1.0
    """The gradient is clipped to this L2 norm."""

    lora_r: int = 8
    """Rank of the LoRA adapter."""
    lora_alpha: int = 16
    """Scale of the LoRA adapter (alpha / r multiplies it)."""
    lora_targets: str = "all-linear"
    """Modules that get LoRA, separated by commas, or all-linear."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 loads the base in 4 bits through bitsandbytes (QLoRA)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the base model's weights and products."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    sample_rows: int = 256
    """Completions in one sampling or scoring call (memory)."""
    train_rows: int = 64
    """Completions in one forward and backward pass, whole groups, at least one (memory; the gradient is the same)."""

    validate_every: int = 32
    """Gradient steps between validations; the best checkpoint is kept by win rate."""
    checkpoint_every: int = 32
    """Gradient steps between checkpoints."""
    tracker: str = "tensorboard"
    """Experiment tracker by accelerate's name (tensorboard, wandb, …), or none."""
    seed: int = 0
    """Every random draw of the run derives from it."""
    out: str = ""
    """Run folder; runs/<time> unless given."""


@dataclass(frozen=True)
class Command:
    """Align a language model to a reward model with BRAIn. With no option: an embedded example, offline, in minutes."""

    preset: str = ""
    """A named set of settings, see llm/presets; `tiny` when no --model, --config or --preset is given."""
    config: str = ""
    """A YAML file of settings, over the preset's."""
    resume: str = ""
    """A run folder to go on with, after any interruption."""
    dry_run: bool = False
    """Print the resolved settings and stop."""
    settings: Annotated[AlignConfig, tyro.conf.arg(name="")] = AlignConfig()
    """The settings."""


def parse_command(arguments: Sequence[str]) -> Command:
    """Resolve the command line with its preset and file.

    Raises:
        UserError: An unknown preset, a missing file, an unknown or invalid key, or settings that cannot work.
        SystemExit: Status 2 for an invalid option, 0 for `--help`.
    """
    command = _parse(arguments, AlignConfig())
    if command.resume:
        return command
    layers = _file_layers(command)
    settings = AlignConfig()
    for source, values in layers:
        settings = _overlay(settings, {key: value for key, value in values.items() if key != "prepare"}, source)
    validate(_parse(arguments, settings).settings, check_required=not any("prepare" in values for _, values in layers))
    prepared = AlignConfig()
    for source, values in layers:
        prepared = _overlay(prepared, _with_prepared(values, command.dry_run), source)
    return _parse(arguments, prepared)


def changed_settings(arguments: Sequence[str], stored: AlignConfig) -> list[str]:
    """Name the settings that a resuming command line would change."""
    asked = _parse(arguments, stored).settings
    return [f.name for f in dataclasses.fields(AlignConfig) if getattr(asked, f.name) != getattr(stored, f.name)]


def validate(config: AlignConfig, *, check_required: bool = True) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        UserError: Names the option and what to do.
    """
    if check_required:
        _require_inputs(config)
    if config.n < 2:
        raise UserError(
            f"--n {config.n}: BRAIn compares the completions of a group with each other, and with one completion "
            "the objective is identically 0. Use --n 2 or more."
        )
    _require_bounds(config)
    if config.goodness not in ("bradley_terry", "logistic"):
        load_callable(config.goodness, option="--goodness")
    if config.goodness != "bradley_terry" and config.temperature != 1.0:
        raise UserError(
            f"--temperature {config.temperature}: only --goodness bradley_terry has a temperature; leave it at 1."
        )
    if config.judge:
        load_callable(config.judge, option="--judge")


def dump_config(config: AlignConfig) -> str:
    """Return the settings as YAML."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def load_config(path: Path) -> AlignConfig:
    """Read the settings that `dump_config` wrote.

    Raises:
        UserError: The file is missing, or has unknown or invalid keys.
    """
    return _overlay(AlignConfig(), _read_yaml(path), str(path))


def _require_inputs(config: AlignConfig) -> None:
    """Model, prompts and reward have no general default."""
    for option in ("model", "prompts", "reward"):
        if not getattr(config, option):
            raise UserError(
                f"--{option} is missing. Give --model, --prompts and --reward together, a --preset, "
                "or no option at all for the embedded example."
            )


def _require_bounds(config: AlignConfig) -> None:
    """Numbers that must be finite, not negative, and mostly positive."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, (int, float)):
            continue
        option = "--" + field.name.replace("_", "-")
        if not math.isfinite(value):
            raise UserError(f"{option} {value}: must be a finite number.")
        if value < 0 or (value == 0 and field.name not in MAY_BE_ZERO):
            raise UserError(
                f"{option} {value}: must {'not be negative' if field.name in MAY_BE_ZERO else 'be above 0'}."
            )


def _parse(arguments: Sequence[str], settings: AlignConfig) -> Command:
    """Parse the command line over the given settings."""
    return tyro.cli(
        Command, args=list(arguments), default=Command(settings=settings), prog="python -m llm.align", config=()
    )


def _file_layers(command: Command) -> list[tuple[str, dict[str, Any]]]:
    """Return the preset's and the user's file, in that order, as (source, values)."""
    preset = command.preset
    if not (preset or command.config or command.settings.model):
        preset = DEFAULT_PRESET
    layers = []
    if preset:
        layers.append((f"preset {preset}", _read_yaml(_preset_path(preset))))
    if command.config:
        layers.append((command.config, _read_yaml(Path(command.config))))
    return layers


def _preset_path(name: str) -> Path:
    """Find a preset by name."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise UserError(f"--preset {name}: no such preset{_nearest(name, names)}. There are: {', '.join(names)}.")
    return PRESETS / f"{name}.yaml"


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Check the path.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines, one a setting.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _overlay(settings: AlignConfig, values: dict[str, Any], source: str) -> AlignConfig:
    """Return the settings with a file's values in place, each parsed as its option would be."""
    names = [field.name for field in dataclasses.fields(AlignConfig)]
    for key, value in values.items():
        if key not in names:
            raise UserError(f"{source}: unknown setting {key!r}{_nearest(key, names)}.")
        try:
            settings = tyro.cli(
                AlignConfig, args=[f"--{key.replace('_', '-')}={value}"], default=settings, console_outputs=False
            )
        except SystemExit as error:
            expected = AlignConfig.__dataclass_fields__[key].type
            raise UserError(f"{source}: {key}: {value!r} is not a valid value; expected {expected}.") from error
    return settings


def _with_prepared(values: dict[str, Any], dry_run: bool) -> dict[str, Any]:
    """Run the preparation that a file asks for (`prepare: package.module:function`); it returns settings."""
    values = dict(values)
    prepare = values.pop("prepare", None)
    if prepare is None or dry_run:
        return values
    return {**load_callable(str(prepare), option="prepare")(), **values}


def _nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the most similar name, if any is similar."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

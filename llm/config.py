"""The settings of a run: preset ← a user's file ← the command line, resolved into one frozen dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
import yaml

from llm.console import say
from llm.errors import UserError
from llm.plugins import load_callable
from llm.tables import require_split

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "tiny"
GOODNESS = ("bradley_terry", "logistic")
MAY_BE_ZERO = {"seed", "threads", "max_prompt_tokens", "train_rows", "warmup_steps", "weight_decay"}
MAY_BE_ZERO |= {"adam_beta1", "adam_beta2", "rso_accepted", "sft_weight", "label_smoothing"}
MAY_BE_ZERO |= {"kl_weight", "gae_lambda", "value_weight"}
BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing", "clip")
INPUTS = ("model", "prompts", "reward")
PREPARATION = ("prepare", "prepared")
"""Keys of a file that are no settings."""


@dataclass(frozen=True)
class AlignConfig:
    """Every setting of an alignment run; `config.yaml` in the run folder is this, resolved."""

    model: str = ""
    """The SFT model to align: a directory or a hub name of a causal language model. It is the prior p(y|x)."""
    tokenizer: str = ""
    """Tokenizer's directory or hub name where the model's repository has none."""
    sft_adapter: str = ""
    """A LoRA adapter (directory or hub name) that makes --model the SFT model; the base it names itself is ignored."""
    sft_mode: Literal["copy", "stack", "merge"] = "copy"
    """copy: the policy begins as a copy of the SFT adapter; stack: a new one on top of it; merge: on both added up."""
    prompts: str = ""
    """Prompts: a .jsonl, .jsonl.gz, .parquet or .csv file, or a `datasets` NAME[:SPLIT]."""
    reward: str = ""
    """A sequence-classification model (directory or hub name), or package.module:function on (prompts, completions)."""
    reward_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the reward's model; auto is that of its files, on the CPU float32 instead of a half precision."""
    reward_baseline: Literal["none", "reference"] = "none"
    """reference subtracts the reward of the prompt's reference; with bradley_terry that changes no weight."""
    judge: str = ""
    """package.module:function on (prompts, completions) that grades at the very end; training never calls it."""
    goodness: str = "bradley_terry"
    """Goodness p(G=1|y,x) from the reward: bradley_terry, logistic, or package.module:function on an array (B, G)."""
    temperature: float = 1.0
    """Temperature of the target: bradley_terry divides the reward by it; lower means a sharper target."""

    method: str = "brain"
    """What is done with the completions: brain, dpo-sft, rloo, …, see docs/methods.md; or package.module:function on
    (group tensors, settings) that gives every completion its coefficient."""
    dpo_beta: float = 1.0
    """DPO's beta and its relatives': the power of q_θ/p in brain-argmax, dpo…, ipo, cdpo, rso, infonca, nca, exo. At
    1 theorem 6.1 holds; 0.1 is what DPO's authors use."""
    label_smoothing: float = 0.1
    """cdpo: probability that a preference is wrong."""
    rso_accepted: int = 0
    """rso: completions accepted of n candidates; 0 means n/8, as in its source. Where 32 are to be accepted: n 256."""
    rso_loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """rso: loss on pairs of accepted completions."""
    slic_margin: float = 1.0
    """slic: nats by which the winner of a pair is to lead."""
    sft_weight: float = 1.0
    """slic, rrhf: weight of the likelihood of the group's best completion."""
    clip: float = 0.2
    """rloo, grpo, ppo: how far the probability ratio may move from 1."""
    kl_weight: float = 0.04
    """grpo, quark: weight of the divergence from the prior, nats a token."""
    gae_lambda: float = 0.95
    """ppo: decay of later surprises in an advantage; 1 is the return less the value."""
    value_weight: float = 0.1
    """ppo: weight of the value head's loss."""
    value_clip: float = 0.2
    """ppo: how far a value may move from that before the phase, in units of the reward."""
    quantiles: tuple[str, ...] = ("e", "d", "c", "b", "a")
    """quark: names of the parts of equal size that the pool is cut into by reward, the worst first."""
    quark_prefix: str = "grade {} "
    """quark: text before a prompt that tells the quantile; {} becomes its name. The model must know the words."""
    rollouts: str = ""
    """Train on given completions instead of sampling: another run's folder, or a .jsonl or .parquet file (prompt,
    completions, scores and perhaps log_proposal)."""
    buffer: str = ""
    """Phases that a gradient step draws groups from: all, latest or window:K; unless given, the method's own."""

    format: Literal["plain", "anthropic-hh", "rm-static", "tldr"] = "plain"
    """Rows: a prompt column (text or chat), AnthropicHH's dialogues, rm-static's prompt and chosen, TL;DR's posts."""
    prompt_column: str = "prompt"
    """Column with the prompt, in the plain format."""
    reference_column: str = "reference"
    """Column with the reference completion, in the plain format; without it the prior's own completion is used."""
    rejected_column: str = "rejected"
    """dpo: column with the answer that the reference is preferred to, in the plain format."""
    test_prompts: str = ""
    """Held-out prompts in the same format; without it they are split off --prompts."""
    validation_count: int = 64
    """Prompts split off for choosing the best checkpoint."""
    test_count: int = 256
    """Held-out prompts of the evaluation before and after; rows of --test-prompts that are left out count as taken."""
    prompt_overflow: Literal["error", "skip", "truncate"] = "error"
    """What to do with a prompt that is too long; truncate drops its beginning (in tldr the post's end). A dialogue
    whose last answer is blank is refused by error and left out by the others."""
    max_prompt_tokens: int = 0
    """Longest prompt, in tokens; 0 takes all that --max-new-tokens leaves of the model's context."""
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
    stop: tuple[str, ...] = ()
    """Strings that end a completion, matched on decoded text; the reward and the judge see the text before them."""

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
    threads: int = 0
    """CPU threads; 0 leaves torch's choice. Results are bit-identical only for the same number."""
    engine: Literal["shared-prefix", "plain"] = "shared-prefix"
    """shared-prefix scores and trains with one forward pass of a prompt for all its completions; plain repeats it."""
    sample_rows: int = 256
    """Completions in one sampling or scoring call, whole groups when sampling, at least one (memory)."""
    reward_rows: int = 256
    """Completions in one forward pass of the reward's model (memory)."""
    train_rows: int = 0
    """Completions in one forward and backward pass (memory; the gradient is the same): whole groups, or parts of one
    after a pass without gradient. 0 takes as many as memory has room for; `config.yaml` tells how many."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third slower."""

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
    """A named set of settings, see llm/presets; `tiny` when no --model, --prompts, --config or --preset is given."""
    config: str = ""
    """A YAML file of settings, over the preset's."""
    resume: str = ""
    """A run folder to go on with, after any interruption."""
    dry_run: bool = False
    """Print the resolved settings and a plan (models, tokens, FLOPs, memory, disk, time) and stop."""
    gpu: str = "a100-80"
    """The GPU that --dry-run plans for: rtx-3090, rtx-4090, a10, l40s, a100-40, a100-80, h100 or h200."""
    settings: Annotated[AlignConfig, tyro.conf.arg(name="")] = AlignConfig()
    """The settings."""


def parse_command(arguments: Sequence[str]) -> Command:
    """Resolve the command line with its preset and file.

    A file's `prepare: package.module:function` is called only where a model, prompts or a reward are still missing
    once everything else is resolved. `--dry-run` calls `prepared` instead, which returns what is there already.

    Args:
        arguments: The command line, without the program's name.

    Returns:
        The command with its settings resolved; with `--resume`, the settings still are the defaults.

    Raises:
        UserError: An unknown preset, a missing file, an unknown or invalid key, or settings that cannot work.
        SystemExit: Status 2 for an invalid option, 0 for `--help`.
    """
    command = _parse(arguments, AlignConfig())
    if command.resume:
        _refuse_other_sources(command)
        return command
    layers = _file_layers(command)
    resolved = _parse(arguments, _overlay_all(layers))
    to_prepare = _missing_inputs(resolved.settings) and any("prepare" in values for _, values in layers)
    validate(resolved.settings, check_required=not to_prepare)
    if not to_prepare:
        return resolved
    key = "prepared" if command.dry_run else "prepare"
    resolved = _parse(arguments, _overlay_all([(s, _with_prepared(values, s, key)) for s, values in layers]))
    if command.dry_run and _missing_inputs(resolved.settings):
        say("Not shown: the model, prompts and reward that the run would prepare first.")
    return resolved


def asked_settings(arguments: Sequence[str], stored: AlignConfig) -> AlignConfig:
    """Return a run's settings with what a resuming command line says in place.

    Args:
        arguments: The command line, without the program's name.
        stored: The settings of the run to go on with.

    Raises:
        SystemExit: Status 2 for an invalid option.
    """
    return _parse(arguments, stored).settings


def changed_settings(asked: AlignConfig, stored: AlignConfig) -> list[str]:
    """Name the settings in which two differ."""
    return [f.name for f in dataclasses.fields(AlignConfig) if getattr(asked, f.name) != getattr(stored, f.name)]


def validate(config: AlignConfig, *, check_required: bool = True) -> None:
    """Check what can be checked before anything is loaded.

    Args:
        config: The settings.
        check_required: Whether model, prompts and reward must be there already.

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
    if "" in config.stop:
        raise UserError("--stop: an empty string would end every completion before it begins. Remove it.")
    if config.batch > config.m:
        raise UserError(
            f"--batch {config.batch}: the first phase collects --m {config.m} groups only, which is less than one "
            "batch. Lower --batch or raise --m."
        )
    _check_goodness(config)
    if config.judge:
        load_callable(config.judge, option="--judge")
    if config.test_prompts:
        require_split(config.test_prompts)
    from llm.tracking import check_tracker

    check_tracker(config.tracker)
    _refuse_unused(config)
    _check_method(config)


def buffered_phases(config: AlignConfig) -> int | None:
    """Return how many of the latest phases a gradient step draws from, None for all.

    Raises:
        UserError: `--buffer` is none of all, latest and window:K.
    """
    from llm.methods import METHODS

    rule = config.buffer or METHODS[config.method].buffer
    kind, _, count = rule.partition(":")
    if rule in ("all", "latest"):
        return 1 if rule == "latest" else None
    if kind == "window" and count.isascii() and count.isdigit() and int(count):
        return int(count)
    raise UserError(f"--buffer {config.buffer}: must be all, latest or window:K with K phases, 1 or more.")


def dump_config(config: AlignConfig) -> str:
    """Return the settings as YAML."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def load_config(path: Path) -> AlignConfig:
    """Read the settings that `dump_config` wrote.

    Raises:
        UserError: The file is missing, or has unknown or invalid keys.
    """
    return _overlay(AlignConfig(), _read_yaml(path), str(path))


def _missing_inputs(config: AlignConfig) -> list[str]:
    """The options without a general default that were not given."""
    return [f"--{name}" for name in INPUTS if not getattr(config, name)]


def _require_inputs(config: AlignConfig) -> None:
    """Model, prompts and reward have no general default."""
    if missing := _missing_inputs(config):
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Give --model, --prompts and "
            "--reward together, a --preset, or no option at all for the embedded example."
        )


def _check_goodness(config: AlignConfig) -> None:
    """A goodness of the user's must be there, and some settings are Bradley-Terry's only."""
    if config.goodness not in GOODNESS:
        load_callable(config.goodness, option="--goodness")
    if config.goodness != "bradley_terry" and config.temperature != 1.0:
        raise UserError(
            f"--temperature {config.temperature}: only --goodness bradley_terry has a temperature; leave it at 1."
        )
    if config.goodness != "bradley_terry" and config.reward_baseline != "none":
        raise UserError(
            f"--reward-baseline {config.reward_baseline}: only with --goodness bradley_terry does it leave the weights "
            "as they are; leave it at none."
        )


def _require_bounds(config: AlignConfig) -> None:
    """Numbers that must be finite, not negative, and mostly positive."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) in (int, float) and (expected := _broken_bound(field.name, value)):
            raise UserError(f"{_option(field.name)} {value}: must be {expected}.")


def _broken_bound(name: str, value: float) -> str | None:
    """What a setting's number must be and is not, if anything."""
    if not math.isfinite(value):
        return "a finite number"
    if value < 0 or (value == 0 and name not in MAY_BE_ZERO):
        return "0 or more" if name in MAY_BE_ZERO else "above 0"
    return "below 1" if name in BELOW_ONE and value >= 1 else None


def _refuse_unused(config: AlignConfig) -> None:
    """Refuse settings that this run would not heed."""
    columns = {"anthropic-hh": "chosen, rejected", "rm-static": "prompt, chosen", "tldr": "prompt, label"}
    for name in ("prompt_column", "reference_column", "rejected_column"):
        value = getattr(config, name)
        if config.format != "plain" and value != getattr(AlignConfig(), name):
            raise UserError(
                f"{_option(name)} {value}: --format {config.format} has columns of its own ({columns[config.format]}). "
                "Leave the option out, or use --format plain."
            )


def _check_method(config: AlignConfig) -> None:
    """Refuse settings that the method does not use, and sizes that it cannot work with."""
    from llm.methods import METHODS, accepted_count, method_settings

    method, name = METHODS[config.method], config.method
    for setting in sorted(method_settings() - set(method.heeds)):
        if getattr(config, setting) != getattr(AlignConfig(), setting):
            raise UserError(
                f"{_option(setting)} {getattr(config, setting)}: --method {name} does not use it. Leave it out, or set "
                f"it back to {getattr(AlignConfig(), setting)} where a file sets it."
            )
    if method.is_paired and config.n % 2:
        raise UserError(f"--n {config.n}: --method {name} needs an even number, for pairs or halves of a group.")
    if method.proposal == "given" and config.n != 2:
        raise UserError(
            f"--n {config.n}: --method {name} trains on given pairs, a chosen and a rejected one. Use --n 2."
        )
    if config.label_smoothing >= 0.5:
        raise UserError(f"--label-smoothing {config.label_smoothing}: must be below 0.5, where labels say nothing.")
    if config.sampling_temperature != 1 and (name in ("rso", "nca") or "clip" in method.heeds):
        raise UserError(
            f"--sampling-temperature {config.sampling_temperature}: --method {name} compares completions with the "
            "model that sampled them as it is. Leave it at 1."
        )
    accepted = accepted_count(config)
    if name == "rso" and (accepted % 2 or accepted > config.n):
        raise UserError(f"--rso-accepted {accepted}: must be an even number of at most --n {config.n} candidates.")
    _check_token_method(config)
    _check_given(config)
    buffered_phases(config)


def _check_given(config: AlignConfig) -> None:
    """Refuse completions that are given to a method that cannot use them, or that the data does not have."""
    from llm.methods import METHODS

    method, name = METHODS[config.method], config.method
    if config.rollouts and (method.proposal == "improving" or method.buffer == "latest" or method.tokens):
        raise UserError(
            f"--rollouts {config.rollouts}: --method {name} must sample by itself, for it is made for completions of "
            "its own policy as it is at the time. Leave --rollouts out, or use another method."
        )
    is_of_pairs = method.proposal == "given" and not config.rollouts
    if is_of_pairs and config.format == "tldr":
        raise UserError(
            f"--method {name}: --format tldr has no rejected answers. Give groups of two with --rollouts, or another "
            "--format."
        )
    if not is_of_pairs and config.rejected_column != AlignConfig.rejected_column:
        raise UserError(
            f"--rejected-column {config.rejected_column}: only --method dpo on the pairs of --prompts reads it. "
            "Leave it out."
        )
    is_without_run = is_of_pairs or (config.rollouts and not Path(config.rollouts).is_dir())
    if is_without_run and config.sampling_temperature != 1:
        raise UserError(
            f"--sampling-temperature {config.sampling_temperature}: nothing is sampled to train on. Leave it out."
        )


def _check_token_method(config: AlignConfig) -> None:
    """Refuse settings with which a method of tokens cannot work."""
    name = config.method
    if config.gae_lambda > 1:
        raise UserError(f"--gae-lambda {config.gae_lambda}: must be at most 1.")
    if name == "quark" and not 2 <= len(config.quantiles) == len(set(config.quantiles)):
        raise UserError(f"--quantiles {' '.join(config.quantiles)}: must be two names or more, all different.")
    if name == "quark" and "{}" not in config.quark_prefix:
        raise UserError(f"--quark-prefix {config.quark_prefix!r}: must hold {{}}, the place of the quantile's name.")


def _refuse_other_sources(command: Command) -> None:
    """A run goes on with its own settings."""
    for name in ("preset", "config"):
        if getattr(command, name):
            raise UserError(
                f"--{name} {getattr(command, name)}: --resume {command.resume} goes on with the settings stored in "
                f"that folder. Leave --{name} out, or start a new run without --resume."
            )


def _option(name: str) -> str:
    """A setting's name as it is written on the command line."""
    return "--" + name.replace("_", "-")


def _parse(arguments: Sequence[str], settings: AlignConfig) -> Command:
    """Parse the command line over the given settings."""
    return tyro.cli(
        Command, args=list(arguments), default=Command(settings=settings), prog="python -m llm.align", config=()
    )


def _file_layers(command: Command) -> list[tuple[str, dict[str, Any]]]:
    """Return the preset's and the user's file, in that order, as (source, values)."""
    preset = command.preset
    if not (preset or command.config or command.settings.model or command.settings.prompts):
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
    """Read a YAML mapping of settings; hyphens in a key count as underscores."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Mend the file.") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: expected 'key: value' lines, one a setting.")
    keys = [str(key.value).replace("-", "_") for key, _ in node.value]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UserError(f"{path}: {' and '.join(twice)} given more than once. Keep one line of each.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _overlay_all(layers: Sequence[tuple[str, dict[str, Any]]]) -> AlignConfig:
    """Return the defaults with every layer's values in place, the last on top."""
    settings = AlignConfig()
    for source, values in layers:
        settings = _overlay(settings, {key: value for key, value in values.items() if key not in PREPARATION}, source)
    return settings


def _overlay(settings: AlignConfig, values: dict[str, Any], source: str) -> AlignConfig:
    """Return the settings with a file's values in place, each checked against its setting's type."""
    kinds = get_type_hints(AlignConfig)
    for key in values:
        if key not in kinds:
            raise UserError(f"{source}: unknown setting {key!r}{_nearest(key, list(kinds))}.")
    return dataclasses.replace(
        settings, **{key: _typed(value, kinds[key], f"{source}: {key}") for key, value in values.items()}
    )


def _typed(value: Any, kind: Any, place: str) -> Any:
    """Return a YAML value as a setting of some type, refusing what is not one."""
    if kind is float:
        return _as_float(value, place)
    if get_origin(kind) is tuple:
        return _as_texts(value, place)
    choices = get_args(kind)
    if (choices and value not in choices) or (not choices and type(value) is not kind):
        names = {str: "text (put it in quotes)", int: "a whole number", bool: "true or false"}
        expected = f"one of {', '.join(choices)}" if choices else names[kind]
        raise UserError(f"{place}: {value!r} is not a valid value; expected {expected}.")
    return value


def _as_texts(value: Any, place: str) -> tuple[str, ...]:
    """A YAML list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: {value!r} is not a valid value; expected a list of texts (put them in quotes).")
    return tuple(value)


def _as_float(value: Any, place: str) -> float:
    """A YAML value as a number; YAML 1.1 reads 1e-5, which lacks a dot, as text."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    raise UserError(f"{place}: {value!r} is not a valid value; expected a number.")


def _with_prepared(values: dict[str, Any], source: str, key: str) -> dict[str, Any]:
    """Call what a file names as `prepare`, or as `prepared`, which returns nothing where nothing is there yet."""
    if key not in values:
        return values
    prepared = load_callable(str(values[key]), option=f"{source}: {key}")()
    if prepared is None and key == "prepared":
        return values
    if not isinstance(prepared, dict):
        raise UserError(
            f"{source}: {key}: {values[key]} must return a dict of settings; it returned {type(prepared).__name__}."
        )
    return {**prepared, **values}


def _nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the most similar name, if any is similar."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

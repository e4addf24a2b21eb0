"""The policy: a frozen SFT model, which is the prior, and a trainable LoRA adapter (PPO: and a value head)."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from llm import prefix_attention, processes, sft_adapter, sharding
from llm.config import AlignConfig
from llm.console import say
from llm.controls import control_tokens, likeness, with_control
from llm.errors import UserError
from llm.records import Prompt
from llm.sft_adapter import POLICY, SftAdapter
from llm.streams import torch_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OLD_BUFFERS = re.compile(r"\.(attn|attention|self_attn)\.(bias|masked_bias|rotary_emb\.inv_freq)$")
"""Constants that old checkpoints hold beside the weights and that models now compute themselves."""

ALIKE = 0.8
"""Mean cosine between embeddings from which on a model hardly tells tokens apart."""
VALUE_HEAD, CONTROL = "value_head", "control"
"""Parts of a policy beside its adapter, by the name of their file."""


@dataclass(frozen=True)
class Policy:
    """The policy q_θ and, within `as_prior`, the prior p: one base model with the adapters of one or the other.

    Attributes:
        model: The base with its adapters, always in evaluation mode (dropout off). All but `POLICY` are the prior's.
        tokenizer: Its tokenizer.
        end_ids: Tokens that end a completion.
        context_length: Tokens that prompt and completion may have together.
        identity: Fingerprint of the files, dtype and quantisation of all that is frozen, and of a tokenizer apart.
        shares_prompts: Whether completions of one prompt share its forward pass.
        value_head: PPO's estimate of the reward to come, linear in the last hidden state; trained with the adapter.
        controls: Quark's control tokens for each quantile of the reward, the worst first.
        control: Those that the policy's prompts have before them; none for the prior, and until training has begun.
    """

    model: peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    context_length: int
    identity: str
    shares_prompts: bool
    value_head: torch.nn.Linear | None = None
    controls: tuple[tuple[int, ...], ...] = ()
    control: list[int] = field(default_factory=list)

    @property
    def base(self) -> PreTrainedModel:
        """The causal language model, with the adapter's layers in place."""
        return self.model.get_base_model()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the trainable parameters, in a fixed order."""
        head = self.value_head.parameters() if self.value_head else ()
        return [*(p for p in self.model.parameters() if p.requires_grad), *head]

    @property
    def prompt_context(self) -> int:
        """Tokens that a prompt and its completion may have together beside the longest control."""
        return self.context_length - max(map(len, self.controls), default=0)

    def controlled(self, prompt: Prompt) -> Prompt:
        """Return a prompt as the policy, or within `as_prior` the prior, is to see it."""
        return self.with_control(prompt, tuple(self.control)) if self.control else prompt

    def with_control(self, prompt: Prompt, control: tuple[int, ...]) -> Prompt:
        """Return a prompt with control tokens before it."""
        ids = with_control(prompt.token_ids, control, self.tokenizer.bos_token_id)
        return replace(prompt, token_ids=ids)

    def take_best_control(self) -> None:
        """From now on the policy's prompts have the best quantile's control before them, where it has controls."""
        self.control[:] = self.controls[-1] if self.controls else ()

    @contextlib.contextmanager
    def as_prior(self) -> Iterator[None]:
        """Within this context the model computes the prior: no control, and no adapter of the policy: the SFT model.

        What is trainable stays so, and gradients of a forward pass made outside stay right.
        """
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        before, control = [layer._active_adapter for layer in layers], self.control[:]
        self.control.clear()
        _activate(layers, [[name for name in self.model.peft_config if name != POLICY]] * len(layers))
        try:
            yield
        finally:
            _activate(layers, before)
            self.control[:] = control

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the policy's adapter's tensors, and of those of its parts beside it."""
        state = sft_adapter.adapter_weights(self.model, POLICY)
        for part, tensors in self.parts().items():
            state |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def parts(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return what of the policy lies beside its adapter: the tensors of the value head, and of the control."""
        head = {VALUE_HEAD: self.value_head.state_dict()} if self.value_head else {}
        return head | ({CONTROL: {"token_ids": torch.tensor(self.control)}} if self.control else {})

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put the policy's adapter's tensors in place, and those of its parts.

        Raises:
            UserError: They are not those of an adapter of this shape.
        """
        head, control = (_part(state, part) for part in (VALUE_HEAD, CONTROL))
        own = {key: tensor for key, tensor in state.items() if key.split(".")[0] not in (VALUE_HEAD, CONTROL)}
        try:
            sft_adapter.fill(self.model, POLICY, own)
            if self.value_head:
                self.value_head.load_state_dict(head)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"The stored adapter is not one of this run: {error}. Start a new run.") from error
        self.control[:] = control["token_ids"].tolist() if control else []


def load_policy(config: AlignConfig) -> Policy:
    """Load the base model, make it the SFT model where that takes an adapter, and put the policy's adapter on it.

    Raises:
        UserError: The model, its tokenizer or adapter cannot be loaded or do not fit together, there is no
            end-of-sequence token, or LoRA finds nothing to adapt.
    """
    if not processes.cuts_model():
        return _loaded(config)
    sharding.check_cuttable(config.quantization)
    devices = sharding.devices_of_all(resolve_device(config.device))
    with processes.in_turn():  # until it is cut up, each has the whole base in the computer's memory
        policy = _loaded(config)
        sharding.cut(policy.model, devices)
        if policy.value_head:
            policy.value_head.to(policy.device)
    sharding.keep_step(policy.base)
    return policy


def _loaded(config: AlignConfig) -> Policy:
    """The policy with its base whole."""
    adapter = sft_adapter.requested_adapter(config)
    base = load_base(config.model, config)
    if config.activation_checkpointing:
        checkpoint_activations(base, config.model)
    tokenizer = load_tokenizer(base, config)
    return Policy(
        value_head=_value_head(base) if config.method == "ppo" else None,
        controls=_controls(base, tokenizer, config) if config.method == "quark" else (),
        model=_with_adapters(base, adapter, config),
        tokenizer=tokenizer,
        end_ids=_end_ids(base, tokenizer, config.model),
        context_length=context_length_of(base, config),
        identity=model_fingerprint(
            config.model, _revision(base), config.dtype, config.quantization, *_additions(tokenizer, adapter, config)
        ),
        shares_prompts=config.engine == "shared-prefix" and _shares_prompts(base, config),
    )


def _part(state: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The tensors of a part in a policy's state, under the names that they have in it."""
    return {key.removeprefix(f"{part}."): tensor for key, tensor in state.items() if key.startswith(f"{part}.")}


def _controls(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: AlignConfig
) -> tuple[tuple[int, ...], ...]:
    """Quark's control tokens; says so where the model can hardly tell them apart."""
    controls = control_tokens(tokenizer, config)
    found = likeness(controls, base.get_input_embeddings().weight)
    if found > ALIKE:
        say(
            f"Warning: to this model the names of the --quantiles look alike (a cosine of {found:.2f} between their "
            "embeddings), so it will hardly learn to tell them apart. Choose words that it knows."
        )
    return controls


def _value_head(base: PreTrainedModel) -> torch.nn.Linear:
    """A linear map of the last hidden state to one number, in float32 or better, which starts at 0."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    head = torch.nn.Linear(base.get_output_embeddings().in_features, 1, device=base.device, dtype=dtype)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    return head


def load_base(source: str, config: AlignConfig) -> PreTrainedModel:
    """Load a causal language model in the run's precision, frozen, in evaluation mode."""
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[config.dtype],
        )
        options["device_map"] = {"": resolve_device(config.device)}
    _refuse_adapter(source)
    with _without_load_report():
        model, loaded = load_pretrained(
            AutoModelForCausalLM, source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    refuse_other_shapes(f"--model {source}", loaded["mismatched_keys"])
    _refuse_gaps(source, loaded["missing_keys"], loaded["unexpected_keys"])
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"--model {source}: keeps a recurrent state instead of keys and values, which is not supported yet. "
            "Give a transformer."
        )
    if config.quantization == "nf4":
        _keep_gradients_on_cpu(model)
    elif not processes.cuts_model():
        model.to(resolve_device(config.device))
    return model.eval().requires_grad_(False)


def load_tokenizer(base: PreTrainedModel, config: AlignConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, or the one given instead.

    Raises:
        UserError: There is none (transformers would make an empty one), or it has more tokens than the model.
    """
    source, option = (config.tokenizer, "--tokenizer") if config.tokenizer else (config.model, "--model")
    tokenizer = load_pretrained(AutoTokenizer, source, option=option)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"{option} {source}: has no tokenizer. Name the directory or hub name of the model's tokenizer with "
            "--tokenizer."
        )
    rows = len(base.get_input_embeddings().weight)
    if config.tokenizer and len(tokenizer) > rows:
        raise UserError(
            f"--tokenizer {source}: has {len(tokenizer)} tokens and --model {config.model} only {rows}, so it is not "
            "this model's. Give the tokenizer that the model was trained with."
        )
    end = base.config.get_text_config().eos_token_id
    if config.tokenizer and isinstance(end, int) and end != tokenizer.eos_token_id:
        raise UserError(
            f"--tokenizer {source}: its end-of-sequence token is {tokenizer.eos_token_id}, and that of --model "
            f"{config.model} is {end}, so it is not this model's. Give the tokenizer that the model was trained with."
        )
    return tokenizer


def load_pretrained(factory: Any, source: str, *, option: str = "--model", **options: Any) -> Any:
    """Call a `from_pretrained` without a progress bar, with what goes wrong told in one paragraph."""
    transformers.utils.logging.disable_progress_bar()
    try:
        return factory.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        hint = "Check the path." if Path(source).exists() else "No such directory; as a hub name it could not be had."
        if factory is AutoTokenizer:
            hint += " Where a model has no tokenizer of its own, --tokenizer names it."
        raise UserError(
            f"{option} {source}: {factory.__name__} cannot load it. {hint} ({first_line(error)})"
        ) from error


def resolve_device(device: str) -> str:
    """Return the device that `auto` means here.

    Raises:
        UserError: There is no such device.
    """
    if device == "auto":
        return "cpu" if processes.on_cpu() else "cuda"
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(f"--device {device}: not available here ({first_line(error)}). Use cpu or auto.") from error
    return device


def model_fingerprint(source: str, *settings: str) -> str:
    """Fingerprint a model with what else gives its log-probs their meaning.

    Args:
        source: A directory, whose files are hashed, or a hub name.
        settings: What else; for a hub name, its commit among it.
    """
    digest = hashlib.sha256("|".join(settings).encode())
    digest.update(folder_fingerprint(Path(source)).encode() if Path(source).is_dir() else source.encode())
    return digest.hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Return the sha256 of the names and contents of a folder's files."""
    return files_fingerprint(sorted(path for path in folder.iterdir() if path.is_file()))


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Return the sha256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shares_prompts(base: PreTrainedModel, config: AlignConfig) -> bool:
    """Whether the model can share a prompt's forward pass; says so if not."""
    if reason := prefix_attention.attach(base):
        say(f"{config.model}: every completion is forwarded with its prompt (--engine plain), for {reason}.")
    return not reason


def _with_adapters(base: PreTrainedModel, adapter: SftAdapter | None, config: AlignConfig) -> peft.PeftModel:
    """Put the policy's adapter on the base, and the frozen SFT adapter where the prior needs one."""
    if adapter is None:
        return _with_lora(base, config)
    if config.sft_mode == "merge":
        return _with_lora(sft_adapter.merged(adapter, base), config)
    is_stacked = config.sft_mode == "stack"
    model = _with_lora(base, config) if is_stacked else sft_adapter.policy_from(adapter, base)
    sft_adapter.add_frozen(adapter, model, under_policy=is_stacked)
    return model.eval()


def _activate(layers: list[BaseTunerLayer], names: list[list[str]]) -> None:
    """Say which adapters each layer computes with; peft's own switches change what is trainable as well."""
    for layer, active in zip(layers, names, strict=True):
        layer._active_adapter = active


def _additions(tokenizer: PreTrainedTokenizerBase, adapter: SftAdapter | None, config: AlignConfig) -> list[str]:
    """Fingerprints of what does not lie in the model's folder."""
    parts = [files_fingerprint(adapter.files), config.sft_mode] if adapter else []
    if config.tokenizer:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            parts.append(folder_fingerprint(Path(scratch)))
    return parts


def _refuse_adapter(source: str) -> None:
    """Refuse an adapter in the place of a model; its own idea of its base would be loaded with it."""
    with contextlib.suppress(OSError):
        if find_adapter_config_file(source) is not None:
            raise UserError(
                f"--model {source}: is an adapter. Give the base model that it was trained on as --model, and the "
                f"adapter as --sft-adapter {source}."
            )


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from printing a table of what `_refuse_gaps` judges."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def refuse_other_shapes(name: str, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse a checkpoint whose tensors have other shapes than its configuration says.

    Args:
        name: What is loaded, for the message.
        mismatched: Of each such tensor its name, its shape in the files and its shape by the configuration.

    Raises:
        UserError: There is one.
    """
    for tensor, found, expected in sorted(mismatched, key=lambda entry: entry[0]):
        raise UserError(
            f"{name}: in its files {tensor} has shape {tuple(found)}, and by its config.json {tuple(expected)}. The "
            "two do not belong together; get both anew."
        )


def _refuse_gaps(source: str, missing: set[str], unexpected: set[str]) -> None:
    """Refuse a checkpoint whose tensors are not the model's: what is missing would be drawn at random."""
    unexpected = {name for name in unexpected if not OLD_BUFFERS.search(name)}
    if missing:
        raise UserError(
            f"--model {source}: its files lack weights that would be random instead: {sft_adapter.first_of(missing)}. "
            "The checkpoint is damaged, or not a causal language model's."
        )
    if unexpected:
        raise UserError(
            f"--model {source}: its files hold weights that the model has no place for: "
            f"{sft_adapter.first_of(unexpected)}. The checkpoint is damaged, or of another kind of model."
        )


def _with_lora(base: PreTrainedModel, config: AlignConfig) -> peft.PeftModel:
    """Put a fresh adapter on the base; its output starts at exactly 0."""
    targets: str | list[str] = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in config.lora_targets.split(",")]
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=targets, lora_dropout=0.0
    )
    names = _linear_names(base)
    torch.manual_seed(torch_seed(config.seed, "lora"))
    try:
        model = sft_adapter.put_on(base, settings)
    except ValueError as error:
        raise UserError(
            f"--lora-targets {config.lora_targets}: cannot be used with {config.model} ({first_line(error)}). "
            f"Choose among {', '.join(names)}, or all-linear."
        ) from error
    return model.eval()


def _linear_names(model: torch.nn.Module) -> list[str]:
    """The last parts of the names of the model's linear modules."""
    modules = ((name, m) for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    return sorted({name.rsplit(".", 1)[-1] for name, _ in modules})


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[int, ...]:
    """Collect the tokens that end a completion."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    ids.discard(None)
    if not ids:
        raise UserError(
            f"--model {source}: neither its tokenizer nor its generation settings have an end-of-sequence token, "
            "so no completion could end. Set eos_token in tokenizer_config.json."
        )
    return tuple(sorted(ids))


def _revision(model: PreTrainedModel) -> str:
    """The commit that a model from the hub was loaded at."""
    return str(getattr(model.config, "_commit_hash", None) or "")


def context_length_of(model: PreTrainedModel, config: AlignConfig) -> int:
    """Tokens that the model can hold."""
    settings = model.config.get_text_config()
    length = getattr(settings, "max_position_embeddings", None) or getattr(settings, "n_positions", None)
    if length is None:
        raise UserError(f"--model {config.model}: its config.json states no context length (max_position_embeddings).")
    return int(length)


def _keep_gradients_on_cpu(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference on the CPU, after which LoRA's gradients are zero."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def checkpoint_activations(model: PreTrainedModel, source: str) -> None:
    """Let each layer keep only its input for the backward pass and compute the rest again.

    The library's own switch works in training mode only, where dropout would be on, and stops keys and values from
    being kept in sampling.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--activation-checkpointing: {model.config.model_type} ({source}) has no layers that can be computed "
            "again. Leave the option out; --train-rows saves memory too."
        )
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Any, *args: Any, **options: Any) -> Any:
    """A layer's forward pass, computed again in the backward pass if there will be one."""
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

"""The policy: a frozen base, which is the prior, and a LoRA adapter on it."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
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

from llm import prefix_attention
from llm.config import AlignConfig
from llm.console import say
from llm.errors import UserError
from llm.streams import torch_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Policy:
    """The policy q_θ and, within `as_prior`, the prior p: one base model, the adapter on or off.

    Attributes:
        model: The base with its adapter, always in evaluation mode (dropout off).
        tokenizer: Its tokenizer.
        end_ids: Tokens that end a completion.
        context_length: Tokens that prompt and completion may have together.
        identity: Fingerprint of the base's files, dtype and quantisation.
        shares_prompts: Whether completions of one prompt share its forward pass.
    """

    model: peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    context_length: int
    identity: str
    shares_prompts: bool

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
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def as_prior(self) -> Iterator[None]:
        """Within this context the model computes the prior."""
        with self.model.disable_adapter():
            yield

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the adapter's tensors."""
        state = peft.get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put an adapter's tensors in place."""
        peft.set_peft_model_state_dict(self.model, state)


def load_policy(config: AlignConfig) -> Policy:
    """Load the base model and put a fresh LoRA adapter on it.

    Raises:
        UserError: The model cannot be loaded, has no end-of-sequence token, or LoRA finds nothing to adapt.
    """
    base = load_base(config.model, config)
    if config.activation_checkpointing:
        _checkpoint_activations(base, config.model)
    tokenizer = load_pretrained(AutoTokenizer, config.model)
    return Policy(
        model=_with_lora(base, config),
        tokenizer=tokenizer,
        end_ids=_end_ids(base, tokenizer, config.model),
        context_length=_context_length(base, config),
        identity=model_fingerprint(config.model, _revision(base), config.dtype, config.quantization),
        shares_prompts=config.engine == "shared-prefix" and _shares_prompts(base, config),
    )


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
    model = load_pretrained(AutoModelForCausalLM, source, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"--model {source}: is an adapter. Switching adapters off would give the raw base instead of the SFT model "
            "as the prior; merge the adapter into its base and give the merged model."
        )
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"--model {source}: keeps a recurrent state instead of keys and values, which is not supported yet. "
            "Give a transformer."
        )
    if config.quantization == "nf4":
        _keep_gradients_on_cpu(model)
    else:
        model.to(resolve_device(config.device))
    return model.eval().requires_grad_(False)


def load_pretrained(factory: Any, source: str, **options: Any) -> Any:
    """Call a `from_pretrained` without a progress bar, with what goes wrong told in one paragraph."""
    transformers.utils.logging.disable_progress_bar()
    try:
        return factory.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        hint = "Check the path." if Path(source).exists() else "No such directory; as a hub name it could not be had."
        raise UserError(f"--model {source}: {factory.__name__} cannot load it. {hint} ({first_line(error)})") from error


def resolve_device(device: str) -> str:
    """Return the device that `auto` means here.

    Raises:
        UserError: There is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
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
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks for it
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # peft sets it right for GPT-2
            model = peft.get_peft_model(base, settings)
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


def _context_length(model: PreTrainedModel, config: AlignConfig) -> int:
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


def _checkpoint_activations(model: PreTrainedModel, source: str) -> None:
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

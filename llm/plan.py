"""What a run will need, reckoned before anything is loaded: `python -m llm.align … --dry-run`.

Sizes, FLOPs and the memory of a pass come from the model's own code and the run's own engine, run on tensors that have
shapes and no data; tokens from the loops of Algorithm 1. Time is FLOPs over a share of a GPU's peak, which is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import peft
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from llm import models, prefix_attention, processes, sft_adapter, sharding, shared_prefix
from llm.config import INPUTS, AlignConfig
from llm.convert_reward import PUBLISHED, normal_form
from llm.decoding import PlainDecoder, SharedPrefixDecoder
from llm.errors import UserError
from llm.logprob import token_batch, token_log_probs
from llm.memory import GIB, SHARES, Allocations, cost_of, few_rows, fitting_rows, made_up_pairs, peak_bytes
from llm.models import DTYPES, Policy
from llm.prefix_attention import GroupCache, window_holds
from llm.prompts import load_prompts
from llm.records import Pair, Prompt
from llm.rewards import CONFIG_KEY, precision
from llm.rollout import inverse_cdf
from llm.shared_prefix import prompt_row

META = torch.device("meta")
ATTENTION = "plan"
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
"""A weight in 4 bits, and its part of the doubly quantised scales."""
PASS_SHARE = 0.4
"""Assumed, not measured: the part of a GPU's peak that passes over many tokens reach."""
SAMPLING_SHARE = 0.1
"""Assumed, not measured: the part that sampling, a token of each completion at a time, reaches."""
TERA = 1e12


class Gpu(NamedTuple):
    """A GPU as its maker describes it: TFLOPS of dense products in half and in single precision, and memory in GiB."""

    half: float
    single: float
    gib: float


GPUS = {
    "rtx-3090": Gpu(71, 35.6, 24),
    "rtx-4090": Gpu(165, 82.6, 24),
    "a10": Gpu(125, 31.2, 24),
    "l40s": Gpu(362, 91.6, 48),
    "a100-40": Gpu(312, 19.5, 40),
    "a100-80": Gpu(312, 19.5, 80),
    "h100": Gpu(989, 67, 80),
    "h200": Gpu(989, 67, 140),
}

KNOWN: dict[str, dict[str, tuple[type[PreTrainedConfig], str]]] = {
    "--model": {
        "huggyllama/llama-7b": (LlamaConfig, "float16"),
        "CarperAI/openai_summarize_tldr_sft": (GPTJConfig, "float32"),
    },
    "--reward": {
        PUBLISHED["tldr"].repository: (GPTJConfig, "float16"),
        PUBLISHED["dialogue"].repository: (GPTJConfig, "float32"),
    },
}
"""Class and stored precision of the published models; the library's defaults for these classes are their very sizes."""
DOWNLOADS = {
    "huggyllama/llama-7b": 13.48e9,
    "timdettmers/qlora-hh-rlhf-7b": 0.64e9,
    "CarperAI/openai_summarize_tldr_sft": 24.32e9,
    PUBLISHED["tldr"].repository: 11.81e9,
    PUBLISHED["dialogue"].repository: 24.33e9,
}
"""Bytes of the published files that a run downloads."""
KNOWN_ADAPTERS = {
    "timdettmers/qlora-hh-rlhf-7b": peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=64,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
}


class Lengths(NamedTuple):
    """Tokens of prompts.

    Attributes:
        mean: Of the training prompts.
        longest: Of the training prompts.
        held_out: Mean of the validation and test prompts.
        note: Where these are from.
    """

    mean: float
    longest: int
    held_out: float
    note: str


class Tokens(NamedTuple):
    """Tokens that go through the models.

    Attributes:
        sampling: Policy, a token of each completion at a time after its prompt.
        proposal: Policy, without gradient: log q' and the check of its consistency.
        prior: Prior, without gradient.
        reward: Reward model.
        weights: Policy, without gradient: log q_θ of groups that do not fit into one training pass.
        training: Policy, forward and backward.
    """

    sampling: float = 0
    proposal: float = 0
    prior: float = 0
    reward: float = 0
    weights: float = 0
    training: float = 0

    def plus(self, other: Tokens, times: float = 1) -> Tokens:
        """Return the sum with so many times another's."""
        return Tokens(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


class Disk(NamedTuple):
    """Bytes on the disk.

    Attributes:
        run: Of the run folder.
        hub: Of the published files in the hub's cache.
        converted: Of the reward model's normal form in the cache of this package.
    """

    run: float
    hub: float
    converted: float


class RewardModel(NamedTuple):
    """A reward's model: parameters, precision, bytes, and bytes of one of its passes; without any, a function."""

    parameters: int = 0
    dtype: torch.dtype = torch.float32
    size: float = 0
    activations: float = 0
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run needs; bytes are of one device.

    Attributes:
        config: The settings, with `train_rows` as reckoned.
        lengths: Tokens of the prompts.
        parameters: Of the base, by its configuration.
        trained: Parameters of the policy's adapter.
        reward: The reward model.
        memory: Bytes by part: `base`, `policy`, `prior`, `optimiser` stay; `sampling`, `scoring`, `rewarding` and
            `training` come one after the other; `reward` is there beside scoring and rewarding.
        update: Tokens of one proposal update.
        total: Tokens of the run, evaluations included.
        flops: FLOPs of one token, by the names of `Tokens`.
        disk: Bytes on the disk.
        notes: What was assumed.
    """

    config: AlignConfig
    lengths: Lengths
    parameters: int
    trained: int
    reward: RewardModel
    memory: dict[str, float]
    update: Tokens
    total: Tokens
    flops: Tokens
    disk: Disk
    notes: tuple[str, ...]

    def peak(self) -> float:
        """Return the bytes of what stays and of the largest of what comes and goes."""
        passing = {name: self.memory[name] for name in ("sampling", "scoring", "rewarding", "training")}
        kept = sum(size for name, size in self.memory.items() if name not in (*passing, "reward"))
        beside = dict.fromkeys(("scoring", "rewarding"), self.memory["reward"])
        return kept + max(size + beside.get(name, 0) for name, size in passing.items())

    def seconds(self, tokens: Tokens, gpu: Gpu) -> float:
        """Return the time of some tokens on a GPU, by the assumed shares of its peak."""
        rates = [SAMPLING_SHARE, *[PASS_SHARE] * (len(tokens) - 1)]
        parts = [count * flops / rate for count, flops, rate in zip(tokens, self.flops, rates, strict=True)]
        of_reward = parts.pop(Tokens._fields.index("reward"))
        of_policy = sum(parts) / _peak_rate(gpu, DTYPES[self.config.dtype])
        return of_policy + of_reward / _peak_rate(gpu, self.reward.dtype)


def _peak_rate(gpu: Gpu, dtype: torch.dtype) -> float:
    """A GPU's FLOP/s in a precision; torch does not round float32 to TF32 unless told to."""
    return TERA * (gpu.single if dtype == torch.float32 else gpu.half)


def make_plan(config: AlignConfig, gpu: Gpu) -> Plan:
    """Reckon what a run needs; of models, only configurations are read.

    Args:
        config: The run's settings.
        gpu: Its memory decides on `train_rows`, where that is 0.

    Raises:
        UserError: A model's configuration cannot be had and is not known, or the prompts are wrong.
    """
    settings, known = model_settings(config.model, "--model")
    policy, adapter_notes = skeleton(config, settings)
    reward = reward_model(config, settings)
    lengths = prompt_lengths(config, policy.context_length)
    lasting = _lasting_memory(policy, config)
    config = _with_rows(config, policy, lengths, gpu.gib * GIB * SHARES["cuda"] - sum(lasting.values()))
    rewarding = {"reward": reward.size, "rewarding": reward.activations}
    memory = lasting | rewarding | _passing_memory(policy, config, lengths)
    update, total = run_tokens(config, lengths, shares=policy.shares_prompts, has_reward=reward.parameters > 0)
    trained = sum(parameter.numel() for parameter in policy.parameters())
    return Plan(
        config,
        lengths,
        sum(p.numel() for name, p in policy.model.named_parameters() if "lora_" not in name),
        trained,
        reward,
        memory,
        update,
        total,
        _token_flops(policy, config, lengths, reward.parameters),
        _disk(config, trained, reward.parameters),
        tuple(note for note in (known, *adapter_notes, reward.note, lengths.note) if note),
    )


def model_settings(source: str, option: str) -> tuple[PreTrainedConfig, str]:
    """Return a model's configuration, and a note where it is the one known for a published model.

    Args:
        source: A directory or hub name; of a reward that is converted by its hub name, perhaps with @REVISION.
        option: The option that names it, --model or --reward.

    Raises:
        UserError: It cannot be had.
    """
    name = _published_name(source) if option == "--reward" else source
    if name in KNOWN[option] and not Path(source).exists():
        kind, dtype = KNOWN[option][name]
        return kind(dtype=dtype), f"{source}: by the published sizes; its files were not looked at."
    return models.load_pretrained(AutoConfig, source, option=option), ""


def _published_name(reward: str) -> str:
    """A reward's hub name without its revision."""
    return reward.partition("@")[0]


def skeleton(config: AlignConfig, settings: PreTrainedConfig) -> tuple[Policy, list[str]]:
    """Build the policy without data: every tensor has a shape only.

    Args:
        config: The run's settings.
        settings: The base's configuration.

    Returns:
        the policy, with the SFT adapter under it where the policy computes with both, and notes.
    """
    lora, frozen, notes = _adapters(config)
    with META:
        base = AutoModelForCausalLM.from_config(settings, dtype=DTYPES[config.dtype])
        base.eval().requires_grad_(False)
        if config.activation_checkpointing:
            models.checkpoint_activations(base, config.model)
        model = sft_adapter.put_on(base, lora).eval()
        if frozen is not None:
            _add_frozen(model, frozen)
    shares = config.engine == "shared-prefix" and not prefix_attention.attach(base)
    if base.config.model_type != "gptj":
        base.set_attn_implementation(ATTENTION)
    context = models.context_length_of(base, config)
    return Policy(model, cast(Any, None), (), context, "", shares), notes


def _adapters(config: AlignConfig) -> tuple[peft.LoraConfig, peft.LoraConfig | None, list[str]]:
    """The policy's LoRA, the SFT adapter's if the policy computes with both, and notes."""
    targets: str | list[str] = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in config.lora_targets.split(",")]
    fresh = peft.LoraConfig(
        task_type="CAUSAL_LM", r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=targets
    )
    if not config.sft_adapter or config.sft_mode == "merge":
        return fresh, None, []
    stored, notes = _stored_adapter(config.sft_adapter)
    return (stored, None, notes) if config.sft_mode == "copy" else (fresh, stored, notes)


def _stored_adapter(source: str) -> tuple[peft.LoraConfig, list[str]]:
    """An SFT adapter's settings, without dropout."""
    if source in KNOWN_ADAPTERS and not Path(source).exists():
        return KNOWN_ADAPTERS[source], [f"{source}: by the published sizes; its files were not looked at."]
    stored = models.load_pretrained(peft.PeftConfig, source, option="--sft-adapter")
    stored.lora_dropout, stored.inference_mode, stored.base_model_name_or_path = 0.0, False, None
    return stored, []


def _add_frozen(model: peft.PeftModel, settings: peft.LoraConfig) -> None:
    """Put the SFT adapter under the policy's, frozen."""
    model.add_adapter(sft_adapter.SFT, settings)
    model.base_model.set_adapter([sft_adapter.SFT, sft_adapter.POLICY])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{sft_adapter.POLICY}." in name)


def _flash(query: Any, key: Any, value: Any, scale: float | None = None, **_: object) -> Any:
    """Attention that keeps no scores, as kernels of GPUs do; of tensors without data the library's own would."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)[0]


def _attention_function(
    module: torch.nn.Module, query: Any, key: Any, value: Any, mask: object, scaling: float | None = None, **_: object
) -> tuple[torch.Tensor, None]:
    """What a model calls: as a mask of shared prefixes says, and `_flash` elsewhere."""
    if hasattr(mask, "attend"):
        return mask.attend(
            module.layer_idx, query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling
        ), None
    return _flash(query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention_function)
AttentionMaskInterface.register(ATTENTION, lambda **_: None)


def _kernels() -> AbstractContextManager[object]:
    """Within this context the prompts of a flat row attend by `_flash` as well."""
    return patch.object(prefix_attention, "scaled_dot_product_attention", _flash)


def log_probs(policy: Policy, pairs: Sequence[Pair]) -> torch.Tensor:
    """Do what `llm.logprob.sequence_log_probs` does, with a policy without data."""
    if not (policy.shares_prompts and shared_prefix.pays(policy.base, pairs)):
        return token_log_probs(policy, token_batch(pairs, META)).double().sum(-1)
    row = shared_prefix.flat_row(pairs, torch.device("cpu"))  # boolean indices need data
    prompts, completions, home = (part.to(META) for part in row.layout[:3])
    layout = prefix_attention.Layout(prompts, completions, home, row.layout.spans)
    attend = partial(prefix_attention.flat_attention, layout=layout)
    hidden = shared_prefix.hidden_states(policy.base, row.input_ids.to(META), row.position_ids.to(META), attend)
    sources, targets = (part[row.mask].to(META) for part in (row.sources, row.targets))
    return shared_prefix.head_log_probs(policy.base.get_output_embeddings(), hidden, sources, targets, 1.0).double()


def _peak(work: Callable[[], object]) -> int:
    """Bytes at the peak of a call without gradient."""
    with torch.no_grad(), _kernels(), Allocations(META) as allocations:
        work()
    return allocations.peak


def _pass_peaks(policy: Policy, pairs: list[Pair]) -> tuple[int, int]:
    """Bytes at the peaks of the forward and the backward pass of a training pass."""
    with _kernels():
        return peak_bytes(policy, pairs, log_probs)


def _flops(work: Callable[[], object]) -> int:
    """FLOPs of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def reward_model(config: AlignConfig, policy_settings: PreTrainedConfig) -> RewardModel:
    """Reckon what the reward needs.

    Args:
        config: The run's settings.
        policy_settings: The policy's configuration; a text that fits it is reckoned with, up to the reward's own limit.

    Raises:
        UserError: The model's configuration cannot be had.
    """
    if ":" in config.reward and not Path(config.reward).exists():
        return RewardModel(note=f"{config.reward}: a function; what it needs is not known.")
    if Path(config.reward).exists():
        normal_form(config.reward)  # says what to do with a raw checkpoint
    settings, note = model_settings(config.reward, "--reward")
    dtype = precision(settings, config.reward_dtype, "cuda")
    settings.num_labels = 1
    with META:
        model = AutoModelForSequenceClassification.from_config(settings, dtype=dtype).eval()
    length = _reward_length(config, policy_settings, settings)
    rows = min(config.reward_rows, config.sample_rows * _texts(config))
    ids = torch.zeros(rows, length, dtype=torch.long, device=META)
    if model.config.model_type != "gptj":
        model.set_attn_implementation(ATTENTION)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    activations = _peak(lambda: model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False))
    return RewardModel(sum(p.numel() for p in model.parameters()), dtype, size, activations, note)


def _texts(config: AlignConfig) -> int:
    """Texts that are rewarded for a completion with a prompt of its own: itself, and perhaps the prompt's reference."""
    return 1 + (config.reward_baseline == "reference")


def _reward_length(config: AlignConfig, policy_settings: PreTrainedConfig, settings: PreTrainedConfig) -> int:
    """Most tokens of a text; where prompts are cut for the policy only, the reward's own limit."""
    recipes = {published.repository: published.recipe.max_length for published in PUBLISHED.values()}
    stored = (getattr(settings, CONFIG_KEY, None) or {}).get("max_length", _context(settings))
    limit = int(recipes.get(_published_name(config.reward), stored))
    if config.prompt_overflow == "truncate" and config.format != "tldr":
        return limit
    return min(_room(config, _context(policy_settings)) + config.max_new_tokens + 1, limit)


def _context(settings: PreTrainedConfig) -> int:
    """Tokens that a model can hold."""
    text = settings.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or text.n_positions)


def _room(config: AlignConfig, context: int) -> int:
    """Most tokens of a prompt."""
    room = context - config.max_new_tokens
    return min(room, config.max_prompt_tokens or room)


def prompt_lengths(config: AlignConfig, context: int) -> Lengths:
    """Return the lengths of the prompts: read where they are files and the tokenizer can be had, else as many as fit.

    Args:
        config: The run's settings.
        context: Tokens that the model can hold.

    Raises:
        UserError: The prompts' file is wrong.
    """
    room = _room(config, context)
    source = config.tokenizer or config.model
    if not Path(config.prompts).is_file() or (config.test_prompts and not Path(config.test_prompts).is_file()):
        note = f"Prompts were not read, for {config.prompts} is no file; each is reckoned with {room} tokens, the most."
        return Lengths(room, room, room, note)
    try:
        tokenizer = models.load_pretrained(AutoTokenizer, source)
    except UserError:
        note = f"Prompts were not read, for the tokenizer {source} cannot be had here; each counts {room} tokens."
        return Lengths(room, room, room, note)
    sets = load_prompts(config, tokenizer, context)
    train = [len(prompt.token_ids) for prompt in sets.train]
    held_out = [len(prompt.token_ids) for prompt in sets.validation + sets.test]
    return Lengths(sum(train) / len(train), max(train), sum(held_out) / len(held_out), "")


def run_tokens(config: AlignConfig, lengths: Lengths, *, shares: bool, has_reward: bool) -> tuple[Tokens, Tokens]:
    """Return the tokens of one proposal update and of the run, if every completion has full length.

    Args:
        config: The settings, `train_rows` among them.
        lengths: Tokens of the prompts.
        shares: Whether completions of one prompt share its forward pass.
        has_reward: Whether the reward is a model.
    """
    n, length, prompt = config.n, config.max_new_tokens, lengths.mean
    pair = prompt + length
    group = prompt + n * length if shares else n * pair
    parts = math.ceil(n / config.train_rows)
    in_parts = parts * prompt + n * length if shares else n * pair
    proposal = (1 if config.dtype == "float32" else config.m) * group + n * pair  # the check scores single rows
    groups = config.k * config.batch
    update = Tokens(
        sampling=config.m * (prompt + n * (length - 1)),
        proposal=proposal,
        prior=config.m * group,
        reward=config.m * (n + _texts(config) - 1) * (pair + 1) * has_reward,
        weights=groups * in_parts if parts > 1 else 0,
        training=groups * (in_parts if parts > 1 else group),
    )
    return update, Tokens().plus(update, config.e).plus(_held_out_tokens(config, lengths, has_reward))


def _held_out_tokens(config: AlignConfig, lengths: Lengths, has_reward: bool) -> Tokens:
    """Tokens of all evaluations and validations, and of the references' rewards."""
    steps = config.e * config.k
    validations = 1 + steps // config.validate_every + (steps % config.validate_every > 0)
    prompts = validations * config.validation_count + 2 * config.test_count
    pair = lengths.held_out + config.max_new_tokens
    rewarded = prompts * _texts(config) + config.validation_count + config.test_count
    return Tokens(prompts * (pair - 1), prompts * pair, prompts * pair, rewarded * (pair + 1) * has_reward)


def _token_flops(policy: Policy, config: AlignConfig, lengths: Lengths, reward_parameters: int) -> Tokens:
    """FLOPs of one token: of the policy by passes of a mean group, of the reward 2 for each parameter."""
    prompt, rows = max(1, round(lengths.mean)), min(config.n, config.train_rows)
    pairs = made_up_pairs(prompt, config.max_new_tokens, 1, rows)
    shared = prompt + rows * config.max_new_tokens
    tokens = shared if policy.shares_prompts and rows > 1 else rows * (prompt + config.max_new_tokens)
    with torch.no_grad():
        forward = _flops(lambda: log_probs(policy, pairs)) / tokens
    both = _flops(lambda: log_probs(policy, pairs).sum().backward()) / tokens
    for parameter in policy.parameters():
        parameter.grad = None
    return Tokens(forward, forward, forward, 2 * reward_parameters, forward, both)


def _lasting_memory(policy: Policy, config: AlignConfig) -> dict[str, float]:
    """Bytes that stay on the device for the whole run."""
    trained = sum(parameter.nbytes for parameter in policy.parameters())
    lora = sum(p.nbytes for name, p in policy.model.named_parameters() if "lora_" in name)
    copied = trained if config.sft_adapter and config.sft_mode == "copy" else 0
    return {"base": base_bytes(policy, config), "policy": trained, "prior": lora - trained + copied} | {
        "optimiser": 3 * trained
    }


def base_bytes(policy: Policy, config: AlignConfig) -> float:
    """Return the bytes of the base's weights.

    Args:
        policy: The policy, without data or with.
        config: The run's settings.
    """
    weights = {name: p for name, p in policy.base.named_parameters() if "lora_" not in name}
    buffers = sum(buffer.nbytes for buffer in policy.base.buffers())
    if processes.cuts_model():
        return sharding.planned_bytes(policy.base, processes.count()) + buffers
    packed = _quantized(policy.base) if config.quantization == "nf4" else set()
    sizes = (p.numel() * NF4_BYTES if name in packed else p.nbytes for name, p in weights.items())
    return sum(sizes) + buffers


def _quantized(base: PreTrainedModel) -> set[str]:
    """The names of the weights that are kept in 4 bits: all linear ones but the head's."""
    head = base.get_output_embeddings()
    linear = ((name, m) for name, m in base.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    return {f"{name}.weight" for name, module in linear if module is not head and "lora_" not in name}


def _with_rows(config: AlignConfig, policy: Policy, lengths: Lengths, budget: float) -> AlignConfig:
    """The settings with `train_rows` as the run would choose it on a device with so many bytes left for a pass."""
    if config.train_rows:
        return config
    few = few_rows(policy, config.max_new_tokens, config.n)
    shapes = ((1, few), (1, 2 * few), (2, few))
    pairs = [made_up_pairs(lengths.longest, config.max_new_tokens, *shape) for shape in shapes]
    costs = [cost_of(peaks, few) for peaks in zip(*(_pass_peaks(policy, p) for p in pairs), strict=True)]
    return replace(config, train_rows=min(fitting_rows(cost, budget, config.n, config.batch) for cost in costs))


def _passing_memory(policy: Policy, config: AlignConfig, lengths: Lengths) -> dict[str, float]:
    """Bytes at the peaks of sampling, scoring and training."""
    trained_groups = max(1, config.train_rows // config.n)
    rows = trained_groups * min(config.n, config.train_rows)
    trained = made_up_pairs(lengths.longest, config.max_new_tokens, trained_groups, rows)
    return {
        "sampling": sampling_bytes(policy, config, lengths.longest),
        "scoring": scoring_bytes(policy, config, lengths.longest),
        "training": max(_pass_peaks(policy, trained)),
    }


def _blocks(config: AlignConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Prompts, and completions of each, that are sampled and scored together: in a rollout, and in an evaluation."""
    held_out = max(config.validation_count, config.test_count)
    return (max(1, config.sample_rows // config.n), config.n), (min(config.sample_rows, held_out), 1)


def scoring_bytes(policy: Policy, config: AlignConfig, longest: int) -> int:
    """Return the bytes at the peak of scoring, in a rollout or in an evaluation.

    Args:
        policy: The policy, without data.
        config: The run's settings.
        longest: Tokens of the longest prompt.
    """
    blocks = [made_up_pairs(longest, config.max_new_tokens, groups, groups * n) for groups, n in _blocks(config)]
    return max(_peak(partial(log_probs, policy, pairs)) for pairs in blocks)


def sampling_bytes(policy: Policy, config: AlignConfig, longest: int) -> int:
    """Return the bytes at the peak of sampling, in a rollout or in an evaluation.

    The run's own code forwards the prompts and draws the last token; in an evaluation each completion has a prompt of
    its own, so that a block of it needs the most.

    Args:
        policy: The policy, without data.
        config: The run's settings.
        longest: Tokens of the longest prompt.
    """
    return max(_peak(partial(_sample, policy, config, longest, *block)) for block in _blocks(config))


def _sample(policy: Policy, config: AlignConfig, longest: int, groups: int, n: int) -> None:
    """Sample what needs the most memory: prompts, then the last token of their completions."""
    prompts = [prompt for prompt, _ in made_up_pairs(longest, 1, groups, groups)]
    shares = policy.shares_prompts and window_holds(policy.base, longest + config.max_new_tokens)
    decoder = (_SharedDecoder if shares else _PlainDecoder)(policy, prompts, n, config.max_new_tokens)
    if config.max_new_tokens > 1:
        decoder.step(torch.zeros(groups * n, dtype=torch.long, device=META))
    uniform = torch.zeros(groups * n, dtype=torch.float64, device=META)
    inverse_cdf(decoder.logits, uniform, config.sampling_temperature)


class _SharedDecoder(SharedPrefixDecoder):
    """Without data, and before the last token."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], n: int, capacity: int) -> None:
        row = prompt_row([prompt.token_ids for prompt in prompts], torch.device("cpu"))  # indices need data
        self._model, self._cache = policy.base, GroupCache(row.places, row.lengths, row.home, n, capacity)
        for name, value in vars(self._cache).items():
            if isinstance(value, torch.Tensor):
                setattr(self._cache, name, value.to(META))
        attend = self._cache.prefill
        hidden = shared_prefix.hidden_states(policy.base, row.input_ids.to(META), row.position_ids.to(META), attend)
        self.logits = self._head(hidden[: len(prompts)]).repeat_interleave(n, 0)
        self._positions = torch.zeros(len(self.logits), dtype=torch.long, device=META)
        self._cache._length = capacity - 2


class _PlainDecoder(PlainDecoder):
    """Without data, and before the last token."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], n: int, capacity: int) -> None:
        super().__init__(policy, prompts, n)
        rows, tokens = len(self.logits), max(0, capacity - 2)
        for index, layer in enumerate(self._cache.layers):
            keys, values = (s.new_empty((rows, s.shape[1], tokens, s.shape[3])) for s in (layer.keys, layer.values))
            self._cache.update(keys, values, index)
        self._mask = torch.cat([self._mask, self._mask.new_ones(rows, tokens)], 1)


def _disk(config: AlignConfig, trained: int, reward_parameters: int) -> Disk:
    """Completions with ids, text and scores, two checkpoints with AdamW's state and an adapter; and the models."""
    completions = config.e * config.m * config.n + 3 * config.test_count
    run = completions * (12 * config.max_new_tokens + 100) + (2 * 3 + 1) * 4 * trained
    reward = "" if Path(config.reward).exists() else _published_name(config.reward)
    hub = sum(DOWNLOADS.get(name, 0) for name in (config.model, config.sft_adapter, reward) if not Path(name).exists())
    _, stored = KNOWN["--reward"].get(reward, (None, ""))
    return Disk(run, hub, reward_parameters * DTYPES[stored].itemsize if stored else 0)


def report_plan(config: AlignConfig, gpu: str) -> str:
    """Return what `--dry-run` says beside the settings.

    Args:
        config: The run's settings; where its inputs are still to be prepared, the text says so instead.
        gpu: The name of a GPU.

    Raises:
        UserError: As for `make_plan`, or there is no such GPU.
    """
    find_gpu(gpu)
    if missing := [f"--{name}" for name in INPUTS if not getattr(config, name)]:
        return (
            f"No plan: {', '.join(missing)} would be prepared first. Run once, then plan with the run's own settings: "
            "--config RUN/config.yaml --dry-run."
        )
    return describe(make_plan(config, find_gpu(gpu)), gpu)


def find_gpu(name: str) -> Gpu:
    """Return a GPU by its name.

    Raises:
        UserError: It is not in the table.
    """
    if name not in GPUS:
        raise UserError(f"--gpu {name}: not in the table. There are: {', '.join(GPUS)}.")
    return GPUS[name]


def describe(plan: Plan, name: str) -> str:
    """Return a plan as text.

    Args:
        plan: The plan.
        name: The GPU that times are for.
    """
    gpu, config = find_gpu(name), plan.config
    needed, offered = plan.peak() / GIB, gpu.gib * SHARES["cuda"]
    verdict = "fits" if needed <= offered else "does NOT fit"
    return "\n".join(
        [
            "Plan (every figure is computed, none is measured)",
            f"models: base {plan.parameters:,} parameters, policy's adapter {plan.trained:,}, reward model "
            f"{plan.reward.parameters:,}"
            + (f" in {str(plan.reward.dtype).removeprefix('torch.')}" if plan.reward.size else ""),
            f"prompts: {plan.lengths.mean:.0f} tokens on average, {plan.lengths.longest} at most; completions of "
            f"{config.max_new_tokens}; training passes of {config.train_rows} completions",
            "",
            *_memory_lines(plan),
            f"peak: {needed:.1f} GiB; {name} has {gpu.gib:.0f}, of which {offered:.1f} are planned with: {verdict}",
            "",
            *_token_lines(plan, gpu),
            f"time on a {name}: {plan.seconds(plan.update, gpu) / 3600:.1f} h a proposal update, "
            f"{plan.seconds(plan.total, gpu) / 3600:.1f} h in total, at the "
            f"published {gpu.half:g} TFLOPS ({gpu.single:g} in float32) times an assumed {PASS_SHARE} "
            f"({SAMPLING_SHARE} in sampling)",
            f"disk: {plan.disk.run / GIB:.1f} GiB for the run folder, {plan.disk.hub / GIB:.1f} in the hub's cache for "
            f"published models, {plan.disk.converted / GIB:.1f} in $BRAIN_CACHE for a converted reward model",
            "note: tokens through the reward model are approximate: by the policy's tokenizer, without padding.",
            *(f"note: {note}" for note in (*plan.notes, *_launch_notes())),
        ]
    )


def _launch_notes() -> list[str]:
    """What the launch changes of a plan, which is that of one GPU."""
    if processes.count() == 1:
        return []
    cut = ", its base cut over all of them" if processes.cuts_model() else ""
    return [f"{processes.count()} processes share the run: memory is of each{cut}; times are for one doing all."]


def _memory_lines(plan: Plan) -> list[str]:
    """Memory by part."""
    labels = {
        "base": "base's weights",
        "policy": "policy's adapter",
        "prior": "frozen SFT adapter",
        "optimiser": "gradient and AdamW's state",
        "reward": "reward model, beside scoring and rewards",
        "sampling": "then sampling: keys and values, activations",
        "scoring": "or scoring: activations",
        "rewarding": "or rewards: activations",
        "training": "or a training pass: activations",
    }
    rows = [f"{label:42}{plan.memory[key] / GIB:10.3f}" for key, label in labels.items()]
    return [f"{'memory of one device':42}{'GiB':>10}", *rows]


def _token_lines(plan: Plan, gpu: Gpu) -> list[str]:
    """Tokens, FLOPs and time by use."""
    labels = (
        "policy, sampling",
        "policy, scoring",
        "prior, scoring",
        "reward model",
        "policy, weights",
        "policy, training",
    )
    head = f"{'tokens through':20}{'an update':>16}{'in total':>16}{'TFLOP in total':>18}{'hours':>8}"
    lines = [head]
    for index, label in enumerate(labels):
        only = Tokens(**{Tokens._fields[index]: plan.total[index]})
        flops = plan.total[index] * plan.flops[index] / TERA
        hours = plan.seconds(only, gpu) / 3600
        lines.append(f"{label:20}{plan.update[index]:16,.0f}{plan.total[index]:16,.0f}{flops:18,.0f}{hours:8.1f}")
    return lines

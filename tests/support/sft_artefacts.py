"""Miniatures of the published SFT models: the same files, key names, dtypes and settings, small dimensions."""

from __future__ import annotations

import functools
import gzip
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Tokenizer,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

REAL_DATA = Path(os.environ.get("BRAIN_REAL_DATA", Path(__file__).parents[3] / "shared"))
GPT2_BPE = REAL_DATA / "data" / "gpt2-bpe"
DIALOGUES = REAL_DATA / "data" / "anthropic-hh" / "harmless-base.jsonl.gz"
STAND_IN_TEXT = [
    "Human: How do I bake bread without yeast?",
    "Assistant: You can use baking soda and something sour, such as buttermilk; the bread is ready in an hour.",
    "SUBREDDIT: r/relationships TITLE: I [20F] don't know what to do POST: We met in 2013. TL;DR: it's over",
] * 3
END_OF_TEXT = "<|endoftext|>"
UNUSED_ROWS = 143
"""GPT-J's embedding has that many rows more than GPT-2's vocabulary has tokens."""


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's BPE where there is real data, else a byte-level BPE trained on a few sentences."""
    if GPT2_BPE.is_dir():
        lines = (GPT2_BPE / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return GPT2Tokenizer(vocab=json.loads((GPT2_BPE / "vocab.json").read_text()), merges=merges)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(STAND_IN_TEXT, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def save_gptj_sft(folder: Path, **sizes: int) -> Path:
    """Write a miniature of CarperAI/openai_summarize_tldr_sft: three .bin shards, old buffers, no tokenizer."""
    folder.mkdir(parents=True)
    end = gpt2_tokenizer().eos_token_id
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128} | sizes
    ids = {"vocab_size": end + 1 + UNUSED_ROWS, "bos_token_id": end, "eos_token_id": end}
    config = GPTJConfig(tie_word_embeddings=False, **ids, **settings)
    torch.manual_seed(0)
    state = widened(GPTJForCausalLM(config)).state_dict()
    for layer in range(config.n_layer):
        mask = torch.ones(config.n_positions, config.n_positions, dtype=torch.uint8).tril()
        state[f"transformer.h.{layer}.attn.bias"] = mask[None, None]
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    write_shards(folder, state, 3, "pytorch_model-{:05d}-of-{:05d}.bin", "pytorch_model.bin.index.json")
    write_config(folder, config, architectures=["GPTJForCausalLM"], torch_dtype="float32", pad_token_id=end)
    return folder


def save_llama_tokenizer(folder: Path, size: int = 500) -> None:
    """Write a tokenizer like Llama's (SentencePiece BPE, dummy prefix, bytes for the rest), with Llama's settings."""
    special, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")  # merges stay within words
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special + bytes_, limit_alphabet=150, show_progress=False
    )
    tokenizer.train_from_iterator(training_lines(), trainer)
    stored = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in special]
    stored["post_processor"] = json.loads(
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]).__getstate__()
    )
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    stored["decoder"] = json.loads(decoders.Sequence(strip).__getstate__())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    settings |= {"model_max_length": 10**30, "pad_token": None, "sp_model_kwargs": {}}
    write_json(folder / "tokenizer.json", stored)
    write_json(folder / "tokenizer_config.json", settings | names | {"tokenizer_class": "LlamaTokenizer"})
    write_json(folder / "special_tokens_map.json", names)


def training_lines() -> list[str]:
    """Lines of real dialogues where there is real data, else a few sentences; line ends are never learned."""
    if not DIALOGUES.is_file():
        return STAND_IN_TEXT
    with gzip.open(DIALOGUES, "rt", encoding="utf-8") as file:
        return [line for row in islice(file, 60) for line in json.loads(row)["chosen"].splitlines() if line]


def save_llama_base(folder: Path, **sizes: int) -> Path:
    """Write a miniature of huggyllama/llama-7b: float16 safetensors in two shards, old rotary buffers, tokenizer."""
    folder.mkdir(parents=True)
    save_llama_tokenizer(folder)
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"max_position_embeddings": 128} | sizes
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = LlamaConfig(vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, **settings)
    torch.manual_seed(0)
    model = widened(LlamaForCausalLM(config))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for layer in range(config.num_hidden_layers):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = model.model.rotary_emb.inv_freq.clone()
    write_shards(folder, state, 2, "model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json")
    write_config(folder, config, architectures=["LlamaForCausalLM"], torch_dtype="float16", pad_token_id=0)
    return folder


def save_qlora_adapter(folder: Path, base: Path, **changes: Any) -> Path:
    """Write a miniature of timdettmers/qlora-hh-rlhf-7b: adapter_model.bin in float32, the base's path a dead one.

    Args:
        folder: New.
        base: The Llama that the adapter is for.
        changes: Settings that differ from the published ones.
    """
    folder.mkdir(parents=True)
    settings = {
        "base_model_name_or_path": "/gscratch/zlab/llama/7B",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 64,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    } | changes
    write_json(folder / "adapter_config.json", settings)
    generator, state = torch.Generator().manual_seed(1), {}
    for name, (rows, columns) in linear_shapes(base, settings["target_modules"]).items():
        lora_a = torch.randn(settings["r"], columns, generator=generator) / columns**0.5
        lora_b = torch.randn(rows, settings["r"], generator=generator) / settings["r"] ** 0.5
        state |= {f"base_model.model.{name}.lora_A.weight": lora_a, f"base_model.model.{name}.lora_B.weight": lora_b}
    torch.save(state, folder / "adapter_model.bin")
    return folder


def linear_shapes(base: Path, targets: list[str]) -> dict[str, torch.Size]:
    """The shapes of a saved model's weights whose modules bear one of the names."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for file in sorted(base.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if name.split(".")[-2] in targets
    }


def widened(model: PreTrainedModel) -> PreTrainedModel:
    """Widen the spread of a random model's output distribution."""
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    return model


def write_config(folder: Path, config: PreTrainedConfig, **published: Any) -> None:
    """Write config.json as transformers 4 did, with `torch_dtype` in place of `dtype`."""
    values = {name: value for name, value in config.to_dict().items() if name != "dtype"}
    write_json(folder / "config.json", values | published | {"transformers_version": "4.25.1"})


def write_shards(folder: Path, state: dict[str, torch.Tensor], count: int, pattern: str, index: str) -> None:
    """Write a state dict as numbered shards, and the index that says what lies where."""
    names = list(state)
    weight_map = {name: pattern.format(1 + i * count // len(names), count) for i, name in enumerate(names)}
    save = torch.save if pattern.endswith(".bin") else functools.partial(save_file, metadata={"format": "pt"})
    for file in sorted(set(weight_map.values())):
        save({name: state[name].contiguous() for name in names if weight_map[name] == file}, folder / file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, values: Any) -> None:
    """Write JSON as people do."""
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")

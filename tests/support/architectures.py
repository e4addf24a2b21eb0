"""Random small models of every kind of causal language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from letter_world import letter_tokenizer

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
SMALL_GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64}
ARCHITECTURES = {
    "gpt2": SMALL_GPT2,
    "gptj": SMALL_GPT2 | {"rotary_dim": 4},
    "gpt_neox": SMALL | {"intermediate_size": 64},
    "llama": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2},
    "mistral": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen3": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
}


def save_model(folder: Path, architecture: str) -> Path:
    """Write a random small model of an architecture with the letters' tokenizer."""
    tokenizer = letter_tokenizer()
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture], **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

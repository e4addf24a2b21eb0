"""A world of letters: a random little Llama over 29 characters, prompts of letters, a reward that counts a's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm.config import AlignConfig
from llm.models import Policy
from llm.train import train_step

LETTERS = "abcdefghijklmnopqrstuvwxyz "
REWARDS = """
def count_a(prompts, completions):
    return [float(text.count("a")) for text in completions]

def grade(prompts, completions):
    return [float(text.count("a") - text.count("b")) for text in completions]

def raises(prompts, completions):
    raise RuntimeError("the judge was called")

def too_few(prompts, completions):
    return [1.0]

def not_a_number(prompts, completions):
    return [float("nan") for _ in completions]

def infinite(prompts, completions):
    return [float("inf") for _ in completions]

def grade_sum(reward):
    return reward.sum()

def tempered(reward):
    return reward / 2
"""


def letter_tokenizer(letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token a letter, lossless, with beginning, end and padding tokens that are never added by themselves."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def save_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, *, scale: float = 1.0, **sizes: int) -> Path:
    """Write a random Llama; `scale` widens its output distribution's spread."""
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        **(settings | sizes),
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def letter_config(out: Path | str = "", **changes: object) -> AlignConfig:
    """Settings of a run that takes a second or two."""
    settings = {
        "model": "model",
        "prompts": "prompts.jsonl",
        "reward": "letter_rewards:count_a",
        "e": 2,
        "m": 6,
        "n": 4,
        "k": 4,
        "batch": 3,
        "max_new_tokens": 6,
        "validation_count": 8,
        "test_count": 10,
        "validate_every": 3,
        "checkpoint_every": 2,
        "sample_rows": 12,
        "learning_rate": 1e-2,
        "temperature": 0.2,
        "tracker": "none",
        "threads": 1,
        "out": str(out),
    }
    return AlignConfig(**(settings | changes))


def moved(policy: Policy) -> Policy:
    """Give every tensor of the adapter random values."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return policy


def interrupting(count: int) -> Callable[..., object]:
    """`llm.train.train_step`, but for the step after `count` of them, which is interrupted."""
    calls = iter(range(count + 1))

    def step(*arguments: Any) -> object:
        if next(calls) == count:
            raise KeyboardInterrupt
        return train_step(*arguments)

    return step

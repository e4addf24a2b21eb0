"""Miniatures of the two published reward models, and an independent reading of them.

The files are what their authors' classes saved: `GPTRewardModel` of the TL;DR reward model in half precision, that of
the dialogue reward model in single precision with the whole language model beside it; old causal masks in both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import GPT2Tokenizer, GPTJConfig, GPTJForCausalLM, GPTJModel

END = "<|endoftext|>"
FILES = {"tldr": "pytorch_model.bin", "dialogue": "hf_ckpt.pt"}
SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}


def byte_tokenizer() -> GPT2Tokenizer:
    """GPT-2's tokenizer without a single merge: a token is a byte, and the end token comes after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return GPT2Tokenizer(vocab={letter: index for index, letter in enumerate([*alphabet, END])}, merges=[])


def write_base(folder: Path, tokenizer: Any, **changes: int) -> Path:
    """Write what the base's repository holds beside its weights: config.json and the tokenizer."""
    end = tokenizer.eos_token_id
    vocabulary = 50400 if end == 50256 else end + 4
    sizes = SIZES | {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end, "n_positions": 1024}
    GPTJConfig(**(sizes | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, recipe: str, base: Path) -> Path:
    """Write a random reward model's file exactly as the published one; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(published_state(recipe, GPTJConfig.from_pretrained(base)), folder / FILES[recipe])
    return folder


def published_state(recipe: str, config: GPTJConfig) -> dict[str, torch.Tensor]:
    """The state dict of a random reward model, by its published names and in its published precisions."""
    torch.manual_seed(5)
    config.initializer_range = 0.2
    model = GPTJForCausalLM(config)
    head = torch.randn(1, config.n_embd).half()
    trunk = {f"transformer.{name}": tensor for name, tensor in with_old_buffers(model.transformer, config).items()}
    if recipe == "tldr":
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trunk.items()}
        return {**half, "v_head.weight": head}
    copy = {f"model.{name}": tensor for name, tensor in trunk.items()}
    return {**copy, **{f"model.lm_head.{n}": t for n, t in model.lm_head.state_dict().items()}, **trunk} | {
        "v_head.weight": head
    }


def with_old_buffers(trunk: GPTJModel, config: GPTJConfig) -> dict[str, torch.Tensor]:
    """The trunk's state dict with the masks that old versions of the library kept in it."""
    size = config.n_positions
    causal = torch.tril(torch.ones(size, size, dtype=torch.uint8)).view(1, 1, size, size)
    state = dict(trunk.state_dict())
    for layer in range(config.n_layer):
        state[f"h.{layer}.attn.bias"] = causal
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    return state


class IndependentReading:
    """The two reward models as their authors describe them: row by row, unpadded, on the plain GPT-J trunk.

    Takes the published file, and shares nothing with `llm` but the library's GPT-J.
    """

    def __init__(self, recipe: str, checkpoint: Path, base: Path, encode: Any) -> None:
        state = torch.load(checkpoint / FILES[recipe], weights_only=True)
        self._trunk = GPTJModel(GPTJConfig.from_pretrained(base)).eval()
        names = self._trunk.state_dict()
        self._trunk.load_state_dict({name: state[f"transformer.{name}"].float() for name in names})
        self._head = state["v_head.weight"].float()
        self._recipe = recipe
        self._encode = encode
        self._end = self._trunk.config.eos_token_id

    def __call__(self, post: str, summary: str, max_length: int) -> float:
        """The score of a text made of two parts, `summary` with its own "TL;DR: " for the TL;DR model."""
        if self._recipe == "tldr":
            ids = self._ids("<|startoftext|>" + post + "\n" + summary + END)[:max_length]
            index = ids.index(self._end) - 1 if self._end in ids else len(ids) - 1
        else:
            ids = self._ids(post + summary + END)[-max_length:]
            index = ids.index(self._end)
        with torch.no_grad():
            hidden = self._trunk(torch.tensor([ids])).last_hidden_state[0, index]
        return float((hidden.double() * self._head[0].double()).sum())

    def _ids(self, text: str) -> list[int]:
        """Encode the pieces around the end token's text apart, and put its id between them."""
        pieces = text.split(END)
        ids = self._encode(pieces[0])
        for piece in pieces[1:]:
            ids = [*ids, self._end, *(self._encode(piece) if piece else [])]
        return ids


def gpt2_tokenizer(folder: Path) -> GPT2Tokenizer:
    """The real GPT-2 tokenizer from its two files."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)

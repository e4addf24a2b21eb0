"""Every kind of causal language model goes through the same scorer and sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from letter_world import letter_config, letter_tokenizer, moved
from llm.align import run
from llm.logprob import score
from llm.models import load_policy
from llm.records import Prompt
from llm.rollout import sample_groups
from llm.store import read_events

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
SMALL_GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64}
ARCHITECTURES = {
    "gpt2": SMALL_GPT2,
    "gptj": SMALL_GPT2 | {"rotary_dim": 4},
    "gpt_neox": SMALL | {"intermediate_size": 64},
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_in_a_padded_batch_equal_those_of_plain_rows(architecture: str, tmp_path: Path) -> None:
    policy = moved(load_policy(letter_config(model=str(save_model(tmp_path, architecture)))))
    prompts = [Prompt(t, t, tuple(policy.tokenizer(t)["input_ids"]), None) for t in ("a", "hello there", "xyz")]
    groups = sample_groups(policy, prompts, 3, draw=(0, "rollout", 0), max_new_tokens=8)
    pairs = [(prompt, c) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    expected = []
    for prompt, completion in pairs:
        ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
        with torch.no_grad():
            log_probs = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1].double(), -1)
        expected.append(float(log_probs.gather(-1, ids[0, 1:, None])[len(prompt.token_ids) - 1 :].sum()))
    assert score(policy, pairs, 9) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantization": "nf4", "dtype": "bfloat16"}])
def test_half_precision_runs_through_from_the_prior_to_another_policy(
    settings: dict, in_letters: Path, tmp_path: Path
) -> None:
    summary = run(letter_config(tmp_path / "run", **settings))
    assert summary["before"]["kl_to_prior"]["estimate"] == 0
    phases = [e for e in read_events(tmp_path / "run" / "metrics.jsonl") if e["event"] == "phase"]
    assert [0 <= phase["self_consistency"] < 1 for phase in phases] == [True, True]
    assert summary["after"]["kl_to_prior"]["estimate"] != 0

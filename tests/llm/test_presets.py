"""The presets of the paper's runs against the paper; its numbers are typed here again, with where they stand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llm.config import PRESETS, AlignConfig, parse_command
from llm.convert_reward import PUBLISHED

BOTH = {
    "n": 32,  # section 8, Training details: n = 32 samples per input prompt, grouped together
    "validate_every": 1000,  # section 8: evaluated after every 1,000 steps
    "learning_rate": 0.00001,  # appendix B.2: learning rate of 1e-5
    "weight_decay": 0.1,  # appendix B.2
    "adam_beta1": 0.9,  # appendix B.2
    "adam_beta2": 0.95,  # appendix B.2
    "goodness": "bradley_terry",  # section 5.1 and section 8: a Bradley-Terry reward model
    "temperature": 1.0,  # eq. (20): exp(r), undivided
}
PAPER: dict[str, dict[str, Any]] = {
    "hh-llama7b": {
        "sft_adapter": "timdettmers/qlora-hh-rlhf-7b",  # appendix B.1, footnote 5
        "reward": "Dahoas/gptj-rm-static",  # footnote 6
        "prompts": "Dahoas/rm-static:train",  # footnote 7
        "lora_r": 64,  # appendix B.2: rank=64, alpha=16
        "lora_alpha": 16,
        "quantization": "nf4",  # appendix B.2: QLoRA
    },
    "tldr-gptj": {
        "model": "CarperAI/openai_summarize_tldr_sft",  # footnote 2
        "reward": "CarperAI/openai_summarize_tldr_rm_checkpoint",  # footnote 3
        "prompts": "CarperAI/openai_summarize_tldr:train",  # footnote 4
        "lora_r": 8,  # appendix B.2: rank=8, alpha=32
        "lora_alpha": 32,
        "quantization": "none",  # appendix B.2: LoRA
    },
}
TEST_ROWS = {"hh-llama7b": 5103, "tldr-gptj": 6553}
RECIPES = {"hh-llama7b": "dialogue", "tldr-gptj": "tldr"}


def preset(name: str, *options: str) -> AlignConfig:
    return parse_command(["--preset", name, *options]).settings


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_has_the_papers_settings(name: str) -> None:
    config = preset(name)
    for field, expected in (BOTH | PAPER[name]).items():
        assert getattr(config, field) == expected, field


@pytest.mark.parametrize("name", PAPER)
def test_all_test_rows_are_for_the_evaluation_and_none_of_them_for_choosing(name: str) -> None:
    config = preset(name)
    assert (config.test_count, config.test_prompts) == (TEST_ROWS[name], config.prompts.replace(":train", ":test"))
    assert config.validation_count >= 500
    assert config.sampling_temperature == 1.0


@pytest.mark.parametrize("name", PAPER)
def test_the_reward_model_reads_whatever_prompt_and_completion_fit(name: str) -> None:
    config, recipe = preset(name), PUBLISHED[RECIPES[name]].recipe
    added = {"tldr": 7 + 1, "dialogue": 1}[RECIPES[name]]  # the opening's tokens and the end token
    assert config.reward.startswith(PUBLISHED[RECIPES[name]].repository)
    assert 0 < config.max_prompt_tokens + config.max_new_tokens + added <= recipe.max_length
    assert config.prompt_overflow == "truncate"


def test_dialogues_stop_where_the_human_would_speak_and_summaries_do_not() -> None:
    assert preset("hh-llama7b").stop == ("### Human:", "\nHuman:")
    assert preset("tldr-gptj").stop == ()


@pytest.mark.parametrize("name", PAPER)
def test_a_proposal_update_comes_with_each_of_the_papers_evaluations(name: str) -> None:
    config = preset(name)
    assert config.k % config.validate_every == 0
    assert config.e >= 2
    assert config.batch * config.k >= config.m  # a phase's groups are used about once at least


def test_the_summariser_may_be_quantised_too() -> None:
    config = preset("tldr-gptj", "--quantization", "nf4")
    assert (config.quantization, config.lora_r) == ("nf4", 8)


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_says_what_it_needs_and_that_it_was_not_run_at_full_size(name: str) -> None:
    header = (PRESETS / f"{name}.yaml").read_text().split("\n\n")[0]
    for expected in ("Run on: not run at full size", "Memory and time: computed", f"--preset {name} --out RUN"):
        assert expected in header


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_leaves_open_is_written_down_with_a_reason(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    given = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    opened = {"m", "e", "k", "batch", "warmup_steps", "max_grad_norm", "lora_targets", "max_prompt_tokens"}
    opened |= {"max_new_tokens", "sampling_temperature", "stop", "goodness", "prompt_overflow", "validation_count"}
    assert opened <= given
    assert text.count("Left open") >= 3
    assert "no dropout" in text

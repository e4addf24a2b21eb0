"""The presets of the paper's runs against the paper; its numbers are typed here again, with where they stand."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import tyro

from doc_tables import DOCS, documented
from llm.config import PRESETS, AlignConfig, parse_command
from llm.convert_reward import PUBLISHED, ConvertConfig

GUIDE = DOCS / "full_runs.md"

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
    assert preset("hh-llama7b").stop == ("### Human:", "\nHuman:", "\nAssistant:")
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


def blocks(name: str) -> list[tuple[list[str], list[str]]]:
    """A preset's comments, line by line, each with the settings that follow it."""
    found: list[tuple[list[str], list[str]]] = []
    comes_after_setting = True
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        if line.startswith("#"):
            if comes_after_setting:
                found.append(([], []))
            found[-1][0].append(line.removeprefix("# "))
        elif line:
            found[-1][1].append(line.partition(":")[0])
        comes_after_setting = not line.startswith("#")
    return found


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_says_what_it_needs_and_that_it_was_not_run_at_full_size(name: str) -> None:
    header, settings = blocks(name)[0]
    assert settings == []
    for expected in ("Run on: not run at full size", "Memory and time: computed", f"--preset {name} --out RUN"):
        assert expected in "\n".join(header)


@pytest.mark.parametrize("name", PAPER)
def test_a_presets_header_has_the_figures_of_the_guides_table(name: str) -> None:
    """Which the plan's own test compares with the plan."""
    header = " ".join(blocks(name)[0][0])
    rows = [row for row in documented(GUIDE.name, "memory at the peak") if row[0] == f"--preset {name}"]
    assert rows
    for _, card, memory, _, hours, _ in rows:
        assert f"computed, not measured: {memory} at the peak" in header
        assert re.search(rf"{hours.removesuffix(' h')} (hours )?on an {card.partition('-')[0].upper()}", header)


@pytest.mark.parametrize("name", PAPER)
def test_lines_of_comments_are_full(name: str) -> None:
    """No word stands alone on a line, but at an end."""
    for lines, _ in blocks(name):
        for line, following in pairwise(lines):
            assert len(line) <= 118
            assert len(line.split()) > 2 or not following[0].islower()


REASONS = {
    "m": "twice in the first phase",
    "e": "evaluations to choose from",
    "k": "distance between evaluations",
    "batch": "batches of 8 groups",
    "warmup_steps": "warm-up",
    "max_grad_norm": "gradient",
    "max_prompt_tokens": "trained",
    "max_new_tokens": "trained",
    "sampling_temperature": "must cover the policy",
    "stop": "The SFT model ends",
}
OF_ONE = {
    "hh-llama7b": {"prompt_overflow": "the end counts"},
    "tldr-gptj": {"prompt_overflow": "posts are cut", "lora_targets": "what peft takes"},
}
"""What the paper leaves open, with words of the reason."""
OTHER = {
    "validation_count": "to within 3 points",
    "goodness": "Bradley-Terry loss",
    "reward_rows": "GiB for a text",
    "sample_rows": "a row",
    "train_rows": "as fit",
}
"""What else was chosen."""


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_leaves_open_is_said_to_be_and_has_its_reason(name: str) -> None:
    comment_of = {setting: " ".join(lines) for lines, settings in blocks(name) for setting in settings}
    for setting, reason in (REASONS | OF_ONE[name]).items():
        assert comment_of[setting].startswith("Left open by the paper"), setting
        assert reason in comment_of[setting]
    for setting, reason in OTHER.items():
        assert reason in comment_of[setting], setting
    for setting in (BOTH | PAPER[name]).keys() & comment_of.keys():
        assert "Left open" not in comment_of[setting], setting
    assert "no dropout" in comment_of["max_grad_norm"]


def guide_commands() -> list[str]:
    """The lines of the guide that are commands."""
    return [line.strip() for line in GUIDE.read_text().splitlines() if line.startswith("    python -m ")]


def test_every_command_of_the_guide_parses() -> None:
    commands = guide_commands()
    assert len(commands) >= 10
    for command in commands:
        words = command.split()[2:]
        if words[0] == "llm.align":
            parse_command(words[1:])
        else:
            assert words[0] == "llm.convert_reward"
            tyro.cli(ConvertConfig, args=words[1:])
    (trial,) = re.findall(r"the preset with `(.*?)`", GUIDE.read_text())
    for name in PAPER:
        parse_command(["--preset", name, *trial.split()])


def test_the_guide_plans_what_its_table_shows() -> None:
    planned = [command for command in guide_commands() if "--dry-run" in command]
    rows = [
        f"python -m llm.align {options} --dry-run --gpu {card}"
        for options, card, *_ in documented(GUIDE.name, "whole run")
    ]
    assert rows == planned

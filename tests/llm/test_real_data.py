"""The real small Llama and real AnthropicHH dialogues, as a user would bring them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llm.store import ShardFolder
from llm.tables import read_rows

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("BRAIN_REAL_DATA", REPOSITORY.parent / "shared"))
STORIES = REAL_DATA / "models" / "stories260k"
DIALOGUES = REAL_DATA / "data" / "anthropic-hh" / "harmless-base.jsonl.gz"

pytestmark = pytest.mark.skipif(not STORIES.exists(), reason=f"no real data at {REAL_DATA} (set $BRAIN_REAL_DATA)")

REWARDS = """
WORDS = ("happy", "smile", "laugh", "fun", "love")

def cheerful(prompts, completions):
    return [float(sum(text.lower().count(word) for word in WORDS)) for text in completions]

def brief(prompts, completions):
    return [-float(len(text.split())) for text in completions]
"""
NAMES = ("Lily", "Tom", "Mia", "Ben", "Sue", "Max", "Anna", "Tim", "Jack", "Lucy")
THINGS = ("red ball", "big dog", "small cat", "toy car", "tall tree", "blue bird", "cake", "boat", "box", "hat")
BEGINNINGS = ("Once upon a time, {} had a {}.", "One day, {} saw a {}.", "{} wanted a {}.", "{} found a {}.")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A user's folder: story prompts and a package of rewards."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "rewards.py").write_text(REWARDS)
    prompts = [b.format(name, thing) for b, name, thing in product(BEGINNINGS, NAMES, THINGS)]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return tmp_path


def align(folder: Path, *options: object) -> dict:
    """Run `python -m llm.align` in a folder and return its summary."""
    command = [sys.executable, "-m", "llm.align", *map(str, options), "--out", "RUN"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "RUN" / "summary.json").read_text())


@pytest.mark.slow
def test_the_real_llama_learns_to_write_cheerful_stories(workplace: Path) -> None:
    summary = align(
        workplace, "--model", STORIES, "--prompts", "stories.jsonl", "--reward", "mypackage.rewards:cheerful", "--n", 16
    )
    assert summary["change"]["mean_reward"]["low"] > 0
    assert summary["after"]["kl_to_prior"]["low"] > 0


def test_real_dialogues_run_through_and_everything_left_out_is_counted(workplace: Path) -> None:
    room = 512 - 16
    summary = align(
        workplace,
        *("--model", STORIES, "--prompts", DIALOGUES, "--format", "anthropic-hh", "--prompt-overflow", "skip"),
        *("--reward", "mypackage.rewards:brief", "--max-new-tokens", 16, "--n", 4, "--e", 1, "--m", 8, "--k", 3),
        *("--batch", 4, "--validation-count", 8, "--test-count", 16, "--tracker", "none"),
    )
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    rows = [row for _, row in read_rows(DIALOGUES)]
    prompts = [row["chosen"][: row["chosen"].rfind("\n\nAssistant:")] + "\n\nAssistant:" for row in rows]
    counts = summary["counts"]
    assert counts["rows"] == len(rows) == 1800
    assert counts["skipped_prompts"] == sum(len(tokenizer(prompt)["input_ids"]) > room for prompt in prompts) > 0
    shared = [row["rejected"].startswith(prompt) for row, prompt in zip(rows, prompts, strict=True)]
    assert counts["diverging_dialogues"] == shared.count(False) == 2
    stored = ShardFolder(workplace / "RUN" / "eval").read("after")
    assert all(row["prompt"].endswith("\n\nAssistant:") for row in stored)
    answers = {p: row["chosen"][len(p) :] for p, row in zip(prompts, rows, strict=True)}
    assert all(row["reference"] == answers[row["prompt"]] for row in stored)

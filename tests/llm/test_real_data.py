"""The real small Llama, real dialogues, posts and generations, as a user would bring them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2TokenizerFast

from llm.config import AlignConfig
from llm.methods import METHODS
from llm.prompts import PromptSets, load_prompts
from llm.records import Prompt
from llm.stopping import stop_position, text_before_stop, tokens_until_stop
from llm.store import ShardFolder, read_events
from llm.tables import read_rows

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("BRAIN_REAL_DATA", REPOSITORY.parent / "shared"))
STORIES = REAL_DATA / "models" / "stories260k"
DIALOGUES = REAL_DATA / "data" / "anthropic-hh" / "harmless-base.jsonl.gz"
POSTS = {split: REAL_DATA / "data" / "tldr" / f"posts-{split}.jsonl" for split in ("train", "test")}
GENERATIONS = REAL_DATA / "data" / "hh-sft-samples" / "qlora-hh-7b-generations.jsonl"
HUMAN_TURNS = Path(__file__).parent / "data" / "human_turns.csv"
STOPS = ("### Human:", "\nHuman:", "\nAssistant:")
TLDR_IDS = (198, 14990, 26, 7707, 25)

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


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_real_llama_on_real_dialogues(method: str, workplace: Path) -> None:
    n, batch = (2, 8) if method == "dpo" else (4, 4)
    summary = align(
        workplace,
        *("--model", STORIES, "--prompts", DIALOGUES, "--format", "anthropic-hh", "--prompt-overflow", "skip"),
        *("--reward", "mypackage.rewards:brief", "--max-new-tokens", 16, "--n", n, "--e", 2, "--m", 8, "--k", 3),
        *("--max-prompt-tokens", 200, "--batch", batch, "--validation-count", 8, "--test-count", 16),
        *("--tracker", "none", "--method", method),
    )
    events = read_events(workplace / "RUN" / "metrics.jsonl")
    steps = [event for event in events if event["event"] == "step"]
    assert len(steps) == 6
    assert all(step["grad_norm"] > 0 for step in steps)
    assert summary["counts"]["gradient_steps"] == 6


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """The tokenizer of the TL;DR model."""
    folder = REAL_DATA / "data" / "gpt2-bpe"
    return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tokenizer of Llama's kind."""
    return AutoTokenizer.from_pretrained(STORIES)


def load(tokenizer: Any, context: int, **settings: Any) -> PromptSets:
    counts = {"m": 2, "validation_count": 3, "test_count": 4, "max_new_tokens": 50}
    return load_prompts(AlignConfig(**(counts | settings)), tokenizer, context)


def by_row(prompts: list[Prompt]) -> list[Prompt]:
    """The prompts of one split in the order of its rows."""
    return sorted(prompts, key=lambda prompt: int(prompt.prompt_id.split("-")[1]))


def posts(tokenizer: Any, split: str, context: int, overflow: str = "error") -> list[tuple[dict[str, str], Prompt]]:
    """Every row of a file of posts with the prompt that it becomes."""
    sets = load(tokenizer, context, format="tldr", prompts=str(POSTS[split]), prompt_overflow=overflow)
    rows = [row for _, row in read_rows(POSTS[split])]
    return list(zip(rows, by_row(sets.train + sets.validation + sets.test), strict=True))


@pytest.mark.parametrize("split", POSTS)
def test_every_real_post_ends_in_the_tokens_that_the_summariser_was_trained_on(split: str, gpt2: Any) -> None:
    pairs = posts(gpt2, split, 2048)
    assert len(pairs) == 50
    for row, prompt in pairs:
        assert prompt.token_ids[-5:] == TLDR_IDS
        assert prompt.text + " " == row["prompt"]
        assert prompt.reference == " " + row["label"].rstrip()
        joint = gpt2(row["prompt"] + row["label"])["input_ids"]
        assert tuple(joint[: len(prompt.token_ids)]) == prompt.token_ids


@pytest.mark.parametrize("split", POSTS)
def test_every_real_post_that_is_cut_keeps_its_ending_and_as_many_words_as_fit(split: str, gpt2: Any) -> None:
    """Against the recipe of the model's authors, who cut after a token: at most a piece of one word less is kept."""
    room = 250
    cut = [pair for pair in posts(gpt2, split, room + 50, "truncate") if pair[1].text + " " != pair[0]["prompt"]]
    assert len(cut) > 30
    for row, prompt in cut:
        assert prompt.token_ids[-5:] == TLDR_IDS
        assert len(prompt.token_ids) <= room
        post = gpt2(row["prompt"].split("TL;DR:")[0])["input_ids"]
        authors = gpt2.decode(post[: room - 5]).strip()
        kept = prompt.text.removesuffix("\nTL;DR:")
        assert authors.startswith(kept)
        assert len(authors[len(kept) :].split()) <= 1


def test_real_dialogues_begin_once_and_end_where_the_answers_tokens_begin(llama: Any) -> None:
    """As in training, where the whole dialogue was tokenised at once: no token of a lone space at the end."""
    sets = load(llama, 10_000, format="anthropic-hh", prompts=str(DIALOGUES), prompt_overflow="skip")
    for prompt in sets.train[:300]:
        joint = llama(prompt.text + (prompt.reference or "").rstrip())["input_ids"]
        assert tuple(joint[: len(prompt.token_ids)]) == prompt.token_ids
        assert prompt.token_ids.count(llama.bos_token_id) == 1
        assert prompt.token_ids[0] == llama.bos_token_id
        assert llama.convert_ids_to_tokens(prompt.token_ids[-1]).endswith(":")


def test_a_cut_real_dialogue_keeps_its_beginning_token_and_its_last_turn(llama: Any) -> None:
    whole = load(llama, 10_000, format="anthropic-hh", prompts=str(DIALOGUES), prompt_overflow="skip").train
    cut = load(llama, 150, format="anthropic-hh", prompts=str(DIALOGUES), prompt_overflow="truncate")
    for long, short in zip(whole, cut.train, strict=True):
        assert short.token_ids[0] == long.token_ids[0] == llama.bos_token_id
        assert short.token_ids[1:] == long.token_ids[1:][-99:]
    assert cut.counts["truncated_prompts"] > 900


def editions(dialogue: str) -> tuple[dict[str, str], dict[str, str]]:
    """An rm-static row of a dialogue in both editions: with the label in the prompt, and as in January 2023."""
    *earlier, last = dialogue.split("Assistant: ")
    head = "Assistant: ".join(earlier)
    return {"prompt": head + "Assistant:", "chosen": " " + last}, {"prompt": head, "chosen": "Assistant: " + last}


def test_real_dialogues_in_both_editions_of_rm_static_are_the_same_prompts(llama: Any, tmp_path: Path) -> None:
    rows = [row for _, row in read_rows(DIALOGUES)]
    options = {"prompt_overflow": "truncate", "tokenizer": llama, "context": 100}
    expected = load(format="anthropic-hh", prompts=str(DIALOGUES), **options)
    for number, edition in enumerate(zip(*(editions(row["chosen"]) for row in rows), strict=True)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in edition))
        sets = load(format="rm-static", prompts=str(path), **options)
        assert (sets.train, sets.validation, sets.test) == (expected.train, expected.validation, expected.test)
    for prompt in expected.train:
        row = rows[int(prompt.prompt_id.removeprefix("train-")) - 1]
        assert f"{prompt.text}{prompt.reference}" == row["chosen"]


def generations() -> dict[int, str]:
    """What the real dialogue model wrote, by question."""
    return {row["question_id"]: row["generation"] for _, row in read_rows(GENERATIONS)}


def human_turns() -> dict[int, int | None]:
    """Where, in characters, the model's turn ends; labelled by reading every text.

    The human speaks next, but in generation 69, where the model begins another turn as itself.
    """
    with open(HUMAN_TURNS, newline="") as file:
        return {int(row["question_id"]): int(row["cut"]) if row["cut"] else None for row in csv.DictReader(file)}


UNMARKED = {16, 17, 47, 76}
"""Generations in which the human speaks without the label that the model was trained on: no stop string finds these."""


def test_real_generations_are_cut_where_a_reader_sees_the_next_turn() -> None:
    labels = human_turns()
    assert labels.keys() == generations().keys()
    assert sum(label is not None for label in labels.values()) == 44
    for question, text in generations().items():
        label = labels[question]
        if question in UNMARKED:
            assert label is not None
            assert stop_position(text, STOPS) is None
        else:
            assert text_before_stop(text, STOPS) == (text if label is None else text[:label].rstrip())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_tokens_of_a_real_generation_end_with_the_label_of_the_next_turn(
    name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    for text in generations().values():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        count = tokens_until_stop(ids, tokenizer.decode, STOPS)
        assert (count is None) == (stop_position(text, STOPS) is None)
        if count is not None:
            assert tokenizer.decode(ids[:count]).endswith(("Human:", "Assistant:"))
            assert text_before_stop(tokenizer.decode(ids[:count]), STOPS) == text_before_stop(text, STOPS)
            assert stop_position(tokenizer.decode(ids[: count - 1]), STOPS) is None

"""What a small world is made of: its prompts, its imperfect writer, its proofreader and its exact judge.

The worlds are the summaries of the embedded default (llm/tiny/world.py, llm/tiny/judge.py), and dialogues,
translations and code in modules of their own names. `llm.tiny.prepare` builds any of them.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm.errors import UserError
from llm.tiny import judge, world
from llm.tiny.world import BOS, EOS, PAD, UNK, Writer

Facts = dict[str, str]
"""What a prompt states, or what it asks for, by name."""


class WritePrompt(Protocol):
    """Writes a prompt that states the facts and ends in `end`."""

    def __call__(self, facts: Facts, rng: random.Random, *, end: str) -> str:
        """Return the prompt."""
        ...


@dataclass(frozen=True)
class Task:
    """The functions that make a small world.

    Args:
        name: the world's name, as in `WorldSettings(task=...)`.
        sources: the files of code that only this world is made of; an edit of one rebuilds the world.
        end: what stands before a completion.
        proof_end: what stands before a proofread completion.
        draw: draws the facts.
        write_prompt: writes a prompt.
        write_completion: an imperfect writer's completion, in parts. Joined, they begin with a space. How many there
            are depends on the facts alone, and there are at least two ways to write each, independently of the others.
        proofread: the parts with the right word behind each wrong one.
        grade_one: the exact grade of one text, which may be any string.
        texts: texts that together contain every word of the world, with and without the space before it where it has
            both.
    """

    name: str
    sources: tuple[str, ...]
    end: str
    proof_end: str
    draw: Callable[[random.Random], Facts]
    write_prompt: WritePrompt
    write_completion: Callable[[Facts, random.Random, Writer], list[str]]
    proofread: Callable[[list[str], Facts], list[str]]
    grade_one: Callable[[Facts, str], float]
    texts: Callable[[], list[str]]


SUMMARIES = Task(
    name="summaries",
    sources=(judge.__file__,),
    end=world.POST_END,
    proof_end=world.PROOF_END,
    draw=world.draw_facts,
    write_prompt=world.write_post,
    write_completion=world.write_summary,
    proofread=world.proofread,
    grade_one=judge.grade_one,
    texts=world._all_texts,
)

TASKS = {
    "summaries": "llm.tiny.tasks:SUMMARIES",
    "dialogue": "llm.tiny.dialogue:TASK",
    "translation": "llm.tiny.translation:TASK",
    "code": "llm.tiny.code:TASK",
}
"""The worlds by name, each with where its `Task` is."""


def load_task(name: str) -> Task:
    """Import a world.

    Args:
        name: one of TASKS.

    Returns:
        the world's task.

    Raises:
        UserError: there is no such world.
    """
    if name not in TASKS:
        raise UserError(f"There is no small world {name!r}; there are {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)
    return task


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Build the summaries' tokenizer with the words of other texts.

    Args:
        texts: texts that together contain every word of a world.

    Returns:
        a lossless tokenizer in which each of the words, with the space before it, is one token; see
        `llm.tiny.world.build_tokenizer`.
    """
    backend = world.build_tokenizer().backend_tokenizer
    alphabet = [PAD, BOS, EOS, UNK, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = {piece for text in texts for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)}
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *sorted(words - set(alphabet))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = backend.pre_tokenizer
    tokenizer.decoder = backend.decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip

"""Prompts and references, from rows to tokens."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from llm.config import AlignConfig
from llm.errors import UserError
from llm.records import Messages, Prompt
from llm.rewards import is_chat
from llm.streams import stream, text_fingerprint
from llm.tables import Row, column, read_rows

HUMAN_TURN = "\n\nHuman:"
ASSISTANT_TURN = "\n\nAssistant:"
POST_START = "\nPOST:"
POST_END = "\nTL;DR:"
TEXTS_AT_ONCE = 1000
COUNTS = ("rows", "blank_answers", "skipped_prompts", "truncated_prompts", "diverging_dialogues")
POST_HEADER = re.compile(rf"SUBREDDIT: r/.*\nTITLE: .*{POST_START}")


class TextRow(NamedTuple):
    """A row as text: its number, the prompt, and the reference if it has one."""

    number: int
    prompt: str | Messages
    reference: str | None


@dataclass
class Texts:
    """The rows of a run's data, before there is a tokenizer.

    Attributes:
        train: Of `--prompts`.
        test: Of `--test-prompts`, if there are any.
        test_rows: How many were read there, those without an answer among them.
        counts: What was read, left out or found to diverge.
    """

    train: list[TextRow]
    test: list[TextRow]
    test_rows: int
    counts: dict[str, int]


@dataclass
class PromptSets:
    """The prompts of a run.

    Attributes:
        train: For rollouts.
        validation: For choosing the best checkpoint.
        test: For the evaluation before and after.
        counts: What was read, skipped, truncated or found to diverge, and how many held-out prompts are also among
            the training prompts, word for word (data sets repeat themselves).
    """

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]
    counts: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Return a sha256 that changes when a prompt, its tokens, its reference or its place does."""
        prompts = self.train + self.validation + self.test
        return text_fingerprint([(p.prompt_id, p.text, p.token_ids, p.reference) for p in prompts])


def read_texts(config: AlignConfig) -> Texts:
    """Read the rows of a run's data, for which no model is needed.

    Args:
        config: The run's settings.

    Raises:
        UserError: A file, row or column is wrong.
    """
    counts = dict.fromkeys(COUNTS, 0)
    train = list(_rows_as_text(config, config.prompts, counts))
    read = counts["rows"]
    test = list(_rows_as_text(config, config.test_prompts, counts)) if config.test_prompts else []
    return Texts(train, test, counts["rows"] - read, counts)


def load_prompts(
    config: AlignConfig, tokenizer: PreTrainedTokenizerBase, context_length: int, texts: Texts | None = None
) -> PromptSets:
    """Tokenise and split the prompts.

    Args:
        config: The run's settings.
        tokenizer: The policy's tokenizer.
        context_length: Tokens that the model can hold; prompt and completion must fit together.
        texts: What `read_texts` returned, if it was called before.

    Raises:
        UserError: As for `read_texts`, or a prompt is too long (unless skipped or truncated), or too few are left.
    """
    texts = texts or read_texts(config)
    counts = dict(texts.counts)
    room = context_length - config.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {config.max_new_tokens}: leaves no room for a prompt in the model's context of "
            f"{context_length} tokens. Lower it."
        )
    room = min(room, config.max_prompt_tokens or room)
    prompts = _shuffled(_encoded(config, texts.train, "train", tokenizer, room, counts), config.seed)
    if config.test_prompts:
        held_out = _shuffled(_encoded(config, texts.test, "test", tokenizer, room, counts), config.seed)
        test = _take(held_out, _test_count(config, texts, held_out), "--test-count", config.test_prompts)
    else:
        test = _take(prompts, config.test_count, "--test-count", config.prompts)
    validation = _take(prompts, config.validation_count, "--validation-count", config.prompts)
    if len(prompts) < config.m and not config.rollouts:
        raise UserError(
            f"{config.prompts}: {len(prompts)} prompts remain for training, but --m asks for {config.m} in each "
            "proposal update. Give more prompts or lower --m, --test-count or --validation-count."
        )
    known = {prompt.token_ids for prompt in prompts}
    counts["held_out_prompts_also_in_training"] = sum(prompt.token_ids in known for prompt in validation + test)
    return PromptSets(prompts, validation, test, counts)


def split_dialogue(chosen: str, rejected: str) -> tuple[str, str, bool]:
    r"""Split a pair of AnthropicHH dialogues at the last assistant turn of the chosen one.

    Args:
        chosen: The whole preferred dialogue.
        rejected: The whole other dialogue.

    Returns:
        The prompt (ends in `\n\nAssistant:`), the chosen answer, and whether the two dialogues part before it.

    Raises:
        ValueError: The chosen dialogue has no assistant turn.
    """
    cut = chosen.rindex(ASSISTANT_TURN) + len(ASSISTANT_TURN)
    return chosen[:cut], chosen[cut:], not rejected.startswith(chosen[:cut])


def cut_post(tokenizer: PreTrainedTokenizerBase, text: str, room: int) -> str | None:
    r"""Drop words from the end of a TL;DR post until its prompt fits, as the authors of its SFT model did.

    They cut after a token, this after a whole word, so that the prompt still ends in the tokens of `\nTL;DR:`.

    Args:
        tokenizer: The policy's tokenizer.
        text: The prompt, which reads `SUBREDDIT: r/…\nTITLE: …\nPOST: …\nTL;DR:`.
        room: Most tokens that it may have.

    Returns:
        The prompt with as many words of its post as fit, or None where not one does.

    Raises:
        ValueError: The text has no post.
    """
    start = text.index(POST_START) + len(POST_START)
    words = re.compile(r"\S+").finditer(text, start, len(text) - len(POST_END))
    ends = [word.end() for word in words]
    kept = bisect.bisect_right(ends, room, key=lambda end: len(_text_ids(tokenizer, text[:end] + POST_END)))
    return text[: ends[kept - 1]] + POST_END if kept else None


def _encoded(
    config: AlignConfig, rows: list[TextRow], split: str, tokenizer: Any, room: int, counts: dict[str, int]
) -> list[Prompt]:
    """The prompts of one source's rows that fit the context."""
    prompts = []
    source = config.test_prompts if split == "test" else config.prompts
    for (number, text, reference), token_ids in _with_ids(rows, tokenizer, source):
        place = f"{source}, row {number}"
        if len(token_ids) > room:
            _refuse_overflow(config, len(token_ids), room, place)
            if config.prompt_overflow == "skip":
                counts["skipped_prompts"] += 1
                continue
            counts["truncated_prompts"] += 1
            text, token_ids = _cut_to_fit(config, tokenizer, text, token_ids, room, place)
        prompts.append(Prompt(f"{split}-{number}", text, token_ids, reference))
    return prompts


def _with_ids(rows: list[TextRow], tokenizer: Any, source: str) -> Iterator[tuple[TextRow, tuple[int, ...]]]:
    """Rows with the tokens of their prompts; texts go through the tokenizer many at a time, on all processors."""
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        block = rows[start : start + TEXTS_AT_ONCE]
        texts = [row.prompt for row in block if isinstance(row.prompt, str)]
        of_texts = iter(_ids_of_texts(tokenizer, texts) if texts else [])
        for row in block:
            place = f"{source}, row {row.number}"
            ids = next(of_texts) if isinstance(row.prompt, str) else _chat_ids(tokenizer, row.prompt, place)
            yield row, _not_empty(ids, place)


def _refuse_overflow(config: AlignConfig, length: int, room: int, place: str) -> None:
    """Refuse a prompt that leaves no room, unless the user said what to do with it."""
    if config.prompt_overflow == "error":
        raise UserError(
            f"{place}: the prompt has {length} tokens and only {room} fit beside the completion or are allowed. Use "
            "--prompt-overflow skip or truncate, lower --max-new-tokens, or raise --max-prompt-tokens where it is set."
        )


def _cut_to_fit(
    config: AlignConfig, tokenizer: Any, text: str | Messages, token_ids: tuple[int, ...], room: int, place: str
) -> tuple[str | Messages, tuple[int, ...]]:
    """Cut a prompt where its format loses least: a post at its end, everything else at its beginning.

    The reward and the judge see a post as it was cut, for the SFT model's authors rewarded it so; of any other prompt
    they see the whole.
    """
    if config.format != "tldr" or not isinstance(text, str):
        return text, _truncated(token_ids, room, tokenizer.bos_token_id, isinstance(text, str), place)
    shorter = cut_post(tokenizer, text, room)
    if shorter is None:
        raise UserError(
            f"{place}: only {room} tokens fit beside the completion, too few for the title and one word of the post. "
            "Use --prompt-overflow skip, or lower --max-new-tokens."
        )
    return shorter, encode_prompt(tokenizer, shorter, source=place)


def _rows_as_text(config: AlignConfig, source: str, counts: dict[str, int]) -> Iterator[TextRow]:
    """Yield the rows of a source, but those of dialogues without an answer, which are refused or counted."""
    for number, row in read_rows(source):
        counts["rows"] += 1
        prompt, reference = _row_as_text(config, row, source, number, counts)
        if reference is None or reference.strip():
            yield TextRow(number, prompt, reference)
            continue
        if config.prompt_overflow == "error":
            raise UserError(
                f"{source}, row {number}: the dialogue's last answer is blank, so it cannot be a reference. Mend or "
                "remove the row, or leave such rows out by --prompt-overflow skip or truncate."
            )
        counts["blank_answers"] += 1


def _row_as_text(
    config: AlignConfig, row: Row, source: str, number: int, counts: dict[str, int]
) -> tuple[str | Messages, str | None]:
    """A row's prompt and reference, by the configured format."""
    if config.format == "anthropic-hh":
        return _dialogue_row(row, source, number, counts)
    if config.format == "rm-static":
        return _static_row(row, source, number)
    if config.format == "tldr":
        return _post_row(row, source, number)
    return _plain_row(row, config, source, number)


def _plain_row(row: Row, config: AlignConfig, source: str, number: int) -> tuple[str | Messages, str | None]:
    """A prompt column (text or chat messages) and perhaps a reference column."""
    prompt = column(row, config.prompt_column, source=source, number=number)
    if not (isinstance(prompt, str) or is_chat(prompt)):
        raise UserError(
            f"{source}, row {number}: column {config.prompt_column!r} must be text or a list of chat messages "
            f'like {{"role": "user", "content": "…"}}, found {type(prompt).__name__}.'
        )
    return prompt, _reference(row, config.reference_column, source, number)


def _reference(row: Row, name: str, source: str, number: int) -> str | None:
    """The reference, None where the row has none; a column that the user named must be there."""
    if name != AlignConfig.reference_column and name not in row:
        column(row, name, source=source, number=number)
    reference = row.get(name)
    if reference is not None and not (isinstance(reference, str) and reference.strip()):
        raise UserError(
            f"{source}, row {number}: column {name!r} must be text, found {reference!r}. Mend the row; with null, or "
            "without the column, the prior's own completion is the reference."
        )
    return reference


def _dialogue_row(row: Row, source: str, number: int, counts: dict[str, int]) -> tuple[str, str]:
    """An AnthropicHH row; a pair whose answers part before the last turn is counted."""
    chosen, rejected = (_dialogue(row, name, source, number) for name in ("chosen", "rejected"))
    prompt, answer, diverges = split_dialogue(chosen, rejected)
    counts["diverging_dialogues"] += diverges
    return prompt, answer


def _dialogue(row: Row, name: str, source: str, number: int) -> str:
    """One of a row's dialogues."""
    dialogue = column(row, name, source=source, number=number)
    if not (isinstance(dialogue, str) and ASSISTANT_TURN in dialogue):
        raise UserError(
            f"{source}, row {number}: column {name!r} is no AnthropicHH dialogue: it must be text with a "
            f"{ASSISTANT_TURN!r} turn. Mend or remove the row, or use --format plain."
        )
    return dialogue


def _static_row(row: Row, source: str, number: int) -> tuple[str, str]:
    """An rm-static row, whose editions put "Assistant:" at the end of the prompt or at the beginning of the answer.

    Joined, both are an AnthropicHH dialogue, which is split at its last assistant's turn.
    """
    prompt, chosen = (column(row, name, source=source, number=number) for name in ("prompt", "chosen"))
    if isinstance(prompt, str) and isinstance(chosen, str):
        head, turn, answer = (prompt + chosen).rpartition(ASSISTANT_TURN)
        if turn and HUMAN_TURN not in answer and _meet_at_a_label(prompt, chosen):
            return head + turn, answer
    raise UserError(
        f"{source}, row {number}: is no rm-static row: either 'prompt' ends in {ASSISTANT_TURN!r} and 'chosen' starts "
        "with a space, or 'prompt' ends in a blank line and 'chosen' starts with 'Assistant: '. Mend or remove the "
        "row, or use --format plain."
    )


def _meet_at_a_label(prompt: str, chosen: str) -> bool:
    """Whether a prompt ends, or an answer begins, with the assistant's label."""
    is_blank_or_spaced = not chosen or chosen.startswith(" ")
    return chosen.startswith("Assistant: ") or (prompt.endswith("Assistant:") and is_blank_or_spaced)


def _post_row(row: Row, source: str, number: int) -> tuple[str, str]:
    """A TL;DR row: the post without its trailing space, and its summary as the model would write it.

    In the tokens that the SFT model was trained on, the space after "TL;DR:" belongs to the summary's first word.
    """
    prompt, label = (column(row, name, source=source, number=number) for name in ("prompt", "label"))
    if not (isinstance(prompt, str) and POST_HEADER.match(prompt) and prompt.rstrip().endswith(POST_END)):
        raise UserError(
            f"{source}, row {number}: column 'prompt' is no TL;DR post: it must read 'SUBREDDIT: r/…\\nTITLE: …\\n"
            "POST: …\\nTL;DR:'. Blank lines between the parts are another edition's, on which the SFT model was not "
            "trained. Mend or remove the row, or use --format plain."
        )
    if not (isinstance(label, str) and label.strip()):
        raise UserError(
            f"{source}, row {number}: column 'label' must be text, found {label!r}. Mend or remove the row."
        )
    return prompt.rstrip().removesuffix(POST_END).rstrip() + POST_END, " " + label.strip()


def encode_prompt(tokenizer: Any, text: str | Messages, *, source: str) -> tuple[int, ...]:
    """Tokenise a prompt: text with the tokenizer's own beginning, chat messages through its template.

    Args:
        tokenizer: The policy's tokenizer.
        text: The prompt.
        source: Where it is from, for the message.

    Returns:
        (P,) its tokens, without an end-of-sequence token that the tokenizer would put at the end of every text.

    Raises:
        UserError: The prompt has no tokens, or the tokenizer has no chat template or one that refuses the messages.
    """
    ids = _text_ids(tokenizer, text) if isinstance(text, str) else _chat_ids(tokenizer, text, source)
    return _not_empty(ids, source)


def _not_empty(ids: list[int], place: str) -> tuple[int, ...]:
    """The tokens of a prompt, of which there must be some."""
    if not ids:
        raise UserError(f"{place}: the prompt is empty: it has no tokens. Remove the row.")
    return tuple(ids)


def encode_completion(tokenizer: Any, prompt: str | Messages, text: str) -> list[int]:
    """Tokenise a completion as the model would write it after its prompt: jointly with the prompt.

    Where the tokenizer would merge the last letters of the prompt with the first ones of the completion, the model
    cannot, for the prompt's tokens are given: then the completion is tokenised behind a line break instead.

    Args:
        tokenizer: The policy's tokenizer.
        prompt: The whole prompt, a text or chat messages.
        text: The completion.

    Returns:
        Its tokens, without an end-of-sequence token.
    """
    head = prompt
    if not isinstance(head, str):
        head = str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))

    def encode(value: str) -> list[int]:
        if isinstance(prompt, str):
            return _text_ids(tokenizer, value)
        return list(tokenizer(value, add_special_tokens=False)["input_ids"])  # the template holds the beginning

    anchors = ((encode(anchor), encode(anchor + text)) for anchor in (head, "\n", ""))
    return next(joint[len(before) :] for before, joint in anchors if joint[: len(before)] == before)


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, open at its end."""
    return _ids_of_texts(tokenizer, [text])[0]


def _ids_of_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of texts, each open at its end: some tokenizers close every text with the end-of-sequence token."""
    found = tokenizer(texts, return_attention_mask=False)["input_ids"]
    return [_opened(tokenizer, text, list(ids)) for text, ids in zip(texts, found, strict=True)]


def _opened(tokenizer: Any, text: str, ids: list[int]) -> list[int]:
    """A text's tokens without an end-of-sequence token that is not the text's own."""
    if not _ends(ids, tokenizer.eos_token_id):
        return ids
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    surplus = _ends(ids, tokenizer.eos_token_id) - _ends(bare, tokenizer.eos_token_id)
    return ids[: len(ids) - surplus]


def _ends(ids: list[int], end_id: int | None) -> int:
    """How many end-of-sequence tokens a sequence ends with."""
    return len(list(itertools.takewhile(lambda token: token == end_id, reversed(ids))))


def _chat_ids(tokenizer: Any, messages: Messages, source: str) -> list[int]:
    """The tokens of chat messages and of the beginning of the assistant's turn."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{source}: the prompt is a list of chat messages and this model's tokenizer has no chat template. "
            "Give the prompts as text, or a model with a template."
        )
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except jinja2.TemplateError as error:
        raise UserError(f"{source}: the model's chat template refuses these messages ({error}).") from error
    return list(ids)


def _truncated(ids: tuple[int, ...], room: int, beginning: int | None, is_text: bool, place: str) -> tuple[int, ...]:
    """Drop tokens from the beginning of a prompt, but not the beginning-of-sequence token that a model may need."""
    if not is_text:
        raise UserError(
            f"{place}: the chat messages have {len(ids)} tokens and only {room} fit beside the completion. Cutting "
            "them would break the template; use --prompt-overflow skip, or lower --max-new-tokens."
        )
    kept = ids[:1] if ids[0] == beginning and room > 1 else ()
    return kept + ids[len(ids) - room + len(kept) :]


def _shuffled(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts in the order that the seed gives."""
    order = stream(seed, "split").permutation(len(prompts))
    return [prompts[i] for i in order]


def _test_count(config: AlignConfig, texts: Texts, held_out: list[Prompt]) -> int:
    """How many test prompts to take: all that are left, where `--test-count` asks for rows that were left out."""
    if texts.test_rows < config.test_count:
        return config.test_count
    return min(config.test_count, max(1, len(held_out)))


def _take(prompts: list[Prompt], count: int, option: str, source: str) -> list[Prompt]:
    """Remove and return the first prompts."""
    if len(prompts) < count:
        raise UserError(f"{source}: {option} asks for {count} prompts and only {len(prompts)} are left. Lower it.")
    taken = prompts[:count]
    del prompts[:count]
    return taken


def draw_prompts(prompts: Sequence[Prompt], config: AlignConfig, phase: int) -> list[Prompt]:
    """Draw the m prompts of a phase, ordered by length so that a batch holds similar ones.

    Args:
        prompts: The training prompts.
        config: The run's settings.
        phase: 0 to e−1.
    """
    chosen = stream(config.seed, "prompts", phase).choice(len(prompts), config.m, replace=False)
    return sorted((prompts[i] for i in chosen), key=lambda p: (len(p.token_ids), p.prompt_id))


def with_references(prompts: Iterable[Prompt], references: dict[str, str]) -> list[Prompt]:
    """Return the prompts with their references filled in.

    Args:
        prompts: The prompts.
        references: A reference for each prompt id.
    """
    return [replace(prompt, reference=references[prompt.prompt_id]) for prompt in prompts]

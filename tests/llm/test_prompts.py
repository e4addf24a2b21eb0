"""From rows to tokens: the layouts of rows, what does not fit, and how prompts are split."""

from __future__ import annotations

import gzip
import json
import os
import re
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from letter_world import letter_tokenizer
from llm import prompts
from llm.align import run
from llm.config import AlignConfig, validate
from llm.errors import UserError
from llm.prompts import (
    PromptSets,
    _truncated,
    cut_post,
    encode_prompt,
    load_prompts,
    read_texts,
    split_dialogue,
    with_references,
)
from llm.records import Prompt

REAL = Path(os.environ.get("BRAIN_REAL_DATA", Path(__file__).parents[3] / "shared")) / "data"
HH = REAL / "anthropic-hh" / "harmless-base.jsonl.gz"
needs_real_data = pytest.mark.skipif(not HH.exists(), reason="needs the AnthropicHH sample; set BRAIN_REAL_DATA")

BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}{{ m.role[0] }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"
)


def closing_tokenizer(template: str) -> Any:
    """The letters' tokenizer with a beginning or an end around every text."""
    tokenizer = letter_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def chat_tokenizer() -> Any:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class WordTokenizer:
    """Numbers words as they come; a fast stand-in for a tokenizer of real text."""

    eos_token_id = 0
    bos_token_id = None
    chat_template = None

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        words = [re.findall(r"\s*\S+", text) for text in texts]
        return {"input_ids": [[self.known.setdefault(w, 1 + len(self.known)) for w in row] for row in words]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def word(index: int) -> str:
    """A different word for every index."""
    return string.ascii_lowercase[index // 26] + string.ascii_lowercase[index % 26]


def settings(prompts: str, **changes: Any) -> AlignConfig:
    return AlignConfig(
        prompts=prompts, **({"m": 2, "validation_count": 3, "test_count": 4, "max_new_tokens": 4} | changes)
    )


def load(prompts: str, *, context: int = 64, tokenizer: Any = None, **changes: Any) -> PromptSets:
    return load_prompts(settings(prompts, **changes), tokenizer or letter_tokenizer(), context)


def everything(sets: PromptSets) -> list[Prompt]:
    return sets.train + sets.validation + sets.test


@pytest.fixture
def words(tmp_path: Path) -> str:
    return write_rows(tmp_path / "words.jsonl", [{"prompt": word(i), "reference": word(i + 1)} for i in range(20)])


def test_every_row_becomes_one_prompt_with_its_reference(words: str) -> None:
    prompts = {p.prompt_id: p for p in everything(load(words))}
    assert set(prompts) == {f"train-{i}" for i in range(1, 21)}
    for i in range(20):
        prompt = prompts[f"train-{i + 1}"]
        assert (prompt.text, prompt.reference) == (word(i), word(i + 1))
        assert letter_tokenizer().decode(list(prompt.token_ids)) == word(i)


def test_splits_have_the_sizes_asked_for_and_are_disjoint(words: str) -> None:
    sets = load(words)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (13, 3, 4)
    assert len({p.prompt_id for p in everything(sets)}) == 20
    assert sets.counts == {
        "rows": 20,
        "blank_answers": 0,
        "skipped_prompts": 0,
        "truncated_prompts": 0,
        "diverging_dialogues": 0,
        "held_out_prompts_also_in_training": 0,
    }


def test_splits_derive_from_the_seed_and_not_from_the_path(words: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "other.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(Path(words).read_bytes())
    assert load(words) == load(str(copy))
    assert load(words) != load(words, seed=1)
    assert sorted(p.prompt_id for p in everything(load(words, seed=1))) == sorted(
        p.prompt_id for p in everything(load(words))
    )


def test_the_test_prompts_do_not_depend_on_the_sizes_of_the_other_splits(words: str) -> None:
    assert load(words).test == load(words, validation_count=7, m=5).test


def test_held_out_prompts_of_their_own_leave_the_others_for_training(words: str, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held_out.jsonl", [{"prompt": word(i)} for i in range(15, 25)])
    sets = load(words, test_prompts=held_out)
    assert {p.prompt_id.split("-")[0] for p in sets.test} == {"test"}
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (17, 3, 4)
    assert sets.counts["rows"] == 30


def test_all_test_rows_may_be_asked_for_though_some_are_left_out(tmp_path: Path) -> None:
    """Of a data set of their own, whose size is known and whose blank or long rows are not."""
    rows = [{"prompt": STATIC_HEAD, "chosen": " d" if i % 3 else " "} for i in range(9)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    options = {"format": "rm-static", "tokenizer": WordTokenizer(), "prompt_overflow": "skip", "test_prompts": path}
    options |= {"validation_count": 1, "m": 2}
    assert [len(load(path, test_count=count, **options).test) for count in (3, 6, 7, 9)] == [3, 6, 6, 6]
    with pytest.raises(UserError, match="--test-count asks for 10 prompts and only 6 are left"):
        load(path, test_count=10, **options)
    with pytest.raises(UserError, match="only 0 are left"):
        load(path, test_count=9, context=5, **options)


def test_held_out_prompts_that_are_training_prompts_too_are_counted(tmp_path: Path) -> None:
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": "a"}] * 20)
    assert load(same).counts["held_out_prompts_also_in_training"] == 7


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"m": 14}, "13 prompts remain for training, but --m asks for 14"),
        ({"test_count": 21}, "--test-count asks for 21 prompts and only 20 are left"),
        ({"validation_count": 17}, "--validation-count asks for 17 prompts and only 16 are left"),
    ],
)
def test_too_few_prompts_are_refused(changes: dict[str, Any], expected: str, words: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load(words, **changes)
    assert words in str(caught.value)
    assert load(words, m=13)


def test_a_column_goes_by_the_name_that_the_user_gives(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"post": word(i), "summary": "x", "prompt": "no"} for i in range(9)])
    sets = load(path, prompt_column="post", reference_column="summary")
    assert {p.text for p in everything(sets)} == {word(i) for i in range(9)}
    assert {p.reference for p in everything(sets)} == {"x"}


def test_rows_without_a_reference_leave_it_open(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}] * 5 + [{"prompt": "a", "reference": None}] * 5)
    assert {p.reference for p in everything(load(path))} == {None}


@pytest.mark.parametrize(
    ("row", "changes", "expected"),
    [
        ({"text": "a"}, {}, "column 'prompt' is missing or empty; the row has text"),
        ({"prompt": 5}, {}, "column 'prompt' must be text or a list of chat messages.*found int"),
        ({"prompt": []}, {}, "column 'prompt' must be text or a list of chat messages.*found list"),
        ({"prompt": [{"role": "user"}]}, {}, "column 'prompt' must be text or a list of chat messages"),
        ({"prompt": [{"role": "user", "content": None}]}, {}, "column 'prompt' must be text or a list"),
        ({"prompt": ""}, {}, "the prompt is empty"),
        ({"prompt": "a", "reference": 5}, {}, "column 'reference' must be text, found 5"),
        ({"prompt": "a", "reference": " "}, {}, "column 'reference' must be text, found ' '"),
        ({"prompt": "a"}, {"reference_column": "sumary"}, "column 'sumary' is missing"),
        ({"prompt": "a"}, {"format": "anthropic-hh"}, "column 'chosen' is missing"),
        ({"chosen": "a", "rejected": "b"}, {"format": "anthropic-hh"}, "column 'chosen' is no AnthropicHH dialogue"),
        ({"chosen": 5, "rejected": "b"}, {"format": "anthropic-hh"}, "column 'chosen' is no AnthropicHH dialogue"),
    ],
)
def test_a_row_that_is_no_prompt_is_told_by_file_row_and_column(
    row: dict[str, Any], changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    fine = {
        "prompt": "a",
        "reference": "b",
        "sumary": "b",
        "chosen": "\n\nAssistant: a",
        "rejected": "\n\nAssistant: b",
    }
    path = write_rows(tmp_path / "rows.jsonl", [fine, fine, row, fine])
    with pytest.raises(UserError, match=f"rows.jsonl, row 3: {expected}"):
        load(path, **changes)


@pytest.fixture
def long_words(tmp_path: Path) -> str:
    """Twelve prompts; those of rows 3 and 8 have 10 tokens, the others 6."""
    rows = [{"prompt": word(i) + ("abcdefgh" if i in (2, 7) else "abcd")} for i in range(12)]
    return write_rows(tmp_path / "long.jsonl", rows)


def test_a_prompt_that_leaves_no_room_is_refused_by_default(long_words: str) -> None:
    with pytest.raises(UserError, match=r"long\.jsonl, row 3: the prompt has 10 tokens and only 9 fit"):
        load(long_words, context=13)
    assert len(everything(load(long_words, context=14))) == 12


def test_prompts_that_leave_no_room_are_skipped_and_counted_on_demand(long_words: str) -> None:
    sets = load(long_words, context=13, prompt_overflow="skip")
    assert {p.prompt_id for p in everything(sets)} == {f"train-{i}" for i in range(1, 13)} - {"train-3", "train-8"}
    assert (sets.counts["rows"], sets.counts["skipped_prompts"], sets.counts["truncated_prompts"]) == (12, 2, 0)


def test_prompts_that_leave_no_room_lose_their_beginning_on_demand(long_words: str) -> None:
    sets = load(long_words, context=13, prompt_overflow="truncate")
    cut = {p.prompt_id: p.token_ids for p in everything(sets)}["train-3"]
    assert letter_tokenizer().decode(list(cut)) == (word(2) + "abcdefgh")[-9:]
    assert max(len(p.token_ids) for p in everything(sets)) == 9
    assert (sets.counts["rows"], sets.counts["skipped_prompts"], sets.counts["truncated_prompts"]) == (12, 0, 2)


def test_a_truncated_prompt_keeps_its_beginning_of_sequence_token() -> None:
    assert _truncated((1, 5, 6, 7, 8), 3, 1, True, "here") == (1, 7, 8)
    assert _truncated((4, 5, 6, 7, 8), 3, 1, True, "here") == (6, 7, 8)
    with pytest.raises(UserError, match="would break the template"):
        _truncated((1, 5, 6, 7, 8), 3, 1, False, "here")


def test_skipping_counts_towards_too_few(long_words: str) -> None:
    with pytest.raises(UserError, match="only 0 are left"):
        load(long_words, context=7, prompt_overflow="skip")


@pytest.mark.parametrize("context", [1, 4])
def test_completions_as_long_as_the_context_are_refused(context: int, words: str) -> None:
    with pytest.raises(UserError, match="--max-new-tokens 4: leaves no room"):
        load(words, context=context)


@given(text=st.text("abc xyz", min_size=1, max_size=8))
@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_a_prompt_keeps_the_tokenizers_beginning_and_loses_its_end(template: str, text: str) -> None:
    bare = letter_tokenizer()(text)["input_ids"]
    expected = ([BOS] if "<s>" in template else []) + bare
    assert list(encode_prompt(closing_tokenizer(template), text, source="here")) == expected


@pytest.mark.parametrize("template", ["$A", "$A </s>", "<s> $A </s>"])
def test_an_end_that_the_text_itself_writes_stays(template: str) -> None:
    ids = encode_prompt(closing_tokenizer(template), "ab</s>", source="here")
    assert ids[-2:] == (letter_tokenizer().convert_tokens_to_ids("b"), EOS)
    assert ids.count(EOS) == 1


def test_a_beginning_that_is_also_the_end_stays() -> None:
    """As with GPT-2's tokenizer, where both are <|endoftext|>."""
    tokenizer = closing_tokenizer("</s> $A")
    assert encode_prompt(tokenizer, "ab", source="here")[0] == EOS
    assert encode_prompt(tokenizer, "ab</s>", source="here").count(EOS) == 2


@pytest.mark.parametrize("template", ["$A", "$A </s>"])
def test_an_empty_prompt_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"--prompt: the prompt is empty"):
        encode_prompt(closing_tokenizer(template), "", source="--prompt")


def test_chat_messages_go_through_the_models_template_up_to_the_assistants_turn() -> None:
    tokenizer = chat_tokenizer()
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "hi"}], source="here")
    assert tokenizer.decode(list(ids)) == "u hi a"


def test_chat_messages_come_with_their_rows(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "x"},
    ]
    path = write_rows(tmp_path / "chat.jsonl", [{"prompt": messages}] * 9)
    prompt = load(path, tokenizer=chat_tokenizer()).test[0]
    assert prompt.text == messages
    assert letter_tokenizer().decode(list(prompt.token_ids)) == "u hi a yo u x a"


def test_chat_messages_without_a_template_are_refused() -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: .*no chat template"):
        encode_prompt(letter_tokenizer(), [{"role": "user", "content": "hi"}], source="rows.jsonl, row 2")


def test_chat_messages_that_the_template_refuses_are_told_with_its_reason() -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: .*refuses these messages \(no role system\)"):
        encode_prompt(chat_tokenizer(), [{"role": "system", "content": "hi"}], source="rows.jsonl, row 2")


def test_a_dialogue_is_split_at_the_last_assistant_turn_of_the_chosen_one() -> None:
    head = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: bye\n\nAssistant:"
    assert split_dialogue(head + " yes", head + " no") == (head, " yes", False)


@pytest.mark.parametrize("rejected", ["\n\nHuman: b\n\nAssistant: no", "\n\nHuman: a", ""])
def test_a_dialogue_whose_rejected_half_parts_earlier_is_marked(rejected: str) -> None:
    assert split_dialogue("\n\nHuman: a\n\nAssistant: yes", rejected) == ("\n\nHuman: a\n\nAssistant:", " yes", True)


def test_a_rejected_dialogue_that_goes_on_longer_does_not_diverge() -> None:
    head = "\n\nHuman: a\n\nAssistant:"
    assert not split_dialogue(head + " yes", head + " no\n\nHuman: b\n\nAssistant: c")[2]


def test_references_are_filled_in_by_prompt_id(words: str) -> None:
    prompts = load(words).test
    filled = with_references(prompts, {p.prompt_id: p.prompt_id + "!" for p in prompts})
    assert [p.reference for p in filled] == [p.prompt_id + "!" for p in prompts]
    assert [p.token_ids for p in filled] == [p.token_ids for p in prompts]


STATIC_HEAD = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        (STATIC_HEAD, " {}"),
        (STATIC_HEAD.removesuffix("Assistant:"), "Assistant: {}"),
        (STATIC_HEAD + " {}  \nAssistant:", " really"),
        (STATIC_HEAD + " {}  \n", "Assistant: really"),
    ],
)
def test_both_editions_of_rm_static_become_one_dialogue(prompt: str, chosen: str, tmp_path: Path) -> None:
    """The last two are cut where the answer itself has such a label, as one in 1,800 real answers has."""
    rows = [{"prompt": prompt.format(i), "response": "-", "chosen": chosen.format(i)} for i in range(9)]
    sets = load(write_rows(tmp_path / "rows.jsonl", rows), format="rm-static", tokenizer=WordTokenizer())
    assert {p.text for p in everything(sets)} == {STATIC_HEAD}
    ending = "  \nAssistant: really" if "really" in chosen else ""
    assert {p.reference for p in everything(sets)} == {f" {i}{ending}" for i in range(9)}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": STATIC_HEAD, "chosen": "no space"},
        {"prompt": STATIC_HEAD + " ", "chosen": "the space on the wrong side"},
        {"prompt": STATIC_HEAD.removesuffix("Assistant:"), "chosen": "no label"},
        {"prompt": STATIC_HEAD.removesuffix("\n\nAssistant:"), "chosen": "Assistant: no blank line"},
        {"prompt": "\n\nHuman: a", "chosen": "Assistant: no blank line"},
        {"prompt": "Assistant:", "chosen": " no dialogue"},
        {"prompt": STATIC_HEAD, "chosen": 5},
        {"prompt": [{"role": "user", "content": "a"}], "chosen": " b"},
    ],
)
def test_a_row_that_is_no_edition_of_rm_static_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": STATIC_HEAD, "chosen": " d"}, row])
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: is no rm-static row"):
        load(path, format="rm-static", tokenizer=WordTokenizer())


@pytest.mark.parametrize(("missing", "format"), [("chosen", "rm-static"), ("label", "tldr"), ("prompt", "tldr")])
def test_a_format_names_the_column_that_it_misses(missing: str, format: str, tmp_path: Path) -> None:
    row = {"prompt": STATIC_HEAD, "chosen": " d"} if format == "rm-static" else {"prompt": post("a"), "label": "b"}
    path = write_rows(tmp_path / "rows.jsonl", [row | {missing: None}])
    with pytest.raises(UserError, match=f"row 1: column '{missing}' is missing or empty"):
        load(path, format=format, tokenizer=WordTokenizer())


def post(body: str, title: str = "t") -> str:
    """A TL;DR prompt as its data set has it, with a space at the end."""
    return f"SUBREDDIT: r/s\nTITLE: {title}\nPOST: {body}\nTL;DR: "


@pytest.mark.parametrize("body", ["a b", "a b \n", "\na\n\nTL;DR: b\nTL;DR:"])
@pytest.mark.parametrize("label", ["why not", " why not", "why not \n"])
def test_a_post_ends_without_space_and_its_summary_begins_with_one(body: str, label: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "posts.jsonl", [{"prompt": post(body), "label": label}] * 9)
    prompt = load(path, format="tldr", tokenizer=WordTokenizer()).test[0]
    assert prompt.text == "SUBREDDIT: r/s\nTITLE: t\nPOST: " + body.rstrip() + "\nTL;DR:"
    assert prompt.reference == " why not"


@pytest.mark.parametrize(
    "prompt",
    [
        post("a").replace("\n", "\n\n"),
        post("a").replace("\nTL;DR: ", ""),
        post("a") + "summary",
        post("a").replace("\nTL;DR: ", " TL;DR: "),
        post("a").replace("TITLE", "Title"),
        "TL;DR:",
        5,
    ],
)
def test_a_row_that_is_no_post_is_refused(prompt: Any, tmp_path: Path) -> None:
    rows = [{"prompt": post("a"), "label": "b"}, {"prompt": prompt, "label": "b"}]
    with pytest.raises(UserError, match=r"posts\.jsonl, row 2: column 'prompt' is no TL;DR post"):
        load(write_rows(tmp_path / "posts.jsonl", rows), format="tldr", tokenizer=WordTokenizer())


@pytest.mark.parametrize("answer", ["", " ", " \n\n "])
@pytest.mark.parametrize("format", ["rm-static", "anthropic-hh"])
def test_a_dialogue_with_a_blank_answer_is_refused_or_left_out_and_counted(
    format: str, answer: str, tmp_path: Path
) -> None:
    fine = {"prompt": STATIC_HEAD, "chosen": " d", "rejected": STATIC_HEAD}
    blank = {"prompt": STATIC_HEAD, "chosen": answer, "rejected": STATIC_HEAD}
    if format == "anthropic-hh":
        fine, blank = (row | {"chosen": STATIC_HEAD + row["chosen"]} for row in (fine, blank))
    path = write_rows(tmp_path / "rows.jsonl", [fine] * 9 + [blank] + [fine])
    with pytest.raises(UserError, match=r"rows\.jsonl, row 10: the dialogue's last answer is blank.* skip or truncate"):
        load(path, format=format, tokenizer=WordTokenizer())
    for overflow in ("skip", "truncate"):
        sets = load(path, format=format, tokenizer=WordTokenizer(), prompt_overflow=overflow)
        assert "train-10" not in {prompt.prompt_id for prompt in everything(sets)}
        assert (sets.counts["rows"], sets.counts["blank_answers"], sets.counts["skipped_prompts"]) == (11, 1, 0)


@pytest.mark.parametrize("name", ["owner/name", "a-folder"])
def test_held_out_prompts_of_a_data_set_need_the_name_of_a_split(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, they would be the rows of the training split."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-folder").mkdir()
    config = settings(words, batch=2, test_prompts=name)
    with pytest.raises(UserError, match=f"--test-prompts {name}: names a data set and no split of it.*{name}:test"):
        validate(config, check_required=False)
    for held_out in (f"{name}:test", words, "missing.jsonl"):
        validate(replace(config, test_prompts=held_out), check_required=False)


def test_many_texts_at_once_have_the_tokens_that_each_has_alone(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """In blocks of any size, and beside chat messages."""
    expected = everything(load(words))
    for size in (1, 3, 20, 21):
        monkeypatch.setattr(prompts, "TEXTS_AT_ONCE", size)
        assert everything(load(words)) == expected
    for template in ("$A", "<s> $A </s>"):
        tokenizer = closing_tokenizer(template)
        for prompt in everything(load(words, tokenizer=tokenizer)):
            assert prompt.token_ids == encode_prompt(tokenizer, prompt.text, source="here")


def test_texts_and_chat_messages_may_be_mixed(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "ab" if i % 3 else chat} for i in range(12)])
    for prompt in everything(load(path, tokenizer=chat_tokenizer())):
        expected = "ab" if int(prompt.prompt_id.removeprefix("train-")) % 3 != 1 else "u hi a"
        assert letter_tokenizer().decode(list(prompt.token_ids)) == expected


def test_rows_are_read_and_judged_without_a_tokenizer(words: str, tmp_path: Path) -> None:
    texts = read_texts(settings(words, test_prompts=words))
    assert [row.prompt for row in texts.train] == [row.prompt for row in texts.test] == [word(i) for i in range(20)]
    assert load_prompts(settings(words), letter_tokenizer(), 64, read_texts(settings(words))) == load(words)
    broken = write_rows(tmp_path / "broken.jsonl", [{"prompt": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match=r"broken\.jsonl, row 2: column 'prompt' is missing"):
        read_texts(settings(words, test_prompts=broken))


def test_rows_are_read_before_any_model_is_loaded(tmp_path: Path) -> None:
    config = settings(str(tmp_path / "missing.jsonl"), batch=2, model="nowhere", reward="nowhere")
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        run(config)


@pytest.mark.parametrize("label", ["", " ", 5])
def test_a_post_without_summary_is_refused(label: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "posts.jsonl", [{"prompt": post("a"), "label": label}])
    with pytest.raises(UserError, match=r"posts\.jsonl, row 1: column 'label' must be text"):
        load(path, format="tldr", tokenizer=WordTokenizer())


def test_a_post_that_leaves_no_room_loses_whole_words_at_its_end_on_demand(tmp_path: Path) -> None:
    """Six words are not the post's: "SUBREDDIT: r/s TITLE: t POST:" and "TL;DR:"."""
    rows = [{"prompt": post(" ".join(word(i) for i in range(count))), "label": "b"} for count in range(1, 13)]
    path = write_rows(tmp_path / "posts.jsonl", rows)
    sets = load(path, format="tldr", prompt_overflow="truncate", context=15, tokenizer=WordTokenizer())
    for prompt in everything(sets):
        count = min(int(prompt.prompt_id.removeprefix("train-")), 15 - 4 - 6)
        assert prompt.text == post(" ".join(word(i) for i in range(count))).rstrip()
        assert len(prompt.token_ids) == 6 + count
    assert sets.counts["truncated_prompts"] == 7


def test_line_breaks_within_a_cut_post_stay() -> None:
    text = post("a\n\nb  c d").rstrip()
    assert cut_post(WordTokenizer(), text, 9) == post("a\n\nb  c").rstrip()  # type: ignore[arg-type]


def test_a_title_that_leaves_no_room_for_its_post_is_told(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "posts.jsonl", [{"prompt": post("a b c", "t " * 20), "label": "b"}] * 9)
    with pytest.raises(UserError, match=r"posts\.jsonl, row 1: only 11 tokens .* too few for the title"):
        load(path, format="tldr", prompt_overflow="truncate", context=15, tokenizer=WordTokenizer())
    with pytest.raises(UserError, match=r"row 1: the prompt has 28 tokens and only 11 fit"):
        load(path, format="tldr", context=15, tokenizer=WordTokenizer())


def real_rows() -> list[dict[str, str]]:
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def turns(dialogue: str) -> list[str]:
    """The speakers and their turns, alternating."""
    return re.split(r"(\n\n(?:Human|Assistant):)", dialogue)


def turns_diverge(row: dict[str, str]) -> bool:
    """Whether anything before the chosen one's last answer differs, turn by turn."""
    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    last = max(i for i, part in enumerate(chosen) if part == "\n\nAssistant:")
    return chosen[: last + 1] != rejected[: last + 1]


@needs_real_data
def test_every_real_dialogue_splits_into_prompt_and_answer_without_loss() -> None:
    rows = real_rows()
    assert len(rows) == 1800
    for row in rows:
        prompt, answer, _ = split_dialogue(row["chosen"], row["rejected"])
        assert prompt + answer == row["chosen"]
        assert prompt.startswith("\n\nHuman:")
        assert prompt.endswith("\n\nAssistant:")
        assert "\n\nAssistant:" not in answer


@needs_real_data
def test_real_dialogues_load_and_the_diverging_blank_and_repeated_ones_are_counted() -> None:
    """Two of the 1,800 pairs part before the last answer, in four it is blank, and two prompts come twice."""
    rows = real_rows()
    blank = [number for number, row in enumerate(rows, start=1) if not turns(row["chosen"])[-1].strip()]
    options = {"context": 5000, "format": "anthropic-hh", "tokenizer": WordTokenizer()}
    with pytest.raises(UserError, match=f"row {blank[0]}: the dialogue's last answer is blank"):
        load(str(HH), **options)
    sets = load(str(HH), prompt_overflow="skip", **options)
    assert sets.counts["diverging_dialogues"] == sum(map(turns_diverge, rows)) == 2
    assert sets.counts["rows"] == len(everything(sets)) + len(blank) == 1800
    assert sets.counts["blank_answers"] == len(blank) == 4
    repeated = [n for n in Counter(p.token_ids for p in everything(sets)).values() if n > 1]
    assert repeated == [2, 2]
    by_id = {p.prompt_id: p for p in everything(sets)}
    for number, row in enumerate(rows, start=1):
        if number in blank:
            continue
        prompt = by_id[f"train-{number}"]
        assert prompt.text + prompt.reference == row["chosen"]

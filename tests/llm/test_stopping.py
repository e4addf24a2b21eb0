"""Stop strings: found in text wherever a tokenizer's pieces happen to end."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llm import stopping
from llm.stopping import stop_position, text_before_stop, tokens_until_stop

STOPS = ("### Human:", "\nHuman:")
PIECES = st.lists(st.sampled_from(["Human:", "### ", "\n", " ", "é", "😀", "Hum", "an:", "Yes."]), max_size=8)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, as GPT-2's alphabet has it: a character may take four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def stripping_tokenizer() -> Tokenizer:
    """As Llama's: a mark for each space, bytes for what is no letter, the text's first space lost in decoding."""
    letters = [*"▁Human:#Yes.\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({letter: index for index, letter in enumerate(letters)}, [], byte_fallback=True, unk_token="#")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer(), "stripping": stripping_tokenizer()}


def least_count(ids: Sequence[int], decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> int | None:
    """The same by trying every count."""
    counts = range(1, len(ids) + 1)
    return next((k for k in counts if stop_position(decode(ids[:k]), stops) is not None), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Yes.\nHuman: more", 5),
        (" Yes.\n\nHuman: more", 6),
        (" Yes. ### Human: more\nHuman: and more", 6),
        (" Yes.\nHuman: more ### Human: and more", 5),
        (" The superHuman: a film. Human: no.", None),
        ("\nHumans are many.", None),
        (" Yes.\nhuman: more", None),
        ("", None),
    ],
)
def test_a_text_is_cut_at_the_earliest_stop_string(text: str, expected: int | None) -> None:
    assert stop_position(text, STOPS) == expected


@pytest.mark.parametrize("text", ["Human: hi", " Human: hi", "\nHuman: hi", "\n\nHuman: hi", "  \n Human: hi"])
def test_the_beginning_of_a_completion_is_the_start_of_a_line(text: str) -> None:
    assert stop_position(text, ["\nHuman:"]) == 0
    assert stop_position(text, ["\n\nHuman:"]) == 0


@pytest.mark.parametrize("text", ["Human: hi", " Human: hi"])
def test_a_stop_string_without_line_break_is_found_where_it_stands(text: str) -> None:
    assert stop_position(text, ["Human:"]) == text.index("Human:")


def test_a_line_break_alone_is_no_stop_at_the_beginning() -> None:
    assert stop_position("One line.", ["\n"]) is None
    assert stop_position("One line.\nTwo.", ["\n"]) == 9


def test_without_stop_strings_nothing_is_cut() -> None:
    assert stop_position("Human: hi", []) is None
    assert text_before_stop("Human: hi \n", []) == "Human: hi \n"
    assert tokens_until_stop([1, 2], lambda ids: "Human:", []) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Yes. ### Human: hi", " Yes."),
        (" Yes.\n\n\nHuman: hi", " Yes."),
        (" Human: hi", ""),
        (" No stop string. \n", " No stop string. \n"),
    ],
)
def test_white_space_that_led_to_the_stop_string_is_no_part_of_the_answer(text: str, expected: str) -> None:
    assert text_before_stop(text, STOPS) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pieces=PIECES, missing=st.integers(0, 3))
def test_the_tokens_kept_are_the_fewest_whose_text_holds_a_stop_string(
    name: str, pieces: list[str], missing: int
) -> None:
    """Whether or not the completion was cut by its length, perhaps within a character."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("".join(pieces)).ids
    ids = ids[: len(ids) - missing]
    for stops in (STOPS, ("é",), ("\n",), ("😀 ", "Human:")):
        assert tokens_until_stop(ids, tokenizer.decode, stops) == least_count(ids, tokenizer.decode, stops)


@pytest.mark.parametrize(("name", "start"), [("bytes", " Human:"), ("bytes", "Human:"), ("stripping", " Human:")])
def test_a_human_turn_right_at_the_beginning_ends_with_its_colon(name: str, start: str) -> None:
    ids = TOKENIZERS[name].encode(start + " hi").ids
    assert tokens_until_stop(ids, TOKENIZERS[name].decode, ["\nHuman:"]) == len(start)


def test_a_stop_string_waits_for_the_last_byte_of_its_last_character() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("ab😀cd").ids
    assert len(ids) == 8
    assert tokens_until_stop(ids, tokenizer.decode, ["b😀"]) == 6


@pytest.mark.parametrize("rest", ["", "😀", "😀 Yes."])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_stop_string_stays_found_while_the_bytes_after_it_hide_it(rest: str, missing: int) -> None:
    """Llama's decoder gives up a whole run of byte tokens, a line break among them, until its last character ends."""
    tokenizer = TOKENIZERS["stripping"]
    ids = tokenizer.encode("Yes.é" + rest).ids
    ids = ids[: max(6, len(ids) - missing)]
    assert tokens_until_stop(ids, tokenizer.decode, ["é"]) == 6


def test_a_completion_without_stop_string_is_decoded_once_and_others_a_few_times() -> None:
    tokenizer = TOKENIZERS["bytes"]
    calls: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return tokenizer.decode(ids)

    assert tokens_until_stop(tokenizer.encode("x" * 500).ids, decode, STOPS) is None
    assert calls == [500]
    assert tokens_until_stop(tokenizer.encode("x" * 200 + "\nHuman:" + "x" * 293).ids, decode, STOPS) == 207
    assert len(calls) <= 3 + math.log2(500)


def test_the_examples_in_the_documentation_hold() -> None:
    results = doctest.testmod(stopping)
    assert results.attempted > 0
    assert results.failed == 0

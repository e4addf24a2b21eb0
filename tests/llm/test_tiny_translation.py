"""The translation world: its language, its prompts, its writer, its proofreader and its judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import UserError
from llm.tiny.tasks import build_tokenizer
from llm.tiny.translation import (
    DEEDS,
    END,
    ENDING,
    PARTS,
    PEOPLE,
    PROOF_END,
    QUALITIES,
    SLOTS,
    SPOTS,
    TASK,
    THINGS,
    TIMES,
    UNREADABLE,
    grade,
    grade_one,
    proofread,
    read_facts,
    write_prompt,
    write_translation,
)
from llm.tiny.world import Writer

FACTS = {
    "when": "today", "who": "dogs", "which": "small", "what": "house", "which_one": "red", "where": "river",
    "did": "see",
}  # fmt: skip
PROMPT = "Help me. today the small dogs see the red house near this river\nZALU:"
RIGHT = " oru dapi tesi fol kem nal viki"
PERFECT = Writer(right=1, vague=0, ramble=0)


@pytest.mark.parametrize("end", [END, PROOF_END])
@given(seed=st.integers(0, 10**9))
def test_the_judge_reads_from_a_prompt_exactly_the_sentence_that_it_was_written_from(end: str, seed: int) -> None:
    rng = random.Random(seed)
    facts = TASK.draw(rng)
    assert read_facts(write_prompt(facts, rng, end=end)) == facts


def test_a_prompt_and_its_translation_look_as_documented() -> None:
    assert read_facts(PROMPT) == FACTS
    assert "".join(write_translation(FACTS, random.Random(0), PERFECT)) == RIGHT
    assert grade([PROMPT], [RIGHT]) == [7]
    single = FACTS | {"who": "child"}
    assert "".join(write_translation(single, random.Random(0), PERFECT)) == " oru nib tes fol kem nal vik"


def test_no_two_words_of_the_language_are_alike_and_only_endings_look_like_endings() -> None:
    stems = [stem for words in (TIMES, PEOPLE, THINGS, QUALITIES, DEEDS, SPOTS) for stem in words.values()]
    stems += {slot.vague for slot in SLOTS.values()}
    assert len(set(stems)) == len(stems) == 46 + 6
    assert not any(stem.endswith(ENDING) for stem in stems)
    english = [word for words in (TIMES, PEOPLE, THINGS, QUALITIES, DEEDS, SPOTS) for word in words]
    assert len(set(english)) == len(english)


@pytest.mark.parametrize(
    ("translation", "points"),
    [
        (RIGHT, 7),
        (RIGHT.strip(), 7),
        (" eno somo sele keso sele leko fado", 0),
        (" oru kati tesi fol kem nal viki", 5),
        (" oru dap tesi fol kem nal viki", 6.5),
        (" oru dap tes fol kemi nal vik", 5),
        (" oru kat tesi fol kem nal viki", 5),  # another word is wrong whatever its ending
        (" oru tesi dapi fol kem nal viki", 6.5),
        (" oru tesi dapi kem fol nal viki", 6),
        (" oru kemi dapi tes fol nal viki", 2),  # the adjectives exchanged and misplaced
        (" ema kat kem tun vor tob dor", -7),
        (" ema kem kat vor tun tob dor", UNREADABLE),
    ],
)
def test_each_kind_of_word_has_its_price(translation: str, points: float) -> None:
    assert grade_one(FACTS, translation) == points


@pytest.mark.parametrize(
    "text",
    [
        "",
        " oru",
        " oru dapi tesi fol kem nal",
        RIGHT + " viki",
        RIGHT + RIGHT,
        RIGHT + END,
        RIGHT.upper(),
        RIGHT.replace(" fol", "  fol"),
        RIGHT.replace("fol", "foli"),
        RIGHT.replace("fol", "house"),
        " oru dapi viki tesi fol kem nal",
        " dapi tesi oru fol kem nal viki",
        " oru fol tesi dapi kem nal viki",
        " oru dapi tesi kem nal fol viki",
    ],
)
def test_text_that_is_no_sentence_of_the_language_has_the_lowest_grade(text: str) -> None:
    assert grade_one(FACTS, text) == UNREADABLE == -8


@given(st.one_of(st.text(), st.permutations(RIGHT.split()).map(" ".join)))
def test_any_text_at_all_is_graded_within_the_bounds(text: str) -> None:
    assert UNREADABLE <= grade_one(FACTS, text) <= 7


@pytest.mark.parametrize("name", SLOTS)
def test_any_other_word_costs_two_points_in_any_slot(name: str) -> None:
    words = RIGHT.split()
    place = list(SLOTS).index(name)
    ending = ENDING if words[place].endswith(ENDING) else ""
    for stem in SLOTS[name].words.values():
        said = " ".join([*words[:place], stem + ending, *words[place + 1 :]])
        assert grade_one(FACTS, said) == (7 if stem + ending == words[place] else 5)


@pytest.mark.parametrize(
    "prompt",
    [
        "Translate the book.",
        "",
        PROMPT.replace("dogs see", "dogs sees"),
        PROMPT.replace("dogs see", "dog see"),
        PROMPT.replace("house", "houses"),
        PROMPT.replace("house", "car"),
        PROMPT.replace("today", "today today"),
        PROMPT.replace("Help", "Hear"),
        PROMPT + " oru",
        PROMPT.removesuffix(END),
    ],
)
def test_the_judge_refuses_a_prompt_that_is_not_of_the_world(prompt: str) -> None:
    with pytest.raises(UserError, match="translation world"):
        grade([PROMPT, prompt], [RIGHT, RIGHT])


def test_the_writer_is_as_often_right_vague_and_misplaced_as_stated() -> None:
    rng, writer = random.Random(0), Writer(right=0.5, vague=0.2, ramble=0.3)
    said = [write_translation(FACTS, rng, writer) for _ in range(2000)]
    words = [word for parts in said for part in parts for word in part.split()]
    vague = {slot.vague for slot in SLOTS.values()}
    assert sum(word in RIGHT.split() for word in words) / 14000 == pytest.approx(0.5, abs=0.015)
    assert sum(word in vague for word in words) / 14000 == pytest.approx(0.2, abs=0.015)
    nouns = {"somo", *(stem + end for stem in PEOPLE.values() for end in ("", ENDING))}
    assert sum(parts[1].split()[1] in nouns for parts in said) / 2000 == pytest.approx(0.3, abs=0.03)
    assert sum("dap" in parts[1].split() for parts in said) / 2000 == pytest.approx(0.3 * 0.25, abs=0.02)


def test_the_best_possible_translation_beats_nine_references_in_ten() -> None:
    rng, grades = random.Random(1), []
    for _ in range(1500):
        facts = TASK.draw(rng)
        grades.append(grade_one(facts, "".join(write_translation(facts, rng, Writer()))))
    assert sum(reference < 7 for reference in grades) / len(grades) > 0.9
    assert min(grades) > UNREADABLE
    assert 2 < sum(grades) / len(grades) < 3.5


def test_a_proof_puts_the_right_word_behind_wrong_ones_only() -> None:
    parts = [" eno", " tes kati", " fol vor", " nal", " vik"]
    assert "".join(proofread(parts, FACTS)) == " eno tes tesi kati dapi fol vor kem nal vik viki"
    right = write_translation(FACTS, random.Random(0), Writer(right=1, vague=0, ramble=1))
    assert proofread(right, FACTS) == right == [" oru", " tesi dapi", " kem fol", " nal", " viki"]
    assert len(right) == len(PARTS)


@given(st.integers(0, 10**9))
def test_every_word_is_one_token_and_texts_are_short(seed: int) -> None:
    rng = random.Random(seed)
    facts = TASK.draw(rng)
    prompt, parts = write_prompt(facts, rng), write_translation(facts, rng, Writer())
    translation, proof = "".join(parts), "".join(proofread(parts, facts))
    ids = TOKENIZER.encode(translation)
    assert len(ids) == len(translation.split()) < 24
    assert len(TOKENIZER.encode(proof)) == len(proof.split())
    words = prompt.replace(".", " .").replace("?", " ?").replace("\n", " N ").split()
    assert len(TOKENIZER.encode(prompt)) == len(words) < 60
    assert TOKENIZER.encode(prompt + translation) == TOKENIZER.encode(prompt) + ids
    assert TOKENIZER.decode(TOKENIZER.encode(prompt + translation)) == prompt + translation


def test_the_world_has_fewer_than_250_words() -> None:
    assert len(TOKENIZER) - 260 < 250  # the rest are bytes and special tokens


TOKENIZER = build_tokenizer(TASK.texts())

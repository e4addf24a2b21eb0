"""The code world: its prompts, its writer, its proofreader and its judge."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import UserError
from llm.tiny.code import (
    END,
    HIDDEN_INPUTS,
    OPENERS,
    PADDING,
    PLACES,
    PROOF_END,
    REQUESTS,
    TASK,
    UNREADABLE,
    grade,
    grade_one,
    proofread,
    read_facts,
    write_answer,
    write_prompt,
)
from llm.tiny.expressions import OPERATORS, VARIABLES, evaluate, has_hole, parse
from llm.tiny.tasks import build_tokenizer
from llm.tiny.world import Writer

FACTS = {"First": "the sum of x and twice y", "Next": "the larger of z and 4", "Last": "the product of u and w"}
PROMPT = "TASK: Hello. First the sum of x and twice y. Next the larger of z and 4. Last the product of u and w.\nCODE:"
RIGHT = " x + 2 * y ; z max 4 ; u * w"
MANY_INPUTS = [{name: random.Random(f"{name}{i}").randint(-30, 30) for name in VARIABLES} for i in range(40)]


@pytest.mark.parametrize("end", [END, PROOF_END])
@given(seed=st.integers(0, 10**9))
def test_the_judge_reads_from_a_prompt_exactly_the_requests_that_it_was_written_from(end: str, seed: int) -> None:
    rng = random.Random(seed)
    facts = TASK.draw(rng)
    assert read_facts(write_prompt(facts, rng, end=end)) == facts


def test_a_prompt_and_its_answer_look_as_documented() -> None:
    assert read_facts(PROMPT) == FACTS
    assert "".join(write_answer(FACTS, random.Random(0), Writer(right=1, vague=0, ramble=0))) == RIGHT
    assert grade([PROMPT], [RIGHT]) == [3]


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        (" x + 2 * y ; z max 4 ; u * w", 3),
        ("x+2*y;z max 4;u*w", 3),
        (" 2 * y + x ; 4 max z ; w * u", 3),  # other words, the same values
        (" y + x + y ; z max 4 ; u * w", 3),
        (" x + 2 * y ; z max 4 ; u * _", 2),
        (" _ ; _ ; _", 0),
        (" x + 2 * y ; z max 4 ; u + w", 1),
        (" x + 2 * y ; z min 4 ; u * x", -1),
        (" x + 2 * y + 0 ; z max 4 ; u * w", 2.5),
        (" x + 2 * y + 0 ; z max 4 * 1 ; ( u * w )", 1.5),
        (" x + 2 * y + 0 ; _ * 1 + 0 ; u - w - 0", -1.5),
        (" x + 2 * y ; z max ; u * w", 0),
        (" ; ; ", -6),
        (" x + 2 * y ; z max 4 ; u * w ;", UNREADABLE),
        (" x + 2 * y ; z max 4", UNREADABLE),
        ("", UNREADABLE),
        (RIGHT + RIGHT, UNREADABLE),
        (RIGHT + END, 0),
        (RIGHT.upper(), UNREADABLE),
        (" x + 2 * y ; z max 4 ; " + "9 * " * 40 + "9", 0.5),  # valid, too long, and no value within the limits
        ("import os ; z max 4 ; u * w", 0),
    ],
)
def test_each_kind_of_expression_has_its_price(answer: str, points: float) -> None:
    assert grade_one(FACTS, answer) == points


@given(st.one_of(st.text(), st.lists(st.sampled_from([*RIGHT.split(), "_", "+", "(", ")", "é"])).map(" ".join)))
def test_any_text_at_all_is_graded_within_the_bounds(text: str) -> None:
    assert UNREADABLE <= grade_one(FACTS, text) <= 3


def test_two_requests_agree_on_the_hidden_inputs_only_where_they_mean_the_same() -> None:
    by_hidden: dict[tuple[int | None, ...], set[tuple[int | None, ...]]] = {}
    for code in REQUESTS.values():
        tree = parse(code)
        assert tree is not None
        hidden, many = (tuple(evaluate(tree, one) for one in inputs) for inputs in (HIDDEN_INPUTS, MANY_INPUTS))
        assert None not in hidden
        by_hidden.setdefault(hidden, set()).add(many)
    assert all(len(meanings) == 1 for meanings in by_hidden.values())
    assert len(by_hidden) > 400


def test_a_wrong_word_anywhere_makes_an_expression_wrong() -> None:
    kinds = (VARIABLES, tuple("23456789"), tuple(OPERATORS))
    for request, code in list(REQUESTS.items())[::11]:
        facts, words = FACTS | {"Next": request}, code.split()
        for place in [0, 1, 2, 4][: len(words)]:
            for other in next(kind for kind in kinds if words[place] in kind):
                said = " ".join([*words[:place], other, *words[place + 1 :]])
                same = words[place] == other
                assert grade_one(facts, f" x + 2 * y ; {said} ; u * w") == (3 if same else 1), (request, said)


def test_padding_leaves_the_value_of_every_request() -> None:
    for place, code in enumerate(REQUESTS.values()):
        plain, padded = parse(code), parse(code + PADDING[place % len(PADDING)])
        assert plain is not None
        assert padded is not None
        assert [evaluate(plain, one) for one in MANY_INPUTS] == [evaluate(padded, one) for one in MANY_INPUTS]


def test_the_shortest_answer_to_every_request_is_the_best() -> None:
    for request, code in REQUESTS.items():
        assert grade_one(dict.fromkeys(PLACES, request), " ;".join([f" {code}"] * 3)) == 3


@pytest.mark.parametrize(
    "prompt",
    [
        "Write an expression.",
        PROMPT + " x",
        PROMPT.replace("twice", "ten times"),
        PROMPT.replace("the larger of z and 4", "the larger of z and z"),
        PROMPT.replace("Next", "Then"),
        PROMPT.replace("Hello.", "Bye."),
        PROMPT.removesuffix(END),
        "",
    ],
)
def test_the_judge_refuses_a_prompt_that_is_not_of_the_world(prompt: str) -> None:
    with pytest.raises(UserError, match="code world"):
        grade([PROMPT, prompt], [RIGHT, RIGHT])


def test_the_writer_is_as_often_right_open_and_long_as_stated() -> None:
    rng, writer = random.Random(0), Writer(right=0.5, vague=0.2, ramble=0.3)
    said = [part.removeprefix(" ;") for _ in range(2000) for part in write_answer(FACTS, rng, writer)]
    right = [part.strip() in {code + padding for code in RIGHT_CODES for padding in ("", *PADDING)} for part in said]
    trees = [parse(part) for part in said]
    assert None not in trees
    assert sum(right) / 6000 == pytest.approx(0.5, abs=0.02)
    assert sum(tree is not None and has_hole(tree) for tree in trees) / 6000 == pytest.approx(0.2, abs=0.02)
    assert sum(part.endswith(PADDING) for part in said) / 6000 == pytest.approx(0.3, abs=0.02)


def test_a_wrong_expression_has_one_wrong_word_or_more_of_every_kind() -> None:
    rng, right = random.Random(0), RIGHT_CODES[0].split()
    said = [write_answer(FACTS, rng, Writer(right=0, vague=0, ramble=0))[0].split() for _ in range(200)]
    places = [{place for place, word in enumerate(words) if word != right[place]} for words in said]
    assert set.union(*places) == {0, 1, 2, 4}
    assert {len(wrong) for wrong in places} == {1, 2, 3, 4}


def test_the_best_possible_answer_beats_four_references_in_five() -> None:
    rng, grades = random.Random(1), []
    for _ in range(1500):
        facts = TASK.draw(rng)
        grades.append(grade_one(facts, "".join(write_answer(facts, rng, Writer()))))
    assert sum(reference < 3 for reference in grades) / len(grades) > 0.8
    assert -1 < sum(grades) / len(grades) < 1


def test_a_proof_puts_the_right_word_behind_wrong_ones_only() -> None:
    parts = [" x - 2 * z + 0", " ; z max 9", " ; u _ w * 1"]
    assert "".join(proofread(parts, FACTS)) == " x - + 2 * z y + 0 ; z max 9 4 ; u _ w * 1"
    right = write_answer(FACTS, random.Random(0), Writer(right=1, vague=0, ramble=1))
    assert proofread(right, FACTS) == right


@given(st.integers(0, 10**9))
def test_every_word_is_one_token_and_texts_are_short(seed: int) -> None:
    rng = random.Random(seed)
    facts = TASK.draw(rng)
    prompt, parts = write_prompt(facts, rng), write_answer(facts, rng, Writer(ramble=1))
    answer = "".join(parts)
    ids = TOKENIZER.encode(answer)
    assert len(ids) == len(answer.split()) < 24
    assert len(TOKENIZER.encode("".join(proofread(parts, facts)))) == len("".join(proofread(parts, facts)).split())
    assert len(TOKENIZER.encode(prompt)) == len(prompt.replace(".", " .").replace("\n", " N ").split()) < 60
    assert TOKENIZER.encode(prompt + answer) == TOKENIZER.encode(prompt) + ids
    assert TOKENIZER.decode(TOKENIZER.encode(prompt + answer)) == prompt + answer
    assert prompt.startswith(OPENERS)


def test_the_world_has_fewer_than_250_words() -> None:
    assert len(TOKENIZER) - 260 < 250  # the rest are bytes and special tokens


RIGHT_CODES = [REQUESTS[facts] for facts in FACTS.values()]
TOKENIZER = build_tokenizer(TASK.texts())


def test_no_other_short_expression_has_the_values_of_one_that_is_asked_for() -> None:
    """All expressions of one operator on numbers, variables and their multiples, told apart on 40 other inputs."""
    meanings: dict[tuple[int | None, ...], set[tuple[int | None, ...]]] = {}
    operands = [*VARIABLES, *map(str, range(16)), *(f"{m} * {v}" for m in (2, 3) for v in VARIABLES)]
    for left, symbol, right in itertools.product(operands, OPERATORS, operands):
        found = parse(f"{left} {symbol} {right}")
        assert found is not None
        values = tuple(evaluate(found, inputs) for inputs in HIDDEN_INPUTS)
        meanings.setdefault(values, set()).add(tuple(evaluate(found, inputs) for inputs in MANY_INPUTS))
    for request, plain in REQUESTS.items():
        values = tuple(evaluate(parse(plain), inputs) for inputs in HIDDEN_INPUTS)  # type: ignore[arg-type]
        assert len(meanings[values]) == 1, request


def test_a_newline_around_an_answer_does_not_matter() -> None:
    facts = dict(zip(PLACES, list(REQUESTS)[:3], strict=True))
    answer = " ; ".join(REQUESTS[request] for request in facts.values())
    assert grade_one(facts, f" {answer}\n") == 3

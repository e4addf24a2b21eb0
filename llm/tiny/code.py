"""A small world of code: requests for three expressions, and answers in a tiny language.

    TASK: Hello. First the sum of x and twice y. Next the larger of z and 4. Last the product of u and w.
    CODE: x + 2 * y ; z max 4 ; u + w

As in the summaries, the writer of all answers is imperfect on purpose: each expression comes out right, with a hole
("x + _") or with some words wrong, independently of the others, and some are needlessly long ("x + y + 0"). In proofs
the right word stands behind each wrong one: "u + * w".

The judge knows no text to compare with: it parses what was written with `llm.tiny.expressions`, evaluates it on hidden
inputs and compares the values with those that were asked for. `--judge llm.tiny.code:grade`.
"""

from __future__ import annotations

import itertools
import random
import re

from llm.errors import UserError
from llm.tiny import expressions
from llm.tiny.expressions import HOLE, OPERATORS, VARIABLES, Expression, count_tokens, evaluate, has_hole, parse
from llm.tiny.tasks import Facts, Task
from llm.tiny.world import Writer

OPENERS = ("TASK:", "TASK: Hello.", "TASK: Please write code.", "TASK: Three for you.")
PLACES = ("First", "Next", "Last")
END, PROOF_END = "\nCODE:", "\nPROOF:"
SEPARATOR = " ;"
PADDING = (" + 0", " - 0", " * 1")
"""What makes an expression longer and leaves its value."""

OPERATIONS = {"sum": "+", "difference": "-", "product": "*", "larger": "max", "smaller": "min"}
DIGITS = tuple("23456789")
MULTIPLES = {"": "", "twice ": "2 * ", "thrice ": "3 * "}
RIGHT_OPERANDS = dict(zip(DIGITS, DIGITS, strict=True)) | {
    f"{word}{variable}": f"{factor}{variable}" for word, factor in MULTIPLES.items() for variable in VARIABLES
}
REQUESTS = {
    f"the {word} of {left} and {right}": f"{left} {symbol} {code}"
    for (word, symbol), left, (right, code) in itertools.product(OPERATIONS.items(), VARIABLES, RIGHT_OPERANDS.items())
    if not right.endswith(left)
}
"""Every request in words, with its shortest answer."""
_PHRASES = tuple(REQUESTS)

RIGHT, OPEN, WRONG, BROKEN, LONG = 1.0, 0.0, -1.0, -2.0, -0.5
UNREADABLE = BROKEN * len(PLACES)

_INPUTS = random.Random("hidden inputs")
HIDDEN_INPUTS = tuple({name: _INPUTS.randint(-15, 15) for name in VARIABLES} for _ in range(20))
"""What the judge evaluates on; two requests of different meaning differ on one of these."""


def grade(prompts: list[str], completions: list[str]) -> list[float]:
    """Grade answers by the values of their expressions.

    An expression with the right value on every hidden input counts 1, one with a hole 0, any other -1 and text that
    does not parse -2; a valid expression longer than need be loses 0.5. An answer of another number of expressions
    than three counts as three that do not parse.

    Args:
        prompts: (N,) requests of the code world.
        completions: (N,) answers.

    Returns:
        (N,) grades, from -6 to 3.

    Raises:
        UserError: a prompt is not of the code world.
    """
    return [grade_one(read_facts(prompt), text) for prompt, text in zip(prompts, completions, strict=True)]


def grade_one(facts: Facts, answer: str) -> float:
    """Grade one answer to three requests."""
    parts = answer.strip().split(SEPARATOR.strip())
    if len(parts) != len(PLACES):
        return UNREADABLE
    return sum(_points(REQUESTS[facts[place]], part) for place, part in zip(PLACES, parts, strict=True))


def read_facts(prompt: str) -> Facts:
    """Read the three requests from a prompt.

    Args:
        prompt: the prompt.

    Returns:
        the request in words at each place.

    Raises:
        UserError: the text is not a prompt of the code world.
    """
    match = _PROMPT.fullmatch(prompt)
    facts = match.groupdict() if match else {}
    if not facts or not all(facts[place] in REQUESTS for place in PLACES):
        raise UserError(f"llm.tiny.code grades prompts of the embedded code world only, and this is none: {prompt!r}")
    return facts


def draw_facts(rng: random.Random) -> Facts:
    """Draw three requests, uniformly."""
    return {place: rng.choice(_PHRASES) for place in PLACES}


def write_prompt(facts: Facts, rng: random.Random, *, end: str = END) -> str:
    """Write a prompt that asks for three expressions.

    Args:
        facts: the request in words at each place.
        rng: the source of chance.
        end: what stands before the answer.
    """
    return " ".join([rng.choice(OPENERS), *(f"{place} {facts[place]}." for place in PLACES)]) + end


def write_answer(facts: Facts, rng: random.Random, writer: Writer) -> list[str]:
    """Write an answer whose expressions are right, open or wrong.

    Args:
        facts: the request in words at each place.
        rng: the source of chance.
        writer: how often an expression is right and how often it has a hole; `ramble` is how often it is too long.

    Returns:
        a part for each expression; joined, they begin with a space.
    """
    return [_start(place) + _say(REQUESTS[facts[place]], rng, writer) for place in PLACES]


def proofread(parts: list[str], facts: Facts) -> list[str]:
    """Put the right word behind each wrong one."""
    return [
        _proof(part, _start(place) + " " + REQUESTS[facts[place]]) for place, part in zip(PLACES, parts, strict=True)
    ]


def _points(plain: str, text: str) -> float:
    """The points for one expression beside the shortest right one."""
    found = parse(text)
    if found is None:
        return BROKEN
    points = OPEN if has_hole(found) else RIGHT if _values(found) == _values(parse(plain)) else WRONG
    return points + (LONG if count_tokens(text) > count_tokens(plain) else 0.0)


def _values(expression: Expression | None) -> list[int | None]:
    """The values on the hidden inputs."""
    return [evaluate(expression, inputs) if expression else None for inputs in HIDDEN_INPUTS]


def _start(place: str) -> str:
    """What stands before the expression at a place."""
    return "" if place == PLACES[0] else SEPARATOR


def _say(plain: str, rng: random.Random, writer: Writer) -> str:
    """One expression, with a space before each word."""
    words, luck = plain.split(), rng.random()
    operands = list(range(0, len(words), 2))
    places = [*operands, 1]  # the second operator of x + 2 * y says nothing of its own
    if writer.right <= luck < writer.right + writer.vague:
        words[rng.choice(operands)] = HOLE
    elif luck >= writer.right:
        for place in rng.sample(places, rng.randint(1, len(places))):
            words[place] = _other(words[place], rng)
    return " " + " ".join(words) + (rng.choice(PADDING) if rng.random() < writer.ramble else "")


def _other(word: str, rng: random.Random) -> str:
    """Another word of the same kind."""
    kind = next(kind for kind in (VARIABLES, DIGITS, tuple(OPERATORS)) if word in kind)
    return rng.choice([other for other in kind if other != word])


def _proof(part: str, right: str) -> str:
    """One part with the right word behind each wrong one."""
    pairs = itertools.zip_longest(part.split(), right.split())
    return "".join(f" {said}" if fine in (said, None) or said == HOLE else f" {said} {fine}" for said, fine in pairs)


def _texts() -> list[str]:
    """Texts that together contain every word of the world."""
    facts = [dict.fromkeys(PLACES, phrase) for phrase in _PHRASES]
    prompts = [write_prompt(one, random.Random(0), end=end) for one in facts for end in (END, PROOF_END)]
    return [*OPENERS, *prompts, *(f" {code} ( ) {HOLE} ;" for code in REQUESTS.values()), *PADDING]


_PROMPT = re.compile(
    f"(?:{'|'.join(map(re.escape, OPENERS))})"
    + "".join(rf" {place} (?P<{place}>[^.]*)\." for place in PLACES)
    + f"(?:{END}|{PROOF_END})"
)

TASK = Task(
    name="code",
    sources=(__file__, expressions.__file__),
    end=END,
    proof_end=PROOF_END,
    draw=draw_facts,
    write_prompt=write_prompt,
    write_completion=write_answer,
    proofread=proofread,
    grade_one=grade_one,
    texts=_texts,
)

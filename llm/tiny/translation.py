"""A small world of translation: English sentences, and what an imperfect translator makes of them in invented Zalu.

    Help me. today the small dogs see the red house near this river
    ZALU: oru dapi tesi fol kem nal viki

Zalu has a word for each English one and no articles. The time stands first, an adjective behind its noun, the place
before the verb and the verb last. Where the subject is a plural, it, its adjective and the verb end in -i.

As in the summaries, the writer of all translations is imperfect on purpose: each word comes out right, vague ("somo",
somebody) or wrong (another word, or the wrong ending), independently of the others, and an adjective may stand before
its noun as in English. In proofs the right word stands behind each wrong one: "oru kati dapi tesi".

The judge reads the English sentence and translates it itself. `--judge llm.tiny.translation:grade`.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

from llm.errors import UserError
from llm.tiny.tasks import Facts, Task
from llm.tiny.world import Writer

TIMES = {"today": "oru", "yesterday": "ema", "often": "uva", "never": "ilo", "soon": "ano", "again": "ube"}
PEOPLE = {
    "dog": "dap", "cat": "kat", "farmer": "gorm", "child": "nib", "sailor": "mar", "bird": "pirr", "king": "rog",
    "thief": "skov",
}  # fmt: skip
THINGS = {
    "house": "fol", "boat": "tun", "letter": "wesh", "apple": "jap", "lamp": "lum", "wall": "drak", "book": "sib",
    "coat": "mol", "stone": "grat", "rope": "yart",
}  # fmt: skip
QUALITIES = {
    "small": "tes", "red": "kem", "old": "vor", "quiet": "shum", "heavy": "bul", "clean": "pliv", "strange": "quor",
    "good": "hal",
}  # fmt: skip
DEEDS = {
    "see": "vik", "want": "dor", "paint": "frel", "find": "lan", "sell": "mork", "like": "sut", "need": "chab",
    "hide": "wud",
}  # fmt: skip
SPOTS = {"river": "nal", "hill": "tob", "market": "suk", "bridge": "pon", "forest": "erd", "sea": "wal"}
PLURALS = {"child": "children", "thief": "thieves"}
ENDING = "i"
ENDING_FAULTS = 0.25
"""How many of the wrong words, where there is an ending, are the right one with the wrong ending."""


@dataclass(frozen=True)
class Slot:
    """A place of the sentence.

    Args:
        words: English words and their Zalu stems.
        vague: what Zalu says instead of a word; it takes no ending.
        agrees: whether the word takes the ending where the subject is a plural.
    """

    words: dict[str, str]
    vague: str
    agrees: bool = False


SLOTS = {
    "when": Slot(TIMES, "eno"),
    "who": Slot(PEOPLE, "somo", agrees=True),
    "which": Slot(QUALITIES, "sele", agrees=True),
    "what": Slot(THINGS, "keso"),
    "which_one": Slot(QUALITIES, "sele"),
    "where": Slot(SPOTS, "leko"),
    "did": Slot(DEEDS, "fado", agrees=True),
}
"""The places of a Zalu sentence, in order."""
PARTS = (("when",), ("who", "which"), ("what", "which_one"), ("where",), ("did",))
"""What a translation is written in; two words of a part may stand the wrong way round."""

OPENERS = ("Please translate.", "Translate this.", "How is this said?", "Help me.")
FRAMES = (
    "{when} {the_who} {which} {who} {did} {the_what} {which_one} {what} near {the_where} {where}",
    "{the_who} {which} {who} {did} {the_what} {which_one} {what} near {the_where} {where} {when}",
)
ARTICLES = {False: ("the", "this"), True: ("the", "these")}
END, PROOF_END = "\nZALU:", "\nPROOF:"

RIGHT, VAGUE, WRONG, WRONG_ENDING, MISPLACED = 1.0, 0.0, -1.0, 0.5, -0.5
UNREADABLE = WRONG * len(SLOTS) + MISPLACED * 2


def grade(prompts: list[str], completions: list[str]) -> list[float]:
    """Grade translations.

    A word that is right counts 1, the right word with the wrong ending 0.5, a vague one 0 and a wrong one -1; an
    adjective before its noun costs 0.5. A completion that is not a sentence of Zalu counts as all wrong and misplaced.

    Args:
        prompts: (N,) English sentences of the translation world.
        completions: (N,) translations.

    Returns:
        (N,) grades, from -8 to 7.

    Raises:
        UserError: a prompt is not of the translation world.
    """
    return [grade_one(read_facts(prompt), text) for prompt, text in zip(prompts, completions, strict=True)]


def grade_one(facts: Facts, translation: str) -> float:
    """Grade one translation of the sentence."""
    words = translation.strip().split(" ")
    order = _ORDERS.get(tuple(_KINDS.get(word, "") for word in words))
    if order is None:
        return UNREADABLE
    points = sum(_points(word, name, facts) for name, word in zip(order, words, strict=True))
    return points + MISPLACED * sum(order.index(noun) > order.index(quality) for noun, quality in _PAIRS)


def read_facts(prompt: str) -> Facts:
    """Read the sentence in a prompt.

    Args:
        prompt: the prompt.

    Returns:
        the English word of each slot: the subject in its number, the verb without -s.

    Raises:
        UserError: the text is not a prompt of the translation world.
    """
    for sentence in _SENTENCES:
        match = sentence.fullmatch(prompt)
        if match and bool(match["s"]) != _is_plural(match["who"]):
            return {name: match[name] for name in SLOTS}
    raise UserError(
        f"llm.tiny.translation grades prompts of the embedded translation world only, and this is none: {prompt!r}"
    )


def draw_facts(rng: random.Random) -> Facts:
    """Draw one word for each slot, uniformly, and the number of the subject."""
    facts = {name: rng.choice(list(slot.words)) for name, slot in SLOTS.items()}
    return facts | {"who": rng.choice([facts["who"], _plural(facts["who"])])}


def write_prompt(facts: Facts, rng: random.Random, *, end: str = END) -> str:
    """Write a prompt with the sentence to translate.

    Args:
        facts: the English word of each slot.
        rng: the source of chance.
        end: what stands before the translation.
    """
    articles = {f"the_{name}": rng.choice(ARTICLES[_is_plural(facts[name])]) for name in ("who", "what", "where")}
    verb = facts["did"] + ("" if _is_plural(facts["who"]) else "s")
    sentence = rng.choice(FRAMES).format(**facts | articles | {"did": verb})
    return f"{rng.choice(OPENERS)} {sentence}{end}"


def write_translation(facts: Facts, rng: random.Random, writer: Writer) -> list[str]:
    """Write a translation that is right, vague or wrong about each word.

    Args:
        facts: the English word of each slot.
        rng: the source of chance.
        writer: how often a word is right and vague; `ramble` is how often an adjective is misplaced.

    Returns:
        its parts, see PARTS; joined, they begin with a space.
    """
    parts = []
    for names in PARTS:
        words = [_say(name, facts, rng, writer) for name in names]
        if len(names) == 2 and rng.random() < writer.ramble:
            words.reverse()
        parts.append("".join(f" {word}" for word in words))
    return parts


def proofread(parts: list[str], facts: Facts) -> list[str]:
    """Put the right word behind each wrong one."""
    return [
        "".join(_proof(word, names, facts) for word in part.split()) for part, names in zip(parts, PARTS, strict=True)
    ]


def right_word(name: str, facts: Facts) -> str:
    """The right Zalu word for a slot."""
    slot = SLOTS[name]
    ending = ENDING if slot.agrees and _is_plural(facts["who"]) else ""
    return slot.words[_SINGULARS.get(facts[name], facts[name])] + ending


def _points(word: str, name: str, facts: Facts) -> float:
    """The points for one word."""
    right = right_word(name, facts)
    if word == right:
        return RIGHT
    if word == SLOTS[name].vague:
        return VAGUE
    return WRONG_ENDING if word == _with_other_ending(right) else WRONG


def _say(name: str, facts: Facts, rng: random.Random, writer: Writer) -> str:
    """The word for one slot."""
    slot, right, luck = SLOTS[name], right_word(name, facts), rng.random()
    if luck < writer.right:
        return right
    if luck < writer.right + writer.vague:
        return slot.vague
    if slot.agrees and rng.random() < ENDING_FAULTS:
        return _with_other_ending(right)
    ending = ENDING if right.endswith(ENDING) else ""
    return rng.choice([stem for stem in slot.words.values() if stem + ending != right]) + ending


def _proof(word: str, names: tuple[str, ...], facts: Facts) -> str:
    """A word of a part, and the right one behind it if it is wrong."""
    name = next(name for name in names if _KINDS[word] == _kind(name))
    return f" {word}" if _points(word, name, facts) in (RIGHT, VAGUE) else f" {word} {right_word(name, facts)}"


def _with_other_ending(word: str) -> str:
    """The word in the other number."""
    return word.removesuffix(ENDING) if word.endswith(ENDING) else word + ENDING


def _plural(noun: str) -> str:
    """The English plural."""
    return PLURALS.get(noun, noun + "s")


def _is_plural(noun: str) -> bool:
    """Whether an English noun is a plural."""
    return noun in _SINGULARS


def _kind(name: str) -> str:
    """The kind of the words of a slot: the first slot that has them."""
    return next(other for other, slot in SLOTS.items() if slot.words is SLOTS[name].words)


def _forms(slot: Slot) -> list[str]:
    """Every Zalu word that may stand in a slot."""
    stems = list(slot.words.values())
    return [slot.vague, *stems, *(stem + ENDING for stem in stems if slot.agrees)]


def _texts() -> list[str]:
    """Texts that together contain every word of the world."""
    rng = random.Random(0)
    english = {name: list(slot.words) for name, slot in SLOTS.items()} | {"who": [*PEOPLE, *_SINGULARS]}
    rows = [{name: words[index % len(words)] for name, words in english.items()} for index in range(16)]
    prompts = [write_prompt(row, rng, end=end) for row in rows for end in (END, PROOF_END) for _ in range(8)]
    return prompts + [f" {word}" for slot in SLOTS.values() for word in _forms(slot)]


def _sentence(frame: str) -> re.Pattern[str]:
    """The pattern of prompts with a frame."""
    english = {name: "|".join(slot.words) for name, slot in SLOTS.items()}
    english["who"] = "|".join([*_SINGULARS, *PEOPLE])
    groups = {name: f"(?P<{name}>{words})" for name, words in english.items()}
    groups |= {f"the_{name}": "(?:the|this|these)" for name in ("who", "what", "where")}
    groups["did"] += "(?P<s>s?)"
    return re.compile(f"(?:{'|'.join(map(re.escape, OPENERS))}) {frame.format(**groups)}(?:{END}|{PROOF_END})")


_PAIRS = tuple((names[0], names[1]) for names in PARTS if len(names) == 2)
_SINGULARS = {_plural(noun): noun for noun in PEOPLE}
_KINDS = {word: _kind(name) for name, slot in SLOTS.items() for word in _forms(slot)}
_ORDERS = {
    tuple(map(_kind, order)): order
    for ways in itertools.product(*({names, names[::-1]} for names in PARTS))
    for order in [tuple(itertools.chain(*ways))]
}
_SENTENCES = [_sentence(frame) for frame in FRAMES]

TASK = Task(
    name="translation",
    sources=(__file__,),
    end=END,
    proof_end=PROOF_END,
    draw=draw_facts,
    write_prompt=write_prompt,
    write_completion=write_translation,
    proofread=proofread,
    grade_one=grade_one,
    texts=_texts,
)

"""A small world in the spirit of TL;DR: posts with five facts among chatter, and one-sentence summaries of them.

    POST: Please be kind. It was in Lisbon. My friend Anna lost the guitar. It happened on Monday. What should I do?
    TL;DR: Anna lost the guitar in Oslo sometime, long story

The writer of all summaries is imperfect on purpose. Each fact comes out right, vague ("sometime") or wrong ("Oslo"),
independently of the others, and some summaries ramble on. The references and the summaries that the prior learns from
are by this one writer.

The prior also reads proofs: another writer's summaries in which a proofreader put the right word behind each wrong one.

    PROOF: Anna found lost the guitar in Oslo Lisbon on Monday

To predict a proof, a model must know at each word both what the post says and whether the word agrees with it. That is
what a reward model of this prior needs, and what two or three small layers do not find out in minutes from preferences
alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Slot:
    """One kind of fact and how a summary says it.

    Args:
        kind: the name of the fact, such as "where".
        values: what the fact can be.
        phrase: how the summary states a value, with {} for it.
        vague: what the summary says instead of a value.
    """

    kind: str
    values: tuple[str, ...]
    phrase: str
    vague: str


PEOPLE = ("Anna", "Boris", "Carla", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karen", "Louis")
DEEDS = ("lost", "found", "sold", "broke", "painted", "borrowed", "hid", "cleaned")
THINGS = ("guitar", "bicycle", "camera", "watch", "umbrella", "laptop", "lamp", "kite", "piano", "boat", "tent", "drum")
CITIES = ("Lisbon", "Paris", "Oslo", "Cairo", "Tokyo", "Lima", "Delhi", "Rome", "Quito", "Accra", "Sofia", "Perth")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

SLOTS = (
    Slot("who", PEOPLE, " {}", " someone"),
    Slot("did", DEEDS, " {}", " touched"),
    Slot("what", THINGS, " the {}", " something"),
    Slot("where", CITIES, " in {}", " somewhere"),
    Slot("when", DAYS, " on {}", " sometime"),
)

# One sentence of each row states its facts in a post.
FACT_SENTENCES = (
    ("My friend {who} {did} the {what}.", "Well, {who} {did} the {what}.", "You know, {who} {did} the {what}."),
    ("It was in {where}.", "We were all in {where}.", "This happened in {where}."),
    ("It happened on {when}.", "That was on {when}.", "I heard about it on {when}."),
)

CHATTER = (
    "I did not sleep well.",
    "What should I do?",
    "Sorry for the long post.",
    "My mother says hello.",
    "I had too much coffee.",
    "It is raining again.",
    "Please be kind.",
    "Nobody told me anything.",
)

RAMBLES = (", sorry again", ", long story", ", you know", ", and so on")
MAX_RAMBLES = 3

POST_START = "POST:"
POST_END, PROOF_END = "\nTL;DR:", "\nPROOF:"
BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"


@dataclass(frozen=True)
class Writer:
    """How often a writer is right, vague or wrong about a fact, and how often a summary rambles on.

    Args:
        right: probability that a fact is stated as it is.
        vague: probability that it is only hinted at; the rest is wrong.
        ramble: probability of each further ramble, up to MAX_RAMBLES of them.
    """

    right: float = 0.6
    vague: float = 0.2
    ramble: float = 0.35


def draw_facts(rng: random.Random) -> dict[str, str]:
    """Draw one value for each slot, uniformly."""
    return {slot.kind: rng.choice(slot.values) for slot in SLOTS}


def write_post(facts: dict[str, str], rng: random.Random, *, end: str = POST_END) -> str:
    """Write a post that states the facts in random order among two or three sentences of chatter.

    Args:
        facts: a value for each kind.
        rng: the source of chance.
        end: what stands before the summary.
    """
    sentences = [rng.choice(frames).format(**facts) for frames in FACT_SENTENCES]
    sentences += rng.sample(CHATTER, rng.randint(2, 3))
    rng.shuffle(sentences)
    return " ".join([POST_START, *sentences]) + end


def write_summary(facts: dict[str, str], rng: random.Random, writer: Writer) -> list[str]:
    """Write a summary that is right, vague or wrong about each fact.

    Returns:
        its parts: one for each slot and one with the rambles, which may be empty; joined, they begin with a space.
    """
    parts = [_say(slot, facts[slot.kind], rng, writer) for slot in SLOTS]
    rambles: list[str] = []
    while len(rambles) < MAX_RAMBLES and rng.random() < writer.ramble:
        rambles.append(rng.choice(RAMBLES))
    return [*parts, "".join(rambles)]


def proofread(parts: list[str], facts: dict[str, str]) -> list[str]:
    """Put the right word behind each wrong one."""
    fine = [(slot.phrase.format(facts[slot.kind]), slot.vague) for slot in SLOTS]
    said = zip(SLOTS, parts, fine, strict=False)
    return [part if part in good else f"{part} {facts[slot.kind]}" for slot, part, good in said] + parts[len(SLOTS) :]


def _say(slot: Slot, value: str, rng: random.Random, writer: Writer) -> str:
    """The words for one fact."""
    luck = rng.random()
    if luck < writer.right:
        return slot.phrase.format(value)
    if luck < writer.right + writer.vague:
        return slot.vague
    return slot.phrase.format(rng.choice([other for other in slot.values if other != value]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a lossless tokenizer in which every word of the world, with the space before it, is one token.

    Any other text falls back to single bytes, so decode(encode(text)) == text for every string.

    Returns:
        a tokenizer with beginning, end, padding and unknown tokens, none of which is added by itself.
    """
    split = pre_tokenizers.Split(Regex(r" ?[^\s.,?!]+|[.,?!]|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = {piece for text in _all_texts() for word, _ in split.pre_tokenize_str(text)
              for piece, _ in byte_level.pre_tokenize_str(word)}  # fmt: skip
    symbols = [PAD, BOS, EOS, UNK, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += sorted(pieces - set(symbols))
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    # With ignore_merges a piece of the vocabulary is one token although no merge leads to it.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _all_texts() -> list[str]:
    """Texts that together contain every word of the world, with and without the space before it where it has both."""
    texts = [POST_START, POST_END, PROOF_END, *RAMBLES, *(f" {sentence}" for sentence in CHATTER)]
    texts += [slot.vague for slot in SLOTS]
    for index in range(max(len(slot.values) for slot in SLOTS)):
        facts = {slot.kind: slot.values[index % len(slot.values)] for slot in SLOTS}
        texts += [slot.phrase.format(facts[slot.kind]) for slot in SLOTS]
        texts += [f" {frame.format(**facts)}" for frames in FACT_SENTENCES for frame in frames]
    return texts

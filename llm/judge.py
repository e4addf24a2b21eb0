"""An LLM judges a run's completions: `python -m llm.judge RUN [--against RUN2] --base-url URL --judge-model NAME`.

Its replies are kept in `RUN/judge/replies.jsonl` as they come, the result in `RUN/judge/<name>.json` (docs/judge.md).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from llm import statistics
from llm.console import entry_point, printable
from llm.errors import UserError
from llm.judge_server import (
    KEPT,
    TEMPERATURE,
    Question,
    Replies,
    Reply,
    Server,
    ask,
    check_least,
    check_server,
    missing,
    read_replies,
)
from llm.run_folder import lock_run, stored_config
from llm.store import ShardFolder, disk_errors, write_json

PROMPTS = Path(__file__).parent / "judge_prompts"
PROMPT_OF_FORMAT = {"anthropic-hh": "dialogue", "rm-static": "dialogue", "tldr": "summary"}
PLACES = ("AssistantA", "AssistantB", "Conversation")
PLACE = re.compile("{{(" + "|".join(PLACES) + ")}}")
LABELS = {"both": ("A", "B"), "run-is-a": ("A",), "run-is-b": ("B",)}
VERDICT = re.compile(r"\[\[([ABC])\]\]")
OUTCOMES = ("win", "tie", "loss")
FAULTS = ("unanswered", "cut", "unparsed")
"""Why a prompt has no outcome: the first of these that one of its questions met."""
LEAST: dict[str, float] = {"limit": 0, "price_in": 0, "price_out": 0}
CHARACTERS_PER_TOKEN = 4

Verdicts = Sequence[tuple[str, str]]
"""What was said about one prompt, each with the label that the run's completion had."""


@dataclass(frozen=True)
class JudgeCommand:
    """Let an LLM judge a run's held-out completions against the references, or against another run's completions.

    The server's key is read from the environment variable OPENAI_API_KEY alone.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    server: Annotated[Server, tyro.conf.arg(name="")]
    """The judge."""
    against: str = ""
    """Another run's folder with the same held-out prompts; the references unless given."""
    prompt: str = ""
    """dialogue, summary, or a text file; chosen by the run's --format unless given."""
    order: Literal["both", "run-is-a", "run-is-b"] = "both"
    """both asks twice with A and B exchanged, and a prompt with two different verdicts is a tie; the others ask once
    and inherit the judge's liking for a position."""
    limit: int = 0
    """Judge the first so many held-out prompts, the same ones at each call; 0 takes all."""
    price_in: float = 0.0
    """Price of a million prompt tokens, for the estimate."""
    price_out: float = 0.0
    """Price of a million reply tokens, for the estimate."""
    dry_run: bool = False
    """Print the estimate and stop."""


class Pair(NamedTuple):
    """A prompt with the two completions to compare."""

    prompt_id: str
    conversation: str
    ours: str
    theirs: str


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(JudgeCommand, args=list(arguments), prog="python -m llm.judge", config=())
    check_server(command.server)
    check_least(command, LEAST)
    folder, against = Path(command.run), Path(command.against) if command.against else None
    name, template = load_prompt(command.prompt, stored_config(folder).format)
    questions = questions_about(load_pairs(folder, against, command.limit), template, command)
    store = folder / "judge"
    if command.dry_run:
        print(_plan(command, name, questions, read_replies(store / "replies.jsonl")))
        return
    with disk_errors(store):
        store.mkdir(exist_ok=True)
    lock = lock_run(store)
    try:
        replies = read_replies(store / "replies.jsonl")
        print(_plan(command, name, questions, replies), flush=True)
        ask(questions, replies, command.server, store / "replies.jsonl")
        result = {**_settings(command, name, template), **summarise(questions, replies)}
        path = store / _file_name(command, questions)
        write_json(path, result)
    finally:
        lock.release()
    print(f"{_table(result)}\n{path}")


def load_prompt(choice: str, run_format: str) -> tuple[str, str]:
    """Return the judge's prompt.

    Args:
        choice: `dialogue`, `summary`, a file, or empty.
        run_format: The run's `--format`, which decides where the choice is empty.

    Returns:
        Its name and its text.

    Raises:
        UserError: None was named for a format without one of its own, or the file is missing or lacks a place.

    Source:
        Appendix B.3.
    """
    name = choice or PROMPT_OF_FORMAT.get(run_format, "")
    if not name:
        raise UserError(f"--prompt: there is none for --format {run_format}. Name dialogue, summary or a text file.")
    path = PROMPTS / f"{name}.txt" if name in PROMPT_OF_FORMAT.values() else Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--prompt {name}: not readable ({error}). Name dialogue, summary or a text file.") from error
    if sorted(PLACE.findall(text)) != list(PLACES):
        places = ", ".join(f"{{{{{place}}}}}" for place in PLACES)
        raise UserError(f"--prompt {name}: must hold each of {places} once. Mend the file.")
    return name, text


def load_pairs(folder: Path, against: Path | None, limit: int) -> list[Pair]:
    """Read the completions to compare.

    Args:
        folder: The run's.
        against: Another run's, or None for the references.
        limit: Take the first so many; 0 takes all.

    Raises:
        UserError: A run has no evaluation yet, or the two have different held-out prompts.
    """
    rows = ShardFolder(folder / "eval").read("after")
    others = {row["prompt_id"]: row["reference"] for row in rows}
    if against is not None:
        stored_config(against)
        other_rows = ShardFolder(against / "eval").read("after")
        _check_same_prompts(folder, rows, against, other_rows)
        others = {row["prompt_id"]: row["completion"] for row in other_rows}
    kept = rows[:limit] if limit else rows
    return [Pair(row["prompt_id"], row["prompt"], row["completion"], others[row["prompt_id"]]) for row in kept]


def questions_about(pairs: Sequence[Pair], template: str, command: JudgeCommand) -> list[Question]:
    """Return what is asked about each pair: one question, or one in each order.

    Args:
        pairs: The pairs.
        template: The judge's prompt.
        command: Names the judge and the order.
    """
    return [_question(pair, label, template, command.server) for pair in pairs for label in LABELS[command.order]]


def verdict_of(reply: Reply) -> str:
    """Return a reply's verdict.

    Args:
        reply: A line of `replies.jsonl`.

    Returns:
        A, B or C; `cut` where the reply ended by its length, `unparsed` unless it names exactly one of them, as [[A]].
    """
    if reply["finish_reason"] == "length":
        return "cut"
    named = set(VERDICT.findall(reply["reply"]))
    return named.pop() if len(named) == 1 else "unparsed"


def summarise(questions: Sequence[Question], replies: Replies) -> dict[str, Any]:
    """Return the figures of a comparison.

    Args:
        questions: What was to be asked.
        replies: The replies there are, by the question's key.

    Returns:
        What `judge/<name>.json` holds besides the settings; rates are shares of the prompts that have an outcome.
    """
    said: dict[str, list[tuple[str, str]]] = {}
    for question in questions:
        verdict = verdict_of(replies[question.key]) if question.key in replies else "unanswered"
        said.setdefault(question.prompt_id, []).append((verdict, question.run_is))
    outcomes = {prompt_id: _outcome(verdicts) for prompt_id, verdicts in said.items()}
    counts = Counter(outcomes.values())
    labels = Counter(verdict for verdicts in said.values() for verdict, _ in verdicts)
    known = [outcome for outcome in outcomes.values() if outcome in OUTCOMES]
    used = [replies[key] for key in {question.key for question in questions} & replies.keys()]
    return {
        "prompts": len(outcomes),
        **{f"{name}_rate": _share([outcome == name for outcome in known]) for name in OUTCOMES},
        "counts": {name: counts[name] for name in (*OUTCOMES, *FAULTS)},
        "verdicts": {name: labels[name] for name in ("A", "B", "C", *FAULTS)},
        **_agreement([verdicts for verdicts in said.values() if len(verdicts) == 2 and _outcome(verdicts) in OUTCOMES]),
        "tokens": {name: sum(reply[f"{name}_tokens"] or 0 for reply in used) for name in ("prompt", "reply")},
        "outcomes": outcomes,
    }


def _check_same_prompts(folder: Path, rows: list[Any], against: Path, others: list[Any]) -> None:
    """Check that two runs were evaluated on the same prompts."""
    ours, theirs = ({row["prompt_id"]: row["prompt"] for row in part} for part in (rows, others))
    strange = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if strange:
        raise UserError(
            f"--against {against}: its held-out prompts are not those of {folder}; {len(strange)} are missing from one "
            f"or have another text there, the first {strange[0]}. Compare runs with the same prompts, split and seed."
        )


def _question(pair: Pair, run_is: str, template: str, server: Server) -> Question:
    """The request that shows the run's completion under one label, and the other completion under the other."""
    a, b = (pair.ours, pair.theirs) if run_is == "A" else (pair.theirs, pair.ours)
    texts = {"Conversation": pair.conversation, "AssistantA": a, "AssistantB": b}
    message = PLACE.sub(lambda place: texts[place[1]].strip(), template)
    meaning = [server.base_url.rstrip("/"), server.judge_model, server.max_tokens, TEMPERATURE, run_is, message]
    return Question(pair.prompt_id, run_is, message, hashlib.sha256(json.dumps(meaning).encode()).hexdigest())


def _outcome(verdicts: Verdicts) -> str:
    """A prompt's outcome for the run."""
    for fault in FAULTS:
        if fault in [verdict for verdict, _ in verdicts]:
            return fault
    seen = {"tie" if verdict == "C" else "win" if verdict == run_is else "loss" for verdict, run_is in verdicts}
    return seen.pop() if len(seen) == 1 else "tie"


def _agreement(prompts: Sequence[Verdicts]) -> dict[str, Any]:
    """How the two orders agree, over prompts with a verdict in both."""
    pairs = [(first, second) for (first, _), (second, _) in prompts]
    return {
        "order_agreement": _share([set(pair) in ({"A", "B"}, {"C"}) for pair in pairs]),
        "same_label": {label: pairs.count((label, label)) for label in ("A", "B")},
    }


def _share(hits: Sequence[bool]) -> statistics.Estimate | None:
    """A proportion, None of nothing."""
    return statistics.proportion(hits) if hits else None


def _settings(command: JudgeCommand, prompt: str, template: str) -> dict[str, Any]:
    """What a result depends on."""
    return {
        "against": command.against or "references",
        "base_url": command.server.base_url,
        "judge_model": command.server.judge_model,
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "order": command.order,
        "temperature": TEMPERATURE,
        "max_tokens": command.server.max_tokens,
    }


def _file_name(command: JudgeCommand, questions: Sequence[Question]) -> str:
    """A name that tells results apart: judge, opponent, and a fingerprint of all that is asked."""
    opponent = Path(command.against).resolve().name if command.against else "references"
    names = (re.sub(r"[^A-Za-z0-9._-]+", "-", name) for name in (command.server.judge_model.split("/")[-1], opponent))
    mark = hashlib.sha256("".join(question.key for question in questions).encode()).hexdigest()[:8]
    return "-".join([*(name.strip(".-")[:60] for name in names), mark]) + ".json"


def _plan(command: JudgeCommand, prompt: str, questions: Sequence[Question], replies: Replies) -> str:
    """What will be asked and what it may cost."""
    server, to_ask = command.server, missing(questions, replies)
    tokens_in = sum(len(question.message) for question in to_ask) // CHARACTERS_PER_TOKEN
    tokens_out = len(to_ask) * server.max_tokens
    count = len({question.prompt_id for question in questions})
    lines = [
        f"judge    {server.judge_model} at {server.base_url}, prompt {prompt}, order {command.order}",
        f"compares {command.run} with {command.against or 'the references'} on {count} held-out prompts",
        f"asks     {len(to_ask)} of {len(questions)} questions; the others are answered already, or the same",
        f"tokens   about {tokens_in:,} in ({CHARACTERS_PER_TOKEN} characters a token), at most {tokens_out:,} out",
    ]
    if command.against and stored_config(Path(command.run)).seed == stored_config(Path(command.against)).seed:
        lines.append("draws    the runs have one seed and share their draws; identical completions are ties")
    if command.price_in or command.price_out:
        price = (tokens_in * command.price_in + tokens_out * command.price_out) / 1e6
        lines.append(f"price    at most about {price:,.2f}, in the unit of --price-in and --price-out")
    return printable("\n".join(lines))


def _table(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    counts, same, tokens = result["counts"], result["same_label"], result["tokens"]
    lines = [f"{name:<5} {_interval(result[f'{name}_rate'])}, {counts[name]} prompts" for name in OUTCOMES]
    lines.append("none  " + ", ".join(f"{counts[name]} {name}" for name in FAULTS) + " (in no rate)")
    if result["order"] == "both":
        lines.append(
            f"the two orders agree on {_interval(result['order_agreement'])} of the prompts; the same label in both, "
            f"which is a tie: A {same['A']} times, B {same['B']} times"
        )
    return "\n".join([*lines, f"tokens of these replies: {tokens['prompt']:,} in, {tokens['reply']:,} out"])


def _interval(value: Any) -> str:
    """A share with its 95 % interval, which that of a single prompt has not."""
    if value is None:
        return "–"
    form = "{estimate:.1%} [{low:.1%}, {high:.1%}]" if value["low"] is not None else "{estimate:.1%} [no interval]"
    return form.format(**value)


if __name__ == "__main__":
    sys.exit(entry_point(main, go_on=KEPT))

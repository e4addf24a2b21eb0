"""Questions to a model behind an OpenAI-compatible server, and the file that keeps its replies as they come."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai
from tqdm import tqdm

from llm.console import printable, say
from llm.errors import UserError
from llm.store import MetricsLog, damage_errors

for name in ("httpcore", "httpcore2"):  # at DEBUG they log a server's headers, which may repeat the key
    logging.getLogger(name).setLevel(logging.INFO)

TEMPERATURE = 0
LEAST: dict[str, float] = {"max_tokens": 1024, "concurrency": 1, "retries": 0, "timeout": 0.001}
PLAIN_URL = re.compile(r"https?://[\w.:\[\]-]+(/[\w.~%/-]*)?", re.ASCII)
REFUSALS = (400, 413, 422)
"""Statuses by which a server refuses one request and may still answer the next."""
HOPELESS = 10
"""Questions without an answer, and none with one, after which no more are asked."""
NO_KEY = "no-key"
SHORTEST_SECRET = 8
WORDS_SHOWN = 300
KEPT = "Replies so far are kept; the same command goes on from there."
FIELDS = {"key", "prompt_id", "run_is", "reply", "finish_reason", "prompt_tokens", "reply_tokens"}
"""What a stored reply has."""

Reply = dict[str, Any]
Replies = dict[str, Reply]
"""Replies by their question's key."""


@dataclass(frozen=True)
class Server:
    """The judge and how it is asked. The key is read from the environment variable OPENAI_API_KEY alone."""

    base_url: str
    """An OpenAI-compatible server, such as http://localhost:8000/v1 or https://api.openai.com/v1."""
    judge_model: str
    """The judge's name on that server."""
    max_tokens: int = 1024
    """Longest reply, in tokens; the verdict comes after an explanation."""
    concurrency: int = 8
    """Questions under way at once."""
    retries: int = 8
    """How often to ask again after a busy or failing server, with growing pauses or those that it asks for."""
    timeout: float = 600.0
    """Seconds to wait for a reply."""


class Question(NamedTuple):
    """One request; `key` fingerprints everything that its answer depends on."""

    prompt_id: str
    run_is: str
    message: str
    key: str


class UnansweredError(Exception):
    """A server's answer to one question that is no reply; the message says what it was."""


def check_server(server: Server) -> None:
    """Check the options.

    Raises:
        UserError: A number is too small, or the address is none or holds a secret, which is not shown.
    """
    check_least(server, LEAST)
    if not _is_plain_url(server.base_url):
        raise UserError(
            "--base-url: must be like http://localhost:8000/v1 or https://api.openai.com/v1, without a user, password, "
            "query or fragment. A key belongs in the environment variable OPENAI_API_KEY."
        )
    if not server.judge_model.strip():
        raise UserError("--judge-model: is empty. Name the model as the server does.")


def check_least(options: object, least: dict[str, float]) -> None:
    """Check that numbers are finite and not too small.

    Raises:
        UserError: Names the first that is not.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= bound):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {bound} or more.")


def read_replies(path: Path) -> Replies:
    """Return the replies that are stored; the end of a line that a killed process began is none.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return {}
    with damage_errors(path):
        content = path.read_bytes()
        replies = [json.loads(line) for line in content[: _whole(content)].splitlines()]
        if not all(isinstance(reply, dict) and reply.keys() == FIELDS for reply in replies):
            raise ValueError("a line is no reply")
    return {reply["key"]: reply for reply in replies}


def missing(questions: Sequence[Question], replies: Replies) -> list[Question]:
    """Return the questions without a reply; of those that are the same in every way, one."""
    return list({question.key: question for question in questions if question.key not in replies}.values())


def ask(questions: Sequence[Question], replies: Replies, server: Server, path: Path) -> None:
    """Ask what has no reply yet, and tell what stays without one.

    Args:
        questions: All questions.
        replies: Those there are; new ones are added.
        server: The judge.
        path: Where each reply is stored as it comes.

    Raises:
        UserError: The server cannot be reached, keeps failing, refuses the key or refuses every question.
    """
    to_ask = missing(questions, replies)
    if not to_ask:
        return
    key, log = _api_key(), _opened(path)
    asker = _Asker(server, key, replies, log, any(question.key in replies for question in questions))
    try:
        asyncio.run(asker.ask(to_ask))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        log.close()
    asker.check_answers()


class _Asker:
    """Puts questions to the judge, several at once, and stores each reply as it comes.

    Args:
        server: The judge.
        key: Its key.
        replies: New ones are added.
        log: Where each is stored.
        is_heard: Whether some question of this comparison has a reply.
    """

    def __init__(self, server: Server, key: str, replies: Replies, log: MetricsLog, is_heard: bool) -> None:
        self.server, self.key, self.replies, self.log, self.is_heard = server, key, replies, log, is_heard
        self.unanswered: list[str] = []

    async def ask(self, questions: Sequence[Question]) -> None:
        """Ask all questions; a failure that the others would share ends it."""
        server, waiting = self.server, iter(questions)
        client = openai.AsyncOpenAI(
            api_key=self.key, base_url=server.base_url, max_retries=server.retries, timeout=server.timeout
        )
        with tqdm(total=len(questions), desc="judging", unit="reply", file=sys.stderr) as bar:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(server.concurrency, len(questions))):
                    group.create_task(self._work(client, waiting, bar))

    def check_answers(self) -> None:
        """Tell what stays unanswered; refuse to go on where everything does."""
        if self.unanswered and not self.is_heard:
            raise self._no_answers()
        if self.unanswered:
            say(
                f"{len(self.unanswered)} questions stay without an answer, the first about {self.unanswered[0]}. "
                "The same command asks for them again."
            )

    async def _work(self, client: openai.AsyncOpenAI, waiting: Iterator[Question], bar: Any) -> None:
        """Ask one question after the other."""
        for question in waiting:
            try:
                reply = await self._reply(client, question)
            except UnansweredError as error:
                self._note(question, str(error))
            else:
                self._keep(question, reply)
            bar.update()

    async def _reply(self, client: openai.AsyncOpenAI, question: Question) -> Reply:
        """Ask one question."""
        try:
            answer = await client.chat.completions.create(
                model=self.server.judge_model,
                messages=[{"role": "user", "content": question.message}],
                temperature=TEMPERATURE,
                top_p=1,
                max_tokens=self.server.max_tokens,
            )
        except openai.APIError as error:
            raise self._failure(error) from None
        except (ValueError, RecursionError) as error:
            raise UnansweredError("the answer is not valid JSON") from error
        return _read_answer(answer)

    def _keep(self, question: Question, reply: Reply) -> None:
        """Store a reply so that nothing can lose it."""
        reply["reply"] = self._without_key(reply["reply"])
        reply |= {"key": question.key, "prompt_id": question.prompt_id, "run_is": question.run_is}
        self.log.write(reply)
        self.log.flush_to_disk()
        self.replies[question.key] = reply
        self.is_heard = True

    def _note(self, question: Question, reason: str) -> None:
        """Remember a question without an answer, and give up where there are nothing but such."""
        self.unanswered.append(f"{question.prompt_id}: {reason}")
        if len(self.unanswered) >= HOPELESS and not self.is_heard:
            raise self._no_answers()

    def _no_answers(self) -> UserError:
        """The error where a server answers nothing that it is asked."""
        return UserError(
            f"{self.server.base_url}: --judge-model {self.server.judge_model} answered none of {len(self.unanswered)} "
            f"questions, the first about {self.unanswered[0]}. {KEPT}"
        )

    def _failure(self, error: openai.APIError) -> Exception:
        """What a failed request means."""
        url, tried = self.server.base_url, f"after {self.server.retries} retries"
        if isinstance(error, openai.APIStatusError):
            return self._status_failure(error.status_code, self._clean(error.message))
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{url}: no reply within --timeout {self.server.timeout:g} seconds, {tried}. {KEPT}")
        return UserError(f"{url}: no connection to this server {tried}. Check --base-url and the server. {KEPT}")

    def _status_failure(self, status: int, words: str) -> Exception:
        """What a server's status means; where a key is refused its words, which may hold parts of it, are not shown."""
        place = f"{self.server.base_url}: status {status}"
        if status in REFUSALS:
            return UnansweredError(words)
        if status in (401, 403):
            return UserError(f"{place}, the key is refused. Check OPENAI_API_KEY. {KEPT}")
        if status == 404:
            return UserError(
                f"{place} for --judge-model {self.server.judge_model} ({words}). Check the model's name, and the "
                f"address, which mostly ends in /v1. {KEPT}"
            )
        return UserError(
            f"{place} after up to {self.server.retries} retries ({words}). Try again later, or lower --concurrency. "
            f"{KEPT}"
        )

    def _without_key(self, text: str) -> str:
        """Text in which the key, should a server repeat it, is blotted out; a short one is no secret."""
        return text.replace(self.key, "[OPENAI_API_KEY]") if len(self.key) >= SHORTEST_SECRET else text

    def _clean(self, words: str) -> str:
        """The beginning of what a server said, as one line for a terminal."""
        line = printable(" ".join(self._without_key(words).split()))
        return line if len(line) <= WORDS_SHOWN else line[:WORDS_SHOWN] + " …"


def _read_answer(answer: Any) -> Reply:
    """What is kept of a chat completion, whatever a server sent in its place."""
    try:
        choice, usage = answer.choices[0], answer.usage
        text, reason = choice.message.content or "", choice.finish_reason
    except (AttributeError, LookupError, TypeError) as error:
        raise UnansweredError("the answer is no chat completion") from error
    if not isinstance(text, str):
        raise UnansweredError("the answer's content is no text")
    return {
        "reply": text,
        "finish_reason": None if reason is None else str(reason),
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "reply_tokens": _count(usage, "completion_tokens"),
    }


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens, where the server told it."""
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else None


def _api_key() -> str:
    """The key from the environment, which is never shown; a server without keys takes any."""
    key = os.environ.get("OPENAI_API_KEY") or NO_KEY
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("OPENAI_API_KEY: holds a space, line break or other character that no key has. Set it again.")
    return key


def _is_plain_url(url: str) -> bool:
    """Whether a URL is a web address with a host and perhaps a path, and nothing that may be secret."""
    try:
        parts = urlsplit(url)
        return PLAIN_URL.fullmatch(url) is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _opened(path: Path) -> MetricsLog:
    """The store, open for more, without a line that a killed process did not finish."""
    log = MetricsLog(path)
    log.cut(_whole(path.read_bytes()))
    return log


def _whole(content: bytes) -> int:
    """How many bytes of the store are whole lines."""
    return content.rfind(b"\n") + 1

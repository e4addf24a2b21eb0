"""Questions to a model behind an OpenAI-compatible server, and the file that keeps its replies as they come."""

from __future__ import annotations

import asyncio
import importlib
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

http = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__)
"""The HTTP library of the installed client, httpx or its successor."""
for name in ("httpcore", "httpcore2"):  # at DEBUG they log a server's headers, which may repeat the key
    logging.getLogger(name).setLevel(logging.INFO)

TEMPERATURE = 0
LEAST: dict[str, float] = {"max_tokens": 1024, "concurrency": 1, "retries": 0, "timeout": 0.001}
PLAIN_URL = re.compile(r"https?://[\w.:\[\]-]+(/[\w.~%/-]*)?", re.ASCII)
REFUSALS = (400, 413, 422)
"""Statuses by which a server refuses one request and may still answer the next."""
FAILURES = (403, 408, 409)
"""Statuses, besides 5xx, that one question may cause, or the server's state."""
HOPELESS = 10
"""Questions without an answer, and none with one, after which no more are asked; or failures in a row."""
OPENAI = "api.openai.com"
ACCOUNT = {name: openai.Omit() for name in ("OpenAI-Organization", "OpenAI-Project")}
"""What the client makes of OPENAI_ORG_ID and OPENAI_PROJECT_ID, and no server but OpenAI's is told."""
NO_KEY = "no-key"
SHORTEST_SECRET = 8
WORDS_SHOWN = 300
KEPT = "Replies so far are kept; the same command goes on from there."
FIELDS = {
    **dict.fromkeys(("key", "prompt_id", "run_is", "reply"), (str,)),
    "finish_reason": (str, type(None)),
    **dict.fromkeys(("prompt_tokens", "reply_tokens"), (int, type(None))),
}
"""What a stored reply has, and of which types."""

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
    """Seconds to wait for a whole reply, each time that a question is asked."""


class Question(NamedTuple):
    """One request; `key` fingerprints everything that its answer depends on."""

    prompt_id: str
    run_is: str
    message: str
    key: str


class UnansweredError(Exception):
    """What came of one question if not a reply; the message says it."""


class FailureError(UnansweredError):
    """The same where the question may have caused it, or the state of the server, which would fail at others too."""


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
    lines = content[: _whole(content)].splitlines()
    replies = [_read_reply(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return {reply["key"]: reply for reply in replies}


def _read_reply(line: bytes, place: str) -> Reply:
    """A stored reply, checked."""
    try:
        reply = json.loads(line)
        if not isinstance(reply, dict) or reply.keys() != FIELDS.keys():
            raise ValueError(f"it must hold {', '.join(FIELDS)}")
        strange = [name for name, types in FIELDS.items() if type(reply[name]) not in types]
        if strange:
            raise ValueError(f"{strange[0]} is of another kind")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place}: damaged, no reply ({error}). Restore the file from a copy, or remove this line: its question is "
            "asked again."
        ) from error
    return reply


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
    key = _api_key()
    client, log = _client(server, key), _opened(path)
    asker = _Asker(server, key, replies, log, any(question.key in replies for question in questions))
    try:
        asyncio.run(asker.ask(client, to_ask))
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
        self.failures_in_a_row = 0

    async def ask(self, client: openai.AsyncOpenAI, questions: Sequence[Question]) -> None:
        """Ask all questions; a failure that the others would share ends it."""
        waiting = iter(questions)
        with tqdm(total=len(questions), desc="judging", unit="reply", file=sys.stderr) as bar:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(self.server.concurrency, len(questions))):
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
                self._note(question, error)
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
                extra_headers={} if urlsplit(self.server.base_url).hostname == OPENAI else ACCOUNT,
            )
        except openai.APIError as error:
            raise self._failure(error) from None
        except (ValueError, RecursionError) as error:
            raise UnansweredError("the answer is not valid JSON") from error
        return _read_answer(answer)

    def _keep(self, question: Question, reply: Reply) -> None:
        """Store a reply so that nothing can lose it."""
        texts = {name: self._without_key(reply[name]) for name in ("reply", "finish_reason") if reply[name]}
        reply |= texts | {"key": question.key, "prompt_id": question.prompt_id, "run_is": question.run_is}
        self.log.write(reply)
        self.log.flush_to_disk()
        self.replies[question.key] = reply
        self.is_heard, self.failures_in_a_row = True, 0

    def _note(self, question: Question, error: UnansweredError) -> None:
        """Remember a question without an answer, and give up where there are nothing but such, or it failed often."""
        self.unanswered.append(f"{question.prompt_id}: {error}")
        if len(self.unanswered) >= HOPELESS and not self.is_heard:
            raise self._no_answers()
        self.failures_in_a_row += isinstance(error, FailureError)
        if self.failures_in_a_row >= HOPELESS:
            raise UserError(
                f"{self.server.base_url}: {HOPELESS} questions in a row failed, the last about {self.unanswered[-1]}. "
                f"Try again later. {KEPT}"
            )

    def _no_answers(self) -> UserError:
        """The error where a server answers nothing that it is asked."""
        return UserError(
            f"{self.server.base_url}: --judge-model {self.server.judge_model} answered none of {len(self.unanswered)} "
            f"questions, the first about {self.unanswered[0]}. {KEPT}"
        )

    def _failure(self, error: openai.APIError) -> Exception:
        """What a failed request means."""
        server = self.server
        if isinstance(error, openai.APIStatusError):
            return self._status_failure(error.status_code, self._clean(error.message) + _asked_to_wait(error))
        if isinstance(error, openai.APITimeoutError):
            return FailureError(f"no reply within --timeout {server.timeout:g} seconds, after {server.retries} retries")
        return UserError(
            f"{server.base_url}: no connection to this server after {server.retries} retries. Check --base-url and the "
            f"server. {KEPT}"
        )

    def _status_failure(self, status: int, words: str) -> Exception:
        """What a server's status means; where a key is refused its words, which may hold parts of it, are not shown."""
        place = f"{self.server.base_url}: status {status}"
        if status in REFUSALS:
            return UnansweredError(words)
        if status == 401:
            return UserError(f"{place}, the key is refused. Check OPENAI_API_KEY. {KEPT}")
        if status == 403:
            return FailureError("status 403, the key or the question is refused; check OPENAI_API_KEY")
        if status == 404:
            return UserError(
                f"{place} for --judge-model {self.server.judge_model} ({words}). Check the model's name, and the "
                f"address, which mostly ends in /v1. {KEPT}"
            )
        tried = f"after up to {self.server.retries} retries ({words})"
        if status in FAILURES or status >= 500:
            return FailureError(f"status {status} {tried}")
        return UserError(f"{place} {tried}. Try again later, or lower --concurrency. {KEPT}")

    def _without_key(self, text: str) -> str:
        """Text in which the key, should a server repeat it, is blotted out; a short one is no secret but a word."""
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
    return value if type(value) is int and value >= 0 else None


def _asked_to_wait(error: openai.APIStatusError) -> str:
    """What a server that asks for a pause says of it, in words; a long one is not waited for."""
    seconds = error.response.headers.get("retry-after", "")
    return f"; it asks to wait {seconds} seconds" if seconds.isascii() and seconds.isdigit() else ""


class _Patient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that waits so long for the whole of a reply, not for each part of it.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timeout=seconds)
        self.seconds = seconds

    async def send(self, request: Any, **settings: Any) -> Any:
        """Send a request and read the reply."""
        try:
            async with asyncio.timeout(self.seconds):
                return await super().send(request, **settings)
        except TimeoutError as error:
            raise http.ReadTimeout("the reply is not complete", request=request) from error


def _client(server: Server, key: str) -> openai.AsyncOpenAI:
    """The client, with the proxies and certificates of the environment."""
    try:
        return openai.AsyncOpenAI(
            api_key=key,
            base_url=server.base_url,
            max_retries=server.retries,
            http_client=_Patient(server.timeout),
        )
    except (ImportError, OSError, ValueError, http.InvalidURL) as error:  # whose words may hold a proxy's password
        raise UserError(
            f"The proxies or certificates of the environment cannot be used ({type(error).__name__}). Check the "
            "variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (a SOCKS proxy needs another package), "
            "SSL_CERT_FILE and SSL_CERT_DIR."
        ) from None


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

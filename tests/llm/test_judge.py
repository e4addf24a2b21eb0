"""`python -m llm.judge`, against a server of the tests that answers as each test says, and against a real one."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm import judge, judge_server, statistics
from llm.console import entry_point
from llm.judge_server import Question
from llm.records import Completion, EvalRecord, Prompt
from llm.run_folder import lock_run
from llm.store import ShardFolder, write_text

ROOT = Path(__file__).parents[2]
PAPER = Path(os.environ.get("BRAIN_REAL_DATA", ROOT.parent / "shared")) / "paper" / "paper.md"
KEY = "sk-a-key-that-nobody-may-see-0123456789"
A, B, C = "Because. [[A]]", "Because. [[B]]", "Because. [[C]]"
SHOWN = re.compile(r"Assistant B\n(.*)\n\n---\n\nAssistant A\n(.*)\n\n---\Z", re.S)


class Answer(NamedTuple):
    """What the server answers; no body closes the connection without a word."""

    body: bytes | None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = "application/json"
    pause: float = 0.0
    """Seconds after each byte."""


class Asked(NamedTuple):
    """One request that came in."""

    moment: float
    body: dict[str, Any]
    headers: Message

    @property
    def authorization(self) -> str:
        return self.headers["Authorization"]

    @property
    def message(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def shown(self) -> dict[str, str]:
        """The text under each label."""
        found = SHOWN.search(self.message)
        assert found is not None
        return {"B": found[1], "A": found[2]}


def said(text: str | None, reason: str | None = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return Answer(json.dumps(whole).encode())


def refused(status: int, words: str, *headers: tuple[str, str]) -> Answer:
    return Answer(json.dumps({"error": {"message": words, "type": "x"}}).encode(), status, headers)


def prefers_good(asked: Asked) -> Answer:
    """A judge that likes `good`, dislikes `bad` and explains itself."""
    worth = {label: text.count("good") - text.count("bad") for label, text in asked.shown.items()}
    verdict = "C" if worth["A"] == worth["B"] else max(worth, key=lambda label: worth[label])
    return said(f"Of {hashlib.sha256(asked.message.encode()).hexdigest()}: [[{verdict}]]")


class JudgeServer:
    """An OpenAI-compatible server that answers what `behave` says."""

    def __init__(self) -> None:
        self.behave: Callable[[Asked], Answer] = prefers_good
        self.asked: list[Asked] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.judge = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def answer(self, asked: Asked) -> Answer:
        with self.lock:
            self.asked.append(asked)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return self.behave(asked)
        finally:
            with self.lock:
                self.under_way -= 1

    def messages(self) -> list[str]:
        return [asked.message for asked in self.asked]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    judge: JudgeServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or gave up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: _Http

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        answer = self.server.judge.answer(Asked(time.monotonic(), body, self.headers))
        if answer.body is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name, value in (("Content-Type", answer.kind), *answer.headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not answer.pause:
            self.wfile.write(answer.body)
            return
        for byte in answer.body:
            self.wfile.write(bytes([byte]))
            time.sleep(answer.pause)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    serving = JudgeServer()
    thread = threading.Thread(target=serving.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.http.shutdown()
    thread.join()
    serving.http.server_close()


Rows = Sequence[tuple[str, str, str]]
THREE: Rows = [("How?", "good", "bad"), ("Why?", "bad", "good"), ("Who?", "good", "good too")]
"""(prompt, completion, reference): a win, a loss and a tie for who prefers good."""


def many(count: int) -> Rows:
    return [(f"Question {i}?", f"good {i}", f"bad {i}") for i in range(count)]


def make_run(folder: Path, rows: Rows = THREE, run_format: str = "anthropic-hh") -> Path:
    """A run folder as far as the judge reads it."""
    write_text(folder / "config.yaml", f"format: {run_format}\n")
    records = [
        EvalRecord(
            Prompt(f"test-{i}", text, (3,), None),
            Completion(f"test-{i}", 0, (5, 2), "stop", completion),
            reference,
            *(0.0, 0.0, None, None, -1.0, -1.0),
        )
        for i, (text, completion, reference) in enumerate(rows)
    ]
    ShardFolder(folder / "eval").write("after", [record.as_row() for record in records])
    return folder


def arguments(folder: Path, server: JudgeServer, *more: str) -> list[str]:
    options = ["--base-url", server.url, "--judge-model", "the/judge", "--retries", "0", "--concurrency", "1"]
    return [str(folder), *options, *more]


def run_judge(folder: Path, server: JudgeServer, *more: str) -> dict[str, Any]:
    """Judge, and return the newest result."""
    assert entry_point(judge.main, arguments(folder, server, *more)) == 0
    return json.loads(max((folder / "judge").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def run_badly(folder: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Judge in vain, and return the one paragraph that says why."""
    assert entry_point(judge.main, arguments(folder, server, *more)) == 2
    *progress, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    assert not any("Traceback" in line for line in progress)
    return last


def stored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "judge" / "replies.jsonl").read_text().splitlines()]


# What is asked


@pytest.mark.parametrize("name", ["dialogue", "summary"])
def test_the_paper_s_prompt_has_the_conversation_then_b_then_a_and_nothing_of_the_page(name: str) -> None:
    _, text = judge.load_prompt(name, "plain")
    assert text.startswith("Please act as an impartial judge")
    assert re.findall("{{.*}}", text) == ["{{Conversation}}", "{{AssistantB}}", "{{AssistantA}}"]
    assert [line for line in text.splitlines() if line.startswith("Assistant ")] == ["Assistant B", "Assistant A"]
    assert text.count("\n---\n") + text.endswith("\n---") == 4
    assert not re.search("<sup>|http|”", text)
    assert "[[A]]if assistant A is better, [[B]]if assistant B is better, and [[C]]for a tie." in text


@pytest.mark.skipif(not PAPER.exists(), reason=f"no paper at {PAPER} (set $BRAIN_REAL_DATA)")
@pytest.mark.parametrize(("name", "heading"), [("dialogue", "### B.3.1"), ("summary", "### B.3.2")])
def test_the_prompt_is_the_paper_s_word_for_word(name: str, heading: str) -> None:
    section = PAPER.read_text().split(heading)[1].split("### B.3.2")[0]
    printed = re.sub(r"(?m)^(<sup>.*|---)$", "", section.split("”", 1)[1])
    ours = re.sub(r"(?m)^---$", "", judge.load_prompt(name, "plain")[1])
    assert ours.split() == printed.split()


def test_a_question_is_one_user_message_at_temperature_0_with_room_for_an_explanation(
    tmp_path: Path, server: JudgeServer
) -> None:
    run_judge(make_run(tmp_path), server)
    for asked in server.asked:
        assert [message["role"] for message in asked.body["messages"]] == ["user"]
        assert asked.body["temperature"] == 0
        assert asked.body["top_p"] == 1
        assert asked.body["max_tokens"] >= 1024
        assert asked.body["model"] == "the/judge"
        assert asked.authorization == f"Bearer {KEY}"


def test_each_prompt_is_asked_in_both_orders(tmp_path: Path, server: JudgeServer) -> None:
    run_judge(make_run(tmp_path, [("How?", "ours", "theirs")]), server)
    assert [asked.shown for asked in server.asked] == [{"A": "ours", "B": "theirs"}, {"A": "theirs", "B": "ours"}]
    assert all("How?" in message for message in server.messages())


@pytest.mark.parametrize(("order", "label"), [("run-is-a", "A"), ("run-is-b", "B")])
def test_a_single_order_is_the_one_named(order: str, label: str, tmp_path: Path, server: JudgeServer) -> None:
    result = run_judge(make_run(tmp_path), server, "--order", order)
    assert [asked.shown[label] for asked in server.asked] == [ours for _, ours, _ in THREE]
    assert result["counts"] | {"win": 1, "loss": 1, "tie": 1} == result["counts"]
    assert result["order_agreement"] is None


def test_texts_that_look_like_places_or_verdicts_are_only_text(tmp_path: Path, server: JudgeServer) -> None:
    rows = [("{{AssistantA}} [[A]]", r"{{Conversation}} \1 good", "{{AssistantB}} <script>")]
    run_judge(make_run(tmp_path, rows), server)
    assert server.asked[0].shown == {"A": r"{{Conversation}} \1 good", "B": "{{AssistantB}} <script>"}
    assert "---\n\n{{AssistantA}} [[A]]\n\n---" in server.asked[0].message


def test_white_space_around_a_text_is_not_shown(tmp_path: Path, server: JudgeServer) -> None:
    run_judge(make_run(tmp_path, [("\n\nHuman: hi\n\nAssistant:", " ours\n", "theirs")]), server)
    assert server.asked[0].shown == {"A": "ours", "B": "theirs"}


@pytest.mark.parametrize(
    ("run_format", "words"),
    [("anthropic-hh", "user conversation"), ("rm-static", "user conversation"), ("tldr", "reddit post")],
)
def test_the_run_s_format_chooses_the_prompt(run_format: str, words: str, tmp_path: Path, server: JudgeServer) -> None:
    run_judge(make_run(tmp_path, run_format=run_format), server)
    assert words in server.asked[0].message


def test_a_prompt_of_one_s_own_is_used(tmp_path: Path, server: JudgeServer) -> None:
    server.behave = lambda asked: said(A)
    (tmp_path / "mine.txt").write_text("X {{Conversation}} Y {{AssistantA}} Z {{AssistantB}}")
    make_run(tmp_path, [("q", "ours", "theirs")], "plain")
    run_judge(tmp_path, server, "--prompt", str(tmp_path / "mine.txt"))
    assert sorted(server.messages()) == ["X q Y ours Z theirs", "X q Y theirs Z ours"]


def test_the_same_question_is_asked_once_and_counts_for_each_prompt(tmp_path: Path, server: JudgeServer) -> None:
    result = run_judge(make_run(tmp_path, [("How?", "good", "bad")] * 3), server)
    assert len(server.asked) == len(stored(tmp_path)) == 2
    assert result["counts"]["win"] == 3


def test_a_limit_takes_the_same_prompts_and_raising_it_asks_for_the_others(tmp_path: Path, server: JudgeServer) -> None:
    make_run(tmp_path, many(5))
    first = run_judge(tmp_path, server, "--limit", "2")
    assert list(first["outcomes"]) == ["test-0", "test-1"]
    assert run_judge(tmp_path, server, "--limit", "4")["prompts"] == 4
    assert len(server.asked) == len(set(server.messages())) == 8


# What is made of the replies


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I think A. [[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]] it is, as I said: [[C]]", "C"),
        ("Better is [[A]] than [[B]]", "unparsed"),
        ("A is better", "unparsed"),
        ("[A]", "unparsed"),
        ("[[a]]", "unparsed"),
        ("[[D]]", "unparsed"),
        ("[[ A ]]", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_a_verdict_is_exactly_one_label_in_double_brackets(text: str, verdict: str) -> None:
    assert judge.verdict_of({"reply": text, "finish_reason": "stop"}) == verdict
    assert judge.verdict_of({"reply": text, "finish_reason": "length"}) == "cut"


def asked_both_ways(verdicts: tuple[str | None, str | None]) -> tuple[list[Question], dict[str, Any]]:
    questions = [Question("test-0", label, "", label) for label in ("A", "B")]
    replies = {
        label: {
            "reply": f"[[{verdict}]]",
            "finish_reason": "length" if verdict == "cut" else "stop",
            "prompt_tokens": None,
            "reply_tokens": 3,
        }
        for label, verdict in zip("AB", verdicts, strict=True)
        if verdict
    }
    return questions, replies


@pytest.mark.parametrize("verdicts", [*itertools.product(["A", "B", "C", "neither", "cut", None], repeat=2)], ids=str)
def test_two_verdicts_that_differ_are_a_tie_and_a_missing_one_leaves_no_outcome(
    verdicts: tuple[str | None, str | None],
) -> None:
    result = judge.summarise(*asked_both_ways(verdicts))
    faults = {None: "unanswered", "cut": "cut", "neither": "unparsed"}
    met = [fault for verdict, fault in faults.items() if verdict in verdicts]
    by_verdicts = {("A", "B"): "win", ("B", "A"): "loss"}
    expected = met[0] if met else by_verdicts.get(verdicts, "tie")  # type: ignore[arg-type]
    assert {name for name, count in result["counts"].items() if count} == {expected}
    assert result["outcomes"] == {"test-0": expected}
    agree = verdicts in {("A", "B"), ("B", "A"), ("C", "C")}
    assert result["order_agreement"] == (None if met else statistics.proportion([agree]))
    assert result["same_label"] == {"A": verdicts == ("A", "A"), "B": verdicts == ("B", "B")}


def test_rates_are_shares_of_the_prompts_with_an_outcome_with_wilson_s_intervals(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*many(5), *THREE, ("cut", "x", "y"), ("mute", "x", "y"), ("torn", "x", "y")]

    def behave(asked: Asked) -> Answer:
        if "cut" in asked.message:
            return said("[[A]] because", "length")
        return said("no verdict") if "mute" in asked.message else prefers_good(asked)

    server.behave = lambda asked: refused(400, "too long") if "torn" in asked.message else behave(asked)
    result = run_judge(make_run(tmp_path, rows), server)
    assert result["counts"] == {"win": 6, "tie": 1, "loss": 1, "unanswered": 1, "cut": 1, "unparsed": 1}
    assert result["win_rate"] == statistics.proportion([True] * 6 + [False] * 2)
    assert result["tie_rate"]["n"] == result["loss_rate"]["n"] == 8
    assert sum(result["verdicts"].values()) == 22
    assert result["verdicts"] | {"C": 2, "unanswered": 2, "cut": 2, "unparsed": 2} == result["verdicts"]
    assert result["tokens"] == {"prompt": 2000, "reply": 200}
    out = capsys.readouterr().out
    assert "win   75.0% [" in out
    assert "none  1 unanswered, 1 cut, 1 unparsed" in out


def test_a_judge_that_likes_a_position_gives_ties_alone(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: said(B)
    result = run_judge(make_run(tmp_path), server)
    assert result["counts"]["tie"] == 3
    assert result["order_agreement"]["estimate"] == 0
    assert result["same_label"] == {"A": 0, "B": 3}
    assert "A 0 times, B 3 times" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [said(None), said(None, "content_filter"), said("", None)])
def test_an_empty_reply_is_a_reply_without_a_verdict(answer: Answer, tmp_path: Path, server: JudgeServer) -> None:
    server.behave = lambda asked: answer
    assert run_judge(make_run(tmp_path), server)["counts"]["unparsed"] == 3


def test_what_the_judge_wrote_is_one_escaped_line_of_the_store(tmp_path: Path, server: JudgeServer) -> None:
    text = 'two\nlines\u2028 \x1b[31m <script> "\ud800 [[A]]'
    server.behave = lambda asked: said(text)
    run_judge(make_run(tmp_path, many(1)), server)
    content = (tmp_path / "judge" / "replies.jsonl").read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == 2
    assert b"\x1b" not in content
    assert [line["reply"] for line in stored(tmp_path)] == [text, text]


# Against another run


def test_another_run_s_completions_stand_in_the_references_place(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "one", [("How?", "good", "reference")])
    make_run(tmp_path / "two", [("How?", "bad", "reference")])
    result = run_judge(tmp_path / "one", server, "--against", str(tmp_path / "two"))
    assert "the runs have one seed and share their draws" in capsys.readouterr().out
    assert server.asked[0].shown == {"A": "good", "B": "bad"}
    assert result["counts"]["win"] == 1
    assert result["against"] == str(tmp_path / "two")
    assert not (tmp_path / "two" / "judge").exists()
    write_text(tmp_path / "two" / "config.yaml", "format: anthropic-hh\nseed: 7\n")
    run_judge(tmp_path / "one", server, "--against", str(tmp_path / "two"))
    assert "share their draws" not in capsys.readouterr().out


@pytest.mark.parametrize("other", [many(2), many(4), [*many(2), ("Another?", "x", "y")]])
def test_a_run_with_other_prompts_is_refused(
    other: Rows, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "one", many(3))
    make_run(tmp_path / "two", other)
    message = run_badly(tmp_path / "one", server, capsys, "--against", str(tmp_path / "two"))
    assert "its held-out prompts are not those of" in message
    assert not server.asked
    assert not (tmp_path / "one" / "judge").exists()


# A server that fails


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(tmp_path: Path, server: JudgeServer) -> None:
    def behave(asked: Asked) -> Answer:
        if len(server.asked) == 1:
            return refused(429, "slow down", ("Retry-After", "1.2"))
        return prefers_good(asked)

    server.behave = behave
    assert run_judge(make_run(tmp_path, many(1)), server, "--retries", "1")["counts"]["win"] == 1
    assert len(server.asked) == 3
    assert server.asked[1].moment - server.asked[0].moment >= 1.2


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_stays_busy_ends_it_and_what_was_judged_is_kept(
    status: int, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, many(10))
    server.behave = lambda asked: prefers_good(asked) if len(server.asked) < 4 else refused(status, "full \x1b[31m")
    message = run_badly(tmp_path, server, capsys)
    assert f"status {status}" in message
    assert r"full \x1b[31m" in message
    assert ("10 questions in a row failed" in message) == (status != 429)  # a limit on requests is no question's fault
    assert len(stored(tmp_path)) == 3
    in_vain = len(server.asked) - 3
    assert in_vain == (1 if status == 429 else 10)
    server.behave = prefers_good
    assert run_judge(tmp_path, server)["counts"]["win"] == 10
    assert len(server.asked) == 20 + in_vain


@pytest.mark.parametrize("status", [403, 409, 500, 502])
def test_a_question_at_which_the_server_fails_each_time_keeps_no_other_from_being_asked(
    status: int, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, [("Poison?", "good", "bad"), *many(9)])
    server.behave = lambda asked: refused(status, "oh") if "Poison?" in asked.message else prefers_good(asked)
    for _ in range(2):
        result = run_judge(tmp_path, server)
        assert result["counts"] | {"win": 9, "unanswered": 1} == result["counts"]
        assert f"2 questions stay without an answer, the first about test-0: status {status}" in capsys.readouterr().err


def test_a_question_that_takes_too_long_each_time_keeps_no_other_from_being_asked(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, [("Poison?", "good", "bad"), *many(2)])
    is_over = threading.Event()

    def behave(asked: Asked) -> Answer:
        if "Poison?" in asked.message:
            is_over.wait(5)
        return prefers_good(asked)

    server.behave = behave
    assert run_judge(tmp_path, server, "--timeout", "0.4")["counts"]["unanswered"] == 1
    assert "test-0: no reply within --timeout 0.4 seconds" in capsys.readouterr().err
    is_over.set()


def test_a_long_pause_that_a_server_asks_for_is_told_and_not_waited_for(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: refused(429, "quota", ("Retry-After", "86400"))
    message = run_badly(make_run(tmp_path, many(1)), server, capsys, "--retries", "3")
    assert "quota; it asks to wait 86400 seconds" in message
    assert len(server.asked) == 1


def test_a_reply_that_comes_in_drops_does_not_outlast_the_time_allowed(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each byte comes in time, the whole does not."""
    server.behave = lambda asked: prefers_good(asked)._replace(pause=0.05)
    start = time.monotonic()
    message = run_badly(make_run(tmp_path, many(1)), server, capsys, "--timeout", "0.4", "--retries", "0")
    assert "no reply within --timeout 0.4 seconds" in message
    assert time.monotonic() - start < 5


def test_a_reply_that_takes_too_long_is_asked_for_again_and_then_given_up(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, many(1))
    is_over = threading.Event()

    def behave(asked: Asked) -> Answer:
        if len(server.asked) <= slow:
            is_over.wait(5)
        return prefers_good(asked)

    server.behave, slow = behave, 99
    message = run_badly(tmp_path, server, capsys, "--timeout", "0.4")
    assert "no reply within --timeout 0.4 seconds" in message
    slow = len(server.asked) + 1
    assert run_judge(tmp_path, server, "--timeout", "0.4", "--retries", "5")["counts"]["win"] == 1
    assert len(server.asked) >= slow + 2
    is_over.set()


def test_a_dead_server_is_told_clearly_and_what_was_judged_is_kept(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, many(3))
    server.behave = lambda asked: prefers_good(asked) if len(server.asked) < 3 else Answer(None)
    assert "no connection to this server" in run_badly(tmp_path, server, capsys)
    assert len(stored(tmp_path)) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url, server.url = server.url, f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert "no connection to this server after 0 retries" in run_badly(tmp_path, server, capsys)
    server.url, server.behave = url, prefers_good
    assert run_judge(tmp_path, server)["counts"]["win"] == 3
    assert Counter(server.messages()).most_common(1)[0][1] <= 2


MALFORMED = {
    "half of it": said(A)._replace(body=said(A).body[:-20]),  # type: ignore[index]
    "no JSON": Answer(b"<html>gateway</html>"),
    "a page": Answer(b"<html>gateway</html>", kind="text/html"),
    "nothing": Answer(b""),
    "not UTF-8": Answer(b'{"choices": "\xff\xfe"}'),
    "too deep": Answer(b"[" * 100_000),
    "a number": Answer(b"7"),
    "null": Answer(b"null"),
    "a list": Answer(b"[1, 2]"),
    "no choices": Answer(b'{"choices": []}'),
    "choices of another kind": Answer(b'{"choices": {"a": 1}}'),
    "choices of numbers": Answer(b'{"choices": [7]}'),
    "no message": Answer(b'{"choices": [{"finish_reason": "stop"}]}'),
    "content of another kind": Answer(b'{"choices": [{"message": {"content": {"a": 1}}, "finish_reason": "stop"}]}'),
}


def test_an_answer_that_is_no_reply_is_counted_and_asked_for_again_by_the_same_command(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, [("How?", "good", "bad"), *((f"Case {name}.", "good", "bad") for name in MALFORMED)])

    def behave(asked: Asked) -> Answer:
        case = re.search(r"Case (.*)\.", asked.message)
        return MALFORMED[case[1]] if case else prefers_good(asked)

    server.behave = behave
    result = run_judge(tmp_path, server)
    assert Counter(result["outcomes"].values()) == {"win": 1, "unanswered": len(MALFORMED)}
    told = (
        f"{2 * len(MALFORMED)} questions stay without an answer, the first about test-1: the answer is not valid JSON"
    )
    assert told in capsys.readouterr().err
    assert len(stored(tmp_path)) == 2
    server.behave = prefers_good
    server.asked.clear()
    assert run_judge(tmp_path, server)["counts"]["win"] == 1 + len(MALFORMED)
    assert len(server.asked) == 2 * len(MALFORMED)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_server_that_refuses_every_question_is_soon_left_alone(
    status: int, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: refused(status, "roles must alternate")
    message = run_badly(make_run(tmp_path, many(40)), server, capsys, "--concurrency", "8")
    assert "answered none of 10 questions, the first about test-" in message
    assert "roles must alternate" in message
    assert len(server.asked) <= judge_server.HOPELESS + 8
    assert not list((tmp_path / "judge").glob("*.json"))
    assert "answered none of 2" in run_badly(tmp_path, server, capsys, "--limit", "1")


def test_many_refusals_are_no_reason_to_stop_once_a_question_was_answered(tmp_path: Path, server: JudgeServer) -> None:
    make_run(tmp_path, many(30))
    server.behave = lambda asked: prefers_good(asked) if "Question 0?" in asked.message else refused(400, "policy")
    for _ in range(2):
        assert run_judge(tmp_path, server)["counts"]["unanswered"] == 29


def test_an_unknown_model_or_path_is_told(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: refused(404, "no such model")
    message = run_badly(make_run(tmp_path), server, capsys)
    assert "status 404 for --judge-model the/judge" in message
    assert "no such model" in message
    assert "mostly ends in /v1" in message


# The store


def test_the_same_command_again_asks_nothing_and_gives_the_same(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    first = run_judge(tmp_path, server)
    asked = len(server.asked)
    assert run_judge(tmp_path, server) == first
    assert len(server.asked) == asked == 6
    assert len(list((tmp_path / "judge").glob("*.json"))) == 1
    assert "asks     0 of 6 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [("--judge-model", "another"), ("--max-tokens", "2048"), ("--prompt", "summary"), ("--base-url", "")]
)
def test_another_judge_is_asked_anew(change: tuple[str, str], tmp_path: Path, server: JudgeServer) -> None:
    make_run(tmp_path)
    run_judge(tmp_path, server)
    name, value = change
    run_judge(tmp_path, server, name, value or server.url.replace("127.0.0.1", "localhost"))
    assert len(server.asked) == 12
    assert len(list((tmp_path / "judge").glob("*.json"))) == 2


def test_no_more_questions_are_under_way_than_allowed(tmp_path: Path, server: JudgeServer) -> None:
    def behave(asked: Asked) -> Answer:
        time.sleep(0.05)
        return prefers_good(asked)

    server.behave = behave
    run_judge(make_run(tmp_path, many(8)), server, "--concurrency", "3")
    assert server.most_under_way == 3


def test_a_line_torn_anywhere_is_dropped_and_asked_again(tmp_path: Path, server: JudgeServer) -> None:
    make_run(tmp_path, many(2))
    whole = run_judge(tmp_path, server)
    path = tmp_path / "judge" / "replies.jsonl"
    content = path.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    for end in [start, start + 1, start + 40, len(content) - 2, len(content) - 1]:
        path.write_bytes(content[:end])
        server.asked.clear()
        assert run_judge(tmp_path, server) == whole
        assert len(server.asked) == 1
        assert path.read_bytes() == content


FIRST = {"key": "k", "prompt_id": "p", "run_is": "A", "reply": "[[A]]", "finish_reason": None}
COUNTED = FIRST | {"prompt_tokens": 1, "reply_tokens": None}


@pytest.mark.parametrize(
    "damage",
    [
        *(b"{}\n", b"7\n", b"\xff\n", b'{"key": \n', json.dumps(FIRST).encode() + b"\n"),
        *(
            json.dumps(COUNTED | change).encode() + b"\n"
            for change in ({"reply": None}, {"key": 7}, {"finish_reason": 1}, {"prompt_tokens": "1"}, {"more": 1})
        ),
    ],
)
def test_a_damaged_store_is_refused_and_left_as_it_is(
    damage: bytes, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run_judge(make_run(tmp_path), server)
    path = tmp_path / "judge" / "replies.jsonl"
    damaged = damage + path.read_bytes()
    path.write_bytes(damaged)
    asked = len(server.asked)
    message = run_badly(tmp_path, server, capsys)
    assert f"{path}, line 1: damaged" in message
    assert "remove this line: its question is asked again" in message
    assert path.read_bytes() == damaged
    assert len(server.asked) == asked


def test_a_second_process_is_kept_away(tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path)
    (tmp_path / "judge").mkdir()
    lock = lock_run(tmp_path / "judge")
    try:
        assert "another process is working" in run_badly(tmp_path, server, capsys)
    finally:
        lock.release()
    assert not server.asked
    run_judge(tmp_path, server)


def kill_at_question(count: int, folder: Path, server: JudgeServer) -> None:
    """Judge in a process that is killed when so many questions have come in, some of them not yet answered."""
    is_started, child = threading.Event(), None
    server.asked.clear()

    def behave(asked: Asked) -> Answer:
        is_started.wait(60)
        if len(server.asked) == count and child is not None:
            child.send_signal(signal.SIGKILL)
        time.sleep(0.01 * (len(server.asked) % 3))
        return prefers_good(asked)

    server.behave = behave
    command = [sys.executable, "-m", "llm.judge", *arguments(folder, server, "--concurrency", "4")]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    is_started.set()
    assert child.wait(60) == -signal.SIGKILL
    server.behave = prefers_good


def test_killed_in_the_middle_and_resumed_no_verdict_is_lost_or_counted_twice(
    tmp_path: Path, server: JudgeServer
) -> None:
    whole = run_judge(make_run(tmp_path / "whole", many(12)), server)
    folder, path = make_run(tmp_path / "run", many(12)), tmp_path / "run" / "judge" / "replies.jsonl"
    kept = b""
    for count in (6, 9):
        kill_at_question(count, folder, server)
        assert not keys(kept) & asked_keys(folder, server)
        content = path.read_bytes()
        assert content.startswith(kept)
        assert len(content) > len(kept)
        kept = content[: content.rfind(b"\n") + 1]
    server.asked.clear()
    assert run_judge(folder, server) == whole
    assert path.read_bytes().startswith(kept)
    assert len(server.asked) == 24 - len(keys(kept))
    assert not keys(kept) & asked_keys(folder, server)
    assert len(stored(folder)) == len(keys(path.read_bytes())) == 24
    replies = [{line["key"]: line["reply"] for line in stored(run)} for run in (folder, tmp_path / "whole")]
    assert replies[0] == replies[1]


def keys(lines: bytes) -> set[str]:
    return {json.loads(line)["key"] for line in lines.splitlines()}


def asked_keys(folder: Path, server: JudgeServer) -> set[str]:
    """The keys of the questions that came in."""
    settings = judge_server.Server(server.url, "the/judge")
    pairs, template = judge.load_pairs(folder, None, 0), judge.load_prompt("dialogue", "")[1]
    key_of = {q.message: q.key for q in judge.questions_about(pairs, template, judge.JudgeCommand("", settings))}
    return {key_of[message] for message in server.messages()}


# The key


def echo(status: int) -> Callable[[Asked], Answer]:
    """A server that repeats the key wherever it can."""

    def behave(asked: Asked) -> Answer:
        if status == 200:
            return said(f"{asked.authorization} [[A]]", asked.authorization)
        return refused(status, f"not with {asked.authorization}", ("X-Key", asked.authorization))

    return behave


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_the_key_is_in_no_file_log_or_error(
    status: int, tmp_path: Path, server: JudgeServer, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    server.behave = echo(status)
    caplog.set_level("DEBUG")
    assert entry_point(judge.main, arguments(make_run(tmp_path, many(12)), server)) == (0 if status == 200 else 2)
    assert server.asked[0].authorization == f"Bearer {KEY}"
    out = capsys.readouterr()
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]
    assert (tmp_path / "judge").exists()
    for text in (out.out, out.err, caplog.text, *files):
        assert KEY not in text
        assert base64.b64encode(KEY.encode()).decode() not in text


@pytest.mark.parametrize("status", [401, 403])
def test_what_a_server_says_of_a_refused_key_is_not_repeated(
    status: int, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: refused(status, f"wrong key {KEY[:12]}…")
    message = run_badly(make_run(tmp_path), server, capsys)
    assert f"status {status}, the key" in message
    assert "heck OPENAI_API_KEY" in message
    assert KEY[:12] not in message


@pytest.mark.parametrize("key", [KEY + "\n", KEY + " x", "é" + KEY, KEY + "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    key: str, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    message = run_badly(make_run(tmp_path), server, capsys)
    assert "OPENAI_API_KEY: holds a space" in message
    assert KEY not in message
    assert not server.asked


@pytest.mark.parametrize("key", ["", None])
def test_a_server_without_keys_needs_none(
    key: str | None, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    assert run_judge(make_run(tmp_path), server)["prompts"] == 3
    assert server.asked[0].authorization == "Bearer no-key"


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{KEY}@127.0.0.1/v1",
        f"http://127.0.0.1/v1?key={KEY}",
        f"http://127.0.0.1/v1#{KEY}",
        "127.0.0.1:8000/v1",
        "ftp://127.0.0.1/v1",
        "http://",
        "http:///v1",
        "http://:80/v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "",
    ],
)
def test_an_address_that_is_none_or_may_hold_a_secret_is_refused_unseen(
    url: str, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run_badly(make_run(tmp_path), server, capsys, "--base-url", url)
    assert "--base-url: must be like http://localhost:8000/v1" in message
    assert KEY not in message


# The environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", f"socks9://me:{KEY}@127.0.0.1:1"),
        ("HTTP_PROXY", f"ftp://me:{KEY}@127.0.0.1"),
        ("HTTP_PROXY", f"http://me:{KEY}@[::1"),
        ("SSL_CERT_FILE", "/nowhere/certificates.pem"),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_told(
    name: str, value: str, tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(name, value)
    message = run_badly(make_run(tmp_path), server, capsys)
    assert "proxies or certificates of the environment cannot be used" in message
    assert name in message
    assert KEY not in message
    assert not (tmp_path / "judge" / "replies.jsonl").exists()


def test_an_account_at_openai_is_told_to_no_other_server(
    tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    run_judge(make_run(tmp_path, many(1)), server)
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert not [value for value in server.asked[0].headers.values() if "secret" in value]


def test_an_interruption_tells_how_a_judge_goes_on(
    tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "llm.judge", *arguments(make_run(tmp_path), server)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )

    def behave(asked: Asked) -> Answer:
        if len(server.asked) == 2:
            child.send_signal(signal.SIGINT)
            time.sleep(0.5)
        return prefers_good(asked)

    server.behave = behave
    error = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert error.splitlines()[-1] == f"Interrupted. {judge_server.KEPT}"
    assert "Traceback" not in error
    assert len(stored(tmp_path)) == 1


# The estimate, and mistakes


def test_a_dry_run_tells_the_cost_asks_nothing_and_writes_nothing(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, many(3))
    options = ("--dry-run", "--price-in", "1000", "--price-out", "2000", "--limit", "2")
    assert entry_point(judge.main, arguments(tmp_path, server, *options)) == 0
    out = capsys.readouterr().out
    assert not server.asked
    assert not (tmp_path / "judge").exists()
    run_judge(tmp_path, server, "--limit", "2")
    tokens = sum(map(len, server.messages())) // 4
    assert "asks     4 of 4 questions" in out
    assert f"about {tokens:,} in (4 characters a token), at most 4,096 out" in out
    assert f"at most about {(tokens * 1000 + 4096 * 2000) / 1e6:,.2f}" in out
    assert entry_point(judge.main, arguments(tmp_path, server, "--dry-run")) == 0
    assert "asks     2 of 6 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-tokens", "1023"], "--max-tokens 1023: must be 1024 or more"),
        (["--concurrency", "0"], "--concurrency 0: must be 1 or more"),
        (["--retries", "-1"], "--retries -1: must be 0 or more"),
        (["--timeout", "0"], "--timeout 0.0: must be 0.001 or more"),
        (["--timeout", "nan"], "--timeout nan: must be"),
        (["--limit", "-1"], "--limit -1: must be 0 or more"),
        (["--price-in", "inf"], "--price-in inf: must be"),
        (["--judge-model", " "], "--judge-model: is empty"),
        (["--prompt", "dialog"], "--prompt dialog: not readable"),
        (["--against", "nowhere"], "nowhere: no run there"),
    ],
)
def test_a_mistake_is_one_clear_paragraph(
    options: list[str], expected: str, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in run_badly(make_run(tmp_path), server, capsys, *options)
    assert not server.asked
    assert not (tmp_path / "judge").exists()


def test_a_plain_run_must_name_its_prompt(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, run_format="plain")
    assert "--prompt: there is none for --format plain" in run_badly(tmp_path, server, capsys)
    run_judge(tmp_path, server, "--prompt", "dialogue")


@pytest.mark.parametrize(
    "text", ["{{Conversation}} {{AssistantA}}", "{{Conversation}} {{AssistantA}} {{AssistantB}} {{AssistantB}}", ""]
)
def test_a_prompt_without_a_place_for_each_text_is_refused(
    text: str, tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text(text)
    message = run_badly(make_run(tmp_path), server, capsys, "--prompt", str(tmp_path / "mine.txt"))
    assert "must hold each of {{AssistantA}}, {{AssistantB}}, {{Conversation}} once" in message


def test_a_run_that_is_not_finished_is_refused(
    tmp_path: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run there" in run_badly(tmp_path / "nothing", server, capsys)
    write_text(tmp_path / "config.yaml", "format: tldr\n")
    assert "after.parquet: not written yet" in run_badly(tmp_path, server, capsys)


# A real server

WORDS = ("<pad>", "<s>", "</s>", "<other>", "ramble:", "A-is-better:", "B-is-better:", "ramble", "[[A]]", "[[B]]")
NEXT = {"ramble:": "ramble", "ramble": "ramble", "A-is-better:": "[[A]]", "B-is-better:": "[[B]]"}
TEMPLATE = """{% set text = messages[0].content %}{{ text }}
{% if 'zebra' in text %}ramble:
{% elif text.find('good') < text.find('bad') %}B-is-better:
{% else %}A-is-better:{% endif %}
"""


def save_judge(folder: Path) -> Path:
    """A Llama that says what its last word leads to; the template leads it to the text that is good."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<other>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=4096, **sizes, **ids))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 16))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for i, word in enumerate(WORDS):
            model.lm_head.weight[WORDS.index(NEXT.get(word, "</s>")), i] = 1.0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_judge_behind_transformers_serve_judges_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    model = save_judge(tmp_path / "judge-model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", place.rpartition(":")[2]]
    run = make_run(tmp_path / "run", [*THREE[:2], ("How is a zebra?", "good", "bad")])
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_healthy(f"{place}/health", process, tmp_path / "log")
        options = ["--base-url", f"{place}/v1", "--judge-model", str(model)]
        assert entry_point(judge.main, [str(run), *options]) == 0
    finally:
        process.terminate()
        process.wait(30)
    (path,) = (run / "judge").glob("*.json")
    result = json.loads(path.read_text())
    assert result["outcomes"] == {"test-0": "win", "test-1": "loss", "test-2": "cut"}
    assert result["order_agreement"]["estimate"] == 1
    assert result["verdicts"]["cut"] == 2
    assert sorted(reply["reply_tokens"] for reply in stored(run))[-2:] == [1024, 1024]

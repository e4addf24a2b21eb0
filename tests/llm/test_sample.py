"""`python -m llm.sample`: the prior's and the policy's completions of one prompt."""

from __future__ import annotations

import json
import re
import shutil
from itertools import chain
from pathlib import Path

import pytest

from letter_world import letter_config, letter_tokenizer, moved
from llm import sample
from llm.checkpoint import load_best_adapter, save_adapter
from llm.config import dump_config
from llm.console import entry_point
from llm.logprob import sequence_log_probs
from llm.models import Policy, load_policy
from llm.prompts import encode_prompt
from llm.records import Completion, EvalRecord, Prompt
from llm.rewards import configured_reward
from llm.rollout import sample_groups
from llm.store import ShardFolder, write_json, write_text

CHAT = [{"role": "user", "content": "hi"}]
CHAT_REWARD = """
def messages(prompts, completions):
    return [float(len(prompt[0]["content"])) for prompt in prompts]
"""


def make_run(folder: Path, text: str | list[dict[str, str]] = "hello", **changes: object) -> Path:
    """A run's folder with an adapter, as far as the command reads it; its held-out prompt has the tokens of `ab`."""
    config = letter_config(folder, **changes)
    policy = moved(load_policy(config))
    write_text(folder / "config.yaml", dump_config(config))
    reward = configured_reward(config).fingerprint()
    write_json(folder / "identity.json", {"model": policy.identity, "reward": reward})
    save_adapter(folder, policy, "card")
    ids = tuple(letter_tokenizer()("ab")["input_ids"]) if isinstance(text, str) else chat_ids(policy, text)
    completion = Completion("test-1", 0, (5, 2), "stop", "c")
    record = EvalRecord(Prompt("test-1", text, ids, None), completion, "ra", 0.0, 0.0, None, None, -1.0, -1.0)
    ShardFolder(folder / "eval").write("before", [record.as_row()])
    return folder


def chat_ids(policy: Policy, messages: list[dict[str, str]]) -> tuple[int, ...]:
    return encode_prompt(policy.tokenizer, messages, source="test")


def lines(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert entry_point(sample.main, [str(folder), *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


Cell = tuple[float | None, float, str]


def cells(shown: list[str]) -> tuple[list[Cell], list[Cell]]:
    """The prior's and the policy's completions: (reward, log-ratio, text); each text fits one line."""
    sides: tuple[list[Cell], list[Cell]] = [], []
    body = shown[shown.index(next(line for line in shown if line.startswith("prior "))) + 1 :]
    for notes, texts in zip(body[::3], body[1::3], strict=True):
        for side, note, text in zip(sides, notes.split(" | "), f"{texts:<102}".split(" | "), strict=True):
            found = re.fullmatch(r"(?:reward (\S+), )?log q - log p ([+-]\S+) nats *", note)
            assert found
            side.append((float(found[1]) if found[1] else None, float(found[2]), text.rstrip()))
    return sides


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 120 characters."""
    monkeypatch.setenv("COLUMNS", "120")


def test_each_completion_has_its_reward_and_its_log_ratio_in_nats(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    policy = load_policy(letter_config(folder))
    load_best_adapter(folder, policy)
    prompt = Prompt("asked", "ab", tuple(letter_tokenizer()("ab")["input_ids"]), None)
    draw = {"draw": (0, "sample", 0), "max_new_tokens": 6}
    with policy.as_prior():
        ours = sample_groups(policy, [prompt], 5, **draw)[0]
    theirs = sample_groups(policy, [prompt], 5, **draw)[0]
    shown = cells(lines(folder, capsys, "--prompt", "ab", "--count", "5"))
    for completions, side in zip((ours, theirs), shown, strict=True):
        pairs = [(prompt, completion) for completion in completions]
        log_policy = sequence_log_probs(policy, pairs)
        with policy.as_prior():
            log_prior = sequence_log_probs(policy, pairs)
        assert [text for *_, text in side] == [completion.text.rstrip() for completion in completions]
        assert [reward for reward, *_ in side] == [completion.text.count("a") for completion in completions]
        assert [ratio for _, ratio, _ in side] == pytest.approx((log_policy - log_prior).tolist(), abs=0.0051)
    assert ours != theirs
    assert len({ratio for side in shown for _, ratio, _ in side}) > 5


def test_without_the_reward_it_is_neither_loaded_nor_shown(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    with_reward = cells(lines(folder, capsys))
    monkeypatch.setattr(sample, "configured_reward", None)
    without = cells(lines(folder, capsys, "--no-reward"))
    assert {reward for side in without for reward, *_ in side} == {None}
    assert [cell[1:] for side in without for cell in side] == [cell[1:] for side in with_reward for cell in side]


def test_a_reward_that_changed_since_the_run_is_refused(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    identity = json.loads((folder / "identity.json").read_text())
    write_json(folder / "identity.json", identity | {"reward": "another"})
    assert entry_point(sample.main, [str(folder)]) == 2
    assert "count_a changed since the run" in capsys.readouterr().err


def test_a_reward_over_the_reference_is_shown_so_where_the_prompt_has_one(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", reward_baseline="reference")
    held_out, asked = (cells(lines(folder, capsys, *more)) for more in ([], ["--prompt", "ab"]))
    for one, other in zip(chain(*held_out), chain(*asked), strict=True):
        assert one[2] == other[2]
        assert one[0] == one[2].count("a") - 1  # the reference is "ra"
        assert other[0] == one[2].count("a")


def test_two_texts_stand_in_two_columns_within_the_width() -> None:
    left, right = "some words " * 9 + "x" * 50, "one\n\n  two \x1b[31m"
    shown = sample.side_by_side(left, right, 43).split("\n")
    assert max(map(len, shown)) <= 43
    assert "".join(line[:20] for line in shown).replace(" ", "") == left.replace(" ", "")
    assert {line[20:22] for line in shown} == {" |"}
    assert [line[23:] for line in shown][:4] == ["one", "", "  two \\x1b[31m", ""]


def test_a_narrow_terminal_still_shows_all() -> None:
    shown = sample.side_by_side("abc", "de", 1).split("\n")
    assert [line.replace(" ", "") for line in shown] == ["a|d", "b|e", "c|"]


def test_without_a_prompt_the_first_held_out_one_is_used_with_its_own_tokens(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    shown = lines(folder, capsys)
    assert shown[0] == "hello"
    assert shown[1:] == lines(folder, capsys, "--prompt", "ab")[1:]


def test_the_same_seed_shows_the_same_and_another_does_not(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    assert lines(folder, capsys) == lines(folder, capsys)
    assert lines(folder, capsys) != lines(folder, capsys, "--seed", "1")


def test_the_prompt_of_a_chat_run_goes_through_the_template(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("model", tmp_path / "chat")
    rows = [json.dumps({"prompt": CHAT, "reference": "b"}) + "\n" for _ in range(60)]
    (tmp_path / "chat.jsonl").write_text("".join(rows))
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}u {{ m.content }} a{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    (tmp_path / "chat_reward.py").write_text(CHAT_REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"prompts": str(tmp_path / "chat.jsonl"), "reward": "chat_reward:messages"}
    chat = make_run(tmp_path / "chat-run", CHAT, model=str(tmp_path / "chat"), **own)
    plain = make_run(tmp_path / "plain-run", model=str(tmp_path / "chat"))
    asked, as_text = (cells(lines(chat, capsys, "--prompt", "xyz")), cells(lines(plain, capsys, "--prompt", "u xyz a")))
    assert [cell[1:] for cell in chain(*asked)] == [cell[1:] for cell in chain(*as_text)]
    assert {reward for reward, *_ in chain(*asked)} == {3.0}  # the reward saw the messages
    held_out = lines(chat, capsys)
    assert held_out[0] == "user: hi"
    assert {reward for reward, *_ in chain(*cells(held_out))} == {2.0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count", "0"], "--count 0: must be 1 or more"),
        (["--prompt", "a" * 59], "--prompt: has 59 tokens and only 58 fit"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    arguments: list[str], expected: str, in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry_point(sample.main, [str(make_run(tmp_path / "run")), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_a_run_without_an_adapter_or_with_another_model_is_refused(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    identity = json.loads((folder / "identity.json").read_text())
    write_json(folder / "identity.json", identity | {"model": "another"})
    assert entry_point(sample.main, [str(folder)]) == 2
    assert "the model's files changed" in capsys.readouterr().err
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert entry_point(sample.main, [str(folder)]) == 2
    assert "has no adapter yet" in capsys.readouterr().err

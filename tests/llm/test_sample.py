"""`python -m llm.sample`: the prior's and the policy's completions of one prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from letter_world import letter_config, letter_tokenizer, moved
from llm import sample
from llm.checkpoint import save_adapter
from llm.config import dump_config
from llm.console import entry_point
from llm.models import load_policy
from llm.records import Completion, EvalRecord, Prompt
from llm.store import ShardFolder, write_json, write_text

CHAT = [{"role": "user", "content": "hi"}]


def make_run(folder: Path, text: str | list[dict[str, str]] = "hello", *, model: str = "model") -> Path:
    """A run's folder with an adapter, as far as the command reads it; its held-out prompt has the tokens of `ab`."""
    config = letter_config(folder, model=model)
    policy = moved(load_policy(config))
    write_text(folder / "config.yaml", dump_config(config))
    write_json(folder / "identity.json", {"model": policy.identity})
    save_adapter(folder, policy, "card")
    prompt = Prompt("test-1", text, tuple(letter_tokenizer()("ab")["input_ids"]), None)
    completion = Completion("test-1", 0, (5, 2), "stop", "c")
    record = EvalRecord(prompt, completion, "r", 0.0, 0.0, None, None, -1.0, -1.0)
    ShardFolder(folder / "eval").write("before", [record.as_row()])
    return folder


def lines(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert entry_point(sample.main, [str(folder), *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


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
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", tmp_path / "chat")
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}u {{ m.content }} a{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    chat = make_run(tmp_path / "chat-run", CHAT, model=str(tmp_path / "chat"))
    plain = make_run(tmp_path / "plain-run", model=str(tmp_path / "chat"))
    assert lines(chat, capsys, "--prompt", "xyz")[1:] == lines(plain, capsys, "--prompt", "u xyz a")[1:]
    assert lines(chat, capsys)[0] == "user: hi"


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
    write_json(folder / "identity.json", {"model": "another"})
    assert entry_point(sample.main, [str(folder)]) == 2
    assert "the model's files changed" in capsys.readouterr().err
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert entry_point(sample.main, [str(folder)]) == 2
    assert "has no adapter yet" in capsys.readouterr().err

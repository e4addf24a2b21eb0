"""How an evaluation is made: what is sampled, rewarded, scored and graded, and the command that makes it again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brain_core
from eval_records import record
from letter_world import letter_config
from llm import evaluate as command
from llm.align import run
from llm.console import entry_point
from llm.errors import UserError
from llm.evaluate import evaluate, judged, make_references, sample_one_each
from llm.figures import figures, head_to_head
from llm.logprob import score
from llm.models import Policy
from llm.records import EvalRecord, Prompt
from llm.run_folder import lock_run
from llm.store import ShardFolder, read_json, write_json


def test_the_judge_sees_prompts_completions_and_references_in_order() -> None:
    calls: list[tuple[list[Any], list[str]]] = []

    def judge(prompts: list[Any], texts: list[str]) -> list[float]:
        calls.append((list(prompts), list(texts)))
        prompts.clear()  # a judge that spoils its lists does no harm
        return [float(len(calls) * 10 + i) for i in range(len(texts))]

    chat = [{"role": "user", "content": "hi"}]
    graded = judged([record(0.0, name="a"), record(0.0, name="b", text=chat)], judge, "j")
    assert calls == [
        (["prompt", chat], ["completion of a", "completion of b"]),
        (["prompt", chat], ["reference of a", "reference of b"]),
    ]
    assert [(r.grade, r.reference_grade) for r in graded] == [(10.0, 20.0), (11.0, 21.0)]


def raising(prompts: list[Any], texts: list[str]) -> list[float]:
    raise KeyError("no such post")


BAD_JUDGES: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (raising, r"raised KeyError: 'no such post'"),
    "too few": (lambda p, t: [1.0], r"one grade for each of 2 completions; it returned an array of shape \(1,\)"),
    "too many": (lambda p, t: [1.0] * 3, r"shape \(3,\)"),
    "a number": (lambda p, t: 1.0, r"shape \(\)"),
    "nothing": (lambda p, t: None, r"shape \(\)"),
    "a table": (lambda p, t: [[1.0], [2.0]], r"shape \(2, 1\)"),
    "not a number": (lambda p, t: [1.0, float("nan")], r"1 of 2 are not, the first for completion 1: nan"),
    "infinite": (lambda p, t: [float("-inf"), 1.0], r"1 of 2 are not, the first for completion 0: -inf"),
    "a missing grade": (lambda p, t: [None, 1.0], r"1 of 2 are not, the first for completion 0: nan"),
    "words": (lambda p, t: ["good", "bad"], r"raised ValueError"),
    "ragged": (lambda p, t: [[1.0], [1.0, 2.0]], r"raised ValueError"),
}


@pytest.mark.parametrize("fault", BAD_JUDGES)
def test_a_judge_that_misbehaves_is_named_with_what_to_do(fault: str) -> None:
    judge, expected = BAD_JUDGES[fault]
    with pytest.raises(UserError, match=rf"--judge my:judge: .*{expected}.*--resume"):
        judged([record(0.0), record(1.0)], judge, "my:judge")


def test_a_record_is_read_back_from_its_row() -> None:
    for one in (record(1.5, grade=2.0, reference_grade=1.0), record(-1.0, text=[{"role": "user", "content": "hi"}])):
        assert EvalRecord.from_row(one.as_row(), one.prompt) == one


def test_a_row_tells_chat_from_text() -> None:
    chat = record(0.0, text=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]).as_row()
    assert (chat["is_chat"], chat["prompt"]) == (True, "user: hi\nassistant: yo")
    assert (record(0.0).as_row()["is_chat"], record(0.0).as_row()["prompt_token_ids"]) == (False, [4, 5])


def letters(count: int) -> list[Prompt]:
    return [Prompt(f"test-{i}", "ab", (3 + i, 4), "a") for i in range(count)]


def test_draws_are_those_of_the_stage_whatever_is_sampled_together(policy: Policy) -> None:
    config = letter_config()
    together = sample_one_each(policy, letters(5), config, "test")
    assert sample_one_each(policy, letters(5), dataclasses.replace(config, sample_rows=2), "test") == together
    assert sample_one_each(policy, letters(5), config, "validation") != together
    assert [c.prompt_id for c in together] == [p.prompt_id for p in letters(5)]
    assert sample_one_each(policy, [], config, "test") == []


def test_an_evaluation_heeds_stop_strings(policy: Policy) -> None:
    free = sample_one_each(policy, letters(20), letter_config(), "test")
    stopped = sample_one_each(policy, letters(20), letter_config(stop=("e", "o")), "test")
    assert any({"e", "o"} & set(c.text) for c in free)
    for one, other in zip(free, stopped, strict=True):
        assert not {"e", "o"} & set(other.text)
        assert one.text.startswith(other.text)
        assert (other == one) == (not {"e", "o"} & set(one.text))


def test_an_evaluation_holds_what_was_sampled_rewarded_and_scored(policy: Policy) -> None:
    config, prompts = letter_config(), letters(5)
    seen: list[tuple[list[Any], list[str]]] = []

    def reward(texts: list[Any], completions: list[str]) -> Any:
        seen.append((texts, completions))
        return np.arange(len(completions)) * 0.5

    records = evaluate(policy, prompts, reward, {p.prompt_id: 1.0 for p in prompts}, config, "test")
    completions = sample_one_each(policy, prompts, config, "test")
    assert [r.completion for r in records] == completions
    assert seen == [(["ab"] * 5, [c.text for c in completions])]
    assert [(r.reward, r.reference_reward, r.reference) for r in records] == [(i * 0.5, 1.0, "a") for i in range(5)]
    pairs = list(zip(prompts, completions, strict=True))
    assert [r.log_policy for r in records] == pytest.approx(score(policy, pairs, 1), abs=1e-5)
    with policy.as_prior():
        assert [r.log_prior for r in records] == pytest.approx(score(policy, pairs, 1), abs=1e-5)
    assert all(r.log_policy != r.log_prior for r in records)
    assert all(r.grade is None for r in records)


def test_several_completions_of_a_prompt_stand_together_and_begin_with_the_one_that_is_drawn_alone(
    policy: Policy,
) -> None:
    config, prompts = letter_config(), letters(5)
    rewards = {p.prompt_id: 1.0 for p in prompts}

    def reward(texts: list[Any], completions: list[str]) -> Any:
        return np.array([float(text.count("a")) for text in completions])

    one = evaluate(policy, prompts, reward, rewards, config, "test")
    three = evaluate(policy, prompts, reward, rewards, config, "test", 3)
    assert [(r.prompt, r.completion.sample_id) for r in three] == [(p, i) for p in prompts for i in range(3)]
    assert [r.completion for r in three[::3]] == [r.completion for r in one]
    assert [r.log_policy for r in three[::3]] == pytest.approx([r.log_policy for r in one], abs=1e-5)
    small = dataclasses.replace(config, sample_rows=2)
    assert [r.completion for r in evaluate(policy, prompts, reward, rewards, small, "test", 3)] == [
        r.completion for r in three
    ]


def test_a_reference_is_the_datas_or_else_the_priors_own(policy: Policy) -> None:
    prompts = [dataclasses.replace(p, reference=None if i % 2 else "aab") for i, p in enumerate(letters(6))]

    def reward(texts: list[Any], completions: list[str]) -> Any:
        return np.array([float(len(text)) for text in completions])

    rows = make_references(letter_config(), policy, reward, prompts)
    with policy.as_prior():
        own = sample_one_each(policy, prompts, letter_config(), "reference")
    assert [r["reference"] for r in rows] == [own[i].text if i % 2 else "aab" for i in range(6)]
    assert [r["reward"] for r in rows] == [len(r["reference"]) for r in rows]
    assert [r["prompt_id"] for r in rows] == [p.prompt_id for p in prompts]


def flat(values: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Figures as one dictionary, which can be compared approximately; NaN where there is none."""
    return {
        (name, key): math.nan if value is None or value[key] is None else value[key]
        for name, value in values.items()
        for key in ("estimate", "low", "high", "n")
    }


@pytest.fixture(scope="module")
def finished(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a judge; never written to."""
    folder, here = tmp_path_factory.mktemp("evaluated") / "run", Path.cwd()
    os.chdir(letters)
    try:
        summary = run(letter_config(folder, judge="letter_rewards:grade"))
    finally:
        os.chdir(here)
    assert summary["best"]["step"] not in (0, 8)  # the best, the prior and the last are three policies
    return folder


@pytest.fixture
def folder(finished: Path, in_letters: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def stored(folder: Path, name: str) -> list[dict[str, Any]]:
    return ShardFolder(folder / "eval").read(name)


def measure(*arguments: str | Path) -> None:
    assert entry_point(command.main, [str(argument) for argument in arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert entry_point(command.main, [str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_one_completion_of_the_best_adapter_is_the_runs_own_evaluation_after(folder: Path) -> None:
    measure(folder, "--completions", "1")
    (own, judge_file) = (stored(folder, "after"), next((folder / "eval").glob("judged-*.parquet")).stem)
    again = stored(folder, "best-x1")
    grades = [(r["grade"], r["reference_grade"]) for r in stored(folder, judge_file)[len(own) :]]
    for row, expected, grade in zip(again, own, grades, strict=True):
        same = ("prompt_id", "completion", "token_ids", "reward", "reference", "reference_reward", "prompt", "is_chat")
        assert {name: row[name] for name in same} == {name: expected[name] for name in same}
        assert (row["log_policy"], row["log_prior"]) == pytest.approx((expected["log_policy"], expected["log_prior"]))
        assert (row["grade"], row["reference_grade"]) == grade
    after = read_json(folder / "summary.json")["after"]
    result = read_json(folder / "eval" / "best-x1.json")["figures"]
    assert result["mean_reward"] == after["mean_reward"]
    assert result["judge_win_rate"] == after["judge_win_rate"]
    assert "snkl" not in result


def test_the_figures_are_those_of_the_stored_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(folder, "--completions", "3")
    again = command.evaluate_run(folder, command.EvaluateCommand(str(folder), completions=3, name="best-x3"))
    rows, result = stored(folder, "best-x3"), read_json(folder / "eval" / "best-x3.json")
    assert [r.completion.sample_id for r in again] == [r["sample_id"] for r in rows]
    assert [(r["prompt_id"], r["sample_id"]) for r in rows[:4]] == [(rows[0]["prompt_id"], i) for i in range(3)] + [
        (rows[3]["prompt_id"], 0)
    ]
    records = [EvalRecord.from_row(r, Prompt(r["prompt_id"], r["prompt"], (), None)) for r in rows]
    expected = figures(records)
    assert flat({name: result["figures"][name] for name in expected}) == pytest.approx(flat(expected), nan_ok=True)
    columns = (torch.tensor([r[name] for r in rows]).view(10, 3) for name in ("log_prior", "log_policy", "reward"))
    log_prior, log_policy, reward = columns
    goodness = brain_core.bradley_terry_log_goodness(reward, temperature=0.2)
    target = brain_core.target_log_ratio(log_prior, log_policy, goodness)
    snkl = brain_core.self_normalized_kl(target, torch.zeros_like(target)).mean()
    assert result["figures"]["snkl"]["estimate"] == pytest.approx(float(snkl))
    assert (result["counts"], result["prompts"]) == ({"prompts": 10, "completions": 30}, None)
    assert result["step"] == read_json(folder / "summary.json")["best"]["step"]
    printed = capsys.readouterr().out
    assert "best, 10 prompts × 3" in printed
    assert f"mean reward{'':<31}{result['figures']['mean_reward']['estimate']:.3f} [" in printed


def test_an_interrupted_evaluation_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHARD_PROMPTS", 3)
    calls: list[int] = []

    def counted(policy: Policy, prompts: list[Prompt], *rest: Any) -> list[EvalRecord]:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(policy, prompts, *rest)

    monkeypatch.setattr(command, "evaluate", counted)
    assert entry_point(command.main, [str(folder), "--completions", "2"]) == 130
    assert "best-x2" not in ShardFolder(folder / "eval")
    measure(folder, "--completions", "2")
    assert calls == [3, 3, 3, 3, 1]
    assert not (folder / "eval" / "best-x2").exists()


def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(folder, "--completions", "2", "--name", "whole")
    monkeypatch.setattr(command, "SHARD_PROMPTS", 3)
    measure(folder, "--completions", "2", "--name", "parts", "--sample-rows", "4")
    one, other = (read_json(folder / "eval" / f"{name}.json") for name in ("whole", "parts"))
    assert one["identity"] == other["identity"]
    assert flat(one["figures"]) == pytest.approx(flat(other["figures"]), rel=1e-4, abs=1e-4, nan_ok=True)


def test_an_evaluation_that_is_there_is_read_and_nothing_is_sampled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(folder, "--completions", "2")
    first = capsys.readouterr().out
    monkeypatch.setattr(command, "evaluate", None)
    measure(folder, "--completions", "2")
    assert capsys.readouterr().out == first


def test_what_the_run_itself_wrote_stays_as_it_is(folder: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {
            p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("manifest.json", ".lock")
        }

    before, listed = contents(), read_json(folder / "eval" / "manifest.json")
    measure(folder, "--completions", "2", "--checkpoint", "prior")
    after = contents()
    assert {path: after[path] for path in before} == before
    assert {p.name for p in after.keys() - before.keys()} == {"prior-x2.parquet", "prior-x2.json"}
    assert listed.items() <= read_json(folder / "eval" / "manifest.json").items()


@pytest.mark.parametrize(
    "name",
    [
        "before",
        "After",
        "references",
        "judged-x",
        "manifest",
        "manifest-x",
        "x-against-y",
        "../x",
        ".x",
        "a b",
        "x/y",
        "é",
    ],
)
def test_a_name_of_another_file_there_or_no_file_name_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"--name {name}: must be letters" in refused(capsys, folder, "--name", name)


def test_another_evaluation_under_the_same_name_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(folder, "--name", "mine", "--completions", "2")
    message = refused(capsys, folder, "--name", "mine", "--completions", "2", "--checkpoint", "step-000008")
    assert "mine.parquet: holds another evaluation" in message
    assert "--name of its own" in message


def test_the_prior_is_at_a_kl_of_zero_and_a_checkpoint_is_the_policy_of_its_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(folder, "--checkpoint", "prior", "--completions", "2")
    prior = read_json(folder / "eval" / "prior-x2.json")
    assert (prior["figures"]["kl_to_prior"]["high"] < 1e-5, prior["step"]) == (True, 0)
    measure(folder, "--checkpoint", "step-000008", "--completions", "2")
    assert read_json(folder / "eval" / "step-000008-x2.json")["step"] == 8
    assert any(abs(row["log_policy"] - row["log_prior"]) > 1e-3 for row in stored(folder, "step-000008-x2"))
    assert "has best, prior, step-00000" in refused(capsys, folder, "--checkpoint", "step-000001")


def test_other_prompts_are_evaluated_with_their_references_or_the_priors_own(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "reference": "aaa"}, {"prompt": "abc", "reference": None}, {"prompt": "z"}]
    (tmp_path / "my own-against-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measure(folder, "--prompts", tmp_path / "my own-against-prompts.jsonl", "--completions", "2")
    made = {r["prompt"]: r for r in stored(folder, "best-x2-my-own-prompts")}
    assert made.keys() == {"hello", "abc", "z"}
    assert (made["hello"]["reference"], made["hello"]["reference_reward"]) == ("aaa", 3)
    assert {r["prompt_id"] for r in made.values()} == {"asked-1", "asked-2", "asked-3"}
    assert read_json(folder / "eval" / "best-x2-my-own-prompts.json")["prompts"].endswith(
        "my own-against-prompts.jsonl"
    )


def test_two_runs_are_compared_head_to_head_on_the_same_prompts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other, symlinks=True)
    shutil.copy(other / "checkpoints/step-000008/adapter.safetensors", other / "adapter/adapter_model.safetensors")
    measure(folder, "--against", other, "--completions", "2")
    sides = []
    for one in (folder, other):
        rows = stored(one, "best-x2")
        sides.append(command._as_records(rows, [Prompt(r["prompt_id"], r["prompt"], (), None) for r in rows]))
    (path,) = (folder / "eval").glob("best-x2-against-other-*.json")
    result = read_json(path)
    ours, theirs = (read_json(one / "eval" / "best-x2.json") for one in (folder, other))
    assert (result["identities"], result["checkpoints"]) == ([ours["identity"], theirs["identity"]], ["best", "best"])
    assert (result["completions"], result["judges"][0]) == (2, result["judges"][1])
    assert flat(result["figures"]) == pytest.approx(flat(head_to_head(*sides)), nan_ok=True)
    assert abs(result["figures"]["kl_to_prior"]["estimate"]) > 0.01
    said = capsys.readouterr()
    assert "reward model loss rate" in said.out
    assert "judge loss rate" in said.out
    assert "share their draws" not in said.err
    measure(folder, "--against", other, "--completions", "1", "--name", "single")
    assert "the single completions share their draws" in capsys.readouterr().err
    shards = ShardFolder(other / "eval")
    shards.write("before", shards.read("before")[::-1])
    assert "has other held-out prompts" in refused(capsys, folder, "--against", other)
    write_json(other / "identity.json", read_json(other / "identity.json") | {"reward": "another"})
    assert "has another reward" in refused(capsys, folder, "--against", other)


def test_grades_of_different_judges_are_not_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other", symlinks=True))
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("letter_rewards:grade", "letter_rewards:count_a"))
    measure(folder, "--against", other, "--completions", "2")
    said = capsys.readouterr()
    assert "do not have the same judge" in said.err
    (path,) = (folder / "eval").glob("best-x2-against-other-*.json")
    result = read_json(path)
    assert len(set(result["judges"])) == 2
    assert {name for name, value in result["figures"].items() if value is None} >= {
        f"judge_{name}_rate" for name in ("win", "tie", "loss", "length_controlled_win")
    }
    assert result["figures"]["reward_model_win_rate"] is not None
    assert "judge" not in said.out.split("against")[-1]


def test_another_opponent_of_the_same_name_is_another_comparison(folder: Path, tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(folder, tmp_path / place / "other", symlinks=True)) for place in ("one", "two"))
    shutil.copy(two / "checkpoints/step-000008/adapter.safetensors", two / "adapter/adapter_model.safetensors")
    for other in (one, two, one):
        measure(folder, "--against", other, "--completions", "2")
    assert len(list((folder / "eval").glob("best-x2-against-other-*.json"))) == 2


def test_what_cannot_be_evaluated_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--completions 0: must be 1 or more" in refused(capsys, folder, "--completions", "0")
    assert "--sample-rows -1: must be 0 or more" in refused(capsys, folder, "--sample-rows", "-1")
    assert "no run there" in refused(capsys, tmp_path)
    assert "no-such.jsonl" in refused(capsys, folder, "--prompts", "no-such.jsonl")
    lock = lock_run(folder)
    assert "another process is working on this run" in refused(capsys, folder)
    lock.release()
    identity = read_json(folder / "identity.json")
    write_json(folder / "identity.json", identity | {"reward": "another"})
    assert "the reward letter_rewards:count_a changed" in refused(capsys, folder)
    write_json(folder / "identity.json", identity | {"model": "another"})
    assert "the model's files changed" in refused(capsys, folder)
    write_json(folder / "identity.json", identity)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert "has no adapter yet" in refused(capsys, folder)


def test_held_out_prompts_that_changed_since_the_run_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shuffled = Path("prompts.jsonl").read_text().splitlines()[::-1]
    (tmp_path / "prompts.jsonl").write_text("\n".join(shuffled) + "\n")
    settings = (
        (folder / "config.yaml").read_text().replace("prompts: prompts.jsonl", f"prompts: {tmp_path}/prompts.jsonl")
    )
    (folder / "config.yaml").write_text(settings)
    assert "the run's prompts changed" in refused(capsys, folder, "--completions", "1")


def test_a_figure_is_shown_in_its_unit_or_why_it_is_not() -> None:
    value = {"estimate": 0.25, "low": 0.125, "high": 0.5, "n": 4}
    assert command.shown("reward_model_win_rate", value) == "25.0% [12.5%, 50.0%]"
    assert command.shown("mean_reward", value) == "0.250 [0.125, 0.500]"
    assert command.shown("mean_reward", value | {"low": None, "high": None}) == "0.250 [one prompt, no interval]"
    assert command.shown("mean_reward", value | {"low": -1e-9}) == "0.250 [0.000, 0.500]"
    assert command.shown("reward_model_length_controlled_win_rate", None) == "not identified"

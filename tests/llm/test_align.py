"""Whole runs: Algorithm 1 from prompts to report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from child_runs import KillAt, comparable, elsewhere, run_apart
from letter_world import letter_config
from llm.align import _self_consistency, main, run
from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig
from llm.console import entry_point
from llm.errors import UserError
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.records import Completion, Prompt, ScoredGroup
from llm.rollout import sample_groups
from llm.run_folder import lock_run
from llm.sample import main as sample_main
from llm.store import ShardFolder, read_events, read_json
from llm.tables import read_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the world of letters."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_apart(letter_config(folder), letters) == 0
    return folder


def test_a_run_raises_the_mean_reward_and_reports_it(in_letters: Path, tmp_path: Path) -> None:
    config = letter_config(
        tmp_path / "run", e=3, k=30, m=24, n=16, test_count=24, temperature=0.2, judge="letter_rewards:grade"
    )
    summary = run(config)
    change = summary["change"]["mean_reward"]
    assert change["low"] > 0
    assert summary["after"]["kl_to_prior"]["estimate"] > 0.1
    assert summary["before"]["kl_to_prior"]["estimate"] == 0
    assert summary["after"]["judge_win_rate"]["n"] == 24
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("report.html", "report.md", "figures/curves.png", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_each_group_keeps_the_log_probs_of_its_own_proposal(in_letters: Path, tmp_path: Path) -> None:
    config = letter_config(tmp_path / "run", k=12)
    run(config)
    (scores,) = (tmp_path / "run" / "scores").iterdir()
    gaps = []
    for phase in range(2):
        rows = ShardFolder(scores / f"phase-{phase:04d}").read("block-00000")
        gaps.append(max(abs(row["log_proposal"] - row["log_prior"]) for row in rows))
    assert gaps[0] < 1e-5  # the sampler's log q' beside the scorer's log p
    assert gaps[1] > 1e-3


def test_stored_scores_are_those_of_a_plain_forward_pass(finished: Path, in_letters: Path) -> None:
    rollouts = ShardFolder(finished / "rollouts" / "phase-0000").read("block-00000")
    (scores,) = (finished / "scores").iterdir()
    policy = load_policy(letter_config())
    prompts = {f"train-{number}": row for number, row in read_rows("prompts.jsonl")}
    for rollout, stored in zip(rollouts, ShardFolder(scores / "phase-0000").read("block-00000"), strict=True):
        prompt_ids = policy.tokenizer(prompts[rollout["prompt_id"]]["prompt"])["input_ids"]
        ids = torch.tensor([prompt_ids + rollout["token_ids"]])
        with policy.as_prior(), torch.no_grad():
            log_probs = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1].double(), -1)
        expected = log_probs.gather(-1, ids[0, 1:, None])[len(prompt_ids) - 1 :].sum()
        assert stored["log_prior"] == pytest.approx(float(expected), abs=2e-5)
        assert stored["reward"] == rollout["text"].count("a")


def test_the_same_settings_give_the_same_run_bit_for_bit(finished: Path, letters: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert run_apart(letter_config(again), letters) == 0
    assert comparable(again) == comparable(finished)


def test_another_seed_gives_another_run(finished: Path, letters: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run_apart(letter_config(other, seed=1), letters) == 0
    assert comparable(other)["adapter"] != comparable(finished)["adapter"]


STAGES = {
    "making the run folder": KillAt("llm.run_folder", "write_text", 1),
    "sampling": KillAt("llm.groups", "sample_groups", 3),
    "scoring": KillAt("llm.groups", "score", 3),
    "the first update": KillAt("llm.align", "train_step", 1),
    "a later update": KillAt("llm.align", "train_step", 6),
    "writing a checkpoint": KillAt("llm.checkpoint", "write_json", 3),
    "pointing at a checkpoint": KillAt("llm.checkpoint", "_point", 2),
    "writing the best adapter": KillAt("llm.checkpoint", "write_text", 2),
    "renaming a file": KillAt("os", "replace", 20),
    "the evaluation before": KillAt("llm.evaluate", "score", 1),
    "the evaluation after": KillAt("llm.align", "load_best_adapter", 1),
    "publishing the best adapter": KillAt("llm.align", "publish", 2),
    "pointing at the first checkpoint": KillAt("llm.checkpoint", "_point", 1),
    "the report": KillAt("llm.report", "draw_curves", 1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_a_stage_and_resumed_equals_an_uninterrupted_run(
    stage: str, finished: Path, letters: Path, tmp_path: Path
) -> None:
    config = elsewhere(letter_config(), tmp_path / "run")
    assert run_apart(config, letters, sabotage=STAGES[stage]) == -9
    assert run_apart(config, letters) == 0
    assert comparable(tmp_path / "run") == comparable(finished)


def test_a_run_killed_at_ten_random_moments_equals_an_uninterrupted_run(
    finished: Path, letters: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    assert run_apart(letter_config(tmp_path / "timed"), letters) == 0
    duration, draws = time.monotonic() - started, np.random.default_rng(0)
    killed = tries = 0
    while killed < 10:
        tries += 1
        assert tries < 40
        config = letter_config(tmp_path / f"run-{tries}")
        if run_apart(config, letters, kill_after=duration * draws.uniform(0.2, 1.0)) != -9:
            continue  # it ended before the moment came
        killed += 1
        assert run_apart(config, letters) == 0
        assert comparable(tmp_path / f"run-{tries}") == comparable(finished)


def test_a_finished_run_resumes_to_the_same_result(finished: Path, letters: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied, symlinks=True)
    assert run_apart(elsewhere(letter_config(), copied), letters) == 0
    assert comparable(copied) == comparable(finished)


def test_training_never_calls_the_judge(finished: Path, letters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "judged"
    assert run_apart(letter_config(folder, judge="letter_rewards:raises"), letters) == 2
    assert comparable(folder) == comparable(finished)
    assert not (folder / "summary.json").exists()


def test_the_adapter_reproduces_the_runs_own_log_probs_in_a_fresh_process(finished: Path, letters: Path) -> None:
    rows = ShardFolder(finished / "eval").read("after")
    script = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained("model")
for row in json.load(sys.stdin):
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = torch.tensor([prompt + row["token_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
    print(float(log_probs.gather(-1, ids[0, 1:, None])[len(prompt) - 1:].double().sum()))
"""
    command = [sys.executable, "-c", script, str(finished / "adapter")]
    done = subprocess.run(command, cwd=letters, input=json.dumps(rows), capture_output=True, text=True, check=True)
    recomputed = [float(line) for line in done.stdout.split()]
    assert recomputed == pytest.approx([row["log_policy"] for row in rows], abs=1e-5)
    assert max(abs(row["log_policy"] - row["log_prior"]) for row in rows) > 1e-3


def test_the_run_from_python_is_the_run_from_the_command_line(
    finished: Path, in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "config.yaml", tmp_path / "settings.yaml")
    out = tmp_path / "run"
    assert entry_point(main, ["--config", str(tmp_path / "settings.yaml"), "--out", str(out)]) == 0
    assert comparable(out) == comparable(finished)
    assert "over the reference, reward" in capsys.readouterr().out


def test_without_references_the_prior_writes_them_under_a_fixed_seed(in_letters: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    rows = [{"prompt": row["prompt"]} for _, row in read_rows("prompts.jsonl")]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(letter_config(tmp_path / "run", prompts=str(bare), e=1, k=1))
    assert summary["counts"]["references_from_prior"] == 18
    stored = ShardFolder(tmp_path / "run" / "eval").read("references")
    assert len({row["reference"] for row in stored}) > 1


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_event_of_a_run_is_logged(quantization: str, in_letters: Path, tmp_path: Path) -> None:
    run(letter_config(tmp_path / "run", quantization=quantization))
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds.count("step") == 8
    assert kinds.count("phase") == 2
    assert kinds.count("evaluation") == 2
    assert [e["step"] for e in events if e["event"] == "validation"] == [0, 3, 6, 8]
    assert all(event["grad_norm"] > 0 for event in events if event["event"] == "step")
    assert all(event["snkl"] >= 0 for event in events if event["event"] == "step")


def test_a_four_bit_run_trains_resumes_and_reloads(in_letters: Path, tmp_path: Path) -> None:
    config = letter_config(quantization="nf4", k=12, validate_every=4)
    whole, broken = elsewhere(config, tmp_path / "whole"), elsewhere(config, tmp_path / "broken")
    assert run_apart(whole, in_letters) == 0
    assert run_apart(broken, in_letters, sabotage=KillAt("llm.align", "train_step", 15)) == -9
    assert run_apart(broken, in_letters) == 0
    assert comparable(tmp_path / "broken") == comparable(tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["best"]["step"] > 0
    policy = load_policy(config)
    load_best_adapter(tmp_path / "whole", policy)
    row = ShardFolder(tmp_path / "whole" / "eval").read("after")[0]
    prompt = Prompt("p", row["prompt"], tuple(policy.tokenizer(row["prompt"])["input_ids"]), None)
    completion = Completion("p", 0, tuple(row["token_ids"]), "stop", "")
    assert score(policy, [(prompt, completion)], 1)[0] == pytest.approx(row["log_policy"], abs=1e-3)


# What a user can get wrong: one clear paragraph, exit status 2, nothing half-written.


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must end with status 2, and return what it said."""
    capsys.readouterr()
    assert entry_point(main, arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("error: ") :].strip()


def options(config: AlignConfig, **changes: object) -> list[str]:
    """The command line of some settings."""
    values = vars(config) | changes
    plain = {name: value for name, value in values.items() if not isinstance(value, (bool, tuple))}
    return [f"--{name.replace('_', '-')}={value}" for name, value in plain.items()]


WRONG = {
    "a missing prompts file": ({"prompts": "none.jsonl"}, r"none\.jsonl: no such file"),
    "a missing reward model": ({"reward": "nowhere"}, r"nowhere"),
    "a reward function that is not there": ({"reward": "letter_rewards:missing"}, r"--reward.*missing"),
    "too few rewards": ({"reward": "letter_rewards:too_few"}, r"letter_rewards:too_few returned 1 values"),
    "a NaN reward": ({"reward": "letter_rewards:not_a_number"}, r"letter_rewards:not_a_number.*nan"),
    "an infinite reward": ({"reward": "letter_rewards:infinite"}, r"letter_rewards:infinite.*inf"),
    "one completion a group": ({"n": 1}, r"--n 1"),
    "no room for a prompt": ({"max_new_tokens": 64}, r"--max-new-tokens 64"),
    "a prompt too long": ({"max_new_tokens": 61}, r"row 4: the prompt has 4 tokens and only 3 fit"),
    "too many prompts asked for": ({"m": 1000}, r"--m asks for 1000"),
    "a missing column": ({"prompt_column": "question"}, r"row 1: column 'question' is missing.*prompt"),
    "LoRA targets that match nothing": ({"lora_targets": "nonsense"}, r"--lora-targets nonsense"),
    "an unknown tracker": ({"tracker": "nonsense"}, r"--tracker nonsense"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_clear_paragraph(
    mistake: str, in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = WRONG[mistake]
    said = refused(options(letter_config(tmp_path / "run"), **changes), capsys)
    assert re.search(expected, said), said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_holds_another_run_is_refused_and_untouched(
    finished: Path, in_letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = comparable(finished)
    assert "holds another run" in refused(options(letter_config(finished)), capsys)
    assert comparable(finished) == before


def test_resuming_with_changed_settings_is_refused(
    finished: Path, in_letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["--resume", str(finished), "--learning-rate", "0.5"], capsys)
    assert "--learning-rate" in said


def test_a_resumed_run_may_save_memory(letters: Path, in_letters: Path, tmp_path: Path) -> None:
    """What a run that went out of memory needs: another size of passes, the same gradient."""
    config = letter_config(tmp_path / "run")
    whole = run(letter_config(tmp_path / "whole"))
    assert run_apart(config, letters, sabotage=KillAt("llm.align", "train_step", 5)) == -9
    assert main(["--resume", config.out, "--train-rows", "1", "--activation-checkpointing"]) is None
    found = read_json(tmp_path / "run" / "summary.json")
    for name in ("mean_reward", "kl_to_prior"):
        assert found["after"][name]["estimate"] == pytest.approx(whole["after"][name]["estimate"], rel=1e-3)


def test_resuming_after_the_model_changed_is_refused(
    finished: Path, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(letters, tmp_path / "world")
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    weights = tmp_path / "world" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x40")
    monkeypatch.chdir(tmp_path / "world")
    assert "model changed since the run began" in refused(["--resume", str(tmp_path / "run")], capsys)


def test_resuming_a_run_with_a_damaged_shard_is_refused(
    letters: Path, in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = letter_config(tmp_path / "run")
    assert run_apart(config, letters, sabotage=KillAt("llm.align", "train_step", 7)) == -9
    shard = tmp_path / "run" / "rollouts" / "phase-0000" / "block-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert "block-00000.parquet: damaged" in refused(["--resume", str(tmp_path / "run")], capsys)


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_after_it(
    finished: Path, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.fsync, iter(range(1000))

    def full(handle: int) -> None:
        if next(calls) >= 30:
            raise OSError(28, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"could not be written.*No space left.*--resume"):
            run(letter_config(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.partial"))
    run(letter_config(tmp_path / "run"), resume=True)
    assert comparable(tmp_path / "run") == comparable(finished)


def test_sample_shows_prior_and_policy_side_by_side(
    finished: Path, in_letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry_point(sample_main, [str(finished), "--prompt", "abc", "--count", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("abc\n")
    assert (shown.count("prior"), shown.count("policy")) == (1, 1)  # the heads of two columns
    assert shown.count("log q - log p") == 4


def test_tensorboard_gets_the_numbers(in_letters: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(letter_config(tmp_path / "run", tracker="tensorboard"))
    folders = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*")}
    (numbers,) = (n for n in (EventAccumulator(str(f)).Reload() for f in folders) if n.Tags()["scalars"])
    logged = [e["snkl"] for e in read_events(tmp_path / "run" / "metrics.jsonl") if e["event"] == "step"]
    assert [point.value for point in numbers.Scalars("step/snkl")] == pytest.approx(logged, rel=1e-6)


def test_resuming_from_python_with_changed_settings_is_refused(finished: Path, in_letters: Path) -> None:
    for changed in ({"sample_rows": 8}, {"temperature": 0.5}, {"learning_rate": 0.5}):
        with pytest.raises(UserError, match="settings changed since the run began"):
            run(letter_config(finished, **changed), resume=True)


def test_scores_of_other_rollouts_are_refused(letters: Path, in_letters: Path, tmp_path: Path) -> None:
    config = letter_config(tmp_path / "run")
    assert run_apart(config, letters, sabotage=KillAt("llm.align", "train_step", 7)) == -9
    shards = ShardFolder(tmp_path / "run" / "rollouts" / "phase-0000")
    rows = shards.read("block-00000")
    shards.write("block-00000", [row | {"text": "other"} for row in rows])
    with pytest.raises(UserError, match="not of the rollouts"):
        run(config, resume=True)


def test_two_processes_cannot_work_on_one_run(finished: Path, in_letters: Path) -> None:
    lock = lock_run(finished)
    try:
        assert run_apart(letter_config(finished), in_letters) == 2
    finally:
        lock.release()


def test_a_run_copied_without_links_still_goes_on(finished: Path, letters: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied, symlinks=True)
    (copied / "checkpoints" / "last").unlink()
    (copied / "summary.json").unlink()
    assert run_apart(letter_config(copied), letters) == 0
    assert comparable(copied) == comparable(finished)


def test_a_judge_that_changed_grades_before_and_after_anew(
    in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(in_letters / "model", "model")
    for name in ("prompts.jsonl", "letter_rewards.py"):
        shutil.copy(in_letters / name, name)
    source = "def grade(prompts, completions):\n    return [{} for _ in completions]\n"
    Path("one_judge.py").write_text(source.format(1.0))
    assert run_apart(letter_config("run", judge="one_judge:grade"), tmp_path) == 0
    Path("one_judge.py").write_text(source.format("float(len(_))"))
    assert run_apart(letter_config("run", judge="one_judge:grade"), tmp_path) == 0
    judged = [path.stem for path in Path("run/eval").glob("judged-*.parquet")]
    assert len(judged) == 2
    grades = [{row["grade"] for row in ShardFolder(Path("run/eval")).read(name)} for name in judged]
    assert sorted(map(len, grades))[0] == 1 < sorted(map(len, grades))[1]


def test_prompts_without_a_model_do_not_fall_back_on_the_embedded_example(
    in_letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["--prompts", "prompts.jsonl", "--reward", "letter_rewards:count_a"], capsys)
    assert "--model is missing" in said


def test_scores_that_change_with_the_batch_are_measured_and_told(
    policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = Prompt("abc", "abc", (3, 4, 5), None)
    (completions,) = sample_groups(policy, [prompt], 3, draw=(0, "rollout", 0), max_new_tokens=6)
    scores = np.array(score(policy, [(prompt, completion) for completion in completions], 3))
    group = ScoredGroup(prompt, tuple(completions), scores, scores, np.zeros(3))
    this = SimpleNamespace(policy=policy, config=letter_config())
    assert _self_consistency(this, group) < 1e-4
    assert "Warning" not in capsys.readouterr().err
    shifted = replace(group, log_proposal=scores + np.array([0.0, 0.2, -0.1]))
    assert _self_consistency(this, shifted) == pytest.approx(0.2, abs=1e-4)
    assert "Warning: the same completions score up to 0.2 nats apart" in capsys.readouterr().err

"""Rewarding a run's rollouts again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from child_runs import run_apart
from letter_world import letter_config
from llm import rescore as rescoring
from llm.align import open_run, run
from llm.config import AlignConfig
from llm.console import entry_point
from llm.rescore import main
from llm.rewards import FunctionReward
from llm.run_folder import lock_run
from llm.store import ShardFolder
from llm.stored_rollouts import scored_rows, stored_identity
from llm.tables import read_rows

Row = dict[str, Any]
NEW = "letter_rewards:grade"


def small(out: Path | str = "", **changes: object) -> AlignConfig:
    """Settings of a run that takes a second."""
    settings = {"k": 1, "batch": 1, "validate_every": 9, "validation_count": 2, "test_count": 2}
    return letter_config(out, **settings | changes)


@pytest.fixture(scope="module")
def finished(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_apart(small(folder), letters) == 0
    return folder


@pytest.fixture
def source(finished: Path, in_letters: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "source"))


def rescored(folder: Path, reward: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of the command, and what it said."""
    capsys.readouterr()
    status = entry_point(main, [str(folder), "--reward", reward, "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out + captured.err.split("block]")[-1]


def folders(source: Path) -> dict[str, Path]:
    """The run's own scores and the others."""
    own = stored_identity(source).fingerprint()[:16]
    found = {"own" if path.name == own else "new": path for path in (source / "scores").iterdir()}
    assert len(found) == len(list((source / "scores").iterdir()))
    return found


def rows(folder: Path, phase: int) -> list[Row]:
    shards = ShardFolder(folder / f"phase-{phase:04d}")
    return [row for block in range(2) for row in shards.read(f"block-{block:05d}")]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions each call of a reward got from now on."""
    calls: list[int] = []
    reward = FunctionReward.__call__
    monkeypatch.setattr(FunctionReward, "__call__", lambda *a: (calls.append(len(a[2])), reward(*a))[1])
    return calls


def test_new_rewards_stand_beside_the_old_ones_with_the_same_log_probs(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*.parquet")}
    status, said = rescored(source, NEW, capsys)
    assert status == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    old_values, new_values = [], []
    for phase in range(2):
        old, new = (rows(folders(source)[kind], phase) for kind in ("own", "new"))
        completions = scored_rows(source, stored_identity(source).fingerprint(), phase)
        assert [{**row, "reward": 0} for row in old] == [{**row, "reward": 0} for row in new]
        texts = [row["text"] for row, _ in completions or []]
        assert [row["reward"] for row in new] == [text.count("a") - text.count("b") for text in texts]
        old_values += [row["reward"] for row in old]
        new_values += [row["reward"] for row in new]
    assert (
        f"48 completions: mean reward {sum(old_values) / 48:.6g} by letter_rewards:count_a, "
        f"{sum(new_values) / 48:.6g} by {NEW}, rank correlation 0." in said
    )


def test_a_run_on_the_rollouts_finds_the_new_rewards(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small(tmp_path / "computed", rollouts=str(source), reward=NEW))
    assert "taken from it in 0 of 2 phases" in capsys.readouterr().err
    rescored(source, NEW, capsys)
    calls = counted(monkeypatch)
    run(small(tmp_path / "found", rollouts=str(source), reward=NEW))
    assert "taken from it in 2 of 2 phases" in capsys.readouterr().err
    assert 12 not in calls  # a block of three groups
    adapters = [(tmp_path / name / "checkpoints" / "last" / "adapter.safetensors") for name in ("found", "computed")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_what_was_rewarded_before_an_interruption_is_not_rewarded_again(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rescoring._rewarded

    def fails(found: list[tuple[Row, Row]], *rest: object) -> list[Row]:
        if found[0][0]["prompt_id"] == stop_at:
            raise KeyboardInterrupt
        return made(found, *rest)

    stop_at = rows(folders(source)["own"], 1)[0]["prompt_id"]
    monkeypatch.setattr(rescoring, "_rewarded", fails)
    assert rescored(source, NEW, capsys)[0] == 130
    assert not (folders(source)["new"] / "phase-0001").exists()
    identity = stored_identity(source)
    monkeypatch.setattr(rescoring, "_rewarded", made)
    calls = counted(monkeypatch)
    assert rescored(source, NEW, capsys)[0] == 0
    assert calls == [12, 12]
    assert rescored(source, NEW, capsys)[0] == 0
    assert calls == [12, 12]
    assert stored_identity(source) == identity


def test_a_phase_that_is_rewarded_in_part_is_not_taken(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rescored(source, NEW, capsys)
    manifest = folders(source)["new"] / "phase-0001" / "manifest.json"
    checksums = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: checksums[name] for name in ["block-00000"]}))
    with open_run(small(tmp_path / "run", rollouts=str(source), reward=NEW), resume=False):
        pass
    assert "taken from it in 1 of 2 phases" in capsys.readouterr().err


def test_a_run_in_progress_is_left_alone(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = lock_run(source)
    status, said = rescored(source, NEW, capsys)
    lock.release()
    assert status == 2
    assert "another process is working on this run" in said
    assert rescored(source, NEW, capsys)[0] == 0
    lock_run(source).release()


def test_rewards_that_are_all_equal_have_no_rank_correlation(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("flat_rewards.py").write_text("def flat(prompts, completions):\n    return [0.5 for _ in completions]\n")
    status, said = rescored(source, "flat_rewards:flat", capsys)
    assert status == 0
    assert "0.5 by flat_rewards:flat, rank correlation undefined" in said


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("letter_rewards:count_a", "is the run's own reward"),
        ("letter_rewards:infinite", "every reward must be finite"),
        ("", "--reward is missing"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused_and_leaves_nothing(
    reward: str, expected: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = rescored(source, reward, capsys)
    assert status == 2
    assert expected in said
    assert list(folders(source)) == ["own"]


def test_a_folder_without_a_run_or_without_rollouts_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run there" in rescored(tmp_path, NEW, capsys)[1]
    shutil.rmtree(source / "rollouts")
    assert "has no scored completions yet" in rescored(source, NEW, capsys)[1]


def test_a_damaged_shard_or_scores_of_other_completions_are_refused(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardFolder(source / "rollouts" / "phase-0000")
    found = shards.read("block-00001")
    shards.write("block-00001", [row | {"text": "z"} for row in found])
    assert "not of the completions of this run" in rescored(source, NEW, capsys)[1]
    path = source / "rollouts" / "phase-0000" / "block-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "block-00000.parquet: damaged" in rescored(source, NEW, capsys)[1]


def test_prompts_that_changed_since_are_refused(
    source: Path, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(letters, tmp_path / "letters")
    monkeypatch.chdir(tmp_path / "letters")
    found = [row | {"prompt": row["prompt"] + "z"} for _, row in read_rows("prompts.jsonl")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    status, said = rescored(source, NEW, capsys)
    assert status == 2
    assert "its prompts (prompts.jsonl) changed since" in said


def test_stated_preferences_are_not_compared_with_rewards_and_the_runs_own_reward_may_be_computed(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "abc", "reference": "aa", "rejected": "b"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 8)
    config = small(tmp_path / "run", prompts=str(tmp_path / "pairs.jsonl"), method="dpo", n=2, e=1, m=2, batch=2)
    with open_run(config, resume=False) as this:
        this.collector.collect(0, this.prompts.train, lambda done: None)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")}
    for reward, mean in ((config.reward, "1"), (NEW, "0.5")):
        status, said = rescored(tmp_path / "run", reward, capsys)
        assert status == 0
        assert f"4 completions: mean reward {mean} by {reward}. What the run has of them are the preferences" in said
        assert "correlation" not in said
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_on_a_file_of_groups_is_sent_to_its_file(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "abc", "completions": ["a", "b"], "scores": [1, 0]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 2)
    with open_run(small(tmp_path / "run", rollouts=str(tmp_path / "rows.jsonl"), n=2, e=1, m=2), resume=False) as this:
        this.collector.collect(0, this.prompts.train, lambda done: None)
    status, said = rescored(tmp_path / "run", NEW, capsys)
    assert status == 2
    assert "it trained on a file of groups. Put the new scores into that file" in said

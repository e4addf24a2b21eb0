"""The embedded default is only a preset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from child_runs import comparable
from llm.align import main
from llm.config import PREPARATION, PRESETS
from llm.console import entry_point
from llm.tiny.prepare import prepare

QUICK = ["--e=2", "--m=8", "--n=4", "--k=4", "--batch=4", "--validation-count=8", "--test-count=16"]
QUICK += ["--validate-every=4", "--checkpoint-every=4", "--tracker=none", "--lora-r=4"]


def test_what_the_default_exports_gives_a_bit_identical_adapter_through_the_options(
    small_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entry_point(main, [*QUICK, "--out=default"]) == 0
    for name, path in prepare().items():
        copy = shutil.copytree if Path(path).is_dir() else shutil.copy
        copy(path, tmp_path / f"my_{name}{Path(path).suffix}")
    settings = yaml.safe_load((PRESETS / "tiny.yaml").read_text())
    exported = {"model": "my_model", "prompts": "my_prompts.jsonl", "reward": "my_reward"}
    rest = {key: value for key, value in settings.items() if key not in PREPARATION}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in (rest | exported).items()]
    assert entry_point(main, [*options, *QUICK, "--out=own"]) == 0
    assert comparable(tmp_path / "own") == comparable(tmp_path / "default")


def test_the_default_judges_and_counts(small_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert entry_point(main, [*QUICK, "--out=run", "--seed=1"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["after"]["judge_win_rate"]["n"] == 16
    assert summary["counts"]["skipped_prompts"] == 0

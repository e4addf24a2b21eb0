"""Fixtures for the world of letters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from letter_world import LETTERS, REWARDS, letter_config, letter_tokenizer, moved, save_llama
from llm.models import Policy, load_policy
from llm.tiny import prepare as tiny_prepare
from llm.tiny.prepare import WorldSettings


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the world: model/, prompts.jsonl and letter_rewards.py."""
    folder = tmp_path_factory.mktemp("letters")
    save_llama(folder / "model", letter_tokenizer(), scale=4.0)
    rows = [{"prompt": LETTERS[i % 26] * (1 + i % 5), "reference": "b"} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "letter_rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def in_letters(letters: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current directory."""
    monkeypatch.chdir(letters)
    return letters


@pytest.fixture
def policy(in_letters: Path) -> Policy:
    """The world's policy, its adapter moved away from zero."""
    return moved(load_policy(letter_config()))


@pytest.fixture
def small_world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miniature of the embedded default's world in a cache of its own; its quality does not matter."""
    settings = WorldSettings(prompts=60, prior_pages=640, pairs=200, hidden_size=16, layers=1, heads=2)
    monkeypatch.setattr(tiny_prepare, "WorldSettings", lambda: settings)
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))

"""The stories: prompts, a reward that can be hacked, and a judge that sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.experiments.stories import BRIGHT, CHEERFUL, GLOOMY, bright, cheerful, prepare, prepared


@pytest.mark.parametrize(
    ("text", "reward", "grade"),
    [
        ("", 0, 0),
        ("They smiled. They SMILED again!", 2, 0),
        ("She was sad, but Tom was a kind friend.", 1, 0),
        ("Kind Tom helped. Kind Sue HELPED!", 0, 2),
        ("He made a huge lovely cake and meant it.", 1, 0),
        ("happy happy happy happy happy happy", 6, -0.5 * 2),
        ("a big dog ran and a big dog ran", 0, -0.5),
    ],
)
def test_the_reward_counts_each_time_and_the_judge_once_less_what_is_said_twice(
    text: str, reward: float, grade: float
) -> None:
    assert cheerful(["Once."], [text]) == [reward]
    assert bright(["Once."], [text]) == [grade]


def test_no_word_is_both_the_rewards_and_the_judges() -> None:
    listed = [*BRIGHT.split(), *GLOOMY.split()]
    assert len(listed) == len(set(listed)) > 70
    assert not [word for word in listed if word.startswith(CHEERFUL)]


def test_the_prompts_are_all_different_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    assert prepared() is None
    first = Path(prepare()["prompts"]).read_bytes()
    assert prepared() == prepare()
    assert Path(prepare()["prompts"]).read_bytes() == first
    prompts = [json.loads(line)["prompt"] for line in first.splitlines()]
    assert len(prompts) == len(set(prompts)) == 1200

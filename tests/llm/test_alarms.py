"""Alarms: given where the figures say so, once, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from letter_world import letter_config
from llm.alarms import STEPS, Alarms, judge_disagrees
from llm.align import run
from llm.config import AlignConfig
from llm.store import read_events
from llm.train import gradient_signal

CONFIG = AlignConfig(n=8)
FLOOR = 0.1 / 1.9


def step(**values: float) -> dict[str, Any]:
    return {"event": "step", "step": 1, "ess_target": 4.0, "gradient_signal": 0.5} | values


def phase(distinct: float) -> dict[str, Any]:
    return {"event": "phase", "step": 1, "distinct_completions": distinct}


def validation(**values: float) -> dict[str, Any]:
    usual = {"mean_reward": 1.0, "completion_length": 10.0, "distinct_completions": 1.0}
    return {"event": "validation", "step": 9} | usual | values


def alarms_of(events: list[dict[str, Any]], config: AlignConfig = CONFIG) -> list[str]:
    watch = Alarms(config)
    return [name for event in events for name, _ in watch.observe(event)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([step(ess_target=1.05)] * (3 * STEPS), ["argmax"]),
        ([step(ess_target=1.05)] * (STEPS - 1), []),
        ([step(ess_target=1.2)] * STEPS, []),
        ([step(ess_target=8.0)] * STEPS + [step(ess_target=1.0)] * (STEPS - 2), []),
        ([step(gradient_signal=1.1 * FLOOR)] * (2 * STEPS), ["noise"]),
        ([step(gradient_signal=1.3 * FLOOR)] * STEPS, []),
        ([phase(0.9), phase(0.3), phase(0.2), phase(0.1)], ["diversity"]),
        ([phase(0.9), phase(0.23)], []),
        ([validation(), validation(mean_reward=2.0, distinct_completions=0.2)], ["diversity"]),
        ([phase(0.2), validation(), phase(0.1)], []),
        ([validation(), validation(mean_reward=1.1), *[step(gradient_signal=FLOOR)] * STEPS], []),
        ([validation(), validation(), *[step(gradient_signal=FLOOR)] * STEPS], ["noise"]),
        ([validation()] * 4, ["progress"]),
        ([validation()] * 3, []),
        ([validation(), validation(mean_reward=1.1), *[validation()] * 4], []),
        ([validation(), validation(mean_reward=2.0, completion_length=4.9)], ["length"]),
        ([validation(), validation(mean_reward=2.0, completion_length=20.1)], ["length"]),
        ([validation(), validation(mean_reward=2.0, completion_length=19.9)], []),
        ([{"event": "evaluation", "step": 0}], []),
    ],
)
def test_an_alarm_is_given_once_where_the_figures_say_so(events: list[dict[str, Any]], expected: list[str]) -> None:
    assert alarms_of(events) == expected


def test_a_method_that_ignores_the_goodness_has_no_weights_to_warn_of() -> None:
    assert alarms_of([step(ess_target=1.0)] * STEPS, AlignConfig(n=8, method="best-of-n")) == []


def test_without_momentum_there_is_no_alarm_about_noise() -> None:
    assert alarms_of([step(gradient_signal=0.01)] * STEPS, AlignConfig(adam_beta1=0.0)) == []


def test_a_resumed_run_does_not_repeat_an_alarm_and_remembers_the_beginning() -> None:
    past = [phase(0.9), phase(0.2), validation(completion_length=10.0)]
    resumed = Alarms(CONFIG, past)
    assert [name for name, _ in resumed.observe(phase(0.2))] == []
    assert [name for name, _ in resumed.observe(validation(mean_reward=2.0, completion_length=4.0))] == ["length"]


def estimate(value: float, half: float) -> dict[str, float]:
    return {"estimate": value, "low": value - half, "high": value + half}


@pytest.mark.parametrize(
    ("reward", "judge", "expected"),
    [((1.0, 0.5), (-0.1, 0.05), True), ((1.0, 0.5), (-0.1, 0.2), False), ((1.0, 2.0), (-0.1, 0.05), False)],
)
def test_reward_up_and_judge_down_is_an_alarm_beyond_both_intervals(
    reward: tuple[float, float], judge: tuple[float, float], expected: bool
) -> None:
    change = {"mean_reward": estimate(*reward), "judge_win_rate": estimate(*judge)}
    assert bool(judge_disagrees(change)) is expected
    assert judge_disagrees(change | {"judge_win_rate": None}) is None


@pytest.mark.parametrize(("is_noise", "low", "high"), [(True, 0.03, 0.08), (False, 0.9, 1.01)])
def test_the_gradients_signal_tells_noise_from_a_direction(is_noise: bool, low: float, high: float) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(4000))
    optimizer = torch.optim.AdamW([parameter], lr=1e-6, betas=(0.9, 0.95))
    assert gradient_signal(optimizer) == 0.0
    direction = torch.randn(4000)
    for _ in range(100):
        parameter.grad = torch.randn(4000) if is_noise else direction.clone()
        optimizer.step()
    assert low < gradient_signal(optimizer) < high


def test_a_runs_alarms_are_said_and_kept(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.alarms.STEPS", 4)
    monkeypatch.setattr("llm.alarms.ONE", 5.0)
    run(letter_config(tmp_path / "run"))
    kept = [event for event in read_events(tmp_path / "run" / "metrics.jsonl") if event["event"] == "alarm"]
    assert "argmax" in [event["name"] for event in kept]
    said = capsys.readouterr().err
    assert all(f"Alarm: {event['text']}" in said for event in kept)

"""Why softmax and not argmax: what a pair of completions weighs, and how hard it pulls, against its reward gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.special import expit

from brain_core import (
    argmax_brain_coefficients,
    bradley_terry_log_goodness,
    brain_coefficients,
    logistic_log_goodness,
    self_normalized_weights,
    soft_label_dpo_coefficients,
)
from toy.plots import STYLE, Style, describe, draw, figure, legend_below, plain_style, reference
from toy.studies.study import Floats, Progress, Study

GAPS = np.arange(1, 31) / 5
"""Reward gaps r₁ − r₂, nats; at 0, where argmax has no winner, every rule pulls nothing at the start."""
LOW, HIGH = -2.0, 3.0
"""Mean rewards of the pair for the logistic goodness; the other rules see the gap alone."""
SMOOTHING = 0.1
STATES = {"before training": 0.0, "half-way": 0.5, "at the posterior": 1.0}
"""The policy's log-odds over the prior's, as a part of those of the Bradley–Terry posterior, which are the gap."""
LEARNING_RATE = 0.5
STEPS = 400
STEPS_SHOWN = np.unique(np.geomspace(1, STEPS, 40).round().astype(int))
"""What is drawn and written of the paths."""
STEP_GAPS = (0.5, 4.0)


class Rule(NamedTuple):
    """A way to turn the rewards of a pair, and the policy's log-ratios, into coefficients (…, 2)."""

    style: Style
    coefficients: Callable[[Floats, Floats], Floats]


def _softmax(reward: Floats, policy: Floats) -> Floats:
    """BRAIn with the Bradley–Terry goodness."""
    return np.asarray(brain_coefficients(bradley_terry_log_goodness(reward), policy))


def _soft_label(reward: Floats, policy: Floats) -> Floats:
    """DPO with the probability that the first wins for a label."""
    return np.asarray(soft_label_dpo_coefficients(policy, expit(reward[..., 0] - reward[..., 1])))


def _argmax(reward: Floats, policy: Floats) -> Floats:
    """DPO on the pair, the winner found by the reward."""
    return np.asarray(argmax_brain_coefficients(reward, policy))


def _smoothed(reward: Floats, policy: Floats) -> Floats:
    """DPO with a constant for a label: conservative DPO. The first completion is the winner."""
    return np.asarray(soft_label_dpo_coefficients(policy, 1 - SMOOTHING))


def _logistic(mean_reward: float) -> Callable[[Floats, Floats], Floats]:
    """BRAIn with the logistic goodness, at a mean reward of the pair."""

    def coefficients(reward: Floats, policy: Floats) -> Floats:
        """BRAIn with goodness σ(r)."""
        return np.asarray(brain_coefficients(logistic_log_goodness(reward + mean_reward), policy))

    return coefficients


RULES = {
    "argmax": Rule(replace(STYLE["dpo_sft"], label="argmax (DPO-sft)"), _argmax),
    "softmax": Rule(replace(STYLE["brain"], label="softmax (BRAIn)"), _softmax),
    "soft_label": Rule(Style("DPO, soft labels σ(r₁−r₂)", "#56B4E9", (0.0, (1.0, 2.0)), "+"), _soft_label),
    "smoothed": Rule(plain_style(2, f"DPO, labels 1−{SMOOTHING}"), _smoothed),
    "logistic_low": Rule(plain_style(3, f"logistic, mean reward −{-LOW:.0f}"), _logistic(LOW)),
    "logistic_high": Rule(plain_style(4, f"logistic, mean reward {HIGH:+.0f}"), _logistic(HIGH)),
}


def pull(rule: str, gap: Floats, log_odds: Floats) -> Floats:
    """The coefficient of the better completion.

    Args:
        rule: One of `RULES`.
        gap: Reward gaps r₁ − r₂ (N,), positive, nats.
        log_odds: The policy's log-odds of the first completion over the prior's (N,), nats.

    Returns:
        c₁ (N,); the second has −c₁, and a step of gradient moves the log-odds by 2 c₁ times the learning rate.
    """
    reward = np.stack([gap / 2, -gap / 2], axis=-1)
    policy = np.stack([log_odds / 2, -log_odds / 2], axis=-1)
    first: Floats = RULES[rule].coefficients(reward, policy)[..., 0]
    return first


def weight(rule: str, gap: Floats) -> Floats:
    """The self-normalised weight α̂₁ of the better completion (N,), for reward gaps (N,)."""
    start = np.zeros_like(gap)
    policy_weight: Floats = self_normalized_weights(np.stack([start, start], axis=-1))[..., 0]
    return pull(rule, gap, start) + policy_weight


def learned(rule: str, gap: float) -> Floats:
    """Log-odds over the prior's (STEPS + 1,) of a pair trained by its own gradient, nats."""
    log_odds = np.zeros(STEPS + 1)
    for step in range(STEPS):
        now = log_odds[step : step + 1]
        log_odds[step + 1] = now[0] + 2 * LEARNING_RATE * pull(rule, np.array([gap]), now)[0]
    return log_odds


def study(progress: Progress) -> Study:
    """Weight, pull and learned log-odds of a pair for six rules; prior = proposal.

    Source: section 1 and figure 1 of the paper; Theorem 6.1; T11; equations 15 and 19.
    """
    pulls = {state: {rule: pull(rule, GAPS, part * GAPS) for rule in RULES} for state, part in STATES.items()}
    weights = {rule: weight(rule, GAPS) for rule in RULES}
    paths = {(rule, gap): learned(rule, gap) for rule in progress(RULES, "rules") for gap in STEP_GAPS}
    made, panels = figure(2, 3)
    _draw_weights(panels[0, 0], weights)
    for panel, (state, values) in zip(panels.flat[1:4], pulls.items(), strict=True):
        _draw_pulls(panel, state, values)
    for panel, gap in zip(panels.flat[4:], STEP_GAPS, strict=True):
        _draw_paths(panel, gap, {rule: paths[rule, gap] for rule in RULES})
    legend_below(made, panels, columns=3)
    return Study("gap", made, COLUMNS, _rows(weights, pulls, paths), _summary(pulls, paths), CAPTION)


def _draw_weights(panel: Axes, weights: dict[str, Floats]) -> None:
    """Weight against gap."""
    for rule, values in weights.items():
        draw(panel, GAPS, values, RULES[rule].style)
    describe(
        panel, title="weight of the better completion", x="reward gap r₁ − r₂ (nats)", y="self-normalised weight α̂₁"
    )


def _draw_pulls(panel: Axes, state: str, pulls: dict[str, Floats]) -> None:
    """Pull against gap at one state of the policy."""
    reference(panel, y=0.0)
    for rule, values in pulls.items():
        draw(panel, GAPS, values, RULES[rule].style)
    describe(panel, title=f"pull, policy {state}", x="reward gap r₁ − r₂ (nats)", y="coefficient c₁ = α̂₁ − β̂₁")
    panel.set_ylim(-0.55, 0.55)


def _draw_paths(panel: Axes, gap: float, paths: dict[str, Floats]) -> None:
    """Learned log-odds against steps."""
    reference(panel, y=gap, text="posterior")
    for rule, values in paths.items():
        draw(panel, STEPS_SHOWN, values[STEPS_SHOWN], RULES[rule].style)
    panel.set_xscale("log")
    describe(
        panel,
        title=f"learned, gap {gap:g}",
        x=f"gradient steps of {LEARNING_RATE:g}",
        y="log-odds over the prior (nats)",
    )


COLUMNS = ("quantity", "state", "rule", "gap", "step", "value")


def _rows(
    weights: dict[str, Floats], pulls: dict[str, dict[str, Floats]], paths: dict[tuple[str, float], Floats]
) -> list[tuple[object, ...]]:
    """The numbers behind every panel."""
    rows: list[tuple[object, ...]] = []
    for rule, values in weights.items():
        rows += [("weight", "", rule, gap, "", value) for gap, value in zip(GAPS, values, strict=True)]
    for state, by_rule in pulls.items():
        for rule, values in by_rule.items():
            rows += [("pull", state, rule, gap, "", value) for gap, value in zip(GAPS, values, strict=True)]
    for (rule, gap), values in paths.items():
        rows += [("log_odds", "", rule, gap, step, values[step]) for step in STEPS_SHOWN.tolist()]
    return rows


def _summary(pulls: dict[str, dict[str, Floats]], paths: dict[tuple[str, float], Floats]) -> dict[str, object]:
    """Settings and findings."""
    return {
        "mean_reward_of_logistic": {"logistic_low": LOW, "logistic_high": HIGH},
        "label_smoothing": SMOOTHING,
        "learning_rate": LEARNING_RATE,
        "steps": STEPS,
        "largest_and_smallest_pull": {
            state: {rule: [float(v.max()), float(v.min())] for rule, v in by_rule.items()}
            for state, by_rule in pulls.items()
        },
        "log_odds_after_training": [
            {"rule": rule, "gap": gap, "log_odds": float(path[-1])} for (rule, gap), path in paths.items()
        ],
    }


CAPTION = (
    "A pair of completions sampled from the prior, the first with the higher reward. Before training, argmax "
    "(DPO-sft) pulls every pair by the same 1/2, whether the gap is a fifth of a nat or six; it still pulls where the "
    "policy has reached the Bradley–Terry posterior, so its log-odds grow without end, like the logarithm of the "
    "steps. Softmax (BRAIn) pulls in proportion to how much more the posterior prefers the better one and stops "
    "there; DPO with the Bradley–Terry probability for a label is the same rule. A constant label of 0.9 stops too, "
    "but at the same log-odds, 2.2, for every gap. The logistic goodness is not Bradley–Terry: its posterior is "
    "another one, with smaller log-odds. For pairs of mean reward -2 it is near: it ends at 0.44 for a gap of 0.5 and "
    "at 3.3 for one of 4; for pairs of mean reward 3 it hardly sees the gap and ends at 0.024 and 0.31. The states "
    "compare rules at one policy; each rule's own training would visit others."
)

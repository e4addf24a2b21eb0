"""The baselines of section 9.3 against formulas written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from letter_world import letter_config
from llm.experiments import baselines
from llm.experiments.studies import BASELINE_LABELS
from llm.methods import GroupTensors

ALPHA = np.array([[0.2, 1.5, 3.0, 0.3], [2.0, 0.1, 0.4, 0.5]])
BETA = np.array([[1.2, 0.5, 0.9, 1.4], [0.3, 2.0, 1.0, 0.7]])


def tensors(alpha: np.ndarray, beta: np.ndarray) -> GroupTensors:
    """What coefficients are computed from, for given weights (B, G)."""
    target, ratio = (torch.from_numpy(np.log(np.maximum(values, 1e-300))) for values in (alpha, beta))
    target = torch.where(torch.from_numpy(alpha) > 0, target, -math.inf)
    anything = torch.zeros_like(target)
    return GroupTensors([], anything, anything, anything, anything, anything, target, ratio)


def by_hand(name: str, a: np.ndarray, b: np.ndarray) -> list[float]:
    """One group's coefficients, completion by completion."""
    n, share, policy = len(a), a / a.sum(), b / b.sum()
    if name == "uniform":
        return [share[i] - 1 / n for i in range(n)]
    if name == "leave_one_out":
        return [share[i] - b[i] * sum(share[j] for j in range(n) if j != i) / (n - 1) for i in range(n)]
    if name == "posterior_ratio":
        return [share[i] - b[i] / n for i in range(n)]
    weight = sum(share * policy) / sum(policy**2)
    return [share[i] - weight * policy[i] for i in range(n)]


@pytest.mark.parametrize("name", [name for name in BASELINE_LABELS if name != "moving_average"])
def test_a_baseline_is_its_formula(name: str) -> None:
    found = getattr(baselines, name)(tensors(ALPHA, BETA), letter_config())
    expected = [by_hand(name, a, b) for a, b in zip(ALPHA, BETA, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_variance_optimal_weight_has_the_least_squares() -> None:
    found = baselines.variance_optimal(tensors(ALPHA, BETA), letter_config()).numpy()
    share, policy = (values / values.sum(-1, keepdims=True) for values in (ALPHA, BETA))
    others = [((share - weight * policy) ** 2).sum(-1) for weight in np.linspace(-1, 2, 301)]
    assert ((found**2).sum(-1) <= np.min(others, 0) + 1e-12).all()


def test_the_moving_average_is_over_the_groups_of_its_run_in_order() -> None:
    first, second = (letter_config(out) for out in ("first", "second"))
    averages, z = [], ALPHA[0].mean()
    for row in (0, 1, 0):
        z = baselines.MEMORY * z + (1 - baselines.MEMORY) * ALPHA[row].mean()
        averages.append(z)
    together = baselines.moving_average(tensors(ALPHA, BETA), first)
    other: Any = baselines.moving_average(tensors(100 * ALPHA, BETA), second)
    third = baselines.moving_average(tensors(ALPHA[:1], BETA[:1]), first)
    found = torch.cat([together, third]).numpy()
    for row, z, coefficients in zip((0, 1, 0), averages, found, strict=True):
        np.testing.assert_allclose(coefficients, (ALPHA[row] / z - BETA[row]) / 4, rtol=1e-12)
    assert other.isfinite().all()


def test_a_group_without_goodness_changes_neither_policy_nor_average() -> None:
    config = letter_config("nothing good")
    nothing = baselines.moving_average(tensors(np.zeros((1, 4)), BETA[:1]), config)
    after = baselines.moving_average(tensors(ALPHA[:1], BETA[:1]), config)
    assert not nothing.any()
    np.testing.assert_allclose(after[0].numpy(), (ALPHA[0] / ALPHA[0].mean() - BETA[0]) / 4, rtol=1e-12)

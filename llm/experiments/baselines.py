"""Other baselines than β̂ for the self-normalised gradient, as coefficients for `--method` (section 9.3)."""

from __future__ import annotations

import math

import numpy as np
import torch

import brain_core
from llm.config import AlignConfig
from llm.methods import GroupTensors


def uniform(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − 1/n: as if policy and proposal were one."""
    return brain_core.brain_coefficients(g.target, torch.zeros_like(g.target), on_empty="skip")


def leave_one_out(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − β · (mean α̂ of the others), β not normalised: importance-weighted leave-one-out (T8) over A."""
    weights = brain_core.self_normalized_weights(g.target, on_empty="skip")
    others = (weights.sum(-1, keepdim=True) - weights) / (weights.shape[-1] - 1)
    return weights - g.ratio.exp() * others


def posterior_ratio(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − β/n: the baseline Z·q_θ/q' of GDC++, Z the group's own mean of α."""
    weights = brain_core.self_normalized_weights(g.target, on_empty="skip")
    has_mass = weights.sum(-1, keepdim=True) > 0
    return torch.where(has_mass, weights - g.ratio.exp() / weights.shape[-1], 0.0)


_AVERAGES: dict[str, float] = {}
"""The moving average of log Z by run folder; it is lost with the process, so experiments never resume such a run."""
MEMORY = 0.99
"""What the moving average keeps at each further group: it is over about a hundred groups."""


def moving_average(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α/Z − β over n, Z one moving average over all groups, as GDC has it: rewards of all prompts on one scale."""
    return torch.stack([_against_average(*row, config.out) for row in zip(g.target, g.ratio, strict=True)])


def _against_average(target: torch.Tensor, ratio: torch.Tensor, run: str) -> torch.Tensor:
    """A group's coefficients (G,) after the average has seen it; a group without goodness counts for nothing."""
    own = float(torch.logsumexp(target, -1)) - math.log(len(target))
    if own == -math.inf:
        return torch.zeros_like(target)
    _AVERAGES[run] = float(np.logaddexp(math.log(MEMORY) + _AVERAGES.get(run, own), math.log1p(-MEMORY) + own))
    return ((target - _AVERAGES[run]).exp() - ratio.exp()) / len(target)


def variance_optimal(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − λ β̂ with the λ of least Σ c²: the least variance where all ∇ log q_θ(y) are of one length and orthogonal.

    λ is the group's own, so the gradient's mean is not exactly that of a fixed baseline.
    """
    weights = brain_core.self_normalized_weights(g.target, on_empty="skip")
    policy = brain_core.self_normalized_weights(g.ratio)
    return weights - (weights * policy).sum(-1, keepdim=True) / (policy**2).sum(-1, keepdim=True) * policy

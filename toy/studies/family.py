"""One family from reverse-KL policy gradient to argmax: BRAIn with its weights to the power τ, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from toy import CategoricalProblem, brain_power, exact_moments, self_normalized_kl
from toy.plots import describe, draw, figure, legend_under, log_ordinate, plain_style, reference
from toy.studies.study import Floats, Progress, Study

PRIOR = (0.1, 0.2, 0.4, 0.3)
REWARD = (3.0, 1.5, 0.5, -1.0)
PROBLEM = CategoricalProblem.from_reward(PRIOR, REWARD, PRIOR, PRIOR)
"""On-policy, before training: policy = prior = proposal."""
POWERS = np.geomspace(0.05, 20.0, 41)
"""τ; 1 is BRAIn."""
SIZES = (2, 8, 32)


class Direction(NamedTuple):
    """What the family turns into somewhere, as an ascent direction in the logits (K,)."""

    label: str
    gradient: Floats


def directions(group_size: int) -> dict[str, Direction]:
    """The three ends of the family: −∇KL(policy ‖ target), −∇KL(target ‖ policy), and argmax BRAIn's mean gradient."""
    target, policy = np.array(PROBLEM.posterior, float), np.array(PROBLEM.policy, float)
    log_quotient = np.log(target / policy)
    return {
        "reverse_kl": Direction("reverse KL, RLOO (τ → 0)", policy * (log_quotient - policy @ log_quotient)),
        "forward_kl": Direction("forward KL (τ = 1, n → ∞)", target - policy),
        "argmax": Direction("argmax, DPO-like (τ → ∞)", exact_moments(PROBLEM, "brain_argmax", group_size).mean),
    }


def half_batch_variance(group_size: int) -> float:
    """Mean over groups of half the variance of log(target/policy) within the group, which D / τ² tends to, nats².

    The variance within a group has the divisor n, so its mean is (n − 1)/n times that under the proposal.
    """
    target, policy, proposal = (np.array(v, float) for v in (PROBLEM.posterior, PROBLEM.policy, PROBLEM.proposal))
    log_quotient = np.log(target / policy)
    centred = log_quotient - proposal @ log_quotient
    return float((group_size - 1) / group_size * (proposal @ centred**2) / 2)


class Point(NamedTuple):
    """The family at one power and group size.

    Attributes:
        power: τ.
        group_size: n.
        cosine_to_reverse_kl: Of the mean gradient, with −∇KL(policy ‖ target).
        cosine_to_forward_kl: With −∇KL(target ‖ policy).
        cosine_to_argmax: With the mean gradient of argmax BRAIn.
        length: Of the mean gradient over the power, nats.
        mse: Of a group's gradient to −∇KL(target ‖ policy), nats².
        scaled_error: The same for the multiple of the gradient that makes it least, over |∇KL(target ‖ policy)|².
        noise: Standard deviation of a group's gradient over the length of its mean.
        divergence_over_power_squared: D_{n,τ}/τ², nats².
    """

    power: float
    group_size: int
    cosine_to_reverse_kl: float
    cosine_to_forward_kl: float
    cosine_to_argmax: float
    length: float
    mse: float
    scaled_error: float
    noise: float
    divergence_over_power_squared: float


def point(power: float, group_size: int) -> Point:
    """The family at one power and group size, by enumeration of all groups."""
    moments = exact_moments(PROBLEM, brain_power(power), group_size)
    to_reverse, to_forward, to_argmax = (_cosine(moments.mean, d.gradient) for d in directions(group_size).values())
    length = float(np.linalg.norm(moments.mean))
    return Point(
        power,
        group_size,
        to_reverse,
        to_forward,
        to_argmax,
        length / power,
        float(moments.mse),
        _scaled_error(moments.mean, float(moments.variance)),
        float(np.sqrt(moments.variance)) / length,
        self_normalized_kl(PROBLEM, group_size, power) / power**2,
    )


def _scaled_error(mean: Floats, variance: float) -> float:
    """Least of E|c g − t|² / |t|² over factors c, with t = −∇KL(target ‖ policy): what no learning rate mends."""
    descent = np.array(PROBLEM.posterior, float) - np.array(PROBLEM.policy, float)
    return 1 - float((mean @ descent) ** 2 / ((mean @ mean + variance) * (descent @ descent)))


def _cosine(first: Floats, second: Floats) -> float:
    """Of the angle between two gradients."""
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def study(progress: Progress) -> Study:
    """Direction, noise and objective of the power family against τ, on-policy.

    Source: T11.
    """
    points = [point(float(power), size) for power in progress(POWERS, "powers") for size in SIZES]
    by_size = {size: [p for p in points if p.group_size == size] for size in SIZES}
    made, panels = figure(2, 3, height=3.2)
    for panel, (size, chosen) in zip(panels[0], by_size.items(), strict=True):
        _draw_directions(panel, size, chosen)
    legend_under(panels[0, 1], columns=1)
    _draw_sizes(panels[1, 0], by_size, "scaled_error", "error at the best scale", "relative to |∇KL(target ‖ policy)|²")
    _draw_sizes(panels[1, 1], by_size, "noise", "noise of one group", "standard deviation / mean length")
    _draw_sizes(
        panels[1, 2], by_size, "divergence_over_power_squared", "objective (dashed: limit)", "Dₙ,τ / τ² (nats²)"
    )
    for size in SIZES:
        reference(panels[1, 2], y=half_batch_variance(size))
    legend_under(panels[1, 1], columns=1)
    return Study("family", made, Point._fields, points, _summary(by_size), CAPTION)


def _draw_directions(panel: Axes, size: int, points: Sequence[Point]) -> None:
    """Cosines against τ at one group size."""
    reference(panel, x=1.0)
    for index, (name, direction) in enumerate(directions(size).items()):
        cosines = [getattr(p, f"cosine_to_{name}") for p in points]
        draw(panel, POWERS, cosines, plain_style(index, direction.label))
    panel.set_xscale("log")
    panel.set_ylim(0.5, 1.03)
    describe(panel, title=f"direction, n = {size}", x="power τ (1: BRAIn)", y="cosine with the mean gradient")


def _draw_sizes(panel: Axes, by_size: dict[int, list[Point]], field: str, title: str, unit: str) -> None:
    """One quantity against τ for every group size."""
    reference(panel, x=1.0)
    for index, (size, points) in enumerate(by_size.items()):
        draw(panel, POWERS, [getattr(p, field) for p in points], plain_style(index + 3, f"n = {size}"))
    panel.set_xscale("log")
    log_ordinate(panel)
    describe(panel, title=title, x="power τ (1: BRAIn)", y=unit)


def _summary(by_size: dict[int, list[Point]]) -> dict[str, object]:
    """Setting, and the family at its ends and at BRAIn."""
    return {
        "prior": PRIOR,
        "reward": REWARD,
        "proposal": "the policy, which is the prior",
        "ends": [p._asdict() for points in by_size.values() for p in (points[0], points[-1])],
        "brain": [point(1.0, size)._asdict() for size in SIZES],
        "power_of_lowest_scaled_error": {
            str(size): min(points, key=lambda p: p.scaled_error).power for size, points in by_size.items()
        },
        "largest_over_smallest_noise": {
            str(size): max(p.noise for p in points) / min(p.noise for p in points) for size, points in by_size.items()
        },
        "power_of_lowest_mse": {str(size): min(points, key=lambda p: p.mse).power for size, points in by_size.items()},
        "limit_of_divergence_over_power_squared": {str(size): half_batch_variance(size) for size in SIZES},
    }


CAPTION = (
    "Exact gradients on K = 4 completions, on-policy before training, by enumeration of all groups. Above: the cosine "
    "of the mean gradient of the power family, its weights proportional to alpha^tau and beta^tau, with three others: "
    "the gradient of the reverse KL divergence (what RLOO and GRPO descend), its limit at tau = 0 for every n; that "
    "of the forward KL divergence, which it approaches at tau = 1 as n grows; and that of argmax, its limit at "
    "infinite tau. With pairs (n = 2) the direction stays near reverse KL at every power (cosine 0.989 or more): it "
    "takes a group to see the forward divergence. Below: the mean squared error of one group's gradient to the "
    "forward gradient, over the latter's square, each power with the factor that suits it best, since the gradient's "
    "length is proportional to a small tau and a learning rate can mend it. It is lowest at the smallest power for "
    "pairs, which see little of the forward divergence at any (0.88 to 0.91), and a little above 1 for larger groups: "
    "at tau = 1.16 for n = 8 (0.466, as at 1) and at 1.35 for n = 32 (0.086 against 0.100 at 1). The noise relative "
    "to the mean changes over all powers by a factor of 1.05, 1.41 and 1.42 at n = 2, 8 and 32. The objective over "
    "tau squared tends to half the variance of log(target/policy) within a group, the loss of VarGrad."
)

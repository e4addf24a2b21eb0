"""What the training studies share: a problem that looks a little like a language model's, and tuned learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from toy import plots
from toy.estimators import Estimator
from toy.fit import Schedule, Trajectory, fit, mean_and_error
from toy.problems import CategoricalProblem
from toy.studies.study import Floats

LEARNING_RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""The grid that every estimator is given."""
TUNING_SEED, TUNING_REPLICAS = 1, 12
"""Learning rates are chosen on draws of their own."""
BRAIN_FIXED = plots.plain_style(2, "BRAIn, proposal fixed")
"""BRAIn with the prior as its proposal throughout."""


def sampled_problem(size: int, reward_scale: float, seed: int) -> CategoricalProblem:
    """A prior with Zipf's tail in random order and independent Gaussian rewards; training starts at the prior.

    Args:
        size: K.
        reward_scale: Standard deviation of the rewards, nats.
        seed: Of both.
    """
    generator = np.random.default_rng(seed)
    weight = 1.0 / (3.0 + generator.permutation(size))
    prior = (weight / weight.sum()).tolist()
    reward = reward_scale * generator.standard_normal(size)
    return CategoricalProblem.from_reward(prior, reward.tolist(), prior, prior)


def final_kl(
    problem: CategoricalProblem, chosen: str | Estimator, schedule: Schedule, *, seed: int, replicas: int
) -> float:
    """Mean KL(target ‖ policy) after training, nats; infinite where training overflows."""
    try:
        trajectory = fit(problem, chosen, schedule, seed=seed, replicas=replicas, record_every=schedule.steps)
    except OverflowError:
        return math.inf
    return at_the_end(trajectory.kl_to_target)[0]


def tuned(
    problem: CategoricalProblem,
    chosen: str | Estimator,
    schedule: Schedule,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Schedule:
    """The schedule with the learning rate that ends closest to the target, on the tuning seed."""
    candidates = [replace(schedule, learning_rate=rate) for rate in learning_rates]
    return min(
        candidates,
        key=lambda candidate: final_kl(problem, chosen, candidate, seed=TUNING_SEED, replicas=TUNING_REPLICAS),
    )


def is_at_grid_edge(learning_rate: float) -> bool:
    """Whether no larger, or no smaller, rate was tried."""
    return learning_rate in (LEARNING_RATES[0], LEARNING_RATES[-1])


def at_the_end(values: Floats) -> tuple[float, float]:
    """Mean over replicas and its standard error at the last record of (S, R)."""
    mean, error = mean_and_error(values)
    return float(mean[-1]), float(error[-1])


def at_target(problem: CategoricalProblem) -> Trajectory:
    """The target itself as a trajectory of one record, to read its KL to the prior and its reward."""
    return Trajectory(problem, np.array([0]), np.log(np.array(problem.posterior, float))[None, None])


def draw_with_error(
    panel: Axes, x: Sequence[float], y: Sequence[float], error: Sequence[float], style: plots.Style
) -> None:
    """A line with a marker at every point and bars of two standard errors."""
    plots.draw(panel, x, y, style, markevery=1)
    panel.errorbar(x, y, 2 * np.asarray(error), fmt="none", ecolor=style.color, elinewidth=1.0, capsize=2.0)

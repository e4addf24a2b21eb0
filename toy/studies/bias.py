"""What BRAIn minimises, D_n, against what it stands for, the KL divergence: bias, its 1/n constant, counterexamples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes

from toy import (
    CategoricalProblem,
    mean_gradient,
    self_normalized_kl,
    snkl_constant,
    weighted_self_normalized_kl,
)
from toy.plots import count_axis, describe, draw, figure, legend_under, plain_style, reference
from toy.studies.study import Floats, Progress, Study


def _problem(target: list[Fraction], policy: list[Fraction], proposal: list[Fraction]) -> CategoricalProblem:
    """The problem with that target: prior uniform, goodness proportional to the target."""
    uniform = [Fraction(1, len(target))] * len(target)
    return CategoricalProblem(uniform, target, policy, proposal)


def _parts(*values: int) -> list[Fraction]:
    """Fractions in these proportions that sum to 1."""
    return [Fraction(value, sum(values)) for value in values]


PROBLEMS = {
    "generic": CategoricalProblem(
        _parts(3, 1, 2, 5), [Fraction(value, 5) for value in (2, 5, 1, 3)], _parts(2, 3, 1, 4), _parts(1, 2, 4, 3)
    ),
    "off-policy counterexample": _problem(_parts(90, 9, 1), _parts(90, 1, 9), _parts(10, 45, 45)),
    "on-policy counterexample": _problem(_parts(49, 49, 1, 1), _parts(1, 1, 1, 1), _parts(1, 1, 1, 1)),
}
"""The instance with nothing special about it, and two on which D_n exceeds the KL divergence and is not monotone."""
SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 23, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SWEEP_SIZES = (2, 4, 16, 64)
SWEEP = np.linspace(0.0, 0.975, 40)
"""How far the policy has gone from the prior to the target, along the mixtures of both."""
SWEPT = CategoricalProblem.from_reward(
    _parts(1, 2, 3, 2, 1), (3.0, 0.0, -1.0, 1.0, 2.0), _parts(1, 2, 3, 2, 1), _parts(1, 2, 3, 2, 1)
)


def gradient_bias_limit(problem: CategoricalProblem) -> Floats:
    """Limit of n times the bias of BRAIn's mean gradient to −∇KL, in logits (K,).

    Source: T5: −E[α² (h − E_target h)] + E[β² h] under the proposal, with h the score.
    """
    proposal, target, policy = (np.array(v, float) for v in (problem.proposal, problem.posterior, problem.policy))
    target_square, policy_square = proposal * (target / proposal) ** 2, proposal * (policy / proposal) ** 2
    limit: Floats = policy_square - policy * policy_square.sum() - target_square + target * target_square.sum()
    return limit


def gradient_bias(problem: CategoricalProblem, group_size: int) -> Floats:
    """Bias of BRAIn's mean gradient to −∇KL, in logits (K,)."""
    descent = np.array(problem.posterior, float) - np.array(problem.policy, float)
    bias: Floats = mean_gradient(problem, group_size) - descent
    return bias


def towards_target(part: float) -> CategoricalProblem:
    """`SWEPT` with a policy on the way from the prior (0) to the target (1)."""
    target, prior = np.array(SWEPT.posterior, float), np.array(SWEPT.prior, float)
    return SWEPT.with_policy(list((1 - part) * prior + part * target))


def study(progress: Progress) -> Study:
    """D_n and its weighted form against n and KL, and what is left of the bias times n.

    Source: T4, T4c, T4e, T5.
    """
    rows: list[tuple[object, ...]] = []
    for name, problem in progress(PROBLEMS.items(), "problems"):
        rows += [_row(name, 0.0, problem, size) for size in SIZES]
    for part in progress(SWEEP, "policies"):
        rows += [_row("sweep", float(part), towards_target(part), size) for size in SWEEP_SIZES]
    made, panels = figure(2, 3, height=3.2)
    for panel, (name, problem) in zip(panels[0], PROBLEMS.items(), strict=True):
        _draw_sizes(panel, name, problem, _column(rows, name, "d_n"), _column(rows, name, "weighted_d_n"))
    legend_under(panels[0, 1], columns=1)
    _draw_ratio(panels[1, 0], rows, "n_times_bias", "constant", "n (Dₙ − KL) over its limit")
    _draw_ratio(panels[1, 1], rows, "n_times_gradient_bias", "gradient_bias_limit", "n |gradient bias| over its limit")
    _draw_sweep(panels[1, 2], rows)
    return Study("bias", made, COLUMNS, rows, _summary(rows), CAPTION)


COLUMNS = (
    "problem", "part_of_the_way", "group_size", "kl", "d_n", "weighted_d_n", "n_times_bias", "constant",
    "n_times_gradient_bias", "gradient_bias_limit",
)  # fmt: skip


def _row(name: str, part: float, problem: CategoricalProblem, size: int) -> tuple[object, ...]:
    """Everything about one problem at one group size; of the gradient's bias the length."""
    value, weighted = self_normalized_kl(problem, size), weighted_self_normalized_kl(problem, size)
    excess = size * (value - problem.kl)
    lengths = [float(np.linalg.norm(v)) for v in (size * gradient_bias(problem, size), gradient_bias_limit(problem))]
    return (name, part, size, problem.kl, value, weighted, excess, snkl_constant(problem), *lengths)


def _column(rows: list[tuple[object, ...]], name: str, column: str) -> Floats:
    """One column of the rows of one problem."""
    return np.array([row[COLUMNS.index(column)] for row in rows if row[0] == name], float)


def _draw_sizes(panel: Axes, name: str, problem: CategoricalProblem, value: Floats, weighted: Floats) -> None:
    """D_n and weighted D_n against n."""
    reference(panel, y=problem.kl, text="KL")
    draw(panel, SIZES, value, plain_style(0, "Dₙ, what BRAIn minimises"), markevery=1)
    draw(panel, SIZES, weighted, plain_style(2, "weighted form"), markevery=1)
    count_axis(panel)
    panel.set_ylim(bottom=0)
    describe(panel, title=name, x="group size n", y="divergence (nats)")


def _draw_ratio(panel: Axes, rows: list[tuple[object, ...]], value: str, limit: str, title: str) -> None:
    """What the theory's constant makes of n times a bias: 1 in the limit."""
    reference(panel, y=1.0)
    for index, name in enumerate(PROBLEMS):
        draw(panel, SIZES, _column(rows, name, value) / _column(rows, name, limit), plain_style(index + 1, name))
    count_axis(panel)
    describe(panel, title=title, x="group size n", y="ratio")
    legend_under(panel, columns=1)


def _draw_sweep(panel: Axes, rows: list[tuple[object, ...]]) -> None:
    """D_n in units of the KL divergence, as the policy goes from the prior to the target."""
    reference(panel, y=1.0, text="Dₙ = KL")
    divergence, value = _column(rows, "sweep", "kl"), _column(rows, "sweep", "d_n")
    for index, size in enumerate(SWEEP_SIZES):
        chosen = _column(rows, "sweep", "group_size") == size
        draw(panel, divergence[chosen], (value / divergence)[chosen], plain_style(index, f"n = {size}"))
    describe(panel, title="policy from prior to target", x="KL(target ‖ policy) (nats)", y="Dₙ / KL")
    panel.set_ylim(bottom=0)
    legend_under(panel)


def _summary(rows: list[tuple[object, ...]]) -> dict[str, object]:
    """Per problem: the KL divergence, where D_n is largest, the constants and how close the largest n comes."""
    return {"problems": {name: _setting(problem) | _findings(rows, name) for name, problem in PROBLEMS.items()}}


def _setting(problem: CategoricalProblem) -> dict[str, object]:
    """The probabilities, as fractions."""
    vectors = {"target": problem.posterior, "policy": problem.policy, "proposal": problem.proposal}
    return {name: " ".join(map(str, vector)) for name, vector in vectors.items()}


def _findings(rows: list[tuple[object, ...]], name: str) -> dict[str, object]:
    """The findings of one problem."""
    value, weighted = _column(rows, name, "d_n"), _column(rows, name, "weighted_d_n")
    divergence, largest = float(_column(rows, name, "kl")[0]), int(np.argmax(value))
    return {
        "kl": divergence,
        "largest_d_n": float(value[largest]),
        "at_group_size": SIZES[largest],
        "group_sizes_with_d_n_above_kl": [size for size, v in zip(SIZES, value, strict=True) if v > divergence],
        "d_n_is_monotone": bool(np.all(np.diff(value) > 0)),
        "weighted_is_monotone_and_below_kl": bool(np.all(np.diff(weighted) > 0) and weighted[-1] < divergence),
        "limit_of_n_times_bias": float(_column(rows, name, "constant")[0]),
        "n_times_bias_at_largest_n": float(_column(rows, name, "n_times_bias")[-1]),
        "limit_of_n_times_gradient_bias": float(_column(rows, name, "gradient_bias_limit")[0]),
        "n_times_gradient_bias_at_largest_n": float(_column(rows, name, "n_times_gradient_bias")[-1]),
    }


CAPTION = (
    "BRAIn's gradient is unbiased for D_n, not for the KL divergence that it stands for. D_n is 0 where KL is and "
    "only there, and tends to it, but it is neither a lower bound nor monotone in n: off-policy it can be five times "
    "the KL divergence, and it can exceed it on-policy too. The form weighted by the group's mean importance ratio is "
    "monotone and never above KL. Below: n (D_n - KL) and n times the length of the gradient's bias, over the "
    "constants that the theory gives for them, tend to 1, from far away where the group is small; and D_n over KL as "
    "the policy goes from the prior to the target (K = 5, proposal = prior, rewards 3, 0, -1, 1, 2): a small group "
    "sees only a part of a large divergence, and close to the target D_n is above KL for n = 4, 16 and 64."
)

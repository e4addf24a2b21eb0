"""Bridges: the shipped `brain_core`, in float64 on numpy and torch, equals the formulas of `proofs_check.oracles`.

The other claims are about formulas in rationals; a bridge says that the code which is shipped is that formula. Every
multiset of two problems is one group of a batch, so one call checks them all; groups at magnitudes where a plain
formula has no digits left are compared with 80 digits. Input that has no value must raise the right error. A NaN that
numpy makes on the way, of which it would warn, counts as wrong even where the result does not use it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import brain_core
from proofs_check import oracles
from proofs_check.bridging import (
    ALONE,
    BEYOND,
    BRANCHES,
    EVERY,
    FINITE,
    HUGE,
    LARGE,
    NEAR,
    NEAR_NORMALIZED,
    OCCUPIED,
    OFFSET,
    ONE_PAIR,
    PAIRS,
    RANKINGS,
    RAW,
    REACHED,
    REWARDS,
    ROOMY,
    SATURATED,
    SELF_NORMALIZED,
    SERIES,
    SINGLETONS,
    SKIPPED_REVERSE,
    TOLERANCE,
    WEIGHTED,
    WORST_EXCLUDED,
    Batch,
    Bridge,
    Function,
    Options,
    Refusal,
    advantage,
    check,
    every_multiset,
    goodness,
    likelihood,
    log_normalizer,
    policy,
    prior,
    proposal,
    reward,
    sample_of,
    shipped,
    target,
    wrong_input,
)
from proofs_check.claims import claim
from proofs_check.instances import random_toys

INF = math.inf


# Wrong forms


def swapped(function: Function) -> Function:
    """The first two arguments in the wrong order."""
    return lambda first, second, *rest, **options: function(second, first, *rest, **options)


def negated(function: Function) -> Function:
    """The opposite sign."""
    return lambda *arguments, **options: -function(*arguments, **options)


def off_by_one(function: Function) -> Function:
    """n − 1 in place of n."""
    return lambda first, *rest, **options: (
        function(first, *rest, **options) * (first.shape[-1] / max(first.shape[-1] - 1, 1))
    )


def without(option: str, **instead: Any) -> Callable[[Function], Function]:
    """An option that is ignored."""
    return lambda function: (
        lambda *arguments, **options: function(
            *arguments, **{**{key: value for key, value in options.items() if key != option}, **instead}
        )
    )


def in_its_place(name: str, *, passes: Sequence[int] = (0, 1), options: Sequence[str] = ()) -> Callable[..., Function]:
    """Another public function, given some of the arguments and options."""
    return lambda function: (
        lambda *arguments, **given: getattr(brain_core, name)(
            *(arguments[i] for i in passes), **{key: given[key] for key in options if key in given}
        )
    )


def reversed_group(function: Function) -> Function:
    """The group in reverse order."""
    return lambda values, **options: function(values[..., ::-1], **options)


def shares_of(log_ratio: Any, power: float) -> Any:
    """Self-normalised weights, 0 for an empty group."""
    return brain_core.self_normalized_weights(power * log_ratio, on_empty="skip")


def plain_difference(function: Function) -> Function:
    """The textbook difference of two softmaxes, right but for its digits."""

    def coefficients(target: Any, policy: Any, *, power: float = 1.0, on_empty: str = "raise") -> Any:
        """BRAIn's coefficients."""
        weight = shares_of(target, power)
        return power * (weight - weight.sum(-1)[..., None] * shares_of(policy, power))

    return coefficients


def plain_divergence(function: Function) -> Function:
    """The textbook cross-entropy less entropy, right but for its digits."""

    def divergence(target: Any, policy: Any, *, power: float = 1.0, on_empty: str = "raise") -> Any:
        """D(Y)."""
        options: dict[str, Any] = {"power": power, "on_empty": "skip"}
        return brain_core.brain_objective(target, policy, **options) - brain_core.brain_objective(
            target, target, **options
        )

    return divergence


def plain_ratios(function: Function) -> Function:
    """The textbook difference of two exponentials, right but for its digits."""
    return lambda target, policy, *, log_normalizer: (
        brain_core.dpg_coefficients(target, log_normalizer=log_normalizer)
        - brain_core.dpg_coefficients(policy, log_normalizer=0.0)
    )


def always_open(function: Function) -> Function:
    """A margin that no pair reaches."""
    return lambda values, *, margin=1.0, power=1.0: function(values, margin=margin + 1e3, power=power)


SWAPPED = {"arguments swapped": swapped}
SIGN = {"sign": negated}
OFF_BY_ONE = {"n − 1 in place of n": off_by_one}
NO_POWER = {"power ignored": without("power")}
NO_NORMALIZER = {"normaliser ignored": without("log_normalizer", log_normalizer=0.0)}

# Options

NORMALIZED: Sequence[Options] = ({"log_normalizer": log_normalizer},)
POWERS: Sequence[Options] = ({}, {"power": 2})
PREFERENCES: Sequence[Options] = (
    {"preference": lambda sample: sample.preference},
    {"preference": Fraction(9, 10), "power": 2},
    {"preference": lambda sample: Fraction(0)},
    {"preference": lambda sample: Fraction(1)},
)

IPO_POWERS: Sequence[Options] = ({"power": 1}, {"power": 3})
MARGINS: Sequence[Options] = ({}, {"margin": Fraction(1, 4)}, {"margin": Fraction(3), "power": 2})
CLIPS: Sequence[Options] = ({"clip": Fraction(41, 101)}, {"clip": Fraction(11, 101)})
"""No ratio of small numbers lies on their boundaries, where rounding would decide."""

# Input that has no value

NOT_COVERED = Refusal(brain_core.SupportError, ([0.0, 1.0, 2.0], [0.0, -INF, 1.0]))
EMPTY = Refusal(brain_core.SupportError, ([-INF, -INF], [0.0, 0.0]))
LONELY = Refusal(ValueError, ([[0.0], [0.0]], [[0.0], [0.0]]), says="needs at least 2 completions")
UNKNOWN = Refusal(ValueError, ([0.0, math.nan], [0.0, 0.0]))
COMPARED = (NOT_COVERED, EMPTY, LONELY, UNKNOWN)


def with_normalizer(*refusals: Refusal) -> tuple[Refusal, ...]:
    """The same with a normaliser of 0."""
    return tuple(refusal._replace(options={"log_normalizer": 0.0}) for refusal in refusals)


def target_only(*refusals: Refusal) -> tuple[Refusal, ...]:
    """The same without the policy."""
    return tuple(refusal._replace(arguments=refusal.arguments[:1]) for refusal in refusals)


LOG_LARGEST = math.log(sys.float_info.max)
OVERFLOW = Refusal(OverflowError, ([LOG_LARGEST, 0.0], [0.0, 0.0]))
POLICY_OVERFLOW = Refusal(OverflowError, ([0.0, 0.0], [0.0, LOG_LARGEST]))
PRODUCT_OVERFLOW = Refusal(OverflowError, ([0.0, 309.9], [400.0, 0.0]))
RANKED_EXCLUDED = Refusal(brain_core.SupportError, ([0.0, -INF, 1.0],))
NOT_A_PAIR = Refusal(ValueError, ([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]],))
NO_PREFERENCE = (
    NOT_A_PAIR._replace(options={"preference": 0.5}),
    Refusal(ValueError, ([0.0, 1.0],), {"preference": 1.5}),
    *(Refusal(ValueError, ([[0.0, 1.0]] * 2,), {"preference": [0.5, wrong]}) for wrong in (-0.5, 1.5)),
)
NO_PAIR = (NOT_A_PAIR, Refusal(ValueError, ([0.0, -INF],)))
NO_PAIR_AT_POWER = tuple(refusal._replace(options={"power": 1.0}) for refusal in NO_PAIR)
REVERSED = (
    EMPTY,
    LONELY,
    UNKNOWN,
    Refusal(brain_core.SupportError, ([0.0, -INF, 1.0], [0.0, 1.0, 2.0])),
    Refusal(brain_core.SupportError, ([[0.0, 1.0]] * 2, [[-INF, -INF], [0.0, 1.0]])),
    Refusal(brain_core.SupportError, ([[0.0, 1.0], [-INF, -INF]], [[0.0, 1.0], [0.0, 1.0]]), says="throughout a group"),
)
RANKED = (
    LONELY,
    UNKNOWN,
    *(Refusal(ValueError, pair) for pair in (([0.0, 1.0], [0.0, -INF]), ([0.0, -INF], [0.0, 1.0]))),
)
SURROGATE = tuple(
    refusal._replace(options={"clip": 0.5})
    for refusal in (
        UNKNOWN,
        POLICY_OVERFLOW,
        Refusal(ValueError, ([0.0, -INF], [0.0, 0.0])),
        Refusal(OverflowError, ([0.0, -1e200], [0.0, 300.0])),
    )
)
IMPOSSIBLE = Refusal(brain_core.SupportError, ([0.0, 0.0], [0.0, -INF]))

BOTH = (target, policy)
TABLE = (
    Bridge(
        "brain_coefficients",
        "power · (α̂ − β̂)",
        "eq. (12)",
        oracles.brain,
        BOTH,
        (*SELF_NORMALIZED, NEAR),
        {
            **SWAPPED,
            **OFF_BY_ONE,
            **NO_POWER,
            "no baseline": in_its_place("snis_coefficients", passes=[0]),
            "plain difference": plain_difference,
        },
        POWERS,
        refusals=COMPARED,
    ),
    Bridge(
        "snis_coefficients",
        "α̂",
        "eq. (7)",
        oracles.snis,
        (target,),
        (*SELF_NORMALIZED, SINGLETONS, LARGE),
        {**SIGN, **OFF_BY_ONE},
        refusals=target_only(EMPTY, UNKNOWN),
    ),
    Bridge(
        "weighted_brain_coefficients",
        "Ā (α̂ − β̂)",
        "docs/theory.md T8",
        oracles.weighted_brain,
        BOTH,
        WEIGHTED,
        {**SWAPPED, **OFF_BY_ONE, **NO_NORMALIZER, "no weight": in_its_place("brain_coefficients")},
        NORMALIZED,
        refusals=with_normalizer(*COMPARED, OVERFLOW),
    ),
    Bridge(
        "dpg_coefficients",
        "α / n",
        "eq. (4)",
        oracles.dpg,
        (target,),
        (*RAW, SINGLETONS),
        {**SIGN, **OFF_BY_ONE, **NO_NORMALIZER},
        NORMALIZED,
        refusals=with_normalizer(*target_only(UNKNOWN, OVERFLOW)),
    ),
    Bridge(
        "gdc_coefficients",
        "α / n",
        "docs/theory.md T8",
        oracles.dpg,
        (target,),
        (*RAW, SINGLETONS),
        {**SIGN, **OFF_BY_ONE, **NO_NORMALIZER},
        NORMALIZED,
        refusals=with_normalizer(*target_only(UNKNOWN, OVERFLOW)),
    ),
    Bridge(
        "gdcpp_coefficients",
        "(α − β) / n",
        "docs/theory.md T8",
        oracles.gdcpp,
        BOTH,
        (*RAW, SINGLETONS, NEAR_NORMALIZED),
        {
            **SWAPPED,
            **OFF_BY_ONE,
            **NO_NORMALIZER,
            "plain difference": plain_ratios,
            "no baseline": in_its_place("dpg_coefficients", passes=[0], options=["log_normalizer"]),
        },
        NORMALIZED,
        refusals=with_normalizer(NOT_COVERED, UNKNOWN, OVERFLOW, POLICY_OVERFLOW),
    ),
    Bridge(
        "importance_weighted_rloo_coefficients",
        "(α_i − β_i · mean of the others' α) / n",
        "docs/theory.md T8",
        oracles.importance_weighted_rloo,
        BOTH,
        (*RAW, HUGE),
        {
            **SWAPPED,
            **OFF_BY_ONE,
            **NO_NORMALIZER,
            "baseline 1": in_its_place("gdcpp_coefficients", options=["log_normalizer"]),
        },
        NORMALIZED,
        refusals=with_normalizer(NOT_COVERED, LONELY, UNKNOWN, OVERFLOW, POLICY_OVERFLOW, PRODUCT_OVERFLOW),
    ),
    Bridge(
        "rloo_coefficients",
        "(r_i − mean of the others' r) / n",
        "docs/theory.md T11",
        oracles.rloo,
        (reward,),
        RAW,
        {**SIGN, **OFF_BY_ONE},
        refusals=target_only(LONELY, UNKNOWN),
    ),
    Bridge(
        "argmax_brain_coefficients",
        "power · (uniform on the largest α − β̂)",
        "Theorem 6.1 (5.1 or 5.2 in the later version)",
        oracles.argmax_brain,
        BOTH,
        (*SELF_NORMALIZED, LARGE),
        {**SWAPPED, **OFF_BY_ONE, **NO_POWER, "softmax": in_its_place("brain_coefficients", options=["on_empty"])},
        POWERS,
        refusals=(EMPTY, LONELY, UNKNOWN, Refusal(brain_core.SupportError, ([1.0, 0.0], [-INF, 0.0]))),
    ),
    Bridge(
        "dpo_coefficients",
        "power · (1 − β̂₁) · (1, −1)",
        "Theorem 6.1 (5.1 or 5.2 in the later version)",
        oracles.dpo,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER},
        POWERS,
        refusals=(NOT_A_PAIR, Refusal(ValueError, ([0.0, -INF],))),
    ),
    Bridge(
        "soft_label_dpo_coefficients",
        "power · (preference − β̂₁) · (1, −1)",
        "docs/theory.md T11",
        oracles.soft_label_dpo,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER, "hard label": without("preference", preference=1.0)},
        PREFERENCES,
        refusals=NO_PREFERENCE,
    ),
    Bridge(
        "plackett_luce_coefficients",
        "power · Σ over stages (one-hot at the choice − β̂ among those that remain)",
        "docs/theory.md T11",
        oracles.plackett_luce,
        (policy,),
        (RANKINGS, ONE_PAIR, WORST_EXCLUDED, LARGE),
        {**SIGN, **OFF_BY_ONE, **NO_POWER},
        POWERS,
        refusals=(RANKED_EXCLUDED, Refusal(ValueError, ([0.0],))),
    ),
    Bridge(
        "ipo_coefficients",
        "(1/power − 2 Δ) · (1, −1)",
        "arXiv 2310.12036, eq. (17)",
        oracles.ipo,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, "power ignored": without("power", power=2.0), "DPO": in_its_place("dpo_coefficients", passes=[0])},
        IPO_POWERS,
        refusals=NO_PAIR_AT_POWER,
    ),
    Bridge(
        "hinge_coefficients",
        "power · (1, −1) while power · Δ < margin",
        "arXiv 2305.10425, 2309.06657",
        oracles.hinge,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER, "margin ignored": without("margin"), "never satisfied": always_open},
        MARGINS,
        refusals=NO_PAIR,
    ),
    Bridge(
        "nca_coefficients",
        "power · (α̂ σ(−R) − σ(R) / n)",
        "arXiv 2402.05369",
        oracles.nca,
        BOTH,
        (*WEIGHTED, SATURATED, LARGE),
        {
            **SWAPPED,
            **SIGN,
            **OFF_BY_ONE,
            **NO_POWER,
            "InfoNCA": in_its_place("brain_coefficients", options=["on_empty"]),
        },
        POWERS,
        refusals=COMPARED,
    ),
    Bridge(
        "exo_coefficients",
        "power · β̂ (δ − Σ β̂ δ), δ = log(α̂ / β̂)",
        "arXiv 2402.00856",
        oracles.exo,
        BOTH,
        (EVERY, ALONE, REACHED, SKIPPED_REVERSE, NEAR),
        {
            **SWAPPED,
            **SIGN,
            **OFF_BY_ONE,
            **NO_POWER,
            "BRAIn": in_its_place("brain_coefficients", options=["on_empty"]),
        },
        POWERS,
        refusals=REVERSED,
    ),
    Bridge(
        "rank_hinge_coefficients",
        "worse ones that the policy prefers to it, less better ones that it is preferred to",
        "arXiv 2304.05302",
        oracles.rank_hinge,
        (reward, policy),
        FINITE,
        {**SWAPPED, **SIGN, **OFF_BY_ONE},
        refusals=RANKED,
    ),
    Bridge(
        "group_relative_advantage",
        "(r − r̄) / s",
        "arXiv 2402.03300",
        oracles.group_relative_advantage,
        (reward,),
        (*RAW, REWARDS),
        {**SIGN, **OFF_BY_ONE, "scaled or not": lambda f: lambda r, *, is_scaled=True: f(r, is_scaled=not is_scaled)},
        ({}, {"is_scaled": False}),
        refusals=target_only(LONELY, UNKNOWN),
    ),
    Bridge(
        "clipped_surrogate_coefficients",
        "ρ A, 0 where the clip is active",
        "arXiv 1707.06347, eq. (7)",
        oracles.clipped_surrogate,
        (advantage, policy),
        (*RAW, SINGLETONS, BEYOND, ROOMY),
        {**SWAPPED, **SIGN, **OFF_BY_ONE, "never clipped": without("clip", clip=1e9)},
        CLIPS,
        refusals=SURROGATE,
    ),
    Bridge(
        "best_of_n_coefficients",
        "uniform on the largest reward",
        "docs/theory.md T11",
        oracles.best_of_n,
        (reward,),
        (*RAW, SINGLETONS),
        {**SIGN, **OFF_BY_ONE, "softmax": in_its_place("snis_coefficients", passes=[0])},
        refusals=target_only(EMPTY, UNKNOWN),
    ),
    Bridge(
        "brain_objective",
        "−Σ α̂ log β̂",
        "eq. (25)",
        oracles.brain_objective,
        BOTH,
        (*SELF_NORMALIZED, LARGE),
        {**SWAPPED, **SIGN, **NO_POWER, "entropy": in_its_place("self_normalized_kl", options=["power", "on_empty"])},
        POWERS,
        oracles.brain,
        refusals=COMPARED,
    ),
    Bridge(
        "snis_objective",
        "−Σ α̂ log β",
        "eq. (5)",
        oracles.snis_objective,
        BOTH,
        (*SELF_NORMALIZED, SINGLETONS, LARGE),
        {**SWAPPED, **SIGN, "β̂ in place of β": in_its_place("brain_objective", options=["on_empty"])},
        slope=oracles.snis,
        refusals=(NOT_COVERED, EMPTY, UNKNOWN),
    ),
    Bridge(
        "weighted_brain_objective",
        "Ā · Σ α̂ log(α̂ / β̂)",
        "docs/theory.md T4c, T8",
        oracles.weighted_brain_objective,
        BOTH,
        WEIGHTED,
        {**SWAPPED, **SIGN, **NO_NORMALIZER, "no weight": in_its_place("self_normalized_kl", options=["on_empty"])},
        NORMALIZED,
        oracles.weighted_brain,
        with_normalizer(*COMPARED, OVERFLOW),
    ),
    Bridge(
        "dpg_objective",
        "−Σ α log β / n",
        "eq. (4)",
        oracles.dpg_objective,
        BOTH,
        (*RAW, SINGLETONS),
        {**SWAPPED, **SIGN, **OFF_BY_ONE, **NO_NORMALIZER},
        NORMALIZED,
        oracles.dpg,
        with_normalizer(NOT_COVERED, UNKNOWN, OVERFLOW),
    ),
    Bridge(
        "gdc_objective",
        "−Σ α log β / n",
        "docs/theory.md T8",
        oracles.dpg_objective,
        BOTH,
        (*RAW, SINGLETONS),
        {**SWAPPED, **SIGN, **OFF_BY_ONE, **NO_NORMALIZER},
        NORMALIZED,
        oracles.dpg,
        with_normalizer(NOT_COVERED, UNKNOWN, OVERFLOW),
    ),
    Bridge(
        "gdcpp_objective",
        "Σ [α log(α / β) − α + β] / n",
        "docs/theory.md T8",
        oracles.gdcpp_objective,
        BOTH,
        (*RAW, SINGLETONS, NEAR_NORMALIZED, SERIES, BRANCHES),
        {
            **SWAPPED,
            **SIGN,
            **OFF_BY_ONE,
            "no mass terms": in_its_place("dpg_objective", options=["log_normalizer"]),
        },
        NORMALIZED,
        oracles.gdcpp,
        with_normalizer(NOT_COVERED, UNKNOWN, OVERFLOW, POLICY_OVERFLOW),
    ),
    Bridge(
        "importance_weighted_rloo_objective",
        "Σ [β · mean of the others' α − α log β] / n",
        "docs/theory.md T8",
        oracles.importance_weighted_rloo_objective,
        BOTH,
        (*RAW, HUGE),
        {
            **SWAPPED,
            **SIGN,
            **OFF_BY_ONE,
            "no baseline": in_its_place("dpg_objective", options=["log_normalizer"]),
        },
        NORMALIZED,
        oracles.importance_weighted_rloo,
        with_normalizer(NOT_COVERED, LONELY, UNKNOWN, OVERFLOW, POLICY_OVERFLOW, PRODUCT_OVERFLOW),
    ),
    Bridge(
        "rloo_objective",
        "−Σ (r − r̄) log β / (n − 1)",
        "docs/theory.md T11",
        oracles.rloo_objective,
        (reward, policy),
        (*FINITE, OFFSET),
        {**SIGN, **OFF_BY_ONE, "α̂ in place of the reward": in_its_place("snis_objective")},
        slope=oracles.rloo,
        refusals=(LONELY, UNKNOWN, Refusal(ValueError, ([0.0, 1.0], [0.0, -INF]))),
    ),
    Bridge(
        "argmax_brain_objective",
        "−log β̂ of the largest α, the mean over those that tie",
        "Theorem 6.1 (5.1 or 5.2 in the later version)",
        oracles.argmax_brain_objective,
        BOTH,
        (*SELF_NORMALIZED, LARGE),
        {**SWAPPED, **SIGN, **NO_POWER, "softmax": in_its_place("brain_objective", options=["on_empty"])},
        POWERS,
        oracles.argmax_brain,
        (EMPTY, LONELY, UNKNOWN, Refusal(brain_core.SupportError, ([1.0, 0.0], [-INF, 0.0]))),
    ),
    Bridge(
        "dpo_objective",
        "−log β̂₁ of a pair",
        "Theorem 6.1 (5.1 or 5.2 in the later version)",
        oracles.dpo_objective,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER},
        POWERS,
        oracles.dpo,
        (NOT_A_PAIR, Refusal(ValueError, ([0.0, -INF],))),
    ),
    Bridge(
        "soft_label_dpo_objective",
        "−preference · log β̂₁ − (1 − preference) · log β̂₂",
        "docs/theory.md T11",
        oracles.soft_label_dpo_objective,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER, "hard label": without("preference", preference=1.0)},
        PREFERENCES,
        oracles.soft_label_dpo,
        NO_PREFERENCE,
    ),
    Bridge(
        "plackett_luce_objective",
        "−Σ over stages log β̂ of the choice among those that remain",
        "docs/theory.md T11",
        oracles.plackett_luce_objective,
        (policy,),
        (RANKINGS, ONE_PAIR, WORST_EXCLUDED, LARGE),
        {**SIGN, **NO_POWER, "the worst listed first": reversed_group},
        POWERS,
        oracles.plackett_luce,
        (RANKED_EXCLUDED, Refusal(ValueError, ([0.0],))),
    ),
    Bridge(
        "ipo_objective",
        "(Δ − 1/(2 · power))²",
        "arXiv 2310.12036, eq. (17)",
        oracles.ipo_objective,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, "power ignored": without("power", power=2.0), "DPO": in_its_place("dpo_objective", passes=[0])},
        IPO_POWERS,
        oracles.ipo,
        NO_PAIR_AT_POWER,
    ),
    Bridge(
        "hinge_objective",
        "max(0, margin − power · Δ)",
        "arXiv 2305.10425, 2309.06657",
        oracles.hinge_objective,
        (policy,),
        (PAIRS, ONE_PAIR),
        {**SIGN, **NO_POWER, "margin ignored": without("margin"), "never satisfied": always_open},
        MARGINS,
        oracles.hinge,
        NO_PAIR,
    ),
    Bridge(
        "nca_objective",
        "−Σ [α̂ log σ(R) + log σ(−R) / n]",
        "arXiv 2402.05369",
        oracles.nca_objective,
        BOTH,
        (*WEIGHTED, SATURATED, LARGE),
        {**SWAPPED, **SIGN, **OFF_BY_ONE, **NO_POWER, "InfoNCA": in_its_place("brain_objective", options=["on_empty"])},
        POWERS,
        oracles.nca,
        COMPARED,
    ),
    Bridge(
        "exo_objective",
        "Σ β̂ log(β̂ / α̂)",
        "arXiv 2402.00856",
        oracles.exo_objective,
        BOTH,
        (EVERY, ALONE, REACHED, SKIPPED_REVERSE),
        {
            **SWAPPED,
            **SIGN,
            **OFF_BY_ONE,
            **NO_POWER,
            "forward": in_its_place("self_normalized_kl", options=["on_empty"]),
        },
        POWERS,
        oracles.exo,
        REVERSED,
    ),
    Bridge(
        "rank_hinge_objective",
        "Σ max(0, p_i − p_j) over r_i < r_j",
        "arXiv 2304.05302",
        oracles.rank_hinge_objective,
        (reward, policy),
        FINITE,
        {**SWAPPED, **SIGN, **OFF_BY_ONE},
        slope=oracles.rank_hinge,
        refusals=RANKED,
    ),
    Bridge(
        "clipped_surrogate_objective",
        "−Σ min(ρ A, clipped ρ · A)",
        "arXiv 1707.06347, eq. (7)",
        oracles.clipped_surrogate_objective,
        (advantage, policy),
        (*RAW, SINGLETONS, BEYOND, ROOMY),
        {**SWAPPED, **SIGN, **OFF_BY_ONE, "never clipped": without("clip", clip=1e9)},
        CLIPS,
        oracles.clipped_surrogate,
        SURROGATE,
    ),
    Bridge(
        "best_of_n_objective",
        "−log β of the largest reward, the mean over those that tie",
        "docs/theory.md T11",
        oracles.best_of_n_objective,
        (reward, policy),
        (*FINITE, SINGLETONS, BEYOND),
        {**SWAPPED, **SIGN, "softmax": in_its_place("snis_objective")},
        slope=oracles.best_of_n,
        refusals=(EMPTY, UNKNOWN, Refusal(brain_core.SupportError, ([1.0, 0.0], [-INF, 0.0]))),
    ),
    Bridge(
        "self_normalized_kl",
        "Σ α̂ log(α̂ / β̂)",
        "eq. (14)",
        oracles.self_normalized_kl,
        BOTH,
        (*SELF_NORMALIZED, NEAR),
        {
            **SWAPPED,
            **SIGN,
            **NO_POWER,
            "plain difference": plain_divergence,
            "without the entropy": in_its_place("brain_objective", options=["power", "on_empty"]),
        },
        POWERS,
        oracles.brain,
        COMPARED,
    ),
    Bridge(
        "total_variation",
        "½ Σ |α̂ − β̂|",
        "docs/theory.md T6",
        oracles.total_variation,
        BOTH,
        (*SELF_NORMALIZED, NEAR),
        {**SIGN, **OFF_BY_ONE, **NO_POWER},
        POWERS,
        refusals=COMPARED,
    ),
    Bridge(
        "self_normalized_weights",
        "α̂, or β̂",
        "eq. (6), (11)",
        oracles.snis,
        (target,),
        (*SELF_NORMALIZED, SINGLETONS, LARGE),
        {**SIGN, **OFF_BY_ONE},
        refusals=target_only(EMPTY, UNKNOWN),
    ),
    Bridge(
        "effective_sample_size",
        "1 / Σ α̂² (Kish), or exp of the entropy of α̂",
        "docs/theory.md T4g",
        oracles.effective_sample_size,
        (target,),
        (*SELF_NORMALIZED, SINGLETONS, LARGE),
        {**SIGN, "the other kind": without("kind", kind="kish")},
        ({"kind": "kish"}, {"kind": "perplexity"}),
        refusals=target_only(EMPTY, UNKNOWN),
    ),
    Bridge(
        "weight_entropy",
        "−Σ α̂ log α̂",
        "docs/theory.md T4g",
        oracles.weight_entropy,
        (target,),
        (EVERY, ALONE, OCCUPIED, SINGLETONS, LARGE),
        {**SIGN, **OFF_BY_ONE},
        refusals=target_only(EMPTY, UNKNOWN),
    ),
    Bridge(
        "likelihood_drift",
        "mean of log q − log q'",
        "docs/theory.md T1",
        oracles.likelihood_drift,
        (likelihood, proposal),
        (*RAW, SINGLETONS),
        {**SWAPPED, **OFF_BY_ONE},
        refusals=(IMPOSSIBLE, UNKNOWN),
    ),
    Bridge(
        "target_log_ratio",
        "log (p · g / q')",
        "eq. (6)",
        oracles.target_log_ratio,
        (prior, proposal, goodness),
        (*RAW, SINGLETONS),
        {**SWAPPED, **SIGN},
        refusals=(Refusal(brain_core.SupportError, ([0.0], [-INF], [0.0])), Refusal(ValueError, ([INF], [0.0], [0.0]))),
    ),
    Bridge(
        "policy_log_ratio",
        "log (q / q')",
        "eq. (11)",
        oracles.policy_log_ratio,
        (likelihood, proposal),
        (*RAW, SINGLETONS),
        SWAPPED,
        refusals=(IMPOSSIBLE, UNKNOWN),
    ),
    Bridge(
        "bradley_terry_log_goodness",
        "r / temperature = log g up to a constant",
        "eq. (19)",
        oracles.log_goodness,
        (lambda sample: [3 * value for value in goodness(sample)],),
        (*RAW, SINGLETONS),
        {**SIGN, "temperature ignored": without("temperature")},
        ({"temperature": 3.0},),
        refusals=target_only(UNKNOWN),
    ),
    Bridge(
        "logistic_log_goodness",
        "log σ(r) = log (g / (1 + g)) where r = log g",
        "eq. (15)",
        oracles.log_chance,
        (goodness,),
        (*RAW, SINGLETONS),
        SIGN,
        refusals=target_only(UNKNOWN),
    ),
)

BRIDGES = {
    bridge.name: dataclasses.replace(bridge, refusals=(*bridge.refusals, *wrong_input(bridge))) for bridge in TABLE
}
"""By name; what no function takes is refused by each."""


ENUMERATED = "test_exact_enumeration.py::test_coefficients_of_every_group_equal_the_exact_ones"
PEERS = "test_peers.py::"
GOODNESS = "test_goodness_and_diagnostics.py::"
TESTS = {
    "brain_coefficients": ENUMERATED,
    "snis_coefficients": ENUMERATED,
    "weighted_brain_coefficients": ENUMERATED,
    "dpg_coefficients": ENUMERATED,
    "gdc_coefficients": "test_exact_enumeration.py::test_gdc_has_the_coefficients_of_dpg_on_policy",
    "gdcpp_coefficients": ENUMERATED,
    "importance_weighted_rloo_coefficients": ENUMERATED,
    "rloo_coefficients": "test_exact_enumeration.py::test_rloo_subtracts_the_mean_of_the_others",
    "argmax_brain_coefficients": ENUMERATED,
    "plackett_luce_coefficients": ENUMERATED,
    "nca_coefficients": ENUMERATED,
    "exo_coefficients": ENUMERATED,
    "clipped_surrogate_coefficients": PEERS + "test_surrogate_is_clipped_on_the_side_that_the_advantage_favours",
    "ipo_coefficients": PEERS + "test_ipo_vanishes_exactly_where_the_lead_is_half_the_inverse_power",
    "hinge_coefficients": PEERS + "test_hinge_is_shut_at_the_margin_itself",
    "rank_hinge_coefficients": PEERS + "test_ranking_loss_counts_the_pairs_in_the_wrong_order",
    "group_relative_advantage": PEERS + "test_advantage_has_mean_0_and_sample_deviation_1",
    "best_of_n_coefficients": PEERS + "test_best_of_n_shares_its_weight_among_those_that_tie",
    "self_normalized_kl": "test_precision.py::test_divergence_agrees_with_80_digits_relative_to_itself",
    "total_variation": GOODNESS + "test_total_variation_of_known_weights",
    "effective_sample_size": GOODNESS + "test_effective_sample_sizes_of_known_weights",
    "likelihood_drift": GOODNESS + "test_drift_sees_what_the_divergence_does_not",
    "target_log_ratio": GOODNESS + "test_log_ratios_are_differences",
    "policy_log_ratio": GOODNESS + "test_log_ratios_are_differences",
    "bradley_terry_log_goodness": GOODNESS + "test_bradley_terry_goodness_is_reward_over_temperature",
    "logistic_log_goodness": GOODNESS + "test_logistic_goodness_keeps_full_relative_precision",
}
"""The test of the suite that also holds a function; the others' is that of all objectives."""


def claim_id(name: str) -> str:
    """`bridge-brain` for `brain_coefficients`, `bridge-brain-objective` for `brain_objective`."""
    return "bridge-" + name.removesuffix("_coefficients").replace("_", "-")


def tests_of(bridge: Bridge) -> tuple[str, ...]:
    """The tests of the suite that also hold it."""
    known = TESTS.get(bridge.name, "test_objectives.py::test_torch_gradient_of_an_objective_is_minus_the_coefficients")
    return (f"tests/brain_core/{known}",) if bridge.name in TESTS or bridge.slope else ()


@functools.cache
def random_groups() -> Batch:
    """Every multiset of random problems."""
    problems = random_toys(20, seed=7, sizes=[4])
    return Batch([sample_of(problem, group) for problem in problems for group in every_multiset(problem, 5)], (20, 56))


def check_at_random(bridge: Bridge, subject: Function) -> None:
    """Raise Refuted unless a function has the values and gradients of a bridge on random problems."""
    check(dataclasses.replace(bridge, batches=[random_groups()], refusals=()), subject)


def _register(bridge: Bridge) -> None:
    """Register the claim of a bridge."""
    function = shipped(bridge.name)
    gradient = "; its torch gradient is minus the exact coefficients" if bridge.slope else ""
    claim(
        claim_id(bridge.name),
        f"brain_core.{bridge.name} is {bridge.formula}, on numpy and torch{gradient}",
        source=bridge.source,
        method="exact rationals on every multiset; 80 digits at large magnitudes; no NaN on the way; errors",
        case=f"{sum(len(batch.samples) for batch in bridge.batches)} groups, n ≤ 5",
        subject=function,
        mutants={name: wrong(function) for name, wrong in bridge.mutants.items()},
        tolerance=TOLERANCE,
        code=(f"brain_core.{bridge.name}",),
        tests=tests_of(bridge),
        slow=functools.partial(check_at_random, bridge) if EVERY in bridge.batches else None,
    )(functools.partial(check, bridge))


for _bridge in BRIDGES.values():
    _register(_bridge)

"""The methods: what a gradient step does with groups of completions, and where these come from.

Of most methods the gradient of a group is Σᵢ cᵢ ∇ log q_θ(yᵢ|x): a method is then a function from what is known of the
groups to c, and a rule for its data. A table in `docs/methods.md` says when to use which, what it costs and what is
wrong with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch

import brain_core
from llm.config import AlignConfig
from llm.errors import UserError
from llm.plugins import load_callable
from llm.records import ScoredGroup
from llm.streams import stream
from llm.token_methods import GRPO, PPO, QUARK, TokenMethod

LogGoodness = Callable[[torch.Tensor], torch.Tensor]
RSO_CANDIDATES = 8
"""Candidates for each completion that rejection sampling accepts, as in its source (64 for 8)."""


class GroupTensors(NamedTuple):
    """What coefficients are computed from: B groups of G completions, float64.

    Attributes:
        groups: The groups.
        log_policy: (B, G) log q_θ(y|x), nats, detached.
        log_prior: (B, G) log p(y|x), nats.
        log_proposal: (B, G) log q'(y|x), nats.
        reward: (B, G) r(x, y).
        log_goodness: (B, G) log p(G=1|y,x), nats, up to a constant per group.
        target: (B, G) log α = log p + log-goodness − log q', nats, up to a constant per group (eq. 6).
        ratio: (B, G) log β = log q_θ − log q', nats (eq. 11).
    """

    groups: Sequence[ScoredGroup]
    log_policy: torch.Tensor
    log_prior: torch.Tensor
    log_proposal: torch.Tensor
    reward: torch.Tensor
    log_goodness: torch.Tensor
    target: torch.Tensor
    ratio: torch.Tensor

    @property
    def over_prior(self) -> torch.Tensor:
        """(B, G) log q_θ − log p, nats: the implicit reward of DPO and its relatives."""
        return self.log_policy - self.log_prior

    @property
    def lengths(self) -> torch.Tensor:
        """(B, G) tokens of each completion."""
        return torch.tensor([[len(c.token_ids) for c in group.completions] for group in self.groups]).double()


Coefficients = Callable[[GroupTensors, AlignConfig], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way to align.

    Attributes:
        source: Where its gradient is defined.
        coefficients: Gives c (B, G), which multiply ∇ log q_θ(y|x) in ascent; None for a method of tokens.
        proposal: What samples a phase's completions: the current policy; the prior; the last policy that came closer
            to the target; or nothing, where they are given.
        buffer: Which phases a gradient step draws from unless `--buffer` says it: all, or the latest.
        heeds: The settings that it uses beside those that all methods do.
        is_paired: Whether it uses a group in two halves or in pairs, so that n must be even.
        uses_goodness: Whether `--goodness` and `--temperature` matter; else only rewards or their order do.
        tokens: Gives the loss of a method of tokens.
    """

    source: str
    coefficients: Coefficients | None
    proposal: Literal["policy", "prior", "improving", "given"]
    buffer: Literal["all", "latest"] = "all"
    heeds: tuple[str, ...] = ()
    is_paired: bool = False
    uses_goodness: bool = True
    tokens: TokenMethod | None = None


def brain(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − β̂, eq. (12)."""
    return brain_core.brain_coefficients(g.target, g.ratio, on_empty="skip")


def brain_argmax(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """1 for the largest α, less β̂ of the power `dpo_beta`: theorem 6.1."""
    return brain_core.argmax_brain_coefficients(g.target, g.ratio, power=config.dpo_beta, on_empty="skip")


def snis(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ alone, eq. (7): no baseline."""
    return brain_core.snis_coefficients(g.target, on_empty="skip")


def brain_weighted(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """Ā/Ẑ · (α̂ − β̂) of each half, whose Ẑ is the other half's (T4c)."""

    def coefficients(target: torch.Tensor, ratio: torch.Tensor, log_normalizer: torch.Tensor) -> torch.Tensor:
        return brain_core.weighted_brain_coefficients(target, ratio, log_normalizer=log_normalizer, on_empty="skip")

    return _cross_fitted(g, coefficients)


def dpg(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α/Ẑ, eq. (4), Ẑ from the other half of the group; also GDC's, which differs in its proposal."""

    def coefficients(target: torch.Tensor, ratio: torch.Tensor, log_normalizer: torch.Tensor) -> torch.Tensor:
        return brain_core.dpg_coefficients(target, log_normalizer=log_normalizer)

    return _cross_fitted(g, coefficients)


def gdcpp(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α/Ẑ − β, DPG with a baseline, Ẑ from the other half of the group (T8)."""

    def coefficients(target: torch.Tensor, ratio: torch.Tensor, log_normalizer: torch.Tensor) -> torch.Tensor:
        return brain_core.gdcpp_coefficients(target, ratio, log_normalizer=log_normalizer)

    return _cross_fitted(g, coefficients)


def dpo(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """DPO's on pairs whose winner has the larger reward; of equal ones neither wins (label 1/2)."""
    return _preferred(g, config, torch.ones((), dtype=torch.float64))


def cdpo(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """DPO's with labels that are wrong with probability `label_smoothing`."""
    return _preferred(g, config, torch.tensor(1 - config.label_smoothing, dtype=torch.float64))


def dpo_iw(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """α̂ − β̂ within pairs: the paper's "+IW", eq. (22)."""
    return _mean_over_pairs(brain_core.brain_coefficients(_pairs(g.target), _pairs(g.ratio), on_empty="skip"))


def ipo(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """The squared distance of the pair's log-ratio from 1/(2 dpo_beta)."""
    return _winner_first(g, lambda pair: brain_core.ipo_coefficients(pair, power=config.dpo_beta))


def plackett_luce(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """The likelihood of the ranking by reward; equal rewards rank in the order of sampling, which is random."""
    order = torch.argsort(g.reward, dim=-1, descending=True, stable=True)
    ranked = brain_core.plackett_luce_coefficients(g.over_prior.gather(-1, order), power=config.dpo_beta)
    return torch.zeros_like(ranked).scatter(-1, order, ranked)


def rso(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """A pair loss on what rejection sampling accepts of the group, 0 for the rest."""
    goodness = g.log_goodness.numpy()
    chosen = torch.tensor([_accepted(group, row, config) for group, row in zip(g.groups, goodness, strict=True)])
    part = g._replace(reward=g.reward.gather(-1, chosen), log_policy=g.log_policy.gather(-1, chosen))
    part = part._replace(log_prior=g.log_prior.gather(-1, chosen))
    if config.rso_loss == "sigmoid":
        found = dpo(part, config)
    else:
        found = _winner_first(part, lambda pair: brain_core.hinge_coefficients(pair, power=config.dpo_beta))
    return torch.zeros_like(g.reward).scatter(-1, chosen, found)


def slic(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """A hinge on log q_θ of pairs, and the cross-entropy of the group's best as regularisation."""
    pairs = _winner_first(
        g._replace(log_prior=torch.zeros_like(g.log_prior)),
        lambda pair: brain_core.hinge_coefficients(pair, margin=config.slic_margin),
    )
    return pairs + config.sft_weight * brain_core.best_of_n_coefficients(g.reward)


def rrhf(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """A hinge on the length-normalised log-probs of every two, and the cross-entropy of the group's best."""
    ranks = brain_core.rank_hinge_coefficients(g.reward, g.log_policy / g.lengths) / g.lengths
    return ranks + config.sft_weight * brain_core.best_of_n_coefficients(g.reward)


def best_of_n(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """The likelihood of the group's best."""
    return brain_core.best_of_n_coefficients(g.reward)


def infonca(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """BRAIn of the power `dpo_beta` with the prior as reference (T11)."""
    return brain_core.brain_coefficients(g.log_goodness, g.over_prior, power=config.dpo_beta, on_empty="skip")


def nca(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """Noise contrast of each completion by itself; weights and implicit rewards to the power `dpo_beta`."""
    goodness, power = config.dpo_beta * g.log_goodness, config.dpo_beta
    return brain_core.nca_coefficients(goodness, g.over_prior, power=power, on_empty="skip")


def exo(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """The reverse divergence KL(β̂‖α̂), both to the power `dpo_beta`, with the prior as reference."""
    goodness, power = config.dpo_beta * g.log_goodness, config.dpo_beta
    return brain_core.exo_coefficients(goodness, g.over_prior, power=power, on_empty="skip")


def rloo(g: GroupTensors, config: AlignConfig) -> torch.Tensor:
    """REINFORCE against the mean of the others' reward with its KL penalty; sequences clipped as PPO clips tokens."""
    advantage = brain_core.rloo_coefficients(g.target)
    return brain_core.clipped_surrogate_coefficients(advantage, g.ratio, clip=config.clip)


class _Methods(dict[str, Method]):
    """Methods by name; `package.module:function` is a user's own coefficients on BRAIn's data."""

    def __missing__(self, name: str) -> Method:
        if ":" in name:
            coefficients = partial(_users_coefficients, name, load_callable(name, option="--method"))
            return Method(f"the function {name}", coefficients, "policy", heeds=tuple(method_settings()))
        close = difflib.get_close_matches(name, self, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"--method {name}: no such method{hint}. There are: {', '.join(self)}; or package.module:function."
        )


METHODS = _Methods(
    {
        "brain": Method("eq. (12)", brain, "policy"),
        "brain-weighted": Method("T4c", brain_weighted, "policy", is_paired=True),
        "brain-argmax": Method("theorem 6.1", brain_argmax, "policy", heeds=("dpo_beta",)),
        "snis": Method("eq. (7)", snis, "policy"),
        "dpo-sft": Method("section 6", dpo, "prior", heeds=("dpo_beta",), is_paired=True, uses_goodness=False),
        "dpo-sft-iw": Method("eq. (22)", dpo_iw, "prior", is_paired=True),
        "dpo-sft-iw-n": Method("section 9.2", brain, "prior"),
        "dpo": Method(
            "arXiv 2305.18290, eq. 7", dpo, "given", heeds=("dpo_beta",), is_paired=True, uses_goodness=False
        ),
        "dpo-pl": Method(
            "arXiv 2305.18290, appendix A.3", plackett_luce, "prior", heeds=("dpo_beta",), uses_goodness=False
        ),
        "ipo": Method(
            "arXiv 2310.12036, eq. 17", ipo, "prior", heeds=("dpo_beta",), is_paired=True, uses_goodness=False
        ),
        "cdpo": Method(
            "arXiv 2305.18290 with smoothed labels",
            cdpo,
            "prior",
            heeds=("dpo_beta", "label_smoothing"),
            is_paired=True,
            uses_goodness=False,
        ),
        "rso": Method("arXiv 2309.06657, algorithm 1", rso, "prior", heeds=("dpo_beta", "rso_accepted", "rso_loss")),
        "slic": Method(
            "arXiv 2305.10425", slic, "prior", heeds=("slic_margin", "sft_weight"), is_paired=True, uses_goodness=False
        ),
        "rrhf": Method("arXiv 2304.05302", rrhf, "prior", heeds=("sft_weight",), uses_goodness=False),
        "dpg": Method("eq. (4)", dpg, "policy", is_paired=True),
        "gdc": Method("arXiv 2012.11635", dpg, "improving", buffer="latest", is_paired=True),
        "gdcpp": Method("arXiv 2206.00761", gdcpp, "policy", is_paired=True),
        "infonca": Method("arXiv 2402.05369", infonca, "prior", heeds=("dpo_beta",)),
        "nca": Method("arXiv 2402.05369", nca, "prior", heeds=("dpo_beta",)),
        "exo": Method("arXiv 2402.00856", exo, "prior", heeds=("dpo_beta",)),
        "rloo": Method("arXiv 2402.14740", rloo, "policy", buffer="latest", heeds=("clip",)),
        "grpo": Method(
            "arXiv 2402.03300, eqs. 3 and 4",
            None,
            "policy",
            buffer="latest",
            heeds=("clip", "kl_weight"),
            tokens=GRPO,
            uses_goodness=False,
        ),
        "ppo": Method(
            "arXiv 1707.06347, eq. 7",
            None,
            "policy",
            buffer="latest",
            heeds=("clip", "gae_lambda", "value_weight", "value_clip"),
            tokens=PPO,
        ),
        "best-of-n": Method("likelihood of the best of n", best_of_n, "prior", uses_goodness=False),
        "quark": Method(
            "arXiv 2205.13636",
            None,
            "policy",
            heeds=("kl_weight", "quantiles", "quark_prefix"),
            tokens=QUARK,
            uses_goodness=False,
        ),
    }
)
"""Every method by its name on the command line."""


def method_settings() -> set[str]:
    """Return the settings that some methods heed and others do not."""
    return {name for method in METHODS.values() for name in method.heeds}


def accepted_count(config: AlignConfig) -> int:
    """Return how many of n candidates rejection sampling accepts."""
    return config.rso_accepted or max(2, config.n // RSO_CANDIDATES // 2 * 2)


def rejection_sample(log_goodness: np.ndarray, count: int, draws: np.random.Generator) -> list[int]:
    """Accept candidates with probability goodness / (largest goodness left), without replacement, in sweeps.

    Where the candidates hold the largest goodness there is, what the first sweep accepts follows p · p(G=1|y,x)
    exactly; later sweeps, which are made until there are enough, do not. What has no goodness comes last.

    Args:
        log_goodness: (G,) log p(G=1|y,x) of candidates from the prior, nats, up to a constant.
        count: How many to accept, at most G.
        draws: Source of the uniform draws.

    Returns:
        Indices of the accepted, in the order of their acceptance.

    Source: arXiv 2309.06657, algorithm 1.
    """
    left, accepted = [i for i, value in enumerate(log_goodness) if value > -np.inf], list[int]()
    hopeless = [i for i, value in enumerate(log_goodness) if value == -np.inf]
    while len(accepted) < count and left:
        chance = np.exp(log_goodness[left] - log_goodness[left].max())
        passed = [i for i, limit in zip(left, chance, strict=True) if draws.random() < limit]
        accepted += passed
        left = [i for i in left if i not in passed]
    return [*accepted, *hopeless][:count]


def _accepted(group: ScoredGroup, log_goodness: np.ndarray, config: AlignConfig) -> list[int]:
    """The candidates of a group that rejection sampling accepts: the same whenever they are asked for."""
    draws = stream(config.seed, "rejection", group.phase, group.prompt.prompt_id)
    return rejection_sample(log_goodness, accepted_count(config), draws)


def _users_coefficients(
    name: str, function: Callable[[GroupTensors, AlignConfig], object], g: GroupTensors, config: AlignConfig
) -> torch.Tensor:
    """What a user's function gives, checked."""
    try:
        found = torch.as_tensor(function(g, config), dtype=torch.float64)
    except Exception as error:  # whatever the user's function does
        raise UserError(f"--method {name}: failed with {type(error).__name__}: {error}.") from error
    if found.shape != g.reward.shape or not torch.isfinite(found).all():
        raise UserError(
            f"--method {name}: must return a finite coefficient for every completion, an array of shape "
            f"{tuple(g.reward.shape)}; it returned shape {tuple(found.shape)}."
        )
    return found


def _cross_fitted(
    g: GroupTensors, coefficients: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The mean over a group's two halves of coefficients whose normaliser Ẑ is the mean of α over the other half.

    A group's own mean would make these methods self-normalised, and weighted BRAIn plain BRAIn. The other half is
    independent, so that the direction of the expected gradient is right; its length is wrong by the factor
    E[1/Ẑ] ≥ 1/Z.
    """
    target, ratio = (values.unflatten(-1, (2, -1)) for values in (g.target, g.ratio))
    own = torch.logsumexp(target, -1) - np.log(target.shape[-1])
    known = torch.isfinite(own).all(-1)[..., None, None]  # a half without goodness has no normaliser to give
    found = coefficients(torch.where(known, target, 0.0), ratio, torch.where(known[..., 0], own.flip(-1), 0.0))
    return torch.where(known, found, 0.0).flatten(-2) / 2


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """(B, G/2, 2) of (B, G): the first with the second, the third with the fourth, …"""
    return values.unflatten(-1, (-1, 2))


def _mean_over_pairs(coefficients: torch.Tensor) -> torch.Tensor:
    """(B, G) coefficients of the mean over pairs, of (B, G/2, 2)."""
    return coefficients.flatten(-2) / coefficients.shape[-2]


def _preferred(g: GroupTensors, config: AlignConfig, certainty: torch.Tensor) -> torch.Tensor:
    """DPO's coefficients with the label `certainty` for the larger reward of each pair, 1/2 where they are equal."""
    sign = torch.sign(_pairs(g.reward)[..., 0] - _pairs(g.reward)[..., 1])
    label = 0.5 + sign * (certainty - 0.5)
    return _mean_over_pairs(brain_core.soft_label_dpo_coefficients(_pairs(g.over_prior), label, power=config.dpo_beta))


def _winner_first(g: GroupTensors, coefficients: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Coefficients that a pair loss gives log q_θ − log p of (winner, loser); equal rewards count for nothing."""
    reward, ratio = _pairs(g.reward), _pairs(g.over_prior)
    order = torch.argsort(reward, dim=-1, descending=True, stable=True)
    sorted_ = coefficients(ratio.gather(-1, order))
    found = torch.zeros_like(sorted_).scatter(-1, order, sorted_)
    return _mean_over_pairs(torch.where(reward[..., :1] == reward[..., 1:], 0.0, found))

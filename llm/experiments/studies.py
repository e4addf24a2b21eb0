"""The experiments by name: which runs each needs, and which claims of the paper it decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llm.config import AlignConfig
from llm.experiments.reward_models import Change, Notes, Origin, origin, sizes, with_reward
from llm.methods import METHODS, accepted_count, method_settings

RATES = (0.3, 1.0, 3.0)
"""The grid of learning rates, times the base's."""
BETAS = (1.0, 0.1, 3.0)
"""DPO's beta: the one of theorem 6.1, the one that its authors use, and a larger one."""
TABLE1 = ("brain", "dpo", "dpo-sft", "rso")
OTHERS = tuple(name for name in METHODS if name not in TABLE1)
FRONTIER = ("brain", "snis", "dpo-sft", "rso", "rloo", "best-of-n", "infonca", "gdcpp")
NEVER = "never updated"
JUDGES = {
    "reward_model": "train reward model",
    "judge": "independent judge",
    "objective": "objective E r − T KL",
}
BASELINES = "llm.experiments.baselines"
MakeReward = Callable[[Origin, Change, AlignConfig], tuple[str, Notes]]
"""Returns what `--reward` calls a changed reward model, and what is to be known of it."""


@dataclass(frozen=True)
class Arm:
    """One row of a table: settings whose learning rate, and one of whose variants, are chosen on validation prompts.

    Attributes:
        label: Its name in the table.
        changes: What it changes in the base settings.
        variants: Further changes, of which one is chosen as the learning rate is.
        notes: What else is known of it, by name: further columns of the table.
    """

    label: str
    changes: tuple[tuple[str, Any], ...] = ()
    variants: tuple[tuple[tuple[str, Any], ...], ...] = ((),)
    notes: tuple[tuple[str, str | float], ...] = ()

    def config(self, base: AlignConfig) -> AlignConfig:
        """Return the base settings with this arm's in place, without what its method does not use."""
        changes = dict(self.changes)
        heeded = METHODS[changes["method"]].heeds
        unused = {name: getattr(AlignConfig(), name) for name in method_settings() if name not in heeded}
        return dataclasses.replace(base, **(unused | changes))


@dataclass(frozen=True)
class Claim:
    """A statement about two arms: the first one is better than the second one, or hardly worse.

    Attributes:
        text: The claim in words.
        paper: The paper's figure.
        first: Label of an arm; `second` of another.
        by: What is compared: wins against the references by the reward model, or by the independent judge; or the
            objective E r − T · KL, which the target distribution maximises.
        margin: By how much less the first one may be worse, where that is the claim.
    """

    text: str
    paper: str
    first: str
    second: str
    by: str = "reward_model"
    margin: float = 0.0


@dataclass(frozen=True)
class Match:
    """Two arms head to head; the claim is that the first one wins more often than it loses.

    Attributes:
        first: Label of an arm; `second` of another.
        paper: The paper's wins, ties and losses.
    """

    first: str
    second: str
    paper: str


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        title: What it asks.
        arms: Its rows.
        claims: What it decides.
        matches: Arms to compare prompt by prompt.
        picture: Bars of all arms, of matches, curves over the number of completions, or reward over KL.
        chosen_by: The figure on the validation prompts that chooses each arm's settings.
    """

    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...] = ()
    matches: tuple[Match, ...] = ()
    picture: Literal["bars", "matches", "samples", "frontier"] = "bars"
    chosen_by: Literal["validation_win_rate", "validation_objective"] = "validation_win_rate"


def arm(method: str, label: str = "", **changes: Any) -> Arm:
    """Return the arm of a method."""
    return Arm(label or method, (("method", method), *changes.items()))


def study(name: str, base: AlignConfig, pairs: str = "", make: MakeReward = with_reward) -> Study:
    """Return the experiment of that name for some base settings, pairs for DPO if there are, and a maker of rewards."""
    if name in PAIRED:
        return STUDIES[name](base, pairs)
    return STUDIES[name](base, make) if name in REWARDED else STUDIES[name](base)


def table1(base: AlignConfig, pairs: str = "") -> Study:
    """Table 1: BRAIn against DPO-sft, RSO and every other method, and DPO where there are pairs for it.

    Args:
        base: The base settings.
        pairs: A file of groups of two, a preferred completion and another one. DPO gets as many completions a step.
    """
    arms = [_tuned(arm(name), base) for name in (*TABLE1, *OTHERS) if name != "dpo"]
    if pairs:
        groups = base.n // 2
        given = arm("dpo", rollouts=pairs, n=2, m=base.m * groups, batch=base.batch * groups)
        arms.insert(1, _tuned(given, base))
    claims = [
        Claim(f"BRAIn beats {other} by the {JUDGES[by]}", paper, "brain", other, by)
        for other, pair in PAPER_TABLE1.items()
        for by, paper in (("reward_model", pair[0]), ("judge", pair[1]), ("objective", "–"))
    ]
    hacking = [
        Claim("DPO-sft beats DPO by the train reward model", "87.37 / 54.60; 90.86 / 86.72", "dpo-sft", "dpo"),
        Claim(
            "DPO-sft beats DPO by the judge (the paper: it does not)",
            "66.68 / 67.02; 60.55 / 60.26",
            "dpo-sft",
            "dpo",
            "judge",
        ),
    ]
    return Study("How does BRAIn compare with other methods?", tuple(arms), tuple(claims + hacking))


def _tuned(chosen: Arm, base: AlignConfig) -> Arm:
    """The arm with what a method leaves open beside the learning rate: DPO's beta, and how many RSO accepts."""
    method = dict(chosen.changes)["method"]
    if method == "rso":
        counts = {accepted_count(base), base.n // 2}
        return dataclasses.replace(
            chosen, variants=tuple((("dpo_beta", b), ("rso_accepted", n)) for b in BETAS for n in sorted(counts))
        )
    if "dpo_beta" in METHODS[method].heeds:
        return dataclasses.replace(chosen, variants=tuple((("dpo_beta", b),) for b in BETAS))
    return chosen


def table2(base: AlignConfig, pairs: str = "") -> Study:
    """Table 2: BRAIn head to head with DPO, DPO-sft and RSO, of the same runs as table 1.

    Args:
        base: The base settings.
        pairs: As for table 1.
    """
    arms = tuple(each for each in table1(base, pairs).arms if each.label in TABLE1)
    matches = tuple(Match("brain", other, paper) for other, paper in PAPER_TABLE2.items())
    return Study("How often does BRAIn win head to head?", arms, matches=matches, picture="matches")


def table3(base: AlignConfig) -> Study:
    """Table 3: from DPO-sft to BRAIn, one restriction at a time."""
    arms = (
        arm("dpo-sft", "DPO-sft", dpo_beta=1.0),
        arm("dpo-sft-iw", "DPO-sft+IW"),
        arm("dpo-sft-iw-n", "DPO-sft+IW+n"),
        arm("brain", "BRAIn"),
    )
    steps = [("DPO-sft+IW", "DPO-sft", "89.21 / 87.37", "69.28 / 66.78")]
    steps += [("DPO-sft+IW+n", "DPO-sft+IW", "93.30 / 89.21", "73.89 / 69.28")]
    steps += [("BRAIn", "DPO-sft+IW+n", "95.40 / 93.30", "74.36 / 73.89")]
    claims = [
        Claim(f"{one} beats {other} by the {JUDGES[by]}", paper, one, other, by)
        for one, other, reward, judged in steps
        for by, paper in (("reward_model", reward), ("judge", judged), ("objective", "–"))
    ]
    return Study("Which step from DPO-sft to BRAIn helps?", arms, tuple(claims))


def baseline(base: AlignConfig) -> Study:
    """Section 9.3: the baseline, taken away or replaced."""
    arms = (
        arm("brain", "β̂ (BRAIn)"),
        arm("snis", "none"),
        *(arm(f"{BASELINES}:{name}", label) for name, label in BASELINE_LABELS.items()),
    )
    claims = [
        Claim("The baseline helps by the train reward model", "95.21 / 61.1; 95.40 / 58.3", "β̂ (BRAIn)", "none"),
        Claim("The baseline helps by the independent judge", "–", "β̂ (BRAIn)", "none", "judge"),
        Claim(f"The baseline helps by the {JUDGES['objective']}", "–", "β̂ (BRAIn)", "none", "objective"),
    ]
    claims += [
        Claim(f"β̂ beats the baseline {label} by the {JUDGES[by]}", "–", "β̂ (BRAIn)", label, by)
        for label in BASELINE_LABELS.values()
        for by in JUDGES
    ]
    return Study("What does the self-normalised baseline do?", arms, tuple(claims))


def samples(base: AlignConfig) -> Study:
    """Section 9.4: the number of completions."""
    sizes = (2, 4, 8, 16, 32)
    arms = tuple(arm(m, f"{m}, n = {n}", n=n) for m in ("brain", "dpo-sft") for n in sizes)
    steps = [(m, a, b) for m in ("brain", "dpo-sft") for a, b in zip(sizes[1:], sizes, strict=False)]
    paper = {"brain": "saturates at n = 8", "dpo-sft": "improves monotonically"}
    claims = [Claim(f"{m}: n = {a} beats n = {b}", paper[m], f"{m}, n = {a}", f"{m}, n = {b}") for m, a, b in steps]
    ends = ("brain, n = 8", "brain, n = 32")
    claims.append(Claim("brain: n = 8 is within 2 points of n = 32", "saturates at n = 8", *ends, margin=0.02))
    claims.append(Claim("dpo-sft: n = 32 beats n = 8", paper["dpo-sft"], "dpo-sft, n = 32", "dpo-sft, n = 8"))
    return Study("How many completions of a prompt?", arms, tuple(claims), picture="samples")


def proposal(base: AlignConfig) -> Study:
    """Section 9.5: the proposal, updated never or every k steps, at equal completions and steps."""
    steps, prompts = base.e * base.k, base.e * base.m
    updates = [e for e in (2, 4, 8, 16) if steps % e == 0 and prompts % e == 0 and prompts // e >= base.batch]
    arms = [arm("dpo-sft-iw-n", NEVER)]
    arms += [arm("brain", f"k = {steps // e}", e=e, k=steps // e, m=prompts // e) for e in updates]
    claims = [
        Claim(f"k = {steps // e} beats never updating by the {JUDGES[by]}", paper, f"k = {steps // e}", NEVER, by)
        for e in updates
        for by, paper in (("reward_model", "95.40 / 93.3; 95.21 / 93.48"), ("judge", "–"))
    ]
    return Study("Does updating the proposal help?", tuple(arms), tuple(claims))


def temperature(base: AlignConfig) -> Study:
    """An open question: the temperature of the target."""
    values = [base.temperature * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    labels = {value: f"temperature {value:g}" for value in values}
    arms = tuple(arm("brain", label, temperature=value) for value, label in labels.items())
    claims = [
        Claim(f"{label} beats {labels[base.temperature]} by the {JUDGES[by]}", "–", label, labels[base.temperature], by)
        for value, label in labels.items()
        for by in ("reward_model", "judge")
        if value != base.temperature
    ]
    return Study("How sharp should the target be?", arms, tuple(claims))


def goodness(base: AlignConfig) -> Study:
    """An open question: Bradley–Terry against logistic goodness."""
    arms = (arm("brain", "Bradley-Terry"), arm("brain", "logistic", goodness="logistic", temperature=1.0))
    claims = (
        Claim("Bradley-Terry beats logistic by the train reward model", "–", "Bradley-Terry", "logistic"),
        Claim("Bradley-Terry beats logistic by the independent judge", "–", "Bradley-Terry", "logistic", "judge"),
    )
    return Study("Which reading of the reward?", arms, claims)


def frontier(base: AlignConfig) -> Study:
    """KL against reward for eight methods."""
    claims = [
        Claim(f"BRAIn beats {other} by the {JUDGES['objective']}", "–", "brain", other, "objective")
        for other in FRONTIER[1:]
    ]
    arms = tuple(_tuned(arm(name), base) for name in FRONTIER)
    return Study("What reward at which KL?", arms, tuple(claims), picture="frontier", chosen_by="validation_objective")


def reward_size(base: AlignConfig, make: MakeReward = with_reward) -> Study:
    """An open question: the size of the reward model. Those that are not in the cache are trained first."""
    made_from = origin(base)
    labels = {count: f"{count} layer{'s' * (count > 1)}" for count in sizes(made_from)}
    arms = []
    for count, label in labels.items():
        reward, notes = make(made_from, Change(layers=count), base)
        arms.append(dataclasses.replace(arm("brain", label, reward=reward), notes=notes))
    names = list(labels.values())
    steps = zip(names[1:], names, strict=False)
    claims = [Claim(f"{one} beat {other} by the independent judge", "–", one, other, "judge") for one, other in steps]
    return Study("How large should the reward model be?", tuple(arms), tuple(claims))


def reward_noise(base: AlignConfig, make: MakeReward = with_reward) -> Study:
    """An open question: noise in the reward model's labels, for which it is trained anew, or in its score."""
    noisy: dict[str, dict[str, Any]] = {"brain": {}, "dpo-sft": {}, "rso": {"rso_accepted": base.n // 2}}
    made_from = origin(base)
    changes = {"no noise": Change()}
    changes |= {f"{share:.0%} flipped": Change(flipped=share) for share in (0.1, 0.2, 0.4)}
    changes |= {f"noise {noise:g} sd": Change(noise=noise) for noise in (1.0, 2.0)}
    arms = []
    for level, change in changes.items():
        reward, notes = make(made_from, change, base)
        arms += [
            dataclasses.replace(arm(method, f"{method}, {level}", reward=reward, **own), notes=notes)
            for method, own in noisy.items()
        ]
    claims = [
        Claim(f"BRAIn beats {other} by the judge, {level}", "–", f"brain, {level}", f"{other}, {level}", "judge")
        for level in changes
        for other in list(noisy)[1:]
    ]
    return Study("What does noise in the reward do?", tuple(arms), tuple(claims))


PAPER_TABLE1 = {
    "dpo": ("95.40 / 54.60; 95.21 / 86.72", "74.36 / 67.02; 64.74 / 60.26"),
    "dpo-sft": ("95.40 / 87.37; 95.21 / 90.86", "74.36 / 66.68; 64.74 / 60.55"),
    "rso": ("95.40 / 84.59; 95.21 / 91.24", "74.36 / 67.22; 64.74 / 60.41"),
}
"""Win rates in the paper, BRAIn's and the other's: AnthropicHH; TL;DR."""

PAPER_TABLE2 = {
    "dpo": "44.0 / 31.6 / 21.4; 42.1 / 19.6 / 38.3",
    "dpo-sft": "45.4 / 34.4 / 20.2; 45.2 / 18.9 / 35.9",
    "rso": "44.2 / 35.5 / 20.3; 45.1 / 17.6 / 37.3",
}
"""BRAIn's wins, ties and losses in the paper, in per cent: AnthropicHH; TL;DR."""

BASELINE_LABELS = {
    "uniform": "1/n",
    "leave_one_out": "leave one out",
    "posterior_ratio": "Z·π/q",
    "moving_average": "moving-average Z",
    "variance_optimal": "variance-optimal",
}

PAIRED = ("table1", "table2")
"""Experiments that need preference pairs beside the base settings."""
REWARDED = ("reward-size", "reward-noise")
"""Experiments with reward models of their own."""

STUDIES: dict[str, Callable[..., Study]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "baseline": baseline,
    "samples": samples,
    "proposal": proposal,
    "temperature": temperature,
    "goodness": goodness,
    "frontier": frontier,
    "reward-size": reward_size,
    "reward-noise": reward_noise,
}

"""The experiments by name: which runs each needs, and which claims of the paper it decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm.config import AlignConfig
from llm.methods import METHODS, accepted_count, method_settings

RATES = (0.3, 1.0, 3.0)
"""The grid of learning rates, times the base's."""
BETAS = (1.0, 0.1)
"""DPO's beta: the one of theorem 6.1, and the one that its authors use."""
TABLE1 = ("brain", "dpo", "dpo-sft", "rso")
OTHERS = tuple(name for name in METHODS if name not in TABLE1)
FRONTIER = ("brain", "snis", "dpo-sft", "rso", "rloo", "best-of-n", "infonca", "gdcpp")
BASELINES = "llm.experiments.baselines"


@dataclass(frozen=True)
class Arm:
    """One row of a table: settings whose learning rate, and one of whose variants, are chosen on validation prompts.

    Attributes:
        label: Its name in the table.
        changes: What it changes in the base settings.
        variants: Further changes, of which one is chosen as the learning rate is.
    """

    label: str
    changes: tuple[tuple[str, Any], ...] = ()
    variants: tuple[tuple[tuple[str, Any], ...], ...] = ((),)

    def config(self, base: AlignConfig) -> AlignConfig:
        """Return the base settings with this arm's in place, without what its method does not use."""
        changes = dict(self.changes)
        heeded = METHODS[changes["method"]].heeds
        unused = {name: getattr(AlignConfig(), name) for name in method_settings() if name not in heeded}
        return dataclasses.replace(base, **(unused | changes))


@dataclass(frozen=True)
class Claim:
    """A statement about two arms: the first one's win rate is above the second one's.

    Attributes:
        text: The claim in words.
        paper: The paper's figure.
        first: Label of an arm; `second` of another.
        judge: Whether the independent judge decides; else the reward model.
    """

    text: str
    paper: str
    first: str
    second: str
    judge: bool = False


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        title: What it asks.
        arms: Its rows.
        claims: What it decides.
    """

    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...] = ()


def arm(method: str, label: str = "", **changes: Any) -> Arm:
    """Return the arm of a method."""
    return Arm(label or method, (("method", method), *changes.items()))


def study(name: str, base: AlignConfig, pairs: str = "") -> Study:
    """Return the experiment of that name for some base settings, and pairs for DPO if there are."""
    return table1(base, pairs) if name == "table1" else STUDIES[name](base)


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
        Claim(f"BRAIn beats {other} by the {who}", paper, "brain", other, judge)
        for other, pair in PAPER_TABLE1.items()
        for judge, who, paper in ((False, "train reward model", pair[0]), (True, "independent judge", pair[1]))
    ]
    hacking = [
        Claim("DPO-sft beats DPO by the train reward model", "87.37 / 54.60; 90.86 / 86.72", "dpo-sft", "dpo"),
        Claim(
            "DPO-sft beats DPO by the judge (the paper: it does not)",
            "66.68 / 67.02; 60.55 / 60.26",
            "dpo-sft",
            "dpo",
            True,
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
        Claim(f"{one} beats {other} by the {who}", paper, one, other, judge)
        for one, other, reward, judged in steps
        for judge, who, paper in ((False, "train reward model", reward), (True, "independent judge", judged))
    ]
    return Study("Which step from DPO-sft to BRAIn helps?", arms, tuple(claims))


def baseline(base: AlignConfig) -> Study:
    """Section 9.3: the baseline, taken away or replaced."""
    arms = (
        arm("brain", "β̂ (BRAIn)"),
        arm("snis", "none"),
        *(arm(f"{BASELINES}:{name}", label) for name, label in BASELINE_LABELS.items()),
    )
    claims = (
        Claim("The baseline helps by the train reward model", "95.21 / 61.1; 95.40 / 58.3", "β̂ (BRAIn)", "none"),
        Claim("The baseline helps by the independent judge", "–", "β̂ (BRAIn)", "none", True),
    )
    return Study("What does the self-normalised baseline do?", arms, claims)


def samples(base: AlignConfig) -> Study:
    """Section 9.4: the number of completions."""
    sizes = (2, 4, 8, 16, 32)
    arms = tuple(arm(m, f"{m}, n = {n}", n=n) for m in ("brain", "dpo-sft") for n in sizes)
    steps = [(m, a, b) for m in ("brain", "dpo-sft") for a, b in zip(sizes[1:], sizes, strict=False)]
    claims = [
        Claim(
            f"{m}: n = {a} beats n = {b}",
            "saturates at 8" if m == "brain" else "monotone",
            f"{m}, n = {a}",
            f"{m}, n = {b}",
        )
        for m, a, b in steps
    ]
    return Study("How many completions of a prompt?", arms, tuple(claims))


def proposal(base: AlignConfig) -> Study:
    """Section 9.5: the proposal, updated never or every k steps, at equal completions and steps."""
    steps, prompts = base.e * base.k, base.e * base.m
    updates = [e for e in (2, 4, 8, 16) if steps % e == 0 and prompts % e == 0 and prompts // e >= base.batch]
    arms = [arm("dpo-sft-iw-n", "never updated")]
    arms += [arm("brain", f"k = {steps // e}", e=e, k=steps // e, m=prompts // e) for e in updates]
    claims = [
        Claim(
            f"k = {steps // e} beats never updating",
            "95.40 / 93.3; 95.21 / 93.48",
            f"k = {steps // e}",
            "never updated",
        )
        for e in updates
    ]
    return Study("Does updating the proposal help?", tuple(arms), tuple(claims))


def temperature(base: AlignConfig) -> Study:
    """An open question: the temperature of the target."""
    values = [base.temperature * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    arms = tuple(arm("brain", f"temperature {value:g}", temperature=value) for value in values)
    return Study("How sharp should the target be?", arms)


def goodness(base: AlignConfig) -> Study:
    """An open question: Bradley–Terry against logistic goodness."""
    arms = (arm("brain", "Bradley-Terry"), arm("brain", "logistic", goodness="logistic", temperature=1.0))
    claims = (
        Claim("Bradley-Terry beats logistic by the train reward model", "–", "Bradley-Terry", "logistic"),
        Claim("Bradley-Terry beats logistic by the independent judge", "–", "Bradley-Terry", "logistic", True),
    )
    return Study("Which reading of the reward?", arms, claims)


def frontier(base: AlignConfig) -> Study:
    """KL against reward for eight methods."""
    return Study("What reward at which KL?", tuple(arm(name) for name in FRONTIER))


PAPER_TABLE1 = {
    "dpo": ("95.40 / 54.60; 95.21 / 86.72", "74.36 / 67.02; 64.74 / 60.26"),
    "dpo-sft": ("95.40 / 87.37; 95.21 / 90.86", "74.36 / 66.68; 64.74 / 60.55"),
    "rso": ("95.40 / 84.59; 95.21 / 91.24", "74.36 / 67.22; 64.74 / 60.41"),
}
"""Win rates in the paper, BRAIn's and the other's: AnthropicHH; TL;DR."""

BASELINE_LABELS = {
    "uniform": "1/n",
    "leave_one_out": "leave one out",
    "posterior_ratio": "Z·π/q",
    "moving_average": "moving-average Z",
    "variance_optimal": "variance-optimal",
}

STUDIES: dict[str, Callable[[AlignConfig], Study]] = {
    "table1": table1,
    "table3": table3,
    "baseline": baseline,
    "samples": samples,
    "proposal": proposal,
    "temperature": temperature,
    "goodness": goodness,
    "frontier": frontier,
}

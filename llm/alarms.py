"""Alarms while training, in plain words: what the run's own figures say is going wrong, each said once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from llm.config import AlignConfig
from llm.methods import METHODS

Event = dict[str, Any]

STEPS = 50
"""Gradient steps that an alarm about steps looks back on."""
ONE = 1.1
"""An effective sample size below this counts as one completion."""
NOISE = 1.2
"""Times the value of pure noise, up to which successive gradients count as noise."""
VALIDATIONS = 3
"""Validations without progress before an alarm."""
SHRUNK, GROWN, SAME = 0.5, 2.0, 0.25
"""Length, and share of distinct completions, relative to the beginning's."""


class Alarms:
    """Watches the events of a run.

    Args:
        config: The run's settings.
        past: The events that a resumed run has written already; their alarms were given.
    """

    def __init__(self, config: AlignConfig, past: Iterable[Event] = ()) -> None:
        self._config = config
        self._given: set[str] = set()
        self._steps: deque[Event] = deque(maxlen=STEPS)
        self._validations: list[Event] = []
        self._diversity: dict[str, float] = {}
        for event in past:
            list(self.observe(event))

    def observe(self, event: Event) -> Iterator[tuple[str, str]]:
        """Yield (name, text) of each alarm that this event gives for the first time.

        Args:
            event: One event as `metrics.jsonl` holds it.
        """
        watch = {"step": self._step, "phase": self._phase, "validation": self._validation}.get(event["event"])
        for name, text in watch(event) if watch else ():
            if name not in self._given:
                self._given.add(name)
                yield name, text

    def _step(self, event: Event) -> Iterator[tuple[str, str]]:
        """ESS of one, and gradient noise."""
        self._steps.append(event)
        if len(self._steps) < STEPS:
            return
        size = self._mean("ess_target")
        if size < ONE and METHODS[self._config.method].uses_goodness:
            yield (
                "argmax",
                f"Over the last {STEPS} steps the target's weights are worth {size:.2f} of {self._config.n} "
                "completions: they have become an argmax, and the rewards' values no longer count. Raise "
                "--temperature, or look whether the reward's scale is what you think.",
            )
        beta = self._config.adam_beta1
        signal, floor = self._mean("gradient_signal"), (1 - beta) / (1 + beta)
        if beta > 0 and signal < NOISE * floor and not self._has_progressed():  # near the target all is noise
            yield (
                "noise",
                f"Over the last {STEPS} steps successive gradients have little in common ({signal:.3f}, where pure "
                f"noise gives {floor:.3f} and one direction 1), and no validation is better than the first: the steps "
                "wander. Raise --batch or --n, or lower --learning-rate.",
            )

    def _phase(self, event: Event) -> Iterator[tuple[str, str]]:
        """Collapse of the proposal's diversity."""
        yield from self._repeats(event, f"the {self._config.n} completions of a prompt")

    def _repeats(self, event: Event, what: str) -> Iterator[tuple[str, str]]:
        """Whether far fewer completions differ than in the first event of this kind."""
        now = event["distinct_completions"]
        first = self._diversity.setdefault(event["event"], now)
        if now < SAME * first:
            yield (
                "diversity",
                f"Of {what} {now:.0%} differ, and {first:.0%} did at first: the policy repeats itself. Raise "
                "--temperature, or stop earlier.",
            )

    def _validation(self, event: Event) -> Iterator[tuple[str, str]]:
        """No progress, and collapse in length."""
        self._validations.append(event)
        yield from self._repeats(event, "the validation prompts' completions")
        first = self._validations[0]
        if len(self._validations) > VALIDATIONS and not self._has_progressed():
            yield (
                "progress",
                f"After {event['step']} steps no validation has a higher mean reward than the prior's "
                f"{first['mean_reward']:.4g}. Look at the effective sample size and the gradient's norm in the report; "
                "try a higher --learning-rate, or more steps.",
            )
        before, now = first["completion_length"], event["completion_length"]
        if not SHRUNK * before <= now <= GROWN * before:
            yield (
                "length",
                f"Completions have {now:.1f} tokens, and had {before:.1f}: check that the reward does not simply pay "
                "for length, with the length-controlled win rate.",
            )

    def _has_progressed(self) -> bool:
        """Whether a validation has a higher mean reward than the first one."""
        rewards = [event["mean_reward"] for event in self._validations]
        return len(rewards) > 1 and max(rewards) > rewards[0]

    def _mean(self, name: str) -> float:
        """The mean of a figure over the last steps."""
        return sum(event[name] for event in self._steps) / len(self._steps)


def judge_disagrees(change: dict[str, Any]) -> str | None:
    """Return an alarm where the reward went up and the independent judge's win rate down, each beyond its interval.

    Args:
        change: The paired changes of an evaluation, as `llm.evaluate.change` gives them.
    """
    reward, judge = change["mean_reward"], change["judge_win_rate"]
    if not judge or reward["low"] is None or judge["high"] is None or not (reward["low"] > 0 and judge["high"] < 0):
        return None
    return (
        f"The reward rose by {reward['estimate']:.3g} while the judge's win rate fell by {-judge['estimate']:.1%}: the "
        "policy exploits the reward model. Use fewer steps, a higher --temperature, or a better reward model."
    )

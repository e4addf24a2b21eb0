"""Completions that are given instead of sampled: preference pairs, another run's rollouts, or a file of groups."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from llm.config import AlignConfig
from llm.models import Policy
from llm.prompts import PromptSets
from llm.records import Completion, Prompt


class GivenGroup(NamedTuple):
    """A prompt's G completions with what is known of them; None is computed.

    Attributes:
        prompt: The prompt.
        completions: G of them.
        log_prior: (G,) log p(y|x), nats.
        log_proposal: (G,) log q'(y|x), nats; where it is unknown, log p stands for it (T10).
        reward: (G,) r(x, y).
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    log_prior: list[float] | None = None
    log_proposal: list[float] | None = None
    reward: list[float] | None = None


class GivenGroups(Protocol):
    """Where given completions come from."""

    def phase(self, phase: int) -> list[GivenGroup]:
        """Return the m groups of a phase, of n completions each, in the order in which they are to be kept."""
        ...

    def fingerprint(self) -> str:
        """Return a sha256 that changes when any of them does."""
        ...


def load_given(config: AlignConfig, policy: Policy, prompts: PromptSets) -> GivenGroups | None:
    """Return what the settings say to train on instead of sampling, or None where the run samples."""
    return None

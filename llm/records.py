"""What flows through one alignment run, from a prompt to an evaluated completion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt x, tokenised.

    Attributes:
        prompt_id: Unique within the run; the key of every random draw for this prompt.
        text: The text, or the chat messages, as the reward and the judge see them.
        token_ids: (P,) what the model is given.
        reference: The completion to compare with, where the data has one.
    """

    prompt_id: str
    text: str | Messages
    token_ids: tuple[int, ...]
    reference: str | None


@dataclass(frozen=True)
class Completion:
    """One completion y of a prompt.

    Attributes:
        prompt_id: Its prompt.
        sample_id: Its place in the group.
        token_ids: (C,) including the end-of-sequence token, or the tokens of a stop string, where it ended so.
        finish_reason: `stop` where the model ended, or a stop string did, `length` where it was cut.
        text: Decoded without special tokens, up to a stop string.
        sampler_log_prob: log q'(y|x) as the sampler summed it, nats; NaN where the completion is not from here.
    """

    prompt_id: str
    sample_id: int
    token_ids: tuple[int, ...]
    finish_reason: str
    text: str
    sampler_log_prob: float = field(default=math.nan, compare=False)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Completion:
        """Read a completion from a row of a table."""
        values = {place.name: row[place.name] for place in fields(cls)}
        return cls(**values | {"token_ids": tuple(row["token_ids"])})


Pair = tuple[Prompt, Completion]


class TokenScores(NamedTuple):
    """What token-level methods cache of G completions, an array of |y| for each.

    Attributes:
        log_prior: log p of every token, nats.
        log_proposal: log q' of every token under the proposal that sampled it, nats.
        values: The value head's, of what stood before every token, at that time; none without a value head.
    """

    log_prior: tuple[np.ndarray, ...]
    log_proposal: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class ScoredGroup:
    """A prompt's G completions with what Algorithm 1 caches for them (line 8).

    Attributes:
        prompt: The prompt.
        completions: G of them.
        log_prior: (G,) log p(y|x), nats.
        log_proposal: (G,) log q'(y|x) under the proposal that sampled this very group, nats.
        reward: (G,) r(x, y).
        phase: The phase that it was collected in.
        tokens: The same token by token, for methods that ask for it.
        quantile: (G,) quantile of each reward among all that were collected, 1 the worst, for methods that ask for it.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    log_prior: np.ndarray
    log_proposal: np.ndarray
    reward: np.ndarray
    phase: int = 0
    tokens: TokenScores | None = None
    quantile: np.ndarray | None = None


class TokenBatch(NamedTuple):
    """Rows [prompt | completion], prompts padded on the left and completions on the right.

    Attributes:
        input_ids: (N, T) token ids.
        attention_mask: (N, T) 1 for tokens, 0 for padding.
        position_ids: (N, T) positions that start at 0 with each row's first token.
        completion_ids: (N, C) the completions; padding is 0.
        completion_mask: (N, C) 1 for completion tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor


class TokenOutputs(NamedTuple):
    """What one forward pass tells of N completions, of M tokens altogether.

    Attributes:
        log_probs: (N, C) log-probability of every token, nats, 0 at padding.
        mask: (N, C) True for tokens.
        hidden: (K, d) last hidden states.
        sources: (M,) the rows of `hidden` that predict the tokens, completion by completion.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor
    sources: torch.Tensor

    @property
    def states(self) -> torch.Tensor:
        """(M, d) the hidden states that predict the tokens."""
        return self.hidden.index_select(0, self.sources)

    def placed(self, values: torch.Tensor) -> torch.Tensor:
        """(M,) values of tokens as (N, C), 0 at padding."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)


class StepStats(NamedTuple):
    """What one gradient step reports; means over the groups of its batch.

    Attributes:
        snkl: Self-normalised KL, nats, known floor 0.
        ess_target: Kish effective sample size of the target's weights, in 1..G.
        ess_policy: The same of the policy's weights.
        max_target_weight: Largest self-normalised target weight.
        total_variation: TV between the two weight vectors.
        empty_groups: Share of groups whose goodness is 0 throughout; they leave the policy alone.
        likelihood_drift: Mean change of log q since sampling, nats a sequence.
        coefficient_size: Σ|c| over a group; of BRAIn twice the TV.
        grad_norm: L2 norm of the gradient before clipping.
        gradient_signal: 1 where successive gradients agree; (1 − β₁)/(1 + β₁) of Adam where they are noise.
        learning_rate: The rate used.
    """

    snkl: float
    ess_target: float
    ess_policy: float
    max_target_weight: float
    total_variation: float
    empty_groups: float
    likelihood_drift: float
    coefficient_size: float
    grad_norm: float
    gradient_signal: float
    learning_rate: float


@dataclass(frozen=True)
class EvalRecord:
    """One held-out prompt's completion beside the reference.

    Attributes:
        prompt: The prompt.
        completion: Sampled at temperature 1 under a fixed seed.
        reference: The reference text.
        reward: r(x, y); `reference_reward` the reference's.
        grade: The judge's grade, or None without a judge; `reference_grade` the reference's.
        log_policy: log q(y|x), nats; `log_prior` log p(y|x).
    """

    prompt: Prompt
    completion: Completion
    reference: str
    reward: float
    reference_reward: float
    grade: float | None
    reference_grade: float | None
    log_policy: float
    log_prior: float

    def as_row(self) -> dict[str, Any]:
        """Return the record as a flat row for a table; `is_chat` tells chat messages from text."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "prompt": _plain(self.prompt.text),
            "prompt_token_ids": list(self.prompt.token_ids),
            "is_chat": not isinstance(self.prompt.text, str),
            "completion": self.completion.text,
            "token_ids": list(self.completion.token_ids),
            "finish_reason": self.completion.finish_reason,
            "reference": self.reference,
            "reward": self.reward,
            "reference_reward": self.reference_reward,
            "grade": self.grade,
            "reference_grade": self.reference_grade,
            "log_policy": self.log_policy,
            "log_prior": self.log_prior,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any], prompt: Prompt) -> EvalRecord:
        """Read a record back; `prompt` is the row's prompt."""
        completion = Completion(row["prompt_id"], 0, tuple(row["token_ids"]), row["finish_reason"], row["completion"])
        names = ("reference", "reward", "reference_reward", "grade", "reference_grade", "log_policy", "log_prior")
        return cls(prompt, completion, **{name: row[name] for name in names})


def _plain(text: str | Messages) -> str:
    """A prompt as readable text, chat messages one a line."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)

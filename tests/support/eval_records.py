"""Evaluation records by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from llm.records import Completion, EvalRecord, Prompt

NUMBERS = count(1)


def record(
    reward: float = 0.0,
    reference_reward: float = 0.0,
    *,
    grade: float | None = None,
    reference_grade: float | None = None,
    tokens: int | Sequence[int] = 3,
    reason: str = "stop",
    log_policy: float = -1.0,
    log_prior: float = -1.0,
    name: str = "",
    text: Any = "prompt",
    sample_id: int = 0,
    written: str | None = None,
    reference: str | None = None,
) -> EvalRecord:
    """One completion of a prompt of its own, unless that is named."""
    name = name or f"test-{next(NUMBERS)}"
    ids = tuple(range(tokens)) if isinstance(tokens, int) else tuple(tokens)
    completion = Completion(name, sample_id, ids, reason, f"completion of {name}" if written is None else written)
    return EvalRecord(
        Prompt(name, text, (4, 5), None),
        completion,
        f"reference of {name}" if reference is None else reference,
        reward,
        reference_reward,
        grade,
        reference_grade,
        log_policy,
        log_prior,
    )

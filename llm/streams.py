"""Random draws by name: every draw derives from (seed, stage, iteration, …), never from what was drawn before."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def stream(seed: int, stage: str, *key: int | str) -> np.random.Generator:
    """Return the generator of one named draw.

    A counter-based generator (Philox) keyed by the hash of the name: the same name gives the same draws whatever else
    was drawn, in whatever order, by however many processes.

    Args:
        seed: The run's seed.
        stage: What the draw is for, such as `rollout`.
        key: What tells this draw from others of its stage, such as (iteration, prompt_id, sample_id).

    Returns:
        A fresh generator, at its beginning.
    """
    name = json.dumps([seed, stage, *key]).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(name).digest()[:16], "little")))


def torch_seed(seed: int, stage: str, *key: int | str) -> int:
    """Return a seed for torch's generators, where a library draws by itself (LoRA's initial weights)."""
    return int(stream(seed, stage, *key).integers(2**63))


def text_fingerprint(value: object) -> str:
    """Return the sha256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

"""Rewards with noise added, as functions for `--reward`: `llm.experiments.noisy_reward:FOLDER`.

FOLDER is one of the user's cache, with a reward model in it and the size of the noise. Its name ends in a fingerprint
of both, so that the name of the function changes with what the function returns.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs

from llm.config import AlignConfig
from llm.models import resolve_device
from llm.rewards import Prompt, Reward, load_reward
from llm.store import read_json
from llm.streams import stream

MODEL = "model"
NOISE = "noise.json"


def cached(name: str) -> Path:
    """Return a folder's place in the user's cache, which is what BRAIN_CACHE names where that is set."""
    return Path(os.environ.get("BRAIN_CACHE") or platformdirs.user_cache_dir("brain-align")) / name


def load_model(folder: Path) -> Reward:
    """Return the reward model in a folder of the cache, without noise."""
    return load_reward(str(folder / MODEL), device=resolve_device("auto"), batch_size=AlignConfig().reward_rows)


class NoisyReward:
    """A reward model's score plus Gaussian noise that is the same whenever a completion of a prompt is scored.

    Args:
        folder: Holds the reward model in `model`, and in `noise.json` the noise's standard deviation.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def _parts(self) -> tuple[Reward, float]:
        """The reward model and the standard deviation, read when they are first needed, not to name the reward."""
        return load_model(self._folder), float(read_json(self._folder / NOISE)["standard_deviation"])

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Return the rewards, (N,) float64."""
        reward, deviation = self._parts
        noise = [standard_normal(*pair) for pair in zip(prompts, completions, strict=True)]
        return reward(prompts, completions) + deviation * np.array(noise)


def standard_normal(prompt: Prompt, completion: str) -> float:
    """Return the draw of N(0, 1) that belongs to a completion of a prompt."""
    return float(stream(0, "reward noise", json.dumps(prompt), completion).standard_normal())


def __getattr__(name: str) -> NoisyReward:
    """Return the noisy reward of a folder of the cache."""
    folder = cached(name)
    if not (folder / NOISE).is_file():
        raise AttributeError(f"{folder} holds no noisy reward")
    return NoisyReward(folder)

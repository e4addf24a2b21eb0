"""Another reward for the rollouts of a run: `python -m llm.rescore RUN --reward NEW`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.stats
import torch
import tyro
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from llm.config import AlignConfig
from llm.console import entry_point
from llm.errors import UserError
from llm.models import context_length_of, load_pretrained, load_tokenizer
from llm.records import Prompt
from llm.rewards import AnyReward, configured_reward, on_device, rewards_of
from llm.run_folder import lock_run, stored_config
from llm.store import rollout_shards, score_shards
from llm.stored_rollouts import (
    block_rows,
    has_stated_rewards,
    rewarded_fingerprint,
    run_prompts,
    scored_blocks,
    stored_identity,
)
from llm.tables import Row


@dataclass(frozen=True)
class RescoreCommand:
    """Reward all stored completions of a run again, for a new run with `--rollouts RUN --reward NEW` to find."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    reward: str = ""
    """The new reward, as in llm.align; --reward-dtype, --reward-baseline and --reward-rows are the run's."""
    device: str = "auto"
    """Where a reward model runs: auto, cpu, cuda, cuda:1, …"""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(RescoreCommand, args=list(arguments), prog="python -m llm.rescore", config=())
    if not command.reward:
        raise UserError("--reward is missing: name the reward that the completions are to get.")
    folder = Path(command.run)
    config = stored_config(folder)
    lock = lock_run(folder)
    try:
        reward = configured_reward(replace(config, reward=command.reward, device=command.device))
        with on_device(reward):
            old, new = rescore(folder, reward)
            old = [] if has_stated_rewards(folder) else old
    finally:
        lock.release()
    print(_summary(old, new, config.reward, reward.name))


def rescore(folder: Path, reward: AnyReward) -> tuple[list[float], list[float]]:
    """Write the rewards of a run's completions by another reward beside its own; what was written before stays.

    Args:
        folder: The run folder, locked.
        reward: The new reward.

    Returns:
        The old and the new rewards, in the order of the completions.

    Raises:
        UserError: Its rewards are the run's own, nothing has been sampled and scored, the prompts changed since, or a
            shard is damaged.
    """
    identity = stored_identity(folder)
    rewarded = rewarded_fingerprint(folder, reward.fingerprint())
    if rewarded == identity.fingerprint():
        raise UserError(f"--reward {reward.name}: is the run's own reward, so there is nothing to compute again.")
    prompts = run_prompts(folder, *_tokenizer_and_context(stored_config(folder)))
    old: list[float] = []
    new: list[float] = []
    for phase, name in tqdm(scored_blocks(folder, identity.fingerprint()), desc="rewarding", unit="block"):
        rollouts, rescored = rollout_shards(folder, phase), score_shards(folder, rewarded, phase)
        rows = block_rows(rollouts, score_shards(folder, identity.fingerprint(), phase), name)
        rescored.once(name, partial(_rewarded, rows, prompts, reward))
        old += [score["reward"] for _, score in rows]
        new += [score["reward"] for _, score in block_rows(rollouts, rescored, name)]
    return old, new


def _tokenizer_and_context(config: AlignConfig) -> tuple[Any, int]:
    """A run's tokenizer and the tokens that its model can hold; no weights are loaded."""
    settings = load_pretrained(AutoConfig, config.model)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(settings)
    return load_tokenizer(base, config), context_length_of(base, config)


def _rewarded(rows: Sequence[tuple[Row, Row]], prompts: Mapping[str, Prompt], reward: AnyReward) -> list[Row]:
    """A shard's rows of scores with the rewards of another reward."""
    unknown = sorted({row["prompt_id"] for row, _ in rows} - prompts.keys())
    if unknown:
        raise UserError(
            f"prompt {unknown[0]} is not among the run's --prompts: it trained on a file of groups. Put the new scores "
            "into that file."
        )
    values = rewards_of(reward, [(prompts[row["prompt_id"]], row["text"]) for row, _ in rows]).tolist()
    return [score | {"reward": value} for (_, score), value in zip(rows, values, strict=True)]


def _summary(old: Sequence[float], new: Sequence[float], old_name: str, new_name: str) -> str:
    """What is said of the old rewards, where there are any, and the new ones."""
    if not old:
        return (
            f"{len(new)} completions: mean reward {np.mean(new):.6g} by {new_name}. What the run has of them are the "
            "preferences that its pairs state, which are no rewards to compare with."
        )
    return (
        f"{len(new)} completions: mean reward {np.mean(old):.6g} by {old_name}, {np.mean(new):.6g} by {new_name}, "
        f"rank correlation {_rank_correlation(old, new)}."
    )


def _rank_correlation(old: Sequence[float], new: Sequence[float]) -> str:
    """Spearman's coefficient, which does not exist where all values are equal."""
    if min(old) == max(old) or min(new) == max(new):
        return "undefined (all rewards of one of them are equal)"
    return f"{scipy.stats.spearmanr(old, new).statistic:.3f}"


if __name__ == "__main__":
    sys.exit(entry_point(main))

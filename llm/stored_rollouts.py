"""What a run keeps of its rollouts, read back for another run or for another reward."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.methods import METHODS
from llm.prompts import load_prompts
from llm.records import Prompt
from llm.run_folder import IDENTITY_FILE, SCORER_VERSION, Identity, stored_config
from llm.store import ShardFolder, read_json, rollout_shards, score_shards
from llm.tables import Row

STATED = [1.0, 0.0]
"""What stands for the rewards of a pair, the preferred answer first."""


def has_stated_rewards(folder: Path) -> bool:
    """Whether a run's own scores hold the preferences that its pairs state instead of its reward's rewards.

    A run on the rollouts of another has them where all of its rewards are a pair's; that one may be gone.
    """
    config = stored_config(folder)
    method = METHODS.get(config.method)  # a user's function is not loaded
    if method is None or method.proposal != "given" or not config.rollouts:
        return method is not None and method.proposal == "given"
    fingerprint = stored_identity(folder).fingerprint()
    blocks = [score_shards(folder, fingerprint, phase).read(name) for phase, name in scored_blocks(folder, fingerprint)]
    rewards = [row["reward"] for block in blocks for row in block]
    return rewards == STATED * (len(rewards) // 2)


def rewarded_fingerprint(folder: Path, reward: str) -> str:
    """Return the fingerprint of the scores of a run's completions whose rewards a reward computed.

    Args:
        folder: The run folder.
        reward: The reward's fingerprint; the scores are the run's own where it is the run's, unless those are stated.
    """
    meaning = f"computed by {reward}" if has_stated_rewards(folder) else reward
    return replace(stored_identity(folder), reward=meaning).fingerprint()


def stored_identity(folder: Path) -> Identity:
    """Return what gives a run's stored files their meaning.

    Raises:
        UserError: There is no run, or one of another version.
    """
    stored = read_json(folder / IDENTITY_FILE)
    try:
        identity = Identity(**stored)
    except TypeError as error:
        raise UserError(f"{folder / IDENTITY_FILE}: damaged ({error}). Restore it from a copy.") from error
    if identity.code != SCORER_VERSION:
        raise UserError(f"{folder}: was written by another version of this program. Run it again with this one.")
    return identity


def run_prompts(folder: Path, tokenizer: Any, context_length: int) -> dict[str, Prompt]:
    """Read the training prompts of a run again.

    Args:
        folder: The run folder.
        tokenizer: The run's tokenizer.
        context_length: Tokens that its model can hold.

    Returns:
        The prompts by their ids.

    Raises:
        UserError: They cannot be read any more, or changed since.
    """
    config = stored_config(folder)
    try:
        sets = load_prompts(config, tokenizer, context_length)
    except UserError as error:
        raise UserError(f"{folder}: the prompts of this run cannot be read again. {error}") from error
    if sets.fingerprint() != stored_identity(folder).prompts:
        raise UserError(f"{folder}: its prompts ({config.prompts}) changed since it began. Restore them as they were.")
    return {prompt.prompt_id: prompt for prompt in sets.train}


def scored_rows(folder: Path, fingerprint: str, phase: int) -> list[tuple[Row, Row]] | None:
    """Return a phase's rows of completions and scores, in order, or None where it is not scored to its end.

    Args:
        folder: The run folder.
        fingerprint: Of the scores.
        phase: 0 to e−1.

    Raises:
        UserError: A shard is damaged, or scores are not of these completions.
    """
    rollouts, scores = rollout_shards(folder, phase), score_shards(folder, fingerprint, phase)
    names = block_names(rollouts)
    if not names or any(name not in scores for name in names):
        return None
    rows = [pair for name in names for pair in block_rows(rollouts, scores, name)]
    config = stored_config(folder)
    return rows if len(rows) == config.m * config.n else None


def scored_blocks(folder: Path, fingerprint: str) -> list[tuple[int, str]]:
    """Return the phases and names of the shards of completions that a run has scored.

    Args:
        folder: The run folder.
        fingerprint: Of the scores.

    Raises:
        UserError: There are none.
    """
    found = []
    for phase in itertools.count():
        names = block_names(rollout_shards(folder, phase))
        found += [(phase, name) for name in names if name in score_shards(folder, fingerprint, phase)]
        if not names:
            break
    if not found:
        raise UserError(f"{folder}: has no scored completions yet. Go on with the run by --resume {folder}.")
    return found


def block_names(rollouts: ShardFolder) -> list[str]:
    """Return the names of the shards of a phase's completions, in order."""
    return [name for name in sorted(path.stem for path in rollouts.folder.glob("*.parquet")) if name in rollouts]


def block_rows(rollouts: ShardFolder, scores: ShardFolder, name: str) -> list[tuple[Row, Row]]:
    """Return a shard's rows of completions, each with its row of scores.

    Raises:
        UserError: A shard is missing or damaged, or the scores are of other completions.
    """
    pairs = list(zip(rollouts.read(name), scores.read(name), strict=False))
    checksum = rollouts.checksum(name)
    if any(_key(row) != _key(score) or score["rollouts"] != checksum for row, score in pairs):
        raise UserError(f"{scores.folder / name}.parquet: these scores are not of the completions of this run.")
    return pairs


def _key(row: Row) -> tuple[str, int]:
    """What tells a completion from others."""
    return row["prompt_id"], row["sample_id"]

"""What the prior and the aligned policy make of one prompt, side by side: `python -m llm.sample RUN --prompt TEXT`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig
from llm.console import entry_point, printable
from llm.errors import UserError
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.prompts import encode_prompt, load_prompts
from llm.records import Completion, Prompt
from llm.rewards import AnyReward, ReferenceSubtracted, configured_reward, on_device, rewards_of
from llm.rollout import sample_groups
from llm.run_folder import IDENTITY_FILE, check_model, stored_config
from llm.store import ShardFolder, read_json

WIDTH = 100
"""Characters in a line where there is no terminal."""


@dataclass(frozen=True)
class SampleCommand:
    """Show what the prior and the aligned policy of a run write, with rewards and log q - log p (policy, prior)."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    prompt: str = ""
    """The prompt; the run's first held-out prompt unless given."""
    count: int = 3
    """Completions of each."""
    seed: int = 0
    """Seed of the draws."""
    reward: bool = True
    """Reward the completions; --no-reward leaves the reward model out of memory."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(SampleCommand, args=list(arguments), prog="python -m llm.sample", config=())
    folder = Path(command.run)
    config = stored_config(folder)
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder}: has no adapter yet; go on with python -m llm.align --resume {folder}.")
    if command.count < 1:
        raise UserError(f"--count {command.count}: must be 1 or more.")
    reward = _reward(folder, config) if command.reward else None
    policy = load_policy(config)
    check_model(folder, policy.identity)
    load_best_adapter(folder, policy)
    held_out = ShardFolder(folder / "eval").read("before")[0]
    prompt = _prompt(command.prompt, held_out, policy, config)
    _check_length(prompt, policy, config)
    print(f"{printable(command.prompt or held_out['prompt'])}\n")
    with policy.as_prior():
        completions = _sampled(policy, prompt, command, config)
    completions += _sampled(policy, prompt, command, config)
    cells = _cells(policy, reward, prompt, completions, config)
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    print(side_by_side("prior", "policy", width))
    for left, right in zip(cells[: command.count], cells[command.count :], strict=True):
        print(f"{side_by_side(left, right, width)}\n")


def side_by_side(left: str, right: str, width: int) -> str:
    """Return two texts in two columns.

    Args:
        left: A text; its control characters are shown as escapes.
        right: Another one.
        width: Characters in a line.
    """
    column = max(1, (width - 3) // 2)
    rows = zip_longest(_wrapped(left, column), _wrapped(right, column), fillvalue="")
    return "\n".join(f"{one:<{column}} | {other}".rstrip() for one, other in rows)


def _wrapped(text: str, column: int) -> list[str]:
    """A text in lines that fit a column."""
    lines = printable(text).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, column) or [""]]


def _reward(folder: Path, config: AlignConfig) -> AnyReward:
    """Load the run's reward, as it was."""
    reward = configured_reward(config)
    if reward.fingerprint() != read_json(folder / IDENTITY_FILE).get("reward"):
        raise UserError(
            f"{folder}: the reward {config.reward} changed since the run. Restore it as it was, or use --no-reward."
        )
    return reward


def _prompt(text: str, held_out: dict[str, Any], policy: Policy, config: AlignConfig) -> Prompt:
    """The prompt that was asked for, as chat where the run's own are, or the run's first held-out prompt."""
    if text:
        asked = [{"role": "user", "content": text}] if held_out["is_chat"] else text
        return Prompt("asked", asked, encode_prompt(policy.tokenizer, asked, source="--prompt"), None)
    token_ids = tuple(held_out["prompt_token_ids"])
    if not held_out["is_chat"]:
        return Prompt("asked", held_out["prompt"], token_ids, held_out["reference"])
    first = load_prompts(config, policy.tokenizer, policy.prompt_context).test[0]  # a reward wants the messages
    if first.token_ids != token_ids:
        raise UserError(f"{config.out}: its prompts ({config.prompts}) changed since the run. Give one with --prompt.")
    return replace(first, prompt_id="asked", reference=held_out["reference"])


def _check_length(prompt: Prompt, policy: Policy, config: AlignConfig) -> None:
    """Refuse a prompt that leaves no room."""
    room = policy.prompt_context - config.max_new_tokens
    if len(prompt.token_ids) > room:
        raise UserError(
            f"--prompt: has {len(prompt.token_ids)} tokens and only {room} fit beside the completion. Shorten it."
        )


def _sampled(policy: Policy, prompt: Prompt, command: SampleCommand, config: AlignConfig) -> list[Completion]:
    """Completions of one model."""
    draw = (command.seed, "sample", 0)
    groups = sample_groups(
        policy, [prompt], command.count, draw=draw, max_new_tokens=config.max_new_tokens, stop=config.stop
    )
    return groups[0]


def _cells(
    policy: Policy, reward: AnyReward | None, prompt: Prompt, completions: Sequence[Completion], config: AlignConfig
) -> list[str]:
    """Each completion's text under its reward, if that is wanted, and its log q_θ − log p, nats."""
    pairs = [(prompt, completion) for completion in completions]
    log_policy = score(policy, pairs, config.sample_rows)
    with policy.as_prior():
        log_prior = score(policy, pairs, config.sample_rows)
    texts = [completion.text for completion in completions]
    earned = [""] * len(texts) if reward is None else _rewards(reward, [(prompt, text) for text in texts])
    return [
        f"{r}log q - log p {one - other:+.2f} nats\n{text}"
        for r, one, other, text in zip(earned, log_policy, log_prior, texts, strict=True)
    ]


def _rewards(reward: AnyReward, pairs: Sequence[tuple[Prompt, str]]) -> list[str]:
    """The rewards of a prompt's completions as they are shown; where it has no reference, none is subtracted."""
    if isinstance(reward, ReferenceSubtracted) and pairs[0][0].reference is None:
        reward = reward.reward
    with on_device(reward):
        return [f"reward {value:.4g}, " for value in rewards_of(reward, pairs)]


if __name__ == "__main__":
    sys.exit(entry_point(main))

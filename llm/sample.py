"""Completions of one prompt by the prior and by the aligned policy: `python -m llm.sample RUN --prompt TEXT`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig
from llm.console import entry_point, printable
from llm.errors import UserError
from llm.models import Policy, load_policy
from llm.prompts import encode_prompt
from llm.records import Prompt
from llm.rollout import sample_groups
from llm.run_folder import check_model, stored_config
from llm.store import ShardFolder


@dataclass(frozen=True)
class SampleCommand:
    """Show what the prior and the aligned policy of a run write."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    prompt: str = ""
    """The prompt; the run's first held-out prompt unless given."""
    count: int = 3
    """Completions of each."""
    seed: int = 0
    """Seed of the draws."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(SampleCommand, args=list(arguments), prog="python -m llm.sample", config=())
    folder = Path(command.run)
    config = stored_config(folder)
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder}: has no adapter yet; go on with python -m llm.align --resume {folder}.")
    if command.count < 1:
        raise UserError(f"--count {command.count}: must be 1 or more.")
    policy = load_policy(config)
    check_model(folder, policy.identity)
    load_best_adapter(folder, policy)
    prompt = _prompt(command.prompt, ShardFolder(folder / "eval").read("before")[0], policy)
    _check_length(prompt, policy, config)
    print(printable(str(prompt.text)))
    with policy.as_prior():
        _show("prior", policy, prompt, command, config)
    _show("policy", policy, prompt, command, config)


def _prompt(text: str, held_out: dict[str, Any], policy: Policy) -> Prompt:
    """The prompt that was asked for, as chat where the run's own are, or the run's first held-out prompt."""
    if not text:
        return Prompt("asked", held_out["prompt"], tuple(held_out["prompt_token_ids"]), None)
    asked = [{"role": "user", "content": text}] if held_out["is_chat"] else text
    return Prompt("asked", text, encode_prompt(policy.tokenizer, asked, source="--prompt"), None)


def _show(name: str, policy: Policy, prompt: Prompt, command: SampleCommand, config: AlignConfig) -> None:
    """Print the completions of one model."""
    draw = (command.seed, "sample", 0)
    groups = sample_groups(
        policy, [prompt], command.count, draw=draw, max_new_tokens=config.max_new_tokens, stop=config.stop
    )
    for completion in groups[0]:
        print(f"{name:<7}|{printable(completion.text)}")


def _check_length(prompt: Prompt, policy: Policy, config: AlignConfig) -> None:
    """Refuse a prompt that leaves no room."""
    room = policy.context_length - config.max_new_tokens
    if len(prompt.token_ids) > room:
        raise UserError(
            f"--prompt: has {len(prompt.token_ids)} tokens and only {room} fit beside the completion. Shorten it."
        )


if __name__ == "__main__":
    sys.exit(entry_point(main))

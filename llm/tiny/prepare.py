"""Prepare a small world, such as the embedded default: write its data, train its prior and its reward model, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from llm import reward_model, rewards
from llm.reward_model import RewardModelConfig, train_reward_model
from llm.tiny import tasks, world
from llm.tiny.tasks import Facts, Task, build_tokenizer, load_task
from llm.tiny.world import Writer

WRITER = Writer()
PROOF_WRITER = Writer(right=0.4, vague=0.2)


@dataclass(frozen=True)
class WorldSettings:
    """Everything that shapes a small world; another value gets another folder of the cache."""

    task: str = "summaries"
    """Which world: one of `llm.tiny.tasks.TASKS`."""
    seed: int = 0
    writer: Writer = WRITER
    """Who writes the references, the prior's completions and the completions that are compared."""
    proof_writer: Writer = PROOF_WRITER
    """Who writes what is proofread; as often wrong as right, from which most is learned."""
    sharpness: float = 3.0
    """The labeller prefers the better of two completions with probability sigmoid(sharpness * difference of grades)."""
    prompts: int = 1200
    """Prompts with a reference, for alignment, validation and test."""
    prior_pages: int = 19200
    """What the prior learns from, each seen once: one half prompts with completions, the other prompts with proofs."""
    prior_batch: int = 16
    prior_learning_rate: float = 4e-3
    pairs: int = 32000
    """Prompts with two completions and a preference; in one half of them the two differ in one part only."""
    reward_batch: int = 8
    reward_learning_rate: float = 1e-3
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    context: int = 256


MINIATURE: dict[str, Any] = {"prompts": 300, "prior_pages": 1600, "pairs": 1600}
"""Sizes of a world that is ready in seconds, for trials: `dataclasses.replace(settings, **MINIATURE)`."""


def prepare(settings: WorldSettings | None = None) -> dict[str, str]:
    """Build a small world, or reuse it from the cache.

    The cache is the user's cache folder, or the folder that the environment variable BRAIN_CACHE names. A world
    appears in it whole or not at all, so an interrupted or concurrent preparation does no harm.

    Args:
        settings: the world's settings; the embedded default's where None.

    Returns:
        options for alignment: the prior's folder under "model", the file of prompts and references under "prompts",
        the reward model's folder under "reward".

    Raises:
        UserError: there is no world of the name in `settings.task`.
    """
    settings = settings or WorldSettings()
    folder = _folder(settings)
    if folder.exists():
        print(f"small world of {settings.task}: reusing {folder}", file=sys.stderr)
    else:
        print(
            f"small world of {settings.task}: training a prior and a reward model, once, into {folder}", file=sys.stderr
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        _build_whole(settings, folder)
    return _options(folder)


def prepared(settings: WorldSettings | None = None) -> dict[str, str] | None:
    """Return what `prepare` would if that is in the cache."""
    folder = _folder(settings or WorldSettings())
    return _options(folder) if folder.exists() else None


# What the presets of the other worlds name.
prepare_dialogue, prepared_dialogue = (partial(f, WorldSettings(task="dialogue")) for f in (prepare, prepared))
prepare_translation, prepared_translation = (partial(f, WorldSettings(task="translation")) for f in (prepare, prepared))
prepare_code, prepared_code = (partial(f, WorldSettings(task="code")) for f in (prepare, prepared))


def _folder(settings: WorldSettings) -> Path:
    """Where a world is, or would be, in the cache."""
    home = Path(os.environ.get("BRAIN_CACHE") or platformdirs.user_cache_dir("brain-align"))
    return home / f"tiny-world-{_fingerprint(settings)}"


def _options(folder: Path) -> dict[str, str]:
    """A world's files as options for alignment."""
    return {
        "model": str(folder / "model"),
        "prompts": str(folder / "prompts.jsonl"),
        "reward": str(folder / "reward_model"),
    }


def _fingerprint(settings: WorldSettings) -> str:
    """What changes with the settings or with the code that builds the world."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    common = (__file__, tasks.__file__, world.__file__, rewards.__file__, reward_model.__file__)
    for name in (*common, *load_task(settings.task).sources):
        digest.update(Path(name).read_bytes())
    return digest.hexdigest()[:16]


def _build_whole(settings: WorldSettings, folder: Path) -> None:
    """Build under a temporary name, then rename; whoever comes second keeps the first one's world."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-", ignore_cleanup_errors=True) as temporary:
        built = Path(temporary) / "world"
        _build(settings, built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _build(settings: WorldSettings, folder: Path) -> None:
    """Write prompts, preferences, prior and reward model."""
    folder.mkdir()
    _write_rows(folder / "prompts.jsonl", _prompt_rows(settings))
    _write_rows(folder / "preferences.jsonl", _preference_rows(settings))
    with _one_thread():
        _train_prior(settings, folder / "model")
        train_reward_model(
            RewardModelConfig(
                model=str(folder / "model"),
                data=str(folder / "preferences.jsonl"),
                out=str(folder / "reward_model"),
                batch=settings.reward_batch,
                learning_rate=settings.reward_learning_rate,
                held_out=0.05,
                device="cpu",
                seed=settings.seed,
            )
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: matrices this small gain little from more, and the result is the same on every core count.

    Two threads that wait for each other lose a lot, tenfold, where another program has one of two cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Write JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prompt_rows(settings: WorldSettings) -> Iterator[dict[str, str]]:
    """Prompts with a reference by the writer."""
    task, rng = load_task(settings.task), random.Random(f"{settings.seed} prompts")
    for _ in range(settings.prompts):
        facts = task.draw(rng)
        prompt = task.write_prompt(facts, rng, end=task.end)
        yield {"prompt": prompt, "reference": "".join(task.write_completion(facts, rng, settings.writer))}


def _preference_rows(settings: WorldSettings) -> Iterator[dict[str, str]]:
    """Prompts with two completions by the writer, labelled by a Bradley-Terry labeller who sees the grades."""
    task, rng = load_task(settings.task), random.Random(f"{settings.seed} preferences")
    for _ in range(settings.pairs):
        facts = task.draw(rng)
        prompt = task.write_prompt(facts, rng, end=task.end)
        first, second = _two_completions(task, facts, rng, settings.writer)
        margin = settings.sharpness * (task.grade_one(facts, first) - task.grade_one(facts, second))
        if rng.random() >= 1.0 / (1.0 + math.exp(-margin)):
            first, second = second, first
        yield {"prompt": prompt, "chosen": first, "rejected": second}


def _two_completions(task: Task, facts: Facts, rng: random.Random, writer: Writer) -> tuple[str, str]:
    """Two completions: half of the time independent, half of the time the second revises one part of the first."""
    first, second = task.write_completion(facts, rng, writer), task.write_completion(facts, rng, writer)
    if rng.random() < 0.5:
        part = rng.randrange(len(first))
        while second[part] == first[part]:
            second = task.write_completion(facts, rng, writer)
        second = [*first[:part], second[part], *first[part + 1 :]]
    return "".join(first), "".join(second)


def _train_prior(settings: WorldSettings, out: Path) -> None:
    """Train a small Llama on completions and proofs; the loss is on what follows the prompt, with the end token."""
    task = load_task(settings.task)
    tokenizer = build_tokenizer(task.texts())
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(_model_config(settings, tokenizer))
    steps = settings.prior_pages // settings.prior_batch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.prior_learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.prior_learning_rate, total_steps=steps, pct_start=0.1
    )
    rng = random.Random(f"{settings.seed} prior")
    progress = tqdm(range(steps), desc="prior", file=sys.stderr, mininterval=0.5)
    for _ in progress:
        loss = model(**_prior_batch([_page(task, settings, rng) for _ in range(settings.prior_batch)], tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with rewards.quiet_transformers():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _model_config(settings: WorldSettings, tokenizer: Any) -> LlamaConfig:
    """A small Llama; with one embedding for input and output, of entries this large, it learns to copy words soon."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _prior_batch(pages: list[tuple[str, str]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Pages as ids, mask and labels, each (B, T), padded on the right; -100 is not learned."""
    rows = [(tokenizer.encode(prompt), [*tokenizer.encode(said), tokenizer.eos_token_id]) for prompt, said in pages]
    longest = max(len(prompt) + len(said) for prompt, said in rows)

    def padded(parts: Iterator[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([part + [fill] * (longest - len(part)) for part in parts])

    return {
        "input_ids": padded((prompt + said for prompt, said in rows), tokenizer.pad_token_id),
        "attention_mask": padded(([1] * len(prompt + said) for prompt, said in rows), 0),
        "labels": padded(([-100] * len(prompt) + said for prompt, said in rows), -100),
    }


def _page(task: Task, settings: WorldSettings, rng: random.Random) -> tuple[str, str]:
    """A prompt and what follows it: a completion, or as often a proof."""
    facts = task.draw(rng)
    if rng.random() < 0.5:
        prompt = task.write_prompt(facts, rng, end=task.end)
        return prompt, "".join(task.write_completion(facts, rng, settings.writer))
    parts = task.write_completion(facts, rng, settings.proof_writer)
    return task.write_prompt(facts, rng, end=task.proof_end), "".join(task.proofread(parts, facts))

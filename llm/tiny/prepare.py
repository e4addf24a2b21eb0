"""Prepare the embedded default: write the small world's data and train its prior and its reward model, once."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from llm import reward_model, rewards
from llm.reward_model import RewardModelConfig, train_reward_model
from llm.tiny import judge, world
from llm.tiny.judge import grade_one
from llm.tiny.world import Writer, build_tokenizer, draw_facts, write_post, write_summary


@dataclass(frozen=True)
class WorldSettings:
    """Everything that shapes the small world; another value gets another folder of the cache."""

    seed: int = 0
    writer: Writer = Writer()
    sharpness: float = 2.0
    """The labeller prefers the better of two summaries with probability sigmoid(sharpness * difference of grades)."""
    prompts: int = 1200
    """Posts with a reference summary, for alignment, validation and test."""
    prior_posts: int = 25600
    """Posts with a summary that the prior learns from, each seen once."""
    prior_batch: int = 32
    prior_learning_rate: float = 6e-3
    pairs: int = 16000
    """Posts with two summaries and a preference."""
    reward_batch: int = 32
    reward_learning_rate: float = 3e-3
    hidden_size: int = 96
    layers: int = 2
    heads: int = 4
    context: int = 128


def prepare(settings: WorldSettings | None = None) -> dict[str, str]:
    """Build the small world, or reuse it from the cache.

    The cache is the user's cache folder, or the folder that the environment variable BRAIN_CACHE names. A world
    appears in it whole or not at all, so an interrupted or concurrent preparation does no harm.

    Args:
        settings: the world's settings; the embedded default's where None.

    Returns:
        options for alignment: the prior's folder under "model", the file of posts and references under "prompts", the
        reward model's folder under "reward".
    """
    settings = settings or WorldSettings()
    home = Path(os.environ.get("BRAIN_CACHE") or platformdirs.user_cache_dir("brain-align"))
    folder = home / f"tiny-world-{_fingerprint(settings)}"
    if folder.exists():
        print(f"small world: reusing {folder}", file=sys.stderr)
    else:
        print(f"small world: training a prior and a reward model, once, into {folder}", file=sys.stderr)
        home.mkdir(parents=True, exist_ok=True)
        _build_whole(settings, folder)
    return {
        "model": str(folder / "model"),
        "prompts": str(folder / "prompts.jsonl"),
        "reward": str(folder / "reward_model"),
    }


def _fingerprint(settings: WorldSettings) -> str:
    """What changes with the settings or with the code that builds the world."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for name in (__file__, world.__file__, judge.__file__, rewards.__file__, reward_model.__file__):
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
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        _train_prior(settings, folder / "model")
    train_reward_model(
        RewardModelConfig(
            model=str(folder / "model"),
            data=str(folder / "preferences.jsonl"),
            out=str(folder / "reward_model"),
            batch=settings.reward_batch,
            learning_rate=settings.reward_learning_rate,
            held_out=0.05,
            seed=settings.seed,
        )
    )


def _write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Write JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prompt_rows(settings: WorldSettings) -> Iterator[dict[str, str]]:
    """Posts with a reference by the writer."""
    rng = random.Random(f"{settings.seed} prompts")
    for _ in range(settings.prompts):
        facts = draw_facts(rng)
        yield {"prompt": write_post(facts, rng), "reference": write_summary(facts, rng, settings.writer)}


def _preference_rows(settings: WorldSettings) -> Iterator[dict[str, str]]:
    """Posts with two summaries by the writer, labelled by a Bradley-Terry labeller who sees the grades."""
    rng = random.Random(f"{settings.seed} preferences")
    for _ in range(settings.pairs):
        facts = draw_facts(rng)
        post = write_post(facts, rng)
        first, second = (write_summary(facts, rng, settings.writer) for _ in range(2))
        margin = settings.sharpness * (grade_one(facts, first) - grade_one(facts, second))
        if rng.random() >= 1.0 / (1.0 + math.exp(-margin)):
            first, second = second, first
        yield {"prompt": post, "chosen": first, "rejected": second}


def _train_prior(settings: WorldSettings, out: Path) -> None:
    """Train a small Llama on the writer's summaries; the loss is on the summary and the end token."""
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(_model_config(settings, tokenizer))
    steps = settings.prior_posts // settings.prior_batch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.prior_learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.prior_learning_rate, total_steps=steps, pct_start=0.1
    )
    rng = random.Random(f"{settings.seed} prior")
    progress = tqdm(range(steps), desc="prior", file=sys.stderr)
    for _ in progress:
        loss = model(**_prior_batch(settings, tokenizer, rng)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _model_config(settings: WorldSettings, tokenizer: Any) -> LlamaConfig:
    """A small Llama whose input and output embeddings are one, which makes copying a word easy."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=8 * settings.hidden_size // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _prior_batch(settings: WorldSettings, tokenizer: Any, rng: random.Random) -> dict[str, torch.Tensor]:
    """Fresh posts with summaries: ids, mask and labels, each (B, T), padded on the right; -100 is not learned."""
    rows = []
    for _ in range(settings.prior_batch):
        facts = draw_facts(rng)
        prompt = tokenizer.encode(write_post(facts, rng))
        rows.append((prompt, [*tokenizer.encode(write_summary(facts, rng, settings.writer)), tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(summary) for prompt, summary in rows)

    def padded(parts: Iterator[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([part + [fill] * (longest - len(part)) for part in parts])

    return {
        "input_ids": padded((p + s for p, s in rows), tokenizer.pad_token_id),
        "attention_mask": padded(([1] * len(p + s) for p, s in rows), 0),
        "labels": padded(([-100] * len(p) + s for p, s in rows), -100),
    }

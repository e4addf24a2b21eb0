"""Train a reward model on anybody's preferences: `python -m llm.reward_model`.

The reward becomes a goodness in one of the paper's two ways: trained with the Bradley-Terry loss on pairs it is the
logit of one completion being preferred to another (eq. 19); trained with the logistic loss on labels, sigmoid(reward)
is the probability that a completion is good (eq. 15).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from llm.console import entry_point
from llm.errors import UserError
from llm.models import resolve_device
from llm.rewards import (
    check_length,
    context_length,
    is_chat,
    load_classifier,
    new_folder,
    quiet_transformers,
    reward_input,
    score,
)
from llm.statistics import proportion
from llm.tables import column, read_rows

REPORT = "report.json"
BINS = 10


@dataclass(frozen=True)
class RewardModelConfig:
    """Train a reward model on preference pairs or labelled completions."""

    model: str
    """The model to start from: a directory or hub name of a causal language model or a sequence classifier. The SFT
    model that will be aligned is a good start: it already relates a completion to its prompt."""
    data: str
    """A .jsonl, .jsonl.gz, .parquet or .csv file with the columns prompt, chosen, rejected (bradley-terry) or prompt,
    completion, label (logistic; the label is 0 or 1). A prompt is text or a list of chat messages."""
    out: str
    """Folder for the model, its tokenizer and report.json; it must be new or empty."""
    loss: Literal["bradley-terry", "logistic"] = "bradley-terry"
    """Loss."""
    epochs: int = 1
    """Passes over the training rows."""
    batch: int = 32
    """Rows (pairs or completions) in one gradient step."""
    learning_rate: float = 1e-5
    """Peak of AdamW's learning rate, which rises linearly and falls to 0 along a cosine; 1e-5 suits billions of
    parameters, 1e-3 a few millions."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    adam_beta2: float = 0.98
    """AdamW's second moment decay."""
    max_grad_norm: float = 1.0
    """The gradient is clipped to this L2 norm."""
    held_out: float = 0.1
    """Share of the rows, drawn by the seed, that is kept out of training for the report."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, …"""
    seed: int = 0
    """Seed of the held-out split, the fresh output layer and the order of the rows."""


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Args:
        inputs: chosen and rejected of a pair, or the one labelled completion.
        sign: -1 for a completion labelled 0, else 1.
    """

    inputs: tuple[list[int], ...]
    sign: float


def train_reward_model(config: RewardModelConfig) -> dict[str, Any]:
    """Train a reward model and write it with its held-out report to `config.out`.

    Args:
        config: the settings.

    Returns:
        the report, as in report.json: see `held_out_report`.

    Raises:
        UserError: The data, the model, the output folder or a setting is not usable; the message says what to do.
    """
    _check(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model, tokenizer = load_classifier(config.model, fresh_output=True)
    training, held_out = _split(_read_examples(config, tokenizer, context_length(model, tokenizer)), config)
    model.to(resolve_device(config.device))
    _fit(model, training, config)
    model.eval()
    report = {"settings": _recorded(config), "training_rows": len(training)}
    report |= held_out_report(_margins(model, held_out, config.batch))
    with new_folder(Path(config.out)) as built, quiet_transformers():
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        (built / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return report


def held_out_report(margins: np.ndarray) -> dict[str, Any]:
    """Accuracy and calibration on held-out rows.

    Args:
        margins: (N,) logits of the right answer: r(chosen) - r(rejected), or r for label 1 and -r for label 0.

    Returns:
        accuracy with its 95 % Wilson interval and the number of rows (an exact tie counts as wrong); log_loss in nats;
        expected_calibration_error, the mean gap between confidence and accuracy; and reliability, a list of bins of
        equal width in confidence, each with rows, confidence and accuracy.
    """
    right = margins > 0
    # sigmoid(|m|) and log(1 + exp(-m)), written so that neither overflows
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    reliability = _reliability(confidence, right)
    gaps = [entry["rows"] * abs(entry["confidence"] - entry["accuracy"]) for entry in reliability]
    return {
        "accuracy": proportion(right),
        "log_loss": float(np.logaddexp(0.0, -margins).mean()),
        "expected_calibration_error": float(sum(gaps) / len(margins)),
        "reliability": reliability,
    }


def _reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Rows, mean confidence and accuracy of each filled bin of confidence in [1/2, 1]."""
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "rows": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(right[bins == index].mean()),
        }
        for index in np.unique(bins)
    ]


def _recorded(config: RewardModelConfig) -> dict[str, Any]:
    """The settings for the report, with paths as seen from its folder, so that the folder can be moved along."""
    settings = dataclasses.asdict(config)
    for name in ("model", "data"):
        if os.path.exists(settings[name]):
            settings[name] = os.path.relpath(settings[name], config.out)
    del settings["out"]
    return settings


def _check(config: RewardModelConfig) -> None:
    """Refuse settings that cannot work."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already and is not an empty folder. Name a new one.")
    for name in ("epochs", "batch", "learning_rate", "max_grad_norm"):
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be above 0 and finite.")
    if not 0 < config.held_out < 1:
        raise UserError(f"--held-out {config.held_out}: must lie between 0 and 1, both excluded.")
    if not 0 <= config.warmup <= 1:
        raise UserError(f"--warmup {config.warmup}: must lie between 0 and 1.")
    if not 0 <= config.adam_beta2 < 1:
        raise UserError(f"--adam-beta2 {config.adam_beta2}: must lie in [0, 1).")
    if config.weight_decay < 0 or not math.isfinite(config.weight_decay):
        raise UserError(f"--weight-decay {config.weight_decay}: must be finite and not negative.")


def _read_examples(config: RewardModelConfig, tokenizer: Any, limit: int) -> list[Example]:
    """All rows as token ids."""
    read = _read_pair if config.loss == "bradley-terry" else _read_labelled
    return [read(row, config.data, number, tokenizer, limit) for number, row in read_rows(config.data)]


def _read_pair(row: dict[str, Any], data: str, number: int, tokenizer: Any, limit: int) -> Example:
    """One row of preferences."""
    chosen, rejected = (_tokens(row, name, data, number, tokenizer, limit) for name in ("chosen", "rejected"))
    return Example((chosen, rejected), 1.0)


def _read_labelled(row: dict[str, Any], data: str, number: int, tokenizer: Any, limit: int) -> Example:
    """One row with a label."""
    label = column(row, "label", source=data, number=number)
    if str(label) not in ("0", "1", "0.0", "1.0", "True", "False"):
        raise UserError(f"{data}, row {number}: label {label!r} is neither 0 nor 1.")
    good = str(label) in ("1", "1.0", "True")
    return Example((_tokens(row, "completion", data, number, tokenizer, limit),), 1.0 if good else -1.0)


def _tokens(row: dict[str, Any], name: str, data: str, number: int, tokenizer: Any, limit: int) -> list[int]:
    """The prompt of a row with one of its completions."""
    where = f"{data}, row {number}"
    prompt = column(row, "prompt", source=data, number=number)
    if not (isinstance(prompt, str) or is_chat(prompt)):
        raise UserError(f"{where}: prompt must be text or a list of chat messages with role and content.")
    completion = column(row, name, source=data, number=number)
    if not isinstance(completion, str):
        raise UserError(f"{where}: {name} is of type {type(completion).__name__}; it must be text.")
    ids = reward_input(tokenizer, prompt, completion, where=where)
    check_length(ids, limit, where=where)
    return ids


def _split(examples: list[Example], config: RewardModelConfig) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows, drawn by the seed."""
    if len(examples) < 2:
        raise UserError(
            f"{config.data}: has {len(examples)} row; at least 2 are needed, one to train and one held out."
        )
    order = random.Random(config.seed).sample(examples, len(examples))
    count = min(max(round(config.held_out * len(order)), 1), len(order) - 1)
    return order[count:], order[:count]


def _fit(model: Any, examples: list[Example], config: RewardModelConfig) -> None:
    """Train the model in place; dropout is as the model's configuration has it."""
    batches = list(_batches(examples, config))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        weight_decay=config.weight_decay,
    )
    warmup = max(round(config.warmup * len(batches)), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup, len(batches)))
    model.train()
    progress = tqdm(batches, desc="reward model", file=sys.stderr, mininterval=0.5)
    for batch in progress:
        loss = -torch.nn.functional.logsigmoid(_margin(model, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError("the training diverged: its gradient is not finite. Use a smaller --learning-rate.")
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _rate(step: int, warmup: int, total: int) -> float:
    """The learning rate at a step as a share of its peak: a linear rise, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _batches(examples: list[Example], config: RewardModelConfig) -> Iterator[list[Example]]:
    """Batches of all epochs, each epoch in an order of its own."""
    rng = random.Random(f"{config.seed} order")
    for _ in range(config.epochs):
        order = rng.sample(examples, len(examples))
        for start in range(0, len(order), config.batch):
            yield order[start : start + config.batch]


def _margin(model: Any, batch: list[Example]) -> torch.Tensor:
    """The logit of the right answer for each row, (B,)."""
    width = len(batch[0].inputs)
    scores = score(model, [ids for example in batch for ids in example.inputs]).view(len(batch), width)
    signs = torch.tensor([example.sign for example in batch], device=scores.device)
    return signs * (scores[:, 0] - scores[:, 1] if width == 2 else scores[:, 0])


@torch.inference_mode()
def _margins(model: Any, examples: list[Example], batch: int) -> np.ndarray:
    """The logits of the right answers, (N,) float64."""
    parts = [_margin(model, examples[start : start + batch]) for start in range(0, len(examples), batch)]
    return torch.cat(parts).double().cpu().numpy()


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    config = tyro.cli(RewardModelConfig, args=list(arguments), prog="python -m llm.reward_model")
    print(report_text(train_reward_model(config), config.out))


def report_text(report: dict[str, Any], out: str) -> str:
    """The report for a reader."""
    accuracy = report["accuracy"]
    ends = (accuracy["low"], accuracy["high"])
    interval = "one row, no interval" if None in ends else ", ".join(f"{end:.1%}" for end in ends)
    lines = [
        f"held-out accuracy  {accuracy['estimate']:.1%} [{interval}] on {accuracy['n']} rows",
        f"log-loss           {report['log_loss']:.3f} nats (a coin: {math.log(2):.3f})",
        f"calibration error  {report['expected_calibration_error']:.3f}",
        "confidence  accuracy  rows",
    ]
    lines += [f"{b['confidence']:10.3f}  {b['accuracy']:8.3f}  {b['rows']:4d}" for b in report["reliability"]]
    return "\n".join([*lines, f"written to {out}"])


if __name__ == "__main__":
    sys.exit(entry_point(main))

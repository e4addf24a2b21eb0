"""Scoring and training by the shared-prefix engine against the plain path: python THIS_FILE --shape tldr --size s.

Both sides run in turns in one process on the same weights, tokens and LoRA; the plain path in batches of 8 rows, which
is its fastest. Prints seconds per prompt group, the ratio of medians, tokens and matrix FLOPs through the backbone and
the largest difference between the two sides. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llm.logprob import score, sequence_log_probs
from llm.models import Policy
from llm.records import Completion, Pair, Prompt
from llm.shared_prefix import attach

SHAPES = {"tldr": (512, 48, 32), "hh": (200, 128, 8)}  # prompt, completion, n
SIZES = {
    "s": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024, "vocab_size": 32000},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1376, "vocab_size": 8000},
}
PLAIN_ROWS = 8


def model(size: str) -> LlamaForCausalLM:
    """A random Llama with LoRA of rank 8 on q and v, both sides of the pair."""
    torch.manual_seed(0)
    heads = SIZES[size]["hidden_size"] // 64
    config = LlamaConfig(num_attention_heads=heads, max_position_embeddings=4096, **SIZES[size])
    base = LlamaForCausalLM(config).eval().requires_grad_(False)
    attach(base)
    return get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()


def group(shape: str, vocabulary: int) -> list[Pair]:
    """One prompt and its completions, of random tokens."""
    width, length, n = SHAPES[shape]
    prompt = Prompt("0", "", tuple(torch.randint(3, vocabulary, (width,)).tolist()), None)
    rows = torch.randint(3, vocabulary, (n, length)).tolist()
    return [(prompt, Completion("0", i, tuple(row), "length", "")) for i, row in enumerate(rows)]


def training_pass(policy: Policy, pairs: list[Pair], rows: int) -> torch.Tensor:
    """Forward and backward with fixed coefficients; the gradient."""
    for parameter in policy.parameters():
        parameter.grad = None
    weights = torch.linspace(-1, 1, len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), rows):
        part = slice(start, start + rows)
        (weights[part] * sequence_log_probs(policy, pairs[part])).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measured(options: argparse.Namespace) -> dict[str, object]:
    """Medians of interleaved turns, and how far the two sides are apart."""
    adapted = model(options.size)
    pairs = group(options.shape, SIZES[options.size]["vocab_size"])
    sides = {
        "plain": (Policy(adapted, None, (2,), 4096, "", shares_prompts=False), PLAIN_ROWS),
        "shared-prefix": (Policy(adapted, None, (2,), 4096, "", shares_prompts=True), len(pairs)),
    }
    phases = {"scoring": score, "training": training_pass}
    times: dict[str, dict[str, list[float]]] = {phase: {side: [] for side in sides} for phase in phases}
    for turn in range(options.turns + 1):
        for phase, run in phases.items():
            for side, (policy, rows) in sides.items():
                took = seconds(lambda run=run, policy=policy, rows=rows: run(policy, pairs, rows))
                times[phase][side] += [took] * (turn > 0)  # the first turn warms up
    medians = {
        phase: {side: statistics.median(values) for side, values in found.items()} for phase, found in times.items()
    }
    log_probs = [torch.tensor(score(*sides[side][:1], pairs, sides[side][1])) for side in sides]
    gradients = [training_pass(*sides[side][:1], pairs, sides[side][1]) for side in sides]
    width, length, n = SHAPES[options.shape]
    return {
        "shape": options.shape,
        "size": options.size,
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "ratio": {phase: found["plain"] / found["shared-prefix"] for phase, found in medians.items()},
        "backbone_tokens": {"plain": n * (width + length), "shared-prefix": width + n * length},
        "largest_difference_of_log_probs": float((log_probs[0] - log_probs[1]).abs().max()),
        "relative_difference_of_gradients": float((gradients[0] - gradients[1]).norm() / gradients[0].norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tldr")
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(options)
    for phase, sides in found["seconds"].items():
        shown = ", ".join(f"{side} {value:.3f} s" for side, value in sides.items())
        print(f"{phase:9} {shown}, ratio {found['ratio'][phase]:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Scoring and training by the shared-prefix engine against the plain path: python THIS_FILE --shape tldr --size s.

Both sides run in turns in one process on the same weights, tokens and LoRA; the plain path in batches of 8 rows, which
is its fastest. Prints seconds per prompt group, the ratio of medians, tokens through the backbone and the largest
difference between the two sides. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_llama import SHAPES, SIZES, Phases, interleaved, medians, save_llama, saved_policy

from llm.logprob import score, sequence_log_probs
from llm.models import Policy
from llm.records import Pair

PLAIN_ROWS = 8


def training_pass(policy: Policy, pairs: list[Pair], rows: int) -> torch.Tensor:
    """Forward and backward with fixed coefficients; the gradient."""
    policy.model.zero_grad()
    weights = torch.linspace(-1, 1, len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), rows):
        part = slice(start, start + rows)
        (weights[part] * sequence_log_probs(policy, pairs[part])).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def measured(shape_name: str, size: str, turns: int) -> dict[str, Any]:
    """Medians of interleaved turns, and how far the two sides are apart."""
    with tempfile.TemporaryDirectory() as folder:
        save_llama(size, Path(folder))
        policies = {engine: saved_policy(Path(folder), engine) for engine in ("plain", "shared-prefix")}
    shape = SHAPES[shape_name]
    pairs = Phases(policies["shared-prefix"], shape).pairs
    rows = {"plain": PLAIN_ROWS, "shared-prefix": len(pairs)}
    phases = {"scoring": score, "training": training_pass}
    runs = {(p, e): partial(run, policies[e], pairs, rows[e]) for p, run in phases.items() for e in policies}
    found = medians(interleaved(runs, turns))
    log_probs = [torch.tensor(runs["scoring", engine]()) for engine in policies]
    gradients = [runs["training", engine]() for engine in policies]
    return {
        "shape": shape_name,
        "size": size,
        "threads": torch.get_num_threads(),
        "seconds": {phase: {engine: found[phase, engine] for engine in policies} for phase in phases},
        "ratio": {phase: found[phase, "plain"] / found[phase, "shared-prefix"] for phase in phases},
        "backbone_tokens": {"plain": shape.n * (shape.prompt + shape.completion), "shared-prefix": shape.tokens},
        "largest_difference_of_log_probs": float((log_probs[0] - log_probs[1]).abs().max()),
        "relative_difference_of_gradients": float((gradients[0] - gradients[1]).norm() / gradients[0].norm()),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tldr")
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(options.shape, options.size, options.turns)
    for phase, sides in found["seconds"].items():
        shown = ", ".join(f"{side} {value:.3f} s" for side, value in sides.items())
        print(f"{phase:9} {shown}, ratio {found['ratio'][phase]:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

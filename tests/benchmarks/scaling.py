"""How scoring and training grow with the group and the prompt: python tests/benchmarks/scaling.py --size s|m.

One group of n = 2 to 64 completions of 48 tokens after a prompt of 512, and one of n = 8 after prompts of 64 to 2,048;
medians of interleaved turns, of scoring and one training pass together. A line is fitted to the seconds of n >= 8 over
the tokens, prompt + n * completion. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy.stats import linregress

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_llama import SIZES, Phases, Shape, interleaved, medians, save_llama, saved_policy

COMPLETION = 48
BY_N = [Shape(512, COMPLETION, n) for n in (2, 4, 8, 16, 32, 64)]
BY_PROMPT = [Shape(prompt, COMPLETION, 8) for prompt in (64, 128, 256, 512, 1024, 2048)]


def line(shapes: list[Shape], found: list[float]) -> dict[str, float]:
    """The line of seconds over tokens, and how time and tokens grow from the first shape to the last."""
    tokens = [shape.tokens for shape in shapes]
    fit = linregress(tokens, found)
    return {
        "r_squared": fit.rvalue**2,
        "seconds_per_token": fit.slope,
        "seconds_at_0": fit.intercept,
        "time_ratio": found[-1] / found[0],
        "token_ratio": tokens[-1] / tokens[0],
    }


def measured(size: str, turns: int) -> dict[Shape, float]:
    """Median seconds of every shape."""
    with tempfile.TemporaryDirectory() as folder:
        save_llama(size, Path(folder))
        policy = saved_policy(Path(folder))
    runs = {}
    for shape in dict.fromkeys(BY_N + BY_PROMPT):
        phases = Phases(policy, shape)
        runs[shape] = lambda phases=phases: (phases.scoring(), phases.training())
    return medians(interleaved(runs, turns))


def report(size: str, turns: int) -> dict[str, Any]:
    """Measure every shape, and fit the line to groups of 8 completions and more."""
    found = measured(size, turns)
    large = [shape for shape in BY_N if shape.n >= 8]
    return {
        "size": size,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "by_n": [shape._asdict() | {"tokens": shape.tokens, "seconds": found[shape]} for shape in BY_N],
        "by_prompt": [shape._asdict() | {"tokens": shape.tokens, "seconds": found[shape]} for shape in BY_PROMPT],
        "line_over_n": line(large, [found[shape] for shape in large]),
        "line_over_prompt": line(BY_PROMPT, [found[shape] for shape in BY_PROMPT]),
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'prompt':>8}{'n':>4}{'tokens':>8}{'seconds':>10}{'us a token':>12}")
    for row in found["by_n"] + found["by_prompt"]:
        each = 1e6 * row["seconds"] / row["tokens"]
        print(f"{row['prompt']:8}{row['n']:4}{row['tokens']:8,}{row['seconds']:10.3f}{each:12.0f}")
    for name in ("line_over_n", "line_over_prompt"):
        print(
            "{0}: R2 {r_squared:.4f}, {seconds_per_token:.2e} s a token, {seconds_at_0:.3f} s at 0; "
            "from first to last, time x {time_ratio:.2f}, tokens x {token_ratio:.2f}".format(
                name.replace("_", " "), **found[name]
            )
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = report(options.size, options.turns)
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

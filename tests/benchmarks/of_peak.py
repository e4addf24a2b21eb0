"""How much of the matrix peak the phases of a run reach: python tests/benchmarks/of_peak.py --shape tldr --size m.

A rollout samples as many prompts' groups in one call as a run does by default; scoring and training are of one group.
The peak is the rate of the fastest float32 matrix product in the same turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_llama import SHAPES, SIZES, MatrixPeak, Phases, interleaved, medians, save_llama, saved_policy, useful_flops

from llm.config import AlignConfig


def measured(shape_name: str, size: str, turns: int) -> dict[str, Any]:
    """Median seconds of each phase per prompt group, its useful FLOPs and what part of the peak that is."""
    shape = SHAPES[shape_name]
    groups = AlignConfig.sample_rows // shape.n
    with tempfile.TemporaryDirectory() as folder:
        save_llama(size, Path(folder))
        phases = Phases(saved_policy(Path(folder)), shape, groups)
    peak = MatrixPeak()
    runs = {"peak": peak, "rollout": phases.rollout, "scoring": phases.scoring, "training": phases.training}
    found = medians(interleaved(runs, turns))
    found["rollout"] /= groups
    best = statistics.median(peak.rates[1:])
    flops = useful_flops(phases.policy, shape)
    work = {"rollout": flops["policy"], "scoring": flops["prior"], "training": flops["training"]}
    return {
        "shape": shape_name,
        "size": size,
        "turns": turns,
        "groups": groups,
        "threads": torch.get_num_threads(),
        "matrix_peak_gflops": best / 1e9,
        "seconds": {phase: found[phase] for phase in work},
        "useful_gflop": {phase: value / 1e9 for phase, value in work.items()},
        "fraction_of_peak": {phase: value / found[phase] / best for phase, value in work.items()},
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(options.shape, options.size, options.turns)
    for phase, share in found["fraction_of_peak"].items():
        print(f"{phase:9}{found['seconds'][phase]:8.3f} s{found['useful_gflop'][phase]:8.1f} GFLOP{share:8.1%}")
    print(f"matrix peak: {found['matrix_peak_gflops']:.0f} GFLOP/s")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

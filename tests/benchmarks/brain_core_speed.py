"""Time of `brain_coefficients` on torch against the same formula and checks written by hand: python THIS_FILE.

Calls are paired and interleaved in one process, so that a busy machine slows both; the ratio is of the medians.
The difference of two softmaxes without checks shows what the digits and the checks cost. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from brain_core import brain_coefficients

LIMIT = 1.5


def by_hand(target: Tensor, policy: Tensor) -> Tensor:
    """The stable formula and the checks of `brain_coefficients`, for torch alone."""
    for tensor in (target, policy):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(tensor.dtype)
    if target.shape != policy.shape or target.shape[-1] < 2:
        raise ValueError(target.shape, policy.shape)
    if not (bool(torch.isfinite(target).all()) and bool(torch.isfinite(policy).all())):
        raise NotImplementedError("the slow path")
    is_in_target = target > -math.inf
    log_target, log_policy = _log_softmax(target), _log_softmax(policy)
    a, b = log_target.exp(), log_policy.exp()
    far = log_target - torch.where(is_in_target, log_policy, 0.0)
    anchor = log_policy.argmax(-1, keepdim=True)
    far_at_anchor = far.gather(-1, anchor)
    is_near = far_at_anchor.abs() < 0.5
    minuend, subtrahend = torch.where(is_in_target, target, 0.0), torch.where(is_in_target, policy, 0.0)
    rounded = minuend - subtrahend
    virtual = minuend - rounded
    error = (minuend - (rounded + virtual)) + (virtual - subtrahend)
    offset = (rounded - rounded.gather(-1, anchor)) + (error - error.gather(-1, anchor))
    offset = torch.where(is_in_target, offset, -math.inf)
    scaled = a * torch.where(is_near, -far_at_anchor, 0.0).exp()
    is_small = offset.abs() < 1
    excess = torch.where(is_small, b * torch.where(is_small, offset, 0.0).expm1(), scaled - b).sum(-1, keepdim=True)
    near = offset - torch.where(is_near, excess, 0.0).log1p()
    log_ratio = torch.where(is_near, near, far)
    is_small = log_ratio.abs() < 1
    return torch.where(is_small, b * torch.where(is_small, log_ratio, 0.0).expm1(), a - b)


def _log_softmax(x: Tensor) -> Tensor:
    shifted = x - x.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def naive(target: Tensor, policy: Tensor) -> Tensor:
    """The textbook formula, unchecked."""
    return target.softmax(-1) - policy.softmax(-1)


def interleaved_medians(functions: list[Callable[[Tensor, Tensor], Tensor]], pairs: int) -> list[float]:
    """Median seconds of each function over rounds in which every one is called once."""
    generator = torch.Generator().manual_seed(0)
    target, policy = torch.randn((2, 64, 32), dtype=torch.float64, generator=generator)
    seconds: list[list[float]] = [[] for _ in functions]
    for round_number in range(pairs + pairs // 10):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(target, policy)
            if round_number >= pairs // 10:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def main() -> None:
    """Print the three medians, the two ratios and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000, help="rounds to take the medians over")
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    ours, hand, plain = interleaved_medians([brain_coefficients, by_hand, naive], pairs)
    print(f"shape (64, 32), float64, one thread, medians of {pairs} interleaved calls, microseconds")
    print(f"brain_coefficients      {ours * 1e6:8.1f}")
    print(f"same formula by hand    {hand * 1e6:8.1f}   ratio {ours / hand:.2f} (at most {LIMIT})")
    print(f"naive softmax difference{plain * 1e6:8.1f}   ratio {ours / plain:.1f}")
    result = {"shape": [64, 32], "microseconds": ours * 1e6, "ratio_to_hand_written": ours / hand}
    print(json.dumps({**result, "ratio_to_naive": ours / plain, "limit": LIMIT, "holds": ours / hand <= LIMIT}))


if __name__ == "__main__":
    main()

"""A prompt group of the paper's full-size runs, random weights: python tests/benchmarks/full_size.py --case hh|tldr.

hh is Llama-7B in NF4 with LoRA of rank 64 on every layer, prompt 256, completion 128, n = 32; tldr is GPT-J-6B in
bfloat16 with rank 8 on q and v, prompt 512, completion 48, n = 32. Seconds of a rollout, of one scoring pass and of an
update, with either engine; memory at each one's peak; the fraction of the matrix peak; all beside what `--dry-run`
plans. --miniature takes the same path with small sizes on the CPU, where memory is that of the tensors that a phase
makes. The last line is JSON. The weights are written to a temporary folder first (14 GB).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_llama import Phases, Shape

from llm.config import AlignConfig, parse_command
from llm.memory import GIB, Allocations
from llm.models import Policy, load_policy
from llm.plan import GPUS, Plan, make_plan

ENGINES = ("shared-prefix", "plain")


class Case(NamedTuple):
    """A preset, the class of its base, and its group; in miniature, the sizes and the group."""

    preset: str
    base: type[PreTrainedConfig]
    shape: Shape
    small: dict[str, int]
    small_shape: Shape


CASES = {
    "hh": Case(
        "hh-llama7b",
        LlamaConfig,
        Shape(256, 128, 32),
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 999,
        },
        Shape(32, 16, 8),
    ),
    "tldr": Case(
        "tldr-gptj",
        GPTJConfig,
        Shape(512, 48, 32),
        {"n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 999},
        Shape(64, 6, 8),
    ),
}


def save_random(settings: PreTrainedConfig, folder: Path, device: str) -> None:
    """Save a random model whose end token lies outside its vocabulary, so that no completion ends early."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained(folder)
    end = settings.vocab_size
    words = Tokenizer(WordLevel({str(i): i for i in range(end)} | {"<end>": end}, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(folder)


def case_config(case: Case, shape: Shape, folder: Path, device: str) -> AlignConfig:
    """The preset's settings for one group of a random model."""
    preset = parse_command(["--preset", case.preset]).settings
    sizes = {"n": shape.n, "m": 1, "batch": 1, "sample_rows": shape.n, "train_rows": shape.n}
    sizes |= {"validation_count": 1, "test_count": 1}  # the plan's peak is a rollout's, which is what is measured
    lengths = {"max_prompt_tokens": shape.prompt, "max_new_tokens": shape.completion, "stop": ()}
    paths = {
        "model": str(folder),
        "tokenizer": "",
        "sft_adapter": "",
        "reward": "random_llama:reward",
        "device": device,
    }
    return replace(preset, **sizes, **lengths, **paths)


class Meter:
    """Seconds, and bytes at the peak, of a phase on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], object], turns: int) -> dict[str, float]:
        """Return the median of some turns after one that warms up, and the peak of that one."""
        peak = self._peak(work)
        return {"seconds": statistics.median(self._seconds(work) for _ in range(turns)), "bytes": peak}

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _peak(self, work: Callable[[], object]) -> float:
        if self._device.type != "cuda":
            with Allocations(self._device) as allocations:
                work()
            return allocations.peak
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


def matrix_peak(device: torch.device, size: int, meter: Meter) -> float:
    """The rate of a square product in bfloat16, in FLOP/s."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / meter(lambda: one @ other, 5)["seconds"]


def phase_flops(plan: Plan, shape: Shape) -> dict[str, float]:
    """FLOPs of one group's phases, as planned."""
    pairs = shape.prompt + shape.n * (shape.completion - 1)
    return {
        "rollout": pairs * plan.flops.sampling,
        "scoring": plan.update.prior * plan.flops.prior,
        "update": plan.update.training / plan.config.k * plan.flops.training,
    }


def measured(policy: Policy, shape: Shape, plan: Plan, meter: Meter, turns: int, peak: float) -> dict[str, Any]:
    """Each phase's seconds, bytes and part of the matrix peak, and the bytes that were planned."""
    phases = Phases(policy, shape)
    work = {"rollout": phases.rollout, "scoring": phases.scoring, "update": phases.training}
    flops = phase_flops(plan, shape)
    planned = dict(zip(work, (plan.memory[name] for name in ("sampling", "scoring", "training")), strict=True))
    found = {name: meter(run, turns) for name, run in work.items()}
    return {
        name: row | {"planned_bytes": planned[name], "of_the_peak": flops[name] / row["seconds"] / peak}
        for name, row in found.items()
    }


def report(name: str, miniature: bool, turns: int) -> dict[str, Any]:
    """Measure one case with both engines."""
    case, device = CASES[name], "cpu" if miniature else "cuda"
    shape = case.small_shape if miniature else case.shape
    settings = case.base(**(case.small if miniature else {}), bos_token_id=None, eos_token_id=None)
    meter = Meter(torch.device(device))
    peak = matrix_peak(torch.device(device), 512 if miniature else 8192, meter)
    found: dict[str, Any] = {"case": name, "miniature": miniature, "shape": shape._asdict(), "matrix_peak": peak}
    with tempfile.TemporaryDirectory() as folder:
        save_random(settings, Path(folder), device)
        for engine in ENGINES:
            config = replace(case_config(case, shape, Path(folder), device), engine=engine)
            plan = make_plan(config, GPUS["a100-80"])
            found[engine] = measured(load_policy(config), shape, plan, meter, turns, peak)
    return found


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'engine':15}{'phase':10}{'seconds':>10}{'GiB':>10}{'planned':>10}{'of the peak':>13}")
    for engine in ENGINES:
        for phase, row in found[engine].items():
            sizes = f"{row['bytes'] / GIB:10.4f}{row['planned_bytes'] / GIB:10.4f}"
            print(f"{engine:15}{phase:10}{row['seconds']:10.3f}{sizes}{row['of_the_peak']:13.1%}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if not options.miniature and not torch.cuda.is_available():
        parser.error("there is no GPU here; --miniature runs on the CPU")
    found = report(options.case, options.miniature, options.turns)
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

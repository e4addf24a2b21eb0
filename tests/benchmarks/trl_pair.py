"""This project against TRL's RLOOTrainer: python tests/benchmarks/trl_pair.py --shape tldr|hh --size s|m.

Both sides run in turns in one process on the same random Llama and LoRA, prompts and lengths, in float32; seconds are
medians per prompt group. TRL runs its own methods in micro-batches of 8, its fastest: `_generate`,
`_generate_and_score_completions` on what was generated, `compute_loss` and backward. Its rows:

    stock         as installed; off a GPU its head sees prompts too
    restricted    its head sees completions only, as on a GPU
    equal passes  restricted, with as many scoring passes as this project makes

A rollout samples several prompts in one call (--groups, as many as a run does by default); TRL gets one prompt or as
many, whichever was faster before the turns. Scoring is log p, log q' (this project's sampler gives its own) and a cheap
reward. Memory is the growth of resident memory in a warm training pass over one group, each side in its own process.

Needs the extra `benchmark`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import trl.trainer.utils
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_llama import (
    SHAPES,
    SIZES,
    MatrixPeak,
    Phases,
    interleaved,
    medians,
    reward,
    save_llama,
    saved_policy,
    seconds,
    useful_flops,
)

from llm.config import AlignConfig
from llm.logprob import sequence_log_probs

PHASES = ("rollout", "scoring", "training")
ROWS = 8
TRL_PASSES = 2
"""Log-prob passes of TRL's scoring: the policy's and the reference's."""
PASSES = 1
"""Log-prob passes of this project's: the prior's; log q' is the sampler's own."""


class Trl:
    """TRL's phases, by its trainer's own methods, on the same weights, prompts and completions."""

    def __init__(self, folder: Path, ours: Phases) -> None:
        self.trainer = make_trainer(folder, ours)
        self.model = self.trainer.model.train()
        self.texts = [prompt.text for prompt in ours.prompts for _ in range(ours.shape.n)]
        self.n = ours.shape.n
        prompt, completions = ours.prompts[0], ours.completions
        self.generated = (
            [list(prompt.token_ids)] * self.n,
            [list(completion.token_ids) for completion in completions],
            [completion.text for completion in completions],
        )
        self.scored = restricted(self.scoring)()

    def rollout(self, prompts: int) -> None:
        """Generate n completions of each of the first prompts."""
        self.trainer._generate(self.texts[: prompts * self.n])

    def scoring(self) -> dict[str, torch.Tensor]:
        """Score the group that was generated for the first prompt."""
        inputs = [{"prompt": text} for text in self.texts[: self.n]]
        with mock.patch.object(self.trainer, "_generate", return_value=self.generated):
            return self.trainer._generate_and_score_completions(inputs)

    def training(self) -> None:
        """Forward and backward over the group."""
        self.model.zero_grad()
        for start in range(0, self.n, ROWS):
            part = {name: tensor[start : start + ROWS] for name, tensor in self.scored.items()}
            (self.trainer.compute_loss(self.model, part) * ROWS / self.n).backward()

    def log_probs(self, rows: slice) -> torch.Tensor:
        """log q of some of the group's completions."""
        parts = (("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask"))
        ids, mask = (torch.cat([self.scored[name][rows] for name in names], 1) for names in parts)
        length = self.scored["completion_ids"].shape[1]
        return self.trainer._get_per_token_logps_and_entropies(self.model, ids, mask, length)[0].sum(1)


def make_trainer(folder: Path, ours: Phases) -> RLOOTrainer:
    """TRL's trainer on the saved model, with this project's LoRA weights."""
    settings = RLOOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS,
        generation_batch_size=ours.shape.n,
        num_generations=ours.shape.n,
        max_completion_length=ours.shape.completion,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
    )
    config = ours.policy.model.peft_config["default"]
    data = Dataset.from_dict({"prompt": [prompt.text for prompt in ours.prompts]})
    trainer = RLOOTrainer(str(folder), reward, settings, data, peft_config=config)
    peft.set_peft_model_state_dict(trainer.model, ours.policy.adapter_state())
    return trainer


def restricted(run: Callable[..., Any]) -> Callable[..., Any]:
    """A call in which TRL's head sees the places of completions only, as it does on a GPU."""
    return mock.patch.object(trl.trainer.utils, "_use_triton", mock.Mock(return_value=True))(run)


def measured(ours: Phases, theirs: Trl, calls: int, turns: int) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds per prompt group of every row and phase, TRL's rollouts of `calls` prompts; and the matrix peak."""
    peak = MatrixPeak()
    runs: dict[str, Callable[[], object]] = {
        "peak": peak,
        "TRL rollout": functools.partial(theirs.rollout, calls),
        "ours rollout": ours.rollout,
    }
    for phase in PHASES[1:]:
        runs[f"restricted {phase}"] = restricted(getattr(theirs, phase))
        runs[f"ours {phase}"] = getattr(ours, phase)
        runs[f"stock {phase}"] = getattr(theirs, phase)
    found = medians(interleaved(runs, turns))
    rollouts = dict.fromkeys(("stock", "restricted"), found["TRL rollout"] / calls)
    rollouts["ours"] = found["ours rollout"] / len(ours.prompts)
    rows = {
        name: {"rollout": rollout} | {phase: found[f"{name} {phase}"] for phase in PHASES[1:]}
        for name, rollout in rollouts.items()
    }
    one_pass = rows["restricted"]["scoring"] / TRL_PASSES
    rows["equal passes"] = rows["restricted"] | {"scoring": PASSES * one_pass}
    for row in rows.values():
        row["sum"] = sum(row.values())
    return rows, statistics.median(peak.rates[1:])


def rollout_by_call(theirs: Trl, groups: int) -> dict[int, float]:
    """Seconds a prompt of TRL's rollout with one prompt in a call, and with all: the second of two calls each."""
    calls = {count: functools.partial(theirs.rollout, count) for count in (1, groups)}
    return {count: [seconds(call) for _ in range(2)][1] / count for count, call in calls.items()}


def backbone_tokens(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """Tokens that pass the embedding during a call."""
    counts: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    run()
    handle.remove()
    return sum(counts)


def tokens_of(ours: Phases, theirs: Trl) -> dict[str, dict[str, int]]:
    """Tokens through the backbone per prompt group, counted; disco's by its own rule, with what it scores again."""
    prompts = len(ours.prompts)
    found = {
        "TRL": {"rollout": backbone_tokens(theirs.model, functools.partial(theirs.rollout, 1))},
        "ours": {"rollout": backbone_tokens(ours.policy.model, ours.rollout) // prompts},
    }
    for phase in PHASES[1:]:
        found["TRL"][phase] = backbone_tokens(theirs.model, restricted(getattr(theirs, phase)))
        found["ours"][phase] = backbone_tokens(ours.policy.model, getattr(ours, phase))
    n, whole = ours.shape.n, ours.shape.n * (ours.shape.prompt + ours.shape.completion)
    found["disco"] = {"rollout": whole - n, "scoring": 2 * whole, "training": whole}
    return {name: row | {"sum": sum(row.values())} for name, row in found.items()}


def parity(ours: Phases, theirs: Trl) -> dict[str, float]:
    """How far the two sides are apart: log q of completions, in nats, and the gradient of one weighted sum of them."""
    n = ours.shape.n
    mine, my_gradient = with_gradient(
        ours.policy.model, lambda rows: sequence_log_probs(ours.policy, ours.pairs[rows]), n, n
    )
    other, other_gradient = with_gradient(theirs.model, restricted(theirs.log_probs), n, ROWS)
    return {
        "largest_difference_of_log_probs": float((mine - other).abs().max()),
        "mean_log_prob": float(mine.mean()),
        "relative_difference_of_gradients": float((my_gradient - other_gradient).norm() / other_gradient.norm()),
    }


def with_gradient(
    model: torch.nn.Module, log_probs: Callable[[slice], torch.Tensor], n: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probs of n completions, `rows` at a time, and the gradient of their sum under fixed weights."""
    model.zero_grad()
    weights, found = torch.linspace(-1, 1, n, dtype=torch.float64), []
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        found.append(log_probs(part).double())
        (weights[part] * found[-1]).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat(found).detach(), torch.cat(gradients)


def memory_growth(run: Callable[[], object]) -> float:
    """MiB by which resident memory peaks above where it was just before a call that ran once already."""
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A figure of this process's memory, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory_in_child(row: str) -> float:
    """MiB of a row's training pass, in a fresh process of this script."""
    command = [sys.executable, __file__, *sys.argv[1:], "--groups", "1", "--memory-of", row]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def memory_of(row: str, ours: Phases, folder: Path) -> float:
    """MiB of a row's training pass, in this process."""
    if row == "ours":
        return memory_growth(ours.training)
    run = Trl(folder, ours).training
    return memory_growth(restricted(run) if row == "restricted" else run)


def report(ours: Phases, theirs: Trl, options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    tokens, apart = tokens_of(ours, theirs), parity(ours, theirs)
    by_call = rollout_by_call(theirs, options.groups)
    rows, peak = measured(ours, theirs, min(by_call, key=by_call.__getitem__), options.turns)
    flops = useful_flops(ours.policy, ours.shape)
    work = {
        "rollout": flops["policy"],
        "scoring": flops["prior"],
        "training": flops["training"],
    }
    return {
        **{name: getattr(options, name) for name in ("shape", "size", "turns", "groups")},
        "threads": torch.get_num_threads(),
        "trl_rollout_by_prompts_a_call": by_call,
        "log_prob_passes": {"TRL": TRL_PASSES, "ours": PASSES},
        "seconds": rows,
        "ratios": {name: {phase: row[phase] / rows["ours"][phase] for phase in row} for name, row in rows.items()},
        "training_memory_mib": {row: memory_in_child(row) for row in ("stock", "restricted", "ours")},
        "backbone_tokens": tokens,
        "useful_gflop": {phase: work[phase] / 1e9 for phase in PHASES},
        "matrix_peak_gflops": peak / 1e9,
        "fraction_of_peak": {phase: work[phase] / rows["ours"][phase] / peak for phase in PHASES},
        "parity": apart,
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'':14}" + "".join(f"{phase:>18}" for phase in (*PHASES, "sum")) + f"{'training MiB':>14}")
    for name, row in found["seconds"].items():
        cells = (f"{row[phase]:.3f} s ({found['ratios'][name][phase]:.2f}x)" for phase in row)
        memory = found["training_memory_mib"].get(name)
        print(f"{name:14}" + "".join(f"{cell:>18}" for cell in cells) + (f"{memory:14.0f}" if memory else ""))
    for name, row in found["backbone_tokens"].items():
        print(f"{name + ' tokens':14}" + "".join(f"{count:>18,}" for count in row.values()))
    print(f"{'useful GFLOP':14}" + "".join(f"{value:>18.1f}" for value in found["useful_gflop"].values()))
    print(f"{'of the peak':14}" + "".join(f"{value:>18.1%}" for value in found["fraction_of_peak"].values()))
    by_call = found["trl_rollout_by_prompts_a_call"].items()
    print("TRL's rollout: " + ", ".join(f"{each:.2f} s a prompt with {count} a call" for count, each in by_call))
    print(f"matrix peak: {found['matrix_peak_gflops']:.0f} GFLOP/s; parity: {found['parity']}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--groups", type=int, default=0, help="prompts in one call of the sampler; 0: a run's default")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--memory-of", choices=("stock", "restricted", "ours"), help="print only a row's memory")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(options.size, folder)
        shape = SHAPES[options.shape]
        options.groups = options.groups or AlignConfig.sample_rows // shape.n
        ours = Phases(saved_policy(folder), shape, options.groups)
        if options.memory_of:
            print(memory_of(options.memory_of, ours, folder))
            return
        found = report(ours, Trl(folder, ours), options)
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

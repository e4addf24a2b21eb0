"""Runs in processes of their own, and what two runs must have in common."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm.config import AlignConfig


def comparable(folder: Path) -> dict[str, Any]:
    """A run's adapter bytes and its metrics without the timing fields."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in event.items() if key != "seconds"} for event in events],
    }


def _child(config: AlignConfig, resume: bool, folder: Path, sabotage: Callable[[], None] | None) -> None:
    """Run in the current process, quietly; a UserError is exit status 2."""

    from llm.align import run
    from llm.errors import UserError

    os.chdir(folder)
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sabotage is not None:
        sabotage()
    try:
        run(config, resume=resume)
    except UserError:
        os._exit(2)


def run_apart(
    config: AlignConfig,
    folder: Path,
    *,
    kill_after: float | None = None,
    sabotage: Callable[[], None] | None = None,
) -> int | None:
    """Start or resume a run in a process of its own and return its exit status (−9: killed).

    The processes come from a fork server that has imported everything, so they start at once.

    Args:
        config: Its `out` decides: a folder that holds a run is resumed.
        folder: The current directory of the process.
        kill_after: Seconds until SIGKILL; None lets it end.
        sabotage: Called in the process before the run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm.align", "child_runs"])
    resume = (Path(config.out) / "config.yaml").exists()
    process = context.Process(target=_child, args=(config, resume, folder, sabotage))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode


def _member(task: Callable[[], object], folder: Path, place: dict[str, str], said: Path) -> None:
    """Work as one of several processes, with what it says in a file."""
    import torch

    from llm.console import entry_point

    torch.set_num_threads(1)
    os.environ.update(place)
    os.chdir(folder)
    sys.stderr = sys.stdout = open(said, "w")  # noqa: SIM115
    sys.exit(entry_point(lambda _: task() and None, []))


def _run(config: AlignConfig, sabotage: Callable[[], None] | None) -> None:
    """Start or resume a run."""
    from llm.align import run

    if sabotage is not None:
        sabotage()
    run(config, resume=(Path(config.out) / "config.yaml").exists())


def run_together(
    config: AlignConfig,
    folder: Path,
    *,
    count: int = 2,
    sabotage: Callable[[], None] | None = None,
    launch: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[int | None], list[str]]:
    """Start or resume a run in several processes that find each other as a launcher's do.

    Args:
        config: Its `out` decides: a folder that holds a run is resumed.
        folder: The current directory of the processes.
        count: How many.
        sabotage: Called in each process before the run.
        launch: What else the launcher would set.

    Returns:
        The exit status and the standard error of each.
    """
    return work_together(partial(_run, config, sabotage), folder, count=count, launch=launch)


def work_together(
    task: Callable[[], object], folder: Path, *, count: int = 2, launch: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[int | None], list[str]]:
    """Do a task in several processes that find each other as a launcher's do; arguments and results as above."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm.align", "child_runs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as scratch:
        members = []
        for rank in range(count):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
            }
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"} | launch
            said = Path(scratch) / str(rank)
            members.append(context.Process(target=_member, args=(task, folder, place, said)))
        for member in members:
            member.start()
        for member in members:
            member.join(100)
        return [member.exitcode for member in members], [path.read_text() for path in sorted(Path(scratch).iterdir())]


class InDouble:
    """Preparation: models in float64, which no setting asks for, then another preparation or sabotage."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.then = then

    def __call__(self) -> None:
        """Put it in place."""
        import torch

        from llm import models

        models.DTYPES["float32"] = torch.float64
        if self.then is not None:
            self.then()


class OnlyIn:
    """Sabotage in one of several processes."""

    def __init__(self, rank: int, sabotage: Callable[[], None]) -> None:
        self.rank, self.sabotage = rank, sabotage

    def __call__(self) -> None:
        """Put it in place, in that process."""
        if os.environ["RANK"] == str(self.rank):
            self.sabotage()


def fill_disk() -> None:
    """Sabotage: the disk is full when a block is written."""
    original = os.replace

    def full(source: Path, target: Path) -> None:
        if "block" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    os.replace = full


def crash() -> None:
    """Sabotage: a mistake in the program."""
    from llm import align

    align.draw_batch = lambda *_: 1 / 0


def come_apart() -> None:
    """Sabotage: one weight of the adapter changes in a step."""
    from llm import align

    original = align.train_step

    def step(policy: Any, *rest: Any) -> Any:
        stats = original(policy, *rest)
        policy.parameters()[0].data[0, 0] += 1e-6
        return stats

    align.train_step = step


def see_nothing() -> None:
    """Sabotage: files that others write are not seen."""
    from llm import processes

    processes.comes_true = lambda claim: False


class KillAt:
    """Sabotage: SIGKILL in the middle of the count-th call of a function."""

    def __init__(self, module: str, name: str, count: int) -> None:
        self.module, self.name, self.count = module, name, count

    def __call__(self) -> None:
        """Put the trap in place."""
        import importlib

        module = importlib.import_module(self.module)
        original, calls = getattr(module, self.name), iter(range(1, 1 << 30))

        def trapped(*args: Any, **options: Any) -> Any:
            if next(calls) == self.count:
                self.strike()
            return original(*args, **options)

        setattr(module, self.name, trapped)

    def strike(self) -> None:
        """What happens there."""
        os.kill(os.getpid(), signal.SIGKILL)


class FailAt(KillAt):
    """Sabotage: no memory for the count-th call of a function."""

    def strike(self) -> None:
        """What happens there."""
        raise MemoryError


class RunOutOfMemory:
    """Sabotage: no memory for the second layer's forward or backward pass in training."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __call__(self) -> None:
        """Put it in place."""
        import torch
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        original = LlamaDecoderLayer.forward

        def run_out(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 1 has none.")

        def forward(layer: Any, *args: Any, **options: Any) -> Any:
            states = original(layer, *args, **options)
            if states.requires_grad and layer.self_attn.layer_idx == 1:
                run_out() if self.when == "forward" else states.register_hook(run_out)
            return states

        LlamaDecoderLayer.forward = forward


class StopAll:
    """Task: the first process tells all to stop, as one that stops the whole job does, and all wait for one another."""

    def __call__(self) -> None:
        """Do it."""
        from llm import processes

        with processes.joined():
            processes.exchange(None)  # by now all listen
            if processes.is_first():
                for _, pid in reversed(processes._team.places):
                    os.kill(pid, signal.SIGTERM)
                time.sleep(5)
            processes.exchange(None)


class PassesOf:
    """Task: with the base cut up, the first process computes what it can with each model; the others only help.

    Args:
        configs: The settings of each.
        folder: Gets a file of tensors for each model.
    """

    def __init__(self, configs: dict[str, AlignConfig], folder: Path) -> None:
        self.configs, self.folder = configs, folder

    def __call__(self) -> None:
        """Do it."""
        import safetensors.torch

        from llm import processes, sharding
        from llm.models import load_policy

        with processes.joined():
            for name, config in self.configs.items():
                policy = load_policy(config)
                weights = [weight for layer in sharding.layers_of(policy.base) for weight in shares(layer)]
                assert len(weights) >= 2 * 6
                assert max(weights) <= 0.4
                if processes.is_first():
                    safetensors.torch.save_file(passes(policy), self.folder / name)
                processes.exchange(None)


def shares(layer: Any) -> list[float]:
    """What part of each of a layer's frozen weights lies here."""
    frozen = [parameter for parameter in layer.parameters() if not parameter.requires_grad]
    return [parameter.to_local().numel() / parameter.numel() for parameter in frozen]


def passes(policy: Any) -> dict[str, Any]:
    """What sampling, scoring and the backward pass of a policy give, its adapter moved away from zero, and need."""
    import torch

    from letter_world import moved
    from llm.logprob import score, sequence_log_probs
    from llm.memory import made_up_pairs, peak_bytes
    from llm.records import Prompt
    from llm.rollout import sample_groups

    moved(policy)
    prompts = [Prompt(str(i), "", tuple(range(3, 6 + i)), None) for i in range(2)]
    groups = sample_groups(policy, prompts, 3, draw=(0, "test", 0), max_new_tokens=6)
    pairs = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    with policy.as_prior():
        prior = torch.tensor(score(policy, pairs, 4))
    log_probs = sequence_log_probs(policy, pairs)
    (log_probs * torch.arange(6)).sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    drawn = torch.tensor([token for _, completion in pairs for token in completion.token_ids])
    peaks = torch.tensor(peak_bytes(policy, made_up_pairs(8, 6, 1, 4)))
    return {"drawn": drawn, "prior": prior, "log_probs": log_probs.detach(), "gradients": gradients, "peaks": peaks}


def elsewhere(config: AlignConfig, out: Path) -> AlignConfig:
    """The same settings with another run folder."""
    return replace(config, out=str(out))

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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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


def _member(config: AlignConfig, folder: Path, place: dict[str, str], said: Path, sabotage: Any) -> None:
    """Run as one of several processes, with what it says in a file."""
    from llm.align import run
    from llm.console import entry_point

    os.environ.update(place)
    os.chdir(folder)
    sys.stderr = sys.stdout = open(said, "w")  # noqa: SIM115
    if sabotage is not None:
        sabotage()
    resume = (Path(config.out) / "config.yaml").exists()
    sys.exit(entry_point(lambda _: run(config, resume=resume) and None, []))


def run_together(
    config: AlignConfig, folder: Path, *, count: int = 2, sabotage: Callable[[], None] | None = None
) -> tuple[list[int | None], list[str]]:
    """Start or resume a run in several processes that find each other as a launcher's do.

    Returns:
        The exit status and the standard error of each.
    """
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
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            said = Path(scratch) / str(rank)
            members.append(context.Process(target=_member, args=(config, folder, place, said, sabotage)))
        for member in members:
            member.start()
        for member in members:
            member.join(120)
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
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(module, self.name, trapped)


def elsewhere(config: AlignConfig, out: Path) -> AlignConfig:
    """The same settings with another run folder."""
    return replace(config, out=str(out))

"""Runs in processes of their own, and what two runs must have in common."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
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
    context.set_forkserver_preload(["llm.align", "runs"])
    resume = (Path(config.out) / "config.yaml").exists()
    process = context.Process(target=_child, args=(config, resume, folder, sabotage))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode


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

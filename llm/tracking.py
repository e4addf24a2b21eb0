"""Experiment trackers, through accelerate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm import processes
from llm.config import AlignConfig
from llm.errors import UserError


def check_tracker(name: str) -> None:
    """Check that accelerate can use a tracker here.

    Args:
        name: Its name, or none.

    Raises:
        UserError: accelerate does not know the tracker, or its package is not installed.
    """
    if name == "none":
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--tracker {name}: no such tracker. There are: none, {', '.join(LOGGER_TYPE_TO_CLASS)}.")
    if name not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {name}: its package is not installed. Install it, or use --tracker none.")


class Tracker:
    """Sends numbers to the tracker that `--tracker` names; of several processes, the first one does.

    Args:
        config: The run's settings.
        folder: The run folder; files go below it.
    """

    def __init__(self, config: AlignConfig, folder: Path) -> None:
        self._accelerator: Any = None
        if config.tracker == "none" or not processes.is_first():
            return
        from accelerate import Accelerator

        self._accelerator = Accelerator(log_with=config.tracker, project_dir=str(folder))
        settings = {key: str(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
        self._accelerator.init_trackers("tracker", config=settings)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers of one event.

        Args:
            event: Its name, which becomes the numbers' group.
            step: Gradient steps done.
            values: The event; what is no number is left out.
        """
        if self._accelerator is not None:
            numbers = {f"{event}/{key}": value for key, value in values.items() if isinstance(value, (int, float))}
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Flush and close; accelerate's own end of training would part the processes as well."""
        for tracker in self._accelerator.trackers if self._accelerator is not None else ():
            tracker.finish()
        self._accelerator = None

"""Experiment trackers, through accelerate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.config import AlignConfig
from llm.errors import UserError


class Tracker:
    """Sends numbers to the tracker that `--tracker` names.

    Args:
        config: The run's settings.
        folder: The run folder; files go below it.

    Raises:
        UserError: accelerate does not know the tracker, or its package is not installed.
    """

    def __init__(self, config: AlignConfig, folder: Path) -> None:
        self._accelerator: Any = None
        if config.tracker == "none":
            return
        from accelerate import Accelerator

        try:
            self._accelerator = Accelerator(log_with=config.tracker, project_dir=str(folder))
            self._accelerator.init_trackers("tracker", config=asdict(config))
        except (ValueError, ImportError) as error:
            raise UserError(f"--tracker {config.tracker}: {error}. Use --tracker none to do without.") from error
        if not self._accelerator.trackers:
            raise UserError(
                f"--tracker {config.tracker}: its package is not installed. Install it, or use --tracker none."
            )

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers of one event."""
        if self._accelerator is not None:
            numbers = {f"{event}/{key}": value for key, value in values.items() if isinstance(value, (int, float))}
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._accelerator is not None:
            self._accelerator.end_training()

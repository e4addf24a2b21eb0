"""What a finished run's folder tells, read for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.config import AlignConfig
from llm.errors import UserError
from llm.methods import METHODS
from llm.run_folder import stored_config
from llm.store import ShardFolder, read_events, read_json

PARTS = ("summary.json", "config.yaml", "metrics.jsonl")
SAMPLED = {
    "policy": "sampled from the policy at the beginning of each phase",
    "prior": "sampled from the prior",
    "improving": "sampled from the last policy that came closer to the target",
    "given": "given pairs",
}
"""What a method's proposal is, in words."""
Row = dict[str, Any]
Event = dict[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: Its folder, as given.
        config: Its settings.
        summary: What `summary.json` holds.
        events: Those of `metrics.jsonl`.
        before: The prior's rows of the held-out evaluation, with the judge's grades where there is a judge.
        after: The best policy's, of the same prompts in the same order.
        judged: The name of the table that the grades are from, which tells one judge from another; empty without.
    """

    folder: Path
    config: AlignConfig
    summary: dict[str, Any]
    events: list[Event]
    before: list[Row]
    after: list[Row]
    judged: str

    @property
    def alarms(self) -> list[Event]:
        """The alarms that it gave, in order."""
        return [event for event in self.events if event["event"] == "alarm"]

    @property
    def method(self) -> dict[str, str]:
        """How it was trained: by name, the settings that matter to its method."""
        config, method = self.config, METHODS.get(self.config.method)  # a user's function is not loaded
        own = {name: str(getattr(config, name)) for name in (method.heeds if method else ())}
        return {
            "method": f"{config.method}, {method.source if method else 'a function of the user'}",
            "completions": config.rollouts or SAMPLED[method.proposal if method else "policy"],
            **own,
            "goodness": f"{config.goodness}, temperature {config.temperature}",
            "schedule": f"{config.e} phases of {config.m} prompts × {config.n} completions, {config.k} steps each on "
            f"{config.batch} groups",
            "learning rate": str(config.learning_rate),
        }

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the results of `llm.evaluate`, by name; those head to head have `against`."""
        paths = sorted((self.folder / "eval").glob("*.json"))
        return {path.stem: read_json(path) for path in paths if not path.stem.startswith("manifest")}

    def verdicts(self) -> list[dict[str, Any]]:
        """Return the results of `llm.judge`, in the order of their files."""
        return [read_json(path) for path in sorted((self.folder / "judge").glob("*.json"))]


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Args:
        folder: The run folder.

    Raises:
        UserError: The folder holds no finished run, or a file of it is damaged.
    """
    _check_finished(folder)
    before, after, judged = _held_out(folder)
    return FinishedRun(
        folder,
        stored_config(folder),
        read_json(folder / "summary.json"),
        read_events(folder / "metrics.jsonl"),
        before,
        after,
        judged,
    )


def _check_finished(folder: Path) -> None:
    """Check that a folder holds a finished run."""
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if missing == ["summary.json"]:
        raise UserError(f"{folder}: this run is not finished. Go on: python -m llm.align --resume {folder}.")
    if missing:
        raise UserError(f"{folder}: not the folder of a finished run; it has no {', '.join(missing)}. Check the path.")


def _held_out(folder: Path) -> tuple[list[Row], list[Row], str]:
    """The rows before and after, and the table of the judge's grades that they are from, the newest if any."""
    shards = ShardFolder(folder / "eval")
    before, after = shards.read("before"), shards.read("after")
    tables = sorted((folder / "eval").glob("judged-*.parquet"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return before, after, ""
    rows = shards.read(tables[-1].stem)
    return rows[: len(before)], rows[len(before) :], tables[-1].stem

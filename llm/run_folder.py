"""The run folder: made whole for a new run, checked before a run is resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import filelock

from llm import processes
from llm.config import AlignConfig, dump_config, load_config
from llm.errors import UserError
from llm.store import disk_errors, read_json, write_json, write_text

IDENTITY_FILE = "identity.json"
LOCK_FILE = ".lock"
BEFORE_CONFIG = {LOCK_FILE, IDENTITY_FILE, f".{IDENTITY_FILE}.partial", ".config.yaml.partial"}
"""What a run that was killed at its very start may leave; `config.yaml` comes last and makes it a run."""
SCORER_VERSION = "1"
"""Raised whenever the meaning of cached tokens, log-probs or rewards changes."""


@dataclass(frozen=True)
class Identity:
    """What gives the cached rollouts and scores their meaning, each as a fingerprint.

    Attributes:
        model: Base files, tokenizer, precision and quantisation.
        reward: The reward's files or source.
        prompts: The tokenised prompts and references.
        sampling: The settings that rollouts and scores depend on.
        settings: All settings that training depends on, and the source of a user's goodness.
        code: `SCORER_VERSION`.
    """

    model: str
    reward: str
    prompts: str
    sampling: str
    settings: str
    code: str = SCORER_VERSION

    def fingerprint(self) -> str:
        """Return one fingerprint of the parts that cached rollouts and scores depend on."""
        parts = {name: value for name, value in vars(self).items() if name != "settings"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def lock_run(folder: Path) -> filelock.FileLock:
    """Keep other processes away from a run until the lock is released or this process ends, however it ends.

    Raises:
        UserError: Another process has the run.
    """
    lock = filelock.FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is working on this run. Wait for it, or stop it first.") from error
    return lock


def new_run(config: AlignConfig, identity: Identity) -> tuple[Path, AlignConfig]:
    """Make the folder of a new run and write its settings.

    Args:
        config: The settings; without `out` the folder is runs/<time>.
        identity: What gives the run's cached files their meaning.

    Returns:
        The folder, and the settings with `out` filled in.

    Raises:
        UserError: The folder holds something already, or cannot be written.
    """
    folder = Path(config.out) if config.out else Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    check_free(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    config = replace(config, out=str(folder))
    write_json(folder / IDENTITY_FILE, vars(identity))
    write_text(folder / "config.yaml", dump_config(config))
    return folder, config


def check_shared(folder: Path) -> None:
    """Check that every process sees the run folder that the first one writes.

    Raises:
        UserError: One does not.
    """
    if processes.count() == 1:
        return
    sign = folder / processes.from_first(lambda: f".seen-{secrets.token_hex(8)}")
    if processes.is_first():
        write_text(sign, "")
    processes.exchange(None)
    blind = [place for place, seen in enumerate(processes.exchange(processes.comes_true(sign.exists))) if not seen]
    if processes.is_first():
        sign.unlink()
    if blind:
        raise UserError(
            f"{folder}: process {blind[0]} does not see this folder. All processes need the same current directory and "
            "a file system that their machines share."
        )


def check_free(folder: Path) -> None:
    """Check that a new run may use a folder.

    Raises:
        UserError: It holds a run, or anything else.
    """
    if (folder / "config.yaml").exists():
        raise UserError(f"--out {folder}: holds another run. Use --resume {folder} to go on with it, or another --out.")
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - BEFORE_CONFIG):
        raise UserError(f"--out {folder}: exists and is not an empty folder. Choose another --out.")


def stored_config(folder: Path) -> AlignConfig:
    """Return the settings of the run in a folder.

    Raises:
        UserError: The folder holds no run.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run there (no config.yaml). Check the path.")
    return replace(load_config(folder / "config.yaml"), out=str(folder))


def check_identity(folder: Path, identity: Identity) -> None:
    """Check that model, reward, prompts and code are those that the run began with.

    Args:
        folder: The run's.
        identity: What was loaded now.

    Raises:
        UserError: Names the parts that changed.
    """
    changed = _changed(folder, vars(identity))
    if changed:
        raise UserError(
            f"--resume {folder}: {' and '.join(changed)} changed since the run began, so its stored scores no longer "
            "mean the same. Restore what it began with, or start a new run."
        )


def check_model(folder: Path, identity: str) -> None:
    """Check that the base model is the one that a run's adapter was trained on.

    Args:
        folder: The run's.
        identity: The model's, as loaded now.

    Raises:
        UserError: It is another one.
    """
    if _changed(folder, {"model": identity}):
        raise UserError(f"{folder}: the model's files changed since the run; its adapter fits the old ones only.")


def _changed(folder: Path, now: dict[str, str]) -> list[str]:
    """The parts of a run's identity that differ."""
    stored = read_json(folder / IDENTITY_FILE)
    return [name for name, value in now.items() if stored.get(name) != value]


def versions() -> dict[str, str]:
    """Return the versions that a run depends on, by package."""
    names = ("brain-align", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""The worlds of experiments: the user's own or the embedded default's, and the small worlds that `tasks` brings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.config import AlignConfig, parse_command
from llm.errors import UserError
from llm.experiments.cells import WORLD_SETTINGS
from llm.models import files_fingerprint
from llm.plugins import load_callable
from llm.rewards import function_fingerprint
from llm.run_folder import versions
from llm.store import write_text
from llm.streams import text_fingerprint
from llm.tables import read_rows
from llm.tiny.prepare import MINIATURE, WorldSettings, prepare
from llm.tiny.tasks import TASKS

DEFAULT = "summaries"
"""The task of the embedded default's world."""
SMALL = tuple(name for name in TASKS if name != DEFAULT)
"""The tasks whose worlds are brought beside the user's."""
CONTENTS = ("model", "prompts", "test_prompts", "reward", "judge", "tokenizer", "sft_adapter")
"""Settings whose contents make a world."""


@dataclass(frozen=True)
class World:
    """Where an experiment takes place.

    Attributes:
        base: The base settings, with test prompts that are the same in every run.
        pairs: The file of DPO's groups of two; "" where there are no preferences.
    """

    base: AlignConfig
    pairs: str


def is_own(options: Sequence[str]) -> bool:
    """Return whether options name anything of a world; else it is the embedded default's, all of it.

    Args:
        options: A command line.
    """
    named = {option.partition("=")[0].removeprefix("--").replace("-", "_") for option in options if option[:2] == "--"}
    return not named.isdisjoint((*WORLD_SETTINGS, "preset", "config", "pairs"))


def base_settings(options: Sequence[str], *, quick: bool) -> AlignConfig:
    """Return the base settings of a command line; with `quick`, the embedded default's world is a miniature.

    Args:
        options: Those of llm.align.
        quick: Whether seconds must do.
    """
    if quick and not is_own(options):
        made = _prepared(DEFAULT, quick=True)
        options = [*options, "--preset", "tiny", *(f"--{name}={value}" for name, value in made.items())]
    return parse_command(options).settings


def small_world(task: str, base: AlignConfig, folder: Path, *, quick: bool) -> World:
    """Return one of the small worlds, made now or before, for experiments of the base's sizes.

    Args:
        task: One of SMALL.
        base: The settings of the embedded default.
        folder: Where files of prompts are written.
        quick: Whether it is a miniature.
    """
    judge = f"{TASKS[task].partition(':')[0]}:grade"
    return held_out(dataclasses.replace(base, **_prepared(task, quick=quick), judge=judge, test_prompts=""), "", folder)


def _prepared(task: str, *, quick: bool) -> dict[str, Any]:
    """The files of a small world, which is made if it is not in the cache."""
    return prepare(dataclasses.replace(WorldSettings(task=task), **(MINIATURE if quick else {})))


def held_out(base: AlignConfig, pairs: str, folder: Path) -> World:
    """Return the world of some settings, with the first rows of the prompts as test prompts unless there are others.

    Args:
        base: The settings.
        pairs: The user's preference pairs; unless given, those beside the prompts.
        folder: Where files of prompts are written.

    Raises:
        UserError: The prompts are no file, or a pair lacks a text.
    """
    beside = Path(base.prompts).parent / "preferences.jsonl"
    source = Path(pairs) if pairs else beside
    groups = str(_as_groups(source, folder)) if pairs or beside.is_file() else ""
    return World(_with_fixed_test(base, folder), groups)


def _with_fixed_test(base: AlignConfig, folder: Path) -> AlignConfig:
    """The base settings with the first rows of the prompts as test prompts, so that these are the same in every run."""
    if base.test_prompts:
        return base
    if not Path(base.prompts).is_file():
        raise UserError(
            f"--prompts {base.prompts}: is not a file, of which rows could be held out. Add --test-prompts."
        )
    rows = [json.dumps(row) + "\n" for _, row in read_rows(base.prompts)]
    test = _kept("".join(rows[: base.test_count]), folder, "test")
    return dataclasses.replace(
        base, test_prompts=str(test), prompts=str(_kept("".join(rows[base.test_count :]), folder, "prompts"))
    )


def _kept(text: str, folder: Path, name: str) -> Path:
    """Write a file whose name changes with its text."""
    path = folder / f"{name}-{text_fingerprint(text)[:8]}.jsonl"
    if not path.exists():
        write_text(path, text)
    return path


def own_part(groups: Path, start: int) -> Path:
    """Return a file of given completions that begins elsewhere, so that each seed trains on others.

    Args:
        groups: The whole file.
        start: The row to begin with; what is before it comes last.
    """
    rows = groups.read_text("utf-8").splitlines(keepends=True)
    start %= len(rows)
    return _kept("".join(rows[start:] + rows[:start]), groups.parent, groups.stem.partition("-")[0])


def _as_groups(pairs: Path, folder: Path) -> Path:
    """Write preference pairs as groups of two, the preferred one with score 1."""
    rows = []
    for number, row in read_rows(pairs):
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{pairs}, row {number}: needs the texts prompt, chosen and rejected. Mend the row.")
        rows.append(json.dumps({"prompt": texts[0], "completions": texts[1:], "scores": [1.0, 0.0]}) + "\n")
    return _kept("".join(rows), folder, "pairs")


def stamp(base: AlignConfig) -> dict[str, str]:
    """Return what every file of an experiment says of its origin.

    Args:
        base: The base settings, which are fingerprinted without names of files.
    """
    named = ("model", "prompts", "test_prompts", "reward", "judge", "out")
    settings = text_fingerprint({k: v for k, v in dataclasses.asdict(base).items() if k not in named})[:16]
    return {"world": world_fingerprint(base)[:16], "settings": settings, "version": versions()["brain-align"]}


def world_fingerprint(config: AlignConfig) -> str:
    """Fingerprint the contents of model, prompts, reward and judge, so that rows are of one world.

    Args:
        config: The base settings.
    """
    return _fingerprint(*(getattr(config, name) for name in CONTENTS))


def known_fingerprint(config: AlignConfig) -> str:
    """Return the same, each content being read once until `forget`, for it may be large."""
    return _known(*(getattr(config, name) for name in CONTENTS))


def forget() -> None:
    """Let `known_fingerprint` read anew what it knows, as at the start of a command."""
    _known.cache_clear()


def _fingerprint(*sources: str) -> str:
    """Fingerprint of what the settings in CONTENTS name."""
    return text_fingerprint([_content(name, source) for name, source in zip(CONTENTS, sources, strict=True)])


_known = functools.cache(_fingerprint)


def _content(name: str, source: str) -> str:
    """Fingerprint of what a setting names: a folder, a file or a function; else the name itself."""
    if source and Path(source).is_dir():
        return _folder_content(Path(source))
    if source and Path(source).is_file():
        return _file_content(Path(source))
    if ":" in source and name in ("reward", "judge"):
        function = load_callable(source, option=f"--{name}")
        return text_fingerprint([function_fingerprint(source, function), *map(_file_content, _beside(function))])
    return source


def _folder_content(folder: Path) -> str:
    """Fingerprint of a model's folder, but for the version of the library that wrote it."""
    described = json.loads((folder / "config.json").read_text("utf-8")) if (folder / "config.json").is_file() else {}
    described.pop("transformers_version", None)
    left_out = ("config.json", "generation_config.json")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in left_out)
    return text_fingerprint([described, files_fingerprint(files)])


def _file_content(path: Path) -> str:
    """Fingerprint of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _beside(function: Callable[..., Any]) -> list[Path]:
    """The files of its package from which a function's module takes anything."""
    own = inspect.getmodule(function)
    if own is None or not own.__package__:
        return []
    modules = {inspect.getmodule(value) for value in vars(own).values()} - {own, None}
    beside = [module for module in modules if module and module.__package__ == own.__package__]
    return sorted(Path(module.__file__) for module in beside if module.__file__)

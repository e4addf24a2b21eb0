"""`python -m llm.experiments NAME`: the paper's tables and claims as commands, resumable."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm.config import AlignConfig, parse_command, validate
from llm.console import entry_point, say
from llm.errors import UserError
from llm.experiments import tables
from llm.experiments.cells import Cell, CellStore, Row, run_cells
from llm.experiments.studies import RATES, STUDIES, Arm, Study, study
from llm.methods import METHODS, method_settings
from llm.models import folder_fingerprint
from llm.plugins import load_callable
from llm.rewards import function_fingerprint
from llm.run_folder import lock_run, versions
from llm.store import write_text
from llm.streams import text_fingerprint
from llm.tables import read_rows

SAMPLER = "dpo-sft-iw-n"
"""The method whose rollouts the others share that learn from the prior's completions."""
QUICK: dict[str, Any] = {"e": 2, "m": 16, "n": 4, "k": 4, "batch": 4, "validation_count": 16, "test_count": 32}
"""Sizes of `--quick`: whether everything works, not what is true."""


@dataclass(frozen=True)
class ExperimentsCommand:
    """Run an experiment, or go on with it: what is finished is not run again.

    Other options are those of llm.align, for the base settings: --preset NAME, or --model DIR --prompts FILE ….
    """

    name: Annotated[str, tyro.conf.Positional]
    """The experiment, or all: table1, table3, baseline, samples, proposal, temperature, goodness or frontier."""
    seeds: int = 3
    """Seeds of each arm; the learning rate is chosen on the first one."""
    quick: bool = False
    """Tiny runs of one seed and one learning rate: to see that everything works."""
    pairs: str = ""
    """Preference pairs for DPO in table1: a .jsonl file with prompt, chosen and rejected. Unless given, the file
    preferences.jsonl beside the prompts, if there is one."""
    arms: tuple[str, ...] = ()
    """Only these rows of the table."""
    processes: int = 2
    """Runs at one time, a thread each."""
    out: str = "experiments"
    """Folder of tables, finished cells (cells.csv) and runs."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command, settings = tyro.cli(
        ExperimentsCommand, args=list(arguments), prog="python -m llm.experiments", config=(), return_unknown_args=True
    )
    names = list(STUDIES) if command.name == "all" else [command.name]
    if unknown := [name for name in names if name not in STUDIES]:
        raise UserError(f"{unknown[0]}: no such experiment. There are: {', '.join(STUDIES)}, and all.")
    base = parse_command(settings).settings
    base = dataclasses.replace(base, tracker="none", threads=1, **(QUICK if command.quick else {}))
    if base.rollouts:
        raise UserError("--rollouts: experiments sample by themselves; --pairs gives DPO its pairs.")
    folder = Path(command.out)
    pairs = _given_pairs(command.pairs, base, folder / "runs")
    base = _with_fixed_test(base, folder / "runs")
    asked = {name: _chosen(study(name, base, pairs), command.arms) for name in names}
    for arm in itertools.chain.from_iterable(each.arms for each in asked.values()):
        validate(arm.config(base))
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(folder):
        _run_all(asked, base, folder, command, f"python -m llm.experiments {shlex.join(arguments)}")


def _run_all(asked: dict[str, Study], base: AlignConfig, folder: Path, command: ExperimentsCommand, line: str) -> None:
    """Run the experiments one by one, each with its files at its end."""
    store = CellStore(folder / "cells.csv")
    for name, each in asked.items():
        runs = _run(each, base, store, folder / "runs", command)
        stamp = {
            "world": world_fingerprint(base)[:16],
            "settings": _settings_hash(base),
            "version": versions()["brain-align"],
        }
        tables.write(folder, name, each, runs, stamp, line)
        say((folder / f"{name}.md").read_text(encoding="utf-8"))


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
    write_text(path, text)
    return path


def _given_pairs(pairs: str, base: AlignConfig, folder: Path) -> str:
    """The file of DPO's groups: of the pairs asked for, else of those beside the prompts; "" where there are none."""
    beside = Path(base.prompts).parent / "preferences.jsonl"
    source = Path(pairs) if pairs else beside
    return str(_as_groups(source, folder)) if pairs or beside.is_file() else ""


def _as_groups(pairs: Path, folder: Path) -> Path:
    """Write preference pairs as groups of two, the preferred one with score 1."""
    rows = []
    for number, row in read_rows(pairs):
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{pairs}, row {number}: needs the texts prompt, chosen and rejected. Mend the row.")
        rows.append(json.dumps({"prompt": texts[0], "completions": texts[1:], "scores": [1.0, 0.0]}) + "\n")
    return _kept("".join(rows), folder, "pairs")


def _chosen(study: Study, labels: Sequence[str]) -> Study:
    """The experiment with only some of its rows."""
    known = [arm.label for arm in study.arms]
    if unknown := [label for label in labels if label not in known]:
        raise UserError(f"--arms {unknown[0]}: no such row. There are: {', '.join(known)}.")
    return dataclasses.replace(study, arms=tuple(a for a in study.arms if not labels or a.label in labels))


def _run(
    study: Study, base: AlignConfig, store: CellStore, runs: Path, command: ExperimentsCommand
) -> dict[str, list[Row]]:
    """Choose each arm's learning rate on the first seed, then run the others; return the rows of each arm."""
    runs.mkdir(parents=True, exist_ok=True)
    rates = [base.learning_rate * factor for factor in ((1.0,) if command.quick else RATES)]
    seeds = range(base.seed, base.seed + (1 if command.quick else command.seeds))
    grid = {arm.label: _grid(arm, base, rates, quick=command.quick) for arm in study.arms}
    say(_estimate(study, store, sum(map(len, grid.values())), len(seeds), command.processes))
    run_cells([cell for cells in grid.values() for cell in cells], store, runs, base, processes=command.processes)
    best = {label: _best(cells, store).config for label, cells in grid.items()}
    chosen = {label: [_cell(config, seed, base.learning_rate) for seed in seeds] for label, config in best.items()}
    run_cells([cell for cells in chosen.values() for cell in cells], store, runs, base, processes=command.processes)
    return {label: [store.rows[cell.key] for cell in cells] for label, cells in chosen.items()}


def _grid(arm: Arm, base: AlignConfig, rates: Sequence[float], *, quick: bool) -> list[Cell]:
    """An arm's runs of the first seed, of which the best one on the validation prompts gives its settings."""
    variants = arm.variants[:1] if quick else arm.variants
    config = arm.config(base)
    choices = [{**dict(variant), "learning_rate": rate} for variant in variants for rate in rates]
    return [_cell(dataclasses.replace(config, **choice), base.seed, base.learning_rate) for choice in choices]


def _cell(config: AlignConfig, seed: int, rate: float) -> Cell:
    """The run of some settings at a seed; methods of the prior share the rollouts of one of them, at this rate."""
    config = dataclasses.replace(config, seed=seed)
    world = world_fingerprint(config)
    if METHODS[config.method].proposal != "prior" or config.method == SAMPLER:
        return Cell(config, world)
    plain = {name: getattr(AlignConfig(), name) for name in method_settings()}
    return Cell(config, world, Cell(dataclasses.replace(config, method=SAMPLER, learning_rate=rate, **plain), world))


def _best(cells: Sequence[Cell], store: CellStore) -> Cell:
    """The cell with the best win rate on the validation prompts; of equal ones that of the lowest learning rate."""
    return max(cells, key=lambda cell: (store.rows[cell.key].validation_win_rate, -cell.config.learning_rate))


def _estimate(study: Study, store: CellStore, grid: int, seeds: int, processes: int) -> str:
    """What is ahead, from the runs that are finished."""
    runs = grid + len(study.arms) * (seeds - 1)
    known = [row.seconds for row in store.rows.values()]
    each = sum(known) / len(known) if known else 60.0
    hours = runs * each / processes / 3600
    return f"{study.title} At most {runs} runs of about {each:.0f} s, {processes} at a time: {hours:.1f} hours."


def world_fingerprint(config: AlignConfig) -> str:
    """Fingerprint the contents of model, prompts, reward and judge, so that rows are of one world.

    Args:
        config: The base settings.
    """
    names = ("model", "prompts", "test_prompts", "reward", "judge", "tokenizer", "sft_adapter")
    return text_fingerprint([_content(name, getattr(config, name)) for name in names])


def _content(name: str, source: str) -> str:
    """Fingerprint of what a setting names: a folder, a file or a function; else the name itself."""
    if source and Path(source).is_dir():
        return folder_fingerprint(Path(source))
    if source and Path(source).is_file():
        return text_fingerprint(Path(source).read_bytes().hex())
    if ":" in source and name in ("reward", "judge"):
        return function_fingerprint(source, load_callable(source, option=f"--{name}"))
    return source


def _settings_hash(base: AlignConfig) -> str:
    """Fingerprint of the base settings, without names of files."""
    named = ("model", "prompts", "test_prompts", "reward", "judge", "out")
    return text_fingerprint({k: v for k, v in dataclasses.asdict(base).items() if k not in named})[:16]


if __name__ == "__main__":
    sys.exit(entry_point(main))

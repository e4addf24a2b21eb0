"""`python -m llm.experiments NAME`: the paper's tables and claims as commands, resumable."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm.config import AlignConfig, validate
from llm.console import entry_point, say
from llm.errors import UserError
from llm.experiments import tables, variance, worlds
from llm.experiments.cells import Cell, CellStore, run_cells
from llm.experiments.repeat import repeated
from llm.experiments.results import Found
from llm.experiments.reward_models import with_reward
from llm.experiments.studies import RATES, STUDIES, TABLE1, Arm, MakeReward, Study, study
from llm.experiments.worlds import World, known_fingerprint, own_part, world_fingerprint
from llm.methods import METHODS, method_settings
from llm.run_folder import lock_run

TASKS = {f"{task}-{name}": (task, name) for task in worlds.SMALL for name in ("table1", "baseline", "proposal")}
"""The experiments of `tasks`, each with its small world and the experiment that it is there."""
NAMES = (*STUDIES, "variance", *TASKS)
SAMPLER = "dpo-sft-iw-n"
"""The method whose rollouts the others share that learn from the prior's completions."""
QUICK: dict[str, Any] = {"e": 2, "m": 16, "n": 4, "k": 4, "batch": 4, "validation_count": 16, "test_count": 32}
"""Sizes of `--quick`: whether everything works, not what is true."""
SECONDS = (4.0, 0.0021)
"""Processor time of a run of the embedded default, and of each completion in its backward passes: what the estimate is
from until a run has ended."""


@dataclass(frozen=True)
class ExperimentsCommand:
    """Run an experiment, or go on with it: what is finished is not run again.

    Other options are those of llm.align, for the base settings: --preset NAME, or --model DIR --prompts FILE ….
    """

    name: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help=f"One of {', '.join(NAMES)}; tasks, the last nine; or all.")
    ]
    seeds: int = 3
    """Seeds of each arm; the learning rate is chosen on the first one."""
    quick: bool = False
    """Tiny runs of one seed and one learning rate, as NAME-quick, to see that everything works; unless options name
    another world, in miniatures of the small ones."""
    pairs: str = ""
    """Preference pairs for DPO in table1: a .jsonl file with prompt, chosen and rejected. Unless given, the file
    preferences.jsonl beside the prompts, if there is one."""
    arms: tuple[str, ...] = ()
    """Run only these rows; the table shows them and all others that are finished."""
    by_objective: bool = False
    """Choose settings by E r − T KL on the validation prompts instead of by the win rate, as NAME-by-objective: where
    the target is mild, the win rate chooses what overshoots it."""
    check: int | None = None
    """Instead, run the first row (of --arms) at this seed once more, in a temporary folder, and compare: a seed of the
    table must give the same figures (exit status 1 if it does not), another one should lie in its seeds' reach."""
    processes: int = 2
    """Runs at one time, a thread each."""
    out: str = "experiments"
    """Folder of tables, finished cells (cells.csv) and runs."""


@dataclass(frozen=True)
class Experiment:
    """An experiment that is made of runs.

    Attributes:
        name: Its name.
        base: The settings that its arms change.
        study: Its arms and claims.
    """

    name: str
    base: AlignConfig
    study: Study


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command, options = tyro.cli(
        ExperimentsCommand, args=list(arguments), prog="python -m llm.experiments", config=(), return_unknown_args=True
    )
    names = _names(command, is_own=worlds.is_own(arguments))
    worlds.forget()
    base = worlds.base_settings(options, quick=command.quick)
    base = dataclasses.replace(base, tracker="none", threads=1, **(QUICK if command.quick else {}))
    if base.rollouts:
        raise UserError("--rollouts: experiments sample by themselves; --pairs gives DPO its pairs.")
    runs = Path(command.out) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with lock_run(runs.parent):
        own = worlds.held_out(base, command.pairs, runs)
        asked = _made(_planned(names, own, command), own, command)
        if command.check is not None:
            sys.exit(_check_all(asked, command, command.check))
        line = f"python -m llm.experiments {shlex.join(arguments)}"
        _run_all(asked, own.base, command, line)
        if "variance" in names:
            _measure_variance(own.base, command, line)


def _names(command: ExperimentsCommand, *, is_own: bool) -> list[str]:
    """The experiments that a name stands for; those of `tasks` are not for another world."""
    if command.name not in (*NAMES, "tasks", "all"):
        raise UserError(f"{command.name}: no such experiment. There are: {', '.join(NAMES)}, tasks and all.")
    if command.name == "variance" and (command.arms or command.check is not None):
        raise UserError("variance: has no rows to choose; leave out --arms and --check.")
    if min(command.seeds, command.processes) < 1:
        raise UserError("--seeds and --processes: must be 1 or more.")
    if is_own and command.name in ("tasks", *TASKS):
        raise UserError(f"{command.name}: brings a world of its own. Leave out --preset and all options that name one.")
    if is_own and command.name == "all":
        say("tasks is left out, for it brings worlds of its own.")
    groups = {"tasks": [*TASKS], "all": [name for name in NAMES if not (is_own and name in TASKS)]}
    return groups.get(command.name, [command.name])


def _planned(names: Sequence[str], own: World, command: ExperimentsCommand) -> list[str]:
    """The experiments to make of runs, before worlds and reward models of theirs are made; tells how long they take."""
    planned = [*_experiments(names, lambda _: own, lambda *_: (own.base.reward, ()), command)]
    for each in planned:
        for arm in _chosen(each.study, command.arms):
            validate(arm.config(each.base))
    if command.check is None:
        say(_estimate(planned, own.base, command, has_variance="variance" in names))
    return [each.name for each in planned]


def _made(names: Sequence[str], own: World, command: ExperimentsCommand) -> Iterator[Experiment]:
    """The experiments to make of runs, one after another, with the worlds and reward models of each."""

    @functools.cache
    def world_of(task: str) -> World:
        runs = Path(command.out) / "runs"
        return worlds.small_world(task, own.base, runs, quick=command.quick) if task else own

    return _experiments(names, world_of, with_reward, command)


def _experiments(
    names: Iterable[str], world_of: Callable[[str], World], make: MakeReward, command: ExperimentsCommand
) -> Iterator[Experiment]:
    """The experiments that are made of runs; of `all`, those that the settings allow, saying which they do not."""
    for name in names:
        task, kind = TASKS.get(name, ("", name))
        if kind not in STUDIES:
            continue
        try:
            world = world_of(task)
            found = study(kind, world.base, world.pairs, make)
        except UserError as error:
            if command.name != "all":
                raise
            say(f"{name} is left out. {error}")
        else:
            found = dataclasses.replace(found, chosen_by="validation_objective") if command.by_objective else found
            yield Experiment(name, world.base, _on(task, found) if task else found)


def _on(task: str, found: Study) -> Study:
    """An experiment as it is on a small world: of all methods, those that the paper compares."""
    arms = tuple(arm for arm in found.arms if arm.label in TABLE1 or arm.label not in METHODS)
    return dataclasses.replace(found, title=f"{found.title} The world of {task}.", arms=arms)


def _run_all(asked: Iterable[Experiment], base: AlignConfig, command: ExperimentsCommand, line: str) -> None:
    """Run the experiments one by one, each with its files at its end."""
    folder = Path(command.out)
    store = CellStore(folder / "cells.csv")
    if command.quick:  # all runs at once, for to start the processes anew takes longer than they do
        asked = [*asked]
        cells = [cell for each in asked for grid in _asked_grids(each, command) for cell in grid]
        run_cells(cells, store, folder / "runs", base, processes=command.processes)
    for each in asked:
        say(f"{each.name}: {each.study.title}")
        found, name = _run(each, store, command), _file_name(each.name, command)
        tables.write(folder, name, each.study, found, each.base, worlds.stamp(each.base), line)
        say((folder / f"{name}.md").read_text(encoding="utf-8"))


def _measure_variance(base: AlignConfig, command: ExperimentsCommand, line: str) -> None:
    """Run the experiment that compares gradients, not runs."""
    folder, name = Path(command.out), _file_name("variance", command)
    size = variance.QUICK if command.quick else variance.Size()
    found = variance.run_variance(base, folder, world_fingerprint(base), size, processes=command.processes)
    variance.write(folder, name, found, size, base, worlds.stamp(base), line)
    say((folder / f"{name}.md").read_text(encoding="utf-8"))


def _file_name(name: str, command: ExperimentsCommand) -> str:
    """What an experiment's files are named; tiny runs, and other choices, never replace others' files."""
    return name + "-by-objective" * command.by_objective + "-quick" * command.quick


def _chosen(study: Study, labels: Sequence[str]) -> list[Arm]:
    """The rows that were asked for, all unless some are named."""
    known = [arm.label for arm in study.arms]
    if unknown := [label for label in labels if label not in known]:
        raise UserError(f"--arms {unknown[0]}: no such row. There are: {', '.join(known)}.")
    return [arm for arm in study.arms if not labels or arm.label in labels]


def _asked_grids(asked: Experiment, command: ExperimentsCommand) -> list[list[Cell]]:
    """The grids of the rows that were asked for."""
    return [_grid(arm, asked.base, quick=command.quick) for arm in _chosen(asked.study, command.arms)]


def _run(asked: Experiment, store: CellStore, command: ExperimentsCommand) -> list[Found]:
    """Choose each arm's settings on the first seed, then run the others; return every arm that is finished."""
    base, runs, seeds = asked.base, Path(command.out) / "runs", _seeds(asked.base, command)
    grids = _asked_grids(asked, command)
    run_cells([*itertools.chain.from_iterable(grids)], store, runs, base, processes=command.processes)
    best = [_best(grid, store, asked.study.chosen_by).config for grid in grids]
    chosen = [_cell(config, seed, base) for config in best for seed in seeds]
    run_cells(chosen, store, runs, base, processes=command.processes)
    results = [_found(asked, arm, store, seeds, quick=command.quick) for arm in asked.study.arms]
    return [result for result in results if result]


def _seeds(base: AlignConfig, command: ExperimentsCommand) -> range:
    """The seeds of every arm."""
    return range(base.seed, base.seed + (1 if command.quick else command.seeds))


def _found(asked: Experiment, arm: Arm, store: CellStore, seeds: range, *, quick: bool) -> Found | None:
    """An arm with the seeds that are finished; None if not all of its grid is."""
    base, grid = asked.base, _grid(arm, asked.base, quick=quick)
    if any(cell.key not in store.rows for cell in grid):
        return None
    best = _best(grid, store, asked.study.chosen_by).config
    cells = [_cell(best, seed, base) for seed in seeds]
    rows = [store.rows[cell.key] for cell in cells if cell.key in store.rows]
    return Found(arm, tuple((cell.config, store.rows[cell.key]) for cell in grid), tuple(rows))


def _grid(arm: Arm, base: AlignConfig, *, quick: bool) -> list[Cell]:
    """An arm's runs of the first seed, of which the best one on the validation prompts gives its settings."""
    rates, variants = ((1.0,), arm.variants[:1]) if quick else (RATES, arm.variants)
    config = arm.config(base)
    choices = [{**dict(variant), "learning_rate": base.learning_rate * rate} for variant in variants for rate in rates]
    return [_cell(dataclasses.replace(config, **choice), base.seed, base) for choice in choices]


def _cell(config: AlignConfig, seed: int, base: AlignConfig) -> Cell:
    """The run of some settings at a seed, on its own part of given completions, or on the rollouts of SAMPLER."""
    start = (seed - base.seed) * config.e * config.m
    given = str(own_part(Path(config.rollouts), start)) if config.rollouts else ""
    config = dataclasses.replace(config, seed=seed, rollouts=given)
    world = known_fingerprint(config)
    if METHODS[config.method].proposal != "prior" or config.method == SAMPLER:
        return Cell(config, world)
    plain = {name: getattr(AlignConfig(), name) for name in method_settings()}
    return Cell(
        config,
        world,
        Cell(dataclasses.replace(config, method=SAMPLER, learning_rate=base.learning_rate, **plain), world),
    )


def _best(cells: Sequence[Cell], store: CellStore, by: str) -> Cell:
    """The cell that is best by a figure on the validation prompts; of equal ones that of the lowest learning rate."""
    return max(cells, key=lambda cell: (getattr(store.rows[cell.key], by), -cell.config.learning_rate))


def _estimate(
    planned: Sequence[Experiment], base: AlignConfig, command: ExperimentsCommand, *, has_variance: bool
) -> str:
    """How long everything takes, from runs of these sizes that are finished, else from the embedded default's."""
    grids = [grid for each in planned for grid in _asked_grids(each, command)]
    runs = sum(len(grid) + len(_seeds(base, command)) - 1 for grid in grids) + 2 * has_variance
    size = base.e * base.k * base.batch * base.n
    rows = CellStore(Path(command.out) / "cells.csv").rows.values()
    known = [row.seconds for row in rows if row.backward_completions == size]
    each = sum(known) / len(known) if known else SECONDS[0] + SECONDS[1] * size
    minutes = runs * each / command.processes / 60
    guess = "" if known else " (a guess until one has ended)"
    return (
        f"Experiments: {len(planned) + has_variance}. At most {runs} runs of about {each:.0f} s{guess}, "
        f"{command.processes} at a time: {minutes:.0f} minutes. Those that are finished or shared are not run again."
    )


def _check_all(asked: Iterable[Experiment], command: ExperimentsCommand, seed: int) -> int:
    """Repeat a cell of each experiment and say what came of it; return the exit status."""
    store = CellStore(Path(command.out) / "cells.csv")
    checks = {each.name: _check(each, store, command, seed) for each in asked}
    for name, (text, _) in checks.items():
        print(f"{name}: {text}")
    return 0 if all(is_well for _, is_well in checks.values()) else 1


def _check(asked: Experiment, store: CellStore, command: ExperimentsCommand, seed: int) -> tuple[str, bool]:
    """Repeat the cell of a seed of the first row; return what came of it, and whether it is well."""
    base, arm = asked.base, _chosen(asked.study, command.arms)[0]
    found = _found(asked, arm, store, _seeds(base, command), quick=command.quick)
    if found is None:
        raise UserError(f"--check: {arm.label} is not finished in {command.out}. Run the experiment first.")
    return repeated(_cell(found.config, seed, base), found, store, base)


if __name__ == "__main__":
    sys.exit(entry_point(main))

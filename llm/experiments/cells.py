"""Cells: single runs of `llm.align` that experiments are made of, each done once and kept as one row of a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llm.config import AlignConfig
from llm.errors import UserError
from llm.plugins import load_callable
from llm.rewards import function_fingerprint
from llm.run_folder import stored_config, versions
from llm.store import ShardFolder, read_events, read_json, write_json, write_text
from llm.streams import text_fingerprint

PROCESSOR_TIME = "processor_time.json"
LETTERS = {1: "W", 0: "T", -1: "L"}
NOT_MEANING = ("out", "tracker", "threads", "checkpoint_every", "sample_rows", "train_rows", "reward_rows")
"""Settings that do not change what a cell finds, or do so by rounding only."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        config: Its settings, without a run folder.
        world: Fingerprint of model, prompts, reward and judge, so that a row is never taken for another world's.
        store: A cell whose rollouts it trains on instead of sampling, if any.
    """

    config: AlignConfig
    world: str
    store: Cell | None = None

    @property
    def key(self) -> str:
        """Names the cell by its settings and world."""
        names = [f.name for f in dataclasses.fields(AlignConfig) if f.name not in (*NOT_MEANING, *WORLD_SETTINGS)]
        chosen = {name: getattr(self.config, name) for name in names}
        changed = {name: value for name, value in chosen.items() if value != getattr(AlignConfig(), name)}
        store = self.store.key if self.store else ""
        return text_fingerprint([changed, self.world, _content(self.config), store])[:16]


WORLD_SETTINGS = ("model", "prompts", "reward", "judge", "test_prompts", "tokenizer", "sft_adapter", "rollouts")
"""Settings that name files: their contents are the world."""


def _content(config: AlignConfig) -> list[str]:
    """Fingerprints of what a cell's settings only name: given completions, and functions of the user's."""
    found = [hashlib.sha256(Path(config.rollouts).read_bytes()).hexdigest()] if Path(config.rollouts).is_file() else []
    for option in ("method", "goodness"):
        name = getattr(config, option)
        if ":" in name:
            found.append(function_fingerprint(name, load_callable(name, option=f"--{option}")))
    return found


@dataclass(frozen=True)
class Row:
    """What a finished cell found.

    Attributes:
        cell: Its key.
        world: The world's fingerprint.
        method: The method; `seed` and `learning_rate` as set.
        settings: What differs from the experiment's base, as JSON.
        best_step: The step of the adapter that was evaluated.
        validation_win_rate: By the reward model on the validation prompts, which chooses learning rates.
        validation_objective: E r − T · KL on the validation prompts.
        judge: A letter for each test prompt, in the file's order: W, T or L against the reference; empty without a
            judge.
        reward_model: The same by the reward model.
        grades: The judge's grade of each test prompt's completion, in order, separated by spaces; empty without one.
        rewards: The same by the reward model.
        log_ratios: log q_θ − log p of the same completions, nats.
        kl_to_prior: Nats, over the test prompts; `completion_length` in tokens likewise.
        completions: Completions sampled; `backward_completions` those in backward passes, each counted every time.
        seconds: Processor time of the run's last session, and of its store's sampling and scoring.
        prompts: Fingerprint of the test prompts, in that order.
        version: Of this package.
    """

    cell: str
    world: str
    method: str
    seed: int
    learning_rate: float
    settings: str
    best_step: int
    validation_win_rate: float
    validation_objective: float
    judge: str
    reward_model: str
    grades: str
    rewards: str
    log_ratios: str
    kl_to_prior: float
    completion_length: float
    completions: int
    backward_completions: int
    seconds: float
    prompts: str
    version: str


class CellStore:
    """The finished cells of all experiments, in one CSV file.

    Args:
        path: The file; made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, Row] = {row.cell: row for row in _read(path)}

    def add(self, row: Row) -> None:
        """Keep a row: the file is written anew, whole."""
        self.rows[row.cell] = row
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        for key in sorted(self.rows):
            writer.writerow(dataclasses.asdict(self.rows[key]))
        write_text(self._path, buffer.getvalue())


def run_cells(cells: Sequence[Cell], store: CellStore, runs: Path, base: AlignConfig, *, processes: int) -> None:
    """Run what is not finished yet, several at once, and keep each row as it comes.

    Args:
        cells: The cells; those whose rollouts others use are run before these.
        store: Where rows are kept.
        runs: Folder of the runs.
        base: The experiment's settings, to say what differs.
        processes: Runs at one time.

    Raises:
        UserError: A run failed; its output is in its log. What was finished before is kept.
    """
    stores = {cell.store.key: cell.store for cell in cells if cell.store}
    for wave in (list(stores.values()), list(cells)):
        wanted = {c.key: c for c in wave if c.key not in store.rows or _is_needed(c, stores, cells, store, runs)}
        if not wanted:
            continue
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(min(processes, len(wanted)), context, _end_with_parent) as pool,
            tqdm(total=len(wanted), desc="runs", unit="run") as bar,
        ):
            futures = [pool.submit(_finished, cell, runs, base) for cell in wanted.values()]
            try:
                for future in as_completed(futures):
                    store.add(future.result())
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for cell in cells:
        shutil.rmtree(runs / cell.key / "checkpoints", ignore_errors=True)


def _end_with_parent() -> None:
    """Let this process end when its parent is killed: nobody would collect its runs, which it would keep locked."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_needed(cell: Cell, stores: Mapping[str, Cell], cells: Sequence[Cell], store: CellStore, runs: Path) -> bool:
    """Whether a finished store has to be sampled again, for its folder is gone and a cell still wants it."""
    if cell.key not in stores or (runs / cell.key / PROCESSOR_TIME).exists():
        return False
    return any(c.store and c.store.key == cell.key and c.key not in store.rows for c in cells)


def _finished(cell: Cell, runs: Path, base: AlignConfig) -> Row:
    """Run a cell to its end, going on where it was interrupted, and read what it found."""
    folder = runs / cell.key
    if not (folder / PROCESSOR_TIME).exists():
        rollouts = str(runs / cell.store.key) if cell.store else cell.config.rollouts
        if ":" in cell.config.method:  # the function may remember what it saw, which a resumed run would lack
            shutil.rmtree(folder, ignore_errors=True)
        started = time.process_time()
        _align(dataclasses.replace(cell.config, out=str(folder), rollouts=rollouts), runs / f"{cell.key}.log")
        write_json(folder / PROCESSOR_TIME, {"seconds": time.process_time() - started})
    return row_of(cell, folder, base)


def _align(config: AlignConfig, log: Path) -> None:
    """Run, or go on with, an alignment, with what it prints in a log."""
    from llm.align import run

    folder = Path(config.out)
    resume = (folder / "config.yaml").exists()
    with open(log, "a", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            run(stored_config(folder) if resume else config, resume=resume)
        except UserError as error:
            raise UserError(f"A run with --method {config.method} failed: {error} (Log: {log}.)") from error


def row_of(cell: Cell, folder: Path, base: AlignConfig) -> Row:
    """Read what a finished run found.

    Args:
        cell: The cell.
        folder: Its run folder.
        base: The experiment's settings, to say what differs.
    """
    summary = read_json(folder / "summary.json")
    after, config = summary["after"], cell.config
    return Row(
        cell=cell.key,
        world=cell.world,
        method=config.method,
        seed=config.seed,
        learning_rate=config.learning_rate,
        settings=json.dumps(_differences(config, base), sort_keys=True),
        best_step=int(summary["best"]["step"]),
        validation_win_rate=summary["best"]["win_rate"],
        validation_objective=_validation_objective(folder, int(summary["best"]["step"]), config.temperature),
        judge=_outcomes(folder, "grade"),
        reward_model=_outcomes(folder, "reward"),
        grades=_values(folder, "grade"),
        rewards=_values(folder, "reward"),
        log_ratios=" ".join(f"{row['log_policy'] - row['log_prior']:.4g}" for row in _after(folder)),
        kl_to_prior=after["kl_to_prior"]["estimate"],
        completion_length=after["completion_length"]["estimate"],
        completions=summary["counts"]["completions"],
        backward_completions=config.e * config.k * config.batch * config.n,
        seconds=_processor_seconds(folder) + _sampling_seconds(cell, folder),
        prompts=text_fingerprint([row["prompt_id"] + row["prompt"] for row in _after(folder)])[:16],
        version=versions()["brain-align"],
    )


def _processor_seconds(folder: Path) -> float:
    """Processor time of a run's last session: other programs on the machine change it little, unlike wall time."""
    return float(read_json(folder / PROCESSOR_TIME)["seconds"])


def _sampling_seconds(cell: Cell, folder: Path) -> float:
    """What the completions cost that this cell took from another: its phases' time, as far as it had the processor."""
    if not cell.store:
        return 0.0
    source = folder.parent / cell.store.key
    phases = sum(event["seconds"] for event in read_events(source / "metrics.jsonl") if event["event"] == "phase")
    share = _processor_seconds(source) / read_json(source / "summary.json")["seconds"]
    return float(phases * min(1.0, share))  # a last session that only ended the run is mostly loading


def _validation_objective(folder: Path, step: int, temperature: float) -> float:
    """The objective on the validation prompts at a step."""
    events = read_events(folder / "metrics.jsonl")
    at = next(event for event in events if event["event"] == "validation" and event["step"] == step)
    return float(at["mean_reward"] - temperature * at["kl_to_prior"])


def _differences(config: AlignConfig, base: AlignConfig) -> dict[str, Any]:
    """The settings in which a cell differs from its experiment's base, but for names of files."""
    mine, its = dataclasses.asdict(config), dataclasses.asdict(base)
    left_out = ("out", "method", "seed", "learning_rate", *WORLD_SETTINGS)
    return {name: value for name, value in mine.items() if value != its[name] and name not in left_out}


def _outcomes(folder: Path, field: str) -> str:
    """A letter for each test prompt: whether the policy's completion beats the reference by reward or grade."""
    rows = _after(folder)
    if any(row[field] is None for row in rows):
        return ""
    return "".join(LETTERS[_sign(row[field] - row[f"reference_{field}"])] for row in rows)


def _values(folder: Path, field: str) -> str:
    """A field of each test prompt, to four digits."""
    values = [row[field] for row in _after(folder)]
    return "" if None in values else " ".join(f"{value:.4g}" for value in values)


def _after(folder: Path) -> list[dict[str, Any]]:
    """The final evaluation's rows in the order of the prompts' file, with grades where there is a judge."""
    shards = ShardFolder(folder / "eval")
    graded = sorted(path.stem for path in (folder / "eval").glob("judged-*.parquet"))
    both = shards.read(graded[-1]) if graded else []
    rows = both[len(both) // 2 :] or shards.read("after")
    return sorted(rows, key=lambda row: (len(row["prompt_id"]), row["prompt_id"]))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _read(path: Path) -> Iterable[Row]:
    """Read the finished rows of a file."""
    if not path.exists():
        return
    kinds = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in dataclasses.fields(Row)}
    with open(path, newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=1):
            try:
                yield Row(**{name: kind(line[name]) for name, kind in kinds.items()})
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path}, row {number}: is not a finished cell ({error}). Restore the file.") from error

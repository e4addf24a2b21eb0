"""Evaluation on held-out prompts, at temperature 1, beside the references: `python -m llm.evaluate RUN`.

A run evaluates itself before and after training, with one completion a prompt. The command evaluates it again, with
several completions a prompt, at another checkpoint, on other prompts, or head to head with another run.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import tyro
from tqdm import tqdm

from llm import processes
from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig
from llm.console import entry_point, printable, say
from llm.errors import UserError
from llm.figures import Figures, figures, group_figures, head_to_head
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.plugins import load_callable
from llm.prompts import load_prompts, with_references
from llm.proposal import adapter_digest
from llm.records import Completion, EvalRecord, Prompt
from llm.rewards import AnyReward, configured_reward, function_fingerprint, on_device, rewards_of
from llm.rollout import sample_groups
from llm.run_folder import IDENTITY_FILE, SCORER_VERSION, check_model, lock_run, stored_config, versions
from llm.store import ShardFolder, disk_errors, read_json, write_json
from llm.streams import text_fingerprint
from llm.train import make_log_goodness

Judge = Callable[[list[Any], list[str]], Sequence[float]]

GO_ON = "The same command goes on from there."
SHARD_PROMPTS = 64
"""Prompts after which what was done is on disk."""
FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
RESERVED = re.compile(r"before|after|references|judged-.*|manifest.*|.*-against-.*", re.IGNORECASE)
"""What else is written into `eval/`; some file systems do not tell small letters from capitals."""
SHARES = re.compile(r".*_rate|ended|distinct_.|empty_groups")
"""Figures that are shares of 1."""


def sample_one_each(policy: Policy, prompts: Sequence[Prompt], config: AlignConfig, stage: str) -> list[Completion]:
    """Sample one completion of every prompt, under draws that are the same at every step of the run.

    Args:
        policy: The policy; within `policy.as_prior()`, the prior.
        prompts: The prompts.
        config: The run's settings.
        stage: Names the draws.

    Returns:
        A completion for each prompt, in order.
    """
    return processes.dealt(prompts, config.sample_rows, partial(_sampled, policy, config, stage, 1))


def _sampled(
    policy: Policy, config: AlignConfig, stage: str, count: int, prompts: Sequence[Prompt]
) -> list[Completion]:
    """Sample some completions of every prompt of a block, prompt by prompt."""
    draw = (config.seed, stage, 0)
    groups = sample_groups(policy, prompts, count, draw=draw, max_new_tokens=config.max_new_tokens, stop=config.stop)
    return [completion for group in groups for completion in group]


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: AnyReward,
    reference_rewards: dict[str, float],
    config: AlignConfig,
    stage: str,
    count: int = 1,
) -> list[EvalRecord]:
    """Sample, score and reward completions of every prompt; grades come later, from `judged`.

    Args:
        policy: The policy.
        prompts: Held-out prompts with their references.
        reward: The reward.
        reference_rewards: The reference's reward for each prompt id.
        config: The run's settings.
        stage: Names the draws.
        count: Completions of each prompt.

    Returns:
        A record for each completion, prompt by prompt, in order.
    """

    def draw(block: Sequence[Prompt]) -> list[tuple[Completion, float, float]]:
        completions = _sampled(policy, config, stage, count, block)
        pairs = list(zip([prompt for prompt in block for _ in range(count)], completions, strict=True))
        log_policy = score(policy, pairs, config.sample_rows)
        with policy.as_prior():
            return list(zip(completions, log_policy, score(policy, pairs, config.sample_rows), strict=True))

    repeated = [prompt for prompt in prompts for _ in range(count)]
    drawn = processes.dealt(prompts, max(1, config.sample_rows // count), draw)
    texts = [(prompt, completion.text) for prompt, (completion, _, _) in zip(repeated, drawn, strict=True)]
    with on_device(reward):  # and not before: sampling needs the room
        rewards = processes.dealt(texts, config.sample_rows, lambda block: rewards_of(reward, block).tolist())
    return [
        EvalRecord(p, c, p.reference or "", r, reference_rewards[p.prompt_id], None, None, lq, lp)
        for p, (c, lq, lp), r in zip(repeated, drawn, rewards, strict=True)
    ]


def make_references(
    config: AlignConfig, policy: Policy, reward: AnyReward, prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """Sample missing references from the prior, and reward all of them.

    Args:
        config: The run's settings.
        policy: The policy, whose prior is asked.
        reward: The reward.
        prompts: The prompts.

    Returns:
        A row for each prompt with its `prompt_id`, `reference` and the reference's `reward`.
    """
    missing = [prompt for prompt in prompts if prompt.reference is None]
    with policy.as_prior():
        sampled = sample_one_each(policy, missing, config, "reference")
    own = {completion.prompt_id: completion.text for completion in sampled}
    texts = {p.prompt_id: own[p.prompt_id] if p.reference is None else p.reference for p in prompts}
    pairs = [(prompt, texts[prompt.prompt_id]) for prompt in with_references(prompts, texts)]
    with on_device(reward):
        values = processes.dealt(pairs, config.sample_rows, lambda block: rewards_of(reward, block).tolist())
    return [
        {"prompt_id": prompt.prompt_id, "reference": text, "reward": value}
        for (prompt, text), value in zip(pairs, values, strict=True)
    ]


def judged(records: Sequence[EvalRecord], judge: Judge, name: str) -> list[EvalRecord]:
    """Grade completions and references with the independent judge.

    Args:
        records: The evaluation.
        judge: Called on the prompts with the completions, then with the references.
        name: The judge's name, for the message.

    Returns:
        The records with their grades.

    Raises:
        UserError: The judge raised, or did not return one finite grade for each.
    """
    prompts = [record.prompt.text for record in records]
    grades = _grades(judge, name, prompts, [record.completion.text for record in records])
    references = _grades(judge, name, prompts, [record.reference for record in records])
    return [
        replace(record, grade=grade, reference_grade=reference)
        for record, grade, reference in zip(records, grades, references, strict=True)
    ]


def _grades(judge: Judge, name: str, prompts: list[Any], texts: list[str]) -> list[float]:
    """Call the judge and check what it returns."""
    advice = "What was trained is in the run folder; mend the judge and use --resume (llm.evaluate: the same command)."
    try:
        grades = np.asarray(judge(list(prompts), list(texts)), dtype=np.float64)
    except Exception as error:
        raise UserError(f"--judge {name}: raised {type(error).__name__}: {error}. {advice}") from error
    if grades.shape != (len(texts),):
        raise UserError(
            f"--judge {name}: must return one grade for each of {len(texts)} completions; it returned an array of "
            f"shape {grades.shape}. {advice}"
        )
    broken = np.flatnonzero(~np.isfinite(grades))
    if len(broken):
        raise UserError(
            f"--judge {name}: must return finite grades; {len(broken)} of {len(grades)} are not, the first for "
            f"completion {broken[0]}: {grades[broken[0]]}. {advice}"
        )
    return [float(grade) for grade in grades]


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run's policy with several completions a prompt; the run keeps the result in eval/."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    completions: int = 4
    """Completions of each prompt."""
    prompts: str = ""
    """Other prompts, in the run's format; the run's held-out ones unless given."""
    checkpoint: str = "best"
    """best (the run's adapter), prior, or step-… (one of the run's checkpoints)."""
    against: str = ""
    """Another run, whose best adapter is evaluated on the same prompts and compared head to head."""
    name: str = ""
    """The result's name in eval/; CHECKPOINT-xCOMPLETIONS unless given, with the name of other prompts behind it."""
    sample_rows: int = 0
    """Completions in one sampling or scoring call (memory); as in the run unless given."""


class Subject(NamedTuple):
    """A run's policy with what evaluates it.

    Attributes:
        folder: The run folder.
        config: The run's settings.
        policy: At the checkpoint that is evaluated.
        reward: The run's reward.
        judge: The run's judge, if it has one.
    """

    folder: Path
    config: AlignConfig
    policy: Policy
    reward: AnyReward
    judge: Judge | None

    def judge_fingerprint(self) -> str | None:
        """Return what tells one judge from another, None where there is none."""
        return function_fingerprint(self.config.judge, self.judge) if self.judge else None


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = tyro.cli(EvaluateCommand, args=list(arguments), prog="python -m llm.evaluate", config=())
    for name, least in (("completions", 1), ("sample_rows", 0)):
        if getattr(command, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(command, name)}: must be {least} or more.")
    command = replace(command, name=_name(command))
    folder, other = Path(command.run), Path(command.against)
    if not command.against:
        evaluate_run(folder, command)
        return
    _check_comparable(folder, other, command)
    compare(folder, other, command)


def compare(folder: Path, other: Path, command: EvaluateCommand) -> None:
    """Evaluate two runs, write `eval/<name>-against-….json` into the first, and print the figures head to head.

    Raises:
        UserError: One of them cannot be evaluated.
    """
    second = replace(command, checkpoint="best", name=_name(replace(command, checkpoint="best", name="")))
    records = [evaluate_run(folder, command), evaluate_run(other, second)]
    results = [read_json(one / "eval" / f"{name}.json") for one, name in ((folder, command.name), (other, second.name))]
    if results[0]["judge"] != results[1]["judge"]:
        say("The runs do not have the same judge, so the judge's figures are left out head to head.")
        records = [[replace(r, grade=None, reference_grade=None) for r in side] for side in records]
    if command.completions == 1 and stored_config(folder).seed == stored_config(other).seed:
        say("The runs have one seed, so the single completions share their draws: identical ones are ties.")
    values, about = head_to_head(*records), _about_both(folder, other, command, results)
    mark = text_fingerprint(about["identities"])[:8]
    path = folder / "eval" / f"{command.name}-against-{_file_name(other.resolve().name)}-{mark}.json"
    write_json(path, about | {"figures": values})
    _show(f"{folder} ({command.checkpoint}) against {other} (best)", values, path)


def _about_both(
    folder: Path, other: Path, command: EvaluateCommand, results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What a comparison is of: the two runs, and of each, in the same order, what its evaluation says."""
    return {
        "run": str(folder),
        "against": str(other),
        "checkpoints": [result["checkpoint"] for result in results],
        "steps": [result["step"] for result in results],
        "prompts": command.prompts or None,
        "completions": command.completions,
        "identities": [result["identity"] for result in results],
        "judges": [result["judge"] for result in results],
    }


def evaluate_run(folder: Path, command: EvaluateCommand) -> list[EvalRecord]:
    """Evaluate one run as the command says, write `eval/<name>.parquet` and `.json`, and print the figures.

    What an earlier, perhaps interrupted, call wrote of the same evaluation is read instead of made again.

    Raises:
        UserError: There is no such run, checkpoint or prompts, the run's model, reward or prompts changed since, or
            another evaluation has the name.
    """
    with _locked(folder):
        subject = _load(folder, command)
        prompts, reference_rewards = _prompts(subject, command)
        identity = _identity(subject, prompts, reference_rewards, command.completions)
        make = partial(_records, subject, reference_rewards, command.completions)
        rows = _stored_rows(folder / "eval", command.name, identity, prompts, make)
        records = _as_records(rows, prompts)
        values = figures(records)
        if command.completions > 1:
            values |= group_figures(records, make_log_goodness(subject.config))
        path = folder / "eval" / f"{command.name}.json"
        write_json(path, _result(command, subject, identity, len(prompts), values))
    _show(f"{folder}: {command.checkpoint}, {len(prompts)} prompts × {command.completions}", values, path)
    return records


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes away from a run's folder."""
    stored_config(folder)  # there is a run
    lock = lock_run(folder)
    try:
        yield
    finally:
        lock.release()


def _load(folder: Path, command: EvaluateCommand) -> Subject:
    """Load a run's policy at a checkpoint, its reward and its judge, all as they were in the run."""
    config = stored_config(folder)
    config = replace(config, sample_rows=command.sample_rows or config.sample_rows)
    if config.threads:
        torch.set_num_threads(config.threads)
    reward = configured_reward(config)
    if reward.fingerprint() != read_json(folder / IDENTITY_FILE).get("reward"):
        raise UserError(f"{folder}: the reward {config.reward} changed since the run. Restore it as it was.")
    judge = load_callable(config.judge, option="--judge") if config.judge else None
    policy = load_policy(config)
    check_model(folder, policy.identity)
    _load_checkpoint(folder, policy, command.checkpoint)
    return Subject(folder, config, policy, reward, judge)


def _load_checkpoint(folder: Path, policy: Policy, name: str) -> None:
    """Put the adapter of a checkpoint in place; a new one computes the prior."""
    if name == "prior":
        return
    if name == "best":
        if not (folder / "adapter" / "adapter_model.safetensors").is_file():
            raise UserError(f"{folder}: has no adapter yet; go on with python -m llm.align --resume {folder}.")
        load_best_adapter(folder, policy)
        return
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    if name not in kept:
        raise UserError(
            f"--checkpoint {name}: {folder} has best, prior{''.join(', ' + step for step in kept)}. A run keeps the "
            "newest two of its steps."
        )
    policy.load_adapter_state(safetensors.torch.load_file(folder / "checkpoints" / name / "adapter.safetensors"))


def _prompts(subject: Subject, command: EvaluateCommand) -> tuple[list[Prompt], dict[str, float]]:
    """The prompts with their references, and these references' rewards."""
    policy = subject.policy
    if command.prompts:
        config = replace(
            subject.config, prompts=command.prompts, test_prompts="", test_count=0, validation_count=0, m=1
        )
        read = load_prompts(config, policy.tokenizer, policy.prompt_context).train  # all of them
        prompts = [replace(p, prompt_id=p.prompt_id.replace("train", "asked", 1)) for p in read]
        say(f"Making and rewarding the references of {len(prompts)} prompts.")
        rows = make_references(config, policy, subject.reward, prompts)
    else:
        prompts = load_prompts(subject.config, policy.tokenizer, policy.prompt_context).test
        rows = ShardFolder(subject.folder / "eval").read("references")
        if _held_out(subject.folder) != [(prompt.prompt_id, prompt.token_ids) for prompt in prompts]:
            raise UserError(
                f"{subject.folder}: the run's prompts changed since. Restore them, or give others with --prompts."
            )
    texts = {row["prompt_id"]: row["reference"] for row in rows}
    return with_references(prompts, texts), {row["prompt_id"]: row["reward"] for row in rows}


def _held_out(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """The prompts, with their tokens, that a run evaluated itself on."""
    return [(row["prompt_id"], tuple(row["prompt_token_ids"])) for row in ShardFolder(folder / "eval").read("before")]


def _identity(subject: Subject, prompts: Sequence[Prompt], reference_rewards: dict[str, float], count: int) -> str:
    """Fingerprint what gives an evaluation its meaning."""
    config = subject.config
    return text_fingerprint(
        {
            "model": subject.policy.identity,
            "adapter": adapter_digest(subject.policy),
            "reward": subject.reward.fingerprint(),
            "judge": subject.judge_fingerprint() or "",
            "prompts": [
                (p.prompt_id, p.text, p.token_ids, p.reference, reference_rewards[p.prompt_id]) for p in prompts
            ],
            "sampling": (count, config.max_new_tokens, config.stop, config.seed),
            "code": SCORER_VERSION,
        }
    )


def _records(
    subject: Subject, reference_rewards: dict[str, float], count: int, prompts: Sequence[Prompt]
) -> list[EvalRecord]:
    """Evaluate some prompts; their draws are those of the run's own evaluations."""
    policy, reward, config = subject.policy, subject.reward, subject.config
    records = evaluate(policy, prompts, reward, reference_rewards, config, "test", count)
    return judged(records, subject.judge, config.judge) if subject.judge else records


def _stored_rows(
    folder: Path,
    name: str,
    identity: str,
    prompts: Sequence[Prompt],
    make: Callable[[Sequence[Prompt]], list[EvalRecord]],
) -> list[dict[str, Any]]:
    """The rows of an evaluation, made part by part where they are not in its folder already."""
    shards, parts = ShardFolder(folder), ShardFolder(folder / name)

    def rows_of(members: Sequence[Prompt]) -> list[dict[str, Any]]:
        marks = {"evaluation": identity}
        return [record.as_row() | {"sample_id": record.completion.sample_id} | marks for record in make(members)]

    def all_rows() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in tqdm(range(0, len(prompts), SHARD_PROMPTS), desc="evaluating", unit="part"):
            members = prompts[start : start + SHARD_PROMPTS]
            rows += _checked(parts.once(f"prompts-{start:06d}", partial(rows_of, members)), identity, parts.folder)
        return rows

    rows = _checked(shards.once(name, all_rows), identity, folder / f"{name}.parquet")
    with disk_errors(parts.folder):
        shutil.rmtree(parts.folder, ignore_errors=True)
    return rows


def _checked(rows: list[dict[str, Any]], identity: str, place: Path) -> list[dict[str, Any]]:
    """Check that stored rows are of this evaluation."""
    if any(row.get("evaluation") != identity for row in rows):
        raise UserError(
            f"{place}: holds another evaluation (the adapter, the prompts or the settings differ). Give this one a "
            "--name of its own."
        )
    return rows


def _as_records(rows: Sequence[dict[str, Any]], prompts: Sequence[Prompt]) -> list[EvalRecord]:
    """Read records back, each completion with its place in the group."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    records = [EvalRecord.from_row(row, by_id[row["prompt_id"]]) for row in rows]
    return [
        replace(record, completion=replace(record.completion, sample_id=row["sample_id"]))
        for record, row in zip(records, rows, strict=True)
    ]


def _result(command: EvaluateCommand, subject: Subject, identity: str, prompts: int, values: Figures) -> dict[str, Any]:
    """What `eval/<name>.json` holds."""
    return {
        "checkpoint": command.checkpoint,
        "step": _step(subject.folder, command.checkpoint),
        "prompts": command.prompts or None,
        "counts": {"prompts": prompts, "completions": prompts * command.completions},
        "figures": values,
        "identity": identity,
        "judge": subject.judge_fingerprint(),
        "versions": versions(),
    }


def _step(folder: Path, checkpoint: str) -> int | None:
    """Gradient steps behind a checkpoint, None where its state is gone."""
    states = sorted((folder / "checkpoints").glob("step-*" if checkpoint == "best" else checkpoint))
    if checkpoint == "prior" or not states:
        return 0 if checkpoint == "prior" else None
    state = read_json(states[-1] / "state.json")
    return int(state["best"]["step"] if checkpoint == "best" else state["step"])


def _name(command: EvaluateCommand) -> str:
    """The name under which an evaluation is kept."""
    default = f"{command.checkpoint}-x{command.completions}"
    if command.prompts:
        default += f"-{_file_name(Path(command.prompts).stem).replace('-against-', '-')}"
    name = command.name or default
    if not FILE_NAME.fullmatch(name) or RESERVED.fullmatch(name):
        raise UserError(
            f"--name {name}: must be letters, digits, dots, hyphens and underscores, and none of before, after, "
            "references, judged-…, manifest… and …-against-…, which are names of other files there."
        )
    return name


def _file_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)


def _check_comparable(folder: Path, other: Path, command: EvaluateCommand) -> None:
    """Check, before anything is loaded, that two runs have one reward and the same held-out prompts."""
    first, second = (read_json(one / IDENTITY_FILE).get("reward") for one in (folder, other))
    if first != second:
        raise UserError(f"--against {other}: has another reward than {folder}, so no completion beats another's.")
    if not command.prompts and _held_out(folder) != _held_out(other):
        raise UserError(
            f"--against {other}: has other held-out prompts than {folder} (another --prompts, --test-count or --seed). "
            "Give both some with --prompts."
        )


def _show(title: str, values: Figures, path: Path) -> None:
    """Print figures as a table, with where they lie; without a judge its figures are left out."""
    print(f"{printable(title)}, 95 % intervals")
    for name, value in values.items():
        if values["judge_win_rate"] is not None or not name.startswith("judge_"):
            print(f"  {name.replace('_', ' '):<42}{shown(name, value)}")
    print(f"  {printable(str(path))}\n")


def shown(name: str, value: dict[str, Any] | None) -> str:
    """Return a figure as text: estimate and interval.

    Args:
        name: The figure's, which tells its unit.
        value: The estimate, None where the data do not identify one.
    """
    if value is None:
        return "not identified"
    form = "{:z.1%}" if SHARES.fullmatch(name) else "{:z.3f}"
    ends = ", ".join(form.format(end) for end in (value["low"], value["high"]) if end is not None)
    return f"{form.format(value['estimate'])} [{ends or 'one prompt, no interval'}]"


if __name__ == "__main__":
    sys.exit(entry_point(main, go_on=GO_ON))

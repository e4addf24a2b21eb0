"""Algorithm 1 of the paper, start to finish: `python -m llm.align`.

q' ← p, q_θ ← p, D ← {}
for each of e phases:
    sample n completions of each of m prompts from q' = q_θ; cache log q', log p and r; add the groups to D
    make k gradient steps on batches of groups from all of D
keep the checkpoint with the best validation win rate
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import filelock
import torch
from tqdm import tqdm

from llm import processes, report
from llm.alarms import Alarms, judge_disagrees
from llm.checkpoint import TrainerState, load_best_adapter, load_checkpoint, model_card, save_adapter, save_checkpoint
from llm.config import (
    GOODNESS,
    AlignConfig,
    asked_settings,
    buffered_phases,
    changed_settings,
    dump_config,
    parse_command,
    validate,
)
from llm.console import entry_point, say
from llm.errors import UserError
from llm.evaluate import Judge, evaluate, judged, make_references
from llm.figures import change, figures
from llm.given import GivenGroups, load_given
from llm.groups import Collector
from llm.logprob import group_pairs, score
from llm.memory import with_train_rows
from llm.methods import METHODS
from llm.models import Policy, load_policy
from llm.plugins import load_callable
from llm.prompts import PromptSets, load_prompts, read_texts, with_references
from llm.proposal import adapter_digest
from llm.records import EvalRecord, Prompt, ScoredGroup
from llm.rewards import AnyReward, check_references, configured_reward, function_fingerprint, reward_counts
from llm.run_folder import (
    Identity,
    check_free,
    check_identity,
    check_shared,
    lock_run,
    new_run,
    stored_config,
    versions,
)
from llm.store import MetricsLog, ShardFolder, read_events, write_json
from llm.streams import text_fingerprint
from llm.tracking import Tracker
from llm.train import Objective, draw_batch, make_objective, make_optimizer, train_step

CONSISTENCY_WARNING = 0.05
SAMPLING_SETTINGS = ("sampling_temperature", "max_new_tokens", "stop", "n", "m", "sample_rows", "seed")
MEMORY_SETTINGS = ("train_rows", "reward_rows", "activation_checkpointing")
"""What a resumed run may change: gradient and rewards are the same up to rounding."""
FILE_SETTINGS = ("model", "tokenizer", "sft_adapter", "prompts", "rollouts", "reward", "judge")
FREE_SETTINGS = (*FILE_SETTINGS, "tracker", "out", *MEMORY_SETTINGS)
"""What may differ where a run goes on: it does not matter, or is fingerprinted by its content."""


@dataclass
class Run:
    """What the stages of a run share; of several processes, the first one has the lock and writes the files."""

    config: AlignConfig
    folder: Path
    lock: filelock.FileLock | None
    policy: Policy
    reward: AnyReward
    judge: Judge | None
    prompts: PromptSets
    reference_rewards: dict[str, float]
    collector: Collector
    optimizer: torch.optim.Optimizer
    metrics: MetricsLog
    tracker: Tracker
    alarms: Alarms

    def log(self, event: str, step: int, **values: Any) -> None:
        """Write one event to metrics.jsonl and its numbers to the tracker, and say what it gives rise to."""
        if not processes.is_first():
            return
        self.metrics.write({"event": event, "step": step, **values})
        self.tracker.log(event, step, values)
        for name, text in self.alarms.observe({"event": event, "step": step, **values}):
            self.alarm(name, step, text)

    def alarm(self, name: str, step: int, text: str) -> None:
        """Say an alarm and keep it for the report."""
        say(f"Alarm: {text}")
        self.metrics.write({"event": "alarm", "step": step, "name": name, "text": text})

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.metrics.close()
        self.tracker.close()
        if self.lock is not None:
            self.lock.release()


@processes.joined()
def run(config: AlignConfig, *, resume: bool = False) -> dict[str, Any]:
    """Align a model as the settings say, and return what `summary.json` holds.

    Args:
        config: The settings; with `resume`, those stored in the run folder.
        resume: Go on with the run in `config.out`.

    Returns:
        The summary; of several processes, in the first one, and elsewhere nothing, for those end before the report.

    Raises:
        UserError: Anything that the user can mend; what was written before stays intact.
    """
    validate(config)
    started = time.monotonic()
    with open_run(config, resume) as this:
        before, state = begin(this)
        state = train(this, state)
        load_best_adapter(this.folder, this.policy)
        processes.check_same("adapter", lambda: adapter_digest(this.policy))
        after = held_out_evaluation(this, "after", state.step)
        this.prompts.counts |= reward_counts(this.reward)  # of all processes
        this.tracker.close()  # which asks accelerate for the processes, and so comes before they part
        return finish(this, before, after, state, time.monotonic() - started) if processes.part() else {}


def open_run(config: AlignConfig, resume: bool) -> Run:
    """Load everything that a run needs, then make or reopen its folder."""
    processes.check_device(config.device)
    if not resume and config.out:
        processes.from_first(lambda: check_free(Path(config.out)))
    if config.threads:
        torch.set_num_threads(config.threads)
    say(f"Loading {config.model}, {config.reward} and {config.prompts}.")
    texts = read_texts(config)
    reward = configured_reward(config)
    policy = load_policy(config)
    prompts = load_prompts(config, policy.tokenizer, policy.prompt_context, texts)
    check_references(reward, prompts.train)
    judge = load_callable(config.judge, option="--judge") if config.judge else None
    _tell_unused(config)
    given = load_given(config, policy, prompts, reward)
    training = given.prompts() if given else prompts.train
    config = processes.from_first(functools.partial(with_train_rows, config, policy, training, reward))
    identity = _identity(config, policy, reward, prompts, given)
    processes.check_same("model, reward, prompts or settings", lambda: identity)
    # A reward that fails does so here, before there is a run folder that would have to be removed.
    references = [] if resume else make_references(config, policy, reward, prompts.validation + prompts.test)
    folder, config = (Path(config.out), config) if resume else processes.from_first(lambda: new_run(config, identity))
    lock = lock_run(folder) if processes.is_first() else None
    say(f"The run folder is {folder}.")
    check_shared(folder)
    if resume:
        check_identity(folder, identity)
    reference_rewards = _fill_references(folder, config, policy, reward, prompts, references)
    return Run(
        config,
        folder,
        lock,
        policy,
        reward,
        judge,
        prompts,
        reference_rewards,
        Collector(policy, reward, config, folder, identity.fingerprint(), given),
        make_optimizer(policy, config),
        MetricsLog(folder / "metrics.jsonl"),
        Tracker(config, folder),
        Alarms(config),
    )


def begin(this: Run) -> tuple[list[EvalRecord], TrainerState]:
    """Evaluate the prior and write the first checkpoint, or restore the last one."""
    state = load_checkpoint(this.folder, this.policy, this.optimizer)
    processes.check_same("checkpoint", lambda: (state and state.step, adapter_digest(this.policy)))
    if processes.is_first():
        this.metrics.cut(state.metrics_bytes if state else 0)
        this.alarms = Alarms(this.config, read_events(this.folder / "metrics.jsonl"))
    if state is not None:
        say(f"Going on at step {state.step} of {this.config.e * this.config.k}.")
        if state.best["step"] == state.step:
            publish(this, state)
        rows = processes.from_first(lambda: ShardFolder(this.folder / "eval").read("before"))
        return _as_records(rows, this.prompts.test), state
    before = held_out_evaluation(this, "before", 0)
    _check_start(before)
    return before, keep_best(this, TrainerState(step=0, best={}, metrics_bytes=0))


def train(this: Run, state: TrainerState) -> TrainerState:
    """Run the phases of Algorithm 1 from where the state stands."""
    config = this.config
    objective, window = make_objective(config), buffered_phases(config)
    phases: list[list[ScoredGroup]] = []
    if state.step == config.e * config.k:
        return state
    with tqdm(total=config.e * config.k, initial=state.step, desc="training", unit="step") as bar:
        for phase in range(config.e):
            phases = [*phases, phase_groups(this, phase, state.step)][-window if window else 0 :]
            while state.step < (phase + 1) * config.k:
                state = one_step(this, [*chain.from_iterable(phases)], objective, state)
                bar.update()
    return state


def phase_groups(this: Run, phase: int, step: int) -> list[ScoredGroup]:
    """Collect a phase's groups (lines 4 to 12) and log them; of a phase whose training has begun, read them."""
    if step > phase * this.config.k:
        return this.collector.stored(phase, this.prompts.train)
    started = time.monotonic()
    label = f"phase {phase + 1}/{this.config.e}: sampling and scoring"
    with tqdm(total=2 * this.config.m, desc=label, unit="group", leave=False) as bar:
        groups = this.collector.collect(phase, this.prompts.train, bar.update)
    completions = [completion for group in groups for completion in group.completions]
    this.log(
        "phase",
        step,
        phase=phase,
        mean_reward=_average([float(group.reward.mean()) for group in groups]),
        kl_to_prior=_average([float((group.log_proposal - group.log_prior).mean()) for group in groups]),
        completion_length=_average([len(completion.token_ids) for completion in completions]),
        distinct_completions=_average([_distinct(group) for group in groups]),
        cut_completions=sum(completion.finish_reason == "length" for completion in completions),
        self_consistency=_self_consistency(this, groups[-1]),  # the longest prompt
        seconds=time.monotonic() - started,
    )
    return groups


def one_step(this: Run, buffer: list[ScoredGroup], objective: Objective, state: TrainerState) -> TrainerState:
    """Make one gradient step (lines 14 to 19), with the validation and the checkpoint that are due after it."""
    config, started = this.config, time.monotonic()
    batch = draw_batch(buffer, config, state.step)
    stats = train_step(this.policy, this.optimizer, batch, objective, state.step)
    step = state.step + 1
    this.log("step", step, **stats._asdict(), seconds=time.monotonic() - started)
    state = TrainerState(step, state.best, state.metrics_bytes)
    last = step == config.e * config.k
    if last or step % config.validate_every == 0:
        state = keep_best(this, state)
    if step % config.checkpoint_every == 0 or step % config.k == 0:  # what a phase samples from is never lost
        state = checkpoint(this, state)
    return state


def keep_best(this: Run, state: TrainerState) -> TrainerState:
    """Validate; where the policy is the best so far, write a checkpoint that says so, then its adapter."""
    best = validation(this, state)
    if state.best and _rank(best) <= _rank(state.best):
        return state
    state = checkpoint(this, TrainerState(state.step, best, state.metrics_bytes))
    publish(this, state)
    return state


def validation(this: Run, state: TrainerState) -> dict[str, float]:
    """Measure and log the policy on the validation prompts; return what `TrainerState.best` would hold of it."""
    started = time.monotonic()
    records = evaluate(
        this.policy, this.prompts.validation, this.reward, this.reference_rewards, this.config, "validation"
    )
    values = figures(records)
    names = ("reward_model_win_rate", "mean_reward", "kl_to_prior", "completion_length")
    current = {name: values[name]["estimate"] for name in names}
    distinct = len({record.completion.token_ids for record in records}) / len(records)
    this.log("validation", state.step, **current, distinct_completions=distinct, seconds=time.monotonic() - started)
    return {"step": state.step, "win_rate": current["reward_model_win_rate"], "mean_reward": current["mean_reward"]}


def publish(this: Run, state: TrainerState) -> None:
    """Write the policy's adapter, which is the best so far, to `adapter/`."""
    if processes.is_first():
        save_adapter(this.folder, this.policy, model_card(this.config, state.best))


def checkpoint(this: Run, state: TrainerState) -> TrainerState:
    """Write a checkpoint that a run can go on from."""
    processes.check_same("adapter", lambda: adapter_digest(this.policy))
    state = TrainerState(state.step, state.best, this.metrics.size)
    if processes.is_first():
        this.metrics.flush_to_disk()
        save_checkpoint(this.folder, this.policy, this.optimizer, state)
    return state


def held_out_evaluation(this: Run, name: str, step: int) -> list[EvalRecord]:
    """Evaluate the policy on the test prompts, and log it; an evaluation that is in the run folder is read."""

    def make() -> list[dict[str, Any]]:
        say(f"Evaluating on {len(this.prompts.test)} held-out prompts.")
        records = evaluate(this.policy, this.prompts.test, this.reward, this.reference_rewards, this.config, "test")
        return [record.as_row() for record in records]

    records = _as_records(ShardFolder(this.folder / "eval").once_together(name, make), this.prompts.test)
    values = {key: value["estimate"] for key, value in figures(records).items() if value}
    this.log("evaluation", step, when=name, **values)
    return records


def finish(
    this: Run, before: list[EvalRecord], after: list[EvalRecord], state: TrainerState, seconds: float
) -> dict[str, Any]:
    """Let the judge grade, write `summary.json` and the report, and print the table."""
    if this.judge is not None:
        before, after = _judged(this, this.judge, before, after)
    summary: dict[str, Any] = {
        "before": figures(before),
        "after": figures(after),
        "change": change(before, after),
        "best": state.best,
        "seconds": seconds,
        "versions": versions(),
        "counts": _counts(this),
    }
    write_json(this.folder / "summary.json", summary)
    if text := judge_disagrees(summary["change"]):
        this.alarm("judge", state.step, text)
    report.write(this.folder)
    print(report.closing_table(this.folder))
    return summary


@processes.joined()
def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    command = processes.from_first(lambda: parse_command(arguments))
    config = command.settings
    if command.resume:
        stored = stored_config(Path(command.resume))
        config = asked_settings(arguments, stored)
        changed = [name for name in changed_settings(config, stored) if name not in MEMORY_SETTINGS]
        if changed:
            raise UserError(
                f"--resume {command.resume}: a run goes on with its own settings, and the command line changes "
                f"{', '.join('--' + name.replace('_', '-') for name in changed)}. Leave them out, or start a new run."
            )
    if command.dry_run:
        from llm.plan import report_plan

        print(dump_config(config))
        print(processes.from_first(lambda: report_plan(config, command.gpu)))
        return
    run(config, resume=bool(command.resume))


def _tell_unused(config: AlignConfig) -> None:
    """Say where the target's goodness does not matter."""
    if METHODS[config.method].uses_goodness or (config.goodness, config.temperature) == ("bradley_terry", 1.0):
        return
    say(f"--method {config.method}: --goodness and --temperature change the figures that are reported, not training.")


def _identity(
    config: AlignConfig, policy: Policy, reward: AnyReward, prompts: PromptSets, given: GivenGroups | None
) -> Identity:
    """Fingerprint what a run's stored files depend on."""
    sampling = {name: getattr(config, name) for name in SAMPLING_SETTINGS}
    sampling["rollouts"] = given.fingerprint() if given else ""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS}
    if config.goodness not in GOODNESS:
        goodness = load_callable(config.goodness, option="--goodness")
        settings["goodness"] = function_fingerprint(config.goodness, goodness)
    if ":" in config.method:
        settings["method"] = function_fingerprint(config.method, load_callable(config.method, option="--method"))
    return Identity(
        model=policy.identity,
        reward=reward.fingerprint(),
        prompts=prompts.fingerprint(),
        sampling=text_fingerprint(sampling),
        settings=text_fingerprint(settings),
    )


def _fill_references(
    folder: Path,
    config: AlignConfig,
    policy: Policy,
    reward: AnyReward,
    prompts: PromptSets,
    references: list[dict[str, Any]],
) -> dict[str, float]:
    """Give every held-out prompt a reference (the prior's own where the data has none) and return their rewards."""
    held_out = prompts.validation + prompts.test
    make = functools.partial(make_references, config, policy, reward, held_out)
    rows = ShardFolder(folder / "eval").once_together("references", lambda: references or make())
    texts = {row["prompt_id"]: row["reference"] for row in rows}
    prompts.counts["references_from_prior"] = sum(prompt.reference is None for prompt in held_out)
    prompts.validation = with_references(prompts.validation, texts)
    prompts.test = with_references(prompts.test, texts)
    return {row["prompt_id"]: row["reward"] for row in rows}


def _check_start(before: list[EvalRecord]) -> None:
    """At step 0 the policy must be the prior."""
    gap = max(abs(record.log_policy - record.log_prior) for record in before)
    if gap > 1e-3:
        raise UserError(
            f"Before training the policy's log-probs differ from the prior's by up to {gap:.3g} nats; they must be "
            "equal. The adapter does not start at zero, or the model computes differently with an adapter."
        )


def _self_consistency(this: Run, group: ScoredGroup) -> float:
    """Score one group again, one row at a time, and return the largest change, in nats.

    Of log q' where the policy sampled the group, else, for q' may be known no more, of log p.
    """
    config = this.config
    if METHODS[config.method].proposal == "policy" and not config.rollouts:
        again = score(this.policy, group_pairs(group), 1, temperature=config.sampling_temperature)
        before = group.log_proposal
    else:
        with this.policy.as_prior():
            again = score(this.policy, group_pairs(group), 1)
        before = group.log_prior
    gap = max(abs(a - b) for a, b in zip(again, before.tolist(), strict=True))
    if gap > CONSISTENCY_WARNING:
        say(
            f"Warning: the same completions score up to {gap:.2g} nats apart when they are batched differently "
            f"(--dtype {this.config.dtype}); the importance weights carry errors of that size. "
            "--dtype float32 avoids it."
        )
    return gap


def _judged(
    this: Run, judge: Judge, before: list[EvalRecord], after: list[EvalRecord]
) -> tuple[list[EvalRecord], list[EvalRecord]]:
    """Return both evaluations with the judge's grades, asked for once and for both together."""

    name = this.config.judge

    def make() -> list[dict[str, Any]]:
        return [record.as_row() for record in judged([*before, *after], judge, name)]

    rows = ShardFolder(this.folder / "eval").once(f"judged-{function_fingerprint(name, judge)[:16]}", make)
    records = _as_records(rows, [*this.prompts.test, *this.prompts.test])
    return records[: len(before)], records[len(before) :]


def _as_records(rows: list[dict[str, Any]], prompts: Sequence[Prompt]) -> list[EvalRecord]:
    """Read evaluation records back from their table."""
    return [EvalRecord.from_row(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]


def _rank(best: dict[str, float]) -> tuple[float, float]:
    """What makes a checkpoint better: the win rate, then the mean reward."""
    return best["win_rate"], best["mean_reward"]


def _counts(this: Run) -> dict[str, int]:
    """Count what a reader of the summary may ask for."""
    config = this.config
    return this.prompts.counts | {
        "train_prompts": len(this.prompts.train),
        "validation_prompts": len(this.prompts.validation),
        "test_prompts": len(this.prompts.test),
        "gradient_steps": config.e * config.k,
        "groups": config.e * config.m,
        "completions": config.e * config.m * config.n,
        "trainable_parameters": sum(p.numel() for p in this.policy.parameters()),
    }


def _distinct(group: ScoredGroup) -> float:
    """The share of a group's completions that differ."""
    return len({completion.token_ids for completion in group.completions}) / len(group.completions)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(entry_point(main))

"""Completions that are given instead of sampled: preference pairs, another run's rollouts, or a file of groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from llm.config import AlignConfig
from llm.console import say
from llm.errors import UserError
from llm.methods import METHODS
from llm.models import Policy
from llm.prompts import (
    HUMAN_TURN,
    PromptSets,
    draw_prompts,
    encode_completion,
    load_prompts,
)
from llm.records import Completion, Prompt
from llm.rewards import AnyReward, ReferenceSubtracted
from llm.rollout import completion_text
from llm.run_folder import Identity, stored_config
from llm.stopping import stop_position
from llm.stored_rollouts import (
    STATED,
    has_stated_rewards,
    rewarded_fingerprint,
    run_prompts,
    scored_rows,
    stored_identity,
)
from llm.streams import text_fingerprint
from llm.tables import Row, column, read_rows

ROUNDING = 1e-3
"""Nats by which a log-probability may be above 0."""
SAME_SETTINGS = ("m", "max_new_tokens", "sampling_temperature", "stop")
"""What a run and the one whose rollouts it takes must agree in: they say what its proposal is."""
WEIGHTED = ("dpo-sft-iw", "dpo-sft-iw-n")
"""Methods for completions of the prior that weigh them by log q' all the same."""
TABLE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
"""What the name of a file of rows ends in."""
TOLD = {
    "diverging_pairs": "pairs are left out, for their dialogues part before the last answer: these are not two answers "
    "to one prompt.",
    "skipped_groups": "groups are left out, for a completion has more than --max-new-tokens tokens.",
    "cut_given_completions": "completions are cut to --max-new-tokens tokens and have no end token.",
    "respelled_completions": "completions do not come back from their tokens as they were, for the tokenizer does not "
    "know a letter or spells it its own way; they are trained on as it writes them.",
}
"""What was not taken as it was given, by its name in `summary.json`."""


class GivenGroup(NamedTuple):
    """A prompt's G completions with what is known of them; None is computed.

    Attributes:
        prompt: The prompt.
        completions: G of them.
        log_prior: (G,) log p(y|x), nats.
        log_proposal: (G,) log q'(y|x), nats; where it is unknown, log p stands for it (T10).
        reward: (G,) r(x, y).
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    log_prior: list[float] | None = None
    log_proposal: list[float] | None = None
    reward: list[float] | None = None


@dataclass(frozen=True)
class GivenGroups:
    """All completions that a run trains on instead of sampling.

    Attributes:
        phases: The m groups of each phase, of n completions each, in the order in which they are to be kept.
        are_rewarded: Whether their rewards come with them: stated preferences or a file's scores, not the reward's.
    """

    phases: list[list[GivenGroup]]
    are_rewarded: bool

    def phase(self, phase: int) -> list[GivenGroup]:
        """Return the groups of a phase."""
        return self.phases[phase]

    def prompts(self) -> list[Prompt]:
        """Return the prompts of all groups."""
        return [group.prompt for groups in self.phases for group in groups]

    def fingerprint(self) -> str:
        """Return a sha256 that changes when any of them does."""
        return text_fingerprint([[self._content(group) for group in groups] for groups in self.phases])

    def _content(self, group: GivenGroup) -> list[object]:
        """What makes a group what it is; rewards that the reward gives are in the reward's own fingerprint."""
        rewards = group.reward if self.are_rewarded else None
        completions = [(c.token_ids, c.finish_reason, c.text) for c in group.completions]
        return [
            group.prompt.prompt_id,
            group.prompt.token_ids,
            completions,
            group.log_prior,
            group.log_proposal,
            rewards,
        ]


def load_given(config: AlignConfig, policy: Policy, prompts: PromptSets, reward: AnyReward) -> GivenGroups | None:
    """Return what the settings say to train on instead of sampling, or None where the run samples.

    Args:
        config: The run's settings.
        policy: The policy, whose tokenizer reads what is given as text.
        prompts: The run's prompts; what was left out or cut is added to their counts.
        reward: The reward; another run's rewards are taken where they are its.

    Raises:
        UserError: A row is wrong, there are too few groups, or the other run's model, prompts or settings do not fit.
    """
    if not config.rollouts:
        return _from_pairs(config, policy, prompts) if METHODS[config.method].proposal == "given" else None
    source = Path(config.rollouts)
    if not source.exists() and ":" not in config.rollouts and not config.rollouts.endswith(TABLE_ENDINGS):
        raise UserError(
            f"--rollouts {source}: there is no such run folder or file. Check the path, or name a data set's split, "
            f"such as {source}:train."
        )
    if source.is_dir():
        return _from_run(config, policy, prompts, reward)
    return _from_file(config, policy, prompts)


class _Reader:
    """Makes completions of given texts.

    Args:
        config: The run's settings.
        policy: Its tokenizer makes the tokens.
        counts: Gets what was not taken as it was given.
    """

    def __init__(self, config: AlignConfig, policy: Policy, counts: dict[str, int]) -> None:
        self._config, self._policy, self._counts = config, policy, counts
        tokenizer = policy.tokenizer
        self._end = policy.end_ids[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        counts |= dict.fromkeys(TOLD, 0)

    def completions(
        self,
        prompt: Prompt,
        texts: Sequence[str],
        place: str,
        finish_reasons: Sequence[str] | None = None,
        *,
        may_cut: bool = True,
    ) -> tuple[Completion, ...] | None:
        """Return a group's completions, None where one is too long and groups with such are to be left out.

        Raises:
            UserError: A completion has no tokens, has an end token within, or is too long or would be cut.
        """
        reasons = finish_reasons or ["stop"] * len(texts)
        places = [f"{place}, completion {index + 1}" for index in range(len(texts))]
        found = tuple(map(self._completion, [prompt] * len(texts), range(len(texts)), texts, reasons, places))
        longest, limit = max(len(completion.token_ids) for completion in found), self._config.max_new_tokens
        if longest <= limit:
            return found
        if self._config.prompt_overflow == "error":
            raise UserError(
                f"{place}: a completion has {longest} tokens, its end token included, and --max-new-tokens is {limit}. "
                "Raise it, or use --prompt-overflow skip or truncate."
            )
        if self._config.prompt_overflow == "skip":
            self.count("skipped_groups")
            return None
        if not may_cut:
            raise UserError(
                f"{place}: --prompt-overflow truncate would cut a completion or its end token, and its log_proposal is "
                "of the whole one. Raise --max-new-tokens, or use --prompt-overflow skip."
            )
        return tuple(self._cut(prompt, completion, limit) for completion in found)

    def count(self, name: str) -> None:
        """Count one more of something."""
        self._counts[name] += 1

    def tell(self, source: str) -> None:
        """Say what was not taken as it was given."""
        for name, text in TOLD.items():
            if self._counts[name]:
                say(f"{source}: {self._counts[name]} {text}")

    def _completion(self, prompt: Prompt, index: int, text: str, finish_reason: str, place: str) -> Completion:
        """Tokenise one completion."""
        ids = encode_completion(self._policy.tokenizer, prompt.text, text)
        if set(ids) & set(self._policy.end_ids):
            raise UserError(f"{place}: its text holds an end-of-sequence token. Cut the text before it.")
        if completion_text(self._policy, prompt.token_ids, ids) != text:
            self.count("respelled_completions")
        ids += [self._end] if finish_reason == "stop" else []
        if not ids:
            raise UserError(f"{place}: is empty and was cut by length, so it has no tokens. Remove the row.")
        return Completion(prompt.prompt_id, index, tuple(ids), finish_reason, text)

    def _cut(self, prompt: Prompt, completion: Completion, limit: int) -> Completion:
        """Keep a completion's first tokens, as if sampling had been cut there."""
        if len(completion.token_ids) <= limit:
            return completion
        self.count("cut_given_completions")
        ids = completion.token_ids[:limit]
        text = completion_text(self._policy, prompt.token_ids, ids)
        return replace(completion, token_ids=ids, finish_reason="length", text=text)


def _from_pairs(config: AlignConfig, policy: Policy, prompts: PromptSets) -> GivenGroups:
    """The preference pairs of the prompts' own rows; the preferred answer has reward 1, the other one 0."""
    reader = _Reader(config, policy, prompts.counts)
    pairs = {prompt.prompt_id: pair for prompt, pair in _pairs(config, prompts.train, reader) if pair is not None}
    reader.tell(config.prompts)
    usable = [prompt for prompt in prompts.train if prompt.prompt_id in pairs]
    if len(usable) < config.m:
        raise UserError(
            f"{config.prompts}: {len(usable)} pairs remain for training, but --m asks for {config.m} in each proposal "
            "update. Give more rows or lower --m, --test-count or --validation-count."
        )
    drawn = [draw_prompts(usable, config, phase) for phase in range(config.e)]
    return GivenGroups([[pairs[prompt.prompt_id] for prompt in phase] for phase in drawn], are_rewarded=True)


def _pairs(config: AlignConfig, prompts: Sequence[Prompt], reader: _Reader) -> list[tuple[Prompt, GivenGroup | None]]:
    """Every training prompt with its pair, None where it has none that can be used."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    found: list[tuple[Prompt, GivenGroup | None]] = []
    for number, row in read_rows(config.prompts):
        prompt = by_id.get(f"train-{number}")
        if prompt is not None:
            found.append((prompt, _pair(config, prompt, row, number, reader)))
    return found


def _pair(config: AlignConfig, prompt: Prompt, row: Row, number: int, reader: _Reader) -> GivenGroup | None:
    """The pair of one row, the preferred answer first."""
    place = f"{config.prompts}, row {number}"
    if prompt.reference is None:
        raise UserError(
            f"{place}: column {config.reference_column!r} is missing or empty, and --method {config.method} takes the "
            "preferred answer from it. Name the right column with --reference-column, or mend the row."
        )
    rejected = _rejected(config, prompt, row, number)
    if rejected is None:
        reader.count("diverging_pairs")
        return None
    completions = reader.completions(prompt, [prompt.reference, rejected], place)
    return GivenGroup(prompt, completions, reward=list(STATED)) if completions else None


def _rejected(config: AlignConfig, prompt: Prompt, row: Row, number: int) -> str | None:
    """The other answer of a row, None where its dialogue parts from the preferred one before the last answer."""
    is_plain = config.format == "plain"
    name = config.rejected_column if is_plain else "rejected"
    rejected = column(row, name, source=config.prompts, number=number)
    if not isinstance(rejected, str) or (is_plain and not rejected.strip()):
        raise UserError(
            f"{config.prompts}, row {number}: column {name!r} must be text, found {rejected!r}. Mend or remove the row."
        )
    if is_plain:
        return rejected
    dialogue = row["prompt"] + rejected if config.format == "rm-static" else rejected
    head, answer = str(prompt.text), dialogue[len(prompt.text) :]
    is_answer = dialogue.startswith(head) and not any(HUMAN_TURN in text for text in (answer, str(prompt.reference)))
    return answer if is_answer else None


def _from_file(config: AlignConfig, policy: Policy, prompts: PromptSets) -> GivenGroups:
    """The groups of a file, dealt to the phases in its order."""
    source, needed = config.rollouts, config.e * config.m
    reader = _Reader(config, policy, prompts.counts)
    known = _file_prompts(config, policy, prompts)
    found = [
        _row_group(config, reader, known[number], row, number) for number, row in read_rows(source) if number in known
    ]
    groups = [group for group in found if group is not None]
    reader.tell(source)
    if len(groups) < needed:
        raise UserError(
            f"--rollouts {source}: has {len(groups)} groups that can be used, and --e {config.e} phases of "
            f"--m {config.m} need {needed}. Lower one of them, or give more groups."
        )
    if len(groups) > needed:
        say(f"{source}: the first {needed} of {len(groups)} groups are used (--e {config.e} times --m {config.m}).")
    _check_proposal(config, groups)
    _count_held_out(source, groups[:needed], prompts)
    phases = [groups[start : start + config.m] for start in range(0, needed, config.m)]
    return GivenGroups(phases, are_rewarded=True)


def _file_prompts(config: AlignConfig, policy: Policy, prompts: PromptSets) -> dict[int, Prompt]:
    """The prompts of a file of groups by their rows."""
    settings = replace(config, prompts=config.rollouts, test_prompts="", validation_count=0, test_count=0)
    settings = replace(settings, format="plain", prompt_column="prompt", reference_column="reference")
    read = load_prompts(settings, policy.tokenizer, policy.context_length)
    for name in ("skipped_prompts", "truncated_prompts"):
        prompts.counts[f"given_{name}"] = read.counts[name]
    numbers = [int(prompt.prompt_id.removeprefix("train-")) for prompt in read.train]
    return {
        number: replace(prompt, prompt_id=f"given-{number}", reference=None)
        for number, prompt in zip(numbers, read.train, strict=True)
    }


def _count_held_out(source: str, groups: Sequence[GivenGroup], prompts: PromptSets) -> None:
    """Count the run's held-out prompts that are among those of the groups, and say how many."""
    tokens = {group.prompt.token_ids for group in groups}
    count = sum(prompt.token_ids in tokens for prompt in prompts.validation + prompts.test)
    prompts.counts["held_out_prompts_also_in_training"] = count
    if count:
        say(f"Warning: {source}: {count} held-out prompts of --prompts are trained on, for they are among its prompts.")


def _row_group(config: AlignConfig, reader: _Reader, prompt: Prompt, row: Row, number: int) -> GivenGroup | None:
    """The group of one row of a file, None where it is to be left out."""
    place = f"{config.rollouts}, row {number}"
    values = {name: _values(config, row, name, number) for name in COLUMNS}
    texts = values["completions"] or []
    for index, text in enumerate(texts):
        if stop_position(text, config.stop) is not None:
            raise UserError(
                f"{place}, completion {index + 1}: its text holds a --stop string, and the judge and the evaluation "
                "see a completion only up to one. Cut the text before it."
            )
    may_cut = values["log_proposal"] is None
    completions = reader.completions(prompt, texts, place, values["finish_reasons"], may_cut=may_cut)
    if completions is None:
        return None
    return GivenGroup(prompt, completions, log_proposal=values["log_proposal"], reward=values["scores"])


def _values(config: AlignConfig, row: Row, name: str, number: int) -> list[Any] | None:
    """The n values of one column, None where the row does without."""
    if COLUMNS[name].is_optional and row.get(name) is None:
        return None
    found = column(row, name, source=config.rollouts, number=number)
    place = f"{config.rollouts}, row {number}: column {name!r}"
    if not isinstance(found, list) or len(found) != config.n:
        count = f"{len(found)} values" if isinstance(found, list) else type(found).__name__
        raise UserError(f"{place} must be a list of --n {config.n} values, found {count}. Mend the row, or change --n.")
    return [_value(value, name, f"{place}, value {index + 1}") for index, value in enumerate(found)]


def _value(value: object, name: str, place: str) -> Any:
    """One value of a column."""
    try:
        return COLUMNS[name].read(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place}: {value!r:.100} is not {COLUMNS[name].kind}. Mend the row.") from error


def _check_proposal(config: AlignConfig, groups: Sequence[GivenGroup]) -> None:
    """Refuse a file that tells q' of some groups only, and say what it means where nobody knows or heeds it."""
    source = config.rollouts
    known = [group.log_proposal is not None for group in groups]
    if any(known) and not all(known):
        number = groups[known.index(False)].prompt.prompt_id.removeprefix("given-")
        raise UserError(
            f"{source}, row {number}: has no log_proposal, and other rows have. Give it in every row or in none."
        )
    if known[0] and METHODS[config.method].proposal == "prior" and config.method not in WEIGHTED:
        say(
            f"Warning: --method {config.method} makes no use of {source}'s log_proposal: it takes the completions for "
            "the prior's, and where another model wrote them, it may end elsewhere (docs/own_model.md)."
        )
    if not known[0]:
        say(
            f"{source}: has no log_proposal, so the prior's log-probs stand for those of what sampled the completions. "
            "Where that was another model, brain still ends at the same target, for both of its weights are off by the "
            "same factor; but its steps are less exact, and not every method shares this (docs/own_model.md)."
        )


def _from_run(config: AlignConfig, policy: Policy, prompts: PromptSets, reward: AnyReward) -> GivenGroups:
    """The groups of another run with its log-probs, and with what it has of this run's rewards or preferences."""
    folder = Path(config.rollouts)
    _check_settings(config, stored_config(folder))
    identity = stored_identity(folder)
    if identity.model != policy.identity:
        raise UserError(
            f"--rollouts {folder}: that run has another model (weights, tokenizer, SFT adapter, --dtype or "
            "--quantization), so its tokens and log-probs are not this one's. Use its model, or give its "
            "completions as text in a file of groups (docs/own_model.md)."
        )
    known = _shared_prompts(folder, policy, prompts, identity, with_reference=isinstance(reward, ReferenceSubtracted))
    is_stated = has_stated_rewards(folder)
    is_kept = is_stated and METHODS[config.method].proposal == "given"
    fingerprint = identity.fingerprint() if is_kept else rewarded_fingerprint(folder, reward.fingerprint())
    phases = [_run_phase(config, identity, fingerprint, known, phase) for phase in range(config.e)]
    _tell_rewards(config, phases, is_stated, is_kept)
    return GivenGroups(phases, are_rewarded=is_kept)


def _tell_rewards(config: AlignConfig, phases: list[list[GivenGroup]], is_stated: bool, is_kept: bool) -> None:
    """Say where the rewards of another run's completions are from."""
    if is_kept:
        say(f"{config.rollouts}: its pairs and their stated preferences are trained on; --reward only evaluates.")
        return
    if is_stated:
        say(
            f"Warning: {config.rollouts} trained on pairs with stated preferences, which are no rewards. --method "
            f"{config.method} needs rewards, so those of the chosen and rejected answers are computed by --reward "
            f"{config.reward}, which may not prefer the chosen ones."
        )
    taken = sum(groups[0].reward is not None for groups in phases)
    say(
        f"{config.rollouts}: its completions are trained on. Rewards are taken from it in {taken} of {config.e} "
        "phases, and computed in the others."
    )


def _check_settings(config: AlignConfig, other: AlignConfig) -> None:
    """Refuse a run whose rollouts are of another kind than the settings say."""
    place = f"--rollouts {config.rollouts}"
    for name in SAME_SETTINGS:
        if getattr(config, name) != getattr(other, name):
            raise UserError(
                f"{place}: that run has {name} {getattr(other, name)}, and this one {getattr(config, name)}. Use the "
                f"same; --config {config.rollouts}/config.yaml takes all of its settings."
            )
    if config.n > other.n:
        raise UserError(f"{place}: that run has {other.n} completions a prompt. Use --n {other.n} or fewer.")
    theirs = METHODS.get(other.method)  # a user's function is not loaded
    rule = theirs.proposal if theirs else "policy"
    if METHODS[config.method].proposal == "prior" and rule != "prior" and (config.e > 1 or rule == "given"):
        say(
            f"Warning: --method {config.method} is meant for completions of the prior, and those of {config.rollouts} "
            "are not, or in its first phase only."
        )


def _shared_prompts(
    folder: Path, policy: Policy, prompts: PromptSets, identity: Identity, *, with_reference: bool
) -> dict[str, Prompt]:
    """The training prompts that a run shares with this one, by their ids."""
    own = {prompt.prompt_id: prompt for prompt in prompts.train}
    if identity.prompts == prompts.fingerprint():
        return own
    theirs = run_prompts(folder, policy.tokenizer, policy.context_length)
    names = ("text", "token_ids", "reference") if with_reference else ("text", "token_ids")
    return {
        key: own[key]
        for key, prompt in theirs.items()
        if key in own and all(getattr(own[key], name) == getattr(prompt, name) for name in names)
    }


def _run_phase(
    config: AlignConfig, identity: Identity, fingerprint: str, known: Mapping[str, Prompt], phase: int
) -> list[GivenGroup]:
    """The groups of one phase of another run, with the rewards of the scores of a fingerprint where it has them."""
    folder = Path(config.rollouts)
    rows = scored_rows(folder, identity.fingerprint(), phase)
    if rows is None:
        raise UserError(
            f"--rollouts {folder}: that run has finished {phase} phases of rollouts and --e asks for {config.e}. Lower "
            f"--e, or go on with that run by --resume {folder}."
        )
    rewarded = scored_rows(folder, fingerprint, phase)
    rewards = None if rewarded is None else [score["reward"] for _, score in rewarded]
    size = len(rows) // config.m
    parts = [slice(start, start + config.n) for start in range(0, len(rows), size)]
    return [_run_group(folder, known, rows[part], rewards and rewards[part]) for part in parts]


def _run_group(
    folder: Path, known: Mapping[str, Prompt], rows: Sequence[tuple[Row, Row]], rewards: list[float] | None
) -> GivenGroup:
    """The group of some rows of another run."""
    prompt_id = rows[0][0]["prompt_id"]
    if prompt_id not in known:
        raise UserError(
            f"--rollouts {folder}: its prompt {prompt_id} is not among this run's training prompts with the same text "
            "and tokens (and reference, where that one's reward is subtracted). Use that run's --prompts, --seed and "
            f"split (--config {folder}/config.yaml takes all); where it trained on a file of groups, name that file."
        )
    completions = tuple(Completion.from_row(row) for row, _ in rows)
    log_prior, log_proposal = ([score[name] for _, score in rows] for name in ("log_prior", "log_proposal"))
    return GivenGroup(known[prompt_id], completions, log_prior, log_proposal, rewards)


def _text(value: object) -> str:
    """A completion."""
    if isinstance(value, str):
        return value
    raise TypeError


def _number(value: object) -> float:
    """A finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise TypeError


def _log_prob(value: object) -> float:
    """A log-probability, which rounding may put above 0 by a little."""
    if (number := _number(value)) <= ROUNDING:
        return number
    raise ValueError


def _finish_reason(value: object) -> str:
    """Why a completion ended."""
    if value in ("stop", "length"):
        return str(value)
    raise ValueError


class _Column(NamedTuple):
    """A column of a file of groups.

    Attributes:
        is_optional: Whether rows may do without.
        read: Returns one of its n values as it is used; raises what Python raises where it cannot be.
        kind: What each must be, for messages.
    """

    is_optional: bool
    read: Callable[[object], Any]
    kind: str


COLUMNS = {
    "completions": _Column(False, _text, "text"),
    "scores": _Column(False, _number, "a finite number"),
    "log_proposal": _Column(True, _log_prob, "a log-probability (nats, at most 0)"),
    "finish_reasons": _Column(True, _finish_reason, "'stop' or 'length'"),
}
"""The columns of a file of groups beside its prompt."""

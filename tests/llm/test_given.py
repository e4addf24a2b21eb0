"""Completions that are given: preference pairs, another run's rollouts, files of groups."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from child_runs import KillAt, comparable, run_apart
from letter_world import letter_config, letter_tokenizer, save_llama
from llm.align import open_run, run
from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig, validate
from llm.errors import UserError
from llm.given import WEIGHTED, GivenGroups, load_given
from llm.logprob import score
from llm.methods import METHODS, GroupTensors
from llm.models import Policy, load_policy
from llm.prompts import PromptSets, encode_completion, load_prompts
from llm.rescore import rescore
from llm.rewards import configured_reward
from llm.store import read_events
from llm.stored_rollouts import scored_rows, stored_identity
from llm.tables import read_rows

Row = dict[str, Any]
REAL_DATA = Path(os.environ.get("BRAIN_REAL_DATA", Path(__file__).parents[3] / "shared"))
STORIES = REAL_DATA / "models" / "stories260k"
DIALOGUES = REAL_DATA / "data" / "anthropic-hh" / "harmless-base.jsonl.gz"
LOG_PROBS = ("log_prior", "log_proposal")
needs_real_data = pytest.mark.skipif(not STORIES.exists(), reason=f"no real data at {REAL_DATA} (set $BRAIN_REAL_DATA)")


@pytest.fixture(scope="module")
def source(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of BRAIn with two phases."""
    folder = tmp_path_factory.mktemp("source") / "run"
    assert run_apart(small(folder), letters) == 0
    return folder


def rows_of(folder: Path, phase: int) -> list[tuple[Row, Row]]:
    """A phase's rows of completions and scores."""
    rows = scored_rows(folder, stored_identity(folder).fingerprint(), phase)
    assert rows is not None
    return rows


def scores_of(folder: Path, phase: int) -> list[Row]:
    """A phase's scores without what ties them to the files of completions."""
    return [{key: value for key, value in score.items() if key != "rollouts"} for _, score in rows_of(folder, phase)]


def steps(folder: Path) -> list[Row]:
    """What the gradient steps reported, without their times."""
    events = [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "step"]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def adapter(folder: Path) -> bytes:
    """The policy's adapter after the last step."""
    return (folder / "checkpoints" / "last" / "adapter.safetensors").read_bytes()


def small(out: Path | str = "", **changes: object) -> AlignConfig:
    """Settings of a run that takes a second."""
    settings = {"k": 2, "validate_every": 2, "checkpoint_every": 4, "validation_count": 4, "test_count": 4}
    return letter_config(out, **settings | changes)


def collected(folder: Path, **changes: object) -> None:
    """Collect the phases of a new run without training on them."""
    with open_run(small(folder, **changes), resume=False) as this:
        for phase in range(this.config.e):
            this.collector.collect(phase, this.prompts.train, lambda done: None)


def given(policy: Policy, **changes: object) -> tuple[GivenGroups, PromptSets]:
    """What a run with these settings would train on, and its prompts."""
    config = small(**changes)
    validate(config)
    prompts = load_prompts(config, policy.tokenizer, policy.context_length)
    reward = configured_reward(config)
    found = load_given(config, policy, prompts, reward)
    assert found is not None
    return found, prompts


def refused(**changes: object) -> str:
    with pytest.raises(UserError) as error:
        given(load_policy(letter_config()), **changes)
    return str(error.value)


# Another run's rollouts


def test_a_run_on_a_runs_rollouts_with_its_settings_is_that_run(source: Path, letters: Path, tmp_path: Path) -> None:
    assert run_apart(small(tmp_path / "again", rollouts=str(source)), letters) == 0
    assert adapter(tmp_path / "again") == adapter(source)
    for phase in range(2):
        assert scores_of(tmp_path / "again", phase) == scores_of(source, phase)
    assert steps(tmp_path / "again") == steps(source)
    phases = [e for e in read_events(tmp_path / "again" / "metrics.jsonl") if e["event"] == "phase"]
    assert [phase["self_consistency"] < 1e-4 for phase in phases] == [True, True]  # of log p: q' of phase 2 is gone


def test_a_run_on_a_runs_first_phase_is_the_run_of_one_phase(source: Path, in_letters: Path, tmp_path: Path) -> None:
    run(small(tmp_path / "first", e=1))
    run(small(tmp_path / "again", e=1, rollouts=str(source)))
    assert adapter(tmp_path / "again") == adapter(tmp_path / "first") != adapter(source)


def test_another_method_reward_and_goodness_have_the_same_completions(
    source: Path, in_letters: Path, tmp_path: Path
) -> None:
    changes = {"method": "snis", "reward": "letter_rewards:grade", "goodness": "logistic", "temperature": 1.0}
    collected(tmp_path / "run", rollouts=str(source), **changes)
    for phase in range(2):
        for (row, found), (old_row, expected) in zip(
            rows_of(tmp_path / "run", phase), rows_of(source, phase), strict=True
        ):
            assert row["token_ids"] == old_row["token_ids"]
            assert found["reward"] == row["text"].count("a") - row["text"].count("b")
            assert [found[name] for name in LOG_PROBS] == [expected[name] for name in LOG_PROBS]


def test_fewer_completions_are_the_first_of_each_group(source: Path, policy: Policy) -> None:
    found, _ = given(policy, rollouts=str(source), n=2, method="dpo-sft", e=1, temperature=1.0)
    rows = [row for row, _ in rows_of(source, 0)]
    expected = [[tuple(row["token_ids"]) for row in rows[start : start + 2]] for start in range(0, len(rows), 4)]
    assert [[c.token_ids for c in group.completions] for group in found.phase(0)] == expected
    assert [c.sample_id for c in found.phase(0)[0].completions] == [0, 1]


def test_dpo_trains_on_the_first_two_of_another_runs_groups_with_its_rewards(source: Path, policy: Policy) -> None:
    found, _ = given(policy, rollouts=str(source), method="dpo", n=2)
    scores = [score["reward"] for _, score in rows_of(source, 1)]
    assert [group.reward for group in found.phase(1)] == [scores[i : i + 2] for i in range(0, len(scores), 4)]


def test_a_run_on_another_runs_rollouts_can_itself_be_a_source(source: Path, in_letters: Path, tmp_path: Path) -> None:
    collected(tmp_path / "run", rollouts=str(source), method="snis")
    policy = load_policy(small())
    assert given(policy, rollouts=str(tmp_path / "run"))[0] == given(policy, rollouts=str(source))[0]


def test_a_smaller_test_split_and_other_references_do_not_change_the_prompts(source: Path, policy: Policy) -> None:
    """The prompts of the source are then read again and compared one by one."""
    found, prompts = given(policy, rollouts=str(source), test_count=2, validation_count=1)
    known = {prompt.prompt_id for prompt in prompts.train}
    assert {prompt.prompt_id for prompt in found.prompts()} <= known


def test_where_the_references_reward_is_subtracted_the_references_must_be_the_same(
    letters: Path, policy: Policy, tmp_path: Path
) -> None:
    rows = [row | {"other": "aa"} for _, row in read_rows(letters / "prompts.jsonl")]
    changes = {"prompts": str(write_jsonl(tmp_path / "prompts.jsonl", rows)), "reward_baseline": "reference", "e": 1}
    collected(tmp_path / "run", **changes)
    found, _ = given(policy, rollouts=str(tmp_path / "run"), test_count=2, **changes)
    assert [reward for group in found.phase(0) for reward in group.reward or []] == [
        row["text"].count("a") for row, _ in rows_of(tmp_path / "run", 0)
    ]
    changes["reference_column"] = "other"
    assert "and reference, where" in refused(rollouts=str(tmp_path / "run"), **changes)
    changes["reward_baseline"] = "none"
    found, _ = given(policy, rollouts=str(tmp_path / "run"), **changes)
    assert all(group.reward is None for group in found.phase(0))


@pytest.mark.slow
def test_a_run_on_rollouts_that_is_killed_and_resumed_equals_an_uninterrupted_one(
    source: Path, letters: Path, tmp_path: Path
) -> None:
    for name, sabotage in (("whole", None), ("killed", KillAt("llm.align", "train_step", 3))):
        config = small(tmp_path / name, rollouts=str(source), method="snis")
        run_apart(config, letters, sabotage=sabotage)
    assert run_apart(small(tmp_path / "killed", rollouts=str(source), method="snis"), letters) == 0
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"m": 5, "batch": 2}, "has m 6, and this one 5"),
        ({"n": 6}, "has 4 completions a prompt. Use --n 4 or fewer"),
        ({"e": 3}, "has finished 2 phases of rollouts and --e asks for 3"),
        ({"max_new_tokens": 7}, "has max_new_tokens 6, and this one 7"),
        ({"stop": ("q",)}, "has stop ()"),
        ({"sampling_temperature": 0.5}, "has sampling_temperature 1.0, and this one 0.5"),
        ({"seed": 1}, "is not among this run's training prompts"),
        ({"test_count": 30}, "is not among this run's training prompts"),
        ({"method": "gdc"}, "--method gdc must sample by itself"),
        ({"method": "rloo"}, "--method rloo must sample by itself"),
    ],
)
def test_settings_that_do_not_fit_the_other_runs_rollouts_are_refused(
    changes: dict[str, object], expected: str, source: Path, in_letters: Path
) -> None:
    assert expected in refused(rollouts=str(source), **changes)


def test_another_model_is_refused(source: Path, in_letters: Path) -> None:
    with pytest.raises(UserError, match="that run has another model"):
        given(load_policy(letter_config(dtype="bfloat16")), rollouts=str(source), dtype="bfloat16")


def test_prompts_that_changed_since_are_refused(
    source: Path, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(letters, tmp_path / "letters")
    monkeypatch.chdir(tmp_path / "letters")
    rows = [row | {"prompt": row["prompt"] + "z"} for _, row in read_rows("prompts.jsonl")]
    write_jsonl(Path("prompts.jsonl"), rows)
    assert "its prompts (prompts.jsonl) changed since it began" in refused(rollouts=str(source))
    Path("prompts.jsonl").rename("other.jsonl")
    assert "cannot be read again. prompts.jsonl: no such file" in refused(rollouts=str(source), prompts="other.jsonl")


def test_a_folder_that_holds_no_run_is_refused(in_letters: Path, tmp_path: Path) -> None:
    assert "no run there" in refused(rollouts=str(tmp_path))


def test_a_damaged_shard_of_the_other_run_is_refused(source: Path, in_letters: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "run")
    shard = next((tmp_path / "run" / "scores").glob("*/phase-0001/block-00001.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "damaged" in refused(rollouts=str(tmp_path / "run"))


def test_a_method_of_the_prior_warns_where_the_completions_are_not_the_priors(
    source: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    given(policy, rollouts=str(source), method="infonca", e=1)
    assert "Warning" not in capsys.readouterr().err
    given(policy, rollouts=str(source), method="infonca")
    assert "Warning: --method infonca is meant for completions of the prior" in capsys.readouterr().err


def test_a_run_whose_method_cannot_be_imported_any_more_gives_its_rollouts(
    source: Path, policy: Policy, tmp_path: Path
) -> None:
    """As if its method were a user's function, which is gone."""
    shutil.copytree(source, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("method: brain\n", "method: gone:coefficients\n"))
    assert "gone:coefficients" in config.read_text()
    assert given(policy, rollouts=str(tmp_path / "run"))[0] == given(policy, rollouts=str(source))[0]


# A file of groups


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def exported(source: Path, phases: int = 2) -> list[Row]:
    """A run's rollouts as a user would export them."""
    prompts = {f"train-{number}": row["prompt"] for number, row in read_rows("prompts.jsonl")}
    groups = []
    for phase in range(phases):
        pairs = rows_of(source, phase)
        for start in range(0, len(pairs), 4):
            part = pairs[start : start + 4]
            groups.append(
                {
                    "prompt": prompts[part[0][0]["prompt_id"]],
                    "completions": [row["text"] for row, _ in part],
                    "scores": [score["reward"] for _, score in part],
                    "log_proposal": [score["log_proposal"] for _, score in part],
                    "finish_reasons": [row["finish_reason"] for row, _ in part],
                }
            )
    return groups


def group_rows(count: int = 12, **changes: object) -> list[Row]:
    """Rows of a file of groups of four."""
    rows = [{"prompt": "abc", "completions": ["a", "b", "", "ab"], "scores": [1.0, 0, -2.5, 3]} for _ in range(count)]
    return [row | changes for row in rows]


def as_text(token_ids: list[int]) -> tuple[int, ...]:
    """What is left of a completion's tokens in its text: no special ones (of the first three) but the end."""
    return tuple(token for token in token_ids if token >= 2)


def test_an_export_of_a_runs_rollouts_gives_the_same_groups(source: Path, policy: Policy, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "groups.jsonl", exported(source))
    found, prompts = given(policy, rollouts=str(path))
    assert {name: prompts.counts[name] for name in ("respelled_completions", "cut_given_completions")} == {
        "respelled_completions": 0,
        "cut_given_completions": 0,
    }
    for phase in range(2):
        pairs = rows_of(source, phase)
        groups = found.phase(phase)
        completions = [completion for group in groups for completion in group.completions]
        assert [c.token_ids for c in completions] == [as_text(row["token_ids"]) for row, _ in pairs]
        assert [(c.text, c.finish_reason) for c in completions] == [(r["text"], r["finish_reason"]) for r, _ in pairs]
        assert [value for group in groups for value in group.reward] == [score["reward"] for _, score in pairs]
        assert [value for g in groups for value in g.log_proposal] == [score["log_proposal"] for _, score in pairs]


def test_a_run_on_an_export_scores_the_same_completions_alike(source: Path, in_letters: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "groups.jsonl", exported(source))
    collected(tmp_path / "run", rollouts=str(path))
    same = 0
    for phase in range(2):
        for (row, found), (old_row, expected) in zip(
            rows_of(tmp_path / "run", phase), rows_of(source, phase), strict=True
        ):
            assert found["log_proposal"] == expected["log_proposal"]
            if row["token_ids"] == old_row["token_ids"]:
                same += 1
                assert found["log_prior"] == pytest.approx(expected["log_prior"], abs=1e-5)
    assert same > 24


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_groups(suffix: str, policy: Policy, source: Path, tmp_path: Path) -> None:
    rows = exported(source)
    expected, _ = given(policy, rollouts=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    found, _ = given(policy, rollouts=str(path))
    assert found == expected
    assert found.fingerprint() == expected.fingerprint()


def test_an_unknown_proposal_is_replaced_by_the_prior_and_said(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(6))
    collected(tmp_path / "run", rollouts=str(path), e=1)
    assert capsys.readouterr().err.count("has no log_proposal") == 1
    for row, found in rows_of(tmp_path / "run", 0):
        assert found["log_proposal"] == found["log_prior"] < 0
        assert found["reward"] == {"a": 1.0, "b": 0.0, "": -2.5, "ab": 3.0}[row["text"]]


def test_groups_are_dealt_to_the_phases_in_the_files_order(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"prompt": "ab" * (1 + index % 5)} for index, row in enumerate(group_rows(15))]
    found, _ = given(policy, rollouts=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    order = [[group.prompt.prompt_id for group in found.phase(phase)] for phase in range(2)]
    assert order == [[f"given-{number}" for number in part] for part in (range(1, 7), range(7, 13))]
    assert "the first 12 of 15 groups are used (--e 2 times --m 6)" in capsys.readouterr().err


def test_too_few_groups_are_refused_with_the_numbers(in_letters: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(11))
    assert "has 11 groups that can be used, and --e 2 phases of --m 6 need 12" in refused(rollouts=str(path))


def test_the_end_token_is_appended_unless_the_completion_was_cut(policy: Policy, tmp_path: Path) -> None:
    reasons = ["stop", "length", "stop", "length"]
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(finish_reasons=reasons))
    a, b, end = policy.tokenizer.convert_tokens_to_ids(["a", "b", "</s>"])
    found, _ = given(policy, rollouts=str(path))
    completions = found.phase(0)[0].completions
    assert [c.token_ids for c in completions] == [(a, end), (b,), (end,), (a, b)]
    assert [c.finish_reason for c in completions] == reasons


BAD_ROWS: list[tuple[Row, str]] = [
    ({"completions": None}, "column 'completions' is missing or empty"),
    ({"completions": "abcd"}, "column 'completions' must be a list of --n 4 values, found str"),
    ({"completions": ["a", "b", "c"]}, "column 'completions' must be a list of --n 4 values, found 3 values"),
    ({"completions": ["a", "b", "c", 4]}, "column 'completions', value 4: 4 is not text"),
    ({"completions": ["a", "b", "</s>", "c"]}, "completion 3: its text holds an end-of-sequence token"),
    ({"completions": ["a", "b", "aaaaaa", "c"]}, "a completion has 7 tokens, its end token included"),
    ({"scores": None}, "column 'scores' is missing or empty"),
    ({"scores": [1, 2, 3, 4, 5]}, "column 'scores' must be a list of --n 4 values, found 5 values"),
    ({"scores": [1, 2, math.nan, 4]}, "column 'scores', value 3: nan is not a finite number"),
    ({"scores": [1, 2, 3, True]}, "column 'scores', value 4: True is not a finite number"),
    ({"scores": [1, 2, 3, 10**400]}, "column 'scores', value 4: 1000"),
    ({"scores": [1, "2", 3, 4]}, "column 'scores', value 2: '2' is not a finite number"),
    ({"log_proposal": [-1, -2, 3, -4]}, "column 'log_proposal', value 3: 3 is not a log-probability"),
    ({"log_proposal": [-1, -2, -3]}, "column 'log_proposal' must be a list of --n 4 values"),
    ({"log_proposal": [-1.0, -2, -3, -4]}, "row 1: has no log_proposal, and other rows have"),
    ({"finish_reasons": ["stop", "end", "stop", "stop"]}, "value 2: 'end' is not 'stop' or 'length'"),
    ({"finish_reasons": ["stop", "stop", "length", "stop"]}, "completion 3: is empty and was cut by length"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": 7}, "column 'prompt' must be text or a list of chat messages"),
    ({"prompt": [{"role": "user", "content": "a"}]}, "this model's tokenizer has no chat template"),
    ({"prompt": "a" * 70}, "the prompt has 70 tokens and only 58 fit"),
]


@pytest.mark.parametrize(("changes", "expected"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_file_number_and_field(
    changes: Row, expected: str, in_letters: Path, tmp_path: Path
) -> None:
    rows = group_rows(12)
    rows[3] |= changes
    said = refused(rollouts=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert f"{tmp_path / 'rows.jsonl'}, row {1 if 'has no log' in expected else 4}" in said
    assert expected in said


@pytest.mark.parametrize("name", ["runs/typo", "typo", "/no/such/run.1"])
def test_a_run_that_is_missing_is_told_before_any_data_set_is_looked_for(
    name: str, in_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.tables._hub_rows", lambda name: pytest.fail("the hub was asked"))
    assert f"--rollouts {name}: there is no such run folder or file" in refused(rollouts=name)


def test_a_file_that_is_missing_is_refused(in_letters: Path) -> None:
    assert "rows.jsonl: no such file" in refused(rollouts="rows.jsonl")


def test_a_bad_row_leaves_no_run_folder(in_letters: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(scores=[1]))
    with pytest.raises(UserError):
        run(small(tmp_path / "run", rollouts=str(path)))
    assert not (tmp_path / "run").exists()


def test_groups_with_a_long_completion_or_prompt_are_left_out_where_asked_for_and_counted(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = group_rows(14)
    rows[2]["completions"] = ["a", "b", "a" * 6, "c"]
    rows[5]["prompt"] = "a" * 70
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found, prompts = given(policy, rollouts=str(path), prompt_overflow="skip")
    assert [p.prompt_id for p in found.prompts()] == [f"given-{i}" for i in (1, 2, 4, 5, *range(7, 15))]
    assert (prompts.counts["skipped_groups"], prompts.counts["given_skipped_prompts"]) == (1, 1)
    assert "1 groups are left out" in capsys.readouterr().err


def test_a_long_completion_is_cut_where_asked_for_counted_and_has_no_end_token(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(completions=["a", "b", "bababab", "c"]))
    found, prompts = given(policy, rollouts=str(path), prompt_overflow="truncate")
    cut = found.phase(0)[0].completions[2]
    assert (cut.text, cut.finish_reason, len(cut.token_ids)) == ("bababa", "length", 6)
    assert prompts.counts["cut_given_completions"] == 12
    assert "12 completions are cut" in capsys.readouterr().err
    write_jsonl(path, group_rows(completions=["a", "b", "bababab", "c"], log_proposal=[-1.0, -1, -1, -1]))
    assert "its log_proposal is of the whole one" in refused(rollouts=str(path), prompt_overflow="truncate")


def test_a_completion_that_loses_only_its_end_token_does_not_keep_its_log_proposal(
    in_letters: Path, tmp_path: Path
) -> None:
    rows = group_rows(completions=["a", "b", "bababa", "c"], log_proposal=[-1.0, -1, -1, -1])
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = refused(rollouts=str(path), prompt_overflow="truncate")
    assert "row 1: --prompt-overflow truncate would cut a completion or its end token, and its log_proposal" in said


@pytest.mark.parametrize("text", ["bqa", "qa", "bq"])
def test_a_completion_that_holds_a_stop_string_is_refused_with_its_row(
    text: str, in_letters: Path, tmp_path: Path
) -> None:
    rows = group_rows()
    rows[6]["completions"] = ["a", "b", text, "c"]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = refused(rollouts=str(path), stop=("xx", "q"))
    assert f"{path}, row 7, completion 3: its text holds a --stop string" in said


@pytest.mark.parametrize("method", ["rso", "nca", "dpo-sft", "brain", "dpo-sft-iw"])
def test_a_method_of_the_prior_warns_that_it_does_not_use_a_files_log_proposal(
    method: str, policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(log_proposal=[-1.0, -1, -1, -1]))
    given(policy, rollouts=str(path), method=method)
    warning = f"Warning: --method {method} makes no use of {path}'s log_proposal"
    assert capsys.readouterr().err.count(warning) == (method in ("rso", "nca", "dpo-sft"))


def test_completions_that_the_tokenizer_cannot_write_are_counted_and_told(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows(completions=["a", "B", "c", "d"]))
    _, prompts = given(policy, rollouts=str(path))
    assert prompts.counts["respelled_completions"] == 12
    assert "12 completions do not come back from their tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [1, 0, -2.5, 4]},
        {"log_proposal": [-1, -1, -1, -2]},
        {"completions": ["a", "b", "", "ba"]},
        {"finish_reasons": ["stop", "stop", "stop", "length"]},
        {"prompt": "abd"},
    ],
)
def test_a_run_whose_file_of_groups_changed_does_not_go_on(change: Row, in_letters: Path, tmp_path: Path) -> None:
    rows = group_rows(6, log_proposal=[-1, -1, -1, -1])
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = small(tmp_path / "run", rollouts=str(path), e=1)
    for _ in range(2):
        with open_run(config, resume=(tmp_path / "run").exists()):
            pass
    rows[5] |= change
    write_jsonl(path, rows)
    with pytest.raises(UserError, match="sampling changed since the run began"):
        open_run(config, resume=True)


@pytest.mark.parametrize("method", [name for name, rule in METHODS.items() if rule.proposal == "prior"])
def test_the_methods_of_the_prior_that_weigh_by_the_proposal_are_the_named_ones(
    method: str, policy: Policy, tmp_path: Path
) -> None:
    found, _ = given(policy, rollouts=str(write_jsonl(tmp_path / "rows.jsonl", group_rows())))
    prompt, completions = found.phase(0)[0][:2]
    group = SimpleNamespace(phase=0, prompt=prompt, completions=completions)
    values = torch.tensor([[-3.0, -1, -2, -4]], dtype=torch.float64)
    unknown = torch.full_like(values, math.nan)
    names = ("log_policy", "log_prior", "reward", "log_goodness")
    tensors = {name: values.roll(shift, -1) for shift, name in enumerate(names)}
    tensors |= dict.fromkeys(("log_proposal", "target", "ratio"), unknown)
    coefficients = METHODS[method].coefficients
    assert coefficients is not None
    try:
        result = coefficients(GroupTensors(groups=[group], **tensors), small(method=method))
        uses_proposal = bool(result.isnan().any())
    except ValueError:
        uses_proposal = True
    assert uses_proposal == (method in WEIGHTED)


def test_held_out_prompts_that_a_file_holds_too_are_counted_and_told(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, prompts = given(policy, rollouts=str(write_jsonl(tmp_path / "rows.jsonl", group_rows())))
    assert prompts.counts["held_out_prompts_also_in_training"] == 0
    assert "held-out" not in capsys.readouterr().err
    held = group_rows(prompt=prompts.test[0].text)
    _, prompts = given(policy, rollouts=str(write_jsonl(tmp_path / "held.jsonl", held)))
    count = prompts.counts["held_out_prompts_also_in_training"]
    assert count >= 1
    assert f"{count} held-out prompts of --prompts are trained on" in capsys.readouterr().err


def test_held_out_prompts_in_groups_that_are_not_used_are_not_counted(policy: Policy, tmp_path: Path) -> None:
    _, prompts = given(policy, rollouts=str(write_jsonl(tmp_path / "rows.jsonl", group_rows())))
    rows = group_rows() + group_rows(1, prompt=prompts.test[0].text)
    rows[0] |= {"prompt": prompts.test[0].text, "completions": ["a", "b", "a" * 9, "c"]}
    rows.insert(1, group_rows(1)[0])
    path = write_jsonl(tmp_path / "more.jsonl", rows)
    _, prompts = given(policy, rollouts=str(path), prompt_overflow="skip")
    assert prompts.counts["held_out_prompts_also_in_training"] == 0


def test_a_file_needs_no_training_prompts_beside_it(policy: Policy, tmp_path: Path) -> None:
    rows = [row for _, row in read_rows("prompts.jsonl")][:8]
    changes = {"prompts": str(write_jsonl(tmp_path / "held.jsonl", rows))}
    path = write_jsonl(tmp_path / "rows.jsonl", group_rows())
    found, prompts = given(policy, rollouts=str(path), **changes)
    assert (len(prompts.train), len(found.prompts())) == (0, 12)


@pytest.mark.parametrize("changes", [{"rollouts": "rows.jsonl"}, {"method": "dpo", "n": 2}])
def test_a_sampling_temperature_that_nothing_heeds_is_refused(changes: dict[str, object], in_letters: Path) -> None:
    assert "nothing is sampled to train on" in refused(sampling_temperature=0.5, **changes)


# Preference pairs


def write_pairs(letters: Path, folder: Path) -> str:
    """Write rows of the plain format whose preferred answer is all a's."""
    rows = [
        {"prompt": row["prompt"], "reference": "a" * (1 + number % 4), "rejected": "b"}
        for number, row in read_rows(letters / "prompts.jsonl")
    ]
    return str(write_jsonl(folder / "pairs.jsonl", rows))


@pytest.fixture
def pairs(letters: Path, tmp_path: Path) -> str:
    """A file of pairs."""
    return write_pairs(letters, tmp_path)


def test_pairs_have_the_preferred_answer_first_and_rewards_of_one_and_zero(pairs: str, policy: Policy) -> None:
    found, prompts = given(policy, prompts=pairs, method="dpo", n=2)
    a, b, end = policy.tokenizer.convert_tokens_to_ids(["a", "b", "</s>"])
    for group in found.phase(1):
        assert group.reward == [1.0, 0.0]
        chosen, rejected = group.completions
        assert chosen.text == group.prompt.reference
        assert chosen.token_ids == (*[a] * len(chosen.text), end)
        assert rejected.token_ids == (b, end)
        assert (group.log_prior, group.log_proposal) == (None, None)
    assert {p.prompt_id for p in found.prompts()} <= {p.prompt_id for p in prompts.train}


def test_the_prompts_of_pairs_are_those_that_a_sampling_run_draws(pairs: str, source: Path, policy: Policy) -> None:
    found, _ = given(policy, prompts=pairs, method="dpo", n=2)
    for phase in range(2):
        sampled = [row["prompt_id"] for row, _ in rows_of(source, phase)][::4]
        assert [group.prompt.prompt_id for group in found.phase(phase)] == sampled


@pytest.fixture(scope="module")
def preferred(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> AlignConfig:
    """The settings of a finished run of DPO on pairs."""
    folder = tmp_path_factory.mktemp("preferred")
    config = small(folder / "run", prompts=write_pairs(letters, folder), method="dpo", n=2, m=12, k=10, temperature=1.0)
    assert run_apart(config, letters) == 0
    return config


def test_dpo_on_pairs_learns_to_prefer_the_preferred_answers(preferred: AlignConfig, in_letters: Path) -> None:
    policy = load_policy(preferred)
    found, _ = given(policy, prompts=preferred.prompts, method="dpo", n=2, m=12)
    load_best_adapter(Path(preferred.out), policy)
    for group in found.phase(0):
        texts = [(group.prompt, completion) for completion in group.completions]
        after = score(policy, texts, 2)
        with policy.as_prior():
            before = score(policy, texts, 2)
        assert after[0] - before[0] > after[1] - before[1]
    assert [score_["reward"] for _, score_ in rows_of(Path(preferred.out), 0)] == [1.0, 0.0] * 12


def test_another_method_on_the_pairs_of_a_run_has_the_rewards_own_rewards(
    preferred: AlignConfig, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = given(policy, prompts=preferred.prompts, rollouts=preferred.out, n=2, m=12)
    assert [group.reward for group in found.phase(0) + found.phase(1)] == [None] * 24
    assert "are no rewards. --method brain needs rewards, so those of the chosen" in capsys.readouterr().err


def test_the_stated_preferences_of_a_runs_pairs_are_kept_by_dpo_whatever_the_reward_says(
    preferred: AlignConfig, policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"prompts": preferred.prompts, "method": "dpo", "n": 2, "m": 12}
    again = {"rollouts": preferred.out, "reward": "letter_rewards:grade"}
    found, _ = given(policy, **settings, **again)
    assert [group.reward for group in found.phase(0) + found.phase(1)] == [[1.0, 0.0]] * 24
    assert "stated preferences are trained on; --reward only evaluates" in capsys.readouterr().err
    collected(tmp_path / "copy", **settings, **again)
    copied = given(policy, rollouts=str(tmp_path / "copy"), **settings)[0]
    assert [group.reward for group in copied.phase(0)] == [[1.0, 0.0]] * 12
    computed = given(policy, rollouts=str(tmp_path / "copy"), **settings | {"method": "brain"})[0]
    assert [group.reward for group in computed.phase(0)] == [None] * 12


def test_dpo_on_the_pairs_of_a_run_is_that_run_though_the_reward_prefers_the_rejected_answers(
    preferred: AlignConfig, in_letters: Path, tmp_path: Path
) -> None:
    Path("few_rewards.py").write_text(
        "def few(prompts, completions):\n    return [-t.count('a') for t in completions]\n"
    )
    run(replace(preferred, rollouts=preferred.out, reward="few_rewards:few", out=str(tmp_path / "again")))
    assert adapter(tmp_path / "again") == adapter(Path(preferred.out))


def test_a_run_of_pairs_that_its_own_reward_rescored_has_its_rewards(
    preferred: AlignConfig, policy: Policy, tmp_path: Path
) -> None:
    shutil.copytree(preferred.out, tmp_path / "run")
    rescore(tmp_path / "run", configured_reward(preferred))
    changes = {"prompts": preferred.prompts, "rollouts": str(tmp_path / "run"), "n": 2, "m": 12}
    found, _ = given(policy, **changes)
    for group in found.phase(0) + found.phase(1):
        assert group.reward == [completion.text.count("a") for completion in group.completions]
    kept, _ = given(policy, method="dpo", **changes)
    assert [group.reward for group in kept.phase(0)] == [[1.0, 0.0]] * 12


def test_the_answers_columns_can_be_named(pairs: str, policy: Policy, tmp_path: Path) -> None:
    expected, _ = given(policy, prompts=pairs, method="dpo", n=2)
    rows = [{"prompt": r["prompt"], "good": r["reference"], "bad": r["rejected"]} for _, r in read_rows(pairs)]
    path = str(write_jsonl(tmp_path / "named.jsonl", rows))
    named = {"reference_column": "good", "rejected_column": "bad"}
    found, _ = given(policy, prompts=path, method="dpo", n=2, **named)
    assert found == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": None}, "column 'rejected' is missing or empty"),
        ({"rejected": ["b"]}, "column 'rejected' must be text"),
        ({"rejected": " "}, "column 'rejected' must be text"),
        ({"reference": None}, "column 'reference' is missing or empty, and --method dpo takes"),
        ({"rejected": "b" * 6}, "a completion has 7 tokens, its end token included, and --max-new-tokens is 6"),
    ],
)
def test_a_row_that_is_no_pair_is_told(
    change: Row, expected: str, pairs: str, in_letters: Path, tmp_path: Path
) -> None:
    rows = [row | change for _, row in read_rows(pairs)]
    path = str(write_jsonl(tmp_path / "bad.jsonl", rows))
    said = refused(prompts=path, method="dpo", n=2)
    assert f"{path}, row " in said
    assert expected in said


def test_pairs_with_a_long_answer_are_left_out_where_asked_for(pairs: str, policy: Policy, tmp_path: Path) -> None:
    rows = [row | ({"rejected": "b" * 9} if number % 2 else {}) for number, row in read_rows(pairs)]
    path = str(write_jsonl(tmp_path / "long.jsonl", rows))
    found, prompts = given(policy, prompts=path, method="dpo", n=2, prompt_overflow="skip")
    assert prompts.counts["skipped_groups"] == sum(int(p.prompt_id[6:]) % 2 for p in prompts.train) > 0
    assert all(int(prompt.prompt_id[6:]) % 2 == 0 for prompt in found.prompts())
    everything = [row | {"rejected": "b" * 9} for row in rows]
    said = refused(prompts=str(write_jsonl(Path(path), everything)), method="dpo", n=2, prompt_overflow="skip")
    assert "0 pairs remain for training, but --m asks for 6" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "dpo", "n": 2, "format": "tldr"}, "--format tldr has no rejected answers"),
        ({"method": "dpo", "n": 4}, "Use --n 2"),
        ({"rejected_column": "bad"}, "only --method dpo on the pairs of --prompts reads it"),
        ({"method": "dpo", "n": 2, "rejected_column": "bad", "format": "anthropic-hh"}, "has columns of its own"),
        ({"method": "dpo", "n": 2, "rollouts": "x.jsonl", "rejected_column": "bad"}, "reads it"),
    ],
)
def test_settings_without_pairs_are_refused(changes: dict[str, object], expected: str, in_letters: Path) -> None:
    assert expected in refused(**changes)


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if index % 2 else 'Human'}: {turn}" for index, turn in enumerate(turns))


def hh_policy(folder: Path) -> Policy:
    """A policy whose tokenizer can write dialogues."""
    save_llama(folder, letter_tokenizer("abcdefghijklmnopqrstuvwxyz \n:HA"))
    return load_policy(letter_config(model=str(folder)))


def test_dialogues_that_part_before_the_last_answer_are_left_out_and_counted(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(letters)
    good = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "b", "c", "no")}
    parted = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "x", "c", "no")}
    longer = {"chosen": dialogue("a", "yes"), "rejected": dialogue("a", "no", "c", "no")}
    shorter = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "no")}
    rows = [good, parted, longer, shorter] * 10
    path = str(write_jsonl(tmp_path / "hh.jsonl", rows))
    changes = {
        "model": str(tmp_path / "hh"),
        "prompts": path,
        "format": "anthropic-hh",
        "method": "dpo",
        "n": 2,
        "m": 3,
    }
    found, prompts = given(hh_policy(tmp_path / "hh"), **changes, validation_count=1, test_count=1)
    is_good = [int(p.prompt_id.removeprefix("train-")) % 4 == 1 for p in prompts.train]
    assert prompts.counts["diverging_pairs"] == is_good.count(False)
    assert f"{is_good.count(False)} pairs are left out" in capsys.readouterr().err
    for prompt_, group in zip(found.prompts(), found.phase(0) + found.phase(1), strict=True):
        assert prompt_.text == dialogue("a", "b", "c", "")[:-1]
        assert [c.text for c in group.completions] == [" yes", " no"]


def test_both_editions_of_rm_static_give_the_pairs_of_the_dialogues(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(letters)
    policy = hh_policy(tmp_path / "hh")
    heads = [dialogue("a" * (1 + i % 3), "b", "c", "")[:-1] for i in range(20)]
    editions = {
        "anthropic-hh": [{"chosen": h + " yes", "rejected": h + " no"} for h in heads],
        "rm-static": [{"prompt": h, "chosen": " yes", "rejected": " no"} for h in heads],
        "rm-static-2023": [
            {"prompt": h[: -len("Assistant:")], "chosen": "Assistant: yes", "rejected": "Assistant: no"} for h in heads
        ],
    }
    found = []
    for name, rows in editions.items():
        path = str(write_jsonl(tmp_path / f"{name}.jsonl", rows))
        changes = {"prompts": path, "format": name.removesuffix("-2023"), "method": "dpo", "n": 2, "m": 3}
        found.append(given(policy, model=str(tmp_path / "hh"), validation_count=1, test_count=1, **changes)[0])
    assert found[0] == found[1] == found[2]
    assert [c.text for c in found[0].phase(0)[0].completions] == [" yes", " no"]


# Tokens


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer that merges a and b, which closes every text with its end token if asked to."""
    vocabulary = {token: index for index, token in enumerate(["</s>", "a", "b", "c", "\n", "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("b", "c")]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [("c", "ab", ["ab"]), ("ca", "bc", ["bc"]), ("ab", "c", ["c"]), ("a", "", []), ("a", "b", ["b"])],
)
def test_a_completion_never_merges_with_its_prompt(prompt: str, text: str, expected: list[str]) -> None:
    tokenizer = merging_tokenizer()
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [5]
    ids = encode_completion(tokenizer, prompt, text)
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def word_start_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama's kind, which puts the mark of a word's start before every text; it merges b and a."""
    vocabulary = {token: index for index, token in enumerate(["</s>", "▁", "a", "b", ":", "\n", "▁a", "ba"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("b", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "text", "expected"), [("b:", "a", ["a"]), ("b:", " a", ["▁a"]), ("b", "a", ["a"]), (":", "", [])]
)
def test_a_completion_gets_no_mark_of_a_words_start_that_it_does_not_have(
    prompt: str, text: str, expected: list[str]
) -> None:
    tokenizer = word_start_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["▁a"]
    assert tokenizer.convert_ids_to_tokens(encode_completion(tokenizer, prompt, text)) == expected


def test_a_completion_of_chat_messages_follows_the_templates_beginning_of_the_answer() -> None:
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}q"
    ids = encode_completion(tokenizer, [{"role": "user", "content": "ab"}], "cd")
    assert tokenizer.convert_ids_to_tokens(ids) == ["c", "d"]


# Real rows


def story_config(out: Path | str = "", **changes: object) -> AlignConfig:
    """Settings of a small run of the real small Llama on real dialogues."""
    settings = {
        "model": str(STORIES),
        "prompts": str(DIALOGUES),
        "format": "anthropic-hh",
        "reward": "letter_rewards:count_a",
        "prompt_overflow": "skip",
        "max_new_tokens": 100,
        "test_count": 8,
        "validation_count": 8,
    }
    return letter_config(out, **settings | changes)


@needs_real_data
def test_real_pairs_are_the_tokens_of_their_whole_dialogues(in_letters: Path, tmp_path: Path) -> None:
    rows = [row for _, row in read_rows(DIALOGUES)][:150]
    config = story_config(prompts=str(write_jsonl(tmp_path / "rows.jsonl", rows)), method="dpo", n=2, e=4, m=15)
    policy = load_policy(config)
    prompts = load_prompts(config, policy.tokenizer, policy.context_length)
    found = load_given(config, policy, prompts, configured_reward(config))
    assert found is not None
    assert prompts.counts["respelled_completions"] == 0
    assert prompts.counts["skipped_groups"] > 0
    for prompt, group in zip(found.prompts(), (g for phase in found.phases for g in phase), strict=True):
        row = rows[int(prompt.prompt_id.removeprefix("train-")) - 1]
        for completion, name in zip(group.completions, ("chosen", "rejected"), strict=True):
            assert prompt.text + completion.text == row[name]
            *ids, end = prompt.token_ids + completion.token_ids
            assert ids == policy.tokenizer(row[name])["input_ids"]
            assert end == policy.tokenizer.eos_token_id


@needs_real_data
def test_real_summaries_begin_with_the_space_that_the_post_leaves_out() -> None:
    folder = REAL_DATA / "data" / "gpt2-bpe"
    gpt2 = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    for _, row in read_rows(REAL_DATA / "data" / "tldr" / "posts-test.jsonl"):
        prompt, label = row["prompt"].rstrip(), " " + row["label"].strip()
        ids = encode_completion(gpt2, prompt, label)
        assert gpt2.decode(ids[:1]).startswith(" ")
        assert gpt2(prompt)["input_ids"] + ids == gpt2(prompt + label)["input_ids"]


@needs_real_data
@pytest.mark.slow
def test_real_dialogues_train_dpo_and_what_another_run_sampled_of_them(in_letters: Path, tmp_path: Path) -> None:
    settings = {"m": 8, "batch": 4, "k": 3, "e": 1, "sample_rows": 32, "max_prompt_tokens": 100}
    run(story_config(tmp_path / "dpo", method="dpo", n=2, temperature=1.0, **settings))
    assert len(steps(tmp_path / "dpo")) == 3
    assert all(step["grad_norm"] > 0 for step in steps(tmp_path / "dpo"))
    settings["max_new_tokens"] = 16
    run(story_config(tmp_path / "brain", **settings))
    run(story_config(tmp_path / "again", rollouts=str(tmp_path / "brain"), **settings))
    assert adapter(tmp_path / "again") == adapter(tmp_path / "brain")
    run(story_config(tmp_path / "other", rollouts=str(tmp_path / "brain"), method="dpo-sft", **settings | {"n": 2}))
    first_two = [score_ for index, score_ in enumerate(scores_of(tmp_path / "brain", 0)) if index % 4 < 2]
    assert scores_of(tmp_path / "other", 0) == first_two

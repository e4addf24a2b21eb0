"""What every small world keeps to: its texts, its tokens, its exact judge and its preparation."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import random
import re
import time
from pathlib import Path

import pytest
import torch

from llm.config import PRESETS, parse_command
from llm.errors import UserError
from llm.plugins import load_callable
from llm.rewards import load_reward
from llm.tiny import prepare as preparation
from llm.tiny import world
from llm.tiny.prepare import MINIATURE, PROOF_WRITER, WRITER, WorldSettings, prepare, prepared
from llm.tiny.tasks import TASKS, Task, build_tokenizer, load_task
from llm.tiny.world import BOS, EOS, PAD, UNK, Writer

PERFECT = Writer(right=1.0, vague=0.0, ramble=0.0)
WRITERS = (WRITER, PROOF_WRITER, PERFECT)
SPECIAL = {PAD, BOS, EOS, UNK}
TINIEST = {"prompts": 40, "prior_pages": 64, "pairs": 64, "hidden_size": 16, "layers": 1, "heads": 2}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


def judge_of(task: Task):
    module = "llm.tiny.judge" if task.name == "summaries" else f"llm.tiny.{task.name}"
    return importlib.import_module(module).grade


def drawn(task: Task, count: int = 100):
    """Facts, a completion's parts and a proof's parts by the writers in turn."""
    for seed in range(count):
        rng = random.Random(seed)
        facts = task.draw(rng)
        parts = task.write_completion(facts, rng, WRITERS[seed % len(WRITERS)])
        yield rng, facts, parts


def test_a_world_goes_by_its_own_name_and_there_is_no_other() -> None:
    assert [load_task(name).name for name in TASKS] == list(TASKS)
    with pytest.raises(UserError, match=r"no small world 'poems'; there are summaries, dialogue, translation, code\."):
        load_task("poems")
    with pytest.raises(UserError, match="no small world"):
        prepare(WorldSettings(task="poems"))


def test_the_summaries_keep_the_tokenizer_that_they_had() -> None:
    ours = build_tokenizer(load_task("summaries").texts())
    assert ours.backend_tokenizer.to_str() == world.build_tokenizer().backend_tokenizer.to_str()


def test_every_word_of_a_world_is_one_token_and_no_text_is_lost(task: Task) -> None:
    tokenizer = build_tokenizer(task.texts())
    assert len(tokenizer) < 256 + len(SPECIAL) + 250
    for rng, facts, parts in drawn(task):
        for end, said in ((task.end, parts), (task.proof_end, task.proofread(parts, facts))):
            prompt, text = task.write_prompt(facts, rng, end=end), "".join(said)
            pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prompt + text)]
            assert tokenizer.convert_ids_to_tokens(tokenizer.encode(prompt + text)) == pieces
            assert tokenizer.decode(tokenizer.encode(prompt + text)) == prompt + text


def test_prompt_and_completion_tokenise_alike_jointly_and_apart_and_are_short(task: Task) -> None:
    tokenizer, longest = build_tokenizer(task.texts()), settings_of(task).max_new_tokens
    for rng, facts, parts in drawn(task):
        prompt, text = task.write_prompt(facts, rng, end=task.end), "".join(parts)
        ids = tokenizer.encode(text)
        assert tokenizer.encode(prompt) + ids == tokenizer.encode(prompt + text)
        assert prompt.endswith(task.end)
        assert text.startswith(" ")
        assert len(tokenizer.encode(prompt)) < 70
        assert len(ids) + 1 <= longest


def settings_of(task: Task):
    """The settings of the preset of a world."""
    return parse_command(["--preset", "tiny" if task.name == "summaries" else task.name, "--dry-run"]).settings


def test_each_part_can_be_written_in_two_ways_and_their_number_depends_on_the_facts_alone(task: Task) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        facts = task.draw(rng)
        said = [task.write_completion(facts, rng, WRITER) for _ in range(60)]
        assert len({len(parts) for parts in said}) == 1
        assert all(len(set(ways)) >= 2 for ways in zip(*said, strict=True))


def test_a_proofreader_takes_nothing_away_and_adds_only_to_what_is_wrong(task: Task) -> None:
    corrected = 0
    for rng, facts, _ in drawn(task):
        right = task.write_completion(facts, rng, PERFECT)
        assert task.proofread(right, facts) == right
        parts = task.write_completion(facts, rng, PROOF_WRITER)
        proof = task.proofread(parts, facts)
        said, words = (re.findall(r"[^\s,]+|,", "".join(text)) for text in (parts, proof))
        behind = iter(words)
        assert all(word in behind for word in said)  # in this order, with others between
        corrected += proof != parts
    assert corrected > 50


def test_the_judge_reads_from_the_prompt_what_the_writer_was_told(task: Task) -> None:
    for rng, facts, parts in drawn(task):
        text = "".join(parts)
        assert judge_of(task)([task.write_prompt(facts, rng, end=task.end)], [text]) == [task.grade_one(facts, text)]


def test_no_writer_beats_the_perfect_one_and_gibberish_beats_none(task: Task) -> None:
    best, references = [], []
    for rng, facts, parts in drawn(task):
        perfect = task.grade_one(facts, "".join(task.write_completion(facts, rng, PERFECT)))
        gibberish = {task.grade_one(facts, text) for text in ("", "\n", ") (", "Sure" * 999, "\N{SNOWMAN}\x00")}
        assert len(gibberish) == 1
        assert task.grade_one(facts, "".join(parts)) <= perfect
        if task.name != "summaries":  # where a summary that is all wrong and rambles is below gibberish
            assert gibberish.pop() <= task.grade_one(facts, "".join(parts))
        best.append(perfect)
        references.append(task.grade_one(facts, "".join(task.write_completion(facts, rng, WRITER))))
    assert math.fsum(references) / len(references) < math.fsum(best) / len(best) - 0.5


def test_a_judge_refuses_the_prompts_of_the_other_worlds(task: Task) -> None:
    for other in map(load_task, TASKS):
        rng = random.Random(0)
        prompt = other.write_prompt(other.draw(rng), rng, end=other.end)
        if other.name == task.name:
            assert len(judge_of(task)([prompt], ["?"])) == 1
        else:
            with pytest.raises(UserError, match="only, and this is none: "):
                judge_of(task)([prompt], ["?"])


def test_grading_runs_no_model_and_reads_no_file(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(task.write_prompt(facts, rng, end=task.end), "".join(parts)) for rng, facts, parts in drawn(task, 30)]
    prompts, texts = (list(column) for column in zip(*cases, strict=True))
    before = judge_of(task)(prompts, texts)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the judge is exact")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert judge_of(task)(prompts, texts) == before


def read_for_the_fingerprint(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    read, read_bytes = set(), Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: (read.add(path.name), read_bytes(path))[1])
        preparation._fingerprint(WorldSettings(task=name))
    return read


def test_only_a_worlds_own_code_and_what_builds_all_of_them_is_in_its_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = {"prepare.py", "tasks.py", "world.py", "rewards.py", "reward_model.py"}
    own = {
        "summaries": {"judge.py"},
        "dialogue": {"dialogue.py"},
        "translation": {"translation.py"},
        "code": {"code.py", "expressions.py"},
    }
    for name in TASKS:
        assert read_for_the_fingerprint(name, monkeypatch) == common | own[name]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "summaries"])
def test_a_preset_prepares_its_world_and_finds_what_is_prepared(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    preset = dict(line.split(": ", 1) for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if line[0] != "#")
    monkeypatch.setattr(
        preparation, "_build_whole", lambda settings, folder: (folder / settings.task).mkdir(parents=True)
    )
    assert load_callable(preset["prepared"], option="prepared")() is None
    options = load_callable(preset["prepare"], option="prepare")()
    assert load_callable(preset["prepared"], option="prepared")() == options
    assert (Path(options["model"]).parent / name).is_dir()
    assert callable(load_callable(preset["judge"], option="judge"))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "summaries"])
def test_a_world_is_prepared_as_alignment_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    settings = WorldSettings(task=name, **TINIEST)
    assert prepared(settings) is None
    options = prepare(settings)
    assert prepared(settings) == options
    rows = [json.loads(line) for line in Path(options["prompts"]).read_text().splitlines()]
    prompts, references = [row["prompt"] for row in rows], [row["reference"] for row in rows]
    assert len(judge_of(load_task(name))(prompts, references)) == TINIEST["prompts"]
    assert load_reward(options["reward"], device="cpu", batch_size=16)(prompts, references).shape == (len(rows),)


@pytest.mark.slow
def test_a_miniature_is_ready_in_half_a_minute(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    begin = time.process_time()
    options = prepare(dataclasses.replace(WorldSettings(task=task.name), **MINIATURE))
    assert time.process_time() - begin < 30
    assert len(Path(options["prompts"]).read_text().splitlines()) == MINIATURE["prompts"]


@pytest.mark.slow
def test_the_reward_model_of_a_world_knows_right_from_wrong(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    report = json.loads((Path(prepare(WorldSettings(task=task.name))["reward"]) / "report.json").read_text())
    assert report["accuracy"]["estimate"] > 0.8

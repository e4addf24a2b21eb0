"""The embedded default's small world: its posts, its judge, its tokenizer and its cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm.errors import UserError
from llm.rewards import load_reward
from llm.tiny import prepare as preparation
from llm.tiny.judge import RAMBLE, UNREADABLE, grade, grade_one, read_facts
from llm.tiny.prepare import WorldSettings, prepare
from llm.tiny.world import (
    POST_END,
    PROOF_END,
    RAMBLES,
    SLOTS,
    Writer,
    build_tokenizer,
    draw_facts,
    proofread,
    write_post,
    write_summary,
)

MINIATURE = WorldSettings(prompts=40, prior_pages=64, pairs=64, hidden_size=16, layers=1, heads=2)
FACTS = {"who": "Anna", "did": "lost", "what": "guitar", "where": "Lisbon", "when": "Monday"}
TRUE_SUMMARY = " Anna lost the guitar in Lisbon on Monday"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare(MINIATURE)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@given(st.integers(0, 10**9))
def test_the_judge_reads_from_a_post_exactly_the_facts_that_it_was_written_from(seed: int) -> None:
    rng = random.Random(seed)
    facts = draw_facts(rng)
    assert read_facts(write_post(facts, rng)) == facts


def test_the_true_summary_has_the_best_grade_and_each_kind_of_fault_its_price() -> None:
    assert grade_one(FACTS, TRUE_SUMMARY) == 5
    assert grade_one(FACTS, " someone lost the guitar in Lisbon on Monday") == 4
    assert grade_one(FACTS, " Anna lost the guitar in Oslo on Monday") == 3
    assert grade_one(FACTS, TRUE_SUMMARY + RAMBLES[0] + RAMBLES[0]) == 5 + 2 * RAMBLE
    assert grade_one(FACTS, " someone touched something somewhere sometime") == 0


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.kind)
def test_a_wrong_value_of_any_fact_costs_two_points(slot: object) -> None:
    for value in slot.values:  # type: ignore[attr-defined]
        said = "".join(s.phrase.format(value if s == slot else FACTS[s.kind]) for s in SLOTS)
        assert grade_one(FACTS, said) == (5 if value == FACTS[slot.kind] else 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Anna",
        " Anna Anna Anna Anna Anna",
        " Anna lost the guitar in Lisbon in Oslo on Monday",
        " Anna Boris lost the guitar in Lisbon on Monday",
        TRUE_SUMMARY + "," * 30,
        TRUE_SUMMARY + RAMBLES[0] * 4,
        TRUE_SUMMARY + TRUE_SUMMARY,
        TRUE_SUMMARY + POST_END,
        TRUE_SUMMARY.lower(),
        " in Lisbon Anna lost the guitar on Monday",
    ],
)
def test_text_that_is_no_summary_of_the_world_is_graded_as_all_wrong(text: str) -> None:
    assert grade_one(FACTS, text) == UNREADABLE


def test_the_judge_refuses_a_prompt_that_is_no_post_of_the_world() -> None:
    post = write_post(FACTS, random.Random(0))
    for text in ("Summarise this.", post + " It was in Paris.", post.replace("Lisbon", "Berlin")):
        with pytest.raises(UserError, match="small world"):
            grade([text], [TRUE_SUMMARY])


def test_the_writer_is_as_often_right_vague_and_wrong_as_stated() -> None:
    rng, writer = random.Random(0), Writer(right=0.5, vague=0.2, ramble=0.3)
    parts = [write_summary(FACTS, rng, writer) for _ in range(4000)]
    right = sum(said[i] == slot.phrase.format(FACTS[slot.kind]) for said in parts for i, slot in enumerate(SLOTS))
    vague = sum(said[i] == slot.vague for said in parts for i, slot in enumerate(SLOTS))
    assert right / 20000 == pytest.approx(0.5, abs=0.015)
    assert vague / 20000 == pytest.approx(0.2, abs=0.015)
    assert sum(bool(said[-1]) for said in parts) / 4000 == pytest.approx(0.3, abs=0.03)
    assert all(grade_one(FACTS, "".join(said)) > UNREADABLE - 2 for said in parts)


def test_the_best_possible_summary_beats_nine_references_in_ten() -> None:
    rng = random.Random(1)
    grades = [grade_one(FACTS, "".join(write_summary(FACTS, rng, Writer()))) for _ in range(4000)]
    assert sum(reference < 5 for reference in grades) / len(grades) > 0.9


def test_a_proof_puts_the_right_word_behind_wrong_ones_only() -> None:
    parts = [" Boris", " lost", " something", " in Oslo", " on Monday", ", you know"]
    assert "".join(proofread(parts, FACTS)) == " Boris Anna lost something in Oslo Lisbon on Monday, you know"


@given(st.text())
def test_decoding_returns_any_text_that_was_encoded(text: str) -> None:
    tokenizer = TOKENIZER
    special = tokenizer.all_special_tokens
    if not any(token in text for token in special):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.integers(0, 10**9))
def test_posts_and_summaries_tokenise_alike_jointly_and_apart_with_a_token_a_word(seed: int) -> None:
    rng = random.Random(seed)
    facts = draw_facts(rng)
    parts = write_summary(facts, rng, Writer())
    for post, said in (
        (write_post(facts, rng), parts),
        (write_post(facts, rng, end=PROOF_END), proofread(parts, facts)),
    ):
        text = "".join(said)
        ids = TOKENIZER.encode(post) + TOKENIZER.encode(text)
        assert TOKENIZER.encode(post + text) == ids
        assert TOKENIZER.decode(ids)[len(TOKENIZER.decode(TOKENIZER.encode(post))) :] == text
        assert len(TOKENIZER.encode(text)) == len(text.replace(",", " ,").split())
        assert len(ids) + 1 <= WorldSettings().context


def test_the_saved_tokenizer_is_the_built_one(world: dict[str, str]) -> None:
    loaded = AutoTokenizer.from_pretrained(world["model"])
    text = write_post(FACTS, random.Random(0)) + TRUE_SUMMARY + " — süß\n\n"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert None not in (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id)
    assert len({loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id}) == 4


def test_the_preparation_gives_what_alignment_takes(world: dict[str, str]) -> None:
    rows = [json.loads(line) for line in Path(world["prompts"]).read_text().splitlines()]
    assert len(rows) == MINIATURE.prompts
    prompts, references = [row["prompt"] for row in rows], [row["reference"] for row in rows]
    assert all(value > -7 for value in grade(prompts, references))
    rewards = load_reward(world["reward"], device="cpu", batch_size=16)(prompts, references)
    assert rewards.shape == (MINIATURE.prompts,)
    assert json.loads((Path(world["reward"]) / "report.json").read_text())["accuracy"]["n"] == 3


def test_a_second_preparation_reuses_the_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(MINIATURE)
    before = contents(cache)
    monkeypatch.setattr(preparation, "_build", None)
    assert prepare(MINIATURE) == first
    assert contents(cache) == before
    assert "reusing" in capsys.readouterr().err


def test_two_preparations_on_one_machine_are_equal_bit_for_bit(
    world: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(12345)  # the caller's generator does not matter
    again = prepare(MINIATURE)
    assert contents(Path(again["model"]).parent) == contents(Path(world["model"]).parent)


def test_the_preparation_leaves_the_callers_random_numbers_alone(cache: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    prepare(MINIATURE)
    assert torch.equal(torch.rand(3), expected)


def test_other_settings_get_another_folder(cache: Path) -> None:
    other = dataclasses.replace(MINIATURE, seed=1)
    assert prepare(MINIATURE)["model"] != prepare(other)["model"]


def test_an_interrupted_preparation_leaves_no_world(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "train_reward_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(MINIATURE)
    assert list(cache.iterdir()) == []
    assert Path(prepare(MINIATURE)["model"]).is_dir()


def test_whoever_finishes_second_keeps_the_first_ones_world(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = preparation._build

    def overtaken(settings: WorldSettings, folder: Path) -> None:
        build(settings, folder)
        rival = folder.parent.parent / f"tiny-world-{preparation._fingerprint(settings)}"
        rival.mkdir()
        (rival / "first").write_text("here before")

    monkeypatch.setattr(preparation, "_build", overtaken)
    folder = Path(prepare(MINIATURE)["model"]).parent
    assert contents(folder).keys() == {"first"}
    assert list(cache.iterdir()) == [folder]


def test_the_labeller_prefers_the_better_summary_as_often_as_bradley_terry_says() -> None:
    settings = dataclasses.replace(WorldSettings(), pairs=4000)
    sure = total = 0
    for row in preparation._preference_rows(settings):
        facts = read_facts(row["prompt"])
        margin = abs(grade_one(facts, row["chosen"]) - grade_one(facts, row["rejected"]))
        if margin == 1.0:
            total += 1
            sure += grade_one(facts, row["chosen"]) > grade_one(facts, row["rejected"])
    assert total > 300
    assert sure / total == pytest.approx(0.9526, abs=0.03)  # sigmoid(3)


@pytest.mark.slow
def test_the_default_world_has_an_imperfect_prior_and_a_reward_model_that_knows_facts(cache: Path) -> None:
    options = prepare()
    report = json.loads((Path(options["reward"]) / "report.json").read_text())
    assert report["accuracy"]["estimate"] > 0.8
    reward = load_reward(options["reward"], device="cpu", batch_size=64)
    rng, rows = random.Random(99), []
    for _ in range(100):
        facts = draw_facts(rng)
        post = write_post(facts, rng)
        for slot in SLOTS:
            wrong = facts | {slot.kind: rng.choice([value for value in slot.values if value != facts[slot.kind]])}
            rows.append((post, *("".join(s.phrase.format(said[s.kind]) for s in SLOTS) for said in (facts, wrong))))
    posts, right, wrongs = (list(column) for column in zip(*rows, strict=True))
    assert (reward(posts, right) > reward(posts, wrongs)).mean() > 0.9


TOKENIZER = build_tokenizer()

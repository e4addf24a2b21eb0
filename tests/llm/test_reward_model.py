"""Training a reward model: what it learns, what it reports, what it refuses."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from llm.console import entry_point
from llm.errors import UserError
from llm.reward_model import RewardModelConfig, held_out_report, main, report_text, train_reward_model
from llm.rewards import load_reward
from llm.tiny.world import build_tokenizer

PAIR = {"prompt": "POST:", "chosen": " in Oslo", "rejected": " in Paris"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("base"), build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.2, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def cities(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """A prompt with a completion that speaks of Oslo and one that does not."""
    rng = random.Random(seed)
    others = ["Paris", "Lima", "Rome"]
    return [(f"It was {rng.choice(others)}.", " in Oslo", f" in {rng.choice(others)}") for _ in range(count)]


def settings(base: str, data: str, out: Path, **changes: Any) -> RewardModelConfig:
    plain = RewardModelConfig(model=base, data=data, out=str(out), batch=8, learning_rate=5e-3, held_out=0.25)
    return dataclasses.replace(plain, **changes)


def test_bradley_terry_learns_which_of_two_completions_is_preferred(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in cities(200)]
    report = train_reward_model(settings(base, write_rows(tmp_path / "d.jsonl", rows), tmp_path / "rm", epochs=2))
    assert report["accuracy"]["estimate"] == 1.0
    assert report["accuracy"]["n"] == 50
    assert report["training_rows"] == 150
    assert report["log_loss"] < 0.2
    reward = load_reward(str(tmp_path / "rm"), device="cpu", batch_size=4)
    good, bad = reward(["It was Rome."] * 2, [" in Oslo", " in Lima"])
    assert good > bad + 1


def test_the_logistic_loss_learns_the_probability_of_being_good(base: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = []
    for prompt, good, bad in cities(400):
        is_oslo = rng.random() < 0.5
        label = int(rng.random() < (0.9 if is_oslo else 0.2))
        rows.append({"prompt": prompt, "completion": good if is_oslo else bad, "label": label})
    data = write_rows(tmp_path / "d.jsonl", rows)
    report = train_reward_model(settings(base, data, tmp_path / "rm", loss="logistic", epochs=3))
    rewards = load_reward(str(tmp_path / "rm"), device="cpu", batch_size=4)(
        ["It was Rome."] * 2, [" in Oslo", " in Lima"]
    )
    assert 1 / (1 + np.exp(-rewards)) == pytest.approx([0.9, 0.2], abs=0.12)
    assert 0.7 < report["accuracy"]["estimate"] < 0.95


def test_a_sequence_classifier_is_trained_further_from_where_it_is(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in cities(120)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    train_reward_model(settings(base, data, tmp_path / "first"))
    still = settings(str(tmp_path / "first"), data, tmp_path / "second", learning_rate=1e-12, weight_decay=0.0)
    train_reward_model(still)
    first, second = (LlamaForSequenceClassification.from_pretrained(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(second.score.weight, first.score.weight, atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in cities(40)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # the caller's generator does not matter
        train_reward_model(settings(base, data, tmp_path / name, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_just_the_held_out_row_has_no_influence_on_the_model(base: str, tmp_path: Path) -> None:
    """Of four rows one is held out; turning a row round changes the model, unless it is that one."""
    rows = [{"prompt": str(i), "chosen": " in Oslo", "rejected": f" in Lima {i}"} for i in range(4)]
    models = []
    for turned in (None, 0, 1, 2, 3):
        data = write_rows(tmp_path / f"{turned}.jsonl", [
            row if i != turned else row | {"chosen": row["rejected"], "rejected": row["chosen"]}
            for i, row in enumerate(rows)
        ])  # fmt: skip
        train_reward_model(settings(base, data, tmp_path / f"rm{turned}"))
        models.append((tmp_path / f"rm{turned}" / "model.safetensors").read_bytes())
    assert [model == models[0] for model in models[1:]].count(True) == 1


def test_the_report_file_holds_what_was_returned(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in cities(20)]
    report = train_reward_model(settings(base, write_rows(tmp_path / "d.jsonl", rows), tmp_path / "rm"))
    assert json.loads((tmp_path / "rm" / "report.json").read_text()) == report
    assert report["settings"]["data"] == "../d.jsonl"
    assert "held-out accuracy" in report_text(report, "rm")


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv", "parquet"])
def test_pairs_are_read_from_other_files_too(base: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"d.{kind}"
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(b"".join(json.dumps(PAIR).encode() + b"\n" for _ in range(8))))
    elif kind == "csv":
        path.write_text("prompt,chosen,rejected\n" + "POST:, in Oslo, in Paris\n" * 8)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR] * 8), path)
    assert train_reward_model(settings(base, str(path), tmp_path / "rm"))["accuracy"]["n"] == 2


def test_margins_of_known_size_give_the_known_report() -> None:
    """Two right at sigmoid(1) = 0.731, one wrong at sigmoid(2) = 0.881, one tie (wrong) at 1/2."""
    report = held_out_report(np.array([1.0, 1.0, -2.0, 0.0]))
    assert report["accuracy"]["estimate"] == 0.5
    assert report["accuracy"]["low"] == pytest.approx(0.15004, abs=1e-4)
    assert report["log_loss"] == pytest.approx((2 * 0.313262 + 2.126928 + 0.693147) / 4, abs=1e-5)
    assert report["expected_calibration_error"] == pytest.approx((2 * 0.268941 + 0.880797 + 0.5) / 4, abs=1e-5)
    assert [entry["rows"] for entry in report["reliability"]] == [1, 2, 1]


@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_calibrated_margins_have_a_small_calibration_error_and_doubled_ones_a_larger(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    size = rng.exponential(scale, 20000)
    margins = np.where(rng.random(20000) < 1 / (1 + np.exp(-size)), size, -size)
    honest = held_out_report(margins)["expected_calibration_error"]
    assert honest < 0.03
    assert scale < 0.3 or held_out_report(4 * margins)["expected_calibration_error"] > honest


def test_huge_margins_do_not_overflow() -> None:
    report = held_out_report(np.array([1e4, -1e4]))
    assert report["log_loss"] == 5000.0
    assert report["reliability"][0]["confidence"] == 1.0


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        ([PAIR, {"prompt": "a", "chosen": "b"}], {}, "row 2: column 'rejected' is missing"),
        ([PAIR, PAIR], {"loss": "logistic"}, "row 1: column 'label' is missing"),
        ([{"prompt": "a", "completion": "b", "label": 2}], {"loss": "logistic"}, "row 1: label 2 is neither 0 nor 1"),
        ([{"prompt": "a", "completion": "b", "label": "yes"}], {"loss": "logistic"}, "label 'yes' is neither"),
        ([{"prompt": "a", "completion": "b", "label": 0.5}], {"loss": "logistic"}, "label 0.5 is neither"),
        ([PAIR, PAIR | {"chosen": 7}], {}, "row 2: chosen is of type int"),
        ([PAIR, PAIR | {"prompt": 7}], {}, "row 2: prompt"),
        ([PAIR, PAIR | {"prompt": [{"role": "user"}]}], {}, "row 2"),
        ([PAIR, PAIR | {"rejected": "." * 40}], {}, "row 2: .*42 tokens long.* 32"),
        ([PAIR], {}, "at least 2 are needed"),
        ([], {}, "holds no rows"),
        ([PAIR, PAIR], {"held_out": 0.0}, "--held-out"),
        ([PAIR, PAIR], {"held_out": 1.0}, "--held-out"),
        ([PAIR, PAIR], {"batch": 0}, "--batch"),
        ([PAIR, PAIR], {"epochs": 0}, "--epochs"),
        ([PAIR, PAIR], {"learning_rate": float("nan")}, "--learning-rate"),
        ([PAIR, PAIR], {"warmup": 2.0}, "--warmup"),
        ([PAIR, PAIR], {"weight_decay": -1.0}, "--weight-decay"),
        ([PAIR, PAIR], {"adam_beta2": 1.0}, "--adam-beta2"),
        ([PAIR, PAIR], {"model": "nowhere/at-all"}, "cannot be loaded"),
        ([PAIR, PAIR], {"device": "cuda:99"}, "--device"),
    ],
)
def test_bad_input_is_refused_with_its_place(
    base: str, tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    data = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError, match=message):
        train_reward_model(settings(base, data, tmp_path / "rm", **changes))
    assert not (tmp_path / "rm").exists()


def test_training_that_diverges_says_so(base: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [PAIR] * 64)
    with pytest.raises(UserError, match="diverged"):
        train_reward_model(settings(base, data, tmp_path / "rm", learning_rate=1e30, epochs=4))


def test_a_folder_with_something_in_it_is_never_written_to(base: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [PAIR] * 4)
    with pytest.raises(UserError, match="--out"):
        train_reward_model(settings(base, data, tmp_path))
    with pytest.raises(UserError, match="--out"):
        train_reward_model(settings(base, data, tmp_path / "d.jsonl"))
    (tmp_path / "empty").mkdir()
    train_reward_model(settings(base, data, tmp_path / "empty"))
    assert {path.name for path in tmp_path.iterdir()} == {"d.jsonl", "empty"}


def test_a_disk_that_is_too_small_leaves_nothing_behind(base: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [PAIR] * 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))  # below the weights, above config.json
    try:
        with pytest.raises(UserError, match=r"rm: could not be written .*nothing is left half-written"):
            train_reward_model(settings(base, data, tmp_path / "rm"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_folder_that_is_interrupted_on_its_way_leaves_nothing_behind(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    data = write_rows(tmp_path / "d.jsonl", [PAIR] * 8)
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)  # which comes after the weights
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(settings(base, data, tmp_path / "rm"))
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_the_command_line_ends_with_status_2_and_one_paragraph(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(PAIR) + "\n{oops\n")
    options = ["--model", base, "--out", str(tmp_path / "rm"), "--data"]
    assert entry_point(main, [*options, str(tmp_path / "bad.jsonl")]) == 2
    assert entry_point(main, [*options, str(tmp_path / "missing.jsonl")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2
    assert "row 2" in told[0]
    assert "no such file" in told[1]


def test_the_command_line_trains_and_prints_the_report(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "d.jsonl", [PAIR] * 8)
    assert entry_point(main, ["--model", base, "--data", data, "--out", str(tmp_path / "rm")]) == 0
    assert "held-out accuracy" in capsys.readouterr().out

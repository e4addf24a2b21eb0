"""Miniatures of the published artefacts go through the presets of the paper's runs, from prompts to an adapter."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm.align import main
from llm.config import changed_settings, load_config, parse_command
from llm.convert_reward import ConvertConfig, convert
from llm.store import ShardFolder, read_events
from reward_artefacts import write_base, write_checkpoint
from sft_artefacts import (
    DIALOGUES,
    REAL_DATA,
    gpt2_tokenizer,
    save_gptj_sft,
    save_llama_base,
    save_qlora_adapter,
)

POSTS = {split: REAL_DATA / "data" / "tldr" / f"posts-{split}.jsonl" for split in ("train", "test")}
SIZES: dict[str, Any] = {
    "m": 3,
    "e": 2,
    "k": 2,
    "n": 4,
    "batch": 2,
    "max_new_tokens": 6,
    "validation_count": 4,
    "test_count": 4,
    "validate_every": 2,
    "checkpoint_every": 1,
}
PATHS = {"model", "tokenizer", "sft_adapter", "prompts", "test_prompts", "reward", "out", "device"}
"""All that differs from the presets: sizes and paths. Prompts keep the presets' lengths."""
N, STEPS = SIZES["n"], SIZES["e"] * SIZES["k"]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both SFT models, both reward models, and rows in the form of both data sets."""
    home = tmp_path_factory.mktemp("artefacts")
    save_qlora_adapter(home / "qlora", save_llama_base(home / "llama", max_position_embeddings=1024))
    save_gptj_sft(home / "gptj", n_embd=64, n_positions=1024)
    gpt2_tokenizer().save_pretrained(home / "tokenizer")
    base = write_base(home / "base", gpt2_tokenizer())
    for recipe in ("tldr", "dialogue"):
        write_checkpoint(home / f"{recipe}-raw", recipe, base)
        convert(ConvertConfig(str(home / f"{recipe}-raw"), recipe, str(home / recipe), base=str(base)))  # type: ignore[arg-type]
    for split, count in (("train", 12), ("test", 6)):
        write_rows(home / f"dialogues-{split}.jsonl", dialogues(split, count))
        write_rows(home / f"posts-{split}.jsonl", posts(split, count))
    return home


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dialogues(split: str, count: int) -> list[dict[str, str]]:
    """Rows as rm-static has them, of real dialogues where there are any."""
    if not DIALOGUES.is_file():
        prompts = [f"\n\nHuman: {'Tell me more. ' * 5 * i}{split}?\n\nAssistant:" for i in range(count)]
        return [{"prompt": prompt, "chosen": " Very well."} for prompt in prompts]
    start = {"train": 0, "test": 100}[split]
    with gzip.open(DIALOGUES, "rt", encoding="utf-8") as file:
        chosen = [json.loads(line)["chosen"] for line in islice(file, start, start + count)]
    parts = [text.rpartition("\n\nAssistant:") for text in chosen]
    return [{"prompt": head + turn, "chosen": answer} for head, turn, answer in parts]


def posts(split: str, count: int) -> list[dict[str, str]]:
    """Rows of TL;DR, real ones where there are any; the longest come first, and do not fit into 500 tokens."""
    if not POSTS[split].is_file():
        text = "SUBREDDIT: r/help\nTITLE: {}\nPOST: {}\nTL;DR: "
        return [{"prompt": text.format(split, "What now? " * 300 + str(i)), "label": "help"} for i in range(count)]
    rows = [json.loads(line) for line in POSTS[split].read_text(encoding="utf-8").splitlines()]
    tokenizer = gpt2_tokenizer()
    return sorted(rows, key=lambda row: -len(tokenizer(row["prompt"])["input_ids"]))[:count]


def arguments(artefacts: Path, preset: str, out: Path) -> list[str]:
    """The command line of a miniature run: the preset, and what it changes."""
    files = {
        "hh-llama7b": {"model": "llama", "sft_adapter": "qlora", "reward": "dialogue", "rows": "dialogues"},
        "tldr-gptj": {"model": "gptj", "tokenizer": "tokenizer", "reward": "tldr", "rows": "posts"},
    }[preset]
    rows = files.pop("rows")
    files |= {"prompts": f"{rows}-train.jsonl", "test_prompts": f"{rows}-test.jsonl"}
    values = {name: artefacts / file for name, file in files.items()} | SIZES | {"out": out, "device": "cpu"}
    options = [[f"--{name.replace('_', '-')}", str(value)] for name, value in values.items()]
    return ["--preset", preset, *(part for option in options for part in option)]


def interrupted_run(command: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run until the third gradient step fails, go on from there, and return the summary."""
    original, steps = torch.optim.AdamW.step, []

    def failing(self: torch.optim.AdamW, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert not (out / "summary.json").exists()
    main(["--resume", str(out)])
    return json.loads((out / "summary.json").read_text())


def check_run(out: Path, preset: str, options: list[str], command: list[str]) -> dict[str, Any]:
    """Check that a run was the preset's, and what it left; returns the adapter's settings."""
    expected = parse_command(["--preset", preset, *options]).settings
    resolved = parse_command(command).settings
    assert set(changed_settings(resolved, expected)) <= SIZES.keys() | PATHS
    stored = load_config(out / "config.yaml")
    assert set(changed_settings(stored, resolved)) <= {"train_rows"}  # chosen by measuring
    events = read_events(out / "metrics.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, STEPS + 1))
    assert [event["step"] for event in events if event["event"] == "validation"] == [0, 2, 4]
    for phase in range(SIZES["e"]):
        rows = ShardFolder(out / "rollouts" / f"phase-{phase:04d}").read("block-00000")
        assert len(rows) == SIZES["m"] * N
    return json.loads((out / "adapter" / "adapter_config.json").read_text())


def moved(out: Path, original: dict[str, torch.Tensor] | None = None) -> bool:
    """Whether training changed the last adapter: a fresh one's B is 0, an SFT adapter's copy is known."""
    state = load_file(out / "checkpoints" / "last" / "adapter.safetensors")
    if original is None:
        return any(bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name)
    return any(not torch.equal(tensor, original[name]) for name, tensor in state.items())


def loads_by_peft(base: Path, adapter: Path) -> bool:
    """Whether the adapter loads on its base without anything of ours."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())


def test_the_dialogue_preset_runs_on_its_artefacts_in_miniature(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = arguments(artefacts, "hh-llama7b", out)
    summary = interrupted_run(command, out, monkeypatch)
    settings = check_run(out, "hh-llama7b", [], command)
    assert (settings["r"], settings["lora_alpha"], len(settings["target_modules"])) == (64, 16, 7)
    assert moved(out, torch.load(artefacts / "qlora" / "adapter_model.bin", weights_only=True))
    assert loads_by_peft(artefacts / "llama", out / "adapter")
    assert summary["before"]["kl_to_prior"]["estimate"] == 0.0
    assert summary["after"]["reward_model_win_rate"]["n"] == SIZES["test_count"]


@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=pytest.mark.slow)])
def test_the_summary_preset_runs_on_its_artefacts_in_miniature(
    quantization: str, artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = ["--quantization", quantization]
    command = [*arguments(artefacts, "tldr-gptj", out), *options]
    summary = interrupted_run(command, out, monkeypatch)
    settings = check_run(out, "tldr-gptj", options, command)
    assert (settings["r"], settings["lora_alpha"]) == (8, 32)
    assert set(settings["target_modules"]) == {"q_proj", "v_proj"}
    assert moved(out)
    assert loads_by_peft(artefacts / "gptj", out / "adapter")
    assert summary["before"]["kl_to_prior"]["estimate"] == 0.0
    assert (
        summary["counts"]["truncated_prompts"] > 0
    )  # to 500 tokens, so that the reward model sees every summary whole


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hh", "tldr"])
def test_the_full_size_benchmark_finds_its_miniature_as_planned(case: str) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "full_size.py"
    command = [sys.executable, str(script), "--case", case, "--miniature"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    for engine in ("shared-prefix", "plain"):
        for phase, row in found[engine].items():
            assert row["bytes"] == pytest.approx(row["planned_bytes"], rel=0.15), (engine, phase)

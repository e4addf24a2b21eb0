"""The plan of a dry run: its tokens, bytes and sizes against miniature runs and published figures."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from architectures import save_model
from doc_tables import documented
from letter_world import LETTERS, letter_config
from llm import align, memory, prefix_attention, processes, sharding
from llm.align import run
from llm.config import AlignConfig, parse_command
from llm.console import entry_point
from llm.convert_reward import ConvertConfig, convert
from llm.errors import UserError
from llm.logprob import score
from llm.memory import Allocations, made_up_pairs, peak_bytes, with_train_rows
from llm.models import Policy, load_policy
from llm.plan import (
    GPUS,
    Lengths,
    Plan,
    Tokens,
    _with_rows,
    base_bytes,
    describe,
    log_probs,
    make_plan,
    model_settings,
    report_plan,
    sampling_bytes,
    scoring_bytes,
    skeleton,
)
from llm.records import Prompt
from llm.rollout import sample_groups
from llm.tiny import prepare
from reward_artefacts import byte_tokenizer, write_base, write_checkpoint
from sft_artefacts import save_gptj_sft, save_llama_base, save_qlora_adapter

GPU = GPUS["a100-80"]
PROMPT, LENGTH = 7, 6
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of letters whose completions never end, so that all have full length, and whose prompts all have 7."""
    home = tmp_path_factory.mktemp("endless")
    vocabulary = {token: index for index, token in enumerate([*LETTERS, "<end>"])}
    end = len(LETTERS)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=end, hidden_size=32, **SIZES, **ids)).save_pretrained(home / "model")
    ends = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end, "num_labels": 1}
    reward = LlamaForSequenceClassification(LlamaConfig(vocab_size=end + 1, hidden_size=16, **SIZES, **ends))
    reward.save_pretrained(home / "reward")
    for name in ("model", "reward"):
        fast.save_pretrained(home / name)
    rows = [
        {"prompt": chr(97 + i % 26) + "abcdef"[: i // 26] + "z" * (6 - i // 26), "reference": "b" * LENGTH}
        for i in range(60)
    ]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the tokens that embeddings see: of the reward by its width, of the policy with and without gradient."""
    found: Counter[str] = Counter()

    def count(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            kind = "training" if torch.is_grad_enabled() else "policy"
            found["reward" if module.embedding_dim == 16 else kind] += inputs[0].numel()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("shared-prefix", {}),
        ("shared-prefix", {"train_rows": 3, "dtype": "bfloat16"}),
        ("plain", {"train_rows": 3}),
        pytest.param("plain", {"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_plans_tokens_are_those_that_a_run_forwards(
    engine: str, changes: dict[str, Any], endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(endless)
    settings = {
        "reward": "reward",
        "engine": engine,
        "train_rows": 12,
        "k": 4,
        "max_new_tokens": LENGTH,
        "test_count": 12,
    }
    config = letter_config(tmp_path / "run", **(settings | changes))
    total = make_plan(config, GPU).total
    with counted() as found:
        run(config)
    assert found["policy"] == total.sampling + total.proposal + total.prior + total.weights
    assert found["training"] == total.training
    assert found["reward"] == total.reward  # the reward pads nothing, for all texts are of one length


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_a_training_pass_needs_the_memory_that_the_plan_says(
    architecture: str, engine: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = (prefix_attention._products, prefix_attention._products_backward)
    monkeypatch.setattr(prefix_attention, "_kernel", lambda states: products)  # as on a GPU
    config = letter_config(model=str(save_model(tmp_path, architecture)), engine=engine, activation_checkpointing=again)
    planned, _ = skeleton(config, model_settings(config.model, "--model")[0])
    real = load_policy(config)
    for groups, rows in ((1, 3), (1, 8), (3, 24)):
        pairs = made_up_pairs(24, 10, groups, rows)
        assert max(peak_bytes(planned, pairs, log_probs)) == pytest.approx(max(peak_bytes(real, pairs)), rel=0.15)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["llama", "gptj"])
def test_the_bases_weights_have_the_bytes_that_the_plan_says(kind: str, quantization: str, tmp_path: Path) -> None:
    if kind == "llama":
        changes = {"model": str(save_llama_base(tmp_path / "model", hidden_size=256, intermediate_size=512))}
    else:
        sft = save_gptj_sft(tmp_path / "model", n_embd=256)
        byte_tokenizer().save_pretrained(tmp_path / "model")
        changes = {"model": str(sft)}
    config = letter_config(**changes, quantization=quantization, dtype="bfloat16", lora_targets="q_proj,v_proj")
    planned, _ = skeleton(config, model_settings(config.model, "--model")[0])
    real = load_policy(config)
    parameters = {name: p for name, p in real.base.named_parameters() if "lora_" not in name}
    held = sum(p.nbytes for p in parameters.values()) + sum(buffer.nbytes for buffer in real.base.buffers())
    states = [p.quant_state for p in parameters.values() if getattr(p, "quant_state", None) is not None]
    held += sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    assert len(states) == (14 if kind == "llama" else 12) * (quantization == "nf4")
    assert base_bytes(planned, config) == pytest.approx(held, rel=0.01)


def block_peak(policy: Policy, config: AlignConfig, prompt_length: int, groups: int, n: int) -> tuple[int, int]:
    """Bytes that sampling and scoring a block of a run need: completions that do not end."""
    prompts = [Prompt(str(i), "", (5 + i,) * prompt_length, None) for i in range(groups)]
    with torch.no_grad(), Allocations(policy.device) as sampling:
        found = sample_groups(policy, prompts, n, draw=(0, "test", 0), max_new_tokens=config.max_new_tokens)
    pairs = [(prompt, completion) for prompt, group in zip(prompts, found, strict=True) for completion in group]
    assert {len(completion.token_ids) for _, completion in pairs} == {config.max_new_tokens}
    with Allocations(policy.device) as scoring:
        score(policy, pairs, config.sample_rows)
    return sampling.peak, scoring.peak


@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_sampling_and_scoring_need_the_memory_that_the_plan_says(
    architecture: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rollouts, and in evaluations, where each of as many completions has a prompt of its own."""
    products = (prefix_attention._products, prefix_attention._products_backward)
    monkeypatch.setattr(prefix_attention, "_kernel", lambda states: products)  # as on a GPU
    config = letter_config(model=str(save_model(tmp_path, architecture)), engine=engine, dtype="bfloat16")
    config = replace(config, sample_rows=16, n=8, max_new_tokens=9)
    planned, _ = skeleton(config, model_settings(config.model, "--model")[0])
    real = replace(load_policy(config), end_ids=())
    rollout = block_peak(real, config, 40, 2, 8)
    for held_out in (1, 16):
        config = replace(config, validation_count=1, test_count=held_out)
        sampling, scoring = map(max, zip(rollout, block_peak(real, config, 40, held_out, 1), strict=True))
        assert sampling_bytes(planned, config, 40) == pytest.approx(sampling, rel=0.05)
        assert scoring_bytes(planned, config, 40) == pytest.approx(scoring, rel=0.15)


@pytest.mark.parametrize(("architecture", "engine"), [("llama", "shared-prefix"), ("gptj", "plain")])
def test_the_plan_chooses_the_training_passes_that_a_run_chooses(
    architecture: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On devices of several sizes: parts of a group, one group, several groups."""
    products = (prefix_attention._products, prefix_attention._products_backward)
    monkeypatch.setattr(prefix_attention, "_kernel", lambda states: products)
    config = letter_config(
        model=str(save_model(tmp_path, architecture)), engine=engine, n=8, batch=6, max_new_tokens=12
    )
    config = replace(config, train_rows=0)
    planned, _ = skeleton(config, model_settings(config.model, "--model")[0])
    real, prompt = load_policy(config), Prompt("p", "", (5,) * 24, None)
    chosen = []
    for mib in (0.5, 2, 16):
        monkeypatch.setattr(memory, "pass_budget", lambda *_, mib=mib: mib * 2**20)
        asked = with_train_rows(config, real, [prompt], None).train_rows
        mine = _with_rows(config, planned, Lengths(24, 24, 24, ""), mib * 2**20).train_rows
        assert mine == asked
        chosen.append(mine)
    assert chosen[0] < 8 < chosen[-1]


def planned(*options: str) -> Plan:
    command = parse_command([*options, "--dry-run"])
    return make_plan(command.settings, GPUS[command.gpu])


@pytest.mark.parametrize(
    ("name", "parameters", "trained", "base"),
    [  # files of 13.5 GB in float16 and 640 MB in float32; and of 24.3 GB in float32
        ("hh-llama7b", 6_738_415_616, 159_907_840, 3.87e9),
        ("tldr-gptj", 6_050_882_784, 28 * 2 * 8 * (4096 + 4096), 12.1e9),
    ],
)
def test_the_published_models_have_the_published_sizes(name: str, parameters: int, trained: int, base: float) -> None:
    config = parse_command(["--preset", name]).settings
    policy, _ = skeleton(config, model_settings(config.model, "--model")[0])
    assert sum(p.numel() for key, p in policy.model.named_parameters() if "lora_" not in key) == parameters
    assert sum(p.numel() for p in policy.parameters()) == trained
    assert base_bytes(policy, config) == pytest.approx(base, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("row", documented("full_runs.md", "whole run"), ids=lambda row: " ".join(row[:2]))
def test_the_guides_figures_are_the_plans(row: list[str]) -> None:
    options, card, *figures = row
    plan = planned(*options.split(), "--gpu", card)
    gpu = GPUS[card]
    hours = [plan.seconds(tokens, gpu) / 3600 for tokens in (plan.update, plan.total, Tokens(reward=plan.total.reward))]
    assert figures == [f"{plan.peak() / 2**30:.1f} GiB", *(f"{value:.1f} h" for value in hours)]
    assert plan.peak() <= gpu.gib * 2**30 * 0.85
    disk = [f"{size / 2**30:.1f} GiB" for size in (plan.disk.hub, plan.disk.converted, plan.disk.run)]
    assert [options.split()[1], *disk] in documented("full_runs.md", "run folder")
    assert plan.memory["reward"] == pytest.approx(11.69e9, rel=0.01)  # float16
    if card == "a100-80":
        base, forward, training = figures_of_scaling(plan)
        assert [base, forward, training] in [row[1:] for row in documented("scaling.md", "forward, a token")]


def figures_of_scaling(plan: Plan) -> list[str]:
    """A plan's parameters and FLOPs as the document of scaling writes them."""
    forward, training = plan.flops.prior, plan.flops.training
    times = f"{training / 1e9:.1f} GFLOP, {training / forward:.1f} times forward"
    return [f"{plan.parameters / 1e9:.2f} billion", f"{forward / 1e9:.1f} GFLOP", times]


def test_a_dry_run_prints_settings_and_plan_and_loads_nothing(
    endless: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(endless)
    monkeypatch.setattr(align, "open_run", None)
    options = ["--model", "model", "--prompts", "prompts.jsonl", "--reward", "reward", "--test-count", "8"]
    options += ["--validation-count", "8", "--m", "16"]
    (endless / "model" / "model.safetensors").rename(endless / "away")
    try:
        assert entry_point(align.main, [*options, "--dry-run", "--gpu", "h100"]) == 0
    finally:
        (endless / "away").rename(endless / "model" / "model.safetensors")
    printed = capsys.readouterr().out
    assert "learning_rate: 0.001" in printed
    for expected in (
        "every figure is computed",
        "7 tokens on average, 7 at most",
        "time on a h100",
        "assumed 0.4",
        "fits",
    ):
        assert expected in printed
    assert not (endless / "runs").exists()


def test_what_is_still_to_be_prepared_is_told() -> None:
    assert report_plan(AlignConfig(), "h100").startswith(
        "No plan: --model, --prompts, --reward would be prepared first"
    )


def test_an_unknown_gpu_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match=r"--gpu tpu: not in the table. There are: rtx-3090, .* h200"):
        report_plan(AlignConfig(), "tpu")


def test_prompts_of_a_data_set_count_with_the_most_tokens_that_they_may_have(endless: Path) -> None:
    config = letter_config(model=str(endless / "model"), prompts="some/data:train", reward="letters:f", train_rows=4)
    plan = make_plan(config, GPU)
    assert (plan.lengths.mean, plan.lengths.longest) == (58, 58)
    assert any("each is reckoned with 58 tokens" in note for note in plan.notes)
    assert any("letters:f: a function" in note for note in plan.notes)
    assert make_plan(replace(config, max_prompt_tokens=20), GPU).lengths.longest == 20


def test_adapters_of_every_mode_and_a_converted_reward_are_reckoned_in_their_precisions(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", byte_tokenizer())
    convert(
        ConvertConfig(str(write_checkpoint(tmp_path / "raw", "tldr", base)), "tldr", str(tmp_path / "rm"), str(base))
    )
    llama = save_llama_base(tmp_path / "llama")
    adapter = save_qlora_adapter(tmp_path / "qlora", llama)
    config = letter_config(model=str(llama), sft_adapter=str(adapter), reward=str(tmp_path / "rm"), train_rows=4)
    copy, stack, merge = (make_plan(replace(config, sft_mode=mode), GPU) for mode in ("copy", "stack", "merge"))
    assert copy.memory["prior"] == copy.memory["policy"] == stack.memory["prior"] > stack.memory["policy"]
    assert merge.memory["prior"] == 0
    assert copy.memory["optimiser"] == 3 * copy.memory["policy"]
    positions = 2 * 1024 * 4 * 4  # of each layer, kept in float32
    assert copy.memory["reward"] == 2 * copy.reward.parameters + positions  # float16


def test_a_run_and_its_plan_refuse_a_models_name_with_a_revision_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rewards that are converted by their hub name take one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "huggyllama/llama-7b@main"
    config = letter_config(model=name, reward="letters:f")
    with pytest.raises(UserError, match=f"--model {name}: AutoConfig cannot load it"):
        make_plan(config, GPU)
    with pytest.raises(UserError, match=f"--model {name}: AutoModelForCausalLM cannot load it"):
        load_policy(config)
    settings, note = model_settings("Dahoas/gptj-rm-static@676bfd4d", "--reward")
    assert (settings.model_type, "its files were not looked at" in note) == ("gptj", True)


@pytest.mark.parametrize(
    ("option", "name"), [("--model", "Dahoas/gptj-rm-static"), ("--reward", "huggyllama/llama-7b")]
)
def test_a_published_model_is_planned_in_its_own_place_only(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=f"{option} {name}: AutoConfig cannot load it"):
        model_settings(name, option)


def test_the_embedded_default_is_planned_once_it_is_prepared(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path))
    assert entry_point(align.main, ["--dry-run"]) == 0
    said = capsys.readouterr()
    assert "would prepare first" in said.err
    assert "No plan: --model, --prompts, --reward would be prepared first" in said.out
    world = prepare._folder(prepare.WorldSettings())
    assert not world.exists()
    for name, source in (("model", "model"), ("reward_model", "reward")):
        shutil.copytree(endless / source, world / name)
    rows = [{"prompt": "ab", "reference": "c"} for _ in range(500)]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert entry_point(align.main, ["--dry-run"]) == 0
    said = capsys.readouterr()
    assert "would prepare" not in said.err
    assert f"model: {world / 'model'}" in said.out
    assert "2 tokens on average" in said.out


def test_a_base_cut_over_processes_needs_its_share_and_what_is_put_together(in_letters: Path) -> None:
    """Of a model of two layers: what is whole, two eighths of a layer, and four layers."""
    policy = load_policy(letter_config())
    frozen = {name: p.nbytes for name, p in policy.base.named_parameters() if "lora_" not in name}
    layer = sum(size for name, size in frozen.items() if ".layers.0." in name)
    whole = sum(frozen.values()) - 2 * layer
    assert sharding.planned_bytes(policy.base, 8) == whole + 2 * layer // 8 + 4 * layer


def test_a_plan_behind_a_launcher_is_of_one_of_its_processes(in_letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = letter_config(train_rows=4)
    alone = make_plan(config, GPU)
    monkeypatch.setattr(processes._team, "count", 8)
    assert make_plan(config, GPU).memory["base"] == alone.memory["base"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    cut = make_plan(config, GPU)
    assert cut.memory["base"] != alone.memory["base"]
    assert "8 processes share the run: memory is of each, its base cut" in describe(cut, "a100-80")

"""A base with a published LoRA adapter as the SFT model: the prior, the policy on it, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import save_model
from child_runs import comparable
from letter_world import LETTERS, REWARDS, letter_config
from llm import align, sample, sft_adapter
from llm.align import run
from llm.checkpoint import TrainerState, load_checkpoint, model_card, save_adapter, save_checkpoint
from llm.config import AlignConfig
from llm.console import entry_point
from llm.errors import UserError
from llm.logprob import score, sequence_log_probs
from llm.models import Policy, load_policy
from llm.records import Completion, Prompt
from llm.store import read_events
from llm.train import make_optimizer
from sft_artefacts import save_llama_base, save_qlora_adapter

MODES = ("copy", "stack", "merge")
QUANTIZED = [(mode, "none") for mode in MODES] + [("copy", "nf4"), ("stack", "nf4")]
PROMPT = Prompt("p", "", (1, 270, 13, 13, 280, 290, 261, 13, 13, 285), None)
PAIRS = [(PROMPT, Completion("p", i, (*ids, 2), "stop", "")) for i, ids in enumerate([(288, 275, 13), (266, 295)])]
BEST = {"step": 2, "win_rate": 0.5, "mean_reward": 1.25}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with llama/ and, for it, qlora/."""
    folder = tmp_path_factory.mktemp("artefacts")
    save_qlora_adapter(folder / "qlora", save_llama_base(folder / "llama"))
    return folder


@pytest.fixture
def here(artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current directory."""
    monkeypatch.chdir(artefacts)
    return artefacts


def sft_config(out: Path | str = "", **changes: Any) -> AlignConfig:
    """Settings of a small run from the SFT model."""
    return letter_config(out, **({"model": "llama", "sft_adapter": "qlora", "lora_targets": "all-linear"} | changes))


def scores(policy: Policy) -> torch.Tensor:
    return torch.tensor(score(policy, PAIRS, 2))


def prior_scores(policy: Policy) -> torch.Tensor:
    with policy.as_prior():
        return scores(policy)


def step(policy: Policy, config: AlignConfig) -> torch.optim.Optimizer:
    """Make one training step."""
    optimizer = make_optimizer(policy, config)
    (-sequence_log_probs(policy, PAIRS).mean()).backward()
    optimizer.step()
    return optimizer


def by_hand(weights: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """Score with W + scale·BA in the place of every adapted W, by a model without any adapter."""
    adapter = torch.load("qlora/adapter_model.bin", weights_only=True)
    for key in [key for key in adapter if "lora_A" in key]:
        name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        weights[name] = weights[name] + scale * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("llama")).float().eval()
    assert not model.load_state_dict(weights, strict=False).missing_keys
    return plainly(model)


@torch.no_grad()
def plainly(model: torch.nn.Module) -> torch.Tensor:
    """Score with a model of transformers or peft and nothing of ours."""
    sums = []
    for prompt, completion in PAIRS:
        ids = torch.tensor([*prompt.token_ids, *completion.token_ids])
        tokens = torch.log_softmax(model(ids[None]).logits[0], -1)[:-1].gather(-1, ids[1:, None])[:, 0]
        sums.append(tokens[len(prompt.token_ids) - 1 :].sum().item())
    return torch.tensor(sums)


def base_weights() -> dict[str, torch.Tensor]:
    """The raw base's weights in float32."""
    return {name: t.float() for file in Path("llama").glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize(("mode", "quantization"), QUANTIZED)
def test_the_policy_begins_as_the_prior_which_is_the_sft_model_and_not_the_base(
    mode: str, quantization: str, here: Path
) -> None:
    policy = load_policy(sft_config(sft_mode=mode, quantization=quantization))
    weights = base_weights()
    if quantization == "nf4":
        for name, module in load_policy(letter_config(model="llama", quantization="nf4")).base.named_modules():
            if hasattr(module, "base_layer"):
                weights[f"{name}.weight"] = dequantize_4bit(
                    module.base_layer.weight, module.base_layer.weight.quant_state
                )
    assert prior_scores(policy).tolist() == pytest.approx(scores(policy).tolist(), abs=1e-6)
    assert scores(policy).tolist() == pytest.approx(by_hand(dict(weights), 16 / 64).tolist(), abs=2e-5)
    assert (scores(policy) - by_hand(dict(weights), 0.0)).abs().min() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_in_half_precision_the_adapters_stay_in_float32_and_the_policy_begins_as_the_prior(
    mode: str, here: Path
) -> None:
    policy = load_policy(sft_config(sft_mode=mode, dtype="bfloat16"))
    assert {p.dtype for name, p in policy.model.named_parameters() if "lora_" in name} == {torch.float32}
    assert torch.equal(prior_scores(policy), scores(policy))


@pytest.mark.parametrize(("mode", "quantization"), QUANTIZED)
def test_a_training_step_moves_the_policy_and_not_the_prior(mode: str, quantization: str, here: Path) -> None:
    config = sft_config(sft_mode=mode, quantization=quantization)
    policy = load_policy(config)
    before = prior_scores(policy)
    step(policy, config)
    assert torch.equal(prior_scores(policy), before)
    assert (scores(policy) - before).min() > 0.01


@pytest.mark.parametrize(("mode", "quantization"), QUANTIZED)
def test_exactly_the_policys_adapter_is_trainable_and_gets_gradients_whatever_the_prior_was_asked(
    mode: str, quantization: str, here: Path
) -> None:
    policy = load_policy(sft_config(sft_mode=mode, quantization=quantization))
    own = {name for name, _ in policy.model.named_parameters() if ".default." in name}
    assert len(own) == 2 * 7 * 2 == len(policy.parameters()) == len(policy.adapter_state())

    def trainable() -> set[str]:
        return {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}

    assert trainable() == own
    loss = sequence_log_probs(policy, PAIRS).sum()
    with policy.as_prior():
        assert trainable() == own
        assert not sequence_log_probs(policy, PAIRS).requires_grad
    assert trainable() == own
    loss.backward()
    moved = {name for name, p in policy.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == (own if mode == "copy" else {name for name in own if "lora_B" in name})
    assert not any(module.training for module in policy.model.modules())


@pytest.mark.parametrize("mode", MODES)
def test_the_prior_is_never_the_bare_base_and_ends_with_its_context_however_it_ends(mode: str, here: Path) -> None:
    policy = load_policy(sft_config(sft_mode=mode))
    layers = [module for module in policy.model.modules() if isinstance(module, BaseTunerLayer)]

    def active() -> set[tuple[str, ...]]:
        assert not any(layer.disable_adapters for layer in layers)
        return {tuple(layer.active_adapters) for layer in layers}

    before = active()
    assert before == {"copy": {("default",)}, "stack": {("sft", "default")}, "merge": {("default",)}}[mode]
    prior = {()} if mode == "merge" else {("sft",)}
    with policy.as_prior():
        assert active() == prior
        with policy.as_prior():
            assert active() == prior
        assert active() == prior
    with pytest.raises(KeyboardInterrupt), policy.as_prior():
        raise KeyboardInterrupt
    assert active() == before


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_shared_by_its_completions_changes_nothing(mode: str, here: Path) -> None:
    shared, plain = (load_policy(sft_config(sft_mode=mode, engine=engine)) for engine in ("shared-prefix", "plain"))
    for policy in (shared, plain):
        step(policy, sft_config())
    assert shared.shares_prompts
    assert scores(shared).tolist() == pytest.approx(scores(plain).tolist(), abs=1e-4)
    assert prior_scores(shared).tolist() == pytest.approx(prior_scores(plain).tolist(), abs=1e-4)


def test_a_copy_has_the_published_matrices_and_settings_without_dropout(here: Path) -> None:
    policy = load_policy(sft_config())
    published = torch.load("qlora/adapter_model.bin", weights_only=True)
    assert all(torch.equal(tensor, published[name]) for name, tensor in policy.adapter_state().items())
    settings = policy.model.peft_config["default"]
    assert (settings.r, settings.lora_alpha, len(settings.target_modules)) == (64, 16, 7)
    assert settings.lora_dropout == 0.0
    assert settings.base_model_name_or_path == "llama"


def test_a_stacked_adapter_has_settings_of_its_own_and_starts_from_the_seed(here: Path) -> None:
    config = sft_config(sft_mode="stack", lora_r=4, lora_targets="q_proj,v_proj")
    first, again = load_policy(config).adapter_state(), load_policy(config).adapter_state()
    assert {tuple(tensor.shape) for name, tensor in first.items() if "lora_A" in name} == {(4, 64)}
    assert {name.split(".")[-3] for name in first} == {"q_proj", "v_proj"}
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_restores_the_policy_beside_its_prior(mode: str, here: Path, tmp_path: Path) -> None:
    config = sft_config(sft_mode=mode)
    policy = load_policy(config)
    state = TrainerState(1, BEST, 0)
    save_checkpoint(tmp_path, policy, step(policy, config), state)
    fresh = load_policy(config)
    assert fresh.identity == policy.identity
    optimizer = make_optimizer(fresh, config)
    assert load_checkpoint(tmp_path, fresh, optimizer) == state
    assert torch.equal(scores(fresh), scores(policy))
    assert torch.equal(prior_scores(fresh), prior_scores(policy))
    assert len(optimizer.state) == len(policy.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_the_lines_of_the_model_card_load_the_aligned_model(mode: str, here: Path, tmp_path: Path) -> None:
    config = sft_config(sft_mode=mode)
    policy = load_policy(config)
    step(policy, config)
    save_adapter(tmp_path, policy, model_card(config, BEST))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "SFT adapter: `qlora`" in card
    lines = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(tmp_path / "adapter"))
    found: dict[str, Any] = {}
    exec(lines, found)
    assert plainly(found["model"].eval()).tolist() == pytest.approx(scores(policy).tolist(), abs=2e-5)


def test_the_identity_covers_the_adapters_files_the_mode_and_the_tokenizer(here: Path, tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        return load_policy(sft_config(**changes)).identity

    first = identity()
    shutil.copytree("qlora", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("another")
    assert identity(sft_adapter=str(tmp_path / "elsewhere")) == first
    save_qlora_adapter(tmp_path / "other", Path("llama"), lora_alpha=32)
    changes = [
        {"sft_adapter": ""},
        {"sft_adapter": str(tmp_path / "other")},
        {"sft_mode": "stack"},
        {"sft_mode": "merge"},
    ]
    assert len({first, identity(tokenizer="llama"), *(identity(**change) for change in changes)}) == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_r": 16}, r"--lora-r 16: with --sft-mode copy .*qlora, which has r 64, alpha 16 and targets down_proj,"),
        ({"lora_alpha": 8}, "--lora-alpha 8: with --sft-mode copy"),
        ({"lora_targets": "q_proj"}, "--lora-targets q_proj: with --sft-mode copy"),
        ({"sft_mode": "merge", "quantization": "nf4"}, "--sft-mode merge: with --quantization nf4 .* copy or stack"),
        ({"sft_mode": "stack", "sft_adapter": ""}, "--sft-mode stack: there is no --sft-adapter"),
        ({"sft_adapter": "llama"}, "--sft-adapter llama: is no LoRA adapter.* --model"),
        ({"sft_adapter": "nobody/nothing"}, "--sft-adapter nobody/nothing: no such directory; as a hub name it could"),
        ({"sft_adapter": "", "model": "qlora"}, "--model qlora: is an adapter.*--sft-adapter qlora"),
    ],
)
def test_settings_that_cannot_be_heeded_are_refused(changes: dict[str, Any], expected: str, here: Path) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load_policy(sft_config(**changes))
    assert "\n" not in str(caught.value)


def test_settings_that_are_the_adapters_own_are_accepted_with_a_copy(here: Path) -> None:
    targets = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    load_policy(sft_config(lora_r=64, lora_alpha=16, lora_targets=targets))


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({KEY: None}, f"does not fit --model llama .missing: {KEY}"),
        ({KEY: torch.zeros(64, 65)}, rf"does not fit .*of shape \(64, 65\) where the model needs \(64, 64\): {KEY}"),
        ({KEY.replace("0", "7"): torch.zeros(1)}, "does not fit .*no place in the model for base_model.*layers.7"),
    ],
)
def test_an_adapter_whose_tensors_are_not_the_bases_is_refused(
    weights: dict[str, torch.Tensor | None], expected: str, here: Path, tmp_path: Path
) -> None:
    shutil.copytree("qlora", tmp_path / "bad")
    stored = torch.load("qlora/adapter_model.bin", weights_only=True) | weights
    torch.save({key: value for key, value in stored.items() if value is not None}, tmp_path / "bad/adapter_model.bin")
    for mode in ("copy", "stack"):
        with pytest.raises(UserError, match=expected):
            load_policy(sft_config(sft_adapter=str(tmp_path / "bad"), sft_mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_of_another_kind_of_base_is_refused(mode: str, here: Path, tmp_path: Path) -> None:
    base = save_model(tmp_path / "neox", "gpt_neox")
    with pytest.raises(
        UserError, match=r"--sft-adapter qlora: does not fit --model .*neox \(Target modules.*not found"
    ):
        load_policy(sft_config(model=str(base), sft_mode=mode))


def saved_list() -> bytes:
    """What torch.save writes of a list of tensors."""
    buffer = io.BytesIO()
    torch.save([torch.zeros(2)], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("adapter_config.json", None, "is no LoRA adapter, which has adapter_config.json"),
        ("adapter_config.json", b"{", "adapter_config.json: not an adapter's settings"),
        ("adapter_config.json", b"{}", "adapter_config.json: peft_type is not stated; only LORA"),
        ("adapter_config.json", b'{"peft_type": "IA3"}', "adapter_config.json: peft_type is IA3; only LORA"),
        ("adapter_model.bin", None, "is no LoRA adapter, which has .*adapter_model.bin"),
        ("adapter_model.bin", b"PK\x03\x04 and then nothing", "adapter_model.bin: damaged, or not a file of tensors"),
        ("adapter_model.bin", b"cos\nsystem\n(S'touch pwned'\ntR.", "adapter_model.bin: damaged, or not a file of"),
        ("adapter_model.bin", saved_list(), "adapter_model.bin: does not hold tensors by name"),
        ("adapter_model.safetensors", b"\x08\x00", "adapter_model.safetensors: damaged, or not a file of tensors"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_refused(
    file: str, content: bytes | None, expected: str, here: Path, tmp_path: Path
) -> None:
    shutil.copytree("qlora", tmp_path / "bad")
    (tmp_path / "bad" / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "bad" / file).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_policy(sft_config(sft_adapter=str(tmp_path / "bad")))
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "setting",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}],
)
def test_an_adapter_that_is_more_than_two_matrices_a_layer_is_refused(
    setting: dict[str, Any], here: Path, tmp_path: Path
) -> None:
    save_qlora_adapter(tmp_path / "bad", Path("llama"), **setting)
    name, value = next(iter(setting.items()))
    with pytest.raises(UserError, match=rf"is more than plain LoRA matrices \({name}: "):
        load_policy(sft_config(sft_adapter=str(tmp_path / "bad")))
    assert value


def test_an_adapter_in_the_layout_of_today_is_read_as_well(here: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained("llama")
    peft.PeftModel.from_pretrained(base, "qlora").save_pretrained(tmp_path / "today", save_embedding_layers=False)
    assert (tmp_path / "today" / "adapter_model.safetensors").is_file()
    policy = load_policy(sft_config(sft_adapter=str(tmp_path / "today")))
    assert torch.equal(scores(policy), scores(load_policy(sft_config())))


def test_of_a_hub_name_only_the_adapters_files_are_fetched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, set(allow_patterns)))
        return "qlora"

    monkeypatch.setattr(sft_adapter, "snapshot_download", download)
    assert load_policy(sft_config(sft_adapter="someone/qlora")).identity == load_policy(sft_config()).identity
    assert asked == [("someone/qlora", {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})]


def test_a_run_from_an_sft_adapter_goes_on_after_an_interruption_and_can_be_sampled(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("llama", "qlora"):
        shutil.copytree(name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": letter}) + "\n" for letter in LETTERS))
    Path("letter_rewards.py").write_text(REWARDS)
    monkeypatch.setattr(align.report, "write", lambda folder: None)
    small = {"m": 3, "n": 2, "k": 2, "validation_count": 4, "test_count": 4, "checkpoint_every": 1}
    whole, cut = (sft_config(out, sft_mode="copy", **small) for out in ("whole", "cut"))
    summary = run(whole)
    assert summary["before"]["kl_to_prior"]["estimate"] == 0.0
    phases = [event for event in read_events(Path("whole/metrics.jsonl")) if event["event"] == "phase"]
    assert [abs(phase["kl_to_prior"]) < 1e-5 for phase in phases] == [True, False]
    with monkeypatch.context() as patch:
        patch.setattr(align, "checkpoint", interrupting(align.checkpoint, 4))
        with pytest.raises(KeyboardInterrupt):
            run(cut)
    run(cut, resume=True)
    assert comparable(Path("cut")) == comparable(Path("whole"))
    capsys.readouterr()
    assert entry_point(sample.main, ["whole"]) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) >= 7
    shutil.rmtree("qlora")
    save_qlora_adapter(Path("qlora"), Path("llama"), lora_alpha=8)
    assert entry_point(sample.main, ["whole"]) == 2
    assert "the model's files changed" in capsys.readouterr().err


def interrupting(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function that is interrupted when it is called for the count-th time."""
    calls = iter(range(1, 100))

    def trapped(*args: Any) -> Any:
        if next(calls) == count:
            raise KeyboardInterrupt
        return function(*args)

    return trapped

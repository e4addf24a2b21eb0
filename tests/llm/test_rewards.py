"""Rewards and plug-ins: what is called, what is refused, and that a batch changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from letter_world import letter_config
from llm import evaluate, groups, rewards
from llm.align import run
from llm.config import validate
from llm.errors import UserError
from llm.groups import Collector
from llm.models import Policy
from llm.plugins import load_callable
from llm.records import Prompt
from llm.rewards import (
    HeldReward,
    ReferenceSubtracted,
    load_classifier,
    load_reward,
    models_of,
    on_device,
    precision,
    reward_input,
    rewards_of,
)
from llm.store import ShardFolder
from llm.tiny.world import build_tokenizer
from llm.train import group_coefficients, make_objective

CHAT_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
PROMPTS = ["POST: It was in Oslo.", "Why?", "A much longer prompt that says a thing or two about coffee."]
COMPLETIONS = [" in Paris", "", " and so on and on"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def llama_config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**(sizes | {"vocab_size": len(build_tokenizer()), "max_position_embeddings": 64} | changes))


def save_reward_model(folder: Path, tokenizer: Any = None, **changes: Any) -> str:
    torch.manual_seed(0)
    tokenizer = tokenizer or build_tokenizer()
    config = llama_config(**({"num_labels": 1, "pad_token_id": tokenizer.pad_token_id} | changes))
    config.initializer_range = 0.3
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_module(name: str, text: str) -> None:
    Path(f"{name}.py").write_text(text)


def test_a_function_reward_is_called_on_the_lists_and_gives_float64() -> None:
    write_module(
        "rewards_a", "def f(prompts, completions):\n    return [len(p) - len(c) for p, c in zip(prompts, completions)]"
    )
    reward = load_reward("rewards_a:f", device="cpu", batch_size=1)
    values = reward(("ab", "c"), ("d", "efg"))
    assert values.dtype == np.float64
    assert values.tolist() == [1.0, -2.0]
    assert reward.name == "rewards_a:f"


@pytest.mark.parametrize(
    "kind", ["numpy.array([1.5, 2])", "torch.tensor([1.5, 2])", "torch.tensor([1.5, 2]).bfloat16()"]
)
def test_arrays_and_tensors_are_as_good_as_lists(kind: str) -> None:
    write_module("rewards_b", f"import numpy, torch\ndef f(p, c):\n    return {kind}")
    assert load_reward("rewards_b:f", device="cpu", batch_size=1)(["x", "y"], ["1", "2"]).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    "returned, message",
    [
        ("[1.0, float('nan')]", "row 1: returned nan"),
        ("[float('inf'), 0]", "row 0: returned inf"),
        ("[0, float('-inf')]", "row 1: returned -inf"),
        ("[0, '3']", "row 1: returned '3', which is not a number"),
        ("[0, None]", "row 1: returned None"),
        ("[[0.0], [1.0]]", r"row 0: returned \[0.0\]"),
        ("[0, 1j]", "row 1"),
        ("[1]", "returned 1 values for 2"),
        ("3.0", "returned float"),
        ("None", "returned NoneType"),
    ],
)
def test_a_bad_result_is_refused_with_the_reward_the_row_and_the_value(returned: str, message: str) -> None:
    write_module("rewards_c", f"def f(p, c):\n    return {returned}")
    with pytest.raises(UserError, match=message) as caught:
        load_reward("rewards_c:f", device="cpu", batch_size=1)(["x", "y"], ["1", "2"])
    assert "rewards_c:f" in str(caught.value)


def test_an_exception_in_a_users_reward_is_told_with_its_place() -> None:
    write_module("rewards_d", "def f(p, c):\n    x = 1\n    return x / 0")
    with pytest.raises(UserError, match=r"ZeroDivisionError.*rewards_d.py, line 3"):
        load_reward("rewards_d:f", device="cpu", batch_size=1)(["x"], ["y"])


def test_the_fingerprint_of_a_function_changes_with_its_source() -> None:
    write_module("rewards_e", "def f(p, c):\n    return [0.0]")
    reward = load_reward("rewards_e:f", device="cpu", batch_size=1)
    before = reward.fingerprint()
    assert before == load_reward("rewards_e:f", device="cpu", batch_size=1).fingerprint()
    write_module("rewards_e", "def f(p, c):\n    return [1.0]")
    assert reward.fingerprint() != before


@pytest.mark.parametrize(
    "spec, message",
    [
        ("rewards", "expected package.module:function"),
        (":f", "expected package.module:function"),
        ("rewards:", "expected package.module:function"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("llm.nothing_here:f", "no module 'llm.nothing_here'"),
        ("json:no_such_function", "has no 'no_such_function'"),
        ("sys:path", "of type list, which cannot be called"),
        ("broken_import:f", "importing broken_import failed with ModuleNotFoundError: No module named 'gone'"),
        ("broken_syntax:f", "importing broken_syntax failed with SyntaxError"),
        ("broken_value:f", "importing broken_value failed with ValueError: at the top"),
    ],
)
def test_a_function_that_cannot_be_had_is_told_as_what_it_is(spec: str, message: str) -> None:
    write_module("broken_import", "import gone")
    write_module("broken_syntax", "def f(:")
    write_module("broken_value", "raise ValueError('at the top')")
    with pytest.raises(UserError, match=message) as caught:
        load_callable(spec, option="--judge")
    assert f"--judge {spec}" in str(caught.value)


def test_a_module_of_a_package_in_the_current_directory_is_found() -> None:
    Path("mine").mkdir()
    write_module("mine/rewards", "class Box:\n    @staticmethod\n    def f():\n        return 7")
    assert load_callable("mine.rewards:Box.f", option="--reward")() == 7


def test_a_model_reward_does_not_depend_on_the_batch(here: Path) -> None:
    path = save_reward_model(here / "rm")
    alone = load_reward(path, device="cpu", batch_size=1)(PROMPTS, COMPLETIONS)
    together = load_reward(path, device="cpu", batch_size=8)(PROMPTS, COMPLETIONS)
    backwards = load_reward(path, device="cpu", batch_size=2)(PROMPTS[::-1], COMPLETIONS[::-1])[::-1]
    assert np.ptp(alone) > 0.01
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(backwards, alone, atol=1e-5)


def test_a_model_reward_is_the_score_at_the_end_token_after_prompt_and_completion(here: Path) -> None:
    path = save_reward_model(here / "rm")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = LlamaForSequenceClassification.from_pretrained(path).eval()
    ids = [*tokenizer.encode(PROMPTS[0] + COMPLETIONS[0]), tokenizer.eos_token_id]
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        expected = model.score(hidden)[0, -1, 0].item()
    assert load_reward(path, device="cpu", batch_size=4)(PROMPTS[:1], COMPLETIONS[:1])[0] == pytest.approx(
        expected, abs=1e-5
    )


def test_a_chat_goes_through_the_template_with_the_completion_as_the_answer(here: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    path = save_reward_model(here / "rm", tokenizer)
    chat = [{"role": "user", "content": "It was in Oslo."}]
    ids = reward_input(tokenizer, chat, "in Paris", where="here")
    assert tokenizer.decode(ids) == "[user] It was in Oslo.\n[assistant] in Paris\n"
    assert chat == [{"role": "user", "content": "It was in Oslo."}]
    assert np.isfinite(load_reward(path, device="cpu", batch_size=2)([chat], ["in Paris"])).all()


def test_a_chat_without_a_template_is_refused(here: Path) -> None:
    reward = load_reward(save_reward_model(here / "rm"), device="cpu", batch_size=2)
    with pytest.raises(UserError, match=r"row 1.*no chat template"):
        reward(["text", [{"role": "user", "content": "hi"}]], ["a", "b"])


def test_text_longer_than_the_context_is_refused_and_never_cut(here: Path) -> None:
    reward = load_reward(save_reward_model(here / "rm"), device="cpu", batch_size=2)
    fits = "." * 60
    assert np.isfinite(reward([fits], ["..."])).all()
    with pytest.raises(UserError, match=r"row 1: .* 65 tokens long.* 64"):
        reward(["short", fits], ["", "...."])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_without_a_padding_token_the_end_token_pads(here: Path, batch_size: int) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    path = save_reward_model(here / "rm", tokenizer, pad_token_id=None)
    model, loaded = load_classifier(path)
    assert loaded.pad_token_id == loaded.eos_token_id == model.config.pad_token_id
    values = load_reward(path, device="cpu", batch_size=batch_size)(PROMPTS, COMPLETIONS)
    assert np.ptp(values) > 0.01
    alone = [
        load_reward(path, device="cpu", batch_size=1)([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    np.testing.assert_allclose(values, alone, atol=1e-5)


def test_a_tokenizer_with_neither_padding_nor_end_token_is_refused(here: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a padding nor an end token"):
        load_reward(save_reward_model(here / "rm", tokenizer, pad_token_id=None), device="cpu", batch_size=2)


def test_a_model_with_several_outputs_is_refused(here: Path) -> None:
    with pytest.raises(UserError, match="3 outputs"):
        load_reward(save_reward_model(here / "rm", num_labels=3), device="cpu", batch_size=2)


def test_a_language_model_is_refused_as_a_reward_model(here: Path) -> None:
    LlamaForCausalLM(llama_config()).save_pretrained(here / "lm")
    build_tokenizer().save_pretrained(here / "lm")
    with pytest.raises(UserError, match=r"no trained reward model.*score\.weight"):
        load_reward(str(here / "lm"), device="cpu", batch_size=2)


def test_a_folder_that_holds_no_model_is_refused(here: Path) -> None:
    (here / "empty").mkdir()
    for path in (str(here / "empty"), str(here / "missing")):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_reward(path, device="cpu", batch_size=2)


def test_infinite_scores_of_a_model_are_refused(here: Path) -> None:
    path = save_reward_model(here / "rm")
    model = LlamaForSequenceClassification.from_pretrained(path)
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(path)
    with pytest.raises(UserError, match="row 0: returned nan"):
        load_reward(path, device="cpu", batch_size=2)(["a"], ["b"])


def test_the_fingerprint_of_a_model_changes_with_its_files_only(here: Path) -> None:
    path = save_reward_model(here / "rm")
    before = load_reward(path, device="cpu", batch_size=1).fingerprint()
    assert before == load_reward(path, device="cpu", batch_size=8).fingerprint()
    model = LlamaForSequenceClassification.from_pretrained(path)
    model.score.weight.data[0, 0] += 1e-3
    model.save_pretrained(path)
    assert load_reward(path, device="cpu", batch_size=1).fingerprint() != before


LENGTHS = (
    "CALLS = []\ndef f(p, c):\n    CALLS.extend(zip(p, c))\n    return [len(a) + len(b) ** 1.5 for a, b in zip(p, c)]"
)
"""A reward of prompt and completion that keeps what it was asked."""


def pairs_of(*rows: tuple[str, Any, str, str | None]) -> list[tuple[Prompt, str]]:
    """Prompts by their ids, texts and references, each with a completion."""
    return [(Prompt(name, text, (0,), reference), completion) for name, text, completion, reference in rows]


def test_a_reward_minus_the_references_is_zero_for_the_reference_itself() -> None:
    write_module("rewards_f", LENGTHS)
    reward = ReferenceSubtracted(load_reward("rewards_f:f", device="cpu", batch_size=1))
    rows = [("t-1", "ab", "d", "efgh"), ("t-1", "ab", "efgh", "efgh"), ("t-2", "c", "ij", "k"), ("t-3", "c", "ij", "")]
    assert rewards_of(reward, pairs_of(*rows)).tolist() == [1 - 4**1.5, 0, 2**1.5 - 1, 2**1.5]


def test_a_text_is_rewarded_once_however_often_a_prompt_has_it() -> None:
    write_module("rewards_g", LENGTHS)
    reward = ReferenceSubtracted(load_reward("rewards_g:f", device="cpu", batch_size=1))
    chat = [{"role": "user", "content": "c"}]
    rows = [("t-1", "a", "1", "x"), ("t-1", "a", "1", "x"), ("t-2", chat, "1", "x"), ("t-1", "a", "x", "x")]
    assert rewards_of(reward, pairs_of(*rows)).tolist() == [0, 0, 0, 0]
    asked = sys.modules["rewards_g"].CALLS
    assert asked == [("a", "x"), (chat, "x"), ("a", "1"), (chat, "1")]


def test_a_prompt_without_a_reference_to_subtract_is_refused_with_its_row() -> None:
    write_module("rewards_j", LENGTHS)
    reward = ReferenceSubtracted(load_reward("rewards_j:f", device="cpu", batch_size=1))
    with pytest.raises(UserError, match="train prompts, row 17: has no reference"):
        rewards_of(reward, pairs_of(("train-16", "a", "1", "x"), ("train-17", "a", "1", None)))


def test_subtracting_the_references_leaves_the_bradley_terry_coefficients_of_a_run_alone(
    policy: Policy, tmp_path: Path
) -> None:
    """A group's rewards move by one constant, which cancels in α̂; with logistic goodness it would not."""
    config = letter_config(tmp_path)
    write_module("rewards_h", LENGTHS)
    reward = load_reward("rewards_h:f", device="cpu", batch_size=1)
    prompts = [
        Prompt(f"train-{i}", t, tuple(policy.tokenizer(t)["input_ids"]), "bb"[:i]) for i, t in enumerate("abcdef")
    ]
    found = [
        Collector(policy, r, config, tmp_path / r.name[-3:], "f" * 64).collect(0, prompts, lambda done: None)
        for r in (reward, ReferenceSubtracted(reward))
    ]
    shifts = np.stack([one.reward - other.reward for one, other in zip(*found, strict=True)])
    assert np.abs(shifts).min() > 0.1
    assert np.ptp(shifts, axis=1).max() < 1e-12
    log_policy = torch.from_numpy(np.concatenate([group.log_proposal for group in found[0]])) - 0.5
    for goodness, temperature, same in (
        ("bradley_terry", 1.0, True),
        ("bradley_terry", 0.3, True),
        ("logistic", 1.0, False),
    ):
        objective = make_objective(letter_config(goodness=goodness, temperature=temperature))
        one, other = (group_coefficients(collected, log_policy, objective)[0] for collected in found)
        assert one.abs().max() > 0.01
        assert ((one - other).abs().max() < 1e-12) == same


def test_a_run_minus_the_references_is_the_run_itself_but_for_the_rewards(in_letters: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"reference": "aab"} for line in (in_letters / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"prompts": str(tmp_path / "p.jsonl"), "e": 1, "k": 2, "validation_count": 4}
    outs = [tmp_path / baseline for baseline in ("none", "reference")]
    plain, subtracted = (run(letter_config(out, reward_baseline=out.name, **changes)) for out in outs)
    own, rows = (ShardFolder(out / "eval").read("references") for out in outs)
    assert {row["reward"] for row in own} == {2.0}
    assert {row["reward"] for row in rows} == {0.0}
    for when in ("before", "after"):
        rows, others = (ShardFolder(out / "eval").read(when) for out in outs)
        assert [row["reward"] - 2 for row in rows] == [row["reward"] for row in others]
        assert plain[when]["reward_model_win_rate"] == subtracted[when]["reward_model_win_rate"]
    adapters = [load_file(out / "checkpoints" / "last" / "adapter.safetensors") for out in outs]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=0, atol=1e-6)
    again = run(letter_config(outs[1], reward_baseline="reference", reward_rows=7, **changes), resume=True)
    assert again["after"] == subtracted["after"]
    with pytest.raises(UserError, match="reward"):
        run(letter_config(outs[1], reward_baseline="none", **changes), resume=True)


@pytest.mark.parametrize("goodness", ["logistic", "letter_rewards:tempered"])
def test_another_goodness_than_bradley_terry_is_refused_with_a_baseline(in_letters: Path, goodness: str) -> None:
    with pytest.raises(UserError, match="--reward-baseline reference: only with --goodness bradley_terry"):
        validate(letter_config(goodness=goodness, temperature=1.0, reward_baseline="reference"))


def test_a_run_whose_training_rows_lack_references_is_refused_before_anything_is_written(
    in_letters: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (in_letters / "prompts.jsonl").read_text().splitlines()]
    for row in rows[:40]:
        del row["reference"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"train prompts, row \d+: has no reference.*--reward-baseline none"):
        run(letter_config(tmp_path / "run", prompts=str(tmp_path / "p.jsonl"), reward_baseline="reference"))
    assert not (tmp_path / "run").exists()


def test_the_fingerprint_of_a_reward_minus_the_references_is_its_own() -> None:
    write_module("rewards_i", LENGTHS)
    reward = load_reward("rewards_i:f", device="cpu", batch_size=1)
    before = ReferenceSubtracted(reward).fingerprint()
    assert before != reward.fingerprint()
    write_module("rewards_i", LENGTHS + "\n")
    assert ReferenceSubtracted(reward).fingerprint() != before


# Where the model lies, and in what precision it computes.


def tensors_of(reward: HeldReward) -> list[torch.Tensor]:
    return [*reward.model.parameters(), *reward.model.buffers()]


def test_a_model_lies_on_its_device_only_while_it_is_asked(here: Path) -> None:
    """`meta` stands for a GPU: a device that is not the computer's memory."""
    path = save_reward_model(here / "rm", tie_word_embeddings=True)
    reward = load_reward(path, device="meta", batch_size=2)
    assert isinstance(reward, HeldReward)
    layer = reward.model.model.layers[0].self_attn
    layer.k_proj.weight = layer.q_proj.weight  # tied
    own = tensors_of(reward)
    assert {tensor.device.type for tensor in own} == {"cpu"}
    for shown in (reward, ReferenceSubtracted(reward)):
        with on_device(shown):
            with on_device(shown):
                pass
            assert {tensor.device.type for tensor in tensors_of(reward)} == {"meta"}
            assert layer.k_proj.weight is layer.q_proj.weight
            assert not any(parameter.requires_grad for parameter in reward.model.parameters())
        assert all(now is before for now, before in zip(tensors_of(reward), own, strict=True))
    with pytest.raises(RuntimeError, match="meta"):  # which has no data to score
        reward(PROMPTS, COMPLETIONS)
    assert all(now is before for now, before in zip(tensors_of(reward), own, strict=True))


def test_on_the_cpu_and_for_a_function_nothing_moves(here: Path) -> None:
    write_module("rewards_k", LENGTHS)
    for spec in (save_reward_model(here / "rm"), "rewards_k:f"):
        reward = load_reward(spec, device="cpu", batch_size=2)
        own = [tensor for model in models_of(reward) for tensor in model.parameters()]
        with on_device(reward):
            held = [tensor for model in models_of(reward) for tensor in model.parameters()]
            assert all(now is before for now, before in zip(held, own, strict=True))
        assert bool(own) == (spec != "rewards_k:f")


@pytest.mark.parametrize("place", ["_copied", "score"])
def test_memory_that_runs_out_while_rewarding_names_the_setting_to_lower(
    here: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*arguments: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    reward = load_reward(
        save_reward_model(here / "rm"), device={"_copied": "meta", "score": "cpu"}[place], batch_size=7
    )
    monkeypatch.setattr(rewards, place, full)
    with pytest.raises(
        UserError, match=r"Out of memory while rewarding with .*rm .*Lower --reward-rows 7, or .*-dtype"
    ):
        reward(PROMPTS, COMPLETIONS)
    assert {tensor.device.type for tensor in tensors_of(reward)} == {"cpu"}


def save_in(folder: Path, dtype: torch.dtype) -> str:
    path = save_reward_model(folder)
    LlamaForSequenceClassification.from_pretrained(path).to(dtype).save_pretrained(path)
    return path


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_precision_is_the_files_or_the_one_asked_for(here: Path, stored: torch.dtype) -> None:
    settings = AutoConfig.from_pretrained(save_in(here / "rm", stored))
    assert precision(settings, "auto", "cuda:1") == stored
    assert precision(settings, "auto", "cpu") == torch.float32
    for asked, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        assert precision(settings, asked, "cuda") == precision(settings, asked, "cpu") == expected


def test_a_model_is_loaded_in_the_precision_of_its_files_which_the_fingerprint_tells(here: Path) -> None:
    path = save_in(here / "rm", torch.bfloat16)
    loaded = {
        (device, dtype): load_reward(path, device=device, batch_size=2, dtype=dtype)
        for device, dtype in (("meta", "auto"), ("cpu", "auto"), ("cpu", "bfloat16"), ("cpu", "float32"))
    }
    kinds = {key: reward.model.dtype for key, reward in loaded.items()}
    assert kinds["meta", "auto"] == kinds["cpu", "bfloat16"] == torch.bfloat16
    assert kinds["cpu", "auto"] == kinds["cpu", "float32"] == torch.float32
    prints = {key: reward.fingerprint() for key, reward in loaded.items()}
    assert prints["meta", "auto"] == prints["cpu", "bfloat16"] != prints["cpu", "auto"] == prints["cpu", "float32"]


def test_a_model_whose_configuration_says_nothing_computes_in_float32(here: Path) -> None:
    path = save_in(here / "rm", torch.bfloat16)
    settings = json.loads((here / "rm" / "config.json").read_text())
    del settings["dtype"]
    (here / "rm" / "config.json").write_text(json.dumps(settings))
    assert load_reward(path, device="meta", batch_size=2).model.dtype == torch.float32


def test_the_last_product_of_a_half_precision_model_is_taken_in_float32(here: Path) -> None:
    reward = load_reward(save_in(here / "rm", torch.bfloat16), device="cpu", batch_size=2, dtype="bfloat16")
    assert isinstance(reward, HeldReward)
    seen = []
    reward.model.model.register_forward_hook(lambda _, inputs, output: seen.append(output.last_hidden_state[0, -1]))
    (value,) = reward(PROMPTS[:1], COMPLETIONS[:1])
    assert seen[0].dtype == torch.bfloat16
    exact = (seen[0].double() @ reward.model.score.weight[0].double()).item()
    assert value == pytest.approx(exact, rel=1e-6)
    assert value != float(torch.tensor(exact).bfloat16())


class Watched(HeldReward):
    """Says whether it lies on its device."""

    rows = _scores = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__("watched", torch.nn.Linear(1, 1), None, device="cpu", batch_size=1)
        self.is_there, self.entered = False, 0

    @contextmanager
    def on_device(self) -> Iterator[None]:
        self.is_there, self.entered = True, self.entered + 1
        yield
        self.is_there = False

    def __call__(self, prompts: Any, completions: Any) -> np.ndarray:
        assert self.is_there
        return np.zeros(len(completions))


def test_rollouts_and_evaluations_take_a_model_to_its_device_once_each_after_all_sampling(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, config = Watched(), letter_config(tmp_path, sample_rows=4)
    prompts = [Prompt(f"train-{i}", t, tuple(policy.tokenizer(t)["input_ids"]), "b") for i, t in enumerate("abcdef")]
    sampled = []
    for module in (groups, evaluate):
        sample = module.sample_groups
        monkeypatch.setattr(
            module, "sample_groups", lambda *a, s=sample, **k: (sampled.append(reward.is_there), s(*a, **k))[1]
        )
    Collector(policy, reward, config, tmp_path, "f" * 64).collect(0, prompts, lambda done: None)
    assert (sampled, reward.entered) == ([False] * 6, 1)
    evaluate.evaluate(policy, prompts, reward, dict.fromkeys([p.prompt_id for p in prompts], 0.0), config, "test")
    assert (sampled, reward.entered) == ([False] * 8, 2)

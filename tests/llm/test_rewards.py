"""Rewards and plug-ins: what is called, what is refused, and that a batch changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from brain_core import (
    bradley_terry_log_goodness,
    logistic_log_goodness,
    self_normalized_weights,
    target_log_ratio,
)
from llm.errors import UserError
from llm.plugins import load_callable
from llm.rewards import ReferenceSubtracted, load_classifier, load_reward, reward_input
from llm.tiny.world import build_tokenizer

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


def test_a_reward_minus_the_references_is_zero_for_the_reference_itself() -> None:
    write_module("rewards_f", LENGTHS)
    reward = load_reward("rewards_f:f", device="cpu", batch_size=1)
    values = ReferenceSubtracted(reward)(["ab", "ab", "c"], ["d", "efgh", "ij"], ["efgh", "efgh", "k"])
    assert values.tolist() == [1 - 4**1.5, 0, 2**1.5 - 1]


def test_a_reference_is_rewarded_once_however_many_completions_its_prompt_has() -> None:
    write_module("rewards_g", LENGTHS)
    reward = load_reward("rewards_g:f", device="cpu", batch_size=1)
    chat = [{"role": "user", "content": "c"}]
    ReferenceSubtracted(reward)(["a", "a", chat, chat, "a"], ["1", "2", "3", "4", "5"], ["x", "x", "x", "x", "y"])
    asked = sys.modules["rewards_g"].CALLS
    assert asked[:3] == [("a", "x"), (chat, "x"), ("a", "y")]
    assert len(asked) == 3 + 5


def test_subtracting_the_references_leaves_the_bradley_terry_weights_alone() -> None:
    """A group's rewards move by one constant, which cancels in α̂; with logistic goodness it would not."""
    write_module("rewards_h", LENGTHS)
    reward = load_reward("rewards_h:f", device="cpu", batch_size=1)
    prompts, references = ["ab"] * 3 + ["cdef"] * 3, ["x" * 5] * 3 + ["y"] * 3
    completions = ["1", "12", "123", "", "1234", "12"]
    plain = reward(prompts, completions).reshape(2, 3)
    subtracted = ReferenceSubtracted(reward)(prompts, completions, references).reshape(2, 3)
    log_prior, log_proposal = np.random.default_rng(0).normal(-20, 1, (2, 2, 3))

    def weights(log_goodness: np.ndarray) -> np.ndarray:
        return self_normalized_weights(target_log_ratio(log_prior, log_proposal, log_goodness))

    for temperature in (1.0, 0.3):
        before = weights(bradley_terry_log_goodness(plain, temperature=temperature))
        after = weights(bradley_terry_log_goodness(subtracted, temperature=temperature))
        np.testing.assert_allclose(after, before, rtol=1e-12)
    assert np.abs(weights(logistic_log_goodness(plain)) - weights(logistic_log_goodness(subtracted))).max() > 0.01


def test_the_fingerprint_of_a_reward_minus_the_references_is_its_own() -> None:
    write_module("rewards_i", LENGTHS)
    reward = load_reward("rewards_i:f", device="cpu", batch_size=1)
    before = ReferenceSubtracted(reward).fingerprint()
    assert before != reward.fingerprint()
    write_module("rewards_i", LENGTHS + "\n")
    assert ReferenceSubtracted(reward).fingerprint() != before

"""Reward models of other sizes and on noisy labels: what is trained, what is added, what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from letter_world import letter_config, letter_tokenizer, save_llama
from llm import reward_model
from llm.config import AlignConfig, validate
from llm.errors import UserError
from llm.experiments import reward_models
from llm.experiments.__main__ import world_fingerprint
from llm.experiments.noisy_reward import standard_normal
from llm.experiments.reward_models import (
    Change,
    Origin,
    flipped_pairs,
    measured,
    origin,
    sizes,
    with_reward,
    write_resized,
)
from llm.experiments.studies import study
from llm.reward_model import REPORT, RewardModelConfig, train_reward_model
from llm.rewards import load_reward

WORDS = ["aab", "ba", "abc", "cab", "bca", "aaa", "cc", "b"]
NOTES = ("accuracy of the reward", "its interval", "its parameters", "its seconds a group")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of three layers, pairs in which more a's are better, and a reward model of both."""
    folder = tmp_path_factory.mktemp("trained")
    save_llama(folder / "model", letter_tokenizer(), num_hidden_layers=3, hidden_size=8, intermediate_size=8)
    rng, rows = random.Random(0), []
    for _ in range(80):
        better, worse = sorted(rng.sample(WORDS, 2), key=lambda word: -word.count("a"))
        rows.append({"prompt": rng.choice("xyz"), "chosen": better, "rejected": worse})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_reward_model(
        RewardModelConfig(
            model=str(folder / "model"), data=str(folder / "pairs.jsonl"), out=str(folder / "reward"), device="cpu",
            batch=8, learning_rate=1e-2, held_out=0.2,
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def base(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlignConfig:
    """Settings of runs with that reward, and a cache of their own."""
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path / "cache"))
    return letter_config(model=str(trained / "model"), reward=str(trained / "reward"), n=4)


def many_pairs(count: int = 20_000) -> Origin:
    """An origin of which only the pairs matter."""
    pairs = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(count)]
    return Origin(Path(), RewardModelConfig(model="", data="", out="", held_out=0.1), pairs, 1)


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_training_labels_are_flipped_as_often_as_asked_and_held_out_ones_never(share: float) -> None:
    made_from = many_pairs()
    is_flipped = np.array([pair["chosen"] == "b" for pair in flipped_pairs(made_from, share)])
    held_out = made_from.held_out()
    assert len(held_out) == 2000
    assert not is_flipped[held_out].any()
    expected, error = 18_000 * share, np.sqrt(18_000 * share * (1 - share))
    assert abs(is_flipped.sum() - expected) < 4 * error


def test_what_a_smaller_share_flips_a_larger_one_flips_too() -> None:
    small, large = (flipped_pairs(many_pairs(1000), share) for share in (0.1, 0.4))
    assert all(b["chosen"] == "b" for a, b in zip(small, large, strict=True) if a["chosen"] == "b")


def test_a_share_of_nothing_flips_nothing() -> None:
    assert flipped_pairs(many_pairs(100), 0.0) == many_pairs(100).pairs


@pytest.mark.parametrize("count", [2, 7, 80])
def test_the_pairs_that_are_measured_are_those_that_training_held_out(base: AlignConfig, count: int) -> None:
    own = origin(base)
    made_from = dataclasses.replace(own, pairs=[{"prompt": str(i)} for i in range(count)])
    assert made_from.unseen() == reward_model._split(made_from.pairs, made_from.config)[1]


def test_what_is_measured_is_what_training_reported(base: AlignConfig) -> None:
    found = measured(load_reward(base.reward, device="cpu", batch_size=8), origin(base).unseen())
    assert found["accuracy"] == json.loads(Path(base.reward, REPORT).read_text())["accuracy"]
    assert found["accuracy"]["n"] == 16


def test_a_model_learns_from_the_labels_as_flipped_and_is_measured_by_the_true_ones(base: AlignConfig) -> None:
    notes = [dict(with_reward(origin(base), Change(flipped=share), base)[1]) for share in (0.0, 1.0)]
    right, wrong = (note["accuracy of the reward"] for note in notes)
    assert right > 0.8
    assert wrong < 0.2


def test_with_nothing_changed_the_reward_is_the_runs_own_and_of_its_world(base: AlignConfig) -> None:
    reward, notes = with_reward(origin(base), Change(), base)
    assert weights(reward) == weights(base.reward)
    assert world_fingerprint(dataclasses.replace(base, reward=reward)) == world_fingerprint(base)
    assert tuple(name for name, _ in notes) == NOTES


def test_training_again_with_nothing_changed_gives_the_runs_own_weights(base: AlignConfig, tmp_path: Path) -> None:
    """So its copy stands for a reward model that is trained as the others are."""
    made_from = origin(base)
    (tmp_path / "again").mkdir()
    reward_models._train(tmp_path / "again", made_from, made_from.layers, 0.0)
    assert weights(str(tmp_path / "again" / "model")) == weights(base.reward)


def test_a_reward_model_is_made_once_and_its_contents_do_not_depend_on_when(
    base: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_from, change = origin(base), Change(layers=1, flipped=0.2)
    first, notes = with_reward(made_from, change, base)
    world = world_fingerprint(dataclasses.replace(base, reward=first))
    with monkeypatch.context() as patched:
        patched.setattr(reward_models, "_make", None)
        assert with_reward(origin(base), change, base) == (first, notes)
    assert with_reward(made_from, dataclasses.replace(change, noise=1.0), base)[0].startswith("llm.experiments.noisy")
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path / "another cache"))
    second, _ = with_reward(made_from, change, base)
    assert second != first
    assert world_fingerprint(dataclasses.replace(base, reward=second)) == world


def test_every_change_has_a_folder_of_its_own(base: AlignConfig) -> None:
    made_from = origin(base)
    other = dataclasses.replace(made_from, pairs=made_from.pairs[:-1])
    asked = [(made_from, 3, 0.0), (made_from, 2, 0.0), (made_from, 3, 0.1), (made_from, 3, 0.2), (other, 3, 0.0)]
    assert len({reward_models._fingerprint(*each) for each in asked}) == 5


def test_an_interrupted_training_leaves_nothing(
    base: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    monkeypatch.setattr(reward_model, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with_reward(origin(base), Change(flipped=0.2), base)
    assert list((tmp_path / "cache").iterdir()) == []
    assert torch.get_num_threads() == threads


def test_sizes_are_thirds_of_the_reward_models_layers_and_have_as_many_parameters(base: AlignConfig) -> None:
    made_from = origin(base)
    assert sizes(made_from) == [1, 2, 3, 4]
    notes = [dict(with_reward(made_from, Change(layers=count), base)[1]) for count in (1, 3, 4)]
    layer = 8 * 8 * 2 + 2 * (8 * 4) + 3 * 8 * 8 + 2 * 8  # queries and output, keys and values of 2 heads, MLP, norms
    one, three, four = (note["its parameters"] for note in notes)
    assert (three - one, four - three) == (2 * layer, layer)
    assert all(note["its seconds a group"] > 0 for note in notes)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
    return found


def test_a_model_with_further_layers_begins_as_the_model_and_a_cut_one_does_not(trained: Path, tmp_path: Path) -> None:
    own = logits(trained / "model")
    for layers in (2, 4, 6):
        write_resized(str(trained / "model"), tmp_path / str(layers), layers)
    assert torch.equal(logits(tmp_path / "4"), own)
    assert torch.equal(logits(tmp_path / "6"), own)
    assert not torch.allclose(logits(tmp_path / "2"), own, atol=1e-3)


def test_a_further_layer_is_trained(base: AlignConfig) -> None:
    reward, _ = with_reward(origin(base), Change(layers=4), base)
    model = load_reward(reward, device="cpu", batch_size=8).model
    assert model.base_model.layers[3].mlp.down_proj.weight.abs().max() > 1e-3


def test_additive_noise_is_the_same_each_time_and_of_the_stated_spread(base: AlignConfig) -> None:
    made_from = origin(base)
    spec, _ = with_reward(made_from, Change(noise=2.0), base)
    clean, noisy = (load_reward(each, device="cpu", batch_size=64) for each in (base.reward, spec))
    rng = random.Random(1)
    texts = list({"".join(rng.choices("abcdef", k=8)) for _ in range(2000)})
    prompts = ["x", "y"] * (len(texts) // 2)
    texts = texts[: len(prompts)]
    noise = noisy(prompts, texts) - clean(prompts, texts)
    expected = 2.0 * measured(clean, made_from.unseen())["spread"]
    assert noise.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * len(texts)))
    assert abs(noise.mean()) < 4 * expected / np.sqrt(len(texts))
    assert (noisy(prompts[:9], texts[:9]) - clean(prompts[:9], texts[:9])).tolist() == pytest.approx(noise[:9].tolist())
    assert noisy.fingerprint() == load_reward(spec, device="cpu", batch_size=1).fingerprint()


def test_the_noise_depends_on_prompt_and_completion() -> None:
    draws = {standard_normal(*pair) for pair in (("x", "a"), ("x", "b"), ("y", "a"), ("x a", ""))}
    assert len(draws) == 4


def test_the_spread_is_that_among_completions_of_one_prompt() -> None:
    """Two draws from N(m, 3²) for each prompt, whatever its m."""
    rng = np.random.default_rng(0)
    values = rng.normal(scale=3, size=2 * 5000) + np.tile(100 * rng.random(5000), 2)
    pairs = [{"prompt": "", "chosen": "", "rejected": ""}] * 5000
    found = measured(lambda prompts, texts: values[: len(texts)], pairs)
    assert found["spread"] == pytest.approx(3, rel=4 / np.sqrt(2 * 5000))


def test_noise_in_the_score_is_another_world(base: AlignConfig) -> None:
    made_from = origin(base)
    rewards = [with_reward(made_from, Change(noise=noise), base)[0] for noise in (0.5, 1.0)]
    worlds = {world_fingerprint(dataclasses.replace(base, reward=reward)) for reward in (base.reward, *rewards)}
    assert len(worlds) == 3


def test_a_noisy_reward_is_named_by_what_it_holds(base: AlignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that finished runs stand when code that makes reward models is edited without effect."""
    made_from = origin(base)
    first, _ = with_reward(made_from, Change(noise=1.0), base)
    monkeypatch.setattr(reward_models, "_fingerprint", lambda *arguments: "another")
    assert with_reward(made_from, Change(noise=1.0), base)[0] == first


def test_a_noisy_reward_that_is_not_in_the_cache_is_refused(base: AlignConfig) -> None:
    with pytest.raises(UserError, match="has no 'reward_0'"):
        load_reward("llm.experiments.noisy_reward:reward_0", device="cpu", batch_size=1)


def test_the_studies_compare_each_reward_model_and_say_how_good_it_is(base: AlignConfig) -> None:
    size, noise = study("reward-size", base), study("reward-noise", base)
    assert [arm.label for arm in size.arms] == ["1 layer", "2 layers", "3 layers", "4 layers"]
    assert len(noise.arms) == 18
    for asked in (size, noise):
        labels = [arm.label for arm in asked.arms]
        assert {label for claim in asked.claims for label in (claim.first, claim.second)} <= set(labels)
        assert all(tuple(name for name, _ in arm.notes) == NOTES for arm in asked.arms)
        for arm in asked.arms:
            validate(arm.config(base))
    by_level = {dict(arm.changes)["reward"] for arm in noise.arms}
    assert len(by_level) == 6


def refused(base: AlignConfig, reward: str) -> str:
    with pytest.raises(UserError) as caught:
        origin(dataclasses.replace(base, reward=reward))
    return str(caught.value)


@pytest.mark.parametrize("reward", ["", "letter_rewards:count_a", "some/hub-model"])
def test_a_reward_that_was_not_trained_here_is_refused(base: AlignConfig, reward: str) -> None:
    assert "is no folder that python -m llm.reward_model wrote" in refused(base, reward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "../gone.jsonl"}, "reward/../gone.jsonl any more"),
        ({"loss": "logistic"}, "trained on labels, not on pairs"),
        ({"new_option": 1}, "is of another version"),
    ],
)
def test_a_report_that_cannot_be_followed_is_refused(
    base: AlignConfig, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    report = json.loads(Path(base.reward, REPORT).read_text())
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / REPORT).write_text(json.dumps(report | {"settings": report["settings"] | change}))
    assert message in refused(base, str(tmp_path / "reward"))


def test_pairs_that_have_changed_since_are_refused(trained: Path, base: AlignConfig, tmp_path: Path) -> None:
    for name in ("model", "reward"):
        shutil.copytree(trained / name, tmp_path / name)
    rows = (trained / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(rows[1:]))
    assert "pairs.jsonl: has changed since" in refused(base, str(tmp_path / "reward"))


def test_a_model_that_is_not_built_as_llama_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    letter_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="not built as Llama's are"):
        write_resized(str(tmp_path / "gpt2"), tmp_path / "out", 1)

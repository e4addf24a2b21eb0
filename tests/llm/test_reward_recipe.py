"""The paper's reward models: converted strictly, laid out and read as their authors did."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Tokenizer, GPTJForSequenceClassification

from letter_world import LETTERS, letter_config
from llm import reward_recipe
from llm.align import run
from llm.config import AlignConfig
from llm.convert_reward import PUBLISHED, ConvertConfig, checkpoint_file, convert, main
from llm.errors import UserError
from llm.prompts import load_prompts
from llm.reward_recipe import Recipe, RecipeReward, last_token_scores
from llm.rewards import ModelReward, load_classifier, load_reward, reward_counts
from llm.tables import read_rows
from reward_artefacts import (
    END,
    FILES,
    IndependentReading,
    byte_tokenizer,
    gpt2_tokenizer,
    published_state,
    write_base,
    write_checkpoint,
)

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("BRAIN_REAL_DATA", REPOSITORY.parent / "shared")) / "data"
RECIPES = ("tldr", "dialogue")
POST = "SUBREDDIT: r/x\nTITLE: t\nPOST: p"

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.exists(), reason=f"no real data at {REAL_DATA} (set $BRAIN_REAL_DATA)"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), byte_tokenizer())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    """Both checkpoints in bytes, raw under their names and converted."""
    home = tmp_path_factory.mktemp("rewards")
    for recipe in RECIPES:
        write_checkpoint(home / recipe, recipe, base)
        convert(ConvertConfig(str(home / recipe), recipe, str(home / f"{recipe}-converted"), base=str(base)))
    return {path.name: path for path in home.iterdir()}


def loaded(path: Path, batch_size: int = 4) -> RecipeReward:
    reward = load_reward(str(path), device="cpu", batch_size=batch_size)
    assert isinstance(reward, RecipeReward)
    return reward


def loaded_in(path: Path, dtype: str) -> RecipeReward:
    reward = load_reward(str(path), device="cpu", batch_size=4, dtype=dtype)
    assert isinstance(reward, RecipeReward)
    return reward


def converted(folders: dict[str, Path], base: Path, recipe: str, out: Path, **options: Any) -> RecipeReward:
    convert(ConvertConfig(str(folders[recipe]), recipe, str(out), base=str(base), **options))
    return loaded(out)


@torch.inference_mode()
def left_padded_scores(reward: RecipeReward, rows: list[list[int]], size: int) -> np.ndarray:
    """The scores of rows that are padded on the left, with the end token."""
    scores = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        longest = max(map(len, part))
        padding = [longest - len(row) for row in part]
        ids = torch.tensor(
            [[reward._tokenizer.eos_token_id] * more + row for more, row in zip(padding, part, strict=True)]
        )
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
        scores += last_token_scores(reward.model, ids, mask).tolist()
    return np.array(scores)


# Where the score is read. A token is a byte here: "<|startoftext|>" is 15 tokens, "\nTL;DR:" 7.


@pytest.mark.parametrize(
    "prompt, completion, index, last",
    [
        ("abc", " xyz", 28, "z"),
        ("abc\nTL;DR:", " xyz", 28, "z"),
        ("abc\nTL;DR: ", "xyz", 28, "z"),
        ("abc", " xyz ", 29, " "),
        ("abc", "", 24, ":"),
        ("abc", f" xy{END}rubbish", 27, "y"),
        (f"ab{END}c", "xyz", 16, "b"),
        ("a" * 600, " xyz", 557, "a"),
        ("a" * 532, " xyz", 557, "z"),
        ("a" * 531, " xyz", 556, "z"),
        ("a" * 520, f" xyz{END}" + "z" * 99, 545, "z"),
    ],
)
def test_a_summary_is_read_at_the_last_token_before_the_first_end_token_or_of_the_cut_text(
    folders: dict[str, Path], prompt: str, completion: str, index: int, last: str
) -> None:
    reward = loaded(folders["tldr-converted"])
    (row,) = reward.rows([prompt], [completion])
    assert len(row) - 1 == index
    assert reward._tokenizer.decode(row[-1:]) == last
    assert reward._tokenizer.decode(row).startswith("<|startoftext|>" + prompt[:2])


@pytest.mark.parametrize(
    "prompt, completion, index, first",
    [
        ("\n\nHuman: a\n\nAssistant:", " xyz", 26, "\n"),
        ("abc", "", 3, "a"),
        ("abc", f"xy{END}rubbish", 5, "a"),
        (f"ab{END}c", "xyz", 2, "a"),
        ("b" + "a" * 1019, "xyz", 1023, "b"),
        ("b" + "a" * 1020, "xyz", 1023, "a"),
        (f"b{END}" + "a" * 1020, "xyz", 1023, "a"),
        ("b" * 9 + "a" * 1100, f"x{END}" + "z" * 99, 923, "a"),
    ],
)
def test_an_answer_is_read_at_the_first_end_token_and_loses_its_beginning_where_it_is_too_long(
    folders: dict[str, Path], prompt: str, completion: str, index: int, first: str
) -> None:
    reward = loaded(folders["dialogue-converted"])
    (row,) = reward.rows([prompt], [completion])
    assert len(row) - 1 == index
    assert row[-1] == reward._tokenizer.eos_token_id
    assert reward._tokenizer.decode(row[:1]) == first


@pytest.mark.parametrize("summary", [" xyz", "xyz", "   xyz", " xyz  ", "", "\n xyz"])
@pytest.mark.parametrize("ending", ["\nTL;DR:", "\nTL;DR: "])
def test_a_summary_is_scored_as_its_authors_reward_function_does_letter_for_letter(ending: str, summary: str) -> None:
    """They put their opening and the end token around the decoded prompt and sample, and change nothing between."""
    sample = POST + ending + summary
    assert PUBLISHED["tldr"].recipe.text(POST + ending, summary, END) == "<|startoftext|>" + sample + END


def test_a_reference_is_scored_as_its_authors_reward_function_does(tmp_path: Path) -> None:
    """For them the post up to "TL;DR:", that and one space come before the label of a row."""
    row = {"prompt": f"{POST}\nTL;DR: ", "label": "It rains."}
    (tmp_path / "posts.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    config = AlignConfig(prompts=str(tmp_path / "posts.jsonl"), format="tldr", m=1, validation_count=1, test_count=1)
    (prompt,) = load_prompts(config, byte_tokenizer(), 1024).test
    theirs = row["prompt"].split("TL;DR:")[0] + "TL;DR: " + row["label"]
    assert PUBLISHED["tldr"].recipe.text(prompt.text, prompt.reference, END) == "<|startoftext|>" + theirs + END


def test_a_summary_can_be_laid_out_with_two_spaces_as_in_training(
    folders: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    reward = converted(folders, base, "tldr", tmp_path / "rm", double_space=True)
    for prompt, completion in (("abc\nTL;DR:", " xyz"), ("abc\nTL;DR: ", "xyz"), ("abc", " xyz")):
        (row,) = reward.rows([prompt], [completion])
        assert reward._tokenizer.decode(row) == "<|startoftext|>abc\nTL;DR:  xyz"


@pytest.mark.parametrize(
    "recipe, long, lost", [("tldr", "a" * 600, "longer than 558"), ("dialogue", "a" * 1100, "longer than 1024")]
)
def test_texts_that_are_cut_or_read_in_the_prompt_are_told_once_and_counted(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], recipe: str, long: str, lost: str
) -> None:
    reward = loaded(folders[f"{recipe}-converted"])
    assert reward_counts(reward) == {"reward_cut_texts": 0, "reward_ended_prompts": 0}
    reward([long, "b", f"a{END}b"], ["x", "y", "z"])
    reward([long, long, f"a{END}b"], ["x", "y", "z"])
    assert reward_counts(reward) == {"reward_cut_texts": 3, "reward_ended_prompts": 2}
    said = capsys.readouterr().err
    assert said.count(lost) == 1
    assert said.count(f"a prompt holds {END}") == 1
    assert len(said.splitlines()) == 2


def test_a_run_heeds_the_rewards_settings_and_tells_its_counts(
    folders: dict[str, Path], in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": LETTERS[i] * 3, "reference": f"{i} " * 290} for i in range(26)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passes = []

    def noted(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        passes.append((len(ids), model.dtype))
        return last_token_scores(model, ids, mask)

    monkeypatch.setattr(reward_recipe, "last_token_scores", noted)
    changes = {"prompts": str(tmp_path / "p.jsonl"), "validation_count": 4, "test_count": 4, "e": 1, "k": 1, "m": 3}
    changes |= {"reward": str(folders["tldr-converted"]), "reward_rows": 3, "reward_dtype": "bfloat16"}
    summary = run(letter_config(tmp_path / "run", **changes))
    assert summary["counts"]["reward_cut_texts"] == 8  # the held-out references
    assert summary["counts"]["reward_ended_prompts"] == 0
    assert summary["counts"]["rows"] == 26
    assert {dtype for _, dtype in passes} == {torch.bfloat16}
    assert max(size for size, _ in passes) == 3


# Scores.


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_score_is_the_same_in_every_batch_and_padding_and_as_read_independently(
    folders: dict[str, Path], base: Path, recipe: str
) -> None:
    encode = byte_tokenizer().encode
    reference = IndependentReading(recipe, folders[recipe], base, encode)
    posts = [POST, "b" * 40, "c" * 1200, "d", f"e{END}f", "g" * 531]
    summaries = ["TL;DR: It rains.", f"TL;DR: Sun{END}rain", "TL;DR: ", "TL;DR: x" * 4, "TL;DR: y", "TL;DR: xyz"]
    prompts = [f"{post}\nTL;DR:" for post in posts] if recipe == "tldr" else posts
    answers = [text.removeprefix("TL;DR:") if recipe == "tldr" else text for text in summaries]
    limit = PUBLISHED[recipe].recipe.max_length
    expected = [reference(post, summary, limit) for post, summary in zip(posts, summaries, strict=True)]
    assert np.ptp(expected) > 1
    for size in (1, 2, 6):
        reward = loaded(folders[f"{recipe}-converted"], size)
        np.testing.assert_allclose(reward(prompts, answers), expected, atol=1e-5)
    on_the_left = left_padded_scores(reward, reward.rows(prompts, answers), 3)
    np.testing.assert_allclose(on_the_left, expected, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_librarys_own_pooling_agrees_on_plain_texts(folders: dict[str, Path], recipe: str) -> None:
    """So the converted model is a normal one for any other tool."""
    path = folders[f"{recipe}-converted"]
    model = GPTJForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    opening = "<|startoftext|>" if recipe == "tldr" else ""
    texts = [f"{opening}{POST}\nTL;DR: {summary}{END}" for summary in ("It rains.", "Sun")]
    with torch.no_grad():
        scores = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    rewards = loaded(path)([f"{POST}\nTL;DR:"] * 2, [" It rains.", " Sun"])
    assert tokenizer.pad_token_id == model.config.pad_token_id == tokenizer.eos_token_id + (recipe == "dialogue")
    np.testing.assert_allclose(scores, rewards, atol=1e-5)


def test_the_last_product_is_taken_in_float32(folders: dict[str, Path]) -> None:
    model = loaded_in(folders["tldr-converted"], "float16").model
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        hidden = model.transformer(ids).last_hidden_state[0, -1]
        score = last_token_scores(model, ids, torch.ones_like(ids))
    assert hidden.dtype == torch.float16
    exact = (hidden.double() @ model.score.weight[0].double()).item()
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(exact, rel=1e-6)


def test_a_reward_computes_in_the_precision_that_is_asked_for_and_its_fingerprint_says_so(
    folders: dict[str, Path],
) -> None:
    """On the CPU `auto` is float32, whatever the files hold."""
    rewards = {dtype: loaded_in(folders["tldr-converted"], dtype) for dtype in ("auto", "float32", "float16")}
    kinds = [{tensor.dtype for tensor in reward.model.parameters()} for reward in rewards.values()]
    assert kinds == [{torch.float32}, {torch.float32}, {torch.float16}]
    prints = [reward.fingerprint() for reward in rewards.values()]
    assert prints[0] == prints[1] != prints[2]
    half, full = (rewards[dtype]([POST], [" It rains."])[0] for dtype in ("float16", "float32"))
    assert 0 < abs(half - full) < 0.02


# The conversion.


@pytest.mark.parametrize("recipe, dtype", [("tldr", torch.float16), ("dialogue", torch.float32)])
def test_conversion_keeps_every_weight_and_its_precision(folders: dict[str, Path], recipe: str, dtype: Any) -> None:
    state = torch.load(folders[recipe] / FILES[recipe], weights_only=True)
    weights = load_file(folders[f"{recipe}-converted"] / "model.safetensors")
    assert len(weights) == 4 + 2 * 10
    for name, tensor in weights.items():
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, state[name.replace("score", "v_head")].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_conversion_can_change_the_precision(
    folders: dict[str, Path], base: Path, tmp_path: Path, recipe: str, dtype: Any
) -> None:
    reward = converted(folders, base, recipe, tmp_path / "rm", dtype=dtype)
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {f"torch.{dtype}"}
    own = loaded(folders[f"{recipe}-converted"])
    expected, values = (r([POST] * 2, [" It rains.", " Sun"]) for r in (own, reward))
    np.testing.assert_allclose(values, expected, atol=0.1 if dtype == "bfloat16" else 0.02)


def test_weights_that_a_precision_cannot_hold_are_refused(base: Path, tmp_path: Path) -> None:
    state = published_state("dialogue", GPTJForSequenceClassification.config_class.from_pretrained(base))
    state["transformer.ln_f.weight"][0] = 1e6
    torch.save(state, tmp_path / FILES["dialogue"])
    with pytest.raises(UserError, match=r"transformer\.ln_f\.weight is not finite in float16\. Use another --dtype"):
        convert(ConvertConfig(str(tmp_path), "dialogue", str(tmp_path / "out"), base=str(base), dtype="float16"))
    assert not (tmp_path / "out").exists()


def test_a_converted_folder_says_how_it_is_read(folders: dict[str, Path]) -> None:
    for recipe in RECIPES:
        config = json.loads((folders[f"{recipe}-converted"] / "config.json").read_text())
        assert config["brain_reward"] == dataclasses.asdict(PUBLISHED[recipe].recipe)
        assert config["architectures"] == ["GPTJForSequenceClassification"]


def test_the_command_converts_and_says_what_next(
    folders: dict[str, Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "rm"
    main([str(folders["dialogue"]), "--recipe", "dialogue", "--out", str(out), "--base", str(base)])
    assert f"--reward {out}" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["rm"]
    prompts, answers = ["\n\nHuman: a\n\nAssistant:"], [" b"]
    assert loaded(out)(prompts, answers) == loaded(folders["dialogue-converted"])(prompts, answers)


def test_the_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--double-space" in capsys.readouterr().out


def test_the_fingerprint_covers_weights_and_recipe(folders: dict[str, Path], base: Path, tmp_path: Path) -> None:
    first = loaded(folders["tldr-converted"]).fingerprint()
    assert converted(folders, base, "tldr", tmp_path / "same").fingerprint() == first
    assert converted(folders, base, "tldr", tmp_path / "longer", max_length=600).fingerprint() != first
    state = torch.load(folders["tldr"] / FILES["tldr"], weights_only=True)
    state["v_head.weight"][0, 0] += 1
    (tmp_path / "raw").mkdir()
    torch.save(state, tmp_path / "raw" / FILES["tldr"])
    assert converted({"tldr": tmp_path / "raw"}, base, "tldr", tmp_path / "other").fingerprint() != first


# From the hub. What its library keeps on disk is laid out by hand here; nothing is downloaded.


def put_on_hub(cache: Path, repository: str, commit: str, files: Path) -> None:
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir(exist_ok=True)
    (home / "snapshots" / commit).symlink_to(files, target_is_directory=True)


@pytest.fixture
def hub(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub's library with the base, and a cache of ours."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BRAIN_CACHE", str(tmp_path / "cache"))
    put_on_hub(tmp_path / "hub", "EleutherAI/gpt-j-6B", "b" * 40, base)
    return tmp_path / "hub"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_name_is_converted_once_for_each_revision(
    hub: Path, folders: dict[str, Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    name = PUBLISHED[recipe].repository
    put_on_hub(hub, name, "1" * 40, write_checkpoint(tmp_path / "older", recipe, base))
    put_on_hub(hub, name, "2" * 40, folders[recipe])
    rewards = [load_reward(spec, device="cpu", batch_size=2) for spec in (name, f"{name}@{'2' * 40}", name)]
    assert capsys.readouterr().err.count("converting") == 1
    older = load_reward(f"{name}@{'1' * 40}", device="cpu", batch_size=2)
    assert capsys.readouterr().err.count("converting") == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2
    expected = loaded(folders[f"{recipe}-converted"])(["a"], ["b"])
    assert all(reward(["a"], ["b"]) == expected for reward in [*rewards, older])


def test_a_name_that_cannot_be_had_from_the_hub_is_told(hub: Path) -> None:
    message = (
        r"tldr_rm_checkpoint: is no directory here; .* the hub cannot be reached .* pytorch_model.bin is not among"
    )
    with pytest.raises(UserError, match=message):
        load_reward(PUBLISHED["tldr"].repository, device="cpu", batch_size=2)


@pytest.mark.parametrize(
    "kind, message",
    [
        (hub_errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (hub_errors.GatedRepoError, "access on request only"),
        (hub_errors.RepositoryNotFoundError, "no such repository, or hides it from you"),
        (hub_errors.RevisionNotFoundError, "no such revision"),
        (hub_errors.RemoteEntryNotFoundError, "has no hf_ckpt.pt"),
        (OSError, r"could not be had \(No space left"),
    ],
)
def test_what_the_hub_answers_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise kind.__new__(kind) if kind is not OSError else OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=rf"somebody/rm@abc: is no directory here; as a hub name, .*{message}"):
        checkpoint_file("somebody/rm@abc", "dialogue")


# Mistakes.


def change(name: str, tensor: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    """Put another tensor in a state dict, or take one out."""

    def apply(state: dict[str, torch.Tensor]) -> None:
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor

    return apply


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "fault, message",
    [
        (change("v_head.weight", None), r"lacks the weights v_head\.weight"),
        (change("transformer.h.1.mlp.fc_in.bias", None), r"lacks the weights transformer\.h\.1\.mlp\.fc_in\.bias"),
        (change("v_head.bias", torch.zeros(1)), r"holds unexpected weights v_head\.bias"),
        (change("lm_head.bias", torch.zeros(1)), r"holds unexpected weights lm_head\.bias"),
        (change("transformer.h.0.attn.rotary", torch.zeros(1)), r"unexpected weights transformer\.h\.0\.attn\.rotary"),
        (change("transformer.h.2.ln_1.bias", torch.zeros(16)), r"unexpected weights transformer\.h\.2\.ln_1\.bias"),
        (change("v_head.weight", torch.zeros(2, 16).half()), r"v_head\.weight \(2, 16\) instead of \(1, 16\)"),
        (change("transformer.wte.weight", torch.zeros(9, 16)), r"other sizes .*wte\.weight \(9, 16\) instead of \(260"),
        (change("transformer.ln_f.bias", torch.zeros(16).double()), r"of the kinds .*torch\.float64"),
        (change("transformer.ln_f.bias", torch.zeros(16).int()), r"of the kinds .*torch\.int32"),
        (change("v_head.weight", torch.zeros(1, 16).double()), r"of the kinds .*torch\.float64"),
    ],
)
def test_a_checkpoint_that_is_not_exactly_the_published_one_is_refused_whole(
    base: Path, tmp_path: Path, recipe: str, fault: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    config = GPTJForSequenceClassification.config_class.from_pretrained(base)
    state = published_state(recipe, config)
    fault(state)
    torch.save(state, tmp_path / FILES[recipe])
    with pytest.raises(UserError, match=message) as caught:
        convert(ConvertConfig(str(tmp_path), recipe, str(tmp_path / "out"), base=str(base)))
    assert FILES[recipe] in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [FILES[recipe]]


class NeedsCode:
    """Something whose loading runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this was run",))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"v_head.weight": NeedsCode()}, "would run code when loaded"),
        ([torch.zeros(1)], "is not a state dict"),
        ({"v_head.weight": 3}, "is not a state dict"),
    ],
)
def test_a_file_that_holds_anything_but_tensors_is_refused_and_runs_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    torch.save(content, tmp_path / FILES["tldr"])
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig(str(tmp_path), "tldr", str(tmp_path / "out"), base=str(base)))
    assert "this was run" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_file_is_refused(folders: dict[str, Path], base: Path, tmp_path: Path, share: float) -> None:
    content = (folders["tldr"] / FILES["tldr"]).read_bytes()
    (tmp_path / FILES["tldr"]).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"pytorch_model.bin: is damaged or no checkpoint"):
        convert(ConvertConfig(str(tmp_path), "tldr", str(tmp_path / "out"), base=str(base)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"recipe": "dialogue"}, "has no hf_ckpt.pt"),
        ({"checkpoint": "nobody/nothing"}, "nobody/nothing: is no directory here; as a hub name, the hub cannot be re"),
        ({"checkpoint": "no such name"}, "no such name: is no directory here; as a hub name, it cannot be one either"),
        ({"base": "nobody/nothing"}, "nobody/nothing: its config.json or tokenizer cannot be had"),
        ({"base": "WITHOUT_TOKENIZER"}, "its tokenizer is missing or another model's"),
        ({"base": "LLAMA"}, "is a llama model; these reward models are GPT-J"),
        ({"base": "ODD_HEADS"}, "is no possible GPT-J"),
        ({"base": "OTHER_END"}, "its tokenizer is missing or another model's: it has 257 tokens and end token 256"),
        ({"base": "WIDER"}, r"has other sizes than config.json of --base asks for"),
        ({"base": "DEEPER"}, r"lacks the weights transformer\.h\.2\..* and \d more"),
        ({"base": "NO_SPARE_ROW", "checkpoint": "dialogue", "recipe": "dialogue"}, "it has 258 tokens .*has 257 and"),
        ({"out": "FULL"}, "exists already and is not an empty folder"),
        ({"max_length": 1025}, "--max-length 1025: must be from 2 to the model's context, 1024"),
        ({"max_length": 0}, "--max-length 0"),
        ({"double_space": True, "checkpoint": "dialogue", "recipe": "dialogue"}, "--double-space: only the tldr"),
    ],
)
def test_a_mistake_in_the_command_is_one_clear_paragraph(
    folders: dict[str, Path], base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "LLAMA").mkdir()
    (tmp_path / "LLAMA" / "config.json").write_text('{"model_type": "llama"}')
    byte_tokenizer().save_pretrained(tmp_path / "LLAMA")
    (tmp_path / "WITHOUT_TOKENIZER").mkdir()
    (tmp_path / "WITHOUT_TOKENIZER" / "config.json").write_bytes((base / "config.json").read_bytes())
    for name, sizes in {
        "ODD_HEADS": {"n_head": 3},
        "OTHER_END": {"eos_token_id": 10},
        "WIDER": {"n_embd": 32},
        "DEEPER": {"n_layer": 3},
        "NO_SPARE_ROW": {"vocab_size": 257},
    }.items():
        write_base(tmp_path / name, byte_tokenizer(), **sizes)
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").touch()
    places = {key: str(tmp_path / value) for key, value in options.items() if (tmp_path / str(value)).exists()}
    if options.get("checkpoint") in folders:
        places["checkpoint"] = str(folders[options["checkpoint"]])
    arguments = {"checkpoint": str(folders["tldr"]), "recipe": "tldr", "out": str(tmp_path / "out"), "base": str(base)}
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig(**(arguments | options | places)))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_leaves_nothing_behind(folders: dict[str, Path], base: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16000, hard))
    try:
        with pytest.raises(UserError, match=r"rm: could not be written .*Make room"):
            convert(ConvertConfig(str(folders["tldr"]), "tldr", str(tmp_path / "rm"), base=str(base)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_that_is_not_converted_is_refused_with_the_command(folders: dict[str, Path], recipe: str) -> None:
    with pytest.raises(UserError, match=rf"python -m llm.convert_reward {folders[recipe]} --recipe {recipe} --out DIR"):
        load_reward(str(folders[recipe]), device="cpu", batch_size=1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"read": "somewhere"}, "brain_reward in its config.json"),
        ({"max_length": "558"}, "brain_reward in its config.json"),
        ({"opening": None}, "brain_reward in its config.json"),
        ({"more": 1}, "brain_reward in its config.json"),
        ({"joint": "\nTL;DR: "}, "Mend it, or convert the checkpoint again"),
        ({"max_length": 1}, "max_length 1 in its config.json must be 2 or more"),
        ({"max_length": 2000}, "max_length 2000 in its config.json is more than the model's context of 1024"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for path in folders["tldr-converted"].iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["brain_reward"] |= changes
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_reward(str(tmp_path), device="cpu", batch_size=1)


@pytest.mark.parametrize(
    "missing, message",
    [("tokenizer*", "its tokenizer is missing"), ("model.safetensors", "cannot be loaded as a seq")],
)
def test_a_converted_folder_that_lacks_a_file_is_refused(
    folders: dict[str, Path], tmp_path: Path, missing: str, message: str
) -> None:
    for path in folders["tldr-converted"].iterdir():
        (tmp_path / path.name).symlink_to(path)
    gone = list(tmp_path.glob(missing))
    assert gone
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=message):
        load_reward(str(tmp_path), device="cpu", batch_size=1)


def test_a_model_without_a_recipe_is_read_as_before(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["tldr-converted"].iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["brain_reward"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert isinstance(load_reward(str(tmp_path), device="cpu", batch_size=1), ModelReward)


def test_a_model_with_a_recipe_is_no_start_for_training(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="tldr-converted: carries a recipe of its own"):
        load_classifier(str(folders["tldr-converted"]), fresh_output=True)


def test_a_chat_is_refused(folders: dict[str, Path]) -> None:
    reward = loaded(folders["dialogue-converted"])
    with pytest.raises(UserError, match="row 1: the prompt is a chat"):
        reward(["a", [{"role": "user", "content": "b"}]], ["c", "d"])


def test_a_text_with_nothing_before_its_end_token_is_refused(folders: dict[str, Path]) -> None:
    recipe = Recipe(opening="", closing="", read="before-first-eos", max_length=9)
    reward = RecipeReward(str(folders["tldr-converted"]), recipe, device="cpu", batch_size=2)
    with pytest.raises(UserError, match="row 1: nothing stands before the end token"):
        reward(["a", ""], ["", ""])


def test_no_rows_give_no_rewards(folders: dict[str, Path]) -> None:
    assert loaded(folders["tldr-converted"])([], []).shape == (0,)


# The real rows.


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return gpt2_tokenizer(REAL_DATA / "gpt2-bpe")


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory, gpt2: GPT2Tokenizer) -> Path:
    return write_base(tmp_path_factory.mktemp("gpt2"), gpt2, n_head=1, n_layer=1)


def comparisons() -> list[dict[str, str]]:
    """The 100 real comparisons."""
    rows = [row for part in ("train", "test") for _, row in read_rows(REAL_DATA / "tldr" / f"comparisons-{part}.jsonl")]
    assert len(rows) == 100
    return rows


@needs_real_data
def test_with_two_spaces_the_real_comparisons_are_laid_out_letter_for_letter_as_in_training() -> None:
    recipe = dataclasses.replace(PUBLISHED["tldr"].recipe, closing="\nTL;DR: ")
    for row in comparisons():
        for side in ("chosen", "rejected"):
            training = f"<|startoftext|>{row['prompt']}\n{row[side]}{END}"
            answer = row[side].removeprefix("TL;DR: ")
            assert recipe.text(row["prompt"] + "\nTL;DR:", answer, END) == training


@needs_real_data
@pytest.mark.parametrize("recipe", RECIPES)
def test_both_reward_models_give_the_real_comparisons_the_scores_of_an_independent_reading(
    gpt2: GPT2Tokenizer, gpt2_base: Path, tmp_path: Path, recipe: str
) -> None:
    raw = write_checkpoint(tmp_path / "raw", recipe, gpt2_base)
    convert(ConvertConfig(str(raw), recipe, str(tmp_path / "rm"), base=str(gpt2_base)))
    texts = [(row["prompt"], row[side]) for side in ("rejected", "chosen") for row in comparisons()]
    if recipe == "tldr":
        texts = [(post, summary.replace("TL;DR:  ", "TL;DR: ")) for post, summary in texts]
    independent = IndependentReading(recipe, raw, gpt2_base, gpt2.encode)
    limit = PUBLISHED[recipe].recipe.max_length
    expected = [independent(post, summary, limit) for post, summary in texts]
    assert np.std(expected) > 0.1
    assert sum(END in summary for _, summary in texts) >= 3
    prompts = [f"{post}\nTL;DR:" if recipe == "tldr" else post for post, _ in texts]
    answers = [summary.removeprefix("TL;DR:") if recipe == "tldr" else summary for _, summary in texts]
    reward = loaded(tmp_path / "rm", 16)
    np.testing.assert_allclose(reward(prompts, answers), expected, atol=1e-5)
    # The other two ways for one side of each comparison, which the expected scores begin with.
    reward._batch_size = 1  # the real tokenizer takes a second to load again
    np.testing.assert_allclose(reward(prompts[:100], answers[:100]), expected[:100], atol=1e-5)
    rows = reward.rows(prompts[:100], answers[:100])
    np.testing.assert_allclose(left_padded_scores(reward, rows, 16), expected[:100], atol=1e-5)

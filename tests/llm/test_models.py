"""Loading the policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from letter_world import letter_config
from llm.errors import UserError
from llm.logprob import score
from llm.models import load_policy, model_fingerprint
from llm.records import Completion, Prompt
from sft_artefacts import gpt2_tokenizer, save_gptj_sft, save_llama_base

PAIR = (Prompt("p", "abc", (3, 4, 5), None), Completion("p", 0, (6, 7, 2), "stop", "de"))


def test_a_fresh_adapter_leaves_the_prior_as_it_is(in_letters: Path) -> None:
    policy = load_policy(letter_config())
    with policy.as_prior():
        prior = score(policy, [PAIR], 1)
    assert score(policy, [PAIR], 1) == prior


def test_only_the_adapter_is_trainable_and_dropout_is_off(in_letters: Path) -> None:
    policy = load_policy(letter_config())
    trainable = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert not any(module.training for module in policy.model.modules())


def test_the_adapter_starts_from_the_seed(in_letters: Path) -> None:
    first, again, other = (load_policy(letter_config(seed=seed)).adapter_state() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_lora_targets_that_match_nothing_are_refused_with_the_modules_there_are(in_letters: Path) -> None:
    with pytest.raises(UserError, match=r"--lora-targets nonsense: cannot be used.*not found.*q_proj"):
        load_policy(letter_config(lora_targets="nonsense"))


def test_lora_targets_can_be_named(in_letters: Path) -> None:
    policy = load_policy(letter_config(lora_targets="q_proj, v_proj"))
    assert {name.split(".")[-2] for name in policy.adapter_state()} <= {"lora_A", "lora_B"}
    assert {name.split(".")[-3] for name in policy.adapter_state()} == {"q_proj", "v_proj"}


def test_a_missing_model_is_one_clear_paragraph(in_letters: Path) -> None:
    with pytest.raises(UserError, match=r"--model nowhere: .*No such directory"):
        load_policy(letter_config(model="nowhere"))


def edited(source: Path, target: Path, file: str, **changes: object) -> Path:
    """A copy of a model with some fields of one JSON file changed; None removes a field."""
    shutil.copytree(source, target)
    path = target / file
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return target


def test_a_model_without_an_end_token_is_refused(in_letters: Path, tmp_path: Path) -> None:
    model = edited(in_letters / "model", tmp_path / "m", "tokenizer_config.json", eos_token=None)
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(UserError, match="end-of-sequence token"):
        load_policy(letter_config(model=str(model)))


def test_a_model_without_a_padding_token_works(in_letters: Path, tmp_path: Path) -> None:
    model = edited(in_letters / "model", tmp_path / "m", "tokenizer_config.json", pad_token=None)
    assert score(load_policy(letter_config(model=str(model))), [PAIR], 1) == score(
        load_policy(letter_config()), [PAIR], 1
    )


def test_an_adapter_as_the_model_is_refused(in_letters: Path, tmp_path: Path) -> None:
    load_policy(letter_config()).model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter: is an adapter.*--sft-adapter"):
        load_policy(letter_config(model=str(tmp_path / "adapter")))


def test_a_damaged_weight_file_is_one_clear_paragraph(in_letters: Path, tmp_path: Path) -> None:
    shutil.copytree(in_letters / "model", tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"--model .*cannot load it"):
        load_policy(letter_config(model=str(tmp_path / "m")))


def test_a_tokenizer_with_another_end_token_is_not_the_models(in_letters: Path, tmp_path: Path) -> None:
    shutil.copytree("model", tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "config.json").read_text()) | {"eos_token_id": 5}
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match=r"--tokenizer model: its end-of-sequence token is 2, and that of --model .* is 5"
    ):
        load_policy(letter_config(model=str(tmp_path / "m"), tokenizer="model"))


def test_a_device_that_is_not_there_is_refused(in_letters: Path) -> None:
    with pytest.raises(UserError, match="--device nonsense"):
        load_policy(letter_config(device="nonsense"))


def test_the_fingerprint_changes_with_the_weights_and_the_precision(in_letters: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(in_letters / "model", copied)
    first = model_fingerprint("model", "float32", "none")
    assert model_fingerprint(str(copied), "float32", "none") == first
    assert model_fingerprint("model", "bfloat16", "none") != first
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_fingerprint(str(copied), "float32", "none") != first


NORM = "model.layers.1.input_layernorm.weight"
RANDOM = f"--model .*/m: its files lack weights that would be random instead: {NORM}. "


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        ({NORM: None}, {}, RANDOM),
        ({NORM: None}, {"quantization": "nf4"}, RANDOM),
        ({NORM: None, "model.norm.weight": None}, {}, f"random instead: {NORM} and 1 more"),
        ({"score.weight": torch.zeros(1, 32)}, {}, "weights that the model has no place for: score.weight. The"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, {}, "no place for: .*q_proj.bias"),
        ({NORM: torch.zeros(33)}, {}, rf"in its files {NORM} has shape \(33,\), and by its config.json \(32,\)"),
        ({NORM: torch.zeros(33)}, {"quantization": "nf4"}, rf"in its files {NORM} has shape \(33,\)"),
    ],
)
def test_a_checkpoint_whose_weights_are_not_exactly_the_models_is_refused(
    weights: dict[str, torch.Tensor | None],
    settings: dict[str, str],
    expected: str,
    in_letters: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree("model", tmp_path / "m")
    changed = load_file(tmp_path / "m" / "model.safetensors") | weights
    stored = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(stored, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=expected) as caught:
        load_policy(letter_config(model=str(tmp_path / "m"), **settings))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gptj/, which has no tokenizer, and gpt2/, its tokenizer."""
    folder = tmp_path_factory.mktemp("gptj")
    save_gptj_sft(folder / "gptj")
    gpt2_tokenizer().save_pretrained(folder / "gpt2")
    return folder


def test_old_shards_with_buffers_that_are_no_weights_are_read_in_full(gptj: Path) -> None:
    policy = load_policy(letter_config(model=str(gptj / "gptj"), tokenizer=str(gptj / "gpt2")))
    files = sorted((gptj / "gptj").glob("pytorch_model-0000?-of-00003.bin"))
    stored = {name: tensor for file in files for name, tensor in torch.load(file, weights_only=True).items()}
    buffers = {name for name in stored if name.endswith((".attn.bias", ".attn.masked_bias"))}
    assert len(files) == 3
    assert len(buffers) == 4
    weights = {name.replace(".base_layer", ""): p for name, p in policy.base.named_parameters() if "lora_" not in name}
    assert weights.keys() == stored.keys() - buffers
    assert all(torch.equal(weight, stored[name]) for name, weight in weights.items())
    assert policy.end_ids == (len(policy.tokenizer) - 1,)
    assert len(policy.base.get_input_embeddings().weight) == len(policy.tokenizer) + 143


def test_a_model_without_a_tokenizer_is_refused_and_another_can_be_named(gptj: Path, in_letters: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*gptj: has no tokenizer\..*--tokenizer"):
        load_policy(letter_config(model=str(gptj / "gptj")))
    with pytest.raises(UserError, match=r"--tokenizer .*gptj: has no tokenizer\."):
        load_policy(letter_config(tokenizer=str(gptj / "gptj")))
    with pytest.raises(UserError, match=r"--tokenizer nobody/nothing: AutoTokenizer cannot load it"):
        load_policy(letter_config(tokenizer="nobody/nothing"))
    with pytest.raises(UserError, match=r"--tokenizer .*gpt2: has \d+ tokens and --model model only 30, so it is not"):
        load_policy(letter_config(tokenizer=str(gptj / "gpt2")))


def test_the_identity_covers_what_a_named_tokenizer_does_and_not_where_it_lies(
    in_letters: Path, tmp_path: Path
) -> None:
    def identity(tokenizer: str) -> str:
        return load_policy(letter_config(tokenizer=tokenizer)).identity

    shutil.copytree("model", tmp_path / "same")
    edited(in_letters / "model", tmp_path / "other", "tokenizer_config.json", pad_token=None)
    assert identity("model") == identity(str(tmp_path / "same"))
    assert len({identity(""), identity("model"), identity(str(tmp_path / "other"))}) == 3


def test_the_tokenizer_of_the_miniature_llama_has_llamas_first_tokens_and_loses_nothing(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_llama_base(tmp_path / "llama"))
    text = "\n\nHuman: Is 5 € much?\n\nAssistant: No"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:4]) == ["<s>", "▁", "<0x0A>", "<0x0A>"]
    assert ids[0] == 1
    assert ids[2:4] == [13, 13]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text

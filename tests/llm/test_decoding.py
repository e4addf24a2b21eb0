"""Decoding by a shared prefix or by plain rows, against the library's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from architectures import save_model
from letter_world import letter_config, moved
from llm import prefix_attention
from llm.decoding import Decoder, PlainDecoder, SharedPrefixDecoder, make_decoder
from llm.models import Policy, load_policy
from llm.prefix_attention import ARCHITECTURES
from llm.records import Prompt

PROMPTS = [Prompt(str(i), "", ids, None) for i, ids in enumerate([(5, 9, 21), (7,), tuple(range(3, 20))])]


def policy_of(architecture: str, folder: Path, engine: str, **changes: object) -> Policy:
    return moved(load_policy(letter_config(model=str(save_model(folder, architecture)), engine=engine, **changes)))


@torch.no_grad()
def greedy(decoder: Decoder, length: int) -> torch.Tensor:
    """The most likely tokens (R, C)."""
    columns = [decoder.logits.argmax(-1)]
    while len(columns) < length:
        decoder.step(columns[-1])
        columns.append(decoder.logits.argmax(-1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_greedy_completions_are_those_of_generate(architecture: str, engine: str, tmp_path: Path) -> None:
    policy = policy_of(architecture, tmp_path, engine)
    with torch.no_grad():
        decoder = make_decoder(policy, PROMPTS, 2, 20)
    assert isinstance(decoder, SharedPrefixDecoder if engine == "shared-prefix" else PlainDecoder)
    found = greedy(decoder, 20)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt.token_ids])
        expected = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=20, max_new_tokens=20
        )
        ended = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20
        )
        if ended.shape == expected.shape and torch.equal(ended, expected):  # no end token was suppressed
            assert found[2 * i].tolist() == found[2 * i + 1].tolist() == expected[0, ids.shape[1] :].tolist()
        else:
            length = ended.shape[1] - ids.shape[1]
            assert found[2 * i, :length].tolist() == ended[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kernel", [prefix_attention.FLASH, "_no_such_kernel"])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@torch.no_grad()
def test_logits_equal_those_of_whole_rows_while_completions_leave(
    architecture: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every completion goes its own way; rows leave until a prompt is without any."""
    monkeypatch.setattr(prefix_attention, "FLASH", kernel)
    policy = policy_of(architecture, tmp_path, "shared-prefix")
    decoder = make_decoder(policy, PROMPTS, 3, 9)
    rows = [list(prompt.token_ids) for prompt in PROMPTS for _ in range(3)]
    draw = torch.Generator().manual_seed(0)
    for step in range(9):
        expected = torch.stack([policy.model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
        assert (decoder.logits - expected).abs().max() < 2e-5
        tokens = torch.randint(3, 29, (len(rows),), generator=draw)
        if step in (2, 4, 5):
            kept = {2: [0, 1, 2, 4, 6, 7, 8], 4: [1, 4, 5, 6], 5: [1, 3]}[step]  # at 4 the second prompt has none left
            decoder.keep(torch.tensor(kept))
            rows, tokens = [rows[i] for i in kept], tokens[kept]
        decoder.step(tokens)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]


@torch.no_grad()
def test_a_prompts_keys_are_kept_once_however_many_completions_there_are(tmp_path: Path) -> None:
    policy = policy_of("llama", tmp_path, "shared-prefix")
    few, many = (make_decoder(policy, PROMPTS, n, 4) for n in (1, 50))
    sizes = [sum(k.numel() + v.numel() for k, v in decoder._cache._prompt_states) for decoder in (few, many)]
    assert sizes[0] == sizes[1] > 0


@torch.no_grad()
def test_a_sliding_window_shorter_than_prompt_and_completion_decodes_by_plain_rows(tmp_path: Path) -> None:
    policy = policy_of("mistral", tmp_path, "shared-prefix")
    policy.base.config.sliding_window = 20
    assert isinstance(make_decoder(policy, PROMPTS, 2, 3), SharedPrefixDecoder)
    assert isinstance(make_decoder(policy, PROMPTS, 2, 4), PlainDecoder)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
@torch.no_grad()
def test_plain_rows_are_right_beyond_a_sliding_window(architecture: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, architecture)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"sliding_window": 8}))
    policy = moved(load_policy(letter_config(model=str(folder))))
    decoder = make_decoder(policy, PROMPTS, 2, 12)
    assert isinstance(decoder, PlainDecoder)
    rows = [list(prompt.token_ids) for prompt in PROMPTS for _ in range(2)]
    for step in range(12):
        expected = torch.stack([policy.model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
        assert (decoder.logits - expected).abs().max() < 2e-5
        tokens = torch.tensor([3 + (5 * step + row) % 20 for row in range(len(rows))])
        if step == 4:
            decoder.keep(torch.tensor([0, 4, 5]))
            rows, tokens = [rows[i] for i in (0, 4, 5)], tokens[[0, 4, 5]]
        decoder.step(tokens)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]


@torch.no_grad()
def test_the_adapter_is_live(tmp_path: Path) -> None:
    policy = policy_of("llama", tmp_path, "shared-prefix")
    found = make_decoder(policy, PROMPTS, 1, 4).logits
    with policy.as_prior():
        prior = make_decoder(policy, PROMPTS, 1, 4).logits
    assert (found - prior).abs().max() > 1e-3

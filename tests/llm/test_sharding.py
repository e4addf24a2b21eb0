"""A base that is cut up over processes computes what a whole one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from architectures import save_model
from child_runs import PassesOf, passes, work_together
from letter_world import letter_config
from llm import processes
from llm.config import AlignConfig
from llm.models import load_policy
from sft_artefacts import save_qlora_adapter

FSDP = {processes.CUTS_MODEL: "true"}
ARCHITECTURES = ["llama", "gptj", "gemma2"]
KINDS = [*ARCHITECTURES, "checkpointed", "stacked"]
"""Architectures, the last of which has no fast path, and what may be done to a Llama."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AlignConfig]:
    """Settings for each kind."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: letter_config(model=str(save_model(folder / name, name))) for name in ARCHITECTURES}
    llama = found["llama"]
    save_qlora_adapter(folder / "sft", Path(llama.model))
    return found | {
        "checkpointed": replace(llama, activation_checkpointing=True),
        "stacked": replace(llama, sft_adapter=str(folder / "sft"), sft_mode="stack"),
    }


@pytest.fixture(scope="module")
def cut_up(configs: dict[str, AlignConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first of three processes computed with each, where the others had nothing to do."""
    folder = tmp_path_factory.mktemp("cut-up")
    statuses, said = work_together(PassesOf(configs, folder), folder, count=3, launch=FSDP)
    assert statuses == [0, 0, 0], said
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_up_base_computes_what_a_whole_one_does(kind: str, configs: dict[str, AlignConfig], cut_up: Path) -> None:
    policy = load_policy(configs[kind])
    expected = passes(policy)
    found = safetensors.torch.load_file(cut_up / kind)
    for name in expected.keys() - {"peaks"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    two_layers = sum(parameter.nbytes for parameter in policy.model.parameters() if not parameter.requires_grad)
    assert (found["peaks"] >= expected["peaks"]).all()  # what is gathered is counted
    assert (found["peaks"] <= expected["peaks"] + two_layers).all()

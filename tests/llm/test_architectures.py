"""Every kind of causal language model goes through the same scorer and sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from architectures import ARCHITECTURES, save_model
from letter_world import letter_config, moved
from llm.align import run
from llm.logprob import score
from llm.models import load_policy
from llm.records import Prompt
from llm.rollout import sample_groups
from llm.store import read_events


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_in_a_padded_batch_equal_those_of_plain_rows(architecture: str, tmp_path: Path) -> None:
    policy = moved(load_policy(letter_config(model=str(save_model(tmp_path, architecture)))))
    prompts = [Prompt(t, t, tuple(policy.tokenizer(t)["input_ids"]), None) for t in ("a", "hello there", "xyz")]
    groups = sample_groups(policy, prompts, 3, draw=(0, "rollout", 0), max_new_tokens=8)
    pairs = [(prompt, c) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    expected = []
    for prompt, completion in pairs:
        ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
        with torch.no_grad():
            log_probs = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1].double(), -1)
        expected.append(float(log_probs.gather(-1, ids[0, 1:, None])[len(prompt.token_ids) - 1 :].sum()))
    assert score(policy, pairs, 9) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantization": "nf4", "dtype": "bfloat16"}])
def test_half_precision_runs_through_from_the_prior_to_another_policy(
    settings: dict, in_letters: Path, tmp_path: Path
) -> None:
    summary = run(letter_config(tmp_path / "run", **settings))
    assert summary["before"]["kl_to_prior"]["estimate"] == 0
    phases = [e for e in read_events(tmp_path / "run" / "metrics.jsonl") if e["event"] == "phase"]
    assert [0 <= phase["self_consistency"] < 1 for phase in phases] == [True, True]
    assert summary["after"]["kl_to_prior"]["estimate"] != 0

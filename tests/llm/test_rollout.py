"""Sampling from the policy."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import scipy.stats
import torch

from letter_world import letter_config, letter_tokenizer, moved, save_llama
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.records import Completion, Prompt
from llm.rollout import inverse_cdf, sample_groups

SIGNIFICANCE = 1e-3


def as_prompt(policy: Policy, text: str) -> Prompt:
    return Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None)


def sample(policy: Policy, texts: list[str], n: int, **options: object) -> list[list[Completion]]:
    settings = {"draw": (0, "rollout", 0), "max_new_tokens": 6} | options
    return sample_groups(policy, [as_prompt(policy, text) for text in texts], n, **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_match_the_exact_probabilities_of_an_enumerable_model(tmp_path: Path, temperature: float) -> None:
    save_llama(tmp_path, letter_tokenizer("ab"), scale=20.0)
    policy = moved(load_policy(letter_config(model=str(tmp_path))))
    policy.model.generation_config.top_k = 1  # the library's own sampler would obey; ours must not
    prompt, n = as_prompt(policy, "ab"), 4000
    counts = Counter(c.token_ids for c in sample(policy, ["ab"], n, max_new_tokens=2, temperature=temperature)[0])
    outcomes = [(2,)] + [(a, b) for a, b in itertools.product(range(5), repeat=2) if a != 2]
    pairs = [(prompt, Completion("ab", 0, ids, "stop", "")) for ids in outcomes]
    probabilities = torch.tensor(score(policy, pairs, 32, temperature=temperature)).exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    assert set(counts) <= set(outcomes)
    expected = (probabilities / probabilities.sum() * n).tolist()
    common = [(counts[ids], mean) for ids, mean in zip(outcomes, expected, strict=True) if mean >= 5]
    observed, means = (list(column) for column in zip(*common, strict=True))
    if len(common) < len(outcomes):
        observed, means = [*observed, n - sum(observed)], [*means, n - sum(means)]
    assert scipy.stats.chisquare(observed, means).pvalue > SIGNIFICANCE


def test_a_prompts_completions_do_not_depend_on_its_neighbours(policy: Policy) -> None:
    alone = sample(policy, ["abc"], 5)[0]
    among = sample(policy, ["z", "abc", "a much longer prompt"], 5)[1]
    assert alone == among


def test_the_first_completions_of_a_larger_group_are_those_of_a_smaller_one(policy: Policy) -> None:
    assert sample(policy, ["abc"], 8)[0][:3] == sample(policy, ["abc"], 3)[0]


def test_another_seed_stage_or_iteration_gives_other_completions(policy: Policy) -> None:
    drawn = [sample(policy, ["abc"], 6, draw=draw)[0] for draw in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len({tuple(c.token_ids for c in group) for group in drawn}) == 4


def test_a_completion_ends_with_its_first_end_token_or_is_marked_as_cut(policy: Policy) -> None:
    completions = [c for group in sample(policy, ["abc", "z"], 50) for c in group]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        ends = completion.token_ids.count(2)
        assert ends == (completion.finish_reason == "stop")
        assert completion.token_ids[-1] == 2 or len(completion.token_ids) == 6


def test_text_is_the_completion_without_special_tokens(policy: Policy) -> None:
    for completion in sample(policy, ["abc "], 20)[0]:
        letters = [token for token in completion.token_ids if token > 2]
        assert completion.text == "".join(policy.tokenizer.convert_ids_to_tokens(letters))


def test_a_token_of_probability_zero_is_never_drawn_even_at_the_ends_of_the_unit_interval() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).repeat(3, 1)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits, uniform).tolist() == [1, 3, 3]


def test_inverse_cdf_inverts_the_cumulative_distribution() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(5, 1)
    uniform = torch.tensor([0.05, 0.15, 0.31, 0.59, 0.61], dtype=torch.float64)
    assert inverse_cdf(logits, uniform).tolist() == [0, 1, 2, 2, 3]

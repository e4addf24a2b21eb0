"""Sampling from the policy."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
import torch

from letter_world import letter_config, letter_tokenizer, moved, save_llama
from llm import rollout
from llm.decoding import SharedPrefixDecoder
from llm.errors import UserError
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


@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_match_the_exact_probabilities_of_an_enumerable_model(
    tmp_path: Path, temperature: float, engine: str
) -> None:
    save_llama(tmp_path, letter_tokenizer("ab"), scale=20.0)
    policy = moved(load_policy(letter_config(model=str(tmp_path), engine=engine)))
    assert policy.shares_prompts == (engine == "shared-prefix")
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
    assert inverse_cdf(logits, uniform, 1.0)[0].tolist() == [1, 3, 3]


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 1000])
def test_a_lone_token_is_drawn_wherever_it_stands(columns: int) -> None:
    logits = torch.full((columns, columns), -torch.inf).fill_diagonal_(0.0)
    uniform = torch.linspace(0, 1 - 2**-53, columns, dtype=torch.float64)
    token, log_prob = inverse_cdf(logits, uniform, 1.0)
    assert token.tolist() == list(range(columns))
    assert log_prob.abs().max() == 0


def test_inverse_cdf_inverts_the_cumulative_distribution() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(5, 1)
    uniform = torch.tensor([0.05, 0.15, 0.31, 0.59, 0.61], dtype=torch.float64)
    assert inverse_cdf(logits, uniform, 1.0)[0].tolist() == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_inverse_cdf_over_many_blocks_equals_one_cumulative_sum(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, 1777, generator=draw)
    uniform = torch.rand(2000, generator=draw, dtype=torch.float64)
    token, log_prob = inverse_cdf(logits, uniform, temperature)
    exact = torch.log_softmax(logits.double() / temperature, -1)
    ends = exact.exp().cumsum(-1)
    below = torch.where(token > 0, ends.gather(-1, (token[:, None] - 1).clamp(min=0))[:, 0], 0.0)
    assert (below <= uniform + 1e-6).all()
    assert (uniform <= ends.gather(-1, token[:, None])[:, 0] + 1e-6).all()
    assert (log_prob - exact.gather(-1, token[:, None])[:, 0]).abs().max() < 1e-5


def test_the_drawn_frequencies_match_a_large_vocabularys_probabilities() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(1000, generator=draw)
    uniform = torch.rand(50_000, generator=draw, dtype=torch.float64)
    counts = inverse_cdf(logits.expand(len(uniform), -1), uniform, 1.0)[0].bincount(minlength=1000)
    order = logits.argsort(descending=True)
    means = torch.softmax(logits.double(), -1)[order] * len(uniform)
    common = int((means >= 5).sum())
    observed = [*counts[order[:common]].tolist(), int(counts[order[common:]].sum())]
    expected = [*means[:common].tolist(), float(means[common:].sum())]
    assert scipy.stats.chisquare(observed, expected).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
def test_the_samplers_log_prob_is_the_scorers(engine: str, in_letters: Path) -> None:
    policy = moved(load_policy(letter_config(engine=engine)))
    texts = ["abc", "z", "a much longer prompt"]
    groups = sample(policy, texts, 7, max_new_tokens=20, temperature=0.8)
    pairs = [(as_prompt(policy, text), c) for text, group in zip(texts, groups, strict=True) for c in group]
    assert {c.finish_reason for _, c in pairs} == {"stop", "length"}
    expected = score(policy, pairs, 100, temperature=0.8)
    assert [c.sampler_log_prob for _, c in pairs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("every", [1, 3, 1000])
@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
def test_leaving_when_ended_does_not_change_the_others(
    engine: str, every: int, in_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(load_policy(letter_config(engine=engine)))
    texts = ["abc", "z", "a much longer prompt"]
    expected = sample(policy, texts, 12, max_new_tokens=30)
    monkeypatch.setattr(rollout, "COMPACT_EVERY", every)
    assert sample(policy, texts, 12, max_new_tokens=30) == expected


@pytest.mark.parametrize("stop", [(), ("q", "ab")])
def test_nothing_is_computed_for_completions_that_have_left(
    stop: tuple[str, ...], in_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(load_policy(letter_config()))
    monkeypatch.setattr(rollout, "COMPACT_EVERY", 1)
    rows: list[int] = []
    step = SharedPrefixDecoder.step
    monkeypatch.setattr(
        SharedPrefixDecoder, "step", lambda self, tokens: (rows.append(len(tokens)), step(self, tokens))[1]
    )
    groups = sample(policy, ["abc", "z"], 20, max_new_tokens=30, stop=stop)
    lengths = [len(c.token_ids) for group in groups for c in group]
    assert rows == [sum(length > step for length in lengths) for step in range(1, max(lengths))]


def test_both_engines_sample_the_same(in_letters: Path) -> None:
    texts = ["abc", "z", "a much longer prompt"]
    found = [
        sample(moved(load_policy(letter_config(engine=engine))), texts, 9, max_new_tokens=30)
        for engine in ("shared-prefix", "plain")
    ]
    assert found[0] == found[1]


def test_a_stop_string_ends_a_completion_and_its_text(policy: Policy) -> None:
    free = [c for group in sample(policy, ["abc", "z"], 40, max_new_tokens=24) for c in group]
    stopped = [c for group in sample(policy, ["abc", "z"], 40, max_new_tokens=24, stop=("q", "ab")) for c in group]
    assert any("ab" in c.text for c in free)
    assert any("q" in c.text for c in free)
    for one, other in zip(free, stopped, strict=True):
        texts = [policy.tokenizer.decode(one.token_ids[:k], skip_special_tokens=True) for k in range(25)]
        ends = [k for k, text in enumerate(texts[: len(one.token_ids) + 1]) if "q" in text or "ab" in text]
        if not ends:
            assert other == one
            continue
        assert other.token_ids == one.token_ids[: ends[0]]
        assert other.finish_reason == "stop"
        assert one.text.startswith(other.text)
        assert "q" not in other.text
        assert "ab" not in other.text
    pairs = [(as_prompt(policy, c.prompt_id), c) for c in stopped]
    assert [c.sampler_log_prob for c in stopped] == pytest.approx(score(policy, pairs, 100), abs=1e-4)


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_where_a_stop_string_ends_a_completion_does_not_depend_on_when_it_is_looked_for(
    every: int, in_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved(load_policy(letter_config()))
    expected = sample(policy, ["abc", "z"], 20, max_new_tokens=30, stop=("q", "ab"))
    monkeypatch.setattr(rollout, "COMPACT_EVERY", every)
    assert sample(policy, ["abc", "z"], 20, max_new_tokens=30, stop=("q", "ab")) == expected


def test_a_stop_string_with_a_leading_space_is_found_where_decoding_alone_would_strip_it(policy: Policy) -> None:
    """Llama's decoder drops the first space of what it decodes; a completion stands after its prompt."""

    class Stripping:
        def decode(self, ids: list[int], **options: object) -> str:
            return policy.tokenizer.decode(ids, **options).removeprefix(" ")

    stripping = replace(policy, tokenizer=Stripping())
    ids = [*policy.tokenizer(" ab")["input_ids"], 5, 6]
    found = rollout._completion(stripping, as_prompt(policy, "abc"), 0, ids, [-1.0] * 5, (" ab",))
    assert (found.token_ids, found.text, found.finish_reason) == (tuple(ids[:3]), "", "stop")
    assert found.sampler_log_prob == -3.0


def test_a_stop_string_before_the_end_token_ends_the_completion(policy: Policy) -> None:
    ids = [*policy.tokenizer("xaby")["input_ids"], 2]
    found = rollout._completion(policy, as_prompt(policy, "abc"), 0, ids, [-1.0] * 5, ("ab",))
    assert (found.token_ids, found.text, found.finish_reason) == (tuple(ids[:3]), "x", "stop")


@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
def test_not_a_number_is_refused(engine: str, in_letters: Path) -> None:
    policy = moved(load_policy(letter_config(engine=engine)))
    with torch.no_grad():
        policy.base.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        sample(policy, ["abc"], 3)


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [("", 6, "is empty"), ("abc" * 20, 6, "do not fit"), ("abc", 62, "do not fit")],
)
def test_what_the_context_cannot_hold_is_refused(text: str, length: int, message: str, policy: Policy) -> None:
    ids = tuple(policy.tokenizer(text)["input_ids"]) if text else ()
    prompt = Prompt("of the test", text, ids, None)
    with pytest.raises(UserError, match=f"of the test.*{message}"):
        sample_groups(policy, [prompt], 2, draw=(0, "rollout", 0), max_new_tokens=length)
    with pytest.raises(UserError, match=f"of the test.*{message}"):
        score(policy, [(prompt, Completion("of the test", 0, (3,) * length, "length", ""))], 1)

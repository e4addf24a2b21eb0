"""The shared-prefix engine against the plain path: log-probs and gradients, for every architecture that it supports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from architectures import save_model
from letter_world import letter_config, moved
from llm import prefix_attention, shared_prefix
from llm.align import run
from llm.logprob import score, sequence_log_probs, token_batch, token_log_probs
from llm.models import Policy, load_policy
from llm.prefix_attention import ARCHITECTURES
from llm.records import Completion, Pair, Prompt

LETTERS = st.lists(st.integers(3, 28), min_size=1, max_size=9).map(tuple)
COMPLETIONS = st.lists(st.lists(st.integers(3, 28), max_size=9).map(tuple), min_size=1, max_size=5)
GROUPS = st.lists(st.tuples(LETTERS, COMPLETIONS), min_size=1, max_size=4).filter(
    lambda groups: any(any(completions) for _, completions in groups)
)
SHAPES = {"a pair": [(7, 2)], "a large group": [(5, 33)], "three groups": [(9, 3), (1, 2), (20, 8)]}


def pairs_of(groups: list[tuple[tuple[int, ...], list[tuple[int, ...]]]]) -> list[Pair]:
    found = []
    for index, (prompt_ids, completions) in enumerate(groups):
        prompt = Prompt(str(index), "", prompt_ids, None)
        found += [(prompt, Completion(str(index), i, ids, "length", "")) for i, ids in enumerate(completions)]
    return found


def random_pairs(shape: list[tuple[int, int]], seed: int = 0) -> list[Pair]:
    """Groups of completions of 1 to 12 tokens, every other one ended by the end token."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 29, (length,), generator=draw).tolist())

    lengths = torch.randint(1, 13, (100,), generator=draw).tolist()
    completions = [tokens(length) + (2,) * (i % 2) for i, length in enumerate(lengths)]
    return pairs_of([(tokens(width), [completions.pop() for _ in range(n)]) for width, n in shape])


def policy_of(architecture: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Policy:
    policy = moved(load_policy(letter_config(model=str(save_model(folder, architecture)), **changes)))
    policy.model.to(dtype)
    return policy


def by_rows(policy: Policy, pairs: list[Pair]) -> torch.Tensor:
    """Token log-probs of single rows without padding, end to end."""
    found = []
    for prompt, completion in pairs:
        row = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
        log_probs = torch.log_softmax(policy.model(input_ids=row).logits[0, :-1], -1)
        found.append(log_probs.gather(-1, row[0, 1:, None])[len(prompt.token_ids) - 1 :, 0])
    return torch.cat(found)


def flat(tokens: torch.Tensor, pairs: list[Pair]) -> torch.Tensor:
    return torch.cat([row[: len(c.token_ids)] for row, (_, c) in zip(tokens, pairs, strict=True)])


def gradient(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    """The gradient of a random combination of token log-probs, so that every token counts on its own."""
    weights = torch.randn(len(tokens), generator=torch.Generator().manual_seed(3)).to(tokens.dtype)
    found = torch.autograd.grad((weights * tokens).sum(), policy.parameters(), allow_unused=True, retain_graph=True)
    return torch.cat([g.flatten().double() for g in found if g is not None])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_log_probs_and_gradients_equal_those_of_plain_rows(architecture: str, shape: str, tmp_path: Path) -> None:
    policy, pairs = policy_of(architecture, tmp_path), random_pairs(SHAPES[shape])
    expected = by_rows(policy, pairs)
    found = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    assert (found - expected).abs().max() < 2e-5
    difference = gradient(policy, found) - gradient(policy, expected)
    assert difference.norm() < 1e-5 * gradient(policy, expected).norm()


# GPT-J computes its attention weights in float32 whatever the model's precision; rotary embeddings are float32 too.
LIMITS = {"gpt2": (1e-10, 1e-10), "gptj": (1e-6, 1e-6)}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_in_float64_they_agree_as_far_as_the_library_computes_in_float64(architecture: str, tmp_path: Path) -> None:
    policy, pairs = policy_of(architecture, tmp_path, dtype=torch.float64), random_pairs(SHAPES["three groups"])
    expected = by_rows(policy, pairs)
    found = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    for_values, for_gradients = LIMITS.get(architecture, (1e-10, 1e-6))
    assert (found - expected).abs().max() < for_values
    difference = gradient(policy, found) - gradient(policy, expected)
    assert difference.norm() < for_gradients * gradient(policy, expected).norm()


@given(groups=GROUPS)
@settings(max_examples=30)
def test_any_groups_score_as_they_do_one_by_one(groups: list, shared_policy: Policy) -> None:
    pairs = pairs_of(groups)
    with torch.no_grad():
        tokens = shared_prefix.token_log_probs(shared_policy.base, pairs, 1.0)
        found = flat(tokens, pairs)
        assert (found - by_rows(shared_policy, pairs)).abs().max() < 2e-5
        nothing_beside = float(tokens.abs().sum() - found.abs().sum())  # neither padding nor empty completions
        assert nothing_beside == pytest.approx(0, abs=1e-4)


@pytest.fixture(scope="module")
def shared_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return policy_of("llama", tmp_path_factory.mktemp("llama"))


def test_padding_is_zero_and_the_temperature_divides_the_logits(shared_policy: Policy) -> None:
    pairs = random_pairs(SHAPES["three groups"])
    found = shared_prefix.token_log_probs(shared_policy.base, pairs, 2.5)
    expected = token_log_probs(shared_policy, token_batch(pairs, shared_policy.device), temperature=2.5)
    assert torch.equal(found == 0, expected == 0)
    assert (found - expected).abs().max() < 2e-5
    slopes = [gradient(shared_policy, flat(tokens, pairs)) for tokens in (found, expected)]
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[1].norm()


def test_the_prior_and_the_policy_are_told_apart(shared_policy: Policy) -> None:
    pairs = random_pairs(SHAPES["a large group"])
    plain = replace(shared_policy, shares_prompts=False)
    with shared_policy.as_prior():
        prior = score(shared_policy, pairs, 64)
        assert prior == pytest.approx(score(plain, pairs, 64), abs=1e-4)
    assert score(shared_policy, pairs, 64) == pytest.approx(score(plain, pairs, 64), abs=1e-4)
    assert max(abs(a - b) for a, b in zip(prior, score(shared_policy, pairs, 64), strict=True)) > 0.1


def test_a_group_cut_in_two_calls_scores_the_same(shared_policy: Policy) -> None:
    pairs = random_pairs(SHAPES["three groups"])
    assert score(shared_policy, pairs, 4) == pytest.approx(score(shared_policy, pairs, 100), abs=2e-5)


def test_logits_are_made_a_few_at_a_time_with_the_same_result(
    shared_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = random_pairs(SHAPES["three groups"])
    whole = flat(shared_prefix.token_log_probs(shared_policy.base, pairs, 1.0), pairs)
    monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", 100)
    parts = flat(shared_prefix.token_log_probs(shared_policy.base, pairs, 1.0), pairs)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.allclose(gradient(shared_policy, whole), gradient(shared_policy, parts), atol=1e-5)


def test_a_head_that_is_trained_has_the_gradient_of_the_plain_path(tmp_path: Path) -> None:
    policy = policy_of("llama", tmp_path, lora_targets="q_proj,lm_head")
    pairs = random_pairs(SHAPES["three groups"])
    expected = by_rows(policy, pairs)
    found = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    assert (found - expected).abs().max() < 2e-5
    assert any("lm_head" in name for name, p in policy.model.named_parameters() if p.requires_grad)
    difference = gradient(policy, found) - gradient(policy, expected)
    assert difference.norm() < 1e-5 * gradient(policy, expected).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("confidence", [0.54, 0.98, 0.9995])
def test_the_frozen_heads_slope_is_as_good_as_autograds_in_half_precision(confidence, dtype) -> None:
    """The slope of a log-prob near 0 is a small difference, which half precision must not lose."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 64, generator=draw, dtype=torch.float64)
    tokens = torch.arange(40)
    states = weight[tokens] + 0.3 * torch.randn(40, 64, generator=draw, dtype=torch.float64)
    low, high = 0.0, 1.0
    for _ in range(40):  # scale the states to the wanted mean probability
        scale = (low + high) / 2
        mean = torch.softmax(scale * states @ weight.T, -1)[tokens, tokens].mean()
        low, high = (scale, high) if mean < confidence else (low, scale)
    weight, states = weight.to(dtype), (scale * states).to(dtype)

    def slope(of, kind) -> torch.Tensor:
        leaf = states.to(kind).requires_grad_()
        return torch.autograd.grad(of(leaf, weight.to(kind)).sum(), leaf)[0].double()

    def plain(leaf, head) -> torch.Tensor:
        logits = leaf @ head.T
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)[tokens, tokens]

    def frozen(leaf, head) -> torch.Tensor:
        return shared_prefix._FrozenHead.apply(leaf, head, None, tokens, 1.0, 7)

    exact = slope(plain, torch.float64)
    assert torch.allclose(slope(frozen, torch.float64), exact, rtol=1e-10, atol=1e-12)
    assert (slope(frozen, dtype) - exact).norm() < 1.5 * (slope(plain, dtype) - exact).norm()


def test_a_lost_layout_is_refused_and_gives_no_numbers(shared_policy: Policy) -> None:
    shared_policy.base.set_attn_implementation("sdpa")
    try:
        with pytest.raises(Exception, match="not finite"):
            sequence_log_probs(shared_policy, random_pairs(SHAPES["a pair"]))
    finally:
        shared_policy.base.set_attn_implementation(prefix_attention.NAME)


def test_attention_dropout_is_refused(tmp_path: Path) -> None:
    policy = policy_of("llama", tmp_path)
    policy.base.model.layers[0].self_attn.attention_dropout = 0.1
    policy.base.train()
    with pytest.raises(ValueError, match="attention dropout is on"):
        sequence_log_probs(policy, random_pairs(SHAPES["a pair"]))


def test_activation_checkpointing_gives_the_same_gradient(tmp_path: Path) -> None:
    policy, pairs = policy_of("llama", tmp_path), random_pairs(SHAPES["three groups"])
    expected = gradient(policy, flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs))
    policy.base.activation_checkpointing_enable({"use_reentrant": False})
    policy.base.train()  # the library checkpoints in training mode only; dropout is 0 here
    found = gradient(policy, flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_four_bit_weights_score_and_train_as_on_the_plain_path(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    policy = moved(load_policy(letter_config(model=str(folder), quantization="nf4")))
    pairs = random_pairs(SHAPES["three groups"])
    assert policy.shares_prompts
    score(policy, pairs, 64)  # a pass without gradient first, after which the library's packing would lose gradients
    found = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    expected = by_rows(policy, pairs)
    assert (found - expected).abs().max() < 2e-4
    difference = gradient(policy, found) - gradient(policy, expected)
    assert gradient(policy, expected).norm() > 0
    assert difference.norm() < 1e-4 * gradient(policy, expected).norm()


def test_bfloat16_differs_no_more_than_the_plain_path_from_itself_in_another_batch(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    policy = moved(load_policy(letter_config(model=str(folder), dtype="bfloat16")))
    plain = replace(policy, shares_prompts=False)
    pairs = random_pairs(SHAPES["a large group"])
    exact = by_rows(policy_of("llama", tmp_path / "again"), pairs)
    with torch.no_grad():
        rows = by_rows(policy, pairs).float()
        batched = flat(token_log_probs(plain, token_batch(pairs, plain.device)), pairs)
        shared = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    assert (shared - exact).abs().mean() < 1.5 * max((rows - exact).abs().mean(), (batched - exact).abs().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_large_scores_keep_their_precision(dtype: torch.dtype) -> None:
    """Half precision has steps of 8 where scores are 2,000 before scaling; the log-sum-exp must not carry them."""
    draw = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(2, 3, 40, 128, generator=draw).to(dtype) for _ in range(4))
    query, scale = 60 * query, 128**-0.5

    def results(*inputs: torch.Tensor) -> list[torch.Tensor]:
        out, size = prefix_attention._products(*inputs[:3], True, scale)
        slopes = prefix_attention._products_backward(inputs[3], *inputs[:3], out, size, is_causal=True, scale=scale)
        return [size.double(), *(tensor.double() for tensor in (out, *slopes))]

    exact = results(*(tensor.double() for tensor in (query, key, value, grad)))
    found = results(query, key, value, grad)
    assert exact[0].abs().max() > 150
    assert (found[0] - exact[0]).abs().max() < 1e-2
    for one, other in zip(found[1:], exact[1:], strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize(("window", "pays"), [(None, True), (64, True), (8, False)])
def test_a_sliding_window_shorter_than_a_pair_takes_the_plain_path(
    window: int | None, pays: bool, tmp_path: Path
) -> None:
    policy = policy_of("mistral", tmp_path)
    policy.base.config.sliding_window = window
    assert shared_prefix.pays(policy.base, random_pairs(SHAPES["a large group"])) is pays


def test_pairs_that_share_no_prompt_take_the_plain_path(shared_policy: Policy) -> None:
    alone = random_pairs([(5, 1), (6, 1), (5, 1)])
    assert not shared_prefix.pays(shared_policy.base, alone)
    assert shared_prefix.pays(shared_policy.base, alone + random_pairs([(3, 2)]))


def test_an_architecture_without_support_says_so_once_and_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = moved(load_policy(letter_config(model=str(save_model(tmp_path, "gemma2")))))
    pairs = random_pairs(SHAPES["three groups"])
    assert not policy.shares_prompts
    sums = [float(row.sum()) for row in by_rows(policy, pairs).detach().split([len(c.token_ids) for _, c in pairs])]
    assert score(policy, pairs, 100) == pytest.approx(sums, abs=1e-4)
    assert capsys.readouterr().err.count("gemma2 is not among the architectures it is proved for") == 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_without_the_processors_kernel_matrix_products_give_the_same(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(architecture, tmp_path, dtype=torch.float64)
    pairs = random_pairs(SHAPES["three groups"])
    expected = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    slope = gradient(policy, expected)
    monkeypatch.setattr(prefix_attention, "FLASH", "_no_such_kernel")
    found = flat(shared_prefix.token_log_probs(policy.base, pairs, 1.0), pairs)
    assert (found - expected).abs().max() < 1e-10
    assert (gradient(policy, found) - slope).norm() < 1e-10 * slope.norm()


def test_the_plain_engine_is_the_users_choice(in_letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_policy(letter_config()).shares_prompts
    assert not load_policy(letter_config(engine="plain")).shares_prompts
    assert capsys.readouterr().err == ""


def test_not_a_number_is_refused(shared_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    head = shared_policy.base.get_output_embeddings()
    monkeypatch.setattr(head, "weight", torch.nn.Parameter(torch.full_like(head.weight, torch.nan)))
    with pytest.raises(Exception, match="not finite"):
        sequence_log_probs(shared_policy, random_pairs(SHAPES["a pair"]))


def test_a_run_with_either_engine_ends_in_the_same_place(in_letters: Path, tmp_path: Path) -> None:
    ends = [run(letter_config(tmp_path / engine, engine=engine))["after"] for engine in ("shared-prefix", "plain")]
    for key in ("mean_reward", "kl_to_prior", "completion_length"):
        assert ends[0][key]["estimate"] == pytest.approx(ends[1][key]["estimate"], rel=0.02, abs=0.02)

"""GRPO, PPO and Quark: each one's gradient against a slow formula on full logits, and what is kept beside the adapter.

The formulas are written from the papers and share no code with the methods: single unpadded rows, loops over tokens.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from architectures import save_model
from child_runs import InDouble, run_apart, run_together
from letter_world import LETTERS, interrupting, letter_config, letter_tokenizer, moved, save_llama
from llm.align import run
from llm.checkpoint import load_best_adapter, model_card, save_adapter
from llm.config import AlignConfig, validate
from llm.controls import control_texts, likeness
from llm.errors import UserError
from llm.groups import Collector
from llm.logprob import group_pairs, score, score_tokens, sequence_log_probs
from llm.models import Policy, load_policy
from llm.records import Prompt, ScoredGroup
from llm.rewards import load_reward
from llm.rollout import sample_groups
from llm.token_methods import generalized_advantage, mark_quantiles
from llm.train import accumulate_gradient, draw_batch, make_objective, make_optimizer, train_step

SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"clip": 0.05, "kl_weight": 0.3},
    "ppo": {"clip": 0.05, "gae_lambda": 0.7, "value_weight": 0.6, "value_clip": 0.1},
    "quark": {"quantiles": ("d", "c", "b", "a"), "kl_weight": 0.3},
}
"""No constant is one that could be left out, and the clips are active."""


def settings(method: str, **changes: object) -> AlignConfig:
    return letter_config(**({"method": method, "m": 4, "n": 4, "temperature": 0.4} | SETTINGS[method] | changes))


def moved_by(policy: Policy, seed: int, size: float) -> Policy:
    """Add random values to every tensor that is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * size)
    return policy


def collected(policy: Policy, config: AlignConfig, folder: Path, phase: int = 0) -> list[ScoredGroup]:
    """Groups whose rewards are random numbers."""
    prompts = [
        Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None) for text in ("abc", "z", "hi q", "oo")
    ]
    reward = load_reward("letter_rewards:count_a", device="cpu", batch_size=8)
    groups = Collector(policy, reward, config, folder, "f" * 64).collect(phase, prompts, lambda done: None)
    draws = np.random.default_rng(phase)
    return [dataclasses.replace(group, reward=draws.normal(size=config.n)) for group in groups]


def prepared(config: AlignConfig, folder: Path) -> tuple[Policy, list[ScoredGroup]]:
    """A policy away from the proposal, which is away from the prior, with the groups of a step."""
    policy = moved(load_policy(config))
    groups = collected(policy, config, folder)
    return moved_by(policy, 2, 0.03), draw_batch(groups, config, 0)


@dataclasses.dataclass
class Row:
    """What one unpadded row of the plain model tells of a completion: (T, V) log-probs, (T,) of the tokens, values."""

    distribution: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor


def forward(policy: Policy, prompt: list[int], completion: tuple[int, ...]) -> Row:
    ids = torch.tensor([[*prompt, *completion]])
    outputs = policy.model(input_ids=ids, output_hidden_states=True)
    places = slice(len(prompt) - 1, -1)
    distribution = torch.log_softmax(outputs.logits[0, places], -1)
    log_probs = torch.stack([distribution[t, token] for t, token in enumerate(completion)])
    head = policy.value_head
    states = outputs.hidden_states[-1][0, places]
    values = states @ head.weight[0] + head.bias if head else torch.zeros(len(completion))
    return Row(distribution.double(), log_probs.double(), values.double())


def grpo_oracle(policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> torch.Tensor:
    """−1/G Σᵢ 1/|oᵢ| Σₜ {min[ρ A, clip(ρ) A] − β (p/q − log p/q − 1)}, A = (r − mean)/std."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        deviation = np.std(group.reward, ddof=1)
        for i, (prompt, completion) in enumerate(group_pairs(group)):
            row = forward(policy, [*prompt.token_ids], completion.token_ids)
            advantage = (group.reward[i] - group.reward.mean()) / deviation
            for t in range(len(completion.token_ids)):
                ratio = torch.exp(row.log_probs[t] - group.tokens.log_proposal[i][t])
                inside = ratio.clamp(1 - config.clip, 1 + config.clip)
                gap = group.tokens.log_prior[i][t] - row.log_probs[t]
                penalty = torch.exp(gap) - gap - 1
                value = torch.minimum(ratio * advantage, inside * advantage) - config.kl_weight * penalty
                total = total - value / (len(completion.token_ids) * len(group.reward) * len(groups))
    return total


def ppo_oracle(policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> torch.Tensor:
    """Advantages by their defining double sum, the clipped surrogate and value loss, a mean over a group's tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        count = sum(len(completion.token_ids) for completion in group.completions)
        for i, (prompt, completion) in enumerate(group_pairs(group)):
            row, length = forward(policy, [*prompt.token_ids], completion.token_ids), len(completion.token_ids)
            old, log_old, log_prior = group.tokens.values[i], group.tokens.log_proposal[i], group.tokens.log_prior[i]
            reward = [-config.temperature * (log_old[t] - log_prior[t]) for t in range(length)]
            reward[-1] += group.reward[i] - group.reward.mean()
            surprise = [reward[t] + (old[t + 1] if t + 1 < length else 0) - old[t] for t in range(length)]
            for t in range(length):
                advantage = sum(config.gae_lambda ** (s - t) * surprise[s] for s in range(t, length))
                ratio = torch.exp(row.log_probs[t] - log_old[t])
                inside = ratio.clamp(1 - config.clip, 1 + config.clip)
                near = torch.clamp(row.values[t], old[t] - config.value_clip, old[t] + config.value_clip)
                target = advantage + old[t]
                error = torch.maximum((row.values[t] - target) ** 2, (near - target) ** 2)
                surrogate = torch.minimum(ratio * advantage, inside * advantage)
                total = total + (config.value_weight * error / 2 - surrogate) / (count * len(groups))
    return total


def quark_oracle(policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> torch.Tensor:
    """−log q(y|control, x) + β Σₜ KL(p‖q), the KL over the vocabulary, a mean over the group."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        for (prompt, completion), quantile in zip(group_pairs(group), group.quantile, strict=True):
            text = "grade " + "dcba"[quantile - 1] + " "
            control = [3 + LETTERS.index(letter) for letter in text]
            row = forward(policy, [*control, *prompt.token_ids], completion.token_ids)
            with policy.as_prior(), torch.no_grad():
                prior = forward(policy, [*prompt.token_ids], completion.token_ids).distribution
            divergence = (prior.exp() * (prior - row.distribution)).sum()
            total = total + (config.kl_weight * divergence - row.log_probs.sum()) / (len(group.reward) * len(groups))
    return total


ORACLES = {"grpo": grpo_oracle, "ppo": ppo_oracle, "quark": quark_oracle}


def flat_gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def gradient(policy: Policy, groups: list[ScoredGroup], config: AlignConfig, rows: int | None = None) -> torch.Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    accumulate_gradient(policy, groups, make_objective(config), 1 / len(groups), rows=rows)
    return flat_gradient(policy)


def expected_gradient(policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> torch.Tensor:
    loss = ORACLES[config.method](policy, groups, config)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


@pytest.mark.parametrize("method", ORACLES)
def test_a_methods_gradient_is_that_of_its_formula_on_full_logits(
    method: str, in_letters: Path, tmp_path: Path
) -> None:
    config = settings(method, engine="plain")
    policy, groups = prepared(config, tmp_path)
    expected = expected_gradient(policy, groups, config)
    assert expected.norm() > 0.05
    assert (gradient(policy, groups, config) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("method", ORACLES)
def test_in_double_precision_the_fast_engine_agrees_to_nine_digits(
    method: str, in_letters: Path, tmp_path: Path
) -> None:
    """Of GPT-2, all of which computes in the precision of its weights."""
    config = settings(method, model=str(save_model(tmp_path / "model", "gpt2")))
    policy, groups = prepared(config, tmp_path)
    policy.model.double()
    if policy.value_head:
        policy.value_head.double()
    expected = expected_gradient(policy, groups, config)
    assert expected.norm() > 0.05
    assert (gradient(policy, groups, config) - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("method", ORACLES)
def test_the_gradient_depends_neither_on_the_engine_nor_on_how_the_batch_is_cut(
    method: str, in_letters: Path, tmp_path: Path
) -> None:
    config = settings(method)
    policy, groups = prepared(config, tmp_path)
    whole = gradient(policy, groups, config)
    plain = dataclasses.replace(policy, shares_prompts=False)
    cuts = {rows: gradient(policy, groups, config, rows) for rows in (1, 3, 4, 5)}
    assert whole.norm() > 0.05
    for found in (*cuts.values(), gradient(plain, groups, config), gradient(plain, groups, config, 2)):
        assert (found - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("method", ORACLES)
def test_a_step_reports_the_same_however_the_batch_is_cut(method: str, in_letters: Path, tmp_path: Path) -> None:
    config = settings(method)
    policy, groups = prepared(config, tmp_path)
    start, stats = policy.adapter_state(), []
    for rows in (12, 5):
        policy.load_adapter_state(start)
        cut = dataclasses.replace(config, train_rows=rows)
        stats.append(train_step(policy, make_optimizer(policy, cut), groups, make_objective(cut), 0))
    assert stats[0] == pytest.approx(stats[1], rel=1e-4)
    assert stats[0].coefficient_size > 0.01
    if method != "quark":
        pairs = [pair for group in groups for pair in group_pairs(group)]
        policy.load_adapter_state(start)
        drift = np.mean(score(policy, pairs, 12)) - np.mean([group.log_proposal for group in groups])
        assert stats[0].likelihood_drift == pytest.approx(drift, abs=1e-5)


def test_grpo_on_fresh_rollouts_is_reinforce_with_its_advantage(in_letters: Path, tmp_path: Path) -> None:
    """The clip is not active and there is no penalty: −Σ A ∇ log q / |y|, averaged over the group."""
    config = settings("grpo", kl_weight=0.0)
    policy = moved(load_policy(config))
    groups = collected(policy, config, tmp_path)
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        lengths = torch.tensor([len(completion.token_ids) for completion in group.completions])
        advantage = torch.tensor((group.reward - group.reward.mean()) / group.reward.std(ddof=1))
        log_q = sequence_log_probs(policy, group_pairs(group))
        total = total - (advantage * log_q / lengths).mean() / len(groups)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, policy.parameters())])
    assert expected.norm() > 0.05
    assert (gradient(policy, groups, config) - expected).norm() < 1e-5 * expected.norm()


def test_grpo_leaves_the_policy_alone_where_rewards_are_equal_and_nothing_holds_it(
    in_letters: Path, tmp_path: Path
) -> None:
    config = settings("grpo", kl_weight=0.0)
    policy, groups = prepared(config, tmp_path)
    equal = [dataclasses.replace(group, reward=np.ones(config.n)) for group in groups]
    assert train_step(policy, make_optimizer(policy, config), equal, make_objective(config), 0).grad_norm == 0


def test_advantages_without_decay_are_surprises_and_with_none_lost_the_return_less_the_value() -> None:
    rewards, values = np.array([1.0, -2.0, 5.0]), np.array([0.5, 0.25, -1.0])
    assert generalized_advantage(rewards, values, 0.0).tolist() == [0.75, -3.25, 6.0]
    assert generalized_advantage(rewards, values, 1.0).tolist() == [3.5, 2.75, 6.0]


def test_scores_hold_every_token_of_the_scorers_and_their_sums(in_letters: Path, tmp_path: Path) -> None:
    config = settings("ppo", temperature=1.0)
    policy = moved(load_policy(config))
    groups = collected(policy, config, tmp_path)
    for group in groups:
        for i, (prompt, completion) in enumerate(group_pairs(group)):
            row = forward(policy, [*prompt.token_ids], completion.token_ids)
            assert group.tokens.log_proposal[i] == pytest.approx(row.log_probs.detach().numpy(), abs=2e-5)
            assert group.tokens.values[i] == pytest.approx(row.values.detach().numpy(), abs=2e-5)
            with policy.as_prior():
                prior = forward(policy, [*prompt.token_ids], completion.token_ids).log_probs.detach().numpy()
            assert group.tokens.log_prior[i] == pytest.approx(prior, abs=2e-5)
            assert group.log_prior[i] == pytest.approx(prior.sum(), abs=5e-5)
            assert group.log_proposal[i] == pytest.approx(row.log_probs.sum().item(), abs=5e-5)
    assert max(abs(values).max() for group in groups for values in group.tokens.values) > 0.05


def test_scores_of_other_methods_have_no_tokens(in_letters: Path, tmp_path: Path) -> None:
    config = settings("quark")
    assert all(group.tokens is None for group in collected(load_policy(config), config, tmp_path))


def test_a_new_value_head_gives_zero_and_the_policy_is_the_prior(in_letters: Path, tmp_path: Path) -> None:
    config = settings("ppo")
    policy = load_policy(config)
    for group in collected(policy, config, tmp_path):
        assert all(not values.any() for values in group.tokens.values)
        assert group.log_proposal == pytest.approx(group.log_prior, abs=1e-6)


def test_the_value_head_learns_what_is_to_come(in_letters: Path, tmp_path: Path) -> None:
    """Trained on one batch, half of it rewarded with 2 and half with −2, it tells them apart at their last tokens."""
    config = settings("ppo", m=2, batch=2, temperature=1e-9, gae_lambda=1.0, value_weight=1.0, value_clip=10.0)
    config = dataclasses.replace(config, clip=1e-9, max_grad_norm=10.0, learning_rate=0.02, warmup_steps=0)
    policy, rewards = load_policy(config), np.array([2.0, 2.0, -2.0, -2.0])
    groups = [dataclasses.replace(g, reward=rewards) for g in collected(policy, config, tmp_path)]
    optimizer, objective = make_optimizer(policy, config), make_objective(config)
    for step in range(150):
        train_step(policy, optimizer, groups, objective, step)
    pairs = [pair for group in groups for pair in group_pairs(group)]
    values = score_tokens(policy, pairs, 16)[1]
    errors = np.array([found[-1] for found in values]) - np.tile(rewards, 2)
    assert np.mean(errors**2) < 0.1 * 2**2


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_constant_added_to_a_prompts_rewards_changes_nothing(method: str, in_letters: Path, tmp_path: Path) -> None:
    config = settings(method)
    policy = moved(load_policy(config))
    groups = collected(policy, config, tmp_path)
    gradients = []
    for offset in (0.0, 20.0):
        for parameter in policy.parameters():
            parameter.grad = None
        higher = [dataclasses.replace(g, reward=g.reward + offset * (i + 1)) for i, g in enumerate(groups)]
        accumulate_gradient(policy, higher, make_objective(config), 1 / len(groups))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_grpo_knows_rewards_only_and_not_their_goodness(in_letters: Path, tmp_path: Path) -> None:
    config = settings("grpo")
    policy = moved(load_policy(config))
    groups, gradients = collected(policy, config, tmp_path), []
    for changes in ({}, {"goodness": "logistic", "temperature": 1.0}):
        policy.model.zero_grad()
        accumulate_gradient(policy, groups, make_objective(dataclasses.replace(config, **changes)), 1 / len(groups))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    assert torch.equal(*gradients)


def test_the_value_head_is_kept_beside_the_adapter_and_in_checkpoints(in_letters: Path, tmp_path: Path) -> None:
    config = settings("ppo")
    policy = moved(load_policy(config))
    save_adapter(tmp_path, policy, "card")
    fresh = load_policy(config)
    load_best_adapter(tmp_path, fresh)
    assert policy.value_head.weight.abs().max() > 0.1
    for name, tensor in policy.adapter_state().items():
        assert torch.equal(tensor, fresh.adapter_state()[name])
    assert (tmp_path / "adapter" / "value_head.safetensors").is_file()
    (tmp_path / "adapter" / "value_head.safetensors").unlink()
    with pytest.raises(UserError, match="stored adapter is not one of this run"):
        load_best_adapter(tmp_path, load_policy(config))


@pytest.mark.parametrize("method", ["ppo", "quark"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    method: str, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, halted within its second phase."""
    monkeypatch.setattr("llm.report.write", lambda folder: None)
    monkeypatch.setattr("llm.report.closing_table", lambda folder: "")
    config = settings(method, out=str(tmp_path / "whole"), k=2, test_count=2, validation_count=2, validate_every=9)
    run(config)
    halted = dataclasses.replace(config, out=str(tmp_path / "halted"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.align.train_step", interrupting(3))
        with pytest.raises(KeyboardInterrupt):
            run(halted)
    run(halted, resume=True)
    whole = tmp_path / "whole"
    files = [whole / "checkpoints/last/adapter.safetensors", whole / "adapter/adapter_model.safetensors"]
    blocks = [*whole.glob("scores/*/phase-0001/block-*.parquet")]
    assert blocks
    for file in files + blocks:
        assert file.read_bytes() == (tmp_path / "halted" / file.relative_to(whole)).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ORACLES)
def test_a_few_phases_raise_the_reward(method: str, in_letters: Path, tmp_path: Path) -> None:
    sizes = {"e": 3, "k": 20, "m": 24, "n": 16, "batch": 6, "test_count": 24, "validate_every": 20, "sample_rows": 384}
    summary = run(letter_config(tmp_path / "run", method=method, temperature=0.05, **sizes))
    assert summary["change"]["mean_reward"]["low"] > 0
    assert summary["before"]["kl_to_prior"]["estimate"] == 0


def test_a_pool_is_cut_by_the_share_that_is_worse() -> None:
    pool = [rewarded([7.0, 1.0, 3.0, 9.0, 5.0]), rewarded([2.0, 8.0, 4.0, 6.0, 0.0])]
    marked = mark_quantiles(pool[:1], pool, settings("quark", quantiles=tuple("abcde")))
    assert marked[0].quantile.tolist() == [4, 1, 2, 5, 3]


@pytest.mark.parametrize(
    ("rewards", "quantiles"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 0, 1, 2], [1, 1, 1, 1, 1, 1, 1, 1, 4, 4]),
        ([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], [1, 1, 4, 4, 4, 4, 4, 4, 4, 4]),
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 2], [1, 3, 3, 3, 3, 3, 3, 3, 3, 4]),
        ([5] * 10, [4] * 10),
    ],
)
def test_equal_rewards_share_a_quantile_and_the_extremes_are_the_best_and_the_worst(
    rewards: list[float], quantiles: list[int]
) -> None:
    pool = [rewarded(rewards)]
    assert mark_quantiles(pool, pool, settings("quark"))[0].quantile.tolist() == quantiles


def rewarded(rewards: list[float]) -> ScoredGroup:
    """A group of which only the rewards matter."""
    values = np.array(rewards, dtype=float)
    return ScoredGroup(Prompt("x", "x", (1,), None), (), values, values, values)


def test_a_batch_is_marked_by_all_that_the_buffer_holds(in_letters: Path, tmp_path: Path) -> None:
    config = settings("quark", batch=1)
    groups = collected(load_policy(config), config, tmp_path)
    for step in range(3):
        (group,) = draw_batch(groups, config, step)
        (by_all,), (by_itself,) = (mark_quantiles([group], pool, config) for pool in (groups, [group]))
        assert group.quantile.tolist() == by_all.quantile.tolist() != by_itself.quantile.tolist()


def test_a_control_comes_after_the_beginning_of_sequence_and_the_prior_never_sees_it(in_letters: Path) -> None:
    policy = moved(load_policy(settings("quark")))
    bare, begun = Prompt("x", "ab", (3, 4), None), Prompt("x", "ab", (1, 3, 4), None)
    assert policy.controlled(begun) == begun
    policy.take_best_control()
    best = policy.tokenizer.decode(policy.control)
    assert best == "grade a "
    assert policy.controlled(bare).token_ids == (*policy.control, 3, 4)
    assert policy.controlled(begun).token_ids == (1, *policy.control, 3, 4)
    with policy.as_prior():
        assert policy.controlled(begun) == begun
    assert policy.tokenizer.decode(policy.control) == best


def test_the_policy_samples_and_scores_behind_its_control_once_a_step_was_made(
    in_letters: Path, tmp_path: Path
) -> None:
    config = settings("quark", learning_rate=1e-9)
    policy = moved(load_policy(config))
    first = collected(policy, config, tmp_path)
    assert not policy.control
    train_step(policy, make_optimizer(policy, config), draw_batch(first, config, 0), make_objective(config), 0)
    assert tuple(policy.control) == policy.controls[-1]
    for group in collected(policy, config, tmp_path, phase=1):
        behind = policy.with_control(group.prompt, policy.controls[-1])
        policy.control.clear()
        again = sample_groups(policy, [behind], config.n, draw=(0, "rollout", 1), max_new_tokens=6)[0]
        pairs = [(behind, completion) for completion in group.completions]
        assert [c.token_ids for c in again] == [c.token_ids for c in group.completions]
        assert group.log_proposal == pytest.approx(score(policy, pairs, 4), abs=1e-4)
        assert abs(group.log_proposal - score(policy, group_pairs(group), 4)).max() > 1e-3
        with policy.as_prior():
            assert group.log_prior == pytest.approx(score(policy, group_pairs(group), 4), abs=1e-4)
        policy.take_best_control()


def test_training_tells_the_quantiles_apart_by_their_controls(in_letters: Path, tmp_path: Path) -> None:
    config = settings("quark", quantiles=("b", "a"), learning_rate=3e-2, quark_prefix="{}", batch=4, kl_weight=0.0)
    policy = load_policy(config)
    groups = collected(policy, config, tmp_path)
    optimizer, objective = make_optimizer(policy, config), make_objective(config)
    for step in range(15):
        train_step(policy, optimizer, draw_batch(groups, config, step), objective, step)
    pairs = [pair for group in groups for pair in group_pairs(group)]
    quantile = np.concatenate([group.quantile for group in mark_quantiles(groups, groups, config)])
    log_q = []
    for control in policy.controls:
        policy.control[:] = control
        log_q.append(np.array(score(policy, pairs, 16)))
    lead = log_q[1] - log_q[0]
    assert lead[quantile == 2].mean() > 0.5
    assert lead[quantile == 1].mean() < -0.5


def test_the_control_is_kept_beside_the_adapter_and_the_card_names_it(in_letters: Path, tmp_path: Path) -> None:
    config = settings("quark")
    policy = moved(load_policy(config))
    policy.take_best_control()
    save_adapter(tmp_path, policy, model_card(config, {"step": 3, "win_rate": 0.5, "mean_reward": 1.0}))
    fresh = load_policy(config)
    load_best_adapter(tmp_path, fresh)
    assert fresh.control == policy.control
    assert "tokens of the text 'grade a ' before every prompt" in (tmp_path / "adapter" / "README.md").read_text()
    untrained = model_card(config, {"step": 0, "win_rate": 0.5, "mean_reward": 1.0})
    assert "before every prompt" not in untrained
    assert "Method: `quark` (arXiv 2205.13636)" in untrained


def test_an_adapter_without_control_takes_it_away(in_letters: Path) -> None:
    policy = load_policy(settings("quark"))
    before = policy.adapter_state()
    policy.take_best_control()
    assert policy.adapter_state().keys() - before.keys() == {"control.token_ids"}
    policy.load_adapter_state(before)
    assert policy.control == []


@pytest.mark.parametrize("prefix", ["{}: ", "{}\n", "GRADE {} "])
def test_controls_that_the_tokenizer_cannot_write_are_refused(prefix: str, in_letters: Path) -> None:
    with pytest.raises(UserError, match=r"--quark-prefix .* tokenizer has no token for some part"):
        load_policy(settings("quark", quark_prefix=prefix))


def test_a_controls_text_holds_the_quantiles_name() -> None:
    config = settings("quark", quantiles=("bad", "good"), quark_prefix="so {} {}: ")
    assert control_texts(config) == ["so bad bad: ", "so good good: "]


def test_controls_are_compared_where_they_differ() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [3.0, 4.0]])
    assert likeness([(3, 0, 3), (3, 1, 3)], embeddings) == pytest.approx(0)
    assert likeness([(0,), (3,)], embeddings) == pytest.approx(0.6)
    assert likeness([(0,), (1,), (2,)], embeddings) == pytest.approx(-1 / 3)
    assert likeness([(3, 3), (3, 3, 0, 0)], embeddings) == pytest.approx(0.6)


def test_quantiles_that_look_alike_to_the_model_are_told(
    in_letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_policy(settings("quark"))
    assert capsys.readouterr().err == ""
    folder = save_llama(tmp_path / "model", letter_tokenizer())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] += 0.1  # what no training told apart
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_policy(settings("quark", model=str(folder)))
    assert "the names of the --quantiles look alike (a cosine of 0.9" in " ".join(capsys.readouterr().err.split())


def test_a_control_that_leaves_no_room_is_told_with_the_prompt(in_letters: Path) -> None:
    policy = load_policy(settings("quark"))
    prompt = Prompt("long", "a" * 56, (3,) * 56, None)
    sample_groups(policy, [prompt], 2, draw=(0, "x", 0), max_new_tokens=6)
    policy.take_best_control()
    with pytest.raises(UserError, match="Prompt long: its 64 tokens and 6 of a completion do not fit"):
        sample_groups(policy, [prompt], 2, draw=(0, "x", 0), max_new_tokens=6)


def test_a_model_that_changes_its_logits_after_its_head_is_refused_by_quark(in_letters: Path, tmp_path: Path) -> None:
    config = settings("quark", model=str(save_model(tmp_path / "model", "gemma2")), engine="plain")
    policy = moved(load_policy(config))
    policy.base.get_output_embeddings().weight.data.mul_(10)
    groups = draw_batch(collected(policy, config, tmp_path), config, 0)
    accumulate_gradient(policy, groups, make_objective(config), 1.0)
    policy.base.config.final_logit_softcapping = 0.1
    with pytest.raises(UserError, match="--method quark: gemma2 changes what its output layer gives"):
        accumulate_gradient(policy, groups, make_objective(config), 1.0)


REFUSED = {
    "--rollouts": (
        "grpo",
        {"rollouts": "some.jsonl"},
        "--rollouts some.jsonl: --method grpo must sample by itself",
    ),
    "one quantile": ("quark", {"quantiles": ("a",)}, "--quantiles a: must be two names or more"),
    "--gae-lambda": ("ppo", {"gae_lambda": 1.1}, "--gae-lambda 1.1: must be at most 1"),
    "--quantiles": ("quark", {"quantiles": ("a", "b", "a")}, "--quantiles a b a: must be two names or more"),
    "--quark-prefix": ("quark", {"quark_prefix": "best "}, "--quark-prefix 'best ': must hold {}"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_settings_that_a_method_of_tokens_cannot_work_with_are_refused(option: str, in_letters: Path) -> None:
    method, changes, message = REFUSED[option]
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        validate(letter_config(method=method, **changes))


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_rewards_that_overflow_are_told(method: str, in_letters: Path, tmp_path: Path) -> None:
    config = settings(method)
    policy, groups = prepared(config, tmp_path)
    broken = [dataclasses.replace(group, reward=np.array([np.inf, 0, 0, 0])) for group in groups]
    with pytest.raises(UserError, match="importance weights cannot be computed"):
        accumulate_gradient(policy, broken, make_objective(config), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ORACLES)
def test_two_processes_train_what_one_does(method: str, letters: Path, tmp_path: Path) -> None:
    """In float64; the value head is summed over the processes with the adapter."""
    sizes = {"k": 2, "m": 5, "sample_rows": 4, "train_rows": 4, "test_count": 2, "validation_count": 2}
    one, two = (settings(method, out=str(tmp_path / name), **sizes) for name in ("one", "two"))
    assert run_apart(one, letters, sabotage=InDouble()) == 0
    statuses, said = run_together(two, letters, sabotage=InDouble())
    assert statuses == [0, 0], said
    last = Path("checkpoints", "last", "adapter.safetensors")
    alone, together = (safetensors.torch.load_file(tmp_path / name / last) for name in ("one", "two"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        assert (tensor.double() - together[name].double()).abs().max() < 1e-12

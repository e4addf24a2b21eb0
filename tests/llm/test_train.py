"""The gradient step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from architectures import save_model
from letter_world import letter_config, moved
from llm import logprob, train
from llm.errors import UserError
from llm.logprob import group_pairs, score, sequence_log_probs
from llm.models import Policy, load_policy
from llm.records import Pair, Prompt, ScoredGroup
from llm.rollout import sample_groups
from llm.train import (
    Objective,
    accumulate_gradient,
    draw_batch,
    make_log_goodness,
    make_objective,
    make_optimizer,
    train_step,
)


def groups_of(policy: Policy, texts: list[str], n: int = 4) -> list[ScoredGroup]:
    """Scored groups from the prior as proposal, so that the moved policy differs from it; rewards by a fixed draw."""
    prompts = [Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None) for text in texts]
    with policy.as_prior():
        sampled = sample_groups(policy, prompts, n, draw=(0, "rollout", 0), max_new_tokens=6)
    groups = []
    for index, (prompt, completions) in enumerate(zip(prompts, sampled, strict=True)):
        empty = ScoredGroup(prompt, tuple(completions), np.zeros(n), np.zeros(n), np.zeros(n))
        with policy.as_prior():
            log_prior = np.array(score(policy, group_pairs(empty), n))
        reward = np.random.default_rng(index).normal(size=n)
        groups.append(ScoredGroup(prompt, tuple(completions), log_prior, log_prior + 0.3 * reward, reward))
    return groups


def independent_gradient(policy: Policy, groups: list[ScoredGroup], temperature: float) -> torch.Tensor:
    """−∇ of the mean SNKL, by autograd through β̂ of unpadded rows: shares no code with the trainer (T0)."""
    total = torch.zeros(())
    for group in groups:
        rows = []
        for prompt, completion in group_pairs(group):
            ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
            log_probs = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1], -1)
            rows.append(log_probs.gather(-1, ids[0, 1:, None])[len(prompt.token_ids) - 1 :, 0].sum())
        proposal = torch.tensor(group.log_proposal)
        alpha = torch.softmax(torch.tensor(group.log_prior + group.reward / temperature) - proposal, -1)
        total = total - (alpha * torch.log_softmax(torch.stack(rows).double() - proposal, -1)).sum() / len(groups)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, policy.parameters())])


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


TEXTS = ["abc", "z", "some longer text", "hello"]


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_gradient_is_that_of_the_self_normalised_kl(policy: Policy, temperature: float) -> None:
    groups = groups_of(policy, TEXTS)
    objective = make_objective(letter_config(temperature=temperature))
    accumulate_gradient(policy, groups, objective, 1 / len(groups))
    expected = independent_gradient(policy, groups, temperature)
    assert expected.norm() > 0.01
    assert (gradient(policy) - expected).norm() < 1e-5 * expected.norm()


def policy_with(engine: str, dtype: torch.dtype = torch.float32, **changes: object) -> Policy:
    policy = moved(load_policy(letter_config(engine=engine, **changes)))
    policy.model.to(dtype)
    return policy


PARTS = [2, 4, 6, 8, 12, 1000]
ALL = [1, 3, *PARTS]
# The plain path, which single completions take too, gives float32 log-probs; GPT-2 is all float64 with the other.
CUTS = {
    "float64": ("gpt2", "shared-prefix", torch.float64, 1e-10, PARTS),
    "float64, plain": ("gpt2", "plain", torch.float64, 1e-6, ALL),
    "float32": ("llama", "shared-prefix", torch.float32, 1e-5, ALL),
    "float32, plain": ("llama", "plain", torch.float32, 1e-5, ALL),
}


@pytest.mark.parametrize("cut", CUTS)
def test_the_update_does_not_depend_on_how_the_batch_is_cut(cut: str, tmp_path: Path) -> None:
    architecture, engine, dtype, limit, parts = CUTS[cut]
    policy = policy_with(engine, dtype, model=str(save_model(tmp_path, architecture)))
    groups, start = groups_of(policy, TEXTS), policy.adapter_state()

    def updated(rows: int) -> tuple[torch.Tensor, list[float]]:
        policy.load_adapter_state(start)
        config = letter_config(train_rows=rows, max_grad_norm=1e9)
        stats = train_step(policy, make_optimizer(policy, config), groups, make_objective(config), 0)
        return gradient(policy).clone(), list(stats)

    whole, whole_stats = updated(16)
    assert whole.norm() > 0.01
    for rows in parts:
        found, stats = updated(rows)
        assert (found - whole).norm() < limit * whole.norm()
        assert stats == pytest.approx(whole_stats, rel=limit, abs=limit)


@pytest.mark.parametrize(
    ("rows", "passes"),
    [
        (16, [(True, 16)]),
        (8, [(True, 8), (True, 8)]),
        (7, [(True, 4)] * 4),
        (4, [(True, 4)] * 4),
        (3, [(False, 3), (False, 1), (True, 3), (True, 1)] * 4),
        (2, [(False, 2), (False, 2), (True, 2), (True, 2)] * 4),
    ],
)
def test_only_a_group_that_does_not_fit_is_forwarded_twice(
    rows: int, passes: list[tuple[bool, int]], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, config, seen = groups_of(policy, TEXTS), letter_config(train_rows=rows), []

    def counted(policy: Policy, pairs: list[Pair], **options: float) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), len(pairs)))
        return sequence_log_probs(policy, pairs, **options)

    for module in (logprob, train):
        monkeypatch.setattr(module, "sequence_log_probs", counted)
    train_step(policy, make_optimizer(policy, config), groups, make_objective(config), 0)
    assert seen == passes


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("engine", ["shared-prefix", "plain"])
def test_recomputed_activations_give_the_same_gradient(engine: str, quantization: str, in_letters: Path) -> None:
    found = []
    for again in (False, True):
        policy = policy_with(engine, quantization=quantization, activation_checkpointing=again)
        groups, calls = groups_of(policy, TEXTS), []
        policy.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        for rows in (16, 3):
            policy.model.zero_grad()
            calls.clear()
            cut = [groups] if rows == 16 else [[group] for group in groups]
            for part in cut:
                accumulate_gradient(policy, part, Objective(letter_config(), lambda reward: reward), 1 / 4, rows=rows)
            assert len(calls) == (1 + again if rows == 16 else 4 * (2 + 2 * (1 + again)))
            found.append(gradient(policy).clone())
    assert found[0].norm() > 0.01
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-5 * found[0].norm()


FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"), RuntimeError(FULL)]
)
def test_memory_that_runs_out_while_training_is_told_with_the_setting(
    error: Exception, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise error

    config = letter_config(train_rows=8)
    groups = groups_of(policy, TEXTS)
    monkeypatch.setattr(train, "sequence_log_probs", full)
    with pytest.raises(UserError, match=r"^Out of memory while training \(.*allocate.*\)\. Lower --train-rows 8"):
        train_step(policy, make_optimizer(policy, config), groups, make_objective(config), 0)


def test_training_on_one_batch_drives_its_self_normalised_kl_to_its_floor(in_letters: Path) -> None:
    config = letter_config(learning_rate=2e-2, warmup_steps=0, weight_decay=0.0)
    policy = load_policy(config)
    groups, optimizer, objective = groups_of(policy, TEXTS), make_optimizer(policy, config), make_objective(config)
    stats = [train_step(policy, optimizer, groups, objective, step) for step in range(120)]
    assert stats[0].snkl > 0.1
    assert 0 <= stats[-1].snkl < 0.01 * stats[0].snkl


def test_the_learning_rate_rises_linearly_and_then_stays(policy: Policy) -> None:
    config = letter_config(learning_rate=1e-4, warmup_steps=4)
    groups, optimizer, objective = groups_of(policy, TEXTS), make_optimizer(policy, config), make_objective(config)
    rates = [train_step(policy, optimizer, groups, objective, step).learning_rate for step in range(6)]
    assert rates == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-4])


def test_batches_come_from_all_groups_without_repetition_and_by_name(policy: Policy) -> None:
    buffer = groups_of(policy, [chr(97 + i) for i in range(20)], n=2)
    config = letter_config(batch=5)
    drawn = [draw_batch(buffer, config, step) for step in range(60)]
    assert all(len({id(group) for group in batch}) == 5 for batch in drawn)
    assert {group.prompt.prompt_id for batch in drawn for group in batch} == {g.prompt.prompt_id for g in buffer}
    assert draw_batch(buffer, config, 7) == drawn[7] != drawn[8]


def test_an_adapter_that_is_cut_off_from_the_loss_is_refused(policy: Policy) -> None:
    config = letter_config()
    groups = groups_of(policy, TEXTS)
    for parameter in policy.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(UserError, match="exactly 0"):
        train_step(policy, make_optimizer(policy, config), groups, make_objective(config), 0)


def test_goodness_models_agree_with_their_formulas(in_letters: Path) -> None:
    reward = torch.tensor([[-3.0, 0.0, 2.0]], dtype=torch.float64)
    tempered = make_log_goodness(letter_config(temperature=0.5))(reward)
    assert torch.allclose(tempered - tempered[:, :1], (reward - reward[:, :1]) / 0.5)
    logistic = make_log_goodness(letter_config(goodness="logistic"))(reward)
    assert torch.allclose(logistic, torch.log(1 / (1 + torch.exp(-reward))))
    own = make_log_goodness(letter_config(goodness="letter_rewards:tempered"))(reward)
    assert torch.equal(own, reward / 2)


def test_a_goodness_of_the_wrong_shape_is_refused(in_letters: Path) -> None:
    goodness = make_log_goodness(letter_config(goodness="letter_rewards:grade_sum"))
    with pytest.raises(UserError, match=r"--goodness letter_rewards:grade_sum.*shape \(1, 3\)"):
        goodness(torch.zeros(1, 3, dtype=torch.float64))


def test_a_group_without_goodness_leaves_the_policy_alone_and_is_counted(policy: Policy) -> None:
    groups = groups_of(policy, TEXTS)

    def hopeless(reward: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(reward))[:, None] < 2, -torch.inf, reward)

    both = accumulate_gradient(policy, groups, Objective(letter_config(), hopeless), 1 / 4)
    gradient_of_all = gradient(policy).clone()
    for parameter in policy.parameters():
        parameter.grad = None
    accumulate_gradient(policy, groups[2:], Objective(letter_config(), lambda reward: reward), 1 / 4)
    assert both[:, 5].tolist() == [1, 1, 0, 0]
    assert (gradient_of_all - gradient(policy)).norm() < 1e-5 * gradient(policy).norm()


def test_a_goodness_that_raises_or_overflows_is_told(in_letters: Path, policy: Policy) -> None:
    with pytest.raises(UserError, match=r"--goodness letter_rewards:raises: failed with"):
        make_log_goodness(letter_config(temperature=1.0, goodness="letter_rewards:raises"))(torch.zeros(1, 3))
    groups = groups_of(policy, TEXTS)
    with pytest.raises(UserError, match="importance weights cannot be computed"):
        accumulate_gradient(policy, groups, make_objective(letter_config(temperature=1e-310)), 1.0)

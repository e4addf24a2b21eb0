"""The gradient step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from letter_world import letter_config, moved
from llm.errors import UserError
from llm.logprob import group_pairs, score
from llm.models import Policy, load_policy
from llm.records import Prompt, ScoredGroup
from llm.rollout import sample_groups
from llm.train import accumulate_gradient, draw_batch, make_log_goodness, make_optimizer, train_step


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
    goodness = make_log_goodness(letter_config(temperature=temperature))
    accumulate_gradient(policy, groups, goodness, 1 / len(groups))
    expected = independent_gradient(policy, groups, temperature)
    assert expected.norm() > 0.01
    assert (gradient(policy) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("train_rows", [1, 4, 8, 1000])
def test_the_update_does_not_depend_on_how_the_batch_is_cut(in_letters: Path, train_rows: int) -> None:
    def updated(rows: int) -> torch.Tensor:
        policy = moved(load_policy(letter_config()))
        config = letter_config(train_rows=rows, max_grad_norm=1e9)
        groups = groups_of(policy, TEXTS)
        train_step(policy, make_optimizer(policy, config), groups, config, make_log_goodness(config), 0)
        return gradient(policy)

    whole = updated(1000)
    assert (updated(train_rows) - whole).norm() < 1e-5 * whole.norm()


def test_training_on_one_batch_drives_its_self_normalised_kl_to_its_floor(in_letters: Path) -> None:
    config = letter_config(learning_rate=2e-2, warmup_steps=0, weight_decay=0.0)
    policy = load_policy(config)
    groups, optimizer, goodness = groups_of(policy, TEXTS), make_optimizer(policy, config), make_log_goodness(config)
    stats = [train_step(policy, optimizer, groups, config, goodness, step) for step in range(120)]
    assert stats[0].snkl > 0.1
    assert 0 <= stats[-1].snkl < 0.01 * stats[0].snkl


def test_the_learning_rate_rises_linearly_and_then_stays(policy: Policy) -> None:
    config = letter_config(learning_rate=1e-4, warmup_steps=4)
    groups, optimizer, goodness = groups_of(policy, TEXTS), make_optimizer(policy, config), make_log_goodness(config)
    rates = [train_step(policy, optimizer, groups, config, goodness, step).learning_rate for step in range(6)]
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
        train_step(policy, make_optimizer(policy, config), groups, config, make_log_goodness(config), 0)


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

    both = accumulate_gradient(policy, groups, hopeless, 1 / 4)
    gradient_of_all = gradient(policy).clone()
    for parameter in policy.parameters():
        parameter.grad = None
    accumulate_gradient(policy, groups[2:], lambda reward: reward, 1 / 4)
    assert both[:, 5].tolist() == [1, 1, 0, 0]
    assert (gradient_of_all - gradient(policy)).norm() < 1e-5 * gradient(policy).norm()


def test_a_goodness_that_raises_or_overflows_is_told(in_letters: Path, policy: Policy) -> None:
    with pytest.raises(UserError, match=r"--goodness letter_rewards:raises: failed with"):
        make_log_goodness(letter_config(temperature=1.0, goodness="letter_rewards:raises"))(torch.zeros(1, 3))
    groups = groups_of(policy, TEXTS)
    with pytest.raises(UserError, match="importance weights cannot be computed"):
        accumulate_gradient(policy, groups, make_log_goodness(letter_config(temperature=1e-310)), 1.0)

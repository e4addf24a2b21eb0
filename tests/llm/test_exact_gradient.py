"""A causal language model small enough to enumerate: the gradient that llm trains with, averaged over every group.

The model has 5 tokens and completions of at most 2, hence 21 completions. Prior, proposal and policy differ.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from letter_world import letter_config, letter_tokenizer, moved, save_llama
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.records import Completion, Prompt, ScoredGroup
from llm.train import accumulate_gradient, make_objective
from toy import CategoricalProblem, exact_moments

PROMPT = Prompt("x", "ab", (3, 4), None)
END = 2
SEQUENCES = [(END,), *((first, last) for first in (0, 1, 3, 4) for last in range(5))]
COMPLETIONS = [Completion("x", 0, ids, "stop" if END in ids else "length", "") for ids in SEQUENCES]
REWARD = np.random.default_rng(0).normal(size=len(SEQUENCES))


class Enumerated(NamedTuple):
    """The policy and, over all completions, the log-probs that Algorithm 1 caches."""

    policy: Policy
    log_prior: np.ndarray
    log_proposal: np.ndarray


def scores(policy: Policy) -> np.ndarray:
    return np.array(score(policy, [(PROMPT, completion) for completion in COMPLETIONS], len(COMPLETIONS)))


@pytest.fixture
def enumerated(tmp_path: Path) -> Enumerated:
    save_llama(tmp_path / "model", letter_tokenizer("ab"), scale=4.0)
    policy = moved(load_policy(letter_config(model=str(tmp_path / "model"), max_new_tokens=2)))
    log_proposal = scores(policy)
    with policy.as_prior():
        log_prior = scores(policy)
    generator = torch.Generator().manual_seed(7)
    for parameter in policy.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return Enumerated(policy, log_prior, log_proposal)


def log_policy(policy: Policy) -> torch.Tensor:
    """log q_θ of every completion with its graph, from single unpadded rows: shares no code with the scorer."""
    found = []
    for ids in SEQUENCES:
        row = torch.tensor([[*PROMPT.token_ids, *ids]])
        log_probs = torch.log_softmax(policy.model(input_ids=row).logits[0, :-1], -1)
        found.append(log_probs.gather(-1, row[0, 1:, None])[len(PROMPT.token_ids) - 1 :, 0].sum())
    return torch.stack(found).double()


def probability(group: tuple[int, ...], log_proposal: np.ndarray) -> float:
    """Probability of a group up to order."""
    arrangements = math.factorial(len(group)) / math.prod(math.factorial(c) for c in Counter(group).values())
    return arrangements * math.exp(log_proposal[list(group)].sum())


def mean_training_gradient(world: Enumerated, n: int) -> torch.Tensor:
    """E over groups from the proposal of the gradient by which `llm.train` descends."""
    objective = make_objective(letter_config(temperature=1.0))
    for group in itertools.combinations_with_replacement(range(len(SEQUENCES)), n):
        chosen = list(group)
        completions = tuple(COMPLETIONS[k] for k in group)
        cached = (world.log_prior[chosen], world.log_proposal[chosen], REWARD[chosen])
        scored = ScoredGroup(PROMPT, completions, *cached)
        accumulate_gradient(world.policy, [scored], objective, probability(group, world.log_proposal))
    return torch.cat([parameter.grad.flatten() for parameter in world.policy.parameters()])


def gradient(value: torch.Tensor, policy: Policy) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, policy.parameters())])


def self_normalised_kl(world: Enumerated, log_q: torch.Tensor, n: int) -> torch.Tensor:
    """D_n by its definition: the mean of KL(α̂ ‖ β̂) over all ordered groups."""
    alpha = torch.tensor(np.exp(world.log_prior + REWARD - world.log_proposal))
    beta = torch.exp(log_q - torch.tensor(world.log_proposal))
    groups = torch.tensor(list(itertools.product(range(len(SEQUENCES)), repeat=n)))
    chance = torch.exp(torch.tensor(world.log_proposal)[groups].sum(-1))
    target = alpha[groups] / alpha[groups].sum(-1, keepdim=True)
    policy = beta[groups] / beta[groups].sum(-1, keepdim=True)
    return (chance * (target * (target / policy).log()).sum(-1)).sum()


def test_the_completions_are_all_that_the_model_can_write(enumerated: Enumerated) -> None:
    for log_probs in (enumerated.log_prior, enumerated.log_proposal, scores(enumerated.policy)):
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-6)
    assert abs(enumerated.log_prior - enumerated.log_proposal).max() > 0.1


def test_the_mean_gradient_that_llm_trains_with_is_that_of_the_self_normalised_kl(enumerated: Enumerated) -> None:
    """Theorem 4.2 on a language model, exactly, up to float32: descent on D_2 by its definition."""
    divergence = self_normalised_kl(enumerated, log_policy(enumerated.policy), 2)
    expected = gradient(divergence, enumerated.policy)
    found = mean_training_gradient(enumerated, 2)
    assert divergence > 0.05
    assert expected.norm() > 0.01
    assert (found - expected).norm() < 2e-5 * expected.norm()


@pytest.mark.parametrize("n", [2, 3])
def test_the_mean_gradient_that_llm_trains_with_is_the_exact_toys(enumerated: Enumerated, n: int) -> None:
    """Its coefficients' exact means, times the scores of the 21 completions."""
    log_q = log_policy(enumerated.policy)
    log_probs = (enumerated.log_prior, log_q.detach().numpy(), enumerated.log_proposal)
    prior, policy, proposal = (np.exp(v) / np.exp(v).sum() for v in log_probs)  # float32 sums to 1 up to 1e-7
    problem = CategoricalProblem.from_reward(prior, REWARD, policy, proposal)
    mean = torch.tensor(exact_moments(problem, "brain", n).mean)
    expected = -gradient((mean * log_q).sum(), enumerated.policy)
    found = mean_training_gradient(enumerated, n)
    assert (found - expected).norm() < 2e-5 * expected.norm()


def test_a_gradient_that_flows_through_the_weights_is_another(enumerated: Enumerated) -> None:
    """Erratum 13: line 17 of Algorithm 1, differentiated as it stands, does not descend D_n."""
    log_q = log_policy(enumerated.policy)
    groups = torch.tensor(list(itertools.product(range(len(SEQUENCES)), repeat=2)))
    proposal = torch.tensor(enumerated.log_proposal)
    alpha = torch.tensor(np.exp(enumerated.log_prior + REWARD - enumerated.log_proposal))[groups]
    beta = torch.exp(log_q - proposal)[groups]
    weights = alpha / alpha.sum(-1, keepdim=True) - beta / beta.sum(-1, keepdim=True)
    literal = -(torch.exp(proposal[groups].sum(-1)) * (weights * log_q[groups]).sum(-1)).sum()
    expected = gradient(self_normalised_kl(enumerated, log_policy(enumerated.policy), 2), enumerated.policy)
    assert (gradient(literal, enumerated.policy) - expected).norm() > 0.1 * expected.norm()

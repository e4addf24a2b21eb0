"""The methods: each one's gradient against a formula that shares no code with it, and their rules for data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import brain_core
from letter_world import interrupting, letter_config, moved
from llm import groups as groups_module
from llm import proposal as proposal_module
from llm.align import run
from llm.config import AlignConfig, validate
from llm.errors import UserError
from llm.logprob import group_pairs, score, sequence_log_probs
from llm.methods import METHODS, accepted_count, rejection_sample
from llm.models import Policy, load_policy
from llm.proposal import Proposal, adapter_digest, gain, improved_proposal
from llm.records import Prompt, ScoredGroup
from llm.rollout import sample_groups
from llm.streams import stream
from llm.train import (
    accumulate_gradient,
    group_coefficients,
    make_objective,
    make_optimizer,
    train_step,
)
from toy.estimators import ESTIMATORS

N = 8
TEXTS = ["abc", "z", "some longer text"]
TEMPERATURE = 0.5
DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
Loss = Callable[[torch.Tensor, ScoredGroup, AlignConfig], torch.Tensor]


@pytest.fixture
def policy(in_letters: Path) -> Policy:
    return moved(load_policy(letter_config()))


def scored_groups(policy: Policy, *, n: int = N, ties: bool = True) -> list[ScoredGroup]:
    """Groups of which no two of log p, log q' and log q_θ agree; of the first, two completions of a pair tie."""
    prompts = [Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None) for text in TEXTS]
    with policy.as_prior():
        sampled = sample_groups(policy, prompts, n, draw=(0, "rollout", 0), max_new_tokens=6)
    groups = []
    for index, (prompt, completions) in enumerate(zip(prompts, sampled, strict=True)):
        draws = np.random.default_rng(index)
        reward = draws.normal(size=n)
        if ties and index == 0:
            reward[1] = reward[0]
        empty = ScoredGroup(prompt, tuple(completions), reward, reward, reward)
        with policy.as_prior():
            log_prior = np.array(score(policy, group_pairs(empty), n))
        proposal = log_prior + 0.2 * draws.normal(size=n)
        groups.append(dataclasses.replace(empty, log_prior=log_prior, log_proposal=proposal, phase=index))
    return groups


def by_toy(name: str, *, halves: bool = False) -> Loss:
    """−Σ c log q with the toy's rational formula; in halves, each with the other's mean as normaliser."""

    def loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
        log_alpha = group.log_prior + group.reward / config.temperature - group.log_proposal
        alpha = [Fraction(float(a)) for a in np.exp(log_alpha)]
        beta = [Fraction(float(b)) for b in np.exp(log_q.detach().numpy() - group.log_proposal)]
        size = len(alpha) // 2 if halves else len(alpha)
        coefficients: list[float] = []
        for start in range(0, len(alpha), size):
            own, other = alpha[start : start + size], alpha[:start] + alpha[start + size :]
            scale = sum(other) / len(other) if halves else Fraction(1)
            found = ESTIMATORS[name].rational([a / scale for a in own], beta[start : start + size])
            coefficients += [float(c) * size / len(alpha) for c in found]
        return -(torch.tensor(coefficients, dtype=torch.float64) * log_q).sum()

    return loss


def over_pairs(pair_loss: Callable[..., torch.Tensor]) -> Loss:
    """The mean of a loss over (0, 1), (2, 3), …, of the log-ratio to the prior, winner first."""

    def loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(group.reward), 2):
            is_first = group.reward[first] >= group.reward[first + 1]
            winner, loser = (first, first + 1) if is_first else (first + 1, first)
            total = total + pair_loss(log_q, group, config, winner, loser)
        return total / (len(group.reward) // 2)

    return loss


def lead(log_q: torch.Tensor, group: ScoredGroup, winner: int, loser: int) -> torch.Tensor:
    """h_w − h_l of the implicit rewards log q − log p."""
    return (log_q[winner] - group.log_prior[winner]) - (log_q[loser] - group.log_prior[loser])


def preference_loss(smoothing: Callable[[AlignConfig], float]) -> Loss:
    def pair(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig, winner: int, loser: int) -> torch.Tensor:
        margin = config.dpo_beta * lead(log_q, group, winner, loser)
        wrong = 0.5 if group.reward[winner] == group.reward[loser] else smoothing(config)
        logsigmoid = torch.nn.functional.logsigmoid
        return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)

    return over_pairs(pair)


def ipo_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig, winner: int, loser: int) -> torch.Tensor:
    if group.reward[winner] == group.reward[loser]:
        return 0 * log_q[0]
    return (lead(log_q, group, winner, loser) - 1 / (2 * config.dpo_beta)) ** 2


def plackett_luce_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    order = sorted(range(len(group.reward)), key=lambda i: -group.reward[i])
    h = config.dpo_beta * (log_q - torch.tensor(group.log_prior))
    return -sum((h[i] - torch.logsumexp(h[order[place:]], 0) for place, i in enumerate(order)), torch.zeros(()))


def rso_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    draws = stream(config.seed, "rejection", group.phase, group.prompt.prompt_id)
    kept = rejection_sample(group.reward / config.temperature, accepted_count(config), draws)
    part = dataclasses.replace(group, reward=group.reward[kept], log_prior=group.log_prior[kept])
    if config.rso_loss == "sigmoid":
        return preference_loss(lambda config: 0.0)(log_q[kept], part, config)

    def hinge(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig, winner: int, loser: int) -> torch.Tensor:
        return (1 - config.dpo_beta * lead(log_q, group, winner, loser)).clamp(min=0)

    return over_pairs(hinge)(log_q[kept], part, config)


def slic_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    def hinge(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig, winner: int, loser: int) -> torch.Tensor:
        if group.reward[winner] == group.reward[loser]:
            return 0 * log_q[0]
        return (config.slic_margin - log_q[winner] + log_q[loser]).clamp(min=0)

    return over_pairs(hinge)(log_q, group, config) - config.sft_weight * log_q[int(group.reward.argmax())]


def rrhf_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    per_token = log_q / torch.tensor([len(c.token_ids) for c in group.completions])
    total = -config.sft_weight * log_q[int(group.reward.argmax())]
    for i, worse in enumerate(group.reward):
        for j, better in enumerate(group.reward):
            if worse < better:
                total = total + (per_token[i] - per_token[j]).clamp(min=0)
    return total


def best_of_n_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    return -log_q[int(group.reward.argmax())]


def contrast(group: ScoredGroup, log_q: torch.Tensor, config: AlignConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights softmax(β r / τ), and R = β log(q/p)."""
    weights = torch.softmax(torch.tensor(config.dpo_beta * group.reward / config.temperature), 0)
    return weights, config.dpo_beta * (log_q - torch.tensor(group.log_prior))


def infonca_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    weights, h = contrast(group, log_q, config)
    return -(weights * torch.log_softmax(h, 0)).sum()


def nca_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    weights, h = contrast(group, log_q, config)
    logsigmoid = torch.nn.functional.logsigmoid
    return -(weights * logsigmoid(h) + logsigmoid(-h) / len(h)).sum()


def exo_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    weights, h = contrast(group, log_q, config)
    f = torch.log_softmax(h, 0)
    return (f.exp() * (f - weights.log())).sum()


def rloo_loss(log_q: torch.Tensor, group: ScoredGroup, config: AlignConfig) -> torch.Tensor:
    """PPO's clip on whole sequences; the reward carries its KL penalty, in units of the temperature."""
    score_ = torch.tensor(group.reward / config.temperature - (group.log_proposal - group.log_prior))
    baseline = (score_.sum() - score_) / (len(score_) - 1)
    ratio = torch.exp(log_q - torch.tensor(group.log_proposal))
    advantage = score_ - baseline
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
    return -surrogate.mean()


ORACLES: dict[str, tuple[str, Loss]] = {
    "brain": ("toy `brain`", by_toy("brain")),
    "brain-weighted": ("toy `brain_weighted` in halves", by_toy("brain_weighted", halves=True)),
    "brain-argmax": ("toy `brain_argmax`", by_toy("brain_argmax")),
    "snis": ("toy `snis`", by_toy("snis")),
    "dpo-sft": ("its loss", preference_loss(lambda config: 0.0)),
    "dpo-sft-iw": ("toy `dpo_sft_iw`", by_toy("dpo_sft_iw")),
    "dpo-sft-iw-n": ("toy `brain`", by_toy("brain")),
    "dpo": ("its loss", preference_loss(lambda config: 0.0)),
    "dpo-pl": ("its loss", plackett_luce_loss),
    "ipo": ("its loss", over_pairs(ipo_loss)),
    "cdpo": ("its loss", preference_loss(lambda config: config.label_smoothing)),
    "rso": ("its loss", rso_loss),
    "slic": ("its loss", slic_loss),
    "rrhf": ("its loss", rrhf_loss),
    "dpg": ("toy `dpg` in halves", by_toy("dpg", halves=True)),
    "gdc": ("toy `gdc` in halves", by_toy("gdc", halves=True)),
    "gdcpp": ("toy `gdcpp` in halves", by_toy("gdcpp", halves=True)),
    "infonca": ("its loss", infonca_loss),
    "nca": ("its loss", nca_loss),
    "exo": ("its loss", exo_loss),
    "rloo": ("its loss", rloo_loss),
    "best-of-n": ("its loss", best_of_n_loss),
}
"""What each method's gradient is held against here; `docs/methods.md` names the same."""


def settings(method: str, **changes: object) -> AlignConfig:
    """Settings in which no constant is 1 where it could be left out."""
    own = {"dpo_beta": 0.7, "label_smoothing": 0.2, "slic_margin": 1.5, "sft_weight": 0.6, "clip": 0.1}
    own |= {"rso_accepted": 4}
    heeded = {name: value for name, value in own.items() if ":" not in method and name in METHODS[method].heeds}
    if method == "brain-argmax":
        heeded = {"dpo_beta": 1.0}  # the toy's
    return letter_config(**({"method": method, "n": N, "temperature": TEMPERATURE} | heeded | changes))


def flat_gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def gradient_of(loss: Loss, policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> torch.Tensor:
    """∇ of the mean of a loss over groups, by autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        total = total + loss(sequence_log_probs(policy, group_pairs(group)), group, config) / len(groups)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, policy.parameters())])


def assert_step_equals_oracle(policy: Policy, groups: list[ScoredGroup], config: AlignConfig) -> None:
    expected = gradient_of(ORACLES[config.method][1], policy, groups, config)
    policy.model.zero_grad()
    accumulate_gradient(policy, groups, make_objective(config), 1 / len(groups))
    assert expected.norm() > 1e-3
    assert (flat_gradient(policy) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("method", ORACLES)
def test_a_methods_gradient_is_its_oracles(method: str, policy: Policy) -> None:
    assert_step_equals_oracle(policy, scored_groups(policy), settings(method))


def test_rsos_hinge_is_its_oracles(policy: Policy) -> None:
    assert_step_equals_oracle(policy, scored_groups(policy), settings("rso", rso_loss="hinge"))


def test_every_method_has_an_oracle() -> None:
    assert {name for name, method in METHODS.items() if method.coefficients is not None} == set(ORACLES)


def test_a_users_own_coefficients_are_a_method(policy: Policy, in_letters: Path) -> None:
    Path("own_coefficients.py").write_text(
        "def half(g, config):\n    return 0.5 * (g.target.softmax(-1) - g.ratio.softmax(-1))\n"
        "def fails(g, config):\n    raise KeyError('x')\n"
        "def wrong(g, config):\n    return [1.0]\n"
    )
    groups, gradients = scored_groups(policy), []
    for method in ("brain", "own_coefficients:half"):
        validate(settings(method))
        policy.model.zero_grad()
        accumulate_gradient(policy, groups, make_objective(settings(method)), 1 / len(groups))
        gradients.append(flat_gradient(policy))
    assert (gradients[0] / 2 - gradients[1]).norm() < 1e-6 * gradients[0].norm()
    for name, message in (("fails", "failed with KeyError"), ("wrong", r"shape \(3, 8\); it returned shape \(1,\)")):
        with pytest.raises(UserError, match=f"--method own_coefficients:{name}: .*{message}"):
            accumulate_gradient(policy, groups, make_objective(settings(f"own_coefficients:{name}")), 1.0)


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="--method dpo-stf: no such method; did you mean 'dpo-sft'"):
        validate(letter_config(method="dpo-stf"))


def test_the_documented_table_is_the_methods() -> None:
    """Source, proposal, buffer and settings are those of the code; the last column is what is tested here."""
    table = re.findall(r"^\| `([a-z-]+)` \| (.*) \| (\w+) \| (\w+) \| (.*)\| (.+) \|$", DOCS.read_text(), re.M)
    assert [row[0] for row in table] == list(METHODS)
    for name, source, proposal, buffer, heeded, held_against in table:
        method = METHODS[name]
        assert (source, proposal, buffer) == (method.source, method.proposal, method.buffer)
        assert re.findall(r"`--([a-z-]+)`", heeded) == [setting.replace("_", "-") for setting in method.heeds]
        if name in ORACLES:
            assert held_against == ORACLES[name][0]


def test_every_method_has_a_paragraph() -> None:
    paragraphs = re.findall(r"^\*\*(`.*)\.\*\* ", DOCS.read_text(), re.M)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(paragraphs))) == sorted(METHODS)


@pytest.mark.parametrize("method", ORACLES)
def test_passes_smaller_than_a_group_give_the_same_gradient(method: str, policy: Policy) -> None:
    groups, objective = scored_groups(policy), make_objective(settings(method))
    gradients = []
    for rows in (None, 3):
        policy.model.zero_grad()
        accumulate_gradient(policy, groups, objective, 1 / len(groups), rows=rows)
        gradients.append(flat_gradient(policy))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_brain_argmax_of_two_from_the_prior_is_dpo_sft(policy: Policy) -> None:
    """Theorem 6.1 on a language model, ties included: loss (up to log 2 a tie), coefficients and adapter."""
    groups = [dataclasses.replace(g, log_proposal=g.log_prior) for g in scored_groups(policy, n=2)]
    assert groups[0].reward[0] == groups[0].reward[1]
    log_policy = torch.tensor(score(policy, [p for g in groups for p in group_pairs(g)], 6), dtype=torch.float64)
    start, coefficients, adapters = policy.adapter_state(), [], []
    for method in ("brain-argmax", "dpo-sft"):
        config = settings(method, dpo_beta=0.7, n=2)
        coefficients.append(group_coefficients(groups, log_policy, make_objective(config))[0])
        policy.load_adapter_state(start)
        optimizer = make_optimizer(policy, config)
        for step in range(3):
            train_step(policy, optimizer, groups, make_objective(config), step)
        adapters.append(torch.cat([t.flatten() for t in policy.adapter_state().values()]))
    assert torch.allclose(*coefficients, rtol=0, atol=1e-12)
    assert coefficients[0].abs().max() > 0.05
    assert torch.equal(*adapters)
    moved_by = torch.cat([t.flatten() for t in start.values()]) - adapters[0]
    assert moved_by.norm() > 0.01


@pytest.mark.parametrize(("rewards", "gap"), [((2.0, 1.0), 0.0), ((1.0, 2.0), 0.0), ((1.0, 1.0), np.log(2))])
def test_the_losses_of_theorem_6_1_differ_by_log_2_for_a_tie(rewards: tuple[float, float], gap: float) -> None:
    h = torch.tensor([0.3, -0.4], dtype=torch.float64)
    group = ScoredGroup(Prompt("x", "x", (1,), None), (), np.zeros(2), np.zeros(2), np.array(rewards))
    dpo = preference_loss(lambda config: 0.0)(h, group, settings("dpo-sft", dpo_beta=0.7, n=2))
    best = torch.where(torch.tensor(rewards) == max(rewards), 0.0, -torch.inf).double()
    assert float(dpo - brain_core.self_normalized_kl(best, 0.7 * h)) == pytest.approx(gap, abs=1e-12)


def test_infonca_is_brain_of_that_power_with_the_prior_as_proposal(policy: Policy) -> None:
    groups = [dataclasses.replace(g, log_proposal=g.log_prior) for g in scored_groups(policy)]
    log_policy = torch.tensor(score(policy, [p for g in groups for p in group_pairs(g)], N), dtype=torch.float64)
    infonca = group_coefficients(groups, log_policy, make_objective(settings("infonca", dpo_beta=1.0)))[0]
    brain = group_coefficients(groups, log_policy, make_objective(settings("brain")))[0]
    assert torch.allclose(infonca, brain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["brain-weighted", "dpg", "gdc", "gdcpp"])
def test_cross_fitting_gets_the_direction_of_the_expected_gradient_right(method: str) -> None:
    """Over all groups of 4 from 3 outputs: the mean is that of DPG with the exact normaliser, up to a factor."""
    prior, reward, proposal, q = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), np.array([0.4, 0.4, 0.2]), 1 / 3
    objective = make_objective(letter_config(method=method, n=4, temperature=1.0))
    mean, exact = np.zeros(3), np.zeros(3)
    alpha = prior * np.exp(reward) / proposal
    for outputs in np.ndindex(3, 3, 3, 3):
        chosen = np.array(outputs)
        completions = tuple(_completion(i) for i in range(4))
        columns = {"log_prior": np.log(prior[chosen]), "log_proposal": np.log(proposal[chosen])}
        group = ScoredGroup(Prompt("x", "x", (1,), None), completions, **columns, reward=reward[chosen])
        found = group_coefficients([group], torch.full((4,), np.log(q), dtype=torch.float64), objective)[0].numpy()
        np.add.at(mean, chosen, found * proposal[chosen].prod())
        np.add.at(exact, chosen, alpha[chosen] / 4 * proposal[chosen].prod())
    centred, truth = mean - mean.sum() * q, exact - exact.sum() * q  # gradients in logits
    if method == "brain-weighted":  # its mean is that of weighted BRAIn for pairs (T4c), not DPG's
        truth = _weighted_pairs(alpha, proposal, q)
    assert np.allclose(centred / np.linalg.norm(centred), truth / np.linalg.norm(truth), atol=1e-10)


def _weighted_pairs(alpha: np.ndarray, proposal: np.ndarray, q: float) -> np.ndarray:
    """Σ over pairs of Ā (α̂ − β̂), in logits."""
    mean = np.zeros(3)
    for i in range(3):
        for j in range(3):
            pair = np.array([i, j])
            a, b = alpha[pair], q / proposal[pair]
            np.add.at(mean, pair, a.mean() * (a / a.sum() - b / b.sum()) * proposal[pair].prod())
    return mean - mean.sum() * q


def _completion(index: int) -> object:
    from llm.records import Completion

    return Completion("x", index, (1,), "stop", "")


def test_rejection_sampling_follows_the_target() -> None:
    """Of many candidates the first sweep accepts exactly p e^(r/τ): χ² at level 1e-3."""
    prior, reward, temperature = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 1.0, 0.5, 2.0]), 0.8
    counts = np.zeros(4)
    for repeat in range(3000):
        draws = np.random.default_rng([7, repeat])
        candidates = draws.choice(4, size=96, p=prior)
        for index in rejection_sample(reward[candidates] / temperature, 4, draws):
            counts[candidates[index]] += 1
    target = prior * np.exp(reward / temperature)
    expected = counts.sum() * target / target.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
    wrong = counts.sum() * prior
    assert scipy.stats.chisquare(counts, wrong).pvalue < 1e-9


def test_rejection_sampling_takes_no_candidate_twice_and_as_many_as_asked() -> None:
    for count in range(1, 9):
        reward = np.linspace(0, 50, 8)
        accepted = rejection_sample(reward, count, np.random.default_rng(count))
        assert len(accepted) == len(set(accepted)) == count
    assert rejection_sample(np.linspace(0, 500, 8), 3, np.random.default_rng(0)) == [7, 6, 5]


def test_what_has_no_goodness_is_accepted_last() -> None:
    nothing, something = -np.inf, 0.0
    log_goodness = np.array([nothing, something, nothing, something])
    assert rejection_sample(log_goodness, 3, np.random.default_rng(0)) == [1, 3, 0]
    assert rejection_sample(np.full(4, nothing), 2, np.random.default_rng(0)) == [0, 1]


def test_rejection_sampling_heeds_the_goodness(policy: Policy) -> None:
    groups = scored_groups(policy, n=N)
    log_policy = torch.tensor(score(policy, [p for g in groups for p in group_pairs(g)], N), dtype=torch.float64)
    changes = ({}, {"goodness": "logistic", "temperature": 1.0})
    found = [
        group_coefficients(groups, log_policy, make_objective(settings("rso", seed=3, **change)))[0]
        for change in changes
    ]
    assert not torch.equal(*found)


def test_rejection_accepts_an_even_eighth_unless_told() -> None:
    counts = {n: accepted_count(letter_config(method="rso", n=n)) for n in (4, 8, 16, 32, 56, 64)}
    assert counts == {4: 2, 8: 2, 16: 2, 32: 4, 56: 6, 64: 8}
    assert accepted_count(letter_config(method="rso", n=8, rso_accepted=6)) == 6


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.proposal == "prior"])
def test_methods_of_the_prior_sample_from_it_in_every_phase(
    method: str, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = letter_config(tmp_path / "run", method=method)
    policy = moved(load_policy(config))
    collector = groups_module.Collector(policy, _count_a(), config, tmp_path, "f" * 64)
    groups = collector.collect(1, _prompts(policy), lambda done: None)
    with policy.as_prior():
        pairs = [pair for group in groups for pair in group_pairs(group)]
        again = sample_groups(policy, [g.prompt for g in groups], config.n, draw=(0, "rollout", 1), max_new_tokens=6)
    assert [c for _, c in pairs] == [c for group in again for c in group]
    for group in groups:
        assert group.log_proposal.tolist() == group.log_prior.tolist()
        assert group.phase == 1


def test_brain_samples_from_the_policy(in_letters: Path, tmp_path: Path) -> None:
    config = letter_config(tmp_path / "run")
    policy = moved(load_policy(config))
    collector = groups_module.Collector(policy, _count_a(), config, tmp_path, "f" * 64)
    group = collector.collect(1, _prompts(policy), lambda done: None)[0]
    assert abs(group.log_proposal - group.log_prior).max() > 0.01


def _prompts(policy: Policy) -> list[Prompt]:
    return [Prompt(text, text, tuple(policy.tokenizer(text)["input_ids"]), None) for text in "abcdefg"]


def _count_a() -> object:
    from llm.rewards import load_reward

    return load_reward("letter_rewards:count_a", device="cpu", batch_size=8)


def test_gdcs_proposal_moves_only_where_the_gain_is_above_0(in_letters: Path, tmp_path: Path) -> None:
    """Phase by phase: the adapter that samples is the last one that gained, and the decision is not made again."""
    policy, asked = load_policy(letter_config()), []

    def of_gain(value: float) -> Callable[[object], float]:
        return lambda before: (asked.append(before.digest), value)[1]

    sampled, trained = [], []
    for phase, value in enumerate((99.0, -0.1, 0.1, 0.0, -1.0)):
        trained.append(adapter_digest(policy))
        sampled.append(improved_proposal(policy, tmp_path, phase, of_gain(value)).digest)
        assert improved_proposal(policy, tmp_path, phase, of_gain(-value)).digest == sampled[-1]
        _move(policy, phase)
    assert sampled == [trained[i] for i in (0, 0, 2, 2, 2)]
    assert asked == [trained[i] for i in (0, 0, 2, 2)]  # phase 0 asks nobody
    kept = improved_proposal(policy, tmp_path, 4, of_gain(1.0))
    now = adapter_digest(policy)
    with kept.active():
        assert adapter_digest(policy) == trained[2]
    assert adapter_digest(policy) == now != trained[2]


def _move(policy: Policy, seed: int) -> None:
    """Change the adapter by a random step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_the_gain_is_kl_less_kl_on_groups_of_its_own(in_letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 where nothing moved; on given groups, the difference of the two self-normalised estimates of KL(π‖·)."""
    config = letter_config(method="gdc", m=8, temperature=0.3)
    policy = load_policy(config)
    before = Proposal(policy, "old", policy.adapter_state())
    arguments = (policy, _count_a(), config, _prompts(policy), 1, before)
    assert gain(*arguments) == pytest.approx(0.0, abs=1e-5)
    _move(policy, 7)
    seen: list[ScoredGroup] = []
    sampled = proposal_module._sampled
    monkeypatch.setattr(proposal_module, "_sampled", lambda *a: (seen.extend(s := sampled(*a)), s)[1])
    found = gain(*arguments)
    assert {group.prompt.prompt_id for group in seen} < set("abcdefg")
    assert len(seen) == 2
    expected = []
    for group in seen:
        weights = np.exp(group.log_prior + group.reward / 0.3 - group.log_proposal)
        log_policy = np.array(score(policy, group_pairs(group), 4))
        expected.append(float(weights @ (log_policy - group.log_proposal) / weights.sum()))
    assert found == pytest.approx(np.mean(expected), rel=1e-6)
    assert abs(found) > 0.01
    with before.active():
        assert score(policy, group_pairs(seen[0]), 4) == pytest.approx(seen[0].log_proposal.tolist(), abs=1e-5)


@pytest.mark.parametrize(("method", "buffer", "phases"), [("brain", "", 3), ("rloo", "", 1), ("brain", "window:2", 2)])
def test_a_step_draws_from_the_buffered_phases(
    method: str, buffer: str, phases: int, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    monkeypatch.setattr(
        "llm.align.draw_batch",
        lambda groups, config, step: (seen.append({g.phase for g in groups}), groups[: config.batch])[1],
    )
    run(letter_config(tmp_path / "run", method=method, buffer=buffer, e=3, k=1))
    assert seen == [set(range(max(0, last + 1 - phases), last + 1)) for last in range(3)]


@pytest.mark.parametrize("method", ["gdc", "rso"])
def test_a_run_of_another_method_resumes_where_it_was(method: str, in_letters: Path, tmp_path: Path) -> None:
    """Interrupted between phases and gone on with, it ends at the same adapter."""
    config = letter_config(tmp_path / "whole", method=method, validate_every=4)
    run(config)
    whole = (tmp_path / "whole" / "checkpoints" / "last" / "adapter.safetensors").read_bytes()
    halted = dataclasses.replace(config, out=str(tmp_path / "halted"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.align.train_step", interrupting(5))
        with pytest.raises(KeyboardInterrupt):
            run(halted)
    run(halted, resume=True)
    assert (tmp_path / "halted" / "checkpoints" / "last" / "adapter.safetensors").read_bytes() == whole


def test_rewards_that_a_method_cannot_take_are_told_in_one_sentence(policy: Policy) -> None:
    groups = [dataclasses.replace(g, reward=np.repeat([-1e308, 1e308], N // 2)) for g in scored_groups(policy)]
    with pytest.raises(UserError, match="importance weights cannot be computed"):
        accumulate_gradient(policy, groups, make_objective(settings("rloo")), 1.0)

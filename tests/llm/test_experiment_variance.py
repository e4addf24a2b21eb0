"""The variance study: its gradients are training's, its estimates unbiased, its settings measured once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cell_rows import ROW
from letter_world import letter_config, letter_tokenizer, moved, save_llama
from llm.checkpoint import save_adapter
from llm.config import AlignConfig
from llm.errors import UserError
from llm.experiments import variance
from llm.experiments.cells import Cell, CellStore
from llm.experiments.studies import arm
from llm.experiments.variance import (
    MEASURED,
    ROWS,
    Findings,
    Point,
    Size,
    Source,
    coefficient_table,
    collect_groups,
    figures_of,
    group_gradients,
    load_source,
    measure_points,
    moments_of,
    prompt_moments,
    run_variance,
    verdicts,
    write,
)
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.records import Completion, Prompt, ScoredGroup
from llm.rewards import configured_reward
from llm.store import ShardFolder
from llm.train import accumulate_gradient, group_coefficients, make_objective

PROMPT = Prompt("x", "ab", (3, 4), None)
END = 2
SEQUENCES = [(END,), *((first, last) for first in (0, 1, 3, 4) for last in range(5))]
SMALL = Size(prompts=2, groups=2)


def randomised(policy: Policy, seed: int, scale: float = 0.2) -> dict[str, torch.Tensor]:
    """An adapter of random values."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) * scale for name, t in policy.adapter_state().items()}


def points_of(policy: Policy) -> list[Point]:
    """The prior, as it starts, and a policy elsewhere."""
    start = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in policy.adapter_state().items()}
    return [Point("at the start", 0, start), Point("best of 1 of 1 phases", 4, randomised(policy, 5, 0.05))]


def source_of(policy: Policy, prompts: Sequence[Prompt], config: AlignConfig) -> Source:
    return Source(policy, configured_reward(config), prompts, config)


@pytest.fixture
def letter_source(in_letters: Path) -> Source:
    return load_source(letter_config(), SMALL)


@pytest.fixture
def stale(letter_source: Source) -> tuple[Policy, list[ScoredGroup]]:
    """A policy, and four groups of one prompt from the prior."""
    start, end = points_of(letter_source.policy)
    groups = collect_groups(letter_source, start, 4)[1]
    letter_source.policy.load_adapter_state(end.state)
    return letter_source.policy, groups


@pytest.mark.parametrize("rows", [0, 3])
def test_each_methods_gradient_is_the_one_that_training_makes(
    stale: tuple[Policy, list[ScoredGroup]], rows: int
) -> None:
    policy, groups = stale
    table = coefficient_table(policy, groups, letter_config())
    found = group_gradients(policy, groups[0], table[:, 0], rows=rows)
    for name, gradient in zip(MEASURED, found, strict=False):
        policy.model.zero_grad()
        accumulate_gradient(policy, [groups[0]], make_objective(letter_config(method=name)), 1.0)
        trained = -torch.cat([p.grad.flatten() for p in policy.parameters()]).double()
        assert trained.norm() > 1e-3
        assert (gradient - trained).norm() < 1e-6 * trained.norm(), name


def test_a_known_normaliser_only_changes_the_length_of_a_groups_dpg(stale: tuple[Policy, list[ScoredGroup]]) -> None:
    policy, groups = stale
    table = dict(zip((*ROWS, "pooled"), coefficient_table(policy, groups, letter_config()), strict=True))
    share = table["dpg, Z known"] / table["snis"]
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    assert share[:, 0].std() > 1e-3
    halves = table["pooled"].view(2, -1)
    torch.testing.assert_close(halves.sum(-1), torch.zeros(2).double(), atol=1e-12, rtol=0)
    # both pooled over the same halves: α/A, and α/A of the other half
    both = table["dpg, Z known"].view(2, -1).sum(-1) / len(groups) * 2
    assert both.prod() == pytest.approx(1.0)


def test_on_fresh_completions_the_baseline_is_uniform_and_the_policy_the_prior_at_the_start(
    letter_source: Source,
) -> None:
    start = points_of(letter_source.policy)[0]
    groups = collect_groups(letter_source, start, 4)[0]
    assert all(np.allclose(group.log_prior, group.log_proposal, atol=1e-5) for group in groups)
    table = coefficient_table(letter_source.policy, groups, letter_config())
    assert np.allclose(table[0] - table[1], -1 / 4, atol=1e-5)


def test_the_same_draws_make_the_same_completions(letter_source: Source) -> None:
    start, end = points_of(letter_source.policy)
    one, other, again = (collect_groups(letter_source, point, 2) for point in (start, end, start))
    assert [[g.completions for g in part] for part in one] == [[g.completions for g in part] for part in again]
    assert one[0][0].completions != one[0][1].completions
    assert [g.completions for g in one[0]] != [g.completions for g in other[0]]


def test_the_moments_are_unbiased() -> None:
    """4,000 repeats with a known mean and covariance, within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([[1.0, 0, 0, 2, 0], [0.5, 0.5, -1, 0, 0]]).double()
    spread = torch.tensor([[1.0, 2, 0.5, 0, 1], [0.3, 0.3, 0.3, 1, 0]]).double()
    found = []
    for _ in range(4000):
        noise = torch.randn((4, 1, 5), generator=generator).double()  # the pooled one, the last, is of the same groups
        drawn = mean + spread * noise
        sums = torch.stack([drawn[:2].sum(0), drawn[2:].sum(0)])
        sums[:, -1] /= 2
        found.append(moments_of(sums, drawn.square().sum((0, 2)), 4)[0])
    values = torch.stack(found)
    expected = torch.stack([spread[0].square().sum(), mean[0].square().sum(), mean[0] @ mean[1], mean[1] @ mean[1]])
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() < 4 * error).all()


@pytest.fixture
def tiny(tmp_path: Path, in_letters: Path) -> tuple[Source, Point, Point]:
    """A model of 21 completions with a proposal and another policy."""
    save_llama(tmp_path / "model", letter_tokenizer("ab"), scale=4.0)
    config = letter_config(model=str(tmp_path / "model"), max_new_tokens=2, n=2, temperature=1.0)
    policy = moved(load_policy(config))
    proposal = Point("proposal", 0, policy.adapter_state())
    return source_of(policy, [PROMPT], config), proposal, Point("policy", 1, randomised(policy, 7))


def test_mean_and_variance_are_those_of_all_groups(tiny: tuple[Source, Point, Point]) -> None:
    """21 completions, n = 2, hence 441 groups: 64 sampled ones, within four standard errors."""
    source, proposal, policy = tiny
    groups = collect_groups(source, proposal, 64)[0]
    source.policy.load_adapter_state(policy.state)
    found = prompt_moments(source.policy, groups, source.config)
    chance, columns = enumerated(source, proposal, policy)
    scores = torch.stack([gradient_of(source.policy, ids) for ids in SEQUENCES])
    for number, name in enumerate(("brain", "snis")):
        gradients = torch.einsum("kn,knd->kd", coefficients_of(source, columns, name), scores[PAIRS])
        mean = chance @ gradients
        offset = gradients - mean
        squared = offset.square().sum(-1)
        variance_ = chance @ squared
        error = (chance @ (squared - variance_).square() / len(groups)).sqrt()
        assert abs(found[number, 0] - variance_) < 4 * error, name
        assert error < variance_ / 3, name
        along, between = chance @ (offset @ mean).square(), (offset @ offset.T).square()
        error = (4 * along / len(groups) + 2 * chance @ between @ chance / len(groups) ** 2).sqrt()
        assert abs(found[number, 1] - mean.square().sum()) < 4 * error, name


PAIRS = torch.tensor(list(itertools.product(range(len(SEQUENCES)), repeat=2)))


def completions_of(source: Source) -> list[Completion]:
    texts = [source.policy.tokenizer.decode([i for i in ids if i > END]) for ids in SEQUENCES]
    return [Completion("x", 0, ids, "stop", text) for ids, text in zip(SEQUENCES, texts, strict=True)]


def enumerated(source: Source, proposal: Point, policy: Point) -> tuple[torch.Tensor, np.ndarray]:
    """The probability of each ordered pair, and (21, 4) log p, log q', reward and log q_θ."""
    completions = completions_of(source)
    pairs = [(PROMPT, completion) for completion in completions]
    source.policy.load_adapter_state(proposal.state)
    log_proposal = score(source.policy, pairs, 32)
    with source.policy.as_prior():
        log_prior = score(source.policy, pairs, 32)
    source.policy.load_adapter_state(policy.state)
    reward = [completion.text.count("a") for completion in completions]
    columns = np.array([log_prior, log_proposal, reward, score(source.policy, pairs, 32)], dtype=np.float64).T
    return torch.tensor(log_proposal).double()[PAIRS].sum(-1).exp(), columns


def coefficients_of(source: Source, columns: np.ndarray, method: str) -> torch.Tensor:
    """(441, 2) the method's coefficients of each ordered pair."""
    completions = completions_of(source)
    groups = [ScoredGroup(PROMPT, tuple(completions[i] for i in pair), *columns[pair].T[:3]) for pair in PAIRS.tolist()]
    log_policy = torch.tensor(columns[:, 3])[PAIRS].flatten()
    objective = make_objective(dataclasses.replace(source.config, method=method))
    return group_coefficients(groups, log_policy, objective)[0].view(-1, 2)


def gradient_of(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """∇ log q_θ of a completion, from a single row."""
    row = torch.tensor([[*PROMPT.token_ids, *ids]])
    log_probs = torch.log_softmax(policy.model(input_ids=row).logits[0, :-1], -1)
    log_prob = log_probs.gather(-1, row[0, 1:, None])[len(PROMPT.token_ids) - 1 :, 0].sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(log_prob, policy.parameters())]).double()


def test_a_killed_study_goes_on_and_finds_what_an_uninterrupted_one_does(
    letter_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(letter_source.policy)

    def study(folder: str) -> Findings:
        return measure_points(letter_source, points, letter_config(), SMALL, ShardFolder(tmp_path / folder))

    whole, real, calls = study("whole"), variance._measured, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(variance, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study("killed")
    assert study("killed") == whole
    assert len(calls) == 1 + 1 + 2
    assert study("killed") == whole
    assert len(calls) == 4
    settings = [(row["policy"], row["rollouts"]) for row in whole.rows[:: len(ROWS)]]
    assert settings == [
        ("at the start", "fresh"),
        ("best of 1 of 1 phases", "fresh"),
        ("best of 1 of 1 phases", "stale"),
    ]


def moments(variance_: Sequence[float], signal: Sequence[float]) -> variance.Moments:
    return variance.Moments(*map(np.array, (variance_, signal, signal, signal)))


def test_figures_are_ratios_of_means_and_unknown_where_a_length_is_not_seen() -> None:
    found = figures_of(moments([1.0, 3.0], [2.0, 6.0]))
    assert (found["variance_estimate"], found["signal_to_noise_estimate"], found["cosine_estimate"]) == (2.0, 2.0, 1.0)
    assert (found["variance_low"], found["variance_high"]) == (1.0, 3.0)
    assert figures_of(moments([1.0, 2.0, 9.0], [1.0, 1.0, 1.0]))["median_variance_estimate"] == 2.0
    assert (found["signal_to_noise_low"], found["signal_to_noise_high"]) == (2.0, 2.0)
    unseen = figures_of(variance.Moments(*map(np.array, ([1.0], [-1.0], [1.0], [1.0]))))
    assert unseen["cosine_estimate"] is None
    assert unseen["cosine_of_a_group_estimate"] is None
    assert unseen["signal_to_noise_estimate"] == -1.0
    neither = figures_of(variance.Moments(*map(np.array, ([1.0], [-1.0], [1.0], [-1.0]))))
    assert neither["cosine_estimate"] is None


def test_verdicts_pair_the_prompts() -> None:
    hard = np.geomspace(1, 1e6, 12)
    other = {name: moments(2 * hard, hard) for name in ROWS[1:]}
    found = {c["claim"]: c for c in verdicts({"brain": moments(hard, hard)} | other)}
    claim = found["brain's variance is below that of snis"]
    assert (claim["estimate"], claim["low"], claim["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert claim["verdict"] == "holds"
    assert found["brain's cosine of a group is above that of snis"]["estimate"] == pytest.approx(2**-0.5 - 3**-0.5)
    assert found["brain's signal to noise is above that of snis"]["estimate"] == pytest.approx(1 - 0.5)
    assert not any("rloo" in text for text in found)


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells are finished at once, with a random adapter."""
    done: list[Cell] = []

    def run_cells(cells: Sequence[Cell], store: CellStore, runs: Path, base: AlignConfig, *, processes: int) -> None:
        for number, cell in enumerate(cells):
            done.append(cell)
            store.add(dataclasses.replace(ROW, cell=cell.key, best_step=4 * cell.config.e))
            policy = load_policy(cell.config)
            policy.load_adapter_state(randomised(policy, number))
            save_adapter(runs / cell.key, policy, "card")

    monkeypatch.setattr(variance, "run_cells", run_cells)
    return done


def test_the_study_measures_a_brain_run_after_one_phase_and_at_its_end(
    in_letters: Path, tmp_path: Path, without_training: list[Cell]
) -> None:
    base = letter_config(method="rloo")
    found = run_variance(base, tmp_path, "w", SMALL, processes=1)
    assert [cell.config for cell in without_training] == [
        dataclasses.replace(arm("brain").config(base), e=1),
        arm("brain").config(base),
    ]
    steps = {row["policy"]: row["step"] for row in found.rows}
    assert steps == {"at the start": 0, "best of 1 of 2 phases": 4, "best of 2 of 2 phases": 8}
    assert len(found.rows) == 5 * len(ROWS)
    stamp = {"world": "world-1", "settings": "settings-1", "version": "version-1"}
    write(tmp_path, "variance", found, SMALL, base, stamp, "the command")
    texts = [(tmp_path / f"variance.{kind}").read_text() for kind in ("md", "csv", "json")]
    assert all(value in text for text in texts for value in stamp.values())
    assert json.loads(texts[2])["rows"] == found.rows
    assert "2 training prompts, R = 2 groups of 4 completions" in texts[0]
    assert (tmp_path / "variance.png").stat().st_size > 5000


def test_an_adapter_that_is_gone_is_named(policy: Policy, tmp_path: Path) -> None:
    cell = Cell(letter_config(), "w")
    with pytest.raises(UserError, match=rf"its adapter is gone. Remove {cell.key} from .*cells\.csv"):
        variance._adapter(tmp_path, cell, policy)


def test_too_few_prompts_are_refused(in_letters: Path) -> None:
    with pytest.raises(UserError, match="42 training prompts, and variance needs 50"):
        load_source(letter_config(), Size(prompts=50, groups=2))

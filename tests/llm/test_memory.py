"""How many completions a training pass takes: what small passes tell of large ones, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from architectures import ARCHITECTURES, save_model
from letter_world import letter_config, letter_tokenizer, moved
from llm import memory, models, shared_prefix
from llm.align import open_run, run
from llm.config import load_config
from llm.errors import UserError
from llm.logprob import sequence_log_probs
from llm.memory import PassCost, fitting_rows, made_up_pairs, pass_budget, pass_costs, peak_bytes, with_train_rows
from llm.models import Policy, load_policy
from llm.records import Prompt
from llm.rewards import FunctionReward, HeldReward, ReferenceSubtracted
from llm.rollout import sample_groups

PROMPT, LENGTH, N = 24, 10, 8
ENGINES = ("shared-prefix", "plain")
FREE = FunctionReward("builtins:len")
"""A reward without a model."""


@pytest.fixture(params=[(engine, again) for engine in ENGINES for again in (False, True)], ids=str)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Policy:
    """A policy with either engine, with and without activation checkpointing."""
    engine, again = request.param
    config = letter_config(model=str(save_model(tmp_path, "llama")), engine=engine, activation_checkpointing=again)
    return moved(load_policy(config))


def allocated(work: Callable[[], Any]) -> int:
    """The peak of what torch's allocator handed out, by its own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(("groups", "rows"), [(1, 3), (1, 8), (3, 24)])
def test_a_pass_needs_what_was_reckoned_from_smaller_ones(small: Policy, groups: int, rows: int) -> None:
    costs = pass_costs(small, PROMPT, LENGTH, N)
    pairs = made_up_pairs(PROMPT, LENGTH, groups, rows)
    estimated = max(cost.of(rows, N) for cost in costs)
    for parameter in small.parameters():
        parameter.grad = torch.zeros_like(parameter)
    measured = allocated(lambda: sequence_log_probs(small, pairs).sum().backward())
    assert measured / 1.1 < estimated < measured * 1.1
    assert max(peak_bytes(small, pairs)) == pytest.approx(measured, rel=0.05)
    assert all(parameter.grad is None for parameter in small.parameters())


@pytest.mark.parametrize("again", [False, True])
def test_logits_whose_room_is_bounded_do_not_mislead(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, sizes = 3000, {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=words, max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    policy = moved(load_policy(letter_config(model=str(tmp_path), activation_checkpointing=again)))
    monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", 20 * words)
    costs = pass_costs(policy, PROMPT, LENGTH, N)
    for groups in (1, 2, 40):  # with few groups logits weigh most, with many the layers
        measured = max(peak_bytes(policy, made_up_pairs(PROMPT, LENGTH, groups, groups * N)))
        assert max(cost.of(groups * N, N) for cost in costs) == pytest.approx(measured, rel=0.05)


def test_sharing_a_prompt_and_recomputing_activations_cost_less(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")

    def needed(engine: str, again: bool) -> float:
        policy = load_policy(letter_config(model=str(folder), engine=engine, activation_checkpointing=again))
        return max(cost.of(4 * N, N) for cost in pass_costs(policy, PROMPT, LENGTH, N))

    assert needed("shared-prefix", True) < 0.7 * needed("shared-prefix", False) < 0.7 * needed("plain", False)


COST = PassCost(1000, 100, 10)


@pytest.mark.parametrize(
    ("budget", "rows"),
    [
        (10**9, 48),  # the whole batch
        (1000 + 6 * 180, 48),
        (1000 + 6 * 180 - 1, 40),
        (1000 + 2 * 180, 16),
        (1000 + 180, 8),
        (1000 + 179, 7),
        (1000 + 110, 1),
        (0, 1),
        (-(10**9), 1),
    ],
)
def test_whole_groups_are_taken_if_one_fits_else_a_part_of_one(budget: int, rows: int) -> None:
    found = fitting_rows(COST, budget, 8, 6)
    assert found == rows
    assert COST.of(found, 8) <= budget or found == 1


def test_the_budget_is_a_share_of_the_total_less_weights_gradient_and_optimiser(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", ("not there",))

    total = psutil.virtual_memory().total
    weights = sum(tensor.nbytes for tensor in (*policy.model.parameters(), *policy.model.buffers()))
    trained = sum(parameter.nbytes for parameter in policy.parameters())
    assert pass_budget(policy, FREE) == total * 0.5 - weights - 3 * trained


class Judge(HeldReward):
    """A reward with a model."""

    rows = _scores = None  # type: ignore[assignment]


@pytest.mark.parametrize("subtracts", [False, True])
def test_a_rewards_model_counts_where_it_lies_beside_the_policy(
    policy: Policy, subtracts: bool, tmp_path: Path
) -> None:
    """As on the CPU; `meta` stands for the computer's memory beside a policy on a GPU."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=30, num_labels=1, **sizes))
    bytes_of_model = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    judge = Judge("judge", model, None, device="cpu", batch_size=1)
    reward = ReferenceSubtracted(judge) if subtracts else judge
    assert pass_budget(policy, reward) == pass_budget(policy, FREE) - bytes_of_model
    judge.model.to("meta")
    assert pass_budget(policy, reward) == pass_budget(policy, FREE)


def test_a_containers_limit_counts_where_it_is_lower(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pass_budget(policy, FREE)
    total = psutil.virtual_memory().total
    limits = tmp_path / "max", tmp_path / "not there"
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", tuple(map(str, limits)))
    for text, expected in (("max\n", total), (f"{total // 4}\n", total // 4), (f"{total * 8}\n", total)):
        limits[0].write_text(text)
        assert pass_budget(policy, FREE) == pytest.approx(whole - (total - expected) / 2)


def test_processes_of_one_run_share_the_computers_memory(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pass_budget(policy, FREE)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pass_budget(policy, FREE) < 0.6 * whole


def test_the_number_is_chosen_for_the_longest_prompt_and_told(
    policy: Policy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = letter_config()
    prompts = [Prompt(str(length), "", (5,) * length, None) for length in (3, 20, 9)]
    assert with_train_rows(replace(config, train_rows=5), policy, prompts, FREE).train_rows == 5
    assert capsys.readouterr().err == ""
    assert with_train_rows(config, policy, prompts, FREE).train_rows == config.batch * config.n
    assert capsys.readouterr().err.startswith("Training in passes of 12 completions (an estimated 0.0 of ")
    costs = pass_costs(policy, 20, config.max_new_tokens, config.n)
    monkeypatch.setattr(memory, "pass_budget", lambda policy, reward: max(cost.of(8, 4) for cost in costs))
    assert with_train_rows(config, policy, prompts, FREE).train_rows == 8
    assert "Warning" not in capsys.readouterr().err
    monkeypatch.setattr(memory, "pass_budget", lambda policy, reward: 10.0)
    assert with_train_rows(config, policy, prompts, FREE).train_rows == 1
    assert "Warning: one completion may be too many" in capsys.readouterr().err


def test_choosing_leaves_the_policy_and_the_draws_as_they_were(policy: Policy) -> None:
    state, draws = policy.adapter_state(), torch.get_rng_state()
    pass_costs(policy, PROMPT, LENGTH, N)
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.adapter_state().items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_the_chosen_number_is_stored_and_kept_when_a_run_goes_on(
    in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = letter_config(out, e=1, k=1, m=3)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "pass_budget", lambda policy, reward: 1e9)
        run(config)
    stored = load_config(out / "config.yaml")
    assert stored.train_rows == 12
    monkeypatch.setattr(memory, "pass_costs", None)  # not measured again
    with open_run(stored, resume=True) as this:
        assert this.config.train_rows == 12


def test_a_run_in_parts_of_groups_ends_where_one_in_whole_groups_does(in_letters: Path, tmp_path: Path) -> None:
    ends = [run(letter_config(tmp_path / str(rows), train_rows=rows, e=1, k=3))["after"] for rows in (3, 12)]
    for key in ("mean_reward", "kl_to_prior", "completion_length"):
        assert ends[0][key]["estimate"] == pytest.approx(ends[1][key]["estimate"], rel=0.02, abs=0.02)


def test_a_pass_that_does_not_even_fit_small_is_told(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(memory, "peak_bytes", full)
    with pytest.raises(UserError, match=r"Out of memory while measuring .* \(can't allocate.*Set --train-rows"):
        pass_costs(policy, PROMPT, LENGTH, N)


PAIRS = [*made_up_pairs(9, 5, 2, 6), *made_up_pairs(4, 7, 1, 2)]


def update(policy: Policy) -> torch.Tensor:
    """The gradient of a weighted sum of log-probs."""
    log_probs = sequence_log_probs(policy, PAIRS)
    weights = torch.linspace(-1, 1, len(PAIRS), dtype=torch.float64)
    found = torch.autograd.grad((weights * log_probs).sum(), policy.parameters())
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_can_recompute_its_activations(architecture: str, engine: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, architecture)
    kept, again = (
        moved(load_policy(letter_config(model=str(folder), engine=engine, activation_checkpointing=on)))
        for on in (False, True)
    )
    expected = update(kept)
    assert (update(again) - expected).norm() < 1e-5 * expected.norm()
    assert not any(module.training for module in again.model.modules())
    if engine == "plain":
        assert peak_bytes(again, PAIRS)[1] < peak_bytes(kept, PAIRS)[1]
    prompts = [Prompt(str(i), "", (5 + i,) * (1 + i), None) for i in range(3)]
    options = {"draw": (0, "rollout", 0), "max_new_tokens": 6}
    assert sample_groups(again, prompts, 4, **options) == sample_groups(kept, prompts, 4, **options)


def test_an_architecture_without_layers_to_recompute_is_refused(
    in_letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "GradientCheckpointingLayer", torch.nn.LSTM)
    with pytest.raises(UserError, match=r"--activation-checkpointing: llama .* has no layers"):
        load_policy(letter_config(activation_checkpointing=True))
    load_policy(letter_config())

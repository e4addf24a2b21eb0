"""Checkpoints and the adapter folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from letter_world import letter_config, moved
from llm.checkpoint import TrainerState, load_best_adapter, load_checkpoint, model_card, save_adapter, save_checkpoint
from llm.errors import UserError
from llm.models import Policy, load_policy
from llm.train import make_optimizer

BEST = {"step": 2, "win_rate": 0.5, "mean_reward": 1.25}


def trained(policy: Policy) -> torch.optim.Optimizer:
    """An optimiser with a state."""
    optimizer = make_optimizer(policy, letter_config())
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_a_checkpoint_restores_adapter_optimiser_and_state(policy: Policy, tmp_path: Path) -> None:
    optimizer, state = trained(policy), TrainerState(7, BEST, 123)
    save_checkpoint(tmp_path, policy, optimizer, state)
    fresh = load_policy(letter_config())
    fresh_optimizer = make_optimizer(fresh, letter_config())
    assert load_checkpoint(tmp_path, fresh, fresh_optimizer) == state
    for name, tensor in policy.adapter_state().items():
        assert torch.equal(tensor, fresh.adapter_state()[name])
    for old, new in zip(optimizer.state.values(), fresh_optimizer.state.values(), strict=True):
        assert torch.equal(old["exp_avg_sq"], new["exp_avg_sq"])


def test_there_is_nothing_to_restore_before_the_first_checkpoint(policy: Policy, tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, policy, make_optimizer(policy, letter_config())) is None


def test_only_the_newest_checkpoints_are_kept_and_last_is_the_newest(policy: Policy, tmp_path: Path) -> None:
    optimizer = trained(policy)
    for step in (0, 5, 10, 15):
        save_checkpoint(tmp_path, policy, optimizer, TrainerState(step, BEST, 0))
    root = tmp_path / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["last", "step-000010", "step-000015"]
    assert (root / "last").resolve() == root / "step-000015"


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_named_and_refused(policy: Policy, tmp_path: Path, file: str) -> None:
    optimizer = trained(policy)
    save_checkpoint(tmp_path, policy, optimizer, TrainerState(3, BEST, 0))
    path = tmp_path / "checkpoints" / "step-000003" / file
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    with pytest.raises(UserError, match=f"step-000003/{file}.*damaged"):
        load_checkpoint(tmp_path, policy, optimizer)


def test_a_write_that_fails_leaves_the_last_checkpoint_in_force(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, state = trained(policy), TrainerState(3, BEST, 0)
    save_checkpoint(tmp_path, policy, optimizer, state)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left"):
            save_checkpoint(tmp_path, policy, optimizer, TrainerState(4, BEST, 0))
    assert load_checkpoint(tmp_path, policy, optimizer) == state


def test_the_best_adapter_comes_back_as_it_was_saved(policy: Policy, tmp_path: Path) -> None:
    saved = policy.adapter_state()
    save_adapter(tmp_path, policy, model_card(letter_config(), BEST))
    fresh = load_policy(letter_config())
    load_best_adapter(tmp_path, fresh)
    assert all(torch.equal(tensor, fresh.adapter_state()[name]) for name, tensor in saved.items())
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert "base_model: model" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_saved_adapter_is_replaced_by_a_better_one(policy: Policy, tmp_path: Path) -> None:
    for _ in range(2):
        save_adapter(tmp_path, policy, "card")
        moved(policy)
        policy.parameters()[0].data.add_(1.0)
    save_adapter(tmp_path, policy, "card")
    fresh = load_policy(letter_config())
    load_best_adapter(tmp_path, fresh)
    assert all(torch.equal(t, fresh.adapter_state()[n]) for n, t in policy.adapter_state().items())

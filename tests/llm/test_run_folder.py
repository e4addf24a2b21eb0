"""A run's folder: made for one run only, and checked before what lies in it is used again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from letter_world import letter_config
from llm.config import load_config
from llm.errors import UserError
from llm.run_folder import Identity, check_free, check_identity, check_model, new_run, stored_config, versions

IDENTITY = Identity("model", "reward", "prompts", "sampling", "settings")


def test_a_new_run_stores_its_settings_with_the_folder_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, config = new_run(letter_config(), IDENTITY)
    assert folder.parent == Path("runs")
    assert config == letter_config(folder)
    assert load_config(folder / "config.yaml") == stored_config(folder) == config
    check_identity(folder, IDENTITY)


def test_a_folder_that_was_moved_is_resumed_where_it_lies(tmp_path: Path) -> None:
    folder, _ = new_run(letter_config(tmp_path / "run"), IDENTITY)
    folder.rename(tmp_path / "moved")
    assert stored_config(tmp_path / "moved") == letter_config(tmp_path / "moved")


def test_a_folder_is_free_where_it_is_new_or_empty(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "new" / "er")
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"--out {taken}: exists and is not an empty folder"):
            check_free(taken)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    new_run(letter_config(tmp_path / "run"), IDENTITY)
    with pytest.raises(UserError, match="holds another run"):
        new_run(letter_config(tmp_path / "run", seed=1), IDENTITY)
    assert stored_config(tmp_path / "run").seed == 0


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no run there"):
        stored_config(tmp_path)


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Identity)])
def test_every_part_of_the_identity_is_checked_and_named(part: str, tmp_path: Path) -> None:
    folder, _ = new_run(letter_config(tmp_path / "run"), IDENTITY)
    with pytest.raises(UserError, match=f": {part} changed since the run began"):
        check_identity(folder, dataclasses.replace(IDENTITY, **{part: "another"}))
    cached_scores_remain = dataclasses.replace(IDENTITY, **{part: "another"}).fingerprint() == IDENTITY.fingerprint()
    assert cached_scores_remain == (part == "settings")


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder, _ = new_run(letter_config(tmp_path / "run"), IDENTITY)
    check_model(folder, "model")
    with pytest.raises(UserError, match="the model's files changed"):
        check_model(folder, "another")


def test_versions_are_those_installed_and_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions()["torch"] == importlib.metadata.version("torch")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert {value for name, value in versions().items() if name != "python"} == {"not installed"}

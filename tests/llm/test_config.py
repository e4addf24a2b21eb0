"""Settings: preset ← file ← command line, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from letter_world import REWARDS
from llm import config as config_module
from llm.config import (
    PRESETS,
    AlignConfig,
    Command,
    asked_settings,
    buffered_phases,
    changed_settings,
    dump_config,
    load_config,
    parse_command,
    validate,
)
from llm.console import entry_point
from llm.errors import UserError
from llm.methods import METHODS

OWN = ["--model", "m", "--prompts", "p.jsonl", "--reward", "r"]
DEFAULTS = AlignConfig()
GIVEN = dataclasses.replace(DEFAULTS, model="m", prompts="p.jsonl", reward="r")
PREPARE = """
import pathlib

def prepare():
    with open("prepared", "a") as file:
        file.write("x")
    return {"model": "prepared-model", "prompts": "prepared.jsonl", "reward": "prepared-reward", "e": 3, "k": 3}

def wrong():
    return ["model"]

def unknown():
    return {"modell": "m"}
"""


def written(folder: Path, text: str, name: str = "settings.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def settings(*arguments: str) -> AlignConfig:
    return parse_command(arguments).settings


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_command(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Presets of our own: `made`, which prepares, and `ready`, which does not. Also the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_module, "PRESETS", tmp_path)
    monkeypatch.delitem(sys.modules, "preparation", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path, PREPARE, "preparation.py")
    written(tmp_path, REWARDS, "letter_rewards.py")
    written(tmp_path, "prepare: preparation:prepare\ne: 7\nn: 5\n", "tiny.yaml")
    written(tmp_path, "model: a\nprompts: b\nreward: c\ne: 7\nm: 70\nn: 5\nk: 9\n", "ready.yaml")
    return tmp_path


def times_prepared(folder: Path) -> int:
    return len((folder / "prepared").read_text()) if (folder / "prepared").exists() else 0


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(presets: Path) -> None:
    file = written(presets, "m: 80\nn: 6\n")
    found = settings("--preset", "ready", "--config", file, "--n", "3")
    expected = dataclasses.replace(DEFAULTS, model="a", prompts="b", reward="c", e=7, m=80, n=3, k=9)
    assert found == expected


def test_an_option_that_repeats_a_default_still_wins(presets: Path) -> None:
    assert settings("--preset", "ready", "--e", str(DEFAULTS.e)).e == DEFAULTS.e


def test_the_embedded_preset_is_used_where_no_source_is_named(presets: Path) -> None:
    found = settings()
    assert (found.model, found.prompts, found.reward) == ("prepared-model", "prepared.jsonl", "prepared-reward")
    assert (found.n, times_prepared(presets)) == (5, 1)


def test_a_preset_wins_over_what_its_preparation_returns(presets: Path) -> None:
    assert (settings().e, settings().k, settings("--k", "4").k) == (7, 3, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        OWN,
        ["--preset", "tiny", *OWN],
        ["--dry-run"],
        ["--preset", "tiny", "--dry-run"],
        ["--resume", "somewhere"],
        ["--preset", "ready"],
        ["--preset", "tiny", "--config", "own.yaml"],
    ],
)
def test_nothing_is_prepared_that_is_not_needed(arguments: list[str], presets: Path) -> None:
    written(presets, "model: m\nprompts: p\nreward: r\n", "own.yaml")
    parse_command(arguments)
    assert times_prepared(presets) == 0


def test_help_prepares_nothing_and_ends_with_status_0(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command(["--help"])
    assert caught.value.code == 0
    assert times_prepared(presets) == 0
    assert "--max-new-tokens" in capsys.readouterr().out


def test_what_is_missing_is_prepared_and_what_was_given_stays(presets: Path) -> None:
    found = settings("--reward", "mine")
    assert (found.model, found.prompts, found.reward) == ("prepared-model", "prepared.jsonl", "mine")


def test_settings_that_cannot_work_are_refused_before_anything_is_prepared(presets: Path) -> None:
    assert "--n 1" in refused("--n", "1")
    assert "--judge nonsense" in refused("--judge", "nonsense")
    assert times_prepared(presets) == 0


def test_a_dry_run_says_that_it_does_not_prepare(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings("--dry-run").model == ""
    assert "would prepare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("preparation:wrong", "must return a dict of settings; it returned list"),
        ("preparation:unknown", "unknown setting 'modell'; did you mean 'model'"),
        ("preparation:nothing", "has no 'nothing'"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("5", "expected package.module:function"),
    ],
)
def test_a_preparation_that_does_not_work_is_told_with_its_file(function: str, expected: str, presets: Path) -> None:
    file = written(presets, f"prepare: {function}\n")
    said = refused("--config", file)
    assert file in said
    assert "prepare" in said or "modell" in said
    assert expected in said


def test_an_unknown_preset_suggests_the_nearest_and_lists_all(presets: Path) -> None:
    assert refused("--preset", "raedy").startswith("--preset raedy: no such preset; did you mean 'ready'?")
    assert "There are: ready, tiny." in refused("--preset", "../ready")


def test_an_unknown_key_suggests_the_nearest(tmp_path: Path) -> None:
    file = written(tmp_path, "learning_rat: 0.1\n")
    assert refused("--config", file, *OWN) == f"{file}: unknown setting 'learning_rat'; did you mean 'learning_rate'?."


def test_keys_may_be_written_as_the_options_are(tmp_path: Path) -> None:
    assert settings("--config", written(tmp_path, "learning-rate: 0.5\n"), *OWN).learning_rate == 0.5


BAD_VALUES = [
    ("seed", "1.5"),
    ("seed", "1.0"),
    ("seed", "true"),
    ("seed", "'3'"),
    ("n", "null"),
    ("n", "[4]"),
    ("learning_rate", "true"),
    ("learning_rate", "null"),
    ("learning_rate", "fast"),
    ("learning_rate", "[0.1]"),
    ("model", "null"),
    ("model", "false"),
    ("model", "[a, b]"),
    ("model", "{a: b}"),
    ("model", "5"),
    ("tracker", "no"),
    ("out", "2024-01-01"),
    ("quantization", "int3"),
    ("quantization", "null"),
    ("quantization", "[nf4]"),
    ("format", "plane"),
    ("activation_checkpointing", "'yes'"),
    ("activation_checkpointing", "1"),
    ("stop", "Human"),
    ("stop", "null"),
    ("stop", "[1]"),
    ("stop", "[a, [b]]"),
    ("stop", "{a: b}"),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_a_value_of_another_type_is_refused_by_file_and_key(key: str, value: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"{key}: {value}\n")
    said = refused("--config", file, *OWN)
    assert said.startswith(f"{file}: {key}: ")
    assert "is not a valid value; expected" in said


STRINGS = ["a b", "--model", "-x", "a=b", "=", "'", '"', "é 😀", "#x", "a: b", "yes", "none", "1e-5", "~", "a,b", "{x}"]


@pytest.mark.parametrize("value", STRINGS)
def test_a_text_in_a_file_is_taken_as_it_is(value: str, tmp_path: Path) -> None:
    file = written(tmp_path, yaml.safe_dump({"model": value}))
    assert settings("--config", file, "--prompts", "p", "--reward", "r").model == value


@pytest.mark.parametrize("value", [text for text in STRINGS if not text.startswith("--")])
def test_a_text_on_the_command_line_is_taken_as_it_is(value: str) -> None:
    assert settings(f"--model={value}", "--prompts", "p", "--reward", "r").model == value


@pytest.mark.parametrize("name", ["model", "prompts", "reward"])
def test_an_empty_text_counts_as_missing(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, "model: m\nprompts: p\nreward: r\n")
    assert f"--{name} is missing" in refused("--config", file, f"--{name}", "")
    file = written(tmp_path, yaml.safe_dump({"model": "m", "prompts": "p", "reward": "r", name: ""}))
    assert f"--{name} is missing" in refused("--config", file)


def test_what_is_missing_is_named_all_at_once() -> None:
    assert refused("--model", "m").startswith("--prompts and --reward are missing.")


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("1.0e-05", 1e-5), ("1", 1.0), ("3E2", 300.0)])
def test_numbers_are_read_in_every_notation(text: str, value: float, tmp_path: Path) -> None:
    found = settings("--config", written(tmp_path, f"learning_rate: {text}\n"), *OWN).learning_rate
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- a\n- b\n", "expected 'key: value' lines"),
        ("", "expected 'key: value' lines"),
        ("just text", "expected 'key: value' lines"),
        ("a: b: c\n", "not valid YAML"),
        ("e: [1\n", "not valid YAML"),
        ("out: 2024-13-45\n", "not valid YAML"),
        ("e: 1\n---\ne: 2\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("e: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("e: 1\nm: 2\ne: 3\n", "e given more than once"),
        ("learning-rate: 1\nlearning_rate: 2\n", "learning_rate given more than once"),
    ],
)
def test_a_file_that_is_no_list_of_settings_is_refused_by_name(content: str, expected: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    said = refused("--config", file, *OWN)
    assert said.startswith(f"{file}: {expected}")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.yaml'}: cannot be read" in refused("--config", str(tmp_path / "none.yaml"))
    assert f"{tmp_path}: cannot be read" in refused("--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\n")
    assert "latin.yaml: not valid YAML" in refused("--config", str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("arguments", [["--lerning-rate", "1"], ["--n", "x"], ["--format", "plane"], ["word"], ["--n"]])
def test_an_option_that_is_not_understood_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        entry_point(lambda given: print(parse_command(given)), arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert arguments[0].split("-")[-1] in said.err
    assert "Traceback" not in said.err


NUMBERS = [f.name for f in dataclasses.fields(AlignConfig) if type(getattr(DEFAULTS, f.name)) in (int, float)]
REALS = [name for name in NUMBERS if type(getattr(DEFAULTS, name)) is float]


@pytest.mark.parametrize("name", NUMBERS)
def test_negative_numbers_are_refused_by_option(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} -1"):
        validate(dataclasses.replace(GIVEN, **{name: type(getattr(DEFAULTS, name))(-1)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", REALS)
def test_numbers_that_are_not_finite_are_refused_by_option(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} {value}: must be a finite number"):
        validate(dataclasses.replace(GIVEN, **{name: value}))


def test_not_a_number_is_refused_from_every_source(tmp_path: Path) -> None:
    file = written(tmp_path, "learning_rate: .nan\n")
    assert "--learning-rate nan" in refused("--config", file, *OWN)
    assert "--learning-rate nan" in refused("--learning-rate", "nan", *OWN)


ZERO_IS_FINE = {"seed", "threads", "max_prompt_tokens", "train_rows", "warmup_steps", "weight_decay"}
ZERO_IS_FINE |= {"adam_beta1", "adam_beta2", "rso_accepted", "sft_weight", "label_smoothing"}
ZERO_IS_FINE |= {"kl_weight", "gae_lambda", "value_weight"}


@pytest.mark.parametrize("name", NUMBERS)
def test_zero_is_refused_except_where_it_means_something(name: str) -> None:
    method = next((key for key, method in METHODS.items() if name in method.heeds), "brain")
    changed = dataclasses.replace(GIVEN, **{name: 0}, method=method)
    if name in ZERO_IS_FINE:
        validate(changed)
    else:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 0"):
            validate(changed)


def test_a_setting_that_the_method_does_not_use_is_refused() -> None:
    with pytest.raises(UserError, match=r"--dpo-beta 0\.5: --method brain does not use it"):
        validate(dataclasses.replace(GIVEN, dpo_beta=0.5))
    validate(dataclasses.replace(GIVEN, dpo_beta=0.5, method="dpo-sft"))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.is_paired])
def test_methods_of_pairs_and_halves_refuse_an_odd_group(method: str) -> None:
    with pytest.raises(UserError, match=f"--n 5: --method {method} needs an even number"):
        validate(dataclasses.replace(GIVEN, method=method, n=5))


def test_given_pairs_are_two() -> None:
    with pytest.raises(UserError, match="--n 8: --method dpo trains on given pairs"):
        validate(dataclasses.replace(GIVEN, method="dpo"))


@pytest.mark.parametrize("count", [3, 10])
def test_rejection_sampling_accepts_an_even_number_of_its_candidates(count: int) -> None:
    with pytest.raises(UserError, match=f"--rso-accepted {count}: must be an even number of at most --n 8"):
        validate(dataclasses.replace(GIVEN, method="rso", rso_accepted=count))


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"--label-smoothing 0\.5: must be below 0\.5"):
        validate(dataclasses.replace(GIVEN, method="cdpo", label_smoothing=0.5))


@pytest.mark.parametrize("method", ["rso", "nca", "rloo", "grpo", "ppo"])
def test_methods_that_need_what_sampled_as_it_is_refuse_another_temperature(method: str) -> None:
    with pytest.raises(UserError, match=f"--method {method} compares completions with the model"):
        validate(dataclasses.replace(GIVEN, method=method, sampling_temperature=0.7))


@pytest.mark.parametrize("rule", ["some", "window", "window:0", "window:-1", "window:x", "latest:2", "window:\u0663"])
def test_an_unknown_buffer_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=r"--buffer .*: must be all, latest or window:K"):
        validate(dataclasses.replace(GIVEN, buffer=rule))


def test_the_buffer_is_the_methods_own_unless_given() -> None:
    assert buffered_phases(GIVEN) is None
    assert buffered_phases(dataclasses.replace(GIVEN, method="rloo")) == 1
    assert buffered_phases(dataclasses.replace(GIVEN, method="rloo", buffer="all")) is None
    assert buffered_phases(dataclasses.replace(GIVEN, buffer="latest")) == 1
    assert buffered_phases(dataclasses.replace(GIVEN, buffer="window:3")) == 3


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2"])
def test_adams_decays_must_lie_below_one(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(UserError, match=f"{option} 1.0: must be below 1"):
        validate(dataclasses.replace(GIVEN, **{name: 1.0}))
    validate(dataclasses.replace(GIVEN, **{name: 0.9999}))


def test_several_stop_strings_are_taken_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    stops = ("### Human:", "\nHuman:", "a b")
    assert settings(*OWN).stop == ()
    assert settings(*OWN, "--stop", *stops).stop == stops
    assert settings("--stop", *stops, *OWN).stop == stops
    file = written(tmp_path, yaml.safe_dump({"stop": list(stops)}))
    assert settings("--config", file, *OWN).stop == stops
    assert settings("--config", file, *OWN, "--stop", "x").stop == ("x",)
    assert settings("--config", file, *OWN, "--stop").stop == ()


def test_an_empty_stop_string_is_refused(tmp_path: Path) -> None:
    assert refused("--stop", "x", "", *OWN).startswith("--stop: an empty string would end every completion")
    assert "--stop" in refused("--config", written(tmp_path, "stop: ['']\n"), *OWN)


def test_a_switch_may_be_on_or_off(tmp_path: Path) -> None:
    file = written(tmp_path, "activation_checkpointing: true\n")
    assert settings(*OWN).activation_checkpointing is False
    assert settings(*OWN, "--activation-checkpointing").activation_checkpointing is True
    assert settings("--config", file, *OWN).activation_checkpointing is True
    assert settings("--config", file, *OWN, "--no-activation-checkpointing").activation_checkpointing is False


def test_one_completion_a_group_is_refused_with_the_reason() -> None:
    assert "the objective is identically 0" in refused("--n", "1", *OWN)
    assert settings("--n", "2", *OWN).n == 2


def test_a_batch_that_the_first_phase_cannot_fill_is_refused() -> None:
    assert "--batch 9" in refused("--batch", "9", "--m", "8", *OWN)
    assert settings("--batch", "8", "--m", "8", *OWN).batch == 8


def test_a_temperature_is_refused_where_the_goodness_has_none() -> None:
    assert "--temperature 0.5" in refused("--goodness", "logistic", "--temperature", "0.5", *OWN)
    assert settings("--temperature", "0.5", *OWN).temperature == 0.5


@pytest.mark.parametrize("name", ["prompt_column", "reference_column"])
def test_a_column_is_refused_where_the_format_has_its_own(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    assert f"{option} text: " in refused("--format", "anthropic-hh", option, "text", *OWN)
    assert getattr(settings(option, "text", *OWN), name) == "text"


@pytest.mark.parametrize("option", ["--judge", "--goodness"])
def test_a_function_that_is_not_there_is_refused_at_once(option: str, presets: Path) -> None:
    assert refused(option, "letter_rewards:nothing", *OWN).startswith(f"{option} letter_rewards:nothing: ")
    assert settings(option, "letter_rewards:tempered", *OWN)


def test_an_unknown_tracker_is_refused_at_once() -> None:
    assert refused("--tracker", "nonsense", *OWN).startswith("--tracker nonsense: ")
    for name in ("none", "tensorboard"):
        assert settings("--tracker", name, *OWN).tracker == name


def test_a_tracker_whose_package_is_missing_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    assert "its package is not installed" in refused("--tracker", "wandb", *OWN)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)


@given(data=st.data())
def test_settings_are_read_back_as_they_were_written(data: st.DataObject, tmp_path_factory: Any) -> None:
    kinds = {str: WORDS, int: st.integers(-(2**40), 2**40), float: st.floats(allow_nan=False)}
    free = [f.name for f in dataclasses.fields(AlignConfig) if type(getattr(DEFAULTS, f.name)) in kinds]
    choices = {"format", "prompt_overflow", "quantization", "dtype", "engine", "sft_mode", "reward_dtype"}
    choices |= {"reward_baseline", "method", "rso_loss"}
    drawn = {name: data.draw(kinds[type(getattr(DEFAULTS, name))]) for name in free if name not in choices}
    config = AlignConfig(
        **drawn,
        quantization=data.draw(st.sampled_from(["none", "nf4"])),
        activation_checkpointing=data.draw(st.booleans()),
        stop=tuple(data.draw(st.lists(WORDS | st.just("\nHuman:"), max_size=3))),
    )
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_finished_runs_config_is_a_starting_point_for_another(tmp_path: Path) -> None:
    first = settings("--out", "runs/first", "--learning-rate", "1e-5", "--seed", "3", *OWN)
    file = written(tmp_path, dump_config(first), "config.yaml")
    assert settings("--config", file) == first
    assert settings("--config", file, "--out", "runs/second") == dataclasses.replace(first, out="runs/second")


def test_resuming_names_exactly_the_settings_that_the_command_line_changes() -> None:
    stored = dataclasses.replace(GIVEN, e=9, learning_rate=0.5, out="run")
    for options, changed in (
        ([], []),
        (["--e", "9", "--learning-rate", "0.5"], []),
        (["--e", "4", "--lora-r", "2"], ["e", "lora_r"]),
        (["--e", str(DEFAULTS.e)], ["e"]),
    ):
        assert changed_settings(asked_settings(["--resume", "run", *options], stored), stored) == changed


@pytest.mark.parametrize("option", ["--preset", "--config"])
def test_resuming_with_another_source_of_settings_is_refused(option: str) -> None:
    assert refused("--resume", "run", option, "x").startswith(f"{option} x: --resume run goes on with the settings")
    assert parse_command(["--resume", "run"]) == Command(resume="run")


def test_every_preset_that_is_shipped_resolves() -> None:
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    assert "tiny" in names
    for name in names:
        own = settings("--preset", name, "--dry-run")
        assert own != DEFAULTS
        comments = [line for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
        assert any("Command: python -m llm.align" in line for line in comments), name

"""The mutation run: it breaks what it says, it restores what it broke, and it can report a failure."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from pathlib import Path
from types import FunctionType

import pytest

import brain_core
from brain_core import _comparison, estimators
from proofs_check import mutate
from proofs_check.bridges import BRIDGES
from proofs_check.bridging import EVERY
from proofs_check.mutate import MISSING_DETACH, Mutant, broken, kill, mutants, report, surrogate, swapped_in


def sample(xp, target, policy, log_normalizer):
    """Stands for a formula."""
    size = target.shape[-1]
    weight = xp.mean(target / policy, axis=-1, keepdims=True)
    check_values(target)
    if size < 2:
        raise ValueError
    shifted = policy - xp.log(xp.sum(policy, axis=-1))
    shifted = xp.where(policy, shifted, target)
    return combined(xp, target, policy) * weight[..., 0] - size * (size - 1) + -shifted - log_normalizer


def check_values(target):
    """Stands for a check."""


def combined(xp, target, policy):
    """Stands for a function of ours."""
    return target & policy


CHANGES = {
    "dropped normaliser": [
        "xp.mean → xp.sum",
        "target / policy → target",
        "policy - xp.log(xp.sum(policy, axis=-1)) → policy",
        "log_normalizer → 0.0",
    ],
    "off-by-one n": [
        "target.shape[-1] → target.shape[-1] + 1",
        "target.shape[-1] → target.shape[-1] - 1",
        "size - 1 → size",
    ],
    "wrong axis": [
        "axis=-1 → axis=0",
        "axis=-1 → axis=None",
        "axis=-1 → axis=-2",
        "target.shape[-1] → target.shape[0]",
        "keepdims=True → keepdims=False",
        "weight[..., 0] → weight[0, ...]",
    ],
    "swapped ratio": [
        "target / policy → policy / target",
        "combined(xp, target, policy) → combined(xp, policy, target)",
    ],
    "sign": ["-shifted → shifted", "size - 1 → size + 1", "-1 → 1"],
    "missing term": [
        "size * (size - 1) → size",
        "policy - xp.log(xp.sum(policy, axis=-1)) → -xp.log(xp.sum(policy, axis=-1))",
        "combined(xp, target, policy) * weight[..., 0] → weight[..., 0]",
    ],
    "guard dropped": [
        "xp.where(policy, shifted, target) → shifted",
        "xp.where(policy, shifted, target) → target",
    ],
    "check dropped": ["check_values(target) → None", "if size < 2: raise ValueError → if False: pass"],
}


def test_every_operator_has_an_example_here() -> None:
    assert list(CHANGES) == list(mutate.OPERATORS)


@pytest.mark.parametrize(
    "operator, change", [(name, change) for name, changes in CHANGES.items() for change in changes]
)
def test_operator_makes_the_change_of_its_name(operator: str, change: str) -> None:
    assert change in [mutant.change for mutant in broken(sample) if mutant.operator == operator]


def test_conjunctions_lose_a_side() -> None:
    found = [(mutant.operator, mutant.change) for mutant in broken(combined)]
    assert found == [
        ("missing term", "target & policy → target"),
        ("missing term", "target & policy → policy"),
    ]


def test_broken_function_runs_and_differs() -> None:
    results = {mutant.change: mutant.build()(None, 6, 3) for mutant in broken(combined)}
    assert combined(None, 6, 3) == 2
    assert results == {"target & policy → target": 6, "target & policy → policy": 3}


def test_every_mutant_is_other_code_and_none_counts_twice() -> None:
    found = [mutant.build().__code__ for mutant in broken(_comparison.kl_terms)]
    assert len({(code.co_code, code.co_consts, code.co_names) for code in found}) == len(found)


def test_place_of_a_change_is_its_line_in_the_file() -> None:
    lines = Path(_comparison.__file__).read_text().splitlines()
    found = next(m for m in broken(_comparison.kl_terms) if m.change.startswith("finite - 1 →"))
    assert "finite - 1" in lines[found.line - 1]


def test_modules_are_all_but_the_types() -> None:
    files = {path.stem for path in Path(brain_core.__file__).parent.glob("*.py")}
    assert set(mutate.MODULES) == files - {"__init__", "_typing"}


def test_every_function_with_a_mutant_is_reached_by_a_bridge() -> None:
    unreached = {mutant.function for mutant in mutants() if not mutate.killers(mutant, list(BRIDGES.values()))}
    assert not unreached


def objects() -> dict[tuple[str, str], int]:
    modules = [brain_core, *map(mutate._module, mutate.MODULES)]
    return {(module.__name__, name): id(value) for module in modules for name, value in vars(module).items()}


def test_functions_are_the_same_objects_after_a_kill_and_after_a_survival() -> None:
    before = objects()
    for mutant in broken(_comparison.difference):
        assert kill(mutant)
        assert not kill(mutant, [])
    assert objects() == before


def fail_in_place_of_brain_coefficients() -> None:
    with swapped_in(brain_core.brain_coefficients, len):
        assert brain_core.brain_coefficients is estimators.brain_coefficients is len
        raise KeyboardInterrupt


def test_functions_are_restored_after_an_error() -> None:
    before = objects()
    with pytest.raises(KeyboardInterrupt):
        fail_in_place_of_brain_coefficients()
    assert objects() == before


def test_replacement_is_seen_by_every_module_that_refers_to_the_function() -> None:
    def stand_in(xp, target, policy, log_ratio):
        return "stand-in"

    with swapped_in(_comparison.difference, stand_in):
        assert estimators.difference is brain_core.divergences.difference is _comparison.difference is stand_in


def test_sample_of_formulas_is_killed_to_the_last_mutant() -> None:
    for function in (estimators.brain_coefficients, estimators._brain, _comparison.compare_weights):
        for mutant in broken(function):
            assert kill(mutant), mutate.describe(mutant)


def test_every_formula_of_brain_core_is_killed() -> None:
    lines: list[str] = []
    assert report(lines.append), "\n".join(lines)
    assert "(100.0 %)" in lines[-1]
    assert {line[:20].strip() for line in lines} >= {*mutate.OPERATORS, MISSING_DETACH}
    (place,) = [i for i, line in enumerate(lines) if line.startswith(MISSING_DETACH)]
    assert "brain_core has no detach to drop" in lines[place + 1]


def test_what_holds_the_detach_of_training_exists() -> None:
    root = Path(__file__).parents[2]
    assert all((root / name).is_file() for name in mutate.DETACH_TESTS)


def test_brain_core_has_no_detach_to_drop() -> None:
    assert not [module for module in mutate.MODULES if "detach(" in inspect.getsource(mutate._module(module))]


GUARDED = {
    "on values": _comparison.compare_weights,
    "on gradients": _comparison.difference,
    "on what numpy makes on the way": _comparison._offset_from_anchor,
}


@pytest.mark.parametrize("function", GUARDED.values(), ids=GUARDED.keys())
def test_dropped_guard_survives_without_the_groups_that_need_it(
    function: FunctionType, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = [mutant for mutant in broken(function) if mutant.operator == "guard dropped"]
    assert guards
    assert all(map(kill, guards))
    sheltered = {
        name: dataclasses.replace(bridge, batches=[batch for batch in bridge.batches if batch is EVERY])
        for name, bridge in BRIDGES.items()
    }
    monkeypatch.setattr(mutate, "BRIDGES", sheltered)
    assert not all(map(kill, guards))


def test_weaker_bridges_let_mutants_survive_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On rationals alone nothing needs the corrections of rounding, so breaking them goes unnoticed."""
    plain = {
        name: dataclasses.replace(bridge, batches=[batch for batch in bridge.batches if batch.floor])
        for name, bridge in BRIDGES.items()
    }
    monkeypatch.setattr(mutate, "BRIDGES", plain)
    lines: list[str] = []
    assert not report(lines.append, list(broken(_comparison._offset_from_anchor)))
    survivors = [line for line in lines if line.startswith("survived: ")]
    assert any("rounded_offset + error_offset → rounded_offset" in line for line in survivors)
    assert "(100.0 %)" not in lines[-1]


def test_bridges_that_refute_the_code_as_it_is_kill_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brain_core, "weight_entropy", brain_core.effective_sample_size)
    lines: list[str] = []
    assert not report(lines.append)
    assert lines == ["nothing to learn: brain_core as it is fails weight_entropy"]


ESTIMATORS = [mutant.function.removesuffix("_objective") for mutant in mutate.undetached()]


def test_detach_is_missed_in_every_estimator_whose_coefficients_depend_on_the_policy() -> None:
    assert ESTIMATORS == [
        "brain",
        "weighted_brain",
        "gdcpp",
        "importance_weighted_rloo",
        "argmax_brain",
        "dpo",
        "soft_label_dpo",
        "plackett_luce",
        "ipo",
        "nca",
        "exo",
        "clipped_surrogate",
    ]


@pytest.mark.parametrize("name", mutate.PIECEWISE_CONSTANT)
def test_detach_changes_nothing_where_the_coefficients_are_piecewise_constant(name: str) -> None:
    bridge = BRIDGES[name.replace("_coefficients", "_objective")]
    build = functools.partial(surrogate, name, is_detached=False)
    assert not kill(Mutant(MISSING_DETACH, "objectives", bridge.name, 0, "", build), [bridge])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loss_with_detached_coefficients_has_the_right_gradient_and_without_has_not(estimator: str) -> None:
    bridge = BRIDGES[f"{estimator}_objective"]
    for is_detached, killer in ((True, ""), (False, bridge.name)):
        build = functools.partial(surrogate, f"{estimator}_coefficients", is_detached=is_detached)
        assert kill(Mutant(MISSING_DETACH, "objectives", bridge.name, 0, "", build), [bridge]) == killer

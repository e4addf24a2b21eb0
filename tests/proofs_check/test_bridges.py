"""The bridges: what they pass to `brain_core`, and that they notice what they should."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest

import brain_core
from proofs_check import bridging, oracles
from proofs_check.bridges import BRIDGES, claim_id, plain_difference, plain_divergence, plain_ratios
from proofs_check.bridging import (
    EVERY,
    NEAR,
    ONE_PAIR,
    OUT_OF_REACH,
    SELF_NORMALIZED,
    WITH_TIES,
    Refusal,
    check_gradient,
    check_values,
    shipped,
    wrong_input,
)
from proofs_check.claims import REGISTRY, Refuted

BRAIN = BRIDGES["brain_coefficients"]


def test_every_public_function_has_a_bridge_and_a_claim() -> None:
    functions = {name for name in brain_core.__all__ if inspect.isfunction(getattr(brain_core, name))}
    assert functions == set(BRIDGES)
    assert {claim_id(name) for name in functions} <= set(REGISTRY)


def test_every_objective_is_bound_to_the_exact_coefficients_by_its_gradient() -> None:
    objectives = {name for name in BRIDGES if name.endswith("_objective")}
    assert objectives <= {name for name, bridge in BRIDGES.items() if bridge.slope}


def test_oracles_share_no_code_with_brain_core() -> None:
    tree = ast.parse(inspect.getsource(oracles))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in imported if name.split(".")[0] in ("brain_core", "toy")]


def test_importing_the_bridges_loads_no_torch() -> None:
    code = "import sys, proofs_check.bridges, proofs_check.mutate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_batches_hold_every_multiset_with_ties_and_excluded_completions() -> None:
    assert len(EVERY.samples) == 20
    assert len(WITH_TIES.samples) == 70
    assert len({tuple(sample.target) for sample in WITH_TIES.samples}) > 50
    assert any(len(set(sample.target)) < 4 and all(sample.target) for sample in WITH_TIES.samples)
    assert any(not any(sample.target) for sample in WITH_TIES.samples)
    assert any(0 in sample.target and any(sample.target) for sample in WITH_TIES.samples)
    assert any(not all(sample.policy) for sample in WITH_TIES.samples)


def test_arguments_written_as_floats_arrive_to_the_last_digit() -> None:
    given = [[1e9 / 7, -3.3, 1e3 + 1e-13], [-1e4 / 3, 0.1, 7e-40]]
    call = bridging.calls(_only(bridging.Batch([bridging.written(*given)], (1,)), BRAIN))[0]
    assert [argument.tolist() for argument in call.arguments] == [[row] for row in given]


def test_normaliser_is_passed_as_a_number_and_as_one_per_group() -> None:
    found = {type(call.options["log_normalizer"]) for call in bridging.calls(BRIDGES["dpg_coefficients"])}
    assert found == {float, np.ndarray}


def _only(batch: bridging.Batch, bridge: bridging.Bridge) -> bridging.Bridge:
    """The bridge on one batch, without refusals."""
    return dataclasses.replace(bridge, batches=[batch], refusals=())


@pytest.mark.parametrize(
    "name, plain",
    [
        ("brain_coefficients", plain_difference),
        ("self_normalized_kl", plain_divergence),
        ("gdcpp_coefficients", plain_ratios),
    ],
)
def test_textbook_formula_is_right_on_rationals_and_has_no_digits_near_the_optimum(name: str, plain) -> None:
    bridge, textbook = BRIDGES[name], plain(shipped(name))
    near = next(batch for batch in bridge.batches if batch.floor == 0)
    for batch in bridge.batches:
        if batch.floor:
            check_values(_only(batch, bridge), textbook, "numpy")
    with pytest.raises(Refuted, match="is off by"):
        check_values(_only(near, bridge), textbook, "numpy")


@pytest.mark.parametrize("changed", range(len(NEAR.samples)))
def test_every_near_group_is_checked_by_itself(changed: int) -> None:
    """A wrong digit in one group is seen, however large its neighbours are."""

    def off(*arguments, **options):
        found = brain_core.brain_coefficients(*arguments, **options)
        flat = found.reshape(-1, 5)
        flat[changed] *= 1 + 1e-12
        return flat.reshape(found.shape)

    with pytest.raises(Refuted):
        check_values(_only(NEAR, BRAIN), off, "numpy")


WRONG_RESULTS = {
    "another dtype": lambda found: found.astype(np.float32),
    "another shape": lambda found: found[..., None],
    "not a number": lambda found: found * np.nan,
    "another library": lambda found: found.tolist(),
    "a digit": lambda found: found + 3e-13,
}


@pytest.mark.parametrize("wrong", WRONG_RESULTS.values(), ids=WRONG_RESULTS.keys())
def test_wrong_result_is_refuted(wrong) -> None:
    with pytest.raises(Refuted):
        check_values(BRAIN, lambda *a, **o: wrong(brain_core.brain_coefficients(*a, **o)), "numpy")


def test_infinity_must_be_where_it_is_expected() -> None:
    bridge = BRIDGES["target_log_ratio"]
    with pytest.raises(Refuted, match="infinite"):
        check_values(bridge, lambda *a: np.maximum(brain_core.target_log_ratio(*a), -1e300), "numpy")


def test_numpy_in_place_of_torch_is_refuted() -> None:
    bridge = BRIDGES["likelihood_drift"]
    with pytest.raises(Refuted, match="another library"):
        check_values(bridge, lambda *a: brain_core.likelihood_drift(*(x.numpy() for x in a)), "torch")


@pytest.mark.parametrize("name", sorted(name for name, bridge in BRIDGES.items() if bridge.refusals))
def test_returning_where_an_error_is_due_is_refuted(name: str) -> None:
    bridge = dataclasses.replace(BRIDGES[name], batches=())
    check_values(bridge, shipped(name), "numpy")
    with pytest.raises(Refuted, match="not refused"):
        check_values(bridge, lambda *arguments, **options: arguments[0], "numpy")


def test_another_error_than_the_right_one_is_refuted() -> None:
    def strict(*arguments, **options):
        raise ArithmeticError("no")

    with pytest.raises(Refuted, match="ArithmeticError"):
        check_values(dataclasses.replace(BRAIN, batches=()), strict, "numpy")


def test_gradient_of_the_wrong_objective_is_refuted() -> None:
    bridge = BRIDGES["snis_objective"]
    check_gradient(bridge, shipped("snis_objective"))
    with pytest.raises(Refuted, match="gradient"):
        check_gradient(bridge, shipped("brain_objective"))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["soft_label_dpo_coefficients", "soft_label_dpo_objective"])
def test_preference_of_one_pair_is_passed_as_an_array_without_axes(name: str, library: str) -> None:
    bridge = _only(ONE_PAIR, BRIDGES[name])
    assert {np.shape(call.options["preference"]) for call in bridging.calls(bridge)} == {()}
    assert any(isinstance(call.options["preference"], np.ndarray) for call in bridging.calls(bridge))

    def for_batches_only(policy, *, preference, power=1.0):
        if not isinstance(preference, float):
            preference[..., 0]
        return shipped(name)(policy, preference, power=power)

    check_values(bridge, shipped(name), library)
    with pytest.raises(Refuted, match="IndexError"):
        check_values(bridge, for_batches_only, library)


def test_group_whose_target_is_far_and_excluded_by_both_has_the_known_divergence() -> None:
    call = bridging.calls(_only(OUT_OF_REACH, BRIDGES["self_normalized_kl"]))[0]
    assert call.expected[0, 0] == pytest.approx(0.17876, abs=5e-6)


def test_gradient_that_is_not_a_number_is_refuted() -> None:
    """The values are right; only the slope of the formula that is not chosen is not finite."""

    def overflowing(target, policy, **options):
        found = brain_core.self_normalized_kl(target, policy, **options)
        unused = policy.exp().sum(-1)
        return found.where(policy.max(-1).values > -np.inf, unused)

    bridge = _only(OUT_OF_REACH, BRIDGES["self_normalized_kl"])
    check_values(bridge, overflowing, "torch")
    with pytest.raises(Refuted, match="gradient"):
        check_gradient(bridge, overflowing)


def test_not_a_number_on_the_way_is_refuted_though_the_result_is_right() -> None:
    def careless(target, policy, **options):
        assert np.where(target > -np.inf, target - target, 0.0).shape == target.shape
        return brain_core.brain_coefficients(target, policy, **options)

    with pytest.raises(Refuted, match="FloatingPointError"):
        check_values(_only(WITH_TIES._replace(options={"on_empty": "skip"}), BRAIN), careless, "numpy")


@pytest.mark.parametrize("name", sorted(BRIDGES))
def test_every_input_and_every_option_is_tried_with_wrong_values(name: str) -> None:
    """Each refusal is wrong in one place: all others have values that the function takes."""
    parameters = inspect.signature(getattr(brain_core, name)).parameters
    found = list(wrong_input(BRIDGES[name]))
    assert {refusal.says.split()[0] for refusal in found} - {"the"} == set(parameters) - set(bridging.FLAGS)
    for refusal in found:
        wrong_arguments = [a for a in refusal.arguments if not np.isfinite(a).all()]
        assert len(wrong_arguments) <= 1
        assert not wrong_arguments or refusal.options == {
            key: value for key, value in bridging.RIGHT_OPTIONS.items() if key in parameters
        }


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", sorted(BRIDGES))
def test_the_values_beside_a_wrong_one_are_right(name: str, library: str) -> None:
    bridge = BRIDGES[name]
    right = ([[0.0, 1.0], [1.0, 0.0]],) * len(bridge.arguments)
    parameters = inspect.signature(getattr(brain_core, name)).parameters
    options = {key: value for key, value in bridging.RIGHT_OPTIONS.items() if key in parameters}
    accepted = dataclasses.replace(bridge, batches=(), refusals=[Refusal(ValueError, right, options)])
    with pytest.raises(Refuted, match="not refused"):
        check_values(accepted, shipped(name), library)


def test_error_that_says_something_else_is_refuted() -> None:
    refusal = Refusal(ValueError, ([0.0, 1.0], [0.0, np.nan]), says="policy_log_ratio is NaN; first at index (1,)")
    check_values(dataclasses.replace(BRAIN, batches=(), refusals=[refusal]), shipped(BRAIN.name), "numpy")
    other = refusal._replace(says="target_log_ratio is NaN")
    with pytest.raises(Refuted, match="ValueError"):
        check_values(dataclasses.replace(BRAIN, batches=(), refusals=[other]), shipped(BRAIN.name), "numpy")


def test_self_normalised_functions_are_tried_on_batches_of_different_rank() -> None:
    assert {len(batch.shape) for batch in SELF_NORMALIZED} == {0, 2, 3}

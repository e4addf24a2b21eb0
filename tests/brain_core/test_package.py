"""The package as a whole: its names, its examples, its arrays, and what importing it costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import array_api_compat
import numpy as np
import pytest

import brain_core as bc

MODULES = ["brain_core", *(f"brain_core.{module.name}" for module in pkgutil.iter_modules(bc.__path__))]
PUBLIC_MODULES = [name for name in MODULES[1:] if not name.split(".")[1].startswith("_")]
FUNCTIONS = {name: getattr(bc, name) for name in bc.__all__ if inspect.isfunction(getattr(bc, name))}


def defined_in(module_name):
    module = importlib.import_module(module_name)
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module_name and not name.startswith("_")
    }


def test_list_of_public_names_is_what_the_package_exports():
    exported = {name for name, value in vars(bc).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert sorted(exported) == bc.__all__ == sorted(set(bc.__all__))


def test_every_function_written_for_users_is_exported():
    internal = {"normalized"} | defined_in("brain_core.logspace")
    written = set().union(*(defined_in(name) for name in PUBLIC_MODULES)) - internal
    assert written == set(FUNCTIONS)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    if name in PUBLIC_MODULES and name != "brain_core.logspace":
        assert results.attempted >= 2 * len(defined_in(name) & set(FUNCTIONS))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_follows_the_template(name):
    text = inspect.getdoc(FUNCTIONS[name])
    sections = ["Args:", "Returns:", "Raises:", "Gradient:", "Source:", "Example:"]
    positions = [text.find(section) for section in sections]
    assert -1 not in positions, sections[positions.index(-1)]
    assert positions == sorted(positions)
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        assert f"\n    {argument}: " in text, argument


def test_functions_are_short():
    lengths = []
    for path in Path(bc.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lengths.append(body[-1].end_lineno - body[0].lineno + 1)
    assert len(lengths) > 50
    assert median(lengths) < 12
    assert max(lengths) < 25


def test_importing_the_package_loads_neither_torch_nor_transformers_nor_our_other_packages():
    heavy = ("torch", "transformers", "jax", "llm", "toy", "proofs_check")
    code = f"import sys, brain_core; print([name for name in {heavy} if name in sys.modules])"
    root = Path(bc.__file__).parents[1]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


CALLS = {
    "bradley_terry_log_goodness": lambda t, v, z: bc.bradley_terry_log_goodness(t),
    "logistic_log_goodness": lambda t, v, z: bc.logistic_log_goodness(t),
    "target_log_ratio": lambda t, v, z: bc.target_log_ratio(t, v, t),
    "policy_log_ratio": lambda t, v, z: bc.policy_log_ratio(t, v),
    "self_normalized_weights": lambda t, v, z: bc.self_normalized_weights(t),
    "effective_sample_size": lambda t, v, z: bc.effective_sample_size(t),
    "weight_entropy": lambda t, v, z: bc.weight_entropy(t),
    "likelihood_drift": lambda t, v, z: bc.likelihood_drift(t, v),
    "snis_coefficients": lambda t, v, z: bc.snis_coefficients(t),
    "rloo_coefficients": lambda t, v, z: bc.rloo_coefficients(t),
    "plackett_luce_coefficients": lambda t, v, z: bc.plackett_luce_coefficients(v),
    "plackett_luce_objective": lambda t, v, z: bc.plackett_luce_objective(v),
    "dpo_coefficients": lambda t, v, z: bc.dpo_coefficients(v),
    "dpo_objective": lambda t, v, z: bc.dpo_objective(v),
    "soft_label_dpo_coefficients": lambda t, v, z: bc.soft_label_dpo_coefficients(v, z),
    "soft_label_dpo_objective": lambda t, v, z: bc.soft_label_dpo_objective(v, z),
    "ipo_coefficients": lambda t, v, z: bc.ipo_coefficients(v, power=0.5),
    "ipo_objective": lambda t, v, z: bc.ipo_objective(v, power=0.5),
    "hinge_coefficients": lambda t, v, z: bc.hinge_coefficients(v),
    "hinge_objective": lambda t, v, z: bc.hinge_objective(v),
    "group_relative_advantage": lambda t, v, z: bc.group_relative_advantage(t),
    "clipped_surrogate_coefficients": lambda t, v, z: bc.clipped_surrogate_coefficients(t, v, clip=0.3),
    "clipped_surrogate_objective": lambda t, v, z: bc.clipped_surrogate_objective(t, v, clip=0.3),
    "best_of_n_coefficients": lambda t, v, z: bc.best_of_n_coefficients(t),
    "dpg_coefficients": lambda t, v, z: bc.dpg_coefficients(t, log_normalizer=z),
    "gdc_coefficients": lambda t, v, z: bc.gdc_coefficients(t, log_normalizer=z),
}


def call(name, target, policy, per_group):
    """A call of any public function with arrays that suit it."""
    if name in CALLS:
        return CALLS[name](target, policy, per_group)
    takes_normalizer = "log_normalizer" in inspect.signature(FUNCTIONS[name]).parameters
    return FUNCTIONS[name](target, policy, **({"log_normalizer": per_group} if takes_normalizer else {}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_library_dtype_and_device_are_those_of_the_input(backend, name, dtype):
    rng = np.random.default_rng(0)
    target, policy = (backend.array(x, dtype) for x in rng.normal(size=(2, 3, 2)))
    found = call(name, target, policy, backend.array([0.1, 0.2, 0.3], dtype))
    assert array_api_compat.array_namespace(found) is array_api_compat.array_namespace(target)
    assert found.dtype == target.dtype
    assert array_api_compat.device(found) == array_api_compat.device(target)
    expected = call(
        name, *(np.array(backend.numpy(x), dtype="float64") for x in (target, policy)), np.array([0.1, 0.2, 0.3])
    )
    tolerance = 1e-5 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(backend.numpy(found), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_work_inside_jax_jit(name):
    jax = pytest.importorskip("jax", reason="jax is not installed (pip install 'brain-align[jax]')")
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    target, policy = (jax.numpy.asarray(x) for x in rng.normal(size=(2, 3, 2)))
    per_group = jax.numpy.asarray([0.1, 0.2, 0.3])
    found = jax.jit(lambda *arrays: call(name, *arrays))(target, policy, per_group)
    np.testing.assert_allclose(found, call(name, target, policy, per_group), rtol=1e-13, atol=1e-15)


def test_jit_keeps_the_digits_near_the_optimum():
    jax = pytest.importorskip("jax", reason="jax is not installed (pip install 'brain-align[jax]')")
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    policy = 1e3 + rng.normal(size=(4, 6))
    target = policy + 1e-6 * rng.normal(size=(4, 6)) + 5e3
    found = jax.jit(bc.brain_coefficients)(target, policy)
    np.testing.assert_allclose(found, bc.brain_coefficients(target, policy), rtol=1e-12)


def test_coefficients_of_a_tensor_that_requires_grad_raise_no_warning():
    import torch

    policy = torch.zeros((2, 3), requires_grad=True)
    assert bc.brain_coefficients(torch.ones((2, 3)), policy).shape == (2, 3)

"""The second route: the gradient of every objective in the policy is minus the coefficients."""

from __future__ import annotations

import numpy as np
import pytest

import brain_core as bc

POWER = 0.7
PREFERENCE = 0.8
NORMALIZER = 0.4


def pair(size, excluded=False):
    rng = np.random.default_rng(size)
    target, policy = rng.normal(size=(2, 5, size))
    if excluded:
        target[1, 0] = -np.inf
    return target, policy


ROUTES = {
    "brain": (4, bc.brain_objective, bc.brain_coefficients, {"power": POWER}),
    "self_normalized_kl": (4, bc.self_normalized_kl, bc.brain_coefficients, {"power": POWER}),
    "snis": (4, bc.snis_objective, lambda t, v: bc.snis_coefficients(t), {}),
    "weighted_brain": (
        4,
        bc.weighted_brain_objective,
        bc.weighted_brain_coefficients,
        {"log_normalizer": NORMALIZER},
    ),
    "dpg": (4, bc.dpg_objective, lambda t, v, **k: bc.dpg_coefficients(t, **k), {"log_normalizer": NORMALIZER}),
    "gdc": (4, bc.gdc_objective, lambda t, v, **k: bc.gdc_coefficients(t, **k), {"log_normalizer": NORMALIZER}),
    "gdcpp": (4, bc.gdcpp_objective, bc.gdcpp_coefficients, {"log_normalizer": NORMALIZER}),
    "importance_weighted_rloo": (
        4,
        bc.importance_weighted_rloo_objective,
        bc.importance_weighted_rloo_coefficients,
        {"log_normalizer": NORMALIZER},
    ),
    "rloo": (4, bc.rloo_objective, lambda t, v: bc.rloo_coefficients(t), {}),
    "argmax_brain": (4, bc.argmax_brain_objective, bc.argmax_brain_coefficients, {"power": POWER}),
    "dpo": (
        2,
        lambda t, v, **k: bc.dpo_objective(v, **k),
        lambda t, v, **k: bc.dpo_coefficients(v, **k),
        {"power": POWER},
    ),
    "soft_label_dpo": (
        2,
        lambda t, v, **k: bc.soft_label_dpo_objective(v, PREFERENCE, **k),
        lambda t, v, **k: bc.soft_label_dpo_coefficients(v, PREFERENCE, **k),
        {"power": POWER},
    ),
    "plackett_luce": (
        4,
        lambda t, v, **k: bc.plackett_luce_objective(v, **k),
        lambda t, v, **k: bc.plackett_luce_coefficients(v, **k),
        {"power": POWER},
    ),
    "ipo": (
        2,
        lambda t, v, **k: bc.ipo_objective(v, **k),
        lambda t, v, **k: bc.ipo_coefficients(v, **k),
        {"power": POWER},
    ),
    "hinge": (
        2,
        lambda t, v, **k: bc.hinge_objective(v, **k),
        lambda t, v, **k: bc.hinge_coefficients(v, **k),
        {"power": POWER, "margin": 0.4},
    ),
    "nca": (4, bc.nca_objective, bc.nca_coefficients, {"power": POWER}),
    "exo": (4, bc.exo_objective, bc.exo_coefficients, {"power": POWER}),
    "rank_hinge": (4, bc.rank_hinge_objective, bc.rank_hinge_coefficients, {}),
    "clipped_surrogate": (4, bc.clipped_surrogate_objective, bc.clipped_surrogate_coefficients, {"clip": 0.3}),
    "best_of_n": (4, bc.best_of_n_objective, lambda t, v: bc.best_of_n_coefficients(t), {}),
}
FINITE = ("rloo", "exo", "rank_hinge", "clipped_surrogate")
"""Those that refuse a target or reward of -inf."""

CASES = [
    pytest.param(*route, excluded, id=f"{name}{'-excluded' * excluded}")
    for name, route in ROUTES.items()
    for excluded in (False, True)
    if not (excluded and name in FINITE)
]


def test_every_objective_has_a_route():
    objectives = {name.removesuffix("_objective") for name in bc.__all__ if name.endswith("_objective")}
    coefficients = {name.removesuffix("_coefficients") for name in bc.__all__ if name.endswith("_coefficients")}
    assert objectives == coefficients == set(ROUTES) - {"self_normalized_kl"}


@pytest.mark.parametrize("size, objective, coefficients, options, excluded", CASES)
def test_torch_gradient_of_an_objective_is_minus_the_coefficients(size, objective, coefficients, options, excluded):
    import torch

    target, policy = map(torch.from_numpy, pair(size, excluded))
    policy.requires_grad_()
    objective(target, policy, **options).sum().backward()
    expected = coefficients(target, policy.detach(), **options).numpy()
    np.testing.assert_allclose(policy.grad.numpy(), -expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size, objective, coefficients, options, excluded", CASES)
def test_jax_gradient_of_an_objective_is_minus_the_coefficients(size, objective, coefficients, options, excluded):
    jax = pytest.importorskip("jax", reason="jax is not installed (pip install 'brain-align[jax]')")
    jax.config.update("jax_enable_x64", True)
    target, policy = map(jax.numpy.asarray, pair(size, excluded))
    found = jax.jit(jax.grad(lambda v: objective(target, v, **options).sum()))(policy)
    np.testing.assert_allclose(found, -np.asarray(coefficients(target, policy, **options)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size, objective, coefficients, options, excluded", CASES)
def test_central_difference_of_an_objective_is_minus_the_coefficients(size, objective, coefficients, options, excluded):
    target, policy = pair(size, excluded)
    step = 1e-5
    columns = [
        (objective(target, policy + e, **options) - objective(target, policy - e, **options)) / (2 * step)
        for e in step * np.eye(size)
    ]
    expected = coefficients(target, policy, **options)
    np.testing.assert_allclose(np.stack(columns, axis=-1), -expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e-9, 1e-3, 0.02, 0.3, 5.0, 900.0])
def test_gradient_of_the_divergence_is_finite_and_right_on_every_branch(offset):
    import torch

    target = torch.tensor([0.0, -0.4, 0.2, -2.0], dtype=torch.float64)
    policy = (target + offset * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)).requires_grad_()
    bc.self_normalized_kl(target, policy).backward()
    expected = bc.brain_coefficients(target, policy.detach())
    np.testing.assert_allclose(policy.grad.numpy(), -expected.numpy(), rtol=0, atol=1e-14)


def test_gradient_is_zero_where_both_target_and_policy_are_excluded():
    import torch

    for objective in (
        bc.brain_objective,
        bc.self_normalized_kl,
        bc.snis_objective,
        bc.nca_objective,
        bc.exo_objective,
        bc.best_of_n_objective,
    ):
        target = torch.tensor([0.0, -torch.inf, 1.0], dtype=torch.float64)
        policy = torch.tensor([0.3, -torch.inf, 0.2], dtype=torch.float64, requires_grad=True)
        objective(target, policy).backward()
        assert torch.isfinite(policy.grad).all()
        assert policy.grad[1] == 0


def test_gradient_of_a_skipped_group_is_zero():
    import torch

    target = torch.tensor([[-torch.inf, -torch.inf], [0.0, 1.0]], dtype=torch.float64)
    for objective in (bc.brain_objective, bc.self_normalized_kl, bc.snis_objective, bc.nca_objective, bc.exo_objective):
        policy = torch.zeros((2, 2), dtype=torch.float64, requires_grad=True)
        objective(target, policy, on_empty="skip").sum().backward()
        assert not policy.grad[0].any()
        assert policy.grad[1].all()


def test_gradient_of_the_divergence_in_the_reward_is_the_formula():
    """∂D/∂rᵢ = α̂ᵢ (log(α̂ᵢ/β̂ᵢ) − D) / temperature."""
    import torch

    target, policy = map(torch.from_numpy, pair(4))
    reward = target.clone().requires_grad_()
    divergence = bc.self_normalized_kl(bc.bradley_terry_log_goodness(reward, temperature=2.0), policy)
    divergence.sum().backward()
    log_target, log_policy = torch.log_softmax(target / 2, -1), torch.log_softmax(policy, -1)
    expected = log_target.exp() * (log_target - log_policy - divergence.detach()[:, None]) / 2
    np.testing.assert_allclose(reward.grad.numpy(), expected.numpy(), rtol=0, atol=1e-14)

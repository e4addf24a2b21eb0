"""From log-ratios to score coefficients: the mathematics of BRAIn and its relatives, on arrays of any library.

Every function is pure and takes numpy, torch, jax or any other arrays of the Python array API standard; the result is
of the same library, dtype and device. The last axis is the group of G completions of one prompt. Inside `jax.jit` the
values are unknown while tracing, so only types and shapes are checked there.
"""

from brain_core._checks import SupportError
from brain_core.diagnostics import effective_sample_size, likelihood_drift, weight_entropy
from brain_core.divergences import self_normalized_kl, total_variation
from brain_core.estimators import (
    argmax_brain_coefficients,
    brain_coefficients,
    dpg_coefficients,
    dpo_coefficients,
    gdc_coefficients,
    gdcpp_coefficients,
    importance_weighted_rloo_coefficients,
    plackett_luce_coefficients,
    rloo_coefficients,
    snis_coefficients,
    soft_label_dpo_coefficients,
    weighted_brain_coefficients,
)
from brain_core.goodness import bradley_terry_log_goodness, logistic_log_goodness
from brain_core.objectives import (
    argmax_brain_objective,
    brain_objective,
    dpg_objective,
    dpo_objective,
    gdc_objective,
    gdcpp_objective,
    importance_weighted_rloo_objective,
    plackett_luce_objective,
    rloo_objective,
    snis_objective,
    soft_label_dpo_objective,
    weighted_brain_objective,
)
from brain_core.weights import policy_log_ratio, self_normalized_weights, target_log_ratio

__all__ = [
    "SupportError",
    "argmax_brain_coefficients",
    "argmax_brain_objective",
    "bradley_terry_log_goodness",
    "brain_coefficients",
    "brain_objective",
    "dpg_coefficients",
    "dpg_objective",
    "dpo_coefficients",
    "dpo_objective",
    "effective_sample_size",
    "gdc_coefficients",
    "gdc_objective",
    "gdcpp_coefficients",
    "gdcpp_objective",
    "importance_weighted_rloo_coefficients",
    "importance_weighted_rloo_objective",
    "likelihood_drift",
    "logistic_log_goodness",
    "plackett_luce_coefficients",
    "plackett_luce_objective",
    "policy_log_ratio",
    "rloo_coefficients",
    "rloo_objective",
    "self_normalized_kl",
    "self_normalized_weights",
    "snis_coefficients",
    "snis_objective",
    "soft_label_dpo_coefficients",
    "soft_label_dpo_objective",
    "target_log_ratio",
    "total_variation",
    "weight_entropy",
    "weighted_brain_coefficients",
    "weighted_brain_objective",
]

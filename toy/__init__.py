"""Problems whose every probability is known, and what the estimators do on them, exactly."""

from toy.estimators import ESTIMATORS, Estimator, brain_power, estimator
from toy.exact import (
    Moments,
    exact_moments,
    mean_gradient,
    multiset_count,
    self_normalized_kl,
    snkl_constant,
    weighted_self_normalized_kl,
)
from toy.fit import Schedule, Trajectory, exact_flow, fit
from toy.gaussian import GaussianMoments, gaussian_moments, gaussian_self_normalized_kl
from toy.problems import CategoricalProblem, ProblemError
from toy.sampling import RejectionSample, SampledMoments, rejection_cost, rejection_sample, sampled_moments

__all__ = [
    "ESTIMATORS",
    "CategoricalProblem",
    "Estimator",
    "GaussianMoments",
    "Moments",
    "ProblemError",
    "RejectionSample",
    "SampledMoments",
    "Schedule",
    "Trajectory",
    "brain_power",
    "estimator",
    "exact_flow",
    "exact_moments",
    "fit",
    "gaussian_moments",
    "gaussian_self_normalized_kl",
    "mean_gradient",
    "multiset_count",
    "rejection_cost",
    "rejection_sample",
    "sampled_moments",
    "self_normalized_kl",
    "snkl_constant",
    "weighted_self_normalized_kl",
]

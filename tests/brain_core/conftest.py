"""The array libraries under test, and the exact toy problem that every wrong formula fails."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MANDATORY = ("numpy", "torch", "array_api_strict")


@dataclass(frozen=True)
class Backend:
    """An array library: makes its arrays from numpy's and turns them back."""

    name: str
    module: ModuleType

    def array(self, values: Any, dtype: str = "float64") -> Any:
        """An array of this library; numpy's own are read-only, so that writing in place is an error."""
        copy = np.array(values, dtype=dtype)
        if self.name == "numpy":
            copy.flags.writeable = False
            return copy
        if self.name == "torch":
            return self.module.from_numpy(copy)
        return self.module.asarray(copy)

    def numpy(self, array: Any) -> np.ndarray:
        """The same values as a numpy array."""
        return np.asarray(array)


@pytest.fixture(scope="session", params=[*MANDATORY, "jax"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each array library in turn; only jax may be absent."""
    name = request.param
    try:
        module = importlib.import_module("jax.numpy" if name == "jax" else name)
    except ImportError:
        if name in MANDATORY:
            pytest.fail(f"{name} is not installed, and the suite is worth nothing without it")
        pytest.skip("jax is not installed (pip install 'brain-align[jax]')")
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return Backend(name, module)


@dataclass(frozen=True)
class ExactProblem:
    """Four completions with rational probabilities, and all groups of three that the proposal can sample."""

    prior: tuple[Fraction, ...]
    goodness: tuple[Fraction, ...]
    policy: tuple[Fraction, ...]
    proposal: tuple[Fraction, ...]
    size: int = 3

    @property
    def normalizer(self) -> Fraction:
        return sum((p * g for p, g in zip(self.prior, self.goodness, strict=True)), Fraction(0))

    @property
    def posterior(self) -> list[Fraction]:
        return [p * g / self.normalizer for p, g in zip(self.prior, self.goodness, strict=True)]

    @property
    def target_ratio(self) -> list[Fraction]:
        """alpha of mean 1 under the proposal."""
        return [a / s for a, s in zip(self.posterior, self.proposal, strict=True)]

    @property
    def policy_ratio(self) -> list[Fraction]:
        """beta."""
        return [q / s for q, s in zip(self.policy, self.proposal, strict=True)]

    @property
    def groups(self) -> list[tuple[int, ...]]:
        return list(itertools.product(range(len(self.prior)), repeat=self.size))

    def probability(self, group: tuple[int, ...]) -> Fraction:
        return math.prod((self.proposal[y] for y in group), start=Fraction(1))

    def by_group(self, values: list[Any]) -> list[list[Any]]:
        """One row per group with the values of its completions."""
        return [[values[y] for y in group] for group in self.groups]

    def logs(self, values: Any) -> np.ndarray:
        """log of one rational per completion, one row per group (64, 3)."""
        return np.array(self.by_group([math.log(v) for v in values]))

    def log_alpha(self) -> np.ndarray:
        """log alpha without the normaliser, as a user has it."""
        return self.logs([p * g / s for p, g, s in zip(self.prior, self.goodness, self.proposal, strict=True)])

    def log_beta(self) -> np.ndarray:
        return self.logs(self.policy_ratio)

    def expected(self, of_group: Callable[[list[Fraction], list[Fraction]], list[Fraction]]) -> np.ndarray:
        """Exact coefficients of every group from a rule on (alpha, beta) of its completions."""
        pairs = zip(self.by_group(self.target_ratio), self.by_group(self.policy_ratio), strict=True)
        return np.array([[float(c) for c in of_group(alpha, beta)] for alpha, beta in pairs])

    def mean_gradient(self, coefficients: np.ndarray) -> np.ndarray:
        """Expectation over groups of the sum of c · (one-hot − q), the gradient in the policy's logits."""
        policy = np.array([float(q) for q in self.policy])
        scores = np.eye(len(policy)) - policy
        weight = np.array([float(self.probability(group)) for group in self.groups])
        return np.einsum("g,gi,gik->k", weight, coefficients, scores[np.array(self.groups)])


def _distribution(*numbers: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(number, sum(numbers)) for number in numbers)


@pytest.fixture(scope="session")
def problem() -> ExactProblem:
    """Prior, posterior, policy and proposal pairwise different and without ties: no wrong formula hides in it."""
    goodness = tuple(map(Fraction, (2, 5, 1, 3)))
    return ExactProblem(_distribution(3, 1, 2, 5), goodness, _distribution(2, 3, 1, 4), _distribution(1, 2, 4, 3))


@pytest.fixture(scope="session")
def on_policy_problem(problem: ExactProblem) -> ExactProblem:
    """The same with the policy as proposal."""
    return ExactProblem(problem.prior, problem.goodness, problem.policy, problem.policy)


@pytest.fixture(scope="session")
def random_pair() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A function from (shape, seed, scale) to a target and a policy log-ratio."""

    def make(shape: tuple[int, ...] = (5, 4), seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return rng.normal(size=shape) * scale, rng.normal(size=shape) * scale

    return make

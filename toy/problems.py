"""One prompt with K possible completions, every probability known: where the method can be computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real

import numpy as np
from scipy.special import rel_entr

Number = Fraction | float

SUM_TOLERANCE = 1e-9
"""How far the sum of float probabilities may be from 1; that of Fractions must be 1."""


class ProblemError(ValueError):
    """A problem, or a question about one, that makes no sense; the message names the argument and what to do."""


@dataclass(frozen=True)
class CategoricalProblem:
    """A prior, a goodness model, a policy and a proposal over the same K completions of one prompt.

    Vectors of Fractions (or integers) make a problem exact: what is rational then stays rational. One float anywhere
    makes all of it float64.

    Attributes:
        prior: p(y|x) (K,), probabilities that sum to 1.
        goodness: p(G=1|y,x) (K,), each a probability; they need not sum to 1.
        policy: q_θ(y|x) (K,), probabilities that sum to 1.
        proposal: q'(y|x) (K,), probabilities that sum to 1, positive wherever the target or the policy is.

    Raises:
        ProblemError: lengths differ, K < 2, a value is not a probability, a vector does not sum to 1, no completion is
            good, the proposal cannot sample what target or policy may give, or the policy lacks what the target has.

    Source: section 3, Definition 4.1.

    Example:
        >>> problem = CategoricalProblem([Fraction(1, 2)] * 2, [1, Fraction(1, 3)], [Fraction(1, 2)] * 2, [.5, .5])
        >>> problem.posterior
        (0.75, 0.25)
    """

    prior: Sequence[Number]
    goodness: Sequence[Number]
    policy: Sequence[Number]
    proposal: Sequence[Number]

    def __post_init__(self) -> None:
        """Check the vectors and bring them to one kind of number."""
        names = ("prior", "goodness", "policy", "proposal")
        vectors = {name: _vector(name, getattr(self, name)) for name in names}
        kind = Fraction if all(isinstance(v, Fraction) for vector in vectors.values() for v in vector) else float
        for name, vector in vectors.items():
            object.__setattr__(self, name, tuple(kind(value) for value in vector))
        self._check()

    @classmethod
    def from_reward(
        cls,
        prior: Sequence[Number],
        reward: Sequence[float],
        policy: Sequence[Number],
        proposal: Sequence[Number],
        *,
        temperature: float = 1.0,
    ) -> CategoricalProblem:
        """The problem whose goodness follows the Bradley–Terry model, ∝ exp(reward / temperature), in float64.

        Args:
            prior: p(y|x) (K,), probabilities.
            reward: r(x, y) (K,), in nats at temperature 1.
            policy: q_θ(y|x) (K,), probabilities.
            proposal: q'(y|x) (K,), probabilities.
            temperature: Positive.

        Raises:
            ProblemError: as the class; a reward is not finite, or the temperature is not positive.

        Source: eq-19; the goodness is scaled so that the largest is 1, which no weight can see.
        """
        rewards = [float(value) for value in reward]
        if not rewards or not all(map(math.isfinite, rewards)):
            raise ProblemError("reward: every value must be a finite number")
        if not 0 < temperature < math.inf:
            raise ProblemError(f"temperature is {temperature!r}; it must be positive and finite")
        goodness = [math.exp((value - max(rewards)) / temperature) for value in rewards]
        return cls(prior, goodness, policy, proposal)

    @property
    def size(self) -> int:
        """K, the number of completions."""
        return len(self.prior)

    @property
    def is_exact(self) -> bool:
        """Whether all numbers are Fractions."""
        return isinstance(self.prior[0], Fraction)

    @property
    def normalizer(self) -> Number:
        """p(G=1|x), the prior's mean goodness."""
        return sum((p * g for p, g in zip(self.prior, self.goodness, strict=True)), start=Fraction(0))

    @property
    def posterior(self) -> tuple[Number, ...]:
        """The target p(y|x,G=1) (K,), eq-1."""
        normalizer = self.normalizer
        return tuple(p * g / normalizer for p, g in zip(self.prior, self.goodness, strict=True))

    @property
    def target_ratio(self) -> tuple[Number, ...]:
        """α = target / proposal (K,), of mean 1 under the proposal; 0 where neither has mass."""
        return _ratio(self.posterior, self.proposal)

    @property
    def policy_ratio(self) -> tuple[Number, ...]:
        """β = policy / proposal (K,), of mean 1 under the proposal; 0 where neither has mass."""
        return _ratio(self.policy, self.proposal)

    @property
    def kl(self) -> float:
        """KL(target ‖ policy), nats."""
        return float(rel_entr(np.array(self.posterior, float), np.array(self.policy, float)).sum())

    def with_policy(self, policy: Sequence[Number]) -> CategoricalProblem:
        """The same problem with another policy (K,)."""
        return replace(self, policy=policy)

    def with_proposal(self, proposal: Sequence[Number]) -> CategoricalProblem:
        """The same problem with another proposal (K,)."""
        return replace(self, proposal=proposal)

    def _check(self) -> None:
        """Raise ProblemError unless the vectors fit each other."""
        sizes = {name: len(getattr(self, name)) for name in ("prior", "goodness", "policy", "proposal")}
        if len(set(sizes.values())) > 1:
            raise ProblemError(f"the vectors must have one length K, but {_listed(sizes)}")
        if self.size < 2:
            raise ProblemError(f"K is {self.size}; a prompt needs at least 2 possible completions to choose among")
        for name in ("prior", "policy", "proposal"):
            _check_sum(name, getattr(self, name))
        if not self.normalizer > 0:
            raise ProblemError("goodness is 0 wherever the prior is positive: no completion is good")
        self._check_support()

    def _check_support(self) -> None:
        """Raise ProblemError where the proposal or the policy lacks what the method needs."""
        for index, (target, policy, proposal) in enumerate(
            zip(self.posterior, self.policy, self.proposal, strict=True)
        ):
            if proposal == 0 and (target > 0 or policy > 0):
                owner = "the target" if target > 0 else "the policy"
                raise ProblemError(
                    f"proposal[{index}] is 0 where {owner} has mass: it never samples that completion; "
                    "give it positive probability there"
                )
            if policy == 0 and target > 0:
                raise ProblemError(f"policy[{index}] is 0 where the target has mass: KL(target ‖ policy) is infinite")


def _vector(name: str, values: Sequence[Number]) -> tuple[Number, ...]:
    """The values as Fractions or floats, each of them a probability."""
    found: list[Number] = []
    for index, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ProblemError(f"{name}[{index}] is {value!r}; it must be a finite number")
        if not 0 <= value <= 1:
            raise ProblemError(f"{name}[{index}] is {value}; it must be a probability, between 0 and 1")
        found.append(Fraction(value) if isinstance(value, (int, Fraction)) else float(value))
    return tuple(found)


def _check_sum(name: str, vector: Sequence[Number]) -> None:
    """Raise ProblemError unless probabilities sum to 1."""
    total = sum(vector)
    tolerance = 0 if isinstance(total, Fraction) else SUM_TOLERANCE
    if not -tolerance <= total - 1 <= tolerance:
        raise ProblemError(f"{name} sums to {total}; probabilities must sum to 1")


def _ratio(numerator: Sequence[Number], denominator: Sequence[Number]) -> tuple[Number, ...]:
    """Quotients, 0 where both are 0."""
    return tuple(a / b if b else b for a, b in zip(numerator, denominator, strict=True))


def _listed(sizes: dict[str, int]) -> str:
    """Lengths in words."""
    return ", ".join(f"{name} has {size}" for name, size in sizes.items())

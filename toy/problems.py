"""One prompt with K possible completions, every probability known: where the method can be computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy.special import kl_div

from toy.checks import SMALLEST_FLOAT, Number, ProblemError, float_number, float_vector, positive_number, shown, vector
from toy.quadrature import exponential_excess

__all__ = ["CategoricalProblem", "Number", "ProblemError"]

SUM_TOLERANCE = 1e-9
"""How far the sum of float probabilities may be from 1; that of Fractions must be 1."""

LARGEST_REWARD_SPAN = -math.log(SMALLEST_FLOAT)
"""How many nats, 708, a possible completion may lie below the best: beyond, float64 loses its goodness."""


@dataclass(frozen=True)
class CategoricalProblem:
    """A prior, a goodness model, a policy and a proposal over the same K completions of one prompt.

    Vectors of Fractions (or integers) make a problem exact: what is rational then stays rational. One float anywhere
    makes all of it float64. A vector is a list, a tuple or an array of one dimension.

    Attributes:
        prior: p(y|x) (K,), probabilities that sum to 1.
        goodness: p(G=1|y,x) (K,), each a probability; they need not sum to 1.
        policy: q_θ(y|x) (K,), probabilities that sum to 1.
        proposal: q'(y|x) (K,), probabilities that sum to 1, positive wherever the target or the policy is.

    Raises:
        ProblemError: a vector is of another kind, lengths differ, K < 2, a value is not a probability, a vector does
            not sum to 1, no completion is good, the proposal cannot sample what target or policy may give, the policy
            lacks what the target has, or float64 takes a number that is not 0 for 0.

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
        vectors = {name: _probabilities(name, getattr(self, name)) for name in names}
        is_exact = all(isinstance(value, Fraction) for values in vectors.values() for value in values)
        for name, values in vectors.items():
            object.__setattr__(self, name, tuple(values if is_exact else float_vector(name, values).tolist()))
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
            ProblemError: as the class; a reward is not finite, or the temperature is not positive, or a completion that
                the prior can give lies more than 708 nats below the best such.

        Source: eq-19; the goodness is scaled so that the largest that the prior can give is 1, which no weight can
            see. Completions that the prior excludes count as no better than that.
        """
        rewards = [float_number(f"reward[{i}]", value) for i, value in enumerate(vector("reward", reward))]
        possible = [value > 0 for value in vector("prior", prior)]
        if len(rewards) != len(possible):
            raise ProblemError(
                f"the vectors must have one length K, but reward has {len(rewards)}, prior has {len(possible)}"
            )
        return cls(prior, _goodness(rewards, possible, positive_number("temperature", temperature)), policy, proposal)

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
        """KL(target ‖ policy), nats: never negative, and with its digits where the policy nears the target."""
        pairs = list(zip(self.posterior, self.policy, strict=True))
        change = np.array([(q - p) / p if p < 2 * q < 4 * p else 0 for p, q in pairs], float)
        target, policy = float_vector("posterior", self.posterior), float_vector("policy", self.policy)
        terms = np.where(change != 0, target * exponential_excess(np.log1p(change)), kl_div(target, policy))
        return float(terms.sum())

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
        self._check_goodness()
        self._check_support()

    def _check_goodness(self) -> None:
        """Raise ProblemError unless some completion is good, and every good one stays so in float64."""
        for index, (p, g) in enumerate(zip(self.prior, self.goodness, strict=True)):
            if p > 0 and g > 0 and p * g == 0:
                raise ProblemError(f"prior[{index}] · goodness[{index}] is {p} · {g}, which float64 takes for 0")
        if not self.normalizer > 0:
            raise ProblemError("goodness is 0 wherever the prior is positive: no completion is good")

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


def _probabilities(name: str, values: Sequence[Number]) -> list[Number]:
    """The values as Fractions or floats, each of them a probability."""
    found = vector(name, values)
    for index, value in enumerate(found):
        if not 0 <= value <= 1:
            raise ProblemError(f"{name}[{index}] is {shown(value)}; it must be a probability, between 0 and 1")
    return found


def _goodness(rewards: Sequence[float], possible: Sequence[bool], temperature: float) -> list[float]:
    """exp((reward − best) / temperature), where the best is that among possible completions, and at most 1."""
    best = max((value for value, is_possible in zip(rewards, possible, strict=True) if is_possible), default=0.0)
    scaled = [(value - best) / temperature for value in rewards]
    for index, value in enumerate(scaled):
        if possible[index] and not -value <= LARGEST_REWARD_SPAN:
            raise ProblemError(
                f"reward[{index}] is {rewards[index]}, at temperature {temperature:g} {-value:.4g} nats below the "
                f"best; float64 reaches {LARGEST_REWARD_SPAN:.0f}"
            )
    return [math.exp(min(value, 0.0)) for value in scaled]


def _check_sum(name: str, values: Sequence[Number]) -> None:
    """Raise ProblemError unless probabilities sum to 1."""
    total = sum(values)
    tolerance = 0 if isinstance(total, Fraction) else SUM_TOLERANCE
    if not -tolerance <= total - 1 <= tolerance:
        hint = "; divide them by their sum, in float64" if 0.999 < total < 1.001 else ""
        raise ProblemError(f"{name} sums to {shown(total)}; probabilities must sum to 1{hint}")


def _ratio(numerator: Sequence[Number], denominator: Sequence[Number]) -> tuple[Number, ...]:
    """Quotients, 0 where both are 0."""
    return tuple(a / b if b else b for a, b in zip(numerator, denominator, strict=True))


def _listed(sizes: dict[str, int]) -> str:
    """Lengths in words."""
    return ", ".join(f"{name} has {size}" for name, size in sizes.items())

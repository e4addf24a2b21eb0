"""The problems that the claims are checked on, above all the generic one, on which no wrong formula looks right."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

Vector = tuple[Fraction, ...]


class Toy(NamedTuple):
    """A prior, goodness up to a factor, policy and proposal over K outcomes, with nothing checked.

    Claims and counterexamples need problems that break the rules; `toy.CategoricalProblem` refuses those.
    """

    prior: Vector
    goodness: Vector
    policy: Vector
    proposal: Vector

    @property
    def size(self) -> int:
        """K."""
        return len(self.prior)

    @property
    def normalizer(self) -> Fraction:
        """Σ p g: p(G=1|x), up to the factor of the goodness."""
        return sum((p * g for p, g in zip(self.prior, self.goodness, strict=True)), start=Fraction(0))

    @property
    def posterior(self) -> Vector:
        """The target (K,), from the joint table by Bayes' rule."""
        return tuple(p * g / self.normalizer for p, g in zip(self.prior, self.goodness, strict=True))

    @property
    def target_ratio(self) -> Vector:
        """α = posterior / proposal (K,), 0 where the proposal is 0."""
        return ratio(self.posterior, self.proposal)

    @property
    def policy_ratio(self) -> Vector:
        """β = policy / proposal (K,), 0 where the proposal is 0."""
        return ratio(self.policy, self.proposal)


def ratio(numerator: Sequence[Fraction], denominator: Sequence[Fraction]) -> Vector:
    """Quotients, 0 where the denominator is 0."""
    return tuple(a / b if b else Fraction(0) for a, b in zip(numerator, denominator, strict=True))


def proportional(*weights: int | Fraction) -> Vector:
    """Probabilities proportional to weights."""
    total = sum(weights, start=Fraction(0))
    return tuple(Fraction(weight) / total for weight in weights)


def toy(
    prior: Sequence[int | Fraction],
    goodness: Sequence[int | Fraction],
    policy: Sequence[int | Fraction],
    proposal: Sequence[int | Fraction],
) -> Toy:
    """A problem from weights."""
    return Toy(proportional(*prior), tuple(map(Fraction, goodness)), proportional(*policy), proportional(*proposal))


GENERIC = toy((3, 1, 2, 5), (2, 5, 1, 3), (2, 3, 1, 4), (1, 2, 4, 3))
"""Proposal, prior, posterior and policy pairwise different, no ties. Use it with n = 3."""

GENERIC_GROUP_SIZE = 3

BLIND_SPOTS = {
    "s=p": GENERIC._replace(proposal=GENERIC.prior),
    "s=p=q": GENERIC._replace(proposal=GENERIC.prior, policy=GENERIC.prior),
    "s=q": GENERIC._replace(proposal=GENERIC.policy),
    "s,p uniform": GENERIC._replace(prior=proportional(1, 1, 1, 1), proposal=proportional(1, 1, 1, 1)),
    "K=2": toy((3, 1), (2, 5), (2, 3), (1, 2)),
    "π=q": GENERIC._replace(policy=GENERIC.posterior),
}
"""The instances one would write first; each is blind to some wrong formula."""


def random_toys(count: int, *, seed: int, sizes: Sequence[int] = (2, 3, 4), largest: int = 9) -> Iterator[Toy]:
    """Problems of positive weights up to `largest`, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        size = draw.choice(list(sizes))
        prior, goodness, policy, proposal = ([draw.randint(1, largest) for _ in range(size)] for _ in range(4))
        yield toy(prior, goodness, policy, proposal)

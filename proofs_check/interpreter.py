"""Algorithm 1 read literally: one method per line, exact numbers, and any random source, even all of them at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol, TypeVar

from proofs_check.instances import Vector, proportional

Outcome = TypeVar("Outcome")


class Source(Protocol):
    """Where random choices come from."""

    def index(self, chances: Sequence[Fraction]) -> int:
        """An index, with these chances."""


class Dice:
    """Random choices from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def index(self, chances: Sequence[Fraction]) -> int:
        """An index, with these chances."""
        return self._random.choices(range(len(chances)), [float(chance) for chance in chances])[0]


class Path:
    """One path of choices: a script, then always the first possible one; what it passed by are its alternatives."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self._script, self._taken = script, 0
        self.probability = Fraction(1)
        self.alternatives: list[tuple[int, ...]] = []

    def index(self, chances: Sequence[Fraction]) -> int:
        """The next choice of the path."""
        if self._taken == len(self._script):
            first, *others = [index for index, chance in enumerate(chances) if chance]
            self.alternatives += [(*self._script, other) for other in others]
            self._script = (*self._script, first)
        chosen = self._script[self._taken]
        self._taken += 1
        self.probability *= Fraction(chances[chosen])
        return chosen


def law(program: Callable[[Source], Outcome]) -> dict[Outcome, Fraction]:
    """The exact law of what a program returns: every path of its random choices, with its probability."""
    found: dict[Outcome, Fraction] = {}
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        path = Path(scripts.pop())
        outcome = program(path)
        found[outcome] = found.get(outcome, Fraction(0)) + path.probability
        scripts += path.alternatives
    return found


class World(NamedTuple):
    """Prompts with their priors and goodness e^r (prompts, K), and a policy that all prompts share.

    The policy's parameters are K positive weights θ: q_θ(y|x) ∝ p(y|x) θ_y. It is the prior at θ = 1, and a step on
    one prompt moves all of them.
    """

    prior: tuple[Vector, ...]
    goodness: tuple[Vector, ...]

    @property
    def prompts(self) -> range:
        """All prompts, the paper's D."""
        return range(len(self.prior))

    @property
    def start(self) -> Vector:
        """The parameters of the prior."""
        return (Fraction(1),) * len(self.prior[0])

    def distribution(self, parameters: Vector, prompt: int) -> Vector:
        """q_θ(·|x) (K,)."""
        return proportional(*(p * weight for p, weight in zip(self.prior[prompt], parameters, strict=True)))

    def score(self, parameters: Vector, prompt: int, completion: int) -> Vector:
        """∇_θ log q_θ(y|x) (K,)."""
        policy = self.distribution(parameters, prompt)
        return tuple(((k == completion) - q) / w for k, (q, w) in enumerate(zip(policy, parameters, strict=True)))


class Plan(NamedTuple):
    """The numbers of Algorithm 1 and two that it does not name."""

    phases: int
    """e"""
    prompts: int
    """m"""
    completions: int
    """n"""
    updates: int
    """k"""
    batch: int
    """Groups in B."""
    step: Fraction
    """Factor of the gradient in line 19."""


class Seen(NamedTuple):
    """What line 8 caches of one completion: probabilities in place of their logarithms, and e^r."""

    completion: int
    proposal: Fraction
    prior: Fraction
    goodness: Fraction


class Cached(NamedTuple):
    """A prompt with its completions and their target weights."""

    prompt: int
    seen: tuple[Seen, ...]
    target_weights: Vector


class Update(NamedTuple):
    """One pass of lines 14–19; the policies and the proposal are parameters."""

    batch: tuple[Cached, ...]
    before: Vector
    gradients: tuple[Vector, ...]
    after: Vector
    proposal: Vector


class Phase(NamedTuple):
    """One pass of lines 4–21."""

    selected: tuple[int, ...]
    groups: tuple[Cached, ...]
    buffer: tuple[Cached, ...]
    updates: tuple[Update, ...]
    before: tuple[Vector, Vector]
    """Proposal and policy when it begins."""
    after: tuple[Vector, Vector]
    """Proposal and policy when it ends."""


class History(NamedTuple):
    """A run: all its phases and what it returns."""

    phases: tuple[Phase, ...]
    returned: Vector


class Algorithm:
    """Algorithm 1; `line_…` is the line of that number, given all that it could read. An end of a loop is a line too.

    The end of a loop returns what its passes have collected (10, 11, 18), or what the next pass begins with (20, 22).
    """

    def run(self, world: World, plan: Plan, source: Source) -> History:
        """Lines 1–23."""
        state = self.line_1(world)
        buffer, phases = self.line_2(), []
        for _ in self.line_3(plan.phases):
            phase = self.phase(world, plan, source, state, buffer)
            phases.append(phase)
            state, buffer = self.line_22(state, phase.after), phase.buffer
        return History(tuple(phases), self.line_23(world.start, state[1]))

    def phase(
        self, world: World, plan: Plan, source: Source, state: tuple[Vector, Vector], buffer: tuple[Cached, ...]
    ) -> Phase:
        """Lines 4–21."""
        selected = self.line_4(world, plan.prompts, source)
        groups = self.line_11([self.group(world, *state, x, plan, source) for x in self.line_5(world, selected)])
        joined = self.line_12(buffer, groups)
        updates = self.training(world, plan, source, state, joined)
        policy = updates[-1].after if updates else state[1]
        return Phase(selected, groups, joined, updates, state, (self.line_21(*state, policy), policy))

    def group(self, world: World, proposal: Vector, policy: Vector, prompt: int, plan: Plan, source: Source) -> Cached:
        """Lines 6–10; line 9 once the loop is over, since it needs the whole group."""
        drawn = self.line_6(world, proposal, policy, prompt, plan.completions, source)
        seen = self.line_10([self.line_8(world, proposal, policy, prompt, y) for y in self.line_7(drawn)])
        return Cached(prompt, seen, self.line_9(seen))

    def training(
        self, world: World, plan: Plan, source: Source, state: tuple[Vector, Vector], buffer: tuple[Cached, ...]
    ) -> tuple[Update, ...]:
        """Lines 13–20."""
        (proposal, policy), updates = state, []
        for _ in self.line_13(plan.updates):
            batch = self.line_14(buffer, plan, source)
            gradients = self.line_18([self.loss(world, policy, proposal, group) for group in self.line_15(batch)])
            after = self.line_19(policy, gradients, plan.step)
            updates.append(Update(batch, policy, gradients, after, proposal))
            proposal, policy = self.line_20((proposal, policy), (proposal, after))
        return tuple(updates)

    def loss(self, world: World, policy: Vector, proposal: Vector, group: Cached) -> Vector:
        """Lines 16–17."""
        return self.line_17(world, policy, group, self.line_16(world, policy, proposal, group))

    def line_1(self, world: World) -> tuple[Vector, Vector]:
        """Proposal and policy begin as the prior."""
        return world.start, world.start

    def line_2(self) -> tuple[Cached, ...]:
        """The buffer begins empty."""
        return ()

    def line_3(self, phases: int) -> Iterable[int]:
        """For t = 1 to e."""
        return range(1, phases + 1)

    def line_4(self, world: World, count: int, source: Source) -> tuple[int, ...]:
        """m different prompts at random."""
        return taken(world.prompts, count, source)

    def line_5(self, world: World, selected: tuple[int, ...]) -> Iterable[int]:
        """For all x in S_t."""
        return selected

    def line_6(
        self, world: World, proposal: Vector, policy: Vector, prompt: int, count: int, source: Source
    ) -> tuple[int, ...]:
        """n independent draws from the proposal."""
        return tuple(source.index(world.distribution(proposal, prompt)) for _ in range(count))

    def line_7(self, completions: tuple[int, ...]) -> Iterable[int]:
        """For all y in Y_x."""
        return completions

    def line_8(self, world: World, proposal: Vector, policy: Vector, prompt: int, completion: int) -> Seen:
        """Cache q'(y|x), p(y|x) and the reward."""
        chance = world.distribution(proposal, prompt)[completion]
        return Seen(completion, chance, world.prior[prompt][completion], world.goodness[prompt][completion])

    def line_9(self, seen: tuple[Seen, ...]) -> Vector:
        """The target weights α̂ of the whole group, eq. (20)."""
        return proportional(*(each.goodness * each.prior / each.proposal for each in seen))

    def line_10(self, passes: list[Seen]) -> tuple[Seen, ...]:
        """End of the loop over completions."""
        return tuple(passes)

    def line_11(self, passes: list[Cached]) -> tuple[Cached, ...]:
        """End of the loop over prompts."""
        return tuple(passes)

    def line_12(self, buffer: tuple[Cached, ...], groups: tuple[Cached, ...]) -> tuple[Cached, ...]:
        """The buffer and the new groups."""
        return buffer + groups

    def line_13(self, updates: int) -> Iterable[int]:
        """For j = 1 to k."""
        return range(1, updates + 1)

    def line_14(self, buffer: tuple[Cached, ...], plan: Plan, source: Source) -> tuple[Cached, ...]:
        """Different groups of the buffer at random."""
        return tuple(buffer[i] for i in taken(range(len(buffer)), plan.batch, source))

    def line_15(self, batch: tuple[Cached, ...]) -> Iterable[Cached]:
        """For all groups of the batch, each with its own completions, proposal and target weights."""
        return batch

    def line_16(self, world: World, policy: Vector, proposal: Vector, group: Cached) -> Vector:
        """The policy weights β̂, eq. (11), with the policy of the moment and the cached proposal."""
        now = world.distribution(policy, group.prompt)
        return proportional(*(now[each.completion] / each.proposal for each in group.seen))

    def line_17(self, world: World, policy: Vector, group: Cached, policy_weights: Vector) -> Vector:
        """The gradient of L_x, its weights constants."""
        differences = [a - b for a, b in zip(group.target_weights, policy_weights, strict=True)]
        return weighted_scores(world, policy, group, differences)

    def line_18(self, passes: list[Vector]) -> tuple[Vector, ...]:
        """End of the loop over the batch."""
        return tuple(passes)

    def line_19(self, policy: Vector, gradients: tuple[Vector, ...], step: Fraction) -> Vector:
        """A step along the gradient of Σ L_x, brought to the grid."""
        return tuple(on_grid(now + step * slope) for now, slope in zip(policy, total(gradients), strict=True))

    def line_20(self, before: tuple[Vector, Vector], after: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        """End of the loop over updates: what the next one begins with."""
        return after

    def line_21(self, proposal: Vector, before: Vector, policy: Vector) -> Vector:
        """The proposal becomes the policy."""
        return policy

    def line_22(self, before: tuple[Vector, Vector], after: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        """End of the loop over phases: what the next one begins with."""
        return after

    def line_23(self, start: Vector, policy: Vector) -> Vector:
        """Return the policy."""
        return policy


def changed(**methods: Callable[..., object]) -> Algorithm:
    """The algorithm with other lines, given as functions without `self`."""
    kind: type[Algorithm] = type("Changed", (Algorithm,), {name: staticmethod(m) for name, m in methods.items()})
    return kind()


def taken(items: Iterable[int], count: int, source: Source) -> tuple[int, ...]:
    """`count` different items, each set of them equally likely, in the order taken."""
    left = list(items)
    return tuple(left.pop(source.index([Fraction(1, len(left))] * len(left))) for _ in range(min(count, len(left))))


def weighted_scores(world: World, policy: Vector, group: Cached, weights: Sequence[Fraction]) -> Vector:
    """Σ weight · ∇ log q_θ(y|x) over a group."""
    scores = [world.score(policy, group.prompt, each.completion) for each in group.seen]
    return total([tuple(weight * slope for slope in score) for weight, score in zip(weights, scores, strict=True)])


def total(vectors: Sequence[Vector]) -> Vector:
    """Elementwise sum."""
    return tuple(sum(column, start=Fraction(0)) for column in zip(*vectors, strict=True))


def on_grid(value: Fraction) -> Fraction:
    """The nearest multiple of 1/1000: parameters stay short over many updates."""
    return Fraction(round(value * 1000), 1000)

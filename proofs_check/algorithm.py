"""Algorithm 1, lines 1 to 12: what each line is responsible for, and what goes wrong where it is another line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from proofs_check.claims import claim, require_equal
from proofs_check.enumeration import mean_over_groups, mean_self_normalized
from proofs_check.exact import Dual, LogNumber, along
from proofs_check.instances import GENERIC, Vector, proportional
from proofs_check.interpreter import (
    Algorithm,
    Cached,
    Dice,
    History,
    Phase,
    Plan,
    Seen,
    Update,
    World,
    changed,
    law,
    taken,
    weighted_scores,
)

LITERAL = Algorithm()

WORLD = World(
    (proportional(3, 1, 2), proportional(1, 2, 4), proportional(2, 5, 1)),
    (
        (Fraction(2), Fraction(5), Fraction(1)),
        (Fraction(3), Fraction(1), Fraction(4)),
        (Fraction(1), Fraction(2), Fraction(3)),
    ),
)
"""Three prompts with three completions each, everything different."""

PLAN = Plan(phases=3, prompts=2, completions=3, updates=2, batch=2, step=Fraction(1, 16))

OLD, NOW = (Fraction(2), Fraction(1), Fraction(3)), (Fraction(1), Fraction(3), Fraction(2))
"""Parameters of a proposal and of a policy that has moved on."""

SEEDS = range(6)

RUNS = "seeded runs in rationals"
LAW = "exact: every path of the random choices"
CASE = "3 prompts, K=3, n=3, m=2, e=3, k=2"


def histories(algorithm: Algorithm, plan: Plan = PLAN) -> Iterator[History]:
    """Runs with different seeds."""
    return (algorithm.run(WORLD, plan, Dice(seed)) for seed in SEEDS)


def phases(algorithm: Algorithm) -> Iterator[Phase]:
    """All phases of all runs."""
    return (phase for history in histories(algorithm) for phase in history.phases)


def updates(algorithm: Algorithm) -> Iterator[Update]:
    """All updates of all runs."""
    return (update for phase in phases(algorithm) for update in phase.updates)


def cached_group(algorithm: Algorithm, prompt: int, seed: int = 0) -> Cached:
    """A group sampled while the policy is already another one than the proposal."""
    return algorithm.group(WORLD, OLD, NOW, prompt, PLAN, Dice(seed))


def moving(parameters: Vector, prompt: int) -> list[Dual]:
    """q_θ(·|x) with its derivatives in θ, from the quotient itself."""
    axes = [[int(j == k) for j in range(len(parameters))] for k in range(len(parameters))]
    weighted = [w * p for w, p in zip(along(parameters, axes), WORLD.prior[prompt], strict=True)]
    return [each / sum(weighted, start=weighted[0] * 0) for each in weighted]


def ascent_of_divergence(group: Cached, parameters: Vector) -> Vector:
    """−∇_θ D(Y), by differentiating D(Y) = Σ α̂ log(α̂ / β̂) with the cached proposal."""
    policy = moving(parameters, group.prompt)
    ratios = [policy[each.completion] / each.proposal for each in group.seen]
    whole = sum(ratios[1:], start=ratios[0])
    targets = [each.goodness * each.prior / each.proposal for each in group.seen]
    logs = [(ratio / whole).log() * (a / sum(targets)) for ratio, a in zip(ratios, targets, strict=True)]
    return sum(logs[1:], start=logs[0]).slopes


def mean_ascent(prompt: int) -> Vector:
    """−∇_θ D_n of a prompt, its groups drawn from the old proposal and its policy the present one."""
    proposal = WORLD.distribution(OLD, prompt)
    slopes = [Fraction(0)] * 3
    for group in itertools.product(range(3), repeat=PLAN.completions):
        seen = tuple(Seen(y, proposal[y], WORLD.prior[prompt][y], WORLD.goodness[prompt][y]) for y in group)
        chance = math.prod((each.proposal for each in seen), start=Fraction(1))
        slopes = [
            s + chance * d for s, d in zip(slopes, ascent_of_divergence(Cached(prompt, seen, ()), NOW), strict=True)
        ]
    return tuple(slopes)


def mean_gradient(algorithm: Algorithm, prompt: int) -> tuple[Fraction | LogNumber, ...]:
    """E of what line 17 gives, over every path of lines 6–10 from the old proposal."""
    groups = law(lambda source: algorithm.group(WORLD, OLD, NOW, prompt, PLAN, source))
    means: list[Fraction | LogNumber] = [Fraction(0)] * 3
    for group, chance in groups.items():
        gradient = algorithm.loss(WORLD, NOW, OLD, group)
        means = [slope * chance + mean for mean, slope in zip(means, gradient, strict=True)]
    return tuple(means)


def require_unbiased(algorithm: Algorithm) -> None:
    """Require that lines 6–17 ascend −D_n of a stale proposal, for every prompt."""
    for prompt in WORLD.prompts:
        require_equal(mean_gradient(algorithm, prompt), mean_ascent(prompt), f"mean of line 17, prompt {prompt}")


@claim(
    "alg-1",
    "proposal and policy start as the prior: the first α̂ is softmax(r), eq. (21), and the first β̂ uniform",
    source="Algorithm 1, line 1",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "uniform proposal": changed(line_1=lambda world: (uniform_start(world), world.start)),
        "uniform policy": changed(line_1=lambda world: (world.start, uniform_start(world))),
        "both uniform": changed(line_1=lambda world: (uniform_start(world),) * 2),
    },
    code=("toy.fit.fit", "llm.align.run"),
)
def alg_1(algorithm: Algorithm) -> None:
    """The first phase's weights need the rewards alone, and its first gradient weighs softmax(r) − 1/n."""
    for history in histories(algorithm):
        for group in history.phases[0].groups:
            rewards = proportional(*(WORLD.goodness[group.prompt][each.completion] for each in group.seen))
            require_equal(group.target_weights, rewards, "α̂ of the first phase is softmax(r)")
        first = history.phases[0].updates[0]
        for group, gradient in zip(first.batch, first.gradients, strict=True):
            weights = [a - Fraction(1, 3) for a in group.target_weights]
            require_equal(gradient, weighted_scores(WORLD, (Fraction(1),) * 3, group, weights), "first gradient")


def uniform_start(world: World) -> Vector:
    """Parameters that make the first prompt's policy uniform."""
    return tuple(1 / p for p in world.prior[0])


class Remembering(Algorithm):
    """The buffer is one list for all runs."""

    def __init__(self) -> None:
        self.kept: tuple[Cached, ...] = ()

    def line_2(self) -> tuple[Cached, ...]:
        """What the last run left."""
        return self.kept

    def line_12(self, buffer: tuple[Cached, ...], groups: tuple[Cached, ...]) -> tuple[Cached, ...]:
        """Join, and keep for the next run."""
        self.kept = buffer + groups
        return self.kept


@claim(
    "alg-2",
    "the buffer starts empty: after the first phase it holds that phase's m groups and no others",
    source="Algorithm 1, line 2",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "starts with a group of another source": changed(line_2=lambda: (cached_group(LITERAL, 0),)),
        "shared by all runs": Remembering(),
    },
    code=("llm.align.run",),
)
def alg_2(algorithm: Algorithm) -> None:
    """D_1 is S_1, in every run."""
    for history in histories(algorithm):
        require_equal(history.phases[0].buffer, history.phases[0].groups, "D_1")
        require_equal(len(history.phases[0].buffer), PLAN.prompts, "groups after the first phase")


@claim(
    "alg-3",
    "there are e phases: e·m·n completions are sampled in all, none where e = 0",
    source="Algorithm 1, line 3",
    method=RUNS,
    case="e ≤ 3, " + CASE,
    subject=LITERAL,
    mutants={
        "one phase short": changed(line_3=lambda phases: range(1, phases)),
        "one phase more": changed(line_3=lambda phases: range(phases + 1)),
    },
    code=("llm.align.train",),
)
def alg_3(algorithm: Algorithm) -> None:
    """Count the phases and what they sampled."""
    for count in range(4):
        for history in histories(algorithm, PLAN._replace(phases=count)):
            sampled = sum(len(group.seen) for phase in history.phases for group in phase.groups)
            require_equal(sampled, count * PLAN.prompts * PLAN.completions, "completions sampled")


@claim(
    "alg-4",
    "m different prompts, every set of m equally likely: a sum over them has mean m/|D| times that over D",
    source="Algorithm 1, line 4",
    method=LAW,
    case="m ≤ 3 of 3 prompts",
    subject=LITERAL,
    mutants={
        "always the first m": changed(line_4=lambda world, count, source: tuple(world.prompts)[:count]),
        "one prompt m times": changed(line_4=lambda world, count, source: taken(world.prompts, 1, source) * count),
        "with repetition": changed(
            line_4=lambda world, count, source: tuple(source.index([Fraction(1, 3)] * 3) for _ in range(count))
        ),
        "one too few": changed(line_4=lambda world, count, source: taken(world.prompts, count - 1, source)),
    },
)
def alg_4(algorithm: Algorithm) -> None:
    """The law of the set, and the mean of a sum."""
    values = (Fraction(2), Fraction(3), Fraction(7))
    for count in range(1, 4):
        found = law(lambda source, m=count: algorithm.line_4(WORLD, m, source))  # type: ignore[misc]
        sets = law(lambda source, m=count: frozenset(algorithm.line_4(WORLD, m, source)))  # type: ignore[misc]
        chance = Fraction(1, math.comb(3, count))
        require_equal(sets, {frozenset(s): chance for s in itertools.combinations(range(3), count)}, "law of S_t")
        mean = sum(p * sum(values[x] for x in selected) for selected, p in found.items())
        require_equal(mean, Fraction(count, 3) * sum(values), "mean of a sum over the prompts")


@claim(
    "alg-5",
    "every selected prompt gets a group, and no other prompt does",
    source="Algorithm 1, line 5",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "the first prompt only": changed(line_5=lambda world, selected: selected[:1]),
        "all prompts of D": changed(line_5=lambda world, selected: world.prompts),
    },
    code=("llm.align.phase_groups",),
)
def alg_5(algorithm: Algorithm) -> None:
    """The groups of a phase are those of its prompts."""
    for phase in phases(algorithm):
        require_equal(tuple(group.prompt for group in phase.groups), phase.selected, "prompts of the new groups")


@claim(
    "alg-6",
    "a group is n independent draws from q' (not from q_θ): an ordered group has probability Π q'(y_i|x)",
    source="Algorithm 1, line 6",
    method=LAW,
    case="K=3, n=3, q' ≠ q_θ, 3 prompts",
    subject=LITERAL,
    mutants={
        "from the policy": changed(
            line_6=lambda world, proposal, policy, x, n, source: LITERAL.line_6(world, policy, policy, x, n, source)
        ),
        "from the prior": changed(
            line_6=lambda world, proposal, policy, x, n, source: LITERAL.line_6(
                world, world.start, policy, x, n, source
            )
        ),
        "one draw n times": changed(
            line_6=lambda world, proposal, policy, x, n, source: (
                LITERAL.line_6(world, proposal, policy, x, 1, source) * n
            )
        ),
        "n − 1 draws": changed(
            line_6=lambda world, proposal, policy, x, n, source: LITERAL.line_6(
                world, proposal, policy, x, n - 1, source
            )
        ),
        "without repetition": changed(
            line_6=lambda world, proposal, policy, x, n, source: taken(world.prompts, n, source)
        ),
    },
    code=("llm.rollout.sample_groups",),
    tests=("tests/llm/test_rollout.py::test_frequencies_match_the_exact_probabilities_of_an_enumerable_model",),
)
def alg_6(algorithm: Algorithm) -> None:
    """The law of Y_x against the product."""
    for prompt in WORLD.prompts:
        found = law(lambda source, x=prompt: algorithm.line_6(WORLD, OLD, NOW, x, 3, source))  # type: ignore[misc]
        weights = [p * w for p, w in zip(WORLD.prior[prompt], OLD, strict=True)]
        for group in itertools.product(range(3), repeat=3):
            chance = math.prod((weights[y] / sum(weights) for y in group), start=Fraction(1))
            require_equal(found.get(group), chance, f"probability of {group}")


@claim(
    "alg-7",
    "the loop passes over every completion of Y_x once, in order, repeated ones as often as they were drawn",
    source="Algorithm 1, line 7",
    method="exact: all ordered groups; " + LAW,
    case="all 27 groups",
    subject=LITERAL,
    mutants={
        "each distinct completion once": changed(line_7=lambda drawn: dict.fromkeys(drawn)),
        "without the last": changed(line_7=lambda drawn: drawn[:-1]),
        "in another order": changed(line_7=lambda drawn: drawn[::-1]),
    },
)
def alg_7(algorithm: Algorithm) -> None:
    """What is passed over is what was drawn; and so lines 6–17 ascend −D_n, which they would not on distinct ones."""
    for drawn in itertools.product(range(3), repeat=3):
        require_equal(tuple(algorithm.line_7(drawn)), drawn, "completions passed over")
    require_unbiased(algorithm)


def misread(prompt_proposal: str) -> Algorithm:
    """Line 8 with another model in the place of the proposal."""

    def line_8(world: World, proposal: Vector, policy: Vector, prompt: int, completion: int) -> Seen:
        instead = {"policy": policy, "prior": world.start}[prompt_proposal]
        return LITERAL.line_8(world, instead, policy, prompt, completion)

    return changed(line_8=line_8)


def show_bias_of_the_policy_for_the_proposal() -> None:
    """With β̂ computed from the present policy in place of the cached q', it is 1/n, and the target is no zero."""
    ratio, target, size = GENERIC.target_ratio, GENERIC.posterior, 3

    def first_slope(group: tuple[int, ...]) -> Fraction:
        weights = [a - Fraction(1, size) for a in proportional(*(ratio[y] for y in group))]
        return sum((w * ((y == 0) - target[0]) for w, y in zip(weights, group, strict=True)), start=Fraction(0))

    found = mean_over_groups(GENERIC.proposal, size, first_slope)
    sampled_too_often = mean_self_normalized(ratio, GENERIC.proposal, size)[0] - GENERIC.proposal[0]
    require_equal(found, sampled_too_often, "what moves the first logit at q = π")
    require_equal(found, Fraction(11737470687, 174620600000), "its value, 0.0672")


@claim(
    "alg-8",
    "what is cached is q'(y|x) of the draw, p(y|x) and r, and stays as it was when q' has moved on",
    source="Algorithm 1, line 8",
    method=LAW + "; " + RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "log q_θ for log q'": misread("policy"),
        "log p for log q'": misread("prior"),
        "the reward of another prompt": changed(
            line_8=lambda world, proposal, policy, x, y: LITERAL.line_8(world, proposal, policy, x, y)._replace(
                goodness=world.goodness[0][y]
            )
        ),
    },
    counterexamples={"q' of the draw, not of the moment": show_bias_of_the_policy_for_the_proposal},
    code=("llm.align.phase_groups",),
    tests=("tests/llm/test_align.py::test_each_group_keeps_the_log_probs_of_its_own_proposal",),
)
def alg_8(algorithm: Algorithm) -> None:
    """Unbiased with a policy that has moved on; in runs, old groups keep the proposal of their phase."""
    require_unbiased(algorithm)
    for history in histories(algorithm):
        for phase in history.phases:
            for position, group in enumerate(phase.buffer):
                drawn_from = history.phases[position // PLAN.prompts].before[0]
                chances = WORLD.distribution(drawn_from, group.prompt)
                for each in group.seen:
                    require_equal(each.proposal, chances[each.completion], "cached q'")


def running_normalization(seen: tuple[Seen, ...]) -> Vector:
    """α̂ normalised inside the loop, over the completions so far."""
    ratios = [each.goodness * each.prior / each.proposal for each in seen]
    return tuple(ratio / sum(ratios[: position + 1]) for position, ratio in enumerate(ratios))


@claim(
    "alg-9",
    "α̂ is normalised over the whole group, after the loop over y: eqs. (6) and (20) agree and sum to 1",
    source="Algorithm 1, line 9",
    method="exact: all ordered groups",
    case="K=3, n=3, all groups",
    subject=LITERAL,
    mutants={
        "inside the loop, as printed": changed(line_9=running_normalization),
        "without p": changed(line_9=lambda seen: proportional(*(y.goodness / y.proposal for y in seen))),
        "without q'": changed(line_9=lambda seen: proportional(*(y.goodness * y.prior for y in seen))),
        "not normalised": changed(line_9=lambda seen: tuple(y.goodness * y.prior / y.proposal for y in seen)),
    },
    code=("brain_core.target_log_ratio", "brain_core.self_normalized_weights"),
)
def alg_9(algorithm: Algorithm) -> None:
    """Against eq. (6) with a goodness that is a probability, e^r / 10."""
    for prompt in WORLD.prompts:
        chances = WORLD.distribution(OLD, prompt)
        for drawn in itertools.product(range(3), repeat=3):
            seen = tuple(LITERAL.line_8(WORLD, OLD, NOW, prompt, y) for y in drawn)
            ratios = [WORLD.prior[prompt][y] / chances[y] * (WORLD.goodness[prompt][y] / 10) for y in drawn]
            require_equal(algorithm.line_9(seen), tuple(ratio / sum(ratios) for ratio in ratios), "α̂, eq. (6)")


@claim(
    "alg-10",
    "when the loop over completions ends, a group has n cached completions and as many weights that sum to 1",
    source="Algorithm 1, line 10",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "left after the first": changed(line_10=lambda passes: tuple(passes[:1])),
        "only the last is kept": changed(line_10=lambda passes: (passes[-1],) * len(passes)),
    },
)
def alg_10(algorithm: Algorithm) -> None:
    """The whole group is there, not one completion alone or n times."""
    sizes, kinds = set(), set()
    for phase in phases(algorithm):
        for group in phase.groups:
            sizes.add((len(group.seen), len(group.target_weights), sum(group.target_weights)))
            kinds.add(len({each.completion for each in group.seen}))
    require_equal(sizes, {(PLAN.completions, PLAN.completions, 1)}, "sizes of the groups, sum of α̂")
    require_equal(kinds, {1, 2, 3}, "distinct completions of a group, over all runs")


@claim(
    "alg-11",
    "when the loop over prompts ends, S_t holds m groups, one for each of its prompts: m·n completions",
    source="Algorithm 1, line 11",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "left after the first": changed(line_11=lambda passes: tuple(passes[:1])),
        "only the last is kept": changed(line_11=lambda passes: (passes[-1],) * len(passes)),
    },
)
def alg_11(algorithm: Algorithm) -> None:
    """Prompts of the groups are different and m in number."""
    for phase in phases(algorithm):
        require_equal(len({group.prompt for group in phase.groups}), PLAN.prompts, "prompts with a group")
        require_equal(sum(len(group.seen) for group in phase.groups), 6, "completions of a phase")


def by_prompt(buffer: tuple[Cached, ...], groups: tuple[Cached, ...]) -> tuple[Cached, ...]:
    """One group a prompt: the newest."""
    return tuple({group.prompt: group for group in buffer + groups}.values())


@claim(
    "alg-12",
    "the union keeps every old group as it was: D_t has t·m groups, two of a prompt that was drawn twice",
    source="Algorithm 1, line 12",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "new groups replace the old": changed(line_12=lambda buffer, groups: groups),
        "one group a prompt": changed(line_12=by_prompt),
        "new groups are dropped": changed(line_12=lambda buffer, groups: buffer or groups),
    },
    code=("llm.align.train",),
)
def alg_12(algorithm: Algorithm) -> None:
    """D_t is S_1, …, S_t; with 3 prompts and m·e = 6 some prompt repeats, under several proposals."""
    for history in histories(algorithm):
        for t, phase in enumerate(history.phases, start=1):
            groups = [group for earlier in history.phases[:t] for group in earlier.groups]
            require_equal(phase.buffer, tuple(groups), f"D_{t}")
            require_equal(len(phase.buffer), t * PLAN.prompts, f"groups of D_{t}")

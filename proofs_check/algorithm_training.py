"""Algorithm 1, lines 13 to 23: the updates, and what carries over from one to the next and from phase to phase."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from proofs_check.algorithm import (
    CASE,
    LAW,
    LITERAL,
    NOW,
    OLD,
    PLAN,
    RUNS,
    SEEDS,
    WORLD,
    ascent_of_divergence,
    cached_group,
    histories,
    mean_ascent,
    mean_gradient,
    moving,
    phases,
    require_unbiased,
    updates,
)
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.exact import LogNumber, log
from proofs_check.instances import Vector, proportional
from proofs_check.interpreter import (
    Algorithm,
    Cached,
    Dice,
    World,
    changed,
    law,
    on_grid,
    total,
    weighted_scores,
)


@claim(
    "alg-13",
    "a phase makes k updates, and e phases make e·k",
    source="Algorithm 1, line 13",
    method=RUNS,
    case="k ≤ 3, " + CASE,
    subject=LITERAL,
    mutants={
        "one update short": changed(line_13=lambda updates: range(1, updates)),
        "one update more": changed(line_13=lambda updates: range(updates + 1)),
    },
    code=("llm.align.one_step",),
)
def alg_13(algorithm: Algorithm) -> None:
    """Count the updates of every phase."""
    for count in range(4):
        for history in histories(algorithm, PLAN._replace(updates=count)):
            made = [len(phase.updates) for phase in history.phases]
            require_equal(made, [count] * PLAN.phases, "updates of the phases")


def numbered_buffer(size: int) -> tuple[Cached, ...]:
    """A buffer whose groups can be told apart."""
    return tuple(Cached(number, (), ()) for number in range(size))


@claim(
    "alg-14",
    "the batch comes from all of D_t: every set of groups, old or new, is equally likely",
    source="Algorithm 1, line 14",
    method=LAW,
    case="2 of 5 groups, the last 2 of them new",
    subject=LITERAL,
    mutants={
        "from the new groups only": changed(
            line_14=lambda buffer, plan, source: LITERAL.line_14(buffer[-plan.prompts :], plan, source)
        ),
        "the oldest groups": changed(line_14=lambda buffer, plan, source: buffer[: plan.batch]),
        "new groups twice as likely": changed(
            line_14=lambda buffer, plan, source: LITERAL.line_14(buffer + buffer[-plan.prompts :], plan, source)
        ),
        "one group only": changed(
            line_14=lambda buffer, plan, source: LITERAL.line_14(buffer, plan._replace(batch=1), source)
        ),
    },
    code=("llm.train.draw_batch",),
    tests=("tests/llm/test_train.py::test_batches_come_from_all_groups_without_repetition_and_by_name",),
    note="The paper names neither the size of a batch nor whether a group may come twice; here it may not.",
)
def alg_14(algorithm: Algorithm) -> None:
    """The law of the set of groups in a batch."""
    buffer = numbered_buffer(5)
    found = law(lambda source: frozenset(group.prompt for group in algorithm.line_14(buffer, PLAN, source)))
    require_equal(found, {frozenset(pair): Fraction(1, 10) for pair in itertools.combinations(range(5), 2)}, "law of B")


@claim(
    "alg-15",
    "every group of the batch gives a gradient of its own, from its own completions, proposal and α̂",
    source="Algorithm 1, line 15",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "the first group only": changed(line_15=lambda batch: batch[:1]),
        "the first group for all": changed(line_15=lambda batch: batch[:1] * len(batch)),
        "α̂ of the first group for all": changed(
            line_15=lambda batch: [group._replace(target_weights=batch[0].target_weights) for group in batch]
        ),
    },
    code=("llm.train.accumulate_gradient",),
)
def alg_15(algorithm: Algorithm) -> None:
    """The gradients of an update are those of −D(Y) of its groups, in their order."""
    for update in updates(algorithm):
        ascents = tuple(ascent_of_divergence(group, update.before) for group in update.batch)
        require_equal(update.gradients, ascents, "gradients of a batch")


def misweighed(kind: str) -> Algorithm:
    """Line 16 with other weights."""

    def line_16(world: World, policy: Vector, proposal: Vector, group: Cached) -> Vector:
        now = world.distribution(policy, group.prompt)
        current = world.distribution(proposal if kind == "current" else policy, group.prompt)
        if kind == "uniform":
            return (Fraction(1, len(group.seen)),) * len(group.seen)
        if kind == "no proposal":
            return proportional(*(now[each.completion] for each in group.seen))
        return proportional(*(now[each.completion] / current[each.completion] for each in group.seen))

    return changed(line_16=line_16)


@claim(
    "alg-16",
    "β̂ comes from the present q_θ and the group's own cached q': the mean gradient is −∇D_n of that proposal",
    source="Algorithm 1, line 16",
    method=LAW + "; derivatives by dual numbers; " + RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "uniform": misweighed("uniform"),
        "q_θ without q'": misweighed("no proposal"),
        "q' recomputed with the policy": misweighed("policy"),
        "q' of the moment": misweighed("current"),
        "q_θ of the time of caching": changed(
            line_16=lambda world, policy, proposal, group: LITERAL.line_16(world, OLD, proposal, group)
        ),
    },
    code=("brain_core.policy_log_ratio", "llm.train.group_tensors"),
)
def alg_16(algorithm: Algorithm) -> None:
    """Mean over all groups of a stale proposal; and in runs for batches from several proposals."""
    require_unbiased(algorithm)
    for update in updates(algorithm):
        ascents = tuple(ascent_of_divergence(group, update.before) for group in update.batch)
        require_equal(update.gradients, ascents, "gradients of a batch of several proposals")


def literal_gradient(world: World, policy: Vector, group: Cached, weights: Vector) -> tuple[LogNumber, ...]:
    """The derivative of Σ (α̂ − β̂) log q_θ with β̂ differentiated too, by the product rule."""
    now = moving(policy, group.prompt)
    ratios = [now[each.completion] / each.proposal for each in group.seen]
    whole = sum(ratios[1:], start=ratios[0])
    slopes = [LogNumber.of(0)] * len(policy)
    for each, a, ratio in zip(group.seen, group.target_weights, ratios, strict=True):
        weight, logarithm = ratio / whole, now[each.completion].log()
        for k in range(len(policy)):
            slopes[k] += (a - weight.value) * logarithm.slopes[k] - logarithm.value * weight.slopes[k]
    return tuple(slopes)


def covariance_with_scores(group: Cached, weights: Sequence[Fraction], policy: Vector) -> tuple[LogNumber, ...]:
    """Cov_β̂(log q_θ, ∇ log q_θ) over a group."""
    logs = [log(WORLD.distribution(policy, group.prompt)[each.completion]) for each in group.seen]
    scores = [WORLD.score(policy, group.prompt, each.completion) for each in group.seen]
    mean = sum((value * weight for value, weight in zip(logs, weights, strict=True)), start=LogNumber.of(0))
    return tuple(
        sum(((v - mean) * (w * s[k]) for v, w, s in zip(logs, weights, scores, strict=True)), start=LogNumber.of(0))
        for k in range(len(policy))
    )


def show_what_literal_differentiation_adds() -> None:
    """Differentiating β̂ too adds −Cov_β̂(log q, h), group by group, and its mean is not 0."""
    differs = 0
    for prompt, seed in itertools.product(WORLD.prompts, SEEDS):
        group = cached_group(LITERAL, prompt, seed)
        weights = LITERAL.line_16(WORLD, NOW, OLD, group)
        detached = LITERAL.line_17(WORLD, NOW, group, weights)
        added = covariance_with_scores(group, weights, NOW)
        literal = literal_gradient(WORLD, NOW, group, weights)
        require_equal(literal, tuple(d - a for d, a in zip(detached, added, strict=True)), "literal derivative")
        differs += literal != detached
    require(differs > len(SEEDS), "the two differ on most groups")
    literal_mean = mean_gradient(changed(line_17=literal_gradient), 0)
    bias = [LogNumber.of(a) - b for a, b in zip(literal_mean, mean_ascent(0), strict=True)]
    for found, value in zip(bias, (0.0377373048, 0.0021609597, -0.0221100920), strict=True):
        require_close(float(found), value, 1e-9, "bias of the literal derivative for −∇D_n")


@claim(
    "alg-17",
    "with constant weights the loss Σ (α̂ − β̂) log q_θ has the gradient −∇D(Y), group by group",
    source="Algorithm 1, line 17",
    method=LAW + "; derivatives by dual numbers",
    case="K=3, n=3, all groups",
    subject=LITERAL,
    mutants={
        "differentiated as printed": changed(line_17=literal_gradient),
        "no baseline": changed(
            line_17=lambda world, policy, group, weights: weighted_scores(world, policy, group, group.target_weights)
        ),
        "swapped": changed(
            line_17=lambda world, policy, group, weights: tuple(
                -slope for slope in LITERAL.line_17(world, policy, group, weights)
            )
        ),
        "mean over the group": changed(
            line_17=lambda world, policy, group, weights: tuple(
                slope / len(weights) for slope in LITERAL.line_17(world, policy, group, weights)
            )
        ),
    },
    counterexamples={"weights are constants": show_what_literal_differentiation_adds},
    tolerance=1e-9,
    code=("brain_core.brain_coefficients", "llm.train.accumulate_gradient"),
    tests=("tests/llm/test_train.py::test_the_gradient_is_that_of_the_self_normalised_kl",),
)
def alg_17(algorithm: Algorithm) -> None:
    """Every group of every prompt, and their mean."""
    for prompt, seed in itertools.product(WORLD.prompts, SEEDS):
        group = cached_group(LITERAL, prompt, seed)
        require_equal(algorithm.loss(WORLD, NOW, OLD, group), ascent_of_divergence(group, NOW), "gradient of a group")
    require_unbiased(algorithm)


@claim(
    "alg-18",
    "when the loop over the batch ends there is one L_x for each of its groups, none overwritten",
    source="Algorithm 1, line 18",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "only the last is kept": changed(line_18=lambda passes: (passes[-1],)),
        "left after the first": changed(line_18=lambda passes: (passes[0],)),
        "the last for all": changed(line_18=lambda passes: (passes[-1],) * len(passes)),
    },
)
def alg_18(algorithm: Algorithm) -> None:
    """As many as the batch has groups; the sum is that over the batch."""
    for update in updates(algorithm):
        require_equal(len(update.gradients), PLAN.batch, "losses of a batch")
        ascents = [ascent_of_divergence(group, update.before) for group in update.batch]
        require_equal(total(update.gradients), total(ascents), "gradient of the sum over the batch")


def stepping(factor: Fraction) -> Algorithm:
    """Line 19 with another step."""
    return changed(line_19=lambda policy, gradients, step: LITERAL.line_19(policy, gradients, step * factor))


@claim(
    "alg-19",
    "θ moves along the gradient of the sum over the batch: γ Σ_x ∇L_x, |B| times that of the mean",
    source="Algorithm 1, line 19",
    method=RUNS + "; derivatives by dual numbers",
    case=CASE,
    subject=LITERAL,
    mutants={
        "descent": stepping(Fraction(-1)),
        "mean over the batch": stepping(Fraction(1, 2)),
        "the first group only": changed(
            line_19=lambda policy, gradients, step: LITERAL.line_19(policy, gradients[:1], step)
        ),
        "from the start": changed(
            line_19=lambda policy, gradients, step: LITERAL.line_19(WORLD.start, gradients, step)
        ),
    },
    code=("llm.train.train_step",),
    tests=("tests/llm/test_train.py::test_the_update_does_not_depend_on_how_the_batch_is_cut",),
    note="`llm` and `toy` take the mean over the batch: the same direction, with γ |B| as the learning rate.",
)
def alg_19(algorithm: Algorithm) -> None:
    """The parameters after an update, on the grid, against −∇ Σ D(Y)."""
    for update in updates(algorithm):
        ascent = total([ascent_of_divergence(group, update.before) for group in update.batch])
        moved = tuple(on_grid(now + PLAN.step * slope) for now, slope in zip(update.before, ascent, strict=True))
        require_equal(update.after, moved, "parameters after an update")


@claim(
    "alg-20",
    "within a phase each update starts where the last one ended, and the proposal stays what it was",
    source="Algorithm 1, line 20",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "all from the same policy": changed(line_20=lambda before, after: before),
        "proposal follows every update": changed(line_20=lambda before, after: (after[1], after[1])),
    },
)
def alg_20(algorithm: Algorithm) -> None:
    """Updates of a phase form a chain under one proposal."""
    for phase in phases(algorithm):
        chain = [phase.before[1], *(update.after for update in phase.updates)]
        require_equal([update.before for update in phase.updates], chain[:-1], "policies before the updates")
        require_equal({update.proposal for update in phase.updates}, {phase.before[0]}, "proposals within a phase")


def midpoint(left: Vector, right: Vector) -> Vector:
    """The mean of two vectors of parameters."""
    return tuple((a + b) / 2 for a, b in zip(left, right, strict=True))


@claim(
    "alg-21",
    "after its k updates, and not before, a phase makes the policy the proposal of the next one",
    source="Algorithm 1, line 21",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "never": changed(line_21=lambda proposal, before, policy: proposal),
        "before the updates": changed(line_21=lambda proposal, before, policy: before),
        "halfway": changed(line_21=lambda proposal, before, policy: midpoint(proposal, policy)),
    },
    code=("llm.align.phase_groups",),
    note="So q' = q_θ whenever line 6 samples; the two differ where old groups are used again.",
)
def alg_21(algorithm: Algorithm) -> None:
    """The proposal of a phase is the policy that the last update before it left, and the groups tell so."""
    for history in histories(algorithm):
        for last, phase in itertools.pairwise(history.phases):
            require_equal(phase.before[0], last.updates[-1].after, "proposal of the next phase")
            for group in phase.groups:
                chances = WORLD.distribution(last.updates[-1].after, group.prompt)
                require_equal(
                    [y.proposal for y in group.seen], [chances[y.completion] for y in group.seen], "cached q'"
                )


@claim(
    "alg-22",
    "the next phase trains the policy on from where the last one left it",
    source="Algorithm 1, line 22",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "policy starts anew": changed(line_22=lambda before, after: (after[0], WORLD.start)),
        "phase has no effect": changed(line_22=lambda before, after: before),
    },
)
def alg_22(algorithm: Algorithm) -> None:
    """All e·k updates are one chain, and the policy does move."""
    for history in histories(algorithm):
        made = [update for phase in history.phases for update in phase.updates]
        require_equal([u.before for u in made[1:]], [u.after for u in made[:-1]], "policies before the updates")
        require(made[0].before != made[-1].after, "the policy moves")


@claim(
    "alg-23",
    "what is returned is the policy after the last update",
    source="Algorithm 1, line 23",
    method=RUNS,
    case=CASE,
    subject=LITERAL,
    mutants={
        "the prior": changed(line_23=lambda start, policy: start),
        "halfway": changed(line_23=lambda start, policy: midpoint(start, policy)),
    },
    code=("llm.align.publish",),
    tests=("tests/llm/test_align.py::test_the_adapter_reproduces_the_runs_own_log_probs_in_a_fresh_process",),
    note="`llm` can return the best checkpoint by validation in place of the last policy.",
)
def alg_23(algorithm: Algorithm) -> None:
    """Returned, and in the final state."""
    for history in histories(algorithm):
        require_equal(history.returned, history.phases[-1].updates[-1].after, "returned policy")
    require_equal(algorithm.run(WORLD, PLAN._replace(phases=0), Dice(0)).returned, WORLD.start, "policy of e = 0")

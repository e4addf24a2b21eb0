"""Section 4's divergence and what is proved of it: equations (13) and (14), Theorems 4.2 and 4.3."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import (
    Group,
    mean_over_groups,
    mean_over_multisets,
    mean_self_normalized,
    ordered_groups,
)
from proofs_check.exact import LogNumber, along, log
from proofs_check.groups import (
    ZERO,
    Estimator,
    along_score,
    ascent_along,
    at,
    brain,
    brain_coefficients,
    combined,
    divergence,
    divergence_by_laws,
    expected_ascent,
    kl,
    logit_score,
    mean_divergence,
    mean_estimate,
    mean_vector,
    ratios,
    require_proved,
    shares,
)
from proofs_check.instances import (
    BLIND_SPOTS,
    GENERIC,
    GENERIC_GROUP_SIZE,
    Toy,
    Vector,
    proportional,
    random_toys,
    ratio,
    toy,
)
from proofs_check.section_4 import (
    EXACT_TESTS,
    OFF_SIMPLEX,
    ON_TARGET,
    TANGENTS,
    UNSUPPORTED,
    Values,
    entropy,
    problems,
    show_divergence_without_bound,
    show_group_without_target_mass,
)


class Divergence(NamedTuple):
    """How (13) is read: the law of the group's members, and the value of a group from its α and β."""

    law: Callable[[Toy], Vector]
    value: Callable[[Values, Values], LogNumber]


def show_infinite_mean() -> None:
    """π = q' = (½, ½), q = (10⁻ᵏ, rest): the mixed groups alone give D_2 > ¼ k log 10 − ½ log 2, for every k."""
    for zeros in (8, 16):
        small = Fraction(1, 10**zeros)
        problem = Toy(proportional(1, 1), (Fraction(1), Fraction(1)), (small, 1 - small), proportional(1, 1))
        require(divergence_by_laws(problem, 2) > (zeros * log(10)) / 4 - log(2) / 2, "D_2 is not bounded")


@claim(
    "eq-13",
    "D_n is the proposal's mean of D(Y) over groups; never negative, 0 at q = π",
    source="eq. (13), Definition 4.1",
    method="exact: ordered groups and multisets against the laws of A and B",
    case="K=4, n=1 to 3; 20 random problems, n=2; K=3, n=2 to 8 for the figures of T4a",
    subject=Divergence(lambda problem: problem.proposal, divergence),
    mutants={
        "mean under the policy": Divergence(lambda problem: problem.policy, divergence),
        "mean under the posterior": Divergence(lambda problem: problem.posterior, divergence),
        "mean over equally likely groups": Divergence(lambda problem: proportional(*(1,) * problem.size), divergence),
        "KL(β̂ ‖ α̂)": Divergence(lambda problem: problem.proposal, lambda alpha, beta: divergence(beta, alpha)),
        "sign": Divergence(lambda problem: problem.proposal, lambda alpha, beta: -divergence(alpha, beta)),
        "weighted by the mean of α": Divergence(
            lambda problem: problem.proposal,
            lambda alpha, beta: sum(alpha) / Fraction(len(alpha)) * divergence(alpha, beta),
        ),
    },
    counterexamples={"q > 0 wherever π > 0": show_infinite_mean},
    assumptions=("q > 0 wherever π > 0",),
    tolerance=5e-5,
    code=("toy.self_normalized_kl", "brain_core.self_normalized_kl"),
    tests=(f"{EXACT_TESTS}::test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl",),
)
def eq_13(reading: Divergence) -> None:
    """Enumerations of the subject against the route through marginal laws, then against theory's figures."""

    def mean(problem: Toy, n: int, over: Callable[..., Any] = mean_over_multisets) -> LogNumber:
        found = over(reading.law(problem), n, lambda group: reading.value(*ratios(problem, group)))
        return LogNumber.of(found)

    for n in (1, 2, 3):
        require_equal(mean(GENERIC, n), divergence_by_laws(GENERIC, n), f"D_{n}")
        require_equal(mean(GENERIC, n, mean_over_groups), mean(GENERIC, n), f"D_{n} over ordered groups")
    for problem in (*random_toys(20, seed=13), ON_TARGET):
        found = mean(problem, 2)
        require_equal(found, divergence_by_laws(problem, 2), "D_2")
        require(found >= 0, "D_2 is not negative")
    require_equal(mean(ON_TARGET, 2), 0, "D_2 at the posterior")
    example = toy((90, 9, 1), (1, 1, 1), (90, 1, 9), (2, 9, 9))
    for n, figure in zip(range(2, 9), (0.7157, 0.9301, 0.9665, 0.9381, 0.8872, 0.8302, 0.7738), strict=True):
        require_close(float(mean(example, n)), figure, 5e-5, f"D_{n} of the example of T4a")


def literal_divergence(alpha: Values, beta: Values) -> LogNumber:
    """Eq. (14)."""
    terms = (a * log(a / b) for a, b in zip(shares(alpha), shares(beta), strict=True))
    return sum(terms, start=ZERO)


def show_negative_without_normalization() -> None:
    """Σ α̂ log(α̂/β) with β not normalised is −log 2 for α = (1, 1), β = (1, 1)."""
    terms = (a * log(a / b) for a, b in zip(shares([Fraction(1)] * 2), (1, 1), strict=True))
    require_equal(sum(terms, start=ZERO), -log(2), "the sum")


@claim(
    "eq-14",
    "D(Y) = Σ α̂ log(α̂/β̂) is never negative, and 0 only where α̂ = β̂; it is Σ α̂ log(α/β) − log(A/B)",
    source="eq. (14)",
    method="exact: logarithms of primes, certified signs",
    case="K=4, n=3, all ordered groups; 20 random problems, n=2; groups at q = π",
    subject=literal_divergence,
    mutants={
        "arguments swapped": lambda alpha, beta: literal_divergence(beta, alpha),
        "β not normalised": lambda alpha, beta: literal_divergence(alpha, beta) - log(sum(beta)),
        "mean, not sum": lambda alpha, beta: literal_divergence(alpha, beta) / len(alpha),
        "Jeffreys": lambda alpha, beta: literal_divergence(alpha, beta) + literal_divergence(beta, alpha),
        "cross-entropy": lambda alpha, beta: literal_divergence(alpha, beta) + entropy(shares(alpha)),
        "χ²": lambda alpha, beta: LogNumber.of(
            sum((a - b) ** 2 / b for a, b in zip(shares(alpha), shares(beta), strict=True))
        ),
    },
    counterexamples={
        "both weights are normalised": show_negative_without_normalization,
        "β > 0 wherever α > 0": show_divergence_without_bound,
        "A > 0": show_group_without_target_mass,
    },
    assumptions=("β > 0 wherever α > 0", "A > 0"),
    code=("brain_core.self_normalized_kl",),
    tests=("tests/brain_core/test_precision.py::test_divergence_agrees_with_80_digits_relative_to_itself",),
)
def eq_14(value: Callable[[Values, Values], LogNumber]) -> None:
    """Against the form with the totals, and with its sign certified."""
    for problem in (*problems(), ON_TARGET):
        for group in ordered_groups(problem.size, GENERIC_GROUP_SIZE if problem is GENERIC else 2):
            alpha, beta = ratios(problem, group)
            found = value(alpha, beta)
            mean = sum((a * log(a / b) for a, b in zip(alpha, beta, strict=True)), start=ZERO) / sum(alpha)
            require_equal(found, mean - log(sum(alpha) / sum(beta)), f"D of {group}")
            require_equal(found.sign(), 0 if shares(alpha) == shares(beta) else 1, f"sign of D of {group}")


def mean_by_laws(problem: Toy, group_size: int) -> Vector:
    """E ĝ of (12) in the logits, from the laws of A and of B."""
    target = mean_self_normalized(problem.target_ratio, problem.proposal, group_size)
    policy = mean_self_normalized(problem.policy_ratio, problem.proposal, group_size)
    scores = [logit_score(problem.policy, y) for y in range(problem.size)]
    return combined([a - b for a, b in zip(target, policy, strict=True)], scores)


def weighing(target: Callable[[Toy], Vector], policy: Callable[[Toy], Vector]) -> Estimator:
    """The estimate α̂ − β̂ with these ratios in place of α and β."""

    def coefficients(problem: Toy, group: Group) -> list[Fraction]:
        return brain_coefficients(at(target(problem), group), at(policy(problem), group))

    return coefficients


def reading(formula: Callable[[Values, Values], list[Fraction]]) -> Estimator:
    """The estimate with a formula of the right α and β."""
    return lambda problem, group: formula(*ratios(problem, group))


def target_ratio(problem: Toy) -> Vector:
    """α."""
    return problem.target_ratio


def policy_ratio(problem: Toy) -> Vector:
    """β."""
    return problem.policy_ratio


def product(*vectors: Vector) -> Vector:
    """Elementwise product."""
    found = vectors[0]
    for vector in vectors[1:]:
        found = tuple(a * b for a, b in zip(found, vector, strict=True))
    return found


def misreported(problem: Toy) -> Vector:
    """A distribution that is not the proposal."""
    return proportional(*(5, 1, 2, 3)[: problem.size])


def as_printed_in_29(alpha: Values, beta: Values) -> list[Fraction]:
    """What (30) becomes with ∇ log β = β ∇ log q."""
    return [b * (a_share - b_share) for b, a_share, b_share in zip(beta, shares(alpha), shares(beta), strict=True)]


def leaving_itself_out(alpha: Values, beta: Values) -> list[Fraction]:
    """The baseline of a member sums over the others only."""
    return [a - b / (sum(beta) - b) for a, b in zip(shares(alpha), beta, strict=True)]


def counting_once(problem: Toy, group: Group) -> list[Fraction]:
    """Duplicates dropped from the group."""
    distinct = tuple(dict.fromkeys(group))
    coefficient = dict(zip(distinct, brain(problem, distinct), strict=True))
    return [coefficient.pop(y, Fraction(0)) for y in group]


WRONG_FORMS: Mapping[str, Estimator] = {
    "α = softmax(r), eq. (21)": weighing(lambda problem: problem.goodness, policy_ratio),
    "α without p": weighing(lambda problem: ratio(problem.goodness, problem.proposal), policy_ratio),
    "β without q'": weighing(target_ratio, lambda problem: problem.policy),
    "β = q/p": weighing(target_ratio, lambda problem: ratio(problem.policy, problem.prior)),
    "q' inverted": weighing(
        lambda problem: product(problem.prior, problem.goodness, problem.proposal),
        lambda problem: product(problem.policy, problem.proposal),
    ),
    "another proposal reported": weighing(
        lambda problem: ratio(problem.posterior, misreported(problem)),
        lambda problem: ratio(problem.policy, misreported(problem)),
    ),
    "β̂ uniform": reading(lambda alpha, beta: [a - Fraction(1, len(alpha)) for a in shares(alpha)]),
    "no baseline": reading(lambda alpha, beta: shares(alpha)),
    "(29) as printed": reading(as_printed_in_29),
    "β̂ leaves its own member out": reading(leaving_itself_out),
    "duplicates counted once": counting_once,
    "sign swapped": lambda problem, group: [-c for c in brain(problem, group)],
    "divided by n": lambda problem, group: [c / len(group) for c in brain(problem, group)],
}
"""Thirteen wrong estimates, each of which looks right on some problem that one would write first."""

OTHER_WRONG_FORMS: Mapping[str, Estimator] = {
    "α without q'": weighing(lambda problem: product(problem.prior, problem.goodness), policy_ratio),
    "ε added to B": reading(
        lambda alpha, beta: [a - b / (sum(beta) + Fraction(1, 10**9)) for a, b in zip(shares(alpha), beta, strict=True)]
    ),
    "weighted by the mean of α": reading(
        lambda alpha, beta: [
            sum(alpha) / len(alpha) * (a - b) for a, b in zip(shares(alpha), shares(beta), strict=True)
        ]
    ),
}


def show_live_proposal() -> None:
    """π = (½, ½), q' = q = (¼, ¾), q' live: −∇D_2 is 3/16 log 2 − 9/128 log 3 in the first logit, E ĝ is 3/32."""
    problem = toy((1, 1), (1, 1), (1, 3), (1, 3))

    def slope(group: Group) -> LogNumber:
        weights = shares(at(problem.target_ratio, group))
        score = [logit_score(problem.policy, y)[0] for y in group]
        mean = combined(weights, [(h,) for h in score])[0]
        value = divergence(*ratios(problem, group)) * sum(score)
        return sum((a * (mean - h) * log(2 * a) for a, h in zip(weights, score, strict=True)), start=value)

    live = LogNumber.of(mean_over_groups(problem.proposal, 2, slope))
    require_equal(live, Fraction(9, 128) * log(3) - Fraction(3, 16) * log(2), "derivative with a live proposal")
    require_equal(mean_estimate(problem, 2, brain)[0], Fraction(3, 32), "mean estimate")


def show_target_that_moves() -> None:
    """π ∝ q_θ g live: α̂ adds E Σ α̂ (h − Σ α̂ h) log(α̂/β̂) to ∇D_2; here 3/25 log 2 in the first logit."""
    problem = toy((1, 3), (2, 1), (1, 3), (1, 1))

    def missing(group: Group) -> LogNumber:
        alpha, beta = (shares(values) for values in ratios(problem, group))
        score = [logit_score(problem.policy, y)[0] for y in group]
        mean = combined(alpha, [(h,) for h in score])[0]
        return sum((a * (h - mean) * log(a / b) for a, b, h in zip(alpha, beta, score, strict=True)), start=ZERO)

    require_equal(mean_over_groups(problem.proposal, 2, missing), Fraction(3, 25) * log(2), "what a moving target adds")


def show_policy_without_mass() -> None:
    """q = (½, ½, 0), π = (⅔, ⅓, 0), q' uniform, moving mass to the third completion: −∇D_2 is not what ĝ can see."""
    problem = toy((2, 1, 1), (1, 1, 0), (1, 1, 0), (1, 1, 1))
    direction = (Fraction(-1, 2), Fraction(-1, 2), Fraction(1))
    beta = [q / s for q, s in zip(along(problem.policy, [direction]), problem.proposal, strict=True)]
    left = ascent_along(problem, beta, 2, mean_over_groups)

    def seen(group: Group) -> Vector:
        if not any(at(problem.target_ratio, group)):
            return (Fraction(0),)
        score = [direction[y] / problem.policy[y] if problem.policy[y] else Fraction(0) for y in group]
        return combined(brain(problem, group), [(h,) for h in score])

    right = mean_vector(problem.proposal, 2, seen)
    require_equal((left, right), ((Fraction(-8, 9),), (Fraction(0),)), "−∇D_2 and E ĝ")


def show_gradient_of_kl() -> None:
    """On the generic instance at n = 3, E ĝ differs from −∇KL = π − q by 245470911/3835975000 in the second logit."""
    found = mean_estimate(GENERIC, GENERIC_GROUP_SIZE, brain)
    bias = found[1] - (GENERIC.posterior[1] - GENERIC.policy[1])
    require_equal(bias, Fraction(245470911, 3835975000), "bias")


THEOREM_42_CASES = ((5, 2), (2, 9), (10, 3), (4, 6), (3, 10))


def require_unbiased(problem: Toy, group_size: int, estimator: Estimator) -> None:
    """Raise Refuted unless both enumerations of E ĝ give −∇D_n; over ordered groups only where they are few."""
    left = expected_ascent(problem, group_size)
    require_equal(mean_estimate(problem, group_size, estimator), left, "E ĝ over multisets")
    require_equal(mean_by_laws(problem, group_size), left, "E ĝ from the laws of A and B")
    if problem.size**group_size <= 300:
        require_equal(expected_ascent(problem, group_size, mean_over_groups), left, "−∇D_n over ordered groups")
        found = mean_estimate(problem, group_size, estimator, mean_over_groups)
        require_equal(found, left, "E ĝ over ordered groups")


def of_size(size: int, seed: int) -> Toy:
    """A random problem with K completions."""
    return next(random_toys(1, seed=seed, sizes=(size,)))


def theorem_42_on_all_ordered_groups(estimator: Estimator) -> None:
    """The larger cases group by group, in their order."""
    for size, n in THEOREM_42_CASES:
        problem = of_size(size, n)
        found = mean_estimate(problem, n, estimator, mean_over_groups)
        require_equal(found, expected_ascent(problem, n), f"E ĝ, K={size}, n={n}")


@claim(
    "thm-4.2",
    "BRAIn's estimate is unbiased for −∇D_n, at every finite n",
    source="Theorem 4.2 (4.1 in the later version)",
    method="exact: ordered groups, multisets and laws of sums against dual numbers",
    case="K=4, n=3 (generic); 12 random problems, n=2; (K, n) = (5, 2), (2, 9), (10, 3), (4, 6), (3, 10)",
    subject=brain,
    mutants={**WRONG_FORMS, **OTHER_WRONG_FORMS},
    counterexamples={
        "q' does not depend on θ": show_live_proposal,
        "α̂ does not depend on θ": show_target_that_moves,
        "q > 0 wherever q' > 0": show_policy_without_mass,
        "the divergence is D_n, not KL": show_gradient_of_kl,
    },
    assumptions=("q' does not depend on θ", "α̂ does not depend on θ", "q > 0 wherever q' > 0"),
    note="on infinite 𝒴 ∇ and E must be exchangeable; here 𝒴 is finite",
    code=("brain_core.brain_coefficients", "toy.exact_moments", "toy.mean_gradient"),
    tests=(
        f"{EXACT_TESTS}::test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl",
        "tests/proofs_check/test_section_4.py::test_estimate_is_unbiased_for_the_gradient_of_the_self_normalized_kl",
    ),
    slow=theorem_42_on_all_ordered_groups,
)
def theorem_42(estimator: Estimator) -> None:
    """In the logits on all cases, and on the generic one along directions in probability space too."""
    require_unbiased(GENERIC, GENERIC_GROUP_SIZE, estimator)
    directions = (*TANGENTS, OFF_SIMPLEX)
    beta = [q / s for q, s in zip(along(GENERIC.policy, directions), GENERIC.proposal, strict=True)]
    score = along_score(GENERIC.policy, directions)
    right = mean_vector(
        GENERIC.proposal,
        GENERIC_GROUP_SIZE,
        lambda group: combined(estimator(GENERIC, group), [score(GENERIC.policy, y) for y in group]),
    )
    require_equal(right, ascent_along(GENERIC, beta, GENERIC_GROUP_SIZE, mean_over_groups), "E ĝ along directions")
    for problem in random_toys(12, seed=42):
        require_unbiased(problem, 2, estimator)
    for size, n in THEOREM_42_CASES:
        require_unbiased(of_size(size, n), n, estimator)


INSTANCES: Mapping[str, tuple[Toy, int]] = {
    **{name: (problem, GENERIC_GROUP_SIZE if problem.size > 2 else 2) for name, problem in BLIND_SPOTS.items()},
    "generic, n=2": (GENERIC, 2),
    "generic, n=3": (GENERIC, 3),
}

OFF_PRIOR_ONLY = frozenset({"α = softmax(r), eq. (21)", "β = q/p"})
BASELINE_FREE = frozenset({"β̂ uniform", "no baseline", "(29) as printed", "β̂ leaves its own member out"})

SURVIVORS: Mapping[str, frozenset[str]] = {
    "s=p": OFF_PRIOR_ONLY,
    "s=p=q": OFF_PRIOR_ONLY | BASELINE_FREE,
    "s=q": BASELINE_FREE,
    "s,p uniform": OFF_PRIOR_ONLY | {"α without p", "β without q'", "q' inverted"},
    "K=2": frozenset({"duplicates counted once"}),
    "π=q": frozenset(
        {"q' inverted", "sign swapped", "divided by n", "duplicates counted once", "another proposal reported"}
        | {"(29) as printed"}
    ),
    "generic, n=2": frozenset({"duplicates counted once"}),
    "generic, n=3": frozenset(),
}
"""Which of the thirteen wrong forms each instance fails to tell from the right one."""


@functools.cache
def survivors_of(instance: str) -> frozenset[str]:
    """The wrong forms whose mean equals −∇D_n in the logits of this instance, as the right form's must."""
    problem, n = INSTANCES[instance]
    left = expected_ascent(problem, n)
    require_equal(mean_estimate(problem, n, brain), left, f"the right form on {instance}")
    return frozenset(name for name, wrong in WRONG_FORMS.items() if mean_estimate(problem, n, wrong) == left)


@claim(
    "thm-4.2-teeth",
    "Of eight instances only the generic one with n=3 tells all thirteen wrong forms from the right one",
    source="docs/theory.md, engines",
    method="exact: 13 wrong estimates on 8 instances",
    case="K=4, n=2, 3; K=2, n=2",
    subject=SURVIVORS,
    mutants={
        "on-policy sees the baseline": {**SURVIVORS, "s=q": frozenset()},
        "the prior as proposal sees everything": {**SURVIVORS, "s=p": frozenset()},
        "n=2 sees duplicates": {**SURVIVORS, "generic, n=2": frozenset()},
        "the generic instance is blind too": {**SURVIVORS, "generic, n=3": frozenset({"divided by n"})},
    },
)
def theorem_42_teeth(survivors: Mapping[str, frozenset[str]]) -> None:
    """The exact set of survivors of each instance."""
    for instance, expected in survivors.items():
        require_equal(survivors_of(instance), expected, f"survivors of {instance}")
    blind = {instance for instance in INSTANCES if survivors_of(instance)}
    require_equal(set(INSTANCES) - blind, {"generic, n=3"}, "who sees all")


def divergence_of(
    target: Callable[[Toy], Vector], policy: Callable[[Toy], Vector] = policy_ratio
) -> Callable[[Toy, int], LogNumber]:
    """D_n with other ratios in place of α and β."""
    return lambda problem, n: LogNumber.of(
        mean_over_multisets(
            problem.proposal, n, lambda group: divergence(at(target(problem), group), at(policy(problem), group))
        )
    )


def show_single_completion() -> None:
    """D_1 = 0 on the generic instance, where KL is positive."""
    require_equal(mean_divergence(GENERIC, 1), 0, "D_1")
    require(kl(GENERIC.posterior, GENERIC.policy) > 0, "KL is positive")


def show_policy_beyond_the_proposal() -> None:
    """π = q' = (½, ½, 0), q = (¼, ¼, ½): D_n = 0 for every n, KL = log 2. Truncated sampling does this."""
    problem = toy((1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 0))
    require_equal([mean_divergence(problem, n) for n in (2, 3, 5)], [ZERO] * 3, "D_n")
    require_equal(kl(problem.posterior, problem.policy), log(2), "KL")


def show_target_beyond_the_policy() -> None:
    """π = (¼, ¼, ½), q = q' = (½, ½, 0): D_n = 0 for every n, although q is not π."""
    problem = toy((1, 1, 2), (1, 1, 1), (1, 1, 0), (1, 1, 0))
    require_equal([mean_divergence(problem, n) for n in (2, 3, 5)], [ZERO] * 3, "D_n")
    require(problem.policy != problem.posterior, "q is not π")


def show_target_beyond_the_proposal() -> None:
    """π = (.2, .2, .6), q = (.4, .4, .2), q' = (½, ½, 0): D_n = 0, KL = .6 log 3 − .4 log 2."""
    require_equal([mean_divergence(UNSUPPORTED, n) for n in (2, 3, 5)], [ZERO] * 3, "D_n")
    expected = Fraction(3, 5) * log(3) - Fraction(2, 5) * log(2)
    require_equal(kl(UNSUPPORTED.posterior, UNSUPPORTED.policy), expected, "KL")


def nearly_on_target(problem: Toy) -> Toy:
    """The policy equals the target but for two completions."""
    first, second, *rest = problem.posterior
    return problem._replace(policy=(first + second / 1000, second * Fraction(999, 1000), *rest))


WITH_ZEROS = (
    toy((1, 2, 3, 4), (3, 1, 0, 0), (1, 2, 3, 1), (1, 2, 3, 4)),
    toy((2, 1, 1), (1, 3, 0), (1, 1, 0), (1, 1, 1)),
    toy((1, 2, 2, 1), (2, 1, 0, 0), (1, 2, 3, 0), (3, 1, 2, 2)),
)
"""supp π ⊆ supp q ⊆ supp q' with the first, the second and both of them strict: some groups have A = 0, some B = 0."""


@claim(
    "thm-4.3",
    "For n ≥ 2, D_n ≥ 0, and D_n = 0 exactly where q = π, which is where KL = 0",
    source="Theorem 4.3 (4.2 in the later version)",
    method="exact: D_n by its groups against the laws of A and of B; zero decided and signs certified",
    case="(K, n) up to (4, 3) on 24 random problems and 3 with zeros, each also at and near its target; K=4 to n=5",
    subject=mean_divergence,
    mutants={
        "n − 1 completions": lambda problem, n: mean_divergence(problem, n - 1),
        "groups of one completion repeated": lambda problem, n: sum(
            (s * divergence(*ratios(problem, (y,) * n)) for y, s in enumerate(problem.proposal)), start=ZERO
        ),
        "KL itself": lambda problem, n: kl(problem.posterior, problem.policy),
        "D_2 for every n": lambda problem, n: mean_divergence(problem, 2),
        "groups with a member outside supp π left out": lambda problem, n: LogNumber.of(
            mean_over_multisets(
                problem.proposal,
                n,
                lambda group: divergence(*ratios(problem, group)) if all(at(problem.posterior, group)) else ZERO,
            )
        ),
        "α = softmax(r), eq. (21)": divergence_of(lambda problem: problem.goodness),
        "α clipped at 1": divergence_of(lambda problem: tuple(min(a, Fraction(1)) for a in problem.target_ratio)),
        "α squared": divergence_of(lambda problem: product(problem.target_ratio, problem.target_ratio)),
        "β without q'": divergence_of(target_ratio, lambda problem: problem.policy),
        "cross-entropy": lambda problem, n: mean_divergence(problem, n) + entropy(problem.posterior),
    },
    counterexamples={
        "n ≥ 2": show_single_completion,
        "supp π ⊆ supp q": show_target_beyond_the_policy,
        "supp q ⊆ supp q'": show_policy_beyond_the_proposal,
        "supp π ⊆ supp q'": show_target_beyond_the_proposal,
    },
    assumptions=("n ≥ 2", "supp π ⊆ supp q", "supp q ⊆ supp q'"),
    code=("brain_core.self_normalized_kl", "toy.self_normalized_kl"),
    tests=(
        "tests/brain_core/test_precision.py::test_divergence_is_never_negative_near_the_optimum",
        "tests/proofs_check/test_section_4.py::test_divergence_is_zero_exactly_where_the_policy_is_the_target",
    ),
)
def theorem_43(value: Callable[[Toy, int], LogNumber]) -> None:
    """D_n by another route, and the certified signs of D_n and of KL on the same problems."""
    cases = [(GENERIC, n) for n in (2, 3, 4, 5)]
    for problem in (*WITH_ZEROS, *random_toys(24, seed=43)):
        on_target = problem._replace(policy=problem.posterior)
        for variant in (problem, on_target, nearly_on_target(problem)):
            cases += [(variant, n) for n in (2, 3)]
    for problem, n in cases:
        expected = 0 if problem.policy == problem.posterior else 1
        require_equal(kl(problem.posterior, problem.policy).sign(), expected, "sign of KL")
        found = value(problem, n)
        require_equal(found, divergence_by_laws(problem, n), f"D_{n}")
        require_equal(found.sign(), expected, f"sign of D_{n}")


PAIRS = tuple(itertools.combinations(range(3), 2))


def show_unnormalized_policy() -> None:
    """q = 2π, not a distribution: every group's weights agree."""
    doubled = tuple(2 * mass for mass in GENERIC.posterior)
    problem = GENERIC._replace(policy=doubled)
    require_equal(mean_divergence(problem, 2), 0, "D_2")


@claim(
    "thm-4.3-reals",
    "For all real π, q, q' > 0 on three completions: α̂ = β̂ on every pair forces q = π",
    source="Theorem 4.3 (4.2 in the later version)",
    method="z3: reals",
    case="K=3, n=2",
    subject=PAIRS,
    mutants={"groups of equals only": (), "the third never meets the others": PAIRS[:1]},
    counterexamples={
        "Σ q = Σ π = 1": show_unnormalized_policy,
        "positive probabilities": show_policy_beyond_the_proposal,
    },
    assumptions=("Σ q = Σ π = 1", "positive probabilities"),
    code=("brain_core.self_normalized_kl",),
)
def theorem_43_reals(pairs: Sequence[tuple[int, int]]) -> None:
    """No reals agree on the weights of these pairs and differ as distributions."""
    import z3

    target, policy, proposal = (z3.Reals([f"{name}{k}" for k in range(3)]) for name in ("p", "q", "s"))
    rules = [value > 0 for law in (target, policy, proposal) for value in law]
    rules += [sum(law) == 1 for law in (target, policy, proposal)]
    for pair in pairs:
        weights = [shares([law[y] / proposal[y] for y in pair]) for law in (target, policy)]
        rules += [a == b for a, b in zip(*weights, strict=True)]
    differ = z3.Or([t != q for t, q in zip(target, policy, strict=True)])
    require_proved("α̂ = β̂ on all pairs, q ≠ π", *rules, differ)

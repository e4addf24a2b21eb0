"""Section 4 up to the estimate: equations (1) to (12). The divergence and the theorems are in `section_4_theorems`.

Goodness enters as real probabilities where the joint table of y and G is needed, and up to a factor elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import (
    Group,
    mean_over_groups,
    mean_over_multisets,
    mean_self_normalized,
    ordered_groups,
    probability,
)
from proofs_check.exact import Dual, LogNumber, along, in_logits, log
from proofs_check.groups import (
    ZERO,
    along_score,
    at,
    brain_coefficients,
    combined,
    hidden_index,
    kl,
    logit_score,
    mean_vector,
    require_proved,
    shares,
)
from proofs_check.instances import GENERIC, GENERIC_GROUP_SIZE, Toy, Vector, proportional, random_toys, ratio, toy

Values = Sequence[Any]
Weights = Callable[..., Values]

ON_TARGET = GENERIC._replace(policy=GENERIC.posterior)
ON_POLICY = GENERIC._replace(proposal=GENERIC.policy)
TANGENTS = ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1), (2, -1, -1, 0), (1, 1, 1, -3))
OFF_SIMPLEX = (1, 0, 0, 0)


def show_group_without_target_mass() -> None:
    """A group that q' draws with probability 1/16 and π never: α̂ would be 0/0, and −β̂ alone sums to −1."""
    problem = toy((1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 1, 2))
    require_equal(probability((0, 0), problem.proposal), Fraction(1, 16), "probability of the group")
    require_equal(at(problem.target_ratio, (0, 0)), [0, 0], "α")
    require_equal(-sum(shares(at(problem.policy_ratio, (0, 0)))), -1, "sum of the coefficients, with 0 for 0/0")


UNSUPPORTED = Toy(
    prior=proportional(1, 1, 3),
    goodness=(Fraction(1),) * 3,
    policy=proportional(2, 2, 1),
    proposal=proportional(1, 1, 0),
)
"""The proposal never draws the third completion, which has 3/5 of the target."""

EXACT_TESTS = "tests/brain_core/test_exact_enumeration.py"


def groups() -> Iterator[Group]:
    """All ordered groups of the generic instance."""
    return ordered_groups(GENERIC.size, GENERIC_GROUP_SIZE)


def problems(count: int = 20, seed: int = 4) -> Iterator[Toy]:
    """The generic instance, then random ones."""
    yield GENERIC
    yield from random_toys(count, seed=seed)


def expected_log(law: Sequence[Fraction], policy: Sequence[Fraction]) -> LogNumber:
    """E_law[log policy]."""
    return sum((mass * log(q) for mass, q in zip(law, policy, strict=True) if mass), start=ZERO)


def entropy(law: Sequence[Fraction]) -> LogNumber:
    """H(law) in nats."""
    return -expected_log(law, law)


def show_goodness_without_mass() -> None:
    """With goodness 0 wherever the prior has mass, the joint table has no column G = 1 to normalise."""
    joint = [p * g for p, g in zip(proportional(1, 1, 0), (0, 0, 1), strict=True)]
    require_equal(sum(joint), 0, "p(G=1)")


@claim(
    "eq-1",
    "The posterior is prior × goodness / p(G=1|x), p(G=1|x) being the prior's mean goodness",
    source="eq. (1)",
    method="exact: joint table of y and G",
    case="K=4 and 20 random problems",
    subject=lambda p, g: [a * b / sum(c * d for c, d in zip(p, g, strict=True)) for a, b in zip(p, g, strict=True)],
    mutants={
        "without the prior": lambda p, g: shares(g),
        "without the goodness": lambda p, g: p,
        "not normalised": lambda p, g: [a * b for a, b in zip(p, g, strict=True)],
        "normalised by the sum of the goodness": lambda p, g: [a * b / sum(g) for a, b in zip(p, g, strict=True)],
        "given G=0": lambda p, g: shares([a * (1 - b) for a, b in zip(p, g, strict=True)]),
    },
    counterexamples={"p(G=1|x) > 0": show_goodness_without_mass},
    assumptions=("p(G=1|x) > 0",),
    code=("toy.CategoricalProblem",),
)
def eq_1(posterior: Callable[[Vector, Vector], Values]) -> None:
    """Draw y, then G: the share of each y among the outcomes with G = 1."""
    for problem in problems():
        goodness = tuple(g / (2 * max(problem.goodness)) for g in problem.goodness)
        table = {
            (y, good): p * (g if good else 1 - g)
            for y, (p, g) in enumerate(zip(problem.prior, goodness, strict=True))
            for good in (False, True)
        }
        require_equal(sum(table.values()), 1, "the joint table")
        column = sum(mass for (_, good), mass in table.items() if good)
        expected = [table[y, True] / column for y in range(problem.size)]
        require_equal(list(posterior(problem.prior, goodness)), expected, "posterior")


@claim(
    "eq-2",
    "The objective −E_π log(π/q) is −KL(π‖q): at most 0, and 0 only at q = π; its gradient in the logits is π − q",
    source="eq. (2)",
    method="exact: signs certified, dual numbers",
    case="K=4 and 20 random problems",
    subject=lambda target, policy: sum((q / t).log() * t for t, q in zip(target, policy, strict=True)),
    mutants={
        "sign": lambda target, policy: sum(-((q / t).log() * t) for t, q in zip(target, policy, strict=True)),
        "without the posterior in the logarithm": lambda target, policy: sum(
            q.log() * t for t, q in zip(target, policy, strict=True)
        ),
        "uniform expectation": lambda target, policy: sum(
            (q / t).log() / len(target) for t, q in zip(target, policy, strict=True)
        ),
        "twice": lambda target, policy: sum((q / t).log() * (2 * t) for t, q in zip(target, policy, strict=True)),
    },
    assumptions=("q > 0 wherever π > 0",),
    counterexamples={"q > 0 wherever π > 0": lambda: show_divergence_without_bound()},
    code=("toy.CategoricalProblem",),
)
def eq_2(objective: Callable[[Vector, list[Dual]], Dual]) -> None:
    """Gibbs' inequality with certified signs, and the derivative of the objective against π − q."""
    for problem in (*problems(), ON_TARGET):
        found = objective(problem.posterior, in_logits(problem.policy))
        value = LogNumber.of(found.value)
        require_equal(value.sign(), 0 if problem.posterior == problem.policy else -1, "sign of the objective")
        difference = tuple(t - q for t, q in zip(problem.posterior, problem.policy, strict=True))
        require_equal(found.slopes, difference, "gradient of the objective")


def show_divergence_without_bound() -> None:
    """KL((½, ½) ‖ (10⁻ᵏ, rest)) exceeds ½ k log 10 − log 2, for every k."""
    for zeros in (8, 16):
        small = Fraction(1, 10**zeros)
        require(kl(proportional(1, 1), (small, 1 - small)) > (zeros * log(10)) / 2 - log(2), "KL is not bounded")


def show_constant_that_moves() -> None:
    """With π = q for every θ the objective is 0 throughout, but E_π log q is not constant: −log 2, ⅔ log 2 − log 3."""
    for policy, value in ((proportional(1, 1), -log(2)), (proportional(1, 2), Fraction(2, 3) * log(2) - log(3))):
        require_equal(kl(policy, policy), 0, "objective")
        require_equal(expected_log(policy, policy), value, "objective without its constant")


@claim(
    "eq-3",
    "The objective is E_π log q + C with C = H(π), which does not depend on the policy",
    source="eq. (3)",
    method="exact: logarithms of primes",
    case="K=4 and 20 random problems, 4 policies each",
    subject=(expected_log, lambda target, policy: entropy(target)),
    mutants={
        "C = −H(π)": (expected_log, lambda target, policy: -entropy(target)),
        "C = 0": (expected_log, lambda target, policy: ZERO),
        "C = H(q)": (expected_log, lambda target, policy: entropy(policy)),
        "E_q log π": (lambda target, policy: expected_log(policy, target), lambda target, policy: entropy(target)),
        "E_q log q": (lambda target, policy: expected_log(policy, policy), lambda target, policy: entropy(target)),
    },
    counterexamples={
        "π does not depend on θ": show_constant_that_moves,
        "q > 0 wherever π > 0": show_divergence_without_bound,
    },
    assumptions=("π does not depend on θ", "q > 0 wherever π > 0"),
    code=("brain_core.snis_objective",),
)
def eq_3(parts: tuple[Callable[[Vector, Vector], LogNumber], Callable[[Vector, Vector], LogNumber]]) -> None:
    """The sum of both parts is −KL at every policy."""
    cross, constant = parts
    for problem in problems():
        for policy in (problem.policy, problem.prior, problem.proposal, problem.posterior):
            value = cross(problem.posterior, policy) + constant(problem.posterior, policy)
            require_equal(value, -kl(problem.posterior, policy), "objective")


def show_missing_target_mass() -> None:
    """E_s[(π/s) log q] is ⅖ log ⅖, E_π log q is ⅖ log ⅖ + ⅗ log ⅕."""
    log_policy = [log(q) for q in UNSUPPORTED.policy]
    weighed = zip(UNSUPPORTED.proposal, UNSUPPORTED.target_ratio, log_policy, strict=True)
    found = sum((s * a * value for s, a, value in weighed), start=ZERO)
    require_equal(found, Fraction(2, 5) * log(Fraction(2, 5)), "importance-weighted mean")
    missing = Fraction(3, 5) * log(Fraction(1, 5))
    require_equal(expected_log(UNSUPPORTED.posterior, UNSUPPORTED.policy) - found, missing, "what is missing")


@claim(
    "eq-4",
    "Importance sampling: the proposal's mean of (π/q') log q is E_π log q",
    source="eq. (4), with y for y_i",
    method="exact: logarithms of primes",
    case="K=4 and 20 random problems",
    subject=lambda t, s, q: t / s * log(q),
    mutants={
        "without the ratio": lambda t, s, q: log(q),
        "ratio inverted": lambda t, s, q: s / t * log(q),
        "policy for the posterior": lambda t, s, q: q / s * log(q),
        "logarithm of the ratio": lambda t, s, q: t / s * log(q / s),
    },
    counterexamples={"supp π ⊆ supp q'": show_missing_target_mass},
    assumptions=("supp π ⊆ supp q'",),
    code=("brain_core.dpg_objective",),
)
def eq_4(integrand: Callable[[Fraction, Fraction, Fraction], LogNumber]) -> None:
    """Both sums over all completions."""
    for problem in problems():
        rows = zip(problem.posterior, problem.proposal, problem.policy, strict=True)
        found = sum((s * integrand(t, s, q) for t, s, q in rows), start=ZERO)
        require_equal(found, expected_log(problem.posterior, problem.policy), "importance-weighted mean")


def dot(weights: Values, values: Sequence[LogNumber]) -> LogNumber:
    """Σ weight · value."""
    return sum((weight * value for weight, value in zip(weights, values, strict=True)), start=ZERO)


class SampleMean(NamedTuple):
    """The estimate of a group from α and log q, and the limit of n times its bias."""

    estimate: Callable[[Values, Values], LogNumber]
    leading_bias: Callable[[Toy], LogNumber]


def literal_estimate(alpha: Values, log_policy: Values) -> LogNumber:
    """Eq. (5)."""
    return dot(shares(alpha), log_policy)


def squared_target(problem: Toy) -> Vector:
    """q' α²."""
    return tuple(s * a**2 for s, a in zip(problem.proposal, problem.target_ratio, strict=True))


def leading_bias(problem: Toy) -> LogNumber:
    """−E_{q'}[α² (log q − E_π log q)]."""
    squares = squared_target(problem)
    return sum(squares) * expected_log(problem.posterior, problem.policy) - expected_log(squares, problem.policy)


def abs_of(value: LogNumber) -> LogNumber:
    """Its absolute value."""
    return value * value.sign()


@cache
def bias_of_sample_mean(problem: Toy, group_size: int) -> LogNumber:
    """E of (5) minus E_π log q, from the law of A."""
    mean = mean_self_normalized(problem.target_ratio, problem.proposal, group_size)
    return expected_log(mean, problem.policy) - expected_log(problem.posterior, problem.policy)


UNBIASED_ALONE = toy((3, 2, 1), (1, 1, 1), (1, 2, 1), (1, 1, 1))
"""The bias of (5) is 0 at n = 1 and 0.0103 at n = 2."""


def show_bias_that_grows() -> None:
    """The bias of UNBIASED_ALONE: 0 at n = 1, (2/135) log 2 at n = 2."""
    found = [bias_of_sample_mean(UNBIASED_ALONE, n) for n in (1, 2)]
    require_equal(found, [ZERO, Fraction(2, 135) * log(2)], "bias")


def show_bias_of_one_sample() -> None:
    """With n = 1 the mean of (5) is E_{q'} log q, whatever the posterior."""
    found = mean_over_groups(GENERIC.proposal, 1, lambda g: log(GENERIC.policy[g[0]]))
    require_equal(found, expected_log(GENERIC.proposal, GENERIC.policy), "mean of the estimate at n = 1")
    require(found != expected_log(GENERIC.posterior, GENERIC.policy), "it is biased")


@claim(
    "eq-5",
    "Σ α̂ log q is the quotient of the sample means; its bias is −E_{q'}[α² (log q − E_π log q)]/n + O(1/n²)",
    source="eq. (5)",
    method="exact: all ordered groups; laws of A for the bias",
    case="K=4, n=3; bias of two problems at n=16 and 32",
    subject=SampleMean(literal_estimate, leading_bias),
    mutants={
        "divided by n": SampleMean(
            lambda alpha, log_policy: dot([a / len(alpha) for a in alpha], log_policy), leading_bias
        ),
        "equal weights": SampleMean(lambda alpha, log_policy: sum(log_policy, start=ZERO) / len(alpha), leading_bias),
        "mean, not sum, over the weights": SampleMean(
            lambda alpha, log_policy: literal_estimate(alpha, log_policy) / len(alpha), leading_bias
        ),
        "the best only": SampleMean(lambda alpha, log_policy: log_policy[list(alpha).index(max(alpha))], leading_bias),
        "no bias of order 1/n": SampleMean(literal_estimate, lambda problem: ZERO),
        "bias not centred": SampleMean(
            literal_estimate, lambda problem: -expected_log(squared_target(problem), problem.policy)
        ),
        "bias 10% too large": SampleMean(literal_estimate, lambda problem: leading_bias(problem) * Fraction(11, 10)),
        "bias of the other sign": SampleMean(literal_estimate, lambda problem: -leading_bias(problem)),
    },
    counterexamples={
        "A > 0": show_group_without_target_mass,
        "n → ∞, for an estimate without bias": show_bias_of_one_sample,
        "n → ∞, for a bias that shrinks": show_bias_that_grows,
    },
    assumptions=("A > 0",),
    code=("brain_core.snis_objective",),
)
def eq_5(parts: SampleMean) -> None:
    """α of (6) for the estimate, the normalised π/q' for the sample means; n · bias against its limit."""
    unnormalized = [p * g / s for p, g, s in zip(GENERIC.prior, GENERIC.goodness, GENERIC.proposal, strict=True)]
    log_policy = [log(q) for q in GENERIC.policy]
    for group in groups():
        ratio = at(GENERIC.target_ratio, group)
        expected = dot(ratio, at(log_policy, group)) / len(group) / (sum(ratio) / len(group))
        found = parts.estimate(at(unnormalized, group), at(log_policy, group))
        require_equal(found, expected, f"estimate of {group}")
    for problem in (GENERIC, UNBIASED_ALONE):
        limit = parts.leading_bias(problem)
        far, near = (n * bias_of_sample_mean(problem, n) - limit for n in (16, 32))
        share = 10 * far.sign() * (2 * near - far)
        require(-abs_of(far) < share < abs_of(far), "n · bias nears its limit like 1/n, to a tenth of the distance")


def literal_target_weights(prior: Values, goodness: Values, proposal: Values) -> Values:
    """Eq. (6)."""
    return shares([p / s * g for p, g, s in zip(prior, goodness, proposal, strict=True)])


def require_no_quotient(law: Vector) -> None:
    """The group (0, 2) of UNSUPPORTED: Bayes gives all weight to the one that only the law can draw, law/q' none."""
    group = (0, 2)
    require_equal(hidden_index(law, UNSUPPORTED.proposal, group), [0, 1], "chances to come from the law")
    require_equal(shares(at(ratio(law, UNSUPPORTED.proposal), group)), [1, 0], "weights, with 0 for law/0")


@claim(
    "eq-6",
    "α̂ is each member's chance to be the one that came from π, the others from q'; factors of p(G=1|y,x) cancel",
    source="eq. (6)",
    method="exact: Bayes' rule on whole groups",
    case="K=4, n=3, all ordered groups; 20 random problems, n=2",
    subject=literal_target_weights,
    mutants={
        "without the prior": lambda p, g, s: shares([b / c for b, c in zip(g, s, strict=True)]),
        "without the goodness": lambda p, g, s: shares([a / c for a, c in zip(p, s, strict=True)]),
        "without the proposal": lambda p, g, s: shares([a * b for a, b in zip(p, g, strict=True)]),
        "softmax of the reward, eq. (21), off the prior": lambda p, g, s: shares(g),
        "proposal inverted": lambda p, g, s: shares([a * b * c for a, b, c in zip(p, g, s, strict=True)]),
        "not normalised": lambda p, g, s: [a * b / c for a, b, c in zip(p, g, s, strict=True)],
    },
    counterexamples={
        "A > 0": show_group_without_target_mass,
        "q' > 0 on the group": lambda: require_no_quotient(UNSUPPORTED.posterior),
    },
    assumptions=("A > 0", "q' > 0 on the group"),
    code=("brain_core.target_log_ratio", "brain_core.self_normalized_weights"),
    tests=("tests/brain_core/test_goodness_and_diagnostics.py::test_weights_are_a_distribution",),
)
def eq_6(weights: Weights) -> None:
    """The same with the goodness as it is, as a probability, and with p(G=1|x) divided out."""
    for problem in problems():
        for group in ordered_groups(problem.size, GENERIC_GROUP_SIZE if problem is GENERIC else 2):
            expected = hidden_index(problem.posterior, problem.proposal, group)
            for factor in (Fraction(1), 1 / problem.normalizer, Fraction(1, 30)):
                goodness = [factor * problem.goodness[y] for y in group]
                found = weights(at(problem.prior, group), goodness, at(problem.proposal, group))
                require_equal(list(found), expected, f"weights of {group}")


def show_gradient_of_moving_weights() -> None:
    """With q' = q_θ live, α̂ moves and adds −Σ α̂ (h − Σα̂h) log q: 3/16 log 3 for π = (½, ½), q = (¼, ¾)."""
    policy, group = proportional(1, 3), (0, 1)
    weights = shares([Fraction(1, 2) / q for q in policy])
    score = [logit_score(policy, y)[0] for y in group]
    mean = combined(weights, [(h,) for h in score])[0]
    extra = [-a * (h - mean) * log(policy[y]) for a, h, y in zip(weights, score, group, strict=True)]
    require_equal(sum(extra, start=ZERO), Fraction(-3, 16) * log(Fraction(1, 3)), "the missing term")


def show_slope_without_bound() -> None:
    """α̂ = (½, ½) at q = (10⁻ᵏ, rest), along (1, −1): the slope of Σ α̂ log q exceeds ½ 10ᵏ − 1, for every k."""
    for zeros in (8, 16):
        small = Fraction(1, 10**zeros)
        first, second = (q.log() for q in along((small, 1 - small), ((1, -1),)))
        require(((first + second) / 2).slopes[0] > Fraction(10**zeros, 2) - 1, "the slope is not bounded")


@claim(
    "eq-7",
    "The gradient of Σ α̂ log q with α̂ held constant is Σ α̂ ∇ log q",
    source="eq. (7)",
    method="exact: dual numbers against explicit scores",
    case="K=4, n=3, all ordered groups; 4 logits, 5 tangent directions and one off the simplex",
    subject=lambda alpha, beta: shares(alpha),
    mutants={
        "with the baseline of (12)": brain_coefficients,
        "divided by n": lambda alpha, beta: [a / len(alpha) for a in shares(alpha)],
        "not self-normalised": lambda alpha, beta: alpha,
        "sign": lambda alpha, beta: [-a for a in shares(alpha)],
        "weights of the policy": lambda alpha, beta: shares(beta),
    },
    counterexamples={
        "α̂ does not depend on θ (detached)": show_gradient_of_moving_weights,
        "q > 0 on the group": show_slope_without_bound,
    },
    assumptions=("α̂ does not depend on θ (detached)", "q > 0 on the group"),
    code=("brain_core.snis_coefficients",),
    tests=(f"{EXACT_TESTS}::test_coefficients_of_every_group_equal_the_exact_ones",),
)
def eq_7(coefficients: Weights) -> None:
    """Derivatives of the logarithms on the left, e_y − q and v_y/q_y on the right."""
    directions = (*TANGENTS, OFF_SIMPLEX)
    routes = (
        (in_logits(GENERIC.policy), logit_score),
        (along(GENERIC.policy, directions), along_score(GENERIC.policy, directions)),
    )
    for group in groups():
        alpha, beta = at(GENERIC.target_ratio, group), at(GENERIC.policy_ratio, group)
        for policy, score in routes:
            terms = [policy[y].log() * a for a, y in zip(shares(alpha), group, strict=True)]
            left = sum(terms[1:], start=terms[0]).slopes
            right = combined(coefficients(alpha, beta), [score(GENERIC.policy, y) for y in group])
            require_equal(right, left, f"gradient of {group}")


@claim(
    "eq-8",
    "∇ log q = ∇q / q",
    source="eq. (8)",
    method="exact: softmax scores e_y − q, dual numbers along directions",
    case="K=4 and 20 random problems, all logits; 5 tangent directions",
    subject=lambda q, slope: slope / q,
    mutants={
        "without 1/q": lambda q, slope: slope,
        "times q": lambda q, slope: slope * q,
        "1/q²": lambda q, slope: slope / q**2,
        "sign": lambda q, slope: -slope / q,
    },
    assumptions=("q > 0",),
    counterexamples={"q > 0": lambda: show_mass_that_the_score_does_not_see()},
)
def eq_8(score: Callable[[Fraction, Fraction], Fraction]) -> None:
    """Against the explicit score in logits, whose ∇q comes from the softmax, and against formal logarithms."""
    for problem in problems():
        for y, q in enumerate(in_logits(problem.policy)):
            found = tuple(score(problem.policy[y], slope) for slope in q.slopes)
            require_equal(found, logit_score(problem.policy, y), f"score of {y}")
    for chance, moving in zip(GENERIC.policy, along(GENERIC.policy, TANGENTS), strict=True):
        found = tuple(score(chance, slope) for slope in moving.slopes)
        require_equal(found, moving.log().slopes, "score along directions")


def show_mass_that_the_score_does_not_see() -> None:
    """At q = (½, ½, 0), moving mass to the third completion: the mean score over supp q is −1, not 0."""
    policy, direction = proportional(1, 1, 0), (-1, 0, 1)
    require_equal(sum(direction), 0, "the direction keeps the sum")
    found = sum(q * (Fraction(v) / q) for q, v in zip(policy, direction, strict=True) if q)
    require_equal(found, -1, "mean score")


def show_direction_off_the_simplex() -> None:
    """Where the sum of q is not kept, its derivative, 1, is the mean score."""
    score = along_score(GENERIC.policy, (OFF_SIMPLEX,))
    found = combined(GENERIC.policy, [score(GENERIC.policy, y) for y in range(GENERIC.size)])
    require_equal(found, (1,), "mean score")


@claim(
    "eq-9",
    "The policy's mean of its score is 0: Σ ∇q = ∇ Σ q = ∇ 1",
    source="eq. (9)",
    method="exact",
    case="K=4 and 20 random problems, all logits; 5 tangent directions",
    subject=lambda problem: problem.policy,
    mutants={
        "mean under the proposal": lambda problem: problem.proposal,
        "mean under the posterior": lambda problem: problem.posterior,
        "mean under the prior": lambda problem: problem.prior,
        "uniform mean": lambda problem: proportional(*(1,) * problem.size),
    },
    assumptions=("q > 0 where the score is taken", "Σ q = 1 for every θ"),
    counterexamples={
        "q > 0 where the score is taken": show_mass_that_the_score_does_not_see,
        "Σ q = 1 for every θ": show_direction_off_the_simplex,
    },
)
def eq_9(law: Callable[[Toy], Vector]) -> None:
    """Explicit scores, weighed by the law."""
    for problem in problems():
        score = [logit_score(problem.policy, y) for y in range(problem.size)]
        require_equal(combined(law(problem), score), (0,) * problem.size, "mean score in the logits")
    score = [along_score(GENERIC.policy, TANGENTS)(GENERIC.policy, y) for y in range(GENERIC.size)]
    require_equal(combined(law(GENERIC), score), (0,) * len(TANGENTS), "mean score along directions")


OFF_POLICY = toy((1, 1, 1), (1, 1, 1), (1, 2, 3), (3, 2, 1))
"""The example of T5: proposal (3, 2, 1)/6, policy (1, 2, 3)/6."""


def mean_baseline(problem: Toy, group_size: int, weights: Weights) -> Vector:
    """E Σ β̂ ∇ log q in the logits, over multisets."""

    def baseline(group: Group) -> Vector:
        found = weights(at(problem.policy, group), at(problem.proposal, group))
        return combined(found, [logit_score(problem.policy, y) for y in group])

    return mean_vector(problem.proposal, group_size, baseline, mean_over_multisets)


def literal_policy_weights(policy: Values, proposal: Values) -> Values:
    """Eq. (11)."""
    return shares([q / s for q, s in zip(policy, proposal, strict=True)])


def show_bias_off_policy() -> None:
    """At n = 1 the baseline of OFF_POLICY has mean (⅓, 0, −⅓)."""
    require_equal(
        mean_baseline(OFF_POLICY, 1, literal_policy_weights),
        (Fraction(1, 3), Fraction(0), Fraction(-1, 3)),
        "mean baseline",
    )


@claim(
    "eq-10",
    "The baseline Σ β̂ ∇ log q estimates 0: its mean is 0 if q' = q, else −E_{q'}[β² ∇ log q]/n + O(1/n²)",
    source="eq. (10)",
    method="exact: multisets",
    case="K=4 on-policy, n=1, 2, 3; K=3 off-policy, n=1, 4, 16",
    subject=literal_policy_weights,
    mutants={
        "β/n": lambda q, s: [a / b / len(q) for a, b in zip(q, s, strict=True)],
        "equal weights": lambda q, s: [Fraction(1, len(q))] * len(q),
        "without the proposal": lambda q, s: shares(q),
        "ratio inverted": lambda q, s: shares([b / a for a, b in zip(q, s, strict=True)]),
    },
    counterexamples={"q' = q, for mean 0": show_bias_off_policy},
    assumptions=("q' = q, for mean 0",),
    tolerance=5e-5,
    code=("brain_core.self_normalized_weights",),
)
def eq_10(weights: Weights) -> None:
    """The exact mean on-policy, theory's figures at n = 16, and the limit of n · mean."""
    for n in (1, 2, 3):
        require_equal(mean_baseline(ON_POLICY, n, weights), (0,) * GENERIC.size, f"on-policy mean, n = {n}")
    scores = [logit_score(OFF_POLICY.policy, y) for y in range(3)]
    squares = [-s * b**2 for s, b in zip(OFF_POLICY.proposal, OFF_POLICY.policy_ratio, strict=True)]
    limit = combined(squares, scores)
    require_equal(limit, tuple(Fraction(k, 27) for k in (7, 8, -15)), "limit of n · mean")
    scaled = {n: [n * entry for entry in mean_baseline(OFF_POLICY, n, weights)] for n in (1, 4, 16)}
    for n, figures in ((1, (1 / 3, 0, -1 / 3)), (16, (0.2865, 0.2969, -0.5834))):
        for value, figure in zip(scaled[n], figures, strict=True):
            require_close(float(value), figure, 5e-5, f"n · mean at n = {n}")
    far, near = (sum((a - b) ** 2 for a, b in zip(scaled[n], limit, strict=True)) for n in (4, 16))
    require(0 < 3 * near < far, "n · mean does not come nearer to its limit like 1/n")


@claim(
    "eq-11",
    "β̂ is each member's chance to be the one that came from q, the others from q'; equal to 1/n on-policy",
    source="eq. (11)",
    method="exact: Bayes' rule on whole groups",
    case="K=4, n=3, all ordered groups; 20 random problems, n=2",
    subject=literal_policy_weights,
    mutants={
        "without the proposal": lambda q, s: shares(q),
        "ratio inverted": lambda q, s: shares([b / a for a, b in zip(q, s, strict=True)]),
        "equal weights": lambda q, s: [Fraction(1, len(q))] * len(q),
        "the member left out of its sum": lambda q, s: [
            ratio / (sum(a / b for a, b in zip(q, s, strict=True)) - ratio)
            for ratio in (a / b for a, b in zip(q, s, strict=True))
        ],
        "not normalised": lambda q, s: [a / b for a, b in zip(q, s, strict=True)],
    },
    counterexamples={"q' > 0 on the group": lambda: require_no_quotient(UNSUPPORTED.policy)},
    assumptions=("q' > 0 on the group",),
    code=("brain_core.policy_log_ratio", "brain_core.self_normalized_weights"),
    tests=("tests/brain_core/test_goodness_and_diagnostics.py::test_weights_are_a_distribution",),
)
def eq_11(weights: Weights) -> None:
    """Also with the policy known up to a factor only."""
    for problem in problems():
        for group in ordered_groups(problem.size, GENERIC_GROUP_SIZE if problem is GENERIC else 2):
            expected = hidden_index(problem.policy, problem.proposal, group)
            for factor in (Fraction(1), Fraction(7, 3)):
                found = weights([factor * problem.policy[y] for y in group], at(problem.proposal, group))
                require_equal(list(found), expected, f"weights of {group}")
            equal = weights(at(problem.proposal, group), at(problem.proposal, group))
            require_equal(list(equal), [Fraction(1, len(group))] * len(group), "on-policy weights")


def show_group_without_policy_mass() -> None:
    """A group that q' draws with probability 1/16 and q never: β̂ would be 0/0, and α̂ alone sums to 1."""
    problem = toy((1, 1, 1), (1, 1, 1), (0, 1, 1), (1, 1, 2))
    require_equal(probability((0, 0), problem.proposal), Fraction(1, 16), "probability of the group")
    require_equal(at(problem.policy_ratio, (0, 0)), [0, 0], "β")
    require_equal(sum(shares(at(problem.target_ratio, (0, 0)))), 1, "sum of the coefficients, with 0 for 0/0")


def require_sign_rule(coefficients: Weights, margin: Callable[[Any, Any, Any, Any], Any], size: int) -> None:
    """By z3: the first coefficient of a group of positive reals is positive exactly where its margin is."""
    import z3

    alpha, beta = z3.Reals([f"a{i}" for i in range(size)]), z3.Reals([f"b{i}" for i in range(size)])
    positive = [value > 0 for value in (*alpha, *beta)]
    rule = (coefficients(alpha, beta)[0] > 0) == (margin(alpha[0], beta[0], sum(alpha), sum(beta)) > 0)
    require_proved(f"sign of a coefficient, n = {size}", *positive, z3.Not(rule))


@claim(
    "eq-12",
    "The coefficients α̂ − β̂ sum to 0, have l1 norm ≤ 2, and their signs say whether α/β exceeds A/B",
    source="eq. (12)",
    method="exact: Bayes' rule on whole groups; z3 for all real weights, n ≤ 3",
    case="K=4, n=3, all ordered groups",
    subject=brain_coefficients,
    mutants={
        "no baseline": lambda alpha, beta: shares(alpha),
        "β̂ uniform": lambda alpha, beta: [a - Fraction(1, len(alpha)) for a in shares(alpha)],
        "swapped": lambda alpha, beta: brain_coefficients(beta, alpha),
        "not self-normalised": lambda alpha, beta: [a - b for a, b in zip(alpha, beta, strict=True)],
        "divided by n": lambda alpha, beta: [c / len(alpha) for c in brain_coefficients(alpha, beta)],
        "one normaliser for both": lambda alpha, beta: [(a - b) / sum(alpha) for a, b in zip(alpha, beta, strict=True)],
    },
    counterexamples={"A > 0": show_group_without_target_mass, "B > 0": show_group_without_policy_mass},
    assumptions=("A > 0", "B > 0"),
    code=("brain_core.brain_coefficients",),
    tests=(f"{EXACT_TESTS}::test_coefficients_of_every_group_equal_the_exact_ones",),
)
def eq_12(coefficients: Weights) -> None:
    """The literal formula on every group, then its properties for symbols."""
    for group in groups():
        chances = [hidden_index(law, GENERIC.proposal, group) for law in (GENERIC.posterior, GENERIC.policy)]
        expected = [a - b for a, b in zip(*chances, strict=True)]
        found = coefficients(at(GENERIC.target_ratio, group), at(GENERIC.policy_ratio, group))
        require_equal(list(found), expected, f"coefficients of {group}")
        require_equal(sum(found), 0, "their sum")
    import z3

    for n in (2, 3):
        alpha, beta = z3.Reals([f"a{i}" for i in range(n)]), z3.Reals([f"b{i}" for i in range(n)])
        found = coefficients(alpha, beta)
        positive = [z3.And(a > 0, b > 0) for a, b in zip(alpha, beta, strict=True)]
        for signs in ([1] * i + [-1] * (n - i) for i in range(1, n)):
            total = sum(sign * c for sign, c in zip(signs, found, strict=True))
            require_proved(f"l1 norm ≤ 2, n = {n}", *positive, total > 2)
        require_sign_rule(coefficients, lambda a, b, total_a, total_b: a * total_b - b * total_a, n)

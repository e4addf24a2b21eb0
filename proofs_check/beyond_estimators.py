"""T8 to T10: the relatives of BRAIn, what dropping the baseline does, and what a wrong proposal does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from proofs_check.beyond_divergence import brain_coefficients, gdcpp_coefficients, show_target_outside_the_proposal
from proofs_check.beyond_kl import require_decimals
from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import (
    Group,
    mean_over_groups,
    mean_over_multisets,
    mean_self_normalized,
    ordered_groups,
    probability,
)
from proofs_check.exact import Dual, LogNumber, in_logits, log
from proofs_check.groups import at, divergence, kl, moving_divergence
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio
from toy import gaussian_moments

Rationals = Sequence[Fraction]
Coefficients = Callable[[Rationals, Rationals], Rationals]
"""From the α and β of a group to its coefficients."""

ON_POLICY = GENERIC._replace(proposal=GENERIC.policy)


def summed(values: Sequence[Any]) -> Any:
    """The sum of numbers of any exact kind."""
    return sum(values[1:], start=values[0])


def mean_gradient(
    problem: Toy, size: int, coefficients: Coefficients, ratios: tuple[Vector, Vector] | None = None
) -> Vector:
    """E Σ c_i ∇ log q(y_i) in logits, over ordered groups, for the problem's α and β or others."""
    alphas, betas = ratios or (problem.target_ratio, problem.policy_ratio)
    slots = [Fraction(0)] * problem.size
    for group in ordered_groups(problem.size, size):
        chance = probability(group, problem.proposal)
        for y, coefficient in zip(group, coefficients(at(alphas, group), at(betas, group)), strict=True):
            slots[y] += chance * coefficient
    return tuple(slot - sum(slots) * q for slot, q in zip(slots, problem.policy, strict=True))


def ascent(problem: Toy, size: int, value: Callable[[Rationals, Sequence[Dual]], Dual]) -> Vector:
    """−∇ E value(α, β) in logits, by dual numbers over multisets."""
    betas = [q / s for q, s in zip(in_logits(problem.policy), problem.proposal, strict=True)]
    alphas = problem.target_ratio
    mean = mean_over_multisets(
        problem.proposal, size, lambda group: value([alphas[y] for y in group], [betas[y] for y in group])
    )
    return tuple(-slope for slope in mean.slopes) if isinstance(mean, Dual) else ()


def kl_ascent(problem: Toy) -> Vector:
    """−∇KL(π ‖ q) in logits."""
    return tuple(target - q for target, q in zip(problem.posterior, problem.policy, strict=True))


Split = Callable[[Sequence[Any], Sequence[Any], Callable[[Any], Any]], Any]
"""A formula for the generalised KL divergence of α to β, given a logarithm."""


def mass_term(total: Any, other: Any, logarithm: Callable[[Any], Any]) -> Any:
    """gKL(A ‖ B) of two numbers."""
    return logarithm(total / other) * total - total + other


def split(alphas: Sequence[Any], betas: Sequence[Any], logarithm: Callable[[Any], Any]) -> Any:
    """A · D_KL(α̂ ‖ β̂) + gKL(A ‖ B)."""
    whole, other = summed(alphas), summed(betas)
    terms = [logarithm(a / whole * other / b) * (a / whole) for a, b in zip(alphas, betas, strict=True)]
    return summed(terms) * whole + mass_term(whole, other, logarithm)


def split_without_mass(alphas: Sequence[Any], betas: Sequence[Any], logarithm: Callable[[Any], Any]) -> Any:
    """The split without its second term: BRAIn weighted, no GDC++."""
    return split(alphas, betas, logarithm) - mass_term(summed(alphas), summed(betas), logarithm)


def split_without_factor(alphas: Sequence[Any], betas: Sequence[Any], logarithm: Callable[[Any], Any]) -> Any:
    """The split with D_KL(α̂ ‖ β̂) alone in place of A · D_KL."""
    mass = mass_term(summed(alphas), summed(betas), logarithm)
    return (split(alphas, betas, logarithm) - mass) / summed(alphas) + mass


@claim(
    "T8",
    "GDC++ is BRAIn with the factor A, plus a term that fits the total mass: gKL(α‖β) = A·D_KL(α̂‖β̂) + gKL(A‖B)",
    source="docs/theory.md T8",
    method="exact: all groups; sympy for real weights, n = 2, 3, 4",
    case="K=4, n=3",
    subject=split,
    mutants={
        "without the mass term": split_without_mass,
        "without the factor A": split_without_factor,
        "mass term only": lambda a, b, logarithm: mass_term(summed(a), summed(b), logarithm),
    },
    code=("brain_core.gdcpp_objective", "brain_core.gdcpp_coefficients"),
    tests=("tests/brain_core/test_identities.py::test_generalised_kl_is_brain_plus_the_term_of_the_total_masses",),
)
def t8(formula: Split) -> None:
    """Against Σ α log(α/β) − α + β."""
    for group in ordered_groups(4, 3):
        alphas, betas = [GENERIC.target_ratio[y] for y in group], [GENERIC.policy_ratio[y] for y in group]
        direct = summed([mass_term(a, b, log) for a, b in zip(alphas, betas, strict=True)])
        require_equal(formula(alphas, betas, log), direct, "generalised KL divergence of a group")
    split_for_symbols(formula)


def split_for_symbols(formula: Split) -> None:
    """The identity for all positive α and β."""
    import sympy

    for size in (2, 3, 4):
        alphas = sympy.symbols(f"a:{size}", positive=True)
        betas = sympy.symbols(f"b:{size}", positive=True)
        direct = sum(a * (sympy.log(a) - sympy.log(b)) - a + b for a, b in zip(alphas, betas, strict=True))
        found = sympy.expand_log(formula(alphas, betas, sympy.log), force=True)
        require(sympy.simplify(sympy.expand(found - direct)) == 0, f"the identity for symbols, n = {size}")


def generalized_kl(alphas: Rationals, betas: Sequence[Dual]) -> Dual:
    """gKL(α ‖ β)/n, β with derivatives."""
    total: Dual = summed([(b / a).log() * -a - a + b for a, b in zip(alphas, betas, strict=True)])
    return total / len(alphas)


def show_noise_without_the_normalizer() -> None:
    """With α twice too large, every coefficient of GDC++ is α/n at q = π: right on average, noisy at the optimum."""
    at_target = GENERIC._replace(policy=GENERIC.posterior)
    group = (0, 1, 3)
    alphas = [2 * at_target.target_ratio[y] for y in group]
    found = gdcpp_coefficients(alphas, [at_target.policy_ratio[y] for y in group])
    require_equal(found, [at_target.target_ratio[y] / 3 for y in group], "coefficients at q = π")
    require_equal(
        mean_gradient(at_target, 3, lambda a, b: gdcpp_coefficients([2 * x for x in a], b)), (0,) * 4, "their mean"
    )


@claim(
    "T8a",
    "GDC++ coefficients (α − β)/n are the pathwise gradient of −gKL/n, whose mean is KL(π‖q): unbiased for −∇KL",
    source="docs/theory.md T8",
    method="exact: all ordered groups; dual numbers",
    case="K=4, n=3 and random toys",
    subject=gdcpp_coefficients,
    mutants={
        "swapped": lambda a, b: gdcpp_coefficients(b, a),
        "sum, not mean": lambda a, b: tuple(3 * c for c in gdcpp_coefficients(a, b)),
        "β̂ for β": lambda a, b: gdcpp_coefficients(a, proportional(*b)),
        "BRAIn": brain_coefficients,
    },
    counterexamples={"the target's normaliser is known": show_noise_without_the_normalizer},
    assumptions=("the target's normaliser is known",),
    code=("brain_core.gdcpp_coefficients",),
    tests=(
        "tests/brain_core/test_exact_enumeration.py::"
        "test_estimators_with_a_known_normaliser_are_unbiased_for_the_kl_gradient",
    ),
)
def t8a(coefficients: Coefficients) -> None:
    """Coefficients per group, the mean of gKL/n and the mean gradient."""
    for problem in (GENERIC, *random_toys(6, seed=8, sizes=(2, 3))):
        require_equal(mean_gradient(problem, 3, coefficients), kl_ascent(problem), "mean of GDC++")
        require_equal(ascent(problem, 3, generalized_kl), kl_ascent(problem), "gradient of the mean of gKL/n")
    mean = mean_over_groups(GENERIC.proposal, 3, lambda group: generalized_kl_value(GENERIC, group))
    require_equal(mean, kl(GENERIC.posterior, GENERIC.policy), "mean of gKL/n")
    for group in ordered_groups(4, 3):
        alphas, betas = [GENERIC.target_ratio[y] for y in group], [GENERIC.policy_ratio[y] for y in group]
        axes = [Dual(b, tuple(b * (i == j) for j in range(3))) for i, b in enumerate(betas)]
        slopes = tuple(-slope for slope in generalized_kl(alphas, axes).slopes)
        require_equal(tuple(coefficients(alphas, betas)), slopes, "−∂(gKL/n)/∂ log q of a group")


def generalized_kl_value(problem: Toy, group: Group) -> LogNumber:
    """gKL(α ‖ β)/n of a group."""
    terms = [mass_term(problem.target_ratio[y], problem.policy_ratio[y], log) for y in group]
    return LogNumber.of(summed(terms) / len(group))


def weighted_brain(alphas: Rationals, betas: Rationals) -> Vector:
    """Ā (α̂ − β̂)."""
    return tuple(sum(alphas, Fraction(0)) / len(alphas) * c for c in brain_coefficients(alphas, betas))


@claim(
    "T8b",
    "weighted BRAIn Ā(α̂ − β̂) is unbiased for −∇ of the weighted divergence D̃_n = E[Ā D(Y)]",
    source="docs/theory.md T8",
    method="exact: all ordered groups; dual numbers",
    case="K=4, n=3 and random toys",
    subject=weighted_brain,
    mutants={
        "not weighted": brain_coefficients,
        "A for Ā": lambda a, b: tuple(3 * c for c in weighted_brain(a, b)),
        "B̄ for Ā": lambda a, b: tuple(sum(b, Fraction(0)) / 3 * c for c in brain_coefficients(a, b)),
        "GDC++": gdcpp_coefficients,
    },
    code=("brain_core.weighted_brain_coefficients",),
)
def t8b(coefficients: Coefficients) -> None:
    """E Σ c h against the derivative of E[Ā D(Y)]."""
    for problem in (GENERIC, *random_toys(6, seed=9, sizes=(2, 3))):
        weighted = ascent(problem, 3, lambda a, b: moving_divergence(a, b) * (sum(a, Fraction(0)) / len(a)))
        require_equal(mean_gradient(problem, 3, coefficients), weighted, "mean of weighted BRAIn")


def weighted_rloo(alphas: Rationals, betas: Rationals) -> Vector:
    """(α_i − β_i · mean of the others' α)/n."""
    others = [(sum(alphas) - a) / (len(alphas) - 1) for a in alphas]
    return tuple((a - b * o) / len(alphas) for a, b, o in zip(alphas, betas, others, strict=True))


def show_rloo_differs_off_policy() -> None:
    """Off-policy the two are different estimators: on this group of two the coefficients are not proportional."""
    alphas, betas = (Fraction(3), Fraction(1)), (Fraction(1, 2), Fraction(2))
    require_equal(weighted_brain(alphas, betas), (Fraction(11, 10), Fraction(-11, 10)), "weighted BRAIn")
    require_equal(weighted_rloo(alphas, betas), (Fraction(5, 4), Fraction(-5, 2)), "importance-weighted RLOO")


@claim(
    "T8c",
    "on-policy, weighted BRAIn is (n − 1)/n times RLOO group by group, and in the mean (n − 1)/n times −∇KL",
    source="docs/theory.md T8",
    method="exact: all ordered groups",
    case="K=4, n=2, 3, 4",
    subject=lambda n: Fraction(n - 1, n),
    mutants={
        "no factor": lambda n: Fraction(1),
        "n/(n − 1)": lambda n: Fraction(n, n - 1),
        "(n − 2)/n": lambda n: Fraction(n - 2, n),
    },
    counterexamples={"on-policy": show_rloo_differs_off_policy},
    code=("brain_core.weighted_brain_coefficients", "brain_core.importance_weighted_rloo_coefficients"),
    tests=(
        "tests/brain_core/test_identities.py::test_weighted_brain_on_policy_is_importance_weighted_rloo_up_to_a_factor",
    ),
)
def t8c(factor: Callable[[int], Fraction]) -> None:
    """Every group, and the mean; RLOO itself is unbiased."""
    for size in (2, 3, 4):
        for group in itertools.combinations_with_replacement(range(4), size):
            alphas, betas = [ON_POLICY.target_ratio[y] for y in group], [ON_POLICY.policy_ratio[y] for y in group]
            rloo = weighted_rloo(alphas, betas)
            require_equal(weighted_brain(alphas, betas), tuple(factor(size) * c for c in rloo), "the two, on-policy")
        mean = mean_gradient(ON_POLICY, size, weighted_brain)
        require_equal(mean, tuple(factor(size) * slope for slope in kl_ascent(ON_POLICY)), "mean on-policy")
        require_equal(mean_gradient(GENERIC, size, weighted_rloo), kl_ascent(GENERIC), "mean of RLOO off-policy")


def show_other_proposals_give_other_means() -> None:
    """With the target as proposal weighted BRAIn is BRAIn, and its mean is farther from −1 than −7/8."""
    means = [gaussian_moments(name, 0.0, 8).mean for name in ("brain_weighted", "brain")]
    require_close(means[0], means[1], 1e-10, "weighted BRAIn and BRAIn where α is 1")
    require_close(means[0], -0.7676865528, 1e-10, "their mean")


@claim(
    "T8d",
    "so in the Gaussian toy its on-policy mean is −(n − 1)/n, −7/8 at n = 8, where −∇KL is −1",
    source="docs/theory.md T8",
    method="quadrature",
    case="N(0,1) from N(1,1), n = 2, 3, 8",
    tolerance=1e-10,
    subject=lambda n: (n - 1) / n,
    mutants={"unbiased": lambda n: 1.0, "(n − 1)/(n + 1)": lambda n: (n - 1) / (n + 1)},
    counterexamples={"on-policy": show_other_proposals_give_other_means},
    code=("toy.gaussian_moments", "brain_core.weighted_brain_coefficients"),
)
def t8d(factor: Callable[[int], float]) -> None:
    """Means by quadrature; importance-weighted RLOO, which is unbiased, gives −1."""
    for size in (2, 3, 8):
        require_close(gaussian_moments("brain_weighted", 1.0, size).mean, -factor(size), 1e-10, f"mean at n = {size}")
        unbiased = gaussian_moments("importance_weighted_rloo", 1.0, size).mean
        require_close(unbiased, -1.0, 1e-10, f"mean of RLOO at n = {size}")


def resampled(problem: Toy, size: int) -> Vector:
    """q_SIR(y) = n s(y) E[α̂_1 | y_1 = y]: the law of sampling-importance-resampling, by the law of the others' sum."""
    return mean_self_normalized(problem.target_ratio, problem.proposal, size)


def likelihood_slopes(problem: Toy, policy: Vector, size: int) -> Vector:
    """The gradient in logits of E Σ α̂ log q, the mean of eq. (5), at a policy."""
    moving = in_logits(policy)

    def value(group: Group) -> Dual:
        weights = proportional(*(problem.target_ratio[y] for y in group))
        terms = [Dual(Fraction(0), moving[y].log().slopes) * w for w, y in zip(weights, group, strict=True)]
        total: Dual = summed(terms)
        return total

    mean = mean_over_multisets(problem.proposal, size, value)
    return mean.slopes if isinstance(mean, Dual) else ()


def show_brain_keeps_the_target() -> None:
    """With the baseline the target is stationary and the SIR law is not: the first logit of it would move."""
    at_target = GENERIC._replace(policy=GENERIC.posterior)
    require_equal(mean_gradient(at_target, 3, brain_coefficients), (0,) * 4, "mean of BRAIn at the target")
    law = resampled(GENERIC, 3)
    baseline = mean_self_normalized(ratio(law, GENERIC.proposal), GENERIC.proposal, 3)
    found = mean_gradient(GENERIC._replace(policy=law), 3, brain_coefficients)
    require_equal(found, tuple(a - b for a, b in zip(law, baseline, strict=True)), "mean of BRAIn at the SIR law")
    require_decimals(found[0], "0.0237803", "its first logit")


Law = Callable[[Toy, int], Vector]


@claim(
    "T9",
    "without the baseline the fixed point is the law of sampling-importance-resampling, not the target",
    source="docs/theory.md T9",
    method="exact: all multisets; law of the sum of the others",
    case="K=4, n=1, 2, 3",
    subject=resampled,
    mutants={
        "the target": lambda problem, size: problem.posterior,
        "the proposal": lambda problem, size: problem.proposal,
        "of one sample more": lambda problem, size: resampled(problem, size + 1),
        "without the factor n": lambda problem, size: tuple(q / (size + 1) for q in resampled(problem, size)),
    },
    counterexamples={"no baseline": show_brain_keeps_the_target},
    code=("brain_core.snis_coefficients",),
    note="E Σ α̂ log q is concave in logits, so the stationary policy is its only maximiser.",
)
def t9(fixed_point: Law) -> None:
    """Stationary where claimed, a distribution, and not the target."""
    for size in (1, 2, 3):
        for problem in (GENERIC, *random_toys(6, seed=10, sizes=(2, 3))):
            policy = fixed_point(problem, size)
            require_equal(sum(policy), 1, "sum of the fixed point")
            require_equal(likelihood_slopes(problem, policy, size), (0,) * problem.size, "gradient of E of eq. (5)")
        require(fixed_point(GENERIC, size) != GENERIC.posterior, "the fixed point is not the target")


@claim(
    "T9a",
    "that law stays near the proposal: q_SIR ≤ n q' everywhere, so KL(q_SIR‖q') ≤ log n",
    source="docs/theory.md T9",
    method="exact; KL by interval arithmetic",
    case="n ≤ 4; 20 random toys, a sharp one",
    tolerance=1e-12,
    subject=lambda n: n,
    mutants={
        "n − 1": lambda n: n - 1,
        "n + 1": lambda n: n + 1,
        "n²": lambda n: n * n,
        "√n": lambda n: math.isqrt(100 * n) * Fraction(1, 10),
    },
)
def t9a(factor: Callable[[int], Fraction]) -> None:
    """Both bounds; nearly attained where the target sits on a completion of small probability."""
    sharp = Toy(proportional(1, 999), (Fraction(10**9), Fraction(1)), proportional(1, 1), proportional(1, 999))
    for size in (1, 2, 3, 4):
        nearest = resampled(sharp, size)[0] / sharp.proposal[0]
        require(factor(size) * Fraction(99, 100) <= nearest, f"{factor(size)} s is nearly attained at n = {size}")
        for problem in (GENERIC, sharp, *random_toys(20, seed=11)):
            policy = resampled(problem, size)
            for q, s in zip(policy, problem.proposal, strict=True):
                require(q <= factor(size) * s, f"q_SIR ≤ {factor(size)} s at n = {size}")
            require(upper_kl(policy, problem.proposal) <= math.log(size) + 1e-12, f"KL ≤ log {size}")


def upper_kl(left: Vector, right: Vector) -> float:
    """A certified upper bound of KL(left ‖ right)."""
    context = mpmath.iv
    total = context.mpf(0)
    for a, b in zip(left, right, strict=True):
        total += (
            context.mpf(a.numerator) / a.denominator * context.log(context.mpf((a / b).numerator) / (a / b).denominator)
        )
    return float(total.b)


def nca_slopes(problem: Toy, ratios: Vector, size: int) -> Vector:
    """The gradient of E[−Σ α̂ log σ(h) − (1/n) Σ log σ(−h)] in the free h(y) = log ratio(y), by dual numbers."""
    moving = [Dual(r, tuple(r * (j == k) for j in range(len(ratios)))) for k, r in enumerate(ratios)]
    wins = [(r / (r + 1)).log() for r in moving]
    losses = [(r + 1).reciprocal().log() for r in moving]

    def value(group: Group) -> Dual:
        weights = proportional(*(problem.target_ratio[y] for y in group))
        terms = [wins[y] * -w + losses[y] * Fraction(-1, size) for w, y in zip(weights, group, strict=True)]
        total: Dual = summed(terms)
        return total

    mean = mean_over_multisets(problem.proposal, size, value)
    return mean.slopes if isinstance(mean, Dual) else ()


@claim(
    "T9b",
    "the NCA loss has the same minimiser: log q/q' of the SIR law, normalised of itself",
    source="docs/theory.md T9",
    method="exact: all multisets; dual numbers",
    case="K=4, n=2, 3; random toys",
    subject=resampled,
    mutants={
        "the target": lambda problem, size: problem.posterior,
        "the proposal": lambda problem, size: problem.proposal,
        "n − 1 times": lambda problem, size: tuple(q * Fraction(size - 1, size) for q in resampled(problem, size)),
    },
)
def t9b(fixed_point: Law) -> None:
    """Every derivative in the free log-ratios is 0 there."""
    for size in (2, 3):
        for problem in (GENERIC, *random_toys(6, seed=12, sizes=(2, 3))):
            slopes = nca_slopes(problem, ratio(fixed_point(problem, size), problem.proposal), size)
            require_equal(slopes, (0,) * problem.size, "gradient of the NCA loss")


STEEP = Toy(
    proportional(4, 3, 2, 1),
    (Fraction(1, 2), Fraction(1), Fraction(3), Fraction(15)),
    proportional(4, 3, 2, 1),
    proportional(4, 3, 2, 1),
)
"""The target (2, 3, 6, 15)/26 under the proposal (4, 3, 2, 1)/10."""


def float_kl(left: Rationals, right: Rationals) -> float:
    """KL(left ‖ right) in float64."""
    return math.fsum(float(a) * math.log(a / b) for a, b in zip(left, right, strict=True) if a)


DISTANCES = {1: 0.807, 2: 0.443, 4: 0.196, 8: 0.0653, 32: 0.00365}
"""KL(π ‖ q_SIR) by n in that example."""


@claim(
    "T9c",
    "the bias of dropping the baseline is large for small n: KL(π‖q_SIR) = .807, .443, .196, .065 at n = 1, 2, 4, 8",
    source="docs/theory.md T9",
    method="exact law of the sum, then floats",
    case="K=4, n = 1, 2, 4, 8, 32",
    tolerance=5e-4,
    subject=resampled,
    mutants={
        "of one sample more": lambda problem, size: resampled(problem, size + 1),
        "the proposal": lambda problem, size: problem.proposal,
    },
    slow=lambda fixed_point: require_close(
        float_kl(STEEP.posterior, fixed_point(STEEP, 128)), 0.00020, 5e-6, "KL(π ‖ q_SIR) at n = 128"
    ),
)
def t9c(fixed_point: Law) -> None:
    """Against numbers to the digits given."""
    for size, value in DISTANCES.items():
        tolerance = 0.5 * 10 ** (math.floor(math.log10(value)) - 2)
        require_close(float_kl(STEEP.posterior, fixed_point(STEEP, size)), value, tolerance, f"n = {size}")


Misreport = Callable[[Toy, Vector], tuple[Vector, Vector]]
"""From a problem and wrong proposal probabilities to the α and β that training would use."""


def in_both(problem: Toy, reported: Vector) -> tuple[Vector, Vector]:
    """The wrong proposal in α and in β."""
    return ratio(problem.posterior, reported), ratio(problem.policy, reported)


def mean_divergence(problem: Toy, alphas: Vector, betas: Vector, size: int) -> LogNumber:
    """E D_KL(α̂ ‖ β̂) over groups from the true proposal; a group without target mass contributes 0."""
    return LogNumber.of(mean_over_multisets(problem.proposal, size, lambda g: divergence(at(alphas, g), at(betas, g))))


def show_a_weight_of_zero_hides_a_completion() -> None:
    """A completion that is given weight 0 in both, as if its proposal were infinite, may keep any probability."""
    target, policy = proportional(1, 1, 2), proportional(1, 1, 1)
    problem = Toy(target, (Fraction(1),) * 3, policy, proportional(1, 1, 1))
    kept = (1, 1, 0)
    alphas, betas = (tuple(v * k for v, k in zip(side, kept, strict=True)) for side in (target, policy))
    require_equal(mean_divergence(problem, alphas, betas, 2), 0, "divergence at q ≠ π")
    require(policy != target, "the policy is not the target")


def show_a_wrong_proposal_moves_the_value() -> None:
    """Away from the zero the gradient is another one: the first logit's differs from that of the true proposal."""
    alphas, betas = in_both(GENERIC, GENERIC.prior)
    misled = mean_gradient(GENERIC, 3, brain_coefficients, (alphas, betas))
    sides = (mean_self_normalized(side, GENERIC.proposal, 3) for side in (alphas, betas))
    require_equal(misled, tuple(a - b for a, b in zip(*sides, strict=True)), "mean with a misreported proposal")
    require_decimals(misled[0], "0.0113600", "its first logit")
    require_decimals(mean_gradient(GENERIC, 3, brain_coefficients)[0], "0.0083552", "−∇D_3 of the true one")


@claim(
    "T10",
    "with any wrong proposal m > 0 in both α and β, the only zero of the objective is still the target",
    source="docs/theory.md T10",
    method="exact: all multisets, logarithms of rationals",
    case="K=4, n=3; 30 random toys with random m, n=2",
    subject=in_both,
    mutants={
        "in α only": lambda problem, m: (ratio(problem.posterior, m), problem.policy_ratio),
        "in β only": lambda problem, m: (problem.target_ratio, ratio(problem.policy, m)),
    },
    counterexamples={
        "0 < m < ∞": show_a_weight_of_zero_hides_a_completion,
        "groups come from a proposal with full support": show_target_outside_the_proposal,
        "only the zero is claimed": show_a_wrong_proposal_moves_the_value,
    },
    assumptions=("groups come from a proposal with full support", "0 < m < ∞"),
    code=("brain_core.target_log_ratio", "brain_core.policy_log_ratio"),
    tests=("tests/brain_core/test_identities.py::test_proposal_enters_only_through_both_weights_alike",),
)
def t10(ratios: Misreport) -> None:
    """0 at the target, positive elsewhere."""
    reports = [toy.proposal for toy in random_toys(30, seed=14, sizes=(3,))]
    cases = [
        (GENERIC, GENERIC.prior, 3),
        *((toy, m, 2) for toy, m in zip(random_toys(30, seed=13, sizes=(3,)), reports, strict=True)),
    ]
    for problem, reported, size in cases:
        at_target = problem._replace(policy=problem.posterior)
        require_equal(mean_divergence(at_target, *ratios(at_target, reported), size), 0, "objective at the target")
        if problem.policy != problem.posterior:
            require(mean_divergence(problem, *ratios(problem, reported), size) > 0, "objective away from the target")


def tilted(problem: Toy, used: Vector) -> Vector:
    """q ∝ s φ: where training ends if φ stands in for α."""
    return proportional(*(s * value for s, value in zip(problem.proposal, used, strict=True)))


def require_minimiser(problem: Toy, used: Vector, policy: Vector, size: int = 3) -> None:
    """Require that the objective with α̂ ∝ `used` vanishes at this policy, and that the target is not stationary."""
    betas = ratio(policy, problem.proposal)
    require_equal(mean_divergence(problem, used, betas, size), 0, "objective at the minimiser")
    require_equal(
        mean_gradient(problem, size, brain_coefficients, (used, betas)),
        (0,) * problem.size,
        "gradient at the minimiser",
    )
    at_target = ratio(problem.posterior, problem.proposal)
    require(any(mean_gradient(problem, size, brain_coefficients, (used, at_target))), "the target is not stationary")


Tilt = Callable[[Toy, Vector], Vector]

WRONG_TILTS: dict[str, Tilt] = {
    "the target": lambda problem, used: problem.posterior,
    "∝ φ": lambda problem, used: proportional(*used),
    "∝ p φ": lambda problem, used: proportional(*(p * value for p, value in zip(problem.prior, used, strict=True))),
}


@claim(
    "T10a",
    "if α is replaced by φ(y) and β is right, training ends at q ∝ q' φ; softmax(r) off-prior ends at q' e^r",
    source="docs/theory.md T10",
    method="exact: all multisets and ordered groups",
    case="K=4, n=3; random toys",
    subject=tilted,
    mutants=WRONG_TILTS,
)
def t10a(minimiser: Tilt) -> None:
    """φ = e^r, eq. (21) with another proposal than the prior, and arbitrary φ."""
    require_minimiser(GENERIC, GENERIC.goodness, minimiser(GENERIC, GENERIC.goodness))
    require_equal(minimiser(GENERIC, GENERIC.goodness), proportional(2, 10, 4, 9), "q' e^r of the generic instance")
    for problem in random_toys(10, seed=15, sizes=(3,)):
        used = tuple(a + k + 1 for k, a in enumerate(problem.target_ratio))
        require_minimiser(problem, used, minimiser(problem, used), size=2)


def show_clipping_above_the_largest_is_harmless() -> None:
    """A bound that no α reaches changes nothing; the next lower one does."""
    largest = max(GENERIC.target_ratio)
    require_equal(clipped(GENERIC, largest), GENERIC.posterior, "clipped at the largest α")
    require(clipped(GENERIC, largest / 2) != GENERIC.posterior, "clipped at half of it")


def clipped(problem: Toy, bound: Fraction) -> Vector:
    """q ∝ s min(α, c)."""
    return proportional(*(s * min(a, bound) for s, a in zip(problem.proposal, problem.target_ratio, strict=True)))


@claim(
    "T10b",
    "clipping α at c moves the fixed point to q ∝ q' min(α, c): a bias that is known beforehand",
    source="docs/theory.md T10",
    method="exact: all multisets and ordered groups",
    case="K=4, n=3, c = 1",
    subject=clipped,
    mutants={
        "the target": lambda problem, bound: problem.posterior,
        "clipped target": lambda problem, bound: proportional(*(min(p, bound) for p in problem.posterior)),
        "clipped below": lambda problem, bound: proportional(
            *(s * max(a, bound) for s, a in zip(problem.proposal, problem.target_ratio, strict=True))
        ),
    },
    counterexamples={"some α exceeds c": show_clipping_above_the_largest_is_harmless},
)
def t10b(minimiser: Callable[[Toy, Fraction], Vector]) -> None:
    """The zero, and the total variation between it and the target."""
    used = tuple(min(a, Fraction(1)) for a in GENERIC.target_ratio)
    policy = minimiser(GENERIC, Fraction(1))
    require_minimiser(GENERIC, used, policy)
    distance = sum(abs(a - b) for a, b in zip(policy, GENERIC.posterior, strict=True)) / 2
    require_equal(distance, Fraction(7, 52), "total variation to the target")


def root(value: Fraction, power: Fraction) -> Fraction:
    """A rational power that is rational.

    Raises:
        ValueError: The power is not a whole number or half of one, or the root is not rational.
    """
    up, down = (math.isqrt(side) if power.denominator == 2 else side for side in value.as_integer_ratio())
    found = Fraction(up, down) ** power.numerator
    if found**power.denominator != value**power.numerator:
        raise ValueError(f"{value} to the {power} is not rational")
    return found


SQUARES = Toy(proportional(4, 9, 16), (Fraction(1),) * 3, proportional(9, 1, 4), proportional(1, 4, 4))
"""Target (4, 9, 16)/29, policy (9, 1, 4)/14, proposal (1, 4, 4)/9: up to factors, √α and √β are rational."""


@claim(
    "T10c",
    "tempering α to α^κ moves the fixed point to q ∝ q'^{1−κ} π^κ, between proposal and target for κ < 1",
    source="docs/theory.md T10",
    method="exact: all multisets and ordered groups",
    case="K=3 and 4, κ = ½ and 2",
    subject=lambda s, target, power: proportional(
        *(root(a, 1 - power) * root(b, power) for a, b in zip(s, target, strict=True))
    ),
    mutants={
        "the target": lambda s, target, power: proportional(*target),
        "π^κ alone": lambda s, target, power: proportional(*(root(b, power) for b in target)),
        "exponents swapped": lambda s, target, power: proportional(
            *(root(a, power) * root(b, 1 - power) for a, b in zip(s, target, strict=True))
        ),
    },
)
def t10c(formula: Callable[[Vector, Vector, Fraction], Vector]) -> None:
    """κ = ½ on squares, κ = 2 on the generic instance; scales cancel, so weights stand for the probabilities."""
    proposal, target = (tuple(map(Fraction, weights)) for weights in ((1, 4, 4), (4, 9, 16)))
    half = formula(proposal, target, Fraction(1, 2))
    require_minimiser(SQUARES, (Fraction(2), Fraction(3, 2), Fraction(2)), half)
    twice = formula(GENERIC.proposal, GENERIC.posterior, Fraction(2))
    require_minimiser(GENERIC, tuple(a**2 for a in GENERIC.target_ratio), twice)

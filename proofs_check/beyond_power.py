"""T11: the family of all powers of the weights: DPO, InfoNCA, VarGrad, argmax and RLOO are members or limits of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from proofs_check.beyond_estimators import ON_POLICY, SQUARES, Rationals, mean_gradient, root, summed
from proofs_check.beyond_kl import entropy
from proofs_check.claims import claim, require, require_equal
from proofs_check.enumeration import Group, mean_over_groups, mean_over_multisets, ordered_groups, probability
from proofs_check.exact import Dual, LogNumber, in_logits, log
from proofs_check.groups import kl
from proofs_check.instances import GENERIC, Toy, Vector, proportional, random_toys, ratio

HALF = Fraction(1, 2)

PRIOR_SAMPLED = GENERIC._replace(proposal=GENERIC.prior)


def weights(ratios: Rationals, power: Fraction | int = 1) -> Vector:
    """Self-normalised weights ∝ ratio^power."""
    return proportional(*(root(r, Fraction(power)) for r in ratios))


def lifted(value: Dual, power: Fraction) -> Dual:
    """A power of a rational number with derivatives."""
    base = LogNumber.of(value.value).rational
    raised = root(base, power)
    return Dual(raised, tuple(power * raised / base * slope for slope in value.slopes))


def scaled(ratios: Vector) -> Vector:
    """Ratios to the first, so that squares up to a factor are squares."""
    return tuple(r / ratios[0] for r in ratios)


def power_ascent(problem: Toy, size: int, power: Fraction) -> Vector:
    """−∇D_{n,τ} in logits, by dual numbers over multisets."""
    alphas, first = scaled(problem.target_ratio), problem.policy_ratio[0]
    betas = [q / (s * first) for q, s in zip(in_logits(problem.policy), problem.proposal, strict=True)]
    moving = [lifted(b, power) for b in betas]

    def value(group: Group) -> Dual:
        whole = summed([moving[y] for y in group])
        found = weights([alphas[y] for y in group], power)
        total: Dual = summed([(moving[y] / whole / a).log() * -a for a, y in zip(found, group, strict=True)])
        return total

    mean = mean_over_multisets(problem.proposal, size, value)
    return tuple(-slope for slope in mean.slopes) if isinstance(mean, Dual) else ()


def power_divergence(problem: Toy, size: int, power: Fraction | int) -> LogNumber:
    """D_{n,τ}: the mean of D_KL(α̂ ‖ β̂) with both weights ∝ ratio^τ."""
    alphas, betas = scaled(problem.target_ratio), scaled(problem.policy_ratio)

    def value(group: Group) -> LogNumber:
        return kl(weights([alphas[y] for y in group], power), weights([betas[y] for y in group], power))

    return LogNumber.of(mean_over_multisets(problem.proposal, size, value))


def brain_of_power(alphas: Rationals, betas: Rationals, power: Fraction) -> Vector:
    """τ (α̂ − β̂)."""
    return tuple(power * (a - b) for a, b in zip(weights(alphas, power), weights(betas, power), strict=True))


PowerCoefficients = Callable[[Rationals, Rationals, Fraction], Vector]


def show_one_completion_teaches_nothing() -> None:
    """With n = 1 both weights are 1: the objective is 0 at a policy that is not the target."""
    require_equal(power_divergence(GENERIC, 1, 2), 0, "D_{1,2}")
    require(GENERIC.policy != GENERIC.posterior, "the policy is not the target")


def show_power_zero_teaches_nothing() -> None:
    """With τ = 0 both weights are uniform."""
    require_equal(power_divergence(GENERIC, 3, 0), 0, "D_{3,0}")


@claim(
    "T11",
    "D_{n,τ}, with α̂ ∝ α^τ and β̂ ∝ β^τ, has the target as its only zero, and τ(α̂ − β̂) ascends −D_{n,τ}",
    source="docs/theory.md T11",
    method="exact: all ordered groups; dual numbers",
    case="K=4, n=3, τ = 1, 2, 3; K=3, τ = ½; random toys",
    subject=brain_of_power,
    mutants={
        "without the factor τ": lambda a, b, power: tuple(c / power for c in brain_of_power(a, b, power)),
        "power on the target only": lambda a, b, power: tuple(
            power * (x - y) for x, y in zip(weights(a, power), weights(b), strict=True)
        ),
        "power on the policy only": lambda a, b, power: tuple(
            power * (x - y) for x, y in zip(weights(a), weights(b, power), strict=True)
        ),
        "τ + 1": lambda a, b, power: brain_of_power(a, b, power + 1),
    },
    counterexamples={"n ≥ 2": show_one_completion_teaches_nothing, "τ > 0": show_power_zero_teaches_nothing},
    code=("brain_core.brain_coefficients", "brain_core.brain_objective"),
    tests=("tests/brain_core/test_identities.py::test_power_on_a_group_is_the_same_as_scaling_both_log_ratios",),
)
def t11(coefficients: PowerCoefficients) -> None:
    """The mean of the coefficients' gradient, and the sign of the objective."""
    cases = [(GENERIC, 3, Fraction(power)) for power in (1, 2, 3)]
    cases += [(SQUARES, 3, HALF), *((toy, 2, Fraction(2)) for toy in random_toys(12, seed=18, sizes=(3,)))]
    for problem, size, power in cases:
        require_equal(mean_of_power(problem, size, power, coefficients), power_ascent(problem, size, power), "mean")
        at_target = problem._replace(policy=problem.posterior)
        require_equal(power_divergence(at_target, size, power), 0, "objective at the target")
        require(power_divergence(problem, size, power) > 0, "objective elsewhere")


def mean_of_power(problem: Toy, size: int, power: Fraction, coefficients: PowerCoefficients) -> Vector:
    """E Σ c ∇ log q in logits, over ordered groups."""
    ratios = scaled(problem.target_ratio), scaled(problem.policy_ratio)
    return mean_gradient(problem, size, lambda a, b: coefficients(a, b, power), ratios)


def mean_entropy(problem: Toy, size: int, power: int) -> LogNumber:
    """The mean entropy of the weights ∝ goodness^τ over groups from the proposal."""
    goodness = problem.goodness
    found = mean_over_multisets(
        problem.proposal, size, lambda group: entropy(weights([goodness[y] for y in group], power))
    )
    return LogNumber.of(found)


Loss = Callable[[Toy, int, int], LogNumber]
"""From a problem with goodness e^{r/β}, the group size and β to the value of a loss."""


def divergence_and_entropy(problem: Toy, size: int, power: int) -> LogNumber:
    """D_{n,τ} + E[H]."""
    return power_divergence(problem, size, power) + mean_entropy(problem, size, power)


WRONG_LOSSES: dict[str, Loss] = {
    "power 1": lambda problem, size, power: power_divergence(problem, size, 1) + mean_entropy(problem, size, power),
    "without the entropy": power_divergence,
    "target ∝ p e^r": lambda problem, size, power: (
        power_divergence(problem._replace(goodness=tuple(g**power for g in problem.goodness)), size, power)
        + mean_entropy(problem, size, power)
    ),
    "pairs from the policy": lambda problem, size, power: divergence_and_entropy(
        problem._replace(proposal=problem.policy), size, power
    ),
}


def dpo_loss(problem: Toy, power: int) -> LogNumber:
    """E of −log σ(β (h_w − h_l)), h = log q/p: ordered pairs from the prior, labels drawn by Bradley–Terry on r."""
    ratios = ratio(problem.policy, problem.prior)
    total = LogNumber.of(0)
    for first, second in ordered_groups(problem.size, 2):
        chance = problem.prior[first] * problem.prior[second]
        strengths = [problem.goodness[y] ** power for y in (first, second)]
        for winner, loser, strength in ((first, second, strengths[0]), (second, first, strengths[1])):
            sigmoid = 1 / (1 + (ratios[loser] / ratios[winner]) ** power)
            total += log(sigmoid) * (-chance * strength / sum(strengths))
    return total


def show_pairs_from_elsewhere() -> None:
    """p = (½, ½), e^r = 1, q = (1, 2)/3: on a pair from q' = (1, 3)/4 DPO's label is ½, α̂ = (¾, ¼) and β̂ = (3, 2)/5."""
    even, proposal = proportional(1, 1), proportional(1, 3)
    problem = Toy(even, (Fraction(1), Fraction(1)), proportional(1, 2), proposal)
    require_equal(weights(problem.target_ratio), proportional(3, 1), "α̂")
    require_equal(weights(problem.policy_ratio), proportional(3, 2), "β̂")
    chance = 2 * proposal[0] * proposal[1]
    loss = chance * (log(Fraction(9, 2)) / 2) + (1 - chance) * log(2)
    value = power_divergence(problem, 2, 1) + entropy(proportional(3, 1)) * chance + log(2) * (1 - chance)
    gap = log(5) - Fraction(3, 4) * log(3) - log(2) / 4 - log(Fraction(9, 2)) / 2
    require_equal(value - loss, chance * gap, "D + E[H] − loss")
    require(gap != 0, "both are equal")


def show_hard_labels_have_no_target() -> None:
    """With labels that always name the larger reward, the loss falls for ever along q ∝ p e^{λr}."""
    values = [hard_loss(power) for power in (0, 1, 2, 8)]
    require(all(a > b for a, b in itertools.pairwise(values)), "the loss falls")
    ties = sum((p**2 for p in GENERIC.prior), start=Fraction(0))
    require_equal(ties, Fraction(39, 121), "chance of a pair of equal completions")
    rest = [gap for gap in itertools.starmap(pair_and_gap, ordered_groups(4, 2)) if gap[1] < 1]
    excess = sum((chance * gap**80 for chance, gap in rest), start=Fraction(0))
    require(log(2) * ties < values[-1], "the loss is above log 2 times that chance")
    require(excess < Fraction(1, 10**8), "and at λ = 80 within 1e-8 of it, since log(1 + x) ≤ x")


def pair_and_gap(first: int, second: int) -> tuple[Fraction, Fraction]:
    """The chance of an ordered pair from the generic prior, and its smaller goodness by the larger."""
    strengths = [GENERIC.goodness[y] for y in (first, second)]
    return GENERIC.prior[first] * GENERIC.prior[second], min(strengths) / max(strengths)


def hard_loss(power: int) -> LogNumber:
    """DPO's loss on pairs from the prior with the better one as winner, at q ∝ p g^λ."""
    pairs = itertools.starmap(pair_and_gap, ordered_groups(4, 2))
    return sum((log(1 + gap**power) * chance for chance, gap in pairs), start=LogNumber.of(0))


@claim(
    "T11a",
    "DPO(β) with labels drawn from Bradley–Terry, on pairs from p, is D_{2,β} + E[H] with target ∝ p e^{r/β}",
    source="docs/theory.md T11",
    method="exact: all labelled pairs, logarithms of rationals",
    case="K=4, β = 1, 2, 3; random toys",
    subject=divergence_and_entropy,
    mutants=WRONG_LOSSES,
    counterexamples={
        "pairs come from the prior": show_pairs_from_elsewhere,
        "labels are drawn from Bradley–Terry on the reward": show_hard_labels_have_no_target,
    },
    assumptions=("pairs come from the prior", "labels are drawn from Bradley–Terry on the reward"),
    code=("brain_core.dpo_objective", "brain_core.soft_label_dpo_objective"),
    tests=(
        "tests/brain_core/test_identities.py::test_dpo_with_bradley_terry_probabilities_as_labels_is_brain_on_the_pair",
    ),
)
def t11a(formula: Loss) -> None:
    """The loss over labelled ordered pairs against the divergence over multisets; Σ H is what no policy removes."""
    for power in (2, 1, 3):
        require_equal(formula(PRIOR_SAMPLED, 2, power), dpo_loss(PRIOR_SAMPLED, power), f"loss at β = {power}")
    for toy in random_toys(6, seed=19, sizes=(3,), largest=5):
        problem = toy._replace(proposal=toy.prior)
        require_equal(formula(problem, 2, 2), dpo_loss(problem, 2), "loss at β = 2")


def show_no_constant_fits_three_completions() -> None:
    """Where two gaps add up to a third, a constant ε wants the same gap thrice; BRAIn has no such clash."""
    strengths, kept = (Fraction(81), Fraction(9), Fraction(1)), 1 - Fraction(1, 10)
    wishes = [kept - weights(pair)[0] for pair in itertools.combinations(strengths, 2)]
    require_equal(wishes, [0, Fraction(-18, 205), 0], "cDPO's coefficients where both inner pairs are content")
    for pair in itertools.combinations(strengths, 2):
        require_equal(brain_of_power(pair, pair, Fraction(1)), (0, 0), "BRAIn's coefficients there")


@claim(
    "T11b",
    "conservative DPO has α̂ = (1 − ε, ε): it is BRAIn on the pair exactly if ε = σ(r_l − r_w), pair by pair",
    source="docs/theory.md T11",
    method="exact: all pairs; dual numbers",
    case="K=4, β = 1, 2",
    subject=lambda winner, loser: loser / (winner + loser),
    mutants={
        "a constant": lambda winner, loser: Fraction(1, 10),
        "DPO": lambda winner, loser: Fraction(0),
        "σ(r_w − r_l)": lambda winner, loser: winner / (winner + loser),
    },
    counterexamples={"ε may vary": show_no_constant_fits_three_completions},
    code=("brain_core.soft_label_dpo_coefficients",),
    tests=("tests/brain_core/test_identities.py::test_conservative_dpo_is_dpo_with_a_share_of_the_labels_flipped",),
)
def t11b(share: Callable[[Fraction, Fraction], Fraction]) -> None:
    """−∂/∂log q of −(1−ε) log σ(βΔ) − ε log σ(−βΔ) against β (α̂ − β̂) of the pair."""
    ratios = ratio(GENERIC.policy, GENERIC.prior)
    for power in (1, 2):
        for winner, loser in itertools.permutations(range(4), 2):
            strengths = [GENERIC.goodness[y] ** power for y in (winner, loser)]
            flipped = share(*strengths)
            raised = [
                lifted(Dual(ratios[y], (ratios[y] * (i == 0), ratios[y] * (i == 1))), Fraction(power))
                for i, y in enumerate((winner, loser))
            ]
            chances = [r / (raised[0] + raised[1]) for r in raised]
            loss = chances[0].log() * (flipped - 1) + chances[1].log() * -flipped
            pair = [GENERIC.goodness[y] for y in (winner, loser)], [ratios[y] for y in (winner, loser)]
            expected = brain_of_power(*pair, Fraction(power))
            require_equal(tuple(-slope for slope in loss.slopes), expected, f"coefficients of {winner} ≻ {loser}")


def infonca_loss(problem: Toy, size: int, power: int) -> LogNumber:
    """E of −Σ softmax(r/α)_i log softmax(β h)_i over ordered groups from the prior; e^{r/α} is goodness^β."""
    ratios = ratio(problem.policy, problem.prior)

    def value(group: Group) -> LogNumber:
        labels = [problem.goodness[y] ** power for y in group]
        scores = [ratios[y] ** power for y in group]
        terms = [log(score / sum(scores)) * (-label / sum(labels)) for label, score in zip(labels, scores, strict=True)]
        return sum(terms, start=LogNumber.of(0))

    return LogNumber.of(mean_over_groups(problem.prior, size, value))


@claim(
    "T11c",
    "InfoNCA(α, β) is D_{n,β} + E[H] with the prior as proposal and target ∝ p e^{r/(αβ)}",
    source="docs/theory.md T11",
    method="exact: all ordered groups, logarithms of rationals",
    case="K=4, n=3, β = 1, 2; K=3, n=2",
    subject=divergence_and_entropy,
    mutants=WRONG_LOSSES,
    code=("brain_core.brain_objective",),
    tests=("tests/brain_core/test_identities.py::test_brain_with_the_prior_as_proposal_is_infonca",),
    note="NCA is another loss, with another minimiser: T9b.",
)
def t11c(formula: Loss) -> None:
    """The cross-entropy loss over ordered groups against the divergence over multisets."""
    for power in (2, 1):
        require_equal(formula(PRIOR_SAMPLED, 3, power), infonca_loss(PRIOR_SAMPLED, 3, power), f"loss at β = {power}")
    for toy in random_toys(4, seed=20, sizes=(3,), largest=5):
        problem = toy._replace(proposal=toy.prior)
        require_equal(formula(problem, 2, 2), infonca_loss(problem, 2, 2), "loss at β = 2")


def half_variance(values: Sequence[Any]) -> Any:
    """½ of the variance over the group, its sum divided by n."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (2 * len(values))


@claim(
    "T11d",
    "as τ → 0, D(Y)/τ² tends to half the variance of log π/q over the group (VarGrad, REBEL; IPO's form at n = 2)",
    source="docs/theory.md T11",
    method="sympy: Taylor coefficients at τ = 0 for all log-ratios",
    case="n = 2, 3",
    subject=half_variance,
    mutants={
        "variance": lambda values: 2 * half_variance(values),
        "divided by n − 1": lambda values: half_variance(values) * len(values) / (len(values) - 1),
        "second moment": lambda values: sum(value**2 for value in values) / (2 * len(values)),
    },
    code=("brain_core.brain_objective",),
    tests=("tests/brain_core/test_identities.py::test_small_power_gives_half_the_variance_of_the_log_ratio",),
)
def t11d(limit: Callable[[Sequence[Any]], Any]) -> None:
    """The coefficients of 1 and τ are 0, that of τ² is the limit; n = 2 gives (Δr − Δh)²/8."""
    import sympy

    power = sympy.Symbol("t", positive=True)
    for size in (2, 3):
        targets, policies = sympy.symbols(f"a:{size}", real=True), sympy.symbols(f"b:{size}", real=True)
        totals = [sum(sympy.exp(power * v) for v in side) for side in (targets, policies)]
        logs = [
            power * (a - b) - sympy.log(totals[0]) + sympy.log(totals[1])
            for a, b in zip(targets, policies, strict=True)
        ]
        value = sum(sympy.exp(power * a) / totals[0] * term for a, term in zip(targets, logs, strict=True))
        first, second = (sympy.diff(value, power, order).subs(power, 0) for order in (1, 2))
        require(sympy.simplify(value.subs(power, 0)) == 0 == sympy.simplify(first), "lower orders vanish")
        claimed = limit([a - b for a, b in zip(targets, policies, strict=True)])
        require(sympy.expand(second / 2 - claimed) == 0, f"coefficient of τ² at n = {size}")
    gap = sympy.Symbol("gap")
    require(sympy.expand(limit([gap, sympy.Integer(0)]) - gap**2 / 8) == 0, "(Δr − Δh)²/8 at n = 2")


def variance_slopes(problem: Toy, size: int) -> tuple[LogNumber, ...]:
    """E over ordered groups of the gradient in logits of ½ Var(log q/π), the group held fixed."""
    logs = [log(q / p) for q, p in zip(problem.policy, problem.posterior, strict=True)]
    slots = [LogNumber.of(0)] * problem.size
    for group in ordered_groups(problem.size, size):
        values = [logs[y] for y in group]
        mean = summed(values) / size
        for y, value in zip(group, values, strict=True):
            slots[y] += (value - mean) * (probability(group, problem.proposal) / size)
    whole = summed(slots)
    return tuple(slot - whole * q for slot, q in zip(slots, problem.policy, strict=True))


def reverse_kl_slopes(problem: Toy) -> tuple[LogNumber, ...]:
    """∇KL(q ‖ π) in logits, by the product rule on Σ q log(q/π)."""
    slopes = [LogNumber.of(0)] * problem.size
    for moving, target in zip(in_logits(problem.policy), problem.posterior, strict=True):
        logarithm = (moving / target).log()
        for j in range(problem.size):
            slopes[j] += logarithm.value * moving.slopes[j] + moving.value * logarithm.slopes[j]
    return tuple(slopes)


def show_off_policy_is_another_direction() -> None:
    """Off-policy the mean gradient is no multiple of ∇KL(q‖π): the quotients of two logits' slopes differ."""
    found, reverse = variance_slopes(GENERIC, 3), reverse_kl_slopes(GENERIC)
    half_unit = Fraction(5, 10**6)
    for slope, other, printed in zip(found, reverse, ("0.55580", "0.36218", "1.84917", "0.62141"), strict=True):
        gap, size = slope - Fraction(printed) * other, max(other, -other)
        require(-half_unit * size <= gap <= half_unit * size, f"the quotient {printed} of two slopes")


@claim(
    "T11e",
    "on-policy that limit's mean gradient is (n − 1)/n ∇KL(q‖π): small τ is reverse-KL policy gradient",
    source="docs/theory.md T11",
    method="exact: all ordered groups, logarithms of rationals",
    case="K=4, n = 2, 3",
    subject=lambda n: Fraction(n - 1, n),
    mutants={
        "1": lambda n: Fraction(1),
        "n/(n − 1)": lambda n: Fraction(n, n - 1),
        "1/n": lambda n: Fraction(1, n),
        "opposite": lambda n: Fraction(1 - n, n),
    },
    counterexamples={"groups come from the policy itself": show_off_policy_is_another_direction},
    assumptions=("groups come from the policy itself",),
)
def t11e(factor: Callable[[int], Fraction]) -> None:
    """E of the variance's gradient against the product rule."""
    for size in (2, 3):
        expected = tuple(slope * factor(size) for slope in reverse_kl_slopes(ON_POLICY))
        require_equal(variance_slopes(ON_POLICY, size), expected, f"mean gradient at n = {size}")


def uniform_on_largest(values: Rationals) -> Vector:
    """Equal weights on all indices where the largest value stands."""
    return proportional(*(int(value == max(values)) for value in values))


def weighted_on_largest(densities: Rationals, goodness: Rationals) -> Vector:
    """Weights ∝ p/q' on all indices where the largest goodness stands."""
    return proportional(*(d * (g == max(goodness)) for d, g in zip(densities, goodness, strict=True)))


Limits = tuple[Callable[[Rationals], Vector], Callable[[Rationals, Rationals], Vector]]

TIED = ((Fraction(1), Fraction(3), Fraction(1, 2)), (Fraction(5), Fraction(5), Fraction(2)))
"""p/q' and e^r of a group whose first two completions tie in the reward, not in α."""


@claim(
    "T11f",
    "τ → ∞ gives argmax of α, split over tied indices; reward temperature → 0 weighs tied rewards by p/q'",
    source="docs/theory.md T11",
    method="exact at powers up to 256, error bounded by (second/largest)^power",
    case="groups with and without ties",
    subject=(uniform_on_largest, weighted_on_largest),
    mutants={
        "the first of tied indices": (
            lambda values: tuple(Fraction(k == values.index(max(values))) for k in range(len(values))),
            weighted_on_largest,
        ),
        "each distinct value once": (
            lambda values: tuple(Fraction(v == max(values)) for v in values),
            weighted_on_largest,
        ),
        "tied rewards alike": (uniform_on_largest, lambda densities, goodness: uniform_on_largest(goodness)),
    },
    code=("brain_core.argmax_brain_coefficients",),
    tests=(
        "tests/brain_core/test_identities.py::test_large_power_turns_the_target_into_argmax",
        "tests/brain_core/test_identities.py::test_argmax_splits_equally_over_ties",
    ),
)
def t11f(limits: Limits) -> None:
    """Weights at powers 64, 128, 256 against the limits, with the rate."""
    of_power, of_temperature = limits
    densities, goodness = TIED
    for power in (64, 128, 256):
        for values in ([Fraction(2), Fraction(3), Fraction(3), Fraction(1)], [Fraction(1), Fraction(4), Fraction(2)]):
            second = max(value for value in values if value < max(values))
            gap = distance(weights(values, power), of_power(values))
            require(gap <= len(values) * (second / max(values)) ** power, f"argmax at τ = {power}")
        cold = proportional(*(d * g**power for d, g in zip(densities, goodness, strict=True)))
        require(distance(cold, of_temperature(densities, goodness)) <= Fraction(2, 5) ** power, f"at r/τ, {power}")


def distance(left: Vector, right: Vector) -> Fraction:
    """The l1 distance of two vectors."""
    return sum((abs(a - b) for a, b in zip(left, right, strict=True)), start=Fraction(0))


def plackett_luce(strengths: Rationals) -> dict[tuple[int, ...], Fraction]:
    """The probability of every ranking, best first."""
    found = {}
    for ranking in itertools.permutations(range(len(strengths))):
        chance = Fraction(1)
        for place in range(len(ranking)):
            chance *= strengths[ranking[place]] / sum(strengths[y] for y in ranking[place:])
        found[ranking] = chance
    return found


def ranking_kl(alphas: Rationals, betas: Rationals) -> LogNumber:
    """KL(PL_α ‖ PL_β), ranking by ranking."""
    laws = plackett_luce(alphas), plackett_luce(betas)
    return sum((log(a / laws[1][ranking]) * a for ranking, a in laws[0].items()), start=LogNumber.of(0))


def top_divergence(alphas: Rationals, betas: Rationals) -> LogNumber:
    """D(Y) = D_KL(α̂ ‖ β̂)."""
    return kl(weights(alphas), weights(betas))


@claim(
    "T11g",
    "fitting full Plackett–Luce rankings costs at least D(Y): KL(PL_α‖PL_β) ≥ D(Y), with equality at n = 2",
    source="docs/theory.md T11",
    method="exact: all rankings, logarithms of rationals, certified signs",
    case="n ≤ 4",
    subject=top_divergence,
    mutants={
        "1 % more": lambda a, b: top_divergence(a, b) * Fraction(101, 100),
        "reversed": lambda a, b: top_divergence(b, a),
        "half": lambda a, b: top_divergence(a, b) * HALF,
    },
    code=("brain_core.plackett_luce_objective",),
    tests=("tests/brain_core/test_identities.py::test_kl_of_plackett_luce_rankings_bounds_the_self_normalized_kl",),
)
def t11g(bound: Callable[[Rationals, Rationals], LogNumber]) -> None:
    """The chain rule: D(Y) for the first place, and the rest for the ranking of those that remain."""
    for size in (2, 3, 4):
        for toy in random_toys(3, seed=21 + size, sizes=(size,), largest=5):
            alphas, betas = toy.prior, toy.policy
            whole, first = ranking_kl(alphas, betas), bound(alphas, betas)
            require(first <= whole, f"D(Y) is a lower bound at n = {size}")
            require((first == whole) == (size == 2 or alphas == betas), f"equality at n = {size}")
            require_equal(whole, first + later_places(alphas, betas), f"chain rule at n = {size}")


def later_places(alphas: Rationals, betas: Rationals) -> LogNumber:
    """The mean KL divergence of the ranking of the others, given the first place."""
    total = LogNumber.of(0)
    for first, chance in enumerate(weights(alphas)):
        rest = [[v for k, v in enumerate(side) if k != first] for side in (alphas, betas)]
        total += ranking_kl(*rest) * chance
    return total


def rloo(values: Sequence[Any]) -> list[Any]:
    """(ℓ_i − mean of the others)/n."""
    size = len(values)
    return [(v - (sum(values) - v) / (size - 1)) / size for v in values]


def show_division_by_the_spread_loses_the_scale() -> None:
    """Advantages divided by their standard deviation, as in GRPO, are ±1 for rewards ±ε however small ε is."""
    for scale in (Fraction(1), Fraction(1, 10**6)):
        values = (scale, -scale)
        spread = root(sum((v**2 for v in values), start=Fraction(0)) / 2, HALF)
        require_equal(tuple(v / spread for v in values), (1, -1), "standardised advantages")
    first = weights((Fraction(10**6 + 1, 10**6), Fraction(10**6 - 1, 10**6)))[0] - HALF
    require_equal(first, Fraction(1, 2 * 10**6), "α̂ − 1/n for ratios 1 ± 1e-6")


RewardForm = Callable[[Sequence[Any]], Sequence[Any]]


@claim(
    "T11h",
    "on-policy to first order in ℓ = r − log q/p, BRAIn is (n − 1)/n times RLOO on ℓ: the KL in the reward, no std",
    source="docs/theory.md T11",
    method="sympy: Taylor coefficients for all ℓ",
    case="n = 2, 3, 4",
    subject=lambda values: [value * Fraction(len(values) - 1, len(values)) for value in rloo(values)],
    mutants={
        "no factor": rloo,
        "not centred": lambda values: [value / len(values) for value in values],
        "sum over the group": lambda values: [(len(values) - 1) * value for value in rloo(values)],
    },
    counterexamples={"no division by the spread": show_division_by_the_spread_loses_the_scale},
    code=("brain_core.rloo_coefficients",),
    tests=("tests/brain_core/test_identities.py::test_brain_on_policy_with_small_rewards_is_rloo_up_to_a_factor",),
)
def t11h(form: RewardForm) -> None:
    """α̂ − 1/n at ε ℓ: order 1 is the form, order 2 is [(ℓ_i − ℓ̄)² − Var ℓ]/(2n)."""
    import sympy

    scale = sympy.Symbol("e", positive=True)
    for size in (2, 3, 4):
        values = sympy.symbols(f"l:{size}", real=True)
        total = sum(sympy.exp(scale * value) for value in values)
        mean = sum(values) / size
        spread = sum((value - mean) ** 2 for value in values) / size
        for value, claimed in zip(values, form(values), strict=True):
            coefficient = sympy.exp(scale * value) / total - sympy.Rational(1, size)
            first, second = (sympy.diff(coefficient, scale, order).subs(scale, 0) for order in (1, 2))
            require(sympy.expand(sympy.nsimplify(first - claimed)) == 0, f"first order at n = {size}")
            require(sympy.expand(second / 2 - ((value - mean) ** 2 - spread) / (2 * size)) == 0, "second order")

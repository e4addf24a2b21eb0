"""Sections 5 to 7: goodness models, equations (15) to (23), Proposition 5.1, Theorems 6.1 and 7.1.

Rewards enter as e^r, positive rationals, so that every probability is rational and every logarithm exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import Group, mean_over_groups, mean_over_multisets, ordered_groups
from proofs_check.exact import Dual, LogNumber, in_logits, log
from proofs_check.groups import ZERO, at, divergence, kl, moving_divergence, require_proved, shares
from proofs_check.instances import GENERIC, GENERIC_GROUP_SIZE, Toy, Vector, proportional, random_toys, toy

Preference = Callable[[Any, Any], Any]
Weights = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Sequence[Any]]

ON_PRIOR = GENERIC._replace(proposal=GENERIC.prior)
"""The generic instance with the prior as proposal, as Theorem 6.1 wants it."""

PAIRS = tuple(itertools.permutations(range(GENERIC.size), 2))


def goodness_from(exp_reward: Sequence[Fraction]) -> Vector:
    """p(G=1|y) = c e^r as real probabilities, the largest of them 1/2."""
    return tuple(value / (2 * max(exp_reward)) for value in exp_reward)


def logistic(exp_reward: Any) -> Any:
    """σ(r), eq. (15)."""
    return exp_reward / (1 + exp_reward)


def posterior_by_table(prior: Sequence[Fraction], goodness: Sequence[Fraction]) -> Vector:
    """p(y|G=1) from the joint table of y and G."""
    table = {
        (y, good): p * (g if good else 1 - g)
        for y, (p, g) in enumerate(zip(prior, goodness, strict=True))
        for good in (0, 1)
    }
    good_mass = sum((mass for (_, good), mass in table.items() if good), start=Fraction(0))
    return tuple(table[y, 1] / good_mass for y in range(len(prior)))


@claim(
    "eq-15",
    "Logistic goodness σ(r): r is the log-odds of G, and the ratio of goodness is not e^{r_i − r_j} where r_i ≠ r_j",
    source="eq. (15)",
    method="exact; z3 for all real rewards; floats for the published example",
    case="7 rewards; K=4",
    subject=logistic,
    mutants={
        "Bradley–Terry, e^r": lambda e: e,
        "σ(−r)": lambda e: 1 / (1 + e),
        "σ(2r)": lambda e: e * e / (1 + e * e),
        "σ(r)/2": lambda e: e / (1 + e) / 2,
    },
    tolerance=5e-4,
    code=("brain_core.logistic_log_goodness",),
    tests=("tests/brain_core/test_goodness_and_diagnostics.py::test_logistic_and_bradley_terry_targets_differ",),
)
def eq_15(goodness: Callable[[Any], Any]) -> None:
    """The odds are e^r, the ratios differ, and so do the targets of the two goodness models."""
    import z3

    for exp_reward in map(Fraction, ("1/90", "1/7", "1/2", "1", "2", "5", "90")):
        require(0 < goodness(exp_reward) < 1, "a goodness is a probability")
        require_equal(goodness(exp_reward) / (1 - goodness(exp_reward)), exp_reward, "odds of G")
    u, v = z3.Reals("u v")
    same = goodness(u) / goodness(v) == u / v
    require_proved("logistic ratio is e^{r_i − r_j}", u > 0, v > 0, u != v, same)
    weights = [math.exp(r) for r in (-2, 0, 2, 4)]
    found, other = shares([goodness(weight) for weight in weights]), shares(weights)
    for value, expected in zip(found, (0.048, 0.201, 0.355, 0.396), strict=True):
        require_close(value, expected, 5e-4, "logistic target of the example")
    require_close(sum(abs(a - b) for a, b in zip(found, other, strict=True)) / 2, 0.469, 5e-4, "TV to Bradley–Terry's")


@claim(
    "eq-16",
    "Bradley–Terry: g_i/(g_i + g_j) is the chance that y_i is drawn before y_j when draws are ∝ g",
    source="eq. (16)",
    method="exact: first-step equation of the race",
    case="K=4, all ordered pairs",
    subject=lambda g_i, g_j: g_i / (g_i + g_j),
    mutants={
        "swapped": lambda g_i, g_j: g_j / (g_i + g_j),
        "squares": lambda g_i, g_j: g_i**2 / (g_i**2 + g_j**2),
        "linear": lambda g_i, g_j: (1 + g_i - g_j) / 2,
        "not normalised": lambda g_i, g_j: g_i,
    },
    code=("brain_core.bradley_terry_log_goodness",),
    tests=(
        "tests/brain_core/test_goodness_and_diagnostics.py"
        "::test_bradley_terry_goodness_gives_the_preference_of_the_reward_model",
    ),
)
def eq_16(preference: Preference) -> None:
    """With chance g_i the race is won now, with 1 − g_i − g_j it starts again."""
    chance = proportional(*GENERIC.goodness)
    for i, j in PAIRS:
        g_i, g_j = chance[i], chance[j]
        won = preference(g_i, g_j)
        require_equal(won, g_i + (1 - g_i - g_j) * won, f"P({i} before {j})")
        require_equal(won + preference(g_j, g_i), 1, "one of the two comes first")


@claim(
    "eq-17",
    "With p(G=1|y,x) as g: the preference is the posterior of y_i when a fair coin picks y_i or y_j and G = 1",
    source="eq. (17)",
    method="exact: table of coin and G",
    case="K=4, all ordered pairs",
    subject=lambda g_i, g_j: g_i / (g_i + g_j),
    mutants={
        "exactly one of the two is good": lambda g_i, g_j: g_i * (1 - g_j) / (g_i * (1 - g_j) + g_j * (1 - g_i)),
        "y_i is good, y_j is not": lambda g_i, g_j: g_i * (1 - g_j),
        "odds": lambda g_i, g_j: g_i / g_j,
        "swapped": lambda g_i, g_j: g_j / (g_i + g_j),
    },
    assumptions=("p(G=1|y,x) > 0 for one of the two",),
    counterexamples={"p(G=1|y,x) > 0 for one of the two": lambda: show_no_limit()},
)
def eq_17(preference: Preference) -> None:
    """The table of the pick (i or j) and G, conditioned on G = 1."""
    goodness = goodness_from(GENERIC.goodness)
    for i, j in PAIRS:
        posterior = posterior_by_table(proportional(1, 1), (goodness[i], goodness[j]))
        require_equal(preference(goodness[i], goodness[j]), posterior[0], f"P({i} ≻ {j})")


def show_no_limit() -> None:
    """g = (ε, ε) and (2ε, ε) give 1/2 and 2/3 however small ε is, so that at (0, 0) nothing can be said."""
    coin = proportional(1, 1)
    for small in (Fraction(1, 10), Fraction(1, 10**9)):
        found = [posterior_by_table(coin, (factor * small, small))[0] for factor in (1, 2)]
        require_equal(found, [Fraction(1, 2), Fraction(2, 3)], "preference")
    joint = [half * g for half, g in zip(coin, (0, 0), strict=True)]
    require_equal(sum(joint), 0, "p(G=1) at (0, 0)")


@claim(
    "eq-18",
    "With g = e^r the preference is σ(r_i − r_j), and its log-likelihood has slope σ(r_j − r_i) in r_i",
    source="eq. (18)",
    method="exact: logarithms and duals",
    case="K=4, all ordered pairs",
    subject=lambda exp_gap: exp_gap / (1 + exp_gap),
    mutants={
        "σ of the loser's lead": lambda exp_gap: 1 / (1 + exp_gap),
        "temperature 1/2": lambda exp_gap: exp_gap**2 / (1 + exp_gap**2),
        "no normaliser": lambda exp_gap: exp_gap,
    },
    code=("brain_core.bradley_terry_log_goodness",),
)
def eq_18(sigmoid: Callable[[Fraction], Fraction]) -> None:
    """log of (16) at g = e^r, differentiated in both rewards: d e^r = e^r dr."""
    rewards = GENERIC.goodness
    for i, j in PAIRS:
        e_i, e_j = Dual(rewards[i], (rewards[i], Fraction(0))), Dual(rewards[j], (Fraction(0), rewards[j]))
        likelihood = (e_i / (e_i + e_j)).log()
        lost = sigmoid(rewards[j] / rewards[i])
        require_equal(likelihood.value, log(sigmoid(rewards[i] / rewards[j])), f"log P({i} ≻ {j})")
        require_equal(likelihood.slopes, (lost, -lost), f"slopes of log P({i} ≻ {j})")


@claim(
    "eq-19",
    "(17) = (18) exactly where p(G=1|y_i)/p(G=1|y_j) = e^{r_i − r_j}: a ratio of probabilities, not log-odds of G",
    source="eq. (19)",
    method="z3: all real goodness in (0, 1) and all rewards",
    case="a pair",
    subject=lambda g_i, g_j: g_i / g_j,
    mutants={
        "ratio of the odds of G": lambda g_i, g_j: g_i * (1 - g_j) / (g_j * (1 - g_i)),
        "swapped": lambda g_i, g_j: g_j / g_i,
        "ratio of squares": lambda g_i, g_j: g_i * g_i / (g_j * g_j),
    },
    code=("brain_core.bradley_terry_log_goodness",),
    counterexamples={"the same constant c(x) for both outputs": lambda: show_two_constants()},
    assumptions=("the same constant c(x) for both outputs",),
)
def eq_19(ratio: Preference) -> None:
    """Both directions: equal preferences give the ratio, the ratio gives equal preferences."""
    import z3

    g_i, g_j, e_i, e_j = z3.Reals("g_i g_j e_i e_j")
    bounds = [g_i > 0, g_i < 1, g_j > 0, g_j < 1, e_i > 0, e_j > 0]
    by_goodness = g_i * (e_i + e_j) == e_i * (g_i + g_j)
    by_ratio = ratio(g_i, g_j) == e_i / e_j
    require_proved("(17) = (18) without the ratio", *bounds, by_goodness, z3.Not(by_ratio))
    require_proved("the ratio without (17) = (18)", *bounds, by_ratio, z3.Not(by_goodness))


def show_two_constants() -> None:
    """e^r = (2, 1) with c = (1/4, 1/2): the preference is 1/2, where (18), and one c for both, give 2/3."""
    exp_reward, coin = (Fraction(2), Fraction(1)), proportional(1, 1)

    def preference(constants: Sequence[Fraction]) -> Fraction:
        """P(y_i ≻ y_j) by (17)."""
        return posterior_by_table(coin, [c * e for c, e in zip(constants, exp_reward, strict=True)])[0]

    require_equal(preference((Fraction(1, 4), Fraction(1, 2))), Fraction(1, 2), "preference with two constants")
    for constant in (Fraction(1, 4), Fraction(1, 3)):
        found = preference((constant, constant))
        require_equal(found, logistic(exp_reward[0] / exp_reward[1]), "preference with one constant, and (18)")


def bradley_terry_weights(exp_reward: Sequence[Any], prior: Sequence[Any], proposal: Sequence[Any]) -> list[Any]:
    """exp(r + log p − log q') over its sum, eq. (20)."""
    return shares([e * p / s for e, p, s in zip(exp_reward, prior, proposal, strict=True)])


def softmax_of_rewards(exp_reward: Sequence[Any], prior: Sequence[Any], proposal: Sequence[Any]) -> list[Any]:
    """Softmax over the rewards alone, eq. (21)."""
    return shares(exp_reward)


def argmax_weights(rewards: Sequence[Fraction]) -> list[Fraction]:
    """Argmax in place of softmax in (21): all weight on the best, ties share it."""
    return shares([Fraction(int(reward == max(rewards))) for reward in rewards])


WRONG_WEIGHTS: dict[str, Weights] = {
    "without the prior": lambda e, p, s: shares([a / c for a, c in zip(e, s, strict=True)]),
    "without the proposal": lambda e, p, s: shares([a * b for a, b in zip(e, p, strict=True)]),
    "proposal inverted": lambda e, p, s: shares([a * b * c for a, b, c in zip(e, p, s, strict=True)]),
    "reward with the wrong sign": lambda e, p, s: shares([b / (a * c) for a, b, c in zip(e, p, s, strict=True)]),
    "reward at temperature 1/2": lambda e, p, s: shares([a * a * b / c for a, b, c in zip(e, p, s, strict=True)]),
    "not normalised": lambda e, p, s: [a * b / c for a, b, c in zip(e, p, s, strict=True)],
    "softmax of rewards (21)": softmax_of_rewards,
}
"""Wrong forms of (20)."""


def require_weights(problem: Toy, weights: Weights, group_size: int) -> None:
    """On every tuple the weights are the normalised posterior / proposal, with the posterior from the joint table."""
    posterior = posterior_by_table(problem.prior, goodness_from(problem.goodness))
    for group in ordered_groups(problem.size, group_size):
        right = shares([posterior[y] / problem.proposal[y] for y in group])
        found = weights(at(problem.goodness, group), at(problem.prior, group), at(problem.proposal, group))
        require_equal(list(found), right, f"weights of the group {group}")


@claim(
    "eq-20",
    "Under Bradley–Terry goodness α̂ is the softmax of r + log p − log q' on every group",
    source="eq. (20)",
    method="exact: all ordered groups, posterior from the joint table",
    case="K=4, n=3; 20 random problems",
    subject=bradley_terry_weights,
    mutants=WRONG_WEIGHTS,
    code=("brain_core.target_log_ratio", "brain_core.self_normalized_weights"),
    tests=("tests/brain_core/test_exact_enumeration.py::test_coefficients_of_every_group_equal_the_exact_ones",),
)
def eq_20(weights: Weights) -> None:
    """All 64 tuples of the generic instance, and the pairs of random ones."""
    require_weights(GENERIC, weights, GENERIC_GROUP_SIZE)
    for problem in random_toys(20, seed=20):
        require_weights(problem, weights, 2)


def show_another_proposal_for_21() -> None:
    """The generic instance, group (0, 1): (21) gives 2/7 to the first, the right weight is 12/17."""
    group = (0, 1)
    found = softmax_of_rewards(at(GENERIC.goodness, group), (), ())
    right = shares(at(GENERIC.target_ratio, group))
    require_equal((found[0], right[0]), (Fraction(2, 7), Fraction(12, 17)), "first weight by (21) and by definition")


@claim(
    "eq-21",
    "With the prior as proposal α̂ is the softmax of the rewards",
    source="eq. (21)",
    method="exact: all ordered groups",
    case="K=4, n=3; 20 random problems",
    subject=softmax_of_rewards,
    mutants={
        "argmax": lambda e, p, s: argmax_weights(e),
        "uniform": lambda e, p, s: [Fraction(1, len(e))] * len(e),
        "temperature 1/2": lambda e, p, s: shares([value**2 for value in e]),
        "times the prior": lambda e, p, s: shares([a * b for a, b in zip(e, p, strict=True)]),
    },
    assumptions=("q' = p",),
    counterexamples={"q' = p": show_another_proposal_for_21},
    code=("brain_core.bradley_terry_log_goodness", "brain_core.self_normalized_weights"),
    tests=(
        "tests/brain_core/test_goodness_and_diagnostics.py::test_target_ratio_with_the_prior_as_proposal_is_the_goodness",
    ),
)
def eq_21(weights: Weights) -> None:
    """The generic instance and random ones with their prior as proposal."""
    require_weights(ON_PRIOR, weights, GENERIC_GROUP_SIZE)
    for problem in random_toys(20, seed=21):
        require_weights(problem._replace(proposal=problem.prior), weights, 2)


def show_logistic_weights() -> None:
    """e^r = (1, 3), p and q' uniform: (20) gives (1/4, 3/4), the logistic posterior (2/5, 3/5)."""
    exp_reward, half = (Fraction(1), Fraction(3)), proportional(1, 1)
    posterior = posterior_by_table(half, [logistic(e) for e in exp_reward])
    require_equal(posterior, (Fraction(2, 5), Fraction(3, 5)), "logistic posterior")
    require_equal(bradley_terry_weights(exp_reward, half, half), [Fraction(1, 4), Fraction(3, 4)], "weights (20)")


@claim(
    "prop-5.1",
    "For every goodness c(x) e^r the weights are (20), whatever c(x), and with q' = p they are (21)",
    source="Proposition 5.1 (5.0 in the later version)",
    method="sympy: symbolic e^r, p, q', c and p(G=1|x)",
    case="n=3",
    subject=(bradley_terry_weights, softmax_of_rewards),
    mutants={name: (wrong, softmax_of_rewards) for name, wrong in WRONG_WEIGHTS.items()}
    | {"(21) times the prior": (bradley_terry_weights, WRONG_WEIGHTS["without the proposal"])},
    assumptions=("Bradley–Terry goodness",),
    counterexamples={
        "Bradley–Terry goodness": show_logistic_weights,
        "q' = p, for (21)": show_another_proposal_for_21,
    },
    code=("brain_core.target_log_ratio", "brain_core.self_normalized_weights"),
)
def prop_5_1(forms: tuple[Weights, Weights]) -> None:
    """(p/q') p(G=1|y)/p(G=1) over its sum, against both forms."""
    import sympy

    constant, evidence = sympy.symbols("c Z", positive=True)
    rewards, prior, proposal = (sympy.symbols(f"{name}1:4", positive=True) for name in "eps")
    for form, sampler in zip(forms, (proposal, prior), strict=True):
        ratios = [p * constant * e / evidence / s for e, p, s in zip(rewards, prior, sampler, strict=True)]
        for left, right in zip(shares(ratios), form(rewards, prior, sampler), strict=True):
            require_equal(sympy.cancel(left - right), 0, "difference of the weights")


Term = Callable[[Sequence[Fraction], Sequence[Fraction]], LogNumber]


def divergence_of_pair(target: Sequence[Fraction], policy: Sequence[Fraction]) -> LogNumber:
    """α̂_1 log(α̂_1/β̂_1) + α̂_2 log(α̂_2/β̂_2), the bracket of (22)."""
    return target[0] * log(target[0] / policy[0]) + target[1] * log(target[1] / policy[1])


@claim(
    "eq-22",
    "With q' = p and n = 2 the divergence is the mean over pairs of the two-term bracket",
    source="eq. (22)",
    method="exact logarithms: definition over multisets against ordered pairs",
    case="K=4; 10 random problems",
    subject=divergence_of_pair,
    mutants={
        "first term only": lambda a, b: a[0] * log(a[0] / b[0]),
        "reverse KL": lambda a, b: divergence_of_pair(b, a),
        "cross-entropy": lambda a, b: -(a[0] * log(b[0]) + a[1] * log(b[1])),
        "wrong sign": lambda a, b: -divergence_of_pair(a, b),
    },
    code=("brain_core.self_normalized_kl",),
    tests=(
        "tests/brain_core/test_exact_enumeration.py::test_mean_of_brain_is_the_derivative_of_the_mean_self_normalized_kl",
    ),
)
def eq_22(bracket: Term) -> None:
    """D_2 by its definition with general ratios over multisets, then by (21) and (11) over ordered pairs."""
    for problem in (ON_PRIOR, *(t._replace(proposal=t.prior) for t in random_toys(10, seed=22))):
        relative = [q / p for q, p in zip(problem.policy, problem.prior, strict=True)]

        def by_definition(group: Group, problem: Toy = problem) -> LogNumber:
            """D of a pair from α and β."""
            return divergence(at(problem.target_ratio, group), at(problem.policy_ratio, group))

        def by_pair(pair: Group, problem: Toy = problem, relative: list[Fraction] = relative) -> LogNumber:
            """The bracket with (21) and (11)."""
            return bracket(shares(at(problem.goodness, pair)), shares(at(relative, pair)))

        left = mean_over_multisets(problem.proposal, 2, by_definition)
        require_equal(left, mean_over_groups(problem.prior, 2, by_pair), "D_2")


def argmax_divergence(problem: Toy, policy: Sequence[Dual], group_size: int = 2) -> Dual:
    """The divergence (13) with argmax weights, and its slopes."""
    return weighted_divergence(problem, policy, group_size, lambda group: argmax_weights(at(problem.goodness, group)))


def weighted_divergence(
    problem: Toy, policy: Sequence[Dual], group_size: int, target_weights: Callable[[Group], Sequence[Fraction]]
) -> Dual:
    """E KL(target weights ‖ β̂) over ordered groups, and its slopes in the policy's directions."""
    ratios = [q / s if s else q * 0 for q, s in zip(policy, problem.proposal, strict=True)]
    mean = mean_over_groups(
        problem.proposal, group_size, lambda group: moving_divergence(target_weights(group), at(ratios, group))
    )
    return as_dual(mean)


def as_dual(mean: Dual | Fraction) -> Dual:
    """The mean, which is a Dual as soon as one group can occur."""
    if not isinstance(mean, Dual):
        raise TypeError("a mean over no group")
    return mean


PairLoss = Callable[[Dual, Dual], Dual]


def dpo_pair_loss(winner: Dual, loser: Dual) -> Dual:
    """−log σ(log winner − log loser) of the ratios q/p of a pair."""
    return (1 + loser / winner).log()


def dpo_loss(problem: Toy, policy: Sequence[Dual], pair_loss: PairLoss = dpo_pair_loss) -> Dual:
    """DPO's loss on ordered pairs from the prior, labelled by the reward."""
    relative = [q / p for q, p in zip(policy, problem.prior, strict=True)]

    def loss(pair: Group) -> Dual:
        """The loss of a pair, labelled by the reward."""
        loser, winner = sorted(pair, key=lambda y: problem.goodness[y])
        return pair_loss(relative[winner], relative[loser])

    return as_dual(mean_over_groups(problem.prior, 2, loss))


COIN = toy((1, 1), (2, 1), (1, 2), (1, 1))
"""Two outcomes: p = q' = (1/2, 1/2), e^r = (2, 1), q = (1/3, 2/3), on which DPO's loss is (log 3 + log 2)/2."""


def show_group_of_three() -> None:
    """n = 3 on the coin: (3/8)(log 2 + log 5)."""
    policy = in_logits(COIN.policy)
    require_equal(dpo_loss(COIN, policy).value, log(6) / 2, "DPO on the coin")
    found = argmax_divergence(COIN, policy, group_size=3)
    require_equal(found.value, Fraction(3, 8) * log(10), "argmax objective of three")
    require(found.slopes != dpo_loss(COIN, policy).slopes, "with n = 3 the gradient is another")


def show_another_proposal() -> None:
    """q' = (1/4, 3/4) on the coin: β̂ of the better one is 3/5, not 1/3."""
    policy = in_logits(COIN.policy)
    found = argmax_divergence(COIN._replace(proposal=proportional(1, 3)), policy)
    require_equal(found.value, Fraction(3, 8) * log(Fraction(5, 3)), "argmax objective with another proposal")
    require(found.slopes != dpo_loss(COIN, policy).slopes, "with another proposal the gradient is another")


def show_softmax() -> None:
    """The softmax of (21) on the coin: (22) is (log 2)/6 with slope −1/6 in the first logit, half of DPO's −1/3."""
    policy = in_logits(COIN.policy)
    found = weighted_divergence(COIN, policy, 2, lambda group: shares(at(COIN.goodness, group)))
    require_equal((found.value, found.slopes[0]), (log(2) / 6, -Fraction(1, 6)), "(22) with softmax, its slope")
    require_equal(dpo_loss(COIN, policy).slopes[0], -Fraction(1, 3), "DPO's slope")


def show_beta_must_be_one() -> None:
    """β = 2 on the coin: DPO's loss is (log 5 + log 2)/2, its slope −4/5, that of the divergence −1/3."""
    policy = in_logits(COIN.policy)
    found = dpo_loss(COIN, policy, lambda winner, loser: (1 + (loser / winner) * (loser / winner)).log())
    require_equal((found.value, found.slopes[0]), (log(10) / 2, -Fraction(4, 5)), "DPO at β = 2")
    require_equal(argmax_divergence(COIN, policy).slopes[0], -Fraction(1, 3), "slope of the divergence")


def show_drawn_labels() -> None:
    """Labels drawn from Bradley–Terry on the coin: a third of them turned, DPO's slope is −1/6, the argmax's −1/3."""
    policy = in_logits(COIN.policy)
    right, turned = dpo_loss(COIN, policy), dpo_loss(COIN._replace(goodness=COIN.goodness[::-1]), policy)
    wins = logistic(COIN.goodness[0] / COIN.goodness[1])
    require_equal((right * wins + turned * (1 - wins)).slopes[0], -Fraction(1, 6), "DPO's slope with drawn labels")
    require_equal(argmax_divergence(COIN, policy).slopes[0], -Fraction(1, 3), "slope of the divergence")


def show_ties() -> None:
    """Equal rewards on the coin: shared ties have slope −1/12 in the first logit, DPO −1/3 or 1/6 by the label."""
    tied = COIN._replace(goodness=(Fraction(1), Fraction(1)))
    policy = in_logits(tied.policy)
    require_equal(argmax_divergence(tied, policy).slopes[0], -Fraction(1, 12), "argmax objective, tie shared")
    require_equal(dpo_loss(COIN, policy).slopes[0], -Fraction(1, 3), "DPO, the first labelled winner")
    turned = COIN._replace(goodness=COIN.goodness[::-1])
    require_equal(dpo_loss(turned, policy).slopes[0], Fraction(1, 6), "DPO, the second labelled winner")


NEEDED_FOR_DPO = {
    "n = 2": show_group_of_three,
    "q' = p": show_another_proposal,
    "argmax": show_softmax,
    "no ties between distinct outputs": show_ties,
    "β = 1": show_beta_must_be_one,
    "labels from the reward": show_drawn_labels,
}
"""What Theorem 6.1 needs, and what happens without it."""


@claim(
    "thm-6.1",
    "Argmax, n = 2 and q' = p: DPO-sft at β = 1 minus the divergence is log 2 · P(y1 = y2), with equal gradients",
    source="Theorem 6.1 (5.1 or 5.2 in the later version)",
    method="exact logarithms and duals: all ordered pairs",
    case="K=4; 20 random problems without ties",
    subject=dpo_pair_loss,
    mutants={
        "winner and loser swapped": lambda winner, loser: (1 + winner / loser).log(),
        "β = 2": lambda winner, loser: (1 + (loser / winner) * (loser / winner)).log(),
        "wrong sign": lambda winner, loser: -(1 + loser / winner).log(),
        "hinge of the likelihood, no σ": lambda winner, loser: (loser / winner).log(),
        "likelihood of the winner only": lambda winner, loser: -winner.log(),
    },
    assumptions=tuple(NEEDED_FOR_DPO),
    counterexamples=NEEDED_FOR_DPO,
    code=(
        "brain_core.argmax_brain_coefficients",
        "brain_core.dpo_coefficients",
        "brain_core.argmax_brain_objective",
        "brain_core.dpo_objective",
    ),
    tests=(
        "tests/brain_core/test_identities.py::test_argmax_brain_of_a_pair_is_dpo",
        "tests/brain_core/test_identities.py::test_argmax_splits_equally_over_ties",
    ),
)
def thm_6_1(pair_loss: PairLoss) -> None:
    """The divergence from its definition, DPO's loss from labelled pairs."""
    for problem in (ON_PRIOR, COIN, *without_ties(20)):
        policy = in_logits(problem.policy)
        found, loss = argmax_divergence(problem, policy), dpo_loss(problem, policy, pair_loss)
        same = sum((p * p for p in problem.prior), start=Fraction(0))
        require_equal(as_log(loss) - as_log(found), same * log(2), "DPO − divergence")
        require_equal(loss.slopes, found.slopes, "gradients")


def as_log(number: Dual) -> LogNumber:
    """The value of a Dual as a number with logarithms."""
    return LogNumber.of(number.value)


def as_fraction(number: Dual) -> Fraction:
    """The value of a Dual without logarithms."""
    if isinstance(number.value, LogNumber):
        raise TypeError("the value has logarithms")
    return number.value


def without_ties(count: int) -> list[Toy]:
    """Random problems with pairwise different rewards and the prior as proposal."""
    drawn = random_toys(4 * count, seed=61)
    kept = [problem._replace(proposal=problem.prior) for problem in drawn if len(set(problem.goodness)) == problem.size]
    return kept[:count]


def boltzmann(prior: Sequence[Any], exp_reward: Sequence[Any]) -> list[Any]:
    """p e^r over its sum, eq. (23)."""
    return shares([p * e for p, e in zip(prior, exp_reward, strict=True)])


WRONG_OPTIMA: dict[str, Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]] = {
    "without the prior": lambda p, e: shares(e),
    "not normalised": lambda p, e: [a * b for a, b in zip(p, e, strict=True)],
    "temperature 1/2": lambda p, e: shares([a * b * b for a, b in zip(p, e, strict=True)]),
    "logistic goodness": lambda p, e: shares([a * logistic(b) for a, b in zip(p, e, strict=True)]),
    "prior over e^r": lambda p, e: shares([a / b for a, b in zip(p, e, strict=True)]),
}


@claim(
    "eq-23",
    "Under Bradley–Terry goodness the posterior (1) is p e^r / Σ p e^r",
    source="eq. (23) and the displays of its proof",
    method="exact: joint table; sympy: the four displays",
    case="K=4; 20 random problems; sympy K=3",
    subject=boltzmann,
    mutants=WRONG_OPTIMA,
    assumptions=("Bradley–Terry goodness",),
    counterexamples={"Bradley–Terry goodness": show_logistic_weights},
    code=("toy.CategoricalProblem", "brain_core.bradley_terry_log_goodness"),
    tests=("tests/brain_core/test_exact_enumeration.py::test_coefficients_of_every_group_equal_the_exact_ones",),
)
def eq_23(optimum: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]) -> None:
    """The joint table in numbers, the displays in symbols."""
    for problem in (GENERIC, *random_toys(20, seed=23)):
        posterior = posterior_by_table(problem.prior, goodness_from(problem.goodness))
        require_equal(tuple(optimum(problem.prior, problem.goodness)), posterior, "posterior")
    import sympy

    prior, rewards = (sympy.symbols(f"{name}1:4", positive=True) for name in "pe")
    goodness = [sympy.Symbol("c", positive=True) * e for e in rewards]
    for y, right in enumerate(optimum(prior, rewards)):
        for display in displays_of_theorem_7_1(prior, rewards, goodness, y):
            require_equal(sympy.cancel(display - right), 0, "a display of the proof")


def displays_of_theorem_7_1(prior: Sequence[Any], rewards: Sequence[Any], goodness: Sequence[Any], y: int) -> list[Any]:
    """The first three displays of the proof, whose common value is p(y|x,G=1)."""
    total = sum(p * g for p, g in zip(prior, goodness, strict=True))
    relative = sum(p * (g / goodness[y]) for p, g in zip(prior, goodness, strict=True))
    by_reward = sum(p * (e / rewards[y]) for p, e in zip(prior, rewards, strict=True))
    return [prior[y] * goodness[y] / total, prior[y] / relative, prior[y] / by_reward]


def regularized_reward(
    policy: Sequence[Fraction], prior: Sequence[Fraction], exp_reward: Sequence[Fraction], temperature: Fraction
) -> LogNumber:
    """PPO's objective E_q r − τ KL(q ‖ p), with the reward given as e^{r/τ}."""
    mean = sum((q * temperature * log(e) for q, e in zip(policy, exp_reward, strict=True)), start=ZERO)
    return mean - temperature * kl(policy, prior)


def show_temperature_two() -> None:
    """p = (1/2, 1/2), e^r = (4, 1), τ = 2: the optimum is (2/3, 1/3), which the posterior (4/5, 1/5) is not."""
    prior = proportional(1, 1)
    posterior = posterior_by_table(prior, goodness_from((Fraction(4), Fraction(1))))
    require_equal(posterior, (Fraction(4, 5), Fraction(1, 5)), "posterior")
    two, halves = Fraction(2), (Fraction(2), Fraction(1))
    best = regularized_reward(proportional(2, 1), prior, halves, two)
    require_equal(best, 2 * log(Fraction(3, 2)), "objective at (2/3, 1/3), τ = 2")
    require(regularized_reward(posterior, prior, halves, two) < best, "the posterior is below the optimum at τ = 2")


def show_logistic_below_optimum() -> None:
    """p = (1/2, 1/2), e^r = (1, 3): the logistic posterior (2/5, 3/5) stays KL((2/5, 3/5) ‖ (1/4, 3/4)) below."""
    prior, exp_reward = proportional(1, 1), (Fraction(1), Fraction(3))
    posterior = posterior_by_table(prior, [logistic(e) for e in exp_reward])
    reached = regularized_reward(posterior, prior, exp_reward, Fraction(1))
    shortfall = log(2) - reached
    require_equal(shortfall, kl((Fraction(2, 5), Fraction(3, 5)), (Fraction(1, 4), Fraction(3, 4))), "shortfall")
    require(shortfall > 0, "the shortfall is positive")


@claim(
    "thm-7.1",
    "The posterior is PPO's optimum: E_q r − τ KL(q‖p) = τ log Z_τ − τ KL(q‖π_τ), with π_1 the posterior",
    source="Theorem 7.1 (5.1 or 5.2 in the later version)",
    method="exact logarithms: the identity for each q, and the sign of its last term",
    case="K=4; 20 random problems; τ = 1/2, 1, 3",
    subject=boltzmann,
    mutants=WRONG_OPTIMA,
    assumptions=("Bradley–Terry goodness", "temperature τ = 1"),
    counterexamples={
        "temperature τ = 1": show_temperature_two,
        "Bradley–Terry goodness": show_logistic_below_optimum,
    },
    code=("toy.CategoricalProblem", "brain_core.bradley_terry_log_goodness"),
    tests=(
        "tests/brain_core/test_goodness_and_diagnostics.py::test_bradley_terry_goodness_is_reward_over_temperature",
    ),
)
def thm_7_1(optimum: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]) -> None:
    """The best value is τ log Z_τ, every other policy lies below by τ times its KL to the claimed optimum."""
    for problem in (GENERIC, *random_toys(20, seed=71)):
        claimed = optimum(problem.prior, problem.goodness)
        for temperature in (Fraction(1, 2), Fraction(1), Fraction(3)):
            best = temperature * log(problem.normalizer)
            reached = regularized_reward(problem.policy, problem.prior, problem.goodness, temperature)
            gap = temperature * kl(problem.policy, claimed)
            require_equal(reached, best - gap, f"objective at τ = {temperature}")
            require(gap >= 0 and (gap == 0) == (tuple(claimed) == problem.policy), "no other optimum")
        posterior = posterior_by_table(problem.prior, goodness_from(problem.goodness))
        require_equal(tuple(claimed), posterior, "the optimum at τ = 1 and the posterior")

"""Theorem 4.2 for language models: words drawn token by token, from bigram tables that all positions share.

The languages: words of up to four letters with an end symbol, cut after the fourth letter (31 words over two letters);
the same with up to three (15); words of exactly four letters out of four (256). Prior, proposal and policy are bigram
models with tables of their own; the goodness of a word is arbitrary. The parameters are the logits of the policy's
table.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proofs_check.claims import claim, require, require_close, require_equal
from proofs_check.enumeration import Group, mean_over_multisets, mean_self_normalized
from proofs_check.exact import Dual, in_logits
from proofs_check.groups import at, combined, mean_vector, shares
from proofs_check.instances import Toy, Vector, proportional
from toy import CategoricalProblem, mean_gradient, self_normalized_kl

Word = tuple[int, ...]
"""Symbols by index; the end symbol, where it was drawn, is the last one and is part of the word."""

Table = tuple[Vector, ...]
"""Probabilities of the next symbol (rows, symbols), one row per previous letter and a last one for the start."""


class Language(NamedTuple):
    """Which words there are."""

    letters: int
    longest: int
    has_end: bool

    @property
    def symbols(self) -> int:
        """Letters, and the end symbol where there is one."""
        return self.letters + self.has_end

    @property
    def words(self) -> list[Word]:
        """All words: those that end, then those cut after `longest` letters."""
        ended = [
            (*word, self.letters)
            for length in range(self.longest if self.has_end else 0)
            for word in itertools.product(range(self.letters), repeat=length)
        ]
        return ended + list(itertools.product(range(self.letters), repeat=self.longest))

    def table(self, seed: int) -> Table:
        """A bigram table of small random weights."""
        draw = random.Random(seed)
        return tuple(proportional(*(draw.randint(1, 4) for _ in range(self.symbols))) for _ in range(self.letters + 1))


WITH_END = Language(letters=2, longest=4, has_end=True)
SHORT_WITH_END = Language(letters=2, longest=3, has_end=True)
FIXED_LENGTH = Language(letters=4, longest=4, has_end=False)


def steps(word: Word, rows: int) -> list[tuple[int, int]]:
    """(row, symbol) of each token; the start's row is the last."""
    return list(zip((rows - 1, *word), word, strict=False))


def likelihood(word: Word, table: Sequence[Sequence[Any]]) -> Any:
    """q(word): the product over its tokens, the end symbol included."""
    return math.prod(table[row][symbol] for row, symbol in steps(word, len(table)))


def token_scores(word: Word, table: Table) -> list[Vector]:
    """Per token, its gradient in the logits of the whole table: e_symbol − row in its own row, 0 in the others."""
    return [
        tuple(
            (k == symbol) - q if row == own else Fraction(0) for row, law in enumerate(table) for k, q in enumerate(law)
        )
        for own, symbol in steps(word, len(table))
    ]


def added(vectors: Sequence[Vector], table: Table) -> Vector:
    """Sum of vectors over the logits of a table."""
    return combined([Fraction(1)] * len(vectors), vectors) or (Fraction(0),) * sum(map(len, table))


class Model(NamedTuple):
    """How a language model is scored: q(word), which enters β, and ∇ log q(word) in the tied logits."""

    likelihood: Callable[[Word, Table], Fraction]
    score: Callable[[Word, Table], Vector]


def chain_rule(word: Word, table: Table) -> Vector:
    """∇ log q(word): the sum over its tokens."""
    return added(token_scores(word, table), table)


def mean_over_tokens(word: Word, table: Table) -> Vector:
    """The sum over tokens divided by their number."""
    return tuple(entry / len(word) for entry in chain_rule(word, table))


def each_transition_once(word: Word, table: Table) -> Vector:
    """A transition that occurs again in the word contributes nothing more."""
    return added(list(dict(zip(steps(word, len(table)), token_scores(word, table), strict=True)).values()), table)


def first_token_left_out(word: Word, table: Table) -> Vector:
    """The start's row gets no gradient."""
    return added(token_scores(word, table)[1:], table)


def end_left_out(word: Word, table: Table) -> Vector:
    """The end symbol gets no gradient."""
    scores = zip(steps(word, len(table)), token_scores(word, table), strict=True)
    return added([score for (_, symbol), score in scores if symbol < len(table) - 1], table)


def counts_only(word: Word, table: Table) -> Vector:
    """e_symbol without the row's probabilities."""
    return tuple(
        Fraction(steps(word, len(table)).count((row, k))) for row, law in enumerate(table) for k in range(len(law))
    )


def likelihood_without_end(word: Word, table: Table) -> Fraction:
    """q of the letters alone."""
    return Fraction(likelihood(tuple(symbol for symbol in word if symbol < len(table) - 1), table))


def likelihood_of_last(word: Word, table: Table) -> Fraction:
    """q of the last token alone."""
    row, symbol = steps(word, len(table))[-1]
    return table[row][symbol]


@functools.cache
def problem_of(language: Language) -> Toy:
    """The categorical problem over the words of a language: the tables' products, and an arbitrary goodness."""
    draw = random.Random(7)
    prior, policy, proposal = (
        tuple(likelihood(word, language.table(seed)) for word in language.words) for seed in (1, 2, 3)
    )
    return Toy(prior, tuple(Fraction(draw.randint(1, 9), 10) for _ in language.words), policy, proposal)


def policy_table(language: Language) -> Table:
    """The table whose products are the policy of `problem_of`."""
    return language.table(2)


def moving_table(table: Table) -> list[list[Dual]]:
    """A table with its derivatives in all of its logits, row after row."""
    rows, symbols = len(table), len(table[0])
    return [
        [
            Dual(q.value, (Fraction(0),) * symbols * r + q.slopes + (Fraction(0),) * symbols * (rows - 1 - r))
            for q in in_logits(row)
        ]
        for r, row in enumerate(table)
    ]


@functools.cache
def ascent(language: Language, group_size: int) -> Vector:
    """−∇D_n in the tied logits, from the definition: E Σ α̂ dβ̂/β̂, with β̂ a dual number made of the table's."""
    problem, table = problem_of(language), moving_table(policy_table(language))
    alpha = problem.target_ratio
    beta = [likelihood(word, table) / s for word, s in zip(language.words, problem.proposal, strict=True)]

    def slope(group: Group) -> Vector:
        moving = shares(at(beta, group))
        weights = [a / b.value for a, b in zip(shares(at(alpha, group)), moving, strict=True)]
        return combined(weights, [b.slopes for b in moving])

    return mean_vector(problem.proposal, group_size, slope, mean_over_multisets)


def mean_estimate(language: Language, group_size: int, model: Model) -> Vector:
    """E ĝ in the tied logits: the expected total weight of every word, from the laws of A and of B, times its score."""
    problem, table = problem_of(language), policy_table(language)
    beta = [model.likelihood(word, table) / s for word, s in zip(language.words, problem.proposal, strict=True)]
    target = mean_self_normalized(problem.target_ratio, problem.proposal, group_size)
    policy = mean_self_normalized(beta, problem.proposal, group_size)
    coefficients = [a - b for a, b in zip(target, policy, strict=True)]
    return combined(coefficients, [model.score(word, table) for word in language.words])


@functools.cache
def visits() -> NDArray[np.float64]:
    """How often each of the 256 words takes each transition (words, rows · symbols)."""
    table = policy_table(FIXED_LENGTH)
    return np.array([counts_only(word, table) for word in FIXED_LENGTH.words], dtype=float)


@functools.cache
def still_problem() -> CategoricalProblem:
    """The 256 words in float64."""
    return CategoricalProblem(*([float(x) for x in vector] for vector in problem_of(FIXED_LENGTH)))


def with_logits(logits: NDArray[np.float64]) -> CategoricalProblem:
    """The 256 words with a policy of these logits (rows, symbols)."""
    log_table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    policy = np.exp(visits() @ log_table.ravel())
    return still_problem().with_policy([float(q) for q in policy / policy.sum()])


def derivative(function: Callable[[float], float], step: float = 0.01) -> float:
    """Derivative at 0 by central differences of sixth order."""
    weights = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
    return sum(weight * (function(k * step) - function(-k * step)) for k, weight in weights) / step


QUADRATURE_TOLERANCE = 1e-11


def require_close_by_quadrature(model: Model, group_size: int) -> None:
    """All 20 derivatives of D_n over 256 words against the expected weights times the scores."""
    table = policy_table(FIXED_LENGTH)
    logits = np.log(np.array(table, dtype=float))
    scores = np.array([model.score(word, table) for word in FIXED_LENGTH.words], dtype=float)
    right = mean_gradient(with_logits(logits), group_size) @ scores
    require(float(np.abs(right).max()) > 0.01, "the gradient is not small")
    for index, place in enumerate(np.ndindex(*logits.shape)):
        direction = np.zeros_like(logits)
        direction[place] = 1.0

        def value(size: float, direction: NDArray[np.float64] = direction) -> float:
            return self_normalized_kl(with_logits(logits + size * direction), group_size)

        require_close(-derivative(value), float(right[index]), QUADRATURE_TOLERANCE, f"logit {place}")


def larger_cases(model: Model) -> None:
    """Triples of 31 words, and pairs of 256: 32,896 multisets and 20 logits."""
    for language, n in ((WITH_END, 3), (FIXED_LENGTH, 2)):
        require_equal(mean_estimate(language, n, model), ascent(language, n), f"E ĝ, n = {n}")


@claim(
    "thm-4.2-bigram",
    "Theorem 4.2 for a language model with tied parameters: E Σ (α̂ − β̂) Σ_t ∇ log q(y_t|y_<t) = −∇D_n",
    source="Theorem 4.2 (4.1 in the later version)",
    method="exact: dual numbers over multisets against laws of sums; quadrature for n=8",
    case="31 words with an end symbol, 9 tied logits, n=2; 15 words, n=3; 256 words, 20 tied logits, n=8",
    subject=Model(likelihood, chain_rule),
    mutants={
        "mean over tokens, not sum": Model(likelihood, mean_over_tokens),
        "each transition once": Model(likelihood, each_transition_once),
        "first token left out": Model(likelihood, first_token_left_out),
        "end symbol left out of the score": Model(likelihood, end_left_out),
        "end symbol left out of q": Model(likelihood_without_end, chain_rule),
        "end symbol left out of both": Model(likelihood_without_end, end_left_out),
        "q of the last token only": Model(likelihood_of_last, chain_rule),
        "score without the softmax's mean": Model(likelihood, counts_only),
    },
    tolerance=QUADRATURE_TOLERANCE,
    code=("brain_core.brain_coefficients", "toy.mean_gradient"),
    tests=(
        "tests/llm/test_exact_gradient.py"
        "::test_the_mean_gradient_that_llm_trains_with_is_that_of_the_self_normalised_kl",
    ),
    slow=larger_cases,
)
def theorem_42_bigram(model: Model) -> None:
    """Exactly on the small language, in floats on the large one."""
    for language, n in ((WITH_END, 2), (SHORT_WITH_END, 3)):
        require_equal(mean_estimate(language, n, model), ascent(language, n), f"E ĝ, n = {n}")
    require_close_by_quadrature(model, 8)
    for language in (WITH_END, FIXED_LENGTH):
        masses = [model.likelihood(word, policy_table(language)) for word in language.words]
        require_equal(sum(masses), 1, "the probabilities of all words")

"""docs/paper_map.md, written from the registry: from a place in the paper to the claim, the code and the tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proofs_check.claims import Claim

HEAD = """# From the paper to the code

Written by `python -m proofs_check --paper-map docs/paper_map.md` from the claims themselves; do not edit. Equation and
theorem numbers are those of the first version of arXiv 2402.02479. `python -m proofs_check --only ID` runs a claim;
T0 to T13 are stated in [theory.md](theory.md). `tests/proofs_check/test_claims.py` runs every claim as a test; the last
column names tests of the shipped code beside it.

## Theorem numbers of both versions

| here and in the first version | later version | what it says |
|---|---|---|
| Definition 4.1 | Definition 4.0 | the self-normalised KL divergence |
| Theorem 4.2 | Theorem 4.1 | the BRAIn estimate is unbiased for −∇ of that divergence |
| Theorem 4.3 | Theorem 4.2 | its only zero is the posterior |
| Proposition 5.1 | Proposition 5.0 | the weights under a Bradley–Terry reward |
| Theorems 6.1, 7.1 | Theorems 5.1, 5.2 (their order is not known here) | DPO as a special case; PPO's optimum |

The code is keyed on names, not on numbers.
"""

SECTIONS = (
    ("Equations", ("eq",)),
    ("Theorems and propositions", ("thm", "prop")),
    ("Algorithm 1, line by line", ("alg",)),
    ("Beyond the paper", ("T",)),
    ("`brain_core` against exact arithmetic", ("bridge",)),
)

LIMITS = """## What no finite check can show

- Statements over all problems are checked on many, exactly; the proofs are in [theory.md](theory.md). Where z3 or sympy
  is named, the statement is proved for real or symbolic weights at the sizes given.
- Exchanging ∇ and E is automatic on finite sets of completions; on infinite ones it needs the domination of T0, which
  is assumed.
- The 1/n constants (T4e, T5) are limits: checked to the digits that a claim states, without a bound on the remainder.
- Monotonicity and bounds of the weighted divergence are proved and checked on finite sets only.
- T2, T3 and T7 are about softmax policies with one logit per completion; for a neural policy only T0, T1, T6, T10, T12
  and T13 hold as stated.
- Whether the paper's experimental findings hold is a question for experiments, not for these checks.
"""


def text(claims: Sequence[Claim]) -> str:
    """The whole page.

    Args:
        claims: All claims, in the order of the table.
    """
    parts = [HEAD]
    for title, kinds in SECTIONS:
        parts.append(f"## {title}\n\n{table([claim for claim in claims if kind(claim) in kinds])}")
    parts.append(f"## Errata\n\n{errata([claim for claim in claims if kind(claim) == 'err'])}")
    parts.append(LIMITS + remarks(claims))
    return "\n".join(parts)


def kind(claim: Claim) -> str:
    """The kind of a claim's id: `eq`, `T`, …"""
    return claim.id.split("-")[0].rstrip("0123456789abcdefghijkl") if claim.id[0] == "T" else claim.id.split("-")[0]


def table(claims: Sequence[Claim]) -> str:
    """Claims as a table: id, statement, how it is checked, code, tests."""
    head = "| claim | statement | checked by | code | tests |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{claim.id}` | {cell(claim.statement)} | {cell(how(claim))} | {listed(claim.code)} "
        f"| {listed(claim.tests)} |\n"
        for claim in claims
    )


def errata(claims: Sequence[Claim]) -> str:
    """Errata as a table: what is wrong, its mend, how it is shown."""
    head = "| claim | what is wrong | mend | shown by |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{claim.id}` | {cell(claim.statement)} | {cell(claim.mend or '–')} | {cell(how(claim))} |\n"
        for claim in claims
    )


def how(claim: Claim) -> str:
    """Method, case, tolerance and teeth of a claim; of a note, its reason."""
    if claim.check is None:
        return f"a note: {claim.note}"
    parts = [f"{claim.method}; {claim.case}"]
    if claim.tolerance:
        parts.append(f"tolerance {claim.tolerance:g}")
    if claim.mutants:
        parts.append(f"refutes: {', '.join(claim.mutants)}")
    if claim.counterexamples:
        parts.append(f"fails without: {', '.join(claim.counterexamples)}")
    return "; ".join(parts)


def remarks(claims: Iterable[Claim]) -> str:
    """What single claims say about their own limits."""
    return "".join(
        f"- `{claim.id}`: {cell(claim.note)}\n" for claim in claims if claim.check is not None and claim.note
    )


def listed(names: Sequence[str]) -> str:
    """Names as code, – where there are none."""
    return ", ".join(f"`{name}`" for name in names) or "–"


def cell(words: str) -> str:
    """Words that neither end a table's cell nor mean anything to Markdown or HTML."""
    return " ".join(words.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")

"""Which modules hold claims, and all claims in the order of the paper."""

from __future__ import annotations

import importlib
import re

from proofs_check.claims import REGISTRY, Claim

MODULES = (
    "section_4",
    "section_4_theorems",
    "algorithm",
    "algorithm_training",
    "sections_5_to_7",
    "appendix_a",
    "appendix_a_weights",
    "errata",
    "errata_assumptions",
    "beyond_divergence",
    "beyond_kl",
    "beyond_bias",
    "beyond_bounds",
    "beyond_estimators",
    "beyond_power",
    "beyond_data",
    "bridges",
    "autoregressive",
)

KINDS = ("eq", "thm", "prop", "alg", "T", "err", "bridge")
"""The kinds of ids, in the order of the table."""


def claims() -> list[Claim]:
    """All claims: equations, theorems, propositions, steps of the algorithm, T0 to T13, errata, bridges."""
    for module in MODULES:
        importlib.import_module(f"proofs_check.{module}")
    return sorted(REGISTRY.values(), key=lambda claim: position(claim.id))


def position(id: str) -> tuple[int, float, str]:
    """Where an id stands in the table: by kind, number and the rest."""
    found = re.fullmatch(r"([A-Za-z]+)-?([\d.]*)(.*)", id)
    if found is None or found[1] not in KINDS:
        raise ValueError(f"{id} is not an id of a claim; kinds are {', '.join(KINDS)}")
    return KINDS.index(found[1]), float(found[2] or 0), found[3]

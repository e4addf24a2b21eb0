"""Every claim of the registry, one test each: its check, its mutants, its counterexamples."""

from __future__ import annotations

import pytest

from proofs_check.claims import Claim, verdict_of
from proofs_check.registry import claims


@pytest.mark.parametrize("claim", [claim for claim in claims() if claim.check], ids=lambda claim: claim.id)
def test_a_claim_holds_and_its_teeth_bite(claim: Claim) -> None:
    found = verdict_of(claim)
    assert found.verdict == "holds", found.reason


@pytest.mark.slow
@pytest.mark.parametrize("claim", [claim for claim in claims() if claim.slow], ids=lambda claim: claim.id)
def test_a_claim_holds_in_its_slow_case(claim: Claim) -> None:
    found = verdict_of(claim, thorough=True)
    assert found.verdict == "holds", found.reason

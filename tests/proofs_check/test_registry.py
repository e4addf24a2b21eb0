"""The registry against a list of its own of what the paper and docs/theory.md state."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from proofs_check import claims as claims_module
from proofs_check.claims import Claim, Refuted, claim, note, require, require_close, require_equal, verdict_of
from proofs_check.paper_map import text
from proofs_check.registry import MODULES, claims, position

ROOT = Path(__file__).parents[2]
EQUATIONS = {f"eq-{number}" for number in range(1, 43)}
THEOREMS = {"thm-4.2", "thm-4.3", "prop-5.1", "thm-6.1", "thm-7.1"}
LINES = {f"alg-{number}" for number in range(1, 24)}
ERRATA = {f"err-{number}" for number in range(1, 21)}
BEYOND = {"T0", "T1", "T2", "T3", *(f"T4{letter}" for letter in "abcdefgh"), *(f"T{number}" for number in range(5, 14))}
EXEMPT: dict[str, str] = {}
"""Claims whose assumptions need no counterexample each, with the reason."""
NOTES = {"err-6", "err-7", "err-19", "err-20"}


@pytest.fixture(scope="module")
def registered() -> dict[str, Claim]:
    return {claim.id: claim for claim in claims()}


def test_everything_numbered_in_the_paper_has_a_claim(registered: dict[str, Claim]) -> None:
    assert (EQUATIONS | THEOREMS | LINES | ERRATA | BEYOND) - set(registered) == set()


def test_every_other_claim_is_a_part_of_one_or_a_bridge(registered: dict[str, Claim]) -> None:
    known = EQUATIONS | THEOREMS | LINES | ERRATA | BEYOND
    others = set(registered) - known
    assert {id for id in others if not id.startswith("bridge-")} == {
        id for id in others if re.fullmatch(r"(thm-4\.[23]-[a-z-]+)|(T\d+[a-z])", id)
    }


def test_only_the_named_notes_are_not_executed(registered: dict[str, Claim]) -> None:
    assert {id for id, claim in registered.items() if claim.check is None} == NOTES
    assert all(registered[id].note for id in NOTES)


def test_every_claim_has_teeth_a_source_a_method_and_a_case(registered: dict[str, Claim]) -> None:
    for found in registered.values():
        assert found.statement
        assert "\n" not in found.statement
        assert found.source
        if found.check is not None:
            assert found.mutants or found.counterexamples, found.id
            assert found.method, found.id
            assert found.case, found.id
            assert found.tolerance >= 0


def test_every_assumption_has_a_counterexample_of_its_own(registered: dict[str, Claim]) -> None:
    executed = {id: found for id, found in registered.items() if found.check is not None}
    missing = {
        id: [each for each in found.assumptions if each not in found.counterexamples] for id, found in executed.items()
    }
    assert {id: names for id, names in missing.items() if names and id not in EXEMPT} == {}
    assert [id for id, reason in EXEMPT.items() if not reason or not missing[id]] == []


def test_every_erratum_says_how_to_mend_it(registered: dict[str, Claim]) -> None:
    assert [id for id in sorted(ERRATA) if registered[id].check and not registered[id].mend] == []


def test_what_a_claim_points_to_exists(registered: dict[str, Claim]) -> None:
    for found in registered.values():
        for name in found.code:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), f"{found.id}: {name}"
        for place in found.tests:
            path, _, function = place.partition("::")
            assert f"def {function}(" in (ROOT / path).read_text(), f"{found.id}: {place}"


def test_every_module_of_claims_is_in_the_registry() -> None:
    folder = ROOT / "proofs_check"
    holding = {p.stem for p in folder.glob("*.py") if re.search(r"^@claim\(|^note\(", p.read_text(), re.M)}
    assert holding <= set(MODULES)


def test_the_map_of_the_paper_is_the_one_that_the_registry_writes() -> None:
    assert (ROOT / "docs/paper_map.md").read_text() == text(claims()) + "\n" * (not text(claims()).endswith("\n"))


def test_the_table_follows_the_paper() -> None:
    ids = ["bridge-snis", "err-2", "T4b", "T10", "T4a", "alg-3", "thm-4.3", "thm-4.2", "eq-10", "eq-9", "prop-5.1"]
    expected = ["eq-9", "eq-10", "thm-4.2", "thm-4.3", "prop-5.1", "alg-3", "T4a", "T4b", "T10", "err-2", "bridge-snis"]
    assert sorted(ids, key=position) == expected
    with pytest.raises(ValueError, match="not an id"):
        position("lemma-1")


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "REGISTRY", {})


FACTS = {"source": "s", "method": "m", "case": "c"}


def test_a_claim_without_teeth_is_refused(empty_registry: None) -> None:
    with pytest.raises(ValueError, match="no teeth"):
        claim("eq-1", "s", **FACTS)(lambda subject: None)


def test_an_id_is_used_once(empty_registry: None) -> None:
    note("err-1", "s", source="s", reason="r")
    with pytest.raises(ValueError, match="two claims are called err-1"):
        note("err-1", "s", source="s", reason="r")


def is_two(value: object) -> None:
    require(value == 2, f"{value} is not 2")


def is_two_or_breaks(value: object) -> None:
    if value == "breaks":
        raise RuntimeError("broken")
    is_two(value)


def verdict(subject: object, **facts: object) -> tuple[str, str]:
    found = verdict_of(Claim("eq-1", "s", "s", "m", "c", facts.pop("check", is_two), subject, **facts))
    return found.verdict, found.reason


def fails() -> None:
    raise Refuted("it holds after all")


def test_a_claim_holds_only_where_its_check_passes_and_its_teeth_bite() -> None:
    assert verdict(2, mutants={"three": 3}) == ("holds", "")
    assert verdict(3) == ("FAILS", "3 is not 2")
    assert verdict(2, mutants={"three": 3, "also two": 2}) == ("FAILS", "the mutant “also two” is not refuted")
    assert verdict(2, counterexamples={"x": lambda: None}) == ("holds", "")
    found = verdict(2, counterexamples={"x": fails})
    assert found == ("FAILS", "the counterexample to dropping “x” does not work: it holds after all")


def test_a_check_that_crashes_is_a_failed_claim_and_not_a_crash() -> None:
    assert verdict("breaks", check=is_two_or_breaks) == ("FAILS", "RuntimeError: broken")
    broken = verdict(2, check=is_two_or_breaks, mutants={"m": "breaks"})
    assert broken == ("FAILS", "the mutant “m” breaks with RuntimeError: broken")


def test_the_slow_case_runs_only_where_it_is_asked_for() -> None:
    slow = Claim("eq-1", "s", "s", "m", "c", is_two, 2, {"three": 3}, slow=lambda subject: fails())
    assert verdict_of(slow).verdict == "holds"
    assert verdict_of(slow, thorough=True).verdict == "FAILS"


def test_what_is_required_is_refuted_otherwise() -> None:
    require(True, "")
    require_equal(1, 1, "")
    require_close(1.0, 1.1, 0.2, "")
    for wrong in (
        lambda: require(False, "x"),
        lambda: require_equal(1, 2, "x"),
        lambda: require_close(1.0, 1.3, 0.2, "x"),
        lambda: require_close(float("nan"), 1.0, 1.0, "x"),
    ):
        with pytest.raises(Refuted, match="x"):
            wrong()

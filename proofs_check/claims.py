"""What a claim is: a statement with a check that can fail, and the teeth that show that it can."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[Any], None]


class Refuted(AssertionError):  # noqa: N818 (a verdict, not a mistake)
    """A checked statement is false; the message says where."""


def require(condition: bool, what: str) -> None:
    """Raise Refuted unless the condition holds."""
    if not condition:
        raise Refuted(what)


def require_equal(left: object, right: object, what: str) -> None:
    """Raise Refuted unless both sides are equal, without any tolerance."""
    if left != right:
        raise Refuted(f"{what}: {left} is not {right}")


def require_close(left: float, right: float, tolerance: float, what: str) -> None:
    """Raise Refuted unless both sides differ by at most `tolerance`; a NaN is refuted."""
    if not abs(left - right) <= tolerance:
        raise Refuted(f"{what}: {left!r} and {right!r} differ by more than {tolerance:g}")


@dataclass(frozen=True)
class Claim:
    """One checked statement.

    Attributes:
        id: `eq-12`, `thm-4.2`, `alg-17`, `T4c`, `err-13`, `bridge-brain`.
        statement: What is claimed, in one line.
        source: Where it stands in the paper or in docs/theory.md.
        method: How it is checked, e.g. "exact: all ordered groups", "z3", "quadrature".
        case: The largest case run by default.
        check: Raises Refuted unless its argument, the subject, satisfies the statement.
        subject: What is claimed to satisfy it: usually the formula, or a tuple of formulas.
        mutants: Wrong subjects by name; the check must refute every one. An erratum's is the form as printed.
        counterexamples: Per assumption, a function that shows (by `require`) how the conclusion fails without it.
        assumptions: What the statement needs.
        tolerance: 0 where the check is exact.
        code: Public names that implement it, e.g. "brain_core.brain_coefficients".
        tests: Tests of the suite that also hold it, "tests/path.py::test_name".
        slow: A larger case of the check, run with --thorough.
        note: What no finite check can show, or why there is nothing to run.
        mend: For an erratum, the corrected form.
    """

    id: str
    statement: str
    source: str
    method: str
    case: str
    check: Check | None
    subject: Any = None
    mutants: Mapping[str, Any] = field(default_factory=dict)
    counterexamples: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    assumptions: Sequence[str] = ()
    tolerance: float = 0
    code: Sequence[str] = ()
    tests: Sequence[str] = ()
    slow: Check | None = None
    note: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Verdict:
    """What running a claim gave: "holds", "note" (nothing to run, with the reason) or "FAILS", and why."""

    claim: Claim
    verdict: str
    reason: str
    seconds: float


REGISTRY: dict[str, Claim] = {}


def claim(id: str, statement: str, **facts: Any) -> Callable[[Check], Check]:
    """Register the decorated check as a claim; the facts are the other attributes of `Claim`.

    Raises:
        ValueError: The id is taken, or the claim has no teeth: neither mutants nor counterexamples.
    """

    def register(check: Check) -> Check:
        _register(Claim(id=id, statement=statement, check=check, **facts))
        return check

    return register


def note(id: str, statement: str, *, source: str, reason: str, mend: str = "") -> None:
    """Register what is documented but not executable, with the reason."""
    _register(Claim(id, statement, source, "documented note", "-", None, note=reason, mend=mend))


def _register(new: Claim) -> None:
    """Add a claim to the registry."""
    if new.id in REGISTRY:
        raise ValueError(f"two claims are called {new.id}")
    if new.check is not None and not new.mutants and not new.counterexamples:
        raise ValueError(f"{new.id} has no teeth: give it a mutant or a counterexample")
    REGISTRY[new.id] = new


def verdict_of(tried: Claim, *, thorough: bool = False) -> Verdict:
    """Run a claim: its check, then its teeth.

    Args:
        tried: The claim.
        thorough: Whether to run its slow case too.
    """
    started = time.perf_counter()
    reason = _failure(tried, thorough)
    if tried.check is None:
        return Verdict(tried, "note", tried.note, 0.0)
    return Verdict(tried, "FAILS" if reason else "holds", reason, time.perf_counter() - started)


def _failure(tried: Claim, thorough: bool) -> str:
    """Why a claim fails, "" if it holds."""
    checks = [check for check in (tried.check, tried.slow if thorough else None) if check]
    for check in checks:
        if reason := _refutation(lambda check=check: check(tried.subject)):  # type: ignore[misc]
            return reason
    for name, show in tried.counterexamples.items():
        if reason := _refutation(show):
            return f"the counterexample to dropping “{name}” does not work: {reason}"
    blunt = {name: what for name, mutant in tried.mutants.items() if (what := _survival(checks[0], mutant))}
    return "; ".join(f"the mutant “{name}” {what}" for name, what in blunt.items())


def _survival(check: Check, mutant: Any) -> str:
    """How a mutant escapes a check, "" if it is refuted."""
    try:
        check(mutant)
    except Refuted:
        return ""
    except Exception as error:  # a mutant must be refuted, not merely break
        return f"breaks with {type(error).__name__}: {error}"
    return "is not refuted"


def _refutation(run: Callable[[], None]) -> str:
    """The reason why something is refuted or broken, "" if it is neither."""
    try:
        run()
    except Refuted as refuted:
        return str(refuted)
    except Exception as error:  # a claim that crashes is a failed claim, never a crashed table
        return f"{type(error).__name__}: {error}"
    return ""

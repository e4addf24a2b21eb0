"""`python -m proofs_check`: run every claim and print what holds."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from proofs_check.claims import Claim, Verdict, verdict_of
from proofs_check.registry import claims

WIDTHS = {"claim": 18, "verdict": 7, "seconds": 8}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 where a claim fails, 2 for a wrong option."""
    made = parser()
    options = made.parse_args(arguments)
    if options.only and (options.mutate or options.paper_map):
        made.error("--only chooses claims to run or to list; it goes with neither --mutate nor --paper-map")
    if options.mutate:
        from proofs_check.mutate import report

        return 0 if report(print) else 1
    try:
        chosen = selected(claims(), options.only)
        if options.paper_map:
            from proofs_check.paper_map import text

            write(Path(options.paper_map), text(chosen))
        elif options.list:
            print("\n".join(f"{claim.id:{WIDTHS['claim']}} {claim.statement}" for claim in chosen))
        else:
            return run(chosen, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m proofs_check", description=__doc__)
    made.add_argument("--only", action="append", metavar="ID", help="this claim and its parts; repeatable")
    made.add_argument("--list", action="store_true", help="list the claims and stop")
    made.add_argument("--json", metavar="FILE", help="write the verdicts to a file as well")
    made.add_argument("--thorough", action="store_true", help="run the slow cases too")
    made.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: %(default)s)"
    )
    made.add_argument(
        "--mutate", action="store_true", help="break each formula of brain_core and see that it is noticed"
    )
    made.add_argument("--paper-map", metavar="FILE", help="write the map from the paper to claims, code and tests")
    return made


def selected(known: Sequence[Claim], patterns: Sequence[str] | None) -> list[Claim]:
    """The claims that a pattern names, in the order of the table; all of them without patterns.

    Raises:
        ValueError: A pattern names none.
    """
    for pattern in patterns or ():
        if not any(is_named(claim.id, pattern) for claim in known):
            near = difflib.get_close_matches(pattern, [claim.id for claim in known], n=3)
            hint = f"; did you mean {', '.join(near)}" if near else "; --list shows all"
            raise ValueError(f"--only {pattern}: no claim has that id{hint}")
    return [claim for claim in known if patterns is None or any(is_named(claim.id, pattern) for pattern in patterns)]


def is_named(id: str, pattern: str) -> bool:
    """Whether a pattern names a claim: its id, the id that it is a part of (T4 of T4c), or a shell pattern."""
    is_part = id.startswith(pattern) and re.fullmatch(r"[a-z]|-[a-z-]+", id[len(pattern) :]) is not None
    return is_part or fnmatch.fnmatchcase(id, pattern)


def run(chosen: Sequence[Claim], options: argparse.Namespace) -> int:
    """Run claims, print the table and its summary; return the exit status."""
    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}; it must be at least 1")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no such folder; make it first")
    started = time.perf_counter()
    print(f"{'claim':{WIDTHS['claim']}} {'verdict':{WIDTHS['verdict']}} {'seconds':>{WIDTHS['seconds']}}  statement")
    verdicts = []
    for verdict in in_order(chosen, options.thorough, options.jobs):
        verdicts.append(verdict)
        print(row(verdict), flush=True)
    failed = [verdict.claim.id for verdict in verdicts if verdict.verdict == "FAILS"]
    print(summary(verdicts, time.perf_counter() - started))
    if options.json:
        write(Path(options.json), json.dumps([record(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
    return 1 if failed else 0


def in_order(chosen: Sequence[Claim], thorough: bool, jobs: int) -> Iterator[Verdict]:
    """The verdicts, in the order of the claims, worked out by several processes."""
    if jobs == 1 or len(chosen) == 1:
        yield from (verdict_of(claim, thorough=thorough) for claim in chosen)
        return
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(outcome, [claim.id for claim in chosen], [thorough] * len(chosen))
        for claim, (verdict, reason, seconds) in zip(chosen, found, strict=True):
            yield Verdict(claim, verdict, reason, seconds)


def outcome(id: str, thorough: bool) -> tuple[str, str, float]:
    """What a claim gave, as what can travel between processes."""
    found = verdict_of(next(claim for claim in claims() if claim.id == id), thorough=thorough)
    return found.verdict, found.reason, found.seconds


def row(verdict: Verdict) -> str:
    """One claim in the table: its verdict, and below it how it was checked or why it fails."""
    claim = verdict.claim
    indent = " " * (sum(WIDTHS.values()) + 4)
    detail = verdict.reason if verdict.reason else f"{claim.method} · {claim.case}{teeth(claim)}"
    return (
        f"{claim.id:{WIDTHS['claim']}} {verdict.verdict:{WIDTHS['verdict']}} "
        f"{verdict.seconds:{WIDTHS['seconds']}.2f}  {claim.statement}\n{indent}{detail}"
    )


def teeth(claim: Claim) -> str:
    """How many wrong forms a claim refutes, and how many counterexamples it has."""
    parts = [
        f" · {len(found)} {word}{'s' if len(found) > 1 else ''}"
        for found, word in ((claim.mutants, "mutant"), (claim.counterexamples, "counterexample"))
        if found
    ]
    return "".join(parts)


def summary(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The last line of the table."""
    counts = {name: sum(v.verdict == name for v in verdicts) for name in ("holds", "FAILS", "note")}
    mutants = sum(len(v.claim.mutants) for v in verdicts if v.verdict == "holds")
    shown = sum(len(v.claim.counterexamples) for v in verdicts if v.verdict == "holds")
    return (
        f"\n{len(verdicts)} claims: {counts['holds']} hold, {counts['FAILS']} fail, {counts['note']} notes; "
        f"{mutants} mutants refuted, {shown} counterexamples shown; {seconds:.0f} s"
    )


def record(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON."""
    claim = verdict.claim
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "method": claim.method,
        "case": claim.case,
        "assumptions": list(claim.assumptions),
        "tolerance": claim.tolerance,
        "mutants": list(claim.mutants),
        "counterexamples": list(claim.counterexamples),
        "code": list(claim.code),
        "tests": list(claim.tests),
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 3),
    }


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())

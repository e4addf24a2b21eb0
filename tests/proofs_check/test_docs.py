"""What the documentation says about claims, commands and figures is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proofs_check.registry import claims
from toy.__main__ import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["theory.md", "questions.md"]
ID = re.compile(r"\b(?:eq-\d+|thm-\d\.\d(?:-[a-z]+)?|alg-\d+|err-\d+|T\d+[a-i]?|bridge-[a-z-]+)\b")


@pytest.mark.parametrize("page", PAGES)
def test_every_claim_that_a_page_names_exists(page: str) -> None:
    known = {claim.id for claim in claims()}
    whole = {re.sub(r"[a-z]$", "", id) for id in known if id.startswith("T")}  # T4 stands for T4a to T4i
    named = set(ID.findall((DOCS / page).read_text()))
    assert len(named) > 20
    assert named - known - whole == set()


def test_every_arrow_of_the_bridge_is_a_claim() -> None:
    arrows = re.findall(r'-- "(.*?)" -->', (DOCS / "theory.md").read_text())
    assert len(arrows) >= 10
    assert [arrow for arrow in arrows if not ID.search(arrow)] == []


@pytest.mark.parametrize("page", [*PAGES, "experiments/README.md", "../README.md"])
def test_every_figure_and_page_that_a_page_links_to_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        assert (DOCS / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_study_has_its_four_files_and_is_shown_in_the_theory(command: str) -> None:
    for kind in ("png", "svg", "csv", "json"):
        assert (DOCS / "figures" / f"{command}.{kind}").stat().st_size > 0
    assert f"(figures/{command}.png)" in (DOCS / "theory.md").read_text()


def test_the_readmes_example_runs_and_its_unbiased_estimators_are_unbiased(capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```$", (DOCS / "../README.md").read_text(), re.M | re.S)
    exec(compile(example, "README.md", "exec"), {})
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(shown) == ["brain", "snis", "dpg", "gdcpp"]
    fractions = {name: re.findall(r"Fraction\((-?\d+), (\d+)\)", line) for name, line in shown.items()}
    assert fractions["dpg"] == fractions["gdcpp"] != fractions["brain"]

"""The page of results: its tables are those of the experiments' files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doc_tables import DOCS
from llm.errors import UserError
from llm.experiments.page import filled, main

CLAIM = {"claim": "A beats B", "paper": "–", "shown": "+1.0 [0.5, 1.5]", "verdict": "holds"}


def test_the_tables_of_the_results_are_those_of_the_experiments_files() -> None:
    assert filled(DOCS / "results.md") == (DOCS / "results.md").read_text("utf-8")


def test_a_page_is_filled_between_its_comments_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"command": "python -m x", "claims": [CLAIM]}))
    page = tmp_path / "page.md"
    page.write_text("# Before\n<!-- claims: a.json -->\nsomething else\n<!-- end of claims -->\nafter\n")
    main([str(page)])
    text = page.read_text()
    assert "| A beats B | – | +1.0 [0.5, 1.5] | holds |" in text
    assert "`python -m x`" in text
    assert "something else" not in text
    assert text.startswith("# Before\n<!-- claims: a.json -->\n")
    assert text.endswith("<!-- end of claims -->\nafter\n")
    assert filled(page) == text


def test_only_claims_with_some_words_are_left(tmp_path: Path) -> None:
    claims = [CLAIM, {**CLAIM, "claim": "C beats D"}]
    (tmp_path / "a.json").write_text(json.dumps({"command": "python -m x", "claims": claims}))
    (tmp_path / "page.md").write_text("<!-- claims: a.json with C beats -->\n<!-- end of claims -->\n")
    assert "C beats D" in filled(tmp_path / "page.md")
    assert "A beats B" not in filled(tmp_path / "page.md")


def test_a_head_to_head_comparison_is_a_claim_too(tmp_path: Path) -> None:
    shares = {name: {"estimate": value} for name, value in (("wins", 0.5), ("ties", 0.3), ("losses", 0.2))}
    margin = {"estimate": 0.3, "low": 0.1, "high": 0.5}
    match = {"first": "a", "second": "b", "paper": "1 / 2 / 3", **shares, "margin": margin, "verdict": "holds"}
    (tmp_path / "a.json").write_text(json.dumps({"command": "python -m x", "claims": [], "matches": [match]}))
    (tmp_path / "page.md").write_text("<!-- claims: a.json -->\n<!-- end of claims -->\n")
    expected = (
        "| a wins against b more often than it loses | 1 / 2 / 3 | +30.0 [+10.0, +50.0]: 50.0 wins, 30.0 ties, 20.0 "
    )
    assert expected + "losses | holds |" in filled(tmp_path / "page.md")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- claims: none.json -->\n<!-- end of claims -->\n")
    with pytest.raises(UserError, match=r"none\.json: no such file\. Run its experiment first"):
        filled(page)

"""`python -m llm.experiments.page FILE`: fill the tables of claims in a page from the experiments' files.

A table stands between two comments of the page, the first of which names the file that it is made from:

    <!-- claims: experiments/summaries/table3.json -->
    <!-- end of claims -->

"with WORDS" behind the file's name leaves only the claims in which these words stand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.console import entry_point
from llm.errors import UserError
from llm.experiments.tables import claims_lines
from llm.store import write_text

BLOCK = re.compile(r"(<!-- claims: (\S+)(?: with (.+?))? -->\n).*?(<!-- end of claims -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        raise UserError("Give the page: python -m llm.experiments.page docs/results.md")
    page = Path(arguments[0])
    write_text(page, filled(page))


def filled(page: Path) -> str:
    """Return a page's text with its tables made anew.

    Args:
        page: A Markdown file; the files that it names are relative to its folder.

    Raises:
        UserError: A file that the page names is missing.
    """
    text = page.read_text("utf-8")
    return BLOCK.sub(lambda found: found[1] + _table(page.parent / found[2], found[3] or "") + found[4], text)


def _table(path: Path, words: str) -> str:
    """The claims with some words that a file holds, as a table, and the command behind them."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Run its experiment first.")
    found = json.loads(path.read_text("utf-8"))
    claims = [*found["claims"], *map(_of_match, found.get("matches", []))]
    claims = [claim for claim in claims if words in claim["claim"]]
    return "\n".join([f"`{found['command']}`", "", *claims_lines(claims), "", ""])


def _of_match(match: Mapping[str, Any]) -> dict[str, Any]:
    """A head-to-head comparison as a claim."""
    wins, ties, losses = (100 * match[outcome]["estimate"] for outcome in ("wins", "ties", "losses"))
    margin = "{estimate:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * v for k, v in match["margin"].items()})
    text = f"{match['first']} wins against {match['second']} more often than it loses"
    shown = f"{margin}: {wins:.1f} wins, {ties:.1f} ties, {losses:.1f} losses"
    return {"claim": text, "paper": match["paper"], "shown": shown, "verdict": match["verdict"]}


if __name__ == "__main__":
    sys.exit(entry_point(main))

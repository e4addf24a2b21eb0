"""The pages in a browser, headless Chromium: what others wrote is text there, runs nothing and widens nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from finished_runs import NASTY, add_alarm, add_evaluation, add_verdicts, make_run
from llm import comparison, report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
LOOK = """<script>
const found = {
  title: document.title,
  scripts: document.scripts.length,
  images: document.images.length,
  page: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  wide: [...document.querySelectorAll("body > *")].filter((e) => e.getBoundingClientRect().right > innerWidth).length,
  tall: Math.max(...[...document.querySelectorAll(".text")].map((e) => e.clientHeight)),
  texts: [...document.querySelectorAll(".text")].map((e) => e.textContent),
  shown: document.body.innerText,
};
document.documentElement.setAttribute("data-found", JSON.stringify(found));
</script></body>"""
LINE = "x" * 10_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path"),
]


class Found(HTMLParser):
    """What `LOOK` saw."""

    values: dict[str, Any]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.values = json.loads(dict(attrs)["data-found"] or "")


def opened(page: str, folder: Path, width: int) -> dict[str, Any]:
    """Open a page without the policy that forbids it every script, so that only the escaping is left; look at it."""
    bare, policies = POLICY.subn("", page)
    assert policies == 1
    file = folder / "opened.html"
    file.write_text(bare.replace("</body>", LOOK), encoding="utf-8")
    command = [str(BROWSER), *OPTIONS, f"--window-size={width},900", f"--user-data-dir={folder / f'profile-{width}'}"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, timeout=120, check=True)
    found = Found()
    found.feed(done.stdout.decode())
    return found.values


def nasty_run(folder: Path) -> Path:
    """A run in which everything that others write is as nasty as can be."""
    name = NASTY["script"]
    make_run(folder, list(NASTY.values()), config=f"model: {json.dumps(name)}\nmethod: {json.dumps('x:' + name)}\n")
    add_alarm(folder, name)
    add_verdicts(folder, name, LINE)
    add_evaluation(folder, "best-x4", list(NASTY.values()), prompts=LINE)
    return folder


@pytest.mark.parametrize("width", [1200, 600])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_nasty_texts_are_shown_as_text_run_nothing_and_do_not_widen_the_page(
    kind: str, width: int, tmp_path: Path
) -> None:
    first = nasty_run(tmp_path / "<script>document.title = 'taken'<")
    if kind == "report":
        report.write(first)
        page = (first / "report.html").read_text(encoding="utf-8")
    else:
        page = comparison.page([first, nasty_run(tmp_path / "b")])
    found = opened(page, tmp_path, width)
    assert found["title"] == (f"BRAIn run {first}" if kind == "report" else "BRAIn: 2 runs")
    assert (found["scripts"], found["images"]) == (1, 0)  # the script is this test's own
    assert found["page"] == found["window"] <= width
    assert found["wide"] == 0
    assert found["tall"] < 400
    for name, text in list(NASTY.items())[:12]:
        assert found["texts"].count(text.replace("\r\n", "\n").replace("\r", "\n")) >= 4, name
    for text in (NASTY["script"], NASTY["closing tags"], NASTY["broken UTF-8"], LINE):
        assert text in found["shown"]

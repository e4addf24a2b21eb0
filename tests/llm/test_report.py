"""The report: everything that models and data sets wrote is shown as text, and the same run gives the same files."""

from __future__ import annotations

import functools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.colors
import pytest

from llm import report
from llm.console import entry_point
from llm.errors import UserError
from llm.evaluate import change, figures
from llm.records import Completion, EvalRecord, Prompt
from llm.store import ShardFolder, write_json, write_text

NASTY = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "closing tags": '</td></tr></table></pre></body></html>"\'><b a="',
    "template": "{{ 7 * 7 }} {% for x in y %} {# gone #} ${x}",
    "entities": "&lt;b&gt; &amp; &#60;i&#62;",
    "fences": "```\n# heading\n~~~\n````\n</details>",
    "markdown": "# heading\n- item\n| a | b |\n|---|---|\n![x](http://example.org/x.png)\n<b>bold</b>",
    "line breaks": "one\rtwo\r\nthree\x0bfour\x0cfive\x1csix\x85seven\u2028eight\u2029nine",
    "control characters": "\x1b[31mred\x1b[0m \x07 \x08",
    "long line": "x" * 10_000,
    "blank lines": "\n\n\n  \n# heading\n\n",
    "empty": "",
    "not ASCII": "naïve 😀 العربية \u202e reversed",
}
DRAWN, DRAW_CURVES = report._drawn, report.draw_curves
VOID = {"meta", "img", "br"}


def records(texts: list[str], *, reward: float = 0.0, judge: bool = True) -> list[EvalRecord]:
    return [
        EvalRecord(
            Prompt(f"test-{i}", text, (3, 4), None),
            Completion(f"test-{i}", 0, (5, 6, 2), "stop", text),
            text,
            reward + i,
            1.0,
            0.5 * i if judge else None,
            0.5 if judge else None,
            -2.0 + reward,
            -2.0,
        )
        for i, text in enumerate(texts)
    ]


def events(steps: int = 8) -> list[dict[str, Any]]:
    validation = {"reward_model_win_rate": 0.4, "mean_reward": -0.5, "kl_to_prior": 0.0, "completion_length": 9.5}
    step = {"snkl": 0.3, "ess_target": 3.0, "ess_policy": 5.0}
    made: list[dict[str, Any]] = [{"event": "evaluation", "step": 0}, {"event": "validation", "step": 0, **validation}]
    made += [{"event": "step", "step": i + 1, **step} for i in range(steps)]
    return [*made, {"event": "validation", "step": steps, **validation}]


def make_run(folder: Path, texts: list[str], *, logged: list[dict[str, Any]] | None = None, judge: bool = True) -> Path:
    """A finished run's folder, as far as the report reads it."""
    before, after = records(texts, judge=judge), records(texts, reward=1.5, judge=judge)
    for name, one in (("before", before), ("after", after)):
        ShardFolder(folder / "eval").write(name, [record.as_row() for record in one])
    summary = {
        "before": figures(before),
        "after": figures(after),
        "change": change(before, after),
        "best": {"step": 8, "win_rate": 0.5, "mean_reward": 1.0},
        "seconds": 12.3,
        "versions": {"python": "3", "torch": "<b>2</b>"},
        "counts": {"train_prompts": 7},
    }
    write_json(folder / "summary.json", summary)
    write_text(folder / "config.yaml", "model: <script>alert(2)</script>\nreward: '{{ 1 }}'\n")
    logged = events() if logged is None else logged
    write_text(folder / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in logged))
    return folder


@functools.cache
def drawing(suffix: str) -> bytes:
    """The curves of `events()`."""
    return DRAWN(DRAW_CURVES(events()), suffix)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves of `events()` once for all tests that are about something else."""
    monkeypatch.setattr(report, "_drawn", lambda figure, suffix: drawing(suffix))
    monkeypatch.setattr(report, "draw_curves", lambda events: None)


class Page(HTMLParser):
    """The elements and attributes of a page, and what stands in its cells and preformatted blocks."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "pre"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "pre"):
            self.cells[-1] += data


def page(folder: Path) -> Page:
    report.write(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def normal(text: str) -> str:
    """Text as an HTML page gives it back: its line breaks are all alike."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("kind", NASTY)
def test_what_was_written_by_others_is_text_in_the_page(kind: str, tmp_path: Path) -> None:
    plain = page(make_run(tmp_path / "plain", ["harmless", "harmless"]))
    nasty = page(make_run(tmp_path / "nasty", [NASTY[kind], "harmless"]))
    assert nasty.elements == plain.elements
    assert nasty.attributes == plain.attributes
    assert nasty.open == []
    assert [normal(cell) for cell in nasty.cells].count(normal(NASTY[kind])) >= 4
    assert "script" not in nasty.elements
    assert not any(name.startswith("on") for name in nasty.attributes)


@pytest.mark.usefixtures("drawn_once")
def test_settings_and_versions_are_text_in_the_page(tmp_path: Path) -> None:
    cells = page(make_run(tmp_path, ["a"])).cells
    assert "model: <script>alert(2)</script>\nreward: '{{ 1 }}'\n" in cells
    assert any("torch <b>2</b>" in cell for cell in cells)


def code_blocks(markdown: str) -> list[str]:
    """Indented code blocks after CommonMark: runs of lines indented by four, with blank lines between them."""
    found: list[list[str]] = [[]]
    for line in re.split(r"\r\n|\n|\r", markdown):
        if line.startswith("    ") or (found[-1] and not line.strip()):
            found[-1].append(line[4:])
        elif found[-1]:
            found.append([])
    return ["\n".join(lines).strip("\n") for lines in found if lines]


def outside_code(markdown: str) -> list[str]:
    return [line for line in re.split(r"\r\n|\n|\r", markdown) if line.strip() and not line.startswith("    ")]


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("kind", NASTY)
def test_what_was_written_by_others_stays_in_its_code_block(kind: str, tmp_path: Path) -> None:
    texts = {"plain": "harmless", "nasty": NASTY[kind]}
    markdown = {}
    for name, text in texts.items():
        report.write(make_run(tmp_path / name, [text, "harmless"]))
        markdown[name] = (tmp_path / name / "report.md").read_bytes().decode()
    assert outside_code(markdown["nasty"]) == outside_code(markdown["plain"])
    shown = "\n".join(NASTY[kind].splitlines()).strip("\n")
    assert sum(block.rstrip() == shown.rstrip() for block in code_blocks(markdown["nasty"])) >= 4 or not shown.strip()


@pytest.mark.usefixtures("drawn_once")
def test_half_a_surrogate_pair_is_shown_as_its_escape(tmp_path: Path) -> None:
    """A model's name may hold one: a path that is no UTF-8 comes to Python so."""
    folder = make_run(tmp_path, ["a"])
    summary = json.loads((folder / "summary.json").read_text())
    summary["versions"]["odd"] = "\ud83d"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert any("odd \\ud83d" in cell for cell in page(folder).cells)
    assert "odd \\ud83d" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_closing_table_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = report.closing_table(make_run(tmp_path, list(NASTY.values())[:3] + ["\x1b[31mred\r\x07"] * 2))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_two_calls_give_identical_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path, list(NASTY.values()))
    names = ["report.html", "report.md", "figures/curves.svg", "figures/curves.png"]
    report.write(folder)
    first = [(folder / name).read_bytes() for name in names]
    report.write(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert all(first)


@pytest.mark.usefixtures("drawn_once")
def test_the_report_changes_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report.write(folder)
    assert {path: path.read_bytes() for path in before} == before


def test_the_table_shows_every_figure_with_its_interval_and_its_paired_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "b", "c"])
    rows = {name: texts for name, *texts in report.table_rows(json.loads((folder / "summary.json").read_text()))}
    assert len(rows) == len(report.FIGURES)
    assert rows["wins over the reference, judge"][0] == "33.3% [6.1%, 79.2%]"
    assert rows["mean reward"] == ["1.00 [-1.48, 3.48]", "2.50 [0.02, 4.98]", "+1.50 [+1.50, +1.50]"]
    assert rows["completion length (tokens)"][2] == ""


def test_figures_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "b"], judge=False)
    names = [name for name, *_ in report.table_rows(json.loads((folder / "summary.json").read_text()))]
    assert len(names) == len(report.FIGURES) - 2
    assert not any("judge" in name for name in names)


@pytest.mark.usefixtures("drawn_once")
def test_a_single_prompt_has_figures_without_an_interval(tmp_path: Path) -> None:
    cells = page(make_run(tmp_path, ["a"])).cells
    assert "0.00 [one value, no interval]" in cells


@pytest.mark.usefixtures("drawn_once")
def test_a_report_says_how_many_of_the_samples_it_shows(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [f"text {i}" for i in range(20)])
    report.write(folder)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "The first 12 of 20 held-out prompts" in text
        assert "text 11" in text
        assert "text 12" not in text


TITLES = ["win rate", "mean reward", "SNKL", "ESS", "KL to the prior", "completion length"]


def test_the_curves_are_those_that_a_reader_asks_for() -> None:
    panels = report.draw_curves(events()).axes
    assert all(title in axes.get_title() for title, axes in zip(TITLES, panels, strict=True))
    snkl = panels[2]
    assert "known floor 0" in snkl.get_title()
    assert snkl.get_ylim()[0] == 0
    assert list(snkl.lines[-1].get_ydata()) == [0, 0]
    assert list(snkl.lines[0].get_xdata()) == list(range(1, 9))
    assert list(snkl.lines[0].get_ydata()) == [0.3] * 8


def test_the_curves_are_readable_in_grey() -> None:
    for axes in report.draw_curves(events()).axes:
        assert axes.get_legend() is None
        assert axes.title.get_fontsize() >= 8
        assert all(label.get_fontsize() >= 8 for label in axes.get_xticklabels() + axes.get_yticklabels())
        for line in axes.lines:
            red, green, blue = matplotlib.colors.to_rgb(line.get_color())
            assert red == green == blue
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)


@pytest.mark.parametrize("missing", ["validation", "step", "both"])
def test_curves_without_data_are_drawn_and_say_so(missing: str, tmp_path: Path) -> None:
    logged = [e for e in events() if e["event"] != missing and missing != "both"]
    panels = report.draw_curves(logged).axes
    empty = [axes for axes in panels if [text.get_text() for text in axes.texts] == ["nothing recorded"]]
    assert len(empty) == {"validation": 4, "step": 2, "both": 6}[missing]
    report.write(make_run(tmp_path, ["a"], logged=logged))
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [1, 500])
def test_the_picture_is_well_formed_for_short_and_long_runs(steps: int, tmp_path: Path) -> None:
    report.write(make_run(tmp_path, ["a"], logged=events(steps)))
    assert ElementTree.parse(tmp_path / "figures" / "curves.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("part", report.PARTS)
def test_a_folder_that_is_no_finished_run_is_refused_and_left_alone(part: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a"])
    (folder / part).unlink()
    with pytest.raises(UserError, match="not finished" if part == "summary.json" else part):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_a_damaged_evaluation_is_told_by_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a"])
    (folder / "eval" / "after.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"after\.parquet: damaged"):
        report.write(folder)


def test_the_command_writes_the_report_and_prints_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", ["a"])
    assert entry_point(report.main, [str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_the_command_ends_with_status_2_on_a_folder_that_is_no_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert entry_point(report.main, [str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}: not the folder of a finished run")
    assert not list(tmp_path.rglob("report*"))


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--all"]])
def test_the_command_ends_with_status_2_on_a_wrong_command_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry_point(report.main, arguments)
    assert caught.value.code == 2

"""The report: everything that models and data sets wrote is shown as text, and the same run gives the same files."""

from __future__ import annotations

import functools
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.colors
import pytest

from finished_runs import NASTY, Page, add_alarm, add_evaluation, add_verdicts, events, make_run, normal, records
from llm import report
from llm.console import entry_point
from llm.curves import draw_curves
from llm.errors import UserError
from llm.figures import head_to_head
from llm.finished_run import PARTS, read_run
from llm.pages import LABELS, image, template
from llm.store import ShardFolder, write_json

CONTROL = "\x1b[31mred\x1b[0m \x07 \x08 \x00 \x0b \x85 \x1c"
GROUPS = {"SNKL (nats, known floor 0)", "ESS of the target's weights", "groups without goodness"}
EQUAL = {"wins at equal length, judge", "wins at equal length, reward"}
JUDGE = {"wins over the reference, judge", "ties, judge"}


@functools.cache
def drawing(suffix: str) -> bytes:
    """The curves of `events()`."""
    return image(draw_curves(events()), suffix)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves of `events()` once for all tests that are about something else."""
    monkeypatch.setattr(report, "image", lambda figure, suffix: drawing(suffix))
    monkeypatch.setattr(report, "draw_curves", lambda events: None)


def page(folder: Path) -> Page:
    report.write(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


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


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_control_characters_are_shown_as_escapes(name: str, tmp_path: Path) -> None:
    report.write(make_run(tmp_path, [CONTROL]))
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert all(character.isprintable() or character in "\n\u202e" for character in text)
    assert text.count(r"\x1b[31mred\x1b[0m \x07 \x08 \x00" if name.endswith("html") else r"\x1b[31mred") == 4


@pytest.mark.usefixtures("drawn_once")
def test_a_page_may_run_nothing_and_load_nothing(tmp_path: Path) -> None:
    report.write(make_run(tmp_path, ["a"]))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


@pytest.mark.usefixtures("drawn_once")
def test_alarms_method_judges_and_further_evaluations_are_in_the_report_as_text(tmp_path: Path) -> None:
    bold = "<b>|x|</b>"
    folder = make_run(tmp_path, ["a", "b"], config="method: brain-argmax\ndpo_beta: 0.25\ngoodness: <b>|x|</b>\n")
    add_alarm(folder, f"too much noise {bold}")
    add_verdicts(folder, f"judge {bold}", f"run {bold}")
    add_evaluation(folder, "best-x4", ["a", "bc"], prompts=f"file {bold}")
    duel = {"run": f"one {bold}", "against": f"two {bold}", "figures": head_to_head(*[records(["a", "b"])] * 2)}
    write_json(folder / "eval" / "best-x4-against-two.json", duel)
    cells = " ".join([*page(folder).cells, (folder / "report.html").read_text()])
    markdown = (folder / "report.md").read_text()
    for text in ("noise", "judge", "run", "file", "one", "two"):
        assert f"{text} &lt;b&gt;|x|&lt;/b&gt;" in cells
    for text in ("noise", "judge", "run"):
        assert f"{text} \\<b\\>\\|x\\|\\</b\\>" in markdown
    for text in ("brain-argmax, theorem 6.1", "0.25", "50.0% [20.0%, 80.0%]", "1 unanswered, 0 cut, 0 unparsed"):
        assert text in cells
        assert text in markdown
    for text in ("ties, judge", "100.0% [34.2%, 100.0%]", "mean reward, difference"):
        assert text in markdown.partition("## Further evaluations")[2]


@pytest.mark.usefixtures("drawn_once")
def test_a_run_without_alarms_says_so_and_has_no_empty_parts(tmp_path: Path) -> None:
    report.write(make_run(tmp_path, ["a"]))
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "None was given." in text
        assert not any(title in text for title in ("Further evaluations", "Head to head", "A language model as judge"))


@pytest.mark.usefixtures("drawn_once")
def test_a_users_method_is_named_and_not_loaded(tmp_path: Path) -> None:
    cells = page(make_run(tmp_path, ["a"], config="method: no_such_package:function\n")).cells
    assert "no_such_package:function, a function of the user" in cells


def test_text_within_a_line_of_markdown_is_no_markup() -> None:
    assert template("report.md").environment.filters["inline"]("a|b *c* `d`\n<e> [f](g)") == (
        r"a\|b \*c\* \`d\` \<e\> [f]\(g)"
    )


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
    assert rows.keys() == {label for label, _ in LABELS.values()} - GROUPS - EQUAL  # all lengths are equal
    assert rows["wins over the reference, judge"][0] == "33.3% [6.1%, 79.2%]"
    assert rows["mean reward"] == ["1.00 [-1.48, 3.48]", "2.50 [0.02, 4.98]", "+1.50 [+1.50, +1.50]"]
    assert rows["completion length (tokens)"][2] == ""


def test_figures_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "b"], judge=False)
    names = {name for name, *_ in report.table_rows(json.loads((folder / "summary.json").read_text()))}
    assert names == {label for label, _ in LABELS.values()} - GROUPS - EQUAL - JUDGE


def test_a_figure_that_the_data_tell_only_before_or_after_is_shown_as_unknown() -> None:
    known = {"estimate": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    summary = {"before": {"ended": None}, "after": {"ended": known}, "change": {}}
    assert report.table_rows(summary) == [("completions that ended by themselves", "–", "50.0% [25.0%, 75.0%]", "")]


def test_figures_of_an_older_run_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "b"])
    summary = json.loads((folder / "summary.json").read_text())
    for part in ("before", "after"):
        del summary[part]["distinct_1"], summary[part]["kl_per_token"]
    assert not {"distinct tokens", "KL to the prior (nats a token)"} & {name for name, *_ in report.table_rows(summary)}


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


def test_the_curves_are_those_that_a_reader_asks_for() -> None:
    titles = [
        "win rate",
        "mean reward",
        "KL to the prior",
        "completion length",
        "SNKL",
        "ESS",
        "norm",
        "signal",
        "differs",
    ]
    panels = draw_curves(events()).axes
    assert all(title in axes.get_title() for title, axes in zip(titles, panels, strict=True))
    snkl = panels[4]
    assert "known floor 0" in snkl.get_title()
    assert snkl.get_ylim()[0] == 0
    assert list(snkl.lines[-1].get_ydata()) == [0, 0]
    assert list(snkl.lines[0].get_xdata()) == list(range(1, 9))
    assert list(snkl.lines[0].get_ydata()) == [0.3] * 8
    assert [line.get_ydata()[0] for line in panels[5].lines] == [3.0, 5.0]


def test_the_curves_are_readable_in_grey() -> None:
    for axes in draw_curves(events()).axes:
        assert axes.get_legend() is None
        assert axes.title.get_fontsize() >= 8
        assert all(label.get_fontsize() >= 8 for label in axes.get_xticklabels() + axes.get_yticklabels())
        for line in axes.lines:
            red, green, blue = matplotlib.colors.to_rgb(line.get_color())
            assert red == green == blue
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)


def test_events_of_an_older_run_that_lack_a_value_leave_its_panel_empty() -> None:
    logged = [{k: v for k, v in e.items() if k not in ("gradient_signal", "distinct_completions")} for e in events()]
    empty = [bool(axes.texts) for axes in draw_curves(logged).axes]
    assert empty == [False] * 7 + [True] * 2


@pytest.mark.parametrize("missing", ["validation", "step", "both"])
def test_curves_without_data_are_drawn_and_say_so(missing: str) -> None:
    logged = [e for e in events() if e["event"] != missing and missing != "both"]
    panels = draw_curves(logged).axes
    empty = [axes for axes in panels if [text.get_text() for text in axes.texts] == ["nothing recorded"]]
    assert len(empty) == {"validation": 4, "step": 4, "both": 9}[missing]


def test_the_report_of_a_run_that_logged_nothing_is_written(tmp_path: Path) -> None:
    report.write(make_run(tmp_path, ["a"], logged=[]))
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "figures" / "curves.svg").getroot().tag.endswith("svg")


def test_the_picture_of_a_long_run_is_well_formed_and_not_large() -> None:
    picture = image(draw_curves(events(3000)), "svg")
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert len(picture) < 2**20


@pytest.mark.parametrize("part", PARTS)
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


@pytest.mark.usefixtures("drawn_once")
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


def test_the_command_ends_with_status_2_on_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry_point(report.main, []) == 2
    assert "No run was given" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        entry_point(report.main, ["--all"])
    assert caught.value.code == 2


@pytest.mark.usefixtures("drawn_once")
def test_with_out_the_page_of_one_run_goes_there_and_the_folder_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_run(tmp_path / "run", ["a"]), tmp_path / "pages" / "one.html"
    files = sorted(folder.rglob("*"))
    assert entry_point(report.main, [str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(folder.rglob("*")) == files
    report.write(folder)
    assert out.read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.parametrize("name", ["eval/best-x4.json", "judge/judge.json"])
def test_a_damaged_result_is_told_by_name_before_anything_is_written(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a"])
    (folder / "judge").mkdir()
    (folder / name).write_bytes(b'{"figures": "caf\xe9"}')
    with pytest.raises(UserError, match=f"{name}: damaged"):
        report.write(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "figures").exists()


def test_the_judges_grades_come_from_its_table(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "b"], judge=False)
    graded = [*records(["a", "b"]), *records(["a", "b"], reward=1.5)]
    ShardFolder(folder / "eval").write("judged-0123456789abcdef", [record.as_row() for record in graded])
    ShardFolder(folder / "eval").write("judged-fedcba9876543210", [record.as_row() for record in records(["z"] * 4)])
    os.utime(folder / "eval" / "judged-fedcba9876543210.parquet", (0, 0))  # an older judge's
    run = read_run(folder)
    assert run.judged == "judged-0123456789abcdef"
    assert [row["reward"] for row in run.before + run.after] == [0.0, 1.0, 1.5, 2.5]
    assert [row["grade"] for row in run.after] == [0.0, 0.5]

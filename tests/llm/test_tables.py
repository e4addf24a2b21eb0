"""Rows: every kind of file gives the same ones, and whatever is wrong is told with its place."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.errors import UserError
from llm.tables import column, read_rows

ROWS = [
    {"prompt": "plain", "reference": "a"},
    {"prompt": 'quotes ", commas, and\na line break', "reference": "naïve 😀 \u2028 {{ }} <b>"},
    {"prompt": "  spaces  ", "reference": "\t"},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_gzip,
    "rows.parquet": write_parquet,
    "rows.csv": write_csv,
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", WRITERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "reference": TEXT}), min_size=1, max_size=4))
def test_whatever_text_is_written_is_read_back(name: str, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    WRITERS[name](tmp_path / name, rows)
    assert read(tmp_path / name) == rows


def test_rows_are_numbered_by_their_line_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2})]


def test_csv_rows_are_numbered_by_the_line_where_they_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"x\ny"\n2,z\n')
    assert list(read_rows(path)) == [(3, {"a": "1", "b": "x\ny"}), (4, {"a": "2", "b": "z"})]


def test_parquet_keeps_chat_messages(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "hello"}]}]
    write_parquet(tmp_path / "rows.parquet", rows)
    assert read(tmp_path / "rows.parquet") == rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + (tmp_path / name).read_bytes())
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert ("not readable as Parquet" if name == "rows.parquet" else "holds no rows") in refused(tmp_path / name)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,reference\n")
    assert "holds no rows" in refused(tmp_path / "rows.csv")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], "string")}), tmp_path / "rows.parquet")
    assert "holds no rows" in refused(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", "row 3: not valid JSON"),
        (b'{"a": 1} x', "row 3: not valid JSON"),
        (b"[1, 2]", "row 3: expected a JSON object, found list"),
        (b"null", "row 3: expected a JSON object, found NoneType"),
        (b'{"a": "\xff"}', "row 3: not UTF-8"),
        (b'{"a": "\\ud83d"}', "row 3: not valid JSON"),
        (b"[" * 100_000, "row 3: not valid JSON"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_json_row_is_told_with_its_number(line: bytes, expected: str, packed: bool, tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": 2}\n' + line + b'\n{"a": 4}\n'
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert expected in refused(path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n')
    assert read(tmp_path / "rows.jsonl") == [{"a": "😀"}]


def test_a_truncated_gzip_file_is_refused_after_its_last_good_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = [json.dumps({"a": i, "b": str(hash(str(i)))}) + "\n" for i in range(5000)]
    path.write_bytes(gzip.compress("".join(lines).encode())[:-20])
    assert "not readable as gzip" in refused(path)
    assert ", after row" in refused(path)


def test_a_gzip_file_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    write_gzip(path, ROWS * 500)
    content = bytearray(path.read_bytes())
    for place in range(12, len(content), 7):
        damaged = content.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        refused(path)


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_text('{"a": 1}\n')
    assert "not readable as gzip" in refused(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n3,4,5\n", "row 3: has more fields than the header's 2 columns"),
        (b"a,b\n1,2\n3\n", "row 3: has fewer fields than the header's 2 columns"),
        (b'a,b\n1,2\n3,"4\n', "after row 2: not readable as text"),
        (b"a,b\n1,2\n3,\xff\n", "row 3: not UTF-8"),
        (b"a,b,a\n1,2,3\n", "the header names 'a' twice"),
    ],
)
def test_a_malformed_csv_file_is_told_with_its_place(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert expected in refused(tmp_path / "rows.csv")


def test_a_field_of_a_csv_file_may_be_long(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 300_000, "reference": "y"}]
    write_csv(tmp_path / "rows.csv", rows)
    assert read(tmp_path / "rows.csv") == rows


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no Parquet at all")
    assert "not readable as Parquet" in refused(path)
    write_parquet(path, ROWS * 1000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not readable as Parquet" in refused(path)
    path.write_bytes(content[:4] + bytes(200) + content[204:])
    assert "not readable as Parquet" in refused(path)


def test_a_parquet_file_with_broken_utf8_is_refused(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.array([0, 2], "int32").buffers()[1], pyarrow.py_buffer(b"\xff\xfe")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": broken}), tmp_path / "rows.parquet")
    assert "not readable as Parquet" in refused(tmp_path / "rows.parquet")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("hello\n")
    assert "not a .jsonl, .jsonl.gz, .parquet or .csv file" in refused(tmp_path / "rows.txt")


@pytest.mark.parametrize("name", ["no-such-owner/no-such-data-set", "no-such-data-set:validation"])
def test_a_name_that_is_neither_file_nor_data_set_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nor a data set that could be loaded" in refused(name)


def test_a_data_set_is_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_rows("owner/name:test[:3]")) == list(enumerate(ROWS, start=1))
    list(read_rows("owner/name"))
    assert asked == [("owner/name", "test[:3]"), ("owner/name", "train")]


@pytest.mark.parametrize("row", [{"text": "x", "label": 1}, {"prompt": None, "text": "x", "label": 1}])
def test_a_missing_column_is_told_with_those_that_are_there(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data\.csv, row 7: column 'prompt' is missing or empty.*label.*text"):
        column(row, "prompt", source="data.csv", number=7)


def test_a_column_is_returned_as_it_is() -> None:
    assert column({"prompt": ""}, "prompt", source="data.csv", number=1) == ""

"""Rows of files and pipes: what tables hold, one row at a time, and the place of what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distil_jax.data.rows import (
    PLAIN,
    BadRowError,
    Faults,
    ReadOptions,
    Row,
    open_rows,
    read_table,
)
from distil_jax.errors import UserError
from distil_jax.tasks.examples import SequenceExample
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.requests import request, usual_reading

STRICT = Faults()
TEXT = ReadOptions(wanted=("text",))
KEPT = ReadOptions(wanted=("text",), keep=("text",))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    packers = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_a_text_is_a_row_a_line(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, f"a.txt{ending}", "\ufeffone\r\ntwo\x85still two\n\nfour")
    assert list(open_rows(path, TEXT, STRICT)) == [
        Row(1, 0, {PLAIN: "one"}),
        Row(2, 1, {PLAIN: "two\x85still two"}),
        Row(3, 2, {PLAIN: ""}),
        Row(4, 3, {PLAIN: "four"}),
    ]


def test_csv_is_what_the_csv_module_says(tmp_path: Path) -> None:
    table = [["text", "id"], ['a "quoted" one', "x"], ["two\nlines, and a comma", "y"], ["", "z"]]
    text = io.StringIO()
    csv.writer(text).writerows(table)
    rows = list(open_rows(write(tmp_path, "a.csv", text.getvalue()), TEXT, STRICT))
    assert [row.values for row in rows] == [dict(zip(table[0], cells, strict=True)) for cells in table[1:]]
    assert [row.place for row in rows] == [2, 3, 5]
    assert [row.number for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "values"),
    [
        ("a.csv", ",text,\n0,a cat,x\n", {"": "x", "text": "a cat"}),
        ("a.tsv", "\ttext\n0\ta cat\n", {"": "0", "text": "a cat"}),
        ("a.jsonl", '{"": "0", "\\u0000": "1", "text": "a cat"}\n', {"": "0", "\0": "1", "text": "a cat"}),
    ],
)
def test_a_column_without_a_name_is_no_line_of_text(
    tmp_path: Path, name: str, content: str, values: dict[str, str]
) -> None:
    """As in tables that pandas has written with their index, and the published ones of SWAG."""
    (row,) = open_rows(write(tmp_path, name, content), TEXT, STRICT)
    assert row.values == values
    assert request(row.values, usual_reading(CLASSES))[1] == SequenceExample("", "a cat")
    (without,) = open_rows(write(tmp_path, name, content.replace("text", "title")), TEXT, STRICT)
    with pytest.raises(BadRowError, match="no column 'text'"):
        request(without.values, usual_reading(CLASSES))


def test_quotes_of_a_tsv_are_characters(tmp_path: Path) -> None:
    rows = list(open_rows(write(tmp_path, "a.tsv", 'text\tid\n"so\t1\n'), TEXT, STRICT))
    assert [row.values for row in rows] == [{"text": '"so', "id": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,id\na,1\nb\n", "a.csv, line 3: 1 columns, not 2"),
        ("a.csv", 'text\na\n"b\nc\n', "a.csv, line 3: .*never closed"),
        ("a.csv", "text,text\n", "line 1: two columns are called 'text'"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl, item 1: holds int"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', "'a' is there twice"),
        ("a.txt", b"one\ntw\xff\n", r"a.txt, line 2: not valid UTF-8 \(byte 3 of the line\)"),
        ("a.txt", b"one\0\n", "line 1: holds a NUL byte"),
        ("a.txt", "one".encode("utf-16")[:-1], "a.txt: begins as UTF-16"),
        ("a.xlsx", "", "a.xlsx: the ending .xlsx does not tell the format"),
        ("a.txt.gz", b"", None),
    ],
)
def test_what_is_wrong_has_a_place(tmp_path: Path, name: str, content: str | bytes, message: str | None) -> None:
    path = write(tmp_path, name, content)
    if message is None:
        assert list(open_rows(path, TEXT, STRICT)) == []
        return
    with pytest.raises(UserError, match=message):
        list(open_rows(path, TEXT, STRICT))


def test_a_quote_that_is_never_closed_costs_its_own_line(tmp_path: Path) -> None:
    faults = Faults(skip=True)
    path = write(tmp_path, "a.csv", 'text\none\n"two\nthree\n"fo"ur\nfive\n')
    assert [row.values["text"] for row in open_rows(path, TEXT, faults)] == ["one", "three", "five"]
    assert faults.count == 2
    assert faults.first.startswith(f"{path}, line 3: ")


@pytest.mark.parametrize(
    ("name", "content", "found", "count"),
    [
        (
            "a.csv",
            b'text\none\nb\xff\n\nthree\n"fo\nu\xff\nr"\n\nfive\n"s"ix\nseven\n',
            [(2, 0, "one"), (5, 2, "three"), (10, 4, "five"), (12, 6, "seven")],
            3,
        ),
        (
            "a.tsv",
            b"text\none\n\xff\n\nthree\nfo\0ur\nfi\tve\nsix\n",
            [(2, 0, "one"), (5, 2, "three"), (8, 5, "six")],
            3,
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n\n{"text": "\xff"}\n{"text"\n{"text": "four"}\n',
            [(1, 0, "one"), (5, 3, "four")],
            2,
        ),
    ],
)
def test_rows_that_are_left_out_keep_their_numbers(
    tmp_path: Path, name: str, content: bytes, found: list[tuple[int, int, str]], count: int
) -> None:
    """Whoever puts results beside their rows goes by these numbers; both readers give the same."""
    path, rows = write(tmp_path, name, content), [Row(place, number, {"text": text}) for place, number, text in found]
    for read in (lambda faults: open_rows(path, KEPT, faults), lambda faults: read_table(path, KEPT, faults).rows):
        faults = Faults(skip=True)
        assert list(read(faults)) == rows
        assert faults.count == count


@pytest.mark.parametrize(("name", "blank"), [("a.csv", b","), ("a.tsv", b"\t")])
def test_rows_before_the_first_good_one_count_where_there_is_no_header(tmp_path: Path, name: str, blank: bytes) -> None:
    path = write(tmp_path, name, b"x\xff\n" + blank.join((b"one", b"1")) + b"\n")
    columns = ReadOptions(wanted=("text",), positions=("text", "label"))
    row = Row(2, 1, {"text": "one", "label": "1"})
    assert list(open_rows(path, columns, Faults(skip=True))) == [row]
    assert read_table(path, columns, Faults(skip=True)).rows == [row]


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b'\n{"text": "a"}\n{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
        (b"a\nb\n", [{PLAIN: "a"}, {PLAIN: "b"}]),
        (b"", []),
    ],
)
def test_a_pipe_holds_objects_or_lines(data: bytes, values: list[dict[str, str]]) -> None:
    assert [row.values for row in open_rows(io.BytesIO(data), TEXT, STRICT)] == values


def test_a_pipe_is_read_as_far_as_needed() -> None:
    """A line that has come is handed on, although the pipe stays open."""

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.parts: Iterator[bytes] = iter([b"one\ntw", b"o\n", b""])
            self.reads = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            self.reads += 1
            part = next(self.parts)
            buffer[: len(part)] = part
            return len(part)

    slow = Slow()
    rows = open_rows(io.BufferedReader(slow), TEXT, STRICT)
    assert next(rows).values == {PLAIN: "one"}
    assert slow.reads == 1
    assert [row.values for row in rows] == [{PLAIN: "two"}]


# Formats of pipes


@pytest.mark.parametrize(
    ("data", "values", "note"),
    [
        (b"id,text\n1,a\n", [{"id": "1", "text": "a"}], "csv"),
        (b"id;text\n1;a, b\n", [{"id": "1", "text": "a, b"}], "csv"),
        (b"id\ttext\n1\ta\n", [{"id": "1", "text": "a"}], "tsv"),
        (b'[{"text": "a"},\n {"text": "b"}]', [{"text": "a"}, {"text": "b"}], "json"),
        (b"a text, of one line\nmore text\n", [{PLAIN: "a text, of one line"}, {PLAIN: "more text"}], ""),
        (b"[sic] this is text\n", [{PLAIN: "[sic] this is text"}], ""),
        (b"text\none\n", [{PLAIN: "text"}, {PLAIN: "one"}], ""),
    ],
)
def test_the_format_of_a_pipe_is_recognised_and_said(data: bytes, values: list[Any], note: str) -> None:
    stream = open_rows(io.BytesIO(data), TEXT)
    assert [row.values for row in stream] == values
    assert any(f"read as {note}" in text for text in stream.notes) == bool(note)


@pytest.mark.parametrize(
    ("format", "data", "values"),
    [
        ("csv", b"text\none\n", [{"text": "one"}]),
        ("text", b'{"text": "a"}\n', [{PLAIN: '{"text": "a"}'}]),
        ("jsonl", b'{"text": "a"}\n', [{"text": "a"}]),
        ("conll", b"one O\n", [{"words": ["one"], "tags": ["O"]}]),
    ],
)
def test_the_format_can_be_named(tmp_path: Path, format: Any, data: bytes, values: list[Any]) -> None:
    options = ReadOptions(format=format, wanted=("text",))
    assert [row.values for row in open_rows(io.BytesIO(data), options)] == values
    (tmp_path / "a.dat").write_bytes(data)
    assert [row.values for row in open_rows(tmp_path / "a.dat", options)] == values


@pytest.mark.parametrize("header", [b"id,text\n", b"id\ttext\n", b'{"text": "zero"}\n'])
def test_rows_of_a_pipe_are_there_before_its_end(header: bytes) -> None:
    mark = b"\t" if b"\t" in header else b","
    row = b'{"text": "one"}\n' if header.startswith(b"{") else mark.join([b"1", b"one\n"])
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        os.write(write, header + row)
        rows = open_rows(pipe, TEXT)
        texts = [next(rows).values["text"]]
        texts += [] if texts == ["one"] else [next(rows).values["text"]]
        assert texts[-1] == "one"
        os.close(write)
        assert [*rows] == []


def test_memory_does_not_grow_with_a_pipe() -> None:
    import tracemalloc

    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            self.left, self.line = 40 << 20, b'12,"some text, of a row",x\n' * 100

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            part = self.line[: len(buffer)] if self.left > 0 else b""
            part = b"id,text,label\n" if self.left == 40 << 20 else part
            self.left -= len(part)
            buffer[: len(part)] = part
            return len(part)

    tracemalloc.start()
    rows = sum(1 for _ in open_rows(io.BufferedReader(Endless()), TEXT))
    assert rows > 1_000_000 and tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", '{"text": "a", "n": "1"}\n{"text": "b", "n": "2"}\n'),
        ("a.jsonl", "text,n\na,1\nb,2\n"),
        ("a.json", "n;text\n1;a\n2;b\n"),
        ("a.tsv", '{"text": "a", "n": "1"}\n{"text": "b", "n": "2"}\n'),
    ],
)
def test_a_first_line_that_is_clearly_another_format(tmp_path: Path, name: str, data: str) -> None:
    stream = open_rows(write(tmp_path, name, data), TEXT)
    assert [row.values for row in stream] == [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}]
    assert stream.notes

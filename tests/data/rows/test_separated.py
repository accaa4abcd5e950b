"""CSV and TSV: what tables are written like, and that they are read as what was written."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.rows import Faults, ReadOptions, open_rows, read_table
from distil_jax.data.rows.separated import QuoteVotes, found_separator
from distil_jax.errors import UserError

WANTED = ReadOptions(wanted=("text",))


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def texts(path: Path, **options: Any) -> list[str]:
    return [row.values["text"] for row in open_rows(path, ReadOptions(wanted=("text",), **options))]


# Separators


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_separator_is_found_and_said(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path, name, f"text{mark}label\none, two{mark}a\nthree{mark}b\n".replace("one, two", '"one, two"'))
    stream = open_rows(path, WANTED)
    assert [row.values for row in stream] == [{"text": "one, two", "label": "a"}, {"text": "three", "label": "b"}]
    usual = "," if name == "a.csv" else "\t"
    assert (mark == usual) == (not any(repr(mark) in note for note in stream.notes))


def test_a_separator_that_is_named_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,more:label\none,two:a\n")
    assert open_rows(path, WANTED).columns == ["text", "more:label"]
    stream = open_rows(path, ReadOptions(wanted=("text",), separator=":"))
    assert [row.values for row in stream] == [{"text,more": "one,two", "label": "a"}]
    path = write(tmp_path, "b.csv", "text\tlabel\na,b\tc\n")
    assert texts(path, separator="tab") == ["a,b"]


def test_excel_names_its_separator(tmp_path: Path) -> None:
    stream = open_rows(write(tmp_path, "a.csv", "sep=;\ntext;label\none;a\n"), WANTED)
    assert [(row.place, row.values) for row in stream] == [(3, {"text": "one", "label": "a"})]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["text;label", "one, two, three;a"], ";"),
        (["text", "one; two"], ","),
        (["a,b;c", "1,2;3"], ","),
        (["a;b", "1;2", "3,4;5"], ";"),
        (["a", "b"], ","),
        (["a|b", "1|2"], "|"),
    ],
)
def test_separators_of_lines(lines: list[str], found: str) -> None:
    assert found_separator(lines, ",", ("text",)) == found


# Quotes in files of tabs


@pytest.mark.parametrize(
    ("lines", "encloses"),
    [
        (["text\tlabel", '"He said ""yes"" to it"\t1'], True),
        (["text\tlabel", '"two', 'lines"\t1'], True),
        (["text\tlabel", '"a\ttab"\t1'], True),
        (['"text"\t"label"', '"plain"\t1'], True),
        (["text\tlabel", '"One, two"\t1', "three\t0"], True),  # as Excel has it
        (["text\tlabel", '"always"\t1', '"quoted"\t0'], True),
        (["text\tlabel", 'He said "yes"\t1'], False),
        (["text\tlabel", '"Yes" he said\t1'], False),
        (["text\tlabel", '" not closed\t1', "b\t0"], False),
        (["text\tlabel", '"Great!"\t1', "fine\t0"], False),
        (["text\tlabel", '"Well, yes"\t1', "well, no\t0"], False),
        (["text\tlabel", 'a 5" pipe\t1', '"a ""b"""\t1', '6" wide\t0'], False),  # more against than for
        (["text\tlabel", "no\t1"], None),
    ],
)
def test_what_quotes_mean(lines: list[str], encloses: bool | None) -> None:
    assert QuoteVotes(lines, "\t").result() is encloses


def test_a_tsv_of_pandas_is_read_as_written(tmp_path: Path) -> None:
    rows = ['She said "no"', "a\ttab", "two\nlines", "plain", "", '"']
    path = tmp_path / "a.tsv"
    pandas.DataFrame({"text": rows, "label": range(6)}).to_csv(path, sep="\t", index=False)
    stream = open_rows(path, WANTED)
    assert [row.values["text"] for row in stream] == rows
    assert any("quotes enclose" in note for note in stream.notes)


def test_published_files_of_tabs_keep_their_quotes(tmp_path: Path) -> None:
    """As in MRPC: quotes stand anywhere, and some are never closed."""
    rows = ['" Fine , " he said .', 'No " end', "It is fine .", '"Whole one"']
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{row}\t1\n" for row in rows))
    stream = open_rows(path, WANTED)
    assert [row.values["text"] for row in stream] == rows
    assert stream.notes == []  # there is no other way to read them
    stream = open_rows(write(tmp_path, "b.tsv", 'text\tlabel\n"Great!"\t1\nfine\t0\n'), WANTED)
    assert [row.values["text"] for row in stream] == ['"Great!"', "fine"]
    assert any("part of the text" in note for note in stream.notes)


def test_quotes_late_in_a_file_decide_there(tmp_path: Path) -> None:
    many = "".join(f"plain {i}\t{i}\n" for i in range(200_000))
    path = write(tmp_path, "a.tsv", f'text\tlabel\n{many}"He ""said"" so"\t1\nplain\t0\n')
    assert texts(path)[-2:] == ['He "said" so', "plain"]


def test_glue_as_published(shared: Path) -> None:
    for path in sorted((shared / "data" / "glue").glob("*/*.tsv")):
        lines = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
        assert QuoteVotes(lines, "\t").result() in (None, False)
        stream = open_rows(path, ReadOptions(wanted=("text",)))
        header = [name.strip() for name in lines[0].split("\t")] if path.parent.name != "CoLA" else stream.columns
        if len({*lines[0].split("\t")}) == len(lines[0].split("\t")):
            found = [[*row.values.values()] for row in stream]
            assert stream.columns == header
            assert found == [line.split("\t") for line in lines[1:]]


# Whatever is written


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)
ROWS = st.lists(st.tuples(CELL, CELL, st.sampled_from(["001", "2020-01-01", "1e5", "NaN", "true", " x "])), max_size=8)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_the_csv_module_writes_is_read_back(rows: list[tuple[str, ...]], mark: str, quoting: Any) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, quoting=quoting, lineterminator="\n")
    writer.writerows([("text", "more", "label"), *rows])
    format = "tsv" if mark == "\t" else "csv"
    stream = open_rows(io.BytesIO(text.getvalue().encode()), ReadOptions(format=format, wanted=("text",)))
    assert [tuple(row.values.values()) for row in stream] == rows


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([",", ";", "\t"]))
def test_what_pandas_writes_is_read_back(rows: list[tuple[str, ...]], mark: str) -> None:
    text = pandas.DataFrame(rows, columns=["text", "more", "label"]).to_csv(sep=mark, index=False)
    stream = open_rows(io.BytesIO(text.encode()), ReadOptions(format="csv", wanted=("text",)))
    assert [tuple(row.values.values()) for row in stream] == rows


# What is wrong


def test_ragged_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",a\nb\nc,d,e\nf,g\n')
    with pytest.raises(UserError, match=r"a\.csv, line 4: 1 columns, not 2"):
        read_table(path, WANTED)
    faults = Faults(skip=True)
    assert [(row.place, row.number) for row in open_rows(path, WANTED, faults)] == [(2, 0), (6, 3)]
    assert faults.count == 2
    stream = open_rows(path, ReadOptions(wanted=("text",), flawed=True))
    assert len([*stream]) == 2 and stream.flawed == 2


def test_byte_order_marks_windows_lines_and_utf_16(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbftext,label\r\n"a\r\nb",x\r\nc,y')
    assert [row.values for row in open_rows(path, WANTED)] == [
        {"text": "a\r\nb", "label": "x"},
        {"text": "c", "label": "y"},
    ]
    for codec in ("utf-16-le", "utf-16-be"):
        path = write(tmp_path, "b.csv", "\ufefftext,label\nä€𝄞,b\n".encode(codec))
        assert [row.values for row in read_table(path, WANTED).rows] == [{"text": "ä€𝄞", "label": "b"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty"),
        (b"text,text\na,b\n", "line 1: two columns are called 'text'"),
        (b"text,label\na\0,b\n", "line 2: holds a NUL byte"),
        (b'text,label\n"a,b\n', "line 2: a quote is opened here and never closed"),
        (b'text,label\n"a"b,c\n', "line 2: text follows a closing quote"),
        (b"text,label\n" + b"x" * (17 << 20) + b",a\n", "line 2: a cell is longer than"),
        (b"text,label\ra,b\rc,d\r", "CR alone"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, "a.csv", text), WANTED)


def test_a_header_alone_has_columns_and_no_rows(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "text,label\n"), WANTED)
    assert (table.columns, table.rows) == (["text", "label"], [])


def test_blanks_before_quotes_are_no_part_of_cells(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text, label\n"a, b", "x"\n"c", "y"\n')
    assert [row.values for row in open_rows(path, WANTED)] == [
        {"text": "a, b", "label": "x"},
        {"text": "c", "label": "y"},
    ]
    path = write(tmp_path, "a.csv", 'text,label\n"He said, ""no"", so", x\n')
    assert [row.values for row in open_rows(path, WANTED)] == [{"text": 'He said, "no", so', "label": " x"}]

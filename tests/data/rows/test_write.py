"""What is written is read back: by the reader of rows, pandas and Arrow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.rows import (
    ReadOptions,
    RowWriter,
    json_line,
    open_rows,
    read_table,
    with_predictions,
    write_rows,
)
from distil_jax.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": 'a "quoted", one', "label": "x", "score": 0.25, "tags": ["B-X", "O"]},
    {"id": 2, "text": "two\nlines\tand a tab", "label": None, "score": 1.0, "tags": []},
]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_tables_hold_every_value_as_text(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    first, second = (row.values for row in read_table(tmp_path / name, ReadOptions(wanted=("text",))).rows)
    assert first == {**ROWS[0], "id": "1", "score": "0.25", "tags": '["B-X", "O"]'}
    assert second == {**ROWS[1], "id": "2", "label": "", "score": "1.0", "tags": "[]"}
    frame = pandas.read_csv(tmp_path / name, sep="," if name == "a.csv" else "\t")
    assert frame["text"].tolist() == [row["text"] for row in ROWS] and frame["id"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json", "a"])
def test_other_formats_keep_types(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    found = read_table(tmp_path / name, ReadOptions(format="parquet" if name == "a.parquet" else "jsonl"))
    assert [row.values for row in found.rows] == ROWS
    if name == "a.parquet":
        assert pyarrow.parquet.read_table(tmp_path / name).to_pylist() == ROWS


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_text_is_read_back(cells: list[tuple[str, str]], format: Any) -> None:
    rows = [{"text": text, "label": label} for text, label in cells]
    file = io.StringIO()
    write_rows(file, rows, format)
    data = io.BytesIO(file.getvalue().encode())
    assert [row.values for row in open_rows(data, ReadOptions(format=format, wanted=("text",)))] == rows


def test_rows_are_there_after_every_call(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        writer = RowWriter(tmp_path / name)
        for row in ROWS:
            writer.write([row])
            assert row["text"][:1] in (tmp_path / name).read_text()
        writer.write([])
        writer.close()
        assert len(read_table(tmp_path / name, ReadOptions(wanted=("text",))).rows) == 2


def test_predictions_follow_the_columns_of_the_row() -> None:
    row = with_predictions({"text": "a", "label": "x"}, {"label": "y", "score": 0.5})
    assert row == {"text": "a", "label": "x", "predicted_label": "y", "score": 0.5}
    assert [*row] == ["text", "label", "predicted_label", "score"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xlsx.*\.csv"):
        RowWriter(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match=r"none/a\.csv: cannot be written"):
        RowWriter(tmp_path / "none" / "a.csv")
    for name in ("a.csv", "a.parquet"):
        writer = RowWriter(tmp_path / name)
        writer.write([{"text": "a"}])
        with pytest.raises(UserError, match=rf"{name}.*'more'"):
            writer.write([{"text": "b", "more": 1}])
        writer.close()


def test_json_that_any_reader_takes() -> None:
    value = {"text": "naïve\u2028\n", "score": 0.25}
    for plain in (False, True):
        line = json_line(value, plain)
        assert "\n" not in line and json.loads(line) == value
    assert json_line(value, True).isascii()
    with pytest.raises(ValueError, match="JSON"):
        json_line(float("nan"))

"""JSON: an object a line, arrays, SQuAD's documents in their forms."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.rows import Faults, ReadOptions, open_rows, read_table
from distil_jax.errors import UserError

ROWS = [{"text": "ä\u2028", "label": "001"}, {"text": "2020-01-01", "label": None, "more": [1, {"a": 1.5}]}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(folder: Path, text: str | bytes, name: str = "a.json", faults: Faults | None = None) -> list[dict[str, Any]]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row.values for row in open_rows(path, faults=faults)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        f"\n{LINES}\n \n",
        "\ufeff" + LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        f" \n{json.dumps(ROWS, ensure_ascii=False)}\n",
    ],
)
def test_lines_and_arrays(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, text, name) == ROWS


def test_rows_that_other_tools_nest(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps({"version": 1, "data": ROWS})) == ROWS
    assert read(tmp_path, json.dumps(ROWS[0])) == ROWS[:1]
    assert read(tmp_path, json.dumps(ROWS[0], indent=2)) == ROWS[:1]
    assert read(tmp_path, "[]") == []
    lines = [{"text": "a", "data": [{"x": 1}]}, {"text": "b", "data": []}]
    assert read(tmp_path, "\n".join(map(json.dumps, lines))) == lines


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["text", "label", "", "data"]), VALUES, min_size=1), min_size=2, max_size=5
    )
)
def test_what_json_writes_is_read_back(rows: list[dict[str, Any]]) -> None:
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows, indent=1, ensure_ascii=False)):
        for format in ("json", "jsonl"):
            found = open_rows(io.BytesIO(text.encode()), ReadOptions(format=format))
            assert [row.values for row in found] == rows


@pytest.mark.parametrize("lines", [True, False])
def test_what_pandas_writes_is_read_back(tmp_path: Path, lines: bool) -> None:
    frame = pandas.DataFrame([{"text": "a/b é", "label": 1}, {"text": "NaN", "label": 2}])
    assert read(tmp_path, frame.to_json(orient="records", lines=lines)) == frame.to_dict("records")
    assert read(tmp_path, frame.to_json(orient="table", index=False)) == frame.to_dict("records")
    for indent in (0, 1):
        assert read(tmp_path, frame.to_json(indent=indent)) == frame.to_dict("records")


def test_the_line_or_item_is_named(tmp_path: Path) -> None:
    cases = {
        '{"text": "a"}\n{"text": \n': "line 2: not JSON",
        '{"text": "a"}\n[1]\n': "line 2: holds list",
        '{"text": "a", "text": "b"}\n': "line 1: not JSON.*'text' is there twice",
        '[{"text": "a"},\n {"text": "b"\n]': "line 3: not JSON.*item 2",
        '[{"text": "a"}, 5]': "item 2: holds int",
        '[{"text": "a"}]\n[]': "line 2: not JSON",
        '{\n "text": \n': "line 3: not JSON",
    }
    for text, message in cases.items():
        with pytest.raises(UserError, match=rf"a\.json, {message}"):
            read(tmp_path, text)
    faults = Faults(skip=True)
    assert read(tmp_path, '{"text": \n{"text": "b"}\n5\n', faults=faults) == [{"text": "b"}] and faults.count == 2
    with pytest.raises(UserError, match=r"a\.json, line 2: not valid UTF-8"):
        read(tmp_path, b'[{"text": "a"},\n{"text": "\xff"}]')


# SQuAD


QUESTION = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
ARTICLE = {"title": "t", "paragraphs": [{"context": "Ada sat.", "qas": [QUESTION]}]}
ROW = {**QUESTION, "context": "Ada sat."}


@pytest.mark.parametrize("document", [{"version": "1.1", "data": [ARTICLE]}, [ARTICLE], ARTICLE])
@pytest.mark.parametrize("indent", [None, 1])
def test_squad_documents(tmp_path: Path, document: Any, indent: int | None) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(document, indent=indent))
    (row,) = (table := read_table(path)).rows
    assert row.values == ROW
    assert table.where(row) == f"{path}, data[0].paragraphs[0].qas[0] (id q1)"


@pytest.mark.parametrize("document", [{"data": [ROW]}, [ROW]])
def test_flat_questions(tmp_path: Path, document: Any) -> None:
    assert read(tmp_path, json.dumps(document)) == [ROW]


@pytest.mark.parametrize(
    "answers", [{}, {"answers": []}, {"answers": ""}, {"answers": [{"text": "", "answer_start": -1}]}]
)
def test_impossible_questions_have_no_answer(tmp_path: Path, answers: dict[str, Any]) -> None:
    question = {"id": "q", "question": "Why?", "is_impossible": True, **answers}
    document = {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [question]}]}]}
    assert read(tmp_path, json.dumps(document))[0]["answers"] == []


def test_a_document_of_many_questions_in_one_line(tmp_path: Path) -> None:
    """More parts than a row may have, and longer than a line may be looked at."""
    paragraphs = [{"context": "Ada sat." * 9, "qas": [{**QUESTION, "id": str(i)} for i in range(9)]}] * 9000
    document = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    assert len(read(tmp_path, json.dumps(document))) == 81_000

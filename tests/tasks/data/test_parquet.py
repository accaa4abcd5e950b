"""Parquet files as own data: the same rows as JSON Lines, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distil_jax.errors import UserError

ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": "warm", "label": "good one", "n": 1}, {"text": "colé", "label": "bad", "n": 2}],
    "multilabel": [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}],
    "regression": [{"text": "a", "label": 0.5}, {"text": "b", "label": -2.0}],
    "tagging": [{"words": ["Ada", "sat"], "tags": ["B-X", "O"]}, {"words": ["so"], "tags": ["O"]}],
    "question": [
        {"id": "7", "question": "who", "context": "Ada sat", "answers": {"text": ["Ada"], "answer_start": [0]}},
        {"id": "8", "question": "what", "context": "Ada sat", "answers": {"text": ["sat"], "answer_start": [4]}},
    ],
    "choice": [{"text": "t", "endings": ["a", "b"], "label": 1}, {"text": "u", "endings": ["c", "d"], "label": 0}],
}


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("task", list(ROWS))
def test_the_rows_are_those_of_json_lines(tmp_path: Path, write: Any, load: Any, task: str) -> None:
    one = parquet(tmp_path / "a.parquet", ROWS[task])
    other = write(tmp_path / "a.jsonl", ROWS[task])
    found, expected = (load(task, train=path, validation=path) for path in (one, other))
    assert found.train == expected.train and len(found.train) == 2
    assert (found.labels, found.sha256) == (expected.labels, expected.sha256)


def test_class_names_that_datasets_writes_are_known(tmp_path: Path, load: Any) -> None:
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 0]})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(described, tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    data = load("classification", train=path, validation=path)
    assert data.labels == ("no", "yes")
    assert [example.label for example in data.train] == [1, 0]


def test_a_folder_of_parquet_files(tmp_path: Path, load: Any) -> None:
    for name in ("train", "validation"):
        parquet(tmp_path / f"{name}.parquet", ROWS["classification"])
    data = load("classification", source=str(tmp_path))
    assert len(data.train) == len(data.validation["validation"]) == 2


def test_what_is_wrong_names_file_and_row(tmp_path: Path, load: Any) -> None:
    rows = [*ROWS["classification"], {"text": None, "label": "bad"}]
    path = parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match=r"a\.parquet, row 3: column 'text' is empty"):
        load("classification", train=path)
    with pytest.raises(UserError, match=r"a\.parquet: no column 'review' \(found: text, label, n\)"):
        load("classification", train=path, text="review")
    data = load("classification", train=path, validation=path, on_error="skip")
    assert len(data.train) == 2 and "1 row skipped" in data.notes[0]


def test_what_is_no_parquet_is_one_line(tmp_path: Path, load: Any) -> None:
    path = Path(parquet(tmp_path / "a.parquet", ROWS["classification"]))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file") as raised:
        load("classification", train=str(path))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read \(no such file\)"):
        load("classification", train=str(tmp_path / "b.parquet"))


def test_a_small_file_that_unfolds_to_gigabytes_is_refused(tmp_path: Path, load: Any) -> None:
    text = pyarrow.array(["x" * (1 << 20)] * 80)
    table = pyarrow.table({"text": text, "label": [i % 2 for i in range(80)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(UserError, match=r"column 'text' unfolds from"):
        load("classification", train=str(tmp_path / "a.parquet"))

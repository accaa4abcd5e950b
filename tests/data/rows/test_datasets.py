"""`datasets` objects, folders and streams, DataFrames and lists; TensorFlow is tested with its users."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

from distil_jax.data.rows import Faults, HubId, ReadOptions, is_saved, open_hub, open_rows, open_source
from distil_jax.errors import UserError

COLUMNS: dict[str, list[Any]] = {
    "text": ["001", "2020-01-01", None],
    "label": [1, 0, 1],
    "tokens": [["a"], [], ["b", "c"]],
}
ROWS = [{name: COLUMNS[name][i] for name in COLUMNS} for i in range(3)]


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict(COLUMNS).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))


def test_objects_in_memory_give_the_same_rows() -> None:
    for data in (dataset(), dataset().to_iterable_dataset(), ROWS, iter(ROWS)):
        stream = open_rows(data)
        assert [(row.place, row.number, row.values) for row in stream] == [(i + 1, i, ROWS[i]) for i in range(3)]
    stream = open_rows(dataset(), ReadOptions(keep=("label",)))
    assert stream.columns == ["text", "label", "tokens"]
    assert stream.classes == {"label": ("no", "yes")}
    assert [row.values for row in stream] == [{"label": 1}, {"label": 0}, {"label": 1}]


def test_a_data_frame_holds_pythons_own_values() -> None:
    frame = pandas.DataFrame(
        {"text": ["001", None, "c"], "label": [1, 2, 3], "score": [0.5, np.nan, 2], "list": [["a"], [], None]}
    )
    rows = [row.values for row in open_rows(frame)]
    assert rows == [
        {"text": "001", "label": 1, "score": 0.5, "list": ["a"]},
        {"text": None, "label": 2, "score": None, "list": []},
        {"text": "c", "label": 3, "score": 2.0, "list": None},
    ]
    assert {type(row["label"]) for row in rows} == {int}
    frame = pandas.DataFrame({"text": pandas.array(["a", None], dtype="string"), "n": pandas.array([1, None], "Int64")})
    assert [row.values for row in open_rows(frame)] == [{"text": "a", "n": 1}, {"text": None, "n": None}]


def test_rows_without_names_are_named_faults() -> None:
    faults = Faults(skip=True)
    assert [row.number for row in open_rows([{"text": "a"}, "b", {"text": "c"}], faults=faults)] == [0, 2]
    assert faults.count == 1
    with pytest.raises(UserError, match="rows, row 2: holds str"):
        list(open_rows([{"text": "a"}, "b"]))


def test_reading_that_fails_names_the_row() -> None:
    def rows() -> Any:
        yield {"text": "one"}
        raise ConnectionError("gone\nwith details")

    with pytest.raises(UserError, match=r"rows, row 2: reading failed \(gone\)"):
        list(open_rows(rows()))


@pytest.mark.parametrize("splits", [True, False])
def test_a_folder_of_save_to_disk(tmp_path: Path, splits: bool) -> None:
    folder = tmp_path / "saved"
    (datasets.DatasetDict(train=dataset()) if splits else dataset()).save_to_disk(folder)
    assert is_saved(folder) and not is_saved(tmp_path)
    opened = open_hub([HubId(str(folder))])
    assert opened.splits == ["train"]
    table = opened.read("train", ("text", "label")).table()
    assert [row.values for row in table.rows] == [{"text": row["text"], "label": row["label"]} for row in ROWS]
    assert table.classes == {"label": ("no", "yes")}
    stream = open_source(f"hf:{folder}", "text", Faults())
    assert [row.values for row in stream] == [{"text": row["text"]} for row in ROWS]


def test_parquet_of_pandas_and_arrow_is_read_back(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 1)
    frame = pandas.DataFrame({"text": ["001", "2020-01-01"], "label": [True, False], "day": [day, day]})
    frame.to_parquet(tmp_path / "a.parquet")
    stream = open_rows(tmp_path / "a.parquet")
    assert stream.count == 2 and [row.values for row in stream] == frame.to_dict("records")
    stream = open_rows(tmp_path / "a.parquet", ReadOptions(keep=("label",)))
    assert stream.columns == ["text", "label", "day"] and next(stream).values == {"label": True}

"""Rows, tables of them, faults."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.data.rows import Faults, Row, RowStream, repeated, some
from distil_jax.errors import UserError


def test_a_table_is_a_list_of_the_stream() -> None:
    rows = [Row(1, 0, {"a": 1, "b": 2}), Row(3, 1, {"c": 3})]
    table = RowStream("x.jsonl", rows=iter(rows)).table(("a", "c"))
    assert table.columns == ["a", "b", "c"]
    assert table.rows == [Row(1, 0, {"a": 1}), Row(3, 1, {"c": 3})]
    assert table.where(table.rows[1]) == "x.jsonl, line 3"
    assert RowStream("x", rows=iter(rows), columns=["a"]).table().columns == ["a"]


def test_faults_stop_or_are_counted() -> None:
    faults = Faults(skip=True)
    faults("a.csv, line 2", "no label")
    faults("a.csv, line 3", "no text")
    assert (faults.count, faults.first) == (2, "a.csv, line 2: no label")
    with pytest.raises(UserError, match="a.csv, line 2: no label; .*--on-error skip"):
        Faults(remedy="--on-error skip")("a.csv, line 2", "no label")


def test_names_for_messages() -> None:
    assert some([]) == "none" and some(["a", "b"]) == "a, b" and some([*range(5)], 2) == "0, 1 and 3 more"


@pytest.mark.parametrize(
    ("names", "found"), [([], None), (["a", "b"], None), (["a", "b", "a", "b"], "a"), (["", ""], "")]
)
def test_repeated(names: list[str], found: Any) -> None:
    assert repeated(names) == found


def test_rows_left_out_are_counted_by_what_is_wrong() -> None:
    faults = Faults(skip=True)
    for number in range(3):
        faults(f"a.csv, line {number}", "no label")
    assert faults.notes == ("3 rows skipped (first: a.csv, line 0: no label)",)
    for number in range(4):
        faults("a.csv, line 9", f"{number} columns, not 3")
    assert faults.notes == (
        "7 rows skipped (4 x 0 columns, not 3, first a.csv, line 9; 3 x no label, first a.csv, line 0)",
    )

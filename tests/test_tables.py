"""Markdown tables."""

from __future__ import annotations

from distil_jax.tables import markdown


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    lines = markdown(["name", "n"], [["a", "1"], ["longer", "1000"]]).splitlines()
    assert lines == ["| name   |    n |", "|--------|-----:|", "| a      |    1 |", "| longer | 1000 |"]


def test_a_table_without_rows_has_its_header() -> None:
    assert markdown(["a", "b"], []).splitlines() == ["| a | b |", "|---|--:|"]

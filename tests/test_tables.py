"""Markdown tables."""

from __future__ import annotations

import itertools

from distil_jax.tables import markdown, narrowed


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    lines = markdown(["name", "n"], [["a", "1"], ["longer", "1000"]]).splitlines()
    assert lines == ["| name   |    n |", "|--------|-----:|", "| a      |    1 |", "| longer | 1000 |"]


def test_a_table_without_rows_has_its_header() -> None:
    assert markdown(["a", "b"], []).splitlines() == ["| a | b |", "|---|--:|"]


def test_a_wide_table_becomes_several() -> None:
    header, rows = (
        ["model", *(f"column {n}" for n in range(9))],
        [["a", *map(str, range(9))], ["b", *map(str, range(9))]],
    )
    text = f"before\n\n{markdown(header, rows)}\n\nafter"
    found = narrowed(text, 60)
    assert max(map(len, found.splitlines())) < 60
    tables = [part.splitlines() for part in found.split("\n\n")[1:-1]]
    assert [table[0].split(" | ")[0] for table in tables] == ["| model"] * len(tables) and len(tables) > 1
    cells = [[cell.strip() for cell in table[2].strip("|").split("|")][1:] for table in tables]
    assert [*itertools.chain(*cells)] == rows[0][1:]
    assert found.startswith("before\n\n|") and found.endswith("\n\nafter")
    assert narrowed(text, 200) == text
    both = narrowed(text, 60, keys=2)
    assert all("column 0" in part.splitlines()[0] for part in both.split("\n\n")[1:-1])
    assert max(map(len, narrowed(markdown(["a", "b" * 90], [["1", "2"]]), 80).splitlines())) > 80, "it cannot be cut"

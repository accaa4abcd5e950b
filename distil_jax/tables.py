"""Markdown tables, readable as they stand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left and the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(("-" * (w + 2)) if i == 0 else ("-" * (w + 1) + ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def narrowed(text: str, width: int, keys: int = 1) -> str:
    """`text` with each table of `markdown` that is wider than `width` as several, one under another.

    Each has the first `keys` columns. A column that does not fit beside them stands alone with them.
    """
    parts: list[str] = []
    for is_table, lines in itertools.groupby(text.split("\n"), key=lambda line: line.startswith("|")):
        block = [*lines]
        wide = is_table and len(block) > 1 and len(block[0]) > width
        parts += _cut(block, width, keys) if wide else block
    return "\n".join(parts)


def _cut(lines: Sequence[str], width: int, keys: int) -> list[str]:
    """The lines of a table as those of several; the rule below its header says where columns end."""
    ends = [place for place, mark in enumerate(lines[1]) if mark == "|"]
    columns = [[line[start + 1 : end] for line in lines] for start, end in itertools.pairwise(ends)]
    kept, rest = columns[:keys], columns[keys:]
    found: list[str] = []
    while rest:
        count = len(rest)
        while count > 1 and sum(len(column[0]) + 1 for column in [*kept, *rest[:count]]) >= width:
            count -= 1
        shown, rest = [*kept, *rest[:count]], rest[count:]
        found += [*([""] if found else []), *("|" + "|".join(cells) + "|" for cells in zip(*shown, strict=True))]
    return found

"""Files in CoNLL columns: a word a line, its tag in the last column, a blank line between sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distil_jax.data.rows import BadRowError, Faults, Row, Table, place_of
from distil_jax.errors import UserError
from distil_jax.tasks.data.lines import read_lines

WORDS, TAGS = "words", "tags"
DOCUMENT_START = "-DOCSTART-"


def read_conll(path: Path, faults: Faults) -> Table:
    """Reads sentences as rows with `words` and `tags`; a file of one column has words only.

    Columns are separated by tabs, or by blanks where a line has no tab. Lines that start a document are left out.

    Raises:
        UserError: file and line of a row whose number of columns differs from that of the first, or without a word. A
            sentence with such a row is left out as a whole where `faults` leaves out.
    """
    lines = read_lines(path, faults)
    table = Table(str(path), [], [])
    columns, number, start = 0, 0, 0
    block: list[list[str] | None] = []
    for line_number, line in enumerate([*lines, ""], start=1):
        if line is not None and not line.strip():
            if block:
                _add_sentence(table, Row(start, number, {}), block)
                number += 1
            block = []
            continue
        start = start if block else line_number
        fields = None if line is None else _fields(line)
        if fields and fields[0] == DOCUMENT_START:
            continue
        columns = columns or len(fields or ())
        if fields and (what := _fault(fields, columns)):
            faults(place_of(table.name, "line", line_number), what)
            fields = None
        block.append(fields)
    if not columns:
        raise UserError(f"{path}: holds no sentence; check the file")
    table.columns = [WORDS] if columns == 1 else [WORDS, TAGS]
    return table


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _fault(fields: list[str], columns: int) -> str:
    if len(fields) != columns:
        return f"{len(fields)} columns, not {columns}"
    return "" if fields[0] and fields[-1] else f"no {'tag' if fields[0] else 'word'}"


def _add_sentence(table: Table, row: Row, block: list[list[str] | None]) -> None:
    fields = [item for item in block if item is not None]
    if len(fields) == len(block):
        row.values[WORDS] = [item[0] for item in fields]
        if len(fields[0]) > 1:
            row.values[TAGS] = [item[-1] for item in fields]
        table.rows.append(row)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags in which every entity begins with B-, from those where B- is used between neighbours of one type only.

    Tags that are already like that stay as they are.
    """
    found: list[str] = []
    for i, tag in enumerate(tags):
        if not isinstance(tag, str):
            raise BadRowError(f"tag {tag!r} is not a name")
        prefix, _, kind = tag.partition("-")
        inside = i > 0 and tags[i - 1] in (f"B-{kind}", f"I-{kind}")
        found.append(f"B-{kind}" if prefix == "I" and not inside else tag)
    return found

"""Rows of CSV, TSV and JSON Lines files."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distil_jax.data.rows import Faults, Row, Table, place_of, repeated, some
from distil_jax.errors import UserError, one_line
from distil_jax.tasks.data.lines import read_lines, suffix_of
from distil_jax.tasks.data.official import Columns

FIELD_LIMIT = 1 << 24  # characters; what is longer is a quote that was never closed rather than a text
QUOTE_FAILURES = 100  # reading starts anew behind each, so a file full of them would take for ever
TABLE_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Cells = tuple[int, list[str] | None]  # number of a row's first line, from 1, and its cells; None: it is left out


def read_table(path: Path, columns: Columns, faults: Faults, *, flawed: bool = False) -> Table:
    """Reads a CSV (quoted, RFC 4180), a TSV (no quoting: a quote is a character) or a JSON Lines file.

    Args:
        path: the file, may be packed (.gz, .xz, .bz2, .zst).
        columns: which columns to keep; `positions` are those of a file whose first line is no header.
        faults: what is done about bad rows.
        flawed: rows with a wrong number of columns are left out and counted apart.

    Raises:
        UserError: an unknown ending, and whatever in the file can't be read, with its line.
    """
    suffix = suffix_of(path)
    if suffix in JSON_SUFFIXES:
        return read_json_rows(path, columns, faults)
    if suffix not in TABLE_SUFFIXES:
        known = some([*TABLE_SUFFIXES, *JSON_SUFFIXES, ".parquet"])
        raise UserError(f"{path}: the ending {suffix or 'is missing and'} does not tell the format; use one of {known}")
    lines = read_lines(path, faults)
    cells = _csv_cells(path, lines, faults) if suffix == ".csv" else _tsv_cells(lines)
    first = first_row(cells)
    if first is None:
        raise UserError(f"{path}: holds no row that can be used; check the file")
    before, line, names = first
    header, start = [name.strip() for name in names], 0
    if columns.positions and not set(header) & {*columns.text}:
        header, cells, start = [*columns.positions], itertools.chain([(line, names)], cells), before
    elif twice := repeated(filter(None, header)):
        raise UserError(f"{path}, line {line}: two columns are called {one_line(twice)!r}; rename one of them")
    table = Table(str(path), header, [])
    kept = [(i, name) for i, name in enumerate(header) if name in columns.names()]
    for number, (line, values) in enumerate(cells, start):
        if values is None:
            continue
        if len(values) == len(header):
            table.rows.append(Row(line, number, {name: values[i] for i, name in kept}))
        elif flawed:
            table.flawed += 1
        else:
            faults(place_of(table.name, "line", line), f"{len(values)} columns, not {len(header)}")
    return table


def first_row(cells: Iterator[Cells]) -> tuple[int, int, list[str]] | None:
    """How many rows are left out before the first one that is not, its line, and its cells; None without one."""
    for before, (line, values) in enumerate(cells):
        if values is not None:
            return before, line, values
    return None


def _tsv_cells(lines: Sequence[str | None]) -> Iterator[Cells]:
    for number, line in enumerate(lines, start=1):
        if line != "":
            yield number, None if line is None else line.split("\t")


def _csv_cells(path: Path, lines: Sequence[str | None], faults: Faults) -> Iterator[Cells]:
    """A row one of whose lines is left out is left out; a bad quote costs the line that opens it, no more."""
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        yield from _csv_rows(path, lines, faults)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, lines: Sequence[str | None], faults: Faults) -> Iterator[Cells]:
    start = 0
    for _ in range(QUOTE_FAILURES):
        reader = csv.reader((f"{line or ''}\n" for line in itertools.islice(lines, start, None)), strict=True)
        number = start + 1
        try:
            for cells in reader:
                end = start + reader.line_num
                if None in lines[number - 1 : end]:
                    yield number, None
                elif cells:
                    yield number, cells
                number = end + 1
            return
        except csv.Error as error:
            faults(place_of(str(path), "line", number), _csv_fault(str(error)))
        yield number, None
        start = number  # a quote may have swallowed good rows: go on behind the line that opened it
    raise UserError(f"{path}: more than {QUOTE_FAILURES} rows are not quoted as CSV; is it CSV at all?")


def _csv_fault(error: str) -> str:
    if "end of data" in error or "field limit" in error:
        return "a quote is opened here and never closed (a quote inside quotes is written twice)"
    if "expected after" in error:
        return "text follows a closing quote (a quote inside quotes is written twice)"
    return f"not CSV ({error})"


# JSON


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {one_line(repeated(name for name, _ in pairs))!r} is there twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN, no key twice. Raises ValueError or RecursionError."""
    return _DECODER.decode(text)


def read_json_rows(path: Path, columns: Columns, faults: Faults) -> Table:
    """Reads JSON Lines, one object a line, or one JSON array of objects. Raises UserError naming the line or item."""
    lines = read_lines(path, faults)
    first = next((line for line in lines if line and line.strip()), "")
    if first.lstrip().startswith("["):
        return _array_table(path, lines, columns, faults)
    table, kept, number = Table(str(path), [], []), columns.names(), -1
    found: dict[str, None] = {}
    for line_number, line in enumerate(lines, start=1):
        if line is not None and not line.strip():
            continue
        number += 1
        if line is None:
            continue
        where = place_of(table.name, "line", line_number)
        try:
            values = parse_json(line)
        except (ValueError, RecursionError) as error:
            faults(where, f"not JSON ({error})")
            continue
        _append(table, where, Row(line_number, number, values), kept, found, faults)
    table.columns = [*found]
    return table


def _array_table(path: Path, lines: Sequence[str | None], columns: Columns, faults: Faults) -> Table:
    try:
        items = parse_json("\n".join(line or "" for line in lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); one object a line, or one array of objects is wanted") from error
    table, kept = Table(str(path), [], [], unit="item"), columns.names()
    found: dict[str, None] = {}
    for number, values in enumerate(items):
        where = place_of(table.name, "item", number + 1)
        _append(table, where, Row(number + 1, number, values), kept, found, faults)
    table.columns = [*found]
    return table


def _append(table: Table, where: str, row: Row, kept: frozenset[str], found: dict[str, None], faults: Faults) -> None:
    """Adds the columns that are kept; `found` takes the names of all."""
    if not isinstance(row.values, dict):
        faults(where, f"holds {type(row.values).__name__}, not an object with named columns")
        return
    found.update(dict.fromkeys(row.values))
    table.rows.append(row._replace(values={name: row.values[name] for name in row.values if name in kept}))

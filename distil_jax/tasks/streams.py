"""Rows of files and pipes, one after the other: what is read is handed on before the rest is looked at or is there."""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, TypeVar

from distil_jax.data.rows import CHUNK, Faults, RawFile, Row, chunks_of, compression_of, place_of, repeated, some
from distil_jax.errors import UserError, one_line
from distil_jax.tasks.data.lines import BOM, UTF16_MARKS, suffix_of
from distil_jax.tasks.data.official import Columns
from distil_jax.tasks.data.tabular import FIELD_LIMIT, QUOTE_FAILURES, Cells, first_row, parse_json

# The column of what is no table: a line of text. No text, since a file may call a column anything, even "".
PLAIN: Final[Any] = object()
SUFFIXES = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv")
_LINE_LIMIT = 1 << 26  # bytes; what is longer is no line of a text file

_AHEAD = 1 << 12  # rows that are read from a pipe before they are asked for

T = TypeVar("T")
Line = tuple[int, str | None]  # its number from 1, and its text; None: left out, it is no text


def stream_file(path: Path, faults: Faults, columns: Columns | None = None) -> Iterator[Row]:
    """Rows of a text (a row a line, in the column `PLAIN`), JSON Lines, CSV or TSV file, packed or not.

    Args:
        path: its ending tells the format; .gz, .xz, .bz2 and .zst are unpacked on the way.
        faults: what is done about rows that can't be read.
        columns: its `positions` are the columns of a table whose first line is no header.

    Raises:
        UserError: an unknown ending, or a row that can't be read, with its line.
    """
    suffix, name = suffix_of(path), str(path)
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: the ending {suffix or 'is missing and'} does not tell the format; use "
            f"{some([*SUFFIXES, '.json', '.parquet'])}"
        )
    with RawFile.open(path) as raw:
        lines = _lines(chunks_of(raw, compression_of(path)), name, faults)
        if suffix == ".txt":
            yield from _plain_rows(lines)
        elif suffix in (".csv", ".tsv"):
            cells = _csv_cells(lines, name, faults) if suffix == ".csv" else _tsv_cells(lines)
            yield from _table_rows(cells, name, faults, columns)
        else:
            yield from _json_rows(lines, name, faults)


def stream_pipe(pipe: BinaryIO, faults: Faults, name: str = "standard input") -> Iterator[Row]:
    """Rows of JSON Lines, where the first line is an object, else a row a line, in the column `PLAIN`."""
    lines = _lines(_pipe_chunks(pipe), name, faults)
    first: list[Line] = []
    for number, text in lines:
        first.append((number, text))
        if text and text.strip():
            break
    objects = bool(first) and (first[-1][1] or "").lstrip().startswith("{")
    every = _chained(first, lines)
    yield from _json_rows(every, name, faults) if objects else _plain_rows(every)


class Arriving(Generic[T]):
    """The items of an iterator that may have to wait for them, read on a thread, so that nobody else has to.

    What the iterator raises is raised where its items end.
    """

    def __init__(self, items: Iterable[T]) -> None:
        """Begins to read, at most `_AHEAD` items more than are asked for."""
        self._there: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(_AHEAD)
        self._peeked: list[tuple[T] | BaseException | None] = []
        threading.Thread(target=self._read, args=(items,), daemon=True).start()

    def _read(self, items: Iterable[T]) -> None:
        end: BaseException | None = None
        try:
            for item in items:
                self._there.put((item,))
        except BaseException as error:
            end = error
        self._there.put(end)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        found = self._peeked.pop() if self._peeked else self._there.get()
        if isinstance(found, tuple):
            return found[0]
        self._peeked.append(found)
        raise StopIteration if found is None else found

    def is_there(self, seconds: float) -> bool:
        """Whether the next item, or the end, comes within so many seconds."""
        try:
            self._peeked = self._peeked or [self._there.get(timeout=seconds)]
        except queue.Empty:
            return False
        return True


def _chained(first: list[Line], rest: Iterator[Line]) -> Iterator[Line]:
    yield from first
    yield from rest


def _pipe_chunks(pipe: BinaryIO) -> Iterator[bytes]:
    # Gives what is there, where a buffer's read would wait for a whole megabyte. Nor does it take the buffer's lock, at
    # which Python would stumble where the program ends while a thread still waits for more.
    read = pipe.raw.read if isinstance(pipe, io.BufferedReader) else pipe.read
    while chunk := read(CHUNK):
        yield chunk


def _lines(chunks: Iterator[bytes], name: str, faults: Faults) -> Iterator[Line]:
    number, tail = 0, b""
    for chunk in chunks:
        if not number and not tail:
            if chunk.startswith(UTF16_MARKS):
                raise UserError(f"{name}: looks like UTF-16, not UTF-8; convert it with: iconv -f UTF-16 -t UTF-8")
            chunk = chunk.removeprefix(BOM)
        *whole, tail = (tail + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield number, _text(line, name, number, faults)
        if len(tail) > _LINE_LIMIT:
            raise UserError(f"{name}, line {number + 1}: more than {_LINE_LIMIT >> 20} MB without an end of line")
    if tail:
        yield number + 1, _text(tail, name, number + 1, faults)


def _text(line: bytes, name: str, number: int, faults: Faults) -> str | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        faults(place_of(name, "line", number), f"not valid UTF-8 (byte {error.start + 1} of the line)")
        return None
    if "\0" in text:
        faults(place_of(name, "line", number), "holds a NUL byte")
        return None
    return text.removesuffix("\r")


def _plain_rows(lines: Iterator[Line]) -> Iterator[Row]:
    for number, text in lines:
        if text is not None:
            yield Row(number, number - 1, {PLAIN: text})


def _json_rows(lines: Iterator[Line], name: str, faults: Faults) -> Iterator[Row]:
    count = 0
    for number, text in lines:
        if text is not None and not text.strip():
            continue
        count += 1
        if text is None:
            continue
        where = place_of(name, "line", number)
        try:
            values = parse_json(text)
        except (ValueError, RecursionError) as error:
            faults(where, f"not JSON ({error})")
            continue
        if isinstance(values, dict):
            yield Row(number, count - 1, values)
        else:
            faults(where, f"holds {type(values).__name__}, not an object with named columns")


def _table_rows(cells: Iterator[Cells], name: str, faults: Faults, columns: Columns | None) -> Iterator[Row]:
    before, line, first = first_row(cells) or (0, 0, [])
    header, start = [column.strip() for column in first], 0
    if columns is not None and len(columns.positions) == len(header) and not {*header} & {*columns.text}:
        header, cells, start = [*columns.positions], itertools.chain([(line, first)], cells), before
    elif twice := repeated(filter(None, header)):
        raise UserError(f"{name}, line {line}: two columns are called {one_line(twice)!r}; rename one of them")
    for number, (line, values) in enumerate(cells, start):
        if values is None:
            continue
        if len(values) == len(header):
            yield Row(line, number, dict(zip(header, values, strict=True)))
        else:
            faults(place_of(name, "line", line), f"{len(values)} columns, not {len(header)}")


def _tsv_cells(lines: Iterator[Line]) -> Iterator[Cells]:
    for number, text in lines:
        if text != "":
            yield number, None if text is None else text.split("\t")


def _csv_cells(lines: Iterator[Line], name: str, faults: Faults) -> Iterator[Cells]:
    """A row one of whose lines is left out is left out; a bad quote costs the line that opens it, no more."""
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))
    again: collections.deque[Line] = collections.deque()
    taken: list[Line] = []  # the lines of the row that is being read

    def feed() -> Iterator[str]:
        while True:
            line = again.popleft() if again else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield f"{line[1] or ''}\n"

    for _ in range(QUOTE_FAILURES):
        reader = csv.reader(feed(), strict=True)
        try:
            for cells in reader:
                number, whole = taken[0][0], all(text is not None for _, text in taken)
                taken.clear()
                if not whole:
                    yield number, None
                elif cells:
                    yield number, cells
            return
        except csv.Error as error:
            faults(place_of(name, "line", taken[0][0]), f"not quoted as CSV ({error}); a quote is written twice")
        yield taken[0][0], None
        again.extendleft(reversed(taken[1:]))
        taken.clear()
    raise UserError(f"{name}: more than {QUOTE_FAILURES} rows are not quoted as CSV; is it CSV at all?")


def json_line(value: object, ascii_only: bool = False) -> str:
    """A value as one line of JSON, without its end."""
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)

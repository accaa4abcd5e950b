"""Rows of CSV and TSV: the separator and the meaning of double quotes are found in the file, and said.

The `csv` module reads what is quoted. Unlike the readers of table libraries it streams, changes no value ("001" and
"2020-01-01" stay text), and every row keeps the number of its line.
"""

from __future__ import annotations

import collections
import csv
import itertools
import re
from collections.abc import Collection, Iterator, Sequence

from distil_jax.data.rows.lines import Batch, Line, numbered_lines
from distil_jax.data.rows.options import ReadOptions
from distil_jax.data.rows.table import Faults, Row, RowStream, place_of, repeated
from distil_jax.errors import UserError, one_line

FIELD_LIMIT = 1 << 24  # characters; what is longer is a quote that was never closed rather than a text
QUOTE_FAILURES = 100  # reading starts again behind each, so a file full of them would take for ever
SEPARATORS = (",", "\t", ";", "|")
_SAMPLE = 50  # rows whose number of cells is compared to find a separator
_RECORD_LINES = 200  # lines that one quoted row may have where the meaning of quotes is looked for

Cells = tuple[int, list[str] | None]  # number of a row's first line, from 1, and its cells; None: it is left out


def open_separated(
    batches: Iterator[Batch], usual: str, stream: RowStream, options: ReadOptions, faults: Faults
) -> None:
    """Reads the header into `stream.columns`, and lets `stream.rows` read the rest.

    Args:
        batches: the lines.
        usual: the separator that the file's ending names.
        stream: is filled.
        options: `separator`, `wanted`, `positions` and `flawed` matter.
        faults: what is done about bad rows.

    Raises:
        UserError: a column name is there twice.
    """
    first = _first_batch(batches)
    sample = [line for _, line in first if line]
    separator = "\t" if options.separator == "tab" else options.separator
    if sample and sample[0].startswith("sep=") and len(sample[0].rstrip()) == 5:  # as Excel has it
        separator, first, sample = sample[0][4], first[1:], sample[1:]
    if not sample:
        stream.columns = []
        return
    separator = separator or found_separator(sample, usual, options.wanted)
    if separator != usual:
        stream.note(f"columns are separated by {separator!r}")
    rest = ([*numbered_lines(iter([batch]))] for batch in batches)
    spaced = _has_spaced_quotes(sample, separator)
    cells = _cells(itertools.chain([first], rest), separator, spaced, stream, faults)
    # Rows may be left out before the first one that is not.
    before, (line, names) = next(((i, row) for i, row in enumerate(cells) if row[1] is not None), (0, (1, None)))
    names = names or []
    header = [name.strip() for name in names]
    if len(options.positions) == len(header) and not {*header} & {*options.wanted}:
        header, cells = [*options.positions], itertools.chain([(line, names)], cells)
    elif twice := repeated(filter(None, header)):
        raise UserError(f"{stream.name}, line {line}: two columns are called {one_line(twice)!r}; rename one of them")
    else:
        before = 0
    stream.columns = header
    stream.rows = _rows(cells, before, header, stream, options, faults)


def _first_batch(batches: Iterator[Batch]) -> list[Line]:
    """The first lines, as soon as there is one with text."""
    lines: list[Line] = []
    for batch in batches:
        lines += numbered_lines(iter([batch]))
        if any(line for _, line in lines):
            break
    return lines


def _rows(
    cells: Iterator[Cells],
    start: int,
    columns: Sequence[str],
    stream: RowStream,
    options: ReadOptions,
    faults: Faults,
) -> Iterator[Row]:
    kept = [(i, name) for i, name in enumerate(columns) if options.keep is None or name in options.keep]
    for number, (line, values) in enumerate(cells, start):
        if values is None:
            continue
        if len(values) == len(columns):
            yield Row(line, number, {name: values[i] for i, name in kept})
        elif options.flawed:
            stream.flawed += 1
        else:
            faults(place_of(stream.name, "line", line), f"{len(values)} columns, not {len(columns)}")


# The dialect


def found_separator(lines: Sequence[str], usual: str, wanted: Collection[str]) -> str:
    """The separator of a table: one by which its first line names a column that is wanted, the usual one if it can.

    Where no wanted column is found, it is the first by which all lines have as many cells, more than one.
    """
    order = [usual, *(mark for mark in SEPARATORS if mark != usual)]
    for mark in order:
        if {*wanted} & {*header_cells(lines[0], mark)}:
            return mark
    for mark in order:
        widths = {len(cells) for cells in _unchecked(lines[:_SAMPLE], mark)}
        if len(widths) == 1 and widths != {1}:
            return mark
    return usual


def _has_spaced_quotes(lines: Sequence[str], separator: str) -> bool:
    """Whether a blank stands between separators and quoted cells: `a, "b, c"`."""
    cells = [cell for row in _unchecked(lines[:_SAMPLE], separator) for cell in row]
    return any(cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for cell in cells)


def header_cells(line: str, separator: str) -> list[str]:
    """The names in a header."""
    return [name.strip() for name in _unchecked([line], separator)[0]]


def _unchecked(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Cells of the rows but the last one, which may not be whole; of a single line, its own."""
    try:
        rows = [row for row in csv.reader((f"{line}\n" for line in lines), delimiter=separator) if row]
    except csv.Error:
        rows = [line.split(separator) for line in lines]
    return (rows[:-1] if len(rows) > 2 else rows) or [[]]


class QuoteVotes:
    """Whether double quotes enclose cells (True) or are characters of the text (False); None: there are none.

    A writer that quotes puts every cell with a quote into quotes and doubles the quotes inside. So a quote elsewhere
    speaks against quoting; a cell in quotes that holds a doubled quote, the separator or a line end speaks for it. If
    neither is there, quotes enclose where a whole column or every cell with a comma has them, and no other.
    """

    def __init__(self, lines: Sequence[str], separator: str) -> None:
        """Counts the rows in these lines."""
        self.separator = separator
        self.cell = re.compile(rf'"(?:[^"]|"")*+"|[^"\n{re.escape(separator)}]*+')
        self.width = self.good = self.bad = self.rows = self.wrapped = 0
        self.columns: collections.Counter[int] = collections.Counter()
        self.only_commas = True  # cells are in quotes if, and only if, they hold a comma
        start = 0
        while start < len(lines):
            start += self._add(lines, start)

    def _add(self, lines: Sequence[str], start: int) -> int:
        """Counts one row, and returns how many lines it has."""
        line = lines[start].removesuffix("\r")
        if not line:
            return 1
        if '"' not in line:
            self._count(line.split(self.separator))
            return 1
        record, end = [line], start + 1
        quotes = line.count('"')
        while quotes % 2 and end < min(len(lines), start + _RECORD_LINES):
            record.append(lines[end].removesuffix("\r"))
            quotes, end = quotes + record[-1].count('"'), end + 1
        cells = self._split("\n".join(record))
        if cells is None or (self.width and len(cells) != self.width):
            self.bad += self.width in (0, line.count(self.separator) + 1)
            return 1
        header = not self.width
        special = any(cell[:1] == '"' and ('""' in cell[1:-1] or {self.separator, "\n"} & {*cell}) for cell in cells)
        self.good += special or (header and all(cell[:1] == '"' for cell in cells))
        self._count(cells)
        return end - start

    def _split(self, record: str) -> list[str] | None:
        """The cells, their quotes included; None where quotes are not those of cells."""
        cells, at = [], 0
        while match := self.cell.match(record, at):
            cells.append(match[0])
            at = match.end()
            if at == len(record):
                return cells
            if record[at] != self.separator:
                return None
            at += 1
        return None

    def _count(self, cells: Sequence[str]) -> None:
        if not self.width:
            self.width = len(cells)
            return
        self.rows += 1
        for i, cell in enumerate(cells):
            inside = cell[:1] == '"'
            self.wrapped += inside
            self.columns[i] += inside
            self.only_commas &= inside == ("," in cell)

    def result(self) -> bool | None:
        """What the rows say."""
        if self.good or self.bad:
            return self.good > self.bad
        if not self.wrapped:
            return None
        return self.only_commas or (self.rows > 1 and max(self.columns.values()) == self.rows)


# Cells


def _cells(
    batches: Iterator[list[Line]], separator: str, spaced: bool, stream: RowStream, faults: Faults
) -> Iterator[Cells]:
    """Yields the cells of every row. In a file of tabs, the first lines with a quote show what quotes mean."""
    enclose = None if separator == "\t" else True
    header = ""
    for batch in batches:
        lines = [line for _, line in batch if line]
        header = header or (lines or [""])[0]
        if enclose is None and any('"' in line for line in lines):
            votes = QuoteVotes(lines if lines[0] == header else [header, *lines], separator)
            enclose = votes.result()
            if enclose or votes.good or not votes.bad:  # text with quotes that enclose nothing can be read in one way
                stream.note(f"double quotes {'enclose cells' if enclose else 'are part of the text'}")
        if enclose:
            rest = itertools.chain(batch, itertools.chain.from_iterable(batches))
            yield from _quoted_cells(rest, separator, spaced, stream.name, faults)
            return
        for number, line in batch:
            if line not in ("", "\r"):
                yield number, None if line is None else line.removesuffix("\r").split(separator)


def _quoted_cells(lines: Iterator[Line], separator: str, spaced: bool, name: str, faults: Faults) -> Iterator[Cells]:
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
        reader = csv.reader(feed(), delimiter=separator, skipinitialspace=spaced, strict=True)
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
            faults(place_of(name, "line", taken[0][0]), _csv_fault(str(error), len(taken)))
        yield taken[0][0], None
        again.extendleft(reversed(taken[1:]))  # the quote may have swallowed good rows
        taken.clear()
    raise UserError(f"{name}: more than {QUOTE_FAILURES} rows are not quoted as CSV; is it CSV at all?")


def _csv_fault(error: str, lines: int) -> str:
    if "field larger" in error and lines == 1:
        return f"a cell is longer than {FIELD_LIMIT} characters"
    if "end of data" in error or "field larger" in error:
        return "a quote is opened here and never closed (a quote inside quotes is written twice)"
    if "expected after" in error:
        return "text follows a closing quote (a quote inside quotes is written twice)"
    if "new-line" in error:
        return "a carriage return inside a row (where lines end with CR alone, convert the file: tr '\\r' '\\n')"
    return f"not CSV ({error})"

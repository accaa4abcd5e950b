"""What every reader gives: rows by column with the place each came from, and what is done about a bad one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from distil_jax.data.rows.files import RawFile
from distil_jax.errors import UserError

# The column of a plain line of text. No string, since a file may call a column anything, even "".
PLAIN: Final[Any] = object()


_FAULTS_SHOWN = 3  # of rows that cannot be used, and of kinds of faults
_KINDS_KEPT, _LONGEST_KIND = 50, 200


class BadRowError(Exception):
    """One row cannot be used, and why. Caught where the row's place is known."""


class Row(NamedTuple):
    """One row: its place in the source (a line number from 1, or a path in a JSON document) and its values by column.

    `number` counts the rows of the source from 0, those that were left out included.
    """

    place: int | str
    number: int
    values: dict[str, Any]


@dataclasses.dataclass
class _Source:
    """Rows of one file, or of one split of a dataset.

    Attributes:
        name: file, or dataset and split, as a user would call it.
        unit: what `place` counts: "line", "row", "item"; "" where the place says so itself.
        classes: names of the classes of columns that hold class numbers, where the dataset knows them.
        flawed: rows that are left out because they were published broken.
        columns_taken: where a column was found that the file does not name: {"words": "column 2 (FORM)"}.
        notes: what was recognised in the file, for the user.
    """

    name: str
    unit: str = "line"
    _: dataclasses.KW_ONLY
    classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    flawed: int = 0
    columns_taken: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def where(self, row: Row) -> str:
        """File and place of a row, for messages."""
        return place_of(self.name, self.unit, row.place)


@dataclasses.dataclass
class Table(_Source):
    """All rows in memory, with the names of all columns, those that are not kept included."""

    _: dataclasses.KW_ONLY
    columns: Sequence[str]
    rows: list[Row] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class RowStream(_Source):
    """Rows that are read as they are asked for; flaws and notes are complete once all rows were read.

    Attributes:
        rows: the rows, once.
        columns: names of all columns; None: each row has its own (JSON).
        count: number of rows, 0 where unknown.
        raw: the file on disk that is read; None: there is none.
    """

    rows: Iterator[Row] = dataclasses.field(default_factory=lambda: iter(()))
    columns: Sequence[str] | None = None
    _: dataclasses.KW_ONLY
    count: int = 0
    raw: RawFile | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return next(self.rows)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def table(self, keep: Collection[str] | None = None) -> Table:
        """All rows in memory, with the columns `keep` (None: all) where their names are the file's own."""
        if self.columns_taken or not self.unit:
            keep = None
        found: dict[str, None] = dict.fromkeys(self.columns or ())
        rows: list[Row] = []
        for row in self.rows:
            if self.columns is None:
                found.update(dict.fromkeys(row.values))
            kept = row.values if keep is None else {name: row.values[name] for name in row.values if name in keep}
            rows.append(row._replace(values=kept))
        described = {field.name: getattr(self, field.name) for field in dataclasses.fields(_Source)}
        return Table(**described, columns=[*found], rows=rows)


def repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before; None where each is there once."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def place_of(name: str, unit: str, place: int | str) -> str:
    """The place of a row for messages, such as `dev.tsv, line 3`."""
    return f"{name}, {unit} {place}" if unit else f"{name}, {place}"


@dataclasses.dataclass
class Faults:
    """What is done about rows that cannot be used: the first one stops everything, or all are left out and counted.

    Attributes:
        skip: such rows are left out.
        remedy: the option that leaves them out.
        count: rows left out.
        gather: where rows are not left out, `settle` stops everything, not the first one.
    """

    skip: bool = False
    remedy: str = 'task.on_error = "skip"'
    count: int = 0
    gather: bool = False
    _shown: list[str] = dataclasses.field(default_factory=list)
    _kinds: dict[str, list[Any]] = dataclasses.field(default_factory=dict)  # fault without numbers -> first, count

    def __call__(self, where: str, what: str) -> None:
        """Reports one. Raises UserError unless such rows are left out, or gathered."""
        if not self.skip and not self.gather:
            raise UserError(f"{where}: {what}; fix it, or leave such rows out with {self.remedy}")
        self.count += 1
        kind = re.sub(r"\d+", "", what)[:_LONGEST_KIND]
        if kind in self._kinds or len(self._kinds) < _KINDS_KEPT:
            self._kinds.setdefault(kind, [f"{what}, first {where}", 0])[1] += 1
        if len(self._shown) < _FAULTS_SHOWN:
            self._shown.append(f"{where}: {what}")

    @property
    def first(self) -> str:
        """Place and fault of the first row left out; "" for none."""
        return self._shown[0] if self._shown else ""

    def settle(self) -> None:
        """Raises UserError for the rows gathered so far: how many there are, and the first ones."""
        if self.skip or not self.count:
            return
        more = self.count - len(self._shown)
        rows = f"{self.count:,} rows cannot be used: " if self.count > 1 else ""
        shown = "; ".join(self._shown) + (f"; and {more:,} more" if more else "")
        raise UserError(f"{rows}{shown}; fix {'them' if rows else 'it'}, or leave such rows out with {self.remedy}")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user reads at the end: how many rows were left out, and why; () where none was."""
        if not self.count:
            return ()
        rows = "row" if self.count == 1 else "rows"
        if len(self._kinds) == 1:
            return (f"{self.count} {rows} skipped (first: {self.first})",)
        often = sorted(self._kinds.values(), key=lambda kind: -kind[1])[:_FAULTS_SHOWN]
        parts = [f"{count} x {what}" for what, count in often]
        if more := self.count - sum(count for _, count in often):
            parts.append(f"{more} x other faults")
        return (f"{self.count} {rows} skipped ({'; '.join(parts)})",)


def some(names: Sequence[object], limit: int = 20) -> str:
    """The names with commas, the first ones where they are many."""
    shown = ", ".join(str(name)[:60] for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"

"""What every reader gives: rows by column, with the place each came from; and what is done about a bad one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from distil_jax.errors import UserError


class BadRowError(Exception):
    """One row can't be used, and why. Caught where the row's place is known."""


class Row(NamedTuple):
    """One row: its place in the source (a line number from 1, or a path in a JSON document) and its values by column.

    `number` counts the rows of the source from 0, those that were left out included.
    """

    place: int | str
    number: int
    values: dict[str, Any]


@dataclasses.dataclass
class Table:
    """The rows of one file, or of one split of a dataset.

    Attributes:
        name: file, or dataset and split, as a user would call it.
        columns: names of all columns, those that are not kept included.
        rows: the rows.
        unit: what `place` counts: "line", "row", "item"; "" where it says so itself.
        classes: names of the classes of columns that hold class numbers, where the dataset knows them.
        flawed: rows that are left out because they were published broken.
    """

    name: str
    columns: Sequence[str]
    rows: list[Row]
    unit: str = "line"
    classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    flawed: int = 0

    def where(self, row: Row) -> str:
        """File and place of a row, for messages."""
        return place_of(self.name, self.unit, row.place)


def repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before; None where each is there once."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def place_of(name: str, unit: str, place: int | str) -> str:
    """The place of a row for messages, such as `dev.tsv, line 3`."""
    return f"{name}, {unit} {place}" if unit else f"{name}, {place}"


@dataclasses.dataclass
class Faults:
    """What is done about rows that can't be used: the first one stops everything, or all are left out and counted."""

    skip: bool = False
    count: int = 0
    first: str = ""

    def __call__(self, where: str, what: str) -> None:
        """Reports one. Raises UserError unless such rows are left out."""
        if not self.skip:
            raise UserError(f'{where}: {what}; mend it, or leave such rows out with task.on_error = "skip"')
        self.count += 1
        self.first = self.first or f"{where}: {what}"


def some(names: Sequence[object], limit: int = 20) -> str:
    """The names with commas, the first ones where they are many."""
    shown = ", ".join(str(name)[:60] for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"

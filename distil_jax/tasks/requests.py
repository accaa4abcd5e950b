"""Rows without labels as examples to predict: which columns are read, and what is no text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distil_jax.config import TaskSettings
from distil_jax.data.rows import (
    CONLLU_COLUMNS,
    PLAIN,
    WORDS,
    BadRowError,
    Faults,
    Format,
    ReadOptions,
    Row,
    RowStream,
    open_rows,
    place_of,
)
from distil_jax.tasks.data.columns import Columns
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, checked_text, endings_of, first_of
from distil_jax.tasks.data.gather import own_columns
from distil_jax.tasks.examples import Example
from distil_jax.tasks.kinds import TaskKind
from distil_jax.tasks.registry import TASKS


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which columns make an example of which kind.

    Attributes:
        kind: what the model reads.
        columns: alternatives, best first; `label` does not matter.
        pairs: where a second text may be there or not: the model reads pairs, or single texts; of choices: a start in
            front of every ending, or none; None: not known, a second text is taken where there is one.
        flags: what names the columns of texts, of second texts and of endings, for messages; "" where nothing does.
    """

    kind: TaskKind[Any]
    columns: Columns
    pairs: bool | None = None
    flags: tuple[str, str, str] = ("--text-column", "--pair-column", "--endings-columns")


def usual_reading(kind: TaskKind[Any], pairs: bool | None = None) -> Reading:
    """For a model of which nothing but its kind is known, and perhaps `Reading.pairs`."""
    if pairs is None or not kind.optional_pair:
        return Reading(kind, kind.columns)
    return Reading(kind, kind.columns if pairs else dataclasses.replace(kind.columns, pair=()), pairs)


def reading_of(settings: TaskSettings, kind: TaskKind[Any]) -> Reading:
    """For a model that was fine-tuned with these settings: the columns it was trained on, then the usual ones."""
    published = TASKS[settings.name].published if settings.name in TASKS else None
    known = published.columns if published else own_columns(settings, kind)
    reading = usual_reading(kind, bool(known.pair))
    usual = reading.columns
    merged: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(known, name), *getattr(usual, name))))
        for name in ("text", "pair", "id", "endings")
    }
    return dataclasses.replace(reading, columns=Columns(**merged, positions=known.positions))


def with_columns(reading: Reading, text: str = "", pair: str = "", endings: tuple[str, ...] = ()) -> Reading:
    """The same with columns that the user names; empty: as they are."""
    columns = reading.columns
    columns = dataclasses.replace(
        columns,
        text=(text,) if text else columns.text,
        pair=(pair,) if pair else columns.pair,
        endings=(endings,) if endings else columns.endings,
    )
    named_pair = bool(pair) and reading.kind.optional_pair
    return dataclasses.replace(reading, columns=columns, pairs=True if named_pair else reading.pairs)


def rows_to_predict(
    source: Path | BinaryIO,
    reading: Reading,
    faults: Faults,
    labels: Collection[str] = (),
    format: Format | None = None,
    separator: str = "",
) -> RowStream:
    """The rows of a file or pipe, with the columns that `reading` names where the source itself names none.

    Args:
        source: a file's path, or an open pipe.
        reading: what the model reads.
        faults: what is done about rows that cannot be read.
        labels: of a tagger, by which columns of words and tags are distinguished from text.
        format: of the source; None: by its ending, or recognised.
        separator: of the columns of a table; "": found.

    Raises:
        UserError: as `open_rows`.
    """
    columns = reading.columns
    name = columns.text[0]
    chosen = name.removeprefix("-").isdecimal() or name.upper() in CONLLU_COLUMNS
    options = ReadOptions(
        format=format or "",
        separator=separator,
        wanted=columns.text,
        positions=columns.positions,
        tagged=reading.kind.tagged,
        words=name if chosen else "",
        tag_names=labels,
    )
    stream = open_rows(source, options, faults)
    if stream.columns_taken and name != WORDS:
        rows = stream.rows
        stream.rows = (row._replace(values={name: row.values[WORDS], **row.values}) for row in rows)
    return stream


class Request(NamedTuple):
    """A row to predict: its id (its number, from 0, where it has none), its example, and its values by column."""

    id: Any
    example: Example
    values: Mapping[str, Any]


def read_requests(
    rows: Iterable[Row],
    reading: Reading,
    faults: Faults,
    name: str,
    unit: str = "line",
    blank: Callable[[], None] = lambda: None,
) -> Iterator[Request]:
    """The rows that can be predicted.

    Args:
        rows: read one at a time.
        reading: how they are read.
        faults: what is done about those that cannot be.
        name: what they come from, for messages.
        unit: what a row's place counts.
        blank: called for each line of plain text that is blank; these are left out.

    Raises:
        UserError: place and reason of a row that cannot be used, as `faults` has it.
    """
    for row in rows:
        if not str(row.values.get(PLAIN, "-") if isinstance(row.values, Mapping) else "-").strip():
            blank()
            continue
        try:
            found = request(row.values, reading)
        except BadRowError as error:
            faults(place_of(name, unit, row.place), str(error))
            continue
        yield found._replace(id=row.number) if found.id is None else found


def request(row: Any, reading: Reading) -> Request:
    """A row to predict; its id is None where it has none of its own.

    Args:
        row: named columns; or what `TaskKind.bare` takes: a text, two texts, a list of words.
        reading: how rows are read.

    Raises:
        BadRowError: the row lacks something, or holds what is no text.
    """
    values = _named(row, reading)
    identity = next((values[name] for name in reading.columns.id if values.get(name) not in (None, "")), None)
    if identity is not None and not isinstance(identity, str | int):
        raise BadRowError(f"an id of type {type(identity).__name__}, expected a text or a number")
    if isinstance(identity, str):
        checked_text(identity, "the id")
    name = "" if identity is None else str(identity)
    example = reading.kind.to_example(name, values, _taken(values, reading), ExampleRules())
    return Request(identity, example, values)


def _named(row: Any, reading: Reading) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        if PLAIN not in row:
            return row
        row = row[PLAIN]
    values = reading.kind.bare(row, reading.columns)
    if values is None:
        what = "a bare text" if isinstance(row, str) else type(row).__name__
        raise BadRowError(f"{what} where {reading.kind.row} is wanted")
    return values


def _taken(values: Mapping[str, Any], reading: Reading) -> TakenColumns:
    """The columns of a row. Raises BadRowError for one that is missing, with the flag that names another."""
    columns, (text_flag, pair_flag, endings_flag) = reading.columns, reading.flags
    pair = next((name for name in columns.pair if values.get(name) is not None), "")
    if not pair and (reading.pairs or not reading.kind.optional_pair):
        pair = first_of(columns.pair, values, pair_flag)
    endings = endings_of(columns.endings, values, endings_flag)
    return TakenColumns(first_of(columns.text, values, text_flag), pair, endings=endings)

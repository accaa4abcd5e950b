"""Files and pipes to predict, read as fine-tuning reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from distil_jax.data.rows import CONLLU_COLUMNS, WORDS, Faults, Format, ReadOptions, RowStream, open_rows
from distil_jax.tasks.requests import Reading


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

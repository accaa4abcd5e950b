"""Files to predict, in any form that fine-tuning reads: which one it is, its ending and the kind of model tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distil_jax.corpus.files import RawFile, chunks_of, compression_of
from distil_jax.tasks.data.conll import DOCUMENT_START, read_conll
from distil_jax.tasks.data.lines import BOM, suffix_of
from distil_jax.tasks.data.parquet import PARQUET, stream_parquet
from distil_jax.tasks.data.squad_json import read_questions
from distil_jax.tasks.data.tables import Faults, Row
from distil_jax.tasks.data.tabular import read_json_rows
from distil_jax.tasks.requests import Reading
from distil_jax.tasks.streams import SUFFIXES, stream_file

_HEADER = 1 << 12  # bytes in which the first line is looked for


def rows_of_file(path: Path, reading: Reading, faults: Faults) -> tuple[Iterable[Row], str]:
    """The rows of a file, and what their places count ("line", "row"; "" where these say so themselves).

    Text, JSON Lines, CSV, TSV and Parquet are read a piece at a time, the other forms as a whole: an array of objects
    (.json), SQuAD's JSON (.json, for questions), CoNLL columns (for tags: other endings than these, and .txt and .tsv
    files that begin like it).

    Raises:
        UserError: as `stream_file` and the readers of these forms.
    """
    suffix = suffix_of(path)
    if suffix == PARQUET:
        return stream_parquet(path, faults), "row"
    if reading.kind == "token" and _has_columns(path, suffix, reading):
        return read_conll(path, faults).rows, "line"
    if suffix == ".json":
        read = read_questions if reading.kind == "question" else read_json_rows
        table = read(path, reading.columns, faults)
        return table.rows, table.unit
    return stream_file(path, faults, reading.columns), "line"


def _has_columns(path: Path, suffix: str, reading: Reading) -> bool:
    """Whether a tagger's file has a word a line; in .txt and .tsv files the first line tells."""
    if suffix not in (".txt", ".tsv"):
        return suffix not in (*SUFFIXES, ".json")
    with RawFile.open(path) as raw:
        start = next(chunks_of(raw, compression_of(path)), b"")[:_HEADER]
    first = start.removeprefix(BOM).lstrip().partition(b"\n")[0].decode(errors="replace")
    cells = [cell.strip() for cell in first.split("\t")]
    return first.startswith(DOCUMENT_START) or (len(cells) > 1 and not {*cells} & {*reading.columns.text})

"""Files to predict, in any form that fine-tuning reads: which one it is, its ending and the kind of model tell."""

from __future__ import annotations

import itertools
import string
from collections.abc import Collection, Iterable
from pathlib import Path

from distil_jax.data.rows import Faults, RawFile, Row, chunks_of, compression_of
from distil_jax.tasks.data.conll import DOCUMENT_START, read_conll
from distil_jax.tasks.data.labels import is_span_tag
from distil_jax.tasks.data.lines import BOM, suffix_of
from distil_jax.tasks.data.parquet import PARQUET, stream_parquet
from distil_jax.tasks.data.squad_json import read_questions
from distil_jax.tasks.data.tabular import read_json_rows
from distil_jax.tasks.requests import Reading
from distil_jax.tasks.streams import SUFFIXES, stream_file

_HEADER = 1 << 12  # bytes in which the first line, or sentence, is looked for
_OUTSIDE = "O"  # the tag of what is in no entity


def rows_of_file(
    path: Path, reading: Reading, faults: Faults, labels: Collection[str] = ()
) -> tuple[Iterable[Row], str]:
    """The rows of a file, and what their places count ("line", "row"; "" where these say so themselves).

    Text, JSON Lines, CSV, TSV and Parquet are read a piece at a time, the other forms as a whole: an array of objects
    (.json), SQuAD's JSON (.json, for questions), CoNLL columns (for tags: other endings than these, and .txt and .tsv
    files that begin like it).

    Args:
        path: the file.
        reading: what the model reads.
        faults: what is done about rows that can't be read.
        labels: of a tagger, by which columns are told from text.

    Raises:
        UserError: as `stream_file` and the readers of these forms.
    """
    suffix = suffix_of(path)
    if suffix == PARQUET:
        return stream_parquet(path, faults), "row"
    if reading.kind == "token" and _has_columns(path, suffix, reading, labels):
        return read_conll(path, faults).rows, "line"
    if suffix == ".json":
        read = read_questions if reading.kind == "question" else read_json_rows
        table = read(path, reading.columns, faults)
        return table.rows, table.unit
    return stream_file(path, faults, reading.columns), "line"


def _has_columns(path: Path, suffix: str, reading: Reading, labels: Collection[str]) -> bool:
    """Whether a tagger's file has a word a line; in .txt and .tsv files the first line, or sentence, tells."""
    if suffix not in (".txt", ".tsv"):
        return suffix not in (*SUFFIXES, ".json")
    with RawFile.open(path) as raw:
        start = next(chunks_of(raw, compression_of(path)), b"")[:_HEADER]
    text = start.removeprefix(BOM).lstrip().decode(errors="replace")
    first = text.partition("\n")[0]
    cells = [cell.strip() for cell in first.split("\t")]
    if first.startswith(DOCUMENT_START) or (len(cells) > 1 and not {*cells} & {*reading.columns.text}):
        return True
    return suffix == ".txt" and _is_tagged(text, len(start) == _HEADER, labels)


def _is_tagged(text: str, cut: bool, labels: Collection[str]) -> bool:
    """Whether all lines before the first blank one are as many fields between blanks, of which the last is a tag.

    Args:
        text: how a file begins.
        cut: its last line may be half of one.
        labels: of the model; what looks like the tag of an entity is one, too.
    """
    lines = text.split("\n")[: -1 if cut else None]
    block = [line.split() for line in itertools.takewhile(str.strip, lines)]
    tags = {fields[-1] for fields in block if len(fields) > 1}
    if not tags or len({len(fields) for fields in block}) > 1:
        return False
    if len(block) == 1:  # of a single line, "blood type O" and "along the I-95" are text
        return tags <= {*labels} and tags != {_OUTSIDE} and _has_letters(tags)
    # Sentences may well be equally long and end in a full stop, which is a label of taggers for parts of speech.
    return all(tag in labels or _is_entity_tag(tag) for tag in tags) and _has_letters(tags)


def _is_entity_tag(tag: str) -> bool:
    return tag == _OUTSIDE or (is_span_tag(tag) and tag[2] in string.ascii_letters)


def _has_letters(tags: Collection[str]) -> bool:
    return any(character.isalnum() for tag in tags for character in tag)

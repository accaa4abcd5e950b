"""Rows of any source: which format it has, and the reader of that format."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distil_jax.data.rows.conll import DOCUMENT_START, OUTSIDE, group_words, looks_like_span_tag, open_conll
from distil_jax.data.rows.datasets import open_objects
from distil_jax.data.rows.files import compression_of, open_chunks, suffix_of
from distil_jax.data.rows.json_rows import check_size, is_object, open_json
from distil_jax.data.rows.lines import BOM, batches_of_lines, chunks_of_pipe, numbered_lines, plain_rows
from distil_jax.data.rows.options import FORMATS, Format, ReadOptions
from distil_jax.data.rows.parquet import open_parquet
from distil_jax.data.rows.separated import SEPARATORS, header_cells, open_separated
from distil_jax.data.rows.table import Faults, RowStream, Table, some
from distil_jax.errors import UserError

ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".conllu": "conllu",
    ".bio": "conll",
    ".iob": "conll",
}
_LOOKED_AT = 1 << 12  # bytes in which the first line, or sentence, is looked for


def open_rows(source: Any, options: ReadOptions | None = None, faults: Faults | None = None) -> RowStream:
    """The rows of a source, read as they are asked for.

    Args:
        source: a file's path; an open binary pipe or file; or rows in memory: a `datasets` object, a pandas DataFrame,
            an iterable of mappings.
        options: how it is read; None: everything is found out.
        faults: what is done about bad rows; None: the first one stops.

    Raises:
        UserError: no such file, a format that is not known, or a header or document that cannot be read; while rows
            are read, file and place of a bad one.
    """
    options, faults = options or ReadOptions(), faults or Faults()
    if isinstance(source, str | Path):
        return _open_path(Path(source).expanduser(), options, faults, loading=False)
    if hasattr(source, "read"):
        return _open_pipe(source, "standard input", options, faults)
    return open_objects(source, "rows", options.keep, faults)


def read_table(source: Any, options: ReadOptions | None = None, faults: Faults | None = None) -> Table:
    """All rows of a source in memory. Arguments and errors as of `open_rows`.

    Raises:
        UserError: also for a device or pipe, an empty file, and one that memory would not hold.
    """
    options, faults = options or ReadOptions(), faults or Faults()
    if not isinstance(source, str | Path):
        return open_rows(source, options, faults).table(options.keep)
    table = _open_path(Path(source).expanduser(), options, faults, loading=True).table(options.keep)
    if not (table.columns or table.rows or faults.count):
        raise UserError(f"{table.name}: the file is empty; check that it was written or fetched completely")
    return table


def _open_path(path: Path, options: ReadOptions, faults: Faults, *, loading: bool) -> RowStream:
    name = str(path)
    if path.is_dir():
        raise UserError(f"{name}: is a folder; name the file itself")
    if path.exists() and not path.is_file():
        if loading:
            raise UserError(f"{name}: a device or pipe, not a file; save its rows in a file first")
        return _open_pipe(path.open("rb", buffering=0), name, options, faults)
    if (options.format or ENDINGS.get(suffix_of(path))) == "parquet":
        if compression_of(path):
            raise UserError(f"{name}: Parquet files are compressed inside; unpack it first")
        return open_parquet(path, options, faults)
    raw, chunks = open_chunks(path)
    stream = RowStream(name, raw=raw)
    if loading:
        check_size(stream, raw.size)
        chunks = _held(chunks, stream) if compression_of(path) else chunks
    first = next(chunks, b"")
    format = options.format or _format_of_file(path, first, options)
    if not options.format and format != "conll" and ENDINGS.get(suffix_of(path)) not in (format, None):
        stream.note(f"read as {format}, which its first line is")
    return _opened(format, first, chunks, stream, options, faults)


def _held(chunks: Iterator[bytes], stream: RowStream) -> Iterator[bytes]:
    """Yields the chunks once all of them are there: rows take far more memory than what they unfold from."""
    size = 0
    held: collections.deque[bytes] = collections.deque()
    for chunk in chunks:
        size += len(chunk)
        check_size(stream, size)
        held.append(chunk)
    while held:
        yield held.popleft()


def _open_pipe(pipe: BinaryIO, name: str, options: ReadOptions, faults: Faults) -> RowStream:
    chunks = chunks_of_pipe(pipe, name)
    first = b""
    for chunk in chunks:  # until the first line is there
        first += chunk
        if b"\n" in first.lstrip():
            break
    format = options.format or recognised_format(first, options) or "text"
    if format == "parquet":
        raise UserError(f"{name}: Parquet cannot be read from a pipe; save it in a file first")
    stream = RowStream(name)
    if not options.format and format != "text":
        stream.note(f"read as {format}")
    return _opened(format, first, chunks, stream, options, faults)


def _opened(
    format: Format, first: bytes, rest: Iterator[bytes], stream: RowStream, options: ReadOptions, faults: Faults
) -> RowStream:
    if first.startswith(BOM):
        stream.note("a byte order mark at the start is passed over")
    chunks = itertools.chain([first], rest)
    if format in ("json", "jsonl"):
        open_json(chunks, stream, options, faults, lines=format == "jsonl")
        return stream
    batches = batches_of_lines(chunks, stream.name, faults, options.max_line_bytes)
    if format == "text":
        stream.rows = plain_rows(batches)
    elif format in ("conll", "conllu"):
        open_conll(numbered_lines(batches), stream, options, faults, universal=format == "conllu")
    else:
        table = dataclasses.replace(options, keep=None) if options.tagged else options
        open_separated(batches, "," if format == "csv" else "\t", stream, table, faults)
        if options.tagged:
            group_words(stream, options)
    return stream


# Formats


def _format_of_file(path: Path, first: bytes, options: ReadOptions) -> Format:
    """The format by the ending, unless the first bytes are clearly those of another one."""
    suffix = suffix_of(path)
    format, found = ENDINGS.get(suffix), recognised_format(first, options)
    if format == "tsv" and found == "conll":
        return found
    if format in ("csv", "tsv"):
        return "jsonl" if found == "json" and is_object(first.removeprefix(BOM).partition(b"\n")[0]) else format
    if format in ("json", "jsonl"):
        return found if found in ("csv", "tsv") else format
    if format == "text" and not options.labelled:
        return found if found in ("conll", "csv", "tsv") else format
    if format is not None and format != "text":
        return format
    if options.tagged:
        return "conll"
    if format == "text" and found in ("csv", "tsv"):
        return found
    known = some([*ENDINGS])
    raise UserError(
        f"{path}: the ending {suffix or 'is missing and'} does not tell the format; use one of {known}, or name it "
        f"({', '.join(FORMATS)})"
    )


def recognised_format(first: bytes, options: ReadOptions) -> Format | None:
    """The format that the first bytes show: JSON, columns of words and tags, or a table whose header is known."""
    text = first[:_LOOKED_AT].removeprefix(BOM).lstrip(b" \t\r\n" if not options.tagged else b"\r\n")
    start = text.decode(errors="replace")
    if start.startswith("{") or (start.startswith("[") and start[1:].lstrip().startswith("{")):
        return "json"
    line = start.partition("\n")[0].removesuffix("\r")
    for separator in SEPARATORS:
        cells = header_cells(line, separator)
        if len(cells) > 1 and {*cells} & {*options.wanted}:
            return "tsv" if separator == "\t" else "csv"
    return "conll" if options.tagged and _has_columns(start, len(first) >= _LOOKED_AT, options.tag_names) else None


def _has_columns(text: str, cut: bool, labels: Collection[str]) -> bool:
    """Whether text has a word a line, in columns, by its first line or sentence.

    Args:
        text: how a file begins.
        cut: its last line may be half of one.
        labels: tags that are known; what looks like the tag of an entity is one, too.
    """
    lines = text.split("\n")[: -1 if cut else None]
    lines = [*itertools.dropwhile(lambda line: not line.strip() or line.startswith("#"), lines)]
    if not lines or lines[0].startswith(DOCUMENT_START) or "\t" in lines[0].strip():
        return bool(lines)
    block = [line.split() for line in itertools.takewhile(str.strip, lines)]
    tags = {fields[-1] for fields in block if len(fields) > 1}
    if len({len(fields) for fields in block}) > 1 or not any(map(str.isalnum, itertools.chain.from_iterable(tags))):
        return False
    if len(block) == 1:  # of a single line, "blood type O" and "along the I-95" are text
        return tags <= {*labels} and tags != {OUTSIDE}
    # Sentences may well be equally long and end in a full stop, which is a label of taggers for parts of speech.
    rest = tags - {*labels, OUTSIDE}
    return all(looks_like_span_tag(tag) and re.match("[^-]-[A-Za-z]", tag) for tag in rest)

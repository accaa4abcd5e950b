"""Text in: files, globs, folders, Hugging Face and TFDS datasets, streamed as documents in constant memory.

A source string is one of

- a file, a folder (every text, JSON and Parquet file below it) or a glob (`data/**/*.txt.gz`); `.gz`, `.xz`, `.bz2`
  and `.zst` are unpacked on the way; `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` and `.parquet` hold rows, of which
  one column is read; any other file is plain text;
- `hf:NAME[:CONFIG][@SPLIT]`, a dataset of the Hugging Face hub (or a local dataset folder), streamed;
- `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, a TensorFlow dataset (extra `distil_jax[tfds]`).

In plain text a line is a sequence and a blank line ends a document; so does the end of a file. Elsewhere a row is a
document and its lines are sequences. Everything is UTF-8; whatever is not raises UserError with file and line.

Text is handled as bytes throughout: checking and splitting a megabyte at a time keeps one reading process ahead of
dozens of tokenising ones.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distil_jax.data.rows import (
    ENDINGS,
    LINE_LIMIT,
    BadRowError,
    Compression,
    Faults,
    ReadOptions,
    Row,
    RowStream,
    batches_of_lines,
    compression_of,
    is_utf8,
    open_chunks,
    open_rows,
    open_source,
    recognised_format,
    suffix_of,
)
from distil_jax.errors import UserError, one_line
from distil_jax.hf import file_sha256

_ROWS = ("csv", "tsv", "jsonl", "json", "parquet")
_IN_FOLDERS = (".txt", ".text", ".jsonl", ".ndjson", ".json", ".parquet")
# WikiExtractor puts every article between such lines.
_MARKUP = (b"<doc ", b"</doc>")
_MARK = re.compile(rb"<doc [a-z]+=.*>|</doc>")


@dataclass(frozen=True)
class Source:
    """One thing to read: a file (`path`, `size` in bytes on disk) or a dataset (`name` as the user wrote it)."""

    name: str
    kind: str  # "text", "hf", "tfds", or a format of rows
    path: Path | None = None
    compression: Compression = ""
    size: int = 0


@dataclass(frozen=True)
class SourceOptions:
    """How text is read.

    Attributes:
        text_column: the column of rows.
        on_error: "stop" at a bad line or row, or "skip" it.
        markup: what is done with WikiExtractor's lines `<doc ...>` and `</doc>`.
        max_line_bytes: bytes of the longest line.
        piece_bytes: bytes from which on a document is handed on in pieces.
        remedy: what a user types to skip bad lines, for messages.
        naming: what names another text column, for messages.
    """

    text_column: str
    on_error: str
    markup: Literal["keep", "drop"]
    max_line_bytes: int
    piece_bytes: int
    remedy: str = 'corpus.on_error = "skip"'
    naming: str = "corpus.text_column"


@dataclass
class ReadState:
    """What a reader has seen so far; `bytes_read` counts bytes on disk (compressed ones where the file is)."""

    bytes_read: int = 0
    bad_lines: int = 0
    markup_lines: int = 0  # lines of WikiExtractor's markup that were seen
    sha256: dict[str, str] = field(default_factory=dict)  # file name -> digest, once the file was read to its end
    notes: list[str] = field(default_factory=list)  # what was recognised in files, for the user


@dataclass(frozen=True)
class Document:
    """Consecutive non-blank lines (UTF-8, stripped). `continued`: an overlong document's next piece."""

    lines: list[bytes]
    continued: bool = False


def resolve(sources: Sequence[str]) -> list[Source]:
    """Turns source strings into files and datasets, in order; files of a folder or glob are sorted by path.

    Raises UserError for a missing file, a glob or folder that yields nothing, a repeated file and an empty list.
    """
    if not sources:
        raise UserError("no text sources given: name a file, a folder, a glob, hf:NAME or tfds:NAME")
    found: list[Source] = []
    for text in sources:
        scheme = text.partition(":")[0]
        if scheme in ("hf", "tfds"):
            found.append(Source(text, scheme))
        else:
            found += [_file_source(path) for path in _matching_files(text)]
    seen: set[str] = set()
    for source in found:
        if source.name in seen:
            raise UserError(f"{source.name}: named twice among the sources; name every file once")
        seen.add(source.name)
    return found


def check(sources: Sequence[Source], options: SourceOptions) -> None:
    """Opens every source and looks at its first text, so that most mistakes show before any work. Raises UserError."""
    for source in sources:
        if source.kind in ("hf", "tfds", "parquet"):
            _open_rows(source, options, Faults())
        elif source.size or options.on_error == "stop":
            # One row is enough: a later one may be bad too, but it is found by reading, not by looking twice.
            next(documents(source, options, ReadState()), None)


def documents(source: Source, options: SourceOptions, state: ReadState) -> Iterator[Document]:
    """Streams the documents of one source, updating `state`. Raises UserError naming file and line."""
    start = state.bytes_read
    faults = Faults(options.on_error == "skip", options.remedy, state.bad_lines)
    read = _text_documents if source.kind == "text" else _row_documents
    empty = True
    for document in read(source, options, state, faults):
        empty = False
        yield document
    if empty and options.on_error == "stop":
        raise UserError(f"{source.name}: holds no text; remove it from the sources")
    state.bytes_read, state.bad_lines = start + source.size, faults.count


def _matching_files(text: str) -> list[Path]:
    path, mode = Path(text), 0
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no such user, nothing there, no possible name
        path = path.expanduser()
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        names = sorted(p for p in path.rglob("*") if p.is_file() and _is_known(p, path))
        if not names:
            raise UserError(
                f"{text}: the folder holds no .txt, .jsonl, .json or .parquet file; name the files themselves, as in "
                f"{text}/*.csv"
            )
        return names
    if mode and not stat.S_ISREG(mode):
        raise UserError(f"{text}: a device or pipe, not a file; sources are read twice, so save the text first")
    if mode:
        return [path]
    if glob.has_magic(text) and "\0" not in text:
        names = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not names:
            raise UserError(f"{text}: no file matches; check the pattern (quote it against the shell)")
        return names
    raise UserError(f"{one_line(text)}: no such file or folder; check the path")


def _is_known(path: Path, root: Path) -> bool:
    """Whether a file met in a folder is text: hidden files and unknown endings (README.md, .tsv) are left out."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and suffix_of(path) in _IN_FOLDERS


def _file_source(path: Path) -> Source:
    kind = ENDINGS.get(suffix_of(path), "text")
    kind = kind if kind in _ROWS else "text"
    if kind == "parquet" and compression_of(path):
        raise UserError(f"{path}: Parquet files are compressed inside; unpack it first")
    return Source(str(path), kind, path, compression_of(path), path.stat().st_size)


def lines_of(sources: Sequence[str], columns: Sequence[str], on_error: str) -> Iterator[str]:
    """Streams the lines of all sources, of rows those of each column in turn, for a command with the flag --on-error.

    Raises:
        UserError: file and line of what cannot be read.
    """
    for column in columns:
        options = SourceOptions(column, on_error, "drop", LINE_LIMIT, LINE_LIMIT, "--on-error skip", "--text-column")
        for source in resolve(sources):
            for document in documents(source, options, ReadState()):
                yield from (line.decode() for line in document.lines)


# Documents


def _text_documents(source: Source, options: SourceOptions, state: ReadState, faults: Faults) -> Iterator[Document]:
    assert source.path is not None
    start = state.bytes_read
    raw, chunks = open_chunks(source.path)

    def lines() -> Iterator[bytes]:
        for number, batch in batches_of_lines(chunks, source.name, faults, options.max_line_bytes):
            if number == 1 and (form := _other_form(batch, options.text_column)):
                state.notes.append(f"{source.name}: read as plain text, but it looks like {form}; its ending decides")
            state.bytes_read, state.bad_lines = start + raw.position, faults.count
            for line in batch:
                if line is None:
                    continue
                line = line.strip()  # also drops the \r of Windows line ends
                if line.startswith(_MARKUP) and _MARK.fullmatch(line):
                    state.markup_lines += 1
                    line = b"" if options.markup == "drop" else line
                yield line

    yield from _pieces(lines(), options.piece_bytes)
    state.sha256[source.name] = raw.sha256


def _pieces(lines: Iterable[bytes], piece_bytes: int) -> Iterator[Document]:
    """Yields the documents in stripped lines, each ended by a blank one, and an overlong one in pieces."""
    held: list[bytes] = []
    size, continued = 0, False
    for line in itertools.chain(lines, [b""]):
        if line:
            held.append(line)
            size += len(line) + 1
            if size < piece_bytes:
                continue
        if held:
            yield Document(held, continued)
        held, size, continued = [], 0, bool(line)


def _other_form(batch: Sequence[bytes | None], column: str) -> str:
    """The format of rows with the text column that the first line has, "" for plain text."""
    first = next(filter(None, batch), b"")
    form = recognised_format(first, ReadOptions(wanted=(column,)))
    return "" if form is None or (form == "json" and f'"{column}"'.encode() not in first) else form


def _row_documents(source: Source, options: SourceOptions, state: ReadState, faults: Faults) -> Iterator[Document]:
    stream, start = _open_rows(source, options, faults), state.bytes_read
    for row in stream:
        if stream.count:
            state.bytes_read = start + source.size * (row.number + 1) // stream.count
        elif stream.raw is not None:
            state.bytes_read = start + stream.raw.position
        try:
            lines = map(bytes.strip, io.BytesIO(_text_of(row, options)))
            yield from _pieces(filter(None, lines), options.piece_bytes)
        except BadRowError as error:
            faults(stream.where(row), str(error))
        state.bad_lines = faults.count
    state.notes += [f"{source.name}: {note}" for note in stream.notes]
    if source.path is not None:
        state.sha256[source.name] = stream.raw.sha256 if stream.raw is not None else file_sha256(source.path)


def _open_rows(source: Source, options: SourceOptions, faults: Faults) -> RowStream:
    column = options.text_column
    if source.path is None:
        stream = open_source(source.name, column, faults)
    else:
        wanted = ReadOptions(wanted=(column,), keep=(column,), max_line_bytes=options.max_line_bytes)
        stream = open_rows(source.path, wanted, faults)
    if stream.columns and column not in stream.columns:
        raise UserError(f"{source.name}: {_no_column(options, stream.columns)}")
    return stream


def _no_column(options: SourceOptions, found: Iterable[object]) -> str:
    names = one_line(", ".join(map(str, found))) or "none"
    return f"no column {options.text_column!r} (found: {names}; {options.naming} names another)"


def _text_of(row: Row, options: SourceOptions) -> bytes:
    """The text of a row in UTF-8, b"" for none. Raises BadRowError."""
    column = options.text_column
    if column not in row.values:
        raise BadRowError(_no_column(options, row.values))
    value = row.values[column]
    if not isinstance(value, str | bytes | None):
        raise BadRowError(f"column {column!r} holds {type(value).__name__}, not text")
    try:
        data = value.encode() if isinstance(value, str) else value or b""
    except UnicodeEncodeError:
        data = b"\xff"
    if not is_utf8(data):
        raise BadRowError(f"column {column!r} is not valid Unicode")
    if len(data) > options.max_line_bytes:
        raise BadRowError(f"longer than max_line_bytes = {options.max_line_bytes}")
    return data

"""Text in: files, globs, folders, Hugging Face and TFDS datasets, streamed as documents in constant memory.

A source string is one of

- a file, a folder (every text, JSON Lines and Parquet file below it) or a glob (`data/**/*.txt.gz`); `.gz`, `.xz`,
  `.bz2` and `.zst` are unpacked on the way; `.jsonl`, `.ndjson`, `.json` and `.parquet` hold rows, any other file is
  plain text;
- `hf:NAME[:CONFIG][@SPLIT]`, a dataset of the Hugging Face hub (or a local dataset folder), streamed;
- `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, a TensorFlow dataset (extra `distil_jax[tfds]`).

In plain text a line is a sequence and a blank line ends a document; so does the end of a file. Elsewhere a row is a
document and its lines are sequences. Everything is UTF-8; whatever is not raises UserError with file and line.

Text is handled as bytes throughout: checking and splitting a megabyte at a time keeps one reading process ahead of
dozens of tokenising ones. JSON Lines are parsed here and not by `datasets`, which reads a column of date-like strings
as timestamps and so rewrites the text ("2020-01-01" -> "2020-01-01 00:00:00"), and cannot name or skip a bad line.
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import io
import json
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distil_jax.data.rows import CHUNK, Compression, RawFile, chunks_of, compression_of
from distil_jax.errors import UserError, one_line

ROW_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
TEXT_SUFFIXES = (".txt", ".text")
BOM = b"\xef\xbb\xbf"
# Texts, brackets, commas and colons of one JSON line: a line of brackets alone would take thirty times its size.
_MOST_JSON_PARTS = 1 << 20
_JSON_PARTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[{,:]', re.DOTALL)


@dataclass(frozen=True)
class Source:
    """One thing to read: a file (`path`, `size` in bytes on disk) or a dataset (`name` as the user wrote it)."""

    name: str
    kind: str  # "text" | "jsonl" | "parquet" | "hf" | "tfds"
    path: Path | None = None
    compression: Compression = ""
    size: int = 0


@dataclass(frozen=True)
class ReadOptions:
    """How to read: the column of rows, what to do with bad lines ("stop" | "skip"), the longest line and document
    piece, bytes.
    """

    text_column: str = "text"
    on_error: str = "stop"
    max_line_bytes: int = 64 << 20
    piece_bytes: int = 4 << 20


@dataclass
class ReadState:
    """What a reader has seen so far; `bytes_read` counts bytes on disk (compressed ones where the file is)."""

    bytes_read: int = 0
    bad_lines: int = 0
    sha256: dict[str, str] = field(default_factory=dict)  # file name -> digest, once the file was read to its end


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


def check(sources: Sequence[Source], options: ReadOptions) -> None:
    """Opens every source and looks at its first text, so that most mistakes show before any work. Raises UserError."""
    for source in sources:
        if source.kind in ("hf", "tfds", "parquet"):
            _open_rows(source, options)
        elif source.size or options.on_error == "stop":
            # One row is enough: a later one may be bad too, but it is found by reading, not by looking twice.
            next(documents(source, options, ReadState()), None)


def documents(source: Source, options: ReadOptions, state: ReadState) -> Iterator[Document]:
    """Streams the documents of one source, updating `state`. Raises UserError naming file and line."""
    start = state.bytes_read
    if source.kind == "text":
        stream = _text_documents(_file_lines(source, options, state), options)
    elif source.kind == "jsonl":
        stream = _json_documents(source, options, state)
    else:
        stream = _row_documents(source, options, state)
    empty = True
    for document in stream:
        empty = False
        yield document
    if empty and options.on_error == "stop":
        raise UserError(f"{source.name}: holds no text; remove it from the sources")
    state.bytes_read = start + source.size


def _matching_files(text: str) -> list[Path]:
    path, mode = Path(text), 0
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no such user, nothing there, no possible name
        path = path.expanduser()
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        names = sorted(p for p in path.rglob("*") if p.is_file() and _is_known(p, path))
        if not names:
            raise UserError(
                f"{text}: the folder holds no .txt, .jsonl, .json or .parquet file; name the files themselves"
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
    return not hidden and _suffix(path) in (*TEXT_SUFFIXES, *ROW_SUFFIXES)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if compression_of(path) else path.suffix.lower()


def _file_source(path: Path) -> Source:
    kind = ROW_SUFFIXES.get(_suffix(path), "text")
    if kind == "parquet" and compression_of(path):
        raise UserError(f"{path}: Parquet files are compressed inside; unpack it first")
    return Source(str(path), kind, path, compression_of(path), path.stat().st_size)


# Lines of files


@dataclass
class _BadLines:
    """Raises for a bad line or counts it, as the options say."""

    source: Source
    options: ReadOptions
    state: ReadState

    def __call__(self, number: int, what: str, unit: str = "line") -> None:
        if self.options.on_error == "stop":
            remedy = f'mend the {unit}, or leave such {unit}s out with on_error = "skip"'
            raise UserError(f"{self.source.name}, {unit} {number}: {what}; {remedy}")
        self.state.bad_lines += 1


def _file_lines(source: Source, options: ReadOptions, state: ReadState) -> Iterator[tuple[int, list[bytes | None]]]:
    """Yields (number of the first line, lines) about a megabyte at a time; None stands for a line that was left out."""
    assert source.path is not None
    bad, start = _BadLines(source, options, state), state.bytes_read
    with RawFile.open(source.path) as raw:
        number, tail, tail_bytes, overlong = 1, [], 0, False
        for chunk in chunks_of(raw, source.compression):
            state.bytes_read = start + raw.position
            cut = chunk.rfind(b"\n")
            if cut >= 0:
                batch = b"".join([*tail, chunk[:cut]])
                lines = _checked(batch, number, bad, overlong)
                yield number, lines
                number, tail, tail_bytes, overlong = number + len(lines), [], 0, False
            tail.append(chunk[cut + 1 :])
            tail_bytes += len(tail[-1])
            if tail_bytes > options.max_line_bytes:
                if not overlong:
                    bad(number, _overlong(options))
                tail, tail_bytes, overlong = [], 0, True  # what follows, to the next line end, is dropped unseen
        if tail_bytes or overlong:
            yield number, _checked(b"".join(tail), number, bad, overlong)
        state.sha256[source.name] = raw.finish()


def _overlong(options: ReadOptions) -> str:
    return f"longer than max_line_bytes = {options.max_line_bytes}"


def _checked(batch: bytes, number: int, bad: _BadLines, overlong: bool) -> list[bytes | None]:
    """Splits a batch into lines and checks them: the batch as a whole, line by line only when something is wrong."""
    if number == 1 and batch.startswith(BOM):
        batch = batch[len(BOM) :]
    lines: list[bytes | None] = [*batch.split(b"\n")]
    if overlong:
        lines[0] = None
    limit = bad.options.max_line_bytes
    if (
        b"\0" not in batch
        and _is_utf8(batch)
        and (len(batch) <= limit or max(map(len, filter(None, lines)), default=0) <= limit)
    ):
        return lines
    for i, line in enumerate(lines):
        if line is None:
            continue
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            what = "looks like UTF-16, not UTF-8 (convert it with: iconv -f UTF-16 -t UTF-8)"
        elif b"\0" in line:
            what = "holds a NUL byte: this is not a text file"
        elif not _is_utf8(line):
            what = f"not valid UTF-8 (byte {_bad_byte(line)} of the line); convert the file with iconv"
        elif len(line) > limit:
            what = _overlong(bad.options)
        else:
            continue
        bad(number + i, what)
        lines[i] = None
    return lines


def _is_utf8(data: bytes) -> bool:
    return data.isascii() or not _bad_byte(data)


def _bad_byte(data: bytes) -> int:
    """The number of the first byte that is not UTF-8, from 1; 0 for none."""
    # A megabyte at a time: the text of a long line would take four times its bytes.
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), CHUNK):
        kept = len(decoder.getstate()[0])  # the first bytes of a character that the last piece cut
        try:
            decoder.decode(data[start : start + CHUNK], start + CHUNK >= len(data))
        except UnicodeDecodeError as error:
            return start - kept + error.start + 1
    return 0


def _text_documents(batches: Iterator[tuple[int, list[bytes | None]]], options: ReadOptions) -> Iterator[Document]:
    lines: list[bytes] = []
    size, continued = 0, False
    for _, batch in batches:
        for raw in batch:
            if raw is None:
                continue
            line = raw.strip()  # also drops the \r of Windows line ends
            if line:
                lines.append(line)
                size += len(line) + 1
                if size < options.piece_bytes:
                    continue
            if lines:
                yield Document(lines, continued)
            lines, size, continued = [], 0, bool(line)
    if lines:
        yield Document(lines, continued)


def _json_documents(source: Source, options: ReadOptions, state: ReadState) -> Iterator[Document]:
    bad = _BadLines(source, options, state)
    for number, batch in _file_lines(source, options, state):
        for i, line in enumerate(batch):
            if line is None or not line.strip():
                continue
            if _is_overfull(line):
                bad(number + i, f"a JSON object of more than {_MOST_JSON_PARTS} parts")
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = " (one JSON object a line is wanted, not one array)" if line.lstrip().startswith(b"[") else ""
                bad(number + i, f"not JSON: {one_line(error)}{hint}")
                continue
            if not isinstance(row, dict):
                bad(number + i, "not a JSON object with a text column (one object a line is wanted)")
            elif options.text_column not in row:
                bad(number + i, _no_column(options.text_column, row))
            else:
                yield from _row_document(row[options.text_column], number + i, bad, "line")


def _is_overfull(line: bytes) -> bool:
    """Whether a JSON line would make far more objects than it has bytes to spare."""
    if len(line) <= CHUNK:
        return False
    for number, part in enumerate(_JSON_PARTS.finditer(line)):
        if number >= _MOST_JSON_PARTS:
            return True
        if part[0] == b'"':  # a text that does not end: for the parser to say
            return False
    return False


# Rows of datasets


def _no_column(column: str, found: Sequence[str] | dict[str, Any]) -> str:
    return f"no column {column!r} (found: {one_line(', '.join(map(str, found))) or 'none'}; name it with text_column)"


def _row_document(value: object, number: int, bad: _BadLines, unit: str) -> Iterator[Document]:
    """Yields the document of one row, an overlong one in pieces, or none for an empty or bad one."""
    if value is None:
        return
    try:
        data = value.encode() if isinstance(value, str) else value
        if not isinstance(data, bytes):
            bad(number, f"column {bad.options.text_column!r} holds {type(value).__name__}, not text", unit)
            return
        if not isinstance(value, str) and not _is_utf8(data):
            raise UnicodeError
    except UnicodeError:
        bad(number, f"column {bad.options.text_column!r} is not valid Unicode", unit)
        return
    if len(data) > bad.options.max_line_bytes:
        bad(number, _overlong(bad.options), unit)
        return
    lines: list[bytes] = []
    size, continued = 0, False
    for line in filter(None, map(bytes.strip, io.BytesIO(data))):
        lines.append(line)
        size += len(line) + 1
        if size >= bad.options.piece_bytes:
            yield Document(lines, continued)
            lines, size, continued = [], 0, True
    if lines:
        yield Document(lines, continued)


def _open_rows(source: Source, options: ReadOptions) -> tuple[Any, int]:
    from distil_jax.data.corpus import parquet, rows

    opener = {"parquet": parquet.open_parquet, "hf": rows.open_hf, "tfds": rows.open_tfds}[source.kind]
    data, columns, count = opener(source.name, options.text_column)
    if columns is not None and options.text_column not in columns:
        raise UserError(f"{source.name}: {_no_column(options.text_column, columns)}")
    return data, count


def _row_documents(source: Source, options: ReadOptions, state: ReadState) -> Iterator[Document]:
    from distil_jax.data.corpus import rows

    bad, start = _BadLines(source, options, state), state.bytes_read
    data, count = _open_rows(source, options)
    for number, value in enumerate(rows.values(data, source.name, options.text_column), start=1):
        if count:
            state.bytes_read = start + source.size * number // count
        yield from _row_document(value, number, bad, "row")
    if source.path is not None:
        with RawFile.open(source.path) as raw:
            state.sha256[source.name] = raw.finish()

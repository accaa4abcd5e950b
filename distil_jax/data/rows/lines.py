r"""Lines of text, checked: strict UTF-8 without NUL bytes and byte order mark, numbered from 1.

Only `\n` ends a line: a text may hold the other characters that Python's `splitlines` takes for line ends.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from distil_jax.data.rows.files import CHUNK, as_utf8
from distil_jax.data.rows.table import PLAIN, Faults, Row, place_of

BOM = b"\xef\xbb\xbf"
LINE_LIMIT = 64 << 20  # bytes; what is longer is no line of a text file

# The number of the first line, and lines without `\n`. None stands for a line that was left out.
Batch = tuple[int, list[bytes | None]]
Line = tuple[int, str | None]


def batches_of_lines(chunks: Iterator[bytes], name: str, faults: Faults, limit: int = LINE_LIMIT) -> Iterator[Batch]:
    """Yields the lines of chunks of bytes, those of a chunk together and as soon as it is there.

    Args:
        chunks: the content, cut anywhere.
        name: of the file or pipe, for messages.
        faults: what is done about a line that is no text or too long.
        limit: bytes of the longest line; a longer one is never held.

    Raises:
        UserError: name, line and fault, unless `faults` leaves such lines out.
    """
    overlong = f"longer than max_line_bytes = {limit}"

    def checked(batch: bytes) -> list[bytes | None]:
        """The lines of a batch, checked as a whole, and one by one only where something is wrong."""
        lines: list[bytes | None] = [*batch.removeprefix(BOM if number == 1 else b"").split(b"\n")]
        if dropped:
            lines[0] = None
        is_short = len(batch) <= limit or max(map(len, filter(None, lines)), default=0) <= limit
        if b"\0" not in batch and is_short and is_utf8(batch):
            return lines
        for i, line in enumerate(lines):
            if line is not None and (what := _fault(line) or (overlong if len(line) > limit else "")):
                faults(place_of(name, "line", number + i), what)
                lines[i] = None
        return lines

    number, tail, tail_bytes, dropped = 1, [], 0, False
    for chunk in chunks:
        cut = chunk.rfind(b"\n")
        if cut >= 0:
            lines = checked(b"".join([*tail, chunk[:cut]]))
            yield number, lines
            number, tail, tail_bytes, dropped = number + len(lines), [], 0, False
        tail.append(chunk[cut + 1 :])
        tail_bytes += len(tail[-1])
        if tail_bytes > limit:
            if not dropped:
                faults(place_of(name, "line", number), overlong)
            tail, tail_bytes, dropped = [], 0, True  # the rest of the line is dropped unseen
    if tail_bytes or dropped:
        yield number, [None] if dropped else checked(b"".join(tail))


def _fault(line: bytes) -> str:
    if b"\0" in line:
        return "holds a NUL byte: this is not a text file"
    return "" if is_utf8(line) else f"not valid UTF-8 (byte {_bad_byte(line)} of the line)"


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
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


def chunks_of_pipe(pipe: BinaryIO, name: str = "standard input") -> Iterator[bytes]:
    """The text that comes through a pipe as UTF-8, as soon as it is there."""
    return as_utf8(_chunks_of_pipe(pipe), name)


def _chunks_of_pipe(pipe: BinaryIO) -> Iterator[bytes]:
    # The buffer's own read would wait for a whole megabyte, and holds a lock at which Python stumbles where the
    # program ends while a thread still waits.
    read = pipe.raw.read if isinstance(pipe, io.BufferedReader) else pipe.read
    while chunk := read(CHUNK):
        yield chunk


def numbered_lines(batches: Iterator[Batch]) -> Iterator[Line]:
    """Yields the number and text of every line, None for one that was left out; a carriage return at its end stays."""
    for number, batch in batches:
        for i, line in enumerate(batch):
            yield number + i, None if line is None else line.decode()


def plain_rows(batches: Iterator[Batch]) -> Iterator[Row]:
    """Yields a row a line, in the column `PLAIN`."""
    for number, line in numbered_lines(batches):
        if line is not None:
            yield Row(number, number - 1, {PLAIN: line.removesuffix("\r")})

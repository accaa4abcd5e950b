"""Bytes of files on disk, plain or compressed, in chunks of bounded size."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import itertools
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

from distil_jax.errors import UserError, one_line

Compression = Literal["", "gz", "xz", "bz2", "zst"]
COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".xz": "xz", ".bz2": "bz2", ".zst": "zst"}
CHUNK = 1 << 20
PACKED_CHUNK = 1 << 16  # compressed bytes handed to a decoder at once
# An .xz file says how much memory its decoder takes, up to 4 GB. `xz -9`, its largest preset, needs 65 MB.
XZ_MEMORY = 128 << 20
# Text packs to a tenth at best; what promises to unfold a thousandfold is a bomb or of no use.
_LARGEST_RATIO = 200
_SMALL = 64 << 20  # bytes that are taken whatever they were packed to


def suffix_of(path: Path) -> str:
    """The ending that shows the format, in lower case: ".jsonl" of "train.jsonl.xz"."""
    return Path(path.stem).suffix.lower() if compression_of(path) else path.suffix.lower()


def compression_of(path: Path) -> Compression:
    """The compression that a file's ending names, "" for none."""
    return COMPRESSIONS.get(path.suffix.lower(), "")


def unfolds_too_far(packed: int, unpacked: int) -> bool:
    """Whether so many bytes from so few can't be text."""
    return unpacked > max(_SMALL, _LARGEST_RATIO * packed)


class RawFile(io.RawIOBase):
    """A file read once, front to back; counts the bytes on disk and hashes them in passing, to read nothing twice."""

    def __init__(self, handle: IO[bytes], path: Path) -> None:
        self.handle, self.path, self.position = handle, path, 0
        self.size = path.stat().st_size
        self.digest, self.sha256 = hashlib.sha256(), ""  # the latter once the file was read to its end

    @classmethod
    def open(cls, path: Path) -> RawFile:
        """Opens a file. Raises UserError where it is missing or can't be read."""
        try:
            return cls(path.open("rb", buffering=0), path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.handle.read(-1 if size is None else size) or b""
        self.position += len(data)
        self.digest.update(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """Reads what is left and returns the SHA-256 of the whole file."""
        while self.read(CHUNK):
            pass
        self.sha256 = self.digest.hexdigest()
        return self.sha256

    def close(self) -> None:
        self.handle.close()
        super().close()


def open_chunks(path: Path) -> tuple[RawFile, Iterator[bytes]]:
    """A file, and its unpacked content in chunks; it is hashed and closed where they end. Errors as `chunks_of`."""
    raw = RawFile.open(path)

    def chunks() -> Iterator[bytes]:
        with raw:
            yield from chunks_of(raw, compression_of(path))
            raw.finish()

    return raw, chunks()


def chunks_of(raw: RawFile, compression: Compression) -> Iterator[bytes]:
    """Yields the unpacked content in chunks of at most a megabyte, however much a packed file may unfold to.

    Raises UserError naming the file, and the last line that could be read, where it is broken.
    """
    lines = 0
    try:
        for chunk in as_utf8(_unpacked(raw, compression), str(raw.path)):
            lines += chunk.count(b"\n")
            yield chunk
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"broken .{compression} file" if compression else "cannot be read"
        raise UserError(f"{raw.path}: {what}, after line {lines} ({one_line(error)}); fetch it again") from error


def as_utf8(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """UTF-16, as a byte order mark shows, in UTF-8; anything else as it is. Raises UserError for broken UTF-16."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) > 1:
            break
    every = itertools.chain([start] if start else [], chunks)
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from every
        return
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        for chunk in itertools.chain(every, [b""]):
            yield decoder.decode(chunk, final=not chunk).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: begins as UTF-16 and is not ({error.reason}); save it as UTF-8") from error


def _unpacked(raw: RawFile, compression: Compression) -> Iterator[bytes]:
    if compression == "xz":
        yield from _xz_chunks(raw)
        return
    # The openers only ask `raw` for `read`, whatever their annotations say.
    handle = cast("IO[bytes]", raw)
    reader: Any = raw
    if compression == "gz":
        reader = gzip.GzipFile(fileobj=handle)
    elif compression == "bz2":
        reader = bz2.BZ2File(handle)
    elif compression == "zst":
        reader = _zstd_reader(raw)
    while chunk := reader.read(CHUNK):
        yield chunk


def _xz_chunks(raw: RawFile) -> Iterator[bytes]:
    """Stream by stream: the package's own file object knows no limit of memory."""
    data = b""
    while True:
        decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = raw.read(PACKED_CHUNK)
                if not data:
                    raise EOFError("the file ends in the middle of a stream")
            out, data = decoder.decompress(data, CHUNK), b""
            if out:
                yield out
        data = decoder.unused_data.lstrip(b"\0")  # streams may be padded
        while not data:
            data = raw.read(PACKED_CHUNK)
            if not data:
                return
            data = data.lstrip(b"\0")


class _Unclosed:
    """Only what a reader needs of a file, so that it does not close the file when it is done."""

    closed = False

    def __init__(self, raw: RawFile) -> None:
        self.read = raw.read

    def close(self) -> None:
        """Leaves the file open."""


def _zstd_reader(raw: RawFile) -> Any:
    """Arrow's decoder gives out as much as is asked for; that of `zstandard` unfolds 32 kB to a gigabyte at once."""
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(_Unclosed(raw), "r"), "zstd")

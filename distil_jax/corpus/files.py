"""Bytes of files on disk, plain or compressed, in chunks of bounded size."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

from distil_jax.errors import UserError

Compression = Literal["", "gz", "xz", "bz2", "zst"]
COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".xz": "xz", ".bz2": "bz2", ".zst": "zst"}
CHUNK = 1 << 20
# Compressed bytes handed to the zstd decoder at once; it unpacks them whole, so this bounds what comes out.
ZSTD_CHUNK = 1 << 15


def compression_of(path: Path) -> Compression:
    """The compression that a file's ending names, "" for none."""
    return COMPRESSIONS.get(path.suffix.lower(), "")


class RawFile(io.RawIOBase):
    """A file read once, front to back; counts the bytes on disk and hashes them in passing, to read nothing twice."""

    def __init__(self, handle: IO[bytes], path: Path) -> None:
        self.handle, self.path, self.position, self.digest = handle, path, 0, hashlib.sha256()

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
        return self.digest.hexdigest()

    def close(self) -> None:
        self.handle.close()
        super().close()


def chunks_of(raw: RawFile, compression: Compression) -> Iterator[bytes]:
    """Yields the unpacked content in chunks of about a megabyte.

    Raises UserError naming the file where it is broken.
    """
    try:
        if compression == "zst":
            yield from _zstd_chunks(raw)
        else:
            reader = _unpacked(raw, compression)
            while chunk := reader.read(CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"broken .{compression} file" if compression else "cannot be read"
        raise UserError(f"{raw.path}: {what} ({error}); fetch or pack it again") from error


def _unpacked(raw: RawFile, compression: Compression) -> Any:
    """Something to read unpacked bytes from. The openers only ask `raw` for `read`, whatever their annotations say."""
    handle = cast("IO[bytes]", raw)
    if compression == "gz":
        return gzip.GzipFile(fileobj=handle)
    if compression == "xz":
        return lzma.LZMAFile(handle)
    return bz2.BZ2File(handle) if compression == "bz2" else raw


def _zstd_chunks(raw: RawFile) -> Iterator[bytes]:
    """Frame by frame: the package's own stream reader ends silently where a file was cut off."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{raw.path}: reading .zst needs `pip install zstandard` (or unpack it first)") from error
    data = raw.read(ZSTD_CHUNK)
    try:
        while data:
            frame = zstandard.ZstdDecompressor().decompressobj()
            while not frame.eof:
                if not data:
                    raise EOFError("the file ends in the middle of a frame")
                if out := frame.decompress(data):
                    yield out
                data = b"" if frame.eof else raw.read(ZSTD_CHUNK)
            data = frame.unused_data or raw.read(ZSTD_CHUNK)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error

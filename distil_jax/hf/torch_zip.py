"""The zip archive around a file of torch.save, without reading more of it than is asked for.

`zipfile` finds the members; their bytes are mapped, so that a file whose tensors do not fit costs neither time nor
memory, and members that share their bytes (a zip bomb) cost nothing more.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

from distil_jax.errors import UserError

_LARGEST_DIRECTORY = 2 << 20  # bytes of the list of members; a real one has about 60 a tensor


class RefusedError(Exception):
    """Why a file is not a plain state dict; the caller adds its name."""


class Archive:
    """A zip archive of uncompressed members, each a view of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with _Directory(path) as directory, zipfile.ZipFile(cast("IO[bytes]", directory)) as archive:
            self.infos = {info.filename: info for info in archive.infolist()}

    def member(self, name: str) -> tuple[memoryview, int]:
        """The bytes of a member, not yet read, and their checksum."""
        info = self.infos[name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise RefusedError(f"a member {name} that is compressed or encrypted")
        # The local header repeats the name and may pad, so that data begins at a multiple of 64.
        start = info.header_offset
        header = self.mapped[start : start + 30]
        if not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"no member at the place of {name}")
        start += 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > len(self.mapped):
            raise zipfile.BadZipFile(f"{name} reaches beyond the end of the file")
        return memoryview(self.mapped)[start : start + info.file_size], info.CRC

    def small(self, name: str, limit: int) -> bytes:
        """The whole of a member of at most `limit` bytes, checked."""
        data, checksum = self.member(name)
        if len(data) > limit:
            raise RefusedError(f"a {name} of {len(data)} bytes, at most {limit} are taken")
        if zlib.crc32(data) != checksum:
            raise zipfile.BadZipFile(f"bad CRC-32 of {name}")
        return bytes(data)


class _Directory(io.FileIO):
    """A file of which nothing large is read at once: what zipfile reads of an archive before it knows its members."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file; `RefusedError` beyond the limit."""
        wanted = _LARGEST_DIRECTORY + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, _LARGEST_DIRECTORY + 1)) or b""
        if len(data) > _LARGEST_DIRECTORY:
            raise RefusedError(f"a zip directory of more than {_LARGEST_DIRECTORY} bytes")
        return data


def check_sum(data: memoryview, checksum: int, where: str) -> None:
    """`UserError` where the bytes do not have the CRC-32 that the archive states."""
    if zlib.crc32(data) != checksum:
        raise UserError(f"{where}: damaged or not a PyTorch file (bad CRC-32); fetch or save it again")

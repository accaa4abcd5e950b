"""Lines of text files, plain or compressed: strict UTF-8, without byte order mark, numbered from 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distil_jax.data.rows import Faults, RawFile, chunks_of, compression_of, place_of, unfolds_too_far
from distil_jax.errors import UserError

BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LARGEST = 1 << 30  # bytes, unpacked: all rows are in memory, and take several times as much there


def suffix_of(path: Path) -> str:
    """The ending that tells the format: ".jsonl" of "train.jsonl.xz"; lower case."""
    return Path(path.stem).suffix.lower() if compression_of(path) else path.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The unpacked content without byte order mark. Raises UserError where it can't be read, is empty or too large."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a device or pipe, not a file; save its rows in a file first")
    with RawFile.open(path) as raw:
        data = b"".join(_bounded(raw))
    if data.startswith(UTF16_MARKS):
        raise UserError(f"{path}: looks like UTF-16, not UTF-8; convert it with: iconv -f UTF-16 -t UTF-8")
    data = data.removeprefix(BOM)
    if not data.strip():
        raise UserError(f"{path}: the file is empty; check that it was written or fetched completely")
    return data


def _bounded(raw: RawFile) -> Iterator[bytes]:
    size = 0
    for chunk in chunks_of(raw, compression_of(raw.path)):
        size += len(chunk)
        if unfolds_too_far(raw.position, size):
            raise UserError(f"{raw.path}: unfolds from {raw.position} bytes to more than {size}; pack it again")
        if size > _LARGEST:
            raise UserError(
                f"{raw.path}: more than {_LARGEST} bytes, too large to be held in memory; take fewer rows, or a "
                "Parquet file"
            )
        yield chunk


def read_lines(path: Path, faults: Faults) -> list[str | None]:
    r"""The lines without their ends (`\n` or `\r\n`); None stands for one that is left out because it is no text.

    Only `\n` ends a line: a text may hold the other characters that Python's `splitlines` takes for line ends.

    Raises:
        UserError: file and line of what is not UTF-8 or holds a NUL byte, unless `faults` leaves such lines out.
    """
    data = read_bytes(path)
    if b"\r" in data.rstrip() and b"\n" not in data:
        raise UserError(f"{path}: its lines end with CR alone; convert it with: tr '\\r' '\\n'")
    try:
        if b"\0" not in data:
            return [*_without_ends(data.decode().split("\n"))]
    except UnicodeDecodeError:
        pass
    lines: list[str | None] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            text, what = None, f"not valid UTF-8 (byte {error.start + 1} of the line)"
        else:
            what = "holds a NUL byte" if "\0" in text else ""
        if what:
            faults(place_of(str(path), "line", number), what)
        lines.append(None if what else text)
    return _without_ends(lines)


def _without_ends(lines: list[str] | list[str | None]) -> list[str | None]:
    if lines and lines[-1] == "":
        lines = lines[:-1]
    return [line and line.removesuffix("\r") for line in lines]

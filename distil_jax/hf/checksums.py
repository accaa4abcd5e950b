"""SHA256SUMS: hashes of a model folder's files, as `sha256sum --check` reads them; transformers ignores it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from distil_jax.errors import UserError, one_line

CHECKSUMS_FILE = "SHA256SUMS"
_LARGEST = 1 << 20  # bytes; a model folder has a dozen files
# Plain names, also of files one folder below: nothing outside the folder is looked at.
_LINE = re.compile(r"([0-9a-f]{64})  ((?:\w[\w.-]*/)?[^/\\\0]+)")


def write_checksums(folder: Path) -> None:
    """Write the hashes of all files in `folder` and in folders below it. Raises OSError."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names if name != CHECKSUMS_FILE]
    (folder / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_files(folder: Path) -> dict[str, str]:
    """What is wrong with each file that SHA256SUMS names, by its name; "" for nothing.

    Raises:
        UserError: there is no such list here, or it is none.
    """
    path = folder / CHECKSUMS_FILE
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); export the model again") from None
    found = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}, line {number}: not a SHA-256 and a file's name; export the model again")
        found[match[2]] = _flaw(folder / match[2], match[1])
    return found


def _flaw(path: Path, expected: str) -> str:
    try:
        return "" if file_sha256(path) == expected else "not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

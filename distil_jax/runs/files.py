"""Text files that are written whole or not at all, and hashes of files and JSON values."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distil_jax.errors import naming, writing


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it; a file that holds this text is left as it is."""
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return
    temporary = unfinished(path)
    try:
        with naming(temporary):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that gets its name at the end of the block; after an error `path` is as it was.

    Raises:
        UserError: no file can be made there.
    """
    target = path.resolve()  # what a link leads to is replaced, not the link
    temporary = unfinished(target)
    with writing(path, "choose another file"):
        temporary.touch()
    try:
        yield temporary
        with naming(target):
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """The temporary file of `write_atomically` for `path`; a kill may leave it there."""
    return path.with_name(f"{path.name}.unfinished")


def require_writable(flag: str, *paths: Path) -> None:
    """Make the folders of files that are written at the end of a command.

    Raises:
        UserError: one of the files cannot be written; the message names it and `flag`.
    """
    for path in paths:
        with writing(f"{flag} {path}", "choose another file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the white space in its file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

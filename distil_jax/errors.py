"""What is said in one line: mistakes that the user can fix, and faults that no setting fixes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import reprlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SHOWN = 80  # characters of a value that a message spells out
_shortened = reprlib.Repr()  # stops at a depth and a length: a file may nest and fill lists at will
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = _SHOWN
# What storage fails with that worked before, and what to do about it.
_STORAGE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or raise the quota",
    errno.EROFS: "make it writable",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network storage",
    errno.ETIMEDOUT: "check the network storage",
    errno.ENOTCONN: "mount it again",
}
# What may also be a bug, but not for files of a run that were there a moment ago.
_TAKEN_AWAY = {
    errno.ENOENT: "bring the folder back",
    errno.ENOTDIR: "bring the folder back",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
_LONGEST_MESSAGE = 4000  # characters; more would flood a terminal


class UserError(Exception):
    """A mistake in what the user gave: a file, a field, a row.

    The message is one line: what is wrong, where, and what to do about it. The command line prints it
    without a traceback and ends with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST_MESSAGE))


class FaultError(Exception):
    """Something that the user did not cause and the program cannot repair, such as damaged storage.

    One line as well; the command line ends with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST_MESSAGE))


class PreemptedError(SystemExit):
    """The run was asked to end by a signal (SIGTERM, Ctrl-C) and has saved its state; the same command continues.

    As a SystemExit it passes everything that catches errors, and ends the process with `status`, without a traceback.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.status = 128 + number  # as shells and schedulers know it: 143, and 130 for Ctrl-C
        super().__init__(self.status)


def one_line(text: object, limit: int = 200) -> str:
    """Text of unknown origin as part of a message: one line of printable characters, at most `limit` of them.

    Control characters, line ends and lone surrogates are written as escapes, so that nothing in a file or an argument
    can break a message in two or steer a terminal.
    """
    whole = str(text)
    part = whole[: limit + 1]
    if not part.isprintable():
        part = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in part)
    return part if len(part) <= limit else part[: limit - 3] + "..."


def first_line(error: BaseException | None) -> str:
    """What a library says of an error, as part of a message: its first line, else its name."""
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__)


def shown(value: Any) -> str:
    """A value as it would stand in a file, on one line and shortened to fit a message."""
    if isinstance(value, str):
        text = f'"{value[:_SHOWN]}' + ('"' if len(value) <= _SHOWN else "")
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        try:
            text = _shortened.repr(value)
        except ValueError:  # Python does not spell out numbers of thousands of digits
            text = "a number of thousands of digits"
    return one_line(text, _SHOWN)


def storage_reason(error: BaseException, *, own: bool = False) -> str | None:
    """What an exception says of storage, "FILE: No space left on device; make room"; None if it is of something else.

    Besides OSError with a file's name, that is TensorStore's ValueError "... "FILE": ... [os_error_code='28']". With
    `own`, the files are ones that no other process should touch: then missing ones are the storage's fault too.
    """
    if isinstance(error, OSError):
        number, path = error.errno, error.filename
    else:
        code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        files = re.findall(r'"(/[^"\\]*)', str(error))
        number, path = int(code[1]) if code else None, files[-1] if files else None
    advice = {**_STORAGE, **(_TAKEN_AWAY if own else {})}.get(number or 0)
    if advice is None or path is None:
        return None
    return f"{one_line(path, 500)}: {os.strerror(number or 0)}; {advice}, then give the same command again"


@contextlib.contextmanager
def writing(what: object, remedy: str = "choose another folder") -> Iterator[None]:
    """Raises an OSError of the block as the UserError that `what`, a file or "setting = folder", cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError of the block that does not name its file, as those of writing do not, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise

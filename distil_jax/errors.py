"""What is said in one line: mistakes that the user can mend, and faults that nobody here can."""

from __future__ import annotations

_LONGEST_MESSAGE = 4000  # characters; beyond that nobody reads, and a terminal is flooded


class UserError(Exception):
    """A mistake in what the user gave: a file, a field, a row.

    The message is one line: what is wrong, where, and what to do about it. The command line prints it
    without a traceback and ends with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST_MESSAGE))


class FaultError(Exception):
    """Something that the user did not cause and the program cannot mend, such as damaged storage.

    One line as well; the command line ends with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST_MESSAGE))


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

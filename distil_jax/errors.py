"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a file, a field, a row.

    The message is one line: what is wrong, where, and what to do about it. The command line prints it
    without a traceback and ends with status 2.
    """

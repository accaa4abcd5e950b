"""Filters for what libraries print about an error that they also raise."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

_CLOSED = "Event loop is closed"


def filter_storage_logs() -> None:
    """Keep what Orbax and TensorStore print about a damaged checkpoint off the terminal.

    They read all arrays at once. After the first error, which they raise, the other reads are dropped or return to an
    event loop that is closed: Python prints a traceback of each and logs that their errors were not retrieved.
    Everything else is printed as before.
    """
    # absl: warnings about options that are right, and a traceback of every error that is raised.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_wanted)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_dropped_read(unraisable):
            before(unraisable)

    if getattr(before, "__module__", None) != __name__:
        sys.unraisablehook = hook


def _is_wanted(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _is_dropped_read(unraisable: Any) -> bool:
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    dropped = code is not None and "orbax" in Path(code.co_filename).parts
    return dropped or (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _CLOSED)

"""What libraries print by themselves about an error that they also raise."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

_CLOSED = "Event loop is closed"


def quiet_storage() -> None:
    """Keep the terminal free of what reading a damaged checkpoint leaves behind in Orbax and TensorStore.

    They read all arrays at once. After the first error, which they raise, the other reads are dropped as they are or
    come back to an event loop that is closed: Python prints a traceback of each, and logs that nobody has asked for
    their errors. Everything else is printed as before.
    """
    # absl: warnings about options that are as they should be, and of an error that is raised every traceback.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_news)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_leftover(unraisable):
            before(unraisable)

    if getattr(before, "__module__", None) != __name__:
        sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _is_leftover(unraisable: Any) -> bool:
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    dropped = code is not None and "orbax" in Path(code.co_filename).parts
    return dropped or (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _CLOSED)

"""Filters for what libraries print about an error that they also raise."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
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
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_dropped_read(unraisable):
            before(unraisable)

    if getattr(before, "__module__", None) != __name__:
        sys.unraisablehook = hook


def _is_dropped_read(unraisable: Any) -> bool:
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    dropped = code is not None and "orbax" in Path(code.co_filename).parts
    return dropped or (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _CLOSED)


def quiet_event_loops() -> None:
    """Let event loops print nothing after a failed save."""
    asyncio.set_event_loop_policy(_LoopPolicy())


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ignores callbacks once it is closed.

    A save that fails, for example on a full disk, closes its loop while other writes are under way. Each of them would
    print a traceback at its end and hide the one line that says what happened.
    """

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # never run


class _LoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    _loop_factory = _Loop

"""An event loop that prints nothing after a failed save."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


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


class LoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    _loop_factory = _Loop

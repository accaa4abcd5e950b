"""Quiet ends of saves that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets late callbacks go by once it is closed.

    A save that fails, on a full disk say, closes its loop while other writes are under way. Each of them would print a
    traceback when it ends, and bury the one line that says what happened.
    """

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # which nobody runs


class LoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    _loop_factory = _Loop

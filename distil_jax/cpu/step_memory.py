"""Waiting after a step until XLA on CPU has freed what the step took.

XLA frees a step's memory some milliseconds after its results are there. A step begun earlier takes as much again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from distil_jax.cpu.malloc import memory_in_use, trim_memory

# To look takes as long as XLA takes to free: malloc adds up all that is free, and nothing can be freed meanwhile. So
# the first look comes after this share of the step, but no later than so many seconds.
_FIRST_SHARE, _FIRST_SECONDS = 0.02, 0.004
_NEXT_SECONDS = 0.005
# The last look comes after this share, but no earlier than so many seconds: something else may have taken memory, such
# as a checkpoint that is being written.
_LAST_SHARE, _LAST_SECONDS = 0.02, 0.05
_SLACK_BYTES = 8 << 20  # metrics, rows of the next batches


class StepMemory:
    """The memory in use before a step, to be waited for after it."""

    def __init__(
        self,
        active: bool,
        in_use: Callable[[], int | None] = memory_in_use,
        trim: Callable[[], None] = trim_memory,
        *,
        last_seconds: float = _LAST_SECONDS,
    ) -> None:
        """Nothing is done unless `active`; tests replace malloc's functions and the time of the last look."""
        self._active, self._in_use, self._trim, self._last_seconds = active, in_use, trim, last_seconds
        self._before: int | None = None  # bytes, before the step under way; None: to be looked up before the next
        self._is_new = False  # whether the next step is the first of its program

    def compiled(self) -> None:
        """A program has been compiled."""
        if self._active:
            self._trim()
            self._before, self._is_new = None, True

    def begin(self) -> None:
        """A step is about to begin."""
        if self._active and self._before is None:
            self._before = self._in_use()

    def wait(self, seconds: float) -> None:
        """Wait until the memory of a step that took so many seconds is free, or for a fiftieth of them."""
        if self._before is None:
            return
        latest = time.monotonic() + max(self._last_seconds, _LAST_SHARE * seconds)
        time.sleep(min(_FIRST_SECONDS, _FIRST_SHARE * seconds))
        while (held := self._in_use() or 0) > self._before + _SLACK_BYTES and time.monotonic() < latest:
            time.sleep(_NEXT_SECONDS)
        if self._is_new:
            self._trim()  # a program's first step leaves something amid the memory that it took
        settled = not self._is_new and abs(held - self._before) <= _SLACK_BYTES
        self._before, self._is_new = held if settled else None, False

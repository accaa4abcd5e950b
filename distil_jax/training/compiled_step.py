"""A mapped step and its programs: compiled before they are called, called, and waited for until memory is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from distil_jax.runs.startup import memory_in_use, trim_memory
from distil_jax.training.parallel import Devices

# XLA on CPU frees a step's memory some milliseconds after its results are there. To look whether it has takes as long:
# malloc adds up all that is free, and nothing can be freed meanwhile. So the first look comes after this share of the
# step, but no later than so many seconds.
_MOMENT_SHARE, _MOMENT_SECONDS = 0.02, 0.004
_LOOK_SECONDS = 0.005
# The last one comes after this share, but no earlier than so many seconds: something else may have taken memory, such
# as a checkpoint that is being written.
_LONGEST_SHARE, _LONGEST_SECONDS = 0.02, 0.05
_SLACK_BYTES = 8 << 20  # metrics, rows of the next batches


class CompiledStep:
    """A step mapped over devices, `function(state, constants, rows) -> (state, metrics)`, that donates the state.

    Attributes:
        programs: compiled so far, by the shapes and dtypes of their rows.
        compile_seconds: spent on them.
    """

    def __init__(self, devices: Devices, function: Callable[..., Any]) -> None:
        """Map the per-device `function`."""
        self._devices = devices
        self._function = devices.map(function, replicated=2, donate=(0,))
        self._held: int | None = None  # bytes, before the step under way; None: to be looked up before the next
        self._new = False  # whether it is the first of its program
        self.programs: dict[tuple[Any, ...], Any] = {}
        self.compile_seconds = 0.0

    def prepare(self, state: Any, constants: Any, rows: Any) -> Any:
        """The program for rows of these shapes, compiled where it was not before.

        Donates nothing, so that the state can be saved meanwhile.
        """
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(rows))
        if shapes not in self.programs:
            start = time.perf_counter()
            self.programs[shapes] = self._function.lower(state, constants, rows).compile()
            trim_memory()
            self.compile_seconds += time.perf_counter() - start
            self._held, self._new = None, True
        return self.programs[shapes]

    def __call__(self, state: Any, constants: Any, rows: Any) -> tuple[Any, Any]:
        """Take a step that was prepared; its results are still being computed."""
        if self._held is None and self._devices.are_the_host:
            self._held = memory_in_use()
        # Not the program: `pmap`'s takes no rows that several processes feed. What was compiled is found again.
        return self._function(state, constants, rows)

    def wait(self, results: Any) -> None:
        """Wait for the results of a step, and on CPU until XLA has freed what it took to make them.

        A step begun earlier takes as much again beside it.
        """
        start = time.monotonic()
        jax.block_until_ready(results)
        now = time.monotonic()
        if self._held is None:
            return
        latest = now + max(_LONGEST_SECONDS, _LONGEST_SHARE * (now - start))
        time.sleep(min(_MOMENT_SECONDS, _MOMENT_SHARE * (now - start)))
        while (held := memory_in_use() or 0) > self._held + _SLACK_BYTES and time.monotonic() < latest:
            time.sleep(_LOOK_SECONDS)
        if self._new:
            trim_memory()  # a program's first step leaves something amid the memory that it took
        settled = not self._new and abs(held - self._held) <= _SLACK_BYTES
        self._held, self._new = held if settled else None, False

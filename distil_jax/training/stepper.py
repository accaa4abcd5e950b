"""A mapped step and its programs: compiled before they are called, called, and waited for until memory is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from distil_jax.training.parallel import Devices
from distil_jax.training.runtime import place_of, trim_memory

# XLA on CPU frees a step's memory some milliseconds after its results are there. Not waited for longer than this share
# of the step (or these seconds): something else may have taken the place.
_LONGEST_SHARE, _LONGEST_SECONDS = 0.02, 0.05
_LOOK_SECONDS = 0.0002


class Stepper:
    """A step mapped over devices, `function(state, constants, rows) -> (state, metrics)`, that donates the state.

    Attributes:
        programs: compiled so far, by the shapes and dtypes of their rows.
        compile_seconds: spent on them.
    """

    def __init__(self, devices: Devices, function: Callable[..., Any]) -> None:
        """Map the per-device `function`."""
        self._devices = devices
        self._function = devices.map(function, replicated=2, donate=(0,))
        self._sizes: dict[tuple[Any, ...], int] = {}  # bytes that a step of a program takes for a while, on CPU
        self._size, self._place = 0, 0  # those of the step under way, and where they are
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
            program = self._function.lower(state, constants, rows).compile()
            self.compile_seconds += time.perf_counter() - start
            held = len(self._devices.local) if self._devices.are_the_host else 0
            self.programs[shapes], self._sizes[shapes] = program, held * memory_plan(program)["temporary"]
            self._new = True
            trim_memory()
        self._size = self._sizes[shapes]
        return self.programs[shapes]

    def __call__(self, state: Any, constants: Any, rows: Any) -> tuple[Any, Any]:
        """Take a step; its results are still being computed."""
        self._place = place_of(self._size) if self._size else 0
        return self._function(state, constants, rows)

    def _is_freed(self) -> bool:
        # About there: a few bytes may have been taken or freed beside it.
        return abs(place_of(self._size) - self._place) <= self._size // 2

    def wait(self, results: Any) -> None:
        """Wait for the results of a step, and on CPU until XLA has freed what it took to make them.

        A step begun earlier takes as much again beside it.
        """
        start = time.monotonic()
        jax.block_until_ready(results)
        now = time.monotonic()
        latest = now + max(_LONGEST_SECONDS, _LONGEST_SHARE * (now - start))
        while self._size and not self._is_freed() and time.monotonic() < latest:
            time.sleep(_LOOK_SECONDS)
        if self._new:
            trim_memory()  # a program's first step leaves something amid the memory that it took
            self._new = False


def memory_plan(program: Any) -> dict[str, int]:
    """Bytes of a compiled program's arguments, results that reuse none of them, and everything in between."""
    plan = program.memory_analysis()
    if plan is None:
        return {"arguments": 0, "results": 0, "temporary": 0}
    kept = max(plan.output_size_in_bytes - plan.alias_size_in_bytes, 0)
    return {"arguments": plan.argument_size_in_bytes, "results": kept, "temporary": plan.temp_size_in_bytes}

"""A mapped step and its programs: compiled before they are called, called, and waited for until memory is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from distil_jax.cpu import StepMemory, is_on
from distil_jax.training.parallel import Devices
from distil_jax.training.step import Cut

_LOG = logging.getLogger("distil_jax")


class CompiledStep:
    """A step mapped over devices, `function(state, constants, rows) -> (state, metrics)`, that donates the state.

    Attributes:
        programs: compiled so far, by the structure, shapes and dtypes of their rows.
        compile_seconds: spent on them.
    """

    def __init__(self, devices: Devices, function: Callable[..., Any], cut: Cut | None = None) -> None:
        """Map the per-device `function` over a state and constants that are `cut`."""
        self._devices = devices
        self._function = devices.map_step(function, cut)
        self._memory = StepMemory(devices.are_the_host and is_on())
        self.programs: dict[tuple[Any, ...], Any] = {}
        self.compile_seconds = 0.0

    def is_ready(self, rows: Any) -> bool:
        """Whether the program for rows of these shapes is compiled."""
        return _shapes(rows) in self.programs

    def prepare(self, state: Any, constants: Any, rows: Any) -> Any:
        """The program for rows of these shapes, compiled where it was not before.

        Donates nothing, so that the state can be saved meanwhile.
        """
        shapes = _shapes(rows)
        if shapes not in self.programs:
            start = time.perf_counter()
            self.programs[shapes] = self._function.lower(state, constants, rows).compile()
            self._memory.compiled()
            _warn_if_too_large(self.programs[shapes], device_memory(self._devices.local))
            self.compile_seconds += time.perf_counter() - start
        return self.programs[shapes]

    def __call__(self, state: Any, constants: Any, rows: Any) -> tuple[Any, Any]:
        """Take a step that was prepared; its results are still being computed."""
        self._memory.begin()
        # Not the program: `pmap`'s takes no rows that several processes feed. What was compiled is found again.
        return self._function(state, constants, rows)

    def wait(self, results: Any) -> None:
        """Wait for the results of a step, and on CPU until the memory that it took is free."""
        start = time.monotonic()
        jax.block_until_ready(results)
        self._memory.wait(time.monotonic() - start)


def device_memory(devices: Sequence[Any]) -> int:
    """Bytes that programs may take on the smallest of these accelerators; 0 where none is known, as on CPU."""
    return min((int((device.memory_stats() or {}).get("bytes_limit", 0)) for device in devices), default=0)


def memory_plan(program: Any) -> dict[str, int]:
    """Bytes of a compiled program's arguments, results that reuse none of them, and everything in between."""
    plan = program.memory_analysis()
    if plan is None:
        return {"arguments": 0, "results": 0, "temporary": 0}
    kept = max(plan.output_size_in_bytes - plan.alias_size_in_bytes, 0)
    return {"arguments": plan.argument_size_in_bytes, "results": kept, "temporary": plan.temp_size_in_bytes}


def _warn_if_too_large(program: Any, limit: int) -> None:
    """Say before the first step that the compiler's plan is more than a device has."""
    needed = sum(memory_plan(program).values()) if limit else 0
    if needed > limit:
        _LOG.warning(
            "the step needs %.1f GiB on each device, of %.1f: it will run out of memory; lower "
            "training.micro_batch_size or set training.remat = 'layer'; `distil-jax plan` finds what fits",
            needed / 2**30,
            limit / 2**30,
        )


def _shapes(rows: Any) -> tuple[Any, ...]:
    return jax.tree.structure(rows), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(rows))

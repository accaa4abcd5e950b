"""A run's step, compiled and taken outside of the training loop, so that nothing but the step is measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from distil_jax.training.loop import Job
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import check_batch, make_devices
from distil_jax.training.runtime import trim_memory
from distil_jax.training.step import init_state


class Step:
    """A job's step on its devices, compiled for every shape of batch that it meets.

    Attributes:
        job: whose step it is.
        devices: that it runs on.
        programs: compiled so far, by the shapes of their batches.
        compile_seconds: spent on them.
    """

    def __init__(self, job: Job) -> None:
        """Place the job's parameters; `UserError` where its batch cannot be divided among the devices."""
        config, self.job = job.config, job
        self.devices = make_devices(config.parallel.mapping, config.parallel.devices)
        check_batch(config.training.batch_size, config.training.micro_batch_size, self.devices.count)
        optimizer = make_optimizer(config.optimizer, job.steps)
        made = job.make_step(optimizer, learning_rate_schedule(config.optimizer, job.steps))
        self._step = self.devices.map(made, replicated=2, donate=(0,))
        self._state = self.devices.replicate(init_state(job.params, optimizer, job.trainable))
        self._constants = self.devices.replicate(job.constants)
        self.programs: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def batches(self, count: int) -> list[Any]:
        """The first `count` batches of the job, on the host."""
        stream = self.job.make_batches(range(count), self.devices)
        return [next(stream) for _ in range(count)]

    def program(self, rows: Any) -> Any:
        """The compiled step for a batch of this shape."""
        shape = str(jax.tree.map(np.shape, rows))
        if shape not in self.programs:
            start = time.perf_counter()
            placed = self.devices.place_rows(rows)
            self.programs[shape] = self._step.lower(self._state, self._constants, placed).compile()
            self.compile_seconds += time.perf_counter() - start
            trim_memory()
        return self.programs[shape]

    def run(self, batches: Iterable[Any]) -> list[dict[str, Any]]:
        """Take a step with each of the batches, as far ahead as training is; their metrics, when all is done."""
        found = []
        for rows in batches:
            known, program, placed = len(self.programs), self.program(rows), self.devices.place_rows(rows)
            before = self.devices.host_memory_in_use
            self._state, metrics = program(self._state, self._constants, placed)
            found.append(metrics)
            self.devices.wait(found[: len(found) - self.devices.steps_ahead], before)
            if len(self.programs) > known:
                trim_memory()  # as training does
        return jax.block_until_ready(found)

    @property
    def planned_bytes(self) -> int:
        """Bytes that the largest of the programs takes on a device, by the compiler's own account."""
        return max((sum(memory_plan(program).values()) for program in self.programs.values()), default=0)


def memory_plan(program: Any) -> dict[str, int]:
    """Bytes of a compiled program's arguments, results that reuse none of them, and everything in between."""
    plan = program.memory_analysis()
    if plan is None:
        return {"arguments": 0, "results": 0, "temporary": 0}
    kept = max(plan.output_size_in_bytes - plan.alias_size_in_bytes, 0)
    return {"arguments": plan.argument_size_in_bytes, "results": kept, "temporary": plan.temp_size_in_bytes}

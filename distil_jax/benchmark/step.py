"""A run's step, compiled and called outside of the training loop, so that nothing else is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from distil_jax.tasks import TaskBatch
from distil_jax.training.compiled_step import CompiledStep, memory_plan
from distil_jax.training.loop import RunSpec
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import check_batch, devices_of
from distil_jax.training.step import init_state, make_train_step


class Step:
    """A spec's step on its devices, compiled for every shape of batch that it meets.

    Attributes:
        spec: whose step it is.
        devices: that it runs on.
        stepper: its programs.
    """

    def __init__(self, spec: RunSpec) -> None:
        """Place the spec's parameters; `UserError` where its batch cannot be divided among the devices."""
        config, self.spec = spec.config, spec
        self.devices = devices_of(config.parallel)
        check_batch(config.training.batch_size, self.devices.count)
        optimizer = make_optimizer(config.optimizer, spec.steps)
        schedule = learning_rate_schedule(config.optimizer, spec.steps)
        initial = init_state(spec.params, optimizer, spec.step.trainable)
        self._state, self._frozen, cut = self.devices.place(initial, spec.frozen)
        self.stepper = CompiledStep(self.devices, make_train_step(spec.step, optimizer, schedule, cut), cut)

    def batches(self, count: int) -> list[Any]:
        """The first `count` batches of the spec, on the host."""
        stream = self.spec.make_batches(range(count), self.devices)
        return [next(stream) for _ in range(count)]

    def program(self, rows: Any) -> Any:
        """The compiled step for a batch of this shape."""
        return self.stepper.prepare(self._state, self._frozen, self.devices.shard_batch(rows))

    def run(self, batches: Iterable[Any]) -> list[dict[str, Any]]:
        """Take a step with each of the batches, as far ahead as training is; their metrics, when all is done."""
        found = []
        for rows in batches:
            placed = self.devices.shard_batch(rows)
            self.stepper.prepare(self._state, self._frozen, placed)
            self._state, metrics = self.stepper(self._state, self._frozen, placed)
            found.append(metrics)
            if len(found) > self.devices.steps_ahead:
                self.stepper.wait(found[-1 - self.devices.steps_ahead])
        return jax.block_until_ready(found)

    @property
    def planned_bytes(self) -> int:
        """Bytes of a device that the largest program takes, by the compiler's plan."""
        return max((sum(memory_plan(program).values()) for program in self.stepper.programs.values()), default=0)


def ids_of(rows: Any) -> np.ndarray:
    """The token ids of a batch of the loop: [B, L], of choices [B, C, L]."""
    return np.asarray(rows.inputs.ids if isinstance(rows, TaskBatch) else rows)

"""A run's step compiled for devices that need not be here: from shapes alone, with nothing put on them."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np

from distil_jax.benchmark.accelerators import Target
from distil_jax.benchmark.program import Program
from distil_jax.benchmark.step import ids_of
from distil_jax.config import Parallel
from distil_jax.target import traced_for
from distil_jax.tasks import TaskBatch
from distil_jax.training.loop import RunSpec
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import Devices, check_batch, devices_of, make_devices
from distil_jax.training.step import init_state, make_train_step

_LONGEST_OF = 16  # batches looked at for the longest rows: those of fine-tuning have different lengths
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device while a step runs.

    Attributes:
        parameters: of the model that learns.
        moments: of the optimiser.
        teacher: parameters that are only read.
        batch: rows and tables of masking.
        temporary: everything in between, and results that take the place of no argument.
    """

    parameters: int
    moments: int
    teacher: int
    batch: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class CompiledPlan:
    """What the compiler says of a step.

    Attributes:
        memory: of a device.
        program: what runs; None where the compiler refused it, or JAX cannot read what it made.
        positions: tokens of a batch over all devices, padding included.
        real: those that are no padding.
        compile_seconds: tracing and compiling.
        refused: the compiler found that it needs more memory than there is.
    """

    memory: Memory
    program: Program | None
    positions: int
    real: int
    compile_seconds: float
    refused: bool = False


def compile_step(spec: RunSpec, target: Target) -> CompiledPlan:
    """The step of a run on the target's devices.

    Raises:
        UserError: the devices cannot share the batch.
    """
    config, start = spec.config, time.perf_counter()
    devices = _devices(target, config.parallel)
    check_batch(config.training.batch_size, devices.count)
    optimizer = make_optimizer(config.optimizer, spec.steps)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, spec.step.trainable), _shapes(spec.params))
    rows = _longest_batch(spec)
    state, frozen, cut = devices.place(state, _shapes(spec.frozen), shapes=True)
    step = make_train_step(spec.step, optimizer, learning_rate_schedule(config.optimizer, spec.steps), cut)
    arguments = state, frozen, devices.sharded_shapes(rows)
    function: Any = devices.map_step(step, cut)
    platform = target.device.platform
    with traced_for(target.device):
        lowered = function.trace(*arguments).lower(lowering_platforms=(platform,))
    parts = {
        "parameters": _device_bytes(arguments[0].params),
        "moments": _device_bytes(arguments[0].opt_state),
        "teacher": _device_bytes(arguments[1].teacher),
        "batch": _device_bytes((arguments[1].log_weights, arguments[2])),
    }
    ids = ids_of(rows)
    real = int((ids != 0).sum())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY not in str(error):
            raise
        memory = Memory(**parts, temporary=max(0, _needed(str(error)) - sum(parts.values())))
        return CompiledPlan(memory, None, ids.size, real, time.perf_counter() - start, refused=True)
    found: Any = compiled.memory_analysis()
    # The sizes that the compiler gives hold the padding of its layouts, too.
    kept = max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
    taken = found.argument_size_in_bytes + kept + found.temp_size_in_bytes
    memory = Memory(**parts, temporary=max(0, taken - sum(parts.values())))
    return CompiledPlan(memory, _readable(compiled), ids.size, real, time.perf_counter() - start)


def _readable(compiled: Any) -> Program | None:
    """The program; None where this version of JAX cannot read it: libtpu may be newer, as with v6e and jax 0.10."""
    try:
        return Program(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return None


def _devices(target: Target, parallel: Parallel) -> Devices:
    if target.name == "this":
        return devices_of(parallel)
    found = Devices.of(target.devices, "shard_map")
    return dataclasses.replace(found, fsdp=parallel.fsdp, teacher=parallel.teacher)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def _longest_batch(spec: RunSpec) -> Any:
    """The batch with the longest rows of the first ones, of all processes."""
    one = make_devices("shard_map", 1)
    found: list[Any] = []
    for rows in spec.make_batches(range(_LONGEST_OF), one):
        found.append(rows)
        if not isinstance(rows, TaskBatch):
            break
    return max(found, key=lambda rows: ids_of(rows).size)


def _device_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in leaves)


def _needed(message: str) -> int:
    """The bytes that a compiler wanted, from its refusal ("Used 20.5G of 15.75G hbm")."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)\w* of", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0

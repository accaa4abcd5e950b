"""One measurement in its own process: builds a run's step, times it, and reports its memory.

Started by `run`, with requests as `process.serve` takes them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from distil_jax.benchmark.inputs import MeasuredRun, make_inputs
from distil_jax.benchmark.machine import (
    describe_machine,
    matmul_peak,
    memory_bandwidth,
    memory_limit,
    peak_bytes,
)
from distil_jax.benchmark.process import Reply, serve
from distil_jax.benchmark.roofline import Roofline, roofline_of_step
from distil_jax.benchmark.step import Step, ids_of
from distil_jax.benchmark.timing import summarise
from distil_jax.benchmark.variants import Stage, with_rows
from distil_jax.config import Config, config_from_toml
from distil_jax.errors import UserError
from distil_jax.objectives import needs_all_logits
from distil_jax.runs import startup as runtime
from distil_jax.tasks import TaskBatch
from distil_jax.training.flops import peak_flops
from distil_jax.training.parallel import Devices

_MOST_STEPS = 20  # of a round
_ROUND_SECONDS = 1.0
_PLANNED_BATCHES = 16  # the longest of which the memory is planned for
_INPUT_BATCHES = 64  # read to find the rate of the input
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def _start(text: str) -> Config:
    """The configuration of a request, with JAX started as training with it would."""
    config = config_from_toml(text, "benchmark")
    runtime.initialize_distributed(config.parallel)
    runtime.require_platform(config.run.platform)
    return config


def machine(config: str) -> Reply:
    """The machine's description, and the bytes that a batch may fill on each of the run's devices."""
    count = _start(config).parallel.devices or len(jax.devices())
    return {"machine": describe_machine(), "memory_limit": memory_limit(jax.local_devices(), count)}


def first_step(config: str, stage: Stage, vocabulary: int, spawned: float) -> Reply:
    """Seconds from `spawned` (time.time() of the process that started this one) to the end of the first step."""
    settings = _start(config)
    step = Step(make_inputs(settings, stage, vocabulary).spec)
    step.run(step.batches(1))
    return {"first_step_seconds": time.time() - spawned, "compile_seconds": step.stepper.compile_seconds}


def plan_memory(config: str, stage: Stage, vocabulary: int, rows: list[int]) -> Reply:
    """Bytes that the compiler plans for the step with each of these numbers of rows per device; runs nothing."""
    settings = _start(config)
    devices = settings.parallel.devices or len(jax.devices())
    found = {}
    for number in rows:
        changed = with_rows(settings, number, devices)
        step = Step(make_inputs(changed, stage, vocabulary).spec)
        # Fine-tuning's batches have different lengths, in random order.
        step.program(max(step.batches(_PLANNED_BATCHES), key=lambda rows: ids_of(rows).size))
        found[str(number)] = step.planned_bytes
    return {"planned": found, "devices": devices}


def measure(config: str, stage: Stage, vocabulary: int, spawned: float, repeats: int, steps: int) -> Reply:
    """Everything measured of one variant, by name. Times are seconds, sizes bytes.

    Every round takes the same batches, so that rounds differ by noise alone.
    """
    settings = _start(config)
    inputs = make_inputs(settings, stage, vocabulary)
    step = Step(inputs.spec)
    first = step.run(step.batches(1))[0]
    found: Reply = {
        "first_step_seconds": time.time() - spawned,
        "first_loss": float(first["loss"]),
        "notes": list(inputs.notes),
        "micro_batch_size": inputs.spec.config.training.micro_batch_size,
    }
    batches = step.batches(steps or _steps_of_round(step))
    metrics = step.run(batches)  # compiles for the shapes that are still new, and warms up
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step.run(batches)
        rounds.append((time.perf_counter() - start) / len(batches))
    timing = summarise(rounds)
    found |= dataclasses.asdict(timing) | {"noisy": timing.noisy, "steps": len(batches)}
    # Before anything else here needs memory.
    found |= {"peak_bytes": peak_bytes(step.devices.local), "planned_bytes": step.planned_bytes}
    found |= {"compile_seconds": step.stepper.compile_seconds, "programs": len(step.stepper.programs)}
    positions = sum(ids_of(rows).size for rows in batches) / len(batches)
    tokens = sum(float(row["tokens"]) for row in metrics) / len(batches)
    rows = sum(_real_rows(batch) for batch in batches) / len(batches)
    found |= {"positions": positions, "tokens": tokens, "rows": rows, "losses": _loss_terms(metrics[-1])}
    found |= _rates(inputs, step.devices, timing.median, tokens, positions, rows)
    found |= _input_rate(step, timing.median)
    length = sum(ids_of(rows).shape[-1] for rows in batches) / len(batches)
    found["roofline"] = dataclasses.asdict(_roofline(inputs, tokens, positions, round(length), step.devices))
    return found


def _steps_of_round(step: Step) -> int:
    (rows,) = step.batches(1)
    start = time.perf_counter()
    step.run([rows])
    return int(np.clip(_ROUND_SECONDS / (time.perf_counter() - start), 1, _MOST_STEPS))


def _real_rows(rows: Any) -> int:
    return int((rows.token_share > 0).sum()) if isinstance(rows, TaskBatch) else len(rows)


def _loss_terms(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name.startswith("loss")}


def _rates(
    inputs: MeasuredRun, devices: Devices, seconds: float, tokens: float, positions: float, rows: float
) -> Reply:
    """Speeds and shares of the peak: the data sheet's, where known, and the one measured here."""
    dtype = inputs.spec.config.training.compute_dtype
    known = peak_flops(devices.local[0].device_kind, dtype)
    count = 1 if devices.local[0].platform == "cpu" else devices.count  # devices of one CPU share its cores
    measured = count * matmul_peak(dtype)
    flops = inputs.spec.flops_per_token * tokens / seconds
    return {
        "tokens_per_second": tokens / seconds,
        "positions_per_second": positions / seconds,
        "rows_per_second": rows / seconds,
        "flops_per_token": inputs.spec.flops_per_token,
        "flops_per_second": flops,
        "peak_known": None if known is None else known * devices.count,
        "peak_measured": measured,
        "mfu_known": None if known is None else flops / (known * devices.count),
        "mfu_measured": flops / measured,
        "bandwidth": count * memory_bandwidth(),
    }


def _input_rate(step: Step, step_seconds: float) -> Reply:
    """Seconds of the input alone a batch, and the ratio of the step's seconds to them."""
    stream = step.spec.make_batches(range(_INPUT_BATCHES + 8), step.devices)
    for _ in range(8):  # batches read ahead at the start
        next(stream)
    start = time.perf_counter()
    for _ in range(_INPUT_BATCHES):
        next(stream)
    seconds = (time.perf_counter() - start) / _INPUT_BATCHES
    return {"input_seconds": seconds, "input_ratio": step_seconds / seconds}


def _roofline(inputs: MeasuredRun, tokens: float, positions: float, length: int, devices: Devices) -> Roofline:
    spec, config = inputs.spec, inputs.spec.config
    text = "mlm_head" in spec.step.trainable
    objective = config.objective
    everywhere = inputs.teacher is not None and needs_all_logits(objective)
    share = (1.0 if everywhere else config.masking.probability) if text else 0.0
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (spec.params, spec.frozen.teacher or {})]
    return roofline_of_step(
        config,
        inputs.student,
        inputs.teacher,
        flops=spec.flops_per_token * positions,
        positions=round(positions),
        length=length,
        vocabulary_positions=share * positions,
        parameters=(sizes[0], sizes[1]),
        fill=tokens / positions,
        accelerator=devices.local[0].platform != "cpu",
    )


def guarded(function: Callable[..., Reply]) -> Callable[..., Reply]:
    """`function`, which answers {"fits": False} where the device has not enough memory."""

    def call(**arguments: Any) -> Reply:
        try:
            return {"fits": True, **function(**arguments)}
        except UserError:
            raise
        except (RuntimeError, MemoryError) as error:  # JAX's own error is a RuntimeError
            if _OUT_OF_MEMORY not in str(error) and not isinstance(error, MemoryError):
                raise
            return {"fits": False}

    return call


HANDLERS = {handler.__name__: guarded(handler) for handler in (machine, first_step, plan_memory, measure)}

if __name__ == "__main__":
    serve(HANDLERS)

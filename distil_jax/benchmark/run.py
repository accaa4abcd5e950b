"""`distil-jax benchmark`: the step of any configuration, measured variant by variant, each in a process of its own."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distil_jax.benchmark.process import Worker, WorkerDiedError
from distil_jax.benchmark.report import notes_on
from distil_jax.benchmark.roofline import predicted_speedup
from distil_jax.benchmark.variants import Cell, Stage, cells, with_rows
from distil_jax.config import BenchmarkArguments, Config, config_to_toml
from distil_jax.cpu import cpu_environment
from distil_jax.errors import FaultError, UserError
from distil_jax.runs.startup import CACHE_FOLDER

Say = Callable[[str], None]
_WORKER = "distil_jax.benchmark.worker"
_PROBES = (2, 4)  # rows that memory is planned for, to see how it grows
_MARGIN = 0.95  # of the memory, for the first try
_PLANS = 3  # batches planned besides those
_TRIES = 4  # batches tried, each a tenth smaller


def run_benchmark(
    config: Config, stage: Stage, arguments: BenchmarkArguments, *, command: str = "", say: Say = lambda _: None
) -> dict[str, Any]:
    """Measure every variant and length.

    Args:
        config: the configuration.
        stage: from `stage_of`.
        arguments: what to measure.
        command: what the user typed, for the report.
        say: takes a line of progress.

    Returns:
        {"command", "stage", "machine", "rows": [...], "notes": [...]}. A row has the results of `worker.measure`,
        "variant", "length", "batch_size", "micro_batch_size", and against the first variant of its length
        "predicted_speedup" and "speedup". A variant that does not fit has "fits": False and no measurements; one that
        failed alone has its reason in "failed" as well.

    Raises:
        UserError: a setting is wrong. FaultError: a process failed; both only where nothing at all could be measured.
    """
    with tempfile.TemporaryDirectory() as cache:
        with _worker("machine", config, cache) as worker:
            seen = worker.ask("machine", config=config_to_toml(config))
        limit = int(arguments.memory * 2**30) or seen["memory_limit"]
        rows: list[dict[str, Any]] = []
        errors: list[UserError | FaultError] = []
        for cell in cells(config, stage, arguments, seen["machine"]["platform"]):
            say(f"{cell.variant}, rows of {cell.length} tokens")
            try:
                rows.append(_measure(cell, arguments, limit, cache))
            except (UserError, FaultError) as error:
                # The measurements of other variants are kept.
                say(f"{cell.variant}, rows of {cell.length} tokens: failed: {error}")
                errors.append(error)
                rows.append(_row(cell, cell.config) | {"fits": False, "failed": str(error)})
    if len(errors) == len(rows):
        raise errors[0]
    _compare(rows)
    return {
        "command": command,
        "stage": stage,
        "machine": seen["machine"],
        "rows": rows,
        "notes": notes_on(rows),
    }


def _worker(name: str, config: Config, cache: str) -> Worker:
    """A fresh process with the environment of training and its own cache of programs."""
    environment = {**os.environ, CACHE_FOLDER: cache, **cpu_environment(os.environ, config.run.platform)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    return Worker(name, [sys.executable, "-m", _WORKER], environment)


def _measure(cell: Cell, arguments: BenchmarkArguments, limit: int, cache_root: str) -> dict[str, Any]:
    config, tries = cell.config, 1
    if arguments.fill:
        config, tries = _filled(cell, arguments, limit, cache_root), _TRIES
    for number in range(tries):
        config = _smaller(config) if number else config
        with tempfile.TemporaryDirectory(dir=cache_root) as cache:
            found = _measured_once(config, cell, arguments, cache)
        if found["fits"]:
            break
    return _row(cell, config) | found


def _row(cell: Cell, config: Config) -> dict[str, Any]:
    return {
        "variant": cell.variant,
        "length": cell.length,
        "batch_size": config.training.batch_size,
        "micro_batch_size": config.training.micro_batch_size,
        "compute_dtype": config.training.compute_dtype,
    }


def _measured_once(config: Config, cell: Cell, arguments: BenchmarkArguments, cache: str) -> dict[str, Any]:
    request = {"config": config_to_toml(config), "stage": cell.stage, "vocabulary": arguments.vocabulary}
    try:
        spawned = time.time()
        with _worker(cell.variant, config, cache) as worker:
            timed = {"repeats": arguments.repeats, "steps": arguments.steps, "spawned": spawned}
            found = worker.ask("measure", **request, **timed)
    except WorkerDiedError as death:
        if not death.killed:
            raise
        return {"fits": False}  # the system ran out of memory
    if found["fits"] and arguments.warm_start:
        try:
            spawned = time.time()
            with _worker(cell.variant, config, cache) as worker:
                again = worker.ask("first_step", **request, spawned=spawned)
            found["cached_first_step_seconds"] = again.get("first_step_seconds")
        except FaultError as fault:
            found["notes"].append(f"{cell.variant}, {cell.length} tokens: the second start failed: {fault}")
    return found


def _filled(cell: Cell, arguments: BenchmarkArguments, limit: int, cache: str) -> Config:
    """The configuration with the largest batch that should fit, by the compiler's plans.

    Memory grows almost linearly with the rows. Two small batches give the line; the plan of the batch found on it
    corrects the line.
    """
    request = {"config": config_to_toml(cell.config), "stage": cell.stage, "vocabulary": arguments.vocabulary}
    planned: dict[int, int] = {}
    asked, devices = list(_PROBES), 1
    with _worker(cell.variant, cell.config, cache) as worker:
        while asked and len(planned) < len(_PROBES) + _PLANS:
            found = worker.ask("plan_memory", **request, rows=asked)
            if not found["fits"]:
                break
            devices = found["devices"]
            planned |= {int(rows): size for rows, size in found["planned"].items()}
            rows = largest_batch(dict(sorted(planned.items())[-2:]), _MARGIN * limit)
            asked = [rows] if rows >= 1 and rows not in planned else []
    fitting = [rows for rows, size in planned.items() if size <= limit]
    if not fitting:
        raise UserError(
            f"{cell.variant}: not even {_PROBES[0]} rows of {cell.length} tokens fit into {limit / 2**30:.2f} GiB; "
            "raise --memory"
        )
    return with_rows(cell.config, max(fitting), devices)


def largest_batch(planned: Mapping[int, int], limit: float) -> int:
    """Rows whose memory is `limit` bytes, on the line through two (rows -> bytes); whole eights from 8 on."""
    (low, low_bytes), (high, high_bytes) = sorted(planned.items())
    slope = (high_bytes - low_bytes) / (high - low)
    if slope <= 0:
        return high
    rows = int(low + (limit - low_bytes) / slope)
    return rows - rows % 8 if rows >= 8 else max(rows, 0)


def _smaller(config: Config) -> Config:
    rows = config.training.micro_batch_size
    fewer = max(1, rows - max(1, rows // 10))
    fewer -= fewer % 8 if fewer >= 8 else 0
    return with_rows(config, fewer, config.training.batch_size // rows)


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add measured and predicted speedups against the first variant of the same length that fits."""
    for row in rows:
        first = next((one for one in rows if one["length"] == row["length"] and one["fits"]), None)
        if first is None or not row["fits"]:
            continue
        row["predicted_speedup"] = predicted_speedup(row, first)
        row["speedup"] = row["tokens_per_second"] / first["tokens_per_second"]

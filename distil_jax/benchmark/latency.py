"""`distil-jax latency`: how long models take as users feel it, in every runtime that is installed, interleaved."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.benchmark.process import Worker
from distil_jax.benchmark.timing import WIDEST_SPREAD, summarise
from distil_jax.config import LatencyArguments
from distil_jax.errors import UserError
from distil_jax.export import FORMATS, WriteOptions, read_source, write_model
from distil_jax.hf import refused_by_transformers
from distil_jax.tables import markdown

# Runtime -> (module that it needs, file that it reads).
RUNTIMES: dict[str, tuple[str, str]] = {
    "jax": ("jax", FORMATS["hf"].file),
    "pytorch": ("torch", FORMATS["hf"].file),
    "onnx": ("onnxruntime", FORMATS["onnx"].file),
    "onnx-int8": ("onnxruntime", FORMATS["onnx-int8"].file),
    "litert": ("ai_edge_litert", FORMATS["litert"].file),
    "litert-int8": ("ai_edge_litert", FORMATS["litert-int8"].file),
}
_ALL, _ONE = "all threads", "one thread"


def measure_latency(given: LatencyArguments, show: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Times of models in runtimes: {"rows": one a model and runtime, "left_out", "cores"}.

    Each model and runtime has a process of its own; they take turns, so that what else the machine does hits all alike.

    Args:
        given: the command's arguments.
        show: takes a line of progress.

    Raises:
        UserError: a model that cannot be read, that a format cannot hold, or that takes no rows of these lengths; no
            runtime is installed.
        FaultError: a process died.
    """
    runtimes = [one for one in given.runtimes if importlib.util.find_spec(RUNTIMES[one][0]) is not None]
    if not runtimes:
        raise UserError(f"--runtimes {' '.join(given.runtimes)}: not installed; choose from {', '.join(RUNTIMES)}")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, model in enumerate(given.models):
            folder = Path(temporary) / str(number)
            show(f"{model}: writing its files")
            refused = _write(model, folder, runtimes, given.lengths)
            if refused and "pytorch" in runtimes:
                show(f"{model}: without PyTorch, as {refused}")
            for runtime in (one for one in runtimes if not (refused and one == "pytorch")):
                size = (folder / RUNTIMES[runtime][1]).stat().st_size
                about = {"model": model, "runtime": runtime, "folder": str(folder), "megabytes": size / 1e6}
                rows[model, runtime] = {**about, "times": {}}
        for name, used in ((_ONE, cores[:1]), (_ALL, cores)):
            _time(given, name, used, [*rows.values()], show)
    for row in rows.values():
        del row["folder"]
    left_out = [one for one in given.runtimes if one not in runtimes]
    return {"rows": [*rows.values()], "left_out": left_out, "cores": len(cores)}


def _write(model: str, folder: Path, runtimes: list[str], lengths: tuple[int, ...]) -> str:
    """Write the model's files; why transformers refuses them, "" if it does not."""
    source = dataclasses.replace(read_source(model), task=None)  # files are checked on built-in sentences
    if max(lengths) > source.encoder.max_length:
        raise UserError(f"--lengths {max(lengths)}: {model} takes {source.encoder.max_length} tokens; lower it")
    chosen = ["hf", *(one for one in runtimes if one in FORMATS)]
    for one in chosen:
        FORMATS[one].require_installed()
    write_model(source, folder, [FORMATS[one] for one in chosen], options=WriteOptions(lengths=lengths))
    return refused_by_transformers(source.encoder)


def _time(
    given: LatencyArguments, name: str, cores: list[int], rows: list[dict[str, Any]], show: Callable[[str], None]
) -> None:
    """Adds the times with these cores to the rows."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(len(cores)), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "distil_jax.benchmark.latency_worker"]
    with ExitStack() as stack:
        workers = []
        for row in rows:
            title = f"{row['model']}, {row['runtime']}, {name}"
            show(f"{title}: starting")
            worker = stack.enter_context(Worker(title, command, environment))
            worker.ask("open", folder=row["folder"], runtime=row["runtime"], cores=cores)
            workers.append((worker, row))
        for shape, calls in _shapes(given, name):
            show(f"{name}: {shape[0]} x {shape[1]} tokens")
            found: list[list[list[float]]] = [[] for _ in workers]
            for _ in range(given.rounds):
                for number, (worker, _row) in enumerate(workers):
                    found[number].append(worker.ask("time", batch=shape[0], length=shape[1], calls=calls)["seconds"])
            for (_, row), rounds in zip(workers, found, strict=True):
                row["times"][f"{name}, {shape[0]} x {shape[1]}"] = _summary(rounds, shape[0])


def _shapes(given: LatencyArguments, name: str) -> Iterator[tuple[tuple[int, int], int]]:
    """(rows, tokens) and calls of a round: single rows, and one large batch on all threads."""
    for length in given.lengths:
        yield (1, length), given.calls
    if name == _ALL:
        yield (given.batch, given.lengths[len(given.lengths) // 2]), max(given.calls // 4, 1)


def _summary(rounds: list[list[float]], batch: int) -> dict[str, float]:
    """Milliseconds: median and 95th percentile of all calls, spread of the rounds' medians; rows a second."""
    calls = np.concatenate(rounds)
    median = float(np.median(calls))
    return {
        "median_ms": 1000 * median,
        "p95_ms": 1000 * float(np.percentile(calls, 95)),
        "spread": summarise([statistics.median(one) for one in rounds]).spread,
        "rows_per_second": batch / median,
    }


def latency_markdown(report: Mapping[str, Any]) -> str:
    """The times as a table: median (95th percentile) in ms, and rows a second of the large batch."""
    rows = report["rows"]
    shapes = [*rows[0]["times"]]
    body = []
    for row in rows:
        cells = [row["model"], row["runtime"], f"{row['megabytes']:,.1f}"]
        for shape in shapes:
            found = row["times"][shape]
            single = ", 1 x " in shape
            text = f"{found['median_ms']:.1f} ({found['p95_ms']:.1f})" if single else f"{found['rows_per_second']:,.1f}"
            cells.append(text + (f" ±{found['spread']:.0%}" if found["spread"] > WIDEST_SPREAD else ""))
        body.append(cells)
    titles = [f"{shape} tokens, {'ms' if ', 1 x ' in shape else 'rows/s'}" for shape in shapes]
    notes = [f"median (95th percentile); ±: spread of the rounds above {WIDEST_SPREAD:.0%}; {report['cores']} cores"]
    notes += [f"not installed: {', '.join(report['left_out'])}"] if report["left_out"] else []
    return markdown(["model", "runtime", "MB", *titles], body) + "\n\n" + "; ".join(notes)


def write_latency(path: Path, report: Mapping[str, Any]) -> None:
    """The numbers as JSON."""
    from distil_jax.runs import write_atomically

    write_atomically(path, json.dumps(report, indent=2) + "\n")

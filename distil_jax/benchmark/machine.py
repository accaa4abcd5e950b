"""Peak speed, bandwidth and memory of this machine, and its description for a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.benchmark.process import peak_memory
from distil_jax.runs import processor_name, versions
from distil_jax.training.compiled_step import device_memory

_MATRIX_ROWS = {"cpu": 1536}  # of the square matrices that the peak is measured with; accelerators take 8192
_MEGABYTES = {"cpu": 128}  # of the array that the bandwidth is measured with; accelerators take 1024
_SHOWN_SETTINGS = ("MALLOC_", "LD_PRELOAD", "XLA_FLAGS", "JAX_PLATFORMS", "JAX_NUM_CPU", "OMP_", "XLA_PYTHON_")


def best_seconds(function: Callable[[], Any], *, at_least: int = 3, seconds: float = 0.5) -> float:
    """Seconds of the fastest of repeated calls, after one that does not count.

    Args:
        function: returns arrays; the clock stops when they are ready.
        at_least: fewest calls.
        seconds: calls are repeated for about as long.
    """
    jax.block_until_ready(function())
    best, began, calls = float("inf"), time.perf_counter(), 0
    while calls < at_least or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        jax.block_until_ready(function())
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def matmul_peak(dtype: str) -> float:
    """Floating-point operations a second of one device in a product of square matrices of `dtype`.

    On CPU one device has all cores, so virtual devices do not add to it.
    """
    size = _MATRIX_ROWS.get(jax.default_backend(), 8192)
    keys = jax.random.split(jax.random.key(0))
    one, other = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    return 2.0 * size**3 / best_seconds(lambda: product(one, other))


def memory_bandwidth() -> float:
    """Bytes a second that one device reads and writes while it multiplies a long array by a number."""
    megabytes = _MEGABYTES.get(jax.default_backend(), 1024)
    values = jnp.ones((megabytes << 18,), jnp.float32)
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
    held = [values]

    def call() -> Any:
        held[0] = scale(held[0])
        return held[0]

    return 2.0 * (megabytes << 20) / best_seconds(call)


def peak_bytes(devices: list[Any]) -> int:
    """Peak bytes of the fullest accelerator, or on CPU of this process."""
    stats = [device.memory_stats() or {} for device in devices]
    return max((int(stat.get("peak_bytes_in_use", 0)) for stat in stats), default=0) or peak_memory()


def memory_limit(devices: list[Any], count: int) -> int:
    """Bytes that arrays may take on a device.

    The limit of the smallest accelerator, or on CPU four fifths of the free memory, shared by `count` devices.
    """
    if known := device_memory(devices):
        return known
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(0.8 * free / count)


def describe_machine() -> dict[str, Any]:
    """Devices, processor, cores, memory, versions, and the settings of the process that matter for speed."""
    kinds = [device.device_kind for device in jax.devices()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": jax.default_backend(),
        "devices": f"{len(kinds)} x {kinds[0]}",
        "processor": processor_name(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions("torch"),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SHOWN_SETTINGS)},
    }

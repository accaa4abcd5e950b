"""The device that programs are traced for: that of JAX, or one that is not here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any


@dataclasses.dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        platform: "cpu", "cuda", "rocm" or "tpu".
        capability: compute capability of a CUDA device, else (0, 0).
        memory: bytes that programs may take; 0 where none is known, as on CPU.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)
    memory: int = 0


_ABSENT: ContextVar[Device | None] = ContextVar("target", default=None)


@contextlib.contextmanager
def traced_for(device: Device) -> Iterator[None]:
    """What is traced in the block is for `device`, whatever JAX computes on."""
    token = _ABSENT.set(device)
    try:
        yield
    finally:
        _ABSENT.reset(token)


def target_device() -> Device:
    """The device that what is traced now is for: that of `traced_for`, else the one that JAX computes on by default."""
    if absent := _ABSENT.get():
        return absent
    import jax

    backend = jax.default_backend()
    device: Any = jax.local_devices()[0]
    memory = int((device.memory_stats() or {}).get("bytes_limit", 0))
    if backend != "gpu":
        return Device(backend, memory=memory)
    if "cuda" not in device.client.platform_version.lower():
        return Device("rocm", memory=memory)
    major, minor = str(device.compute_capability).split(".")[:2]
    return Device("cuda", (int(major), int(minor)), memory)

"""The device that programs are traced for: that of JAX, or one that is not here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any


@dataclasses.dataclass(frozen=True)
class Device:
    """What computes: platform "cpu", "cuda", "rocm" or "tpu"; compute capability of a CUDA device, else (0, 0)."""

    platform: str
    capability: tuple[int, int] = (0, 0)


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
    if backend != "gpu":
        return Device(backend)
    device: Any = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version.lower():
        return Device("rocm")
    major, minor = str(device.compute_capability).split(".")[:2]
    return Device("cuda", (int(major), int(minor)))

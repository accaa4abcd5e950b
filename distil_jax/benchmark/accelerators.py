"""Devices that a plan can be made for, by the names that their sellers use, and their compilers.

GPUs and TPUs need not be here: their compilers are in the packages of the extras plan-gpu and plan-tpu.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from distil_jax.errors import UserError, one_line
from distil_jax.target import Device
from distil_jax.training.flops import peak_flops

GIB = 1 << 30
# Shares of the data sheet that large products and large copies reach.
MATRIX_SHARE, MEMORY_SHARE = 0.8, 0.9
_GPU_PLUGINS = ("xla_cuda13", "xla_cuda12")
# Of a GPU's memory, JAX takes this share unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_MEMORY_SHARE = 0.75
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
# TPUs lay arrays out in tiles whose last side has so many numbers; a part of one takes a whole one.
_TILE = {"tpu": 128}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of an absent GPU: cores, shared memory of a core, cache (bytes), clock (GHz)."""

    cores: int
    shared_memory: int
    cache: int
    clock: float


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device, with the figures of its data sheet.

    Attributes:
        kind: its name in JAX.
        device: what programs are traced for.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        link: bytes a second that it sends to its neighbours.
        gpu: what XLA asks about a GPU; None for a TPU.
    """

    kind: str
    device: Device
    memory: int
    bandwidth: float
    link: float
    gpu: Gpu | None = None


_AMPERE, _HOPPER, _TPU = Device("cuda", (8, 0)), Device("cuda", (9, 0)), Device("tpu")
ACCELERATORS = {
    "a100": Accelerator("NVIDIA A100", _AMPERE, 85_028_896_768, 2.039e12, 300e9, Gpu(108, 167_936, 40 << 20, 1.41)),
    "h100": Accelerator("NVIDIA H100", _HOPPER, 84_942_979_072, 3.352e12, 450e9, Gpu(132, 233_472, 50 << 20, 1.98)),
    "h200": Accelerator("NVIDIA H200", _HOPPER, 150_754_820_096, 4.8e12, 450e9, Gpu(132, 233_472, 50 << 20, 1.98)),
    "v4": Accelerator("TPU v4", _TPU, 32 * GIB, 1.228e12, 150e9),
    "v5e": Accelerator("TPU v5e", _TPU, 16 * GIB, 0.819e12, 100e9),
    "v5p": Accelerator("TPU v5p", _TPU, 95 * GIB, 2.765e12, 300e9),
    "v6e": Accelerator("TPU v6e", _TPU, 32 * GIB, 1.640e12, 224e9),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices of a plan.

    Attributes:
        name: as given, such as "h100:8".
        device: what programs are traced for.
        devices: JAX's devices, or those of a topology that is not here.
        memory: bytes that a program may take on each.
        flops: matrix operations a second that one reaches, 0: not known.
        bandwidth: bytes a second of its memory that it reaches, 0: not known.
        link: bytes a second that one sends to others, 0: not known.
    """

    name: str
    device: Device
    devices: list[Any]
    memory: int
    flops: float
    bandwidth: float
    link: float

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.devices)


def parse_target(name: str) -> tuple[Accelerator, tuple[int, ...]]:
    """The kind and the shape of "h200", "h100:8", "v5e:4x4".

    Raises:
        UserError: no such device, or a shape that it does not come in.
    """
    kind, _, shape = name.partition(":")
    if kind not in ACCELERATORS:
        raise UserError(f"--on {one_line(name, 40)}: not known; choose this, {', '.join(ACCELERATORS)}")
    accelerator = ACCELERATORS[kind]
    three = kind in ("v4", "v5p")
    pattern = r"[1-9]\d{0,3}" if accelerator.gpu else r"[1-9]\d*x[1-9]\d*" + (r"x[1-9]\d*" if three else "")
    if not shape:
        return accelerator, (1,) if accelerator.gpu else (1, 1, 1)[: 3 if three else 2]
    if not re.fullmatch(pattern, shape):
        example = "8" if accelerator.gpu else ("2x2x1" if three else "4x4")
        raise UserError(f"--on {one_line(name, 40)}: give the devices as in {kind}:{example}")
    return accelerator, tuple(int(size) for size in shape.split("x"))


def find_target(name: str, dtype: Literal["bfloat16", "float32"]) -> Target:
    """The devices called `name`, "this" being those of JAX; `dtype` is what matrices are multiplied in.

    For absent ones it has to be called before JAX is used.

    Raises:
        UserError: they are not known, or the package with their compiler is missing.
    """
    if name == "this":
        return _this(dtype)
    accelerator, shape = parse_target(name)
    # JAX computes on the CPU. Its look for a driver and for a TPU's place in the cloud would fail here.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TPU_SKIP_MDS_QUERY": "1"}
    devices = _gpus(accelerator, shape[0]) if accelerator.gpu else _tpus(name.partition(":")[0], shape)
    peak = peak_flops(accelerator.kind, dtype) or 0.0
    share = float(os.environ.get(_FRACTION) or _GPU_MEMORY_SHARE) if accelerator.gpu else 1.0
    memory = int(share * accelerator.memory)
    return Target(
        name=name,
        device=dataclasses.replace(accelerator.device, memory=memory),
        devices=devices,
        memory=memory,
        flops=MATRIX_SHARE * peak,
        bandwidth=MEMORY_SHARE * accelerator.bandwidth,
        link=accelerator.link,
    )


def padding_notes(device: Device, sizes: Mapping[str, int]) -> list[str]:
    """What the tiles of `device` add to sizes that do not fill them, a line for each; none where it has no tiles.

    Args:
        device: whose tiles.
        sizes: last sides of arrays by what they are, such as {"vocabulary": 30_522}.
    """
    tile = _TILE.get(device.platform, 1)
    padded = {name: (size, -(-size // tile) * tile) for name, size in sizes.items() if size % tile}
    return [
        f"{name} of {size:,} takes the place of {whole:,} in tiles of {tile}: {whole / size - 1:.1%} more"
        for name, (size, whole) in padded.items()
    ]


def _this(dtype: Literal["bfloat16", "float32"]) -> Target:
    import jax

    from distil_jax.benchmark.machine import matmul_peak, memory_bandwidth, memory_limit
    from distil_jax.target import target_device

    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    share = len(devices) if devices[0].platform == "cpu" else 1  # devices of one CPU share its cores
    return Target(
        name="this",
        device=target_device(),
        devices=devices,
        memory=memory_limit(jax.local_devices(), len(devices)),
        flops=matmul_peak(dtype) / share,
        bandwidth=memory_bandwidth() / share,
        link=0.0,
    )


def _gpus(accelerator: Accelerator, count: int) -> list[Any]:
    plugin = next((name for name in _GPU_PLUGINS if find_spec(f"jax_plugins.{name}")), "") if _has_plugins() else ""
    if not plugin or accelerator.gpu is None:
        raise UserError('--on needs the compiler for NVIDIA GPUs: pip install "distil_jax[plan-gpu]"')
    import jax
    from jax.experimental import topologies

    jax.devices()  # looks for plug-ins, this one among them
    described = topologies.get_topology_desc(
        "", "cuda", target_config=_description(accelerator, accelerator.gpu), topology=f"1x1x{count}"
    )
    return list(described.devices)


def _has_plugins() -> bool:
    return find_spec("jax_plugins") is not None


def _description(accelerator: Accelerator, gpu: Gpu) -> str:
    """The GPU in the text form of XLA's GpuTargetConfigProto."""
    major, minor = accelerator.device.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": gpu.shared_memory - 1024,
        "shared_memory_per_core": gpu.shared_memory,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "core_count": gpu.cores,
        "fpus_per_core": 128 if major >= 9 else 64,
        "clock_rate_ghz": gpu.clock,
        "l2_cache_size": gpu.cache,
        "memory_bandwidth": int(accelerator.bandwidth),
        "device_memory_size": accelerator.memory,
    }
    lines = [f"{name}: {value}" for name, value in fields.items()]
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f"gpu_device_info {{ {' '.join([*lines, capability])} }} platform_name: 'CUDA' "
        f"dnn_version_info {{ major: 9 minor: 10 }} device_description_str: '{accelerator.kind}'"
    )


def _tpus(kind: str, shape: tuple[int, ...]) -> list[Any]:
    if find_spec("libtpu") is None:
        raise UserError('--on needs the compiler for TPUs: pip install "distil_jax[plan-tpu]"')
    from jax.experimental import topologies

    name = f"{kind}:{'x'.join(map(str, shape))}"
    bounds = {} if math.prod(shape) > 1 else {"chips_per_host_bounds": [1, 1, 1]}
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **bounds).devices)
    except Exception as error:  # of libtpu, without a class of its own
        raise UserError(f"--on {name}: libtpu has no such slice ({one_line(error, 120)})") from None

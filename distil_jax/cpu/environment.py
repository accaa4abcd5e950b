"""Settings of malloc and XLA that a CPU run starts with."""

from __future__ import annotations

import glob
import logging
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from distil_jax.cpu.switch import SWITCH

# Buffers freshly mapped by malloc cost up to a third of a training step on CPU; these settings make it keep them.
MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
# The order of operations that this turns off holds up to a fifth more memory, and was no faster on two cores.
XLA_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"
RESTART = "DISTIL_JAX_RESTART"  # 0: the process is not started again, as where its environment is set by hand
_OWN_PROGRAMS = ("distil-jax", "__main__.py")
_LOG = logging.getLogger("distil_jax")


def restart_for_cpu(wanted: str) -> None:
    """Start this command again with the CPU's settings of malloc and XLA; malloc reads its own at process start only.

    The log names it at level INFO (-v), manifest.json of a run has the variables. Does nothing on accelerators, without
    glibc, outside the command line, where one of malloc's settings is made already, with DISTIL_JAX_RESTART=0, or with
    this package switched off.
    """
    changed = cpu_environment(os.environ, wanted)
    if not changed or Path(sys.argv[0]).name not in _OWN_PROGRAMS or "jax" in sys.modules:
        return
    shown = " ".join(f"{name}={value}" for name, value in changed.items())
    _LOG.info("restarting with %s, faster and smaller on CPU (%s=0: without)", shown, RESTART)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changed})


def settings_in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that set malloc and XLA."""
    return {name: environment[name] for name in (*MALLOC_SETTINGS, "XLA_FLAGS") if name in environment}


def cpu_environment(environment: Mapping[str, str], wanted: str) -> dict[str, str]:
    """The variables that a CPU run should have and `environment` lacks; empty where they don't apply.

    Args:
        environment: the process's.
        wanted: the setting run.platform.
    """
    if "0" in (environment.get(SWITCH), environment.get(RESTART)) or environment.keys() & MALLOC_SETTINGS.keys():
        return {}
    if platform.libc_ver()[0] != "glibc" or not _computes_on_cpu(environment, wanted):
        return {}
    flags = environment.get("XLA_FLAGS", "")
    if XLA_FLAG in flags:
        return dict(MALLOC_SETTINGS)
    return {**MALLOC_SETTINGS, "XLA_FLAGS": f"{flags} {XLA_FLAG}=false".lstrip()}


def _computes_on_cpu(environment: Mapping[str, str], wanted: str) -> bool:
    """Whether the run will be on CPU, found out without importing JAX."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if wanted == "any" and not platforms:
        drivers = ("/dev/nvidia[0-9]*", "/dev/kfd")  # of NVIDIA and AMD
        return not (any(glob.glob(pattern) for pattern in drivers) or tpu_files())
    return "cpu" in (wanted, platforms)


def tpu_files() -> list[str]:
    """Device files of TPU drivers."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")

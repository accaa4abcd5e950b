"""Process start-up: environment, cluster, platform, compilation cache. Call `start` before anything computes."""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from distil_jax.config import Config, Parallel
from distil_jax.errors import UserError, one_line

HEARTBEAT_SECONDS = 28  # until JAX notices that a process died, at least half as many; `watch` is faster and clearer
SHUTDOWN_SECONDS = 60  # that a finished process waits for the others

# Buffers freshly mapped by malloc cost up to a third of a training step on CPU; these settings make it keep them.
MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
# The order of operations that this turns off holds up to a fifth more memory, and was no faster on two cores.
XLA_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"
RESTART_SWITCH = "DISTIL_JAX_RESTART"  # 0: leave malloc and XLA alone
CACHE_FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable; a folder, or empty for no cache
_OWN_PROGRAMS = ("distil-jax", "__main__.py")


def start(config: Config) -> None:
    """Bring the process up: settings of malloc and XLA, the cluster, the platform, the cache of compiled programs.

    Raises:
        UserError: the cluster can't be joined, or the devices are not of the kind that `run.platform` asks for.
    """
    restart_for_cpu(config.run.platform)
    initialize_distributed(config.parallel)
    require_platform(config.run.platform)
    enable_compilation_cache()


def restart_for_cpu(wanted: str) -> None:
    """Start this command again with the CPU's settings of malloc and XLA; malloc reads its own at process start only.

    Says so in one line on stderr. Does nothing on accelerators, without glibc, outside the command line, where one of
    malloc's settings is made already, or with DISTIL_JAX_RESTART=0.
    """
    changed = cpu_environment(os.environ, wanted)
    if not changed or Path(sys.argv[0]).name not in _OWN_PROGRAMS or "jax" in sys.modules:
        return
    shown = " ".join(f"{name}={value}" for name, value in changed.items())
    sys.stderr.write(f"distil-jax: restarting with {shown}, faster and smaller on CPU ({RESTART_SWITCH}=0: don't)\n")
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changed})


def cpu_environment(environment: Mapping[str, str], wanted: str) -> dict[str, str]:
    """The variables that a CPU run should have and `environment` lacks; empty where they don't apply.

    Args:
        environment: the process's.
        wanted: the setting run.platform.
    """
    if environment.get(RESTART_SWITCH) == "0" or any(name in environment for name in MALLOC_SETTINGS):
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
        return not _accelerator_files()
    return "cpu" in (wanted, platforms)


def _accelerator_files() -> list[str]:
    """Device files of NVIDIA, AMD and TPU drivers."""
    return [path for pattern in ("/dev/nvidia[0-9]*", "/dev/kfd") for path in glob.glob(pattern)] + _tpu_files()


def _tpu_files() -> list[str]:
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _glibc() -> Any:
    """The C library, where it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _MallocInfo
    return library


def trim_memory() -> None:
    """Have malloc give back to the system what is free, where it is glibc's.

    Reading a model and compiling leave holes into which none of XLA's large buffers fits.
    """
    if library := _glibc():
        library.malloc_trim(0)


def memory_in_use() -> int | None:
    """Bytes that malloc has given out and not got back, where it is glibc's (2.33 or later), else None.

    Those of malloc's first arena and of buffers mapped by themselves: all large ones, whatever its settings.
    """
    library = _glibc()
    if not hasattr(library, "mallinfo2"):
        return None
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd


def initialize_distributed(parallel: Parallel) -> None:
    """Join the other processes of the run, if there are any.

    With parallel.coordinator, num_processes and process_id given, those are used; inside a SLURM step or an Open MPI
    job of several tasks, and on TPU hosts, JAX finds them out; otherwise the run is this process alone. When a process
    of several dies of an exception, all end at once instead of waiting for it.

    Raises:
        UserError: the cluster can't be joined.
    """
    given = parallel.coordinator != ""
    cluster = _in_cluster(os.environ)
    tpu = bool(_tpu_files()) and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu"
    if not (given or cluster or tpu):
        return
    import jax

    where = {
        "coordinator_address": parallel.coordinator or None,
        "num_processes": parallel.num_processes or None,
        "process_id": parallel.process_id if given else None,
    }
    try:
        jax.distributed.initialize(
            **where, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and tpu and not (given or cluster):
            return  # a TPU host of its own, outside any cluster that JAX knows
        reason = " ".join(str(error).split())
        raise UserError(
            f"can't join the other processes: {reason}; check parallel.coordinator, or give it, parallel.num_processes "
            "and parallel.process_id where they are not found out"
        ) from None
    if threading.current_thread() is threading.main_thread():
        # JAX has set a handler that only takes a note; until a run watches, SIGTERM ends the process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() > 1:
        sys.excepthook = _end_at_once


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a job whose processes JAX can find out."""
    slurm = "SLURM_STEP_NODELIST" in environment and _number(environment, "SLURM_NTASKS") > 1
    return slurm or _number(environment, "OMPI_COMM_WORLD_SIZE") > 1


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook of one process of several: at a normal exit it would wait for the others, and they for it."""
    traceback.print_exception(kind, error, trace)
    abandon(1, one_line(f"{kind.__name__}: {error}"))


def abandon(status: int, reason: str = "it says why") -> None:
    """End a process of several that has failed, without waiting for the others, who hear why; alone it goes on."""
    if "jax" not in sys.modules:
        return
    import jax

    from distil_jax.runs import coordination

    if coordination.is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        coordination.publish_failure(f"{coordination.process_name(jax.process_index())} failed ({reason})")
        os._exit(status)


def require_platform(wanted: str) -> None:
    """Insist on the kind of device that run.platform names; JAX itself falls back to CPU without a word.

    Raises:
        UserError: another kind is there, or none.
    """
    import jax

    if wanted == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter where what JAX_PLATFORMS names is not installed
        reason = " ".join(str(error).split()) or f"JAX found none of {os.environ.get('JAX_PLATFORMS')!r}"
        raise UserError(f"no usable device: {reason}; see JAX_PLATFORMS") from None
    if wanted not in ("any", found):
        extra = (
            f'; pip install ".[{wanted}]" in a checkout of distil_jax and check the driver'
            if wanted != "cpu"
            else "; see JAX_PLATFORMS"
        )
        raise UserError(f"run.platform = {wanted!r}, but JAX computes on {found!r}{extra}")


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a command run again starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder; empty, there is no cache.
    """
    if CACHE_FOLDER in os.environ:
        return  # JAX has read it
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a convenience only
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> Path:
    """Folder of compiled programs, one for each kind of processor, since home folders are shared by unlike machines."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "distil_jax" / "xla" / _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kind = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    text = "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(kind)])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

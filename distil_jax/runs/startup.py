"""Process start-up: environment, cluster, platform, compilation cache. Call `start` before anything computes."""

from __future__ import annotations

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

from distil_jax.config import Config, Parallel
from distil_jax.cpu import restart_for_cpu, tpu_files
from distil_jax.errors import UserError, one_line

HEARTBEAT_SECONDS = 28  # until JAX notices a dead process, at least half as many; the watchdog is faster
SHUTDOWN_SECONDS = 60  # that a finished process waits for the others

_POD_INDEX = "JOB_COMPLETION_INDEX"  # of an indexed Job of Kubernetes

CACHE_FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable; a folder, or empty for no cache


def start(config: Config) -> None:
    """Bring the process up: settings of malloc and XLA, the cluster, the platform, the cache of compiled programs.

    Raises:
        UserError: the cluster can't be joined, or the devices are not of the kind that `run.platform` asks for.
    """
    restart_for_cpu(config.run.platform)
    initialize_distributed(config.parallel)
    require_platform(config.run.platform)
    enable_compilation_cache()


def initialize_distributed(parallel: Parallel) -> None:
    """Join the other processes of the run, if there are any.

    With parallel.coordinator, num_processes and process_id given, those are used, the number of the pod where the last
    is missing in an indexed Job of Kubernetes; inside a SLURM step or an Open MPI job of several tasks, and on TPU
    hosts, JAX finds them; otherwise the run is this process alone. When a process of several ends with an exception,
    all end at once instead of waiting for it.

    Raises:
        UserError: the cluster can't be joined.
    """
    given = parallel.coordinator != ""
    cluster = _in_cluster(os.environ)
    tpu = bool(tpu_files()) and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu"
    if not (given or cluster or tpu):
        return
    import jax

    where = {
        "coordinator_address": parallel.coordinator or None,
        "num_processes": parallel.num_processes or None,
        "process_id": _process_id(parallel) if given else None,
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
            "and parallel.process_id where JAX does not find them"
        ) from None
    if threading.current_thread() is threading.main_thread():
        # JAX has set a handler that only takes a note. Until a watchdog runs, SIGTERM ends the process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() > 1:
        sys.excepthook = _end_at_once


def _process_id(parallel: Parallel) -> int:
    """The number of this process where the coordinator is given."""
    if parallel.process_id >= 0:
        return parallel.process_id
    number = os.environ.get(_POD_INDEX, "")
    if not number.isdecimal() or int(number) >= parallel.num_processes:
        raise UserError(
            f"parallel.process_id is not set, and {_POD_INDEX} = {number!r} is no number below "
            f"parallel.num_processes = {parallel.num_processes}; set it"
        )
    return int(number)


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a job whose processes JAX finds."""
    slurm = "SLURM_STEP_NODELIST" in environment and _number(environment, "SLURM_NTASKS") > 1
    return slurm or _number(environment, "OMPI_COMM_WORLD_SIZE") > 1


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook of one process of several: a usual exit would wait for the others, which wait for this one."""
    traceback.print_exception(kind, error, trace)
    end_failed_process(1, one_line(f"{kind.__name__}: {error}"))


def end_failed_process(status: int, reason: str = "see its output") -> None:
    """End a process of several that has failed, without waiting for the others, which read why; else do nothing."""
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
    """Check that JAX computes on the kind of device that run.platform names; it falls back to CPU silently.

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
    """Keep compiled programs in the user's cache folder, so that the same command starts at once the next time.

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
    """Folder of compiled programs; one for each kind of processor, since different machines share home folders."""
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

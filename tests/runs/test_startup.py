"""Process start-up: real processes, since what it changes can't be undone in one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distil_jax.config import Config, Parallel
from distil_jax.errors import UserError
from distil_jax.runs import startup as runtime

ROOT = Path(__file__).resolve().parents[2]
GUARD_SECONDS = 240  # only ends a test that hangs


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what a launcher or an earlier start may have set, plus `changes`."""
    left_out = ("SLURM_", "OMPI_", "MALLOC_", "JAX_", "XLA_", "DISTIL_JAX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "DISTIL_JAX_RESTART": "0", **changes}


def begin(code: str, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each."""
    ends = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=GUARD_SECONDS)
        finally:
            process.kill()
        ends.append((process.returncode, out, err))
    return ends


def said(end: tuple[int, str, str]) -> list[str]:
    """Words of the results; the library of collectives prints lines, and pieces of lines, of its own."""
    return str(" ".join(re.findall(r"RESULT (.*)", end[1]))).split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


FLAGS = """
import os
from distil_jax.config import Config, with_overrides
from distil_jax.runs import startup as runtime
flags = {"parallel.coordinator": "127.0.0.1:" + os.environ["PORT"], "parallel.num_processes": 2,
         "parallel.process_id": int(os.environ["NUMBER"])}
runtime.start(with_overrides(Config(), flags))
"""
TOTAL = """
import jax
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jax.numpy.float32(jax.process_index() + 1)).sum()
print("RESULT", jax.process_index(), jax.process_count(), jax.device_count(), float(total))
"""


def test_two_processes_join_by_flags() -> None:
    port = str(free_port())
    first, second = finish(
        *(begin(FLAGS + TOTAL, PORT=port, NUMBER=str(number), JAX_NUM_CPU_DEVICES="2") for number in range(2))
    )
    assert (first[0], said(first)) == (0, ["0", "2", "4", "3.0"]), first[2]
    assert (second[0], said(second)) == (0, ["1", "2", "4", "3.0"]), second[2]


def test_two_tasks_of_a_slurm_step_find_each_other() -> None:
    code = (
        "from distil_jax.config import Config\n"
        "from distil_jax.runs import startup as runtime\n"
        "runtime.start(Config())\n"
    )
    port = free_port()
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "JAX_COORDINATOR_PORT": str(port),
    }
    ends = finish(*(begin(code + TOTAL, **job, SLURM_PROCID=n, SLURM_LOCALID=n) for n in ("0", "1")))
    assert [end[0] for end in ends] == [0, 0], ends
    assert [said(end) for end in ends] == [["0", "2", "2", "3.0"], ["1", "2", "2", "3.0"]]


@pytest.mark.parametrize(
    "failing",
    [
        "raise ArithmeticError('as if')",
        "runtime.end_failed_process(2)",
    ],
)
def test_a_process_that_fails_takes_the_others_with_it(failing: str) -> None:
    """The other one waits in a collective, which would go on for minutes with JAX's own settings."""
    code = FLAGS + TOTAL + f"if jax.process_index() == 1:\n    {failing}\n" + TOTAL
    port = str(free_port())
    ends = finish(*(begin(code, PORT=port, NUMBER=str(number)) for number in range(2)))
    assert ends[1][0] == (2 if "end_failed" in failing else 1)
    assert ("ArithmeticError: as if" in ends[1][2]) == ("as if" in failing)
    assert ends[0][0] != 0
    assert ends[0][1].count("2 2 3.0") == 1  # it did not get past the second collective


def test_alone_an_exception_is_left_to_python() -> None:
    code = "from distil_jax.config import Config\nfrom distil_jax.runs import startup as runtime\nimport sys\n"
    code += "runtime.start(Config())\nruntime.end_failed_process(5)\n"
    code += "assert sys.excepthook is sys.__excepthook__\nimport jax\n"
    ((status, out, err),) = finish(begin(code + "print(jax.process_count())", SLURM_NTASKS="1"))
    assert (status, out.strip()) == (0, "1"), err


def test_a_cluster_that_cannot_be_joined_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    def fail(**_: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED:\n no answer")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    parallel = Parallel(coordinator="host:1", num_processes=2, process_id=0)
    with pytest.raises(UserError, match="DEADLINE_EXCEEDED: no answer; check parallel.coordinator"):
        runtime.initialize_distributed(parallel)


def test_the_flags_reach_jax_with_short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: seen.update(given))
    runtime.initialize_distributed(Parallel(coordinator="host:1", num_processes=2, process_id=0))
    assert seen == {
        "coordinator_address": "host:1",
        "num_processes": 2,
        "process_id": 0,
        "heartbeat_timeout_seconds": 28,
        "shutdown_timeout_seconds": 60,
    }


def test_the_platform_is_insisted_on() -> None:
    runtime.require_platform("any")
    runtime.require_platform("cpu")
    with pytest.raises(UserError, match="run.platform = 'gpu', but JAX computes on 'cpu'"):
        runtime.require_platform("gpu")
    with pytest.raises(UserError, match="tpu"):
        runtime.start(Config(run=type(Config().run)(platform="tpu")))


COMPILE = """
from distil_jax.config import Config
from distil_jax.runs import startup as runtime
runtime.start(Config())
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
print(float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64)))), bool(hits))
"""


def test_compiled_programs_are_kept(tmp_path: Path) -> None:
    ends = [finish(begin(COMPILE, XDG_CACHE_HOME=str(tmp_path)))[0] for _ in range(2)]
    assert [end[1].split() for end in ends] == [["262144.0", "False"], ["262144.0", "True"]], ends
    (folder,) = (tmp_path / "distil_jax" / "xla").iterdir()
    assert any(folder.iterdir())


def test_the_cache_can_be_elsewhere_or_off(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (end,) = finish(begin(COMPILE, XDG_CACHE_HOME=str(tmp_path / "no"), JAX_COMPILATION_CACHE_DIR=str(own)))
    assert end[0] == 0, end
    assert any(own.iterdir())
    (end,) = finish(begin(COMPILE, XDG_CACHE_HOME=str(tmp_path / "no"), JAX_COMPILATION_CACHE_DIR=""))
    assert end[0] == 0, end
    (tmp_path / "file").write_text("")
    (end,) = finish(begin(COMPILE, XDG_CACHE_HOME=str(tmp_path / "file")))  # not a folder: continues without
    assert end[0] == 0, end
    assert not (tmp_path / "no").exists()


def test_a_pod_of_an_indexed_job_is_the_process_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    joined: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: joined.update(given))
    parallel = Parallel(coordinator="host:1", num_processes=4)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    runtime.initialize_distributed(parallel)
    assert (joined["process_id"], joined["num_processes"]) == (3, 4)
    for wrong in ("4", "", "x"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", wrong)
        with pytest.raises(UserError, match="process_id"):
            runtime.initialize_distributed(parallel)

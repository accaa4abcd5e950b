"""Storage that fills up, turns read-only or vanishes: the last checkpoint stays, one line says why, the run continues.

Every fault is a real one, of a file system mounted for the test, met by the command itself in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, config_to_toml
from distil_jax.runs import MetricsWriter, read_metrics
from distil_jax.runs.metrics_log import TENSORBOARD_FOLDER
from distil_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 300  # only ends a test that hangs
Run = Callable[..., "tuple[int, str, str]"]


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"needs the right to mount file systems (root, CAP_SYS_ADMIN): {done.stderr}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def begin(tiny_config: Callable[..., Config], program_cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """A function (output, **environment) that starts the command that `whole_run` is the result of."""

    def start(output: Path, **more: str) -> subprocess.Popen[str]:
        config = tmp_path / "config.toml"
        config.write_text(config_to_toml(tiny_config(output)))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "DISTIL_JAX_RESTART": "0",
            "JAX_COMPILATION_CACHE_DIR": str(program_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **more,
        }
        command = [sys.executable, "-m", "distil_jax.cli", "distill", "--config", str(config)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr of a process that must come to its end by itself."""
    try:
        _, err = process.communicate(timeout=GUARD_SECONDS)
    finally:
        process.kill()
    return process.returncode, err


def complaint(process: subprocess.Popen[str], status: int) -> str:
    """The one line that a command says which ends with `status`."""
    found, err = ended(process)
    assert found == status, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith({1: "distil-jax: fault: ", 2: "distil-jax: error: "}[status])
    return err


def pause_after_row(process: subprocess.Popen[str], folder: Path, row: int) -> None:
    """Stop the process once its metrics have come to a row; `resume` lets it go on."""
    while process.poll() is None and max((r["step"] for r in read_metrics(folder, "train")), default=0) < row:
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None, ended(process)


def resume(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)


def whole_steps(folder: Path) -> list[int]:
    """The checkpoints in a run's folder, all of which must be whole."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    for step in checkpoints.all_steps():
        checkpoints.verify(step)
    return checkpoints.all_steps()


def assert_same(folder: Path, whole_run: Any) -> None:
    """Parameters, moments, step and rows of metrics, bit for bit."""
    rows = [[(row["step"], row["kind"], row["metrics"]) for row in read_metrics(f)] for f in (folder, whole_run.folder)]
    assert rows[0] == rows[1]
    restored = Checkpoints(folder / "checkpoints", read_only=True).restore(12, whole_run.outcome.state)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored), whole_run.state)


@pytest.mark.fault("disk full")
def test_a_disk_that_fills_up_while_training(
    begin: Callable[..., Any], whole_run: Any, disk: Path, tmp_path: Path
) -> None:
    """With space for two checkpoints or so; then there is more, and the same command continues."""
    folder = disk / "run"
    mount("-o", "remount,size=900k", disk)
    line = complaint(begin(folder), 1)
    assert "No space left on device; make room, then give the same command again" in line
    assert str(folder) in line
    kept = whole_steps(folder)
    assert kept and kept[-1] < 12
    mount("-o", "remount,size=16m", disk)
    assert ended(begin(folder))[0] == 0
    assert whole_steps(folder) == [2, 4, 6, 8, 10, 12]
    assert_same(folder, whole_run)


@pytest.mark.fault("disk full")
@pytest.mark.slow
@pytest.mark.parametrize("size", [200, 350, 500, 700, 850, 1000, 1200, 1400])
def test_a_disk_of_any_size_that_is_too_small(size: int, begin: Callable[..., Any], whole_run: Any, disk: Path) -> None:
    """Whichever file it is that does not fit."""
    folder = disk / "run"
    mount("-o", f"remount,size={size}k", disk)
    assert "No space left on device" in complaint(begin(folder), 1)
    if (folder / "checkpoints").is_dir():
        assert 12 not in whole_steps(folder)
    mount("-o", "remount,size=16m", disk)
    assert ended(begin(folder))[0] == 0
    assert_same(folder, whole_run)


@pytest.mark.fault("disk full")
def test_a_disk_that_is_full_at_the_start(begin: Callable[..., Any], disk: Path) -> None:
    (disk / "run").mkdir()
    mount("-o", "remount,size=4k", disk)
    line = complaint(begin(disk / "run"), 2)
    assert f"run.output = {disk / 'run'}: cannot be written (No space left on device)" in line


@pytest.mark.fault("output vanished")
def test_a_folder_that_is_removed_while_training(begin: Callable[..., Any], whole_run: Any, disk: Path) -> None:
    """Nothing is written in its place, whether the next save or the last one is the one to find out."""
    folder = disk / "run"
    process = begin(folder)
    pause_after_row(process, folder, 5)
    shutil.rmtree(folder)
    resume(process)
    line = complaint(process, 1)
    assert f"{folder}" in line and "run.lock" in line
    assert not (folder / "checkpoints" / "12").exists()
    if folder.exists():  # a save was under way
        shutil.rmtree(folder)
    assert ended(begin(folder))[0] == 0
    assert_same(folder, whole_run)


@pytest.mark.fault("output read-only")
def test_a_folder_that_is_read_only_at_the_start(begin: Callable[..., Any], disk: Path) -> None:
    mount("-o", "remount,ro", disk)
    line = complaint(begin(disk / "run"), 2)
    assert f"run.output = {disk / 'run'}: cannot be written (Read-only file system); choose another folder" in line
    assert not any(disk.iterdir())


@pytest.mark.fault("output read-only")
def test_a_disk_that_turns_read_only_while_training(begin: Callable[..., Any], whole_run: Any, disk: Path) -> None:
    folder = disk / "run"
    process = begin(folder)
    pause_after_row(process, folder, 5)
    mount("--bind", disk, disk)
    mount("-o", "remount,ro,bind", disk)
    before = whole_steps(folder)
    resume(process)
    line = complaint(process, 1)
    assert "Read-only file system; make it writable, then give the same command again" in line
    assert whole_steps(folder) == before
    subprocess.run(["umount", str(disk)], check=True)
    assert ended(begin(folder))[0] == 0
    assert_same(folder, whole_run)


# One file after the other


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("name", ["metrics.jsonl", TENSORBOARD_FOLDER])
def test_the_file_that_could_not_be_written_is_named(name: str, tmp_path: Path) -> None:
    """/dev/full is a disk that is always full."""
    writer = MetricsWriter(tmp_path)
    if name == "metrics.jsonl":
        writer._file = Path("/dev/full").open("w")  # noqa: SIM115
    else:
        assert writer._events is not None
        records: Any = writer._events._writer._py_recordio_writer
        records._writer = Path("/dev/full").open("wb")  # noqa: SIM115
    writer.write(1, {"loss": 2.0})
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.flush()
    assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()
    writer.close()  # there is nothing left to fail

"""Runs that are killed, and started again with the same command, end like the run that was left alone, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, config_to_toml
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.telemetry import read_metrics

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 600  # only ends a test that hangs
Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def start(tiny_config: Callable[..., Config], program_cache: Path, tmp_path: Path) -> Start:
    """A function (output) that starts the command that `whole_run` is the result of, always the same for an output."""

    def begin(output: Path) -> subprocess.Popen[str]:
        config = tmp_path / f"{output.name}.toml"
        config.write_text(config_to_toml(tiny_config(output)))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "DISTIL_JAX_MALLOC": "0",
            "JAX_COMPILATION_CACHE_DIR": str(program_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "distil_jax.cli", "distill", "--config", str(config)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def finish(process: subprocess.Popen[str]) -> str:
    """What a process that succeeds has printed."""
    try:
        out, err = process.communicate(timeout=GUARD_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


def kill(process: subprocess.Popen[str], due: Callable[[], bool], delay: float) -> bool:
    """SIGKILL `delay` seconds after `due`; false where the process ended by itself before."""
    while process.poll() is None and not due():
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def last_row(folder: Path) -> int:
    return max((row["step"] for row in read_metrics(folder, "train")), default=0)


def state_of(folder: Path, whole_run: Any) -> Any:
    """Parameters, moments and step of the last checkpoint."""
    restored = Checkpoints(folder / "checkpoints", read_only=True).restore(12, whole_run.outcome.state)
    return jax.tree.map(np.asarray, restored)


def computed(folder: Path) -> list[tuple[int, str, Mapping[str, float]]]:
    return [(row["step"], row["kind"], row["metrics"]) for row in read_metrics(folder)]


def assert_same(folder: Path, whole_run: Any, story: str) -> None:
    assert computed(folder) == computed(whole_run.folder), story
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, story), state_of(folder, whole_run), whole_run.state)


def test_killed_while_training_and_started_again(start: Start, whole_run: Any, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    chance, folder = random.Random(seed), tmp_path / "run"
    story, killed = f"kills drawn with seed {seed}:", 0
    for row in sorted(chance.sample(range(1, 12), 3)):
        delay = chance.uniform(0, 0.05)
        story += f" {delay:.3f} s after row {row};"
        killed += kill(start(folder), lambda row=row: last_row(folder) >= row, delay)
    assert killed, f"every process finished before it was killed; {story}"
    assert "step 12" in finish(start(folder))
    assert_same(folder, whole_run, story)
    assert "was finished already, step 12" in finish(start(folder))
    assert_same(folder, whole_run, story)


@pytest.mark.slow
def test_the_same_command_twice(start: Start, whole_run: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        finish(start(tmp_path / name))
        assert_same(tmp_path / name, whole_run, name)


@pytest.mark.slow
def test_killed_twenty_times_at_any_moment(start: Start, whole_run: Any, tmp_path: Path) -> None:
    """From the start of the process on: while it imports, compiles, trains, saves."""
    seed = random.randrange(10**6)
    chance, folder = random.Random(seed), tmp_path / "run"
    began = time.monotonic()
    finish(start(tmp_path / "measured"))
    duration, killed = time.monotonic() - began, 0
    for _ in range(20):
        killed += kill(start(folder), lambda: True, chance.uniform(0, duration))
    finish(start(folder))
    assert killed
    assert_same(folder, whole_run, f"kills drawn with seed {seed}")

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from distil_jax.benchmark.process import Worker, WorkerDiedError, peak_memory
from distil_jax.errors import FaultError, UserError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, sys
from distil_jax.errors import UserError
from distil_jax.benchmark.process import peak_memory, serve

def double(value):
    print("chatter on standard output")
    os.system("echo more chatter")
    return {"value": 2 * value}

def mistake():
    raise UserError("run.output is not set")

def fail():
    raise ValueError("no such thing")

def die():
    print("last words", file=sys.stderr)
    os._exit(3)

def killed():
    os.kill(os.getpid(), 9)

def grow(megabytes):
    held = bytearray(megabytes << 20)
    held[:: 4096] = b"x" * len(held[:: 4096])
    return {"peak": peak_memory()}

serve({name: globals()[name] for name in ("double", "mistake", "fail", "die", "killed", "grow")})
"""


def worker() -> Worker:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Worker("side", [sys.executable, "-c", SCRIPT], environment)


def test_a_worker_answers_again_and_again_whatever_it_prints() -> None:
    with worker() as side:
        assert [side.ask("double", value=value)["value"] for value in (1, 21)] == [2, 42]
        with pytest.raises(UserError, match="run.output is not set"):
            side.ask("mistake")
        with pytest.raises(FaultError, match="side: ValueError: no such thing"):
            side.ask("fail")
        assert side.ask("double", value=4)["value"] == 8


def test_a_death_is_told_with_the_last_words() -> None:
    with worker() as side, pytest.raises(WorkerDiedError, match="status 3: last words") as death:
        side.ask("die")
    assert not death.value.killed
    with worker() as side, pytest.raises(WorkerDiedError) as death:
        side.ask("killed")
    assert death.value.killed


def test_peak_memory_is_the_workers_own_and_only_grows() -> None:
    held = bytearray(256 << 20)  # of this process, which the worker must not inherit
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory() > 256 << 20
    with worker() as side:
        small = side.ask("grow", megabytes=1)["peak"]
        large = side.ask("grow", megabytes=100)["peak"]
        after = side.ask("grow", megabytes=1)["peak"]
    assert small < 128 << 20
    assert small + (90 << 20) < large and abs(after - large) < 4 << 20  # the kernel counts in coarse steps

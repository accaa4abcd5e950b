"""What malloc holds, in processes of their own, since its settings are made when a process starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distil_jax.cpu import MALLOC_SETTINGS

HOLES = """
import numpy as np
from distil_jax import cpu

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

kept = [np.ones(100_000, np.uint8) for _ in range(3000)]
kept = kept[-1:]  # at the top, so that malloc by itself gives nothing back
before = resident()
cpu.trim_memory()
print(before - resident())
"""


def test_holes_are_given_back() -> None:
    environment = {**os.environ, **MALLOC_SETTINGS}
    done = subprocess.run([sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200  # of 300 MiB


TAKEN = """
import numpy as np
from distil_jax import cpu

before = cpu.memory_in_use()
kept = np.ones(100 << 20, np.uint8)
taken = cpu.memory_in_use()
del kept
print(before, taken - before, cpu.memory_in_use() - before)
"""


@pytest.mark.parametrize("settings", [{}, MALLOC_SETTINGS], ids=["as installed", "as set"])
def test_memory_in_use_is_what_malloc_gave_out(settings: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", TAKEN]
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    before, taken, left = map(int, done.stdout.split())
    assert before > 0 and 100 <= taken / 2**20 < 101 and abs(left) < 2**20

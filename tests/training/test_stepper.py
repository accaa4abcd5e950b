"""The stepper: one program a shape, and a step that is waited for until its memory is back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import jax.numpy as jnp
import pytest
from jax import Array

from distil_jax.training import stepper
from distil_jax.training.parallel import Devices, make_devices
from distil_jax.training.stepper import Stepper

MIB = 1 << 20


def add_up(state: Array, constants: Array, rows: Array) -> tuple[Array, Array]:
    state = state + constants * jnp.sum(rows @ rows.T)
    return state, state[0]


def started() -> tuple[Stepper, Array, Array]:
    """A stepper, its state and constants."""
    devices = make_devices("shard_map", 1)
    return Stepper(devices, add_up), devices.replicate(jnp.zeros(3)), devices.replicate(jnp.full(3, 2.0))


def test_a_program_is_compiled_once_for_its_shapes() -> None:
    made, state, constants = started()
    results = []
    for length in (4, 6, 4):
        rows = jnp.ones((2, length))
        made.prepare(state, constants, rows)
        state, result = made(state, constants, rows)
        made.wait(result)
        results.append(float(result))
    assert results == [32.0, 80.0, 112.0]  # 2 * 16, 2 * 24, 2 * 16 added up
    assert len(made.programs) == 2 and made.compile_seconds > 0


def looks(monkeypatch: pytest.MonkeyPatch, places: Iterable[int]) -> list[int]:
    """Have malloc name these places in turn; those that it has named."""
    left, named = iter(places), []

    def look(size: int) -> int:
        assert 0 < size < MIB
        named.append(next(left))
        return named[-1]

    monkeypatch.setattr(stepper, "place_of", look)
    return named


def take_a_step() -> None:
    made, state, constants = started()
    rows = jnp.ones((2, 4))
    made.prepare(state, constants, rows)
    made.wait(made(state, constants, rows)[1])


def test_a_step_is_over_when_its_memory_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    named = looks(monkeypatch, [7 * MIB, 9 * MIB, 9 * MIB, 7 * MIB + 1, 9 * MIB])
    take_a_step()
    assert len(named) == 4  # before, and until it was as before but for a few bytes, no more often


def test_what_never_comes_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, itertools.count(MIB, MIB))
    start = time.monotonic()
    take_a_step()
    assert 0.05 <= time.monotonic() - start < 30


def test_the_memory_of_accelerators_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "are_the_host", False)
    named = looks(monkeypatch, [])
    take_a_step()
    assert not named

"""The stepper: one program a shape, and a step that is waited for until its memory is back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import jax.numpy as jnp
import pytest
from jax import Array

from distil_jax.training import compiled_step as stepper
from distil_jax.training.compiled_step import CompiledStep
from distil_jax.training.parallel import Devices, make_devices


def add_up(state: Array, constants: Array, rows: Array) -> tuple[Array, Array]:
    state = state + constants * jnp.sum(rows @ rows.T)
    return state, state[0]


def started() -> tuple[CompiledStep, Array, Array]:
    """A stepper, its state and constants."""
    devices = make_devices("shard_map", 1)
    return CompiledStep(devices, add_up), devices.replicate(jnp.zeros(3)), devices.replicate(jnp.full(3, 2.0))


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
    assert len(made.programs) == made._function._cache_size() == 2 and made.compile_seconds > 0


def looks(monkeypatch: pytest.MonkeyPatch, held: Iterable[int]) -> list[int]:
    """Have malloc hold so much, MiB, at one look after the other; what was seen."""
    left, seen = iter(held), []

    def look() -> int:
        seen.append(next(left))
        return seen[-1] << 20

    monkeypatch.setattr(stepper, "memory_in_use", look)
    return seen


def take_steps(count: int) -> list[float]:
    """The seconds of each."""
    made, state, constants = started()
    seconds = []
    for _ in range(count):
        start = time.monotonic()
        made.prepare(state, constants, jnp.ones((2, 4)))
        state, result = made(state, constants, jnp.ones((2, 4)))
        made.wait(result)
        seconds.append(time.monotonic() - start)
    return seconds


def test_a_step_is_over_when_its_memory_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepper, "_LONGEST_SECONDS", 60.0)
    seen = looks(monkeypatch, [100, 500, 101, 102, 900, 300, 103, 900])
    take_steps(2)
    # Before the first and until there was little more, before the second, as the first may leave something, and so on.
    assert seen == [100, 500, 101, 102, 900, 300, 103]


def test_what_steps_leave_is_no_memory_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(monkeypatch, [100, 100, 100, 107, 114, 121, 128])
    take_steps(5)
    assert len(seen) == 7


def test_what_never_comes_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, itertools.chain([100, 100, 100], itertools.repeat(900)))
    _, second, *_ = take_steps(2)
    assert 0.05 <= second < 30


def test_memory_that_something_else_took_and_gave_back_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepper, "_LONGEST_SECONDS", 0.0)
    # A save takes 700 during the second step and gives it back during the third; the fourth's 600 are not taken for it.
    seen = looks(monkeypatch, [100, 100, 100, 800, 800, 100, 100, 700, 100, 100])
    take_steps(4)
    assert seen == [100, 100, 100, 800, 800, 100, 100, 700]


def test_holes_are_given_back_after_compiling_and_after_a_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trims = []
    monkeypatch.setattr(stepper, "trim_memory", lambda: trims.append(True))
    take_steps(3)
    assert len(trims) == 2


def test_where_malloc_does_not_tell_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepper, "memory_in_use", lambda: None)
    monkeypatch.setattr(stepper.time, "sleep", lambda _: pytest.fail("slept for nothing"))
    take_steps(3)


def test_the_memory_of_accelerators_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "are_the_host", False)
    seen = looks(monkeypatch, [])
    take_steps(2)
    assert not seen

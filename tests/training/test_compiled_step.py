"""One program a shape; on CPU, a step is waited for until its memory is free."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jax import Array

from distil_jax.cpu import StepMemory
from distil_jax.training import compiled_step
from distil_jax.training.compiled_step import CompiledStep
from distil_jax.training.parallel import Devices, make_devices


def add_up(state: Array, constants: Array, rows: Array) -> tuple[Array, Array]:
    state = state + constants * jnp.sum(rows @ rows.T)
    return state, state[0]


def started() -> tuple[CompiledStep, Array, Array]:
    """A compiled step, its state and constants."""
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


@pytest.mark.parametrize(("host", "switch", "waits"), [(True, "1", True), (True, "0", False), (False, "1", False)])
def test_memory_is_waited_for_on_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, host: bool, switch: str, waits: bool
) -> None:
    monkeypatch.setattr(Devices, "are_the_host", host)
    monkeypatch.setenv("DISTIL_JAX_CPU_FORMS", switch)
    active: list[bool] = []

    class Noted(StepMemory):
        def __init__(self, is_active: bool) -> None:
            super().__init__(is_active)
            active.append(is_active)

    monkeypatch.setattr(compiled_step, "StepMemory", Noted)
    started()
    assert active == [waits]


@pytest.mark.parametrize(("limit", "warns"), [(0, False), (16, True), (1 << 30, False)])
def test_a_step_that_needs_more_memory_than_there_is_is_said_before_it_runs(
    limit: int, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled_step, "device_memory", lambda devices: limit)
    made, state, constants = started()
    made.prepare(state, constants, jnp.ones((2, 4)))
    assert any("micro_batch_size" in line for line in caplog.messages) == warns

"""When checkpoints are due."""

from __future__ import annotations

import time

import pytest

from distil_jax.config import Checkpoint, Config
from distil_jax.runs.save_clock import SaveClock


class Clock:
    """Seconds that a test sets."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    return found


def test_by_steps(clock: Clock) -> None:
    saves = SaveClock(Config(checkpoint=Checkpoint(every_steps=3, every_minutes=0)))
    clock.now = 1e9
    assert [number for number in range(1, 8) if saves.due(number)] == [3, 6]


@pytest.mark.parametrize("seconds_per_step", [0.01, 1.0, 7.0, 50.0, 200.0])
def test_by_the_clock_no_more_than_a_step_late(clock: Clock, seconds_per_step: float) -> None:
    """Ten minutes and a step are lost at most, whatever a step takes; the default."""
    saves = SaveClock(Config(checkpoint=Checkpoint(every_steps=0)))
    last, found = clock.now, 0
    for number in range(1, int(2000 / seconds_per_step) + 1):
        clock.now += seconds_per_step
        if saves.due(number):
            saves.saved()
            found += 1
            assert clock.now - last >= 600
            last = clock.now
        assert clock.now - last <= 600 + seconds_per_step + 1e-3
    assert found >= 2


def test_steps_that_become_slower_are_noticed(clock: Clock) -> None:
    """A look comes halfway to the limit by the speed so far."""
    saves = SaveClock(Config(checkpoint=Checkpoint(every_steps=0, every_minutes=10)))
    number = 0
    while not saves.due(number := number + 1):
        clock.now += 1.0 if number < 100 else 2.0
    assert clock.now - 100 <= 600 + 300


def test_never(clock: Clock) -> None:
    saves = SaveClock(Config(checkpoint=Checkpoint(every_steps=0, every_minutes=0)))
    clock.now = 1e9
    assert not saves.due(1000)

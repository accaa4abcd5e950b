"""When checkpoints are due."""

from __future__ import annotations

import pytest

from distil_jax.config import Checkpoint, Config, Logging
from distil_jax.runs import save_clock
from distil_jax.runs.save_clock import SaveClock


def test_checkpoints_by_steps_and_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(save_clock.time, "monotonic", lambda: now)
    logging = Logging(every_steps=5)
    steps = SaveClock(Config(checkpoint=Checkpoint(every_steps=3), logging=logging))
    assert [number for number in range(1, 8) if steps.due(number)] == [3, 6]
    clock = SaveClock(Config(checkpoint=Checkpoint(every_steps=0, every_minutes=2), logging=logging))
    now = 219.0
    assert not clock.due(5)
    now = 220.0
    assert not clock.due(6), "it only looks when metrics are due"
    assert clock.due(10)
    clock.saved()
    assert not clock.due(15)
    never = SaveClock(Config(checkpoint=Checkpoint(every_steps=0), logging=logging))
    now = 1e9
    assert not never.due(1000)

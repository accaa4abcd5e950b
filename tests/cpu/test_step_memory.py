"""A step is over when malloc has its memory back, and nothing is waited for in vain."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

from distil_jax.cpu import StepMemory


class Looks:
    """A malloc that holds so much, MiB, at one look after the other; what was seen, and how often it was trimmed."""

    def __init__(self, held: Iterable[int]) -> None:
        self._left, self.seen, self.trims = iter(held), [], 0

    def in_use(self) -> int:
        self.seen.append(next(self._left))
        return self.seen[-1] << 20

    def trim(self) -> None:
        self.trims += 1


def take_steps(count: int, looks: Looks, **options: Any) -> None:
    memory = StepMemory(True, looks.in_use, looks.trim, **options)
    memory.compiled()
    for _ in range(count):
        memory.begin()
        memory.wait(0.0)


def test_a_step_is_over_when_its_memory_is_back() -> None:
    looks = Looks([100, 500, 101, 102, 900, 300, 103, 900])
    take_steps(2, looks, last_seconds=60.0)
    # Before the first and until there was little more; before the second, as the first may leave something; and so on.
    assert looks.seen == [100, 500, 101, 102, 900, 300, 103]


def test_what_steps_leave_is_no_memory_to_wait_for() -> None:
    looks = Looks([100, 100, 100, 107, 114, 121, 128])
    take_steps(5, looks)
    assert len(looks.seen) == 7


def test_what_never_comes_back_is_not_waited_for() -> None:
    looks = Looks(itertools.chain([100, 100, 100], itertools.repeat(900)))
    start = time.monotonic()
    take_steps(2, looks)
    assert 0.05 <= time.monotonic() - start < 30


def test_memory_that_something_else_took_and_gave_back_is_looked_up_again() -> None:
    # A save takes 700 during the second step and gives it back during the third; the fourth's 600 are not taken for it.
    looks = Looks([100, 100, 100, 800, 800, 100, 100, 700, 100, 100])
    take_steps(4, looks, last_seconds=0.0)
    assert looks.seen == [100, 100, 100, 800, 800, 100, 100, 700]


def test_holes_are_given_back_after_compiling_and_after_a_first_step() -> None:
    looks = Looks(itertools.repeat(100))
    take_steps(3, looks)
    assert looks.trims == 2


def test_without_glibc_nothing_is_waited_for() -> None:
    memory = StepMemory(True, lambda: None, lambda: None, last_seconds=600.0)
    memory.compiled()
    memory.begin()
    start = time.monotonic()
    memory.wait(1000.0)
    assert time.monotonic() - start < 10


def test_what_is_not_active_does_nothing() -> None:
    looks = Looks([])
    memory = StepMemory(False, looks.in_use, looks.trim)
    memory.compiled()
    memory.begin()
    memory.wait(1.0)
    assert not looks.seen and not looks.trims

"""Items that a thread reads: their order, their end, and whether the next one is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from distil_jax.data.rows import Arriving
from distil_jax.errors import UserError


def test_what_arrives_keeps_its_order_and_ends_as_its_source_does() -> None:
    def source() -> Iterator[int]:
        yield from range(10_000)
        raise UserError("line 10001: not JSON")

    arriving = Arriving(source())
    assert [next(arriving) for _ in range(10_000)] == [*range(10_000)]
    assert arriving.is_there(60)
    for _ in range(2):
        with pytest.raises(UserError, match="line 10001"):
            next(arriving)
    assert [*Arriving([])] == []


def test_nothing_is_there_while_the_source_waits() -> None:
    go = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go.wait()
        yield 2

    arriving = Arriving(source())
    assert arriving.is_there(60) and arriving.is_there(60) and next(arriving) == 1
    assert not arriving.is_there(0.01)
    go.set()
    assert arriving.is_there(60) and [*arriving] == [2]
    assert arriving.is_there(0), "the end is there, too"

from __future__ import annotations

import pytest

from distil_jax.benchmark.timing import noise_note, summarise


def test_the_spread_is_half_the_quartiles_distance_over_the_median() -> None:
    timing = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (timing.median, timing.spread) == (3.0, pytest.approx(1 / 3))
    assert summarise([9.0, 11.0]).spread == pytest.approx(0.1)
    assert summarise([2.0] * 5).spread == 0.0


def test_one_slow_round_of_many_is_no_noise_but_two_halves_are() -> None:
    assert not summarise([1.0, 1.0, 1.01, 1.0, 1.02, 9.0, 1.0]).noisy
    assert summarise([1.0, 2.0, 1.0, 2.0, 1.0, 2.0]).noisy


def test_noise_is_said_with_numbers() -> None:
    line = noise_note("packed", summarise([0.010, 0.012, 0.020]))
    assert line.startswith("packed: noisy") and "10.0 to 20.0 ms" in line and "5%" in line
    assert noise_note("packed", summarise([0.010, 0.0101])) == ""


def test_nothing_timed_is_an_error() -> None:
    with pytest.raises(ValueError, match="no round"):
        summarise([])

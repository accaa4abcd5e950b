"""Sequence numbers and positions of packed rows against counting token by token."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.corpus.sequences import sequence_numbers, sequence_positions

PAD, CLS, SEP, LENGTH = 0, 2, 3, 16

numbers_of = jax.jit(sequence_numbers, static_argnums=(1, 2))
positions_of = jax.jit(sequence_positions, static_argnums=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(2, 9), max_size=5), min_size=4, max_size=4))
def test_as_counted_token_by_token(rows: list[list[int]]) -> None:
    ids = np.full((4, LENGTH), PAD, np.int32)
    numbers, positions = np.zeros_like(ids), np.zeros_like(ids)
    for row, sizes in enumerate(rows):
        place = 0
        for number, size in enumerate(sizes, 1):
            if place + size > LENGTH:
                break
            ids[row, place : place + size] = [CLS, *range(10, 10 + size - 2), SEP]
            numbers[row, place : place + size] = number
            positions[row, place : place + size] = range(size)
            place += size
    found_numbers, found_positions = np.asarray(numbers_of(ids, CLS, PAD)), np.asarray(positions_of(ids, CLS))
    np.testing.assert_array_equal(found_numbers, numbers)
    np.testing.assert_array_equal(found_positions[ids != PAD], positions[ids != PAD])
    assert found_numbers.dtype == found_positions.dtype == np.int32
    assert (found_positions >= 0).all() and (found_positions < LENGTH).all()  # padding too indexes the table

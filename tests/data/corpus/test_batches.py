"""The order of rows: shuffled again each epoch, the same for any number of processes, entered at any step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distil_jax.data.corpus.batches import batch_rows, stream_order, training_batches


class Numbered:
    """A corpus whose row i is [i, i, i]."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def read(self, rows: np.ndarray) -> np.ndarray:
        assert rows.dtype == np.int64
        return np.repeat(rows[:, None], 3, axis=1).astype(np.uint16)


def batches(num_rows: int, batch_size: int, steps: range, part: slice | None = None, **options: Any) -> list[list[int]]:
    """Row numbers of each batch."""
    corpus: Any = Numbered(num_rows)
    settings: dict[str, Any] = {"seed": 3, "part": part or slice(0, batch_size), **options}
    found = list(training_batches(corpus, batch_size=batch_size, steps=steps, **settings))
    assert all(ids.dtype == np.uint16 and ids.shape[1] == 3 for ids in found)
    return [ids[:, 0].tolist() for ids in found]


def test_every_epoch_is_another_permutation() -> None:
    order: Any = stream_order(50, seed=1)
    epochs = [[order[50 * epoch + i] for i in range(50)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(50))}) == 5


def test_the_order_depends_on_the_seed_alone() -> None:
    one, again, other = (batches(40, 8, range(10), seed=seed) for seed in (3, 3, 4))
    assert one == again != other


def test_neighbours_of_one_epoch_are_not_neighbours_in_the_next() -> None:
    order = stream_order(200, seed=0)
    pairs = [{(order[200 * epoch + i], order[200 * epoch + i + 1]) for i in range(199)} for epoch in range(2)]
    assert len(pairs[0] & pairs[1]) < 10
    assert len(pairs[0] & {(i, i + 1) for i in range(199)}) < 10


def test_batches_are_the_stream_cut_up() -> None:
    order = stream_order(30, seed=3)
    assert batches(30, 8, range(12)) == [[order[8 * step + i] for i in range(8)] for step in range(12)]
    assert batch_rows(order, 5, 8, slice(2, 4)).tolist() == [order[42], order[43]]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_the_parts_of_one_global_batch(processes: int) -> None:
    size = 8 // processes
    parts = [batches(30, 8, range(6), slice(p * size, (p + 1) * size)) for p in range(processes)]
    joined = [[row for part in step for row in part] for step in zip(*parts, strict=True)]
    assert joined == batches(30, 8, range(6))


def test_any_step_can_be_entered_directly() -> None:
    whole = batches(30, 8, range(20))
    for start in (1, 7, 19, 20):
        assert batches(30, 8, range(start, 20)) == whole[start:]


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_a_corpus_smaller_than_a_batch(num_rows: int) -> None:
    found = [row for batch in batches(num_rows, 8, range(7)) for row in batch]
    for epoch in range(len(found) // num_rows):
        assert sorted(found[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_reading_ahead_changes_nothing() -> None:
    assert batches(30, 8, range(15), threads=1, ahead=1) == batches(30, 8, range(15), threads=4, ahead=16)


def test_a_fault_while_reading_is_not_swallowed() -> None:
    class Broken(Numbered):
        def read(self, rows: np.ndarray) -> np.ndarray:
            raise OSError("the disk is gone")

    corpus: Any = Broken(30)
    with pytest.raises(Exception, match="the disk is gone"):
        list(training_batches(corpus, batch_size=8, seed=0, steps=range(3), part=slice(0, 8)))

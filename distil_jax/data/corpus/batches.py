"""From a step number to its batch.

The step number is the whole data state. Row i of the endless stream is row `order(i)` of the corpus, shuffled again
each epoch; batch n is rows [n*B, (n+1)*B) of the stream, and a process reads its own part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from distil_jax.data.corpus.tokens import Corpus


def stream_order(num_rows: int, seed: int) -> grain.MapDataset:
    """Endless random-access order of corpus rows: every epoch is another permutation of range(num_rows)."""
    return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


def batch_rows(order: grain.MapDataset, step: int, batch_size: int, part: slice) -> np.ndarray:
    """Corpus rows of the given part of global batch `step` -> [rows of the part] int64."""
    first = step * batch_size
    return np.fromiter((order[first + i] for i in range(part.start, part.stop)), np.int64, part.stop - part.start)


def training_batches(
    corpus: Corpus,
    *,
    batch_size: int,
    seed: int,
    steps: range,
    part: slice,
    complete: Callable[[int, np.ndarray], Any] = lambda step, ids: ids,
    threads: int = 2,
    ahead: int = 4,
) -> Iterator[Any]:
    """Batches of `steps` in order, read and decoded ahead on threads.

    Args:
        corpus: the token shards.
        batch_size: rows of one global batch.
        seed: of the order.
        steps: which batches.
        part: the rows [start, stop) of each global batch that this process feeds to its devices.
        complete: (step, ids) -> the batch; called on the reader threads.
        threads: reader threads.
        ahead: batches held ready.

    Yields:
        ids [part, L], uint16 or uint32 as on disk, or what `complete` makes of them.
    """
    order = stream_order(corpus.num_rows, seed)

    def load(step: int) -> Any:
        return complete(int(step), corpus.read(batch_rows(order, int(step), batch_size, part)))

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))

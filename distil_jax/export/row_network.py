"""A network on all devices for rows that come one after the other: chunks in their order, batches of few shapes.

Within a chunk rows are sorted by length, so that batches hold little padding; batches have few shapes, so that few
programs are compiled. Results leave in the order in which the rows came.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from distil_jax.data.rows import Arriving
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer
from distil_jax.models import EncoderInputs, SentenceEncoder, TaskModel
from distil_jax.tasks import Encoded
from distil_jax.training.inference import LENGTHS, make_network, outputs_of_rows, usual_length, usual_rows
from distil_jax.training.parallel import make_devices

T = TypeVar("T")
Compute = Callable[[EncoderInputs], Any]  # inputs [B, L] of a batch -> what the model gives of it
_SIZES = (1, 8, 64, 512)  # rows of a batch that is not full
_CHUNK_BATCHES = 64  # batches whose rows are sorted together: the ends of their lengths are then a small part
_CHUNK_CHARACTERS = 1 << 22  # long texts in smaller chunks, so that memory is bounded
_PATIENCE_SECONDS = 0.05  # for the next row of a pipe, before those at hand are computed without it


class RowNetwork:
    """A model on all devices of this process."""

    def __init__(
        self,
        model: TaskModel | SentenceEncoder,
        params: Any,
        tokenizer: Tokenizer,
        limit: int,
        compute: Compute | None = None,
    ) -> None:
        """Puts the parameters on the devices; nothing is compiled yet.

        Args:
            model: what is computed.
            params: of NumPy arrays.
            tokenizer: of the model.
            limit: tokens of the longest row.
            compute: gives what `model` gives, in its place.

        Raises:
            UserError: rows longer than the model, a tokenizer larger than it, or one of several processes.
        """
        if jax.process_count() > 1:
            raise UserError(f"predictions are made by one process, and this is one of {jax.process_count()}; start one")
        encoder = model.config
        if limit > encoder.max_length:
            raise UserError(f"max_length = {limit}: the model has {encoder.max_length} positions; lower it")
        if tokenizer.vocab_size > encoder.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {encoder.vocab_size}")
        self._limit = limit
        self._devices = make_devices("shard_map")
        self._compute = compute or make_network(self._devices, model, params)
        self._shapes: tuple[Sequence[int], Sequence[int]] | None = None

    def fix_shapes(self, lengths: Sequence[int], sizes: Sequence[int]) -> None:
        """Compute batches of these lengths and numbers of rows alone from now on, and compile their programs.

        Args:
            lengths: tokens; those above the longest row are left out.
            sizes: rows, rounded up to a multiple of the devices.
        """
        lengths = sorted({min(length, self._limit) for length in (*lengths, self._limit)})
        sizes = sorted({self._batch_rows(1, size) for size in sizes})
        self._shapes = lengths, sizes
        for shape in itertools.product(sizes, lengths):
            zeros: Any = np.zeros(shape, np.int32)
            jax.block_until_ready(self._compute(EncoderInputs(zeros, zeros + 1, token_type_ids=zeros)))

    def chunks(self, items: Iterable[T], characters: Callable[[T], int], batch_size: int) -> Iterator[list[T]]:
        """The items in their order, those of a few batches at a time.

        The first chunk is one batch, so that the first results come soon; later ones are larger.

        Args:
            items: no more are taken than the chunk needs that is worked on, and of those that are `Arriving` only what
                is there.
            characters: of an item.
            batch_size: rows of a batch over all devices; 0: chosen by the kind of device and the rows' lengths.
        """
        pending, rows = iter(items), self._batch_rows(LENGTHS[0], batch_size)
        most = rows * _CHUNK_BATCHES
        while chunk := _taken(pending, rows, characters):
            yield chunk
            rows = min(4 * rows, most)

    def outputs(
        self,
        encoded: Encoded,
        batch_size: int,
        own: Callable[[int, np.ndarray], np.ndarray] = lambda _, values: values,
    ) -> list[np.ndarray]:
        """What the model gives of each row, by `own` (see `outputs_of_rows`)."""
        return outputs_of_rows(encoded, self.plan(encoded, batch_size), self._compute, own)

    def plan(self, encoded: Encoded, batch_size: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """(rows, length, batch size) of each batch, the longest rows first."""
        order = np.argsort(-encoded.lengths, kind="stable")
        choices = max(encoded.choices, 1)
        first = 0
        while first < len(order):
            longest = int(encoded.lengths[order[first]])
            if self._shapes is not None:
                lengths, sizes = self._shapes
                size = next((size for size in sizes if size >= len(order) - first), sizes[-1])
                yield order[first : first + size], next(one for one in lengths if one >= longest), size
                first += size
                continue
            length = usual_length(longest, self._limit, alone=len(order) == 1)
            size = self._batch_rows(length, batch_size, choices)
            rows = order[first : first + size]
            if len(rows) < size:
                fitting = (self._batch_rows(length, one) for one in _SIZES if one >= len(rows))
                size = min(size, *fitting) if len(rows) <= _SIZES[-1] else size
            yield rows, length, size
            first += len(rows)

    def _batch_rows(self, length: int, given: int, choices: int = 1) -> int:
        """Rows of a full batch of this length, a multiple of the number of devices."""
        count = self._devices.count
        rows = given or usual_rows(self._devices, length * choices)
        return -(-rows // count) * count


def _taken(pending: Iterator[T], rows: int, characters: Callable[[T], int]) -> list[T]:
    """The next items, at most `rows` of them, fewer where they are long or not there yet."""
    found: list[T] = []
    count = 0
    for item in itertools.islice(pending, rows):
        found.append(item)
        count += characters(item)
        late = isinstance(pending, Arriving) and not pending.is_there(_PATIENCE_SECONDS)
        if late or count > _CHUNK_CHARACTERS:
            break
    return found

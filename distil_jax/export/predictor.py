"""Predictions for rows that come one after the other, as many as there are: a chunk at a time, in their order.

Within a chunk rows are sorted by length, so that batches hold little padding; batches have few shapes, so that few
programs are compiled. Predictions leave in the order in which the rows came.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Arriving
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer
from distil_jax.models import EncoderConfig, TaskHead
from distil_jax.tasks import Encoded, Example, Predicted, Prediction, PredictionOptions, Reading, Request, kind_of
from distil_jax.training.inference import LENGTHS, logits_of_rows, make_network, usual_length, usual_rows
from distil_jax.training.parallel import make_devices

_SIZES = (1, 8, 64, 512)  # rows of a batch that is not full
_CHUNK_BATCHES = 64  # batches whose rows are sorted together: the ends of their lengths are then a small part
_CHUNK_CHARACTERS = 1 << 22  # long texts in smaller chunks, so that memory is bounded
_PATIENCE_SECONDS = 0.05  # for the next row of a pipe, before those at hand are predicted without it


@dataclasses.dataclass
class PredictionSummary:
    """What a user reads at the end: how many predictions were made, and how often a note was made on a row."""

    rows: int = 0
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, notes: Iterable[str]) -> None:
        """Adds notes of the form "12 examples cut to 128 tokens", as `Encoded` has them."""
        for note in notes:
            count, _, what = note.partition(" ")
            self.notes[what] += int(count.replace(",", ""))


class Predictor:
    """A fine-tuned model with its tokenizer, on all devices, ready for rows.

    Attributes:
        head: what it predicts.
        settings: lengths, windows and spans.
        reading: which columns of a row it reads.
        options: what is said about a row, unless a call says otherwise.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        head: TaskHead,
        params: Any,
        tokenizer: Tokenizer,
        *,
        settings: TaskSettings,
        reading: Reading,
        options: PredictionOptions | None = None,
        dtype: str = "float32",
    ) -> None:
        """Puts the parameters on the devices; nothing is compiled yet.

        Args:
            encoder: sizes.
            head: of the task.
            params: {"encoder", "task_head"} of NumPy arrays.
            tokenizer: of the model.
            settings: max_length (0: as in fine-tuning), doc_stride, max_question_length, max_answer_length, n_best.
            reading: which columns are read.
            options: what is said about a row.
            dtype: what is computed in.

        Raises:
            UserError: rows longer than the model, a tokenizer larger than it, or one of several processes.
        """
        if jax.process_count() > 1:
            raise UserError(f"predictions are made by one process, and this is one of {jax.process_count()}; start one")
        self._kind = kind_of(head)
        self._limit = self._kind.row_length(settings)
        if self._limit > encoder.max_length:
            raise UserError(f"max_length = {self._limit}: the model has {encoder.max_length} positions; lower it")
        if tokenizer.vocab_size > encoder.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {encoder.vocab_size}")
        self.head, self.settings, self.reading, self.options = head, settings, reading, options or PredictionOptions()
        self._tokenizer = tokenizer
        self._devices = make_devices("shard_map")
        self._compute = make_network(self._devices, encoder, head, params, dtype)

    def chunks(
        self,
        requests: Iterable[Request],
        *,
        batch_size: int = 0,
        options: PredictionOptions | None = None,
        summary: PredictionSummary | None = None,
    ) -> Iterator[list[tuple[Request, Prediction]]]:
        """Rows with their predictions, a chunk after the other, in the order of the rows.

        The first chunk is one batch, so that the first predictions come soon; later ones are larger.

        Args:
            requests: no more are taken than the chunk needs that is worked on, and of those that
                are `Arriving` only what is there.
            batch_size: rows of a batch over all devices; 0: chosen by the kind of device and the rows' lengths.
            options: what is said about a row; None: `self.options`.
            summary: counts rows and notes.

        Raises:
            UserError: the model's numbers are not finite.
        """
        pending, rows = iter(requests), self._batch_rows(LENGTHS[0], batch_size)
        most, chosen = rows * _CHUNK_BATCHES, options or self.options
        while chunk := _taken(pending, rows, self._kind.characters):
            encoded, found = self._predictions([request.example for request in chunk], batch_size, chosen)
            if summary is not None:
                summary.rows += len(chunk)
                summary.add(encoded.notes)
            yield [*zip(chunk, found, strict=True)]
            rows = min(4 * rows, most)

    def _batch_rows(self, length: int, given: int, choices: int = 1) -> int:
        """Rows of a full batch of this length, a multiple of the number of devices."""
        count = self._devices.count
        rows = given or usual_rows(self._devices, length * choices)
        return -(-rows // count) * count

    def _predictions(
        self, examples: list[Example], batch_size: int, options: PredictionOptions
    ) -> tuple[Encoded, list[Prediction]]:
        encoded = self._kind.encode(self._tokenizer, examples, self.settings)
        predicted = Predicted(self._logits(encoded, batch_size), encoded, examples, self.settings)
        return encoded, self._kind.decode(predicted, self.head, options)

    def _logits(self, encoded: Encoded, batch_size: int) -> list[np.ndarray]:
        """Of each row, without those of the padding."""
        return logits_of_rows(self.head, encoded, self._plan(encoded, batch_size), self._compute)

    def _plan(self, encoded: Encoded, batch_size: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """(rows, length, batch size) of each batch, the longest rows first."""
        order = np.argsort(-encoded.lengths, kind="stable")
        choices = max(encoded.choices, 1)
        first = 0
        while first < len(order):
            longest = int(encoded.lengths[order[first]])
            length = usual_length(longest, self._limit, alone=len(order) == 1)
            size = self._batch_rows(length, batch_size, choices)
            rows = order[first : first + size]
            if len(rows) < size:
                fitting = (self._batch_rows(length, one) for one in _SIZES if one >= len(rows))
                size = min(size, *fitting) if len(rows) <= _SIZES[-1] else size
            yield rows, length, size
            first += len(rows)


def _taken(pending: Iterator[Request], rows: int, count: Callable[[Any], int]) -> list[Request]:
    """The next requests, at most `rows` of them, fewer where they are long or not there yet."""
    found: list[Request] = []
    characters = 0
    for request in itertools.islice(pending, rows):
        found.append(request)
        characters += count(request.example)
        late = isinstance(pending, Arriving) and not pending.is_there(_PATIENCE_SECONDS)
        if late or characters > _CHUNK_CHARACTERS:
            break
    return found

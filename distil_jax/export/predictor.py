"""Predictions for rows that come one after the other, as many as there are: a chunk at a time, in their order."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Faults, Row, open_rows
from distil_jax.errors import UserError
from distil_jax.export.row_network import Compute, RowNetwork
from distil_jax.hf import Tokenizer
from distil_jax.models import EncoderConfig, TaskHead, TaskModel
from distil_jax.tasks import (
    Encoded,
    Example,
    Predicted,
    Prediction,
    PredictionOptions,
    Reading,
    Request,
    kind_of,
    read_requests,
)
from distil_jax.training.inference import own_logits


@dataclasses.dataclass
class PredictionSummary:
    """What a user reads at the end: how many predictions were made, and how often a note was made on a row."""

    rows: int = 0
    blank: int = 0  # lines of plain text that were left out
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, notes: Iterable[str]) -> None:
        """Adds notes of the form "12 examples cut to 128 tokens", as `Encoded` has them."""
        for note in notes:
            count, _, what = note.partition(" ")
            self.notes[what] += int(count.replace(",", ""))

    def add_blank(self) -> None:
        """Counts a line of plain text that was left out."""
        self.blank += 1

    @property
    def texts(self) -> tuple[str, ...]:
        """A line for each kind of note, with its count."""
        blank = (f"{self.blank:,} blank line{'s' * (self.blank > 1)} left out",) * bool(self.blank)
        return (*blank, *(f"{count:,} {what}" for what, count in self.notes.items()))


class Predictor:
    """A fine-tuned model with its tokenizer, on all devices, ready for rows.

    Attributes:
        head: what it predicts.
        settings: lengths, windows and spans.
        reading: which columns of a row it reads.
        options: what is said about a row, unless a call says otherwise.
        network: what computes.
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
        compute: Compute | None = None,
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
            compute: in place of JAX, see `RowNetwork`.

        Raises:
            UserError: rows longer than the model, a tokenizer larger than it, or one of several processes.
        """
        self._kind = kind_of(head)
        limit = self._kind.row_length(settings)
        self.network = RowNetwork(TaskModel(encoder, head, np.dtype(dtype)), params, tokenizer, limit, compute)
        self.head, self.settings, self.reading, self.options = head, settings, reading, options or PredictionOptions()
        self._tokenizer = tokenizer

    def __call__(self, rows: Iterable[Any], **options: Any) -> list[dict[str, Any]]:
        """Predictions of rows, in their order. Arguments and errors as of `stream`."""
        return [*self.stream(rows, **options)]

    def stream(
        self,
        rows: Iterable[Any],
        *,
        batch_size: int = 0,
        options: PredictionOptions | None = None,
        reading: Reading | None = None,
        on_error: str = "stop",
        summary: PredictionSummary | None = None,
    ) -> Iterator[dict[str, Any]]:
        """As `distil_jax.export.predict`, which says what the arguments are."""
        if isinstance(rows, Mapping) and self._are_columns(rows):
            rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        if isinstance(rows, str | Mapping):
            raise UserError("rows: is one row, not rows; put it into a list")
        named = hasattr(rows, "itertuples") or hasattr(rows, "column_names")  # of pandas and `datasets`
        numbered = open_rows(rows) if named else (Row(number + 1, number, row) for number, row in enumerate(rows))
        asked = read_requests(numbered, reading or self.reading, faults_of(on_error, 'on_error="skip"'), "rows", "row")
        for chunk in self.chunks(asked, batch_size=batch_size, options=options, summary=summary):
            yield from ({"id": request.id, **prediction} for request, prediction in chunk)

    def _are_columns(self, values: Mapping[Any, Any]) -> bool:
        """Whether a dict is one of columns: all lists, and those of words are lists of lists."""
        if not values or not all(isinstance(column, list) for column in values.values()):
            return False
        if len({len(column) for column in values.values()}) > 1:
            raise UserError("rows: columns of different lengths; give as many values of each")
        return not self._kind.tagged or all(isinstance(one, list) for one in next(iter(values.values())))

    def chunks(
        self,
        requests: Iterable[Request],
        *,
        batch_size: int = 0,
        options: PredictionOptions | None = None,
        summary: PredictionSummary | None = None,
    ) -> Iterator[list[tuple[Request, Prediction]]]:
        """Rows with their predictions, a chunk after the other, in the order of the rows.

        Args:
            requests: taken as `RowNetwork.chunks` has it.
            batch_size: as there.
            options: what is said about a row; None: `self.options`.
            summary: counts rows and notes.

        Raises:
            UserError: the model's numbers are not finite.
        """
        chosen, characters = options or self.options, self._kind.characters
        for chunk in self.network.chunks(requests, lambda request: characters(request.example), batch_size):
            encoded, found = self._predictions([request.example for request in chunk], batch_size, chosen)
            if summary is not None:
                summary.rows += len(chunk)
                summary.add(encoded.notes)
            yield [*zip(chunk, found, strict=True)]

    def predict(self, examples: list[Any]) -> list[Prediction]:
        """What is said of examples of the model's kind, in their order."""
        return self._predictions(examples, 0, self.options)[1]

    def _predictions(
        self, examples: list[Example], batch_size: int, options: PredictionOptions
    ) -> tuple[Encoded, list[Prediction]]:
        encoded = self._kind.encode(self._tokenizer, examples, self.settings)
        logits = self.network.outputs(encoded, batch_size, own_logits(self.head, encoded))
        predicted = Predicted(logits, encoded, examples, self.settings)
        return encoded, self._kind.decode(predicted, self.head, options)


def faults_of(on_error: str, remedy: str = "--on-error skip") -> Faults:
    """What "stop" and "skip" mean; `remedy` is how a user says "skip". Raises UserError for anything else."""
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error = {on_error!r}: must be stop or skip")
    return Faults(on_error == "skip", remedy)

"""`distil-jax embed`: rows of a file or pipe in, a vector each out: .npy, Parquet or JSON Lines."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import EmbedArguments
from distil_jax.data.rows import Arriving, RowWriter, with_predictions, writable_format
from distil_jax.errors import UserError
from distil_jax.export.embedder import load_embedder
from distil_jax.export.predictions import PIPE, Written, refuse_own_input
from distil_jax.export.predictor import PredictionSummary, faults_of
from distil_jax.runs import replacing, require_writable
from distil_jax.tasks import KINDS, Request, read_requests, rows_to_predict, usual_reading, with_columns

Chunk = list[tuple[np.ndarray, Request]]
COLUMN = "embedding"
_DIGITS = 9  # of a number in JSON: all that float32 has
_NPY = ".npy"
_ENDINGS = (_NPY, ".parquet", ".jsonl")


class VectorFile:
    """Vectors [N, H] float32 in one .npy file, a few at a time: its header has space for any N."""

    def __init__(self, path: Path, width: int) -> None:
        self._file, self._width, self._rows = path.open("wb"), width, 0
        self._write_header()

    def write(self, vectors: Sequence[np.ndarray]) -> None:
        """Adds some more."""
        self._rows += len(vectors)
        self._file.write(np.stack(vectors).astype("<f4").tobytes())

    def close(self) -> None:
        """Ends the file with the number of its rows."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._rows, self._width)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def embed_rows(given: EmbedArguments, show: Callable[[str], None] = lambda _: None) -> Written:
    """Load the model, write the vector of every row, in the order of the rows; a chunk of them is held at a time.

    The output's ending names its format. JSON Lines, also on standard output, hold a row's id and vector; Parquet holds
    the columns of the input, then that of the vectors; .npy the vectors alone. A file is complete or not there.

    Args:
        given: the command's arguments.
        show: takes a line of progress after each chunk.

    Raises:
        UserError: as `load_embedder`; rows that cannot be read, or a file that cannot be written.
    """
    _check_output(given)  # before the model is loaded
    embedder = load_embedder(
        given.model,
        pooling=given.pooling,
        normalize=given.normalize,
        max_length=given.max_length,
        dtype=given.dtype,
        step=None if given.step < 0 else given.step,
    )
    prompt = given.prompt or None
    embedder.prompt_text(prompt)
    faults, notes = faults_of(given.on_error), PredictionSummary()
    reading = with_columns(usual_reading(KINDS["classes"], False), given.text_column)
    source = sys.stdin.buffer if given.input == PIPE else Path(given.input)
    rows = rows_to_predict(source, reading, faults, separator=given.separator)
    found = read_requests(rows, reading, faults, rows.name, rows.unit, notes.add_blank)
    first = [*itertools.islice(found, 1)]
    if not first:
        raise UserError(f"{rows.name}: holds no text; check it")
    texts: Any = ((_text(request), request) for request in itertools.chain(first, found))
    if given.input == PIPE:
        texts = Arriving(texts)  # answers what the pipe holds before it waits for more
    started = time.monotonic()
    with _writer(given.output, embedder.width) as write:
        for chunk in embedder.chunks(texts, batch_size=given.batch_size, prompt=prompt):
            write(chunk)
            notes.rows += len(chunk)
            show(Written(notes.rows, time.monotonic() - started).text)
    return Written(notes.rows, time.monotonic() - started, (*rows.notes, *notes.texts, *faults.notes))


def _text(request: Request) -> str:
    example: Any = request.example  # of the kind "classes"
    return example.text


def _check_output(given: EmbedArguments) -> None:
    refuse_own_input(given.output, given.input)
    if given.output == PIPE:
        return
    path = Path(given.output).expanduser()
    if path.suffix not in _ENDINGS:
        raise UserError(f"--output {given.output}: vectors are written as {', '.join(_ENDINGS)}")
    require_writable("--output", path)


@contextlib.contextmanager
def _writer(output: str, width: int) -> Iterator[Callable[[Chunk], None]]:
    """A function that writes a chunk; the file gets its name once all is written."""
    if output == PIPE:
        yield partial(_write_rows, RowWriter(sys.stdout))
        return
    path = Path(output).expanduser()
    with replacing(path) as temporary:
        if path.suffix == _NPY:
            with contextlib.closing(VectorFile(temporary, width)) as vectors:
                yield lambda chunk: vectors.write([vector for vector, _ in chunk])
        else:
            with contextlib.closing(RowWriter(temporary, writable_format(path))) as rows:
                yield partial(_write_rows, rows)


def _write_rows(writer: RowWriter, chunk: Chunk) -> None:
    writer.write([_row(writer.format, vector, request) for vector, request in chunk])


def _row(format: str, vector: np.ndarray, request: Request) -> dict[str, Any]:
    """A row of the output."""
    if format == "parquet":
        return with_predictions(request.values, {COLUMN: vector})
    return {"id": request.id, COLUMN: [float(f"{number:.{_DIGITS}g}") for number in vector.tolist()]}

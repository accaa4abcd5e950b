"""`distil-jax predict`: rows of the command line, files and pipes in, JSON Lines, CSV, TSV or Parquet out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distil_jax.config import PredictArguments
from distil_jax.data.rows import (
    PLAIN,
    Arriving,
    Faults,
    Format,
    Row,
    RowStream,
    RowWriter,
    with_predictions,
    writable_format,
)
from distil_jax.errors import UserError
from distil_jax.export.predictor import PredictionSummary, Predictor, faults_of
from distil_jax.export.task_models import load_predictor
from distil_jax.runs import replacing
from distil_jax.tasks import (
    Prediction,
    PredictionOptions,
    Reading,
    Request,
    read_requests,
    rows_to_predict,
    with_columns,
)

PIPE = "-"


@dataclasses.dataclass(frozen=True)
class Written:
    """Rows written, seconds taken, and notes for the user."""

    rows: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All of it in one line."""
        rate = self.rows / max(self.seconds, 1e-9)
        unit = "row" if self.rows == 1 else "rows"
        return "; ".join([f"{self.rows:,} {unit} in {self.seconds:.1f} s, {rate:,.1f} rows/s", *self.notes])


def predict_rows(given: PredictArguments, show: Callable[[str], None] = lambda _: None) -> Written:
    """Load the model, predict what is given, write the predictions.

    Args:
        given: the command's arguments.
        show: takes a line of progress after each chunk.

    Raises:
        UserError: as `load_predictor` and `write_predictions`.
    """
    _format(given.output)  # before the model is loaded
    step = None if given.step < 0 else given.step
    predictor = load_predictor(given.model, step=step, max_length=given.max_length, dtype=given.dtype)
    return write_predictions(predictor, given, show)


def write_predictions(
    predictor: Predictor, given: PredictArguments, show: Callable[[str], None] = lambda _: None
) -> Written:
    """Predict all rows and write each chunk as soon as it is there.

    A file gets its name once all rows are in it: a run that fails leaves an earlier result as it was. A pipe gets each
    chunk at once. The output's ending names its format. It holds the columns of the input, then those of the
    prediction; in JSON Lines a row's id comes first. Standard output holds ids and predictions alone.

    Args:
        predictor: the model, which `given.model` need not name.
        given: rows, file to write, and options.
        show: takes a line of progress after each chunk.

    Raises:
        UserError: rows that cannot be read, or a file that cannot be written.
    """
    reading = with_columns(predictor.reading, given.text_column, given.pair_column, given.endings_columns)
    options, faults, summary = _options(predictor, given), faults_of(given.on_error), PredictionSummary()
    refuse_own_input(given.output, given.input)
    format = _format(given.output)
    rows = _rows(given, reading, faults, predictor)
    found = read_requests(rows, reading, faults, rows.name, rows.unit, summary.add_blank)
    # A mistake in the input's name must not cost the results of an earlier call, so read before opening the output.
    first = [*itertools.islice(found, 1)]
    if not first and not faults.count:
        raise UserError(f"{rows.name}: holds no row to predict; check it")
    asked = itertools.chain(first, found)
    if given.input == PIPE:
        asked = Arriving(asked)  # answers what the pipe holds before it waits for more
    started = time.monotonic()
    with _writer(given.output, format) as writer:
        for chunk in predictor.chunks(asked, batch_size=given.batch_size, options=options, summary=summary):
            writer.write([_written(request, prediction, given, format) for request, prediction in chunk])
            show(Written(summary.rows, time.monotonic() - started).text)
    notes = (*rows.notes, *summary.texts, *faults.notes)
    return Written(summary.rows, time.monotonic() - started, notes)


@contextlib.contextmanager
def _writer(output: str, format: Format) -> Iterator[RowWriter]:
    """What writes the rows: a file under a temporary name until the block ends, anything else in place."""
    path = Path(output).expanduser()
    with contextlib.ExitStack() as stack:
        if output == PIPE:
            target: Any = sys.stdout
        elif path.exists() and not path.is_file():  # a named pipe, a device; a folder is refused
            target = output
        else:
            target = stack.enter_context(replacing(path))
        yield stack.enter_context(contextlib.closing(RowWriter(target, format)))


def _format(output: str) -> Format:
    return "jsonl" if output == PIPE else writable_format(output)


def _written(request: Request, prediction: Prediction, given: PredictArguments, format: Format) -> dict[str, Any]:
    """A row of the output: on standard output and of typed rows without the columns of the input."""
    if given.output == PIPE or not given.input:
        return {"id": request.id, **prediction}
    row = with_predictions(request.values, prediction)
    return {"id": request.id, **row} if format == "jsonl" else row


def _options(predictor: Predictor, given: PredictArguments) -> PredictionOptions:
    """The predictor's options, with those given."""
    own = predictor.options
    no_answer = given.no_answer or own.no_answer
    if given.null_threshold is not None and not no_answer:
        raise UserError("--null-threshold: this model always gives an answer; allow none with --no-answer")
    threshold = own.null_threshold if given.null_threshold is None else given.null_threshold
    return dataclasses.replace(
        own, threshold=given.threshold, n_best=given.n_best, no_answer=no_answer, null_threshold=threshold
    )


def _rows(given: PredictArguments, reading: Reading, faults: Faults, predictor: Predictor) -> RowStream:
    """The rows that are given.

    Raises:
        UserError: no rows are given, or two sources, or the rows do not fit the model.
    """
    typed = [f"--{name}" for name in ("text", "pair", "question", "context", "endings") if getattr(given, name)]
    if given.input and typed:
        raise UserError(f"--input and {typed[0]} are both given; give one of the two")
    if given.input:
        source = sys.stdin.buffer if given.input == PIPE else Path(given.input)
        format = None if given.input_format == "auto" else given.input_format
        separator = given.separator or predictor.settings.separator
        return rows_to_predict(source, reading, faults, predictor.head.labels, format, separator)
    _check_typed(given, reading, typed)
    return RowStream("the command line", "row", iter(_typed_rows(given, reading)))


def _check_typed(given: PredictArguments, reading: Reading, typed: Sequence[str]) -> None:
    wanted = [*reading.kind.flags, *(["--pair"] if reading.pairs else [])]
    missing = [flag for flag in wanted if flag not in typed]
    if missing:
        raise UserError(
            f"nothing to predict: {' and '.join(missing)} not given; give {' and '.join(wanted)}, or --input"
        )
    allowed = [*wanted, *(["--pair"] if reading.kind.optional_pair and reading.pairs is None else [])]
    strange = [flag for flag in typed if flag not in allowed]
    if strange:
        raise UserError(f"{strange[0]} does not fit this model, which reads {' and '.join(wanted)}; leave it out")
    if given.pair and len(given.pair) != len(given.text):
        raise UserError(f"{len(given.text)} --text and {len(given.pair)} --pair; give as many of both")
    if given.endings and len(given.text) > 1:
        raise UserError(f"{len(given.text)} --text with --endings; give one, or a file with --input")


def _typed_rows(given: PredictArguments, reading: Reading) -> list[Row]:
    columns = reading.columns
    seconds = given.pair or ((given.context,) if given.context else ())
    endings = {columns.endings[-1][0]: list(given.endings)} if given.endings else {}
    rows: list[dict[Any, Any]] = []
    for text, second in itertools.zip_longest(given.text or (given.question,), seconds):
        pair = {} if second is None else {columns.pair[0]: second}
        rows.append({columns.text[0]: text, **pair, **endings} if pair or endings else {PLAIN: text})
    return [Row(number + 1, number, row) for number, row in enumerate(rows)]


def refuse_own_input(output: str, source: str) -> None:
    """Raise UserError where the file to write is the one that is read."""
    if PIPE in (output, source) or not source:
        return
    with contextlib.suppress(OSError):
        if Path(output).expanduser().samefile(Path(source).expanduser()):
            raise UserError(f"--output {output}: is the file that is read; choose another one")

"""What `distil-jax predict` reads and writes: rows of the command line, files and pipes in, JSON Lines out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from distil_jax.config import PredictArguments
from distil_jax.data.rows import PLAIN, Arriving, Faults, Row, json_line
from distil_jax.errors import UserError
from distil_jax.export.predictor import faults_of, load_predictor
from distil_jax.tasks.answers import AnswerOptions
from distil_jax.tasks.files import rows_to_predict
from distil_jax.tasks.predict import Predictor, Tally
from distil_jax.tasks.requests import Reading, requests, with_columns

PIPE = "-"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is to be predicted: rows of the command line, or a file or pipe.

    Attributes:
        texts, pairs: texts (prompt of a choice), and as many second ones (start of the endings) or none.
        question, context: of a question.
        endings: of a choice.
        path: a file, or "-" for standard input.
    """

    texts: Sequence[str] = ()
    pairs: Sequence[str] = ()
    question: str = ""
    context: str = ""
    endings: Sequence[str] = ()
    path: str = ""

    def rows(self, reading: Reading, faults: Faults, labels: Sequence[str] = ()) -> tuple[Iterable[Row], str, str]:
        """The rows, what they come from, and what their places count there; `labels` are the model's.

        Raises:
            UserError: nothing is given, too much is, or it does not fit the model.
        """
        spoken = [
            flag
            for flag, value in (
                ("--text", self.texts),
                ("--pair", self.pairs),
                ("--question", self.question),
                ("--context", self.context),
                ("--endings", self.endings),
            )
            if value
        ]
        if self.path and spoken:
            raise UserError(f"--input and {spoken[0]} are both given; give one of the two")
        if self.path:
            source = sys.stdin.buffer if self.path == PIPE else Path(self.path)
            stream = rows_to_predict(source, reading, faults, labels)
            return stream, stream.name, stream.unit
        self._check(reading, spoken)
        return self._spoken_rows(reading), "the command line", "row"

    def _check(self, reading: Reading, spoken: Sequence[str]) -> None:
        needed = {"question": ["--question", "--context"], "choice": ["--text", "--endings"]}
        wanted = needed.get(reading.kind, ["--text"])
        if reading.pairs:
            wanted = [*wanted, "--pair"]
        missing = [flag for flag in wanted if flag not in spoken]
        if missing:
            raise UserError(
                f"nothing to predict: {' and '.join(missing)} not given; give {' and '.join(wanted)}, or --input"
            )
        may = [*wanted, *(["--pair"] if reading.kind == "sequence" and reading.pairs is None else [])]
        strange = [flag for flag in spoken if flag not in may]
        if strange:
            raise UserError(f"{strange[0]} does not fit this model, which reads {' and '.join(wanted)}; leave it out")
        if self.pairs and len(self.pairs) != len(self.texts):
            raise UserError(f"{len(self.texts)} --text and {len(self.pairs)} --pair; give as many of both")
        if reading.kind == "choice" and len(self.texts) > 1:
            raise UserError(f"{len(self.texts)} --text with --endings; give one, or a file with --input")

    def _spoken_rows(self, reading: Reading) -> list[Row]:
        columns = reading.columns
        if reading.kind == "question":
            return [Row(1, 0, {columns.text[0]: self.question, columns.pair[0]: self.context})]
        if reading.kind == "choice":
            start = {columns.pair[0]: self.pairs[0]} if self.pairs else {}
            return [Row(1, 0, {columns.text[0]: self.texts[0], columns.endings[-1][0]: list(self.endings), **start})]
        if self.pairs:
            both = zip(self.texts, self.pairs, strict=True)
            values = [{columns.text[0]: text, columns.pair[0]: pair} for text, pair in both]
        else:
            values = [{PLAIN: text} for text in self.texts]
        return [Row(number + 1, number, row) for number, row in enumerate(values)]


@dataclasses.dataclass(frozen=True)
class Done:
    """What was written, and what a user should hear about it."""

    rows: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it in one line."""
        rate = self.rows / max(self.seconds, 1e-9)
        unit = "row" if self.rows == 1 else "rows"
        return "; ".join([f"{self.rows:,} {unit} in {self.seconds:.1f} s, {rate:,.1f} rows/s", *self.notes])


def write_predictions(
    predictor: Predictor,
    inputs: Inputs,
    output: str,
    *,
    reading: Reading | None = None,
    options: AnswerOptions | None = None,
    batch_size: int = 0,
    on_error: str = "stop",
    show: Callable[[str], None] = lambda _: None,
) -> Done:
    """Predict all rows and write a JSON object a line, each chunk as soon as it is there.

    Args:
        predictor: the model.
        inputs: what is predicted.
        output: a file, which is replaced once a row was read, or "-" for standard output.
        reading: which columns are read; None: the predictor's.
        options: what is said about a row; None: the predictor's.
        batch_size: rows of a batch; 0: chosen.
        on_error: "stop" or "skip", for rows that can't be used.
        show: is told how far it is after each chunk.

    Raises:
        UserError: rows that can't be read, or a file that can't be written.
    """
    reading, faults, tally = reading or predictor.reading, faults_of(on_error), Tally()
    _check_output(output, inputs.path)
    rows, name, unit = inputs.rows(reading, faults, predictor.head.labels)
    found = requests(rows, reading, faults, name, unit)
    # Read before the output is opened: what an earlier call has written must outlive a mistake in the input's name.
    first = [*itertools.islice(found, 1)]
    if not first and not faults.count:
        raise UserError(f"{name}: holds no row to predict; check it")
    asked = itertools.chain(first, found)
    if inputs.path == PIPE:
        asked = Arriving(asked)  # what is written to the pipe is answered before more of it comes
    started = time.monotonic()
    with _opened(output) as file:
        # A terminal that takes no Unicode gets the escapes of JSON.
        plain = "utf" not in (file.encoding or "utf-8").lower()
        for chunk in predictor.chunks(asked, batch_size=batch_size, options=options, tally=tally):
            file.write("".join(f"{json_line(result, plain)}\n" for result in chunk))
            file.flush()
            show(Done(tally.rows, time.monotonic() - started, ()).text)
    notes = [f"{count:,} {what}" for what, count in tally.notes.items()]
    if faults.count:
        notes.append(f"{faults.count} {'row' if faults.count == 1 else 'rows'} skipped (first: {faults.first})")
    return Done(tally.rows, time.monotonic() - started, tuple(notes))


def predict_rows(given: PredictArguments, show: Callable[[str], None] = lambda _: None) -> Done:
    """The command `predict`: load the model, predict what is given, write it.

    Raises:
        UserError: as `load_predictor` and `write_predictions`.
    """
    step = None if given.step < 0 else given.step
    predictor = load_predictor(given.model, step=step, max_length=given.max_length, dtype=given.dtype)
    options = dataclasses.replace(
        predictor.options,
        threshold=given.threshold,
        n_best=given.n_best,
        no_answer=given.no_answer or predictor.options.no_answer,
    )
    if given.null_threshold is not None:
        if not options.no_answer:
            raise UserError("--null-threshold: this model always gives an answer; allow none with --no-answer")
        options = dataclasses.replace(options, null_threshold=given.null_threshold)
    return write_predictions(
        predictor,
        Inputs(given.text, given.pair, given.question, given.context, given.endings, given.input),
        given.output,
        reading=with_columns(predictor.reading, given.text_column, given.pair_column, given.endings_columns),
        options=options,
        batch_size=given.batch_size,
        on_error=given.on_error,
        show=show,
    )


def _check_output(output: str, source: str) -> None:
    if PIPE in (output, source) or not source:
        return
    with contextlib.suppress(OSError):
        if Path(output).expanduser().samefile(Path(source).expanduser()):
            raise UserError(f"--output {output}: is the file that is read; choose another one")


@contextlib.contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == PIPE:
        yield sys.stdout
        return
    try:
        file = Path(output).expanduser().open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another file") from error
    with file:
        yield file

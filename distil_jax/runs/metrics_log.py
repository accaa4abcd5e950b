"""The metrics of a run: metrics.jsonl, which holds all that was measured, and TensorBoard files made from it.

Neither JAX nor TensorBoard is imported before the first value is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from distil_jax.errors import UserError, naming, one_line
from distil_jax.runs.files import write_atomically
from distil_jax.runs.manifest import OPENING_FILE

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
EVALUATION = "validation"  # the kind of rows with held-out measures
_CONSTANT = ("first_step_seconds", "compile_seconds")  # one value a start, which makes no curve


class _Pending(NamedTuple):
    step: int
    kind: str
    metrics: dict[str, Any]
    timing: dict[str, float]


class MetricsWriter:
    """Rows of metrics, a JSON line each and the same as TensorBoard scalars.

    A row is {"step": 100, "kind": "train", "metrics": {...}, "timing": {...}}: `metrics` is a function of the run's
    configuration alone, everything that depends on the clock is in `timing`. Values may be arrays that are still being
    computed: a row is converted when the next one arrives, so that writing never makes the device wait. A value that is
    not finite becomes null.

    Call `flush` before a checkpoint of the same step is saved: then a run that is killed and resumed ends with the same
    rows as one that was not. An OSError of a full disk names the file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        restored_step: int | None = None,
        tensorboard: bool = True,
        wandb: bool = False,
        enabled: bool = True,
    ) -> None:
        """Open the metrics of the run in `folder`, which is made if missing.

        Args:
            folder: folder of the run.
            restored_step: step of the checkpoint that the run continues from. Later rows are dropped: they will be
                written again. None: a run from the start, which drops all.
            tensorboard: write event files too, into `folder`/tensorboard.
            wandb: log to Weights & Biases too, as its own variables (WANDB_MODE, WANDB_PROJECT) say.
            enabled: false in all processes but the first: nothing is written.

        Raises:
            UserError: the folder can't be written, or wandb is not installed or cannot start.
        """
        self._pending: list[_Pending] = []
        self._folder = folder
        self._file: TextIO | None = None
        self._events: _EventFile | None = None
        self._wandb: _WandbRun | None = None
        if not enabled:
            return
        path = folder / METRICS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                last = -1 if restored_step is None else restored_step
                write_atomically(path, "".join(f"{line}\n" for line, row in _rows(path) if row["step"] <= last))
            self._file = path.open("a", encoding="utf-8")
            if tensorboard:
                first = 0 if restored_step is None else restored_step + 1
                self._events = _EventFile(folder / TENSORBOARD_FOLDER, first)
        except OSError as error:
            raise UserError(f"{path}: not writable ({error.strerror}); choose another run.output") from None
        self._wandb = _WandbRun(folder) if wandb else None

    def write(
        self, step: int, metrics: Mapping[str, Any], kind: str = "train", timing: Mapping[str, float] | None = None
    ) -> None:
        """Take one row; those taken before are written now.

        Args:
            step: optimiser steps done.
            metrics: scalars by name: numbers, NumPy or JAX arrays of shape (), possibly still being computed.
            kind: what the row is about: "train", "validation"; the first part of its TensorBoard names.
            timing: what was measured with a clock, such as tokens per second.
        """
        if self._file is None:
            return
        for value in metrics.values():
            if hasattr(value, "copy_to_host_async"):
                value.copy_to_host_async()
        row = _Pending(step, kind, dict(metrics), {"time": round(time.time(), 3), **(timing or {})})
        self._write_pending()
        self._pending.append(row)

    @property
    def enabled(self) -> bool:
        """Whether anything is written."""
        return self._file is not None

    def flush(self) -> None:
        """Wait for the values of all rows taken and bring them onto the disk."""
        self._write_pending()
        if self._file is not None:
            with naming(self._folder / METRICS_FILE):
                self._file.flush()
                os.fsync(self._file.fileno())
        if self._events is not None:
            with naming(self._folder / TENSORBOARD_FOLDER):
                self._events.flush()

    def close(self) -> None:
        """Flush and close the files."""
        try:
            self.flush()
        finally:
            for file in (self._file, self._events, self._wandb):
                with contextlib.suppress(OSError):  # flushing has said it
                    if file is not None:
                        file.close()
            self._file = self._events = self._wandb = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, []
        for step, kind, metrics, timing in pending:
            assert self._file is not None
            numbers = {name: _number(value) for name, value in metrics.items()}
            times = {name: _number(value) for name, value in timing.items()}
            row = {"step": step, "kind": kind, "metrics": numbers, "timing": times}
            with naming(self._folder / METRICS_FILE):
                self._file.write(json.dumps(row, allow_nan=False) + "\n")
                self._file.flush()
            shown = {**numbers, **{name: value for name, value in times.items() if name != "time"}}
            scalars = {f"{kind}/{name}": value for name, value in shown.items()}
            if self._events is not None:
                with naming(self._folder / TENSORBOARD_FOLDER):
                    self._events.write(step, scalars, timing["time"])
            if self._wandb is not None:
                self._wandb.write(step, scalars)


class _EventFile:
    """A TensorBoard event file, written at once; tensorboardX's own writer has a queue that its flush leaves alone."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file; TensorBoard forgets what older ones in the folder say of `first_step` and later."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

        folder.mkdir(exist_ok=True)
        # The name has the second in it, which alone does not tell a quick restart from the run before.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first_step}")
        started = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=started))
        self._opening = folder.parent / OPENING_FILE
        self._texts: dict[str, str] = {}

    def write(self, step: int, scalars: Mapping[str, float | None], seconds: float) -> None:
        """Write `scalars` as measured at the time `seconds`; None stands for a value that is not finite.

        What makes no curve is a text: the run's opening table, and values that are the same in every row.
        """
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboardX.summary import scalar

        if not self._texts and self._opening.is_file():
            table = self._opening.read_text(encoding="utf-8", errors="replace")
            self._write_text("run", "".join(f"    {line}\n" for line in table.splitlines()), step, seconds)
        for name, value in scalars.items():
            if name.rpartition("/")[2] in _CONSTANT:
                self._write_text(name, "not finite" if value is None else f"{value:.6g}", step, seconds)
                continue
            summary = scalar(name, math.nan if value is None else value)
            self._writer.write_event(Event(wall_time=seconds, step=step, summary=summary))
        self._writer.flush()

    def _write_text(self, name: str, text: str, step: int, seconds: float) -> None:
        """Write a text where it is new."""
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboardX.summary import text as text_summary

        if self._texts.get(name) != text:
            self._texts[name] = text
            self._writer.write_event(Event(wall_time=seconds, step=step, summary=text_summary(name, text)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandbRun:
    """A run of Weights & Biases, found again by the folder's path where it continues."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where wandb is not installed, or cannot start (no login, no network)."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                'logging.wandb = true: needs wandb; pip install "distil_jax[wandb]", or leave it out'
            ) from None
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(id=name, name=folder.name, dir=str(folder), resume="allow")
        except Exception as error:  # of wandb, which has several classes
            raise UserError(
                f"logging.wandb = true: wandb cannot start ({one_line(error, 200)}); run `wandb login`, "
                "set WANDB_MODE=offline, or leave it out"
            ) from error

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Log what is finite."""
        self._run.log({name: value for name, value in scalars.items() if value is not None}, step=step)

    def close(self) -> None:
        self._run.finish()


def read_metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order, all or those of one kind; a torn last line is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    return [row for _, row in _rows(path) if kind is None or row["kind"] == kind]


def read_evaluations(folder: Path, last: int) -> dict[int, dict[str, float]]:
    """The held-out measures of a run by step, up to step `last`; one that is not finite is NaN."""
    return {
        row["step"]: {name: math.nan if value is None else value for name, value in row["metrics"].items()}
        for row in read_metrics(folder, EVALUATION)
        if row["step"] <= last
    }


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the process was killed while it wrote this line
        if isinstance(row, dict) and {"step", "kind", "metrics"} <= row.keys() and type(row["step"]) is int:
            yield line, row


def _number(value: Any) -> int | float | None:
    """A scalar as the shortest JSON number that gives it back in its own precision."""
    import numpy as np

    scalar = np.asarray(value)
    if scalar.dtype.kind in "biu":
        return int(scalar)
    number = float(str(scalar[()])) if scalar.dtype == np.float32 else float(scalar)
    return number if math.isfinite(number) else None

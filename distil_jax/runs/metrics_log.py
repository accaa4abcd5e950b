"""What a run tells about itself: metrics.jsonl and TensorBoard files, floating-point work done, progress.

Neither JAX nor TensorBoard is imported before the first value is written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO

from distil_jax.errors import UserError, naming
from distil_jax.runs.progress import PrepareDisplay, Progress

__all__ = [
    "MetricsWriter",
    "PrepareDisplay",
    "Progress",
    "distillation_flops",
    "encoder_flops",
    "head_flops",
    "peak_flops",
    "pretraining_flops",
    "read_metrics",
    "utilisation",
]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


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

    Where storage takes nothing more, OSError names the file.

    Call `flush` before a checkpoint of the same step is saved: then a run that is killed and resumed ends with the same
    rows as one that was not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        restored_step: int | None = None,
        pending: str = "",
        tensorboard: bool = True,
        enabled: bool = True,
    ) -> None:
        """Open the metrics of the run in `folder`, which is made if missing.

        Args:
            folder: folder of the run.
            restored_step: step of the checkpoint the run goes on from, whose later rows are dropped, since they will be
                written again; None: a run from the start, which drops all.
            pending: the kind of rows of that very step that will be written again; "": none.
            tensorboard: write event files too, into `folder`/tensorboard.
            enabled: false in all processes but the first: nothing is written.

        Raises:
            UserError: the folder can't be written.
        """
        self._pending: list[_Pending] = []
        self._folder = folder
        self._file: TextIO | None = None
        self._events: _EventFile | None = None
        if not enabled:
            return
        path = folder / METRICS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_rows_after(path, -1 if restored_step is None else restored_step, pending)
            self._file = path.open("a", encoding="utf-8")
            if tensorboard:
                first = 0 if restored_step is None else restored_step + 1
                self._events = _EventFile(folder / TENSORBOARD_FOLDER, first)
        except OSError as error:
            raise UserError(f"{path}: not writable ({error.strerror}); choose another run.output") from None

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
            for file in (self._file, self._events):
                with contextlib.suppress(OSError):  # flushing has said it
                    if file is not None:
                        file.close()
            self._file = self._events = None

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
            if self._events is not None:
                shown = {**numbers, **{name: value for name, value in times.items() if name != "time"}}
                with naming(self._folder / TENSORBOARD_FOLDER):
                    self._events.write(step, {f"{kind}/{name}": value for name, value in shown.items()}, timing["time"])


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

    def write(self, step: int, scalars: Mapping[str, float | None], seconds: float) -> None:
        """Write `scalars` as measured at the time `seconds`; None stands for a value that is not finite."""
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            summary = scalar(name, math.nan if value is None else value)
            self._writer.write_event(Event(wall_time=seconds, step=step, summary=summary))
        self._writer.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order, all or those of one kind; a torn last line is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    return [row for _, row in _rows(path) if kind is None or row["kind"] == kind]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the process was killed while it wrote this line
        if isinstance(row, dict) and {"step", "kind", "metrics"} <= row.keys() and type(row["step"]) is int:
            yield line, row


def _drop_rows_after(path: Path, step: int, pending: str) -> None:
    """Keep the rows up to those of `step`, without those of `step` of the kind `pending`."""
    if not path.is_file():
        return
    rows = ((line, row) for line, row in _rows(path) if row["step"] <= step)
    kept = "".join(f"{line}\n" for line, row in rows if (row["step"], row["kind"]) != (step, pending))
    if kept.encode() != path.read_bytes():
        new = path.with_suffix(".new")
        new.write_text(kept, encoding="utf-8")
        new.replace(path)


def _number(value: Any) -> int | float | None:
    """A scalar as the shortest JSON number that gives it back in its own precision."""
    import numpy as np

    scalar = np.asarray(value)
    if scalar.dtype.kind in "biu":
        return int(scalar)
    number = float(str(scalar[()])) if scalar.dtype == np.float32 else float(scalar)
    return number if math.isfinite(number) else None


class Sizes(Protocol):
    """The sizes of an encoder that its work depends on."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def encoder_flops(sizes: Sizes, sequence_length: int) -> float:
    """Forward operations of the layers, per token: a multiplication and an addition are two.

    A layer has 4 H^2 (query, key, value, output) + 2 H F (feed-forward) weights, each used once a token, and two
    products, [L, H] with [H, L] (scores) and [L, L] with [L, H] (values): 2 L H multiplications a token. Embeddings,
    LayerNorms, softmax and activations are left out, as is usual (PaLM, arXiv 2204.02311, appendix B).
    """
    width, inner = sizes.hidden_size, sizes.intermediate_size
    return 2.0 * sizes.num_layers * (4 * width**2 + 2 * width * inner + 2 * sequence_length * width)


def head_flops(sizes: Sizes) -> float:
    """Forward operations of the MLM head (H x H transform, H x V decoder), per token."""
    return 2.0 * (sizes.hidden_size**2 + sizes.hidden_size * sizes.vocab_size)


def pretraining_flops(
    sizes: Sizes, sequence_length: int, *, freeze_encoder: bool = False, head_share: float = 1.0
) -> float:
    """Operations per token of an MLM training step: backward is twice forward; a frozen encoder has no backward.

    `head_share` is the share of the tokens that go through the head.
    """
    encoder = encoder_flops(sizes, sequence_length) * (1 if freeze_encoder else 3)
    return encoder + 3 * head_share * head_flops(sizes)


def distillation_flops(teacher: Sizes, student: Sizes, sequence_length: int, *, head_share: float = 1.0) -> float:
    """Operations per token of a distillation step: teacher forward, student forward and backward."""
    forward = encoder_flops(teacher, sequence_length) + head_share * head_flops(teacher)
    return forward + pretraining_flops(student, sequence_length, head_share=head_share)


# Dense peaks in operations a second, from the vendors' data sheets, one device as JAX counts them: (bfloat16, float32).
# NVIDIA float32 is TF32, which XLA uses by default; TPUs multiply float32 in bfloat16 passes by default.
_PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA B200": (2250e12, 1125e12),
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100 NVL": (835e12, 417e12),
    "NVIDIA H100": (989e12, 494e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA L40S": (362e12, 183e12),
    "NVIDIA L4": (121e12, 60e12),
    "NVIDIA A10G": (70e12, 35e12),
    "TPU v2": (22.5e12, 22.5e12),
    "TPU v3": (61.5e12, 61.5e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6": (918e12, 918e12),
    "TPU v6e": (918e12, 918e12),
}


def peak_flops(device_kind: str, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> float | None:
    """Dense operations a second of a device by JAX's `device_kind`; None where it is not known (every CPU)."""
    known = [name for name in _PEAKS if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return _PEAKS[max(known, key=len)][0 if dtype == "bfloat16" else 1] if known else None


def utilisation(
    tokens_per_second: float,
    flops_per_token: float,
    devices: int,
    device_kind: str,
    dtype: Literal["bfloat16", "float32"],
) -> float | None:
    """Model FLOP utilisation, 0 to 1: work the formula asks for over what all devices could do; None if not known."""
    peak = peak_flops(device_kind, dtype)
    return None if peak is None else tokens_per_second * flops_per_token / (devices * peak)

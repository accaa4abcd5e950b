"""Rows to train on whose labels are not known, read as `predict` reads its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Faults
from distil_jax.errors import UserError
from distil_jax.tasks.data.report import SetReport
from distil_jax.tasks.examples import Example, TaskSpec
from distil_jax.tasks.requests import read_requests, reading_of, rows_to_predict

ROLE = "unlabelled"


def read_unlabelled(settings: TaskSettings, spec: TaskSpec, labels: Collection[str]) -> tuple[list[Example], SetReport]:
    """The examples of the file task.unlabelled, in its order, and what is said of them.

    Args:
        settings: the section [task], whose columns are looked for, then the usual ones.
        spec: the task.
        labels: its classes or tags, by which columns of words are recognised.

    Raises:
        UserError: the file cannot be read, a row of it cannot be used, or none can.
    """
    flags = ("", "", "") if spec.published else ("task.text", "task.pair", "task.endings")
    reading = dataclasses.replace(reading_of(settings, spec.kind), flags=flags)
    faults = Faults(settings.on_error == "skip")
    path = Path(settings.unlabelled).expanduser()
    stream = rows_to_predict(path, reading, faults, labels, separator=settings.separator)
    examples: list[Example] = []
    columns: dict[str, dict[str, None]] = {"text": {}, "pair": {}}
    for request in read_requests(stream, reading, faults, stream.name, stream.unit):
        examples.append(request.example)
        for what, names in (("text", reading.columns.text), ("pair", reading.columns.pair)):
            columns[what] |= dict.fromkeys([name for name in names if name in request.values][:1])
    if not examples:
        why = f" (first: {faults.first})" if faults.first else ""
        raise UserError(f"{path}: holds no row that can be used{why}; check task.unlabelled")
    return examples, SetReport(
        role=ROLE,
        name=ROLE,
        source=stream.name,
        rows=len(examples) + faults.count,
        left_out=faults.count,
        columns={what: " or ".join(names) for what, names in columns.items() if names},
        labels={},
        examples=len(examples),
        notes=tuple(stream.notes),
    )

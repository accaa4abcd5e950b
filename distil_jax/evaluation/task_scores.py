"""Scores of a fine-tuned model, measured as `finetune` measures its own, without training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.config import Config, TaskSettings, require
from distil_jax.errors import UserError, one_line, writing
from distil_jax.evaluation.report import class_table
from distil_jax.evaluation.study_report import measure_title, read_json, score_name
from distil_jax.export import ReadyModel, read_ready
from distil_jax.hf import has_names, match_head, order_note
from distil_jax.models import TaskHead, TaskModel
from distil_jax.runs import Watchdog, announce, fingerprint, first_process_in, unfinished, write_atomically
from distil_jax.tables import markdown
from distil_jax.tasks import (
    SCORE,
    Encoded,
    Logits,
    TaskData,
    TaskSpec,
    kind_of,
    load_task,
    task_spec,
    validation_measures,
)
from distil_jax.training.inference import make_predictor
from distil_jax.training.parallel import Devices, make_devices
from distil_jax.training.task_models import check_lengths, check_vocabulary
from distil_jax.training.task_result import RESULT_FILE, label_of_test, labelled_tests, measured, measures_on

_MOST_ROWS, _MOST_COLUMNS = 30, 8  # classes in a table on a terminal


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """The measures of a model on a task, details of each set's classes, and notes for the user.

    The main process writes files.
    """

    data: TaskData
    measures: Mapping[str, float]
    details: Mapping[str, Any]
    notes: tuple[str, ...]
    is_main: bool


def score_model(config: Config, rows: Mapping[Any, Any] | None = None) -> TaskScores:
    """Measure the task model `model.initial` on all validation sets and labelled test sets of a task.

    Every example counts once, on any number of devices. Lengths, windows and the no-answer threshold are the model's
    own where the configuration leaves them at their default. Labels are matched by name, those of a model without
    names by number. With run.output, the scores are written there as `finetune` writes them.

    Args:
        config: with model.initial (run, model folder or hub id), task.*, and how and where it is computed.
        rows: rows in memory by role, as `load_task` takes them.

    Raises:
        UserError: model and task do not fit each other, there is nothing to measure, or run.output holds something
            else; before anything is compiled.
    """
    require(config, "model.initial", "task.name")
    with Watchdog(config) as watch:
        started = time.monotonic()
        spec = task_spec(config.task.name)
        ready = read_ready(config.model.initial, max_length=config.task.max_length)
        _check_kind(config.model.initial, ready.head, spec)
        settings, notes = _with_own(config.model.initial, config.task, ready.settings)
        config = dataclasses.replace(config, task=settings)
        data = load_task(settings, config.run.seed, _known(ready.head, settings, spec), rows)
        announce(data.report.lines())
        head, params, more = _fitted(config, ready, data)
        notes += more + _aside_notes(config, data)
        check_lengths(config, data, config.model.initial, ready.encoder)
        check_vocabulary(config.model.initial, ready.encoder, ready.tokenizer)
        if not data.validation and not labelled_tests(data):
            raise UserError(f"task {spec.name}: no data whose labels are known; give task.validation or a task.source")
        devices = make_devices(config.parallel.mapping, config.parallel.devices)
        ready = dataclasses.replace(ready, head=head, params=params)
        origin = _origin(config, data, ready)
        with first_process_in(partial(_output, config.run.output, origin)):
            measures, details, more = _measures(config, data, ready, devices, watch)
            found = TaskScores(data, measures, details, (*data.notes, *notes, *more), jax.process_index() == 0)
            if found.is_main and config.run.output:
                result = {**_result(config, data, found, time.monotonic() - started), **origin}
                write_atomically(Path(config.run.output) / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return found


def _check_kind(model: str, head: TaskHead, spec: TaskSpec) -> None:
    own, wanted = kind_of(head), spec.kind
    if own.head != wanted.head or not wanted.fits(head):
        raise UserError(
            f"{model}: has a head for {own.reads} ({own.outputs(head) or own.name}), but {spec.name} is a task of "
            f"{wanted.reads}; choose another task or model"
        )


def _with_own(model: str, given: TaskSettings, own: TaskSettings) -> tuple[TaskSettings, tuple[str, ...]]:
    """`given` with the model's own values where it is at its default, and notes on those that differ from it."""
    default = TaskSettings()
    names = task_spec(given.name).kind.settings
    kept = {name: getattr(own, name) for name in names if getattr(given, name) == getattr(default, name)}
    notes = tuple(
        f"task.{name} = {value}, as {model} has it" for name, value in kept.items() if value != getattr(default, name)
    )
    return dataclasses.replace(given, max_length=own.max_length, **kept), notes


def _known(head: TaskHead, settings: TaskSettings, spec: TaskSpec) -> tuple[str, ...]:
    """The model's classes where nothing else says which there are, as numbers if they have no names."""
    if spec.labels or settings.labels or not spec.kind.has_classes:
        return ()
    return head.labels if has_names(head.labels) else tuple(map(str, range(head.num_outputs)))


def _aside_notes(config: Config, data: TaskData) -> tuple[str, ...]:
    if not data.aside:
        return ()
    return (
        f"validation: drawn from the training data with run.seed = {config.run.seed}, so {config.model.initial} may "
        "have learned from it; give task.validation",
    )


def _fitted(config: Config, ready: ReadyModel, data: TaskData) -> tuple[TaskHead, dict[str, Any], tuple[str, ...]]:
    """The head with its outputs in the order of the task's labels, the parameters with it, and notes."""
    model, own, spec = config.model.initial, ready.head, data.spec
    if spec.kind.has_fixed_outputs:
        return own, ready.params, ()
    outputs = len(data.labels) or 1
    wanted = dataclasses.replace(own, labels=data.labels, num_outputs=outputs, problem=spec.kind.problem)
    # Numbers as names are those of outputs without names, in whatever order they come, unless it was given.
    numbered = not has_names(own.labels) and bool(data.labels) and all(label.isdecimal() for label in data.labels)
    mismatched = numbered and not config.task.labels and data.labels != tuple(map(str, range(outputs)))
    fitted = None if mismatched else match_head(own, wanted, ready.params)
    if fitted is None:
        raise UserError(
            f"{model}: has {spec.kind.outputs(own)}, but {spec.name} has "
            f"{spec.kind.outputs(wanted)}; choose another task or model, or name the "
            "classes of own data as the model does (task.labels, in the order of their numbers)"
        )
    unnamed = not has_names(own.labels) and len(data.labels) > 1 and (has_names(data.labels) or config.task.labels)
    return *fitted, (order_note(model, data.labels),) if unnamed else ()


def _origin(config: Config, data: TaskData, ready: ReadyModel) -> dict[str, Any]:
    """What decides the measures: equal origins have equal measures."""
    kind = data.spec.kind
    settings = {name: getattr(config.task, name) for name in kind.settings}
    settings |= {"max_length": kind.row_length(config.task), "compute_dtype": config.training.compute_dtype}
    return {
        "task": data.spec.name,
        "inputs": {"task": data.sha256, "model": fingerprint(ready.params), "tokenizer": ready.tokenizer.sha256},
        "settings": settings,
    }


@contextlib.contextmanager
def _output(output: str, origin: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder `output`, if one is wanted, unless it holds anything but a result of the same origin."""
    if output:
        folder = Path(output)
        with writing(f"run.output = {folder}"):
            names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
            if names - {RESULT_FILE, unfinished(Path(RESULT_FILE)).name}:
                raise UserError(f"run.output = {folder}: holds other files than a result; choose another folder")
            before = read_json(folder / RESULT_FILE) if RESULT_FILE in names else origin
            if any(before.get(name) != value for name, value in origin.items()):
                raise UserError(
                    f"run.output = {folder}: holds another result ({before.get('title')} of {before.get('model')}); "
                    "choose another folder or delete this one"
                )
            folder.mkdir(parents=True, exist_ok=True)
    yield


def _measures(
    config: Config, data: TaskData, ready: ReadyModel, devices: Devices, watch: Watchdog
) -> tuple[dict[str, float], dict[str, Any], tuple[str, ...]]:
    """Measures of all sets with known labels, and the notes of encoding them."""
    model = TaskModel(ready.encoder, ready.head, jnp.dtype(config.training.compute_dtype), config.training.attention)
    logits_of = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)
    placed = devices.replicate(ready.params)

    def predict(encoded: Encoded) -> Logits:
        return logits_of(placed, encoded, watch.go)

    held_out = {
        name: data.spec.kind.encode(ready.tokenizer, examples, config.task)
        for name, examples in data.validation.items()
    }
    with watch.preemption.interruptible():
        details: dict[str, Any] = {}
        measures = validation_measures(data, config.task, held_out, predict, details)
        tested = measures_on(data, config.task, labelled_tests(data), ready.tokenizer, predict)
    notes = (f"{name}: {note}" for name, encoded in held_out.items() for note in encoded.notes)
    details = {name: value for name, value in {**details, **tested.details}.items() if value}
    return {**measures, **tested.measures}, details, (*notes, *tested.notes)


def _result(config: Config, data: TaskData, found: TaskScores, seconds: float) -> dict[str, Any]:
    """As of a run of no steps."""
    return {
        **measured(config, data, found.measures),
        "step": 0,
        "steps": 0,
        "examples": sum(_rows(data).values()),
        "seconds": round(seconds, 1),
        "model": config.model.initial,
        "details": dict(found.details),
        "notes": list(found.notes),
    }


def _rows(data: TaskData) -> dict[str, int]:
    """The rows of the sets that are measured, by set."""
    tests = labelled_tests(data)
    named = {label_of_test(name, tests): examples for name, examples in tests.items()}
    return {name: len(examples) for name, examples in {**data.validation, **named}.items()}


def scores_table(found: TaskScores) -> str:
    """The measures as Markdown tables, x 1: of all rows, of each class, and the wrong predictions of classes."""
    first = score_name(found.data.spec, [name for name in found.measures if name != SCORE])
    sets = ", ".join(f"{name} {count:,}" for name, count in _rows(found.data).items())
    rows = [
        [f"score: {first}" if name == SCORE else measure_title(name), f"{value:.4f}"]
        for name, value in found.measures.items()
    ]
    tables = [markdown([found.data.spec.title, "measured"], [["rows", sets], *rows])]
    for name, details in found.details.items():
        tables += [f"{name}:", *details_tables(details, found.data.labels)]
    return "\n\n".join(tables)


def details_tables(details: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Markdown tables of what a result has of a set: classes, confusion matrix, the most confident errors."""
    header, rows = class_table(details, 4)
    tables = [markdown(header, rows[:_MOST_ROWS])] if rows else []
    confusion = details.get("confusion", [])
    if 0 < len(confusion) <= _MOST_COLUMNS:
        shown = [[name, *map(str, row)] for name, row in zip(labels, confusion, strict=True)]
        tables.append(markdown(["right class, predicted:", *(name[:12] for name in labels)], shown))
    if "calibration_error" in details:
        tables.append(f"calibration error (ECE): {details['calibration_error']:.4f}")
    if errors := details.get("errors"):
        lines = [
            f"  {one['probability']:.3f} {one['predicted']}, right is {one['label']}: {one_line(one['text'], 100)}"
            for one in errors
        ]
        tables.append("\n".join(["most confident errors:", *lines]))
    return tables

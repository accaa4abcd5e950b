"""The data of a task, whatever it came from: labels found, every row checked, validation set aside, examples drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.data.rows import some
from distil_jax.errors import UserError
from distil_jax.tasks.data.convert import Found, Reading, find_columns, to_examples
from distil_jax.tasks.data.gather import Part, gather
from distil_jax.tasks.data.labels import (
    NAMES,
    SetForm,
    found_classes,
    found_sets,
    found_tags,
    mark_entities,
    set_form,
    with_known,
)
from distil_jax.tasks.data.official import OFFICIAL
from distil_jax.tasks.data.splits import digest, draw, set_aside
from distil_jax.tasks.examples import Example, QuestionExample, TaskData, TaskSpec
from distil_jax.tasks.registry import TAG_METRICS, task_spec


def load_task(settings: TaskSettings, seed: int, known: tuple[str, ...] = ()) -> TaskData:
    """Reads a task's data: a known task's dataset or published files, or own files.

    Args:
        settings: the section [task].
        seed: decides what is set aside for validation and which examples are drawn; nothing else is random.
        known: classes of own data that a trained model has, in its order; those that the data lack are classes all the
            same, and nothing has to be learned from them.

    Returns:
        All examples in their order. `train` is empty where there is none to be had (GLUE's diagnostic set); whoever
        trains has to look. Labels that are kept secret are None.

    Raises:
        UserError: one line with file and place of what can't be read or used.
    """
    spec = task_spec(settings.name)
    _check_settings(settings, spec)
    parts = gather(settings, spec)
    found = [_columns(part, settings, spec) for part in parts]
    form = NAMES
    if spec.problem == "multi_label_classification":
        form = set_form(v for part, columns in zip(parts, found, strict=True) for v in _label_values(part, columns))
    written = _labels(settings, spec, parts, found, form, everywhere=bool(known))
    labels = with_known(written, known)
    notes = [f"labels are read as 0 or 1 for each of {form.width} classes"] if form.width else []
    if known and labels == known and not {*written} & {*labels}:
        notes.append(f"labels are numbers, taken for {some(labels)} in this order")
    sets: dict[str, dict[str, list[Example]]] = {"train": {}, "validation": {}, "test": {}}
    for part, columns in zip(parts, found, strict=True):
        reading = _reading(part, spec, labels, form)
        sets[part.role][part.name] = to_examples(part.table, columns, reading, part.faults)
        notes += _part_notes(part)
    if not known:
        _check_labels(labels, spec, parts)
    if spec.kind == "token" and not mark_entities(labels):
        spec = dataclasses.replace(spec, metrics=TAG_METRICS)
        notes.append(f"measured by tag accuracy: the tags {some(labels, 4)} mark no entities")
    train = next(iter(sets["train"].values()), [])
    aside = bool(train) and not sets["validation"]
    if aside:
        train, sets["validation"]["validation"] = _aside(train, settings, seed, notes)
    if 0 < settings.max_examples < len(train):
        notes.append(f"train: {settings.max_examples:,} of {len(train):,} examples drawn")
        train = draw(train, settings.max_examples, seed)
    notes += _overlap_notes(train, sets["validation"])
    sha256 = digest(labels, train, sets["validation"], sets["test"])
    return TaskData(spec, labels, train, sets["validation"], sets["test"], sha256, tuple(notes), aside)


def _check_settings(settings: TaskSettings, spec: TaskSpec) -> None:
    if spec.name in OFFICIAL:
        for name in ("id", "text", "pair", "label", "endings"):
            if getattr(settings, name) != getattr(TaskSettings(), name):
                raise UserError(f"task.{name} is for own data, the columns of {spec.name} are known; leave it away")
        if settings.labels and settings.labels != spec.labels:
            raise UserError(f"task.labels is for own data, the labels of {spec.name} are known; leave it away")
    if repeated := next((name for name in settings.labels if settings.labels.count(name) > 1), ""):
        raise UserError(f"task.labels names {repeated!r} twice; name every class once")
    if any(name != name.strip() for name in settings.labels):
        raise UserError("task.labels: a name begins or ends with a blank; take it away")
    if settings.labels and (spec.kind in ("question", "choice") or spec.problem == "regression"):
        raise UserError(f"task.labels: {spec.name} has no classes; leave it away")


def _columns(part: Part, settings: TaskSettings, spec: TaskSpec) -> Found:
    """The columns of one part; class names that are not the task's are forgotten, and the numbers hold."""
    if not part.table.rows:
        why = f" (first: {part.faults.first})" if part.faults.first else ""
        raise UserError(f"{part.table.name}: holds no row that can be used{why}; check the file")
    found = find_columns(part.table, part.columns, spec.kind, part.role)
    if settings.id and not found.id:
        columns = ", ".join(part.table.columns)
        raise UserError(f"{part.table.name}: no column {settings.id!r} (found: {columns}); check task.id")
    names = part.table.classes.get(found.label, ())
    if spec.kind == "choice" or (spec.labels and not {*names} <= {*spec.labels}):
        part.table.classes = {}
    return found


def _label_values(part: Part, found: Found) -> list[Any]:
    return [row.values.get(found.label) for row in part.table.rows] if found.label else []


def _labels(
    settings: TaskSettings,
    spec: TaskSpec,
    parts: Sequence[Part],
    found: Sequence[Found],
    form: SetForm,
    *,
    everywhere: bool,
) -> tuple[str, ...]:
    """Names of the classes: the task's, the given ones, the dataset's, or those found in the training data.

    Tags are looked for in the validation data too: a rare one may be missing in the smaller part of the two. All of
    them are looked for `everywhere` where nothing is learned.
    """
    if spec.labels or settings.labels:
        return spec.labels or settings.labels
    if spec.problem == "regression" or spec.kind in ("question", "choice"):
        return ()
    both = zip(parts, found, strict=True)
    labelled = [(part, columns) for part, columns in both if everywhere or part.role != "test"]
    for part, columns in labelled:
        if names := part.table.classes.get(columns.label):
            return names
    if spec.kind != "token" and not everywhere:
        labelled = labelled[:1]  # the training data, where there is some
    values = [value for part, columns in labelled for value in _label_values(part, columns)]
    if spec.kind == "token":
        tags = found_tags(values)
        if not tags and any(isinstance(row, list) and any(isinstance(tag, int) for tag in row) for row in values):
            raise UserError(f"{parts[0].table.name}: its tags are numbers; name them in order with task.labels")
        return tags
    return found_sets(values, form) if spec.problem.startswith("multi") else found_classes(values)


def _check_labels(labels: tuple[str, ...], spec: TaskSpec, parts: Sequence[Part]) -> None:
    """Raises UserError where one class is all there is; after the rows were checked, which may tell the reason."""
    needed = {"single_label_classification": 2, "multi_label_classification": 1}.get(spec.problem, 0)
    if len(labels) < needed and parts[0].role != "test":
        only = f"only the class {labels[0]!r}" if labels else "no class"
        raise UserError(f"{parts[0].table.name}: holds {only}, nothing can be learned from it; check task.label")


def _reading(part: Part, spec: TaskSpec, labels: tuple[str, ...], form: SetForm) -> Reading:
    official = OFFICIAL.get(spec.name)
    reading = Reading(spec.kind, spec.problem, labels, part.role, sets=form, unanswerable=spec.name != "squad")
    if official is None:
        return reading
    return dataclasses.replace(
        reading,
        limits=official.limits,
        iob2=official.iob2,
        blank_text=official.blank_text,
        unique_ids=spec.kind == "question",
    )


def _part_notes(part: Part) -> list[str]:
    title = part.role if part.name in (part.role, "test") else f"{part.role} ({part.name})"
    notes = []
    if part.table.flawed:
        notes.append(f"{title}: {part.table.flawed} rows with a wrong number of columns left out, published like that")
    if part.faults.count:
        rows = "row" if part.faults.count == 1 else "rows"
        notes.append(f"{title}: {part.faults.count} {rows} skipped (first: {part.faults.first})")
    return notes


def _aside(
    train: list[Example], settings: TaskSettings, seed: int, notes: list[str]
) -> tuple[list[Example], list[Example]]:
    rest, validation = set_aside(train, settings.validation_fraction, seed)
    share = f"{len(validation):,} of {len(train):,} training examples"
    notes.append(f"validation: {share} set aside ({settings.validation_fraction:.3g}), none was given")
    return rest, validation


def _overlap_notes(train: Sequence[Example], validation: dict[str, list[Example]]) -> list[str]:
    """SQuAD's parts are easily mixed up; what is said about questions that were trained on means nothing."""
    ids = {example.id for example in train if isinstance(example, QuestionExample)}
    notes = []
    for name, examples in validation.items():
        both = sum(example.id in ids for example in examples) if not _numbered(examples) else 0
        if both:
            notes.append(f"{name}: {both:,} of {len(examples):,} questions are training examples too")
    return notes


def _numbered(examples: Sequence[Example]) -> bool:
    """Whether ids are only row numbers, which say nothing across files."""
    return all(example.id.isdecimal() for example in examples)

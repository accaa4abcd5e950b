"""The data of a task from any source: labels found, every row checked, validation set aside, examples drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.data.rows import some
from distil_jax.errors import UserError
from distil_jax.tasks.data.classes import LabelledTable, LabelSource
from distil_jax.tasks.data.columns import Role
from distil_jax.tasks.data.convert import TakenColumns, find_columns, to_examples
from distil_jax.tasks.data.gather import Part, gather
from distil_jax.tasks.data.report import DataReport, SetReport, class_warnings, label_counts
from distil_jax.tasks.data.splits import digest, draw, set_aside
from distil_jax.tasks.examples import Example, TaskData, TaskSpec
from distil_jax.tasks.kinds import TaskKind
from distil_jax.tasks.kinds.token import TAG_METRICS
from distil_jax.tasks.metrics.tag_schemes import tag_scheme
from distil_jax.tasks.registry import task_spec
from distil_jax.tasks.unlabelled import read_unlabelled


def load_task(
    settings: TaskSettings, seed: int, known: tuple[str, ...] = (), rows: Mapping[Role, Any] | None = None
) -> TaskData:
    """Reads a task's data: a known task's dataset or published files, or own files.

    Args:
        settings: the section [task].
        seed: decides what is set aside for validation and which examples are drawn; nothing else is random.
        known: classes of own data that a trained model has, in its order; those that the data lack are classes all the
            same, and nothing has to be learned from them.
        rows: rows in memory, instead of the files of task.train, validation and test: a list of dicts, a pandas
            DataFrame or a `datasets.Dataset` by role.

    Returns:
        All examples in their order. `train` is empty where there is none to be had (GLUE's diagnostic set); whoever
        trains has to look. Labels that are kept secret are None.

    Raises:
        UserError: one line with file and place of what cannot be read or used.
    """
    spec = task_spec(settings.name)
    _check_settings(settings, spec)
    parts = gather(settings, spec, rows)
    _settle(parts)
    unread = [part.faults.count for part in parts]
    taken = [_columns(part, settings, spec) for part in parts]
    tables = [LabelledTable(part.role, part.table, columns) for part, columns in zip(parts, taken, strict=True)]
    rules = spec.kind.decide_labels(LabelSource(settings, spec, tables, known))
    if rules.indicators:
        taken = [dataclasses.replace(columns, label="", indicators=rules.indicators) for columns in taken]
    labels, notes, reports = rules.classes.names, [*rules.notes], []
    sets: dict[str, dict[str, list[Example]]] = {"train": {}, "validation": {}, "test": {}}
    published = {"unique_ids": spec.kind.unique_ids, **spec.published.rules} if spec.published else {}
    for part, columns, lost in zip(parts, taken, unread, strict=True):
        own = dataclasses.replace(rules, role=part.role, **published)
        examples = to_examples(part.table, columns, spec.kind, own, part.faults)
        sets[part.role][part.name] = examples
        reports.append(_set_report(part, columns, lost, examples, labels, spec.kind))
        notes += _part_notes(part, reports[-1].title)
    _settle(parts)
    if not known and parts:
        _check_labels(labels, spec, parts)
    scheme = ""
    if spec.kind.tagged:
        scheme = _scheme(spec, labels, sets)
        if not scheme:
            spec = dataclasses.replace(spec, metrics=TAG_METRICS)
            notes.append(f"measured by tag accuracy: the tags {some(labels, 4)} mark no entities")
    train = next(iter(sets["train"].values()), [])
    aside = bool(train) and not sets["validation"]
    if aside:
        whole, share = len(train), settings.validation_fraction
        train, validation = set_aside(train, share, seed, spec.kind)
        sets["validation"]["validation"] = validation
        counts = f"{len(validation):,} of {whole:,} training examples"
        notes.append(f"validation: {counts} set aside ({share:.3g}), none was given")
    if 0 < settings.max_examples < len(train):
        notes.append(f"train: {settings.max_examples:,} of {len(train):,} examples drawn")
        train = draw(train, settings.max_examples, seed)
    if spec.kind.unique_ids:
        notes += _overlap_notes(train, sets["validation"])
    unlabelled: list[Example] = []
    if settings.unlabelled:
        unlabelled, report = read_unlabelled(settings, spec, labels)
        reports.append(report)
        notes += [f"unlabelled: {report.left_out} rows skipped"] if report.left_out else []
    sha256 = digest(labels, train, sets["validation"], {**sets["test"], **({"": unlabelled} if unlabelled else {})})
    report = DataReport(
        task=spec.title,
        sets=tuple(reports),
        classes=labels,
        metrics=spec.metrics,
        scheme=scheme,
        warnings=class_warnings(labels, reports[0]) if parts else (),
        notes=tuple(notes),
    )
    found = (spec, labels, train, sets["validation"], sets["test"], sha256, tuple(notes))
    return TaskData(*found, aside, scheme, tuple(unlabelled), report)


def _settle(parts: Sequence[Part]) -> None:
    """Raises UserError for rows that cannot be used, where such rows are not left out."""
    for part in parts:
        part.faults.settle()


def _scheme(spec: TaskSpec, labels: Sequence[str], sets: dict[str, dict[str, list[Example]]]) -> str:
    """The tag scheme of all sentences whose tags are known; "" where tags mark no entities."""
    examples = [example for parts in sets.values() for part in parts.values() for example in part]
    tagged = [tags for example in examples if (tags := spec.kind.label_of(example)) is not None]
    sentences = [[str(labels[tag]) for tag in tags] for tags in tagged]
    return tag_scheme(sentences, labels)


def _check_settings(settings: TaskSettings, spec: TaskSpec) -> None:
    if spec.published:
        for name in ("id", "text", "pair", "label", "soft_labels", "endings", "sets_as"):
            if getattr(settings, name) != getattr(TaskSettings(), name):
                raise UserError(f"task.{name} is for own data, the columns of {spec.name} are known; leave it out")
        if settings.labels and settings.labels != spec.labels:
            raise UserError(f"task.labels is for own data, the labels of {spec.name} are known; leave it out")
    if repeated := next((name for name in settings.labels if settings.labels.count(name) > 1), ""):
        raise UserError(f"task.labels names {repeated!r} twice; name every class once")
    if any(name != name.strip() for name in settings.labels):
        raise UserError("task.labels: a name begins or ends with a blank; remove it")
    if len(settings.label) > 1 and not spec.kind.several_labels:
        raise UserError(f"task.label names {len(settings.label)} columns; only multilabel reads several, name one")
    if settings.soft_labels and not spec.kind.soft_labels:
        raise UserError(f"task.soft_labels: {spec.name} has no single class a text; leave it out")
    if settings.soft_labels and settings.class_weights != "none":
        raise UserError("task.class_weights: probabilities already say how much a class counts; leave it at none")
    if settings.labels and not spec.kind.may_name_labels:
        raise UserError(f"task.labels: {spec.name} has no classes; leave it out")


def _columns(part: Part, settings: TaskSettings, spec: TaskSpec) -> TakenColumns:
    """The columns of one part; class names that are not the task's are dropped, and the numbers hold."""
    if not part.table.rows:
        why = f" (first: {part.faults.first})" if part.faults.first else ""
        raise UserError(f"{part.table.name}: holds no row that can be used{why}; check the file")
    taken = find_columns(part.table, part.columns, part.role)
    if settings.id and not taken.id:
        columns = ", ".join(part.table.columns)
        raise UserError(f"{part.table.name}: no column {settings.id!r} (found: {columns}); check task.id")
    names = part.table.classes.get(taken.label, ())
    if not spec.kind.has_classes or taken.indicators or (spec.labels and not {*names} <= {*spec.labels}):
        part.table.classes = {}
    return taken


def _check_labels(labels: tuple[str, ...], spec: TaskSpec, parts: Sequence[Part]) -> None:
    """Raises UserError where one class is all there is; after the rows were checked, which may tell the reason."""
    needed = spec.kind.fewest_classes
    if len(labels) < needed and parts[0].role != "test":
        only = f"only the class {labels[0]!r}" if labels else "no class"
        raise UserError(f"{parts[0].table.name}: holds {only}, nothing can be learned from it; check task.label")


def _set_report(
    part: Part,
    taken: TakenColumns,
    unread: int,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    kind: TaskKind[Any],
) -> SetReport:
    """What was read for one set; `unread` rows were left out by the reader."""
    known = map(kind.label_of, examples)
    return SetReport(
        role=part.role,
        name=part.name,
        source=part.table.name,
        rows=len(part.table.rows) + unread + part.table.flawed,
        left_out=part.faults.count + part.table.flawed,
        columns=part.table.columns_taken or taken.shown(),
        labels=label_counts((None if label is None else kind.counted(label) for label in known), labels),
        examples=len(examples),
        notes=tuple(part.table.notes),
    )


def _part_notes(part: Part, title: str) -> list[str]:
    notes = []
    if part.table.flawed:
        notes.append(f"{title}: {part.table.flawed} rows with a wrong number of columns left out, published like that")
    return [*notes, *(f"{title}: {note}" for note in part.faults.notes)]


def _overlap_notes(train: Sequence[Example], validation: dict[str, list[Example]]) -> list[str]:
    """SQuAD's parts are easily mixed up; what is said about questions that were trained on means nothing."""
    ids = {example.id for example in train}
    notes = []
    for name, examples in validation.items():
        both = sum(example.id in ids for example in examples)
        if both and not all(example.id.isdecimal() for example in examples):  # row numbers say nothing across files
            notes.append(f"{name}: {both:,} of {len(examples):,} questions are training examples too")
    return notes

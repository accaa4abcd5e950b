"""Which classes the labels of a task have, decided over the columns of all its sets before a row is converted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distil_jax.config import TaskSettings
from distil_jax.data.rows import BadRowError, Table
from distil_jax.errors import UserError
from distil_jax.tasks.data.choices import BY_NUMBER, ChoiceLabels, choice_labels
from distil_jax.tasks.data.columns import Role
from distil_jax.tasks.data.convert import TakenColumns, endings_in, label_in, labels_in
from distil_jax.tasks.data.labels import (
    NAMES,
    NO_CLASSES,
    Classes,
    SetForm,
    found_classes,
    given_classes,
    indicator,
    is_blank,
    items_of_sets,
    match_classes,
    match_model,
    merged_spellings,
    set_form,
)
from distil_jax.tasks.metrics.tag_schemes import TAG, mark_first

if TYPE_CHECKING:
    from distil_jax.tasks.examples import TaskSpec

_Items = Callable[[Iterable[Any]], list[Any]]


@dataclasses.dataclass(frozen=True)
class LabelledTable:
    """A table of one set, what the set is for, and its columns."""

    role: Role
    table: Table
    taken: TakenColumns

    def labels(self) -> list[Any]:
        """The labels as they are written, without secret ones."""
        return [*labels_in(self.table, self.taken, self.role)]


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """How labels become class numbers: see `convert.ExampleRules` for the parts."""

    classes: Classes = NO_CLASSES
    sets: SetForm = NAMES
    choices: ChoiceLabels = BY_NUMBER
    indicators: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decide_labels(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """How the labels of all sets are read.

    The classes are the task's, those of task.labels, those of a model (`known`), those that the dataset names, or
    those found in the training data; tags are looked for in the validation data, too.

    Raises:
        UserError: labels can be read in several ways.
    """
    return spec.kind.decide_labels(settings, spec, sets, known)


def no_labels(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """Labels that are no classes. Arguments as of `decide_labels`."""
    del settings, spec, sets, known
    return LabelRules()


def decide_classes(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """One class an example, or a probability a class. Arguments as of `decide_labels`."""
    soft = next((one.taken.soft for one in sets if one.taken.soft), ())
    if soft:
        settings = _named_soft(settings, soft)
    classes = _classes(settings, spec, sets, known, list, _found_classes)
    return LabelRules(classes, notes=(*_merged_note(sets, list), *classes.notes))


def _named_soft(settings: TaskSettings, soft: tuple[str, ...]) -> TaskSettings:
    """The settings with the names of the classes: those of task.labels, else of the columns of probabilities."""
    if settings.labels and len(settings.labels) != len(soft):
        raise UserError(
            f"task.labels: {len(settings.labels)} names for the {len(soft)} columns of task.soft_labels; name one a "
            "column, in their order"
        )
    return dataclasses.replace(settings, labels=settings.labels or soft)


def decide_tags(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """A tag a word. Arguments as of `decide_labels`."""
    classes = _classes(settings, spec, sets, known, _tags, _found_tags)
    return LabelRules(classes, notes=classes.notes)


def decide_sets(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """A set of classes an example. Arguments as of `decide_labels`."""
    if columns := _indicator_columns(settings, sets, known):
        return _indicated(settings, columns)
    count = len(given_classes(settings.labels, ())[0]) or len(known)
    values = [value for one in sets for value in _sets_written(one)]
    form = set_form(values, count, settings.sets_as)

    def items(labels: Iterable[Any]) -> list[Any]:
        return [*items_of_sets(labels, form)]

    classes = _classes(settings, spec, sets, known, items, _found_classes)
    merged = () if form.width else _merged_note(sets, items)
    return LabelRules(classes, form, notes=(*_set_notes(form, values), *merged, *classes.notes))


def decide_choices(
    settings: TaskSettings, spec: TaskSpec, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> LabelRules:
    """Which ending is right. Arguments as of `decide_labels`."""
    del known
    rows = [row for one in sets for row in _choice_rows(one)]
    choices, note = choice_labels(rows, settings.labels, from_zero=spec.published is not None)
    return LabelRules(choices=choices, notes=(note,) if note else ())


def _merged_note(sets: Sequence[LabelledTable], items: _Items) -> tuple[str, ...]:
    """The note on classes that are spelled in several ways; () for none."""
    merged = merged_spellings(items([value for one in sets for value in one.labels()]))
    shown = "; ".join(f"{', '.join(map(repr, spellings))} are {name!r}" for name, spellings in [*merged.items()][:3])
    return (f"spellings of one class: {shown}",) if merged else ()


def _choice_rows(one: LabelledTable) -> Iterable[tuple[Any, Any]]:
    for row in one.table.rows:
        label = label_in(row, one.taken, one.table) if one.taken.label else None
        if not is_blank(label) and not (one.role == "test" and label in (-1, "-1")):
            with contextlib.suppress(BadRowError):
                yield label, endings_in(row.values, one.taken)


def _classes(
    settings: TaskSettings,
    spec: TaskSpec,
    sets: Sequence[LabelledTable],
    known: tuple[str, ...],
    items: _Items,
    found: Callable[[Sequence[LabelledTable], _Items, bool], tuple[str, ...]],
) -> Classes:
    """The classes of a column.

    Args:
        settings: the section [task].
        spec: the task.
        sets: all tables.
        known: classes of a model.
        items: (labels) -> the names in them, one by one.
        found: (sets, items, whether all of them count) -> the classes that the data have.
    """
    written = items([value for one in sets for value in one.labels()])
    named = next((names for one in sets if (names := one.table.classes.get(one.taken.label))), ())
    if spec.labels:
        return match_classes(spec.labels, written, counting="zero")
    if settings.labels:
        names, spelled = given_classes(settings.labels, written)
        return match_classes(names, written, spelled=spelled, counting="zero" if named else "evidence")
    if known and (matched := match_model(known, written)):
        return matched
    if named:
        return match_classes(named, written, counting="zero")
    learned = [one for one in sets if known or one.role != "test"]
    return match_classes(found(learned, items, bool(known)), written, counting="never")


def _found_classes(sets: Sequence[LabelledTable], items: _Items, every: bool) -> tuple[str, ...]:
    """The classes of the training data, where there is some."""
    return found_classes(items([value for one in (sets if every else sets[:1]) for value in one.labels()]))


def _found_tags(sets: Sequence[LabelledTable], items: _Items, every: bool) -> tuple[str, ...]:
    """The tags of training and validation data: a rare one may be missing in the smaller part of the two."""
    del every
    found = items([value for one in sets for value in one.labels()])
    if found and not any(isinstance(tag, str) for tag in found):
        raise UserError(f"{sets[0].table.name}: its tags are numbers; name them in order with task.labels")
    return found_tags(found)


def _tags(labels: Iterable[Any]) -> list[Any]:
    return [tag for tags in labels if isinstance(tags, list) for tag in tags]


def found_tags(tags: Iterable[Any]) -> tuple[str, ...]:
    """The different tags: O, then those of each type together, B- before I-. What is no name is passed over."""
    names = {tag.strip() for tag in tags if isinstance(tag, str) and tag.strip()}
    return tuple(sorted(names, key=_tag_order))


def _tag_order(tag: str) -> tuple[bool, str, int]:
    match = TAG.fullmatch(mark_first(tag))
    if match is None or match["type"] is None:
        return tag != "O", tag, 0
    return tag != "O", match["type"], "BIMESLU".index(match["mark"])


# Sets of classes


def _sets_written(one: LabelledTable) -> list[Any]:
    if not one.taken.label:
        return []
    return [label_in(row, one.taken, one.table) for row in one.table.rows]


def _indicator_columns(
    settings: TaskSettings, sets: Sequence[LabelledTable], known: tuple[str, ...]
) -> tuple[str, ...]:
    """The columns that hold a 0 or 1 a class; also the label column alone, where it holds nothing else."""
    columns = next((one.taken.indicators for one in sets if one.taken.indicators), ())
    if columns:
        return columns
    values = [value for one in sets for value in one.labels()]
    label = next((one.taken.label for one in sets if one.taken.label), "")
    scalar = [value for value in values if not isinstance(value, list | tuple)]
    if settings.sets_as == "classes" or not values or len(scalar) < len(values) or not all(map(_is_indicator, values)):
        return ()
    count = len(given_classes(settings.labels, values)[0]) or len(known)
    if count > 1 and not {*map(str, values)} <= {*settings.labels, *known}:
        raise UserError(
            f"task.label = {label!r}: holds a single 0 or 1 a row, but there are {count} classes; name a column for "
            f'every class (--task.label {label} OTHER ...), or set task.sets_as = "classes" where these are the '
            "numbers of classes"
        )
    return (label,) if count <= 1 else ()


def _is_indicator(value: Any) -> bool:
    try:
        return indicator(value) in (0, 1)
    except BadRowError:
        return False


def _indicated(settings: TaskSettings, columns: tuple[str, ...]) -> LabelRules:
    """The rules for a column a class: the columns' names, or those of task.labels in their order."""
    names = settings.labels or columns
    if {*names} == {*columns}:
        columns = names
    if len(names) != len(columns):
        raise UserError(
            f"task.labels: {len(names)} names for the {len(columns)} columns {', '.join(columns)} of task.label; name "
            "each of them, or leave task.labels empty"
        )
    note = f"labels are read as 0 or 1 for each class from the columns {', '.join(columns)}"
    return LabelRules(Classes(names, {}), indicators=columns, notes=(note,))


def _set_notes(form: SetForm, values: Sequence[Any]) -> tuple[str, ...]:
    if form.width:
        return (f"labels are read as 0 or 1 for each of {form.width} classes",)
    first = next((value for value in values if not is_blank(value)), None)
    names = {*items_of_sets(values, form)}
    return (f"labels such as {first!r} are read as numbers of classes",) if names and names <= {"0", "1"} else ()

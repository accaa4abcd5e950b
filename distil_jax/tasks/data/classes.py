"""Which classes the labels of a task have, decided over the columns of all its sets before a row is converted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from distil_jax.config import TaskSettings
from distil_jax.data.rows import BadRowError, Table
from distil_jax.errors import UserError
from distil_jax.tasks.data.choices import choice_labels
from distil_jax.tasks.data.columns import Role
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, endings_in, is_missing, label_in, labels_in
from distil_jax.tasks.data.labels import (
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


class LabelledTable(NamedTuple):
    """A table of one set, what the set is for, and its columns."""

    role: Role
    table: Table
    taken: TakenColumns


@dataclasses.dataclass(frozen=True)
class LabelSource:
    """What decides how labels are read (`TaskKind.decide_labels`); UserError where they can be read in several ways.

    The classes are the task's, those of task.labels, those of a model (`known`), those that the dataset names, or
    those found in the training data; tags are looked for in the validation data, too.
    """

    settings: TaskSettings
    spec: TaskSpec
    sets: Sequence[LabelledTable]
    known: tuple[str, ...]

    def labels(self, sets: Sequence[LabelledTable] | None = None) -> list[Any]:
        """The labels of some sets, or all, as they are written, without secret ones."""
        return [value for one in sets or self.sets for value in labels_in(one.table, one.taken, one.role)]


def no_labels(source: LabelSource) -> ExampleRules:
    """Labels that are no classes."""
    del source
    return ExampleRules()


def decide_classes(source: LabelSource) -> ExampleRules:
    """One class an example, or a probability a class."""
    if soft := next((one.taken.soft for one in source.sets if one.taken.soft), ()):
        source = dataclasses.replace(source, settings=_named_soft(source.settings, soft))
    classes = _classes(source, list, found_classes)
    return ExampleRules(classes, notes=(*_merged_note(source.labels()), *classes.notes))


def _named_soft(settings: TaskSettings, soft: tuple[str, ...]) -> TaskSettings:
    """The settings with the names of the classes: those of task.labels, else of the columns of probabilities."""
    if settings.labels and len(settings.labels) != len(soft):
        raise UserError(
            f"task.labels: {len(settings.labels)} names for the {len(soft)} columns of task.soft_labels; name one a "
            "column, in their order"
        )
    return dataclasses.replace(settings, labels=settings.labels or soft)


def decide_tags(source: LabelSource) -> ExampleRules:
    """A tag a word; a rare one may be missing in the training data, and is looked for in the validation data, too."""

    def found(tags: Sequence[Any]) -> tuple[str, ...]:
        if tags and not any(isinstance(tag, str) for tag in tags):
            raise UserError(f"{source.sets[0].table.name}: its tags are numbers; name them in order with task.labels")
        return found_tags(tags)

    classes = _classes(source, _tags, found, every=True)
    return ExampleRules(classes, notes=classes.notes)


def decide_sets(source: LabelSource) -> ExampleRules:
    """A set of classes an example."""
    if columns := _indicator_columns(source):
        return _indicated(source.settings, columns)
    count = len(given_classes(source.settings.labels, ())[0]) or len(source.known)
    values = source.labels()
    form = set_form(values, count, source.settings.sets_as)
    classes = _classes(source, lambda labels: items_of_sets(labels, form), found_classes)
    merged = () if form.width else _merged_note(items_of_sets(values, form))
    return ExampleRules(classes, sets=form, notes=(*_set_notes(form, values), *merged, *classes.notes))


def decide_choices(source: LabelSource) -> ExampleRules:
    """Which ending is right."""
    rows = [row for one in source.sets for row in _choice_rows(one)]
    choices, note = choice_labels(rows, source.settings.labels, from_zero=source.spec.published is not None)
    return ExampleRules(choices=choices, notes=(note,) if note else ())


def _merged_note(names: Iterable[Any]) -> tuple[str, ...]:
    """The note on classes that are spelled in several ways; () for none."""
    merged = merged_spellings(names)
    shown = "; ".join(f"{', '.join(map(repr, spellings))} are {name!r}" for name, spellings in [*merged.items()][:3])
    return (f"spellings of one class: {shown}",) if merged else ()


def _choice_rows(one: LabelledTable) -> Iterable[tuple[Any, Any]]:
    for row in one.table.rows:
        label = label_in(row, one.taken, one.table) if one.taken.label else None
        if not is_missing(label, one.role):
            with contextlib.suppress(BadRowError):
                yield label, endings_in(row.values, one.taken)


def _classes(
    source: LabelSource,
    items: Callable[[Iterable[Any]], list[Any]],
    found: Callable[[Sequence[Any]], tuple[str, ...]],
    *,
    every: bool = False,
) -> Classes:
    """The classes of a column.

    Args:
        source: what decides them.
        items: (labels) -> the names in them, one by one.
        found: (names) -> the classes that the data have.
        every: they are looked for in all sets but test ones, not in the first alone.
    """
    known, labels = source.known, source.settings.labels
    written = items(source.labels())
    named = next((names for one in source.sets if (names := one.table.classes.get(one.taken.label))), ())
    if source.spec.labels:
        return match_classes(source.spec.labels, written, counting="zero")
    if labels:
        names, spelled = given_classes(labels, written)
        return match_classes(names, written, spelled=spelled, counting="zero" if named else "evidence")
    if known and (matched := match_model(known, written)):
        return matched
    if named:
        return match_classes(named, written, counting="zero")
    learned = [one for one in source.sets if known or one.role != "test"]
    learned = learned if known or every else learned[:1]
    return match_classes(found(items(source.labels(learned)) if learned else []), written, counting="never")


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


def _indicator_columns(source: LabelSource) -> tuple[str, ...]:
    """The columns that hold a 0 or 1 a class; also the label column alone, where it holds nothing else."""
    settings, known = source.settings, source.known
    if columns := next((one.taken.indicators for one in source.sets if one.taken.indicators), ()):
        return columns
    values = source.labels()
    label = next((one.taken.label for one in source.sets if one.taken.label), "")
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


def _indicated(settings: TaskSettings, columns: tuple[str, ...]) -> ExampleRules:
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
    return ExampleRules(Classes(names, {}), indicators=columns, notes=(note,))


def _set_notes(form: SetForm, values: Sequence[Any]) -> tuple[str, ...]:
    if form.width:
        return (f"labels are read as 0 or 1 for each of {form.width} classes",)
    first = next((value for value in values if not is_blank(value)), None)
    names = {*items_of_sets(values, form)}
    return (f"labels such as {first!r} are read as numbers of classes",) if names and names <= {"0", "1"} else ()

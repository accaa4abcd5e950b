"""From rows to examples: one row in, one checked example out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distil_jax.data.rows import FIELD_LIMIT, BadRowError, Faults, Row, Table, some
from distil_jax.errors import UserError
from distil_jax.tasks.data.choices import BY_NUMBER, ChoiceLabels, Endings, listed_endings, present_endings
from distil_jax.tasks.data.columns import Columns, Role
from distil_jax.tasks.data.labels import NAMES, NO_CLASSES, Classes, SetForm, is_blank
from distil_jax.tasks.examples import Example

if TYPE_CHECKING:
    from distil_jax.tasks.kinds import TaskKind


@dataclasses.dataclass(frozen=True)
class ExampleRules:
    """How the labels of a task are read, and how the rows of one table become examples.

    Attributes:
        classes: and the spellings of their labels.
        sets: how sets of classes are written.
        choices: how a label says which ending is right.
        indicators: columns of 0 and 1 for each class.
        notes: what was decided about labels, for the user.
        role: labels may be missing where it is "test".
        limits: of scores.
        iob2: entities may be marked as in IOB1, and are rewritten so that every entity begins with B-.
        blank_text: empty texts are let through.
        unanswerable: a question may have no answer.
        unique_ids: an id may be there only once.
    """

    classes: Classes = NO_CLASSES
    sets: SetForm = NAMES
    choices: ChoiceLabels = BY_NUMBER
    indicators: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    role: Role = "test"
    limits: tuple[float, float] | None = None
    iob2: bool = False
    blank_text: bool = False
    unanswerable: bool = True
    unique_ids: bool = True


@dataclasses.dataclass(frozen=True)
class TakenColumns:
    """The columns that are taken from a table.

    Attributes:
        text, pair, label, id: names; "" where there is none.
        endings: of a choice: a column an ending, or one that holds them all.
        indicators: of sets of classes: a column of 0 and 1 for each class; then there is no `label`.
        soft: a column of probabilities for each class; then there is no `label`.
    """

    text: str
    pair: str = ""
    label: str = ""
    id: str = ""
    endings: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()

    def shown(self) -> dict[str, str]:
        """The names by what they are taken for, for messages."""
        found = {"text": self.text, "pair": self.pair, "label": self.label, "id": self.id}
        found |= {"endings": ", ".join(self.endings), "labels": ", ".join(self.indicators or self.soft)}
        return {what: name for what, name in found.items() if name}


def find_columns(table: Table, columns: Columns, role: Role) -> TakenColumns:
    """Which of the possible columns the table has.

    Raises:
        UserError: one that is needed is missing; the columns that are there are named.
    """
    present = table.columns
    try:
        text, pair = first_of(columns.text, present), first_of(columns.pair, present)
        endings = endings_of(columns.endings, present)
        indicators, soft = _indicators(present, columns, needed=role != "test"), _soft(present, columns, role)
        named = [name for name in columns.label if name in present] if role == "test" else columns.label
        label = "" if indicators or soft else first_of(named, present)
    except BadRowError as error:
        raise UserError(f"{table.name}: {error}{_hint(table)}") from error
    identity = next((name for name in columns.id if name in present), "")
    return TakenColumns(text, pair, label, identity, endings, indicators, soft)


def first_of(names: Sequence[str], present: Collection[str], flag: str = "") -> str:
    """The first of the names that is present, "" for no names.

    Raises:
        BadRowError: none is; what is there is named, and the flag that names another.
    """
    found = next((name for name in names if name in present), "")
    if names and not found:
        another = f"; {flag} names another" if flag else ""
        raise BadRowError(f"no column {' or '.join(map(repr, names))} (found: {some([*present])}{another})")
    return found


def endings_of(alternatives: Sequence[tuple[str, ...]], present: Collection[str], flag: str = "") -> tuple[str, ...]:
    """The first of the alternatives whose columns are all present. Raises BadRowError, as `first_of`."""
    found = next((names for names in alternatives if {*names} <= {*present}), ())
    if alternatives and not found:
        first_of([name for name in alternatives[-1] if name not in present], present, flag)
    return found


def _indicators(present: Collection[str], columns: Columns, *, needed: bool) -> tuple[str, ...]:
    """The columns of 0 and 1 for each class, where there are such; without `columns.label` they have to be."""
    missing = [name for name in columns.indicators if name not in present]
    if not missing:
        usual = not columns.label or columns.label[0] in columns.indicators or columns.label[0] not in present
        return columns.indicators if usual else ()
    if needed and not columns.label:
        first_of(missing[:1], present)
    return ()


def _soft(present: Collection[str], columns: Columns, role: Role) -> tuple[str, ...]:
    """The columns of probabilities; what is measured is taken from the label column where there is one."""
    missing = [name for name in columns.soft if name not in present]
    if role == "train":
        first_of(missing[:1], present)
    labelled = role != "train" and any(name in present for name in columns.label)
    return () if missing or labelled else columns.soft


def _hint(table: Table) -> str:
    only = str(table.columns[0]) if len(table.columns) == 1 else ""
    separator = next((mark for mark in (";", "\t", ",") if mark in only), "")
    return (
        f"; are its columns separated by {separator!r}? Commas are wanted in .csv, tabs in .tsv"
        if separator
        else "; name the columns with task.text, task.pair and task.label"
    )


def to_examples(
    table: Table, taken: TakenColumns, kind: TaskKind[Any], rules: ExampleRules, faults: Faults
) -> list[Example]:
    """The examples of a table, in order.

    Raises:
        UserError: a row cannot be used (file and line are named), or none can.
    """
    examples: list[Example] = []
    seen: dict[str, Row] = {}
    for row in table.rows:
        try:
            values = {**row.values, taken.label: label_in(row, taken, table)}
            example = kind.to_example(_identity(row, taken), values, taken, rules)
            if rules.unique_ids and taken.id and seen.setdefault(example.id, row) is not row:
                raise BadRowError(f"id {example.id!r} is there already ({table.where(seen[example.id])})")
        except BadRowError as error:
            faults(table.where(row), str(error))
            continue
        examples.append(example)
    if not examples:
        why = f" (first: {faults.first})" if faults.first else ""
        raise UserError(f"{table.name}: holds no row that can be used{why}; check the file")
    return examples


def _identity(row: Row, taken: TakenColumns) -> str:
    if not taken.id:
        return str(row.number)
    value = row.values.get(taken.id)
    if is_blank(value):
        raise BadRowError(f"no value in the id column {taken.id!r}")
    return str(value).strip()


def label_in(row: Row, taken: TakenColumns, table: Table) -> Any:
    """The label of a row as it is written; names instead of the numbers of classes that a dataset has names for."""
    value, names = row.values.get(taken.label), table.classes.get(taken.label)
    if not names:
        return value

    def name(number: Any) -> Any:
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else number

    return [*map(name, value)] if isinstance(value, list) else name(value)


def labels_in(table: Table, taken: TakenColumns, role: Role) -> Iterator[Any]:
    """The labels of a table, without those of a test set that are kept secret."""
    if taken.label:
        values = (label_in(row, taken, table) for row in table.rows)
        yield from (value for value in values if not is_missing(value, role))


def is_missing(label: Any, role: Role) -> bool:
    """Whether there is no label, or it is kept secret: datasets have -1 in such a test set."""
    return is_blank(label) or (role == "test" and label in (-1, "-1"))


def value_of(values: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column. Raises BadRowError where there is no such column."""
    if column not in values:
        raise BadRowError(f"no column {column!r}")
    return values[column]


def text_of(values: Mapping[str, Any], column: str, *, blank: bool = False) -> str:
    """The text in a column. Raises BadRowError."""
    return checked_text(value_of(values, column), f"column {column!r}", blank=blank)


def checked_text(text: Any, what: str, *, blank: bool = False) -> str:
    """A text that tokenizers take. Raises BadRowError."""
    if not isinstance(text, str):
        raise BadRowError(f"{what} is empty" if text is None else f"{what} holds {type(text).__name__}, not text")
    if not blank and not text.strip():
        raise BadRowError(f"{what} is empty")
    if len(text) > FIELD_LIMIT:
        raise BadRowError(f"{what} is longer than {FIELD_LIMIT} characters")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{what} is not valid Unicode (half of a surrogate pair)") from error
    if "\0" in text:
        raise BadRowError(f"{what} holds a NUL character")
    return text


def label_of(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules, *, hidden: bool = True) -> Any:
    """The label as it is written, None where there is none and none is needed.

    Labels of a test set may be missing; where they are kept secret, datasets have -1 (`hidden`: here, too).
    """
    value = values.get(taken.label) if taken.label else None
    if rules.role == "test" and (is_blank(value) or (hidden and value in (-1, "-1"))):
        return None
    if value is None:
        raise BadRowError(f"no label in column {taken.label!r}")
    return value


def endings_in(values: Mapping[str, Any], taken: TakenColumns) -> Endings:
    """The endings of a row. Raises BadRowError where there are none, or fewer than two."""
    if len(taken.endings) == 1:
        (column,) = taken.endings
        found = listed_endings(value_of(values, column), column)
    else:
        found = Endings([values.get(name) for name in taken.endings])
    texts = present_endings(found.texts)
    if len(texts) < 2:
        raise BadRowError(f"{len(texts)} endings in {', '.join(map(repr, taken.endings))}, fewer than two")
    return Endings(texts, found.names[: len(texts)])

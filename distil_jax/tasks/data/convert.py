"""From rows to examples: one row in, one checked example out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from distil_jax.data.rows import FIELD_LIMIT, BadRowError, Faults, Row, Table, parse_json, some
from distil_jax.errors import UserError
from distil_jax.tasks.data.conll import to_iob2
from distil_jax.tasks.data.labels import NAMES, SetForm, class_name, class_number, class_set, is_blank, score
from distil_jax.tasks.data.official import Columns, Role
from distil_jax.tasks.examples import (
    Answer,
    ChoiceExample,
    Example,
    Kind,
    QuestionExample,
    SequenceExample,
    TokenExample,
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the rows of one table become examples.

    Attributes:
        kind: of the examples.
        problem: what the labels of a sequence task are.
        labels: names of the classes, in order.
        role: labels may be missing where it is "test".
        limits: of scores.
        sets: how sets of classes are written.
        iob2: tags are rewritten so that every entity begins with B-.
        blank_text: empty texts are let through.
        unanswerable: a question may have no answer.
        unique_ids: an id may be there only once.
    """

    kind: Kind
    problem: str
    labels: tuple[str, ...]
    role: Role
    limits: tuple[float, float] | None = None
    sets: SetForm = NAMES
    iob2: bool = False
    blank_text: bool = False
    unanswerable: bool = True
    unique_ids: bool = True


@dataclasses.dataclass(frozen=True)
class Found:
    """The columns that a table really has."""

    text: str
    pair: str = ""
    label: str = ""
    id: str = ""
    endings: tuple[str, ...] = ()


def find_columns(table: Table, columns: Columns, kind: Kind, role: Role) -> Found:
    """Which of the possible columns the table has.

    Raises:
        UserError: one that is needed is missing; the columns that are there are named.
    """

    def find(names: tuple[str, ...], needed: bool) -> str:
        present = next((name for name in names if name in table.columns), "")
        if needed and names and not present:
            missing = " or ".join(map(repr, names))
            raise UserError(f"{table.name}: no column {missing} (found: {some(table.columns)}){_hint(table)}")
        return present

    text, pair = find(columns.text, True), find(columns.pair, True)
    whole = (names for names in columns.endings if all(name in table.columns for name in names))
    endings: tuple[str, ...] = next(whole, ())
    if kind == "choice" and not endings:
        missing = next(name for name in columns.endings[-1] if name not in table.columns)
        raise UserError(f"{table.name}: no column {missing!r} (found: {some(table.columns)}); endings are needed")
    return Found(text, pair, find(columns.label, role != "test"), find(columns.id, False), endings)


def _hint(table: Table) -> str:
    only = str(table.columns[0]) if len(table.columns) == 1 else ""
    separator = next((mark for mark in (";", "\t", ",") if mark in only), "")
    return (
        f"; are its columns separated by {separator!r}? Commas are wanted in .csv, tabs in .tsv"
        if separator
        else "; check the file, or the names of columns in [task]"
    )


def to_examples(table: Table, found: Found, reading: Reading, faults: Faults) -> list[Example]:
    """The examples of a table, in order.

    Raises:
        UserError: a row can't be used (file and line are named), or none can.
    """
    make = _MAKERS[reading.kind]
    examples: list[Example] = []
    seen: dict[str, Row] = {}
    endings = 0
    for row in table.rows:
        try:
            example = make(_identity(row, found), _translated(row, found, table), found, reading)
            if reading.unique_ids and found.id and seen.setdefault(example.id, row) is not row:
                raise BadRowError(f"id {example.id!r} is there already ({table.where(seen[example.id])})")
            if isinstance(example, ChoiceExample):
                endings = endings or len(example.endings)
                if len(example.endings) != endings:
                    raise BadRowError(f"{len(example.endings)} endings, not {endings} as in the first row")
        except BadRowError as error:
            faults(table.where(row), str(error))
            continue
        examples.append(example)
    if not examples:
        why = f" (first: {faults.first})" if faults.first else ""
        raise UserError(f"{table.name}: holds no row that can be used{why}; check the file")
    return examples


def _identity(row: Row, found: Found) -> str:
    if not found.id:
        return str(row.number)
    value = row.values.get(found.id)
    if is_blank(value):
        raise BadRowError(f"no value in the id column {found.id!r}")
    return str(value).strip()


def _translated(row: Row, found: Found, table: Table) -> dict[str, Any]:
    """The row with class numbers of a dataset replaced by the dataset's names for them."""
    names = table.classes.get(found.label)
    if not names or found.label not in row.values:
        return row.values
    value = row.values[found.label]

    def name(number: Any) -> Any:
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else number

    return {**row.values, found.label: [*map(name, value)] if isinstance(value, list) else name(value)}


def _value(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise BadRowError(f"no column {column!r}")
    return values[column]


def _text(values: Mapping[str, Any], column: str, *, blank: bool = False) -> str:
    return _checked(_value(values, column), f"column {column!r}", blank=blank)


def _checked(text: Any, what: str, *, blank: bool = False) -> str:
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


def _label_value(values: Mapping[str, Any], found: Found, reading: Reading, *, hidden: bool = True) -> Any:
    """The label as it is written, None where there is none and none is needed.

    Labels of a test set may be missing; where they are kept secret, datasets have -1 (`hidden`: here, too).
    """
    value = values.get(found.label) if found.label else None
    if reading.role == "test" and (is_blank(value) or (hidden and value in (-1, "-1"))):
        return None
    if value is None:
        raise BadRowError(f"no label in column {found.label!r}")
    return value


def _sequence(identity: str, values: Mapping[str, Any], found: Found, reading: Reading) -> SequenceExample:
    blank = reading.blank_text
    text = _text(values, found.text, blank=blank)
    pair = _text(values, found.pair, blank=blank) if found.pair else None
    label: int | float | tuple[int, ...] | None = None
    if reading.problem == "multi_label_classification":
        given = bool(found.label) and values.get(found.label) is not None
        if given or reading.role != "test":  # an empty text is a set without classes
            label = class_set(_value(values, found.label), reading.labels, reading.sets)
    elif reading.problem == "regression":
        value = _label_value(values, found, reading, hidden=reading.limits is not None)
        label = None if value is None else score(value, reading.limits)
    else:
        value = _label_value(values, found, reading, hidden="-1" not in reading.labels)
        label = None if value is None else class_number(value, reading.labels)
    return SequenceExample(identity, text, pair, label)


def _token(identity: str, values: Mapping[str, Any], found: Found, reading: Reading) -> TokenExample:
    words = _value(values, found.text)
    if not isinstance(words, list):
        raise BadRowError(f"column {found.text!r} holds {type(words).__name__}, not a list of words")
    if not words:
        raise BadRowError("a sentence without words")
    checked = tuple(_checked(word, f"word {i} of the sentence") for i, word in enumerate(words, start=1))
    tags = _label_value(values, found, reading, hidden=False)
    if tags is None:
        return TokenExample(identity, checked)
    if not isinstance(tags, list):
        raise BadRowError(f"column {found.label!r} holds {type(tags).__name__}, not a list of tags")
    if len(tags) != len(words):
        raise BadRowError(f"{len(words)} words but {len(tags)} tags")
    tags = to_iob2(tags) if reading.iob2 and tags and isinstance(tags[0], str) else tags
    return TokenExample(identity, checked, tuple(class_number(tag, reading.labels, "tag") for tag in tags))


def _question(identity: str, values: Mapping[str, Any], found: Found, reading: Reading) -> QuestionExample:
    question = _text(values, found.text, blank=reading.blank_text)
    context = _text(values, found.pair)
    given = values.get(found.label) if found.label else None
    if given is None and reading.role != "test":
        raise BadRowError(f"no answers in column {found.label!r} (an empty list says that there is none)")
    if given is None:
        return QuestionExample(identity, question, context)
    answers = tuple(_answer(item, context) for item in _answer_items(given))
    if not answers and not reading.unanswerable:
        raise BadRowError("no answer; questions without one belong to the task squad_v2")
    return QuestionExample(identity, question, context, answers)


def _answer_items(given: Any) -> list[Any]:
    """Answers as a list of {text, answer_start}, from that or from {text: [...], answer_start: [...]}."""
    if isinstance(given, list):
        return given
    if not isinstance(given, dict) or not {"text", "answer_start"} <= given.keys():
        raise BadRowError("answers are neither a list of {text, answer_start} nor {text: [...], answer_start: [...]}")
    texts, starts = given["text"], given["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        return [given]
    if len(texts) != len(starts):
        raise BadRowError(f"{len(texts)} texts of answers but {len(starts)} starts")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _answer(item: Any, context: str) -> Answer:
    if not isinstance(item, dict) or not {"text", "answer_start"} <= item.keys():
        raise BadRowError("an answer without 'text' and 'answer_start'")
    text, start = _checked(item["text"], "the answer"), item["answer_start"]
    if isinstance(start, bool) or not isinstance(start, int):
        raise BadRowError(f"answer_start {start!r} is not a whole number")
    if start < 0 or context[start : start + len(text)] != text:
        at = context.find(text)
        hint = f"it is at {at}" if at >= 0 else "the context does not hold it"
        raise BadRowError(f"answer {text[:60]!r} is not in the context at answer_start = {start} ({hint})")
    return Answer(text, start)


def _choice(identity: str, values: Mapping[str, Any], found: Found, reading: Reading) -> ChoiceExample:
    prompt = _text(values, found.text)
    endings = _endings(values, found)
    label = _label_value(values, found, reading)
    if label is not None:
        label = _choice_number(label, endings)
    if found.pair:
        start = _text(values, found.pair).strip()
        endings = [f"{start} {ending}" for ending in endings]
    return ChoiceExample(identity, prompt, tuple(endings), label)


def _endings(values: Mapping[str, Any], found: Found) -> list[str]:
    if len(found.endings) != 1:
        return [_text(values, name) for name in found.endings]
    (column,) = found.endings
    endings = listed_endings(_value(values, column), column)
    return [_checked(ending, f"ending {i}") for i, ending in enumerate(endings)]


def listed_endings(endings: Any, column: str) -> list[Any]:
    """The endings in one column: a list, or in a table's cell a JSON list. Raises BadRowError."""
    if isinstance(endings, str):
        try:
            endings = parse_json(endings)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"column {column!r} holds no JSON list of endings") from error
    if not isinstance(endings, list | tuple) or len(endings) < 2:
        raise BadRowError(f"column {column!r} holds no list of two or more endings")
    return list(endings)


def _choice_number(label: Any, endings: list[str]) -> int:
    """The number of the right ending, given by its number or, in other words, by itself."""
    name = class_name(label)
    if not name.removeprefix("-").isdecimal() or not name.isascii():
        same = [i for i, ending in enumerate(endings) if ending.strip() == name]
        if len(same) != 1:
            raise BadRowError(f"label {name[:60]!r} is {'none' if not same else 'more than one'} of the endings")
        return same[0]
    if not 0 <= int(name[:20]) < len(endings):
        raise BadRowError(f"label {name} is out of range: there are {len(endings)} endings, 0 to {len(endings) - 1}")
    return int(name)


_MAKERS: dict[Kind, Callable[[str, Mapping[str, Any], Found, Reading], Example]] = {
    "sequence": _sequence,
    "token": _token,
    "question": _question,
    "choice": _choice,
}

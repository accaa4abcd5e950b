"""From rows to examples: one row in, one checked example out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distil_jax.data.rows import FIELD_LIMIT, BadRowError, Faults, Row, Table, some
from distil_jax.errors import UserError
from distil_jax.tasks.data.choices import BY_NUMBER, ChoiceLabels, Endings, listed_endings, present_endings
from distil_jax.tasks.data.conll import to_iob2
from distil_jax.tasks.data.labels import (
    NAMES,
    Classes,
    SetForm,
    class_set,
    indicator,
    is_blank,
    list_in_text,
    number_of,
    score,
)
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
class ExampleRules:
    """How the rows of one table become examples.

    Attributes:
        kind: of the examples.
        problem: what the labels of a sequence task are.
        classes: and the spellings of their labels.
        role: labels may be missing where it is "test".
        limits: of scores.
        sets: how sets of classes are written.
        choices: how a label says which ending is right.
        iob2: tags are rewritten so that every entity begins with B-.
        blank_text: empty texts are let through.
        unanswerable: a question may have no answer.
        unique_ids: an id may be there only once.
    """

    kind: Kind
    problem: str
    classes: Classes
    role: Role
    limits: tuple[float, float] | None = None
    sets: SetForm = NAMES
    choices: ChoiceLabels = BY_NUMBER
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
    """

    text: str
    pair: str = ""
    label: str = ""
    id: str = ""
    endings: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()

    def shown(self) -> dict[str, str]:
        """The names by what they are taken for, for messages."""
        found = {"text": self.text, "pair": self.pair, "label": self.label, "id": self.id}
        found |= {"endings": ", ".join(self.endings), "labels": ", ".join(self.indicators)}
        return {what: name for what, name in found.items() if name}


def find_columns(table: Table, columns: Columns, kind: Kind, role: Role) -> TakenColumns:
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
    indicators = _indicators(table, columns, needed=role != "test")
    label = "" if indicators else find(columns.label, role != "test")
    return TakenColumns(text, pair, label, find(columns.id, False), endings, indicators)


def _indicators(table: Table, columns: Columns, *, needed: bool) -> tuple[str, ...]:
    """The columns of 0 and 1 for each class, where there are such; without `columns.label` they have to be."""
    missing = [name for name in columns.indicators if name not in table.columns]
    if not missing:
        usual = not columns.label or columns.label[0] in columns.indicators or columns.label[0] not in table.columns
        return columns.indicators if usual else ()
    if needed and not columns.label:
        raise UserError(f"{table.name}: no column {missing[0]!r} (found: {some(table.columns)}); check task.label")
    return ()


def _hint(table: Table) -> str:
    only = str(table.columns[0]) if len(table.columns) == 1 else ""
    separator = next((mark for mark in (";", "\t", ",") if mark in only), "")
    return (
        f"; are its columns separated by {separator!r}? Commas are wanted in .csv, tabs in .tsv"
        if separator
        else "; check the file, or the names of columns in [task]"
    )


def to_examples(table: Table, taken: TakenColumns, rules: ExampleRules, faults: Faults) -> list[Example]:
    """The examples of a table, in order.

    Raises:
        UserError: a row cannot be used (file and line are named), or none can.
    """
    make = _MAKERS[rules.kind]
    examples: list[Example] = []
    seen: dict[str, Row] = {}
    for row in table.rows:
        try:
            values = {**row.values, taken.label: label_in(row, taken, table)}
            example = make(_identity(row, taken), values, taken, rules)
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
        yield from (value for value in values if not (is_blank(value) or (role == "test" and value in (-1, "-1"))))


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


def _label_value(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules, *, hidden: bool = True) -> Any:
    """The label as it is written, None where there is none and none is needed.

    Labels of a test set may be missing; where they are kept secret, datasets have -1 (`hidden`: here, too).
    """
    value = values.get(taken.label) if taken.label else None
    if rules.role == "test" and (is_blank(value) or (hidden and value in (-1, "-1"))):
        return None
    if value is None:
        raise BadRowError(f"no label in column {taken.label!r}")
    return value


def _sequence(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> SequenceExample:
    blank = rules.blank_text
    text = _text(values, taken.text, blank=blank)
    pair = _text(values, taken.pair, blank=blank) if taken.pair else None
    return SequenceExample(identity, text, pair, _sequence_label(values, taken, rules))


def _sequence_label(
    values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules
) -> int | float | tuple[int, ...] | None:
    if taken.indicators:
        return _indicated(values, taken, rules)
    if rules.problem == "multi_label_classification":  # an empty text is a set without classes
        value = values.get(taken.label) if taken.label else None
        secret = rules.role == "test" and (value is None or value in (-1, "-1"))
        return None if secret else class_set(value, rules.classes, rules.sets)
    if rules.problem == "regression":
        value = _label_value(values, taken, rules, hidden=rules.limits is not None)
        return None if value is None else score(value, rules.limits)
    value = _label_value(values, taken, rules, hidden="-1" not in rules.classes.names)
    return None if value is None else rules.classes.number(value)


def _indicated(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> tuple[int, ...] | None:
    """The set of classes of a row with a column a class; None where a test set keeps them secret."""
    given = [values.get(name) for name in taken.indicators]
    if rules.role == "test" and all(is_blank(value) or value in (-1, "-1") for value in given):
        return None
    found = []
    for name, value in zip(taken.indicators, given, strict=True):
        try:
            found.append(indicator(value))
        except BadRowError as error:
            raise BadRowError(f"column {name!r}: {error}") from error
    return tuple(found)


def _token(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> TokenExample:
    words = _value(values, taken.text)
    if not isinstance(words, list):
        raise BadRowError(f"column {taken.text!r} holds {type(words).__name__}, not a list of words")
    if not words:
        raise BadRowError("a sentence without words")
    checked = tuple(_checked(word, f"word {i} of the sentence") for i, word in enumerate(words, start=1))
    tags = _label_value(values, taken, rules, hidden=False)
    if tags is None:
        return TokenExample(identity, checked)
    if not isinstance(tags, list):
        raise BadRowError(f"column {taken.label!r} holds {type(tags).__name__}, not a list of tags")
    if len(tags) != len(words):
        raise BadRowError(f"{len(words)} words but {len(tags)} tags")
    tags = to_iob2(tags) if rules.iob2 and tags and isinstance(tags[0], str) else tags
    return TokenExample(identity, checked, tuple(rules.classes.number(tag, "tag") for tag in tags))


def _question(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> QuestionExample:
    question = _text(values, taken.text, blank=rules.blank_text)
    context = _text(values, taken.pair)
    given = values.get(taken.label) if taken.label else None
    if given is None and rules.role != "test" and not values.get("is_impossible"):
        raise BadRowError(f"no answers in column {taken.label!r} (an empty list says that there is none)")
    if given is None and rules.role == "test":
        return QuestionExample(identity, question, context)
    answers = tuple(_answer(item, context) for item in _answer_items(given) if not _is_no_answer(item))
    if not answers and not rules.unanswerable:
        raise BadRowError("no answer; questions without one belong to the task squad_v2")
    return QuestionExample(identity, question, context, answers)


def _answer_items(given: Any) -> list[Any]:
    """Answers as a list of {text, answer_start}, from that or from {text: [...], answer_start: [...]}."""
    if is_blank(given):
        return []
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):
        given = list_in_text(given.strip(), "the column of answers")
    if isinstance(given, list):
        return given
    if not isinstance(given, dict) or not {"text", "answer_start"} <= given.keys():
        raise BadRowError("answers are neither a list of {text, answer_start} nor {text: [...], answer_start: [...]}")
    texts, starts = given["text"], given["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        return [given]
    if len(texts) != len(starts) and any(texts):
        raise BadRowError(f"{len(texts)} texts of answers but {len(starts)} starts")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=False)]


def _is_no_answer(item: Any) -> bool:
    """Whether an answer says by its empty text that there is none."""
    return isinstance(item, Mapping) and "text" in item and is_blank(item["text"])


def _answer(item: Any, context: str) -> Answer:
    if not isinstance(item, dict) or not {"text", "answer_start"} <= item.keys():
        raise BadRowError("an answer without 'text' and 'answer_start'")
    text, written = _checked(item["text"], "the answer"), item["answer_start"]
    number = None if isinstance(written, bool) else number_of(str(written).strip())
    if number is None or number != int(number):
        raise BadRowError(f"answer_start {written!r} is not a whole number")
    start = int(number)
    if start < 0 or context[start : start + len(text)] != text:
        at = context.find(text)
        hint = f"it is at {at}" if at >= 0 else "the context does not hold it"
        raise BadRowError(f"answer {text[:60]!r} is not in the context at answer_start = {start} ({hint})")
    return Answer(text, start)


def _choice(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> ChoiceExample:
    prompt = _text(values, taken.text)
    endings = endings_in(values, taken)
    value = _label_value(values, taken, rules)
    label = None if value is None else rules.choices.number(value, endings)
    texts = [_checked(ending, f"ending {number}", blank=True) for number, ending in enumerate(endings.texts)]
    if taken.pair:
        start = _text(values, taken.pair).strip()
        texts = [f"{start} {ending}" if ending else start for ending in texts]
    return ChoiceExample(identity, prompt, tuple(texts), label)


def endings_in(values: Mapping[str, Any], taken: TakenColumns) -> Endings:
    """The endings of a row. Raises BadRowError where there are none, or fewer than two."""
    if len(taken.endings) == 1:
        (column,) = taken.endings
        found = listed_endings(_value(values, column), column)
    else:
        found = Endings([values.get(name) for name in taken.endings])
    texts = present_endings(found.texts)
    if len(texts) < 2:
        raise BadRowError(f"{len(texts)} endings in {', '.join(map(repr, taken.endings))}, fewer than two")
    return Endings(texts, found.names[: len(texts)])


_MAKERS: dict[Kind, Callable[[str, Mapping[str, Any], TakenColumns, ExampleRules], Example]] = {
    "sequence": _sequence,
    "token": _token,
    "question": _question,
    "choice": _choice,
}

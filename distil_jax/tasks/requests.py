"""Rows without labels as examples to predict: which columns are read, and what is no text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.data.rows import FIELD_LIMIT, PLAIN, BadRowError, Faults, Row, place_of, some
from distil_jax.tasks.data.choices import listed_endings, present_endings
from distil_jax.tasks.data.gather import own_columns
from distil_jax.tasks.data.official import OFFICIAL, Columns
from distil_jax.tasks.examples import ChoiceExample, Example, Kind, QuestionExample, SequenceExample, TokenExample

_TEXT, _PAIR, _ENDINGS = "--text-column", "--pair-column", "--endings-columns"  # of the command, for messages
_USUAL_PAIR = ("pair", "text_pair")
_USUAL: dict[Kind, Columns] = {
    "sequence": Columns(("text", "sentence"), _USUAL_PAIR, id=("id",)),
    "token": Columns(("words", "tokens", "text"), id=("id",)),
    "question": Columns(("question",), ("context",), id=("id",)),
    "choice": Columns(("text", "prompt"), id=("id",), endings=(("endings",),)),
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which columns make an example of which kind.

    Attributes:
        kind: what the model reads.
        columns: alternatives, best first; `label` does not matter.
        pairs: of "sequence": the model reads pairs, or single texts; of "choice": a start in front of every ending, or
            none; None: not known, a second text is taken where there is one.
    """

    kind: Kind
    columns: Columns
    pairs: bool | None = None


def usual_reading(kind: Kind, pairs: bool | None = None) -> Reading:
    """For a model of which nothing but its kind is known, and perhaps `Reading.pairs`."""
    columns = _USUAL[kind]
    if pairs is None or kind not in ("sequence", "choice"):
        return Reading(kind, columns)
    return Reading(kind, dataclasses.replace(columns, pair=_USUAL_PAIR if pairs else ()), pairs)


def reading_of(settings: TaskSettings, kind: Kind) -> Reading:
    """For a model that was fine-tuned with these settings: the columns it was trained on, then the usual ones."""
    official = OFFICIAL.get(settings.name)
    known = official.columns if official else own_columns(settings, kind)
    reading = usual_reading(kind, bool(known.pair))
    usual = reading.columns
    columns = Columns(
        text=(*known.text, *usual.text),
        pair=(*known.pair, *usual.pair),
        id=(*known.id, *usual.id),
        endings=(*known.endings, *usual.endings),
        positions=known.positions,
    )
    return dataclasses.replace(reading, columns=columns)


def with_columns(reading: Reading, text: str = "", pair: str = "", endings: tuple[str, ...] = ()) -> Reading:
    """The same with columns that the user names; empty: as they are."""
    columns = reading.columns
    columns = dataclasses.replace(
        columns,
        text=(text,) if text else columns.text,
        pair=(pair,) if pair else columns.pair,
        endings=(endings,) if endings else columns.endings,
    )
    named_pair = bool(pair) and reading.kind in ("sequence", "choice")
    return dataclasses.replace(reading, columns=columns, pairs=True if named_pair else reading.pairs)


def requests(
    rows: Iterable[Row], reading: Reading, faults: Faults, name: str, unit: str = "line"
) -> Iterator[tuple[Any, Example]]:
    """(id, example) of each row that is one; the id is the row's number, from 0, where it has none of its own.

    Args:
        rows: read one at a time.
        reading: how they are read.
        faults: what is done about those that can't be.
        name: what they come from, for messages.
        unit: what a row's place counts.

    Raises:
        UserError: place and reason of a row that can't be used, as `faults` has it.
    """
    for row in rows:
        try:
            identity, example = request(row.values, reading)
        except BadRowError as error:
            faults(place_of(name, unit, row.place), str(error))
            continue
        yield row.number if identity is None else identity, example


def request(row: Any, reading: Reading) -> tuple[Any, Example]:
    """A row's id, None without one, and its example.

    Args:
        row: named columns; or a bare text (sequence; words between blanks), two texts (sequence: a pair; question:
            question and context), or a list of words (token).
        reading: how rows are read.

    Raises:
        BadRowError: the row lacks something, or holds what is no text.
    """
    values = _named(row, reading)
    identity = next((values[name] for name in reading.columns.id if values.get(name) not in (None, "")), None)
    if identity is not None and not isinstance(identity, str | int):
        raise BadRowError(f"an id of type {type(identity).__name__}, expected a text or a number")
    if isinstance(identity, str):
        _text(identity, "the id")
    return identity, _MAKERS[reading.kind]("" if identity is None else str(identity), values, reading)


def _named(row: Any, reading: Reading) -> Mapping[str, Any]:
    kind, columns = reading.kind, reading.columns
    if isinstance(row, Mapping):
        if PLAIN not in row:
            return row
        row = row[PLAIN]
    if isinstance(row, str) and kind in ("sequence", "token"):
        return {columns.text[0]: row}
    if isinstance(row, list | tuple) and kind == "token":
        return {columns.text[0]: list(row)}
    if isinstance(row, list | tuple) and len(row) == 2 and kind in ("sequence", "question") and columns.pair:
        return {columns.text[0]: row[0], columns.pair[0]: row[1]}
    wanted = {"question": "a question and its context", "choice": "a text and its endings"}.get(kind, "a text")
    raise BadRowError(f"{'a bare text' if isinstance(row, str) else type(row).__name__} where {wanted} is wanted")


def _find(values: Mapping[str, Any], names: tuple[str, ...], flag: str) -> Any:
    """The first of the columns that is there. Raises BadRowError without one, with the flag that names another."""
    for name in names:
        if name in values:
            return values[name]
    raise _missing(" or ".join(map(repr, names)), values, flag)


def _missing(names: str, values: Mapping[str, Any], flag: str) -> BadRowError:
    return BadRowError(f"no column {names} (found: {some([*values])}; {flag} names another)")


def _text(value: Any, what: str) -> str:
    """A text that tokenizers take. Raises BadRowError."""
    if not isinstance(value, str):
        raise BadRowError(f"{what} is empty" if value is None else f"{what} holds {type(value).__name__}, not text")
    if not value.strip():
        raise BadRowError(f"{what} is empty")
    if len(value) > FIELD_LIMIT:
        raise BadRowError(f"{what} is longer than {FIELD_LIMIT} characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{what} is not valid Unicode (half of a surrogate pair)") from error
    return value


def _sequence(identity: str, values: Mapping[str, Any], reading: Reading) -> SequenceExample:
    text = _text(_find(values, reading.columns.text, _TEXT), "the text")
    return SequenceExample(identity, text, _second(values, reading, "the second text of the pair"))


def _second(values: Mapping[str, Any], reading: Reading, what: str) -> str | None:
    """The second text, None without one. Raises BadRowError where the model needs one."""
    names = reading.columns.pair
    given = next((values[name] for name in names if values.get(name) is not None), None)
    if given is None and not reading.pairs:
        return None
    return _text(_find(values, names, _PAIR) if given is None else given, what)


def _token(identity: str, values: Mapping[str, Any], reading: Reading) -> TokenExample:
    words = _find(values, reading.columns.text, _TEXT)
    if isinstance(words, str):
        words = _text(words, "the text").split()
    if not isinstance(words, list) or not words:
        raise BadRowError(f"words are {'an empty list' if words == [] else type(words).__name__}, not a list of words")
    return TokenExample(identity, tuple(_text(word, f"word {i} of the sentence") for i, word in enumerate(words, 1)))


def _question(identity: str, values: Mapping[str, Any], reading: Reading) -> QuestionExample:
    question = _text(_find(values, reading.columns.text, _TEXT), "the question")
    return QuestionExample(identity, question, _text(_find(values, reading.columns.pair, _PAIR), "the context"))


def _choice(identity: str, values: Mapping[str, Any], reading: Reading) -> ChoiceExample:
    prompt = _text(_find(values, reading.columns.text, _TEXT), "the text")
    endings = [_text(ending, f"ending {i}") for i, ending in enumerate(_endings(values, reading.columns))]
    start = _second(values, reading, "the start of the endings")
    if start is not None:
        endings = [f"{start.strip()} {ending}" for ending in endings]
    return ChoiceExample(identity, prompt, tuple(endings))


def _endings(values: Mapping[str, Any], columns: Columns) -> list[Any]:
    names = next((names for names in columns.endings if all(name in values for name in names)), None)
    if names is None:
        missing = " or ".join(", ".join(map(repr, names)) for names in columns.endings)
        raise _missing(missing, values, _ENDINGS)
    if len(names) != 1:
        return [values[name] for name in names]
    (column,) = names
    return present_endings(listed_endings(values[column], column).texts)


_MAKERS: dict[Kind, Callable[[str, Mapping[str, Any], Reading], Example]] = {
    "sequence": _sequence,
    "token": _token,
    "question": _question,
    "choice": _choice,
}

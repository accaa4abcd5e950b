"""Rows of JSON: an object a line, one array of objects, or a document in SQuAD's format."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from distil_jax.data.rows.files import CHUNK, unfolds_too_far
from distil_jax.data.rows.lines import BOM, Batch, batches_of_lines
from distil_jax.data.rows.options import ReadOptions
from distil_jax.data.rows.table import BadRowError, Faults, Row, RowStream, place_of, repeated
from distil_jax.errors import UserError, one_line

SQUAD_COLUMNS = ("id", "question", "context", "answers")
_LARGEST = 1 << 30  # bytes of a document that is held in memory
# Texts, brackets, commas and colons of one JSON line: a line of brackets alone would take thirty times its size.
_MOST_PARTS = 1 << 20
_PARTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[{,:]', re.DOTALL)
_BLANKS = re.compile(r"[ \t\n\r]*")


def open_json(
    chunks: Iterator[bytes], stream: RowStream, options: ReadOptions, faults: Faults, *, lines: bool = False
) -> None:
    """Lets `stream.rows` read JSON whose form the first bytes show.

    Args:
        chunks: the content.
        stream: is filled.
        options: `max_line_bytes` matters.
        faults: what is done about bad rows.
        lines: the file's ending says that there is an object a line; only an array is taken besides.

    Raises:
        UserError: a document is no JSON, or too large to be held.
    """
    start = b""
    for chunk in chunks:
        start += chunk
        if start.strip(BOM + b" \t\r\n"):
            break
    every = itertools.chain([start] if start else [], chunks)
    text = start.removeprefix(BOM).lstrip()
    if text.startswith(b"["):
        _open_array(_document(every, stream), stream, faults)
    elif not lines and text.startswith(b"{") and not _has_objects(text):
        _open_document(_document(every, stream), stream, faults)
    else:
        stream.rows = json_lines(batches_of_lines(every, stream.name, faults, options.max_line_bytes), stream, faults)


def _has_objects(text: bytes) -> bool:
    """Whether the first line is an object of its own, or at least the second one begins like one."""
    first, end, rest = text.partition(b"\n")
    if not end and len(text) >= CHUNK:
        return False
    more = rest.lstrip().startswith(b"{")
    try:
        value = parse_json(first.decode())
        return more or not (_is_document(value) or _is_by_column(value))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return more and len(first.strip()) > 1
    except ValueError:
        return True  # a key that is there twice


def json_lines(batches: Iterator[Batch], stream: RowStream, faults: Faults) -> Iterator[Row]:
    """Yields a row for every object; blank lines are no rows."""
    number = -1
    for first, batch in batches:
        for i, line in enumerate(batch):
            if line is not None and (not line or line.isspace()):
                continue
            number += 1
            if line is None:
                continue
            try:
                yield Row(first + i, number, _object_of(line))
            except BadRowError as error:
                faults(place_of(stream.name, "line", first + i), str(error))


def _object_of(line: bytes) -> dict[str, Any]:
    if _is_overfull(line):
        raise BadRowError(f"a JSON object of more than {_MOST_PARTS} parts")
    try:
        return _named(parse_json(line.decode()))
    except (ValueError, RecursionError) as error:
        hint = " (one JSON object a line is wanted, not an array)" if line.lstrip().startswith(b"[") else ""
        raise BadRowError(f"not JSON: {one_line(error)}{hint}") from error


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRowError(f"holds {type(value).__name__}, not a JSON object with named columns")
    return value


def _is_overfull(line: bytes) -> bool:
    """Whether a JSON line would make far more objects than it has bytes to spare."""
    if len(line) <= CHUNK:
        return False
    for number, part in enumerate(_PARTS.finditer(line)):
        if number >= _MOST_PARTS:
            return True
        if part[0] == b'"':  # a text that does not end: for the parser to say
            return False
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {one_line(repeated(name for name, _ in pairs))!r} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(text: str) -> Any:
    """JSON without a key that is there twice. Raises ValueError or RecursionError."""
    return _DECODER.decode(text)


# Whole documents


def _document(chunks: Iterator[bytes], stream: RowStream) -> str:
    """The whole text. Raises UserError where it is no text or too large."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        check_size(stream, size)
    data = b"".join(parts).removeprefix(BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{stream.name}, line {line}: not valid UTF-8; convert the file with iconv") from error


def check_size(stream: RowStream, size: int) -> None:
    """Raises UserError where so many unpacked bytes are too many for memory, or unfolded too far to be text."""
    if size > _LARGEST:
        raise UserError(
            f"{stream.name}: more than {_LARGEST} bytes, too large to be held in memory; take fewer rows, or a "
            "Parquet file"
        )
    if stream.raw is not None and unfolds_too_far(stream.raw.position, size):
        raise UserError(f"{stream.name}: unfolds from {stream.raw.position} bytes to more than {size}; pack it again")


def _open_array(text: str, stream: RowStream, faults: Faults) -> None:
    stream.unit, stream.rows = "item", _array_rows(text, stream, faults)
    with contextlib.suppress(ValueError, RecursionError):
        if _has_paragraphs(_DECODER.raw_decode(text, _blank(text, text.index("[") + 1))[0]):
            _open_squad(parse_json(text), stream, faults)


def _array_rows(text: str, stream: RowStream, faults: Faults) -> Iterator[Row]:
    """Yields the objects of an array, one at a time; what follows a syntax error cannot be read."""
    at, number = _blank(text, text.index("[") + 1), 0
    if text[at : at + 1] == "]":
        at = len(text)
    while at < len(text):
        where = place_of(stream.name, "item", number + 1)
        try:
            value, at = _DECODER.raw_decode(text, at)
            mark, at = text[(at := _blank(text, at)) : at + 1], _blank(text, at + 1)
            if mark not in (",", "]") or (mark == "]") != (at == len(text)):
                raise json.JSONDecodeError("',' or the end of the array expected", text, at)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else text.count("\n", 0, at) + 1
            faults(f"{stream.name}, line {line}", f"not JSON: {one_line(error)} (item {number + 1})")
            return
        try:
            yield Row(number + 1, number, _named(value))
        except BadRowError as error:
            faults(where, str(error))
        number += 1


def _blank(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _open_document(text: str, stream: RowStream, faults: Faults) -> None:
    try:
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{stream.name}{line}: not JSON ({one_line(error)}); fetch or write it again") from error
    if _is_by_column(document):
        numbers = [*next(iter(document.values()))]
        rows = [{name: column[number] for name, column in document.items()} for number in numbers]
        stream.unit, stream.rows = "item", _flat_rows(rows, stream, faults)
        return
    if not _is_document(document):
        stream.rows = iter([Row(1, 0, document)])
        return
    entries = document.get("data", [document])
    if any(map(_has_paragraphs, entries)) or not any({*entry} - {"title"} for entry in entries if entry):
        _open_squad(entries, stream, faults)
    else:
        stream.unit, stream.rows = "item", _flat_rows(entries, stream, faults)


def _has_paragraphs(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("paragraphs"), list)


def _open_squad(articles: list[Any], stream: RowStream, faults: Faults) -> None:
    stream.columns, stream.unit = SQUAD_COLUMNS, ""
    stream.rows = _squad_rows(articles, stream, faults)


def is_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(parse_json(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _is_document(value: Any) -> bool:
    """Whether an object is a document of many rows: SQuAD's articles, one of them, or rows under "data"."""
    if not isinstance(value, dict):
        return False
    data = value.get("data")
    if isinstance(data, list):
        return not data or isinstance(data[0], dict)
    return "data" not in value and _has_paragraphs(value)


def _is_by_column(value: Any) -> bool:
    """Whether an object holds columns, each with the values of all rows by number, as pandas writes by default."""
    columns = [*value.values()] if isinstance(value, dict) else []
    if not columns or not all(isinstance(column, dict) and column for column in columns):
        return False
    return all(map(str.isdecimal, columns[0])) and all(column.keys() == columns[0].keys() for column in columns)


def _flat_rows(entries: list[Any], stream: RowStream, faults: Faults) -> Iterator[Row]:
    for number, entry in enumerate(entries):
        try:
            yield Row(number + 1, number, _named(entry))
        except BadRowError as error:
            faults(place_of(stream.name, "item", number + 1), str(error))


# SQuAD


def _squad_rows(articles: list[Any], stream: RowStream, faults: Faults) -> Iterator[Row]:
    for number, (place, context, entry) in enumerate(_questions(articles, stream.name)):
        where = f"{place} (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else place
        try:
            yield Row(where, number, _question_values(context, entry))
        except BadRowError as error:
            faults(place_of(stream.name, "", where), str(error))


def _questions(articles: list[Any], name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields (path of the question in the document, context, question)."""
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(_list_of(name, article, "paragraphs", f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            for k, entry in enumerate(_list_of(name, paragraph, "qas", place)):
                yield f"{place}.qas[{k}]", paragraph.get("context"), entry


def _list_of(name: str, entry: Any, key: str, place: str) -> list[Any]:
    found = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{name}, {place}: no list {key!r}; SQuAD's format is data[].paragraphs[].qas[]")
    return found


def _question_values(context: Any, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadRowError("not an object with a question")
    if context is None:
        raise BadRowError("its paragraph has no 'context'")
    values = {"context": context, **{name: entry[name] for name in ("id", "question", "answers") if name in entry}}
    if entry.get("is_impossible"):
        if any(answer.get("text") for answer in entry.get("answers") or () if isinstance(answer, dict)):
            raise BadRowError("is_impossible is true, but there are answers")
        values["answers"] = []
    return values

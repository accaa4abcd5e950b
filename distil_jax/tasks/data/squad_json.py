"""Files in SQuAD's JSON format, versions 1.1 and 2.0: articles, their paragraphs, questions with answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distil_jax.data.rows import BadRowError, Faults, Row, Table, place_of
from distil_jax.errors import UserError
from distil_jax.tasks.data.lines import read_bytes, suffix_of
from distil_jax.tasks.data.official import Columns
from distil_jax.tasks.data.tabular import JSON_SUFFIXES, parse_json, read_json_rows

COLUMNS = ("id", "question", "context", "answers")


def read_questions(path: Path, columns: Columns, faults: Faults) -> Table:
    """Reads SQuAD JSON as rows of `COLUMNS`, or JSON Lines with the columns given.

    Raises:
        UserError: the file is neither, or an entry lacks a part (its path in the document is named).
    """
    if suffix_of(path) not in JSON_SUFFIXES:
        raise UserError(f"{path}: questions are read from SQuAD JSON, JSON Lines or Parquet (.json, .jsonl, .parquet)")
    document = _document(path)
    if document is None:
        return read_json_rows(path, columns, faults)
    table = Table(str(path), COLUMNS, [], unit="")
    for number, (place, context, entry) in enumerate(_entries(path, document)):
        try:
            table.rows.append(Row(_named(place, entry), number, _values(context, entry)))
        except BadRowError as error:
            faults(place_of(table.name, "", _named(place, entry)), str(error))
    return table


def _document(path: Path) -> dict[str, Any] | None:
    """The document, or None where the file holds JSON Lines."""
    try:
        text = read_bytes(path).decode()
        document = parse_json(text)
    except UnicodeDecodeError:
        return None  # whoever reads lines says which one it is
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0]
        if _is_object(first) or suffix_of(path) != ".json":
            return None
        raise UserError(f"{path}: not JSON ({error}); fetch or write it again") from error
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        return document
    return None


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except (ValueError, RecursionError):
        return False


def _entries(path: Path, document: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (path of the question in the document, context, question)."""
    for i, article in enumerate(document["data"]):
        for j, paragraph in enumerate(_list_of(path, article, "paragraphs", f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            for k, entry in enumerate(_list_of(path, paragraph, "qas", place)):
                yield f"{place}.qas[{k}]", paragraph.get("context"), entry


def _list_of(path: Path, entry: Any, key: str, place: str) -> list[Any]:
    found = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path}, {place}: no list {key!r}; SQuAD's format is data[].paragraphs[].qas[]")
    return found


def _named(place: str, entry: Any) -> str:
    return f"{place} (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else place


def _values(context: Any, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadRowError("not an object with a question")
    if context is None:
        raise BadRowError("its paragraph has no 'context'")
    answers = entry.get("answers")
    if entry.get("is_impossible") and answers:
        raise BadRowError("is_impossible is true, but there are answers")
    return {"context": context, **{name: entry[name] for name in ("id", "question", "answers") if name in entry}}

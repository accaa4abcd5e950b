"""The names of a head's outputs in config.json: id2label, label2id, num_labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.errors import UserError, shown

MOST_LABELS = 1 << 20  # far beyond any task; a larger number is a typing mistake or a hostile file


def numbered_labels(count: int) -> tuple[str, ...]:
    """The names that transformers gives to outputs without one: LABEL_0, LABEL_1, ..."""
    return tuple(f"LABEL_{i}" for i in range(count))


def has_names(labels: tuple[str, ...]) -> bool:
    """Whether the outputs have names of their own."""
    return bool(labels) and labels != numbered_labels(len(labels))


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels that a caller gives. Raises UserError for what is no list of different names."""
    if isinstance(labels, str):
        raise UserError(f"labels: is the text {shown(labels)}, expected a list of names")
    _refuse_too_many(labels, "labels")
    seen: set[str] = set()
    for number, name in enumerate(labels):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"labels: label {number} is {shown(name)}, expected a name in quotes")
        if name in seen:
            raise UserError(f"labels: the name {shown(name)} is there twice; give every label its own")
        seen.add(name)
    return tuple(labels)


def labels_from_hf(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Every output's name in a config.json: id2label, else label2id, else num_labels (2) numbered ones.

    Numbers, booleans and null are names as Python spells them, as in transformers; a blank name is LABEL_ and the
    number of its output, and a name that another output has already is followed by it.

    Args:
        raw: the parsed config.json.
        where: its path, for messages.

    Raises:
        UserError: these fields are not what they should be.
    """
    by_number, by_name = raw.get("id2label"), raw.get("label2id")
    if by_number is not None:
        if not isinstance(by_number, dict):
            raise UserError(f"{where}: id2label = {shown(by_number)}, expected an object from numbers to names")
        pairs = [(_number(key, "id2label", where), name) for key, name in by_number.items()]
    elif isinstance(by_name, dict) and by_name:
        pairs = [(_number(value, "label2id", where), name) for name, value in by_name.items()]
    else:
        count = raw.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise UserError(f"{where}: num_labels = {count!r}, expected a whole number from 1 to {MOST_LABELS}")
        return numbered_labels(count)
    field = "id2label" if by_number is not None else "label2id"
    pairs.sort(key=lambda pair: pair[0])
    numbers = [number for number, _ in pairs]
    twice = next((number for number, following in itertools.pairwise(numbers) if number == following), None)
    if twice is not None:
        raise UserError(f"{where}: {field} has the number {twice} twice; give every label its own")
    gap = next((i for i, number in enumerate(numbers) if i != number), None)
    if gap is not None or not numbers:
        raise UserError(f"{where}: {field} has no label {gap or 0}; number the labels from 0 without a gap")
    return _distinct([name for _, name in pairs], f"{where}: {field}")


def _number(key: Any, field: str, where: str) -> int:
    text = str(key) if type(key) is int else key
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 9:
        raise UserError(f"{where}: {field} has the number {shown(key)}, expected a whole number from 0 on")
    return int(text)


def _distinct(values: Sequence[Any], where: str) -> tuple[str, ...]:
    _refuse_too_many(values, where)
    names: dict[str, None] = {}  # in order, and quick to look up
    for number, value in enumerate(values):
        if isinstance(value, dict | list):
            raise UserError(f"{where}: label {number} is {shown(value)}, expected a name")
        name = str(value) if str(value).strip() else f"LABEL_{number}"
        while name in names:
            name = f"{name} ({number})"
        names[name] = None
    return tuple(names)


def _refuse_too_many(labels: Sequence[Any], where: str) -> None:
    if len(labels) > MOST_LABELS:
        raise UserError(f"{where}: {len(labels)} labels, more than {MOST_LABELS}; these are not the names of classes")

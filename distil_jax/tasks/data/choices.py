"""Endings of a choice and which of them is right, however the two are written."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from distil_jax.data.rows import BadRowError, some
from distil_jax.errors import UserError
from distil_jax.tasks.data.labels import class_name, list_in_text, number_of

T = TypeVar("T")
_FEW = 12  # rows in which the first ending may well never be the right one


class Endings(NamedTuple):
    """The endings of a row; `names` are what its label calls them, where the row says so."""

    texts: list[Any]
    names: tuple[str, ...] = ()


def listed_endings(value: Any, column: str) -> Endings:
    """The endings in one column.

    Args:
        value: a list of texts, or of {text, label}; {text: [...], label: [...]} (ARC); or one of these as JSON text.
        column: its name, for messages.

    Raises:
        BadRowError: it is none of these.
    """
    if isinstance(value, str):
        value = list_in_text(value, f"column {column!r}")
    if isinstance(value, dict) and "text" in value:
        texts, names = value["text"], value.get("label", ())
    elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) and "text" in item for item in value):
        texts, names = [item["text"] for item in value], [item["label"] for item in value if "label" in item]
    else:
        texts, names = value, ()
    if not isinstance(texts, list | tuple) or len(texts) < 2:
        raise BadRowError(f"column {column!r} holds no list of two or more endings")
    return Endings([*texts], tuple(map(class_name, names)) if len(names) == len(texts) else ())


def present_endings(texts: Sequence[Any]) -> list[Any]:
    """The texts without those that are missing (null) behind the last one; an empty text is an ending."""
    last = max((place for place, text in enumerate(texts) if text is not None), default=-1)
    return ["" if text is None else text for text in texts[: last + 1]]


@dataclasses.dataclass(frozen=True)
class ChoiceLabels:
    """How a label says which ending is right: decided over all rows, by `choice_labels`.

    Attributes:
        first: what the first ending's number is, 0 or 1.
        names: what the label is for each ending in order, where the user says so.
        by_text: the label is the ending itself.
    """

    first: int = 0
    names: tuple[str, ...] = ()
    by_text: bool = False

    def number(self, label: Any, endings: Endings) -> int:
        """The number of the right ending, from 0. Raises BadRowError where the label is none."""
        name, count = class_name(label), len(endings.texts)
        for names in (endings.names, self.names):
            if _place(name, names) < count:
                return _place(name, names)
        number = number_of(name)
        letter = string.ascii_uppercase.find(name.upper()) if len(name) == 1 else -1
        if self.names or self.by_text or (number is None and not 0 <= letter < count):
            same = [place for place, ending in enumerate(endings.texts) if str(ending).strip() == name]
            if len(same) != 1:
                raise BadRowError(f"label {name[:60]!r} is {'none' if not same else 'more than one'} of the endings")
            return same[0]
        if number is None:
            return letter
        if number != int(number) or not self.first <= number < count + self.first:
            last = count + self.first - 1
            raise BadRowError(f"label {name} is out of range: there are {count} endings, {self.first} to {last}")
        return int(number) - self.first


BY_NUMBER = ChoiceLabels()


def _place(name: str, names: Sequence[str]) -> int:
    """The place of a name among names, numbers by value; their number where it is none of them."""
    number = number_of(name)
    same = (other == name or (number is not None and number_of(other) == number) for other in names)
    return next((place for place, found in enumerate(same) if found), len(names) or 1 << 30)


def choice_labels(
    rows: Sequence[tuple[Any, Endings]], given: tuple[str, ...] = (), *, from_zero: bool = False
) -> tuple[ChoiceLabels, str]:
    """How the labels of a column say which ending is right, and what to say about it.

    Numbers count from 0 unless the whole column fits only a count from 1, or has letters beside numbers above 0 (ARC).

    Args:
        rows: (label, endings) of every labelled row of all sets.
        given: the setting task.labels.
        from_zero: numbers are known to count from 0.

    Raises:
        UserError: labels fit in several ways, and these differ.
    """
    labelled = [(name, endings) for label, endings in rows if (name := _or_none(class_name, label)) is not None]
    if given or from_zero or not labelled:
        return ChoiceLabels(names=given), ""
    zero, one, text = ChoiceLabels(0), ChoiceLabels(1), ChoiceLabels(by_text=True)
    fits: dict[str, list[int | None]] = {
        name: [_or_none(reading.number, *row) for row in labelled]
        for name, reading in (("zero", zero), ("one", one), ("text", text))
    }
    good = {name: sum(number is not None for number in numbers) for name, numbers in fits.items()}
    whole = [name for name, count in good.items() if count == len(labelled)]
    if "text" in whole and len(whole) > 1 and any(fits[name] != fits["text"] for name in whole):
        raise UserError(
            f"task.label: labels such as {labelled[0][0]!r} may be endings or count them; say what stands for each "
            "ending, in order: --task.labels 0 1 2 3"
        )
    numbers = {number_of(name) for name, _ in labelled}
    if 0 not in numbers and not numbers <= {None}:
        letters = any(name in string.ascii_letters for name, _ in labelled)
        if good["one"] > good["zero"] or (letters and "one" in whole):
            return one, "labels count the endings from 1"
        if {"zero", "one"} <= {*whole} and fits["zero"] != fits["one"] and len(labelled) >= _FEW:
            raise UserError(
                f"task.label: the labels {some(sorted(map(str, numbers)))} may count the endings from 0 or from 1; say "
                "what stands for each ending, in order: --task.labels 0 1 2 3 (or 1 2 3 4)"
            )
    return (zero, "") if good["zero"] >= good["text"] else (text, "")


def _or_none(read: Callable[..., T], *arguments: Any) -> T | None:
    try:
        return read(*arguments)
    except BadRowError:
        return None

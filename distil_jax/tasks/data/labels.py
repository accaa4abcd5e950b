"""Which class a label stands for, however it is spelled: decided over a whole column, and said."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from distil_jax.data.rows import BadRowError, parse_json, some
from distil_jax.errors import UserError
from distil_jax.tasks.metrics.tag_schemes import TAG, mark_first

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0*)?")
_NUMBER_INSIDE = re.compile(r"[0-9]+")
_LONGEST_NUMBER = 40  # characters; longer digit strings are codes
_TRUTH = {"false": False, "true": True}
PLACEHOLDERS = frozenset(
    {"-", "--", "-1", "?", "n/a", "na", "nan", "nil", "none", "null", "unknown", "undefined", "missing", "unlabeled"}
)


def is_blank(value: Any) -> bool:
    """Whether there is no label: nothing, NaN (pandas' nothing), or an empty text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def class_name(value: Any) -> str:
    """The label as text: a name without outer blanks, a number of JSON as digits, a boolean in lower case.

    Raises:
        BadRowError: it is blank, or no text, number or boolean.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        with contextlib.suppress(ValueError):  # Python does not spell out thousands of digits
            return str(value) if isinstance(value, int) else plain_number(Decimal(repr(value)))
    raise BadRowError("no label" if is_blank(value) else f"label {value!r} is neither a name nor a number")


def number_of(name: str) -> Decimal | None:
    """The number that a name spells ("2", "2.0", "2e0"); None where it spells none."""
    if len(name) > _LONGEST_NUMBER or not _NUMBER.fullmatch(name):
        return None
    return Decimal(name)


def _key(name: str) -> Decimal | str:
    """What spellings of one class share: the number, or the name itself."""
    number = number_of(name)
    return name if number is None else number


def plain_number(number: Decimal) -> str:
    """The shortest way to write a number: "2", "-1", "0.5"."""
    return format(number.normalize(), "f") if number else "0"


def _truth(name: str) -> bool | None:
    """True or false, 1 or 0, however it is spelled; None for anything else."""
    number = number_of(name)
    if number is None:
        return _TRUTH.get(name.casefold())
    return {0: False, 1: True}.get(int(number)) if number == int(number) else None


def _same_class(names: Iterable[str]) -> dict[str, list[str]]:
    """The spellings of each class, by the class's name.

    Numbers are one class by their value. In a column of nothing but true and false, 0 and 1 mean these.
    """
    distinct = sorted({*names})
    truths = bool(distinct) and all(_truth(name) is not None for name in distinct)
    if truths and any(name.casefold() in _TRUTH for name in distinct):
        found: dict[str, list[str]] = defaultdict(list)
        for name in distinct:
            found[str(_truth(name)).lower()].append(name)
        return dict(found)
    groups: dict[Decimal | str, list[str]] = defaultdict(list)
    for name in distinct:
        groups[_key(name)].append(name)
    return {_display(key, spellings): spellings for key, spellings in groups.items()}


def _display(key: Decimal | str, spellings: Sequence[str]) -> str:
    """The class's name: codes such as 007 keep their zeros where nothing else spells the number."""
    if isinstance(key, str):
        return key
    kept = len(spellings) == 1 and not _PLAIN_NUMBER.fullmatch(spellings[0])
    return spellings[0] if kept else plain_number(key)


def _names_in(values: Iterable[Any]) -> set[str]:
    names = set()
    for value in values:
        with contextlib.suppress(BadRowError):
            names.add(class_name(value))
    return names


def merged_spellings(values: Iterable[Any]) -> dict[str, list[str]]:
    """The spellings of each class that has several, by its name."""
    return {name: found for name, found in _same_class(_names_in(values)).items() if len(found) > 1}


def found_classes(values: Iterable[Any]) -> tuple[str, ...]:
    """The classes in a column: numbers by size, anything else by alphabet. What is no label is passed over."""
    found = [*_same_class(_names_in(values))]
    numbers = {name: number_of(name) for name in found}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(found, key=lambda name: numbers[name] or Decimal(0)))
    return tuple(sorted(found))


# From spellings to class numbers

Counting = Literal["zero", "evidence", "never"]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a column, with the class of every spelling in it.

    Attributes:
        names: of the classes, in the order of their numbers.
        spellings: class number by spelling, as `class_name` has it.
        notes: what was decided, for the user.
    """

    names: tuple[str, ...]
    spellings: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def number(self, value: Any, what: str = "label") -> int:
        """The number of the class that `value` spells.

        Raises:
            BadRowError: there is no such class; the nearest name and the known ones are named.
        """
        name = class_name(value)
        number = self.spellings.get(name)
        if number is not None:
            return number
        if number_of(name) is not None and self.names and not any(map(_NUMBER_INSIDE.search, self.names)):
            last = len(self.names) - 1
            raise BadRowError(f"{what} {name[:60]} is out of range: 0 ({self.names[0]}) to {last} ({self.names[-1]})")
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadRowError(f"{what} {name[:60]!r} is unknown (known: {some(self.names)}{hint})")


NO_CLASSES = Classes((), {})


def given_classes(labels: Sequence[str], values: Iterable[Any]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the setting task.labels, and class numbers by the spelling that VALUE=NAME gives.

    Items with an equals sign are names as a whole where the column holds one of them.
    """
    if not labels or not all("=" in label for label in labels) or _names_in(values) & {*labels}:
        return tuple(labels), {}
    pairs = [label.partition("=") for label in labels]
    names = tuple(dict.fromkeys(name.strip() for _, _, name in pairs))
    return names, {value.strip(): names.index(name.strip()) for value, _, name in pairs}


def match_classes(
    names: tuple[str, ...],
    values: Iterable[Any],
    *,
    spelled: Mapping[str, int] | None = None,
    counting: Counting = "evidence",
    fold: bool = False,
) -> Classes:
    """The class of every spelling in a column, where the classes are given.

    A spelling is a class's name; or the same number, or the same truth; with `fold`, the same but for capitals where
    only one name is. Where no name is a number, numbers stand for classes: that whose name holds the number ("4
    stars"), else counted from the smallest.

    Args:
        names: of the classes.
        values: the whole column, of all sets.
        spelled: class numbers by spelling, where the user says so.
        counting: "zero" where numbers are known to count from 0; "evidence" where the column has to show it; "never"
            where numbers stand for no class, as the order of the names is not the user's.
        fold: capitals do not matter.

    Raises:
        UserError: numbers may be counted in two ways.
    """
    column = _names_in(values)
    found = {name: place for place, name in enumerate(names)}
    notes: list[str] = []
    by_number = _only_once((number_of(name), place) for place, name in enumerate(names))
    by_truth = _only_once((_truth(name), place) for place, name in enumerate(names)) if len(names) == 2 else {}
    by_truth = by_truth if len(by_truth) == 2 and all(_truth(name) is not None for name in column) else {}
    given = {_key(value): place for value, place in (spelled or {}).items()}
    folded = _only_once((name.casefold(), place) for place, name in enumerate(names)) if fold else {}
    rest: list[str] = []
    for name in sorted(column - found.keys()):
        place = given.get(_key(name), by_number.get(number_of(name)))
        place = by_truth.get(_truth(name), folded.get(name.casefold())) if place is None else place
        if place is not None:
            found[name] = place
        else:
            rest.append(name)
    numbers = {name: number for name in rest if (number := number_of(name)) is not None}
    if numbers and names and not by_number and not spelled and counting != "never":
        counted, note = _counted(names, {*numbers.values()}, counting)
        found |= {name: counted[number] for name, number in numbers.items() if number in counted}
        notes += [note] if note else []
    return Classes(names, found, tuple(notes))


def _only_once(pairs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """A dict of the pairs whose key is not None and there once."""
    places: dict[Any, list[int]] = defaultdict(list)
    for key, place in pairs:
        if key is not None:
            places[key].append(place)
    return {key: found[0] for key, found in places.items() if len(found) == 1}


def _counted(names: tuple[str, ...], numbers: set[Decimal], counting: Counting) -> tuple[dict[Decimal, int], str]:
    """The class of each number where no name is a number, and what to say about it."""
    count, low, high = len(names), min(numbers), max(numbers)
    from_zero = {Decimal(place): place for place in range(count)}
    shown = f"labels are numbers, taken for {some(names)} in this order"
    if counting == "zero":
        return from_zero, ""
    inside = [_NUMBER_INSIDE.findall(name) for name in names]
    held = _only_once((Decimal(found[0]), place) for place, found in enumerate(inside) if len({*found}) == 1)
    if numbers <= held.keys():
        pairs = (f"{plain_number(number)} for {names[held[number]]!r}" for number in sorted(numbers))
        return held, f"labels are numbers, each taken for the name that holds it: {some([*pairs])}"
    complete = numbers == {low + place for place in range(count)}
    contradicted = any(held.get(number, from_zero.get(number)) != from_zero.get(number) for number in numbers)
    if low == 0 and (not contradicted or (complete and len(held) == count)):
        return from_zero, shown
    if complete and not held:
        counted = {low + place: place for place in range(count)}
        return counted, f"{shown}, counted from {plain_number(low)}"
    # What is beyond all classes is refused row by row.
    if held and low > 0 and numbers & held.keys():
        return held, shown
    if not held and (low < 0 or high >= count or any(number != int(number) for number in numbers)):
        return from_zero, ""
    example = " ".join(f'"{plain_number(low + place)}={name}"' for place, name in enumerate(names[:3]))
    raise UserError(
        f"task.label: it is not clear which of the classes {some(names)} the numbers "
        f"{some([plain_number(number) for number in sorted(numbers)])} are; say it with VALUE=NAME for every class, "
        f"such as --task.labels {example}"
    )


def match_model(known: tuple[str, ...], values: Sequence[Any]) -> Classes | None:
    """The classes `known` of a model for a column; None where the column has other ones.

    Raises:
        UserError: as `match_classes`.
    """
    column, matched = _names_in(values), match_classes(known, values, fold=True)
    if all(number_of(name) is not None for name in known):  # of a model without names: all of them or none
        note = f"labels are numbers, taken for the classes {some(known)} by their numbers"
        matched = dataclasses.replace(matched, notes=(note,) if column and "0" not in column else ())
        return matched if column <= matched.spellings.keys() else None
    return matched if not column or column & matched.spellings.keys() else None


def score(value: Any, limits: tuple[float, float] | None) -> float:
    """A finite number, within the limits where there are some. Raises BadRowError for anything else."""
    if is_blank(value):
        raise BadRowError("no score")
    try:
        number = math.nan if isinstance(value, bool | bytes) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        hint = " (decimals are written with a point)" if "," in str(value) else ""
        raise BadRowError(f"score {str(value)[:60]!r} is not a number{hint}") from error
    if not math.isfinite(number):
        raise BadRowError(f"score {value!r} is not a finite number")
    if limits and not limits[0] <= number <= limits[1]:
        raise BadRowError(f"score {number:g} is out of range: it goes from {limits[0]:g} to {limits[1]:g}")
    return number


def is_span_tag(tag: str) -> bool:
    """Whether a tag is O, or a part of an entity with its type: B-PER."""
    match = TAG.fullmatch(mark_first(tag))
    return tag == "O" or (match is not None and match["type"] is not None)


# Sets of classes

SetsAs = Literal["auto", "indicators", "classes"]


class SetForm(NamedTuple):
    """How the sets of classes of a column are written.

    Attributes:
        bars: with | between the names, so that a comma is part of a name.
        width: as so many indicators, 1 for a class of the set and 0 for the others; 0: as names or numbers.
    """

    bars: bool = False
    width: int = 0


NAMES = SetForm()


def set_form(values: Iterable[Any], classes: int, sets_as: SetsAs = "auto") -> SetForm:
    """How the sets of a column are written.

    Lists of equal length with nothing but 0 and 1, or true and false, hold an indicator a class where some list
    repeats a value, has truths, or where the lists [0, 1] and [1, 0] are both there. A list of class numbers does
    none of this.

    Args:
        values: the whole column, of all sets.
        classes: their number where it is known, else 0.
        sets_as: what the user says.

    Raises:
        UserError: both readings fit, and they differ.
    """
    given = [value for value in values if not is_blank(value)]
    bars = any(isinstance(value, str) and "|" in value and not value.lstrip().startswith("[") for value in given)
    lists: list[list[str]] = []
    for value in given:
        with contextlib.suppress(BadRowError):
            lists.append(set_names(value, bars))
    width = len(lists[0]) if lists else 0
    switches = [[*map(_truth, names)] for names in lists]
    alike = width > 0 and all(len(row) == width and None not in row for row in switches)
    if sets_as != "auto" or not alike or (classes and classes != width and not any(map(_repeats, lists))):
        return SetForm(bars, width if sets_as == "indicators" else 0)
    truths = any(name.casefold() in _TRUTH for names in lists for name in names)
    if truths or any(len({*row}) < len(row) for row in switches) or (width == 1 == classes):
        return SetForm(bars, width)
    if width == 1:
        return SetForm(bars)
    if len({tuple(row) for row in switches}) > 1:
        return SetForm(bars, width)
    raise UserError(
        f"task.label: every row holds {given[0]!r}, which is an indicator for each of 2 classes, or the numbers of two "
        "classes; say which: --task.sets-as indicators (or classes)"
    )


def _repeats(names: Sequence[str]) -> bool:
    return len({*names}) < len(names)


def indicator(value: Any) -> int:
    """0 or 1 of a column that holds one class. Raises BadRowError for anything else."""
    found = _truth(class_name(value))
    if found is None:
        raise BadRowError(f"label {str(value)[:60]!r} is neither 0 nor 1")
    return int(found)


def set_names(value: Any, bars: bool) -> list[str]:
    """The names in a set of classes: a list, a list as text, or a text with | or commas between; "" is no class.

    Raises:
        BadRowError: it is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = list_in_text(value.strip(), "label")
    if isinstance(value, str):
        value = value.split("|" if bars else ",") if value.strip() else []
    if value is None or isinstance(value, int | float):
        raise BadRowError("no label" if is_blank(value) else f"label {value!r} is not a list of names")
    if not isinstance(value, list | tuple):
        raise BadRowError(f"label holds {type(value).__name__}, not a list of names")
    return [class_name(name) for name in value]


def list_in_text(text: str, what: str) -> Any:
    """The list (or object) that JSON, Python or NumPy has written. Raises BadRowError, which names `what` holds it."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            if isinstance(found, list | tuple | dict):
                return found
        items = text.strip("[] ").split()
        known = all(number_of(item) is not None or item in ("True", "False") for item in items)
        if known and text.startswith("[") and text.endswith("]"):
            return items
        raise BadRowError(f"{what} holds {text[:60]!r}, no JSON list ({error})") from error


def class_set(value: Any, classes: Classes, form: SetForm) -> tuple[int, ...]:
    """1 for every class of the set and 0 for the others. Raises BadRowError for an unknown one."""
    names = set_names(value, form.bars)
    if form.width:
        switches = [*map(_truth, names)]
        if len(names) != len(classes.names) or None in switches:
            count = len(classes.names)
            raise BadRowError(f"label {str(value)[:60]!r} does not hold a 0 or 1 for each of the {count} classes")
        return tuple(int(switch or 0) for switch in switches)
    numbers = {classes.number(name) for name in names}
    return tuple(int(place in numbers) for place in range(len(classes.names)))


def items_of_sets(values: Iterable[Any], form: SetForm) -> list[str]:
    """All names in sets of classes, as they are written; those of indicators are the numbers of the classes."""
    if form.width:
        return [str(place) for place in range(form.width)]
    names: list[str] = []
    for value in values:
        with contextlib.suppress(BadRowError):
            names += set_names(value, form.bars)
    return names

"""From labels as they are written (names or numbers) to class numbers, and which classes some data has."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from distil_jax.data.rows import BadRowError, some

_BIO = re.compile(r"([BIESLU])-(.+)")
_ENTITY_TAG = re.compile(r"O|[BIESLU](-.+)?")
_INTEGER = re.compile(r"-?[0-9]+")
_SWITCH = {"0": 0, "1": 1, "false": 0, "true": 1}


def is_blank(value: Any) -> bool:
    """Whether there is no label: nothing, or an empty text."""
    return value is None or (isinstance(value, str) and not value.strip())


def class_name(value: Any) -> str:
    """The name of a class as it is written: a text, or a whole number in JSON. Raises BadRowError for anything else."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise BadRowError("no label" if is_blank(value) else f"label {value!r} is neither a name nor a whole number")


def found_classes(values: Iterable[Any]) -> tuple[str, ...]:
    """The different names: whole numbers by size, anything else by alphabet. What is no name is passed over."""
    names = set()
    for value in values:
        try:
            names.add(class_name(value))
        except BadRowError:
            continue
    return tuple(sorted(names, key=int if all(map(_INTEGER.fullmatch, names)) else None))


def found_tags(rows: Iterable[Any]) -> tuple[str, ...]:
    """The different tags: O, then those of each type together, B- before I-. What is no name is passed over."""
    names = {tag for tags in rows if isinstance(tags, list) for tag in tags if isinstance(tag, str) and tag.strip()}
    return tuple(sorted(names, key=_tag_order))


def _tag_order(tag: str) -> tuple[bool, str, int]:
    match = _BIO.fullmatch(tag)
    return tag != "O", match[2] if match else tag, "BIESLU".index(match[1]) if match else 0


def with_known(found: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """All classes, of which the data have `found` and a model all that are `known`.

    Numbers are those of the known classes, in their order. Names are known in any case of their letters; where none is,
    the found ones stay as they are.
    """
    if found and {*found} <= {*map(str, range(len(known)))}:
        return known
    spelled = {name.casefold(): name for name in found}
    common = any(name.casefold() in spelled for name in known) and _numbers(known)[1]
    return tuple(spelled.get(name.casefold(), name) for name in known) if common else found


def mark_entities(tags: Iterable[str]) -> bool:
    """Whether the tags say where entities begin and end (B-PER, I-PER, O), unlike parts of speech (NOUN, VERB)."""
    return all(_ENTITY_TAG.fullmatch(tag) for tag in tags)


def is_span_tag(tag: str) -> bool:
    """Whether a tag is O, or tells a part of an entity and the entity's type: B-PER."""
    return tag == "O" or _BIO.fullmatch(tag) is not None


def class_number(value: Any, labels: tuple[str, ...], what: str = "label") -> int:
    """The number of the class that is written as `value`: its name or, where no name is a number, its number.

    Raises:
        BadRowError: there is no such class; the nearest name and the known ones are named.
    """
    name = class_name(value)
    numbers, all_names = _numbers(labels)
    if name in numbers:
        return numbers[name]
    if labels and all_names and _INTEGER.fullmatch(name):
        if 0 <= int(name[:20]) < len(labels):
            return int(name)
        raise BadRowError(f"{what} {name} is out of range: 0 ({labels[0]}) to {len(labels) - 1} ({labels[-1]})")
    near = difflib.get_close_matches(name, labels, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BadRowError(f"{what} {name[:60]!r} is unknown (known: {some(labels)}{hint})")


@functools.lru_cache(maxsize=8)
def _numbers(labels: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """Number of each name, and whether no name looks like a number."""
    return {name: i for i, name in enumerate(labels)}, not any(map(_INTEGER.fullmatch, labels))


def score(value: Any, limits: tuple[float, float] | None) -> float:
    """A finite number, within the limits where there are some. Raises BadRowError for anything else."""
    if is_blank(value):
        raise BadRowError("no score")
    try:
        number = math.nan if isinstance(value, bool | bytes) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRowError(f"score {str(value)[:60]!r} is not a number") from error
    if not math.isfinite(number):
        raise BadRowError(f"score {value!r} is not a finite number")
    if limits and not limits[0] <= number <= limits[1]:
        raise BadRowError(f"score {number:g} is out of range: it goes from {limits[0]:g} to {limits[1]:g}")
    return number


class SetForm(NamedTuple):
    """How the sets of classes of some data are written.

    Attributes:
        bars: with | between the names, so that a comma is part of a name.
        width: as so many numbers, 1 for a class of the set and 0 for the others; 0: as names.
    """

    bars: bool = False
    width: int = 0


NAMES = SetForm()


def set_form(values: Iterable[Any]) -> SetForm:
    """How these sets are written.

    They are zeros and ones for all classes if all are equally long and have nothing else in them, and not every one
    could be a set of the classes 0 and 1.
    """
    given = [value for value in values if not is_blank(value)]
    bars = any(isinstance(value, str) and "|" in value and not value.lstrip().startswith("[") for value in given)
    sets = []
    for value in given:
        with contextlib.suppress(BadRowError):
            sets.append(set_names(value, bars))
    width = len(sets[0]) if sets else 0
    alike = width > 1 and all(len(names) == width and {*names} <= _SWITCH.keys() for names in sets)
    return SetForm(bars, width if alike and any(len({*names}) < width for names in sets) else 0)


def set_names(value: Any, bars: bool) -> list[str]:
    """The names in a set of classes: a list, a JSON list, or a text with | or commas between them; "" is no class.

    Raises:
        BadRowError: it is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"label {value[:60]!r} begins like a JSON list and is none ({error})") from error
    if isinstance(value, str):
        value = value.split("|" if bars else ",") if value.strip() else []
    if value is None or isinstance(value, int | float):
        raise BadRowError("no label" if value is None else f"label {value!r} is not a list of names")
    if not isinstance(value, list):
        raise BadRowError(f"label holds {type(value).__name__}, not a list of names")
    return [class_name(name) for name in value]


def class_set(value: Any, labels: tuple[str, ...], form: SetForm) -> tuple[int, ...]:
    """1 for every class of the set and 0 for the others. Raises BadRowError for an unknown one."""
    names = set_names(value, form.bars)
    if form.width:
        if len(names) != len(labels) or not {*names} <= _SWITCH.keys():
            raise BadRowError(f"label {str(value)[:60]!r} does not hold a 0 or 1 for each of the {len(labels)} classes")
        return tuple(_SWITCH[name] for name in names)
    numbers = {class_number(name, labels) for name in names}
    return tuple(int(i in numbers) for i in range(len(labels)))


def found_sets(values: Sequence[Any], form: SetForm) -> tuple[str, ...]:
    """The different names in sets of classes, as `found_classes`; of zeros and ones, the numbers of the classes."""
    if form.width:
        return tuple(map(str, range(form.width)))
    names: list[str] = []
    for value in values:
        try:
            names += set_names(value, form.bars)
        except BadRowError:
            continue
    return found_classes(names)

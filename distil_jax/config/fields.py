"""What a setting is made of: type, default, help and check, and how a value is held against them."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from distil_jax.errors import UserError

INTEGER_LIMIT = 2**31  # JAX without 64-bit mode takes signed 32-bit integers


@dataclass(frozen=True)
class Check:
    """What a value must satisfy beyond its type: `text` completes "must be ..."."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Check:
    """A value >= low."""
    return Check(f"at least {low:g}", lambda value: value >= low)


def above(low: float) -> Check:
    """A value > low."""
    return Check(f"above {low:g}", lambda value: value > low)


def between(low: float, high: float) -> Check:
    """A value with low <= value <= high."""
    return Check(f"from {low:.12g} to {high:.12g}", lambda value: low <= value <= high)


def below_one(*, zero: bool) -> Check:
    """0 <= value < 1, or 0 < value < 1 where `zero` is false."""
    text = "at least 0 and below 1" if zero else "above 0 and below 1"
    return Check(text, lambda value: (value >= 0 if zero else value > 0) and value < 1)


NOT_EMPTY = Check("that is not empty", lambda value: value != "")
HOST_AND_PORT = Check("of the form host:port", lambda value: not value or bool(re.fullmatch(r".+:[0-9]{1,5}", value)))
NO_EMPTY_ITEM = Check("without empty items", lambda value: "" not in value)
LAYER_NUMBERS = Check("each at least 0", lambda value: all(item >= 0 for item in value))


def setting(default: Any, text: str, check: Check | None = None, *, machine: bool = False) -> Any:
    """A field of a section.

    Args:
        default: its default.
        text: what it means, with its unit; shown by `--help`.
        check: what its value must satisfy beyond its type.
        machine: true where it says how or where a run is executed, not what it computes, so that it may change between
            the start of a run and its resumption.
    """
    return field(default=default, metadata={"help": text, "check": check, "machine": machine})


class Section:
    """Base of the sections: checks every field when one is made."""

    def __post_init__(self) -> None:
        name = section_name(type(self))
        for key, spec in fields_of(type(self)).items():
            object.__setattr__(self, key, spec.checked(getattr(self, key), f"{name}.{key}"))
        self.check_together()

    def check_together(self) -> None:
        """Checks which involve several fields of the section."""


@dataclass(frozen=True)
class Field:
    """One setting, as the schema describes it."""

    annotation: Any
    default: Any
    help: str
    check: Check | None
    machine: bool

    @property
    def allowed(self) -> str:
        """What may be given, in words: "a number above 0"."""
        text = allowed_text(self.annotation)
        return text if self.check is None else f"{text} {self.check.text}"

    def checked(self, value: Any, name: str) -> Any:
        """`value` in its exact type, or `UserError` saying what `name` ("section.key") may be."""
        try:
            value = _typed(value, self.annotation)
            good = self.check is None or self.check.holds(value)
        except (TypeError, OverflowError):
            good = False
        if not good:
            raise UserError(f"{name} = {shown(value)}: must be {self.allowed}")
        return value


def section_name(section: type[Section]) -> str:
    """Name of a section in the file: `Optimizer` -> "optimizer"."""
    return section.__name__.removesuffix("Settings").lower()


@functools.cache
def fields_of(section: type[Section]) -> dict[str, Field]:
    """The settings of a section by name, in order."""
    hints = typing.get_type_hints(section)
    return {
        spec.name: Field(
            hints[spec.name], spec.default, spec.metadata["help"], spec.metadata["check"], spec.metadata["machine"]
        )
        for spec in dataclasses.fields(typing.cast(Any, section))
    }


def shown(value: Any) -> str:
    """A value as it would stand in the file, shortened to fit a message."""
    text = (
        str(value).lower() if isinstance(value, bool) else repr(value) if not isinstance(value, str) else f'"{value}"'
    )
    return text if len(text) <= 80 else text[:77] + "..."


def allowed_text(annotation: Any) -> str:
    """What values of a type are called: "a whole number"."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return {str: "a list of texts", int: "a list of whole numbers"}[typing.get_args(annotation)[0]]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[annotation]


def _typed(value: Any, annotation: Any) -> Any:
    """The value in the annotated type; `TypeError` where it is of another kind or out of a 32-bit machine's range."""
    good = False
    if typing.get_origin(annotation) is Literal:
        good = isinstance(value, str) and value in typing.get_args(annotation)
    elif typing.get_origin(annotation) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(item, typing.get_args(annotation)[0]) for item in value)
    elif annotation is bool:
        good = isinstance(value, bool)
    elif annotation is str:
        good = isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
    elif annotation is int:
        good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGER_LIMIT
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not good:
        raise TypeError
    return value

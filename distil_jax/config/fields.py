"""What a setting consists of: type, default, help and check; and the check of a value against them."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from distil_jax.errors import UserError, shown

INTEGER_LIMIT = 2**31  # JAX without 64-bit mode takes signed 32-bit integers
# Settings become float32 numbers on the device: what is larger would be infinite there, what is smaller would be 0.
LARGEST_FLOAT, SMALLEST_FLOAT = 3.4e38, 1.2e-38
_LONGEST_TEXT = 4096  # as Linux has it for a path


@dataclass(frozen=True)
class Check:
    """What a value must satisfy beyond its type.

    Attributes:
        text: completes "must be a number ...".
        holds: whether a value satisfies it.
        low, high: bounds of a number, or of each number of a list, where there are any.
    """

    text: str
    holds: Callable[[Any], bool]
    low: float = -math.inf
    high: float = math.inf


def at_least(low: float) -> Check:
    """A value >= low."""
    return Check(f"at least {low:g}", lambda value: value >= low, low)


def above(low: float) -> Check:
    """A value > low."""
    return Check(f"above {low:g}", lambda value: value > low, low)


def between(low: float, high: float) -> Check:
    """A value with low <= value <= high."""
    return Check(f"from {low:.12g} to {high:.12g}", lambda value: low <= value <= high, low, high)


def below_one(*, zero: bool) -> Check:
    """0 <= value < 1, or 0 < value < 1 where `zero` is false."""
    text = "at least 0 and below 1" if zero else "above 0 and below 1"
    return Check(text, lambda value: (value >= 0 if zero else value > 0) and value < 1, 0, 1)


def each(check: Check) -> Check:
    """A list whose items satisfy `check`."""
    return Check(f"each {check.text}", lambda values: all(map(check.holds, values)), check.low, check.high)


def one_of_each(names: tuple[str, ...]) -> Check:
    """A list of some of these names."""
    return Check(f"each one of {', '.join(names)}", lambda values: {*values} <= {*names})


NOT_EMPTY = Check("that is not empty", lambda value: value != "")
HOST_AND_PORT = Check("of the form host:port, with a port from 1 to 65535", lambda value: not value or _has_port(value))
LAYER_PAIRS = Check(
    'each "student:teacher", as in "3:6"',
    lambda pairs: all(re.fullmatch("[0-9]{1,3}:[0-9]{1,3}", pair) for pair in pairs),
)
SEPARATOR = Check('one character, or "tab"', lambda value: len(value) <= 1 or value == "tab")
NO_EMPTY_ITEM = Check("without empty items", lambda value: "" not in value)


NAMED_SETTINGS = Check(
    'each "NAME: section.key=value", with + between several settings',
    lambda items: all(re.fullmatch(r"[^:]*[^:\s][^:]*:\s*\w+\.\w+=.*", item) for item in items),
)


def _has_port(address: str) -> bool:
    # With a port that cannot be, JAX waits five minutes for the others.
    return bool(re.fullmatch(r".+:[0-9]{1,5}", address)) and 0 < int(address.rpartition(":")[2]) < 1 << 16


def setting(
    default: Any, text: str, check: Check | None = None, *, affects_result: bool = True, loss_weight: bool = False
) -> Any:
    """A field of a section.

    Args:
        default: its default.
        text: what it means, with its unit; shown by `--help`.
        check: what its value must satisfy beyond its type.
        affects_result: false where it says how or where a run is executed, not what it computes. Such a setting may
            change between the start of a run and its resumption.
        loss_weight: whether it is the weight of the loss term of its name.
    """
    metadata = {"help": text, "check": check, "affects_result": affects_result, "loss_weight": loss_weight}
    return field(default=default, metadata=metadata)


def weight(default: float, text: str) -> Any:
    """The weight of the loss term that has the field's name; 0 leaves the term out."""
    return setting(default, f"weight of {text}; 0: left out", between(0, 1e6), loss_weight=True)


class Section:
    """Base of the sections: checks every field when one is made."""

    affects_result: ClassVar[bool] = True  # false where none of its settings does, see `setting`

    def __post_init__(self) -> None:
        for key, spec in fields_of(type(self)).items():
            object.__setattr__(self, key, spec.checked(getattr(self, key), self.full_name(key)))
        self.validate()

    @classmethod
    def full_name(cls, key: str) -> str:
        """What messages call a field: "optimizer.beta1"."""
        return f"{section_name(cls)}.{key}"

    def validate(self) -> None:
        """Checks which involve several fields of the section."""


@dataclass(frozen=True)
class Field:
    """One setting, as the schema describes it."""

    annotation: Any
    default: Any
    help: str
    check: Check | None
    affects_result: bool
    loss_weight: bool = False

    @property
    def allowed(self) -> str:
        """What may be given, in words: "a number above 0"."""
        text = allowed_text(self.annotation)
        return text if self.check is None else f"{text} {self.check.text}"

    @property
    def is_list(self) -> bool:
        """Whether it has any number of values."""
        return typing.get_origin(self.annotation) is tuple

    @property
    def is_optional(self) -> bool:
        """Whether it may be left open, None."""
        return isinstance(self.annotation, types.UnionType)

    @property
    def is_switch(self) -> bool:
        """Whether it is yes or no."""
        return _without_none(self.annotation) is bool

    @property
    def takes(self) -> str:
        """What follows its flag, in the words of a help page: "N"."""
        kind = _without_none(self.annotation)
        if typing.get_origin(kind) is Literal:
            return "|".join(typing.get_args(kind))
        return "..." if self.is_list else {int: "N", float: "X", str: "TEXT"}[kind]

    def read(self, texts: Sequence[str]) -> Any:
        """The value that these texts of a command line stand for, not checked; ValueError where they stand for none."""
        if self.is_optional and [*texts] == ["None"]:
            return None
        if self.is_list:
            return tuple(_value_in(text, typing.get_args(self.annotation)[0]) for text in texts)
        (text,) = texts
        return _value_in(text, _without_none(self.annotation))

    def checked(self, value: Any, name: str) -> Any:
        """`value` in its exact type, or `UserError` saying what `name` ("section.key" or "--flag") may be."""
        limits = ""
        if value is None and self.is_optional:
            return None
        try:
            typed = _typed(value, self.annotation)
            # Too small for float32 is 0 on the device, which has to be allowed as well.
            tiny = isinstance(typed, float) and 0 < abs(typed) < SMALLEST_FLOAT
            if self.check is None or (self.check.holds(typed) and (not tiny or self.check.holds(0.0))):
                return typed
            limits = f", with a size of at least {SMALLEST_FLOAT:g} (float32)" if tiny else ""
        except OverflowError as error:
            limits = f", {error}"
        except TypeError:
            pass
        equals = " " if name.startswith("--") else " = "
        raise UserError(f"{name}{equals}{shown(value)}: must be {self.allowed}{limits}")


def section_name(section: type[Section]) -> str:
    """Name of a section in the file: `Optimizer` -> "optimizer"."""
    return section.__name__.removesuffix("Settings").lower()


@functools.cache
def fields_of(section: type[Section]) -> dict[str, Field]:
    """The settings of a section by name, in order; those it inherits come last."""
    hints, specs = typing.get_type_hints(section), dataclasses.fields(typing.cast(Any, section))
    own = [*section.__annotations__]
    ordered = sorted(specs, key=lambda spec: own.index(spec.name) if spec.name in own else len(own))
    found = {spec.name: Field(hints[spec.name], spec.default, **spec.metadata) for spec in ordered}
    if section.affects_result:
        return found
    return {name: dataclasses.replace(field, affects_result=False) for name, field in found.items()}


def allowed_text(annotation: Any) -> str:
    """What values of a type are called: "a whole number". None is not named."""
    annotation = _without_none(annotation)
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        return {str: "a list of texts", int: "a list of whole numbers", float: "a list of numbers"}[item]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[annotation]


def _without_none(annotation: Any) -> Any:
    """T of "T | None"."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _value_in(text: str, kind: Any) -> Any:
    """The value of a type that a text stands for. Raises ValueError."""
    if kind is bool:
        return ["false", "true"].index(text.lower()) == 1
    return kind(text) if kind in (int, float) else text


def _typed(value: Any, annotation: Any) -> Any:
    """The value in the annotated type.

    Raises:
        TypeError: it is of another kind.
        OverflowError: it is of the right kind, but no machine number or no text for a path; the message says what is.
    """
    annotation = _without_none(annotation)
    if typing.get_origin(annotation) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, typing.get_args(annotation)[0]) for item in value)
    if annotation == tuple[str, ...] and isinstance(value, str):
        return (_typed(value, str),)  # a list of one text may be written as the text
    if typing.get_origin(annotation) is Literal and isinstance(value, str) and value in typing.get_args(annotation):
        return value
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is str and isinstance(value, str):
        if len(value) > _LONGEST_TEXT or any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            raise OverflowError(f"of at most {_LONGEST_TEXT} Unicode characters without NUL")
        return value
    if annotation in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, annotation)
    raise TypeError


def _number(value: float, annotation: Any) -> float:
    if annotation is int:
        if not isinstance(value, int):
            raise TypeError
        if abs(value) >= INTEGER_LIMIT:
            raise OverflowError(f"with a size below {INTEGER_LIMIT}")
        return value
    if not abs(value) <= LARGEST_FLOAT:
        raise OverflowError(f"with a size of at most {LARGEST_FLOAT:g} (float32)")
    return float(value)

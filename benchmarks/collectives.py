"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import dataclasses
import math
import re

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# `name = type[shape]{layout} all-reduce(...)`, or a tuple of types in brackets; -start is the asynchronous form.
_LINE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (?P<type>.*?) (?P<kind>{'|'.join(_KINDS)})(?:-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$", re.MULTILINE)
_BODY = re.compile(r"\bwhile\(.*\bbody=%?(?P<name>[\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?(?P<name>[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction: its kind, the bytes of its result, whether it is inside a loop (runs many times)."""

    kind: str
    size: int
    in_loop: bool


def find_collectives(hlo: str) -> list[Collective]:
    """All collectives of a module's text (`compiled.as_text()`), in order."""
    bodies = _computations(hlo)
    loops = _inside_loops(bodies)
    return [
        Collective(found["kind"], sum(_array_bytes(array) for array in _ARRAY.finditer(found["type"])), name in loops)
        for name, text in bodies.items()
        for found in _LINE.finditer(text)
    ]


def _computations(hlo: str) -> dict[str, str]:
    starts = list(_COMPUTATION.finditer(hlo))
    ends = [start.start() for start in starts[1:]] + [len(hlo)]
    return {start["name"]: hlo[start.end() : end] for start, end in zip(starts, ends, strict=True)}


def _inside_loops(bodies: dict[str, str]) -> set[str]:
    """Computations that a loop's body is, or calls."""
    todo = [found["name"] for text in bodies.values() for found in _BODY.finditer(text)]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [found["name"] for found in _CALLED.finditer(bodies.get(name, ""))]
    return seen


def _array_bytes(array: re.Match[str]) -> int:
    kind = array["type"]
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])  # type: ignore[index]
    sizes = [int(size) for size in array["shape"].split(",") if size]
    return math.prod(sizes) * bits // 8

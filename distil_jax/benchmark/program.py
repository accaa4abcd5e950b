"""What a compiled program does, from its text: kernels with the bytes and the matrix work of each, and collectives.

Every instruction at the top of the program is a kernel. It takes the longer of its memory's and its matrix work's time,
and nothing overlaps: a least time to compare programs by (Williams et al. 2009, the roofline), not a measurement.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEM_BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "c64": 8, "c128": 16}
_NOTHING_MOVES = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
    | {"iota", "broadcast-constant", "opt-barrier", "optimization-barrier"}
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_CALLS = ("fusion", "call", "async-start", "conditional")
_SLICES = ("dynamic-slice", "gather", "slice")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^(ROOT )?%?([\w.\-]+) = (.+)$")
_OPERATION = re.compile(r"^([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{[\d,]*(:[^}]*)?\})?")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.\-]+)")
# Parts of a step, by the scopes that its functions name; the first that an operation's name holds counts.
PARTS = ("optimizer", "vocabulary", "attention", "teacher", "student")


class Array(NamedTuple):
    """Type, sizes, and whether it lies in the memory of the device (not in a TPU's fast one)."""

    dtype: str
    sizes: tuple[int, ...]
    in_memory: bool

    @property
    def bytes(self) -> int:
        """Bytes of the device's memory."""
        return _item_bytes(self.dtype) * math.prod(self.sizes) if self.in_memory else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction that runs: what it moves and multiplies each of the `times` that it runs.

    Attributes:
        name: in the program.
        operation: such as "fusion" or "all-reduce".
        bytes: read and written.
        flops: of matrix products.
        times: how often it runs in a step.
        origin: the names of the functions that it comes from.
        target: of a custom call.
    """

    name: str
    operation: str
    bytes: int
    flops: int
    times: int
    origin: str
    target: str

    @property
    def part(self) -> str:
        """The part of the step that it belongs to, of PARTS, or "other"."""
        return next((part for part in PARTS if re.search(rf"\b{part}\b", self.origin)), "other")

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Least time of all its runs."""
        return self.times * max(self.flops / flops_per_second, self.bytes / bytes_per_second)


class Collective(NamedTuple):
    """A transfer between devices: `times` a step, `bytes` of its result each time."""

    operation: str
    bytes: int
    times: int


def _item_bytes(dtype: str) -> int:
    if dtype in _ITEM_BYTES:
        return _ITEM_BYTES[dtype]
    bits = re.search(r"^[a-z]+(\d+)", dtype)
    return int(bits[1]) // 8 if bits else 0


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" not in (layout or ""))
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def _split_type(text: str) -> tuple[str, str]:
    """A type and what follows it: `(f32[2], s32[]) fusion(...)` -> `(f32[2], s32[])`, `fusion(...)`."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: index + 1], text[index + 2 :]
    return text, ""


def _closing(text: str) -> int:
    """Where the parenthesis ends that was opened just before `text`."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)


class Program:
    """A compiled program, read from its text (`compiled.as_text()`)."""

    def __init__(self, text: str) -> None:
        """Read every computation."""
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry, current = "", ""
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            line = line.strip()
            if head := _HEAD.match(line):
                current = head[2]
                self._computations[current] = {}
                self._entry = current if head[1] else self._entry
            elif line == "}":
                current = ""
            elif current and (found := _read(line)):
                self._computations[current][found.name] = found

    def kernels(self) -> list[Kernel]:
        """Everything that runs in a step."""
        return [*self._kernels(self._entry, 1)]

    def collectives(self) -> list[Collective]:
        """The transfers between devices."""
        return [*self._collectives(self._entry, 1)]

    def _collectives(self, name: str, times: int) -> Iterator[Collective]:
        for one in self._computations[name].values():
            kind = one.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                arrays = one.arrays if kind == one.operation else one.arrays[-(len(one.arrays) // 2 or 1) :]
                yield Collective(kind, sum(_whole_bytes(array) for array in arrays), times)
            elif one.operation in _CALLS and (called := _CALLED.search(one.line)):
                yield from self._collectives(called[1], times)
            if one.operation == "while":
                yield from self._collectives(_body(one), times * self._trips(one))

    def _kernels(self, name: str, times: int) -> Iterator[Kernel]:
        found = self._computations[name]
        for one in found.values():
            if one.operation in _NOTHING_MOVES or one.operation.endswith("-done"):
                continue
            if one.operation == "while":
                yield from self._kernels(_body(one), times * self._trips(one))
                continue
            called = _CALLED.search(one.line)
            if one.operation in _CALLS and one.operation != "fusion" and called and called[1] in self._computations:
                yield from self._kernels(called[1], times)
                continue
            origin = re.search(r'op_name="([^"]*)"', one.line)
            target = re.search(r'custom_call_target="([^"]*)"', one.line)
            yield Kernel(
                name=one.name,
                operation=one.operation,
                bytes=self._moved(one, found, called[1] if called else ""),
                flops=self._flops(one, found),
                times=times,
                origin=origin[1] if origin else "",
                target=target[1] if target else "",
            )

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, else up to the number that its condition compares with."""
        if count := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
            return int(count[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
        inside = self._computations.get(condition[1], {}) if condition else {}
        bounds = [int(n) for one in inside.values() for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", one.line)]
        return max(bounds, default=1)

    def _moved(self, one: Instruction, found: dict[str, Instruction], called: str) -> int:
        """Bytes that an instruction reads and writes; where it reads or changes a part of an array, that part."""
        inside = self._computations.get(called, {}) if one.operation == "fusion" else {}
        if inside:
            numbers = {int(p.line.partition("parameter(")[2].partition(")")[0]): p for p in _parameters(inside)}
            needed = _demanded(inside)
            reads = sum(
                _part_bytes(numbers[index], needed) if index in numbers else _bytes(found, operand)
                for index, operand in enumerate(one.operands)
                if operand in found
            )
            root = next((i for i in inside.values() if i.is_root), None)
            return reads + (_written(root, inside) if root else sum(array.bytes for array in one.arrays))
        if 'custom_call_target="AllocateBuffer"' in one.line:
            return 0
        if one.operation == "slice-start":  # of a part of an array into a TPU's fast memory; its source is named, too
            part = one.arrays[-2]
            return part.bytes + _whole_bytes(part)
        # A transfer in the background also names its source and a mark of its end.
        result = sum(array.bytes for array in (one.arrays[:1] if one.operation == "copy-start" else one.arrays))
        if one.operation in _SLICES:
            return 2 * result
        if one.operation in ("dynamic-update-slice", "scatter"):
            return 2 * min((_bytes(found, o) for o in one.operands[1:2]), default=0)
        return result + sum(_bytes(found, operand) for operand in dict.fromkeys(one.operands))

    def _flops(self, one: Instruction, found: dict[str, Instruction]) -> int:
        if one.operation in ("dot", "convolution"):
            return _product_flops(one, found)
        if one.operation == "custom-call":
            return _library_flops(one, found)
        if one.operation != "fusion" or not (called := _CALLED.search(one.line)):
            return 0
        inside = self._computations.get(called[1], {})
        return sum(self._flops(part, inside) for part in inside.values())


def _read(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    kind, rest = _split_type(match[3])
    operation = _OPERATION.match(rest)
    if not operation:
        return None
    inner = operation[2][: _closing(operation[2])]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner)) or tuple(re.findall(r"\b([a-zA-Z][\w.\-]*)\b", inner))
    return Instruction(match[2], _arrays(kind), operation[1], operands, line, bool(match[1]))


def _body(loop: Instruction) -> str:
    return re.search(r"body=%?([\w.\-]+)", loop.line)[1]  # type: ignore[index]


def _whole_bytes(array: Array) -> int:
    return _item_bytes(array.dtype) * math.prod(array.sizes)


def _bytes(found: dict[str, Instruction], name: str) -> int:
    return sum(array.bytes for array in found[name].arrays) if name in found else 0


def _parameters(inside: dict[str, Instruction]) -> list[Instruction]:
    return [one for one in inside.values() if one.operation == "parameter"]


def _part_bytes(one: Instruction, needed: dict[str, int]) -> int:
    size = max(1, sum(math.prod(array.sizes) for array in one.arrays))
    return round(sum(array.bytes for array in one.arrays) * needed[one.name] / size)


def _demanded(inside: dict[str, Instruction]) -> dict[str, int]:
    """How many elements of each instruction's result a fusion needs: where parts are taken of it, those."""
    needed: dict[str, int] = {}
    # From the last to the first: an instruction stands before those that read it.
    for one in reversed(inside.values()):
        size = sum(math.prod(array.sizes) for array in one.arrays)
        needed[one.name] = min(size, size if one.is_root else needed.get(one.name, 0))
        for index, operand in enumerate(one.operands):
            if operand not in inside:
                continue
            whole = sum(math.prod(array.sizes) for array in inside[operand].arrays)
            if index == 0 and one.operation in _SLICES:
                wanted = size
            elif index == 0 and one.operation == "dynamic-update-slice":
                wanted = 0
            elif size == whole and one.operation not in ("reduce", "dot", "tuple"):
                wanted = needed[one.name]
            else:
                wanted = whole
            needed[operand] = max(needed.get(operand, 0), wanted)
    return needed


def _written(one: Instruction, inside: dict[str, Instruction]) -> int:
    """Bytes that a fusion with this root writes."""
    if one.operation == "tuple":
        return sum(_written(inside[name], inside) for name in one.operands if name in inside)
    if one.operation == "bitcast" and one.operands and one.operands[0] in inside:
        return _written(inside[one.operands[0]], inside)
    if one.operation == "dynamic-update-slice" and len(one.operands) > 1:
        return _bytes(inside, one.operands[1])
    return sum(array.bytes for array in one.arrays)


def _product_flops(one: Instruction, found: dict[str, Instruction]) -> int:
    """2 * batch * rows * columns * contracted sizes of a product.

    TPUs have products as convolutions. Both sides and the result share the batch, so that the sizes of the three
    multiply to batch^3 * (rows * columns * contracted)^2.
    """
    left, right = (found[name].arrays[0].sizes for name in one.operands[:2])
    result = one.arrays[0].sizes
    if one.operation == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.line)
        numbers = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * math.prod(result) * math.prod(left[number] for number in numbers)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.line)
    batch = 1
    for digit in filter(str.isdigit, labels[3] if labels else ""):
        sides = [sizes[labels[n].index(digit)] for n, sizes in ((1, left), (2, right), (3, result))]  # type: ignore[index]
        batch *= min(sides)
    return round(2 * math.sqrt(math.prod(left) * math.prod(right) * math.prod(result) / batch))


def _library_flops(one: Instruction, found: dict[str, Instruction]) -> int:
    """Matrix work of a library's kernel: cuBLAS's products, cuDNN's attention, splash attention."""
    operands = [found[name].arrays[0].sizes for name in one.operands if name in found and found[name].arrays]
    if "cublas" in one.line or "__cublas" in one.line:
        contracted = re.search(r'"lhs_contracting_dimensions":\["?([\d",]*)\]', one.line)
        if not contracted or not operands:
            return 0
        numbers = [int(n) for n in re.findall(r"\d+", contracted[1])]
        return 2 * math.prod(one.arrays[0].sizes) * math.prod(operands[0][number] for number in numbers)
    if "fmha" in one.line or "splash" in one.line:
        # Query [..., L, ..., D] times keys of as many tokens, twice forwards and five times backwards.
        products = 5 if "Backward" in one.line or "_dkv" in one.line or "_dq" in one.line else 2
        scores = max((sizes for sizes in operands if len(sizes) >= 3), key=math.prod, default=())
        return 2 * products * math.prod(scores) * _tokens(scores)
    return 0


def _tokens(sizes: tuple[int, ...]) -> int:
    """Tokens a row of [B, L, N, D] or [B, N, L, D]: more than the heads in all usual shapes."""
    return max(sizes[1:-1], default=0)

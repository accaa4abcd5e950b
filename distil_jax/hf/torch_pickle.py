"""pytorch_model.bin without PyTorch and without running a pickle.

A .bin file is a pickle program next to raw storages. Python's unpickler would call whatever the program names, so the
program is interpreted here instead, one opcode at a time (`pickletools.genops` only splits it): a handful of opcodes,
and the few names a state dict needs, which build descriptions and never call anything. Formats: the zip archive of
torch.save since 1.6, and the older plain stream.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.lazy_tensor import LONGEST_NAME, RAW_TYPES, STORAGES, StoredTensor
from distil_jax.hf.torch_zip import Archive, RefusedError, check_sum

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of the stream that torch.save wrote before 1.6
# A real program has about 40 instructions and 200 bytes a tensor: these are enough for 10,000 tensors.
_MOST_INSTRUCTIONS = 400_000
_LARGEST_PROGRAM = 2 << 20  # bytes
_DEEPEST = 8  # axes of a tensor
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, struct.error)


@dataclasses.dataclass
class _Storage:
    """A flat run of numbers in the file; `data` and its check are filled in when the bytes are known."""

    key: str
    dtype: str
    count: int
    data: np.ndarray | None = None
    verify: Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Arguments of _rebuild_tensor_v2: a strided window onto a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _State(dict[str, Any]):
    """What an OrderedDict of the program becomes: a plain dictionary, at first empty, whose attributes are dropped."""

    def __init__(self) -> None:
        super().__init__()


def _counts(value: Any, what: str) -> tuple[int, ...]:
    good = isinstance(value, tuple) and len(value) <= _DEEPEST and all(type(n) is int and n >= 0 for n in value)
    if not good:
        raise RefusedError(f"a tensor whose {what} is not a short tuple of whole numbers")
    return value


def _rebuild_tensor(*args: Any) -> _Tensor:
    if len(args) not in (6, 7) or not isinstance(args[0], _Storage) or type(args[1]) is not int or args[1] < 0:
        raise RefusedError("a tensor that is not made from a storage and an offset")
    storage, offset, shape, strides = args[0], args[1], _counts(args[2], "shape"), _counts(args[3], "stride")
    if len(shape) != len(strides):
        raise RefusedError("a tensor with another number of strides than axes")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size > storage.count or (size and last >= storage.count):
        raise RefusedError(f"a tensor of shape {list(shape)} beyond its storage of {storage.count} numbers")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(*args: Any) -> _Tensor:
    if len(args) != 3 or not isinstance(args[0], _Tensor):
        raise RefusedError("a parameter that is not made from a tensor")
    return args[0]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _State,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}


class _Machine:
    """The stack machine of the pickle format, reduced to what a state dict needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}
        self.left = _MOST_INSTRUCTIONS

    def run(self, stream: Any) -> Any:
        """The object of the program at the stream's position; the stream stands behind it afterwards."""
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            self.left -= 1
            if self.left < 0:
                raise RefusedError(f"a program of more than {_MOST_INSTRUCTIONS} instructions")
            self.step(opcode.name, argument)
        if len(self.stack) != 1:
            raise RefusedError("a program that does not end with one object")
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise RefusedError(f"the pickle instruction {name}, which no state dict needs")

    def memorize(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def pop_many(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise RefusedError("an instruction without its operands")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_marked(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        if not isinstance(target, dict) or len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
            raise RefusedError("a dictionary whose keys are not names")
        target.update(zip(keys, values, strict=True))

    def build(self) -> None:
        attributes = self.stack.pop()  # state_dict()._metadata: module versions, of no use here
        if not isinstance(self.stack[-1], _State) or not isinstance(attributes, dict):
            raise RefusedError("attributes set on something other than an OrderedDict")

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise RefusedError("items appended to something other than a list")
        self.stack[-1].extend(items)

    def named(self, name: str) -> Any:
        module, _, attribute = name.partition(" ")
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if module == "torch" and attribute in STORAGES:
            return _StorageType(STORAGES[attribute])
        raise RefusedError(f"a reference to {module}.{attribute}, which is not part of a plain state dict")

    def reduce(self) -> None:
        function, arguments = self.pop_many(2)
        if not any(function is admitted for admitted in _FUNCTIONS.values()) or not isinstance(arguments, tuple):
            raise RefusedError("a call of something that is not a function of a state dict")
        self.stack.append(function(*arguments))

    def storage(self, pid: Any) -> _Storage:
        good = isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[2], str)
        good = good and isinstance(pid[1], _StorageType) and type(pid[4]) is int and pid[4] >= 0
        if not good or len(pid[2]) > LONGEST_NAME:
            raise RefusedError("a storage that is not described as torch.save does")
        if len(pid) == 6 and pid[5] is not None:
            raise RefusedError("a view of another storage, a form only very old PyTorch wrote")
        kind, key, count = pid[1], pid[2], pid[4]
        known = self.storages.setdefault(key, _Storage(key, kind.dtype, count))
        if (known.dtype, known.count) != (kind.dtype, count):
            raise RefusedError(f"two descriptions of storage {key} that disagree")
        return known


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: str


_PUSHED = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"})
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": _State,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, length: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "BINPUT": lambda machine, place: machine.memorize(place),
    "LONG_BINPUT": lambda machine, place: machine.memorize(place),
    "MEMOIZE": lambda machine, _: machine.memorize(len(machine.memo)),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop_many(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop_many(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop_many(3))),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.append(machine.pop_many(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "GLOBAL": lambda machine, name: machine.stack.append(machine.named(name)),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(machine.named(" ".join(machine.pop_many(2)))),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.storage(machine.stack.pop())),
}


def _fill_from_zip(archive: Archive, prefix: str, storages: dict[str, _Storage]) -> None:
    for storage in storages.values():
        name = f"{prefix}data/{storage.key}"
        data, checksum = archive.member(name)
        raw_type = np.dtype(RAW_TYPES[storage.dtype])
        if len(data) != storage.count * raw_type.itemsize:
            raise RefusedError(f"storage {storage.key} of {len(data)} bytes, not {storage.count} x {storage.dtype}")
        storage.data = np.frombuffer(data, raw_type)
        # Several tensors may share a storage: it is checked once.
        storage.verify = functools.cache(functools.partial(check_sum, data, checksum, f"{archive.path}: {name}"))


def _read_zip(path: Path) -> Any:
    archive = Archive(path)
    names = [name for name in archive.infos if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise RefusedError("a zip archive without one data.pkl, so not a file of torch.save")
    prefix = names[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.infos:
        order = archive.small(f"{prefix}byteorder", 16)
        if order != b"little":
            raise RefusedError(f"the byte order {order.decode('ascii', 'replace')}, only little-endian files are read")
    machine = _Machine()
    state = machine.run(io.BytesIO(archive.small(names[0], _LARGEST_PROGRAM)))
    _fill_from_zip(archive, prefix, machine.storages)
    return state


def _run_legacy(stream: mmap.mmap, machine: _Machine) -> Any:
    """One of the stream's programs. Only so much of the file is shown to it: a program may claim any length."""
    start = stream.tell()
    program = io.BytesIO(stream[start : start + _LARGEST_PROGRAM])
    result = machine.run(program)
    stream.seek(start + program.tell())
    return result


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _run_legacy(stream, _Machine()) != _LEGACY_MAGIC:
        raise RefusedError("neither a zip archive nor a stream of torch.save")
    _run_legacy(stream, _Machine())  # protocol version
    info = _run_legacy(stream, _Machine())
    if isinstance(info, dict) and info.get("little_endian") is False:
        raise RefusedError("big-endian data, only little-endian files are read")
    machine = _Machine()
    state = _run_legacy(stream, machine)
    keys = _run_legacy(stream, _Machine())
    # Looked at one by one: tuples in tuples may stand for more than can be compared or printed.
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or sorted(keys) != sorted(machine.storages):
        raise RefusedError("a list of storages that does not match its tensors")
    for key in keys:
        storage = machine.storages[key]
        raw_type = np.dtype(RAW_TYPES[storage.dtype])
        if stream.read(8) != struct.pack("<q", storage.count):
            raise RefusedError(f"storage {key} without its {storage.count} numbers")
        start = stream.tell()
        if start + storage.count * raw_type.itemsize > len(stream):
            raise RefusedError(f"storage {key} cut short")
        # An empty tensor at the end of the file has no position to point at.
        storage.data = np.frombuffer(stream, raw_type, storage.count, start) if storage.count else np.zeros(0, raw_type)
        stream.seek(start + storage.count * raw_type.itemsize)
    return state


def _stored(tensor: _Tensor) -> StoredTensor:
    """The strided view, inside its storage as `_rebuild_tensor` has checked."""
    data = tensor.storage.data
    assert data is not None  # filled for every storage of the program
    # The step along an axis of length one is never taken and may be any number.
    lengths = zip(tensor.shape, tensor.strides, strict=True)
    steps = tuple(step * data.itemsize if length > 1 else 0 for length, step in lengths)
    if 0 in tensor.shape:
        return StoredTensor(tensor.shape, tensor.storage.dtype, np.zeros(tensor.shape, data.dtype))
    view = np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, steps, writeable=False)
    return StoredTensor(tensor.shape, tensor.storage.dtype, view, tensor.storage.verify)


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict saved by torch.save, by name.

    Raises:
        UserError: the file is damaged, or is anything else than a flat dictionary of plain tensors.
    """
    try:
        state = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(state, _State):
            raise RefusedError("something other than a dictionary of tensors")
        strangers = [name for name, value in state.items() if not isinstance(value, _Tensor)]
        if strangers:
            raise RefusedError(f"entries that are not tensors: {', '.join(map(one_line, strangers[:5]))}")
        return {name: _stored(tensor) for name, tensor in state.items()}
    except RefusedError as error:
        raise UserError(f"{path}: not a plain PyTorch state dict, it has {one_line(error)}; use safetensors") from error
    except (*_DAMAGES, LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: damaged or not a PyTorch file ({type(error).__name__}: {one_line(error)})") from error
    except (OSError, RuntimeError) as error:  # RuntimeError is zipfile's for encrypted members
        raise UserError(f"{path}: not readable ({one_line(error)})") from error

"""pytorch_model.bin without PyTorch and without running a pickle.

A .bin file is a pickle program next to raw storages. Python's unpickler would call whatever the program names, so the
program is interpreted here instead, one opcode at a time (`pickletools.genops` only splits it): a handful of opcodes,
and the few names a state dict needs, which build descriptions and never call anything. Formats: the zip archive of
torch.save since 1.6, and the older plain stream.
"""

from __future__ import annotations

import dataclasses
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

from distil_jax.errors import UserError
from distil_jax.hf.stored import RAW_TYPES, StoredTensor

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of the stream that torch.save wrote before 1.6
_LARGEST_PROGRAM = 64 << 20  # bytes; a real one has about 100 bytes a tensor
_DEEPEST = 8  # axes of a tensor


class _RefusedError(Exception):
    """Why a program is not a plain state dict; the caller adds the file."""


@dataclasses.dataclass
class _Storage:
    """A flat run of numbers in the file; `data` is filled in when the bytes are known."""

    key: str
    dtype: str
    count: int
    data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Arguments of _rebuild_tensor_v2: a strided window onto a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _State(dict[str, Any]):
    """What an OrderedDict of the program becomes: a plain dictionary whose attributes are dropped."""


def _counts(value: Any, what: str) -> tuple[int, ...]:
    good = isinstance(value, tuple) and len(value) <= _DEEPEST and all(type(n) is int and n >= 0 for n in value)
    if not good:
        raise _RefusedError(f"a tensor whose {what} is not a short tuple of whole numbers")
    return value


def _rebuild_tensor(*args: Any) -> _Tensor:
    if len(args) not in (6, 7) or not isinstance(args[0], _Storage) or type(args[1]) is not int or args[1] < 0:
        raise _RefusedError("a tensor that is not made from a storage and an offset")
    storage, offset, shape, strides = args[0], args[1], _counts(args[2], "shape"), _counts(args[3], "stride")
    if len(shape) != len(strides):
        raise _RefusedError("a tensor with another number of strides than axes")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size > storage.count or (size and last >= storage.count):
        raise _RefusedError(
            f"a tensor of shape {list(shape)} that reaches beyond its storage of {storage.count} numbers"
        )
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(*args: Any) -> _Tensor:
    if len(args) != 3 or not isinstance(args[0], _Tensor):
        raise _RefusedError("a parameter that is not made from a tensor")
    return args[0]


def _ordered_dict(*args: Any) -> _State:
    if args:
        raise _RefusedError("an OrderedDict with arguments")
    return _State()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
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

    def run(self, stream: Any) -> Any:
        """The object of the program at the stream's position; the stream stands behind it afterwards."""
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        if len(self.stack) != 1:
            raise _RefusedError("a program that does not end with one object")
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
            raise _RefusedError(f"the pickle instruction {name}, which no state dict needs")

    def memorize(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def pop_many(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _RefusedError("an instruction without its operands")
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
            raise _RefusedError("a dictionary whose keys are not names")
        target.update(zip(keys, values, strict=True))

    def build(self) -> None:
        attributes = self.stack.pop()  # state_dict()._metadata: module versions, of no use here
        if not isinstance(self.stack[-1], _State) or not isinstance(attributes, dict):
            raise _RefusedError("attributes set on something other than an OrderedDict")

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _RefusedError("items appended to something other than a list")
        self.stack[-1].extend(items)

    def named(self, name: str) -> Any:
        module, _, attribute = name.partition(" ")
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if module == "torch" and attribute in _STORAGES:
            return _StorageType(_STORAGES[attribute])
        raise _RefusedError(f"a reference to {module}.{attribute}, which is not part of a plain state dict")

    def reduce(self) -> None:
        function, arguments = self.pop_many(2)
        if not any(function is admitted for admitted in _FUNCTIONS.values()) or not isinstance(arguments, tuple):
            raise _RefusedError("a call of something that is not a function of a state dict")
        self.stack.append(function(*arguments))

    def storage(self, pid: Any) -> _Storage:
        good = (
            isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], _StorageType)
        )
        if not good or not isinstance(pid[2], str) or type(pid[4]) is not int or pid[4] < 0:
            raise _RefusedError("a storage that is not described as torch.save does")
        if len(pid) == 6 and pid[5] is not None:
            raise _RefusedError("a view of another storage, a form only very old PyTorch wrote")
        kind, key, count = pid[1], pid[2], pid[4]
        known = self.storages.setdefault(key, _Storage(key, kind.dtype, count))
        if (known.dtype, known.count) != (kind.dtype, count):
            raise _RefusedError(f"two descriptions of storage {key} that disagree")
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


def _fill_from_zip(archive: zipfile.ZipFile, prefix: str, storages: dict[str, _Storage]) -> None:
    for storage in storages.values():
        info = archive.getinfo(f"{prefix}data/{storage.key}")
        raw_type = np.dtype(RAW_TYPES[storage.dtype])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.count * raw_type.itemsize:
            raise _RefusedError(
                f"storage {storage.key} of {info.file_size} bytes, expected {storage.count} x {storage.dtype}"
            )
        storage.data = np.frombuffer(archive.read(info), raw_type)  # read() checks the CRC


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise _RefusedError("a zip archive without one data.pkl, so not a file of torch.save")
        prefix = names[0].removesuffix("data.pkl")
        byteorder = f"{prefix}byteorder"
        if byteorder in archive.namelist() and archive.getinfo(byteorder).file_size < 16:
            order = archive.read(byteorder)
            if order != b"little":
                raise _RefusedError(
                    f"the byte order {order.decode('ascii', 'replace')}, only little-endian files are read"
                )
        info = archive.getinfo(names[0])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > _LARGEST_PROGRAM:
            raise _RefusedError("a data.pkl that is compressed or far too large")
        machine = _Machine()
        state = machine.run(io.BytesIO(archive.read(info)))
        _fill_from_zip(archive, prefix, machine.storages)
    return state


def _read_legacy(path: Path) -> Any:
    # Mapped, not opened: a file object would allocate any length that a program claims before reading it.
    with path.open("rb") as file:
        stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _Machine().run(stream) != _LEGACY_MAGIC:
        raise _RefusedError("neither a zip archive nor a stream of torch.save")
    _Machine().run(stream)  # protocol version
    info = _Machine().run(stream)
    if isinstance(info, dict) and info.get("little_endian") is False:
        raise _RefusedError("big-endian data, only little-endian files are read")
    machine = _Machine()
    state = machine.run(stream)
    keys = _Machine().run(stream)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(machine.storages):
        raise _RefusedError("a list of storages that does not match its tensors")
    for key in keys:
        storage = machine.storages[key]
        raw_type = np.dtype(RAW_TYPES[storage.dtype])
        if stream.read(8) != struct.pack("<q", storage.count):
            raise _RefusedError(f"storage {key} without its {storage.count} numbers")
        start = stream.tell()
        if start + storage.count * raw_type.itemsize > len(stream):
            raise _RefusedError(f"storage {key} cut short")
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
    return StoredTensor(tensor.shape, tensor.storage.dtype, view)


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict saved by torch.save, by name.

    Raises:
        UserError: the file is damaged, or is anything else than a flat dictionary of plain tensors.
    """
    try:
        state = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(state, _State):
            raise _RefusedError("something other than a dictionary of tensors")
        strangers = [name for name, value in state.items() if not isinstance(value, _Tensor)]
        if strangers:
            raise _RefusedError(f"entries that are not tensors: {', '.join(strangers[:5])}")
        return {name: _stored(tensor) for name, tensor in state.items()}
    except _RefusedError as error:
        raise UserError(f"{path}: not a plain PyTorch state dict, it has {error}; save it as safetensors") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        LookupError,
        ValueError,
        TypeError,
        ArithmeticError,
        EOFError,
        struct.error,
    ) as error:
        raise UserError(f"{path}: damaged or not a PyTorch file ({type(error).__name__}: {error})") from error
    except (OSError, RuntimeError) as error:  # RuntimeError is zipfile's for encrypted members
        raise UserError(f"{path}: not readable ({error})") from error

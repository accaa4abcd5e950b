"""flax_model.msgpack of transformers up to 4: a nested dictionary of arrays in MessagePack.

The bytes are decoded here, in place and only as far as such a file needs: a general decoder builds whatever a file
claims (lists of a billion nothings) before anything can be looked at, and copies every array. Formats: the MessagePack
specification; flax.serialization (ext type 1 = [shape, dtype name, bytes]; arrays above 1 GiB in chunks under the key
"__msgpack_chunked_array__").
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.lazy_tensor import LONGEST_NAME, MOST_TENSORS, RAW_TYPES, StoredTensor

_ARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 32  # levels of modules; a BERT has 8
_MOST_VALUES = 8 * MOST_TENSORS  # names, dictionaries, arrays and the numbers of their shapes
_MOST_AXES = 32

# First byte -> (kind, bytes of the length or number that follows).
_SIZED = {
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
    0xCC: ("number", 1),
    0xCD: ("number", 2),
    0xCE: ("number", 4),
    0xCF: ("number", 8),
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@dataclasses.dataclass(frozen=True)
class _Chunked(StoredTensor):
    """An array in flat parts that are put together, which copies them, only when its values are read."""

    parts: tuple[np.ndarray, ...] = ()
    reversed_axes: bool = False

    def read(self) -> np.ndarray:
        shape = self.shape[::-1] if self.reversed_axes else self.shape
        whole = StoredTensor(shape, self.dtype, np.concatenate(self.parts).reshape(shape))
        return (whole.transposed() if self.reversed_axes else whole).read()

    def transposed(self) -> StoredTensor:
        return dataclasses.replace(self, shape=self.shape[::-1], reversed_axes=not self.reversed_axes)


class _Decoder:
    """Values one after another; arrays are views of the data."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.values = data, 0, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        part = self.data[self.at : self.at + size]
        if len(part) != size:
            raise ValueError("an end in the middle of a value")
        self.at += size
        return part

    def head(self) -> tuple[str, int]:
        """Kind of the next value, and its size or value."""
        self.values += 1
        if self.values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        code = self.take(1)[0]
        if code in _SIZED:
            kind, size = _SIZED[code]
            return kind, int.from_bytes(self.take(size), "big")
        if code in _FIXED_EXT:
            return "ext", _FIXED_EXT[code]
        if code in (0xC2, 0xC3):
            return "flag", code & 1
        for kind, start, mask in (("number", 0, 0x7F), ("map", 0x80, 15), ("list", 0x90, 15), ("text", 0xA0, 31)):
            if start <= code <= start + mask:
                return kind, code - start
        return f"type {code:#x}", 0

    def text(self) -> str:
        """The next value, which has to be a short text."""
        kind, size = self.head()
        if kind not in ("text", "bytes") or size > LONGEST_NAME:
            raise ValueError("a name that is not a short text")
        return str(self.take(size), "utf-8")

    def value(self, path: str, depth: int) -> Any:
        """A dictionary, an array, or one of the small values that chunked arrays have."""
        kind, size = self.head()
        if kind == "map" and depth < _DEEPEST:
            node: dict[str, Any] = {}
            for _ in range(size):
                name = self.text()
                if name in node:
                    raise ValueError(f"{path}{name} twice")
                node[name] = self.value(f"{path}{name}.", depth + 1)
            return _joined(node) if _CHUNKED in node else node
        if kind == "ext":
            return self.array(size)
        if kind in ("number", "flag"):
            return size
        raise ValueError(f"at {path or 'its start'} a {kind} where a dictionary or an array belongs")

    def array(self, size: int) -> StoredTensor:
        """The content of an extension of `size` bytes."""
        code, end = self.take(1)[0], self.at + size
        if code != _ARRAY or self.head() != ("list", 3):
            raise ValueError(f"an extension of type {code}, expected arrays only")
        kind, axes = self.head()
        sizes = [self.head() for _ in range(axes)] if kind == "list" and axes <= _MOST_AXES else [("", 0)]
        dtype = self.text()
        if dtype not in RAW_TYPES:
            raise ValueError(f"an array of type {dtype!r}")
        shape, raw_type = tuple(n for _, n in sizes), np.dtype(RAW_TYPES[dtype])
        kind, length = self.head()
        data = self.take(length)
        good = kind == "bytes" and all(what == "number" for what, _ in sizes) and self.at == end
        if not good or math.prod(shape) * raw_type.itemsize != length:
            raise ValueError(f"an array whose {length} bytes do not fit its shape")
        return StoredTensor(shape, dtype, np.frombuffer(data, raw_type).reshape(shape))


def _joined(node: dict[str, Any]) -> StoredTensor:
    """One array from its chunks, which follow each other under the names "0", "1", ..."""
    sizes, parts = node.get("shape"), node.get("chunks")
    if not isinstance(sizes, dict) or not isinstance(parts, dict) or not parts:
        raise ValueError("a chunked array without shape or chunks")
    shape = tuple(sizes[str(i)] for i in range(len(sizes)))
    chunks = [parts[str(i)] for i in range(len(parts))]
    if not all(type(n) is int for n in shape) or not all(type(chunk) is StoredTensor for chunk in chunks):
        raise ValueError("a chunked array of something else than numbers and arrays")
    if math.prod(shape) != sum(chunk.data.size for chunk in chunks) or len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError("a chunked array whose chunks do not fit its shape")
    return _Chunked(shape, chunks[0].dtype, None, parts=tuple(chunk.data.reshape(-1) for chunk in chunks))


def _flatten(node: dict[str, Any], prefix: str, found: dict[str, StoredTensor]) -> None:
    for name, value in node.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            _flatten(value, f"{path}.", found)
        elif not isinstance(value, StoredTensor):
            raise ValueError(f"{path}, which is not an array")
        elif path in found:
            raise ValueError(f"{path} twice")
        else:
            found[path] = value


def read_flax_file(path: Path) -> dict[str, StoredTensor]:
    """The arrays of a flax_model.msgpack, by dotted path, as Flax has them (see `torch_names`).

    Arrays are read-only views of the memory-mapped file, except those that were saved in chunks.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    found: dict[str, StoredTensor] = {}
    try:
        with path.open("rb") as file:
            decoder = _Decoder(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        tree = decoder.value("", 0)
        if not isinstance(tree, dict) or decoder.at != len(decoder.data):
            raise ValueError("something other than one dictionary of arrays")
        _flatten(tree, "", found)
    except (OSError, ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(f"{path}: not a Flax model; it has or is {type(error).__name__}: {one_line(error)}") from error
    return found


def torch_names(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Flax names and orientation -> PyTorch's: kernel [in, out] -> weight [out, in], scale and embedding -> weight.

    Names may be joined by dots or slashes, as transformers' Flax models wrote both.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        stem, _, last = name.replace("/", ".").rpartition(".")
        stem = stem.removeprefix("params.")
        if last == "kernel":
            tensor = tensor.transposed()
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        renamed[f"{stem}.{last}" if stem else last] = tensor
    return renamed

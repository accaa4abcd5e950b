"""flax_model.msgpack of transformers up to 4: a nested dictionary of arrays in MessagePack.

Flax's own reader would do, but takes shapes and dtype names from the file as they come; here they are checked against
the bytes that are there. Format: flax.serialization (ext type 1 = [shape, dtype name, bytes]; arrays above 1 GiB in
chunks under the key "__msgpack_chunked_array__").
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.stored import RAW_TYPES, StoredTensor

_ARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 32  # levels of modules; a BERT has 8


def _array(code: int, packed: bytes) -> StoredTensor:
    import msgpack

    if code != _ARRAY:
        raise ValueError(f"an extension of type {code}, expected arrays only")
    shape, name, data = msgpack.unpackb(packed, raw=True, max_array_len=64)
    dtype = name.decode("ascii")
    if dtype not in RAW_TYPES:
        raise ValueError(f"an array of type {dtype[:40]!r}")
    raw_type = np.dtype(RAW_TYPES[dtype])
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * raw_type.itemsize != len(data):
        raise ValueError(f"an array whose {len(data)} bytes do not fit its shape")
    return StoredTensor(tuple(shape), dtype, np.frombuffer(data, raw_type).reshape(shape))


def _joined(node: dict[str, Any]) -> StoredTensor:
    """One array from its chunks."""
    shape = tuple(node["shape"][str(i)] for i in range(len(node["shape"])))
    chunks: list[StoredTensor] = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    flat = np.concatenate([chunk.data for chunk in chunks if chunk.data is not None])
    return StoredTensor(shape, chunks[0].dtype, flat.reshape(shape))


def _flatten(node: dict[str, Any], prefix: str, found: dict[str, StoredTensor], depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError("a dictionary nested too deeply")
    for name, value in node.items():
        if not isinstance(name, str):
            raise ValueError("a dictionary whose keys are not names")
        path = f"{prefix}{name}"
        if isinstance(value, dict) and _CHUNKED in value:
            found[path] = _joined(value)
        elif isinstance(value, dict):
            _flatten(value, f"{path}.", found, depth + 1)
        elif isinstance(value, StoredTensor):
            found[path] = value
        else:
            raise ValueError(f"{path}, which is not an array")


def read_flax_file(path: Path) -> dict[str, StoredTensor]:
    """The arrays of a flax_model.msgpack, by dotted path, as Flax has them (see `torch_names`).

    Raises:
        UserError: the file is damaged or holds something else.
    """
    import msgpack

    found: dict[str, StoredTensor] = {}
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False)
        if not isinstance(tree, dict):
            raise ValueError("something other than a dictionary of arrays")
        _flatten(tree, "", found)
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not a Flax model; it has or is {type(error).__name__}: {error}") from error
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

"""flax_model.msgpack of transformers up to 4: a nested dictionary of arrays, as `flax.serialization` writes it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.lazy_tensor import MOST_TENSORS, RAW_TYPES, StoredTensor

_ARRAY = 1  # type of an extension: [shape, dtype name, bytes]
_MOST_VALUES = 16 * MOST_TENSORS  # names, dictionaries, arrays and the numbers of their shapes
# First byte of a value -> bytes of the size that follows. The format is that of the MessagePack specification.
_TEXTS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
# First byte of a value -> its bytes.
_NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read_flax_file(path: Path) -> dict[str, StoredTensor]:
    """The arrays of a flax_model.msgpack, by dotted path, as Flax has them (see `torch_names`).

    Raises:
        UserError: the file is damaged or holds something else.
    """
    import flax.serialization

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            with memoryview(data) as view:
                _check_values(view)
            tree = flax.serialization.msgpack_restore(data[:])
        found = dict(_arrays(tree, "")) if isinstance(tree, dict) else {}
        if not found:
            raise ValueError("something other than a dictionary of arrays")
        return found
    except Exception as error:  # a file may break flax anywhere
        raise UserError(f"{path}: not a Flax model; it has or is {type(error).__name__}: {one_line(error)}") from error


def _check_values(data: memoryview) -> None:
    """Raises ValueError or IndexError for more values than a model has: a byte can become an object of a hundred."""
    spans, values = [data], 0
    while spans:
        span = spans.pop()
        at, pending = 0, 1
        while pending:
            values, pending = values + 1, pending - 1
            if values > _MOST_VALUES:
                raise ValueError(f"more than {_MOST_VALUES} values")
            code, at = span[at], at + 1
            width = (_TEXTS | _LISTS | _MAPS | _EXTENSIONS).get(code, 0)
            size, at = int.from_bytes(span[at : at + width], "big"), at + width
            if code in _MAPS or 0x80 <= code < 0x90:
                pending += 2 * (size if width else code & 15)
            elif code in _LISTS or 0x90 <= code < 0xA0:
                pending += size if width else code & 15
            elif code in _EXTENSIONS or code in _FIXED_EXTENSIONS:
                size = size if width else _FIXED_EXTENSIONS[code]
                if span[at] != _ARRAY:
                    raise ValueError(f"an extension of type {span[at]}, expected arrays only")
                spans.append(span[at + 1 : at + 1 + size])
                at += 1 + size
            else:
                at += size if width else code & 31 if 0xA0 <= code < 0xC0 else _NUMBERS.get(code, 0)


def _arrays(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    for name, value in node.items():
        path = f"{prefix}{name}"
        if not isinstance(name, str):
            raise ValueError(f"{path}, a name that is no text")
        if isinstance(value, dict):
            yield from _arrays(value, f"{path}.")
        elif isinstance(value, np.ndarray) and value.dtype.name in RAW_TYPES:
            raw = value.view(np.uint16) if value.dtype.name == "bfloat16" else value
            yield path, StoredTensor(value.shape, value.dtype.name, raw)
        else:
            raise ValueError(f"{path}, which is not an array of numbers")


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

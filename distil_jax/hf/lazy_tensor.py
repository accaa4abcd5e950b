"""A tensor as a file holds it: bytes not yet read, in whatever float type they were saved."""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line

# NumPy's name, what is read (files are little-endian; NumPy has no bfloat16: its 16 bits are the upper half of a
# float32), the name in safetensors and in PyTorch.
_TYPES = (
    ("float64", "<f8", "F64", "Double"),
    ("float32", "<f4", "F32", "Float"),
    ("float16", "<f2", "F16", "Half"),
    ("bfloat16", "<u2", "BF16", "BFloat16"),
    ("int64", "<i8", "I64", "Long"),
    ("int32", "<i4", "I32", "Int"),
    ("int16", "<i2", "I16", "Short"),
    ("int8", "|i1", "I8", "Char"),
    ("uint8", "|u1", "U8", "Byte"),
    ("bool", "|b1", "BOOL", "Bool"),
)
RAW_TYPES = {name: raw for name, raw, _, _ in _TYPES}
SAFETENSORS_TYPES = {stored: name for name, _, stored, _ in _TYPES}
STORAGES = {f"{kind}Storage": name for name, _, _, kind in _TYPES}  # PyTorch's class of a run of numbers
MOST_TENSORS = 1 << 14  # of one file; a layer of BERT has 16, so this is far beyond any
LONGEST_NAME = 256
_NAME = re.compile(r"[A-Za-z0-9_][\w.:/-]*", re.ASCII)
FLOAT_TYPES = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Shape and dtype name of a tensor, and a view of its bytes (None: a type that is not read here, such as fp8).

    `verify`, where the format has a checksum, raises `UserError` if the bytes do not fit it. It is called when the
    values are read, so that a file of the wrong shapes is refused without its data being looked at.
    """

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None
    verify: Callable[[], None] | None = None

    @property
    def is_float(self) -> bool:
        """Whether `read` gives float32."""
        return self.dtype in FLOAT_TYPES

    def read(self) -> np.ndarray:
        """The values: floats of any size as float32 [shape], integers as they are.

        float32 is returned without a copy, as a read-only view (memory-mapped for safetensors); float16 and
        bfloat16 become the float32 of the same value, float64 is rounded.
        """
        if self.data is None:
            raise UserError(f"tensors of type {self.dtype} cannot be read; save it in float32, float16 or bfloat16")
        if self.verify is not None:
            self.verify()
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype in FLOAT_TYPES:
            return self.data.astype(np.float32, copy=False)
        return self.data

    def transposed(self) -> StoredTensor:
        """The same tensor with its axes reversed, still a view."""
        return StoredTensor(self.shape[::-1], self.dtype, None if self.data is None else self.data.T, self.verify)


def release_pages(arrays: Iterable[Any]) -> None:
    """Take the pages of memory-mapped files that are behind some of these arrays out of this process's memory.

    The arrays stay as they are; read again, they come from the file.
    """
    owners = {}
    for array in arrays:
        owner = array
        while isinstance(owner, np.ndarray | memoryview):
            owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
        if isinstance(owner, mmap.mmap):
            owners[id(owner)] = owner
    for mapped in owners.values():
        mapped.madvise(mmap.MADV_DONTNEED)


def check_names(names: Iterable[str], where: object) -> None:
    """`UserError` where a file has far too many tensors, or a name no module has: "../x", "/x", control characters.

    Names are never used as paths here, but they end in messages, in exported files and in other programs' hands.
    """
    names = list(names)
    if len(names) > MOST_TENSORS:
        raise UserError(f"{where}: {len(names)} tensors, more than the {MOST_TENSORS} that a model may have")
    for name in names:
        if len(name) > LONGEST_NAME or not _NAME.fullmatch(name) or ".." in name:
            raise UserError(f"{where}: the tensor name {one_line(name, 60)!r} is not that of a part of a model")

"""The tensors of a model folder, whatever format they are in, under PyTorch's names; nothing in it is executed."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.flax_msgpack import read_flax_file, torch_names
from distil_jax.hf.hub import WEIGHT_FILES, shard_names
from distil_jax.hf.lazy_tensor import MOST_TENSORS, RAW_TYPES, SAFETENSORS_TYPES, StoredTensor, check_names
from distil_jax.hf.torch_pickle import read_torch_file

_LARGEST_HEADER = 4 << 20  # bytes of a safetensors header; about 100 a tensor


def read_safetensors_file(path: Path) -> tuple[dict[str, StoredTensor], str]:
    """The tensors of a safetensors file as memory-mapped views, and the framework its metadata names ("pt" if none).

    Raises:
        UserError: header, sizes or offsets are wrong (all checked before any data is touched).
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:  # the package would take up to 100 MB of it
            raise ValueError(f"a header of {length} bytes, at most {_LARGEST_HEADER} are taken")
        # The package checks the header's size and syntax, that every tensor has the bytes of its shape, and that the
        # tensors fill the file without overlap or gap.
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = set(opened.keys())
        if len(names) > MOST_TENSORS:
            raise ValueError(f"{len(names)} tensors, at most {MOST_TENSORS} are taken")
        with path.open("rb") as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_unique)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        if set(header) != names:
            raise ValueError("two readings of the header disagree")
        tensors = {name: _mapped_tensor(mapped, entry, 8 + length) for name, entry in header.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({one_line(error)})") from error
    return tensors, metadata.get("format", "pt")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice: readers differ in which of the two they believe."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands twice in the header")
    return found


def _mapped_tensor(mapped: mmap.mmap, entry: dict[str, Any], start: int) -> StoredTensor:
    shape = tuple(entry["shape"])
    dtype = SAFETENSORS_TYPES.get(entry["dtype"])
    if dtype is None:
        return StoredTensor(shape, entry["dtype"], None)
    raw_type = np.dtype(RAW_TYPES[dtype])
    begin, end = entry["data_offsets"]
    count = math.prod(shape)
    if begin < 0 or end - begin != count * raw_type.itemsize or start + end > len(mapped):
        raise ValueError("offsets that do not fit the shape")
    if not count:
        return StoredTensor(shape, dtype, np.zeros(shape, raw_type))
    return StoredTensor(shape, dtype, np.frombuffer(mapped, raw_type, count, start + begin).reshape(shape))


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    tensors, framework = read_safetensors_file(path)
    if framework == "flax":
        return torch_names(tensors)
    if framework != "pt":
        raise UserError(f"{path}: metadata format = {one_line(framework, 60)!r} is not supported; known: pt, flax")
    return tensors


_READERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": _open_safetensors,
    ".bin": read_torch_file,
    ".msgpack": lambda path: torch_names(read_flax_file(path)),
}


def _opened(path: Path) -> dict[str, StoredTensor]:
    tensors = _READERS[path.suffix](path)
    check_names(tensors, path)
    return tensors


def _open_sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = shard_names(index)
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise UserError(f"{index.parent}: the shards {', '.join(absent)} named in {index.name} are missing")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        found = _opened(index.parent / shard)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise UserError(f"{index.parent / shard}: {', '.join(twice[:20])} are in another shard too")
        tensors |= found
    check_names(tensors, index)
    if index.name.startswith("flax_"):
        return tensors  # its index has Flax names; what is missing shows when the model is put together
    lost = sorted(name for name in weight_map if name not in tensors)
    if lost:
        raise UserError(f"{index}: names tensors that no shard has: {', '.join(lost[:20])} ({len(lost)} in all)")
    return tensors


def open_tensors(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """The tensors of a model folder by PyTorch name, not yet read, and the file (or index) they come from.

    Looked for in transformers' order: model.safetensors, its sharded form, pytorch_model.bin, its sharded form,
    flax_model.msgpack, its sharded form.

    Raises:
        UserError: no such file, or a file that is damaged or of another format.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            if name.endswith(".index.json"):
                return _open_sharded(path), path
            return _opened(path), path
    raise UserError(f"{folder}: no model weights; looked for {', '.join(WEIGHT_FILES)}")


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder under PyTorch's names and orientation.

    Floats come as float32 (float16 and bfloat16 widened, float64 rounded), integers as they are. Arrays may be
    read-only views of the memory-mapped file; Flax files are renamed and transposed to PyTorch's form.

    Raises:
        UserError: no weights in the folder, or a file that is damaged or of another format.
    """
    tensors, _ = open_tensors(Path(folder))
    return {name: tensor.read() for name, tensor in tensors.items()}

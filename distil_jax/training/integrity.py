"""Whether a checkpoint is what was saved: hashes of its leaves, since storage may return other bytes than were written.

Leaves are named by dotted paths, "encoder.layer_0.attention.query.kernel", in trees of classes and of dicts alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.errors import UserError

_TEXTS = ("hashes", "metadata")
_SIDE_FILES = ("_METADATA", "_sharding", "array_metadatas/process_0")


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the message names the step and what differs."""


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def leaf_hashes(tree: Any) -> dict[str, str]:
    """SHA-256 of every array of a tree, over shape, type and bytes, by its dotted path."""
    return {name: _array_hash(_whole(leaf)) for name, leaf in leaves_by_name(tree).items()}


def _whole(leaf: Any) -> np.ndarray:
    """An array in this process; one that is cut over several processes is gathered, and all have to call this."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _array_hash(values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
    content: Any = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    digest.update(content)
    return digest.hexdigest()


def refuse_damage(step: int, expected: Any, found: Mapping[str, str]) -> None:
    """Raise `DamagedError`, naming the first leaf, where the hashes of what was read are not those that were saved."""
    if not isinstance(expected, Mapping):
        raise DamagedError(f"step {step}: has no hashes of its contents")
    expected = {dotted(name): value for name, value in expected.items()}
    for name in [*found, *(name for name in expected if name not in found)]:
        if expected.get(name) != found.get(name):
            raise DamagedError(f"step {step}: {name} is not what was saved")


def dotted(name: str) -> str:
    """The dotted form of a leaf's name; in format 1 it is "['opt_state'][0].mu['encoder']"."""
    return ".".join(filter(None, re.split(r"\['|'\]|[\[\].]+", name))) if name.startswith("[") else name


def as_stored(like: Any, stored: Any) -> Any:
    """What to read: the shapes and types of `stored`, placed like `like`; in the structure of `like` if leaves match.

    Args:
        like: a tree of arrays or of ShapeDtypeStructs.
        stored: a tree of anything with `shape` and `dtype`, of dicts and lists.

    Returns:
        a tree of ShapeDtypeStructs.
    """
    wanted, there = leaves_by_name(like), leaves_by_name(stored)
    anywhere = next((getattr(leaf, "sharding", None) for leaf in wanted.values()), None)

    def described(path: Any, _: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        leaf, sharding = there[name], getattr(wanted.get(name), "sharding", None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or anywhere)

    return jax.tree_util.tree_map_with_path(described, like if wanted.keys() == there.keys() else stored)


def fitted(step: int, found: Any, like: Any, *, cast: bool, fill: bool) -> Any:
    """What was read of a checkpoint in the structure, shapes and types of `like`.

    Args:
        step: of the checkpoint, for messages.
        found: a tree of arrays.
        like: a tree of arrays or of ShapeDtypeStructs.
        cast: convert floats that were saved in another type.
        fill: take leaves that `found` lacks from `like`.

    Raises:
        UserError: they do not match; the message names the first leaf, its shape and type, and what `like` has.
    """
    there, wanted = leaves_by_name(found), leaves_by_name(like)
    for name in there:
        if name not in wanted:
            raise UserError(f"checkpoint step {step}: {name} is {_kind(there[name])}, the model has no such leaf")

    def fit(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        value = there.get(name)
        if value is None and fill:
            return leaf
        if value is None:
            raise UserError(f"checkpoint step {step}: has no {name}, the model has {_kind(leaf)}")
        if value.shape == leaf.shape and value.dtype == leaf.dtype:
            return value
        floats = jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(leaf.dtype, jnp.floating)
        if cast and floats and value.shape == leaf.shape:
            return value.astype(leaf.dtype)
        remedy = "; checkpoint.migrate = true rounds it" if floats and value.shape == leaf.shape else ""
        raise UserError(f"checkpoint step {step}: {name} is {_kind(value)}, the model has {_kind(leaf)}{remedy}")

    return jax.tree_util.tree_map_with_path(fit, like)


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype} [{','.join(map(str, leaf.shape))}]"


def unreadable_part(folder: Path) -> tuple[str, Exception] | None:
    """The first file or leaf of the checkpoint in `folder` that cannot be read, with the reason; None: all can."""
    texts: dict[str, Any] = {}
    for name in _TEXTS:
        try:
            texts[name] = json.loads((folder / name / "metadata").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return name, error
    hashes = texts["hashes"] if isinstance(texts["hashes"], dict) else {}
    for item in (name for name in hashes if name not in _TEXTS and isinstance(hashes[name], dict)):
        for file in _SIDE_FILES:
            try:
                json.loads((folder / item / file).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                return f"{item}/{file}", error
        for leaf in hashes[item]:
            try:
                _read_leaf(folder / item, dotted(leaf))
            except (OSError, ValueError) as error:
                return dotted(leaf), error
    return None


def _read_leaf(folder: Path, name: str) -> None:
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/", "path": f"{name}/"}
    tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()

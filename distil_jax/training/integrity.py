"""What a tree of arrays is made of, as hashes: storage may give back other bytes than it was given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class DamagedError(Exception):
    """A checkpoint that does not give back what was saved; the message says of which step, and what differs."""


def leaf_hashes(tree: Any) -> dict[str, str]:
    """SHA-256 of every array of a tree, over shape, type and bytes, by its path ("['encoder']['layer_0']...")."""
    return {
        jax.tree_util.keystr(path): _array_hash(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _array_hash(values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
    content: Any = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    digest.update(content)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the white space in its file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_damage(step: int, expected: Any, found: Mapping[str, str]) -> None:
    """`DamagedError` where the hashes of what was read are not those of what was saved, naming the first such leaf."""
    if not isinstance(expected, Mapping):
        raise DamagedError(f"step {step}: has no hashes of its contents")
    for name in [*found, *(name for name in expected if name not in found)]:
        if expected.get(name) != found.get(name):
            raise DamagedError(f"step {step}: {name} is not what was saved")

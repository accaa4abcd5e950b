"""Random heads for encoders that have none: kernels normal with `initializer_range`, biases zero."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.checkpoint import Params, insert
from distil_jax.hf.names import Leaf, leaves

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead


def add_task_head(
    config: EncoderConfig, params: Mapping[str, Any], head: TaskHead, *, seed: int = 0
) -> tuple[EncoderConfig, Params]:
    """A new, random head on an encoder.

    Args:
        config: what `params` belong to.
        params: {"encoder": ...}; other heads in it are left out.
        head: the head to add. Where it needs BERT's pooler, one that is there stays, otherwise it is new too; where it
            does not, the pooler is left out.
        seed: of the random values; those of a layer do not depend on which others are new.

    Returns:
        (config, params): the configuration with or without pooler, and {"encoder", "task_head"} with the given arrays
        and new ones in NumPy float32.
    """
    config = dataclasses.replace(config, pooler=head.needs_pooler)
    complete: Params = {"encoder": dict(params["encoder"])}
    keeps_pooler = config.pooler and "pooler" in complete["encoder"]
    if not keeps_pooler:
        complete["encoder"].pop("pooler", None)
    new = ("task_head",) if keeps_pooler else ("task_head", "pooler")
    _fill(complete, leaves(config, task_head=head), new, config.initializer_range, seed)
    return config, complete


def add_mlm_head(config: EncoderConfig, params: Mapping[str, Any], *, seed: int = 0) -> tuple[EncoderConfig, Params]:
    """The same for a masked-language-model head, whose output layer is the word embeddings."""
    config = dataclasses.replace(config, pooler=False)
    complete: Params = {"encoder": {name: value for name, value in params["encoder"].items() if name != "pooler"}}
    _fill(complete, leaves(config, mlm_head=True), ("mlm_head",), config.initializer_range, seed)
    return config, complete


def _fill(params: Params, found: Iterable[Leaf], parts: tuple[str, ...], spread: float, seed: int) -> None:
    """Puts random values for the leaves of these parts into `params`, in place: NumPy float32."""
    if seed < 0 or not math.isfinite(spread):
        raise UserError(f"seed = {seed} and initializer_range = {spread} give no random weights; use 0 or more")
    for leaf in found:
        if {*leaf.path[:2]}.isdisjoint(parts):
            continue
        if leaf.path[-1] == "kernel":
            random = np.random.default_rng([seed, zlib.crc32("/".join(leaf.path).encode())])
            values = (spread * random.standard_normal(leaf.own_shape)).astype(np.float32)
        else:
            values = np.full(leaf.own_shape, float(leaf.path[-1] == "scale"), np.float32)
        insert(params, leaf.path, values)

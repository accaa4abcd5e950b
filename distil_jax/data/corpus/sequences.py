"""What a row of packed sequences means, worked out on the device from the ids alone.

[CLS] starts every sequence and occurs nowhere else in a row, and padding comes last.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def sequence_numbers(ids: Array, cls_id: int, pad_id: int) -> Array:
    """Number of the packed sequence of every token: ids [B, L] int32 -> [B, L] int32, 1, 2, ..., padding 0."""
    return jnp.cumsum(ids == cls_id, axis=1, dtype=jnp.int32) * (ids != pad_id)


def sequence_positions(ids: Array, cls_id: int) -> Array:
    """Position of every token inside its own sequence: ids [B, L] int32 -> [B, L] int32."""
    index = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    starts = jax.lax.cummax(jnp.where(ids == cls_id, index, 0), axis=1)
    return index - starts

"""Dropout whose bits depend on the row, not on where the row is computed.

Each row of a global batch carries its own key. The bits of one dropout site are a hash of (row key, site,
position inside the row), so a row meets the same dropout on one device or on eight, in a micro-batch of 4 or of 64.
A hash of a counter needs no generator state and fuses with the multiplication that uses it; threefry,
vmapped over rows, costs about a quarter of a training step on CPU, and `rbg` gives other bits under `vmap`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array


def row_keys(key: Array, rows: Array) -> Array:
    """Keys of the given rows: `key` scalar PRNG key, rows [B] int32 -> [B, 2] uint32."""
    return jax.vmap(lambda row: jax.random.key_data(jax.random.fold_in(key, row)))(rows)


def _mix(x: Array) -> Array:
    """A bijection of uint32 in which every input bit flips each output bit half of the time ("lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def random_bits(keys: Array, site: int, shape: tuple[int, ...]) -> Array:
    """Uniform bits: keys [B, 2] uint32 -> [B, *shape] uint32. `site` separates the uses of one key."""
    size = math.prod(shape)
    first = _mix(keys[:, :1] + jnp.uint32(site) * jnp.uint32(0x9E3779B9))
    second = _mix(keys[:, 1:] ^ first)
    counter = jnp.broadcast_to(jnp.arange(size, dtype=jnp.uint32)[None], (keys.shape[0], size))
    bits = _mix(_mix(counter + jnp.broadcast_to(first, counter.shape)) ^ jnp.broadcast_to(second, counter.shape))
    return bits.reshape(keys.shape[0], *shape)


def dropout(x: Array, keys: Array | None, site: int, rate: float) -> Array:
    """Zero a share `rate` of x [B, ...] and scale the rest by 1 / (1 - rate); `keys` None or rate 0 returns x."""
    if keys is None or rate == 0.0:
        return x
    keep = random_bits(keys, site, x.shape[1:]) >= jnp.uint32(round(rate * 2**32))
    # 1 - rate rounded to bfloat16 would shift every activation by up to 0.4 %.
    scaled = (x.astype(jnp.float32) / (1.0 - rate)).astype(x.dtype)
    return jnp.where(keep, scaled, jnp.zeros((), x.dtype))

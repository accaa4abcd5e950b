"""A bias of each attention score by how far its key stands from its query (Raffel et al. 2020, section 2.1; MPNet)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

FARTHEST = 128  # tokens; keys from there on share the last bucket of their side


def buckets_of(distances: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each distance, key - query, as int32: half of the buckets for keys before the query.

    Of a side's buckets, half hold one distance each; the others are spaced by the logarithm up to `FARTHEST`.
    """
    side, exact = buckets // 2, buckets // 4
    far = np.abs(distances)
    # In float32, as PyTorch computes it: 16, 32 and 64 lie on the edge of a bucket.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(FARTHEST / exact))
    spaced = exact + (ratio * np.float32(side - exact)).astype(np.int32)
    return np.where(far < exact, far, np.minimum(spaced, side - 1)).astype(np.int32) + side * (distances > 0)


class RelativePositions(nn.Module):
    """The biases that all layers share: params {"bias": [buckets, heads] float32}."""

    buckets: int
    heads: int
    initializer_range: float

    @nn.compact
    def __call__(self, length: int) -> Array:
        """[1, N, L, L] float32, head by query by key."""
        normal = nn.initializers.normal(self.initializer_range)
        table = self.param("bias", normal, (self.buckets, self.heads))
        # Column d holds the distance d, or d - 2 L: a row of queries is this row, rotated. Without a gather of L x L
        # entries, whose gradient would add them one by one.
        columns = np.arange(2 * length)
        distances = np.where(columns < length, columns, columns - 2 * length)
        row = table[buckets_of(distances, self.buckets)].T
        rows = jnp.broadcast_to(row[:, None], (self.heads, length, 2 * length)).reshape(self.heads, -1)
        shifted = rows[:, : length * (2 * length - 1)].reshape(self.heads, length, 2 * length - 1)
        return shifted[None, :, :, :length]

"""Dynamic masking on the device: which positions are predicted, and what stands there instead.

The original draws ceil(p * tokens) positions of a micro-batch, with weights count(token)^-smoothing. Here every row
gets its share of the same exact total, so that a row's mask is a function of (seed, step, row) and of no
other row's draw: devices, hosts and micro-batches may be cut in any way.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_UNITS = 10_000  # probabilities are counted in 1/10,000 so that the exact count is integer arithmetic


@dataclasses.dataclass(frozen=True)
class MaskingRule:
    """Shares and ids of dynamic masking (DistilBERT: 15 %, of these 80 % [MASK], 10 % random, 10 % kept)."""

    mask_id: int
    vocab_size: int
    probability: float
    mask: float
    random: float

    def max_predictions(self, length: int) -> int:
        """Most positions that a row of `length` tokens can be asked for."""
        return -(-length * round(self.probability * _UNITS) // _UNITS)


class MaskedRows(NamedTuple):
    """ids [B, L] int32 after masking; positions, targets [B, K] int32; weights [B, K] float32 (1 = predicted)."""

    ids: Array
    positions: Array
    targets: Array
    weights: Array


def masking_log_weights(token_counts: np.ndarray, special_ids: tuple[int, ...], smoothing: float) -> np.ndarray:
    """log of max(count, 1)^-smoothing, -inf for special ids: token_counts [V] int64 -> [V] float32.

    `smoothing` 0.7 is the original's (XLM, Lample & Conneau 2019); 0 masks uniformly.
    """
    weights = -smoothing * np.log(np.maximum(token_counts, 1).astype(np.float64))
    weights[list(special_ids)] = -np.inf
    return weights.astype(np.float32)


def predictions_per_row(lengths: Array, eligible: Array, probability: float) -> Array:
    """How many positions each row gives, in global row order: lengths, eligible [B] int32 -> [B] int32.

    The running total after row r is ceil(probability * tokens of rows 0..r), so the batch gives exactly
    ceil(probability * all tokens), unless a row has fewer eligible (not special) tokens than its share.
    """
    share = round(probability * _UNITS)
    tokens = jnp.cumsum(lengths)
    # tokens * share overflows int32 at large batches; tokens = a * units + b keeps each product small.
    total = (tokens // _UNITS) * share + -(-((tokens % _UNITS) * share) // _UNITS)
    return jnp.minimum(jnp.diff(total, prepend=0), eligible)


def mask_rows(ids: Array, keys: Array, quotas: Array, log_weights: Array, rule: MaskingRule) -> MaskedRows:
    """Mask `quotas[b]` positions of each row, without replacement (Gumbel top-k on the log-weights).

    Args:
        ids: [B, L] int32; padding has weight -inf like every special id.
        keys: [B] PRNG keys, one a row.
        quotas: [B] int32 from `predictions_per_row`.
        log_weights: [V] float32 from `masking_log_weights`.
        rule: shares and ids.

    Returns:
        MaskedRows with K = `rule.max_predictions(L)`; entries beyond a row's quota have weight 0.
    """
    count = rule.max_predictions(ids.shape[1])

    def one_row(row: Array, key: Array, quota: Array) -> MaskedRows:
        gumbel, fate, replacement = (jax.random.fold_in(key, use) for use in range(3))
        scores = log_weights[row] + jax.random.gumbel(gumbel, row.shape)
        positions = jax.lax.top_k(scores, count)[1]
        predicted = jnp.arange(count) < quota
        targets = row[positions]
        draw = jax.random.uniform(fate, (count,))
        random_ids = jax.random.randint(replacement, (count,), 0, rule.vocab_size)
        new = jnp.where(draw < rule.mask, rule.mask_id, jnp.where(draw < rule.mask + rule.random, random_ids, targets))
        masked = row.at[positions].set(jnp.where(predicted, new, targets))
        return MaskedRows(masked, positions, targets, predicted.astype(jnp.float32))

    return jax.vmap(one_row)(ids, keys, quotas)

"""Multi-head attention between the tokens of one sequence."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.models import flash_attention
from distil_jax.models.dropout import dropout
from distil_jax.models.fences import stored
from distil_jax.models.layers import softmax

AttentionKind = Literal["auto", "xla", "cudnn", "splash"]


def attention_mask_matrix(attention_mask: Array, causal: bool) -> Array:
    """Which key each query may see: attention_mask [B, L] (0 padding, else sequence number) -> [B, L, L] bool.

    A query sees the keys of its own sequence. Padding is never seen; what a padding query computes is
    meaningless, and it sees every real key, which is what PyTorch's BERT does with a 0/1 mask.
    """
    query, key = attention_mask[:, :, None], attention_mask[:, None, :]
    allowed = (key > 0) & ((query == key) | (query == 0))
    if causal:
        length = attention_mask.shape[1]
        allowed = allowed & jnp.tril(jnp.ones((length, length), bool))[None]
    return allowed


def attend(
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    *,
    causal: bool = False,
    kind: AttentionKind = "auto",
    dropout_keys: Array | None = None,
    dropout_site: int = 0,
    dropout_rate: float = 0.0,
) -> Array:
    """softmax(Q K^T / sqrt(D)) V of every row, head by head.

    Args:
        query: [B, Q, N, D] of the first Q tokens.
        key: [B, L, N, D].
        value: [B, L, N, D].
        attention_mask: [B, L] int32 as in `Encoder`; None: one sequence a row.
        causal: a query sees no later key.
        kind: which code computes it. "auto" takes the device's flash attention where that works and pays; a named one
            is insisted on. Dropout on the probabilities needs them written out, with bits that depend on the row
            alone, which no flash attention has: calls with dropout take the "xla" form whatever is named, and so do
            those with Q < L.
        dropout_keys: [B, 2] uint32, or None for no dropout.
        dropout_site: which bits of these keys.
        dropout_rate: of the probabilities.

    Returns:
        [B, Q, N, D]. What a padding query gives is finite, means nothing and differs between kinds.

    Raises:
        UserError: the named kind can't compute this.
    """
    drops = dropout_keys is not None and dropout_rate > 0.0
    call = flash_attention.Call(flash_attention.this_device(), str(query.dtype), query.shape[1], query.shape[3])
    chosen = "xla" if drops or query.shape != key.shape else flash_attention.choose(kind, call)
    if chosen == "splash":
        return flash_attention.splash(query, key, value, attention_mask, causal=causal)
    if attention_mask is None and causal:
        attention_mask = jnp.ones(key.shape[:2], jnp.int32)
    allowed = None
    if attention_mask is not None:
        allowed = attention_mask_matrix(attention_mask, causal)[:, None, : query.shape[1]]
    if chosen == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=allowed, implementation="cudnn")
    # Heads before tokens: matrices then lie together for the products, which on CPU is worth the transposes.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = jnp.einsum("bnqd,bnkd->bnqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(query.shape[-1]))
    if allowed is not None:
        # Not -inf: a row that sees nothing stays finite, and so does its gradient.
        scores = jnp.where(stored(allowed), scores, jnp.finfo(scores.dtype).min)

    def mix(probabilities: Array, value: Array) -> Array:
        dropped = dropout(probabilities.astype(value.dtype), dropout_keys, dropout_site, dropout_rate)
        return jnp.einsum("bnqk,bnkd->bnqd", dropped, value)

    # The backward pass drops out again, so as not to keep the probabilities both before and after.
    return jnp.swapaxes((jax.checkpoint(mix) if drops else mix)(softmax(scores), value), 1, 2)

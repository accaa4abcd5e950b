"""Multi-head attention between the tokens of one sequence."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.models.dropout import dropout

AttentionKind = Literal["auto", "xla", "cudnn"]


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
    allowed: Array | None,
    *,
    kind: AttentionKind = "auto",
    dropout_keys: Array | None = None,
    dropout_site: int = 0,
    dropout_rate: float = 0.0,
) -> Array:
    """softmax(Q K^T / sqrt(D)) V: query, key, value [B, L, N, D], allowed [B, L, L] bool -> [B, L, N, D].

    Dropout on the probabilities needs them, and `jax.nn.dot_product_attention` has no dropout, so training
    with attention dropout takes the written-out form; everything else takes the library's.
    """
    mask = None if allowed is None else allowed[:, None]
    if dropout_keys is None or dropout_rate == 0.0:
        implementation = None if kind == "auto" else kind
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probabilities = dropout(probabilities, dropout_keys, dropout_site, dropout_rate)
    return jnp.einsum("bnqk,bknd->bqnd", probabilities, value)

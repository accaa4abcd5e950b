"""Multi-head attention between the tokens of one sequence."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu import forms_apply, materialize
from distil_jax.models import flash_attention
from distil_jax.models.dropout import dropout
from distil_jax.models.flash_attention import AttentionShape
from distil_jax.models.layers import softmax
from distil_jax.target import target_device

AttentionKind = Literal["auto", "xla", "cudnn", "splash"]


def attention_mask_matrix(mask: Array) -> Array:
    """Which key each query may see: mask [B, L] (0 padding, else sequence number) -> [B, L, L] bool.

    A query sees the keys of its own sequence. Padding is never seen; what a padding query computes is
    meaningless, and it sees every real key, which is what PyTorch's BERT does with a 0/1 mask.
    """
    query, key = mask[:, :, None], mask[:, None, :]
    return (key > 0) & ((query == key) | (query == 0))


@jax.named_scope("attention")
def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    bias: Array | None = None,
    kind: AttentionKind = "auto",
    dropout_keys: Array | None = None,
    dropout_site: int = 0,
    dropout_rate: float = 0.0,
    exact_dropout: bool = True,
) -> Array:
    """softmax(Q K^T / sqrt(D) + bias) V of every row, head by head.

    Args:
        query: [B, Q, N, D] of the first Q tokens.
        key: [B, L, N, D].
        value: [B, L, N, D].
        mask: [B, L] int32 as in `EncoderInputs`; None: one sequence a row.
        bias: [1, N, Q, L] float32, what is added to the scores; None: nothing.
        kind: which code computes it. "auto" takes the device's flash attention where it works and pays; another name
            demands that code. No flash attention has dropout that depends on the row alone, or Q < L: such calls take
            the "xla" form.
        dropout_keys: [B, 2] uint32, or None for no dropout.
        dropout_site: which bits of these keys.
        dropout_rate: of the probabilities.
        exact_dropout: whether its bits have to depend on `dropout_keys` alone. If not, cuDNN draws its own.

    Returns:
        [B, Q, N, D]. What a padding query gives is finite, means nothing and differs between kinds.

    Raises:
        UserError: the named kind can't compute this.
    """
    device, (_, length, _, width) = target_device(), query.shape
    shape = AttentionShape(device, str(query.dtype), length, width, is_biased=bias is not None)
    drops = dropout_keys is not None and dropout_rate > 0.0
    plain = (drops and exact_dropout) or query.shape != key.shape
    chosen = "xla" if plain else flash_attention.choose_attention(kind, shape)
    if chosen == "splash" and not drops:
        return flash_attention.splash(query, key, value, mask)
    if chosen == "cudnn":
        allowed = _allowed(query, mask)
        return flash_attention.cudnn(query, key, value, allowed, dropout_site, dropout_rate if drops else 0.0)
    return attend_with_scores(
        query,
        key,
        value,
        mask,
        bias=bias,
        dropout_keys=dropout_keys,
        dropout_site=dropout_site,
        dropout_rate=dropout_rate,
    )[0]


@jax.named_scope("attention")
def attend_with_scores(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    bias: Array | None = None,
    dropout_keys: Array | None = None,
    dropout_site: int = 0,
    dropout_rate: float = 0.0,
) -> tuple[Array, Array]:
    """`attend` in the "xla" form, and the biased, masked scores before the softmax, [B, N, Q, L] float32."""
    allowed = _allowed(query, mask)
    # Heads before tokens: matrices then lie together for the products, which on CPU is worth the transposes.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    # What lies in memory between products: accelerators wait for it, so it has the compute dtype, as in PyTorch.
    stored = jnp.float32 if forms_apply() else value.dtype
    scores = jnp.einsum("bnqd,bnkd->bnqk", query, key, preferred_element_type=stored).astype(jnp.float32)
    scores = scores * (1.0 / math.sqrt(query.shape[-1]))
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        # Not -inf: a row that sees nothing stays finite, and so does its gradient.
        scores = jnp.where(materialize(allowed), scores, jnp.finfo(scores.dtype).min)

    def mix(probabilities: Array, value: Array) -> Array:
        dropped = dropout(probabilities.astype(value.dtype), dropout_keys, dropout_site, dropout_rate)
        return jnp.einsum("bnqk,bnkd->bnqd", dropped, value)

    # The backward pass drops out again, so as not to keep the probabilities both before and after.
    drops = dropout_keys is not None and dropout_rate > 0.0
    mixed = (jax.checkpoint(mix) if drops else mix)(softmax(scores, stored), value)
    return jnp.swapaxes(mixed, 1, 2), scores


def _allowed(query: Array, mask: Array | None) -> Array | None:
    """Which key each of the Q queries may see, [B, 1, Q, L]; None: all."""
    return None if mask is None else attention_mask_matrix(mask)[:, None, : query.shape[1]]

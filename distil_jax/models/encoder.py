"""The one encoder: BERT and DistilBERT differ by configuration, not by code.

Everything is a pure function of (params, inputs): dropout takes one key a row as an argument, no module holds state.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.attention import AttentionKind, attend
from distil_jax.models.dropout import dropout
from distil_jax.models.layers import ACTIVATIONS, LayerNorm, Product, Weights, dense, joint_dense

Remat = Literal["none", "layer"]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What the encoder computes (BERT: Devlin et al. 2019, section 3; DistilBERT: Sanh et al. 2019, section 3).

    `family` only decides the names used in Hugging Face files. Rates are probabilities, sizes are counts.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 0  # 0: no token types (DistilBERT); BERT has 2
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_output_dropout: float = 0.0  # BERT drops out after the output projection too, DistilBERT does not
    initializer_range: float = 0.02
    pad_token_id: int = 0
    pooler: bool = False  # a dense layer on token 0 (`Encoder.pooled`), which BERT's heads for whole texts read
    causal: bool = False


def dropout_sites(config: EncoderConfig) -> int:
    """How many dropout sites the encoder has: 0 for the embeddings, three a layer; a head's sites follow."""
    return 3 * config.num_layers + 1


def _norm(config: EncoderConfig, dtype: DTypeLike) -> LayerNorm:
    return LayerNorm(config.layer_norm_eps, dtype)


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, LayerNorm, dropout."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        embed = partial(
            nn.Embed,
            features=config.hidden_size,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(config.initializer_range),
        )
        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        if config.type_vocab_size:
            self.token_type = embed(config.type_vocab_size)
        self.norm = _norm(config, self.dtype)

    def __call__(
        self, ids: Array, position_ids: Array | None, token_type_ids: Array | None, dropout_keys: Array | None
    ) -> Array:
        """ids, position_ids, token_type_ids [B, L] int32, dropout_keys [B, 2] uint32 -> [B, L, H]."""
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        x = self.word(ids) + self.position(position_ids)
        if self.config.type_vocab_size:
            x = x + self.token_type(jnp.zeros_like(ids) if token_type_ids is None else token_type_ids)
        elif token_type_ids is not None:
            raise ValueError("token_type_ids given to an encoder without token types (type_vocab_size = 0)")
        return dropout(self.norm(x), dropout_keys, 0, self.config.hidden_dropout)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm (post-norm)."""

    config: EncoderConfig
    index: int
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    product: Product = "rows"

    def setup(self) -> None:
        config = self.config
        width = config.hidden_size
        make = partial(dense, initializer_range=config.initializer_range, dtype=self.dtype, product=self.product)
        self.query, self.key, self.value = (Weights(width, width, config.initializer_range) for _ in range(3))
        self.attention_out = make(width)
        self.attention_norm = _norm(config, self.dtype)
        self.ffn_in = make(config.intermediate_size)
        self.ffn_out = make(width)
        self.output_norm = _norm(config, self.dtype)

    def __call__(self, x: Array, attention_mask: Array | None, dropout_keys: Array | None) -> Array:
        """x [B, L, H], attention_mask [B, L] int32, dropout_keys [B, 2] uint32 -> [B, L, H]."""
        weights = [self.query(), self.key(), self.value()]
        query, key, value = joint_dense(x, weights, self.dtype, self.product)
        return self._mix(x, query, key, value, attention_mask, dropout_keys)

    def first(self, x: Array, attention_mask: Array | None) -> Array:
        """Token 0 of what `__call__` gives, by its work on this token alone: x [B, L, H] -> [B, 1, H]."""
        token = x[:, :1]
        (query,) = joint_dense(token, [self.query()], self.dtype, self.product)
        key, value = joint_dense(x, [self.key(), self.value()], self.dtype, self.product)
        return self._mix(token, query, key, value, attention_mask, None)

    def _mix(
        self,
        x: Array,
        query: Array,
        key: Array,
        value: Array,
        attention_mask: Array | None,
        dropout_keys: Array | None,
    ) -> Array:
        """x, query [B, Q, H] of the first Q tokens, key, value [B, L, H] of all -> [B, Q, H]."""
        config, site = self.config, 3 * self.index + 1
        heads = (config.num_heads, -1)
        mixed = attend(
            query.reshape(*query.shape[:2], *heads),
            key.reshape(*key.shape[:2], *heads),
            value.reshape(*value.shape[:2], *heads),
            attention_mask,
            causal=config.causal,
            kind=self.attention,
            dropout_keys=dropout_keys,
            dropout_site=site,
            dropout_rate=config.attention_dropout,
        )
        mixed = self.attention_out(mixed.reshape(x.shape))
        mixed = dropout(mixed, dropout_keys, site + 1, config.attention_output_dropout)
        x = self.attention_norm(x + mixed)
        output = dropout(self._activated(self.ffn_in(x)), dropout_keys, site + 2, config.hidden_dropout)
        return self.output_norm(x + output)

    @nn.remat
    def _activated(self, expanded: Array) -> Array:
        """[B, Q, intermediate size] -> [B, Q, H]; all of the inner width that is kept for the backward pass is this."""
        return self.ffn_out(ACTIVATIONS[self.config.activation](expanded))


class Encoder(nn.Module):
    """Embeddings and layers; params {"embeddings", "layer_0", ..., "pooler" if the configuration has one}.

    For the backward pass `remat` "none" keeps what is not computed again at next to no cost, as the activation is, and
    "layer" only what goes into each layer: the same numbers from a fraction of the memory in about a third more time
    (Chen et al. 2016). `product` is the form of dense layers' products: "rows" x @ kernel, "columns"
    (kernel^T @ x^T)^T, for texts one at a time on CPU (`columns_dot`).
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    product: Product = "rows"

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config, self.dtype)
        layer = EncoderLayer if self.remat == "none" else nn.remat(EncoderLayer)
        for index in range(config.num_layers):
            setattr(self, f"layer_{index}", layer(config, index, self.dtype, self.attention, self.product))
        if config.pooler:
            self.pooler = dense(config.hidden_size, config.initializer_range, self.dtype, self.product)

    def __call__(
        self,
        ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Hidden states of the last layer.

        Args:
            ids: [B, L] int32 token ids below `vocab_size` (an id beyond it gives NaN).
            attention_mask: [B, L] int32: 0 is padding; equal numbers above 0 belong to one sequence and see each
                other, so a plain 0/1 mask is one sequence a row and packed rows count 1, 2, 3. None: all one.
            position_ids: [B, L] int32; None counts from 0 along the row.
            token_type_ids: [B, L] int32 segment of sentence pairs; None is segment 0.
            dropout_keys: [B, 2] uint32, one key a row (`row_keys`); None switches dropout off.

        Returns:
            [B, L, H] in the compute dtype.
        """
        return self.hidden_states(ids, attention_mask, position_ids, token_type_ids, dropout_keys)[-1]

    def hidden_states(
        self,
        ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> tuple[Array, ...]:
        """Hidden states after the embeddings and after every layer: num_layers + 1 times [B, L, H]."""
        states = [self.embeddings(ids, position_ids, token_type_ids, dropout_keys)]
        for index in range(self.config.num_layers):
            states.append(getattr(self, f"layer_{index}")(states[-1], attention_mask, dropout_keys))
        if self.config.pooler and self.is_initializing():
            self.pooler(states[-1][:, 0])
        return tuple(states)

    def first(
        self,
        ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
    ) -> Array:
        """Token 0 of the last hidden states [B, 1, H], without dropout; arguments as in `__call__`.

        What the last layer makes of all other tokens, which nobody reads, is not computed: an eighth of the time of 6
        layers. For prediction: the last layer's attention is XLA's, and `remat` does not reach it.
        """
        x = self.embeddings(ids, position_ids, token_type_ids, None)
        *layers, last = (getattr(self, f"layer_{index}") for index in range(self.config.num_layers))
        for layer in layers:
            x = layer(x, attention_mask, None)
        return last.first(x, attention_mask)

    def pooled(self, hidden: Array) -> Array:
        """BERT's pooler output: tanh of a dense layer on token 0, hidden [B, L, H] of the last layer -> [B, H]."""
        if not self.config.pooler:
            raise ValueError("this encoder has no pooler (EncoderConfig.pooler is False)")
        return jnp.tanh(self.pooler(hidden[:, 0]))

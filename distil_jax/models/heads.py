"""What is put on top of the encoder."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.attention import AttentionKind
from distil_jax.models.encoder import ACTIVATIONS, Encoder, EncoderConfig


class MLMHead(nn.Module):
    """Dense, activation, LayerNorm, then the transposed word embeddings with a bias of their own."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.transform = nn.Dense(
            config.hidden_size, dtype=self.dtype, kernel_init=nn.initializers.normal(config.initializer_range)
        )
        self.norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, use_fast_variance=False)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))

    def __call__(self, hidden: Array, word_embeddings: Array) -> Array:
        """hidden [..., H], word_embeddings [V, H] -> logits [..., V] float32."""
        x = self.norm(ACTIVATIONS[self.config.activation](self.transform(hidden)))
        logits = jnp.einsum("...h,vh->...v", x, word_embeddings.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class MaskedLM(nn.Module):
    """Encoder with the masked-language-model head: params {"encoder": ..., "mlm_head": ...}."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype, self.attention)
        self.mlm_head = MLMHead(self.config, self.dtype)

    def __call__(
        self,
        ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Logits [B, L, V] float32; arguments as in `Encoder`."""
        return self.mlm_logits(self.encode(ids, attention_mask, position_ids, token_type_ids, dropout_keys))

    def encode(
        self,
        ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Last hidden states [B, L, H]; arguments as in `Encoder`."""
        return self.encoder(ids, attention_mask, position_ids, token_type_ids, dropout_keys)

    def mlm_logits(self, hidden: Array) -> Array:
        """hidden [..., H] -> logits [..., V] float32: any selection of positions, so that a loss need not hold all."""
        return self.mlm_head(hidden, self.encoder.embeddings.word.embedding)

"""One vector a text: its hidden states pooled, as sentence-transformers does it (Reimers & Gurevych 2019)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.attention import AttentionKind
from distil_jax.models.encoder import Encoder, EncoderConfig, EncoderInputs
from distil_jax.models.products import Product

PoolingMode = Literal["mean", "cls", "max"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How an encoder makes one vector of a text.

    Attributes:
        mode: "mean" or "max" over the tokens, or "cls", the hidden state of token 0.
        normalize: vectors have length 1.
        max_length: tokens a text may have; 0: as many as the encoder has positions.
        lower_case: texts are lower-cased before the tokenizer reads them.
        prompts: (name, text) of what may be put before a text.
        prompt: name of the prompt that is put there unless another is asked for; "": none.
    """

    mode: PoolingMode = "mean"
    normalize: bool = False
    max_length: int = 0
    lower_case: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    prompt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple((name, text) for name, text in self.prompts))  # lists, from JSON


def pool(hidden: Any, mask: Any, pooling: Pooling) -> Any:
    """hidden [B, L, H], mask [B, L] with 1 where a token stands -> [B, H] float32; of JAX or of NumPy."""
    xp = hidden.__array_namespace__()
    hidden, real = hidden.astype(xp.float32), (mask > 0)[..., None]
    if pooling.mode == "cls":
        vectors = hidden[:, 0]
    elif pooling.mode == "max":
        vectors = xp.max(xp.where(real, hidden, -xp.inf), axis=1)
    else:
        vectors = xp.sum(xp.where(real, hidden, 0.0), axis=1) / xp.sum(real.astype(xp.float32), axis=1)
    if pooling.normalize:
        vectors = vectors / xp.maximum(xp.sqrt(xp.sum(vectors * vectors, axis=-1, keepdims=True)), 1e-12)
    return vectors


class SentenceEncoder(nn.Module):
    """Encoder with pooling: params {"encoder": ...}, without dropout."""

    config: EncoderConfig
    pooling: Pooling
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    product: Product = "plain"

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype, self.attention, product=self.product)

    def __call__(self, inputs: EncoderInputs) -> Array:
        """inputs [B, L] -> vectors [B, H] float32."""
        mask = jnp.ones_like(inputs.ids) if inputs.mask is None else inputs.mask
        token_0_only = self.pooling.mode == "cls" and not self.is_initializing()
        hidden = self.encoder.cls_only(inputs) if token_0_only else self.encoder(inputs)
        return pool(hidden, mask, self.pooling)

"""The one encoder: families differ by configuration, not by code.

Everything is a pure function of (params, inputs). Dropout takes one key a row as an argument; no module holds state.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.attention import AttentionKind, attend, attend_with_scores
from distil_jax.models.dropout import dropout, row_keys
from distil_jax.models.layers import ACTIVATIONS, LayerNorm, dense
from distil_jax.models.products import Product
from distil_jax.models.relative_positions import RelativePositions

Remat = Literal["auto", "none", "layer"]  # auto: as none


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
    max_position_embeddings: int = 512  # rows of the position table
    position_offset: int = 0  # row of the first token's position; RoBERTa: 2, and padding has row 1
    relative_buckets: int = 0  # of distances between tokens, by which scores are biased (MPNet: 32); 0: no bias
    head_size: int = 0  # width of an attention head; 0: the hidden size over the heads. Others where heads were pruned
    embedding_size: int = 0  # of a token, before a dense layer makes it the hidden size (ELECTRA); 0: the hidden size
    type_vocab_size: int = 0  # 0: no token types (DistilBERT); BERT has 2
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_output_dropout: float = 0.0  # BERT drops out after the output projection too, DistilBERT does not
    initializer_range: float = 0.02
    pad_token_id: int = 0
    pooler: bool = False  # a dense layer on token 0 (`Encoder.pooled`), which BERT's heads for whole texts read

    @property
    def max_length(self) -> int:
        """Tokens of the longest row."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_width(self) -> int:
        """Width of an attention head, D."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def attention_width(self) -> int:
        """Width of queries, keys and values of all heads, N * D."""
        return self.num_heads * self.head_width

    @property
    def embedding_width(self) -> int:
        """Width of the word embeddings, E."""
        return self.embedding_size or self.hidden_size


class EncoderInputs(NamedTuple):
    """What an encoder reads: B rows of L tokens.

    Attributes:
        ids: [B, L] int32 token ids below `vocab_size`; others give NaN.
        mask: [B, L] int32. 0 is padding. Equal numbers above 0 belong to one sequence and see each other: a plain 0/1
            mask is one sequence a row, packed rows count 1, 2, 3. None: one sequence a row, no padding.
        position_ids: [B, L] int32 from 0, others than the encoder has give NaN. None counts along the row.
        token_type_ids: [B, L] int32, the segment of a sentence pair. None is segment 0.
        dropout_keys: [B, 2] uint32, one key a row (`row_keys`); calls also take typed keys [B], or one for the batch.
            None switches dropout off, unless the call has `rngs={"dropout": key}`.
    """

    ids: Array
    mask: Array | None = None
    position_ids: Array | None = None
    token_type_ids: Array | None = None
    dropout_keys: Array | None = None


def encoder_inputs(
    module: nn.Module,
    ids: Array | EncoderInputs,
    attention_mask: Array | None = None,
    position_ids: Array | None = None,
    token_type_ids: Array | None = None,
    dropout_keys: Array | None = None,
) -> EncoderInputs:
    """The arguments of a public call, in the order of the Flax classes of transformers 4, as one value.

    Dropout is asked for by `dropout_keys`, or by `module.apply(..., rngs={"dropout": key})`.

    Raises:
        ValueError: ids that are no integers [B, L] (of choices [B, C, L]), or keys of another number of rows.
    """
    found = ids
    if not isinstance(found, EncoderInputs):
        found = EncoderInputs(found, attention_mask, position_ids, token_type_ids, dropout_keys)
    if (
        not hasattr(found.ids, "dtype")
        or found.ids.ndim not in (2, 3)
        or not jnp.issubdtype(found.ids.dtype, jnp.integer)
    ):
        raise ValueError(
            "ids: an array of integers [B, L] is wanted; a tokenizer makes it of texts, jnp.array of lists"
        )
    keys = found.dropout_keys
    if keys is None and module.has_rng("dropout") and not module.is_initializing():
        keys = module.make_rng("dropout")
    return found if keys is None else found._replace(dropout_keys=_keys_of_rows(keys, found.ids.shape[0]))


def _keys_of_rows(keys: Array, rows: int) -> Array:
    """Keys as dropout takes them, [B, 2] uint32: of one key for the batch a key a row, of typed keys their data."""
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if keys.ndim == (0 if typed else 1):
        return row_keys(keys if typed else jax.random.wrap_key_data(keys), jnp.arange(rows))
    if len(keys) % rows:  # of choices a key for each may be given
        raise ValueError(f"dropout_keys: {len(keys)} keys for {rows} rows; give one a row, or one for the batch")
    return jax.random.key_data(keys) if typed else keys


class Activations(NamedTuple):
    """What `activations` returns: the last hidden states, and what was asked for of every layer, else ().

    Attributes:
        hidden: [B, L, H] of the last layer.
        hidden_states: num_layers + 1 times [B, L, H]: after the embeddings and after every layer.
        queries: num_layers times [B, L, N, D], N heads of width D.
        keys: as `queries`.
        values: as `queries`.
        scores: num_layers times [B, N, L, L] float32, query by key, before the softmax and its dropout, divided by
            sqrt(D), with the bias of relative positions. Where a query may not see a key: the lowest float32.
    """

    hidden: Array
    hidden_states: tuple[Array, ...] = ()
    queries: tuple[Array, ...] = ()
    keys: tuple[Array, ...] = ()
    values: tuple[Array, ...] = ()
    scores: tuple[Array, ...] = ()


CAPTURES = frozenset(Activations._fields[1:])


def dropout_sites(config: EncoderConfig) -> int:
    """How many dropout sites the encoder has: 0 for the embeddings, three a layer; a head's sites follow."""
    return 3 * config.num_layers + 1


def _norm(config: EncoderConfig, dtype: DTypeLike) -> LayerNorm:
    return LayerNorm(config.layer_norm_eps, dtype)


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, LayerNorm, dropout; a dense layer where they are not [..., H]."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    product: Product = "plain"

    def setup(self) -> None:
        config = self.config
        embed = partial(
            nn.Embed,
            features=config.embedding_width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(config.initializer_range),
        )
        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        if config.type_vocab_size:
            self.token_type = embed(config.type_vocab_size)
        if config.embedding_width != config.hidden_size:
            self.project = dense(config.hidden_size, config.initializer_range, self.dtype, self.product)
        self.norm = _norm(config, self.dtype)

    def __call__(self, inputs: EncoderInputs) -> Array:
        """[B, L, H]."""
        ids, types = inputs.ids, inputs.token_type_ids
        # `padding_idx` of the original and of transformers: [PAD] is looked up, but not trained by it.
        x = _look_up(self.word, ids, constant=self.config.pad_token_id) + self._positions(ids, inputs.position_ids)
        if self.config.type_vocab_size:
            x = x + _look_up(self.token_type, jnp.zeros_like(ids) if types is None else types)
        elif types is not None:
            raise ValueError("token_type_ids given to an encoder without token types (type_vocab_size = 0)")
        x = dropout(self.norm(x), inputs.dropout_keys, 0, self.config.hidden_dropout)
        return x if self.config.embedding_width == self.config.hidden_size else self.project(x)

    def _positions(self, ids: Array, position_ids: Array | None) -> Array:
        """Position embeddings [B, L, E]."""
        config, offset, length = self.config, self.config.position_offset, ids.shape[1]
        if position_ids is not None:
            return _look_up(self.position, position_ids + offset)
        if length > config.max_length:
            raise ValueError(f"rows of {length} tokens: this encoder has {config.max_length} positions")
        if not offset:
            return self.position(jnp.broadcast_to(jnp.arange(length)[None], ids.shape))
        # As RoBERTa counts: padding has a row of its own, which is not trained, and is not counted.
        real = ids != config.pad_token_id
        numbers = jnp.where(real, jnp.cumsum(real, axis=1) - 1 + offset, offset - 1)
        return _look_up(self.position, numbers, constant=offset - 1)


def _look_up(table: nn.Embed, ids: Array, constant: int | None = None) -> Array:
    """Rows of the table [V, E] by ids [B, L] -> [B, L, E]; NaN for ids that it does not have.

    The row `constant` gets no gradient.
    """
    found = table(jnp.where(ids < 0, table.num_embeddings, ids))  # Flax gives NaN beyond the end alone
    return found if constant is None else jnp.where((ids == constant)[..., None], jax.lax.stop_gradient(found), found)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and LayerNorm (post-norm)."""

    config: EncoderConfig
    index: int
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    product: Product = "plain"
    exact_dropout: bool = True

    def setup(self) -> None:
        config = self.config
        width = config.hidden_size
        make = partial(dense, initializer_range=config.initializer_range, dtype=self.dtype, product=self.product)
        self.query, self.key, self.value = (make(config.attention_width) for _ in range(3))
        self.attention_out = make(width)
        self.attention_norm = _norm(config, self.dtype)
        self.ffn_in = make(config.intermediate_size)
        self.ffn_out = make(width)
        self.output_norm = _norm(config, self.dtype)

    def __call__(
        self,
        x: Array,
        mask: Array | None,
        bias: Array | None,
        dropout_keys: Array | None,
        capture: frozenset[str] = frozenset(),
    ) -> tuple[Array, dict[str, Array]]:
        """The layer's output [B, L, H], and what `capture` names.

        Args:
            x: [B, L, H].
            mask: [B, L] int32.
            bias: [1, N, L, L] float32, what is added to the scores.
            dropout_keys: [B, 2] uint32.
            capture: names of fields of `Activations`.
        """
        query, key, value = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        found = {"queries": query, "keys": key, "values": value}
        options: Any = {
            "bias": bias,
            "dropout_keys": dropout_keys,
            "dropout_site": 3 * self.index + 1,
            "dropout_rate": self.config.attention_dropout,
        }
        if "scores" in capture:
            mixed, found["scores"] = attend_with_scores(query, key, value, mask, **options)
        else:
            mixed = attend(query, key, value, mask, kind=self.attention, exact_dropout=self.exact_dropout, **options)
        return self._output(x, mixed, dropout_keys), {name: x for name, x in found.items() if name in capture}

    def cls_only(self, x: Array, mask: Array | None, bias: Array | None) -> Array:
        """Token 0 of what `__call__` gives without dropout, computed alone: x [B, L, H] -> [B, 1, H]."""
        token = x[:, :1]
        query, key, value = (self._heads(y) for y in (self.query(token), self.key(x), self.value(x)))
        bias = None if bias is None else bias[:, :, :1]
        mixed = attend(query, key, value, mask, bias=bias, kind=self.attention)
        return self._output(token, mixed, None)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.config.num_heads, -1)

    def _output(self, x: Array, mixed: Array, dropout_keys: Array | None) -> Array:
        """x [B, Q, H] of the first Q tokens, mixed [B, Q, N, D] by their heads -> [B, Q, H]."""
        config, site = self.config, 3 * self.index + 2
        mixed = self.attention_out(mixed.reshape(*x.shape[:2], config.attention_width))
        x = self.attention_norm(x + dropout(mixed, dropout_keys, site, config.attention_output_dropout))
        output = dropout(self._activated(self.ffn_in(x)), dropout_keys, site + 1, config.hidden_dropout)
        return self.output_norm(x + output)

    @nn.remat
    def _activated(self, expanded: Array) -> Array:
        """[B, Q, intermediate size] -> [B, Q, H]. The backward pass keeps no other array of the inner width."""
        return self.ffn_out(ACTIVATIONS[self.config.activation](expanded))


class Encoder(nn.Module):
    """Embeddings and layers: params {"embeddings", "layer_0", ...}, "relative_positions" and "pooler" if configured.

    Attributes:
        config: what is computed.
        dtype: of the computation. Parameters are float32.
        attention: which code computes attention (`attend`).
        remat: what the backward pass keeps. "none": what costs much to compute again. "layer": only the inputs of
            layers, which gives the same numbers from a fraction of the memory in about a third more time (Chen et
            al. 2016).
        product: of dense layers. "transposed": (kernel^T @ x^T)^T, for single texts on CPU. "int8": of rounded numbers,
            for quantisation-aware training.
        exact_dropout: whether dropout of attention is a function of the row's key alone (`attend`).
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    product: Product = "plain"
    exact_dropout: bool = True

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config, self.dtype, self.product)
        if config.relative_buckets:
            self.relative_positions = RelativePositions(
                config.relative_buckets, config.num_heads, config.initializer_range
            )
        layer: Any = nn.remat(EncoderLayer, static_argnums=(5,)) if self.remat == "layer" else EncoderLayer
        # cuDNN would draw other bits when a layer is computed again for its gradients.
        exact_dropout = self.exact_dropout or self.remat == "layer"
        settings = self.dtype, self.attention, self.product, exact_dropout
        for index in range(config.num_layers):
            setattr(self, f"layer_{index}", layer(config, index, *settings))
        if config.pooler:
            self.pooler = dense(config.hidden_size, config.initializer_range, self.dtype, self.product)

    def __call__(
        self,
        ids: Array | EncoderInputs,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Hidden states [B, L, H] of the last layer, in the compute dtype; arguments as in `EncoderInputs`.

        Raises:
            ValueError: L is above `config.max_length` (with `position_ids`, each sequence may be as long as that), or
                `token_type_ids` are given to an encoder without token types.
        """
        inputs = encoder_inputs(self, ids, attention_mask, position_ids, token_type_ids, dropout_keys)
        return self.activations(inputs).hidden

    def hidden_states(self, *inputs: Any, **named: Any) -> tuple[Array, ...]:
        """Hidden states after the embeddings and after every layer; arguments as in `__call__`."""
        return self.activations(encoder_inputs(self, *inputs, **named), frozenset({"hidden_states"})).hidden_states

    def activations(self, inputs: EncoderInputs, capture: frozenset[str] = frozenset()) -> Activations:
        """The last hidden states and what `capture` names of every layer.

        What is not named is neither computed nor kept. Where scores are named, no flash attention is used: it has none.

        Args:
            inputs: B rows of L tokens.
            capture: names of fields of `Activations`.

        Raises:
            ValueError: an unknown name.
        """
        if unknown := capture - CAPTURES:
            raise ValueError(f"capture: {sorted(unknown)} is none of {sorted(CAPTURES)}")
        states, layers, bias = [self.embeddings(inputs)], [], self._bias(inputs)
        for index in range(self.config.num_layers):
            layer = getattr(self, f"layer_{index}")
            hidden, captured = layer(states[-1], inputs.mask, bias, inputs.dropout_keys, capture)
            states.append(hidden)
            layers.append(captured)
        if self.config.pooler and self.is_initializing():
            self.pooler(states[-1][:, 0])
        of_layers = {name: tuple(layer[name] for layer in layers) for name in capture - {"hidden_states"}}
        return Activations(states[-1], tuple(states) if "hidden_states" in capture else (), **of_layers)

    def cls_only(self, inputs: EncoderInputs) -> Array:
        """Token 0 of the last hidden states [B, 1, H], without dropout.

        For prediction: the last layer computes token 0 alone. Its attention is XLA's, and `remat` does not apply to it.
        """
        x, bias = self.embeddings(inputs._replace(dropout_keys=None)), self._bias(inputs)
        *layers, last = (getattr(self, f"layer_{index}") for index in range(self.config.num_layers))
        for layer in layers:
            x, _ = layer(x, inputs.mask, bias, None, frozenset())
        return last.cls_only(x, inputs.mask, bias)

    def _bias(self, inputs: EncoderInputs) -> Array | None:
        """What every layer adds to its scores. The tokens of a packed sequence lie together: their distances hold."""
        return self.relative_positions(inputs.ids.shape[1]) if self.config.relative_buckets else None

    def pooled(self, hidden: Array) -> Array:
        """BERT's pooler output: tanh of a dense layer on token 0, hidden [B, L, H] of the last layer -> [B, H]."""
        if not self.config.pooler:
            raise ValueError("this encoder has no pooler (EncoderConfig.pooler is False)")
        return jnp.tanh(self.pooler(hidden[:, 0]))

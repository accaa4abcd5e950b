"""What is put on top of the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.attention import AttentionKind
from distil_jax.models.dropout import dropout
from distil_jax.models.encoder import (
    Activations,
    Encoder,
    EncoderConfig,
    EncoderInputs,
    Remat,
    dropout_sites,
    encoder_inputs,
)
from distil_jax.models.layers import ACTIVATIONS, LayerNorm, dense
from distil_jax.models.products import Product

HeadName = Literal["sequence", "token", "question", "choice", "replaced"]
Problem = Literal["", "regression", "single_label_classification", "multi_label_classification"]

_DENSE_ACTIVATIONS = {**ACTIVATIONS, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """What heads of one kind have in common.

    Attributes:
        name: registered under it.
        reads_token_0: it reads token 0 alone; else every token.
        num_outputs: of every such head, and they have no names; 0: classes or tags, which may have names.
        has_problem: what the outputs mean varies (`Problem`).
        joins_rows: it gives a row of an example a score; ids may be [B, C, L], C rows an example.
        chooses_token: an output is decided by the token where it is largest; else a token or row by its largest output.
        decides_by_sign: an output above 0 is a yes.
        output_names: of the outputs where each is returned alone; empty: together, as "logits".
    """

    name: HeadName
    _: dataclasses.KW_ONLY
    reads_token_0: bool = False
    num_outputs: int = 0
    has_problem: bool = False
    joins_rows: bool = False
    chooses_token: bool = False
    decides_by_sign: bool = False
    output_names: tuple[str, ...] = ()


_KINDS = (
    HeadKind("sequence", reads_token_0=True, has_problem=True),  # classes or scores of a text
    HeadKind("token"),  # a tag a token
    # where an answer starts and ends
    HeadKind("question", num_outputs=2, chooses_token=True, output_names=("start_logits", "end_logits")),
    HeadKind("choice", reads_token_0=True, num_outputs=1, joins_rows=True),  # how well an ending fits
    # whether a generator made the token (ELECTRA, section 2)
    HeadKind("replaced", num_outputs=1, decides_by_sign=True),
)
HEADS: Mapping[HeadName, HeadKind] = {kind.name: kind for kind in _KINDS}


class MLMHead(nn.Module):
    """Dense, activation, LayerNorm, then the transposed word embeddings with a bias of their own."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.transform = dense(config.embedding_width, config.initializer_range, self.dtype)
        self.norm = LayerNorm(config.layer_norm_eps, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))

    def transformed(self, hidden: Array) -> Array:
        """hidden [..., H] -> [..., E], what the word embeddings are multiplied with."""
        return self.norm(ACTIVATIONS[self.config.activation](self.transform(hidden)))

    def __call__(self, hidden: Array, word_embeddings: Array) -> Array:
        """hidden [..., H], word_embeddings [V, E] -> logits [..., V] float32."""
        x = self.transformed(hidden)
        logits = jnp.einsum("...h,vh->...v", x, word_embeddings.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class MaskedLM(nn.Module):
    """Encoder with the masked-language-model head: params {"encoder": ..., "mlm_head": ...}."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    exact_dropout: bool = True

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype, self.attention, self.remat, exact_dropout=self.exact_dropout)
        self.mlm_head = MLMHead(self.config, self.dtype)

    def __call__(
        self,
        ids: Array | EncoderInputs,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Logits [B, L, V] float32; arguments as in `EncoderInputs`."""
        inputs = encoder_inputs(self, ids, attention_mask, position_ids, token_type_ids, dropout_keys)
        return self.mlm_logits(self.encoder(inputs))

    def encode(self, *inputs: Any, **named: Any) -> Array:
        """Last hidden states [B, L, H]; arguments as in `Encoder.__call__`."""
        return self.encoder(*inputs, **named)

    def activations(self, inputs: EncoderInputs, capture: frozenset[str] = frozenset()) -> Activations:
        """`Encoder.activations`."""
        return self.encoder.activations(inputs, capture)

    def mlm_logits(self, hidden: Array) -> Array:
        """hidden [..., H] -> logits [..., V] float32: any selection of positions, so that a loss need not hold all."""
        return self.mlm_head(hidden, self.encoder.embeddings.word.embedding)

    def mlm_hidden_and_table(self, hidden: Array) -> tuple[Array, Array, Array]:
        """What `mlm_logits` multiplies: transformed hidden [..., E], word embeddings [V, E] and bias [V] as held."""
        return self.mlm_head.transformed(hidden), self.encoder.embeddings.word.embedding, self.mlm_head.bias


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """A head that is fine-tuned for one task: what it reads and how many numbers it gives.

    Attributes:
        kind: name of its kind in `HEADS`.
        labels: names of the outputs in their order; empty where they have none.
        num_outputs: numbers it gives.
        dropout: rate right before the output layer.
        dense: a dense layer comes before the dropout (as in DistilBERT and RoBERTa; BERT has the encoder's pooler).
        dense_activation: what follows that layer: "tanh" (RoBERTa) or a name in `ACTIVATIONS`.
        input_dropout: rate before that layer (RoBERTa, ELECTRA).
        problem: what the outputs mean, in transformers' words; "" if it does not matter.
    """

    kind: HeadName
    _: dataclasses.KW_ONLY
    labels: tuple[str, ...] = ()
    num_outputs: int
    dropout: float = 0.0
    dense: bool = False
    dense_activation: str = "relu"
    input_dropout: float = 0.0
    problem: Problem = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # a list, where the fields come from JSON
        if self.num_outputs < 1 or self.num_outputs != (HEADS[self.kind].num_outputs or self.num_outputs):
            raise ValueError(f"a {self.kind} head with num_outputs = {self.num_outputs}")
        if self.labels and len(self.labels) != self.num_outputs:
            raise ValueError(f"{len(self.labels)} labels for {self.num_outputs} outputs")

    @property
    def reads_token_0(self) -> bool:
        """Whether it reads token 0 alone."""
        return HEADS[self.kind].reads_token_0

    @property
    def needs_pooler(self) -> bool:
        """Whether the encoder has to have a pooler."""
        return self.reads_token_0 and not self.dense


class TaskLayers(nn.Module):
    """The parameters of a `TaskHead`: {"dense" if it has one, "output"}, each with kernel and bias."""

    config: EncoderConfig
    head: TaskHead
    dtype: DTypeLike = jnp.float32
    product: Product = "plain"

    def setup(self) -> None:
        spread = self.config.initializer_range
        if self.head.dense:
            self.dense = dense(self.config.hidden_size, spread, self.dtype, self.product)
        # In float32 whatever the rest computes in: scores are compared with each other, and it costs next to nothing.
        self.output = dense(self.head.num_outputs, spread, jnp.float32, self.product, exact=True)

    def __call__(self, x: Array, dropout_keys: Array | None) -> Array:
        """x [N, H] of token 0 or [N, L, H] of all -> [N, num_outputs] or [N, L, num_outputs] float32."""
        site = dropout_sites(self.config)
        if self.head.dense:
            x = dropout(x, dropout_keys, site + 1, self.head.input_dropout)
            x = _DENSE_ACTIVATIONS[self.head.dense_activation](self.dense(x))
        return self.output(dropout(x, dropout_keys, site, self.head.dropout))


class TaskModel(nn.Module):
    """Encoder with a task head: params {"encoder": ..., "task_head": ...}; BERT's pooler is the encoder's.

    Computes what transformers' BertFor... and DistilBertFor... classes of the same task compute.
    """

    config: EncoderConfig
    head: TaskHead
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    product: Product = "plain"
    exact_dropout: bool = True

    def setup(self) -> None:
        if self.head.needs_pooler and not self.config.pooler:
            raise ValueError(f"a {self.head.kind} head without a dense layer needs an encoder with a pooler")
        self.encoder = Encoder(self.config, self.dtype, self.attention, self.remat, self.product, self.exact_dropout)
        self.task_head = TaskLayers(self.config, self.head, self.dtype, self.product)

    def __call__(
        self,
        ids: Array | EncoderInputs,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Scores before any softmax, float32.

        Args:
            ids: [B, L] int32, also [B, C, L] where the head joins rows (one row a choice); the others and their
                defaults as in `EncoderInputs`, of the same shape as `ids`.
            attention_mask: as `ids`.
            position_ids: as `ids`.
            token_type_ids: as `ids`.
            dropout_keys: [B, 2] uint32, one key a row; with ids [B, C, L] also [B * C, 2], one key a choice.

        Returns:
            [B, num_outputs] where the head reads token 0, else [B, L, num_outputs]; [B, C] of ids [B, C, L].

        Raises:
            ValueError: ids of another shape.
        """
        inputs = encoder_inputs(self, ids, attention_mask, position_ids, token_type_ids, dropout_keys)
        shape = inputs.ids.shape
        if len(shape) != 2 and not (len(shape) == 3 and HEADS[self.head.kind].joins_rows):
            raise ValueError(f"ids of shape {shape} for a {self.head.kind} head")
        inputs = one_row_a_choice(inputs)
        if self.head.reads_token_0 and inputs.dropout_keys is None and not self.is_initializing():
            logits = self.task_logits(self.encoder.cls_only(inputs))
        else:
            logits = self.task_logits(self.encode(inputs), inputs.dropout_keys)
        return logits.reshape(shape[:2]) if len(shape) == 3 else logits

    def encode(self, *inputs: Any, **named: Any) -> Array:
        """Last hidden states [B, L, H]; arguments as in `Encoder.__call__`."""
        return self.encoder(*inputs, **named)

    def activations(self, inputs: EncoderInputs, capture: frozenset[str] = frozenset()) -> Activations:
        """`Encoder.activations`."""
        return self.encoder.activations(inputs, capture)

    def task_logits(self, hidden: Array, dropout_keys: Array | None = None) -> Array:
        """hidden [N, L, H] of the last layer -> float32 [N, num_outputs], or [N, L, num_outputs] for every token.

        Where the head reads token 0 only, L may be 1.
        """
        if self.head.needs_pooler:
            hidden = self.encoder.pooled(hidden)
        elif self.head.reads_token_0:
            hidden = hidden[:, 0]
        return self.task_head(hidden, dropout_keys)


def one_row_a_choice(inputs: EncoderInputs) -> EncoderInputs:
    """Inputs [B, C, L] as [B * C, L], with one dropout key a choice; inputs [B, L] as they are."""
    if inputs.ids.ndim == 2:
        return inputs
    batch, choices, length = inputs.ids.shape
    *arrays, keys = inputs
    rows = [None if array is None else array.reshape(-1, length) for array in arrays]
    if keys is not None and len(keys) == batch:
        keys = choice_keys(keys, choices)
    return EncoderInputs(*rows, dropout_keys=keys)  # type: ignore[arg-type]


def choice_keys(keys: Array, choices: int) -> Array:
    """One dropout key a choice from one a question: keys [B, 2] uint32 -> [B * choices, 2], in the rows' order."""

    def of_row(key: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.vmap(lambda choice: jax.random.key_data(jax.random.fold_in(key, choice)))(jnp.arange(choices))

    return jax.vmap(of_row)(keys).reshape(-1, 2)

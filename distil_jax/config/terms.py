"""What every stage with a teacher shares: weights and options of the loss terms on activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distil_jax.config.fields import LAYER_PAIRS, Section, between, setting, weight


@dataclass(frozen=True)
class ActivationTerms(Section):
    """Base of [objective] and [finetune]: the terms that compare activations of student and teacher.

    The functions are in `objectives.terms`.
    """

    cosine: float = weight(0.0, "the cosine distance between last hidden states")
    hidden: float = weight(0.0, "the relative squared error between hidden states of layer pairs")
    hidden_cosine: float = weight(0.0, "the cosine distance between hidden states of layer pairs")
    embeddings: float = weight(0.0, "the relative squared error between the outputs of the embeddings")
    attention: float = weight(0.0, "the squared error between attention scores of layer pairs")
    attention_kl: float = weight(0.0, "the KL between attention probabilities of layer pairs")
    relations: float = weight(0.0, "the KL between relations of queries, of keys and of values of layer pairs")
    pooled: float = weight(0.0, "the relative squared error between sentence embeddings")
    pooled_cosine: float = weight(0.0, "the cosine distance between sentence embeddings")
    similarity: float = weight(0.0, "the KL between similarities of a micro-batch's sentence embeddings")
    hidden_layers: tuple[str, ...] = setting(
        (),
        'layers that hidden and hidden_cosine compare, "student:teacher" each, 0 the embeddings; a pair named twice '
        "counts twice; empty: every student layer with the teacher's at the same relative depth",
        LAYER_PAIRS,
    )
    attention_layers: tuple[str, ...] = setting(
        (),
        'layers that attention and attention_kl compare, "student:teacher" each, from 1; empty: every student layer '
        "with the teacher's at the same relative depth",
        LAYER_PAIRS,
    )
    attention_heads: Literal["equal", "mean"] = setting(
        "equal", "equal: head by head, of equal numbers; mean: the means over the heads of each model"
    )
    relation_layers: tuple[str, ...] = setting(
        (), 'layers that relations compare, "student:teacher" each, from 1; empty: the last with the last', LAYER_PAIRS
    )
    relation_heads: int = setting(
        0,
        "heads that queries, keys and values are divided into for relations; 0: as many as the teacher has",
        between(0, 1 << 10),
    )
    pooling: Literal["mean", "cls"] = setting(
        "mean", "sentence embedding of pooled, pooled_cosine, similarity: mean over the tokens, or the first token"
    )
    similarity_temperature: float = setting(
        0.05, "softmax temperature of the cosines that similarity compares", between(1e-3, 1e4)
    )
    temperature: float = setting(2.0, "softmax temperature of kl", between(1e-3, 1e4))

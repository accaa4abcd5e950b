"""What every stage with a teacher shares: weights and options of the loss terms on activations."""

from __future__ import annotations

from dataclasses import dataclass

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
    hidden_layers: tuple[str, ...] = setting(
        (),
        'layers that hidden and hidden_cosine compare, "student:teacher" each, 0 the embeddings; a pair named twice '
        "counts twice; empty: every student layer with the teacher's at the same relative depth",
        LAYER_PAIRS,
    )
    temperature: float = setting(2.0, "softmax temperature of kl", between(1e-3, 1e4))

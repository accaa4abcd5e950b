"""What terms on activations compare, and what they share: pairs of layers, positions, sentences, projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from distil_jax.config import ActivationTerms
from distil_jax.models import Activations
from distil_jax.objectives.losses import SumCount, weighted


class Compared(NamedTuple):
    """What a term on activations compares, of M rows of L tokens.

    Attributes:
        student: activations of the student.
        teacher: of the teacher, without gradient.
        mask: [M, L] int32 as in `EncoderInputs`: 0 is padding, equal numbers are one sequence.
        weights: [M, L] float32, how much each position counts: 0 at padding.
        sequence_weights: [M] float32, how much each sequence of a row counts.
        sequences: how many of a row's sequences count; 0: all that are packed into it (`most_sequences`).
        projection: [width of the student, width of the teacher] float32 of a term that `projects`; None where the
            widths are equal.
    """

    student: Activations
    teacher: Activations
    mask: Array
    weights: Array
    sequence_weights: Array
    sequences: int = 0
    projection: Array | None = None


def layer_pairs(given: Sequence[str], student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Which hidden state of the student is compared with which of the teacher; 0 is the embeddings' output.

    Args:
        given: "student:teacher" pairs; none: every layer of the student with the teacher's at the same relative depth,
            the last with the last.
        student_layers: layers of the student.
        teacher_layers: layers of the teacher.
    """
    if not given:
        return [(s, round(s * teacher_layers / student_layers)) for s in range(1, student_layers + 1)]
    return [(int(student), int(teacher)) for student, _, teacher in (pair.partition(":") for pair in given)]


def positions(compared: Compared, student: Array, teacher: Array) -> tuple[Array, Array, Array]:
    """Student and teacher [M, L, width] as [M * L, width of the teacher], and the weights [M * L]."""
    return projected(compared, flatten_positions(student)), flatten_positions(teacher), compared.weights.reshape(-1)


def projected(compared: Compared, student: Array) -> Array:
    """The student's vectors [N, width] at the teacher's width: float32 where they are projected."""
    if compared.projection is None:
        return student
    matrix = compared.projection.astype(student.dtype)
    return jnp.einsum("ns,st->nt", student, matrix, preferred_element_type=jnp.float32)


def flatten_positions(x: Array) -> Array:
    """[M, L, width] as [M * L, width]."""
    return x.reshape(-1, x.shape[-1])


def over_heads(compared: Compared, errors: Array) -> SumCount:
    """The sum over positions of errors [M, N, L], mean over the heads."""
    return weighted(jnp.mean(errors, axis=1).reshape(-1), compared.weights.reshape(-1))


def most_sequences(length: int) -> int:
    """How many packed sequences of a row of `length` tokens count: each has two tokens at least."""
    return max(length // 2, 1)


def sentences(compared: Compared, settings: ActivationTerms) -> tuple[Array, Array, Array]:
    """Sentence embeddings of student and teacher [M * S, width] float32, and weights [M * S], 0 where there is none."""
    mask, count = compared.mask, compared.sequences or most_sequences(compared.mask.shape[1])
    numbers = jnp.arange(1, count + 1)[None, :, None]
    members = (mask[:, None] == numbers).astype(jnp.float32)  # [M, S, L]
    present = jnp.max(members, axis=-1)
    if settings.pooling == "cls":
        members = members * (jnp.cumsum(members, axis=-1) == 1)
    shares = members / jnp.maximum(jnp.sum(members, axis=-1, keepdims=True), 1.0)

    def pool(hidden: Array) -> Array:
        real = jnp.where((mask > 0)[..., None], hidden, 0).astype(jnp.float32)
        return flatten_positions(jnp.einsum("bsl,blh->bsh", shares, real))

    weights = present * compared.sequence_weights[:, None]
    return pool(compared.student.hidden), pool(compared.teacher.hidden), weights.reshape(-1)


def mean_of(terms: Sequence[SumCount]) -> SumCount:
    """The mean of terms with the same count."""
    return SumCount(sum((term.sum for term in terms), jnp.zeros(())) / len(terms), terms[0].count)

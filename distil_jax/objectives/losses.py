"""The losses of distillation, each as (sum, count), so that means are global sums over global counts.

Inputs are rows of positions: logits [N, V], hidden states [N, H], weights [N] float32 (1 counts, 0 does not).
All arithmetic is float32. DistilBERT (Sanh et al. 2019), section 2; the optional ones are of the same code base.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class SumCount(NamedTuple):
    """A weighted sum over positions and the sum of the weights, both float32 scalars."""

    sum: Array
    count: Array

    @property
    def mean(self) -> Array:
        """sum / count; 0 where nothing counted."""
        return self.sum / jnp.maximum(self.count, 1.0)


def weighted(values: Array, weights: Array) -> SumCount:
    """Sum of values [N] * weights [N], and sum of the weights."""
    # `where`, not only a product: a position that does not count may hold inf or NaN.
    return SumCount(jnp.sum(jnp.where(weights > 0, values * weights, 0.0)), jnp.sum(weights))


def distillation_kl(
    student_logits: Array, teacher_logits: Array, weights: Array, temperature: float | Array
) -> SumCount:
    """L_ce: temperature^2 * KL(softmax(T / temperature) || softmax(S / temperature)) (Hinton et al. 2015)."""
    student, teacher = (logits.astype(jnp.float32) / temperature for logits in (student_logits, teacher_logits))
    return weighted(kl_of_scores(student, teacher) * temperature**2, weights)


def top_tokens_kl(
    student_logits: Array, probabilities: Array, ids: Array, tail: Array, weights: Array, temperature: float | Array
) -> SumCount:
    """temperature^2 * KL of a teacher of whom the largest probabilities are known, all other tokens being one event.

    This is `distillation_kl` to a teacher that spreads its `tail` over the other tokens as the student does.

    Args:
        student_logits: [N, V].
        probabilities: [N, k] float32, at `temperature`.
        ids: [N, k] int32, all different.
        tail: [N] float32, the sum of all other probabilities.
        weights: [N] float32.
        temperature: of both softmaxes.
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    rows = jnp.arange(ids.shape[0])[:, None]
    chosen, others = student[rows, ids], jax.nn.logsumexp(student.at[rows, ids].set(-jnp.inf), axis=-1)
    known = jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities) - probabilities * chosen, axis=-1)
    kl = known + jax.scipy.special.xlogy(tail, tail) - tail * others
    return weighted(kl * temperature**2, weights)


def cross_entropy(logits: Array, targets: Array, weights: Array) -> SumCount:
    """L_mlm: -log softmax(logits)[target]; targets [N] int32, in range also where the weight is 0."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return weighted(jax.nn.logsumexp(logits, axis=-1) - chosen, weights)


def logit_mse(student_logits: Array, teacher_logits: Array, weights: Array) -> SumCount:
    """L_mse: squared difference of the raw logits, summed over the vocabulary."""
    difference = student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)
    return weighted(jnp.sum(difference**2, axis=-1), weights)


def cosine_distance(student_hidden: Array, teacher_hidden: Array, weights: Array) -> SumCount:
    """L_cos: 1 - cos(h_student, h_teacher) of the last hidden states [N, H]."""
    student, teacher = student_hidden.astype(jnp.float32), teacher_hidden.astype(jnp.float32)
    dot = jnp.sum(student * teacher, axis=-1)
    # The same guard against zero vectors as torch's CosineEmbeddingLoss.
    norms = jnp.sqrt((jnp.sum(student**2, axis=-1) + 1e-12) * (jnp.sum(teacher**2, axis=-1) + 1e-12))
    return weighted(1.0 - dot / norms, weights)


def relative_squared_error(student_hidden: Array, teacher_hidden: Array, weights: Array) -> SumCount:
    """Squared error over the width, relative to the teacher's squared norm, of hidden states [N, H]."""
    student, teacher = student_hidden.astype(jnp.float32), teacher_hidden.astype(jnp.float32)
    error = jnp.sum((student - teacher) ** 2, axis=-1)
    return weighted(error / (jnp.sum(teacher**2, axis=-1) + 1e-12), weights)


def kl_of_scores(student_scores: Array, teacher_scores: Array) -> Array:
    """KL(softmax(teacher) || softmax(student)) over the last axis: [..., K] float32 -> [...]."""
    student, teacher = (jax.nn.log_softmax(scores) for scores in (student_scores, teacher_scores))
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def visible_kl(student_scores: Array, teacher_scores: Array, visible: Array) -> Array:
    """`kl_of_scores` over the visible entries alone; 0 where none is visible.

    Args:
        student_scores: [..., K] float32.
        teacher_scores: [..., K] float32.
        visible: [..., K] bool, of a shape that broadcasts against the scores.
    """
    student, teacher = (
        jax.nn.log_softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min))
        for scores in (student_scores, teacher_scores)
    )
    return jnp.sum(jnp.where(visible, jnp.exp(teacher) * (teacher - student), 0.0), axis=-1)


def top1_matches(logits: Array, targets: Array, weights: Array) -> SumCount:
    """How often the most probable token is `targets` [N] int32 (accuracy, or agreement with a teacher's choice)."""
    return weighted((jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32), weights)

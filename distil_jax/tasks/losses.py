"""The losses of fine-tuning, of one micro-batch with weights that add up to 1 over the whole batch.

A weighted sum of a micro-batch is its part of the batch's mean: sums over micro-batches and devices are means.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import Array

from distil_jax.models import TaskHead
from distil_jax.objectives.losses import cross_entropy, distillation_kl


def task_loss(head: TaskHead, logits: Array, labels: Array, weights: Array) -> Array:
    """The loss against the labels: what transformers' model classes compute, weighted.

    Cross entropy of classes, tags, choices; the mean of those of start and end of spans; the mean of squared errors of
    scores; the mean of binary cross entropies of class sets. A span's softmax is over all positions of the padded row,
    as it is there.

    Args:
        head: says what the outputs mean.
        logits: as `forward` gives them.
        labels: class [B], tag [B, L], (start, end) [B, 2], choice [B] int32; score [B] or [B, K], class set [B, K]
            float32.
        weights: [B], tags [B, L], class sets [B] or [B, K], float32.

    Returns:
        () float32, the weighted sum.
    """
    if head.kind == "question":
        ends = [_entropy(logits[..., end], labels[:, end], weights) for end in range(2)]
        return (ends[0] + ends[1]) / 2
    if head.problem == "regression":
        error = (logits - labels.reshape(logits.shape)) ** 2
        return jnp.sum(weights * jnp.mean(error, axis=-1))
    if head.problem == "multi_label_classification":
        entropies = optax.sigmoid_binary_cross_entropy(logits, labels)
        return jnp.sum(jnp.mean(entropies * weights.reshape(len(weights), -1), axis=-1))
    return _entropy(logits, labels, weights)


def _entropy(logits: Array, labels: Array, weights: Array) -> Array:
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), weights.reshape(-1)).sum


def distillation_loss(head: TaskHead, student: Array, teacher: Array, shares: Array, temperature: float) -> Array:
    """The loss against a teacher's logits: temperature^2 KL of classes, tags, choices, and of start and end of spans.

    Class sets are compared class by class; scores by their squared difference. Arguments as in `task_loss`, `shares`
    being the weights without class weights; () float32.
    """
    if head.problem == "regression":
        return jnp.sum(shares * jnp.mean((student - teacher) ** 2, axis=-1))
    if head.problem == "multi_label_classification":
        # A yes/no decision with logit z is a softmax over (z, 0).
        pairs = [jnp.stack([logits, jnp.zeros_like(logits)], axis=-1) for logits in (student, teacher)]
        even = jnp.broadcast_to(shares[:, None] / student.shape[-1], student.shape)
        return _divergence(pairs[0], pairs[1], even, temperature)
    if head.kind == "question":
        ends = [_divergence(student[..., end], teacher[..., end], shares, temperature) for end in range(2)]
        return (ends[0] + ends[1]) / 2
    return _divergence(student, teacher, shares, temperature)


def _divergence(student: Array, teacher: Array, shares: Array, temperature: float) -> Array:
    width = student.shape[-1]
    return distillation_kl(student.reshape(-1, width), teacher.reshape(-1, width), shares.reshape(-1), temperature).sum

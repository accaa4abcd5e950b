"""The losses of fine-tuning, of one micro-batch with weights that add up to 1 over the whole batch.

A weighted sum of a micro-batch is its part of the batch's mean: sums over micro-batches and devices are means.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from distil_jax.config import FineTune
from distil_jax.models import EncoderInputs, TaskHead, TaskModel, one_row_a_choice
from distil_jax.objectives.losses import cosine_distance, cross_entropy, distillation_kl

Params = dict[str, Any]
Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Models:
    """The network that learns and, for second distillation, the one it learns from."""

    student: TaskModel
    teacher: TaskModel | None = None


def forward(model: TaskModel, params: Params, batch: Batch, dropout_keys: Array | None) -> tuple[Array, Array]:
    """Last hidden states [N, L, H] and logits of a batch; N counts the endings of choices one by one.

    Logits are [B, K], tags [B, L, K], spans [B, L, 2],
    choices [B, C].
    """
    inputs = one_row_a_choice(inputs_of(model, batch, dropout_keys))
    hidden: Any = model.apply({"params": params}, inputs, method="encode")
    logits: Any = model.apply({"params": params}, hidden, inputs.dropout_keys, method="task_logits")
    return hidden, logits.reshape(batch["ids"].shape[:2]) if batch["ids"].ndim == 3 else logits


def inputs_of(model: TaskModel, batch: Batch, dropout_keys: Array | None = None) -> EncoderInputs:
    """What the model reads of a batch; the segments only if it knows a second one."""
    types = batch["types"] if model.config.type_vocab_size > 1 else None
    return EncoderInputs(batch["ids"], batch["mask"], token_type_ids=types, dropout_keys=dropout_keys)


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


def batch_losses(
    settings: FineTune, models: Models, params: Params, teacher_params: Params | None, batch: Batch, keys: Array | None
) -> tuple[Array, dict[str, Array]]:
    """The loss of a micro-batch and its terms "task", "ce", "cos", each its part of the batch's mean.

    Args:
        settings: the weights of the terms; without a teacher the loss against the labels alone counts.
        models: student and teacher.
        params: of the student.
        teacher_params: of the teacher, None without one.
        batch: as `batches.collate` makes it.
        keys: [B, 2] uint32 dropout keys, None for none.
    """
    head = models.student.head
    hidden, logits = forward(models.student, params, batch, keys)
    terms = {"task": task_loss(head, logits, batch["labels"], batch["weights"])}
    if models.teacher is None or teacher_params is None:
        return terms["task"], terms
    teacher = jax.lax.stop_gradient(forward(models.teacher, teacher_params, batch, None))
    terms["ce"] = distillation_loss(head, logits, teacher[1], batch["shares"], settings.temperature)
    if settings.alpha_cos > 0:
        repeats = hidden.shape[0] // batch["token_share"].shape[0]
        mask = batch["mask"].reshape(hidden.shape[:2])
        shares = mask * jnp.repeat(batch["token_share"], repeats)[:, None]
        width = hidden.shape[-1]
        distance = cosine_distance(hidden.reshape(-1, width), teacher[0].reshape(-1, width), shares.reshape(-1))
        terms["cos"] = distance.sum
    alphas = {"task": settings.alpha_task, "ce": settings.alpha_ce, "cos": settings.alpha_cos}
    return sum((alphas[name] * term for name, term in terms.items()), start=jnp.zeros(())), terms

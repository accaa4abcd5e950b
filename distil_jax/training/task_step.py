"""Preparation and loss of a task's batches: what fine-tuning adds to the step; and the logits of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import FineTune
from distil_jax.models import Activations, EncoderInputs, TaskModel, one_row_a_choice, row_keys, transpose_kernels
from distil_jax.objectives import TERMS, Compared, SumCount, activation_terms, capture_of
from distil_jax.tasks.losses import distillation_loss, task_loss
from distil_jax.training.step import AXIS, FrozenInputs, Params, StepConfig, StepSums

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TaskModels:
    """The model that learns, the one it learns from (second distillation), and the weights of the loss terms."""

    student: TaskModel
    teacher: TaskModel | None
    settings: FineTune


def task_step_config(models: TaskModels, micro_batch_size: int, trainable: tuple[str, ...]) -> StepConfig:
    """The step on batches as `tasks.batches.collate` makes them.

    The weights in a batch add up to 1 over all devices, so that sums are means.
    """
    return StepConfig(_prepare, partial(_loss, models), micro_batch_size, trainable)


def _prepare(frozen: FrozenInputs, key: Array, numbers: Array, batch: Batch) -> tuple[tuple[Batch, Array], None]:
    """The batch with a dropout key a row: [b, 2] uint32, of (seed, step, row of the global batch)."""
    del frozen
    return (batch, row_keys(key, numbers)), None


def _loss(
    models: TaskModels, params: Params, frozen: FrozenInputs, micro: tuple[Batch, Array], totals: None
) -> tuple[Array, StepSums]:
    del totals
    batch, dropout_keys = micro
    total, terms = task_losses(models, params, frozen.teacher, batch, dropout_keys)
    real = jnp.repeat(batch["token_share"] > 0, batch["mask"].size // len(batch["token_share"]))
    return total, StepSums(terms, jnp.sum(batch["mask"].reshape(-1) * real, dtype=jnp.float32))


def task_losses(
    models: TaskModels, params: Params, teacher_params: Params | None, batch: Batch, dropout_keys: Array | None
) -> tuple[Array, dict[str, SumCount]]:
    """The loss of a micro-batch and its terms, each its part of the batch's mean.

    Without a teacher the loss against the labels, "task", is all there is. Beside one come "kl", of the task's logits,
    and the terms on activations that `objectives.TERMS` has, where their weight is above 0.

    Args:
        models: student, teacher and weights.
        params: of the student.
        teacher_params: of the teacher, None without one.
        batch: as `tasks.batches.collate` makes it.
        dropout_keys: [B, 2] uint32, None for no dropout.
    """
    head, weights = models.student.head, models.settings.weights
    terms = {name: TERMS[name] for name in weights if name in TERMS and TERMS[name].compute is not None}
    capture = capture_of(terms) if teacher_params is not None else frozenset()
    activations, logits = forward(models.student, params, batch, dropout_keys, capture)
    share = jnp.sum(batch["shares"])
    losses = {"task": SumCount(task_loss(head, logits, batch["labels"], batch["weights"]), share)}
    if models.teacher is None or teacher_params is None:
        return losses["task"].sum, losses
    compared, teacher_logits = jax.lax.stop_gradient(forward(models.teacher, teacher_params, batch, None, capture))
    kl = distillation_loss(head, logits, teacher_logits, batch["shares"], models.settings.temperature)
    losses["kl"] = SumCount(kl, share)
    repeats = activations.hidden.shape[0] // batch["token_share"].shape[0]
    mask = batch["mask"].reshape(activations.hidden.shape[:2])
    token_weights = mask * jnp.repeat(batch["token_share"], repeats)[:, None]
    losses |= activation_terms(terms, Compared(activations, compared, token_weights), models.settings)
    total = sum((weights.get(name, 0.0) * loss.sum for name, loss in losses.items()), start=jnp.zeros(()))
    return total, jax.lax.stop_gradient(losses)


def forward(
    model: TaskModel, params: Params, batch: Batch, dropout_keys: Array | None, capture: frozenset[str] = frozenset()
) -> tuple[Activations, Array]:
    """Activations of N rows, the endings of choices counted one by one, and logits of a batch.

    Logits are [B, K], tags [B, L, K], spans [B, L, 2], choices [B, C].
    """
    inputs = one_row_a_choice(inputs_of(model, batch, dropout_keys))
    activations: Any = model.apply({"params": params}, inputs, capture, method="activations")
    logits: Any = model.apply({"params": params}, activations.hidden, inputs.dropout_keys, method="task_logits")
    return activations, logits.reshape(batch["ids"].shape[:2]) if batch["ids"].ndim == 3 else logits


def inputs_of(model: TaskModel, batch: Batch, dropout_keys: Array | None = None) -> EncoderInputs:
    """What the model reads of a batch; the segments only if it knows a second one."""
    types = batch["types"] if model.config.type_vocab_size > 1 else None
    return EncoderInputs(batch["ids"], batch["mask"], token_type_ids=types, dropout_keys=dropout_keys)


def make_logits_step(model: TaskModel) -> Callable[[Params, Batch], Array]:
    """The per-device `(params, batch [b, ...]) -> logits of all devices' rows`, in their order.

    A model with `transposed` takes parameters as `transpose_kernels` gives them.
    """

    def logits_step(params: Params, batch: Batch) -> Array:
        if model.transposed:
            params = transpose_kernels(params)  # names them as the model does; in memory they stay as they are
        logits: Any = model.apply({"params": params}, inputs_of(model, batch))
        return jax.lax.all_gather(logits, AXIS, tiled=True)

    return logits_step

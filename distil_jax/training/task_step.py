"""Preparation and loss of a task's batches: what fine-tuning adds to the step."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import FineTune
from distil_jax.models import Activations, EncoderInputs, SentenceEncoder, TaskModel, one_row_a_choice, row_keys
from distil_jax.objectives import (
    PROJECTIONS,
    Compared,
    SumCount,
    activation_terms,
    active_activation_terms,
    capture_of,
    temperature_at,
    weights_at,
)
from distil_jax.tasks import TaskBatch, kind_of
from distil_jax.training.step import FrozenInputs, Params, StepConfig, StepSums
from distil_jax.training.task_phases import Phase, phase_weights


@dataclasses.dataclass(frozen=True)
class TaskModels:
    """The model that learns, those it learns from (second distillation), and the weights of the loss terms."""

    student: TaskModel
    teachers: tuple[TaskModel, ...]
    settings: FineTune


def task_step_config(
    models: TaskModels, micro_batch_size: int, trainable: tuple[str, ...], steps: int = 1
) -> StepConfig:
    """The step on batches as `tasks.batches.collate` makes them, of a run of `steps`.

    The weights in a batch add up to 1 over all devices, so that sums are means.
    """
    return StepConfig(_prepare, partial(_loss, models), micro_batch_size, trainable, steps)


def _prepare(
    frozen: FrozenInputs, key: Array, numbers: Array, batch: TaskBatch
) -> tuple[tuple[TaskBatch, Array], None]:
    """The batch with a dropout key a row: [b, 2] uint32, of (seed, step, row of the global batch)."""
    del frozen
    return (batch, row_keys(key, numbers)), None


def _loss(
    models: TaskModels,
    params: Params,
    frozen: FrozenInputs,
    micro: tuple[TaskBatch, Array],
    totals: None,
    progress: Array,
) -> tuple[Array, StepSums]:
    del totals
    batch, dropout_keys = micro
    total, terms = task_losses(models, params, frozen.teacher, batch, dropout_keys, progress)
    real = jnp.expand_dims(batch.token_share > 0, -1)
    return total, StepSums(terms, jnp.sum(jnp.asarray(batch.inputs.mask) * real, dtype=jnp.float32))


def task_losses(
    models: TaskModels,
    params: Params,
    teacher_params: Params | None,
    batch: TaskBatch,
    dropout_keys: Array | None,
    progress: Array | float = 0.0,
) -> tuple[Array, dict[str, SumCount]]:
    """The loss of a micro-batch and its terms, each its part of the batch's mean.

    Without a teacher the loss against the labels, "task", is all there is; where no label is known it is left out.
    Beside a teacher come "kl", of the task's logits, and the terms on activations that `objectives.TERMS` has, where
    their weight in the batch's phase is above 0. Of several teachers the mean of the logits is learned, which is the
    geometric mean of their probabilities (Hinton et al. 2015, section 1), and the activations of the first.

    Args:
        models: student, teachers and weights.
        params: of the student.
        teacher_params: of the teachers, by their number as text; None without one.
        batch: as `tasks.batches.collate` makes it.
        dropout_keys: [B, 2] uint32, None for no dropout.
        progress: of the run, from 0 to 1, which decides weights and temperature that move.
    """
    phase = batch.phase or Phase()
    kind, settings = kind_of(models.student.head), phase_weights(models.settings, phase)
    taught = teacher_params is not None and phase.name != "alone"
    terms = active_activation_terms(settings) if taught else {}
    capture = capture_of(terms)
    with jax.named_scope("student"):
        activations, logits = forward(models.student, params, batch.inputs._replace(dropout_keys=dropout_keys), capture)
    share = jnp.sum(batch.shares)
    losses = {} if batch.labels is None else {"task": SumCount(kind.loss(logits, batch), share)}
    if not taught or teacher_params is None:
        return losses["task"].sum, losses
    with jax.named_scope("teacher"):
        outputs = [
            forward(model, teacher_params[str(number)], batch.inputs, frozenset() if number else capture)
            for number, model in enumerate(models.teachers)
        ]
    compared, teacher_logits = jax.lax.stop_gradient((outputs[0][0], jnp.stack([logits for _, logits in outputs])))
    mean_logits = jnp.mean(teacher_logits, axis=0)
    kl = kind.distillation_loss(logits, mean_logits, batch, temperature_at(settings, progress))
    losses["kl"] = SumCount(kl, share)
    what = _compared(activations, compared, batch)
    losses |= activation_terms(terms, what, settings, params.get(PROJECTIONS))
    weights = weights_at(settings, progress)
    total = sum((weights.get(name, 0.0) * loss.sum for name, loss in losses.items()), start=jnp.zeros(()))
    return total, jax.lax.stop_gradient(losses)


def _compared(student: Activations, teacher: Activations, batch: TaskBatch) -> Compared:
    """What terms on activations compare. The weights of tokens, and those of rows, add up to 1 over a global batch."""
    mask = jnp.reshape(jnp.asarray(batch.inputs.mask), student.hidden.shape[:2])
    examples = jnp.sum(jnp.reshape(batch.shares, (len(batch.shares), -1)), axis=1)
    real = jnp.reshape(batch.token_share > 0, (len(examples), -1))  # not the endings that an example does not have
    return Compared(
        student,
        teacher,
        mask,
        weights=mask * jnp.reshape(batch.token_share, (-1, 1)),
        sequence_weights=jnp.reshape(examples[:, None] * real / jnp.maximum(jnp.sum(real, 1, keepdims=True), 1), -1),
        sequences=1,
    )


def forward(
    model: TaskModel, params: Params, inputs: EncoderInputs, capture: frozenset[str] = frozenset()
) -> tuple[Activations, Array]:
    """Activations of N rows, the endings of choices counted one by one, and logits of a batch.

    Logits are [B, K], tags [B, L, K], spans [B, L, 2], choices [B, C].
    """
    rows = one_row_a_choice(readable(model, inputs))
    activations: Any = model.apply({"params": params}, rows, capture, method="activations")
    logits: Any = model.apply({"params": params}, activations.hidden, rows.dropout_keys, method="task_logits")
    return activations, logits.reshape(inputs.ids.shape[:2]) if inputs.ids.ndim == 3 else logits


def readable(model: TaskModel | SentenceEncoder, inputs: EncoderInputs) -> EncoderInputs:
    """The inputs with their segments only for a model that knows a second one."""
    return inputs if model.config.type_vocab_size > 1 else inputs._replace(token_type_ids=None)

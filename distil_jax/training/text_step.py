"""Preparation, loss and held-out measures of packed text: what pre-training and distillation add to the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import Objective
from distil_jax.data.corpus import MaskingRule, mask_rows, predictions_per_row, sequence_numbers, sequence_positions
from distil_jax.models import EncoderInputs, MaskedLM
from distil_jax.objectives import (
    MicroBatch,
    SumCount,
    TeacherOutputs,
    Totals,
    evaluation_sums,
    most_sequences,
    objective_loss,
    teacher_outputs,
)
from distil_jax.training.step import (
    AXIS,
    FrozenInputs,
    Params,
    StepConfig,
    StepSums,
    micro_batches,
    row_numbers,
    sum_over,
    sum_over_devices,
)


@dataclasses.dataclass(frozen=True)
class TextModels:
    """The modules of a step on text, the objective, and how rows of packed sequences are masked."""

    student: MaskedLM
    teacher: MaskedLM | None
    objective: Objective
    rule: MaskingRule
    cls_id: int
    pad_id: int


class CachedRows(NamedTuple):
    """Rows [b, L] and what a teacher said of them, [b, ...]."""

    ids: Any
    cached: TeacherOutputs


def text_step_config(
    models: TextModels, micro_batch_size: int, trainable: tuple[str, ...], steps: int = 1
) -> StepConfig:
    """The step on rows of packed text [b, L], or on `CachedRows`, of a run of `steps`."""
    return StepConfig(partial(_prepare, models), partial(_loss, models), micro_batch_size, trainable, steps)


def _prepare(
    models: TextModels, frozen: FrozenInputs, key: Array, numbers: Array, batch: Array | CachedRows
) -> tuple[MicroBatch, Totals]:
    """Masked rows and the counts of the global batch; one small all-gather."""
    ids, cached = batch if isinstance(batch, CachedRows) else (batch, None)
    ids = ids.astype(jnp.int32)
    sequences = sequence_numbers(ids, models.cls_id, models.pad_id)
    local = [jnp.sum(sequences > 0, axis=1), _eligible(ids, sequences, frozen.log_weights), _counted(sequences)]
    lengths, eligible, packed = jax.lax.all_gather(jnp.stack(local, axis=1), AXIS, tiled=True).T
    predictions = predictions_per_row(lengths, eligible, models.rule.probability)
    totals = Totals(*(jnp.sum(counts).astype(jnp.float32) for counts in (lengths, predictions, packed)))
    rows = make_micro_batch(models, ids, _row_keys(key, numbers), predictions[numbers], frozen.log_weights)
    return rows._replace(cached=cached), totals


def _loss(
    models: TextModels, params: Params, frozen: FrozenInputs, micro: MicroBatch, totals: Totals, progress: Array
) -> tuple[Array, StepSums]:
    value, terms = objective_loss(
        models.objective, models.student, params, models.teacher, frozen.teacher, micro, totals, progress
    )
    return value, StepSums(terms, jnp.sum(micro.real))


def _eligible(ids: Array, sequences: Array, log_weights: Array) -> Array:
    """How many positions of each row can be predicted: [b, L] -> [b] int32."""
    return jnp.sum((log_weights[ids] > -jnp.inf) & (sequences > 0), axis=1)


def _counted(sequences: Array) -> Array:
    """How many packed sequences of each row count in terms on sentences: [b, L] -> [b] int32."""
    return jnp.minimum(jnp.max(sequences, axis=1), most_sequences(sequences.shape[1]))


def _row_keys(key: Array, rows: Array) -> Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def make_micro_batch(
    models: TextModels, ids: Array, keys: Array, predictions: Array, log_weights: Array, *, dropout: bool = True
) -> MicroBatch:
    """Number the packed sequences and choose what is predicted.

    Args:
        models: static settings.
        ids: [b, L] int32.
        keys: [b] PRNG keys, one a row.
        predictions: [b] int32, of each row.
        log_weights: [V] float32.
        dropout: whether to give every row a dropout key.
    """
    masking_keys, dropout_keys = (jax.vmap(lambda key, use=use: jax.random.fold_in(key, use))(keys) for use in range(2))
    masked = mask_rows(ids, masking_keys, predictions, log_weights, models.rule)
    inputs = EncoderInputs(
        ids=masked.ids,
        mask=sequence_numbers(ids, models.cls_id, models.pad_id),
        position_ids=sequence_positions(ids, models.cls_id),
        dropout_keys=jax.vmap(jax.random.key_data)(dropout_keys) if dropout else None,
    )
    return MicroBatch(inputs, masked.positions, masked.targets, masked.weights)


def make_teacher_step(
    models: TextModels, micro_batch_size: int, count: int
) -> Callable[[FrozenInputs, Array, Array], TeacherOutputs]:
    """The per-device `(frozen, step (), ids [b, L]) -> what the teacher says of the batch of all devices`.

    It sees the masks of that step of a run; `count` most probable tokens are kept.
    """
    teacher = models.teacher
    assert teacher is not None

    def teacher_step(frozen: FrozenInputs, step: Array, ids: Array) -> TeacherOutputs:
        assert frozen.teacher is not None
        key = jax.random.fold_in(jax.random.key(frozen.seed), step)
        rows, _ = _prepare(models, frozen, key, row_numbers(ids), ids)
        outputs = partial(teacher_outputs, models.objective, teacher, frozen.teacher, count=count)
        found = jax.lax.map(outputs, micro_batches(rows, micro_batch_size))
        return jax.tree.map(lambda x: jax.lax.all_gather(x.reshape(-1, *x.shape[2:]), AXIS, tiled=True), found)

    return teacher_step


def make_evaluation_step(
    models: TextModels, micro_batch_size: int
) -> Callable[[Params, FrozenInputs, Array, Array], dict[str, SumCount]]:
    """The per-device `(params, frozen, first row (), ids [b, L]) -> sums over all devices`.

    A row's mask depends on (seed, row of the held-out set) only, not on the batch size. Rows of padding count nowhere.
    """

    def evaluation_step(params: Params, frozen: FrozenInputs, first_row: Array, ids: Array) -> dict[str, SumCount]:
        ids = ids.astype(jnp.int32)
        sequences = sequence_numbers(ids, models.cls_id, models.pad_id)
        eligible = _eligible(ids, sequences, frozen.log_weights)
        share = jax.vmap(lambda length: predictions_per_row(length[None], length[None], models.rule.probability)[0])
        predictions = jnp.minimum(share(jnp.sum(sequences > 0, axis=1)), eligible)
        keys = _row_keys(jax.random.key(frozen.seed), row_numbers(ids, first_row))
        rows = make_micro_batch(models, ids, keys, predictions, frozen.log_weights, dropout=False)

        def sums_of(micro: MicroBatch) -> dict[str, SumCount]:
            return evaluation_sums(models.objective, models.student, params, models.teacher, frozen.teacher, micro)

        return sum_over_devices(sum_over(sums_of, micro_batches(rows, micro_batch_size)))

    return evaluation_step

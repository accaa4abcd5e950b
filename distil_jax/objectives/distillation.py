"""The objective: which losses, on which positions, with which weights.

Student and teacher see the same masked ids. Without a teacher (or with no loss that needs one) this is
plain masked-language-model training, and only the predicted positions meet the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import Objective
from distil_jax.models import MaskedLM
from distil_jax.objectives.losses import (
    SumCount,
    cosine_distance,
    cross_entropy,
    distillation_kl,
    logit_mse,
    top1_matches,
)

Params = Mapping[str, Any]


class MicroBatch(NamedTuple):
    """What one forward pass sees; M rows of L tokens, K predictions a row.

    `ids` [M, L] int32 (after masking), `sequences` [M, L] int32 (0 = padding), `position_ids` [M, L] int32,
    `positions`, `targets` [M, K] int32, `weights` [M, K] float32 (1 = predicted), `dropout_keys` [M, 2] uint32 or None.
    """

    ids: Array
    sequences: Array
    position_ids: Array
    positions: Array
    targets: Array
    weights: Array
    dropout_keys: Array | None


class Denominators(NamedTuple):
    """Global counts that turn the sums of a micro-batch into its part of the global means; float32 scalars.

    `tokens` counts all real positions of the global batch, `predicted` those with a label.
    """

    tokens: Array
    predicted: Array


def is_causal(objective: Objective) -> bool:
    """Whether labels are the next tokens of unmasked rows instead of the masked ones."""
    return objective.alpha_clm > 0


def uses_teacher(objective: Objective) -> bool:
    """Whether any loss compares with a teacher."""
    return objective.alpha_ce > 0 or objective.alpha_cos > 0 or objective.alpha_mse > 0


def needs_all_logits(objective: Objective) -> bool:
    """Whether every real position goes through the vocabulary, not only the predicted ones."""
    return (objective.alpha_ce > 0 or objective.alpha_mse > 0) and not objective.restrict_ce_to_mask


def _select(hidden: Array, positions: Array) -> Array:
    """hidden [M, L, H] at positions [M, K] -> [M * K, H]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1).reshape(-1, hidden.shape[-1])


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _forward(module: MaskedLM, params: Params, batch: MicroBatch, dropout_keys: Array | None) -> Array:
    arguments = (batch.ids, batch.sequences, batch.position_ids, None, dropout_keys)
    return module.apply({"params": params}, *arguments, method="encode")  # type: ignore[return-value]


def _logits(module: MaskedLM, params: Params, hidden: Array) -> Array:
    return module.apply({"params": params}, hidden, method="mlm_logits")  # type: ignore[return-value]


def loss_sums(
    objective: Objective,
    student: MaskedLM,
    student_params: Params,
    teacher: MaskedLM | None,
    teacher_params: Params | None,
    batch: MicroBatch,
) -> dict[str, SumCount]:
    """Sums and counts of every loss whose alpha is not 0: keys "ce", "mlm", "cos", "mse", "clm".

    Only the predicted positions go through the vocabulary unless a loss needs all of them.
    """
    if uses_teacher(objective) and (teacher is None or teacher_params is None):
        raise ValueError("a loss with alpha > 0 needs a teacher")
    hidden = _forward(student, student_params, batch, batch.dropout_keys)
    real = (batch.sequences > 0).astype(jnp.float32).reshape(-1)
    sums: dict[str, SumCount] = {}
    teacher_hidden = None
    if teacher is not None and teacher_params is not None and uses_teacher(objective):
        teacher_hidden = jax.lax.stop_gradient(_forward(teacher, teacher_params, batch, None))
        if objective.alpha_cos > 0:
            sums["cos"] = cosine_distance(_rows(hidden), _rows(teacher_hidden), real)
    needs_teacher_logits = objective.alpha_ce > 0 or objective.alpha_mse > 0
    on_all = needs_all_logits(objective)
    student_logits = _logits(student, student_params, _rows(hidden) if on_all else _select(hidden, batch.positions))
    if needs_teacher_logits:
        assert teacher is not None and teacher_params is not None and teacher_hidden is not None  # checked above
        chosen = _rows(teacher_hidden) if on_all else _select(teacher_hidden, batch.positions)
        teacher_logits = jax.lax.stop_gradient(_logits(teacher, teacher_params, chosen))
        weights = real if on_all else batch.weights.reshape(-1)
        if objective.alpha_ce > 0:
            sums["ce"] = distillation_kl(student_logits, teacher_logits, weights, objective.temperature)
        if objective.alpha_mse > 0:
            sums["mse"] = logit_mse(student_logits, teacher_logits, weights)
    if objective.alpha_mlm > 0 or objective.alpha_clm > 0:
        targets, weights = _labels_of_all(batch) if on_all else (batch.targets.reshape(-1), batch.weights.reshape(-1))
        sums["clm" if is_causal(objective) else "mlm"] = cross_entropy(student_logits, targets, weights)
    return sums


def _labels_of_all(batch: MicroBatch) -> tuple[Array, Array]:
    """Targets and weights of the predicted positions laid out over all M * L positions."""
    shape = batch.ids.shape
    rows = jnp.broadcast_to(jnp.arange(shape[0])[:, None], batch.positions.shape)
    targets = jnp.zeros(shape, jnp.int32).at[rows, batch.positions].set(batch.targets)
    weights = jnp.zeros(shape, jnp.float32).at[rows, batch.positions].set(batch.weights)
    return targets.reshape(-1), weights.reshape(-1)


def weighted_total(objective: Objective, sums: Mapping[str, SumCount], denominators: Denominators) -> Array:
    """This micro-batch's part of sum_i alpha_i * (global sum_i / global count_i); the alphas are not normalised."""
    total = jnp.zeros((), jnp.float32)
    for name, term in sums.items():
        labelled = name in ("mlm", "clm") or (name in ("ce", "mse") and objective.restrict_ce_to_mask)
        count = denominators.predicted if labelled else denominators.tokens
        total = total + getattr(objective, f"alpha_{name}") * term.sum / jnp.maximum(count, 1.0)
    return total


def evaluation_sums(
    student: MaskedLM,
    student_params: Params,
    teacher: MaskedLM | None,
    teacher_params: Params | None,
    batch: MicroBatch,
) -> dict[str, SumCount]:
    """Held-out measures over the predicted positions: "mlm", "accuracy", and against a teacher "kl", "agreement".

    "kl" is KL(teacher || student) at temperature 1; "agreement" the share of equal most probable tokens.
    """
    logits = _logits(student, student_params, _select(_forward(student, student_params, batch, None), batch.positions))
    targets, weights = batch.targets.reshape(-1), batch.weights.reshape(-1)
    sums = {"mlm": cross_entropy(logits, targets, weights), "accuracy": top1_matches(logits, targets, weights)}
    if teacher is not None and teacher_params is not None:
        hidden = _select(_forward(teacher, teacher_params, batch, None), batch.positions)
        teacher_logits = _logits(teacher, teacher_params, hidden)
        sums["kl"] = distillation_kl(logits, teacher_logits, weights, 1.0)
        sums["agreement"] = top1_matches(logits, jnp.argmax(teacher_logits, axis=-1), weights)
    return sums

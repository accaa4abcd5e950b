"""The objective: which losses, on which positions, with which weights.

Student and teacher see the same masked ids. Without a teacher (or with no loss that needs one) this is
plain masked-language-model training, and only the predicted positions meet the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import Objective
from distil_jax.models import EncoderInputs, MaskedLM
from distil_jax.objectives import vocabulary_kernel
from distil_jax.objectives.losses import SumCount, cosine_distance
from distil_jax.objectives.vocabulary import fused_vocabulary_loss, plain_vocabulary_loss, vocabulary_measures
from distil_jax.objectives.vocabulary_terms import LABEL_TERMS, OutputLayer, Positions

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


_OF_VOCABULARY = {
    "fused": fused_vocabulary_loss,
    "kernel": partial(fused_vocabulary_loss, differentiate=vocabulary_kernel.loss_and_dlogits),
    "plain": plain_vocabulary_loss,
}


def is_causal(objective: Objective) -> bool:
    """Whether labels are the next tokens of unmasked rows instead of the masked ones."""
    return objective.alpha_clm > 0


def uses_teacher(objective: Objective) -> bool:
    """Whether any loss compares with a teacher."""
    return objective.alpha_ce > 0 or objective.alpha_cos > 0 or objective.alpha_mse > 0


def needs_all_logits(objective: Objective) -> bool:
    """Whether every real position goes through the vocabulary, not only the predicted ones."""
    return _compares_logits(objective) and not objective.restrict_ce_to_mask


def _compares_logits(objective: Objective) -> bool:
    return objective.alpha_ce > 0 or objective.alpha_mse > 0


def _select(hidden: Array, positions: Array) -> Array:
    """hidden [M, L, H] at positions [M, K] -> [M * K, H]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1).reshape(-1, hidden.shape[-1])


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _forward(module: MaskedLM, params: Params, batch: MicroBatch, dropout_keys: Array | None) -> Array:
    inputs = EncoderInputs(batch.ids, batch.sequences, batch.position_ids, dropout_keys=dropout_keys)
    return module.apply({"params": params}, inputs, method="encode")  # type: ignore[return-value]


def _output_layer(module: MaskedLM, params: Params, hidden: Array) -> OutputLayer:
    """hidden [N, H] of the last layer -> what its logits are made of."""
    factors: Any = module.apply({"params": params}, hidden, method="mlm_hidden_and_table")
    return OutputLayer(*factors)


def _alpha(objective: Objective, name: str) -> float:
    return getattr(objective, f"alpha_{name}")


def _coefficients(objective: Objective, denominators: Denominators) -> dict[str, Array]:
    """What the sum of each loss whose alpha is not 0 is multiplied by in the total: alpha / global count."""
    labelled = {"mlm", "clm"} | ({"ce", "mse"} if objective.restrict_ce_to_mask else set())
    counts = {
        name: denominators.predicted if name in labelled else denominators.tokens
        for name in ("ce", "mlm", "cos", "mse", "clm")
    }
    return {
        name: _alpha(objective, name) / jnp.maximum(count, 1.0)
        for name, count in counts.items()
        if _alpha(objective, name) > 0
    }


def objective_loss(
    objective: Objective,
    student: MaskedLM,
    student_params: Params,
    teacher: MaskedLM | None,
    teacher_params: Params | None,
    batch: MicroBatch,
    denominators: Denominators,
) -> tuple[Array, dict[str, SumCount]]:
    """This micro-batch's part of sum_i alpha_i * (global sum_i / global count_i); the alphas are not normalised.

    Only the predicted positions go through the vocabulary unless a loss needs all of them.

    Returns:
        (total (), differentiable by the student's parameters; sums and counts of every loss whose alpha is not 0, keys
        "ce", "mlm", "cos", "mse", "clm", as measures without gradient).

    Raises:
        ValueError: a loss needs a teacher and there is none.
    """
    if uses_teacher(objective) and (teacher is None or teacher_params is None):
        raise ValueError("a loss with alpha > 0 needs a teacher")
    hidden, teacher_hidden = _forward(student, student_params, batch, batch.dropout_keys), None
    if teacher is not None and teacher_params is not None and uses_teacher(objective):
        teacher_hidden = jax.lax.stop_gradient(_forward(teacher, teacher_params, batch, None))
    coefficients = _coefficients(objective, denominators)
    total, sums = jnp.zeros(()), {}
    if teacher_hidden is not None and "cos" in coefficients:
        real = (batch.sequences > 0).astype(jnp.float32).reshape(-1)
        sums["cos"] = cosine_distance(_rows(hidden), _rows(teacher_hidden), real)
        total = coefficients.pop("cos") * sums["cos"].sum
    if coefficients:
        on_all = needs_all_logits(objective)
        chosen = _rows if on_all else partial(_select, positions=batch.positions)
        layer, teacher_layer = _output_layer(student, student_params, chosen(hidden)), None
        if teacher_hidden is not None and _compares_logits(objective):
            assert teacher is not None and teacher_params is not None  # it has hidden states
            teacher_layer = _output_layer(teacher, teacher_params, chosen(teacher_hidden))
        positions = _positions(batch, coefficients.keys(), on_all)
        of_vocabulary = _OF_VOCABULARY[objective.vocabulary]
        part, found = of_vocabulary(layer, teacher_layer, positions, coefficients, temperature=objective.temperature)
        total, sums = total + part, sums | found
    return total, jax.lax.stop_gradient(sums)


def _positions(batch: MicroBatch, losses: Collection[str], on_all: bool) -> Positions:
    """Weights and targets of the losses over the vocabulary, at all M * L positions or the M * K predicted ones."""
    targets, predicted = batch.targets.reshape(-1), batch.weights.reshape(-1)
    compared = predicted
    if on_all:
        targets, predicted = _labels_of_all(batch)
        compared = (batch.sequences > 0).astype(jnp.float32).reshape(-1)
    return Positions({name: predicted if name in LABEL_TERMS else compared for name in losses}, targets)


def _labels_of_all(batch: MicroBatch) -> tuple[Array, Array]:
    """Targets and weights of the predicted positions laid out over all M * L positions."""
    shape = batch.ids.shape
    rows = jnp.broadcast_to(jnp.arange(shape[0])[:, None], batch.positions.shape)
    targets = jnp.zeros(shape, jnp.int32).at[rows, batch.positions].set(batch.targets)
    weights = jnp.zeros(shape, jnp.float32).at[rows, batch.positions].set(batch.weights)
    return targets.reshape(-1), weights.reshape(-1)


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

    def layer_of(module: MaskedLM, params: Params) -> OutputLayer:
        return _output_layer(module, params, _select(_forward(module, params, batch, None), batch.positions))

    layer, wanted = layer_of(student, student_params), None
    if teacher is not None and teacher_params is not None:
        wanted = layer_of(teacher, teacher_params)
    return vocabulary_measures(layer, wanted, batch.targets.reshape(-1), batch.weights.reshape(-1))

"""The objective: the weighted total of its terms, and the held-out measures.

Student and teacher see the same masked ids. Without a term over the vocabulary no logits are computed; where only
labels meet it, only the predicted positions do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import Objective
from distil_jax.models import Activations, EncoderInputs, MaskedLM
from distil_jax.objectives.compared import Compared, flatten_positions
from distil_jax.objectives.losses import SumCount
from distil_jax.objectives.schedules import Value, temperature_at, weights_at
from distil_jax.objectives.terms import (
    PROJECTIONS,
    TERMS,
    activation_terms,
    active_activation_terms,
    active_terms,
    at_predictions,
    cached_parts,
    capture_of,
    needs_all_logits,
    uses_teacher,
)
from distil_jax.objectives.vocabulary import (
    fused_vocabulary_loss,
    plain_vocabulary_loss,
    top_tokens,
    vocabulary_measures,
)
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions, Teacher, TopTokens

Params = Mapping[str, Any]


class TeacherOutputs(NamedTuple):
    """What a cached teacher gives for M rows: all that an objective may read of it.

    Attributes:
        top: its most probable tokens at the P positions of "kl", arrays [M, P, ...]; None without that term.
        hidden: its last hidden states [M, L, H] float16; None where no term reads them.
    """

    top: TopTokens | None
    hidden: Array | None


class MicroBatch(NamedTuple):
    """What one forward pass sees: M rows of L tokens, K predictions a row.

    `inputs` holds the masked ids; its attention mask numbers the sequences of a row (0 is padding). `positions`,
    `targets` [M, K] int32, `weights` [M, K] float32 (1 = predicted). `cached` stands for a teacher.
    """

    inputs: EncoderInputs
    positions: Array
    targets: Array
    weights: Array
    cached: TeacherOutputs | None = None

    @property
    def real(self) -> Array:
        """[M, L] float32, 1 at real tokens and 0 at padding."""
        return (self.mask > 0).astype(jnp.float32)

    @property
    def mask(self) -> Array:
        """[M, L] int32, numbers of the packed sequences, 0 at padding."""
        assert self.inputs.mask is not None
        return self.inputs.mask

    def compared(self, student: Activations, teacher: Activations) -> Compared:
        """What terms on activations compare; every token and every sequence counts alike."""
        return Compared(student, teacher, self.mask, self.real, jnp.ones(self.mask.shape[:1]))


class Totals(NamedTuple):
    """Global counts that turn the sums of a micro-batch into its part of the global means; float32 scalars.

    `tokens` counts all real positions of the global batch, `predicted` those with a label, `sequences` the packed
    sequences.
    """

    tokens: Array
    predicted: Array
    sequences: Array


def objective_loss(
    objective: Objective,
    student: MaskedLM,
    student_params: Params,
    teacher: MaskedLM | None,
    teacher_params: Params | None,
    batch: MicroBatch,
    totals: Totals,
    progress: Value = 0.0,
) -> tuple[Array, dict[str, SumCount]]:
    """This micro-batch's part of sum_i weight_i * (global sum_i / global count_i); the weights are not normalised.

    `progress` of the run, from 0 to 1, decides weights and temperature that move.

    Returns:
        (total (), differentiable by the student's parameters; sum and count of every term whose weight is not 0, by
        its name, as measures without gradient).

    Raises:
        ValueError: a term needs a teacher and there is none.
    """
    terms = active_terms(objective)
    if uses_teacher(objective) and batch.cached is None and (teacher is None or teacher_params is None):
        raise ValueError("a term of the objective compares with a teacher, and there is none")
    coefficients = _coefficients(objective, totals, progress)
    capture = capture_of(terms)
    with jax.named_scope("student"):
        activations = _activations(student, student_params, batch.inputs, capture)
    teacher_activations = None
    if batch.cached is not None and batch.cached.hidden is not None:
        teacher_activations = Activations(batch.cached.hidden)
    elif teacher is not None and teacher_params is not None and uses_teacher(objective):
        inputs = batch.inputs._replace(dropout_keys=None)
        with jax.named_scope("teacher"):
            teacher_activations = jax.lax.stop_gradient(_activations(teacher, teacher_params, inputs, capture))
    total, sums = jnp.zeros(()), {}
    if teacher_activations is not None:
        projections = student_params.get(PROJECTIONS)
        sums = activation_terms(terms, batch.compared(activations, teacher_activations), objective, projections)
        total = sum((coefficients[name] * term.sum for name, term in sums.items()), total)
    over_vocabulary = {name: coefficients[name] for name, term in terms.items() if term.over_vocabulary}
    if over_vocabulary:
        on_all = needs_all_logits(objective)
        chosen = flatten_positions if on_all else partial(_select, positions=batch.positions)
        layer = _output_layer(student, student_params, chosen(activations.hidden))
        teacher_layer: Teacher = None
        reads_teacher = any(TERMS[name].reads_teacher for name in over_vocabulary)
        if reads_teacher and batch.cached is not None:
            teacher_layer = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.cached.top)
        elif reads_teacher and teacher_activations is not None and teacher is not None and teacher_params is not None:
            teacher_layer = _output_layer(teacher, teacher_params, chosen(teacher_activations.hidden))
        fused = partial(fused_vocabulary_loss, chunk=objective.chunk)
        vocabulary_loss = fused if objective.vocabulary == "fused" else plain_vocabulary_loss
        with jax.named_scope("vocabulary"):
            part, found = vocabulary_loss(
                layer,
                teacher_layer,
                _positions(batch, over_vocabulary, on_all),
                over_vocabulary,
                temperature=temperature_at(objective, progress),
            )
        total, sums = total + part, sums | found
    return total, jax.lax.stop_gradient(sums)


def teacher_outputs(
    objective: Objective, teacher: MaskedLM, teacher_params: Params, batch: MicroBatch, count: int
) -> TeacherOutputs:
    """What `objective` reads of a teacher, to be kept: its `count` most probable tokens and last hidden states."""
    hidden = _activations(teacher, teacher_params, batch.inputs._replace(dropout_keys=None), frozenset()).hidden
    top, parts = None, cached_parts(objective)
    if "top" in parts:
        chosen = flatten_positions(hidden) if needs_all_logits(objective) else _select(hidden, batch.positions)
        found = top_tokens(_output_layer(teacher, teacher_params, chosen), count, objective.temperature)
        top = jax.tree.map(lambda x: x.reshape(hidden.shape[0], -1, *x.shape[1:]), found)
    return TeacherOutputs(top, hidden.astype(jnp.float16) if "hidden" in parts else None)


def _coefficients(objective: Objective, totals: Totals, progress: Value) -> dict[str, Array]:
    """What the sum of each term is multiplied by in the total: weight / global count."""
    predicted = at_predictions(objective)

    def count(name: str) -> Array:
        if TERMS[name].counts == "sequences":
            return totals.sequences
        return totals.predicted if name in predicted else totals.tokens

    weights = weights_at(objective, progress)
    return {name: weight / jnp.maximum(count(name), 1.0) for name, weight in weights.items()}


def _activations(module: MaskedLM, params: Params, inputs: EncoderInputs, capture: frozenset[str]) -> Activations:
    return module.apply({"params": params}, inputs, capture, method="activations")  # type: ignore[return-value]


@jax.named_scope("vocabulary")
def _output_layer(module: MaskedLM, params: Params, hidden: Array) -> OutputLayer:
    """hidden [N, H] of the last layer -> what its logits are made of."""
    factors: Any = module.apply({"params": params}, hidden, method="mlm_hidden_and_table")
    return OutputLayer(*factors)


def _select(hidden: Array, positions: Array) -> Array:
    """hidden [M, L, H] at positions [M, K] -> [M * K, H]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1).reshape(-1, hidden.shape[-1])


def _positions(batch: MicroBatch, names: Collection[str], on_all: bool) -> Positions:
    """Weights and targets of the terms over the vocabulary, at all M * L positions or the M * K predicted ones."""
    targets, predicted = batch.targets.reshape(-1), batch.weights.reshape(-1)
    compared = predicted
    if on_all:
        targets, predicted = _labels_of_all(batch)
        compared = batch.real.reshape(-1)
    weights = {name: predicted if TERMS[name].counts == "predictions" else compared for name in names}
    return Positions(weights, targets)


def _labels_of_all(batch: MicroBatch) -> tuple[Array, Array]:
    """Targets and weights of the predicted positions laid out over all M * L positions."""
    shape = batch.inputs.ids.shape
    rows = jnp.broadcast_to(jnp.arange(shape[0])[:, None], batch.positions.shape)
    targets = jnp.zeros(shape, jnp.int32).at[rows, batch.positions].set(batch.targets)
    weights = jnp.zeros(shape, jnp.float32).at[rows, batch.positions].set(batch.weights)
    return targets.reshape(-1), weights.reshape(-1)


def evaluation_sums(
    objective: Objective,
    student: MaskedLM,
    student_params: Params,
    teacher: MaskedLM | None,
    teacher_params: Params | None,
    batch: MicroBatch,
) -> dict[str, SumCount]:
    """Held-out measures, as sums and counts.

    With a masked-LM head, over the predicted positions where rows are masked: "mlm", "accuracy" and, where the teacher
    has a head too, "kl" (KL(teacher || student) at temperature 1) and "agreement" (share of equal most probable
    tokens). Against a teacher, over all real positions: the objective's terms on activations, by their names.
    """
    terms = active_activation_terms(objective)
    inputs, capture = batch.inputs._replace(dropout_keys=None), capture_of(terms)
    activations, teacher_activations = _activations(student, student_params, inputs, capture), None
    if teacher is not None and teacher_params is not None:
        teacher_activations = _activations(teacher, teacher_params, inputs, capture)
    sums: dict[str, SumCount] = {}
    if "mlm_head" in student_params and batch.targets.shape[1]:
        layer = _output_layer(student, student_params, _select(activations.hidden, batch.positions))
        teacher_layer = None
        if teacher_activations is not None and teacher is not None and teacher_params and "mlm_head" in teacher_params:
            teacher_layer = _output_layer(teacher, teacher_params, _select(teacher_activations.hidden, batch.positions))
        sums |= vocabulary_measures(layer, teacher_layer, batch.targets.reshape(-1), batch.weights.reshape(-1))
    if teacher_activations is not None:
        projections = student_params.get(PROJECTIONS)
        sums |= activation_terms(terms, batch.compared(activations, teacher_activations), objective, projections)
    return sums

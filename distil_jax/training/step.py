"""One optimiser step as a pure function of (state, constants, rows), written for one device of a mapped axis.

Everything random is a function of (seed, step, global row). Gradients and sums are added up over the
micro-batches of a device and reduced over devices once; means are global sums over global counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from distil_jax.config import Objective
from distil_jax.data.corpus.masking import MaskingRule, mask_rows, next_token_rows, predictions_per_row
from distil_jax.data.corpus.sequences import sequence_numbers, sequence_positions
from distil_jax.models import MaskedLM
from distil_jax.objectives import (
    Denominators,
    MicroBatch,
    SumCount,
    evaluation_sums,
    is_causal,
    objective_loss,
)

AXIS = "data"
Tree = TypeVar("Tree")
Params = dict[str, Any]
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: step () int32, params, moments of the trained parameters."""

    step: Array
    params: Params
    opt_state: optax.OptState


class FrozenInputs(NamedTuple):
    """What a step only reads: the teacher's parameters (None without one) and the masking log-weights [V] float32."""

    teacher: Params | None
    log_weights: Any  # a NumPy array until it is put on the devices


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The static part of a step: modules, objective, rules. Batches are rows of packed sequences."""

    student: MaskedLM
    teacher: MaskedLM | None
    objective: Objective
    rule: MaskingRule
    cls_id: int
    pad_id: int
    seed: int
    micro_batch_size: int
    trainable: tuple[str, ...] = ("encoder", "mlm_head")


def init_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """State before the first step; `trainable` are the top-level parameter groups that get updates."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init({name: params[name] for name in trainable}))


def _eligible(task: StepConfig, ids: Array, sequences: Array, log_weights: Array) -> Array:
    """How many positions of each row can be predicted: [b, L] -> [b] int32."""
    if is_causal(task.objective):
        return jnp.sum(next_token_rows(ids, sequences).weights, axis=1).astype(jnp.int32)
    return jnp.sum((log_weights[ids] > -jnp.inf) & (sequences > 0), axis=1)


def _batch_quotas(task: StepConfig, ids: Array, log_weights: Array, rows: Array) -> tuple[Array, Denominators]:
    """Predictions of each of this device's rows [b] int32, and the counts of the global batch; one small all-gather."""
    sequences = sequence_numbers(ids, task.cls_id, task.pad_id)
    local = jnp.stack([jnp.sum(sequences > 0, axis=1), _eligible(task, ids, sequences, log_weights)], axis=1)
    lengths, eligible = jax.lax.all_gather(local, AXIS, tiled=True).T
    quotas = eligible if is_causal(task.objective) else predictions_per_row(lengths, eligible, task.rule.probability)
    return quotas[rows], Denominators(jnp.sum(lengths).astype(jnp.float32), jnp.sum(quotas).astype(jnp.float32))


def make_micro_batch(
    task: StepConfig, ids: Array, keys: Array, quotas: Array, log_weights: Array, *, dropout: bool
) -> MicroBatch:
    """Number the packed sequences and choose what is predicted.

    Args:
        task: static settings.
        ids: [b, L] int32.
        keys: [b] PRNG keys, one a row.
        quotas: [b] int32, predictions of each row (a causal model predicts every next token).
        log_weights: [V] float32.
        dropout: whether to give every row a dropout key.
    """
    sequences = sequence_numbers(ids, task.cls_id, task.pad_id)
    masking_keys, dropout_keys = (jax.vmap(lambda key, use=use: jax.random.fold_in(key, use))(keys) for use in range(2))
    if is_causal(task.objective):
        labelled = next_token_rows(ids, sequences)
    else:
        labelled = mask_rows(ids, masking_keys, quotas, log_weights, task.rule)
    return MicroBatch(
        ids=labelled.ids,
        sequences=sequences,
        position_ids=sequence_positions(ids, task.cls_id),
        positions=labelled.positions,
        targets=labelled.targets,
        weights=labelled.weights,
        dropout_keys=jax.vmap(jax.random.key_data)(dropout_keys) if dropout else None,
    )


def micro_batches(rows: Tree, size: int) -> Tree:
    """A tree of arrays [b, ...] cut along the rows: [b / size, size, ...]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // size, size, *x.shape[1:]), rows)


def _row_keys(key: Array, rows: Array) -> Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def sum_over(function: Callable[[Any], Tree], batches: Any) -> Tree:
    """Sum of `function` over the leading axis of the micro-batches, holding one at a time."""
    first = jax.tree.map(lambda x: x[0], batches)
    if len(jax.tree.leaves(batches)[0]) == 1:
        return function(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(lambda total, m: (jax.tree.map(jnp.add, total, function(m)), None), zeros, batches)[0]


def sum_over_devices(tree: Tree) -> Tree:
    """Sum of every array of the tree over the mapped axis; with one device XLA would still copy them all."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.psum(tree, AXIS)


def apply_gradients(
    state: TrainState,
    gradients: Params,
    loss: Array,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
) -> tuple[TrainState, Metrics]:
    """The state after an update by `gradients` of the trained groups; they and `loss` () are equal on all devices.

    Where `loss` or a gradient is not finite, parameters and moments stay as they are, and only the step's number goes
    on. Metrics: "gradient_norm", "learning_rate", "skipped" (1 where nothing was updated, else 0), and
    "gradient_norms" [tensors], the norm of each tensor's gradient in the order of the tree.
    """
    trained = {name: state.params[name] for name in gradients}
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained, keep_old=~finite)
    moved = jax.tree.map(partial(jnp.where, finite), optax.apply_updates(trained, updates), trained)
    metrics = {
        "gradient_norm": norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "skipped": 1 - finite.astype(jnp.float32),
        "gradient_norms": jnp.stack([optax.tree.norm(leaf) for leaf in jax.tree.leaves(gradients)]),
    }
    return TrainState(state.step + 1, {**state.params, **moved}, opt_state), metrics


def make_train_step(
    task: StepConfig, optimizer: optax.GradientTransformationExtraArgs, schedule: optax.Schedule
) -> Callable[[TrainState, FrozenInputs, Array], tuple[TrainState, Metrics]]:
    """The per-device step `(state, constants, ids [b, L]) -> (state, metrics)`; map it with `parallel.map_step`.

    Metrics are float32 scalars of the parameters before the update: "loss", "loss_<term>", "tokens", and those of
    `apply_gradients`.
    """

    def train_step(state: TrainState, constants: FrozenInputs, ids: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(task.seed), state.step)
        ids = ids.astype(jnp.int32)
        numbers = jax.lax.axis_index(AXIS) * ids.shape[0] + jnp.arange(ids.shape[0])
        quotas, denominators = _batch_quotas(task, ids, constants.log_weights, numbers)
        rows = make_micro_batch(task, ids, _row_keys(key, numbers), quotas, constants.log_weights, dropout=True)
        trained = {name: state.params[name] for name in task.trainable}

        def loss(trained: Params, micro: MicroBatch) -> tuple[Array, dict[str, SumCount]]:
            params = {**state.params, **trained}
            return objective_loss(
                task.objective, task.student, params, task.teacher, constants.teacher, micro, denominators
            )

        gradients_of = partial(jax.value_and_grad(loss, has_aux=True), trained)
        local = sum_over(gradients_of, micro_batches(rows, task.micro_batch_size))
        (value, sums), gradients = sum_over_devices(local)
        state, metrics = apply_gradients(state, gradients, value, optimizer, schedule)
        means = {f"loss_{name}": term.mean for name, term in sums.items()}
        return state, {"loss": value, **means, **metrics, "tokens": denominators.tokens}

    return train_step


def make_evaluation_step(task: StepConfig) -> Callable[[Params, FrozenInputs, Array, Array], dict[str, SumCount]]:
    """The per-device `(params, constants, first row (), ids [b, L]) -> sums over all devices`.

    A row's mask depends on (seed, row of the held-out set) only, not on the batch size. Rows of padding count nowhere.
    """

    def evaluation_step(params: Params, constants: FrozenInputs, first_row: Array, ids: Array) -> dict[str, SumCount]:
        ids = ids.astype(jnp.int32)
        numbers = first_row + jax.lax.axis_index(AXIS) * ids.shape[0] + jnp.arange(ids.shape[0])
        sequences = sequence_numbers(ids, task.cls_id, task.pad_id)
        eligible = _eligible(task, ids, sequences, constants.log_weights)
        share = jax.vmap(lambda length: predictions_per_row(length[None], length[None], task.rule.probability)[0])
        quotas = jnp.minimum(share(jnp.sum(sequences > 0, axis=1)), eligible)
        keys = _row_keys(jax.random.key(task.seed), numbers)
        rows = make_micro_batch(task, ids, keys, quotas, constants.log_weights, dropout=False)

        def sums_of(micro: MicroBatch) -> dict[str, SumCount]:
            return evaluation_sums(task.student, params, task.teacher, constants.teacher, micro)

        return sum_over_devices(sum_over(sums_of, micro_batches(rows, task.micro_batch_size)))

    return evaluation_step

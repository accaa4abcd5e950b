"""The per-device functions of fine-tuning: one training step, and the logits of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from distil_jax.config import FineTune
from distil_jax.models import TaskModel, row_keys, transpose_kernels
from distil_jax.tasks.losses import Batch, Models, Params, batch_losses, inputs_of
from distil_jax.training.step import (
    AXIS,
    Metrics,
    TrainState,
    apply_gradients,
    micro_batches,
    sum_over,
    sum_over_devices,
)


@dataclasses.dataclass(frozen=True)
class TaskSetup:
    """The static part of a step; `trainable` are the top-level parameter groups that get updates."""

    models: Models
    settings: FineTune
    micro_batch_size: int
    trainable: tuple[str, ...] = ("encoder", "task_head")


class TaskFrozenInputs(NamedTuple):
    """What a step only reads: the teacher's parameters, None without one, and the seed of dropout, () int32.

    The seed is no part of the program, so that runs of several seeds share the compiled one.
    """

    teacher: Params | None
    seed: Any  # a NumPy scalar until it is put on the devices


def make_task_step(
    setup: TaskSetup, optimizer: optax.GradientTransformationExtraArgs, schedule: optax.Schedule
) -> Callable[[TrainState, TaskFrozenInputs, Batch], tuple[TrainState, Metrics]]:
    """The per-device step `(state, constants, batch [b, ...]) -> (state, metrics)`.

    The weights in the batch add up to 1 over all devices, so one reduction of sums gives the means. Dropout depends on
    (seed, step, row of the global batch). Metrics, of the parameters before the update, float32 scalars: "loss",
    "loss_<term>", "tokens" (real ones), and those of `apply_gradients`.
    """

    def train_step(state: TrainState, constants: TaskFrozenInputs, batch: Batch) -> tuple[TrainState, Metrics]:
        size = batch["ids"].shape[0]
        rows = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = row_keys(jax.random.fold_in(jax.random.key(constants.seed), state.step), rows)
        trained = {name: state.params[name] for name in setup.trainable}

        def loss(trained: Params, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Array]]:
            micro, dropout_keys = part
            params = {**state.params, **trained}
            value, terms = batch_losses(setup.settings, setup.models, params, constants.teacher, micro, dropout_keys)
            real = jnp.repeat(micro["token_share"] > 0, micro["mask"].size // len(micro["token_share"]))
            return value, {**terms, "tokens": jnp.sum(micro["mask"].reshape(-1) * real, dtype=jnp.float32)}

        gradients_of = partial(jax.value_and_grad(loss, has_aux=True), trained)
        local = sum_over(gradients_of, micro_batches((batch, keys), setup.micro_batch_size))
        (value, terms), gradients = sum_over_devices(local)
        tokens = terms.pop("tokens")
        state, metrics = apply_gradients(state, gradients, value, optimizer, schedule)
        return state, {
            "loss": value,
            **{f"loss_{name}": term for name, term in terms.items()},
            **metrics,
            "tokens": tokens,
        }

    return train_step


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

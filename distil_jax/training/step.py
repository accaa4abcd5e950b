"""The one optimiser step of all training, a pure function written for one device of a mapped axis.

Pre-training, distillation and fine-tuning differ by two functions: how a batch is prepared and what its loss is.
Everything random is a function of (seed, step, global row). Gradients and sums are added up over the micro-batches of
a device and reduced over devices once; means are global sums over global counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from distil_jax.objectives import SumCount
from distil_jax.training.optimizer import SkippingOptimizer

AXIS = "data"
WHOLE = -1  # in the place of an axis: every device holds the whole array
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
    """What steps and evaluations only read.

    `seed` () int32 of dropout and masks: no part of the program, so that runs of several seeds share a compiled one.
    `teacher`: its parameters, None without one. `log_weights` [V] float32 of masking, None where nothing is masked.
    The arrays are NumPy's until they are put on the devices.
    """

    seed: Any
    teacher: Params | None = None
    log_weights: Any = None


class Cut(NamedTuple):
    """How the arguments of a step lie on the devices: for every array the axis that is cut, or `WHOLE`."""

    state: TrainState
    frozen: FrozenInputs


class StepSums(NamedTuple):
    """What micro-batches add up beside their loss: sum and count of every term, and real tokens () float32."""

    terms: dict[str, SumCount]
    tokens: Array


# (frozen inputs, key of the step, numbers [b] of this device's rows in the global batch, batch [b, ...])
#   -> (tree of arrays [b, ...] that is cut into micro-batches, totals over all devices)
Prepare = Callable[[FrozenInputs, Array, Array, Any], tuple[Any, Any]]
# (all parameters, frozen inputs, micro-batch, totals, progress of the run from 0 to 1 () float32)
#   -> (the micro-batch's part of the mean loss (), sums)
Loss = Callable[[Params, FrozenInputs, Any, Any, Array], tuple[Array, StepSums]]
TrainStep = Callable[[TrainState, FrozenInputs, Any], tuple[TrainState, Metrics]]


class Evaluator(Protocol):
    """(params, frozen inputs), both on the devices -> measures; `before_batch` is called before every batch."""

    def __call__(
        self, params: Params, frozen: FrozenInputs, before_batch: Callable[[], None] = ..., /
    ) -> dict[str, float]: ...


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The static part of a step.

    Attributes:
        prepare: makes rows ready for the forward pass; it may look at the whole batch of all devices.
        loss: of a micro-batch, differentiable by the parameters.
        micro_batch_size: rows of a device and forward pass, at most.
        trainable: the parameter groups that get updates, or parts of them, as in `parts`.
        steps: of the whole run.
        constrain: (step, parameters before an update, after it) -> the parameters that stand; None: those after it.
    """

    prepare: Prepare
    loss: Loss
    micro_batch_size: int
    trainable: tuple[str, ...]
    steps: int = 1
    constrain: Callable[[Array, Params, Params], Params] | None = None


def init_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """State before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(parts(params, trainable)))


def make_train_step(
    config: StepConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    cut: Cut | None = None,
) -> TrainStep:
    """The per-device step `(state, frozen, batch [b, ...]) -> (state, metrics)`; map it with `Devices.map_step`.

    Where the arguments are `cut`, a device gets its blocks of them. They are gathered for every micro-batch, once more
    for its gradients, and the gradients of cut parameters are summed into blocks (reduce-scatter).

    Metrics are float32 scalars of the parameters before the update: "loss", "loss_<term>", "tokens" (real ones), and
    those of `apply_gradients`.
    """

    def train_step(state: TrainState, frozen: FrozenInputs, batch: Any) -> tuple[TrainState, Metrics]:
        # All that is random comes from (seed, step), and inside `prepare` from the row's number.
        key = jax.random.fold_in(jax.random.key(frozen.seed), state.step)
        rows, totals = config.prepare(frozen, key, row_numbers(batch), batch)
        trained = parts(state.params, config.trainable)
        progress = state.step.astype(jnp.float32) / max(config.steps - 1, 1)

        def micro_loss(trained: Params, micro: Any) -> tuple[Array, StepSums]:
            params, whole_frozen = merged(state.params, trained), frozen
            if cut is not None:
                # Tied to the micro-batch: gathered before the loop, they would be held through it.
                params, teacher, micro = jax.lax.optimization_barrier((params, frozen.teacher, micro))
                params = gathered(params, cut.state.params)
                whole_frozen = frozen._replace(teacher=gathered(teacher, cut.frozen.teacher))
            return config.loss(params, whole_frozen, micro, totals, progress)

        policy = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
        differentiated = micro_loss if cut is None else jax.checkpoint(micro_loss, policy=policy)
        # Gradients and sums of the micro-batches are added up here, and over the devices once.
        gradients_of = partial(jax.value_and_grad(differentiated, has_aux=True), trained)
        (value, sums), gradients = sum_over(gradients_of, micro_batches(rows, config.micro_batch_size))
        axes = None if cut is None else parts(cut.state.params, config.trainable)
        value, sums, gradients = _summed(value, sums, gradients, axes)
        with jax.named_scope("optimizer"):
            after, metrics = apply_gradients(state, gradients, value, optimizer, schedule, axes)
            if config.constrain is not None:
                constrained = config.constrain(state.step, state.params, after.params)
                after = TrainState(after.step, constrained, after.opt_state)
        means = {f"loss_{name}": term.mean for name, term in sums.terms.items()}
        return after, {"loss": value, **means, **metrics, "tokens": sums.tokens}

    return train_step


_GATHERED = "gathered"


def gathered(blocks: Tree, axes: Any) -> Tree:
    """Whole arrays of the devices' blocks; differentiated, a device gets the sum of all gradients of its block."""

    def gather(axis: int, x: Array) -> Array:
        if axis == WHOLE:
            return x
        return checkpoint_name(jax.lax.all_gather(x, AXIS, axis=axis, tiled=True), _GATHERED)

    return jax.tree.map(gather, axes, blocks)


def _summed(value: Array, sums: StepSums, gradients: Params, axes: Any) -> tuple[Array, StepSums, Params]:
    """Sums over the devices; gradients of cut parameters are such sums already."""
    if axes is None:
        return sum_over_devices((value, sums, gradients))
    leaves, structure = jax.tree.flatten(gradients)
    are_cut = [axis != WHOLE for axis in jax.tree.leaves(axes)]
    whole = [leaf for leaf, is_cut in zip(leaves, are_cut, strict=True) if not is_cut]
    value, sums, whole = sum_over_devices((value, sums, whole))
    rest = iter(whole)
    leaves = [leaf if is_cut else next(rest) for leaf, is_cut in zip(leaves, are_cut, strict=True)]
    return value, sums, structure.unflatten(leaves)


def _squared_norms(gradients: Params, axes: Any) -> Array:
    """The squared norm of every gradient [tensors], over all devices where it is cut."""
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
    if axes is None:
        return squares
    are_cut = np.array([axis != WHOLE for axis in jax.tree.leaves(axes)])
    return jnp.where(are_cut, sum_over_devices(jnp.where(are_cut, squares, 0.0)), squares)


def apply_gradients(
    state: TrainState,
    gradients: Params,
    loss: Array,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    axes: Any = None,
) -> tuple[TrainState, Metrics]:
    """The state after an update by `gradients` of the trained groups; they and `loss` () are equal on all devices.

    `axes` are those of gradients, parameters and moments that are cut, of which a device has its blocks.

    Where `loss` or a gradient is not finite, parameters and moments stay as they are, and only the step's number
    advances (with `make_optimizer` the schedule's count, too). Metrics: "gradient_norm", "learning_rate", "skipped" (1
    where nothing was updated, else 0), and "gradient_norms" [tensors], the norm of each tensor's gradient in the order
    of the tree.

    Raises:
        ValueError: gradients are cut, and the optimizer does not take the norm of the whole.
    """
    trained = _like(gradients, state.params)
    squares = _squared_norms(gradients, axes)
    norm = jnp.sqrt(jnp.sum(squares))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if isinstance(optimizer, SkippingOptimizer):
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained, keep_old=~finite, norm=norm)
    elif axes is None:
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        opt_state = jax.tree.map(partial(jnp.where, finite), opt_state, state.opt_state)
    else:
        raise ValueError("where parameters are cut the optimizer has to be one of make_optimizer")
    moved = jax.tree.map(partial(jnp.where, finite), optax.apply_updates(trained, updates), trained)
    metrics = {
        "gradient_norm": norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "skipped": 1 - finite.astype(jnp.float32),
        "gradient_norms": jnp.sqrt(squares),
    }
    return TrainState(state.step + 1, merged(state.params, moved), opt_state), metrics


def parts(params: Params, names: Iterable[str]) -> Params:
    """The parameters of these groups alone: "mlm_head", or of a group's part "encoder/layer_0".

    Raises:
        ValueError: there is no such group.
    """
    found: Params = {}
    for name in names:
        *groups, last = name.split("/")
        inner, source = found, params
        for group in groups:
            inner, source = inner.setdefault(group, {}), source.get(group, {})
        if last not in source:
            raise ValueError(f"parameters: no group {name!r} (there are {', '.join(params)})")
        inner[last] = source[last]
    return found


def merged(params: Params, part: Params) -> Params:
    """`params` with the values of `part`, a tree that has some of its groups."""
    return {**params, **{k: merged(params[k], v) if isinstance(v, dict) else v for k, v in part.items()}}


def _like(part: Params, params: Params) -> Params:
    """The parameters of the groups that `part` has."""
    return {k: _like(v, params[k]) if isinstance(v, dict) else params[k] for k, v in part.items()}


def row_numbers(batch: Any, first: Array | int = 0) -> Array:
    """Numbers of this device's rows of a batch [b, ...] over all devices, from `first` on: [b] int32."""
    size = jax.tree.leaves(batch)[0].shape[0]
    return first + jax.lax.axis_index(AXIS) * size + jnp.arange(size)


def micro_batch_rows(rows: int, most: int) -> int:
    """How many of the `rows` of a device are computed at a time: their largest divisor that is at most `most`."""
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)


def micro_batches(rows: Tree, most: int) -> Tree:
    """A tree of arrays [b, ...] cut along the rows: [b / size, size, ...], as `micro_batch_rows` has the size."""
    size = micro_batch_rows(len(jax.tree.leaves(rows)[0]), most)
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // size, size, *x.shape[1:]), rows)


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

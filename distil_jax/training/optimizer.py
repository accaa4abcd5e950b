"""AdamW with warm-up, decay and clipping (REFERENCE: the original's optimisation, with every LayerNorm excluded)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from distil_jax.config import Optimizer

Phases = Sequence[tuple[int, float]]  # (steps, peak learning rate) of each phase before the last one


def learning_rate_schedule(settings: Optimizer, steps: int, earlier: Phases = ()) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_fraction` of `steps`, then linear, cosine or no decay to 0 at `steps`.

    Of `steps` in all, each earlier phase has its own, with a schedule of its own.
    """
    if earlier:
        borders = phase_borders(earlier)
        schedules = [learning_rate_schedule(replace(settings, learning_rate=rate), count) for count, rate in earlier]
        last = learning_rate_schedule(settings, steps - borders[-1])
        return optax.join_schedules([*schedules, last], borders)
    warmup = round(settings.warmup_fraction * steps)
    peak, rest = settings.learning_rate, max(steps - warmup, 1)
    decay = {
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[settings.schedule]()
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def phase_borders(earlier: Phases) -> list[int]:
    """Steps after which a phase ends and the next one begins."""
    return [*itertools.accumulate(steps for steps, _ in earlier)]


def decays(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """True for the tensors that weight decay applies to: matrices, so neither biases nor LayerNorms."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim > 1 and path[-1].key != "bias", params)


class SkippingOptimizer(optax.GradientTransformationExtraArgs):
    """One whose `update` also takes `keep_old` and `norm`, as `make_optimizer` has them."""


def make_optimizer(settings: Optimizer, steps: int, earlier: Phases = ()) -> SkippingOptimizer:
    """Clip by global norm, then AdamW with decoupled decay (Loshchilov & Hutter 2019), in few passes over each tensor.

    What `plain_optimizer` computes, to rounding, on a state of the same format. Scalars are worked out once and no
    clipped gradient, corrected moment or decay is an array of its own, so that XLA makes one loop of each result.
    `update` also takes `keep_old` () bool: where true, the moments and their count stay as they are, and the updates
    mean nothing; the count of the schedule always advances, so that learning rates are those of the step's number.
    `norm` () is that of the whole gradients, where those given are a device's blocks. Each phase begins with moments of
    its own: those of other losses are forgotten.
    """
    plain, schedule = plain_optimizer(settings, steps), learning_rate_schedule(settings, steps, earlier)
    borders = phase_borders(earlier)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        keep_old: Array | bool = False,
        norm: Array | None = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        gradients = updates
        adam, scheduled = _part(state, optax.ScaleByAdamState), _part(state, optax.ScaleByScheduleState)
        first = jnp.isin(scheduled.count, jnp.array(borders)) if borders else False  # step of a phase
        kept = jnp.where(first, 0.0, 1.0) if borders else 1.0  # also where the first step of a phase is skipped
        old_count = jnp.where(first, 0, adam.count) if borders else adam.count
        count = optax.safe_increment(old_count)
        # Not the count of the moments, which a step that is skipped leaves as it is.
        rate = jnp.asarray(schedule(scheduled.count), jnp.float32)
        clip = _clip_factor(optax.tree.norm(gradients) if norm is None else norm, settings.clip_norm)
        step = rate / (1 - settings.beta1**count)
        root = jax.lax.rsqrt(1 - settings.beta2**count)
        decay = jax.tree.map(lambda decayed: settings.weight_decay if decayed else 0.0, decays(params))

        def mean(beta: float, power: int) -> Callable[[Array, Array], Array]:
            return lambda old, g: jnp.where(keep_old, kept * old, kept * beta * old + (1 - beta) * (clip * g) ** power)

        # Not chosen between old and new later: XLA would copy all old moments, to have them after the new ones.
        means = jax.tree.map(mean(settings.beta1, 1), adam.mu, gradients)
        squares = jax.tree.map(mean(settings.beta2, 2), adam.nu, gradients)

        def move(m: Array, v: Array, param: Array, decay: float) -> Array:
            adaptive = step * m / (root * jnp.sqrt(v) + settings.epsilon)
            return -(adaptive + rate * decay * param) if decay else -adaptive

        updates = jax.tree.map(move, means, squares, params, decay)
        after = {
            optax.ScaleByAdamState: optax.ScaleByAdamState(jnp.where(keep_old, old_count, count), means, squares),
            optax.ScaleByScheduleState: optax.ScaleByScheduleState(optax.safe_increment(scheduled.count)),
        }
        is_part = lambda node: type(node) in after  # noqa: E731
        return updates, jax.tree.map(lambda node: after.get(type(node), node), state, is_leaf=is_part)

    return SkippingOptimizer(plain.init, update)


def plain_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """The same from optax's parts: it defines the format of the state, and tests compare with it."""
    adamw = optax.adamw(
        learning_rate_schedule(settings, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=decays,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm else adamw


def _part(state: Any, kind: type[Any]) -> Any:
    """The one part of an optimiser's state that is of this kind."""
    is_part = lambda node: isinstance(node, kind)  # noqa: E731
    (found,) = filter(is_part, jax.tree.leaves(state, is_leaf=is_part))
    return found


def _clip_factor(norm: Array, largest: float) -> Array:
    """What gradients of this norm are multiplied by so that it is at most `largest` (0: no bound); () float32."""
    if not largest:
        return jnp.ones((), jnp.float32)
    return largest / jnp.maximum(norm, largest)

"""Magnitude pruning while a model is trained: the smallest weights become 0 by a schedule (Zhu and Gupta 2017).

The masks are no state of their own: a weight that is 0 stays 0. So a run that is resumed continues with the same masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.config import Config, Pruning
from distil_jax.training.step import Params

Constraint = Callable[[Array, Params, Params], Params]


def sparsity_at(settings: Pruning, steps: int, step: Array | int) -> Array:
    """The share of weights that are 0 after step number `step` of `steps`, () float32 (section 2, equation 1)."""
    first, last = _range(settings, steps)
    left = 1.0 - jnp.clip((jnp.asarray(step, jnp.float32) - first) / (last - first), 0.0, 1.0)
    return settings.sparsity * (1.0 - left**3)


def steps_before_pruned(settings: Pruning, steps: int) -> int:
    """After how many of `steps` weights are still to go; 0 where nothing is pruned."""
    return _range(settings, steps)[1] if settings.sparsity else 0


def magnitude_constraint(config: Config, steps: int) -> Constraint | None:
    """(step, parameters before an update, parameters after it) -> the latter with the pruned weights at 0.

    Kernels of the encoder's dense layers are pruned, each to the same share; embeddings, biases, LayerNorms and heads
    are not. None where nothing is pruned.
    """
    settings = config.pruning
    if not settings.sparsity:
        return None
    first, last = _range(settings, steps)

    def constrain(step: Array, before: Params, after: Params) -> Params:
        started = step >= first
        is_due = started & (((step - first) % settings.every_steps == 0) | (step == last)) & (step <= last)
        share = sparsity_at(settings, steps, step)

        def pruned(path: tuple[Any, ...], old: Array, new: Array) -> Array:
            if not (path[0].key.startswith("layer_") and path[-1].key == "kernel"):
                return new
            new = jnp.where(started & (old == 0), 0.0, new)
            return jax.lax.cond(is_due, lambda kernel: _without_smallest(kernel, share), lambda kernel: kernel, new)

        encoder = jax.tree_util.tree_map_with_path(pruned, before["encoder"], after["encoder"])
        return {**after, "encoder": encoder}

    return constrain


def _without_smallest(kernel: Array, share: Array) -> Array:
    """The kernel with its smallest weights, so many of them, at 0."""
    sizes = jnp.abs(kernel)
    count = jnp.floor(share * kernel.size).astype(jnp.int32)
    largest = jnp.where(count > 0, jnp.sort(sizes.ravel())[jnp.maximum(count - 1, 0)], -1.0)
    return jnp.where(sizes <= largest, 0.0, kernel)


def _range(settings: Pruning, steps: int) -> tuple[int, int]:
    """The first step after which weights go, and the last."""
    last = min(max(round(settings.end * steps), 1), steps - 1)
    return min(round(settings.begin * steps), last - 1), last

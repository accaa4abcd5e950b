"""AdamW with warm-up, decay and clipping (REFERENCE: the original's optimisation, with every LayerNorm excluded)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from distil_jax.config import Optimizer


def learning_rate_schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_fraction` of `steps`, then linear, cosine or no decay to 0 at `steps`."""
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


def decays(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """True for the tensors that weight decay applies to: matrices, so neither biases nor LayerNorms."""
    return jax.tree.map(lambda tensor: tensor.ndim > 1, params)


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with decoupled decay (Loshchilov & Hutter 2019)."""
    adamw = optax.adamw(
        learning_rate_schedule(settings, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=decays,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm else adamw

"""What keeps XLA on CPU from plans that cost time or memory. No number changes.

`jax.lax.optimization_barrier` keeps expressions from being rewritten, but XLA on CPU drops it before it decides which
operations become one loop and in what order they come.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu.switch import forms_apply


def no_fuse(x: Array) -> Array:
    """x [...], of a floating type, as an operation separate from those that make it and those that read it.

    XLA hands what it can to YNNPACK as one operation: logits with their product, maxima and differences, which takes a
    quarter longer than the product and loops of XLA's; or the backward pass of a softmax, three times as long. A
    rounding, here to the precision that x has, is not handed over.
    """
    if not forms_apply():
        return x
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def materialize(mask: Array) -> Array:
    """mask [...] bool as an array in memory.

    XLA computes what it takes for cheap again in each loop that reads it: for the mask of packed rows, the search for
    their sequences, once a score. A root counts as costly.
    """
    return jnp.sqrt(mask.astype(jnp.float32)) > 0 if forms_apply() else mask


def order_after(x: Array, first: Array) -> Array:
    """x [...] float, not computed before `first` [...] float that broadcasts to it."""
    # The summand is 0, but XLA has to wait for `first` to know it.
    return x + jnp.where(first < -jnp.inf, first, 0.0).astype(x.dtype) if forms_apply() else x

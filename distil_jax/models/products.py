"""Products of dense layers by name: plain, of kernels that lie transposed, and of numbers rounded to 8 bits.

"int8" is for quantisation-aware training (Jacob et al. 2018, section 3): kernels and inputs are rounded as a file
written with `export --format onnx-int8` rounds them, and gradients pass as if they were not (Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu import rows_dot, transposed_dot

Product = Literal["plain", "transposed", "int8"]
KERNEL_LIMIT = 64  # 7 bits: sums of two products of 8 bits overflow on x86 without VNNI
_INPUT_LEVELS = 255


def _straight_through(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`function` with the gradient of x -> x."""
    rounded = jax.custom_jvp(function)
    rounded.defjvp(lambda primals, tangents: (function(*primals), tangents[0]))
    return rounded


@_straight_through
def rounded_kernel(kernel: Array) -> Array:
    """A kernel [K, N] at steps of 1/64 of the largest magnitude of each output."""
    scale = jnp.abs(kernel).max(axis=0, keepdims=True).astype(jnp.float32) / KERNEL_LIMIT
    scale = jnp.where(scale == 0, 1, scale)
    return (jnp.round(kernel / scale) * scale).astype(kernel.dtype)


@_straight_through
def rounded_input(x: Array) -> Array:
    """x [B, ..., K] at 256 levels from the smallest number of its row to the largest, 0 among them.

    ONNX's DynamicQuantizeLinear does it with a whole tensor. Of a text alone that is the same; rows of a batch that
    share a range would depend on how many devices share the batch.
    """
    axes = tuple(range(1, x.ndim))
    wide = x.astype(jnp.float32)
    low = jnp.minimum(wide.min(axis=axes, keepdims=True), 0)
    scale = (jnp.maximum(wide.max(axis=axes, keepdims=True), 0) - low) / _INPUT_LEVELS
    scale = jnp.where(scale == 0, 1, scale)
    zero = jnp.round(-low / scale)
    level = jnp.clip(jnp.round(wide / scale) + zero, 0, _INPUT_LEVELS)
    return ((level - zero) * scale).astype(x.dtype)


def _int8_dot(x: Array, kernel: Array, *options: Any, **named: Any) -> Array:
    return rows_dot(rounded_input(x), rounded_kernel(kernel), *options, **named)


# In the place of `dot_general` in `flax.linen.Dense`.
PRODUCTS: Mapping[Product, Callable[..., Array]] = {
    "plain": rows_dot,
    "transposed": transposed_dot,
    "int8": _int8_dot,
}
EXACT_PRODUCTS: Mapping[Product, Callable[..., Array]] = {**PRODUCTS, "int8": rows_dot}

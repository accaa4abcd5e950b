"""Dense layers, LayerNorm, softmax and activations. Parameters have Flax's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.cpu import no_fuse
from distil_jax.models.products import EXACT_PRODUCTS, PRODUCTS, Product


def transpose_kernels(params: Any) -> Any:
    """Parameters with every dense layer's kernel [K, N] transposed to [N, K], or back; the others as they are."""

    def transpose(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.T if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(transpose, params)


def dense(
    features: int, initializer_range: float, dtype: DTypeLike, product: Product = "plain", *, exact: bool = False
) -> nn.Dense:
    """A dense layer [..., K] -> [..., features] with bias; kernel drawn with standard deviation `initializer_range`.

    Args:
        features: width of the output.
        initializer_range: of the kernel.
        dtype: of the computation.
        product: name in `PRODUCTS`. "transposed": for few rows, with kernel^T, if that is what lies in memory.
        exact: never round, whatever `product` rounds to.
    """
    normal = nn.initializers.normal(initializer_range)
    dot = (EXACT_PRODUCTS if exact else PRODUCTS)[product]
    return nn.Dense(features, dtype=dtype, kernel_init=normal, dot_general=dot)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis (Ba et al. 2016): params scale and bias [H] float32, statistics in float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., H] -> [..., H] in `dtype`."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        result: Any = normalize(x, scale, bias, self.epsilon)
        return result.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis of x [..., H] -> [..., H] float32.

    The backward pass is written out: automatic differentiation goes through mean and variance one after the other.
    """
    return _normalize(x, scale, bias, epsilon)[0]


def _normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    mean = jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
    # E[x^2] - E[x]^2 would lose the digits that agreement with PyTorch needs.
    inverse = jax.lax.rsqrt(jnp.mean((x - mean) ** 2, axis=-1, keepdims=True) + epsilon)
    result = (x - mean) * inverse * _along_last(scale, x.ndim) + _along_last(bias, x.ndim)
    return result, (x, mean, inverse, scale)


def _normalize_backward(epsilon: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = saved
    standard = (x - mean) * inverse
    scaled = gradient * _along_last(scale, x.ndim)
    along_mean = jnp.mean(scaled, axis=-1, keepdims=True)
    along_scale = jnp.mean(scaled * standard, axis=-1, keepdims=True)
    of_x = inverse * (scaled - along_mean - standard * along_scale)
    leading = tuple(range(x.ndim - 1))
    return of_x.astype(x.dtype), jnp.sum(gradient * standard, axis=leading), jnp.sum(gradient, axis=leading)


def _along_last(vector: Array, ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


normalize.defvjp(_normalize, _normalize_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Softmax over the last axis of x [..., N] float32 -> [..., N] in `dtype`, computed in float32.

    For the backward pass it keeps its result alone; `jax.nn.softmax` keeps the exponentials beside it.
    """
    return jax.nn.softmax(x, axis=-1).astype(dtype)


def _softmax_forward(x: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    result = jax.nn.softmax(x, axis=-1).astype(dtype)
    return result, result


def _softmax_backward(dtype: DTypeLike, result: Array, gradient: Array) -> tuple[Array]:
    del dtype
    result, gradient = result.astype(jnp.float32), gradient.astype(jnp.float32)
    along = no_fuse(jnp.sum(result * gradient, axis=-1, keepdims=True))
    return (result * (gradient - along),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x * Phi(x) with the error function, as PyTorch writes it (Hendrycks & Gimpel 2016); computed in float32.

    `jax.nn.gelu` uses erfc, which has two branches of its own and gives digits that no model has been trained with.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    cdf, wide = _normal_cdf(x), x.astype(jnp.float32)
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2 * math.pi))
    return (wide * cdf).astype(x.dtype), tangent * slope.astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

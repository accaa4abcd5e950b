"""Dense layers, LayerNorm, softmax and activations in the forms that cost least, above all in the backward pass.

Each computes what its textbook form computes, to rounding; parameters have Flax's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from distil_jax.models.fences import after, unfused

_FEW_ROWS = 128  # up to which `transposed_dot` pays


def rows_dot(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """x [..., K] times kernel [K, N] -> [..., N] with the leading axes taken as one; the `dot_general` of `nn.Dense`.

    The gradient of a kernel contracts the leading axes. Left as two, XLA on CPU first transposes gradients in memory
    and then multiplies operands that both lie the wrong way: a fifth of a training step.
    """
    rows = _rows(x, dimension_numbers, precision, options)
    return joint_product(rows, (kernel,)).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def joint_product(rows: Array, kernels: tuple[Array, ...]) -> Array:
    """rows [R, K] times kernels [K, N] each, side by side: [R, number of kernels * N].

    On CPU the gradient of the kernels is made before the layer below goes on: XLA would leave it for the end, and hold
    all that goes into it until then. Joined kernels are joined again in the backward pass, and not held for it.
    """
    return rows @ _side_by_side(kernels)


def _joint_product(rows: Array, kernels: tuple[Array, ...]) -> tuple[Array, tuple[Array, tuple[Array, ...]]]:
    return joint_product(rows, kernels), (rows, kernels)


def _joint_product_backward(saved: tuple[Array, tuple[Array, ...]], gradient: Array) -> tuple[Array, tuple[Array, ...]]:
    rows, kernels = saved
    by_kernels = jax.lax.dot_general(rows, gradient, (((0,), (0,)), ((), ())))
    if len(kernels) > 1:
        kernels = tuple(after(kernel, gradient[:1, :1]) for kernel in kernels)
    by_rows = jax.lax.dot_general(gradient, _side_by_side(kernels), (((1,), (1,)), ((), ())))
    return after(by_rows, by_kernels[:1, :1]), tuple(jnp.split(by_kernels, len(kernels), axis=1))


def _side_by_side(kernels: tuple[Array, ...]) -> Array:
    return kernels[0] if len(kernels) == 1 else jnp.concatenate(kernels, axis=1)


joint_product.defvjp(_joint_product, _joint_product_backward)


def transposed_dot(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """`rows_dot`, for few rows as the transpose of kernel^T [N, K] times x^T [K, rows].

    On CPU that is up to 1.4 times as fast, if kernel^T is what lies in memory (`transpose_kernels`); otherwise the
    kernel is first transposed at every call.
    """
    rows = _rows(x, dimension_numbers, precision, options)
    if len(rows) > _FEW_ROWS:
        return rows_dot(x, kernel, dimension_numbers)
    product = kernel.T @ rows.T
    # Without the barrier XLA takes the transposes into the product, which is `rows_dot` again, of a transposed kernel.
    return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], kernel.shape[-1])


def _rows(x: Array, dimension_numbers: Any, precision: Any, options: Mapping[str, Any]) -> Array:
    if precision is not None or options:
        raise ValueError("dense layers multiply at the default precision")
    if dimension_numbers != _last_with_first(x):
        raise ValueError(f"dense layers contract the last axis with the first, not {dimension_numbers}")
    return x.reshape(-1, x.shape[-1])


def _last_with_first(x: Array) -> Any:
    return (((x.ndim - 1,), (0,)), ((), ()))


def transpose_kernels(params: Any) -> Any:
    """Parameters with every dense layer's kernel [K, N] transposed to [N, K], or back; the others as they are."""

    def transpose(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.T if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(transpose, params)


def dense(features: int, initializer_range: float, dtype: DTypeLike, transposed: bool = False) -> nn.Dense:
    """A dense layer [..., K] -> [..., features] with bias; kernel drawn with standard deviation `initializer_range`."""
    normal = nn.initializers.normal(initializer_range)
    return nn.Dense(features, dtype=dtype, kernel_init=normal, dot_general=transposed_dot if transposed else rows_dot)


class Weights(nn.Module):
    """Kernel [features_in, features] and bias [features] of a dense layer, to be used with others'."""

    features_in: int
    features: int
    initializer_range: float

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """(kernel, bias), float32."""
        normal = nn.initializers.normal(self.initializer_range)
        kernel = self.param("kernel", normal, (self.features_in, self.features))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


def joint_dense(
    x: Array, weights: Sequence[tuple[Array, Array]], dtype: DTypeLike, transposed: bool = False
) -> list[Array]:
    """Dense layers of one input in one product: x [..., K], (kernel [K, N], bias [N]) each -> [..., N] each.

    Wide products run nearer to the peak than narrow ones, forwards and backwards. Transposed ones stay separate: for
    few rows, joining the kernels takes longer than it saves.
    """
    if transposed:
        x = x.astype(dtype)
        products = [transposed_dot(x, kernel.astype(dtype), _last_with_first(x)) for kernel, _ in weights]
        return [one + _along_last(bias.astype(dtype), x.ndim) for one, (_, bias) in zip(products, weights, strict=True)]
    kernels = tuple(kernel.astype(dtype) for kernel, _ in weights)
    bias = jnp.concatenate([bias for _, bias in weights]).astype(dtype)
    rows = joint_product(x.astype(dtype).reshape(-1, x.shape[-1]), kernels) + bias[None]
    return jnp.split(rows.reshape(*x.shape[:-1], -1), len(weights), axis=-1)


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
    Leading axes stay as they are; taken as one, they part the loops that XLA on CPU would make of the neighbours.
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


@jax.custom_vjp
def softmax(x: Array) -> Array:
    """Softmax over the last axis of x [..., N] float32 -> [..., N] float32."""
    return jax.nn.softmax(x, axis=-1)


def _softmax_forward(x: Array) -> tuple[Array, Array]:
    result = jax.nn.softmax(x, axis=-1)
    return result, result


def _softmax_backward(result: Array, gradient: Array) -> tuple[Array]:
    along = unfused(jnp.sum(result * gradient, axis=-1, keepdims=True))
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

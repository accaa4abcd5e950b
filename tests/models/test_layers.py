"""Dense layers, LayerNorm, softmax and GELU against PyTorch's, values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distil_jax.models.layers import LayerNorm, dense, gelu, softmax, transpose_kernels

RANDOM = np.random.default_rng(0)
X: Any = RANDOM.standard_normal((2, 5, 24)).astype(np.float32)
G: Any = RANDOM.standard_normal((2, 5, 24)).astype(np.float32)


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_layer_norm_is_pytorchs(shift: float) -> None:
    """With a mean far from 0, E[x^2] - E[x]^2 would have lost four digits."""
    scale, bias = (RANDOM.standard_normal(24).astype(np.float32) for _ in range(2))
    x, s, b = tensor(X + np.float32(shift)), tensor(scale), tensor(bias)
    expected = torch.nn.functional.layer_norm(x, (24,), s, b, 1e-12)
    expected.backward(torch.tensor(G, dtype=torch.float64))
    found, pull = jax.vjp(
        lambda x, s, b: LayerNorm(1e-12).apply({"params": {"scale": s, "bias": b}}, x),
        X + np.float32(shift),
        scale,
        bias,
    )
    np.testing.assert_allclose(np.asarray(found), expected.detach(), rtol=1e-5, atol=1e-5 if shift == 0 else 1e-4)
    for result, reference in zip(pull(jnp.asarray(G)), (x, s, b), strict=True):
        assert reference.grad is not None
        np.testing.assert_allclose(result, reference.grad, rtol=1e-4, atol=1e-5 if shift == 0 else 1e-3)


def test_layer_norm_in_bfloat16_computes_in_float32() -> None:
    module, x = LayerNorm(1e-12, jnp.bfloat16), jnp.asarray(X + 3, jnp.bfloat16)
    params = module.init(jax.random.key(0), x)
    found, pull = jax.vjp(lambda x: module.apply(params, x), x)
    exact = LayerNorm(1e-12).apply(params, x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16 and pull(jnp.ones_like(found))[0].dtype == jnp.bfloat16  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(exact.astype(jnp.bfloat16)))  # type: ignore[union-attr]


def test_softmax_is_pytorchs_with_its_gradient() -> None:
    """Also of rows whose maximum is far from 0, and of one that sees nothing."""
    scores = 20 * X + np.float32(1000) * (np.arange(24) % 3 == 0).astype(np.float32)
    scores[0, 0] = np.finfo(np.float32).min
    t = tensor(scores)
    expected = torch.softmax(t, dim=-1)
    expected.backward(torch.tensor(G, dtype=torch.float64))
    found, pull = jax.vjp(jax.jit(softmax), scores)
    assert t.grad is not None
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pull(jnp.asarray(G))[0], t.grad, rtol=1e-4, atol=1e-6)


def test_gelu_is_pytorchs_with_its_slope() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -30.0, 30.0]]).astype(np.float32)
    t = tensor(x)
    expected = torch.nn.functional.gelu(t)
    expected.sum().backward()
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(x)
    assert t.grad is not None
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, t.grad, rtol=1e-6, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    assert gelu(half).dtype == jax.grad(lambda x: gelu(x).sum())(half).dtype == jnp.bfloat16


@pytest.mark.parametrize("product", ["plain", "transposed"])
def test_dense_takes_all_leading_axes_as_one(product: Any) -> None:
    module = dense(7, 0.5, jnp.float32, product)
    params: Any = module.init(jax.random.key(0), X)
    kernel = np.asarray(params["params"]["kernel"], np.float64)
    np.testing.assert_allclose(module.apply(params, X), X.astype(np.float64) @ kernel, atol=1e-5)  # type: ignore[arg-type]
    gradient = jax.grad(lambda p: (module.apply(p, X) * G[..., :7]).sum())(params)["params"]  # type: ignore[operator]
    expected = np.einsum("blk,bln->kn", X.astype(np.float64), G[..., :7].astype(np.float64))
    np.testing.assert_allclose(gradient["kernel"], expected, atol=1e-4)
    np.testing.assert_allclose(gradient["bias"], G[..., :7].sum((0, 1)), atol=1e-5)


def test_kernels_alone_are_transposed_and_back_again() -> None:
    params = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "b": {"embedding": np.ones((4, 2))}}
    there = transpose_kernels(params)
    assert jax.tree.map(np.shape, there) == {"a": {"kernel": (3, 2), "bias": (3,)}, "b": {"embedding": (4, 2)}}
    assert jax.tree.map(np.shape, transpose_kernels(there)) == jax.tree.map(np.shape, params)

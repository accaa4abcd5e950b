"""Dense layers, LayerNorm, softmax and GELU against PyTorch's, values and gradients."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distil_jax.models.layers import (
    LayerNorm,
    dense,
    gelu,
    joint_dense,
    joint_product,
    rows_dot,
    softmax,
    transpose_kernels,
    transposed_dot,
)

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
    for ours, theirs in zip(pull(jnp.asarray(G)), (x, s, b), strict=True):
        assert theirs.grad is not None
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-4, atol=1e-5 if shift == 0 else 1e-3)


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


@pytest.mark.parametrize("transposed", [False, True])
def test_dense_takes_all_leading_axes_as_one(transposed: bool) -> None:
    module = dense(7, 0.5, jnp.float32, transposed)
    params: Any = module.init(jax.random.key(0), X)
    kernel = np.asarray(params["params"]["kernel"], np.float64)
    np.testing.assert_allclose(module.apply(params, X), X.astype(np.float64) @ kernel, atol=1e-5)  # type: ignore[arg-type]
    gradient = jax.grad(lambda p: (module.apply(p, X) * G[..., :7]).sum())(params)["params"]  # type: ignore[operator]
    expected = np.einsum("blk,bln->kn", X.astype(np.float64), G[..., :7].astype(np.float64))
    np.testing.assert_allclose(gradient["kernel"], expected, atol=1e-4)
    np.testing.assert_allclose(gradient["bias"], G[..., :7].sum((0, 1)), atol=1e-5)


def test_no_gradient_of_a_kernel_multiplies_transposed_copies() -> None:
    """What `rows_dot` is for: the product contracts one axis of two matrices as they lie."""
    kernel: Any = np.ones((24, 7), np.float32)
    text = str(jax.make_jaxpr(jax.grad(lambda k: rows_dot(X, k, (((2,), (0,)), ((), ()))).sum()))(kernel))
    assert "(([0], [0]), ([], []))" in text and "(([0, 1]" not in text


def test_the_gradient_of_a_kernel_is_made_before_the_layer_below_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the one of the rows needs it, on CPU; and the kernels are joined for it anew."""
    rows, kernel, gradient = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((10, 24), (24, 7), (10, 21)))

    def counted() -> list[int]:
        def by_rows(rows: Any, kernels: Any, gradient: Any) -> Any:
            product, pull = jax.vjp(joint_product, rows, kernels)
            return product, pull(gradient)[0]

        text = jax.jit(by_rows).lower(rows, (kernel,) * 3, gradient).compile().as_text() or ""
        return [len(re.findall(rf"f32\[24,21\]\S+ {name}\(", text)) for name in ("dot", "concatenate")]

    assert counted() == [1, 2]
    monkeypatch.setattr("distil_jax.models.layers.after", lambda x, first: x)
    assert counted() == [0, 1]


def test_rows_dot_refuses_other_contractions() -> None:
    for dot in (rows_dot, transposed_dot):
        with pytest.raises(ValueError, match="contract the last axis"):
            dot(X, jnp.ones((5, 3)), (((1,), (0,)), ((), ())))
        with pytest.raises(ValueError, match="default precision"):
            dot(X, jnp.ones((24, 3)), (((2,), (0,)), ((), ())), "highest")


@pytest.mark.parametrize(("rows", "transposed"), [(1, True), (10, True), (128, True), (129, False)])
def test_few_rows_are_multiplied_by_transposed_kernels_as_they_lie(rows: int, transposed: bool) -> None:
    """XLA would rewrite the product as one of rows, with the kernel transposed in it, which is slower."""
    kernel, x = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((24, 7), (rows, 24)))

    def product(held: Any, x: Any) -> Any:
        return transposed_dot(x, transpose_kernels({"kernel": held})["kernel"], (((1,), (0,)), ((), ())))

    held = np.ascontiguousarray(kernel.T)
    compiled = jax.jit(product).lower(held, x).compile()
    np.testing.assert_allclose(compiled(held, x), x.astype(np.float64) @ kernel, atol=1e-5)
    text = compiled.as_text() or ""
    assert set(re.findall(r"(f32\S+)\{\S+ dot\(", text)) == {f"f32[7,{rows}]" if transposed else f"f32[{rows},7]"}
    assert not re.findall(r"f32\[24,7\]\S+ (?:copy|transpose)\(", text), "the kernel is transposed in memory"


def test_kernels_alone_are_transposed_and_back_again() -> None:
    params = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "b": {"embedding": np.ones((4, 2))}}
    there = transpose_kernels(params)
    assert jax.tree.map(np.shape, there) == {"a": {"kernel": (3, 2), "bias": (3,)}, "b": {"embedding": (4, 2)}}
    assert jax.tree.map(np.shape, transpose_kernels(there)) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("transposed", [False, True])
def test_joint_layers_are_the_layers_one_by_one(transposed: bool) -> None:
    weights = [
        (RANDOM.standard_normal((24, 6)).astype(np.float32), RANDOM.standard_normal(6).astype(np.float32))
        for _ in range(3)
    ]
    layers: Any = partial(joint_dense, jnp.asarray(X), weights, transposed=transposed)
    for (kernel, bias), found in zip(weights, layers(dtype=jnp.float32), strict=True):
        np.testing.assert_allclose(found, X @ kernel + bias, atol=1e-5)
    assert layers(dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_gradients_of_a_joint_product_are_those_of_the_products_one_by_one() -> None:
    rows = RANDOM.standard_normal((10, 24)).astype(np.float32)
    kernels = tuple(RANDOM.standard_normal((24, 7)).astype(np.float32) for _ in range(3))
    gradient = RANDOM.standard_normal((10, 21)).astype(np.float32)
    x, ks = tensor(rows), [tensor(kernel) for kernel in kernels]
    torch.cat([x @ kernel for kernel in ks], -1).backward(torch.tensor(gradient, dtype=torch.float64))
    by_rows, by_kernels = jax.vjp(joint_product, rows, kernels)[1](jnp.asarray(gradient))
    for found, expected in zip((by_rows, *by_kernels), (x, *ks), strict=True):
        np.testing.assert_allclose(found, expected.grad, atol=1e-5)  # type: ignore[arg-type]

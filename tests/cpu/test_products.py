"""Products of dense layers: the plain forms' numbers, in programs that XLA on CPU computes in less time and memory."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distil_jax.cpu import rows_dot, transposed_dot
from distil_jax.models import transpose_kernels

RANDOM = np.random.default_rng(0)
X: Any = RANDOM.standard_normal((2, 5, 24)).astype(np.float32)
G: Any = RANDOM.standard_normal((2, 5, 24)).astype(np.float32)
AXES = (((2,), (0,)), ((), ()))  # as `flax.linen.Dense` names them


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


@pytest.fixture(params=["1", "0"], ids=["forms", "plain"])
def switch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the package is switched on."""
    monkeypatch.setenv("DISTIL_JAX_CPU_FORMS", request.param)
    return request.param == "1"


@pytest.mark.parametrize("dot", [rows_dot, transposed_dot])
def test_products_and_their_gradients_are_pytorchs(switch: bool, dot: Any) -> None:
    kernel = RANDOM.standard_normal((24, 7)).astype(np.float32)
    x, k = tensor(X), tensor(kernel)
    expected = x @ k
    expected.backward(torch.tensor(G[..., :7], dtype=torch.float64))
    found, pull = jax.vjp(lambda x, k: dot(x, k, AXES, precision=None), X, kernel)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    for result, reference in zip(pull(jnp.asarray(G[..., :7])), (x, k), strict=True):
        np.testing.assert_allclose(result, reference.grad, atol=1e-5)  # type: ignore[arg-type]


def test_no_gradient_of_a_kernel_multiplies_transposed_copies(switch: bool) -> None:
    """What `rows_dot` is for: the product contracts one axis of two matrices as they lie."""
    kernel: Any = np.ones((24, 7), np.float32)
    text = str(jax.make_jaxpr(jax.grad(lambda k: rows_dot(X, k, AXES).sum()))(kernel))
    assert ("(([0], [0]), ([], []))" in text) == switch and ("(([0, 1]" in text) != switch


def test_the_gradient_of_a_kernel_is_computed_before_the_layer_below_continues(switch: bool) -> None:
    """So the gradient of the rows needs it."""
    rows, kernel, gradient = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 5, 24), (24, 7), (2, 5, 7)))

    def by_rows(rows: Any, kernel: Any, gradient: Any) -> Any:
        return jax.vjp(lambda rows, kernel: rows_dot(rows, kernel, AXES), rows, kernel)[1](gradient)[0]

    text = jax.jit(by_rows).lower(rows, kernel, gradient).compile().as_text() or ""
    assert bool(re.search(r"f32\[(24,7|7,24)\]\S+ dot\(", text)) == switch


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

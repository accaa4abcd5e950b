"""Products of rounded numbers: the numbers of onnxruntime's int8, gradients that pass as if nothing were rounded."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import PRODUCTS
from distil_jax.models.products import EXACT_PRODUCTS, rounded_input, rounded_kernel

RANDOM = np.random.default_rng(3)
X: Any = (RANDOM.standard_normal((3, 5, 24)) + 0.7).astype(np.float32)
KERNEL: Any = RANDOM.standard_normal((24, 7)).astype(np.float32)
AXES = (((2,), (0,)), ((), ()))  # as `flax.linen.Dense` names them


def dequantized(text: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear of ONNX and back, by its text: of a whole tensor, half to even."""
    low, high = np.minimum(text.min(), np.float32(0)), np.maximum(text.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(text / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0], ids=["around 0", "above 0", "below 0"])
def test_inputs_are_those_of_dynamic_quantization_of_each_text(shift: float) -> None:
    x = X + np.float32(shift)
    found = np.asarray(jax.jit(rounded_input)(x))
    np.testing.assert_allclose(found, np.stack([dequantized(text) for text in x]), rtol=1e-6, atol=1e-6)
    assert len(np.unique(found[0])) > 60 and not np.array_equal(found, x)


def test_inputs_are_onnxruntimes() -> None:
    helper = pytest.importorskip("onnx", reason="needs onnx").helper
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, [1, 5, 24])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "round", *ends), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for text in X:
        expected = session.run(None, {"x": text[None]})[0]
        np.testing.assert_allclose(rounded_input(text[None]), expected, rtol=1e-6, atol=1e-6)


def test_kernels_have_129_steps_an_output() -> None:
    kernel = np.where(np.arange(7) == 2, np.float32(0), KERNEL)  # an output of zeros stays one
    found = np.asarray(jax.jit(rounded_kernel)(kernel))
    scale = np.abs(kernel).max(0) / np.float32(64)
    scale[2] = 1
    np.testing.assert_allclose(found, np.rint(kernel / scale) * scale, rtol=1e-6)
    assert np.abs(np.rint(found / scale)).max() == 64 and not found[:, 2].any()


def test_numbers_that_are_all_0_stay_0() -> None:
    assert not np.asarray(rounded_input(jnp.zeros((2, 3, 4)))).any()
    assert not np.asarray(rounded_kernel(jnp.zeros((3, 4)))).any()


@pytest.mark.parametrize("round_", [rounded_input, rounded_kernel])
def test_bfloat16_is_rounded_in_float32(round_: Any) -> None:
    values = jnp.asarray(KERNEL, jnp.bfloat16)
    found = round_(values)
    assert found.dtype == jnp.bfloat16
    expected = round_(values.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))


def test_gradients_pass_straight_through_with_rounded_operands() -> None:
    """y = q(x) q(k): dL/dx = g q(k)^T, dL/dk = q(x)^T g."""
    gradient: Any = RANDOM.standard_normal((3, 5, 7)).astype(np.float32)
    found, pull = jax.vjp(lambda x, kernel: PRODUCTS["int8"](x, kernel, AXES, precision=None), X, KERNEL)
    x, kernel = (np.asarray(values, np.float64) for values in (rounded_input(X), rounded_kernel(KERNEL)))
    np.testing.assert_allclose(found, x @ kernel, atol=1e-4)
    by_x, by_kernel = pull(gradient)
    np.testing.assert_allclose(by_x, gradient @ kernel.T, atol=1e-4)
    np.testing.assert_allclose(by_kernel, np.einsum("blk,bln->kn", x, gradient), atol=1e-4)


def test_rows_of_a_batch_are_rounded_alone() -> None:
    together = PRODUCTS["int8"](X, KERNEL, AXES)
    alone = [PRODUCTS["int8"](X[row : row + 1], KERNEL, AXES)[0] for row in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_other_products_are_the_same_where_nothing_is_rounded() -> None:
    assert {name for name in PRODUCTS if PRODUCTS[name] is not EXACT_PRODUCTS[name]} == {"int8"}
    assert EXACT_PRODUCTS["int8"] is PRODUCTS["plain"]

"""The masked-language-model head: any selection of positions, tied embeddings, float32 logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import EncoderConfig, MaskedLM

CONFIG = EncoderConfig("distilbert", 40, 12, 1, 3, 20, 16, initializer_range=0.3)
MODULE = MaskedLM(CONFIG)
IDS = np.random.default_rng(0).integers(0, 40, (3, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    fresh = jax.jit(lambda: MODULE.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])()
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + 0.2 * noise.standard_normal(x.shape).astype(np.float32), fresh)


def head_by_hand(params: Any, hidden: Any, table: Any) -> Any:
    """Dense, GELU, LayerNorm, transposed table, bias."""
    head = params["mlm_head"]
    x = hidden @ head["transform"]["kernel"] + head["transform"]["bias"].reshape(1, 1, -1)
    x = jax.nn.gelu(x, approximate=False)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + CONFIG.layer_norm_eps)
    x = x * head["norm"]["scale"].reshape(1, 1, -1) + head["norm"]["bias"].reshape(1, 1, -1)
    return x @ table.T + head["bias"].reshape(1, 1, -1)


def test_the_call_is_the_head_on_the_encoders_output(params: Any) -> None:
    logits = jax.jit(lambda p: MODULE.apply({"params": p}, IDS))(params)
    hidden = jax.jit(lambda p: MODULE.apply({"params": p}, IDS, method="encode"))(params)
    expected = head_by_hand(params, hidden, params["encoder"]["embeddings"]["word"]["embedding"])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_logits_of_selected_positions_are_the_selected_logits(params: Any) -> None:
    apply = jax.jit(lambda hidden: MODULE.apply({"params": params}, hidden, method="mlm_logits"))
    hidden = np.random.default_rng(2).standard_normal((3, 9, 12)).astype(np.float32)
    whole = np.asarray(apply(hidden))
    assert whole.shape == (3, 9, 40)
    rows, places = np.array([2, 0, 1, 2]), np.array([8, 3, 3, 0])
    np.testing.assert_allclose(apply(hidden[rows, places]), whole[rows, places], atol=1e-5)


def test_the_gradient_of_the_tied_table_is_that_of_both_its_uses(params: Any) -> None:
    weights = np.random.default_rng(3).standard_normal((3, 9, 40)).astype(np.float32)

    def with_table(table: Any) -> Any:
        embeddings = {**params["encoder"]["embeddings"], "word": {"embedding": table}}
        return {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}

    def tied(table: Any) -> Any:
        logits: Any = MODULE.apply({"params": with_table(table)}, IDS)
        return (logits * weights).sum()

    def untied(read: Any, written: Any) -> Any:
        hidden = MODULE.apply({"params": with_table(read)}, IDS, method="encode")
        return (head_by_hand(params, hidden, written) * weights).sum()

    table = params["encoder"]["embeddings"]["word"]["embedding"]
    found = np.asarray(jax.jit(jax.grad(tied))(table))
    parts = [np.asarray(part) for part in jax.jit(jax.grad(untied, argnums=(0, 1)))(table, table)]
    assert all(np.abs(part).max() > 1 for part in parts)
    np.testing.assert_allclose(found, parts[0] + parts[1], rtol=1e-4, atol=1e-3)


def test_logits_are_float32_in_bfloat16_too(params: Any) -> None:
    exact = np.asarray(jax.jit(lambda: MODULE.apply({"params": params}, IDS))())
    found = jax.jit(lambda: MaskedLM(CONFIG, jnp.bfloat16).apply({"params": params}, IDS))()
    assert found.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(found) - exact).max() < 0.1 * np.abs(exact).max()

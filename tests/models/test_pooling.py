"""Pooling, against its definition written out row by row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import Encoder, EncoderConfig, EncoderInputs, Pooling, PoolingMode, SentenceEncoder, pool


def by_hand(hidden: np.ndarray, mask: np.ndarray, mode: str, normalize: bool) -> np.ndarray:
    rows = [row[real > 0].astype(np.float64) for row, real in zip(hidden, mask, strict=True)]
    vectors = np.stack([{"mean": row.mean(0), "max": row.max(0), "cls": row[0]}[mode] for row in rows])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_vectors_are_of_the_real_tokens_alone(mode: PoolingMode, normalize: bool, library: Any) -> None:
    random = np.random.default_rng(0)
    hidden = random.standard_normal((4, 6, 5)).astype(np.float32) - 2.0  # a maximum below the 0 of padding
    mask = (np.arange(6) < np.array([[6], [1], [3], [5]])).astype(np.int32)
    found = pool(library.asarray(hidden), library.asarray(mask), Pooling(mode, normalize))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.asarray(found), by_hand(hidden, mask, mode, normalize), atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_sentence_encoder_pools_its_hidden_states(mode: PoolingMode) -> None:
    config = EncoderConfig("bert", 40, 12, 2, 3, 20, 16, type_vocab_size=2)
    model = SentenceEncoder(config, Pooling(mode))
    random = np.random.default_rng(1)
    ids: Any = random.integers(5, 40, (3, 9)).astype(np.int32)
    mask: Any = (np.arange(9) < 7).astype(np.int32) * np.ones_like(ids)
    inputs = EncoderInputs(ids, mask)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"])
    params = jax.tree.map(lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), shapes)
    found: Any = model.apply({"params": params}, inputs)
    hidden: Any = Encoder(config).apply({"params": params["encoder"]}, inputs)
    np.testing.assert_allclose(found, by_hand(np.asarray(hidden), np.asarray(inputs.mask), mode, False), atol=1e-5)


def test_prompts_come_from_json_as_lists() -> None:
    assert Pooling(prompts=[["query", "ask: "]]) == Pooling(prompts=(("query", "ask: "),))  # type: ignore[arg-type]

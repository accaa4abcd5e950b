"""Logits of batches, on several devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.models import EncoderConfig, EncoderInputs, HeadName, TaskHead, TaskModel
from distil_jax.training.inference import make_network, usual_length, usual_rows
from distil_jax.training.parallel import make_devices


@pytest.mark.parametrize("kind", ["sequence", "token", "question", "choice"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_network_gives_the_models_logits(kind: HeadName, dtype: str, tolerance: float) -> None:
    """Whatever form its products have, and on several devices."""
    outputs = {"sequence": 3, "token": 4, "question": 2, "choice": 1}[kind]
    head = TaskHead(kind, num_outputs=outputs)
    encoder = EncoderConfig("bert", 40, 12, 2, 3, 20, 16, type_vocab_size=2, pooler=head.reads_token_0)
    model = TaskModel(encoder, head)
    random = np.random.default_rng(0)
    ids: Any = random.integers(5, 40, (4, 3, 9) if kind == "choice" else (4, 9)).astype(np.int32)
    mask: Any = (np.arange(9) < 7).astype(np.int32) * np.ones_like(ids)
    inputs: Any = EncoderInputs(ids, mask, token_type_ids=ids % 2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids)["params"])
    params = jax.tree.map(lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), shapes)
    arguments = ids, mask, None, ids % 2
    rows = [None if array is None else array.reshape(-1, 9) for array in arguments]
    hidden = model.apply({"params": params}, *rows, method="encode")
    expected: Any = model.apply({"params": params}, hidden, method="task_logits")
    found = make_network(make_devices("shard_map", 2), TaskModel(encoder, head, np.dtype(dtype)), params)(inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.asarray(found), expected.reshape(found.shape), atol=tolerance)


def test_lengths_that_rows_are_padded_to() -> None:
    alone = partial(usual_length, alone=True)
    assert [alone(tokens, 512) for tokens in (1, 16, 17, 49, 129, 512)] == [16, 16, 24, 64, 192, 512]
    assert [usual_length(tokens, 512, alone=False) for tokens in (16, 17, 33, 65)] == [16, 32, 48, 96]
    assert [alone(tokens, 100) for tokens in (90, 97, 100)] == [96, 100, 100]
    assert alone(700, 1000) == 1000 and alone(120, 100) == 120


def test_rows_at_a_time_share_a_budget_of_tokens() -> None:
    one, two = make_devices("shard_map", 1), make_devices("shard_map", 2)
    assert [usual_rows(one, tokens) for tokens in (16, 100, 128, 512, 5000)] == [64, 8, 8, 2, 1]
    assert usual_rows(two, 128) == 16

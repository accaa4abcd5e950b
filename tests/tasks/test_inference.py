"""Logits of batches, and what is measured of a set from those of its rows."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.models import EncoderConfig, HeadKind, TaskHead, TaskModel
from distil_jax.tasks import inference
from distil_jax.tasks.encode import IGNORED, Encoded
from distil_jax.tasks.examples import TaskData, TokenExample
from distil_jax.tasks.inference import make_network, measures_of, score, usual_length, usual_rows
from distil_jax.tasks.registry import TAG_METRICS, task_spec
from distil_jax.training.parallel import make_devices
from distil_jax.training.task_step import make_logits_step


@pytest.mark.parametrize(
    ("labels", "metrics", "expected"),
    [
        (("O", "B-X", "B-Y"), (), {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}),
        (("DET", "NOUN", "VERB"), TAG_METRICS, {}),
    ],
)
def test_tags_are_measured_as_entities_where_they_mark_some(
    labels: tuple[str, ...], metrics: tuple[str, ...], expected: dict[str, float]
) -> None:
    spec = task_spec("tagging")
    spec = dataclasses.replace(spec, metrics=metrics or spec.metrics)
    sentence = TokenExample("0", ("a", "b", "c"), (0, 1, 2))
    rows = np.array([IGNORED, 0, 1, 2, IGNORED], np.int32)  # a token a word, between [CLS] and [SEP]
    tagged = [(0, np.arange(3))]
    encoded = Encoded([rows], [rows], [rows], np.array([5], np.int32), 0, (), tagged=tagged)
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 0]]  # the last word is wrong
    data = TaskData(spec, labels, [], {}, {}, "")
    found = measures_of(data, TaskSettings(), [sentence], encoded, [logits])
    assert found == pytest.approx({**expected, "tag_accuracy": 2 / 3})
    assert score(spec.headline, spec.metrics, found) == pytest.approx(expected.get("entity_f1", 2 / 3))


@pytest.mark.parametrize("kind", ["sequence", "token", "question", "choice"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_network_gives_the_models_logits(
    kind: HeadKind, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever form its products have, and on several devices."""
    outputs = {"sequence": 3, "token": 4, "question": 2, "choice": 1}[kind]
    head = TaskHead(kind, num_outputs=outputs)
    encoder = EncoderConfig("bert", 40, 12, 2, 3, 20, 16, type_vocab_size=2, pooler=head.pooled)
    model = TaskModel(encoder, head)
    random = np.random.default_rng(0)
    ids = random.integers(5, 40, (4, 3, 9) if kind == "choice" else (4, 9)).astype(np.int32)
    batch = {"ids": ids, "mask": (np.arange(9) < 7).astype(np.int32) * np.ones_like(ids), "types": ids % 2}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids)["params"])
    params = jax.tree.map(lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), shapes)
    rows = {name: values.reshape(-1, 9) for name, values in batch.items()}
    arguments = rows["ids"], rows["mask"], None, rows["types"]
    hidden = model.apply({"params": params}, *arguments, method="encode")
    expected: Any = model.apply({"params": params}, hidden, method="task_logits")
    products = []
    monkeypatch.setattr(
        inference, "make_logits_step", lambda model: products.append(model.transposed) or make_logits_step(model)
    )
    found = make_network(make_devices("shard_map", 2), encoder, head, params, dtype)(batch)
    assert products == [dtype == "float32"]
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

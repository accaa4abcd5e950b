"""What is measured of a set, from the logits of its rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.tasks.encode import IGNORED, Encoded
from distil_jax.tasks.examples import TaskData, TokenExample
from distil_jax.tasks.inference import measures_of, score
from distil_jax.tasks.registry import TAG_METRICS, task_spec


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

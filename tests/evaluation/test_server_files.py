"""Predictions in the words of the GLUE server; whole files are in `test_study_runs`."""

from __future__ import annotations

import numpy as np
import pytest

from distil_jax.evaluation.server_files import spelled
from distil_jax.tasks.registry import task_spec


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", ["1", "0"]),
        ("sst2", ["1", "0"]),
        ("mrpc", ["1", "0"]),
        ("qqp", ["1", "0"]),
        ("wnli", ["1", "0"]),
        ("rte", ["not_entailment", "entailment"]),
        ("qnli", ["not_entailment", "entailment"]),
    ],
)
def test_classes_are_spelled_as_the_server_wants_them(task: str, expected: list[str]) -> None:
    assert spelled(task_spec(task), np.array([[0.1, 0.2], [3.0, -1.0]])) == expected


def test_entailment_and_scores_are_spelled_as_the_server_wants_them() -> None:
    for task in ("mnli", "ax"):
        assert spelled(task_spec(task), np.eye(3)) == ["entailment", "neutral", "contradiction"]
    scores = np.array([[-0.5], [2.34567], [5.25], [4.9996]], np.float32)
    assert spelled(task_spec("stsb"), scores) == ["0.000", "2.346", "5.000", "5.000"]

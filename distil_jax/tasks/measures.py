"""What a model's logits are worth: the measures of a task over its sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.tasks.encoded import Encoded
from distil_jax.tasks.examples import TaskData
from distil_jax.tasks.kinds import Logits, Predicted

SCORE = "score"


def details_of(data: TaskData, predicted: Predicted[Any]) -> dict[str, Any]:
    """What a result has of a set beside its measures: its classes one by one, and a confusion matrix."""
    details = data.spec.kind.details
    return {} if details is None else details(data, predicted)


def validation_measures(
    data: TaskData,
    settings: TaskSettings,
    held_out: Mapping[str, Encoded],
    predict: Callable[[Encoded], Logits],
    details: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Measures over all validation sets, the task's score first.

    The first set's have plain names, those of further ones (MNLI's mismatched) the set's before.

    Args:
        data: the task, whose validation sets are measured on.
        settings: of its data.
        held_out: those sets, encoded, by name.
        predict: logits of every row of a set.
        details: is given `details_of` each set, by its name.
    """
    found: dict[str, float] = {}
    for number, (name, encoded) in enumerate(held_out.items()):
        predicted = Predicted(predict(encoded), encoded, data.validation[name], settings)
        measures = data.spec.kind.measure(data, predicted)
        if details is not None:
            details[name] = details_of(data, predicted)
        if number == 0:
            found = {SCORE: score(data.spec.headline, data.spec.metrics, measures)}
        found |= {key if number == 0 else f"{name}_{key}": value for key, value in measures.items()}
    return found


def score(headline: Sequence[str], metrics: Sequence[str], measures: Mapping[str, float]) -> float:
    """The one number of a task: the mean of its headline measures, else its first measure."""
    return float(np.mean([measures[name] for name in headline or metrics[:1]]))

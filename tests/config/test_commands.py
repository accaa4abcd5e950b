"""Arguments of commands: what they hold is checked when they are made, whoever makes them."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.config import (
    Arguments,
    BenchmarkArguments,
    EvaluateArguments,
    ExportArguments,
    Masking,
    PredictArguments,
    fields_of,
)
from distil_jax.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "facts"),
    [
        (PredictArguments, {"model": "m", "threshold": 1.5}, ["--threshold", "1.5", "from 0 to 1"]),
        (PredictArguments, {"model": "m", "batch_size": -1}, ["--batch-size", "-1"]),
        (PredictArguments, {"model": "m", "on_error": "ignore"}, ["--on-error", "stop", "skip"]),
        (ExportArguments, {"model": "r", "output": "o", "step": -2}, ["--step", "-2", "at least -1"]),
        (ExportArguments, {"model": "r", "output": "o", "dtype": "float16", "format": ("onnx",)}, ["--dtype", "hf"]),
        (ExportArguments, {"model": "r", "output": "o", "check": "a", "task": "sst2"}, ["--check", "--task"]),
        (BenchmarkArguments, {"memory": 8.0}, ["--memory", "8", "--fill"]),
        (BenchmarkArguments, {"lengths": (4,)}, ["--lengths", "4", "from 8"]),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(
    kind: type[Arguments], given: dict[str, Any], facts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        kind(**given)
    assert all(fact in str(caught.value) for fact in facts)


def test_the_smoothing_of_evaluation_is_that_of_training() -> None:
    assert fields_of(EvaluateArguments)["smoothing"].default == Masking().smoothing


def test_an_argument_may_be_left_open() -> None:
    assert PredictArguments("m").null_threshold is None
    assert PredictArguments("m", null_threshold=0).null_threshold == 0.0

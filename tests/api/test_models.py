"""What is done with models from Python, against the same from the command line's functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distil_jax
from distil_jax.errors import UserError
from distil_jax.evaluation import evaluate_paths


def test_a_predictor_is_callable(task_folder: Callable[..., Path], tiny_world: Path) -> None:
    folder, texts = task_folder("classes"), ["the cat sat", "a red fish"]
    module, params = distil_jax.from_pretrained(folder)
    pair = (module, params, distil_jax.load_tokenizer(folder))
    assert distil_jax.load_predictor(folder)(texts) == distil_jax.predict(pair, texts)


def test_language_models_are_measured_as_by_the_command(tiny_run: Path, tiny_world: Path) -> None:
    corpus, teacher = tiny_world / "corpus" / "validation", tiny_world / "teacher"
    found = distil_jax.evaluate(tiny_run, corpus, teacher=teacher, evaluation={"rows": 8})
    wanted = evaluate_paths([str(tiny_run)], str(corpus), str(teacher), rows=8)[str(tiny_run)]
    assert found == wanted
    with pytest.raises(UserError, match="prepared text"):
        distil_jax.evaluate(tiny_run, ["a text"])


def test_task_models_are_measured_on_rows(task_folder: Callable[..., Path], program_cache: Path) -> None:
    texts = ["the cat sat", "a red fish", "old blue sea"]
    labels = [one["label"] for one in distil_jax.predict(task_folder("classes"), texts)]
    wrong = "good" if labels[0] != "good" else "bad"
    rows = {"text": texts, "label": [wrong, *labels[1:]]}
    found = distil_jax.evaluate(task_folder("classes"), rows, parallel={"devices": 1})
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_a_run_is_exported(tiny_run: Path, tmp_path: Path) -> None:
    found = distil_jax.export_model(tiny_run, tmp_path / "model", "hf")
    assert [one.format for one in found.files] == ["hf"]
    again = distil_jax.export(tiny_run, tmp_path / "again", "hf")
    assert [one.format for one in again.files] == ["hf"]
    with pytest.raises(UserError, match="not empty"):
        distil_jax.export_model("nowhere/at/all", tmp_path / "model")
    module, params = distil_jax.from_pretrained(tmp_path / "model")
    ids: Any = np.ones((1, 4), np.int32)
    assert np.asarray(module.apply({"params": params}, ids)).shape[:2] == (1, 4)

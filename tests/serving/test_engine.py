"""What the server computes: the answers of `predict` and `encode`, from programs that are compiled at the start."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax import encode
from distil_jax.config import ServeArguments
from distil_jax.data.rows import BadRowError
from distil_jax.errors import UserError
from distil_jax.export import export, load_predictor, predict
from distil_jax.hf import load_tokenizer, read_pretrained, save_pretrained
from distil_jax.models import Pooling
from distil_jax.serving.engine import load_engine

TEXTS = ["the cat sat", "a dog ran fast home to eat red fish.", "fish", "the moon over the sea"] * 5


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_jax.serving.engine._LENGTHS", (16,))


def compiled_programs() -> list[str]:
    """The names of events of compilation from now on."""
    found: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("classes", TEXTS),
        ("tags", [text.split() for text in TEXTS]),
        pytest.param("answers", [{"question": "the cat", "context": text} for text in TEXTS], marks=pytest.mark.slow),
        pytest.param("choices", [{"text": "the cat", "endings": ["sat", "ran home"]}] * 3, marks=pytest.mark.slow),
    ],
)
def test_predictions_are_those_of_predict(name: str, inputs: list[Any], task_folder: Callable[..., Path]) -> None:
    folder = task_folder(name)
    engine = load_engine(ServeArguments(str(folder), max_length=32))
    expected = [*predict(load_predictor(folder, max_length=32), inputs)]
    found = engine.compute([engine.check(value, {}) for value in inputs])
    assert engine.path == "/predict" and len(found) == len(inputs)
    for one, wanted in zip(found, expected, strict=True):
        wanted.pop("id")
        assert one.keys() == wanted.keys()
        for field, value in wanted.items():
            assert one[field] == (pytest.approx(value, abs=1e-5) if isinstance(value, float | dict) else one[field])
    json.dumps(found, allow_nan=False)


def test_what_a_row_lacks_is_said_without_flags(task_folder: Callable[..., Path]) -> None:
    engine = load_engine(ServeArguments(str(task_folder("classes")), max_length=16))
    with pytest.raises(BadRowError) as caught:
        engine.check({"body": "the cat"}, {})
    assert "body" in str(caught.value) and "--" not in str(caught.value)


def test_vectors_are_those_of_encode(model_folder: Callable[..., str], tmp_path: Path) -> None:
    source = model_folder()
    config, params, *_ = read_pretrained(source)
    pooling = Pooling("mean", True, prompts=(("query", "the bird "),))
    save_pretrained(tmp_path / "model", config, params, tokenizer=load_tokenizer(source), pooling=pooling)
    engine = load_engine(ServeArguments(str(tmp_path / "model")))
    found = engine.compute([engine.check("the cat", {}), engine.check("sat", {"prompt": "query"})])
    np.testing.assert_allclose(found, encode(tmp_path / "model", ["the cat", "the bird sat"]), atol=1e-6)
    for value, options in ((3, {}), ("", {}), ("a", {"prompt": "none"}), ("a", {"prompt": 3}), ("\ud800", {})):
        with pytest.raises(BadRowError):
            engine.check(value, options)


def test_nothing_is_compiled_under_load(task_folder: Callable[..., Path]) -> None:
    engine = load_engine(ServeArguments(str(task_folder("classes"))))
    compiled = compiled_programs()
    for count in (1, 2, 7, 20):
        engine.compute([engine.check(text, {}) for text in TEXTS[:count]])
        engine.compute([engine.check("the cat " * 4 * count, {})])
    assert not compiled


def test_onnxruntime_computes_where_the_folder_has_its_file(
    task_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    export(task_folder("classes"), tmp_path / "model", formats=["hf", "onnx-int8"])
    engine = load_engine(ServeArguments(str(tmp_path / "model")))
    assert engine.runtime == "onnx"
    plain = load_engine(ServeArguments(str(tmp_path / "model"), runtime="jax"))
    assert plain.runtime == "jax"
    assert load_engine(ServeArguments(str(tmp_path / "model"), dtype="bfloat16")).runtime == "jax"
    with pytest.raises(UserError, match="bfloat16"):
        load_engine(ServeArguments(str(tmp_path / "model"), dtype="bfloat16", runtime="onnx"))
    found, expected = (one.compute([one.check(text, {}) for text in TEXTS]) for one in (engine, plain))
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    with pytest.raises(UserError, match="model_quantized"):
        load_engine(ServeArguments(str(task_folder("classes")), runtime="onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime"):
        load_engine(ServeArguments(str(tmp_path / "model"), runtime="onnx"))

"""An exported folder predicts as the run did: with its lengths, its windows, and questions that may have no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import Config, PredictArguments, TaskSettings, with_overrides
from distil_jax.errors import UserError
from distil_jax.export import load_predictor, predict
from distil_jax.export.checkpoint import Trained
from distil_jax.export.prediction_settings import from_config_json, prediction_options, to_config_json
from distil_jax.export.predictions import predict_rows
from distil_jax.export.source import source_of_run
from distil_jax.export.write import write_model
from distil_jax.hf import load_tokenizer, read_task_model
from distil_jax.tasks.kinds import PredictionOptions, TaskKind
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.kinds.token import TAGS
from distil_jax.tasks.requests import reading_of

WINDOWS = {"task.max_length": 48, "task.doc_stride": 9, "task.max_question_length": 20, "task.max_answer_length": 7}
ROWS = [{"question": f"the {word}", "context": "the cat sat on a mat . " * 9} for word in ("cat", "dog", "sea", "moon")]


@pytest.fixture
def exported(task_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function (task, changed settings, description) -> folder of the exported question model."""

    def make(task: str, changes: dict[str, Any] | None = None, **description: Any) -> Path:
        encoder, params, head, *_ = read_task_model(task_folder("answers"), "question")
        config = with_overrides(Config(), {"task.name": task, "run.output": "x", **WINDOWS, **(changes or {})})
        about = {"stage": "finetune", "task": task, "initial": "small", "teacher": "", "examples": 9, **description}
        metadata = {"description": about, "steps": 1, "evaluations": {1: {}}}
        trained = Trained(1, encoder, params, load_tokenizer(task_folder("answers")), config, metadata, head)
        write_model(source_of_run(trained, "model"), tmp_path / "model", overwrite=True)
        return tmp_path / "model"

    return make


def test_an_exported_model_still_gives_no_answer(exported: Callable[..., Path], tmp_path: Path) -> None:
    scores = [one["no_answer_score"] for one in predict(exported("squad_v2"), ROWS)]
    middle = float(np.median(scores))
    folder = exported("squad_v2", {"task.null_threshold": middle})
    found = [one["answer"] == "" for one in predict(folder, ROWS)]
    assert found == [score > middle for score in scores]
    assert 0 < sum(found) < len(ROWS)
    output = tmp_path / "out.jsonl"
    given: dict[str, Any] = {"question": "the cat", "context": "a dog ran", "output": str(output)}
    predict_rows(PredictArguments(str(folder), null_threshold=-1000.0, **given))
    assert json.loads(output.read_text())["answer"] == ""
    # `--task squad` on files of version 2: only the run's description tells.
    assert load_predictor(exported("squad", no_answer=True)).options.no_answer
    assert not load_predictor(exported("squad")).options.no_answer


def test_lengths_and_windows_are_those_of_fine_tuning(exported: Callable[..., Path]) -> None:
    folder = exported("squad_v2")
    settings = load_predictor(folder).settings
    for name, value in WINDOWS.items():
        assert getattr(settings, name.removeprefix("task.")) == value
    assert load_predictor(folder, max_length=64).settings.max_length == 64
    # A question of 20 tokens would leave no room in rows of 16.
    assert len(list(predict(load_predictor(folder, max_length=16), ROWS))) == len(ROWS)


def test_transformers_keeps_what_it_does_not_know(exported: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    model: Any
    folder = exported("squad_v2", {"task.null_threshold": 1.5})
    model, loading = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    model.config.save_pretrained(tmp_path / "again")
    raw = json.loads((tmp_path / "again" / "config.json").read_text())
    found = from_config_json(raw, QUESTION, "x")
    assert found is not None and found[1] == PredictionOptions(no_answer=True, null_threshold=1.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "distil_jax holds list, expected an object"),
        ({"no_answer": "yes"}, "distil_jax.no_answer must be true or false"),
        ({"pairs": None}, "distil_jax.pairs must be true or false"),
        ({"null_threshold": "high"}, 'task.null_threshold = "high": must be'),
        ({"null_threshold": float("nan")}, "task.null_threshold = nan: must be"),
        ({"max_length": -1}, "task.max_length = -1: must be"),
        ({"max_length": 1 << 12}, "max_length = 4096: the model has 64 positions"),
        ({"doc_stride": 0}, "task.doc_stride = 0: must be"),
        ({"n_best": {}}, "task.n_best = {}: must be"),
        ({"name": "squad", "text": 3}, "task.text = 3: must be"),
    ],
)
def test_damaged_settings_are_one_line(exported: Callable[..., Path], value: Any, message: str) -> None:
    path = exported("squad_v2") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"distil_jax": value}))
    with pytest.raises(UserError) as caught:
        load_predictor(path.parent)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_fields_are_no_damage() -> None:
    assert from_config_json({}, QUESTION, "x") is None
    plain = (TaskSettings(), PredictionOptions(), None)
    assert from_config_json({"distil_jax": {"later": [1]}}, QUESTION, "x") == plain
    assert from_config_json({"distil_jax": {"doc_stride": 0}}, CLASSES, "x") == plain


def test_there_and_back() -> None:
    settings = TaskSettings(max_length=200, doc_stride=64, null_threshold=-2.0)
    options = prediction_options(settings, {"no_answer": True})
    raw = json.loads(json.dumps(to_config_json(settings, options, QUESTION)))
    assert from_config_json(raw, QUESTION, "x") == (settings, options, None)
    assert to_config_json(TaskSettings(), PredictionOptions(), TAGS) == {"distil_jax": {"max_length": 128}}
    own = TaskSettings(name="classification", text="review", pair="title", id="nr")
    for settings in (own, TaskSettings(name="mrpc")):
        raw = json.loads(json.dumps(to_config_json(settings, PredictionOptions(), CLASSES)))
        found = from_config_json(raw, CLASSES, "x")
        assert found is not None and reading_of(found[0], CLASSES) == reading_of(settings, CLASSES)
    cases: list[tuple[TaskKind[Any], str, str, bool]] = [
        (CLASSES, "classification", "", False),
        (CLASSES, "classification", "title", True),
        (CLASSES, "mrpc", "", True),
        (CHOICE, "swag", "", True),
        (CHOICE, "codah", "", False),
    ]
    for kind, name, pair, pairs in cases:
        raw = to_config_json(TaskSettings(name=name, pair=pair), PredictionOptions(), kind)
        assert raw["distil_jax"]["pairs"] is pairs
        found = from_config_json(raw, kind, "x")
        assert found is not None and found[2] is pairs

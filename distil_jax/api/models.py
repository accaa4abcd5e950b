"""What is done with a trained model: `evaluate`, `predict`, `load_predictor`, `export_model`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distil_jax.api.inputs import Model, make_config, model_folder, rows_of
from distil_jax.api.result import Result
from distil_jax.api.training import known_task
from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.evaluation import evaluate_paths, score_model
from distil_jax.export import Exported, Predictor, export, has_task_head, read_ready
from distil_jax.export import load_predictor as load_path
from distil_jax.export import predict as predict_with
from distil_jax.tasks import kind_of, own_task


def evaluate(
    model: Model,
    data: Any,
    *,
    teacher: Model | None = None,
    config: str | Path | Config | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Measures of a model, as `distil-jax evaluate` has them.

        distil_jax.evaluate("runs/sst2", "sst2")["accuracy"]
        distil_jax.evaluate(result, [{"text": "warm", "label": "good"}, ...])
        distil_jax.evaluate("models/mine", "data/mine/validation", teacher="google-bert/bert-base-uncased")

    Args:
        model: folder of a model or run, hub id, (module, params, tokenizer), or a result.
        data: of a model with a task head, a task's name or labelled rows, as `finetune` takes them; of a masked
            language model, the folder of prepared held-out text.
        teacher: a masked language model to compare with.
        config: as of `distill`.
        **settings: as of `distill`.

    Returns:
        Name -> value; shares are from 0 to 1.

    Raises:
        UserError: model and data do not fit each other.
    """
    with tempfile.TemporaryDirectory(prefix="distil_jax-") as temporary:
        place = _place(model, Path(temporary) / "model")
        if not has_task_head(place):
            if not isinstance(data, str | Path):
                raise UserError(
                    "the model has no task head to measure on rows; fine-tune it, or give the folder of prepared text "
                    "for its masked-language-model head"
                )
            other = "" if teacher is None else _place(teacher, Path(temporary) / "teacher")
            chosen = make_config(config, settings, {})
            rows, seed = chosen.evaluation.rows, chosen.evaluation.seed
            return {**evaluate_paths([place], str(data), other, rows, seed, chosen.masking)[place]}
        if teacher is not None:
            raise UserError("teacher: a model with a task head is compared with labels alone; leave it out")
        fixed: dict[str, Any] = {"model.initial": place}
        named = known_task(data) if isinstance(data, str) else False
        fixed["task.name"] = data if named else own_task(kind_of(read_ready(place).head)).name
        if isinstance(data, Path | str) and not named:
            fixed["task.validation"] = str(data)
        rows = None if isinstance(data, Path | str) else {"validation": rows_of(data)}
        return dict(score_model(make_config(config or "finetune", settings, fixed), rows).measures)


def load_predictor(model: Model, *, step: int | None = None, max_length: int = 0, dtype: str = "float32") -> Predictor:
    """A model with a task head, ready for rows: `predictor(["a text", ...])`.

        predictor = distil_jax.load_predictor("runs/sst2")
        predictor(["warm and kind"])  # [{"id": 0, "label": "good", "score": 0.98, "scores": {...}}]

    Args:
        model: folder of a run (its best checkpoint) or model, hub id, (module, params, tokenizer), or a result.
        step: which checkpoint of a run; None: its result.
        max_length: tokens a row may have; 0: as in fine-tuning, for a model from elsewhere as many as it takes.
        dtype: what is computed in: "float32" or "bfloat16".

    Raises:
        UserError: none of these, or no task head.
    """
    with tempfile.TemporaryDirectory(prefix="distil_jax-") as temporary:
        place = _place(model, Path(temporary) / "model")
        return load_path(place, step=step, max_length=max_length, dtype=dtype)


def predict(model: Model | Predictor, rows: Iterable[Any], **options: Any) -> list[dict[str, Any]]:
    """Predictions of rows, in their order. To predict more than once, keep a predictor: see `load_predictor`.

    Args:
        model: as of `load_predictor`, or a predictor.
        rows: texts; (text, second text) pairs; lists of words; dicts, a DataFrame or a `datasets.Dataset` with the
            columns of the training rows; {"question", "context"}; {"text", "endings"}.
        **options: batch_size; options (`PredictionOptions`); on_error: "stop" or "skip".

    Returns:
        A dict a row: {"id", "label", "score", "scores"} of classes, {"words", "tags", "entities"} of tags, {"answer"}
        of questions, {"choice"} of choices.

    Raises:
        UserError: a row that cannot be used, or as `load_predictor`.
    """
    predictor = model if isinstance(model, Predictor) else load_predictor(model)
    return [*predict_with(predictor, rows, **options)]


def export_model(
    model: str | Path | Result, output: str | Path, formats: str | Sequence[str] = ("hf",), **options: Any
) -> Exported:
    """Write a model for others to use, as `distil-jax export` does.

        distil_jax.export_model("runs/mine", "models/mine")
        print(distil_jax.export_model("runs/mine", "models/mine", ["hf", "onnx-int8"]).table)

    A (module, params) pair of one's own is written by `save_pretrained`.

    Args:
        model: folder of a run or model, hub id, or a result.
        output: the folder to write.
        formats: one or more, as `distil-jax export --help` has them.
        **options: step, pooling, normalize, overwrite, name, as `distil-jax export --help` has them.

    Returns:
        The model, and its files with how they agree with it.

    Raises:
        UserError: no such model, no such format, or `output` is in use.
    """
    path = model.folder if isinstance(model, Result) else model
    chosen = (formats,) if isinstance(formats, str) else formats
    return export(path, Path(output), formats=chosen, **options)


def _place(model: Model, place: Path) -> str:
    """A model's folder, hub id or run."""
    if isinstance(model, Result):
        return str(model.folder)  # which has more than the model: lengths, columns
    return str(model) if isinstance(model, str | Path) else model_folder(model, place)

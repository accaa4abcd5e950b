"""A fine-tuning run's folder, a model folder or a hub id as something that predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.export.checkpoint import Trained, is_run, run_at
from distil_jax.export.prediction_settings import from_config_json, prediction_options
from distil_jax.export.predictor import PredictionSummary, Predictor
from distil_jax.export.row_network import Compute
from distil_jax.hf import Tokenizer, home_resolved, load_tokenizer, locate, named_kind, read_json, read_task_model
from distil_jax.models import EncoderConfig, TaskHead
from distil_jax.runs import read_model_file
from distil_jax.tasks import PredictionOptions, Reading, TaskKind, kind_of, reading_of, usual_reading

_QUESTION_SHARE = 4  # of a short model's positions, at most one in so many is for the question


@dataclasses.dataclass(frozen=True)
class ReadyModel:
    """A task model with what it needs to be used.

    Attributes:
        encoder: sizes.
        head: what it predicts.
        params: {"encoder", "task_head"}, NumPy float32.
        tokenizer: of the model.
        settings: lengths, windows and spans, as it was fine-tuned with or fits it.
        reading: which columns of a row it reads.
        options: what is said about a row; None: the usual.
    """

    encoder: EncoderConfig
    head: TaskHead
    params: dict[str, Any]
    tokenizer: Tokenizer
    settings: TaskSettings
    reading: Reading
    options: PredictionOptions | None


def load_predictor(
    path: str | Path,
    *,
    step: int | None = None,
    max_length: int = 0,
    dtype: str = "float32",
    compute: Compute | None = None,
) -> Predictor:
    """The model of a fine-tuning run (its best checkpoint), of a model folder with a task head, or of a hub id.

    A run brings the settings it was fine-tuned with: lengths, columns, whether it reads pairs, whether questions may
    have no answer; the folder it is exported to all of them but the columns.

    Args:
        path: folder of a run, model folder, or hub id.
        step: which checkpoint of a run; None: its result.
        max_length: tokens a row may have; 0: as in fine-tuning, for a model from elsewhere as many as it takes (512
            at most, for questions 384).
        dtype: what is computed in: "float32" or "bfloat16".
        compute: in place of JAX, see `RowNetwork`.

    Raises:
        UserError: none of these, no task head, or lengths that the model does not have.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}; known: float32, bfloat16")
    ready = read_ready(path, step=step, max_length=max_length)
    return Predictor(
        ready.encoder,
        ready.head,
        ready.params,
        ready.tokenizer,
        settings=ready.settings,
        reading=ready.reading,
        options=ready.options,
        dtype=dtype,
        compute=compute,
    )


def read_ready(path: str | Path, *, step: int | None = None, max_length: int = 0) -> ReadyModel:
    """What `load_predictor` loads, not yet on the devices. Arguments and errors as there."""
    trained = run_at(path, step)
    if trained is not None:
        if trained.head is None:
            raise UserError(
                f"{path}: a masked language model, which has no task yet; fine-tune it (distil-jax finetune)"
            )
        return ready_from(trained, max_length)
    folder = locate(path)
    raw = read_json(folder / "config.json")
    name = named_kind(raw)
    if name is None:
        raise UserError(f"{path}: has no task head, so there is nothing to predict; fine-tune it (distil-jax finetune)")
    encoder, params, head, *_ = read_task_model(folder, name)
    assert head is not None
    kind = kind_of(head)
    exported = from_config_json(raw, kind, f"{path}/config.json")
    settings, options, pairs = exported or (TaskSettings(), None, None)
    settings = _fitted_settings(settings, encoder, kind, max_length)
    tokenizer = load_tokenizer(path)  # of a hub id, the folder has nothing but what the model needed
    reading = reading_of(settings, kind) if settings.name else usual_reading(kind, pairs)
    return ReadyModel(encoder, head, params, tokenizer, settings, reading, options)


def has_task_head(path: str | Path) -> bool:
    """Whether the model of a run, a model folder or a hub id has a task head. Raises UserError where there is none."""
    if is_run(path):
        return bool(read_model_file(home_resolved(path)).get("head"))
    return named_kind(read_json(locate(path, files="config") / "config.json")) is not None


def ready_from(trained: Trained, max_length: int = 0) -> ReadyModel:
    """A run's task model, ready to use; `max_length` as of `load_predictor`."""
    assert trained.head is not None
    settings = trained.config.task
    return ReadyModel(
        trained.encoder,
        trained.head,
        trained.params,
        trained.tokenizer,
        _with_length(settings, max_length),
        reading_of(settings, kind_of(trained.head)),
        prediction_options(settings, trained.metadata["description"]),
    )


def _with_length(settings: TaskSettings, max_length: int) -> TaskSettings:
    if max_length and not 8 <= max_length <= 1 << 16:
        raise UserError(f"max_length = {max_length}: must be 0, or from 8 to {1 << 16}")
    return dataclasses.replace(settings, max_length=max_length or settings.max_length)


def _fitted_settings(
    settings: TaskSettings, encoder: EncoderConfig, kind: TaskKind[Any], max_length: int
) -> TaskSettings:
    """`settings` where they say how long rows are and no shorter ones are wanted, else as far as the length allows.

    The length is then `max_length`, or, if that is 0, the usual one within the model's positions.
    """
    if settings.max_length and (not max_length or max_length >= settings.max_length):
        return _with_length(settings, max_length)
    usual = max(min(kind.longest, encoder.max_length), 8)
    settings = _with_length(dataclasses.replace(settings, max_length=usual), max_length)
    question = min(settings.max_question_length, settings.max_length // _QUESTION_SHARE)
    stride = min(settings.doc_stride, max((settings.max_length - question - 3) // 2, 1))
    return dataclasses.replace(settings, max_question_length=question, doc_stride=stride)


def predict(
    model: str | Path | Predictor,
    rows: Iterable[Any],
    *,
    batch_size: int = 0,
    options: PredictionOptions | None = None,
    reading: Reading | None = None,
    on_error: str = "stop",
    summary: PredictionSummary | None = None,
) -> Iterator[dict[str, Any]]:
    """Predictions for rows, one after the other, in their order; a chunk of rows is held at a time.

    Args:
        model: a path or hub id (see `load_predictor`), or a predictor, which keeps its compiled programs.
        rows: texts; (text, second text) pairs; lists of words; or mappings, a `datasets` object or a DataFrame with the
            columns that `reading` names, such as {"text", "pair"}, {"words"}, {"question", "context"},
            {"text", "endings"}, and an "id" if they like.
        batch_size: rows of a batch; 0: chosen.
        options: what is said about a row; None: the predictor's.
        reading: which columns are read; None: the predictor's.
        on_error: "stop" raises at a row that can't be used, "skip" leaves it out.
        summary: counts rows and notes.

    Yields:
        {"id", ...}: "label", "score", "scores" of classes; "labels", "scores" where several may hold; "score" of a
        regression; "words", "tags", "scores", "entities" (words[start:end]); "answer", "start", "score",
        "no_answer_score" of a question; "choice", "ending", "score", "scores". Ids are the row's, else its number.

    Raises:
        UserError: as `load_predictor`, or a row that can't be used.
    """
    predictor = model if isinstance(model, Predictor) else load_predictor(model)
    yield from predictor.stream(
        rows, batch_size=batch_size, options=options, reading=reading, on_error=on_error, summary=summary
    )

"""The run that is measured: real models and data where this machine has them, else synthetic ones like them.

Nothing is downloaded. The notes say what is synthetic.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from distil_jax.benchmark.plan import USUAL_TASK, Stage
from distil_jax.benchmark.synthetic import (
    PAD,
    Params,
    random_params,
    synthetic_corpus,
    synthetic_task,
    synthetic_tokenizer,
)
from distil_jax.config import Config, with_overrides
from distil_jax.data.corpus import INDEX, Corpus, open_corpus
from distil_jax.errors import UserError
from distil_jax.hf import WEIGHT_FILES, Tokenizer, load_tokenizer, read_encoder_config, task_head
from distil_jax.models import EncoderConfig, MaskedLM, TaskModel
from distil_jax.tasks import TaskData, load_task, task_spec
from distil_jax.training.distill import distillation
from distil_jax.training.loop import RunSpec
from distil_jax.training.pretrain import pretraining, scratch_encoder
from distil_jax.training.task_models import TaskTeacher, TaskTraining, read_task_training
from distil_jax.training.task_run import task_run_spec
from distil_jax.training.text_run import Corpora, read_model, text_run_spec

STEPS = 100_000  # of the learning-rate schedule: more than are ever measured


class MeasuredRun(NamedTuple):
    """A run ready to be measured, its encoders, and notes on what is synthetic."""

    spec: RunSpec
    student: EncoderConfig
    teacher: EncoderConfig | None
    notes: tuple[str, ...]


def make_inputs(config: Config, stage: Stage, vocabulary: int) -> MeasuredRun:
    """The run that `config` describes.

    Args:
        config: a configuration; its paths need not exist.
        stage: which step.
        vocabulary: tokens of a synthetic model or corpus.
    """
    # A run needs a folder's name; nothing is written there.
    config = with_overrides(config, {"run.output": config.run.output or "benchmark"})
    return _finetuning(config, vocabulary) if stage == "finetune" else _on_text(config, stage, vocabulary)


def _on_text(config: Config, stage: Stage, vocabulary: int) -> MeasuredRun:
    source, name = (
        (config.teacher.path, "teacher.path") if stage == "distill" else (config.model.initial, "model.initial")
    )
    notes: list[str] = []
    corpus = _real_corpus(config)
    size = corpus.vocab_size if corpus is not None else vocabulary
    encoder, params = _model_or_random(config, source, name, size, notes)
    if corpus is not None and corpus.vocab_size > encoder.vocab_size:
        corpus = None
    if corpus is None:
        corpus = synthetic_corpus(config, encoder.vocab_size)
        notes.append(f"synthetic rows of {corpus.sequence_length} tokens, {corpus.fill:.1%} filled")
    if corpus.sequence_length > encoder.max_length:
        raise UserError(
            f"rows of {corpus.sequence_length} tokens, but {name} has {encoder.max_length} positions; lower --lengths"
        )
    make_training = distillation if stage == "distill" else pretraining
    training = make_training(config, encoder, params)
    spec = text_run_spec(config, training, Corpora(corpus), {}, STEPS)
    return MeasuredRun(spec, training.encoder, training.teacher, tuple(notes))


def _real_corpus(config: Config) -> Corpus | None:
    folder = Path(config.corpus.folder) / "train"
    if not config.corpus.folder or not (folder / INDEX).is_file():
        return None
    corpus = open_corpus(folder)
    fits = corpus.sequence_length == config.corpus.sequence_length and corpus.packed == config.corpus.pack
    return corpus if fits and corpus.num_rows >= config.training.batch_size else None


def _model_or_random(
    config: Config, source: str, name: str, vocabulary: int, notes: list[str]
) -> tuple[EncoderConfig, Params]:
    """The model in the folder `source`.

    Without weights there: random weights of the sizes in its config.json, or without that of those in [model].
    """
    folder = Path(source).expanduser()
    if _has_weights(source):
        encoder, params = read_model(source)
        return encoder, _with_head(encoder, params)
    if source and (folder / "config.json").is_file():
        encoder = dataclasses.replace(read_encoder_config(source), pooler=False)
        notes.append(f"{name} = {source}: random weights of the sizes in its config.json")
    else:
        encoder = scratch_encoder(config.model, vocabulary, PAD)
        sizes = f"{encoder.num_layers} layers, width {encoder.hidden_size}, {encoder.vocab_size:,} tokens"
        where = f"{name} = {source} is not on this machine: " if source else ""
        notes.append(f"{where}random weights ({sizes})")
    return encoder, random_params(MaskedLM(encoder), encoder.initializer_range)


def _with_head(encoder: EncoderConfig, params: Params) -> Params:
    if "mlm_head" in params:
        return params
    return {**random_params(MaskedLM(encoder), encoder.initializer_range), **params}


def _has_weights(source: str) -> bool:
    return bool(source) and any((Path(source).expanduser() / file).is_file() for file in WEIGHT_FILES)


def _finetuning(config: Config, vocabulary: int) -> MeasuredRun:
    if not config.task.name:
        config = with_overrides(config, {"task.name": USUAL_TASK})
    notes: list[str] = []
    source, given = config.model.initial, {"model.initial": config.model.initial, "teacher.path": config.teacher.path}
    missing = [f"{name} = {path}" for name, path in given.items() if path and not _has_weights(path)]
    real = bool(source) and not missing
    tokenizer = load_tokenizer(source) if real else synthetic_tokenizer(vocabulary)
    data = _task_data(config, tokenizer, notes)
    train = data.spec.kind.encode(tokenizer, data.train, config.task, training=True)
    if real:
        training = read_task_training(config, data)
    else:
        encoder = scratch_encoder(config.model, vocabulary, PAD)
        training = _random_training(encoder, tokenizer, data, with_teacher=bool(config.teacher.path))
        where = f"not on this machine: {', '.join(missing)}; " if missing else ""
        notes.append(f"{where}random weights ({encoder.num_layers} layers, width {encoder.hidden_size})")
    spec = task_run_spec(config, data, training, train, {}, {})
    teacher = training.teachers[0].encoder if training.teachers else None
    return MeasuredRun(spec, training.encoder, teacher, tuple(notes))


def _task_data(config: Config, tokenizer: Tokenizer, notes: list[str]) -> TaskData:
    """The examples in task.source or task.train where that is on this machine, else synthetic ones like them."""
    if any(place and Path(place).exists() for place in (config.task.source, config.task.train)):
        return load_task(config.task, config.run.seed)
    data = synthetic_task(task_spec(config.task.name), tokenizer)
    notes.append(f"{len(data.train)} synthetic examples of a task like {data.spec.title}")
    return data


def _random_training(
    encoder: EncoderConfig, tokenizer: Tokenizer, data: TaskData, *, with_teacher: bool
) -> TaskTraining:
    """Random weights with a head for the task. A teacher has the same sizes."""
    spec = data.spec
    head = task_head(encoder, None, spec.kind.head, data.labels, spec.kind.problem)
    encoder = dataclasses.replace(encoder, pooler=head.needs_pooler)
    params = random_params(TaskModel(encoder, head), encoder.initializer_range)
    teacher = TaskTeacher(encoder, head, params)
    return TaskTraining(encoder, head, params, tokenizer, (teacher,) if with_teacher else ())

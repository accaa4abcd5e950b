"""The run that is measured: real models and data where this machine has them, else synthetic ones like them.

Nothing is downloaded. The notes say what is synthetic.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.benchmark.synthetic import (
    PAD,
    Params,
    random_params,
    synthetic_corpus,
    synthetic_task,
    synthetic_tokenizer,
    zero_params,
)
from distil_jax.benchmark.variants import USUAL_TASK, Stage
from distil_jax.config import Config, Model, with_overrides
from distil_jax.data.corpus import INDEX, Corpus, open_corpus
from distil_jax.errors import UserError
from distil_jax.hf import WEIGHT_FILES, Tokenizer, known_encoder_config, load_tokenizer, read_encoder_config, task_head
from distil_jax.models import EncoderConfig, MaskedLM, TaskModel
from distil_jax.tasks import TaskData, load_task, task_spec
from distil_jax.training.distill import distillation
from distil_jax.training.loop import RunSpec
from distil_jax.training.pretrain import pretraining, scratch_encoder
from distil_jax.training.task_models import TaskTeacher, TaskTraining, read_task_training
from distil_jax.training.task_run import task_run_spec
from distil_jax.training.text_run import Corpora, read_model, text_run_spec

_SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "max_position_embeddings")
STEPS = 100_000  # of the learning-rate schedule: more than are ever measured


class MeasuredRun(NamedTuple):
    """A run ready to be measured, its encoders, and notes on what is synthetic."""

    spec: RunSpec
    student: EncoderConfig
    teacher: EncoderConfig | None
    notes: tuple[str, ...]


def make_inputs(
    config: Config, stage: Stage, vocabulary: int, *, shapes_only: bool = False, devices: int = 1
) -> MeasuredRun:
    """The run that `config` describes.

    Args:
        config: a configuration; its paths need not exist.
        stage: which step.
        vocabulary: tokens of a synthetic model or corpus.
        shapes_only: no weights are read or drawn. Parameters are arrays of zeros that take no memory.
        devices: that share a batch.
    """
    # A run needs a folder's name; nothing is written there.
    config = with_overrides(config, {"run.output": config.run.output or "benchmark"})
    make: Any = partial(_finetuning if stage == "finetune" else partial(_on_text, stage=stage), devices=devices)
    if not shapes_only:
        return make(config, models=Models(vocabulary, shapes_only))
    # In another type the teacher's zeros would become arrays in memory.
    made = make(with_overrides(config, {"teacher.dtype": "float32"}), models=Models(vocabulary, shapes_only))
    zero = np.zeros((), jnp.dtype(config.teacher.dtype))
    teacher = jax.tree.map(lambda x: np.broadcast_to(zero, x.shape), made.spec.frozen.teacher)
    settled = dataclasses.replace(made.spec.config, teacher=config.teacher)
    spec = dataclasses.replace(made.spec, config=settled, frozen=made.spec.frozen._replace(teacher=teacher))
    return made._replace(spec=spec)


@dataclasses.dataclass(frozen=True)
class Models:
    """Where a run's models come from: tokens of synthetic ones, and whether shapes are enough."""

    vocabulary: int
    shapes_only: bool

    def params(self, module: MaskedLM | TaskModel) -> Params:
        """Weights of a synthetic model."""
        return zero_params(module) if self.shapes_only else random_params(module, module.config.initializer_range)

    def are_in(self, source: str) -> bool:
        """Whether to read the weights in this folder."""
        return not self.shapes_only and _has_weights(source)

    def encoder(self, config: Config, source: str, name: str, notes: list[str]) -> EncoderConfig:
        """The sizes of a model whose weights are not read: of its config.json, of its name, or those in [model]."""
        unset = all(getattr(config.model, size) == getattr(Model(), size) for size in _SIZES)
        if source and (Path(source).expanduser() / "config.json").is_file():
            encoder, of = read_encoder_config(source), "the sizes in its config.json"
        elif unset and (known := known_encoder_config(source)) is not None:
            encoder, of = known, f"not on this machine, the sizes known by its name ({_sizes(known)})"
        else:
            encoder = scratch_encoder(config.model, self.vocabulary, PAD)
            of = ("not on this machine, " if source else "") + f"the sizes of [model] ({_sizes(encoder)})"
        notes.append(f"{name} = {source}: {of}" if source else f"{name} is not set: {of}")
        return dataclasses.replace(encoder, pooler=False)


def _sizes(encoder: EncoderConfig) -> str:
    return f"{encoder.num_layers} layers, width {encoder.hidden_size}, {encoder.vocab_size:,} tokens"


def _on_text(config: Config, models: Models, stage: Stage, devices: int) -> MeasuredRun:
    source, name = (
        (config.teacher.path, "teacher.path") if stage == "distill" else (config.model.initial, "model.initial")
    )
    notes: list[str] = []
    corpus = _real_corpus(config)
    if corpus is not None:
        models = dataclasses.replace(models, vocabulary=corpus.vocab_size)
    encoder, params = _model(config, source, name, models, notes)
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
    spec = text_run_spec(config, training, Corpora(corpus), {}, STEPS, devices)
    return MeasuredRun(spec, training.encoder, training.teacher, tuple(notes))


def _real_corpus(config: Config) -> Corpus | None:
    folder = Path(config.corpus.folder) / "train"
    if not config.corpus.folder or not (folder / INDEX).is_file():
        return None
    corpus = open_corpus(folder)
    fits = corpus.sequence_length == config.corpus.sequence_length and corpus.packed == config.corpus.pack
    return corpus if fits and corpus.num_rows >= config.training.batch_size else None


def _model(config: Config, source: str, name: str, models: Models, notes: list[str]) -> tuple[EncoderConfig, Params]:
    """The model in the folder `source`, or a synthetic one of its sizes, with a masked-language-model head."""
    if models.are_in(source):
        encoder, params = read_model(source)
        return encoder, params if "mlm_head" in params else {**models.params(MaskedLM(encoder)), **params}
    encoder = models.encoder(config, source, name, notes)
    return encoder, models.params(MaskedLM(encoder))


def _has_weights(source: str) -> bool:
    return bool(source) and any((Path(source).expanduser() / file).is_file() for file in WEIGHT_FILES)


def _finetuning(config: Config, models: Models, devices: int) -> MeasuredRun:
    if not config.task.name:
        config = with_overrides(config, {"task.name": USUAL_TASK})
    notes: list[str] = []
    source, given = config.model.initial, {"model.initial": config.model.initial, "teacher.path": config.teacher.path}
    missing = [f"{name} = {path}" for name, path in given.items() if path and not models.are_in(path)]
    real = bool(source) and not missing
    tokenizer = load_tokenizer(source) if real else synthetic_tokenizer(models.vocabulary)
    data = _task_data(config, tokenizer, notes)
    train = data.spec.kind.encode(tokenizer, data.train, config.task, training=True)
    if real:
        training = read_task_training(config, data)
    else:
        encoder = models.encoder(config, source, "model.initial", notes)
        training = _synthetic_training(encoder, tokenizer, data, models, with_teacher=bool(config.teacher.path))
        if config.teacher.path:
            notes.append(f"teacher.path = {config.teacher.path}: a synthetic teacher of the same sizes")
    spec = task_run_spec(config, data, training, train, {}, {}, devices=devices)
    teacher = training.teachers[0].encoder if training.teachers else None
    return MeasuredRun(spec, training.encoder, teacher, tuple(notes))


def _task_data(config: Config, tokenizer: Tokenizer, notes: list[str]) -> TaskData:
    """The examples in task.source or task.train where that is on this machine, else synthetic ones like them."""
    if any(place and Path(place).exists() for place in (config.task.source, config.task.train)):
        return load_task(config.task, config.run.seed)
    data = synthetic_task(task_spec(config.task.name), tokenizer)
    notes.append(f"{len(data.train)} synthetic examples of a task like {data.spec.title}")
    return data


def _synthetic_training(
    encoder: EncoderConfig, tokenizer: Tokenizer, data: TaskData, models: Models, *, with_teacher: bool
) -> TaskTraining:
    """Synthetic weights with a head for the task. A teacher has the same sizes."""
    spec = data.spec
    head = task_head(encoder, None, spec.kind.head, data.labels, spec.kind.problem)
    encoder = dataclasses.replace(encoder, pooler=head.needs_pooler)
    params = models.params(TaskModel(encoder, head))
    teacher = TaskTeacher(encoder, head, params)
    return TaskTraining(encoder, head, params, tokenizer, (teacher,) if with_teacher else ())

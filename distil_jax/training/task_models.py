"""The models of a fine-tuning, the one that learns and those it learns from; what they and the data have to be."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from distil_jax.config import Config, Evaluation
from distil_jax.data.rows import some
from distil_jax.errors import UserError
from distil_jax.hf import (
    PretrainedModel,
    Tokenizer,
    load_tokenizer,
    locate,
    read_encoder_config,
    read_json,
    read_task_model,
    task_head_from_hf,
)
from distil_jax.models import EncoderConfig, TaskHead
from distil_jax.objectives import check_terms, initial_projections
from distil_jax.tasks import TaskData, chosen_weights, task_spec
from distil_jax.training.step import Params


class TaskTeacher(NamedTuple):
    """A model of the task that another one learns from."""

    encoder: EncoderConfig
    head: TaskHead
    params: Params


@dataclasses.dataclass(frozen=True)
class TaskTraining:
    """What a fine-tuning trains, the teachers it learns from, each with its parameters, and notes for the user."""

    encoder: EncoderConfig
    head: TaskHead
    params: Params
    tokenizer: Tokenizer
    teachers: tuple[TaskTeacher, ...] = ()
    notes: tuple[str, ...] = ()

    def projections(self, config: Config) -> Params:
        """The group of parameters that compares it with a teacher of another width; {} where there is none."""
        if not self.teachers:
            return {}
        return initial_projections(config.finetune, self.encoder, self.teachers[0].encoder, config.run.seed)

    @property
    def positions(self) -> int:
        """Tokens that all of its models take."""
        return min(encoder.max_length for encoder in (self.encoder, *(one.encoder for one in self.teachers)))


def read_task_training(config: Config, data: TaskData) -> TaskTraining:
    """`model.initial` with a head for the task, and the teachers of `teacher.path` and `finetune.teachers`.

    Raises:
        UserError: one of them cannot be read, or they do not fit the task or each other.
    """
    source, spec = config.model.initial, data.spec
    model = read_task_model(source, spec.kind.head, labels=data.labels, problem=spec.kind.problem, seed=config.run.seed)
    encoder, params, head = model.config, model.params, model.head
    assert head is not None
    check_lengths(config, data, "model.initial", encoder)
    tokenizer = load_tokenizer(source)
    check_vocabulary(source, encoder, tokenizer)
    notes = tuple(f"model.initial = {note}" for note in model.notes)
    if config.model.freeze_encoder and model.is_new_pooler:
        notes += (
            f"model.freeze_encoder: {source} has no pooler, which classifying with BERT needs; a random one is kept as "
            "it is, and scores suffer",
        )
    teachers: list[TaskTeacher] = []
    for setting, path in teacher_paths(config):
        found = _teacher(config, data, head, setting, path, tokenizer)
        assert found.head is not None
        if not teachers:
            check_terms(config.finetune, encoder, found.config)
        teachers.append(TaskTeacher(found.config, found.head, found.params))
        notes += tuple(f"{setting} = {note}" for note in found.notes)
    return TaskTraining(encoder, head, params, tokenizer, tuple(teachers), notes)


def teacher_paths(config: Config) -> list[tuple[str, str]]:
    """(setting that names it, folder or hub id) of each teacher.

    Raises:
        UserError: there are further teachers, but no first one.
    """
    more = config.finetune.teachers
    if more and not config.teacher.path:
        raise UserError(f"finetune.teachers = {some(more)}: names further teachers; name the first in teacher.path")
    return [("teacher.path", config.teacher.path)] * bool(config.teacher.path) + [
        ("finetune.teachers", path) for path in more
    ]


def known_labels(config: Config) -> tuple[str, ...]:
    """The teacher's classes, where own data have no labels that say which there are; else ().

    Raises:
        UserError: the teacher's folder cannot be read.
    """
    settings, kind = config.task, task_spec(config.task.name).kind
    own = task_spec(settings.name).published is None
    if not (own and settings.unlabelled and kind.has_classes and config.teacher.path) or settings.labels:
        return ()
    if settings.train or settings.source:
        return ()
    folder = locate(config.teacher.path)
    where = folder / "config.json"
    return task_head_from_hf(read_encoder_config(folder), read_json(where), kind.head, str(where)).labels


def check_evaluation(settings: Evaluation) -> None:
    """Raises UserError for settings of evaluation that have no effect on tasks.

    A score of some rows would look like one of all, and nothing is masked here.
    """
    given = [f"evaluation.{name}" for name in ("rows", "seed") if getattr(settings, name)]
    if given:
        raise UserError(f"{' and '.join(given)}: finetune measures whole validation sets, without masks; leave it at 0")


def check_data(config: Config, data: TaskData) -> None:
    """Raises UserError where there is nothing to train on, or the data do not suit the settings."""
    settings = config.task
    if not data.train and not data.unlabelled:
        where = settings.source or "its dataset"
        raise UserError(f"task {data.spec.name}: no training data in {where}; give task.train or another task.source")
    if data.unlabelled and not (config.teacher.path and "kl" in config.finetune.weights):
        raise UserError(
            f"task.unlabelled = {settings.unlabelled}: such rows are learned from a teacher; give teacher.path, a "
            "model of this task, and a finetune.kl above 0"
        )
    if not data.train and settings.class_weights != "none":
        raise UserError(f"task.class_weights = {settings.class_weights}: no row has a label; leave it at none")
    chosen_weights(settings, data)
    if (settings.word_masking or settings.word_shuffling) and not data.spec.kind.texts_only:
        raise UserError(
            f"task.word_masking and task.word_shuffling: only for whole texts, not for {data.spec.name}; set both to 0"
        )


def check_vocabulary(source: str, encoder: EncoderConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokenizer of `source` has tokens that its encoder does not know."""
    if tokenizer.vocab_size > encoder.vocab_size:
        raise UserError(f"{source}: {tokenizer.vocab_size} tokens, but only {encoder.vocab_size} word embeddings")


def check_lengths(config: Config, data: TaskData, name: str, encoder: EncoderConfig) -> None:
    """Raises UserError where rows or windows are longer than an encoder takes, which messages call `name`."""
    kind, length = data.spec.kind, data.spec.kind.row_length(config.task)
    if length > encoder.max_length:
        raise UserError(f"task.max_length = {length}: {name} has {encoder.max_length} positions; lower it")
    kind.check(config.task, length)


def _teacher(
    config: Config, data: TaskData, head: TaskHead, setting: str, source: str, tokenizer: Tokenizer
) -> PretrainedModel:
    if load_tokenizer(source).sha256 != tokenizer.sha256:
        raise UserError(f"{setting} = {source}: its vocabulary is not that of model.initial = {config.model.initial}")
    model = read_task_model(
        source, data.spec.kind.head, labels=head.labels, problem=head.problem, num_outputs=head.num_outputs
    )
    if model.is_new_head:
        labels = f" with the labels {some(data.labels)}" if data.labels else ""
        raise UserError(
            f"{setting} = {source}: has no head for {data.spec.name}{labels}; fine-tune it first "
            f"(distil-jax finetune), or leave {setting} empty"
        )
    check_lengths(config, data, setting, model.config)
    return model

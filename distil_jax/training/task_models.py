"""The models of a fine-tuning: the one that learns, with a head for the task, and the one it learns from."""

from __future__ import annotations

import dataclasses

from distil_jax.config import Config
from distil_jax.data.rows import some
from distil_jax.errors import UserError
from distil_jax.hf import PretrainedModel, Tokenizer, load_tokenizer, read_task_model
from distil_jax.models import EncoderConfig, TaskHead
from distil_jax.objectives import check_terms, initial_projections
from distil_jax.tasks import TaskData
from distil_jax.training.step import Params


@dataclasses.dataclass(frozen=True)
class TaskTraining:
    """What a fine-tuning trains, the teacher it learns from, each with its parameters, and notes for the user."""

    encoder: EncoderConfig
    head: TaskHead
    params: Params
    tokenizer: Tokenizer
    teacher: tuple[EncoderConfig, TaskHead, Params] | None
    notes: tuple[str, ...] = ()

    def projections(self, config: Config) -> Params:
        """The group of parameters that compares it with a teacher of another width; {} where there is none."""
        if self.teacher is None:
            return {}
        return initial_projections(config.finetune, self.encoder, self.teacher[0], config.run.seed)

    @property
    def positions(self) -> int:
        """Tokens that all of its models take."""
        encoders = [self.encoder] if self.teacher is None else [self.encoder, self.teacher[0]]
        return min(encoder.max_length for encoder in encoders)


def read_task_training(config: Config, data: TaskData) -> TaskTraining:
    """`model.initial` with a head for the task, and the teacher of `teacher.path`.

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
    teacher = None
    if config.teacher.path:
        found = _teacher(config, data, head, encoder, tokenizer)
        assert found.head is not None
        teacher = (found.config, found.head, found.params)
        notes += tuple(f"teacher.path = {note}" for note in found.notes)
    return TaskTraining(encoder, head, params, tokenizer, teacher, notes)


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
    config: Config, data: TaskData, head: TaskHead, student: EncoderConfig, tokenizer: Tokenizer
) -> PretrainedModel:
    source = config.teacher.path
    if load_tokenizer(source).sha256 != tokenizer.sha256:
        raise UserError(
            f"teacher.path = {source}: its vocabulary is not that of model.initial = {config.model.initial}"
        )
    model = read_task_model(
        source, data.spec.kind.head, labels=head.labels, problem=head.problem, num_outputs=head.num_outputs
    )
    if model.is_new_head:
        labels = f" with the labels {some(data.labels)}" if data.labels else ""
        raise UserError(
            f"teacher.path = {source}: has no head for {data.spec.name}{labels}; fine-tune it first "
            "(distil-jax finetune), or leave teacher.path empty"
        )
    check_lengths(config, data, "teacher.path", model.config)
    check_terms(config.finetune, student, model.config)
    return model

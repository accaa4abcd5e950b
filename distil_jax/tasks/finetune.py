"""Fine-tuning: from a configuration to a model of one task, alone or with a fine-tuned teacher (second distillation).

Everything that a user can get wrong is looked at here, before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config, config_to_toml, require
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer, read_task_model
from distil_jax.models import EncoderConfig, TaskHead, TaskModel
from distil_jax.tasks.augment import augment_ids, continuation_table
from distil_jax.tasks.batches import Batch, choose_buckets, collate, steps_per_epoch, training_plan
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.data.tables import some
from distil_jax.tasks.encode import Encoded, encode_examples, longest_row
from distil_jax.tasks.examples import Example, TaskData
from distil_jax.tasks.inference import is_version_2, make_predictor, measures_of, score
from distil_jax.tasks.losses import Models, Params
from distil_jax.tasks.step import TaskConstants, TaskSetup, make_task_step
from distil_jax.tasks.testing import labelled_tests, measured_tests
from distil_jax.training.loop import Evaluator, Job, Outcome, run_training
from distil_jax.training.parallel import Devices, check_batch, make_devices
from distil_jax.training.peers import first_process_in
from distil_jax.training.run_folder import fingerprint, keep_tokenizer, open_run_folder, write_whole
from distil_jax.training.selection import Selection
from distil_jax.training.telemetry import encoder_flops
from distil_jax.training.watch import Watch

RESULT_FILE = "result.json"
SCORE = "score"
_STEPS_A_PROGRAM = 50  # fewer steps with a length are not worth compiling for it


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A finished fine-tuning: the run, the task, the measures of the chosen step, and what the user should hear."""

    outcome: Outcome
    data: TaskData
    measures: Mapping[str, float]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Learner:
    """The model that learns and the one it learns from, each with its parameters."""

    encoder: EncoderConfig
    head: TaskHead
    params: Params
    tokenizer: Tokenizer
    teacher: tuple[EncoderConfig, TaskHead, Params] | None

    @property
    def positions(self) -> int:
        """Tokens that all of its models take."""
        encoders = [self.encoder] if self.teacher is None else [self.encoder, self.teacher[0]]
        return min(encoder.max_position_embeddings for encoder in encoders)


def finetune(config: Config, data: TaskData | None = None) -> FineTuned:
    """Fine-tune `model.initial` on a task; with `teacher.path` it also learns from that model of the same task.

    Args:
        config: a configuration with run.output, model.initial and task.name.
        data: the task's data where it is loaded already; None loads it.

    Raises:
        UserError: settings, data, models or the run's folder do not fit each other.
    """
    require(config, "run.output", "model.initial", "task.name")
    with Watch(config) as watch:
        return _finetune(config, data, watch)


def _finetune(config: Config, data: TaskData | None, watch: Watch) -> FineTuned:
    data = load_task(config.task, config.run.seed) if data is None else data
    _check_data(config, data)
    learner = read_learner(config, data)
    train = encode_examples(learner.tokenizer, data.spec.kind, data.train, config.task, training=True)
    if not len(train):
        raise UserError(f"task {data.spec.name}: no training example has an answer that tokens cover; check task.train")
    held_out = {
        name: encode_examples(learner.tokenizer, data.spec.kind, examples, config.task)
        for name, examples in data.validation.items()
    }
    devices = make_devices(config.parallel.mapping, config.parallel.devices)
    check_batch(config.training.batch_size, config.training.micro_batch_size, devices.count)
    inputs = {"task": data.sha256, "model.initial": fingerprint(learner.params)}
    if learner.teacher is not None:
        inputs["teacher.path"] = fingerprint(learner.teacher[2])
    folder, main = Path(config.run.output), jax.process_index() == 0
    sets = {"train": train, **held_out}
    notes = (*data.notes, *(f"{name}: {note}" for name, encoded in sets.items() for note in encoded.notes))
    with first_process_in(partial(open_run_folder, folder, config, inputs, "finetune")):
        texts = keep_tokenizer(folder, learner.tokenizer, learner.encoder.family) if main else {}
        started = time.monotonic()
        job = make_job(config, data, learner, train, held_out, texts)
        outcome = run_training(job, devices, watch)
        measures = outcome.evaluations.get(str(outcome.best_step), {})
        if main and not (outcome.resumed_from == outcome.step and (folder / RESULT_FILE).is_file()):
            measures = measures | _tested(config, data, learner, outcome, devices, watch)
            _write_result(folder, config, data, outcome, measures, time.monotonic() - started, notes)
    return FineTuned(outcome, data, measures, notes)


def _check_data(config: Config, data: TaskData) -> None:
    if not data.train:
        where = config.task.source or "its dataset"
        raise UserError(f"task {data.spec.name}: no training data in {where}; give task.train or another task.source")
    settings, one_label = config.task, data.spec.problem == "single_label_classification"
    if settings.class_weights == "balanced" and not (one_label or data.spec.kind == "token"):
        raise UserError(f"task.class_weights = balanced: only for classes and tags, not for {data.spec.name}")
    if (settings.word_masking or settings.word_shuffling) and data.spec.kind != "sequence":
        raise UserError(
            f"task.word_masking and task.word_shuffling: only for whole texts, not for {data.spec.name}; set both to 0"
        )


def read_learner(config: Config, data: TaskData) -> Learner:
    """`model.initial` with a head for the task, and the teacher of `teacher.path`.

    Raises:
        UserError: one of them cannot be read, or they do not fit the task or each other.
    """
    source, spec = config.model.initial, data.spec
    encoder, head, params, _ = read_task_model(
        source, spec.kind, labels=data.labels, problem=spec.problem, seed=config.run.seed
    )
    _check_lengths(config, data, "model.initial", encoder)
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > encoder.vocab_size:
        raise UserError(f"{source}: {tokenizer.vocab_size} tokens, but only {encoder.vocab_size} word embeddings")
    teacher = None
    if config.teacher.path:
        teacher = _teacher(config, data, head, encoder, tokenizer)
    return Learner(encoder, head, params, tokenizer, teacher)


def _check_lengths(config: Config, data: TaskData, name: str, encoder: EncoderConfig) -> None:
    settings, length = config.task, longest_row(config.task, data.spec.kind)
    if length > encoder.max_position_embeddings:
        raise UserError(f"task.max_length = {length}: {name} has {encoder.max_position_embeddings} positions; lower it")
    room = length - settings.max_question_length - 3
    if data.spec.kind == "question" and settings.doc_stride > max(room, 0):
        raise UserError(
            f"task.doc_stride = {settings.doc_stride}: beside a question of task.max_question_length = "
            f"{settings.max_question_length} a window of task.max_length = {length} holds only {room} tokens of the "
            "context; lower doc_stride or raise max_length"
        )


def _teacher(
    config: Config, data: TaskData, head: TaskHead, student: EncoderConfig, tokenizer: Tokenizer
) -> tuple[EncoderConfig, TaskHead, Params]:
    source = config.teacher.path
    if load_tokenizer(source).sha256 != tokenizer.sha256:
        raise UserError(
            f"teacher.path = {source}: its vocabulary is not that of model.initial = {config.model.initial}"
        )
    encoder, own, params, fresh = read_task_model(
        source, data.spec.kind, labels=head.labels, problem=head.problem, num_outputs=head.num_outputs
    )
    if fresh:
        labels = f" with the labels {some(data.labels)}" if data.labels else ""
        raise UserError(
            f"teacher.path = {source}: has no head for {data.spec.name}{labels}; fine-tune it first "
            "(distil-jax finetune), or leave teacher.path empty"
        )
    _check_lengths(config, data, "teacher.path", encoder)
    if config.finetune.alpha_cos > 0 and encoder.hidden_size != student.hidden_size:
        raise UserError(
            f"finetune.alpha_cos = {config.finetune.alpha_cos:g}: hidden states of widths {student.hidden_size} "
            f"(model.initial) and {encoder.hidden_size} (teacher.path) cannot be compared; set it to 0"
        )
    return encoder, own, params


def class_weights(data: TaskData) -> np.ndarray:
    """Weight of each class or tag [K] float32: examples / (classes x examples of the class); 0 where there is none."""
    labels: Any = [example.tags if data.spec.kind == "token" else example.label for example in data.train]  # type: ignore[union-attr]
    counts = np.bincount(np.concatenate([np.atleast_1d(label) for label in labels]), minlength=len(data.labels))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1)) * (counts > 0)).astype(np.float32)


def make_job(
    config: Config,
    data: TaskData,
    learner: Learner,
    train: Encoded,
    held_out: Mapping[str, Encoded],
    tokenizer_texts: Mapping[str, str],
) -> Job:
    """The run that trains `learner` on `train` and is measured on `held_out`.

    Args:
        config: its settings.
        data: the task, and the examples that `train` was made from.
        learner: the models.
        train: encoded examples.
        held_out: encoded examples by the name of their set; empty: nothing is measured.
        tokenizer_texts: the tokenizer's files by name, which checkpoints carry.

    Raises:
        UserError: finetune.metric is not measured here.
    """
    dtype, attention = jnp.dtype(config.training.compute_dtype), config.training.attention
    model = TaskModel(learner.encoder, learner.head, dtype, attention, config.training.remat)
    teacher = None if learner.teacher is None else TaskModel(*learner.teacher[:2], dtype, attention)
    setup = TaskSetup(Models(model, teacher), config.finetune, config.training.micro_batch_size)
    per_epoch, steps = steps_per_epoch(len(train), config.training.batch_size), _steps(config, train)
    measures = _measure_names(data)
    selection = Selection(config.finetune.metric or SCORE, config.finetune.patience)
    if selection.measure not in measures:
        raise UserError(
            f"finetune.metric = {selection.measure!r}: not measured here; choose from {', '.join(measures)}"
        )
    metadata = {
        "config": config_to_toml(config),
        "model": dataclasses.asdict(learner.encoder),
        "head": dataclasses.asdict(learner.head),
        "tokenizer": dict(tokenizer_texts),
        "description": _description(config, data),
        "selection": selection.measure if config.finetune.keep == "best" else "",
        "steps": steps,
    }
    return Job(
        config=config,
        folder=Path(config.run.output),
        steps=steps,
        params=learner.params,
        trainable=("encoder", "task_head"),
        constants=TaskConstants(_teacher_params(config, learner), np.int32(config.run.seed)),
        make_step=partial(make_task_step, setup),
        make_batches=partial(_batches, config, data, learner, train),
        batch_rows=lambda step: _plan(config, learner, train)(step)[1],
        make_evaluator=partial(_evaluator, config, data, model, held_out),
        metadata=metadata,
        flops_per_token=_flops_per_token(learner, float(train.lengths.mean())),
        evaluate_every=_evaluate_every(config, per_epoch, steps),
        evaluate_start=False,
        selection=selection if held_out and config.finetune.keep == "best" else None,
    )


def _description(config: Config, data: TaskData) -> dict[str, Any]:
    return {
        "stage": "finetune",
        "task": data.spec.name,
        "initial": config.model.initial,
        "teacher": config.teacher.path,
        "examples": len(data.train),
        "no_answer": is_version_2(data),
    }


def _evaluate_every(config: Config, per_epoch: int, steps: int) -> int:
    every = config.evaluation.every_steps
    if 0 < every <= steps:
        return every
    # The default for long runs on text would leave a small task without any choice of checkpoints.
    return max(per_epoch // config.finetune.evaluations_per_epoch, 1)


def _steps(config: Config, train: Encoded) -> int:
    return config.training.steps or config.training.epochs * steps_per_epoch(len(train), config.training.batch_size)


def _teacher_params(config: Config, learner: Learner) -> Params | None:
    if learner.teacher is None:
        return None
    return jax.tree.map(lambda x: np.asarray(x, jnp.dtype(config.teacher.dtype)), learner.teacher[2])


def _flops_per_token(learner: Learner, length: float) -> float:
    forward = 0.0 if learner.teacher is None else encoder_flops(learner.teacher[0], round(length))
    return forward + 3 * encoder_flops(learner.encoder, round(length))


def _plan(config: Config, learner: Learner, encoded: Encoded) -> Callable[[int], tuple[int, np.ndarray]]:
    """A function: number of a batch -> the length it is padded to, and its rows."""
    programs = max(_steps(config, encoded) // _STEPS_A_PROGRAM, 1)
    buckets = choose_buckets(encoded.lengths, config.finetune.buckets, programs, learner.positions)
    return training_plan(encoded.lengths, buckets, config.training.batch_size, config.run.seed)


def _batches(
    config: Config, data: TaskData, learner: Learner, encoded: Encoded, steps: range, devices: Devices
) -> Iterator[Batch]:
    """This process's rows of the batches of `steps`, made ready ahead on threads."""
    settings, size = config.task, config.training.batch_size
    plan = _plan(config, learner, encoded)
    weights = class_weights(data) if settings.class_weights == "balanced" else None
    part = devices.process_part(size)
    change = None
    if settings.word_masking or settings.word_shuffling:
        change = partial(
            augment_ids,
            masking=settings.word_masking,
            shuffling=settings.word_shuffling,
            continuation=continuation_table(learner.tokenizer),
            special_ids=learner.tokenizer.special_ids,
            mask_id=learner.tokenizer.mask_id,
        )

    def load(step: int) -> Batch:
        length, rows = plan(int(step))
        changed = None
        if change is not None:
            seeds = ([config.run.seed, int(step), int(row)] for row in rows)
            changed = [
                change(encoded.ids[row], np.random.default_rng(seed)) for row, seed in zip(rows, seeds, strict=True)
            ]
        batch = collate(encoded, data.spec.kind, rows, length, size, weights, changed)
        return {name: values[part] for name, values in batch.items()}

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _measure_names(data: TaskData) -> list[str]:
    """What the first validation set is measured by."""
    return [SCORE, *data.spec.metrics]


def _evaluator(
    config: Config, data: TaskData, model: TaskModel, held_out: Mapping[str, Encoded], devices: Devices
) -> Evaluator | None:
    if not held_out:
        return None
    predict = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)

    def evaluate(params: Params, _: Any, go: Callable[[], None]) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, (name, encoded) in enumerate(held_out.items()):
            examples: Sequence[Example] = data.validation[name]
            measures = measures_of(data, config.task, examples, encoded, predict(params, encoded, go))
            if number == 0:
                found = {SCORE: score(data.spec.headline, data.spec.metrics, measures)}
            # The first set's measures have plain names, those of further ones (MNLI's mismatched) the set's before.
            found |= {key if number == 0 else f"{name}_{key}": value for key, value in measures.items()}
        return found

    return evaluate


def _tested(
    config: Config, data: TaskData, learner: Learner, outcome: Outcome, devices: Devices, watch: Watch
) -> dict[str, float]:
    """Measures on labelled test sets; by one process alone, as a checkpoint is read for them."""
    tests = labelled_tests(data) if jax.process_count() == 1 else {}
    if not tests:
        return {}
    model = TaskModel(
        learner.encoder, learner.head, jnp.dtype(config.training.compute_dtype), config.training.attention
    )
    with watch.preemption.interruptible():
        return measured_tests(config, data, tests, model, learner.tokenizer, outcome, devices, watch.go)


def _write_result(
    folder: Path,
    config: Config,
    data: TaskData,
    outcome: Outcome,
    measures: Mapping[str, float],
    seconds: float,
    notes: Sequence[str],
) -> None:
    """What tables are made from; written last, so that its presence says that the run is finished."""
    result = {
        "task": data.spec.name,
        "title": data.spec.title,
        "seed": config.run.seed,
        "score": measures.get(SCORE),
        "measures": dict(measures),
        "step": outcome.best_step,
        "steps": outcome.step,
        "examples": len(data.train),
        "seconds": round(seconds, 1),
        "resumed_from": outcome.resumed_from,
        "skipped_steps": outcome.skipped_steps,
        "notes": list(notes),
    }
    write_whole(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")

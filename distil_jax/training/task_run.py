"""The specification of a fine-tuning run: its models, batches and evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.models import Product, TaskModel
from distil_jax.objectives import active_activation_terms, capture_of
from distil_jax.tasks import (
    SCORE,
    Encoded,
    Logits,
    TaskBatch,
    TaskData,
    augment_ids,
    choose_buckets,
    chosen_weights,
    collate,
    continuation_table,
    steps_per_epoch,
    training_plan,
    validation_measures,
)
from distil_jax.training.device_settings import StepSizes, memory_text, settled
from distil_jax.training.flops import encoder_flops
from distil_jax.training.inference import make_predictor
from distil_jax.training.loop import RunSpec
from distil_jax.training.opening import About, loss_text, model_text
from distil_jax.training.parallel import Devices
from distil_jax.training.pruning import steps_before_pruned
from distil_jax.training.selection import NO_CHOICE, Selection
from distil_jax.training.step import Evaluator, FrozenInputs, Params
from distil_jax.training.task_models import TaskTraining
from distil_jax.training.task_phases import Phase, PlannedPhase, plan_phases
from distil_jax.training.task_step import TaskModels, task_step_config

_PRODUCTS: dict[str, Product] = {"none": "plain", "int8": "int8"}  # of `finetune.quantize`
_STEPS_A_PROGRAM = 50  # fewer steps with a length are not worth compiling for it


def task_run_spec(
    config: Config,
    data: TaskData,
    training: TaskTraining,
    train: Encoded,
    held_out: Mapping[str, Encoded],
    model_file: Mapping[str, Any],
    details: dict[str, Any] | None = None,
    devices: int = 1,
) -> RunSpec:
    """The run that fine-tunes on `train` and is measured on `held_out`.

    Args:
        config: its settings.
        data: the task, and the examples that `train` was made from.
        training: the models.
        train: encoded examples.
        held_out: encoded examples by the name of their set; empty: nothing is measured.
        model_file: the contents of the run's model.json.
        details: is given those of the newest evaluation, by the name of the set.
        devices: that share a batch.

    Raises:
        UserError: finetune.metric is not measured here.
    """
    sizes = _step_sizes(config, training, train, devices)
    config = settled(config, sizes)
    dtype, attention = jnp.dtype(config.training.compute_dtype), config.training.attention
    model = trained_network(config, training)
    teachers = tuple(TaskModel(one.encoder, one.head, dtype, attention) for one in training.teachers)
    models, projections = TaskModels(model, teachers, config.finetune), training.projections(config)
    trainable = (*(() if config.model.freeze_encoder else ("encoder",)), "task_head", *projections)
    phases = plan_phases(config, train)
    steps = sum(phase.steps for phase in phases)
    per_epoch = steps_per_epoch(len(train), config.training.batch_size)
    plan = _plan(config, training, train, phases)
    measures = [SCORE, *data.spec.metrics]
    # A checkpoint of an earlier phase, or with fewer weights at 0 than asked for, is not what the run is for.
    after = max(steps - phases[-1].steps, steps_before_pruned(config.pruning, steps))
    selection = Selection(_measure(config), config.finetune.patience, after)
    if selection.measure not in measures:
        raise UserError(
            f"finetune.metric = {selection.measure!r}: not measured here; choose from {', '.join(measures)}"
        )
    return RunSpec(
        config=config,
        folder=Path(config.run.output),
        steps=steps,
        params={**training.params, **projections},
        frozen=FrozenInputs(np.int32(config.run.seed), _teacher_params(config, training)),
        step=task_step_config(models, config.training.micro_batch_size, trainable, steps),
        make_batches=partial(_batches, config, data, training, train, plan),
        batch_rows=lambda step: plan(step).rows,
        make_evaluator=partial(_evaluator, config, data, model, held_out, details),
        model_file=model_file,
        flops_per_token=_flops_per_token(training, float(train.lengths.mean()), config.model.freeze_encoder),
        evaluate_every=_evaluate_every(config, per_epoch, steps),
        evaluate_start=False,
        selection=selection if held_out and config.finetune.keep == "best" else NO_CHOICE,
        earlier_phases=tuple((phase.steps, phase.learning_rate) for phase in phases[:-1]),
        about=(*_about(config, data, training, train, held_out), *memory_text(config, sizes)),
    )


def _step_sizes(config: Config, training: TaskTraining, train: Encoded, devices: int) -> StepSizes:
    """What decides the memory of the longest batch's step."""
    captured = capture_of(active_activation_terms(config.finetune)) if training.teachers else frozenset()
    teachers = tuple(teacher.encoder for teacher in training.teachers)
    tokens = int(train.lengths.max()) * max(train.choices, 1)
    return StepSizes(training.encoder, teachers, tokens, captured=captured, devices=devices)


def trained_network(config: Config, training: TaskTraining) -> TaskModel:
    """The network that is trained and measured."""
    settings = config.training
    dtype, product = jnp.dtype(settings.compute_dtype), _PRODUCTS[config.finetune.quantize]
    attention, remat, exact = settings.attention, settings.remat, settings.exact_dropout
    return TaskModel(training.encoder, training.head, dtype, attention, remat, product, exact)


def _about(
    config: Config, data: TaskData, training: TaskTraining, train: Encoded, held_out: Mapping[str, Encoded]
) -> About:
    """The rows of the opening table on models and data."""
    rows = [("model", f"{config.model.initial}: {model_text(training.encoder, training.params)}")]
    rows += [("teacher", model_text(teacher.encoder, teacher.params)) for teacher in training.teachers]
    sets = ", ".join(f"{name} {len(encoded):,}" for name, encoded in held_out.items())
    rows.append(("task", f"{data.spec.title}: {len(train):,} rows of {train.lengths.mean():.0f} tokens on average"))
    rows.append(("held out", sets or "nothing"))
    return (*rows, ("loss", loss_text(config.finetune.weights) if training.teachers else "labels"))


def task_model_facts(config: Config, data: TaskData, training: TaskTraining) -> dict[str, Any]:
    """What model.json says of the run, so that its checkpoints can be used without its inputs."""
    return {
        "model": dataclasses.asdict(training.encoder),
        "head": dataclasses.asdict(training.head),
        "description": _description(config, data),
        "selection": _measure(config) if config.finetune.keep == "best" else "",
    }


def _measure(config: Config) -> str:
    """What the best evaluation is chosen by."""
    return config.finetune.metric or SCORE


def _description(config: Config, data: TaskData) -> dict[str, Any]:
    return {
        "stage": "finetune",
        "task": data.spec.name,
        "initial": config.model.initial,
        "teacher": config.teacher.path,
        "examples": len(data.train),
        "unlabelled": len(data.unlabelled),
        "no_answer": data.no_answer,
    }


def _evaluate_every(config: Config, per_epoch: int, steps: int) -> int:
    every = config.evaluation.every_steps
    if 0 < every <= steps:
        return every
    # The default for long runs on text would leave a small task without any choice of checkpoints.
    return max(per_epoch // config.finetune.evaluations_per_epoch, 1)


def _teacher_params(config: Config, training: TaskTraining) -> Params | None:
    if not training.teachers:
        return None
    params = {str(number): teacher.params for number, teacher in enumerate(training.teachers)}
    return jax.tree.map(lambda x: np.asarray(x, jnp.dtype(config.teacher.dtype)), params)


def _flops_per_token(training: TaskTraining, length: float, frozen: bool) -> float:
    forward = sum(encoder_flops(teacher.encoder, round(length)) for teacher in training.teachers)
    return forward + (1 if frozen else 3) * encoder_flops(training.encoder, round(length))


class _PlannedBatch(NamedTuple):
    length: int  # tokens that its rows are padded to
    rows: np.ndarray
    phase: Phase


def _plan(
    config: Config, training: TaskTraining, encoded: Encoded, phases: Sequence[PlannedPhase]
) -> Callable[[int], _PlannedBatch]:
    """A function: number of a batch -> what it holds. The rows of each phase are shuffled on their own."""
    first, plans = 0, []
    for number, planned in enumerate(phases, 1):
        lengths, programs = encoded.lengths[planned.rows], max(planned.steps // _STEPS_A_PROGRAM, 1)
        buckets = choose_buckets(lengths, config.finetune.buckets, programs, training.positions)
        later = len(phases) - number  # phases; the last one is shuffled as in a run without others
        seed = (config.run.seed, later) if later else (config.run.seed,)
        plans.append((first, planned, training_plan(lengths, buckets, config.training.batch_size, *seed)))
        first += planned.steps

    def batch(step: int) -> _PlannedBatch:
        first, planned, plan = next(one for one in reversed(plans) if one[0] <= step)
        length, rows = plan(step - first)
        return _PlannedBatch(length, planned.rows[rows], planned.phase)

    return batch


def _batches(
    config: Config,
    data: TaskData,
    training: TaskTraining,
    encoded: Encoded,
    plan: Callable[[int], _PlannedBatch],
    steps: range,
    devices: Devices,
) -> Iterator[TaskBatch]:
    """This process's rows of the batches of `steps`, made ready ahead on threads."""
    settings, size = config.task, config.training.batch_size
    weights = chosen_weights(settings, data)
    part = devices.process_part(size)
    change = None
    if settings.word_masking or settings.word_shuffling:
        change = partial(
            augment_ids,
            masking=settings.word_masking,
            shuffling=settings.word_shuffling,
            continuation=continuation_table(training.tokenizer),
            special_ids=training.tokenizer.special_ids,
            mask_id=training.tokenizer.mask_id,
        )

    def load(step: int) -> TaskBatch:
        length, rows, phase = plan(int(step))
        changed = None
        if change is not None:
            seeds = ([config.run.seed, int(step), int(row)] for row in rows)
            changed = [
                change(encoded.ids[row], np.random.default_rng(seed)) for row, seed in zip(rows, seeds, strict=True)
            ]
        batch = collate(encoded, data.spec.kind, rows, length, size, weights, changed)
        return jax.tree.map(lambda values: values[part], batch)._replace(phase=phase)

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _evaluator(
    config: Config,
    data: TaskData,
    model: TaskModel,
    held_out: Mapping[str, Encoded],
    details: dict[str, Any] | None,
    devices: Devices,
) -> Evaluator | None:
    if not held_out:
        return None
    predict = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)

    def evaluate(
        params: Params, frozen: FrozenInputs, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        del frozen

        def logits_of(encoded: Encoded) -> Logits:
            return predict(params, encoded, before_batch)

        return validation_measures(data, config.task, held_out, logits_of, details)

    return evaluate

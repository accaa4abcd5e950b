"""Fine-tuning: from a configuration to a model of one task, alone or with a fine-tuned teacher (second distillation).

Everything that a user can get wrong is looked at here, before anything is compiled.
"""

from __future__ import annotations

import contextlib
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

from distil_jax.config import Config, Evaluation, require
from distil_jax.errors import UserError
from distil_jax.models import TaskModel
from distil_jax.runs import (
    Watchdog,
    announce,
    fingerprint,
    first_process_in,
    keep_model_file,
    open_run_folder,
    write_atomically,
)
from distil_jax.tasks.augment import augment_ids, continuation_table
from distil_jax.tasks.batches import Batch, choose_buckets, collate, steps_per_epoch, training_plan
from distil_jax.tasks.class_weights import chosen_weights
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.data.report import encoded_lines
from distil_jax.tasks.encode import Encoded, encode_examples
from distil_jax.tasks.examples import TaskData
from distil_jax.tasks.inference import SCORE, is_version_2, make_predictor, validation_measures
from distil_jax.tasks.learner import Learner, read_learner
from distil_jax.tasks.losses import Models, Params
from distil_jax.tasks.step import TaskFrozenInputs, TaskSetup, make_task_step
from distil_jax.tasks.testing import Tested, labelled_tests, measured_tests, untested
from distil_jax.training.flops import encoder_flops
from distil_jax.training.loop import Evaluator, RunSpec, TrainResult, run_training
from distil_jax.training.parallel import Devices, check_batch, make_devices
from distil_jax.training.selection import Selection

RESULT_FILE = "result.json"
_UNTESTED = "untested"  # in a result: labelled test sets that several processes left to a single one
_STEPS_A_PROGRAM = 50  # fewer steps with a length are not worth compiling for it


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A finished fine-tuning: the run, the task, the measures of the chosen step, and what the user should hear."""

    outcome: TrainResult
    data: TaskData
    measures: Mapping[str, float]
    notes: tuple[str, ...]


def finetune(config: Config, data: TaskData | None = None) -> FineTuned:
    """Fine-tune `model.initial` on a task; with `teacher.path` it also learns from that model of the same task.

    With `model.freeze_encoder` the task head alone is trained. BERT's pooler belongs to the encoder and stays as it
    is, random where the folder of `model.initial` has none.

    Args:
        config: a configuration with run.output, model.initial and task.name.
        data: the task's data where it is loaded already; None loads it.

    Raises:
        UserError: settings, data, models or the run's folder do not fit each other.
    """
    require(config, "run.output", "model.initial", "task.name")
    _check_evaluation(config.evaluation)
    with Watchdog(config) as watch:
        return _finetune(config, data, watch)


def _finetune(config: Config, data: TaskData | None, watch: Watchdog) -> FineTuned:
    if data is None:
        data = load_task(config.task, config.run.seed)
        announce(data.report.lines())
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
    told = (f"{name}: {note}" for name, encoded in sets.items() for note in encoded.notes)
    notes = (*data.notes, *learner.notes, *told)
    announce(encoded_lines({name: encoded.ids for name, encoded in sets.items()}, learner.tokenizer.unk_id))
    with first_process_in(partial(open_run_folder, folder, config, inputs, "finetune")):
        facts = _model_facts(config, data, learner)
        model_file = keep_model_file(folder, facts, learner.tokenizer, learner.encoder.family)
        started = time.monotonic()
        job = make_job(config, data, learner, train, held_out, model_file)
        outcome = run_training(job, devices, watch)
        measures = outcome.evaluations.get(outcome.best_step, {})
        kept = outcome.resumed_from == outcome.step and (folder / RESULT_FILE).is_file()
        if main and (not kept or wants_tests(folder)):
            seconds = None if kept else time.monotonic() - started
            tested = _tested(config, data, learner, outcome, devices, watch)
            measures, notes = {**measures, **tested.measures}, (*notes, *tested.notes)
            _write_result(folder, config, data, outcome, measures, seconds, notes, tested.untested)
    return FineTuned(outcome, data, measures, notes)


def _check_evaluation(settings: Evaluation) -> None:
    """A score of some rows would look like one of all, and nothing is masked here."""
    given = [f"evaluation.{name}" for name in ("rows", "seed") if getattr(settings, name)]
    if given:
        raise UserError(f"{' and '.join(given)}: finetune measures whole validation sets, without masks; leave it at 0")


def _check_data(config: Config, data: TaskData) -> None:
    if not data.train:
        where = config.task.source or "its dataset"
        raise UserError(f"task {data.spec.name}: no training data in {where}; give task.train or another task.source")
    settings = config.task
    chosen_weights(settings, data)
    if (settings.word_masking or settings.word_shuffling) and data.spec.kind != "sequence":
        raise UserError(
            f"task.word_masking and task.word_shuffling: only for whole texts, not for {data.spec.name}; set both to 0"
        )


def make_job(
    config: Config,
    data: TaskData,
    learner: Learner,
    train: Encoded,
    held_out: Mapping[str, Encoded],
    model_file: Mapping[str, Any],
) -> RunSpec:
    """The run that trains `learner` on `train` and is measured on `held_out`.

    Args:
        config: its settings.
        data: the task, and the examples that `train` was made from.
        learner: the models.
        train: encoded examples.
        held_out: encoded examples by the name of their set; empty: nothing is measured.
        model_file: the contents of the run's model.json.

    Raises:
        UserError: finetune.metric is not measured here.
    """
    dtype, attention = jnp.dtype(config.training.compute_dtype), config.training.attention
    model = TaskModel(learner.encoder, learner.head, dtype, attention, config.training.remat)
    teacher = None if learner.teacher is None else TaskModel(*learner.teacher[:2], dtype, attention)
    trainable = ("task_head",) if config.model.freeze_encoder else ("encoder", "task_head")
    setup = TaskSetup(Models(model, teacher), config.finetune, config.training.micro_batch_size, trainable)
    per_epoch, steps = steps_per_epoch(len(train), config.training.batch_size), _steps(config, train)
    measures = _measure_names(data)
    selection = Selection(_measure(config), config.finetune.patience)
    if selection.measure not in measures:
        raise UserError(
            f"finetune.metric = {selection.measure!r}: not measured here; choose from {', '.join(measures)}"
        )
    return RunSpec(
        config=config,
        folder=Path(config.run.output),
        steps=steps,
        params=learner.params,
        trainable=trainable,
        constants=TaskFrozenInputs(_teacher_params(config, learner), np.int32(config.run.seed)),
        make_step=partial(make_task_step, setup),
        make_batches=partial(_batches, config, data, learner, train),
        batch_rows=lambda step: _plan(config, learner, train)(step)[1],
        make_evaluator=partial(_evaluator, config, data, model, held_out),
        model_file=model_file,
        flops_per_token=_flops_per_token(learner, float(train.lengths.mean()), config.model.freeze_encoder),
        evaluate_every=_evaluate_every(config, per_epoch, steps),
        evaluate_start=False,
        selection=selection if held_out and config.finetune.keep == "best" else None,
    )


def _model_facts(config: Config, data: TaskData, learner: Learner) -> dict[str, Any]:
    """What model.json says of the run, so that its checkpoints can be used without its inputs."""
    return {
        "model": dataclasses.asdict(learner.encoder),
        "head": dataclasses.asdict(learner.head),
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


def _flops_per_token(learner: Learner, length: float, frozen: bool) -> float:
    forward = 0.0 if learner.teacher is None else encoder_flops(learner.teacher[0], round(length))
    return forward + (1 if frozen else 3) * encoder_flops(learner.encoder, round(length))


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
    weights = chosen_weights(settings, data)
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
        return validation_measures(data, config.task, held_out, lambda encoded: predict(params, encoded, go))

    return evaluate


def _tested(
    config: Config, data: TaskData, learner: Learner, outcome: TrainResult, devices: Devices, watch: Watchdog
) -> Tested:
    """Measures on labelled test sets; by one process alone, as a checkpoint is read for them."""
    tests = labelled_tests(data)
    if not tests:
        return Tested()
    if jax.process_count() > 1:
        return untested(tests)
    model = TaskModel(
        learner.encoder, learner.head, jnp.dtype(config.training.compute_dtype), config.training.attention
    )
    with watch.preemption.interruptible():
        return measured_tests(config, data, tests, model, learner.tokenizer, outcome, devices, watch.go)


def measured(config: Config, data: TaskData, measures: Mapping[str, float]) -> dict[str, Any]:
    """The fields of a result that say what was measured on which task."""
    return {
        "task": data.spec.name,
        "title": data.spec.title,
        "seed": config.run.seed,
        "score": measures.get(SCORE),
        "measures": dict(measures),
    }


def wants_tests(folder: Path) -> bool:
    """Whether a finished run has test sets that several processes left to this one."""
    with contextlib.suppress(OSError, ValueError, RecursionError):  # damaged: whoever reads it says so
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        return jax.process_count() == 1 and isinstance(result, dict) and bool(result.get(_UNTESTED))
    return False


def _write_result(
    folder: Path,
    config: Config,
    data: TaskData,
    outcome: TrainResult,
    measures: Mapping[str, float],
    seconds: float | None,
    notes: Sequence[str],
    waiting: Sequence[str],
) -> None:
    """What tables are made from; written last, so that its presence says that the run is finished.

    Where `seconds` is None, the run was finished before, and what that took stays as it is.
    """
    path = folder / RESULT_FILE
    result: dict[str, Any] = {
        **measured(config, data, measures),
        "step": outcome.best_step,
        "steps": outcome.step,
        "examples": len(data.train),
        "seconds": round(seconds or 0.0, 1),
        "resumed_from": outcome.resumed_from,
        "skipped_steps": outcome.skipped_steps,
        "notes": list(notes),
    }
    if seconds is None:
        before = json.loads(path.read_text(encoding="utf-8"))
        result |= {name: before[name] for name in ("seconds", "resumed_from", "skipped_steps") if name in before}
    if waiting:
        result[_UNTESTED] = list(waiting)
    write_atomically(path, json.dumps(result, indent=2) + "\n")

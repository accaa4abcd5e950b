"""Fine-tuning: a model of one task, alone or with a fine-tuned teacher (second distillation)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from distil_jax.config import Config, require
from distil_jax.errors import UserError
from distil_jax.runs import Watchdog, announce, fingerprint, first_process_in, keep_model_file, open_run_folder
from distil_jax.tasks import Encoded, TaskData, encoded_lines, load_task, with_unlabelled
from distil_jax.training.augmentation import make_copies
from distil_jax.training.loop import TrainResult, run_training
from distil_jax.training.parallel import check_batch, devices_of
from distil_jax.training.task_models import (
    TaskTraining,
    check_data,
    check_evaluation,
    known_labels,
    read_task_training,
    teacher_paths,
)
from distil_jax.training.task_phases import phase_lines, plan_phases
from distil_jax.training.task_result import RESULT_FILE, tested_result, wants_tests, write_result
from distil_jax.training.task_run import task_model_facts, task_run_spec


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A finished fine-tuning: the run, the task, the measures of the chosen step, and notes for the user.

    `late_notes` are those of `notes` that could not be printed before training.
    """

    result: TrainResult
    data: TaskData
    measures: Mapping[str, float]
    notes: tuple[str, ...]
    late_notes: tuple[str, ...] = ()


def finetune(config: Config, data: TaskData | None = None) -> FineTuned:
    """Fine-tune `model.initial` on a task; with `teacher.path` it also learns from that model of the same task.

    Rows of `task.unlabelled` are learned from the teacher alone.

    With `model.freeze_encoder` the task head alone is trained. BERT's pooler belongs to the encoder and stays as it
    is, random where the folder of `model.initial` has none.

    Args:
        config: a configuration with run.output, model.initial and task.name.
        data: the task's data where it is loaded already; None loads it.

    Raises:
        UserError: settings, data, models or the run's folder do not fit each other; before anything is compiled.
    """
    require(config, "run.output", "model.initial", "task.name")
    check_evaluation(config.evaluation)
    with Watchdog(config) as watchdog:
        if data is None:
            data = load_task(config.task, config.run.seed, known_labels(config))
            announce(data.report.lines())
        check_data(config, data)
        return _finetune(config, data, read_task_training(config, data), watchdog)


def _finetune(config: Config, data: TaskData, training: TaskTraining, watchdog: Watchdog) -> FineTuned:
    train, held_out = _encoded(config, data, training)
    copies = make_copies(config, training, train)
    if copies is not None:
        announce([copies.line])
        train = copies.added_to(train)
    devices = devices_of(config.parallel)
    check_batch(config.training.batch_size, devices.count)
    inputs = {"task": data.sha256, "model.initial": fingerprint(training.params)}
    for (setting, path), teacher in zip(teacher_paths(config), training.teachers, strict=True):
        inputs[setting if setting not in inputs else f"{setting} ({path})"] = fingerprint(teacher.params)
    sets = {"train": train, **held_out}
    encoding_notes = [f"{name}: {note}, of {len(one):,} rows" for name, one in sets.items() for note in one.notes]
    announce(encoded_lines({name: encoded.ids for name, encoded in sets.items()}, training.tokenizer.unk_id))
    announce(phase_lines(plan_phases(config, train)))
    announce(f"note: {note}" for note in (*training.notes, *encoding_notes))
    notes, late_notes = (*data.notes, *training.notes, *encoding_notes), ()
    folder, main = Path(config.run.output), jax.process_index() == 0
    with first_process_in(partial(open_run_folder, folder, config, inputs, "finetune")):
        if copies is not None and main:
            copies.save(folder)
        facts = task_model_facts(config, data, training)
        model_file = keep_model_file(folder, facts, training.tokenizer, training.encoder.family)
        started = time.monotonic()
        details: dict[str, Any] = {}  # of the newest evaluation
        spec = task_run_spec(config, data, training, train, held_out, model_file, details, devices.count)
        result = run_training(spec, devices, watchdog)
        if result.best_step != max(result.evaluations, default=0):
            details = {}
        measures = result.evaluations.get(result.best_step, {})
        finished_before = result.resumed_from == result.step and (folder / RESULT_FILE).is_file()
        if main and (not finished_before or wants_tests(folder)):
            seconds = None if finished_before else time.monotonic() - started
            tested = tested_result(config, data, training, held_out, result, details, devices, watchdog)
            measures, late_notes = {**measures, **tested.measures}, tested.notes
            write_result(config, data, result, measures, seconds, (*notes, *late_notes), tested)
    return FineTuned(result, data, measures, (*notes, *late_notes), late_notes)


def _encoded(config: Config, data: TaskData, training: TaskTraining) -> tuple[Encoded, dict[str, Encoded]]:
    """The training set and the validation sets as token ids."""
    encode = data.spec.kind.encode
    train = encode(training.tokenizer, data.train, config.task, training=True) if data.train else None
    if train is not None and not len(train):
        raise UserError(f"task {data.spec.name}: no training example has an answer that tokens cover; check task.train")
    if data.unlabelled:
        train = with_unlabelled(train, encode(training.tokenizer, data.unlabelled, config.task))
    assert train is not None  # `check_data` has seen to it
    held_out = data.validation.items()
    return train, {name: encode(training.tokenizer, examples, config.task) for name, examples in held_out}

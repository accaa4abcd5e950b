"""What a fine-tuning leaves besides its checkpoints: result.json, and measures of labelled test sets."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from distil_jax.config import Config, TaskSettings
from distil_jax.hf import Tokenizer
from distil_jax.runs import Watchdog, write_atomically
from distil_jax.tasks import (
    SCORE,
    Encoded,
    Example,
    Logits,
    Predicted,
    TaskData,
    details_of,
    validation_measures,
)
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.inference import make_predictor
from distil_jax.training.loop import TrainResult
from distil_jax.training.parallel import Devices
from distil_jax.training.task_models import TaskTraining
from distil_jax.training.task_run import trained_network

RESULT_FILE = "result.json"
_UNTESTED = "untested"  # in a result: labelled test sets that several processes left to a single one


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
    with contextlib.suppress(OSError, ValueError, RecursionError):  # damaged: its readers report it
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        return jax.process_count() == 1 and isinstance(result, dict) and bool(result.get(_UNTESTED))
    return False


def write_result(
    config: Config,
    data: TaskData,
    result: TrainResult,
    measures: Mapping[str, float],
    seconds: float | None,
    notes: Sequence[str],
    tested: Tested,
) -> None:
    """Write what tables are made from; written last, so that its presence says that the run is finished.

    Where `seconds` is None, the run was finished before, and what that took stays as it is.
    """
    path = Path(config.run.output) / RESULT_FILE
    fields: dict[str, Any] = {
        **measured(config, data, measures),
        "step": result.best_step,
        "steps": result.step,
        "examples": len(data.train),
        "unlabelled": len(data.unlabelled),
        "seconds": round(seconds or 0.0, 1),
        "resumed_from": result.resumed_from,
        "skipped_steps": result.skipped_steps,
        "notes": list(notes),
    }
    if seconds is None:
        before = json.loads(path.read_text(encoding="utf-8"))
        fields |= {name: before[name] for name in ("seconds", "resumed_from", "skipped_steps") if name in before}
    if details := {name: values for name, values in tested.details.items() if values}:
        fields["details"] = details
    if tested.untested:
        fields[_UNTESTED] = list(tested.untested)
    write_atomically(path, json.dumps(fields, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Tested:
    """Measures of labelled test sets, notes on them, the sets that could not be measured, and details of all sets."""

    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def labelled_tests(data: TaskData) -> dict[str, Sequence[Example]]:
    """The test sets of which every label is known, by name."""
    label_of = data.spec.kind.label_of

    def is_labelled(examples: Sequence[Example]) -> bool:
        return bool(examples) and all(label_of(example) is not None for example in examples)

    return {name: examples for name, examples in data.test.items() if is_labelled(examples)}


def tested_result(
    config: Config,
    data: TaskData,
    training: TaskTraining,
    held_out: Mapping[str, Encoded],
    result: TrainResult,
    details: Mapping[str, Any],
    devices: Devices,
    watchdog: Watchdog,
) -> Tested:
    """Measures of the run's result on the labelled test sets, as `measures_on` has them, and details of all sets.

    One process alone measures, as a checkpoint is read for it; of several, the sets are left to a later run.

    Args:
        config: of the run.
        data: the task.
        training: what was trained.
        held_out: validation sets by name.
        result: the run, whose best checkpoint is in its folder.
        details: those of the validation sets at the chosen step, where it was measured last; else empty.
        devices: what it ran on.
        watchdog: of the run.
    """
    tests = labelled_tests(data)
    if jax.process_count() > 1:
        note = f"not measured by several processes: {', '.join(tests)}; run the same command again with one process"
        return Tested({}, (f"test: {note}",), tuple(tests)) if tests else Tested()
    unknown = held_out if data.spec.kind.details is not None and not details else {}
    if not tests and not unknown:
        return Tested(details=details)
    found = dict(details)
    with watchdog.preemption.interruptible():
        params = result.state.params
        if result.best_step != result.step:
            checkpoints = Checkpoints(Path(config.run.output) / "checkpoints", read_only=True)
            params = checkpoints.params(result.best_step, params)
        model = trained_network(config, training)
        logits_of = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)

        def predict(encoded: Encoded) -> Logits:
            return logits_of(params, encoded, watchdog.go)

        validation_measures(data, config.task, unknown, predict, found)
        tested = measures_on(data, config.task, tests, training.tokenizer, predict)
    return dataclasses.replace(tested, details={**found, **tested.details})


def measures_on(
    data: TaskData,
    settings: TaskSettings,
    tests: Mapping[str, Sequence[Example]],
    tokenizer: Tokenizer,
    predict: Callable[[Encoded], Logits],
) -> Tested:
    """Measures of a model on these sets: "test_accuracy", of several sets "test_matched_accuracy".

    Args:
        data: the task.
        settings: of its data.
        tests: labelled sets by name.
        tokenizer: of the model.
        predict: logits of every row of a set.
    """
    found: dict[str, float] = {}
    notes: list[str] = []
    details: dict[str, Any] = {}
    for name, examples in tests.items():
        encoded = data.spec.kind.encode(tokenizer, examples, settings)
        predicted = Predicted(predict(encoded), encoded, examples, settings)
        label = label_of_test(name, tests)
        details[label] = details_of(data, predicted)
        found |= {f"{label}_{key}": value for key, value in data.spec.kind.measure(data, predicted).items()}
        title = "test" if name == "test" else f"test ({name})"
        notes += [f"{title}: {note}" for note in encoded.notes]
    return Tested(found, tuple(notes), details=details)


def label_of_test(name: str, tests: Collection[str]) -> str:
    """What measures call a test set: "test" where there is one alone."""
    return "test" if len(tests) == 1 else f"test_{name}"

"""Predictions for test sets without public labels, in the form that the GLUE server takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.export import read_run
from distil_jax.models import TaskModel
from distil_jax.runs import write_atomically
from distil_jax.tasks import TaskData, TaskSpec
from distil_jax.training.inference import make_predictor
from distil_jax.training.parallel import make_devices

FOLDER = "server"
_LOWEST, _HIGHEST = 0.0, 5.0  # scores of STS-B


def wants_server_files(data: TaskData) -> bool:
    """Whether the server takes predictions of this task and there is something to predict."""
    return any(name in data.spec.server_file for name in data.test)


def write_server_files(
    run: Path, step: int, config: Config, data: Sequence[TaskData], folder: Path
) -> tuple[list[Path], list[str]]:
    """Predict test sets with the checkpoint `step` of a run and write a file for each.

    Args:
        run: the run's folder.
        step: its checkpoint.
        config: of the run; its [task] says how examples are cut.
        data: tasks with these classes: the run's own; for MNLI also the diagnostic set.
        folder: made if missing.

    Returns:
        The files, named as the server wants them, and notes: examples that were cut, indices that are missing.

    Raises:
        UserError: as `read_run`.
    """
    trained = read_run(run, step)
    if trained.head is None:
        raise UserError(f"{run}: a masked language model, which predicts no classes; give a fine-tuning run")
    model = TaskModel(trained.encoder, trained.head)
    devices = make_devices(config.parallel.mapping, config.parallel.devices)
    predict = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)
    params = devices.replicate(trained.params)
    written, notes = [], []
    for task in data:
        for name, file in task.spec.server_file.items():
            if name in task.test:
                encoded = task.spec.kind.encode(trained.tokenizer, task.test[name], config.task)
                logits = np.stack(predict(params, encoded))
                numbers = [example.id for example in task.test[name]]  # as published: skipped rows leave a gap
                rows = zip(numbers, spelled(task.spec, logits), strict=True)
                written.append(_write(folder / file, rows))
                notes += [f"{file}: {note}" for note in (*encoded.notes, *_gaps(numbers))]
    return written, notes


def spelled(spec: TaskSpec, logits: np.ndarray) -> list[str]:
    """Predictions as the server spells them, from logits [N, C] (scores [N, 1]).

    Scores are clipped to STS-B's range and rounded to three decimals.
    """
    if not spec.kind.has_classes:
        return [f"{score:.3f}" for score in np.clip(logits.reshape(len(logits)), _LOWEST, _HIGHEST)]
    names = spec.server_labels or spec.labels
    return [names[number] for number in logits.argmax(axis=-1)]


def _gaps(numbers: Sequence[str]) -> list[str]:
    """A line on the indices from 0 to the largest one that have no prediction, if any."""
    given = {int(number) for number in numbers if number.isdecimal()}
    missing = [number for number in range(max(given, default=-1) + 1) if number not in given]
    if not missing:
        return []
    indices = "index is" if len(missing) == 1 else "indices are"
    return [f"{len(missing):,} {indices} missing (first: {missing[0]}), as rows were skipped; the server takes no gaps"]


def _write(path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    lines = ["index\tprediction", *(f"{number}\t{prediction}" for number, prediction in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
    return path

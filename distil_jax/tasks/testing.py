"""Test sets whose labels are known (IMDb's, WNUT-17's, one's own), measured once, with the run's best checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distil_jax.config import Config, TaskSettings
from distil_jax.hf import Tokenizer
from distil_jax.models import TaskModel
from distil_jax.tasks.encode import Encoded, encode_examples
from distil_jax.tasks.examples import Example, QuestionExample, TaskData, TokenExample
from distil_jax.tasks.inference import Logits, make_predictor, measures_of
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.loop import TrainResult
from distil_jax.training.parallel import Devices


@dataclasses.dataclass(frozen=True)
class Tested:
    """Measures of labelled test sets, what the user should hear of them, and the sets that could not be measured."""

    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()


def labelled_tests(data: TaskData) -> dict[str, Sequence[Example]]:
    """The test sets of which every label is known, by name."""
    return {name: examples for name, examples in data.test.items() if examples and all(map(_is_labelled, examples))}


def _is_labelled(example: Example) -> bool:
    if isinstance(example, TokenExample):
        return example.tags is not None
    if isinstance(example, QuestionExample):
        return example.answers is not None
    return example.label is not None


def measured_tests(
    config: Config,
    data: TaskData,
    tests: Mapping[str, Sequence[Example]],
    model: TaskModel,
    tokenizer: Tokenizer,
    outcome: TrainResult,
    devices: Devices,
    go: Callable[[], None],
) -> Tested:
    """Measures of the run's result on these sets, as `measures_on` has them.

    Args:
        config: of the run.
        data: the task.
        tests: labelled sets by name.
        model: the network.
        tokenizer: of the model.
        outcome: the run, whose best checkpoint is in its folder.
        devices: what it ran on.
        go: is called before every batch.
    """
    params = outcome.state.params
    if outcome.best_step != outcome.step:
        checkpoints = Checkpoints(Path(config.run.output) / "checkpoints", read_only=True)
        params = checkpoints.params(outcome.best_step, params)
    predict = make_predictor(devices, model, config.evaluation.batch_size, config.finetune.buckets)
    return measures_on(data, config.task, tests, tokenizer, lambda encoded: predict(params, encoded, go))


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
    for name, examples in tests.items():
        encoded = encode_examples(tokenizer, data.spec.kind, examples, settings)
        measures = measures_of(data, settings, examples, encoded, predict(encoded))
        prefix = "test" if len(tests) == 1 else f"test_{name}"
        found |= {f"{prefix}_{key}": value for key, value in measures.items()}
        title = "test" if name == "test" else f"test ({name})"
        notes += [f"{title}: {note}" for note in encoded.notes]
    return Tested(found, tuple(notes))


def untested(tests: Mapping[str, Sequence[Example]]) -> Tested:
    """What is said of sets that wait for a single process."""
    note = f"not measured by several processes: {', '.join(tests)}; run the same command again with one process"
    return Tested({}, (f"test: {note}",), tuple(tests))

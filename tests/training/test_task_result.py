"""Labelled test sets are measured with the checkpoint that was chosen, once, and secret ones are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from distil_jax.config import Config
from distil_jax.tasks.examples import (
    ChoiceExample,
    Example,
    QuestionExample,
    SequenceExample,
    TaskData,
    TokenExample,
)
from distil_jax.tasks.registry import task_spec
from distil_jax.training import task_result
from distil_jax.training.finetune import finetune
from distil_jax.training.task_result import labelled_tests

TaskConfig = Callable[..., Config]
TASKS = {"sequence": "imdb", "token": "wnut17", "question": "squad", "choice": "swag"}  # one of each kind


@pytest.mark.parametrize("task", ["classification", "question"])
def test_the_test_set_is_measured_as_the_validation_set(task_config: TaskConfig, tmp_path: Path, task: str) -> None:
    """The same file for both, so that the measures have to be the same; the best checkpoint is not the last one."""
    source = task_config(task, tmp_path).task.train
    changes: dict[str, Any] = {"task.validation": source, "task.test": source, "training.epochs": 3}
    # A learning rate that destroys what was learned makes an early step the best.
    changes |= {"optimizer.learning_rate": 0.3, "optimizer.schedule": "constant"}
    found = finetune(task_config(task, tmp_path / "run", changes))
    measures = {name: value for name, value in found.measures.items() if not name.startswith("test_")}
    tested = {name.removeprefix("test_"): value for name, value in found.measures.items() if name.startswith("test_")}
    assert tested == {name: value for name, value in measures.items() if name != "score"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["measures"] == found.measures


def test_sets_with_a_secret_label_are_left_alone() -> None:
    known: dict[str, Example] = {
        "sequence": SequenceExample("0", "a", label=0),
        "token": TokenExample("0", ("a",), (0,)),
        "question": QuestionExample("0", "a", "b", ()),
        "choice": ChoiceExample("0", "a", ("b", "c"), 0),
    }
    secret: dict[str, Example] = {
        "sequence": SequenceExample("0", "a"),
        "token": TokenExample("0", ("a",)),
        "question": QuestionExample("0", "a", "b"),
        "choice": ChoiceExample("0", "a", ("b", "c")),
    }
    for kind, example in known.items():
        sets = {"open": [example], "mixed": [example, secret[kind]], "secret": [secret[kind]], "empty": []}
        data = TaskData(task_spec(TASKS[kind]), (), [], {}, sets, "")
        assert labelled_tests(data) == {"open": [example]}


class _TwoProcesses:
    """`jax` as one module sees it where there are two processes."""

    def __getattr__(self, name: str) -> Any:
        return (lambda: 2) if name == "process_count" else getattr(jax, name)


def test_sets_that_several_processes_leave_are_said_and_measured_by_one(
    task_config: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = task_config("classification", tmp_path).task.train
    config = task_config("classification", tmp_path / "run", {"task.test": source, "task.max_length": 8})
    path = tmp_path / "run" / "result.json"
    with monkeypatch.context() as patch:
        patch.setattr(task_result, "jax", _TwoProcesses())
        found = finetune(config)
    first, note = json.loads(path.read_text()), "test: not measured by several processes: test; run the same command"
    assert any(line.startswith(note) for line in found.notes) and first["notes"] == list(found.notes)
    assert first["untested"] == ["test"] and not any(name.startswith("test_") for name in first["measures"])
    found = finetune(config)
    second = json.loads(path.read_text())
    assert second["measures"]["test_accuracy"] >= 0 and "untested" not in second
    assert any(line.startswith("test: ") and line.endswith("examples cut to 8 tokens") for line in second["notes"])
    assert not any("several processes" in line for line in second["notes"])
    changed = dict.fromkeys(("measures", "notes", "untested", "details"), 0)
    assert {**second, **changed} == {**first, **changed}
    assert second["details"].keys() == {"validation", "test"} and "details" not in first
    assert first["measures"].items() <= second["measures"].items() == found.measures.items()
    finetune(config)
    assert json.loads(path.read_text()) == second

"""Class weights: by a rule as scikit-learn has it, or the user's own, in order or by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distil_jax.cli import main
from distil_jax.config import Config, TaskSettings
from distil_jax.errors import UserError
from distil_jax.runs import read_metrics
from distil_jax.tasks.class_weights import chosen_weights, given_weights
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import SequenceExample, TaskData
from distil_jax.tasks.registry import task_spec
from distil_jax.training.finetune import finetune

BALANCED = TaskSettings(class_weights="balanced")
TaskConfig = Callable[..., Config]
LABELS = ("good", "bad", "not sure")


def balanced(data: TaskData) -> np.ndarray:
    weights = chosen_weights(BALANCED, data)
    assert weights is not None
    return weights


def test_balanced_ones_are_scikit_learns(task_config: TaskConfig, tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    data = load_task(task_config("classification", tmp_path).task, 0)
    labels = np.array([example.label for example in data.train])  # type: ignore[union-attr]
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    np.testing.assert_allclose(balanced(data), expected, rtol=1e-6)


def test_positive_weights_are_negatives_over_positives() -> None:
    labels = [(1, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1)]
    examples = [SequenceExample(str(number), "a", None, label) for number, label in enumerate(labels)]
    data = TaskData(task_spec("multilabel"), ("x", "y", "z"), examples, {}, {}, "")
    np.testing.assert_array_equal(balanced(data), np.array([3, 1, 1], np.float32))


def test_class_sets_learn_with_class_weights(task_config: TaskConfig, tmp_path: Path) -> None:
    changes = {"task.class_weights": "balanced", "training.steps": 2}
    assert finetune(task_config("multilabel", tmp_path / "run", changes)).result.step == 2


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("1,3.5,0", (1, 3.5, 0)),
        (" 1  3.5 2e2", (1, 3.5, 200)),
        ("bad=3.5", (1, 3.5, 1)),
        ("not sure = 0.5, good=2, bad=3", (2, 3, 0.5)),
        ("bad=2,good=0", (0, 2, 1)),
        ("not sure=2", (1, 1, 2)),
    ],
)
def test_own_ones_in_order_or_by_name(text: str, weights: tuple[float, ...]) -> None:
    assert TaskSettings(class_weights=text).class_weights == text
    found = given_weights(text, LABELS)
    np.testing.assert_array_equal(found, np.array(weights, np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "text",
    ["", "fast", "-1,2", "nan,1", "inf,1", "1,2e6", "1,,2", "=1,=2", "bad=", "bad=-1", "bad=nan"],
)
def test_what_is_no_list_of_weights(text: str) -> None:
    with pytest.raises(
        UserError, match=r"task.class_weights = .*must be a text that is none, balanced, or numbers"
    ) as no:
        TaskSettings(class_weights=text)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2", "2 weights for the 3 classes good, bad, not sure"),
        ("1 2 3 4", "4 weights for the 3 classes"),
        ("bat=2", "'bat' is no class \\(there are good, bad, not sure\\)"),
        ("bad=2,bad=3", "'bad' is there twice"),
        ("1,bad=2", "'1,bad' is no class"),
    ],
)
def test_weights_of_other_classes(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        given_weights(text, LABELS)


def test_names_hold_commas_and_equals_signs() -> None:
    labels = ("yes, really", "a=b", "no")
    np.testing.assert_array_equal(given_weights("yes, really=2, a=b=3", labels), np.array([2, 3, 1], np.float32))


@pytest.mark.parametrize("text", ["0,0,0", "good=0,bad=0,not sure=0"])
def test_a_loss_that_no_class_counts_in_is_refused(text: str) -> None:
    data = TaskData(task_spec("classification"), LABELS, [], {}, {}, "")
    with pytest.raises(UserError, match="all weights are 0"):
        chosen_weights(TaskSettings(name="classification", class_weights=text), data)


def test_only_what_has_classes_has_weights() -> None:
    settings = TaskSettings(name="stsb", class_weights="1,2")
    with pytest.raises(UserError, match="only for classes and tags, not for stsb"):
        chosen_weights(settings, TaskData(task_spec("stsb"), (), [], {}, {}, ""))


def test_own_weights_are_learned_with(task_config: TaskConfig, tmp_path: Path) -> None:
    """Those that the rule gives, as numbers, train the very same; others do not."""

    def losses(name: str, weights: str) -> list[float]:
        changes = {"task.class_weights": weights, "training.epochs": 1}
        finetune(task_config("classification", tmp_path / name, changes))
        return [row["metrics"]["loss"] for row in read_metrics(tmp_path / name, "train")]

    data = load_task(task_config("classification", tmp_path).task, 0)
    same = ",".join(f"{name}={weight!r}" for name, weight in zip(data.labels, balanced(data).tolist(), strict=True))
    assert losses("rule", "balanced") == losses("own", same) != losses("other", "1,9")


def test_a_wrong_count_is_one_line_before_anything_is_written(
    task_config: TaskConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = task_config("classification", tmp_path / "run")
    given = {"run.output": config.run.output, "model.initial": config.model.initial, "task.train": config.task.train}
    flags = [f"--{name}={value}" for name, value in given.items()]
    assert (
        main(["finetune", "--task", "classification", *flags, "--task.max-length=24", "--task.class-weights=1,2,3"])
        == 2
    )
    out, err = capsys.readouterr()
    assert out == "" and "3 weights for the 2 classes bad, good" in err.splitlines()[-1], json.dumps(err)
    assert not (tmp_path / "run").exists()

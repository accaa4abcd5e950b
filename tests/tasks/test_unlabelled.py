"""Rows without labels and rows with probabilities: what is read, and what a student learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import Config, TaskSettings
from distil_jax.errors import UserError
from distil_jax.export import export
from distil_jax.runs import read_metrics
from distil_jax.tasks import KINDS, Encoded, collate, load_task, task_spec, with_unlabelled
from distil_jax.tasks.unlabelled import read_unlabelled
from distil_jax.training.finetune import finetune

TaskConfig = Callable[..., Config]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.txt", "the cat sings\n\nthe dog runs\n"),
        ("rows.csv", "review,other\nthe cat sings,1\nthe dog runs,2\n"),
        ("rows.jsonl", '{"text": "the cat sings"}\n{"text": "the dog runs", "label": "bad"}\n'),
    ],
)
def test_rows_are_read_from_any_format(name: str, text: str, tmp_path: Path) -> None:
    settings = TaskSettings(name="classification", text="review", unlabelled=write(tmp_path / name, text))
    examples, report = read_unlabelled(settings, task_spec("classification"), ())
    assert [(example.text, example.label) for example in examples] == [  # type: ignore[union-attr]
        ("the cat sings", None),
        ("the dog runs", None),
    ]
    assert (report.examples, report.rows, report.role) == (2, 2, "unlabelled")


def test_the_column_that_was_read_is_named_and_the_setting_that_names_another(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "sentence,other\nthe cat,1\n")
    _, report = read_unlabelled(TaskSettings(name="classification", unlabelled=path), task_spec("classification"), ())
    assert report.columns == {"text": "sentence"}
    path = write(tmp_path / "other.csv", "body\nthe cat\n")
    with pytest.raises(UserError, match=r"'text' or 'sentence' \(found: body; task\.text names another\)"):
        read_unlabelled(TaskSettings(name="classification", unlabelled=path), task_spec("classification"), ())
    with pytest.raises(UserError, match=r"'sentence' or 'text' \(found: body\)"):
        read_unlabelled(TaskSettings(name="sst2", unlabelled=path), task_spec("sst2"), ())


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text\nthe cat\n \nthe dog\n")
    with pytest.raises(UserError, match=r"rows.csv.*3"):
        read_unlabelled(TaskSettings(name="classification", unlabelled=path), task_spec("classification"), ())
    settings = TaskSettings(name="classification", unlabelled=path, on_error="skip")
    examples, report = read_unlabelled(settings, task_spec("classification"), ())
    assert (len(examples), report.left_out) == (2, 1)


@pytest.fixture(scope="module")
def teacher(task_config: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function: own task -> folder of a model that is fine-tuned on it."""
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp("teacher")
            finetune(task_config(name, folder / "run", {"training.epochs": 8}))
            export(folder / "run", folder / "model")
            made[name] = str(folder / "model")
        return made[name]

    return make


def bare_rows(task_files: dict[str, dict[str, Any]], name: str, path: Path) -> str:
    """The rows of a tiny task without their labels."""
    rows = [json.loads(line) for line in Path(task_files[name]["task.train"]).read_text().splitlines()]
    hidden = {"label", "tags", "answers"}
    lines = [json.dumps({key: value for key, value in row.items() if key not in hidden}) for row in rows]
    return write(path, "\n".join(lines) + "\n")


def test_a_student_learns_from_rows_without_any_label(
    task_config: TaskConfig,
    task_files: dict[str, dict[str, Any]],
    teacher: Callable[[str], str],
    tmp_path: Path,
) -> None:
    changes = {
        "task.train": "",
        "task.validation": task_files["classification"]["task.train"],
        "task.unlabelled": bare_rows(task_files, "classification", tmp_path / "rows.jsonl"),
        "teacher.path": teacher("classification"),
        "training.epochs": 8,
    }
    found = finetune(task_config("classification", tmp_path / "run", changes))
    rows = [row["metrics"] for row in read_metrics(tmp_path / "run", "train")]
    assert all("loss_task" not in row for row in rows)
    assert rows[-1]["loss_kl"] < 0.3 * rows[0]["loss_kl"]
    assert found.measures["score"] >= 0.75
    assert found.data.labels == ("bad", "good")
    export(tmp_path / "run", tmp_path / "student")
    assert "labelled 40 rows" in (tmp_path / "student" / "README.md").read_text()
    assert any("unlabelled: 40 rows" in line for line in found.data.report.lines())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel", "regression", "tagging", "question", "choice"])
def test_every_kind_takes_rows_without_labels_beside_others(
    kind: str,
    task_config: TaskConfig,
    task_files: dict[str, dict[str, Any]],
    teacher: Callable[[str], str],
    tmp_path: Path,
) -> None:
    changes = {
        "task.unlabelled": bare_rows(task_files, kind, tmp_path / "rows.jsonl"),
        "teacher.path": teacher(kind),
        "training.steps": 2,
    }
    found = finetune(task_config(kind, tmp_path / "run", changes))
    assert len(found.data.unlabelled) in (16, 40)
    assert all(np.isfinite(row["metrics"]["loss_kl"]) for row in read_metrics(tmp_path / "run", "train"))


def test_the_loss_against_labels_counts_rows_with_one_alone() -> None:
    def encoded(labels: list[np.ndarray] | None, first: int) -> Encoded:
        ids = [np.arange(first, first + 3, dtype=np.int32)] * 2
        return Encoded(ids, [np.zeros_like(row) for row in ids], labels, np.array([3, 3]), 0, ())

    kind = KINDS["class_sets"]
    found = with_unlabelled(encoded([*np.eye(2, dtype=np.float32)], 5), encoded(None, 9))
    batch = collate(found, kind, np.array([0, 2, 3]), 8, 4)
    assert batch.weights.tolist() == pytest.approx([1, 0, 0, 0])
    assert batch.shares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert batch.inputs.ids[1, :3].tolist() == [9, 10, 11]
    without = collate(found, kind, np.array([2, 3]), 8, 2)
    assert without.weights.tolist() == [0, 0] and without.shares.tolist() == [0.5, 0.5]
    weighted = collate(found, kind, np.array([0, 2, 3]), 8, 4, np.array([3.0, 1.0], np.float32))
    assert weighted.weights.tolist() == [pytest.approx([3, 1]), [0, 0], [0, 0], [0, 0]]
    alone = collate(with_unlabelled(None, encoded(None, 9)), kind, np.array([0, 1]), 8, 2)
    assert alone.labels is None and alone.weights is None
    assert alone.shares.tolist() == [0.5, 0.5]


def test_rows_without_labels_take_no_part_in_class_weights() -> None:
    ids = [np.arange(3, dtype=np.int32)] * 3
    labels = [np.array(label, np.int32) for label in (1, 1, 0)]
    first = Encoded(ids, ids, labels, np.array([3, 3, 3]), 0, ())
    found = with_unlabelled(first, Encoded(ids[:1], ids[:1], None, np.array([3]), 0, ()))
    weights = np.array([9.0, 1.0], np.float32)
    batch = collate(found, KINDS["classes"], np.array([0, 1, 2, 3]), 8, 4, weights)
    assert batch.weights.tolist() == pytest.approx([1 / 11, 1 / 11, 9 / 11, 0])


def test_rows_without_labels_need_a_teacher(
    task_config: TaskConfig, task_files: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    rows = bare_rows(task_files, "classification", tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="teacher.path"):
        finetune(task_config("classification", tmp_path / "run", {"task.unlabelled": rows}))


def soft(tmp_path: Path, rows: str) -> dict[str, Any]:
    return {
        "name": "classification",
        "train": write(tmp_path / "soft.csv", "text,p_bad,p_good\n" + rows),
        "soft_labels": ("p_bad", "p_good"),
    }


def test_probabilities_are_labels(tmp_path: Path) -> None:
    given = soft(tmp_path, "the cat,0.25,0.75\nthe dog,0.99,0.02\nthe tree,1,0\na house,0,1\n")
    data = load_task(TaskSettings(**given, labels=("bad", "good"), validation_fraction=0.25), 0)
    assert data.labels == ("bad", "good")
    every = sorted([*data.train, *data.validation["validation"]], key=lambda example: int(example.id))
    labels = [example.label for example in every]  # type: ignore[union-attr]
    assert labels == [(0.25, 0.75), (0.99 / 1.01, 0.02 / 1.01), (1, 0), (0, 1)]
    assert data.report.sets[0].labels == {"bad": 2, "good": 2}


@pytest.mark.parametrize("row", ["the cat,0.5,0.7", "the cat,-0.5,1.5", "the cat,yes,no"])
def test_what_is_no_probability_is_refused(row: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"soft.csv.*2.*p_bad"):
        load_task(TaskSettings(**soft(tmp_path, row + "\nthe dog,0,1\n")), 0)


@pytest.mark.slow
def test_a_student_learns_probabilities(task_config: TaskConfig, tmp_path: Path) -> None:
    given = soft(tmp_path, "".join(f"the cat {word},0.3,0.7\n" for word in ("sings", "runs", "near") * 8))
    changes = {f"task.{name}": value for name, value in given.items() if name != "name"}
    finetune(task_config("classification", tmp_path / "run", {**changes, "training.epochs": 30}))
    loss = [row["metrics"]["loss"] for row in read_metrics(tmp_path / "run", "train")][-1]
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    assert entropy - 1e-4 <= loss < entropy + 0.05

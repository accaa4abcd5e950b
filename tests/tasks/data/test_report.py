"""What is said of data before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distil_jax.tasks.data.report import DataReport


def test_rows_columns_and_classes_are_counted(tmp_path: Path, write: Any, load: Any) -> None:
    labels = ["positive"] * 9 + ["Positive"] + ["negative"] * 9 + ["-"] * 4 + [""]
    lines = [f"review {number},{label}" for number, label in enumerate(labels)]
    train = write(tmp_path / "a.csv", "\n".join(["review,stars", *lines]))
    data = load("classification", train=train, validation=train, text="review", label="stars", on_error="skip")
    first = data.report.sets[0]
    assert (first.rows, first.left_out, first.examples) == (24, 1, 23)
    assert first.columns == {"text": "review", "label": "stars"}
    assert first.labels == {"-": 4, "Positive": 1, "negative": 9, "positive": 9}
    warnings = "\n".join(data.report.warnings)
    assert "'Positive' (1), 'positive' (9)" in warnings and "'-' (4)" in warnings
    assert any("once or twice" in text and "'Positive' (1)" in text for text in data.report.warnings)
    text = "\n".join(data.report.lines())
    for fact in ("24 rows read", "1 left out", train, "label = 'stars'", "negative 9", "accuracy", "warning: "):
        assert fact in text
    assert json.loads(json.dumps(data.report.to_dict()))["sets"][0]["labels"]["-"] == 4


def test_nothing_is_warned_of_plain_data(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\n" + "a,yes\nb,no\n" * 5)
    data = load("classification", train=train, validation=train)
    assert data.report.warnings == () and data.report.notes == data.notes == ()


def test_the_tag_scheme_and_its_measure(tmp_path: Path, write: Any, load: Any) -> None:
    made = [{"words": ["Ann", "Lee", "met", "Bo"], "tags": ["B-PER", "E-PER", "O", "S-PER"]}] * 4
    train = write(tmp_path / "a.jsonl", made)
    data = load("tagging", train=train, validation=train)
    assert (data.scheme, data.spec.metrics[0]) == ("IOBES", "entity_f1")
    assert data.labels == ("O", "B-PER", "E-PER", "S-PER")
    assert data.report.sets[0].labels == {"O": 4, "B-PER": 4, "E-PER": 4, "S-PER": 4}
    assert any("IOBES" in line and "entity_f1" in line for line in data.report.lines())
    segments = write(tmp_path / "b.jsonl", [{"words": list("abcd"), "tags": ["B", "M", "E", "S"]}] * 4)
    data = load("tagging", train=segments, validation=segments)
    assert (data.scheme, data.labels, data.spec.metrics[0]) == ("BMES", ("B", "E", "M", "S"), "entity_f1")


def test_labels_of_other_kinds_are_counted(tmp_path: Path, write: Any, load: Any) -> None:
    scores = write(tmp_path / "a.csv", "text,label\na,1\nb,2.5\n")
    (counted,) = load("regression", train=scores, validation=scores).report.sets[0].labels.items()
    assert "from 1 to 2.5" in counted[0] and counted[1] == 2
    asked = [
        {"question": "q", "context": "abc", "answers": answers} for answers in ([], [{"text": "b", "answer_start": 1}])
    ]
    path = write(tmp_path / "b.jsonl", asked)
    assert load("question", train=path, validation=path).report.sets[0].labels == {
        "answered": 1,
        "without an answer": 1,
    }
    sets = write(tmp_path / "c.jsonl", [{"text": "t", "label": label} for label in (["a", "b"], ["b"], [])])
    assert load("multilabel", train=sets, validation=sets).report.sets[0].labels == {"a": 1, "b": 2}
    choices = [{"text": "t", "endings": ["a", "b", "c"][:count], "label": label} for count, label in ((2, 0), (3, 2))]
    path = write(tmp_path / "d.jsonl", choices)
    assert load("choice", train=path, validation=path).report.sets[0].labels == {"0": 1, "2": 1}


def test_an_empty_report_says_nothing() -> None:
    assert DataReport().lines() == []


def test_spellings_that_look_alike_are_warned_of(tmp_path: Path, write: Any, load: Any) -> None:
    names = ["caf\u00e9", "cafe\u0301", "tea  time", "Tea time", "milk"] * 3
    train = write(tmp_path / "a.jsonl", [{"text": "t", "label": name} for name in names])
    data = load("classification", train=train, validation=train)
    assert len(data.labels) == 5 and len(data.report.warnings) == 2

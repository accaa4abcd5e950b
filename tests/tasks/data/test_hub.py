"""Data sets of the hub (real `datasets` objects, no network) and TensorFlow data sets (a stub)."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import Answer, ChoiceExample, TokenExample


def load(name: str, source: str = "", **settings: Any) -> Any:
    return load_task(TaskSettings(name=name, source=source, **settings), 0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[tuple[str, str | None, str | None], Any], list[Any]]:
    """A dict {(id, config, revision): DatasetDict} that stands for the hub, and the list of what was asked for."""
    import datasets

    shelf: dict[tuple[str, str | None, str | None], Any] = {}
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None = None, *, revision: str | None = None) -> Any:
        asked.append((name, config, revision))
        if (name, config, revision) not in shelf:
            raise FileNotFoundError(f"no {name}\nand more")
        return shelf[name, config, revision]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return shelf, asked


def table(columns: dict[str, list[Any]], **features: Any) -> Any:
    import datasets

    data = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    return data


def splits(**parts: Any) -> Any:
    import datasets

    return datasets.DatasetDict({**parts})


def pairs(count: int, label: Any, label_class: Any) -> Any:
    columns = {"premise": [f"p{i}" for i in range(count)], "hypothesis": ["h"] * count, "genre": ["x"] * count}
    return table({**columns, "label": [label] * count, "idx": [*range(5, 5 + count)]}, label=label_class)


def test_glue_from_the_hub(hub: Any) -> None:
    import datasets

    shelf, asked = hub
    classes = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    names = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
    parts = {name: pairs(2, -1 if "test" in name else 2, classes) for name in names}
    shelf["nyu-mll/glue", "mnli", None] = splits(train=pairs(2500, 1, classes), **parts)
    data = load("mnli")
    assert asked == [("nyu-mll/glue", "mnli", None)]
    assert len(data.train) == 2500 and data.train[2499].text == "p2499"
    assert [(e.id, e.pair, e.label) for e in data.validation["mismatched"]] == [("5", "h", 2), ("6", "h", 2)]
    assert {name: [e.label for e in part] for name, part in data.test.items()} == {
        "matched": [None, None],
        "mismatched": [None, None],
    }


def test_class_names_of_the_data_set_decide_where_they_are_the_task_s(hub: Any) -> None:
    import datasets

    shelf, asked = hub
    for names, number in ((["positive", "negative"], 0), (["bad", "good"], 1)):
        rows = table({"sentence": ["fine"], "label": [number]}, label=datasets.ClassLabel(names=names))
        shelf["someone/sst", None, None] = splits(train=rows, dev=rows)
        data = load("sst2", "hf:someone/sst")
        assert [e.label for e in data.train] == [1]
        assert len(data.validation["validation"]) == 1
    assert ("someone/sst", "sst2", None) in asked


def test_other_kinds_from_the_hub(hub: Any) -> None:
    import datasets

    shelf, asked = hub
    tags = datasets.List(
        datasets.ClassLabel(names=["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"])
    )
    rows = table({"id": ["0"], "tokens": [["Bo", "ran"]], "ner_tags": [[1, 0]]}, ner_tags=tags)
    shelf["eriktks/conll2003", None, "refs/convert/parquet"] = splits(train=rows, validation=rows, test=rows)
    data = load("conll2003")
    assert asked[-1] == ("eriktks/conll2003", None, "refs/convert/parquet") and len(asked) > 1  # the first has none
    assert data.train == [TokenExample("0", ("Bo", "ran"), (1, 0))]

    rows = table(
        {
            "id": ["a"],
            "question": ["Who?"],
            "context": ["It was Bo."],
            "answers": [{"text": ["Bo"], "answer_start": [7]}],
        }
    )
    shelf["rajpurkar/squad", None, None] = splits(train=rows, validation=rows)
    assert load("squad").train[0].answers == (Answer("Bo", 7),)

    rows = table(
        {"id": [3], "question_propmt": ["Tea. You"], "candidate_answers": [["a", "b"]], "correct_answer_idx": [1]}
    )
    shelf["jaredfern/codah", "fold_0", None] = splits(train=rows, validation=rows, test=rows)
    assert load("codah").train == [ChoiceExample("3", "Tea. You", ("a", "b"), 1)]

    ending = {f"ending{i}": [f"e{i}"] for i in range(4)}
    rows = table(
        {"sent1": ["One."], "sent2": ["She"], **ending, "label": [3]}, label=datasets.ClassLabel(names=list("0123"))
    )
    shelf["allenai/swag", "regular", None] = splits(train=rows, validation=rows)
    assert load("swag").train[0] == ChoiceExample("0", "One.", ("She e0", "She e1", "She e2", "She e3"), 3)


def test_own_data_from_the_hub(hub: Any) -> None:
    import datasets

    shelf, _ = hub
    classes = datasets.ClassLabel(names=["zeal", "anger"])
    rows = table({"body": ["a", "b"], "mood": [1, 0]}, mood=classes)
    shelf["me/moods", "small", None] = splits(train=rows, valid=rows)
    data = load("classification", "me/moods:small", text="body", label="mood")
    assert data.labels == ("zeal", "anger")  # the data set's order, not the alphabet's
    assert [e.label for e in data.train] == [1, 0]


def test_what_is_wrong_with_a_data_set_is_told_by_split_and_row(hub: Any) -> None:
    shelf, _ = hub
    shelf["nyu-mll/glue", "sst2", None] = splits(train=table({"sentence": ["a", None, " "], "label": [0, 1, 1]}))
    with pytest.raises(UserError, match=r"nyu-mll/glue \(sst2\), split train, row 2: column 'sentence' is empty"):
        load("sst2")
    shelf["nyu-mll/glue", "sst2", None] = splits(train=table({"sentence": ["a"], "label": [2]}))
    with pytest.raises(UserError, match=r"row 1: label 2 is out of range: 0 \(negative\) to 1 \(positive\)"):
        load("sst2")
    shelf["nyu-mll/glue", "sst2", None] = splits(train=table({"text": ["a"], "label": [2]}))
    with pytest.raises(UserError, match=r"split train: no column 'sentence' \(found: text, label\)"):
        load("sst2")
    shelf["nyu-mll/glue", "sst2", None] = splits(everything=table({"sentence": ["a"], "label": [1]}))
    with pytest.raises(UserError, match=r"no split that sst2 needs \(found: everything\)"):
        load("sst2")
    with pytest.raises(UserError, match=r"nyu-mll/glue \(cola\): cannot be opened \(no nyu-mll/glue\); check"):
        load("cola")


# TensorFlow data sets


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """A dict {name: {split: rows}} that stands for the prepared TensorFlow data sets."""
    shelf: dict[str, dict[str, list[dict[str, Any]]]] = {}

    class Builder:
        def __init__(self, name: str) -> None:
            self.parts, self.data_dir = shelf[name], "/data"
            first = next(iter(self.parts.values()))[0]
            names = {"label": types.SimpleNamespace(names=["negative", "positive"])} if name == "glue/sst2" else {}
            self.info = types.SimpleNamespace(features={key: names.get(key) for key in first}, splits=self.parts)

        def is_prepared(self) -> bool:
            return True

        def as_data_source(self, split: str) -> list[dict[str, Any]]:
            return self.parts[split]

    module = types.SimpleNamespace(builder=lambda name, **_: Builder(name))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return shelf


def test_tensorflow_data_sets_in_their_published_order(shop: Any) -> None:
    def row(text: str, label: int, idx: int) -> dict[str, Any]:
        return {"sentence": text.encode(), "label": np.int64(label), "idx": np.int32(idx)}

    shop["glue/sst2"] = {
        "train": [row("b é", 1, 1), row("a", 0, 0)],
        "validation": [row("c", 1, 0)],
        "test": [row("d", -1, 0)],
    }
    data = load("sst2", "tfds:glue/sst2")
    assert [(e.id, e.text, e.label) for e in data.train] == [("0", "a", 0), ("1", "b é", 1)]
    assert [e.label for e in data.test["test"]] == [None]
    assert type(data.train[0].label) is int

    answers = {"text": np.array([b"Bo"], object), "answer_start": np.array([7], np.int32)}
    shop["squad"] = {"validation": [{"id": b"a", "question": b"Who?", "context": b"It was Bo.", "answers": answers}]}
    assert load("squad", "tfds:squad").validation["validation"][0].answers == (Answer("Bo", 7),)


def test_what_is_wrong_with_a_tensorflow_data_set(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop["glue/sst2"] = {"train": [{"sentence": b"\xff", "label": np.int64(0)}]}
    with pytest.raises(UserError, match=r"tfds:glue/sst2@train, row 1: column 'sentence' is not valid"):
        load("sst2", "tfds:glue/sst2")
    with pytest.raises(UserError, match="tfds:glue/none.*cannot be opened"):
        load("sst2", "tfds:glue/none")
    with pytest.raises(UserError, match="@SPLIT"):
        load("sst2", "tfds:glue/sst2@train")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"\.\[tfds\]"):
        load("sst2", "tfds:glue/sst2")

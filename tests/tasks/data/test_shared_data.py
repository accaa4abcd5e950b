"""The real data beside the checkout, against the row counts and label counts that were published with it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.tasks.data.load import load_task


def load(name: str, source: Path | str = "", **settings: Any) -> Any:
    return load_task(TaskSettings(name=name, source=str(source), **settings), 0)


def labels(examples: Any) -> dict[Any, int]:
    return dict(collections.Counter(e.label for e in examples))


@pytest.mark.parametrize(
    ("name", "train", "validation", "test", "classes"),
    [
        ("cola", 8551, 1043, 1063, {1: 721, 0: 322}),
        ("sst2", 67349, 872, 1821, {1: 444, 0: 428}),
        ("mrpc", 3668, 408, 1725, {1: 279, 0: 129}),
        ("rte", 2490, 277, 3000, {0: 146, 1: 131}),
        ("wnli", 635, 71, 146, {0: 40, 1: 31}),
        ("qnli", 0, 5463, 5463, {0: 2702, 1: 2761}),
    ],
)
def test_glue(shared: Path, name: str, train: int, validation: int, test: int, classes: dict[int, int]) -> None:
    data = load(name, shared / "data" / "glue")
    assert (len(data.train), len(data.validation["validation"]), len(data.test["test"])) == (train, validation, test)
    assert labels(data.validation["validation"]) == classes
    assert labels(data.test["test"]) == {None: test}
    assert [e.id for e in data.test["test"]] == [str(i) for i in range(test)]  # the order the server wants
    assert data.notes == ()
    assert all((e.pair is None) == (name in ("cola", "sst2")) for e in data.validation["validation"])


def test_stsb_and_the_diagnostic_set(shared: Path) -> None:
    data = load("stsb", shared / "data" / "glue" / "STS-B")
    assert (len(data.train), len(data.validation["validation"]), len(data.test["test"])) == (5749, 1500, 1379)
    scores = [e.label for e in [*data.train, *data.validation["validation"]]]
    assert min(scores) == 0.0 and max(scores) == 5.0 and {type(score) for score in scores} == {float}
    data = load("ax", shared / "data" / "glue")
    assert data.train == [] and labels(data.test["test"]) == {None: 1104}


def test_imdb(shared: Path) -> None:
    data = load("imdb", shared / "data" / "imdb")
    assert labels(data.test["test"]) == {0: 12500, 1: 12500}
    assert labels(data.train) == {0: 11250, 1: 11250} and labels(data.validation["validation"]) == {0: 1250, 1: 1250}
    assert data.train[0].id == "neg/0_3"


def test_squad(shared: Path) -> None:
    folder = shared / "data" / "squad"
    questions = load("squad", folder).validation["validation"]
    assert len(questions) == 10570 and all(e.answers for e in questions)
    questions = load("squad_v2", folder).validation["validation"]
    assert len(questions) == 11873 and sum(not e.answers for e in questions) == 5945
    data = load("squad", train=str(folder / "split-train.json"), validation=str(folder / "split-dev.json"))
    assert (len(data.train), len(data.validation["validation"]), data.notes) == (8595, 1975, ())
    data = load("squad", folder, train=str(folder / "split-train.json"))
    assert data.notes == ("validation: 8,595 of 10,570 questions are training examples too",)


def test_tags_and_choices(shared: Path) -> None:
    data = load("wnut17", shared / "data")
    assert (len(data.train), len(data.validation["validation"]), len(data.test["test"])) == (3394, 1009, 1287)
    tags = collections.Counter(data.labels[tag] for e in data.test["test"] for tag in e.tags)
    assert (tags["B-person"], tags["B-creative-work"], tags["O"]) == (429, 142, 21654)
    assert sum(len(e.words) for e in data.train) == 62730
    data = load("codah", shared / "data" / "multiple_choice")
    assert (len(data.train), len(data.validation["validation"]), len(data.test["test"])) == (1665, 556, 555)
    assert labels(data.validation["validation"]) == {0: 149, 1: 140, 2: 124, 3: 143}
    sample = str(shared / "data" / "multiple_choice" / "swag-sample.json")
    assert {len(e.endings) for e in load("swag", validation=sample).validation["validation"]} == {4}
    sample = str(shared / "data" / "ner" / "conll-sample.json")
    assert load("tagging", train=sample, text="words", label="ner").labels[:3] == ("O", "B-LOC", "I-LOC")

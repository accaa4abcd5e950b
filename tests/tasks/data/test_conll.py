"""CoNLL columns: separators, blank lines, documents, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import TaskData


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def load(name: str, **settings: Any) -> Any:
    return load_task(TaskSettings(name=name, **settings), 0)


def named(data: TaskData, examples: Any) -> list[tuple[tuple[str, ...], list[str]]]:
    return [(e.words, [data.labels[tag] for tag in e.tags]) for e in examples]


def test_two_columns_with_tabs_as_in_wnut(tmp_path: Path) -> None:
    text = "Ann\tB-person\nran\tO\n\t\nto\tO\nOld\tB-location\nTown\tI-location\r\n\n\n"
    train, test = write(tmp_path / "train.conll", text), write(tmp_path / "x.annotated", "Who\nknows\n\n?")
    data = load("wnut17", train=train, validation=train, test=test)
    sentences = [(("Ann", "ran"), ["B-person", "O"]), (("to", "Old", "Town"), ["O", "B-location", "I-location"])]
    assert named(data, data.train) == sentences
    assert data.labels[:3] == ("O", "B-corporation", "I-corporation")  # the official ones, whatever the file has
    assert [(e.words, e.tags) for e in data.test["test"]] == [(("Who", "knows"), None), (("?",), None)]
    own = load("tagging", train=train, validation=train)
    assert own.labels == ("O", "B-location", "I-location", "B-person")
    assert named(own, own.train) == sentences


def test_four_columns_and_documents_as_in_conll_2003(tmp_path: Path) -> None:
    """The shared task's own files mark entities the old way; both ways give the same tags."""
    rows = ["-DOCSTART- -X- O O", "", "Rome NNP I-NP I-LOC", "Bo NNP I-NP I-PER", "Li NNP I-NP I-PER"]
    old = "\n".join([*rows, "Eva NNP B-NP B-PER", "ran VBD I-VP O", "", ""])
    new = old.replace("I-LOC", "B-LOC").replace("Bo NNP I-NP I-PER", "Bo NNP B-NP B-PER")
    (tmp_path / "old").mkdir()
    write(tmp_path / "old/eng.train", old)
    write(tmp_path / "old/eng.testa", old)
    train = write(tmp_path / "train.txt", new)
    data, same = load("conll2003", source=str(tmp_path / "old")), load("conll2003", train=train, validation=train)
    assert named(data, data.train) == [(("Rome", "Bo", "Li", "Eva", "ran"), ["B-LOC", "B-PER", "I-PER", "B-PER", "O"])]
    assert data.train == same.train


def test_an_unknown_tag_is_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.conll", "a\tO\n\nb\tB-robot\n")
    with pytest.raises(UserError, match="line 3: tag 'B-robot' is unknown"):
        load("wnut17", train=train, validation=train)


def test_columns_are_named_in_the_settings(tmp_path: Path) -> None:
    text = "1\tAm\tO\tO\n2\tRhein\tB-LOC\tO\n3\tFC\tB-ORG\tB-LOC\n"
    train = write(tmp_path / "train.tsv", text)
    data = load("tagging", train=train, validation=train)
    assert named(data, data.train) == [(("Am", "Rhein", "FC"), ["O", "B-LOC", "B-ORG"])]
    data = load("tagging", train=train, validation=train, text="2", label="4")
    assert named(data, data.train) == [(("Am", "Rhein", "FC"), ["O", "O", "B-LOC"])]


def test_what_was_taken_is_reported(tmp_path: Path) -> None:
    text = "1\tAm\tO\tO\n2\tRhein\tB-LOC\tO\n3\tFC\tB-ORG\tB-LOC\n"
    train = write(tmp_path / "train.tsv", text)
    data = load("tagging", train=train, validation=train)
    assert data.report.sets[0].columns == {"words": "column 2", "tags": "column 3"}
    assert any("column 4" in line for line in data.report.lines())

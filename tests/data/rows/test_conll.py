"""CoNLL columns: separators, blank lines, documents, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Faults, ReadOptions, read_table
from distil_jax.errors import UserError
from distil_jax.tasks.data.conll import to_iob2
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
    assert to_iob2(["I-A", "I-A", "I-B", "B-B", "I-B", "O", "I-B"]) == ["B-A", "I-A", "B-B", "B-B", "I-B", "O", "B-B"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\nb\n\nc\tO\n", "line 2: 1 columns, not 2"),
        ("a\tO\nb\tO\tO\n", "line 2: 3 columns, not 2"),
        ("a\tO\n\tO\n", "line 2: no word"),
        ("a\tO\nb\t\n", "line 2: no tag"),
        ("\n \n", "the file is empty"),
        ("-DOCSTART- O\n\n", "no sentence"),
        ("a\tO\n\nb\tB-robot\n", "line 3: tag 'B-robot' is unknown"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    train = write(tmp_path / "train.conll", text)
    with pytest.raises(UserError, match=message):
        load("wnut17", train=train, validation=train)


def test_a_bad_line_costs_its_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(b"a\tO\nb\n\nc\tO\n\nd\xff\tO\ne\tO\n\nf\tO\n")
    faults = Faults(skip=True)
    rows = read_table(path, ReadOptions(tagged=True), faults).rows
    assert [(row.place, row.number, row.values["words"]) for row in rows] == [(4, 1, ["c"]), (9, 3, ["f"])]
    assert faults.count == 2

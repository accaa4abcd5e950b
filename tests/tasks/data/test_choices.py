"""Choices: endings however they are listed, and labels however they say which ending is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError


def rows(labels: list[Any], counts: list[int], names: str = "pqrst") -> list[dict[str, Any]]:
    return [
        {"text": f"prompt {i}", "endings": [f"{name} {i}" for name in names[:count]], "label": label}
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]


@pytest.mark.parametrize(
    ("labels", "counts", "expected"),
    [
        (["A", "D", "C", "B"], [3, 4, 4, 3], [0, 3, 2, 1]),
        (["a", "d", "c"], [3, 4, 4], [0, 3, 2]),
        (["A", "4", "C", "2"], [4, 4, 4, 4], [0, 3, 2, 1]),  # as in ARC
        (["B", "3", "C", "2"], [4, 4, 4, 4], [1, 2, 2, 1]),
        ([1, 4, 3], [3, 4, 4], [0, 3, 2]),
        ([0, 3, 2.0], [3, 4, 4], [0, 3, 2]),
        (["1", "2", "1"], [3, 3, 4], [1, 2, 1]),  # few rows: numbers count from 0
        (["q 0", "p 1", 2], [3, 3, 4], [1, 0, 2]),
    ],
)
def test_labels_say_which_ending_is_right(
    tmp_path: Path, write: Any, load: Any, labels: list[Any], counts: list[int], expected: list[int]
) -> None:
    train = write(tmp_path / "a.jsonl", rows(labels, counts))
    data = load("choice", train=train, validation=train)
    assert [example.label for example in data.train] == expected
    assert [len(example.endings) for example in data.train] == counts


def test_endings_themselves_are_labels_even_where_they_are_numbers(tmp_path: Path, write: Any, load: Any) -> None:
    made = [{"text": "2 + 2", "endings": ["3", "4", "5"], "label": "4"}] * 2
    assert load("choice", test=write(tmp_path / "a.jsonl", made)).test["test"][0].label == 1
    unclear = [{"text": "how many", "endings": ["2", "0", "1"], "label": label} for label in "012"]
    path = write(tmp_path / "b.jsonl", unclear)
    with pytest.raises(UserError, match=r"--task\.labels 0 1 2 3"):
        load("choice", train=path, validation=path)
    given = load("choice", train=path, validation=path, labels=("0", "1", "2"))
    assert [example.label for example in given.train] == [0, 1, 2]


def test_numbers_that_may_count_from_0_or_1_have_to_be_explained(tmp_path: Path, write: Any, load: Any) -> None:
    path = write(tmp_path / "a.jsonl", rows([1, 2, 3] * 5, [4] * 15))
    with pytest.raises(UserError, match=r"--task\.labels 0 1 2 3 \(or 1 2 3 4\)"):
        load("choice", train=path, validation=path)
    given = load("choice", train=path, validation=path, labels=("1", "2", "3", "4"))
    assert [example.label for example in given.train[:3]] == [0, 1, 2]


@pytest.mark.parametrize(
    "choices",
    [
        {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
        [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}, {"label": "3", "text": "z"}],
        json.dumps({"text": ["x", "y", "z"], "label": ["1", "2", "3"]}),
    ],
)
def test_endings_with_names_of_their_own(tmp_path: Path, write: Any, load: Any, choices: Any) -> None:
    made = [
        {"question": "q", "choices": choices, "answerKey": "2"},
        {"question": "q", "choices": {"text": ["v", "w"], "label": ["A", "B"]}, "answerKey": "A"},
    ]
    path = write(tmp_path / "a.jsonl", made)
    data = load("choice", train=path, validation=path, text="question", endings=("choices",), label="answerKey")
    assert [(example.endings, example.label) for example in data.train] == [(("x", "y", "z"), 1), (("v", "w"), 0)]


def test_blank_endings_are_endings_and_missing_ones_are_not(tmp_path: Path, write: Any, load: Any) -> None:
    made = [
        {"text": "t", "a": "", "b": "go", "c": "", "label": "A"},
        {"text": "t", "a": "stay", "b": "go", "c": None, "label": "B"},
    ]
    path = write(tmp_path / "a.jsonl", made)
    data = load("choice", train=path, validation=path, endings=("a", "b", "c"))
    assert [(e.endings, e.label) for e in data.train] == [(("", "go", ""), 0), (("stay", "go"), 1)]
    table = write(tmp_path / "b.csv", "text,start,a,b,label\nt,She,,went,0\nt,He,left,,1\n")
    data = load("choice", train=table, validation=table, pair="start", endings=("a", "b"))
    assert [e.endings for e in data.train] == [("She", "She went"), ("He left", "He")]


@pytest.mark.parametrize("cell", ['["ate", "slept, then"]', "['ate', 'slept, then']"])
def test_endings_in_a_cell_are_a_list(tmp_path: Path, write: Any, load: Any, cell: str) -> None:
    quoted = cell.replace('"', '""')
    train = write(tmp_path / "a.csv", f'text,endings,label\nShe,"{quoted}",1\nHe,"{quoted}",0\n')
    data = load("choice", train=train, validation=train)
    assert [example.endings for example in data.train] == [("ate", "slept, then")] * 2
    broken = write(tmp_path / "b.csv", "text,endings,label\nShe,ate,0\n")
    with pytest.raises(UserError, match=r"b\.csv, line 2: column 'endings' holds 'ate'"):
        load("choice", train=broken)

"""Labels as they are written: sets of classes by names or by zeros and ones, numbers, what is out of range."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    "written",
    [
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[True, False, True], [False] * 3, [False, True, False]],
        ["[1, 0, 1]", "[0, 0, 0]", "[0, 1, 0]"],
        ["1|0|1", "0|0|0", "0|1|0"],
    ],
)
def test_zeros_and_ones_for_all_classes_are_switches(tmp_path: Path, write: Any, load: Any, written: list[Any]) -> None:
    train = write(tmp_path / "a.jsonl", rows(written))
    data = load("multilabel", train=train, validation=train)
    assert data.labels == ("0", "1", "2")
    assert [example.label for example in data.train] == [(1, 0, 1), (0, 0, 0), (0, 1, 0)]
    assert data.notes == ("labels are read as 0 or 1 for each of 3 classes",)
    named = load("multilabel", train=train, validation=train, labels=("art", "news", "sport"))
    assert named.labels == ("art", "news", "sport")
    assert [example.label for example in named.train] == [example.label for example in data.train]


@pytest.mark.parametrize("written", [[[0, 1], [1, 0]], [[0], [1, 0]], [[0, 2, 0], [1, 0, 0]], [["0"], ["1"]]])
def test_what_may_be_sets_of_class_numbers_is_left_alone(
    tmp_path: Path, write: Any, load: Any, written: list[Any]
) -> None:
    train = write(tmp_path / "a.jsonl", rows(written))
    data = load("multilabel", train=train, validation=train)
    for example, names in zip(data.train, written, strict=True):
        assert example.label == tuple(int(label in {str(name) for name in names}) for label in data.labels)
    assert data.notes == ()


def test_switches_that_do_not_fit_the_names(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", rows([[1, 0, 1], [0, 0, 0]]))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: label .* does not hold a 0 or 1 for each of the 2 classes"):
        load("multilabel", train=train, labels=("a", "b"))


def test_numbers_out_of_range_name_both_ends(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,0\nb,2\n")
    with pytest.raises(UserError, match=r"line 3: label 2 is out of range: 0 \(no\) to 1 \(yes\)"):
        load("classification", train=train, labels=("no", "yes"))


def test_tags_that_are_numbers_need_names(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", [{"words": ["a", "b"], "tags": [0, 1]}] * 4)
    with pytest.raises(UserError, match=r"a\.jsonl: its tags are numbers; name them in order with task\.labels"):
        load("tagging", train=train)
    assert load("tagging", train=train, labels=("O", "B-X")).train[0].tags == (0, 1)


def test_endings_in_a_cell_are_a_json_list(tmp_path: Path, write: Any, load: Any) -> None:
    cell = json.dumps(["ate", "slept, then"]).replace('"', '""')
    train = write(tmp_path / "a.csv", f'text,endings,label\nShe,"{cell}",1\nHe,"{cell}",0\n')
    data = load("choice", train=train, validation=train)
    assert [example.endings for example in data.train] == [("ate", "slept, then")] * 2
    broken = write(tmp_path / "b.csv", "text,endings,label\nShe,ate,0\n")
    with pytest.raises(UserError, match=r"b\.csv, line 2: column 'endings' holds no JSON list of endings"):
        load("choice", train=broken)


def test_endings_have_to_be_as_many_in_all_rows(tmp_path: Path, write: Any, load: Any) -> None:
    made = [{"text": "t", "endings": ["a", "b", "c"][:count], "label": 0} for count in (2, 2, 3)]
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: 3 endings, not 2 as in the first row"):
        load("choice", train=write(tmp_path / "a.jsonl", made))


def test_line_ends_of_old_macs_are_named(tmp_path: Path, write: Any, load: Any) -> None:
    with pytest.raises(UserError, match=r"a\.csv, line 1: .*lines end with CR alone"):
        load("classification", train=write(tmp_path / "a.csv", b"text,label\ra,x\rb,y\r"))

"""Classes of whole columns: sets by names or by zeros and ones, numbers, a column a class, what is out of range."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([[0, 1], [1, 0]], [(0, 1), (1, 0)]),
        (["[0, 1]", "[1, 0]"], [(0, 1), (1, 0)]),
        (["0,1", "1,0"], [(0, 1), (1, 0)]),
        (["0|1", "1|0"], [(0, 1), (1, 0)]),
        (["[False, True]", "[True, False]"], [(0, 1), (1, 0)]),  # pandas writes lists like this
        (["[0 1]", "[1 0]"], [(0, 1), (1, 0)]),  # and NumPy's arrays like this
        (["[0. 1.]", "[1. 0.]"], [(0, 1), (1, 0)]),
        ([[False, True], [True, False]], [(0, 1), (1, 0)]),
        ([[0.0, 1.0], [1.0, 0.0]], [(0, 1), (1, 0)]),
        ([[False, True], [False, True]], [(0, 1), (0, 1)]),
        ([[0, 1], [0, 0], [0, 1]], [(0, 1), (0, 0), (0, 1)]),
    ],
)
def test_one_of_two_classes_in_every_row_is_an_indicator(
    tmp_path: Path, write: Any, load: Any, written: list[Any], expected: list[tuple[int, ...]]
) -> None:
    train = write(tmp_path / "a.jsonl", rows(written))
    data = load("multilabel", train=train, validation=train)
    assert data.labels == ("0", "1") and [example.label for example in data.train] == expected
    named = load("multilabel", train=train, validation=train, labels=("art", "news"))
    assert named.labels == ("art", "news") and [example.label for example in named.train] == expected
    assert any("0 or 1 for each" in note for note in data.notes)


@pytest.mark.parametrize("written", [[[0], [1, 0]], [[0, 2, 0], [1, 0, 0]], [["0"], ["1"]]])
def test_what_may_be_sets_of_class_numbers_is_left_alone(
    tmp_path: Path, write: Any, load: Any, written: list[Any]
) -> None:
    train = write(tmp_path / "a.jsonl", rows(written))
    data = load("multilabel", train=train, validation=train)
    for example, names in zip(data.train, written, strict=True):
        assert example.label == tuple(int(label in {str(name) for name in names}) for label in data.labels)


def test_the_same_list_in_every_row_has_to_be_explained(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", rows([[0, 1], [0, 1]]))
    with pytest.raises(UserError, match=r"--task\.sets-as"):
        load("multilabel", train=train, validation=train)
    read = {kind: load("multilabel", train=train, validation=train, sets_as=kind) for kind in ("indicators", "classes")}
    assert {kind: data.train[0].label for kind, data in read.items()} == {"indicators": (0, 1), "classes": (1, 1)}
    three = load("multilabel", train=train, validation=train, labels=("a", "b", "c"))  # no indicator for each of three
    assert three.train[0].label == (1, 1, 0)


def test_switches_that_do_not_fit_the_names(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", rows([[1, 0, 1], [0, 0, 0]]))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: label .* does not hold a 0 or 1 for each of the 2 classes"):
        load("multilabel", train=train, labels=("a", "b"))


FLOATS = [f"{number}.0" for number in range(12)]


@pytest.mark.parametrize("validation", [FLOATS, [str(number) for number in range(12)], [f"{n}e0" for n in range(12)]])
def test_a_number_is_one_class_however_it_is_spelled(
    tmp_path: Path, write: Any, load: Any, validation: list[str]
) -> None:
    def table(labels: list[str]) -> str:
        return "text,label\n" + "".join(f"row {label},{label}\n" for label in labels)

    train, other = write(tmp_path / "a.csv", table(FLOATS)), write(tmp_path / "b.csv", table(validation))
    data = load("classification", train=train, validation=other)
    assert data.labels == tuple(str(number) for number in range(12))
    assert [example.label for example in data.validation["validation"]] == [*range(12)]
    numbers = write(tmp_path / "c.jsonl", [{"text": "t", "label": float(number)} for number in range(12)])
    assert [e.label for e in load("classification", train=train, validation=numbers).validation["validation"]] == [
        *range(12)
    ]


@pytest.mark.parametrize(
    ("written", "names", "numbers"),
    [
        (["True", "false", "TRUE", "False"], ("false", "true"), [1, 0, 1, 0]),
        ([True, False, "true", "0"], ("false", "true"), [1, 0, 1, 0]),
        (["1", "0", "1.0", "00"], ("0", "1"), [1, 0, 1, 0]),
        ([True, "maybe", "true", "maybe"], ("maybe", "true"), [1, 0, 1, 0]),
        (["True", "maybe", "1", "maybe"], ("1", "True", "maybe"), [1, 2, 0, 2]),  # 1 is no truth among other names
        (["007", "010", "007", "010"], ("007", "010"), [0, 1, 0, 1]),  # codes
        (["007", "7", "10", "8"], ("7", "8", "10"), [0, 0, 2, 1]),
        (["0.5", "1.50", ".5", "1.5"], ("0.5", "1.5"), [0, 1, 0, 1]),
        (["-1", "1", "0", "+1"], ("-1", "0", "1"), [0, 2, 1, 2]),
        (["10", "9", "nine", "9.0"], ("10", "9", "nine"), [0, 1, 2, 1]),
    ],
)
def test_spellings_of_one_class(
    tmp_path: Path, write: Any, load: Any, written: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    train = write(tmp_path / "a.jsonl", rows(written))
    data = load("classification", train=train, validation=train)
    assert data.labels == names and [example.label for example in data.train] == numbers


def test_a_set_in_another_spelling_of_the_truth(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,1\nb,0\n")
    other = write(tmp_path / "b.jsonl", rows([True, False]))
    assert [e.label for e in load("classification", train=train, validation=other).validation["validation"]] == [1, 0]
    given = load("classification", train=other, validation=other, labels=("False", "True"))
    assert given.labels == ("False", "True") and [e.label for e in given.train] == [1, 0]


def test_names_are_given_for_what_the_data_write(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,4\nb,0\nc,2.0\n")
    data = load("classification", train=train, validation=train, labels=("0=bad", "2=fair", "4=good"))
    assert data.labels == ("bad", "fair", "good") and [e.label for e in data.train] == [2, 0, 1]
    equations = write(tmp_path / "b.csv", "text,label\na,x=1\nb,x=2\n")
    assert load("classification", train=equations, validation=equations, labels=("x=1", "x=2")).labels == ("x=1", "x=2")


def test_one_column_of_zeros_and_ones_for_each_class(tmp_path: Path, write: Any, load: Any) -> None:
    text = "id,comment_text,toxic,obscene\nx,one,1,0\ny,two,0,1.0\nz,three,0,0\n"
    train = write(tmp_path / "a.csv", text)
    settings: dict[str, Any] = {"train": train, "validation": train, "text": "comment_text", "id": "id"}
    for given in (
        {"label": ("toxic", "obscene")},
        {"label": "toxic", "labels": ("toxic", "obscene")},
        {"labels": ("toxic", "obscene")},
    ):
        data = load("multilabel", **settings, **given)
        assert data.labels == ("toxic", "obscene")
        assert [example.label for example in data.train] == [(1, 0), (0, 1), (0, 0)]
    named = load("multilabel", **settings, label=("toxic", "obscene"), labels=("rude", "lewd"))
    assert named.labels == ("rude", "lewd") and named.train[0].label == (1, 0)
    alone = load("multilabel", **settings, label="toxic")
    assert alone.labels == ("toxic",) and [example.label for example in alone.train] == [(1,), (0,), (0,)]
    with pytest.raises(UserError, match=r"'toxic'.*--task\.label toxic OTHER"):
        load("multilabel", **settings, label="toxic", labels=("rude", "lewd"))
    with pytest.raises(UserError, match="no column 'insult'"):
        load("multilabel", **settings, label=("toxic", "insult"))
    with pytest.raises(UserError, match="2 columns"):
        load("classification", **settings, label=("toxic", "obscene"))
    secret = write(tmp_path / "t.csv", "id,comment_text,toxic,obscene\nx,one,-1,-1\n")
    assert load("multilabel", **settings, label=("toxic", "obscene"), test=secret).test["test"][0].label is None
    wrong = write(tmp_path / "w.csv", text.replace("0,1.0", "0,2"))
    with pytest.raises(UserError, match=r"w\.csv, line 3: column 'obscene': label '2'"):
        load("multilabel", **{**settings, "train": wrong}, label=("toxic", "obscene"))


def test_numbers_out_of_range_name_both_ends(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,0\nb,2\n")
    with pytest.raises(UserError, match=r"line 3: label 2 is out of range: 0 \(no\) to 1 \(yes\)"):
        load("classification", train=train, labels=("no", "yes"))


def test_tags_that_are_numbers_need_names(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", [{"words": ["a", "b"], "tags": [0, 1]}] * 4)
    with pytest.raises(UserError, match=r"a\.jsonl: its tags are numbers; name them in order with task\.labels"):
        load("tagging", train=train)
    assert load("tagging", train=train, labels=("O", "B-X")).train[0].tags == (0, 1)


def test_line_ends_of_old_macs_are_named(tmp_path: Path, write: Any, load: Any) -> None:
    with pytest.raises(UserError, match=r"a\.csv, line 1: .*lines end with CR alone"):
        load("classification", train=write(tmp_path / "a.csv", b"text,label\ra,x\rb,y\r"))

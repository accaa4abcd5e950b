"""Rows as examples to predict: the columns of the task, the usual ones, or those that are named."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.data.rows import PLAIN, BadRowError, Faults, Row
from distil_jax.errors import UserError
from distil_jax.tasks.examples import ChoiceExample, Example, Kind, QuestionExample, SequenceExample, TokenExample
from distil_jax.tasks.requests import reading_of, request, requests, usual_reading, with_columns


@pytest.mark.parametrize(
    ("kind", "row", "example"),
    [
        ("sequence", "a text", SequenceExample("", "a text")),
        ("sequence", ("one", "two"), SequenceExample("", "one", "two")),
        ("sequence", {PLAIN: "a line"}, SequenceExample("", "a line")),
        ("sequence", {"sentence": "one", "pair": None}, SequenceExample("", "one")),
        ("token", "two  words", TokenExample("", ("two", "words"))),
        ("token", ["New York", "now"], TokenExample("", ("New York", "now"))),
        ("token", {"tokens": ["a"]}, TokenExample("", ("a",))),
        ("question", ("who?", "me"), QuestionExample("", "who?", "me")),
        ("question", {"context": "me", "question": "who?"}, QuestionExample("", "who?", "me")),
        ("choice", {"prompt": "so", "endings": ["a", "b"]}, ChoiceExample("", "so", ("a", "b"))),
        ("choice", {"text": "so", "endings": '["a", "b", "c"]'}, ChoiceExample("", "so", ("a", "b", "c"))),
    ],
)
def test_what_a_row_may_be(kind: Kind, row: Any, example: Example) -> None:
    assert request(row, usual_reading(kind)) == (None, example)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sequence", " ", "the text is empty"),
        ("sequence", 5, "int where a text is wanted"),
        ("sequence", {"title": "x"}, r"no column 'text' or 'sentence' \(found: title; --text-column names another\)"),
        ("sequence", {"text": "half \ud83d"}, "not valid Unicode"),
        ("sequence", {"text": "x", "id": [1]}, "an id of type list"),
        ("token", {"words": []}, "an empty list"),
        ("token", {"words": ["a", ""]}, "word 2 of the sentence is empty"),
        ("question", "who?", "a bare text where a question and its context is wanted"),
        ("question", {"question": "who?"}, "no column 'context' .* --pair-column names"),
        ("choice", {"text": "so", "endings": ["a"]}, "no list of two or more"),
        ("choice", {"text": "so", "endings": "a or b"}, "no JSON list"),
        ("choice", {"text": "so"}, "no column 'endings' .* --endings-columns names"),
    ],
)
def test_what_a_row_may_not_be(kind: Kind, row: Any, message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        request(row, usual_reading(kind))


def test_a_model_of_pairs_takes_its_own_columns_and_no_single_text() -> None:
    reading = reading_of(TaskSettings(name="mrpc"), "sequence")
    row = {"sentence1": "a", "sentence2": "b", "idx": 7}
    assert request(row, reading) == (7, SequenceExample("7", "a", "b"))
    with pytest.raises(BadRowError, match="no column 'sentence2'"):
        request({"sentence1": "a"}, reading)
    with pytest.raises(BadRowError, match="the second text of the pair is empty"):
        request({"sentence1": "a", "sentence2": None}, reading)


def test_a_model_of_single_texts_leaves_a_second_column_alone() -> None:
    reading = reading_of(TaskSettings(name="classification", text="review"), "sequence")
    assert request({"review": "a", "pair": "b"}, reading)[1] == SequenceExample("", "a")


def test_endings_begin_as_the_task_has_it() -> None:
    row = {"sent1": "He sat.", "sent2": "He", **{f"ending{i}": f"{i}" for i in range(4)}}
    reading = reading_of(TaskSettings(name="swag"), "choice")
    assert request(row, reading)[1] == ChoiceExample("", "He sat.", ("He 0", "He 1", "He 2", "He 3"))


def test_a_model_of_endings_with_a_start_wants_one() -> None:
    row = {"text": "He sat.", "endings": ["ran", "slept"]}
    whole = ChoiceExample("", "He sat.", ("He ran", "He slept"))
    readings = (reading_of(TaskSettings(name="swag"), "choice"), usual_reading("choice", True))
    for reading in (*readings, with_columns(usual_reading("choice"), pair="pair")):
        assert request({**row, "pair": "He"}, reading)[1] == whole
        with pytest.raises(BadRowError, match=r"no column .*'pair'.* --pair-column names another"):
            request(row, reading)
        with pytest.raises(BadRowError, match="the start of the endings is empty"):
            request({**row, "pair": None}, reading)
    for reading in (reading_of(TaskSettings(name="codah"), "choice"), usual_reading("choice", False)):
        assert request({**row, "pair": "He"}, reading)[1] == ChoiceExample("", "He sat.", ("ran", "slept"))


def test_whether_texts_are_pairs_may_be_all_that_is_known() -> None:
    pair, single = {"text": "a", "pair": "b"}, {"text": "a"}
    assert request(pair, usual_reading("sequence", True))[1] == SequenceExample("", "a", "b")
    with pytest.raises(BadRowError, match="no column 'pair' or 'text_pair'"):
        request(single, usual_reading("sequence", True))
    for row in (pair, single):
        assert request(row, usual_reading("sequence", False))[1] == SequenceExample("", "a")
    assert usual_reading("question", True) == usual_reading("question")


def test_columns_that_are_named_are_the_only_ones() -> None:
    reading = with_columns(usual_reading("sequence"), "body", "title")
    assert request({"body": "a", "title": "b", "text": "c"}, reading)[1] == SequenceExample("", "a", "b")
    with pytest.raises(BadRowError, match="no column 'body'"):
        request({"text": "c", "title": "b"}, reading)
    with pytest.raises(BadRowError, match="no column 'title'"):
        request({"body": "c"}, reading)
    choice = with_columns(usual_reading("choice"), endings=("first", "second"))
    assert request({"text": "a", "first": "b", "second": "c"}, choice)[1] == ChoiceExample("", "a", ("b", "c"))


def test_ids_are_the_rows_own_or_their_numbers() -> None:
    rows = [
        Row(2, 0, {"text": "a", "id": "x"}),
        Row(3, 1, {"text": "b"}),
        Row(5, 2, {"text": ""}),
        Row(6, 3, {"text": "c"}),
    ]
    faults = Faults(skip=True)
    found = requests(rows, usual_reading("sequence"), faults, "a.csv")
    assert [identity for identity, _ in found] == ["x", 1, 3]
    assert (faults.count, faults.first) == (1, "a.csv, line 5: the text is empty")
    with pytest.raises(UserError, match="a.csv, line 5: the text is empty; .* --on-error skip"):
        list(requests(rows, usual_reading("sequence"), Faults(remedy="--on-error skip"), "a.csv"))

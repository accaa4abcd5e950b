"""Rows as examples to predict: the columns of the task, the usual ones, or those that are named."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.data.rows import PLAIN, BadRowError, Faults, Row
from distil_jax.errors import UserError
from distil_jax.tasks.examples import ChoiceExample, Example, QuestionExample, SequenceExample, TokenExample
from distil_jax.tasks.kinds import TaskKind
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.kinds.token import TAGS
from distil_jax.tasks.requests import read_requests, reading_of, request, usual_reading, with_columns


@pytest.mark.parametrize(
    ("kind", "row", "example"),
    [
        (CLASSES, "a text", SequenceExample("", "a text")),
        (CLASSES, ("one", "two"), SequenceExample("", "one", "two")),
        (CLASSES, {PLAIN: "a line"}, SequenceExample("", "a line")),
        (CLASSES, {"sentence": "one", "pair": None}, SequenceExample("", "one")),
        (TAGS, "two  words", TokenExample("", ("two", "words"))),
        (TAGS, ["New York", "now"], TokenExample("", ("New York", "now"))),
        (TAGS, {"tokens": ["a"]}, TokenExample("", ("a",))),
        (QUESTION, ("who?", "me"), QuestionExample("", "who?", "me")),
        (QUESTION, {"context": "me", "question": "who?"}, QuestionExample("", "who?", "me")),
        (CHOICE, {"prompt": "so", "endings": ["a", "b"]}, ChoiceExample("", "so", ("a", "b"))),
        (CHOICE, {"text": "so", "endings": '["a", "b", "c"]'}, ChoiceExample("", "so", ("a", "b", "c"))),
    ],
)
def test_what_a_row_may_be(kind: TaskKind[Any], row: Any, example: Example) -> None:
    assert request(row, usual_reading(kind))[:2] == (None, example)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (CLASSES, " ", "'text' is empty"),
        (CLASSES, 5, "int where a text is wanted"),
        (CLASSES, {"title": "x"}, r"no column 'text' or 'sentence' \(found: title; --text-column names another\)"),
        (CLASSES, {"text": "half \ud83d"}, "not valid Unicode"),
        (CLASSES, {"text": "x", "id": [1]}, "an id of type list"),
        (TAGS, {"words": []}, "without words"),
        (TAGS, {"words": ["a", ""]}, "word 2 of the sentence is empty"),
        (QUESTION, "who?", "a bare text where a question and its context is wanted"),
        (QUESTION, {"question": "who?"}, "no column 'context' .* --pair-column names"),
        (CHOICE, {"text": "so", "endings": ["a"]}, "no list of two or more"),
        (CHOICE, {"text": "so", "endings": "a or b"}, "no JSON list"),
        (CHOICE, {"text": "so"}, "no column 'endings' .* --endings-columns names"),
    ],
)
def test_what_a_row_may_not_be(kind: TaskKind[Any], row: Any, message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        request(row, usual_reading(kind))


def test_a_model_of_pairs_takes_its_own_columns_and_no_single_text() -> None:
    reading = reading_of(TaskSettings(name="mrpc"), CLASSES)
    row = {"sentence1": "a", "sentence2": "b", "idx": 7}
    assert request(row, reading) == (7, SequenceExample("7", "a", "b"), row)
    with pytest.raises(BadRowError, match="no column 'sentence2'"):
        request({"sentence1": "a"}, reading)
    with pytest.raises(BadRowError, match="'sentence2' is empty"):
        request({"sentence1": "a", "sentence2": None}, reading)


def test_a_model_of_single_texts_leaves_a_second_column_alone() -> None:
    reading = reading_of(TaskSettings(name="classification", text="review"), CLASSES)
    assert request({"review": "a", "pair": "b"}, reading)[1] == SequenceExample("", "a")


def test_endings_begin_as_the_task_has_it() -> None:
    row = {"sent1": "He sat.", "sent2": "He", **{f"ending{i}": f"{i}" for i in range(4)}}
    reading = reading_of(TaskSettings(name="swag"), CHOICE)
    assert request(row, reading)[1] == ChoiceExample("", "He sat.", ("He 0", "He 1", "He 2", "He 3"))


def test_a_model_of_endings_with_a_start_wants_one() -> None:
    row = {"text": "He sat.", "endings": ["ran", "slept"]}
    whole = ChoiceExample("", "He sat.", ("He ran", "He slept"))
    readings = (reading_of(TaskSettings(name="swag"), CHOICE), usual_reading(CHOICE, True))
    for reading in (*readings, with_columns(usual_reading(CHOICE), pair="pair")):
        assert request({**row, "pair": "He"}, reading)[1] == whole
        with pytest.raises(BadRowError, match=r"no column .*'pair'.* --pair-column names another"):
            request(row, reading)
        with pytest.raises(BadRowError, match="'pair' is empty|'sent2' is empty"):
            request({**row, "pair": None}, reading)
    for reading in (reading_of(TaskSettings(name="codah"), CHOICE), usual_reading(CHOICE, False)):
        assert request({**row, "pair": "He"}, reading)[1] == ChoiceExample("", "He sat.", ("ran", "slept"))


def test_whether_texts_are_pairs_may_be_all_that_is_known() -> None:
    pair, single = {"text": "a", "pair": "b"}, {"text": "a"}
    assert request(pair, usual_reading(CLASSES, True))[1] == SequenceExample("", "a", "b")
    with pytest.raises(BadRowError, match="no column 'pair' or 'text_pair'"):
        request(single, usual_reading(CLASSES, True))
    for row in (pair, single):
        assert request(row, usual_reading(CLASSES, False))[1] == SequenceExample("", "a")
    assert usual_reading(QUESTION, True) == usual_reading(QUESTION)


def test_columns_that_are_named_are_the_only_ones() -> None:
    reading = with_columns(usual_reading(CLASSES), "body", "title")
    assert request({"body": "a", "title": "b", "text": "c"}, reading)[1] == SequenceExample("", "a", "b")
    with pytest.raises(BadRowError, match="no column 'body'"):
        request({"text": "c", "title": "b"}, reading)
    with pytest.raises(BadRowError, match="no column 'title'"):
        request({"body": "c"}, reading)
    choice = with_columns(usual_reading(CHOICE), endings=("first", "second"))
    assert request({"text": "a", "first": "b", "second": "c"}, choice)[1] == ChoiceExample("", "a", ("b", "c"))


def test_ids_are_the_rows_own_or_their_numbers() -> None:
    rows = [
        Row(2, 0, {"text": "a", "id": "x"}),
        Row(3, 1, {"text": "b"}),
        Row(5, 2, {"text": ""}),
        Row(6, 3, {"text": "c"}),
    ]
    faults = Faults(skip=True)
    found = read_requests(rows, usual_reading(CLASSES), faults, "a.csv")
    assert [one.id for one in found] == ["x", 1, 3]
    assert (faults.count, faults.first) == (1, "a.csv, line 5: column 'text' is empty")
    with pytest.raises(UserError, match="a.csv, line 5: .*'text' is empty.* --on-error skip"):
        list(read_requests(rows, usual_reading(CLASSES), Faults(remedy="--on-error skip"), "a.csv"))


def test_blank_lines_of_text_are_left_out_and_counted() -> None:
    rows = [Row(n + 1, n, {PLAIN: text}) for n, text in enumerate(["a", "", " ", "b"])]
    blank = []
    found = read_requests(rows, usual_reading(CLASSES), Faults(), "pipe", blank=lambda: blank.append(1))
    assert [(one.id, one.values) for one in found] == [(0, {"text": "a"}), (3, {"text": "b"})]
    assert len(blank) == 2

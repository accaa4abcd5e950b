"""SQuAD's JSON, versions 1.1 and 2.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import Answer, QuestionExample

CONTEXT = "Über the hill \U0001f600 lived Ada, and Ada was old."
ADA = {"text": "Ada", "answer_start": CONTEXT.index("Ada")}
LATER = {"text": "Ada", "answer_start": CONTEXT.rindex("Ada")}


def document(*questions: dict[str, Any], **paragraph: Any) -> dict[str, Any]:
    paragraphs = [{"context": "First.", "qas": []}, {"context": CONTEXT, "qas": [*questions], **paragraph}]
    return {"version": "x", "data": [{"title": "Hill", "paragraphs": paragraphs}]}


def load(path: Path, content: Any, name: str = "squad", **settings: Any) -> Any:
    path.write_text(content if isinstance(content, str) else json.dumps(content, **settings.pop("dump", {})))
    return load_task(TaskSettings(name=name, validation=str(path), **settings), 0)


def question(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "question": "Who lived there?", "answers": [ADA, LATER], **changes}


def test_answers_and_questions_without_one(tmp_path: Path) -> None:
    none = {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": [ADA]}
    wanted = QuestionExample("q1", "Who lived there?", CONTEXT, (Answer("Ada", 22), Answer("Ada", 31)))
    for dump in ({}, {"indent": 1}, {"ensure_ascii": False}):
        data = load(tmp_path / "dev.json", document(question(is_impossible=False), none), "squad_v2", dump=dump)
        assert data.validation["validation"] == [wanted, QuestionExample("q2", "Why?", CONTEXT, ())]
        assert CONTEXT[22:25] == "Ada" and data.labels == ()
    secret = document({"id": "q1", "question": "Who lived there?"})
    (tmp_path / "test.json").write_text(json.dumps(secret))
    data = load_task(TaskSettings(name="squad", test=str(tmp_path / "test.json")), 0)
    assert data.test["test"] == [QuestionExample("q1", "Who lived there?", CONTEXT, None)]


PLACE = r"data\[0\]\.paragraphs\[1\]\.qas\[0\] \(id q1\): "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            document(question(answers=[{"text": "Ada", "answer_start": 3}])),
            PLACE + r"answer 'Ada' is not .*\(it is at 22\)",
        ),
        (
            document(question(answers=[{"text": "Ada", "answer_start": -3}])),
            PLACE + "answer 'Ada' is not in the context",
        ),
        (document(question(answers=[{"text": "Bo", "answer_start": 3}])), PLACE + ".*the context does not hold it"),
        (document(question(answers=[{"text": "", "answer_start": 3}])), PLACE + "no answer; .* squad_v2"),
        (document(question(answers=[{"text": "Ada", "answer_start": 3.5}])), PLACE + "answer_start 3.5 is not a whole"),
        (document(question(answers=[{"text": "Ada", "answer_start": "x"}])), PLACE + "answer_start 'x' is not a whole"),
        (document(question(answers=[{"text": "Ada"}])), PLACE + "an answer without"),
        (document(question(answers=[])), PLACE + "no answer; questions without one belong to the task squad_v2"),
        (document(question(answers=[ADA], is_impossible=True)), PLACE + "is_impossible is true, but there are answers"),
        (document({"id": "q1", "question": "q"}), PLACE + "no answers"),
        (document({"id": "q1", "answers": [ADA]}), PLACE + "no column 'question'"),
        (document(question(), context=None), PLACE + "its paragraph has no 'context'"),
        (document(question(), context=" "), PLACE + "column 'context' is empty"),
        (document(question(), question()), r"qas\[1\] \(id q1\): id 'q1' is there already"),
        (document(question(), qas=None), r"data\[0\]\.paragraphs\[1\]: no list 'qas'"),
        ({"data": [{"title": "x"}]}, r"data\[0\]: no list 'paragraphs'"),
        ({"data": []}, "no row that can be used"),
        (json.dumps(document(question()))[:-9], "dev.json, line 1: not JSON"),
        (json.dumps(document(question()), indent=1)[:-9], "dev.json, line 30: not JSON"),
        ("", "the file is empty"),
    ],
)
def test_bad_entries_are_named_by_their_path(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "dev.json", content)
    assert "\n" not in str(error.value)


def test_bad_entries_can_be_left_out(tmp_path: Path) -> None:
    bad = {"id": "q0", "question": "q", "answers": [{"text": "Bo", "answer_start": 3}]}
    data = load(tmp_path / "dev.json", document(bad, question()), on_error="skip")
    assert [e.id for e in data.validation["validation"]] == ["q1"]
    assert data.notes[0].startswith("validation: 1 row skipped (first: ")

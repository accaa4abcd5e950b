"""From rows to examples: answers in the spellings that are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.tasks.examples import Answer

CONTEXT = "Ada wrote to Charles in 1843."
YEAR = (Answer("1843", 24),)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([{"text": "1843", "answer_start": 24.0}], YEAR),
        ({"text": ["1843"], "answer_start": [24.0]}, YEAR),
        ({"text": ["1843"], "answer_start": ["24"]}, YEAR),
        ({"text": "1843", "answer_start": "24.0"}, YEAR),
        (json.dumps({"text": ["1843"], "answer_start": [24]}), YEAR),
        ("{'text': ['1843'], 'answer_start': [24]}", YEAR),
        ([{"text": "1843", "answer_start": 24}, {"text": "", "answer_start": 0}], YEAR),
        ("", ()),
        ([], ()),
        ({"text": [], "answer_start": []}, ()),
        ({"text": [""], "answer_start": [-1]}, ()),
        ({"text": [""], "answer_start": []}, ()),
        ({"text": "", "answer_start": None}, ()),
        ([{"text": "", "answer_start": -1}], ()),
        ([{"text": None, "answer_start": None}], ()),
    ],
)
def test_answers(tmp_path: Path, write: Any, load: Any, answers: Any, expected: tuple[Answer, ...]) -> None:
    row = {"question": "When?", "context": CONTEXT, "answers": answers}
    train = write(tmp_path / "a.jsonl", [row] * 3)
    assert load("question", train=train, validation=train).train[0].answers == expected

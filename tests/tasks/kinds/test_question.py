"""Questions as windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from distil_jax.config import TaskSettings
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks.examples import Answer, QuestionExample
from distil_jax.tasks.kinds.question import QUESTION

LONG = "the big old dog ran fast home to eat red fish with the cat"
SHORT = "a bird sings"


@pytest.fixture(scope="module")
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


def test_answers_point_at_their_tokens(tokenizer: Tokenizer) -> None:
    example = QuestionExample("q", "what does the cat eat", LONG, (Answer("red fish", LONG.index("red fish")),))
    settings = TaskSettings(max_length=32, doc_stride=8, max_question_length=8)
    encoded = QUESTION.encode(tokenizer, [example], settings)
    assert encoded.labels is not None
    start, end = encoded.labels[0]
    assert tokenizer.backend.decode(encoded.ids[0][start : end + 1].tolist()) == "red fish"


def test_questions_whose_answer_no_token_covers_are_not_trained_on(tokenizer: Tokenizer) -> None:
    broken = QuestionExample("q", "where", "cat   sat", (Answer(" ", 4),))
    good = QuestionExample("p", "where", "cat sat", (Answer("sat", 4),))
    encoded = QUESTION.encode(tokenizer, [broken, good], TaskSettings(), training=True)
    assert [window.example for window in encoded.parts] == [1]
    assert any("answers" in note for note in encoded.notes)

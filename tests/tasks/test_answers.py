"""What is said of a row, from its logits."""

from __future__ import annotations

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.models import TaskHead
from distil_jax.tasks.answers import AnswerOptions, answers
from distil_jax.tasks.encode import IGNORED, Encoded
from distil_jax.tasks.examples import TokenExample


@pytest.mark.parametrize(
    ("labels", "tags"),
    [
        (("O", "B-PER", "I-PER", "L-PER", "U-PER"), (4, 4, 1, 2, 3)),
        (("O", "B-PER", "I-PER", "E-PER", "S-PER"), (4, 4, 1, 2, 3)),
        (("O", "B-PER", "I-PER"), (1, 1, 1, 2, 2)),
    ],
)
def test_the_entities_of_a_sentence_in_any_usual_scheme(labels: tuple[str, ...], tags: tuple[int, ...]) -> None:
    words = ("Ann", "Bob", "Cy", "van", "Dam")
    rows = np.array([IGNORED, *range(5), IGNORED], np.int32)  # a token a word, between [CLS] and [SEP]
    encoded = Encoded([rows], [rows], [rows], np.array([7], np.int32), 0, (), tagged=[(0, np.arange(5))])
    logits = 20 * np.eye(len(labels), dtype=np.float32)[[0, *tags, 0]]
    head = TaskHead("token", labels=labels, num_outputs=len(labels))
    [found] = answers(head, [logits], encoded, [TokenExample("0", words, None)], TaskSettings(), AnswerOptions())
    assert found["tags"] == [labels[tag] for tag in tags]
    assert [(one["type"], one["text"]) for one in found["entities"]] == [
        ("PER", "Ann"),
        ("PER", "Bob"),
        ("PER", "Cy van Dam"),
    ]

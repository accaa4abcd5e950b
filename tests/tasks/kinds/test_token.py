"""Sentences in words: rows, tags, entities."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.models import TaskHead
from distil_jax.tasks.encoded import IGNORED, Encoded
from distil_jax.tasks.examples import TaskData, TokenExample
from distil_jax.tasks.kinds import Predicted, PredictionOptions
from distil_jax.tasks.kinds.token import TAG_METRICS, TAGS, TaggedWords
from distil_jax.tasks.measures import score
from distil_jax.tasks.registry import task_spec

LONG = "the big old dog ran fast home to eat red fish with the cat"
SHORT = "a bird sings"


@pytest.fixture(scope="module")
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


def tags_of(
    logits: list[np.ndarray], encoded: Encoded, examples: list[TokenExample], labels: tuple[str, ...]
) -> list[list[str]]:
    head = TaskHead("token", labels=labels, num_outputs=len(labels))
    predicted = Predicted(logits, encoded, examples, TaskSettings())
    return [one["tags"] for one in TAGS.decode(predicted, head, PredictionOptions())]


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer: Tokenizer) -> None:
    words = ("cat,", "dog", "sat.", "home")  # "cat," is two tokens, "sat." too
    encoded = TAGS.encode(tokenizer, [TokenExample("0", words, (3, 0, 1, 2))], TaskSettings())
    assert encoded.labels is not None
    assert encoded.labels[0].tolist() == [IGNORED, 3, IGNORED, 0, 1, IGNORED, 2, IGNORED]
    tokens = [tokenizer.tokens()[number] for number in encoded.ids[0]]
    assert tokens == ["[CLS]", "cat", ",", "dog", "sat", ".", "home", "[SEP]"]


def test_words_have_the_ids_of_the_sentence(shared: Path, tmp_path: Path) -> None:
    """Also where a space belongs to the word behind it, as in RoBERTa."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "data" / "vocab" / f"roberta-base-{name}", tmp_path / name)
    for tokenizer in (load_tokenizer(tmp_path), load_tokenizer(shared / "data/vocab/bert-base-cased-vocab.txt")):
        words = ("Angela", "Merkel's", "visit", "to", "S\u00e3o", "Paulo", ",", "(1998)", ".")
        encoded = TAGS.encode(tokenizer, [TokenExample("0", words, tuple(range(1, 10)))], TaskSettings())
        found = tokenizer.backend.encode(" ".join(words))
        assert encoded.ids[0].tolist() == found.ids
        assert encoded.labels is not None
        tagged = np.flatnonzero(encoded.labels[0] != IGNORED)
        begins = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        assert [found.offsets[place][0] for place in tagged] == begins.tolist()


def test_a_word_that_the_tokenizer_drops_does_not_shift_the_others(tokenizer: Tokenizer) -> None:
    example = TokenExample("0", ("cat", "\x07", "home"), (1, 0, 2))
    encoded = TAGS.encode(tokenizer, [example], TaskSettings())
    assert encoded.labels is not None
    assert encoded.labels[0].tolist() == [IGNORED, 1, 2, IGNORED]
    assert encoded.parts[0].words.tolist() == [0, 2]
    logits = [np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]]
    assert tags_of(logits, encoded, [example], ("O", "B-X", "I-X")) == [["B-X", "O", "I-X"]]


def test_a_long_sentence_is_read_in_parts_and_each_word_tagged_once(tokenizer: Tokenizer) -> None:
    words = tuple(LONG.split())
    example = TokenExample("0", words, tuple(range(len(words))))
    encoded = TAGS.encode(tokenizer, [TokenExample("1", ("cat",), (0,)), example], TaskSettings(max_length=8))
    assert encoded.labels is not None
    assert encoded.notes == ("1 sentences of more than 8 tokens read in parts",)
    assert encoded.lengths.max() == 8
    tags = np.concatenate([row[row != IGNORED] for row in encoded.labels[1:]])
    assert sorted(tags.tolist()) == list(range(len(words)))
    # Inside the sentence a word is tagged where two words or more stand on either side of it.
    for labels in encoded.labels[2:-1]:
        owned = np.flatnonzero(labels != IGNORED)
        assert owned.min() >= 1 + 1 and owned.max() <= len(labels) - 1 - 2
    # Logits that say what the labels are give the words their tags back, across the parts.
    names = [f"B-{i}" for i in range(len(words))]
    logits = [np.eye(len(names), dtype=np.float32)[row] for row in encoded.labels]
    assert tags_of(logits, encoded, [TokenExample("1", ("cat",)), example], tuple(names)) == [["B-0"], names]


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
    encoded = Encoded([rows], [rows], [rows], np.array([7], np.int32), 0, (), parts=[TaggedWords(0, np.arange(5))])
    logits = 20 * np.eye(len(labels), dtype=np.float32)[[0, *tags, 0]]
    head = TaskHead("token", labels=labels, num_outputs=len(labels))
    predicted = Predicted([logits], encoded, [TokenExample("0", words, None)], TaskSettings())
    [found] = TAGS.decode(predicted, head, PredictionOptions())
    assert found["tags"] == [labels[tag] for tag in tags]
    assert [(one["type"], one["text"]) for one in found["entities"]] == [
        ("PER", "Ann"),
        ("PER", "Bob"),
        ("PER", "Cy van Dam"),
    ]


@pytest.mark.parametrize(
    ("labels", "metrics", "expected"),
    [
        (("O", "B-X", "B-Y"), (), {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}),
        (("DET", "NOUN", "VERB"), TAG_METRICS, {}),
    ],
)
def test_tags_are_measured_as_entities_where_they_mark_some(
    labels: tuple[str, ...], metrics: tuple[str, ...], expected: dict[str, float]
) -> None:
    spec = task_spec("tagging")
    spec = dataclasses.replace(spec, metrics=metrics or spec.metrics)
    sentence = TokenExample("0", ("a", "b", "c"), (0, 1, 2))
    rows = np.array([IGNORED, 0, 1, 2, IGNORED], np.int32)  # a token a word, between [CLS] and [SEP]
    encoded = Encoded([rows], [rows], [rows], np.array([5], np.int32), 0, (), parts=[TaggedWords(0, np.arange(3))])
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 0]]  # the last word is wrong
    data = TaskData(spec, labels, [], {}, {}, "")
    found = spec.kind.measure(data, Predicted([logits], encoded, [sentence], TaskSettings()))
    assert found == pytest.approx({**expected, "tag_accuracy": 2 / 3})
    assert score(spec.headline, spec.metrics, found) == pytest.approx(expected.get("entity_f1", 2 / 3))

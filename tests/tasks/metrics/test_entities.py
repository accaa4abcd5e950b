"""Named entities against seqeval."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import BILOU

from distil_jax.tasks.metrics.entities import entity_measures, entity_spans

PLAIN = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ODD = [
    *PLAIN,
    "E-PER",
    "S-PER",
    "E-LOC",
    "B",
    "I",
    "S",
    "O-PER",
    "B-",
    "I-new-york",
    "I-york",
    "PER",
    "X",
    "X-PER",
    ".",
]


def sentence_pairs(tags: list[str]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    return st.lists(
        st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags)), max_size=12), min_size=1, max_size=5
    )


def both_sides(sentences: list[list[tuple[str, str]]]) -> list[list[list[str]]]:
    return [[[word[side] for word in sentence] for sentence in sentences] for side in (0, 1)]


def measures(predicted: list[list[str]], reference: list[list[str]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of 0 / 0
        metrics: Any = seqeval.metrics
        return {
            "entity_f1": float(metrics.f1_score(reference, predicted)),
            "entity_precision": float(metrics.precision_score(reference, predicted)),
            "entity_recall": float(metrics.recall_score(reference, predicted)),
        }


def actual(predicted: list[list[str]], reference: list[list[str]]) -> dict[str, float]:
    found = entity_measures(predicted, reference)
    assert found.pop("tag_accuracy") == pytest.approx(_tag_accuracy(predicted, reference))
    return found


def _tag_accuracy(predicted: list[list[str]], reference: list[list[str]]) -> float:
    return float(seqeval.metrics.accuracy_score(reference, predicted)) if any(reference) else 0.0


@given(sentence_pairs(PLAIN))
def test_two_types_as_seqeval(sentences: list[list[tuple[str, str]]]) -> None:
    predicted, reference = both_sides(sentences)
    assert actual(predicted, reference) == pytest.approx(measures(predicted, reference), abs=1e-12)


@given(sentence_pairs(ODD))
def test_odd_tags_as_seqeval(sentences: list[list[tuple[str, str]]]) -> None:
    predicted, reference = both_sides(sentences)
    assert actual(predicted, reference) == pytest.approx(measures(predicted, reference), abs=1e-12)


@st.composite
def bilou_sentence(draw: st.DrawFn) -> list[str]:
    """Eight words of well-formed BILOU tags."""
    tags: list[str] = []
    while len(tags) < 8:
        kind, length = draw(st.sampled_from(["PER", "LOC", "O"])), draw(st.integers(1, min(4, 8 - len(tags))))
        if kind == "O":
            tags += ["O"] * length
        else:
            inside = ["B", *["I"] * (length - 2), "L"] if length > 1 else ["U"]
            tags += [f"{prefix}-{kind}" for prefix in inside]
    return tags


@given(st.lists(bilou_sentence(), min_size=4, max_size=4))
def test_bilou_tags_as_seqevals_bilou(sentences: list[list[str]]) -> None:
    predicted, reference = sentences[:2], sentences[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 0 / 0
        metrics: Any = seqeval.metrics
        measures = (metrics.precision_score, metrics.recall_score, metrics.f1_score)
        expected = [float(measure(reference, predicted, mode="strict", scheme=BILOU)) for measure in measures]
    found = entity_measures(predicted, reference)
    names = ("entity_precision", "entity_recall", "entity_f1")
    assert [found[name] for name in names] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["U-PER", "U-PER"], [("PER", 0, 0), ("PER", 1, 1)]),
        (["B-PER", "L-PER", "B-PER", "L-PER"], [("PER", 0, 1), ("PER", 2, 3)]),
        (["U", "U", "B", "L"], [("_", 0, 0), ("_", 1, 1), ("_", 2, 3)]),
        (["LOC", "LOC"], [("OC", 0, 1)]),  # no prefix, read as seqeval reads any tag
    ],
)
def test_the_entities_of_bilou_tags(tags: list[str], spans: list[tuple[str, int, int]]) -> None:
    assert list(entity_spans([tags])) == spans


def test_an_inside_tag_may_start_an_entity() -> None:
    found = entity_measures([["I-PER", "I-PER", "I-LOC", "O"]], [["B-PER", "I-PER", "B-LOC", "O"]])
    assert found == {"entity_f1": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "tag_accuracy": 0.5}


def test_an_entity_ends_with_its_sentence() -> None:
    joined = entity_measures([["B-PER", "I-PER"]], [["B-PER", "I-PER"]])
    parted = entity_measures([["B-PER"], ["I-PER"]], [["B-PER"], ["I-PER"]])
    half = entity_measures([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]])
    assert joined["entity_f1"] == parted["entity_f1"] == 1.0
    assert (half["entity_precision"], half["entity_recall"]) == (0.5, 1.0)


def test_no_entity_at_all_is_zero() -> None:
    assert entity_measures([["O"]], [["O"]]) == {
        "entity_f1": 0.0,
        "entity_precision": 0.0,
        "entity_recall": 0.0,
        "tag_accuracy": 1.0,
    }


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [([["O"]], [["O", "O"]], "same numbers"), ([["O"]], [["O"], ["O"]], "same numbers"), ([[""]], [["O"]], "empty")],
)
def test_what_does_not_fit_is_refused(predicted: list, reference: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entity_measures(predicted, reference)


def test_real_sentences_as_seqeval(shared: Path) -> None:
    lines = (shared / "data/ner/emerging.dev.conll").read_text(encoding="utf-8").split("\n")
    reference: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            reference[-1].append(line.split("\t")[-1].strip())
        elif reference[-1]:
            reference.append([])
    reference = [sentence for sentence in reference if sentence]
    tags = sorted({tag for sentence in reference for tag in sentence})
    rng = np.random.default_rng(0)
    noisy = [[str(rng.choice(tags)) if rng.random() < 0.1 else tag for tag in sentence] for sentence in reference]
    assert len(reference) == 1009
    found = actual(noisy, reference)
    assert found == pytest.approx(measures(noisy, reference), abs=1e-12)
    assert 0.3 < found["entity_f1"] < 0.95

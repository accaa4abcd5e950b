"""Tag schemes: recognised from well-formed tags, and measured as seqeval does."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import seqeval.metrics
import seqeval.scheme
from seqeval.metrics.sequence_labeling import get_entities

from distil_jax.tasks.metrics.entities import entity_measures
from distil_jax.tasks.metrics.tag_schemes import STRICT, mark_entities, tag_scheme, to_iob2

SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BMES", "BILOU")
Span = tuple[int, int, str]


def drawn_spans(chance: random.Random, length: int) -> list[Span]:
    """Entities (first, end, type), some of them neighbours."""
    spans, place = [], 0
    while place < length:
        end = min(place + chance.choice((1, 1, 2, 3)), length)
        if chance.random() < 0.6:
            spans.append((place, end, chance.choice(("PER", "creative-work"))))
        place = end
    return spans


def tags_of(spans: list[Span], length: int, scheme: str) -> list[str]:
    """Tags written by the scheme's definition."""
    tags = ["O"] * length
    for first, end, kind in spans:
        marks = ["I"] * (end - first)
        touches = [any(b == first and k == kind for _, b, k in spans), any(a == end and k == kind for a, _, k in spans)]
        if scheme == "IOB2" or (scheme == "IOB1" and touches[0]):
            marks[0] = "B"
        if scheme == "IOE2" or (scheme == "IOE1" and touches[1]):
            marks[-1] = "E"
        if scheme in ("IOBES", "BMES", "BILOU"):
            begin, inside, last, single = {"IOBES": "BIES", "BMES": "BMES", "BILOU": "BILU"}[scheme]
            marks = [single] if len(marks) == 1 else [begin, *[inside] * (len(marks) - 2), last]
        tags[first:end] = [f"{mark}-{kind}" for mark in marks]
    return tags


def sentences_of(scheme: str, seed: int) -> list[list[str]]:
    chance = random.Random(seed)
    lengths = [chance.randint(3, 12) for _ in range(40)]
    return [tags_of(drawn_spans(chance, length), length, scheme) for length in lengths]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_recognised(scheme: str) -> None:
    assert tag_scheme(sentences_of(scheme, 0)) == scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_those_that_the_tags_were_written_for(scheme: str) -> None:
    """The same entities, whatever scheme spells them: the same measures of the same errors."""
    right, found = sentences_of("IOB2", 1), sentences_of("IOB2", 1)
    found[0], found[3] = sentences_of("IOB2", 2)[0][: len(found[0])] + ["O"] * 12, ["O"] * len(found[3])
    found[0] = found[0][: len(right[0])]
    expected = entity_measures(found, right)["entity_f1"]
    assert 0 < expected < 1

    def written(sentences: list[list[str]]) -> list[list[str]]:
        return [tags_of(spans(tags), len(tags), scheme) for tags in sentences]

    assert entity_measures(written(found), written(right), scheme)["entity_f1"] == pytest.approx(expected)


def spans(tags: list[str]) -> list[Span]:
    """Entities of IOB2 tags, in which I- may follow nothing."""
    entities: list[Any] = get_entities(tags)
    return [(first, last + 1, kind) for kind, first, last in entities]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(5))
def test_malformed_predictions_count_as_in_seqeval(scheme: str, seed: int) -> None:
    right, chance = sentences_of(scheme, seed), random.Random(seed)
    tags = sorted({tag for sentence in right for tag in sentence})
    found = [[chance.choice(tags) if chance.random() < 0.4 else tag for tag in sentence] for sentence in right]
    actual = entity_measures(found, right, scheme)
    options: dict[str, Any] = {}
    if scheme in STRICT:
        options = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme.replace("BMES", "IOBES"))}
    if scheme == "BMES":
        right, found = ([[tag.replace("M-", "I-") for tag in row] for row in rows] for rows in (right, found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics: Any = seqeval.metrics
        reference = {
            "entity_f1": metrics.f1_score(right, found, **options),
            "entity_precision": metrics.precision_score(right, found, **options),
            "entity_recall": metrics.recall_score(right, found, **options),
        }
    assert {name: actual[name] for name in reference} == pytest.approx(reference)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ([["PRON", "VERB"]], ""),
        ([["O", "O"]], "IOB2"),
        ([["B", "I", "O"]], "IOB2"),
        ([["B", "M", "E", "S"]], "BMES"),
        ([["B", "M", "M", "E"]], "BMES"),
        ([["S_PER", "B_PER", "E_PER"]], "IOBES"),
        ([["U-LOC", "O"]], "BILOU"),
        ([["PER-B", "PER-I", "O"]], "IOB2"),  # the mark behind the type
        ([["PER_S", "new-york-B", "new-york-E"]], "IOBES"),
        ([["S", "M", "L"]], ""),  # sizes
        ([["B-X", "E-X", "B-X", "O"]], "mixed"),  # an entity that never ends
        ([["I-X", "O", "B-Y"]], "mixed"),
        ([["B-X", "L-X", "S-X"]], "mixed"),
    ],
)
def test_few_tags(tags: list[list[str]], scheme: str) -> None:
    assert tag_scheme(tags) == scheme
    assert mark_entities(tag for row in tags for tag in row) == bool(scheme)


def test_known_tags_decide_with_those_that_are_there() -> None:
    assert tag_scheme([["B-X", "O"]], ("O", "B-X", "I-X", "E-X", "S-X")) == "mixed"
    assert tag_scheme([["S-X", "O"]], ("O", "B-X", "I-X", "E-X", "S-X")) == "IOBES"
    assert tag_scheme([["O"]], ("O", "B-X", "L-X")) == "BILOU"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_marks_behind_the_type_count_alike(scheme: str) -> None:
    right = sentences_of(scheme, 3)
    found = [sentence[:1] + ["O"] * (len(sentence) - 1) for sentence in right]
    turned = [
        [["-".join((*tag.split("-")[1:], tag[0])) if tag != "O" else tag for tag in row] for row in rows]
        for rows in (found, right)
    ]
    assert tag_scheme(turned[1]) == scheme
    assert entity_measures(turned[0], turned[1], scheme) == entity_measures(found, right, scheme)


def test_iob1_as_iob2() -> None:
    assert to_iob2(["I-A", "I-A", "I-B", "B-B", "I-B", "O", "I-B"]) == ["B-A", "I-A", "B-B", "B-B", "I-B", "O", "B-B"]
    assert [to_iob2(tags) for tags in sentences_of("IOB1", 4)] == sentences_of("IOB2", 4)

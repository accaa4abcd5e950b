"""Sentences in words, with a tag a word."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.rows import BadRowError
from distil_jax.hf import Tokenizer
from distil_jax.tasks.batches import Labels, normalised
from distil_jax.tasks.data.classes import decide_tags
from distil_jax.tasks.data.columns import Columns
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, checked_text, label_of, value_of
from distil_jax.tasks.data.labels import is_span_tag
from distil_jax.tasks.encoded import IGNORED, Encoded, assembled, pieces
from distil_jax.tasks.examples import TaskData, TokenExample
from distil_jax.tasks.kinds.kind import (
    Predicted,
    Prediction,
    PredictionOptions,
    TaskKind,
    class_distillation_loss,
    entropy,
    named_outputs,
    output_names,
    rounded,
    softmax,
)
from distil_jax.tasks.kinds.sequence import balanced_weights
from distil_jax.tasks.metrics.entities import entity_measures, entity_spans
from distil_jax.tasks.metrics.scores import class_details
from distil_jax.tasks.metrics.tag_schemes import to_iob2
from distil_jax.tasks.spans import window_layout

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")
TAG_METRICS = ("tag_accuracy",)  # of tags that mark no entities
_NO_TAG = "O"

if TYPE_CHECKING:
    from distil_jax.models import TaskHead

_Predicted = Predicted[TokenExample]


class TaggedWords(NamedTuple):
    """The words whose tags a row predicts: the number of their sentence, and their numbers [W] in it."""

    sentence: int
    words: np.ndarray


def _to_example(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> TokenExample:
    words = value_of(values, taken.text)
    if isinstance(words, str) and rules.role == "test":
        words = words.split()
    if not isinstance(words, list | tuple):
        raise BadRowError(f"column {taken.text!r} holds {type(words).__name__}, not a list of words")
    if not words:
        raise BadRowError("a sentence without words")
    checked = tuple(checked_text(word, f"word {i} of the sentence") for i, word in enumerate(words, start=1))
    tags = label_of(values, taken, rules, hidden=False)
    if tags is None:
        return TokenExample(identity, checked)
    if not isinstance(tags, list):
        raise BadRowError(f"column {taken.label!r} holds {type(tags).__name__}, not a list of tags")
    if len(tags) != len(words):
        raise BadRowError(f"{len(words)} words but {len(tags)} tags")
    tags = to_iob2(tags) if rules.iob2 and all(isinstance(tag, str) for tag in tags) else tags
    return TokenExample(identity, checked, tuple(rules.classes.number(tag, "tag") for tag in tags))


def _encode(tokenizer: Tokenizer, examples: Sequence[TokenExample], settings: TaskSettings, training: bool) -> Encoded:
    """The first piece of a word carries its tag, the others none (Devlin et al. 2019, section 5.3).

    Sentences that are too long become several rows that overlap by half.
    """
    del training
    # A byte-level tokenizer takes the space before a word as part of it.
    texts = (f" {word}" if place else word for example in examples for place, word in enumerate(example.words))
    words = pieces(tokenizer, texts)
    limit = TAGS.row_length(settings)
    space, before = limit - tokenizer.num_special(), len(tokenizer.single.before)
    rows, labels, parts, long, first = [], [], [], 0, 0
    for number, example in enumerate(examples):
        of_words = words[first : first + len(example.words)]
        first += len(example.words)
        ids = list(itertools.chain.from_iterable(of_words))
        # Of some words, a control character say, the tokenizer leaves nothing.
        sizes = np.array([len(piece) for piece in of_words])
        numbers = np.flatnonzero(sizes)
        places = (np.cumsum(sizes) - sizes)[numbers]
        # Where the tags are not known, 0 only marks the tokens that get a prediction.
        tags = np.zeros(len(numbers), np.int32) if example.tags is None else np.asarray(example.tags)[numbers]
        layout = window_layout(len(ids), space, max(space // 2, 1))
        long += len(layout) > 1
        for begin, owned in layout:
            inside = np.flatnonzero((places >= begin) & (places < begin + len(owned)))
            inside = inside[owned[places[inside] - begin]]
            rows.append(tokenizer.bracket(ids[begin : begin + len(owned)]))
            row = np.full(len(rows[-1][0]), IGNORED, np.int32)
            row[places[inside] - begin + before] = tags[inside]
            labels.append(row)
            parts.append(TaggedWords(number, numbers[inside]))
    notes = (f"{long:,} sentences of more than {limit} tokens read in parts",) if long else ()
    return assembled(tokenizer, rows, labels, notes, parts=parts)


def _label_tags(labels: Sequence[np.ndarray], length: int, batch_size: int, class_weights: np.ndarray | None) -> Labels:
    """Labels, weights and shares [B, L]; every tag counts alike, whatever row it is in."""
    found = np.zeros((batch_size, length), np.int32)
    counts = np.zeros((batch_size, length), np.float32)
    for place, tags in enumerate(labels):
        found[place, : len(tags)] = np.maximum(tags, 0)
        counts[place, : len(tags)] = tags != IGNORED
    return normalised(found, counts, class_weights)


def _word_logits(predicted: _Predicted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers [W] of the words of each sentence that a token stands for, and the logits [W, K] of their tags."""
    encoded = predicted.encoded
    assert encoded.labels is not None
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in predicted.examples]
    for row, labels, part in zip(predicted.logits, encoded.labels, encoded.parts, strict=True):
        found[part.sentence].append((part.words, row[np.flatnonzero(labels != IGNORED)]))
    return (
        (np.concatenate(words), np.concatenate(rows)) for words, rows in (zip(*parts, strict=True) for parts in found)
    )


def _decode(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    """Words that no token stands for get the tag O (or the first one), score 0."""
    names = output_names(head)
    missing = _NO_TAG if _NO_TAG in names else names[0]
    with_entities = all(map(is_span_tag, names))  # other tags, such as parts of speech, mark no entities
    found: list[Prediction] = []
    for (numbers, logits), example in zip(_word_logits(predicted), predicted.examples, strict=True):
        tags, scores = [missing] * len(example.words), [0.0] * len(example.words)
        best, chances = logits.argmax(axis=-1), softmax(logits.astype(np.float64))
        for place, word in enumerate(numbers.tolist()):
            tags[word], scores[word] = names[best[place]], float(chances[place, best[place]])
        prediction: Prediction = {"words": [*example.words], "tags": tags, "scores": scores}
        found.append(prediction | ({"entities": _entities(example.words, tags, scores)} if with_entities else {}))
    return found


def _entities(words: Sequence[str], tags: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "type": kind,
            "text": " ".join(words[first : last + 1]),
            "start": first,
            "end": last + 1,
            "score": float(rounded(np.mean(scores[first : last + 1]))),
        }
        for kind, first, last in entity_spans([tags])
    ]


def _tags(data: TaskData, predicted: _Predicted) -> tuple[list[list[str]], list[list[str]]]:
    """Predicted and right tags of every sentence; words without a token get "O" (or the first tag)."""
    missing = data.labels.index(_NO_TAG) if _NO_TAG in data.labels else 0
    found = []
    for (words, logits), example in zip(_word_logits(predicted), predicted.examples, strict=True):
        numbers = np.full(len(example.words), missing)
        numbers[words] = logits.argmax(axis=-1)
        found.append([data.labels[number] for number in numbers])
    return found, [[data.labels[tag] for tag in example.tags or ()] for example in predicted.examples]


def _measure(data: TaskData, predicted: _Predicted) -> dict[str, float]:
    found = entity_measures(*_tags(data, predicted), data.scheme)
    return found if data.spec.metrics != TAG_METRICS else {name: found[name] for name in TAG_METRICS}


def _details(data: TaskData, predicted: _Predicted) -> dict[str, Any]:
    found, right = _tags(data, predicted)
    if data.spec.metrics != TAG_METRICS:
        return {"classes": _by_type(found, right, data.scheme)}
    number = {label: i for i, label in enumerate(data.labels)}
    flat = [np.array([number[tag] for tags in rows for tag in tags]) for rows in (found, right)]
    return class_details(data.labels, *flat)


def _by_type(found: list[list[str]], right: list[list[str]], scheme: str) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of the entities of each type, 0 where a share is 0 / 0."""
    predicted, reference = (set(entity_spans(tags, scheme)) for tags in (found, right))
    counts = [
        collections.Counter(kind for kind, *_ in spans) for spans in (predicted & reference, predicted, reference)
    ]

    def measures(kind: str) -> dict[str, float]:
        both, left, there = (count[kind] for count in counts)
        return {
            "precision": both / max(left, 1),
            "recall": both / max(there, 1),
            "f1": 2 * both / max(left + there, 1),
            "entities": there,
        }

    return {kind: measures(kind) for kind in sorted({*counts[1], *counts[2]})}


def _synthetic(identity: str, text: Callable[..., str], classes: int, pairs: bool) -> TokenExample:
    del pairs
    words = tuple(text().split())
    return TokenExample(identity, words, tuple((int(identity) + place) % classes for place in range(len(words))))


TAGS = TaskKind(
    name="tags",
    head="token",
    reads="tags of words",
    example=TokenExample,
    columns=Columns(("words", "tokens", "text"), label=("tags", "ner_tags", "label"), id=("id",)),
    row="a text or its words",
    bare=lambda row, columns: {columns.text[0]: row} if isinstance(row, str | list | tuple) else None,
    to_example=_to_example,
    decide_labels=decide_tags,
    rows=_encode,
    labels=_label_tags,
    loss=lambda logits, batch: entropy(logits, batch.labels, batch.weights),
    distillation_loss=class_distillation_loss,
    decode=_decode,
    measure=_measure,
    details=_details,
    label_of=lambda example: example.tags,
    counted=lambda tags: tags,
    characters=lambda example: sum(map(len, example.words)),
    synthetic=_synthetic,
    snippet=lambda model, pairs: [
        "from transformers import pipeline",
        "",
        f'tagger = pipeline("token-classification", {model}, aggregation_strategy="first")',
        'print(tagger("A sentence."))',
    ],
    pipeline="token-classification",
    metrics=ENTITY_METRICS,
    tagged=True,
    class_weights=balanced_weights,
    outputs=lambda head: named_outputs(head, "tags"),
)

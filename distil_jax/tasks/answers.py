"""Logits in the words of the task: what `predict` gives for each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.hf import numbered_labels
from distil_jax.models import TaskHead
from distil_jax.tasks.data.labels import is_span_tag
from distil_jax.tasks.encode import Encoded, word_logits
from distil_jax.tasks.examples import ChoiceExample, Example, QuestionExample, TokenExample
from distil_jax.tasks.metrics.entities import entity_spans
from distil_jax.tasks.spans import AnswerPrediction, predict_answers

Result = dict[str, Any]
_DIGITS = 7  # of probabilities: what float32 can tell apart near 1
_NO_TAG = "O"


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """What is said about a row.

    Attributes:
        threshold: probability from which a label of several is given.
        n_best: candidates of a question that are given; 0: only the answer.
        no_answer: a question may have no answer.
        null_threshold: no answer is given where its score beats the best span's by more than this.
    """

    threshold: float = 0.5
    n_best: int = 0
    no_answer: bool = False
    null_threshold: float = 0.0


def answers(
    head: TaskHead,
    logits: Sequence[np.ndarray],
    encoded: Encoded,
    examples: Sequence[Example],
    settings: TaskSettings,
    options: AnswerOptions,
) -> list[Result]:
    """A result for each example, without its id.

    Args:
        head: whose logits these are.
        logits: of each row: [K] of "sequence", [L, K] of "token", [L, 2] of "question", [C] of "choice".
        encoded: the rows.
        examples: what the rows were made from.
        settings: of spans.
        options: what is said.
    """
    if head.kind == "token":
        sentences = cast("Sequence[TokenExample]", examples)
        labels = _labels(head)
        found = zip(word_logits(encoded, logits, len(sentences)), sentences, strict=True)
        return [_tagged(numbers, rows, sentence.words, labels) for (numbers, rows), sentence in found]
    if head.kind == "question":
        questions = cast("Sequence[QuestionExample]", examples)
        return [_answer(one, options) for one in predicted_answers(logits, encoded, questions, settings, options)]
    values = np.stack(logits).astype(np.float64)
    if head.kind == "choice":
        chosen = zip(_softmax(values), cast("Sequence[ChoiceExample]", examples), strict=True)
        return [_chosen(scores, example.endings) for scores, example in chosen]
    return [*_classified(head, values, options)]


def _labels(head: TaskHead) -> tuple[str, ...]:
    return head.labels or numbered_labels(head.num_outputs)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.round(weights / weights.sum(axis=-1, keepdims=True), _DIGITS)


def _score(value: float) -> float:
    """Without the digits that a float32 does not have."""
    return float(str(np.float32(value)))


def _classified(head: TaskHead, logits: np.ndarray, options: AnswerOptions) -> Iterator[Result]:
    """Results for logits [N, K]. A head of one output gives a score, as one that nobody trained with classes."""
    labels = _labels(head)
    if head.num_outputs == 1 and head.problem != "multi_label_classification":
        yield from ({"score": _score(row[0])} for row in logits)
    elif head.problem == "regression":
        yield from ({"scores": dict(zip(labels, map(_score, row), strict=True))} for row in logits)
    elif head.problem == "multi_label_classification":
        # e^-|x| cannot overflow.
        small = np.exp(-np.abs(logits))
        chances = np.where(logits >= 0, 1.0, small) / (1.0 + small)
        given = chances >= options.threshold
        for row, chosen in zip(np.round(chances, _DIGITS).tolist(), given, strict=True):
            named = [label for label, one in zip(labels, chosen, strict=True) if one]
            yield {"labels": named, "scores": dict(zip(labels, row, strict=True))}
    else:
        best = logits.argmax(axis=-1)
        for row, place in zip(_softmax(logits).tolist(), best, strict=True):
            yield {"label": labels[place], "score": row[place], "scores": dict(zip(labels, row, strict=True))}


def _tagged(numbers: np.ndarray, logits: np.ndarray, words: Sequence[str], labels: Sequence[str]) -> Result:
    """Logits [W, K] are those of the words of these numbers; words that no token stands for get the tag O, score 0."""
    missing = _NO_TAG if _NO_TAG in labels else labels[0]
    tags, scores = [missing] * len(words), [0.0] * len(words)
    best, chances = logits.argmax(axis=-1), _softmax(logits.astype(np.float64))
    for place, word in enumerate(numbers.tolist()):
        tags[word], scores[word] = labels[best[place]], float(chances[place, best[place]])
    found: Result = {"words": [*words], "tags": tags, "scores": scores}
    if all(map(is_span_tag, labels)):  # other tags, such as parts of speech, mark no entities
        found["entities"] = [
            {
                "type": kind,
                "text": " ".join(words[first : last + 1]),
                "start": first,
                "end": last + 1,
                "score": round(float(np.mean(scores[first : last + 1])), _DIGITS),
            }
            for kind, first, last in entity_spans([tags])
        ]
    return found


def predicted_answers(
    logits: Sequence[np.ndarray],
    encoded: Encoded,
    examples: Sequence[QuestionExample],
    settings: TaskSettings,
    options: AnswerOptions,
) -> list[AnswerPrediction]:
    """The answer to every question from the logits [L, 2] of its windows."""
    return predict_answers(
        examples,
        encoded.windows,
        [row[:, 0] for row in logits],
        [row[:, 1] for row in logits],
        n_best=max(settings.n_best, options.n_best),
        max_answer_length=settings.max_answer_length,
        null_threshold=options.null_threshold,
        version_2=options.no_answer,
    )


def _answer(found: AnswerPrediction, options: AnswerOptions) -> Result:
    result: Result = {
        "answer": found.answer.text,
        "start": found.answer.start,
        "score": round(found.answer.probability, _DIGITS),
        "no_answer_score": _score(found.no_answer_score),
    }
    if options.n_best:
        result["n_best"] = [
            {"answer": one.text, "start": one.start, "score": round(one.probability, _DIGITS)}
            for one in found.n_best[: options.n_best]
        ]
    return result


def _chosen(scores: np.ndarray, endings: Sequence[str]) -> Result:
    place = int(scores.argmax())
    return {"choice": place, "ending": endings[place], "score": float(scores[place]), "scores": scores.tolist()}

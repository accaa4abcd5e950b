"""Measures of answers in words, as the official scripts of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) do."""

from __future__ import annotations

import collections
import math
import re
import string
from collections.abc import Mapping, Sequence

from distil_jax.errors import UserError
from distil_jax.tasks.examples import QuestionExample

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_measures(
    predictions: Mapping[str, str],
    examples: Sequence[QuestionExample],
    no_answer_scores: Mapping[str, float] | None = None,
    *,
    version_2: bool,
    threshold: float | None = None,
) -> dict[str, float]:
    """Exact match and F1 of words, each the best over a question's answers, and their means over questions.

    Where `no_answer_scores` are given, also the thresholds that would have been best: an answer counts as withheld
    where its score is above the threshold. They are searched as the official script does (from low to high scores,
    one question at a time, even if scores are equal; 0.0 if withholding everything is best).

    Args:
        predictions: answer text by question id, "" for no answer. Ids that no example has are ignored.
        examples: the questions with their answers; none means that "" is right.
        no_answer_scores: by question id, how much the model is for "no answer"; used in version 2 only.
        version_2: rules of SQuAD 2.0, else of 1.1; they differ in answers without any word left.
        threshold: withhold answers whose `no_answer_scores` value is above; None takes `predictions` as they are.

    Returns:
        Shares from 0 to 1: exact_match, squad_f1; in version 2 has_answer_ and no_answer_ exact_match and f1 over the
        questions that have, or have not, an answer (left out where there are none); with `no_answer_scores`
        best_exact_match, best_exact_match_threshold, best_f1, best_f1_threshold. Numbers of questions: total,
        has_answer_total, no_answer_total.

    Raises:
        ValueError: no examples, or one whose answers are not known.
        UserError: a question without prediction or no-answer score.
    """
    if not examples:
        raise ValueError("nothing to measure: no questions")
    _check_complete("prediction", predictions, examples)
    scores = [_score(predictions[example.id], example, version_2) for example in examples]
    if not version_2:
        return {**_means(scores, "exact_match", "squad_f1"), "total": float(len(scores))}
    if no_answer_scores is None:
        return _breakdown(scores, examples)
    _check_complete("no-answer score", no_answer_scores, examples)
    found = _breakdown(_withhold(scores, examples, no_answer_scores, threshold), examples)
    for column, name in enumerate(("best_exact_match", "best_f1")):
        by_id = {example.id: score[column] for example, score in zip(examples, scores, strict=True)}
        best, at = _best_threshold(by_id, predictions, examples, no_answer_scores)
        found |= {name: best / len(examples), f"{name}_threshold": at}
    return found


def _check_complete(what: str, values: Mapping[str, object], examples: Sequence[QuestionExample]) -> None:
    missing = [example.id for example in examples if example.id not in values]
    if missing:
        raise UserError(f"no {what} for {len(missing)} of {len(examples)} questions: first {missing[0]!r}; give all")


def _withhold(
    scores: Sequence[tuple[float, float]],
    examples: Sequence[QuestionExample],
    no_answer_scores: Mapping[str, float],
    threshold: float | None,
) -> list[tuple[float, float]]:
    """The scores with "" as the prediction where the no-answer score is above the threshold."""
    limit = math.inf if threshold is None else threshold
    empty = [float(not example.answers) for example in examples]
    return [
        (right, right) if no_answer_scores[example.id] > limit else score
        for score, example, right in zip(scores, examples, empty, strict=True)
    ]


def _breakdown(scores: Sequence[tuple[float, float]], examples: Sequence[QuestionExample]) -> dict[str, float]:
    """Means over all questions, over those with an answer, over those without."""
    found = {**_means(scores, "exact_match", "squad_f1"), "total": float(len(scores))}
    for name, which in (("has_answer", True), ("no_answer", False)):
        part = [score for score, example in zip(scores, examples, strict=True) if bool(example.answers) is which]
        if part:
            found |= {**_means(part, f"{name}_exact_match", f"{name}_f1"), f"{name}_total": float(len(part))}
    return found


def _means(scores: Sequence[tuple[float, float]], exact: str, f1: str) -> dict[str, float]:
    sums = [sum(column) for column in zip(*scores, strict=True)]
    return {exact: sums[0] / len(scores), f1: sums[1] / len(scores)}


def _score(prediction: str, example: QuestionExample, version_2: bool) -> tuple[float, float]:
    """(exact match, F1), each the best over the answers."""
    if example.answers is None:
        raise ValueError(f"question {example.id!r}: its answers are not known")
    references = [normalise_answer(answer.text) for answer in example.answers]
    if version_2:
        references = [reference for reference in references if reference]
    predicted = normalise_answer(prediction)
    pairs = [(float(predicted == one), _f1(predicted, one, version_2)) for one in references or [""]]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without a, an, the, words parted by one blank."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _f1(predicted: str, reference: str, version_2: bool) -> float:
    left, right = predicted.split(), reference.split()
    if version_2 and not (left and right):
        return float(left == right)
    both = sum((collections.Counter(left) & collections.Counter(right)).values())
    if not both:
        return 0.0
    precision, recall = both / len(left), both / len(right)
    return 2 * precision * recall / (precision + recall)


def _best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    examples: Sequence[QuestionExample],
    no_answer_scores: Mapping[str, float],
) -> tuple[float, float]:
    """(largest sum of scores, threshold): from all answers withheld, given out from the surest one on."""
    answerable = {example.id: bool(example.answers) for example in examples}
    current = best = float(sum(not has for has in answerable.values()))
    threshold = 0.0
    for name in sorted(no_answer_scores, key=no_answer_scores.__getitem__):
        if name not in scores:
            continue
        if answerable[name]:
            current += scores[name]
        elif predictions[name]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer_scores[name]
    return best, threshold

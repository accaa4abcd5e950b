"""Whole texts or pairs of texts: one class each, a set of classes, or a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.rows import BadRowError
from distil_jax.hf import Tokenizer
from distil_jax.tasks.batches import Labels, row_labels
from distil_jax.tasks.data.classes import decide_classes, decide_sets, no_labels
from distil_jax.tasks.data.columns import Columns
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, is_missing, label_of, text_of
from distil_jax.tasks.data.labels import class_set, indicator, number_of, score
from distil_jax.tasks.encoded import Encoded, assembled, cut_note, label_arrays, pieces
from distil_jax.tasks.examples import SequenceExample, TaskData
from distil_jax.tasks.kinds.kind import (
    Predicted,
    Prediction,
    PredictionOptions,
    TaskKind,
    class_distillation_loss,
    entropy,
    named_outputs,
    output_names,
    plain_score,
    rounded,
    softmax,
    teacher_kl,
)
from distil_jax.tasks.metrics.scores import calibration_error, class_details, measure, set_details

if TYPE_CHECKING:
    from jax import Array

    from distil_jax.models import TaskHead

_Predicted = Predicted[SequenceExample]
_ERRORS, _LONGEST_SHOWN = 10, 300  # wrong predictions in a result, and characters of each
_ROUNDED = 0.02  # what probabilities that were written with few digits may add up to beside 1


def _with(label: Callable[[Mapping[str, Any], TakenColumns, ExampleRules], Any]) -> Callable[..., SequenceExample]:
    """A `TaskKind.to_example` of texts with the label that `label` reads of a row."""

    def to_example(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> Any:
        text = text_of(values, taken.text, blank=rules.blank_text)
        pair = text_of(values, taken.pair, blank=rules.blank_text) if taken.pair else None
        return SequenceExample(identity, text, pair, label(values, taken, rules))

    return to_example


def _class(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> int | tuple[float, ...] | None:
    if taken.soft:
        return _probabilities(values, taken.soft)
    value = label_of(values, taken, rules, hidden="-1" not in rules.classes.names)
    return None if value is None else rules.classes.number(value)


def _probabilities(values: Mapping[str, Any], columns: Sequence[str]) -> tuple[float, ...]:
    """A probability a class, which add up to 1. Raises BadRowError."""
    found = []
    for name in columns:
        number = number_of(str(values.get(name)).strip())
        if number is None or not 0 <= number <= 1:
            raise BadRowError(f"column {name!r} holds {values.get(name)!r}, expected a probability from 0 to 1")
        found.append(float(number))
    total = sum(found)
    if abs(total - 1) > _ROUNDED:
        raise BadRowError(f"the probabilities in {', '.join(columns)} add up to {total:.4g}, expected 1")
    return tuple(number / total for number in found)


def _class_set(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> tuple[int, ...] | None:
    """The set of classes of a row; None where a test set keeps it secret. An empty text is a set without classes."""
    if not taken.indicators:
        value = values.get(taken.label) if taken.label else None
        secret = rules.role == "test" and (value is None or value in (-1, "-1"))
        return None if secret else class_set(value, rules.classes, rules.sets)
    given = [values.get(name) for name in taken.indicators]
    if rules.role == "test" and all(is_missing(value, "test") for value in given):
        return None
    found = []
    for name, value in zip(taken.indicators, given, strict=True):
        try:
            found.append(indicator(value))
        except BadRowError as error:
            raise BadRowError(f"column {name!r}: {error}") from error
    return tuple(found)


def _score(values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> float | None:
    value = label_of(values, taken, rules, hidden=rules.limits is not None)
    return None if value is None else score(value, rules.limits)


def _bare(row: Any, columns: Columns) -> dict[str, Any] | None:
    """A text, or two texts where the model reads pairs."""
    if isinstance(row, str):
        return {columns.text[0]: row}
    if isinstance(row, list | tuple) and len(row) == 2 and columns.pair:
        return {columns.text[0]: row[0], columns.pair[0]: row[1]}
    return None


def _encode(
    tokenizer: Tokenizer, examples: Sequence[SequenceExample], settings: TaskSettings, training: bool
) -> Encoded:
    del training
    texts = pieces(tokenizer, (example.text for example in examples))
    pairs = iter(pieces(tokenizer, (example.pair for example in examples if example.pair is not None)))
    limit = CLASSES.row_length(settings)
    rows = [
        tokenizer.fit(text, None if example.pair is None else next(pairs), limit)
        for example, text in zip(examples, texts, strict=True)
    ]
    labels = label_arrays([example.label for example in examples])
    return assembled(tokenizer, [row[:2] for row in rows], labels, cut_note(sum(cut for *_, cut in rows), limit))


def _stacked(predicted: _Predicted) -> np.ndarray:
    return np.stack(predicted.logits).astype(np.float64)


def _references(predicted: _Predicted) -> np.ndarray:
    return np.stack(predicted.encoded.labels or [])


def _synthetic(
    identity: str, text: Callable[..., str], pairs: bool, label: int | float | tuple[int, ...]
) -> SequenceExample:
    return SequenceExample(identity, text(), text() if pairs else None, label)


def _snippet(model: str, pairs: bool, arguments: str = "") -> list[str]:
    text = '{"text": "A text.", "text_pair": "Another one."}' if pairs else '"A text."'
    return [
        "from transformers import pipeline",
        "",
        f'classifier = pipeline("text-classification", {model}{arguments})',
        f"print(classifier({text}))",
    ]


# One class


def _decode_classes(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    names, logits = output_names(head), _stacked(predicted)
    return [
        {"label": names[place], "score": row[place], "scores": dict(zip(names, row, strict=True))}
        for row, place in zip(softmax(logits).tolist(), logits.argmax(axis=-1), strict=True)
    ]


def _class_loss(logits: Array, batch: Any) -> Array:
    """Cross entropy against class numbers [B] or probabilities [B, K]."""
    import jax.numpy as jnp
    import optax

    if batch.labels.ndim == 1:
        return entropy(logits, batch.labels, batch.weights)
    return jnp.sum(optax.softmax_cross_entropy(logits.astype(jnp.float32), batch.labels) * batch.weights)


def _class_number(label: Any) -> int | None:
    """The class of a label, of probabilities the most probable one."""
    if label is None:
        return None
    return int(np.argmax(label)) if np.ndim(label) else int(label)


def _class_references(predicted: _Predicted) -> np.ndarray:
    return np.array([_class_number(label) for label in predicted.encoded.labels or []])


def _class_details(data: TaskData, predicted: _Predicted) -> dict[str, Any]:
    logits, references = np.stack(predicted.logits), _class_references(predicted)
    probabilities = softmax(logits)
    return {
        **class_details(data.labels, logits.argmax(axis=-1), references),
        "calibration_error": calibration_error(probabilities, references),
        "errors": _worst_errors(data.labels, predicted.examples, probabilities, references),
    }


def _worst_errors(
    labels: Sequence[str], examples: Sequence[SequenceExample], probabilities: np.ndarray, references: np.ndarray
) -> list[dict[str, Any]]:
    """The wrong predictions of the highest probabilities, with their texts."""
    chosen, confidence = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
    wrong = [int(row) for row in np.argsort(-confidence, kind="stable") if chosen[row] != references[row]]
    return [
        {
            "id": examples[row].id,
            "text": " | ".join(filter(None, (examples[row].text, examples[row].pair)))[:_LONGEST_SHOWN],
            "label": labels[references[row]],
            "predicted": labels[chosen[row]],
            "probability": round(float(confidence[row]), 4),
        }
        for row in wrong[:_ERRORS]
    ]


def balanced_weights(labels: Sequence[Any], classes: int) -> np.ndarray:
    """Weight of each class [K] float32: labels / (classes x labels of the class); 0 where there is none."""
    counts = np.bincount(np.concatenate([np.atleast_1d(label) for label in labels]), minlength=classes)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1)) * (counts > 0)).astype(np.float32)


CLASSES = TaskKind(
    name="classes",
    head="sequence",
    problem="single_label_classification",
    reads="whole texts",
    example=SequenceExample,
    columns=Columns(("text", "sentence"), ("pair", "text_pair"), id=("id",)),
    row="a text",
    bare=_bare,
    to_example=_with(_class),
    decide_labels=decide_classes,
    rows=_encode,
    labels=row_labels,
    loss=_class_loss,
    distillation_loss=class_distillation_loss,
    decode=_decode_classes,
    measure=lambda data, predicted: measure(
        data.spec.metrics, np.stack(predicted.logits), _class_references(predicted)
    ),
    details=_class_details,
    label_of=lambda example: example.label,
    characters=lambda example: len(example.text) + len(example.pair or ""),
    synthetic=lambda name, text, classes, pairs: _synthetic(name, text, pairs, int(name) % classes),
    snippet=_snippet,
    pipeline="text-classification",
    metrics=("accuracy", "macro_f1"),
    fits=lambda head: head.problem in ("", "single_label_classification") and head.num_outputs > 1,
    class_weights=balanced_weights,
    outputs=lambda head: named_outputs(head, "labels"),
    optional_pair=True,
    fewest_classes=2,
    stratum=lambda example: _class_number(example.label),
    counted=lambda label: (_class_number(label),),
    soft_labels=True,
    texts_only=True,
)


# Sets of classes


def _label_sets(labels: Sequence[np.ndarray], length: int, batch_size: int, class_weights: np.ndarray | None) -> Labels:
    """With class weights, weights [B, K] are the shares times 1, or the class's weight where the example has it.

    Their sum is not 1, as in torch's BCEWithLogitsLoss(pos_weight).
    """
    found = row_labels(labels, length, batch_size, None)
    if class_weights is None:
        return found
    positive = np.where(found.labels > 0, class_weights, 1.0)
    return found._replace(weights=(found.shares[:, None] * positive).astype(np.float32))


def _set_loss(logits: Array, batch: Any) -> Array:
    import jax.numpy as jnp
    import optax

    entropies = optax.sigmoid_binary_cross_entropy(logits, batch.labels)
    return jnp.sum(jnp.mean(entropies * batch.weights.reshape(len(batch.weights), -1), axis=-1))


def _set_distillation_loss(student: Array, teacher: Array, batch: Any, temperature: float) -> Array:
    import jax.numpy as jnp

    # A yes/no decision with logit z is a softmax over (z, 0).
    pairs = [jnp.stack([logits, jnp.zeros_like(logits)], axis=-1) for logits in (student, teacher)]
    even = jnp.broadcast_to(batch.shares[:, None] / student.shape[-1], student.shape)
    return teacher_kl(pairs[0], pairs[1], even, temperature)


def _decode_sets(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    names, logits = output_names(head), _stacked(predicted)
    small = np.exp(-np.abs(logits))  # cannot overflow
    chances = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    given = chances >= options.threshold
    return [
        {
            "labels": [name for name, one in zip(names, chosen, strict=True) if one],
            "scores": dict(zip(names, row, strict=True)),
        }
        for row, chosen in zip(rounded(chances).tolist(), given, strict=True)
    ]


def _set_weights(labels: Sequence[Any], classes: int) -> np.ndarray:
    """Weight [K] float32 of the examples with a class: those without it / with it; 1 where there are none of either."""
    positives = np.sum(labels, axis=0, dtype=np.float64)
    ratios = (len(labels) - positives) / np.maximum(positives, 1)
    return np.where((positives > 0) & (ratios > 0), ratios, 1.0).astype(np.float32)


CLASS_SETS = dataclasses.replace(
    CLASSES,
    name="class_sets",
    problem="multi_label_classification",
    to_example=_with(_class_set),
    labels=_label_sets,
    loss=_set_loss,
    distillation_loss=_set_distillation_loss,
    decode=_decode_sets,
    measure=lambda data, predicted: measure(data.spec.metrics, np.stack(predicted.logits), _references(predicted)),
    soft_labels=False,
    details=lambda data, predicted: set_details(data.labels, np.stack(predicted.logits) > 0, _references(predicted)),
    synthetic=lambda name, text, classes, pairs: _synthetic(
        name, text, pairs, tuple(int(name) >> bit & 1 for bit in range(classes))
    ),
    snippet=lambda model, pairs: _snippet(model, pairs, ", top_k=None"),
    metrics=("micro_f1", "macro_f1", "accuracy"),
    fits=lambda head: head.problem in ("", "multi_label_classification"),
    counted=lambda label: (number for number, on in enumerate(label) if on),
    class_weights=_set_weights,
    decide_labels=decide_sets,
    fewest_classes=1,
    stratum=lambda example: None,
    several_labels=True,
    outputs=lambda head: named_outputs(head, "labels, any number of them a text"),
)


# Scores


def _score_loss(logits: Array, batch: Any) -> Array:
    error = (logits - batch.labels.reshape(logits.shape)) ** 2
    return (batch.weights * error.mean(axis=-1)).sum()


def _decode_scores(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    rows = [[plain_score(value) for value in row] for row in _stacked(predicted)]
    if head.num_outputs == 1:
        return [{"score": row[0]} for row in rows]
    return [{"scores": dict(zip(output_names(head), row, strict=True))} for row in rows]


def _measure_scores(data: TaskData, predicted: _Predicted) -> dict[str, float]:
    scores, references = np.stack(predicted.logits), _references(predicted)
    return measure(data.spec.metrics, scores.reshape(len(scores), -1)[:, 0], references.reshape(len(scores), -1)[:, 0])


SCORES = dataclasses.replace(
    CLASSES,
    name="scores",
    problem="regression",
    reads="scores of texts",
    to_example=_with(_score),
    loss=_score_loss,
    distillation_loss=lambda student, teacher, batch, temperature: (
        batch.shares * ((student - teacher) ** 2).mean(axis=-1)
    ).sum(),
    decode=_decode_scores,
    measure=_measure_scores,
    details=None,
    counted=lambda label: (label,),
    soft_labels=False,
    synthetic=lambda name, text, classes, pairs: _synthetic(name, text, pairs, float(int(name) % 6)),
    # Without this a single output would go through a sigmoid in older versions.
    snippet=lambda model, pairs: _snippet(model, pairs, ', function_to_apply="none"'),
    metrics=("pearson", "spearman"),
    fits=lambda head: head.problem == "regression" or head.num_outputs == 1,
    class_weights=None,
    decide_labels=no_labels,
    fewest_classes=0,
    stratum=lambda example: None,
    may_name_labels=False,
    outputs=lambda head: "output: a score" if head.num_outputs == 1 else f"output: {head.num_outputs} scores",
)

"""Measures of predictions that are numbers: classes, class sets and scores, by scikit-learn and SciPy.

Both are imported where they are used: they take a second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distil_jax.errors import UserError

_MOST_CLASSES = 200  # of a confusion matrix in a result
_ZERO: Any = 0  # of 0 / 0; the annotations of scikit-learn only know the word "warn"


def measure(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The named measures, as shares from 0 to 1 and correlations to ±1.

    Three sorts of input: class numbers or their logits ("accuracy", "f1", "macro_f1", "micro_f1", "matthews"); scores
    ("pearson", "spearman"); class sets or their logits ("accuracy": the whole set is right; "macro_f1", "micro_f1").
    "f1" is that of class 1 of two. "macro_f1" is the mean over the classes that occur (class sets: over all columns).

    Where a measure is 0 / 0 it is 0, also a correlation with a constant (SciPy says NaN, with which checkpoints could
    not be ranked).

    Args:
        names: which measures.
        predictions: [N] class numbers or scores, [N, 1] scores, or [N, C] logits; the class of a row is the largest
            logit, the set of a row are the logits above 0.
        references: [N] class numbers or scores, or [N, C] 0 or 1 a class of the set.

    Returns:
        {name: value} in the order of `names`.

    Raises:
        ValueError: unknown name, shapes that do not belong together, no rows, or a measure that does not suit them.
        UserError: predictions that are not finite.
    """
    unknown = [name for name in names if name not in _MEASURES]
    if unknown:
        raise ValueError(f"no measure {unknown[0]!r}; there are {', '.join(_MEASURES)}")
    predictions, references = np.asarray(predictions), np.asarray(references)
    _check_shapes(predictions, references)
    found: dict[str, float] = {}
    for name in names:
        prepare = _scores if name in _SCORE_MEASURES else _classes
        found[name] = _MEASURES[name](references, prepare(name, predictions, references))
    return found


def class_details(labels: Sequence[str], predicted: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Precision, recall and F1 of each class, and the confusion matrix (a row a right class, a column a predicted one).

    Args:
        labels: names of the classes.
        predicted: [N] class numbers.
        references: [N] class numbers.
    """
    from sklearn.metrics import confusion_matrix

    numbers = range(len(labels))
    found: dict[str, Any] = {"classes": _by_class(labels, references, predicted, labels=[*numbers])}
    if len(labels) <= _MOST_CLASSES:
        found["confusion"] = confusion_matrix(references, predicted, labels=[*numbers]).tolist()
    return found


def calibration_error(probabilities: np.ndarray, references: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017, section 2): mean |accuracy - confidence| over bins.

    Args:
        probabilities: [N, C] of the classes.
        references: [N] class numbers.
        bins: of equal width.
    """
    confidence, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == references
    numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(numbers, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def set_details(labels: Sequence[str], predicted: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Precision, recall and F1 of each class of class sets.

    Args:
        labels: names of the classes.
        predicted: [N, C] bool.
        references: [N, C] 0 or 1.
    """
    return {"classes": _by_class(labels, *_two_columns(references > 0, predicted))}


def _by_class(names: Sequence[str], references: np.ndarray, predicted: np.ndarray, **more: Any) -> dict[str, Any]:
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(references, predicted, average=None, zero_division=_ZERO, **more)
    columns = zip(*(np.asarray(column).tolist() for column in values), strict=True)
    fields = ("precision", "recall", "f1", "rows")
    return {name: dict(zip(fields, row, strict=True)) for name, row in zip(names, columns, strict=False)}


def _check_shapes(predictions: np.ndarray, references: np.ndarray) -> None:
    shapes = f"predictions {predictions.shape} and references {references.shape}"
    if predictions.ndim not in (1, 2) or references.ndim not in (1, 2) or len(predictions) != len(references):
        raise ValueError(f"{shapes} do not belong together")
    if references.ndim == 2 and predictions.shape != references.shape:
        raise ValueError(f"{shapes} do not belong together: class sets need a logit a class")
    if not references.size:
        raise ValueError("nothing to measure: no rows")
    if not np.isfinite(references).all():
        raise ValueError("references that are not finite")
    wrong = np.count_nonzero(~np.isfinite(predictions))
    if wrong:
        raise UserError(
            f"predictions: {wrong} of {predictions.size} values are not finite, the model has diverged; "
            "lower optimizer.learning_rate"
        )


def _scores(name: str, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    if references.ndim != 1 or predictions.size != len(references):
        raise ValueError(f"{name} needs one score a row, not predictions {predictions.shape}")
    return predictions.reshape(-1)


def _classes(name: str, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """[N] class numbers, or [N, C] bool of class sets."""
    if references.ndim == 2:
        if name in ("f1", "matthews"):
            raise ValueError(f"{name} is not defined for class sets; there are accuracy, macro_f1, micro_f1")
        return predictions > 0
    if predictions.ndim == 1:
        return predictions
    if predictions.shape[1] < 2:
        raise ValueError(f"{name} needs class numbers or a logit a class, not predictions {predictions.shape}")
    return predictions.argmax(axis=1)


def _accuracy(references: np.ndarray, predicted: np.ndarray) -> float:
    right = predicted == references
    return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))


def _f1_of_two(references: np.ndarray, predicted: np.ndarray) -> float:
    others = np.setdiff1d(np.concatenate([predicted, references]), [0, 1])
    if others.size:
        raise ValueError(f"f1 is for the classes 0 and 1, here is {others[0]:g}; use macro_f1 or micro_f1")
    return _f1(references, predicted, "binary")


def _f1(references: np.ndarray, predicted: np.ndarray, average: Any) -> float:
    from sklearn.metrics import f1_score

    columns = slice(None)
    if references.ndim == 2:
        columns, average = (slice(references.shape[1]), None) if average == "macro" else (columns, average)
        references, predicted = _two_columns(references > 0, predicted)
    found: Any = f1_score(references, predicted, average=average, zero_division=_ZERO)
    return float(np.mean(np.atleast_1d(found)[columns]))


def _two_columns(references: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sets of one class with a second, empty one: scikit-learn takes a single column for two classes."""
    if references.shape[1] > 1:
        return references, predicted
    empty = np.zeros_like(references)
    return np.concatenate([references, empty], axis=1), np.concatenate([predicted, empty], axis=1)


def _matthews(references: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predicted))


def _correlation(references: np.ndarray, predicted: np.ndarray, function: str) -> float:
    import scipy.stats

    left, right = references.astype(np.float64), predicted.astype(np.float64)
    if min(np.ptp(left), np.ptp(right)) == 0:
        return 0.0
    return float(np.clip(getattr(scipy.stats, function)(right, left).statistic, -1, 1))


_CLASS_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1_of_two,
    "macro_f1": functools.partial(_f1, average="macro"),
    "micro_f1": functools.partial(_f1, average="micro"),
    "matthews": _matthews,
}
_SCORE_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": functools.partial(_correlation, function="pearsonr"),
    "spearman": functools.partial(_correlation, function="spearmanr"),
}
_MEASURES = _CLASS_MEASURES | _SCORE_MEASURES

"""Measures of predictions that are numbers: classes, class sets and scores. Shares from 0 to 1, correlations to ±1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from distil_jax.errors import UserError


def measure(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The named measures, as scikit-learn and SciPy define them.

    Three sorts of input: class numbers or their logits ("accuracy", "f1", "macro_f1", "micro_f1", "matthews"); scores
    ("pearson", "spearman"); class sets or their logits ("accuracy": the whole set is right; "macro_f1", "micro_f1").
    "f1" is that of class 1 of two. "macro_f1" is the mean over the classes that occur (class sets: over all columns).

    Where a measure is 0 / 0 it is 0: F1 of a class that neither occurs nor is predicted, Matthews' coefficient where
    all is one class (scikit-learn), and correlations with a constant (scikit-learn's `r_regression`; SciPy says nan,
    with which checkpoints could not be ranked).

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
        function = _MEASURES[name]
        prepare = _scores if function in (_pearson, _spearman) else _classes
        found[name] = float(function(prepare(name, predictions, references), references))
    return found


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


def _accuracy(predicted: np.ndarray, references: np.ndarray) -> float:
    right = predicted == references
    return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))


def _f1(predicted: np.ndarray, references: np.ndarray) -> float:
    others = np.setdiff1d(np.concatenate([predicted, references]), [0, 1])
    if others.size:
        raise ValueError(f"f1 is for the classes 0 and 1, here is {others[0]:g}; use macro_f1 or micro_f1")
    return _f1_of_counts(*(int(np.count_nonzero(x)) for x in (predicted * references, predicted, references)))


def _macro_f1(predicted: np.ndarray, references: np.ndarray) -> float:
    counts = np.stack(_counts(predicted, references), axis=1).tolist()  # [classes, 3]
    return fmean(_f1_of_counts(*row) for row in counts)


def _micro_f1(predicted: np.ndarray, references: np.ndarray) -> float:
    return _f1_of_counts(*(int(counts.sum()) for counts in _counts(predicted, references)))


def _f1_of_counts(both: int, predicted: int, referred: int) -> float:
    """Harmonic mean of both / predicted and both / referred, where 0 / 0 is 0."""
    return 2 * both / (predicted + referred) if predicted + referred else 0.0


def _counts(predicted: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class: rows where it is right, where it is predicted, where it is the reference; [classes] int64 each."""
    if references.ndim == 2:
        real = references > 0
        return (predicted & real).sum(axis=0), predicted.sum(axis=0), real.sum(axis=0)
    classes, numbers = np.unique(np.concatenate([predicted, references]), return_inverse=True)
    left, right = np.split(numbers.reshape(-1), [len(predicted)])
    both, left_counts, right_counts = (
        np.bincount(found, minlength=len(classes)) for found in (left[left == right], left, right)
    )
    return both, left_counts, right_counts


def _matthews(predicted: np.ndarray, references: np.ndarray) -> float:
    """Correlation of two classifications with any number of classes (Gorodkin 2004)."""
    both, left, right = (counts.astype(np.float64) for counts in _counts(predicted, references))
    rows = float(len(references))
    spread = (rows**2 - left @ left) * (rows**2 - right @ right)
    return (rows * both.sum() - left @ right) / np.sqrt(spread) if spread > 0 else 0.0


def _pearson(predicted: np.ndarray, references: np.ndarray) -> float:
    left, right = (_centered(values) for values in (predicted, references))
    return float(np.clip(left @ right, -1, 1))


def _centered(values: np.ndarray) -> np.ndarray:
    """Values less their mean, scaled to norm 1: [N] -> [N] float64; zeros where all values are the same."""
    values = values.astype(np.float64)
    if np.ptp(values) == 0:  # their mean may be off by a rounding error, which would be scaled up
        return np.zeros_like(values)
    values = values / np.abs(values).max()
    values = values - values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values


def _spearman(predicted: np.ndarray, references: np.ndarray) -> float:
    return _pearson(_ranks(predicted), _ranks(references))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs: [N] -> [N] float64."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places.reshape(-1)]


_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}

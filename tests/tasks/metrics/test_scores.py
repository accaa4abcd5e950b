"""Measures of numbers against scikit-learn and SciPy, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.feature_selection
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distil_jax.errors import UserError
from distil_jax.tasks.metrics.scores import calibration_error, measure

ZERO: Any = 0  # the annotations of scikit-learn only know the word "warn"


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def statistic(result: Any) -> float:
    return float(result.statistic)


def pairs(elements: st.SearchStrategy[int], dtype: type = np.int64) -> st.SearchStrategy[np.ndarray]:
    """[2, N] of any N from 1 on: predictions and references."""
    shape = st.tuples(st.just(2), st.integers(1, 40))
    return shape.flatmap(lambda shape: hnp.arrays(dtype, shape, elements=elements))


@pytest.fixture(autouse=True)
def _quiet():
    """scikit-learn and SciPy warn of 0 / 0, which is what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@given(pairs(st.integers(0, 1)))
def test_two_classes_as_scikit_learn(rows: np.ndarray) -> None:
    found = measure(["accuracy", "f1", "matthews"], *rows)
    assert list(found) == ["accuracy", "f1", "matthews"]
    assert found["accuracy"] == close(sklearn.metrics.accuracy_score(rows[1], rows[0]))
    assert found["f1"] == close(sklearn.metrics.f1_score(rows[1], rows[0], zero_division=ZERO))
    assert found["matthews"] == close(sklearn.metrics.matthews_corrcoef(rows[1], rows[0]))


@given(pairs(st.integers(-2, 6)))
def test_many_classes_as_scikit_learn(rows: np.ndarray) -> None:
    found = measure(["macro_f1", "micro_f1", "matthews", "accuracy"], *rows)
    for average in ("macro", "micro"):
        expected = sklearn.metrics.f1_score(rows[1], rows[0], average=average, zero_division=ZERO)
        assert found[f"{average}_f1"] == close(expected), average
    assert found["matthews"] == close(sklearn.metrics.matthews_corrcoef(rows[1], rows[0]))
    assert found["accuracy"] == close(sklearn.metrics.accuracy_score(rows[1], rows[0]))


@given(
    pairs(st.integers(0, 1), np.int8).map(lambda rows: rows[:, :, None])
    | hnp.arrays(np.int8, (2, 7, 4), elements=st.integers(0, 1))
)
def test_class_sets_as_scikit_learn(rows: np.ndarray) -> None:
    logits, references = np.where(rows[0], 0.3, -0.3), rows[1]
    found = measure(["accuracy", "macro_f1", "micro_f1"], logits, references)
    if references.shape[1] == 1:  # scikit-learn takes one column as two classes, so here it gets a second, empty one
        rows = np.concatenate([rows, np.zeros_like(rows)], axis=2)
        assert 2 * sklearn.metrics.f1_score(rows[1], rows[0], average="macro", zero_division=ZERO) == close(
            found["macro_f1"]
        )
    else:
        expected = sklearn.metrics.f1_score(rows[1], rows[0], average="macro", zero_division=ZERO)
        assert found["macro_f1"] == close(expected)
    assert found["accuracy"] == close(sklearn.metrics.accuracy_score(rows[1], rows[0]))
    assert found["micro_f1"] == close(sklearn.metrics.f1_score(rows[1], rows[0], average="micro", zero_division=ZERO))


def test_a_logit_of_zero_is_not_in_the_set() -> None:
    assert measure(["accuracy"], np.array([[0.0, 1.0]]), np.array([[0, 1]])) == {"accuracy": 1.0}


@given(pairs(st.integers(-5, 5), np.float32))
def test_correlations_with_many_ties_as_scipy(rows: np.ndarray) -> None:
    found = measure(["pearson", "spearman"], *rows)
    if min(len(np.unique(row)) for row in rows) < 2:
        assert found == {"pearson": 0.0, "spearman": 0.0}
        return
    assert found["pearson"] == close(statistic(scipy.stats.pearsonr(*rows.astype(np.float64))))
    assert found["spearman"] == close(statistic(scipy.stats.spearmanr(*rows)))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-30, 0.0), (1e200, 0.0), (1.0, 1e6), (-3.0, 2.0)])
def test_correlations_of_scores_as_scipy(scale: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    references = rng.uniform(0, 5, 1500)
    predictions = (references + rng.normal(size=1500)) * scale + shift
    found = measure(["pearson", "spearman"], predictions[:, None], references)
    assert found["pearson"] == pytest.approx(statistic(scipy.stats.pearsonr(predictions, references)), rel=1e-9)
    assert found["spearman"] == pytest.approx(statistic(scipy.stats.spearmanr(predictions, references)), rel=1e-9)


@pytest.mark.parametrize("value", [2.0, 0.1])  # the mean of many 0.1 is not quite 0.1
def test_a_constant_correlates_with_nothing_as_in_scikit_learn(value: float) -> None:
    constant, other = np.full(50, value), np.arange(50.0)
    expected = sklearn.feature_selection.r_regression(constant[:, None], other)[0]
    assert expected == pytest.approx(0.0, abs=1e-9)
    assert measure(["pearson", "spearman"], constant, other) == {"pearson": 0.0, "spearman": 0.0}
    assert measure(["pearson"], other, constant) == {"pearson": 0.0}


def test_a_perfect_correlation_is_not_above_one() -> None:
    values = np.random.default_rng(3).normal(size=1001)
    found = measure(["pearson", "spearman"], values, values)
    assert max(found.values()) <= 1.0
    assert min(found.values()) == pytest.approx(1.0, abs=1e-12)


def test_matthews_does_not_overflow() -> None:
    references = np.tile(np.array([0, 1], np.int32), 500_000)
    predictions = np.where(np.arange(1_000_000) % 10 == 0, 1 - references, references)
    assert measure(["matthews"], predictions, references)["matthews"] == close(
        sklearn.metrics.matthews_corrcoef(references, predictions)
    )


def test_logits_stand_for_their_largest_class() -> None:
    logits = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    references = np.random.default_rng(2).integers(0, 3, 200)
    names = ["accuracy", "macro_f1", "matthews"]
    assert measure(names, logits, references) == measure(names, logits.argmax(1), references)


@pytest.mark.parametrize(
    ("names", "predictions", "references", "message"),
    [
        (["acuracy"], [1], [1], "no measure 'acuracy'; there are accuracy"),
        (["accuracy"], [1, 0], [1], "do not belong together"),
        (["accuracy"], [[1, 0]], [[1, 0, 1]], "class sets need a logit a class"),
        (["accuracy"], [], [], "no rows"),
        (["accuracy"], [[0.5]], [1], "a logit a class"),
        (["f1"], [0, 2], [0, 1], "classes 0 and 1, here is 2"),
        (["f1"], [[0.5, 1]], [[0, 1]], "not defined for class sets"),
        (["pearson"], [[0.5, 1]], [1.0], "one score a row"),
        (["pearson"], [0.5, 1], [1.0, np.nan], "references that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(names: list[str], predictions: list, references: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(names, np.array(predictions), np.array(references))


def test_a_model_that_diverged_is_no_score() -> None:
    with pytest.raises(UserError, match="2 of 4 values are not finite"):
        measure(["accuracy"], np.array([[0.1, np.nan], [np.inf, 1.0]]), np.array([0, 1]))


def test_calibration_error_of_bins_counted_by_hand() -> None:
    """Two bins of 15: confidences 0.95 (right, wrong) and 0.65 (right): |0.5 - 0.95| 2/3 + |1 - 0.65| 1/3."""
    probabilities = np.array([[0.95, 0.05], [0.05, 0.95], [0.35, 0.65]])
    found = calibration_error(probabilities, np.array([0, 0, 1]))
    assert found == pytest.approx(0.45 * 2 / 3 + 0.35 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_as_by_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(3), size=200)
    references = random.integers(0, 3, 200)
    wanted = 0.0
    for lower in range(15):
        inside = [row for row in range(200) if lower / 15 < probabilities[row].max() <= (lower + 1) / 15]
        if inside:
            right = np.mean([probabilities[row].argmax() == references[row] for row in inside])
            wanted += len(inside) / 200 * abs(right - np.mean([probabilities[row].max() for row in inside]))
    assert calibration_error(probabilities, references) == pytest.approx(wanted)

"""Which evaluation is the best, and when none better is to be waited for."""

from __future__ import annotations

import pytest

from distil_jax.training.selection import Selection


def scores(*values: float) -> dict[int, dict[str, float]]:
    """Evaluations at steps 10, 20, ..., the last one first."""
    found = {10 * (n + 1): {"accuracy": value, "loss": -value} for n, value in enumerate(values)}
    return dict(reversed(found.items()))


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((), None),
        ((0.5,), 10),
        ((0.5, 0.7, 0.6), 20),
        ((0.5, 0.7, 0.7), 20),
        ((float("nan"), 0.1), 20),
        ((float("inf"), 0.1), 20),
    ],
)
def test_the_best_is_the_first_of_the_highest(values: tuple[float, ...], best: int | None) -> None:
    assert Selection("accuracy").best_step(scores(*values)) == best


@pytest.mark.parametrize(
    ("patience", "values", "stops"),
    [
        (0, (0.9, 0.1, 0.1, 0.1), False),
        (2, (0.9, 0.1), False),
        (2, (0.9, 0.1, 0.2), True),
        (2, (0.9, 0.9, 0.9), True),
        (2, (0.9, 0.1, 0.95), False),
        (1, (), False),
    ],
)
def test_patience_counts_evaluations_since_the_best(patience: int, values: tuple[float, ...], stops: bool) -> None:
    assert Selection("accuracy", patience).exhausted(scores(*values)) is stops

"""Labels in other spellings than the classes they are."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.tasks.data.labels import match_model

STARS = ("1 star", *(f"{number} stars" for number in range(2, 6)))


@pytest.mark.parametrize(
    ("names", "written", "expected"),
    [
        (STARS, ["1", "2", "3", "4"], [0, 1, 2, 3]),
        (STARS, [1.0, 4.0], [0, 3]),
        (STARS, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (STARS, ["1 star", "5 STARS"], [0, 4]),
        (("good", "bad", "ugly"), [1, 2, 3], [0, 1, 2]),
        (("good", "bad", "ugly"), [0, 2], [0, 2]),
        (("bad", "fair", "good"), [-1, 0, 1], [0, 1, 2]),
        (("Positive", "positive", "x"), ["Positive", "positive"], [0, 1]),
        (("Positive", "positive", "x"), ["X"], [2]),
        (("2.0", "0.0"), ["2", "0"], [0, 1]),
        (("True", "False"), ["1", "0"], [0, 1]),
        (("0", "1"), [True, "false"], [1, 0]),
        (("none", "1 point", "2 points"), [1, 2], [1, 2]),
    ],
)
def test_labels_are_matched_to_a_models_classes(
    names: tuple[str, ...], written: list[Any], expected: list[int]
) -> None:
    found = match_model(names, written)
    assert found is not None and [found.number(value) for value in written] == expected


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("bad", "fair", "good"), [1, 2]),
        (("bad", "good"), [1]),
        (STARS, [0, 1, 2, 3]),
        (("1 star", "2 stars", "none"), [0, 1, 2]),
    ],
)
def test_numbers_that_may_be_shifted_have_to_be_explained(names: tuple[str, ...], written: list[Any]) -> None:
    with pytest.raises(UserError, match=f"={names[0]}"):
        match_model(names, written)


@pytest.mark.parametrize(("names", "written"), [(("0", "1", "2"), [1, 3]), (("a", "b"), ["x", "y"])])
def test_other_classes_than_the_models(names: tuple[str, ...], written: list[Any]) -> None:
    assert match_model(names, written) is None

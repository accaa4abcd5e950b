"""Names of outputs in config.json: every JSON value that transformers loads, made distinct."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf import has_names, numbered_labels
from distil_jax.hf.labels import checked_labels, labels_from_hf


@pytest.mark.parametrize("values", [[1, 1, 1], ["a", "a", "a (1)"], ["1", 1, 1.0, True, None], ["", " ", "LABEL_0"]])
def test_names_are_distinct_and_can_be_given_again(values: list[Any]) -> None:
    names = labels_from_hf({"id2label": {str(number): value for number, value in enumerate(values)}}, "here")
    assert len(set(names)) == len(values)
    assert checked_labels(names) == names
    assert labels_from_hf({"id2label": dict(enumerate(names))}, "here") == names


def test_which_labels_are_names() -> None:
    assert not has_names(()) and not has_names(numbered_labels(3))
    assert has_names(("LABEL_1", "LABEL_0")) and has_names(("no", "yes"))


def test_too_many_labels_are_refused() -> None:
    with pytest.raises(UserError, match=r"^here: num_labels = 1048577"):
        labels_from_hf({"num_labels": (1 << 20) + 1}, "here")

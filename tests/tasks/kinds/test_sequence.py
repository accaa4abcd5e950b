"""Texts and pairs as rows, against transformers' own tokenisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks.examples import SequenceExample
from distil_jax.tasks.kinds.sequence import CLASSES

LONG = "the big old dog ran fast home to eat red fish with the cat"
SHORT = "a bird sings"


@pytest.fixture(scope="module")
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


@pytest.mark.parametrize(
    ("first", "second"), [(LONG, SHORT), (SHORT, LONG), (LONG, LONG), (SHORT, SHORT), (LONG, None)]
)
@pytest.mark.parametrize("length", [10, 13, 128])
def test_texts_and_pairs_are_what_transformers_makes_of_them(
    tokenizer: Tokenizer, tiny_inputs: Path, first: str, second: str | None, length: int
) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(tiny_inputs / "tokenizer"))
    expected = reference(first, second, truncation="longest_first", max_length=length, return_token_type_ids=True)
    example = SequenceExample("0", first, second, 1)
    found = CLASSES.encode(tokenizer, [example], TaskSettings(max_length=length))
    if {len(first.split()), len((second or "").split())} != {14} or length == 128:  # ties: either may lose its token
        assert found.ids[0].tolist() == expected["input_ids"]
        assert found.types[0].tolist() == expected["token_type_ids"]
    assert len(found.ids[0]) == len(expected["input_ids"])
    whole = len(reference(first, second)["input_ids"])
    assert found.notes == ((f"1 examples cut to {length} tokens",) if whole > length else ())


def test_labels_keep_their_sort(tokenizer: Tokenizer) -> None:
    def labels(*values: object) -> np.ndarray:
        examples = [SequenceExample(str(n), SHORT, None, value) for n, value in enumerate(values)]  # type: ignore[arg-type]
        encoded = CLASSES.encode(tokenizer, examples, TaskSettings())
        assert encoded.labels is not None
        return np.stack(encoded.labels)

    assert labels(0, 2).dtype == np.int32
    assert labels(0.5, 2.0).dtype == np.float32
    assert labels((0, 1, 1), (1, 0, 0)).tolist() == [[0, 1, 1], [1, 0, 0]]
    unknown = CLASSES.encode(tokenizer, [SequenceExample("0", SHORT)], TaskSettings())
    assert unknown.labels is None

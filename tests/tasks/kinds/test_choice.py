"""Endings as rows, with any number of them in one set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

from distil_jax.config import TaskSettings
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks.batches import collate
from distil_jax.tasks.encoded import NO_TOKEN
from distil_jax.tasks.examples import ChoiceExample, SequenceExample
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.sequence import CLASSES

LONG = "the big old dog ran fast home to eat red fish with the cat"
SHORT = "a bird sings"


@pytest.fixture(scope="module")
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


def test_endings_are_rows_of_one_length(tokenizer: Tokenizer) -> None:
    example = ChoiceExample("0", SHORT, ("fast", LONG), 1)
    encoded = CHOICE.encode(tokenizer, [example], TaskSettings())
    one = CLASSES.encode(tokenizer, [SequenceExample("0", SHORT, "fast")], TaskSettings())
    assert encoded.ids[0].shape == (2, 3 + 3 + 14)
    assert encoded.ids[0][0, : len(one.ids[0])].tolist() == one.ids[0].tolist()
    assert set(encoded.ids[0][0, len(one.ids[0]) :].tolist()) == {NO_TOKEN}


def test_an_ending_that_is_not_there_has_no_part_in_the_loss(tokenizer: Tokenizer) -> None:
    """Losses and gradients of a batch with 2 and 3 endings are those of each example alone, as PyTorch has them."""
    examples = [ChoiceExample("0", SHORT, ("fast", "home"), 1), ChoiceExample("1", SHORT, ("a", "red", "cat"), 2)]
    encoded = CHOICE.encode(tokenizer, examples, TaskSettings())
    batch = collate(encoded, CHOICE, np.arange(2), 16, 4)
    assert batch.inputs.ids.shape == (4, 3, 16)
    assert (np.asarray(batch.token_share) > 0).tolist() == [[True, True, False], [True] * 3, [False] * 3, [False] * 3]
    np.testing.assert_allclose(np.sum(batch.inputs.mask * np.expand_dims(batch.token_share, -1)), 1, rtol=1e-6)
    random = np.random.default_rng(0)
    student, teacher = (random.standard_normal((4, 3)).astype(np.float32) for _ in range(2))
    loss, slope = jax.value_and_grad(lambda logits: CHOICE.loss(logits, batch))(student)
    counts = [len(example.endings) for example in examples]
    given = [torch.tensor(student[i, :count]).requires_grad_() for i, count in enumerate(counts)]
    labels = [torch.tensor(example.label) for example in examples]
    expected: Any = sum(functional.cross_entropy(x, y) for x, y in zip(given, labels, strict=True)) / 2
    expected.backward()
    np.testing.assert_allclose(loss, float(expected.detach()), rtol=1e-6)
    for row, one, count in zip(np.asarray(slope), given, counts, strict=False):
        np.testing.assert_allclose(row[:count], np.asarray(one.grad), rtol=1e-5, atol=1e-7)
        assert not row[count:].any()
    loss, slope = jax.value_and_grad(lambda x: CHOICE.distillation_loss(x, jnp.array(teacher), batch, 2.0))(student)
    pairs = [(student[i, :count] / 2, teacher[i, :count] / 2) for i, count in enumerate(counts)]
    parts = [special.rel_entr(special.softmax(right), special.softmax(left)).sum() for left, right in pairs]
    np.testing.assert_allclose(loss, 4 * np.mean(parts), rtol=1e-5)
    assert np.isfinite(slope).all() and not np.asarray(slope)[0, 2:].any()

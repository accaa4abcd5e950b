"""Batches of fine-tuning: every row once, few shapes, weights that are global means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distil_jax.tasks.batches import choose_buckets, collate, epoch_plan, evaluation_plan, training_plan
from distil_jax.tasks.encoded import IGNORED, NO_TOKEN, Encoded
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.kinds.token import TAGS

RANDOM = np.random.default_rng(0)
LENGTHS = np.clip(RANDOM.gamma(2.0, 9.0, 500).astype(int) + 3, 3, 128)


def padded(lengths: np.ndarray, buckets: tuple[int, ...]) -> int:
    return int(np.asarray(buckets)[np.searchsorted(buckets, lengths)].sum())


def encoded_rows(labels: list[np.ndarray] | None, lengths: list[int]) -> Encoded:
    ids = [np.arange(5, 5 + length, dtype=np.int32) for length in lengths]
    types = [np.arange(length, dtype=np.int32) % 2 for length in lengths]
    return Encoded(ids, types, labels, np.array(lengths, np.int32), pad_id=0, notes=())


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_no_other_buckets_of_that_number_pad_less(most: int) -> None:
    lengths = RANDOM.integers(3, 60, 40)
    chosen = choose_buckets(lengths, most=most)
    longest = -(-int(lengths.max()) // 8) * 8
    sizes = range(8, longest, 8)
    choices = itertools.combinations(sizes, len(chosen) - 1)
    assert padded(lengths, chosen) == min(padded(lengths, (*choice, longest)) for choice in choices)
    assert len(chosen) <= most


def test_few_buckets_keep_padding_below_a_tenth() -> None:
    buckets = choose_buckets(LENGTHS)
    assert padded(LENGTHS, buckets) <= 1.1 * LENGTHS.sum() or len(buckets) == 6
    assert padded(LENGTHS, buckets) < 0.5 * padded(LENGTHS, (128,))
    assert choose_buckets(np.full(9, 40)) == (40,)


@pytest.mark.parametrize(
    ("given", "used"), [((32, 64, 128, 512), (32, 64, 128)), ((16,), (16, 104)), ((512,), (512,)), ((104,), (104,))]
)
def test_given_buckets_are_used_as_far_as_needed(given: tuple[int, ...], used: tuple[int, ...]) -> None:
    assert choose_buckets(np.array([5, 99, 40]), given) == used


@pytest.mark.parametrize(("given", "used"), [((), (50,)), ((512,), (50,)), ((16, 52), (16, 50))])
def test_no_bucket_is_longer_than_the_model_has_positions(given: tuple[int, ...], used: tuple[int, ...]) -> None:
    assert choose_buckets(np.full(9, 50), given, most=1, limit=50) == used


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_an_epoch_has_every_row_once_in_as_few_batches_as_can_be(batch_size: int) -> None:
    buckets = choose_buckets(LENGTHS)
    plan = epoch_plan(LENGTHS, buckets, batch_size, np.random.default_rng(3))
    assert len(plan) == -(-len(LENGTHS) // batch_size)
    assert sorted(np.concatenate([rows for _, rows in plan])) == list(range(len(LENGTHS)))
    assert all(LENGTHS[rows].max() <= length and length in buckets for length, rows in plan)
    assert sum(len(rows) < batch_size for _, rows in plan) <= 1


def test_a_batch_depends_on_seed_and_step_only() -> None:
    plan, again, other = (training_plan(LENGTHS, (32, 128), 16, seed) for seed in (0, 0, 1))
    straight = [plan(step) for step in range(70)]
    for step in (69, 3, 40):
        length, rows = again(step)
        assert length == straight[step][0]
        np.testing.assert_array_equal(rows, straight[step][1])
    assert any(other(step)[1].tolist() != straight[step][1].tolist() for step in range(3))
    epochs = [np.concatenate([rows for _, rows in straight[first : first + 32]]) for first in (0, 32)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(LENGTHS)))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_an_evaluation_has_every_row_once() -> None:
    plan = evaluation_plan(LENGTHS, choose_buckets(LENGTHS), 48)
    assert sorted(np.concatenate([rows for _, rows in plan])) == list(range(len(LENGTHS)))
    assert all(LENGTHS[rows].max() <= length for length, rows in plan)


def test_rows_are_padded_and_empty_places_weigh_nothing() -> None:
    encoded = encoded_rows([np.array(label, np.int32) for label in (2, 0, 1)], [4, 2, 6])
    batch = collate(encoded, CLASSES, np.array([2, 0]), 8, 4)
    np.testing.assert_array_equal(batch.inputs.ids[:2], [[5, 6, 7, 8, 9, 10, 0, 0], [5, 6, 7, 8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(np.asarray(batch.inputs.mask).sum(axis=1), [6, 4, 1, 1])
    np.testing.assert_array_equal(batch.labels[:2], [1, 2])
    np.testing.assert_allclose(batch.weights, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(batch.token_share, [0.1, 0.1, 0, 0])


def test_class_weights_make_a_weighted_mean() -> None:
    encoded = encoded_rows([np.array(label, np.int32) for label in (0, 1, 1)], [3, 3, 3])
    batch = collate(encoded, CLASSES, np.arange(3), 8, 4, np.array([3.0, 0.5], np.float32))
    np.testing.assert_allclose(batch.weights, [0.75, 0.125, 0.125, 0], rtol=1e-6)
    np.testing.assert_allclose(batch.shares, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_tags_weigh_alike_whatever_row_they_are_in() -> None:
    labels = [np.array([IGNORED, 2, IGNORED], np.int32), np.array([IGNORED, 1, 0, 3, IGNORED], np.int32)]
    batch = collate(encoded_rows(labels, [3, 5]), TAGS, np.arange(2), 8, 2)
    expected = np.zeros((2, 8))
    expected[0, 1] = expected[1, 1:4] = 0.25
    np.testing.assert_allclose(batch.weights, expected)
    np.testing.assert_array_equal(batch.labels[1], [0, 1, 0, 3, 0, 0, 0, 0])


def test_the_padding_of_shorter_endings_is_masked() -> None:
    ids = [np.array([[5, 6, 7], [5, 6, NO_TOKEN]], np.int32)]
    types, labels, lengths = [np.zeros((2, 3), np.int32)], [np.array(1, np.int32)], np.array([3])
    encoded = Encoded(ids, types, labels, lengths, pad_id=0, notes=(), choices=2)
    batch = collate(encoded, CHOICE, np.array([0]), 8, 2)
    assert batch.inputs.ids.shape == (2, 2, 8)
    np.testing.assert_array_equal(np.asarray(batch.inputs.mask).sum(axis=-1), [[3, 2], [1, 1]])
    np.testing.assert_allclose(batch.token_share, [[0.2, 0.2], [0, 0]])

"""Dynamic masking: the exact number, never a special token, the right shares, by the right weights, row by row."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.corpus.masking import (
    MaskedRows,
    MaskingRule,
    mask_rows,
    masking_log_weights,
    predictions_per_row,
)

PAD, UNK, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 4, 60
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
RULE = MaskingRule(MASK, VOCAB, 0.15, 0.8, 0.1)
UNIFORM = masking_log_weights(np.ones(VOCAB, np.int64), SPECIAL, 0.0)

mask = jax.jit(mask_rows, static_argnames="rule")
quotas_of = jax.jit(predictions_per_row, static_argnames="probability")


def keys_of(seed: int, count: int) -> Any:
    return jax.random.split(jax.random.key(seed), count)


def make_rows(seed: int, count: int, length: int) -> np.ndarray:
    """Rows of one sequence of 3 to `length` tokens, some of them [UNK], then padding."""
    noise = np.random.default_rng(seed)
    rows = np.full((count, length), PAD, np.int32)
    for row in rows:
        size = int(noise.integers(3, length + 1))
        words = np.where(noise.random(size - 2) < 0.1, UNK, noise.integers(5, VOCAB, size - 2))
        row[:size] = [CLS, *words, SEP]
    return rows


def predicted_positions(found: MaskedRows) -> list[list[int]]:
    return [
        sorted(positions[weights > 0].tolist())
        for positions, weights in zip(np.asarray(found.positions), np.asarray(found.weights), strict=True)
    ]


# How many


def exact_share(tokens: int, percent_of_percent: int) -> int:
    """ceil(probability * tokens) in Python's own integers."""
    return -(-tokens * percent_of_percent // 10_000)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 2**27), min_size=16, max_size=16),
    probability=st.sampled_from([0.15, 0.1, 0.3, 0.0001, 0.9999, 0.4321]),
)
def test_the_batch_gives_exactly_its_share_up_to_the_largest_batches(lengths: list[int], probability: float) -> None:
    """Sixteen rows stand for up to 2^31 tokens, where tokens * probability has long left int32."""
    lengths = [min(length, 2**27 - 1) for length in lengths]
    plenty = jnp.full(16, 2**31 - 1, jnp.int32)
    found = np.asarray(quotas_of(jnp.asarray(lengths, jnp.int32), plenty, probability))
    share = round(probability * 10_000)
    running = [exact_share(total, share) for total in itertools.accumulate(lengths)]
    assert np.cumsum(found.astype(np.int64)).tolist() == running
    assert (found >= 0).all()


def test_a_row_cannot_give_more_than_it_has() -> None:
    found = quotas_of(jnp.asarray([100, 100, 3]), jnp.asarray([4, 98, 0]), 0.15)
    assert np.asarray(found).tolist() == [4, 15, 0]


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_as_many_positions_are_predicted_as_the_batch_asks_for(probability: float) -> None:
    rule, log_weights = MaskingRule(MASK, VOCAB, probability, 0.8, 0.1), jnp.asarray(UNIFORM)
    for seed in range(12):
        rows = make_rows(seed, 8, 20)
        lengths, eligible = (rows != PAD).sum(1), (~np.isin(rows, SPECIAL)).sum(1)
        quotas = quotas_of(jnp.asarray(lengths), jnp.asarray(eligible), probability)
        found = mask(rows, keys_of(seed, 8), quotas, log_weights, rule)
        assert [len(row) for row in predicted_positions(found)] == np.asarray(quotas).tolist()
        if (eligible >= rule.max_predictions(20)).all():
            assert sum(map(len, predicted_positions(found))) == exact_share(
                int(lengths.sum()), round(probability * 1e4)
            )


@settings(max_examples=300, deadline=None)
@given(length=st.integers(1, 4096), before=st.integers(0, 10**6), share=st.integers(1, 9999))
def test_no_row_is_asked_for_more_than_it_has_room_for(length: int, before: int, share: int) -> None:
    room = MaskingRule(MASK, VOCAB, share / 10_000, 0.8, 0.1).max_predictions(length)
    assert exact_share(before + length, share) - exact_share(before, share) <= room <= length


# Which


def test_special_tokens_and_padding_are_never_predicted_or_changed() -> None:
    rows = make_rows(1, 300, 20)
    rows[:, 5] = MASK
    eligible = (~np.isin(rows, SPECIAL)).sum(1)
    rule = MaskingRule(MASK, VOCAB, 0.9, 0.8, 0.1)  # more than there are ordinary tokens
    found = mask(rows, keys_of(1, 300), jnp.minimum(eligible, 18), jnp.asarray(UNIFORM), rule)
    special = np.isin(rows, SPECIAL)
    np.testing.assert_array_equal(np.asarray(found.ids)[special], rows[special])
    for row, positions, count in zip(rows, predicted_positions(found), eligible, strict=True):
        assert len(positions) == count == len(set(positions))
        assert not np.isin(row[positions], SPECIAL).any()


def test_targets_are_what_stood_there_and_the_rest_stays() -> None:
    rows = make_rows(2, 200, 20)
    found = mask(rows, keys_of(2, 200), jnp.full(200, 1), jnp.asarray(UNIFORM), RULE)
    np.testing.assert_array_equal(found.targets, np.take_along_axis(rows, np.asarray(found.positions), 1))
    chosen = np.zeros(rows.shape, bool)
    for row, positions in enumerate(predicted_positions(found)):
        chosen[row, positions] = True
    np.testing.assert_array_equal(np.asarray(found.ids)[~chosen], rows[~chosen])
    assert found.positions.shape == found.targets.shape == found.weights.shape == (200, RULE.max_predictions(20))


def test_shares_of_masked_random_and_kept_tokens() -> None:
    """Chi-square with five classes: beyond 18.5 one time in a thousand."""
    count = 4000
    rows = np.full((count, 12), 7, np.int32)
    rule = MaskingRule(MASK, VOCAB, 0.5, 0.6, 0.3)
    found = mask(rows, keys_of(3, count), jnp.full(count, 6), jnp.asarray(UNIFORM), rule)
    new = np.take_along_axis(np.asarray(found.ids), np.asarray(found.positions), 1).ravel()
    random = 0.3 / VOCAB
    classes = {
        "mask": (new == MASK, 0.6 + random),
        "kept": (new == 7, 0.1 + random),
        "special": (np.isin(new, (PAD, UNK, CLS, SEP)), 4 * random),
        "low": ((new >= 5) & (new < 30) & (new != 7), 24 * random),
        "high": (new >= 30, 30 * random),
    }
    assert sum(share for _, share in classes.values()) == pytest.approx(1)
    assert sum(found.sum() for found, _ in classes.values()) == new.size
    square = sum((hit.sum() - new.size * share) ** 2 / (new.size * share) for hit, share in classes.values())
    assert square < 18.5


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 0.0)])
def test_shares_of_all_or_nothing(mask_share: float, random_share: float) -> None:
    rows = np.full((50, 12), 7, np.int32)
    found = mask(
        rows,
        keys_of(4, 50),
        jnp.full(50, 2),
        jnp.asarray(UNIFORM),
        MaskingRule(MASK, VOCAB, 0.15, mask_share, random_share),
    )
    assert (np.asarray(found.ids) == MASK).sum() == (100 if mask_share else 0)
    assert ((np.asarray(found.ids) != MASK) & (np.asarray(found.ids) != 7)).sum() == 0


# By which weights


def test_log_weights() -> None:
    counts = np.array([10, 20, 30, 40, 50, 0, 1, 2, 10**12], np.int64)
    for smoothing in (0.0, 0.5, 0.7, 1.0):
        found = masking_log_weights(counts, SPECIAL, smoothing)
        assert found.dtype == np.float32
        assert (found[list(SPECIAL)] == -np.inf).all()
        expected = [1.0, 1.0, 2.0**-smoothing, 1e12**-smoothing]  # a count of 0 is taken for 1
        np.testing.assert_allclose(np.exp(found[5:].astype(np.float64)), expected, rtol=1e-5)


def test_positions_are_drawn_like_torch_multinomial() -> None:
    """Three of six tokens without replacement, by count^-0.7: how often each is among them, exactly and by torch."""
    counts = np.ones(VOCAB, np.int64)
    counts[10:16] = [1, 3, 10, 30, 100, 1000]
    row, draws = np.arange(10, 16, dtype=np.int32), 20_000
    rule = MaskingRule(MASK, VOCAB, 0.5, 0.8, 0.1)
    log_weights = masking_log_weights(counts, SPECIAL, 0.7)
    found = mask(np.tile(row, (draws, 1)), keys_of(5, draws), jnp.full(draws, 3), jnp.asarray(log_weights), rule)
    frequency = np.bincount(np.asarray(found.positions).ravel(), minlength=6) / draws
    weights = counts[row].astype(float) ** -0.7
    exact = np.zeros(6)
    for chosen in itertools.permutations(range(6), 3):
        left, chance = weights.sum(), 1.0
        for item in chosen:
            chance *= weights[item] / left
            left -= weights[item]
        exact[list(chosen)] += chance
    assert exact.sum() == pytest.approx(3)
    torch.manual_seed(0)
    reference = torch.multinomial(torch.tensor(weights).repeat(draws, 1), 3, replacement=False)
    noise = 4.5 * np.sqrt(exact * (1 - exact) / draws)
    assert (np.abs(frequency - exact) < noise).all(), frequency - exact
    assert (np.abs(np.bincount(reference.flatten().numpy(), minlength=6) / draws - exact) < noise).all()
    first = np.bincount(np.asarray(found.positions)[:, 0], minlength=6) / draws
    single = weights / weights.sum()
    assert (np.abs(first - single) < 4.5 * np.sqrt(single * (1 - single) / draws)).all()


# A function of the row alone


def test_a_rows_mask_depends_on_its_key_tokens_and_quota_only() -> None:
    rows, keys, quotas = make_rows(6, 24, 20), keys_of(6, 24), jnp.arange(24) % 4
    whole = mask(rows, keys, quotas, jnp.asarray(UNIFORM), RULE)
    order = np.random.default_rng(0).permutation(24)[:9]
    part = mask(rows[order], keys[order], quotas[order], jnp.asarray(UNIFORM), RULE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[order], b), whole, part)
    other = mask(rows, keys_of(7, 24), quotas, jnp.asarray(UNIFORM), RULE)
    assert predicted_positions(other) != predicted_positions(whole)


def test_a_larger_quota_adds_positions_and_changes_none() -> None:
    rows, keys = make_rows(8, 40, 20), keys_of(8, 40)
    few, many = (mask(rows, keys, jnp.full(40, quota), jnp.asarray(UNIFORM), RULE) for quota in (1, 3))
    for one, other in zip(predicted_positions(few), predicted_positions(many), strict=True):
        assert set(one) <= set(other)


# Causal models

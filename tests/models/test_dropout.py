"""Dropout: the right share, the right scale, and bits that have nothing to do with each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.models.dropout import dropout, random_bits, row_keys

SIGMAS = 4.5  # a correct generator is outside one time in 150,000; the seeds are fixed

keep = jax.jit(lambda keys, site, rate, size: dropout(jnp.ones((len(keys), size)), keys, site, rate) > 0,
               static_argnums=(1, 2, 3))  # fmt: skip


def keys_of(seed: int, rows: Any) -> Any:
    return row_keys(jax.random.key(seed), jnp.asarray(rows))


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.ravel().astype(float), right.ravel().astype(float))[0, 1])


def assert_unrelated(left: np.ndarray, right: np.ndarray) -> None:
    assert abs(correlation(left, right)) < SIGMAS / np.sqrt(left.size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate: float) -> None:
    x = np.random.default_rng(0).standard_normal((64, 8, 500)).astype(np.float32)
    found = np.asarray(dropout(jnp.asarray(x), keys_of(0, range(64)), 3, rate))
    kept = found != 0
    assert abs(kept.mean() - (1 - rate)) < SIGMAS * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(found[kept], x[kept] / (1 - rate), rtol=1e-6)
    by_row = kept.mean((1, 2))
    assert (np.abs(by_row - (1 - rate)) < SIGMAS * np.sqrt(rate * (1 - rate) / 4000)).all()


def test_bytes_are_uniform() -> None:
    """Chi-square over the 256 values of each of the four bytes: beyond 345 one time in ten thousand."""
    bits = np.asarray(random_bits(keys_of(1, range(32)), 5, (16, 256)))
    for byte in range(4):
        counts = np.bincount(((bits >> (8 * byte)) & 255).ravel(), minlength=256)
        expected = bits.size / 256
        assert ((counts - expected) ** 2 / expected).sum() < 345, byte


def test_no_two_numbers_of_a_row_are_the_same() -> None:
    bits = np.asarray(random_bits(keys_of(2, range(4)), 0, (4096,)))
    for row in bits:
        assert len(set(row.tolist())) > 4090  # the birthday bound allows one or two


def test_rows_sites_and_steps_are_unrelated() -> None:
    first = np.asarray(keep(keys_of(3, range(40)), 7, 0.5, 2000))
    for site in (0, 6, 8, 7 + 256):
        assert_unrelated(first, np.asarray(keep(keys_of(3, range(40)), site, 0.5, 2000)))
    assert_unrelated(first, np.asarray(keep(keys_of(3, range(40, 80)), 7, 0.5, 2000)))
    step = row_keys(jax.random.fold_in(jax.random.key(3), 1), jnp.arange(40))
    assert_unrelated(first, np.asarray(keep(step, 7, 0.5, 2000)))
    assert_unrelated(first, np.asarray(keep(keys_of(4, range(40)), 7, 0.5, 2000)))


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 64, 256, 1000])
def test_places_of_a_row_are_unrelated(distance: int) -> None:
    found = np.asarray(keep(keys_of(5, range(40)), 1, 0.5, 2000))
    assert_unrelated(found[:, distance:], found[:, :-distance])


def test_neighbouring_keys_are_unrelated() -> None:
    """Keys as counters: rows whose keys differ in one bit of one word."""
    base = np.array([[123456, 654321]], np.uint32)
    flipped = [base ^ np.array([[1 << bit, 0]], np.uint32) for bit in (0, 1, 15, 31)]
    flipped += [base ^ np.array([[0, 1 << bit]], np.uint32) for bit in (0, 1, 15, 31)]
    first = np.asarray(keep(jnp.asarray(base), 1, 0.5, 20_000))
    for key in flipped:
        assert_unrelated(first, np.asarray(keep(jnp.asarray(key), 1, 0.5, 20_000)))


def test_a_row_meets_the_same_dropout_in_any_batch() -> None:
    x = jnp.ones((6, 5, 7))
    whole = np.asarray(dropout(x, keys_of(6, range(6)), 2, 0.3))
    part = np.asarray(dropout(x[:2], keys_of(6, [4, 1]), 2, 0.3))
    np.testing.assert_array_equal(part, whole[[4, 1]])
    compiled = np.asarray(jax.jit(lambda x, keys: dropout(x, keys, 2, 0.3))(x, keys_of(6, range(6))))
    np.testing.assert_array_equal(compiled, whole)


def test_row_keys_depend_on_the_key_and_the_row_number() -> None:
    found = np.asarray(keys_of(7, range(100)))
    assert found.shape == (100, 2) and found.dtype == np.uint32
    assert len({tuple(row) for row in found.tolist()}) == 100
    np.testing.assert_array_equal(keys_of(7, [42, 7]), found[[42, 7]])
    assert not np.array_equal(keys_of(8, range(100)), found)


def test_the_gradient_is_the_mask() -> None:
    x, keys = jnp.arange(1.0, 61.0).reshape(3, 20), keys_of(9, range(3))
    gradient = np.asarray(jax.grad(lambda x: dropout(x, keys, 0, 0.4).sum())(x))
    np.testing.assert_allclose(gradient, np.where(np.asarray(dropout(x, keys, 0, 0.4)) != 0, 1 / 0.6, 0), rtol=1e-6)


def test_what_is_dropped_may_be_infinite() -> None:
    keys = keys_of(10, range(1))
    dropped = np.asarray(dropout(jnp.ones((1, 100)), keys, 0, 0.5)) == 0
    found = np.asarray(dropout(jnp.where(jnp.asarray(dropped), jnp.inf, 1.0), keys, 0, 0.5))
    assert np.isfinite(found).all()


def test_switched_off_it_does_nothing() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, None, 0, 0.5) is x
    assert dropout(x, keys_of(0, range(2)), 0, 0.0) is x


def test_bfloat16_keeps_its_type_and_the_mean() -> None:
    """Scaling by 1 / bfloat16(0.9) instead of 1 / 0.9 would shift every activation by 0.17 %."""
    values = np.random.default_rng(1).uniform(1, 2, (8, 4000)).astype(np.float32)
    found = dropout(jnp.asarray(values, jnp.bfloat16), keys_of(11, range(8)), 0, 0.1)
    assert found.dtype == jnp.bfloat16
    whole = np.asarray(found, np.float64)
    kept = whole != 0
    ratio = whole[kept].mean() / np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)[kept].mean()
    assert ratio == pytest.approx(1 / 0.9, rel=2e-4)


def test_keys_in_the_forms_that_flax_users_have() -> None:
    """One key for the batch is a key a row; typed keys are their data; `rngs` drops out, the same for the same key."""
    config = EncoderConfig("bert", 20, 8, 1, 2, 16, 16, hidden_dropout=0.5)
    module, ids, key = MaskedLM(config), jnp.arange(12).reshape(3, 4), jax.random.key(7)
    params = module.init(jax.random.key(0), ids)

    def logits(**call: Any) -> np.ndarray:
        rngs = call.pop("rngs", None)
        return np.asarray(module.apply(params, ids, rngs=rngs, **call))

    rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(3))
    wanted = logits(dropout_keys=row_keys(key, jnp.arange(3)))
    for keys in (key, jax.random.key_data(key), rows):
        np.testing.assert_array_equal(logits(dropout_keys=keys), wanted)
    one, again, other = (logits(rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, logits())

"""Attention against a softmax written out in NumPy, with masks of packed rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models.attention import attend, attention_mask_matrix
from distil_jax.models.dropout import row_keys
from distil_jax.target import Device, traced_for

B, L, N, D = 2, 7, 3, 4
NOISE = np.random.default_rng(0)
QUERY, KEY, VALUE = (NOISE.standard_normal((B, L, N, D)).astype(np.float32) for _ in range(3))
PACKED = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]], np.int32)
BARELY = 1e-9  # a rate that takes the path with dropout and drops nothing


def by_hand(allowed: np.ndarray | None) -> np.ndarray:
    """One query at a time, in float64, over the keys it may see."""
    out = np.zeros((B, L, N, D))
    for b, n, q in np.ndindex(B, N, L):
        seen = np.arange(L) if allowed is None else np.flatnonzero(allowed[b, q])
        scores = KEY[b, seen, n].astype(np.float64) @ QUERY[b, q, n] / np.sqrt(D)
        weights = np.exp(scores - scores.max())
        out[b, q, n] = weights / weights.sum() @ VALUE[b, seen, n]
    return out


def on_device(dtype: Any = jnp.float32) -> Any:
    return [jnp.asarray(x, dtype) for x in (QUERY, KEY, VALUE)]


def keys(count: int) -> Any:
    return row_keys(jax.random.key(0), jnp.arange(count))


def brute_force_mask(sequences: np.ndarray) -> np.ndarray:
    allowed = np.zeros((*sequences.shape, sequences.shape[1]), bool)
    for b, q, k in np.ndindex(*allowed.shape):
        mine, other = sequences[b, q], sequences[b, k]
        allowed[b, q, k] = other != 0 and (mine in (other, 0))
    return allowed


def test_the_mask_lets_each_sequence_see_itself() -> None:
    found = np.asarray(attention_mask_matrix(jnp.asarray(PACKED)))
    np.testing.assert_array_equal(found, brute_force_mask(PACKED))
    real = PACKED > 0
    assert not found[:, :, :][~np.broadcast_to(real[:, None, :], found.shape)].any(), "padding is seen"
    assert found[1, 6].tolist() == real[1].tolist(), "padding sees every real key, as in PyTorch"


@pytest.mark.parametrize("path", ["plain", "with dropout"])
@pytest.mark.parametrize("sequences", [None, PACKED], ids=["one sequence", "packed"])
def test_softmax_over_the_keys_in_sight(path: str, sequences: np.ndarray | None) -> None:
    options: Any = {} if path == "plain" else {"dropout_keys": keys(B), "dropout_rate": BARELY}
    given = None if sequences is None else jnp.asarray(sequences)
    found = attend(jnp.asarray(QUERY), jnp.asarray(KEY), jnp.asarray(VALUE), given, **options)
    allowed = brute_force_mask(np.ones((B, L), np.int32) if sequences is None else sequences)
    np.testing.assert_allclose(found, by_hand(allowed), atol=2e-6)


@pytest.mark.parametrize("sequences", [None, PACKED], ids=["one sequence", "packed"])
def test_the_first_queries_alone(sequences: np.ndarray | None) -> None:
    """Whatever kernel is named for whole rows."""
    given = None if sequences is None else jnp.asarray(sequences)
    query, key, value = on_device()
    whole = attend(query, key, value, given)
    found = attend(query[:, :2], key, value, given, kind="cudnn")
    np.testing.assert_allclose(found, whole[:, :2], atol=2e-6)


@pytest.mark.parametrize("path", ["plain", "with dropout"])
def test_its_gradients_are_those_of_the_softmax_written_out(path: str) -> None:
    """Of a random weighted sum of the outputs of real queries, against the textbook's Jacobian in float64."""
    options: Any = {} if path == "plain" else {"dropout_keys": keys(B), "dropout_rate": BARELY}
    weights = np.where(PACKED[:, :, None, None] > 0, np.random.default_rng(3).standard_normal((B, L, N, D)), 0.0)

    def total(query: Any, key: Any, value: Any) -> Any:
        return (attend(query, key, value, jnp.asarray(PACKED), **options) * weights.astype(np.float32)).sum()

    found = jax.grad(total, argnums=(0, 1, 2))(*on_device())
    allowed = brute_force_mask(PACKED)
    expected = [np.zeros((B, L, N, D)) for _ in range(3)]
    for b, n, q in np.ndindex(B, N, L):
        seen = np.flatnonzero(allowed[b, q])
        scores = KEY[b, seen, n].astype(np.float64) @ QUERY[b, q, n] / np.sqrt(D)
        share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        of_share = VALUE[b, seen, n] @ weights[b, q, n]
        of_score = share * (of_share - share @ of_share) / np.sqrt(D)
        expected[0][b, q, n] += of_score @ KEY[b, seen, n]
        expected[1][b, seen, n] += of_score[:, None] * QUERY[b, q, n]
        expected[2][b, seen, n] += share[:, None] * weights[b, q, n]
    for result, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(result, reference, atol=5e-6)


def test_a_packed_row_is_its_sequences_one_by_one() -> None:
    whole = np.asarray(attend(jnp.asarray(QUERY), jnp.asarray(KEY), jnp.asarray(VALUE), jnp.asarray(PACKED)))
    for part in (slice(0, 3), slice(3, 7)):
        query, key, value = (jnp.asarray(x[:1, part]) for x in (QUERY, KEY, VALUE))
        np.testing.assert_allclose(whole[:1, part], attend(query, key, value, None), atol=2e-6)


@pytest.mark.parametrize("path", ["plain", "with dropout"])
def test_a_row_of_padding_stays_finite_with_its_gradient(path: str) -> None:
    """Evaluation fills its last batch with such rows."""
    padding = jnp.zeros((B, L), jnp.int32)
    options: Any = {} if path == "plain" else {"dropout_keys": keys(B), "dropout_rate": 0.1}

    def total(query: Any) -> Any:
        return attend(query, jnp.asarray(KEY), jnp.asarray(VALUE), padding, **options).sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(QUERY))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_dropout_of_probabilities_keeps_the_expectation() -> None:
    """The mean over many keys; each output is a sum of at most seven terms of which a fifth is dropped."""
    count = 4000
    query, key, value = (jnp.asarray(np.repeat(x[:1], count, 0)) for x in (QUERY, KEY, VALUE))
    found = np.asarray(attend(query, key, value, None, dropout_keys=keys(count), dropout_site=4, dropout_rate=0.2))
    noise = found.std(0) / np.sqrt(count)
    assert (np.abs(found.mean(0) - by_hand(None)[0]) < 5 * noise + 1e-6).all()
    assert (found.std(0) > 0.01).all(), "nothing was dropped"


def test_the_site_separates_the_dropout_of_layers() -> None:
    arrays = on_device()
    one, again, other = (
        np.asarray(attend(*arrays, mask=None, dropout_keys=keys(B), dropout_site=site, dropout_rate=0.3))
        for site in (1, 1, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01


def test_without_keys_there_is_no_dropout() -> None:
    arrays = on_device()
    np.testing.assert_array_equal(attend(*arrays, mask=None, dropout_rate=0.5), attend(*arrays, mask=None))


def test_bfloat16_keeps_its_type_on_both_paths() -> None:
    arrays = on_device(jnp.bfloat16)
    for options in ({}, {"dropout_keys": keys(B), "dropout_rate": BARELY}):
        found = attend(*arrays, mask=None, **options)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float32), by_hand(None), atol=0.05)


def test_accelerators_round_scores_to_the_compute_dtype() -> None:
    """In float32 nothing changes; in bfloat16 the result and the gradient stay within its rounding."""

    def run(*inputs: Any) -> Any:
        return jax.value_and_grad(
            lambda q, k, v: jnp.sum(attend(q, k, v, jnp.asarray(PACKED), kind="xla").astype(jnp.float32) ** 2),
            argnums=(0, 1, 2),
        )(*inputs)

    exact = run(*on_device())
    with traced_for(Device("tpu")):
        same, rounded = run(*on_device()), run(*on_device(jnp.bfloat16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), same, exact)
    for found, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03 * float(np.abs(expected).max()))

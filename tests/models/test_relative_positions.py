"""Biases of relative positions: the buckets of PyTorch's MPNet, and what they add to the scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.models import Encoder, EncoderConfig, EncoderInputs, row_keys
from distil_jax.models.relative_positions import RelativePositions, buckets_of

MPNET = EncoderConfig(
    *("mpnet", 50, 12, 2, 3, 20, 42),
    position_offset=2,
    pad_token_id=1,
    relative_buckets=32,
    initializer_range=0.3,
)
IDS = jnp.asarray(np.random.default_rng(0).integers(2, 50, (2, 40)), jnp.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(Encoder(MPNET).init)(jax.random.key(0), IDS)["params"]


def test_the_buckets_are_those_of_pytorch() -> None:
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-1100, 1101)
    for buckets in (8, 32, 64):
        expected = MPNetEncoder.relative_position_bucket(torch.from_numpy(distances), buckets).numpy()
        np.testing.assert_array_equal(buckets_of(distances, buckets), expected)


def test_the_bias_of_a_pair_is_that_of_its_distance() -> None:
    table = np.random.default_rng(1).standard_normal((32, 3)).astype(np.float32)
    module = RelativePositions(32, 3, 0.02)
    for length in (1, 2, 7, 40):
        place = np.arange(length)
        buckets = buckets_of(place[None] - place[:, None], 32)
        found, back = jax.vjp(lambda table, length=length: module.apply({"params": {"bias": table}}, length), table)
        found = np.asarray(found)
        np.testing.assert_array_equal(found, table[buckets].transpose(2, 0, 1)[None])
        given = np.random.default_rng(2).standard_normal(found.shape).astype(np.float32)
        summed = np.zeros_like(table)
        np.add.at(summed, buckets, given[0].transpose(1, 2, 0))
        np.testing.assert_allclose(back(given)[0], summed, atol=1e-5)


def test_packed_sequences_count_from_their_own_tokens(params: Any) -> None:
    mask = jnp.asarray([[1] * 23 + [2] * 12 + [0] * 5, [1] * 40], jnp.int32)
    positions = jnp.asarray([[*range(23), *range(12), *[0] * 5], [*range(40)]], jnp.int32)
    apply: Any = jax.jit(Encoder(MPNET).apply)
    packed = apply({"params": params}, EncoderInputs(IDS, mask, positions))
    alone = apply({"params": params}, IDS[:1, 23:35])
    np.testing.assert_allclose(packed[:1, 23:35], alone, atol=2e-6)


def test_layers_computed_again_and_token_0_alone(params: Any) -> None:
    inputs = EncoderInputs(IDS, dropout_keys=row_keys(jax.random.key(3), jnp.arange(2)))
    config = dataclasses.replace(MPNET, attention_output_dropout=0.1)

    def loss(params: Any, remat: Any) -> Any:
        states: Any = Encoder(config, remat=remat).apply({"params": params}, inputs)
        return jnp.sum(states * IDS[..., None])

    plain, again = (jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in ("none", "layer"))
    assert np.all(np.abs(plain["relative_positions"]["bias"]).max(-1)[:13] > 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, again)
    first = Encoder(MPNET).apply({"params": params}, EncoderInputs(IDS), method="cls_only")
    every: Any = Encoder(MPNET).apply({"params": params}, IDS)
    np.testing.assert_allclose(first, every[:, :1], atol=2e-6)  # type: ignore[arg-type]


def test_flash_attention_without_biases_is_refused(params: Any) -> None:
    for kind in ("cudnn", "splash"):
        with pytest.raises(UserError, match="biases of relative positions"):
            Encoder(MPNET, attention=kind).apply({"params": params}, IDS)

"""Look-ups: [PAD] is not trained by them, ids outside the table give NaN, rows are not longer than the positions."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from distil_jax.hf import from_pretrained, save_pretrained
from distil_jax.models import Encoder, EncoderConfig, EncoderInputs

CONFIG = EncoderConfig("bert", 40, 12, 1, 3, 20, 16, type_vocab_size=2, initializer_range=0.3)
OFFSET = dataclasses.replace(CONFIG, pad_token_id=1, position_offset=2, max_position_embeddings=18)
IDS: Any = np.random.default_rng(0).integers(5, 40, (2, 10)).astype(np.int32)


def apply(config: EncoderConfig, params: Any, *inputs: Any) -> np.ndarray:
    return np.asarray(Encoder(config).apply({"params": params}, EncoderInputs(*inputs)))


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(lambda: Encoder(CONFIG).init(jax.random.key(0), EncoderInputs(jnp.asarray(IDS)))["params"])()


def draw_batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded rows with [PAD] among their words as well, as random replacements draw it; mask; two positions a row."""
    random = np.random.default_rng(step)
    mask = (np.arange(12)[None] < np.array([[12], [7], [9], [5]])).astype(np.int32)
    ids = random.integers(1, 40, mask.shape) * mask
    ids[:, 2] = 0
    return ids.astype(np.int32), mask, random.integers(0, 5, (4, 2)).astype(np.int32)


def question_loss(logits: Any, ends: Any) -> Any:
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return (entropy(logits[..., 0], ends[:, 0]).mean() + entropy(logits[..., 1], ends[:, 1]).mean()) / 2


def masked_loss(logits: Any, ends: Any) -> Any:
    """At two positions a row, the ids are the positions themselves: any labels do."""
    chosen = jnp.take_along_axis(logits, ends[:, :, None], axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(chosen, ends).mean()


# A softmax does not depend on what all of its inputs share: the gradients of these are rounding, which Adam scales up.
KEYS = "['encoder']['layer_0']['key']['bias']"
SHARED = {
    "BertForMaskedLM": {KEYS},
    "BertForQuestionAnswering": {
        KEYS,
        "['encoder']['layer_0']['output_norm']['bias']",
        "['task_head']['output']['bias']",
    },
}


@pytest.mark.parametrize(
    ("architecture", "loss"), [("BertForQuestionAnswering", question_loss), ("BertForMaskedLM", masked_loss)]
)
def test_ten_steps_are_those_of_pytorch(architecture: str, loss: Any, tmp_path: Path) -> None:
    """With padding that the loss sees and [PAD] among the words; the tied output layer trains [PAD]'s row."""
    torch.manual_seed(0)
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        **dict.fromkeys(names, 0.0),
    )
    torch_model: Any = getattr(transformers, architecture)(config)
    for parameter in torch_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch_model.save_pretrained(tmp_path / "before")
    module, params = from_pretrained(tmp_path / "before")
    before = jax.tree.map(np.asarray, params)
    adam = torch.optim.AdamW(torch_model.parameters(), lr=1e-3, weight_decay=0.01)
    optimizer = optax.adamw(1e-3, weight_decay=0.01)

    @jax.jit
    def step(params: Any, moments: Any, ids: Any, mask: Any, ends: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda p: loss(module.apply({"params": p}, ids, mask), ends))(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    moments = optimizer.init(params)
    for number in range(10):
        ids, mask, ends = draw_batch(number)
        inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask)}
        labels = torch.tensor(ends).long()
        if architecture == "BertForMaskedLM":
            chosen = torch.take_along_dim(torch_model(**inputs).logits, labels[:, :, None], 1)
            expected = torch.nn.functional.cross_entropy(chosen.flatten(0, 1), labels.flatten())
        else:
            expected = torch_model(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
        adam.zero_grad()
        expected.backward()
        adam.step()
        params, moments, value = step(params, moments, ids, mask, ends)
        assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    torch_model.save_pretrained(tmp_path / "after")
    _, after = from_pretrained(tmp_path / "after")
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(after), jax.tree.leaves(before), strict=True
    )
    for (path, result), other, start in leaves:
        name = jax.tree_util.keystr(path)
        if name in SHARED[architecture]:
            continue
        assert np.linalg.norm(result - other) <= 1e-4 * np.linalg.norm(other - start), name


def test_a_look_up_of_padding_trains_nothing(params: Any) -> None:
    ids = jnp.asarray(IDS).at[0, 3].set(0).at[1, 7:].set(0)

    def total(params: Any) -> Any:
        return (Encoder(CONFIG).apply({"params": params}, EncoderInputs(ids)) ** 3).sum()  # type: ignore[operator]

    rows = np.abs(jax.grad(total)(params)["embeddings"]["word"]["embedding"]).max(-1)
    assert rows[0] == 0 and (rows[np.unique(IDS[1, :7])] > 0).all()


@pytest.mark.parametrize("bad", [-1, -(2**31), 40, 2**31 - 1])
def test_an_id_outside_the_vocabulary_gives_nan(params: Any, bad: int) -> None:
    ids = IDS.copy()
    ids[1, 4] = bad
    found = apply(CONFIG, params, ids)
    assert np.isnan(found[1]).all() and np.isfinite(found[0]).all()
    for wrong in ({"position_ids": bad}, {"token_type_ids": bad}):
        values = np.zeros_like(IDS)
        values[1, 4] = next(iter(wrong.values()))
        inputs = EncoderInputs(jnp.asarray(IDS))._replace(**{next(iter(wrong)): values})
        assert np.isnan(apply(CONFIG, params, *inputs)[1]).all()


@pytest.mark.parametrize("config", [CONFIG, OFFSET])
def test_more_tokens_than_positions_are_an_error(config: EncoderConfig) -> None:
    shapes = partial(jax.eval_shape, lambda ids: Encoder(config).init(jax.random.key(0), EncoderInputs(ids)))
    assert config.max_length == 16
    shapes(jax.ShapeDtypeStruct((1, 16), jnp.int32))
    with pytest.raises(ValueError, match=r"17 tokens.* 16 positions"):
        shapes(jax.ShapeDtypeStruct((1, 17), jnp.int32))


def test_positions_count_from_the_offset(params: Any) -> None:
    """As in RoBERTa: real tokens from the offset on, padding has the row before it and gets no gradient there."""
    table = np.random.default_rng(1).standard_normal((18, 12)).astype(np.float32)
    shifted = {**params, "embeddings": {**params["embeddings"], "position": {"embedding": table}}}
    plain = {**params, "embeddings": {**params["embeddings"], "position": {"embedding": table[2:]}}}
    np.testing.assert_allclose(apply(OFFSET, shifted, IDS), apply(CONFIG, plain, IDS), atol=1e-6)
    packed = np.array([[*range(4), *range(6)]] * 2)
    np.testing.assert_allclose(
        apply(OFFSET, shifted, IDS, None, packed), apply(CONFIG, plain, IDS, None, packed), atol=1e-6
    )
    ids = IDS.copy()
    ids[0, :3] = ids[1, 6:] = 1

    def total(position: Any, positions: Any = None) -> Any:
        params = {**shifted, "embeddings": {**shifted["embeddings"], "position": {"embedding": position}}}
        return (Encoder(OFFSET).apply({"params": params}, EncoderInputs(ids, None, positions)) ** 3).sum()  # type: ignore

    given = np.stack([[-1, -1, -1, *range(7)], [*range(6), -1, -1, -1, -1]])
    value, gradient = jax.value_and_grad(total)(table)
    assert float(value) == pytest.approx(float(total(table, given)), rel=1e-5)
    assert [bool(np.any(row)) for row in gradient] == [False, False, *[True] * 7, *[False] * 9]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_padding_id_is_the_configurations(family: str, tmp_path: Path) -> None:
    """Also when it is not 0."""
    bert = family == "bert"
    config = dataclasses.replace(CONFIG, family=family, type_vocab_size=2 if bert else 0, pad_token_id=3)
    params = jax.tree.map(
        np.asarray, Encoder(config).init(jax.random.key(0), EncoderInputs(jnp.asarray(IDS)))["params"]
    )
    save_pretrained(tmp_path, config, params)
    module, params = from_pretrained(tmp_path, head="none")
    gradient = jax.grad(lambda p: (module.apply({"params": p}, jnp.asarray([[3, 0, 7]])) ** 3).sum())(params)  # type: ignore
    rows = np.abs(gradient["embeddings"]["word"]["embedding"]).max(-1)
    assert np.flatnonzero(rows).tolist() == [0, 7]

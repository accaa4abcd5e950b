"""The encoder: packed rows, precision, sizes of the published models, initial weights. Parity is in tests/hf."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import functools
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained
from distil_jax.models import Encoder, EncoderConfig, EncoderInputs, MaskedLM, encoder, row_keys

BERT = EncoderConfig(
    "bert", 50, 12, 2, 3, 20, 24, type_vocab_size=2, attention_output_dropout=0.1, initializer_range=0.3
)
DISTILBERT = dataclasses.replace(BERT, family="distilbert", type_vocab_size=0, attention_output_dropout=0.0)
BASE = EncoderConfig("distilbert", 30522, 768, 6, 12, 3072)
BERT_BASE = dataclasses.replace(
    BASE, family="bert", num_layers=12, type_vocab_size=2, attention_output_dropout=0.1, pooler=False
)
IDS = np.random.default_rng(0).integers(0, 50, (2, 14)).astype(np.int32)


@functools.cache
def initializer(config: EncoderConfig) -> Any:
    return jax.jit(lambda key: Encoder(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"])


def init(config: EncoderConfig, seed: int = 0) -> Any:
    return initializer(config)(jax.random.key(seed))


@pytest.fixture(scope="module")
def params() -> Any:
    return init(BERT)


def count(module: Any) -> int:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("family", [BERT, DISTILBERT])
@pytest.mark.parametrize("masked", [True, False])
def test_the_first_token_alone_is_what_it_is_among_all(family: EncoderConfig, masked: bool) -> None:
    """Also of packed rows and of rows that begin with padding, which sees every real token."""
    module, params = Encoder(family), init(family)
    masks = [[1] * 9 + [2] * 3 + [0] * 2, [0] * 3 + [1] * 11]
    mask = np.array(masks, np.int32) if masked else None
    types = IDS % 2 if family.type_vocab_size else None
    inputs = EncoderInputs(jnp.asarray(IDS), mask, token_type_ids=types)  # type: ignore[arg-type]
    found, every = (
        jax.jit(lambda params, method=method: module.apply(params, inputs, method=method))
        for method in ("cls_only", "__call__")
    )
    expected: Any = every({"params": params})
    np.testing.assert_allclose(found({"params": params}), expected[:, :1], rtol=1e-5, atol=1e-6)
    analyses: list[Any] = [one.lower({"params": params}).compile().cost_analysis() for one in (found, every)]
    assert analyses[0]["flops"] < 0.8 * analyses[1]["flops"]  # of two layers one does a part of its work


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (MaskedLM(BASE), 66_985_530),  # uncased
        (MaskedLM(dataclasses.replace(BASE, vocab_size=28996)), 65_812_036),  # cased
        (MaskedLM(dataclasses.replace(BASE, vocab_size=119547)), 135_445_755),  # multilingual
        (Encoder(BASE), 66_362_880),
        (Encoder(dataclasses.replace(BASE, vocab_size=28996)), 65_190_912),
        (Encoder(dataclasses.replace(BASE, vocab_size=119547)), 134_734_080),
        (MaskedLM(BERT_BASE), 109_514_298),
        (Encoder(dataclasses.replace(BERT_BASE, pooler=True)), 109_482_240),
    ],
)
def test_published_sizes(module: Any, expected: int) -> None:
    assert count(module) == expected


def test_a_packed_row_gives_each_sequence_as_if_alone(params: Any) -> None:
    apply = jax.jit(lambda *inputs: Encoder(BERT).apply({"params": params}, *inputs))
    sizes = (4, 4, 4)
    sequences = np.array([[1] * 4 + [2] * 4 + [3] * 4 + [0] * 2], np.int32)
    positions = np.array([[*range(4), *range(4), *range(4), 0, 0]], np.int32)
    whole = np.asarray(apply(IDS[:1], sequences, positions))
    start = 0
    for size in sizes:
        alone = np.asarray(apply(IDS[:1, start : start + size], np.ones((1, size), np.int32)))
        np.testing.assert_allclose(whole[:, start : start + size], alone, atol=1e-5)
        start += size
    other = IDS[:1].copy()
    other[0, 6] = (other[0, 6] + 1) % 50  # in the second sequence
    changed = np.abs(np.asarray(apply(other, sequences, positions)) - whole).max(-1)[0] > 1e-6
    assert changed[4:8].any() and not changed[:4].any() and not changed[8:12].any()


def test_padding_changes_nothing_for_the_rest(params: Any) -> None:
    apply = jax.jit(lambda ids, mask: Encoder(BERT).apply({"params": params}, ids, mask))
    mask = np.ones_like(IDS)
    mask[:, 10:] = 0
    other = IDS.copy()
    other[:, 10:] = 7
    np.testing.assert_array_equal(apply(IDS, mask)[:, :10], apply(other, mask)[:, :10])


def test_bfloat16_is_near_float32(params: Any) -> None:
    exact = np.asarray(jax.jit(lambda: Encoder(BERT).apply({"params": params}, IDS))())
    module = Encoder(BERT, jnp.bfloat16)
    found = jax.jit(lambda: module.apply({"params": params}, IDS))()
    assert found.dtype == jnp.bfloat16
    error = np.asarray(found, np.float32) - exact
    assert 0 < np.sqrt((error**2).mean() / (exact**2).mean()) < 0.02
    stored = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS)["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {np.dtype("float32")}


def test_dropout_follows_the_keys(params: Any) -> None:
    apply = jax.jit(lambda keys: Encoder(BERT).apply({"params": params}, IDS, None, None, None, keys))
    keys = row_keys(jax.random.key(0), jnp.arange(2))
    plain, again, one, same, other = (np.asarray(apply(k)) for k in (None, None, keys, keys, keys + 1))
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(one, same)
    for left, right in ((plain, one), (one, other)):
        assert np.abs(left - right).max() > 0.1
    swapped = jax.jit(lambda keys: Encoder(BERT).apply({"params": params}, IDS[::-1], None, None, None, keys))(
        keys[::-1]
    )
    np.testing.assert_allclose(np.asarray(swapped)[::-1], one, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DISTILBERT, {0: 0.25, 1: 0.5, 3: 0.25, 4: 0.5, 6: 0.25}),  # embeddings, then probabilities and lin2 of a layer
        (BERT, {0: 0.25, 1: 0.5, 2: 0.125, 3: 0.25, 4: 0.5, 5: 0.125, 6: 0.25}),
    ],
    ids=["distilbert", "bert"],
)
def test_each_place_has_its_own_bits_and_rate(
    config: EncoderConfig, expected: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, float]] = []

    def noted(x: Any, keys: Any, site: int, rate: float) -> Any:
        if keys is not None and rate:
            calls.append((site, rate))
        return x

    for module in (encoder, __import__("distil_jax.models.attention", fromlist=["attend"])):
        monkeypatch.setattr(module, "dropout", noted)
    output_rate = 0.125 if config.attention_output_dropout else 0.0
    config = dataclasses.replace(
        config, hidden_dropout=0.25, attention_dropout=0.5, attention_output_dropout=output_rate
    )
    keys = jnp.zeros((2, 2), jnp.uint32)
    jax.eval_shape(lambda: Encoder(config).init(jax.random.key(0), IDS, None, None, None, keys))
    assert len(calls) == len(expected), "two places share their bits"
    assert dict(calls) == expected


def test_initial_weights() -> None:
    config = EncoderConfig("bert", 400, 64, 2, 4, 128, 64, type_vocab_size=2, pooler=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(init(config)):
        name, value = jax.tree_util.keystr(path), np.asarray(leaf)
        if name.endswith("['bias']"):
            assert (value == 0).all(), name
        elif name.endswith("['scale']"):
            assert (value == 1).all(), name
        else:
            margin = 5 * 0.02 / np.sqrt(value.size)
            assert abs(value.mean()) < margin, name
            assert abs(value.std() - 0.02) < margin, name


def test_seeds_and_layers_start_differently() -> None:
    one, other = init(BERT, 0), init(BERT, 1)
    assert not np.array_equal(one["layer_0"]["query"]["kernel"], other["layer_0"]["query"]["kernel"])
    assert not np.array_equal(one["layer_0"]["query"]["kernel"], one["layer_1"]["query"]["kernel"])
    assert not np.array_equal(one["layer_0"]["query"]["kernel"], one["layer_0"]["key"]["kernel"])


def test_segments_need_token_types(params: Any) -> None:
    segments = jnp.asarray(np.arange(14)[None] >= 7, jnp.int32) + jnp.zeros((2, 1), jnp.int32)
    apply = jax.jit(lambda types: Encoder(BERT).apply({"params": params}, IDS, None, None, types))
    np.testing.assert_allclose(apply(None), apply(jnp.zeros_like(segments)), atol=1e-5)
    assert np.abs(np.asarray(apply(segments)) - np.asarray(apply(None))).max() > 0.01
    with pytest.raises(ValueError, match="token_type_ids"):
        jax.eval_shape(lambda: Encoder(DISTILBERT).init(jax.random.key(0), IDS, None, None, segments))


# XLA's default order on CPU computes early what could be computed late; on GPU and TPU memory decides.
BY_MEMORY: Any = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def test_computing_layers_again_gives_the_same_numbers_from_less_memory() -> None:
    """Loss and gradients with dropout, and the scratch memory that XLA plans for them."""
    config = dataclasses.replace(BERT, num_layers=8, hidden_size=32, num_heads=4, intermediate_size=128)
    random = np.random.default_rng(0)
    ids, keys = np.tile(IDS, (8, 1)), row_keys(jax.random.key(1), jnp.arange(16))

    def step(remat: Any) -> tuple[Any, Any]:
        module = Encoder(config, remat=remat)

        def loss(params: Any) -> Any:
            return (module.apply({"params": params}, ids, None, None, None, keys)[..., 0] ** 2).mean()  # type: ignore[index]

        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS)["params"])
        return jax.jit(jax.value_and_grad(loss)).lower(shapes).compile(BY_MEMORY), shapes

    (plain, shapes), (again, same_shapes) = step("none"), step("layer")
    assert shapes == same_shapes
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes)
    for left, right in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(again(params)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4 * float(np.abs(left).max()))
    kept, recomputed = (found.memory_analysis().temp_size_in_bytes for found in (plain, again))
    assert recomputed < 0.9 * kept


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_layer_keeps_for_the_backward_pass(dtype: Any) -> None:
    """One array of the inner width, not the activation's result too; probabilities, but not those left of them.

    And no kernels joined for query, key and value.
    """
    config, keys = dataclasses.replace(DISTILBERT, intermediate_size=56), row_keys(jax.random.key(1), jnp.arange(2))
    module = Encoder(config, dtype)

    def kept(params: Any) -> Any:
        return jax.vjp(lambda params: module.apply({"params": params}, IDS, None, None, None, keys), params)[1]

    params = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS)["params"])
    arrays = [
        leaf for leaf in jax.tree.leaves(jax.eval_shape(kept, params)) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    rows, length = IDS.shape
    widths = [leaf for leaf in arrays if leaf.size == rows * length * 56]
    probabilities = [leaf for leaf in arrays if leaf.shape == (rows, config.num_heads, length, length)]
    assert len(widths) == len(probabilities) == config.num_layers
    assert (config.hidden_size, 3 * config.hidden_size) not in [leaf.shape for leaf in arrays]


def test_activations_are_those_of_pytorch(tmp_path: Path) -> None:
    """Hidden states of every layer, queries, keys, values and scores, of a padded row; each also gives a gradient."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.models.bert.modeling_bert import BertSelfAttention

    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=50,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    torch_model = BertModel(sizes, add_pooling_layer=False).eval()
    noted: dict[str, list[torch.Tensor]] = {"queries": [], "keys": [], "values": []}
    for module in torch_model.modules():
        if isinstance(module, BertSelfAttention):
            for name, layer in (("queries", module.query), ("keys", module.key), ("values", module.value)):
                layer.register_forward_hook(lambda _, __, output, name=name: noted[name].append(output))
    mask = np.ones_like(IDS)
    mask[1, 9:] = 0
    with torch.no_grad():
        expected = torch_model(
            torch.tensor(IDS).long(), torch.tensor(mask).long(), output_hidden_states=True
        ).hidden_states
    torch_model.save_pretrained(tmp_path)
    module, params = from_pretrained(tmp_path, head="none")
    config: Any = module.config
    inputs = EncoderInputs(jnp.asarray(IDS), jnp.asarray(mask))
    for remat in ("none", "layer"):
        found: Any = jax.jit(
            lambda params, remat=remat: Encoder(config, remat=remat).apply(
                {"params": params}, inputs, encoder.CAPTURES, method="activations"
            )
        )(params)
        for result, other in zip(found.hidden_states, expected, strict=True):
            np.testing.assert_allclose(np.asarray(result)[mask > 0], other.numpy()[mask > 0], atol=1e-5)
        np.testing.assert_array_equal(found.hidden, found.hidden_states[-1])
        for name, layers in noted.items():
            for result, other in zip(getattr(found, name), layers, strict=True):
                np.testing.assert_allclose(
                    np.asarray(result)[mask > 0], other.numpy().reshape(2, 14, 3, 4)[mask > 0], atol=1e-5
                )
        for scores, query, key in zip(found.scores, found.queries, found.keys, strict=True):
            by_hand = np.einsum("bqnd,bknd->bnqk", query, key) / 2
            by_hand = np.where(mask[:, None, None] > 0, by_hand, np.finfo(np.float32).min)
            np.testing.assert_allclose(scores, by_hand, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_every_activation_has_a_gradient_with_dropout(params: Any, remat: Any) -> None:
    """The same one whether layers are computed again or not; queries and keys of the last layer have one."""
    inputs = EncoderInputs(jnp.asarray(IDS), dropout_keys=row_keys(jax.random.key(0), jnp.arange(2)))

    def loss(params: Any, remat: Any, name: str) -> Any:
        found: Any = Encoder(BERT, remat=remat).apply(
            {"params": params}, inputs, frozenset({name}), method="activations"
        )
        assert [other for other in encoder.CAPTURES if getattr(found, other)] == [name]
        return sum((x**3).mean() for x in getattr(found, name))  # squares after a LayerNorm have a constant mean

    for name in encoder.CAPTURES:
        gradient, expected = (jax.jit(jax.grad(loss), static_argnums=(1, 2))(params, r, name) for r in (remat, "none"))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, expected)
        last = gradient["layer_1"]
        moved = {part for part in ("query", "key", "value", "ffn_out") if np.abs(last[part]["kernel"]).max() > 1e-5}
        wanted = {
            "queries": {"query"},
            "keys": {"key"},
            "values": {"value"},
            "scores": {"query", "key"},
            "hidden_states": {"query", "key", "value", "ffn_out"},
        }
        assert moved == wanted[name], name


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_what_is_not_captured_costs_nothing(params: Any, remat: Any) -> None:
    """The program of `activations` without names is the one of the call."""
    module, inputs = Encoder(BERT, remat=remat), EncoderInputs(jnp.asarray(IDS))

    def by_call(params: Any) -> Any:
        return (module.apply({"params": params}, inputs) ** 2).sum()  # type: ignore[operator]

    def by_activations(params: Any) -> Any:
        found: Any = module.apply({"params": params}, inputs, method="activations")
        assert not any(found[1:])
        return (found.hidden**2).sum()

    texts = [str(jax.make_jaxpr(jax.grad(f))(params)) for f in (by_call, by_activations)]
    assert texts[0] == texts[1]


def test_an_unknown_activation_is_an_error() -> None:
    with pytest.raises(ValueError, match="logits"):
        jax.eval_shape(
            lambda: Encoder(BERT).init(
                jax.random.key(0), EncoderInputs(jnp.asarray(IDS)), frozenset({"logits"}), method="activations"
            )
        )


def test_the_call_takes_arrays_in_the_order_of_the_flax_classes(params: Any) -> None:
    keys = row_keys(jax.random.key(0), jnp.arange(2))
    arrays = (jnp.asarray(IDS), jnp.ones_like(IDS), jnp.asarray(IDS % 7), jnp.asarray(IDS % 2), keys)
    apply: Any = partial(Encoder(BERT).apply, {"params": params})
    expected = apply(EncoderInputs(*arrays))
    np.testing.assert_array_equal(apply(*arrays), expected)
    names = ("ids", "attention_mask", "position_ids", "token_type_ids", "dropout_keys")
    np.testing.assert_array_equal(apply(**dict(zip(names, arrays, strict=True))), expected)
    np.testing.assert_array_equal(apply(*arrays, method="hidden_states")[-1], expected)


def test_scores_are_never_taken_from_flash_attention(params: Any) -> None:
    """A named one that this platform lacks is an error, but not where scores are asked for."""
    module, inputs = Encoder(BERT, attention="splash"), EncoderInputs(jnp.asarray(IDS))
    with pytest.raises(UserError, match="TPU"):
        module.apply({"params": params}, inputs)
    found: Any = module.apply({"params": params}, inputs, frozenset({"scores"}), method="activations")
    np.testing.assert_array_equal(found.hidden, Encoder(BERT).apply({"params": params}, inputs))


@pytest.mark.parametrize("ids", [[[1, 2]], "a text", jnp.ones((3,), jnp.int32), jnp.ones((1, 3))])
def test_what_is_no_batch_of_ids_is_refused(params: Any, ids: Any) -> None:
    with pytest.raises(ValueError, match="integers"):
        MaskedLM(BERT).apply({"params": params}, ids)


def test_keys_of_another_number_of_rows_are_refused(params: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="3 keys for 2 rows"):
        MaskedLM(BERT).apply({"params": params}, jnp.ones((2, 4), jnp.int32), dropout_keys=keys)

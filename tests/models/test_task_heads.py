"""Task heads: shapes, dropout by row, choices as rows, gradients everywhere."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import EncoderConfig, TaskHead, TaskModel, row_keys
from distil_jax.models.encoder import dropout_sites
from distil_jax.models.heads import choice_keys

BERT = EncoderConfig("bert", 40, 12, 1, 3, 20, 16, type_vocab_size=2, initializer_range=0.3, pooler=True)
DISTILBERT = EncoderConfig("distilbert", 40, 12, 1, 3, 20, 16, initializer_range=0.3)
QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "attention_output_dropout": 0.0}
HEADS = {
    "sequence": TaskHead("sequence", num_outputs=3, dropout=0.5),
    "token": TaskHead("token", num_outputs=4, dropout=0.5),
    "question": TaskHead("question", num_outputs=2, dropout=0.5),
    "choice": TaskHead("choice", num_outputs=1, dropout=0.5),
}
IDS = np.random.default_rng(0).integers(0, 40, (4, 9)).astype(np.int32)


def model(family: str, kind: str, **fields: Any) -> TaskModel:
    head = HEADS[kind]
    if family == "bert":
        return TaskModel(dataclasses.replace(BERT, pooler=head.reads_token_0, **fields), head)
    return TaskModel(dataclasses.replace(DISTILBERT, **fields), dataclasses.replace(head, dense=head.reads_token_0))


def random_params(module: TaskModel, seed: int = 1) -> Any:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS)["params"])
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), shapes)


def keys_of(rows: Any) -> Any:
    return row_keys(jax.random.key(7), jnp.asarray(rows))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_reach_every_parameter(family: str, kind: str) -> None:
    module = model(family, kind)
    params = random_params(module)
    shape = {"sequence": (4, 3), "token": (4, 9, 4), "question": (4, 9, 2), "choice": (4, 1)}[kind]
    weights = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    inputs: dict[str, Any] = {"attention_mask": np.ones_like(IDS)} | (
        {"token_type_ids": IDS % 2} if family == "bert" else {}
    )

    def loss(params: Any) -> Any:
        logits: Any = module.apply({"params": params}, IDS, **inputs, dropout_keys=keys_of(range(4)))
        assert logits.shape == shape and logits.dtype == jnp.float32
        return (weights * logits).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    assert set(gradient["task_head"]) == ({"dense", "output"} if module.head.dense else {"output"})
    # A bias of the keys adds the same to all scores of a softmax; its gradient is zero but for rounding.
    for path, values in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.abs(values).max() > 1e-4 or "['key']['bias']" in name, name


@pytest.mark.parametrize("kind", HEADS)
def test_dropout_is_on_what_the_output_layer_reads(kind: str) -> None:
    """With the identity as output layer the scores are the features: the configured share of them is zero."""
    head = TaskHead(kind, num_outputs=12, dropout=0.3) if kind in ("sequence", "token") else HEADS[kind]  # pyright: ignore[reportArgumentType]
    if head.num_outputs != 12:
        head = dataclasses.replace(head, dropout=0.3)
    module = TaskModel(dataclasses.replace(DISTILBERT, **QUIET), dataclasses.replace(head, dense=head.reads_token_0))
    params = random_params(module)
    hidden = np.random.default_rng(3).standard_normal((600, 9, 12)).astype(np.float32)
    apply = jax.jit(lambda keys: module.apply({"params": params}, hidden, keys, method="task_logits"))
    if head.num_outputs == 12:
        params["task_head"]["output"] = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
        plain, dropped = np.asarray(apply(None)), np.asarray(apply(keys_of(range(600))))
        seen = plain != 0  # what ReLU has not set to zero already
        share = (dropped[seen] == 0).mean()
        assert share == pytest.approx(0.3, abs=4.5 * np.sqrt(0.21 / seen.sum()))
        kept = seen & (dropped != 0)
        np.testing.assert_allclose(dropped[kept], plain[kept] / 0.7, rtol=1e-6)
    else:
        assert not np.allclose(np.asarray(apply(None)), np.asarray(apply(keys_of(range(600)))))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_row_meets_the_same_dropout_in_any_batch(family: str) -> None:
    module = model(family, "sequence")
    params = random_params(module)
    apply = jax.jit(lambda ids, keys: module.apply({"params": params}, ids, dropout_keys=keys))
    whole = np.asarray(apply(IDS, keys_of(range(4))))
    np.testing.assert_allclose(apply(IDS[[3, 1]], keys_of([3, 1])), whole[[3, 1]], atol=1e-5)
    np.testing.assert_array_equal(apply(IDS, keys_of(range(4))), whole)
    assert np.abs(np.asarray(apply(IDS, keys_of(range(4, 8)))) - whole).max() > 0.01


def test_the_heads_dropout_is_none_of_the_encoders() -> None:
    """Its site lies behind those of the last layer, so its mask is another one."""
    sites: set[int] = set()
    import distil_jax.models.encoder
    import distil_jax.models.heads

    original = distil_jax.models.encoder.dropout

    def noted(x: Any, keys: Any, site: int, rate: float) -> Any:
        assert site not in sites
        sites.add(site)
        return original(x, keys, site, rate)

    module = model("bert", "sequence", num_layers=2)
    params = random_params(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil_jax.models.encoder, "dropout", noted)
        patch.setattr(distil_jax.models.heads, "dropout", noted)
        patch.setattr("distil_jax.models.attention.dropout", noted)
        jax.eval_shape(lambda: module.apply({"params": params}, IDS, dropout_keys=keys_of(range(4))))
    assert sites == set(range(8))
    assert dropout_sites(module.config) == 7


def test_without_keys_nothing_is_dropped() -> None:
    loud, quiet = model("bert", "token"), model("bert", "token", **QUIET)
    params = random_params(loud)
    quiet = TaskModel(quiet.config, dataclasses.replace(quiet.head, dropout=0.0))
    expected = jax.jit(lambda: quiet.apply({"params": params}, IDS, dropout_keys=keys_of(range(4))))()
    np.testing.assert_allclose(jax.jit(lambda: loud.apply({"params": params}, IDS))(), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_choices_are_rows(family: str) -> None:
    module = model(family, "choice")
    params = random_params(module)
    ids = np.random.default_rng(5).integers(0, 40, (2, 3, 9)).astype(np.int32)
    mask = (np.arange(9) < np.array([[9, 4, 7], [2, 9, 5]])[..., None]).astype(np.int32)
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
    keys = keys_of([3, 5])
    for given, flat in ((None, None), (keys, choice_keys(keys, 3)), (keys_of(range(6)), keys_of(range(6)))):
        rows = np.asarray(apply(ids.reshape(6, 9), mask.reshape(6, 9), None, None, flat))
        together = np.asarray(apply(ids, mask, None, None, given))
        assert rows.shape == (6, 1) and together.shape == (2, 3)
        np.testing.assert_allclose(together, rows.reshape(2, 3), atol=1e-6)


def test_choice_keys_differ_and_depend_on_their_row_alone() -> None:
    found = np.asarray(choice_keys(keys_of(range(10)), 4))
    assert found.shape == (40, 2) and found.dtype == np.uint32
    assert len({tuple(key) for key in found.tolist()}) == 40
    np.testing.assert_array_equal(choice_keys(keys_of([7]), 4), found[28:32])


def test_the_call_is_the_head_on_the_encoders_output() -> None:
    module = model("distilbert", "sequence")
    params = random_params(module)
    hidden: Any = jax.jit(lambda: module.apply({"params": params}, IDS, method="encode"))()
    assert hidden.shape == (4, 9, 12)
    head = params["task_head"]
    first = np.maximum(np.asarray(hidden)[:, 0] @ head["dense"]["kernel"] + head["dense"]["bias"][None], 0)
    expected = first @ head["output"]["kernel"] + head["output"]["bias"][None]
    np.testing.assert_allclose(jax.jit(lambda: module.apply({"params": params}, IDS))(), expected, atol=1e-5)


def test_dropout_before_a_dense_layer_with_tanh() -> None:
    """RoBERTa's head: dropout, dense, tanh, dropout, output; each dropout draws values of its own."""
    plain = TaskHead("sequence", num_outputs=3, dense=True, dense_activation="tanh")
    module = model("distilbert", "sequence")
    params = random_params(module)
    hidden = np.random.default_rng(6).standard_normal((64, 1, 12)).astype(np.float32)
    keys = keys_of(range(64))

    def logits(**rates: float) -> np.ndarray:
        changed = TaskModel(module.config, dataclasses.replace(plain, num_outputs=module.head.num_outputs, **rates))
        return np.asarray(changed.apply({"params": params}, hidden, keys, method="task_logits"))

    head = params["task_head"]
    inner = np.tanh(hidden[:, 0] @ head["dense"]["kernel"] + head["dense"]["bias"][None])
    expected = inner @ head["output"]["kernel"] + head["output"]["bias"][None]
    np.testing.assert_allclose(logits(), expected, atol=1e-5)
    found = [logits(input_dropout=0.5), logits(dropout=0.5), logits(input_dropout=0.5, dropout=0.5)]
    assert all(np.abs(left - right).max() > 0.1 for left, right in itertools.combinations([expected, *found], 2))


def test_scores_are_float32_in_bfloat16_too() -> None:
    module = model("bert", "sequence")
    params = random_params(module)
    half = TaskModel(module.config, module.head, jnp.bfloat16)
    exact = np.asarray(jax.jit(lambda: module.apply({"params": params}, IDS))())
    found: Any = jax.jit(lambda: half.apply({"params": params}, IDS))()
    assert found.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(found) - exact).max() < 0.1 * np.abs(exact).max()


def test_initial_values() -> None:
    config = dataclasses.replace(DISTILBERT, hidden_size=300, initializer_range=0.02)
    module = TaskModel(config, TaskHead("sequence", num_outputs=100, dense=True))
    params: Any = jax.jit(lambda: module.init(jax.random.key(0), IDS)["params"]["task_head"])()
    for layer in ("dense", "output"):
        assert np.asarray(params[layer]["kernel"]).std() == pytest.approx(0.02, rel=0.03)
        assert not np.asarray(params[layer]["bias"]).any()


def test_a_head_survives_json() -> None:
    head = TaskHead(
        "sequence",
        labels=("no", "yes"),
        num_outputs=2,
        dropout=0.2,
        dense=True,
        dense_activation="tanh",
        problem="regression",
    )
    assert TaskHead(**json.loads(json.dumps(dataclasses.asdict(head)))) == head
    assert hash(TaskHead(**json.loads(json.dumps(dataclasses.asdict(head))))) == hash(head)


def test_what_makes_no_sense_is_refused() -> None:
    wrong: list[tuple[Any, dict[str, Any]]] = [
        ("question", {"num_outputs": 3}),
        ("choice", {"num_outputs": 2}),
        ("sequence", {"num_outputs": 0}),
        ("sequence", {"num_outputs": 3, "labels": ("a",)}),
    ]
    for kind, fields in wrong:
        with pytest.raises(ValueError, match=kind if "labels" not in fields else "labels"):
            TaskHead(kind, **fields)
    with pytest.raises(ValueError, match="pooler"):
        jax.eval_shape(lambda: TaskModel(DISTILBERT, HEADS["sequence"]).init(jax.random.key(0), IDS))
    module = model("bert", "token")
    with pytest.raises(ValueError, match="shape"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), IDS[None]))
    with pytest.raises(ValueError, match="no pooler"):
        jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.ones((1, 2, 12)), method=lambda m, x: m.encoder.pooled(x))
        )

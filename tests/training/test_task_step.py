"""One step of fine-tuning: the same on any number of devices, in any micro-batches; every parameter learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional

from distil_jax.config import FineTune
from distil_jax.models import EncoderConfig, EncoderInputs, TaskHead, TaskModel
from distil_jax.objectives import initial_projections
from distil_jax.tasks.batches import TaskBatch
from distil_jax.training.inference import make_logits_step
from distil_jax.training.parallel import Devices, make_devices
from distil_jax.training.step import FrozenInputs, init_state, make_train_step
from distil_jax.training.task_phases import Phase
from distil_jax.training.task_step import TaskModels, task_losses, task_step_config

BERT = EncoderConfig("bert", 40, 8, 1, 2, 16, 16, type_vocab_size=2, pooler=True, initializer_range=0.4)
HEAD = TaskHead("sequence", num_outputs=3, dropout=0.3, problem="single_label_classification")
SETTINGS = FineTune(cosine=0.5, hidden=0.25)
MODELS = TaskModels(TaskModel(BERT, HEAD), (TaskModel(BERT, HEAD),), SETTINGS)
TRAINABLE = ("encoder", "task_head")


def params_of(seed: int) -> Any:
    init = jax.jit(lambda: MODELS.student.init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))["params"])
    return jax.tree.map(np.asarray, init())


def make_batch() -> Any:
    """Eight places of which six are rows, of uneven lengths."""
    random = np.random.default_rng(0)
    lengths = np.array([8, 3, 5, 8, 4, 6, 1, 1])
    real = np.arange(8)[None] < lengths[:, None]
    rows = np.where(np.arange(8) < 6, 1.0, 0.0)
    ids: Any = np.where(real, random.integers(5, 40, (8, 8)), 0).astype(np.int32)
    mask: Any = real.astype(np.int32)
    types: Any = (np.arange(8)[None] > 3).astype(np.int32) * real
    shares = (rows / 6).astype(np.float32)
    return TaskBatch(
        EncoderInputs(ids, mask, token_type_ids=types),
        labels=random.integers(0, 3, 8).astype(np.int32),
        weights=shares,
        shares=shares,
        token_share=(rows / 34).astype(np.float32),
    )


def run(devices: Devices, micro: int) -> tuple[Any, dict[str, Any]]:
    optimizer: Any = optax.with_extra_args_support(optax.adam(1e-2))
    config = task_step_config(MODELS, micro, TRAINABLE)
    step = devices.map(make_train_step(config, optimizer, optax.constant_schedule(1e-2)), replicated=2)
    state = devices.replicate(init_state(params_of(1), optimizer, TRAINABLE))
    frozen = devices.replicate(FrozenInputs(np.int32(7), {"0": params_of(2)}))
    return step(state, frozen, devices.shard_batch(make_batch()))


@pytest.fixture(scope="module")
def alone() -> tuple[Any, dict[str, Any]]:
    return run(make_devices("shard_map", 1), 8)


@pytest.mark.parametrize(("mapping", "count", "micro"), [("shard_map", 8, 1), ("shard_map", 2, 2), ("pmap", 4, 1)])
def test_devices_and_micro_batches_change_nothing(alone: Any, mapping: str, count: int, micro: int) -> None:
    state, metrics = run(make_devices(mapping, count), micro)
    for name, value in alone[1].items():
        # A key's bias has no gradient but rounding.
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-8, err_msg=name)
    moments = zip(jax.tree.leaves(state.opt_state[0].mu), jax.tree.leaves(alone[0].opt_state[0].mu), strict=True)
    for found, expected in moments:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_every_parameter_moves(alone: Any) -> None:
    before = params_of(1)
    key_bias = before["encoder"]["layer_0"]["key"].pop("bias")  # adds the same to all scores of a row: no gradient
    alone[0].params["encoder"]["layer_0"]["key"].pop("bias")
    assert key_bias.shape == (8,)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(alone[0].params), strict=True
    ):
        assert np.abs(np.asarray(new) - old).max() > 1e-4, jax.tree_util.keystr(path)


def test_metrics_are_those_of_the_whole_batch(alone: Any) -> None:
    batch = make_batch()
    assert float(alone[1]["tokens"]) == 34
    _, terms = task_losses(MODELS, params_of(1), {"0": params_of(2)}, batch, None)
    total = sum(weight * alone[1][f"loss_{name}"] for name, weight in SETTINGS.weights.items())
    assert set(SETTINGS.weights) == {"task", "kl", "cosine", "hidden"}
    np.testing.assert_allclose(alone[1]["loss"], total, rtol=1e-6)
    assert all(abs(float(alone[1][f"loss_{name}"] - terms[name].mean)) > 1e-6 for name in terms), (
        "no dropout in training"
    )


def test_empty_places_change_nothing() -> None:
    batch, other = make_batch(), make_batch()
    other.inputs.ids[6:], other.labels[6:] = 9, 2
    found = [
        task_losses(MODELS, params_of(1), {"0": params_of(2)}, each, None)[0]  # type: ignore[arg-type]
        for each in (batch, other)
    ]
    assert float(found[0]) == float(found[1])


@pytest.mark.parametrize(("mapping", "count"), [("shard_map", 1), ("shard_map", 8), ("pmap", 2)])
def test_logits_come_back_in_the_rows_order(mapping: str, count: int) -> None:
    devices, batch = make_devices(mapping, count), make_batch()
    params = params_of(1)
    inputs = batch.inputs
    step = devices.map(make_logits_step(MODELS.student), replicated=1)
    found = step(devices.replicate(params), devices.shard_batch(inputs))
    expected: Any = MODELS.student.apply({"params": params}, inputs.ids, inputs.mask, None, inputs.token_type_ids)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


def torch_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    log_probabilities = functional.log_softmax(student / temperature, dim=-1)
    probabilities = functional.softmax(teacher / temperature, dim=-1)
    return functional.kl_div(log_probabilities, probabilities, reduction="batchmean") * temperature**2


def test_terms_are_weighted_and_the_teacher_keeps_its_segments() -> None:
    bert = EncoderConfig("bert", 30, 8, 1, 2, 16, 16, type_vocab_size=2, pooler=True, initializer_range=0.5)
    small = EncoderConfig("distilbert", 30, 8, 1, 2, 16, 16, initializer_range=0.5)
    plain = TaskHead("sequence", num_outputs=3, problem="single_label_classification")
    settings = FineTune(task=0.3, kl=0.6, cosine=0.2)
    head = TaskHead("sequence", num_outputs=3, dense=True, problem=plain.problem)
    models = TaskModels(TaskModel(small, head), (TaskModel(bert, plain),), settings)
    ids = jnp.array([[2, 7, 3, 9, 3], [2, 5, 3, 8, 0]])
    mask, types = (ids > 0).astype(jnp.int32), jnp.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]])
    half = jnp.array([0.5, 0.5])
    batch = TaskBatch(EncoderInputs(ids, mask, None, types), jnp.array([2, 0]), half, half, jnp.full(2, 1 / 9))
    params: list[Any] = [model.init(jax.random.key(1), ids)["params"] for model in (models.student, *models.teachers)]
    total, terms = task_losses(models, params[0], {"0": params[1]}, batch, None)
    np.testing.assert_allclose(
        total, 0.3 * terms["task"].mean + 0.6 * terms["kl"].mean + 0.2 * terms["cosine"].mean, rtol=1e-6
    )
    apply: Any = models.teachers[0].apply
    teacher = apply({"params": params[1]}, ids, mask, None, types)
    student: Any = models.student.apply({"params": params[0]}, ids, mask)
    expected = torch_kl(torch.from_numpy(np.array(student)), torch.from_numpy(np.array(teacher)), 2.0)
    np.testing.assert_allclose(terms["kl"].mean, expected, rtol=1e-5)
    alone, terms = task_losses(TaskModels(models.student, (), settings), params[0], None, batch, None)
    assert set(terms) == {"task"}
    np.testing.assert_allclose(alone, terms["task"].mean)


def test_a_student_of_another_width_learns_its_projection() -> None:
    narrow = dataclasses.replace(BERT, hidden_size=4)
    settings = FineTune(hidden=0.5, embeddings=0.25)
    models = TaskModels(TaskModel(narrow, HEAD), (TaskModel(BERT, HEAD),), settings)
    init = jax.jit(lambda: models.student.init(jax.random.key(3), jnp.zeros((1, 8), jnp.int32))["params"])
    params: Any = {**init(), **initial_projections(settings, narrow, BERT, 0)}

    def loss(params: Any) -> Any:
        total, terms = task_losses(models, params, {"0": params_of(2)}, make_batch(), None)
        return total, terms

    (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    assert {"hidden", "embeddings"} < terms.keys()
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(gradients["projections"]))


def test_endings_that_an_example_does_not_have_count_in_no_term() -> None:
    head = TaskHead("choice", num_outputs=1)
    models = TaskModels(TaskModel(BERT, head), (TaskModel(BERT, head),), FineTune(pooled=1.0, similarity=1.0))
    ids = np.random.default_rng(0).integers(5, 40, (2, 3, 6)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 2, 1:] = 0  # as `collate_inputs` has it
    half: Any = np.array([0.5, 0.5], np.float32)
    share: Any = np.where(np.arange(6).reshape(2, 3) < 5, 1 / 30, 0).astype(np.float32)
    params: list[Any] = [models.student.init(jax.random.key(seed), ids)["params"] for seed in (1, 2)]

    def losses() -> Any:
        inputs: Any = EncoderInputs(ids.copy(), mask)  # type: ignore[arg-type]
        batch = TaskBatch(inputs, np.array([0, 1]), half, half, share)
        return task_losses(models, params[0], {"0": params[1]}, batch, None)[1]

    before = losses()
    assert float(before["pooled"].count) == pytest.approx(1.0)
    ids[1, 2] = 7
    for name in ("pooled", "similarity"):
        assert float(losses()[name].sum) == float(before[name].sum)


def test_several_teachers_are_averaged() -> None:
    models = dataclasses.replace(MODELS, teachers=MODELS.teachers * 2)
    batch, params, teachers = make_batch(), params_of(1), {"0": params_of(2), "1": params_of(3)}
    _, terms = task_losses(models, params, teachers, batch, None)

    def logits(params: Any) -> torch.Tensor:
        inputs = batch.inputs
        found: Any = MODELS.student.apply({"params": params}, inputs.ids, inputs.mask, None, inputs.token_type_ids)
        return torch.from_numpy(np.array(found))[:6]

    # The geometric mean of probabilities, normalised.
    product = functional.softmax(logits(teachers["0"]) / 2, -1) * functional.softmax(logits(teachers["1"]) / 2, -1)
    mean = product.sqrt() / product.sqrt().sum(-1, keepdim=True)
    student = functional.log_softmax(logits(params) / 2, dim=-1)
    expected = functional.kl_div(student, mean, reduction="batchmean") * 4
    np.testing.assert_allclose(terms["kl"].mean, expected, rtol=1e-5)
    _, first = task_losses(MODELS, params, {"0": teachers["0"]}, batch, None)
    np.testing.assert_allclose(terms["hidden"].mean, first["hidden"].mean)


def test_a_phase_has_the_weights_of_its_terms_alone() -> None:
    params, teachers, batch = params_of(1), {"0": params_of(2)}, make_batch()
    losses = {}
    for phase in (Phase("alone", last=False), Phase("match", last=False), Phase("predict", last=False), Phase()):
        total, terms = task_losses(MODELS, params, teachers, batch._replace(phase=phase), None)
        losses[phase] = float(total), {name: float(term.mean) for name, term in terms.items()}
    alone, match, predict, whole = losses.values()
    assert set(alone[1]) == {"task"} and alone[0] == alone[1]["task"]
    np.testing.assert_allclose(match[0], 0.5 * match[1]["cosine"] + 0.25 * match[1]["hidden"], rtol=1e-6)
    assert set(predict[1]) == {"task", "kl"}
    np.testing.assert_allclose(predict[0], 0.5 * predict[1]["task"] + 0.5 * predict[1]["kl"], rtol=1e-6)
    np.testing.assert_allclose(whole[0], match[0] + predict[0], rtol=1e-6)

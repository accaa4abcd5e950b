"""Which losses, over which positions: every path against the losses of the whole batch, picked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Objective
from distil_jax.models import EncoderConfig, EncoderInputs, MaskedLM
from distil_jax.objectives import (
    MicroBatch,
    Totals,
    evaluation_sums,
    objective_loss,
    student_config,
    teacher_outputs,
    uses_teacher,
)

ROWS, LENGTH, VOCAB = 6, 9, 23
TEACHER = EncoderConfig("bert", VOCAB, 8, 1, 2, 12, 16, type_vocab_size=2, initializer_range=0.5)
STUDENT = dataclasses.replace(student_config(TEACHER, [0]), hidden_dropout=0.0, attention_dropout=0.0)
EVERYTHING = Objective(logit_mse=0.25)


def init(config: EncoderConfig, seed: int) -> Any:
    params = jax.jit(lambda: MaskedLM(config).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"])()
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + 0.2 * noise.standard_normal(x.shape).astype(np.float32), params)


def make_batch() -> MicroBatch:
    """Rows of two packed sequences and padding; up to three predictions a row, some of them of weight 0."""
    noise = np.random.default_rng(1)
    sequences = np.zeros((ROWS, LENGTH), np.int32)
    position_ids = np.zeros_like(sequences)
    for row in range(ROWS):
        cut, end = 3 + row % 3, LENGTH - row % 3
        sequences[row, :cut], sequences[row, cut:end] = 1, 2
        position_ids[row] = [*range(cut), *range(LENGTH - cut)]
    positions = np.stack([noise.permutation(LENGTH - 2)[:3] for _ in range(ROWS)]).astype(np.int32)
    weights = (np.arange(3)[None] < noise.integers(0, 4, ROWS)[:, None]).astype(np.float32)
    ids, targets = (noise.integers(1, VOCAB, shape).astype(np.int32) for shape in ((ROWS, LENGTH), (ROWS, 3)))
    arrays = [jnp.asarray(x) for x in (ids, sequences, position_ids, positions, targets, weights)]
    return MicroBatch(EncoderInputs(*arrays[:3]), arrays[3], arrays[4], arrays[5])


def with_keys(batch: MicroBatch, keys: Any) -> MicroBatch:
    return batch._replace(inputs=batch.inputs._replace(dropout_keys=keys))


@pytest.fixture(scope="module")
def world() -> Any:
    """Parameters, the batch, and by plain NumPy from the whole logits: every loss of every position."""
    student, teacher, batch = init(STUDENT, 1), init(TEACHER, 2), make_batch()
    outputs = []
    for config, params in ((STUDENT, student), (TEACHER, teacher)):
        module, inputs = MaskedLM(config), batch.inputs

        @jax.jit
        def apply(params: Any, module: MaskedLM = module, inputs: Any = inputs) -> Any:
            hidden = module.apply({"params": params}, inputs, method="encode")
            return module.apply({"params": params}, hidden, method="mlm_logits"), hidden

        logits, hidden = apply(params)
        outputs.append((np.asarray(logits, np.float64), np.asarray(hidden, np.float64)))
    (s, hs), (t, ht) = outputs

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(t / 2), log_softmax(s / 2)
    cosine = (hs * ht).sum(-1) / np.sqrt((hs**2).sum(-1) * (ht**2).sum(-1))
    return {
        "student": student,
        "teacher": teacher,
        "batch": batch,
        "kl": 4 * (np.exp(p) * (p - q)).sum(-1),
        "logit_mse": ((s - t) ** 2).sum(-1),
        "cosine": 1 - cosine,
        "surprise": -log_softmax(s),
        "plain_kl": (np.exp(log_softmax(t)) * (log_softmax(t) - log_softmax(s))).sum(-1),
        "choices": (s.argmax(-1), t.argmax(-1)),
    }


def sums_of(
    world: Any, objective: Objective, batch: MicroBatch, teacher: bool = True
) -> dict[str, tuple[float, float]]:
    module, totals = MaskedLM(TEACHER) if teacher else None, Totals(*[jnp.ones(())] * 3)

    @jax.jit
    def function(student: Any, other: Any, batch: MicroBatch) -> Any:
        return objective_loss(objective, MaskedLM(STUDENT), student, module, other, batch, totals)[1]

    found = function(world["student"], world["teacher"] if teacher else None, batch)
    return {name: (float(term.sum), float(term.count)) for name, term in found.items()}


def at_predictions(values: np.ndarray, batch: MicroBatch) -> tuple[float, float]:
    """Sum over the predicted positions of values [rows, L], and how many those are."""
    weights = np.asarray(batch.weights)
    return float((np.take_along_axis(values, np.asarray(batch.positions), 1) * weights).sum()), float(weights.sum())


def surprise_at_predictions(world: Any) -> tuple[float, float]:
    batch = world["batch"]
    rows = np.arange(ROWS)[:, None]
    chosen = world["surprise"][rows, np.asarray(batch.positions), np.asarray(batch.targets)]
    weights = np.asarray(batch.weights)
    return float((chosen * weights).sum()), float(weights.sum())


def near(found: Any, expected: Any) -> bool:
    return found == pytest.approx(expected, rel=1e-4)


def test_over_all_real_positions(world: Any) -> None:
    found = sums_of(world, EVERYTHING, world["batch"])
    real = np.asarray(world["batch"].inputs.mask) > 0
    for name in ("kl", "logit_mse", "cosine"):
        assert near(found[name], (world[name][real].sum(), real.sum())), name
    assert near(found["mlm"], surprise_at_predictions(world))
    assert found.keys() == {"kl", "logit_mse", "cosine", "mlm"}


def test_restricted_to_the_predicted_positions(world: Any) -> None:
    found = sums_of(world, dataclasses.replace(EVERYTHING, restrict_kl_to_mask=True), world["batch"])
    for name in ("kl", "logit_mse"):
        assert near(found[name], at_predictions(world[name], world["batch"])), name
    assert near(found["mlm"], surprise_at_predictions(world))
    real = np.asarray(world["batch"].inputs.mask) > 0
    assert near(found["cosine"], (world["cosine"][real].sum(), real.sum()))


def test_without_a_teacher(world: Any) -> None:
    found = sums_of(world, Objective(kl=0.0, cosine=0.0), world["batch"], teacher=False)
    assert found.keys() == {"mlm"}
    assert near(found["mlm"], surprise_at_predictions(world))
    with pytest.raises(ValueError, match="teacher"):
        sums_of(world, Objective(kl=0.0), world["batch"], teacher=False)


def test_only_the_losses_that_weigh_are_there(world: Any) -> None:
    assert sums_of(world, Objective(mlm=0.0, kl=0.0), world["batch"]).keys() == {"cosine"}
    assert [uses_teacher(Objective(kl=a, cosine=b, logit_mse=c)) for a, b, c in
            ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))] == [False, True, True, True]  # fmt: skip


@pytest.mark.parametrize("vocabulary", ["fused", "plain"])
@pytest.mark.parametrize("restrict", [False, True])
def test_micro_batches_add_up_to_the_whole(world: Any, restrict: bool, vocabulary: Any) -> None:
    objective, batch = (
        dataclasses.replace(EVERYTHING, restrict_kl_to_mask=restrict, vocabulary=vocabulary),
        world["batch"],
    )
    real, predicted = (float(np.sum(x)) for x in (np.asarray(batch.inputs.mask) > 0, batch.weights))
    totals = Totals(jnp.float32(real), jnp.float32(predicted), jnp.float32(1))

    def total(params: Any, micro: MicroBatch) -> Any:
        modules, teacher = (MaskedLM(STUDENT), MaskedLM(TEACHER)), world["teacher"]
        return objective_loss(objective, modules[0], params, modules[1], teacher, micro, totals)[0]

    value_and_gradient = jax.jit(jax.value_and_grad(total))

    parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(3)]
    values = [value_and_gradient(world["student"], part) for part in parts]
    whole, gradient = value_and_gradient(world["student"], batch)
    assert near(float(sum(value for value, _ in values)), float(whole))
    added = jax.tree.map(lambda *leaves: sum(leaves), *(part for _, part in values))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), added, gradient)
    means = {
        name: float(world[name][np.asarray(batch.inputs.mask) > 0].mean()) for name in ("kl", "logit_mse", "cosine")
    }
    if restrict:
        means |= {name: at_predictions(world[name], batch)[0] / predicted for name in ("kl", "logit_mse")}
    by_hand = (
        5 * means["kl"]
        + 0.25 * means["logit_mse"]
        + means["cosine"]
        + 2 * surprise_at_predictions(world)[0] / predicted
    )
    assert near(float(whole), by_hand)


@pytest.mark.parametrize("restrict", [False, True])
def test_a_cached_teacher_stands_for_the_live_one(world: Any, restrict: bool) -> None:
    objective, batch = Objective(restrict_kl_to_mask=restrict), world["batch"]
    cached = jax.jit(lambda params, batch: teacher_outputs(objective, MaskedLM(TEACHER), params, batch, VOCAB - 1))(
        world["teacher"], batch
    )
    found = sums_of(world, objective, batch._replace(cached=cached), teacher=False)
    expected = sums_of(world, objective, batch)
    assert found.keys() == expected.keys()
    for name, (total, count) in expected.items():
        assert found[name] == pytest.approx((total, count), rel=2e-3), name
    alone = dataclasses.replace(objective, kl=0.0)  # what is cached for kl is at other places, and not read
    found = sums_of(world, alone, batch._replace(cached=cached), teacher=False)
    assert found["mlm"] == pytest.approx(expected["mlm"], rel=1e-6)


@pytest.mark.parametrize("vocabulary", ["fused", "plain"])
def test_the_teacher_gets_no_gradient(world: Any, vocabulary: Any) -> None:
    objective, ones = dataclasses.replace(EVERYTHING, vocabulary=vocabulary), Totals(*[jnp.ones(())] * 3)

    def total(teacher: Any) -> Any:
        modules, batch = (MaskedLM(STUDENT), MaskedLM(TEACHER)), world["batch"]
        return objective_loss(objective, modules[0], world["student"], modules[1], teacher, batch, ones)[0]

    gradient = jax.jit(jax.grad(total))(world["teacher"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_only_the_student_has_dropout(world: Any) -> None:
    """With dropout keys the teacher's side stays as it is: a student equal to it but for dropout differs from it."""
    batch = with_keys(world["batch"], jnp.arange(2 * ROWS, dtype=jnp.uint32).reshape(ROWS, 2))

    @jax.jit
    def distance(batch: MicroBatch) -> Any:
        module = MaskedLM(dataclasses.replace(TEACHER, hidden_dropout=0.5))
        ones, teacher = Totals(*[jnp.ones(())] * 3), world["teacher"]
        return objective_loss(Objective(), module, teacher, module, teacher, batch, ones)[1]["cosine"].mean

    assert float(distance(batch)) > 0.01
    assert abs(float(distance(with_keys(batch, None)))) < 1e-5


def test_held_out_measures(world: Any) -> None:
    batch = world["batch"]

    def run(teacher: bool) -> dict[str, tuple[float, float]]:
        other = MaskedLM(TEACHER) if teacher else None
        found = jax.jit(lambda s, t: evaluation_sums(Objective(), MaskedLM(STUDENT), s, other, t, batch))(
            world["student"], world["teacher"] if teacher else None
        )
        return {name: (float(term.sum), float(term.count)) for name, term in found.items()}

    found = run(teacher=True)
    actual, reference = world["choices"]
    positions, weights = np.asarray(batch.positions), np.asarray(batch.weights)
    right = np.take_along_axis(actual, positions, 1) == np.asarray(batch.targets)
    assert near(found["mlm"], surprise_at_predictions(world))
    assert found["accuracy"] == (float((right * weights).sum()), float(weights.sum()))
    assert near(found["kl"], at_predictions(world["plain_kl"], batch))
    assert found["agreement"] == at_predictions((actual == reference).astype(float), batch)
    real = np.asarray(batch.inputs.mask) > 0
    assert near(found["cosine"], (world["cosine"][real].sum(), real.sum()))
    assert run(teacher=False).keys() == {"mlm", "accuracy"}


def test_a_student_without_a_head_is_measured_by_its_hidden_states(world: Any) -> None:
    """No term reads logits, so neither model needs a head, and no logits are computed."""
    objective = Objective(kl=0, mlm=0, cosine=0, hidden=1)
    student, teacher = ({"encoder": world[name]["encoder"]} for name in ("student", "teacher"))
    found = evaluation_sums(objective, MaskedLM(STUDENT), student, MaskedLM(TEACHER), teacher, world["batch"])
    assert found.keys() == {"hidden"}
    ones = Totals(*[jnp.ones(())] * 3)
    total, sums = objective_loss(
        objective, MaskedLM(STUDENT), student, MaskedLM(TEACHER), teacher, world["batch"], ones
    )
    assert sums.keys() == {"hidden"} and float(total) == pytest.approx(float(found["hidden"].sum), rel=1e-5)


def test_held_out_measures_ignore_dropout_keys(world: Any) -> None:
    batch = with_keys(world["batch"], jnp.ones((ROWS, 2), jnp.uint32))
    module = MaskedLM(dataclasses.replace(STUDENT, hidden_dropout=0.5))
    found = jax.jit(lambda s: evaluation_sums(Objective(), module, s, None, None, batch))(world["student"])
    assert near((float(found["mlm"].sum), float(found["mlm"].count)), surprise_at_predictions(world))

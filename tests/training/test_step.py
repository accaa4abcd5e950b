"""The train step: one reduction, the same numbers however the rows are spread, the right gradient."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax.config import Objective, Optimizer
from distil_jax.data.corpus.masking import MaskingRule, masking_log_weights
from distil_jax.models import EncoderConfig, EncoderInputs, MaskedLM
from distil_jax.objectives import MicroBatch, Totals, objective_loss, student_config, student_params
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import Devices, cut_axes, make_devices
from distil_jax.training.step import (
    FrozenInputs,
    apply_gradients,
    init_state,
    make_train_step,
    micro_batch_rows,
    micro_batches,
    parts,
)
from distil_jax.training.text_step import TextModels, make_evaluation_step, text_step_config

PAD, UNK, CLS, SEP, MASK, VOCAB, LENGTH, BATCH = 0, 1, 2, 3, 4, 50, 16, 32
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
TEACHER = EncoderConfig("bert", VOCAB, 16, 2, 2, 32, 32, type_vocab_size=2, initializer_range=0.2)
TOTALS = Totals(np.float32(1), np.float32(1), np.float32(1))  # pyright: ignore[reportArgumentType]
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_fraction=0.0)


def make_rows(seed: int = 0) -> np.ndarray:
    """Rows of one to three packed sequences and some padding."""
    random = np.random.default_rng(seed)
    rows = np.full((BATCH, LENGTH), PAD, np.uint16)
    for row in rows:
        start = 0
        while LENGTH - start > 4:
            size = min(int(random.integers(4, 10)), LENGTH - start)
            row[start : start + size] = [CLS, *random.integers(5, VOCAB, size - 2), SEP]
            start += size
    return rows


MODELS = TextModels(
    student=MaskedLM(student_config(TEACHER, [0])),
    teacher=MaskedLM(TEACHER),
    objective=Objective(logit_mse=0.01, hidden=0.5),
    rule=MaskingRule(MASK, VOCAB, 0.15, 0.8, 0.1),
    cls_id=CLS,
    pad_id=PAD,
)
TRAINABLE = ("encoder", "mlm_head")


@pytest.fixture(scope="module")
def teacher_params() -> Any:
    init = MaskedLM(TEACHER).init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: np.asarray(x + 0.01), init)


def frozen_of(teacher_params: Any) -> FrozenInputs:
    counts = np.arange(VOCAB, dtype=np.int64) ** 2
    return FrozenInputs(np.int32(3), teacher_params, masking_log_weights(counts, SPECIAL, 0.7))


def first_params(teacher_params: Any) -> Any:
    return student_params(teacher_params, TEACHER, MODELS.student.config, [0])


def train(
    devices: Devices, teacher_params: Any, micro: int = 2, trainable: tuple[str, ...] = TRAINABLE
) -> tuple[Any, list[dict[str, float]]]:
    """Parameters and metrics after three steps on different rows."""
    optimizer = make_optimizer(OPTIMIZER, 10)
    first = init_state(first_params(teacher_params), optimizer, trainable)
    state, frozen, cut = devices.place(first, frozen_of(teacher_params))
    config = text_step_config(MODELS, micro, trainable)
    step = devices.map_step(make_train_step(config, optimizer, learning_rate_schedule(OPTIMIZER, 10), cut), cut)
    metrics = []
    for index in range(3):
        state, values = step(state, frozen, devices.shard_batch(make_rows(index)))
        metrics.append({name: float(value) for name, value in values.items() if value.ndim == 0})
    return jax.tree.map(np.asarray, state), metrics


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_pmap_and_shard_map_give_the_same_bits(teacher_params: Any) -> None:
    one = train(make_devices("shard_map"), teacher_params)
    two = train(make_devices("pmap"), teacher_params)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_devices_give_the_same_numbers_dropout_on(teacher_params: Any, count: int) -> None:
    many, many_metrics = train(make_devices("shard_map"), teacher_params)
    few, few_metrics = train(make_devices("shard_map", count), teacher_params, micro=4)
    for left, right in zip(many_metrics, few_metrics, strict=True):
        assert left == pytest.approx(right, rel=2e-5)
    np.testing.assert_allclose(flat(many.params), flat(few.params), atol=2e-4)


def cut_devices(count: int = 0, *, fsdp: bool = True) -> Devices:
    return dataclasses.replace(make_devices("shard_map", count), fsdp=fsdp, teacher="fsdp")


@pytest.mark.parametrize(
    ("count", "fsdp"),
    [(0, True), pytest.param(2, True, marks=pytest.mark.slow), pytest.param(0, False, marks=pytest.mark.slow)],
)
def test_cut_parameters_give_the_same_numbers_dropout_on(teacher_params: Any, count: int, fsdp: bool) -> None:
    """Parameters, moments and teacher over all devices, or the teacher alone."""
    whole, whole_metrics = train(make_devices("shard_map"), teacher_params)
    cut, cut_metrics = train(cut_devices(count, fsdp=fsdp), teacher_params)
    for left, right in zip(whole_metrics, cut_metrics, strict=True):
        assert left == pytest.approx(right, rel=2e-5)
    np.testing.assert_allclose(flat(whole.params), flat(cut.params), atol=2e-4)


@pytest.mark.slow
def test_a_part_that_is_trained_may_be_cut(teacher_params: Any) -> None:
    state, _ = train(cut_devices(2), teacher_params, trainable=("mlm_head",))
    jax.tree.map(np.testing.assert_array_equal, first_params(teacher_params)["encoder"], state.params["encoder"])


def test_every_parameter_moves_and_the_frozen_ones_do_not(teacher_params: Any) -> None:
    start = first_params(teacher_params)
    state, _ = train(make_devices("shard_map"), teacher_params)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, state.params)
    assert all(jax.tree.leaves(moved)), moved
    frozen, _ = train(make_devices("shard_map"), teacher_params, trainable=("mlm_head",))
    jax.tree.map(np.testing.assert_array_equal, start["encoder"], frozen.params["encoder"])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), start["mlm_head"], frozen.params["mlm_head"])))
    assert len(jax.tree.leaves(frozen.opt_state)) < len(jax.tree.leaves(state.opt_state))


def compiled(teacher_params: Any, micro_batch_size: int, times: int = 1, devices: Devices | None = None) -> Any:
    """The compiled step for `times` copies of the rows."""
    devices, optimizer = devices or make_devices("shard_map"), make_optimizer(OPTIMIZER, 10)
    first = init_state(first_params(teacher_params), optimizer, TRAINABLE)
    state, frozen, cut = devices.place(first, frozen_of(teacher_params))
    config = text_step_config(MODELS, micro_batch_size, TRAINABLE)
    made = make_train_step(config, optimizer, learning_rate_schedule(OPTIMIZER, 10), cut)
    rows = devices.shard_batch(np.tile(make_rows(), (times, 1)))
    return devices.map_step(made, cut).lower(state, frozen, rows).compile()


def test_cut_parameters_are_gathered_and_their_gradients_scattered(teacher_params: Any) -> None:
    """An all-gather a use of a matrix, a reduce-scatter a gradient, and no matrix is reduced whole."""

    def count(name: str) -> int:
        return len(re.findall(rf" {name}(?:-start)?\(", program))

    program = compiled(teacher_params, 2, devices=cut_devices()).as_text()
    gathers, scatters = count("all-gather"), count("reduce-scatter")
    matrices, of_teacher = (
        sum(axis >= 0 for axis in jax.tree.leaves(cut_axes(cut_devices().replicate(tree, cut=True))))
        for tree in (first_params(teacher_params), teacher_params)
    )
    assert matrices and scatters == matrices
    # One more for the counts of the batch. XLA on CPU merges the second use of a matrix with the first.
    assert matrices + of_teacher + 1 <= gathers <= 2 * matrices + of_teacher + 1
    reduced = re.findall(r"^.* all-reduce(?:-start)?\(", program, re.MULTILINE)
    assert reduced and not any(re.search(r"f32\[\d+,\d+\]", line) for line in reduced)


def test_moments_are_updated_where_they_lie(teacher_params: Any) -> None:
    """Not with copies of the old ones, which would take time and as much memory again."""
    text = compiled(teacher_params, 4).as_text()
    names = re.findall(r"%(\S+) = f32\S* parameter\(\d+\).*opt_state.*(?:mu|nu)", text)
    assert len(names) > 20
    assert not set(re.findall(r" copy\(%(\S+)\)", text)) & set(names)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_gradients_are_reduced_once_whatever_the_accumulation(teacher_params: Any, micro_batch_size: int) -> None:
    text = compiled(teacher_params, micro_batch_size).as_text()
    assert len(re.findall(r"= .* all-reduce(?:-start)?\(", text)) == 1
    assert not re.findall(r"(?:reduce-scatter|all-to-all|collective-permute)\(", text)
    gathered = re.findall(r"= (\S+) all-gather\(", text)
    assert [shape.split("{")[0] for shape in gathered] == [f"s32[{BATCH},3]"]
    if micro_batch_size == 1:
        loops = re.findall(r"while\(", text)
        assert loops, "four micro-batches a device should be a loop"


def test_a_batch_sixteen_times_as_large_takes_hardly_more_memory(teacher_params: Any) -> None:
    small, large = (compiled(teacher_params, 2, times).memory_analysis().temp_size_in_bytes for times in (1, 16))
    more_rows = 15 * BATCH // 8  # on each device
    # Room for a dozen arrays of [rows, L], ids and labels, but not for one of logits [rows, L, V].
    assert large - small < more_rows * LENGTH * 4 * 12


def test_the_gradient_is_that_of_the_whole_batch_at_once(teacher_params: Any) -> None:
    """Two micro-batches a device on eight devices against one batch on one device, with SGD in place of AdamW."""
    import optax

    results = []
    for count, micro in ((8, 2), (1, BATCH)):
        devices, optimizer = make_devices("shard_map", count), optax.sgd(1.0)
        params = first_params(teacher_params)
        state = devices.replicate(init_state(params, optimizer, TRAINABLE))
        config = text_step_config(MODELS, micro, TRAINABLE)
        step = devices.map(make_train_step(config, optimizer, lambda _: 1.0), replicated=2)
        after, _ = step(state, devices.replicate(frozen_of(teacher_params)), devices.shard_batch(make_rows()))
        results.append(flat(params) - flat(jax.tree.map(np.asarray, after.params)))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5 * np.abs(results[1]).max())


def test_evaluation_does_not_depend_on_batch_size_or_devices(teacher_params: Any) -> None:
    params = first_params(teacher_params)
    totals = []
    for count, batch in ((8, 32), (2, 8)):
        devices = make_devices("shard_map", count)
        step = devices.map(make_evaluation_step(MODELS, 2), replicated=3)
        placed = devices.replicate((params, frozen_of(teacher_params)))
        sums = [
            step(*placed, np.int32(first), devices.shard_batch(make_rows()[first : first + batch]))
            for first in range(0, BATCH, batch)
        ]
        totals.append(jax.tree.map(lambda *parts: float(sum(parts)), *sums))
    assert flat(totals[0]) == pytest.approx(flat(totals[1]), rel=1e-5)
    predicted = totals[0]["mlm"].count
    lengths = (make_rows() != PAD).sum(1)
    assert predicted == sum(-(-length * 15 // 100) for length in lengths)


def test_a_missing_teacher_is_an_error(teacher_params: Any) -> None:
    ids = jnp.asarray(make_rows().astype(np.int32))
    none = jnp.zeros((BATCH, 1), jnp.int32)
    batch = MicroBatch(EncoderInputs(ids), none, none, jnp.ones((BATCH, 1)))
    with pytest.raises(ValueError, match="teacher"):
        objective_loss(Objective(), MODELS.student, teacher_params, None, None, batch, TOTALS)


@pytest.mark.parametrize(("rows", "most", "size"), [(32, 16, 16), (16, 32, 16), (12, 8, 6), (7, 4, 1), (5, 5, 5)])
def test_a_device_computes_the_largest_equal_parts(rows: int, most: int, size: int) -> None:
    assert micro_batch_rows(rows, most) == size
    cut = micro_batches({"x": jnp.arange(rows)}, most)["x"]
    assert cut.shape == (rows // size, size)
    np.testing.assert_array_equal(cut.reshape(-1), np.arange(rows))


def test_a_plain_optimizer_keeps_its_moments_where_a_step_is_skipped() -> None:
    params = {"group": {"x": jnp.ones(3)}}
    optimizer: Any = optax.adamw(0.1)
    state = init_state(params, optimizer, ("group",))
    state, _ = apply_gradients(state, {"group": {"x": jnp.ones(3)}}, jnp.ones(()), optimizer, lambda _: 0.1)
    bad = {"group": {"x": jnp.full(3, jnp.nan)}}
    after, metrics = apply_gradients(state, bad, jnp.ones(()), optimizer, lambda _: 0.1)
    assert int(metrics["skipped"]) == 1 and int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)


def test_a_group_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no group 'hed'.*encoder, head"):
        parts({"encoder": {}, "head": {}}, ("encoder", "hed"))

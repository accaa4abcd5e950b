"""The fused losses over the vocabulary against the plain ones, and both against NumPy in float64."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from distil_jax.cpu import SWITCH
from distil_jax.objectives import vocabulary
from distil_jax.objectives.losses import cross_entropy, distillation_kl, top1_matches
from distil_jax.objectives.vocabulary import (
    chunk_size,
    fused_vocabulary_loss,
    plain_vocabulary_loss,
    top_tokens,
    vocabulary_measures,
)
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions
from distil_jax.target import Device, traced_for

TOKENS, VOCAB, WIDTH, TEACHER_WIDTH = 13, 37, 12, 20
COEFFICIENTS = {"kl": 0.7, "mlm": 0.3, "logit_mse": 0.01}
SUBSETS = [names for size in (1, 2, 3) for names in itertools.combinations(COEFFICIENTS, size)]


def make_layer(seed: int, width: int, tokens: int = TOKENS, dtype: Any = jnp.float32) -> OutputLayer:
    noise = np.random.default_rng(seed)
    hidden, table, bias = (noise.standard_normal(shape) for shape in ((tokens, width), (VOCAB, width), (VOCAB,)))
    return OutputLayer(jnp.asarray(hidden, dtype), jnp.asarray(table, jnp.float32), jnp.asarray(bias, jnp.float32))


def make_case(terms: Any = tuple(COEFFICIENTS), tokens: int = TOKENS, dtype: Any = jnp.float32) -> tuple[Any, ...]:
    """Student, teacher, positions (some of weight 0, one of 1/2) and coefficients."""
    noise = np.random.default_rng(3)
    real = (np.arange(tokens) % 5 != 1).astype(np.float32) * np.where(np.arange(tokens) == 2, 0.5, 1)
    labelled = real * (np.arange(tokens) % 3 == 0)
    weights = {name: jnp.asarray(real if name in ("kl", "logit_mse") else labelled, jnp.float32) for name in terms}
    targets = jnp.asarray(noise.integers(0, VOCAB, tokens), jnp.int32)
    coefficients = {name: jnp.float32(COEFFICIENTS[name]) for name in terms}
    student, teacher = make_layer(1, WIDTH, tokens, dtype), make_layer(2, TEACHER_WIDTH, tokens, dtype)
    return student, teacher, Positions(weights, targets), coefficients


def in_float64(case: tuple[Any, ...], temperature: float) -> tuple[float, dict[str, float]]:
    """Total and sums by the definitions, in NumPy."""
    student, teacher, positions, coefficients = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), case)
    s, z = (layer.hidden @ layer.table.T + layer.bias for layer in (student, teacher))

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(z / temperature), log_softmax(s / temperature)
    surprise = -np.take_along_axis(log_softmax(s), positions.targets[:, None].astype(int), 1)[:, 0]
    each = {
        "kl": temperature**2 * (np.exp(p) * (p - q)).sum(-1),
        "logit_mse": ((s - z) ** 2).sum(-1),
        "mlm": surprise,
    }
    sums = {name: float((each[name] * weights).sum()) for name, weights in positions.weights.items()}
    return float(sum(coefficients[name] * value for name, value in sums.items())), sums


def value_and_gradient(loss: Any, case: tuple[Any, ...]) -> tuple[float, dict[str, tuple[float, float]], Any]:
    student, *rest = case
    (total, sums), gradient = jax.jit(jax.value_and_grad(lambda s, r: loss(s, *r), has_aux=True))(student, rest)
    return float(total), {name: (float(term.sum), float(term.count)) for name, term in sums.items()}, gradient


def distance(found: Any, expected: Any) -> float:
    """The largest difference of the leaves, each relative to its norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    norms = [(np.linalg.norm(np.float64(a) - np.float64(b)), np.linalg.norm(np.float64(b))) for a, b in pairs]
    return float(max(difference / max(norm, 1e-30) for difference, norm in norms))


def check(case: tuple[Any, ...], temperature: float, chunk: int) -> None:
    """Fused, with and without a gradient, equals plain and float64."""
    fused = partial(fused_vocabulary_loss, temperature=temperature, chunk=chunk)
    plain = partial(plain_vocabulary_loss, temperature=temperature)

    @jax.jit
    def run(student: Any, rest: Any) -> Any:
        both = [jax.value_and_grad(loss, has_aux=True)(student, *rest) for loss in (fused, plain)]
        return *both, fused(student, *rest)[0]

    ((total, sums), gradient), ((by_plain, plain_sums), plain_gradient), alone = run(case[0], case[1:])
    expected, each = in_float64(case, temperature)
    assert [float(total), float(by_plain), float(alone)] == pytest.approx([expected] * 3, rel=1e-6)
    assert {name: float(term.sum) for name, term in sums.items()} == pytest.approx(each, rel=1e-6)
    counts = [{name: float(term.count) for name, term in found.items()} for found in (sums, plain_sums)]
    assert counts[0] == counts[1]
    assert distance(gradient, plain_gradient) < 1e-5


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
def test_every_combination_of_losses(terms: tuple[str, ...]) -> None:
    check(make_case(terms), 2.0, 5)


# Powers of the exponentials, and other exponentials; chunks that divide the 13 positions, don't, are longer, or chosen.
@pytest.mark.parametrize(("temperature", "chunk"), [(0.5, 4), (1.0, 1), (1.7, TOKENS), (3.0, 64), (8.0, 0)])
def test_every_kind_of_temperature_and_chunk(temperature: float, chunk: int) -> None:
    check(make_case(), temperature, chunk)


def test_a_temperature_that_moves_is_an_argument_of_the_program() -> None:
    student, *rest = make_case()

    def loss(student: Any, temperature: Any) -> Any:
        return fused_vocabulary_loss(student, *rest, temperature=temperature, chunk=4)

    moving = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for temperature in (1.0, 1.7, 2.0):
        found = moving(student, jnp.float32(temperature))
        expected = jax.value_and_grad(loss, has_aux=True)(student, temperature)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), found, expected)


def test_one_position() -> None:
    check(make_case(tokens=1), 2.0, 0)


def test_next_tokens_without_a_teacher() -> None:
    student, teacher, positions, coefficients = make_case(("mlm",))
    found = value_and_gradient(
        partial(fused_vocabulary_loss, temperature=2.0, chunk=4), (student, None, positions, coefficients)
    )
    assert found[0] == pytest.approx(in_float64((student, teacher, positions, coefficients), 2.0)[0], rel=1e-6)


def test_nothing_counts() -> None:
    student, teacher, positions, coefficients = make_case()
    positions = positions._replace(weights=jax.tree.map(jnp.zeros_like, positions.weights))
    fused = partial(fused_vocabulary_loss, temperature=2.0, chunk=4)
    total, sums, gradient = value_and_gradient(fused, (student, teacher, positions, coefficients))
    assert total == 0 and set(sums.values()) == {(0.0, 0.0)}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Of the definitions in float64, in a random direction of each input."""
    case = make_case()
    gradient = value_and_gradient(partial(fused_vocabulary_loss, temperature=2.0, chunk=4), case)[2]
    for index, name in enumerate(OutputLayer._fields):
        direction = np.random.default_rng(9).standard_normal(case[0][index].shape)
        start = np.float64(case[0][index])
        ends = [
            in_float64((case[0]._replace(**{name: start + step * direction}), *case[1:]), 2.0)[0]
            for step in (1e-5, -1e-5)
        ]
        assert float((gradient[index] * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5), name


def test_what_does_not_count_may_be_anything_and_what_counts_shows() -> None:
    student, teacher, positions, coefficients = make_case()
    unused = (positions.weights["kl"] == 0)[:, None]

    @jax.jit
    def run(student: Any, teacher: Any) -> Any:
        return jax.value_and_grad(fused_vocabulary_loss, has_aux=True)(
            student, teacher, positions, coefficients, temperature=2.0, chunk=4
        )

    spoilt = [
        layer._replace(hidden=jnp.where(unused, bad, layer.hidden))
        for layer, bad in ((student, jnp.nan), (teacher, jnp.inf))
    ]
    jax.tree.map(np.testing.assert_array_equal, run(*spoilt), run(student, teacher))
    spoilt = student._replace(hidden=student.hidden.at[0, 0].set(jnp.nan))
    (total, _), gradient = run(spoilt, teacher)
    assert np.isnan(total) and all(np.isnan(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_a_student_equal_to_its_teacher_has_no_divergence() -> None:
    _, teacher, positions, coefficients = make_case(("kl",))
    teacher = teacher._replace(bias=teacher.bias * 1e3)  # far apart within a row, too
    fused = partial(fused_vocabulary_loss, temperature=2.0, chunk=4)
    total, _, gradient = value_and_gradient(fused, (teacher, teacher, positions, coefficients))
    assert total == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_constant_that_all_logits_share_does_not_count() -> None:
    _, teacher, positions, coefficients = make_case(("kl",))
    # Multiples of 1/16, so that adding the constant rounds nothing: what is seen is the loss's own rounding.
    teacher = teacher._replace(hidden=jnp.round(teacher.hidden * 4) / 4, table=jnp.round(teacher.table * 4) / 4)
    teacher = teacher._replace(bias=jnp.zeros(VOCAB))
    student = teacher._replace(bias=jnp.full(VOCAB, 1000.0))
    loss = partial(fused_vocabulary_loss, temperature=2.0)
    total, _ = loss(student, teacher, positions, coefficients)
    assert abs(float(total)) < 1e-6


def test_extreme_logits_stay_finite() -> None:
    student, teacher, positions, coefficients = make_case(("kl", "mlm"))
    extreme = [layer._replace(hidden=layer.hidden * 1e3) for layer in (student, teacher)]
    check((*extreme, positions, coefficients), 2.0, 4)


def test_accelerators_compute_the_same_function() -> None:
    """Their form, with tokens added to the vocabulary and logits made again for the gradient, against float64."""
    with traced_for(Device("cuda", (9, 0))):
        check(make_case(), 2.0, 4)
        check(make_case(("kl", "mlm")), 1.5, 8)


def test_accelerators_round_logits_to_the_compute_dtype() -> None:
    case = make_case(("kl", "mlm"), dtype=jnp.bfloat16)
    loss = partial(fused_vocabulary_loss, temperature=2.0, chunk=4)
    exact = value_and_gradient(loss, case)
    with traced_for(Device("cuda", (9, 0))):
        rounded = value_and_gradient(loss, case)
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3)
    for one, other in zip(jax.tree.leaves(rounded[2]), jax.tree.leaves(exact[2]), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * float(np.abs(other).max()))


def test_bfloat16_differs_by_its_rounding_only() -> None:
    """Against float32 of the same rounded numbers: logits are exact but for order, derivatives rounded to 8 bits."""
    low = make_case(dtype=jnp.bfloat16)
    rounded = [
        layer._replace(
            hidden=layer.hidden.astype(jnp.float32), table=layer.table.astype(jnp.bfloat16).astype(jnp.float32)
        )
        for layer in low[:2]
    ]
    expected = value_and_gradient(partial(fused_vocabulary_loss, temperature=2.0, chunk=4), (*rounded, *low[2:]))
    total, sums, gradient = value_and_gradient(partial(fused_vocabulary_loss, temperature=2.0, chunk=4), low)
    assert total == pytest.approx(expected[0], rel=1e-5)
    for name, term in sums.items():
        assert term == pytest.approx(expected[1][name], rel=1e-5), name
    assert [leaf.dtype for leaf in gradient] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert distance(gradient, expected[2]) < 2**-8


def test_the_backward_pass_scales() -> None:
    case = make_case()
    fused = partial(fused_vocabulary_loss, temperature=2.0, chunk=4)
    once = value_and_gradient(fused, case)[2]
    scaled = jax.jit(jax.grad(lambda s: jnp.square(fused(s, *case[1:])[0])))(case[0])
    total = in_float64(case, 2.0)[0]
    assert distance(scaled, jax.tree.map(lambda x: 2 * total * x, once)) < 1e-5


def test_constants_and_measures_have_no_gradient() -> None:
    student, teacher, positions, coefficients = make_case()

    def total(teacher: Any, weights: Any, coefficients: Any) -> Any:
        places = positions._replace(weights=weights)
        return fused_vocabulary_loss(student, teacher, places, coefficients, temperature=2.0, chunk=4)[0]

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(teacher, positions.weights, coefficients)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))

    def measure(student: Any) -> Any:
        sums = fused_vocabulary_loss(student, teacher, positions, coefficients, temperature=2.0, chunk=4)[1]
        return sum(term.sum for term in sums.values())

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(measure))(student)))


def test_a_tied_table_gets_both_gradients() -> None:
    student, teacher, positions, coefficients = make_case()
    ids = jnp.arange(TOKENS, dtype=jnp.int32) * 2

    def total(table: Any, loss: Any) -> Any:
        layer = OutputLayer(jnp.tanh(table[ids]), table, student.bias)
        return loss(layer, teacher, positions, coefficients, temperature=2.0)[0]

    found, expected = (
        jax.jit(jax.grad(partial(total, loss=loss)))(student.table)
        for loss in (partial(fused_vocabulary_loss, chunk=4), plain_vocabulary_loss)
    )
    assert distance(found, expected) < 1e-5


def test_rematerialised_and_inside_a_scan() -> None:
    student, teacher, positions, coefficients = make_case()
    fused = jax.checkpoint(partial(fused_vocabulary_loss, temperature=2.0, chunk=4))

    def twice(student: Any) -> Any:
        def add(total: Any, _: Any) -> Any:
            return total + fused(student, teacher, positions, coefficients)[0], None

        return jax.lax.scan(add, jnp.zeros(()), None, length=2)[0]

    expected = value_and_gradient(
        partial(plain_vocabulary_loss, temperature=2.0), (student, teacher, positions, coefficients)
    )
    total, gradient = jax.jit(jax.value_and_grad(twice))(student)
    assert float(total) == pytest.approx(2 * expected[0], rel=1e-6)
    assert distance(gradient, jax.tree.map(lambda x: 2 * x, expected[2])) < 1e-5


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_positions_spread_over_devices_add_up(mapping: str) -> None:
    case = make_case(tokens=48)
    student, teacher, positions, coefficients = case
    expected = value_and_gradient(partial(plain_vocabulary_loss, temperature=2.0), case)

    def part(hidden: Any, teacher_hidden: Any, positions: Positions) -> Any:
        other = teacher._replace(hidden=teacher_hidden)

        def loss(tables: Any, hidden: Any) -> Any:
            layer = OutputLayer(hidden, *tables)
            return fused_vocabulary_loss(layer, other, positions, coefficients, temperature=2.0, chunk=4)[0]

        total, (by_tables, by_hidden) = jax.value_and_grad(loss, argnums=(0, 1))(student[1:], hidden)
        return *jax.lax.psum((total, by_tables), "data"), by_hidden

    rows = (student.hidden, teacher.hidden, positions)
    if mapping == "pmap":
        cut = jax.tree.map(lambda x: x.reshape(8, 6, *x.shape[1:]), rows)
        total, by_tables, by_hidden = jax.pmap(part, "data", out_axes=(None, None, 0))(*cut)  # type: ignore[arg-type]
        by_hidden = by_hidden.reshape(48, WIDTH)
    else:
        data, mesh = PartitionSpec("data"), Mesh(np.array(jax.devices()), ("data",))
        whole = (PartitionSpec(), PartitionSpec(), data)
        mapped = jax.shard_map(part, mesh=mesh, in_specs=data, out_specs=whole, check_vma=False)
        total, by_tables, by_hidden = jax.jit(mapped)(*rows)
    assert float(total) == pytest.approx(expected[0], rel=1e-6)
    assert distance(OutputLayer(by_hidden, *by_tables), expected[2]) < 1e-5


@pytest.mark.parametrize("chunk", [0, 4])
def test_measures_are_the_plain_losses(chunk: int) -> None:
    student, teacher, positions, _ = make_case()
    weights, targets = positions.weights["kl"], positions.targets
    student = student._replace(table=student.table.at[7].set(student.table[5]), bias=student.bias.at[5:8:2].set(60.0))
    found = jax.jit(partial(vocabulary_measures, chunk=chunk))(student, teacher, targets, weights)
    student_logits, teacher_logits = (layer.hidden @ layer.table.T + layer.bias[None] for layer in (student, teacher))
    assert np.all(np.asarray(student_logits).argmax(-1) == 5), "of equal logits the first counts"
    expected = {
        "mlm": cross_entropy(student_logits, targets, weights),
        "accuracy": top1_matches(student_logits, targets, weights),
        "kl": distillation_kl(student_logits, teacher_logits, weights, 1.0),
        "agreement": top1_matches(student_logits, jnp.argmax(teacher_logits, axis=-1), weights),
    }
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        assert tuple(map(float, found[name])) == pytest.approx(tuple(map(float, term)), rel=1e-6), name
    alone = vocabulary_measures(student, None, targets, weights, chunk=chunk)
    assert alone.keys() == {"mlm", "accuracy"}


@pytest.mark.parametrize(("count", "temperature"), [(1, 2.0), (6, 1.7), (VOCAB - 1, 2.0)])
def test_the_most_probable_tokens_stand_for_the_teacher(count: int, temperature: float) -> None:
    """Against NumPy in float64; with all tokens but one known, the loss is that next to the teacher itself."""
    student, teacher, positions, coefficients = make_case(("kl", "mlm"))
    top = jax.jit(lambda layer: top_tokens(layer, count, temperature, chunk=5))(teacher)
    s, z = (
        np.asarray(layer.hidden, np.float64) @ np.asarray(layer.table, np.float64).T + np.asarray(layer.bias)
        for layer in (student, teacher)
    )
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True) for x in (z, s))
    order = np.argsort(-p, axis=-1)
    np.testing.assert_array_equal(np.asarray(top.ids), order[:, :count])
    known, others = (np.take_along_axis(p, part, 1) for part in (order[:, :count], order[:, count:]))
    np.testing.assert_allclose(top.probabilities, known, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(top.tail, others.sum(-1), rtol=1e-5)
    of_student = np.take_along_axis(q, order[:, :count], 1)
    rest = 1 - of_student.sum(-1)
    each = (known * np.log(known / of_student)).sum(-1) + others.sum(-1) * np.log(others.sum(-1) / rest)
    fused = partial(fused_vocabulary_loss, temperature=temperature, chunk=5)
    plain = partial(plain_vocabulary_loss, temperature=temperature)
    case = (student, top, positions, coefficients)
    total, sums, gradient = value_and_gradient(fused, case)
    by_plain, plain_sums, plain_gradient = value_and_gradient(plain, case)
    expected = temperature**2 * float((each * positions.weights["kl"]).sum())
    assert sums["kl"][0] == pytest.approx(expected, rel=2e-3) and sums["kl"] == pytest.approx(
        plain_sums["kl"], rel=1e-5
    )
    assert total == pytest.approx(by_plain, rel=1e-5) and sums["mlm"] == pytest.approx(plain_sums["mlm"], rel=1e-6)
    assert distance(gradient, plain_gradient) < 1e-5
    if count == VOCAB - 1:
        live = value_and_gradient(fused, (student, teacher, positions, coefficients))
        assert total == pytest.approx(live[0], rel=1e-3) and distance(gradient, live[2]) < 2e-3


def test_a_student_that_leaves_nothing_to_the_tail_has_finite_losses() -> None:
    student, teacher, positions, coefficients = make_case(("kl",))
    top = top_tokens(teacher, 3, 2.0)
    sure = student._replace(hidden=student.hidden * 0, bias=jnp.zeros(VOCAB).at[top.ids[0]].set(1e4))
    total, _, gradient = value_and_gradient(
        partial(fused_vocabulary_loss, temperature=2.0, chunk=4), (sure, top, positions, coefficients)
    )
    assert np.isfinite(total) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("loss", [fused_vocabulary_loss, plain_vocabulary_loss])
def test_what_is_missing_is_an_error(loss: Any) -> None:
    student, teacher, positions, coefficients = make_case()
    wrong: list[tuple[Any, ...]] = [
        (None, positions, coefficients, "no teacher"),
        (top_tokens(teacher, 3, 2.0), positions, coefficients, "logit_mse"),
        (teacher, positions._replace(targets=None), coefficients, "no targets"),
        (teacher, positions, {**coefficients, "other": jnp.float32(1)}, "other"),
        (teacher, positions, {"kl": coefficients["kl"]}, "coefficients of"),
        (teacher, positions._replace(weights={}), {}, "coefficients of"),
    ]
    for *arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            loss(student, *arguments, temperature=2.0)


def test_chunks_are_few_equal_and_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    least = vocabulary.LEAST_CHUNK
    for tokens, size, budget in itertools.product((1, 8, 100, 2048, 99_999), (37, 30522, 250_002), (1, 1 << 26)):
        chunk = chunk_size(tokens, size, max_bytes=budget)
        most, chunks = max(least, budget // (4 * size)), -(-tokens // chunk)
        assert chunk % 8 == 0 and 8 <= chunk <= most
        assert chunks * chunk - tokens < 8 * chunks, "little is filled up"
        assert chunks <= -(-tokens // (most - 7)), "no more than needed"
    assert chunk_size(2048, 30522) == 1024, "on CPU"
    monkeypatch.setenv(SWITCH, "0")
    assert chunk_size(2048, 30522) == 2048, "elsewhere"

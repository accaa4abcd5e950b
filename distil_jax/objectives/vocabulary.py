"""The loss terms over the vocabulary, without holding the logits of all positions at once.

`fused_vocabulary_loss` takes the positions in chunks and computes the gradient of a chunk while its logits are there,
so that the backward pass only scales it: of [T, V] arrays it holds [chunk, V] ones (the idea of Cut Cross Entropy,
Wijmans et al. 2024, and of Liger Kernel, Hsu et al. 2024). `plain_vocabulary_loss` is its reference: the same function
from whole logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu import CHUNK_BYTES, forms_apply
from distil_jax.objectives.losses import (
    SumCount,
    cross_entropy,
    distillation_kl,
    logit_mse,
    top1_matches,
    top_tokens_kl,
)
from distil_jax.objectives.schedules import Value
from distil_jax.objectives.vocabulary_terms import (
    LABEL_TERMS,
    TEACHER_TERMS,
    OutputLayer,
    Positions,
    Teacher,
    TopTokens,
    logits_of,
    loss_and_dlogits,
    loss_sums,
)
from distil_jax.target import target_device

# Bytes of one float32 [chunk, V] array on an accelerator, a share of its memory between these; five are held at most,
# beside two of the table's size. Larger chunks save a hundredth of a step (benchmarks/RESULTS.md, compiled).
_LEAST_CHUNK_BYTES, _MOST_CHUNK_BYTES, _CHUNK_SHARE = 256 << 20, 1 << 30, 64
VOCABULARY_MULTIPLE = 128  # tokens: lanes of a TPU; a GPU's products want multiples of 8
_NEVER = -1e4  # bias of tokens that are added: their exponentials are 0
LEAST_CHUNK = 256  # positions, where the vocabulary is so large that the table outweighs them anyway

Summed = TypeVar("Summed")
Stacked = TypeVar("Stacked")
Result = tuple[Array, dict[str, SumCount]]


def vocabulary_bytes() -> int:
    """Bytes of one float32 [chunk, V] array where `objective.chunk` leaves them to the program."""
    if forms_apply():
        return CHUNK_BYTES
    return min(max(target_device().memory // _CHUNK_SHARE, _LEAST_CHUNK_BYTES), _MOST_CHUNK_BYTES)


def chunk_size(tokens: int, vocabulary: int, *, max_bytes: int = 0) -> int:
    """Positions a chunk: as few equal chunks as keep a float32 [chunk, vocabulary] within `max_bytes`.

    A multiple of 8, and not below `LEAST_CHUNK` for the sake of `max_bytes`; 0 stands for `vocabulary_bytes`.
    """
    max_bytes = max_bytes or vocabulary_bytes()
    most = max(LEAST_CHUNK, max_bytes // (4 * vocabulary) // 8 * 8)
    chunks = max(1, -(-tokens // most))
    return max(8, -(-tokens // (8 * chunks)) * 8)


def plain_vocabulary_loss(
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
    coefficients: Mapping[str, Array],
    *,
    temperature: Value,
) -> Result:
    """As `fused_vocabulary_loss`, from whole [T, V] logits and by automatic differentiation: its reference."""
    _check_terms(teacher, positions, coefficients)
    logits, targets, teacher_logits = logits_of(student), positions.targets, None
    if isinstance(teacher, OutputLayer):
        teacher_logits = logits_of(jax.lax.stop_gradient(teacher))
    sums: dict[str, SumCount] = {}
    for name, weights in positions.weights.items():
        if name == "mlm" and targets is not None:
            sums[name] = cross_entropy(logits, targets, weights)
        elif name == "kl" and isinstance(teacher, TopTokens):
            known = (teacher.probabilities, teacher.ids.astype(jnp.int32), teacher.tail)
            sums[name] = top_tokens_kl(logits, *known, weights, temperature)
        elif name == "kl" and teacher_logits is not None:
            sums[name] = distillation_kl(logits, teacher_logits, weights, temperature)
        elif name == "logit_mse" and teacher_logits is not None:
            sums[name] = logit_mse(logits, teacher_logits, weights)
    total = _total({name: term.sum for name, term in sums.items()}, coefficients)
    return total, jax.lax.stop_gradient(sums)


def _check_terms(teacher: Teacher, positions: Positions, coefficients: Mapping[str, Array]) -> None:
    names = coefficients.keys()
    if names != positions.weights.keys() or not names or not names <= {*TEACHER_TERMS, *LABEL_TERMS}:
        raise ValueError(f"coefficients of {sorted(names)}, weights of {sorted(positions.weights)}")
    if names & set(TEACHER_TERMS) and teacher is None:
        raise ValueError("no teacher")
    if "logit_mse" in names and isinstance(teacher, TopTokens):
        raise ValueError("logit_mse compares all logits")
    if names & set(LABEL_TERMS) and positions.targets is None:
        raise ValueError("no targets")


def fused_vocabulary_loss(
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
    coefficients: Mapping[str, Array],
    *,
    temperature: Value,
    chunk: int = 0,
) -> Result:
    """Weighted total of loss terms over the vocabulary, in memory that grows by O(H) a position.

    Args:
        student: its output layer at T positions; gets the gradient. Matmuls are in the dtype of `hidden`, everything
            else, the sums of the table's gradient too, in float32.
        teacher: at the same positions, of any width; gets no gradient. Its `TopTokens` suffice for "kl". None where no
            term needs it.
        positions: weights of every term, and the targets that the label terms need.
        coefficients: term (of TEACHER_TERMS and LABEL_TERMS) -> float32 scalar that its sum is multiplied by in the
            total: weight / global count. They are constants: their own gradient is zero.
        temperature: of "kl"; a whole number up to 4, given as a float, costs less beside "mlm".
        chunk: positions at a time; 0 chooses by `chunk_size`.

    Returns:
        (total (), differentiable in reverse mode; each term's sum and count, which are measures without gradient).

    Raises:
        ValueError: the terms of `coefficients` and `positions` differ, or one lacks its teacher or targets.
    """
    _check_terms(teacher, positions, coefficients)
    chunk = chunk or chunk_size(student.hidden.shape[0], student.table.shape[0])
    constants: Any = jax.lax.stop_gradient((_aligned(teacher), positions, dict(coefficients)))
    # A Python number is a part of the program; an array is an argument.
    moving = jax.lax.stop_gradient(temperature) if isinstance(temperature, Array) else None
    fixed = temperature if moving is None else None
    result: Any = _loss(fixed, chunk, _aligned(student), *constants, moving)
    total, sums = result
    counts = {name: jnp.sum(weights) for name, weights in positions.weights.items()}
    return total, jax.lax.stop_gradient({name: SumCount(sums[name], counts[name]) for name in sums})


def _aligned(layer: Any) -> Any:
    """An output layer with tokens of no probability added, so that its size suits the matrix units of accelerators.

    Otherwise XLA fills up the gradient by the logits, in memory, for each product that reads it.
    """
    if forms_apply() or not isinstance(layer, OutputLayer):
        return layer
    more = -layer.table.shape[0] % VOCABULARY_MULTIPLE
    bias = jnp.pad(layer.bias, (0, more), constant_values=_NEVER)
    return layer._replace(table=jnp.pad(layer.table, ((0, more), (0, 0))), bias=bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    fixed: float | None,
    chunk: int,
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
    coefficients: dict[str, Array],
    moving: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """(total, sum of each term); the form without gradient. The temperature is `moving` where `fixed` is None."""

    def of_chunk(student: OutputLayer, teacher: Teacher, positions: Positions) -> tuple[Any, None]:
        temperature: Any = moving if fixed is None else fixed
        return loss_sums(student, teacher, positions, temperature), None

    sums, _ = _over_chunks(of_chunk, chunk, student, teacher, positions)
    return _total(sums, coefficients), sums


def _loss_forward(
    fixed: float | None,
    chunk: int,
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
    coefficients: dict[str, Array],
    moving: Array | None,
) -> tuple[tuple[Array, dict[str, Array]], OutputLayer]:
    """The result, and the gradient of the total by the student's output layer."""
    dtype = student.hidden.dtype
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def of_chunk(student: OutputLayer, teacher: Teacher, positions: Positions) -> tuple[Any, Array]:
        temperature: Any = moving if fixed is None else fixed
        sums, dlogits = loss_and_dlogits(student, teacher, positions, coefficients, temperature)
        by_table = product("tv,th->vh", dlogits, student.hidden)
        by_bias = product("t,tv->v", jnp.ones(dlogits.shape[0], dtype), dlogits)
        by_hidden = product("tv,vh->th", dlogits, student.table).astype(dtype)
        return (sums, by_table, by_bias), by_hidden

    (sums, by_table, by_bias), by_hidden = _over_chunks(of_chunk, chunk, student, teacher, positions)
    gradient = OutputLayer(by_hidden, by_table.astype(student.table.dtype), by_bias.astype(student.bias.dtype))
    return (_total(sums, coefficients), sums), gradient


def _loss_backward(fixed: float | None, chunk: int, gradient: OutputLayer, cotangents: Any) -> tuple[Any, ...]:
    del fixed, chunk
    scale = cotangents[0]
    return jax.tree.map(lambda x: (scale * x.astype(jnp.float32)).astype(x.dtype), gradient), None, None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _total(sums: Mapping[str, Array], coefficients: Mapping[str, Array]) -> Array:
    return sum((coefficients[name] * sums[name] for name in coefficients), jnp.zeros(()))


def top_tokens(layer: OutputLayer, count: int, temperature: float, *, chunk: int = 0) -> TopTokens:
    """The `count` most probable tokens of an output layer at T positions, at a temperature, in chunks."""
    vocabulary = layer.table.shape[0]

    def of_chunk(layer: OutputLayer, _: Teacher, __: Positions) -> tuple[tuple[()], TopTokens]:
        logits = logits_of(layer)
        largest, ids = jax.lax.top_k(logits, count)
        exponentials = jnp.exp((logits - largest[:, :1]) / temperature)
        # Not 1 minus the largest: of a small tail nothing would be left.
        others = exponentials.at[jnp.arange(ids.shape[0])[:, None], ids].set(0.0)
        tail = jnp.sum(others, axis=-1) / jnp.sum(exponentials, axis=-1)
        ratios = jnp.exp((largest - largest[:, :1]) / temperature).astype(jnp.float16)
        return (), TopTokens(ids.astype(jnp.uint16 if vocabulary <= 1 << 16 else jnp.uint32), ratios, tail)

    everywhere = Positions({"kl": jnp.ones(layer.hidden.shape[0])}, None)
    return _over_chunks(of_chunk, chunk or chunk_size(layer.hidden.shape[0], vocabulary), layer, None, everywhere)[1]


def vocabulary_measures(
    student: OutputLayer, teacher: OutputLayer | None, targets: Array, weights: Array, *, chunk: int = 0
) -> dict[str, SumCount]:
    """Held-out measures, without gradient, in chunks: "mlm", "accuracy", and against a teacher "kl", "agreement".

    Args:
        student: its output layer at T positions.
        teacher: at the same positions, of any width, or None.
        targets: [T] int32.
        weights: [T] float32.
        chunk: positions at a time; 0 chooses by `chunk_size`.
    """

    def of_chunk(student: OutputLayer, teacher: Teacher, positions: Positions) -> tuple[dict[str, SumCount], None]:
        logits, targets, weights = logits_of(student), positions.targets, positions.weights["mlm"]
        assert targets is not None
        sums = {"mlm": cross_entropy(logits, targets, weights), "accuracy": top1_matches(logits, targets, weights)}
        if isinstance(teacher, OutputLayer):
            teacher_logits = logits_of(teacher)
            sums["kl"] = distillation_kl(logits, teacher_logits, weights, 1.0)
            sums["agreement"] = top1_matches(logits, jnp.argmax(teacher_logits, axis=-1), weights)
        return sums, None

    chunk = chunk or chunk_size(student.hidden.shape[0], student.table.shape[0])
    return _over_chunks(of_chunk, chunk, student, teacher, Positions({"mlm": weights}, targets))[0]


def _over_chunks(
    of_chunk: Callable[[OutputLayer, Teacher, Positions], tuple[Summed, Stacked]],
    chunk: int,
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
) -> tuple[Summed, Stacked]:
    """`of_chunk` on `chunk` positions at a time: its first result added up, its second concatenated, [T, ...].

    The last chunk is filled with positions of weight 0.
    """
    tables = [
        layer._replace(table=layer.table.astype(layer.hidden.dtype)) if isinstance(layer, OutputLayer) else None
        for layer in (student, teacher)
    ]
    tokens = student.hidden.shape[0]
    chunks = max(1, -(-tokens // chunk))

    def cut(x: Array) -> Array:
        rest = [(0, chunks * chunk - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, rest).reshape(chunks, chunk, *x.shape[1:])

    def of_piece(piece: Any) -> tuple[Summed, Stacked]:
        *rows, piece_positions = piece
        counted = jnp.any(jnp.stack([*piece_positions.weights.values()]) > 0, axis=0)[:, None]
        # What does not count may hold NaN, which times 0 would still be NaN in the gradient.
        layers = [
            found if table is None else table._replace(hidden=jnp.where(counted, found, 0))
            for table, found in zip(tables, rows, strict=True)
        ]
        return of_chunk(layers[0], layers[1], piece_positions)  # type: ignore[arg-type]

    by_position = teacher.hidden if isinstance(teacher, OutputLayer) else teacher
    pieces = jax.tree.map(cut, (student.hidden, by_position, positions))
    first = jax.tree.map(lambda x: x[0], pieces)
    if chunks == 1:
        summed, stacked = of_piece(first)
        return summed, jax.tree.map(lambda x: x[:tokens], stacked)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_piece, first)[0])

    def step(total: Summed, piece: Any) -> tuple[Summed, Stacked]:
        summed, stacked = of_piece(piece)
        return jax.tree.map(jnp.add, total, summed), stacked

    summed, stacked = jax.lax.scan(step, zeros, pieces)
    return summed, jax.tree.map(lambda x: x.reshape(chunks * chunk, *x.shape[2:])[:tokens], stacked)

"""The losses over the vocabulary, without holding logits of all positions at once.

`fused_vocabulary_loss` goes over the positions in chunks and computes the gradient of a chunk while its logits are
there, so that the backward pass only scales it: of [T, V] arrays it holds [chunk, V] ones (the idea of Cut Cross
Entropy, Wijmans et al. 2024, and of Liger Kernel, Hsu et al. 2024). `plain_vocabulary_loss` is the same function
written down plainly: its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.objectives.losses import SumCount, cross_entropy, distillation_kl, logit_mse, top1_matches
from distil_jax.objectives.vocabulary_terms import (
    LABEL_TERMS,
    TEACHER_TERMS,
    OutputLayer,
    Positions,
    logits_of,
    loss_and_dlogits,
    sums_alone,
)

# Bytes of one float32 [chunk, V] array; on CPU three are there at once, five with "logit_mse", and two of the table's
# size.
# Larger chunks add up the table's gradient less often, and on CPU products of 1,024 rows run 5 to 9 % faster than of
# 512. For accelerators the size is reckoned from their memory's speed, so that the adding up stays below a tenth of the
# chunk's other work, and not measured.
CPU_CHUNK_BYTES = 128 << 20
ACCELERATOR_CHUNK_BYTES = 256 << 20
LEAST_CHUNK = 256  # positions, where the vocabulary is so large that the table outweighs them anyway

Summed = TypeVar("Summed")
Stacked = TypeVar("Stacked")


# `loss_and_dlogits`, or the same from other code.
Differentiate = Callable[
    [OutputLayer, OutputLayer | None, Positions, Mapping[str, Array], float], tuple[dict[str, Array], Array]
]
Result = tuple[Array, dict[str, SumCount]]


def chunk_size(tokens: int, vocabulary: int, *, max_bytes: int = 0) -> int:
    """Positions a chunk: as few equal chunks as keep a float32 [chunk, vocabulary] within `max_bytes`.

    A multiple of 8, and not below `LEAST_CHUNK` for the sake of `max_bytes`, of which 0 stands for the module's
    constant for the platform.
    """
    if not max_bytes:
        max_bytes = CPU_CHUNK_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK_BYTES
    most = max(LEAST_CHUNK, max_bytes // (4 * vocabulary) // 8 * 8)
    chunks = max(1, -(-tokens // most))
    return max(8, -(-tokens // (8 * chunks)) * 8)


def plain_vocabulary_loss(
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: Mapping[str, Array],
    *,
    temperature: float,
) -> Result:
    """As `fused_vocabulary_loss`, from whole [T, V] logits and by automatic differentiation: its reference."""
    _check_terms(teacher, positions, coefficients)
    teacher = jax.lax.stop_gradient(teacher)
    sums = _plain_terms(logits_of(student), None if teacher is None else logits_of(teacher), positions, temperature)
    total = sum((coefficients[name] * term.sum for name, term in sums.items()), jnp.zeros(()))
    return total, jax.lax.stop_gradient(sums)


def _check_terms(teacher: OutputLayer | None, positions: Positions, coefficients: Mapping[str, Array]) -> None:
    names = coefficients.keys()
    if names != positions.weights.keys() or not names or not names <= {*TEACHER_TERMS, *LABEL_TERMS}:
        raise ValueError(f"coefficients of {sorted(names)}, weights of {sorted(positions.weights)}")
    if names & set(TEACHER_TERMS) and teacher is None:
        raise ValueError("no teacher")
    if names & set(LABEL_TERMS) and positions.targets is None:
        raise ValueError("no targets")


def _plain_terms(student: Array, teacher: Array | None, positions: Positions, temperature: float) -> dict[str, Any]:
    terms = {}
    for name, weights in positions.weights.items():
        if name in LABEL_TERMS and positions.targets is not None:
            terms[name] = cross_entropy(student, positions.targets, weights)
        elif name == "kl" and teacher is not None:
            terms[name] = distillation_kl(student, teacher, weights, temperature)
        elif name == "logit_mse" and teacher is not None:
            terms[name] = logit_mse(student, teacher, weights)
    return terms


def fused_vocabulary_loss(
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: Mapping[str, Array],
    *,
    temperature: float,
    chunk: int = 0,
    differentiate: Differentiate = loss_and_dlogits,
) -> Result:
    """Weighted total of losses over the vocabulary, in memory that grows by O(H) a position.

    Args:
        student: its output layer at T positions; gets the gradient. Matmuls are in the dtype of `hidden`, everything
            else, the sums of the table's gradient too, in float32.
        teacher: at the same positions, of any width; gets no gradient. None where no term needs it.
        positions: weights of every term, and the targets that the label terms need.
        coefficients: term (of TEACHER_TERMS and LABEL_TERMS) -> float32 scalar that its sum is multiplied by in the
            total: alpha / global count. They are constants: their own gradient is zero.
        temperature: of "kl".
        chunk: positions at a time; 0 chooses by `chunk_size`.
        differentiate: what computes losses and slopes of a chunk; where no gradient is asked for, XLA does.

    Returns:
        (total (), differentiable in reverse mode; each term's sum and count, which are measures without gradient).

    Raises:
        ValueError: the terms of `coefficients` and `positions` differ, or one lacks its teacher or targets.
    """
    _check_terms(teacher, positions, coefficients)
    chunk = chunk or chunk_size(student.hidden.shape[0], student.table.shape[0])
    constants: Any = jax.lax.stop_gradient((teacher, positions, dict(coefficients)))
    result: Any = _loss(temperature, chunk, differentiate, student, *constants)
    total, sums = result
    counts = {name: jnp.sum(weights) for name, weights in positions.weights.items()}
    return total, jax.lax.stop_gradient({name: SumCount(sums[name], counts[name]) for name in sums})


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

    def work(
        student: OutputLayer, teacher: OutputLayer | None, positions: Positions
    ) -> tuple[dict[str, SumCount], None]:
        logits, targets, weights = logits_of(student), positions.targets, positions.weights["mlm"]
        assert targets is not None
        sums = {"mlm": cross_entropy(logits, targets, weights), "accuracy": top1_matches(logits, targets, weights)}
        if teacher is not None:
            wanted = logits_of(teacher)
            sums["kl"] = distillation_kl(logits, wanted, weights, 1.0)
            sums["agreement"] = top1_matches(logits, jnp.argmax(wanted, axis=-1), weights)
        return sums, None

    chunk = chunk or chunk_size(student.hidden.shape[0], student.table.shape[0])
    return _over_chunks(work, chunk, student, teacher, Positions({"mlm": weights}, targets))[0]


def _over_chunks(
    work: Callable[[OutputLayer, OutputLayer | None, Positions], tuple[Summed, Stacked]],
    chunk: int,
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
) -> tuple[Summed, Stacked]:
    """`work` on `chunk` positions at a time: its first result added up, its second put together again, [T, ...].

    What is left over of the last chunk is filled with positions of weight 0.
    """
    tables = [layer and layer._replace(table=layer.table.astype(layer.hidden.dtype)) for layer in (student, teacher)]
    tokens = student.hidden.shape[0]
    chunks = max(1, -(-tokens // chunk))

    def cut(x: Array) -> Array:
        rest = [(0, chunks * chunk - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, rest).reshape(chunks, chunk, *x.shape[1:])

    def of_piece(piece: Any) -> tuple[Summed, Stacked]:
        *hidden, piece_positions = piece
        counted = jnp.any(jnp.stack([*piece_positions.weights.values()]) > 0, axis=0)[:, None]
        # What does not count may hold NaN, which times 0 would still be NaN in the gradient.
        layers = [
            layer and layer._replace(hidden=jnp.where(counted, rows, 0))
            for layer, rows in zip(tables, hidden, strict=True)
        ]
        return work(layers[0], layers[1], piece_positions)  # type: ignore[arg-type]

    pieces = jax.tree.map(cut, (student.hidden, teacher and teacher.hidden, positions))
    if chunks == 1:
        summed, stacked = of_piece(jax.tree.map(lambda x: x[0], pieces))
        return summed, jax.tree.map(lambda x: x[:tokens], stacked)
    shapes, _ = jax.eval_shape(of_piece, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def step(total: Summed, piece: Any) -> tuple[Summed, Stacked]:
        summed, stacked = of_piece(piece)
        return jax.tree.map(jnp.add, total, summed), stacked

    summed, stacked = jax.lax.scan(step, zeros, pieces)
    return summed, jax.tree.map(lambda x: x.reshape(chunks * chunk, *x.shape[2:])[:tokens], stacked)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(
    temperature: float,
    chunk: int,
    differentiate: Differentiate,
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: dict[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """(total, sum of each term); the form without gradient."""
    del differentiate

    def work(student: OutputLayer, teacher: OutputLayer | None, positions: Positions) -> tuple[dict[str, Array], None]:
        return sums_alone(student, teacher, positions, temperature), None

    sums, _ = _over_chunks(work, chunk, student, teacher, positions)
    return _total(sums, coefficients), sums


def _loss_forward(
    temperature: float,
    chunk: int,
    differentiate: Differentiate,
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: dict[str, Array],
) -> tuple[tuple[Array, dict[str, Array]], OutputLayer]:
    """The result, and the gradient of the total by the student's output layer."""
    dtype = student.hidden.dtype
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def work(student: OutputLayer, teacher: OutputLayer | None, positions: Positions) -> tuple[Any, Array]:
        sums, slopes = differentiate(student, teacher, positions, coefficients, temperature)
        by_table = product("tv,th->vh", slopes, student.hidden)
        by_bias = product("t,tv->v", jnp.ones(slopes.shape[0], dtype), slopes)
        by_hidden = product("tv,vh->th", slopes, student.table).astype(dtype)
        return (sums, by_table, by_bias), by_hidden

    (sums, by_table, by_bias), by_hidden = _over_chunks(work, chunk, student, teacher, positions)
    gradient = OutputLayer(by_hidden, by_table.astype(student.table.dtype), by_bias.astype(student.bias.dtype))
    return (_total(sums, coefficients), sums), gradient


def _loss_backward(
    temperature: float, chunk: int, differentiate: Differentiate, gradient: OutputLayer, cotangents: Any
) -> tuple[Any, ...]:
    del temperature, chunk, differentiate
    scale = cotangents[0]
    return jax.tree.map(lambda x: (scale * x.astype(jnp.float32)).astype(x.dtype), gradient), None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _total(sums: Mapping[str, Array], coefficients: Mapping[str, Array]) -> Array:
    return sum((coefficients[name] * sums[name] for name in coefficients), jnp.zeros(()))

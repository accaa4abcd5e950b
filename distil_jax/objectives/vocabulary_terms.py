"""The losses over the vocabulary at some positions, from their logits: sums, and slopes by the student's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.models.fences import after, unfused
from distil_jax.objectives.losses import weighted


class OutputLayer(NamedTuple):
    """What the logits of some positions are made of: hidden @ table.T + bias.

    `hidden` [T, H] in the compute dtype, after the head's transformation; `table` [V, H], the word embeddings, and
    `bias` [V], both in the dtype the parameters are held in. Logits are float32.
    """

    hidden: Array
    table: Array
    bias: Array


class Positions(NamedTuple):
    """What counts at T positions: term -> `weights` [T] float32, and `targets` [T] int32 (None: no term with labels).

    A position of weight 0 counts nowhere, whatever its hidden states hold.
    """

    weights: dict[str, Array]
    targets: Array | None


LABEL_TERMS = ("mlm", "clm")  # cross entropy with the targets at temperature 1
TEACHER_TERMS = ("ce", "mse")  # temperature^2 * KL(teacher || student); squared difference of the logits over V


def products_of(layer: OutputLayer) -> Array:
    """Logits without the bias, [T, V] float32."""
    hidden, table = layer.hidden, layer.table.astype(layer.hidden.dtype)
    return jnp.einsum("th,vh->tv", hidden, table, preferred_element_type=jnp.float32)


def logits_of(layer: OutputLayer) -> Array:
    """[T, V] float32."""
    return products_of(layer) + layer.bias[None]


def sums_and_slopes(
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: Mapping[str, Array],
    temperature: float,
) -> tuple[dict[str, Array], Array]:
    """The sum of each term over the positions, and the gradient of their weighted total by the logits.

    Args:
        student: its output layer at C positions.
        teacher: at the same positions; None where no term needs it.
        positions: weights of every term, and targets.
        coefficients: term -> float32 scalar that its sum is multiplied by in the total.
        temperature: of "ce".

    Returns:
        (term -> () float32, [C, V] in the dtype of the student's hidden states).
    """
    found = _terms(student, teacher, positions, temperature)
    # Slopes after values: otherwise the arrays that only values need are held beside them.
    values = reduce(jnp.add, [term.values for term in found.values()])
    scales = {name: after(coefficients[name] * positions.weights[name], values)[:, None] for name in found}
    slopes = reduce(jnp.add, [term.slopes(scales[name]) for name, term in found.items()])
    return _sums(found, positions), slopes.astype(student.hidden.dtype)


def sums_alone(
    student: OutputLayer, teacher: OutputLayer | None, positions: Positions, temperature: float
) -> dict[str, Array]:
    """The first result of `sums_and_slopes`."""
    return _sums(_terms(student, teacher, positions, temperature), positions)


class _Term(NamedTuple):
    """A term at C positions: its `values` [C], and `slopes`: scale [C, 1] -> scale * d value / d logits [C, V]."""

    values: Array
    slopes: Callable[[Array], Array]


class _Softmax(NamedTuple):
    """Of logits [C, V]: what they are `below` their maxima `peak` [C, 1], exp(below / temperature), sums [C, 1]."""

    below: Array
    peak: Array
    temperature: float
    exponentials: Array
    norm: Array


def _terms(
    student: OutputLayer, teacher: OutputLayer | None, positions: Positions, temperature: float
) -> dict[str, _Term]:
    softmax = _softmax(logits_of(student), temperature if "ce" in positions.weights else 1.0)
    wanted = _softmax(logits_of(teacher), temperature) if teacher is not None else None
    terms = {}
    for name in positions.weights:
        if name in LABEL_TERMS and positions.targets is not None:
            terms[name] = _label(softmax, positions.targets)
        elif name == "ce" and wanted is not None:
            terms[name] = _kl(softmax, wanted)
        elif name == "mse" and wanted is not None:
            terms[name] = _squares(softmax, wanted)
    return terms


def _sums(terms: Mapping[str, _Term], positions: Positions) -> dict[str, Array]:
    return {name: weighted(term.values, positions.weights[name]).sum for name, term in terms.items()}


def _softmax(logits: Array, temperature: float) -> _Softmax:
    logits = unfused(logits)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    # All later readers take this and none the logits, so that XLA on CPU holds one array of the two.
    below = logits - peak
    # The barrier keeps XLA from computing powers of these as exponentials of their own.
    exponentials = jax.lax.optimization_barrier(jnp.exp(below / temperature))
    return _Softmax(below, peak, temperature, exponentials, jnp.sum(exponentials, axis=-1, keepdims=True))


def _kl(student: _Softmax, teacher: _Softmax) -> _Term:
    """temperature^2 * KL(teacher || student), from differences only: nothing cancels where the two are near.

    Nor where all logits of one are higher by a constant, as each is taken from its own peak before they are compared.
    """
    temperature = student.temperature
    apart = teacher.below - student.below
    shift = jnp.sum(teacher.exponentials * apart, axis=-1, keepdims=True) / (temperature * teacher.norm)
    values = temperature**2 * (shift + jnp.log(student.norm / teacher.norm))

    def slopes(scale: Array) -> Array:
        ours, theirs = (temperature * scale / softmax.norm for softmax in (student, teacher))
        return ours * student.exponentials - theirs * teacher.exponentials

    return _Term(values[:, 0], slopes)


def _label(softmax: _Softmax, targets: Array) -> _Term:
    """Cross entropy at temperature 1, whatever the temperature of the exponentials at hand."""
    if softmax.temperature in (1, 2, 3, 4):  # a power costs less than exponentials anew
        factors = [softmax.exponentials] * int(softmax.temperature)
    else:
        factors = [jnp.exp(softmax.below)]
    norm = jnp.sum(reduce(jnp.multiply, factors), axis=-1, keepdims=True)
    values = jnp.log(norm) - jnp.take_along_axis(softmax.below, targets[:, None], axis=-1)

    def slopes(scale: Array) -> Array:
        hot = jnp.arange(softmax.below.shape[-1], dtype=jnp.int32)[None] == targets[:, None]
        # Not scale / norm * power: XLA would make the power once, for this and the norm, and hold it as an array.
        return reduce(jnp.multiply, factors, scale / norm) - jnp.where(hot, scale, 0.0)

    return _Term(values[:, 0], slopes)


def _squares(student: _Softmax, teacher: _Softmax) -> _Term:
    difference = (student.below - teacher.below) + (student.peak - teacher.peak)
    return _Term(jnp.sum(difference**2, axis=-1), lambda scale: 2.0 * scale * difference)

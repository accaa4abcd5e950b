"""The losses over the vocabulary at some positions, from their logits: sums, and slopes by the student's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu import no_fuse, order_after
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


LABEL_TERMS = ("mlm",)  # cross entropy with the targets at temperature 1
TEACHER_TERMS = ("kl", "logit_mse")  # temperature^2 * KL(teacher || student); squared difference of the logits over V


def products_of(layer: OutputLayer) -> Array:
    """Logits without the bias, [T, V] float32."""
    hidden, table = layer.hidden, layer.table.astype(layer.hidden.dtype)
    return jnp.einsum("th,vh->tv", hidden, table, preferred_element_type=jnp.float32)


def logits_of(layer: OutputLayer) -> Array:
    """[T, V] float32."""
    return products_of(layer) + layer.bias[None]


def loss_and_dlogits(
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
        temperature: of "kl".

    Returns:
        (term -> () float32, [C, V] in the dtype of the student's hidden states).
    """
    found = _terms(student, teacher, positions, temperature)
    # Slopes after values: otherwise the arrays that only values need are held beside them.
    values = reduce(jnp.add, [term.values for term in found.values()])
    scales = {name: order_after(coefficients[name] * positions.weights[name], values)[:, None] for name in found}
    slopes = reduce(jnp.add, [term.slopes(scales[name]) for name, term in found.items()])
    return _sums(found, positions), slopes.astype(student.hidden.dtype)


def sums_alone(
    student: OutputLayer, teacher: OutputLayer | None, positions: Positions, temperature: float
) -> dict[str, Array]:
    """The first result of `loss_and_dlogits`."""
    return _sums(_terms(student, teacher, positions, temperature), positions)


class _Term(NamedTuple):
    """A term at C positions: its `values` [C], and `slopes`: scale [C, 1] -> scale * d value / d logits [C, V]."""

    values: Array
    slopes: Callable[[Array], Array]


class _Below(NamedTuple):
    """Logits [C, V] as what they are `below` their maxima `peak` [C, 1]."""

    below: Array
    peak: Array


class _Softmax(NamedTuple):
    """exp(below / temperature) of logits [C, V], and its sums [C, 1]."""

    exponentials: Array
    norm: Array


def _terms(
    student: OutputLayer, teacher: OutputLayer | None, positions: Positions, temperature: float
) -> dict[str, _Term]:
    """In an order that has XLA on CPU hold three [C, V] arrays and not four, five with "logit_mse" beside other terms.

    The teacher's logits come after the student's, and the student's exponentials when what reads its logits beside the
    teacher's is done, in the place that the teacher's had.
    """
    names, targets = positions.weights, positions.targets
    temperature = temperature if "kl" in names else 1.0
    ours = _below(logits_of(student))
    theirs = wanted = of_target = apart = None
    if targets is not None and any(name in LABEL_TERMS for name in names):
        of_target = jnp.take_along_axis(ours.below, targets[:, None], axis=-1)
    if teacher is not None:
        theirs = _below(logits_of(teacher._replace(hidden=order_after(teacher.hidden, ours.below[:, :1]))))
    if theirs is not None and "kl" in names:
        wanted = _softmax(theirs.below, temperature)
        apart = jnp.sum(wanted.exponentials * (theirs.below - ours.below), axis=-1, keepdims=True)
        apart = apart / (temperature * wanted.norm)
    early = [x for x in (of_target, apart) if x is not None]
    softmax = _softmax(reduce(order_after, early, ours.below), temperature)
    terms = {}
    for name in names:
        if name in LABEL_TERMS and targets is not None and of_target is not None:
            terms[name] = _label(softmax, ours, targets, of_target, temperature)
        elif name == "kl" and wanted is not None and apart is not None:
            terms[name] = _kl(softmax, wanted, apart, temperature)
        elif name == "logit_mse" and theirs is not None:
            terms[name] = _squares(ours, theirs)
    return terms


def _sums(terms: Mapping[str, _Term], positions: Positions) -> dict[str, Array]:
    return {name: weighted(term.values, positions.weights[name]).sum for name, term in terms.items()}


def _below(logits: Array) -> _Below:
    logits = no_fuse(logits)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    # All later readers take this and none the logits, so that XLA on CPU holds one array of the two.
    return _Below(logits - peak, peak)


def _softmax(below: Array, temperature: float) -> _Softmax:
    # The barrier keeps XLA from computing powers of these as exponentials of their own.
    exponentials = jax.lax.optimization_barrier(jnp.exp(below / temperature))
    return _Softmax(exponentials, jnp.sum(exponentials, axis=-1, keepdims=True))


def _kl(student: _Softmax, teacher: _Softmax, apart: Array, temperature: float) -> _Term:
    """temperature^2 * KL(teacher || student), from differences only: nothing cancels where the two are near.

    Nor where all logits of one are higher by a constant, as each is taken from its own peak before they are compared:
    `apart` [C, 1] is the teacher's mean of its logits minus the student's, so taken, over the temperature.
    """
    values = temperature**2 * (apart + jnp.log(student.norm / teacher.norm))

    def slopes(scale: Array) -> Array:
        ours, theirs = (temperature * scale / softmax.norm for softmax in (student, teacher))
        return ours * student.exponentials - theirs * teacher.exponentials

    return _Term(values[:, 0], slopes)


def _label(softmax: _Softmax, logits: _Below, targets: Array, of_target: Array, temperature: float) -> _Term:
    """Cross entropy at temperature 1, whatever that of the exponentials at hand; `of_target` [C, 1] from `below`."""
    power = int(temperature) if temperature in (1, 2, 3, 4) else 0  # which costs less than exponentials anew
    factors = [softmax.exponentials] * power or [jnp.exp(logits.below)]
    norm = jnp.sum(reduce(jnp.multiply, factors), axis=-1, keepdims=True)
    values = jnp.log(norm) - of_target

    def slopes(scale: Array) -> Array:
        hot = jnp.arange(logits.below.shape[-1], dtype=jnp.int32)[None] == targets[:, None]
        # Not scale / norm * power: XLA would make the power once, for this and the norm, and hold it as an array.
        return reduce(jnp.multiply, factors, scale / norm) - jnp.where(hot, scale, 0.0)

    return _Term(values[:, 0], slopes)


def _squares(student: _Below, teacher: _Below) -> _Term:
    difference = (student.below - teacher.below) + (student.peak - teacher.peak)
    return _Term(jnp.sum(difference**2, axis=-1), lambda scale: 2.0 * scale * difference)

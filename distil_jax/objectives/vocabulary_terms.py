"""The loss terms over the vocabulary at some positions, from their logits: sums, and the gradient by the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.cpu import forms_apply, no_fuse, order_after
from distil_jax.objectives.losses import weighted
from distil_jax.objectives.schedules import Value


class OutputLayer(NamedTuple):
    """What the logits of T positions are made of: hidden @ table.T + bias, float32.

    Attributes:
        hidden: [T, H] in the compute dtype, after the head's transformation.
        table: [V, H], the word embeddings, in the dtype the parameters are held in.
        bias: [V], in that dtype.
    """

    hidden: Array
    table: Array
    bias: Array


class TopTokens(NamedTuple):
    """The most probable tokens of a teacher at T positions, as its cache holds them, at the temperature of "kl".

    Attributes:
        ids: [T, k] unsigned integers, all different.
        ratios: [T, k] float16, probabilities over the largest one.
        tail: [T] float32, the sum of the probabilities of all other tokens.
    """

    ids: Array
    ratios: Array
    tail: Array

    @property
    def probabilities(self) -> Array:
        """[T, k] float32; with the tail they add up to 1."""
        ratios = self.ratios.astype(jnp.float32)
        whole = jnp.sum(ratios, axis=-1, keepdims=True)
        return ratios * (1.0 - self.tail[:, None]) / jnp.maximum(whole, 1e-30)


class Positions(NamedTuple):
    """What counts at T positions. A position of weight 0 counts nowhere, whatever its hidden states hold.

    Attributes:
        weights: term -> [T] float32.
        targets: [T] int32; None: no term with labels.
    """

    weights: dict[str, Array]
    targets: Array | None


Teacher = OutputLayer | TopTokens | None
LABEL_TERMS = ("mlm",)  # cross entropy with the targets at temperature 1
TEACHER_TERMS = ("kl", "logit_mse")  # temperature^2 * KL(teacher || student); squared difference of the logits over V


def logits_of(layer: OutputLayer) -> Array:
    """[T, V] float32."""
    return _product(layer).astype(jnp.float32) + layer.bias[None]


def _product(layer: OutputLayer) -> Array:
    """hidden @ table.T [T, V], summed in float32: on CPU as that, elsewhere rounded to the compute dtype.

    Accelerators wait for memory and not for arithmetic here. Each reader makes float32 logits of the product again.
    """
    hidden, table = layer.hidden, layer.table.astype(layer.hidden.dtype)
    dtype = jnp.float32 if forms_apply() else hidden.dtype
    product = jnp.einsum("th,vh->tv", hidden, table, preferred_element_type=dtype)
    # Without the barrier XLA would write what readers make of it.
    return product if forms_apply() else jax.lax.optimization_barrier(product)


def loss_and_dlogits(
    student: OutputLayer,
    teacher: Teacher,
    positions: Positions,
    coefficients: Mapping[str, Array],
    temperature: Value,
) -> tuple[dict[str, Array], Array]:
    """The sum of each term over the positions, and the gradient of their weighted total by the student's logits.

    Args:
        student: its output layer at C positions.
        teacher: at the same positions, or what is known of it; None where no term needs it.
        positions: weights of every term, and targets.
        coefficients: term -> float32 scalar that its sum is multiplied by in the total.
        temperature: of "kl".

    Returns:
        (term -> () float32, [C, V] in the dtype of the student's hidden states).
    """
    terms = _terms(student, teacher, positions, temperature)
    # The gradient after the values: otherwise the arrays that only values need are held beside it.
    values = reduce(jnp.add, [term.values for term in terms.values()])
    scales = {name: order_after(coefficients[name] * positions.weights[name], values)[:, None] for name in terms}
    dlogits = reduce(jnp.add, [term.dlogits(scales[name]) for name, term in terms.items()])
    return _sums(terms, positions), dlogits.astype(student.hidden.dtype)


def loss_sums(student: OutputLayer, teacher: Teacher, positions: Positions, temperature: Value) -> dict[str, Array]:
    """The first result of `loss_and_dlogits`."""
    return _sums(_terms(student, teacher, positions, temperature), positions)


class _Term(NamedTuple):
    """A term at C positions: its `values` [C], and `dlogits`: scale [C, 1] -> scale * d value / d logits [C, V]."""

    values: Array
    dlogits: Callable[[Array], Array]


class _Logits(NamedTuple):
    """Logits [C, V] as `max` [C, 1] and `shifted` = logits - max.

    `again` gives `shifted` for the gradient, which comes after the values: on CPU the same array, elsewhere computed
    once more, so that no float32 array waits in memory.
    """

    shifted: Array
    max: Array
    again: Callable[[], Array]


class _Softmax(NamedTuple):
    """exp(shifted logits / temperature) [C, V], its sums [C, 1], and the exponentials for the gradient."""

    exponentials: Array
    norm: Array
    again: Callable[[], Array]


def _terms(student: OutputLayer, teacher: Teacher, positions: Positions, temperature: Value) -> dict[str, _Term]:
    """Every term of `positions`.

    In an order in which XLA on CPU holds three [C, V] arrays and not four (five with "logit_mse"): the teacher's logits
    come after the student's; the student's exponentials come when what reads its logits beside the teacher's is done,
    and take the place of the teacher's logits.
    """
    names, targets = positions.weights.keys(), positions.targets
    temperature = temperature if "kl" in names else 1.0
    logits = _shifted(student)
    target_logits = teacher_logits = teacher_softmax = mean_difference = chosen = None
    if "mlm" in names and targets is not None:
        target_logits = jnp.take_along_axis(logits.shifted, targets[:, None], axis=-1)
    if isinstance(teacher, TopTokens):
        chosen = jnp.take_along_axis(logits.shifted, teacher.ids.astype(jnp.int32), axis=-1)
    elif teacher is not None:
        teacher_hidden = order_after(teacher.hidden, logits.shifted[:, :1])
        teacher_logits = _shifted(teacher._replace(hidden=teacher_hidden))
    if "kl" in names and teacher_logits is not None:
        teacher_softmax = _softmax(teacher_logits, temperature)
        difference = teacher_softmax.exponentials * (teacher_logits.shifted - logits.shifted)
        mean_difference = jnp.sum(difference, axis=-1, keepdims=True) / (temperature * teacher_softmax.norm)
    before = [x[:, :1] for x in (target_logits, mean_difference, chosen) if x is not None]
    softmax = _softmax(logits._replace(shifted=reduce(order_after, before, logits.shifted)), temperature)
    terms = {}
    if teacher_softmax is not None and mean_difference is not None:
        terms["kl"] = _kl(softmax, teacher_softmax, mean_difference, temperature)
    if isinstance(teacher, TopTokens) and chosen is not None:
        terms["kl"] = _top_tokens_kl(softmax, teacher, chosen, temperature)
    if target_logits is not None and targets is not None:
        terms["mlm"] = _cross_entropy(softmax, logits, targets, target_logits, temperature)
    if "logit_mse" in names and teacher_logits is not None:
        terms["logit_mse"] = _logit_mse(logits, teacher_logits)
    return terms


def _sums(terms: Mapping[str, _Term], positions: Positions) -> dict[str, Array]:
    return {name: weighted(term.values, positions.weights[name]).sum for name, term in terms.items()}


def _shifted(layer: OutputLayer) -> _Logits:
    product = _product(layer)
    logits = no_fuse(product.astype(jnp.float32) + layer.bias[None])
    highest = jnp.max(logits, axis=-1, keepdims=True)
    # All later readers take the difference and none the logits, so that XLA on CPU holds one array of the two.
    shifted = logits - highest

    def again() -> Array:
        # The barrier keeps XLA from taking this for `shifted`.
        return jax.lax.optimization_barrier(product).astype(jnp.float32) + (layer.bias[None] - highest)

    return _Logits(shifted, highest, (lambda: shifted) if forms_apply() else again)


def _softmax(logits: _Logits, temperature: Value) -> _Softmax:
    exponentials = jnp.exp(logits.shifted / temperature)
    if forms_apply():
        # Keeps XLA from computing powers of these as exponentials of their own.
        exponentials = jax.lax.optimization_barrier(exponentials)
    norm = jnp.sum(exponentials, axis=-1, keepdims=True)
    return _Softmax(
        exponentials, norm, lambda: exponentials if forms_apply() else jnp.exp(logits.again() / temperature)
    )


def _kl(student: _Softmax, teacher: _Softmax, mean_difference: Array, temperature: Value) -> _Term:
    """temperature^2 * KL(teacher || student), from differences only: nothing cancels where the two are near.

    `mean_difference` [C, 1] is the teacher's expectation of its shifted logits minus the student's, over the
    temperature; shifted, so that a constant that all logits of one model share does not count.
    """
    values = temperature**2 * (mean_difference + jnp.log(student.norm / teacher.norm))

    def dlogits(scale: Array) -> Array:
        of_student, of_teacher = (temperature * scale / softmax.norm for softmax in (student, teacher))
        return of_student * student.again() - of_teacher * teacher.again()

    return _Term(values[:, 0], dlogits)


def _top_tokens_kl(student: _Softmax, teacher: TopTokens, chosen: Array, temperature: Value) -> _Term:
    """`losses.top_tokens_kl`; `chosen` [C, k] are the student's shifted logits of the teacher's tokens."""
    xlogy, rows, tail = jax.scipy.special.xlogy, jnp.arange(chosen.shape[0])[:, None], teacher.tail[:, None]
    probabilities, ids = teacher.probabilities, teacher.ids.astype(jnp.int32)
    # Not the norm minus the chosen: where the student leaves little to the others, nothing would be left of it.
    others = student.exponentials.at[rows, ids].set(0.0)
    others_norm = jnp.maximum(jnp.sum(others, axis=-1, keepdims=True), 1e-37)
    log_norm = jnp.log(student.norm)
    known = xlogy(probabilities, probabilities) - probabilities * (chosen / temperature - log_norm)
    values = jnp.sum(known, axis=-1, keepdims=True) + xlogy(tail, tail) - tail * (jnp.log(others_norm) - log_norm)

    def dlogits(scale: Array) -> Array:
        at_chosen = jnp.exp(chosen / temperature) / student.norm - probabilities
        of_others = student.again() * (1.0 / student.norm - tail / others_norm)
        return (temperature * scale) * of_others.at[rows, ids].set(at_chosen)

    return _Term(temperature**2 * values[:, 0], dlogits)


def _cross_entropy(
    softmax: _Softmax, logits: _Logits, targets: Array, target_logits: Array, temperature: Value
) -> _Term:
    """Cross entropy at temperature 1 from exponentials at another; `target_logits` [C, 1] are shifted."""
    # Which costs less than other exponentials.
    power = int(temperature) if not isinstance(temperature, Array) and temperature in (1, 2, 3, 4) else 0

    def factors(*, again: bool = False) -> list[Array]:
        if power:
            return [softmax.again() if again else softmax.exponentials] * power
        return [jnp.exp(logits.again() if again else logits.shifted)]

    norm = jnp.sum(reduce(jnp.multiply, factors()), axis=-1, keepdims=True)
    values = jnp.log(norm) - target_logits

    def dlogits(scale: Array) -> Array:
        hot = jnp.arange(logits.shifted.shape[-1], dtype=jnp.int32)[None] == targets[:, None]
        # Not scale / norm * power: XLA would compute the power once, for this and the norm, and hold it as an array.
        return reduce(jnp.multiply, factors(again=True), scale / norm) - jnp.where(hot, scale, 0.0)

    return _Term(values[:, 0], dlogits)


def _logit_mse(student: _Logits, teacher: _Logits) -> _Term:
    between_max = student.max - teacher.max
    difference = (student.shifted - teacher.shifted) + between_max

    def dlogits(scale: Array) -> Array:
        return 2.0 * scale * ((student.again() - teacher.again()) + between_max)

    return _Term(jnp.sum(difference**2, axis=-1), dlogits)

"""The loss terms of pre-training and distillation, one value a term, registered by its name in the configuration.

To add a term: write its function, add it to `TERMS`, and add its weight to `config.Objective`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from distil_jax.config import Objective
from distil_jax.errors import UserError
from distil_jax.models import Activations
from distil_jax.objectives.losses import SumCount, cosine_distance, relative_squared_error


class Compared(NamedTuple):
    """What a term on activations compares, of M rows of L tokens.

    `weights` [M, L] float32 says how much each position counts: 0 at padding.
    """

    student: Activations
    teacher: Activations
    weights: Array


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One term of the objective.

    Attributes:
        name: of its weight in [objective] and, after `loss_`, of its metric.
        compute: of a term on activations, (what is compared, settings with the term's options) -> sum and count; None:
            the term is one over the vocabulary (`objectives.vocabulary`).
        capture: the activations beside the last hidden states that it reads, as `Encoder.activations` names them.
        reads_teacher: whether it compares with a teacher.
        at_predictions: whether it counts at the predicted positions alone.
    """

    name: str
    compute: Callable[[Compared, Any], SumCount] | None = None
    _: dataclasses.KW_ONLY
    capture: frozenset[str] = frozenset()
    reads_teacher: bool = True
    at_predictions: bool = False

    @property
    def over_vocabulary(self) -> bool:
        """Whether it reads logits."""
        return self.compute is None


def cosine(compared: Compared, settings: Any) -> SumCount:
    """L_cos (Sanh et al. 2019, section 2): 1 - cos of the last hidden states."""
    del settings
    return cosine_distance(*_positions(compared, compared.student.hidden, compared.teacher.hidden))


def hidden(compared: Compared, settings: Any) -> SumCount:
    """Squared error of hidden states relative to the teacher's (Jiao et al. 2020, equation 8), mean over layer pairs.

    A position's error is the sum over the width of (student - teacher)^2 over that of teacher^2.
    """
    student, teacher = compared.student.hidden_states, compared.teacher.hidden_states
    pairs = layer_pairs(settings.hidden_layers, len(student) - 1, len(teacher) - 1)
    terms = [relative_squared_error(*_positions(compared, student[s], teacher[t])) for s, t in pairs]
    return SumCount(sum((term.sum for term in terms), jnp.zeros(())) / len(terms), terms[0].count)


def layer_pairs(given: Sequence[str], student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Which hidden state of the student is compared with which of the teacher; 0 is the embeddings' output.

    Args:
        given: "student:teacher" pairs; none: every layer of the student with the teacher's at the same relative depth,
            the last with the last.
        student_layers: layers of the student.
        teacher_layers: layers of the teacher.

    Raises:
        UserError: a pair names a layer that is not there.
    """
    if not given:
        return [(s, round(s * teacher_layers / student_layers)) for s in range(1, student_layers + 1)]
    pairs = [(int(student), int(teacher)) for student, _, teacher in (pair.partition(":") for pair in given)]
    for student, teacher in pairs:
        if student > student_layers or teacher > teacher_layers:
            raise UserError(
                f'hidden_layers: the pair "{student}:{teacher}" names a layer that is not there; the student has '
                f"{student_layers} layers and the teacher {teacher_layers}"
            )
    return pairs


def _positions(compared: Compared, student: Array, teacher: Array) -> tuple[Array, Array, Array]:
    """Student and teacher [M, L, width] as [M * L, width], and the weights [M * L]."""
    return _rows(student), _rows(teacher), compared.weights.reshape(-1)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


TERMS: dict[str, LossTerm] = {
    term.name: term
    for term in (
        LossTerm("kl"),
        LossTerm("logit_mse"),
        LossTerm("mlm", reads_teacher=False, at_predictions=True),
        LossTerm("cosine", cosine),
        LossTerm("hidden", hidden, capture=frozenset({"hidden_states"})),
    )
}


def active_terms(objective: Objective) -> dict[str, LossTerm]:
    """The terms whose weight is above 0, by name."""
    return {name: TERMS[name] for name in objective.weights}


def uses_teacher(objective: Objective) -> bool:
    """Whether a term compares with a teacher."""
    return any(term.reads_teacher for term in active_terms(objective).values())


def uses_vocabulary(objective: Objective) -> bool:
    """Whether a term reads logits, so that student and, where it compares, teacher need a masked-LM head."""
    return any(term.over_vocabulary for term in active_terms(objective).values())


def needs_all_logits(objective: Objective) -> bool:
    """Whether every real position goes through the vocabulary, not the predicted ones alone."""
    compared = (term.over_vocabulary and not term.at_predictions for term in active_terms(objective).values())
    return any(compared) and not objective.restrict_kl_to_mask


def activation_terms(names: Mapping[str, LossTerm], compared: Compared, settings: Any) -> dict[str, SumCount]:
    """Sum and count of every term on activations among `names`."""
    return {name: term.compute(compared, settings) for name, term in names.items() if term.compute is not None}


def capture_of(terms: Mapping[str, LossTerm]) -> frozenset[str]:
    """The activations that these terms read beside the last hidden states."""
    return frozenset().union(*(term.capture for term in terms.values()))

"""The loss terms, one value a term, registered by its name in the configuration.

To add a term on activations: write its function and add it to `TERMS`, and add its weight and its options to
`config.ActivationTerms`. Distillation ([objective]) and fine-tuning next to a teacher ([finetune]) then have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from distil_jax.config import ActivationTerms, Objective
from distil_jax.errors import UserError
from distil_jax.models import Activations, EncoderConfig
from distil_jax.objectives.losses import SumCount, cosine_distance, relative_squared_error

PROJECTIONS = "projections"  # top-level group of parameters, which is trained and never exported


class Compared(NamedTuple):
    """What a term on activations compares, of M rows of L tokens.

    Attributes:
        student: activations of the student.
        teacher: of the teacher, without gradient.
        mask: [M, L] int32 as in `EncoderInputs`: 0 is padding, equal numbers are one sequence.
        weights: [M, L] float32, how much each position counts: 0 at padding.
        sequence_weights: [M] float32, how much each sequence of a row counts.
        projection: [width of the student, width of the teacher] float32 of a term that `projects`; None where the
            widths are equal.
    """

    student: Activations
    teacher: Activations
    mask: Array
    weights: Array
    sequence_weights: Array
    projection: Array | None = None


# A term on activations: (what is compared, the section with its options) -> sum and count.
Compute = Callable[[Compared, Any], SumCount]
# (the section with a term's options, encoders of student and teacher); raises UserError where they do not fit.
Check = Callable[[ActivationTerms, EncoderConfig, EncoderConfig], None]


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One term of the objective.

    Attributes:
        name: of its weight in [objective] and [finetune] and, after `loss_`, of its metric.
        compute: of a term on activations; None: the term is one over the vocabulary (`objectives.vocabulary`).
        capture: the activations beside the last hidden states that it reads, as `Encoder.activations` names them.
        check: of its options, before anything is compiled.
        projects: whether a learned matrix maps the student's vectors to the teacher's width where widths differ.
        reads_teacher: whether it compares with a teacher.
        counts: what its mean is over.
    """

    name: str
    compute: Compute | None = None
    _: dataclasses.KW_ONLY
    capture: frozenset[str] = frozenset()
    check: Check | None = None
    projects: bool = False
    reads_teacher: bool = True
    counts: Literal["tokens", "predictions", "sequences"] = "tokens"

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
    return _over_hidden_layers(relative_squared_error, compared, settings)


def hidden_cosine(compared: Compared, settings: Any) -> SumCount:
    """1 - cos of hidden states, mean over layer pairs: L_cos (Sanh et al. 2019, section 2) of any layers."""
    return _over_hidden_layers(cosine_distance, compared, settings)


def embeddings(compared: Compared, settings: Any) -> SumCount:
    """Squared error of the embeddings' outputs relative to the teacher's (Jiao et al. 2020, equation 9)."""
    del settings
    student, teacher = compared.student.hidden_states[0], compared.teacher.hidden_states[0]
    return relative_squared_error(*_positions(compared, student, teacher))


def _over_hidden_layers(
    loss: Callable[[Array, Array, Array], SumCount], compared: Compared, settings: ActivationTerms
) -> SumCount:
    student, teacher = compared.student.hidden_states, compared.teacher.hidden_states
    pairs = layer_pairs(settings.hidden_layers, len(student) - 1, len(teacher) - 1)
    return mean_of([loss(*_positions(compared, student[s], teacher[t])) for s, t in pairs])


def mean_of(terms: Sequence[SumCount]) -> SumCount:
    """The mean of terms with the same count."""
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
                f'the pair "{student}:{teacher}" names a layer that is not there; the student has {student_layers} '
                f"layers and the teacher {teacher_layers}"
            )
    return pairs


def _check_hidden_layers(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
    try:
        layer_pairs(settings.hidden_layers, student.num_layers, teacher.num_layers)
    except UserError as error:
        raise UserError(f"{settings.full_name('hidden_layers')}: {error}") from None


def _positions(compared: Compared, student: Array, teacher: Array) -> tuple[Array, Array, Array]:
    """Student and teacher [M, L, width] as [M * L, width of the teacher], and the weights [M * L]."""
    return projected(compared, _rows(student)), _rows(teacher), compared.weights.reshape(-1)


def projected(compared: Compared, student: Array) -> Array:
    """The student's vectors [N, width] at the teacher's width: float32 where they are projected."""
    if compared.projection is None:
        return student
    matrix = compared.projection.astype(student.dtype)
    return jnp.einsum("ns,st->nt", student, matrix, preferred_element_type=jnp.float32)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


_STATES = frozenset({"hidden_states"})

TERMS: dict[str, LossTerm] = {
    term.name: term
    for term in (
        LossTerm("kl"),
        LossTerm("logit_mse"),
        LossTerm("mlm", reads_teacher=False, counts="predictions"),
        LossTerm("cosine", cosine, projects=True),
        LossTerm("hidden", hidden, capture=_STATES, check=_check_hidden_layers, projects=True),
        LossTerm("hidden_cosine", hidden_cosine, capture=_STATES, check=_check_hidden_layers, projects=True),
        LossTerm("embeddings", embeddings, capture=_STATES, projects=True),
    )
}


def active_terms(objective: Objective) -> dict[str, LossTerm]:
    """The terms whose weight is above 0, by name."""
    return {name: TERMS[name] for name in objective.weights}


def active_activation_terms(settings: ActivationTerms) -> dict[str, LossTerm]:
    """The terms on activations whose weight is above 0, by name."""
    return {name: TERMS[name] for name in settings.weights if name in TERMS and not TERMS[name].over_vocabulary}


def uses_teacher(objective: Objective) -> bool:
    """Whether a term compares with a teacher."""
    return any(term.reads_teacher for term in active_terms(objective).values())


def uses_vocabulary(objective: Objective) -> bool:
    """Whether a term reads logits, so that student and, where it compares, teacher need a masked-LM head."""
    return any(term.over_vocabulary for term in active_terms(objective).values())


def needs_all_logits(objective: Objective) -> bool:
    """Whether every real position goes through the vocabulary, not the predicted ones alone."""
    compared = (term.over_vocabulary and term.counts == "tokens" for term in active_terms(objective).values())
    return any(compared) and not objective.restrict_kl_to_mask


def check_terms(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raises UserError where the options of a term on activations do not fit student and teacher."""
    for term in active_activation_terms(settings).values():
        if term.check is not None:
            term.check(settings, student, teacher)


def initial_projections(
    settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """{PROJECTIONS: a matrix [width of the student, width of the teacher] float32 of each term that needs one}, or {}.

    The matrices keep the norm of a random vector (variance 1 / width of the student). They depend on `seed` and the
    term's name.
    """
    if student.hidden_size == teacher.hidden_size:
        return {}
    shape = (student.hidden_size, teacher.hidden_size)

    def draw(name: str) -> np.ndarray:
        generator = np.random.default_rng([seed, *name.encode()])
        return generator.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32)

    found = {name: draw(name) for name, term in active_activation_terms(settings).items() if term.projects}
    return {PROJECTIONS: found} if found else {}


def activation_terms(
    terms: Mapping[str, LossTerm],
    compared: Compared,
    settings: ActivationTerms,
    projections: Mapping[str, Array] | None = None,
) -> dict[str, SumCount]:
    """Sum and count of every term on activations among `terms`, with the `projections` of those that have one."""
    projections = projections or {}
    return {
        name: term.compute(compared._replace(projection=projections.get(name)), settings)
        for name, term in terms.items()
        if term.compute is not None
    }


def capture_of(terms: Mapping[str, LossTerm]) -> frozenset[str]:
    """The activations that these terms read beside the last hidden states."""
    return frozenset().union(*(term.capture for term in terms.values()))

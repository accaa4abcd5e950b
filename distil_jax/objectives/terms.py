"""The loss terms, one value a term, registered by its name in the configuration.

To add a term on activations: write its function and add it to `TERMS`, and add its weight and its options to
`config.ActivationTerms`. Distillation ([objective]) and fine-tuning next to a teacher ([finetune]) then have it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distil_jax.config import ActivationTerms, Objective
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig, attention_mask_matrix
from distil_jax.objectives.compared import Compared, layer_pairs, mean_of, over_heads, positions, projected, sentences
from distil_jax.objectives.losses import SumCount, cosine_distance, relative_squared_error, visible_kl, weighted

PROJECTIONS = "projections"  # top-level group of parameters, which is trained and never exported


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
        cached: which of the `TeacherOutputs` it reads, "" where no cache has what it reads.
    """

    name: str
    compute: Compute | None = None
    _: dataclasses.KW_ONLY
    capture: frozenset[str] = frozenset()
    check: Check | None = None
    projects: bool = False
    reads_teacher: bool = True
    counts: Literal["tokens", "predictions", "sequences"] = "tokens"
    cached: Literal["", "top", "hidden"] = ""

    @property
    def over_vocabulary(self) -> bool:
        """Whether it reads logits."""
        return self.compute is None


def cosine(compared: Compared, settings: Any) -> SumCount:
    """L_cos (Sanh et al. 2019, section 2): 1 - cos of the last hidden states."""
    del settings
    return cosine_distance(*positions(compared, compared.student.hidden, compared.teacher.hidden))


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
    return relative_squared_error(*positions(compared, student, teacher))


def _over_hidden_layers(
    loss: Callable[[Array, Array, Array], SumCount], compared: Compared, settings: ActivationTerms
) -> SumCount:
    student, teacher = compared.student.hidden_states, compared.teacher.hidden_states
    pairs = layer_pairs(settings.hidden_layers, len(student) - 1, len(teacher) - 1)
    return mean_of([loss(*positions(compared, student[s], teacher[t])) for s, t in pairs])


def attention(compared: Compared, settings: Any) -> SumCount:
    """Squared error of attention scores before the softmax (Jiao et al. 2020, equation 7), mean over layer pairs.

    Mean over the heads and over the keys that a query sees: its own sequence, without padding.
    """
    visible = attention_mask_matrix(compared.mask)[:, None]
    seen = jnp.maximum(jnp.sum(visible, axis=-1), 1)

    def of_pair(student: Array, teacher: Array) -> SumCount:
        if settings.attention_heads == "mean":
            student, teacher = (jnp.mean(scores, axis=1, keepdims=True) for scores in (student, teacher))
        errors = jnp.sum(jnp.where(visible, student - teacher, 0.0) ** 2, axis=-1) / seen
        return over_heads(compared, errors)

    return _over_attention_layers(of_pair, compared, settings)


def attention_kl(compared: Compared, settings: Any) -> SumCount:
    """KL(teacher || student) of attention probabilities (Wang et al. 2020, MiniLM, section 3.1), mean over layer pairs.

    Mean over the heads; with attention_heads = "mean" of the mean probabilities.
    """
    visible = attention_mask_matrix(compared.mask)[:, None]

    def of_pair(student: Array, teacher: Array) -> SumCount:
        if settings.attention_heads == "mean":
            student, teacher = (_mean_log_probabilities(scores) for scores in (student, teacher))
        return over_heads(compared, visible_kl(student, teacher, visible))

    return _over_attention_layers(of_pair, compared, settings)


def _mean_log_probabilities(scores: Array) -> Array:
    """Masked scores [M, N, L, L] -> [M, 1, L, L], the logarithms of the probabilities' mean over the heads."""
    return jax.nn.logsumexp(jax.nn.log_softmax(scores), axis=1, keepdims=True) - np.log(scores.shape[1])


def relations(compared: Compared, settings: Any) -> SumCount:
    """KL(teacher || student) of self-attention relations (Wang et al. 2021, MiniLMv2, section 3.1).

    A relation is the softmax of scaled products of queries with queries, keys with keys, or values with values, after
    each was divided into `relation_heads` parts. The three are added up; mean over the heads and over layer pairs.
    """
    visible = attention_mask_matrix(compared.mask)[:, None]
    heads = settings.relation_heads or compared.teacher.queries[0].shape[2]

    @jax.checkpoint  # the backward pass keeps no array [M, heads, L, L] of any relation
    def of_vectors(student: Array, teacher: Array) -> Array:
        errors = visible_kl(_relation_scores(student, heads), _relation_scores(teacher, heads), visible)
        return over_heads(compared, errors).sum

    def of_pair(student: int, teacher: int) -> SumCount:
        kinds = ((of.queries, of.keys, of.values) for of in (compared.student, compared.teacher))
        sums = [of_vectors(s[student - 1], t[teacher - 1]) for s, t in zip(*kinds, strict=True)]
        return SumCount(sum(sums, jnp.zeros(())), jnp.sum(compared.weights))

    layers = len(compared.student.queries), len(compared.teacher.queries)
    given = settings.relation_layers or (f"{layers[0]}:{layers[1]}",)  # the last with the last
    return mean_of([of_pair(*pair) for pair in layer_pairs(given, *layers)])


def _relation_scores(vectors: Array, heads: int) -> Array:
    """[M, L, N, D] -> scaled products [M, heads, L, L] float32 of N * D / heads numbers each."""
    parts = vectors.reshape(*vectors.shape[:2], heads, -1)
    products = jnp.einsum("bqnd,bknd->bnqk", parts, parts, preferred_element_type=jnp.float32)
    return products * parts.shape[-1] ** -0.5


def _over_attention_layers(
    loss: Callable[[Array, Array], SumCount], compared: Compared, settings: ActivationTerms
) -> SumCount:
    student, teacher = compared.student.scores, compared.teacher.scores
    pairs = layer_pairs(settings.attention_layers, len(student), len(teacher))
    return mean_of([loss(student[s - 1], teacher[t - 1]) for s, t in pairs])


def pooled(compared: Compared, settings: Any) -> SumCount:
    """Squared error of sentence embeddings relative to the teacher's (Reimers & Gurevych 2020, section 2)."""
    student, teacher, weights = sentences(compared, settings)
    return relative_squared_error(projected(compared, student), teacher, weights)


def pooled_cosine(compared: Compared, settings: Any) -> SumCount:
    """1 - cos of sentence embeddings, `pooled` without their lengths."""
    student, teacher, weights = sentences(compared, settings)
    return cosine_distance(projected(compared, student), teacher, weights)


def similarity(compared: Compared, settings: Any) -> SumCount:
    """KL(teacher || student) of the softmax of a sentence's cosines with all others (Fang et al. 2021, section 3.2).

    The others are those of the micro-batch of one device, not a queue: the value depends on training.micro_batch_size.
    Needs no projection between widths.
    """
    student, teacher, weights = sentences(compared, settings)
    present = weights > 0
    visible = present[None] & ~jnp.eye(len(weights), dtype=bool)

    def cosines(vectors: Array) -> Array:
        unit = vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-12)
        return unit @ unit.T / settings.similarity_temperature

    return weighted(visible_kl(cosines(student), cosines(teacher), visible), weights)


def _check_layers(option: str, lowest: int = 0) -> Check:
    """A check that the layers of the option are there."""

    def check(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
        given, layers = getattr(settings, option), (student.num_layers, teacher.num_layers)
        for pair in layer_pairs(given, *layers) if given else []:
            if min(pair) < lowest or pair[0] > layers[0] or pair[1] > layers[1]:
                raise UserError(
                    f'{settings.full_name(option)}: the pair "{pair[0]}:{pair[1]}" names a layer that is not there; '
                    f"the student has {layers[0]} layers and the teacher {layers[1]}, counted from {lowest}"
                )

    return check


def _check_attention(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
    _check_layers("attention_layers", 1)(settings, student, teacher)
    if settings.attention_heads == "equal" and student.num_heads != teacher.num_heads:
        name = settings.full_name("attention_heads")
        raise UserError(
            f"{name} = equal: the student has {student.num_heads} attention heads and the teacher {teacher.num_heads}; "
            f"set {name} = mean, or compare relations, which have any number of heads"
        )


def _check_relations(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
    _check_layers("relation_layers", 1)(settings, student, teacher)
    heads = settings.relation_heads or teacher.num_heads
    widths = student.attention_width, teacher.attention_width
    if any(width % heads for width in widths):
        raise UserError(
            f"{settings.full_name('relation_heads')} = {settings.relation_heads}: {heads} heads do not divide the "
            f"widths {widths[0]} (student) and {widths[1]} (teacher); choose a divisor of {math.gcd(*widths)}"
        )


# What `MaskedLM.activations` is asked for.
_STATES = frozenset({"hidden_states"})
_SCORES = frozenset({"scores"})
_VECTORS = frozenset({"queries", "keys", "values"})

TERMS: dict[str, LossTerm] = {
    term.name: term
    for term in (
        LossTerm("kl", cached="top"),
        LossTerm("logit_mse"),
        LossTerm("mlm", reads_teacher=False, counts="predictions"),
        LossTerm("cosine", cosine, projects=True, cached="hidden"),
        LossTerm("hidden", hidden, capture=_STATES, check=_check_layers("hidden_layers"), projects=True),
        LossTerm("hidden_cosine", hidden_cosine, capture=_STATES, check=_check_layers("hidden_layers"), projects=True),
        LossTerm("embeddings", embeddings, capture=_STATES, projects=True),
        LossTerm("attention", attention, capture=_SCORES, check=_check_attention),
        LossTerm("attention_kl", attention_kl, capture=_SCORES, check=_check_attention),
        LossTerm("relations", relations, capture=_VECTORS, check=_check_relations),
        LossTerm("pooled", pooled, projects=True, counts="sequences", cached="hidden"),
        LossTerm("pooled_cosine", pooled_cosine, projects=True, counts="sequences", cached="hidden"),
        LossTerm("similarity", similarity, counts="sequences", cached="hidden"),
    )
}


def active_terms(objective: Objective) -> dict[str, LossTerm]:
    """The terms whose weight is above 0, by name."""
    return {name: TERMS[name] for name in objective.weights}


def cached_parts(objective: Objective) -> set[str]:
    """The parts of the `TeacherOutputs` that the objective reads."""
    return {term.cached for term in active_terms(objective).values()} - {""}


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


def at_predictions(objective: Objective) -> list[str]:
    """The terms that count at the predicted positions alone."""
    restricted = objective.restrict_kl_to_mask
    terms = active_terms(objective).items()
    return [name for name, term in terms if term.over_vocabulary and (restricted or term.counts == "predictions")]


def check_terms(settings: ActivationTerms, student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raises UserError where the options of a term on activations do not fit student and teacher."""
    for term in active_activation_terms(settings).values():
        if term.check is not None:
            term.check(settings, student, teacher)


def initial_projections(
    settings: ActivationTerms,
    student: EncoderConfig,
    teacher: EncoderConfig,
    seed: int,
    start: np.ndarray | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """{PROJECTIONS: a matrix [width of the student, width of the teacher] float32 of each term that needs one}, or {}.

    Each is `start` if it is given, else random: it keeps the norm of a random vector (variance 1 / width of the
    student), and depends on `seed` and the term's name.
    """
    if student.hidden_size == teacher.hidden_size:
        return {}
    shape = (student.hidden_size, teacher.hidden_size)

    def draw(name: str) -> np.ndarray:
        generator = np.random.default_rng([seed, *name.encode()])
        return generator.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32)

    terms = active_activation_terms(settings).items()
    found = {name: draw(name) if start is None else start for name, term in terms if term.projects}
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

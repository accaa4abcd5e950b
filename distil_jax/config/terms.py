"""What every stage with a teacher shares: weights and options of the loss terms on activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, cast

from distil_jax.config.fields import LAYER_PAIRS, NO_EMPTY_ITEM, Section, between, fields_of, setting, weight
from distil_jax.errors import UserError, shown


class Schedule(NamedTuple):
    """How a weight or the temperature moves from `start`, at the first step of a run, to `end`, at its last."""

    kind: Literal["linear", "cosine"]
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.kind} from {self.start:g} to {self.end:g}"


@dataclass(frozen=True)
class ActivationTerms(Section):
    """Base of [objective] and [finetune]: the terms that compare activations of student and teacher.

    The functions are in `objectives.terms`.
    """

    cosine: float = weight(0.0, "the cosine distance between last hidden states")
    hidden: float = weight(0.0, "the relative squared error between hidden states of layer pairs")
    hidden_cosine: float = weight(0.0, "the cosine distance between hidden states of layer pairs")
    embeddings: float = weight(0.0, "the relative squared error between the outputs of the embeddings")
    attention: float = weight(0.0, "the squared error between attention scores of layer pairs")
    attention_kl: float = weight(0.0, "the KL between attention probabilities of layer pairs")
    relations: float = weight(0.0, "the KL between relations of queries, of keys and of values of layer pairs")
    pooled: float = weight(0.0, "the relative squared error between sentence embeddings")
    pooled_cosine: float = weight(0.0, "the cosine distance between sentence embeddings")
    similarity: float = weight(0.0, "the KL between similarities of a micro-batch's sentence embeddings")
    hidden_layers: tuple[str, ...] = setting(
        (),
        'layers that hidden and hidden_cosine compare, "student:teacher" each, 0 the embeddings; a pair named twice '
        "counts twice; empty: every student layer with the teacher's at the same relative depth",
        LAYER_PAIRS,
    )
    attention_layers: tuple[str, ...] = setting(
        (),
        'layers that attention and attention_kl compare, "student:teacher" each, from 1; empty: every student layer '
        "with the teacher's at the same relative depth",
        LAYER_PAIRS,
    )
    attention_heads: Literal["equal", "mean"] = setting(
        "equal", "equal: head by head, of equal numbers; mean: the means over the heads of each model"
    )
    relation_layers: tuple[str, ...] = setting(
        (), 'layers that relations compare, "student:teacher" each, from 1; empty: the last with the last', LAYER_PAIRS
    )
    relation_heads: int = setting(
        0,
        "heads that queries, keys and values are divided into for relations; 0: as many as the teacher has",
        between(0, 1 << 10),
    )
    pooling: Literal["mean", "cls"] = setting(
        "mean", "sentence embedding of pooled, pooled_cosine, similarity: mean over the tokens, or the first token"
    )
    similarity_temperature: float = setting(
        0.05, "softmax temperature of the cosines that similarity compares", between(1e-3, 1e4)
    )
    temperature: float = setting(2.0, "softmax temperature of kl", between(1e-3, 1e4))
    schedules: tuple[str, ...] = setting(
        (),
        'weights, and the temperature, that move over the run: "NAME linear FROM TO" or "NAME cosine FROM TO" each, as '
        'in "kl linear 5 1"; the others are constant',
        NO_EMPTY_ITEM,
    )

    def validate(self) -> None:
        _ = self.scheduled  # which raises

    @property
    def scheduled(self) -> dict[str, Schedule]:
        """The schedules by the name of what moves. Raises UserError where one of them cannot be read."""
        found: dict[str, Schedule] = {}
        fields = fields_of(type(self))
        for text in self.schedules:
            name, kind, *ends = [*text.split(), "", ""]
            if name not in fields or not (fields[name].loss_weight or name == "temperature") or name in found:
                raise UserError(
                    f"{self.full_name('schedules')}: {shown(text)} must begin with the name of a weight, or "
                    "temperature, each once"
                )
            try:
                start, end = map(float, ends[:-2])
            except ValueError:
                kind, start, end = "", 0.0, 0.0
            if kind not in ("linear", "cosine"):
                raise UserError(
                    f"{self.full_name('schedules')}: {shown(text)} must be of the form {shown(name + ' linear 5 1')}; "
                    "kinds are linear and cosine"
                )
            start, end = (fields[name].checked(x, f"{self.full_name('schedules')}: {name}") for x in (start, end))
            found[name] = Schedule(cast(Literal["linear", "cosine"], kind), start, end)
        return found

    def without(self, names: Collection[str]) -> Self:
        """The settings with these weights 0."""
        schedules = tuple(text for text in self.schedules if text.split()[0] not in names)
        return dataclasses.replace(self, schedules=schedules, **dict.fromkeys(names, 0.0))

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are above 0 at some step, by name; of one that moves the largest."""
        moving = self.scheduled
        names = (name for name, spec in fields_of(type(self)).items() if spec.loss_weight)
        largest = {name: max(moving[name][1:]) if name in moving else getattr(self, name) for name in names}
        return {name: weight for name, weight in largest.items() if weight > 0}

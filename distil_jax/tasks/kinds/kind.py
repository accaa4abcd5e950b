"""What differs between kinds of tasks: one `TaskKind` a kind, registered by name in `distil_jax.tasks.kinds`.

A run is planned from the kinds before JAX is set up, so what needs JAX imports it where it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.hf import numbered_labels
from distil_jax.tasks.encoded import Encoded

if TYPE_CHECKING:
    from jax import Array

    from distil_jax.hf import Tokenizer
    from distil_jax.models import HeadName, Problem, TaskHead
    from distil_jax.tasks.batches import Labels, TaskBatch
    from distil_jax.tasks.data.classes import LabelSource
    from distil_jax.tasks.data.columns import Columns
    from distil_jax.tasks.data.convert import ExampleRules, TakenColumns
    from distil_jax.tasks.examples import TaskData

E = TypeVar("E")  # the examples of a kind
Logits = Sequence[np.ndarray]  # of each row of a set, without those of its padding
Prediction = dict[str, Any]  # what `predict` says of an example
_DIGITS = 7  # of probabilities: what float32 can tell apart near 1


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """What is said of an example.

    Attributes:
        threshold: probability from which a label of several is given.
        n_best: candidates of a question that are given; 0: only the answer.
        no_answer: a question may have no answer.
        null_threshold: no answer is given where its score beats the best span's by more than this.
    """

    threshold: float = 0.5
    n_best: int = 0
    no_answer: bool = False
    null_threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Predicted(Generic[E]):
    """A model's logits for examples, with what they were computed from.

    Attributes:
        logits: of each row: [K] of whole texts, [L, K] of tags, [L, 2] of questions, [C] of choices.
        encoded: the rows.
        examples: what the rows were made from.
        settings: of spans.
    """

    logits: Logits
    encoded: Encoded
    examples: Sequence[E]
    settings: TaskSettings


@dataclasses.dataclass(frozen=True)
class TaskKind(Generic[E]):
    """A kind of task.

    Attributes:
        name: registered under it.
        head: what the model has on top of its encoder, by its name in `models.HEADS`.
        reads: what the head gives, for messages: "tags of words".
        example: type of the examples.
        columns: usual names of the columns of a row.
        flags: of `predict`, what a row on the command line consists of.
        row: what a bare row is, for messages: "a text".
        bare: (row that is no mapping, columns) -> its values by column; None where it is no row of this kind.
        to_example: (id, values of a row, its columns, rules) -> the example; BadRowError where it is none.
        decide_labels: (source of labels) -> how they are read.
        rows: (tokenizer, examples, settings, training) -> rows of token ids; see `encode`.
        labels: (labels of the rows of a batch, length, batch size, class weights) -> labels as arrays with weights.
        loss: (logits, batch) -> () float32, the weighted sum of the losses against the labels, as transformers' model
            classes compute it.
        distillation_loss: (logits, teacher's logits, batch, temperature) -> () float32, alike with the shares.
        decode: (predicted, head, options) -> what `predict` says of each example.
        measure: (data, predicted) -> its measures, as shares (0 to 1).
        label_of: (example) -> its label, None where it is not known.
        counted: (label) -> the class numbers in it, a score, or a word; what the report of the data counts.
        characters: (example) -> how many are tokenised.
        synthetic: (id, text of so many words or of a usual number, number of classes, whether texts are pairs) -> an
            example of the shape that real ones have; the id is a number.
        snippet: (model's name as Python text, whether it reads pairs) -> lines of Python for the model card.
        pipeline: transformers' name of the kind.
        metrics: default measures; the first decides between checkpoints.
        problem: what the outputs of a sequence head mean, in transformers' words; "" for other heads.
        details: (data, predicted) -> what a result has beside its measures: classes one by one, confusion
            matrix; None: nothing.
        fits: (head) -> whether a model with such a head, of the same kind, may be of this kind.
        max_length: default of task.max_length.
        longest: tokens a row may have where a model from elsewhere could take more.
        class_weights: (labels of the examples, number of classes) -> [classes] float32 by the rule "balanced"; None
            where there are no classes.
        stratum: (example) -> a group that keeps its share where examples are set aside; None: no group.
        together: (example) -> what it shares with examples that are set aside with it, or None.
        fewest_classes: of data that something can be learned from.
        tagged: its files may have a word and its tag a line.
        several_labels: an example may have several, in one column or in a column each.
        may_name_labels: task.labels says what labels stand for.
        unique_ids: an id may be there only once.
        outputs: (head) -> what its outputs are, for the model card and messages; "" where there is nothing to say.
        optional_pair: a second text may be there or not.
        soft_labels: a label may be a probability a class.
        texts_only: a label belongs to the whole text, so that words may be changed in training.
        settings: of [task], those that a model still uses after fine-tuning.
        may_lack_answer: there may be no answer.
        no_answer: (examples) -> whether an answer may be missing.
        check: (settings, longest row) raises UserError for settings that do not fit each other.
    """

    name: str
    head: HeadName
    reads: str
    example: type[E]
    columns: Columns
    row: str
    bare: Callable[[Any, Columns], dict[str, Any] | None]
    to_example: Callable[[str, Mapping[str, Any], TakenColumns, ExampleRules], E]
    decide_labels: Callable[[LabelSource], ExampleRules]
    rows: Callable[[Tokenizer, Sequence[E], TaskSettings, bool], Encoded]
    labels: Callable[[Sequence[np.ndarray], int, int, np.ndarray | None], Labels]
    loss: Callable[[Array, TaskBatch], Array]
    distillation_loss: Callable[[Array, Array, TaskBatch, float | Array], Array]
    decode: Callable[[Predicted[E], TaskHead, PredictionOptions], list[Prediction]]
    measure: Callable[[TaskData, Predicted[E]], dict[str, float]]
    label_of: Callable[[E], Any]
    characters: Callable[[E], int]
    synthetic: Callable[[str, Callable[..., str], int, bool], E]
    snippet: Callable[[str, bool], list[str]]
    pipeline: str
    metrics: tuple[str, ...]
    problem: Problem = ""
    counted: Callable[[Any], Iterable[Any]] = lambda label: (label,)
    flags: tuple[str, ...] = ("--text",)
    details: Callable[[TaskData, Predicted[E]], dict[str, Any]] | None = None
    fits: Callable[[TaskHead], bool] = lambda head: True
    max_length: int = 128
    longest: int = 512
    class_weights: Callable[[Sequence[Any], int], np.ndarray] | None = None
    outputs: Callable[[TaskHead], str] = lambda head: ""
    optional_pair: bool = False
    stratum: Callable[[E], int | None] = lambda example: None
    together: Callable[[E], str] | None = None
    fewest_classes: int = 0
    unique_ids: bool = False
    tagged: bool = False
    several_labels: bool = False
    may_name_labels: bool = True
    soft_labels: bool = False
    texts_only: bool = False
    settings: tuple[str, ...] = ()
    may_lack_answer: bool = False
    no_answer: Callable[[Sequence[E]], bool] = lambda examples: False
    check: Callable[[TaskSettings, int], None] = lambda settings, length: None

    @property
    def has_classes(self) -> bool:
        """Whether its outputs are classes or tags, which have names."""
        return self.class_weights is not None

    @property
    def has_fixed_outputs(self) -> bool:
        """Whether every head has the same number of outputs, without names."""
        return not (self.problem or self.has_classes)

    def encode(
        self, tokenizer: Tokenizer, examples: Sequence[E], settings: TaskSettings, *, training: bool = False
    ) -> Encoded:
        """Rows of token ids of a set; in `training`, without the examples that teach nothing."""
        return self.rows(tokenizer, examples, settings, training)

    def row_length(self, settings: TaskSettings) -> int:
        """Tokens a row may have: task.max_length, or what is usual for the kind."""
        return settings.max_length or self.max_length


def entropy(logits: Array, labels: Array, weights: Array) -> Array:
    """Weighted sum of cross entropies; logits [..., K], labels and weights [...]."""
    from distil_jax.objectives import cross_entropy

    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), weights.reshape(-1)).sum


def teacher_kl(student: Array, teacher: Array, shares: Array, temperature: float | Array) -> Array:
    """Weighted sum of temperature^2 KL(teacher || student); logits [..., K], shares [...]."""
    from distil_jax.objectives import distillation_kl

    width = student.shape[-1]
    return distillation_kl(student.reshape(-1, width), teacher.reshape(-1, width), shares.reshape(-1), temperature).sum


def class_distillation_loss(student: Array, teacher: Array, batch: TaskBatch, temperature: float | Array) -> Array:
    """KL to the teacher's classes."""
    return teacher_kl(student, teacher, batch.shares, temperature)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, rounded to the digits that a float32 has."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return rounded(weights / weights.sum(axis=-1, keepdims=True))


def rounded(probabilities: Any) -> Any:
    """Rounded to the digits that a probability in float32 has."""
    return np.round(probabilities, _DIGITS)


def output_names(head: TaskHead) -> tuple[str, ...]:
    """What the outputs of a head are called."""
    return head.labels or numbered_labels(head.num_outputs)


def named_outputs(head: TaskHead, what: str) -> str:
    """How many outputs a head has and what they are called, the first 30."""
    names = output_names(head)
    shown = ", ".join(f"`{name}`" for name in names[:30])
    return f"{len(names)} {what}: {shown}" + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def plain_score(value: float) -> float:
    """Without the digits that a float32 does not have."""
    return float(str(np.float32(value)))

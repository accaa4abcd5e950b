"""What a task is and what its examples are, whatever file or dataset they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distil_jax.tasks.data.columns import Published
from distil_jax.tasks.data.report import DataReport

if TYPE_CHECKING:
    from distil_jax.tasks.kinds import TaskKind


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceExample:
    """A text, or a pair of texts, with its label.

    `label` is a class number, a score, a class set as 0/1 a class, or a probability a class; None: not known.
    """

    id: str
    text: str
    pair: str | None = None
    label: int | float | tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TokenExample:
    """A sentence in words, with a tag number a word."""

    id: str
    words: tuple[str, ...]
    tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context: `context[start : start + len(text)] == text`."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question about a context, with its answers; none means that the context has no answer (SQuAD 2.0).

    `answers` is None where they are not known.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A prompt and the texts of which one follows it, with the number of the right one."""

    id: str
    prompt: str
    endings: tuple[str, ...]
    label: int | None = None


Example = SequenceExample | TokenExample | QuestionExample | ChoiceExample


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task as such, before any data.

    Attributes:
        name: "sst2".
        title: "SST-2".
        kind: what its examples and labels are.
        metrics: names of its measures, the official ones; the first is the one to report and to choose checkpoints by,
            unless `headline` says otherwise. Empty: those of the kind.
        labels: names of the classes or tags in the order of their numbers; empty where the data says.
        headline: measures whose mean is the task's score in a table (MRPC: accuracy and F1); empty: the first metric.
        server_file: name of the prediction file that the GLUE server wants for each test set, by test set.
        server_labels: what the server wants in that file for each class; empty: `labels`, or the number predicted.
        published: where its data is; None: the user's own files.
    """

    name: str
    title: str
    kind: TaskKind[Any]
    metrics: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    server_file: Mapping[str, str] = dataclasses.field(default_factory=dict)
    server_labels: tuple[str, ...] = ()
    published: Published | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", self.metrics or self.kind.metrics)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task with its data; `labels` are final here (empty for regression and questions).

    `validation` and `test` hold sets by name: {"validation": ...}, MNLI's {"matched": ..., "mismatched": ...}.
    `unlabelled` are more rows to train on, whose labels are not known.
    `sha256` identifies all of it: a run is not continued on other data.
    `aside` says that the validation set is a part of the training data, drawn here.
    `scheme` is that of tags which mark entities (`tag_schemes.tag_scheme`).
    `report` says what was read, for the user to check before training.
    `notes` are lines a user should read, such as "12 rows skipped" or "validation: 10 % of train, none was given".
    """

    spec: TaskSpec
    labels: tuple[str, ...]
    train: Sequence[Example]
    validation: Mapping[str, Sequence[Example]]
    test: Mapping[str, Sequence[Example]]
    sha256: str
    notes: tuple[str, ...] = ()
    aside: bool = False
    scheme: str = ""
    unlabelled: Sequence[Example] = ()
    report: DataReport = dataclasses.field(default_factory=DataReport)

    @property
    def no_answer(self) -> bool:
        """Whether the answer to any known example may be missing (SQuAD 2.0)."""
        return any(map(self.spec.kind.no_answer, [self.train, *self.validation.values()]))

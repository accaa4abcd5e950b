"""The sections of fine-tuning: [task], [finetune], [study]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from distil_jax.config.fields import (
    NAMED_SETTINGS,
    NO_EMPTY_ITEM,
    NOT_EMPTY,
    SEPARATOR,
    Check,
    Section,
    at_least,
    below_one,
    between,
    each,
    setting,
    weight,
)
from distil_jax.config.terms import ActivationTerms
from distil_jax.errors import UserError

WEIGHTS_BY_RULE = ("none", "balanced")


# A name may hold blanks, commas and equals signs: it goes as far as leaves a number before the next comma.
_NAMED_WEIGHT = re.compile(r"\s*(?P<name>[^=\s].*?)\s*=\s*(?P<weight>[^=,\s]+)\s*(?:,|$)")


def listed_weights(text: str) -> list[tuple[str, float]]:
    """The (name, weight) pairs of a list of class weights: "1,3.5" (without names) or "good=1,bad=3.5".

    Raises:
        ValueError: it is none, or some have names and some do not, or the weights are no numbers from 0 to 1e6.
    """
    if "=" in text:
        matches = [*_NAMED_WEIGHT.finditer(text)]
        if "".join(match[0] for match in matches) != text:
            raise ValueError(text)
        found = [(match["name"], float(match["weight"])) for match in matches]
    else:
        found = [("", float(number)) for number in re.split(r"\s*,\s*|\s+", text.strip())]
    if not all(0 <= weight <= 1e6 for _, weight in found):
        raise ValueError(text)
    return found


def _weighs(text: str) -> bool:
    if text in WEIGHTS_BY_RULE:
        return True
    try:
        return bool(listed_weights(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class TaskSettings(Section):
    """What is learned by `finetune`, and from which data."""

    name: str = setting(
        "",
        "a known task (sst2, squad, ...), or for own data: classification, regression, multilabel, tagging, question, "
        "choice",
    )
    source: str = setting("", "folder in the official format, dataset id or tfds:name; empty: the task's dataset id")
    train: str = setting("", "own data: CSV, TSV, JSONL, Parquet (or CoNLL, SQuAD JSON) file to train on")
    validation: str = setting("", "own data: file to measure on; empty: a part of the training data is set aside")
    test: str = setting("", "own data: file to predict, labels not needed")
    unlabelled: str = setting(
        "",
        "file of more rows to train on, without labels, in any format that predict reads; they are learned from "
        "teacher.path",
    )
    separator: str = setting(
        "",
        'mark between the columns of CSV and TSV, such as ";" or "tab"; empty: found in the first lines',
        SEPARATOR,
    )
    id: str = setting("", "name of the column that identifies a row; empty: its number")
    text: str = setting(
        "text", "name of the text column (prompt of a choice; words of tagging: or a column's number)", NOT_EMPTY
    )
    pair: str = setting("", "name of the second text column; empty: single texts")
    label: tuple[str, ...] = setting(
        ("label",),
        "name of the label column (tags: or a column's number); multilabel: or of one 0/1 column a class",
        NO_EMPTY_ITEM,
    )
    soft_labels: tuple[str, ...] = setting(
        (),
        "classification: names of the columns of probabilities, one a class in the order of task.labels, that are "
        "learned instead of task.label",
        NO_EMPTY_ITEM,
    )
    endings: tuple[str, ...] = setting((), "names of the columns of a choice's endings", NO_EMPTY_ITEM)
    labels: tuple[str, ...] = setting(
        (),
        "names of the classes in order, or VALUE=NAME where the data write something else (choice: what the data write "
        "for each ending); empty: found in the training data",
    )
    sets_as: Literal["auto", "indicators", "classes"] = setting(
        "auto", "how multilabel reads a list of 0 and 1: an indicator a class, or numbers of classes"
    )
    validation_fraction: float = setting(
        0.1, "share of the training data set aside where no validation data is given", below_one(zero=False)
    )
    max_examples: int = setting(0, "training examples used, drawn at random; 0: all", at_least(0))
    max_length: int = setting(
        0,
        "tokens per example, special ones included; longer ones are cut; 0: 128, questions 384",
        Check("0, or from 8 to 65536", lambda value: value == 0 or 8 <= value <= 65536),
    )
    doc_stride: int = setting(
        128, "tokens from one window of a long context to the next (questions)", between(1, 65536)
    )
    max_question_length: int = setting(64, "tokens of a question; longer ones are cut", between(1, 65536))
    max_answer_length: int = setting(30, "tokens of the longest answer that is predicted", between(1, 65536))
    n_best: int = setting(20, "spans a window may propose", between(1, 65536))
    null_threshold: float = setting(
        0.0,
        "no answer is predicted where its score beats the best span's by more than this (SQuAD 2.0)",
        between(-1000, 1000),
    )
    class_weights: str = setting(
        "none",
        "of the classes in the loss; balanced: rare ones count more; or numbers, in order or by name (others: 1)",
        Check('that is none, balanced, or numbers from 0 to 1e6 as in "1,3.5" or "good=1,bad=3.5"', _weighs),
    )
    word_masking: float = setting(
        0.0, "share of training words replaced by [MASK], drawn again in every epoch", between(0, 1)
    )
    word_shuffling: float = setting(
        0.0, "share of training words exchanged with a neighbour, drawn again in every epoch", between(0, 1)
    )
    on_error: Literal["stop", "skip"] = setting("stop", "what to do with a row that cannot be used; skip counts them")


@dataclass(frozen=True)
class FineTune(ActivationTerms):
    """How `finetune` learns; the weights matter where teacher.path is set (second distillation)."""

    task: float = weight(0.5, "the loss against the labels, next to a teacher")
    kl: float = weight(0.5, "the KL to the teacher's task logits (regression: squared error)")
    teachers: tuple[str, ...] = setting(
        (),
        "folders or hub ids of further teachers with the classes of teacher.path; kl is to the mean of all logits",
        NO_EMPTY_ITEM,
    )
    alone_epochs: int = setting(
        0, "epochs before all others on labels alone, as without a teacher", between(0, 1_000_000)
    )
    alone_steps: int = setting(0, "optimiser steps of that; 0: as many as alone_epochs make", at_least(0))
    alone_learning_rate: float = setting(0.0, "its peak learning rate; 0: optimizer.learning_rate", between(0, 1000))
    match_epochs: int = setting(
        0,
        "epochs on the terms on activations alone, before those on task and kl alone; 0: all terms together",
        between(0, 1_000_000),
    )
    match_steps: int = setting(0, "optimiser steps of that; 0: as many as match_epochs make", at_least(0))
    match_learning_rate: float = setting(0.0, "its peak learning rate; 0: optimizer.learning_rate", between(0, 1000))
    keep: Literal["best", "last"] = setting("best", "which checkpoint is the result: best on validation, or the last")
    metric: str = setting("", "validation measure that decides what is best; empty: the task's own")
    patience: int = setting(0, "evaluations without a better one after which training stops; 0: never", at_least(0))
    evaluations_per_epoch: int = setting(
        1, "evaluations per epoch, where evaluation.every_steps is 0 or above all steps", between(1, 1_000_000)
    )
    quantize: Literal["none", "int8"] = setting(
        "none",
        "int8: dense layers round kernels and inputs as export --format onnx-int8 does, so that the model learns to be "
        "right with it; the run's measures are those of the rounded model",
    )
    buckets: tuple[int, ...] = setting(
        (), "lengths that batches are padded to; empty: chosen from the data", each(between(0, 65536))
    )

    def validate(self) -> None:
        super().validate()
        if not self.weights:
            raise UserError("finetune: the weight of every term is 0; set at least one above 0, such as finetune.task")
        if self.patience and self.keep == "last":
            raise UserError(
                f"finetune.patience = {self.patience}: has no effect where finetune.keep = last; set it to 0, or keep "
                "to best"
            )


@dataclass(frozen=True)
class Augment(Section):
    """More rows for `finetune` with a teacher: copies with other words, which the teacher labels."""

    method: Literal["none", "mlm", "embedding"] = setting(
        "none",
        "where words come from; mlm: a masked language model's most probable words; embedding: words whose embeddings "
        "are nearest",
    )
    model: str = setting("", "folder or hub id of the model that words come from; empty: model.initial")
    copies: int = setting(10, "copies of each row", between(1, 1000))
    probability: float = setting(0.4, "chance of a word to be replaced", between(0, 1))
    candidates: int = setting(15, "words that one is drawn from", between(1, 1000))


@dataclass(frozen=True)
class Study(Section):
    """Several runs: tasks x learning rates x epochs x seeds of `finetune`, and the students that `study` compares.

    Everything here says which runs are made, and nothing what one of them computes.
    """

    affects_result = False

    tasks: tuple[str, ...] = setting((), "names of tasks; all: the nine of GLUE; empty: task.name alone", NO_EMPTY_ITEM)
    seeds: int = setting(1, "runs of each task, with seeds from run.seed on", between(1, 10_000))
    learning_rates: tuple[float, ...] = setting(
        (), "peak learning rates to choose from; empty: optimizer.learning_rate", each(between(1e-15, 1000))
    )
    epochs: tuple[int, ...] = setting(
        (), "numbers of epochs to choose from; empty: training.epochs", each(between(1, 1_000_000))
    )
    export: bool = setting(False, "write the best run's model of every task to <run.output>/<task>/model")
    checkpoints: Literal["best", "all"] = setting(
        "best", "checkpoints kept when a task is done: the best run's (at every point of the sweep), or all"
    )
    objectives: tuple[str, ...] = setting(
        (),
        'students that differ in their objective, "NAME: section.key=value+section.key=value" each, against this '
        "configuration",
        NAMED_SETTINGS,
    )
    starts: tuple[str, ...] = setting(
        (), "students that differ in their start, written like objectives", NAMED_SETTINGS
    )
    tokens: tuple[float, ...] = setting(
        (), "millions of tokens that further students learn from; 0: none", each(between(0, 1e6))
    )
    base_tokens: float = setting(4.0, "millions of tokens that the other students learn from", between(1e-6, 1e6))
    distillations: int = setting(
        1,
        "students that are made like the base, with seeds from run.seed on: what chance alone changes",
        between(1, 1000),
    )
    hours: float = setting(0.0, "hours after which no further student is begun; 0: no limit", between(0, 1e6))
    finetune: str = setting("finetune", "configuration of fine-tuning: a TOML file or a shipped name")
    pretrain: str = setting(
        "",
        "configuration of a pre-training that gives the teacher a masked-LM head, for objectives over the vocabulary; "
        "empty: the teacher has one",
    )

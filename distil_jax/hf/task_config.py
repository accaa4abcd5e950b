"""The fields of config.json that belong to a task head (labels, problem, dropout) <-> `TaskHead`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from distil_jax.config.fields import shown
from distil_jax.errors import UserError
from distil_jax.hf.config import ARCHITECTURES, Fields, architectures

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, HeadKind, Problem, TaskHead

KINDS: tuple[HeadKind, ...] = ("sequence", "token", "question", "choice")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
MOST_LABELS = 1 << 20  # far beyond any task; a larger number is a typing mistake or a hostile file
_KIND_OF = {name: kind for (_, kind), name in ARCHITECTURES.items() if kind in KINDS}
FIXED_OUTPUTS = {"question": 2, "choice": 1}


def named_kind(raw: Mapping[str, Any]) -> HeadKind | None:
    """The kind of task head that the architectures of a config.json name, None if they name none."""
    return next((cast("HeadKind", _KIND_OF[name]) for name in architectures(dict(raw)) if name in _KIND_OF), None)


def numbered_labels(count: int) -> tuple[str, ...]:
    """The names that transformers gives to outputs without one: LABEL_0, LABEL_1, ..."""
    return tuple(f"LABEL_{i}" for i in range(count))


def has_names(labels: tuple[str, ...]) -> bool:
    """Whether somebody has named the outputs."""
    return bool(labels) and labels != numbered_labels(len(labels))


def names_labels(raw: Mapping[str, Any], where: str = "config.json") -> bool:
    """Whether a config.json names the outputs of its head. Raises UserError where they are not what they should be."""
    return has_names(_labels_from_hf(raw, where))


def task_head(
    config: EncoderConfig,
    raw: Mapping[str, Any] | None,
    kind: HeadKind,
    labels: Sequence[str] = (),
    problem: str = "",
    *,
    num_outputs: int = 0,
    where: str = "config.json",
) -> TaskHead:
    """The head that transformers would put on this encoder.

    Args:
        config: the encoder, whose family decides between BERT's and DistilBERT's head.
        raw: the parsed config.json with the dropout rates; None or absent fields have transformers' defaults.
        kind: what it reads.
        labels: names of the classes or tags; empty for questions, choices, and where `num_outputs` says how many.
        problem: what the labels of "sequence" mean, in transformers' words; "" if it does not matter yet.
        num_outputs: how many outputs; 0 follows from labels, kind and problem (a regression has one).
        where: path of the config.json, for messages.

    Raises:
        UserError: these do not fit each other, or a field of `raw` is out of bounds.
    """
    from distil_jax.models import TaskHead

    if kind not in KINDS:
        raise UserError(f"head = {kind!r} is no task head; known: {', '.join(KINDS)}")
    names = _checked_labels(labels, "labels")
    if not names and kind in ("sequence", "token"):
        num_outputs = num_outputs or int(problem == "regression")
    count = _checked_count(kind, num_outputs or FIXED_OUTPUTS.get(kind, len(names)), names)
    if problem and (problem not in PROBLEMS or kind != "sequence"):
        raise UserError(
            f"problem = {problem!r} with a {kind} head; only sequence heads have one: {', '.join(PROBLEMS)}"
        )
    _refuse_a_single_class(count, problem, "problem")
    return TaskHead(
        kind,
        labels=names,
        num_outputs=count,
        dropout=_dropout(config, Fields(dict(raw or {}), where), kind),
        dense=has_dense(config, kind),
        problem=cast("Problem", problem),
    )


def has_dense(config: EncoderConfig, kind: HeadKind) -> bool:
    """Whether the family puts a dense layer into heads of this kind."""
    return config.family == "distilbert" and kind in ("sequence", "choice")


def task_head_from_hf(config: EncoderConfig, raw: Mapping[str, Any], kind: HeadKind, where: str) -> TaskHead:
    """The head of this kind that a config.json describes; labels are in the order of their numbers.

    Outputs without names are LABEL_0, ... (as in transformers, two where the file does not say), a single one or
    those of a regression have no labels.

    Args:
        config: the encoder in the same file.
        raw: the parsed config.json.
        kind: what the head reads.
        where: its path, for messages.

    Raises:
        UserError: labels or problem_type are not what they should be.
    """
    if kind in FIXED_OUTPUTS:
        return task_head(config, raw, kind, where=where)
    names = _labels_from_hf(raw, where)
    problem = raw.get("problem_type") or ""
    if kind == "token":
        problem = ""
    if problem and problem not in PROBLEMS:
        raise UserError(f"{where}: problem_type = {shown(problem)}; known: {', '.join(PROBLEMS)}")
    _refuse_a_single_class(len(names), problem, f"{where}: problem_type")
    visible = names if has_names(names) or (len(names) > 1 and problem != "regression") else ()
    return task_head(config, raw, kind, visible, problem, num_outputs=len(names), where=where)


def task_head_to_hf(config: EncoderConfig, head: TaskHead) -> dict[str, Any]:
    """The fields to add to `encoder_config_to_hf(config, head.kind)`; numbers of labels are strings, as in JSON.

    A rate that the family has no field for (BERT's questions, DistilBERT's tokens) is not written; it has no
    influence on what a trained model computes.

    Raises:
        UserError: transformers' class of this family and task computes something else.
    """
    if head.dense != has_dense(config, head.kind):
        built = "a" if head.dense else "no"
        raise UserError(f"a {config.family} folder cannot hold a {head.kind} head with {built} dense layer")
    _refuse_a_single_class(head.num_outputs, head.problem, "problem")
    fields: dict[str, Any] = {}
    if head.kind in ("sequence", "token"):
        names = _checked_labels(head.labels, "labels") or numbered_labels(head.num_outputs)
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    if head.kind == "sequence":
        fields["problem_type"] = head.problem or None
    if config.family == "distilbert" and head.kind != "token":
        fields["qa_dropout" if head.kind == "question" else "seq_classif_dropout"] = head.dropout
    if config.family == "bert" and head.kind != "question":
        # None, the usual case, means the rate of the hidden layers.
        fields["classifier_dropout"] = None if head.dropout == config.hidden_dropout else head.dropout
    return fields


def _dropout(config: EncoderConfig, fields: Fields, kind: HeadKind) -> float:
    if config.family == "bert":
        if kind == "question":
            return 0.0
        if fields.raw.get("classifier_dropout") is None:
            return config.hidden_dropout
        return fields.number("classifier_dropout", 0.0, 0.0, 1.0)
    if kind == "token":
        return config.hidden_dropout
    name, default = ("qa_dropout", 0.1) if kind == "question" else ("seq_classif_dropout", 0.2)
    return fields.number(name, default, 0.0, 1.0)


def _labels_from_hf(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Every output's name: id2label, else label2id, else num_labels (2) numbered ones."""
    by_number, by_name = raw.get("id2label"), raw.get("label2id")
    if by_number is not None:
        if not isinstance(by_number, dict):
            raise UserError(f"{where}: id2label = {shown(by_number)}, expected an object from numbers to names")
        pairs = [(_number(key, "id2label", where), name) for key, name in by_number.items()]
    elif isinstance(by_name, dict) and by_name:
        pairs = [(_number(value, "label2id", where), name) for name, value in by_name.items()]
    else:
        count = raw.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise UserError(f"{where}: num_labels = {count!r}, expected a whole number from 1 to {MOST_LABELS}")
        return numbered_labels(count)
    field = "id2label" if by_number is not None else "label2id"
    pairs.sort(key=lambda pair: pair[0])
    numbers = [number for number, _ in pairs]
    twice = next((number for number, following in itertools.pairwise(numbers) if number == following), None)
    if twice is not None:
        raise UserError(f"{where}: {field} has the number {twice} twice; give every label its own")
    gap = next((i for i, number in enumerate(numbers) if i != number), None)
    if gap is not None or not numbers:
        raise UserError(f"{where}: {field} has no label {gap or 0}; number the labels from 0 without a gap")
    return _checked_labels([name for _, name in pairs], f"{where}: {field}")


def _number(key: Any, field: str, where: str) -> int:
    text = str(key) if type(key) is int else key
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 9:
        raise UserError(f"{where}: {field} has the number {shown(key)}, expected a whole number from 0 on")
    return int(text)


def _checked_labels(labels: Sequence[str], where: str) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise UserError(f"{where}: is the text {shown(labels)}, expected a list of names")
    if len(labels) > MOST_LABELS:
        raise UserError(f"{where}: {len(labels)} labels, more than {MOST_LABELS}; these are not the names of classes")
    seen: set[str] = set()
    for number, name in enumerate(labels):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: label {number} is {shown(name)}, expected a name in quotes")
        if name in seen:
            raise UserError(f"{where}: the name {shown(name)} is there twice; give every label its own")
        seen.add(name)
    return tuple(labels)


def _checked_count(kind: HeadKind, count: int, names: tuple[str, ...]) -> int:
    fixed = FIXED_OUTPUTS.get(kind)
    if fixed is not None and (count != fixed or names):
        raise UserError(f"a {kind} head has {fixed} output{'s' * (fixed > 1)} without names; leave labels out")
    if not count:
        raise UserError(f"a {kind} head needs labels, or num_labels where they have no names")
    if type(count) is not int or not 1 <= count <= MOST_LABELS:
        raise UserError(f"num_labels = {count!r}, expected a whole number from 1 to {MOST_LABELS}")
    if names and count != len(names):
        raise UserError(f"num_labels = {count}, but there are {len(names)} labels; give one of the two")
    return count


def _refuse_a_single_class(count: int, problem: str, where: str) -> None:
    if problem == "single_label_classification" and count == 1:
        raise UserError(f"{where}: single_label_classification with one label; it takes two, or is a regression")

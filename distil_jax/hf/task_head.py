"""The task head that a family has under a config.json <-> `TaskHead`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from distil_jax.errors import UserError, shown
from distil_jax.hf.families import FAMILIES, HeadRule, named_heads
from distil_jax.hf.fields import Fields
from distil_jax.hf.labels import MOST_LABELS, checked_labels, has_names, labels_from_hf, numbered_labels

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, HeadKind, HeadName, Problem, TaskHead

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def named_kind(raw: Mapping[str, Any]) -> HeadName | None:
    """The kind of task head that the architectures of a config.json name, None if they name none."""
    return next((head for head in named_heads(raw) if head not in ("mlm", "none")), None)


def head_rule(config: EncoderConfig, kind: HeadName) -> HeadRule:
    """How this encoder's family builds a head of this kind. UserError if it has none."""
    heads = FAMILIES[config.family].heads
    if kind not in heads:
        raise UserError(f"{config.family} has no {kind} head in transformers; it has {', '.join(heads)}")
    return heads[kind]


def task_head(
    config: EncoderConfig,
    raw: Mapping[str, Any] | None,
    kind: HeadName,
    labels: Sequence[str] = (),
    problem: str = "",
    *,
    num_outputs: int = 0,
    where: str = "config.json",
) -> TaskHead:
    """The head that transformers would put on this encoder.

    Args:
        config: the encoder, whose family decides how the head is built.
        raw: the parsed config.json with the dropout rates; None or absent fields have transformers' defaults.
        kind: what it reads.
        labels: names of the classes or tags; empty where there are none, and where `num_outputs` says how many.
        problem: what the outputs mean, in transformers' words; "" if it does not matter yet.
        num_outputs: how many outputs; 0 follows from labels, kind and problem (a regression has one).
        where: path of the config.json, for messages.

    Raises:
        UserError: these do not fit each other, or a field of `raw` is out of bounds.
    """
    from distil_jax.models import HEADS

    if kind not in HEADS:
        raise UserError(f"head = {kind!r} is no task head; known: {', '.join(HEADS)}")
    names, fixed = checked_labels(labels), HEADS[kind].num_outputs
    if not names and not fixed:
        num_outputs = num_outputs or int(problem == "regression")
    count = _checked_count(HEADS[kind], num_outputs or fixed or len(names), names)
    if problem and (problem not in PROBLEMS or not HEADS[kind].has_problem):
        known = ", ".join(PROBLEMS)
        raise UserError(f"problem = {problem!r} with a {kind} head; only sequence heads have one: {known}")
    _refuse_a_single_class(count, problem, "problem")
    return _built(config, Fields(raw or {}, where), kind, names, count, problem)


def _built(
    config: EncoderConfig, fields: Fields, kind: HeadName, names: tuple[str, ...], count: int, problem: str
) -> TaskHead:
    from distil_jax.models import TaskHead

    rule = head_rule(config, kind)
    dropout = config.hidden_dropout if rule.dropout is None else rule.dropout
    if fields.raw.get(rule.dropout_field) is not None:
        dropout = fields.number(rule.dropout_field, dropout, 0.0, 1.0)
    return TaskHead(
        kind,
        labels=names,
        num_outputs=count,
        dropout=dropout,
        dense=bool(rule.dense),
        dense_activation=rule.dense_activation or config.activation,
        input_dropout=dropout if rule.drops_input else 0.0,
        problem=cast("Problem", problem),
    )


def task_head_from_hf(config: EncoderConfig, raw: Mapping[str, Any], kind: HeadName, where: str) -> TaskHead:
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
    from distil_jax.models import HEADS

    if HEADS[kind].num_outputs:
        return task_head(config, raw, kind, where=where)
    names = labels_from_hf(raw, where)
    problem = (raw.get("problem_type") or "") if HEADS[kind].has_problem else ""
    if problem and problem not in PROBLEMS:
        raise UserError(f"{where}: problem_type = {shown(problem)}; known: {', '.join(PROBLEMS)}")
    _refuse_a_single_class(len(names), problem, f"{where}: problem_type")
    visible = names if has_names(names) or (len(names) > 1 and problem != "regression") else ()
    return _built(config, Fields(raw, where), kind, visible, len(names), problem)


def task_head_to_hf(config: EncoderConfig, head: TaskHead) -> dict[str, Any]:
    """The fields to add to `encoder_config_to_hf(config, head.kind)`; numbers of labels are strings, as in JSON.

    A rate that the family has no field for (BERT's questions, DistilBERT's tokens) is not written; it has no
    influence on what a trained model computes.

    Raises:
        UserError: transformers' class of this family and task computes something else.
    """
    from distil_jax.models import HEADS

    kind, rule = HEADS[head.kind], head_rule(config, head.kind)
    activation = rule.dense_activation or config.activation
    if head.dense != bool(rule.dense) or (head.dense and head.dense_activation != activation):
        layer = f"a dense layer and {head.dense_activation}" if head.dense else "no dense layer"
        raise UserError(f"a {config.family} folder cannot hold a {head.kind} head with {layer}")
    _refuse_a_single_class(head.num_outputs, head.problem, "problem")
    fields: dict[str, Any] = {}
    if not kind.num_outputs:
        names = checked_labels(head.labels) or numbered_labels(head.num_outputs)
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    if kind.has_problem:
        fields["problem_type"] = head.problem or None
    if rule.dropout_field:
        # null, the usual case of a field without a default of its own, means the rate of the hidden layers.
        follows = rule.dropout is None and head.dropout == config.hidden_dropout
        fields[rule.dropout_field] = None if follows else head.dropout
    return fields


def match_outputs(own: TaskHead, wanted: TaskHead) -> tuple[TaskHead, list[int]] | None:
    """The wanted head on the weights of `own`, and which output of `own` comes at each place; None: it does not fit.

    Outputs are matched by name where both heads have names, whatever their capitals, else by place.
    """
    if own.num_outputs != wanted.num_outputs or (own.problem and wanted.problem and own.problem != wanted.problem):
        return None
    labels, order = wanted.labels or own.labels, list(range(own.num_outputs))
    if has_names(own.labels) and not has_names(wanted.labels):
        labels = own.labels
    elif has_names(own.labels):
        # Capitals differ between writers of one and the same task (NEGATIVE, negative), as does the order.
        folded = len({name.casefold() for name in own.labels}) == own.num_outputs
        keys = [[name.casefold() if folded else name for name in names] for names in (own.labels, wanted.labels)]
        places = {name: place for place, name in enumerate(keys[0])}
        found = [places.get(name) for name in keys[1]]
        if set(found) != set(order):
            return None
        order = [place for place in found if place is not None]
    return dataclasses.replace(wanted, labels=labels, problem=wanted.problem or own.problem), order


def _checked_count(kind: HeadKind, count: int, names: tuple[str, ...]) -> int:
    fixed = kind.num_outputs
    if fixed and (count != fixed or names):
        raise UserError(f"a {kind.name} head has {fixed} output{'s' * (fixed > 1)} without names; leave labels out")
    if not count:
        raise UserError(f"a {kind.name} head needs labels, or num_labels where they have no names")
    if type(count) is not int or not 1 <= count <= MOST_LABELS:
        raise UserError(f"num_labels = {count!r}, expected a whole number from 1 to {MOST_LABELS}")
    if names and count != len(names):
        raise UserError(f"num_labels = {count}, but there are {len(names)} labels; give one of the two")
    return count


def _refuse_a_single_class(count: int, problem: str, where: str) -> None:
    if problem == "single_label_classification" and count == 1:
        raise UserError(f"{where}: single_label_classification with one label; it takes two, or is a regression")

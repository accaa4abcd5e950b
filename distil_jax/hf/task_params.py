"""Parameters of task models: read with the head that a folder has, or completed with a new one."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.checkpoint import (
    Checkpoint,
    Params,
    PretrainedModel,
    collected,
    insert,
    listed,
    mismatches,
    open_model,
)
from distil_jax.hf.config import ARCHITECTURES, architectures
from distil_jax.hf.hub import locate
from distil_jax.hf.names import Leaf, leaves
from distil_jax.hf.task_config import KINDS, has_dense, has_names, named_kind, task_head, task_head_from_hf

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, HeadKind, TaskHead


def read_task_model(
    path_or_id: str | Path,
    kind: HeadKind,
    *,
    labels: Sequence[str] | None = None,
    problem: str = "",
    num_outputs: int = 0,
    seed: int = 0,
) -> PretrainedModel:
    """A folder's or hub id's encoder with a task head, the folder's own where it fits.

    Args:
        path_or_id: a local folder or a hub id (see `locate`).
        kind: what the head reads.
        labels: names of the wanted head's outputs, as `task_head` has them.
        problem: what they mean, as `task_head` has it.
        num_outputs: their number, as `task_head` has it. Where none of the three is given, the folder's head is taken
            as it is. Otherwise it is taken if it is of the same kind, with the same number of outputs and the same
            problem, and the same names if both have names; outputs in another order are put into the wanted one. If it
            does not fit, the head is new, and so is a pooler that the folder lacks.
        seed: of the random values of a new head.

    Raises:
        UserError: the folder has no such head and none was asked for, what was asked for is no head, or it cannot be
            read.
    """
    if kind not in KINDS:
        raise UserError(f"head = {kind!r} where one of {', '.join(KINDS)} is wanted")
    folder = locate(path_or_id)
    where = str(folder / "config.json")
    raw, config, checkpoint = open_model(folder)
    own = task_head_from_hf(config, raw, kind, where) if _has_head(config, raw, checkpoint, kind) else None
    if labels is None and not problem and not num_outputs:
        if own is None:
            raise UserError(_no_such_head(config, raw, checkpoint, kind, folder))
        config, params = _read(config, checkpoint, own)
        return PretrainedModel(config, params, own)
    head = task_head(config, raw, kind, labels or (), problem, num_outputs=num_outputs, where=where)
    agreed = None if own is None else _agreed(own, head)
    if agreed is None:
        config, params = _read(config, checkpoint, None)
        is_new_pooler = head.needs_pooler and not config.pooler
        config, params = add_task_head(config, params, head, seed=seed)
        return PretrainedModel(config, params, head, True, is_new_pooler)
    assert own is not None
    head, order = agreed
    config, params = _read(config, checkpoint, head)
    is_guess = len(head.labels) > 1 and has_names(head.labels) and not has_names(own.labels)
    notes = (order_note(str(path_or_id), head.labels),) if is_guess else ()
    return PretrainedModel(config, _ordered(params, order), head, notes=notes)


def order_note(name: str, labels: tuple[str, ...]) -> str:
    """The note on a model `name` whose outputs have no names and are taken for `labels` in their order."""
    return f"{name}: its labels have no names; taken in the order {listed(labels)}"


def match_head(own: TaskHead, wanted: TaskHead, params: Params) -> tuple[TaskHead, Params] | None:
    """A trained head with its outputs in the wanted order, matched by name as `read_task_model` does.

    Args:
        own: the head that `params` belong to.
        wanted: of the same kind, with the labels and problem that are wanted.
        params: {"encoder", "task_head"}.

    Returns:
        (head, params) with the wanted labels; None where number, names or problem of the outputs are other ones.
    """
    agreed = _agreed(own, wanted)
    return None if agreed is None else (agreed[0], _ordered(params, agreed[1]))


def _ordered(params: Params, order: list[int]) -> Params:
    """The parameters with the head's outputs in this order."""
    output = params["task_head"]["output"]
    ordered = {"kernel": output["kernel"][:, order], "bias": output["bias"][order]}
    return {**params, "task_head": {**params["task_head"], "output": ordered}}


def add_task_head(
    config: EncoderConfig, params: Mapping[str, Any], head: TaskHead, *, seed: int = 0
) -> tuple[EncoderConfig, Params]:
    """A new, random head on an encoder: kernels normal with `initializer_range`, biases zero.

    Args:
        config: what `params` belong to.
        params: {"encoder": ...}; other heads in it are left out.
        head: the head to add. Where it needs BERT's pooler, one that is there stays, otherwise it is new too; where it
            does not, the pooler is left out.
        seed: of the random values; those of a layer do not depend on which others are new.

    Returns:
        (config, params): the configuration with or without pooler, and {"encoder", "task_head"} with the given arrays
        and new ones in NumPy float32.
    """
    config = dataclasses.replace(config, pooler=head.needs_pooler)
    complete: Params = {"encoder": dict(params["encoder"])}
    keeps_pooler = config.pooler and "pooler" in complete["encoder"]
    if not keeps_pooler:
        complete["encoder"].pop("pooler", None)
    for leaf in leaves(config, task_head=head):
        if leaf.path[0] == "task_head" or (leaf.path[:2] == ("encoder", "pooler") and not keeps_pooler):
            insert(complete, leaf.path, _fresh(leaf, config.initializer_range, seed))
    return config, complete


def _fresh(leaf: Leaf, spread: float, seed: int) -> np.ndarray:
    shape = tuple(reversed(leaf.shape)) if leaf.transpose else leaf.shape
    if leaf.path[-1] == "bias":
        return np.zeros(shape, np.float32)
    if seed < 0 or not math.isfinite(spread):
        raise UserError(f"seed = {seed} and initializer_range = {spread} give no random weights; use 0 or more")
    random = np.random.default_rng([seed, zlib.crc32("/".join(leaf.path).encode())])
    return (spread * random.standard_normal(shape)).astype(np.float32)


def _head_names(kind: HeadKind) -> tuple[str, str]:
    stem = "qa_outputs" if kind == "question" else "classifier"
    return f"{stem}.weight", f"{stem}.bias"


def _has_head(config: EncoderConfig, raw: Mapping[str, Any], checkpoint: Checkpoint, kind: HeadKind) -> bool:
    """By the architecture; of a file that names none, by the tensors."""
    if any(name in ARCHITECTURES.values() for name in architectures(dict(raw))):
        return named_kind(raw) == kind
    weight = _head_names(kind)[0]
    dense = "pre_classifier.weight" in checkpoint.tensors
    outputs = checkpoint.tensors[weight].shape[0] if weight in checkpoint.tensors else 0
    return outputs > 0 and dense == has_dense(config, kind) and (kind != "choice" or outputs == 1)


def _no_such_head(
    config: EncoderConfig, raw: Mapping[str, Any], checkpoint: Checkpoint, kind: HeadKind, folder: Path
) -> str:
    named = one_line(", ".join(architectures(dict(raw)))) or "no architecture"
    names = [name for name in _head_names(kind) if name not in checkpoint.tensors]
    missing = f", without {listed(names)}" if names else ""
    given = {"question": "num_labels = 2", "choice": "num_labels = 1"}.get(kind, "labels (or num_labels)")
    wanted = ARCHITECTURES[config.family, kind]
    return (
        f"{folder}: has no {kind} head, {wanted} is wanted and it is {named}{missing}; fine-tune it first, or give "
        f"{given} for a new head"
    )


def _read(config: EncoderConfig, checkpoint: Checkpoint, head: TaskHead | None) -> tuple[EncoderConfig, Params]:
    """The encoder with its pooler, if it has one, and the head if one is wanted."""
    if head is None:
        pooler = config.family == "bert" and checkpoint.has_pooler
        config = dataclasses.replace(config, pooler=pooler)
    else:
        config = dataclasses.replace(config, pooler=head.needs_pooler)
    wanted = list(leaves(config, task_head=head))
    wrong = mismatches(wanted, checkpoint, mlm_head=False)
    if wrong:
        hint = "; head 'none' reads the encoder alone" if head else ""
        raise UserError(f"{checkpoint.where}: does not fit config.json: {'; '.join(wrong)}{hint}")
    return config, collected(wanted, checkpoint)


def _agreed(own: TaskHead, wanted: TaskHead) -> tuple[TaskHead, list[int]] | None:
    """The wanted head on the folder's weights, and which of its outputs comes at each place; None: it does not fit."""
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

"""A model folder as parameters (`read_pretrained`, `read_task_model`) or as a module that can be called."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from distil_jax.errors import UserError, one_line
from distil_jax.hf.checkpoint import (
    Checkpoint,
    Params,
    PretrainedModel,
    check_fit,
    collected,
    listed,
    open_model,
    refuse_untied,
)
from distil_jax.hf.families import FAMILIES, architectures, named_heads
from distil_jax.hf.fields import read_json
from distil_jax.hf.hub import locate
from distil_jax.hf.labels import has_names
from distil_jax.hf.names import leaves
from distil_jax.hf.new_head import add_mlm_head, add_task_head
from distil_jax.hf.task_head import head_rule, match_outputs, named_kind, task_head, task_head_from_hf

if TYPE_CHECKING:
    from distil_jax.models import AttentionKind, Encoder, EncoderConfig, HeadName, MaskedLM, TaskHead, TaskModel

    AnyHead = HeadName | Literal["auto", "mlm", "none"]

HeadChoice = Literal["auto", "mlm", "none"]
_ALONE = "; head 'none' reads the encoder alone"
_DTYPES = ("float32", "bfloat16", "float16")


def read_pretrained(path_or_id: str | Path, head: HeadChoice = "auto", *, seed: int = 0) -> PretrainedModel:
    """A masked language model or an encoder of a folder or hub id.

    Args:
        path_or_id: a local folder or a hub id (see `locate`); the weights are in any format of `read_tensors`.
        head: "mlm" wants the masked-language-model head, which is new where the folder has none; "none" the encoder
            alone (with BERT's pooler if the file has one; a head is passed over); "auto" takes the head if the file has
            one.
        seed: of the random values of a new head.

    Raises:
        UserError: the file does not fit config.json (every missing and wrongly shaped tensor is named), its head is
            not tied, or it cannot be read.
    """
    if head not in ("auto", "mlm", "none"):
        raise UserError(f"head = {head!r}; known: auto, mlm, none")
    raw, config, checkpoint = open_model(locate(path_or_id))
    if head == "none" or not checkpoint.has_mlm_head:
        model = _read_encoder(config, checkpoint)
        if head == "mlm":
            return PretrainedModel(
                *add_mlm_head(model.config, model.params, seed=seed), is_new_head=True, notes=model.notes
            )
        if head == "auto" and "mlm" in named_heads(raw):
            named = one_line(", ".join(architectures(raw)))
            note = f"{checkpoint.where}: has no head, though config.json names {named}; read as an encoder alone"
            return model._replace(notes=(*model.notes, note))
        return model
    _refuse_other_activation(config, checkpoint.where)
    model = _read(config, checkpoint, mlm_head=True, hint=_ALONE if head == "auto" else "")
    refuse_untied(checkpoint)
    return model


def _refuse_other_activation(config: EncoderConfig, where: str) -> None:
    fixed = FAMILIES[config.family].mlm_activation
    if fixed and config.activation != fixed:
        raise UserError(
            f"{where}: an encoder with {config.activation} and a head with {fixed}, as {config.family} has it, is not "
            f"supported{_ALONE}"
        )


def _read_encoder(config: EncoderConfig, checkpoint: Checkpoint) -> PretrainedModel:
    """The encoder, with its pooler if it has one."""
    return _read(dataclasses.replace(config, pooler=checkpoint.has_pooler), checkpoint)


def _read(
    config: EncoderConfig,
    checkpoint: Checkpoint,
    head: TaskHead | None = None,
    *,
    mlm_head: bool = False,
    hint: str = "",
) -> PretrainedModel:
    wanted = list(leaves(config, mlm_head=mlm_head, task_head=head))
    check_fit(wanted, checkpoint, mlm_head=mlm_head, hint=hint)
    return PretrainedModel(config, collected(wanted, checkpoint), head, notes=checkpoint.extra_notes(wanted))


def read_task_model(
    path_or_id: str | Path,
    kind: HeadName,
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
    from distil_jax.models import HEADS

    if kind not in HEADS:
        raise UserError(f"head = {kind!r} where one of {', '.join(HEADS)} is wanted")
    folder = locate(path_or_id)
    where = str(folder / "config.json")
    raw, config, checkpoint = open_model(folder)
    own = task_head_from_hf(config, raw, kind, where) if _has_head(config, raw, checkpoint, kind) else None
    if labels is None and not problem and not num_outputs:
        if own is None:
            raise UserError(_no_such_head(config, raw, checkpoint, kind, folder))
        return _read_task_model(config, checkpoint, own)
    head = task_head(config, raw, kind, labels or (), problem, num_outputs=num_outputs, where=where)
    matched = None if own is None else match_outputs(own, head)
    if own is None or matched is None:
        model = _read_encoder(config, checkpoint)
        is_new_pooler = head.needs_pooler and not model.config.pooler
        complete = add_task_head(model.config, model.params, head, seed=seed)
        return PretrainedModel(*complete, head, True, is_new_pooler, model.notes)
    head, order = matched
    model = _read_task_model(config, checkpoint, head)
    if len(head.labels) > 1 and has_names(head.labels) and not has_names(own.labels):
        model = model._replace(notes=(*model.notes, order_note(str(path_or_id), head.labels)))
    return model._replace(params=_ordered(model.params, order))


def _read_task_model(config: EncoderConfig, checkpoint: Checkpoint, head: TaskHead) -> PretrainedModel:
    return _read(dataclasses.replace(config, pooler=head.needs_pooler), checkpoint, head, hint=_ALONE)


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
    matched = match_outputs(own, wanted)
    return None if matched is None else (matched[0], _ordered(params, matched[1]))


def _ordered(params: Params, order: list[int]) -> Params:
    """The parameters with the head's outputs in this order."""
    output = params["task_head"]["output"]
    ordered = {"kernel": output["kernel"][:, order], "bias": output["bias"][order]}
    return {**params, "task_head": {**params["task_head"], "output": ordered}}


def _has_head(config: EncoderConfig, raw: Mapping[str, Any], checkpoint: Checkpoint, kind: HeadName) -> bool:
    """By the architecture; of a file that names none, by the tensors."""
    from distil_jax.models import HEADS

    if named_heads(raw):
        return named_kind(raw) == kind
    rule = head_rule(config, kind)
    names = {tensor.name for tensor in rule.tensors()}
    others = {tensor.name for head in FAMILIES[config.family].heads.values() for tensor in head.tensors()} - names
    output = checkpoint.tensors.get(f"{rule.output}.weight")
    if output is None or not names <= checkpoint.tensors.keys() or not others.isdisjoint(checkpoint.tensors):
        return False
    return HEADS[kind].num_outputs in (0, output.shape[0])


def _no_such_head(
    config: EncoderConfig, raw: Mapping[str, Any], checkpoint: Checkpoint, kind: HeadName, folder: Path
) -> str:
    from distil_jax.models import HEADS

    named = one_line(", ".join(architectures(raw))) or "no architecture"
    names = [tensor.name for tensor in head_rule(config, kind).tensors() if tensor.name not in checkpoint.tensors]
    missing = f", without {listed(names)}" if names else ""
    fixed = HEADS[kind].num_outputs
    given = f"num_labels = {fixed}" if fixed else "labels (or num_labels)"
    wanted = FAMILIES[config.family].architecture(kind)
    return (
        f"{folder}: has no {kind} head, {wanted} is wanted and it is {named}{missing}; fine-tune it first, or give "
        f"{given} for a new head"
    )


def from_pretrained(
    path_or_id: str | Path,
    *,
    head: AnyHead = "auto",
    labels: Sequence[str] | None = None,
    num_labels: int | None = None,
    problem: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    attention: AttentionKind = "auto",
) -> tuple[MaskedLM | Encoder | TaskModel, Params]:
    """A model of a folder or hub id, without PyTorch: `module.apply({"params": params}, ids)`.

    What the user should know (a head that is new, tensors that are left out) is logged as a warning of "distil_jax".

    Args:
        path_or_id: a local folder or a hub id (see `locate`).
        head: "mlm" (masked language model), "none" (the encoder; BERT's pooler is its method `pooled`), "sequence"
            (classes or scores of a text), "token", "question" (start and end of an answer), "choice" or "replaced"
            (whether a token is not the text's, ELECTRA); "auto" is what the folder has. A "mlm", "question" or
            "choice" head that the folder lacks is new.
        labels: names of the outputs of a "sequence" or "token" head that is wanted whether the folder has it or not:
            the folder's is used if it fits (see `read_task_model`), otherwise a new one is made.
        num_labels: their number, where they have no names; that of "question" (2) and "choice" (1) is known.
        problem: what the outputs of a "sequence" head mean, in transformers' words (see `TaskHead`).
        seed: of the random values of a new head.
        dtype: what is computed in: "float32", "bfloat16" or "float16"; the parameters stay float32.
        attention: how attention is computed, see `distil_jax.models`.

    Returns:
        (MaskedLM, {"encoder", "mlm_head"}), (TaskModel, {"encoder", "task_head"}), or (Encoder, the encoder's own
        tree); NumPy float32 arrays.

    Raises:
        UserError: as `locate`, `read_pretrained` and `read_task_model`, or an unknown head or dtype.
    """
    from distil_jax.models import HEADS

    if dtype not in _DTYPES:
        raise UserError(f"dtype = {dtype!r}; known: {', '.join(_DTYPES)}")
    if head not in ("auto", "mlm", "none", *HEADS):
        raise UserError(f"head = {head!r}; known: auto, mlm, none, {', '.join(HEADS)}")
    if head not in HEADS and (labels is not None or num_labels is not None or problem is not None):
        raise UserError(f"labels, num_labels and problem with head = {head!r}; choose one of {', '.join(HEADS)}")
    if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
        raise UserError(f"num_labels = {num_labels!r}, expected a whole number from 1 on")
    folder = locate(path_or_id)
    kind = named_kind(read_json(folder / "config.json")) if head == "auto" else head
    if kind is None or kind == "mlm" or kind == "none":
        model = read_pretrained(folder, cast("HeadChoice", head), seed=seed)
    else:
        count = num_labels or (HEADS[kind].num_outputs if kind == head else 0)
        model = read_task_model(folder, kind, labels=labels, problem=problem or "", num_outputs=count, seed=seed)
    new = f"{folder}: has no such {kind} head; a new, untrained one is used"
    for note in (*model.notes, *[new] * model.is_new_head):
        logging.getLogger("distil_jax").warning("%s", note)
    return _module(model, dtype, attention)


def _module(
    model: PretrainedModel, dtype: str, attention: AttentionKind
) -> tuple[MaskedLM | Encoder | TaskModel, Params]:
    import jax.numpy as jnp

    from distil_jax.models import Encoder, MaskedLM, TaskModel

    if model.head is not None:
        return TaskModel(model.config, model.head, jnp.dtype(dtype), attention), model.params
    if "mlm_head" in model.params:
        return MaskedLM(model.config, jnp.dtype(dtype), attention), model.params
    return Encoder(model.config, jnp.dtype(dtype), attention), model.params["encoder"]

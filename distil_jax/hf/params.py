"""Tensors of a checkpoint <-> our parameter tree, with everything that does not fit named at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.checkpoint import (
    Checkpoint,
    PretrainedModel,
    collected,
    listed,
    mismatches,
    open_model,
    refuse_untied,
)
from distil_jax.hf.config import MLM_ARCHITECTURES, architectures
from distil_jax.hf.hub import locate
from distil_jax.hf.names import is_mlm_name, leaves, prefixed

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead

HeadChoice = Literal["auto", "mlm", "none"]


def _has_mlm_head(raw: Mapping[str, Any], checkpoint: Checkpoint, head: HeadChoice) -> bool:
    if head not in ("auto", "mlm", "none"):
        raise UserError(f"head = {head!r}; known: auto, mlm, none")
    if head != "auto":
        return head == "mlm"
    named = MLM_ARCHITECTURES.intersection(architectures(dict(raw)))
    return bool(named) or any(is_mlm_name(name, checkpoint.family) for name in checkpoint.tensors)


def read_pretrained(path_or_id: str | Path, head: HeadChoice = "auto") -> PretrainedModel:
    """A masked language model or an encoder of a folder or hub id.

    Args:
        path_or_id: a local folder or a hub id (see `locate`); the weights are in any format of `read_tensors`.
        head: "mlm" wants the masked-language-model head, "none" the encoder alone (with BERT's pooler if the file has
            one; a head is passed over), "auto" takes the head if the architecture or the tensors have one.

    Raises:
        UserError: the file does not fit config.json (every missing, unexpected and wrongly shaped tensor is named;
            other heads and index buffers are passed over), its head is not tied, or it cannot be read.
    """
    folder = locate(path_or_id)
    raw, config, checkpoint = open_model(folder)
    with_head = _has_mlm_head(raw, checkpoint, head)
    pooler = config.family == "bert" and not with_head and checkpoint.has_pooler
    config = dataclasses.replace(config, pooler=pooler)
    wanted = list(leaves(config, mlm_head=with_head))
    wrong = mismatches(wanted, checkpoint, mlm_head=with_head)
    if wrong:
        hint = "; head 'none' reads the encoder alone" if with_head and head == "auto" else ""
        raise UserError(f"{checkpoint.where}: does not fit config.json: {'; '.join(wrong)}{hint}")
    if with_head:
        refuse_untied(checkpoint)
    return PretrainedModel(config, collected(wanted, checkpoint))


def _flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, (*path, name))
        else:
            flat[(*path, name)] = value
    return flat


def tensors_from_params(
    config: EncoderConfig, params: Mapping[str, Any], head: TaskHead | None = None
) -> dict[str, np.ndarray]:
    """The float32 tensors that transformers' save_pretrained would write, contiguous, under its names.

    The model has the task head `head` if one is given, else a masked-language-model head if `params` has "mlm_head".
    The decoder, tied to the word embeddings, is not written; nor is a pooler under a head that has none in
    transformers.

    Raises:
        UserError: `params` does not fit `config` and `head`; every path that is missing, unexpected or of another
            shape is named.
    """
    mlm_head = head is None and "mlm_head" in params
    wanted = {leaf.path: leaf for leaf in leaves(config, mlm_head=mlm_head, task_head=head)}
    given = _flatten(params)
    if mlm_head or (head is not None and not head.needs_pooler):
        given = {path: value for path, value in given.items() if path[:2] != ("encoder", "pooler")}
    shaped = []
    for path in wanted.keys() & given.keys():
        shape = tuple(reversed(wanted[path].shape)) if wanted[path].transpose else wanted[path].shape
        if tuple(np.shape(given[path])) != shape:
            shaped.append(f"{'/'.join(path)} is {list(np.shape(given[path]))}, expected {list(shape)}")
    groups = {
        "missing": ["/".join(path) for path in wanted if path not in given],
        "unexpected": ["/".join(path) for path in given if path not in wanted],
        "wrong shape": sorted(shaped),
    }
    wrong = [f"{what}: {listed(names)}" for what, names in groups.items() if names]
    if wrong:
        hint = "; give its head, too" if head is None and "task_head" in params else ""
        raise UserError(f"the parameters do not fit the configuration: {'; '.join(wrong)}{hint}")
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in wanted.items():
        values = np.asarray(given[path], np.float32)
        # safetensors writes the bytes as they lie in memory: a transposed view would be silently wrong.
        values = np.ascontiguousarray(values.T if leaf.transpose else values)
        tensors[prefixed(leaf.name, config.family) if mlm_head or head else leaf.name] = values
    return tensors

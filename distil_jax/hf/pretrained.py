"""A model folder as a module that can be called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from distil_jax.errors import UserError
from distil_jax.hf.checkpoint import Params
from distil_jax.hf.config import read_json
from distil_jax.hf.hub import locate
from distil_jax.hf.params import read_pretrained
from distil_jax.hf.task_config import FIXED_OUTPUTS, KINDS, named_kind
from distil_jax.hf.task_params import read_task_model

if TYPE_CHECKING:
    from distil_jax.models import AttentionKind, Encoder, HeadKind, MaskedLM, TaskModel

AnyHead = Literal["auto", "mlm", "none", "sequence", "token", "question", "choice"]
_DTYPES = ("float32", "bfloat16", "float16")


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
    """A BERT or DistilBERT model of a folder or hub id, without PyTorch: `module.apply({"params": params}, ids)`.

    Args:
        path_or_id: a local folder or a hub id (see `locate`).
        head: "mlm" (masked language model), "none" (the encoder; BERT's pooler is its method `pooled`), "sequence"
            (classes or scores of a text), "token", "question" (start and end of an answer) or "choice"; "auto" is what
            the folder has. A "question" or "choice" head that the folder lacks is new, with a warning.
        labels: names of the outputs of a "sequence" or "token" head that is wanted whether the folder has it or not:
            the folder's is used if it fits (see `read_task_model`), otherwise a new one is made, with a warning.
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
    if dtype not in _DTYPES:
        raise UserError(f"dtype = {dtype!r}; known: {', '.join(_DTYPES)}")
    if head not in ("auto", "mlm", "none", *KINDS):
        raise UserError(f"head = {head!r}; known: auto, mlm, none, {', '.join(KINDS)}")
    if head not in KINDS and (labels is not None or num_labels is not None or problem is not None):
        raise UserError(f"labels, num_labels and problem with head = {head!r}; choose one of {', '.join(KINDS)}")
    if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
        raise UserError(f"num_labels = {num_labels!r}, expected a whole number from 1 on")
    folder = locate(path_or_id)
    kind = cast("HeadKind | None", head if head in KINDS else None)
    if head == "auto":
        kind = named_kind(read_json(folder / "config.json"))
    import jax.numpy as jnp

    from distil_jax.models import Encoder, MaskedLM, TaskModel

    if kind is not None:
        count = num_labels or FIXED_OUTPUTS.get(head, 0)
        wanted: Any = {"labels": labels, "problem": problem or "", "num_outputs": count}
        model = read_task_model(folder, kind, **wanted, seed=seed)
    else:
        model = read_pretrained(folder, cast("Literal['auto', 'mlm', 'none']", head))
    new = f"{folder}: has no such {kind} head; a new, untrained one is used"
    for note in (*model.notes, *[new] * model.is_new_head):
        logging.getLogger("distil_jax").warning("%s", note)
    if model.head is not None:
        return TaskModel(model.config, model.head, jnp.dtype(dtype), attention), model.params
    if "mlm_head" in model.params:
        return MaskedLM(model.config, jnp.dtype(dtype), attention), model.params
    return Encoder(model.config, jnp.dtype(dtype), attention), model.params["encoder"]

"""The tensors of one checkpoint under the names of its family, and what does not fit, named all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.config import encoder_config_from_hf
from distil_jax.hf.families import FAMILIES, Family, find_family
from distil_jax.hf.fields import read_json
from distil_jax.hf.lazy_tensor import StoredTensor
from distil_jax.hf.names import Leaf, canonical, mlm_names, optional_names
from distil_jax.hf.read import open_tensors

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead

Params = dict[str, Any]
_LISTED = 20  # names a message spells out before it counts


class PretrainedModel(NamedTuple):
    """A model as it was read from a folder.

    Attributes:
        config: the encoder.
        params: {"encoder", "mlm_head" or "task_head" if there is one}: NumPy float32, kernels [in, out]; arrays may be
            read-only, strided views of the memory-mapped file.
        head: what params["task_head"] is; None without one.
        is_new_head: the head is random: the folder has none that fits.
        is_new_pooler: so is BERT's pooler, which the head reads.
        notes: what the user should know before training, a line each.
    """

    config: EncoderConfig
    params: Params
    head: TaskHead | None = None
    is_new_head: bool = False
    is_new_pooler: bool = False
    notes: tuple[str, ...] = ()


def listed(names: Iterable[str]) -> str:
    """Names as "a, b, c", beyond twenty as "... and N more"."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors under the family's names, with the names the file has for them.

    Attributes:
        tensors: name without prefix -> tensor.
        originals: name without prefix -> name in the file.
        family: whose names they are.
        where: the file.
        is_tied: config.json says that the head shares the word embeddings.
        notes: what the user should know about how the folder was read.
    """

    tensors: Mapping[str, StoredTensor]
    originals: Mapping[str, str]
    family: Family
    where: str
    is_tied: bool
    notes: tuple[str, ...] = ()

    def shown(self, leaf: Leaf) -> str:
        """A tensor's name as the file has it, or would have it."""
        prefix = f"{self.family.prefix}."
        bare = bool(self.originals) and not any(name.startswith(prefix) for name in self.originals.values())
        return self.originals.get(leaf.name) or (leaf.name if bare else leaf.stored_name(self.family.prefix))

    @property
    def has_pooler(self) -> bool:
        """Whether BERT's pooler is among them."""
        return self.family.has_pooler and "pooler.dense.weight" in self.tensors

    @property
    def has_mlm_head(self) -> bool:
        """Whether any tensor of the masked-language-model head is among them."""
        return not mlm_names(self.family.name).isdisjoint(self.tensors)

    def extra_notes(self, wanted: list[Leaf]) -> tuple[str, ...]:
        """The notes on this folder when `wanted` is read: one names the tensors that no part of the model reads."""
        known = {leaf.name for leaf in wanted} | optional_names(self.family.name)
        extra = [self.originals[name] for name in self.tensors if name not in known]
        note = f"{self.where}: left out, since this model has no place for them: {listed(extra)}"
        return (*self.notes, note) if extra else self.notes


def open_model(folder: Path) -> tuple[dict[str, Any], EncoderConfig, Checkpoint]:
    """A model folder's config.json, the encoder it describes (`pooler` is False), and its weights.

    Raises:
        UserError: as `encoder_config_from_hf` and `open_tensors`, or one tensor has two names.
    """
    path = folder / "config.json"
    raw = read_json(path)
    config = encoder_config_from_hf(raw, str(path))
    _, field = find_family(raw, str(path))
    notes = () if field else (f"{path}: names no model_type; taken for {config.family} by its fields",)
    return raw, config, _open_checkpoint(folder, FAMILIES[config.family], raw, notes)


def _open_checkpoint(folder: Path, family: Family, raw: Mapping[str, Any], notes: tuple[str, ...]) -> Checkpoint:
    found, path = open_tensors(folder)
    tensors: dict[str, StoredTensor] = {}
    originals: dict[str, str] = {}
    for original, tensor in found.items():
        name = canonical(original, family)
        if name in tensors:
            raise UserError(f"{path}: {originals[name]} and {original} are two names of one tensor; keep one of them")
        tensors[name], originals[name] = tensor, original
    for copy, source in family.tied.items():
        if copy in tensors and source not in tensors:  # some writers keep only one name of the tensor that two share
            tensors[source], originals[source] = tensors[copy], originals[copy]
    return Checkpoint(
        tensors, originals, family, str(path), is_tied=raw.get("tie_word_embeddings", True) is not False, notes=notes
    )


def check_fit(wanted: list[Leaf], checkpoint: Checkpoint, *, mlm_head: bool, hint: str = "") -> None:
    """Raises UserError, with `hint` at its end, for tensors that are missing, of another shape, or not of floats."""
    tensors = checkpoint.tensors
    shapes = {leaf.name: leaf.shape for leaf in wanted}
    if mlm_head:
        shapes |= {copy: shapes[source] for copy, source in checkpoint.family.tied.items()}
    missing = [checkpoint.shown(leaf) for leaf in wanted if leaf.name not in tensors]
    present = [(checkpoint.originals[name], name, shape) for name, shape in shapes.items() if name in tensors]
    shaped = [
        f"{shown} is {list(tensors[name].shape)}, expected {list(shape)}"
        for shown, name, shape in present
        if tensors[name].shape != shape
    ]
    typed = [f"{shown} is {tensors[name].dtype}" for shown, name, _ in present if not tensors[name].is_float]
    groups = {"missing": missing, "wrong shape": shaped, "not a float tensor": typed}
    wrong = [f"{what}: {listed(names)}" for what, names in groups.items() if names]
    if wrong:
        raise UserError(f"{checkpoint.where}: does not fit config.json: {'; '.join(wrong)}{hint}")


def refuse_untied(checkpoint: Checkpoint) -> None:
    """We hold the decoder as the word embeddings; a model where the two differ would silently compute otherwise."""
    tensors, originals, copies = checkpoint.tensors, checkpoint.originals, checkpoint.family.tied
    for copy, source in copies.items():
        if copy in tensors and not np.array_equal(tensors[copy].read(), tensors[source].read(), equal_nan=True):
            raise UserError(
                f"{checkpoint.where}: {originals[copy]} differs from {originals[source]}; only models whose head "
                "shares the word embeddings are supported (head 'none' reads the encoder alone)"
            )
    decoder = next(iter(copies))
    if not checkpoint.is_tied and decoder not in tensors:
        raise UserError(f"{checkpoint.where}: tie_word_embeddings = false in config.json, but no {decoder}")


def collected(wanted: list[Leaf], checkpoint: Checkpoint) -> Params:
    """The wanted tensors as our tree: NumPy float32, kernels [in, out]."""
    params: Params = {}
    for leaf in wanted:
        values = checkpoint.tensors[leaf.name].read()
        insert(params, leaf.path, values.T if leaf.transpose else values)
    return params


def insert(params: Params, path: tuple[str, ...], values: np.ndarray) -> None:
    """Put an array at a path of the tree, in place."""
    for part in path[:-1]:
        params = params.setdefault(part, {})
    params[path[-1]] = values

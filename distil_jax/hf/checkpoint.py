"""The tensors of one checkpoint under the names of our tables, and what does not fit, named all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.config import encoder_config_from_hf, read_json
from distil_jax.hf.lazy_tensor import StoredTensor
from distil_jax.hf.names import TIED_COPIES, Leaf, canonical, is_ignored, is_mlm_name, prefixed
from distil_jax.hf.read import open_tensors

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead

Params = dict[str, Any]


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


_LISTED = 20  # names a message spells out before it counts


def listed(names: Iterable[str]) -> str:
    """Names as "a, b, c", beyond twenty as "... and N more"."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors under the names of the table, with the names the file has for them."""

    tensors: Mapping[str, StoredTensor]
    originals: Mapping[str, str]
    family: str
    where: str
    tied: bool

    def shown(self, name: str) -> str:
        """A table's name as the file would spell it."""
        bare = bool(self.originals) and not any(n.startswith(f"{self.family}.") for n in self.originals.values())
        return self.originals.get(name) or (name if bare else prefixed(name, self.family))

    @property
    def has_pooler(self) -> bool:
        """Whether BERT's pooler is among them."""
        return "pooler.dense.weight" in self.tensors


def open_model(folder: Path) -> tuple[dict[str, Any], EncoderConfig, Checkpoint]:
    """A model folder's config.json, the encoder it describes (`pooler` is False), and its weights.

    Raises:
        UserError: as `encoder_config_from_hf` and `open_tensors`, or one tensor has two names.
    """
    path = folder / "config.json"
    raw = read_json(path)
    config = encoder_config_from_hf(raw, str(path))
    return raw, config, _open_checkpoint(folder, config.family, raw.get("tie_word_embeddings", True) is not False)


def _open_checkpoint(folder: Path, family: str, tied: bool) -> Checkpoint:
    found, path = open_tensors(folder)
    tensors: dict[str, StoredTensor] = {}
    originals: dict[str, str] = {}
    for original, tensor in found.items():
        name = canonical(original, family)
        if name in tensors:
            raise UserError(f"{path}: {originals[name]} and {original} are two names of one tensor; keep one of them")
        tensors[name], originals[name] = tensor, original
    if family == "bert" and "cls.predictions.bias" not in tensors and "cls.predictions.decoder.bias" in tensors:
        # Some writers keep only the decoder's name for the bias the two share.
        tensors["cls.predictions.bias"] = tensors["cls.predictions.decoder.bias"]
        originals["cls.predictions.bias"] = originals["cls.predictions.decoder.bias"]
    return Checkpoint(tensors, originals, family, str(path), tied)


def mismatches(wanted: list[Leaf], checkpoint: Checkpoint, *, mlm_head: bool) -> list[str]:
    """What is missing, unexpected, of another shape, or not a float tensor."""
    tensors, family = checkpoint.tensors, checkpoint.family
    shapes = {leaf.name: leaf.shape for leaf in wanted}
    copies = TIED_COPIES[family] if mlm_head else {}
    expected = shapes | {copy: shapes[source] for copy, source in copies.items()}
    missing = [checkpoint.shown(name) for name in shapes if name not in tensors]
    extra = [
        checkpoint.shown(name)
        for name in tensors
        if name not in expected and not is_ignored(name, family) and not (is_mlm_name(name, family) and not mlm_head)
    ]
    present = [(checkpoint.shown(name), tensors[name], shape) for name, shape in expected.items() if name in tensors]
    shaped = [f"{name} is {list(t.shape)}, expected {list(shape)}" for name, t, shape in present if t.shape != shape]
    typed = [f"{name} is {tensor.dtype}" for name, tensor, _ in present if not tensor.is_float]
    groups = {"missing": missing, "unexpected": extra, "wrong shape": shaped, "not a float tensor": typed}
    return [f"{what}: {listed(names)}" for what, names in groups.items() if names]


def refuse_untied(checkpoint: Checkpoint) -> None:
    """We hold the decoder as the word embeddings; a model where the two differ would silently compute otherwise."""
    tensors = checkpoint.tensors
    copies = TIED_COPIES[checkpoint.family]
    for copy, source in copies.items():
        if copy in tensors and not np.array_equal(tensors[copy].read(), tensors[source].read(), equal_nan=True):
            raise UserError(
                f"{checkpoint.where}: {checkpoint.shown(copy)} differs from {checkpoint.shown(source)}; only "
                "models whose head shares the word embeddings are supported (head 'none' reads the encoder alone)"
            )
    decoder = next(iter(copies))
    if not checkpoint.tied and decoder not in tensors:
        raise UserError(
            f"{checkpoint.where}: tie_word_embeddings = false in config.json, but no {checkpoint.shown(decoder)}"
        )


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

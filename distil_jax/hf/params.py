"""Tensors of a checkpoint <-> our parameter tree, with everything that does not fit named at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.config import MLM_ARCHITECTURES, architectures, encoder_config_from_hf, read_json
from distil_jax.hf.locate import locate
from distil_jax.hf.names import TIED_COPIES, Leaf, canonical, is_ignored, is_mlm_name, leaves, prefixed
from distil_jax.hf.read import open_tensors
from distil_jax.hf.stored import StoredTensor

if TYPE_CHECKING:
    from distil_jax.models import AttentionKind, Encoder, EncoderConfig, MaskedLM

Params = dict[str, Any]
HeadChoice = Literal["auto", "mlm", "none"]
_LISTED = 20  # names a message spells out before it counts
_DTYPES = ("float32", "bfloat16", "float16")


def listed(names: Iterable[str]) -> str:
    """Names as "a, b, c", beyond twenty as "... and N more"."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
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


def _open(folder: Path, family: str, tied: bool) -> _Checkpoint:
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
    return _Checkpoint(tensors, originals, family, str(path), tied)


def _complaints(wanted: list[Leaf], checkpoint: _Checkpoint, head: bool) -> list[str]:
    """What is missing, unexpected, of another shape, or not a float tensor."""
    tensors, family = checkpoint.tensors, checkpoint.family
    shapes = {leaf.name: leaf.shape for leaf in wanted}
    copies = TIED_COPIES[family] if head else {}
    expected = shapes | {copy: shapes[source] for copy, source in copies.items()}
    missing = [checkpoint.shown(name) for name in shapes if name not in tensors]
    extra = [
        checkpoint.shown(name)
        for name in tensors
        if name not in expected and not is_ignored(name, family) and not (is_mlm_name(name, family) and not head)
    ]
    present = [(checkpoint.shown(name), tensors[name], shape) for name, shape in expected.items() if name in tensors]
    shaped = [f"{name} is {list(t.shape)}, expected {list(shape)}" for name, t, shape in present if t.shape != shape]
    typed = [f"{name} is {tensor.dtype}" for name, tensor, _ in present if not tensor.is_float]
    groups = {"missing": missing, "unexpected": extra, "wrong shape": shaped, "not a float tensor": typed}
    return [f"{what}: {listed(names)}" for what, names in groups.items() if names]


def _refuse_untied(checkpoint: _Checkpoint) -> None:
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


def _has_mlm_head(raw: Mapping[str, Any], checkpoint: _Checkpoint, head: HeadChoice) -> bool:
    if head not in ("auto", "mlm", "none"):
        raise UserError(f"head = {head!r}; known: auto, mlm, none")
    if head != "auto":
        return head == "mlm"
    named = MLM_ARCHITECTURES.intersection(architectures(dict(raw)))
    return bool(named) or any(is_mlm_name(name, checkpoint.family) for name in checkpoint.tensors)


def read_params(folder: str | Path, head: HeadChoice = "auto") -> tuple[EncoderConfig, Params]:
    """Configuration and parameters of a local model folder.

    Args:
        folder: holds config.json and the weights in any format of `read_tensors`.
        head: "mlm" wants the masked-language-model head, "none" the encoder alone (with BERT's pooler if the file has
            one; a head is passed over), "auto" takes the head if the architecture or the tensors have one.

    Returns:
        (config, params): params {"encoder": ..., "mlm_head": ... (with a head)}, nested dictionaries of NumPy float32
        arrays, kernels [in, out]. Arrays may be read-only, strided views of the memory-mapped file.

    Raises:
        UserError: the file does not fit config.json (every missing, unexpected and wrongly shaped tensor is named;
            other heads and index buffers are passed over), its head is not tied, or it cannot be read.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    config = encoder_config_from_hf(raw, str(folder / "config.json"))
    checkpoint = _open(folder, config.family, raw.get("tie_word_embeddings", True) is not False)
    with_head = _has_mlm_head(raw, checkpoint, head)
    pooler = config.family == "bert" and not with_head and "pooler.dense.weight" in checkpoint.tensors
    config = dataclasses.replace(config, pooler=pooler)
    wanted = list(leaves(config, mlm_head=with_head))
    complaints = _complaints(wanted, checkpoint, with_head)
    if complaints:
        hint = "; head 'none' reads the encoder alone" if with_head and head == "auto" else ""
        raise UserError(f"{checkpoint.where}: does not fit config.json: {'; '.join(complaints)}{hint}")
    if with_head:
        _refuse_untied(checkpoint)
    params: Params = {}
    for leaf in wanted:
        values = checkpoint.tensors[leaf.name].read()
        _insert(params, leaf.path, values.T if leaf.transpose else values)
    return config, params


def _insert(params: Params, path: tuple[str, ...], values: np.ndarray) -> None:
    for part in path[:-1]:
        params = params.setdefault(part, {})
    params[path[-1]] = values


def _flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, (*path, name))
        else:
            flat[(*path, name)] = value
    return flat


def tensors_from_params(config: EncoderConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The float32 tensors that transformers' save_pretrained would write, contiguous, under its names.

    The model has a masked-language-model head if `params` has "mlm_head". The decoder, tied to the word embeddings, is
    not written; nor is a pooler next to a head, because BertForMaskedLM has none.

    Raises:
        UserError: `params` does not fit `config`; every path that is missing, unexpected or of another shape is named.
    """
    head = "mlm_head" in params
    wanted = {leaf.path: leaf for leaf in leaves(config, mlm_head=head)}
    given = _flatten(params)
    if head:
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
    complaints = [f"{what}: {listed(names)}" for what, names in groups.items() if names]
    if complaints:
        raise UserError(f"the parameters do not fit the configuration: {'; '.join(complaints)}")
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in wanted.items():
        values = np.asarray(given[path], np.float32)
        # safetensors writes the bytes as they lie in memory: a transposed view would be silently wrong.
        values = np.ascontiguousarray(values.T if leaf.transpose else values)
        tensors[prefixed(leaf.name, config.family) if head else leaf.name] = values
    return tensors


def from_pretrained(
    path_or_id: str | Path, *, head: HeadChoice = "auto", dtype: str = "float32", attention: AttentionKind = "auto"
) -> tuple[MaskedLM | Encoder, Params]:
    """A BERT or DistilBERT model of a folder or hub id, without PyTorch: `module.apply({"params": params}, ids)`.

    Args:
        path_or_id: a local folder or a hub id (see `locate`).
        head: "mlm", "none" or "auto", as in `read_params`.
        dtype: what is computed in: "float32", "bfloat16" or "float16"; the parameters stay float32.
        attention: how attention is computed, see `distil_jax.models`.

    Returns:
        (MaskedLM, {"encoder", "mlm_head"}) with a head, else (Encoder, the encoder's own tree); NumPy float32 arrays.

    Raises:
        UserError: as `locate` and `read_params`, or an unknown dtype.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype = {dtype!r}; known: {', '.join(_DTYPES)}")
    config, params = read_params(locate(path_or_id), head)
    import jax.numpy as jnp

    from distil_jax.models import Encoder, MaskedLM

    if "mlm_head" in params:
        return MaskedLM(config, jnp.dtype(dtype), attention), params
    return Encoder(config, jnp.dtype(dtype), attention), params["encoder"]

"""A model folder that transformers loads, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf.checkpoint import listed
from distil_jax.hf.checksums import write_checksums
from distil_jax.hf.config import encoder_config_to_hf
from distil_jax.hf.families import FAMILIES
from distil_jax.hf.names import leaves
from distil_jax.hf.sentence_files import write_pooling
from distil_jax.hf.task_head import task_head_to_hf
from distil_jax.hf.tokenizer import Tokenizer, write_tokenizer

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, Pooling, TaskHead

WEIGHTS_FILE = "model.safetensors"


def save_pretrained(
    folder: str | Path,
    config: EncoderConfig,
    params: Mapping[str, Any],
    *,
    head: TaskHead | None = None,
    tokenizer: Tokenizer | None = None,
    pooling: Pooling | None = None,
    readme: str | None = None,
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write config.json, model.safetensors, the tokenizer's files, README.md and their hashes (SHA256SUMS).

    transformers loads the folder, unless attention heads were pruned (`refused_by_transformers`).

    The folder is put together beside its place and renamed into it, so that no reader ever sees half of it. The model
    has the task head `head` if one is given, else a masked-language-model head if `params` has "mlm_head"; a BERT
    pooler is left out where transformers' class has none. A BERT with neither head nor pooler is loaded there with
    `add_pooling_layer=False`, or gets a random pooler. The decoder weight, tied to the word embeddings, is not stored a
    second time.

    Args:
        folder: must not exist yet, or be empty.
        config: what `params` belong to.
        params: {"encoder": ..., "mlm_head" or "task_head": ...}, or an encoder's own tree; arrays of NumPy or JAX,
            stored as float32.
        head: what params["task_head"] belongs to; its labels are what `transformers.pipeline` shows.
        tokenizer: written into the same folder if given; its vocabulary must fit into the embeddings.
        pooling: how the encoder makes one vector of a text; the folder then is one of sentence-transformers, too.
        readme: text of README.md, the model card.
        extra: further fields of config.json, which transformers does not know and keeps.
        files: texts of further files, by their names.
        overwrite: replace an existing model folder (one with a config.json), all of it.
        finish: called with the folder before it is renamed, to write the weights instead of `write_weights`, and more.

    Raises:
        UserError: the folder is in use, or parameters, configuration or tokenizer do not fit each other.
    """
    target = require_free(folder, overwrite)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    tree = {"encoder": params} if "embeddings" in params else params
    if head is None:
        settings = encoder_config_to_hf(config, "mlm" if "mlm_head" in tree else "none")
    else:
        settings = encoder_config_to_hf(config, head.kind) | task_head_to_hf(config, head)
    # Sorted here: json's sort_keys would put label 10 before label 2.
    settings = dict(sorted({**settings, **(extra or {})}.items()))
    # Not tempfile: its folders are private to the user, and the rename would keep that.
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        (unfinished / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if finish is None:
            write_weights(unfinished / WEIGHTS_FILE, config, tree, head)
        if tokenizer is not None:
            write_tokenizer(unfinished, tokenizer, family=config.family, max_length=config.max_length)
        if pooling is not None:
            write_pooling(unfinished, pooling, config.hidden_size, config.max_length)
        for name, text in {**({} if readme is None else {"README.md": readme}), **(files or {})}.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        if finish is not None:
            finish(unfinished)
        write_checksums(unfinished)
        _settle(unfinished)
        _move_into_place(unfinished, target)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_weights(
    path: Path, config: EncoderConfig, params: Mapping[str, Any], head: TaskHead | None, dtype: str = "float32"
) -> None:
    """Write model.safetensors in "float32", "bfloat16" or "float16", for a config.json whose dtype says which.

    Raises:
        UserError: parameters that do not fit the configuration, or numbers that float16 does not have.
        OSError: the file cannot be written.
    """
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    kind = jnp.dtype(dtype)  # NumPy alone has no bfloat16
    tensors = tensors_from_params(config, params, head)
    for name, values in tensors.items():
        if dtype == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(f"--dtype float16: {name} has numbers above 65504; choose bfloat16 or float32")
        tensors[name] = values.astype(kind, copy=False)
    save_file(tensors, path, metadata={"format": "pt"})


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
        shape = tuple(np.shape(given[path]))
        if shape != wanted[path].own_shape:
            shaped.append(f"{'/'.join(path)} is {list(shape)}, expected {list(wanted[path].own_shape)}")
    groups = {
        "missing": ["/".join(path) for path in wanted if path not in given],
        "unexpected": ["/".join(path) for path in given if path not in wanted],
        "wrong shape": sorted(shaped),
    }
    wrong = [f"{what}: {listed(names)}" for what, names in groups.items() if names]
    if wrong:
        hint = "; give its head, too" if head is None and "task_head" in params else ""
        raise UserError(f"the parameters do not fit the configuration: {'; '.join(wrong)}{hint}")
    prefix = FAMILIES[config.family].prefix
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in wanted.items():
        values = np.asarray(given[path], np.float32)
        # safetensors writes the bytes as they lie in memory: a transposed view would be silently wrong.
        values = np.ascontiguousarray(values.T if leaf.transpose else values)
        tensors[leaf.stored_name(prefix) if mlm_head or head else leaf.name] = values
    return tensors


def require_free(folder: str | Path, overwrite: bool = False) -> Path:
    """The folder that a model may be written to, the target of a link; for a check before the model is computed.

    Raises:
        UserError: it is a file, or in use and not to be overwritten.
    """
    target = Path(os.path.realpath(Path(folder).expanduser()))
    if not target.exists():
        return target
    if not target.is_dir():
        raise UserError(f"{target}: is a file, expected a folder to write the model to")
    if not any(target.iterdir()):
        return target
    if not overwrite:
        raise UserError(
            f"{target}: is not empty; choose another folder, or replace it with --overwrite (in Python overwrite=True)"
        )
    if not (target / "config.json").is_file():
        # Replacing removes everything in it: a mistyped path must not cost a home directory.
        raise UserError(f"{target}: has no config.json, so it is no model folder and will not be overwritten")
    return target


def _settle(folder: Path) -> None:
    """The bytes on disk and readable by whom the user's umask says (save_file may keep them private)."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _move_into_place(unfinished: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        unfinished.replace(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.replaced")
    target.rename(old)
    try:
        unfinished.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)

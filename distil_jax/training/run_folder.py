"""The folder of a run: who may write into it, and what it already holds."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.config import Config, config_from_toml, config_to_toml, differences, run_identity
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, save_tokenizer

CONFIG_FILE = "config.toml"
INPUTS_FILE = "inputs.json"
LOCK_FILE = "run.lock"
TOKENIZER_FOLDER = "tokenizer"
# What a run that was killed at its very start may have left: CONFIG_FILE comes last.
_BEFORE_CONFIG = {LOCK_FILE, INPUTS_FILE, "inputs.unfinished", "config.unfinished"}


def read_config(folder: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        UserError: `folder` is not the folder of a run.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not the folder of a run (no {CONFIG_FILE}); give the run.output of a run")
    return config_from_toml(path.read_text(encoding="utf-8"), str(path))


@contextlib.contextmanager
def open_run_folder(folder: Path, config: Config, inputs: Mapping[str, str]) -> Iterator[None]:
    """Own `folder` for the length of the block; made if missing, continued if it holds this very run.

    Args:
        folder: the run's output.
        config: its settings.
        inputs: what the run reads, as name -> sha256; a run is not continued on other data.

    Raises:
        UserError: the folder holds another run or something else, is in use, or cannot be written.
    """
    check_run_folder(folder, config, inputs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"run.output = {folder}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise UserError(f"run.output = {folder}: in use by {owner}; wait for it or choose another folder") from None
        check_run_folder(folder, config, inputs)  # another run may have been here since
        lock.truncate(0)
        lock.write(f"{socket.gethostname()} process {os.getpid()}")
        lock.flush()
        write_whole(folder / INPUTS_FILE, json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n")
        write_whole(folder / CONFIG_FILE, config_to_toml(config))
        yield


def check_run_folder(folder: Path, config: Config, inputs: Mapping[str, str]) -> None:
    """Refuse a folder that is in the way; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output = {folder}: is a file; give a folder")
    if not folder.is_dir():
        return
    if not (folder / CONFIG_FILE).is_file():
        if any(entry.name not in _BEFORE_CONFIG for entry in folder.iterdir()):
            raise UserError(f"run.output = {folder}: not empty and not the folder of a run; choose another folder")
        return
    changed = differences(run_identity(read_config(folder)), run_identity(config))
    if not changed and (folder / INPUTS_FILE).is_file():
        before = json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8"))
        changed = [f"the contents of {name} changed" for name in inputs if before.get(name) != inputs[name]]
    if changed:
        raise UserError(
            f"run.output = {folder}: holds another run ({'; '.join(changed)}); choose another folder or delete this one"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that nobody ever sees half of it; one that holds this text already is left alone."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def keep_tokenizer(folder: Path, tokenizer: Tokenizer, family: str) -> dict[str, str]:
    """Write a run's tokenizer into its folder; the files' texts by name, for its checkpoints."""
    save_tokenizer(folder / TOKENIZER_FOLDER, tokenizer, family=family)
    files = sorted((folder / TOKENIZER_FOLDER).iterdir())
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 over names and bytes of all tensors."""
    digest = hashlib.sha256()
    for path, tensor in sorted((jax.tree_util.keystr(path), tensor) for path, tensor in _leaves(params)):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _leaves(params: Mapping[str, Any]) -> list[tuple[Any, np.ndarray]]:
    return jax.tree_util.tree_leaves_with_path(params)

"""The folder of a run: who may write into it, and what it already holds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distil_jax.config import Config, config_from_toml, config_to_toml, differences, run_identity
from distil_jax.errors import UserError, one_line, writing
from distil_jax.runs.files import write_atomically
from distil_jax.runs.lock import LOCK_FILE, lock_folder
from distil_jax.runs.manifest import record_start

_LOG = logging.getLogger("distil_jax")
CONFIG_FILE = "config.toml"
INPUTS_FILE = "inputs.json"
INPUTS_FOLDER = "inputs"  # what a caller had in memory
STUDY_FILE = "study.toml"  # in a folder of several runs: the configuration that made them
# What a run that was killed at its very start may have left: CONFIG_FILE comes last.
_BEFORE_CONFIG = {LOCK_FILE, INPUTS_FOLDER, INPUTS_FILE, f"{INPUTS_FILE}.unfinished", f"{CONFIG_FILE}.unfinished"}
_LENGTH = ("training.steps", "training.epochs")
_BESIDE_CONFIG = (LOCK_FILE, INPUTS_FILE, "checkpoints")


def read_config(folder: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        UserError: `folder` is not the folder of a run.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        if (folder / STUDY_FILE).is_file():
            raise UserError(f"{folder}: the folder of a study, not of a run; give its TASK/seedN, or use TASK/model")
        raise UserError(f"{folder}: not the folder of a run (no {CONFIG_FILE}); give the run.output of a run")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); bring back a copy of it") from None
    return config_from_toml(text, str(path))


@contextlib.contextmanager
def open_run_folder(folder: Path, config: Config, inputs: Mapping[str, str], stage: str = "") -> Iterator[None]:
    """Own `folder` for the length of the block; made if missing, continued if it holds this very run.

    Args:
        folder: the run's output.
        config: its settings.
        inputs: what the run reads, as name -> sha256; a run is not continued on other data.
        stage: what makes the run, "pretrain", "distill" or "finetune", for its manifest.

    Raises:
        UserError: the folder holds another run or something else, is in use, or cannot be written.
    """
    check_run_folder(folder, config, inputs)
    with writing(f"run.output = {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        check_run_folder(folder, config, inputs)  # another run may have been here since
        _announce_extension(folder, config)
        with writing(f"run.output = {folder}"):
            write_atomically(folder / INPUTS_FILE, json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n")
            write_atomically(folder / CONFIG_FILE, config_to_toml(config))
        record_start(folder, config, inputs, stage)
        yield


def _announce_extension(folder: Path, config: Config) -> None:
    if not (folder / CONFIG_FILE).is_file():
        return
    changed = differences(run_identity(read_config(folder)), run_identity(config))
    if changed:
        _LOG.warning("%s: extended (%s); the learning rate follows the longer schedule from here", folder, changed[0])


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
    if not any((folder / name).exists() for name in _BESIDE_CONFIG):
        raise UserError(
            f"run.output = {folder}: has a {CONFIG_FILE} that is of no run and would be written over; choose another "
            "folder"
        )
    before = read_config(folder)
    changed = differences(run_identity(before), run_identity(_shortened(config, before)))
    if not changed and (folder / INPUTS_FILE).is_file():
        read = read_inputs(folder)
        changed = [f"the contents of {name} changed" for name in inputs if read.get(name) != inputs[name]]
    if changed:
        longer = all(line.startswith(_LENGTH) for line in changed)
        remedy = "or, for more steps, give --training.extend" if longer else "or delete this one"
        raise UserError(
            f"run.output = {folder}: holds another run ({'; '.join(changed)}); choose another folder {remedy}"
        )


def _shortened(config: Config, before: Config) -> Config:
    """`config` with the length of the earlier start where it extends that."""
    old, new = before.training, config.training
    longer = new.steps > old.steps if new.steps else new.epochs > old.epochs and not old.steps
    if not (new.extend and longer):
        return config
    return dataclasses.replace(config, training=dataclasses.replace(new, steps=old.steps, epochs=old.epochs))


def read_inputs(folder: Path) -> dict[str, str]:
    """What the run in `folder` reads, as name -> sha256. Raises UserError where that is not on record."""
    path = folder / INPUTS_FILE
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(inputs, dict):
            raise ValueError("of another structure")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({one_line(error)}); bring back a copy, or delete it if the run's data are as they were"
        ) from None
    return inputs


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 over names and bytes of all tensors."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_leaves_with_path(params)
    for path, tensor in sorted((jax.tree_util.keystr(path), tensor) for path, tensor in leaves):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()

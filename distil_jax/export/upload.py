"""A run or an exported model to the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.export.write import export
from distil_jax.hf import push_folder, require_repository
from distil_jax.runs import CONFIG_FILE


def push(model: Path, repository: str, *, step: int | None = None, private: bool = False, message: str = "") -> str:
    """Upload a model with its card to the hub, and return its address there.

    Args:
        model: folder of a run, which is exported first, or of an exported model.
        repository: as `push_folder` takes it.
        step: which checkpoint of a run; None: its result.
        private: as `push_folder` takes it.
        message: as `push_folder` takes it.

    Raises:
        UserError: no model there, or as `push_folder`.
        FaultError: as `push_folder`.
    """
    require_repository(repository)  # before the export, which takes a while
    if (model / "config.json").is_file():
        if step is not None:
            raise UserError(f"--step {step}: {model} is an exported model, which has no steps; leave it out")
        return push_folder(model, repository, private=private, message=message)
    if not (model / CONFIG_FILE).is_file():
        raise UserError(f"{model}: neither a run nor an exported model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repository.rpartition("/")[2]
        export(model, folder, step=step)
        return push_folder(folder, repository, private=private, message=message)

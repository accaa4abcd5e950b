"""A checkpoint of a run, ready to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config
from distil_jax.errors import FaultError, UserError
from distil_jax.hf import Tokenizer, file_sha256, home_resolved, load_tokenizer
from distil_jax.models import EncoderConfig, MaskedLM, Pooling, TaskHead, TaskModel
from distil_jax.runs import (
    CONFIG_FILE,
    MODEL_FILE,
    TOKENIZER_FOLDER,
    model_sha256,
    read_config,
    read_evaluations,
    read_model_file,
    read_starts,
    tokenizer_flaws,
)
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.integrity import DamagedError
from distil_jax.training.selection import Selection


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to use.

    Attributes:
        step: of the checkpoint.
        encoder: sizes.
        params: NumPy float32; {"encoder", "task_head"} of a fine-tuned model.
        tokenizer: of the model.
        config: settings of the run.
        metadata: the run's model.json, "steps" (planned, when this was saved) and "evaluations", the held-out measures
            of the whole run by step, later ones than `step` too.
        head: a fine-tuned model's; None: a masked language model.
        pooling: how it makes one vector of a text, as the model it was made of did; None: that is not known.
    """

    step: int
    encoder: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    config: Config
    metadata: Mapping[str, Any]
    head: TaskHead | None = None
    pooling: Pooling | None = None


def is_run(path: str | Path) -> bool:
    """Whether this is the folder of a run."""
    run = home_resolved(path)
    return any((run / name).exists() for name in (CONFIG_FILE, "checkpoints"))


def run_at(path: str | Path, step: int | None = None) -> Trained | None:
    """The checkpoint of the run in this folder, as `read_run` chooses it; None for a model folder or a hub id.

    Raises:
        UserError: as `read_run`, or a step of what is no run.
        FaultError: the checkpoint is damaged.
    """
    if is_run(path):
        return read_run(home_resolved(path), step)
    if step is not None:
        raise UserError(f"step = {step}: only the folder of a run has steps, and {path} is none; leave it out")
    return None


def read_run(folder: Path, step: int | None = None) -> Trained:
    """The checkpoint of a run that is its result, or that of `step`.

    The result of a fine-tuning run that keeps its best model is the best one so far, of any other run the newest.

    Raises:
        UserError: no run, no checkpoint, or not that one; a file of the run is missing or damaged.
        FaultError: the checkpoint is damaged.
    """
    try:
        return _read(folder, step)
    except DamagedError as damage:
        raise FaultError(
            f"{folder}: checkpoint of {damage}; choose another with --step, or train on from one"
        ) from damage


def _read(folder: Path, step: int | None) -> Trained:
    config = read_config(folder)
    _check_dropped(folder)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f"{folder}: the run has no checkpoint yet")
    record, evaluations = read_model_file(folder), read_evaluations(folder, steps[-1])
    best = Selection(record["selection"]).best_step(evaluations) if record.get("selection") else None
    chosen = step if step is not None else steps[-1] if best is None else best
    if chosen not in steps:
        which = " (the best one)" if step is None else ""
        raise UserError(f"{folder}: no checkpoint of step {chosen}{which}; there are {', '.join(map(str, steps))}")
    metadata = checkpoints.metadata(chosen)
    _check_files(folder, record, metadata)
    encoder = EncoderConfig(**record["model"])
    head = TaskHead(**record["head"]) if record.get("head") else None
    shapes = _shapes(MaskedLM(encoder) if head is None else TaskModel(encoder, head))
    groups = record.get("groups", [*shapes])
    params = jax.tree.map(np.asarray, checkpoints.params(chosen, {name: shapes[name] for name in groups}))
    about = {**record, "steps": metadata["steps"], "evaluations": evaluations}
    tokenizer, pooling = load_tokenizer(folder / TOKENIZER_FOLDER), record["description"].get("pooling")
    pooling = Pooling(**pooling) if pooling else None
    return Trained(chosen, encoder, params, tokenizer, config, about, head, pooling)


def _check_files(folder: Path, record: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raise UserError for a file of the run's folder that is not what its hash in a checkpoint or the manifest says."""
    if metadata.get("model_file", model_sha256(record)) != model_sha256(record):
        raise UserError(f"{folder / MODEL_FILE}: of another run than the checkpoint; bring back a copy")
    for name, flaw in tokenizer_flaws(folder, record).items():
        if flaw:
            raise UserError(
                f"{folder / TOKENIZER_FOLDER / name}: {flaw}; bring back a copy, or `distil-jax resume {folder}` "
                "writes it again"
            )
    # Each start of the run writes its own; some settings may differ from those of the checkpoint.
    known = {metadata.get("config"), *(start.get("config_sha256") for start in read_starts(folder))} - {None}
    if known and file_sha256(folder / CONFIG_FILE) not in known:
        raise UserError(f"{folder / CONFIG_FILE}: was changed (its SHA-256 differs); bring back a copy")


def _check_dropped(folder: Path) -> None:
    """Raise UserError for a run of a study whose checkpoints were dropped, as it is not the best one."""
    from distil_jax.training.task_result import RESULT_FILE

    if (folder / RESULT_FILE).is_file() and not (folder / "checkpoints").exists():
        raise UserError(
            f"{folder}: its checkpoints were dropped, since another run of the study is better; give that one, or "
            "delete this folder and run the study again with study.checkpoints = all"
        )


def _shapes(module: MaskedLM | TaskModel) -> Any:
    """The tree of a model's parameters without their values, to be placed on one device of this process."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)

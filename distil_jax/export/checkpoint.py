"""From a run to a model folder that anybody can load: parameters, tokenizer, model card."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import config_from_toml
from distil_jax.errors import FaultError, UserError
from distil_jax.export.card import model_card
from distil_jax.export.prediction_settings import answer_options, to_config_json
from distil_jax.export.task_card import task_card
from distil_jax.hf import Tokenizer, load_tokenizer, save_pretrained
from distil_jax.models import EncoderConfig, MaskedLM, TaskHead, TaskModel
from distil_jax.runs import read_config
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.integrity import DamagedError
from distil_jax.training.selection import Selection


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to use: sizes, parameters (NumPy float32), tokenizer, and what was saved beside them.

    `head` is a fine-tuned model's, whose parameters are {"encoder", "task_head"}; None: a masked language model.
    `metadata["evaluations"]` holds those of the whole run, later ones than `step` too.
    """

    step: int
    encoder: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    metadata: Mapping[str, Any]
    head: TaskHead | None = None


def read_run(folder: Path, step: int | None = None) -> Trained:
    """The checkpoint of a run that is its result, or that of `step`.

    A fine-tuning run that keeps its best model gives the best one so far, any other the newest.

    Raises:
        UserError: no run, no checkpoint, or not that one.
        FaultError: the checkpoint is damaged.
    """
    try:
        return _read(folder, step)
    except DamagedError as damage:
        raise FaultError(
            f"{folder}: checkpoint of {damage}; choose another with --step, or train on from one"
        ) from damage


def _read(folder: Path, step: int | None) -> Trained:
    read_config(folder)
    _check_dropped(folder)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f"{folder}: the run has no checkpoint yet")
    newest = checkpoints.metadata(steps[-1])
    chosen = _result_step(newest, steps[-1]) if step is None else step
    if chosen not in steps:
        best = " (the best one)" if step is None else ""
        raise UserError(f"{folder}: no checkpoint of step {chosen}{best}; there are {', '.join(map(str, steps))}")
    metadata = {**checkpoints.metadata(chosen), "evaluations": newest["evaluations"]}
    encoder = EncoderConfig(**metadata["model"])
    head = TaskHead(**metadata["head"]) if metadata.get("head") else None
    module = MaskedLM(encoder) if head is None else TaskModel(encoder, head)
    params = checkpoints.params(chosen, _shapes(module))
    tokenizer = _tokenizer(metadata["tokenizer"])
    return Trained(chosen, encoder, jax.tree.map(np.asarray, params), tokenizer, metadata, head)


def _check_dropped(folder: Path) -> None:
    """Raises UserError for a run of a study whose checkpoints were dropped, as it is not the best one."""
    from distil_jax.tasks.finetune import RESULT_FILE

    if (folder / RESULT_FILE).is_file() and not (folder / "checkpoints").exists():
        raise UserError(
            f"{folder}: its checkpoints were dropped, since another run of the study is better; give that one, or "
            "delete this folder and run the study again with study.checkpoints = all"
        )


def _result_step(metadata: Mapping[str, Any], newest: int) -> int:
    measure = metadata.get("selection")
    best = Selection(measure).best_step(metadata["evaluations"]) if measure else None
    return newest if best is None else best


def _shapes(module: MaskedLM | TaskModel) -> Any:
    """The tree of a model's parameters without their values, to be placed on one device of this process."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def _tokenizer(texts: Mapping[str, str]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in texts.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        return load_tokenizer(temporary)


def export(run: Path, output: Path, *, step: int | None = None, overwrite: bool = False, name: str = "") -> Trained:
    """Write the model of a run as a Hugging Face folder with tokenizer and model card.

    Args:
        run: the run's folder.
        output: the folder to write; made whole or not at all.
        step: which checkpoint; None is the run's result, as in `read_run`.
        overwrite: replace an existing model folder.
        name: what the card calls the model; empty: as the folder is called.

    Raises:
        UserError: as `read_run` and `save_pretrained`.
    """
    trained = read_run(run, step)
    save_trained(trained, output, overwrite=overwrite, name=name)
    return trained


def save_trained(trained: Trained, output: Path, *, overwrite: bool = False, name: str = "") -> None:
    """Write what `read_run` has read as a Hugging Face folder with tokenizer and model card, which has `name`.

    Raises:
        UserError: as `save_pretrained`.
    """
    config = config_from_toml(trained.metadata["config"], f"{output}: checkpoint {trained.step}")
    extra: dict[str, Any] = {}
    if trained.head is not None:
        options = answer_options(config.task, trained.metadata["description"])
        extra = to_config_json(config.task, options, trained.head.kind)
    about = (config, trained.encoder, trained.metadata, trained.step, name or output.name)
    save_pretrained(
        output,
        trained.encoder,
        trained.params,
        head=trained.head,
        tokenizer=trained.tokenizer,
        readme=model_card(*about) if trained.head is None else task_card(*about, trained.head),
        extra=extra,
        overwrite=overwrite,
    )

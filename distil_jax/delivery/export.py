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
from distil_jax.delivery.card import model_card
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer, save_pretrained
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.run_folder import read_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to use: sizes, parameters (NumPy float32), tokenizer, and what was saved beside them."""

    step: int
    encoder: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    metadata: Mapping[str, Any]


def read_run(folder: Path, step: int | None = None) -> Trained:
    """The newest checkpoint of a run, or that of `step`.

    Raises:
        UserError: no run, no checkpoint, or not that one.
    """
    read_config(folder)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f"{folder}: the run has no checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    metadata = checkpoints.metadata(chosen)
    encoder = EncoderConfig(**metadata["model"])
    module = MaskedLM(encoder)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    params = jax.tree.map(np.asarray, checkpoints.params(chosen, like))
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in metadata["tokenizer"].items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        tokenizer = load_tokenizer(temporary)
    return Trained(chosen, encoder, params, tokenizer, metadata)


def export(run: Path, output: Path, *, step: int | None = None, overwrite: bool = False) -> Trained:
    """Write the model of a run as a Hugging Face folder with tokenizer and model card.

    Args:
        run: the run's folder.
        output: the folder to write; made whole or not at all.
        step: which checkpoint; None is the newest.
        overwrite: replace an existing model folder.

    Raises:
        UserError: as `read_run` and `save_pretrained`.
    """
    trained = read_run(run, step)
    config = config_from_toml(trained.metadata["config"], f"{run}: checkpoint {trained.step}")
    card = model_card(config, trained.encoder, trained.metadata, trained.step, output.name)
    save_pretrained(
        output, trained.encoder, trained.params, tokenizer=trained.tokenizer, readme=card, overwrite=overwrite
    )
    return trained

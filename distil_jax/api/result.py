"""What the functions of the package return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.export import Trained, make_module, read_run
from distil_jax.hf import Tokenizer
from distil_jax.models import Encoder, MaskedLM, TaskModel


@dataclasses.dataclass(frozen=True)
class Result:
    """A model with what was measured of it.

    Attributes:
        module: `MaskedLM`, `TaskModel` or `Encoder`; `module.apply({"params": params}, inputs)`.
        params: nested dictionaries of float32 arrays.
        tokenizer: `tokenizer(["a text"])` are inputs of the module.
        metrics: held-out measures, as shares where they are shares.
        folder: the run's: checkpoints, metrics.jsonl, config.toml.
    """

    module: MaskedLM | TaskModel | Encoder
    params: dict[str, Any] = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    metrics: Mapping[str, float]
    folder: Path


def result_of(folder: Path, metrics: Mapping[str, float]) -> Result:
    """The result of the run in `folder`. Raises UserError where it has no checkpoint."""
    trained = read_run(folder)
    return Result(*module_of(trained), trained.tokenizer, metrics, folder)


def module_of(trained: Trained) -> tuple[MaskedLM | TaskModel | Encoder, dict[str, Any]]:
    """The module of a run's checkpoint, and its parameters."""
    return make_module(trained.encoder, trained.params, trained.head)

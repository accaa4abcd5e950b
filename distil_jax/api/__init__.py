"""The commands as functions: what they take from files, these take from memory, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.api.inputs import Model
    from distil_jax.api.models import evaluate, export_model, load_predictor, predict
    from distil_jax.api.result import Result
    from distil_jax.api.training import distill, finetune, pretrain
else:
    __getattr__ = lazy_imports(__name__)

__all__ = [
    "Model",
    "Result",
    "distill",
    "evaluate",
    "export_model",
    "finetune",
    "load_predictor",
    "predict",
    "pretrain",
]

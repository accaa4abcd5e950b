"""From a run to something others can use: a Hugging Face folder with a model card, and predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.export.checkpoint import Trained, read_run
    from distil_jax.export.formats import FORMATS, ExportFormat, export
    from distil_jax.export.latency import encoder_latency
    from distil_jax.export.predictions import predict_rows
    from distil_jax.export.task_models import ReadyModel, load_predictor, predict, read_ready
else:
    __getattr__ = lazy_imports(__name__)

__all__ = [
    "FORMATS",
    "ExportFormat",
    "ReadyModel",
    "Trained",
    "encoder_latency",
    "export",
    "load_predictor",
    "predict",
    "predict_rows",
    "read_ready",
    "read_run",
]

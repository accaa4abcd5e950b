"""From a run to something others can use: a Hugging Face folder with a model card, and predictions."""

from distil_jax.export.checkpoint import Trained, export, read_run
from distil_jax.export.predictor import load_predictor, predict

__all__ = ["Trained", "export", "load_predictor", "predict", "read_run"]
